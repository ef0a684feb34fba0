/**
 * The memory that views lie in, and who may take how much of it. Views themselves may take all: a change
 * that is on disk must be shown. Descriptions of parts and texts of jobs leave them a reserve, and whoever
 * makes parts has so much promised before he begins; what readers can do without, filters and indexes,
 * leaves more, and goes when somebody else has no room. A part of the keeper, on its thread.
 */
import { TidemarkError } from '../core/base/errors.ts';
import { pageBytes } from '../core/base/limits.ts';
import type { BufferPool } from '../core/shared/buffer-pool.ts';
import { KIND_VIEW } from '../core/shared/buffer-pool.ts';
import { UNTIL_NOW } from '../core/shared/epoch.ts';
import type { RetireList } from '../core/shared/epoch.ts';
import type { Slab } from '../core/shared/slab.ts';

/** Pages of the budget that only views take: a sixteenth, and so many at the least. */
const RESERVE_SHIFT = 4;
const RESERVE_PAGES_MIN = 2;
/** Pages that tables leave to all others: an eighth, and so many at the least. */
const TABLES_LEAVE_SHIFT = 3;
const TABLES_LEAVE_PAGES_MIN = 4;

/** What found no room, or whose result did not, is tried again after so long. */
export const ROOM_RETRY_MS = 1_000;

export class ViewRoom {
  readonly #pool: BufferPool;
  readonly #slab: Slab;
  readonly #retired: RetireList;
  #promised = 0;
  /** Takes a table away from its part; false: there is none. */
  shedTable: () => boolean = () => false;
  /** Bytes of tables that could be taken away. */
  #tableBytes = 0;
  /** Tables that were taken away and that readers may still see. */
  #tablesLeaving = 0;

  constructor(pool: BufferPool, slab: Slab, retired: RetireList) {
    this.#pool = pool;
    this.#slab = slab;
    this.#retired = retired;
  }

  get #reservePages(): number {
    return Math.max(RESERVE_PAGES_MIN, this.#pool.limitPages(KIND_VIEW) >>> RESERVE_SHIFT);
  }

  // ---------------------------------------------------------------- blocks

  /** Address of a block of a view, 0 when there is no room for it even without tables. */
  allocate(bytes: number): number {
    for (;;) {
      const address = this.#slab.allocateAnywhere(bytes);
      if (address !== 0 || !this.shedTable()) return address;
      this.#retired.sweep();
    }
  }

  /** The same for what can be done later, or not at all: it leaves views their reserve. 0: not now. */
  allocateBeside(bytes: number): number {
    for (;;) {
      const mayLease = this.#pool.freePages(KIND_VIEW) > this.#reservePages;
      const address = this.#slab.allocateAnywhere(bytes, mayLease);
      // What readers are in is free when they have passed.
      if (address !== 0 || this.#tablesLeaving > 0 || !this.shedTable()) return address;
      this.#retired.sweep();
    }
  }

  /** Address of a block for a table; 0 when there is none to spare, and readers then read it themselves. */
  allocateTable(bytes: number): number {
    if (bytes === 0 || bytes > pageBytes) return 0;
    if (!this.#slab.hasSlot(bytes) && this.#pagesForTables() <= 0) return 0;
    const address = this.#slab.allocate(bytes);
    if (address !== 0) this.#tableBytes += this.#slab.sizeOf(address);
    return address;
  }

  sizeOf(address: number): number {
    return this.#slab.sizeOf(address);
  }

  /** Requires: no reader can see the block. */
  free(address: number): void {
    this.#slab.free(address);
  }

  /** Frees a block when readers have passed. Requires: nobody new finds it. */
  retire(address: number): void {
    this.#retired.retire(address, UNTIL_NOW, (block) => this.#slab.free(block));
  }

  /** The same of a table. */
  retireTable(address: number): void {
    this.#tableBytes -= this.#slab.sizeOf(address);
    this.#tablesLeaving++;
    this.#retired.retire(address, UNTIL_NOW, (block) => {
      this.#tablesLeaving--;
      this.#slab.free(block);
    });
  }

  /** Pages that may be taken for tables. */
  #pagesForTables(): number {
    const limit = this.#pool.limitPages(KIND_VIEW);
    const kept = Math.max(TABLES_LEAVE_PAGES_MIN, limit >>> TABLES_LEAVE_SHIFT);
    return this.#pool.freePages(KIND_VIEW) - kept;
  }

  /** Others come close to the budget: one table goes. True when one went; its memory is free when readers have passed. */
  shedForOthers(): boolean {
    if (this.#tablesLeaving > 0 || this.#pagesForTables() >= 0) return false;
    return this.shedTable();
  }

  // ---------------------------------------------------------------- promises

  /** Bytes that may be promised yet: without tables, and beside the reserve of views and former promises. */
  get bytesFree(): number {
    const pages = this.#pool.freePages(KIND_VIEW) - this.#reservePages;
    return pages * pageBytes + this.#slab.spanBytesFree - this.#promised;
  }

  /** The same when readers do without tables. */
  get bytesFreeAtMost(): number {
    return this.bytesFree + this.#tableBytes;
  }

  /** What could be promised if there were nothing. */
  get bytesMax(): number {
    return (this.#pool.limitPages(KIND_VIEW) - this.#reservePages) * pageBytes;
  }

  /** More than half of the budget is taken by what readers cannot do without: a merge of all of it would have no room. */
  get isCrowded(): boolean {
    const budget = this.#pool.limitPages(KIND_VIEW) * pageBytes;
    return 2 * (this.#slab.bytesLive - this.#tableBytes + this.#promised) > budget;
  }

  /** There is room for a promise, for which tables go; `bytesLeft` more could be had likewise. */
  makeRoom(bytes: number, bytesLeft: number = 0): boolean {
    if (this.bytesFreeAtMost < bytes + bytesLeft) return false;
    while (this.bytesFree < bytes) {
      // What readers are in is free when they have passed.
      if (this.#tablesLeaving > 0 || !this.shedTable()) return false;
      this.#retired.sweep();
    }
    return true;
  }

  /** Room for what a job makes is nobody else's until it is there. Requires: `makeRoom` said so. */
  promise(bytes: number): void {
    this.#setPromised(this.#promised + bytes);
  }

  /** What was promised has been taken, or is not wanted any more. */
  unpromise(bytes: number): void {
    this.#setPromised(this.#promised - bytes);
  }

  #setPromised(bytes: number): void {
    this.#promised = bytes;
    this.#pool.setPromisedPages(KIND_VIEW, Math.ceil(bytes / pageBytes));
  }
}

/** Of what there must be room for. */
export function noRoom(what: string): TidemarkError {
  return new TidemarkError('TIDEMARK_TOO_LARGE', `${what} has no room; raise memoryBytes`, {
    limit: 'memoryBytes',
  });
}

export function isNoRoom(failure: unknown): boolean {
  return failure instanceof TidemarkError && failure.detail['limit'] === 'memoryBytes';
}
