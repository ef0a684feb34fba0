/**
 * Goal: the changes of a row, the bytes of a collection and the times of day say what a list of everything
 * that was done says, as far as history goes; below it they say that it is lost. The clock is the test's.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Collection, Engine, Multiset, OpenOptions, Version } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { MiB } from '../../core/base/limits.ts';
import { RECORD_HEADER_BYTES } from '../../core/log/record.ts';
import { segmentPath } from '../../core/storage/names.ts';
import { SimDisk } from '../sim/disk.ts';
import { coded, inBothHosts, misuse, quiet } from './world.ts';

type Words = Collection<string, string>;
type Change = { offset: number; key: string; value: string | undefined };

function versionsOf(changes: readonly Change[], key: string): Version<string>[] {
  return changes
    .filter((change) => change.key === key)
    .map(({ offset, value }) => ({ offset, value }));
}

async function write(words: Words, random: Prng, count: number, all: Change[]): Promise<void> {
  for (let i = 0; i < count; i++) {
    const key = random.pick(['a', 'ab', 'b', 'hot', 'hot', 'hot']);
    const value = random.chance(0.25) ? undefined : `${random.u32()}`;
    const { offset } = await (value === undefined ? words.delete(key) : words.put(key, value));
    all.push({ offset, key, value });
  }
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

// ---------------------------------------------------------------- versions

inBothHosts(
  'versions are the changes of a row, both ways, between offsets, with limits',
  async (home) => {
    const random = new Prng(61);
    const engine = await home.open();
    const words = await engine.collection('words', { history: Infinity });
    // Something before, so that no change has offset 0.
    await words.put('first', '');
    const all: Change[] = [];
    for (let round = 0; round < 4; round++) {
      await write(words, random, 60, all);
      for (const key of ['a', 'ab', 'hot', 'nowhere']) {
        const expected = versionsOf(all, key);
        assert.deepEqual([...words.versions(key)], expected);
        assert.deepEqual([...words.versions(key, { reverse: true })], expected.toReversed());
        assert.deepEqual(await collect(words.versions(key)), expected);
        for (let i = 0; i < 8; i++) {
          const [from, to] = [random.below(engine.upper), random.below(engine.upper)];
          const within = expected.filter(({ offset }) => offset >= from && offset <= to);
          assert.deepEqual([...words.versions(key, { from, to })], within);
          const limit = random.below(6);
          assert.deepEqual(
            [...words.versions(key, { from, to, reverse: true, limit })],
            within.toReversed().slice(0, limit),
          );
        }
      }
      await engine.flush();
      if (round === 2) await engine.compact();
    }
    assert.equal(engine.stats().holds.count, 0);
    for (const version of words.versions('hot')) {
      assert.equal(version.offset, versionsOf(all, 'hot')[0]?.offset);
      assert.equal(engine.stats().holds.count, 2);
      break;
    }
    assert.equal(engine.stats().holds.count, 0);
  },
);

inBothHosts('versions end where history does; what stood there is the first', async (home) => {
  const random = new Prng(62);
  const engine = await home.open();
  const words = await engine.collection('words', { history: 20 });
  const all: Change[] = [];
  await words.put('still', 'here');
  const still = engine.upper - 1;
  for (let round = 0; round < 5; round++) {
    await write(words, random, 40, all);
    await engine.compact();
    const { since } = words;
    for (const key of ['a', 'b', 'hot']) {
      const known = versionsOf(all, key);
      const standing = known.findLast(({ offset }) => offset <= since);
      const after = known.filter(({ offset }) => offset > since);
      const expected = standing?.value === undefined ? after : [standing, ...after];
      assert.deepEqual([...words.versions(key)], expected, `${key} since ${since}`);
      assert.deepEqual([...words.versions(key, { from: since + 1 })], after);
    }
    assert.deepEqual([...words.versions('still')], [{ offset: still, value: 'here' }]);
    if (since > 0) {
      const lost = coded('TIDEMARK_HISTORY_LOST');
      assert.throws(() => words.versions('hot', { from: since - 1 }), lost);
    }
    assert.throws(() => words.versions('hot', { to: engine.upper }), coded('TIDEMARK_NOT_YET'));
    assert.equal(engine.stats().holds.count, 0);
  }
  // What is being walked stays.
  const walk = words.versions('hot');
  const expected = [...words.versions('hot')];
  assert.deepEqual(walk.next().value, expected[0]);
  await write(words, random, 60, all);
  await engine.compact();
  await engine.compact();
  assert.deepEqual([...walk], expected.slice(1));
});

inBothHosts('versions and entries that make no sense are misuse', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const edges = await engine.collection('edges', { kind: 'multiset' });
  const cases: [unknown, RegExp][] = [
    [{ since: 1 }, /unknown version option since/],
    [{ from: -1 }, /from is an offset/],
    [{ to: 0.5 }, /to is an offset/],
    [{ from: new Date(NaN) }, /invalid Date/],
    [{ reverse: 1 }, /reverse/],
    [{ limit: -1 }, /limit/],
    [null, /object/],
  ];
  for (const [given, message] of cases) {
    assert.throws(() => words.versions('a', given as { from: number }), misuse(message));
  }
  const asKeyed = edges as unknown as Words;
  assert.throws(() => asKeyed.versions('a'), misuse(/multiset/));
  assert.throws(() => asKeyed.getEntrySync('a'), misuse(/multiset/));
  assert.deepEqual([...words.versions('a')], []);
  const { offset } = await words.put('a', 'x');
  await engine.flush();
  assert.deepEqual(await words.getEntry('a'), { value: 'x', offset });
  assert.deepEqual(words.getEntrySync('a', { asOf: offset }), { value: 'x', offset });
  assert.equal(await words.getEntry('b'), undefined);
  assert.equal(engine.stats().holds.count, 0);
});

// ---------------------------------------------------------------- meta

inBothHosts('meta is transactional, and as of any time that the collection has', async (home) => {
  let engine = await home.open();
  let words: Words = await engine.collection('words', { history: Infinity });
  const edges: Multiset<string, string> = await engine.collection('edges', { kind: 'multiset' });
  assert.equal(words.meta, undefined);
  const first = await words.setMeta(Buffer.from('one'));
  const tx = engine.transaction().put(words, 'a', '2').setMeta(words, Buffer.from('two'));
  const second = await tx.setMeta(edges, new Uint8Array([7])).commit();
  const check = (): void => {
    assert.deepEqual(words.meta, Buffer.from('two'));
    assert.deepEqual(words.getMetaSync({ asOf: second.offset }), Buffer.from('two'));
    assert.deepEqual(words.getMetaSync({ asOf: first.offset }), Buffer.from('one'));
    assert.equal(words.getMetaSync({ asOf: first.offset - 1 }), undefined);
  };
  check();
  assert.deepEqual(edges.meta, Buffer.from([7]));
  const refused = coded('TIDEMARK_CONFLICT');
  const expect = [{ collection: words, key: 'a', offset: null }];
  await assert.rejects(words.setMeta(Buffer.from('three'), { expect }), refused);
  const large = coded('TIDEMARK_TOO_LARGE', { what: 'meta', limit: 65_536 });
  await assert.rejects(words.setMeta(Buffer.alloc(65_537)), large);
  assert.throws(() => engine.transaction().setMeta(words, Buffer.alloc(65_537)), large);
  await assert.rejects(words.setMeta('text' as unknown as Buffer), misuse(/meta is a Buffer/));
  for (let i = 0; i < 3; i++) {
    await words.put('b', `${i}`);
    await engine.compact();
    check();
  }
  await engine.close();
  engine = await home.open();
  words = await engine.collection('words');
  check();
  await words.setMeta(Buffer.alloc(65_536, 1));
  assert.equal(words.meta?.length, 65_536);
  await engine.drop(words);
  assert.throws(() => words.meta, coded('TIDEMARK_NOT_FOUND'));
  const again = await engine.collection('words', {});
  assert.equal(again.meta, undefined);
});

// ---------------------------------------------------------------- time of day

/** An engine whose time of day is moved by hand; its ticks go fast, so that what waits for one does not wait long. */
class Timed {
  nowMs = 1_700_000_000_000;
  disk: SimDisk = new SimDisk({ answerAtOnce: true });
  #engine: Engine | undefined;

  async open(more: OpenOptions = {}): Promise<Engine> {
    const clock = { nowMs: () => this.nowMs, ticksMs: () => performance.now() * 1_000 };
    const storage = { storage: this.disk, clock };
    this.#engine = await open('/sim', { threads: 0, memoryBytes: 64 * MiB, storage, ...more });
    return this.#engine;
  }

  /** The process dies; what it leaves is opened. */
  async crash(more: OpenOptions = {}): Promise<Engine> {
    const left = this.disk.processCrash();
    await this.end();
    this.disk = left;
    return this.open(more);
  }

  async end(): Promise<void> {
    await this.#engine?.close();
  }
}

test('a time behind the last commit is found where the log ends with a record of its own', async () => {
  const timed = new Timed();
  let engine = await timed.open({});
  try {
    const words = await engine.collection('words', { history: Infinity });
    // Far enough from each other that the log is not read from its beginning.
    for (let i = 0; i < 3; i++) await words.put('key', 'v'.repeat(150_000));
    const upper = engine.upper;
    await engine.close();
    engine = await timed.open({});
    assert.equal(engine.offsetAt(new Date(timed.nowMs + 1_000)), upper - 1);
    assert.equal(engine.offsetAt(engine.timeOf(upper - 1)), upper - 1);
  } finally {
    await engine.close();
  }
});

test('times and offsets are those of a list, over segments, flushes and reopening', async () => {
  const timed = new Timed();
  const random = new Prng(63);
  const times: number[] = [];
  let engine = await timed.open({ segmentBytes: 64 * 1024 });
  try {
    for (let life = 0; life < 3; life++) {
      const words = await engine.collection('words', { history: Infinity });
      const note = (): void => {
        while (times.length < engine.upper) times.push(Math.max(timed.nowMs, times.at(-1) ?? 0));
      };
      note();
      for (let i = 0; i < 150; i++) {
        // Standing, going, jumping, and set back.
        timed.nowMs += random.pick([0, 0, 1, 10, 1_000, 3_600_000, -500]);
        const commits = Array.from({ length: random.between(1, 3) }, () =>
          words.put(`${random.below(20)}`, 'v'.repeat(random.below(2_000))),
        );
        await Promise.all(commits);
        note();
        if (random.chance(0.02)) await engine.flush();
      }
      for (let i = 0; i < 120; i++) {
        const offset = random.below(times.length);
        assert.equal(engine.timeOf(offset).getTime(), times[offset]);
        const atMs = times[offset] + random.pick([-1, 0, 1, 700]);
        const expected = times.findLastIndex((ms) => ms <= atMs);
        const date = new Date(atMs);
        if (expected < 0) {
          assert.throws(() => engine.offsetAt(date), coded('TIDEMARK_HISTORY_LOST', { atMs }));
          continue;
        }
        assert.equal(engine.offsetAt(date), expected);
        if (i % 6 !== 0) continue;
        const key = `${random.below(20)}`;
        const value = words.getSync(key, { asOf: expected });
        assert.equal(words.getSync(key, { asOf: date }), value);
        assert.equal(await words.get(key, { asOf: date }), value);
        const rows = [...words.entries({ asOf: expected })];
        assert.deepEqual([...words.entries({ asOf: date })], rows);
        const snap = engine.snapshot({ asOf: date });
        assert.equal(snap.offset, expected);
        snap.close();
        const versions = [...words.versions(key, { to: expected })];
        assert.deepEqual([...words.versions(key, { to: date })], versions);
      }
      assert.throws(() => engine.timeOf(engine.upper), coded('TIDEMARK_NOT_YET'));
      assert.equal(engine.offsetAt(new Date(timed.nowMs + 1e9)), engine.upper - 1);
      const { segmentsCompressed } = engine.stats().log;
      assert.ok(segmentsCompressed > 0, 'they are looked for in compressed segments, too');
      await engine.close();
      engine = await timed.open({ segmentBytes: 64 * 1024 });
    }
    for (const given of [1, '2020', undefined, null, new Date(NaN)]) {
      assert.throws(() => engine.offsetAt(given as Date), misuse(/Date/));
    }
    assert.throws(() => engine.timeOf(-1), misuse(/offset/));
    assert.throws(() => engine.timeOf(new Date() as unknown as number), misuse(/offset/));
  } finally {
    await timed.end();
  }
});

test('what the log no longer has is lost, by time as by offset', async () => {
  const timed = new Timed();
  const engine = await timed.open({ segmentBytes: 64 * 1024 });
  try {
    const words = await engine.collection('words', {});
    const start = timed.nowMs;
    for (let i = 0; i < 300; i++) {
      timed.nowMs += 1_000;
      await words.put(`${i % 5}`, 'v'.repeat(2_000));
    }
    for (let i = 0; i < 3; i++) {
      await engine.checkpoint();
      await quiet(engine);
    }
    const { firstOffset } = engine.stats().log.segments[0];
    assert.ok(firstOffset > 0, 'segments went');
    assert.throws(() => engine.timeOf(firstOffset - 1), coded('TIDEMARK_HISTORY_LOST'));
    assert.throws(() => engine.offsetAt(new Date(start)), coded('TIDEMARK_HISTORY_LOST'));
    const first = engine.timeOf(firstOffset);
    assert.equal(engine.offsetAt(first), firstOffset);
    // The log's first segment says when the one before it was committed: history of one offset reaches it.
    assert.equal(engine.offsetAt(new Date(first.getTime() - 1)), firstOffset - 1);
    assert.equal(engine.offsetAt(new Date(first.getTime() - 1_000)), firstOffset - 1);
    const before = new Date(first.getTime() - 1_001);
    assert.throws(() => engine.offsetAt(before), coded('TIDEMARK_HISTORY_LOST'));
  } finally {
    await timed.end();
  }
});

test('of times behind a damaged place of the log damage is told, never an offset before it', async () => {
  for (const where of ['header', 'payload'] as const) {
    const timed = new Timed();
    const engine = await timed.open();
    try {
      const words = await engine.collection('words', { history: Infinity });
      const dates: Date[] = [];
      const first = engine.upper;
      for (let i = 0; i < 100; i++) {
        timed.nowMs += 1_000;
        dates.push(new Date(timed.nowMs));
        await words.put(`${i}`, `value ${i}.${'v'.repeat(2_000)}`);
      }
      const bytes = timed.disk.bytesOf(segmentPath(1))!;
      // Before it stand key, operation, transaction, and the record's header, of which this is the offset.
      const before = 2 + 16 + 8 + RECORD_HEADER_BYTES - 16;
      const at = Buffer.from(bytes).indexOf('value 50.') - (where === 'header' ? before : 0);
      const fd = timed.disk.open(segmentPath(1), 'write');
      timed.disk.write(fd, Uint8Array.of(bytes[at] ^ 1), 0, 1, at);
      timed.disk.close(fd);
      let damaged = 0;
      for (const [i, date] of dates.entries()) {
        try {
          assert.equal(engine.offsetAt(date), first + i, where);
          assert.deepEqual(engine.timeOf(first + i), date);
        } catch (error) {
          coded('TIDEMARK_CORRUPT', { finding: 'CHECKSUM', offset: first + 50, seq: 1 })(error);
          // What comes next may be of the same time.
          assert.ok(i >= 49, `${i}`);
          damaged++;
        }
      }
      assert.ok(damaged > 0, where);
    } finally {
      await timed.end();
    }
  }
});

test('the newest offset has its time where the log holds no commit any more', async () => {
  const timed = new Timed();
  let engine = await timed.open({ segmentBytes: 64 * 1024 });
  try {
    const words = await engine.collection('words', {});
    await words.put('key', 'value');
    // Proven durable: nothing of it is written again, and the next log begins empty.
    await engine.flush();
    await quiet(engine);
    engine = await timed.crash({ segmentBytes: 64 * 1024 });
    for (let i = 0; i < 3; i++) await engine.checkpoint();
    await quiet(engine);
    const { upper } = engine;
    assert.equal(engine.stats().log.segments[0].firstOffset, upper, 'nothing is in the log');
    const now = new Date(timed.nowMs);
    assert.equal(engine.offsetAt(now), upper - 1);
    const again = await engine.collection('words');
    assert.equal(again.getSync('key', { asOf: now }), 'value');
    const before = new Date(timed.nowMs - 1);
    assert.throws(() => engine.offsetAt(before), coded('TIDEMARK_HISTORY_LOST'));
  } finally {
    await timed.end();
  }
});

test('history by time keeps what was there at that time, and a forgotten option never shortens it', async () => {
  const timed = new Timed();
  let engine = await timed.open();
  try {
    const words = await engine.collection('words', { history: { ms: 60_000 } });
    assert.deepEqual(engine.collections()[0]?.history, { offsets: 0, ms: 60_000 });
    const values: { atMs: number; offset: number; value: string }[] = [];
    for (let i = 0; i < 300; i++) {
      timed.nowMs += 1_000;
      const { offset } = await words.put('a', `${i}`);
      values.push({ atMs: timed.nowMs, offset, value: `${i}` });
      if (i % 10 === 9) await engine.compact();
    }
    await quiet(engine);
    for (const { atMs, offset, value } of values) {
      if (atMs >= timed.nowMs - 60_000) {
        assert.equal(words.getSync('a', { asOf: offset }), value);
        assert.equal(words.getSync('a', { asOf: new Date(atMs) }), value);
      }
    }
    assert.ok(words.since > values[0].offset, 'the rest goes');
    assert.ok(words.since < values[240].offset, 'a minute stays');
    await engine.close();
    engine = await timed.open();
    const again = await engine.collection('words', { key: 'utf8' });
    assert.deepEqual(engine.collections()[0]?.history, { offsets: 0, ms: 60_000 });
    assert.equal(again.getSync('a', { asOf: values[250].offset }), '250');
    await again.setHistory({ offsets: 5, ms: 1_000 });
    for (let i = 0; i < 4; i++) {
      timed.nowMs += 100_000;
      await again.put('a', 'late');
      await engine.compact();
    }
    await quiet(engine);
    const { since } = again;
    assert.ok(since > values[250].offset, `${since}: a shorter one lets go`);
    assert.ok(since <= engine.upper - 1 - 5, 'whichever keeps more');
    for (const history of [{ ms: -1 }, { ms: 0.5 }, { ms: '1' }, { offsets: -1, ms: 1 }, {}]) {
      await assert.rejects(again.setHistory(history as { ms: number }), misuse(/history/));
    }
  } finally {
    await timed.end();
  }
});
