/**
 * Goal: a commit with conditions happens where they hold, or not at all: whatever is visible, under way,
 * flushed or waiting for room when it is made. Method: cases one by one in both hosts, then many random
 * commits at once, each checked at its place in the order against a naive map.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import { Reader } from '../../actors/reader.ts';
import type { Collection, Condition, Engine, Receipt, TidemarkError } from '../../actors/index.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { SimDisk } from '../sim/disk.ts';
import { Home, coded, inBothHosts, inHost, misuse, quiet, until } from './world.ts';

type Words = Collection<string, string>;

async function openWords(home: Home): Promise<{ engine: Engine; words: Words }> {
  const engine = await home.open();
  return { engine, words: await engine.collection('words', {}) };
}

function at(collection: Words, key: string, offset: number | null): { expect: Condition[] } {
  return { expect: [{ collection, key, offset }] };
}

const conflict = (key: string, offset: number | null): ((error: unknown) => true) =>
  coded('TIDEMARK_CONFLICT', { collection: 'words', key, offset });

/** The counter of the sequencer, which is published when it sleeps. */
async function counted(engine: Engine, name: string, least: number): Promise<number> {
  await until(`${name} >= ${least}`, () => engine.stats().sequencer[name] >= least);
  return engine.stats().sequencer[name];
}

inBothHosts('a commit whose condition on a row holds is made, else it is refused', async (home) => {
  const { engine, words } = await openWords(home);
  const { offset: first } = await words.put('a', '1');
  const { offset: second } = await words.put('a', '2', at(words, 'a', first));
  assert.equal(second, first + 1);
  await assert.rejects(words.put('a', '3', at(words, 'a', first)), conflict('a', second));
  await assert.rejects(words.delete('a', at(words, 'a', first)), conflict('a', second));
  const tx = engine.transaction().put(words, 'b', '1').delete(words, 'a');
  await assert.rejects(tx.commit(at(words, 'a', second + 7)), conflict('a', second));
  assert.equal(engine.upper, second + 1);
  assert.deepEqual([...words.entries()], [['a', '2']]);
  const { offset: third } = await words.delete('a', at(words, 'a', second));
  assert.equal(third, second + 1);
  assert.equal(words.hasSync('a'), false);
});

inBothHosts('null is a row that is absent, never there or deleted', async (home) => {
  const { words } = await openWords(home);
  const { offset: first } = await words.put('a', '1', at(words, 'a', null));
  await assert.rejects(words.put('a', '2', at(words, 'a', null)), conflict('a', first));
  await words.delete('a');
  await assert.rejects(words.put('a', '2', at(words, 'a', first)), conflict('a', null));
  await words.put('a', '3', at(words, 'a', null));
  assert.equal(words.getSync('a'), '3');
});

inBothHosts('unchangedSince holds while nothing in the collection changed', async (home) => {
  const { engine, words } = await openWords(home);
  const others = await engine.collection('others', {});
  const since = (unchangedSince: number): { expect: Condition[] } => ({
    expect: [{ collection: words, unchangedSince }],
  });
  await words.put('a', '1', since(engine.upper - 1));
  const { offset } = await words.put('b', '1');
  await others.put('a', '1');
  await others.put('b', '1', since(offset));
  await others.put('b', '2', since(words.touched - 1));
  await others.put('b', '3', since(Number.MAX_SAFE_INTEGER));
  const changed = coded('TIDEMARK_CONFLICT', { collection: 'words', offset });
  await assert.rejects(others.put('b', '4', since(offset - 1)), changed);
  await engine.flush();
  await assert.rejects(others.put('b', '4', since(offset - 1)), changed);
  await others.put('b', '4', since(offset));
  // A deletion of what is not there is a change of the collection all the same.
  const { offset: deleted } = await words.delete('z');
  await assert.rejects(
    others.put('b', '5', since(offset)),
    coded('TIDEMARK_CONFLICT', { collection: 'words', offset: deleted }),
  );
});

// Inline nothing moves within a turn; on threads some of it may be visible before the turn ends.
inHost(
  'inline',
  'what is under way counts: a commit that is not visible yet conflicts',
  async (home) => {
    const { engine, words } = await openWords(home);
    const { offset: old } = await words.put('a', '1');
    const lower = engine.upper;
    const settled = await Promise.allSettled([
      words.put('a', '2'),
      words.put('a', '3', at(words, 'a', old)),
      words.put('b', '1'),
      words.put('b', '2', at(words, 'b', null)),
      words.put('b', '3', { expect: [{ collection: words, unchangedSince: old }] }),
      words.delete('b'),
      words.put('b', '4', at(words, 'b', null)),
      words.put('c', '1'),
    ]);
    const told = settled.map((s) =>
      s.status === 'fulfilled' ? s.value.offset - lower : (s.reason as TidemarkError).detail,
    );
    assert.deepEqual(told, [
      0,
      { collection: 'words', key: 'a', offset: lower },
      1,
      { collection: 'words', key: 'b', offset: lower + 1 },
      { collection: 'words', offset: lower + 1 },
      2,
      // What was put and deleted meanwhile is absent.
      3,
      4,
    ]);
    assert.equal(engine.upper, lower + 5);
    assert.deepEqual(
      [...words.entries()],
      [
        ['a', '2'],
        ['b', '4'],
        ['c', '1'],
      ],
    );
    assert.equal(await counted(engine, 'refused', 3), 3);
  },
);

inBothHosts(
  'a refused record leaves no gap between plain ones, nor after reopening',
  async (home) => {
    const { engine, words } = await openWords(home);
    const lower = engine.upper;
    const offsets: number[] = [];
    const all: Promise<unknown>[] = [];
    let refused = 0;
    for (let i = 0; i < 100; i++) {
      all.push(words.put(`k${i % 10}`, `${i}`).then(({ offset }) => offsets.push(offset)));
      const put = words.put(`k${i % 10}`, 'never', at(words, `k${i % 10}`, null));
      all.push(put.catch(() => refused++));
    }
    await Promise.all(all);
    assert.equal(refused, 100);
    assert.deepEqual(
      offsets,
      Array.from({ length: 100 }, (_, i) => lower + i),
    );
    assert.equal(engine.upper, lower + 100);
    // On threads the client may have seen by itself what conflicts.
    if (home.host === 'inline') assert.equal(await counted(engine, 'refused', 100), 100);
    await engine.close();
    const again = await home.open();
    const found = await again.collection('words');
    assert.equal(again.upper, lower + 100);
    assert.deepEqual(
      [...found.values()],
      Array.from({ length: 10 }, (_, i) => `${90 + i}`),
    );
  },
);

inBothHosts('a deletion that was merged away is a change all the same', async (home) => {
  const { engine, words } = await openWords(home);
  const others = await engine.collection('others', {});
  const { offset } = await words.put('a', '1');
  await engine.flush();
  const { offset: deleted } = await words.delete('a');
  await engine.compact(words);
  await others.put('a', '1');
  await engine.compact();
  assert.equal(engine.stats().collections.find(({ name }) => name === 'words')?.runs.length, 0);
  const since = (unchangedSince: number): { expect: Condition[] } => ({
    expect: [{ collection: words, unchangedSince }],
  });
  await assert.rejects(others.put('b', '1', since(offset)), coded('TIDEMARK_CONFLICT'));
  assert.ok(words.touched > deleted, `touched is ${words.touched}`);
  await others.put('b', '1', since(words.touched - 1));
});

inBothHosts('rows that lie in parts have their conditions too', async (home) => {
  const { engine, words } = await openWords(home);
  const { offset: a } = await words.put('a', '1');
  const { offset: b } = await words.put('b', '1');
  await words.put('c', '1');
  await words.delete('c');
  const rewrite = async (): Promise<void> => {
    await assert.rejects(words.put('x', '1', at(words, 'a', b)), conflict('a', a));
    await assert.rejects(words.put('x', '1', at(words, 'a', null)), conflict('a', a));
    await assert.rejects(words.put('x', '1', at(words, 'c', b)), conflict('c', null));
    await engine
      .transaction()
      .put(words, 'x', '1')
      .commit({
        expect: [
          { collection: words, key: 'a', offset: a },
          { collection: words, key: 'b', offset: b },
          { collection: words, key: 'c', offset: null },
        ],
      });
  };
  await rewrite();
  await engine.flush();
  await rewrite();
  await engine.compact(words);
  await rewrite();
  await engine.close();
  const again = await home.open();
  const found = await again.collection('words');
  await assert.rejects(found.put('x', '1', at(found, 'a', b)), conflict('a', a));
  await found.put('x', '1', at(found, 'a', a));
});

inBothHosts('conditions over several collections hold together', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const counts = await engine.collection('counts', { key: 'u64', value: 'json' });
  const { offset: word } = await words.put('a', '1');
  const { offset: count } = await counts.put(7, 1);
  const expect: Condition[] = [
    { collection: words, key: 'a', offset: word },
    { collection: counts, key: 7, offset: count },
    { collection: counts, unchangedSince: count },
  ];
  await engine
    .transaction()
    .put(counts, 8, 1)
    .commit({ expect: expect.slice(0, 2) });
  const tx = engine.transaction().put(words, 'a', '2');
  await assert.rejects(
    tx.commit({ expect }),
    coded('TIDEMARK_CONFLICT', { collection: 'counts', offset: count + 1 }),
  );
  assert.equal(words.getSync('a'), '1');
});

inBothHosts('many conditions, up to 256 KiB of them', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'u64', value: 'utf8' });
  const tx = engine.transaction();
  for (let i = 0; i < 5_000; i++) tx.put(rows, i, 'v');
  const { offset } = await tx.commit();
  const expect = (count: number): Condition[] =>
    Array.from({ length: count }, (_, i) => ({
      collection: rows,
      key: i,
      offset: i < 5_000 ? offset : null,
    }));
  await rows.put(0, 'w', { expect: expect(8_000) });
  await assert.rejects(
    rows.put(0, 'x', { expect: expect(8_000) }),
    coded('TIDEMARK_CONFLICT', { key: 0, offset: offset + 1 }),
  );
  await assert.rejects(
    rows.put(0, 'x', { expect: expect(20_000).slice(1) }),
    coded('TIDEMARK_TOO_LARGE', { what: 'conditions', limit: 256 * KiB }),
  );
  // The last of many, broken by what is under way.
  const last = rows.put(4_999, 'w');
  const refused = rows.put(1, 'x', { expect: expect(5_000).slice(1) });
  await assert.rejects(refused, coded('TIDEMARK_CONFLICT', { key: 4_999, offset: offset + 2 }));
  await last;
  assert.equal(rows.getSync(1), 'v');
});

inBothHosts('a commit larger than a page has conditions like any other', async (home) => {
  const { engine, words } = await openWords(home);
  const large = 'v'.repeat(MiB);
  const { offset } = await words.put('a', large, at(words, 'a', null));
  const puts = [
    words.put('b', '1'),
    words.put('a', `${large}2`, at(words, 'b', null)),
    words.put('a', `${large}3`, at(words, 'a', offset)),
  ];
  await assert.rejects(puts[1], conflict('b', offset + 1));
  assert.equal((await puts[2]).offset, offset + 2);
  assert.equal(words.getSync('a'), `${large}3`);
  assert.equal(engine.upper, offset + 3);
});

inBothHosts('a dropped collection has no conditions', async (home) => {
  const { engine, words } = await openWords(home);
  const others = await engine.collection('others', {});
  await words.put('a', '1');
  await engine.drop(words);
  const gone = coded('TIDEMARK_NOT_FOUND', { collection: 'words' });
  await assert.rejects(others.put('a', '1', at(words, 'a', null)), gone);
  await assert.rejects(
    others.put('a', '1', { expect: [{ collection: words, unchangedSince: 100 }] }),
    gone,
  );
  const again = await engine.collection('words', {});
  await others.put('a', '1', at(again, 'a', null));
});

test('a time is looked at only where the catalog still tells of it', async (context) => {
  const home = new Home('inline');
  try {
    const { engine, words } = await openWords(home);
    const others = await engine.collection('others', {});
    const { offset } = await others.put('a', '1');
    // The row of `words` is written anew, and its past merged away.
    await words.setHistory(1);
    await words.setHistory(0);
    await engine.flush();
    await engine.compact();
    await others.put('a', '2');
    await engine.flush();
    await quiet(engine);
    // As if all that had come between the choice of the time and the look at what lies where.
    const visible = Reflect.get(Reader.prototype, 'visible');
    let looks = 0;
    context.mock.method(Reader.prototype, 'visible', function (this: Reader) {
      return looks++ === 0 ? offset + 1 : visible.call(this);
    });
    await others.put('b', '1', { expect: [{ collection: words, unchangedSince: offset }] });
    assert.ok(looks > 1, 'it was looked at again');
  } finally {
    await home.end();
  }
});

inBothHosts('an empty transaction only looks whether its conditions hold', async (home) => {
  const { engine, words } = await openWords(home);
  const { offset } = await words.put('a', '1');
  assert.deepEqual(await engine.transaction().commit(at(words, 'a', offset)), { offset });
  await assert.rejects(engine.transaction().commit(at(words, 'a', null)), conflict('a', offset));
  assert.equal(engine.upper, offset + 1);
});

inBothHosts('a conflict ends a transaction, wherever it is found', async (home) => {
  const { engine, words } = await openWords(home);
  const { offset } = await words.put('a', '1');
  const seen = engine.transaction().put(words, 'a', '2');
  await assert.rejects(seen.commit(at(words, 'a', null)), conflict('a', offset));
  await assert.rejects(seen.commit(), misuse(/committed/));
  const put = words.put('a', '3');
  const unseen = engine.transaction().put(words, 'a', '4');
  await assert.rejects(unseen.commit(at(words, 'a', offset)), conflict('a', offset + 1));
  await assert.rejects(unseen.commit(), misuse(/committed/));
  await put;
});

inHost('inline', 'conditions that make no sense are misuse, and nothing happens', async (home) => {
  const { engine, words } = await openWords(home);
  const elsewhere = new Home('inline');
  const other = await elsewhere.open();
  const foreign = await other.collection('words', {});
  const { upper } = engine;
  const tries: [unknown, RegExp][] = [
    [{}, /array/],
    [null, /array/],
    [[null], /object/],
    [[{ key: 'a', offset: 1 }], /collection/],
    [[{ collection: 'words', key: 'a', offset: 1 }], /collection/],
    [[{ collection: words, key: 'a' }], /offset/],
    [[{ collection: words, offset: 1 }], /key/],
    [[{ collection: words, key: 'a', offset: 1.5 }], /offset/],
    [[{ collection: words, key: 'a', offset: -2 }], /offset/],
    [[{ collection: words, key: 'a', offset: '1' }], /offset/],
    [[{ collection: words, key: 7, offset: 1 }], /string|utf8/],
    [[{ collection: words, unchangedSince: null }], /unchangedSince/],
    [[{ collection: words, unchangedSince: 1, key: 'a' }], /not both/],
    [[{ collection: words, key: 'a', offset: 1, value: 'x' }], /unknown.*value/],
    [[{ collection: foreign, key: 'a', offset: null }], /another engine/],
  ];
  const tx = engine.transaction().put(words, 'a', '1');
  for (const [expect, message] of tries) {
    const options = { expect } as { expect: Condition[] };
    await assert.rejects(words.put('a', '1', options), misuse(message));
    await assert.rejects(words.delete('a', options), misuse(message));
    await assert.rejects(tx.commit(options), misuse(message));
  }
  assert.throws(() => other.tryCommit(tx), misuse(/another engine/));
  assert.throws(() => engine.tryCommit({} as typeof tx), misuse(/transaction/));
  assert.equal(engine.upper, upper);
  // Misuse did not use it up.
  await tx.commit({ expect: [] });
  await elsewhere.end();
});

inBothHosts(
  'tryCommit answers undefined when there is no room, and nothing happens',
  async (home) => {
    const { engine, words } = await openWords(home);
    const lower = engine.upper;
    const under: Promise<Receipt>[] = [];
    let last = engine.transaction().put(words, 'k0', 'v');
    // Each is a record of its own, and no answer is taken in this turn.
    for (let i = 0; i < 1_000; i++) {
      const committed = engine.tryCommit(last, at(words, `k${i}`, null));
      if (committed === undefined) break;
      under.push(committed);
      last = engine.transaction().put(words, `k${i + 1}`, 'v');
    }
    assert.equal(under.length, 256);
    assert.equal(engine.tryCommit(last), undefined);
    // An empty one needs no room.
    assert.notEqual(engine.tryCommit(engine.transaction()), undefined, 'an empty one');
    assert.equal(engine.stats().waitingTransactions, 0);
    last.put(words, 'more', 'v');
    await engine.room();
    const committed = engine.tryCommit(last);
    assert.notEqual(committed, undefined, 'there is room');
    assert.deepEqual(await committed, { offset: lower + 256 });
    await Promise.all(under);
    assert.equal([...words.keys()].length, 258);
  },
);

inBothHosts('commits that wait for room keep their conditions and their order', async (home) => {
  const engine = await home.open({ memtableBytes: 64 * KiB, history: Infinity });
  const words = await engine.collection('words', {});
  const filler = 'v'.repeat(20 * KiB);
  const lower = engine.upper;
  const told: (number | TidemarkError)[] = [];
  const all: Promise<unknown>[] = [];
  const note = (put: Promise<Receipt>): void => {
    const i = told.push(-1) - 1;
    all.push(put.then(({ offset }) => (told[i] = offset)).catch((error) => (told[i] = error)));
  };
  // Far more than fits the memory: what comes late finds that the past it looked at is flushed.
  for (let i = 0; i < 300; i++) {
    note(words.put(`k${i}`, filler, at(words, `k${i}`, null)));
    if (i % 7 === 3) note(words.put('plain', `${i}`));
    if (i % 50 === 49) note(words.put(`k${i - 20}`, 'never', at(words, `k${i - 20}`, null)));
  }
  await Promise.all(all);
  const offsets = told.filter((t) => typeof t === 'number');
  const errors = told.filter((t) => typeof t !== 'number');
  assert.deepEqual(
    offsets,
    offsets.map((_, i) => lower + i),
  );
  assert.equal(errors.length, 6);
  for (const error of errors) coded('TIDEMARK_CONFLICT', { collection: 'words' })(error);
  assert.equal(engine.upper, lower + offsets.length);
  assert.equal([...words.keys()].length, 301);
  await quiet(engine);
  assert.ok(engine.stats().sequencer['resent'] > 0 || home.host === 'threads', 'none came again');
});

inBothHosts('closing finishes commits with conditions, also those that wait', async (home) => {
  const engine = await home.open({ memtableBytes: 64 * KiB });
  const words = await engine.collection('words', {});
  const filler = 'v'.repeat(20 * KiB);
  const all: Promise<Receipt>[] = [];
  for (let i = 0; i < 200; i++) all.push(words.put(`k${i}`, filler, at(words, `k${i}`, null)));
  const late = words.put('k0', 'never', at(words, 'k0', null));
  late.catch(() => {});
  await engine.close();
  await Promise.all(all);
  await assert.rejects(late, coded('TIDEMARK_CONFLICT'));
  const again = await home.open();
  assert.equal([...(await again.collection('words')).keys()].length, 200);
});

test('an engine that fails settles commits with conditions, pushed and waiting', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  const engine = await open('/sim', {
    threads: 0,
    memoryBytes: 64 * MiB,
    memtableBytes: 64 * KiB,
    storage: { storage: disk, clock },
  });
  const words = await engine.collection('words', {});
  const last = disk.mutations + 40;
  disk.fault = ({ mutation }) => (mutation > last ? { kind: 'throw', code: 'EIO' } : undefined);
  const filler = 'v'.repeat(20 * KiB);
  const all: Promise<Receipt>[] = [];
  for (let i = 0; i < 500; i++) all.push(words.put(`k${i}`, filler, at(words, `k${i}`, null)));
  const settled = await Promise.allSettled(all);
  const codes = settled.map((s) =>
    s.status === 'fulfilled' ? 'done' : (s.reason as TidemarkError).code,
  );
  // In this order: a prefix is there, then nobody knows, then nothing was sent.
  const runs = codes.filter((code, i) => code !== codes[i - 1]);
  const order = ['done', 'TIDEMARK_OUTCOME_UNKNOWN', 'TIDEMARK_POISONED'];
  assert.deepEqual(runs, order.slice(order.length - runs.length));
  await engine.close();
});

// ---------------------------------------------------------------- many at once

inBothHosts('many conditional increments at once lose no update', async (home) => {
  const engine = await home.open({ memtableBytes: 64 * KiB });
  const counters = await engine.collection('counters', { key: 'u64', value: 'json' });
  const prng = new Prng(32);
  const writers = 24;
  const each = 40;
  const keys = 4;
  let conflicts = 0;
  const write = async (): Promise<void> => {
    for (let n = 0; n < each;) {
      const key = prng.below(keys);
      const entry = counters.getEntrySync(key);
      const value = ((entry?.value as { n: number } | undefined)?.n ?? 0) + 1;
      const expect = [{ collection: counters, key, offset: entry?.offset ?? null }];
      try {
        await counters.put(key, { n: value, pad: 'v'.repeat(prng.below(2_000)) }, { expect });
        n++;
      } catch (error) {
        coded('TIDEMARK_CONFLICT', { collection: 'counters', key })(error);
        conflicts++;
      }
    }
  };
  await Promise.all(Array.from({ length: writers }, write));
  const sum = [...counters.values()].reduce(
    (total: number, v) => total + (v as { n: number }).n,
    0,
  );
  assert.equal(sum, writers * each);
  assert.ok(conflicts > 0, 'nobody met anybody');
  const { refused } = engine.stats().sequencer;
  assert.ok(refused <= conflicts, `${refused} of ${conflicts}`);
});

type Planned = {
  puts: Map<string, string | undefined>;
  expect: Condition[];
  offset: number;
};

inBothHosts('each commit held its conditions at its place in the order', async (home) => {
  const engine = await home.open({ memtableBytes: 64 * KiB, durability: 'synced' });
  const words = await engine.collection('words', {});
  const prng = new Prng(18);
  const keys = Array.from({ length: 12 }, (_, i) => `k${i}`);
  const done: Planned[] = [];
  const flushes: Promise<void>[] = [];
  let conflicts = 0;
  const lower = engine.upper;
  const one = (): Condition => {
    if (prng.below(6) === 0) return { collection: words, unchangedSince: words.touched - 1 };
    const key = prng.pick(keys);
    const offset = words.getEntrySync(key)?.offset ?? null;
    // Some are wrong from the start.
    const wrong = prng.below(20) === 0;
    return { collection: words, key, offset: wrong ? lower + prng.below(50) : offset };
  };
  for (let turn = 0; turn < 60; turn++) {
    const settled: Promise<unknown>[] = [];
    if (turn % 9 === 8) flushes.push(engine.flush());
    for (let i = 0; i < 20; i++) {
      const planned: Planned = { puts: new Map(), expect: [], offset: -1 };
      for (let n = prng.below(3); n > 0; n--) planned.expect.push(one());
      const tx = engine.transaction();
      for (let n = 1 + prng.below(3); n > 0; n--) {
        const key = prng.pick(keys);
        const value = prng.below(4) === 0 ? undefined : `${turn}.${i}`.padEnd(prng.below(3_000));
        planned.puts.set(key, value);
        if (value === undefined) tx.delete(words, key);
        else tx.put(words, key, value);
      }
      const note = ({ offset }: Receipt): void => {
        planned.offset = offset;
        done.push(planned);
      };
      const fail = (error: unknown): void => {
        coded('TIDEMARK_CONFLICT')(error);
        conflicts++;
      };
      settled.push(tx.commit({ expect: planned.expect }).then(note, fail));
    }
    // Some turns begin while the last is under way.
    if (prng.below(3) > 0) await Promise.all(settled);
    else await settled.at(-1);
  }
  await Promise.all(flushes);
  await until('all settled', () => done.length + conflicts === 60 * 20);
  done.sort((a, b) => a.offset - b.offset);
  const rows = new Map<string, { value: string; offset: number }>();
  let changed = lower - 1;
  for (const [i, { puts, expect, offset }] of done.entries()) {
    assert.equal(offset, lower + i, 'offsets without a gap');
    for (const condition of expect) {
      if ('unchangedSince' in condition) {
        assert.ok(changed <= condition.unchangedSince, `changed at ${changed}, seen at ${offset}`);
      } else {
        const found = rows.get(condition.key as string)?.offset ?? null;
        assert.equal(found, condition.offset, `row ${String(condition.key)} at ${offset}`);
      }
    }
    changed = offset;
    for (const [key, value] of puts) {
      if (value === undefined) rows.delete(key);
      else rows.set(key, { value, offset });
    }
  }
  assert.ok(conflicts > 50, `${conflicts} conflicts`);
  assert.ok(done.length > 400, `${done.length} done`);
  for (const key of keys) assert.deepEqual(words.getEntrySync(key), rows.get(key));
});
