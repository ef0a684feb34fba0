/**
 * Goal: a compressed segment gives the very records of the one it was made from, at the same positions,
 * or a typed error; and at no moment of its making is there neither. Method: segments of every sort are
 * compressed and compared; every byte of a small one is damaged; the job dies before each of its calls.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { TidemarkError } from '../../core/base/errors.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { CompressJob } from '../../core/log/compress.ts';
import type { CompressRequest, CompressResult } from '../../core/log/compress.ts';
import {
  READ_END,
  READ_MORE,
  READ_RECORD,
  READ_WAIT,
  SegmentReader,
} from '../../core/log/reader.ts';
import type { RecordHeader } from '../../core/log/record.ts';
import { SEGMENT_BLOCK_BYTES, decodeSegmentBlock, saltOf } from '../../core/log/segment.ts';
import {
  openSegmentNow,
  positionOfOffset,
  positionOfTime,
  runNow,
} from '../../core/log/segment-source.ts';
import type { SegmentSource } from '../../core/log/segment-source.ts';
import {
  CODEC_DEFLATE,
  CODEC_ZSTD,
  SEGZ_TRAILER_BYTES,
  canUnpack,
  decodeHeaderCopy,
  decodeSegzHeader,
  decodeTable,
  decodeTrailer,
  encodeFrame,
  encodeSegzEnd,
  encodeSegzHeader,
} from '../../core/log/segz.ts';
import { LogWriter } from '../../core/log/writer.ts';
import { compressedPath, segmentPath } from '../../core/storage/names.ts';
import { SimCrash, crashes } from '../sim/disk.ts';
import type { SimDisk, SimFault } from '../sim/disk.ts';
import { LOG_ID, SMALL, appendTo, close, drain, payloadOf, storeDisk } from './kit.ts';
import { printSegment } from './print.ts';

const CODECS = [CODEC_DEFLATE, CODEC_ZSTD].filter(canUnpack);
const TMP = 'tmp/segment';

function requestOf(seq: number, more: Partial<CompressRequest> = {}): CompressRequest {
  const logId = Buffer.from(LOG_ID).toString('hex');
  return { seq, successor: seq + 1, logId, codec: CODEC_DEFLATE, tmp: TMP, ...more };
}

function run(disk: SimDisk, request: CompressRequest): CompressResult {
  const job = new CompressJob(disk, request);
  while (job.step());
  return job.result();
}

/** A closed log whose first `count` segments are sealed; payloads as `bytes` says. */
function logOf(count: number, segmentBytes: number, bytes: (prng: Prng) => number): SimDisk {
  const disk = storeDisk();
  disk.makeDir('tmp');
  disk.syncDir('');
  const prng = new Prng(count);
  const writer = LogWriter.create(disk, LOG_ID, { ...SMALL, segmentBytes });
  let atMs = 1_000;
  while (writer.seq <= count) {
    const txCount = prng.between(1, 5);
    atMs += prng.below(3);
    appendTo(writer, payloadOf(prng, txCount, Math.max(64 * txCount, bytes(prng))), txCount, atMs);
    if (writer.full || prng.chance(0.3)) drain(writer);
    if (prng.chance(0.1)) writer.watermark();
  }
  drain(writer);
  close(writer);
  return disk;
}

type Seen = { position: number; offset: number; endOffset: number; atMs: number; crc: number };

function open(disk: SimDisk, seq: number): SegmentSource {
  const source = openSegmentNow(disk, LOG_ID, seq);
  assert.ok(source !== undefined, `segment ${seq} is there`);
  return source;
}

/** Where the valid bytes of a sealed segment end. */
function endOf(disk: SimDisk, seq: number): number {
  const next = open(disk, seq + 1);
  next.close();
  return next.header.prevEndPos;
}

function seenOf(header: RecordHeader): Seen {
  const { position, minTxOffset: offset, endOffset, committedAtMs: atMs, payloadCrc: crc } = header;
  return { position, offset, endOffset, atMs, crc };
}

function read(source: SegmentSource, end: number, from?: number, readBytes?: number): Seen[] {
  const reader = source.reader(from, end, readBytes);
  const seen: Seen[] = [];
  for (;;) {
    const found = reader.next();
    if (found === READ_MORE) continue;
    if (found !== READ_RECORD) {
      assert.equal(found, READ_END);
      assert.equal(reader.position, end);
      return seen;
    }
    seen.push(seenOf(reader.header));
  }
}

const MIXED = (prng: Prng): number => prng.pick([100, 3 * KiB, 20 * KiB, 90 * KiB, 400 * KiB]);

describe('a compressed segment', () => {
  for (const codec of CODECS) {
    test(`gives the same records from every position, codec ${codec}`, () => {
      const disk = logOf(2, 2 * MiB, MIXED);
      const end = endOf(disk, 1);
      const plain = open(disk, 1);
      const expected = read(plain, end);
      assert.ok(expected.length > 10, `${expected.length} records`);
      const result = run(disk, requestOf(1, { codec }));
      assert.deepEqual(disk.list('wal').slice(0, 2), ['0000000001.segz', '0000000002.seg']);
      assert.deepEqual(disk.list('tmp'), []);

      const packed = open(disk, 1);
      assert.equal(packed.path, compressedPath(1));
      assert.deepEqual(packed.header, plain.header);
      assert.equal(packed.end, end);
      assert.ok((packed.packed?.frames.length ?? 0) > 4, 'it has frames');
      assert.deepEqual(read(packed, end), expected);
      // A reader that was there before keeps what it has open.
      assert.deepEqual(read(plain, end), expected);
      for (const readBytes of [4 * KiB, 100 * KiB, 8 * MiB]) {
        for (const [i, { position }] of expected.entries()) {
          if (i % 7 !== 0) continue;
          assert.deepEqual(read(packed, end, position, readBytes), expected.slice(i));
        }
      }
      const bytes = disk.bytesOf(compressedPath(1));
      assert.ok(bytes !== undefined);
      assert.deepEqual(result, {
        seq: 1,
        name: '0000000001.segz',
        bytes: bytes.length,
        codec,
        hash: createHash('sha256').update(bytes).digest('hex'),
        base: 0,
        end: open(disk, 2).header.baseOffset,
        baseAtMs: 0,
      });
    });
  }

  test('is read in any stretches, whole records or not', () => {
    const disk = logOf(1, 1 * MiB, MIXED);
    const end = endOf(disk, 1);
    const image = disk.bytesOf(segmentPath(1))!.slice(0, end);
    run(disk, requestOf(1));
    const { bytes } = open(disk, 1);
    const prng = new Prng(3);
    const target = new Uint8Array(end + 16);
    for (let i = 0; i < 60; i++) {
      const from = prng.between(SEGMENT_BLOCK_BYTES, end - 1);
      const length = prng.chance(0.5) ? prng.between(1, 5_000) : prng.between(1, end);
      const at = prng.below(16);
      target.fill(0xee);
      const got = bytes.read(target, at, Math.min(length, target.length - at), from);
      assert.equal(got, Math.min(length, target.length - at, end - from));
      assert.ok(
        Buffer.compare(target.subarray(at, at + got), image.subarray(from, from + got)) === 0,
      );
      assert.ok(
        target.subarray(at + got).every((byte) => byte === 0xee),
        'no byte too many',
      );
    }
    assert.equal(bytes.read(target, 0, 8, end), 0);
  });

  test('of noise is hardly larger than it was', () => {
    const disk = logOf(1, 1 * MiB, () => 0);
    const prng = new Prng(8);
    const raw = prng.fill(new Uint8Array(100_000));
    const frame = encodeFrame(CODEC_DEFLATE, 1, raw, 0, raw.length, 4096);
    assert.equal(frame.length, raw.length + 20);
    assert.ok(run(disk, requestOf(1)).bytes < 1 * MiB, 'the header and a table');
  });

  test('positions of offsets and times are met soon, in .seg and .segz, as a list says', () => {
    const disk = logOf(2, 2 * MiB, (prng) => prng.pick([100, 2 * KiB, 30 * KiB, 200 * KiB]));
    const end = endOf(disk, 1);
    const list = read(open(disk, 1), end);
    for (const compressed of [false, true]) {
      if (compressed) run(disk, requestOf(1));
      const source = open(disk, 1);
      assert.equal(source.packed !== undefined, compressed);
      const starts = new Set(list.map(({ position }) => position));
      const prng = new Prng(5);
      const last = list[list.length - 1];
      for (let i = 0; i < 200; i++) {
        const offset = i === 0 ? 0 : prng.below(last.endOffset + 3);
        const from = runNow(positionOfOffset(source, offset, end));
        assert.ok(starts.has(from), `${from} is the start of a record`);
        const holder = list.findLast((record) => record.offset <= offset)!;
        assert.ok(from <= holder.position, `offset ${offset}: ${from} is not behind it`);
        assert.ok(holder.position - from < 600 * KiB, `offset ${offset}: ${from} is near it`);

        const atMs = prng.between(990, last.atMs + 3);
        const at = runNow(positionOfTime(source, atMs, end));
        const lastThen = list.findLast((record) => record.atMs <= atMs);
        assert.ok(starts.has(at), `${at} is the start of a record`);
        assert.ok(at <= (lastThen?.position ?? SEGMENT_BLOCK_BYTES), `time ${atMs}`);
        assert.ok((lastThen?.position ?? 0) - at < 600 * KiB, `time ${atMs}: near`);
      }
      source.close();
    }
  });

  test('an offset is found in a live segment, whose room is not written yet', () => {
    const disk = storeDisk();
    const writer = LogWriter.create(disk, LOG_ID, {
      segmentBytes: 4 * MiB,
      preparedBytes: 3 * MiB,
    });
    const prng = new Prng(1);
    for (let i = 0; i < 300; i++) appendTo(writer, payloadOf(prng, 1, 2_000), 1);
    drain(writer);
    const source = open(disk, 1);
    const before = disk.calls;
    for (const offset of [0, 1, 150, 299, 500]) {
      const from = runNow(positionOfOffset(source, offset));
      const reader = source.reader(from);
      let found = READ_MORE;
      while (found === READ_MORE) found = reader.next();
      assert.equal(found, READ_RECORD);
      assert.ok(reader.header.minTxOffset <= offset, 'not behind it');
      assert.ok(reader.header.minTxOffset > Math.min(offset, 299) - 64, 'near it');
    }
    assert.ok(disk.calls - before < 100, `${disk.calls - before} calls`);
    close(writer);
  });

  test('a reader that must wait for its bytes goes on where it was', () => {
    const disk = logOf(1, 1 * MiB, () => 9_000);
    const end = endOf(disk, 1);
    const source = open(disk, 1);
    const expected = read(source, end);
    let isThere = false;
    const later = {
      read(target: Uint8Array, at: number, length: number, position: number): number {
        isThere = !isThere;
        return isThere ? -1 : source.bytes.read(target, at, length, position);
      },
    };
    const reader = new SegmentReader(later, 1, source.salt, SEGMENT_BLOCK_BYTES, end, 8 * KiB);
    const seen: Seen[] = [];
    let waits = 0;
    for (let found = reader.next(); found !== READ_END; found = reader.next()) {
      if (found === READ_WAIT) waits++;
      else if (found === READ_RECORD) seen.push(seenOf(reader.header));
      else assert.equal(found, READ_MORE);
    }
    assert.deepEqual(seen, expected);
    assert.ok(waits > 3, 'it waited');
  });
});

// ---------------------------------------------------------------- format

const GOLDEN = new URL('../golden/log/', import.meta.url);

/** Records of a .segz, and where its frames are: for people. */
function print(bytes: Uint8Array): string {
  const header = decodeSegzHeader(bytes, 0, 'golden')!;
  const salt = saltOf(header.segment.logId, header.segment.seq);
  const end = decodeTrailer(bytes.subarray(-SEGZ_TRAILER_BYTES), bytes.length, salt, 'golden');
  const frames = decodeTable(bytes.subarray(end.tablePosition), end, header, 'golden');
  const lines = Object.entries({ ...header, segment: undefined })
    .filter(([, value]) => value !== undefined)
    .map(([field, value]) => `header.${field} ${value}`);
  for (const frame of frames) {
    lines.push(
      `frame ${Object.entries(frame)
        .map(([field, value]) => `${field} ${value}`)
        .join(' ')}`,
    );
  }
  lines.push(`table at ${end.tablePosition}, ${bytes.length} bytes in all`);
  return `${lines.join('\n')}\n`;
}

test('format 1 is understood for ever: the golden file holds the golden segment', () => {
  const raw = new Uint8Array(readFileSync(new URL('v1.seg', GOLDEN)));
  const { header: segment } = decodeSegmentBlock(raw, 'golden');
  assert.ok(segment !== undefined);
  const salt = saltOf(LOG_ID, segment.seq);
  const rawEnd = raw.length - 16;
  // Two frames, the first of one record; a packer's bytes may differ from one zlib to the next.
  const second = 4096 + 48 + Buffer.from(raw).readUInt32LE(4096 + 8);
  const [firstAtMs, secondAtMs] = [4096, second].map((at) =>
    Number(Buffer.from(raw).readBigUInt64LE(at + 40)),
  );
  const made = (): Uint8Array => {
    const one = encodeFrame(CODEC_DEFLATE, salt, raw, 4096, second - 4096, 4096);
    const two = encodeFrame(CODEC_DEFLATE, salt, raw, second, rawEnd - second, second);
    const header = encodeSegzHeader({
      codec: CODEC_DEFLATE,
      segment,
      rawEnd,
      endOffset: segment.baseOffset + 3,
      endAtMs: secondAtMs,
      endChain: 0x0102_0304,
      endEpoch: 4,
    });
    const place = (frame: Uint8Array, position: number, rawPosition: number, rawBytes: number) => ({
      rawPosition,
      position,
      rawBytes,
      packedBytes: frame.length - 20,
    });
    const frames = [
      { firstOffset: segment.baseOffset, firstAtMs, ...place(one, 192, 4096, second - 4096) },
      {
        firstOffset: segment.baseOffset + 1,
        firstAtMs: secondAtMs,
        ...place(two, 192 + one.length, second, rawEnd - second),
      },
    ];
    const end = encodeSegzEnd(frames, 192 + one.length + two.length, header, salt);
    return new Uint8Array(Buffer.concat([header, one, two, end]));
  };
  const file = new URL('v1.segz', GOLDEN);
  const text = new URL('v1.segz.txt', GOLDEN);
  if (process.env['TIDEMARK_REWRITE_GOLDEN'] === '1') {
    if (!existsSync(file)) writeFileSync(file, made());
    writeFileSync(text, print(new Uint8Array(readFileSync(file))));
  }
  const golden = new Uint8Array(readFileSync(file));
  assert.equal(print(golden), readFileSync(text, 'utf8'));
  // All but the packed bytes, their lengths and what those move is the same today.
  const today = made();
  assert.deepEqual(today.subarray(0, 192), golden.subarray(0, 192));
  assert.deepEqual(
    decodeHeaderCopy(golden.subarray(-SEGZ_TRAILER_BYTES), 'golden'),
    decodeSegzHeader(golden, 0, ''),
  );

  const disk = storeDisk();
  disk.plant(compressedPath(7), golden);
  const source = open(disk, 7);
  const back = new Uint8Array(rawEnd - 4096);
  assert.equal(source.bytes.read(back, 0, back.length, 4096), back.length);
  assert.deepEqual(back, raw.subarray(4096, rawEnd));
  const block = Buffer.concat([raw.subarray(0, 4096), back]);
  assert.equal(printSegment(block), printSegment(raw.subarray(0, rawEnd)));
});

function codeOf(act: () => void): string {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof TidemarkError, String(error));
    return `${error.code} ${String(error.detail['finding'] ?? error.detail['field'])}`;
  }
  return 'none';
}

describe('damage to a compressed segment', () => {
  const disk = logOf(1, 16 * KiB, () => 500);
  const end = endOf(disk, 1);
  const first = open(disk, 1);
  const expected = read(first, end);
  first.close();
  run(disk, requestOf(1));
  const sound = disk.bytesOf(compressedPath(1))!.slice();

  /** What becomes of the damaged file: its records as they were, or an error. */
  function verdict(bytes: Uint8Array): string {
    disk.plant(compressedPath(1), bytes);
    let source: SegmentSource | undefined;
    const code = codeOf(() => {
      source = open(disk, 1);
      assert.deepEqual(read(source, end), expected);
    });
    source?.close();
    assert.deepEqual(disk.openFiles, []);
    return code === 'none' && source?.isHeaderDamaged === true ? 'copy' : code;
  }

  test('any bit: an error that names it, or the other copy of the header', () => {
    const verdicts = new Map<string, number>();
    const isFrame = (i: number): boolean => i > 300 && i < sound.length - 400;
    for (let i = 0; i < sound.length; i += isFrame(i) ? 11 : 1) {
      const bytes = sound.slice();
      bytes[i] ^= 1 << (i & 7);
      const got = verdict(bytes);
      verdicts.set(got, (verdicts.get(got) ?? 0) + 1);
    }
    assert.deepEqual([...verdicts.keys()].toSorted(), ['TIDEMARK_CORRUPT CHECKSUM', 'copy']);
    assert.equal(verdicts.get('copy'), 2 * 192);
  });

  test('any length, or bytes too many', () => {
    for (let length = 0; length < sound.length; length += 13) {
      assert.equal(verdict(sound.slice(0, length)), 'TIDEMARK_CORRUPT CHECKSUM', `${length}`);
    }
    const longer = new Uint8Array(Buffer.concat([sound, new Uint8Array(8)]));
    assert.equal(verdict(longer), 'TIDEMARK_CORRUPT CHECKSUM');
  });

  test('what a newer version wrote is refused as such; a foreign one and another number too', () => {
    const header = decodeSegzHeader(sound, 0, '')!;
    const fields: [number, number][] = [
      [8, 2],
      [10, 2],
      [11, 3],
      [12, 1],
    ];
    for (const [at, value] of fields) {
      const changed = sound.slice(0, 192);
      changed[at] = value;
      const crc = (bytes: Uint8Array): number => Number(`0x${crcOf(bytes)}`);
      Buffer.from(changed.buffer).writeUInt32LE(crc(changed.subarray(0, 188)), 188);
      const bytes = sound.slice();
      bytes.set(changed, 0);
      assert.match(verdict(bytes), /^TIDEMARK_UNSUPPORTED_FORMAT /);
    }
    const other = (segment: Partial<typeof header.segment>): Uint8Array => {
      const bytes = sound.slice();
      bytes.set(encodeSegzHeader({ ...header, segment: { ...header.segment, ...segment } }), 0);
      return bytes;
    };
    assert.equal(verdict(other({ seq: 9 })), 'TIDEMARK_CORRUPT CHECKSUM');
    assert.equal(verdict(other({ logId: LOG_ID.toReversed() })), 'TIDEMARK_CORRUPT CHECKSUM');
    disk.plant(compressedPath(1), sound);
    assert.equal(
      codeOf(() => openSegmentNow(disk, LOG_ID.toReversed(), 1)),
      'TIDEMARK_CORRUPT FOREIGN_SEGMENT',
    );
    disk.plant(compressedPath(9), sound);
    assert.equal(
      codeOf(() => open(disk, 9)),
      'TIDEMARK_CORRUPT MISNAMED_SEGMENT',
    );
    disk.remove(compressedPath(9));
  });

  test('a damaged one beside what it was made from is made again', () => {
    const twin = logOf(1, 16 * KiB, () => 500);
    for (const bytes of [sound.slice(0, 500), sound.slice(0, -9), new Uint8Array(0)]) {
      twin.plant(compressedPath(1), bytes);
      run(twin, requestOf(1));
      assert.deepEqual(new Uint8Array(twin.bytesOf(compressedPath(1))!), new Uint8Array(sound));
      twin.remove(compressedPath(1));
      twin.plant(segmentPath(1), logOf(1, 16 * KiB, () => 500).bytesOf(segmentPath(1))!);
    }
  });

  test('a damaged segment is not compressed, and stays', () => {
    const twin = logOf(1, 16 * KiB, () => 500);
    const bytes = twin.bytesOf(segmentPath(1))!.slice();
    for (const at of [4096, 5000, 5001, 9000]) {
      const bad = bytes.slice();
      bad[at] ^= 4;
      twin.plant(segmentPath(1), bad);
      assert.equal(
        codeOf(() => run(twin, requestOf(1))),
        'TIDEMARK_CORRUPT CHECKSUM',
      );
      assert.deepEqual(twin.list('wal'), ['0000000001.seg', '0000000002.seg']);
      assert.deepEqual(twin.list('tmp'), []);
      assert.deepEqual(twin.openFiles, []);
    }
    // Nor one that does not lead up to the next.
    twin.plant(segmentPath(1), bytes);
    const wrong = requestOf(1, { successor: 1 });
    assert.equal(
      codeOf(() => run(twin, wrong)),
      'TIDEMARK_CORRUPT GAP',
    );
  });
});

function crcOf(bytes: Uint8Array): string {
  let c = 0xffff_ffff;
  for (const byte of bytes) {
    c ^= byte;
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb8_8320 : c >>> 1;
  }
  return (~c >>> 0).toString(16);
}

// ---------------------------------------------------------------- crashes and faults

/** The first segment can be read, whole. */
function expectThere(disk: SimDisk, end: number, expected: readonly Seen[], why: string): void {
  const source = open(disk, 1);
  assert.deepEqual(read(source, end), expected, why);
  source.close();
}

test('a crash at any call leaves the segment in the one file or the other; done again it ends the same', () => {
  const sample = logOf(1, 16 * KiB, () => 900);
  const end = endOf(sample, 1);
  const expected = read(open(sample, 1), end);
  let states = 0;
  for (let mutation = 0; ; mutation++) {
    const disk = logOf(1, 16 * KiB, () => 900);
    disk.settle();
    const first = disk.mutations;
    disk.fault = (call): SimFault | undefined =>
      call.mutation === first + mutation ? { kind: 'crash' } : undefined;
    let isDone = false;
    try {
      run(disk, requestOf(1));
      isDone = true;
    } catch (error) {
      assert.ok(error instanceof SimCrash, String(error));
    }
    const choice = { subsetsMax: 8, samples: 20, regularMax: 20 };
    for (const left of crashes(disk, new Prng(mutation), choice)) {
      states++;
      expectThere(left, end, expected, `after call ${mutation}`);
      // What the next open does before anything else.
      for (const name of left.list('tmp')) left.unlink(`tmp/${name}`);
      run(left, requestOf(1));
      assert.deepEqual(left.list('wal'), ['0000000001.segz', '0000000002.seg']);
      assert.deepEqual(left.list('tmp'), []);
      expectThere(left, end, expected, 'compressed');
    }
    if (isDone) break;
    assert.ok(mutation < 100, 'a job that ends');
  }
  assert.ok(states > 200, `${states} states`);
});

test('a fault at any call: the segment stays, nothing is left behind, and it can be done again', () => {
  const sample = logOf(1, 16 * KiB, () => 900);
  const end = endOf(sample, 1);
  const expected = read(open(sample, 1), end);
  const faults: SimFault[] = [
    { kind: 'throw', code: 'EIO' },
    { kind: 'throw', code: 'ENOSPC' },
    { kind: 'short', bytes: 3 },
    { kind: 'failedSync', manner: 'ext4' },
  ];
  for (const fault of faults) {
    for (let index = 0; ; index++) {
      const disk = logOf(1, 16 * KiB, () => 900);
      const first = disk.calls;
      let hit = false;
      disk.fault = (call): SimFault | undefined => {
        if (call.index !== first + index) return undefined;
        const isFitting =
          fault.kind === 'throw' ||
          (fault.kind === 'short' ? call.call === 'write' : call.call === 'sync');
        hit = isFitting;
        return isFitting ? fault : undefined;
      };
      let failed = false;
      try {
        run(disk, requestOf(1));
      } catch {
        failed = true;
      }
      disk.fault = undefined;
      const isOver = disk.calls < first + index;
      if (hit) assert.ok(failed, `${fault.kind} at call ${index} is noticed`);
      assert.deepEqual(disk.openFiles, [], `${fault.kind} at call ${index}`);
      expectThere(disk, end, expected, `${fault.kind} at call ${index}`);
      run(disk, requestOf(1));
      expectThere(disk, end, expected, 'done again');
      assert.deepEqual(disk.list('tmp'), []);
      if (isOver) break;
    }
  }
});

test('turning off any call that makes it safe is noticed', () => {
  const sample = logOf(1, 16 * KiB, () => 900);
  const end = endOf(sample, 1);
  const expected = read(open(sample, 1), end);
  /** What a crash at some call leaves when calls of one kind, the nth of them, do nothing. */
  const isNoticed = (kind: string, nth: number): boolean => {
    for (let mutation = 0; mutation < 40; mutation++) {
      const disk = logOf(1, 16 * KiB, () => 900);
      disk.settle();
      const first = disk.mutations;
      let count = 0;
      disk.fault = (call): SimFault | undefined => {
        if (call.mutation === first + mutation) return { kind: 'crash' };
        if (call.call !== kind || count++ !== nth) return undefined;
        return { kind: 'skip' };
      };
      try {
        run(disk, requestOf(1));
      } catch (error) {
        if (!(error instanceof SimCrash)) return true;
      }
      const choice = { subsetsMax: 8, samples: 10, regularMax: 10 };
      for (const left of crashes(disk, new Prng(mutation), choice)) {
        try {
          expectThere(left, end, expected, 'after a crash');
        } catch {
          return true;
        }
      }
    }
    return false;
  };
  const places: [string, number][] = [
    ['write', 0],
    ['write', 1],
    ['write', 2],
    ['fdatasync', 0],
    ['rename', 0],
    ['fsync', 0],
  ];
  for (const [kind, nth] of places) assert.ok(isNoticed(kind, nth), `${kind} ${nth} is missed`);
  // The last one only keeps the .seg from coming back, beside what replaced it.
  assert.equal(isNoticed('fsync', 1), false);
});

test('cancelled at any step it leaves the segment in one file or the other', () => {
  const sample = logOf(1, 16 * KiB, () => 900);
  const end = endOf(sample, 1);
  const expected = read(open(sample, 1), end);
  for (let steps = 0; ; steps++) {
    const disk = logOf(1, 16 * KiB, () => 900);
    const job = new CompressJob(disk, requestOf(1));
    let more = true;
    for (let i = 0; i < steps && more; i++) more = job.step();
    job.cancel();
    assert.deepEqual(disk.openFiles, []);
    assert.deepEqual(disk.list('tmp'), []);
    expectThere(disk, end, expected, `after ${steps} steps`);
    if (!more) break;
  }
});

test('with codec 0 the segment stays as it is and is described, whichever file it is in', () => {
  const disk = logOf(1, 16 * KiB, () => 900);
  const bytes = disk.bytesOf(segmentPath(1))!.slice();
  const result = run(disk, requestOf(1, { codec: 0 }));
  assert.equal(result.name, '0000000001.seg');
  assert.equal(result.codec, 0);
  assert.equal(result.bytes, bytes.length);
  assert.equal(result.hash, createHash('sha256').update(bytes).digest('hex'));
  const packed = run(disk, requestOf(1));
  assert.deepEqual(run(disk, requestOf(1, { codec: 0 })), packed);
});
