/**
 * Goal: range deletes in generations hide what looking at every operation says they hide. Method: random
 * histories over few keys and collections; readers ask at every time while the generation grows, and
 * again when it is sealed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes } from '../../core/base/bytes.ts';
import { MiB, keyBytesMax, pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { rangeHolds } from '../../core/base/range-set.ts';
import { OP_DELETE, OP_DELETE_RANGE, OP_PUT } from '../../core/base/update.ts';
import { NewestRows } from '../../core/memtable/newest.ts';
import { Overtaken } from '../../core/memtable/overtaken.ts';
import { keyHash } from '../../core/memtable/reader.ts';
import { rangesListedMax } from '../../core/memtable/range-sets.ts';
import { OperationWalker } from '../../core/shared/record-pages.ts';
import { World, bytesOf, encode, textOf } from './world.ts';
import type { Operation } from './world.ts';

const KEYS = ['', 'a', 'aa', 'ab', 'b', 'ba', 'c', 'ca', 'd', 'e'];

function randomOperation(random: Prng, ranges: number): Operation {
  const collection = 1 + random.below(3);
  const key = bytesOf(random.pick(KEYS));
  if (random.chance(ranges)) {
    const value = bytesOf(random.pick(KEYS));
    return { collection, key, kind: OP_DELETE_RANGE, value, diff: 0 };
  }
  const kind = random.chance(0.2) ? OP_DELETE : OP_PUT;
  const value = kind === OP_PUT ? bytesOf(`v${random.below(100)}`) : new Uint8Array(0);
  return { collection, key, kind, value, diff: 1 };
}

type Written = { operation: Operation; time: number };

function newestRange(written: readonly Written[], collection: number, key: string, T: number) {
  const times = written
    .filter(({ operation, time }) => {
      const { kind, collection: id, key: lo, value: hi } = operation;
      const isRange = kind === OP_DELETE_RANGE && id === collection && time <= T;
      return isRange && rangeHolds({ lo, hi, time }, bytesOf(key));
    })
    .map(({ time }) => time);
  return Math.max(-1, ...times);
}

test('the newest range delete over a key is found at every time, while others come in', () => {
  for (let seed = 0; seed < 25; seed++) {
    const random = new Prng(seed);
    const world = new World(48 * MiB);
    const writer = world.create({ chunkKeys: 8 });
    writer.open(0);
    const written: Written[] = [];
    const count = 1 + random.below(12 * rangesListedMax);
    const check = (T: number): void => {
      world.reader.attach(writer.header);
      assert.equal(
        world.reader.hasRanges,
        written.some(({ operation }) => operation.kind === OP_DELETE_RANGE),
      );
      for (const collection of [1, 2, 3]) {
        for (const key of KEYS) {
          const bytes = bytesOf(key);
          const expected = newestRange(written, collection, key, T);
          const found = world.reader.newestRange(collection, bytes, 0, bytes.length, -1, T);
          assert.equal(found, expected, `seed ${seed}, ${key} of ${collection} at ${T}`);
        }
      }
    };
    for (let time = 0; time < count; time++) {
      const operation = randomOperation(random, 0.6);
      world.write(writer, [operation], time);
      written.push({ operation, time });
      if (time % 7 === 0) check(random.below(time + 1));
      if (time % 13 === 0) check(Infinity);
    }
    for (const collection of [1, 2, 3]) {
      const newest = written.findLast(({ operation }) => operation.collection === collection);
      assert.equal(world.reader.newestTimeOf(collection), newest?.time ?? -1, 'a change is seen');
    }
    writer.seal(count);
    for (let T = -1; T < count; T++) check(T);
    const ranges = world.reader.ranges();
    for (const collection of [1, 2, 3]) {
      const told = (ranges.get(collection) ?? []).map(({ lo, hi, time }) => [
        textOf(lo),
        textOf(hi),
        time,
      ]);
      const expected = written
        .filter(({ operation: o }) => o.kind === OP_DELETE_RANGE && o.collection === collection)
        .map(({ operation: o, time }) => [textOf(o.key), textOf(o.value), time])
        .toReversed();
      assert.deepEqual(told, expected, 'every range delete, newest first');
    }
    const before = world.leased();
    writer.free();
    assert.equal(world.leased().memtable, 0, `all pages are given back of ${before.memtable}`);
  }
});

test('a newest row that a range delete hides is told as deleted by it', () => {
  for (let seed = 0; seed < 30; seed++) {
    const random = new Prng(seed);
    const world = new World(48 * MiB);
    const writer = world.create({ chunkKeys: 8 });
    writer.open(0);
    const written: Written[] = [];
    for (let time = 0; time < 60; time++) {
      const operation = randomOperation(random, 0.2);
      world.write(writer, [operation], time);
      written.push({ operation, time });
    }
    writer.seal(60);
    const rows = new NewestRows(world.arena, world.pool);
    rows.start(writer.header);
    assert.equal(rows.hasRanges, true);
    let keys = 0;
    while (rows.next()) {
      keys++;
      const { collection, keyAddress, keyBytes } = rows;
      const key = textOf(world.arena.u8.subarray(keyAddress, keyAddress + keyBytes));
      const last = written.findLast(({ operation: o }) => {
        return o.collection === collection && o.kind !== OP_DELETE_RANGE && textOf(o.key) === key;
      });
      assert.ok(last, 'a key that was written');
      const range = newestRange(written, collection, key, Infinity);
      const isHidden = range > last.time;
      assert.equal(rows.time, isHidden ? range : last.time);
      assert.equal(rows.kind, isHidden ? OP_DELETE : last.operation.kind);
      assert.equal(rows.valueBytes, isHidden ? 0 : last.operation.value.length);
      assert.equal(rows.hash, keyHash(bytesOf(key), 0, keyBytes));
      assert.equal(rows.rangeOver(collection, keyAddress, keyBytes), range);
    }
    assert.ok(keys > 0, 'keys were walked');
  }
});

test('in a transaction a range delete overtakes what stands before it and nothing behind', () => {
  for (let seed = 0; seed < 200; seed++) {
    const random = new Prng(seed);
    const world = new World(32 * MiB);
    const overtaken = new Overtaken(world.arena);
    const walker = new OperationWalker(world.arena, world.pool);
    const transactions = Array.from({ length: 1 + random.below(4) }, () =>
      Array.from({ length: random.below(8) }, () => randomOperation(random, 0.3)),
    );
    const payload = Buffer.concat(transactions.map((operations) => encode(operations)));
    const { address } = world.lay(payload);
    const isScanned = overtaken.scan(walker, address, transactions.length);
    const told: boolean[] = [];
    walker.start(address, transactions.length);
    while (walker.next()) told.push(isScanned && overtaken.isNext(walker));
    const expected = transactions.flatMap((operations) =>
      operations.map((o, i) => {
        if (o.kind === OP_DELETE_RANGE) return false;
        return operations.slice(i + 1).some((later) => {
          const isRange = later.kind === OP_DELETE_RANGE && later.collection === o.collection;
          return isRange && rangeHolds({ lo: later.key, hi: later.value, time: 0 }, o.key);
        });
      }),
    );
    assert.deepEqual(told, expected, `seed ${seed}`);
  }
});

test('bounds of the largest size lie in one piece, wherever their record crosses a page', () => {
  const random = new Prng(5);
  const world = new World(48 * MiB);
  const writer = world.create();
  writer.open(0);
  const lo = new Uint8Array(keyBytesMax).fill(97);
  const hi = new Uint8Array(keyBytesMax).fill(98);
  for (let time = 0; time < 12; time++) {
    const operations: Operation[] = [];
    for (let i = 0; i < 6; i++) {
      const value = new Uint8Array(random.below(pageBytes / 2));
      operations.push({ collection: 2, key: bytesOf(`k${i}`), kind: OP_PUT, value, diff: 1 });
      operations.push({ collection: 1, key: lo, kind: OP_DELETE_RANGE, value: hi, diff: 0 });
    }
    world.write(writer, operations, time);
  }
  world.reader.attach(writer.header);
  assert.equal(world.reader.newestRange(1, lo, 0, lo.length, -1, 5), 5);
  assert.equal(world.reader.newestRange(1, hi, 0, hi.length, -1, Infinity), -1);
  const ranges = world.reader.ranges().get(1) ?? [];
  assert.equal(ranges.length, 72);
  for (const range of ranges) {
    assert.equal(compareBytes(range.lo, lo) + Math.abs(compareBytes(range.hi, hi)), 0);
  }
});
