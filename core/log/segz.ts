/**
 * A compressed segment, `<seq>.segz`: the same header and records as the .seg it was made from, at the
 * same (raw) positions, in frames of whole records. Decoding believes nothing: what does not add up is
 * TIDEMARK_CORRUPT, finding CHECKSUM (core/decisions/0009-compressed-segments.md). Written by the compress job (compress.ts), read through
 * segment-source.ts; any thread.
 *
 *   file      header, frames one behind the other, table, trailer; little endian, no padding
 *
 *   header    off size field
 *               0    8 magic 8F 43 4C 5A 0D 0A 1A 0A
 *               8    2 formatMajor = 1
 *              10    1 checksumAlg: 1 = CRC-32 IEEE
 *              11    1 codec of the frames: 1 raw deflate, 2 zstd
 *              12    4 incompat feature bits
 *              16  128 header of the segment (segment.ts), one copy
 *             144    8 rawEnd: where the segment's valid bytes end, its successor's prevEndPos
 *             152    8 endOffset: first offset after it
 *             160    8 endAtMs: committedAtMs of its last commit (its baseAtMs when it has none)
 *             168    4 endChain: content chain there
 *             172    4 endEpoch
 *             176   12 zero
 *             188    4 CRC-32 of bytes 0..187
 *   frame       0    4 rawBytes
 *               4    4 packedBytes: of what follows the frame's header; equal to rawBytes = not packed
 *               8    8 raw position of its first record
 *              16    4 CRC-32 of bytes 0..15 and the packed ones, continued from the segment's salt
 *              20      packed bytes
 *   table       0    8 minTxOffset of the frame's first record; one entry a frame
 *               8    8 committedAtMs of that record
 *              16    8 raw position
 *              24    8 position of the frame in the file
 *              32    4 rawBytes
 *              36    4 packedBytes
 *   trailer     0    8 position of the table in the file
 *               8    4 number of frames
 *              12    4 CRC-32 of the table, continued from the salt
 *              16    4 CRC-32 of bytes 0..15, continued from the salt
 *              20  192 the header again
 *
 * A frame is closed before the record that would take it beyond frameBytesTarget, so a larger record is
 * a frame of its own. Raw positions run from the segment's first record (4096) to rawEnd without gaps.
 */
import * as zlib from 'node:zlib';
import { getU16, getU32, getU64, setU16, setU32, setU64 } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { TidemarkError } from '../base/errors.ts';
import { OFFSET_MAX } from '../base/frontier.ts';
import { KiB, commitBytesMax, segmentBytesMax } from '../base/limits.ts';
import { recordBytes } from './record.ts';
import {
  SEGMENT_BLOCK_BYTES,
  SEGMENT_HEADER_BYTES,
  decodeSegmentHeader,
  encodeSegmentBlock,
  saltOf,
} from './segment.ts';
import type { SegmentHeader } from './segment.ts';

const MAGIC_OFFSET = 0;
const FORMAT_OFFSET: number = MAGIC_OFFSET + 8;
const CHECKSUM_ALG_OFFSET: number = FORMAT_OFFSET + 2;
const CODEC_OFFSET: number = CHECKSUM_ALG_OFFSET + 1;
const INCOMPAT_OFFSET: number = CODEC_OFFSET + 1;
const SEGMENT_OFFSET: number = INCOMPAT_OFFSET + 4;
const RAW_END_OFFSET: number = SEGMENT_OFFSET + SEGMENT_HEADER_BYTES;
const END_OFFSET_OFFSET: number = RAW_END_OFFSET + 8;
const END_AT_MS_OFFSET: number = END_OFFSET_OFFSET + 8;
const END_CHAIN_OFFSET: number = END_AT_MS_OFFSET + 8;
const END_EPOCH_OFFSET: number = END_CHAIN_OFFSET + 4;
const ZERO_OFFSET: number = END_EPOCH_OFFSET + 4;
const HEADER_CRC_OFFSET: number = ZERO_OFFSET + 12;
export const SEGZ_HEADER_BYTES: number = HEADER_CRC_OFFSET + 4;

const FRAME_RAW_BYTES_OFFSET = 0;
const FRAME_PACKED_BYTES_OFFSET: number = FRAME_RAW_BYTES_OFFSET + 4;
const FRAME_RAW_POSITION_OFFSET: number = FRAME_PACKED_BYTES_OFFSET + 4;
const FRAME_CRC_OFFSET: number = FRAME_RAW_POSITION_OFFSET + 8;
export const SEGZ_FRAME_HEADER_BYTES: number = FRAME_CRC_OFFSET + 4;

const ENTRY_OFFSET_OFFSET = 0;
const ENTRY_AT_MS_OFFSET: number = ENTRY_OFFSET_OFFSET + 8;
const ENTRY_RAW_POSITION_OFFSET: number = ENTRY_AT_MS_OFFSET + 8;
const ENTRY_POSITION_OFFSET: number = ENTRY_RAW_POSITION_OFFSET + 8;
const ENTRY_RAW_BYTES_OFFSET: number = ENTRY_POSITION_OFFSET + 8;
const ENTRY_PACKED_BYTES_OFFSET: number = ENTRY_RAW_BYTES_OFFSET + 4;
export const SEGZ_ENTRY_BYTES: number = ENTRY_PACKED_BYTES_OFFSET + 4;

const TABLE_POSITION_OFFSET = 0;
const FRAME_COUNT_OFFSET: number = TABLE_POSITION_OFFSET + 8;
const TABLE_CRC_OFFSET: number = FRAME_COUNT_OFFSET + 4;
const TRAILER_CRC_OFFSET: number = TABLE_CRC_OFFSET + 4;
const HEADER_COPY_OFFSET: number = TRAILER_CRC_OFFSET + 4;
export const SEGZ_TRAILER_BYTES: number = HEADER_COPY_OFFSET + SEGZ_HEADER_BYTES;

const MAGIC: readonly number[] = [0x8f, 0x43, 0x4c, 0x5a, 0x0d, 0x0a, 0x1a, 0x0a];
const FORMAT_MAJOR = 1;
const CHECKSUM_CRC32 = 1;

export const CODEC_DEFLATE = 1;
export const CODEC_ZSTD = 2;

/** Raw bytes of a frame, unless one record is larger. */
export const frameBytesTarget: number = 256 * KiB;
const frameBytesMax: number = Math.max(frameBytesTarget, recordBytes(commitBytesMax));

/** What is archived is large and read rarely; what is packed is packed beside merges: the fast level. */
const DEFLATE_LEVEL = 1;

/** Where Node has it (22.15 on), which our types do not know. */
type Zstd = {
  readonly zstdCompressSync?: (bytes: Uint8Array) => Uint8Array;
  readonly zstdDecompressSync?: (
    bytes: Uint8Array,
    options: { maxOutputLength: number },
  ) => Uint8Array;
};
const { zstdCompressSync, zstdDecompressSync } = zlib as Zstd;

/** The best that this process can write. */
export const codecDefault: number = zstdCompressSync === undefined ? CODEC_DEFLATE : CODEC_ZSTD;

export type SegzHeader = {
  readonly codec: number;
  readonly segment: SegmentHeader;
  readonly rawEnd: number;
  readonly endOffset: number;
  readonly endAtMs: number;
  readonly endChain: number;
  readonly endEpoch: number;
};

export type SegzFrame = {
  readonly firstOffset: number;
  readonly firstAtMs: number;
  readonly rawPosition: number;
  readonly position: number;
  readonly rawBytes: number;
  /** Without the frame's header. */
  readonly packedBytes: number;
};

export type SegzTrailer = {
  readonly tablePosition: number;
  readonly frameCount: number;
  readonly tableCrc: number;
};

// ---------------------------------------------------------------- header

export function encodeSegzHeader(header: SegzHeader): Uint8Array {
  const bytes = new Uint8Array(SEGZ_HEADER_BYTES);
  bytes.set(MAGIC, MAGIC_OFFSET);
  setU16(bytes, FORMAT_OFFSET, FORMAT_MAJOR);
  bytes[CHECKSUM_ALG_OFFSET] = CHECKSUM_CRC32;
  bytes[CODEC_OFFSET] = header.codec;
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
  encodeSegmentBlock(block, 0, header.segment);
  bytes.set(block.subarray(0, SEGMENT_HEADER_BYTES), SEGMENT_OFFSET);
  setU64(bytes, RAW_END_OFFSET, header.rawEnd);
  setU64(bytes, END_OFFSET_OFFSET, header.endOffset);
  setU64(bytes, END_AT_MS_OFFSET, header.endAtMs);
  setU32(bytes, END_CHAIN_OFFSET, header.endChain);
  setU32(bytes, END_EPOCH_OFFSET, header.endEpoch);
  setU32(bytes, HEADER_CRC_OFFSET, crc32(bytes, 0, HEADER_CRC_OFFSET));
  return bytes;
}

/**
 * One copy of the header at bytes[at], or undefined when these are not the bytes of one (magic or CRC).
 * Throws TIDEMARK_UNSUPPORTED_FORMAT for a sound header of a kind this version, or this Node, cannot read.
 */
export function decodeSegzHeader(
  bytes: Uint8Array,
  at: number,
  file: string,
): SegzHeader | undefined {
  if (at < 0 || at + SEGZ_HEADER_BYTES > bytes.length) return undefined;
  for (let i = 0; i < MAGIC.length; i++) if (bytes[at + i] !== MAGIC[i]) return undefined;
  const crc = crc32(bytes, at, HEADER_CRC_OFFSET);
  if (getU32(bytes, at + HEADER_CRC_OFFSET) !== crc) return undefined;
  const codec = bytes[at + CODEC_OFFSET];
  expectKnown(file, 'formatMajor', getU16(bytes, at + FORMAT_OFFSET), FORMAT_MAJOR);
  expectKnown(file, 'checksumAlg', bytes[at + CHECKSUM_ALG_OFFSET], CHECKSUM_CRC32);
  expectKnown(file, 'incompat', getU32(bytes, at + INCOMPAT_OFFSET), 0);
  if (codec !== CODEC_DEFLATE && codec !== CODEC_ZSTD) throw unknown(file, 'codec', codec);
  const segment = decodeSegmentHeader(bytes, at + SEGMENT_OFFSET, file);
  if (segment === undefined) throw damaged(file, SEGMENT_OFFSET, "the segment's header in it");
  const header: SegzHeader = {
    codec,
    segment,
    rawEnd: getU64(bytes, at + RAW_END_OFFSET),
    endOffset: getU64(bytes, at + END_OFFSET_OFFSET),
    endAtMs: getU64(bytes, at + END_AT_MS_OFFSET),
    endChain: getU32(bytes, at + END_CHAIN_OFFSET),
    endEpoch: getU32(bytes, at + END_EPOCH_OFFSET),
  };
  const isSound =
    header.rawEnd >= SEGMENT_BLOCK_BYTES &&
    header.rawEnd <= segmentBytesMax + frameBytesMax &&
    header.endOffset >= segment.baseOffset &&
    header.endOffset <= OFFSET_MAX &&
    header.endAtMs >= segment.baseAtMs &&
    header.endAtMs <= OFFSET_MAX &&
    header.endEpoch >= segment.epoch;
  if (!isSound) throw damaged(file, at, 'its header contradicts itself');
  return header;
}

/** True when this process can unpack the codec's frames. */
export function canUnpack(codec: number): boolean {
  return codec === CODEC_DEFLATE || zstdDecompressSync !== undefined;
}

// ---------------------------------------------------------------- frames

/** A whole frame of raw[from, from + length), whose first record has `rawPosition`. */
export function encodeFrame(
  codec: number,
  salt: number,
  raw: Uint8Array,
  from: number,
  length: number,
  rawPosition: number,
): Uint8Array {
  const plain = raw.subarray(from, from + length);
  let packed = pack(codec, plain);
  // Noise grows when it is packed.
  if (packed.length >= length) packed = plain;
  const bytes = new Uint8Array(SEGZ_FRAME_HEADER_BYTES + packed.length);
  setU32(bytes, FRAME_RAW_BYTES_OFFSET, length);
  setU32(bytes, FRAME_PACKED_BYTES_OFFSET, packed.length);
  setU64(bytes, FRAME_RAW_POSITION_OFFSET, rawPosition);
  bytes.set(packed, SEGZ_FRAME_HEADER_BYTES);
  setU32(bytes, FRAME_CRC_OFFSET, frameCrc(bytes, 0, packed.length, salt));
  return bytes;
}

/**
 * The raw bytes of `frame`, which was read to bytes[at, ...). Throws CHECKSUM unless all of it is what
 * the table says. The result may be a view of `bytes`.
 */
export function decodeFrame(
  bytes: Uint8Array,
  at: number,
  frame: SegzFrame,
  codec: number,
  salt: number,
  file: string,
): Uint8Array {
  const { rawBytes, packedBytes, rawPosition, position } = frame;
  if (bytes.length - at < SEGZ_FRAME_HEADER_BYTES + packedBytes) {
    throw damaged(file, position, 'the file ends inside a frame');
  }
  const isSame =
    getU32(bytes, at + FRAME_RAW_BYTES_OFFSET) === rawBytes &&
    getU32(bytes, at + FRAME_PACKED_BYTES_OFFSET) === packedBytes &&
    getU64(bytes, at + FRAME_RAW_POSITION_OFFSET) === rawPosition &&
    getU32(bytes, at + FRAME_CRC_OFFSET) === frameCrc(bytes, at, packedBytes, salt);
  if (!isSame) throw damaged(file, position, `the frame of raw position ${rawPosition}`);
  const from = at + SEGZ_FRAME_HEADER_BYTES;
  const packed = bytes.subarray(from, from + packedBytes);
  if (packedBytes === rawBytes) return packed;
  let raw: Uint8Array;
  try {
    raw = unpack(codec, packed, rawBytes, file);
  } catch (cause) {
    if (cause instanceof TidemarkError) throw cause;
    throw damaged(file, position, 'a frame that cannot be unpacked', cause);
  }
  if (raw.length !== rawBytes) throw damaged(file, position, 'a frame of another length');
  return raw;
}

function frameCrc(bytes: Uint8Array, at: number, packedBytes: number, salt: number): number {
  const seed = crc32(bytes, at, FRAME_CRC_OFFSET, salt);
  return crc32(bytes, at + SEGZ_FRAME_HEADER_BYTES, packedBytes, seed);
}

function pack(codec: number, plain: Uint8Array): Uint8Array {
  if (codec === CODEC_ZSTD && zstdCompressSync !== undefined) return zstdCompressSync(plain);
  return zlib.deflateRawSync(plain, { level: DEFLATE_LEVEL });
}

function unpack(codec: number, packed: Uint8Array, rawBytes: number, file: string): Uint8Array {
  const options = { maxOutputLength: rawBytes };
  if (codec === CODEC_DEFLATE) return zlib.inflateRawSync(packed, options);
  if (zstdDecompressSync === undefined) throw unknown(file, 'codec', codec);
  return zstdDecompressSync(packed, options);
}

// ---------------------------------------------------------------- table and trailer

/** Table and trailer, as they follow the frames at `tablePosition`. */
export function encodeSegzEnd(
  frames: readonly SegzFrame[],
  tablePosition: number,
  header: Uint8Array,
  salt: number,
): Uint8Array {
  const tableBytes = frames.length * SEGZ_ENTRY_BYTES;
  const bytes = new Uint8Array(tableBytes + SEGZ_TRAILER_BYTES);
  let at = 0;
  for (const frame of frames) {
    setU64(bytes, at + ENTRY_OFFSET_OFFSET, frame.firstOffset);
    setU64(bytes, at + ENTRY_AT_MS_OFFSET, frame.firstAtMs);
    setU64(bytes, at + ENTRY_RAW_POSITION_OFFSET, frame.rawPosition);
    setU64(bytes, at + ENTRY_POSITION_OFFSET, frame.position);
    setU32(bytes, at + ENTRY_RAW_BYTES_OFFSET, frame.rawBytes);
    setU32(bytes, at + ENTRY_PACKED_BYTES_OFFSET, frame.packedBytes);
    at += SEGZ_ENTRY_BYTES;
  }
  setU64(bytes, at + TABLE_POSITION_OFFSET, tablePosition);
  setU32(bytes, at + FRAME_COUNT_OFFSET, frames.length);
  setU32(bytes, at + TABLE_CRC_OFFSET, crc32(bytes, 0, tableBytes, salt));
  setU32(bytes, at + TRAILER_CRC_OFFSET, crc32(bytes, at, TRAILER_CRC_OFFSET, salt));
  bytes.set(header, at + HEADER_COPY_OFFSET);
  return bytes;
}

/** The copy of the header in a trailer at bytes[0, SEGZ_TRAILER_BYTES). */
export function decodeHeaderCopy(bytes: Uint8Array, file: string): SegzHeader | undefined {
  return decodeSegzHeader(bytes, HEADER_COPY_OFFSET, file);
}

/** The trailer at bytes[0, SEGZ_TRAILER_BYTES) of a file of `fileBytes`. */
export function decodeTrailer(
  bytes: Uint8Array,
  fileBytes: number,
  salt: number,
  file: string,
): SegzTrailer {
  const position = fileBytes - SEGZ_TRAILER_BYTES;
  if (
    bytes.length < SEGZ_TRAILER_BYTES ||
    getU32(bytes, TRAILER_CRC_OFFSET) !== crc32(bytes, 0, TRAILER_CRC_OFFSET, salt)
  ) {
    throw damaged(file, position, 'its end');
  }
  const tablePosition = getU64(bytes, TABLE_POSITION_OFFSET);
  const frameCount = getU32(bytes, FRAME_COUNT_OFFSET);
  if (tablePosition + frameCount * SEGZ_ENTRY_BYTES !== position) {
    throw damaged(file, position, 'its end contradicts its size');
  }
  return { tablePosition, frameCount, tableCrc: getU32(bytes, TABLE_CRC_OFFSET) };
}

/** The table at bytes[0, ...): frames one behind the other, from the first record to rawEnd. */
export function decodeTable(
  bytes: Uint8Array,
  trailer: SegzTrailer,
  header: SegzHeader,
  file: string,
): SegzFrame[] {
  const { tablePosition, frameCount } = trailer;
  const salt = saltOf(header.segment.logId, header.segment.seq);
  const tableBytes = frameCount * SEGZ_ENTRY_BYTES;
  if (bytes.length < tableBytes || crc32(bytes, 0, tableBytes, salt) !== trailer.tableCrc) {
    throw damaged(file, tablePosition, 'its table');
  }
  const frames: SegzFrame[] = [];
  let rawPosition = SEGMENT_BLOCK_BYTES;
  let position = SEGZ_HEADER_BYTES;
  let { baseOffset: offset, baseAtMs: atMs } = header.segment;
  for (let at = 0; at < tableBytes; at += SEGZ_ENTRY_BYTES) {
    const frame: SegzFrame = {
      firstOffset: getU64(bytes, at + ENTRY_OFFSET_OFFSET),
      firstAtMs: getU64(bytes, at + ENTRY_AT_MS_OFFSET),
      rawPosition: getU64(bytes, at + ENTRY_RAW_POSITION_OFFSET),
      position: getU64(bytes, at + ENTRY_POSITION_OFFSET),
      rawBytes: getU32(bytes, at + ENTRY_RAW_BYTES_OFFSET),
      packedBytes: getU32(bytes, at + ENTRY_PACKED_BYTES_OFFSET),
    };
    const isNext =
      frame.rawPosition === rawPosition &&
      frame.position === position &&
      frame.rawBytes > 0 &&
      frame.rawBytes <= frameBytesMax &&
      frame.packedBytes > 0 &&
      frame.packedBytes <= frame.rawBytes &&
      frame.firstOffset >= offset &&
      frame.firstOffset <= header.endOffset &&
      frame.firstAtMs >= atMs &&
      frame.firstAtMs <= header.endAtMs;
    if (!isNext) throw damaged(file, tablePosition + at, 'its table does not add up');
    frames.push(frame);
    rawPosition += frame.rawBytes;
    position += SEGZ_FRAME_HEADER_BYTES + frame.packedBytes;
    offset = frame.firstOffset;
    atMs = frame.firstAtMs;
  }
  if (rawPosition !== header.rawEnd || position !== tablePosition) {
    throw damaged(file, tablePosition, 'its table does not add up');
  }
  return frames;
}

// ---------------------------------------------------------------- errors

function expectKnown(file: string, field: string, got: number, known: number): void {
  if (got !== known) throw unknown(file, field, got);
}

function unknown(file: string, field: string, got: number): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_UNSUPPORTED_FORMAT',
    `${file} has ${field} ${got}, which this version, or this version of Node, does not know`,
    { file, field, got },
  );
}

/** The error for bytes of a compressed segment that are not what they were. */
export function damaged(
  file: string,
  position: number,
  what: string,
  cause?: unknown,
): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_CORRUPT',
    `${file} is damaged at ${position}: ${what}`,
    { finding: 'CHECKSUM', file, position, kind: 'compressed' },
    cause,
  );
}
