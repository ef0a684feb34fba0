/**
 * The changes of one row over time as callers see them: an iterable of offsets and values, oldest or newest
 * first. The times it looks between are held while it is walked, nothing else; each batch enters anew.
 * Runs on the caller's thread.
 */
import type { Client } from './client.ts';
import type { Codec } from './encodings.ts';
import { checkFields } from './options.ts';
import { Hold, decodeOwned, forgotten } from './range.ts';
import type { RowBatch } from './reader.ts';

/** Which changes of a row. Offsets, or times of day: the offset that was the newest then. */
export interface VersionOptions {
  /**
   * The lowest offset, included; below `since`: TIDEMARK_HISTORY_LOST. Left out: all that is known, which is
   * every change from `since` on, before them the one whose value stood there at `since`.
   */
  readonly from?: number | Date;
  /** The highest offset, included; at or above `upper`: TIDEMARK_NOT_YET. Left out: the newest. */
  readonly to?: number | Date;
  /** The newest first. */
  readonly reverse?: boolean;
  /** At most so many; default all. */
  readonly limit?: number;
}

/** A change of a row: where it was made, and what the row was from there on; undefined: it was deleted. */
export type Version<V> = { readonly offset: number; readonly value: V | undefined };

const KNOWN: ReadonlySet<string> = new Set(['from', 'to', 'reverse', 'limit']);
const VERSIONS_FIRST = 16;
const VERSIONS_MAX = 1_024;

/** Throws TypeError for what makes no sense. */
export function checkVersions(options: VersionOptions): { reverse: boolean; limit: number } {
  checkFields(options, KNOWN, 'version option');
  const { reverse = false, limit = Infinity } = options;
  if (typeof reverse !== 'boolean') throw new TypeError('reverse is true or false');
  if (limit !== Infinity && (!Number.isSafeInteger(limit) || limit < 0)) {
    throw new TypeError('limit is a count from 0');
  }
  return { reverse, limit };
}

/** The offsets to look between, both included; the lowest is held before. */
export type VersionBounds = {
  readonly lower: number;
  readonly upper: number;
  /** Deletions up to here are not told: some have been forgotten. */
  readonly forgottenTo: number;
};

/** Changes of a row between two offsets; can be walked once, with `for` or `for await`. */
export class VersionIterable<V> implements IterableIterator<Version<V>>, AsyncIterable<Version<V>> {
  readonly #client: Client;
  readonly #collection: number;
  readonly #key: Uint8Array;
  readonly #values: Codec<V>;
  readonly #reverse: boolean;
  readonly #holds: readonly Hold[];
  readonly #bounds: VersionBounds;
  #lower: number;
  #upper: number;
  #left: number;
  #rows = VERSIONS_FIRST;
  #batch: RowBatch | undefined;
  #at = 0;
  #ended = false;

  /** @internal Takes over the holds. */
  constructor(
    client: Client,
    collection: number,
    key: Uint8Array,
    values: Codec<V>,
    bounds: VersionBounds,
    order: { readonly reverse: boolean; readonly limit: number },
    holds: readonly Hold[],
  ) {
    this.#client = client;
    this.#collection = collection;
    this.#key = key;
    this.#values = values;
    this.#reverse = order.reverse;
    this.#holds = holds;
    this.#bounds = bounds;
    this.#lower = bounds.lower;
    this.#upper = bounds.upper;
    this.#left = order.limit;
    for (const hold of holds) forgotten.register(this, hold, hold);
  }

  [Symbol.iterator](): this {
    return this;
  }

  next(): IteratorResult<Version<V>, undefined> {
    try {
      if (this.#batch === undefined || this.#at === this.#batch.count) {
        if (!this.#fill()) return { done: true, value: undefined };
      }
      const { slab, places, times, diffs } = this.#batch!;
      const at = this.#at++;
      this.#left--;
      const isDeletion = diffs[at] < 0;
      const [start, end] = [places[at * 3 + 1], places[at * 3 + 2]];
      const value = isDeletion ? undefined : decodeOwned(this.#values, slab, start, end);
      return { done: false, value: { offset: times[at], value } };
    } catch (error) {
      // Whoever loops does not call return() after this.
      this.#end();
      throw error;
    }
  }

  /** Lets go of the history it holds. Walking to the end does so too. */
  return(): IteratorResult<Version<V>, undefined> {
    this.#end();
    return { done: true, value: undefined };
  }

  /** The same changes, giving the event loop a turn after each batch. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Version<V>, undefined, undefined> {
    try {
      for (;;) {
        if (this.#batch !== undefined && this.#at === this.#batch.count) {
          await new Promise<void>((resolve) => setImmediate(resolve));
        }
        const next = this.next();
        if (next.done === true) return undefined;
        yield next.value;
      }
    } finally {
      this.#end();
    }
  }

  #fill(): boolean {
    if (this.#ended || this.#left <= 0 || this.#batch?.ended === true) {
      this.#end();
      return false;
    }
    this.#client.assertUsable();
    const rows = Math.min(this.#rows, this.#left);
    this.#rows = Math.min(VERSIONS_MAX, 2 * this.#rows);
    const batch = this.#client.reader.readVersions(
      this.#collection,
      this.#key,
      { ...this.#bounds, lower: this.#lower, upper: this.#upper },
      this.#bounds.upper,
      this.#reverse,
      rows,
    );
    this.#batch = batch;
    this.#at = 0;
    if (batch.count === 0) {
      this.#end();
      return false;
    }
    const last = batch.times[batch.count - 1];
    if (this.#reverse) this.#upper = last - 1;
    else this.#lower = last + 1;
    return true;
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#batch = undefined;
    for (const hold of this.#holds) {
      forgotten.unregister(hold);
      hold.release();
    }
  }
}
