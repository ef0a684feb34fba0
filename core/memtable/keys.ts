/**
 * Keys where they lie: comparison of operations in the arena, and the codes by which sorted runs are
 * merged without looking at most keys again. An operation starts at a multiple of 8, so a key can be
 * compared by words. Called by the sorter, the merger, the writer and the cursor.
 */
import {
  OP_COLLECTION_OFFSET,
  OP_HEADER_BYTES,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_UPDATE,
  OP_UPDATE_HEADER_BYTES,
} from '../base/update.ts';
import { invariant } from '../base/assert.ts';
import { keyBytesMax } from '../base/limits.ts';

/** The word that holds kind (low byte) and key length (high half) of an operation. */
const SHAPE_WORD: number = OP_KIND_OFFSET >>> 2;

invariant(OP_COLLECTION_OFFSET === 0 && OP_KIND_OFFSET === 4, 'an operation starts as assumed');
invariant(OP_KEY_BYTES_OFFSET === OP_KIND_OFFSET + 2, 'kind and key length share a word');

export function collectionAt(u32: Uint32Array, operation: number): number {
  return u32[operation >>> 2];
}

export function kindAt(u32: Uint32Array, operation: number): number {
  return u32[(operation >>> 2) + SHAPE_WORD] & 255;
}

export function keyBytesAt(u32: Uint32Array, operation: number): number {
  return u32[(operation >>> 2) + SHAPE_WORD] >>> 16;
}

export function keyAddressAt(u32: Uint32Array, operation: number): number {
  const update = (u32[(operation >>> 2) + SHAPE_WORD] & 255) === OP_UPDATE;
  return operation + (update ? OP_UPDATE_HEADER_BYTES : OP_HEADER_BYTES);
}

/** The first byte below `limit` in which two keys differ, else `limit`. Requires: equal below `from`; neither is shorter than `limit`. */
export function firstDifference(
  u32: Uint32Array,
  u8: Uint8Array,
  a: number,
  b: number,
  from: number,
  limit: number,
): number {
  let i = from & ~3;
  while (i + 4 <= limit && u32[(a + i) >>> 2] === u32[(b + i) >>> 2]) i += 4;
  while (i < limit && u8[a + i] === u8[b + i]) i++;
  return i;
}

/** Sign of the order of two operations' keys, given that they are equal below `from`. Collections are not looked at. */
export function compareKeys(
  u32: Uint32Array,
  u8: Uint8Array,
  a: number,
  b: number,
  from: number,
): number {
  const aBytes = keyBytesAt(u32, a);
  const bBytes = keyBytesAt(u32, b);
  const aKey = keyAddressAt(u32, a);
  const bKey = keyAddressAt(u32, b);
  const limit = aBytes < bBytes ? aBytes : bBytes;
  const i = firstDifference(u32, u8, aKey, bKey, from, limit);
  return i === limit ? aBytes - bBytes : u8[aKey + i] - u8[bKey + i];
}

/**
 * Offset-value codes. The code of a key, relative to a smaller one (its *base*), says where it first
 * differs and what it has there: earlier is larger, then larger bytes are larger. Of two keys with a
 * common base the one with the smaller code is the smaller key, and the other's code holds relative
 * to it as well. Only equal codes need a look at the keys, and only behind the place they name. Thus
 * a merge looks at each byte about once, however long the shared prefixes.
 *
 * A place is four bytes, so that other keys than odd ones rarely tie: (16,383 - place) * 2^35 +
 * bytes, big endian, zeros where the key ends * 8 + how many there are. A double holds that exactly.
 */
const PLACE_SHIFT = 2;
const PLACE_MAX: number = keyBytesMax >>> PLACE_SHIFT;
const COUNT_BASE = 8;
const PLACE_BASE: number = 0x1_0000_0000 * COUNT_BASE;

/** Another collection than the base's. Ties among these are settled by looking. */
export const CODE_OTHER: number = (PLACE_MAX + 1) * PLACE_BASE;
/** Above every code: the run has ended. */
export const CODE_END: number = CODE_OTHER + 1;

invariant(Number.isSafeInteger(CODE_END), 'a code is exact');

/** Code of a key whose first difference from its base is at byte `at`. */
export function codeOf(u8: Uint8Array, key: number, keyBytes: number, at: number): number {
  const place = at >>> PLACE_SHIFT;
  const from = place << PLACE_SHIFT;
  const left = keyBytes - from;
  const first = key + from;
  let value = u8[first] << 24;
  if (left > 1) value |= u8[first + 1] << 16;
  if (left > 2) value |= u8[first + 2] << 8;
  if (left > 3) value |= u8[first + 3];
  return (PLACE_MAX - place) * PLACE_BASE + (value >>> 0) * COUNT_BASE + (left > 3 ? 4 : left);
}

/** Keys with this same code (not CODE_OTHER) and base are equal below the result. */
export function equalBelow(code: number): number {
  return (PLACE_MAX + 1 - Math.floor(code / PLACE_BASE)) << PLACE_SHIFT;
}
