/** The log's bytes are what the tables say, for ever: golden files, round trips, and what is refused. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { TidemarkError } from '../../core/base/errors.ts';
import { Prng } from '../../core/base/prng.ts';
import { PayloadWalker, validatePayload } from '../../core/log/payload.ts';
import {
  READ_BAD_HEADER,
  READ_MORE,
  READ_RECORD,
  SegmentReader,
  TailScan,
} from '../../core/log/reader.ts';
import type { SegmentBytes } from '../../core/log/reader.ts';
import {
  RECORD_CLEAN,
  RECORD_COMMIT,
  RECORD_HEADER_BYTES,
  RECORD_PAD,
  RECORD_SEAL,
  RECORD_WATERMARK,
  RecordHeader,
  chainAfter,
  decodeSegmentEnd,
  encodeRecordHeader,
  encodeSegmentEnd,
  isRecordHeader,
} from '../../core/log/record.ts';
import {
  COMPAT_RECYCLED,
  REASON_ROTATE,
  SEGMENT_BLOCK_BYTES,
  SEGMENT_COPY_OFFSET,
  decodeSegmentBlock,
  encodeSegmentBlock,
  saltOf,
} from '../../core/log/segment.ts';
import {
  LOG_ID,
  naiveBlock,
  naiveEnd,
  naiveRecord,
  naiveSalt,
  payloadOf,
  transactionOf,
} from './kit.ts';
import type { Op } from './kit.ts';
import { printSegment } from './print.ts';

const GOLDEN = new URL('../golden/log/', import.meta.url);
const REWRITE = process.env['TIDEMARK_REWRITE_GOLDEN'] === '1';

const bytesOf = (text: string): Uint8Array => Buffer.from(text, 'latin1');

function attachValue(parts: number): Buffer {
  const value = Buffer.alloc(8 + 40 * parts);
  value.writeUInt32LE(9, 0);
  value.writeUInt32LE(parts, 4);
  for (let i = 0; i < parts; i++) value.writeUInt32LE(100 + i, 8 + 40 * i);
  return value;
}

const NONE = new Uint8Array(0);
/** One of each kind. */
const OPS: Op[] = [
  { collection: 0, kind: 1, key: bytesOf('users'), value: bytesOf('{"id":1}') },
  { collection: 1, kind: 1, key: bytesOf('ada'), value: bytesOf('Lovelace') },
  { collection: 1, kind: 2, key: bytesOf('bob'), value: NONE },
  { collection: 2, kind: 3, key: bytesOf('edge'), value: bytesOf('x'), diff: -3 },
  { collection: 1, kind: 4, key: bytesOf('m'), value: bytesOf('n') },
  { collection: 1, kind: 5, key: NONE, value: attachValue(1) },
];

type Encoded = { words: Uint32Array; bytes: Uint8Array; at: number };

/** Appends a record through the code under test. */
function put(
  to: Encoded,
  salt: number,
  kind: number,
  flags: number,
  txCount: number,
  min: number,
  epoch: number,
  chain: number,
  durable: number,
  atMs: number,
  payload: Uint8Array,
): void {
  const { words, bytes, at } = to;
  const crc = crc32(payload);
  encodeRecordHeader(
    words,
    bytes,
    at,
    salt,
    at,
    kind,
    flags,
    payload.length,
    txCount,
    min,
    epoch,
    crc,
    chain,
    durable,
    atMs,
  );
  bytes.set(payload, at + RECORD_HEADER_BYTES);
  to.at = at + RECORD_HEADER_BYTES + Math.ceil(payload.length / 8) * 8;
}

function goldenSegment(): Uint8Array {
  const buffer = new ArrayBuffer(8192);
  const to = { words: new Uint32Array(buffer), bytes: new Uint8Array(buffer), at: 4096 };
  const seq = 7;
  const base = 2 ** 33 + 5;
  const atMs = 1_700_000_000_123;
  encodeSegmentBlock(to.bytes, 0, {
    roCompat: 0,
    compat: 1,
    logId: LOG_ID,
    seq,
    baseOffset: base,
    prevSeq: 5,
    prevEndPos: 123_456,
    prevChain: 0xdead_beef,
    epoch: 3,
    plannedBytes: 256 << 20,
    baseAtMs: atMs,
    reason: REASON_ROTATE,
  });
  const salt = saltOf(LOG_ID, seq);
  const one = transactionOf(OPS);
  let chain = 0xdead_beef;
  put(to, salt, RECORD_COMMIT, 1, 1, base, 3, chain, base, atMs + 1, one);
  chain = chainAfter(chain, base, 1, 3, one.length, crc32(one), atMs + 1);
  const two = Buffer.concat([transactionOf([]), transactionOf(OPS.slice(0, 2))]);
  put(to, salt, RECORD_COMMIT, 0, 2, base + 1, 4, chain, base - 2 ** 32, atMs + 2, two);
  chain = chainAfter(chain, base + 1, 2, 4, two.length, crc32(two), atMs + 2);
  put(to, salt, RECORD_WATERMARK, 1, 0, base + 3, 4, chain, base + 3, atMs + 2, NONE);
  put(to, salt, RECORD_PAD, 0, 0, base + 3, 4, chain, base + 3, atMs + 2, new Uint8Array(12));
  put(to, salt, 200, 0, 0, base + 3, 4, chain, base + 3, atMs + 2, bytesOf('later'));
  for (const kind of [RECORD_SEAL, RECORD_CLEAN]) {
    const end = new Uint8Array(32);
    encodeSegmentEnd(end, 0, { baseOffset: base, next: base + 3, commits: 2, chain, epoch: 4 });
    put(to, salt, kind, 0, 0, base + 3, 4, chain, base + 3, atMs + 2, end);
  }
  return to.bytes.slice(0, to.at + 16);
}

test('version 1 keeps its bytes, and reads back field by field', () => {
  const bytes = goldenSegment();
  const text = printSegment(bytes);
  if (REWRITE) {
    writeFileSync(new URL('v1.seg', GOLDEN), bytes);
    writeFileSync(new URL('v1.txt', GOLDEN), text);
  }
  assert.deepEqual(bytes, new Uint8Array(readFileSync(new URL('v1.seg', GOLDEN))));
  assert.equal(text, readFileSync(new URL('v1.txt', GOLDEN), 'utf8'));
});

/** The golden segment's file as segment 9: another header, two records; behind them what was there. */
function goldenRecycled(): Uint8Array {
  const bytes = goldenSegment();
  const to = { words: new Uint32Array(bytes.buffer), bytes, at: SEGMENT_BLOCK_BYTES };
  const seq = 9;
  const base = 2 ** 33 + 40;
  const atMs = 1_700_000_000_456;
  encodeSegmentBlock(bytes, 0, {
    roCompat: 0,
    compat: COMPAT_RECYCLED,
    logId: LOG_ID,
    seq,
    baseOffset: base,
    prevSeq: 8,
    prevEndPos: 7_777,
    prevChain: 0x0123_4567,
    epoch: 4,
    plannedBytes: 8_192,
    baseAtMs: atMs,
    reason: REASON_ROTATE,
  });
  const salt = saltOf(LOG_ID, seq);
  const one = transactionOf(OPS.slice(0, 2));
  put(to, salt, RECORD_COMMIT, 1, 1, base, 4, 0x0123_4567, base, atMs + 1, one);
  const chain = chainAfter(0x0123_4567, base, 1, 4, one.length, crc32(one), atMs + 1);
  put(to, salt, RECORD_WATERMARK, 1, 0, base + 1, 4, chain, base + 1, atMs + 1, NONE);
  return bytes;
}

test('a recycled segment keeps its bytes too: its own records, and what lies behind them', () => {
  const bytes = goldenRecycled();
  const text = printSegment(bytes);
  if (REWRITE) {
    writeFileSync(new URL('v1-recycled.seg', GOLDEN), bytes);
    writeFileSync(new URL('v1-recycled.txt', GOLDEN), text);
  }
  const golden = new Uint8Array(readFileSync(new URL('v1-recycled.seg', GOLDEN)));
  assert.deepEqual(bytes, golden);
  assert.equal(text, readFileSync(new URL('v1-recycled.txt', GOLDEN), 'utf8'));
  const { header } = decodeSegmentBlock(golden, 'it');
  assert.equal(header?.compat, COMPAT_RECYCLED);
  const source: SegmentBytes = {
    read: (target, at, length, position) => {
      const part = golden.subarray(position, position + length);
      target.set(part, at);
      return part.length;
    },
  };
  const salt = saltOf(LOG_ID, 9);
  const reader = new SegmentReader(source, 9, salt, SEGMENT_BLOCK_BYTES, golden.length);
  const kinds: number[] = [];
  let found = reader.next();
  for (; found === READ_MORE || found === READ_RECORD; found = reader.next()) {
    if (found === READ_RECORD) kinds.push(reader.header.kind);
  }
  assert.deepEqual(kinds, [RECORD_COMMIT, RECORD_WATERMARK]);
  assert.equal(found, READ_BAD_HEADER, 'old bytes');
  const tail = new TailScan(source, salt, reader.position, golden.length, true);
  while (tail.step());
  assert.equal(tail.headers, 0);
  assert.equal(tail.contentEnd, reader.position, 'nothing of this segment');
  // To its old number they are records still.
  const before = new TailScan(source, saltOf(LOG_ID, 7), reader.position, golden.length, true);
  while (before.step());
  assert.ok(before.headers > 0, `${before.headers} old headers`);
});

test('headers are what a naive encoder makes of the table', () => {
  const prng = new Prng(11);
  const buffer = new ArrayBuffer(4096);
  const words = new Uint32Array(buffer);
  const bytes = new Uint8Array(buffer);
  const header = new RecordHeader();
  for (let i = 0; i < 500; i++) {
    const position = prng.below(2 ** 32) * 8;
    const seq = 1 + prng.below(1e9);
    const salt = saltOf(LOG_ID, seq);
    assert.equal(salt, naiveSalt(LOG_ID, seq));
    const minTxOffset = prng.below(2 ** 52);
    const record = {
      kind: RECORD_COMMIT,
      flags: prng.below(2),
      txCount: 1 + prng.below(65_535),
      minTxOffset,
      epoch: prng.u32(),
      prevChain: prng.u32(),
      durable: prng.chance(0.5) ? minTxOffset - prng.below(1000) : 0,
      atMs: prng.below(2 ** 45),
      payload: payloadOf(prng, 1, 64),
    };
    const expected = naiveRecord(record, salt, position);
    const crc = crc32(record.payload);
    encodeRecordHeader(
      words,
      bytes,
      64,
      salt,
      position,
      record.kind,
      record.flags,
      record.payload.length,
      record.txCount,
      minTxOffset,
      record.epoch,
      crc,
      record.prevChain,
      record.durable,
      record.atMs,
    );
    assert.deepEqual(Buffer.from(bytes.subarray(64, 112)), expected.subarray(0, 48));
    assert.ok(isRecordHeader(expected, 0, salt, position));
    assert.ok(!isRecordHeader(expected, 0, salt, position + 8));
    assert.ok(!isRecordHeader(expected, 0, saltOf(LOG_ID, seq + 1), position));
    header.decode(expected, 0, seq, position);
    assert.equal(header.minTxOffset, minTxOffset);
    assert.equal(header.claim, minTxOffset - record.durable < 2 ** 32 - 1 ? record.durable : 0);
    assert.equal(header.committedAtMs, record.atMs);
    const bit = prng.below(48 * 8);
    const flipped = Buffer.from(expected);
    flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    assert.ok(!isRecordHeader(flipped, 0, salt, position));
  }
});

test('the chain depends on every number of a commit', () => {
  const numbers = [1, 2 ** 40 + 2, 3, 4, 5, 6, 2 ** 41 + 7] as const;
  const seen = new Set([chainAfter(...numbers)]);
  numbers.forEach((number, i) => {
    for (const change of [1, i === 1 || i === 6 ? 2 ** 33 : 2]) {
      const [a, b, c, d, e, f, g] = numbers.with(i, number + change);
      seen.add(chainAfter(a ?? 0, b ?? 0, c ?? 0, d ?? 0, e ?? 0, f ?? 0, g ?? 0));
    }
  });
  assert.equal(seen.size, 1 + 2 * numbers.length);
});

test('a segment header survives the loss of either copy, and none of both', () => {
  const segment = {
    seq: 12,
    base: 99,
    prevSeq: 11,
    prevEnd: 8200,
    prevChain: 77,
    epoch: 2,
    planned: 16_384,
    baseAtMs: 1234,
    reason: 1,
    compat: 1,
  };
  const expected = naiveBlock(LOG_ID, segment);
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
  const { header } = decodeSegmentBlock(expected, 'x');
  assert.ok(header !== undefined);
  encodeSegmentBlock(block, 0, header);
  assert.deepEqual(Buffer.from(block), expected);
  for (let bit = 0; bit < 128 * 8; bit++) {
    const damaged = Buffer.from(expected);
    damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    const found = decodeSegmentBlock(damaged, 'x');
    assert.ok(found.damaged);
    assert.deepEqual(found.header, header);
    const copyAt = SEGMENT_COPY_OFFSET + (bit >> 3);
    damaged[copyAt] = (damaged[copyAt] ?? 0) ^ (1 << (bit & 7));
    assert.equal(decodeSegmentBlock(damaged, 'x').header, undefined);
  }
});

test('sound headers with unknown versions and features are refused by name', () => {
  const fields: [string, number, number][] = [
    ['formatMajor', 8, 2],
    ['checksumAlg', 10, 2],
    ['blockLog2', 11, 12],
    ['incompat', 12, 1],
    ['payloadFormat', 96, 2],
  ];
  for (const [field, at, value] of fields) {
    const segment = naiveBlock(LOG_ID, {
      seq: 1,
      base: 0,
      prevSeq: 0,
      prevEnd: 0,
      prevChain: 0,
      epoch: 0,
      planned: 0,
      baseAtMs: 0,
      reason: 0,
      compat: 0xffff_ffff,
    });
    assert.ok(decodeSegmentBlock(segment, 'x').header !== undefined, 'compat bits are ignored');
    segment.writeUInt8(value, at);
    segment.writeUInt32LE(crc32(segment.subarray(0, 124)), 124);
    assert.throws(
      () => decodeSegmentBlock(segment, 'x'),
      (error) =>
        error instanceof TidemarkError &&
        error.code === 'TIDEMARK_UNSUPPORTED_FORMAT' &&
        error.detail['field'] === field,
    );
  }
});

test('SEAL and CLEAN say where their segment ends', () => {
  const end = { baseOffset: 2 ** 40, next: 2 ** 40 + 9, commits: 4, chain: 0xffff_fff0, epoch: 8 };
  const bytes = new Uint8Array(32);
  encodeSegmentEnd(bytes, 0, end);
  assert.deepEqual(Buffer.from(bytes), naiveEnd(2 ** 40, 2 ** 40 + 9, 4, 0xffff_fff0, 8));
  assert.deepEqual(decodeSegmentEnd(bytes, 0), end);
});

test('a payload is walked as it was written, wherever it lies', () => {
  const payload = Buffer.concat([transactionOf(OPS), transactionOf([]), transactionOf(OPS)]);
  for (const offset of [0, 3, 8]) {
    const bytes = new Uint8Array(payload.length + offset);
    bytes.set(payload, offset);
    validatePayload(bytes, offset, payload.length, 3);
    const walker = new PayloadWalker();
    walker.start(bytes, offset, 3);
    const seen: Op[][] = [];
    while (walker.nextTransaction()) {
      const ops: Op[] = [];
      seen.push(ops);
      while (walker.nextOperation()) {
        const { collection, kind, keyOffset, keyBytes, valueOffset, valueBytes, diff } = walker;
        const key = Buffer.from(bytes.subarray(keyOffset, keyOffset + keyBytes));
        const value = Buffer.from(bytes.subarray(valueOffset, valueOffset + valueBytes));
        ops.push({ collection, kind, key, value, ...(kind === 3 ? { diff } : {}) });
      }
    }
    const plain = OPS.map((op) => ({
      ...op,
      key: Buffer.from(op.key),
      value: Buffer.from(op.value),
    }));
    assert.deepEqual(seen, [plain, [], plain]);
  }
});

function findingOf(payload: Uint8Array, txCount: number): string {
  try {
    validatePayload(payload, 0, payload.length, txCount);
    return 'sound';
  } catch (error) {
    assert.ok(error instanceof TidemarkError);
    return error.code === 'TIDEMARK_CORRUPT' ? String(error.detail['finding']) : error.code;
  }
}

test('payloads that lie about themselves are FORMAT, unknown kinds and flags are unsupported', () => {
  const one = (op: Partial<Op>, patch: (bytes: Buffer) => void = () => {}): string => {
    const bytes = transactionOf([{ collection: 1, kind: 1, key: NONE, value: NONE, ...op }]);
    patch(bytes);
    return findingOf(bytes, 1);
  };
  assert.equal(one({}), 'sound');
  assert.equal(one({ kind: 0 }), 'FORMAT');
  assert.equal(one({ kind: 6 }), 'TIDEMARK_UNSUPPORTED_FORMAT');
  assert.equal(
    one({}, (b) => b.writeUInt8(1, 13)),
    'TIDEMARK_UNSUPPORTED_FORMAT',
  );
  assert.equal(
    one({}, (b) => b.writeUInt32LE(1, 20)),
    'FORMAT',
  );
  assert.equal(
    one({ key: bytesOf('k') }, (b) => b.writeUInt8(1, 31)),
    'FORMAT',
  );
  assert.equal(one({ kind: 2, value: bytesOf('v') }), 'FORMAT');
  assert.equal(one({ kind: 3, diff: 0 }), 'FORMAT');
  assert.equal(one({ kind: 3, diff: 1.5 }), 'FORMAT');
  assert.equal(one({ kind: 3, diff: 2 ** 53 }), 'FORMAT');
  assert.equal(one({ kind: 3, diff: -1 }), 'sound');
  assert.equal(one({ kind: 4, value: new Uint8Array(65_536) }), 'FORMAT');
  assert.equal(one({ kind: 5, value: attachValue(3) }), 'sound');
  assert.equal(one({ kind: 5, key: bytesOf('k'), value: attachValue(1) }), 'FORMAT');
  assert.equal(one({ kind: 5, value: attachValue(1).subarray(0, 40) }), 'FORMAT');
  assert.equal(
    one({ kind: 5, value: attachValue(1) }, (b) => b.writeUInt8(1, 68)),
    'FORMAT',
  );
  assert.equal(one({ value: new Uint8Array(33 << 20) }), 'FORMAT');
  // Sizes and counts.
  for (const [at, value] of [
    [0, 0],
    [0, 7],
    [0, 12],
    [0, 16],
    [0, 32],
    [4, 0],
    [4, 2],
    [16, 8],
    [16, 0xffff_ffff],
  ] as const) {
    assert.equal(
      one({}, (b) => b.writeUInt32LE(value, at)),
      'FORMAT',
      `${at} = ${value}`,
    );
  }
  assert.equal(findingOf(transactionOf([]), 0), 'FORMAT');
  assert.equal(findingOf(transactionOf([]), 2), 'FORMAT');
  assert.equal(findingOf(transactionOf([]).subarray(0, 4), 1), 'FORMAT');
});

test('any byte of a payload changed is found or harmless, never an endless walk', () => {
  const payload = Buffer.concat([transactionOf(OPS), transactionOf(OPS)]);
  for (let bit = 0; bit < payload.length * 8; bit++) {
    const changed = Buffer.from(payload);
    changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    assert.match(findingOf(changed, 2), /^(sound|FORMAT|TIDEMARK_UNSUPPORTED_FORMAT)$/);
  }
});
