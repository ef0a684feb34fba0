/**
 * An order of keys for those who look many up: as their bytes are, as far as a few bytes behind what all
 * share tell. Keys that these do not tell apart come in any order: neighbours lie together, nothing is
 * promised. A fraction of the cost of a sort by comparison. Called by feeds, on their thread.
 */
import { invariant } from './assert.ts';
import { commonPrefix } from './bytes.ts';

/** Keys that are put in order at once: their numbers share a double with the bytes that tell. */
export const keyOrderMax = 4_096;
/** Bytes of a key that tell: with the number they fill the 53 bits of a double. */
const TOLD_BYTES = 5;

const numbers: Float64Array = new Float64Array(keyOrderMax);

/**
 * Fills order[0, count) with the numbers 0 to count - 1 in the order of the keys bytes[starts[i], ends[i]).
 */
export function orderKeys(
  bytes: Uint8Array,
  starts: readonly number[],
  ends: readonly number[],
  count: number,
  order: Uint32Array,
): void {
  invariant(count <= keyOrderMax, 'so many keys are put in order at once', count);
  if (count === 0) return;
  let shared = ends[0] - starts[0];
  for (let i = 1; i < count; i++) {
    shared = commonPrefix(bytes, starts[0], shared, bytes, starts[i], ends[i] - starts[i]);
  }
  for (let i = 0; i < count; i++) {
    const from = starts[i] + shared;
    const length = ends[i] - from;
    let number = 0;
    for (let b = 0; b < TOLD_BYTES; b++) number = number * 256 + (b < length ? bytes[from + b] : 0);
    numbers[i] = number * keyOrderMax + i;
  }
  const sorted = numbers.subarray(0, count).toSorted();
  for (let i = 0; i < count; i++) order[i] = sorted[i] % keyOrderMax;
}
