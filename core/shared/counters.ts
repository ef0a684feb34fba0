/**
 * Counters of one writer, published into shared memory for whoever sums them. The writer counts in
 * private numbers and publishes what changed, before it sleeps and now and then while it is busy.
 */
import { HISTOGRAM_MAX, HISTOGRAM_SUM, bucketOf } from '../base/histogram.ts';
import type { Arena } from './arena.ts';
import { loadTriple, storeTriple } from './triple.ts';

const TRIPLE_WORDS = 3;

export class Counters {
  /** Counted privately; indices are the caller's constants. */
  readonly values: Float64Array;
  readonly #published: Float64Array;
  readonly #i32: Int32Array;
  readonly #word: number;

  constructor(arena: Arena, address: number, count: number) {
    this.values = new Float64Array(count);
    this.#published = new Float64Array(count);
    this.#i32 = arena.i32;
    this.#word = address >>> 2;
  }

  add(index: number, n: number): void {
    this.values[index] = this.values[index] + n;
  }

  set(index: number, value: number): void {
    this.values[index] = value;
  }

  /** Counts a value at or above 0 in the histogram whose HISTOGRAM_WORDS begin at `first`. */
  observe(first: number, value: number): void {
    const { values } = this;
    const bucket = first + bucketOf(value);
    values[bucket] = values[bucket] + 1;
    values[first + HISTOGRAM_SUM] = values[first + HISTOGRAM_SUM] + value;
    if (value > values[first + HISTOGRAM_MAX]) values[first + HISTOGRAM_MAX] = value;
  }

  publish(): void {
    const { values } = this;
    for (let i = 0; i < values.length; i++) {
      if (values[i] === this.#published[i]) continue;
      this.#published[i] = values[i]!;
      storeTriple(this.#i32, this.#word + i * TRIPLE_WORDS, values[i]);
    }
  }
}

export function countersBytes(count: number): number {
  return count * TRIPLE_WORDS * 4;
}

/** The published value of one counter. */
export function readCounter(arena: Arena, address: number, index: number): number {
  return loadTriple(arena.i32, (address >>> 2) + index * TRIPLE_WORDS);
}
