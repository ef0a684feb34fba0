/**
 * Goal: what commits promise. Order, atomicity, offsets, sizes, what a receipt means, in both hosts.
 */
import assert from 'node:assert/strict';
import type { Collection, Engine, Receipt } from '../../actors/index.ts';
import { MiB, keyBytesMax, valueBytesMax } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { inBothHosts, misuse, until } from './world.ts';
import type { Home } from './world.ts';

type Words = Collection<string, string>;

async function openWords(home: Home): Promise<{ engine: Engine; words: Words }> {
  const engine = await home.open();
  return { engine, words: await engine.collection('words', { history: Infinity }) };
}

inBothHosts('a store is created, written, closed and found again', async (home) => {
  {
    await using engine = await home.open();
    assert.equal(engine.state, 'open');
    assert.equal(engine.upper, 0);
    const words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
    const { offset } = await words.put('ada', 'first');
    assert.equal(words.getSync('ada'), 'first');
    assert.equal(engine.upper, offset + 1);
    assert.equal(engine.durableUpper, offset + 1);
  }
  const engine = await home.open();
  const words = await engine.collection('words');
  assert.equal(words.getSync('ada'), 'first');
  assert.deepEqual(words.getEntrySync('ada'), { value: 'first', offset: engine.upper - 1 });
  const { offset } = await words.delete('ada');
  assert.equal(offset, engine.upper - 1);
  assert.equal(words.getSync('ada'), undefined);
});

inBothHosts('offsets follow the order of the commits of a thread', async (home) => {
  const { engine, words } = await openWords(home);
  const lower = engine.upper;
  const receipts: Promise<Receipt>[] = [];
  for (let i = 0; i < 300; i++) {
    if (i % 3 === 0) receipts.push(words.put(`k${i % 7}`, `${i}`));
    else if (i % 3 === 1) receipts.push(words.delete(`k${i % 5}`));
    else
      receipts.push(
        engine
          .transaction()
          .put(words, `k${i % 7}`, `${i}`)
          .commit(),
      );
    if (i % 50 === 49) await receipts.at(-1);
  }
  const offsets = (await Promise.all(receipts)).map(({ offset }) => offset);
  assert.deepEqual(
    offsets,
    Array.from({ length: 300 }, (_, i) => lower + i),
  );
});

inBothHosts('promises settle in the order of the commits', async (home) => {
  const { words } = await openWords(home);
  const settled: number[] = [];
  const all: Promise<unknown>[] = [];
  for (let i = 0; i < 500; i++) {
    all.push(words.put(`k${i}`, 'v').then(({ offset }) => settled.push(offset)));
    if (i % 100 === 50) await words.get('k0');
  }
  await Promise.all(all);
  assert.deepEqual(
    settled,
    settled.toSorted((a, b) => a - b),
  );
});

inBothHosts(
  'a transaction over several collections is one offset, seen as a whole',
  async (home) => {
    const engine = await home.open();
    const words = await engine.collection('words', { history: Infinity });
    const counts = await engine.collection('counts', {
      key: 'u64',
      value: 'json',
      history: Infinity,
    });
    await words.put('gone', 'soon');
    const tx = engine
      .transaction()
      .put(words, 'a', '1')
      .put(counts, 7, { n: 7 })
      .delete(words, 'gone');
    assert.equal(tx.size, 3);
    const committed = tx.commit();
    // Not yet durable: nothing of it is seen, or all of it.
    const early = [words.hasSync('a'), counts.hasSync(7), !words.hasSync('gone')];
    assert.equal(new Set(early).size, 1);
    const { offset } = await committed;
    assert.equal(words.getEntrySync('a')?.offset, offset);
    assert.equal(counts.getEntrySync(7)?.offset, offset);
    assert.equal(words.hasSync('gone'), false);
    assert.equal(words.hasSync('a', { asOf: offset - 1 }), false);
    assert.equal(counts.hasSync(7, { asOf: offset - 1 }), false);
    assert.equal(words.getSync('gone', { asOf: offset - 1 }), 'soon');
  },
);

inBothHosts('within a transaction the later operation on a key wins', async (home) => {
  const { engine, words } = await openWords(home);
  await engine
    .transaction()
    .put(words, 'a', '1')
    .put(words, 'a', '2')
    .put(words, 'b', '1')
    .delete(words, 'b')
    .delete(words, 'c')
    .put(words, 'c', '3')
    .commit();
  const expected = [
    ['a', '2'],
    ['c', '3'],
  ];
  assert.deepEqual([...words.entries()], expected);
  assert.deepEqual([...words.entries({ reverse: true })], expected.toReversed());
  await engine.flush();
  assert.deepEqual([...words.entries()], expected);
  assert.equal(words.getSync('b'), undefined);
});

inBothHosts('an empty transaction resolves with the newest offset and uses none', async (home) => {
  const engine = await home.open();
  assert.deepEqual(await engine.transaction().commit(), { offset: -1 });
  const words = await engine.collection('words', {});
  const { offset } = await words.put('a', '1');
  assert.deepEqual(await engine.transaction().commit(), { offset });
  assert.equal((await words.put('b', '2')).offset, offset + 1);
});

inBothHosts('a transaction commits once', async (home) => {
  const { engine, words } = await openWords(home);
  const tx = engine.transaction().put(words, 'a', '1');
  await tx.commit();
  const { upper } = engine;
  await assert.rejects(async () => tx.commit(), misuse(/committed/));
  assert.throws(() => tx.put(words, 'b', '2'), misuse(/committed/));
  assert.throws(() => tx.delete(words, 'b'), misuse(/committed/));
  assert.equal(engine.upper, upper);
});

inBothHosts('a value is what it was when put was called', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'buffer', value: 'buffer' });
  const key = Buffer.from('k');
  const value = Buffer.from('before');
  const put = rows.put(key, value);
  const tx = engine.transaction().put(rows, key, value);
  key.write('x');
  value.write('AFTER!');
  await put;
  await tx.commit();
  assert.deepEqual([...rows.entries()], [[Buffer.from('k'), Buffer.from('before')]]);
});

inBothHosts('70,000 commits in one turn, awaited or not, are all there', async (home) => {
  const { engine, words } = await openWords(home);
  const lower = engine.upper;
  const count = 70_000;
  for (let i = 0; i < count - 1; i++) void words.put(`${i}`, 'v');
  const { offset } = await words.put(`${count - 1}`, 'v');
  assert.equal(offset, lower + count - 1);
  assert.equal(words.getEntrySync('0')?.offset, lower);
  assert.equal(words.getEntrySync('65535')?.offset, lower + 65_535);
  assert.equal([...words.keys()].length, count);
});

inBothHosts('one transaction holds 100,000 operations', async (home) => {
  const { engine, words } = await openWords(home);
  const tx = engine.transaction();
  for (let i = 0; i < 100_000; i++) tx.put(words, `k${i % 50_000}`, '');
  const { offset } = await tx.commit();
  assert.equal(engine.upper, offset + 1);
  assert.equal([...words.keys()].length, 50_000);
});

inBothHosts('keys of 0 to 65,535 bytes', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'buffer', value: 'utf8' });
  const lengths = [0, 1, 7, 8, 255, 256, 4_096, 65_534, keyBytesMax];
  const keys = lengths.map((length) => Buffer.alloc(length, 'k'));
  await Promise.all(keys.map((key, i) => rows.put(key, `${lengths[i]}`)));
  const check = async (): Promise<void> => {
    for (const [i, key] of keys.entries()) {
      assert.equal(rows.getSync(key), `${lengths[i]}`);
      assert.equal(await rows.get(key), `${lengths[i]}`);
    }
    assert.deepEqual([...rows.values()], lengths.map(String));
    assert.deepEqual([...rows.values({ reverse: true })], lengths.map(String).toReversed());
    assert.equal([...rows.keys({ gte: keys[8] })].length, 1);
    assert.equal([...rows.keys({ lte: keys[0] })].length, 1);
  };
  await check();
  await engine.flush();
  await check();
  await engine.compact(rows);
  await check();
});

inBothHosts('values of 0 bytes to 32 MiB', async (home) => {
  const engine = await home.open({ memoryBytes: 320 * MiB, memtableBytes: 36 * MiB });
  const rows = await engine.collection('rows', { key: 'u64', value: 'buffer', history: Infinity });
  const lengths = [0, 1, 100, 32_767, 32_768, 262_144, 262_145, 5 * MiB + 3, valueBytesMax];
  const source = Buffer.alloc(valueBytesMax);
  new Prng(1).fill(source.subarray(0, 65_536));
  for (let at = 65_536; at < source.length; at *= 2) source.copy(source, at, 0, at);
  const valueOf = (i: number): Buffer => source.subarray(0, lengths[i]);
  const check = async (): Promise<void> => {
    for (const i of lengths.keys()) {
      assert.ok(rows.getSync(i)?.equals(valueOf(i)), `${lengths[i]} bytes`);
      assert.ok((await rows.get(i))?.equals(valueOf(i)), `${lengths[i]} bytes, later`);
    }
    let i = 0;
    for (const [key, value] of rows.entries()) {
      assert.equal(key, i);
      assert.ok(value.equals(valueOf(i++)), `${lengths[key]} bytes in a range`);
    }
    assert.equal(i, lengths.length);
    for (const [key, value] of rows.entries({ reverse: true })) {
      assert.equal(key, --i);
      assert.ok(value.equals(valueOf(i)), `${lengths[key]} bytes in a range backwards`);
    }
  };
  for (const i of lengths.keys()) await rows.put(i, valueOf(i));
  await check();
  await engine.flush();
  await check();
  await engine.close();
  const again = await home.open({ memoryBytes: 320 * MiB, memtableBytes: 36 * MiB });
  const found = await again.collection<'u64', 'buffer'>('rows');
  assert.ok(found.getSync(8)?.equals(source));
});

inBothHosts('a commit may ask for more durability, never for less', async (home) => {
  const { words } = await openWords(home);
  await words.put('a', '1', { durability: 'synced' });
  await assert.rejects(
    async () => words.put('a', '2', { durability: 'buffered' }),
    misuse(/never for less/),
  );
  assert.equal(words.getSync('a'), '1');
});

inBothHosts('an aborted commit rejects with the reason and is not there', async (home) => {
  const { engine, words } = await openWords(home);
  await words.put('a', '1');
  const { upper } = engine;
  const reason = new Error('enough');
  const signal = AbortSignal.abort(reason);
  await assert.rejects(words.put('a', '2', { signal }), reason);
  await assert.rejects(words.delete('a', { signal }), reason);
  await assert.rejects(engine.transaction().put(words, 'a', '2').commit({ signal }), reason);
  await words.put('b', '1');
  assert.equal(engine.upper, upper + 1);
  assert.equal(words.getSync('a'), '1');
  // A commit under way is not taken back.
  const controller = new AbortController();
  const put = words.put('a', '3', { signal: controller.signal });
  controller.abort(reason);
  await put;
  assert.equal(words.getSync('a'), '3');
});

inBothHosts('a buffered commit is seen at once and synced within the interval', async (home) => {
  const engine = await home.open({ durability: 'buffered', syncIntervalMs: 20 });
  const words = await engine.collection('words', {});
  const { offset } = await words.put('a', '1');
  assert.equal(words.getSync('a'), '1');
  assert.equal(engine.upper, offset + 1);
  await engine.durable(offset);
  assert.equal(engine.durableUpper, offset + 1);
});

inBothHosts('a synced commit of a buffered engine waits for the sync', async (home) => {
  // The interval is a minute: only the commit's own wish can have brought the sync.
  const engine = await home.open({ durability: 'buffered', syncIntervalMs: 60_000 });
  const words = await engine.collection('words', {});
  const { offset: buffered } = await words.put('a', '1');
  assert.ok(engine.durableUpper <= buffered);
  const { offset } = await words.put('b', '2', { durability: 'synced' });
  assert.equal(engine.durableUpper, offset + 1);
  const { offset: last } = await engine
    .transaction()
    .put(words, 'c', '3')
    .commit({ durability: 'synced' });
  assert.equal(engine.durableUpper, last + 1);
  await words.put('d', '4', { durability: 'buffered' });
  await engine.close();
  const again = await home.open();
  assert.equal((await again.collection('words')).getSync('d'), '4');
});

inBothHosts('transactions that grow and end in any order keep what is theirs', async (home) => {
  await using engine = await home.open();
  const rows = await engine.collection('rows', { key: 'u64', value: 'buffer' });
  const random = new Prng(11);
  const expected = new Map<number, Buffer>();
  const pending: Promise<unknown>[] = [];
  let open = Array.from({ length: 4 }, () => ({
    tx: engine.transaction(),
    last: random.below(300),
  }));
  for (let n = 0; n < 3_000; n++) {
    const at = random.below(open.length);
    const one = open[at];
    const value = Buffer.alloc(1 + random.below(400), n);
    one.tx.put(rows, n, value);
    expected.set(n, value);
    if (one.last-- > 0) continue;
    pending.push(one.tx.commit());
    assert.throws(() => one.tx.put(rows, n, value), misuse(/has been committed/));
    open[at] = { tx: engine.transaction(), last: random.below(300) };
  }
  pending.push(...open.map(({ tx }) => tx.commit()));
  open = [];
  await Promise.all(pending);
  for (const [n, value] of expected) assert.deepEqual(rows.getSync(n), value, `row ${n}`);
});

inBothHosts(
  'large commits of one turn are written as they are ordered, few at a time',
  async (home) => {
    const engine = await home.open({ durability: 'buffered', memtableBytes: 8 * MiB });
    const words = await engine.collection('words', {});
    const before = engine.stats().durability['writes'];
    const all: Promise<Receipt>[] = [];
    for (let t = 0; t < 12; t++) {
      const tx = engine.transaction();
      for (let i = 0; i < 1_000; i++) tx.put(words, `k${t}-${i}`, 'v'.repeat(150));
      all.push(tx.commit());
    }
    await Promise.all(all);
    const written = (): number => engine.stats().durability['writes'] - before;
    await until('12 records of 1,000 operations take several writes', () => written() >= 2);
  },
);
