/**
 * The row cache's writing side: true claims about single keys, one LRU over all collections, inside
 * one budget of pages. A claim "key has this content for every T >= from, until its next update" is
 * relative to the sources that have entered: an update that is still in the overlay of some view need
 * not be known here. Hence what enters is applied before the keeper publishes a view without it, and
 * what was read from an older source than the newest that has begun to enter is not taken. A claim
 * "... for every T, from <= T < until" is about the past, which nothing that enters changes: a key has
 * one claim of the first kind at the most, and a few of the second. Eviction drops claims and is always
 * safe, each claim being true by itself; so is everything that fails here: without memory a claim is
 * dropped. Called by the evictor, on its thread. Rows are immutable once linked; an unlinked row is
 * freed when no reader can hold it.
 */
import { invariant, verify } from '../base/assert.ts';
import { pageBytes, pageShift } from '../base/limits.ts';
import { OP_DELETE, OP_PUT } from '../base/update.ts';
import { fromWords, highWord, lowWord } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import { KIND_CACHE } from '../shared/buffer-pool.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { UNTIL_NOW } from '../shared/epoch.ts';
import type { RetireList } from '../shared/epoch.ts';
import { Slab } from '../shared/slab.ts';
import {
  KIND_ABSENT,
  KIND_ROW,
  PAST_ROWS_MAX,
  ROW_COLLECTION_OFFSET,
  ROW_FROM_OFFSET,
  ROW_HASH_OFFSET,
  ROW_KEY_OFFSET,
  ROW_NEXT_OFFSET,
  ROW_NODE_OFFSET,
  ROW_SHAPE_OFFSET,
  ROW_UNTIL_OFFSET,
  ROW_VALUE_BYTES_OFFSET,
  SHAPE_KEY_MASK,
  SHAPE_KIND_SHIFT,
  UNTIL_NEXT,
  bucketOf,
  rootSlotOf,
  rowBytes,
  rowBytesMax,
  rowHash,
} from './layout.ts';
import { LIST_ABSENT, LIST_ROWS, Lru } from './policy.ts';
import { RowIndex, bucketsLeast } from './row-index.ts';

/**
 * What the cache must be told of a generation that enters the source: the newest version of each key,
 * each once, in any order. Addresses are in the arena.
 */
export interface NewestVersions {
  /** Stands on the next key; false behind the last. The fields are valid until then. */
  next(): boolean;
  collection: number;
  keyAddress: number;
  keyBytes: number;
  /** Of the key alone, as in CacheReader.lookup. */
  hash: number;
  time: number;
  /** OP_PUT, OP_DELETE or OP_UPDATE. */
  kind: number;
  valueBytes: number;
  /** Copies the value to the arena's bytes from `address` on. */
  copyValueTo(address: number): void;
  /** The generation has range deletes; each key's newest version is told with what they hide of it. */
  readonly hasRanges: boolean;
  /** Time of the newest one over a key of the collection, -1 when there is none. */
  rangeOver(collection: number, keyAddress: number, keyBytes: number): number;
}

/** What the cache counts. Gauges are getters of RowCache. */
export type CacheCounts = {
  /** Rows of generations that found their key cached and replaced it. */
  updated: number;
  /** ... that found it and had to drop it: too large, no memory, not a kind it can hold. */
  updatesDropped: number;
  /** ... whose key was not cached. */
  updatesSkipped: number;
  /** Rows that a range delete of a generation took away. */
  hidden: number;
  /** Generations applied. */
  applied: number;
  inserted: number;
  /** Rows dropped for others, for page demand, for the cap on absent rows. */
  evicted: number;
  /** Victims spared because a reader had just touched them. */
  relinked: number;
  pagesReclaimed: number;
  /** Offers of a key that was cached already. */
  offersKnown: number;
  /** Offers from an older source than the newest that has begun to enter. */
  offersStale: number;
  offersTooLarge: number;
  /** Offers for which there was no memory. */
  offersDropped: number;
  /** Two claims that cannot both be true: a defect somewhere. */
  conflicts: number;
  touches: number;
};

/** Rows evicted for one that comes, at the most; what that does not free, a page's reclaim will. */
const VICTIMS_MAX = 64;
const VICTIMS_AT_ONCE = 8;
const RELINKS_MAX = 16;
/** Rows unlinked under one epoch. */
const BATCH_ROWS_MAX = 256;
/** While so many batches, or this part of the budget, wait for readers, no row goes for another. */
const WAITING_MAX = 16;
const HELD_PARTS = 64;

/** With fewer pages rows are rounded more coarsely. */
const FINE_PAGES_MIN = 128;

/** Kept free below the limit, for what cannot wait: this part of it, between these many pages. */
const RESERVE_PARTS = 50;
const RESERVE_PAGES_LIKELY = 16;
const RESERVE_PARTS_MIN = 8;

/** Rows that say "absent" take this part of the budget at the most. */
const ABSENT_PARTS = 20;

/** Fuel that an update costs: a key that is not cached costs one. */
const FUEL_PER_UPDATE = 4;
const VALUE_BYTES_PER_FUEL = 1_024;

export class RowCache {
  readonly #pool: BufferPool;
  readonly #u8: Uint8Array;
  readonly #u32: Uint32Array;
  readonly #retire: RetireList;
  readonly #index: RowIndex;
  readonly #lru: Lru = new Lru();
  #slab: Slab;
  /** Linked rows by page. */
  readonly #rowsIn: Int32Array;
  #bytes = 0;
  #absentRows = 0;
  #absentBytes = 0;

  /** Source version: the newest that has begun to enter. */
  #version = 0;
  #entering: NewestVersions | undefined;
  /** The next node whose row a range delete of it may hide; 0 = all were looked at. */
  #hideNext = 0;

  /** Rows unlinked and not yet retired, and retired ones by the number of their batch. */
  #unlinked: number[] = [];
  readonly #batches: Map<number, number[]> = new Map();
  readonly #dropped: Map<number, { slab: Slab; pages: number[]; bytes: number }> = new Map();
  #retiredRowBytes = 0;
  #retiredPageBytes = 0;
  #nextBatch = 1;

  readonly counts: CacheCounts = {
    updated: 0,
    updatesDropped: 0,
    updatesSkipped: 0,
    hidden: 0,
    applied: 0,
    inserted: 0,
    evicted: 0,
    relinked: 0,
    pagesReclaimed: 0,
    offersKnown: 0,
    offersStale: 0,
    offersTooLarge: 0,
    offersDropped: 0,
    conflicts: 0,
    touches: 0,
  };

  /** `rootsAddress`: ROOTS_BYTES that are zero. `bucketsMin` is for tests. */
  constructor(
    arena: Arena,
    pool: BufferPool,
    rootsAddress: number,
    retire: RetireList,
    bucketsMin: number = bucketsLeast,
  ) {
    this.#pool = pool;
    this.#u8 = arena.u8;
    this.#u32 = arena.u32;
    this.#retire = retire;
    this.#slab = this.#makeSlab();
    this.#rowsIn = new Int32Array(Math.floor(arena.bytes / pageBytes));
    this.#index = new RowIndex(arena, pool, rootsAddress, bucketsMin, (page) => {
      this.#retiredPageBytes += pageBytes;
      this.#retire.retire(page, UNTIL_NOW, this.#freePage);
    });
  }

  #makeSlab(): Slab {
    const isFine = this.#pool.limitPages(KIND_CACHE) >= FINE_PAGES_MIN;
    return new Slab(this.#pool, KIND_CACHE, false, isFine);
  }

  /** Cached keys, absent ones included. */
  get rows(): number {
    return this.#index.rows;
  }

  get absentRows(): number {
    return this.#absentRows;
  }

  /** Bytes of their slots. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Bytes that wait until no reader can hold them. */
  get retiredBytes(): number {
    return this.#retiredRowBytes + this.#retiredPageBytes;
  }

  get version(): number {
    return this.#version;
  }

  get isApplying(): boolean {
    return this.#entering !== undefined;
  }

  // -- budget ---------------------------------------------------------------------------------

  /** Pages that everything of KIND_CACHE may take: the pool's limit, less what the policy keeps privately. */
  get limitPages(): number {
    const limit = this.#pool.limitPages(KIND_CACHE);
    if (limit === 0) return 0;
    return Math.max(1, limit - Math.floor(this.#lru.bytes / pageBytes));
  }

  /** From here on a new row takes the place of others, so that readers' pages and updates find room. */
  get targetPages(): number {
    const limit = this.limitPages;
    const likely = Math.max(Math.ceil(limit / RESERVE_PARTS), RESERVE_PAGES_LIKELY);
    return limit - Math.max(1, Math.min(likely, Math.floor(limit / RESERVE_PARTS_MIN)));
  }

  #isBelowTarget(): boolean {
    return this.#pool.usedPages(KIND_CACHE) < this.targetPages;
  }

  // -- populate -------------------------------------------------------------------------------

  /**
   * Takes a row that a reader found in the parts of the source as of `version`. Key and value are at
   * arena addresses, and are copied. `until`: an offset, or UNTIL_NEXT.
   */
  offer(
    version: number,
    collection: number,
    hash: number,
    keyAddress: number,
    keyBytes: number,
    valueAddress: number,
    valueBytes: number,
    from: number,
    until: number,
    absent: boolean,
  ): void {
    const { counts } = this;
    // What was true of the past when the source was older is so still.
    if (until === UNTIL_NEXT && ((version - this.#version) | 0) < 0) {
      counts.offersStale++;
      return;
    }
    const bytes = rowBytes(keyBytes, valueBytes);
    if (bytes > rowBytesMax(this.limitPages)) {
      counts.offersTooLarge++;
      return;
    }
    const kind = absent ? KIND_ABSENT : KIND_ROW;
    const mixed = rowHash(hash, collection);
    if (until === UNTIL_NEXT) {
      const known = this.#findNow(collection, keyAddress, keyBytes, mixed);
      if (known !== 0) {
        this.#meet(known, kind, from, valueAddress, valueBytes);
        return;
      }
    } else if (!this.#isNews(collection, keyAddress, keyBytes, mixed, kind, from, until)) {
      return;
    }
    const row = this.#makeRoom(bytes);
    if (row === 0) {
      counts.offersDropped++;
      return;
    }
    const list = absent ? LIST_ABSENT : LIST_ROWS;
    const node = this.#lru.add(row, list);
    if (!this.#index.provideMark(node)) {
      this.#lru.remove(node);
      this.#slab.free(row);
      counts.offersDropped++;
      return;
    }
    this.#writeHead(row, mixed, collection, node, from, until, keyBytes, valueBytes, kind);
    this.#u8.copyWithin(row + ROW_KEY_OFFSET, keyAddress, keyAddress + keyBytes);
    const value = row + ROW_KEY_OFFSET + keyBytes;
    this.#u8.copyWithin(value, valueAddress, valueAddress + valueBytes);
    this.#index.link(row);
    this.#account(row, 1);
    counts.inserted++;
    if (!absent) return;
    this.#capAbsent();
    this.#retireUnlinked();
  }

  /** An offer of a key that is here. Both claims are about sources no older than the newest: they must agree. */
  #meet(row: number, kind: number, from: number, valueAddress: number, valueBytes: number): void {
    this.counts.offersKnown++;
    const sameKind = this.#kindOf(row) === kind;
    const agrees =
      sameKind &&
      (kind === KIND_ABSENT ||
        (this.#fromOf(row) === from && this.#valueEquals(row, valueAddress, valueBytes)));
    if (agrees) {
      this.#renew(row);
      return;
    }
    this.#conflict(row, from);
  }

  /** The claim about the key that holds until its next update, or 0. */
  #findNow(collection: number, keyAddress: number, keyBytes: number, hash: number): number {
    let row = this.#index.find(collection, keyAddress, keyBytes, hash);
    while (row !== 0 && this.#untilOf(row) !== UNTIL_NEXT) {
      row = this.#index.find(collection, keyAddress, keyBytes, hash, row);
    }
    return row;
  }

  /**
   * A claim about a key's past is to be taken: no other says as much. Those that say less go for it, and
   * one of too many.
   */
  #isNews(
    collection: number,
    keyAddress: number,
    keyBytes: number,
    hash: number,
    kind: number,
    from: number,
    until: number,
  ): boolean {
    for (;;) {
      let goes = 0;
      let last = 0;
      let pastRows = 0;
      let row = this.#index.find(collection, keyAddress, keyBytes, hash);
      for (; row !== 0; row = this.#index.find(collection, keyAddress, keyBytes, hash, row)) {
        const itsFrom = this.#fromOf(row);
        const itsUntil = this.#untilOf(row);
        const isNow = itsUntil === UNTIL_NEXT;
        if (itsFrom < until && (isNow || from < itsUntil)) {
          const isSame = this.#kindOf(row) === kind && (kind === KIND_ABSENT || itsFrom === from);
          if (!isSame) {
            this.#conflict(row, from);
            return false;
          }
          if (itsFrom <= from && (isNow || itsUntil >= until)) {
            this.counts.offersKnown++;
            this.#renew(row);
            return false;
          }
          if (from <= itsFrom && !isNow) goes = row;
        }
        if (isNow) continue;
        pastRows++;
        last = row;
      }
      if (goes === 0 && pastRows >= PAST_ROWS_MAX) goes = last;
      if (goes === 0) return true;
      // Rows may move for it: from the start.
      this.#drop(goes);
      this.#retireUnlinked();
    }
  }

  #conflict(row: number, from: number): void {
    this.counts.conflicts++;
    this.#drop(row);
    this.#retireUnlinked();
    invariant(!verify(), 'two claims of one key are both true', from);
  }

  #valueEquals(row: number, valueAddress: number, valueBytes: number): boolean {
    if (this.#valueBytesOf(row) !== valueBytes) return false;
    // The offset names the content: bytes are compared only where every doubt is followed up.
    if (!verify()) return true;
    const value = row + ROW_KEY_OFFSET + this.#keyBytesOf(row);
    for (let i = 0; i < valueBytes; i++) {
      if (this.#u8[value + i] !== this.#u8[valueAddress + i]) return false;
    }
    return true;
  }

  /** Address of a slot of at least `bytes` for a new row, or 0. Above the target others go for it. */
  #makeRoom(bytes: number): number {
    if (!this.#index.isOpen && !(this.#isBelowTarget() && this.#index.open())) return 0;
    let row = this.#takeSlot(bytes);
    if (row === 0 && this.sweep()) row = this.#takeSlot(bytes);
    if (row !== 0) return row;
    // What waits for a slow reader is not made up for by evicting ever more.
    if (this.#retire.length >= WAITING_MAX || this.#retiredRowBytes > this.#heldBytesMax) return 0;
    let wanted = bytes + (bytes >>> 2);
    for (let victims = 0; victims < VICTIMS_MAX;) {
      // Victims have all sizes: those that do not help here make room for rows like themselves.
      for (let i = 0; i < VICTIMS_AT_ONCE && (i === 0 || wanted > 0); i++, victims++) {
        wanted -= this.#evictOldest();
      }
      this.#retireUnlinked();
      this.sweep();
      row = this.#takeSlot(bytes);
      // Where readers are in the way, this offer goes and the next one finds room.
      if (row !== 0 || this.#retire.length > 0) return row;
    }
    // Sizes have shifted: a whole page must change its use.
    this.#emptyPage();
    return this.#takeSlot(bytes);
  }

  get #heldBytesMax(): number {
    return (this.limitPages * pageBytes) / HELD_PARTS;
  }

  #takeSlot(bytes: number): number {
    return this.#slab.hasSlot(bytes) || this.#isBelowTarget() ? this.#slab.allocate(bytes) : 0;
  }

  // -- apply ----------------------------------------------------------------------------------

  /**
   * A generation enters the source, which has `version` from now on: what is offered from an older one
   * is refused. Requires: no other is entering; `versions` can be read until `apply` returns true.
   */
  beginApply(versions: NewestVersions, version: number): void {
    invariant(this.#entering === undefined, 'sources enter one at a time', version);
    invariant(((version - this.#version) | 0) > 0, 'versions go up', version, this.#version);
    this.#version = version;
    this.#entering = versions;
    this.#hideNext = versions.hasRanges ? 1 : 0;
  }

  /**
   * Brings cached keys up to the entering generation, for about `fuel` keys that are not cached (50 ns
   * each). True when it is done: then no claim is false in a view without the generation.
   */
  apply(fuel: number): boolean {
    const versions = this.#entering;
    invariant(versions !== undefined, 'something is entering');
    let left = this.#hideNext === 0 ? fuel : this.#hide(versions, fuel);
    let done = false;
    while (left > 0 && !done) {
      // Nothing can come in meanwhile: every offer is older.
      if (this.#index.rows === 0 || !versions.next()) done = true;
      else left -= this.#applyOne(versions);
    }
    this.#retireUnlinked();
    if (!done) return false;
    this.#entering = undefined;
    this.#hideNext = 0;
    this.counts.applied++;
    return true;
  }

  /**
   * Drops rows that a range delete of the entering generation hides; what says "absent" goes on being
   * true. By nodes, which no row leaves while none can come. Returns the fuel left, once all were looked at.
   */
  #hide(versions: NewestVersions, fuel: number): number {
    let left = fuel;
    for (; this.#hideNext < this.#lru.nodesEnd; this.#hideNext++) {
      if (left <= 0) return 0;
      left--;
      const row = this.#lru.addressOf(this.#hideNext);
      if (row === 0 || this.#kindOf(row) !== KIND_ROW) continue;
      if (this.#untilOf(row) !== UNTIL_NEXT) continue;
      const collection = this.#u32[(row + ROW_COLLECTION_OFFSET) >>> 2];
      const key = row + ROW_KEY_OFFSET;
      if (versions.rangeOver(collection, key, this.#keyBytesOf(row)) <= this.#fromOf(row)) continue;
      this.#drop(row);
      this.counts.hidden++;
      left -= FUEL_PER_UPDATE;
    }
    this.#hideNext = 0;
    return left;
  }

  #applyOne(version: NewestVersions): number {
    const { collection, keyAddress, keyBytes, valueBytes } = version;
    const hash = rowHash(version.hash, collection);
    const former = this.#findNow(collection, keyAddress, keyBytes, hash);
    if (former === 0) {
      this.counts.updatesSkipped++;
      return 1;
    }
    invariant(version.time > this.#fromOf(former), 'what enters is newer', version.time);
    const isRow = version.kind === OP_PUT;
    const bytes = rowBytes(keyBytes, valueBytes);
    const isHeld = isRow || version.kind === OP_DELETE;
    const fits = isHeld && bytes <= rowBytesMax(this.limitPages);
    // Up to the limit itself: the claim that is there is about to be false.
    const row = fits ? this.#slab.allocate(bytes) : 0;
    if (row === 0) {
      this.#drop(former);
      this.counts.updatesDropped++;
      return FUEL_PER_UPDATE;
    }
    const node = this.#nodeOf(former);
    const kind = isRow ? KIND_ROW : KIND_ABSENT;
    const wasKind = this.#kindOf(former);
    const from = version.time;
    this.#writeHead(row, hash, collection, node, from, UNTIL_NEXT, keyBytes, valueBytes, kind);
    this.#u8.copyWithin(row + ROW_KEY_OFFSET, keyAddress, keyAddress + keyBytes);
    version.copyValueTo(row + ROW_KEY_OFFSET + keyBytes);
    this.#index.replace(former, row);
    this.#account(former, -1);
    this.#account(row, 1);
    this.#lru.setAddress(node, row);
    this.#unlinked.push(former);
    if (this.#unlinked.length >= BATCH_ROWS_MAX) this.#retireUnlinked();
    if (kind !== wasKind) this.#lru.renew(node, isRow ? LIST_ROWS : LIST_ABSENT);
    if (!isRow) this.#capAbsent();
    this.counts.updated++;
    return FUEL_PER_UPDATE + Math.floor(valueBytes / VALUE_BYTES_PER_FUEL);
  }

  // -- policy ---------------------------------------------------------------------------------

  /** A reader read the row of the node, or of one that had the number before: only a hint. */
  touch(node: number): void {
    const row = this.#lru.addressOf(node);
    if (row === 0) return;
    this.counts.touches++;
    this.#renew(row);
  }

  /** Readers report what they read once a period. */
  advancePeriod(): void {
    this.#index.advancePeriod();
  }

  /** Evicts so many rows, the oldest first; returns how many there were. */
  evictOldest(rows: number): number {
    let evicted = 0;
    while (evicted < rows && this.#evictOldest() > 0) evicted++;
    this.#retireUnlinked();
    return evicted;
  }

  #renew(row: number): void {
    const list = this.#kindOf(row) === KIND_ROW ? LIST_ROWS : LIST_ABSENT;
    this.#lru.renew(this.#nodeOf(row), list);
  }

  /** Drops the row that was not used for the longest time; returns the bytes of its slot, 0 = none is left. */
  #evictOldest(): number {
    let node = this.#lru.oldest();
    // Its touch was lost, or is under way: what is being read stays.
    for (let i = 0; i < RELINKS_MAX && node !== 0 && this.#index.isMarked(node); i++) {
      this.#renew(this.#lru.addressOf(node));
      this.counts.relinked++;
      node = this.#lru.oldest();
    }
    return node === 0 ? 0 : this.#evict(this.#lru.addressOf(node));
  }

  #evict(row: number): number {
    this.counts.evicted++;
    return this.#drop(row);
  }

  #capAbsent(): void {
    const most = (this.limitPages * pageBytes) / ABSENT_PARTS;
    while (this.#absentBytes > most) {
      this.#evict(this.#lru.addressOf(this.#lru.oldestOf(LIST_ABSENT)));
    }
  }

  /** Takes the claim back. */
  #drop(row: number): number {
    const bytes = this.#slab.sizeOf(row);
    this.#index.unlink(row);
    this.#lru.remove(this.#nodeOf(row));
    this.#account(row, -1);
    this.#unlinked.push(row);
    if (this.#unlinked.length >= BATCH_ROWS_MAX) this.#retireUnlinked();
    return bytes;
  }

  // -- memory ---------------------------------------------------------------------------------

  /**
   * Comes back under the budget, a page at a time; empties the cache when the limit is 0. True when
   * there is more to do at once. What readers still hold is waited for.
   */
  reclaim(): boolean {
    if (this.#index.isOpen && this.limitPages === 0) this.dropAll();
    this.sweep();
    if (this.#retire.length > 0 || !this.#index.isOpen) return false;
    if (!this.#isOver()) return false;
    if (!this.#emptyPage()) {
      // Tables alone are over the budget.
      this.dropAll();
      return false;
    }
    return this.#isOver();
  }

  /** Drops what is in one page; false when no page has rows. The page is free once readers have left. */
  #emptyPage(): boolean {
    const page = this.#pageToEmpty();
    if (page === 0) return false;
    const bytes = this.#slab.sizeOf(page);
    for (let row = page; row + bytes <= page + pageBytes; row += bytes) {
      // A slot that is free holds anything; only the node that names it shows that a row is there.
      const node = this.#nodeOf(row);
      if (this.#lru.addressOf(node) === row) this.#evict(row);
    }
    this.counts.pagesReclaimed++;
    this.#retireUnlinked();
    this.sweep();
    return true;
  }

  #isOver(): boolean {
    return this.#pool.usedPages(KIND_CACHE) > this.targetPages;
  }

  /** The page with the fewest bytes of rows if it is at most half full, else that of the oldest row; 0 = none. */
  #pageToEmpty(): number {
    let sparse = 0;
    let least = pageBytes / 2;
    for (let page = 0; page < this.#rowsIn.length; page++) {
      if (this.#rowsIn[page] === 0) continue;
      const address = (page << pageShift) >>> 0;
      const bytes = this.#rowsIn[page] * this.#slab.sizeOf(address);
      if (bytes > least) continue;
      least = bytes;
      sparse = address;
    }
    if (sparse !== 0) return sparse;
    const oldest = this.#lru.addressOf(this.#lru.oldest());
    return (oldest & ~(pageBytes - 1)) >>> 0;
  }

  /** Drops every claim in a step that needs no memory, and gives the pages back after the readers. */
  dropAll(): void {
    if (!this.#index.isOpen) return;
    const pages = this.#index.close();
    // Rows that wait for their batch go with the pages they are in.
    for (const batch of this.#batches.values()) batch.length = 0;
    this.#unlinked.length = 0;
    const bytes = (this.#slab.pages + pages.length) * pageBytes;
    const number = this.#nextBatch++;
    this.#dropped.set(number, { slab: this.#slab, pages, bytes });
    this.#retiredRowBytes = 0;
    this.#retiredPageBytes += bytes;
    this.#retire.retire(number, UNTIL_NOW, this.#freeDropped);
    this.#slab = this.#makeSlab();
    this.#lru.clear();
    this.#rowsIn.fill(0);
    this.#bytes = 0;
    this.#absentRows = 0;
    this.#absentBytes = 0;
    this.sweep();
  }

  /** Gives the tables back when no row is left in them. True when it did. */
  closeIfEmpty(): boolean {
    if (!this.#index.isOpen || this.#index.rows > 0) return false;
    this.dropAll();
    return true;
  }

  /** Frees what no reader can hold any more; true when something was. */
  sweep(): boolean {
    return this.#retire.length > 0 && this.#retire.sweep() > 0;
  }

  /** True while something waits for readers to leave. */
  get isWaiting(): boolean {
    return this.#retire.length > 0;
  }

  #retireUnlinked(): void {
    if (this.#unlinked.length === 0) return;
    for (const row of this.#unlinked) this.#retiredRowBytes += this.#slab.sizeOf(row);
    const number = this.#nextBatch++;
    this.#batches.set(number, this.#unlinked);
    this.#unlinked = [];
    this.#retire.retire(number, UNTIL_NOW, this.#freeBatch);
  }

  readonly #freeBatch = (number: number): void => {
    for (const row of this.#batches.get(number)!) {
      const bytes = this.#slab.sizeOf(row);
      this.#retiredRowBytes -= bytes;
      // Under verify a reader that overstays finds bytes that no row has.
      if (verify()) this.#u8.fill(0xcc, row, row + bytes);
      this.#slab.free(row);
    }
    this.#batches.delete(number);
  };

  readonly #freePage = (page: number): void => {
    this.#retiredPageBytes -= pageBytes;
    this.#pool.free(page, KIND_CACHE);
  };

  readonly #freeDropped = (number: number): void => {
    const { slab, pages, bytes } = this.#dropped.get(number)!;
    this.#dropped.delete(number);
    slab.clear();
    for (const page of pages) this.#pool.free(page, KIND_CACHE);
    this.#retiredPageBytes -= bytes;
  };

  // -- rows -----------------------------------------------------------------------------------

  #writeHead(
    row: number,
    hash: number,
    collection: number,
    node: number,
    from: number,
    until: number,
    keyBytes: number,
    valueBytes: number,
    kind: number,
  ): void {
    const u32 = this.#u32;
    const word = row >>> 2;
    u32[word + ROW_NEXT_OFFSET / 4] = 0;
    u32[word + ROW_HASH_OFFSET / 4] = hash;
    u32[word + ROW_COLLECTION_OFFSET / 4] = collection;
    u32[word + ROW_NODE_OFFSET / 4] = node;
    u32[word + ROW_FROM_OFFSET / 4] = lowWord(from);
    u32[word + ROW_FROM_OFFSET / 4 + 1] = highWord(from);
    u32[word + ROW_UNTIL_OFFSET / 4] = lowWord(until);
    u32[word + ROW_UNTIL_OFFSET / 4 + 1] = highWord(until);
    u32[word + ROW_VALUE_BYTES_OFFSET / 4] = valueBytes;
    u32[word + ROW_SHAPE_OFFSET / 4] = (kind << SHAPE_KIND_SHIFT) | keyBytes;
  }

  #nodeOf(row: number): number {
    return this.#u32[(row + ROW_NODE_OFFSET) >>> 2];
  }

  #fromOf(row: number): number {
    const word = (row + ROW_FROM_OFFSET) >>> 2;
    return fromWords(this.#u32[word], this.#u32[word + 1]);
  }

  #untilOf(row: number): number {
    const word = (row + ROW_UNTIL_OFFSET) >>> 2;
    return fromWords(this.#u32[word], this.#u32[word + 1]);
  }

  #valueBytesOf(row: number): number {
    return this.#u32[(row + ROW_VALUE_BYTES_OFFSET) >>> 2];
  }

  #keyBytesOf(row: number): number {
    return this.#u32[(row + ROW_SHAPE_OFFSET) >>> 2] & SHAPE_KEY_MASK;
  }

  #kindOf(row: number): number {
    return this.#u32[(row + ROW_SHAPE_OFFSET) >>> 2] >>> SHAPE_KIND_SHIFT;
  }

  /** A row was linked (sign 1) or unlinked (sign -1). */
  #account(row: number, sign: number): void {
    const bytes = sign * this.#slab.sizeOf(row);
    const page = row >>> pageShift;
    this.#rowsIn[page] += sign;
    this.#bytes += bytes;
    if (this.#kindOf(row) === KIND_ROW) return;
    this.#absentRows += sign;
    this.#absentBytes += bytes;
  }

  // -- audits ---------------------------------------------------------------------------------

  /** Address of every linked row. For audits. */
  eachRow(visit: (row: number) => void): void {
    this.#index.eachRow(visit);
  }

  /** Checks the whole structure against itself. For audits: it takes as long as the cache is large. */
  check(): void {
    const unreachable = new Set<number>(this.#unlinked);
    for (const batch of this.#batches.values()) for (const row of batch) unreachable.add(row);
    const nodes = new Set<number>();
    const rowsOfSlot = new Map<number, number>();
    const rowsIn = new Int32Array(this.#rowsIn.length);
    let bytes = 0;
    let absentBytes = 0;
    let absentRows = 0;
    this.#index.eachRow((row, bucket) => {
      const word = row >>> 2;
      const node = this.#nodeOf(row);
      const kind = this.#kindOf(row);
      const slot = rootSlotOf(this.#u32[word + ROW_COLLECTION_OFFSET / 4]);
      const hash = this.#u32[word + ROW_HASH_OFFSET / 4] | 0;
      const size = this.#slab.sizeOf(row);
      invariant(!unreachable.has(row), 'a linked row is not retired', row);
      invariant(this.#lru.addressOf(node) === row, 'a node and its row name each other', row, node);
      invariant(!nodes.has(node), 'a node has one row', node);
      invariant(bucketOf(hash, this.#index.buckets) === bucket, 'a row is in its bucket', row);
      invariant(kind === KIND_ROW || kind === KIND_ABSENT, 'a row has a kind', kind);
      invariant(rowBytes(this.#keyBytesOf(row), this.#valueBytesOf(row)) <= size, 'fits', row);
      nodes.add(node);
      rowsOfSlot.set(slot, (rowsOfSlot.get(slot) ?? 0) + 1);
      rowsIn[row >>> pageShift]++;
      bytes += size;
      if (kind === KIND_ABSENT) {
        absentRows++;
        absentBytes += size;
      }
    });
    invariant(nodes.size === this.#index.rows, 'every row is counted', nodes.size);
    invariant(bytes === this.#bytes, 'bytes are the sum of slots', bytes, this.#bytes);
    invariant(bytes + this.#retiredRowBytes === this.#slab.bytesLive, 'no slot is lost', bytes);
    invariant(absentRows === this.#absentRows, 'absent rows are counted', absentRows);
    invariant(absentBytes === this.#absentBytes, 'absent bytes are counted', absentBytes);
    for (let page = 0; page < rowsIn.length; page++) {
      invariant(rowsIn[page] === this.#rowsIn[page], 'rows are counted by page', page);
    }
    this.#index.checkRoots(rowsOfSlot);
    this.#index.checkBuckets();
    this.#checkClaims();
    let listed = 0;
    for (const list of [LIST_ROWS, LIST_ABSENT]) {
      for (let node = this.#lru.oldestOf(list); node !== 0; node = this.#lru.newerThan(node)) {
        const isRow = this.#kindOf(this.#lru.addressOf(node)) === KIND_ROW;
        invariant(isRow === (list === LIST_ROWS), 'a node is in the list of its kind', node);
        listed++;
      }
    }
    invariant(listed === nodes.size, 'every node is in a list', listed, nodes.size);
  }

  /** No two claims of a key gainsay each other. */
  #checkClaims(): void {
    this.#index.eachRow((row) => {
      const { collection, key, keyBytes, hash } = this.#keyOf(row);
      let pastRows = 0;
      let nowRows = 0;
      let other = this.#index.find(collection, key, keyBytes, hash);
      for (; other !== 0; other = this.#index.find(collection, key, keyBytes, hash, other)) {
        const isNow = this.#untilOf(other) === UNTIL_NEXT;
        if (isNow) nowRows++;
        else pastRows++;
        if (other === row || !this.#overlap(row, other)) continue;
        const isSame =
          this.#kindOf(row) === this.#kindOf(other) &&
          (this.#kindOf(row) === KIND_ABSENT || this.#fromOf(row) === this.#fromOf(other));
        invariant(isSame, 'two claims of one key are both true', row, other);
      }
      invariant(nowRows <= 1, 'one claim about now', nowRows);
      invariant(pastRows <= PAST_ROWS_MAX, 'few claims about the past', pastRows);
    });
  }

  #overlap(a: number, b: number): boolean {
    const aUntil = this.#untilOf(a) === UNTIL_NEXT ? Infinity : this.#untilOf(a);
    const bUntil = this.#untilOf(b) === UNTIL_NEXT ? Infinity : this.#untilOf(b);
    return this.#fromOf(a) < bUntil && this.#fromOf(b) < aUntil;
  }

  #keyOf(row: number): { collection: number; key: number; keyBytes: number; hash: number } {
    return {
      collection: this.#u32[(row + ROW_COLLECTION_OFFSET) >>> 2],
      key: row + ROW_KEY_OFFSET,
      keyBytes: this.#keyBytesOf(row),
      hash: this.#u32[(row + ROW_HASH_OFFSET) >>> 2] | 0,
    };
  }
}
