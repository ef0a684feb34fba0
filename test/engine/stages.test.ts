/**
 * Goal: every public operation answers as it should in every stage of an engine's life: open, closing,
 * closed, closed while another engine uses the same threads and memory, reopened, poisoned. Refusals
 * are typed, nothing hangs, nothing acknowledged is lost.
 */
import assert from 'node:assert/strict';
import { renameSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type {
  Collection,
  Engine,
  ErrorCode,
  Snapshot,
  TidemarkError,
  Transaction,
} from '../../actors/index.ts';
import { HOSTS, Home, coded, inBothHosts, misuse, until } from './world.ts';

/** What a caller has in hand when the stage changes. */
type Hands = {
  readonly engine: Engine;
  readonly words: Collection<string, string>;
  readonly snap: Snapshot;
  readonly full: Transaction;
  readonly tried: Transaction;
  readonly empty: Transaction;
};

async function handsOf(engine: Engine): Promise<Hands> {
  const words = await engine.collection('words', { history: Infinity });
  await words.put('a', '1');
  const snap = engine.snapshot();
  const full = engine.transaction().put(words, 'b', '2');
  const tried = engine.transaction().put(words, 'c', '3');
  return { engine, words, snap, full, tried, empty: engine.transaction() };
}

/** Everything that reads, writes or asks; each in one call. Those that return promises must not throw. */
const OPERATIONS: Readonly<Record<string, (hands: Hands) => unknown>> = {
  put: ({ words }) => words.put('a', '2'),
  delete: ({ words }) => words.delete('a'),
  setHistory: ({ words }) => words.setHistory(5),
  getSync: ({ words }) => words.getSync('a'),
  getSyncAsOf: ({ words }) => words.getSync('a', { asOf: 0 }),
  getSyncSnapshot: ({ words, snap }) => words.getSync('a', { snapshot: snap }),
  hasSync: ({ words }) => words.hasSync('a'),
  getEntrySync: ({ words }) => words.getEntrySync('a'),
  getManySync: ({ words }) => words.getManySync(['a']),
  get: ({ words }) => words.get('a'),
  has: ({ words }) => words.has('a'),
  getMany: ({ words }) => words.getMany(['a']),
  entries: ({ words }) => [...words.entries()],
  keys: ({ words }) => [...words.keys()],
  values: ({ words }) => [...words.values()],
  since: ({ words }) => words.since,
  touched: ({ words }) => words.touched,
  commit: ({ full }) => full.commit(),
  tryCommit: ({ engine, tried }) => engine.tryCommit(tried),
  putExpecting: ({ words }) =>
    words.put('x', '1', { expect: [{ collection: words, key: 'x', offset: null }] }),
  commitEmpty: ({ empty }) => empty.commit(),
  transaction: ({ engine }) => engine.transaction(),
  snapshot: ({ engine }) => engine.snapshot().close(),
  collection: ({ engine }) => engine.collection('words'),
  newCollection: ({ engine }) => engine.collection('more', {}),
  collections: ({ engine }) => engine.collections(),
  durable: ({ engine }) => engine.durable(0),
  reached: ({ engine }) => engine.reached(0),
  room: ({ engine }) => engine.room(),
  flush: ({ engine }) => engine.flush(),
  compact: ({ engine }) => engine.compact(),
  stats: ({ engine }) => engine.stats(),
  drop: ({ engine }) => engine.drop('words'),
};

const ASYNC: ReadonlySet<string> = new Set(
  'put delete setHistory get has getMany commit tryCommit putExpecting commitEmpty collection newCollection durable reached room flush compact drop'.split(
    ' ',
  ),
);

/** Every operation is refused with this code: promises by rejection, the rest by throwing. */
async function refuses(hands: Hands, code: ErrorCode): Promise<void> {
  for (const [name, run] of Object.entries(OPERATIONS)) {
    if (!ASYNC.has(name)) {
      assert.throws(() => run(hands), coded(code), name);
      continue;
    }
    let promise;
    assert.doesNotThrow(() => (promise = run(hands)), `${name} throws`);
    await assert.rejects(promise as unknown as Promise<unknown>, coded(code), name);
  }
  // What only lets go may always be done.
  hands.snap.close();
  hands.snap[Symbol.dispose]();
}

inBothHosts('open: every operation is answered', async (home) => {
  const hands = await handsOf(await home.open());
  assert.equal(hands.engine.state, 'open');
  assert.equal(hands.engine.failure, undefined);
  for (const run of Object.values(OPERATIONS)) await run(hands);
});

inBothHosts(
  'opening: a second open of the directory is refused, whichever was first',
  async (home) => {
    const outcomes = await Promise.allSettled([home.open(), home.open(), home.open()]);
    const opened = outcomes.filter(({ status }) => status === 'fulfilled');
    assert.equal(opened.length, 1);
    for (const outcome of outcomes) {
      if (outcome.status === 'rejected') coded('TIDEMARK_LOCKED', { own: true })(outcome.reason);
    }
  },
);

inBothHosts('opening can be aborted, and the directory is free again', async (home) => {
  const reason = new Error('enough');
  await assert.rejects(home.open({ signal: AbortSignal.abort(reason) }), reason);
  const controller = new AbortController();
  const opening = home.open({ signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(opening, reason);
  const engine = await home.open();
  assert.equal(engine.state, 'open');
});

inBothHosts(
  'closing: what was committed is acknowledged, everything new is refused',
  async (home) => {
    const engine = await home.open();
    const hands = await handsOf(engine);
    const before = Promise.all([hands.words.put('c', '3'), hands.words.put('d', '4')]);
    const reading = hands.words.get('a');
    const never = assert.rejects(engine.durable(1_000_000), coded('TIDEMARK_CLOSED'));
    const unseen = assert.rejects(engine.reached(1_000_000), coded('TIDEMARK_CLOSED'));
    const closed = engine.close();
    assert.equal(engine.close(), closed);
    assert.equal(engine.state, 'closing');
    await refuses(hands, 'TIDEMARK_CLOSED');
    const receipts = await before;
    assert.equal(receipts.length, 2);
    assert.equal(await reading, '1');
    await Promise.all([closed, never, unseen]);
    assert.equal(engine.state, 'closed');
    const again = await home.open();
    assert.deepEqual([...(await again.collection('words')).keys()], ['a', 'c', 'd']);
  },
);

inBothHosts(
  'closing: a flush under way is finished or refused, and close waits for it',
  async (home) => {
    const engine = await home.open();
    const words = await engine.collection('words', {});
    for (let i = 0; i < 5_000; i++) void words.put(`k${i}`, 'x'.repeat(100));
    await words.put('last', 'x');
    const flushed = engine.flush().then(
      () => 'flushed',
      (error: unknown) => coded('TIDEMARK_CLOSED')(error) && 'refused',
    );
    const compacted = engine.compact().then(
      () => 'compacted',
      (error: unknown) => coded('TIDEMARK_CLOSED')(error) && 'refused',
    );
    await engine.close();
    assert.match(await flushed, /flushed|refused/);
    assert.match(await compacted, /compacted|refused/);
    const again = await home.open();
    assert.equal([...(await again.collection('words')).keys()].length, 5_001);
  },
);

inBothHosts('closed: everything is refused, also while another engine is open', async (home) => {
  const engine = await home.open();
  const hands = await handsOf(engine);
  const { upper } = engine;
  const rows = hands.words.entries();
  await engine.close();
  await engine.close();
  await engine[Symbol.asyncDispose]();
  assert.equal(engine.state, 'closed');
  await refuses(hands, 'TIDEMARK_CLOSED');
  assert.throws(() => rows.next(), coded('TIDEMARK_CLOSED'));

  // The next engine may work in the very memory of this one.
  const next = await home.open();
  const words = await next.collection('words');
  using held = next.snapshot();
  const again = await handsOf(next);
  assert.equal(engine.state, 'closed');
  assert.equal(engine.upper, upper);
  assert.equal(engine.durableUpper, upper);
  assert.equal(engine.failure, undefined);
  for (const [name, run] of Object.entries(OPERATIONS)) {
    if (ASYNC.has(name))
      await assert.rejects(async () => run(hands), coded('TIDEMARK_CLOSED'), name);
    else assert.throws(() => run(hands), coded('TIDEMARK_CLOSED'), name);
  }
  // Letting go late must not let go of what others hold.
  assert.equal(next.stats().holds.count, 2);
  assert.equal(words.getSync('a', { snapshot: held }), '1');
  again.snap.close();
});

inBothHosts(
  'a snapshot let go after its engine closed keeps its hands off the next one',
  async (home) => {
    const engine = await home.open();
    const old = await engine.collection('words', {});
    await old.put('a', '1');
    const late = engine.snapshot();
    const rows = old.entries();
    await engine.close();
    const next = await home.open();
    const words = await next.collection('words');
    using snap = next.snapshot();
    late.close();
    rows.return();
    for (let i = 0; i < 5; i++) {
      await words.put('a', `${i + 2}`);
      await next.flush();
    }
    await next.compact();
    assert.equal(words.getSync('a', { snapshot: snap }), '1');
  },
);

inBothHosts('reopened: the same state under new handles', async (home) => {
  let last: Collection<string, string> | undefined;
  for (let life = 0; life < 5; life++) {
    await using engine = await home.open();
    const words = await engine.collection('words', { history: Infinity });
    for (let i = 0; i < life; i++) assert.equal(words.getSync(`${i}`), 'v');
    await words.put(`${life}`, 'v');
    if (life % 2 === 1) await engine.flush();
    if (last !== undefined) assert.throws(() => last?.getSync('0'), coded('TIDEMARK_CLOSED'));
    last = words;
  }
});

inBothHosts('an engine that closed with much in memory has nothing to replay', async (home) => {
  const value = 'v'.repeat(16_000);
  const first = await home.open();
  const words = await first.collection('words', {});
  const commits = Array.from({ length: 400 }, (_, i) => words.put(`${i}`, value));
  // Commits that are still under way when it closes are among what is flushed.
  await commits[0];
  const closedAt = performance.now();
  const closing = first.close();
  await assert.rejects(words.put('late', value), coded('TIDEMARK_CLOSED'));
  await closing;
  const closeMs = performance.now() - closedAt;
  await Promise.all(commits);
  await using engine = await home.open();
  await until('recovered', () => engine.stats().log.recovery.verdict !== 'created');
  // Nobody waits for longer than that until all is in parts.
  if (closeMs < 3_000) assert.equal(engine.stats().durability['recoveredTransactions'], 0);
  const again = await engine.collection('words', {});
  assert.equal(Array.from(again.keys()).length, 400);
});

// ---------------------------------------------------------------- poisoned

function saysWhy(failure: unknown): void {
  assert.equal((failure as TidemarkError).detail['errno'], 'ENOENT');
}

/** Takes the log's directory away: the next segment cannot be made. Answers the offsets acknowledged meanwhile. */
async function poison(home: Home, { engine, words }: Hands): Promise<number> {
  const log = join(home.directory, 'wal');
  renameSync(log, `${log}.away`);
  let acknowledged = 0;
  const unknown: unknown[] = [];
  while (unknown.length === 0) {
    const puts = Array.from({ length: 20 }, (_, i) =>
      words.put(`p${acknowledged + i}`, 'x'.repeat(500)),
    );
    for (const outcome of await Promise.allSettled(puts)) {
      if (outcome.status === 'rejected') unknown.push(outcome.reason);
      // What is acknowledged is a prefix.
      else assert.equal(unknown.length, 0);
      if (outcome.status === 'fulfilled') acknowledged++;
    }
    assert.ok(acknowledged < 10_000, 'the disk is missed');
  }
  // It may have failed while nothing was on its way: then these were not even sent.
  const unsent = unknown.filter((error) => (error as TidemarkError).code === 'TIDEMARK_POISONED');
  if (unsent.length < unknown.length) {
    for (const error of unknown)
      coded('TIDEMARK_OUTCOME_UNKNOWN', { durableUpper: engine.durableUpper })(error);
  }
  renameSync(`${log}.away`, log);
  return acknowledged;
}

inBothHosts(
  'poisoned: everything is refused, the cause is said once, reopening finds all',
  async (home) => {
    const engine = await home.open({ segmentBytes: 32 * 1024 });
    const hands = await handsOf(engine);
    const told: unknown[] = [];
    engine.on('poisoned', (failure) => told.push(failure));
    const waiting = [
      assert.rejects(engine.durable(1_000_000), coded('TIDEMARK_POISONED')),
      assert.rejects(engine.reached(1_000_000), coded('TIDEMARK_POISONED')),
    ];
    const acknowledged = await poison(home, hands);
    await Promise.all(waiting);
    assert.equal(engine.state, 'poisoned');
    saysWhy(engine.failure);
    const { upper, durableUpper } = engine;
    await refuses(hands, 'TIDEMARK_POISONED');
    await until('told', () => told.length > 0);
    await engine.close();
    await engine.close();
    assert.equal(engine.state, 'poisoned');
    saysWhy(engine.failure);
    assert.deepEqual([engine.upper, engine.durableUpper], [upper, durableUpper]);
    await refuses(hands, 'TIDEMARK_POISONED');
    assert.equal(told.length, 1);
    saysWhy(told[0]);
    const next = await home.open();
    const words = await next.collection('words');
    assert.equal(words.getSync('a'), '1');
    for (let i = 0; i < acknowledged; i++) assert.ok(words.hasSync(`p${i}`));
    await words.put('a', 'again');
    await refuses(hands, 'TIDEMARK_POISONED');
  },
);

inBothHosts('poisoned: the directory is free though nobody has closed the engine', async (home) => {
  const engine = await home.open({ segmentBytes: 32 * 1024 });
  const hands = await handsOf(engine);
  let isTold = false;
  engine.once('poisoned', () => (isTold = true));
  await poison(home, hands);
  // Looked for, not awaited: nothing of an engine that failed keeps a process alive.
  await until('poisoned', () => isTold);
  const next = await home.open();
  assert.equal((await next.collection('words')).getSync('a'), '1');
});

inBothHosts("another engine's handles are misuse", async (home) => {
  const other = new Home(home.host);
  try {
    const [mine, theirs] = [await home.open(), await other.open()];
    const words = await mine.collection('words', {});
    const strange = await theirs.collection('strange', {});
    await words.put('a', '1');
    await strange.put('a', '1');
    const snapshot = theirs.snapshot();
    const isOther = misuse(/another engine/);
    assert.throws(() => mine.transaction().put(strange, 'a', '2'), isOther);
    assert.throws(() => mine.transaction().delete(strange, 'a'), isOther);
    assert.throws(() => words.getSync('a', { snapshot }), isOther);
    assert.throws(() => words.entries({ snapshot }), isOther);
    await assert.rejects(words.get('a', { snapshot }), isOther);
    await assert.rejects(mine.drop(strange), isOther);
    await assert.rejects(mine.compact(strange), isOther);
    assert.equal(words.getSync('a'), '1');
  } finally {
    await other.end();
  }
});

test('two engines that live at once do not know each other', async () => {
  const homes = HOSTS.flatMap((host) => [new Home(host), new Home(host)]);
  try {
    const engines = await Promise.all(homes.map((home) => home.open()));
    const collections = await Promise.all(engines.map((engine) => engine.collection('words', {})));
    await Promise.all(
      collections.flatMap((words, n) =>
        Array.from({ length: 200 }, (_, i) => words.put(`k${i}`, `${n}`)),
      ),
    );
    for (const [n, words] of collections.entries()) {
      assert.equal([...words.keys()].length, 200);
      assert.deepEqual([...new Set(words.values())], [`${n}`]);
    }
    await engines[0]?.close();
    await collections[1]?.put('more', 'x');
    await assert.rejects(async () => collections[0]?.put('more', 'x'), coded('TIDEMARK_CLOSED'));
  } finally {
    await Promise.all(homes.map((home) => home.end()));
  }
});
