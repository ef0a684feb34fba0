/**
 * Parts on a disk: what was written is what cursors and point reads find, whatever the rows and however
 * the run was cut; no damaged byte goes unseen where it matters.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes, getU32, setU32 } from '../../core/base/bytes.ts';
import { crc32 } from '../../core/base/crc32.ts';
import { TidemarkError } from '../../core/base/errors.ts';
import { pageBytes, partBytesTarget } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { OP_DELETE } from '../../core/base/update.ts';
import { ABSENT, CONTINUES, FOUND } from '../../core/spine/block.ts';
import { FOOTER_TAIL_BYTES, partRef } from '../../core/spine/part-format.ts';
import type { PartInfo } from '../../core/spine/part-format.ts';
import { PartFiles } from '../../core/spine/part-files.ts';
import { PointReader, readFilter, readFooters, readIndex } from '../../core/spine/part-reader.ts';
import { PART_SHAPE, PartWriter } from '../../core/spine/part-writer.ts';
import type { PartShape } from '../../core/spine/part-writer.ts';
import { keyHash, RowSums, valueHash } from '../../core/spine/row-hash.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import { lowerBound, upperBound } from '../../core/spine/view.ts';
import { partPath } from '../../core/storage/names.ts';
import type { Storage } from '../../core/storage/storage.ts';
import {
  ArrayCursor,
  backwards,
  bytes,
  del,
  forwards,
  line,
  lines,
  naiveGet,
  put,
  randomBytes,
  randomKey,
  randomRows,
  rowOf,
  simDisk,
  sorted,
  writeRun,
} from './rows.ts';
import type { Row } from './rows.ts';

const SHAPES: Partial<PartShape>[] = [
  {},
  { blockBytes: 300 },
  { blockBytes: 200, partBytes: 1000 },
  { blockBytes: 1, partBytes: 1 },
  { partRows: 7 },
];

/** Point reads of a run as a client does them: choose the part, probe, read, go on where versions do. */
class RunPoints {
  readonly reader: PointReader = new PointReader();
  readonly #disk: Storage;
  readonly #parts: { info: PartInfo; fd: number; memory: Uint8Array }[];

  constructor(disk: Storage, parts: readonly PartInfo[]) {
    this.#disk = disk;
    this.#parts = parts.map((info) => {
      const fd = disk.open(partPath(info.file), 'read');
      // Index and filter side by side in shared memory, as in the arena.
      const index = readIndex(disk, fd, info);
      const filter = readFilter(disk, fd, info);
      const memory = new Uint8Array(new SharedArrayBuffer(index.length + filter.length));
      memory.set(index, 0);
      memory.set(filter, index.length);
      return { info, fd, memory };
    });
  }

  get(key: Uint8Array, asOf: number): Row | undefined {
    const hash = keyHash(key, 0, key.length);
    for (const { info, fd, memory } of this.#parts) {
      if (compareBytes(info.keyHi, key) < 0) continue;
      if (compareBytes(info.keyLo, key) > 0) return undefined;
      const { file, indexBytes, offset } = info;
      const answer = this.reader.get(
        this.#disk,
        fd,
        file,
        memory,
        0,
        indexBytes,
        offset,
        hash,
        key,
        0,
        key.length,
        asOf,
      );
      if (answer === ABSENT) return undefined;
      if (answer === CONTINUES) continue;
      assert.equal(answer, FOUND);
      const { time, kind, diff, valueOffset, valueLength } = this.reader.found;
      const value = this.reader.found.valueBytes.slice(valueOffset, valueOffset + valueLength);
      return { key, time, kind, diff, value };
    }
    return undefined;
  }

  close(): void {
    for (const { fd } of this.#parts) this.#disk.close(fd);
  }
}

function sumsOf(rows: readonly Row[]): RowSums {
  const sums = new RowSums();
  for (const { key, kind, value, time, diff } of rows) {
    const v = valueHash(value, 0, value.length);
    sums.add(keyHash(key, 0, key.length), kind, v, time, diff);
  }
  return sums;
}

for (const shape of SHAPES) {
  test(`runs cut by ${JSON.stringify(shape)} read back by walk, seek and point`, () => {
    const disk = simDisk();
    const prng = new Prng(21);
    for (let round = 0; round < 6; round++) {
      const rows = randomRows(prng, prng.between(1, shape.partBytes === 1 ? 40 : 300), 400);
      const parts = writeRun(disk, 1 + round * 1000, rows, shape);
      checkInfos(parts, rows);
      assert.deepEqual(readFooters(disk, parts.map(partRef)), parts);
      const cursor = new RunCursor(disk, new OwnRunParts(disk, parts), 700);
      const model = new ArrayCursor(rows);
      assert.deepEqual(lines(forwards(cursor)), lines(rows));
      assert.deepEqual(lines(backwards(cursor)), lines(rows));
      const points = new RunPoints(disk, parts);
      for (let i = 0; i < 150; i++) {
        const key = prng.chance(0.6) ? prng.pick(rows).key : randomKey(prng, 300);
        const asOf = prng.below(420);
        assert.deepEqual(points.get(key, asOf), naiveGet(rows, key, asOf));
        const seek = prng.chance(0.5) ? 'seek' : 'seekBelow';
        cursor[seek](key, 0, key.length);
        model[seek](key, 0, key.length);
        for (let step = 0; step < 8; step++) {
          assert.equal(cursor.valid, model.valid);
          if (!model.valid) break;
          assert.equal(line(rowOf(cursor)), line(rowOf(model)));
          const move = prng.chance(0.5) ? 'next' : 'previous';
          cursor[move]();
          model[move]();
        }
      }
      points.close();
      cursor.leave();
    }
  });
}

/** Bounds as views have them, cut much shorter. */
class CutBounds extends OwnRunParts {
  override keyLo(part: number): Uint8Array {
    return lowerBound(super.keyLo(part), 2);
  }

  override keyHi(part: number): Uint8Array {
    return upperBound(super.keyHi(part), 2);
  }
}

test('cut bounds lead to the same rows', () => {
  const disk = simDisk();
  const prng = new Prng(23);
  for (let round = 0; round < 20; round++) {
    // Many keys, and many parts, that begin alike; some with what cannot be rounded up.
    const rows = sorted(
      Array.from({ length: 150 }, (_, i) => {
        const key = randomBytes(prng, prng.between(0, 6)).map((byte) => [0, 1, 254, 255][byte & 3]);
        return put(key, i, 'v');
      }),
    );
    const parts = writeRun(disk, 1 + round * 1000, rows, { blockBytes: 60, partBytes: 300 });
    assert.ok(parts.length > 5, 'a run of many parts');
    const cursor = new RunCursor(disk, new CutBounds(disk, parts));
    const model = new ArrayCursor(rows);
    for (let i = 0; i < 200; i++) {
      const key = prng.chance(0.5) ? prng.pick(rows).key : randomBytes(prng, prng.between(0, 5));
      const seek = prng.chance(0.5) ? 'seek' : 'seekBelow';
      cursor[seek](key, 0, key.length);
      model[seek](key, 0, key.length);
      for (let step = 0; step < 5; step++) {
        assert.equal(cursor.valid, model.valid);
        if (!model.valid) break;
        assert.equal(line(rowOf(cursor)), line(rowOf(model)));
        const move = prng.chance(0.5) ? 'next' : 'previous';
        cursor[move]();
        model[move]();
      }
    }
    cursor.leave();
  }
});

test('bounds are bounds: above or below what they were cut from, in the order of the keys', () => {
  const prng = new Prng(24);
  const keys = Array.from({ length: 2_000 }, () =>
    randomBytes(prng, prng.between(0, 7)).map((byte) => [0, 1, 254, 255][byte & 3]),
  ).toSorted(compareBytes);
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i];
    const lower = lowerBound(key, 3);
    const upper = upperBound(key, 3);
    assert.ok(compareBytes(lower, key) <= 0, 'a lower bound is not above its key');
    assert.ok(compareBytes(upper, key) >= 0, 'an upper bound is not below its key');
    assert.ok(lower.length <= 3, 'a lower bound is short');
    assert.ok(upper.length <= 3 || key.slice(0, 3).every((byte) => byte === 255), 'so is an upper');
    if (i === 0) continue;
    const before = keys[i - 1];
    assert.ok(compareBytes(lowerBound(before, 3), lower) <= 0, 'lower bounds keep the order');
    assert.ok(compareBytes(upperBound(before, 3), upper) <= 0, 'upper bounds keep the order');
  }
});

function checkInfos(parts: readonly PartInfo[], rows: readonly Row[]): void {
  let from = 0;
  for (const [i, info] of parts.entries()) {
    const own = rows.slice(from, from + info.len);
    from += info.len;
    const times = own.map((row) => row.time);
    assert.deepEqual(info.keyLo, own[0].key);
    assert.deepEqual(info.keyHi, own[own.length - 1].key);
    assert.equal(info.minT, Math.min(...times));
    assert.equal(info.maxT, Math.max(...times));
    assert.equal(info.negatives, own.filter((row) => row.kind === OP_DELETE).length);
    assert.equal(
      info.distinct,
      new Set(own.map(({ key }) => Buffer.from(key).toString('hex'))).size,
    );
    const sums = sumsOf(own);
    assert.equal(info.diffSum, sums.diffSum);
    assert.deepEqual(info.hash, sums.hash());
    assert.equal(
      info.rowBytes,
      own.reduce((sum, row) => sum + row.key.length + row.value.length, 0),
    );
    if (i > 0) assert.ok(compareBytes(parts[i - 1].keyHi, info.keyLo) <= 0);
  }
  assert.equal(from, rows.length);
}

test('long keys and long values come back, beside short ones', () => {
  const disk = simDisk();
  const prng = new Prng(22);
  const rows = sorted([
    put('', 1, ''),
    put('a', 2, randomBytes(prng, 2 << 20)),
    put('a', 1, randomBytes(prng, 40_000)),
    del('ab', 7),
    ...Array.from({ length: 12 }, (_, i) => {
      const key = new Uint8Array(65_535 - (i % 3)).fill(0x63);
      key[65_000] = i;
      return put(key, i, randomBytes(prng, i * 1000));
    }),
    put('d', 3, randomBytes(prng, 100_000)),
  ]);
  const parts = writeRun(disk, 1, rows);
  for (const part of parts) assert.ok(part.indexBytes <= pageBytes);
  assert.deepEqual(readFooters(disk, parts), parts);
  const cursor = new RunCursor(disk, new OwnRunParts(disk, parts));
  assert.deepEqual(lines(forwards(cursor)), lines(rows));
  assert.deepEqual(lines(backwards(cursor)), lines(rows));
  cursor.leave();
  const points = new RunPoints(disk, parts);
  for (const row of rows) assert.equal(line(points.get(row.key, row.time)!), line(row));
  points.close();
});

test('a row of the largest key and the largest value works, among small ones', () => {
  const disk = simDisk();
  const value = new Uint8Array(32 << 20);
  for (let i = 0; i < value.length; i += 4096) setU32(value, i, i);
  const rows = [put('a', 1, 'x'), put(new Uint8Array(65_535).fill(98), 2, value), del('c', 3)];
  const parts = writeRun(disk, 1, rows);
  assert.equal(parts.length, 2);
  const cursor = new RunCursor(disk, new OwnRunParts(disk, parts));
  const lengths: number[] = [];
  for (cursor.first(); cursor.valid; cursor.next()) lengths.push(cursor.valueLength);
  assert.deepEqual(lengths, [1, 32 << 20, 0]);
  cursor.leave();
  const points = new RunPoints(disk, parts);
  const found = points.get(rows[1].key, 2)!;
  assert.equal(Buffer.compare(found.value, value), 0);
  assert.deepEqual(points.get(rows[0].key, 2), rows[0]);
  points.close();
});

test('16-byte random keys with 100-byte values take at most 1.10 of their bytes', () => {
  const disk = simDisk();
  const prng = new Prng(23);
  const rows = Array.from({ length: 20_000 }, (_, i) =>
    put(randomBytes(prng, 16), prng.below(2 ** 31) + i, randomBytes(prng, 100)),
  );
  rows.sort((a, b) => compareBytes(a.key, b.key));
  const parts = writeRun(disk, 1, rows);
  const total = parts.reduce((sum, part) => sum + part.bytes, 0);
  assert.ok(total / (rows.length * 116) <= 1.1, `${total / (rows.length * 116)}`);
  assert.ok(parts[0].indexBytes < 4000);
});

test('a part is cut near its target and before more rows than a filter holds', () => {
  const disk = simDisk();
  const value = new Uint8Array(4000);
  const rows = Array.from({ length: 7_000 }, (_, i) =>
    put(`key${String(i).padStart(6, '0')}`, i, value),
  );
  const parts = writeRun(disk, 1, rows);
  assert.equal(parts.length, 3);
  for (const part of parts.slice(0, -1)) {
    assert.ok(Math.abs(part.bytes - partBytesTarget) < partBytesTarget / 50);
  }
  // A file for each: nothing of a run lies behind another part of it.
  assert.deepEqual(
    parts.map((part) => [part.file, part.offset]),
    [
      [1, 0],
      [2, 0],
      [3, 0],
    ],
  );
  const many = Array.from({ length: 250 }, (_, i) => put(String(i).padStart(3, '0'), 1, 'v'));
  const cut = writeRun(disk, 10, many, { partRows: 100 });
  assert.deepEqual(
    cut.map((part) => part.len),
    [100, 100, 50],
  );
});

test('when the reserved ids are used up, further parts share the last file', () => {
  const disk = simDisk();
  const files = new PartFiles(disk, { first: 5, count: 2 });
  const writer = new PartWriter(files, { ...PART_SHAPE, partRows: 10 });
  const rows = Array.from({ length: 55 }, (_, i) => put(`${i + 100}`, i, 'v'));
  writer.begin(1);
  const cursor = new ArrayCursor(rows);
  for (cursor.first(); cursor.valid; cursor.next()) {
    cursor.loadValue();
    writer.add(cursor);
  }
  const parts = writer.end();
  const created = files.finish();
  assert.deepEqual(
    parts.map((part) => part.file),
    [5, 6, 6, 6, 6, 6],
  );
  assert.deepEqual(
    created.map(({ file }) => file),
    [5, 6],
  );
  assert.deepEqual(readFooters(disk, parts), parts);
  const back = new RunCursor(disk, new OwnRunParts(disk, parts));
  assert.deepEqual(lines(forwards(back)), lines(rows));
  back.leave();
});

test('rows out of order are refused', () => {
  const disk = simDisk();
  for (const rows of [
    [put('b', 1, ''), put('a', 1, '')],
    [put('a', 1, ''), put('a', 1, '')],
    [put('a', 1, ''), put('a', 2, '')],
    [put('ab', 1, ''), put('a', 1, '')],
  ]) {
    assert.throws(() => writeRun(disk, 1, rows), { name: 'AssertionFailure' });
    disk.unlink(partPath(1));
  }
});

test('whatever byte of a part is damaged, it is seen, or nothing that is read changes', () => {
  const disk = simDisk();
  const rows = randomRows(new Prng(24), 30, 1000, 40);
  const [info] = writeRun(disk, 1, rows, { blockBytes: 300 });
  const good = disk.bytesOf(partPath(1))!;
  const bad = Uint8Array.from(good);
  disk.read = (_fd, target, at, length, position) => {
    const found = bad.subarray(position, position + length);
    target.set(found, at);
    return found.length;
  };
  const expected = lines(rows);
  let seen = 0;
  for (let i = 0; i < good.length; i++) {
    bad.set(good);
    bad[i] ^= 1 << (i % 8);
    try {
      const [part] = readFooters(disk, [partRef(info)]);
      const points = new RunPoints(disk, [part]);
      try {
        const cursor = new RunCursor(disk, new OwnRunParts(disk, [part]));
        try {
          assert.deepEqual(lines(forwards(cursor)), expected);
        } finally {
          cursor.leave();
        }
        for (const row of rows) assert.equal(line(points.get(row.key, row.time)!), line(row));
      } finally {
        points.close();
      }
    } catch (error) {
      assert.ok(error instanceof TidemarkError, String(error));
      assert.match(error.code, /^TIDEMARK_(CORRUPT|UNSUPPORTED_FORMAT)$/);
      assert.equal(error.detail['file'], 1);
      seen++;
    }
  }
  // Not one byte of the file is without a checksum over it.
  assert.equal(seen, good.length);
});

test('a damaged block is an error that names file, block and position; the others stay readable', () => {
  const disk = simDisk();
  const rows = Array.from({ length: 200 }, (_, i) =>
    put(`k${String(i).padStart(4, '0')}`, i, 'some value'),
  );
  const files = new PartFiles(disk, { first: 4, count: 1 });
  const writer = new PartWriter(files, { ...PART_SHAPE, blockBytes: 500 });
  const parts: PartInfo[] = [];
  for (let run = 0; run < 2; run++) {
    writer.begin(1);
    const cursor = new ArrayCursor(rows);
    for (cursor.first(); cursor.valid; cursor.next()) {
      cursor.loadValue();
      writer.add(cursor);
    }
    parts.push(...writer.end());
  }
  files.finish();
  // The second part of the file, third block.
  const second = parts[1];
  assert.ok(second.offset > 0);
  const file = disk.bytesOf(partPath(4))!;
  const index = file.subarray(second.offset + second.indexOffset);
  const position = second.offset + getU32(index, 16 + 4 * 2);
  file[position + 40] = file[position + 40] ^ 1;
  disk.plant(partPath(4), file);
  const fault = (error: unknown): boolean => {
    assert.ok(error instanceof TidemarkError);
    assert.equal(error.code, 'TIDEMARK_CORRUPT');
    assert.deepEqual(error.detail, { finding: 'BAD_BLOCK', file: 4, block: 2, position });
    return true;
  };
  const cursor = new RunCursor(disk, new OwnRunParts(disk, [second]));
  assert.throws(() => forwards(cursor), fault);
  cursor.last();
  assert.equal(line(rowOf(cursor)), line(rows[199]));
  cursor.leave();
  const points = new RunPoints(disk, [second]);
  let bad = 0;
  for (const row of rows) {
    try {
      assert.equal(line(points.get(row.key, 1000)!), line(row));
    } catch (error) {
      fault(error);
      bad++;
    }
  }
  assert.ok(bad > 5 && bad < 40, `${bad}`);
  points.close();
  const first = new RunCursor(disk, new OwnRunParts(disk, [parts[0]]));
  assert.equal(forwards(first).length, 200);
  first.leave();
});

test('a file cut short, another size, another format, no part at all: each its error', () => {
  const disk = simDisk();
  const rows = randomRows(new Prng(25), 100, 1000);
  const [info] = writeRun(disk, 1, rows, { blockBytes: 500 });
  const good = disk.bytesOf(partPath(1))!;
  const throwsBad = (ref: { file: number; offset: number; bytes: number }): void => {
    assert.throws(
      () => readFooters(disk, [ref]),
      (error: unknown) => {
        assert.ok(error instanceof TidemarkError);
        assert.equal(error.code, 'TIDEMARK_CORRUPT');
        assert.equal(error.detail['finding'], 'BAD_FOOTER');
        return true;
      },
    );
  };
  throwsBad({ file: 1, offset: 0, bytes: good.length - 1 });
  throwsBad({ file: 1, offset: 1, bytes: good.length - 1 });
  throwsBad({ file: 1, offset: 0, bytes: good.length + 1 });
  throwsBad({ file: 1, offset: 0, bytes: 10 });

  // A newer format, with a checksum that holds.
  const newer = Uint8Array.from(good);
  const tail = good.length - FOOTER_TAIL_BYTES;
  setU32(newer, tail + 108, 2);
  const start = info.footerOffset;
  setU32(newer, tail + 112, crc32(newer, start, tail + 112 - start));
  disk.plant(partPath(1), newer);
  assert.throws(() => readFooters(disk, [info]), { code: 'TIDEMARK_UNSUPPORTED_FORMAT' });

  // The footer is believed, then the file turns out to end before it.
  disk.plant(partPath(1), good.slice(0, 200));
  const cursor = new RunCursor(disk, new OwnRunParts(disk, [info]));
  assert.throws(() => forwards(cursor), { code: 'TIDEMARK_CORRUPT' });
  cursor.leave();
  throwsBad(partRef(info));
  assert.throws(() => readFooters(disk, [{ file: 9, offset: 0, bytes: 500 }]), {
    code: 'ENOENT',
  });
});

test('a filter keeps point reads of absent keys from the disk', () => {
  const disk = simDisk();
  let reads = 0;
  const read = disk.read.bind(disk);
  disk.read = (...args) => {
    reads++;
    return read(...args);
  };
  const rows = Array.from({ length: 3000 }, (_, i) => put(`key${i * 2}`, i, 'v'));
  const points = new RunPoints(disk, writeRun(disk, 1, sorted(rows)));
  reads = 0;
  for (let i = 0; i < 3000; i++)
    assert.equal(points.get(bytes(`key${i * 2 + 1}`), 9999), undefined);
  assert.ok(reads < 100, `${reads}`);
  points.close();
});

test('a point read may be split: locate, read by anybody in any order, search', async () => {
  const disk = simDisk();
  const prng = new Prng(26);
  const rows = randomRows(prng, 300, 400);
  const [part] = writeRun(disk, 1, rows, { blockBytes: 300 });
  const fd = disk.open(partPath(1), 'read');
  const index = readIndex(disk, fd, part);
  const get = async (key: Uint8Array, asOf: number): Promise<Row | undefined> => {
    const reader = new PointReader();
    const hash = keyHash(key, 0, key.length);
    assert.ok(reader.locate(index, 0, -1, part.offset, hash, key, 0, key.length));
    for (;;) {
      const block = new Uint8Array(reader.bytes + 3);
      await disk.readLater(fd, block, 3, reader.bytes, reader.position);
      const answer = reader.search(block, 3, 1, key, 0, key.length, asOf);
      const { time, kind, diff, valueOffset, valueLength } = reader.found;
      const value = block.slice(valueOffset, valueOffset + valueLength);
      if (answer === FOUND) return { key, time, kind, diff, value };
      if (answer === ABSENT || !reader.advance(index, 0, part.offset)) return undefined;
    }
  };
  const asked = Array.from({ length: 200 }, () => ({
    key: prng.chance(0.7) ? prng.pick(rows).key : randomKey(prng, 300),
    asOf: prng.below(420),
  }));
  const answers = await Promise.all(asked.map(({ key, asOf }) => get(key, asOf)));
  assert.deepEqual(
    answers,
    asked.map(({ key, asOf }) => naiveGet(rows, key, asOf)),
  );
  // What was read may be damaged by then.
  const reader = new PointReader();
  const { key } = rows[0];
  reader.locate(index, 0, -1, 0, 0, key, 0, key.length);
  const block = new Uint8Array(reader.bytes);
  assert.throws(() => reader.search(block, 0, 1, key, 0, key.length, 0), {
    code: 'TIDEMARK_CORRUPT',
  });
  disk.close(fd);
});

test('parts that overlap are no run', () => {
  const disk = simDisk();
  const a = writeRun(disk, 1, [put('a', 1, ''), put('c', 1, '')]);
  const b = writeRun(disk, 2, [put('b', 1, '')]);
  assert.throws(() => new OwnRunParts(disk, [...a, ...b]), { code: 'TIDEMARK_CORRUPT' });
});
