/**
 * A client's side of the row cache: looks rows up, reports touches, offers rows after a miss. Every
 * answer is a true claim: the key has this content for each T >= from until its next update, and the
 * updates that the claim does not know are in the overlay of any view loaded before the look-up. So:
 * load T, the view, ask its generations, then here. Reading writes no structure. Runs on the client's
 * thread; `lookup` between enter and leave of its slot, the rest anywhere.
 */
import { alignUp, equalAt } from '../base/bytes.ts';
import { copyAt } from '../base/copy.ts';
import { pageBytes, populateRingSlots, touchRingSlots } from '../base/limits.ts';
import type { Arena } from '../shared/arena.ts';
import { fromWords, highWord, lowWord } from '../shared/arena.ts';
import { KIND_CACHE } from '../shared/buffer-pool.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { loadLink } from '../shared/link.ts';
import type { RingProducer } from '../shared/ring.ts';
import {
  BUCKETS_PER_SEGMENT,
  BUCKETS_SHIFT,
  BUCKET_TABLE_OFFSET,
  KIND_ROW,
  MARKS_PER_SEGMENT,
  MARKS_SHIFT,
  MARK_TABLE_OFFSET,
  OFFER_ABSENT,
  OFFER_PAGE,
  OFFER_ROW,
  PERIOD_OFFSET,
  POPULATE,
  POPULATE_KIND,
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
  SIZE_BUSY,
  SIZE_OFFSET,
  SIZE_SHIFT,
  TOUCH,
  TOUCH_IDS_MAX,
  TOUCH_KIND,
  bucketOf,
  rootSlotOf,
  rowBytes,
  rowBytesMax,
  rowHash,
} from './layout.ts';

/** The cache cannot tell: ask the parts of the view. */
export const CACHE_MISS = 0;
/** The key has no content at T. */
export const CACHE_ABSENT = 1;
/** The key has a value at T: `valueAddress`, `valueBytes`, `from`. */
export const CACHE_ROW = 2;

/** Looks again this often when rows were on their way to another bucket; then it is a miss. */
const LOOKS_MAX = 4;

/** Offers for which the evictor is woken once. */
const OFFERS_PER_RING = 16;

/** Makes the evictor run soon: a Bell, or the kick of an inline host. */
export type Wakes = { ring(): void };

/** What a reader counts, for the client to publish. */
export type CacheReaderCounts = {
  rows: number;
  absent: number;
  misses: number;
  /** Of the misses: the row is there, but not for a T as old as that. */
  missesByTime: number;
  touches: number;
  touchesDropped: number;
  offers: number;
  offersTooLarge: number;
  /** Cache off, no page, no room in it, or the ring is full. */
  offersDropped: number;
};

export class CacheReader {
  readonly #pool: BufferPool;
  readonly #u8: Uint8Array;
  readonly #i32: Int32Array;
  readonly #u32: Uint32Array;
  readonly #rootsWord: number;
  readonly #touches: RingProducer;
  readonly #offers: RingProducer;
  readonly #evictor: Wakes;

  /** Of the last CACHE_ROW. Valid until: leave. */
  valueAddress = 0;
  valueBytes = 0;
  /** Offset at which the answer begins to hold: for a row, the transaction that wrote it. */
  from = 0;

  readonly counts: CacheReaderCounts = {
    rows: 0,
    absent: 0,
    misses: 0,
    missesByTime: 0,
    touches: 0,
    touchesDropped: 0,
    offers: 0,
    offersTooLarge: 0,
    offersDropped: 0,
  };

  /** Offers that the evictor has not been woken for. */
  #unrung = 0;

  /** The claimed touch slot that is being filled, -1 = none. */
  #touchSlot = -1;
  #touchCount = 0;
  #touchPeriod = 0;

  /** The offer page, 0 = none, is a byte ring in step with the populate ring. */
  #page = 0;
  #pageAt = 0;
  #pageUsed = 0;
  /** Page bytes that each slot of the populate ring holds, skipped ones included. */
  readonly #slotBytes: Int32Array = new Int32Array(populateRingSlots);
  #slotFirst = 0;
  #slotCount = 0;

  /**
   * `rootsAddress` is the topology's `cacheRoots`; the rings are this client's, empty, of
   * touchRingSlots and populateRingSlots; `evictor` is the bell of its thread, or whatever kicks it.
   */
  constructor(
    arena: Arena,
    pool: BufferPool,
    rootsAddress: number,
    touches: RingProducer,
    offers: RingProducer,
    evictor: Wakes,
  ) {
    this.#pool = pool;
    this.#u8 = arena.u8;
    this.#i32 = arena.i32;
    this.#u32 = arena.u32;
    this.#rootsWord = rootsAddress >>> 2;
    this.#touches = touches;
    this.#offers = offers;
    this.#evictor = evictor;
  }

  /**
   * What the key holds at T, as far as the sources that left the overlay say. `hash` is that of the
   * key alone, the same function as in `offer` and in what the evictor applies.
   * Requires: inside; the view was loaded before and its generations say nothing for the key at T.
   */
  lookup(
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
    hash: number,
    T: number,
  ): number {
    const i32 = this.#i32;
    const root = loadLink(i32, this.#rootsWord + rootSlotOf(collection)) >>> 0;
    if (root === 0) {
      this.counts.misses++;
      return CACHE_MISS;
    }
    const mixed = rowHash(hash, collection);
    this.#isOfOtherTimes = false;
    for (let look = 1; ; look++) {
      const size = loadLink(i32, (root + SIZE_OFFSET) >>> 2);
      const row = this.#find(root, size, collection, key, offset, length, mixed, T);
      if (row !== 0) return this.#answer(root, row, length);
      // Not found is final only if no row was on its way to another bucket meanwhile.
      const settled = loadLink(i32, (root + SIZE_OFFSET) >>> 2) === size;
      if ((settled && (size & SIZE_BUSY) === 0) || look === LOOKS_MAX) break;
    }
    this.counts.misses++;
    if (this.#isOfOtherTimes) this.counts.missesByTime++;
    return CACHE_MISS;
  }

  /** Of the look-up in progress: the key is there, with claims about other times. */
  #isOfOtherTimes = false;

  #find(
    root: number,
    size: number,
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
    hash: number,
    T: number,
  ): number {
    const i32 = this.#i32;
    const u8 = this.#u8;
    const bucket = bucketOf(hash, size >>> SIZE_SHIFT);
    const entry = (root + BUCKET_TABLE_OFFSET + (bucket >>> BUCKETS_SHIFT) * 4) >>> 2;
    const segment = loadLink(i32, entry) >>> 0;
    // Given back since the size was loaded: the caller looks again.
    if (segment === 0) return 0;
    let row = loadLink(i32, (segment >>> 2) + (bucket & (BUCKETS_PER_SEGMENT - 1))) >>> 0;
    while (row !== 0) {
      const word = row >>> 2;
      if (
        i32[word + ROW_HASH_OFFSET / 4] === hash &&
        i32[word + ROW_COLLECTION_OFFSET / 4] === collection &&
        (i32[word + ROW_SHAPE_OFFSET / 4] & SHAPE_KEY_MASK) === length &&
        equalAt(u8, row + ROW_KEY_OFFSET, length, key, offset, length)
      ) {
        if (this.#holdsAt(word, T)) return row;
        this.#isOfOtherTimes = true;
      }
      row = loadLink(i32, word + ROW_NEXT_OFFSET / 4) >>> 0;
    }
    return 0;
  }

  /** The claim of the row is about T; then `from` is its own. */
  #holdsAt(word: number, T: number): boolean {
    const u32 = this.#u32;
    const from = fromWords(u32[word + ROW_FROM_OFFSET / 4], u32[word + ROW_FROM_OFFSET / 4 + 1]);
    if (T < from) return false;
    this.from = from;
    const until = word + ROW_UNTIL_OFFSET / 4;
    return (u32[until] | u32[until + 1]) === 0 || T < fromWords(u32[until], u32[until + 1]);
  }

  #answer(root: number, row: number, keyBytes: number): number {
    const u32 = this.#u32;
    const word = row >>> 2;
    this.#touch(root, u32[word + ROW_NODE_OFFSET / 4]);
    if (u32[word + ROW_SHAPE_OFFSET / 4] >>> SHAPE_KIND_SHIFT !== KIND_ROW) {
      this.counts.absent++;
      return CACHE_ABSENT;
    }
    this.valueAddress = row + ROW_KEY_OFFSET + keyBytes;
    this.valueBytes = u32[word + ROW_VALUE_BYTES_OFFSET / 4];
    this.counts.rows++;
    return CACHE_ROW;
  }

  /** A hot row costs one byte load a hit, and one ring word a period. */
  #touch(root: number, node: number): void {
    const u8 = this.#u8;
    const u32 = this.#u32;
    const period = u32[(root + PERIOD_OFFSET) >>> 2];
    const segment = u32[(root + MARK_TABLE_OFFSET + (node >>> MARKS_SHIFT) * 4) >>> 2];
    const mark = segment + (node & (MARKS_PER_SEGMENT - 1));
    if (u8[mark] === period) return;
    u8[mark] = period;
    // What is left of a past period is not kept back any longer.
    if (this.#touchSlot >= 0 && this.#touchPeriod !== period) this.flushTouches();
    if (this.#touchSlot < 0) {
      this.#touchSlot = this.#touches.claim();
      if (this.#touchSlot < 0) {
        this.counts.touchesDropped++;
        return;
      }
      this.#touchCount = 0;
      this.#touchPeriod = period;
    }
    u32[this.#touchSlot + TOUCH.IDS + this.#touchCount++] = node;
    this.counts.touches++;
    if (this.#touchCount === TOUCH_IDS_MAX) this.flushTouches();
  }

  /**
   * Publishes touches that wait for company. Worth a call at the end of a turn, not of a read. Wakes
   * the evictor only when the ring fills up: until then nothing hangs on them.
   */
  flushTouches(): void {
    const slot = this.#touchSlot;
    if (slot < 0) return;
    this.#u32[slot] = TOUCH_KIND;
    this.#u32[slot + TOUCH.COUNT] = this.#touchCount;
    this.#touchSlot = -1;
    this.#touches.push();
    if (this.#touches.room(touchRingSlots / 2) < touchRingSlots / 2) this.#evictor.ring();
  }

  /**
   * Offers what the parts alone said, before any overlay, so that the next read finds it in memory;
   * may be dropped. `version` is S of the view that was read. For a row `from` is the offset it was
   * written at; for an absent key, which has no value, one from which on it has been. `until`: the parts
   * may say something else from there on, UNTIL_NEXT: they do not. True when the evictor will see it.
   */
  offer(
    collection: number,
    version: number,
    key: Uint8Array,
    keyOffset: number,
    keyLength: number,
    hash: number,
    value: Uint8Array,
    valueOffset: number,
    valueLength: number,
    from: number,
    until: number,
    absent: boolean,
  ): boolean {
    const limitPages = this.#pool.limitPages(KIND_CACHE);
    if (limitPages === 0) return this.#dropOfferAndPage();
    if (rowBytes(keyLength, valueLength) > rowBytesMax(limitPages)) {
      this.counts.offersTooLarge++;
      return false;
    }
    this.#takeBack();
    const slot = this.#offers.claim();
    const at = slot < 0 ? -1 : this.#place(alignUp(keyLength + valueLength, 8));
    if (at < 0) {
      this.counts.offersDropped++;
      return false;
    }
    copyAt(key, keyOffset, keyLength, this.#u8, at);
    copyAt(value, valueOffset, valueLength, this.#u8, at + keyLength);
    const u32 = this.#u32;
    u32[slot] = POPULATE_KIND;
    u32[slot + POPULATE.WHAT] = absent ? OFFER_ABSENT : OFFER_ROW;
    u32[slot + POPULATE.COLLECTION] = collection;
    u32[slot + POPULATE.VERSION] = version;
    u32[slot + POPULATE.ADDRESS] = at;
    u32[slot + POPULATE.KEY_BYTES] = keyLength;
    u32[slot + POPULATE.VALUE_BYTES] = valueLength;
    u32[slot + POPULATE.HASH] = hash;
    u32[slot + POPULATE.FROM] = lowWord(from);
    u32[slot + POPULATE.FROM + 1] = highWord(from);
    u32[slot + POPULATE.UNTIL] = lowWord(until);
    u32[slot + POPULATE.UNTIL + 1] = highWord(until);
    this.#offers.push();
    this.counts.offers++;
    // Waking a sleeper costs more than a look-up: many rows for one wake-up. The first few go at once.
    if (++this.#unrung >= OFFERS_PER_RING || this.counts.offers <= OFFERS_PER_RING) {
      this.#unrung = 0;
      this.#evictor.ring();
    }
    return true;
  }

  /** Page bytes of the slots that the evictor has popped are ours again. */
  #takeBack(): void {
    const out = populateRingSlots - this.#offers.room();
    while (this.#slotCount > out) {
      this.#pageUsed -= this.#slotBytes[this.#slotFirst];
      this.#slotFirst = (this.#slotFirst + 1) & (populateRingSlots - 1);
      this.#slotCount--;
    }
    if (this.#pageUsed === 0) this.#pageAt = 0;
  }

  /** Address of `bytes` in one piece of the offer page, charged to the next slot; -1 when there is no room. */
  #place(bytes: number): number {
    if (this.#page === 0) {
      this.#page = this.#pool.lease(KIND_CACHE);
      if (this.#page === 0) return -1;
      this.#pageAt = 0;
    }
    const fits = this.#pageAt + bytes <= pageBytes;
    const taken = fits ? bytes : pageBytes - this.#pageAt + bytes;
    if (this.#pageUsed + taken > pageBytes) return -1;
    const at = fits ? this.#pageAt : 0;
    this.#pageAt = at + bytes;
    this.#pageUsed += taken;
    this.#slotBytes[(this.#slotFirst + this.#slotCount) & (populateRingSlots - 1)] = taken;
    this.#slotCount++;
    return this.#page + at;
  }

  /** The cache is off and needs no memory: ours goes too, once nothing in it is awaited. */
  #dropOfferAndPage(): false {
    this.counts.offersDropped++;
    this.#takeBack();
    if (this.#slotCount === 0) this.#freePage();
    return false;
  }

  #freePage(): void {
    if (this.#page === 0) return;
    this.#pool.free(this.#page, KIND_CACHE);
    this.#page = 0;
  }

  /**
   * The client goes: the offer page is given back, or handed to the evictor behind the last offer.
   * False when the ring has no slot for that now: call again. Offers nothing afterwards.
   */
  close(): boolean {
    this.flushTouches();
    this.#takeBack();
    if (this.#slotCount === 0) this.#freePage();
    if (this.#page === 0) return true;
    const slot = this.#offers.claim();
    if (slot < 0) return false;
    this.#u32[slot] = POPULATE_KIND;
    this.#u32[slot + POPULATE.WHAT] = OFFER_PAGE;
    this.#u32[slot + POPULATE.ADDRESS] = this.#page;
    this.#offers.push();
    this.#evictor.ring();
    this.#page = 0;
    return true;
  }
}
