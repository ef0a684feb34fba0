/**
 * The writing side of the cache's hash index: roots, bucket chains, marks. Linear hashing: buckets are
 * added and merged one at a time as rows come and go, so that no step is long. A row is findable from
 * the store that links it to the store that unlinks it, except while its bucket is split or merged;
 * the size word says so, and readers that found nothing look again. Each store leaves a set of true
 * claims: a reader in the middle of a chain that changes finds less, never something false. Called by
 * RowCache, on the evictor's thread.
 */
import { invariant } from '../base/assert.ts';
import { equalAt } from '../base/bytes.ts';
import { collectionsMax, pageBytes } from '../base/limits.ts';
import type { Arena } from '../shared/arena.ts';
import { KIND_CACHE } from '../shared/buffer-pool.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { storeLink } from '../shared/link.ts';
import {
  BUCKETS_PER_SEGMENT,
  BUCKETS_SHIFT,
  BUCKET_SEGMENTS_MAX,
  BUCKET_TABLE_OFFSET,
  FIRST_BUCKETS_OFFSET,
  FIRST_MARKS_OFFSET,
  MARKS_PER_SEGMENT,
  MARKS_SHIFT,
  MARK_SEGMENTS_MAX,
  MARK_TABLE_OFFSET,
  PERIOD_MAX,
  PERIOD_OFFSET,
  ROOT_BUCKET_SEGMENTS,
  ROOT_HEAD_BYTES,
  ROOT_MARK_SEGMENTS,
  ROW_COLLECTION_OFFSET,
  ROW_HASH_OFFSET,
  ROW_KEY_OFFSET,
  ROW_NEXT_OFFSET,
  ROW_SHAPE_OFFSET,
  SECOND_BUCKETS_OFFSET,
  SEGMENTS_PER_PAGE,
  SEGMENT_BYTES,
  SHAPE_KEY_MASK,
  SIZE_BUSY,
  SIZE_OFFSET,
  SIZE_SHIFT,
  bucketOf,
  rootSlotOf,
} from './layout.ts';

/** Buckets of an index at least, and at first. */
export const bucketsLeast: number = ROOT_BUCKET_SEGMENTS * BUCKETS_PER_SEGMENT;

/** Splits or merges that one change of the row count may bring. */
const STEPS_PER_CHANGE = 2;
/** Buckets are merged when there are this many of them a row. */
const BUCKETS_PER_ROW_MAX = 4;

export class RowIndex {
  readonly #pool: BufferPool;
  readonly #u8: Uint8Array;
  readonly #i32: Int32Array;
  readonly #u32: Uint32Array;
  readonly #rootsWord: number;
  readonly #bucketsMin: number;
  readonly #retirePage: (page: number) => void;
  /** Linked rows by root slot. */
  readonly #rowsOf: Int32Array = new Int32Array(collectionsMax);
  /** The root page, 0 = nothing is cached. */
  #root = 0;
  #buckets = 0;
  #rows = 0;
  #markSegments = 0;
  #period = 1;
  /** Pages besides the root page. */
  readonly #bucketPages: number[] = [];
  readonly #markPages: number[] = [];
  /** Rows on their way to another bucket. */
  readonly #moving: number[] = [];

  /** `retirePage` frees a page once no reader can see it; `bucketsMin` is a power of two up to bucketsLeast. */
  constructor(
    arena: Arena,
    pool: BufferPool,
    rootsAddress: number,
    bucketsMin: number,
    retirePage: (page: number) => void,
  ) {
    invariant(bucketsMin > 0 && bucketsMin <= bucketsLeast, 'the root page holds them', bucketsMin);
    invariant((bucketsMin & (bucketsMin - 1)) === 0, 'linear hashing starts even', bucketsMin);
    this.#pool = pool;
    this.#u8 = arena.u8;
    this.#i32 = arena.i32;
    this.#u32 = arena.u32;
    this.#rootsWord = rootsAddress >>> 2;
    this.#bucketsMin = bucketsMin;
    this.#retirePage = retirePage;
  }

  get isOpen(): boolean {
    return this.#root !== 0;
  }

  get rows(): number {
    return this.#rows;
  }

  get buckets(): number {
    return this.#buckets;
  }

  /** Makes an empty index; false when the pool has no page for it. No collection's root names it yet. */
  open(): boolean {
    const root = this.#pool.lease(KIND_CACHE);
    if (root === 0) return false;
    this.#u8.fill(0, root, root + ROOT_HEAD_BYTES);
    this.#i32.fill(
      0,
      (root + FIRST_BUCKETS_OFFSET) >>> 2,
      (root + FIRST_BUCKETS_OFFSET + SEGMENT_BYTES) >>> 2,
    );
    this.#i32.fill(
      0,
      (root + SECOND_BUCKETS_OFFSET) >>> 2,
      (root + SECOND_BUCKETS_OFFSET + SEGMENT_BYTES) >>> 2,
    );
    this.#root = root;
    this.#buckets = this.#bucketsMin;
    this.#markSegments = ROOT_MARK_SEGMENTS;
    this.#u32[(root + PERIOD_OFFSET) >>> 2] = this.#period;
    this.#u32[(root + MARK_TABLE_OFFSET) >>> 2] = root + FIRST_MARKS_OFFSET;
    storeLink(this.#i32, this.#entryWord(0), root + FIRST_BUCKETS_OFFSET);
    storeLink(this.#i32, this.#entryWord(1), root + SECOND_BUCKETS_OFFSET);
    this.#storeSize(0);
    return true;
  }

  /**
   * Unlinks everything at once: from here on readers find no root. Returns the pages, the caller's to
   * free once no reader can see them.
   */
  close(): number[] {
    for (let slot = 0; slot < collectionsMax; slot++) {
      if (this.#rowsOf[slot] === 0) continue;
      this.#rowsOf[slot] = 0;
      storeLink(this.#i32, this.#rootsWord + slot, 0);
    }
    const pages = [...this.#bucketPages, ...this.#markPages];
    if (this.#root !== 0) pages.push(this.#root);
    this.#root = 0;
    this.#rows = 0;
    this.#buckets = 0;
    this.#markSegments = 0;
    this.#bucketPages.length = 0;
    this.#markPages.length = 0;
    return pages;
  }

  /** Address of the key's first row, or of the next one behind `after`; 0 = there is none. */
  find(
    collection: number,
    keyAddress: number,
    keyBytes: number,
    hash: number,
    after: number = 0,
  ): number {
    if (this.#root === 0) return 0;
    const i32 = this.#i32;
    // Its only writer reads a link word as it left it.
    const link = after === 0 ? this.#bucketWord(hash) : (after + ROW_NEXT_OFFSET) >>> 2;
    let row = i32[link] >>> 0;
    while (row !== 0) {
      const word = row >>> 2;
      if (
        i32[word + ROW_HASH_OFFSET / 4] === hash &&
        i32[word + ROW_COLLECTION_OFFSET / 4] === collection &&
        (i32[word + ROW_SHAPE_OFFSET / 4] & SHAPE_KEY_MASK) === keyBytes &&
        equalAt(this.#u8, row + ROW_KEY_OFFSET, keyBytes, this.#u8, keyAddress, keyBytes)
      ) {
        return row;
      }
      row = i32[word + ROW_NEXT_OFFSET / 4] >>> 0;
    }
    return 0;
  }

  /** Requires: the row is complete but for its link, and none of its key here says the same. */
  link(row: number): void {
    const bucket = this.#bucketWord(this.#hashOf(row));
    this.#i32[(row + ROW_NEXT_OFFSET) >>> 2] = this.#i32[bucket];
    storeLink(this.#i32, bucket, row);
    const slot = this.#slotOf(row);
    if (this.#rowsOf[slot]++ === 0) storeLink(this.#i32, this.#rootsWord + slot, this.#root);
    this.#rows++;
    for (let i = 0; i < STEPS_PER_CHANGE && this.#rows > this.#buckets; i++) {
      if (!this.#split()) break;
    }
  }

  /** Puts `row` in the place of `former`, which has the same key, in one store. */
  replace(former: number, row: number): void {
    const linkWord = this.#linkTo(former);
    this.#i32[(row + ROW_NEXT_OFFSET) >>> 2] = this.#i32[(former + ROW_NEXT_OFFSET) >>> 2];
    storeLink(this.#i32, linkWord, row);
  }

  unlink(row: number): void {
    storeLink(this.#i32, this.#linkTo(row), this.#i32[(row + ROW_NEXT_OFFSET) >>> 2]);
    const slot = this.#slotOf(row);
    if (--this.#rowsOf[slot] === 0) storeLink(this.#i32, this.#rootsWord + slot, 0);
    this.#rows--;
    for (let i = 0; i < STEPS_PER_CHANGE && this.#isSparse(); i++) this.#merge();
  }

  /** Makes sure that the node has a mark, and clears it; false when the pool has no page for it. */
  provideMark(node: number): boolean {
    const segment = node >>> MARKS_SHIFT;
    invariant(segment < MARK_SEGMENTS_MAX, 'every row has a mark', node);
    while (segment >= this.#markSegments) {
      const page = this.#pool.lease(KIND_CACHE);
      if (page === 0) return false;
      this.#markPages.push(page);
      for (let i = 0; i < SEGMENTS_PER_PAGE && this.#markSegments < MARK_SEGMENTS_MAX; i++) {
        const entry = this.#root + MARK_TABLE_OFFSET + this.#markSegments++ * 4;
        this.#u32[entry >>> 2] = page + i * SEGMENT_BYTES;
      }
    }
    this.#u8[this.#markAddress(node)] = 0;
    return true;
  }

  /** True when a reader touched the node in this period or the one before. */
  isMarked(node: number): boolean {
    const mark = this.#u8[this.#markAddress(node)];
    return mark === this.#period || mark === (this.#period === 1 ? PERIOD_MAX : this.#period - 1);
  }

  /** From here on a reader reports rows again that it reported before. */
  advancePeriod(): void {
    this.#period = this.#period === PERIOD_MAX ? 1 : this.#period + 1;
    if (this.#root !== 0) this.#u32[(this.#root + PERIOD_OFFSET) >>> 2] = this.#period;
  }

  /** Every linked row with its bucket. For audits. */
  eachRow(visit: (row: number, bucket: number) => void): void {
    for (let bucket = 0; bucket < this.#buckets; bucket++) {
      let row = this.#i32[this.#wordOf(bucket)] >>> 0;
      while (row !== 0) {
        visit(row, bucket);
        row = this.#i32[(row + ROW_NEXT_OFFSET) >>> 2] >>> 0;
      }
    }
  }

  /** A reader that was held up counts on more buckets: they are there, and empty. For audits. */
  checkBuckets(): void {
    const segments = ROOT_BUCKET_SEGMENTS + this.#bucketPages.length * SEGMENTS_PER_PAGE;
    for (let bucket = this.#buckets; bucket < segments * BUCKETS_PER_SEGMENT; bucket++) {
      if (this.#root !== 0) invariant(this.#i32[this.#wordOf(bucket)] === 0, 'empty', bucket);
    }
  }

  /** A collection's root is there exactly while it has rows. `rowsOf` are those found, by slot. For audits. */
  checkRoots(rowsOf: ReadonlyMap<number, number>): void {
    for (let slot = 0; slot < collectionsMax; slot++) {
      const rows = rowsOf.get(slot) ?? 0;
      invariant(rows === this.#rowsOf[slot], 'rows are counted by collection', slot);
      const root = this.#u32[this.#rootsWord + slot];
      invariant(root === (rows === 0 ? 0 : this.#root), 'the root is there while rows are', slot);
    }
  }

  /** Adds a bucket: the rows of one are shared out among it and the new one. False when a page is missing. */
  #split(): boolean {
    const target = this.#buckets;
    if (!this.#provideBucket(target)) return false;
    const half = 1 << (31 - Math.clz32(target));
    this.#storeSize(SIZE_BUSY);
    this.#takeChain(target - half);
    this.#buckets = target + 1;
    this.#placeMoving();
    this.#storeSize(0);
    return true;
  }

  #isSparse(): boolean {
    return this.#buckets > this.#bucketsMin && this.#rows * BUCKETS_PER_ROW_MAX < this.#buckets;
  }

  /** Takes the last bucket away: its rows join those of the bucket that it was split from. */
  #merge(): void {
    const source = this.#buckets - 1;
    this.#storeSize(SIZE_BUSY);
    this.#takeChain(source);
    this.#buckets = source;
    this.#placeMoving();
    this.#storeSize(0);
    this.#dropBucketPage(source);
  }

  /** The number of buckets that readers may use, and whether rows are on their way. */
  #storeSize(busy: number): void {
    storeLink(this.#i32, (this.#root + SIZE_OFFSET) >>> 2, (this.#buckets << SIZE_SHIFT) | busy);
  }

  #takeChain(bucket: number): void {
    const word = this.#wordOf(bucket);
    for (let row = this.#i32[word] >>> 0; row !== 0;) {
      this.#moving.push(row);
      row = this.#i32[(row + ROW_NEXT_OFFSET) >>> 2] >>> 0;
    }
    storeLink(this.#i32, word, 0);
  }

  /** Chains are acyclic at each store: a row that is not linked is put in front. */
  #placeMoving(): void {
    for (let i = this.#moving.length - 1; i >= 0; i--) {
      const row = this.#moving[i];
      const bucket = this.#bucketWord(this.#hashOf(row));
      storeLink(this.#i32, (row + ROW_NEXT_OFFSET) >>> 2, this.#i32[bucket]);
      storeLink(this.#i32, bucket, row);
    }
    this.#moving.length = 0;
  }

  #provideBucket(bucket: number): boolean {
    const segment = bucket >>> BUCKETS_SHIFT;
    if (segment >= BUCKET_SEGMENTS_MAX) return false;
    if (segment < ROOT_BUCKET_SEGMENTS + this.#bucketPages.length * SEGMENTS_PER_PAGE) return true;
    const page = this.#pool.lease(KIND_CACHE);
    if (page === 0) return false;
    // Buckets beyond the count are empty: a reader that was held up may still count on more of them.
    this.#i32.fill(0, page >>> 2, (page + pageBytes) >>> 2);
    this.#bucketPages.push(page);
    this.#nameBucketPage(segment, page);
    return true;
  }

  #dropBucketPage(bucket: number): void {
    const segment = bucket >>> BUCKETS_SHIFT;
    const isFirst = (bucket & (BUCKETS_PER_SEGMENT - 1)) === 0;
    if (!isFirst || segment < ROOT_BUCKET_SEGMENTS) return;
    if ((segment - ROOT_BUCKET_SEGMENTS) % SEGMENTS_PER_PAGE !== 0) return;
    this.#nameBucketPage(segment, 0);
    this.#retirePage(this.#bucketPages.pop()!);
  }

  /** Enters a page's segments into the table from `segment` on; page 0 takes them out. */
  #nameBucketPage(segment: number, page: number): void {
    for (let i = 0; i < SEGMENTS_PER_PAGE && segment + i < BUCKET_SEGMENTS_MAX; i++) {
      const address = page === 0 ? 0 : page + i * SEGMENT_BYTES;
      storeLink(this.#i32, this.#entryWord(segment + i), address);
    }
  }

  /** The link word that names the row. */
  #linkTo(row: number): number {
    let word = this.#bucketWord(this.#hashOf(row));
    for (;;) {
      const next = this.#i32[word] >>> 0;
      invariant(next !== 0, 'a linked row is in its bucket', row);
      if (next === row) return word;
      word = (next + ROW_NEXT_OFFSET) >>> 2;
    }
  }

  #hashOf(row: number): number {
    return this.#i32[(row + ROW_HASH_OFFSET) >>> 2];
  }

  #slotOf(row: number): number {
    return rootSlotOf(this.#u32[(row + ROW_COLLECTION_OFFSET) >>> 2]);
  }

  #bucketWord(hash: number): number {
    return this.#wordOf(bucketOf(hash, this.#buckets));
  }

  #wordOf(bucket: number): number {
    const segment = this.#u32[this.#entryWord(bucket >>> BUCKETS_SHIFT)];
    return (segment >>> 2) + (bucket & (BUCKETS_PER_SEGMENT - 1));
  }

  #entryWord(segment: number): number {
    return (this.#root + BUCKET_TABLE_OFFSET + segment * 4) >>> 2;
  }

  #markAddress(node: number): number {
    const entry = (this.#root + MARK_TABLE_OFFSET + (node >>> MARKS_SHIFT) * 4) >>> 2;
    return this.#u32[entry] + (node & (MARKS_PER_SEGMENT - 1));
  }
}
