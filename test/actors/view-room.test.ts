/**
 * Goal: who describes parts, or sends a job, leaves views the memory that they need; tables give way; what
 * is promised to one is not promised to another; and a long text wants no whole page for itself.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pageBytes } from '../../core/base/limits.ts';
import { Arena } from '../../core/shared/arena.ts';
import { BufferPool, KIND_VIEW } from '../../core/shared/buffer-pool.ts';
import { CLIENT_SLOT_BYTES, EPOCH_FIRST, ReaderSlot, RetireList } from '../../core/shared/epoch.ts';
import { Slab } from '../../core/shared/slab.ts';
import { freeText, readText, reserveText, writeText } from '../../actors/text-blocks.ts';
import { ViewRoom } from '../../actors/view-room.ts';

const PAGES = 10;
const EPOCH_AT = 64;
const SLOT_AT = 128;
const TABLES_AT: number = SLOT_AT + CLIENT_SLOT_BYTES;

class House {
  readonly arena: Arena = Arena.create((PAGES + 6) * pageBytes);
  readonly pool: BufferPool = new BufferPool(this.arena, TABLES_AT, 1);
  readonly reader: ReaderSlot = new ReaderSlot(this.arena, EPOCH_AT, SLOT_AT);
  readonly retired: RetireList = new RetireList(this.arena, EPOCH_AT, SLOT_AT, 1);
  readonly room: ViewRoom;
  readonly tables: number[] = [];

  constructor() {
    this.pool.reset([0, 0, 0, PAGES, 0]);
    this.arena.i32[EPOCH_AT >>> 2] = EPOCH_FIRST;
    this.room = new ViewRoom(this.pool, new Slab(this.pool, KIND_VIEW, true), this.retired);
    this.room.shedTable = () => {
      const table = this.tables.pop();
      if (table !== undefined) this.room.retireTable(table);
      return table !== undefined;
    };
  }

  fillWithTables(bytes: number): void {
    for (;;) {
      const table = this.room.allocateTable(bytes);
      if (table === 0) return;
      this.tables.push(table);
    }
  }

  /** Descriptions of parts, until there is no room. */
  fillWithParts(bytes: number): number[] {
    const blocks: number[] = [];
    for (;;) {
      const block = this.room.allocateBeside(bytes);
      if (block === 0) return blocks;
      blocks.push(block);
    }
  }
}

test('descriptions of parts leave views a reserve, tables leave more, and tables go for both', () => {
  const house = new House();
  const { room, pool, tables } = house;
  house.fillWithTables(pageBytes);
  assert.equal(tables.length, PAGES - 4);
  const parts = house.fillWithParts(1_100);
  assert.equal(tables.length, 0, 'none is left');
  assert.equal(pool.freePages(KIND_VIEW), 2);
  assert.equal(parts.length, (PAGES - 2) * 16 * 14, 'all that views leave is full');
  assert.notEqual(room.allocate(pageBytes), 0);
  assert.notEqual(room.allocate(pageBytes), 0);
  assert.equal(room.allocate(pageBytes), 0);
});

test('a text of half a megabyte has room where there is no empty page', () => {
  const house = new House();
  const { arena, room, pool } = house;
  const parts = house.fillWithParts(1_100);
  // Of each page a quarter.
  for (const block of parts) if (block % pageBytes >= (3 * pageBytes) / 4) room.free(block);
  const used = pool.usedPages(KIND_VIEW);
  const text = 'what a merge has made '.repeat(20_000);
  const at = reserveText(arena, room, text.length);
  assert.notEqual(at, 0);
  assert.equal(pool.usedPages(KIND_VIEW), used, 'it lies between parts');
  assert.equal(writeText(arena, at, text), text.length);
  assert.equal(readText(arena, at, text.length), text);
  assert.equal(reserveText(arena, room, 1_000_000), 0, 'for another there is none');
  freeText(arena, room, at);
  const again = reserveText(arena, room, text.length);
  assert.notEqual(again, 0, 'nothing was kept of what found no room');
});

test('what is promised is not promised twice, is held for others too, and is given back', () => {
  const { room, pool } = new House();
  const bytes = 5 * pageBytes;
  assert.equal(room.bytesMax, 8 * pageBytes);
  assert.equal(room.makeRoom(bytes, 4 * pageBytes), false, 'that would leave others too little');
  assert.equal(room.makeRoom(bytes, 3 * pageBytes), true);
  room.promise(bytes);
  assert.equal(pool.promisedPages(KIND_VIEW), 5, 'nobody is lent those');
  assert.equal(room.makeRoom(bytes), false);
  assert.equal(room.makeRoom(3 * pageBytes), true);
  assert.equal(room.isCrowded, false);
  room.promise(1);
  assert.equal(room.isCrowded, true, 'more than half');
  room.unpromise(1);
  room.unpromise(bytes);
  assert.equal(pool.promisedPages(KIND_VIEW), 0);
  assert.equal(room.makeRoom(8 * pageBytes), true);
});

test('for a promise tables go, but none for one that cannot be kept, nor while readers are in one', () => {
  const house = new House();
  const { room, tables, reader, retired } = house;
  house.fillWithTables(pageBytes);
  assert.equal(room.makeRoom(9 * pageBytes), false);
  assert.equal(tables.length, 6);
  reader.enter();
  assert.equal(room.makeRoom(5 * pageBytes), false);
  assert.equal(room.makeRoom(5 * pageBytes), false);
  assert.equal(tables.length, 5, 'the reader is waited for');
  reader.leave();
  retired.sweep();
  assert.equal(room.makeRoom(5 * pageBytes), true);
  assert.equal(tables.length, 3);
  assert.equal(room.isCrowded, false, 'tables are not what must be there');
});
