/**
 * Goal: a multiset says at every offset what its updates up to there add up to, whether they lie in
 * memory, in one run or in many, merged or not, past or not; and what is not for its kind is misuse.
 * Method: seeded random updates against a list of all of them.
 */
import assert from 'node:assert/strict';
import type { Collection, Engine, Multiset, RangeOptions } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { compareKeys, randomBounds } from './model.ts';
import type { Bounds } from './model.ts';
import { coded, inBothHosts, misuse, quiet, until } from './world.ts';

type Edges = Multiset<string, string>;
type Update = { offset: number; key: string; value: string; diff: number };
type Triple = [key: string, value: string, diff: number];

const MAX = Number.MAX_SAFE_INTEGER;

/** Every update, and what they add up to. */
class Sums {
  readonly updates: Update[] = [];

  rows(T: number, bounds: Bounds = {}): Triple[] {
    const sums = new Map<string, Triple>();
    for (const { offset, key, value, diff } of this.updates) {
      if (offset > T) break;
      const place = JSON.stringify([key, value]);
      sums.set(place, [key, value, diff + (sums.get(place)?.[2] ?? 0)]);
    }
    const { gte, gt, lte, lt, prefix, reverse, limit } = bounds;
    const rows = [...sums.values()]
      .filter(
        ([key, , diff]) =>
          diff !== 0 &&
          (gte === undefined || compareKeys(key, gte) >= 0) &&
          (gt === undefined || compareKeys(key, gt) > 0) &&
          (lte === undefined || compareKeys(key, lte) <= 0) &&
          (lt === undefined || compareKeys(key, lt) < 0) &&
          (prefix === undefined || key.startsWith(prefix)),
      )
      .toSorted(([a, x], [b, y]) => compareKeys(a, b) || compareKeys(x, y));
    return (reverse === true ? rows.toReversed() : rows).slice(0, limit);
  }

  at(T: number, key: string): [string, number][] {
    return this.rows(T)
      .filter(([k]) => k === key)
      .map(([, value, diff]) => [value, diff]);
  }
}

/** Transactions of several updates each. */
async function write(
  engine: Engine,
  edges: Edges,
  sums: Sums,
  random: Prng,
  key: () => string,
  count: number,
): Promise<void> {
  const commits = [];
  for (let i = 0; i < count; i++) {
    const tx = engine.transaction();
    const updates = Array.from({ length: random.between(1, 4) }, () => {
      const value = random.pick(['', 'x', 'xy', 'y', 'ü', `${random.below(50)}`, 'z'.repeat(500)]);
      const diff = random.pick([1, 1, 1, -1, -1, 2, -3, 1e12]);
      return { key: key(), value, diff };
    });
    for (const { key: k, value, diff } of updates) tx.update(edges, k, value, diff);
    commits.push({ updates, committed: tx.commit() });
  }
  for (const { updates, committed } of commits) {
    const { offset } = await committed;
    for (const update of updates) sums.updates.push({ offset, ...update });
  }
}

async function collect<T>(rows: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const row of rows) all.push(row);
  return all;
}

function uniqueKeys(rows: readonly Triple[]): string[] {
  return [...new Set(rows.map(([key]) => key))];
}

async function check(
  engine: Engine,
  edges: Edges,
  sums: Sums,
  random: Prng,
  key: () => string,
  rounds: number,
): Promise<void> {
  for (let i = 0; i < rounds; i++) {
    const T = random.chance(0.4) ? engine.upper - 1 : random.between(edges.since, engine.upper - 1);
    const k = key();
    const expected = sums.at(T, k);
    assert.deepEqual(edges.getSync(k, { asOf: T }), expected, `${k} at ${T}`);
    const { limit, ...rest } = randomBounds(random, key);
    const bounds: Bounds = limit === undefined ? rest : { ...rest, limit };
    const range: RangeOptions<string> = { ...bounds, asOf: T };
    const rows = sums.rows(T, bounds);
    assert.deepEqual([...edges.entries(range)], rows, JSON.stringify(range));
    if (i % 5 !== 0) continue;
    assert.deepEqual(await edges.get(k, { asOf: T }), expected);
    assert.equal(edges.hasSync(k, { asOf: T }), expected.length > 0);
    assert.equal(await edges.has(k, { asOf: T }), expected.length > 0);
    const count = expected.reduce((sum, [, diff]) => sum + diff, 0);
    assert.equal(edges.countSync(k, { asOf: T }), count);
    assert.equal(await edges.count(k, { asOf: T }), count);
    const some = [k, key(), 'nowhere'];
    const many = some.map((name) => sums.at(T, name));
    assert.deepEqual(edges.getManySync(some, { asOf: T }), many);
    assert.deepEqual(await edges.getMany(some, { asOf: T }), many);
    assert.deepEqual(await collect(edges.entries(range)), rows);
    assert.deepEqual(
      [...edges.values(range)],
      rows.map(([, value]) => value),
    );
    const whole = uniqueKeys(sums.rows(T, rest));
    assert.deepEqual([...edges.keys(range)], whole.slice(0, limit));
  }
  assert.equal(engine.stats().holds.count, 0);
}

function keysOf(random: Prng): () => string {
  const heads = ['', 'a', 'ab', 'b', 'ü', 'z'.repeat(200)];
  return () => (random.chance(0.3) ? 'hub' : `${random.pick(heads)}${random.below(12)}`);
}

inBothHosts('whatever was flushed and merged, at every offset of the history', async (home) => {
  const random = new Prng(51);
  const key = keysOf(random);
  const sums = new Sums();
  let engine = await home.open();
  let edges = await engine.collection('edges', { kind: 'multiset', history: Infinity });
  for (let round = 0; round < 6; round++) {
    await write(engine, edges, sums, random, key, 40);
    await check(engine, edges, sums, random, key, 10);
    if (round === 3) await engine.compact(edges);
    else await engine.flush();
    await check(engine, edges, sums, random, key, 10);
  }
  await engine.close();
  engine = await home.open();
  edges = await engine.collection('edges', { kind: 'multiset' });
  await check(engine, edges, sums, random, key, 30);
  await engine.compact();
  await check(engine, edges, sums, random, key, 30);
  assert.deepEqual((await engine.verify({ full: true })).findings, []);
});

inBothHosts('without history: now is right, and what is held', async (home) => {
  const random = new Prng(52);
  const key = keysOf(random);
  const sums = new Sums();
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset' });
  const held: { T: number; close: () => void; check: () => void }[] = [];
  for (let round = 0; round < 8; round++) {
    await write(engine, edges, sums, random, key, 30);
    if (round % 3 === 1) {
      const snap = engine.snapshot();
      const expected = sums.rows(snap.offset);
      const k = key();
      const values = sums.at(snap.offset, k);
      held.push({
        T: snap.offset,
        close: () => snap.close(),
        check() {
          assert.deepEqual([...edges.entries({ snapshot: snap })], expected);
          assert.deepEqual(edges.getSync(k, { snapshot: snap }), values);
        },
      });
    }
    if (round % 2 === 0) await engine.flush();
    if (round === 5) await engine.compact();
    const T = engine.upper - 1;
    assert.deepEqual([...edges.entries()], sums.rows(T));
    assert.deepEqual([...edges.entries({ reverse: true })], sums.rows(T).toReversed());
    for (let i = 0; i < 10; i++) {
      const k = key();
      assert.deepEqual(edges.getSync(k), sums.at(T, k));
    }
    for (const one of held) one.check();
  }
  for (const { close } of held) close();
  await engine.compact();
  assert.deepEqual([...edges.entries()], sums.rows(engine.upper - 1));
  assert.throws(() => edges.getSync('hub', { asOf: 1 }), coded('TIDEMARK_HISTORY_LOST'));
});

inBothHosts('what was put and taken away leaves no row in the files', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset' });
  for (let i = 0; i < 280; i++) await edges.update(`k${i % 7}`, `v${i % 5}`, i < 140 ? 1 : -1);
  await engine.flush();
  await engine.compact();
  assert.deepEqual([...edges.entries()], []);
  // What is past is one view behind.
  const runs = (): number =>
    engine.stats().collections.find(({ name }) => name === 'edges')?.runs.length ?? 0;
  for (let round = 0; round < 6 && runs() > 0; round++) {
    await edges.update('x', 'y', round % 2 === 0 ? 1 : -1);
    await engine.compact();
    if (round % 2 === 1) await quiet(engine);
  }
  assert.equal(runs(), 0);
  // The kind is known also where no part says it.
  await engine.close();
  const again = await home.open();
  const same = await again.collection('edges', { kind: 'multiset' });
  await same.update('a', 'b', 2);
  await again.flush();
  await same.update('a', 'b', -1);
  await again.compact();
  assert.deepEqual(same.getSync('a'), [['b', 1]]);
});

inBothHosts('a key with very many values is walked in both directions', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset', key: 'utf8', value: 'u64' });
  const count = 9_000;
  for (let part = 0; part < 3; part++) {
    const tx = engine.transaction();
    for (let i = part; i < count; i += 3) tx.update(edges, 'hub', i, 1);
    tx.update(edges, 'a', part, 1).update(edges, 'z', part, 1);
    await tx.commit();
    if (part < 2) await engine.flush();
  }
  const values = Array.from({ length: count }, (_, i) => i);
  const expected = [0, 1, 2, ...values, 0, 1, 2];
  assert.deepEqual([...edges.values()], expected);
  assert.deepEqual([...edges.values({ reverse: true })], expected.toReversed());
  assert.deepEqual([...edges.keys()], ['a', 'hub', 'z']);
  assert.deepEqual([...edges.keys({ reverse: true, limit: 2 })], ['z', 'hub']);
  assert.equal(edges.countSync('hub'), count);
  assert.equal((await edges.get('hub')).length, count);
  await engine.compact();
  assert.deepEqual([...edges.values()], expected);
  assert.deepEqual(
    edges.getSync('hub').map(([value]) => value),
    values,
  );
});

inBothHosts('an iterator keeps the state it began with', async (home) => {
  const random = new Prng(53);
  const key = keysOf(random);
  const sums = new Sums();
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset' });
  await write(engine, edges, sums, random, key, 200);
  const T = engine.upper - 1;
  const rows = edges.entries();
  const expected = sums.rows(T);
  const found: Triple[] = [];
  for (const row of rows) {
    found.push(row);
    if (found.length % 20 !== 5) continue;
    await write(engine, edges, sums, random, key, 5);
    if (found.length % 40 === 5) await engine.compact();
  }
  assert.deepEqual(found, expected);
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts('a count beyond safe integers is told, and nothing is lost for it', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset' });
  await edges.update('k', 'v', MAX);
  await edges.update('k', 'v', MAX);
  await edges.update('k', 'w', 1);
  const large = coded('TIDEMARK_TOO_LARGE', { what: 'diff', limit: MAX });
  const refuses = async (): Promise<void> => {
    assert.throws(() => edges.getSync('k'), large);
    assert.throws(() => edges.countSync('k'), large);
    await assert.rejects(edges.get('k'), large);
    assert.throws(() => [...edges.entries()], large);
    assert.equal(engine.stats().holds.count, 0);
  };
  await refuses();
  await engine.flush();
  await engine.compact();
  await refuses();
  await edges.update('k', 'v', -MAX);
  assert.deepEqual(edges.getSync('k'), [
    ['v', MAX],
    ['w', 1],
  ]);
  assert.throws(() => edges.countSync('k'), large);
  await engine.compact();
  assert.deepEqual(
    [...edges.entries()],
    [
      ['k', 'v', MAX],
      ['k', 'w', 1],
    ],
  );
  // Only what is shown has to be one.
  await edges.update('k', 'v', MAX);
  await edges.update('k', 'v', -MAX);
  assert.equal(edges.getSync('k')[0]?.[1], MAX);
});

inBothHosts('what is not for its kind is misuse, with and without types', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset' });
  const users = await engine.collection('users', { kind: 'keyed' });
  const asKeyed = edges as unknown as Collection<string, string>;
  const asMultiset = users as unknown as Edges;
  for (const diff of [0, 0.5, NaN, Infinity, 2 ** 53, '1', undefined, null, 1n]) {
    const given = diff as number;
    await assert.rejects(edges.update('a', 'b', given), misuse(/diff is a safe integer/));
    assert.throws(() => engine.transaction().update(edges, 'a', 'b', given), misuse(/diff is/));
  }
  await assert.rejects(asKeyed.put('a', 'b'), misuse(/multiset/));
  await assert.rejects(asKeyed.delete('a'), misuse(/multiset/));
  await assert.rejects(asMultiset.update('a', 'b', 1), misuse(/keyed/));
  assert.throws(() => asKeyed.getEntrySync('a'), misuse(/multiset/));
  assert.throws(() => asMultiset.countSync('a'), misuse(/keyed/));
  assert.throws(() => engine.transaction().put(asKeyed, 'a', 'b'), misuse(/multiset/));
  assert.throws(() => engine.transaction().delete(asKeyed, 'a'), misuse(/multiset/));
  assert.throws(() => engine.transaction().update(asMultiset, 'a', 'b', 1), misuse(/keyed/));
  const expect = [{ collection: asKeyed, key: 'a', offset: 1 }];
  await assert.rejects(users.put('a', 'b', { expect }), misuse(/multiset/));
  assert.equal(edges.touched, 0);
  const other = coded('TIDEMARK_KIND_MISMATCH', { collection: 'edges', kind: 'multiset' });
  await assert.rejects(engine.collection('edges', { kind: 'keyed' }), other);
  await assert.rejects(
    engine.collection('users', { kind: 'multiset' }),
    coded('TIDEMARK_KIND_MISMATCH', { kind: 'keyed' }),
  );
  assert.equal((await engine.collection('edges')).kind, 'multiset');
  assert.deepEqual(
    engine.collections().map(({ name, kind }) => [name, kind]),
    [
      ['edges', 'multiset'],
      ['users', 'keyed'],
    ],
  );
  await assert.rejects(
    engine.collection('third', { kind: 'set' } as unknown as { kind: 'multiset' }),
    misuse(/'keyed' or 'multiset'/),
  );
});

inBothHosts(
  'conditions on the whole, drops, and reads that must not touch a file',
  async (home) => {
    const engine = await home.open();
    const edges = await engine.collection('edges', { kind: 'multiset' });
    const { offset } = await edges.update('a', 'b', 1);
    const expect = [{ collection: edges, unchangedSince: offset }];
    await edges.update('a', 'c', 1, { expect });
    await assert.rejects(edges.update('a', 'd', 1, { expect }), coded('TIDEMARK_CONFLICT'));
    assert.deepEqual(edges.getSync('a', { cachedOnly: true }), [
      ['b', 1],
      ['c', 1],
    ]);
    await engine.flush();
    await until('in parts', () => engine.stats().sealed === 0);
    assert.throws(() => edges.getSync('a', { cachedOnly: true }), coded('TIDEMARK_NOT_CACHED'));
    assert.deepEqual(edges.getSync('b', { cachedOnly: true }), []);
    await engine.drop(edges);
    await assert.rejects(edges.update('a', 'b', 1), coded('TIDEMARK_NOT_FOUND'));
    assert.throws(() => edges.getSync('a'), coded('TIDEMARK_NOT_FOUND'));
    const again = await engine.collection('edges', { kind: 'keyed' });
    await again.put('a', 'b');
    await engine.flush();
    assert.equal(again.getSync('a'), 'b');
  },
);

inBothHosts('ranges are deleted from multisets too, before and after merges', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset', history: Infinity });
  const fill = async (): Promise<void> => {
    const tx = engine.transaction();
    for (const key of ['a', 'b', 'c', 'd'])
      tx.update(edges, key, 'x', 1).update(edges, key, 'y', 2);
    await tx.commit();
  };
  const keys = (asOf: number): string[] => [...edges.keys({ asOf })];
  await fill();
  const full = engine.upper - 1;
  await engine.flush();
  const { offset } = await edges.deleteRange({ gte: 'b', lt: 'd' });
  const checkNow = async (): Promise<void> => {
    assert.deepEqual(keys(full), ['a', 'b', 'c', 'd']);
    assert.deepEqual(keys(offset), ['a', 'd']);
    assert.deepEqual(edges.getSync('b', { asOf: offset }), []);
    assert.deepEqual(await edges.get('b', { asOf: full }), [
      ['x', 1],
      ['y', 2],
    ]);
    assert.equal(await edges.has('c', { asOf: offset }), false);
  };
  await checkNow();
  await engine.transaction().update(edges, 'c', 'z', 9).commit();
  await engine.flush();
  await checkNow();
  await engine.compact();
  await checkNow();
  assert.deepEqual(edges.getSync('c'), [['z', 9]]);
  await engine.transaction().deleteRange(edges, {}).update(edges, 'a', 'w', 1).commit();
  assert.deepEqual([...edges.entries()], [['a', 'w', 1]]);
  await edges.setHistory(0);
  await fill();
  await engine.compact();
  await fill();
  await engine.compact();
  assert.deepEqual(
    [...edges.entries()],
    [
      ['a', 'w', 1],
      ...['a', 'b', 'c', 'd'].flatMap((key): Triple[] => [
        [key, 'x', 2],
        [key, 'y', 4],
      ]),
    ],
  );
});

inBothHosts('a limit is kept inside a key with many values, in both directions', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset', key: 'utf8', value: 'u64' });
  const tx = engine.transaction();
  for (let value = 0; value < 400; value++) tx.update(edges, 'one', value, 1);
  await tx.commit();
  for (const limit of [0, 1, 16, 17, 60, 300, 399, 400, 401]) {
    for (const reverse of [false, true]) {
      const values = [...edges.values({ limit, reverse })];
      const all = Array.from({ length: 400 }, (_, i) => (reverse ? 399 - i : i));
      assert.deepEqual(values, all.slice(0, limit), `limit ${limit}`);
    }
  }
});

inBothHosts('counts below nothing are merged once, not over and over', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset', key: 'utf8', value: 'utf8' });
  const tx = engine.transaction();
  for (let i = 0; i < 3_000; i++) tx.update(edges, `key ${i}`, 'x'.repeat(200), -1);
  await tx.commit();
  await engine.flush();
  await edges.update('key', 'x', 1);
  await engine.flush();
  await engine.compact();
  await quiet(engine);
  const merges = engine.stats().keeper['mergeJobs'];
  assert.ok(merges <= 4, `${merges} merges`);
});
