/**
 * Goal: transactions that read and write are serializable, in the order of their offsets: no lost update, no
 * write skew, no phantom. Method: each of the three on its own, then random transactions at once, their
 * reads replayed in the order of commits; the same without checks must show anomalies. Both hosts.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open as openEngine } from '../../actors/index.ts';
import type { Codec, Collection, Engine, TransactionScope } from '../../actors/index.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { SimDisk } from '../sim/disk.ts';
import { coded, inBothHosts, misuse, quiet } from './world.ts';

type Counters = Collection<string, number>;

async function countersOf(engine: Engine, name = 'counters'): Promise<Counters> {
  return engine.collection<
    'utf8',
    { name: 'n'; encode(n: number): Uint8Array; decode(b: Uint8Array): number }
  >(name, {
    key: 'utf8',
    value: {
      name: 'n',
      encode: (n) => Buffer.from(String(n)),
      decode: (bytes) => Number(Buffer.from(bytes).toString()),
    },
  });
}

inBothHosts('no update is lost, however many want one row at once', async (home) => {
  await using engine = await home.open();
  const counters = await countersOf(engine);
  const results = await Promise.all(
    Array.from({ length: 60 }, () =>
      engine.transact(async (tx) => {
        const n = tx.getSync(counters, 'n') ?? 0;
        if (n % 3 === 0) await Promise.resolve();
        tx.put(counters, 'n', n + 1);
        return n + 1;
      }),
    ),
  );
  assert.equal(counters.getSync('n'), 60);
  assert.deepEqual(
    results.toSorted((a, b) => a - b),
    Array.from({ length: 60 }, (_, i) => i + 1),
  );
});

inBothHosts('of those that commit in one turn only who conflicts runs again', async (home) => {
  await using engine = await home.open();
  const counters = await countersOf(engine);
  const runs = new Map<string, number>();
  // On its way, and so in front of those that do not see it yet.
  const before = counters.put('b', 10);
  const keys = ['a', 'b', 'c', 'd'];
  const after = keys.map((key) =>
    engine.transact((tx) => {
      runs.set(key, (runs.get(key) ?? 0) + 1);
      tx.put(counters, key, (tx.getSync(counters, key) ?? 0) + 1);
    }),
  );
  await Promise.all([before, ...after]);
  assert.deepEqual(counters.getManySync(keys), [1, 11, 1, 1]);
  assert.deepEqual(Object.fromEntries(runs), { a: 1, b: 2, c: 1, d: 1 });
});

inBothHosts('no write skew: who reads what another writes is run again', async (home) => {
  await using engine = await home.open();
  const counters = await countersOf(engine);
  for (let round = 0; round < 10; round++) {
    await engine.transaction().put(counters, 'a', 1).put(counters, 'b', 1).commit();
    // Each may take one, as long as one is left.
    const take = (mine: string): Promise<boolean> =>
      engine.transact((tx) => {
        const sum = (tx.getSync(counters, 'a') ?? 0) + (tx.getSync(counters, 'b') ?? 0);
        if (sum < 2) return false;
        tx.put(counters, mine, 0);
        return true;
      });
    const taken = await Promise.all([take('a'), take('b'), take('a'), take('b')]);
    assert.equal(taken.filter(Boolean).length, 1);
    assert.equal((counters.getSync('a') ?? 0) + (counters.getSync('b') ?? 0), 1);
  }
});

inBothHosts('no phantom: a row that comes into a range that was read counts', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  const add = (): Promise<number> =>
    engine.transact((tx) => {
      const count = Array.from(tx.keys(rows, { gte: 'k', lt: 'l' })).length;
      tx.put(rows, `k${String(count).padStart(4, '0')}`, count);
      return count;
    });
  const counts = await Promise.all(Array.from({ length: 30 }, add));
  assert.deepEqual(
    counts.toSorted((a, b) => a - b),
    Array.from({ length: 30 }, (_, i) => i),
  );
  assert.equal(Array.from(rows.keys()).length, 30);
});

inBothHosts('what is absent counts as read, and a row deleted in between too', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  await rows.put('there', 1);
  for (const meddle of [() => rows.put('absent', 1), () => rows.delete('there')]) {
    let runs = 0;
    await engine.transact(async (tx) => {
      runs++;
      tx.put(
        rows,
        'seen',
        (tx.hasSync(rows, 'absent') ? 1 : 0) + (tx.hasSync(rows, 'there') ? 2 : 0),
      );
      if (runs === 1) await meddle();
    });
    assert.equal(runs, 2);
  }
  assert.equal(rows.getSync('seen'), 1);
});

type Reads = (tx: TransactionScope) => unknown;

/** How often a transact runs that reads, and then writes, where somebody meddles once in between. */
async function runsOf(
  engine: Engine,
  rows: Counters,
  read: Reads,
  meddle: () => Promise<unknown>,
): Promise<number> {
  let runs = 0;
  await engine.transact(async (tx) => {
    runs++;
    read(tx);
    tx.put(rows, 'zz', runs);
    if (runs === 1) await meddle();
  });
  return runs;
}

inBothHosts('of a range only what was walked over counts', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  for (const key of ['b', 'd', 'f']) await rows.put(key, 0);
  const runsWith = (read: Reads, meddle: () => Promise<unknown>): Promise<number> =>
    runsOf(engine, rows, read, meddle);
  const first = (tx: TransactionScope): unknown => Array.from(tx.entries(rows, { limit: 1 }));
  assert.equal(await runsWith(first, () => rows.put('c', 0)), 1, 'behind it');
  assert.equal(await runsWith(first, () => rows.put('a', 0)), 2, 'before it');
  const last = (tx: TransactionScope): unknown =>
    tx.keys(rows, { lt: 'e', reverse: true }).next().value;
  assert.equal(await runsWith(last, () => rows.put('c', 1)), 1, 'behind it, backward');
  assert.equal(await runsWith(last, () => rows.put('dd', 1)), 2, 'before it, backward');
  const broken = (tx: TransactionScope): unknown => {
    for (const key of tx.keys(rows)) if (key === 'b') return key;
    return undefined;
  };
  assert.equal(await runsWith(broken, () => rows.put('bb', 1)), 1, 'behind a loop that ended');
  const whole = (tx: TransactionScope): unknown => Array.from(tx.values(rows, { prefix: 'c' }));
  assert.equal(await runsWith(whole, () => rows.put('d', 2)), 1, 'beside it');
  assert.equal(await runsWith(whole, () => rows.put('cz', 2)), 2, 'in it');
  assert.equal(await runsWith(whole, () => rows.delete('cz')), 2, 'gone from it');
});

inBothHosts('so it is of what was read before memory was flushed', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  const bag = await engine.collection('bag', { kind: 'multiset', key: 'utf8', value: 'utf8' });
  for (const key of ['b', 'd', 'f']) await rows.put(key, 0);
  for (const key of ['b', 'd']) await bag.update(key, 'x', 1);
  await engine.flush();
  const runsWith = (read: Reads, meddle: () => Promise<unknown>): Promise<number> =>
    runsOf(engine, rows, read, async () => {
      await meddle();
      // The memory that could tell what has come since is given back.
      await engine.flush();
      await rows.put('z', 1);
      await engine.flush();
    });
  const range = (tx: TransactionScope): unknown => Array.from(tx.keys(rows, { gte: 'c', lt: 'e' }));
  assert.equal(await runsWith(range, () => rows.put('b', 1)), 1, 'beside it');
  assert.equal(await runsWith(range, () => rows.deleteRange({ gte: 'e' })), 1, 'removed beside it');
  assert.equal(await runsWith(range, () => rows.put('dd', 1)), 2, 'in it');
  assert.equal(await runsWith(range, () => rows.delete('dd')), 2, 'gone from it');
  assert.equal(await runsWith(range, () => rows.deleteRange({ lt: 'e' })), 2, 'removed with more');
  const pairs = (tx: TransactionScope): unknown => tx.getSync(bag, 'b');
  assert.equal(await runsWith(pairs, () => bag.update('d', 'x', 1)), 1, 'another key');
  assert.equal(await runsWith(pairs, () => bag.update('b', 'y', 1)), 2, 'another value');
  assert.equal(await runsWith(pairs, () => bag.update('b', 'x', -1)), 2, 'one fewer');
  const all = (tx: TransactionScope): unknown => Array.from(tx.keys(rows, { lt: 'zy' }));
  assert.equal(await runsWith(all, () => bag.update('d', 'x', 1)), 2, 'a row in all of them');
});

test('a look that fails at the disk ends the transact that it was for, and none beside it', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  await using engine = await openEngine('/sim', {
    threads: 0,
    memoryBytes: 64 * MiB,
    storage: { storage: disk, clock },
  });
  const out = await countersOf(engine, 'out');
  const names = ['a', 'b', 'c'];
  const read = await Promise.all(names.map((name) => countersOf(engine, name)));
  for (const rows of read) {
    await rows.put('k', 1);
    await engine.flush();
  }
  let go!: () => void;
  const gate = new Promise<void>((resolve) => {
    go = resolve;
  });
  const runs: string[] = [];
  const all = read.map((rows, i) =>
    engine.transact(async (tx) => {
      runs.push(names[i]);
      void Array.from(tx.keys(rows, { lt: 'm' }));
      await gate;
      tx.put(out, names[i], 1);
    }),
  );
  // Beside what they read; then the memory that could tell so is given back, and they must look again.
  for (const rows of read) await rows.put('z', 1);
  await engine.flush();
  await quiet(engine);
  let reads = 0;
  disk.fault = ({ call }) =>
    call === 'read' && reads++ === 0 ? { kind: 'throw', code: 'EIO' } : undefined;
  go();
  const settled = await Promise.allSettled(all);
  const [first, ...others] = settled;
  assert.equal(first.status, 'rejected');
  assert.match(String(first.reason), /EIO/);
  assert.deepEqual(
    others.map(({ status }) => status),
    ['fulfilled', 'fulfilled'],
  );
  assert.deepEqual(runs, names, 'none ran again');
  assert.deepEqual(Array.from(out.keys()), ['b', 'c']);
});

test('of a range that memory cannot tell of only what was written since is looked at again, up to 1 MiB', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  await using engine = await openEngine('/sim', {
    threads: 0,
    memoryBytes: 64 * MiB,
    storage: { storage: disk, clock },
  });
  const rows = await engine.collection('rows', { key: 'utf8', value: 'utf8' });
  const key = (i: number): string => `k${String(i).padStart(3, '0')}`;
  const tx = engine.transaction();
  for (let i = 0; i < 400; i++) tx.put(rows, key(i), 'v'.repeat(8 * KiB));
  await tx.commit();
  await engine.flush();
  /** Runs of a transact that reads up to row `end`, and bytes that are read when it commits. */
  const lookOver = async (end: number, meddle: () => Promise<unknown>): Promise<number[]> => {
    let runs = 0;
    let bytes = 0;
    await engine.transact(async (walk) => {
      runs++;
      for (const row of walk.keys(rows, { lt: key(end) })) void row;
      walk.put(rows, 'out', `${runs}`);
      if (runs > 1) return;
      await meddle();
      await engine.flush();
      await quiet(engine);
      disk.fault = ({ call, length }) => {
        if (call === 'read' && runs === 1) bytes += length;
        return undefined;
      };
    });
    disk.fault = undefined;
    return [runs, bytes];
  };
  const [calm, few] = await lookOver(400, () => rows.put('z', '1'));
  assert.equal(calm, 1, 'nothing in it has changed');
  assert.ok(few < 64 * KiB, `${few} bytes were read`);
  const [met] = await lookOver(400, () => rows.put(key(399), '1'));
  assert.equal(met, 2, 'the last row has changed');
  const [removed] = await lookOver(400, () => rows.deleteRange({ gte: key(399), lt: 'l' }));
  assert.equal(removed, 2, 'the last row has gone');
  // All of it is written anew, the times of what did not change as they were.
  const merged = async (): Promise<void> => {
    await rows.put(key(395), '1');
    await engine.compact(rows);
  };
  const [small, some] = await lookOver(100, merged);
  assert.equal(small, 1, 'what changed beside it does no harm');
  assert.ok(some > 0.5 * MiB, `${some} bytes were read`);
  const [large, most] = await lookOver(390, merged);
  assert.equal(large, 2, 'more than that is not looked at');
  assert.ok(most < 1.5 * MiB, `${most} bytes were read`);
});

inBothHosts('it sees what it has written itself', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  for (const [i, key] of ['a', 'b', 'c', 'd'].entries()) await rows.put(key, i);
  await engine.transact(async (tx) => {
    tx.put(rows, 'b', 10)
      .delete(rows, 'c')
      .put(rows, 'bb', 11)
      .put(rows, 'e', 12)
      .delete(rows, 'f');
    tx.put(rows, 'e', 13);
    assert.equal(tx.getSync(rows, 'b'), 10);
    assert.equal(await tx.get(rows, 'c'), undefined);
    assert.equal(tx.hasSync(rows, 'f'), false);
    assert.deepEqual(await tx.getMany(rows, ['a', 'c', 'e']), [0, undefined, 13]);
    assert.equal(tx.getEntrySync(rows, 'e')?.offset, undefined);
    assert.equal(typeof tx.getEntrySync(rows, 'a')?.offset, 'number');
    const all = [
      ['a', 0],
      ['b', 10],
      ['bb', 11],
      ['d', 3],
      ['e', 13],
    ];
    assert.deepEqual(Array.from(tx.entries(rows)), all);
    assert.deepEqual(Array.from(tx.entries(rows, { reverse: true })), all.toReversed());
    assert.deepEqual(Array.from(tx.entries(rows, { gt: 'a', limit: 2 })), all.slice(1, 3));
    const later = [];
    const walk = tx.keys(rows, { gte: 'd' });
    tx.put(rows, 'dd', 1);
    for await (const key of walk) later.push(key);
    assert.deepEqual(later, ['d', 'e'], 'not what was written after the call');
  });
  assert.deepEqual(Array.from(rows.keys()), ['a', 'b', 'bb', 'd', 'dd', 'e']);
});

inBothHosts('without writes it commits nothing, and reads one offset', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  await rows.put('a', 1);
  const { upper } = engine;
  const seen = await engine.transact(async (tx) => {
    const before = tx.getSync(rows, 'a');
    await rows.put('a', 2);
    return [before, tx.getSync(rows, 'a'), await tx.get(rows, 'a'), tx.offset];
  });
  assert.deepEqual(seen, [1, 1, 1, upper - 1]);
  assert.equal(engine.upper, upper + 1);
});

inBothHosts('what runs at once shares a hold, gone when the last has ended', async (home) => {
  await using engine = await home.open();
  const counters = await countersOf(engine);
  await counters.put('n', 1);
  const gates = [0, 1, 2].map(() => {
    let open!: () => void;
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    return { open, opened };
  });
  const running = gates.map(({ opened }) =>
    engine.transact(async (tx) => {
      await opened;
      return tx.getSync(counters, 'n');
    }),
  );
  await counters.put('n', 2);
  for (const [i, { open }] of gates.entries()) {
    const { list } = engine.stats().holds;
    assert.deepEqual(
      list.map(({ owner }) => owner),
      ['transact'],
    );
    open();
    assert.equal(await running[i], 1);
  }
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts(
  'keys of multisets are read with what it wrote itself, and are checked',
  async (home) => {
    await using engine = await home.open();
    const bag = await engine.collection('bag', { kind: 'multiset', key: 'utf8', value: 'utf8' });
    await bag.update('a', 'x', 2);
    await bag.update('a', 'y', 1);
    await bag.update('b', 'x', 1);
    await engine.flush();
    await bag.update('a', 'y', 4);
    await engine.transact(async (tx) => {
      const before = [
        ['x', 2],
        ['y', 5],
      ];
      assert.deepEqual(tx.getSync(bag, 'a'), before);
      assert.deepEqual(await tx.get(bag, 'a'), before);
      assert.equal(tx.countSync(bag, 'a'), 7);
      assert.equal(await tx.count(bag, 'none'), 0);
      assert.deepEqual([tx.hasSync(bag, 'none'), await tx.has(bag, 'b')], [false, true]);
      assert.deepEqual(await tx.getMany(bag, ['b', 'none']), [[['x', 1]], []]);
      tx.update(bag, 'a', 'x', -2).update(bag, 'a', 'z', 1);
      const own = [
        ['y', 5],
        ['z', 1],
      ];
      assert.deepEqual(tx.getManySync(bag, ['a', 'b']), [own, [['x', 1]]]);
      assert.deepEqual(await tx.get(bag, 'a'), own);
      tx.deleteRange(bag, { gte: 'a', lt: 'b' });
      assert.equal(tx.countSync(bag, 'a'), 0);
      tx.update(bag, 'a', 'w', 3);
      assert.deepEqual(tx.getSync(bag, 'a'), [['w', 3]]);
      assert.equal(tx.countSync(bag, 'b'), 1);
    });
    assert.deepEqual(bag.getSync('a'), [['w', 3]]);
    const given = bag as unknown as Counters;
    const refused: ((tx: TransactionScope) => unknown)[] = [
      (tx) => tx.getEntrySync(given, 'a'),
      (tx) => tx.entries(given),
      (tx) => tx.keys(given),
      (tx) => tx.values(given),
    ];
    for (const read of refused) {
      await assert.rejects(engine.transact(read), misuse(/bag is a multiset/));
    }
  },
);

inBothHosts(
  'no count of a multiset is lost, and a key that nobody read may change',
  async (home) => {
    await using engine = await home.open();
    const bag = await engine.collection('bag', { kind: 'multiset', key: 'utf8', value: 'utf8' });
    await bag.update('stock', 'item', 30);
    // As many as there are may be taken, however many want one at once.
    const taken = await Promise.all(
      Array.from({ length: 50 }, (_, i) =>
        engine.transact(
          async (tx) => {
            const count = i % 2 === 0 ? tx.countSync(bag, 'stock') : await tx.count(bag, 'stock');
            if (count === 0) return false;
            tx.update(bag, 'stock', 'item', -1).update(bag, `of ${i}`, 'item', 1);
            return true;
          },
          { retries: 100 },
        ),
      ),
    );
    assert.equal(taken.filter(Boolean).length, 30);
    assert.deepEqual(bag.getSync('stock'), []);
    let runs = 0;
    await engine.transact(async (tx) => {
      runs++;
      tx.hasSync(bag, 'read');
      if (runs === 1) await bag.update('reaD', 'v', 1);
      tx.update(bag, 'out', 'v', 1);
    });
    assert.equal(runs, 1, 'another key is no conflict');
    runs = 0;
    await engine.transact(async (tx) => {
      const found = tx.getSync(bag, 'read');
      if (++runs === 1) await bag.update('read', 'v', 1);
      tx.update(bag, 'out', `saw ${found.length}`, 1);
    });
    assert.equal(runs, 2);
    assert.deepEqual(
      bag.getSync('out').map(([value]) => value),
      ['saw 1', 'v'],
    );
  },
);

inBothHosts('what the function throws ends it, and nothing is written', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  const { upper } = engine;
  const own = new Error('own');
  await assert.rejects(
    engine.transact((tx) => {
      tx.put(rows, 'a', 1);
      throw own;
    }),
    own,
  );
  assert.equal(engine.upper, upper);
  let kept: TransactionScope | undefined;
  await engine.transact((tx) => {
    kept = tx;
    assert.throws(() => tx.commit(), misuse(/commits by itself/));
    assert.throws(() => engine.tryCommit(tx), misuse(/commits by itself/));
  });
  assert.throws(() => kept?.getSync(rows, 'a'), misuse(/is over/));
  assert.throws(() => kept?.put(rows, 'a', 1), misuse(/has been committed/));
});

inBothHosts('after so many conflicts it gives up; a signal ends it sooner', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  let runs = 0;
  const meddled = async (tx: TransactionScope): Promise<void> => {
    runs++;
    const n = tx.getSync(rows, 'a') ?? 0;
    await rows.put('a', n + 100);
    tx.put(rows, 'a', n + 1);
  };
  await assert.rejects(
    engine.transact(meddled, { retries: 5 }),
    coded('TIDEMARK_CONFLICT', { collection: 'counters', key: 'a' }),
  );
  assert.equal(runs, 6);
  runs = 0;
  await assert.rejects(engine.transact(meddled, { retries: 0 }), coded('TIDEMARK_CONFLICT'));
  assert.equal(runs, 1);
  const reason = new Error('enough');
  const controller = new AbortController();
  await assert.rejects(
    engine.transact(
      async (tx) => {
        if (++runs === 4) controller.abort(reason);
        await meddled(tx);
      },
      { retries: 1_000, signal: controller.signal },
    ),
    reason,
  );
  await assert.rejects(
    engine.transact(() => 1, { signal: AbortSignal.abort(reason) }),
    reason,
  );
  await assert.rejects(engine.transact(1 as never), misuse(/function/));
  await assert.rejects(
    engine.transact(() => 1, { retries: -1 }),
    misuse(/retries/),
  );
  await assert.rejects(
    engine.transact(() => 1, { twice: 1 } as never),
    misuse(/twice/),
  );
});

inBothHosts('so much may be read that one condition stands for a collection', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine);
  const other = await countersOf(engine, 'other');
  const keys = Array.from({ length: 5_000 }, (_, i) => `key ${i} ${'x'.repeat(40)}`);
  let runs = 0;
  const readAll = (meddle: () => Promise<unknown>): Promise<void> =>
    engine.transact(async (tx) => {
      runs++;
      tx.getManySync(rows, keys);
      tx.put(rows, 'sum', tx.getSync(other, 'one') ?? 0);
      if (runs === 1) await meddle();
    });
  await readAll(() => rows.put('none of them', 1));
  assert.equal(runs, 2, 'coarser: any change of the collection counts');
  runs = 0;
  await readAll(() => other.put('two', 1));
  assert.equal(runs, 1, 'of the other collection rows are still told apart');
});

// ---------------------------------------------------------------- the history checker

type Read =
  | { key: string; value: number | undefined }
  | { lower: string; upper: string; rows: [string, number][] };
type Done = { reads: Read[]; writes: Map<string, number | undefined>; offset: number };

const KEYS = 12;

/** One random transaction over a few rows; what it read and wrote. */
function plan(
  prng: Prng,
): (read: {
  get: (key: string) => number | undefined;
  range: (lower: string, upper: string) => [string, number][];
}) => Pick<Done, 'reads' | 'writes'> {
  const key = (): string => `k${String(prng.below(KEYS)).padStart(2, '0')}`;
  const steps = Array.from({ length: prng.between(1, 4) }, () => ({
    kind: prng.pick(['get', 'get', 'range', 'put', 'put', 'delete'] as const),
    a: key(),
    b: key(),
    n: prng.below(1_000),
  }));
  return ({ get, range }) => {
    const reads: Read[] = [];
    const writes = new Map<string, number | undefined>();
    let sum = 0;
    for (const { kind, a, b, n } of steps) {
      const [lower, upper] = a < b ? [a, b] : [b, a];
      if (kind === 'get') {
        if (writes.has(a)) continue;
        const value = get(a);
        reads.push({ key: a, value });
        sum += value ?? 0;
      } else if (kind === 'range') {
        // Own writes are another test's.
        if ([...writes.keys()].some((own) => own >= lower && own < upper)) continue;
        const rows = range(lower, upper);
        reads.push({ lower, upper, rows });
        sum += rows.length;
      } else {
        writes.set(a, kind === 'put' ? (sum + n) % 10_000 : undefined);
      }
    }
    return { reads, writes };
  };
}

/** The first transaction whose reads are not those of its place in the order. */
function anomalies(done: readonly Done[]): number {
  const state = new Map<string, number>();
  let found = 0;
  for (const { reads, writes } of done.toSorted((a, b) => a.offset - b.offset)) {
    for (const read of reads) {
      const isSame =
        'key' in read
          ? state.get(read.key) === read.value
          : JSON.stringify(read.rows) ===
            JSON.stringify(
              [...state]
                .filter(([key]) => key >= read.lower && key < read.upper)
                .toSorted(([a], [b]) => (a < b ? -1 : 1)),
            );
      if (!isSame) found++;
    }
    for (const [key, value] of writes) {
      if (value === undefined) state.delete(key);
      else state.set(key, value);
    }
  }
  return found;
}

inBothHosts('random transactions at once are as one after the other', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine, 'rows');
  const marks = await countersOf(engine, 'marks');
  const prng = new Prng(77);
  const done: Done[] = [];
  let next = 0;
  let runs = 0;
  const worker = async (): Promise<void> => {
    while (next < 600) {
      const id = next++;
      const run = plan(prng);
      const isSlow = prng.chance(0.3);
      let last: Pick<Done, 'reads' | 'writes'> | undefined;
      await engine.transact(
        async (tx) => {
          runs++;
          last = run({
            get: (key) => tx.getSync(rows, key),
            range: (lower, upper) => Array.from(tx.entries(rows, { gte: lower, lt: upper })),
          });
          if (isSlow) await rows.get('k00');
          for (const [key, value] of last.writes) {
            if (value === undefined) tx.delete(rows, key);
            else tx.put(rows, key, value);
          }
          tx.put(marks, `${id}`, id);
        },
        { retries: 1_000 },
      );
      const offset = marks.getEntrySync(`${id}`)?.offset ?? -1;
      done.push({ ...last!, offset });
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  assert.equal(done.length, 600);
  assert.ok(runs > 620, `${runs} runs: there were conflicts`);
  assert.equal(anomalies(done), 0);
});

inBothHosts('the checker sees what happens without checks', async (home) => {
  await using engine = await home.open();
  const rows = await countersOf(engine, 'rows');
  const prng = new Prng(78);
  const done: Done[] = [];
  const worker = async (): Promise<void> => {
    while (done.length < 300) {
      using snapshot = engine.snapshot();
      const planned = plan(prng)({
        get: (key) => rows.getSync(key, { snapshot }),
        range: (gte, lt) => Array.from(rows.entries({ gte, lt, snapshot })),
      });
      const tx = engine.transaction();
      for (const [key, value] of planned.writes) {
        if (value === undefined) tx.delete(rows, key);
        else tx.put(rows, key, value);
      }
      if (tx.size === 0) continue;
      const { offset } = await tx.commit();
      done.push({ ...planned, offset });
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  assert.ok(anomalies(done) > 0, 'snapshots alone are not serializable');
});

inBothHosts('whatever becomes of a walk, a transact that is over holds nothing', async (home) => {
  const engine = await home.open();
  let isBad = false;
  const badAtTimes: Codec<string> = {
    name: 'bad at times',
    encode: (text) => Buffer.from(text),
    decode(bytes) {
      if (isBad) throw new Error('bad');
      return Buffer.from(bytes).toString();
    },
  };
  const rows = await engine.collection('rows', { key: 'utf8', value: badAtTimes });
  for (let i = 0; i < 40; i++) void rows.put(`k${i}`, 'v');
  await rows.put('last', 'v');
  const read = async (tx: TransactionScope): Promise<void> => {
    for await (const row of tx.entries(rows)) void row;
  };
  isBad = true;
  await assert.rejects(
    engine.transact((tx) => [...tx.entries(rows)]),
    /bad/,
  );
  await assert.rejects(engine.transact(read), /bad/);
  isBad = false;
  const left = await engine.transact((tx) => {
    const walk = tx.entries(rows);
    walk.next();
    return [walk];
  });
  assert.throws(() => [...left[0]], misuse(/transaction is over/));
  assert.deepEqual(engine.stats().holds.list, []);
});
