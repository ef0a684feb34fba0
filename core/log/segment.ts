/**
 * The first block of a segment file: who it is, where the history before it ends, and the salt that
 * makes its records its own. Two copies, so that one lost sector loses nothing; a valid header proves
 * the segment before it durable up to prevEndPos. Written by the writer and by recovery, read at open.
 *
 * Block of 4096 bytes: 128 bytes at 0, a copy at 2048, the rest zero; records start at 4096.
 *
 *   off size field
 *     0    8 magic 8F 43 4C 47 0D 0A 1A 0A
 *     8    2 formatMajor = 1
 *    10    1 checksumAlg: 1 = CRC-32 IEEE
 *    11    1 blockLog2 = 0 (12: batches padded to 4096, kept for direct I/O)
 *    12    4 incompat feature bits
 *    16    4 roCompat feature bits
 *    20    4 compat feature bits (bit 0 zero-filled, bit 1 recycled)
 *    24   16 logId (equals the manifest's)
 *    40    8 segmentSeq (equals the file name)
 *    48    8 baseOffset: first offset of this segment
 *    56    8 prevSeq (0 = none)
 *    64    8 prevEndPos: end of valid bytes in prevSeq; bytes beyond are void
 *    72    4 prevChain: content chain at baseOffset
 *    76    4 epoch
 *    80    8 plannedBytes
 *    88    8 baseAtMs: committedAtMs of the last commit before baseOffset (0 = none)
 *    96    2 payloadFormat = 1
 *    98    2 reason (0 create, 1 rotate, 2 recovery, 3 truncate, 4 import)
 *   100   20 zero
 *   120    4 salt = CRC-32(logId, segmentSeq as u64)
 *   124    4 CRC-32 of bytes 0..123
 */
import { getU16, getU32, getU64, setU16, setU32, setU64 } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { TidemarkError } from '../base/errors.ts';
import { PAYLOAD_FORMAT } from '../base/update.ts';

export const SEGMENT_MAGIC_OFFSET = 0;
export const SEGMENT_FORMAT_OFFSET: number = SEGMENT_MAGIC_OFFSET + 8;
export const SEGMENT_CHECKSUM_ALG_OFFSET: number = SEGMENT_FORMAT_OFFSET + 2;
export const SEGMENT_BLOCK_LOG2_OFFSET: number = SEGMENT_CHECKSUM_ALG_OFFSET + 1;
export const SEGMENT_INCOMPAT_OFFSET: number = SEGMENT_BLOCK_LOG2_OFFSET + 1;
export const SEGMENT_RO_COMPAT_OFFSET: number = SEGMENT_INCOMPAT_OFFSET + 4;
export const SEGMENT_COMPAT_OFFSET: number = SEGMENT_RO_COMPAT_OFFSET + 4;
export const SEGMENT_LOG_ID_OFFSET: number = SEGMENT_COMPAT_OFFSET + 4;
export const SEGMENT_SEQ_OFFSET: number = SEGMENT_LOG_ID_OFFSET + 16;
export const SEGMENT_BASE_OFFSET: number = SEGMENT_SEQ_OFFSET + 8;
export const SEGMENT_PREV_SEQ_OFFSET: number = SEGMENT_BASE_OFFSET + 8;
export const SEGMENT_PREV_END_OFFSET: number = SEGMENT_PREV_SEQ_OFFSET + 8;
export const SEGMENT_PREV_CHAIN_OFFSET: number = SEGMENT_PREV_END_OFFSET + 8;
export const SEGMENT_EPOCH_OFFSET: number = SEGMENT_PREV_CHAIN_OFFSET + 4;
export const SEGMENT_PLANNED_OFFSET: number = SEGMENT_EPOCH_OFFSET + 4;
export const SEGMENT_BASE_AT_MS_OFFSET: number = SEGMENT_PLANNED_OFFSET + 8;
export const SEGMENT_PAYLOAD_FORMAT_OFFSET: number = SEGMENT_BASE_AT_MS_OFFSET + 8;
export const SEGMENT_REASON_OFFSET: number = SEGMENT_PAYLOAD_FORMAT_OFFSET + 2;
export const SEGMENT_ZERO_OFFSET: number = SEGMENT_REASON_OFFSET + 2;
export const SEGMENT_SALT_OFFSET: number = SEGMENT_ZERO_OFFSET + 20;
export const SEGMENT_CRC_OFFSET: number = SEGMENT_SALT_OFFSET + 4;
/** One copy. */
export const SEGMENT_HEADER_BYTES: number = SEGMENT_CRC_OFFSET + 4;
export const SEGMENT_COPY_OFFSET = 2048;
/** The whole block; the first record's position. */
export const SEGMENT_BLOCK_BYTES = 4096;

export const LOG_ID_BYTES = 16;
const MAGIC: readonly number[] = [0x8f, 0x43, 0x4c, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const FORMAT_MAJOR = 1;
const CHECKSUM_CRC32 = 1;

export const COMPAT_ZERO_FILLED = 1;
/**
 * The file was another segment before. Behind this one's records lie the other's, whose salt makes them no
 * records: bytes that are not zero prove nothing here, only sound headers do.
 */
export const COMPAT_RECYCLED = 2;

export const REASON_CREATE = 0;
export const REASON_ROTATE = 1;
export const REASON_RECOVERY = 2;
export const REASON_TRUNCATE = 3;
export const REASON_IMPORT = 4;

export type SegmentHeader = {
  /** Unknown bits (all are, yet) allow reading only. */
  roCompat: number;
  compat: number;
  logId: Uint8Array;
  seq: number;
  baseOffset: number;
  prevSeq: number;
  prevEndPos: number;
  prevChain: number;
  epoch: number;
  plannedBytes: number;
  baseAtMs: number;
  reason: number;
};

/** Unique per use of a file, and known without its header. */
export function saltOf(logId: Uint8Array, seq: number): number {
  const name = new Uint8Array(8);
  setU64(name, 0, seq);
  return crc32(name, 0, 8, crc32(logId, 0, LOG_ID_BYTES));
}

/** Fills target[at, at + 4096) with both copies. */
export function encodeSegmentBlock(target: Uint8Array, at: number, header: SegmentHeader): void {
  target.fill(0, at, at + SEGMENT_BLOCK_BYTES);
  for (let i = 0; i < MAGIC.length; i++) target[at + i] = MAGIC[i];
  setU16(target, at + SEGMENT_FORMAT_OFFSET, FORMAT_MAJOR);
  target[at + SEGMENT_CHECKSUM_ALG_OFFSET] = CHECKSUM_CRC32;
  setU32(target, at + SEGMENT_RO_COMPAT_OFFSET, header.roCompat);
  setU32(target, at + SEGMENT_COMPAT_OFFSET, header.compat);
  target.set(header.logId.subarray(0, LOG_ID_BYTES), at + SEGMENT_LOG_ID_OFFSET);
  setU64(target, at + SEGMENT_SEQ_OFFSET, header.seq);
  setU64(target, at + SEGMENT_BASE_OFFSET, header.baseOffset);
  setU64(target, at + SEGMENT_PREV_SEQ_OFFSET, header.prevSeq);
  setU64(target, at + SEGMENT_PREV_END_OFFSET, header.prevEndPos);
  setU32(target, at + SEGMENT_PREV_CHAIN_OFFSET, header.prevChain);
  setU32(target, at + SEGMENT_EPOCH_OFFSET, header.epoch);
  setU64(target, at + SEGMENT_PLANNED_OFFSET, header.plannedBytes);
  setU64(target, at + SEGMENT_BASE_AT_MS_OFFSET, header.baseAtMs);
  setU16(target, at + SEGMENT_PAYLOAD_FORMAT_OFFSET, PAYLOAD_FORMAT);
  setU16(target, at + SEGMENT_REASON_OFFSET, header.reason);
  setU32(target, at + SEGMENT_SALT_OFFSET, saltOf(header.logId, header.seq));
  setU32(target, at + SEGMENT_CRC_OFFSET, crc32(target, at, SEGMENT_CRC_OFFSET));
  target.copyWithin(at + SEGMENT_COPY_OFFSET, at, at + SEGMENT_HEADER_BYTES);
}

/**
 * One copy of the header, or undefined when these are not the bytes of one (magic or CRC). Throws
 * TIDEMARK_UNSUPPORTED_FORMAT for a sound header of a kind this version cannot read.
 */
export function decodeSegmentHeader(
  bytes: Uint8Array,
  at: number,
  file: string,
): SegmentHeader | undefined {
  for (let i = 0; i < MAGIC.length; i++) if (bytes[at + i] !== MAGIC[i]) return undefined;
  if (getU32(bytes, at + SEGMENT_CRC_OFFSET) !== crc32(bytes, at, SEGMENT_CRC_OFFSET)) {
    return undefined;
  }
  expectKnown(file, 'formatMajor', getU16(bytes, at + SEGMENT_FORMAT_OFFSET), FORMAT_MAJOR);
  expectKnown(file, 'checksumAlg', bytes[at + SEGMENT_CHECKSUM_ALG_OFFSET], CHECKSUM_CRC32);
  expectKnown(file, 'blockLog2', bytes[at + SEGMENT_BLOCK_LOG2_OFFSET], 0);
  expectKnown(file, 'incompat', getU32(bytes, at + SEGMENT_INCOMPAT_OFFSET), 0);
  const payloadFormat = getU16(bytes, at + SEGMENT_PAYLOAD_FORMAT_OFFSET);
  expectKnown(file, 'payloadFormat', payloadFormat, PAYLOAD_FORMAT);
  return {
    roCompat: getU32(bytes, at + SEGMENT_RO_COMPAT_OFFSET),
    compat: getU32(bytes, at + SEGMENT_COMPAT_OFFSET),
    logId: bytes.slice(at + SEGMENT_LOG_ID_OFFSET, at + SEGMENT_LOG_ID_OFFSET + LOG_ID_BYTES),
    seq: getU64(bytes, at + SEGMENT_SEQ_OFFSET),
    baseOffset: getU64(bytes, at + SEGMENT_BASE_OFFSET),
    prevSeq: getU64(bytes, at + SEGMENT_PREV_SEQ_OFFSET),
    prevEndPos: getU64(bytes, at + SEGMENT_PREV_END_OFFSET),
    prevChain: getU32(bytes, at + SEGMENT_PREV_CHAIN_OFFSET),
    epoch: getU32(bytes, at + SEGMENT_EPOCH_OFFSET),
    plannedBytes: getU64(bytes, at + SEGMENT_PLANNED_OFFSET),
    baseAtMs: getU64(bytes, at + SEGMENT_BASE_AT_MS_OFFSET),
    reason: getU16(bytes, at + SEGMENT_REASON_OFFSET),
  };
}

/** The header in a block of 4096 bytes: the first copy, or the second when that is damaged. */
export function decodeSegmentBlock(
  block: Uint8Array,
  file: string,
): { header: SegmentHeader | undefined; damaged: boolean } {
  const first = decodeSegmentHeader(block, 0, file);
  if (first !== undefined) return { header: first, damaged: false };
  return { header: decodeSegmentHeader(block, SEGMENT_COPY_OFFSET, file), damaged: true };
}

function expectKnown(file: string, field: string, got: number, known: number): void {
  if (got === known) return;
  throw new TidemarkError(
    'TIDEMARK_UNSUPPORTED_FORMAT',
    `${file} has ${field} ${got}; this version knows ${known}`,
    { file, field, got, known },
  );
}
