/**
 * Every key of a sealed generation with its newest version, each once, in the order in which keys came
 * in; one that a range delete hides counts as deleted by that: what enters the row cache when the generation enters the source. Position is a count of keys,
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
import { OP_DELETE } from '../base/update.ts';
import { GenerationReader, valueBytesAt } from './reader.ts';

const ANCHOR_MASK: number = (1 << ANCHORS_SHIFT) - 1;

export class NewestRows {
  readonly #arena: Arena;
  readonly #pool: BufferPool;
  readonly #reader: GenerationReader;
  #hasRanges = false;
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
    this.#reader = new GenerationReader(arena);
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
    this.#reader.attach(header);
    this.#hasRanges = this.#reader.hasRanges;
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
    if (this.#hasRanges) this.#hide();
    return true;
  }

  #hide(): void {
    const { collection, keyAddress, keyBytes, time } = this;
    const { u8 } = this.#arena;
    const newest = this.#reader.newestRange(collection, u8, keyAddress, keyBytes, time, Infinity);
    if (newest === time) return;
    this.time = newest;
    this.kind = OP_DELETE;
    this.valueBytes = 0;
  }

  /** Range deletes hide cached rows whose keys are not here. */
  get hasRanges(): boolean {
    return this.#hasRanges;
  }

  /** Time of the newest range delete that holds the key, whose bytes are in the arena; -1 when none does. */
  rangeOver(collection: number, keyAddress: number, keyBytes: number): number {
    const { u8 } = this.#arena;
    return this.#reader.newestRange(collection, u8, keyAddress, keyBytes, -1, Infinity);
  }

  /** Copies the value of the key it stands on to the arena's bytes from `address` on. */
  copyValueTo(address: number): void {
    const value = this.keyAddress + this.keyBytes;
    gatherValue(this.#arena, this.#pool, value, this.valueBytes, this.#arena.u8, address);
  }
}
