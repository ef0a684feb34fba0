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

export class Slab {
  readonly #pool: BufferPool;
  readonly #kind: number;
  /** Free slots by class, and by page: class and live slots. */
  readonly #free: number[][] = CLASS_BYTES.map(() => []);
  readonly #classOf: Map<number, number> = new Map();
  readonly #liveOf: Map<number, number> = new Map();
  #bytesLive = 0;

  constructor(pool: BufferPool, kind: number) {
    this.#pool = pool;
    this.#kind = kind;
  }

  /** Address of a block of at least `bytes`, or 0 when the budget is spent. Contents are arbitrary. */
  allocate(bytes: number): number {
    const sizeClass = classFor(bytes);
    const free = this.#free[sizeClass]!;
    if (free.length === 0 && !this.#grow(sizeClass)) return 0;
    const address = free.pop()!;
    const page = address >>> pageShift;
    this.#liveOf.set(page, this.#liveOf.get(page)! + 1);
    this.#bytesLive += CLASS_BYTES[sizeClass]!;
    return address;
  }

  /** Requires: allocated here, and no reader can see it any more. */
  free(address: number): void {
    const page = address >>> pageShift;
    const sizeClass = this.#classOf.get(page);
    invariant(sizeClass !== undefined, 'freed where it was allocated', address);
    const live = this.#liveOf.get(page)! - 1;
    invariant(live >= 0, 'freed once', address);
    this.#liveOf.set(page, live);
    this.#bytesLive -= CLASS_BYTES[sizeClass]!;
    const free = this.#free[sizeClass]!;
    free.push(address);
    if (live === 0) this.#dropPage(page, sizeClass);
  }

  /** Bytes of the block at `address`, as allocated. */
  sizeOf(address: number): number {
    return CLASS_BYTES[this.#classOf.get(address >>> pageShift)!]!;
  }

  get bytesLive(): number {
    return this.#bytesLive;
  }

  get pages(): number {
    return this.#liveOf.size;
  }

  #grow(sizeClass: number): boolean {
    const start = this.#pool.lease(this.#kind);
    if (start === 0) return false;
    const size = CLASS_BYTES[sizeClass]!;
    this.#classOf.set(start >>> pageShift, sizeClass);
    this.#liveOf.set(start >>> pageShift, 0);
    const free = this.#free[sizeClass]!;
    for (let at = start + (Math.floor(pageBytes / size) - 1) * size; at >= start; at -= size) {
      free.push(at);
    }
    return true;
  }

  #dropPage(page: number, sizeClass: number): void {
    const free = this.#free[sizeClass]!;
    this.#free[sizeClass] = free.filter((address) => address >>> pageShift !== page);
    this.#classOf.delete(page);
    this.#liveOf.delete(page);
    this.#pool.free((page << pageShift) >>> 0, this.#kind);
  }
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
    if (CLASS_BYTES[middle]! < bytes) low = middle + 1;
    else high = middle;
  }
  return low;
}
