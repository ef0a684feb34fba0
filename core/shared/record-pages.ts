/**
 * Records in pages: how a payload lies in one page or runs on through chained ones, how it is laid
 * there, walked and gathered. Operation headers, keys and range deletes never cross a page end; a value
 * may, and then fills each page to its end. `used[page]` is where a chained page's payload ends. Called by clients
 * and by recovery (lay), the sequencer (walk), durability (pieces) and readers (gather).
 */
import { invariant } from '../base/assert.ts';
import {
  OP_COLLECTION_OFFSET,
  OP_DELETE_RANGE,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_UPDATE_HEADER_BYTES,
  OP_VALUE_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
} from '../base/update.ts';
import { getU16, getU32 } from '../base/bytes.ts';
import { inPlaceBytesMin, keyBytesMax, pageBytes } from '../base/limits.ts';
import type { Arena } from './arena.ts';
import { KIND_RECORD } from './buffer-pool.ts';
import type { BufferPool } from './buffer-pool.ts';

const PAGE_MASK: number = pageBytes - 1;

export function pageOf(address: number): number {
  return (address & ~PAGE_MASK) >>> 0;
}

/** Where a value of `valueBytes` starting at `address` ends, following the chain; 8-aligned up. */
export function endOfValue(pool: BufferPool, address: number, valueBytes: number): number {
  let at = address;
  let left = valueBytes;
  let end = pageOf(at - 1) + pageBytes;
  // A key may end exactly at a page's end; its value then begins on the next page.
  while (at + left > end) {
    left -= end - at;
    at = pool.next(end - 1);
    invariant(at !== 0, 'a value runs on through chained pages', end);
    end = at + pageBytes;
  }
  return ((at + left + 7) & ~7) >>> 0;
}

/** Copies a value into target[to...]. */
export function gatherValue(
  arena: Arena,
  pool: BufferPool,
  address: number,
  valueBytes: number,
  target: Uint8Array,
  to: number,
): void {
  let at = address;
  let left = valueBytes;
  let end = pageOf(at - 1) + pageBytes;
  while (left > 0) {
    const n = Math.min(left, end - at);
    target.set(arena.u8.subarray(at, at + n), to);
    to += n;
    left -= n;
    if (left === 0) break;
    at = pool.next(end - 1);
    end = at + pageBytes;
  }
}

/** True when the value lies in one piece and can be read where it is. */
export function isContiguous(address: number, valueBytes: number): boolean {
  return address + valueBytes <= pageOf(address - 1) + pageBytes;
}

/** Walks the operations of one record in order. Fields are valid until `next`. */
export class OperationWalker {
  readonly #arena: Arena;
  readonly #pool: BufferPool;
  #start = 0;
  #at = 0;
  #transactionsLeft = 0;
  #operationsLeft = 0;
  /** Index of the operation's transaction in the record. */
  txIndex = 0;
  /** Address of the operation's header. */
  address = 0;
  collection = 0;
  kind = 0;
  keyAddress = 0;
  keyBytes = 0;
  valueBytes = 0;

  constructor(arena: Arena, pool: BufferPool) {
    this.#arena = arena;
    this.#pool = pool;
  }

  start(address: number, txCount: number): void {
    this.#start = address;
    this.#at = address;
    this.#transactionsLeft = txCount;
    this.#operationsLeft = 0;
    this.txIndex = -1;
  }

  next(): boolean {
    const { u32, u8 } = this.#arena;
    while (this.#operationsLeft === 0) {
      if (this.#transactionsLeft === 0) return false;
      this.#cross();
      this.#operationsLeft = u32[(this.#at + TX_COUNT_OFFSET) >>> 2]!;
      this.#transactionsLeft--;
      this.txIndex++;
      this.#at += TX_HEADER_BYTES;
    }
    this.#cross();
    const at = this.#at;
    this.address = at;
    this.collection = u32[(at + OP_COLLECTION_OFFSET) >>> 2]!;
    this.kind = u8[at + OP_KIND_OFFSET]!;
    this.keyBytes = u8[at + OP_KEY_BYTES_OFFSET] | (u8[at + OP_KEY_BYTES_OFFSET + 1] << 8);
    this.valueBytes = u32[(at + OP_VALUE_BYTES_OFFSET) >>> 2]!;
    this.keyAddress = at + keyOffsetOf(this.kind);
    this.#operationsLeft--;
    this.#at = endOfValue(this.#pool, this.keyAddress + this.keyBytes, this.valueBytes);
    return true;
  }

  /** At the end of what a chained page holds, the payload goes on at the start of the next. */
  #cross(): void {
    // A record may begin a page; the page before that is somebody else's.
    if (this.#at === this.#start) return;
    const page = pageOf(this.#at - 1);
    const next = this.#pool.next(page);
    if (next !== 0 && this.#at === page + this.#pool.used(page)) this.#at = next;
  }
}

/** Calls `visit` with each contiguous piece of a payload, in order. */
export function eachPiece(
  pool: BufferPool,
  address: number,
  payloadBytes: number,
  visit: (address: number, bytes: number) => void,
): void {
  let at = address;
  let left = payloadBytes;
  while (left > 0) {
    const page = pageOf(at);
    const end = pool.next(page) === 0 ? at + left : page + pool.used(page);
    const n = Math.min(left, end - at);
    visit(at, n);
    left -= n;
    at = pool.next(page);
  }
}

/** Pages that laying a payload may need at the most: each page end wastes less than one small operation. */
export function pagesFor(payloadBytes: number): number {
  const togetherMax = Math.max(inPlaceBytesMin, keyBytesMax);
  const wasteMax = OP_UPDATE_HEADER_BYTES + keyBytesMax + togetherMax + 8;
  return Math.ceil(payloadBytes / (pageBytes - wasteMax)) + 1;
}

/**
 * Lays an encoded payload over fresh pages, chained by next[page]; each has one reference, the
 * caller's. Returns the first page's address, or 0 when the pool has not got enough (nothing is kept).
 */
export function layChained(
  arena: Arena,
  pool: BufferPool,
  source: Uint8Array,
  offset: number,
  txCount: number,
): number {
  const first = pool.lease(KIND_RECORD);
  if (first === 0) return 0;
  pool.retain(first);
  let page = first;
  let at = page;
  let from = offset;

  const advance = (): boolean => {
    const next = pool.lease(KIND_RECORD);
    if (next === 0) return false;
    pool.retain(next);
    pool.setUsed(page, at - page);
    pool.setNext(page, next);
    page = next;
    at = next;
    return true;
  };
  const copy = (bytes: number): void => {
    arena.u8.set(source.subarray(from, from + bytes), at);
    from += bytes;
    at += bytes;
  };

  for (let t = 0; t < txCount; t++) {
    const operations = getU32(source, from + TX_COUNT_OFFSET);
    if (at + TX_HEADER_BYTES > page + pageBytes && !advance()) return abandon(pool, first);
    copy(TX_HEADER_BYTES);
    for (let o = 0; o < operations; o++) {
      const kind = source[from + OP_KIND_OFFSET];
      const keyOffset = keyOffsetOf(kind);
      const head = keyOffset + getU16(source, from + OP_KEY_BYTES_OFFSET);
      let value = getU32(source, from + OP_VALUE_BYTES_OFFSET);
      const whole = (head + value + 7) & ~7;
      const padding = whole - head - value;
      const isWhole = value <= inPlaceBytesMin || kind === OP_DELETE_RANGE;
      const together = isWhole ? whole : head;
      if (at + together > page + pageBytes && !advance()) return abandon(pool, first);
      copy(head);
      while (at + value > page + pageBytes) {
        const n = page + pageBytes - at;
        copy(n);
        value -= n;
        if (!advance()) return abandon(pool, first);
      }
      copy(value + padding);
    }
  }
  pool.setUsed(page, at - page);
  return first;
}

function abandon(pool: BufferPool, first: number): number {
  releaseChain(pool, first);
  return 0;
}

/** Gives up the caller's reference to every page of a chain. */
export function releaseChain(pool: BufferPool, first: number): void {
  for (let page = first; page !== 0;) {
    const next = pool.next(page);
    pool.release(page);
    page = next;
  }
}
