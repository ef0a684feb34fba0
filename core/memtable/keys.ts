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
 * A place is a pair of bytes, so that a random key rarely ties: (32,767 - pair) << 17 | value, with
 * value = (first + 1) * 257 + (second + 1, or 0 where the key ends). As i32, biased to order by sign.
 */
const PAIR_SHIFT = 17;
const PAIR_MAX = 32_767;
const VALUE_BASE = 257;
const BIAS = 0x8000_0000;

/** Another collection than the base's. Ties among these are settled by looking. */
export const CODE_OTHER = 0x7fff_fffe;
/** Above every code: the run has ended. */
export const CODE_END = 0x7fff_ffff;

invariant(PAIR_MAX === keyBytesMax >>> 1, 'a code can name every place of a key');
invariant(256 * VALUE_BASE + 256 < 1 << PAIR_SHIFT, 'a value fits below its place');
const CODE_MAX: number = ((PAIR_MAX << PAIR_SHIFT) | (256 * VALUE_BASE + 256)) ^ BIAS;
invariant(CODE_MAX < CODE_OTHER, 'a shared collection is always the smaller code');

/** Code of a key whose first difference from its base is at byte `at`. */
export function codeOf(u8: Uint8Array, key: number, keyBytes: number, at: number): number {
  const pair = at >>> 1;
  const first = key + (pair << 1);
  const second = (pair << 1) + 1 < keyBytes ? u8[first + 1] + 1 : 0;
  return (((PAIR_MAX - pair) << PAIR_SHIFT) | ((u8[first] + 1) * VALUE_BASE + second)) ^ BIAS;
}

/** Keys with this same code (not CODE_OTHER) and base are equal below the result. */
export function equalBelow(code: number): number {
  return (PAIR_MAX + 1 - ((code ^ BIAS) >>> PAIR_SHIFT)) << 1;
}
