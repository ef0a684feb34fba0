/**
 * Goal: frontiers, waiting, flush, compact and stats say what they promise. Room and its end.
 */
import assert from 'node:assert/strict';
import type { Receipt } from '../../actors/index.ts';
import { coded, inBothHosts, misuse, openFiles, quiet, until } from './world.ts';

inBothHosts('durable and reached resolve when their offset is there, not before', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const { offset } = await words.put('a', '1');
  await engine.durable(offset);
  await engine.reached(0);
  const seen: string[] = [];
  const far = offset + 10;
  const reached = engine.reached(far).then(() => seen.push(`reached ${engine.upper > far}`));
  const durable = engine.durable(far).then(() => seen.push(`durable ${engine.durableUpper > far}`));
  for (let i = 1; i < 10; i++) await words.put('a', `${i}`);
  assert.deepEqual(seen, []);
  await words.put('a', '10');
  await Promise.all([reached, durable]);
  assert.deepEqual(new Set(seen), new Set(['durable true', 'reached true']));
});

inBothHosts('a wait can be given up', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const reason = new Error('enough');
  const controller = new AbortController();
  const { signal } = controller;
  const waits = [engine.durable(1_000, { signal }), engine.reached(1_000, { signal })];
  controller.abort(reason);
  for (const wait of waits) await assert.rejects(wait, reason);
  await assert.rejects(engine.reached(0, { signal }), reason);
  await words.put('a', '1');
  for (const bad of [-1, 0.5, NaN, '1', undefined, null]) {
    await assert.rejects(engine.durable(bad as number), misuse(/offset/));
    await assert.rejects(engine.reached(bad as number), misuse(/offset/));
  }
});

inBothHosts('in a synced engine what is seen is durable', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const puts: Promise<Receipt>[] = [];
  for (let i = 0; i < 2_000; i++) {
    puts.push(words.put(`${i % 10}`, `${i}`));
    if (i % 50 !== 0) continue;
    await puts.at(-30);
    const { upper, durableUpper } = engine;
    assert.ok(upper <= durableUpper, `${upper} of ${durableUpper}`);
    const entry = words.getEntrySync('0');
    assert.ok(entry === undefined || entry.offset < engine.durableUpper);
  }
  await Promise.all(puts);
});

inBothHosts(
  'a settled commit is seen at once, an unsettled one never before it is durable',
  async (home) => {
    const engine = await home.open();
    const words = await engine.collection('words', {});
    for (let i = 0; i < 200; i++) {
      const put = words.put('a', `${i}`);
      const early = words.getEntrySync('a');
      if (early !== undefined) assert.ok(early.offset < engine.durableUpper);
      const { offset } = await put;
      assert.deepEqual(words.getEntrySync('a'), { value: `${i}`, offset });
    }
  },
);

inBothHosts('flush moves everything committed so far into parts', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await engine.flush();
  let last = 0;
  for (let i = 0; i < 300; i++) last = (await words.put(`${i}`, 'v')).offset;
  assert.ok(engine.stats().flushedUpper <= last);
  const more = words.put('more', 'v');
  await engine.flush();
  await until('published', () => engine.stats().flushedUpper > last);
  const { collections } = engine.stats();
  const stats = collections.find(({ name }) => name === 'words');
  assert.ok(stats !== undefined && stats.upper > last);
  await more;
  // Several at once, and with nothing to do.
  await Promise.all([engine.flush(), engine.flush(), engine.flush()]);
  await engine.flush();
});

inBothHosts('compact leaves one run and only the rows that history asks for', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const all = await engine.collection('all', { history: Infinity });
  for (let round = 0; round < 6; round++) {
    for (let i = 0; i < 50; i++)
      await engine.transaction().put(words, `${i}`, 'v').put(all, `${i}`, 'v').commit();
    if (round === 5) await words.delete('0');
    await engine.flush();
  }
  // History ends where the newest offset was when the last generation was sealed.
  await words.delete('1');
  await engine.compact(words);
  await words.delete('2');
  await engine.compact(words);
  const runsOf = (name: string): readonly { rows: number }[] =>
    engine.stats().collections.find((stats) => stats.name === name)?.runs ?? [];
  assert.equal(runsOf('words').length, 1);
  assert.ok(runsOf('words')[0].rows <= 52, `${runsOf('words')[0].rows} rows`);
  assert.equal([...words.keys()].length, 47);
  await engine.compact();
  for (const { runs } of engine.stats().collections) assert.ok(runs.length <= 1);
  assert.equal(runsOf('all')[0].rows, 300);
  await engine.compact();
  await assert.rejects(async () => engine.compact('words' as never), TypeError);
});

inBothHosts('a compaction tells how far it is, and stops when its signal aborts', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', { key: 'u64' });
  const fill = async (rounds: number): Promise<void> => {
    for (let round = 0; round < rounds; round++) {
      await Promise.all(Array.from({ length: 500 }, (_, i) => words.put(i, `${round}`)));
      await engine.flush();
    }
  };
  await fill(3);
  const told: { rows: number; runs: number }[] = [];
  await engine.compact(words, { onProgress: (progress) => told.push(progress) });
  assert.equal(told.at(-1)?.runs, 1);
  assert.ok((told.at(-1)?.rows ?? 0) >= 1_500, `${told.at(-1)?.rows} rows`);

  await fill(3);
  const reason = new Error('enough');
  const controller = new AbortController();
  const { signal } = controller;
  const compaction = engine.compact(words, { signal });
  const other = engine.compact(words);
  setImmediate(() => controller.abort(reason));
  await assert.rejects(compaction, reason);
  await other;
  await assert.rejects(engine.compact(words, { signal }), reason);
  const runs = engine.stats().collections.find(({ name }) => name === 'words')?.runs;
  assert.equal(runs?.length, 1, 'whoever else waits is not let down');
  assert.equal(words.getSync(7), '2');
  await quiet(engine);
  assert.equal(engine.stats().keeper['jobsFailed'], 0);
  for (const bad of [null, 1, { onProgress: 1 }, { signal: 1 }, { foo: 1 }]) {
    await assert.rejects(engine.compact(words, bad as never), TypeError);
  }
});

inBothHosts('stats has the documented keys and is plain data', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  await engine.flush();
  words.getSync('a');
  await quiet(engine);
  const stats = engine.stats();
  assert.deepEqual(structuredClone(stats), stats);
  assert.deepEqual(Object.keys(stats).toSorted(), [
    'appliedUpper',
    'client',
    'collections',
    'compactor',
    'durability',
    'durableUpper',
    'evictor',
    'feeds',
    'flushedUpper',
    'holds',
    'keeper',
    'log',
    'memory',
    'sealed',
    'sequencer',
    'spine',
    'stalls',
    'state',
    'upper',
    'waitingTransactions',
    'workWaiting',
  ]);
  assert.equal(stats.state, 'open');
  assert.equal(stats.upper, engine.upper);
  assert.equal(stats.durableUpper, engine.durableUpper);
  await until('published', () => {
    const { sequencer, durability } = engine.stats();
    const { upper } = engine;
    return sequencer['transactions'] === upper && durability['transactions'] === upper;
  });
  assert.ok(stats.client['reads'] >= 1);
  assert.ok(stats.memory.arenaBytes >= 64 << 20);
  for (const part of [
    stats.sequencer,
    stats.durability,
    stats.keeper,
    stats.compactor,
    stats.evictor,
    stats.client,
  ]) {
    for (const [name, value] of Object.entries(part)) assert.equal(typeof value, 'number', name);
  }
});

inBothHosts(
  'with no room commits wait, then are refused, and room says when to go on',
  async (home) => {
    const engine = await home.open();
    const rows = await engine.collection('rows', { key: 'u64', value: 'buffer' });
    await engine.room();
    const value = Buffer.alloc(3_000);
    const puts: Promise<Receipt>[] = [];
    let refusals = 0;
    for (let key = 0; refusals < 3; key++) {
      assert.ok(key < 100_000, 'never full');
      const put = rows.put(key, value);
      puts.push(put);
      // A turn would let the engine work: the waiting side is asked instead.
      if (engine.stats().waitingTransactions === 0) continue;
      let refused = false;
      const tx = engine.transaction().put(rows, key, value);
      const committed = tx.commit().catch((error: unknown) => {
        coded('TIDEMARK_BUSY')(error);
        refused = true;
      });
      await Promise.resolve();
      await Promise.resolve();
      await Promise.resolve();
      if (!refused) {
        puts.push(committed as Promise<Receipt>);
        continue;
      }
      refusals++;
      // Nothing was claimed: the same transaction is committed when there is room.
      await engine.room();
      const again = tx.commit();
      await again;
      assert.equal(engine.stats().waitingTransactions, 0);
    }
    await Promise.allSettled(puts);
  },
);

inBothHosts('descriptors and pages come back', async (home) => {
  // The first engine brings threads, pipes and whatever else stays with them.
  await (await home.open()).close();
  const before = openFiles();
  for (let life = 0; life < 3; life++) {
    const engine = await home.open();
    const words = await engine.collection('words', {});
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 50; i++) void words.put(`${i}`, 'x'.repeat(1_000));
      await engine.flush();
      await words.get('1');
    }
    await engine.compact();
    await engine.close();
    assert.deepEqual(openFiles(), before);
  }
  const engine = await home.open();
  const words = await engine.collection('words');
  const used = (): number[] => {
    const { recordBytes, memtableBytes, viewBytes } = engine.stats().memory;
    return [recordBytes, memtableBytes, viewBytes];
  };
  const fill = async (rounds: number): Promise<void> => {
    for (let round = 0; round < rounds; round++) {
      for (let i = 0; i < 50; i++) void words.put(`${i}`, 'x'.repeat(1_000));
      await engine.flush();
    }
    await engine.compact();
    await quiet(engine);
  };
  // With the spare that the second generation needs.
  await fill(2);
  const base = used();
  await fill(20);
  // Pages are let go of when the readers of their time have left.
  await until(
    'pages come back',
    () => used().every((bytes, kind) => bytes <= base[kind]),
    () => `${used().join()}, at first ${base.join()}`,
  );
});
