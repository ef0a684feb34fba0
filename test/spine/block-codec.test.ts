/**
 * Compressed blocks: what is read is what was written, by every reader; damage and lies about sizes are
 * errors with a name and never more memory than the largest block; a codec that is not known is told so.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { setU32 } from '../../core/base/bytes.ts';
import { crc32 } from '../../core/base/crc32.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED, OP_PUT } from '../../core/base/update.ts';
import {
  BlockBuilder,
  blockFault,
  CODEC_OFFSET,
  RAW_BYTES_OFFSET,
} from '../../core/spine/block.ts';
import {
  CODEC_BROTLI,
  CODEC_DEFLATE,
  codecOfCompression,
  COMPRESSIONS,
  isPacked,
  packBlock,
  unpackBlock,
} from '../../core/spine/block-codec.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import { partRef } from '../../core/spine/part-format.ts';
import { readFilter, readFooters, readIndex, PointReader } from '../../core/spine/part-reader.ts';
import { FOUND } from '../../core/spine/block.ts';
import { keyHash } from '../../core/spine/row-hash.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import { partPath } from '../../core/storage/names.ts';
import { coded } from '../engine/world.ts';
import { backwards, forwards, lines, put, randomRows, simDisk, sorted, writeRun } from './rows.ts';

const CODECS = COMPRESSIONS.slice(1).flatMap((name) => codecOfCompression(name) ?? []);

const TEXT = sorted(
  Array.from({ length: 300 }, (_, i) => put(`user/${1_000 + i}`, i, `value ${i % 7} `.repeat(20))),
);

/** One plain block. */
function block(rows: number, text: (i: number) => Uint8Array): Uint8Array {
  const builder = new BlockBuilder();
  for (let i = 0; i < rows; i++) {
    const key = Buffer.from(`key ${1_000 + i}`);
    const shared = i === 0 ? 0 : 6;
    const value = text(i);
    builder.add(key, 0, key.length, shared, i, OP_PUT, 1, value, 0, value.length);
  }
  const target = new Uint8Array(builder.bytes);
  builder.write(target, 0);
  return target;
}

const PLAIN = block(100, (i) => Buffer.from(`the value of row ${i}, again and again and again`));

/** The block with other bytes and a checksum that holds. */
function forged(stored: Uint8Array, change: (bytes: Uint8Array) => void): Uint8Array {
  const bytes = stored.slice();
  change(bytes);
  setU32(bytes, 0, crc32(bytes, 4, bytes.length - 4));
  return bytes;
}

test('what is packed unpacks to the same bytes, and is smaller', () => {
  assert.ok(CODECS.length >= 2, 'deflate and brotli are in every Node');
  for (const codec of CODECS) {
    const stored = packBlock(codec, PLAIN, 0, PLAIN.length);
    assert.ok(stored !== undefined && stored.length < PLAIN.length / 2, `${stored?.length}`);
    assert.ok(isPacked(stored, 0) && !isPacked(PLAIN, 0), 'a reader can tell');
    const padded = new Uint8Array(stored.length + 10);
    padded.set(stored, 7);
    const plain = unpackBlock(padded, 7, stored.length);
    assert.ok(typeof plain !== 'string', 'no fault');
    // All but the checksum, which is that of the stored bytes.
    assert.deepEqual(plain.subarray(4), PLAIN.subarray(4));
  }
});

test('what does not shrink stays as it is', () => {
  const prng = new Prng(3);
  const noise = block(20, () => Uint8Array.from({ length: 500 }, () => prng.below(256)));
  for (const codec of CODECS) assert.equal(packBlock(codec, noise, 0, noise.length), undefined);
  assert.equal(packBlock(0, PLAIN, 0, PLAIN.length), undefined);
});

test('a codec that is not known is no damage', () => {
  for (const codec of [4, 255]) {
    const stored = forged(PLAIN, (bytes) => (bytes[CODEC_OFFSET] = codec));
    assert.equal(blockFault(stored, 0, stored.length), undefined);
    assert.throws(
      () => unpackBlock(stored, 0, stored.length),
      coded('TIDEMARK_UNSUPPORTED_FORMAT'),
    );
  }
});

test('lies about sizes and cut or changed bytes are found, whatever the checksum says', () => {
  const prng = new Prng(5);
  for (const codec of CODECS) {
    const stored = packBlock(codec, PLAIN, 0, PLAIN.length)!;
    for (const raw of [0, 11, 12, 40, PLAIN.length - 1, PLAIN.length + 1, 2 ** 26, 2 ** 32 - 1]) {
      const lie = forged(stored, (bytes) => setU32(bytes, RAW_BYTES_OFFSET, raw));
      assert.equal(typeof unpackBlock(lie, 0, lie.length), 'string', `codec ${codec}, ${raw}`);
    }
    for (const length of [0, 5, 12, 13, stored.length >> 1, stored.length - 1]) {
      const cut =
        length < 8 ? stored.subarray(0, length) : forged(stored.slice(0, length), () => {});
      assert.equal(typeof unpackBlock(cut, 0, cut.length), 'string', `codec ${codec}, cut`);
    }
    for (let round = 0; round < 400; round++) {
      const bad = forged(stored, (bytes) => {
        bytes[12 + prng.below(bytes.length - 12)] ^= 1 << prng.below(8);
      });
      const plain = unpackBlock(bad, 0, bad.length);
      // Rows may read otherwise, which a footer's sums tell; nothing is read beyond the block.
      if (typeof plain !== 'string') assert.equal(plain.length, PLAIN.length);
    }
    const flipped = stored.slice();
    flipped[stored.length - 1] ^= 1;
    assert.equal(unpackBlock(flipped, 0, flipped.length), 'checksum');
  }
});

test('cursors and point reads of compressed parts see what those of plain ones see', () => {
  const prng = new Prng(11);
  for (const codec of CODECS) {
    const disk = simDisk();
    const rows = [...TEXT, ...randomRows(prng, 100, 50)];
    const all = sorted(rows);
    const plain = writeRun(disk, 1, all, { blockBytes: 2_000, partBytes: 20_000 });
    const packed = writeRun(disk, 100, all, { blockBytes: 2_000, partBytes: 20_000, codec });
    const sizes = [plain, packed].map((parts) => parts.reduce((sum, { bytes }) => sum + bytes, 0));
    assert.ok(sizes[1] < sizes[0] * 0.8, `${sizes[1]} of ${sizes[0]}`);
    const cursor = new RunCursor(disk, new OwnRunParts(disk, packed));
    assert.deepEqual(lines(forwards(cursor)), lines(all));
    const before = new RunCursor(disk, new OwnRunParts(disk, plain));
    assert.deepEqual(lines(backwards(cursor)), lines(backwards(before)));
    before.leave();
    cursor.leave();
    const reader = new PointReader();
    for (const part of packed) {
      const fd = disk.open(partPath(part.file), 'read');
      const index = readIndex(disk, fd, part);
      const filter = readFilter(disk, fd, part);
      const memory = Buffer.concat([index, filter]);
      for (const { key, time, value } of TEXT) {
        const { offset, file } = part;
        const hash = keyHash(key, 0, key.length);
        const { length } = index;
        const answer = reader.get(
          disk,
          fd,
          file,
          memory,
          0,
          length,
          offset,
          hash,
          key,
          0,
          key.length,
          time,
        );
        if (answer !== FOUND) continue;
        const { valueBytes, valueOffset, valueLength } = reader.found;
        const found = valueBytes.subarray(valueOffset, valueOffset + valueLength);
        assert.equal(Buffer.compare(found, value), 0);
      }
      disk.close(fd);
    }
    assert.deepEqual(disk.openFiles, []);
  }
});

test('a merge reads and writes compressed parts, by any number of runs', () => {
  const disk = simDisk();
  const runs = Array.from({ length: 32 }, (_, i) =>
    writeRun(
      disk,
      1 + 10 * i,
      TEXT.map((row) => ({ ...row, time: row.time + 1_000 * i })),
      i % 2 === 0 ? {} : { codec: CODEC_DEFLATE },
    ),
  );
  const job = new MergeJob(disk, {
    jobId: 1,
    collection: 1,
    kind: KIND_KEYED,
    inputs: runs.map((parts, i) => ({
      bid: i + 1,
      desc: { lower: i, upper: i + 1, since: 0 },
      runs: [{ runId: i + 1, parts: parts.map(partRef) }],
    })),
    since: 1_000_000,
    oldest: true,
    outFiles: { first: 5_000, count: 9 },
    shape: { blockBytes: 4_096, partBytes: 1e6, partRows: 1_000, codec: CODEC_BROTLI },
  });
  while (job.step(100));
  const { parts } = job.result().runs[0];
  const cursor = new RunCursor(disk, new OwnRunParts(disk, readFooters(disk, parts)));
  const newest = TEXT.map((row) => ({ ...row, time: row.time + 31_000 }));
  assert.deepEqual(lines(forwards(cursor)), lines(newest));
  cursor.leave();
});

const GOLDEN = fileURLToPath(new URL('../golden/part/', import.meta.url));

// What compressors write may change with Node; what they have written must be read for ever.
for (const [name, codec] of [
  ['deflate', CODEC_DEFLATE],
  ['brotli', CODEC_BROTLI],
] as const) {
  test(`a part compressed by ${name} in format 1 is read as ever`, () => {
    const path = `${GOLDEN}packed-1-${name}.part`;
    if (process.env['UPDATE_GOLDEN'] === '1') {
      const disk = simDisk();
      writeRun(disk, 1, TEXT, { blockBytes: 4_096, codec });
      writeFileSync(path, disk.bytesOf(partPath(1))!);
    }
    const golden = Uint8Array.from(readFileSync(path));
    const disk = simDisk();
    disk.plant(partPath(9), golden);
    const infos = readFooters(disk, [{ file: 9, offset: 0, bytes: golden.length }]);
    const cursor = new RunCursor(disk, new OwnRunParts(disk, infos));
    assert.deepEqual(lines(forwards(cursor)), lines(TEXT));
    cursor.leave();
  });
}
