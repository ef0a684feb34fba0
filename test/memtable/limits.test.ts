/**
 * The edges of a generation: large keys and values, many versions, many collections, missing pages,
 * what it holds and gives back.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import { compareBytes } from '../../core/base/bytes.ts';
import { KiB, MiB, keyBytesMax, pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { OP_ATTACH, OP_PUT } from '../../core/base/update.ts';
import { VERSIONS_ALL, VERSIONS_NEWEST } from '../../core/memtable/cursor.ts';
import { NODE_JUMP_WORD, hopsMax } from '../../core/memtable/layout.ts';
import { keyHash } from '../../core/memtable/reader.ts';
import { RunSpace } from '../../core/memtable/run-space.ts';
import { AnchorSorter } from '../../core/memtable/sort.ts';
import { GenerationWriter } from '../../core/memtable/writer.ts';
import { KIND_MEMTABLE } from '../../core/shared/buffer-pool.ts';
import { pageOf } from '../../core/shared/record-pages.ts';
import { Model, World, bytesOf, encode, put, randomBytes, rowAt, textOf } from './world.ts';
import type { Operation, Row } from './world.ts';

setVerify(true);

function scan(world: World, writer: GenerationWriter, collection: number, T: number): Row[] {
  const { cursor } = world;
  const rows: Row[] = [];
  cursor.open(writer.header, collection, T, VERSIONS_NEWEST);
  cursor.first();
  for (let row = rowAt(cursor); row !== undefined; row = rowAt(cursor)) {
    rows.push(row);
    cursor.next();
  }
  return rows;
}

function findValue(
  world: World,
  collection: number,
  key: Uint8Array,
  T: number,
): string | undefined {
  const node = world.reader.find(collection, key, 0, key.length, keyHash(key, 0, key.length), T);
  return node === 0 ? undefined : world.rowOf(node).value;
}

/** Sorts anchors of one put each, given in this order. */
function sortKeys(keys: readonly string[], valueOf: (key: string) => string): string[] {
  const world = new World(64 * MiB);
  const writer = world.create({ bytes: 64 * MiB, rows: 100_000 });
  writer.open(0);
  for (let i = 0; i < keys.length; i += 100) {
    const some = keys.slice(i, i + 100);
    world.write(
      writer,
      some.map((key) => put(1, key, valueOf(key))),
      i,
    );
  }
  world.reader.attach(writer.header);
  const sorter = new AnchorSorter(world.arena);
  sorter.reserve(keys.length);
  for (const [i, key] of keys.entries()) {
    const raw = bytesOf(key);
    const hash = keyHash(raw, 0, raw.length);
    sorter.nodes[i] = world.reader.find(1, raw, 0, raw.length, hash, keys.length);
  }
  sorter.sort(keys.length);
  return keys.map((_, i) => world.rowOf(sorter.nodes[i]).key);
}

describe('large keys and values', () => {
  test('keys of 64 KiB that differ in their last byte are found, sorted and merged', () => {
    const world = new World(64 * MiB);
    const writer = world.create({ bytes: 64 * MiB, chunkKeys: 4, fanIn: 2 });
    const model = new Model();
    writer.open(0);
    const random = new Prng(5);
    for (let n = 0; n < 60; n++) {
      const key = new Uint8Array(keyBytesMax - random.below(2)).fill(0x61);
      key[key.length - 1] = random.below(200);
      const operation: Operation = {
        collection: 1,
        key,
        kind: OP_PUT,
        value: bytesOf(`${n}`),
        diff: 1,
      };
      world.write(writer, [operation], n);
      model.write([operation], n);
      writer.maintain(10);
    }
    const rows = model.rows(1, 59, false);
    assert.deepEqual(
      scan(world, writer, 1, 59).map((row) => row.value),
      rows.map((row) => row.value),
    );
    world.reader.attach(writer.header);
    for (const row of rows) assert.equal(findValue(world, 1, bytesOf(row.key), 59), row.value);
  });

  test('a value that runs on through chained pages is gathered, one that does not is lent', () => {
    const world = new World(32 * MiB);
    const writer = world.create();
    writer.open(0);
    const random = new Prng(2);
    const values = [3 * pageBytes + 17, 40 * KiB, pageBytes - 100, 0, 5].map((n) =>
      textOf(randomBytes(random, n)),
    );
    world.write(
      writer,
      values.map((value, i) => put(9, `key${i}`, value)),
      3,
    );
    assert.deepEqual(
      scan(world, writer, 9, 3).map((row) => row.value),
      values,
    );
    world.reader.attach(writer.header);
    for (const [i, value] of values.entries()) {
      assert.equal(findValue(world, 9, bytesOf(`key${i}`), 3), value);
    }
    world.cursor.open(writer.header, 9, 3, VERSIONS_NEWEST);
    world.cursor.seek(bytesOf('key4'), 0, 4);
    world.cursor.loadValue();
    assert.equal(world.cursor.valueBytes, world.arena.u8);
  });
});

describe('many of a kind', () => {
  test('every version of a hot key is read at its time, also far back', () => {
    const world = new World(32 * MiB);
    const writer = world.create();
    writer.open(0);
    for (let n = 0; n < 3_000; n++) world.write(writer, [put(1, 'hot', `${n}`)], 2 * n);
    world.reader.attach(writer.header);
    const key = bytesOf('hot');
    for (let n = 0; n < 3_000; n++) {
      assert.equal(findValue(world, 1, key, 2 * n), `${n}`);
      assert.equal(findValue(world, 1, key, 2 * n + 1), `${n}`);
    }
    assert.equal(writer.keys, 1);
    const { cursor } = world;
    cursor.open(writer.header, 1, 4_001, VERSIONS_ALL);
    let expected = 2_000;
    for (cursor.first(); cursor.valid; cursor.next()) assert.equal(cursor.time, 2 * expected--);
    assert.equal(expected, -1);
  });

  test('16,384 collections in one generation', () => {
    const world = new World(64 * MiB);
    const writer = world.create();
    writer.open(0);
    const ids = Array.from({ length: 16_384 }, (_, i) => i * 3);
    for (let i = 0; i < ids.length; i += 64) {
      const operations = ids.slice(i, i + 64).map((id) => put(id, `${id}`, 'v'));
      world.write(writer, operations, i);
    }
    while (writer.maintain(1_000));
    world.reader.attach(writer.header);
    assert.deepEqual(world.reader.collections(), ids);
    for (let i = 0; i < ids.length; i += 37) {
      assert.equal(world.reader.newestTimeOf(ids[i]), i - (i % 64));
      assert.equal(world.reader.newestTimeOf(ids[i] + 1), -1);
      assert.deepEqual(
        scan(world, writer, ids[i], 20_000).map((row) => row.key),
        [`${ids[i]}`],
      );
    }
  });

  test('200,000 keys come out in order, whatever has been sorted and merged', () => {
    const world = new World(128 * MiB);
    const writer = world.create({ bytes: 128 * MiB, rows: 200_000 });
    writer.open(0);
    const random = new Prng(11);
    const keys: Uint8Array[] = [];
    for (let n = 0; n < 2_000; n++) {
      const operations: Operation[] = [];
      for (let i = 0; i < 100; i++) {
        const key = randomBytes(random, 10);
        keys.push(key);
        operations.push({ collection: 1, key, kind: OP_PUT, value: bytesOf(''), diff: 1 });
      }
      world.write(writer, operations, n);
      if (n % 10 === 0) writer.maintain(500);
    }
    const sorted = keys.toSorted(compareBytes).map(textOf);
    const check = (): void => {
      const { cursor } = world;
      let i = 0;
      let wrong = 0;
      cursor.open(writer.header, 1, 2_000, VERSIONS_NEWEST);
      for (cursor.first(); cursor.valid; cursor.next()) {
        const at = cursor.keyOffset;
        if (textOf(cursor.keyBytes.subarray(at, at + cursor.keyLength)) !== sorted[i++]) wrong++;
      }
      assert.equal(i, sorted.length);
      assert.equal(wrong, 0);
    };
    check();
    while (writer.maintain(100_000));
    check();
    writer.seal(2_000);
    check();
  });

  test('an old version of a hot key is a few hundred steps away', () => {
    const world = new World(32 * MiB);
    const writer = world.create();
    writer.open(0);
    const versions = 20_000;
    for (let n = 0; n < versions; n++) world.write(writer, [put(1, 'hot', '')], n);
    world.reader.attach(writer.header);
    const { u32 } = world.arena;
    const key = bytesOf('hot');
    const newest = world.reader.find(1, key, 0, 3, keyHash(key, 0, 3), versions);
    for (const T of [0, 1, 300, 9_999, versions - 1]) {
      let steps = 0;
      for (let node = newest; world.reader.timeOf(node) > T; steps++) {
        const jump = u32[(node >>> 2) + NODE_JUMP_WORD];
        const far = jump !== 0 && world.reader.timeOf(jump) > T;
        node = far ? jump : world.reader.olderOf(node);
      }
      assert.equal(steps <= versions / hopsMax + hopsMax + 2, true, `${steps} steps to ${T}`);
    }
  });
});

describe('sorting', () => {
  test('more keys than 16 bits can count', () => {
    const random = new Prng(12);
    const keys = Array.from({ length: 66_000 }, (_, i) => `${random.below(1_000)}/${i}`);
    const sorted = keys.toSorted((a, b) => (a < b ? -1 : 1));
    assert.deepEqual(
      sortKeys(keys, () => ''),
      sorted,
    );
  });

  test('what stands behind a key is not taken for a part of it', () => {
    for (const tail of ['a', '\0']) {
      const keys = Array.from({ length: 40 }, (_, i) => tail.repeat((i * 7) % 40));
      const sorted = keys.toSorted((a, b) => a.length - b.length);
      assert.deepEqual(
        sortKeys(keys, (key) => tail.repeat(60 - key.length)),
        sorted,
      );
    }
  });

  test('a block of the run space is in one page', () => {
    const world = new World(32 * MiB);
    const writer = world.create();
    const space = new RunSpace(world.arena, world.pool, writer.header);
    assert.equal(space.take(65_530), 0);
    // Another owner's page comes between.
    const between = world.pool.lease(KIND_MEMTABLE);
    const block = space.takeBlock(20);
    assert.equal(pageOf(block), pageOf(block + 79));
    assert.equal(space.take(10), 65_536 + 20);
    world.pool.free(between, KIND_MEMTABLE);
  });
});

describe('reading goes on while the writer does', () => {
  test('a cursor that stands while rows come and runs are merged sees the rows of its time', () => {
    const world = new World(32 * MiB);
    const writer = world.create({ chunkKeys: 8, fanIn: 2 });
    const model = new Model();
    const random = new Prng(4);
    writer.open(0);
    let time = 0;
    const write = (): void => {
      const operations = [put(1, `${random.below(400)}`, `${time}`)];
      world.write(writer, operations, time);
      model.write(operations, time++);
      writer.maintain(random.below(20));
    };
    for (let n = 0; n < 300; n++) write();
    for (let round = 0; round < 20; round++) {
      const T = time - 1 - random.below(50);
      const rows = model.rows(1, T, round % 2 === 0);
      world.cursor.open(writer.header, 1, T, round % 2 === 0 ? VERSIONS_ALL : VERSIONS_NEWEST);
      world.cursor.first();
      for (const [i, row] of rows.entries()) {
        assert.deepEqual(rowAt(world.cursor), row);
        if (i < 200) write();
        world.cursor.next();
      }
      assert.equal(world.cursor.valid, false);
    }
  });

  test('opened again at the same time a cursor sees the same rows, at a later one the later', () => {
    const world = new World(32 * MiB);
    const writer = world.create({ chunkKeys: 1_000 });
    writer.open(0);
    for (let n = 0; n < 50; n++) world.write(writer, [put(1, `a${n}`, '')], n);
    assert.equal(scan(world, writer, 1, 40).length, 41);
    for (let n = 50; n < 60; n++) world.write(writer, [put(1, `b${n}`, '')], n);
    assert.equal(scan(world, writer, 1, 40).length, 41);
    assert.equal(scan(world, writer, 2, 40).length, 0);
    assert.equal(scan(world, writer, 1, 55).length, 56);
    // A time that nothing has reached yet is no promise: what comes is seen.
    assert.equal(scan(world, writer, 1, 1_000).length, 60);
    world.write(writer, [put(1, 'c', '')], 60);
    assert.equal(scan(world, writer, 1, 1_000).length, 61);
  });

  test('a page that served another generation brings nothing of it back', () => {
    const world = new World(32 * MiB);
    const first = world.create({ rows: 1_000 });
    first.open(0);
    world.write(first, [put(0, 'old', '')], 5);
    assert.equal(scan(world, first, 0, 5).length, 1);
    first.free();
    // The page of the old anchor holds buckets now, where zeros would pass for a node of collection 0.
    const second = world.create({ rows: 200_000 });
    assert.equal(second.header, first.header);
    second.open(6);
    world.write(second, [put(0, 'new', '')], 6);
    assert.equal(scan(world, second, 0, 5).length, 0);
    world.reader.attach(second.header);
    assert.equal(findValue(world, 0, bytesOf('old'), 9), undefined);
  });

  test('a spare answers that it has nothing', () => {
    const world = new World(32 * MiB);
    const spare = world.create();
    world.reader.attach(spare.header);
    assert.equal(findValue(world, 1, bytesOf('a'), 9), undefined);
    assert.equal(world.reader.newestTimeOf(1), -1);
    assert.deepEqual(world.reader.collections(), []);
    assert.deepEqual(scan(world, spare, 1, 9), []);
  });
});

describe('room and pages', () => {
  test('full by bytes, by rows; an empty one takes any record', () => {
    const world = new World(32 * MiB);
    const byBytes = world.create({ bytes: 1_000, rows: 100 });
    byBytes.open(0);
    world.write(byBytes, [put(1, 'k', 'v')], 0);
    assert.equal(byBytes.bytes, 32 + 24);
    assert.equal(byBytes.full, false);
    assert.equal(byBytes.roomFor(1, 1_000 - 56 - 32), true);
    assert.equal(byBytes.roomFor(1, 1_000 - 56 - 31), false);
    const byRows = world.create({ bytes: MiB, rows: 20 });
    byRows.open(0);
    world.write(byRows, [put(1, 'k', 'v')], 0);
    assert.equal(byRows.roomFor(19, 1_000), true);
    assert.equal(byRows.roomFor(20, 1_000), false);
    const empty = world.create({ bytes: 1_000, rows: 20 });
    empty.open(0);
    assert.equal(empty.roomFor(30, 5_000), true);
    world.write(empty, [put(1, 'k', 'v'.repeat(5_000))], 0);
    assert.equal(empty.full, true);
    assert.equal(empty.roomFor(0, 0), false);
  });

  test('without pages nothing is created and nothing is kept', () => {
    for (let pages = 0; pages < 4; pages++) {
      const world = new World(32 * MiB, pages);
      const options = { bytes: MiB, rows: 100 };
      assert.equal(GenerationWriter.create(world.arena, world.pool, options), undefined);
      assert.deepEqual(world.leased(), { record: 0, memtable: 0 });
    }
  });

  test('without pages there is no room, and with them there is again', () => {
    const world = new World(32 * MiB, 5);
    const writer = world.create();
    writer.open(0);
    assert.equal(writer.roomFor(20_000, 20_000 * 24), false);
    world.pool.setLimitPages(KIND_MEMTABLE, 40);
    assert.equal(writer.roomFor(20_000, 20_000 * 24), true);
  });

  test('without pages for runs nothing is lost, it is only not sorted', () => {
    const world = new World(64 * MiB, 40);
    const writer = world.create({ chunkKeys: 16, fanIn: 2 });
    writer.open(0);
    assert.equal(writer.roomFor(9_000, 300_000), true);
    // Nodes are there; of the space for runs only the first page.
    world.pool.setLimitPages(KIND_MEMTABLE, 0);
    const keys = Array.from({ length: 8_000 }, (_, i) => `${(i * 7_919) % 8_000}`);
    for (let i = 0; i < keys.length; i += 10) {
      world.write(
        writer,
        keys.slice(i, i + 10).map((key) => put(1, key, '')),
        i,
      );
      writer.maintain(100);
    }
    const sorted = keys.toSorted((a, b) => (a < b ? -1 : 1));
    const read = (): string[] => scan(world, writer, 1, 8_000).map((row) => row.key);
    assert.deepEqual(read(), sorted);
    world.pool.setLimitPages(KIND_MEMTABLE, 200);
    while (writer.maintain(1_000));
    assert.deepEqual(read(), sorted);
    writer.seal(8_000);
    assert.deepEqual(read(), sorted);
  });

  test('record pages live as long as the client or a generation holds them', () => {
    const world = new World(32 * MiB);
    const older = world.create();
    older.open(0);
    const small = [put(1, 'a', 'x')];
    const large = [put(1, 'b', 'y'.repeat(3 * pageBytes))];
    world.write(older, small, 0);
    world.write(older, large, 1);
    world.write(older, small, 1);
    older.seal(2);
    const newer = world.create();
    newer.open(2);
    world.write(newer, small, 2);
    world.write(newer, small, 3);
    assert.equal(older.recordPages, 5);
    assert.equal(newer.recordPages, 1);
    older.free();
    // The chain went with the generation; the shared page is the client's and the newer one's.
    assert.equal(world.leased().record, 1);
    world.closePage();
    assert.equal(world.leased().record, 1);
    newer.free();
    assert.deepEqual(world.leased(), { record: 0, memtable: 0 });
  });

  test('our own mistakes are caught', () => {
    const world = new World(32 * MiB);
    const writer = world.create();
    const write = (operations: Operation[], time: number) => () =>
      world.write(writer, operations, time);
    assert.throws(write([put(1, 'a', '')], 0), /open generation/);
    writer.open(5);
    assert.throws(() => writer.open(6), /opened once/);
    assert.throws(write([put(1, 'a', '')], 4), /do not decrease/);
    write([put(1, 'a', '')], 7)();
    assert.throws(write([put(1, 'a', '')], 6), /do not decrease/);
    assert.throws(write([{ ...put(1, 'a', 'z'), kind: OP_ATTACH }], 7), /put, deleted or updated/);
    assert.throws(() => writer.seal(7), /above all times/);
    writer.seal(8);
    assert.throws(write([put(1, 'a', '')], 9), /open generation/);
    assert.equal(writer.maintain(1_000), false);
    writer.free();
    assert.throws(() => writer.free(), /freed once/);
    assert.throws(() => world.reader.attach(world.arena.bytes - pageBytes), /a generation/);
    assert.equal(encode([]).length, 8);
  });
});
