/**
 * Goal: every read, as of every offset, says what a naive model says, wherever the rows lie: in a
 * memtable, in sealed ones, in one part or in many, before and after merges and reopening.
 */
import assert from 'node:assert/strict';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Collection, Engine, Receipt } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { Model } from './model.ts';
import { coded, inBothHosts, misuse, until } from './world.ts';

type Words = Collection<string, string>;

/** Commits random changes of few keys, each with an offset of its own, or several in one. */
async function write(
  engine: Engine,
  words: Words,
  model: Model,
  random: Prng,
  count: number,
): Promise<void> {
  const commits: { changes: [string, string | undefined][]; committed: Promise<Receipt> }[] = [];
  for (let i = 0; i < count; i++) {
    const tx = engine.transaction();
    const changes: [string, string | undefined][] = [];
    for (let n = random.chance(0.3) ? 3 : 1; n > 0; n--) {
      const key = `k${random.below(40)}`;
      const value = random.chance(0.25) ? undefined : `${key}:${random.u32()}`;
      changes.push([key, value]);
      if (value === undefined) tx.delete(words, key);
      else tx.put(words, key, value);
    }
    commits.push({ changes, committed: tx.commit() });
  }
  for (const { changes, committed } of commits) {
    const { offset } = await committed;
    for (const [key, value] of changes) model.set(offset, key, value);
  }
}

const KEYS: readonly string[] = Array.from({ length: 42 }, (_, i) => `k${i}`);

/** Every way of reading a point gives the same, as the model has it. */
async function comparePoints(words: Words, model: Model, T: number): Promise<void> {
  const at = { asOf: T };
  const expected = KEYS.map((key) => model.valueAt(T, key));
  assert.deepEqual(words.getManySync(KEYS, at), expected);
  assert.deepEqual(await words.getMany(KEYS, at), expected);
  for (const [i, key] of KEYS.entries()) {
    assert.equal(words.getSync(key, at), expected[i], `${key} as of ${T}`);
    assert.equal(await words.get(key, at), expected[i], `${key} as of ${T}, later`);
    assert.equal(words.hasSync(key, at), expected[i] !== undefined);
    assert.equal(await words.has(key, at), expected[i] !== undefined);
    const value = expected[i];
    const entry = value === undefined ? undefined : { value, offset: model.at(T, key)!.offset };
    assert.deepEqual(words.getEntrySync(key, at), entry);
  }
  assert.deepEqual([...words.entries(at)], model.rows(T));
  assert.deepEqual([...words.entries({ ...at, reverse: true })], model.rows(T, { reverse: true }));
}

inBothHosts('with all history every offset reads as it was', async (home) => {
  const random = new Prng(11);
  const model = new Model();
  let engine = await home.open();
  let words = await engine.collection('words', { history: Infinity });
  const check = async (): Promise<void> => {
    assert.equal(words.since, 0);
    for (let T = 0; T < engine.upper; T += 1 + random.below(3)) {
      await comparePoints(words, model, T);
    }
    await comparePoints(words, model, engine.upper - 1);
  };
  for (let round = 0; round < 4; round++) {
    await write(engine, words, model, random, 20);
    if (round === 1) await check();
    await engine.flush();
  }
  await write(engine, words, model, random, 10);
  await check();
  await engine.compact();
  await check();
  await engine.close();
  engine = await home.open();
  words = await engine.collection('words');
  await check();
});

inBothHosts('history of n keeps the newest n + 1, the lost ones say so', async (home) => {
  const random = new Prng(12);
  const model = new Model();
  const history = 15;
  const engine = await home.open();
  const words = await engine.collection('words', { history });
  let lost = 0;
  const check = async (): Promise<void> => {
    const { upper } = engine;
    const { since } = words;
    assert.ok(since <= Math.max(0, upper - 1 - history), `since ${since} of upper ${upper}`);
    for (let T = 0; T < since; T += 3) {
      const isLost = coded('TIDEMARK_HISTORY_LOST', { asOf: T });
      assert.throws(() => words.getSync('k1', { asOf: T }), isLost);
      await assert.rejects(words.get('k1', { asOf: T }), isLost);
      await assert.rejects(words.getMany(['k1'], { asOf: T }), isLost);
      assert.throws(() => words.entries({ asOf: T }), isLost);
      lost++;
    }
    const promised = Math.max(0, upper - 1 - history);
    for (let T = promised; T < upper; T += 3) await comparePoints(words, model, T);
    await comparePoints(words, model, upper - 1);
  };
  for (let round = 0; round < 5; round++) {
    await write(engine, words, model, random, 20);
    await check();
    await engine.flush();
    await check();
  }
  await engine.compact(words);
  await check();
  assert.ok(lost > 0, 'history was lost at all');
});

inBothHosts('without history only the newest offset is promised', async (home) => {
  const random = new Prng(13);
  const model = new Model();
  const engine = await home.open();
  const words = await engine.collection('words', {});
  for (let round = 0; round < 3; round++) {
    await write(engine, words, model, random, 20);
    await engine.flush();
    await comparePoints(words, model, engine.upper - 1);
  }
  await engine.compact();
  await comparePoints(words, model, engine.upper - 1);
  assert.ok(words.since > 0);
});

inBothHosts('an offset that is not there yet is refused, with what is', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  const { upper } = engine;
  for (const asOf of [upper, upper + 1, Number.MAX_SAFE_INTEGER - 1]) {
    const isNotYet = coded('TIDEMARK_NOT_YET', { asOf, upper });
    assert.throws(() => words.getSync('a', { asOf }), isNotYet);
    assert.throws(() => words.hasSync('a', { asOf }), isNotYet);
    assert.throws(() => words.getEntrySync('a', { asOf }), isNotYet);
    assert.throws(() => words.getManySync(['a'], { asOf }), isNotYet);
    assert.throws(() => words.entries({ asOf }), isNotYet);
    assert.throws(() => engine.snapshot({ asOf }), isNotYet);
    await assert.rejects(words.get('a', { asOf }), isNotYet);
    await assert.rejects(words.has('a', { asOf }), isNotYet);
    await assert.rejects(words.getMany(['a'], { asOf }), isNotYet);
  }
  assert.equal(words.getSync('a', { asOf: upper - 1 }), '1');
});

inBothHosts('an asOf that is no offset is misuse', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  for (const asOf of [-1, 0.5, NaN, Infinity, '1', null, new Date(NaN)] as number[]) {
    assert.throws(() => words.getSync('a', { asOf }), misuse(/offset|invalid Date/));
    assert.throws(() => words.entries({ asOf }), misuse(/offset|invalid Date/));
    assert.throws(() => engine.snapshot({ asOf }), misuse(/offset|invalid Date/));
    await assert.rejects(async () => words.get('a', { asOf }), misuse(/offset|invalid Date/));
    await assert.rejects(async () => words.getMany(['a'], { asOf }), misuse(/offset|invalid Date/));
  }
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts('cachedOnly never asks the disk', async (home) => {
  {
    await using engine = await home.open();
    const words = await engine.collection('words', {});
    await words.put('a', '1');
    assert.equal(words.getSync('a', { cachedOnly: true }), '1');
    await engine.flush();
  }
  const engine = await home.open();
  const words = await engine.collection('words');
  const isNotCached = coded('TIDEMARK_NOT_CACHED', { collection: 'words' });
  assert.throws(() => words.getSync('a', { cachedOnly: true }), isNotCached);
  // A read offers the row to the cache, which may have no room for the offer.
  await until('the row is cached', () => {
    assert.equal(words.getSync('a'), '1');
    try {
      return words.getSync('a', { cachedOnly: true }) === '1';
    } catch {
      return false;
    }
  });
});

inBothHosts('a past that was read is in memory, and ends where it ended', async (home) => {
  const engine = await home.open({ history: Infinity });
  const words = await engine.collection('words', {});
  const model = new Model();
  const keys = ['a', 'b', 'c', 'd', 'none'];
  const changes: (() => Promise<Receipt>)[] = [
    ...keys.slice(0, 4).map((key) => () => words.put(key, `${key} 1`)),
    () => words.put('a', 'a 2'),
    () => words.delete('b'),
    () => words.deleteRange({ gte: 'c', lt: 'd' }),
    () => words.put('b', 'b 2'),
    () => words.put('c', 'c 2'),
    () => words.deleteRange({ gte: 'a', lt: 'c' }),
  ];
  for (const change of changes) {
    await change();
    // Each in a run of its own at first.
    await engine.flush();
  }
  const first = engine.upper - changes.length;
  const [a, b, c, d] = [0, 1, 2, 3].map((i) => first + i);
  model.set(a, 'a', 'a 1');
  model.set(b, 'b', 'b 1');
  model.set(c, 'c', 'c 1');
  model.set(d, 'd', 'd 1');
  model.set(first + 4, 'a', 'a 2');
  model.set(first + 5, 'b', undefined);
  model.set(first + 6, 'c', undefined);
  model.set(first + 7, 'b', 'b 2');
  model.set(first + 8, 'c', 'c 2');
  model.set(first + 9, 'a', undefined);
  model.set(first + 9, 'b', undefined);
  /** Asks for all of it; what is not there yet is offered once more. */
  const isCached = (): boolean => {
    let missing = 0;
    for (let asOf = first; asOf < engine.upper; asOf++) {
      for (const key of keys) {
        const expected = model.valueAt(asOf, key);
        let cached: string | undefined;
        try {
          cached = words.getSync(key, { asOf, cachedOnly: true });
        } catch (error) {
          coded('TIDEMARK_NOT_CACHED')(error);
          words.getSync(key, { asOf });
          missing++;
          continue;
        }
        assert.equal(cached, expected, `${key} as of ${asOf}, cached`);
      }
    }
    return missing === 0;
  };
  for (const isMerged of [false, true]) {
    if (isMerged) await engine.compact();
    for (let asOf = first; asOf < engine.upper; asOf++) {
      for (const key of keys) {
        const expected = model.valueAt(asOf, key);
        const found =
          asOf % 2 === 0 ? words.getSync(key, { asOf }) : await words.get(key, { asOf });
        assert.equal(found, expected, `${key} as of ${asOf}`);
      }
    }
    await until('the past is in memory', () => isCached());
    // What was said of one time answers for others: rightly, or not at all.
    for (let asOf = first; asOf < engine.upper; asOf++) {
      for (const key of keys) {
        assert.equal(words.getSync(key, { asOf }), model.valueAt(asOf, key), `${key}, ${asOf}`);
      }
    }
  }
});

// ---------------------------------------------------------------- snapshots

inBothHosts('a snapshot shows all collections at one offset', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const sums = await engine.collection('sums', { key: 'utf8', value: 'u64' });
  for (let i = 0; i < 50; i++)
    await engine
      .transaction()
      .put(words, `k${i % 5}`, `${i}`)
      .put(sums, 'n', i)
      .commit();
  const snap = engine.snapshot();
  assert.equal(snap.offset, engine.upper - 1);
  const at = { snapshot: snap };
  const expected = [...words.entries()];
  const check = async (): Promise<void> => {
    assert.deepEqual([...words.entries(at)], expected);
    assert.deepEqual([...words.entries({ ...at, reverse: true })], expected.toReversed());
    assert.equal(sums.getSync('n', at), 49);
    assert.equal(await sums.get('n', at), 49);
    assert.deepEqual(await words.getMany(['k0', 'none'], at), ['45', undefined]);
    assert.deepEqual(words.getManySync(['k0', 'none'], at), ['45', undefined]);
  };
  await check();
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 20; i++)
      await engine
        .transaction()
        .put(words, `k${i % 5}`, 'x')
        .delete(sums, 'n')
        .commit();
    await check();
    await engine.flush();
    await check();
  }
  await engine.compact();
  await check();
  snap.close();
  snap.close();
  // Nothing holds the old rows any more: they are merged away.
  for (const value of ['y', 'z']) {
    await words.put('k0', value);
    await engine.flush();
  }
  await engine.compact();
  const { collections } = engine.stats();
  const stats = collections.find(({ name }) => name === 'words');
  assert.equal(
    stats?.runs.reduce((rows, run) => rows + run.rows, 0),
    5,
  );
});

inBothHosts('a closed snapshot refuses reads, and only those', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  let snap;
  {
    using inner = engine.snapshot();
    snap = inner;
    assert.equal(words.getSync('a', { snapshot: inner }), '1');
    assert.equal(engine.stats().holds.count, 1);
  }
  assert.equal(engine.stats().holds.count, 0);
  const isClosed = coded('TIDEMARK_CLOSED');
  assert.throws(() => words.getSync('a', { snapshot: snap }), isClosed);
  assert.throws(() => words.entries({ snapshot: snap }), isClosed);
  await assert.rejects(words.get('a', { snapshot: snap }), isClosed);
  await assert.rejects(words.getMany(['a'], { snapshot: snap }), isClosed);
  assert.equal(words.getSync('a'), '1');
});

inBothHosts('a snapshot of an empty store stays empty', async (home) => {
  const engine = await home.open();
  using snap = engine.snapshot();
  assert.equal(snap.offset, -1);
  const at = { snapshot: snap };
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  const check = async (): Promise<void> => {
    assert.equal(words.getSync('a', at), undefined);
    assert.equal(words.hasSync('a', at), false);
    assert.equal(await words.get('a', at), undefined);
    assert.deepEqual(await words.getMany(['a', 'b'], at), [undefined, undefined]);
    assert.deepEqual(words.getManySync(['a', 'b'], at), [undefined, undefined]);
    assert.deepEqual([...words.entries(at)], []);
    assert.deepEqual([...words.keys({ ...at, reverse: true })], []);
  };
  await check();
  await engine.flush();
  await engine.compact();
  await check();
});

inBothHosts('a snapshot of the past needs that past', async (home) => {
  const engine = await home.open();
  const kept = await engine.collection('kept', { history: Infinity });
  const lost = await engine.collection('lost', {});
  const { offset } = await engine.transaction().put(kept, 'a', '1').put(lost, 'a', '1').commit();
  for (let i = 0; i < 10; i++)
    await engine.transaction().put(kept, 'a', 'x').put(lost, 'a', 'x').commit();
  await engine.flush();
  await engine.compact();
  await lost.put('a', 'y');
  await engine.flush();
  await until('history goes', () => lost.since > offset);
  using snap = engine.snapshot({ asOf: offset });
  assert.equal(snap.offset, offset);
  assert.equal(kept.getSync('a', { snapshot: snap }), '1');
  assert.throws(() => lost.getSync('a', { snapshot: snap }), coded('TIDEMARK_HISTORY_LOST'));
  assert.throws(
    () => kept.getSync('a', { snapshot: snap, asOf: offset }),
    misuse(/asOf or a snapshot/),
  );
});

inBothHosts('forgotten snapshots and iterators let go when they are collected', async (home) => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  const engine = await home.open();
  const words = await engine.collection('words', {});
  for (let i = 0; i < 100; i++) await words.put(`k${i}`, 'v');
  const forget = (): void => {
    engine.snapshot();
    words.entries().next();
    words.entries();
  };
  forget();
  assert.equal(engine.stats().holds.count, 3);
  await until('collected', () => {
    gc();
    return engine.stats().holds.count === 0;
  });
});

inBothHosts('getMany sees one offset, though commits come in between', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const keys = Array.from({ length: 50 }, (_, i) => `k${i}`);
  const fill = (value: string): Promise<Receipt> => {
    const tx = engine.transaction();
    for (const key of keys) tx.put(words, key, value);
    return tx.commit();
  };
  await fill('0');
  await engine.flush();
  for (let round = 1; round < 10; round++) {
    const committed = fill(`${round}`);
    const values = await words.getMany(keys);
    assert.equal(new Set(values).size, 1);
    await committed;
    assert.deepEqual(
      await words.getMany(keys),
      keys.map(() => `${round}`),
    );
    if (round % 4 === 0) await engine.flush();
  }
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts('reads and writes go on while generations are flushed and merged', async (home) => {
  const random = new Prng(14);
  const model = new Model();
  const engine = await home.open({ memtableBytes: 256 * 1024, segmentBytes: 512 * 1024 });
  const words = await engine.collection('words', { history: Infinity });
  const filler = await engine.collection('filler', { key: 'u64', value: 'buffer' });
  for (let round = 0; round < 12; round++) {
    await write(engine, words, model, random, 10);
    for (let i = 0; i < 20; i++) await filler.put(random.below(1_000), Buffer.alloc(4_000));
    await comparePoints(words, model, random.below(engine.upper));
    await comparePoints(words, model, engine.upper - 1);
  }
  await until('it is flushed by itself', () => engine.stats().keeper['flushes'] > 1);
  await until('segments are rotated', () => engine.stats().durability['rotations'] > 0);
  for (let T = 0; T < engine.upper; T += 25) await comparePoints(words, model, T);
});
