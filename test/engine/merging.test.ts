/**
 * Goal: merges change nothing that anybody sees. An iterator and a snapshot read on over a hundred of
 * them while the old files go; what a merge of a dropped collection makes is nobody's; a result that is
 * wrong is refused, and kept; a manifest edit costs what was touched, however many collections there are
 * beside it.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { OpenOptions } from '../../actors/options.ts';
import type { CollectionStats } from '../../actors/stats.ts';
import { KiB, MiB, runsPerMerge } from '../../core/base/limits.ts';
import { idBlock } from '../../core/spine/manifest.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import type { StorageAnswer, StorageCall } from '../../core/storage/storage.ts';
import { SimDisk } from '../sim/disk.ts';
import { Home, inBothHosts, quiet, turn, until } from './world.ts';

function partFiles(home: Home): string[] {
  return readdirSync(join(home.directory, 'parts'));
}

inBothHosts('an iterator and a snapshot read on over a hundred merges', async (home) => {
  const engine = await home.open({ durability: 'buffered' });
  const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
  await engine.flush();
  const first = new Set(partFiles(home));
  const rows = Array.from({ length: 3_000 }, (_, i): [string, string] => [
    `key${String(i).padStart(5, '0')}`,
    `first ${i}`,
  ]);
  const tx = engine.transaction();
  for (const [key, value] of rows) tx.put(words, key, value);
  await tx.commit();
  await engine.flush();
  const before = new Set(partFiles(home).filter((name) => !first.has(name)));
  assert.ok(before.size > 0, 'the rows are in files');

  using snap = engine.snapshot();
  const iterator = words.entries()[Symbol.iterator]();
  const met: [string, string][] = [];
  for (let round = 0; round < 100; round++) {
    const change = engine.transaction();
    for (let i = 0; i < 30; i++) {
      const [key] = rows[(round * 37 + i * 101) % rows.length];
      if (i % 5 === 0) change.delete(words, key);
      else change.put(words, key, `round ${round}`);
    }
    await change.commit();
    await engine.flush();
    await engine.compact(words);
    for (let i = 0; i < 30; i++) {
      const next = iterator.next();
      assert.ok(next.done !== true, `row ${met.length} is there`);
      met.push(next.value);
    }
  }
  assert.ok(engine.stats().spine.jobs.mergesApplied >= 100, 'a merge for each round');
  assert.deepEqual(met, rows);
  assert.equal(iterator.next().done, true);
  assert.deepEqual([...words.entries({ snapshot: snap })], rows);
  await until('the files of the beginning are gone', () => {
    return partFiles(home).every((name) => !before.has(name));
  });
});

inBothHosts(
  'what is merged for good is merged once, whatever levels it stands on',
  async (home) => {
    const engine = await home.open({ durability: 'buffered' });
    const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
    const key = (i: number): string => `key${String(i).padStart(5, '0')}`;
    // Of four levels' sizes; the two alike stand in one spine batch, and might be merged alone first.
    for (const [from, count] of [
      [0, 4_000],
      [100, 400],
      [150, 400],
      [200, 20],
    ]) {
      const tx = engine.transaction();
      for (let i = from; i < from + count; i++) tx.put(words, key(i), `from ${from}`);
      await tx.commit();
      await engine.flush();
    }
    const jobs = (): number => engine.stats().spine.jobs.mergesApplied;
    const standing = (): { spineBatches: number; runs: readonly unknown[] } => {
      const found = engine.stats().collections.find(({ name }) => name === 'words');
      assert.ok(found !== undefined, 'it was made above');
      return found;
    };
    assert.equal(standing().runs.length, 4);
    assert.ok(standing().spineBatches > 1, 'not yet one');
    const before = jobs();
    await engine.compact(words);
    assert.equal(standing().runs.length, 1);
    assert.equal(jobs() - before, 1);
    assert.equal(words.getSync(key(210)), 'from 200');
    assert.equal([...words.entries()].length, 4_000);
  },
);

function numbered(i: number): string {
  return `key${String(i).padStart(6, '0')}`;
}

inBothHosts(
  'parts that a stripe of writes does not touch keep their files in a merge',
  async (home) => {
    const partBytes = 32 * KiB;
    let engine = await home.openWith({ partBytes }, { durability: 'buffered' });
    let words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
    await engine.flush();
    const rows = new Map<string, string>();
    const write = async (from: number, to: number, step: number, what: string): Promise<void> => {
      const tx = engine.transaction();
      for (let i = from; i < to; i += step) {
        const value = `${what} ${i} `.padEnd(100, '.');
        tx.put(words, numbered(i), value);
        rows.set(numbered(i), value);
      }
      await tx.commit();
      await engine.flush();
    };
    const expected = (): [string, string][] => [...rows].toSorted(([a], [b]) => (a < b ? -1 : 1));
    // Loads in the order of keys, one behind the other, then a stripe across them.
    for (let i = 0; i < 4; i++) await write(2_000 * i, 2_000 * (i + 1), 1, 'loaded');
    await quiet(engine);
    const loaded = new Set(partFiles(home));
    assert.ok(loaded.size > 20, `${loaded.size} files`);
    for (let i = 0; i < 3; i++) await write(3_000 + i, 3_600, 7, `again ${i}`);
    await engine.compact(words);
    await quiet(engine);
    // A file goes in a call to the disk of its own, when readers have left it.
    await until('no file is there that nothing names', () => {
      const { pending, count } = engine.stats().spine.files;
      return pending === 0 && partFiles(home).length === count;
    });
    const { partsMoved, bytesMoved, jobs } = engine.stats().spine;
    const kept = partFiles(home).filter((name) => loaded.has(name));
    assert.ok(kept.length > 15, `${kept.length} of ${loaded.size} files are still there`);
    assert.ok(kept.length < loaded.size, 'those under the stripe are not');
    assert.ok(
      partsMoved >= kept.length && bytesMoved > partsMoved * (partBytes / 4),
      `${partsMoved}`,
    );
    assert.equal(jobs.mergesRefused + jobs.failed, 0);
    const found = engine.stats().collections.find(({ name }) => name === 'words');
    assert.equal(found?.runs.length, 1);
    assert.equal(found?.bytesMoved, bytesMoved);
    assert.deepEqual([...words.entries()], expected());
    await engine.close();
    engine = await home.openWith({ partBytes });
    words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
    assert.equal(engine.stats().spine.files.orphans, 0);
    assert.deepEqual([...words.entries()], expected());
    assert.deepEqual((await engine.verify({ full: true })).findings, []);
    // What was moved goes when it is merged away, no sooner and no later.
    await words.deleteRange({ gte: numbered(0), lt: numbered(7_990) });
    await engine.flush();
    await engine.compact(words);
    await quiet(engine);
    assert.deepEqual([...words.entries()], expected().slice(-10));
    await until('no file of before is left but one', () => {
      return partFiles(home).filter((name) => kept.includes(name)).length <= 1;
    });
  },
);

test('a merge that needs more files than are reserved at a time gets them', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  const home = new Home('inline');
  try {
    const storage = { storage: disk, clock };
    const options: OpenOptions = { durability: 'buffered', memtableBytes: MiB, storage };
    const engine = await home.openWith({ partBytes: 1 * KiB, holder: undefined }, options);
    const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
    for (const what of ['first', 'second']) {
      const tx = engine.transaction();
      for (let i = 0; i < 60; i++) tx.put(words, numbered(i), what.padEnd(20 * KiB, '.'));
      await tx.commit();
      await engine.flush();
    }
    await engine.compact(words);
    const found = engine.stats().collections.find(({ name }) => name === 'words');
    assert.equal(found?.runs.length, 1);
    assert.ok((found?.bytes ?? 0) > idBlock * KiB, 'more than a file for each KiB is reserved');
    assert.equal(words.getSync(numbered(59)), 'second'.padEnd(20 * KiB, '.'));
  } finally {
    await home.end();
  }
});

/** Takes 100 ms for each file that it deletes, and nobody finds two answers at once. */
class SlowDisk extends SimDisk {
  ms = 1_000;
  deleted = 0;
  #isAnswering = false;

  override submit(ticket: number, fd: number, calls: readonly StorageCall[]): void {
    if (calls.some(({ call }) => call === 'unlink')) {
      this.ms += 100;
      this.deleted++;
    }
    super.submit(ticket, fd, calls);
  }

  override poll(): StorageAnswer | undefined {
    this.#isAnswering = !this.#isAnswering;
    return this.#isAnswering ? super.poll() : undefined;
  }
}

test('closing waits for few of the files that nobody wants, and the next open deletes the others', async () => {
  const disk = new SlowDisk({ answerAtOnce: true });
  const clock = { nowMs: () => disk.ms, ticksMs: () => disk.ms };
  const home = new Home('inline');
  try {
    const storage = { storage: disk, clock };
    const config = { partBytes: 1 * KiB, holder: undefined };
    const options: OpenOptions = { memtableBytes: MiB, storage };
    const engine = await home.openWith(config, options);
    const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
    for (const what of ['first', 'second']) {
      const tx = engine.transaction();
      for (let i = 0; i < 60; i++) tx.put(words, numbered(i), what.padEnd(2 * KiB, '.'));
      await tx.commit();
      await engine.flush();
    }
    await engine.compact(words);
    const { deleted, ms } = disk;
    await engine.close();
    assert.ok(disk.ms - ms < 1_000, `it took ${disk.ms - ms} ms`);
    const left = disk.list('parts').length;
    const again = await home.openWith(config, options);
    assert.equal(again.state, 'open');
    const { orphans, count } = again.stats().spine.files;
    assert.ok(orphans > 50, `${deleted} files were deleted before the close, ${orphans} after it`);
    assert.equal(count, left - orphans);
    await quiet(again);
    assert.equal(disk.list('parts').length, count);
    const reread = await again.collection('words', { key: 'utf8', value: 'utf8' });
    assert.equal([...reread.keys()].length, 60);
    assert.deepEqual((await again.verify({ full: true })).findings, []);
  } finally {
    await home.end();
  }
});

inBothHosts('what a merge of a dropped collection makes is nobody’s', async (home) => {
  const engine = await home.open({ durability: 'buffered' });
  const kept = await engine.collection('kept', { key: 'utf8', value: 'utf8' });
  await kept.put('a', 'b');
  for (let round = 0; round < 3; round++) {
    const name = `words ${round}`;
    const words = await engine.collection(name, { key: 'utf8', value: 'utf8' });
    for (let run = 0; run < 3; run++) {
      const tx = engine.transaction();
      for (let i = 0; i < 4_000; i++) tx.put(words, `key${(i * 7919) % 4_000}`, `${run} ${i}`);
      await tx.commit();
      await engine.flush();
    }
    const started = engine.stats().spine.jobs.mergesStarted;
    const compacted = engine.compact(words).catch(() => {});
    await until('a merge is under way', () => {
      return engine.stats().spine.jobs.mergesStarted > started;
    });
    await engine.drop(words);
    await compacted;
    // The name is free at once, and what comes under it has nothing of the old.
    const again = await engine.collection(name, { key: 'utf8', value: 'utf8' });
    assert.deepEqual([...again.entries()], []);
    await engine.flush();
    await quiet(engine);
  }
  await engine.compact();
  await quiet(engine);
  await until('nobody has one of the old files', () => engine.stats().spine.files.pending === 0);
  // A file goes in a call to the disk of its own.
  await until('no file is there that nothing names', () => {
    return partFiles(home).length === engine.stats().spine.files.count;
  });
  assert.deepEqual([...kept.entries()], [['a', 'b']]);
  await engine.close();
  const reopened = await home.open();
  assert.equal(reopened.stats().spine.files.orphans, 0);
});

test('of a dropped collection one merge is stopped, and no other begins', async (context) => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  const storage = { storage: disk, clock };
  const engine = await open('/sim', { threads: 0, memoryBytes: 64 * MiB, storage });
  const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
  // As many runs as make a job that nobody wishes.
  const held = context.mock.method(MergeJob.prototype, 'step', () => true);
  for (let run = 0; run <= runsPerMerge; run++) {
    await words.put('k', `${run}`);
    await engine.flush();
  }
  const { mergesStarted } = engine.stats().spine.jobs;
  assert.ok(mergesStarted > 0, 'a merge is under way');
  await engine.drop(words);
  await engine.flush();
  await until('it is gone', () => engine.stats().collections.every(({ id }) => id !== words.id));
  for (let n = 0; n < 200; n++) await turn();
  held.mock.restore();
  await quiet(engine);
  assert.equal(engine.stats().spine.jobs.mergesStarted, mergesStarted);
  await engine.close();
});

/** Bytes of the manifest for each of 20 flushes of one collection beside `others` that stay untouched. */
async function bytesPerFlush(others: number): Promise<number> {
  const home = new Home('inline');
  try {
    const engine = await home.open({ durability: 'buffered' });
    const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
    const made = [];
    for (let i = 0; i < others; i++) {
      made.push(await engine.collection(`other ${i}`, { key: 'utf8', value: 'utf8' }));
    }
    const tx = engine.transaction().put(words, 'key', 'first');
    for (const other of made) tx.put(other, 'key', 'value');
    await tx.commit();
    await engine.checkpoint();
    await quiet(engine);
    const before = engine.stats().spine.manifest;
    const flushes = 20;
    for (let i = 0; i < flushes; i++) {
      await words.put('key', `${i}`);
      await engine.flush();
    }
    await quiet(engine);
    const after = engine.stats().spine.manifest;
    assert.equal(after.rollups, before.rollups, 'edits alone are measured');
    if (made.length > 0) {
      // The next batch of one of the others abuts what it has, over all that it was not touched by.
      const [other] = made;
      await other.put('more', 'value');
      await engine.flush();
      assert.deepEqual(
        [...other.entries()],
        [
          ['key', 'value'],
          ['more', 'value'],
        ],
      );
    }
    return (after.bytes - before.bytes) / flushes;
  } finally {
    await home.end();
  }
}

test('a manifest edit costs what was touched, however many collections lie beside it', async () => {
  const alone = await bytesPerFlush(0);
  const beside = await bytesPerFlush(999);
  assert.ok(alone > 0, 'edits are counted');
  // Numbers in it (ids, offsets) are larger by some digits.
  assert.ok(beside < 1.3 * alone, `${beside} bytes beside 999 others, ${alone} alone`);
});

test('a result that is refused takes with it only what is new: parts it would have moved stay', async (context) => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  const home = new Home('inline');
  try {
    const seam = { partBytes: 32 * KiB, holder: undefined };
    const engine = await home.openWith(seam, { storage: { storage: disk, clock } });
    const words = await engine.collection('words', { key: 'u64', value: 'utf8' });
    const rows = new Map<number, string>();
    for (const [from, to, step] of [
      [0, 6_000, 1],
      [2_000, 2_400, 3],
    ]) {
      const tx = engine.transaction();
      for (let i = from; i < to; i += step) {
        tx.put(words, i, `${step} ${i}`.padEnd(60, '.'));
        rows.set(i, `${step} ${i}`.padEnd(60, '.'));
      }
      await tx.commit();
      await engine.flush();
    }
    await quiet(engine);
    const before = disk.list('parts').toSorted();
    let partsMoved = 0;
    const result = Reflect.get(MergeJob.prototype, 'result');
    const broken = context.mock.method(MergeJob.prototype, 'result', function (this: MergeJob) {
      const made = result.call(this);
      partsMoved += made.stats.partsMoved;
      return { ...made, dropped: { ...made.dropped, len: made.dropped.len - 1 } };
    });
    await engine.compact(words).catch(() => {});
    await until('what it made is set aside', () => disk.list('quarantine').length > 0);
    await until('nothing else is left of it', () => disk.list('parts').length === before.length);
    assert.ok(partsMoved > 3, `${partsMoved} parts were to be moved`);
    assert.deepEqual(disk.list('parts').toSorted(), before);
    const expected = [...rows].toSorted(([a], [b]) => a - b);
    assert.deepEqual([...words.entries()], expected);
    broken.mock.restore();
    await engine.close();
    const again = await home.openWith(seam, { storage: { storage: disk, clock } });
    const reopened = await again.collection('words', { key: 'u64', value: 'utf8' });
    await again.compact(reopened);
    assert.ok(again.stats().spine.partsMoved > 3, 'they are moved now');
    assert.deepEqual([...reopened.entries()], expected);
    assert.equal((await again.verify({ full: true })).ok, true);
  } finally {
    await home.end();
  }
});

test('a merge of what a range delete covers is stopped, and its inputs leave by an edit', async (context) => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  const storage = { storage: disk, clock };
  const engine = await open('/sim', { threads: 0, memoryBytes: 64 * MiB, storage });
  const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
  for (let run = 0; run < 3; run++) {
    const tx = engine.transaction();
    for (let i = 0; i < 500; i++) tx.put(words, numbered(i), `${run} ${i}`);
    await tx.commit();
    await engine.flush();
  }
  await quiet(engine);
  // Merges begin, and come to nothing.
  let steps = 0;
  const held = context.mock.method(MergeJob.prototype, 'step', () => {
    steps++;
    return true;
  });
  let cancelled = 0;
  const cancel = Reflect.get(MergeJob.prototype, 'cancel');
  context.mock.method(MergeJob.prototype, 'cancel', function (this: MergeJob) {
    cancelled++;
    cancel.call(this);
  });
  const before = engine.stats().spine.jobs;
  const compacted = engine.compact(words);
  await until('a merge is under way', () => steps > 0);
  await words.deleteRange({});
  await engine.flush();
  let flushes = 0;
  do {
    assert.ok(flushes++ < 50, 'the merge is stopped');
    // Time goes on, and with it what may be forgotten.
    await words.put('z', `${flushes}`);
    await engine.flush();
    for (let n = 0; n < 20; n++) await turn();
  } while (cancelled === 0);
  held.mock.restore();
  await compacted;
  await quiet(engine);
  const { moves, mergesRefused } = engine.stats().spine.jobs;
  assert.ok(moves > before.moves, 'an edit took them');
  assert.equal(mergesRefused, before.mergesRefused);
  assert.deepEqual([...words.keys()], ['z']);
  const found = engine.stats().collections.find(({ name }) => name === 'words');
  assert.ok((found?.mergedRowsIn ?? 0) < 500, 'no merge went over them');
  assert.equal(engine.stats().spine.jobs.failed, 0, 'that is no failure');
  await engine.close();
});

test('of two collections with as much to merge the one that is read goes first', async (context) => {
  const disk = new SimDisk({ answerAtOnce: true });
  let ms = 1_000;
  const clock = { nowMs: () => ms, ticksMs: () => ms };
  const engine = await open('/sim', {
    threads: 0,
    memoryBytes: 64 * MiB,
    mergeThreads: 1,
    storage: { storage: disk, clock },
  });
  const names = ['cold', 'warm'] as const;
  const [cold, warm] = await Promise.all(
    names.map((name) => engine.collection(name, { key: 'u64', value: 'utf8' })),
  );
  assert.ok(cold.id < warm.id, 'all else being equal the first is chosen');
  const merged: number[] = [];
  const result = Reflect.get(MergeJob.prototype, 'result');
  context.mock.method(MergeJob.prototype, 'result', function (this: MergeJob) {
    const made = result.call(this);
    if (made.collection !== 0) merged.push(made.collection);
    return made;
  });
  const figures = (name: string): CollectionStats => {
    const found = engine.stats().collections.find((one) => one.name === name);
    assert.ok(found !== undefined, 'it was made above');
    return found;
  };
  // By one flush both have as many runs in one spine batch as make a job.
  for (let run = 0; run <= runsPerMerge; run++) {
    const tx = engine.transaction();
    for (let i = 0; i < 2_000; i++) tx.put(cold, i, `${run} ${i}`).put(warm, i, `${run} ${i}`);
    await tx.commit();
    // Keys that the row cache knows nothing of: only the parts tell.
    for (let i = 0; i < 3_000; i++) warm.getSync(5_000 + run * 3_000 + i);
    await engine.flush();
    ms += 1_000;
    await turn();
  }
  await until('both are merged', () => merged.length === 2);
  assert.deepEqual(merged, [warm.id, cold.id]);
  await until('it is shown', () => figures('warm').readsPerSecond > 0);
  assert.equal(figures('cold').readsPerSecond, 0);
  await engine.close();
});

test('what a merge made that its inputs do not explain is set aside, and its inputs stay as they are', async (context) => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  const storage = { storage: disk, clock };
  const engine = await open('/sim', { threads: 0, memoryBytes: 64 * MiB, storage });
  const words = await engine.collection('words', { key: 'u64', value: 'utf8' });
  for (let run = 0; run < 2; run++) {
    const tx = engine.transaction();
    for (let i = 0; i < 100; i++) tx.put(words, i, `${run} ${i}`);
    await tx.commit();
    await engine.flush();
  }
  // A job that lost a row, and does not know it.
  const result = Reflect.get(MergeJob.prototype, 'result');
  context.mock.method(MergeJob.prototype, 'result', function (this: MergeJob) {
    const made = result.call(this);
    return { ...made, dropped: { ...made.dropped, len: made.dropped.len - 1 } };
  });
  await engine.compact(words).catch(() => {});
  await until('its file is set aside', () => disk.list('quarantine').length > 0);
  await until('it is counted', () => engine.stats().keeper['mergeChecksFailed'] === 1);
  assert.equal(engine.stats().spine.jobs.mergesRefused, 1);
  assert.match(disk.list('quarantine')[0], /^\d+\.part\.refused$/);
  assert.deepEqual(
    [...words.entries()],
    Array.from({ length: 100 }, (_, i) => [i, `1 ${i}`]),
  );
  await engine.close();
  assert.equal(disk.list('quarantine').length, 1, 'it is still there');
});
