/**
 * Goal: a backup made while the store is written to opens clean and is the store as it was at the offset it
 * names, whatever the store does afterwards; one that is given up leaves nothing behind. Inline and on
 * threads.
 */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Engine } from '../../actors/index.ts';
import { KiB } from '../../core/base/limits.ts';
import { verify } from '../store/kit.ts';
import { coded, inBothHosts, misuse, quiet, until } from './world.ts';
import type { Home } from './world.ts';

const SMALL = { memtableBytes: 512 * KiB, segmentBytes: 128 * KiB };

/** Key of transaction i, and its value: the offset of each row says which transactions are there. */
async function write(engine: Engine, from: number, count: number): Promise<number[]> {
  const words = await engine.collection('words', { value: 'utf8' });
  const offsets: number[] = [];
  let pending: Promise<unknown>[] = [];
  for (let i = from; i < from + count; i++) {
    pending.push(
      words
        .put(`key ${i % 200}`, `${i} `.padEnd(400, '.'))
        .then(({ offset }) => offsets.push(offset)),
    );
    if (pending.length === 50) {
      await Promise.all(pending);
      pending = [];
    }
  }
  await Promise.all(pending);
  return offsets;
}

const targets: string[] = [];
process.on('exit', () => {
  for (const target of targets) rmSync(target, { recursive: true, force: true });
});

/** Beside the store's directory. */
function targetOf(home: Home, name = 'backup'): string {
  const target = `${home.directory}-${name}`;
  targets.push(target);
  return target;
}

inBothHosts('a backup under full load opens clean and holds a prefix', async (home) => {
  const engine = await home.open(SMALL);
  await write(engine, 0, 600);
  await engine.flush();
  let isDone = false;
  let written = 600;
  const load = (async () => {
    while (!isDone) {
      await write(engine, written, 50);
      written += 50;
    }
  })();
  const before = engine.upper;
  const target = targetOf(home);
  const { offset, bytes } = await engine.backup(target);
  isDone = true;
  await load;
  assert.ok(offset >= before - 1, `what was committed at the call is there: ${offset}, ${before}`);
  assert.ok(bytes > 100_000, `${bytes} bytes`);

  const report = verify(target);
  assert.deepEqual(report.findings, []);
  const copy = await home.open(SMALL, target);
  assert.equal(copy.upper, offset + 1);
  const words = await copy.collection('words');
  // The collection itself is transaction 0; then one put each.
  const expected = new Map<string, string>();
  for (let i = 0; i + 1 <= offset; i++) {
    expected.set(`key ${i % 200}`, `${i} `.padEnd(400, '.'));
  }
  const byKey = [...expected].toSorted(([a], [b]) => (a < b ? -1 : 1));
  assert.deepEqual([...words.entries()], byKey);
  // It goes on by itself.
  await write(copy, 0, 10);
  assert.equal(copy.upper, offset + 11);
});

inBothHosts(
  'parts are linked and stay while the store merges them away; log is copied',
  async (home) => {
    const engine = await home.open(SMALL);
    for (let round = 0; round < 4; round++) {
      await write(engine, round * 300, 300);
      await engine.flush();
    }
    // A merge that ends between the backup and the look at it would take the other name of a part away.
    await quiet(engine);
    const target = targetOf(home);
    const { offset } = await engine.backup(target);
    const parts = readdirSync(join(target, 'parts'));
    assert.ok(parts.length > 0, 'there are parts');
    for (const name of parts) {
      assert.equal(statSync(join(target, 'parts', name)).nlink, 2, `${name} is a link`);
    }
    for (const name of readdirSync(join(target, 'wal'))) {
      assert.equal(statSync(join(target, 'wal', name)).nlink, 1, `${name} is a copy`);
    }
    for (let round = 0; round < 4; round++) {
      await write(engine, round * 300, 300);
      await engine.checkpoint();
    }
    await engine.compact();
    await quiet(engine);
    // One file has the catalog's rows too, which nobody has changed.
    const left = (): string[] =>
      parts.filter((name) => existsSync(join(home.directory, 'parts', name)));
    await until('what was held has gone', () => left().length <= 1);
    assert.deepEqual(
      readdirSync(join(home.directory, 'tmp')).filter((name) => name.startsWith('backup')),
      [],
    );
    assert.deepEqual(verify(target).findings, []);
    const copy = await home.open(SMALL, target);
    assert.equal(copy.upper, offset + 1);
    const words = await copy.collection('words');
    assert.equal(Array.from(words.keys()).length, 200);
  },
);

inBothHosts('a store without a transaction can be backed up', async (home) => {
  const engine = await home.open();
  const target = targetOf(home);
  assert.equal((await engine.backup(target)).offset, -1);
  assert.deepEqual(verify(target).findings, []);
  const copy = await home.open({}, target);
  assert.equal(copy.upper, 0);
  await write(copy, 0, 1);
});

inBothHosts('a directory with anything in it is refused and left as it is', async (home) => {
  const engine = await home.open(SMALL);
  await write(engine, 0, 10);
  const target = targetOf(home);
  mkdirSync(join(target, 'wal'), { recursive: true });
  writeFileSync(join(target, 'wal', 'mine'), 'mine');
  await assert.rejects(engine.backup(target), coded('TIDEMARK_EXISTS', { directory: target }));
  assert.deepEqual(readdirSync(target), ['wal']);
  assert.deepEqual(readdirSync(join(target, 'wal')), ['mine']);
  await assert.rejects(engine.backup(home.directory), misuse(/own directory/));
  await assert.rejects(engine.backup(join(home.directory, 'x')), misuse(/own directory/));
  await assert.rejects(engine.backup(''), misuse(/path/));
  await assert.rejects(engine.backup('x', { signals: 1 } as never), misuse(/signals/));
});

inBothHosts('an aborted backup removes what it made, and holds nothing', async (home) => {
  const engine = await home.open(SMALL);
  await write(engine, 0, 300);
  await engine.flush();
  const target = targetOf(home);
  const stop = new AbortController();
  let isOver = false;
  const promise = engine.backup(target, { signal: stop.signal }).finally(() => (isOver = true));
  await until('something was made', () => existsSync(join(target, 'wal')) || isOver);
  stop.abort(new Error('enough'));
  await promise.then(
    // It may have been quicker.
    ({ offset }) => assert.ok(offset >= 300, 'then it is whole'),
    (error: Error) => {
      assert.equal(error.message, 'enough');
      assert.equal(existsSync(target), false);
    },
  );
  await assert.rejects(
    engine.backup(targetOf(home, 'other'), { signal: AbortSignal.abort(new Error('never')) }),
    /never/,
  );
  assert.equal(existsSync(targetOf(home, 'other')), false);
  await write(engine, 300, 300);
  await engine.checkpoint();
  await engine.checkpoint();
  assert.notEqual(engine.stats().log.floor.heldBy, 'backup');
});

inBothHosts('closing gives a backup up', async (home) => {
  const engine = await home.open(SMALL);
  await write(engine, 0, 100);
  const target = targetOf(home);
  const promise = engine.backup(target);
  const rejected = assert.rejects(promise, coded('TIDEMARK_CLOSED'));
  await engine.close();
  await rejected;
  assert.equal(existsSync(target), false);
  await assert.rejects(engine.backup(target), coded('TIDEMARK_CLOSED'));
});
