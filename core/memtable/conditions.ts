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
 *                 12    2 kind: 1 row unchanged, 2 row absent, 3 collection unchanged, 4 range unchanged
 *                 14    2 key bytes; 0 in kind 3
 *                 16    4 upper bytes; 0xFFFFFFFF in kind 4: no upper bound; 0 in the other kinds
 *                 20    4 zero
 *                 24      key (in kind 4 the lower bound), upper bound, zeros to a multiple of 8
 */
import { compareAt, setU32 } from '../base/bytes.ts';
import { OP_DELETE } from '../base/update.ts';
import { fromWords } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { GenerationCursor, VERSIONS_NEWEST } from './cursor.ts';
import { GenerationReader, keyHash } from './reader.ts';

export const CONDITIONS_COUNT_OFFSET = 0;
export const CONDITIONS_BYTES_OFFSET: number = CONDITIONS_COUNT_OFFSET + 4;
export const CONDITIONS_HEADER_BYTES: number = CONDITIONS_BYTES_OFFSET + 4;

export const CONDITION_FROM_OFFSET = 0;
export const CONDITION_COLLECTION_OFFSET: number = CONDITION_FROM_OFFSET + 8;
export const CONDITION_KIND_OFFSET: number = CONDITION_COLLECTION_OFFSET + 4;
export const CONDITION_KEY_BYTES_OFFSET: number = CONDITION_KIND_OFFSET + 2;
export const CONDITION_UPPER_BYTES_OFFSET: number = CONDITION_KEY_BYTES_OFFSET + 2;
export const CONDITION_KEY_OFFSET: number = CONDITION_UPPER_BYTES_OFFSET + 8;

export const CONDITION_ROW = 1;
/** As a row, but a deletion of what is not there changes nothing. */
export const CONDITION_ABSENT = 2;
export const CONDITION_COLLECTION = 3;
/** No row of the range changed, came or went. */
export const CONDITION_RANGE = 4;
export const CONDITION_UPPER_OPEN = 0xffff_ffff;

/** Their header, of so many in so many bytes. */
export function layConditionsHeader(
  target: Uint8Array,
  at: number,
  count: number,
  bytes: number,
): void {
  setU32(target, at + CONDITIONS_COUNT_OFFSET, count);
  setU32(target, at + CONDITIONS_BYTES_OFFSET, bytes);
}

/** Bytes of a condition; `upperBytes` as they are, 0 when there is no upper bound. */
export function conditionBytes(keyBytes: number, upperBytes: number): number {
  return (CONDITION_KEY_OFFSET + keyBytes + upperBytes + 7) & ~7;
}

/** What the generations say of a record's conditions. */
export const CONDITIONS_MET = 0;
export const CONDITIONS_BROKEN = 1;
/** They do not reach back to the time at which the client looked. */
export const CONDITIONS_UNKNOWN = 2;

export class ConditionChecker {
  readonly #arena: Arena;
  readonly #generation: GenerationReader;
  readonly #rows: GenerationCursor;
  /** Of the condition that is broken: its index, and the change that broke it. Valid until: the next check. */
  index = 0;
  time = -1;
  /** The change was a deletion. */
  isDelete = false;

  constructor(arena: Arena, pool: BufferPool) {
    this.#arena = arena;
    this.#generation = new GenerationReader(arena);
    this.#rows = new GenerationCursor(arena, pool);
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
      const upperWord = u32[(at + CONDITION_UPPER_BYTES_OFFSET) >>> 2];
      const isRow = kind === CONDITION_ROW || kind === CONDITION_ABSENT;
      const hash = isRow ? keyHash(u8, key, keyBytes) : 0;
      this.time = -1;
      this.isDelete = false;
      for (const header of sealed.keys()) {
        this.#generation.attach(header);
        if (this.#generation.upper <= from) continue;
        if (isRow) this.#look(collection, key, keyBytes, hash);
        else this.#lookWide(header, collection, kind, from, key, keyBytes, upperWord);
      }
      this.#generation.attach(open);
      if (isRow) this.#look(collection, key, keyBytes, hash);
      else this.#lookWide(open, collection, kind, from, key, keyBytes, upperWord);
      if (this.time >= from && !(kind === CONDITION_ABSENT && this.isDelete)) {
        this.index = i;
        return CONDITIONS_BROKEN;
      }
      at += conditionBytes(keyBytes, upperWord === CONDITION_UPPER_OPEN ? 0 : upperWord);
    }
    return CONDITIONS_MET;
  }

  /** The newest change of a collection or, if it is not before `from`, of a range of its keys. */
  #lookWide(
    header: number,
    collection: number,
    kind: number,
    from: number,
    lower: number,
    lowerBytes: number,
    upperWord: number,
  ): void {
    const generation = this.#generation;
    const newest = generation.newestTimeOf(collection);
    if (kind === CONDITION_COLLECTION || newest < from) {
      this.time = Math.max(this.time, newest);
      return;
    }
    const { u8 } = this.#arena;
    const upper = lower + lowerBytes;
    const upperBytes = upperWord === CONDITION_UPPER_OPEN ? -1 : upperWord;
    const isBelow = (key: Uint8Array, offset: number, length: number): boolean =>
      upperBytes < 0 || compareAt(key, offset, length, u8, upper, upperBytes) < 0;
    if (generation.hasRanges) {
      const time = generation.newestOverlap(collection, lower, lowerBytes, upper, upperBytes);
      this.time = Math.max(this.time, time);
    }
    const rows = this.#rows;
    rows.open(header, collection, Number.MAX_SAFE_INTEGER, VERSIONS_NEWEST);
    rows.seek(u8, lower, lowerBytes);
    for (; rows.valid && isBelow(rows.keyBytes, rows.keyOffset, rows.keyLength); rows.next()) {
      this.time = Math.max(this.time, rows.time);
    }
  }

  /** The newest change of a row that the attached generation knows; it is newer than those looked at before. */
  #look(collection: number, key: number, keyBytes: number, hash: number): void {
    const generation = this.#generation;
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
