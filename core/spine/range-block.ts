/**
 * The block of range deletes of a part, and what becomes of range deletes in a job. A part holds rows
 * or range deletes, never both, so that the parts of a run with rows in them stay what their key bounds
 * say; those with range deletes stand before them and have no blocks, filter, index or key bounds.
 * Written by flush and merge jobs; read by jobs, the keeper and verify.
 *
 *   off size field
 *     0    4 CRC-32 of all that follows
 *     4    4 count
 *     8      range deletes, ascending by lower bound, time, upper bound, no two alike
 *   range delete
 *     0    8 time
 *     8    4 bytes of the lower bound
 *    12    4 bytes of the upper bound, 0 = to the end
 *    16      lower bound, upper bound
 *
 * Nothing between. Each counts as a row in `len` and the hash: kind deleteRange, key = lower bound,
 * value = upper bound, diff 0. The kind of collection that the footer says may be another than the
 * collection's: range deletes are alike for all, and may come before the first row.
 */
import { getU32, getU64, setU32, setU64 } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { le, lt } from '../base/frontier.ts';
import { keyBytesMax, pageBytes } from '../base/limits.ts';
import { compareRanges, rangeSetBytes, rangeSetOf, rangeSetWords } from '../base/range-set.ts';
import type { RangeDelete } from '../base/range-set.ts';
import { OP_DELETE_RANGE } from '../base/update.ts';
import { keyHash, valueHash } from './row-hash.ts';
import type { RowSums } from './row-hash.ts';

const CRC_OFFSET = 0;
const COUNT_OFFSET: number = CRC_OFFSET + 4;
const HEADER_BYTES: number = COUNT_OFFSET + 4;
const TIME_OFFSET = 0;
const LO_BYTES_OFFSET: number = TIME_OFFSET + 8;
const HI_BYTES_OFFSET: number = LO_BYTES_OFFSET + 4;
const RANGE_HEADER_BYTES: number = HI_BYTES_OFFSET + 4;

export function rangeBlockBytes(ranges: readonly RangeDelete[]): number {
  let bytes = HEADER_BYTES;
  for (const { lo, hi } of ranges) bytes += RANGE_HEADER_BYTES + lo.length + hi.length;
  return bytes;
}

/** Writes the block at target[at...] and returns its bytes. Requires: in order. */
export function writeRangeBlock(
  target: Uint8Array,
  at: number,
  ranges: readonly RangeDelete[],
): number {
  setU32(target, at + COUNT_OFFSET, ranges.length);
  let to = at + HEADER_BYTES;
  for (const { lo, hi, time } of ranges) {
    setU64(target, to + TIME_OFFSET, time);
    setU32(target, to + LO_BYTES_OFFSET, lo.length);
    setU32(target, to + HI_BYTES_OFFSET, hi.length);
    target.set(lo, to + RANGE_HEADER_BYTES);
    target.set(hi, to + RANGE_HEADER_BYTES + lo.length);
    to += RANGE_HEADER_BYTES + lo.length + hi.length;
  }
  setU32(target, at + CRC_OFFSET, crc32(target, at + COUNT_OFFSET, to - at - COUNT_OFFSET));
  return to - at;
}

/** What is wrong with the block, if anything. Untrusted: every byte comes from disk. */
export function rangeBlockFault(
  bytes: Uint8Array,
  at: number,
  length: number,
  count: number,
): string | undefined {
  if (length < HEADER_BYTES) return 'the block of range deletes is cut short';
  if (crc32(bytes, at + COUNT_OFFSET, length - COUNT_OFFSET) !== getU32(bytes, at + CRC_OFFSET)) {
    return 'the checksum of its range deletes does not match';
  }
  if (getU32(bytes, at + COUNT_OFFSET) !== count) return 'another count of range deletes';
  const end = at + length;
  let from = at + HEADER_BYTES;
  for (let i = 0; i < count; i++) {
    if (end - from < RANGE_HEADER_BYTES) return `range delete ${i} is cut short`;
    const loBytes = getU32(bytes, from + LO_BYTES_OFFSET);
    const hiBytes = getU32(bytes, from + HI_BYTES_OFFSET);
    if (loBytes > keyBytesMax || hiBytes > keyBytesMax) return `range delete ${i} has a long bound`;
    if (!Number.isSafeInteger(getU64(bytes, from + TIME_OFFSET))) {
      return `range delete ${i} has a time beyond the safe integers`;
    }
    from += RANGE_HEADER_BYTES + loBytes + hiBytes;
    if (from > end) return `range delete ${i} is cut short`;
  }
  if (from !== end) return 'bytes follow the last range delete';
  const ranges = readRangeBlock(bytes, at);
  for (let i = 1; i < count; i++) {
    if (compareRanges(ranges[i - 1], ranges[i]) >= 0) return `range delete ${i} is out of order`;
  }
  return undefined;
}

/** Copies of the range deletes. Requires: rangeBlockFault found nothing. */
export function readRangeBlock(bytes: Uint8Array, at: number): RangeDelete[] {
  const count = getU32(bytes, at + COUNT_OFFSET);
  const ranges: RangeDelete[] = [];
  let from = at + HEADER_BYTES;
  for (let i = 0; i < count; i++) {
    const lo = from + RANGE_HEADER_BYTES;
    const hi = lo + getU32(bytes, from + LO_BYTES_OFFSET);
    const end = hi + getU32(bytes, from + HI_BYTES_OFFSET);
    ranges.push({
      lo: bytes.slice(lo, hi),
      hi: bytes.slice(hi, end),
      time: getU64(bytes, from + TIME_OFFSET),
    });
    from = end;
  }
  return ranges;
}

/** Splits range deletes so that the set of each piece fits a page of the arena. Requires: in order. */
export function rangePieces(ranges: readonly RangeDelete[]): RangeDelete[][] {
  const pieces: RangeDelete[][] = [];
  let piece: RangeDelete[] = [];
  let bytes = 0;
  for (const range of ranges) {
    const own = rangeSetBytes([range]) - rangeSetWords(0) * 4;
    if (piece.length === 0 || bytes + own > pageBytes) {
      piece = [];
      pieces.push(piece);
      bytes = rangeSetWords(0) * 4;
    }
    piece.push(range);
    bytes += own;
  }
  return pieces;
}

/** Counts a range delete among the rows. */
export function addRange(sums: RowSums, { lo, hi, time }: RangeDelete): void {
  const k = keyHash(lo, 0, lo.length);
  const v = valueHash(hi, 0, hi.length);
  sums.add(k, OP_DELETE_RANGE, v, time, 0);
}

/** What a job knows of range deletes: its inputs' own, and those of newer runs that hide rows of its inputs. */
export type RangeTerms = {
  readonly since: number;
  /** The inputs hold the collection's oldest run. */
  readonly oldest: boolean;
  readonly cut?: number;
  readonly own: readonly RangeDelete[];
  readonly hiding: readonly RangeDelete[];
};

/** Range deletes that hide rows for good, once per job: those at or below `since`. */
export function hidingFor({ own, hiding, since, cut }: RangeTerms): RangeDelete[] {
  return [...own, ...hiding].filter(
    ({ time }) => le(time, since) && (cut === undefined || lt(time, cut)),
  );
}

/**
 * Which of the job's own range deletes stay, in order. One at or below `since` goes when nothing older is
 * left that it hides, or when a newer one that is as final holds all of its range; two alike are one.
 */
export function divideRanges(terms: RangeTerms): { kept: RangeDelete[]; dropped: RangeDelete[] } {
  const { since, oldest, cut } = terms;
  const final = rangeSetOf(hidingFor(terms));
  const kept: RangeDelete[] = [];
  const dropped: RangeDelete[] = [];
  for (const range of terms.own.toSorted(compareRanges)) {
    const last = kept.at(-1);
    const isFinal = le(range.time, since);
    const goes =
      (cut !== undefined && le(cut, range.time)) ||
      (isFinal && oldest) ||
      (isFinal && final.newestCovering(0, range, range.time, since) !== range.time) ||
      (last !== undefined && compareRanges(last, range) === 0);
    (goes ? dropped : kept).push(range);
  }
  return { kept, dropped };
}
