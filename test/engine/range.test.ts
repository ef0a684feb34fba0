/**
 * Goal: ranges say what a naive model says, either way, with every kind of bound and limit, over a
 * memtable and several runs, and iterators keep the state they began with.
 */
import assert from 'node:assert/strict';
import type { Codec, Collection, Engine, RangeOptions } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { Model, randomBounds } from './model.ts';
import { inBothHosts, misuse, turn } from './world.ts';
import type { Home } from './world.ts';

type Words = Collection<string, string>;

/** Rows in four runs, a sealed generation or two and the open one, over and beside each other. */
async function populate(
  home: Home,
  seed: number,
): Promise<{ engine: Engine; words: Words; model: Model; random: Prng; key: () => string }> {
  const random = new Prng(seed);
  const model = new Model();
  const engine = await home.open();
  const words = await engine.collection('words', { history: Infinity });
  // Some keys are prefixes of others, some are long, some sort by code point only.
  const heads = ['', 'a', 'ab', 'abc', 'b', 'ü', '\u{ff5e}', '\u{1f30a}', 'z'.repeat(300)];
  const key = (): string => {
    const head = random.pick(heads);
    return random.chance(0.2) ? head : `${head}${random.below(60)}`;
  };
  for (let round = 0; round < 5; round++) {
    const commits = [];
    for (let i = 0; i < 60; i++) {
      const name = key();
      const value = random.chance(0.3) ? undefined : `${round}:${random.u32()}`;
      const committed = value === undefined ? words.delete(name) : words.put(name, value);
      commits.push({ name, value, committed });
    }
    for (const { name, value, committed } of commits) {
      model.set((await committed).offset, name, value);
    }
    if (round < 4) await engine.flush();
  }
  return { engine, words, model, random, key };
}

async function collect<T>(rows: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const row of rows) all.push(row);
  return all;
}

inBothHosts('bounds, limits and directions', async (home) => {
  const { engine, words, model, random, key } = await populate(home, 21);
  for (let i = 0; i < 400; i++) {
    const bounds = randomBounds(random, key);
    const T = random.chance(0.5) ? engine.upper - 1 : random.below(engine.upper);
    const range: RangeOptions<string> = { ...bounds, asOf: T };
    const expected = model.rows(T, bounds);
    const where = JSON.stringify(range);
    assert.deepEqual([...words.entries(range)], expected, where);
    if (i % 4 !== 0) continue;
    assert.deepEqual(
      [...words.keys(range)],
      expected.map(([name]) => name),
      where,
    );
    assert.deepEqual(
      [...words.values(range)],
      expected.map(([, value]) => value),
      where,
    );
    assert.deepEqual(await collect(words.entries(range)), expected, where);
  }
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts('the same from one run, after compaction and reopening', async (home) => {
  const { engine, model, random, key } = await populate(home, 22);
  await engine.compact();
  await engine.close();
  const again = await home.open();
  const words = await again.collection('words');
  for (let i = 0; i < 200; i++) {
    const bounds = randomBounds(random, key);
    const T = random.below(again.upper);
    assert.deepEqual([...words.entries({ ...bounds, asOf: T })], model.rows(T, bounds));
  }
});

inBothHosts('an iterator keeps the state it began with', async (home) => {
  const { engine, words, model, random, key } = await populate(home, 23);
  const T = engine.upper - 1;
  // Many more rows than a batch, so that it comes back to the store.
  const iterators = [
    { rows: words.entries(), expected: model.rows(T) },
    { rows: words.entries({ reverse: true }), expected: model.rows(T, { reverse: true }) },
    {
      rows: words.entries({ gt: 'a', limit: 70 }),
      expected: model.rows(T, { gt: 'a', limit: 70 }),
    },
  ];
  const found = iterators.map((): [string, string][] => []);
  let live = iterators.length;
  for (let step = 0; live > 0; step++) {
    live = 0;
    for (const [i, { rows }] of iterators.entries()) {
      const next = rows.next();
      if (next.done === true) continue;
      found[i]?.push(next.value);
      live++;
    }
    if (step % 10 === 0) {
      for (let n = 0; n < 20; n++) void words.put(key(), 'new');
      await (random.chance(0.5) ? words.delete(key()) : words.put(key(), 'newer'));
    }
    if (step % 40 === 20) await engine.flush();
    if (step === 60) await engine.compact();
  }
  for (const [i, { expected }] of iterators.entries()) assert.deepEqual(found[i], expected);
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts('for await leaves turns to the event loop', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'u64', value: 'u64' });
  const tx = engine.transaction();
  for (let i = 0; i < 20_000; i++) tx.put(rows, i, i * i);
  await tx.commit();
  let turns = 0;
  const walk = new AbortController();
  const count = async (): Promise<void> => {
    while (!walk.signal.aborted) {
      await turn();
      turns++;
    }
  };
  const counted = count();
  let expected = 0;
  for await (const [key, value] of rows.entries()) {
    assert.equal(key, expected);
    assert.equal(value, expected * expected);
    expected++;
  }
  walk.abort();
  await counted;
  assert.equal(expected, 20_000);
  assert.ok(turns >= 15, `${turns} turns`);
});

inBothHosts('a loop that is left lets go of its history', async (home) => {
  const { engine, words } = await populate(home, 24);
  for (const key of words.keys()) {
    assert.equal(typeof key, 'string');
    assert.equal(engine.stats().holds.count, 1);
    break;
  }
  assert.equal(engine.stats().holds.count, 0);
  for await (const row of words.entries()) {
    assert.equal(row.length, 2);
    break;
  }
  assert.equal(engine.stats().holds.count, 0);
  const rows = words.keys({ limit: 2 });
  assert.equal([...rows].length, 2);
  assert.deepEqual(rows.next(), { done: true, value: undefined });
  assert.equal(engine.stats().holds.count, 0);
  assert.throws(() => {
    for (const key of words.keys()) throw new Error(`stop at ${key}`);
  }, /stop at/);
  assert.equal(engine.stats().holds.count, 0);
});

function keyOf(i: number): Buffer {
  return Buffer.from(String(i).padStart(6, '0'));
}

inBothHosts("rows are the walker's to change", async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'buffer', value: 'buffer' });
  const tx = engine.transaction();
  for (let i = 0; i < 3_000; i++) tx.put(rows, keyOf(i), keyOf(i));
  await tx.commit();
  for (const reverse of [false, true]) {
    let i = 0;
    for (const [key, value] of rows.entries({ reverse })) {
      const expected = keyOf(reverse ? 2_999 - i : i);
      assert.deepEqual([key, value], [expected, expected]);
      key.fill(0xff);
      value.fill(0xff);
      i++;
    }
    assert.equal(i, 3_000);
  }
});

inBothHosts('empty ranges and empty collections', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const check = (): void => {
    assert.deepEqual([...words.entries({ gte: 'b', lt: 'b' })], []);
    assert.deepEqual([...words.entries({ gte: 'c', lte: 'b' })], []);
    assert.deepEqual([...words.entries({ gt: 'b', lt: 'b', reverse: true })], []);
    assert.deepEqual([...words.entries({ limit: 0 })], []);
    assert.deepEqual([...words.entries({ limit: 0, reverse: true })], []);
    assert.deepEqual([...words.entries({ gt: 'x' })], []);
    assert.deepEqual([...words.entries({ lt: '' })], []);
  };
  assert.deepEqual([...words.entries()], []);
  assert.deepEqual([...words.entries({ reverse: true })], []);
  check();
  for (const key of ['a', 'b', 'c']) await words.put(key, key);
  check();
  await engine.flush();
  check();
  for (const key of ['a', 'b', 'c']) await words.delete(key);
  assert.deepEqual([...words.entries()], []);
  assert.deepEqual([...words.entries({ reverse: true })], []);
  await engine.flush();
  assert.deepEqual([...words.entries()], []);
});

inBothHosts('a prefix ends where the bytes can be counted up, or nowhere', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'buffer', value: 'utf8' });
  const keys = [
    '',
    '00',
    '61',
    '61ff',
    '61ffff',
    '61ffff00',
    '62',
    'fe',
    'ff',
    'ff00',
    'ffff',
    'ffffff',
  ];
  const all = keys.map((hex) => Buffer.from(hex, 'hex'));
  for (const key of all) await rows.put(key, '');
  for (let round = 0; round < 2; round++) {
    for (const prefix of all) {
      const begun = all.filter((key) => key.subarray(0, prefix.length).equals(prefix));
      assert.deepEqual([...rows.keys({ prefix })], begun, prefix.toString('hex'));
      const upward = begun.filter((key) => Buffer.compare(key, prefix) > 0);
      assert.deepEqual([...rows.keys({ prefix, gt: prefix, reverse: true })], upward.toReversed());
      assert.deepEqual([...rows.keys({ prefix, lte: prefix })], [prefix]);
    }
    await engine.flush();
  }
  // The caller may change the bytes while it walks.
  const prefix = Buffer.from('61', 'hex');
  const walk = rows.keys({ prefix });
  prefix.fill(0);
  assert.equal([...walk].length, 4);
});

inBothHosts('keys without beginnings have no prefixes', async (home) => {
  const engine = await home.open();
  const numbers = await engine.collection('numbers', { key: 'u64', value: 'u64' });
  assert.throws(() => numbers.keys({ prefix: 1 }), misuse(/u64 have no prefixes/));
  const texts = await engine.collection('texts', { key: 'json', value: 'u64' });
  assert.throws(() => texts.keys({ prefix: 'a' }), misuse(/json have no prefixes/));
  const own: Codec<string> = {
    name: 'lower case',
    encode: (text) => Buffer.from(text.toLowerCase()),
    decode: (bytes) => Buffer.from(bytes).toString(),
    encodePrefix: (text) => Buffer.from((text as string).toLowerCase()),
  };
  const cases = await engine.collection('cases', { key: own, value: 'u64' });
  for (const key of ['Abc', 'abD', 'b']) await cases.put(key, 1);
  assert.deepEqual([...cases.keys({ prefix: 'AB' })], ['abc', 'abd']);
});

inBothHosts('a range that makes no sense is misuse', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const cases: [unknown, RegExp][] = [
    [{ from: 'a' }, /unknown range option from/],
    [{ gte: 'a', gt: 'a' }, /gte or gt/],
    [{ lte: 'a', lt: 'a' }, /lte or lt/],
    [{ gte: 7 }, /string/],
    [{ prefix: 7 }, /string/],
    [{ prefix: null }, /string/],
    [{ reverse: 1 }, /reverse/],
    [{ limit: -1 }, /limit/],
    [{ limit: 1.5 }, /limit/],
    [{ limit: '1' }, /limit/],
    [null, /object/],
    ['a', /object/],
  ];
  for (const [range, message] of cases) {
    const given = range as RangeOptions<string>;
    assert.throws(() => words.entries(given), misuse(message));
    assert.throws(() => words.keys(given), misuse(message));
    assert.throws(() => words.values(given), misuse(message));
  }
  assert.equal(engine.stats().holds.count, 0);
});
