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
import { MiB } from '../../core/base/limits.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import { SimDisk } from '../sim/disk.ts';
import { Home, inBothHosts, quiet, until } from './world.ts';

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
