/**
 * Goal (C9): a merge makes the same bytes whoever runs it: a worker thread, the host's own thread a slice
 * at a time, the simulator's pool by any fuel. Method: one job, three pools, three copies of its inputs.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import type { JobAnswer, JobPool } from '../../actors/job-pool.ts';
import { PiscinaPool, StepPool, makeWorkers } from '../../actors/job-pool.ts';
import type { Job } from '../../actors/jobs.ts';
import { makeMachine } from '../../actors/jobs.ts';
import { MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED } from '../../core/base/update.ts';
import { Arena } from '../../core/shared/arena.ts';
import { DescriptorTable } from '../../core/shared/descriptors.ts';
import type { MergeResult } from '../../core/spine/merge-job.ts';
import { partRef } from '../../core/spine/part-format.ts';
import { partPath } from '../../core/storage/names.ts';
import { turn, until } from '../engine/world.ts';
import { SimPool } from '../sim/pool.ts';
import { put, randomRows, sorted, tempStorage, writeRun } from '../spine/rows.ts';

const WORKER = new URL('../../dist/actors/merge-worker.js', import.meta.url);
const SHAPE = { blockBytes: 400, partBytes: 2_500, partRows: 60 };
const OUT = 5_000;

/** The same inputs in a directory of their own, and the job over them. */
function prepared(): { place: ReturnType<typeof tempStorage>; job: Job } {
  const place = tempStorage();
  const prng = new Prng(91);
  const runs = [0, 1, 2, 3].map((i) => {
    const rows = randomRows(prng, 200, 100).map((row) => ({ ...row, time: row.time + 100 * i }));
    // Above all other keys, in order: of these some parts are only moved.
    const above = Array.from({ length: 300 }, (_, n) => {
      const key = Buffer.concat([Buffer.alloc(30, 0xff), Buffer.from(`${i}/${1_000 + n}`)]);
      return put(key, 100 * i, 'a value of some length, so that few make a part');
    });
    return writeRun(place.storage, 1 + 100 * i, sorted([...rows, ...above]), SHAPE);
  });
  const request = {
    jobId: 1,
    collection: 7,
    kind: KIND_KEYED,
    inputs: runs.map((parts, i) => ({
      bid: 10 + i,
      desc: { lower: 100 * i, upper: 100 * i + 100, since: 0 },
      runs: [{ runId: 20 + i, parts: parts.map(partRef) }],
    })),
    since: 250,
    oldest: true,
    outFiles: { first: OUT, count: 400 },
    shape: SHAPE,
  };
  return { place, job: { kind: 'merge', request } };
}

async function answerOf(pool: JobPool, step: () => void): Promise<MergeResult> {
  let answer: JobAnswer | undefined;
  await until('an answer', () => {
    step();
    return (answer = pool.poll()) !== undefined;
  });
  assert.equal(answer?.failure, undefined);
  return answer?.value as MergeResult;
}

test('a merge makes the same bytes on a worker thread, on the host’s own, and in the simulated pool', async () => {
  const arena = Arena.create(32 * MiB);
  const workers = makeWorkers(WORKER, 1);
  const made: { result: MergeResult; files: Buffer[] }[] = [];
  const prng = new Prng(92);
  try {
    for (const host of ['threads', 'inline', 'simulated']) {
      const { place, job } = prepared();
      try {
        const make = (given: Job) => makeMachine(given, place.storage, arena);
        const simulated = new SimPool(
          1,
          1,
          make,
          () => {},
          () => 'lives',
        );
        const descriptors = new DescriptorTable().buffer;
        const pool =
          host === 'threads'
            ? new PiscinaPool(
                workers,
                workers,
                arena.buffer,
                place.directory,
                descriptors,
                () => {},
              )
            : host === 'inline'
              ? new StepPool(make)
              : simulated;
        pool.start(1, job);
        const result = await answerOf(pool, () => {
          if (host === 'simulated') simulated.stepOne(prng, prng.between(1, 50));
          else pool.step();
        });
        const files = result.createdFiles.map(({ file }) =>
          readFileSync(`${place.directory}/${partPath(file)}`),
        );
        made.push({ result, files });
      } finally {
        place.end();
      }
    }
  } finally {
    await workers.destroy();
    await turn();
  }
  const [threads, inline, simulated] = made;
  assert.ok(threads.files.length > 5, `${threads.files.length} files`);
  assert.ok(threads.result.stats.partsMoved > 0, 'some parts were only moved');
  assert.deepEqual(inline, threads);
  assert.deepEqual(simulated, threads);
});
