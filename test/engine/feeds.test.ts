/**
 * Feeds: every transaction that touched what is followed, once, in order, without gaps, from any place
 * that is still there; what they hold, what they share, and how they end.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, readdirSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { json } from '../../actors/index.ts';
import type { Collection, Engine, Feed, FeedItem, Update } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { coded, inBothHosts, misuse, quiet, until } from './world.ts';
import type { Home } from './world.ts';

type Row = Update<string, string>;
type Item = FeedItem<Row>;
type Users = Collection<string, string>;

async function usersOf(engine: Engine, history = Infinity): Promise<Users> {
  return engine.collection('users', { key: 'utf8', value: 'utf8', history });
}

/** The next `count` items. */
async function take<U>(feed: Feed<U>, count: number): Promise<FeedItem<U>[]> {
  const items: FeedItem<U>[] = [];
  while (items.length < count) {
    const { done, value } = await feed.next();
    assert.ok(done !== true, 'the feed goes on');
    items.push(value);
  }
  return items;
}

/** Items until everything up to `offset` is told. */
async function upTo<U>(feed: Feed<U>, offset: number): Promise<FeedItem<U>[]> {
  const items: FeedItem<U>[] = [];
  while (feed.offset < offset) items.push(...(await take(feed, 1)));
  return items;
}

function flat(items: readonly Item[]): unknown[] {
  return items.map(({ kind, offset, updates }) => [
    kind,
    offset,
    ...updates.map(({ key, value, diff }) => [key, value, diff]),
  ]);
}

inBothHosts('old rows go before new rows come; what changes nothing is not told', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const feed = users.changes();
  const { offset: a } = await users.put('ada', '1');
  const { offset: b } = await users.put('ada', '2');
  await users.put('ada', '2');
  await users.delete('nobody');
  const { offset: c } = await engine
    .transaction()
    .put(users, 'bob', '1')
    .put(users, 'eve', '1')
    .put(users, 'bob', '2')
    .delete(users, 'ada')
    .commit();
  const { offset: d } = await engine
    .transaction()
    .put(users, 'cy', '1')
    .delete(users, 'cy')
    .commit();
  const { offset: e } = await users.delete('eve');
  assert.equal(d, e - 1);
  assert.deepEqual(flat(await take(feed, 4)), [
    ['transaction', a, ['ada', '1', 1]],
    ['transaction', b, ['ada', '1', -1], ['ada', '2', 1]],
    ['transaction', c, ['bob', '2', 1], ['eve', '1', 1], ['ada', '2', -1]],
    ['transaction', e, ['eve', '1', -1]],
  ]);
  assert.equal(feed.offset, e);
});

inBothHosts('a feed goes on where another ended, wherever that was', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  for (let i = 0; i < 50; i++) await users.put(`k${i % 7}`, String(i));
  const whole = flat(await take(users.changes({ after: -1 }), 50));
  for (const after of [-1, 0, 1, 17, 30]) {
    const rest = whole.filter((item) => (item as [string, number])[1] > after);
    const feed = users.changes({ after });
    assert.deepEqual(flat(await take(feed, rest.length)), rest);
    await feed.return();
    const same = users.changes({ from: after + 1 });
    assert.deepEqual(flat(await take(same, rest.length)), rest);
    await same.return();
  }
  assert.throws(() => users.changes({ after: engine.upper }), coded('TIDEMARK_NOT_YET'));
});

inBothHosts('with old: false a change is its new row, and no old row is read', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const feed = users.changes({ old: false });
  await users.put('ada', '1');
  await users.put('ada', '1');
  await users.delete('ada');
  const updates = (await take(feed, 3)).flatMap((item) => [...item.updates]);
  assert.deepEqual(updates, [
    { key: 'ada', value: '1', diff: 1 },
    { key: 'ada', value: '1', diff: 1 },
    { key: 'ada', value: undefined, diff: -1 },
  ]);
  assert.equal(engine.stats().feeds.oldRowsRead, 0);
});

inBothHosts(
  'a feed from the past or the newest state needs no pause in the writing',
  async (home) => {
    const engine = await home.open();
    const users = await usersOf(engine, 0);
    const state = new Map<string, string>();
    let writing = true;
    let n = 0;
    const writer = (async () => {
      while (writing) await users.put(`k${n++ % 100}`, `v${n}`.padEnd(2_000, '.'));
    })();
    await until('some rows', () => n > 300);
    const feed = users.changes({ from: 'snapshot' });
    let pieces = 0;
    let transactions = 0;
    let last = -1;
    for await (const item of feed) {
      if (item.kind === 'snapshot') {
        pieces++;
        assert.equal(transactions, 0, 'the state comes first');
        assert.equal(item.offset, item.last ? item.asOf : -1);
      } else {
        transactions++;
        assert.ok(item.offset > last, 'in order');
      }
      last = item.offset;
      for (const { key, value, diff } of item.updates) {
        if (diff < 0) assert.equal(state.get(key), value, 'what goes was there');
        if (diff > 0) state.set(key, value);
        else state.delete(key);
      }
      if (item.kind === 'snapshot' && item.last) {
        assert.deepEqual(inOrder(state), [...users.entries({ asOf: last })]);
      }
      if (transactions === 500) {
        writing = false;
        await writer;
      }
      if (!writing && last === engine.upper - 1) break;
    }
    assert.ok(pieces > 0 && transactions >= 500);
    assert.deepEqual(inOrder(state), [...users.entries()]);
  },
);

inBothHosts('the state of an empty collection is one empty piece', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const feed = users.changes({ from: 'snapshot' });
  const [item] = await take(feed, 1);
  assert.ok(item?.kind === 'snapshot' && item.last);
  assert.deepEqual(item.updates, []);
  const { offset } = await users.put('a', '1');
  assert.equal((await take(feed, 1))[0]?.offset, offset);
});

inBothHosts('a range is all that is told, with progress where nothing is', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const byPrefix = users.changes({ prefix: 'b' });
  const byBounds = users.changes({ gte: 'b', lt: 'd', from: 'now', progress: 5 });
  await users.put('a', '1');
  const { offset: b } = await users.put('b', '1');
  await users.put('c', '1');
  const { offset: d } = await users.put('d', '1');
  assert.deepEqual(flat(await take(byPrefix, 1)), [['transaction', b, ['b', '1', 1]]]);
  assert.deepEqual(flat(await take(byBounds, 2)), [
    ['transaction', b, ['b', '1', 1]],
    ['transaction', b + 1, ['c', '1', 1]],
  ]);
  const [progress] = await take(byBounds, 1);
  assert.equal(progress?.kind, 'progress');
  assert.equal(progress?.offset, d);
});

inBothHosts('several collections are followed in one order', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const logins = await engine.collection('logins', { key: 'u64', value: json<{ of: string }>() });
  const other = await engine.collection('other', {});
  const feed = engine.changes([users, logins]);
  const { offset: a } = await logins.put(1, { of: 'ada' });
  await other.put('x', 'y');
  const { offset: b } = await engine
    .transaction()
    .put(logins, 2, { of: 'bob' })
    .put(users, 'bob', '1')
    .put(other, 'x', 'z')
    .commit();
  const items = await take(feed, 2);
  assert.deepEqual(
    items.map(({ offset, updates }) => [
      offset,
      ...updates.map(({ collection, key, value, diff }) => [collection.name, key, value, diff]),
    ]),
    [
      [a, ['logins', 1, { of: 'ada' }, 1]],
      [b, ['users', 'bob', '1', 1], ['logins', 2, { of: 'bob' }, 1]],
    ],
  );
  assert.throws(() => engine.changes([]), misuse(/array of collections/));
  assert.throws(() => engine.changes([users, users]), misuse(/twice/));
});

inBothHosts('a thousand followers cost one read and one decoding of a change', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  await users.put('k', '-1');
  const feeds = Array.from({ length: 1_000 }, () => users.changes());
  const before = engine.stats().feeds;
  assert.equal(before.running, 1_000);
  const waiting = feeds.map((feed) => take(feed, 20));
  for (let i = 0; i < 20; i++) await users.put('k', String(i));
  const all = await Promise.all(waiting);
  for (const items of all) assert.deepEqual(items, all[0]);
  const after = engine.stats().feeds;
  assert.equal(after.changes - before.changes, 20);
  assert.equal(after.changesDecoded - before.changesDecoded, 20);
  assert.equal(after.oldRowsRead - before.oldRowsRead, 20);
  assert.equal(after.items - before.items, 20_000);
  await Promise.all(feeds.map((feed) => feed.return()));
  assert.equal(engine.stats().feeds.running, 0);
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts('any feed from any offset tells what a list of all transactions says', async (home) => {
  const prng = new Prng(7);
  let engine = await home.open({ segmentBytes: 16_384 });
  let users = await usersOf(engine);
  const model: { offset: number; rows: Row[] }[] = [];
  const state = new Map<string, string>();
  const feeds: { feed: Feed<Row>; told: number }[] = [];
  const step = async (): Promise<void> => {
    const tx = engine.transaction();
    const touched = new Map<string, string | undefined>();
    for (let i = prng.between(1, 12); i > 0; i--) {
      const key = `k${prng.below(30)}`;
      const value = prng.chance(0.3) ? undefined : `v${prng.below(4)}`.repeat(prng.between(1, 80));
      if (prng.chance(0.05)) {
        const to = `k${prng.below(30)}`;
        tx.deleteRange(users, { gte: key, lt: to });
        for (const held of new Set([...state.keys(), ...touched.keys()])) {
          if (held >= key && held < to) touched.set(held, undefined);
        }
        continue;
      }
      touched.delete(key);
      touched.set(key, value);
      if (value === undefined) tx.delete(users, key);
      else tx.put(users, key, value);
    }
    const { offset } = await tx.commit();
    const rows: Row[] = [];
    for (const [key, value] of touched) {
      const old = state.get(key);
      if (old === value) continue;
      if (old !== undefined) rows.push({ key, value: old, diff: -1 });
      if (value !== undefined) rows.push({ key, value, diff: 1 });
      if (value === undefined) state.delete(key);
      else state.set(key, value);
    }
    if (rows.length > 0) model.push({ offset, rows });
  };
  const compare = (items: readonly Item[], after: number): void => {
    const expected = model.filter(({ offset }) => offset > after).slice(0, items.length);
    assert.deepEqual(
      items.map(({ offset, updates }) => ({ offset, rows: sorted(updates) })),
      expected.map(({ offset, rows }) => ({ offset, rows: sorted(rows) })),
    );
  };
  for (let round = 0; round < 400; round++) {
    await step();
    if (prng.chance(0.05)) await engine.flush();
    if (prng.chance(0.05)) {
      const after = prng.below(engine.upper);
      feeds.push({ feed: users.changes({ after }), told: after });
    }
    if (feeds.length > 0 && prng.chance(0.3)) {
      const one = prng.pick(feeds);
      const left = model.filter(({ offset }) => offset > one.told).length;
      const items = await take(one.feed, prng.between(0, left));
      compare(items, one.told);
      one.told = items.at(-1)?.offset ?? one.told;
    }
    if (prng.chance(0.01)) {
      await engine.close();
      engine = await home.open({ segmentBytes: 16_384 });
      users = await usersOf(engine);
      for (const one of feeds) {
        await assert.rejects(one.feed.next(), coded('TIDEMARK_CLOSED'));
        one.feed = users.changes({ after: one.told });
      }
    }
  }
  for (const { feed, told } of feeds) {
    compare(await take(feed, model.filter(({ offset }) => offset > told).length), told);
  }
  assert.ok(feeds.length > 5 && engine.stats().log.segments.length > 3, 'it was tried');
});

inBothHosts('what the disk alone knows is read once a change, whoever asks', async (home) => {
  await followFromDisk(home, 60);
});

inBothHosts(
  'who is far behind is told everything once, however much is looked up at once',
  async (home) => {
    const engine = await home.open();
    const users = await usersOf(engine);
    const keys = 20_011;
    for (let n = 0; n < 2 * keys; n++) {
      void users.put(`k${(n * 7_919) % keys}`, `${n}`.padEnd(100, '.'));
    }
    await engine.flush();
    const feed = users.changes({ after: -1 });
    let n = 0;
    for (const { updates } of await upTo(feed, engine.upper - 1)) {
      const key = `k${(n * 7_919) % keys}`;
      const row = { key, value: `${n}`.padEnd(100, '.'), diff: 1 };
      const old = { key, value: `${n - keys}`.padEnd(100, '.'), diff: -1 };
      assert.deepEqual(updates, n < keys ? [row] : [old, row]);
      n++;
    }
    assert.equal(n, 2 * keys);
    const { feeds } = engine.stats();
    assert.equal(feeds.oldRowsRead, 2 * keys, 'each once');
    // How many of them are looked up together is a matter of time, which bench/micro/feed.ts tells.
    assert.ok(feeds.logReads > 8, `${feeds.logReads} pieces of the log`);
  },
);

inBothHosts('a row before is found in whichever run it lies, or in none', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const random = new Prng(41);
  const before = new Map<string, string>();
  const expected: unknown[] = [];
  const spans = [4_000, 500, 12_000, 2_000, 16_000];
  for (const [run, span] of spans.entries()) {
    for (let n = 0; n < 3_000; n++) {
      const key = `k${random.below(span)}`;
      const value = `${run} ${n}`;
      const old = before.get(key);
      const row = { key, value, diff: 1 };
      expected.push(old === undefined ? [row] : [{ key, value: old, diff: -1 }, row]);
      void users.put(key, value);
      before.set(key, value);
    }
    await engine.flush();
  }
  const items = await upTo(users.changes({ after: -1 }), engine.upper - 1);
  assert.deepEqual(
    items.map(({ updates }) => updates),
    expected,
  );
});

inBothHosts('old rows are told whole when they are more than is read ahead', async (home) => {
  await followFromDisk(home, 1_200_000);
});

async function followFromDisk(home: Home, valueBytesMax: number): Promise<void> {
  const engine = await home.open();
  const users = await usersOf(engine);
  const prng = new Prng(11);
  const state = new Map<string, string>();
  const model: Row[][] = [];
  // Of one key there are more versions than a block holds.
  for (let n = 0; n < 4_000; n++) {
    const key = prng.chance(0.3) ? 'hot' : `k${prng.below(700)}`;
    const old = state.get(key);
    const rows: Row[] = old === undefined ? [] : [{ key, value: old, diff: -1 }];
    if (old !== undefined && prng.chance(0.2)) {
      state.delete(key);
      void users.delete(key);
    } else {
      const value = `${n}`.padEnd(n % 500 === 0 ? valueBytesMax : prng.between(10, 60), '.');
      state.set(key, value);
      rows.push({ key, value, diff: 1 });
      void users.put(key, value);
    }
    model.push(rows);
    if (n === 2_000) await engine.flush();
  }
  await engine.flush();
  const feeds = [
    users.changes({ after: -1 }),
    users.changes({ after: -1, gte: 'h', lt: 'k5' }),
    users.changes({ after: -1 }),
  ];
  const before = engine.stats().feeds;
  const told = await Promise.all(feeds.map((feed) => upTo(feed, engine.upper - 1)));
  const { oldRowsRead, oldRowsFromDisk, changes } = engine.stats().feeds;
  for (const items of [told[0], told[2]]) {
    assert.deepEqual(
      items.map(({ updates }) => updates),
      model,
    );
  }
  assert.deepEqual(
    told[1].map(({ updates }) => updates),
    model.filter(([{ key }]) => key < 'k5'),
  );
  const isKept = valueBytesMax < 1_000;
  assert.ok(oldRowsRead - before.oldRowsRead >= 4_000, 'each was read');
  if (isKept) assert.equal(oldRowsRead - before.oldRowsRead, 4_000);
  if (isKept) assert.equal(changes - before.changes, 4_000);
  assert.ok(oldRowsFromDisk - before.oldRowsFromDisk > 3_000, 'it was tried');
}

/** What a multiset comes to: counts by key and value. */
class Counts {
  readonly counts: Map<string, number> = new Map();

  add({ key, value, diff }: Row): void {
    const name = JSON.stringify([key, value]);
    const count = (this.counts.get(name) ?? 0) + diff;
    if (count === 0) this.counts.delete(name);
    else this.counts.set(name, count);
  }

  get rows(): Row[] {
    const rows = [...this.counts].map(([name, diff]) => {
      const [key, value] = JSON.parse(name) as [string, string];
      return { key, value, diff };
    });
    return inPairs(rows);
  }
}

function inPairs(rows: readonly Row[]): Row[] {
  return rows.toSorted((a, b) => {
    if (a.key !== b.key) return a.key < b.key ? -1 : 1;
    return a.value < b.value ? -1 : a.value > b.value ? 1 : a.diff - b.diff;
  });
}

inBothHosts('of a multiset each transaction is told by what it adds up to', async (home) => {
  const prng = new Prng(13);
  const engine = await home.open({ segmentBytes: 16_384 });
  const options = { key: 'utf8', value: 'utf8', history: Infinity } as const;
  const edges = await engine.collection('edges', { ...options, kind: 'multiset' });
  const users = await engine.collection('users', options);
  const counts = new Counts();
  const model: { offset: number; rows: Row[]; users: string[] }[] = [];
  const states: { offset: number; rows: Row[] }[] = [];
  const first = engine.upper;
  for (let round = 0; round < 200; round++) {
    const tx = engine.transaction();
    const own = new Counts();
    // Keys and values that are told apart by where the one ends alone.
    for (let n = prng.pick([1, 3, 20]); n > 0; n--) {
      const key = 'a'.repeat(prng.between(1, 6));
      if (prng.chance(0.04)) {
        tx.deleteRange(edges, { gte: key, lt: 'aaaaa' });
        const isIn = (row: Row): boolean => row.key >= key && row.key < 'aaaaa';
        for (const row of own.rows.filter(isIn)) own.add({ ...row, diff: -row.diff });
        // What was there before goes as well, once.
        for (const row of counts.rows.filter(isIn)) {
          own.add({ ...row, diff: -row.diff });
        }
        continue;
      }
      const row = { key, value: 'a'.repeat(prng.between(0, 5)), diff: prng.pick([-1, 1, 2]) };
      tx.update(edges, row.key, row.value, row.diff);
      own.add(row);
    }
    const names = prng.chance(0.3) ? [`u${round}`] : [];
    for (const name of names) tx.put(users, name, '');
    const { offset } = await tx.commit();
    for (const row of own.rows) counts.add(row);
    if (own.rows.length > 0 || names.length > 0)
      model.push({ offset, rows: own.rows, users: names });
    states.push({ offset, rows: counts.rows });
    if (prng.chance(0.05)) await engine.flush();
  }
  const last = engine.upper - 1;

  const ofEdges = model.filter(({ rows }) => rows.length > 0);
  for (const after of [first - 1, model[100].offset]) {
    const expected = ofEdges.filter(({ offset }) => offset > after);
    const items = await upTo(edges.changes({ after }), expected.at(-1)!.offset);
    assert.deepEqual(
      items.map(({ offset, updates }) => ({ offset, rows: inPairs(updates) })),
      expected.map(({ offset, rows }) => ({ offset, rows })),
    );
  }
  const within = await upTo(edges.changes({ after: first - 1, gt: 'aa' }), states.at(-2)!.offset);
  const sum = new Counts();
  for (const { updates } of within) for (const row of updates) sum.add(row);
  const reached = states.findLast(({ offset }) => offset <= within.at(-1)!.offset)!;
  assert.deepEqual(
    sum.rows,
    reached.rows.filter(({ key }) => key > 'aa'),
  );

  assert.equal(engine.stats().feeds.oldRowsRead, 0);

  const both = engine.changes([users, edges], { after: first - 1 });
  const told = await upTo(both, model.at(-1)!.offset);
  assert.deepEqual(
    told.map(({ offset, updates }) => ({
      offset,
      rows: inPairs(
        updates.flatMap(({ collection, key, value, diff }) =>
          collection === edges ? [{ key, value, diff }] : [],
        ),
      ),
      users: updates.flatMap(({ collection, key }) => (collection === users ? [key] : [])),
    })),
    model,
  );

  const state = edges.changes({ from: 'snapshot' });
  const [piece] = await take(state, 1);
  assert.deepEqual([...piece.updates], states.at(-1)!.rows);
  const none = { offset: -1, rows: [] };
  for (let n = 0; n < 40; n++) {
    const [a, b] = [prng.pick([none, ...states]), prng.pick(states)];
    const expected = new Counts();
    for (const row of b.rows) expected.add(row);
    for (const row of a.rows) expected.add({ ...row, diff: -row.diff });
    const found: Row[] = [];
    for await (const row of edges.diff(a.offset, b.offset)) found.push(row);
    assert.deepEqual(found, expected.rows, `${a.offset} to ${b.offset}`);
  }
  assert.ok(last > 150 && engine.stats().log.segments.length > 3, 'it was tried');
});

inBothHosts('a state of a multiset comes whole, whatever a key holds', async (home) => {
  const engine = await home.open();
  const edges = await engine.collection('edges', { kind: 'multiset', history: Infinity });
  const rows: Row[] = [];
  for (let n = 0; n < 6_000; n++) {
    const row = {
      key: n < 5_000 ? 'b' : `c${n}`,
      value: `v${n}`.padEnd(90, '.'),
      diff: 1 + (n % 3),
    };
    rows.push(row);
    void edges.update(row.key, row.value, row.diff);
  }
  await engine.flush();
  const { offset } = await edges.update('a', 'gone', -1);
  const feed = edges.changes({ from: 'snapshot' });
  const removed = edges.changes();
  await edges.deleteRange({ lt: 'c' });
  const found: Row[] = [];
  for (let last = false; !last;) {
    const [item] = await take(feed, 1);
    assert.ok(item.kind === 'snapshot');
    assert.equal(item.asOf, offset);
    found.push(...item.updates);
    last = item.last;
  }
  const there = inPairs([...rows, { key: 'a', value: 'gone', diff: -1 }]);
  assert.deepEqual(found, there);
  for (const one of [feed, removed]) {
    const gone: Row[] = [];
    for (let more = true; more;) {
      const [item] = await take(one, 1);
      assert.ok(item.kind === 'transaction');
      gone.push(...item.updates);
      more = item.more === true;
    }
    const expected = there.filter(({ key }) => key < 'c');
    assert.deepEqual(
      gone,
      expected.map((row) => ({ ...row, diff: -row.diff })),
    );
  }
});

function inOrder(state: ReadonlyMap<string, string>): [string, string][] {
  return [...state].toSorted(([a], [b]) => (a < b ? -1 : 1));
}

inBothHosts(
  'a removed range is told row by row, whatever else its transaction did',
  async (home) => {
    const engine = await home.open();
    const users = await usersOf(engine);
    for (const key of ['a', 'b', 'c', 'd', 'e']) await users.put(key, '1');
    const feed = users.changes();
    const some = users.changes({ gte: 'c' });
    const plain = users.changes({ old: false });
    const { offset } = await engine
      .transaction()
      .put(users, 'b2', 'gone')
      .put(users, 'c', 'gone')
      .deleteRange(users, { gte: 'b', lt: 'e' })
      .put(users, 'd', '2')
      .put(users, 'e', '2')
      .commit();
    const { offset: after } = await users.put('z', '1');
    const [item, next] = await take(feed, 2);
    assert.equal(item.offset, offset);
    assert.deepEqual(sorted(item.updates), [
      { key: 'b', value: '1', diff: -1 },
      { key: 'c', value: '1', diff: -1 },
      { key: 'd', value: '1', diff: -1 },
      { key: 'd', value: '2', diff: 1 },
      { key: 'e', value: '1', diff: -1 },
      { key: 'e', value: '2', diff: 1 },
    ]);
    assert.equal(next.offset, after);
    const [within] = await take(some, 1);
    assert.deepEqual(
      sorted(within.updates),
      sorted(item.updates).filter(({ key }) => key >= 'c'),
    );
    const [short] = await take(plain, 1);
    assert.ok(short.kind === 'transaction');
    assert.deepEqual(
      short.ranges?.map(({ lower, upper }) => [
        String(Buffer.from(lower)),
        String(Buffer.from(upper!)),
      ]),
      [['b', 'e']],
    );
  },
);

inBothHosts('a removed range of many rows is told in pieces', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  for (let i = 0; i < 3_000; i++) void users.put(`k${String(i).padStart(4, '0')}`, 'v'.repeat(500));
  await users.put('last', '');
  const feed = users.changes();
  const { offset } = await users.deleteRange({ prefix: 'k' });
  await users.put('next', '');
  const keys: string[] = [];
  let pieces = 0;
  for (let more = true; more; pieces++) {
    const [item] = await take(feed, 1);
    assert.ok(item.kind === 'transaction');
    more = item.more === true;
    assert.equal(item.offset, more ? offset - 1 : offset);
    keys.push(...item.updates.map(({ key }) => key));
  }
  assert.ok(pieces > 2, `${pieces} pieces`);
  assert.equal(keys.length, 3_000);
  assert.equal(new Set(keys).size, 3_000);
});

/** Keys of a transaction in order: which came first is the writer's business. */
function sorted(rows: readonly Row[]): Row[] {
  return rows.toSorted((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : a.diff - b.diff));
}

inBothHosts('a slow feed holds history and log, never a writer; let go, both go', async (home) => {
  const engine = await home.open({ segmentBytes: 16_384 });
  const users = await usersOf(engine, 0);
  await users.put('k', 'first');
  const slow = users.changes();
  const { offset } = await users.put('k', 'second');
  await churn(engine, users);
  const [item] = await take(slow, 1);
  assert.deepEqual(flat([item]), [['transaction', offset, ['k', 'first', -1], ['k', 'second', 1]]]);
  assert.equal(engine.stats().log.floor.heldBy, 'feed');
  const segments = engine.stats().log.segments.length;
  await slow.return();
  await churn(engine, users);
  assert.ok(engine.stats().log.segments.length < segments, 'the log went');
  assert.throws(() => users.changes({ after: offset }), coded('TIDEMARK_HISTORY_LOST'));
  const { floor } = engine.stats().log;
  assert.throws(
    () => users.changes({ after: offset, old: false }),
    coded('TIDEMARK_HISTORY_LOST'),
    `floor ${floor.offset}`,
  );
});

async function churn(engine: Engine, users: Users): Promise<void> {
  for (let round = 0; round < 4; round++) {
    const writes = [];
    for (let i = 0; i < 200; i++) writes.push(users.put(`k${i}`, `${round}`.repeat(200)));
    await Promise.all(writes);
    await engine.checkpoint();
    await engine.compact(users);
  }
  await quiet(engine);
}

inBothHosts('batches hand out what is there, up to a size', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  for (let i = 0; i < 100; i++) await users.put(`k${i}`, 'v'.repeat(96));
  const counts: number[] = [];
  let offset = -1;
  for await (const batch of users.changes({ after: -1 }).batches({ maxBytes: 1_000 })) {
    counts.push(batch.length);
    offset = batch.at(-1)!.offset;
    if (offset === engine.upper - 1) break;
  }
  assert.ok(counts.length >= 10 && counts.every((count) => count <= 11), counts.join());
  assert.equal(engine.stats().feeds.running, 0, 'leaving the loop ends the feed');
  assert.throws(() => users.changes().batches({ maxBytes: 0 }), misuse(/maxBytes/));
});

inBothHosts('who is busy with what is in memory leaves turns to others', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  for (let n = 0; n < 6_000; n++) void users.put(`k${n}`, 'v'.repeat(60));
  const { offset } = await users.put('last', '');
  let turns = 0;
  let counting = true;
  const count = (): void => {
    turns++;
    if (counting) setImmediate(count);
  };
  setImmediate(count);
  let batches = 0;
  const feed = users.changes({ after: -1, old: false });
  for await (const batch of feed.batches()) {
    batches++;
    for (const startedAt = performance.now(); performance.now() - startedAt < 6;);
    if (batch.at(-1)!.offset === offset) break;
  }
  counting = false;
  assert.ok(batches > 10, `${batches} batches`);
  assert.ok(turns >= batches - 2, `${turns} turns`);
});

inBothHosts('feeds end with the engine, with their signal, with return', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const abort = new AbortController();
  const aborted = users.changes({ signal: abort.signal });
  const left = users.changes();
  const closed = users.changes();
  const idle = users.changes();
  const waiting = [aborted.next(), left.next(), closed.next(), closed.next()];
  abort.abort(new Error('enough'));
  await assert.rejects(waiting[0], /enough/);
  assert.equal((await aborted.next()).done, true, 'a failure is told once');
  await left.return();
  assert.equal((await waiting[1]).done, true);
  assert.throws(() => users.changes({ signal: abort.signal }), /enough/);
  const closing = engine.close();
  await assert.rejects(waiting[2], coded('TIDEMARK_CLOSED'));
  assert.equal((await waiting[3]).done, true);
  await closing;
  await assert.rejects(idle.next(), coded('TIDEMARK_CLOSED'));
  assert.throws(() => users.changes(), coded('TIDEMARK_CLOSED'));
});

inBothHosts('a close in the middle of reading leaves nothing open', async (home) => {
  const engine = await home.open({ segmentBytes: 16_384 });
  const users = await usersOf(engine);
  for (let i = 0; i < 300; i++) void users.put(`k${i}`, 'v'.repeat(400));
  await users.put('last', '');
  const feeds = Array.from({ length: 20 }, (_, i) => users.changes({ after: i * 10 }));
  const reading = feeds.map(async (feed) => {
    for await (const item of feed) assert.ok(item.offset >= 0);
  });
  const ended = Promise.allSettled(reading);
  await engine.close();
  for (const { status, reason } of (await ended) as { status: string; reason?: unknown }[]) {
    assert.equal(status, 'rejected');
    coded('TIDEMARK_CLOSED')(reason);
  }
});

inBothHosts('a dropped collection is told to its end', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const feed = users.changes();
  const { offset } = await users.put('ada', '1');
  await engine.drop(users);
  assert.deepEqual(flat(await take(feed, 1)), [['transaction', offset, ['ada', '1', 1]]]);
  await assert.rejects(feed.next(), coded('TIDEMARK_NOT_FOUND'));
});

inBothHosts('what makes no sense is a TypeError', async (home: Home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const bad = (options: unknown, message: RegExp): void => {
    assert.throws(() => users.changes(options as { after: number }), misuse(message));
  };
  bad({ after: 1.5 }, /after is an offset/);
  bad({ after: -2 }, /after is an offset/);
  bad({ from: 'then' }, /from is an offset/);
  bad({ from: 1, after: 0 }, /after or from/);
  bad({ old: 1 }, /old is true or false/);
  bad({ progress: -1 }, /progress/);
  bad({ unref: 'yes' }, /unref/);
  bad({ signal: {} }, /AbortSignal/);
  bad({ since: 1 }, /unknown feed option since/);
  bad({ gt: 'a', gte: 'a' }, /gte or gt/);
  assert.equal(engine.stats().feeds.running, 0);
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts(
  'a feed of several tells old rows that another has let go of meanwhile',
  async (home) => {
    const engine = await home.open();
    const options = { key: 'utf8', value: 'utf8', history: Infinity } as const;
    const large = await engine.collection('large', options);
    const small = await engine.collection('small', options);
    for (let i = 0; i < 20; i++) void small.put(`${i}`, 'old');
    await engine.flush();
    // In memory, and more than is kept for others.
    for (let i = 0; i < 20; i++) void large.put(`${i}`, `${i}`.padEnd(300_000, '.'));
    await small.put('last', '');
    const after = engine.upper - 1;
    const tx = engine.transaction();
    for (let i = 0; i < 20; i++) tx.delete(large, `${i}`).put(small, `${i}`, 'new');
    await tx.commit();
    await using both = engine.changes([large, small], { after });
    await using alone = large.changes({ after });
    const [[ofBoth], [ofOne]] = await Promise.all([take(both, 1), take(alone, 1)]);
    assert.deepEqual([ofBoth.updates.length, ofOne.updates.length], [60, 20]);
  },
);

inBothHosts('damage that one feed meets does not end another that does not', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'utf8', value: 'buffer', history: Infinity });
  const prng = new Prng(5);
  const values = Array.from({ length: 200 }, () =>
    Buffer.from(Array.from({ length: 1_000 }, () => prng.below(256))),
  );
  for (const first of ['a', 'z']) {
    for (const [i, value] of values.entries()) void rows.put(`${first}${i}`, value);
  }
  await engine.flush();
  damage(home.directory, values[150]);
  const after = engine.upper - 1;
  const tx = engine.transaction();
  for (const [i] of values.entries()) tx.delete(rows, `a${i}`).delete(rows, `z${i}`);
  await tx.commit();
  await using hit = rows.changes({ after, gte: 'z' });
  await using well = rows.changes({ after, lt: 'b' });
  const [ofHit, ofWell] = await Promise.allSettled([hit.next(), take(well, 1)]);
  assert.equal(ofHit.status, 'rejected', 'it was tried');
  coded('TIDEMARK_CORRUPT')(ofHit.reason);
  assert.equal(ofWell.status, 'fulfilled', 'it goes on');
  assert.equal(ofWell.value[0].updates.length, values.length);
});

/** Changes a byte of the last row with a value, in the part that holds it. */
function damage(directory: string, value: Buffer): void {
  const files = readdirSync(directory, { recursive: true, withFileTypes: true });
  for (const file of files) {
    const path = join(file.parentPath, file.name);
    if (!file.isFile() || !path.includes('part')) continue;
    const at = readFileSync(path).lastIndexOf(value);
    if (at < 0) continue;
    const fd = openSync(path, 'r+');
    writeSync(fd, Uint8Array.of(value[0] ^ 1), 0, 1, at);
    closeSync(fd);
    return;
  }
  assert.fail('no part holds it');
}
