/**
 * Goal: tuples order as a comparator that knows nothing of bytes says, come back as they were, and their
 * leading elements select exactly the tuples that begin with them. Method: seeded random tuples, drawn so
 * that neighbours are close, against the comparator.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { tuple } from '../../actors/index.ts';
import type { TupleElement } from '../../actors/index.ts';
import { compareBytes } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import { inBothHosts, misuse } from './world.ts';

const codec = tuple();

function rank(element: TupleElement): number {
  if (element === null) return 0;
  if (typeof element === 'boolean') return element ? 2 : 1;
  if (typeof element === 'number') return 3;
  if (typeof element === 'bigint') return 4;
  return typeof element === 'string' ? 5 : 6;
}

function compareElements(a: TupleElement, b: TupleElement): number {
  if (rank(a) !== rank(b)) return rank(a) - rank(b);
  if (typeof a === 'number') return a - (b as number) || 0;
  if (typeof a === 'bigint') return a < (b as bigint) ? -1 : a > (b as bigint) ? 1 : 0;
  if (typeof a === 'string') {
    // By code point.
    const x = Array.from(a, (c) => c.codePointAt(0)!);
    const y = Array.from(b as string, (c) => c.codePointAt(0)!);
    for (let i = 0; i < x.length && i < y.length; i++) if (x[i] !== y[i]) return x[i] - y[i];
    return x.length - y.length;
  }
  return a instanceof Uint8Array ? Buffer.compare(a, b as Uint8Array) : 0;
}

function compareTuples(a: readonly TupleElement[], b: readonly TupleElement[]): number {
  for (let i = 0; i < a.length && i < b.length; i++) {
    const order = compareElements(a[i], b[i]);
    if (order !== 0) return Math.sign(order);
  }
  return Math.sign(a.length - b.length);
}

const NUMBERS = [0, 1, -1, 0.5, -0.5, 1e308, -1e308, 5e-324, -5e-324, Infinity, -Infinity, 2 ** 53];
const TEXTS = [
  '',
  '\0',
  '\u0001',
  '\u0002',
  'a',
  'a\0',
  'ab',
  'é',
  '\u{ffff}',
  '😀',
  'x'.repeat(40),
];

function randomBigint(random: Prng): bigint {
  const bits = random.pick([1, 8, 9, 63, 64, 65, 1007, 1008, 1009, 1016, 1017, 3000]);
  const edge = 1n << BigInt(bits);
  const value = edge + BigInt(random.between(-2, 2));
  return random.chance(0.5) ? -value : value;
}

function randomElement(random: Prng): TupleElement {
  switch (random.below(8)) {
    case 0:
      return null;
    case 1:
      return random.chance(0.5);
    case 2:
      return random.pick(NUMBERS);
    case 3:
      return (random.unit() - 0.5) * 2 ** random.between(-20, 60);
    case 4:
      return random.chance(0.3) ? BigInt(random.between(-300, 300)) : randomBigint(random);
    case 5:
      return random.pick(TEXTS) + (random.chance(0.3) ? random.pick(TEXTS) : '');
    case 6:
      return Buffer.from(
        Array.from({ length: random.below(6) }, () => random.pick([0, 1, 2, 254, 255])),
      );
    default:
      return random.pick(['a', 1, true, null, 1n]);
  }
}

function randomTuple(random: Prng): TupleElement[] {
  return Array.from({ length: random.below(4) }, () => randomElement(random));
}

test('tuples come back as they were, whatever encodes and decodes them', () => {
  const random = new Prng(31);
  for (let i = 0; i < 20_000; i++) {
    const given = randomTuple(random);
    const bytes = codec.encode(given);
    assert.deepEqual(codec.decode(bytes), given);
    const target = Buffer.alloc(bytes.length + 3, 0xcc);
    assert.equal(codec.encodeInto!(given, target, 2), bytes.length);
    assert.deepEqual(target.subarray(2, -1), Buffer.from(bytes));
    assert.equal(target[1], 0xcc);
    assert.deepEqual(codec.decodeFrom!(target, 2, 2 + bytes.length), given);
    assert.equal(codec.encodeInto!(given, target, 4), -1);
  }
});

test('encoded bytes order as the tuples do, and prefixes of tuples are prefixes of bytes', () => {
  const random = new Prng(32);
  for (let i = 0; i < 40_000; i++) {
    const a = randomTuple(random);
    // Near each other, so that more than the first element decides.
    const b = random.chance(0.5)
      ? [...a.slice(0, random.below(4)), ...randomTuple(random)]
      : randomTuple(random);
    const order = compareTuples(a, b);
    const where = JSON.stringify([a, b], (_, v) => (typeof v === 'bigint' ? `${v}n` : v));
    const [x, y] = [codec.encode(a), codec.encode(b)];
    assert.equal(Math.sign(compareBytes(x, y)), order, where);
    const begins = compareTuples(b.slice(0, a.length), a) === 0;
    const beginsInBytes = compareBytes(y.subarray(0, x.length), codec.encodePrefix!(a)) === 0;
    assert.equal(beginsInBytes, begins, where);
  }
});

test('the bytes are the format: every type of element', () => {
  const cases: [TupleElement[], string][] = [
    [[], ''],
    [[null, false, true], '102021'],
    [[0], '308000000000000000'],
    [[-0], '308000000000000000'],
    [[1], '30bff0000000000000'],
    [[-1], '30400fffffffffffff'],
    [[0n, 1n, 256n], '40804081014082' + '0100'],
    [[-1n, -256n], '407efe' + '407dfeff'],
    [['a\0\u0001é', ''], '5061' + '0101' + '0102' + 'c3a900' + '5000'],
    [[Buffer.from([0, 1, 2, 255])], '60' + '0101' + '0102' + '02ff' + '00'],
    [[1n << 1016n], '40ff0080' + '01' + '00'.repeat(127)],
  ];
  for (const [given, hex] of cases)
    assert.equal(Buffer.from(codec.encode(given)).toString('hex'), hex);
});

test('what is no tuple is refused, and so are bytes that are none', () => {
  const cases: [unknown, RegExp][] = [
    ['a', /array/],
    [null, /array/],
    [[NaN], /NaN/],
    [['a', undefined], /element 1/],
    [[['a']], /element 0/],
    [[{}], /element 0/],
    [[Symbol.iterator], /element 0/],
    [[new Uint16Array(2)], /element 0/],
    [[1n << 530_000n], /too large/],
  ];
  for (const [given, message] of cases) {
    assert.throws(() => codec.encode(given as TupleElement[]), misuse(message));
  }
  for (const hex of ['11', '30ff', '4085', '5061', '50', '60', '00']) {
    const bytes = Buffer.from(hex, 'hex');
    assert.throws(() => codec.decode(bytes), misuse(/no tuple/));
  }
  assert.throws(() => codec.encodePrefix!('a'), misuse(/leading elements/));
});

inBothHosts('tuple keys and values: points, ranges, prefixes, over reopening', async (home) => {
  const random = new Prng(33);
  let engine = await home.open();
  const made = await engine.collection('rows', {
    key: tuple<[string, number]>(),
    value: tuple<[TupleElement]>(),
    history: Infinity,
  });
  const model = new Map<string, [[string, number], TupleElement]>();
  const tx = engine.transaction();
  for (let i = 0; i < 600; i++) {
    const key: [string, number] = [random.pick(TEXTS), random.pick(NUMBERS)];
    const value = randomElement(random);
    tx.put(made, key, [value]);
    model.set(JSON.stringify([key[0], String(key[1])]), [key, value]);
  }
  await tx.commit();
  const rows = [...model.values()].toSorted(([a], [b]) => compareTuples(a, b));
  const check = async (collection: typeof made): Promise<void> => {
    const all = [...collection.entries()];
    assert.deepEqual(
      all,
      rows.map(([key, value]) => [key, [value]]),
    );
    for (const [key, value] of rows) {
      assert.deepEqual(collection.getSync(key), [value]);
      assert.deepEqual(await collection.get(key), [value]);
    }
    for (const text of TEXTS) {
      const begun = rows.filter(([key]) => key[0] === text).map(([key]) => key);
      assert.deepEqual([...collection.keys({ prefix: [text] })], begun);
      assert.deepEqual([...collection.keys({ prefix: [text], reverse: true })], begun.toReversed());
      assert.deepEqual(
        [...collection.keys({ prefix: [text], gt: [text, 0] })],
        begun.filter(([, n]) => n > 0),
      );
    }
  };
  await check(made);
  await engine.flush();
  await check(made);
  await engine.close();
  engine = await home.open();
  // The name in the catalog is enough.
  await check((await engine.collection('rows')) as unknown as typeof made);
  await assert.rejects(engine.collection('rows', { key: 'json' }), /'tuple'/);
});
