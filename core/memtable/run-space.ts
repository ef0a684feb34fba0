/**
 * The space in which a generation's sorted runs lie: words at positions counted from 0, over pages of
 * the arena. It only grows; nothing in it is written twice, so a reader with an old directory still
 * finds its runs. Beside each word the writer keeps the anchor's code, which nobody else needs, in
 * private memory. Called by the writer alone.
 */
import type { Arena } from '../shared/arena.ts';
import { KIND_MEMTABLE } from '../shared/buffer-pool.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';
import { RUN_TABLE_WORD, RUN_WORDS_SHIFT, TABLE_PAGES_MAX } from './layout.ts';

export const PAGE_WORDS: number = 1 << RUN_WORDS_SHIFT;
export const PAGE_WORD_MASK: number = PAGE_WORDS - 1;

/** Pages of codes that a sealed generation left, for the next one: making them anew would trouble the collector. */
const sparePages: Float64Array[] = [];
const sparePagesMax = 32;

export class RunSpace {
  readonly #u32: Uint32Array;
  readonly #pool: BufferPool;
  readonly #tableWord: number;
  readonly #codePages: Float64Array[] = [];
  #pages = 0;
  #words = 0;

  constructor(arena: Arena, pool: BufferPool, header: number) {
    this.#u32 = arena.u32;
    this.#pool = pool;
    this.#tableWord = (header >>> 2) + RUN_TABLE_WORD;
  }

  get pages(): number {
    return this.#pages;
  }

  /** Leases what so many more words need. */
  reserve(words: number): boolean {
    return this.#grow(this.#words + words);
  }

  /** Position of so many fresh words, or -1 when the pool has no page. */
  take(words: number): number {
    const start = this.#words;
    if (!this.#grow(start + words)) return -1;
    // Not with their pages: a generation that is never filled never needs them.
    while (this.#codePages.length < this.#pages) {
      this.#codePages.push(sparePages.pop() ?? new Float64Array(PAGE_WORDS));
    }
    this.#words = start + words;
    return start;
  }

  /** Address of so many fresh words in one piece, or 0. Requires: no more than a page. */
  takeBlock(words: number): number {
    const left = PAGE_WORDS - (this.#words & PAGE_WORD_MASK);
    const start = left < words ? this.#words + left : this.#words;
    if (!this.#grow(start + words)) return 0;
    this.#words = start + words;
    return (
      this.#u32[this.#tableWord + (start >>> RUN_WORDS_SHIFT)] + ((start & PAGE_WORD_MASK) << 2)
    );
  }

  #grow(end: number): boolean {
    while (this.#pages << RUN_WORDS_SHIFT < end) {
      if (this.#pages === TABLE_PAGES_MAX) return false;
      const page = this.#pool.lease(KIND_MEMTABLE);
      if (page === 0) return false;
      // Plain: whoever reads this entry found a directory that was published after it.
      this.#u32[this.#tableWord + this.#pages] = page;
      this.#pages++;
    }
    return true;
  }

  /** Word of the arena in which a position lies; the rest of its page follows. */
  wordOf(position: number): number {
    const page = this.#u32[this.#tableWord + (position >>> RUN_WORDS_SHIFT)];
    return (page >>> 2) + (position & PAGE_WORD_MASK);
  }

  /** Codes of the page in which a position lies, by its lower bits (which are those of the word too). */
  codePage(position: number): Float64Array {
    return this.#codePages[position >>> RUN_WORDS_SHIFT];
  }

  /** The codes are needed no more: nothing will be merged. */
  dropCodes(): void {
    for (const page of this.#codePages)
      if (sparePages.length < sparePagesMax) sparePages.push(page);
    this.#codePages.length = 0;
  }

  free(): void {
    this.dropCodes();
    for (let i = 0; i < this.#pages; i++) {
      this.#pool.free(this.#u32[this.#tableWord + i], KIND_MEMTABLE);
    }
    this.#pages = 0;
  }
}
