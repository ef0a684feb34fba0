/** A reader's rings: touches are reported once a period, offers arrive whole or not at all. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import {
  keyBytesMax,
  pageBytes,
  populateRingSlots,
  touchRingSlots,
} from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { ROW_KEY_OFFSET, TOUCH_IDS_MAX, rowBytesMax } from '../../core/cache/layout.ts';
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

function fill(rig: Rig, count: number): void {
  for (let i = 0; i < count; i++) {
    assert.ok(offerRow(rig, rig.clients[0], 0, 1, text(`key ${i}`), text(`value ${i}`), i));
    if (i % 64 === 63) drainOffers(rig, rig.clients[0]);
  }
  drainOffers(rig, rig.clients[0]);
}

test('a row found says its value and the offset it was written at; an absent key says since when', () => {
  const rig = makeRig({ pages: 8, limitPages: 8 });
  const client = rig.clients[0];
  offerRow(rig, client, 3, 1, text('k'), text('v'), 2 ** 40 + 5);
  offerRow(rig, client, 3, 1, text('none'), null, 2 ** 40 + 9);
  offerRow(rig, client, 3, 1, text(''), text(''), 7);
  drainOffers(rig, client);
  assert.deepEqual(look(rig, client, 1, text('k'), 2 ** 40 + 5), text('v'));
  assert.equal(client.reader.from, 2 ** 40 + 5);
  assert.equal(look(rig, client, 1, text('k'), 2 ** 40 + 4), undefined, 'older than the claim');
  assert.equal(look(rig, client, 1, text('none'), 2 ** 41), null);
  assert.equal(client.reader.from, 2 ** 40 + 9);
  assert.deepEqual(look(rig, client, 1, text(''), 7), text(''));
  assert.equal(look(rig, client, 2, text('k'), 2 ** 41), undefined, 'another collection');
  const { rows, absent, misses, missesByTime } = client.reader.counts;
  assert.deepEqual([rows, absent, misses, missesByTime], [2, 1, 2, 1]);
});

test('a repeated read does not miss, and a row is reported once a period', () => {
  const rig = makeRig({ pages: 8, limitPages: 8 });
  const client = rig.clients[0];
  fill(rig, 3);
  for (let period = 0; period < 600; period++) {
    for (let n = 0; n < 3; n++) {
      assert.notEqual(look(rig, client, 1, text('key 0'), 9), undefined);
      assert.notEqual(look(rig, client, 1, text('key 1'), 9), undefined);
    }
    client.reader.flushTouches();
    assert.equal(drainTouches(rig, client), 2);
    rig.cache.advancePeriod();
  }
  assert.equal(client.reader.counts.misses, 0);
});

test('touches of a past period are not kept back behind new ones', () => {
  const rig = makeRig({ pages: 8, limitPages: 8 });
  const client = rig.clients[0];
  fill(rig, 3);
  look(rig, client, 1, text('key 0'), 9);
  assert.equal(drainTouches(rig, client), 0, 'it waits for company');
  rig.cache.advancePeriod();
  look(rig, client, 1, text('key 1'), 9);
  assert.equal(drainTouches(rig, client), 1);
  client.reader.flushTouches();
  assert.equal(drainTouches(rig, client), 1);
});

test('touches that find the ring full are dropped and counted; reads go on', () => {
  const count = (touchRingSlots + 3) * TOUCH_IDS_MAX;
  const rig = makeRig({ pages: 16, limitPages: 16, position: -5 });
  const client = rig.clients[0];
  fill(rig, count);
  for (let i = 0; i < count; i++) {
    assert.notEqual(look(rig, client, 1, text(`key ${i}`), count), undefined);
  }
  client.reader.flushTouches();
  assert.equal(client.reader.counts.touchesDropped, 3 * TOUCH_IDS_MAX);
  assert.equal(drainTouches(rig, client), touchRingSlots * TOUCH_IDS_MAX);
});

test('offers come out as they went in, however the page wraps round', () => {
  const random = new Prng(5);
  const rig = makeRig({ pages: 600, limitPages: 512, position: -3 });
  const client = rig.clients[0];
  const truth = new Map<string, Uint8Array>();
  let dropped = 0;
  for (let i = 0; i < 4_000; i++) {
    const key = text(`${i % 500}`.padStart(random.chance(0.01) ? 60_000 : 1, '0'));
    const length = random.chance(0.05) ? random.below(150_000) : random.below(3_000);
    const value = randomBytes(random, length);
    rig.cache.evictOldest(random.chance(0.1) ? 20 : 0);
    if (offerRow(rig, client, 0, 2, key, value, i)) truth.set(`${i}`, value);
    else dropped++;
    if (random.chance(0.05)) drainOffers(rig, client, random.between(1, 60));
    if (!random.chance(0.05)) continue;
    rig.cache.evictOldest(Infinity);
    drainOffers(rig, client);
    for (const claim of claimsOf(rig)) {
      assert.deepEqual(claim.value, truth.get(`${claim.from}`));
    }
    rig.cache.evictOldest(Infinity);
  }
  const { offers, offersDropped, offersTooLarge } = client.reader.counts;
  assert.equal(offers, truth.size);
  assert.equal(offersDropped + offersTooLarge, dropped);
  assert.ok(offersDropped > 20, `the page was full ${offersDropped} times`);
});

test('a full ring drops the offer that does not fit it, none before', () => {
  const rig = makeRig({ pages: 8, limitPages: 8 });
  const client = rig.clients[0];
  for (let i = 0; i < populateRingSlots; i++) {
    assert.ok(offerRow(rig, client, 0, 1, text(`${i}`), text('v'), i));
  }
  assert.equal(offerRow(rig, client, 0, 1, text('more'), text('v'), 500), false);
  assert.equal(client.reader.counts.offersDropped, 1);
  assert.equal(drainOffers(rig, client), populateRingSlots);
  assert.equal(rig.cache.rows, populateRingSlots);
  assert.ok(offerRow(rig, client, 0, 1, text('more'), text('v'), 500));
});

test('rows larger than the largest are not offered; the largest is taken', () => {
  const rig = makeRig({ pages: 600, limitPages: 512 });
  const client = rig.clients[0];
  const largest = rowBytesMax(512);
  assert.equal(largest, pageBytes);
  const key = new Uint8Array(keyBytesMax).fill(7);
  const value = new Uint8Array(largest - ROW_KEY_OFFSET - key.length).fill(9);
  assert.equal(offerRow(rig, client, 0, 1, key, new Uint8Array(value.length + 1), 1), false);
  assert.equal(client.reader.counts.offersTooLarge, 1);
  assert.ok(offerRow(rig, client, 0, 1, key, value, 1));
  drainOffers(rig, client);
  assert.deepEqual(look(rig, client, 1, key, 1), value);
});

test('a client that goes gives its page back, at once or behind its last offer', () => {
  const rig = makeRig({ pages: 8, limitPages: 8, clients: 2 });
  const [idle, busy] = rig.clients as [(typeof rig.clients)[0], (typeof rig.clients)[0]];
  offerRow(rig, idle, 0, 1, text('a'), text('v'), 1);
  drainOffers(rig, idle);
  offerRow(rig, busy, 0, 1, text('b'), text('w'), 1);
  const used = rig.pool.usedPages(KIND_CACHE);
  assert.ok(idle.reader.close());
  assert.equal(rig.pool.usedPages(KIND_CACHE), used - 1);
  assert.ok(busy.reader.close());
  assert.equal(rig.pool.usedPages(KIND_CACHE), used - 1, 'what is offered is still there');
  drainOffers(rig, busy);
  assert.equal(rig.pool.usedPages(KIND_CACHE), used - 2);
  assert.deepEqual(look(rig, busy, 1, text('b'), 1), text('w'));
});

test('a client whose ring is full goes when there is room', () => {
  const rig = makeRig({ pages: 8, limitPages: 8 });
  const client = rig.clients[0];
  for (let i = 0; i < populateRingSlots; i++) {
    offerRow(rig, client, 0, 1, text(`${i}`), text('v'), i);
  }
  assert.equal(client.reader.close(), false);
  drainOffers(rig, client, 1);
  assert.equal(client.reader.close(), true);
  drainOffers(rig, client);
  rig.cache.dropAll();
  assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
});

test('without memory the cache is off: it takes none, answers nothing, and comes back with the limit', () => {
  const rig = makeRig({ pages: 8, limitPages: 0 });
  const client = rig.clients[0];
  assert.equal(offerRow(rig, client, 0, 1, text('a'), text('v'), 1), false);
  assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
  assert.equal(look(rig, client, 1, text('a'), 1), undefined);
  rig.pool.setLimitPages(KIND_CACHE, 8);
  assert.ok(offerRow(rig, client, 0, 1, text('a'), text('v'), 1));
  drainOffers(rig, client);
  assert.deepEqual(look(rig, client, 1, text('a'), 1), text('v'));
  rig.pool.setLimitPages(KIND_CACHE, 0);
  rig.cache.reclaim();
  assert.equal(look(rig, client, 1, text('a'), 1), undefined);
  assert.equal(offerRow(rig, client, 0, 1, text('a'), text('v'), 1), false);
  assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
});

test('a reader in the middle of a look finds less while rows move, and then looks again', () => {
  // One bucket at first: every insertion splits it further. A row that is there is always found.
  const rig = makeRig({ pages: 16, limitPages: 16, bucketsMin: 1 });
  const client = rig.clients[0];
  for (let i = 0; i < 3_000; i++) {
    offerRow(rig, client, 0, 1, text(`key ${i}`), i % 3 === 0 ? null : text(`${i}`), i);
    drainOffers(rig, client);
    const known = (i * 7_919) % (i + 1);
    const found = look(rig, client, 1, text(`key ${known}`), 9_999);
    assert.deepEqual(found, known % 3 === 0 ? null : text(`${known}`));
  }
  assert.equal(client.reader.counts.misses, 0);
  rig.cache.check();
});
