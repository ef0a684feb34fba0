/**
 * The writing side of a generation. Nodes are complete before they are linked, and everything that a
 * time t wrote is linked before the sequencer publishes a frontier above t: so a reader at T finds
 * what was newest at T however much is inserted meanwhile. Called by the sequencer alone, on its thread.
 *
 * Anchors in order of insertion, as readers of ranges see them:
 *
 *   [ in sorted runs, named by the directory | full chunks | the chunk being filled )
 *   0                                     sorted                                    keys
 *
 * Every full chunk becomes a run of level 0; `fanIn` runs of a level become one of the next. Work is
 * done by `maintain`; where the caller leaves it undone, insert does enough of it to stay ahead.
 */
import { invariant } from '../base/assert.ts';
import { KiB, collectionsMax, pageShift } from '../base/limits.ts';
import { OP_DELETE_RANGE, OP_PUT, OP_UPDATE, operationBytes } from '../base/update.ts';
import { highWord, lowWord } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import { KIND_MEMTABLE } from '../shared/buffer-pool.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { loadLink, storeLink } from '../shared/link.ts';
import { pageOf } from '../shared/record-pages.ts';
import {
  CODE_OTHER,
  codeOf,
  collectionAt,
  firstDifference,
  keyAddressAt,
  keyBytesAt,
} from './keys.ts';
import {
  ANCHORS_SHIFT,
  ANCHORS_WORD,
  ANCHOR_TABLE_WORD,
  BUCKETS_SHIFT,
  BUCKET_TABLE_WORD,
  BYTES_WORD,
  COLLECTION_SLOTS,
  COLLECTION_TABLE_WORD,
  DIRECTORY_ANCHORS_WORD,
  DIRECTORY_HEADER_WORDS,
  DIRECTORY_RUNS_WORD,
  DIRECTORY_RUN_WORDS,
  DIRECTORY_WORD,
  GENERATION_MAGIC,
  LOWER_WORD,
  MAGIC_WORD,
  MASK_WORD,
  NODE_BYTES,
  NODE_HASH_WORD,
  NODE_JUMP_WORD,
  NODE_NEWEST_WORD,
  NODE_NEXT_WORD,
  NODE_OLDER_WORD,
  NODE_OPERATION_WORD,
  NODE_SHIFT,
  NODE_TIME_HIGH_WORD,
  NODE_TIME_LOW_WORD,
  RANGES_WORD,
  ROWS_WORD,
  RUN_COUNT_WORD,
  RUN_START_WORD,
  SERIAL_WORD,
  TABLE_PAGES_MAX,
  TIME_HIGH_BITS,
  UPPER_WORD,
  collectionSlot,
  hopsMax,
  keyHash,
  mixCollection,
} from './layout.ts';
import { RunMerger } from './merge.ts';
import type { Run } from './merge.ts';
import { RangeSets } from './range-sets.ts';
import { PAGE_WORD_MASK, RunSpace } from './run-space.ts';
import { AnchorSorter } from './sort.ts';

export type GenerationOptions = {
  /** Accounted bytes (operations, nodes, runs) at which the generation is full. */
  bytes: number;
  /** Rows at which it is full; the bucket array is made for so many. */
  rows: number;
  /** Fewer buckets than rows. For tests. */
  buckets?: number;
  /** Keys of a chunk, which is sorted when full. For tests. */
  chunkKeys?: number;
  /** Runs of one level that are merged into one of the next. For tests. */
  fanIn?: number;
};

/** What `insert` reads of an operation; an OperationWalker offers it. */
export type OperationFields = {
  readonly address: number;
  readonly collection: number;
  readonly kind: number;
  readonly keyAddress: number;
  readonly keyBytes: number;
  readonly valueBytes: number;
};

/** Fuel for one `maintain` between other work: about 0.15 ms. */
export const maintainFuel = 4_096;

const chunkKeysDefault = 512;
const fanInDefault = 4;
/** A chunk is also full by bytes of keys, so that sorting it is a bounded step. */
const chunkKeyBytesMax: number = 64 * KiB;
/** Sorting an anchor costs as much as so many steps of a merge. */
const SORT_FUEL = 3;
/** Steps of merging that each key will need: one a level, and the levels are few. */
const MERGE_FUEL = 6;
/** Where long keys share long prefixes, merging looks at their bytes, on each level. */
const KEY_BYTES_PER_STEP_SHIFT = 3;
/** Chunks for whose sorting and merging `maintain` may be late before insert does the work itself. */
const lateChunksMax = 2;
/** Slots of the collection table that may be taken, so that probes stay short. */
const collectionsUsedMax: number = (COLLECTION_SLOTS / 8) * 7;

/** Keys are spread over at least so many. */
const bucketsMin = 1_024;

invariant(collectionsUsedMax >= collectionsMax, 'one record may touch every collection');

type Level = { runs: Run[]; merger: RunMerger | undefined };

/** Two generations never have one serial, so that what a reader remembers of a page's former user is told apart. */
let lastSerial = 0;

export class GenerationWriter {
  /** Address of the header page: the generation's handle in views and rings. */
  readonly header: number;
  /** First offset it may hold; -1 while it is a spare. */
  lower = -1;
  /** First offset it does not hold; -1 until sealed. */
  upper = -1;
  /** Nodes: one an operation that came in. */
  rows = 0;
  /** Distinct keys. */
  keys = 0;
  /** Operations, nodes and runs. What every generation has, however empty, is not counted. */
  bytes = 0;

  readonly #arena: Arena;
  readonly #i32: Int32Array;
  readonly #u32: Uint32Array;
  readonly #u8: Uint8Array;
  readonly #pool: BufferPool;
  readonly #bytesMax: number;
  readonly #rowsMax: number;
  readonly #chunkKeys: number;
  readonly #fanIn: number;
  readonly #mask: number;
  /** Of the header. */
  readonly #word: number;

  #bucketPages = 0;
  #anchorPages = 0;
  /** Pages of the nodes that are not anchors; only links lead there, so the header does not list them. */
  readonly #versionPages: number[] = [];
  #versions = 0;

  /** Record pages held, and a bit for each. */
  readonly #recordPages: number[] = [];
  readonly #held: Int32Array;
  #lastHeld = 0;

  #collections = 0;
  #lastCollection = -1;
  #lastCollectionWord = 0;
  #lastTime = -1;
  #timeLow = 0;
  #timeHigh = 0;

  /** Anchors in runs: the first so many. */
  #sorted = 0;
  /** Ends of the full chunks that wait for being sorted. */
  readonly #waiting: number[] = [];
  #chunkStart = 0;
  #chunkKeyBytes = 0;
  /** Fuel that maintenance is behind by. */
  #due = 0;
  readonly #space: RunSpace;
  readonly #ranges: RangeSets;
  readonly #sorter: AnchorSorter;
  readonly #levels: Level[] = [];
  #freed = false;

  private constructor(
    arena: Arena,
    pool: BufferPool,
    options: GenerationOptions,
    header: number,
    buckets: number,
  ) {
    this.header = header;
    this.#arena = arena;
    this.#i32 = arena.i32;
    this.#u32 = arena.u32;
    this.#u8 = arena.u8;
    this.#pool = pool;
    this.#bytesMax = options.bytes;
    this.#rowsMax = options.rows;
    this.#chunkKeys = options.chunkKeys ?? chunkKeysDefault;
    this.#fanIn = options.fanIn ?? fanInDefault;
    this.#mask = buckets - 1;
    this.#word = header >>> 2;
    this.#held = new Int32Array(((arena.bytes >>> pageShift) + 31) >>> 5);
    this.#space = new RunSpace(arena, pool, header);
    this.#ranges = new RangeSets(arena, this.#space, header);
    this.#sorter = new AnchorSorter(arena);
    this.#sorter.reserve(this.#chunkKeys);
    invariant(this.#fanIn >= 2, 'a merge has two inputs at least', this.#fanIn);
    invariant(this.#chunkKeys >= 1, 'a chunk has a key at least', this.#chunkKeys);
  }

  /** A spare generation, or undefined when the pool has not got the pages (nothing is kept). */
  static create(
    arena: Arena,
    pool: BufferPool,
    options: GenerationOptions,
  ): GenerationWriter | undefined {
    const header = pool.lease(KIND_MEMTABLE);
    if (header === 0) return undefined;
    let buckets = 1;
    while (buckets < (options.buckets ?? Math.max(options.rows, bucketsMin))) buckets *= 2;
    const writer = new GenerationWriter(arena, pool, options, header, buckets);
    if (writer.#prepare(buckets)) return writer;
    writer.free();
    return undefined;
  }

  #prepare(buckets: number): boolean {
    const i32 = this.#i32;
    const word = this.#word;
    i32.fill(0, word, word + BUCKET_TABLE_WORD);
    const table = word + COLLECTION_TABLE_WORD;
    i32.fill(0, table, table + COLLECTION_SLOTS);
    i32[word + MAGIC_WORD] = GENERATION_MAGIC;
    lastSerial = (lastSerial + 1) | 0;
    i32[word + SERIAL_WORD] = lastSerial;
    i32[word + MASK_WORD] = this.#mask;
    const pages = Math.max(1, buckets >>> BUCKETS_SHIFT);
    invariant(pages <= TABLE_PAGES_MAX, 'the header lists all buckets', buckets);
    while (this.#bucketPages < pages) {
      const page = this.#pool.lease(KIND_MEMTABLE);
      if (page === 0) return false;
      i32.fill(0, page >>> 2, (page >>> 2) + Math.min(buckets, 1 << BUCKETS_SHIFT));
      this.#u32[word + BUCKET_TABLE_WORD + this.#bucketPages++] = page;
    }
    return this.#reserveNodes(1, 0) && this.#space.reserve(1);
  }

  /** The spare becomes the open generation: times from `lower` on go here. */
  open(lower: number): void {
    invariant(this.lower === -1, 'a generation is opened once', this.lower);
    this.lower = lower;
  }

  /** Bytes that it takes before it is full. */
  get bytesLeft(): number {
    return Math.max(0, this.#bytesMax - this.bytes);
  }

  /** Full by bytes or rows. `roomFor` says so too, of a given record. */
  get full(): boolean {
    return this.bytes >= this.#bytesMax || this.rows >= this.#rowsMax;
  }

  /**
   * True when a record of so many operations and bytes can be inserted without failing; what it needs
   * is leased by then. False on a generation with rows: seal it and take the spare. False on one
   * without: pages are missing (backpressure). An empty generation is never too full for a record.
   */
  roomFor(operationCount: number, payloadBytes: number): boolean {
    if (this.rows > 0) {
      const bytes = this.bytes + payloadBytes + operationCount * NODE_BYTES;
      if (bytes > this.#bytesMax || this.rows + operationCount > this.#rowsMax) return false;
      const collections = Math.min(operationCount, collectionsMax);
      if (this.#collections + collections > collectionsUsedMax) return false;
    }
    // Whether a key is here already is not known yet: there is room for all to be, and for none.
    return this.#reserveNodes(operationCount, operationCount);
  }

  #reserveNodes(anchors: number, versions: number): boolean {
    while (this.#anchorPages << ANCHORS_SHIFT < this.keys + anchors) {
      if (this.#anchorPages === TABLE_PAGES_MAX) return false;
      const page = this.#pool.lease(KIND_MEMTABLE);
      if (page === 0) return false;
      // Plain: whoever reads this entry saw a count of anchors that was published after it.
      this.#u32[this.#word + ANCHOR_TABLE_WORD + this.#anchorPages++] = page;
    }
    while (this.#versionPages.length << ANCHORS_SHIFT < this.#versions + versions) {
      const page = this.#pool.lease(KIND_MEMTABLE);
      if (page === 0) return false;
      this.#versionPages.push(page);
    }
    return true;
  }

  /** Requires: `roomFor` for its record; `time` >= every earlier one; the record's pages retained. */
  insert(operation: OperationFields, time: number): void {
    const i32 = this.#i32;
    const u32 = this.#u32;
    const { address, collection, kind, keyAddress, keyBytes } = operation;
    invariant((address & 7) === 0, 'an operation starts at a multiple of 8', address);
    if (time !== this.#lastTime) this.#setTime(time);
    if (kind === OP_DELETE_RANGE) {
      this.#insertRange(operation);
      return;
    }
    // Attached files never come here.
    invariant(kind >= OP_PUT && kind <= OP_UPDATE, 'a row is put, deleted or updated', kind);

    const hash = mixCollection(keyHash(this.#u8, keyAddress, keyBytes), collection);
    const bucket = hash & this.#mask;
    const page = u32[this.#word + BUCKET_TABLE_WORD + (bucket >>> BUCKETS_SHIFT)];
    const bucketWord = (page >>> 2) + (bucket & ((1 << BUCKETS_SHIFT) - 1));
    let linkWord = bucketWord;
    let found = loadLink(i32, linkWord) >>> 2;
    while (found !== 0) {
      if (i32[found + NODE_HASH_WORD] === hash && this.#isKey(found, operation)) break;
      linkWord = found + NODE_NEXT_WORD;
      found = loadLink(i32, linkWord) >>> 2;
    }

    const node = found === 0 ? this.#anchorAddress() : this.#versionAddress();
    const word = node >>> 2;
    u32[word + NODE_OPERATION_WORD] = address;
    i32[word + NODE_HASH_WORD] = hash;
    u32[word + NODE_TIME_LOW_WORD] = this.#timeLow;
    if (found === 0) {
      u32[word + NODE_TIME_HIGH_WORD] = this.#timeHigh;
      u32[word + NODE_OLDER_WORD] = 0;
      u32[word + NODE_JUMP_WORD] = 0;
      u32[word + NODE_NEWEST_WORD] = node;
      i32[word + NODE_NEXT_WORD] = loadLink(i32, bucketWord);
      storeLink(i32, bucketWord, node);
      storeLink(i32, this.#word + ANCHORS_WORD, ++this.keys);
    } else {
      this.#fillVersion(word, found);
      // A reader that stands on the node replaced goes on from it: what it may miss there is newer than its T.
      i32[word + NODE_NEXT_WORD] = loadLink(i32, found + NODE_NEXT_WORD);
      storeLink(i32, linkWord, node);
      storeLink(i32, (u32[word + NODE_NEWEST_WORD] >>> 2) + NODE_NEWEST_WORD, node);
    }
    if (collection !== this.#lastCollection) this.#findCollection(collection);
    storeLink(i32, this.#lastCollectionWord, node);

    this.rows++;
    this.bytes += NODE_BYTES + operationBytes(kind, keyBytes, operation.valueBytes);
    if (found === 0) this.#extendChunk(keyBytes);
  }

  /** As a version, but on a list of its own; the collection's newest change all the same. */
  #insertRange(operation: OperationFields): void {
    const { address, collection, keyBytes, valueBytes } = operation;
    const i32 = this.#i32;
    const u32 = this.#u32;
    const node = this.#versionAddress();
    const word = node >>> 2;
    u32.fill(0, word, word + (NODE_BYTES >>> 2));
    u32[word + NODE_NEXT_WORD] = loadLink(i32, this.#word + RANGES_WORD);
    u32[word + NODE_OPERATION_WORD] = address;
    u32[word + NODE_TIME_LOW_WORD] = this.#timeLow;
    u32[word + NODE_TIME_HIGH_WORD] = this.#timeHigh;
    storeLink(i32, this.#word + RANGES_WORD, node);
    if (collection !== this.#lastCollection) this.#findCollection(collection);
    storeLink(i32, this.#lastCollectionWord, node);
    this.rows++;
    this.bytes += NODE_BYTES + operationBytes(OP_DELETE_RANGE, keyBytes, valueBytes);
    this.bytes += this.#ranges.add(node);
  }

  #setTime(time: number): void {
    invariant(this.lower !== -1 && this.upper === -1, 'rows go to the open generation', time);
    invariant(time >= this.lower && time > this.#lastTime, 'times do not decrease', time);
    this.#lastTime = time;
    this.#timeLow = lowWord(time);
    this.#timeHigh = highWord(time);
  }

  #isKey(nodeWord: number, operation: OperationFields): boolean {
    const u32 = this.#u32;
    const other = u32[nodeWord + NODE_OPERATION_WORD];
    const { keyBytes } = operation;
    if (collectionAt(u32, other) !== operation.collection) return false;
    if (keyBytesAt(u32, other) !== keyBytes) return false;
    const otherKey = keyAddressAt(u32, other);
    return firstDifference(u32, this.#u8, otherKey, operation.keyAddress, 0, keyBytes) === keyBytes;
  }

  #anchorAddress(): number {
    const index = this.keys;
    invariant(index < this.#anchorPages << ANCHORS_SHIFT, 'room was asked for', index);
    const page = this.#u32[this.#word + ANCHOR_TABLE_WORD + (index >>> ANCHORS_SHIFT)];
    return page + ((index & ((1 << ANCHORS_SHIFT) - 1)) << NODE_SHIFT);
  }

  #versionAddress(): number {
    const index = this.#versions++;
    invariant(index < this.#versionPages.length << ANCHORS_SHIFT, 'room was asked for', index);
    const page = this.#versionPages[index >>> ANCHORS_SHIFT];
    return page + ((index & ((1 << ANCHORS_SHIFT) - 1)) << NODE_SHIFT);
  }

  /** The words of a new version that come from the newest one before it. */
  #fillVersion(word: number, older: number): void {
    const u32 = this.#u32;
    const anchor = u32[older + NODE_OLDER_WORD] === 0;
    const hops = u32[older + NODE_TIME_HIGH_WORD] >>> TIME_HIGH_BITS;
    // Every hopsMax versions one becomes the place to which the next hopsMax jump.
    const far = hops + 1 > hopsMax || anchor;
    u32[word + NODE_JUMP_WORD] = far ? older << 2 : u32[older + NODE_JUMP_WORD];
    u32[word + NODE_TIME_HIGH_WORD] = this.#timeHigh | ((far ? 1 : hops + 1) << TIME_HIGH_BITS);
    u32[word + NODE_OLDER_WORD] = older << 2;
    u32[word + NODE_NEWEST_WORD] = anchor ? older << 2 : u32[older + NODE_NEWEST_WORD];
  }

  /** Finds or takes the collection's slot. */
  #findCollection(collection: number): void {
    const i32 = this.#i32;
    const table = this.#word + COLLECTION_TABLE_WORD;
    let slot = collectionSlot(collection);
    for (;;) {
      const node = loadLink(i32, table + slot) >>> 2;
      if (node === 0) {
        this.#collections++;
        invariant(this.#collections < COLLECTION_SLOTS, 'a slot stays empty', collection);
        break;
      }
      if (collectionAt(this.#u32, this.#u32[node + NODE_OPERATION_WORD]) === collection) break;
      slot = (slot + 1) & (COLLECTION_SLOTS - 1);
    }
    this.#lastCollection = collection;
    this.#lastCollectionWord = table + slot;
  }

  #extendChunk(keyBytes: number): void {
    this.#chunkKeyBytes += keyBytes;
    const keys = this.keys - this.#chunkStart;
    if (keys < this.#chunkKeys && this.#chunkKeyBytes < chunkKeyBytesMax) return;
    const fuel =
      (SORT_FUEL + MERGE_FUEL) * keys + (this.#chunkKeyBytes >>> KEY_BYTES_PER_STEP_SHIFT);
    this.#waiting.push(this.keys);
    this.#chunkStart = this.keys;
    this.#chunkKeyBytes = 0;
    // The work that this chunk brings is due; what comes to more than a few chunks of it is done here.
    this.#due += fuel;
    if (this.#due > (lateChunksMax + 1) * fuel) this.maintain(this.#due - lateChunksMax * fuel);
  }

  /**
   * Holds the page and those chained behind it until `free`; each is held once, however often it is
   * named. To be called for the first page of each record, before its operations are inserted.
   */
  retainPage(page: number): void {
    for (let at = pageOf(page); at !== 0; at = this.#pool.next(at)) {
      if (at === this.#lastHeld) continue;
      const index = at >>> pageShift;
      const bits = this.#held[index >>> 5];
      const bit = 1 << (index & 31);
      this.#lastHeld = at;
      if ((bits & bit) !== 0) continue;
      this.#held[index >>> 5] = bits | bit;
      this.#recordPages.push(at);
      this.#pool.retain(at);
    }
  }

  /** Sorts what is not sorted; from here on nothing changes. */
  seal(upper: number): void {
    invariant(this.upper === -1 && this.lower !== -1, 'an open generation is sealed', this.lower);
    invariant(upper > this.#lastTime && upper >= this.lower, 'upper is above all times', upper);
    this.upper = upper;
    if (this.keys > this.#chunkStart) this.#waiting.push(this.keys);
    while (this.#waiting.length > 0 && this.#sortChunk());
    this.#levels.length = 0;
    this.#space.dropCodes();
    this.#setPair(LOWER_WORD, this.lower);
    this.#setPair(UPPER_WORD, upper);
    this.#setPair(ROWS_WORD, this.rows);
    this.#setPair(BYTES_WORD, this.bytes);
  }

  #setPair(word: number, value: number): void {
    this.#i32[this.#word + word] = lowWord(value);
    this.#i32[this.#word + word + 1] = highWord(value);
  }

  /** Sorts full chunks and merges runs for about `fuel` steps of 40 ns. True while there is more to do. */
  maintain(fuel: number): boolean {
    if (this.upper !== -1) return false;
    const more = this.#work(fuel);
    this.#due = more ? Math.max(0, this.#due - fuel) : 0;
    return more;
  }

  #work(fuel: number): boolean {
    let left = fuel;
    while (this.#waiting.length > 0) {
      if (left <= 0) return true;
      left -= SORT_FUEL * (this.#waiting[0] - this.#sorted);
      // Without a page for the run the chunk stays in the tail, which readers sort themselves.
      if (!this.#sortChunk()) return false;
    }
    // Lower levels first: theirs is the smaller work and the larger effect.
    for (let i = 0; i < this.#levels.length; i++) {
      const level = this.#levels[i];
      while (level.merger !== undefined || level.runs.length >= this.#fanIn) {
        if (left <= 0) return true;
        if (level.merger === undefined && !this.#startMerge(level)) return false;
        left = this.#merge(i, left);
      }
    }
    return false;
  }

  /** Sorts the oldest waiting chunk into a run. False when the pool has no page for it. */
  #sortChunk(): boolean {
    const end = this.#waiting[0];
    const count = end - this.#sorted;
    const start = this.#space.take(count);
    if (start === -1) return false;
    const sorter = this.#sorter;
    sorter.reserve(count);
    const table = this.#word + ANCHOR_TABLE_WORD;
    for (let i = 0; i < count; i++) {
      const index = this.#sorted + i;
      const page = this.#u32[table + (index >>> ANCHORS_SHIFT)];
      sorter.nodes[i] = page + ((index & ((1 << ANCHORS_SHIFT) - 1)) << NODE_SHIFT);
    }
    sorter.sort(count);
    this.#writeRun(start, sorter.nodes, count);
    this.bytes += 4 * count;
    this.#waiting.shift();
    this.#sorted = end;
    this.#addRun(0, { start, count });
    this.#publishDirectory();
    return true;
  }

  /** Writes sorted anchors and the code of each relative to the one before. */
  #writeRun(start: number, nodes: Uint32Array, count: number): void {
    const u32 = this.#u32;
    const u8 = this.#u8;
    const space = this.#space;
    let last = 0;
    for (let i = 0; i < count; i++) {
      const operation = u32[(nodes[i] >>> 2) + NODE_OPERATION_WORD];
      let code: number = CODE_OTHER;
      if (last !== 0 && collectionAt(u32, operation) === collectionAt(u32, last)) {
        const bytes = keyBytesAt(u32, operation);
        const lastBytes = keyBytesAt(u32, last);
        const key = keyAddressAt(u32, operation);
        const limit = bytes < lastBytes ? bytes : lastBytes;
        const at = firstDifference(u32, u8, key, keyAddressAt(u32, last), 0, limit);
        code = codeOf(u8, key, bytes, at);
      }
      u32[space.wordOf(start + i)] = nodes[i];
      space.codePage(start + i)[(start + i) & PAGE_WORD_MASK] = code;
      last = operation;
    }
  }

  #addRun(index: number, run: Run): void {
    const level = this.#levels[index];
    if (level === undefined) this.#levels.push({ runs: [run], merger: undefined });
    else level.runs.push(run);
  }

  #startMerge(level: Level): boolean {
    const inputs = level.runs.slice(0, this.#fanIn);
    const count = inputs.reduce((sum, run) => sum + run.count, 0);
    const start = this.#space.take(count);
    if (start === -1) return false;
    this.bytes += 4 * count;
    level.merger = new RunMerger(this.#arena, this.#space, inputs, { start, count });
    return true;
  }

  #merge(index: number, fuel: number): number {
    const level = this.#levels[index];
    const merger = level.merger;
    invariant(merger !== undefined, 'a merge is under way', index);
    const left = merger.work(fuel);
    if (!merger.done) return left;
    // The inputs leave the directory with the step that brings the output in.
    level.merger = undefined;
    level.runs.splice(0, this.#fanIn);
    this.#addRun(index + 1, merger.output);
    this.#publishDirectory();
    return left;
  }

  /**
   * Readers see either the old list of runs or this one, and what either names stays where it is.
   * Without a page the old one stays: it is as true, and the next one will name all that this would.
   */
  #publishDirectory(): void {
    const u32 = this.#u32;
    let count = 0;
    for (const level of this.#levels) count += level.runs.length;
    const directory = this.#space.takeBlock(DIRECTORY_HEADER_WORDS + count * DIRECTORY_RUN_WORDS);
    if (directory === 0) return;
    let word = directory >>> 2;
    u32[word + DIRECTORY_RUNS_WORD] = count;
    u32[word + DIRECTORY_ANCHORS_WORD] = this.#sorted;
    word += DIRECTORY_HEADER_WORDS;
    for (const level of this.#levels) {
      for (const run of level.runs) {
        u32[word + RUN_START_WORD] = run.start;
        u32[word + RUN_COUNT_WORD] = run.count;
        word += DIRECTORY_RUN_WORDS;
      }
    }
    storeLink(this.#i32, this.#word + DIRECTORY_WORD, directory);
  }

  /** Pages of the pool that it has, record pages not among them. */
  get pages(): number {
    return (
      1 + this.#bucketPages + this.#anchorPages + this.#versionPages.length + this.#space.pages
    );
  }

  /** Record pages it holds. */
  get recordPages(): number {
    return this.#recordPages.length;
  }

  /** Gives back every page and releases the record pages. Requires: no reader can see it any more. */
  free(): void {
    invariant(!this.#freed, 'a generation is freed once', this.header);
    this.#freed = true;
    const pool = this.#pool;
    const buckets = this.#word + BUCKET_TABLE_WORD;
    for (let i = 0; i < this.#bucketPages; i++) pool.free(this.#u32[buckets + i], KIND_MEMTABLE);
    const anchors = this.#word + ANCHOR_TABLE_WORD;
    for (let i = 0; i < this.#anchorPages; i++) pool.free(this.#u32[anchors + i], KIND_MEMTABLE);
    for (const page of this.#versionPages) pool.free(page, KIND_MEMTABLE);
    this.#space.free();
    for (const page of this.#recordPages) pool.release(page);
    // Last: the tables of all the others are in it.
    pool.free(this.header, KIND_MEMTABLE);
  }
}
