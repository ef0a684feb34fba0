/**
 * The hash lanes of parts: two uint32 sums over rows, so that hash(inputs) = hash(output) + hash(dropped)
 * whatever the order, and whichever rows fell together. Part of format 1: the functions never change.
 * Called by whoever writes or drops rows, once a row, on the worker's thread.
 *
 *   k = keyHash(key), v = valueHash(value)           32 bits each
 *   lane 0 += h(k, kind, v)                          what the row says
 *   lane 1 += h'(k, kind, v) * time                  when it says it; linear in time, mod 2^32
 *   of an update: diff * h and diff * h', for its time may be raised to `since`
 */
import { copyHashed, hashAt } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { OP_UPDATE, addDiffSum } from '../base/update.ts';
import { copyAt } from '../base/copy.ts';

const KEY_SEED = 0x7ad870c8;
const VALUE_SEED = 0x2545f491;

/** From this length on a value is hashed by CRC-32, which runs in native code. */
const CRC_BYTES_MIN = 256;

/** The hash of a key in row sums and in filters. */
export function keyHash(bytes: Uint8Array, offset: number, length: number): number {
  return hashAt(bytes, offset, length, KEY_SEED);
}

export function valueHash(bytes: Uint8Array, offset: number, length: number): number {
  return length < CRC_BYTES_MIN
    ? hashAt(bytes, offset, length, VALUE_SEED)
    : crc32(bytes, offset, length);
}

/** The same while copying the value to target[at...]. */
export function copyValue(
  bytes: Uint8Array,
  offset: number,
  length: number,
  target: Uint8Array,
  at: number,
): number {
  if (length < CRC_BYTES_MIN) return copyHashed(bytes, offset, length, VALUE_SEED, target, at);
  copyAt(bytes, offset, length, target, at);
  return crc32(bytes, offset, length);
}

/** Mixes all bits of (k, kind, v); `salt` tells the lanes apart. Not linear: swapped values show. */
function mix(k: number, kind: number, v: number, salt: number): number {
  let h = Math.imul(k ^ salt, 0x9e3779b1) ^ v;
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  h = Math.imul((h ^ (h >>> 13)) + Math.imul(v, 0xc2b2ae35) + kind, 0x27d4eb2f);
  return h ^ (h >>> 16);
}

/** A pair of lanes that rows are added to. */
export class RowSums {
  len: number;
  diffSum: number;
  /** Lanes as int32 while they are summed; `hash()` gives them unsigned. */
  #lane0: number;
  #lane1: number;

  constructor() {
    this.len = 0;
    this.diffSum = 0;
    this.#lane0 = 0;
    this.#lane1 = 0;
  }

  clear(): void {
    this.len = 0;
    this.diffSum = 0;
    this.#lane0 = 0;
    this.#lane1 = 0;
  }

  add(k: number, kind: number, v: number, time: number, diff: number): void {
    const h0 = mix(k, kind, v, 0x165667b1);
    const h1 = mix(k, kind, v, 0x5bd1e995) | 1;
    const isUpdate = kind === OP_UPDATE;
    this.#lane0 = (this.#lane0 + (isUpdate ? Math.imul(h0, diff) : h0)) | 0;
    this.#lane1 = (this.#lane1 + Math.imul(h1, isUpdate ? diff : time)) | 0;
    this.len += 1;
    this.diffSum = addDiffSum(this.diffSum, diff);
  }

  addSums(len: number, diffSum: number, hash: readonly [number, number]): void {
    this.len += len;
    this.diffSum = addDiffSum(this.diffSum, diffSum);
    this.#lane0 = (this.#lane0 + hash[0]) | 0;
    this.#lane1 = (this.#lane1 + hash[1]) | 0;
  }

  hash(): [number, number] {
    return [this.#lane0 >>> 0, this.#lane1 >>> 0];
  }
}
