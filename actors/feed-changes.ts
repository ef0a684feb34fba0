/**
 * What one piece of the log changed in one collection: per transaction the last change of each key (of a
 * multiset the sum for each key and value), the row that was there before, and both decoded, each once
 * for all who ask. Old rows are point reads at the offset before, from memory at once, else from the
 * disk without holding the thread. Belongs to its chunk; used by feeds, on their thread.
 */
import { NO_BYTES, compareAt, compareBytes, equalAt } from '../core/base/bytes.ts';
import { OP_DELETE, OP_DELETE_RANGE, OP_PUT, OP_UPDATE } from '../core/base/update.ts';
import type { LogChunk } from '../core/log/follower.ts';
import { PayloadWalker } from '../core/log/payload.ts';
import type { Client } from './client.ts';
import { decodeLent } from './encodings.ts';
import type { Codec } from './encodings.ts';
import type { FeedCounts } from './feed-hub.ts';
import type { ByteRange } from './key-range.ts';
import { ROW_ABSENT, ROW_ON_DISK } from './reader.ts';

/** A row that came (diff above 0) or went (below 0). Shared by all who follow on this thread: not to be changed. */
export type Update<K, V> = { readonly key: K; readonly value: V; readonly diff: number };

const OLD_UNREAD = 0;
const OLD_ABSENT = 1;
const OLD_THERE = 2;
/** The same bytes were there: nothing has changed. */
const OLD_SAME = 3;
const OLD_PENDING = 4;

/** Old rows asked of the disk at once. */
const DISK_READS_MAX = 32;
/** Operations of a transaction among which a key is looked for one by one. */
const SCAN_MAX = 8;

export class ChunkChanges {
  readonly collection: number;
  /** By transaction: the ranges that it removed, whose rows are not among its changes. */
  readonly #ranges: Map<number, ByteRange[]> = new Map();
  readonly #client: Client;
  readonly #counts: FeedCounts;
  readonly #bytes: Buffer;
  /** Per transaction: its offset, and its first change. */
  readonly offsets: number[] = [];
  readonly #firsts: number[] = [];
  /** Per change: kind, key start, value start, value end, diff. */
  readonly #kinds: number[] = [];
  readonly #keys: number[] = [];
  readonly #values: number[] = [];
  readonly #ends: number[] = [];
  readonly #diffs: number[] = [];
  /** Per change: OLD_*, and the old value. */
  readonly #old: Uint8Array;
  readonly #oldValues: (Buffer | undefined)[] = [];
  /** Old rows that are on their way from the disk. */
  #pending: Promise<void> | undefined;
  /** Decoded with these codecs, those of who asked first. */
  #keyCodec: Codec<unknown> | undefined;
  #valueCodec: Codec<unknown> | undefined;
  readonly #before: (Update<unknown, unknown> | undefined)[] = [];
  readonly #after: (Update<unknown, unknown> | undefined)[] = [];

  constructor(client: Client, counts: FeedCounts, log: LogChunk, collection: number) {
    this.#client = client;
    this.#counts = counts;
    this.#bytes = log.bytes;
    this.collection = collection;
    const walker = new PayloadWalker();
    for (let r = 0; r < log.records; r++) {
      walker.start(log.bytes, log.payloadOffsets[r], log.txCounts[r]);
      while (walker.nextTransaction()) this.#add(walker, log.firstOffsets[r] + walker.txIndex);
    }
    this.#firsts.push(this.#kinds.length);
    this.#old = new Uint8Array(this.#kinds.length);
    counts.changes += this.#kinds.length;
  }

  // ---------------------------------------------------------------- what changed

  #add(walker: PayloadWalker, offset: number): void {
    const first = this.#kinds.length;
    let byKey: Map<string, number> | undefined;
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
      const nameEnd = kind === OP_UPDATE ? end : value;
      const known = this.#kinds.length;
      let at = -1;
      if (known - first <= SCAN_MAX) {
        for (let i = first; i < known && at < 0; i++) {
          if (this.#isNamed(i, kind, key, nameEnd, value)) at = i;
        }
      } else {
        byKey ??= this.#nameAll(first);
        at = byKey.get(this.#bytes.toString('latin1', key, nameEnd)) ?? -1;
      }
      if (at < 0) {
        byKey?.set(this.#bytes.toString('latin1', key, nameEnd), known);
        this.#kinds.push(kind);
        this.#keys.push(key);
        this.#values.push(value);
        this.#ends.push(end);
        this.#diffs.push(walker.diff);
        continue;
      }
      if (kind === OP_UPDATE) {
        this.#diffs[at] += walker.diff;
        continue;
      }
      this.#kinds[at] = kind;
      this.#keys[at] = key;
      this.#values[at] = value;
      this.#ends[at] = end;
      this.#diffs[at] = walker.diff;
    }
    if (this.#kinds.length === first && !this.#ranges.has(this.offsets.length)) return;
    this.offsets.push(offset);
    this.#firsts.push(first);
  }

  /** The range is removed with what the transaction wrote there before, from change `first` on. */
  #addRange({ keyOffset, keyBytes, valueOffset, valueBytes }: PayloadWalker, first: number): void {
    const bytes = this.#bytes;
    const range: ByteRange = {
      lower: bytes.subarray(keyOffset, keyOffset + keyBytes),
      upper: bytes.subarray(valueOffset, valueOffset + valueBytes),
      upperOpen: valueBytes === 0,
    };
    for (let i = first; i < this.#kinds.length; i++) {
      if (!this.#isWithin(i, range)) continue;
      if (this.#kinds[i] === OP_UPDATE) {
        this.#diffs[i] = 0;
        continue;
      }
      this.#kinds[i] = OP_DELETE;
      this.#ends[i] = this.#values[i];
      this.#diffs[i] = -1;
    }
    const at = this.offsets.length;
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
      names.add(this.#bytes.toString('latin1', this.#keys[i], this.#values[i]));
    }
    return names;
  }

  /** Of a multiset a value is part of the row's name. */
  #isNamed(i: number, kind: number, key: number, nameEnd: number, value: number): boolean {
    const own = this.#keys[i];
    const ownEnd = kind === OP_UPDATE ? this.#ends[i] : this.#values[i];
    if (this.#values[i] - own !== value - key) return false;
    return equalAt(this.#bytes, own, ownEnd - own, this.#bytes, key, nameEnd - key);
  }

  #nameAll(first: number): Map<string, number> {
    const byKey = new Map<string, number>();
    for (let i = first; i < this.#kinds.length; i++) {
      const end = this.#kinds[i] === OP_UPDATE ? this.#ends[i] : this.#values[i];
      byKey.set(this.#bytes.toString('latin1', this.#keys[i], end), i);
    }
    return byKey;
  }

  get transactions(): number {
    return this.offsets.length;
  }

  /** Index of the first transaction at or above an offset. */
  transactionAt(offset: number): number {
    const { offsets } = this;
    let low = 0;
    let high = offsets.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (offsets[middle] < offset) low = middle + 1;
      else high = middle;
    }
    return low;
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
      const name = this.#bytes.toString('latin1', this.#keys[i], this.#values[i]);
      if (keys.has(name)) continue;
      const key = Buffer.from(name, 'latin1');
      keys.set(name, key);
      bytes += key.length;
    }
    return bytes;
  }

  #isWithin(i: number, range: ByteRange | undefined): boolean {
    if (range === undefined) return true;
    const bytes = this.#bytes;
    const at = this.#keys[i];
    const length = this.#values[i] - at;
    if (compareAt(bytes, at, length, range.lower, 0, range.lower.length) < 0) return false;
    return range.upperOpen || compareAt(bytes, at, length, range.upper, 0, range.upper.length) < 0;
  }

  // ---------------------------------------------------------------- what was there before

  /**
   * Looks up the old rows of transactions [from, to) in the range; undefined when they are all known now,
   * else a promise, after which to ask again. Requires: their times are held.
   */
  loadOld(from: number, to: number, range: ByteRange | undefined): Promise<void> | undefined {
    let missing: number[] | undefined;
    let isPending = false;
    for (let t = from; t < to; t++) {
      for (let i = this.#firsts[t]; i < this.#firsts[t + 1]; i++) {
        if (this.#old[i] === OLD_PENDING) isPending = true;
        if (this.#old[i] !== OLD_UNREAD || !this.#isWithin(i, range)) continue;
        if (this.#kinds[i] === OP_UPDATE || this.offsets[t] === 0) {
          this.#old[i] = OLD_ABSENT;
          continue;
        }
        this.#counts.oldRowsRead++;
        if (this.#readFromMemory(i, this.offsets[t] - 1)) continue;
        this.#old[i] = OLD_PENDING;
        missing ??= [];
        missing.push(i, this.offsets[t] - 1);
      }
    }
    if (missing !== undefined) {
      const before = this.#pending;
      const reads = this.#readFromDisk(missing);
      const all: Promise<void> =
        before === undefined ? reads : Promise.all([before, reads]).then(() => undefined);
      this.#pending = all;
      const done = (): void => {
        if (this.#pending === all) this.#pending = undefined;
      };
      all.then(done, done);
      return all;
    }
    // What others asked for may fail for reasons of theirs: who still misses something asks himself.
    return isPending ? this.#pending?.catch(() => {}) : undefined;
  }

  /** False: only the disk knows. */
  #readFromMemory(i: number, T: number): boolean {
    const client = this.#client;
    const { reader } = client;
    const start = this.#keys[i];
    const length = this.#values[i] - start;
    const key = this.#bytes.subarray(start, start + length);
    client.hold(T);
    try {
      const block = reader.enter(this.collection, T);
      try {
        const found = reader.find(this.collection, block, key, length, true);
        if (found === ROW_ON_DISK) return false;
        if (found === ROW_ABSENT) this.#old[i] = OLD_ABSENT;
        else this.#setOld(i, reader.valueBytes, reader.valueStart, reader.valueEnd);
        return true;
      } finally {
        reader.leave();
      }
    } finally {
      client.release(T);
    }
  }

  #setOld(i: number, bytes: Uint8Array, start: number, end: number): void {
    const value = this.#values[i];
    const length = this.#ends[i] - value;
    if (
      this.#kinds[i] === OP_PUT &&
      equalAt(bytes, start, end - start, this.#bytes, value, length)
    ) {
      this.#old[i] = OLD_SAME;
      return;
    }
    const copy = Buffer.allocUnsafe(end - start);
    copy.set(bytes.subarray(start, end));
    this.#oldValues[i] = copy;
    this.#old[i] = OLD_THERE;
  }

  async #readFromDisk(missing: readonly number[]): Promise<void> {
    const client = this.#client;
    let next = 0;
    const read = async (): Promise<void> => {
      while (next < missing.length) {
        const i = missing[next];
        const T = missing[next + 1];
        next += 2;
        // The arena may be another engine's by now.
        client.assertUsable();
        const key = this.#bytes.subarray(this.#keys[i], this.#values[i]);
        client.hold(T);
        try {
          this.#counts.oldRowsFromDisk++;
          const found = await client.reader.findLater(
            this.collection,
            key,
            T,
            (time) => client.hold(time),
            (time) => client.release(time),
          );
          if (found.outcome === ROW_ABSENT) this.#old[i] = OLD_ABSENT;
          else this.#setOld(i, found.value, found.start, found.end);
        } finally {
          client.release(T);
        }
      }
    };
    try {
      await Promise.all(Array.from({ length: DISK_READS_MAX }, read));
    } catch (error) {
      for (let m = 0; m < missing.length; m += 2) {
        if (this.#old[missing[m]] === OLD_PENDING) this.#old[missing[m]] = OLD_UNREAD;
      }
      throw error;
    }
  }

  // ---------------------------------------------------------------- updates

  /**
   * Appends the updates of a transaction within the range to `updates`; returns their bytes, 0 when there
   * are none. Requires with `old`: loadOld has returned undefined for it.
   */
  collect(
    transaction: number,
    range: ByteRange | undefined,
    old: boolean,
    keys: Codec<unknown>,
    values: Codec<unknown>,
    updates: Update<unknown, unknown>[],
  ): number {
    let bytes = 0;
    const end = this.#firsts[transaction + 1];
    for (let i = this.#firsts[transaction]; i < end; i++) {
      if (!this.#isWithin(i, range)) continue;
      const kind = this.#kinds[i];
      const state = old ? this.#old[i] : OLD_ABSENT;
      if (this.#diffs[i] === 0 || state === OLD_SAME) continue;
      if (kind === OP_DELETE && old && state === OLD_ABSENT) continue;
      this.#decode(i, old, keys, values);
      if (state === OLD_THERE) {
        updates.push(this.#before[i]!);
        bytes += this.#values[i] - this.#keys[i] + this.#oldValues[i]!.length;
      }
      // Without its old row a deletion is told by its key alone.
      if (kind !== OP_DELETE || !old) {
        updates.push(this.#after[i]!);
        bytes += this.#ends[i] - this.#keys[i];
      }
    }
    return bytes;
  }

  #decode(i: number, old: boolean, keys: Codec<unknown>, values: Codec<unknown>): void {
    if (keys !== this.#keyCodec || values !== this.#valueCodec) {
      this.#keyCodec = keys;
      this.#valueCodec = values;
      this.#before.length = 0;
      this.#after.length = 0;
    }
    const oldValue = old ? this.#oldValues[i] : undefined;
    const isBefore = oldValue !== undefined && this.#before[i] === undefined;
    const isAfter = this.#after[i] === undefined;
    if (!isBefore && !isAfter) return;
    this.#counts.changesDecoded++;
    const bytes = this.#bytes;
    const value = this.#values[i];
    const key =
      this.#after[i]?.key ?? this.#before[i]?.key ?? decodeLent(keys, bytes, this.#keys[i], value);
    if (isBefore) {
      const decoded = decodeLent(values, oldValue, 0, oldValue.length);
      this.#before[i] = { key, value: decoded, diff: -1 };
    }
    if (!isAfter) return;
    const isDelete = this.#kinds[i] === OP_DELETE;
    const decoded = isDelete ? undefined : decodeLent(values, bytes, value, this.#ends[i]);
    this.#after[i] = { key, value: decoded, diff: this.#diffs[i] };
  }
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
