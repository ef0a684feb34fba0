/**
 * The reading side of a generation: ranges. Walks one collection as of a time T, merging the sorted
 * runs with the tail that is not in runs yet, which it sorts privately. Every key is in one of them
 * exactly once, as its anchor; its versions hang on that. Any thread, between enter and leave.
 */
import { invariant } from '../base/assert.ts';
import { NO_BYTES, compareAt } from '../base/bytes.ts';
import type { RowCursor } from '../base/cursor.ts';
import { OP_UPDATE } from '../base/update.ts';
import type { Arena } from '../shared/arena.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { loadLink } from '../shared/link.ts';
import { gatherValue, isContiguous } from '../shared/record-pages.ts';
import { collectionAt, compareKeys, keyAddressAt, keyBytesAt, kindAt } from './keys.ts';
import {
  ANCHORS_SHIFT,
  ANCHORS_WORD,
  ANCHOR_TABLE_WORD,
  DIRECTORY_ANCHORS_WORD,
  DIRECTORY_HEADER_WORDS,
  DIRECTORY_RUNS_WORD,
  DIRECTORY_RUN_WORDS,
  DIRECTORY_WORD,
  GENERATION_MAGIC,
  MAGIC_WORD,
  NODE_NEWEST_WORD,
  NODE_OLDER_WORD,
  NODE_OPERATION_WORD,
  NODE_SHIFT,
  RUN_COUNT_WORD,
  RUN_START_WORD,
  RUN_TABLE_WORD,
  RUN_WORDS_SHIFT,
  SERIAL_WORD,
  newestUpTo,
  timeAt,
} from './layout.ts';
import { diffAt, valueBytesAt } from './reader.ts';
import { AnchorSorter } from './sort.ts';

/**
 * Which versions with time <= T a cursor shows. Of one time all shows every update, but only the last put
 * or delete. Updates of a key, which never stand beside puts, are shown in the order of their values.
 */
export const VERSIONS_NEWEST = 0;
export const VERSIONS_ALL = 1;

const ANCHOR_MASK: number = (1 << ANCHORS_SHIFT) - 1;
const RUN_WORD_MASK: number = (1 << RUN_WORDS_SHIFT) - 1;
const FORWARD = 1;
const BACKWARD = -1;
/** Source 0 is the tail, the runs follow. */
const TAIL = 0;

export class GenerationCursor implements RowCursor {
  valid = false;
  keyBytes: Uint8Array;
  keyOffset = 0;
  keyLength = 0;
  time = 0;
  kind = 0;
  diff = 0;
  valueLength = 0;
  valueBytes: Uint8Array = NO_BYTES;
  valueOffset = 0;

  readonly #arena: Arena;
  readonly #pool: BufferPool;
  readonly #i32: Int32Array;
  readonly #u32: Uint32Array;
  readonly #u8: Uint8Array;
  readonly #sorter: AnchorSorter;
  #scratch: Uint8Array = NO_BYTES;

  #word = 0;
  #serial = 0;
  #collection = -1;
  #T = -1;
  #versions = VERSIONS_NEWEST;
  /** The tail that `#sorter` holds: anchors [from, to) of the generation, as far as they are of the collection. */
  #tailFrom = -1;
  #tailTo = -1;
  #tailCount = 0;

  // Per source, tail and runs alike: where it begins and ends, its position, and the head that stands there.
  #sources = 0;
  #starts: Int32Array = new Int32Array(32);
  #ends: Int32Array = new Int32Array(32);
  #positions: Int32Array = new Int32Array(32);
  #heads: Uint32Array = new Uint32Array(32);
  #operations: Uint32Array = new Uint32Array(32);
  /** Sources with a head, in the order of their heads (descending when moving backward). */
  #order: Int32Array = new Int32Array(32);
  #live = 0;
  #direction: number = FORWARD;

  /** The key's versions up to T, newest first, and where the cursor stands; of one alone, only `#node`. */
  #chain: Uint32Array = new Uint32Array(16);
  #chainCount = 0;
  #chainIndex = 0;
  #valueAddress = 0;

  constructor(arena: Arena, pool: BufferPool) {
    this.#arena = arena;
    this.#pool = pool;
    this.#i32 = arena.i32;
    this.#u32 = arena.u32;
    this.#u8 = arena.u8;
    this.keyBytes = arena.u8;
    this.#sorter = new AnchorSorter(arena);
  }

  /**
   * Looks at one collection of the generation as of T; stands nowhere until moved. To be called anew
   * after each enter. What it sorted it need not sort again while the generation and the collection
   * are the same, the same anchors are in runs, and no others came up to T.
   */
  open(header: number, collection: number, T: number, versions: number): void {
    const u32 = this.#u32;
    const word = header >>> 2;
    invariant(u32[word + MAGIC_WORD] === GENERATION_MAGIC, 'a generation', header);
    // The directory first: what it says is sorted is then among the anchors counted.
    const directory = loadLink(this.#i32, word + DIRECTORY_WORD) >>> 2;
    const anchors = loadLink(this.#i32, word + ANCHORS_WORD);
    let runs = 0;
    let sorted = 0;
    if (directory !== 0) {
      runs = u32[directory + DIRECTORY_RUNS_WORD];
      sorted = u32[directory + DIRECTORY_ANCHORS_WORD];
      this.#reserveSources(runs + 1);
      let run = directory + DIRECTORY_HEADER_WORDS;
      for (let i = 1; i <= runs; i++, run += DIRECTORY_RUN_WORDS) {
        this.#starts[i] = u32[run + RUN_START_WORD];
        this.#ends[i] = this.#starts[i] + u32[run + RUN_COUNT_WORD];
      }
    }
    const serial = u32[word + SERIAL_WORD];
    const known =
      this.#serial === serial &&
      this.#word === word &&
      this.#collection === collection &&
      this.#tailFrom === sorted;
    this.#word = word;
    this.#serial = serial;
    this.#collection = collection;
    this.#T = T;
    this.#versions = versions;
    if (!known || !this.#tailStands(anchors)) this.#collectTail(sorted, anchors);
    this.#starts[TAIL] = 0;
    this.#ends[TAIL] = this.#tailCount;
    this.#sources = runs + 1;
    this.#live = 0;
    this.valid = false;
  }

  /** Anchors are in the order of time: when the first one not collected is above T, all are. Those above T do no harm. */
  #tailStands(anchors: number): boolean {
    if (anchors === this.#tailTo) return true;
    return timeAt(this.#u32, this.#anchor(this.#tailTo) >>> 2) > this.#T;
  }

  #collectTail(from: number, to: number): void {
    const u32 = this.#u32;
    const sorter = this.#sorter;
    let count = 0;
    let index = from;
    for (; index < to; index++) {
      const node = this.#anchor(index);
      const word = node >>> 2;
      if (timeAt(u32, word) > this.#T) break;
      if (collectionAt(u32, u32[word + NODE_OPERATION_WORD]) !== this.#collection) continue;
      if (count === sorter.nodes.length) sorter.reserve(count + 256);
      sorter.nodes[count++] = node;
    }
    sorter.sort(count);
    this.#tailFrom = from;
    this.#tailTo = index;
    this.#tailCount = count;
  }

  #anchor(index: number): number {
    const page = this.#u32[this.#word + ANCHOR_TABLE_WORD + (index >>> ANCHORS_SHIFT)];
    return page + ((index & ANCHOR_MASK) << NODE_SHIFT);
  }

  #reserveSources(count: number): void {
    if (count <= this.#starts.length) return;
    const capacity = 2 * count;
    this.#starts = new Int32Array(capacity);
    this.#ends = new Int32Array(capacity);
    this.#positions = new Int32Array(capacity);
    this.#heads = new Uint32Array(capacity);
    this.#operations = new Uint32Array(capacity);
    this.#order = new Int32Array(capacity);
  }

  seek(key: Uint8Array, offset: number, length: number): void {
    this.#seekForward(this.#collection, key, offset, length, false);
  }

  first(): void {
    this.#seekForward(this.#collection, NO_BYTES, 0, 0, false);
  }

  seekBelow(key: Uint8Array, offset: number, length: number): void {
    this.#seekBackward(this.#collection, key, offset, length);
  }

  last(): void {
    this.#seekBackward(this.#collection + 1, NO_BYTES, 0, 0);
  }

  next(): void {
    if (!this.valid) return;
    if (this.#chainIndex + 1 < this.#chainCount) {
      this.#setRow(this.#chain[++this.#chainIndex]);
    } else if (this.#direction === FORWARD) {
      this.#step();
    } else {
      this.#seekForward(this.#collection, this.#u8, this.keyOffset, this.keyLength, true);
    }
  }

  previous(): void {
    if (!this.valid) return;
    if (this.#chainIndex > 0) {
      this.#setRow(this.#chain[--this.#chainIndex]);
    } else if (this.#direction === BACKWARD) {
      this.#step();
    } else {
      this.#seekBackward(this.#collection, this.#u8, this.keyOffset, this.keyLength);
    }
  }

  loadValue(): void {
    const address = this.#valueAddress;
    const length = this.valueLength;
    if (isContiguous(address, length)) {
      this.valueBytes = this.#u8;
      this.valueOffset = address;
      return;
    }
    if (this.#scratch.length < length) this.#scratch = new Uint8Array(length);
    gatherValue(this.#arena, this.#pool, address, length, this.#scratch, 0);
    this.valueBytes = this.#scratch;
    this.valueOffset = 0;
  }

  /** Stands on the first row at or above the key, or above it when `after`. */
  #seekForward(
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
    after: boolean,
  ): void {
    this.#direction = FORWARD;
    this.#live = 0;
    for (let s = 0; s < this.#sources; s++) {
      let at = this.#lowerBound(s, collection, key, offset, length);
      if (
        after &&
        at < this.#ends[s] &&
        this.#compare(s, at, collection, key, offset, length) === 0
      )
        at++;
      this.#positions[s] = at;
      if (this.#loadHead(s)) this.#enlist(s);
    }
    this.#arrive();
  }

  /** Stands on the last row below the key. */
  #seekBackward(collection: number, key: Uint8Array, offset: number, length: number): void {
    this.#direction = BACKWARD;
    this.#live = 0;
    for (let s = 0; s < this.#sources; s++) {
      this.#positions[s] = this.#lowerBound(s, collection, key, offset, length) - 1;
      if (this.#loadHead(s)) this.#enlist(s);
    }
    this.#arrive();
  }

  /** From the last version of a key to the next key in the direction. */
  #step(): void {
    const order = this.#order;
    const source = order[0];
    this.#positions[source] += this.#direction;
    if (!this.#loadHead(source)) {
      this.#live--;
      for (let i = 0; i < this.#live; i++) order[i] = order[i + 1];
    } else if (this.#live > 1 && this.#precedes(order[1], source)) {
      // Where it belongs among the others, by halves.
      let low = 2;
      let high = this.#live;
      while (low < high) {
        const middle = (low + high) >>> 1;
        if (this.#precedes(order[middle], source)) low = middle + 1;
        else high = middle;
      }
      for (let i = 1; i < low; i++) order[i - 1] = order[i];
      order[low - 1] = source;
    }
    this.#arrive();
  }

  /** Puts a source with a fresh head into the order. */
  #enlist(source: number): void {
    const order = this.#order;
    let i = this.#live++;
    while (i > 0 && this.#precedes(source, order[i - 1])) {
      order[i] = order[i - 1];
      i--;
    }
    order[i] = source;
  }

  #precedes(a: number, b: number): boolean {
    const order = compareKeys(this.#u32, this.#u8, this.#operations[a], this.#operations[b], 0);
    return this.#direction === FORWARD ? order < 0 : order > 0;
  }

  /** Takes the head at the source's position, or the nearest one behind it that was there at T. False when there is none. */
  #loadHead(source: number): boolean {
    const u32 = this.#u32;
    const end = this.#ends[source];
    const start = this.#starts[source];
    let at = this.#positions[source];
    for (; at >= start && at < end; at += this.#direction) {
      const node = this.#nodeAt(source, at);
      const word = node >>> 2;
      const operation = u32[word + NODE_OPERATION_WORD];
      if (collectionAt(u32, operation) !== this.#collection) return false;
      if (timeAt(u32, word) > this.#T) continue;
      this.#positions[source] = at;
      this.#heads[source] = node;
      this.#operations[source] = operation;
      return true;
    }
    return false;
  }

  #nodeAt(source: number, at: number): number {
    if (source === TAIL) return this.#sorter.nodes[at];
    const page = this.#u32[this.#word + RUN_TABLE_WORD + (at >>> RUN_WORDS_SHIFT)];
    return this.#u32[(page >>> 2) + (at & RUN_WORD_MASK)];
  }

  /** Position of the source's first anchor at or above the key. */
  #lowerBound(
    source: number,
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
  ): number {
    let low = this.#starts[source];
    let high = this.#ends[source];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#compare(source, middle, collection, key, offset, length) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #compare(
    source: number,
    at: number,
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
  ): number {
    const u32 = this.#u32;
    const operation = u32[(this.#nodeAt(source, at) >>> 2) + NODE_OPERATION_WORD];
    const other = collectionAt(u32, operation);
    if (other !== collection) return other < collection ? -1 : 1;
    const bytes = keyBytesAt(u32, operation);
    return compareAt(this.#u8, keyAddressAt(u32, operation), bytes, key, offset, length);
  }

  /** Stands on the key of the foremost source: forward on its newest version up to T, backward on its oldest. */
  #arrive(): void {
    this.valid = this.#live > 0;
    if (!this.valid) return;
    const u32 = this.#u32;
    const anchor = this.#heads[this.#order[0]] >>> 2;
    const newest = loadLink(this.#i32, anchor + NODE_NEWEST_WORD) >>> 2;
    let word = newestUpTo(u32, newest, this.#T);
    this.#chainIndex = 0;
    this.#chainCount = 1;
    if (this.#versions === VERSIONS_ALL && word !== anchor) {
      let count = 0;
      for (; word !== 0; word = u32[word + NODE_OLDER_WORD] >>> 2) {
        // Of one transaction's operations on a key the later wins; updates of a multiset add up.
        const isBeaten =
          count > 0 &&
          timeAt(u32, word) === timeAt(u32, this.#chain[count - 1]) &&
          kindAt(u32, u32[word + NODE_OPERATION_WORD]) !== OP_UPDATE;
        if (isBeaten) continue;
        if (count === this.#chain.length) {
          const chain = new Uint32Array(2 * count);
          chain.set(this.#chain);
          this.#chain = chain;
        }
        this.#chain[count++] = word;
      }
      this.#chainCount = count;
      if (kindAt(u32, u32[this.#chain[0] + NODE_OPERATION_WORD]) === OP_UPDATE) this.#sortUpdates();
      if (this.#direction === BACKWARD) this.#chainIndex = count - 1;
      word = this.#chain[this.#chainIndex];
    }
    this.#setRow(word);
  }

  /** By value, then time; the newest of one transaction first, as they stand. */
  #sortUpdates(): void {
    const u32 = this.#u32;
    const words = Array.from(this.#chain.subarray(0, this.#chainCount));
    words.sort((a, b) => this.#compareValues(a, b) || timeAt(u32, a) - timeAt(u32, b));
    this.#chain.set(words);
  }

  #compareValues(a: number, b: number): number {
    const u32 = this.#u32;
    const aOperation = u32[a + NODE_OPERATION_WORD];
    const bOperation = u32[b + NODE_OPERATION_WORD];
    const aValue = keyAddressAt(u32, aOperation) + keyBytesAt(u32, aOperation);
    const bValue = keyAddressAt(u32, bOperation) + keyBytesAt(u32, bOperation);
    const aBytes = valueBytesAt(u32, aOperation);
    const bBytes = valueBytesAt(u32, bOperation);
    if (isContiguous(aValue, aBytes) && isContiguous(bValue, bBytes)) {
      return compareAt(this.#u8, aValue, aBytes, this.#u8, bValue, bBytes);
    }
    const both = new Uint8Array(aBytes + bBytes);
    gatherValue(this.#arena, this.#pool, aValue, aBytes, both, 0);
    gatherValue(this.#arena, this.#pool, bValue, bBytes, both, aBytes);
    return compareAt(both, 0, aBytes, both, aBytes, bBytes);
  }

  #setRow(nodeWord: number): void {
    const u32 = this.#u32;
    const operation = u32[nodeWord + NODE_OPERATION_WORD];
    this.keyOffset = keyAddressAt(u32, operation);
    this.keyLength = keyBytesAt(u32, operation);
    this.time = timeAt(u32, nodeWord);
    this.kind = kindAt(u32, operation);
    this.diff = diffAt(this.#arena, operation);
    this.valueLength = valueBytesAt(u32, operation);
    this.#valueAddress = this.keyOffset + this.keyLength;
  }
}
