/**
 * How a generation lies in the arena. Everything is pages of KIND_MEMTABLE, found through page tables
 * in the header page, whose address is the generation's handle. Only words marked L are links: they
 * change after publication and go through core/shared/link.ts; all else is plain and immutable once
 * published. Written by the sequencer (writer.ts), read on every thread (reader.ts, cursor.ts).
 *
 *   header   off  size  field
 *              0     4  magic
 *              4     4  serial of the generation on its arena: tells two users of one page apart
 *              8     4  bucket mask (bucket count - 1)
 *             12     4  L ranges: address of the newest range delete's node, 0 = none
 *             16     4  L anchors: how many there are
 *             20     4  L directory: address of the newest list of sorted runs, 0 = none
 *             24     8  lower       \
 *             32     8  upper        | written when sealed; read by whoever was
 *             40     8  rows         | told so by a message or a view
 *             48     8  bytes       /
 *             56     4  L range sets: address of the newest list of them, 0 = none
 *             60    68  zero
 *            128   16K  page table of the buckets, u32 each
 *                  16K  page table of the anchors
 *                  16K  page table of the sorted runs
 *                 128K  collections: L open-addressed, address of the collection's newest node
 *
 *   node      32 bytes
 *              0     4  L next node of the bucket
 *              4     4  L newest: in an anchor, the key's newest node (itself at first); else the anchor
 *              8     4  older version of the key, 0 = none: this node is the anchor
 *             12     4  jump: a version up to `hopsMax` older, 0 = none
 *             16     4  address of the operation (core/base/update.ts)
 *             20     4  hash of collection and key
 *             24     4  time, low word
 *             28     4  time, high 21 bits; above them hops: how many versions back `jump` is
 *
 *   directory      u32 run count, u32 anchors that are in runs, then {u32 start, u32 count} a run
 *   range sets     u32 set count, u32 node: that range delete and all older ones are in sets; then an
 *                  address a set (core/base/range-set.ts, base 0)
 *
 * An *anchor* is the first version of a key in its generation. Anchors fill pages in the order of
 * insertion and are the only members of sorted runs: a key stands there once, however often it is
 * written. A bucket's chain holds one node a key, the newest; a new version takes its place.
 *
 * The node of a range delete has time, operation and, in `next`, the one before it; the rest is 0. Its
 * operation lies in one piece. What it overtook in its own transaction never came in (overtaken.ts).
 */
import { invariant } from '../base/assert.ts';
import { hashAt } from '../base/bytes.ts';
import { collectionsMax, pageBytes, pageShift } from '../base/limits.ts';

export const GENERATION_MAGIC = 0x4754_6d54;

/** Buckets, anchors or words of runs are pages of these many, as shifts. */
export const BUCKETS_SHIFT: number = pageShift - 2;
export const NODE_SHIFT = 5;
export const ANCHORS_SHIFT: number = pageShift - NODE_SHIFT;
export const RUN_WORDS_SHIFT: number = pageShift - 2;
export const TABLE_PAGES_MAX = 4_096;

export const NODE_BYTES: number = 1 << NODE_SHIFT;
export const NODE_NEXT_WORD = 0;
export const NODE_NEWEST_WORD = 1;
export const NODE_OLDER_WORD = 2;
export const NODE_JUMP_WORD = 3;
export const NODE_OPERATION_WORD = 4;
export const NODE_HASH_WORD = 5;
export const NODE_TIME_LOW_WORD = 6;
export const NODE_TIME_HIGH_WORD = 7;
export const TIME_HIGH_BITS = 21;
export const TIME_HIGH_MASK: number = (1 << TIME_HIGH_BITS) - 1;
/** Versions between a node and the one its jump leads to: an old version is reached in n/256 + 256 steps. */
export const hopsMax = 256;

export const MAGIC_WORD = 0;
export const SERIAL_WORD = 1;
export const MASK_WORD = 2;
export const RANGES_WORD = 3;
export const ANCHORS_WORD = 4;
export const DIRECTORY_WORD = 5;
export const LOWER_WORD = 6;
export const UPPER_WORD: number = LOWER_WORD + 2;
export const ROWS_WORD: number = UPPER_WORD + 2;
export const BYTES_WORD: number = ROWS_WORD + 2;
export const RANGE_SETS_WORD: number = BYTES_WORD + 2;
export const BUCKET_TABLE_WORD = 32;
export const ANCHOR_TABLE_WORD: number = BUCKET_TABLE_WORD + TABLE_PAGES_MAX;
export const RUN_TABLE_WORD: number = ANCHOR_TABLE_WORD + TABLE_PAGES_MAX;
export const COLLECTION_TABLE_WORD: number = RUN_TABLE_WORD + TABLE_PAGES_MAX;
export const COLLECTION_SLOTS_SHIFT = 15;
export const COLLECTION_SLOTS: number = 1 << COLLECTION_SLOTS_SHIFT;
export const HEADER_BYTES: number = (COLLECTION_TABLE_WORD + COLLECTION_SLOTS) * 4;

export const DIRECTORY_RUNS_WORD = 0;
export const DIRECTORY_ANCHORS_WORD = 1;
export const DIRECTORY_HEADER_WORDS = 2;
export const RUN_START_WORD = 0;
export const RUN_COUNT_WORD = 1;
export const DIRECTORY_RUN_WORDS = 2;

export const RANGE_SETS_COUNT_WORD = 0;
export const RANGE_SETS_NODE_WORD = 1;
export const RANGE_SETS_HEADER_WORDS = 2;

invariant(HEADER_BYTES <= pageBytes, 'the header is one page');
invariant(COLLECTION_SLOTS >= 2 * collectionsMax, 'the collection table is at most half full');
invariant(hopsMax < 1 << (32 - TIME_HIGH_BITS), 'hops fit above the time');

const HASH_SEED = 0x1d_872b_41;

/** Hash of a key as `find` wants it: made once a read, good for every generation. */
export function keyHash(bytes: Uint8Array, offset: number, length: number): number {
  return hashAt(bytes, offset, length, HASH_SEED);
}

/** Hash of a key in its collection, as an i32. */
export function mixCollection(hash: number, collection: number): number {
  const h = hash ^ Math.imul(collection, 0x9e37_79b1);
  return Math.imul(h ^ (h >>> 15), 0x85eb_ca6b);
}

/** Time of a node, by its word index. */
export function timeAt(u32: Uint32Array, nodeWord: number): number {
  const high = u32[nodeWord + NODE_TIME_HIGH_WORD] & TIME_HIGH_MASK;
  return high * 0x1_0000_0000 + u32[nodeWord + NODE_TIME_LOW_WORD];
}

/** The newest version with time <= T among a node and those older, as a word index; 0 when there is none. */
export function newestUpTo(u32: Uint32Array, nodeWord: number, T: number): number {
  let word = nodeWord;
  while (timeAt(u32, word) > T) {
    const jump = u32[word + NODE_JUMP_WORD] >>> 2;
    if (jump !== 0 && timeAt(u32, jump) > T) {
      word = jump;
    } else {
      word = u32[word + NODE_OLDER_WORD] >>> 2;
      if (word === 0) return 0;
    }
  }
  return word;
}

/** Word index of the table slot where the search for a collection begins, counted from the table's start. */
export function collectionSlot(collection: number): number {
  return Math.imul(collection, 0x9e37_79b1) >>> (32 - COLLECTION_SLOTS_SHIFT);
}
