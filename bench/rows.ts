/**
 * The rows every engine is given: row number -> key and value, from one seed, with no state.
 * The same row number and seed give the same bytes in every process, so a result can be checked
 * against the generator instead of against another engine. Called by the suites, in the child.
 *
 * Keys are unique (their first word is a bijection of the row number) and in random order. Values
 * are random bytes, so that no engine gains or loses by compressing them; they come from a pool of
 * 16,384 made beforehand, so that the loops under measurement do not time a random number generator.
 */
import { crc32 } from 'node:zlib';

export const KEY_BYTES = 16;
export const VALUE_BYTES = 100;
export const ROW_BYTES: number = KEY_BYTES + VALUE_BYTES;

const POOL_COUNT = 16_384;

/** A bijection of the 32-bit words that leaves no visible order. */
function scramble(word: number): number {
  let x = word | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

export class Rows {
  readonly seed: number;
  readonly #pool: Buffer[] = [];

  constructor(seed: number) {
    this.seed = seed;
    const slab = Buffer.alloc(POOL_COUNT * VALUE_BYTES);
    for (let at = 0; at + 4 <= slab.length; at += 4) {
      slab.writeUInt32LE(scramble(seed + Math.imul(at, 0x9e3779b1)), at);
    }
    for (let i = 0; i < POOL_COUNT; i++) {
      this.#pool.push(slab.subarray(i * VALUE_BYTES, (i + 1) * VALUE_BYTES));
    }
  }

  /** A key of its own, which an engine may keep. */
  key(row: number): Buffer {
    const key = Buffer.allocUnsafe(KEY_BYTES);
    this.keyInto(row, key);
    return key;
  }

  keyInto(row: number, target: Buffer): void {
    const word = row ^ this.seed;
    target.writeUInt32BE(scramble(word), 0);
    target.writeUInt32BE(scramble(word + 0x51ed270b), 4);
    target.writeUInt32BE(scramble(word + 0x2545f491), 8);
    target.writeUInt32BE(scramble(word + 0x1f123bb5), 12);
  }

  /** Valid for ever, and written by nobody. */
  value(row: number): Buffer {
    return this.#pool[scramble(row + 0x3c6ef372) % POOL_COUNT];
  }
}

/**
 * Upserts over `keyCount` keys in random order: operation n writes a key drawn from its number, with a
 * value of its own. As many operations as keys leave 63 % of the keys, written 1.6 times each.
 */
export class Upserts extends Rows {
  readonly keyCount: number;

  constructor(seed: number, keyCount: number) {
    super(seed);
    this.keyCount = keyCount;
  }

  override keyInto(operation: number, target: Buffer): void {
    super.keyInto(this.keyOf(operation), target);
  }

  keyOf(operation: number): number {
    return scramble((operation ^ this.seed) + 0x6c8e9cf5) % this.keyCount;
  }

  /** How many keys the first `count` operations leave, and the digest of what they hold. */
  expected(count: number): { digest: string; keys: number } {
    const newest = new Int32Array(this.keyCount).fill(-1);
    for (let operation = 0; operation < count; operation++)
      newest[this.keyOf(operation)] = operation;
    const digest = new Digest();
    const key = Buffer.alloc(KEY_BYTES);
    for (const operation of newest) {
      if (operation < 0) continue;
      this.keyInto(operation, key);
      digest.add(key, this.value(operation));
    }
    return { digest: digest.toString(), keys: digest.count };
  }
}

/**
 * What a store holds, in one line: how many rows, and the sum of their checksums. A sum does not
 * depend on the order, so the expected digest needs no sorting; the scan checks the order itself.
 */
export class Digest {
  count = 0;
  #sum = 0;

  add(key: Uint8Array, value: Uint8Array): void {
    this.count++;
    this.#sum = (this.#sum + crc32(value, crc32(key))) % 0x1_0000_0000;
  }

  toString(): string {
    return `${this.count}:${this.#sum.toString(16).padStart(8, '0')}`;
  }
}

/** The digest of rows 0 to `count` - 1. */
export function expectedDigest(rows: Rows, count: number): string {
  const digest = new Digest();
  const key = Buffer.alloc(KEY_BYTES);
  for (let row = 0; row < count; row++) {
    rows.keyInto(row, key);
    digest.add(key, rows.value(row));
  }
  return digest.toString();
}

/** A small seeded generator (mulberry32) for the choice of rows to read. */
export function random(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return (x ^ (x >>> 14)) >>> 0;
  };
}
