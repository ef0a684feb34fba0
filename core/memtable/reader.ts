/**
 * The reading side of a generation: points, and the range deletes that hide them. Finds, for a time T,
 * what was newest at T; a generation that goes on growing changes no answer at T. Any thread, between enter and leave; the sequencer
 * itself for preconditions.
 */
import { invariant } from '../base/assert.ts';
import { compareAt, equalAt } from '../base/bytes.ts';
import { ENTRY_WORDS, RangeSetReader } from '../base/range-set.ts';
import type { RangeDelete } from '../base/range-set.ts';
import { OP_DELETE, OP_DIFF_OFFSET, OP_UPDATE, OP_VALUE_BYTES_OFFSET } from '../base/update.ts';
import { fromWords } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import { loadLink } from '../shared/link.ts';
import { collectionAt, keyAddressAt, keyBytesAt, kindAt } from './keys.ts';
import {
  ANCHORS_WORD,
  BUCKETS_SHIFT,
  BUCKET_TABLE_WORD,
  BYTES_WORD,
  COLLECTION_SLOTS,
  COLLECTION_TABLE_WORD,
  GENERATION_MAGIC,
  LOWER_WORD,
  MAGIC_WORD,
  MASK_WORD,
  NODE_HASH_WORD,
  NODE_NEXT_WORD,
  NODE_OLDER_WORD,
  NODE_OPERATION_WORD,
  RANGES_WORD,
  RANGE_SETS_COUNT_WORD,
  RANGE_SETS_HEADER_WORDS,
  RANGE_SETS_NODE_WORD,
  RANGE_SETS_WORD,
  ROWS_WORD,
  UPPER_WORD,
  collectionSlot,
  mixCollection,
  newestUpTo,
  timeAt,
} from './layout.ts';

export { keyHash } from './layout.ts';

const BUCKET_MASK: number = (1 << BUCKETS_SHIFT) - 1;

/** What an operation says of its value and its weight, for reader and cursor. */
export function valueBytesAt(u32: Uint32Array, operation: number): number {
  return u32[(operation + OP_VALUE_BYTES_OFFSET) >>> 2];
}

/** 1 for a put, -1 for a delete, the diff of an update. */
export function diffAt(arena: Arena, operation: number): number {
  const kind = kindAt(arena.u32, operation);
  if (kind === OP_UPDATE) return arena.f64[(operation + OP_DIFF_OFFSET) >>> 3];
  return kind === OP_DELETE ? -1 : 1;
}

export class GenerationReader {
  readonly #arena: Arena;
  readonly #i32: Int32Array;
  readonly #u32: Uint32Array;
  readonly #u8: Uint8Array;
  readonly #set: RangeSetReader;
  /** Of the header. */
  #word = 0;
  #mask = 0;

  constructor(arena: Arena) {
    this.#arena = arena;
    this.#i32 = arena.i32;
    this.#u32 = arena.u32;
    this.#u8 = arena.u8;
    this.#set = new RangeSetReader(arena.u32, arena.u8);
  }

  /** Looks at the generation from here on. Costs two loads. */
  attach(header: number): void {
    this.#word = header >>> 2;
    this.#mask = this.#i32[this.#word + MASK_WORD];
    invariant(this.#u32[this.#word + MAGIC_WORD] === GENERATION_MAGIC, 'a generation', header);
  }

  /** Address of the key's newest node with time <= T, or 0. `hash` = keyHash(key, offset, length). */
  find(
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
    hash: number,
    T: number,
  ): number {
    const i32 = this.#i32;
    const u32 = this.#u32;
    const mixed = mixCollection(hash, collection);
    const bucket = mixed & this.#mask;
    const page = u32[this.#word + BUCKET_TABLE_WORD + (bucket >>> BUCKETS_SHIFT)];
    let word = loadLink(i32, (page >>> 2) + (bucket & BUCKET_MASK)) >>> 2;
    while (word !== 0) {
      if (i32[word + NODE_HASH_WORD] === mixed) {
        const operation = u32[word + NODE_OPERATION_WORD];
        if (
          collectionAt(u32, operation) === collection &&
          keyBytesAt(u32, operation) === length &&
          equalAt(this.#u8, keyAddressAt(u32, operation), length, key, offset, length)
        ) {
          return (newestUpTo(u32, word, T) << 2) >>> 0;
        }
      }
      word = loadLink(i32, word + NODE_NEXT_WORD) >>> 2;
    }
    return 0;
  }

  /** Nothing has ever been inserted: a spare that is not yet in use. */
  get isEmpty(): boolean {
    return loadLink(this.#i32, this.#word + ANCHORS_WORD) === 0 && !this.hasRanges;
  }

  /** False when no range delete is in the generation, of any collection: nothing more need be asked. */
  get hasRanges(): boolean {
    return loadLink(this.#i32, this.#word + RANGES_WORD) !== 0;
  }

  /**
   * The largest time in (above, T] of a range delete that holds the key; `above` when there is none.
   * It hides what is older, here and in everything below.
   */
  newestRange(
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
    above: number,
    T: number,
  ): number {
    const u32 = this.#u32;
    // The sets first: what they do not hold is then on the list, up to the node that they name.
    const sets = loadLink(this.#i32, this.#word + RANGE_SETS_WORD) >>> 2;
    let word = loadLink(this.#i32, this.#word + RANGES_WORD) >>> 2;
    const end = sets === 0 ? 0 : u32[sets + RANGE_SETS_NODE_WORD] >>> 2;
    let best = above;
    for (; word !== end && word !== 0; word = u32[word + NODE_NEXT_WORD] >>> 2) {
      const time = timeAt(u32, word);
      // Newest first: none that follows is better.
      if (time <= best) return best;
      if (time > T) continue;
      const operation = u32[word + NODE_OPERATION_WORD];
      if (collectionAt(u32, operation) !== collection) continue;
      if (this.#holds(operation, key, offset, length)) best = time;
    }
    const count = sets === 0 ? 0 : u32[sets + RANGE_SETS_COUNT_WORD];
    for (let i = 0; i < count; i++) {
      this.#set.attach(u32[sets + RANGE_SETS_HEADER_WORDS + i], 0);
      best = this.#set.newest(collection, key, offset, length, best, T);
    }
    return best;
  }

  #holds(operation: number, key: Uint8Array, offset: number, length: number): boolean {
    const u32 = this.#u32;
    const u8 = this.#u8;
    const lo = keyAddressAt(u32, operation);
    const loBytes = keyBytesAt(u32, operation);
    if (compareAt(u8, lo, loBytes, key, offset, length) > 0) return false;
    const hiBytes = valueBytesAt(u32, operation);
    return hiBytes === 0 || compareAt(u8, lo + loBytes, hiBytes, key, offset, length) > 0;
  }

  /**
   * The largest time of a range delete that meets [lower, upper), both in the arena; -1 when there is none.
   * `upperBytes` below 0: no upper bound.
   */
  newestOverlap(
    collection: number,
    lower: number,
    lowerBytes: number,
    upper: number,
    upperBytes: number,
  ): number {
    const u32 = this.#u32;
    const u8 = this.#u8;
    let word = loadLink(this.#i32, this.#word + RANGES_WORD) >>> 2;
    for (; word !== 0; word = u32[word + NODE_NEXT_WORD] >>> 2) {
      const operation = u32[word + NODE_OPERATION_WORD];
      if (collectionAt(u32, operation) !== collection) continue;
      const lo = keyAddressAt(u32, operation);
      const loBytes = keyBytesAt(u32, operation);
      const hiBytes = valueBytesAt(u32, operation);
      if (upperBytes >= 0 && compareAt(u8, lo, loBytes, u8, upper, upperBytes) >= 0) continue;
      if (hiBytes > 0 && compareAt(u8, lo + loBytes, hiBytes, u8, lower, lowerBytes) <= 0) continue;
      // Newest first.
      return timeAt(u32, word);
    }
    return -1;
  }

  /** What sets of all its range deletes would take. */
  rangeSetBytes(): number {
    const u32 = this.#u32;
    let bytes = 0;
    let word = loadLink(this.#i32, this.#word + RANGES_WORD) >>> 2;
    for (; word !== 0; word = u32[word + NODE_NEXT_WORD] >>> 2) {
      const operation = u32[word + NODE_OPERATION_WORD];
      bytes += ENTRY_WORDS * 4 + keyBytesAt(u32, operation) + valueBytesAt(u32, operation);
    }
    return bytes;
  }

  /** Every range delete, by collection, newest first. Copies. */
  ranges(): Map<number, RangeDelete[]> {
    const u32 = this.#u32;
    const u8 = this.#u8;
    const found = new Map<number, RangeDelete[]>();
    let word = loadLink(this.#i32, this.#word + RANGES_WORD) >>> 2;
    for (; word !== 0; word = u32[word + NODE_NEXT_WORD] >>> 2) {
      const operation = u32[word + NODE_OPERATION_WORD];
      const collection = collectionAt(u32, operation);
      const lo = keyAddressAt(u32, operation);
      const hi = lo + keyBytesAt(u32, operation);
      const range = {
        lo: u8.slice(lo, hi),
        hi: u8.slice(hi, hi + valueBytesAt(u32, operation)),
        time: timeAt(u32, word),
      };
      const others = found.get(collection);
      if (others === undefined) found.set(collection, [range]);
      else others.push(range);
    }
    return found;
  }

  timeOf(node: number): number {
    return timeAt(this.#u32, node >>> 2);
  }

  /** Address of the node's operation (core/base/update.ts). */
  operationOf(node: number): number {
    return this.#u32[(node >>> 2) + NODE_OPERATION_WORD];
  }

  /** OP_PUT, OP_DELETE or OP_UPDATE. */
  kindOf(node: number): number {
    return kindAt(this.#u32, this.operationOf(node));
  }

  /** 1 for a put, -1 for a delete, the diff of an update. */
  diffOf(node: number): number {
    return diffAt(this.#arena, this.operationOf(node));
  }

  keyAddressOf(node: number): number {
    return keyAddressAt(this.#u32, this.operationOf(node));
  }

  keyBytesOf(node: number): number {
    return keyBytesAt(this.#u32, this.operationOf(node));
  }

  /** Where the value starts; it may run on (isContiguous, gatherValue in core/shared/record-pages.ts). */
  valueAddressOf(node: number): number {
    const operation = this.operationOf(node);
    return keyAddressAt(this.#u32, operation) + keyBytesAt(this.#u32, operation);
  }

  valueBytesOf(node: number): number {
    return valueBytesAt(this.#u32, this.operationOf(node));
  }

  /** The version before this one in the same generation, or 0. */
  olderOf(node: number): number {
    return this.#u32[(node >>> 2) + NODE_OLDER_WORD];
  }

  /** Time of the collection's newest change, row or range; -1 when it has none here. */
  newestTimeOf(collection: number): number {
    const u32 = this.#u32;
    const table = this.#word + COLLECTION_TABLE_WORD;
    let slot = collectionSlot(collection);
    for (;;) {
      const word = loadLink(this.#i32, table + slot) >>> 2;
      if (word === 0) return -1;
      if (collectionAt(u32, u32[word + NODE_OPERATION_WORD]) === collection) {
        return timeAt(u32, word);
      }
      slot = (slot + 1) & (COLLECTION_SLOTS - 1);
    }
  }

  /** Ids of the collections with rows or range deletes here, ascending. */
  collections(): number[] {
    const u32 = this.#u32;
    const table = this.#word + COLLECTION_TABLE_WORD;
    const ids: number[] = [];
    for (let slot = 0; slot < COLLECTION_SLOTS; slot++) {
      const word = loadLink(this.#i32, table + slot) >>> 2;
      if (word !== 0) ids.push(collectionAt(u32, u32[word + NODE_OPERATION_WORD]));
    }
    return ids.toSorted((a, b) => a - b);
  }

  // Of a sealed generation only, by whoever was told so: these words are plain.

  get lower(): number {
    return this.#pair(LOWER_WORD);
  }

  get upper(): number {
    return this.#pair(UPPER_WORD);
  }

  get rows(): number {
    return this.#pair(ROWS_WORD);
  }

  get bytes(): number {
    return this.#pair(BYTES_WORD);
  }

  #pair(word: number): number {
    return fromWords(this.#i32[this.#word + word], this.#i32[this.#word + word + 1]);
  }
}
