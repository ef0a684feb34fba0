/**
 * Goal: deleteRange removes what a naive model removes, at every offset, whatever is in memory, cached or
 * in parts, across flushes, merges and openings; within a transaction operations take effect in order.
 */
import assert from 'node:assert/strict';
import { mock } from 'node:test';
import type { Collection, Engine, KeyBounds } from '../../actors/index.ts';
import { keyBytesMax } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { RangeSetReader } from '../../core/base/range-set.ts';
import type { RangeDelete } from '../../core/base/range-set.ts';
import { Model, randomBounds } from './model.ts';
import { coded, inBothHosts, inHost, misuse, quiet } from './world.ts';

type Words = Collection<string, string>;

function removeFrom(model: Model, offset: number, bounds: KeyBounds<string>): void {
  for (const [key] of model.rows(offset, bounds)) model.set(offset, key, undefined);
}

function boundsOf(random: Prng, key: () => string): KeyBounds<string> {
  const { reverse: _reverse, limit: _limit, ...bounds } = randomBounds(random, key);
  return bounds;
}

function compare(words: Words, model: Model, keys: readonly string[], T: number): void {
  const at = { asOf: T };
  assert.deepEqual([...words.entries(at)], model.rows(T), `rows at ${T}`);
  const down = model.rows(T, { reverse: true });
  assert.deepEqual([...words.entries({ ...at, reverse: true })], down, `rows at ${T}, down`);
  for (const key of keys) {
    const change = model.at(T, key);
    const expected =
      change?.value === undefined ? undefined : { value: change.value, offset: change.offset };
    assert.deepEqual(words.getEntrySync(key, at), expected, `${key} at ${T}`);
  }
}

inBothHosts('random histories read as the model does, at every offset', async (home) => {
  for (let seed = 1; seed <= 3; seed++) {
    const random = new Prng(seed);
    const model = new Model();
    const name = `words ${seed}`;
    let engine: Engine = await home.open();
    let words: Words = await engine.collection(name, { history: Infinity });
    const keys = Array.from({ length: 30 }, (_, i) => `${'abc'[i % 3]}${i % 7}`);
    const key = (): string => random.pick(keys);
    for (let round = 0; round < 8; round++) {
      for (let i = 0; i < 12; i++) {
        const tx = engine.transaction();
        const steps: ((offset: number) => void)[] = [];
        for (let n = random.between(1, 4); n > 0; n--) {
          if (random.chance(0.25)) {
            const bounds = boundsOf(random, key);
            tx.deleteRange(words, bounds);
            steps.push((offset) => removeFrom(model, offset, bounds));
          } else if (random.chance(0.15)) {
            const gone = key();
            tx.delete(words, gone);
            steps.push((offset) => model.set(offset, gone, undefined));
          } else {
            const [put, value] = [key(), `${seed}.${round}.${i}.${n}`];
            tx.put(words, put, value);
            steps.push((offset) => model.set(offset, put, value));
          }
        }
        const isEmpty = tx.size === 0;
        const { offset } = await tx.commit();
        if (!isEmpty) for (const step of steps) step(offset);
      }
      const T = engine.upper - 1;
      compare(words, model, keys, T);
      compare(words, model, keys, random.below(T + 1));
      if (random.chance(0.6)) await engine.flush();
      // Reads now fill the row cache from the parts, and those after the next flush meet what it kept.
      const found = await words.getMany(keys);
      assert.deepEqual(
        found,
        keys.map((each) => model.valueAt(T, each)),
        'getMany',
      );
      if (random.chance(0.3)) await engine.compact(words);
      if (random.chance(0.25)) {
        await engine.close();
        engine = await home.open();
        words = await engine.collection(name);
      }
    }
    for (let T = 0; T < engine.upper; T += 3) compare(words, model, keys, T);
    const { ok, findings } = await engine.verify({ full: true });
    assert.ok(ok, JSON.stringify(findings));
    await engine.close();
  }
});

inHost('inline', 'each kind of bounds, and none', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const all = ['', 'a', 'aa', 'ab', 'b', 'ba', 'c'];
  const left = async (bounds: KeyBounds<string>): Promise<string[]> => {
    await Promise.all(all.map((key) => words.put(key, 'v')));
    await words.deleteRange(bounds);
    return [...words.keys()];
  };
  assert.deepEqual(await left({ gte: 'a', lt: 'b' }), ['', 'b', 'ba', 'c']);
  assert.deepEqual(await left({ gt: 'a', lte: 'b' }), ['', 'a', 'ba', 'c']);
  assert.deepEqual(await left({ prefix: 'a' }), ['', 'b', 'ba', 'c']);
  assert.deepEqual(await left({ lt: 'b' }), ['b', 'ba', 'c']);
  assert.deepEqual(await left({ gte: 'b' }), ['', 'a', 'aa', 'ab']);
  assert.deepEqual(await left({ lte: '' }), all.slice(1));
  assert.deepEqual(await left({}), []);
});

inHost('inline', 'bounds without a key between them use no offset', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const { offset } = await words.put('a', 'v');
  for (const bounds of [{ gte: 'b', lt: 'a' }, { lt: '' }, { gte: 'a', lt: 'a' }]) {
    assert.deepEqual(await words.deleteRange(bounds), { offset });
    const tx = engine.transaction().deleteRange(words, bounds);
    assert.equal(tx.size, 0);
    assert.deepEqual(await tx.commit(), { offset });
  }
  assert.equal(engine.upper, offset + 1);
  const expect = [{ collection: words, unchangedSince: offset - 1 }];
  await assert.rejects(words.deleteRange({ lt: '' }, { expect }), coded('TIDEMARK_CONFLICT'));
});

inHost('inline', 'bounds as long as a key can be', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const long = 'm'.repeat(keyBytesMax);
  for (const key of ['a', long, 'z']) await words.put(key, 'v');
  await words.deleteRange({ gt: long });
  assert.deepEqual([...words.keys()], ['a', long]);
  await words.put('z', 'v');
  await words.deleteRange({ gte: 'b', lte: long });
  assert.deepEqual([...words.keys()], ['a', 'z']);
  await engine.flush();
  assert.deepEqual([...words.keys()], ['a', 'z']);
  const bytes = await engine.collection('bytes', { key: 'buffer' });
  const last = Buffer.alloc(keyBytesMax, 0xff);
  await bytes.put(last, 'v');
  const { upper } = engine;
  await bytes.deleteRange({ gt: last });
  assert.equal(engine.upper, upper, 'nothing is above the last key');
  await bytes.deleteRange({ lte: last });
  assert.deepEqual([...bytes.keys()], []);
});

inHost('inline', 'misuse says what was wrong and changes nothing', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const loose = words as unknown as { deleteRange(bounds?: unknown): Promise<unknown> };
  await words.put('a', 'v');
  await assert.rejects(loose.deleteRange(), misuse(/\{\} for all/));
  await assert.rejects(loose.deleteRange({ prefix: undefined }), misuse(/prefix is undefined/));
  await assert.rejects(loose.deleteRange({ limit: 1 }), misuse(/limit/));
  await assert.rejects(loose.deleteRange({ gt: 'a', gte: 'a' }), misuse(/gte or gt/));
  assert.equal(words.getSync('a'), 'v');
  await engine.drop(words);
  await assert.rejects(words.deleteRange({}), coded('TIDEMARK_NOT_FOUND'));
});

inBothHosts('conditions and touched see a range delete as a change', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const { offset } = await words.put('a', 'v');
  await words.put('c', 'v');
  const deleted = await words.deleteRange({ gte: 'a', lt: 'b' });
  assert.equal(words.touched, deleted.offset + 1);
  const commit = (condition: object): Promise<unknown> =>
    words.put('x', 'v', { expect: [{ collection: words, ...condition } as never] });
  await assert.rejects(
    commit({ key: 'a', offset }),
    coded('TIDEMARK_CONFLICT', { key: 'a', offset: null }),
  );
  await assert.rejects(
    commit({ unchangedSince: deleted.offset - 1 }),
    coded('TIDEMARK_CONFLICT', { offset: deleted.offset }),
  );
  await commit({ key: 'a', offset: null });
  await engine.flush();
  await assert.rejects(commit({ key: 'a', offset }), coded('TIDEMARK_CONFLICT'));
  await commit({ key: 'a', offset: null });
  assert.ok(words.touched > deleted.offset, 'also from parts');
});

inBothHosts(
  'in one turn with the commit that it races: the order of commits decides',
  async (home) => {
    const engine = await home.open();
    const words = await engine.collection('words', {});
    const { offset } = await words.put('a', 'v');
    const range = words.deleteRange({});
    const late = words.put('b', 'v', { expect: [{ collection: words, key: 'a', offset }] });
    await range;
    await assert.rejects(late, coded('TIDEMARK_CONFLICT', { key: 'a', offset: null }));
  },
);

inBothHosts('a snapshot and an iterator keep what a range delete removed', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  for (let i = 0; i < 500; i++) void words.put(`k${1_000 + i}`, `${i}`);
  await engine.flush();
  const snapshot = engine.snapshot();
  const rows = words.entries();
  assert.equal(rows.next().value?.[1], '0');
  await words.deleteRange({ prefix: 'k' });
  await engine.flush();
  await engine.compact();
  assert.deepEqual([...words.keys()], []);
  assert.equal(words.getSync('k1007'), undefined);
  assert.equal(words.getSync('k1007', { snapshot }), '7');
  assert.equal([...rows].length, 499);
  assert.equal([...words.keys({ snapshot })].length, 500);
  snapshot.close();
  await words.put('z', 'v');
  await engine.flush();
  await engine.compact();
  await quiet(engine);
  assert.deepEqual([...words.entries()], [['z', 'v']]);
});

inBothHosts(
  'a range delete of a collection that has nothing else, over an opening',
  async (home) => {
    let engine = await home.open();
    const words = await engine.collection('words', {});
    const counts = await engine.collection('numbers', { history: Infinity });
    await words.deleteRange({});
    await engine.flush();
    await counts.put('a', '1');
    await counts.deleteRange({ gte: 'a' });
    await engine.close();
    engine = await home.open();
    const again = await engine.collection('numbers');
    assert.deepEqual([...again.entries()], []);
    const T = engine.upper - 2;
    assert.equal(again.getSync('a', { asOf: T }), '1');
    assert.equal(again.getSync('a', { asOf: T + 1 }), undefined);
  },
);

inHost('inline', 'what no range delete covers is not asked about again and again', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  for (let i = 0; i < 500; i++) void words.put(`k${i}`, 'v'.repeat(100));
  await engine.flush();
  const ask = Reflect.get(RangeSetReader.prototype, 'newestCovering');
  let asked = 0;
  const watched = mock.method(
    RangeSetReader.prototype,
    'newestCovering',
    function (this: RangeSetReader, id: number, range: RangeDelete, above: number, T: number) {
      if (Buffer.from(range.lo).toString() === 'k0') asked++;
      return ask.call(this, id, range, above, T);
    },
  );
  await words.deleteRange({ gte: 'k3' });
  const flushes = 30;
  for (let i = 0; i < flushes; i++) {
    await words.put(`z${i}`, 'v');
    await engine.flush();
    await quiet(engine);
  }
  watched.mock.restore();
  assert.ok(asked > 0, 'it was looked at');
  assert.ok(asked <= flushes / 3, `asked ${asked} times`);
});

inHost('inline', 'what a range delete covers leaves the disk', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  for (let i = 0; i < 500; i++) void words.put(`k${i}`, 'v'.repeat(100));
  await engine.flush();
  await words.deleteRange({ prefix: 'k' });
  await engine.flush();
  // By an edit alone, unless a merge comes first.
  const left = (): number => {
    const { moves = 0, merges = 0 } = engine.stats().keeper;
    return moves + merges;
  };
  const before = left();
  for (let i = 0; left() === before; i++) {
    assert.ok(i < 50, 'the rows leave');
    // Time goes on, and with it what may be forgotten.
    await words.put('z', `${i}`);
    await engine.flush();
    await quiet(engine);
  }
  assert.deepEqual([...words.keys()], ['z']);
  assert.equal(words.getSync('k7'), undefined);
  assert.ok((await engine.verify({ full: true })).ok, 'what is left is sound');
});
