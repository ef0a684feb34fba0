/**
 * What one piece of the log changed in one collection: per transaction the last change of each key (of a
 * multiset the sum for each key and value), the row that was there before, and both decoded, each once
 * for all who ask. Old rows are point reads at the offset before, from memory at once, else from the
 * disk without holding the thread. Belongs to its chunk; used by feeds, on their thread.
 */
import { NO_BYTES, compareAt, compareBytes, equalAt } from '../core/base/bytes.ts';
import { copyAt } from '../core/base/copy.ts';
import { keyOrderMax, orderKeys } from '../core/base/key-order.ts';
import { KiB, MiB } from '../core/base/limits.ts';
import { OP_DELETE, OP_DELETE_RANGE, OP_PUT, OP_UPDATE } from '../core/base/update.ts';
import type { LogChunk } from '../core/log/follower.ts';
import { PayloadWalker } from '../core/log/payload.ts';
import type { Client } from './client.ts';
import { decodeLent } from './encodings.ts';
import type { Codec } from './encodings.ts';
import type { FeedCounts } from './feed-hub.ts';
import type { ByteRange } from './key-range.ts';
import { OldReads } from './old-rows.ts';
import type { AskedRows } from './old-rows.ts';
import { ROW_ABSENT, ROW_ON_DISK } from './reader.ts';

/** A row that came (diff above 0) or went (below 0). Shared by all who follow on this thread: not to be changed. */
export type Update<K, V> = { readonly key: K; readonly value: V; readonly diff: number };

const OLD_UNREAD = 0;
const OLD_ABSENT = 1;
const OLD_THERE = 2;
/** The same bytes were there: nothing has changed. */
const OLD_SAME = 3;
const OLD_PENDING = 4;

/** What is told of a change: the row that was there, the one that came. */
const TOLD_BEFORE = 1;
const TOLD_AFTER = 2;

/** Bytes of old rows that are read at once; those of one transaction are, whatever their size. */
const OLD_BYTES_PER_LOAD: number = 2 * MiB;
/** Old rows are kept for other followers up to this, beyond the log's own bytes. */
const OLD_BYTES_KEPT_MAX: number = 4 * MiB;
const SLAB_BYTES: number = 16 * KiB;
const NO_SLAB: Buffer = Buffer.alloc(0);
const PLACE_NUMBERS = 3;
const NO_PLACES: Uint32Array = new Uint32Array(0);
/** Changes that are looked up in one visit; where turns are long, visits go on for so long without one. */
const CHANGES_PER_VISIT = 1_024;
const VISITS_MS_MAX = 4;
/** Filled and emptied within a visit. */
const ORDER: Uint32Array = new Uint32Array(keyOrderMax);
/** Operations of a transaction among which a key is looked for one by one. */
const SCAN_MAX = 8;

/** Of a multiset: ranges, and rows in them that a transaction added after it removed the ranges, by name. */
export type AddedRows = {
  readonly ranges: readonly ByteRange[];
  readonly rows: Map<string, Update<unknown, unknown>>;
};

/** Rows of a visit that memory knows nothing of: change, time, key. */
class MissingRows {
  readonly numbers: number[] = [];
  readonly times: number[] = [];
  readonly starts: number[] = [];
  readonly ends: number[] = [];
  readonly order: Uint32Array = ORDER;

  get count(): number {
    return this.numbers.length;
  }

  add(number: number, time: number, start: number, end: number): void {
    this.numbers.push(number);
    this.times.push(time);
    this.starts.push(start);
    this.ends.push(end);
  }

  clear(): void {
    this.numbers.length = 0;
    this.times.length = 0;
    this.starts.length = 0;
    this.ends.length = 0;
  }
}

export class ChunkChanges implements AskedRows {
  readonly collection: number;
  /** By transaction: the ranges that it removed, whose rows are not among its changes. */
  readonly #ranges: Map<number, ByteRange[]> = new Map();
  readonly #client: Client;
  readonly #counts: FeedCounts;
  readonly bytes: Buffer;
  /** Transactions that changed something. */
  transactions = 0;
  /** Per transaction: its offset, and its first change. */
  readonly offsets: Float64Array;
  readonly #firsts: Uint32Array;
  /** Changes. */
  #count = 0;
  /** Per change: kind, key start, value start, value end, diff. */
  readonly #kinds: Uint8Array;
  readonly #keys: Uint32Array;
  readonly #values: Uint32Array;
  readonly #ends: Uint32Array;
  readonly #diffs: Float64Array;
  /** Per change: OLD_*. */
  readonly #old: Uint8Array;
  /** Per change where the old value lies: number of the slab, start, end. Made for the first that is kept. */
  #oldPlaces: Uint32Array = NO_PLACES;
  /** Old values in the order in which they came, how many of each slab are kept, bytes used of the last. */
  readonly #slabs: Buffer[] = [];
  readonly #slabRows: number[] = [];
  #slabUsed = 0;
  /** Bytes of all old values that are kept. */
  oldBytes = 0;
  /** Of the load under way: how much may still be kept, and the changes that are needed in any case. */
  #oldBytesLeft = 0;
  #firstEnd = 0;
  /** Below this transaction the last `loadOld` found all that it asked for. */
  oldUpper = 0;
  /** Ends with all old rows that are on their way from the disk, found or not. */
  #pending: Promise<void> | undefined;
  /** All old rows in the range are being looked up with those of other pieces, until it ends. */
  #ahead: { readonly range: ByteRange | undefined; readonly ended: Promise<void> } | undefined;
  /** Decoded with these codecs, those of who asked first. */
  #keyCodec: Codec<unknown> | undefined;
  #valueCodec: Codec<unknown> | undefined;
  readonly #before: (Update<unknown, unknown> | undefined)[] = [];
  readonly #after: (Update<unknown, unknown> | undefined)[] = [];
  /** Bytes of the updates that were collected last as an array of their own. */
  bytesTold = 0;
  /** Of the change that was decoded last. */
  #rowBefore: Update<unknown, unknown> | undefined;
  #rowAfter: Update<unknown, unknown> | undefined;

  /** `operations`: how many of the piece are of the collection; each is of one transaction. */
  constructor(
    client: Client,
    counts: FeedCounts,
    log: LogChunk,
    collection: number,
    operations: number,
  ) {
    this.#client = client;
    this.#counts = counts;
    this.bytes = log.bytes;
    this.collection = collection;
    this.offsets = new Float64Array(operations);
    this.#firsts = new Uint32Array(operations + 1);
    this.#kinds = new Uint8Array(operations);
    this.#keys = new Uint32Array(operations);
    this.#values = new Uint32Array(operations);
    this.#ends = new Uint32Array(operations);
    this.#diffs = new Float64Array(operations);
    const walker = new PayloadWalker();
    for (let r = 0; r < log.records; r++) {
      walker.start(log.bytes, log.payloadOffsets[r], log.txCounts[r]);
      while (walker.nextTransaction()) this.#add(walker, log.firstOffsets[r] + walker.txIndex);
    }
    this.#firsts[this.transactions] = this.#count;
    this.#old = new Uint8Array(this.#count);
    counts.changes += this.#count;
  }

  // ---------------------------------------------------------------- what changed

  #add(walker: PayloadWalker, offset: number): void {
    const first = this.#count;
    let byName: Map<string, number> | undefined;
    while (walker.nextOperation()) {
      const { kind } = walker;
      if (walker.collection !== this.collection) continue;
      if (kind === OP_DELETE_RANGE) {
        this.#addRange(walker, first);
        continue;
      }
      if (kind !== OP_PUT && kind !== OP_DELETE && kind !== OP_UPDATE) continue;
      const { keyOffset: key, valueOffset: value } = walker;
      const end = value + walker.valueBytes;
      const known = this.#count;
      let at = -1;
      if (known - first <= SCAN_MAX) {
        for (let i = first; i < known && at < 0; i++) {
          if (this.#isNamed(i, kind, key, value, end)) at = i;
        }
      } else {
        byName ??= this.#nameAll(first);
        at = byName.get(this.#nameOf(kind, key, value, end)) ?? -1;
      }
      let { diff } = walker;
      if (kind === OP_UPDATE && at >= 0) {
        const sum = this.#diffs[at] + diff;
        // What is too large for a sum is told in two.
        if (Number.isSafeInteger(sum)) diff = sum;
        else at = -1;
      }
      if (at < 0) {
        at = this.#count++;
        byName?.set(this.#nameOf(kind, key, value, end), at);
      }
      this.#kinds[at] = kind;
      this.#keys[at] = key;
      this.#values[at] = value;
      this.#ends[at] = end;
      this.#diffs[at] = diff;
    }
    if (this.#count === first && !this.#ranges.has(this.transactions)) return;
    this.offsets[this.transactions] = offset;
    this.#firsts[this.transactions++] = first;
  }

  /** The range is removed with what the transaction wrote there before, from change `first` on. */
  #addRange({ keyOffset, keyBytes, valueOffset, valueBytes }: PayloadWalker, first: number): void {
    const bytes = this.bytes;
    const range: ByteRange = {
      lower: bytes.subarray(keyOffset, keyOffset + keyBytes),
      upper: bytes.subarray(valueOffset, valueOffset + valueBytes),
      upperOpen: valueBytes === 0,
    };
    for (let i = first; i < this.#count; i++) {
      if (!this.#isWithin(i, range)) continue;
      if (this.#kinds[i] === OP_UPDATE) {
        this.#diffs[i] = 0;
        continue;
      }
      this.#kinds[i] = OP_DELETE;
      this.#ends[i] = this.#values[i];
      this.#diffs[i] = -1;
    }
    const at = this.transactions;
    this.#ranges.set(at, unite([...(this.#ranges.get(at) ?? []), range]));
  }

  get hasRanges(): boolean {
    return this.#ranges.size > 0;
  }

  /** Offset of the first transaction at or above one that removed a range, Infinity if none did. */
  rangeAt(offset: number): number {
    let found = Infinity;
    for (const t of this.#ranges.keys()) {
      if (this.offsets[t] >= offset && this.offsets[t] < found) found = this.offsets[t];
    }
    return found;
  }

  /** What transaction `t` removed of a range, in key order, disjoint. */
  removedOf(t: number, within: ByteRange | undefined): ByteRange[] {
    const ranges = this.#ranges.get(t) ?? [];
    if (within === undefined) return ranges;
    return ranges.flatMap((range) => intersect(range, within) ?? []);
  }

  /** Keys that transaction `t` changes by name. */
  namesOf(t: number): Set<string> {
    const names = new Set<string>();
    for (let i = this.#firsts[t]; i < this.#firsts[t + 1]; i++) {
      names.add(this.bytes.toString('latin1', this.#keys[i], this.#values[i]));
    }
    return names;
  }

  /** Of a multiset a value is part of the row's name. */
  #isNamed(i: number, kind: number, key: number, value: number, end: number): boolean {
    const own = this.#keys[i];
    const keyBytes = value - key;
    if (this.#values[i] - own !== keyBytes) return false;
    if (kind === OP_UPDATE) {
      return equalAt(this.bytes, own, this.#ends[i] - own, this.bytes, key, end - key);
    }
    return equalAt(this.bytes, own, keyBytes, this.bytes, key, keyBytes);
  }

  #nameAll(first: number): Map<string, number> {
    const byName = new Map<string, number>();
    for (let i = first; i < this.#count; i++) {
      const name = this.#nameOf(this.#kinds[i], this.#keys[i], this.#values[i], this.#ends[i]);
      byName.set(name, i);
    }
    return byName;
  }

  #nameOf(kind: number, key: number, value: number, end: number): string {
    if (kind === OP_UPDATE) return pairName(this.bytes, key, value, end);
    return this.bytes.toString('latin1', key, value);
  }

  /** Index of the first transaction at or above an offset. */
  transactionAt(offset: number): number {
    const { offsets } = this;
    let low = 0;
    let high = this.transactions;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (offsets[middle] < offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Changes of all transactions. */
  get count(): number {
    return this.#count;
  }

  /** Changes before that transaction: a measure of work. */
  changesBefore(transaction: number): number {
    return this.#firsts[transaction];
  }

  /** Copies keys that transactions [from, to) change within the range; returns their bytes. */
  addKeys(from: number, to: number, range: ByteRange, keys: Map<string, Buffer>): number {
    let bytes = 0;
    const last = this.transactionAt(to);
    for (let i = this.#firsts[this.transactionAt(from)]; i < this.#firsts[last]; i++) {
      if (!this.#isWithin(i, range)) continue;
      const name = this.bytes.toString('latin1', this.#keys[i], this.#values[i]);
      if (keys.has(name)) continue;
      const key = Buffer.from(name, 'latin1');
      keys.set(name, key);
      bytes += key.length;
    }
    return bytes;
  }

  #isWithin(i: number, range: ByteRange | undefined): boolean {
    if (range === undefined) return true;
    const bytes = this.bytes;
    const at = this.#keys[i];
    const length = this.#values[i] - at;
    if (compareAt(bytes, at, length, range.lower, 0, range.lower.length) < 0) return false;
    return range.upperOpen || compareAt(bytes, at, length, range.upper, 0, range.upper.length) < 0;
  }

  // ---------------------------------------------------------------- what was there before

  /**
   * Looks up the old rows of transactions [from, to) in the range; undefined when those of the first are
   * known now, and `oldUpper` says of which others; else a promise, after which to ask again. Requires:
   * from < to, and their times are held.
   */
  loadOld(from: number, to: number, range: ByteRange | undefined): Promise<void> | undefined {
    this.oldUpper = this.#knownUpper(from, to, range);
    if (this.oldUpper > from) return undefined;
    // What is on its way as a whole is not taken to pieces.
    const ahead = this.#ahead;
    if (ahead !== undefined && ahead.range === range) return ahead.ended;
    const reads = new OldReads(this.#client, this.collection);
    this.#oldBytesLeft = OLD_BYTES_PER_LOAD;
    this.#firstEnd = this.#firsts[from + 1];
    try {
      this.oldUpper = this.#look(from, to, range, reads);
    } catch (error) {
      reads.giveUp();
      throw error;
    }
    if (reads.count > 0) return this.#begin(reads, from, to, range);
    // What others asked for may fail for reasons of theirs: who still misses something asks himself.
    return this.oldUpper === from ? this.#pending : undefined;
  }

  /**
   * Asks memory for all old rows in the range, in turns, and adds to `reads` those that only the disk knows.
   * Who asks for one of them meanwhile waits until `ended`, which does not reject: by then `reads` has run, or
   * was given up. Requires: their times are held.
   */
  async gather(reads: OldReads, range: ByteRange | undefined, ended: Promise<void>): Promise<void> {
    this.#oldBytesLeft = OLD_BYTES_PER_LOAD;
    this.#firstEnd = 0;
    const ahead = { range, ended };
    this.#ahead = ahead;
    void ended.then(() => {
      if (this.#ahead === ahead) this.#ahead = undefined;
    });
    this.#join(ended);
    await this.#lookFrom(0, range, reads);
  }

  #begin(reads: OldReads, from: number, to: number, range: ByteRange | undefined): Promise<void> {
    const own = this.#readAhead(reads, from, to, range);
    // What goes wrong is for who asked for it.
    this.#join(own.catch(() => {}));
    return own;
  }

  /** Who waits for all that is on its way waits for this too. */
  #join(ended: Promise<void>): void {
    const before = this.#pending;
    const all: Promise<void> =
      before === undefined ? ended : Promise.all([before, ended]).then(() => undefined);
    this.#pending = all;
    void all.then(() => {
      if (this.#pending === all) this.#pending = undefined;
    });
  }

  /** The first of transactions [from, to) of which something is not known; `to` when all is. */
  #knownUpper(from: number, to: number, range: ByteRange | undefined): number {
    for (let t = from; t < to; t++) {
      for (let i = this.#firsts[t]; i < this.#firsts[t + 1]; i++) {
        const state = this.#old[i];
        if (state === OLD_PENDING) return t;
        if (state === OLD_UNREAD && this.#isWithin(i, range)) return t;
      }
    }
    return to;
  }

  /**
   * Asks memory for the old rows of transactions [from, to), and notes what only the disk knows. Returns
   * below which transaction they are all known or noted.
   */
  #look(from: number, to: number, range: ByteRange | undefined, reads: OldReads): number {
    const client = this.#client;
    let known = -1;
    let entered = -1;
    const noted = reads.count;
    const missing = new MissingRows();
    try {
      for (let t = from; t < to; t++) {
        if (t > from && this.#oldBytesLeft <= 0) {
          to = t;
          break;
        }
        const T = this.offsets[t] - 1;
        for (let i = this.#firsts[t]; i < this.#firsts[t + 1]; i++) {
          const state = this.#old[i];
          if (state !== OLD_UNREAD) {
            if (state === OLD_PENDING && known < 0) known = t;
            continue;
          }
          if (!this.#isWithin(i, range)) continue;
          if (this.#kinds[i] === OP_UPDATE || T < 0) {
            this.#old[i] = OLD_ABSENT;
            continue;
          }
          if (entered < 0) {
            client.hold(T);
            entered = T;
            try {
              client.feeds.old.enter(this.collection, T);
            } catch (error) {
              client.release(T);
              entered = -1;
              throw error;
            }
          }
          if (this.#isInMemory(i, T)) continue;
          missing.add(i, T, this.#keys[i], this.#values[i]);
          if (missing.count === keyOrderMax) this.#locate(missing, reads);
        }
      }
      if (missing.count > 0) this.#locate(missing, reads);
    } finally {
      if (entered >= 0) {
        if (reads.count > noted) reads.pin();
        client.feeds.old.leave();
        client.release(entered);
      }
    }
    return known < 0 ? to : known;
  }

  /** What memory says of the row before a change, if it says something. */
  #isInMemory(i: number, T: number): boolean {
    const { old } = this.#client.feeds;
    this.#counts.oldRowsRead++;
    const start = this.#keys[i];
    const outcome = old.find(this.bytes, start, this.#values[i] - start, T);
    if (outcome === ROW_ON_DISK) return false;
    if (outcome === ROW_ABSENT) this.#old[i] = OLD_ABSENT;
    else this.#setOld(i, old.valueBytes, old.valueStart, old.valueEnd);
    return true;
  }

  /** Notes where on the disk the rows may be, in the order of their keys. */
  #locate(missing: MissingRows, reads: OldReads): void {
    const { old } = this.#client.feeds;
    const { bytes } = this;
    const { numbers, times, starts, ends, count } = missing;
    orderKeys(bytes, starts, ends, count, missing.order);
    for (let n = 0; n < count; n++) {
      const at = missing.order[n];
      const [i, T, start] = [numbers[at], times[at], starts[at]];
      if (old.locate(bytes, start, ends[at] - start, T, reads, false)) {
        this.#old[i] = OLD_PENDING;
        reads.add(this, i, T, old);
      } else {
        this.#old[i] = OLD_ABSENT;
      }
    }
    missing.clear();
  }

  /** Since the disk has to be asked: for the whole piece at once. */
  async #readAhead(
    reads: OldReads,
    from: number,
    to: number,
    range: ByteRange | undefined,
  ): Promise<void> {
    const client = this.#client;
    const T = Math.max(0, this.offsets[from] - 1);
    client.hold(T);
    try {
      await this.#lookFrom(to, range, reads);
      this.#counts.oldRowsFromDisk += reads.count;
      if (reads.count > 0) await reads.run();
    } finally {
      reads.giveUp();
      client.release(T);
    }
  }

  /** Asks memory for the old rows from transaction `at` on, in turns. */
  async #lookFrom(at: number, range: ByteRange | undefined, reads: OldReads): Promise<void> {
    const client = this.#client;
    const { clock } = client.context;
    while (at < this.transactions && this.#oldBytesLeft > 0) {
      await client.turn();
      client.assertUsable();
      const startedAtMs = clock.ticksMs();
      do {
        const upper = this.#endOfVisit(at, CHANGES_PER_VISIT);
        this.#look(at, upper, range, reads);
        at = upper;
      } while (
        at < this.transactions &&
        this.#oldBytesLeft > 0 &&
        clock.ticksMs() - startedAtMs < VISITS_MS_MAX
      );
    }
  }

  /** The transaction after `t` and so many changes. */
  #endOfVisit(t: number, changes: number): number {
    const first = this.#firsts[t];
    let to = t + 1;
    while (to < this.transactions && this.#firsts[to] - first < changes) to++;
    return to;
  }

  // Who asks the disk for rows (old-rows.ts) is told their keys, and tells what was there.

  keyAt(i: number): number {
    return this.#keys[i];
  }

  keyEndAt(i: number): number {
    return this.#values[i];
  }

  answer(i: number, bytes: Uint8Array | undefined, start: number, end: number): void {
    if (this.#old[i] !== OLD_PENDING) return;
    // Enough for now: what the first transaction does not need is read when its turn comes.
    if (this.#oldBytesLeft <= 0 && i >= this.#firstEnd) this.#old[i] = OLD_UNREAD;
    else if (bytes === undefined) this.#old[i] = OLD_ABSENT;
    else this.#setOld(i, bytes, start, end);
  }

  giveUp(i: number): void {
    if (this.#old[i] === OLD_PENDING) this.#old[i] = OLD_UNREAD;
  }

  #setOld(i: number, bytes: Uint8Array, start: number, end: number): void {
    const value = this.#values[i];
    const length = this.#ends[i] - value;
    if (
      this.#kinds[i] === OP_PUT &&
      equalAt(bytes, start, end - start, this.bytes, value, length)
    ) {
      this.#old[i] = OLD_SAME;
      return;
    }
    const bytesOld = end - start;
    this.#oldBytesLeft -= bytesOld;
    this.oldBytes += bytesOld;
    this.#keepOld(i, bytes, start, bytesOld);
    this.#old[i] = OLD_THERE;
  }

  /** Copies an old value behind the last one. */
  #keepOld(i: number, bytes: Uint8Array, start: number, length: number): void {
    if (this.#oldPlaces.length === 0)
      this.#oldPlaces = new Uint32Array(this.#count * PLACE_NUMBERS);
    const slabs = this.#slabs;
    if (slabs.length === 0 || length > slabs[slabs.length - 1].length - this.#slabUsed) {
      slabs.push(Buffer.allocUnsafe(Math.max(length, SLAB_BYTES)));
      this.#slabRows.push(0);
      this.#slabUsed = 0;
    }
    const last = slabs.length - 1;
    const slab = slabs[last];
    const at = this.#slabUsed;
    copyAt(bytes, start, length, slab, at);
    this.#slabUsed = at + length;
    this.#slabRows[last]++;
    const place = i * PLACE_NUMBERS;
    this.#oldPlaces[place] = last;
    this.#oldPlaces[place + 1] = at;
    this.#oldPlaces[place + 2] = at + length;
  }

  /** Bytes of the old value that is kept. */
  #oldBytesOf(i: number): number {
    return this.#oldPlaces[i * PLACE_NUMBERS + 2] - this.#oldPlaces[i * PLACE_NUMBERS + 1];
  }

  /** Forgets the old rows of transactions below `t`, when they are more than may be kept for others. */
  trim(t: number): void {
    if (this.oldBytes <= OLD_BYTES_KEPT_MAX) return;
    const slabs = this.#slabs;
    for (let i = 0; i < this.#firsts[t]; i++) {
      if (this.#old[i] !== OLD_THERE) continue;
      this.#old[i] = OLD_UNREAD;
      this.oldBytes -= this.#oldBytesOf(i);
      this.#before[i] = undefined;
      const slab = this.#oldPlaces[i * PLACE_NUMBERS];
      if (--this.#slabRows[slab] > 0) continue;
      slabs[slab] = NO_SLAB;
      // Nothing fits the last one any more.
      if (slab === slabs.length - 1) this.#slabUsed = 0;
    }
  }

  // ---------------------------------------------------------------- updates

  /**
   * Appends the updates of a transaction within the range to `updates`; returns their bytes, 0 when there
   * are none. `added` takes, where it is given, those in its ranges, by name. Requires with `old`: loadOld
   * has returned undefined for it.
   */
  collect(
    transaction: number,
    range: ByteRange | undefined,
    old: boolean,
    keys: Codec<unknown>,
    values: Codec<unknown>,
    updates: Update<unknown, unknown>[],
    added?: AddedRows,
  ): number {
    let bytes = 0;
    const end = this.#firsts[transaction + 1];
    for (let i = this.#firsts[transaction]; i < end; i++) {
      const told = this.#tell(i, range, old, keys, values);
      if ((told & TOLD_BEFORE) !== 0) {
        updates.push(this.#rowBefore!);
        bytes += this.#bytesBefore(i);
      }
      if ((told & TOLD_AFTER) === 0) continue;
      if (added !== undefined && this.#isAdded(i, added)) continue;
      updates.push(this.#rowAfter!);
      bytes += this.#ends[i] - this.#keys[i];
    }
    return bytes;
  }

  /**
   * The same as an array of its own, with their bytes in `bytesTold`. Most transactions have one change:
   * an array that is made for what it holds is a fraction of one that has grown to it.
   */
  collectAll(
    transaction: number,
    range: ByteRange | undefined,
    old: boolean,
    keys: Codec<unknown>,
    values: Codec<unknown>,
  ): Update<unknown, unknown>[] {
    const i = this.#firsts[transaction];
    if (this.#firsts[transaction + 1] - i !== 1) {
      const updates: Update<unknown, unknown>[] = [];
      this.bytesTold = this.collect(transaction, range, old, keys, values, updates);
      return updates;
    }
    const told = this.#tell(i, range, old, keys, values);
    const bytesAfter = this.#ends[i] - this.#keys[i];
    switch (told) {
      case TOLD_AFTER:
        this.bytesTold = bytesAfter;
        return [this.#rowAfter!];
      case TOLD_BEFORE:
        this.bytesTold = this.#bytesBefore(i);
        return [this.#rowBefore!];
      case TOLD_BEFORE | TOLD_AFTER:
        this.bytesTold = this.#bytesBefore(i) + bytesAfter;
        return [this.#rowBefore!, this.#rowAfter!];
      default:
        this.bytesTold = 0;
        return [];
    }
  }

  #bytesBefore(i: number): number {
    return this.#values[i] - this.#keys[i] + this.#oldBytesOf(i);
  }

  /** Decodes what is told of a change, and says what that is: TOLD_*. */
  #tell(
    i: number,
    range: ByteRange | undefined,
    old: boolean,
    keys: Codec<unknown>,
    values: Codec<unknown>,
  ): number {
    if (!this.#isWithin(i, range)) return 0;
    const kind = this.#kinds[i];
    const state = old ? this.#old[i] : OLD_ABSENT;
    if (this.#diffs[i] === 0 || state === OLD_SAME) return 0;
    if (kind === OP_DELETE && old && state === OLD_ABSENT) return 0;
    this.#decode(i, state === OLD_THERE, keys, values);
    const before = state === OLD_THERE ? TOLD_BEFORE : 0;
    // Without its old row a deletion is told by its key alone.
    return kind !== OP_DELETE || !old ? before | TOLD_AFTER : before;
  }

  /** True when the row that was decoded last goes there. */
  #isAdded(i: number, { ranges, rows }: AddedRows): boolean {
    if (!ranges.some((range) => this.#isWithin(i, range))) return false;
    const name = pairName(this.bytes, this.#keys[i], this.#values[i], this.#ends[i]);
    if (rows.has(name)) return false;
    rows.set(name, this.#rowAfter!);
    return true;
  }

  /** Sets #rowAfter, and #rowBefore if it is wanted. Who follows alone has nobody to keep them for. */
  #decode(i: number, isBefore: boolean, keys: Codec<unknown>, values: Codec<unknown>): void {
    const isShared = this.#client.feeds.running > 1;
    let before: Update<unknown, unknown> | undefined;
    let after: Update<unknown, unknown> | undefined;
    if (isShared) {
      if (keys !== this.#keyCodec || values !== this.#valueCodec) {
        this.#keyCodec = keys;
        this.#valueCodec = values;
        this.#before.length = 0;
        this.#after.length = 0;
      }
      before = this.#before[i];
      after = this.#after[i];
    }
    if (after === undefined || (isBefore && before === undefined)) {
      this.#counts.changesDecoded++;
      const { bytes } = this;
      const value = this.#values[i];
      const key: unknown = after?.key ?? decodeLent(keys, bytes, this.#keys[i], value);
      if (isBefore && before === undefined) {
        const place = i * PLACE_NUMBERS;
        const slab = this.#slabs[this.#oldPlaces[place]];
        const decoded = decodeLent(
          values,
          slab,
          this.#oldPlaces[place + 1],
          this.#oldPlaces[place + 2],
        );
        before = { key, value: decoded, diff: -1 };
      }
      if (after === undefined) {
        const isDelete = this.#kinds[i] === OP_DELETE;
        const decoded = isDelete ? undefined : decodeLent(values, bytes, value, this.#ends[i]);
        after = { key, value: decoded, diff: this.#diffs[i] };
      }
      if (isShared) {
        this.#before[i] = before;
        this.#after[i] = after;
      }
    }
    this.#rowBefore = before;
    this.#rowAfter = after;
  }
}

/** What names a row of a multiset, whose key is bytes[key, value) and value bytes[value, end). */
export function pairName(bytes: Buffer, key: number, value: number, end: number): string {
  // ('a', 'bc') is not ('ab', 'c').
  return `${value - key} ${bytes.toString('latin1', key, end)}`;
}

/** The same keys as disjoint ranges, in order. */
function unite(ranges: readonly ByteRange[]): ByteRange[] {
  const united: ByteRange[] = [];
  for (const range of ranges.toSorted((a, b) => compareBytes(a.lower, b.lower))) {
    const last = united.at(-1);
    if (last === undefined || (!last.upperOpen && compareBytes(last.upper, range.lower) < 0)) {
      united.push({ ...range });
    } else if (!last.upperOpen && (range.upperOpen || compareBytes(last.upper, range.upper) < 0)) {
      last.upper = range.upper;
      last.upperOpen = range.upperOpen;
    }
  }
  return united;
}

function intersect(a: ByteRange, b: ByteRange): ByteRange | undefined {
  const lower = compareBytes(a.lower, b.lower) < 0 ? b.lower : a.lower;
  if (a.upperOpen && b.upperOpen) return { lower, upper: NO_BYTES, upperOpen: true };
  const isA = !a.upperOpen && (b.upperOpen || compareBytes(a.upper, b.upper) < 0);
  const upper = isA ? a.upper : b.upper;
  return compareBytes(lower, upper) < 0 ? { lower, upper, upperOpen: false } : undefined;
}
