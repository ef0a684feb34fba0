/**
 * Goal: what an encoding takes comes back as it was, in the promised order, from memory and from parts;
 * what it does not take is refused; a codec of the caller's may do what it likes and harms only its own
 * call.
 */
import assert from 'node:assert/strict';
import { buffer, json, u64, utf8, view } from '../../actors/index.ts';
import type { Codec, Collection, Engine } from '../../actors/index.ts';
import { coded, inBothHosts, misuse, until } from './world.ts';

/** The same rows from the memtable, from a part, and by every way of reading. */
async function keeps<K, V>(
  engine: Engine,
  rows: Collection<K, V>,
  expected: readonly (readonly [K, V])[],
): Promise<void> {
  // Written against the order in which they come back.
  for (const [key, value] of expected.toReversed()) await rows.put(key, value);
  const check = async (): Promise<void> => {
    assert.deepEqual([...rows.entries()], expected);
    assert.deepEqual([...rows.entries({ reverse: true })], expected.toReversed());
    for (const [key, value] of expected) {
      assert.deepEqual(rows.getSync(key), value);
      assert.deepEqual(await rows.get(key), value);
      assert.deepEqual([...rows.values({ gte: key, limit: 1 })], [value]);
    }
  };
  await check();
  await engine.flush();
  await check();
}

inBothHosts('utf8 orders by code point, not by UTF-16 unit', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: utf8, value: 'utf8' });
  const keys = [
    '',
    '\0',
    'A',
    'a',
    'aa',
    'é',
    'ÿ',
    '\u{800}',
    '\u{ffff}',
    '😀',
    '😀a',
    '\u{10ffff}',
  ];
  await keeps(
    engine,
    rows,
    keys.map((key) => [key, `of ${key} 😀`]),
  );
  // By UTF-16 units the emoji would come before U+FFFF.
  assert.equal(keys.toSorted().indexOf('😀'), 8);
  // Half a surrogate pair is no text: it is kept as the replacement character.
  await rows.put('half', '\ud83d');
  assert.equal(rows.getSync('half'), '\u{fffd}');
  const long = 'ä'.repeat(10_000);
  await rows.put('long', long);
  assert.equal(rows.getSync('long'), long);
});

inBothHosts('buffer and view keep bytes in byte order', async (home) => {
  const engine = await home.open();
  const keys = [[], [0], [0, 0], [1], [1, 255], [127], [128], [255], [255, 0]].map((bytes) =>
    Buffer.from(bytes),
  );
  const buffers = await engine.collection('buffers', { key: buffer, value: 'buffer' });
  await keeps(
    engine,
    buffers,
    keys.map((key) => [key, Buffer.concat([key, key])]),
  );
  assert.ok(Buffer.isBuffer(buffers.getSync(keys[1])));
  const views = await engine.collection('views', { key: view, value: 'view' });
  const plain = keys.map((key) => new Uint8Array(key));
  await keeps(
    engine,
    views,
    plain.map((key) => [key, key]),
  );
  const found = views.getSync(new Uint8Array([0]));
  assert.equal(Object.getPrototypeOf(found), Uint8Array.prototype);
  // The bytes are the caller's own.
  const first = buffers.getSync(keys[8]);
  first?.fill(9);
  assert.deepEqual(buffers.getSync(keys[8]), Buffer.from([255, 0, 255, 0]));
  const [batch] = buffers.values({ gte: keys[8] });
  batch?.fill(9);
  assert.deepEqual(buffers.getSync(keys[8]), Buffer.from([255, 0, 255, 0]));
});

inBothHosts('u64 keeps safe integers in order, to both ends', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: u64, value: 'u64' });
  const max = Number.MAX_SAFE_INTEGER;
  const keys = [0, 1, 255, 256, 65_535, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 3, max - 1, max];
  await keeps(
    engine,
    rows,
    keys.map((key) => [key, max - key]),
  );
  for (const bad of [-1, 0.5, NaN, Infinity, max + 1, '1', 1n, null, undefined]) {
    await assert.rejects(rows.put(bad as number, 1), misuse(/safe integer/));
    await assert.rejects(rows.put(1, bad as number), misuse(/safe integer/));
    assert.throws(() => rows.getSync(bad as number), misuse(/safe integer/));
  }
  assert.equal(rows.getSync(1), max - 1);
});

inBothHosts('json keeps what JSON keeps', async (home) => {
  type Row = { n: number; list: string[]; nested: { ok: boolean | null } };
  const engine = await home.open();
  const rows = await engine.collection('rows', { value: json<Row>() });
  const row = { n: -1.5e300, list: ['', '😀'], nested: { ok: null } };
  await keeps(engine, rows, [['a', row]]);
  const anything = await engine.collection('anything', { key: 'json', value: 'json' });
  await keeps(engine, anything, [
    ['"', []],
    [0, null],
    [[1, 2], { deep: { er: 1 } }],
    [true, 'text'],
    [{ k: 1 }, 0],
  ]);
  for (const bad of [undefined, () => 1, Symbol('s')]) {
    await assert.rejects(anything.put('k', bad), misuse(/json/));
  }
  await assert.rejects(anything.put('k', 1n), TypeError);
  const circle: Record<string, unknown> = {};
  circle['self'] = circle;
  await assert.rejects(anything.put('k', circle), TypeError);
  assert.equal(anything.hasSync('k'), false);
});

type Point = { x: number; y: number };

/** The least a codec must have. */
const plainPoints: Codec<Point> = {
  name: 'point',
  encode: ({ x, y }) => Uint8Array.of(x, y),
  decode: (bytes) => ({ x: bytes[0], y: bytes[1] }),
};

/** The same bytes, without copies. */
const swiftPoints: Codec<Point> = {
  ...plainPoints,
  encodeInto({ x, y }, target, at) {
    if (at + 2 > target.length) return -1;
    target[at] = x;
    target[at + 1] = y;
    return 2;
  },
  decodeFrom(bytes, start, end) {
    assert.equal(end - start, 2);
    return { x: bytes[start], y: bytes[start + 1] };
  },
};

inBothHosts('codecs of the caller, with and without the swift half', async (home) => {
  const engine = await home.open();
  const rows: [Point, Point][] = [
    [
      { x: 0, y: 0 },
      { x: 3, y: 4 },
    ],
    [
      { x: 0, y: 255 },
      { x: 0, y: 0 },
    ],
    [
      { x: 7, y: 1 },
      { x: 1, y: 1 },
    ],
  ];
  for (const codec of [plainPoints, swiftPoints]) {
    const name = codec === plainPoints ? 'plain' : 'swift';
    const points = await engine.collection(name, { key: codec, value: codec });
    await keeps(engine, points, rows);
    const twin = codec === plainPoints ? swiftPoints : plainPoints;
    const again = await engine.collection(name, { key: twin, value: twin });
    assert.deepEqual([...again.entries()], rows);
  }
  const isMismatch = coded('TIDEMARK_KIND_MISMATCH', { key: 'point', value: 'point' });
  await assert.rejects(engine.collection('plain'), isMismatch);
  await assert.rejects(engine.collection('plain', { key: 'utf8', value: plainPoints }), isMismatch);
});

inBothHosts('encodeInto that finds no room is asked again, or encode is', async (home) => {
  const engine = await home.open();
  const texts: Codec<string> = {
    name: 'texts',
    encode: (text) => Buffer.from(text),
    decode: (bytes) => Buffer.from(bytes).toString(),
    encodeInto: (text, target, at) =>
      at + text.length > target.length ? -1 : Buffer.from(text).copy(target, at),
  };
  const rows = await engine.collection('rows', { key: texts, value: texts });
  for (const length of [0, 10, 100, 1_000, 10_000, 60_000]) {
    const text = 'x'.repeat(length);
    await rows.put(text, text);
    await engine.transaction().put(rows, `${text}2`, text).commit();
    assert.equal(rows.getSync(text), text);
    assert.equal(rows.getSync(`${text}2`), text);
  }
});

const failure = new Error('not today');

/** Strings, until told to fail. */
function moody(): { codec: Codec<string>; plain: Codec<string>; failing: Set<string> } {
  const failing = new Set<string>();
  const check = (what: string): void => {
    if (failing.has(what)) throw failure;
  };
  const codec: Codec<string> = {
    name: 'moody',
    encode(value) {
      check('encode');
      return Buffer.from(value);
    },
    decode(bytes) {
      check('decode');
      return Buffer.from(bytes).toString();
    },
    encodeInto(value, target, at) {
      check('encodeInto');
      // What is written before a failure must do no harm.
      target.fill(0xff, at, at + 8);
      check('encodeInto, late');
      return Buffer.from(value).copy(target, at);
    },
    decodeFrom(bytes, start, end) {
      check('decodeFrom');
      return Buffer.from(bytes.subarray(start, end)).toString();
    },
  };
  const plain: Codec<string> = {
    name: codec.name,
    encode: (value) => codec.encode(value),
    decode: (bytes) => codec.decode(bytes),
  };
  return { codec, plain, failing };
}

inBothHosts('a codec that throws fails its own call and nothing else', async (home) => {
  const engine = await home.open();
  for (const swift of [false, true]) {
    const { codec, plain, failing } = moody();
    const given = swift ? codec : plain;
    const rows = await engine.collection(`rows ${swift}`, { key: given, value: given });
    await rows.put('a', '1');
    const { upper } = engine;

    for (const what of swift ? ['encodeInto', 'encodeInto, late'] : ['encode']) {
      failing.add(what);
      // In the middle of a turn's record: those before and after it are in one with it.
      const before = other(engine, rows, failing, what, 'b');
      await assert.rejects(rows.put('c', '3'), failure);
      await assert.rejects(rows.delete('c'), failure);
      const tx = engine.transaction();
      assert.throws(() => tx.put(rows, 'd', '4'), failure);
      assert.throws(() => tx.delete(rows, 'a'), failure);
      assert.equal(tx.size, 0);
      const after = other(engine, rows, failing, what, 'e');
      failing.delete(what);
      tx.put(rows, 'd', '5');
      await Promise.all([before, after, tx.commit()]);
      assert.equal(engine.upper, upper + 3 * (what === 'encodeInto, late' ? 2 : 1));
      assert.deepEqual([...rows.entries()].flat(), ['a', '1', 'b', 'v', 'd', '5', 'e', 'v']);
      failing.add(what);
      assert.throws(() => rows.getSync('a'), failure);
      await assert.rejects(rows.get('a'), failure);
      await assert.rejects(rows.getMany(['a']), failure);
      failing.delete(what);
    }
    failing.add('encode');
    assert.throws(() => rows.entries({ gte: 'a' }), failure);
    failing.delete('encode');

    for (const flushed of [false, true]) {
      if (flushed) await engine.flush();
      failing.add(swift ? 'decodeFrom' : 'decode');
      assert.throws(() => rows.getSync('a'), failure);
      assert.throws(() => rows.getEntrySync('a'), failure);
      assert.throws(() => rows.getManySync(['a', 'b']), failure);
      await assert.rejects(rows.get('a'), failure);
      await assert.rejects(rows.getMany(['a', 'b']), failure);
      assert.throws(() => [...rows.entries()], failure);
      const walked = async (): Promise<void> => {
        for await (const row of rows.entries()) assert.fail(row[0]);
      };
      await assert.rejects(walked(), failure);
      assert.equal(rows.hasSync('a'), true);
      failing.clear();
      assert.equal(rows.getSync('a'), '1');
    }
  }
  // Of several reads that one call makes the others end after it has failed.
  await until('let go', () => engine.stats().holds.count === 0);
});

/** A put while the codec is in the mood for it. */
async function other(
  engine: Engine,
  rows: Collection<string, string>,
  failing: Set<string>,
  what: string,
  key: string,
): Promise<void> {
  failing.delete(what);
  const committed = engine.state === 'open' ? rows.put(key, 'v') : undefined;
  failing.add(what);
  await committed;
}

inBothHosts('a codec that returns nonsense is misuse', async (home) => {
  const engine = await home.open();
  let into: unknown = -1;
  let encoded: unknown = new Uint8Array(1);
  const codec: Codec<string> = {
    name: 'nonsense',
    encode: () => encoded as Uint8Array,
    decode: () => '',
    encodeInto: () => into as number,
  };
  const rows = await engine.collection('rows', { key: 'utf8', value: codec });
  for (into of [-2, 0.5, NaN, 1e9, '8', undefined, null]) {
    await assert.rejects(rows.put('a', ''), misuse(/nonsense: encodeInto/));
    assert.throws(() => engine.transaction().put(rows, 'a', ''), misuse(/nonsense: encodeInto/));
  }
  into = -1;
  for (encoded of [
    undefined,
    null,
    'text',
    [1],
    new ArrayBuffer(4),
    new Uint16Array(4),
    new DataView(new ArrayBuffer(4)),
  ]) {
    await assert.rejects(rows.put('a', ''), misuse(/nonsense: encode must/));
  }
  const keyed = await engine.collection('keyed', { key: codec, value: 'utf8' });
  await assert.rejects(keyed.put('', ''), misuse(/nonsense: encode must/));
  assert.throws(() => keyed.getSync(''), misuse(/nonsense: encode must/));
  assert.throws(() => keyed.entries({ gte: '' }), misuse(/nonsense: encode must/));
  encoded = Uint8Array.of(7);
  await rows.put('a', '');
  assert.equal(rows.getSync('a'), '');
});

inBothHosts('a codec may read from the engine, and must not write to it', async (home) => {
  const engine = await home.open();
  const names = await engine.collection('names', { key: 'u64', value: 'utf8', history: Infinity });
  for (let i = 0; i < 100; i++) await names.put(i, `name ${i}`);
  await engine.flush();
  let writes = false;
  const refused: unknown[] = [];
  const note = (error: unknown): void => void refused.push(error);
  /** A dictionary: numbers on disk, names in hand. */
  const byName: Codec<string> = {
    name: 'by name',
    encode(name) {
      for (const [n, known] of names.entries()) {
        if (known !== name) continue;
        if (writes) {
          names.put(n, 'other').catch(note);
          engine.transaction().put(names, n, 'other').commit().catch(note);
        }
        return u64.encode(n);
      }
      throw new RangeError(`no such name: ${name}`);
    },
    decode: (bytes) => names.getSync(u64.decode(bytes)) ?? '?',
    encodeInto(name, target, at) {
      target[at] = 0;
      names.getSync(1);
      const bytes = this.encode(name);
      target.set(bytes, at);
      return bytes.length;
    },
    decodeFrom(bytes, start, end) {
      names.getSync(99);
      return names.getSync(u64.decodeFrom!(bytes, start, end)) ?? '?';
    },
  };
  const rows = await engine.collection('rows', { key: byName, value: byName });
  for (let i = 0; i < 50; i++) await rows.put(`name ${i}`, `name ${99 - i}`);
  const check = async (): Promise<void> => {
    for (let i = 0; i < 50; i++) {
      assert.equal(rows.getSync(`name ${i}`), `name ${99 - i}`);
      assert.equal(await rows.get(`name ${i}`), `name ${99 - i}`);
    }
    let i = 0;
    for (const [key, value] of rows.entries()) {
      assert.deepEqual([key, value], [`name ${i}`, `name ${99 - i}`]);
      i++;
    }
    assert.equal(i, 50);
  };
  await check();
  await engine.flush();
  await check();
  await assert.rejects(rows.put('nobody', 'name 1'), RangeError);
  writes = true;
  await rows.put('name 1', 'name 2');
  writes = false;
  assert.equal(refused.length, 4);
  for (const error of refused) misuse(/codec must not write/)(error);
  assert.equal(rows.getSync('name 1'), 'name 2');
  assert.deepEqual(names.getSync(1), 'name 1');
});

inBothHosts('a codec cannot end the record that it is in the middle of', async (home) => {
  const engine = await home.open();
  let meddle: (() => Promise<unknown>) | undefined;
  let meddled: Promise<unknown> = Promise.resolve();
  const meddling: Codec<string> = {
    name: 'meddling',
    encode(text) {
      if (meddle !== undefined) meddled = meddle().then(() => 'done', String);
      meddle = undefined;
      return Buffer.from(text);
    },
    decode: (bytes) => Buffer.from(bytes).toString(),
  };
  const rows = await engine.collection('rows', { key: 'utf8', value: meddling });
  const ways = [() => engine.flush(), () => engine.checkpoint(), () => engine.close()];
  for (const [i, way] of ways.entries()) {
    const before = rows.put('a', `${i}`);
    meddle = way;
    const during = rows.put('b', `${i}`);
    const after = rows.put('c', `${i}`);
    await Promise.all([before, during, after]);
    assert.match(String(await meddled), /TypeError: a codec must not write/);
    assert.deepEqual(rows.getManySync(['a', 'b', 'c']), [`${i}`, `${i}`, `${i}`]);
  }
  const tx = engine.transaction();
  meddle = () => tx.commit();
  await tx.put(rows, 'd', 'd').commit();
  assert.match(String(await meddled), /TypeError: a codec must not write/);
  assert.equal(rows.getSync('d'), 'd');
  await engine.close();
});
