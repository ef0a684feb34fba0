/**
 * The view: an immutable description of where everything lies, in shared memory, published by the
 * keeper through one word. Blocks are shared between views and never change once a view names them,
 * but for the index and filter of a part, which go when views need the room.
 * All fields are u32 words; offsets and times take two, low then high. Newest first wherever order
 * has meaning for a reader. Built on the keeper's thread, read on every thread between enter and leave.
 *
 *   view        0 magic  1 version S  2 open generation  3 spare generation (0 = none yet)
 *               4 sealed generations  5 collections  6 segments of the log
 *               7.. sealed generation headers, newest first
 *               then {id, block} per collection with parts, ascending by id
 *               then {sequence number, first offset, time of the commit before} per segment, oldest first
 *   collection  0 id  1 kind  2 since  4 sinceNext  6 upper (all updates below are in parts)
 *               8 figures (counters of the keeper, 0 = none)  9 runs  10 range sets of all runs
 *               11.. {run block, level} a run, newest first
 *   run         0 parts  1 range sets  2.. part blocks, ascending by key, then addresses of range sets
 *               (core/base/range-set.ts, base: their own address)
 *   part        0 file  1 descriptor (i32, -1 = not open)  2 offset  4 bytes  6 rows  8 smallest time
 *               10 largest time  12 index block (0 = not loaded)  13 filter block (0 = none)
 *               14 index offset  15 index bytes  16 smallest key bytes  17 largest key bytes
 *               18 kind  19.. smallest key, largest key: long ones cut to bounds (`lowerBound`, `upperBound`)
 */
import { invariant } from '../base/assert.ts';
import { compareAt } from '../base/bytes.ts';
import { fromWords, highWord, lowWord } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import { loadLink, storeLink } from '../shared/link.ts';
import type { PartInfo } from './part-format.ts';

export const VIEW_MAGIC = 0x5749_6d54;

const VERSION_WORD = 1;
const OPEN_WORD = 2;
const SPARE_WORD = 3;
const SEALED_COUNT_WORD = 4;
const COLLECTION_COUNT_WORD = 5;
const SEGMENT_COUNT_WORD = 6;
const SEALED_WORD = 7;
const COLLECTION_ENTRY_WORDS = 2;
const SEGMENT_ENTRY_WORDS = 5;

const KIND_WORD = 1;
const SINCE_WORD = 2;
const SINCE_NEXT_WORD = 4;
const UPPER_WORD = 6;
const FIGURES_WORD = 8;
const RUN_COUNT_WORD = 9;
const RANGE_SETS_WORD = 10;
const RUNS_WORD = 11;
const RUN_ENTRY_WORDS = 2;

const PART_COUNT_WORD = 0;
const RUN_RANGE_SETS_WORD = 1;
const PARTS_WORD = 2;

const FILE_WORD = 0;
const FD_WORD = 1;
const OFFSET_WORD = 2;
const BYTES_WORD = 4;
const ROWS_WORD = 6;
const MIN_TIME_WORD = 8;
const MAX_TIME_WORD = 10;
const INDEX_WORD = 12;
const FILTER_WORD = 13;
const INDEX_OFFSET_WORD = 14;
const INDEX_BYTES_WORD = 15;
const KEY_LO_BYTES_WORD = 16;
const KEY_HI_BYTES_WORD = 17;
const PART_KIND_WORD = 18;
const KEYS_WORD = 19;

function setWide(u32: Uint32Array, word: number, value: number): void {
  u32[word] = lowWord(value);
  u32[word + 1] = highWord(value);
}

function getWide(u32: Uint32Array, word: number): number {
  return fromWords(u32[word], u32[word + 1]);
}

// ------------------------------------------------------------------ building

export type ViewFields = {
  readonly version: number;
  readonly open: number;
  readonly spare: number;
  /** Newest first. */
  readonly sealed: readonly number[];
  /** Ascending by id. */
  readonly collections: readonly { readonly id: number; readonly block: number }[];
  /** The log's directory, oldest first. */
  readonly segments: readonly ViewSegment[];
};

/** A segment of the log: its number, its first offset, the time of the last commit before it. */
export type ViewSegment = { readonly seq: number; readonly base: number; readonly atMs: number };

export function viewBytes(fields: ViewFields): number {
  const words =
    SEALED_WORD +
    fields.sealed.length +
    fields.collections.length * COLLECTION_ENTRY_WORDS +
    fields.segments.length * SEGMENT_ENTRY_WORDS;
  return words * 4;
}

export function writeView(arena: Arena, address: number, fields: ViewFields): void {
  const { u32 } = arena;
  const at = address >>> 2;
  u32[at] = VIEW_MAGIC;
  u32[at + VERSION_WORD] = fields.version;
  u32[at + OPEN_WORD] = fields.open;
  u32[at + SPARE_WORD] = fields.spare;
  u32[at + SEALED_COUNT_WORD] = fields.sealed.length;
  u32[at + COLLECTION_COUNT_WORD] = fields.collections.length;
  u32[at + SEGMENT_COUNT_WORD] = fields.segments.length;
  let word = at + SEALED_WORD;
  for (const sealed of fields.sealed) u32[word++] = sealed;
  for (const { id, block } of fields.collections) {
    u32[word++] = id;
    u32[word++] = block;
  }
  for (const { seq, base, atMs } of fields.segments) {
    u32[word] = seq;
    setWide(u32, word + 1, base);
    setWide(u32, word + 3, atMs);
    word += SEGMENT_ENTRY_WORDS;
  }
}

export type CollectionFields = {
  readonly id: number;
  readonly kind: number;
  readonly since: number;
  readonly sinceNext: number;
  readonly upper: number;
  /** Address of the keeper's counters of the collection; left out or 0: none. */
  readonly figures?: number;
  /** Newest first. */
  readonly runs: readonly {
    readonly block: number;
    readonly level: number;
    readonly rangeSets: number;
  }[];
};

export function collectionBytes(fields: CollectionFields): number {
  return (RUNS_WORD + fields.runs.length * RUN_ENTRY_WORDS) * 4;
}

export function writeCollection(arena: Arena, address: number, fields: CollectionFields): void {
  const { u32 } = arena;
  const at = address >>> 2;
  u32[at] = fields.id;
  u32[at + KIND_WORD] = fields.kind;
  setWide(u32, at + SINCE_WORD, fields.since);
  setWide(u32, at + SINCE_NEXT_WORD, fields.sinceNext);
  setWide(u32, at + UPPER_WORD, fields.upper);
  u32[at + FIGURES_WORD] = fields.figures ?? 0;
  u32[at + RUN_COUNT_WORD] = fields.runs.length;
  u32[at + RANGE_SETS_WORD] = fields.runs.reduce((sum, run) => sum + run.rangeSets, 0);
  let word = at + RUNS_WORD;
  for (const { block, level } of fields.runs) {
    u32[word++] = block;
    u32[word++] = level;
  }
}

export function runBlockBytes(parts: number, rangeSets: number): number {
  return (PARTS_WORD + parts + rangeSets) * 4;
}

/** `parts` are the blocks of those with rows, `rangeSets` the sets of those with range deletes. */
export function writeRun(
  arena: Arena,
  address: number,
  parts: readonly number[],
  rangeSets: readonly number[],
): void {
  const { u32 } = arena;
  const at = address >>> 2;
  u32[at + PART_COUNT_WORD] = parts.length;
  u32[at + RUN_RANGE_SETS_WORD] = rangeSets.length;
  let word = at + PARTS_WORD;
  for (const block of parts) u32[word++] = block;
  for (const set of rangeSets) u32[word++] = set;
}

/** Two keys of 64 KiB to a part would fill the arena of a store with many small parts. */
const BOUND_BYTES_MAX = 512;

/** A key that is not above the given one, nor above any that follows it. */
export function lowerBound(key: Uint8Array, bytesMax: number = BOUND_BYTES_MAX): Uint8Array {
  return key.length <= bytesMax ? key : key.subarray(0, bytesMax);
}

/** A key that is not below the given one, nor below any that precedes it. */
export function upperBound(key: Uint8Array, bytesMax: number = BOUND_BYTES_MAX): Uint8Array {
  if (key.length <= bytesMax) return key;
  let length = bytesMax;
  while (length > 0 && key[length - 1] === 0xff) length--;
  // Nothing that is shorter lies above.
  if (length === 0) return key;
  const bound = key.slice(0, length);
  bound[length - 1]++;
  return bound;
}

export function partBlockBytes({ keyLo, keyHi }: PartInfo): number {
  return KEYS_WORD * 4 + lowerBound(keyLo).length + upperBound(keyHi).length;
}

/** `index` and `filter` are addresses of their bytes, 0 where they are not in memory. */
export function writePart(
  arena: Arena,
  address: number,
  part: PartInfo,
  fd: number,
  index: number,
  filter: number,
): void {
  const { u32, i32, u8 } = arena;
  const at = address >>> 2;
  u32[at + FILE_WORD] = part.file;
  i32[at + FD_WORD] = fd;
  setWide(u32, at + OFFSET_WORD, part.offset);
  setWide(u32, at + BYTES_WORD, part.bytes);
  setWide(u32, at + ROWS_WORD, part.len);
  setWide(u32, at + MIN_TIME_WORD, part.minT);
  setWide(u32, at + MAX_TIME_WORD, part.maxT);
  u32[at + INDEX_WORD] = index;
  u32[at + FILTER_WORD] = filter;
  u32[at + INDEX_OFFSET_WORD] = part.indexOffset;
  u32[at + INDEX_BYTES_WORD] = part.indexBytes;
  const lower = lowerBound(part.keyLo);
  const upper = upperBound(part.keyHi);
  u32[at + KEY_LO_BYTES_WORD] = lower.length;
  u32[at + KEY_HI_BYTES_WORD] = upper.length;
  u32[at + PART_KIND_WORD] = part.kind;
  u8.set(lower, address + KEYS_WORD * 4);
  u8.set(upper, address + KEYS_WORD * 4 + lower.length);
}

/** Takes tables from a part that a view names, or leaves them: readers load each address once. */
export function setTables(arena: Arena, address: number, index: number, filter: number): void {
  const at = address >>> 2;
  storeLink(arena.i32, at + INDEX_WORD, index | 0);
  storeLink(arena.i32, at + FILTER_WORD, filter | 0);
}

// ------------------------------------------------------------------ reading

/** Looks at one view. Valid between enter and leave; fields are read where they lie. */
export class ViewReader {
  readonly #u32: Uint32Array;
  readonly #i32: Int32Array;
  readonly #u8: Uint8Array;
  #at = 0;

  constructor(arena: Arena) {
    this.#u32 = arena.u32;
    this.#i32 = arena.i32;
    this.#u8 = arena.u8;
  }

  attach(address: number): void {
    this.#at = address >>> 2;
    invariant(this.#u32[this.#at] === VIEW_MAGIC, 'a view', address);
  }

  get version(): number {
    return this.#u32[this.#at + VERSION_WORD];
  }

  get open(): number {
    return this.#u32[this.#at + OPEN_WORD];
  }

  /** 0 = none. */
  get spare(): number {
    return this.#u32[this.#at + SPARE_WORD];
  }

  get sealedCount(): number {
    return this.#u32[this.#at + SEALED_COUNT_WORD];
  }

  /** Newest first. */
  sealed(i: number): number {
    return this.#u32[this.#at + SEALED_WORD + i];
  }

  /** The log's directory, oldest first. */
  segments(): ViewSegment[] {
    const u32 = this.#u32;
    const count = u32[this.#at + SEGMENT_COUNT_WORD];
    const collections = this.collectionCount * COLLECTION_ENTRY_WORDS;
    const first = this.#at + SEALED_WORD + this.sealedCount + collections;
    return Array.from({ length: count }, (_, i) => {
      const word = first + i * SEGMENT_ENTRY_WORDS;
      return { seq: u32[word], base: getWide(u32, word + 1), atMs: getWide(u32, word + 3) };
    });
  }

  get collectionCount(): number {
    return this.#u32[this.#at + COLLECTION_COUNT_WORD];
  }

  /** Address of the i-th collection's block, ascending by id. */
  collectionAt(i: number): number {
    const first = this.#at + SEALED_WORD + this.sealedCount;
    return this.#u32[first + i * COLLECTION_ENTRY_WORDS + 1];
  }

  /** Address of the collection's block, 0 = nothing of it is in parts. */
  collection(id: number): number {
    const u32 = this.#u32;
    const first = this.#at + SEALED_WORD + u32[this.#at + SEALED_COUNT_WORD];
    let low = 0;
    let high = u32[this.#at + COLLECTION_COUNT_WORD];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (u32[first + middle * COLLECTION_ENTRY_WORDS] < id) low = middle + 1;
      else high = middle;
    }
    if (low === u32[this.#at + COLLECTION_COUNT_WORD]) return 0;
    const entry = first + low * COLLECTION_ENTRY_WORDS;
    return u32[entry] === id ? u32[entry + 1] : 0;
  }

  idOf(collection: number): number {
    return this.#u32[collection >>> 2];
  }

  since(collection: number): number {
    return getWide(this.#u32, (collection >>> 2) + SINCE_WORD);
  }

  sinceNext(collection: number): number {
    return getWide(this.#u32, (collection >>> 2) + SINCE_NEXT_WORD);
  }

  upper(collection: number): number {
    return getWide(this.#u32, (collection >>> 2) + UPPER_WORD);
  }

  /** Address of the keeper's counters of it, 0 = none. */
  figures(collection: number): number {
    return this.#u32[(collection >>> 2) + FIGURES_WORD];
  }

  runCount(collection: number): number {
    return this.#u32[(collection >>> 2) + RUN_COUNT_WORD];
  }

  /** Range sets of all runs; 0 = nothing in parts hides anything. */
  rangeSetCount(collection: number): number {
    return this.#u32[(collection >>> 2) + RANGE_SETS_WORD];
  }

  /** Address of the i-th run's block, newest first. */
  run(collection: number, i: number): number {
    return this.#u32[(collection >>> 2) + RUNS_WORD + i * RUN_ENTRY_WORDS];
  }

  /** Level of the spine at which the i-th run stands. */
  level(collection: number, i: number): number {
    return this.#u32[(collection >>> 2) + RUNS_WORD + i * RUN_ENTRY_WORDS + 1];
  }

  partCount(run: number): number {
    return this.#u32[(run >>> 2) + PART_COUNT_WORD];
  }

  part(run: number, i: number): number {
    return this.#u32[(run >>> 2) + PARTS_WORD + i];
  }

  runRangeSets(run: number): number {
    return this.#u32[(run >>> 2) + RUN_RANGE_SETS_WORD];
  }

  /** Address of the run's i-th range set. */
  rangeSet(run: number, i: number): number {
    return this.#u32[(run >>> 2) + PARTS_WORD + this.partCount(run) + i];
  }

  /**
   * Index of the first part whose largest key may be >= the given one; the part count when none is. Its
   * bounds may be cut: who does not find the key there looks into the next, until one begins after it.
   * `near`: a part that is tried first.
   */
  partAtOrAfter(run: number, key: Uint8Array, offset: number, length: number, near = -1): number {
    let low = 0;
    let high = this.partCount(run);
    if (near >= 0 && near < high) {
      if (this.#compareHigh(this.part(run, near), key, offset, length) < 0) low = near + 1;
      else if (near === 0) return 0;
      else if (this.#compareHigh(this.part(run, near - 1), key, offset, length) < 0) return near;
      else high = near - 1;
    }
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#compareHigh(this.part(run, middle), key, offset, length) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #compareHigh(part: number, key: Uint8Array, offset: number, length: number): number {
    const lowBytes = this.#u32[(part >>> 2) + KEY_LO_BYTES_WORD];
    const highBytes = this.#u32[(part >>> 2) + KEY_HI_BYTES_WORD];
    return compareAt(this.#u8, part + KEYS_WORD * 4 + lowBytes, highBytes, key, offset, length);
  }

  /** True when the part's smallest key is above the given one; not always, where its bound is cut. */
  beginsAfter(part: number, key: Uint8Array, offset: number, length: number): boolean {
    const lowBytes = this.#u32[(part >>> 2) + KEY_LO_BYTES_WORD];
    return compareAt(this.#u8, part + KEYS_WORD * 4, lowBytes, key, offset, length) > 0;
  }

  /** A view of the bound where it lies: no key of the part is below it. */
  keyLo(part: number): Uint8Array {
    const at = part + KEYS_WORD * 4;
    return this.#u8.subarray(at, at + this.#u32[(part >>> 2) + KEY_LO_BYTES_WORD]);
  }

  /** No key of the part is above it. */
  keyHi(part: number): Uint8Array {
    const at = part + KEYS_WORD * 4 + this.#u32[(part >>> 2) + KEY_LO_BYTES_WORD];
    return this.#u8.subarray(at, at + this.#u32[(part >>> 2) + KEY_HI_BYTES_WORD]);
  }

  file(part: number): number {
    return this.#u32[(part >>> 2) + FILE_WORD];
  }

  fd(part: number): number {
    return this.#i32[(part >>> 2) + FD_WORD];
  }

  offset(part: number): number {
    return getWide(this.#u32, (part >>> 2) + OFFSET_WORD);
  }

  bytes(part: number): number {
    return getWide(this.#u32, (part >>> 2) + BYTES_WORD);
  }

  rows(part: number): number {
    return getWide(this.#u32, (part >>> 2) + ROWS_WORD);
  }

  minTime(part: number): number {
    return getWide(this.#u32, (part >>> 2) + MIN_TIME_WORD);
  }

  maxTime(part: number): number {
    return getWide(this.#u32, (part >>> 2) + MAX_TIME_WORD);
  }

  /** Address of the part's index, 0 = not in memory. It may go at any time: ask once. */
  index(part: number): number {
    return loadLink(this.#i32, (part >>> 2) + INDEX_WORD) >>> 0;
  }

  indexOffset(part: number): number {
    return this.#u32[(part >>> 2) + INDEX_OFFSET_WORD];
  }

  indexBytes(part: number): number {
    return this.#u32[(part >>> 2) + INDEX_BYTES_WORD];
  }

  /** Address of the part's filter, 0 = none in memory. It may go at any time: ask once. */
  filter(part: number): number {
    return loadLink(this.#i32, (part >>> 2) + FILTER_WORD) >>> 0;
  }
}
