/**
 * Blocks of many sizes cut from pool pages: each page holds slots of one size class, and goes back to
 * the pool when its last slot is given back. With few pages and many sizes a page for each would leave
 * most of them nearly empty: such an owner asks for spans, sixteenths of a page, for its small blocks.
 * Bookkeeping is private to the one owner; the blocks are
 * shared with whoever is told their address. Used by the keeper (views, indexes, filters) and the
 * evictor (rows), each on its thread.
 */
import { invariant } from '../base/assert.ts';
import { pageBytes, pageShift } from '../base/limits.ts';
import type { BufferPool } from './buffer-pool.ts';

/** Slot sizes: steps of about a quarter, multiples of 64, up to a whole page. */
const CLASS_BYTES: readonly number[] = makeClasses(64);
/** The same, multiples of 16: small blocks fill their slots better, and more pages are half empty. */
const FINE_CLASS_BYTES: readonly number[] = makeClasses(16);

const SPAN_SHIFT: number = pageShift - 4;
const SPAN_BYTES: number = 1 << SPAN_SHIFT;
const SPANS_PER_PAGE: number = pageBytes / SPAN_BYTES;
/** The class of a page whose slots are spans. */
const SPAN_CLASS: number = FINE_CLASS_BYTES.length;
/** Larger blocks would leave too much of a span over. */
const SPAN_SLOT_BYTES_MAX: number = SPAN_BYTES / 4;

/** One leased page, or a span of one, and its slots. */
type SlabPage = {
  readonly address: number;
  /** Just behind it. */
  readonly end: number;
  readonly sizeClass: number;
  readonly slotBytes: number;
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
  readonly #slotBytesInSpans: number;
  /** Of a block that is a span. */
  readonly #blockBytesInSpans: number;
  readonly #pages: Map<number, SlabPage> = new Map();
  readonly #spans: Map<number, SlabPage> = new Map();
  /** Pages whose slots are spans. */
  #spanPages = 0;
  #spansTaken = 0;
  /** By class: pages with room. The last one is used first. */
  readonly #open: SlabPage[][] = [...FINE_CLASS_BYTES, SPAN_BYTES].map(() => []);
  readonly #classes: readonly number[];
  #bytesLive = 0;

  /** `isFine`: there are so many pages that a few more begun ones do not matter. */
  constructor(pool: BufferPool, kind: number, hasSpans: boolean = false, isFine: boolean = false) {
    this.#pool = pool;
    this.#kind = kind;
    this.#classes = isFine ? FINE_CLASS_BYTES : CLASS_BYTES;
    this.#slotBytesInSpans = hasSpans ? SPAN_SLOT_BYTES_MAX : 0;
    this.#blockBytesInSpans = hasSpans ? SPAN_BYTES : 0;
  }

  /** Address of a block of at least `bytes`, or 0 when the budget is spent. Contents are arbitrary. */
  allocate(bytes: number): number {
    const sizeClass = classFor(this.#classes, bytes);
    const open = this.#open[sizeClass];
    const page = open.length > 0 ? open[open.length - 1] : this.#grow(sizeClass);
    return page === undefined ? 0 : this.#give(page);
  }

  /**
   * The same; a span or a larger slot will do where no page has room for one of the size. With few pages and
   * many sizes most of them lie nearly empty: for blocks that there must be room for. `mayLease`: with a
   * further page, if it takes one.
   */
  allocateAnywhere(bytes: number, mayLease: boolean = true): number {
    if (this.hasSlot(bytes)) return this.allocate(bytes);
    const isSpan = bytes > this.#slotBytesInSpans && bytes <= this.#blockBytesInSpans;
    if (isSpan) {
      const page = this.#spanPage(mayLease);
      if (page !== undefined) return this.#give(page);
    }
    const address = mayLease ? this.allocate(bytes) : 0;
    if (address !== 0) return address;
    const classes = this.#classes;
    for (let sizeClass = classFor(classes, bytes) + 1; sizeClass < classes.length; sizeClass++) {
      const open = this.#open[sizeClass];
      if (open.length > 0) return this.#give(open[open.length - 1]);
    }
    return 0;
  }

  /** A slot of the page for a block. */
  #give(page: SlabPage): number {
    this.#bytesLive += page.slotBytes;
    return this.#take(page);
  }

  /** Requires: the page has room. */
  #take(page: SlabPage): number {
    let address = page.free.pop();
    if (address === undefined) {
      address = page.fresh;
      page.fresh += page.slotBytes;
    }
    page.live++;
    if (page.sizeClass === SPAN_CLASS) this.#spansTaken++;
    if (!hasRoom(page)) this.#takeFromOpen(page);
    return address;
  }

  /** True when `allocate` of so many bytes needs no further page. */
  hasSlot(bytes: number): boolean {
    const sizeClass = classFor(this.#classes, bytes);
    if (this.#open[sizeClass].length > 0) return true;
    return this.#classes[sizeClass] <= this.#slotBytesInSpans && this.#open[SPAN_CLASS].length > 0;
  }

  /** Requires: allocated here, and no reader can see it any more. */
  free(address: number): void {
    const page = this.#pageOf(address);
    invariant(page !== undefined, 'freed where it was allocated', address);
    this.#bytesLive -= page.slotBytes;
    this.#giveBack(page, address);
  }

  #giveBack(page: SlabPage, address: number): void {
    invariant(page.live > 0, 'freed once', address);
    page.live--;
    if (page.sizeClass === SPAN_CLASS) this.#spansTaken--;
    page.free.push(address);
    if (page.openIndex < 0) this.#addToOpen(page);
    if (page.live > 0) return;
    this.#takeFromOpen(page);
    const whole = this.#pages.get(page.address >>> pageShift)!;
    if (page === whole) {
      this.#pages.delete(page.address >>> pageShift);
      if (page.sizeClass === SPAN_CLASS) this.#spanPages--;
      this.#pool.free(page.address, this.#kind);
    } else {
      this.#spans.delete(page.address >>> SPAN_SHIFT);
      this.#giveBack(whole, page.address);
    }
  }

  /** The page, or the span of one, in which the block at `address` lies; of a block that is a span, its page. */
  #pageOf(address: number): SlabPage | undefined {
    const page = this.#pages.get(address >>> pageShift);
    if (page?.sizeClass !== SPAN_CLASS) return page;
    return this.#spans.get(address >>> SPAN_SHIFT) ?? page;
  }

  /** Gives back every page, whatever is allocated. Requires: no reader can see any of it any more. */
  clear(): void {
    for (const page of this.#pages.values()) this.#pool.free(page.address, this.#kind);
    this.#pages.clear();
    this.#spans.clear();
    this.#spanPages = 0;
    this.#spansTaken = 0;
    for (const open of this.#open) open.length = 0;
    this.#bytesLive = 0;
  }

  /** Bytes of the block at `address`, as allocated. */
  sizeOf(address: number): number {
    return this.#pageOf(address)!.slotBytes;
  }

  get bytesLive(): number {
    return this.#bytesLive;
  }

  get pages(): number {
    return this.#pages.size;
  }

  /** In pages that are leased, bytes that small blocks of any size may take. */
  get spanBytesFree(): number {
    return (this.#spanPages * SPANS_PER_PAGE - this.#spansTaken) * SPAN_BYTES;
  }

  #grow(sizeClass: number): SlabPage | undefined {
    if (this.#classes[sizeClass] <= this.#slotBytesInSpans) {
      const page = this.#spanPage(true);
      if (page === undefined) return undefined;
      const address = this.#take(page);
      const span = makePage(address, SPAN_BYTES, sizeClass, this.#classes[sizeClass]);
      this.#spans.set(address >>> SPAN_SHIFT, span);
      this.#addToOpen(span);
      return span;
    }
    return this.#lease(sizeClass, this.#classes[sizeClass]);
  }

  /** A page with a span to spare. */
  #spanPage(mayLease: boolean): SlabPage | undefined {
    const page = fullest(this.#open[SPAN_CLASS]);
    return page !== undefined || !mayLease ? page : this.#lease(SPAN_CLASS, SPAN_BYTES);
  }

  #lease(sizeClass: number, slotBytes: number): SlabPage | undefined {
    const address = this.#pool.lease(this.#kind);
    if (address === 0) return undefined;
    const page = makePage(address, pageBytes, sizeClass, slotBytes);
    this.#pages.set(address >>> pageShift, page);
    if (sizeClass === SPAN_CLASS) this.#spanPages++;
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

function makePage(address: number, bytes: number, sizeClass: number, slotBytes: number): SlabPage {
  const end = address + bytes;
  return { address, end, sizeClass, slotBytes, live: 0, free: [], fresh: address, openIndex: -1 };
}

/** Of pages with room: what is taken from it lets the others become empty, and be given back. */
function fullest(pages: readonly SlabPage[]): SlabPage | undefined {
  let most: SlabPage | undefined;
  for (const page of pages) if (most === undefined || page.live > most.live) most = page;
  return most;
}

function hasRoom(page: SlabPage): boolean {
  return page.free.length > 0 || page.fresh + page.slotBytes <= page.end;
}

function makeClasses(unit: number): number[] {
  const classes: number[] = [];
  for (let bytes = 64; bytes < pageBytes;) {
    classes.push(bytes);
    bytes = Math.max(bytes + unit, (bytes * 1.25) & ~(unit - 1));
  }
  classes.push(pageBytes);
  return classes;
}

function classFor(classes: readonly number[], bytes: number): number {
  invariant(bytes <= pageBytes, 'a block fits a page', bytes);
  let low = 0;
  let high = classes.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (classes[middle] < bytes) low = middle + 1;
    else high = middle;
  }
  return low;
}
