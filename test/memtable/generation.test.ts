/**
 * Generations against a model that looks at everything. Goal: whatever is inserted, in whatever
 * shape of keys and whenever chunks are sorted and runs merged, a reader at T sees exactly what was
 * written up to T, by points and by ranges, both ways. Chunks of a few keys make merges happen early.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { OP_DELETE, OP_PUT, OP_UPDATE } from '../../core/base/update.ts';
import { OFFSET_MAX } from '../../core/base/frontier.ts';
import { GiB, MiB, arenaBytesMax, pageBytes } from '../../core/base/limits.ts';
import { compareBytes } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import { setVerify } from '../../core/base/assert.ts';
import { VERSIONS_ALL, VERSIONS_NEWEST } from '../../core/memtable/cursor.ts';
import { keyHash } from '../../core/memtable/reader.ts';
import type { GenerationOptions, GenerationWriter } from '../../core/memtable/writer.ts';
import { Model, World, bytesOf, randomBytes, rowAt, textOf } from './world.ts';
import type { Operation, Row } from './world.ts';

setVerify(true);

type Shape = {
  name: string;
  collections: number;
  key: (random: Prng, collection: number) => Uint8Array;
};

const few = (random: Prng, alphabet: string, lengthMax: number): Uint8Array => {
  let key = '';
  for (let n = random.between(0, lengthMax); n > 0; n--)
    key += alphabet.charAt(random.below(alphabet.length));
  return bytesOf(key);
};

const SHAPES: Shape[] = [
  { name: 'few keys, the empty one among them', collections: 2, key: (r) => few(r, 'ab', 2) },
  { name: 'zeros and ends', collections: 1, key: (r) => few(r, '\0\x01', 9) },
  {
    name: 'one hot key',
    collections: 1,
    key: (r) => bytesOf(r.chance(0.8) ? 'hot' : few(r, 'xyz', 3).toString()),
  },
  { name: 'random bytes', collections: 1, key: (r) => randomBytes(r, 16) },
  { name: 'high bytes', collections: 3, key: (r) => few(r, '\x7f\x80\xff', 5) },
  {
    name: 'long shared prefixes',
    collections: 2,
    key: (r) => bytesOf('tenant/0000000000000001/'.repeat(3) + textOf(few(r, '01/', 12))),
  },
  {
    name: 'counters',
    collections: 1,
    key: (() => {
      let n = 65_500;
      return () => {
        const key = Buffer.alloc(8);
        key.writeBigUInt64BE(BigInt(n++));
        return key;
      };
    })(),
  },
  { name: 'many collections', collections: 300, key: (r) => few(r, 'ab', 3) },
];

/** Every other collection is a multiset; from the second one on where `skip` is 1. */
function randomOperation(random: Prng, shape: Shape, skip: number): Operation {
  // Ids far apart, the catalog's among them.
  const number = random.below(shape.collections) + skip;
  const collection = number * 1_000_003;
  const key = shape.key(random, collection);
  const isFew = random.chance(0.4);
  const value = isFew ? few(random, 'xy', 2) : randomBytes(random, random.below(40));
  if (number % 2 === 1) {
    return { collection, key, kind: OP_UPDATE, value, diff: random.between(1, 9) * 1e12 - 5e12 };
  }
  if (random.chance(0.2)) {
    return { collection, key, kind: OP_DELETE, value: bytesOf(''), diff: -1 };
  }
  return { collection, key, kind: OP_PUT, value, diff: 1 };
}

function checkPoint(world: World, model: Model, collection: number, key: string, T: number): void {
  const raw = bytesOf(`--${key}`);
  const hash = keyHash(raw, 2, raw.length - 2);
  const node = world.reader.find(collection, raw, 2, raw.length - 2, hash, T);
  const expected = model.find(collection, key, T);
  if (expected === undefined) assert.equal(node, 0);
  else assert.deepEqual(world.rowOf(node), expected);
}

function walk(world: World, backward: boolean): Row[] {
  const { cursor } = world;
  const rows: Row[] = [];
  if (backward) cursor.last();
  else cursor.first();
  for (let row = rowAt(cursor); row !== undefined; row = rowAt(cursor)) {
    rows.push(row);
    if (backward) cursor.previous();
    else cursor.next();
  }
  return rows;
}

/** Ranges of one collection as of T: whole walks, seeks, and steps to and fro. */
function checkRanges(
  world: World,
  model: Model,
  writer: GenerationWriter,
  collection: number,
  T: number,
  random: Prng,
): void {
  const { cursor } = world;
  for (const versions of [VERSIONS_ALL, VERSIONS_NEWEST]) {
    const rows = model.rows(collection, T, versions === VERSIONS_ALL);
    cursor.open(writer.header, collection, T, versions);
    assert.deepEqual(walk(world, false), rows);
    assert.deepEqual(walk(world, true), rows.toReversed());
    for (let n = 0; n < 8; n++) {
      const key =
        rows.length > 0 && random.chance(0.7)
          ? bytesOf(random.pick(rows).key)
          : few(random, 'ab', 3);
      const above = rows.findIndex((row) => compareBytes(bytesOf(row.key), key) >= 0);
      let at = above === -1 ? rows.length : above;
      if (random.chance(0.5)) {
        cursor.seek(key, 0, key.length);
      } else {
        cursor.seekBelow(key, 0, key.length);
        at--;
      }
      for (let steps = 0; steps < 12; steps++) {
        assert.deepEqual(rowAt(cursor), rows[at]);
        if (!cursor.valid) break;
        if (random.chance(0.5)) {
          cursor.next();
          at++;
        } else {
          cursor.previous();
          at--;
        }
      }
    }
  }
}

function checkAll(
  world: World,
  model: Model,
  writer: GenerationWriter,
  time: number,
  random: Prng,
): void {
  world.reader.attach(writer.header);
  assert.deepEqual(world.reader.collections(), model.collections());
  for (let n = 0; n < 6; n++) {
    const collection = random.pick([...model.collections(), 77]);
    assert.equal(world.reader.newestTimeOf(collection), model.newestTime(collection));
    const T = random.pick([-1, 0, OFFSET_MAX, time, time - 1, random.below(time + 1)]);
    for (const row of model.rows(collection, OFFSET_MAX, false).slice(0, 40)) {
      checkPoint(world, model, collection, row.key, T);
    }
    checkPoint(world, model, collection, 'nowhere', T);
    checkRanges(world, model, writer, collection, T, random);
  }
}

/** One life of a generation: written, maintained and read at random, sealed, freed. */
function run(
  shape: Shape,
  seed: number,
  options: Partial<GenerationOptions>,
  world: World = new World(32 * MiB),
): void {
  const random = new Prng(seed);
  const model = new Model();
  const writer = world.create(options);
  const first = random.pick([0, 1_000, 2 ** 32 - 100, 2 ** 45]);
  writer.open(first);
  let time = first;
  for (let n = 0; n < 200; n++) {
    const operations = Array.from({ length: random.between(1, 4) }, () =>
      randomOperation(random, shape, seed % 2),
    );
    world.write(writer, operations, time);
    model.write(operations, time);
    if (random.chance(0.5)) writer.maintain(random.below(40));
    if (random.chance(0.03)) checkAll(world, model, writer, time, random);
    time += random.below(3);
  }
  while (writer.maintain(50));
  checkAll(world, model, writer, time, random);
  writer.seal(time + 1);
  checkAll(world, model, writer, time, random);
  assert.equal(world.reader.lower, first);
  assert.equal(world.reader.upper, time + 1);
  assert.equal(world.reader.rows, writer.rows);
  assert.equal(world.reader.bytes, writer.bytes);
  assert.equal(world.leased().memtable, writer.pages);
  writer.free();
  world.closePage();
  assert.deepEqual(world.leased(), { record: 0, memtable: 0 });
}

describe('a generation answers like the model', () => {
  for (const shape of SHAPES) {
    test(shape.name, () => {
      for (let seed = 1; seed <= 3; seed++) {
        run(shape, seed, { chunkKeys: seed * seed, fanIn: seed + 1, buckets: 8 });
        run(shape, seed, {});
      }
    });
  }

  test('where addresses do not fit 31 bits', () => {
    const firstPage = (3 * GiB) / pageBytes;
    for (const shape of SHAPES) {
      const world = new World(arenaBytesMax, 1_000, 1_000, firstPage);
      run(shape, 9, { chunkKeys: 8, fanIn: 2 }, world);
    }
  });
});

test('updates of a key order by value, also where values run over pages', () => {
  const world = new World(64 * MiB);
  const writer = world.create();
  writer.open(0);
  const size = pageBytes + 50;
  const values = [9, 3, 7].map((last) => {
    const value = new Uint8Array(size).fill(5);
    value[size - 1] = last;
    return value;
  });
  const short = new Uint8Array(size - 1).fill(5);
  const key = bytesOf('k');
  const all = [...values, short, values[1], bytesOf('')];
  for (const [time, value] of all.entries()) {
    world.write(writer, [{ collection: 4, key, kind: OP_UPDATE, value, diff: 1 }], time);
  }
  world.cursor.open(writer.header, 4, 10, VERSIONS_ALL);
  const times = walk(world, false).map(({ time }) => time);
  assert.deepEqual(times, [5, 3, 1, 4, 2, 0]);
  assert.deepEqual(
    walk(world, true).map(({ time }) => time),
    times.toReversed(),
  );
  writer.seal(11);
  writer.free();
  world.closePage();
  assert.deepEqual(world.leased(), { record: 0, memtable: 0 });
});
