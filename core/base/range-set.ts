/**
 * A set of range deletes in flat memory, sorted so that one question is quick: the newest one at or
 * before T that holds a key. An implicit balanced tree: the middle entry of a stretch is the root of
 * it, and says of the whole stretch which entry reaches highest and how new the newest is. A set is
 * complete before anybody sees it and never changes. Lies in the arena (memtable, views) or in private
 * memory (jobs); made by whoever writes it, read on any thread.
 *
 *   set      u32 words: 0 count  1 zero  2.. entries, ascending by collection, lower bound, time
 *   entry    0 collection  1 position of the lower bound  2 its bytes  3 position of the upper bound
 *            4 its bytes, 0 = to the end  5 time (low, high)  7 index of the entry of its stretch that
 *            reaches highest  8 largest time of its stretch (low, high)
 *
 * Positions count from a base that the reader is told: 0 for addresses of the arena, else the set's own.
 */
import { invariant } from './assert.ts';
import { alignUp, compareAt, compareBytes } from './bytes.ts';

/** (lo, hi, time): at T >= time it hides rows with lo <= key < hi and an older time. Empty `hi`: to the end. */
export type RangeDelete = {
  readonly lo: Uint8Array;
  readonly hi: Uint8Array;
  readonly time: number;
};

export const SET_COUNT_WORD = 0;
export const SET_HEADER_WORDS = 2;
export const ENTRY_COLLECTION_WORD = 0;
export const ENTRY_LO_WORD = 1;
export const ENTRY_LO_BYTES_WORD = 2;
export const ENTRY_HI_WORD = 3;
export const ENTRY_HI_BYTES_WORD = 4;
export const ENTRY_TIME_WORD = 5;
const ENTRY_HIGHEST_WORD = 7;
const ENTRY_NEWEST_WORD = 8;
export const ENTRY_WORDS: number = ENTRY_NEWEST_WORD + 2;

export function rangeSetWords(count: number): number {
  return SET_HEADER_WORDS + count * ENTRY_WORDS;
}

const HIGH_UNIT = 0x1_0000_0000;

function timeAt(u32: Uint32Array, word: number): number {
  return u32[word + 1] * HIGH_UNIT + u32[word];
}

function setTime(u32: Uint32Array, word: number, time: number): void {
  u32[word] = time >>> 0;
  u32[word + 1] = Math.floor(time / HIGH_UNIT);
}

/** Writes one entry but for what it says of its stretch. Requires: entries ascend; then `finishRangeSet`. */
export function writeEntry(
  u32: Uint32Array,
  entry: number,
  collection: number,
  lo: number,
  loBytes: number,
  hi: number,
  hiBytes: number,
  time: number,
): void {
  u32[entry + ENTRY_COLLECTION_WORD] = collection;
  u32[entry + ENTRY_LO_WORD] = lo;
  u32[entry + ENTRY_LO_BYTES_WORD] = loBytes;
  u32[entry + ENTRY_HI_WORD] = hi;
  u32[entry + ENTRY_HI_BYTES_WORD] = hiBytes;
  setTime(u32, entry + ENTRY_TIME_WORD, time);
}

/** Fills in the count and what each entry says of its stretch. `set` is a word, `base` a byte position. */
export function finishRangeSet(
  u32: Uint32Array,
  u8: Uint8Array,
  set: number,
  base: number,
  count: number,
): void {
  u32[set + SET_COUNT_WORD] = count;
  u32[set + 1] = 0;
  finishStretch(u32, u8, set + SET_HEADER_WORDS, base, 0, count);
}

/** Returns the root of the stretch, as an index; -1 when it is empty. */
function finishStretch(
  u32: Uint32Array,
  u8: Uint8Array,
  entries: number,
  base: number,
  from: number,
  to: number,
): number {
  if (from >= to) return -1;
  const middle = (from + to) >>> 1;
  const entry = entries + middle * ENTRY_WORDS;
  let highest = middle;
  let newest = timeAt(u32, entry + ENTRY_TIME_WORD);
  for (const child of [
    finishStretch(u32, u8, entries, base, from, middle),
    finishStretch(u32, u8, entries, base, middle + 1, to),
  ]) {
    if (child < 0) continue;
    const childEntry = entries + child * ENTRY_WORDS;
    const other = u32[childEntry + ENTRY_HIGHEST_WORD];
    if (reachesBeyond(u32, u8, entries, base, other, highest)) highest = other;
    newest = Math.max(newest, timeAt(u32, childEntry + ENTRY_NEWEST_WORD));
  }
  u32[entry + ENTRY_HIGHEST_WORD] = highest;
  setTime(u32, entry + ENTRY_NEWEST_WORD, newest);
  return middle;
}

/** Entry `a` ends above entry `b`. */
function reachesBeyond(
  u32: Uint32Array,
  u8: Uint8Array,
  entries: number,
  base: number,
  a: number,
  b: number,
): boolean {
  const aEntry = entries + a * ENTRY_WORDS;
  const bEntry = entries + b * ENTRY_WORDS;
  const order = u32[aEntry + ENTRY_COLLECTION_WORD] - u32[bEntry + ENTRY_COLLECTION_WORD];
  if (order !== 0) return order > 0;
  const aBytes = u32[aEntry + ENTRY_HI_BYTES_WORD];
  const bBytes = u32[bEntry + ENTRY_HI_BYTES_WORD];
  if (bBytes === 0) return false;
  if (aBytes === 0) return true;
  const aHi = base + u32[aEntry + ENTRY_HI_WORD];
  return compareAt(u8, aHi, aBytes, u8, base + u32[bEntry + ENTRY_HI_WORD], bBytes) > 0;
}

/** Asks one set at a time. Fields of an answer are none: only its time matters. */
export class RangeSetReader {
  #u32: Uint32Array;
  #u8: Uint8Array;
  #base = 0;
  #count = 0;
  #entries = 0;

  // The question that is being answered.
  #collection = 0;
  #key: Uint8Array;
  #offset = 0;
  #length = 0;
  #T = 0;
  #best = -1;
  /** Only ranges that reach up to this are counted; undefined: all that hold the key. */
  #cover: Uint8Array | undefined;

  /** `u8` and `u32` look at the same memory, from the same byte. */
  constructor(u32: Uint32Array, u8: Uint8Array) {
    this.#u32 = u32;
    this.#u8 = u8;
    this.#key = u8;
  }

  /** Looks at the set at the address; `base` as it was written. */
  attach(address: number, base: number): void {
    const set = address >>> 2;
    this.#base = base;
    this.#count = this.#u32[set + SET_COUNT_WORD];
    this.#entries = set + SET_HEADER_WORDS;
  }

  get count(): number {
    return this.#count;
  }

  /** The largest time in (above, T] of a range that holds the key; `above` when there is none. */
  newest(
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
    above: number,
    T: number,
  ): number {
    this.#collection = collection;
    this.#key = key;
    this.#offset = offset;
    this.#length = length;
    this.#T = T;
    this.#best = above;
    this.#cover = undefined;
    this.#search(0, this.#count);
    return this.#best;
  }

  /** The largest time in (above, T] of a range that holds all of [lo, hi); `above` when there is none. */
  newestCovering(collection: number, range: RangeDelete, above: number, T: number): number {
    this.#collection = collection;
    this.#key = range.lo;
    this.#offset = 0;
    this.#length = range.lo.length;
    this.#T = T;
    this.#best = above;
    this.#cover = range.hi;
    this.#search(0, this.#count);
    return this.#best;
  }

  /** Time of the newest of all; -1 when there is none. */
  get newestTime(): number {
    if (this.#count === 0) return -1;
    return timeAt(this.#u32, this.#entries + (this.#count >>> 1) * ENTRY_WORDS + ENTRY_NEWEST_WORD);
  }

  /** The i-th range. A copy. */
  rangeAt(i: number): RangeDelete & { readonly collection: number } {
    invariant(i < this.#count, 'a range of the set', i, this.#count);
    const u32 = this.#u32;
    const entry = this.#entries + i * ENTRY_WORDS;
    const lo = this.#base + u32[entry + ENTRY_LO_WORD];
    const hi = this.#base + u32[entry + ENTRY_HI_WORD];
    return {
      collection: u32[entry + ENTRY_COLLECTION_WORD],
      lo: Uint8Array.prototype.slice.call(this.#u8, lo, lo + u32[entry + ENTRY_LO_BYTES_WORD]),
      hi: Uint8Array.prototype.slice.call(this.#u8, hi, hi + u32[entry + ENTRY_HI_BYTES_WORD]),
      time: timeAt(u32, entry + ENTRY_TIME_WORD),
    };
  }

  #search(from: number, to: number): void {
    if (from >= to) return;
    const u32 = this.#u32;
    const middle = (from + to) >>> 1;
    const entry = this.#entries + middle * ENTRY_WORDS;
    if (timeAt(u32, entry + ENTRY_NEWEST_WORD) <= this.#best) return;
    if (!this.#endsAbove(u32[entry + ENTRY_HIGHEST_WORD])) return;
    if (this.#beginsAtOrBelow(entry)) {
      // Of ranges with one lower bound the newest stand to the right: found first, they rule out the rest.
      this.#search(middle + 1, to);
      const time = timeAt(u32, entry + ENTRY_TIME_WORD);
      if (time > this.#best && time <= this.#T && this.#holds(middle)) this.#best = time;
    }
    this.#search(from, middle);
  }

  #beginsAtOrBelow(entry: number): boolean {
    const u32 = this.#u32;
    const order = u32[entry + ENTRY_COLLECTION_WORD] - this.#collection;
    if (order !== 0) return order < 0;
    const lo = this.#base + u32[entry + ENTRY_LO_WORD];
    const loBytes = u32[entry + ENTRY_LO_BYTES_WORD];
    return compareAt(this.#u8, lo, loBytes, this.#key, this.#offset, this.#length) <= 0;
  }

  #endsAbove(index: number): boolean {
    const u32 = this.#u32;
    const entry = this.#entries + index * ENTRY_WORDS;
    const order = u32[entry + ENTRY_COLLECTION_WORD] - this.#collection;
    if (order !== 0) return order > 0;
    const hiBytes = u32[entry + ENTRY_HI_BYTES_WORD];
    if (hiBytes === 0) return true;
    const hi = this.#base + u32[entry + ENTRY_HI_WORD];
    return compareAt(this.#u8, hi, hiBytes, this.#key, this.#offset, this.#length) > 0;
  }

  /** Requires: it begins at or below the key. */
  #holds(index: number): boolean {
    const u32 = this.#u32;
    const entry = this.#entries + index * ENTRY_WORDS;
    if (u32[entry + ENTRY_COLLECTION_WORD] !== this.#collection) return false;
    if (!this.#endsAbove(index)) return false;
    const cover = this.#cover;
    const hiBytes = u32[entry + ENTRY_HI_BYTES_WORD];
    if (cover === undefined || hiBytes === 0) return true;
    if (cover.length === 0) return false;
    const hi = this.#base + u32[entry + ENTRY_HI_WORD];
    return compareAt(this.#u8, hi, hiBytes, cover, 0, cover.length) >= 0;
  }
}

/** Order of range deletes in parts and sets: lower bound, time, upper bound (to the end last). */
export function compareRanges(a: RangeDelete, b: RangeDelete): number {
  const order = compareBytes(a.lo, b.lo);
  if (order !== 0) return order;
  if (a.time !== b.time) return a.time - b.time;
  const aOpen = a.hi.length === 0;
  const bOpen = b.hi.length === 0;
  if (aOpen || bOpen) return Number(aOpen) - Number(bOpen);
  return compareBytes(a.hi, b.hi);
}

/** Bytes that `writeRangeSet` fills: a multiple of 4. */
export function rangeSetBytes(ranges: readonly RangeDelete[]): number {
  let bytes = rangeSetWords(ranges.length) * 4;
  for (const { lo, hi } of ranges) bytes += lo.length + hi.length;
  return alignUp(bytes, 4);
}

/** Writes ranges of one collection, called 0, with their bounds behind them. Requires: in order (`compareRanges`). */
export function writeRangeSet(
  u32: Uint32Array,
  u8: Uint8Array,
  address: number,
  ranges: readonly RangeDelete[],
): void {
  const set = address >>> 2;
  let at = address + rangeSetWords(ranges.length) * 4;
  const place = (bytes: Uint8Array): number => {
    u8.set(bytes, at);
    at += bytes.length;
    return at - bytes.length - address;
  };
  for (let i = 0; i < ranges.length; i++) {
    const { lo, hi, time } = ranges[i];
    const entry = set + SET_HEADER_WORDS + i * ENTRY_WORDS;
    writeEntry(u32, entry, 0, place(lo), lo.length, place(hi), hi.length, time);
  }
  finishRangeSet(u32, u8, set, address, ranges.length);
}

/** A set of one collection, called 0, in private memory. */
export function rangeSetOf(ranges: readonly RangeDelete[]): RangeSetReader {
  const sorted = ranges.toSorted(compareRanges);
  const u8 = new Uint8Array(rangeSetBytes(sorted));
  const u32 = new Uint32Array(u8.buffer);
  writeRangeSet(u32, u8, 0, sorted);
  const reader = new RangeSetReader(u32, u8);
  reader.attach(0, 0);
  return reader;
}

/** True when the key lies in the range. */
export function rangeHolds(range: RangeDelete, key: Uint8Array): boolean {
  if (compareBytes(range.lo, key) > 0) return false;
  return range.hi.length === 0 || compareBytes(key, range.hi) < 0;
}
