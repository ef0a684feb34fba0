/**
 * Range reads as callers see them: iterables that walk rows in key order, either way, with limits.
 * Between batches nothing is held but a time: each batch enters anew and seeks by key, so an iterator
 * that is left lying keeps history, never memory of the write path. Runs on the caller's thread.
 */
import { compareBytes } from '../core/base/bytes.ts';
import type { Client } from './client.ts';
import { decodeLent } from './encodings.ts';
import type { Codec } from './encodings.ts';
import { byteRange, successor } from './key-range.ts';
import type { KeyBounds } from './key-range.ts';
import { checkFields } from './options.ts';
import { PairPlace } from './pair-place.ts';
import { BATCH_SLAB_BYTES } from './reader.ts';
import type { RangeBounds, RowBatch } from './reader.ts';
import type { Snapshot } from './snapshot.ts';

export interface RangeOptions<K> extends KeyBounds<K> {
  /** From the last row to the first. */
  readonly reverse?: boolean;
  /** At most so many rows; default all. */
  readonly limit?: number;
  readonly asOf?: number | Date;
  readonly snapshot?: Snapshot;
}

export type CheckedRange = { readonly bounds: RangeBounds; readonly limit: number };

const ROWS_FIRST = 16;
const ROWS_MAX = 1_024;

/** What a walk shows of a collection. */
export const WALK_ROWS = 0;
/** Of a multiset: each value of each key, with its diff. */
export const WALK_PAIRS = 1;
/** Of a multiset: each key once. */
export const WALK_KEYS = 2;

const KNOWN: ReadonlySet<string> = new Set([
  'gte',
  'gt',
  'lte',
  'lt',
  'prefix',
  'reverse',
  'limit',
  'asOf',
  'snapshot',
]);

/** Bounds as encoded keys, half open. */
export function checkRange<K>(range: RangeOptions<K> | undefined, keys: Codec<K>): CheckedRange {
  if (range === undefined) {
    return { bounds: { ...byteRange({}, keys), reverse: false }, limit: Infinity };
  }
  checkFields(range, KNOWN, 'range option');
  const { reverse = false } = range;
  if (typeof reverse !== 'boolean') throw new TypeError('reverse is true or false');
  const bounds: RangeBounds = { ...byteRange(range, keys), reverse };
  const { limit = Infinity } = range;
  if (limit !== Infinity && (!Number.isSafeInteger(limit) || limit < 0)) {
    throw new TypeError('limit is a count from 0');
  }
  return { bounds, limit };
}

type Item<K, V, T> = (key: () => K, value: () => V, diff: () => number) => T;

/** Rows of a range as of the time it was made; can be walked once, with `for` or `for await`. */
export class RangeIterable<K, V, T> implements IterableIterator<T>, AsyncIterable<T> {
  readonly #client: Client;
  readonly #collection: number;
  readonly #keys: Codec<K>;
  readonly #values: Codec<V>;
  readonly #bounds: RangeBounds;
  readonly #make: Item<K, V, T>;
  readonly #hold: Hold;
  readonly #walk: number;
  /** Behind which value of the key at the bound the next batch begins. */
  readonly #place: PairPlace = new PairPlace();
  #left: number;
  #rows = ROWS_FIRST;
  #batch: RowBatch | undefined;
  #at = 0;
  #ended = false;
  readonly #key = (): K => this.#decodeKey();
  readonly #value = (): V => this.#decodeValue();
  readonly #diff = (): number => this.#batch!.diffs[this.#at];

  /** @internal */
  constructor(
    client: Client,
    collection: number,
    keys: Codec<K>,
    values: Codec<V>,
    asOf: number,
    range: CheckedRange,
    make: Item<K, V, T>,
    walk: number = WALK_ROWS,
  ) {
    this.#client = client;
    this.#collection = collection;
    this.#keys = keys;
    this.#values = values;
    this.#bounds = { ...range.bounds };
    this.#left = range.limit;
    this.#make = make;
    this.#walk = walk;
    this.#hold = new Hold(client, client.holdFor(collection, asOf), 'iterator');
    forgotten.register(this, this.#hold, this.#hold);
  }

  [Symbol.iterator](): this {
    return this;
  }

  next(): IteratorResult<T, undefined> {
    try {
      // Of a key with many values a batch may have more than is left.
      if (this.#batch === undefined || this.#at === this.#batch.count || this.#left <= 0) {
        if (!this.#fill()) return { done: true, value: undefined };
      }
      const value = this.#make(this.#key, this.#value, this.#diff);
      this.#at++;
      if (this.#walk === WALK_KEYS) this.#skipKey();
      this.#left--;
      return { done: false, value };
    } catch (error) {
      // Whoever loops does not call return() after this.
      this.#end();
      throw error;
    }
  }

  /** Lets go of the history it holds. Walking to the end does so too. */
  return(): IteratorResult<T, undefined> {
    this.#end();
    return { done: true, value: undefined };
  }

  /** The same rows, giving the event loop a turn after each batch. */
  async *[Symbol.asyncIterator](): AsyncGenerator<T, undefined, undefined> {
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
    const former = this.#batch;
    if (this.#ended || this.#left <= 0 || former?.ended === true) {
      this.#end();
      return false;
    }
    this.#client.assertUsable();
    const rows = Math.min(this.#rows, this.#left);
    this.#rows = Math.min(ROWS_MAX, this.#rows * 2);
    const { reader, pairs } = this.#client;
    if (this.#hold.T < 0) {
      this.#end();
      return false;
    }
    this.#batch =
      this.#walk === WALK_ROWS
        ? reader.readRange(this.#collection, this.#hold.T, this.#bounds, rows)
        : pairs.readRange(
            this.#collection,
            this.#hold.T,
            this.#bounds,
            this.#place.resume,
            this.#place.factor === 1 ? rows : ROWS_MAX * this.#place.factor,
            BATCH_SLAB_BYTES * this.#place.factor,
          );
    this.#at = 0;
    if (this.#batch.count === 0) {
      this.#end();
      return false;
    }
    this.#moveBounds(this.#batch);
    return true;
  }

  /** What is left of the range begins behind the last row. A copy: the batch's bytes become the caller's. */
  #moveBounds(batch: RowBatch): void {
    const last = (batch.count - 1) * 3;
    const key = new Uint8Array(batch.slab.subarray(batch.places[last], batch.places[last + 1]));
    if (this.#walk === WALK_PAIRS) {
      this.#moveInside(batch, key);
    } else if (this.#bounds.reverse) {
      this.#bounds.upper = key;
      this.#bounds.upperOpen = false;
    } else {
      this.#bounds.lower = successor(key);
    }
  }

  /** As `#moveBounds`, to the next value of the key. */
  #moveInside(batch: RowBatch, key: Uint8Array): void {
    this.#place.moveOn(batch, key);
    if (this.#bounds.reverse) {
      this.#bounds.upper = successor(key);
      this.#bounds.upperOpen = false;
    } else {
      this.#bounds.lower = key;
    }
  }

  /** Goes on to the first row of another key. */
  #skipKey(): void {
    const { places, slab, count } = this.#batch!;
    const before = (this.#at - 1) * 3;
    const key = slab.subarray(places[before], places[before + 1]);
    for (; this.#at < count; this.#at++) {
      const at = this.#at * 3;
      if (compareBytes(slab.subarray(places[at], places[at + 1]), key) !== 0) return;
    }
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#batch = undefined;
    forgotten.unregister(this.#hold);
    this.#hold.release();
  }

  #decodeKey(): K {
    const { slab, places } = this.#batch!;
    const at = this.#at * 3;
    return decodeOwned(this.#keys, slab, places[at], places[at + 1]);
  }

  #decodeValue(): V {
    const { slab, places } = this.#batch!;
    const at = this.#at * 3;
    return decodeOwned(this.#values, slab, places[at + 1], places[at + 2]);
  }
}

/** Decodes bytes of a slab that is never written again: codecs may keep what they are given. */
export function decodeOwned<T>(codec: Codec<T>, slab: Buffer, start: number, end: number): T {
  if (codec.name === 'buffer') return codec.decode(slab.subarray(start, end));
  return decodeLent(codec, slab, start, end);
}

/** A time that something holds; let go once. */
export class Hold {
  readonly #client: Client;
  readonly T: number;
  /** What holds: as `engine.stats().holds` names it. */
  readonly owner: string;
  /** On the wall clock. */
  readonly sinceMs: number;
  #shares = 1;

  /** Requires: `T` is held by the caller's word, or negative, which holds nothing. */
  constructor(client: Client, T: number, owner = 'read') {
    this.#client = client;
    this.T = T;
    this.owner = owner;
    this.sinceMs = client.context.clock.nowMs();
    if (T >= 0) client.held.add(this);
  }

  get held(): boolean {
    return this.#shares > 0;
  }

  /** For one more who releases it. Requires: held. */
  share(): this {
    this.#shares++;
    return this;
  }

  /** By each once; when it is not held, nothing. */
  release(): void {
    if (this.#shares === 0) return;
    this.#shares--;
    if (this.#shares > 0 || this.T < 0) return;
    this.#client.held.delete(this);
    this.#client.release(this.T);
  }
}

/** Iterators and snapshots that nobody closed let go of their history when they are collected. */
export const forgotten: FinalizationRegistry<Hold> = new FinalizationRegistry((hold) => {
  hold.release();
});
