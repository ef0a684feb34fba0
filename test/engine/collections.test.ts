/**
 * Goal: collections are made once, found again as they are, told apart after a drop, keep the history
 * they were told to keep, and say when they were touched.
 */
import assert from 'node:assert/strict';
import type { CollectionOptions, Engine, History } from '../../actors/index.ts';
import { coded, inBothHosts, misuse, until } from './world.ts';
import type { Home } from './world.ts';

inBothHosts('a collection is made by its first options and found without any', async (home) => {
  {
    await using engine = await home.open({ history: 7 });
    await assert.rejects(
      engine.collection('words'),
      coded('TIDEMARK_NOT_FOUND', { collection: 'words' }),
    );
    assert.deepEqual(engine.collections(), []);
    const words = await engine.collection('words', { key: 'u64', value: 'json' });
    assert.equal(words.name, 'words');
    assert.equal(words.kind, 'keyed');
    await words.put(1, { a: 1 });
    await engine.collection('plain', {});
    await engine.collection('all', { history: Infinity });
    await engine.collection('kind', { kind: 'keyed', history: { offsets: 3 } });
  }
  const engine = await home.open();
  const words = await engine.collection('words');
  assert.deepEqual(
    [...(words as unknown as Iterable<never> & typeof words).entries()],
    [[1, { a: 1 }]],
  );
  const found = engine
    .collections()
    .map(({ name: of, kind, key, value, history }) => [of, kind, key, value, history]);
  assert.deepEqual(found, [
    ['all', 'keyed', 'utf8', 'utf8', Infinity],
    ['kind', 'keyed', 'utf8', 'utf8', 3],
    ['plain', 'keyed', 'utf8', 'utf8', 7],
    ['words', 'keyed', 'u64', 'json', 7],
  ]);
  // Given again, history is not changed by opening.
  await engine.collection('plain', { history: 1_000 });
  assert.equal(engine.collections().find(({ name }) => name === 'plain')?.history, 7);
});

inBothHosts('two calls for one name make one collection', async (home) => {
  const engine = await home.open();
  const handles = await Promise.all(
    Array.from({ length: 5 }, () => engine.collection('words', {})),
  );
  for (const [i, words] of handles.entries()) await words.put(`${i}`, 'v');
  for (const words of handles) assert.equal([...words.keys()].length, 5);
  assert.equal(engine.collections().length, 1);
});

inBothHosts('another encoding is a mismatch, and changes nothing', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', { key: 'utf8', value: 'json' });
  await words.put('a', { n: 1 });
  const { upper } = engine;
  const isMismatch = coded('TIDEMARK_KIND_MISMATCH', {
    collection: 'words',
    key: 'utf8',
    value: 'json',
  });
  for (const options of [
    { key: 'u64' },
    { value: 'utf8' },
    { key: 'buffer', value: 'json' },
  ] as const) {
    await assert.rejects(engine.collection('words', options), isMismatch);
  }
  assert.equal(engine.upper, upper);
  // A name for the same bytes is the same encoding.
  const bytes = await engine.collection('bytes', { key: 'buffer', value: 'view' });
  await bytes.put(Buffer.from('a'), Buffer.from('b'));
  const same = await engine.collection('bytes', { key: 'view', value: 'buffer' });
  assert.deepEqual(same.getSync(Buffer.from('a')), Buffer.from('b'));
  assert.deepEqual(words.getSync('a'), { n: 1 });
});

/** So many bytes in UTF-8. */
function nameOf(bytes: number): string {
  return 'ü'.repeat(bytes / 2) + 'x'.repeat(bytes % 2);
}

inBothHosts('names and options that cannot be are misuse', async (home) => {
  const engine = await home.open();
  await engine.collection(nameOf(1), {});
  await engine.collection(nameOf(255), {});
  for (const bad of ['', nameOf(256), 7, null, undefined, {}]) {
    await assert.rejects(engine.collection(bad as string, {}), misuse(/collection name/));
    await assert.rejects(engine.drop(bad as string), TypeError);
  }
  const cases: [unknown, RegExp][] = [
    [{ keys: 'utf8' }, /unknown collection option keys/],
    [{ key: 'utf-8' }, /key is an encoding name/],
    [{ value: 7 }, /value is an encoding name/],
    [{ value: { name: 'x', encode: () => new Uint8Array() } }, /value is an encoding name/],
    [{ kind: 'list' }, /kind/],
    [{ history: -1 }, /history/],
    [{ history: 0.5 }, /history/],
    [{ history: 'all' }, /history/],
    [{ history: null }, /history/],
    [null, /object/],
    ['utf8', /object/],
  ];
  for (const [options, message] of cases) {
    const given = options as CollectionOptions<'utf8', 'utf8'>;
    await assert.rejects(engine.collection('other', given), misuse(message));
  }
  assert.equal(engine.collections().length, 2);
});

// ---------------------------------------------------------------- dropping

inBothHosts(
  'a dropped collection is gone, its name free, its rows never come back',
  async (home) => {
    let engine = await home.open();
    const first = await engine.collection('words', {});
    for (let i = 0; i < 100; i++) await first.put(`${i}`, 'old');
    await engine.flush();
    const { offset } = await engine.drop('words');
    assert.equal(engine.upper, offset + 1);
    assert.deepEqual(engine.collections(), []);
    const isGone = coded('TIDEMARK_NOT_FOUND', { collection: 'words' });
    await assert.rejects(engine.collection('words'), isGone);
    await assert.rejects(engine.drop('words'), isGone);
    await assert.rejects(engine.drop(first), isGone);
    // The handle of what is gone takes nothing that would be lost.
    await assert.rejects(first.put('a', '1'), isGone);
    await assert.rejects(first.delete('a'), isGone);
    assert.throws(() => engine.transaction().put(first, 'a', '1'), isGone);
    assert.throws(() => first.getSync('1'), isGone);
    await assert.rejects(first.get('1'), isGone);
    assert.throws(() => first.entries(), isGone);
    await assert.rejects(first.setHistory(9), isGone);
    assert.equal(engine.upper, offset + 1);

    const second = await engine.collection('words', { value: 'json' });
    assert.deepEqual([...second.entries()], []);
    await second.put('a', { n: 1 });
    // What was of the first must not reach the second.
    await assert.rejects(engine.drop(first), isGone);
    await assert.rejects(first.setHistory(9), isGone);
    await assert.rejects(first.put('a', '1'), isGone);
    for (let round = 0; round < 2; round++) {
      await engine.flush();
      await engine.compact();
      assert.deepEqual([...second.entries()], [['a', { n: 1 }]]);
    }
    await engine.close();
    engine = await home.open();
    const third = await engine.collection('words');
    assert.deepEqual([...(third as unknown as typeof second).entries()], [['a', { n: 1 }]]);
    assert.deepEqual(await engine.drop(third), { offset: engine.upper - 1 });
  },
);

inBothHosts('files of dropped collections go', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const kept = await engine.collection('kept', {});
  for (let i = 0; i < 200; i++) await words.put(`${i}`, 'x'.repeat(500));
  await kept.put('a', '1');
  await engine.flush();
  assert.ok(engine.stats().collections.some(({ name }) => name === 'words'));
  await engine.drop(words);
  await kept.put('a', '2');
  await engine.flush();
  await until('the spine goes', () => engine.stats().collections.every(({ id }) => id !== 1));
  assert.equal(kept.getSync('a'), '2');
});

inBothHosts('a snapshot sees what was dropped after it', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  await engine.flush();
  using snap = engine.snapshot();
  await engine.drop(words);
  const again = await engine.collection('words', {});
  await again.put('a', '2');
  await engine.flush();
  await engine.compact();
  assert.equal(words.getSync('a', { snapshot: snap }), '1');
  assert.equal(again.getSync('a'), '2');
  assert.equal(again.getSync('a', { snapshot: snap }), undefined);
});

inBothHosts('of what was dropped only who held a time sees the past', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', { history: Infinity });
  const other = await engine.collection('other', { history: Infinity });
  const { offset } = await words.put('a', '1');
  await words.put('a', '2');
  using early = engine.snapshot();
  await engine.drop(words);
  const isLost = coded('TIDEMARK_HISTORY_LOST', { asOf: offset });
  const check = async (): Promise<void> => {
    const asOf = { asOf: offset };
    assert.throws(() => words.getSync('a', asOf), isLost);
    assert.throws(() => words.hasSync('a', asOf), isLost);
    assert.throws(() => words.getManySync(['a'], asOf), isLost);
    assert.throws(() => words.entries(asOf), isLost);
    await assert.rejects(words.get('a', asOf), isLost);
    await assert.rejects(words.getMany(['a'], asOf), isLost);
    using late = engine.snapshot(asOf);
    assert.throws(() => words.getSync('a', { snapshot: late }), isLost);
    assert.equal(other.getSync('a', { snapshot: late }), undefined);
    assert.equal(other.getSync('a', asOf), undefined);
  };
  await check();
  assert.equal(words.getSync('a', { snapshot: early }), '2');
  await engine.flush();
  await engine.compact();
  assert.equal(words.getSync('a', { snapshot: early }), '2');
  early.close();
  await other.put('b', '1');
  await engine.flush();
  await until('the spine goes', () =>
    engine.stats().collections.every(({ id }) => id !== words.id),
  );
  await check();
});

inBothHosts(
  'making, dropping and changing one name at once ends in one of the orders',
  async (home) => {
    const engine = await home.open();
    const words = await engine.collection('words', {});
    const dropped = engine.drop('words');
    const changed = words.setHistory(5).catch(coded('TIDEMARK_NOT_FOUND'));
    const made = engine.collection('words', { value: 'u64' });
    await Promise.all([dropped, changed]);
    const next = await made;
    await next.put('a', 1);
    assert.deepEqual(
      engine.collections().map(({ name, value, history }) => [name, value, history]),
      [['words', 'u64', 0]],
    );
  },
);

// ---------------------------------------------------------------- history, touched

inBothHosts('setHistory keeps more from now on, or less', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const historyOf = (): History | undefined => engine.collections()[0]?.history;
  assert.equal(historyOf(), 0);
  const lower = engine.upper;
  await words.setHistory(Infinity);
  assert.equal(historyOf(), Infinity);
  await rewrite(engine, home);
  for (let T = lower + 1; T < engine.upper; T++) words.getSync('a', { asOf: T });
  await words.setHistory(4);
  assert.equal(historyOf(), 4);
  await rewrite(engine, home);
  assert.ok(words.since <= engine.upper - 1 - 4);
  for (let T = engine.upper - 5; T < engine.upper; T++) words.getSync('a', { asOf: T });
  await until('history goes', () => words.since > lower + 1);
  await words.setHistory({ offsets: 2 });
  assert.equal(historyOf(), 2);
  for (const bad of [-1, 0.5, NaN, '3', null, undefined, {}, { offsets: -1 }]) {
    await assert.rejects(words.setHistory(bad as History), misuse(/history/));
  }
  assert.equal(historyOf(), 2);
});

/** Some offsets, flushed and merged. */
async function rewrite(engine: Engine, home: Home): Promise<void> {
  assert.ok(home.host);
  const words = await engine.collection('words', {});
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 10; i++) await words.put('a', `${i}`);
    await engine.flush();
  }
  await engine.compact();
}

inBothHosts('touched is one above the last change, wherever it lies', async (home) => {
  let engine = await home.open();
  const words = await engine.collection('words', {});
  const other = await engine.collection('other', {});
  assert.equal(words.touched, 0);
  const { offset } = await words.put('a', '1');
  const check = (expected: number): void => {
    assert.equal(words.touched, expected);
    assert.equal(engine.collections().find(({ name }) => name === 'words')?.touched, expected);
  };
  check(offset + 1);
  await other.put('x', 'y');
  check(offset + 1);
  await engine.flush();
  check(offset + 1);
  await other.put('x', 'z');
  check(offset + 1);
  const { offset: later } = await words.put('b', '1');
  check(later + 1);
  await engine.flush();
  await engine.compact();
  check(later + 1);
  await engine.close();
  engine = await home.open();
  const again = await engine.collection('words');
  assert.equal(again.touched, later + 1);
});

inBothHosts('a delete touches, also one of a key that is not there', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  const { offset } = await words.delete('a');
  assert.equal(words.touched, offset + 1);
  const { offset: later } = await words.delete('none');
  assert.equal(words.touched, later + 1);
  await engine.flush();
  assert.equal(words.touched, later + 1);
});
