/**
 * A collection as callers see it: puts, deletes, point and range reads with its encodings. Public; a
 * thin face over the client, which does the work. Arguments are the caller's and are checked here.
 */
import { TidemarkError } from '../core/base/errors.ts';
import type { StoredHistory } from './catalog.ts';
import type { Client } from './client.ts';
import { refusedNow } from './commit-line.ts';
import type { Receipt } from './commit-line.ts';
import { Conditions } from './conditions.ts';
import { decodeLent, isOurs } from './encodings.ts';
import type { Codec } from './encodings.ts';
import { Feed } from './feed.ts';
import type { Update } from './feed-changes.ts';
import { BOUND_OPTIONS, FOLLOW_OPTIONS, startFeed } from './feed-options.ts';
import type { ChangesOptions } from './feed-options.ts';
import { byteRange, rangeToDelete } from './key-range.ts';
import type { KeyBounds } from './key-range.ts';
import { checkFields, checkHistory, checkSignal, show } from './options.ts';
import type { History } from './options.ts';
import { NEWEST, ROW_ABSENT, ROW_ON_DISK, historyLost } from './reader.ts';
import { RangeIterable, checkRange } from './range.ts';
import type { RangeOptions } from './range.ts';
import type { Snapshot } from './snapshot.ts';
import { WriteSet } from './write-set.ts';

/** Where in time a read looks; one of the two at most. */
export interface ReadOptions {
  /** Every transaction with offset <= asOf. Below `since`: TIDEMARK_HISTORY_LOST; at or above `upper`: TIDEMARK_NOT_YET. */
  readonly asOf?: number;
  /** The state that a snapshot holds. */
  readonly snapshot?: Snapshot;
  /** getSync only: TIDEMARK_NOT_CACHED instead of a file read. */
  readonly cachedOnly?: boolean;
}

/** What must hold when a commit takes its place in the order. Offsets are as getEntrySync and receipts tell them. */
export type Condition =
  /** The row's last change is at the offset; null: the row is absent. */
  | {
      readonly collection: Collection<any, any>;
      readonly key: unknown;
      readonly offset: number | null;
    }
  /** Nothing in the collection changed after the offset: its `touched`, at the time, is at most one more. */
  | { readonly collection: Collection<any, any>; readonly unchangedSince: number };

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

const READ_OPTIONS: ReadonlySet<string> = new Set(['asOf', 'snapshot', 'cachedOnly']);
const CHANGES_OPTIONS: ReadonlySet<string> = new Set([...FOLLOW_OPTIONS, ...BOUND_OPTIONS]);
const COMMIT_OPTIONS: ReadonlySet<string> = new Set(['durability', 'signal', 'expect']);
const ROW_FIELDS: ReadonlySet<string> = new Set(['collection', 'key', 'offset']);
const COLLECTION_FIELDS: ReadonlySet<string> = new Set(['collection', 'unchangedSince']);

/** First room for a commit with conditions, which is a write set of its own. */
const ALONE_BYTES = 512;

/** What a collection is, as `engine.collections()` lists it. */
export type CollectionInfo = {
  readonly name: string;
  readonly kind: 'keyed';
  /** Names of the encodings. */
  readonly key: string;
  readonly value: string;
  readonly history: number;
  readonly since: number;
  readonly touched: number;
};

export class Collection<K, V> {
  readonly name: string;
  readonly kind = 'keyed' as const;
  /** @internal */
  readonly id: number;
  /** @internal */
  readonly keyCodec: Codec<K>;
  /** @internal */
  readonly valueCodec: Codec<V>;
  readonly #client: Client;
  /** Decoding values runs no code of the caller's. */
  readonly #isOurs: boolean;
  readonly #setHistory: (history: StoredHistory) => Promise<Receipt>;

  /** @internal */
  constructor(
    client: Client,
    name: string,
    id: number,
    keys: Codec<K>,
    values: Codec<V>,
    setHistory: (history: StoredHistory) => Promise<Receipt>,
  ) {
    this.#client = client;
    this.name = name;
    this.id = id;
    this.keyCodec = keys;
    this.valueCodec = values;
    this.#isOurs = isOurs(values);
    this.#setHistory = setHistory;
  }

  /** The lowest asOf that may be read; what lies below only snapshots that were there before still see. */
  get since(): number {
    const { reader } = this.#client;
    this.#client.assertUsable();
    const block = reader.enter(this.id, NEWEST);
    const since = block === 0 ? 0 : reader.view.sinceNext(block);
    reader.leave();
    return since;
  }

  /**
   * 1 + offset of the last transaction that changed the collection; 0 when none has. Where that lies in
   * history that was merged away it may be higher, never lower.
   */
  get touched(): number {
    this.#client.assertUsable();
    return this.#client.reader.touched(this.id);
  }

  // ---------------------------------------------------------------- writing

  /** Sets the value of a key, as a transaction of its own. Resolves when it is durable (or written, in a buffered engine) and visible. */
  put(key: K, value: V, options?: CommitOptions): Promise<Receipt> {
    const { line } = this.#client;
    try {
      this.assertThere();
      const sync = checkCommit(this.#client, options);
      if (options?.expect !== undefined) {
        const conditions = checkExpect(this.#client, options);
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
    const { line } = this.#client;
    try {
      this.assertThere();
      const sync = checkCommit(this.#client, options);
      if (options?.expect !== undefined) {
        const conditions = checkExpect(this.#client, options);
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
    const { line, reader } = this.#client;
    try {
      this.assertThere();
      const sync = checkCommit(this.#client, options);
      const conditions = checkExpect(this.#client, options);
      const range = rangeToDelete(bounds, this.keyCodec);
      if (range === undefined) {
        this.#client.assertUsable();
        const conflict = conditions?.check();
        if (conflict !== undefined) throw conflict;
        return Promise.resolve({ offset: reader.visible() - 1 });
      }
      const alone = new WriteSet(ALONE_BYTES);
      alone.begin();
      alone.deleteRange(this.id, range);
      return line.commitSet(alone, sync, conditions);
    } catch (error) {
      return refusedNow(error);
    }
  }

  /** Changes how much of the past the collection keeps: offsets behind the newest, or Infinity. */
  async setHistory(history: History): Promise<Receipt> {
    const offsets = checkHistory(history);
    checkCommit(this.#client, undefined);
    this.#client.assertUsable();
    return this.#setHistory({ offsets: offsets < 0 ? null : offsets });
  }

  /** @internal An id means something in its own engine only. */
  assertOf(client: Client): void {
    if (this.#client !== client) throw new TypeError(`${this.name} is another engine's collection`);
  }

  /** @internal Throws when the collection was dropped: what is written to it now would not be kept. */
  assertThere(): void {
    if (!this.#client.dropped.has(this.id)) return;
    const { name } = this;
    throw new TidemarkError('TIDEMARK_NOT_FOUND', `collection ${name} was dropped`, {
      collection: name,
    });
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

  /** Values in the order of the keys, all at one offset. */
  getManySync(keys: readonly K[], options?: ReadOptions): (V | undefined)[] {
    return this.#atOneTime(options, (at) => keys.map((key) => this.getSync(key, at)));
  }

  #find<R>(
    key: K,
    options: ReadOptions | undefined,
    take: (start: number, end: number, bytes: Uint8Array, offset: number) => R,
  ): R | undefined {
    let own: Buffer;
    let offset: number;
    const client = this.#client;
    const { reader } = client;
    client.assertUsable();
    const asOf = this.#timeOf(options);
    const length = client.encodeKey(this.keyCodec, key);
    const block = reader.enter(this.id, asOf);
    try {
      const cachedOnly = options?.cachedOnly ?? false;
      const outcome = reader.find(this.id, block, client.keyBytes, length, cachedOnly);
      if (outcome === ROW_ABSENT) return undefined;
      if (outcome === ROW_ON_DISK) throw notCached(this.name);
      const { valueStart, valueEnd, valueBytes } = reader;
      if (this.#isOurs) return take(valueStart, valueEnd, valueBytes, reader.time);
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
    const client = this.#client;
    client.assertUsable();
    const T = client.holdFor(this.id, this.#timeOf(options));
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
  ): Promise<{ value: Uint8Array; start: number; end: number } | undefined> {
    const client = this.#client;
    client.assertUsable();
    const asOf = this.#timeOf(options);
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

  #range<T>(
    range: RangeOptions<K> | undefined,
    make: (key: () => K, value: () => V) => T,
  ): RangeIterable<K, V, T> {
    this.#client.assertUsable();
    const checked = checkRange(range, this.keyCodec);
    const asOf = range === undefined ? this.#newest() : this.#timeAt(range.asOf, range.snapshot);
    return new RangeIterable(
      this.#client,
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
    checkFields(options, CHANGES_OPTIONS, 'feed option');
    this.assertThere();
    const hasBounds = BOUND_OPTIONS.some(
      (name) => options[name as keyof typeof options] !== undefined,
    );
    const range = hasBounds ? byteRange(options, this.keyCodec) : undefined;
    const start = startFeed(this.#client, [this.id], options);
    return new Feed(this.#client, [{ collection: this, range, isNamed: false }], start);
  }

  // ---------------------------------------------------------------- time

  #timeOf(options: ReadOptions | undefined): number {
    if (options === undefined) return this.#newest();
    checkRead(options);
    return this.#timeAt(options.asOf, options.snapshot);
  }

  #timeAt(asOf: number | undefined, snapshot: Snapshot | undefined): number {
    if (snapshot !== undefined) {
      if (asOf !== undefined) throw new TypeError('give asOf or a snapshot, not both');
      snapshot.assertOpen(this.#client);
      if (snapshot.isLost(this.id)) throw historyLost(snapshot.offset, this.since);
      return snapshot.offset;
    }
    if (asOf === undefined) return this.#newest();
    if (!Number.isSafeInteger(asOf) || asOf < 0) {
      throw new TypeError(`asOf is an offset from 0, not ${String(asOf)}`);
    }
    // What was dropped goes in parts, and is kept for those alone who held the time.
    if (this.#client.dropped.has(this.id) && !this.#client.isHeld(asOf)) {
      throw historyLost(asOf, this.#client.reader.visible());
    }
    return asOf;
  }

  #newest(): number {
    this.assertThere();
    return NEWEST;
  }

  #atOneTime<R>(
    options: ReadOptions | undefined,
    read: (options: ReadOptions | undefined) => R,
  ): R {
    if (options !== undefined) checkRead(options);
    if (options?.asOf !== undefined || options?.snapshot !== undefined) return read(options);
    const client = this.#client;
    client.assertUsable();
    const T = client.holdFor(this.id, NEWEST);
    if (T < 0) return read(options);
    try {
      return read({ ...options, asOf: T });
    } finally {
      client.release(T);
    }
  }
}

function checkRead(options: ReadOptions): void {
  checkFields(options, READ_OPTIONS, 'read option');
  const { cachedOnly } = options;
  if (cachedOnly === undefined || typeof cachedOnly === 'boolean') return;
  throw new TypeError('cachedOnly is true or false');
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
  if (!(collection instanceof Collection)) throw new TypeError('a condition names a collection');
  collection.assertOf(client);
  collection.assertThere();
  const { id, name, keyCodec } = collection;
  if (isOfCollection) {
    const since = checkConditionOffset('unchangedSince', unchangedSince);
    conditions.addCollection(id, name, since);
    return;
  }
  if (!('key' in condition)) throw new TypeError('a condition has a key, or unchangedSince');
  const expected = offset === null ? null : checkConditionOffset('offset', offset);
  const length = client.encodeKey(keyCodec, key);
  const own = Buffer.from(client.keyBytes.subarray(0, length));
  conditions.addRow(id, name, key, own, expected);
}

/** -1 is the newest offset of a store in which nothing has happened. */
function checkConditionOffset(name: string, offset: unknown): number {
  if (typeof offset === 'number' && Number.isSafeInteger(offset) && offset >= -1) return offset;
  const wish = name === 'offset' ? 'an offset, or null for absent' : 'an offset';
  throw new TypeError(`${name} of a condition is ${wish}, not ${show(offset)}`);
}

function notCached(name: string): TidemarkError {
  return new TidemarkError('TIDEMARK_NOT_CACHED', `a row of ${name} is not in memory`, {
    collection: name,
  });
}
