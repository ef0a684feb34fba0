/**
 * What the function of `engine.transact` is given: a transaction that can be read from. Reads see one
 * offset of all collections and the transaction's own writes on top; every point and range that was
 * read is remembered, and must be unchanged when the writes take their place in the order. Ends with
 * the function. Public; lives on its client's thread.
 */
import { Buffer } from 'node:buffer';
import { compareBytes } from '../core/base/bytes.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { pageBytes } from '../core/base/limits.ts';
import type { Client } from './client.ts';
import { checkCommit } from './collection.ts';
import type { Collection } from './collection.ts';
import type { Receipt } from './commit-line.ts';
import { Conditions } from './conditions.ts';
import { buffer, decodeLent } from './encodings.ts';
import { BESIDE_CONFLICT } from './grouped-conditions.ts';
import { successor } from './key-range.ts';
import { OwnWrites } from './own-writes.ts';
import type { OwnRow } from './own-writes.ts';
import { Hold, RangeIterable, checkRange } from './range.ts';
import type { CheckedRange, RangeOptions } from './range.ts';
import { NEWEST, ROW_ABSENT } from './reader.ts';
import { Transaction } from './transaction.ts';

/** A range of a scope: its time is the scope's. */
export type ScopeRangeOptions<K> = Omit<RangeOptions<K>, 'asOf' | 'snapshot'>;

type Any = Collection<any, any>;

type PointRead = {
  readonly collection: Any;
  readonly key: unknown;
  readonly keyBytes: Buffer;
  /** Of the row's last change; null: it was absent. */
  readonly offset: number | null;
};

/** A range as far as it was read. */
type RangeRead = {
  readonly collection: Any;
  readonly range: CheckedRange;
  /** Key of the last row that was given out. */
  reached: Buffer | undefined;
  /** Seen to its end. */
  isWhole: boolean;
};

/** Conditions beyond this give way to one on their whole collection: coarser, and never wrong. */
const CONDITIONS_BYTES_MAX: number = pageBytes / 2;
/** What a condition takes besides its keys, about. */
const CONDITION_BYTES = 32;

export class TransactionScope extends Transaction {
  /** The offset that reads see, itself included. */
  readonly offset: number;
  /** @internal Why it can be read no more: history moved on. */
  lost: TidemarkError | undefined;
  /** @internal What its commit was refused with. */
  conflict: TidemarkError | undefined;
  readonly #client: Client;
  readonly #hold: Hold;
  readonly #own: OwnWrites;
  /** By collection, then key. */
  readonly #points: Map<Any, Map<string, PointRead>> = new Map();
  readonly #ranges: RangeRead[] = [];
  #isOver = false;

  /** @internal */
  constructor(client: Client) {
    super(client);
    this.#client = client;
    this.#hold = new Hold(client, client.holdFor(0, NEWEST));
    this.#own = new OwnWrites(this.set);
    this.offset = this.#hold.T;
  }

  // ---------------------------------------------------------------- points

  /** The value of a key, or undefined. */
  getSync<K, V>(collection: Collection<K, V>, key: NoInfer<K>): V | undefined {
    return this.getEntrySync(collection, key)?.value;
  }

  /** True when the key has a value. */
  hasSync<K, V>(collection: Collection<K, V>, key: NoInfer<K>): boolean {
    return this.getEntrySync(collection, key) !== undefined;
  }

  /** Values in the order of the keys. */
  getManySync<K, V>(collection: Collection<K, V>, keys: readonly NoInfer<K>[]): (V | undefined)[] {
    return keys.map((key) => this.getSync(collection, key));
  }

  /** The value, and the offset of the row's last change; that of a row written here is not known yet: undefined. */
  getEntrySync<K, V>(
    collection: Collection<K, V>,
    key: NoInfer<K>,
  ): { value: V; offset: number | undefined } | undefined {
    const length = this.#encode(collection, key);
    const { keyBytes, reader } = this.#client;
    const own = this.#own.find(collection.id, keyBytes, length);
    if (own !== undefined) return ownEntry(collection, own);
    const keyOwn = Buffer.from(keyBytes.subarray(0, length));
    let value: Buffer;
    let offset: number;
    const block = this.#enter(collection);
    try {
      const outcome = reader.find(collection.id, block, keyBytes, length, false);
      const isAbsent = outcome === ROW_ABSENT;
      this.#note(collection, key, keyOwn, isAbsent ? null : reader.time);
      if (isAbsent) return undefined;
      // A codec of the caller's runs with nothing held, and may keep what it is given.
      value = Buffer.allocUnsafe(reader.valueEnd - reader.valueStart);
      value.set(reader.valueBytes.subarray(reader.valueStart, reader.valueEnd));
      offset = reader.time;
    } finally {
      reader.leave();
    }
    return { value: decodeLent(collection.valueCodec, value, 0, value.length), offset };
  }

  /** The value of a key, or undefined. Memory answers at once; the disk is read off the event loop. */
  async get<K, V>(collection: Collection<K, V>, key: NoInfer<K>): Promise<V | undefined> {
    const client = this.#client;
    const length = this.#encode(collection, key);
    const own = this.#own.find(collection.id, client.keyBytes, length);
    if (own !== undefined) return ownEntry(collection, own)?.value;
    const keyOwn = Buffer.from(client.keyBytes.subarray(0, length));
    const found = await this.#orLost(() =>
      client.reader.findLater(
        collection.id,
        keyOwn,
        this.offset,
        (T) => client.hold(T),
        (T) => client.release(T),
      ),
    );
    this.#assertOpen();
    const isAbsent = found.outcome === ROW_ABSENT;
    this.#note(collection, key, keyOwn, isAbsent ? null : found.time);
    if (isAbsent) return undefined;
    return decodeLent(collection.valueCodec, found.value, found.start, found.end);
  }

  /** True when the key has a value. */
  async has<K, V>(collection: Collection<K, V>, key: NoInfer<K>): Promise<boolean> {
    return (await this.get(collection, key)) !== undefined;
  }

  /** Values in the order of the keys. */
  async getMany<K, V>(
    collection: Collection<K, V>,
    keys: readonly NoInfer<K>[],
  ): Promise<(V | undefined)[]> {
    return Promise.all(keys.map((key) => this.get(collection, key)));
  }

  // ---------------------------------------------------------------- ranges

  /** Rows in key order, as [key, value]; what is written after this call is not among them. */
  entries<K, V>(
    collection: Collection<K, V>,
    range?: ScopeRangeOptions<NoInfer<K>>,
  ): ScopeIterable<[K, V]> {
    const { keyCodec, valueCodec } = collection;
    return this.#range(collection, range, (key, value) => [
      decodeLent(keyCodec, key, 0, key.length),
      decodeLent(valueCodec, value, 0, value.length),
    ]);
  }

  keys<K, V>(
    collection: Collection<K, V>,
    range?: ScopeRangeOptions<NoInfer<K>>,
  ): ScopeIterable<K> {
    return this.#range(collection, range, (key) =>
      decodeLent(collection.keyCodec, key, 0, key.length),
    );
  }

  values<K, V>(
    collection: Collection<K, V>,
    range?: ScopeRangeOptions<NoInfer<K>>,
  ): ScopeIterable<V> {
    return this.#range(collection, range, (_, value) =>
      decodeLent(collection.valueCodec, value, 0, value.length),
    );
  }

  #range<K, V, T>(
    collection: Collection<K, V>,
    options: ScopeRangeOptions<K> | undefined,
    make: (key: Buffer, value: Buffer) => T,
  ): ScopeIterable<T> {
    this.#assertReadable(collection);
    if (options !== undefined && ('asOf' in options || 'snapshot' in options)) {
      throw new TypeError('a transaction reads at its own offset');
    }
    const range = checkRange(options, collection.keyCodec);
    const read: RangeRead = { collection, range, reached: undefined, isWhole: false };
    this.#ranges.push(read);
    const all = { bounds: range.bounds, limit: Infinity };
    const rows = this.#orLostSync(
      () =>
        new RangeIterable<Buffer, Buffer, OwnRow>(
          this.#client,
          collection.id,
          buffer,
          buffer,
          this.offset,
          all,
          (key, value) => ({ key: key(), value: value() }),
        ),
    );
    const own = this.#own.within(collection.id, range.bounds);
    if (range.bounds.reverse) own.reverse();
    const hides = this.#own.hider(collection.id);
    const assertOpen = (): void => this.#assertOpen();
    return new ScopeIterable(read, rows, own, hides, assertOpen, make);
  }

  // ---------------------------------------------------------------- what was read

  #encode<K>(collection: Collection<K, any>, key: K): number {
    this.#assertReadable(collection);
    return this.#client.encodeKey(collection.keyCodec, key);
  }

  #assertReadable(collection: Any): void {
    this.#assertOpen();
    collection.assertOf(this.#client);
    collection.assertThere();
    this.#client.assertUsable();
    if (this.lost !== undefined) throw this.lost;
  }

  #assertOpen(): void {
    if (this.#isOver) throw new TypeError('the transaction is over: its function has returned');
  }

  #enter(collection: Any): number {
    return this.#orLostSync(() => this.#client.reader.enter(collection.id, this.offset));
  }

  #orLostSync<T>(read: () => T): T {
    try {
      return read();
    } catch (error) {
      this.#noteLost(error);
      throw error;
    }
  }

  async #orLost<T>(read: () => Promise<T>): Promise<T> {
    try {
      return await read();
    } catch (error) {
      this.#noteLost(error);
      throw error;
    }
  }

  #noteLost(error: unknown): void {
    if (error instanceof TidemarkError && error.code === 'TIDEMARK_HISTORY_LOST') this.lost = error;
  }

  #note(collection: Any, key: unknown, keyBytes: Buffer, offset: number | null): void {
    let points = this.#points.get(collection);
    if (points === undefined) {
      points = new Map();
      this.#points.set(collection, points);
    }
    points.set(keyBytes.toString('latin1'), { collection, key, keyBytes, offset });
  }

  // ---------------------------------------------------------------- the end

  /** Commits itself, when its function has returned. */
  override commit(): never {
    throw new TypeError('transact commits by itself, when its function returns');
  }

  /** @internal */
  override tryCommit(): never {
    return this.commit();
  }

  /** @internal The function has returned. */
  override end(): void {
    super.end();
    this.#isOver = true;
  }

  /** @internal */
  release(): void {
    this.#hold.release();
  }

  /** @internal Commits on condition that nothing read has changed; without writes there is nothing to commit. */
  async commitReads(durability: 'synced' | 'buffered' | undefined): Promise<Receipt | undefined> {
    if (this.lost !== undefined) throw this.lost;
    const client = this.#client;
    client.assertUsable();
    if (this.size === 0) return undefined;
    const sync = checkCommit(client, durability === undefined ? undefined : { durability });
    const conditions = this.#conditions();
    for (;;) {
      try {
        return await this.telling(client.line.commitSet(this.set, sync, conditions));
      } catch (error) {
        if (error === BESIDE_CONFLICT) {
          this.set.reopen();
          continue;
        }
        if (!(error instanceof TidemarkError)) throw error;
        if (error.code === 'TIDEMARK_CONFLICT') this.conflict = error;
        // Nothing was claimed.
        if (error.code !== 'TIDEMARK_BUSY') throw error;
      }
      await client.line.room();
    }
  }

  #conditions(): Conditions | undefined {
    if (this.#points.size === 0 && this.#ranges.length === 0) return undefined;
    const whole = this.#tooMany();
    const conditions = new Conditions(this.#client.reader, this.offset);
    for (const { id, name } of whole) conditions.addCollection(id, name, this.offset);
    let count = whole.size;
    for (const [collection, points] of this.#points) {
      if (whole.has(collection)) continue;
      const { id, name } = collection;
      for (const { key, keyBytes, offset } of points.values()) {
        conditions.addRow(id, name, key, keyBytes, offset);
        count++;
      }
    }
    for (const read of this.#ranges) {
      const { collection } = read;
      if (whole.has(collection)) continue;
      const bounds = boundsOf(read);
      if (bounds === undefined) continue;
      conditions.addRange(collection.id, collection.name, bounds.lower, bounds.upper);
      count++;
    }
    return count === 0 ? undefined : conditions;
  }

  /** Collections of which so much was read that one condition stands for all. */
  #tooMany(): Set<Any> {
    const bytes = new Map<Any, number>();
    let total = 0;
    const add = (collection: Any, n: number): void => {
      bytes.set(collection, (bytes.get(collection) ?? 0) + n);
      total += n;
    };
    for (const [collection, points] of this.#points) {
      for (const { keyBytes } of points.values())
        add(collection, CONDITION_BYTES + keyBytes.length);
    }
    for (const { collection, range, reached } of this.#ranges) {
      const { lower, upper } = range.bounds;
      const most = Math.max(lower.length, reached?.length ?? 0) + upper.length + 1;
      add(collection, CONDITION_BYTES + most);
    }
    const whole = new Set<Any>();
    if (total <= CONDITIONS_BYTES_MAX) return whole;
    for (const [collection, size] of [...bytes].toSorted((a, b) => b[1] - a[1])) {
      if (total <= CONDITIONS_BYTES_MAX) break;
      whole.add(collection);
      total -= size - CONDITION_BYTES;
    }
    return whole;
  }
}

/** The part of a range that was seen; undefined when that is none. */
function boundsOf({
  range,
  reached,
  isWhole,
}: RangeRead): { lower: Uint8Array; upper: Uint8Array | undefined } | undefined {
  const { reverse, lower, upper, upperOpen } = range.bounds;
  const top = upperOpen ? undefined : upper;
  if (isWhole) return { lower, upper: top };
  if (reached === undefined) return undefined;
  return reverse ? { lower: reached, upper: top } : { lower, upper: successor(reached) };
}

function ownEntry<K, V>(
  { valueCodec }: Collection<K, V>,
  { value }: OwnRow,
): { value: V; offset: undefined } | undefined {
  if (value === undefined) return undefined;
  // A copy: a codec may keep what it is given, and write to it.
  const lent = Buffer.from(value);
  return { value: decodeLent(valueCodec, lent, 0, lent.length), offset: undefined };
}

/** Rows of the store and the transaction's own, merged; walked once, with `for` or `for await`. */
export class ScopeIterable<T> implements IterableIterator<T>, AsyncIterable<T> {
  readonly #read: RangeRead;
  readonly #rows: RangeIterable<Buffer, Buffer, OwnRow>;
  readonly #own: readonly OwnRow[];
  readonly #hides: (key: Buffer) => boolean;
  readonly #assertOpen: () => void;
  readonly #make: (key: Buffer, value: Buffer) => T;
  #next: OwnRow | undefined;
  #at = 0;
  #left: number;
  #ended = false;

  /** @internal */
  constructor(
    read: RangeRead,
    rows: RangeIterable<Buffer, Buffer, OwnRow>,
    own: readonly OwnRow[],
    hides: (key: Buffer) => boolean,
    assertOpen: () => void,
    make: (key: Buffer, value: Buffer) => T,
  ) {
    this.#read = read;
    this.#rows = rows;
    this.#own = own;
    this.#hides = hides;
    this.#assertOpen = assertOpen;
    this.#make = make;
    this.#left = read.range.limit;
  }

  [Symbol.iterator](): this {
    return this;
  }

  next(): IteratorResult<T, undefined> {
    this.#assertOpen();
    if (this.#ended) return { done: true, value: undefined };
    if (this.#left <= 0) return this.return();
    const row = this.#merged();
    if (row === undefined) {
      this.#read.isWhole = true;
      return this.return();
    }
    this.#left--;
    this.#read.reached = row.key;
    // Copies: what the caller is given is the caller's.
    return { done: false, value: this.#make(Buffer.from(row.key), Buffer.from(row.value!)) };
  }

  return(): IteratorResult<T, undefined> {
    this.#ended = true;
    this.#rows.return();
    return { done: true, value: undefined };
  }

  /** The same rows, giving the event loop a turn now and then. */
  async *[Symbol.asyncIterator](): AsyncGenerator<T, undefined, undefined> {
    try {
      for (let i = 1; ; i++) {
        const next = this.next();
        if (next.done === true) return undefined;
        yield next.value;
        if (i % ROWS_PER_TURN === 0) await new Promise<void>((resolve) => setImmediate(resolve));
      }
    } finally {
      this.return();
    }
  }

  /** The next row that is there. */
  #merged(): OwnRow | undefined {
    for (;;) {
      const stored = (this.#next ??= this.#rows.next().value);
      const own = this.#own[this.#at];
      if (stored === undefined && own === undefined) return undefined;
      let order = 0;
      if (stored === undefined) order = 1;
      else if (own === undefined) order = -1;
      else order = compareBytes(stored.key, own.key) * (this.#read.range.bounds.reverse ? -1 : 1);
      if (order <= 0) this.#next = undefined;
      if (order >= 0) this.#at++;
      if (order < 0) {
        if (!this.#hides(stored!.key)) return stored;
      } else if (own.value !== undefined) {
        return own;
      }
    }
  }
}

const ROWS_PER_TURN = 256;
