/**
 * How often reads go down to a collection's parts, told by every reader in numbers of its own and summed
 * by the keeper now and then. A reader's number has one writer and is a plain word: nobody waits for
 * anybody, and who sums may miss the last few. Collections whose ids fall together share a number. Counted
 * on clients' threads, once a read; read on the keeper's.
 */
import type { Arena } from './arena.ts';

/** A power of two. */
const SLOTS = 256;

/** Between two looks at the numbers, at the least. */
const LOOK_MS = 1_000;
/** What was read so long ago counts half. */
const HALF_LIFE_MS = 10_000;

export const READ_HEAT_BYTES: number = SLOTS * 4;

export class ReadCounts {
  readonly #u32: Uint32Array;
  readonly #word: number;

  constructor(arena: Arena, address: number) {
    this.#u32 = arena.u32;
    this.#word = address >>> 2;
  }

  /** A read has gone down to the collection's parts. */
  add(collection: number): void {
    const word = this.#word + (collection & (SLOTS - 1));
    this.#u32[word] = this.#u32[word] + 1;
  }
}

/** Reads a second of each collection, the last ones counting most. Time is the caller's. */
export class ReadHeat {
  readonly #u32: Uint32Array;
  readonly #words: readonly number[];
  readonly #seen: Uint32Array = new Uint32Array(SLOTS);
  readonly #rates: Float64Array = new Float64Array(SLOTS);
  #atMs: number;

  /** `addresses`: of the readers' numbers. */
  constructor(arena: Arena, addresses: readonly number[], nowMs: number) {
    this.#u32 = arena.u32;
    this.#words = addresses.map((address) => address >>> 2);
    this.#atMs = nowMs;
    for (let slot = 0; slot < SLOTS; slot++) this.#seen[slot] = this.#sum(slot);
  }

  /** Looks at the numbers if that was not done for so long as makes a rate. True when it did. */
  update(nowMs: number): boolean {
    const ms = nowMs - this.#atMs;
    if (ms < LOOK_MS) return false;
    this.#atMs = nowMs;
    const kept = 2 ** (-ms / HALF_LIFE_MS);
    for (let slot = 0; slot < SLOTS; slot++) {
      const sum = this.#sum(slot);
      const rate = (((sum - this.#seen[slot]) >>> 0) * 1_000) / ms;
      this.#seen[slot] = sum;
      this.#rates[slot] = this.#rates[slot] * kept + rate * (1 - kept);
    }
    return true;
  }

  /** Reads a second that went down to the collection's parts, about. */
  of(collection: number): number {
    return this.#rates[collection & (SLOTS - 1)];
  }

  /** Numbers go on beyond 2^32, and so does their sum. */
  #sum(slot: number): number {
    let sum = 0;
    for (const word of this.#words) sum = (sum + this.#u32[word + slot]) >>> 0;
    return sum;
  }
}
