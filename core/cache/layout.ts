/**
 * How the row cache lies in the arena. Everything is pages of KIND_CACHE. Words marked L are links:
 * they change after publication and go through core/shared/link.ts; all else is plain, and immutable
 * once its block is linked (mark bytes and the period are racy on purpose: nothing but the policy
 * depends on them). Written by the evictor (row-cache.ts), read on every thread (reader.ts).
 *
 *   roots      fixed; an i32 a collection slot
 *                 0     4  L address of the root page; 0 = nothing of the collection is cached
 *   root page  off  size  field
 *                 0     4  L size: buckets * 2, + 1 while rows are on their way to another bucket
 *               128     4  period: 1..255, moves on when touches are drained
 *               256    4K  table of mark segments, u32 each
 *                     16K  L table of bucket segments
 *               64K   64K  bucket segment 0
 *              128K   64K  mark segment 0
 *              192K   64K  bucket segment 1; further segments lie four to a page
 *   bucket     L i32: first row of the chain
 *   mark       u8 a node: period of its last touch, 0 = none
 *   row          0     4  L next row of the bucket
 *                4     4  hash of collection and key, i32
 *                8     4  collection
 *               12     4  node: the policy's number for the row; it moves to the row that replaces this one
 *               16     8  from: the row holds for every T >= from
 *               24     4  value bytes
 *               28     2  key bytes
 *               30     1  kind: ROW or ABSENT
 *               31     1  zero
 *               32     8  until: the row holds for every T < until, whatever comes; 0 = until the next update
 *               40        key, value
 *
 * And the slots of the two lossy rings of a client; word 0 is the message's kind (actors/messages.ts).
 */
import { invariant } from '../base/assert.ts';
import { arenaBytesMax, collectionsMax, keyBytesMax, pageBytes } from '../base/limits.ts';
import { LINE_BYTES } from '../shared/arena.ts';
import { SLOT_WORDS } from '../shared/ring.ts';

export const ROOTS_BYTES: number = collectionsMax * 4;

export const SEGMENT_BYTES: number = pageBytes / 4;
export const SEGMENTS_PER_PAGE: number = pageBytes / SEGMENT_BYTES;
export const BUCKETS_SHIFT = 14;
export const BUCKETS_PER_SEGMENT: number = 1 << BUCKETS_SHIFT;
export const MARKS_SHIFT = 16;
export const MARKS_PER_SEGMENT: number = 1 << MARKS_SHIFT;

export const SIZE_OFFSET = 0;
export const PERIOD_OFFSET: number = LINE_BYTES;
export const MARK_TABLE_OFFSET: number = 2 * LINE_BYTES;
export const MARK_SEGMENTS_MAX = 1_024;
export const BUCKET_TABLE_OFFSET: number = MARK_TABLE_OFFSET + MARK_SEGMENTS_MAX * 4;
export const BUCKET_SEGMENTS_MAX = 4_096;
export const ROOT_HEAD_BYTES: number = BUCKET_TABLE_OFFSET + BUCKET_SEGMENTS_MAX * 4;
/** Where in the root page the first segments are. */
export const FIRST_BUCKETS_OFFSET: number = SEGMENT_BYTES;
export const FIRST_MARKS_OFFSET: number = 2 * SEGMENT_BYTES;
export const SECOND_BUCKETS_OFFSET: number = 3 * SEGMENT_BYTES;
/** Segments of a kind that the root page itself holds. */
export const ROOT_BUCKET_SEGMENTS = 2;
export const ROOT_MARK_SEGMENTS = 1;

export const SIZE_SHIFT = 1;
export const SIZE_BUSY = 1;
export const PERIOD_MAX = 255;

export const ROW_NEXT_OFFSET = 0;
export const ROW_HASH_OFFSET: number = ROW_NEXT_OFFSET + 4;
export const ROW_COLLECTION_OFFSET: number = ROW_HASH_OFFSET + 4;
export const ROW_NODE_OFFSET: number = ROW_COLLECTION_OFFSET + 4;
export const ROW_FROM_OFFSET: number = ROW_NODE_OFFSET + 4;
export const ROW_VALUE_BYTES_OFFSET: number = ROW_FROM_OFFSET + 8;
/** The word of key bytes (low half) and kind (third byte). */
export const ROW_SHAPE_OFFSET: number = ROW_VALUE_BYTES_OFFSET + 4;
export const ROW_UNTIL_OFFSET: number = ROW_SHAPE_OFFSET + 4;
export const ROW_KEY_OFFSET: number = ROW_UNTIL_OFFSET + 8;
export const SHAPE_KEY_MASK = 0xffff;
export const SHAPE_KIND_SHIFT = 16;

export const KIND_ROW = 1;
export const KIND_ABSENT = 2;

/** A claim's `until` when it holds until the key's next update: it is about now. */
export const UNTIL_NEXT = 0;

/** A client's touch slot: node ids of rows it has read. */
export const TOUCH_KIND = 29;
export const TOUCH = { COUNT: 1, IDS: 2 } as const;
export const TOUCH_IDS_MAX: number = SLOT_WORDS - TOUCH.IDS;

/** A client's populate slot: a row in its offer page, key first, then the value. */
export const POPULATE_KIND = 30;
export const POPULATE = {
  /** OFFER_ROW, OFFER_ABSENT or OFFER_PAGE */
  WHAT: 1,
  COLLECTION: 2,
  /** Version of the source that was read. */
  VERSION: 3,
  ADDRESS: 4,
  KEY_BYTES: 5,
  VALUE_BYTES: 6,
  HASH: 7,
  /** Two words each. */
  FROM: 8,
  UNTIL: 10,
} as const;
export const OFFER_ROW = 1;
export const OFFER_ABSENT = 2;
/** No row: the client has done with the page at ADDRESS; it is the evictor's from here on. */
export const OFFER_PAGE = 3;

/** Claims about the past of one key at the most: what comes then takes the place of one. */
export const PAST_ROWS_MAX = 8;

/** A row is at most this part of the budget, so that one of them cannot empty the cache. */
const BUDGET_PARTS_MIN = 512;

invariant(ROOT_HEAD_BYTES <= FIRST_BUCKETS_OFFSET, 'the tables end before the first segment');
invariant(BUCKETS_PER_SEGMENT * 4 === SEGMENT_BYTES, 'a segment is full of buckets');
invariant(MARKS_PER_SEGMENT === SEGMENT_BYTES, 'a segment is full of marks');
// The smallest slot of a row page is 64 bytes: that many rows can be alive at the most.
invariant(MARK_SEGMENTS_MAX * MARKS_PER_SEGMENT * 64 > arenaBytesMax, 'every row has a mark');
invariant(BUCKET_SEGMENTS_MAX * BUCKETS_PER_SEGMENT * 64 > arenaBytesMax, 'a bucket for each row');
invariant(keyBytesMax <= SHAPE_KEY_MASK, 'key bytes fit their half word');
invariant(POPULATE.UNTIL + 2 <= SLOT_WORDS, 'an offer fits its slot');

/** Bytes of a row before it is rounded to a slot. */
export function rowBytes(keyBytes: number, valueBytes: number): number {
  return ROW_KEY_OFFSET + keyBytes + valueBytes;
}

/** The largest row that a cache of so many pages takes. */
export function rowBytesMax(limitPages: number): number {
  const part = Math.floor((limitPages * pageBytes) / BUDGET_PARTS_MIN);
  return part < pageBytes ? part : pageBytes;
}

/** The hash of a key in its collection, as an i32. `hash` is the same function of the key's bytes everywhere. */
export function rowHash(hash: number, collection: number): number {
  const h = Math.imul(hash ^ Math.imul(collection, 0x9e37_79b1), 0x2c1b_3c6d);
  return h ^ (h >>> 15);
}

/** The bucket of a hash among `count`: as many low bits as name one that exists (linear hashing). */
export function bucketOf(hash: number, count: number): number {
  const half = 1 << (31 - Math.clz32(count));
  const bucket = hash & (2 * half - 1);
  return bucket < count ? bucket : hash & (half - 1);
}

/** Which root word stands for a collection. Ids are never reused; slots are, and then share a word. */
export function rootSlotOf(collection: number): number {
  return collection & (collectionsMax - 1);
}

invariant((collectionsMax & (collectionsMax - 1)) === 0, 'collection slots are a power of two');
