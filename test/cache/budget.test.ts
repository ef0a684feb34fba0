/** Eviction and memory: who goes, what it frees, and that nothing is kept in the end. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import { pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_CACHE } from '../../core/shared/buffer-pool.ts';
import {
  claimsOf,
  drainOffers,
  drainTouches,
  look,
  makeRig,
  offerRow,
  randomBytes,
  text,
} from './rig.ts';
import type { Rig } from './rig.ts';

before(() => setVerify(true));
after(() => setVerify(false));

let clock = 0;

function put(rig: Rig, key: string, value: Uint8Array | null): void {
  const client = rig.clients[0];
  if (!offerRow(rig, client, rig.cache.version, 1, text(key), value, clock++)) {
    drainOffers(rig, client);
    offerRow(rig, client, rig.cache.version, 1, text(key), value, clock++);
  }
}

function names(rig: Rig): Set<string> {
  return new Set(claimsOf(rig).map(({ key }) => Buffer.from(key).toString()));
}

test('the row least recently read goes first, over all collections, rows and absent keys alike', () => {
  const random = new Prng(3);
  const rig = makeRig({ pages: 16, limitPages: 16 });
  const client = rig.clients[0];
  let order: string[] = [];
  for (let round = 0; round < 200; round++) {
    const name = `key ${round}`;
    const value = random.chance(0.3) ? null : randomBytes(random, random.below(500));
    offerRow(rig, client, 0, round % 5, text(name), value, round);
    drainOffers(rig, client);
    order.push(name);
    for (let n = random.below(6); n > 0; n--) {
      const read = random.pick(order);
      const collection = Number(read.slice(4)) % 5;
      assert.notEqual(look(rig, client, collection, text(read), 9_999), undefined);
      client.reader.flushTouches();
      drainTouches(rig, client);
      order = [...order.filter((other) => other !== read), read];
      // Past the two periods in which a mark protects, whatever the order says.
      rig.cache.advancePeriod();
      rig.cache.advancePeriod();
    }
    if (random.chance(0.4)) {
      rig.cache.evictOldest(1);
      order.shift();
    }
    assert.deepEqual(names(rig), new Set(order));
  }
});

test('what a reader has just touched is spared although its report was lost', () => {
  const rig = makeRig({ pages: 8, limitPages: 8 });
  for (const key of ['a', 'b', 'c']) put(rig, key, text('v'));
  drainOffers(rig, rig.clients[0]);
  look(rig, rig.clients[0], 1, text('a'), 9_999);
  rig.cache.advancePeriod();
  assert.equal(rig.cache.evictOldest(2), 2);
  assert.deepEqual(names(rig), new Set(['a']));
  assert.equal(rig.cache.counts.relinked, 1);
  assert.equal(rig.cache.evictOldest(1), 1, 'but not for ever');
});

test('a mark protects the row it was made for, not the one that has its number afterwards', () => {
  const rig = makeRig({ pages: 8, limitPages: 8 });
  put(rig, 'a', text('v'));
  drainOffers(rig, rig.clients[0]);
  look(rig, rig.clients[0], 1, text('a'), 9_999);
  assert.equal(rig.cache.evictOldest(1), 1);
  put(rig, 'b', text('v'));
  put(rig, 'c', text('v'));
  drainOffers(rig, rig.clients[0]);
  rig.cache.evictOldest(1);
  assert.deepEqual(names(rig), new Set(['c']));
});

test('evicted one by one to empty, the structure holds at each step and nothing is left', () => {
  const rig = makeRig({ pages: 24, limitPages: 24, bucketsMin: 8 });
  const random = new Prng(9);
  for (let i = 0; i < 800; i++) {
    put(rig, `key ${i}`, i % 4 === 0 ? null : randomBytes(random, random.below(3_000)));
  }
  drainOffers(rig, rig.clients[0]);
  const rows = rig.cache.rows;
  assert.ok(rows > 500);
  for (let left = rows - 1; left >= 0; left--) {
    assert.equal(rig.cache.evictOldest(1), 1);
    assert.equal(rig.cache.rows, left);
    if (left % 40 === 0) rig.cache.check();
  }
  assert.equal(rig.cache.evictOldest(1), 0);
  rig.cache.sweep();
  rig.cache.closeIfEmpty();
  assert.ok(rig.clients[0].reader.close());
  assert.equal(rig.cache.bytes + rig.cache.retiredBytes, 0);
  assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
});

test('in a stream of new rows the cache stays inside its budget, full, and holds the newest', () => {
  const random = new Prng(4);
  const rig = makeRig({ pages: 40, limitPages: 32 });
  const client = rig.clients[0];
  for (let i = 0; i < 40_000; i++) {
    put(rig, `key ${i}`, new Uint8Array(random.below(900)));
    if (i % 50 === 49) drainOffers(rig, client);
    assert.ok(rig.pool.usedPages(KIND_CACHE) <= 32);
    if (i % 5_000 === 4_999) {
      rig.cache.check();
      rig.cache.reclaim();
    }
  }
  drainOffers(rig, client);
  let recent = 0;
  for (let i = 35_000; i < 40_000; i++) {
    if (look(rig, client, 1, text(`key ${i}`), 2 ** 40) !== undefined) recent++;
  }
  assert.ok(recent > 4_900, `of the newest 5,000 ${recent} are there`);
  // Root page, offer page, a page of reserve; the rest holds rows.
  assert.ok(rig.cache.bytes > 0.75 * 26 * pageBytes, `${rig.cache.bytes} bytes of rows`);
  assert.equal(rig.cache.counts.offersDropped, 0);
});

test('rows of another size find room soon after all pages were taken by one size', () => {
  const rig = makeRig({ pages: 40, limitPages: 32 });
  const client = rig.clients[0];
  const stream = (from: number, count: number, bytes: number): number => {
    const dropped = rig.cache.counts.offersDropped;
    for (let i = from; i < from + count; i++) {
      put(rig, `key ${i}`, new Uint8Array(bytes));
      drainOffers(rig, client);
      // Rows read all the time lie scattered over all pages.
      if (i % 7 === 0) look(rig, client, 1, text(`key ${i - (i % 3_000)}`), 2 ** 40);
      if (i % 20 === 0) rig.cache.reclaim();
    }
    return rig.cache.counts.offersDropped - dropped;
  };
  stream(0, 40_000, 100);
  const dropped = [
    stream(40_000, 500, 8_000),
    stream(50_000, 40_000, 20),
    stream(100_000, 500, 12_000),
  ];
  assert.ok(dropped[0] < 100 && dropped[1] < 1_000 && dropped[2] < 100, dropped.join());
  rig.cache.check();
});

test('a smaller limit is met a page at a time; what stays is the warmer part', () => {
  const rig = makeRig({ pages: 40, limitPages: 32 });
  const client = rig.clients[0];
  for (let i = 0; i < 12_000; i++) put(rig, `key ${i}`, new Uint8Array(400));
  drainOffers(rig, client);
  const rowsBefore = rig.cache.rows;
  rig.pool.setLimitPages(KIND_CACHE, 12);
  let steps = 0;
  while (rig.cache.reclaim()) steps++;
  assert.ok(steps > 5 && steps < 32, `${steps} steps`);
  assert.ok(rig.pool.usedPages(KIND_CACHE) <= 12);
  assert.ok(rig.cache.rows > 0.2 * rowsBefore);
  const left = [...names(rig)].map((name) => Number(name.slice(4)));
  assert.ok(Math.min(...left) > 5_000, 'the oldest went');
  rig.cache.check();
});

test('a reader that stays inside stops populations, not the cache', () => {
  const rig = makeRig({ pages: 40, limitPages: 16, clients: 2 });
  const slow = rig.clients[1];
  for (let i = 0; i < 20_000; i++) put(rig, `key ${i}`, new Uint8Array(200));
  drainOffers(rig, rig.clients[0]);
  const full = rig.cache.rows;
  slow.slot.enter();
  for (let i = 20_000; i < 30_000; i++) put(rig, `key ${i}`, new Uint8Array(200));
  drainOffers(rig, rig.clients[0]);
  assert.ok(rig.cache.counts.offersDropped > 5_000);
  assert.ok(rig.cache.rows > 0.95 * full, 'rows are not evicted for nothing');
  slow.slot.leave();
  rig.cache.sweep();
  assert.equal(rig.cache.retiredBytes, 0);
  const { inserted } = rig.cache.counts;
  for (let i = 30_000; i < 31_000; i++) put(rig, `key ${i}`, new Uint8Array(200));
  drainOffers(rig, rig.clients[0]);
  assert.equal(rig.cache.counts.inserted, inserted + 1_000);
});

test('absent keys take a twentieth of the budget at the most', () => {
  const rig = makeRig({ pages: 40, limitPages: 32 });
  for (let i = 0; i < 2_000; i++) put(rig, `row ${i}`, new Uint8Array(300));
  for (let i = 0; i < 20_000; i++) put(rig, `absent ${i}`, null);
  drainOffers(rig, rig.clients[0]);
  rig.cache.check();
  assert.ok(rig.cache.absentRows * 64 <= (32 * pageBytes) / 20);
  assert.ok(rig.cache.absentRows > 5_000);
  assert.equal(rig.cache.rows - rig.cache.absentRows, 2_000, 'rows are not evicted for them');
});

test('many rows come and go: buckets and marks grow over pages, every row is found, all is given back', () => {
  const rig = makeRig({ pages: 160, limitPages: 150 });
  const client = rig.clients[0];
  const count = 150_000;
  for (let i = 0; i < count; i++) {
    put(rig, `${i}`, text(`v${i}`));
    if (i % 100 === 99) drainOffers(rig, client);
  }
  drainOffers(rig, client);
  assert.equal(rig.cache.rows, count);
  rig.cache.check();
  for (let i = 0; i < count; i += 7) {
    assert.deepEqual(look(rig, client, 1, text(`${i}`), 2 ** 40), text(`v${i}`));
  }
  rig.cache.advancePeriod();
  rig.cache.advancePeriod();
  rig.cache.evictOldest(count - 1_000);
  rig.cache.sweep();
  rig.cache.check();
  for (let i = 0; i < count; i += 7) look(rig, client, 1, text(`${i}`), 2 ** 40);
  // Tables shrink with the rows: what is left is a root page, marks, the offer page and row pages.
  assert.ok(rig.pool.usedPages(KIND_CACHE) <= 5, `${rig.pool.usedPages(KIND_CACHE)} pages`);
  rig.cache.evictOldest(Infinity);
  rig.cache.closeIfEmpty();
  rig.cache.sweep();
  assert.ok(client.reader.close());
  assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
});

test('everything can be dropped at once, also under a reader, and the cache fills again', () => {
  const rig = makeRig({ pages: 24, limitPages: 16, clients: 2 });
  const slow = rig.clients[1];
  for (let i = 0; i < 3_000; i++) put(rig, `key ${i}`, text(`${i}`));
  drainOffers(rig, rig.clients[0]);
  slow.slot.enter();
  rig.cache.dropAll();
  assert.equal(rig.cache.rows, 0);
  assert.ok(rig.cache.retiredBytes > 0);
  assert.equal(look(rig, rig.clients[0], 1, text('key 1'), 2 ** 40), undefined);
  put(rig, 'key 1', text('again'));
  drainOffers(rig, rig.clients[0]);
  assert.deepEqual(look(rig, rig.clients[0], 1, text('key 1'), 2 ** 40), text('again'));
  rig.cache.dropAll();
  slow.slot.leave();
  rig.cache.sweep();
  assert.equal(rig.cache.retiredBytes, 0);
  assert.ok(rig.clients[0].reader.close());
  assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
});
