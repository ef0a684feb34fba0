/**
 * Every key of a sealed generation with its newest version, each once, in the order in which keys came
 * in: what enters the row cache when the generation enters the source. Position is a count of keys,
 * so a walk can be left and taken up at will. Called by the evictor, which is told of a sealed
 * generation by a message and keeps it until it answers: no enter and leave.
 */
import { invariant } from '../base/assert.ts';
import type { Arena } from '../shared/arena.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { loadLink } from '../shared/link.ts';
import { gatherValue } from '../shared/record-pages.ts';
import { collectionAt, keyAddressAt, keyBytesAt, kindAt } from './keys.ts';
import {
  ANCHORS_SHIFT,
  ANCHORS_WORD,
  ANCHOR_TABLE_WORD,
  GENERATION_MAGIC,
  MAGIC_WORD,
  NODE_NEWEST_WORD,
  NODE_OPERATION_WORD,
  NODE_SHIFT,
  keyHash,
  timeAt,
} from './layout.ts';
import { valueBytesAt } from './reader.ts';

const ANCHOR_MASK: number = (1 << ANCHORS_SHIFT) - 1;

export class NewestRows {
  readonly #arena: Arena;
  readonly #pool: BufferPool;
  /** Of the header. */
  #word = 0;
  #keys = 0;
  #next = 0;

  collection = 0;
  keyAddress = 0;
  keyBytes = 0;
  /** keyHash of the key. */
  hash = 0;
  time = 0;
  /** OP_PUT, OP_DELETE or OP_UPDATE. */
  kind = 0;
  valueBytes = 0;

  constructor(arena: Arena, pool: BufferPool) {
    this.#arena = arena;
    this.#pool = pool;
  }

  /** Stands before the first key of a sealed generation. */
  start(header: number): void {
    this.#word = header >>> 2;
    invariant(
      this.#arena.u32[this.#word + MAGIC_WORD] === GENERATION_MAGIC,
      'a generation',
      header,
    );
    this.#keys = loadLink(this.#arena.i32, this.#word + ANCHORS_WORD);
    this.#next = 0;
  }

  /** Keys that the walk has not come to. */
  get left(): number {
    return this.#keys - this.#next;
  }

  /** Stands on the next key; false behind the last. */
  next(): boolean {
    if (this.#next === this.#keys) return false;
    const { i32, u32, u8 } = this.#arena;
    const index = this.#next++;
    const page = u32[this.#word + ANCHOR_TABLE_WORD + (index >>> ANCHORS_SHIFT)];
    const anchor = (page + ((index & ANCHOR_MASK) << NODE_SHIFT)) >>> 2;
    const node = loadLink(i32, anchor + NODE_NEWEST_WORD) >>> 2;
    const operation = u32[node + NODE_OPERATION_WORD];
    this.collection = collectionAt(u32, operation);
    this.kind = kindAt(u32, operation);
    this.keyAddress = keyAddressAt(u32, operation);
    this.keyBytes = keyBytesAt(u32, operation);
    this.valueBytes = valueBytesAt(u32, operation);
    this.time = timeAt(u32, node);
    this.hash = keyHash(u8, this.keyAddress, this.keyBytes);
    return true;
  }

  /** Copies the value of the key it stands on to the arena's bytes from `address` on. */
  copyValueTo(address: number): void {
    const value = this.keyAddress + this.keyBytes;
    gatherValue(this.#arena, this.#pool, value, this.valueBytes, this.#arena.u8, address);
  }
}
