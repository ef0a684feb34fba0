/**
 * The page pool alone: every page once, budgets kept, owners known. What threads do to each other is in
 * `test/explorer`; here a lost race is played by a patched compareExchange.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import { KiB, pageBytes, pageShift } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { Arena } from '../../core/shared/arena.ts';
import {
  BufferPool,
  KIND_CACHE,
  KIND_MEMTABLE,
  KIND_RECORD,
  KIND_VIEW,
  POOL_KINDS,
} from '../../core/shared/buffer-pool.ts';

const TABLES = 128;
const ALL = 1_000_000;

function makePool(
  pages: number,
  limits: readonly number[],
  firstPage = 1,
): { arena: Arena; pool: BufferPool } {
  const arena = Arena.create(pages * pageBytes);
  const pool = new BufferPool(arena, TABLES, firstPage);
  pool.reset(limits);
  return { arena, pool };
}

function leaseAll(pool: BufferPool, kind: number): number[] {
  const pages: number[] = [];
  for (let at = pool.lease(kind); at !== 0; at = pool.lease(kind)) pages.push(at);
  return pages;
}

test('every page is leased once, whatever the count of pages and the first of them', () => {
  for (const pages of [2, 3, 31, 32, 33, 63, 64, 65, 97]) {
    for (const first of [1, 2, 31, 32, 33, pages - 1]) {
      if (first >= pages) continue;
      const { pool } = makePool(pages, [0, 0, ALL], first);
      const leased = leaseAll(pool, KIND_MEMTABLE);
      const expected = Array.from({ length: pages - first }, (_, i) => (first + i) * pageBytes);
      assert.deepEqual(
        leased.toSorted((a, b) => a - b),
        expected,
        `${pages} pages from ${first}`,
      );
      assert.equal(pool.usedPages(KIND_MEMTABLE), expected.length);
      for (const page of leased) pool.free(page, KIND_MEMTABLE);
      assert.equal(pool.usedPages(KIND_MEMTABLE), 0);
      assert.equal(pool.audit()[0], expected.length);
    }
  }
});

test('pages above 2 GiB have unsigned addresses', () => {
  const pages = (3 * 1024 * 1024 * KiB) / pageBytes;
  const { pool } = makePool(pages, [0, 0, 0, 0, ALL], pages - 2);
  const leased = leaseAll(pool, KIND_CACHE);
  assert.deepEqual(leased, [(pages - 2) * pageBytes, (pages - 1) * pageBytes]);
  for (const page of leased) pool.retain(page);
  pool.setNext(leased[0], leased[1]);
  assert.equal(pool.next(leased[0]), leased[1]);
  for (const page of leased) pool.free(page, KIND_CACHE);
});

test('the tables take what tableBytes says, and nothing behind it is touched', () => {
  for (const pages of [2, 33, 65]) {
    const bytes = BufferPool.tableBytes(pages * pageBytes);
    const arena = Arena.create(pages * pageBytes);
    arena.u8.fill(0xee, 0, pageBytes);
    const pool = new BufferPool(arena, TABLES, 1);
    pool.reset([0, ALL]);
    for (const page of leaseAll(pool, KIND_RECORD)) {
      pool.retain(page);
      pool.setNext(page, page);
      pool.setUsed(page, pageBytes);
    }
    assert.ok(arena.u8.subarray(0, TABLES).every((byte) => byte === 0xee));
    assert.ok(arena.u8.subarray(TABLES + bytes, pageBytes).every((byte) => byte === 0xee));
  }
});

test('a pool whose tables reach into its pages, or that would lease page 0, is refused', () => {
  const arena = Arena.create(4 * pageBytes);
  assert.throws(() => new BufferPool(arena, TABLES, 0), /below the first page/);
  assert.throws(() => new BufferPool(arena, pageBytes - 128, 1), /below the first page/);
});

test('a budget is kept by kind, and may change', () => {
  const { pool } = makePool(20, [0, 2, 3, 1, 0]);
  const records = leaseAll(pool, KIND_RECORD);
  assert.equal(records.length, 2);
  assert.equal(leaseAll(pool, KIND_MEMTABLE).length, 3);
  assert.equal(leaseAll(pool, KIND_VIEW).length, 1);
  assert.equal(leaseAll(pool, KIND_CACHE).length, 0);
  assert.deepEqual(pool.audit(), [13, 2, 3, 1, 0]);
  assert.equal(pool.freePages(KIND_RECORD), 0);
  pool.setLimitPages(KIND_RECORD, 5);
  assert.equal(pool.limitPages(KIND_RECORD), 5);
  assert.equal(pool.freePages(KIND_RECORD), 3);
  records.push(...leaseAll(pool, KIND_RECORD));
  assert.equal(records.length, 5);
  // A budget below what is used takes nothing away, and gives nothing.
  pool.setLimitPages(KIND_RECORD, 1);
  assert.equal(pool.freePages(KIND_RECORD), 0);
  for (let used = 5; used > 1; used--) {
    assert.equal(pool.lease(KIND_RECORD), 0);
    pool.free(records.pop()!, KIND_RECORD);
    assert.equal(pool.usedPages(KIND_RECORD), used - 1);
  }
  assert.equal(pool.lease(KIND_RECORD), 0);
  pool.free(records.pop()!, KIND_RECORD);
  assert.notEqual(pool.lease(KIND_RECORD), 0);
});

test('when the arena is spent, a budget that is not is left as it was', () => {
  const { pool } = makePool(4, [0, ALL, ALL]);
  const leased = leaseAll(pool, KIND_RECORD);
  assert.equal(leased.length, 3);
  assert.equal(pool.lease(KIND_MEMTABLE), 0);
  assert.equal(pool.usedPages(KIND_MEMTABLE), 0);
  assert.equal(pool.usedPages(KIND_RECORD), 3);
  pool.free(leased[1], KIND_RECORD);
  assert.equal(pool.lease(KIND_MEMTABLE), leased[1]);
});

test('a page is given back by its owner, by its address, once', () => {
  const { pool } = makePool(4, [0, ALL, ALL]);
  const page = pool.lease(KIND_RECORD);
  assert.throws(() => pool.free(page, KIND_MEMTABLE), /freed by its owner/);
  assert.throws(() => pool.free(page + 8, KIND_RECORD), /a page address/);
  pool.free(page, KIND_RECORD);
  assert.throws(() => pool.free(page, KIND_RECORD), /freed by its owner/);
  assert.equal(pool.usedPages(KIND_RECORD), 0);
});

test('the last of several holders frees a record page', () => {
  const { pool } = makePool(4, [0, 1]);
  const page = pool.lease(KIND_RECORD);
  for (let i = 0; i < 3; i++) pool.retain(page + i * 8);
  pool.release(page + 64);
  pool.release(page);
  assert.equal(pool.usedPages(KIND_RECORD), 1);
  pool.release(page + pageBytes - 1);
  assert.equal(pool.usedPages(KIND_RECORD), 0);
  assert.throws(() => pool.release(page), /released as often as retained/);
});

test('a leased page has no chain, whatever its last owner left', () => {
  const { pool } = makePool(3, [0, 2]);
  const [a, b] = leaseAll(pool, KIND_RECORD);
  pool.setNext(a + 100, b);
  pool.setUsed(a + 200, 12_345);
  assert.equal(pool.next(a), b);
  assert.equal(pool.used(a + pageBytes - 1), 12_345);
  assert.equal(pool.next(b), 0);
  pool.free(a, KIND_RECORD);
  assert.equal(pool.lease(KIND_RECORD), a);
  assert.equal(pool.next(a), 0);
  assert.equal(pool.used(a), 0);
});

test('two pools over the same tables are one', () => {
  const { arena, pool } = makePool(40, [0, ALL]);
  const other = new BufferPool(arena, TABLES, 1);
  const leased = new Set<number>();
  for (let i = 0; i < 39; i++) leased.add((i % 2 === 0 ? pool : other).lease(KIND_RECORD));
  assert.equal(leased.size, 39);
  assert.ok(!leased.has(0));
  assert.equal(other.lease(KIND_RECORD), 0);
  for (const page of leased) other.free(page, KIND_RECORD);
  assert.equal(pool.usedPages(KIND_RECORD), 0);
});

test('whoever loses the race for a bit takes another', () => {
  const { arena, pool } = makePool(70, [0, ALL, ALL]);
  const rival = new BufferPool(arena, TABLES, 1);
  const real = Atomics.compareExchange;
  const stolen: number[] = [];
  let losses = 0;
  const lossy = (i32: Int32Array, index: number, expected: number, value: number): number => {
    Atomics.compareExchange = real;
    // Between the look and the exchange somebody takes a page: now and then the same one.
    if (losses-- > 0) stolen.push(rival.lease(KIND_MEMTABLE));
    const was = real(i32, index, expected, value);
    Reflect.set(Atomics, 'compareExchange', lossy);
    return was;
  };
  Reflect.set(Atomics, 'compareExchange', lossy);
  const leased: number[] = [];
  try {
    for (let i = 0; i < 20; i++) {
      losses = i % 4;
      leased.push(pool.lease(KIND_RECORD));
    }
  } finally {
    Atomics.compareExchange = real;
  }
  assert.equal(stolen.length, 30);
  assert.equal(new Set([...leased, ...stolen]).size, 50);
  assert.deepEqual(pool.audit().slice(0, 3), [19, 20, 30]);
});

test('random leases and returns of all kinds agree with a model', () => {
  const prng = new Prng(11);
  const limits = [0, 10, 25, 7, 40];
  const { pool } = makePool(65, limits);
  const held: number[][] = Array.from({ length: POOL_KINDS }, () => []);
  for (let step = 0; step < 20_000; step++) {
    const kind = prng.between(1, POOL_KINDS - 1);
    const mine = held[kind];
    if (prng.chance(0.55)) {
      const total = held.reduce((sum, pages) => sum + pages.length, 0);
      const page = pool.lease(kind);
      assert.equal(page !== 0, mine.length < limits[kind] && total < 64);
      if (page !== 0) {
        assert.ok(held.every((pages) => !pages.includes(page)));
        assert.equal(page & (pageBytes - 1), 0);
        mine.push(page);
      }
    } else if (mine.length > 0) {
      const [page] = mine.splice(prng.below(mine.length), 1);
      pool.free(page, kind);
    }
    assert.equal(pool.usedPages(kind), mine.length);
  }
  assert.deepEqual(
    pool.audit().slice(1),
    held.slice(1).map((pages) => pages.length),
  );
});

test('under verify a freed page holds bytes that no format allows', () => {
  const { arena, pool } = makePool(3, [0, 1]);
  setVerify(true);
  try {
    const page = pool.lease(KIND_RECORD);
    arena.u8[page + 5] = 1;
    pool.free(page, KIND_RECORD);
    assert.ok(arena.u8.subarray(page, page + pageBytes).every((byte) => byte === 0xcc));
    assert.equal(arena.u8[((page >>> pageShift) + 1) * pageBytes], 0);
  } finally {
    setVerify(false);
  }
});
