/**
 * The reading side of a generation: points. Finds, for a time T, what was newest at T; a generation
 * that goes on growing changes no answer at T. Any thread, between enter and leave; the sequencer
 * itself for preconditions.
 */
import { invariant } from '../base/assert.ts';
import { equalAt } from '../base/bytes.ts';
import { OP_DELETE, OP_DIFF_OFFSET, OP_UPDATE, OP_VALUE_BYTES_OFFSET } from '../base/update.ts';
import { fromWords } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import { loadLink } from '../shared/link.ts';
import { collectionAt, keyAddressAt, keyBytesAt, kindAt } from './keys.ts';
import {
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
  /** Of the header. */
  #word = 0;
  #mask = 0;

  constructor(arena: Arena) {
    this.#arena = arena;
    this.#i32 = arena.i32;
    this.#u32 = arena.u32;
    this.#u8 = arena.u8;
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

  /** Time of the collection's newest node, whatever its key; -1 when it has none here. */
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

  /** Ids of the collections with nodes here, ascending. */
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
