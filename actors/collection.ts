/**
 * A collection as callers see it: puts, deletes, point and range reads with its encodings. Public; a
 * thin face over the client, which does the work. Arguments are the caller's and are checked here.
 */
import { TidemarkError } from '../core/base/errors.ts';
import { metaBytesMax } from '../core/base/limits.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import { catalogMetaKey } from './catalog.ts';
import { BaseCollection } from './base-collection.ts';
import type { ReadOptions } from './base-collection.ts';
import type { Client } from './client.ts';
import { refusedNow } from './commit-line.ts';
import type { Receipt } from './commit-line.ts';
import { Conditions } from './conditions.ts';
import type { DiffOptions } from './diff.ts';
import { buffer, decodeLent, tooLarge, view } from './encodings.ts';
import type { Feed } from './feed.ts';
import type { Update } from './feed-changes.ts';
import type { ChangesOptions } from './feed-options.ts';
import { difference, follow } from './following.ts';
import { rangeToDelete } from './key-range.ts';
import type { KeyBounds } from './key-range.ts';
import { checkFields, checkSignal, show } from './options.ts';
import type { History } from './options.ts';
import { NEWEST, ROW_ABSENT, ROW_FOUND, ROW_ON_DISK } from './reader.ts';
import { Hold, RangeIterable, checkRange } from './range.ts';
import type { RangeOptions } from './range.ts';
import { VersionIterable, checkVersions } from './versions.ts';
import type { VersionOptions } from './versions.ts';
import { WriteSet } from './write-set.ts';

export type { ReadOptions };

/** What must hold when a commit takes its place in the order. Offsets are as getEntrySync and receipts tell them. */
export type Condition =
  /** The row's last change is at the offset; null: the row is absent. Of keyed collections. */
  | {
      readonly collection: Collection<any, any>;
      readonly key: unknown;
      readonly offset: number | null;
    }
  /** Nothing in the collection changed after the offset: its `touched`, at the time, is at most one more. */
  | { readonly collection: BaseCollection<any, any>; readonly unchangedSince: number };

/**
 * How a commit is made. Limits: 64 MiB and a quarter of the write budget, and as many operations as fit
 * a part of the memory for writes, however small they are; beyond, TIDEMARK_TOO_LARGE with `detail.limit`.
 */
export interface CommitOptions {
  /** More durability than the engine gives by default; never less. */
  readonly durability?: 'synced' | 'buffered';
  /** Checked before anything happens; a commit that is under way cannot be aborted. */
  readonly signal?: AbortSignal;
  /**
   * Conditions that must all hold, or nothing happens: TIDEMARK_CONFLICT, with the first that does not in
   * `detail` (collection, key, and the offset of the change that was found, null when the row is absent).
   * Encoded they take at most 256 KiB.
   */
  readonly expect?: readonly Condition[];
}

const COMMIT_OPTIONS: ReadonlySet<string> = new Set(['durability', 'signal', 'expect']);
const ROW_FIELDS: ReadonlySet<string> = new Set(['collection', 'key', 'offset']);
const COLLECTION_FIELDS: ReadonlySet<string> = new Set(['collection', 'unchangedSince']);

/** First room for a commit with conditions, which is a write set of its own. */
const ALONE_BYTES = 512;

/** What a collection is, as `engine.collections()` lists it. */
export type CollectionInfo = {
  readonly name: string;
  readonly kind: 'keyed' | 'multiset';
  /** Names of the encodings. */
  readonly key: string;
  readonly value: string;
  /** As it was given: a number of offsets, or an object where milliseconds were. */
  readonly history: History;
  readonly since: number;
  readonly touched: number;
};

/** Rows by key, at most one value a key: the last written. */
export class Collection<K, V> extends BaseCollection<K, V> {
  readonly kind = 'keyed' as const;

  // ---------------------------------------------------------------- writing

  /** Sets the value of a key, as a transaction of its own. Resolves when it is durable (or written, in a buffered engine) and visible. */
  put(key: K, value: V, options?: CommitOptions): Promise<Receipt> {
    const { line } = this.client;
    try {
      this.assertThere();
      const sync = checkCommit(this.client, options);
      if (options?.expect !== undefined) {
        const conditions = checkExpect(this.client, options);
        const alone = new WriteSet(ALONE_BYTES);
        alone.begin();
        alone.put(this.id, this.keyCodec, key, this.valueCodec, value);
        return line.commitSet(alone, sync, conditions);
      }
      const set = line.begin();
      try {
        set.put(this.id, this.keyCodec, key, this.valueCodec, value);
      } catch (error) {
        set.abandon();
        throw error;
      }
      return line.commit(sync);
    } catch (error) {
      return refusedNow(error);
    }
  }

  /** Removes a key. Removing one that is not there is a transaction all the same. */
  delete(key: K, options?: CommitOptions): Promise<Receipt> {
    const { line } = this.client;
    try {
      this.assertThere();
      const sync = checkCommit(this.client, options);
      if (options?.expect !== undefined) {
        const conditions = checkExpect(this.client, options);
        const alone = new WriteSet(ALONE_BYTES);
        alone.begin();
        alone.delete(this.id, this.keyCodec, key);
        return line.commitSet(alone, sync, conditions);
      }
      const set = line.begin();
      try {
        set.delete(this.id, this.keyCodec, key);
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
   * Removes every row whose key is in the bounds, `{}` for all, as one operation and a transaction of its
   * own: the rows that are there when it takes its place in the order. Reads at earlier offsets still see
   * them. Bounds without a key between them remove nothing: the newest visible offset, and none is used.
   */
  deleteRange(bounds: KeyBounds<K>, options?: CommitOptions): Promise<Receipt> {
    return commitDeleteRange(this.client, this, bounds, options);
  }

  /** Sets the collection's own bytes, at most 64 KiB, as a transaction of its own; `tx.setMeta` joins others. */
  setMeta(bytes: Uint8Array, options?: CommitOptions): Promise<Receipt> {
    return commitMeta(this.client, this, bytes, options);
  }

  /** @internal Of multisets. */
  update(): Promise<never> {
    return refusedNow(new TypeError(`${this.name} is keyed: use put and delete`));
  }

  // ---------------------------------------------------------------- points

  /** The value of a key, or undefined. At most one bounded file read a layer; `get` never waits for the disk. */
  getSync(key: K, options?: ReadOptions): V | undefined {
    return this.#find(key, options, (start, end, bytes) =>
      decodeLent(this.valueCodec, bytes, start, end),
    );
  }

  /** True when the key has a value. */
  hasSync(key: K, options?: ReadOptions): boolean {
    return this.#find(key, options, () => true) ?? false;
  }

  /** The value and the offset of the row's last change, or undefined. */
  getEntrySync(key: K, options?: ReadOptions): { value: V; offset: number } | undefined {
    return this.#find(key, options, (start, end, bytes, offset) => ({
      value: decodeLent(this.valueCodec, bytes, start, end),
      offset,
    }));
  }

  /** The same, the disk read off the event loop. */
  async getEntry(key: K, options?: ReadOptions): Promise<{ value: V; offset: number } | undefined> {
    const found = await this.#findLater(key, options);
    if (found === undefined) return undefined;
    const { value, start, end, time } = found;
    return { value: decodeLent(this.valueCodec, value, start, end), offset: time };
  }

  /**
   * The changes of a row, oldest first: where each was made, and the value from there on, undefined for a
   * deletion. All that the collection's history knows, or those between two offsets or times. Deletions at
   * `since` are not told. Also for `for await`.
   */
  versions(key: K, options: VersionOptions = {}): VersionIterable<V> {
    const { client, id } = this;
    const order = checkVersions(options);
    client.assertUsable();
    this.assertThere();
    const length = client.encodeKey(this.keyCodec, key);
    const own = Buffer.from(client.keyBytes.subarray(0, length));
    const to = options.to === undefined ? NEWEST : this.offsetOf(options.to, 'to');
    const from = options.from === undefined ? -1 : this.offsetOf(options.from, 'from');
    const newest = new Hold(client, client.holdFor(id, to), 'versions');
    const upper = newest.T;
    const holds = [newest];
    try {
      const bounds = { lower: Math.max(from, 0), upper, forgottenTo: -1 };
      if (upper >= 0 && from <= upper) {
        const oldest = new Hold(client, this.#holdOldest(from), 'versions');
        holds.push(oldest);
        // Merges may leave out deletions up to what is held.
        bounds.forgottenTo = oldest.T;
        if (from < 0) bounds.lower = this.#standingAt(own, oldest.T);
      }
      return new VersionIterable(client, id, own, this.valueCodec, bounds, order, holds);
    } catch (error) {
      for (const hold of holds) hold.release();
      throw error;
    }
  }

  /** Values in the order of the keys, all at one offset. */
  getManySync(keys: readonly K[], options?: ReadOptions): (V | undefined)[] {
    return this.atOneTime(options, (at) => keys.map((key) => this.getSync(key, at)));
  }

  #find<R>(
    key: K,
    options: ReadOptions | undefined,
    take: (start: number, end: number, bytes: Uint8Array, offset: number) => R,
  ): R | undefined {
    let own: Buffer;
    let offset: number;
    const client = this.client;
    const { reader } = client;
    client.assertUsable();
    const asOf = this.timeOf(options);
    const length = client.encodeKey(this.keyCodec, key);
    const block = reader.enter(this.id, asOf);
    try {
      const cachedOnly = options?.cachedOnly ?? false;
      const outcome = reader.find(this.id, block, client.keyBytes, length, cachedOnly);
      if (outcome === ROW_ABSENT) return undefined;
      if (outcome === ROW_ON_DISK) throw this.notCached();
      const { valueStart, valueEnd, valueBytes } = reader;
      if (this.valuesAreOurs) return take(valueStart, valueEnd, valueBytes, reader.time);
      own = Buffer.allocUnsafe(valueEnd - valueStart);
      own.set(valueBytes.subarray(valueStart, valueEnd));
      offset = reader.time;
    } finally {
      reader.leave();
    }
    // The caller's code runs with nothing held, and may read from the engine itself.
    return take(0, own.length, own, offset);
  }

  /** The value of a key, or undefined. Memory answers at once; the disk is read off the event loop. */
  async get(key: K, options?: ReadOptions): Promise<V | undefined> {
    const found = await this.#findLater(key, options);
    if (found === undefined) return undefined;
    return decodeLent(this.valueCodec, found.value, found.start, found.end);
  }

  async has(key: K, options?: ReadOptions): Promise<boolean> {
    return (await this.#findLater(key, options)) !== undefined;
  }

  async getMany(keys: readonly K[], options?: ReadOptions): Promise<(V | undefined)[]> {
    const client = this.client;
    client.assertUsable();
    const T = client.holdFor(this.id, this.timeOf(options));
    if (T < 0) return keys.map(() => undefined);
    try {
      return await Promise.all(keys.map((key) => this.get(key, { asOf: T })));
    } finally {
      client.release(T);
    }
  }

  async #findLater(
    key: K,
    options: ReadOptions | undefined,
  ): Promise<{ value: Uint8Array; start: number; end: number; time: number } | undefined> {
    const client = this.client;
    client.assertUsable();
    const asOf = this.timeOf(options);
    const length = client.encodeKey(this.keyCodec, key);
    // The scratch is the next read's: what outlives this turn has a copy.
    const own = Buffer.from(client.keyBytes.subarray(0, length));
    const found = await client.reader.findLater(
      this.id,
      own,
      asOf,
      (T) => client.hold(T),
      (T) => client.release(T),
    );
    return found.outcome === ROW_ABSENT ? undefined : found;
  }

  /** Holds the offset before, so that what was changed there is all there; or the lowest that may be held. */
  #holdOldest(from: number): number {
    const { client, id } = this;
    if (from >= 0) return client.holdFor(id, from > this.since ? from - 1 : from);
    for (;;) {
      const { since } = this;
      try {
        return client.holdFor(id, since);
      } catch (error) {
        // It may move on before it is held.
        if (this.since === since) throw error;
      }
    }
  }

  /** The offset of the change whose value stands at T; the next one when there is none. Requires: T is held. */
  #standingAt(key: Uint8Array, T: number): number {
    const { client, id } = this;
    const { reader } = client;
    const block = reader.enter(id, T);
    try {
      const outcome = reader.find(id, block, key, key.length, false);
      return outcome === ROW_FOUND ? reader.time : T + 1;
    } finally {
      reader.leave();
    }
  }

  // ---------------------------------------------------------------- ranges

  /** Rows in key order, as [key, value]; an iterable that can also be walked with `for await`. */
  entries(range?: RangeOptions<K>): RangeIterable<K, V, [K, V]> {
    return this.#range(range, (key, value) => [key(), value()]);
  }

  keys(range?: RangeOptions<K>): RangeIterable<K, V, K> {
    return this.#range(range, (key) => key());
  }

  values(range?: RangeOptions<K>): RangeIterable<K, V, V> {
    return this.#range(range, (_, value) => value());
  }

  /** @internal Of multisets. */
  countSync(): never {
    throw new TypeError(`${this.name} is keyed: it has no counts`);
  }

  #range<T>(
    range: RangeOptions<K> | undefined,
    make: (key: () => K, value: () => V) => T,
  ): RangeIterable<K, V, T> {
    this.client.assertUsable();
    const checked = checkRange(range, this.keyCodec);
    const asOf = range === undefined ? this.newest() : this.timeAt(range.asOf, range.snapshot);
    return new RangeIterable(
      this.client,
      this.id,
      this.keyCodec,
      this.valueCodec,
      asOf,
      checked,
      make,
    );
  }

  // ---------------------------------------------------------------- following

  /**
   * Every transaction that touches the collection, or a range of it, once, in order, without gaps: an
   * async iterable of items. Its place is held from the call on, history for old rows and the log: a slow
   * reader keeps disk space, never a writer waiting; leave the loop, or call `return()`, to let go. What
   * the followers of a thread are given is shared among them: do not change it.
   *
   * Throws TIDEMARK_HISTORY_LOST when the place lies below `since` (with `old: false`: below the log's
   * start), TIDEMARK_NOT_YET when it lies above what readers see. The feed ends with TIDEMARK_CLOSED when
   * the engine closes, with TIDEMARK_NOT_FOUND when all is told of a collection that was dropped.
   */
  changes(options: ChangesOptions<K> & { readonly old: false }): Feed<Update<K, V | undefined>>;
  changes(options?: ChangesOptions<K>): Feed<Update<K, V>>;
  changes(options: ChangesOptions<K> = {}): Feed<Update<K, V>> {
    return follow(this.client, this, options);
  }

  /**
   * The net difference between the states at two offsets, in key order: what is to be taken from the state
   * at `a` (diff -1) and added to it (diff 1) to get that at `b`; -1 is the state before everything. Rejects
   * with TIDEMARK_HISTORY_LOST, TIDEMARK_NOT_YET as reads at these offsets do.
   */
  diff(
    a: number,
    b: number,
    options: DiffOptions<K> = {},
  ): AsyncIterableIterator<Update<K, V>, undefined> {
    return difference(this.client, this, a, b, options);
  }
}

/** Commits the removal of a range of whatever collection. */
export function commitDeleteRange<K>(
  client: Client,
  collection: BaseCollection<K, any>,
  bounds: KeyBounds<K>,
  options: CommitOptions | undefined,
): Promise<Receipt> {
  const { line, reader } = client;
  try {
    collection.assertThere();
    const sync = checkCommit(client, options);
    const conditions = checkExpect(client, options);
    const range = rangeToDelete(bounds, collection.keyCodec);
    if (range === undefined) {
      client.assertUsable();
      const conflict = conditions?.check();
      if (conflict !== undefined) throw conflict;
      return Promise.resolve({ offset: reader.visible() - 1 });
    }
    const alone = new WriteSet(ALONE_BYTES);
    alone.begin();
    alone.deleteRange(collection.id, range);
    return line.commitSet(alone, sync, conditions);
  } catch (error) {
    return refusedNow(error);
  }
}

/** Commits bytes of a collection's own. */
export function commitMeta(
  client: Client,
  collection: BaseCollection<unknown, unknown>,
  bytes: Uint8Array,
  options: CommitOptions | undefined,
): Promise<Receipt> {
  try {
    collection.assertThere();
    const sync = checkCommit(client, options);
    const conditions = checkExpect(client, options);
    client.assertUsable();
    const alone = new WriteSet(ALONE_BYTES);
    alone.begin();
    putMeta(alone, collection.id, bytes);
    return client.line.commitSet(alone, sync, conditions);
  } catch (error) {
    return refusedNow(error);
  }
}

/** Adds bytes of a collection's own to a write set: a row of the catalog. */
export function putMeta(set: WriteSet, id: number, bytes: Uint8Array): void {
  if (!ArrayBuffer.isView(bytes) || bytes.BYTES_PER_ELEMENT !== 1) {
    throw new TypeError('meta is a Buffer or Uint8Array');
  }
  if (bytes.length > metaBytesMax) throw tooLarge('meta', bytes.length, metaBytesMax);
  set.put(CATALOG_ID, buffer, catalogMetaKey(id), view, bytes);
}

/** True when the commit must wait for the sync. Throws before anything happens. */
export function checkCommit(client: Client, options: CommitOptions | undefined): boolean {
  const { config } = client.context;
  if (config.readOnly) {
    throw new TidemarkError('TIDEMARK_READ_ONLY', 'the engine was opened read-only');
  }
  if (options === undefined) return config.synced;
  checkFields(options, COMMIT_OPTIONS, 'commit option');
  checkSignal(options.signal)?.throwIfAborted();
  const { durability } = options;
  if (durability === undefined) return config.synced;
  if (durability === 'synced') return true;
  if (durability !== 'buffered') throw new TypeError("durability is 'synced' or 'buffered'");
  if (config.synced) {
    throw new TypeError(
      'a commit may ask for more durability than the engine gives, never for less',
    );
  }
  return false;
}

/** The conditions of a commit, encoded; undefined when there are none. Throws before anything happens. */
export function checkExpect(
  client: Client,
  options: CommitOptions | undefined,
): Conditions | undefined {
  const expect: unknown = options?.expect;
  if (expect === undefined) return undefined;
  if (!Array.isArray(expect)) throw new TypeError('expect is an array of conditions');
  if (expect.length === 0) return undefined;
  client.assertUsable();
  const conditions = new Conditions(client.reader);
  for (const condition of expect as unknown[]) addCondition(client, conditions, condition);
  return conditions;
}

function addCondition(client: Client, conditions: Conditions, condition: unknown): void {
  if (typeof condition !== 'object' || condition === null) {
    throw new TypeError('a condition is an object');
  }
  const { collection, key, offset, unchangedSince } = condition as Record<string, unknown>;
  const isOfCollection = 'unchangedSince' in condition;
  if (isOfCollection && ('key' in condition || 'offset' in condition)) {
    throw new TypeError('a condition is on a row or on a collection, not both');
  }
  checkFields(condition, isOfCollection ? COLLECTION_FIELDS : ROW_FIELDS, 'condition field');
  if (!(collection instanceof BaseCollection))
    throw new TypeError('a condition names a collection');
  collection.assertOf(client);
  collection.assertThere();
  const { id, name, keyCodec } = collection as BaseCollection<unknown, unknown>;
  if (isOfCollection) {
    const since = checkConditionOffset('unchangedSince', unchangedSince);
    conditions.addCollection(id, name, since);
    return;
  }
  if (collection.kind !== 'keyed') {
    throw new TypeError(`${name} is a multiset: conditions are on the whole of it`);
  }
  if (!('key' in condition)) throw new TypeError('a condition has a key, or unchangedSince');
  const expected = offset === null ? null : checkConditionOffset('offset', offset);
  const length = client.encodeKey(keyCodec, key);
  conditions.addRow(id, name, key, client.keyBytes, length, expected);
}

/** -1 is the newest offset of a store in which nothing has happened. */
function checkConditionOffset(name: string, offset: unknown): number {
  if (typeof offset === 'number' && Number.isSafeInteger(offset) && offset >= -1) return offset;
  const wish = name === 'offset' ? 'an offset, or null for absent' : 'an offset';
  throw new TypeError(`${name} of a condition is ${wish}, not ${show(offset)}`);
}
