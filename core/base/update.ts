/**
 * The operation: one change of one key of one collection, in payload format 1. The same bytes lie in
 * the client's page, in the log and behind every memtable node; nothing re-encodes them.
 *
 *   transaction  off size field
 *                  0    4 bytes: of the whole transaction, these 8 included; a multiple of 8
 *                  4    4 operation count (0 allowed)
 *                  8      operations, nothing between
 *   operation    off size field
 *                  0    4 collection id (0 = the catalog)
 *                  4    1 kind: 1 put, 2 delete, 3 update, 4 deleteRange, 5 attach; 0 forbidden
 *                  5    1 flags: zero (bit 0 kept for an expiry time)
 *                  6    2 key bytes, 0..65,535
 *                  8    4 value bytes, up to 32 MiB
 *                 12    4 zero
 *                 16    8 kind 3 only: diff as f64, a safe integer, not 0
 *              16|24      key, value, zeros to a multiple of 8
 *
 * delete has no value. deleteRange: key = lower bound, value = upper bound (empty: to the end).
 * attach: no key; value = plan number and its parts. Little endian. Codes are never reused.
 */

export const PAYLOAD_FORMAT = 1;

export const TX_BYTES_OFFSET = 0;
export const TX_COUNT_OFFSET: number = TX_BYTES_OFFSET + 4;
export const TX_HEADER_BYTES: number = TX_COUNT_OFFSET + 4;

export const OP_COLLECTION_OFFSET = 0;
export const OP_KIND_OFFSET: number = OP_COLLECTION_OFFSET + 4;
export const OP_FLAGS_OFFSET: number = OP_KIND_OFFSET + 1;
export const OP_KEY_BYTES_OFFSET: number = OP_FLAGS_OFFSET + 1;
export const OP_VALUE_BYTES_OFFSET: number = OP_KEY_BYTES_OFFSET + 2;
export const OP_ZERO_OFFSET: number = OP_VALUE_BYTES_OFFSET + 4;
export const OP_HEADER_BYTES: number = OP_ZERO_OFFSET + 4;
export const OP_DIFF_OFFSET: number = OP_HEADER_BYTES;
export const OP_UPDATE_HEADER_BYTES: number = OP_DIFF_OFFSET + 8;

export const OP_PUT = 1;
export const OP_DELETE = 2;
export const OP_UPDATE = 3;
export const OP_DELETE_RANGE = 4;
export const OP_ATTACH = 5;

/** Bytes from an operation's start to its key. */
export function keyOffsetOf(kind: number): number {
  return kind === OP_UPDATE ? OP_UPDATE_HEADER_BYTES : OP_HEADER_BYTES;
}

/** Size of one operation with its padding. */
export function operationBytes(kind: number, keyBytes: number, valueBytes: number): number {
  return (keyOffsetOf(kind) + keyBytes + valueBytes + 7) & ~7;
}

const DIFF_MODULUS: number = 2 ** 53;
const DIFF_HALF: number = 2 ** 52;

/**
 * Adds to a sum of diffs that is only compared, never shown: modulo 2^53, in [-2^52, 2^52), so that rows
 * may be as large as they like and the sum is the same in whatever order.
 */
export function addDiffSum(sum: number, diff: number): number {
  let part = diff;
  if (part >= DIFF_HALF) part -= DIFF_MODULUS;
  else if (part < -DIFF_HALF) part += DIFF_MODULUS;
  const total = sum + part;
  if (total >= DIFF_HALF) return total - DIFF_MODULUS;
  return total < -DIFF_HALF ? total + DIFF_MODULUS : total;
}

export const CATALOG_ID = 0;

/** What a collection is; numbers are in the catalog and in parts. */
export const KIND_KEYED = 1;
export const KIND_MULTISET = 2;
export const KIND_UPSERT = 3;
