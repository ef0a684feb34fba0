/**
 * A multiset as callers see it: any number of values a key, each as often as its diffs add up to. Public;
 * a thin face over the client, which does the work. Arguments are the caller's and are checked here.
 */
import { DiffSum } from '../core/base/diff-sum.ts';
import { BaseCollection } from './base-collection.ts';
import type { ReadOptions } from './base-collection.ts';
import { checkCommit, checkExpect, commitDeleteRange, commitMeta } from './collection.ts';
import type { CommitOptions } from './collection.ts';
import { refusedNow } from './commit-line.ts';
import type { Receipt } from './commit-line.ts';
import type { DiffOptions } from './diff.ts';
import { decodeLent } from './encodings.ts';
import type { Feed } from './feed.ts';
import type { Update } from './feed-changes.ts';
import type { ChangesOptions } from './feed-options.ts';
import { difference, follow } from './following.ts';
import type { KeyBounds } from './key-range.ts';
import type { Pair } from './pair-reader.ts';
import { RangeIterable, WALK_KEYS, WALK_PAIRS, checkRange } from './range.ts';
import type { RangeOptions } from './range.ts';
import { WriteSet } from './write-set.ts';

/** First room for a commit with conditions, which is a write set of its own. */
const ALONE_BYTES = 512;

/**
 * Values by key, each with a count that updates add to. A count may be below zero: nobody says that what
 * is taken away was there. What comes to zero is not there.
 */
export class Multiset<K, V> extends BaseCollection<K, V> {
  readonly kind = 'multiset' as const;

  // ---------------------------------------------------------------- writing

  /**
   * Adds `diff`, a safe integer other than 0, to how often the value is at the key, as a transaction of its
   * own. Resolves when it is durable (or written, in a buffered engine) and visible.
   */
  update(key: K, value: V, diff: number, options?: CommitOptions): Promise<Receipt> {
    const { line } = this.client;
    try {
      this.assertThere();
      const sync = checkCommit(this.client, options);
      const conditions = checkExpect(this.client, options);
      if (conditions !== undefined) {
        const alone = new WriteSet(ALONE_BYTES);
        alone.begin();
        alone.update(this.id, this.keyCodec, key, this.valueCodec, value, diff);
        return line.commitSet(alone, sync, conditions);
      }
      const set = line.begin();
      try {
        set.update(this.id, this.keyCodec, key, this.valueCodec, value, diff);
      } catch (error) {
        set.abandon();
        throw error;
      }
      return line.commit(sync);
    } catch (error) {
      return refusedNow(error);
    }
  }

  /**
   * Removes every value of every key in the bounds, `{}` for all, as one operation and a transaction of its
   * own: what is there when it takes its place in the order, counts below zero too.
   */
  deleteRange(bounds: KeyBounds<K>, options?: CommitOptions): Promise<Receipt> {
    return commitDeleteRange(this.client, this, bounds, options);
  }

  /** Sets the collection's own bytes, at most 64 KiB, as a transaction of its own; `tx.setMeta` joins others. */
  setMeta(bytes: Uint8Array, options?: CommitOptions): Promise<Receipt> {
    return commitMeta(this.client, this, bytes, options);
  }

  /** @internal Of keyed collections. */
  put(): Promise<never> {
    return refusedNow(this.#keyedOnly('put'));
  }

  /** @internal Of keyed collections. */
  delete(): Promise<never> {
    return refusedNow(this.#keyedOnly('delete'));
  }

  /** @internal Of keyed collections: merges forget when a value came. */
  getEntrySync(): never {
    throw this.#keyedOnly('getEntrySync');
  }

  /** @internal Of keyed collections. */
  versions(): never {
    throw this.#keyedOnly('versions');
  }

  #keyedOnly(what: string): TypeError {
    return new TypeError(`${this.name} is a multiset: it has no ${what}`);
  }

  // ---------------------------------------------------------------- points

  /**
   * The values of a key with their counts, in the order of their encoded bytes; none has count 0. Reads
   * what of each file may hold the key. A count that is no safe integer is TIDEMARK_TOO_LARGE.
   */
  getSync(key: K, options?: ReadOptions): [V, number][] {
    return this.#decoded(this.#find(key, options));
  }

  /** True when the key has a value with a count other than 0. */
  hasSync(key: K, options?: ReadOptions): boolean {
    return this.#find(key, options).length > 0;
  }

  /** The counts of all values of a key, added up. */
  countSync(key: K, options?: ReadOptions): number {
    return countOf(this.#find(key, options));
  }

  /** As `getSync`, in the order of the keys, all at one offset. */
  getManySync(keys: readonly K[], options?: ReadOptions): [V, number][][] {
    return this.atOneTime(options, (at) => keys.map((key) => this.getSync(key, at)));
  }

  /** As `getSync`; the disk is read off the event loop. */
  async get(key: K, options?: ReadOptions): Promise<[V, number][]> {
    return this.#decoded(await this.#findLater(key, options));
  }

  async has(key: K, options?: ReadOptions): Promise<boolean> {
    return (await this.#findLater(key, options)).length > 0;
  }

  async count(key: K, options?: ReadOptions): Promise<number> {
    return countOf(await this.#findLater(key, options));
  }

  async getMany(keys: readonly K[], options?: ReadOptions): Promise<[V, number][][]> {
    const { client } = this;
    client.assertUsable();
    const T = client.holdFor(this.id, this.timeOf(options));
    if (T < 0) return keys.map(() => []);
    try {
      return await Promise.all(keys.map((key) => this.get(key, { asOf: T })));
    } finally {
      client.release(T);
    }
  }

  #decoded(pairs: readonly Pair[]): [V, number][] {
    return pairs.map(({ value, diff }) => [
      decodeLent(this.valueCodec, value, 0, value.length),
      diff,
    ]);
  }

  #find(key: K, options: ReadOptions | undefined): Pair[] {
    const { client } = this;
    client.assertUsable();
    const asOf = this.timeOf(options);
    const own = this.#encoded(key);
    const pairs = client.pairs.find(this.id, own, asOf, options?.cachedOnly ?? false);
    if (pairs === undefined) throw this.notCached();
    return pairs;
  }

  async #findLater(key: K, options: ReadOptions | undefined): Promise<Pair[]> {
    const { client } = this;
    client.assertUsable();
    const asOf = this.timeOf(options);
    return client.pairs.findLater(
      this.id,
      this.#encoded(key),
      asOf,
      (T) => client.hold(T),
      (T) => client.release(T),
    );
  }

  /** A copy: the scratch is the next read's. */
  #encoded(key: K): Uint8Array {
    const length = this.client.encodeKey(this.keyCodec, key);
    return Buffer.from(this.client.keyBytes.subarray(0, length));
  }

  // ---------------------------------------------------------------- ranges

  /** [key, value, count] in the order of keys, then of values; `limit` counts these. Also for `for await`. */
  entries(range?: RangeOptions<K>): RangeIterable<K, V, [K, V, number]> {
    return this.#range(range, (key, value, diff) => [key(), value(), diff()], WALK_PAIRS);
  }

  /** Each key that has a value, once. */
  keys(range?: RangeOptions<K>): RangeIterable<K, V, K> {
    return this.#range(range, (key) => key(), WALK_KEYS);
  }

  /** The values of each key, once each, whatever their counts. */
  values(range?: RangeOptions<K>): RangeIterable<K, V, V> {
    return this.#range(range, (_, value) => value(), WALK_PAIRS);
  }

  // ---------------------------------------------------------------- following

  /**
   * Every transaction that touches the multiset, or a range of it, once, in order, without gaps, as
   * `Collection.changes` tells them: an update is by how much the count of a value at a key changed, what
   * comes to nothing is left out, and no old row is looked up. A removed range is told row by row, each with
   * the count that was taken away; with `old: false` by its bounds.
   */
  changes(options: ChangesOptions<K> = {}): Feed<Update<K, V>> {
    return follow(this.client, this, options);
  }

  /**
   * The net difference between the states at two offsets, by key, then by value: what is to be added to the
   * counts at `a` to get those at `b`; -1 is the state before everything. A difference that is no safe
   * integer is told in two updates. Rejects as reads at these offsets do.
   */
  diff(
    a: number,
    b: number,
    options: DiffOptions<K> = {},
  ): AsyncIterableIterator<Update<K, V>, undefined> {
    return difference(this.client, this, a, b, options);
  }

  #range<T>(
    range: RangeOptions<K> | undefined,
    make: (key: () => K, value: () => V, diff: () => number) => T,
    walk: number,
  ): RangeIterable<K, V, T> {
    const { client, keyCodec, valueCodec } = this;
    client.assertUsable();
    const checked = checkRange(range, keyCodec);
    const asOf = range === undefined ? this.newest() : this.timeAt(range.asOf, range.snapshot);
    return new RangeIterable(client, this.id, keyCodec, valueCodec, asOf, checked, make, walk);
  }
}

/** The counts of all values, added up. */
export function countOf(pairs: readonly Pair[]): number {
  const sum = new DiffSum();
  for (const { diff } of pairs) sum.add(diff);
  return sum.value();
}
