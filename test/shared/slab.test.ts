/** Blocks of a slab: what is given out is disjoint, pages come and go with what is in them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pageBytes, pageShift } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { Arena } from '../../core/shared/arena.ts';
import { BufferPool, KIND_CACHE } from '../../core/shared/buffer-pool.ts';
import { Slab } from '../../core/shared/slab.ts';

function makePool(pages: number, limit: number): BufferPool {
  const arena = Arena.create((pages + 1) * pageBytes);
  const pool = new BufferPool(arena, 128, 1);
  pool.reset([0, 0, 0, 0, limit]);
  return pool;
}

for (const [hasSpans, isFine] of [
  [false, false],
  [true, false],
  [false, true],
] as const) {
  const how = hasSpans ? ', small ones in spans' : isFine ? ', finely rounded' : '';
  test(`live blocks never overlap, never cross a page, and all pages come back${how}`, () => {
    churn(hasSpans, isFine);
  });
}

function churn(hasSpans: boolean, isFine: boolean): void {
  const random = new Prng(7);
  const pool = makePool(24, 16);
  const slab = new Slab(pool, KIND_CACHE, hasSpans, isFine);
  const live = new Map<number, number>();
  let refused = 0;
  for (let step = 0; step < 20_000; step++) {
    const growing = Math.floor(step / 2_000) % 2 === 0;
    if (live.size === 0 || random.chance(growing ? 0.7 : 0.3)) {
      const bytes = random.chance(0.02) ? random.between(1, pageBytes) : random.between(1, 2_000);
      const had = slab.hasSlot(bytes);
      const address = slab.allocate(bytes);
      if (address === 0) {
        assert.equal(had, false);
        refused++;
        continue;
      }
      assert.ok(slab.sizeOf(address) >= bytes);
      assert.equal(address % (isFine ? 16 : 64), 0);
      assert.equal(address >>> pageShift, (address + bytes - 1) >>> pageShift);
      live.set(address, bytes);
    } else {
      const address = random.pick([...live.keys()].slice(0, 50));
      live.delete(address);
      slab.free(address);
    }
    assert.equal(pool.usedPages(KIND_CACHE), slab.pages);
    if (step % 500 === 0) assertDisjoint(live);
  }
  assert.ok(refused > 0);
  for (const address of live.keys()) slab.free(address);
  assert.equal(slab.bytesLive, 0);
  assert.equal(slab.pages, 0);
  assert.equal(pool.usedPages(KIND_CACHE), 0);
}

test('blocks of many small sizes share a page where there are spans', () => {
  const pool = makePool(4, 4);
  const slab = new Slab(pool, KIND_CACHE, true);
  const addresses: number[] = [];
  for (let bytes = 64; bytes <= 2_048; bytes *= 2) addresses.push(slab.allocate(bytes));
  assert.ok(!addresses.includes(0), 'there is room for all');
  assert.equal(slab.pages, 1);
  assert.equal(slab.hasSlot(3_000), true);
  assert.equal(slab.hasSlot(5_000), false, 'a larger block needs a page of its own');
  assert.equal(new Set(addresses.map((address) => address >>> 14)).size, addresses.length);
  for (const address of addresses) slab.free(address);
  assert.equal(slab.pages, 0);
});

test('what must have room takes a larger slot when there is no page for its own', () => {
  const pool = makePool(2, 2);
  const slab = new Slab(pool, KIND_CACHE);
  const small = slab.allocate(64);
  const large = slab.allocate(40_000);
  assert.equal(slab.allocate(1_000), 0, 'both pages are of other sizes');
  const lent = slab.allocateAnywhere(1_000);
  assert.equal(lent >>> pageShift, large >>> pageShift);
  assert.ok(Math.abs(lent - large) >= 40_000, 'the blocks are disjoint');
  let slots = 2;
  while (slab.allocateAnywhere(1_000) !== 0) slots++;
  assert.equal(slots, Math.floor(pageBytes / slab.sizeOf(large)), 'the larger page is full');
  assert.equal(slab.sizeOf(lent), slab.sizeOf(large));
  slab.free(lent);
  assert.equal(slab.allocateAnywhere(1_000), lent);
  slab.free(small);
  assert.notEqual(slab.allocate(1_000), 0, 'a page that is empty serves any size');
});

test('what must have room takes a whole span when it is too large for a slot of one', () => {
  const pool = makePool(1, 1);
  const slab = new Slab(pool, KIND_CACHE, true);
  const small = slab.allocate(100);
  assert.equal(slab.allocate(9_000), 0, 'no page for its size');
  const spans: number[] = [];
  for (let i = 0; i < 15; i++) spans.push(slab.allocateAnywhere(9_000, false));
  assert.ok(!spans.includes(0), 'sixteen spans, one of them taken');
  assert.equal(new Set([small, ...spans].map((address) => address >>> 14)).size, 16);
  assert.equal(slab.sizeOf(spans[0]), 16_384);
  assert.equal(slab.spanBytesFree, 0);
  assert.equal(slab.allocateAnywhere(9_000), 0);
  slab.free(spans[7]);
  assert.equal(slab.spanBytesFree, 16_384);
  assert.equal(slab.allocate(4_000) >>> 14, spans[7] >>> 14, 'slots are cut from it again');
  for (const address of spans) if (address !== spans[7]) slab.free(address);
  slab.free(small);
  assert.equal(slab.pages, 1);
});

test('spans are taken from the fullest page, so that others become empty', () => {
  const pool = makePool(4, 4);
  const slab = new Slab(pool, KIND_CACHE, true);
  const spans: number[] = [];
  for (let i = 0; i < 64; i++) spans.push(slab.allocateAnywhere(16_384));
  assert.equal(slab.pages, 4);
  const pageOf = (address: number): number => address >>> pageShift;
  const pages = [...new Set(spans.map(pageOf))];
  // Of each page more than of the one before.
  for (const [i, page] of pages.entries()) {
    for (const address of spans.filter((span) => pageOf(span) === page).slice(0, 2 * i + 2)) {
      slab.free(address);
    }
  }
  const again = [slab.allocateAnywhere(16_384), slab.allocateAnywhere(16_384)];
  assert.deepEqual(again.map(pageOf), [pages[0], pages[0]]);
  assert.equal(pageOf(slab.allocateAnywhere(16_384)), pages[1]);
});

test('without leave for a further page a block takes what the slab has', () => {
  const pool = makePool(4, 4);
  const slab = new Slab(pool, KIND_CACHE, true);
  assert.equal(slab.allocateAnywhere(100, false), 0);
  const first = slab.allocateAnywhere(100);
  assert.notEqual(slab.allocateAnywhere(2_000, false), 0, 'another span');
  assert.equal(slab.allocateAnywhere(40_000, false), 0);
  assert.equal(slab.pages, 1);
  assert.notEqual(first, 0);
});

test('a cleared slab has given back every page and can be used again', () => {
  const pool = makePool(8, 8);
  const slab = new Slab(pool, KIND_CACHE);
  for (let i = 0; i < 3_000; i++) assert.notEqual(slab.allocate(64 + (i % 5) * 64), 0);
  slab.clear();
  assert.equal(slab.bytesLive, 0);
  assert.equal(slab.hasSlot(64), false);
  assert.equal(pool.usedPages(KIND_CACHE), 0);
  const address = slab.allocate(100);
  assert.notEqual(address, 0);
  slab.free(address);
  assert.equal(pool.usedPages(KIND_CACHE), 0);
});

test('freeing in any order takes time in proportion to what is freed', () => {
  const pool = makePool(65, 65);
  const slab = new Slab(pool, KIND_CACHE);
  const addresses: number[] = [];
  for (let address = slab.allocate(64); address !== 0; address = slab.allocate(64)) {
    addresses.push(address);
  }
  assert.equal(addresses.length, 65 * 4_096);
  // Page after page in turn: every page is half free for most of the time.
  for (let i = 0; i < 4_096; i++) {
    for (let page = 0; page < 65; page++) slab.free(addresses[page * 4_096 + i]);
  }
  assert.equal(pool.usedPages(KIND_CACHE), 0);
});

function assertDisjoint(live: Map<number, number>): void {
  let end = 0;
  for (const [address, bytes] of [...live].toSorted((a, b) => a[0] - b[0])) {
    assert.ok(address >= end, 'blocks are disjoint');
    end = address + bytes;
  }
}
