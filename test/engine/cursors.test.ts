/**
 * Cursors: a feed's place in the store. Across restarts and crashes every transaction takes effect once,
 * in order, without gaps; what is not confirmed is kept, as long as the cursor may lag.
 */
import assert from 'node:assert/strict';
import type { Collection, Engine, Feed, Update } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { Child, coded, inBothHosts, misuse, quiet } from './world.ts';

type Users = Collection<string, string>;
type Row = Update<string, string>;

async function usersOf(engine: Engine, history?: number): Promise<Users> {
  const more = history === undefined ? {} : { history };
  return engine.collection('users', { key: 'utf8', value: 'utf8', ...more });
}

async function take(feed: Feed<Row>, count: number): Promise<number[]> {
  const offsets: number[] = [];
  while (offsets.length < count) {
    const { done, value } = await feed.next();
    assert.ok(done !== true, 'the feed goes on');
    offsets.push(value.offset);
  }
  return offsets;
}

/** Everything merged, every segment let go that may go. */
async function churn(engine: Engine, users: Users): Promise<void> {
  for (let round = 0; round < 3; round++) {
    const writes = [];
    for (let i = 0; i < 200; i++) writes.push(users.put(`k${i}`, `${round}`.repeat(200)));
    await Promise.all(writes);
    await engine.checkpoint();
    await engine.compact(users);
  }
  await quiet(engine);
}

inBothHosts('a cursor goes on after what was confirmed, whatever was handed out', async (home) => {
  let engine = await home.open();
  let users = await usersOf(engine);
  let feed = users.changes({ cursor: 'search' });
  const first = take(feed, 3);
  const offsets: number[] = [];
  for (let i = 0; i < 10; i++) offsets.push((await users.put('k', String(i))).offset);
  assert.deepEqual(await first, offsets.slice(0, 3));
  await feed.ack(offsets[1]);
  await feed.return();
  feed = users.changes({ cursor: 'search', from: 'snapshot' });
  assert.deepEqual(await take(feed, 2), offsets.slice(2, 4));
  await feed.ack(offsets[2]);
  await engine.close();
  engine = await home.open();
  users = await usersOf(engine);
  assert.deepEqual(
    engine.cursors().map(({ name, offset, collections }) => [name, offset, collections]),
    [['search', offsets[2], ['users']]],
  );
  feed = users.changes({ cursor: 'search' });
  assert.deepEqual(await take(feed, 7), offsets.slice(3));
  await feed.ack(offsets[0]);
  await feed.ack(offsets[5]);
  assert.equal(engine.cursors()[0]?.offset, offsets[5], 'it never goes back');
});

inBothHosts(
  'what is not confirmed is kept across merges, checkpoints and restarts',
  async (home) => {
    const options = { segmentBytes: 16_384 };
    let engine = await home.open(options);
    let users = await usersOf(engine, 0);
    await users.put('k', 'first');
    let feed = users.changes({ cursor: 'search' });
    const pull = take(feed, 1);
    const { offset } = await users.put('k', 'second');
    await pull;
    await feed.return();
    await churn(engine, users);
    assert.equal(engine.stats().log.floor.heldBy, 'cursor');
    await engine.close();
    engine = await home.open(options);
    users = await usersOf(engine);
    await churn(engine, users);
    feed = users.changes({ cursor: 'search' });
    const { value } = await feed.next();
    assert.deepEqual(value, {
      kind: 'transaction',
      offset,
      updates: [
        { key: 'k', value: 'first', diff: -1 },
        { key: 'k', value: 'second', diff: 1 },
      ],
    });
    const { segments } = engine.stats().log;
    await assert.rejects(engine.dropCursor('search'), coded('TIDEMARK_HELD'));
    await feed.return();
    await engine.dropCursor('search');
    assert.deepEqual(engine.cursors(), []);
    await churn(engine, users);
    assert.ok(engine.stats().log.segments.length < segments.length, 'the log went');
    await assert.rejects(engine.dropCursor('search'), coded('TIDEMARK_NOT_FOUND'));
  },
);

inBothHosts('a cursor that lags too much holds nothing: its feed says so', async (home) => {
  const engine = await home.open({ segmentBytes: 16_384 });
  const users = await usersOf(engine, 0);
  for (const maxLag of [{ offsets: 300 }, { bytes: 8_192 }]) {
    const feed = users.changes({ cursor: 'slow', maxLag });
    const pull = take(feed, 1);
    await users.put('k', JSON.stringify(maxLag));
    await pull;
    await churn(engine, users);
    const rest = (async () => {
      for await (const item of feed) assert.ok(item.offset > 0);
    })();
    await assert.rejects(rest, coded('TIDEMARK_HISTORY_LOST'));
    assert.throws(() => users.changes({ cursor: 'slow' }), coded('TIDEMARK_HISTORY_LOST'));
    assert.deepEqual(engine.cursors()[0]?.maxLag, maxLag);
    await engine.dropCursor('slow');
  }
});

inBothHosts('a state that was not confirmed as a whole comes again, newer', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  for (let i = 0; i < 3_000; i++) void users.put(`k${i}`, 'v'.repeat(300));
  await users.put('last', '');
  const first = users.changes({ cursor: 'search', from: 'snapshot' });
  const [half] = await take(first, 1);
  assert.equal(half, -1);
  await first.ack(half);
  await first.return();
  const { offset } = await users.put('newer', '');
  const second = users.changes({ cursor: 'search' });
  for (let last = false; !last;) {
    const { value } = await second.next();
    assert.ok(value?.kind === 'snapshot' && value.asOf >= offset, 'a newer state');
    last = value.last;
  }
  await second.ack(second.offset);
  await second.return();
  const { offset: more } = await users.put('more', '');
  const third = users.changes({ cursor: 'search' });
  assert.deepEqual(await take(third, 1), [more]);
});

inBothHosts(
  'effect and place in one transaction: exactly once, whatever is interrupted',
  async (home) => {
    const prng = new Prng(11);
    const count = 60;
    let engine = await home.open();
    let users = await usersOf(engine);
    await engine.collection('counts', { key: 'utf8', value: 'u64' });
    for (let i = 0; i < count; i++) await users.put(`k${i % 5}`, String(i));
    for (let rounds = 0; ; rounds++) {
      const counts = await engine.collection('counts', { key: 'utf8', value: 'u64' });
      const feed = users.changes({ cursor: 'counter', after: -1 });
      let left = prng.between(1, 15);
      for await (const { offset, updates } of feed) {
        const tx = engine.transaction();
        for (const { key, diff } of updates) {
          if (diff > 0) tx.put(counts, key, (counts.getSync(key) ?? 0) + 1);
        }
        tx.ack(feed, offset);
        // Not every effect is committed before the end.
        if (left-- === 0) break;
        await tx.commit();
        if (feed.offset >= count && [...counts.values()].reduce((a, b) => a + b, 0) === count)
          break;
      }
      const total = [...counts.values()].reduce((a, b) => a + b, 0);
      if (total === count) {
        assert.deepEqual(
          [...counts.values()],
          Array.from({ length: 5 }, () => count / 5),
        );
        assert.ok(rounds > 2, 'it was interrupted');
        return;
      }
      assert.ok(total < count && rounds < 100, `${total}`);
      await engine.close();
      engine = await home.open();
      users = await usersOf(engine);
    }
  },
);

inBothHosts('a name is one feed at a time, and of the same collections', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const other = await engine.collection('other', {});
  const feed = users.changes({ cursor: 'search' });
  const pull = take(feed, 1);
  await users.put('k', '');
  await pull;
  assert.throws(() => users.changes({ cursor: 'search' }), coded('TIDEMARK_HELD'));
  await feed.return();
  assert.throws(() => other.changes({ cursor: 'search' }), coded('TIDEMARK_KIND_MISMATCH'));
  assert.throws(() => users.changes({ cursor: '' }), misuse(/cursor name/));
  assert.throws(() => users.changes({ maxLag: { offsets: 1 } }), misuse(/of a cursor/));
  assert.throws(() => users.changes({ cursor: 'a', maxLag: { ms: -1 } }), misuse(/maxLag.ms/));
  await assert.rejects(feed.ack(engine.upper), misuse(/not handed out/));
  const plain = users.changes();
  assert.throws(() => engine.transaction().ack(plain, 0), misuse(/no cursor/));
  await plain.return();
  assert.equal(engine.stats().feeds.running, 0);
});

inBothHosts('killed at any moment, a reader goes on with what was not confirmed', async (home) => {
  const told: string[] = [];
  const prng = new Prng(5);
  for (let kills = 0; kills < 2; kills++) {
    const child = new Child('follow', home.directory, home.host);
    await child.line(prng.between(3, 40));
    child.process.kill('SIGKILL');
    await child.ended;
    told.push(...child.lines.filter((line) => /^\d+ \d+$/.test(line)));
  }
  const engine = await home.open();
  const stored = engine.cursors()[0]?.offset ?? -1;
  const offsets = new Map<number, number>();
  for (const line of told) {
    const [offset = -1, value = -1] = line.split(' ').map(Number);
    // What was told and not confirmed before a kill is told again, from where it was.
    assert.equal(offsets.get(value) ?? offset, offset, `${value} told as it was committed`);
    offsets.set(value, offset);
  }
  const values = [...offsets.keys()];
  assert.deepEqual(values, [...values.keys()], 'in order, without gaps');
  assert.ok(stored >= 0 && values.length > 5, `cursor at ${stored}`);
});

inBothHosts('a refused commit with a place in it may go unheard', async (home) => {
  const engine = await home.open();
  const users = await usersOf(engine);
  const jobs = await engine.collection('jobs', { key: 'utf8', value: 'utf8' });
  await using feed = jobs.changes({ cursor: 'worker' });
  await jobs.put('a', '');
  const { value } = await feed.next();
  // On its way, so that the sequencer is the one who refuses.
  const first = users.put('ada', '1');
  const tx = engine.transaction().put(users, 'bob', '1').ack(feed, value!.offset);
  void tx.commit({ expect: [{ collection: users, key: 'ada', offset: null }] });
  await first;
  await engine.flush();
  assert.equal(users.hasSync('bob'), false);
});
