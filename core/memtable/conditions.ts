/**
 * Conditions of a record: what must not have changed since its client looked. They lie beside the
 * payload, outside CRC and log, and are checked against the generations that are still held: what
 * those do not reach back to is not guessed at. Laid by clients (actors/conditions.ts), checked by the
 * sequencer before it stamps.
 *
 *   conditions   off size field
 *                  0    4 count
 *                  4    4 bytes, these 8 included
 *                  8      conditions, nothing between
 *   condition    off size field
 *                  0    8 from: the first offset at which a change breaks it
 *                  8    4 collection id
 *                 12    2 kind: 1 row unchanged, 2 row absent, 3 collection unchanged
 *                 14    2 key bytes; 0 in kind 3
 *                 16      key, zeros to a multiple of 8
 */
import { OP_DELETE } from '../base/update.ts';
import { fromWords } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import { GenerationReader, keyHash } from './reader.ts';

export const CONDITIONS_COUNT_OFFSET = 0;
export const CONDITIONS_BYTES_OFFSET: number = CONDITIONS_COUNT_OFFSET + 4;
export const CONDITIONS_HEADER_BYTES: number = CONDITIONS_BYTES_OFFSET + 4;

export const CONDITION_FROM_OFFSET = 0;
export const CONDITION_COLLECTION_OFFSET: number = CONDITION_FROM_OFFSET + 8;
export const CONDITION_KIND_OFFSET: number = CONDITION_COLLECTION_OFFSET + 4;
export const CONDITION_KEY_BYTES_OFFSET: number = CONDITION_KIND_OFFSET + 2;
export const CONDITION_KEY_OFFSET: number = CONDITION_KEY_BYTES_OFFSET + 2;

export const CONDITION_ROW = 1;
/** As a row, but a deletion of what is not there changes nothing. */
export const CONDITION_ABSENT = 2;
export const CONDITION_COLLECTION = 3;

export function conditionBytes(keyBytes: number): number {
  return (CONDITION_KEY_OFFSET + keyBytes + 7) & ~7;
}

/** What the generations say of a record's conditions. */
export const CONDITIONS_MET = 0;
export const CONDITIONS_BROKEN = 1;
/** They do not reach back to the time at which the client looked. */
export const CONDITIONS_UNKNOWN = 2;

export class ConditionChecker {
  readonly #arena: Arena;
  readonly #generation: GenerationReader;
  /** Of the condition that is broken: its index, and the change that broke it. Valid until: the next check. */
  index = 0;
  time = -1;
  /** The change was a deletion. */
  isDelete = false;

  constructor(arena: Arena) {
    this.#arena = arena;
    this.#generation = new GenerationReader(arena);
  }

  /** Requires: the generations hold every change from `heldFrom` on; `sealed` is by address, oldest first. */
  check(
    address: number,
    heldFrom: number,
    sealed: ReadonlyMap<number, unknown>,
    open: number,
  ): number {
    const { u8, u32 } = this.#arena;
    const count = u32[(address + CONDITIONS_COUNT_OFFSET) >>> 2];
    let at = address + CONDITIONS_HEADER_BYTES;
    for (let i = 0; i < count; i++) {
      const fromWord = (at + CONDITION_FROM_OFFSET) >>> 2;
      const from = fromWords(u32[fromWord], u32[fromWord + 1]);
      if (from < heldFrom) return CONDITIONS_UNKNOWN;
      const collection = u32[(at + CONDITION_COLLECTION_OFFSET) >>> 2];
      const kind = u8[at + CONDITION_KIND_OFFSET];
      const keyBytes =
        u8[at + CONDITION_KEY_BYTES_OFFSET] | (u8[at + CONDITION_KEY_BYTES_OFFSET + 1] << 8);
      const key = at + CONDITION_KEY_OFFSET;
      const hash = kind === CONDITION_COLLECTION ? 0 : keyHash(u8, key, keyBytes);
      this.time = -1;
      this.isDelete = false;
      for (const header of sealed.keys()) {
        this.#generation.attach(header);
        if (this.#generation.upper <= from) continue;
        this.#look(collection, kind, key, keyBytes, hash);
      }
      this.#generation.attach(open);
      this.#look(collection, kind, key, keyBytes, hash);
      if (this.time >= from && !(kind === CONDITION_ABSENT && this.isDelete)) {
        this.index = i;
        return CONDITIONS_BROKEN;
      }
      at += conditionBytes(keyBytes);
    }
    return CONDITIONS_MET;
  }

  /** The newest change that the attached generation knows; it is newer than those looked at before. */
  #look(collection: number, kind: number, key: number, keyBytes: number, hash: number): void {
    const generation = this.#generation;
    if (kind === CONDITION_COLLECTION) {
      this.time = Math.max(this.time, generation.newestTimeOf(collection));
      return;
    }
    const { u8 } = this.#arena;
    const node = generation.find(collection, u8, key, keyBytes, hash, Infinity);
    if (node !== 0) {
      this.time = generation.timeOf(node);
      this.isDelete = generation.kindOf(node) === OP_DELETE;
    }
    if (!generation.hasRanges) return;
    const newest = generation.newestRange(collection, u8, key, keyBytes, this.time, Infinity);
    if (newest === this.time) return;
    this.time = newest;
    this.isDelete = true;
  }
}
