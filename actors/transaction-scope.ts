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
import type { CommitTold } from './commit-line.ts';
import { Conditions } from './conditions.ts';
import { buffer, decodeLent } from './encodings.ts';
import { BESIDE_CONFLICT } from './grouped-conditions.ts';
import { successor } from './key-range.ts';
import { countOf } from './multiset.ts';
import type { Multiset } from './multiset.ts';
import { OwnWrites } from './own-writes.ts';
import type { OwnRow } from './own-writes.ts';
import type { Pair } from './pair-reader.ts';
import { RangeIterable, checkRange } from './range.ts';
import type { CheckedRange, Hold, RangeOptions } from './range.ts';
import { ROW_ABSENT } from './reader.ts';
import type { TransactShared } from './transact.ts';
import { Transaction } from './transaction.ts';

/** A range of a scope: its time is the scope's. */
export type ScopeRangeOptions<K> = Omit<RangeOptions<K>, 'asOf' | 'snapshot'>;

type Any = Collection<any, any>;
type AnyMultiset = Multiset<any, any>;
type Readable<K, V> = Collection<K, V> | Multiset<K, V>;

/** A range as far as it was read. */
type RangeRead = {
  readonly collection: Any | AnyMultiset;
  readonly range: CheckedRange;
  /** Key of the last row that was given out. */
  reached: Buffer | undefined;
  /** Seen to its end. */
  isWhole: boolean;
};

/** Conditions beyond this give way to one on their whole collection: coarser, and never wrong. */
const CONDITIONS_BYTES_MAX: number = pageBytes / 2;
/** Rows among which the next one is looked for one by one. */
const SCANNED_ROWS_MAX = 16;

export class TransactionScope extends Transaction {
  /** The offset that reads see, itself included. */
  readonly offset: number;
  /** @internal Why it can be read no more: history moved on. */
  lost: TidemarkError | undefined;
  /** @internal What its commit was refused with. */
  conflict: TidemarkError | undefined;
  readonly #client: Client;
  readonly #hold: Hold;
  /** Once something is read that might have been written here. */
  #own: OwnWrites | undefined;
  /** Rows that were read. */
  readonly #points: Conditions;
  /** Of these by collection and key, those after the first few. */
  #seen: Set<string> | undefined;
  /** Keys of multisets that were read, by collection and key. */
  #seenPairs: Set<string> | undefined;
  #ranges: RangeRead[] | undefined;
  /** The rows of the store in each; each holds the time on its own, until it ends. */
  #rows: RangeIterable<Buffer, Buffer, OwnRow>[] | undefined;
  /** So much was read of these that one condition on all of a collection stands for it. */
  #whole: Set<number> | undefined;
  #areRangesAdded = false;
  #isOver = false;

  /** @internal Takes a share of the hold on the newest time, which is given back with `release`. */
  constructor(client: Client, shared: TransactShared) {
    // Throws unless the engine can be used: before the share is taken, which nobody would give back.
    super(client);
    this.#client = client;
    this.#hold = shared.holdNewest(client);
    this.offset = this.#hold.T;
    this.#points = new Conditions(client.reader, this.offset, client.spareBuffers);
  }

  // ---------------------------------------------------------------- points

  /** The value of a key, or undefined; of a multiset its values, each with its count. */
  getSync<K, V>(collection: Collection<K, V>, key: NoInfer<K>): V | undefined;
  getSync<K, V>(collection: Multiset<K, V>, key: NoInfer<K>): [V, number][];
  getSync<K, V>(collection: Readable<K, V>, key: NoInfer<K>): V | undefined | [V, number][] {
    if (collection.kind === 'keyed') return this.getEntrySync(collection, key)?.value;
    return decodedPairs(collection, this.#pairsSync(collection, key));
  }

  /** True when the key has a value; of a multiset: one with a count other than 0. */
  hasSync<K, V>(collection: Readable<K, V>, key: NoInfer<K>): boolean {
    if (collection.kind === 'keyed') return this.getEntrySync(collection, key) !== undefined;
    return this.#pairsSync(collection, key).length > 0;
  }

  /** The counts of all values of a multiset's key, added up. */
  countSync<K, V>(collection: Multiset<K, V>, key: NoInfer<K>): number {
    return countOf(this.#pairsSync(collection, key));
  }

  /** As `getSync`, in the order of the keys. */
  getManySync<K, V>(collection: Collection<K, V>, keys: readonly NoInfer<K>[]): (V | undefined)[];
  getManySync<K, V>(collection: Multiset<K, V>, keys: readonly NoInfer<K>[]): [V, number][][];
  getManySync<K, V>(collection: Readable<K, V>, keys: readonly NoInfer<K>[]): unknown[] {
    return keys.map((key) => this.getSync(collection as Collection<K, V>, key));
  }

  /** The value, and the offset of the row's last change; that of a row written here is not known yet: undefined. */
  getEntrySync<K, V>(
    collection: Collection<K, V>,
    key: NoInfer<K>,
  ): { value: V; offset: number | undefined } | undefined {
    const length = this.#encode(collection, key);
    const { keyBytes, reader } = this.#client;
    const own = this.#ownRow(collection, length);
    if (own !== undefined) return ownEntry(collection, own);
    const { id, valueCodec } = collection;
    let value: Buffer;
    let offset: number;
    const block = this.#enter(collection);
    try {
      const outcome = reader.find(id, block, keyBytes, length, false);
      const isAbsent = outcome === ROW_ABSENT;
      this.#note(collection, key, keyBytes, length, isAbsent ? null : reader.time);
      if (isAbsent) return undefined;
      offset = reader.time;
      const { valueBytes, valueStart, valueEnd } = reader;
      if (collection.valuesAreOurs) {
        return { value: decodeLent(valueCodec, valueBytes, valueStart, valueEnd), offset };
      }
      value = Buffer.allocUnsafe(valueEnd - valueStart);
      value.set(valueBytes.subarray(valueStart, valueEnd));
    } finally {
      reader.leave();
    }
    // A codec of the caller's runs with nothing held, and may keep what it is given.
    return { value: decodeLent(valueCodec, value, 0, value.length), offset };
  }

  /** As `getSync`. Memory answers at once; the disk is read off the event loop. */
  get<K, V>(collection: Collection<K, V>, key: NoInfer<K>): Promise<V | undefined>;
  get<K, V>(collection: Multiset<K, V>, key: NoInfer<K>): Promise<[V, number][]>;
  async get<K, V>(
    collection: Readable<K, V>,
    key: NoInfer<K>,
  ): Promise<V | undefined | [V, number][]> {
    if (collection.kind === 'keyed') return this.#getRow(collection, key);
    return decodedPairs(collection, await this.#pairs(collection, key));
  }

  async #getRow<K, V>(collection: Collection<K, V>, key: K): Promise<V | undefined> {
    const client = this.#client;
    const length = this.#encode(collection, key);
    const own = this.#ownRow(collection, length);
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
    this.#note(collection, key, keyOwn, length, isAbsent ? null : found.time);
    if (isAbsent) return undefined;
    return decodeLent(collection.valueCodec, found.value, found.start, found.end);
  }

  /** As `hasSync`. */
  async has<K, V>(collection: Readable<K, V>, key: NoInfer<K>): Promise<boolean> {
    if (collection.kind === 'keyed') return (await this.#getRow(collection, key)) !== undefined;
    return (await this.#pairs(collection, key)).length > 0;
  }

  /** As `countSync`. */
  async count<K, V>(collection: Multiset<K, V>, key: NoInfer<K>): Promise<number> {
    return countOf(await this.#pairs(collection, key));
  }

  /** As `getManySync`. */
  getMany<K, V>(
    collection: Collection<K, V>,
    keys: readonly NoInfer<K>[],
  ): Promise<(V | undefined)[]>;
  getMany<K, V>(collection: Multiset<K, V>, keys: readonly NoInfer<K>[]): Promise<[V, number][][]>;
  async getMany<K, V>(collection: Readable<K, V>, keys: readonly NoInfer<K>[]): Promise<unknown[]> {
    return Promise.all(keys.map((key) => this.get(collection as Collection<K, V>, key)));
  }

  // ---------------------------------------------------------------- points of multisets

  #pairsSync<K>(collection: Multiset<K, any>, key: K): Pair[] {
    const own = this.#pairsKey(collection, key);
    const { pairs } = this.#client;
    const stored = this.#orLostSync(() => pairs.find(collection.id, own, this.offset, false)!);
    return this.#withOwn(collection, own, stored);
  }

  async #pairs<K>(collection: Multiset<K, any>, key: K): Promise<Pair[]> {
    const client = this.#client;
    const own = this.#pairsKey(collection, key);
    const stored = await this.#orLost(() =>
      client.pairs.findLater(
        collection.id,
        own,
        this.offset,
        (T) => client.hold(T),
        (T) => client.release(T),
      ),
    );
    this.#assertOpen();
    return this.#withOwn(collection, own, stored);
  }

  /** The key's own bytes, whose change from here on is a conflict: as a range of one key. */
  #pairsKey<K>(collection: Multiset<K, any>, key: K): Buffer {
    this.#assertOfHere(collection);
    const client = this.#client;
    const length = client.encodeKey(collection.keyCodec, key);
    const own = Buffer.from(client.keyBytes.subarray(0, length));
    const name = `${collection.id} ${own.toString('latin1')}`;
    const seen = (this.#seenPairs ??= new Set());
    if (seen.has(name)) return own;
    seen.add(name);
    const bounds = { lower: own, upper: successor(own), upperOpen: false, reverse: false };
    const range = { bounds, limit: Infinity };
    (this.#ranges ??= []).push({ collection, range, reached: undefined, isWhole: true });
    return own;
  }

  #withOwn(collection: AnyMultiset, key: Buffer, stored: Pair[]): Pair[] {
    if (this.size === 0) return stored;
    const { isRemoved, updates } = this.#ownWrites().pairsOf(collection.id, key);
    if (!isRemoved && updates.length === 0) return stored;
    return this.#client.pairs.summed([...(isRemoved ? [] : stored), ...updates]);
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
    (this.#ranges ??= []).push(read);
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
    (this.#rows ??= []).push(rows);
    const writes = this.#ownWrites();
    const own = writes.within(collection.id, range.bounds);
    if (range.bounds.reverse) own.reverse();
    const hides = writes.hider(collection.id);
    const assertOpen = (): void => this.#assertOpen();
    return new ScopeIterable(read, rows, own, hides, assertOpen, make);
  }

  // ---------------------------------------------------------------- what was read

  #encode<K>(collection: Collection<K, any>, key: K): number {
    this.#assertReadable(collection);
    return this.#client.encodeKey(collection.keyCodec, key);
  }

  #assertReadable(collection: Any): void {
    this.#assertOfHere(collection);
    // Only code without types comes to it.
    if ((collection.kind as string) === 'keyed') return;
    const can = 'of those a transact reads keys with getSync, hasSync, countSync, get, has, count';
    throw new TypeError(`${collection.name} is a multiset: ${can}`);
  }

  #assertOfHere(collection: Any | AnyMultiset): void {
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
    try {
      return this.#client.reader.enterHeld(collection.id, this.offset);
    } catch (error) {
      this.#noteLost(error);
      throw error;
    }
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

  #ownWrites(): OwnWrites {
    return (this.#own ??= new OwnWrites(this.set));
  }

  /** What was written here to the row whose key was encoded last. */
  #ownRow(collection: Any, length: number): OwnRow | undefined {
    if (this.size === 0) return undefined;
    return this.#ownWrites().find(collection.id, this.#client.keyBytes, length);
  }

  /** Remembers that a row was read; `offset` is that of its last change, null: it was absent. */
  #note(
    collection: Any,
    key: unknown,
    keyBytes: Uint8Array,
    length: number,
    offset: number | null,
  ): void {
    const points = this.#points;
    const { id, name } = collection;
    if (this.#whole?.has(id) === true) return;
    if (points.count < SCANNED_ROWS_MAX) {
      if (points.hasRow(id, keyBytes, length)) return;
    } else {
      this.#seen ??= new Set();
      const text = Buffer.from(keyBytes.buffer, keyBytes.byteOffset, length).toString('latin1');
      const row = `${id} ${text}`;
      if (this.#seen.has(row)) return;
      this.#seen.add(row);
    }
    points.addRow(id, name, key, keyBytes, length, offset);
    if (points.size > CONDITIONS_BYTES_MAX) this.#widen();
  }

  #widen(): void {
    this.#whole ??= new Set();
    this.#whole.add(this.#points.widen());
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
    // Walks that were left, or whose codec threw, go no further.
    if (this.#rows !== undefined) for (const rows of this.#rows) rows.return();
  }

  /** @internal Once. */
  release(): void {
    this.set.release();
    this.#points.release();
    this.#hold.release();
  }

  /**
   * @internal Commits on condition that nothing read has changed, and `told` is told how that ended; false:
   * without writes there is nothing to commit. What it throws, or tells of, is for `mayComeAgain`.
   */
  commitReads(durability: 'synced' | 'buffered' | undefined, told: CommitTold): boolean {
    if (this.lost !== undefined) throw this.lost;
    const client = this.#client;
    if (this.size === 0) {
      client.assertUsable();
      return false;
    }
    // The line looks whether the engine can be used.
    const sync = checkCommit(client, durability === undefined ? undefined : { durability });
    client.line.commitTold(this.set, sync, this.#conditions(), told);
    return true;
  }

  /** @internal Whether a commit that failed so is to be tried again as it is: nothing was claimed. */
  mayComeAgain(error: unknown): boolean {
    if (error === BESIDE_CONFLICT) {
      this.set.reopen();
      return true;
    }
    if (!(error instanceof TidemarkError)) return false;
    if (error.code === 'TIDEMARK_CONFLICT') this.conflict = error;
    return error.code === 'TIDEMARK_BUSY';
  }

  #conditions(): Conditions | undefined {
    const points = this.#points;
    if (!this.#areRangesAdded) this.#addRanges();
    return points.count === 0 ? undefined : points;
  }

  /** How far they were read is known at the end. */
  #addRanges(): void {
    this.#areRangesAdded = true;
    if (this.#ranges === undefined) return;
    const points = this.#points;
    for (const read of this.#ranges) {
      const { id, name } = read.collection;
      const bounds = boundsOf(read);
      if (bounds === undefined || this.#whole?.has(id) === true) continue;
      points.addRange(id, name, bounds.lower, bounds.upper);
      if (points.size > CONDITIONS_BYTES_MAX) this.#widen();
    }
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
  // An upper bound that is the empty key would be taken for none.
  if (top !== undefined && compareBytes(lower, top) >= 0) return undefined;
  if (isWhole) return { lower, upper: top };
  if (reached === undefined) return undefined;
  return reverse ? { lower: reached, upper: top } : { lower, upper: successor(reached) };
}

function decodedPairs<V>({ valueCodec }: Multiset<any, V>, pairs: readonly Pair[]): [V, number][] {
  return pairs.map(({ value, diff }) => [decodeLent(valueCodec, value, 0, value.length), diff]);
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
