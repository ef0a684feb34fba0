/**
 * The part: one immutable sorted piece of a run, a byte range (file, offset, bytes) of a file. Several
 * parts may share a file; every position inside a part counts from the part's own start, so a part can
 * be linked, copied or moved whole. Written by flush and merge jobs, read by everybody.
 *
 *   part     stored blocks, nothing between (core/spine/block.ts)
 *            range deletes   core/spine/range-block.ts, in a part that has no rows; else 0 bytes
 *            filter          core/spine/filter.ts
 *            index           core/spine/part-index.ts
 *            footer          smallest key, largest key (of range deletes: none), tail
 *
 *   tail     off size field
 *              0    8 bytes of the whole part
 *              8    8 rows (range deletes included)
 *             16    8 bytes of keys and values of all rows
 *             24    8 smallest time
 *             32    8 largest time
 *             40    8 negatives: deletes, or updates with a negative diff
 *             48    8 range deletes
 *             56    8 sum of diffs, f64, a safe integer
 *             64    4 hash, lane 0 (core/spine/row-hash.ts)
 *             68    4 hash, lane 1
 *             72    4 blocks
 *             76    4 offset of the range deletes = end of the blocks
 *             80    4 offset of the filter
 *             84    4 offset of the index
 *             88    4 offset of the footer
 *             92    4 bytes of the smallest key
 *             96    4 bytes of the largest key
 *            100    1 kind of collection
 *            101    1 codec that its blocks were offered to (core/spine/block-codec.ts)
 *            102    2 zero
 *            104    4 distinct rows: keys; of collections with updates keys with a value
 *            108    4 format version
 *            112    4 CRC-32 of the footer up to here
 *            116    8 magic: "TMPART\r\n"
 *
 * Little endian. Counts are u64 and safe integers. A tail always ends a part, so a footer is found from
 * the part's end. Rows are in order (key ascending, time descending) inside a part and along a run: the
 * largest key of a part is <= the smallest of the next, and equal only where a key's versions run on.
 */
import { crc32 } from '../base/crc32.ts';
import { compareBytes, getF64, getU32, getU64, setF64, setU32, setU64 } from '../base/bytes.ts';
import { corrupt, TidemarkError } from '../base/errors.ts';
import { invariant } from '../base/assert.ts';
import { keyBytesMax, KiB } from '../base/limits.ts';
import { KIND_KEYED, KIND_UPSERT } from '../base/update.ts';

export const PART_FORMAT = 1;

const MAGIC: Uint8Array = new TextEncoder().encode('TMPART\r\n');

const BYTES_OFFSET = 0;
const ROWS_OFFSET: number = BYTES_OFFSET + 8;
const ROW_BYTES_OFFSET: number = ROWS_OFFSET + 8;
const MIN_TIME_OFFSET: number = ROW_BYTES_OFFSET + 8;
const MAX_TIME_OFFSET: number = MIN_TIME_OFFSET + 8;
const NEGATIVES_OFFSET: number = MAX_TIME_OFFSET + 8;
const RANGE_DELETES_OFFSET: number = NEGATIVES_OFFSET + 8;
const DIFF_SUM_OFFSET: number = RANGE_DELETES_OFFSET + 8;
const HASH_0_OFFSET: number = DIFF_SUM_OFFSET + 8;
const HASH_1_OFFSET: number = HASH_0_OFFSET + 4;
const BLOCKS_OFFSET: number = HASH_1_OFFSET + 4;
const RANGES_AT_OFFSET: number = BLOCKS_OFFSET + 4;
const FILTER_AT_OFFSET: number = RANGES_AT_OFFSET + 4;
const INDEX_AT_OFFSET: number = FILTER_AT_OFFSET + 4;
const FOOTER_AT_OFFSET: number = INDEX_AT_OFFSET + 4;
const KEY_LO_BYTES_OFFSET: number = FOOTER_AT_OFFSET + 4;
const KEY_HI_BYTES_OFFSET: number = KEY_LO_BYTES_OFFSET + 4;
const KIND_OFFSET: number = KEY_HI_BYTES_OFFSET + 4;
const CODEC_OFFSET: number = KIND_OFFSET + 1;
const ZERO_OFFSET: number = CODEC_OFFSET + 1;
const DISTINCT_OFFSET: number = ZERO_OFFSET + 2;
const FORMAT_OFFSET: number = DISTINCT_OFFSET + 4;
const CRC_OFFSET: number = FORMAT_OFFSET + 4;
const MAGIC_OFFSET: number = CRC_OFFSET + 4;
export const FOOTER_TAIL_BYTES: number = MAGIC_OFFSET + MAGIC.length;

/** Enough for the footer of a part with ordinary keys: read so much from the part's end first. */
export const FOOTER_READ_BYTES: number = 4 * KiB;

/** Positions inside a part are u32. */
export const partBytesMax = 0xffff_ffff;

/** Where a part lies: plain JSON, all that jobs and their results say about one. */
export type PartRef = { file: number; offset: number; bytes: number };

/** A part as its footer describes it (spine.md 1.2). Positions count from the part's start. */
export type PartInfo = PartRef & {
  /** KIND_KEYED, KIND_MULTISET or KIND_UPSERT. */
  kind: number;
  /** Rows. */
  len: number;
  /** Bytes of keys and values of all rows. */
  rowBytes: number;
  keyLo: Uint8Array;
  keyHi: Uint8Array;
  minT: number;
  maxT: number;
  negatives: number;
  rangeDeletes: number;
  /** Keys, or keys with a value where rows are updates: rows beyond it stand for something that another says. */
  distinct: number;
  /** By which its blocks were to be compressed, 0 = none. */
  codec: number;
  diffSum: number;
  hash: [number, number];
  blockCount: number;
  rangeDeletesOffset: number;
  rangeDeletesBytes: number;
  filterOffset: number;
  filterBytes: number;
  indexOffset: number;
  indexBytes: number;
  footerOffset: number;
};

/** Bytes of the footer that `writeFooter` makes of `info`. */
export function footerBytesFor(info: PartInfo): number {
  return info.keyLo.length + info.keyHi.length + FOOTER_TAIL_BYTES;
}

/** Writes the footer at target[at...] and returns its bytes. */
export function writeFooter(target: Uint8Array, at: number, info: PartInfo): number {
  invariant(info.bytes <= partBytesMax, 'a part fits u32 positions', info.bytes);
  invariant(info.footerOffset + footerBytesFor(info) === info.bytes, 'a footer ends its part');
  target.set(info.keyLo, at);
  target.set(info.keyHi, at + info.keyLo.length);
  const tail = at + info.keyLo.length + info.keyHi.length;
  target.fill(0, tail, tail + FOOTER_TAIL_BYTES);
  setU64(target, tail + BYTES_OFFSET, info.bytes);
  setU64(target, tail + ROWS_OFFSET, info.len);
  setU64(target, tail + ROW_BYTES_OFFSET, info.rowBytes);
  setU64(target, tail + MIN_TIME_OFFSET, info.minT);
  setU64(target, tail + MAX_TIME_OFFSET, info.maxT);
  setU64(target, tail + NEGATIVES_OFFSET, info.negatives);
  setU64(target, tail + RANGE_DELETES_OFFSET, info.rangeDeletes);
  setF64(target, tail + DIFF_SUM_OFFSET, info.diffSum);
  setU32(target, tail + HASH_0_OFFSET, info.hash[0]);
  setU32(target, tail + HASH_1_OFFSET, info.hash[1]);
  setU32(target, tail + BLOCKS_OFFSET, info.blockCount);
  setU32(target, tail + RANGES_AT_OFFSET, info.rangeDeletesOffset);
  setU32(target, tail + FILTER_AT_OFFSET, info.filterOffset);
  setU32(target, tail + INDEX_AT_OFFSET, info.indexOffset);
  setU32(target, tail + FOOTER_AT_OFFSET, info.footerOffset);
  setU32(target, tail + KEY_LO_BYTES_OFFSET, info.keyLo.length);
  setU32(target, tail + KEY_HI_BYTES_OFFSET, info.keyHi.length);
  target[tail + KIND_OFFSET] = info.kind;
  target[tail + CODEC_OFFSET] = info.codec;
  setU32(target, tail + DISTINCT_OFFSET, info.distinct);
  setU32(target, tail + FORMAT_OFFSET, PART_FORMAT);
  setU32(target, tail + CRC_OFFSET, crc32(target, at, tail + CRC_OFFSET - at));
  target.set(MAGIC, tail + MAGIC_OFFSET);
  return tail + FOOTER_TAIL_BYTES - at;
}

/**
 * Bytes of the footer of part `ref`, told from its tail, which ends at bytes[end]. When more than were
 * read, read again so many from the part's end.
 */
export function footerBytes(bytes: Uint8Array, end: number, ref: PartRef): number {
  const tail = end - FOOTER_TAIL_BYTES;
  if (tail < 0) throw badFooter(ref, 'it is shorter than a footer');
  for (let i = 0; i < MAGIC.length; i++) {
    if (bytes[tail + MAGIC_OFFSET + i] !== MAGIC[i]) throw badFooter(ref, 'no magic at its end');
  }
  const format = getU32(bytes, tail + FORMAT_OFFSET);
  if (format !== PART_FORMAT) {
    throw new TidemarkError(
      'TIDEMARK_UNSUPPORTED_FORMAT',
      `part at ${ref.offset} of file ${ref.file} has format ${format}; this version reads ${PART_FORMAT}`,
      { file: ref.file, offset: ref.offset, format },
    );
  }
  const keyLoBytes = getU32(bytes, tail + KEY_LO_BYTES_OFFSET);
  const keyHiBytes = getU32(bytes, tail + KEY_HI_BYTES_OFFSET);
  if (keyLoBytes > keyBytesMax || keyHiBytes > keyBytesMax) throw badFooter(ref, 'a key too long');
  const total = keyLoBytes + keyHiBytes + FOOTER_TAIL_BYTES;
  if (total > ref.bytes) throw badFooter(ref, 'its footer is longer than the part');
  return total;
}

/**
 * Reads the footer of part `ref` out of bytes[at, at + length), which are the part's last bytes and
 * hold at least `footerBytes`. Copies the keys. Everything is checked: the bytes come from disk.
 */
export function parseFooter(bytes: Uint8Array, at: number, length: number, ref: PartRef): PartInfo {
  const end = at + length;
  if (length < FOOTER_TAIL_BYTES) throw badFooter(ref, 'it is shorter than a footer');
  const total = footerBytes(bytes, end, ref);
  invariant(total <= length, 'the caller read the whole footer', total, length);
  const start = end - total;
  const tail = end - FOOTER_TAIL_BYTES;
  if (crc32(bytes, start, tail + CRC_OFFSET - start) !== getU32(bytes, tail + CRC_OFFSET)) {
    throw badFooter(ref, 'its checksum does not match');
  }
  const keyLoBytes = getU32(bytes, tail + KEY_LO_BYTES_OFFSET);
  const keyHiBytes = getU32(bytes, tail + KEY_HI_BYTES_OFFSET);
  const rangeDeletesOffset = getU32(bytes, tail + RANGES_AT_OFFSET);
  const filterOffset = getU32(bytes, tail + FILTER_AT_OFFSET);
  const indexOffset = getU32(bytes, tail + INDEX_AT_OFFSET);
  const footerOffset = getU32(bytes, tail + FOOTER_AT_OFFSET);
  const info: PartInfo = {
    file: ref.file,
    offset: ref.offset,
    bytes: ref.bytes,
    kind: bytes[tail + KIND_OFFSET],
    len: getU64(bytes, tail + ROWS_OFFSET),
    rowBytes: getU64(bytes, tail + ROW_BYTES_OFFSET),
    keyLo: bytes.slice(start, start + keyLoBytes),
    keyHi: bytes.slice(start + keyLoBytes, start + keyLoBytes + keyHiBytes),
    minT: getU64(bytes, tail + MIN_TIME_OFFSET),
    maxT: getU64(bytes, tail + MAX_TIME_OFFSET),
    negatives: getU64(bytes, tail + NEGATIVES_OFFSET),
    rangeDeletes: getU64(bytes, tail + RANGE_DELETES_OFFSET),
    distinct: getU32(bytes, tail + DISTINCT_OFFSET),
    codec: bytes[tail + CODEC_OFFSET],
    diffSum: getF64(bytes, tail + DIFF_SUM_OFFSET),
    hash: [getU32(bytes, tail + HASH_0_OFFSET), getU32(bytes, tail + HASH_1_OFFSET)],
    blockCount: getU32(bytes, tail + BLOCKS_OFFSET),
    rangeDeletesOffset,
    rangeDeletesBytes: filterOffset - rangeDeletesOffset,
    filterOffset,
    filterBytes: indexOffset - filterOffset,
    indexOffset,
    indexBytes: footerOffset - indexOffset,
    footerOffset,
  };
  // A checksum that holds over senseless figures is not chance; it still must not crash a reader.
  if (getU64(bytes, tail + BYTES_OFFSET) !== ref.bytes) throw badFooter(ref, 'another size');
  if (info.kind < KIND_KEYED || info.kind > KIND_UPSERT) throw badFooter(ref, 'unknown kind');
  if (bytes[tail + ZERO_OFFSET] !== 0 || bytes[tail + ZERO_OFFSET + 1] !== 0) {
    throw badFooter(ref, 'reserved bytes are not zero');
  }
  for (const n of [
    info.len,
    info.rowBytes,
    info.minT,
    info.maxT,
    info.negatives,
    info.rangeDeletes,
    info.diffSum,
  ]) {
    if (!Number.isSafeInteger(n)) throw badFooter(ref, 'a count beyond the safe integers');
  }
  if (footerOffset + total !== ref.bytes) throw badFooter(ref, 'positions do not add up');
  if (info.rangeDeletesBytes < 0 || info.filterBytes < 0 || info.indexBytes < 0) {
    throw badFooter(ref, 'positions are out of order');
  }
  const shape = shapeFault(info);
  if (shape !== undefined) throw badFooter(ref, shape);
  if (info.negatives > info.len || info.minT > info.maxT) throw badFooter(ref, 'counts or times');
  if (compareBytes(info.keyLo, info.keyHi) > 0) throw badFooter(ref, 'keys are out of order');
  return info;
}

/** True when the part holds range deletes, and no rows. */
export function isRangePart(part: { len: number; rangeDeletes: number }): boolean {
  return part.rangeDeletes > 0;
}

/** What is wrong with how a part says it is made up, if anything: rows in blocks, or range deletes alone. */
export function shapeFault(info: PartInfo): string | undefined {
  const isEmpty = info.rangeDeletesBytes === 0;
  if (info.rangeDeletes === 0) {
    if (!isEmpty) return 'range deletes that it does not count';
    const isCounted = info.len >= 1 && info.blockCount >= 1 && info.blockCount <= info.len;
    if (!isCounted) return 'row and block counts';
    return info.distinct >= 1 && info.distinct <= info.len ? undefined : 'distinct rows';
  }
  const { len, rangeDeletes, blockCount, rangeDeletesOffset } = info;
  if (len !== rangeDeletes || isEmpty || blockCount !== 0 || rangeDeletesOffset !== 0) {
    return 'rows and range deletes in one part';
  }
  const { filterBytes, indexBytes, keyLo, keyHi, negatives, distinct, diffSum } = info;
  const isBare = filterBytes + indexBytes + keyLo.length + keyHi.length === 0;
  const isCounted = negatives === 0 && distinct === 0 && diffSum === 0;
  return isBare && isCounted ? undefined : 'tables of rows that it has not';
}

function badFooter(ref: PartRef, what: string): TidemarkError {
  return corrupt('BAD_FOOTER', `part at ${ref.offset} of file ${ref.file}: ${what}`, {
    file: ref.file,
    offset: ref.offset,
    bytes: ref.bytes,
  });
}

/** The footer's place alone, for a job or a result. */
export function partRef(part: PartRef): PartRef {
  return { file: part.file, offset: part.offset, bytes: part.bytes };
}
