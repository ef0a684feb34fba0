/**
 * A pool of equal pages in shared memory: bitmap, owner kinds with budgets, reference counts, chains.
 * A page is leased by exactly one owner at a time; leasing and giving back are one CAS on a bitmap
 * word (no linked stack, so no ABA, and owners can be audited). Any thread may call it.
 *
 * Tables, in this order, from `tablesAddress`:
 *   bitmap   u32 per 32 pages   1 = leased
 *   kinds    128 B per kind     word 0 used pages, word 1 limit, word 2 pages lent to it beyond,
 *                               word 3 pages that it is about to take
 *   refs     i32 per page       references of a record page; freed at 0
 *   next     u32 per page       address of the page that continues this one, 0 = none
 *   used     u32 per page       payload bytes in a chained page, from its start
 *   owner    u8 per page        kind of the owner, 0 = free
 */
import { invariant, verify } from '../base/assert.ts';
import { alignUp } from '../base/bytes.ts';
import { pageBytes, pageShift } from '../base/limits.ts';
import { LINE_BYTES } from './arena.ts';
import type { Arena } from './arena.ts';

/** Clients' record pages; at recovery also durability's. */
export const KIND_RECORD = 1;
/** The sequencer's nodes and indexes. */
export const KIND_MEMTABLE = 2;
/** The keeper's views, part indexes and filters. */
export const KIND_VIEW = 3;
/** The evictor's rows, and clients' offer pages. */
export const KIND_CACHE = 4;
export const POOL_KINDS = 5;

const USED_WORD = 0;
const LIMIT_WORD = 1;
const LENT_WORD = 2;
const PROMISED_WORD = 3;
const LINE_WORDS: number = LINE_BYTES / 4;

export class BufferPool {
  readonly #arena: Arena;
  readonly #pages: number;
  readonly #firstPage: number;
  readonly #bitmapWord: number;
  readonly #kindsWord: number;
  readonly #refsWord: number;
  readonly #nextWord: number;
  readonly #usedWord: number;
  readonly #ownerAddress: number;
  #hint: number;

  /** Pages below `firstPage` hold the fixed tables and are never leased. */
  constructor(arena: Arena, tablesAddress: number, firstPage: number) {
    this.#arena = arena;
    this.#pages = Math.floor(arena.bytes / pageBytes);
    this.#firstPage = firstPage;
    let at = tablesAddress;
    const table = (bytes: number): number => {
      const start = at;
      at = alignUp(at + bytes, LINE_BYTES);
      return start;
    };
    this.#bitmapWord = table(bitmapBytes(this.#pages)) >>> 2;
    this.#kindsWord = table(POOL_KINDS * LINE_BYTES) >>> 2;
    this.#refsWord = table(this.#pages * 4) >>> 2;
    this.#nextWord = table(this.#pages * 4) >>> 2;
    this.#usedWord = table(this.#pages * 4) >>> 2;
    this.#ownerAddress = table(this.#pages);
    // Page 0 holds tables at the least: an address of 0 means nothing.
    invariant(at <= firstPage * pageBytes, 'the tables lie below the first page', at, firstPage);
    this.#hint = firstPage >>> 5;
  }

  /** Bytes of the tables for an arena of that many bytes. */
  static tableBytes(arenaBytes: number): number {
    const pages = Math.floor(arenaBytes / pageBytes);
    const parts = [bitmapBytes(pages), POOL_KINDS * LINE_BYTES, pages * 4, pages * 4, pages * 4];
    return [...parts, pages].reduce((sum, bytes) => sum + alignUp(bytes, LINE_BYTES), 0);
  }

  /** Clears the tables. Requires: nobody else uses the pool yet. `limits` are pages by kind. */
  reset(limits: readonly number[]): void {
    const { i32, u8 } = this.#arena;
    i32.fill(0, this.#bitmapWord, this.#bitmapWord + (bitmapBytes(this.#pages) >>> 2));
    for (let page = 0; page < this.#pages; page++) {
      i32[this.#refsWord + page] = 0;
      i32[this.#nextWord + page] = 0;
      i32[this.#usedWord + page] = 0;
    }
    u8.fill(0, this.#ownerAddress, this.#ownerAddress + this.#pages);
    // Pages below the first, and bits past the last page, are taken for ever.
    for (let page = 0; page < bitmapBytes(this.#pages) * 8; page++) {
      if (page >= this.#firstPage && page < this.#pages) continue;
      const word = this.#bitmapWord + (page >>> 5);
      i32[word] = i32[word] | (1 << (page & 31));
    }
    for (let kind = 0; kind < POOL_KINDS; kind++) {
      const word = this.#kindsWord + kind * LINE_WORDS;
      Atomics.store(i32, word + USED_WORD, 0);
      Atomics.store(i32, word + LIMIT_WORD, limits[kind] ?? 0);
      Atomics.store(i32, word + LENT_WORD, 0);
      Atomics.store(i32, word + PROMISED_WORD, 0);
    }
  }

  /** Address of a page for an owner of `kind`, or 0 when its budget or the arena is spent. Contents are arbitrary. */
  lease(kind: number): number {
    const { i32 } = this.#arena;
    const kindWord = this.#kindsWord + kind * LINE_WORDS;
    // The budget is claimed before the page, so that two threads never both take the last of it.
    const used = Atomics.add(i32, kindWord + USED_WORD, 1);
    if (used >= this.limitPages(kind)) {
      Atomics.sub(i32, kindWord + USED_WORD, 1);
      return 0;
    }
    const page = this.#claim();
    if (page === 0) {
      Atomics.sub(i32, kindWord + USED_WORD, 1);
      return 0;
    }
    this.#arena.u8[this.#ownerAddress + page] = kind;
    i32[this.#nextWord + page] = 0;
    i32[this.#usedWord + page] = 0;
    return (page << pageShift) >>> 0;
  }

  #claim(): number {
    const { i32 } = this.#arena;
    const words = bitmapBytes(this.#pages) >>> 2;
    for (let n = 0; n < words; n++) {
      const index = (this.#hint + n) % words;
      const word = this.#bitmapWord + index;
      for (let bits = Atomics.load(i32, word); bits !== -1; bits = Atomics.load(i32, word)) {
        const bit = Math.clz32(~bits & -~bits) ^ 31;
        if (Atomics.compareExchange(i32, word, bits, bits | (1 << bit)) === bits) {
          this.#hint = index;
          return (index << 5) + bit;
        }
      }
    }
    return 0;
  }

  /** Gives a page back. Requires: the caller owns it and nobody reads it any more. */
  free(address: number, kind: number): void {
    const { i32, u8 } = this.#arena;
    const page = address >>> pageShift;
    invariant((address & (pageBytes - 1)) === 0, 'a page address', address);
    invariant(u8[this.#ownerAddress + page] === kind, 'freed by its owner', page, kind);
    u8[this.#ownerAddress + page] = 0;
    // Under verify a reader that overstays finds bytes that no format allows.
    if (verify()) u8.fill(0xcc, address, address + pageBytes);
    const was = Atomics.and(i32, this.#bitmapWord + (page >>> 5), ~(1 << (page & 31)));
    invariant((was & (1 << (page & 31))) !== 0, 'freed once', page);
    Atomics.sub(i32, this.#kindsWord + kind * LINE_WORDS + USED_WORD, 1);
  }

  /** One more holder of a record page. */
  retain(address: number): void {
    Atomics.add(this.#arena.i32, this.#refsWord + (address >>> pageShift), 1);
  }

  /** One holder less; the last one frees the page. */
  release(address: number): void {
    const word = this.#refsWord + (address >>> pageShift);
    const was = Atomics.sub(this.#arena.i32, word, 1);
    invariant(was > 0, 'released as often as retained', address);
    if (was === 1) this.free((address & ~(pageBytes - 1)) >>> 0, KIND_RECORD);
  }

  /** Address of the page that continues this one, 0 = none. Plain: set before the page is pushed. */
  next(address: number): number {
    return this.#arena.u32[this.#nextWord + (address >>> pageShift)];
  }

  setNext(address: number, next: number): void {
    this.#arena.u32[this.#nextWord + (address >>> pageShift)] = next;
  }

  /** Payload bytes in a chained page, from the page's start. */
  used(address: number): number {
    return this.#arena.u32[this.#usedWord + (address >>> pageShift)];
  }

  setUsed(address: number, bytes: number): void {
    this.#arena.u32[this.#usedWord + (address >>> pageShift)] = bytes;
  }

  /** Pages leased by owners of the kind. */
  usedPages(kind: number): number {
    return Atomics.load(this.#arena.i32, this.#kindsWord + kind * LINE_WORDS + USED_WORD);
  }

  /** Its own, and what it is lent beyond that; one that has none of its own is lent nothing. */
  limitPages(kind: number): number {
    const { i32 } = this.#arena;
    const word = this.#kindsWord + kind * LINE_WORDS;
    const limit = Atomics.load(i32, word + LIMIT_WORD);
    return limit === 0 ? 0 : limit + Atomics.load(i32, word + LENT_WORD);
  }

  setLimitPages(kind: number, pages: number): void {
    Atomics.store(this.#arena.i32, this.#kindsWord + kind * LINE_WORDS + LIMIT_WORD, pages);
  }

  /** Pages of other kinds' budgets that the kind may have until they are wanted; 0 = none any more. */
  setLentPages(kind: number, pages: number): void {
    Atomics.store(this.#arena.i32, this.#kindsWord + kind * LINE_WORDS + LENT_WORD, pages);
  }

  /** Pages within its limit that an owner of the kind is about to take: nobody is lent those. */
  setPromisedPages(kind: number, pages: number): void {
    Atomics.store(this.#arena.i32, this.#kindsWord + kind * LINE_WORDS + PROMISED_WORD, pages);
  }

  promisedPages(kind: number): number {
    return Atomics.load(this.#arena.i32, this.#kindsWord + kind * LINE_WORDS + PROMISED_WORD);
  }

  /** Pages of the kind that could still be leased under its budget. */
  freePages(kind: number): number {
    return Math.max(0, this.limitPages(kind) - this.usedPages(kind));
  }

  /** Count of leased pages by owner kind, for leak audits. Exact only when nothing runs. */
  audit(): number[] {
    const counts: number[] = Array.from({ length: POOL_KINDS }, () => 0);
    for (let page = this.#firstPage; page < this.#pages; page++) {
      const kind = this.#arena.u8[this.#ownerAddress + page];
      counts[kind] = counts[kind] + 1;
    }
    return counts;
  }
}

function bitmapBytes(pages: number): number {
  return ((pages + 31) >>> 5) * 4;
}
