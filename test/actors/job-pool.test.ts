/**
 * Goal: what befalls a worker of the pool is told of the job it ran, and of nothing else; no job waits
 * for a worker that never comes.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Worker } from 'node:worker_threads';
import { pathToFileURL } from 'node:url';
import { PiscinaPool, StepPool, makePressing, makeWorkers } from '../../actors/job-pool.ts';
import type { JobAnswer } from '../../actors/job-pool.ts';
import type { Job } from '../../actors/jobs.ts';
import { turn, until } from '../engine/world.ts';

type Workers = ReturnType<typeof makeWorkers>;

const NO_BYTES = new SharedArrayBuffer(8);

/** A pool whose workers run this instead of jobs. */
async function withPool(
  code: string,
  use: (
    pool: PiscinaPool,
    threads: () => Worker[],
    directory: string,
    workers: Workers,
  ) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'tidemark-'));
  const file = join(directory, 'worker.mjs');
  writeFileSync(file, code);
  const workers = makeWorkers(pathToFileURL(file), 2);
  try {
    const pool = new PiscinaPool(workers, workers, NO_BYTES, directory, NO_BYTES, () => {});
    await use(pool, () => workers.threads, directory, workers);
  } finally {
    await workers.destroy();
    rmSync(directory, { recursive: true });
  }
}

const job = (kind: string): Job => ({ kind }) as unknown as Job;

async function answerOf(pool: PiscinaPool): Promise<JobAnswer> {
  let answer: JobAnswer | undefined;
  await until('an answer', () => (answer = pool.poll()) !== undefined);
  assert.ok(answer !== undefined, 'until saw it');
  return answer;
}

test('a worker that dies idle fails no job, and the next one has another', async () => {
  // When it is told to: its answer has been heard by then.
  const code = `import { existsSync } from 'node:fs';
  export default ({ job, directory }) => {
    setInterval(() => { if (existsSync(directory + '/die')) throw new Error('idle'); }, 1);
    return job.kind;
  }`;
  await withPool(code, async (pool, threads, directory) => {
    for (let id = 0; id < 4; id++) {
      pool.start(id, job('last'));
      assert.deepEqual(await answerOf(pool), { id, value: 'last' });
      writeFileSync(join(directory, 'die'), '');
      await until('the worker is gone', () => threads().length === 0);
      rmSync(join(directory, 'die'));
    }
  });
});

test('a worker that dies at work fails its job, and that alone', async () => {
  const code = `export default ({ job }) => {
    if (job.kind === 'exit') process.exit(1);
    return job.kind;
  }`;
  await withPool(code, async (pool) => {
    for (let id = 0; id < 6; id += 2) {
      pool.start(id, job('exit'));
      const answer = await answerOf(pool);
      assert.equal(answer.id, id);
      assert.match(answer.failure?.message ?? '', /exited/);
      pool.start(id + 1, job('well'));
      assert.deepEqual(await answerOf(pool), { id: id + 1, value: 'well' });
    }
  });
});

for (const [how, code] of [
  ['throw', "throw new Error('no beginning');"],
  ['exit', 'process.exit(1);'],
] as const) {
  test(`jobs fail when workers ${how} before they begin`, async () => {
    await withPool(code, async (pool) => {
      for (let round = 0; round < 2; round++) {
        for (let id = 0; id < 3; id++) pool.start(id, job('never'));
        const ids: number[] = [];
        for (let i = 0; i < 3; i++) {
          const { id, failure } = await answerOf(pool);
          assert.ok(failure !== undefined, `job ${id} cannot have run`);
          ids.push(id);
        }
        assert.deepEqual(
          ids.toSorted((a, b) => a - b),
          [0, 1, 2],
        );
        await turn();
      }
    });
  });
}

/** A worker that says that it has begun and hears nothing, where the job asks for it. */
const DEAF = `export default ({ job, cancel }) => {
  const words = new Int32Array(cancel);
  while (job.kind === 'deaf') Atomics.store(words, 1, 7);
  return job.kind;
}`;

test('a worker that hears nothing any more is replaced, and its job fails', async () => {
  await withPool(DEAF, async (pool) => {
    for (let id = 0; id < 4; id += 2) {
      assert.equal(pool.steps(id), 0);
      pool.start(id, job('deaf'));
      await until('it has begun', () => pool.steps(id) === 7);
      pool.cancel(id);
      await turn();
      assert.equal(pool.poll(), undefined);
      pool.replace(id);
      const answer = await answerOf(pool);
      assert.equal(answer.id, id);
      assert.match(answer.failure?.message ?? '', /aborted/);
      assert.equal(pool.steps(id), 0);
      pool.start(id + 1, job('well'));
      assert.deepEqual(await answerOf(pool), { id: id + 1, value: 'well' });
    }
  });
});

test('a job whose worker is replaced was stopped, and so was one that waited for it: no worker has died', async () => {
  await withPool(DEAF, async (pool) => {
    for (const id of [1, 2]) {
      pool.start(id, job('deaf'));
      await until('it has begun', () => pool.steps(id) === 7);
    }
    pool.start(3, job('waits'));
    await turn();
    pool.replace(1);
    pool.replace(2);
    for (let i = 0; i < 3; i++) {
      const { id, value, failure } = await answerOf(pool);
      // It may have been given the worker of the first.
      if (id === 3 && value !== undefined) continue;
      assert.equal(failure?.code, 'TIDEMARK_CLOSED', `job ${id}: ${failure?.message}`);
    }
    pool.start(4, job('well'));
    assert.deepEqual(await answerOf(pool), { id: 4, value: 'well' });
  });
});

for (const kind of ['zero', 'spare']) {
  test(`a ${kind} job whose call hangs answers when its thread is gone, not before`, async () => {
    const code = `import { closeSync, openSync } from 'node:fs';
    export default ({ job, cancel, directory }) => {
      Atomics.store(new Int32Array(cancel), 1, 7);
      closeSync(openSync(directory + '/pipe', 'r'));
      return job.kind;
    }`;
    await withPool(code, async (pool, threads, directory) => {
      execFileSync('mkfifo', [join(directory, 'pipe')]);
      pool.start(1, job(kind));
      await until('it has begun', () => pool.steps(1) === 7);
      const [thread] = threads();
      let isGone = false;
      thread.on('exit', () => (isGone = true));
      pool.replace(1);
      pool.replace(1);
      let answer: JobAnswer | undefined;
      let pipe = -1;
      try {
        for (let i = 0; i < 200 && !isGone; i++) {
          await turn();
          answer = pool.poll();
          assert.ok(answer === undefined || isGone, 'it may still write');
        }
      } finally {
        pipe = openSync(join(directory, 'pipe'), 'r+');
      }
      answer ??= await answerOf(pool);
      // Not before: a thread that came to it only now would hang for good.
      closeSync(pipe);
      assert.ok(isGone, 'the thread is gone');
      assert.equal(answer.id, 1);
      assert.match(answer.failure?.message ?? '', /aborted/);
    });
  });
}

test('a job that commits wait for stands behind no merge', async () => {
  const code = `export default ({ job }) => job.kind;`;
  // Its merges never end: it has no thread for them.
  const held = `export default () => new Promise(() => {});`;
  await withPool(held, async (_pool, _threads, _directory, stuck) => {
    await withPool(code, async (_other, _more, _elsewhere, pressing) => {
      const pool = new PiscinaPool(stuck, pressing, NO_BYTES, '', NO_BYTES, () => {});
      for (let id = 0; id < 6; id++) pool.start(id, job('merge'));
      for (const [id, kind] of ['flush', 'zero', 'spare'].entries()) {
        pool.start(6 + id, job(kind));
        assert.deepEqual(await answerOf(pool), { id: 6 + id, value: kind });
      }
    });
  });
});

test('a flush, a range of zeros and a spare are made side by side: none waits for another', async () => {
  // Each kind of job but the flush holds its worker for good.
  const code = `export default ({ job, cancel }) => {
    const words = new Int32Array(cancel);
    Atomics.store(words, 1, 7);
    return job.kind === 'flush' ? job.kind : new Promise(() => {});
  }`;
  await withPool(code, async (_pool, _threads, directory, workers) => {
    const pressing = makePressing(pathToFileURL(join(directory, 'worker.mjs')));
    try {
      const pool = new PiscinaPool(workers, pressing, NO_BYTES, directory, NO_BYTES, () => {});
      pool.start(1, job('zero'));
      pool.start(3, job('spare'));
      await until('both have begun', () => pool.steps(1) === 7 && pool.steps(3) === 7);
      for (const id of [2, 4]) {
        pool.start(id, job('flush'));
        assert.deepEqual(await answerOf(pool), { id, value: 'flush' });
      }
    } finally {
      await pressing.destroy();
    }
  });
});

test('on one thread such a job goes first, also before a merge that has begun', () => {
  const done: string[] = [];
  const pool = new StepPool((given) => {
    let left = 3;
    return {
      step: () => --left > 0,
      cancel: () => {},
      result: () => done.push(given.kind),
    };
  });
  pool.start(1, job('merge'));
  pool.step();
  pool.start(2, job('compress'));
  pool.start(3, job('flush'));
  while (pool.step());
  assert.deepEqual(done, ['flush', 'merge', 'compress']);
  assert.deepEqual(
    [pool.poll()?.id, pool.poll()?.id, pool.poll()?.id, pool.poll()],
    [3, 1, 2, undefined],
  );
});
