/**
 * What `engine.stats()` says: every key is in docs/metrics.md and the other way round, and the figures
 * are those of what was done.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  HISTOGRAM_BUCKETS,
  HISTOGRAM_WORDS,
  bucketOf,
  summarize,
} from '../../core/base/histogram.ts';
import { pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { Arena } from '../../core/shared/arena.ts';
import { Counters, readCounter } from '../../core/shared/counters.ts';
import { open } from '../../actors/index.ts';
import type { Stall } from '../../actors/index.ts';
import { SimDisk } from '../sim/disk.ts';
import { coded, inBothHosts, inHost, quiet, until } from './world.ts';

const PAGE: string = readFileSync(join(import.meta.dirname, '../../docs/metrics.md'), 'utf8');

/** Keys in the first column of the tables. */
function documented(): string[] {
  return Array.from(PAGE.matchAll(/^\| `([^`]+)` +\|/gm), ([, key]) => key);
}

/** Paths of everything in a plain object; an array's elements are `[]`, a histogram is one thing. */
function keysOf(value: unknown, path = ''): string[] {
  if (Array.isArray(value)) return value.flatMap((item) => keysOf(item, `${path}[]`));
  if (typeof value !== 'object' || value === null) return [path];
  if ('buckets' in value) return [path];
  return Object.entries(value).flatMap(([key, inner]) =>
    keysOf(inner, path === '' ? key : `${path}.${key}`),
  );
}

inHost(
  'inline',
  'every key of stats() is on the page of metrics, and nothing else is',
  async (home) => {
    const engine = await home.open();
    const rows = await engine.collection('rows', {});
    await rows.put('a', '1');
    await engine.flush();
    using snap = engine.snapshot();
    // What is not there now: a stall as it is told (stalls.test.ts).
    const stall: Stall = { actor: '', call: '', cause: 'log', since: 0, ms: 0, over: false };
    const keys = new Set([...keysOf(engine.stats()), ...keysOf([stall], 'stalls.current')]);
    assert.equal(snap.offset, engine.upper - 1);
    assert.deepEqual([...keys].toSorted(), [...new Set(documented())].toSorted());
    assert.equal(documented().length, keys.size, 'a key is explained once');
  },
);

inHost('inline', 'stats are plain data: a copy through JSON is the same', async (home) => {
  const engine = await home.open();
  const stats = engine.stats();
  assert.deepEqual(JSON.parse(JSON.stringify(stats)), stats);
});

inBothHosts('records are counted by why they closed', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { value: 'buffer' });
  const before = engine.stats().log.records;
  await rows.put('turn', Buffer.alloc(10));
  const large = Buffer.alloc(pageBytes + 1);
  await rows.put('large', large);
  const { offset } = await rows.put('x', Buffer.alloc(1));
  await rows.put('x', Buffer.alloc(2), { expect: [{ collection: rows, key: 'x', offset }] });
  // Three of these do not fit a page.
  const third = Buffer.alloc(pageBytes / 2.5);
  await Promise.all([rows.put('p', third), rows.put('q', third), rows.put('r', third)]);
  const { records } = engine.stats().log;
  assert.equal(records.large - before.large, 1);
  assert.equal(records.alone - before.alone, 1);
  assert.equal(records.page - before.page, 1);
  assert.equal(records.turn - before.turn, 3);
  const sent = Object.values(records).reduce((sum, n) => sum + n, 0);
  await until('published', () => engine.stats().sequencer['records'] === sent);
  const { sequencer, durability } = engine.stats();
  assert.equal(sequencer['records'], sent);
  await until('taken', () => engine.stats().durability['records'] === sent);
  assert.ok(engine.stats().durability['bytesInPlace'] > large.length, 'the large one lay in pages');
  assert.ok(durability['bytesStaged'] > 0, 'the small ones were copied');
});

inBothHosts('writes and syncs of the log are in its histograms', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', {});
  for (let i = 0; i < 20; i++) await rows.put(`${i}`, 'value');
  let { log } = engine.stats();
  // Read while they are published, figures may be of two moments.
  await until('published', () => {
    const { durability } = engine.stats();
    ({ log } = engine.stats());
    const isWhole = log.batchBytes.sum === durability['bytesWritten'];
    return log.batchBytes.count >= 20 && log.syncUs.count >= 20 && isWhole;
  });
  assert.ok(log.writeUs.count >= log.batchBytes.count, 'every batch was written');
  for (const { count, p50, p99, max, buckets } of [log.syncUs, log.writeUs, log.batchBytes]) {
    assert.equal(
      buckets.reduce((sum, n) => sum + n, 0),
      count,
    );
    assert.ok(p50 <= p99 && p99 <= max, `${p50} ${p99} ${max}`);
  }
  await until('all durable', () => engine.stats().log.unsynced.transactions === 0);
  assert.ok(engine.stats().log.roomBytes > 0, 'a new store has room prepared');
});

inBothHosts('refusals are counted by code', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { value: 'buffer' });
  await rows.put('a', Buffer.alloc(1));
  await assert.rejects(
    rows.put('a', Buffer.alloc(2), { expect: [{ collection: rows, key: 'a', offset: null }] }),
    coded('TIDEMARK_CONFLICT'),
  );
  const large = engine.transaction();
  for (let i = 0; i < 3; i++) large.put(rows, `${i}`, Buffer.alloc(20 * 2 ** 20));
  await assert.rejects(large.commit(), coded('TIDEMARK_TOO_LARGE'));
  const waiting: Promise<unknown>[] = [];
  let isBusy = false;
  const value = Buffer.alloc(64 * 1024);
  while (!isBusy && waiting.length < 4_000) {
    waiting.push(
      rows.put('b', value).catch((error: unknown) => {
        isBusy = coded('TIDEMARK_BUSY')(error);
      }),
    );
    if (engine.stats().log.refusals.TIDEMARK_BUSY > 0) break;
  }
  await Promise.all(waiting);
  assert.ok(isBusy, 'too many waited');
  const { refusals } = engine.stats().log;
  assert.equal(refusals.TIDEMARK_BUSY, 1);
  assert.equal(refusals.TIDEMARK_TOO_LARGE, 1);
  assert.equal(refusals.TIDEMARK_NO_SPACE, 0);
});

inBothHosts('what opening found is told', async (home) => {
  const first = await home.open();
  assert.equal(first.stats().log.recovery.verdict, 'created');
  const rows = await first.collection('rows', {});
  await rows.put('a', '1');
  await first.close();
  const second = await home.open();
  await until('published', () => {
    const { verdict, bytes, records } = second.stats().log.recovery;
    return verdict !== 'created' && bytes > 0 && records > 0;
  });
  const { recovery } = second.stats().log;
  assert.equal(recovery.verdict, 'clean');
  assert.equal(recovery.transactions, 2);
  assert.equal(recovery.suspects, 0);
  assert.equal(recovery.tornBytes, 0);
});

inBothHosts('a collection tells what was flushed and merged, and what it costs', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', {});
  for (let flush = 0; flush < 3; flush++) {
    for (let i = 0; i < 50; i++) void rows.put(`${i}`, `${flush}`.padEnd(100, '.'));
    await engine.flush();
  }
  await engine.compact(rows);
  await quiet(engine);
  const { spine, collections, flushedUpper } = engine.stats();
  const found = collections.find(({ name }) => name === 'rows')!;
  assert.equal(found.flushes, 3);
  assert.equal(found.flushedRows, 150);
  assert.equal(found.runs.length, 1);
  assert.equal(found.spineBatches, 1);
  assert.equal(found.compact, 1);
  assert.equal(found.nonCompact, 0);
  assert.equal(found.debtBytes, 0);
  assert.equal(found.rows, found.runs[0].rows);
  assert.equal(found.upper, flushedUpper);
  assert.ok(found.merges >= 1, `${found.merges} merges`);
  assert.ok(found.mergedRowsIn > found.mergedRowsOut, 'old versions went');
  const written = found.flushedBytes + found.mergedBytesOut;
  assert.equal(found.writeAmplification, written / found.flushedBytes);
  assert.equal(spine.jobs.mergesApplied, spine.jobs.mergesStarted);
  assert.equal(spine.jobs.failed, 0);
  assert.ok(spine.manifest.us.count > 0, 'edits were timed');
  assert.equal(
    spine.runs,
    collections.reduce((sum, { runs }) => sum + runs.length, 0),
  );
  await until('merged-away files are gone', () => engine.stats().spine.files.pending === 0);
  const after = engine.stats().spine;
  assert.equal(after.space, after.files.bytes / after.bytes);
});

inBothHosts('what was asked for is in the figures when it is answered', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', {});
  for (let round = 1; round <= 40; round++) {
    await rows.put('a', `${round}`);
    await engine.flush();
    const { flushedUpper, collections } = engine.stats();
    assert.equal(flushedUpper, engine.upper);
    assert.equal(collections.find(({ id }) => id === rows.id)?.flushes, round);
    if (round % 10 !== 0) continue;
    const { checkpoints, merges } = engine.stats().keeper;
    await engine.checkpoint();
    assert.ok(engine.stats().keeper['checkpoints'] > checkpoints, 'a checkpoint more');
    await engine.compact(rows);
    assert.ok(engine.stats().keeper['merges'] > merges, 'a merge more');
  }
});

test('an inline engine that is never without work publishes its figures all the same', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  let ticks = 0;
  // A slice of its time is over as soon as it has begun.
  const clock = { nowMs: () => Date.now(), ticksMs: () => (ticks += 1) };
  const storage = { storage: disk, clock };
  const engine = await open('/sim', { threads: 0, memoryBytes: 64 * 2 ** 20, storage });
  const rows = await engine.collection('rows', {});
  for (let n = 1; n <= 100; n++) {
    await rows.put('a', `${n}`);
    const { transactions } = engine.stats().sequencer;
    assert.ok(transactions >= engine.upper - 2, `${transactions} of ${engine.upper}`);
  }
  await engine.close();
});

inBothHosts('a dropped collection is not told of any more', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', {});
  await rows.put('a', '1');
  await engine.flush();
  await engine.drop('rows');
  await engine.flush();
  await until('the spine goes', () => engine.stats().collections.every(({ id }) => id !== rows.id));
  const other = await engine.collection('other', {});
  await other.put('a', '1');
  await engine.flush();
  const found = engine.stats().collections.find(({ name }) => name === 'other')!;
  assert.equal(found.flushes, 1);
});

inBothHosts('holds are listed with owner, age and what they pin', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', {});
  await rows.put('a', '1');
  using snap = engine.snapshot();
  assert.equal(engine.stats().holds.list[0].bytesPinned, 0);
  await rows.put('a', '2');
  await engine.flush();
  const iterator = rows.entries()[Symbol.iterator]();
  iterator.next();
  const { list } = engine.stats().holds;
  const [first] = list;
  assert.equal(first.owner, 'snapshot');
  assert.equal(first.offset, snap.offset);
  assert.ok(first.ageMs >= 0 && first.ageMs < 60_000, `${first.ageMs} ms old`);
  assert.ok(first.bytesPinned > 0, 'the newer row is in a part');
  iterator.return?.();
  snap.close();
  assert.deepEqual(engine.stats().holds.list, []);
});

test('a value is in the bucket that its powers of two say', () => {
  assert.equal(bucketOf(0), 0);
  assert.equal(bucketOf(0.9), 0);
  for (let k = 1; k < HISTOGRAM_BUCKETS - 1; k++) {
    assert.equal(bucketOf(2 ** (k - 1)), k);
    assert.equal(bucketOf(2 ** k - 1), k);
  }
  for (const large of [2 ** 30, 2 ** 31, 2 ** 32, 2 ** 40]) {
    assert.equal(bucketOf(large), HISTOGRAM_BUCKETS - 1);
  }
});

test('quantiles of a histogram are within a factor of two of those of its values', () => {
  const arena = Arena.create(pageBytes);
  const at = 1_024;
  const first = 3;
  const random = new Prng(5);
  for (let round = 0; round < 50; round++) {
    const counters = new Counters(arena, at, first + HISTOGRAM_WORDS);
    const values = Array.from({ length: 1 + random.below(200) }, () =>
      random.below(2 ** (1 + random.below(22))),
    );
    for (const value of values) counters.observe(first, value);
    counters.publish();
    const words = Array.from({ length: HISTOGRAM_WORDS }, (_, i) => counters.values[first + i]);
    assert.equal(readCounter(arena, at, first + bucketOf(values[0])), words[bucketOf(values[0])]);
    const summary = summarize(words);
    values.sort((a, b) => a - b);
    assert.equal(summary.count, values.length);
    assert.equal(summary.max, values.at(-1));
    assert.equal(
      summary.sum,
      values.reduce((sum, value) => sum + value, 0),
    );
    for (const [q, found] of [
      [0.5, summary.p50],
      [0.99, summary.p99],
    ] as const) {
      const exact = values[Math.ceil(q * values.length) - 1];
      assert.ok(found <= exact * 2 && exact <= found * 2, `${q}: ${found} for ${exact}`);
    }
  }
  const empty = summarize(Array.from({ length: HISTOGRAM_WORDS }, () => 0));
  assert.deepEqual([empty.count, empty.p50, empty.p99, empty.max], [0, 0, 0, 0]);
});
