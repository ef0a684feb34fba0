/**
 * Goal: what once broke stays mended: questions that overran a ring, flags a worker refuses, counters
 * of a former engine, a dropped collection under a snapshot, commits that memory can never hold.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { getEventListeners } from 'node:events';
import { cpSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { TidemarkError } from '../../actors/index.ts';
import { commitOperationsMax, writerPagesMax } from '../../actors/options.ts';
import { MiB } from '../../core/base/limits.ts';
import { coded, inBothHosts, inHost, quiet, turn, until } from './world.ts';

inHost(
  'threads',
  'however many flushes are asked for at once, the engine answers',
  async (home) => {
    const engine = await home.open();
    const words = await engine.collection('words', {});
    const codes = new Set<string>();
    const asked: Promise<unknown>[] = [];
    for (let i = 0; i < 150; i++) {
      void words.put(`k${i}`, 'x'.repeat(5_000));
      for (let n = 0; n < 20; n++) {
        asked.push(engine.flush().catch((error: TidemarkError) => codes.add(error.code)));
      }
      await turn();
    }
    await Promise.all(asked);
    assert.equal(engine.state, 'open');
    assert.deepEqual(
      [...codes].filter((code) => code !== 'TIDEMARK_BUSY'),
      [],
    );
  },
);

inHost('threads', 'flags of the process that no worker takes are no hindrance', async (home) => {
  const index = new URL('../../dist/actors/index.js', import.meta.url).href;
  const script = `
    import { open } from ${JSON.stringify(index)};
    const engine = await open(${JSON.stringify(home.directory)}, { memoryBytes: ${64 * MiB} });
    console.log(engine.state);
    await engine.close();`;
  const flags = ['--max-old-space-size=512', '--expose-gc', '--stack-trace-limit=20'];
  const child = spawnSync(process.execPath, [...flags, '--input-type=module', '-e', script], {
    encoding: 'utf8',
  });
  assert.equal(child.stdout, 'open\n', child.stderr);
});

inHost('threads', 'an engine on reused threads counts from nothing', async (home) => {
  const former = await home.open();
  const words = await former.collection('words', {});
  await words.put('k', 'v');
  await former.flush();
  await quiet(former);
  assert.equal(former.stats().keeper['flushes'], 1);
  await former.close();
  const engine = await home.open({}, `${home.directory}/other`);
  await turn();
  assert.equal(engine.stats().keeper['flushes'], 0);
  assert.equal(engine.stats().compactor['jobs'], 0);
});

inBothHosts('a snapshot sees a collection that was dropped after it', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const others = await engine.collection('others', {});
  await words.put('k', 'v');
  await engine.flush();
  await others.put('a', '1');
  {
    using snapshot = engine.snapshot();
    await engine.drop('words');
    await engine.flush();
    await others.put('a', '2');
    await engine.flush();
    await quiet(engine);
    assert.equal(words.getSync('k', { snapshot }), 'v');
  }
  // Nobody holds it any more: it goes with what comes next.
  await others.put('a', '3');
  await engine.flush();
  await until('it goes', () => engine.stats().collections.every(({ id }) => id !== words.id));
});

inBothHosts(
  'a commit with more operations than memory can hold is refused at once',
  async (home) => {
    const memtableBytes = 4 * MiB;
    const engine = await home.open({ memtableBytes });
    const rows = await engine.collection('rows', { key: 'u64' });
    const most = commitOperationsMax(memtableBytes, writerPagesMax(memtableBytes, Infinity));
    const fill = (count: number): Promise<unknown> => {
      const transaction = engine.transaction();
      for (let i = 0; i < count; i++) transaction.delete(rows, i);
      return transaction.commit();
    };
    await fill(most);
    await assert.rejects(fill(most + 1), coded('TIDEMARK_TOO_LARGE', { what: 'operations' }));
    await rows.put(1, 'v');
    assert.equal(rows.getSync(1), 'v');
  },
);

inBothHosts('a log whose commits memory can never hold is refused at open', async (home) => {
  const large = await home.open({ memoryBytes: 512 * MiB });
  const words = await large.collection('words', {});
  await words.put('k', 'x'.repeat(20 * MiB));
  // No file may go while it is copied.
  await quiet(large);
  // As after a crash: closing would have moved it into parts.
  const saved = `${home.directory}.saved`;
  cpSync(home.directory, saved, { recursive: true });
  await large.close();
  rmSync(home.directory, { recursive: true });
  renameSync(saved, home.directory);
  rmSync(join(home.directory, 'LOCK'));
  await assert.rejects(home.open(), coded('TIDEMARK_TOO_LARGE', { limit: 'memtableBytes' }));
  const again = await home.open({ memoryBytes: 512 * MiB });
  assert.equal((await again.collection('words')).getSync('k')?.length, 20 * MiB);
});

inBothHosts('a signal that outlives many waits keeps no listener of theirs', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const { signal } = new AbortController();
  for (let i = 0; i < 20; i++) {
    const { offset } = await words.put('k', `${i}`);
    await engine.reached(offset, { signal });
  }
  assert.equal(getEventListeners(signal, 'abort').length, 0);
});
