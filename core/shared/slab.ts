/**
 * Blocks of many sizes cut from pool pages: each page holds slots of one size class, and goes back to
 * the pool when its last slot is given back. Bookkeeping is private to the one owner; the blocks are
 * shared with whoever is told their address. Used by the keeper (views, indexes, filters) and the
 * evictor (rows), each on its thread.
 */
import { invariant } from '../base/assert.ts';
import { pageBytes, pageShift } from '../base/limits.ts';
import type { BufferPool } from './buffer-pool.ts';

/** Slot sizes: steps of about a quarter, multiples of 64, up to a whole page. */
const CLASS_BYTES: readonly number[] = makeClasses();

/** One leased page and its slots. */
type SlabPage = {
  readonly address: number;
  readonly sizeClass: number;
  /** Slots given out. */
  live: number;
  /** Slots given back, and the first one never given out. */
  readonly free: number[];
  fresh: number;
  /** Place in the list of its class's pages with room, -1 = full. */
  openIndex: number;
};

export class Slab {
  readonly #pool: BufferPool;
  readonly #kind: number;
  readonly #pages: Map<number, SlabPage> = new Map();
  /** By class: pages with room. The last one is used first. */
  readonly #open: SlabPage[][] = CLASS_BYTES.map(() => []);
  #bytesLive = 0;

  constructor(pool: BufferPool, kind: number) {
    this.#pool = pool;
    this.#kind = kind;
  }

  /** Address of a block of at least `bytes`, or 0 when the budget is spent. Contents are arbitrary. */
  allocate(bytes: number): number {
    const sizeClass = classFor(bytes);
    const open = this.#open[sizeClass];
    const page = open.length > 0 ? open[open.length - 1] : this.#grow(sizeClass);
    if (page === undefined) return 0;
    const size = CLASS_BYTES[sizeClass];
    let address = page.free.pop();
    if (address === undefined) {
      address = page.fresh;
      page.fresh += size;
    }
    page.live++;
    this.#bytesLive += size;
    if (!hasRoom(page)) this.#takeFromOpen(page);
    return address;
  }

  /** True when `allocate` of so many bytes needs no further page. */
  hasSlot(bytes: number): boolean {
    return this.#open[classFor(bytes)].length > 0;
  }

  /** Requires: allocated here, and no reader can see it any more. */
  free(address: number): void {
    const page = this.#pages.get(address >>> pageShift);
    invariant(page !== undefined, 'freed where it was allocated', address);
    invariant(page.live > 0, 'freed once', address);
    page.live--;
    page.free.push(address);
    this.#bytesLive -= CLASS_BYTES[page.sizeClass];
    if (page.openIndex < 0) this.#addToOpen(page);
    if (page.live > 0) return;
    this.#takeFromOpen(page);
    this.#pages.delete(address >>> pageShift);
    this.#pool.free(page.address, this.#kind);
  }

  /** Gives back every page, whatever is allocated. Requires: no reader can see any of it any more. */
  clear(): void {
    for (const page of this.#pages.values()) this.#pool.free(page.address, this.#kind);
    this.#pages.clear();
    for (const open of this.#open) open.length = 0;
    this.#bytesLive = 0;
  }

  /** Bytes of the block at `address`, as allocated. */
  sizeOf(address: number): number {
    return CLASS_BYTES[this.#pages.get(address >>> pageShift)!.sizeClass];
  }

  get bytesLive(): number {
    return this.#bytesLive;
  }

  get pages(): number {
    return this.#pages.size;
  }

  #grow(sizeClass: number): SlabPage | undefined {
    const address = this.#pool.lease(this.#kind);
    if (address === 0) return undefined;
    const page = { address, sizeClass, live: 0, free: [], fresh: address, openIndex: -1 };
    this.#pages.set(address >>> pageShift, page);
    this.#addToOpen(page);
    return page;
  }

  #addToOpen(page: SlabPage): void {
    page.openIndex = this.#open[page.sizeClass].push(page) - 1;
  }

  #takeFromOpen(page: SlabPage): void {
    const open = this.#open[page.sizeClass];
    const last = open.pop()!;
    if (last !== page) {
      open[page.openIndex] = last;
      last.openIndex = page.openIndex;
    }
    page.openIndex = -1;
  }
}

function hasRoom(page: SlabPage): boolean {
  const size = CLASS_BYTES[page.sizeClass];
  return page.free.length > 0 || page.fresh + size <= page.address + pageBytes;
}

function makeClasses(): number[] {
  const classes: number[] = [];
  for (let bytes = 64; bytes < pageBytes; bytes = Math.max(bytes + 64, (bytes * 1.25) & ~63)) {
    classes.push(bytes);
  }
  classes.push(pageBytes);
  return classes;
}

function classFor(bytes: number): number {
  invariant(bytes <= pageBytes, 'a block fits a page', bytes);
  let low = 0;
  let high = CLASS_BYTES.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (CLASS_BYTES[middle] < bytes) low = middle + 1;
    else high = middle;
  }
  return low;
}
