/**
 * What enters the source, step by step: a population from before, during and after; readers with the
 * old view and the new at every step; every allocation failing in turn. Cases R2, R4 and R9 of the
 * row cache's specification, for single rows.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import { pageBytes } from '../../core/base/limits.ts';
import { ROW_KEY_OFFSET, rowBytesMax } from '../../core/cache/layout.ts';
import { KIND_CACHE, KIND_RECORD } from '../../core/shared/buffer-pool.ts';
import {
  History,
  ModelGeneration,
  auditClaims,
  claimsOf,
  drainOffers,
  look,
  makeRig,
  offerRow,
  sameValue,
  text,
} from './rig.ts';
import type { ModelView, Rig } from './rig.ts';

before(() => setVerify(true));
after(() => setVerify(false));

const KEYS = Array.from({ length: 12 }, (_, i) => text(`key ${i}`));

/** Keys 0 to 7 have content from the first offsets on; the source is at version 1. */
function makeStore(
  limitPages: number = 16,
  version: number = 1,
): { rig: Rig; history: History; page: number; view: ModelView } {
  const rig = makeRig({ pages: 24, limitPages, clients: 2, bucketsMin: 2 });
  const history = new History();
  for (const key of KEYS.slice(0, 8)) history.write(1, key, text(`first ${history.upper}`));
  const page = rig.pool.lease(KIND_RECORD);
  return { rig, history, page, view: { version, frontier: history.upper } };
}

/** Reads a key from the parts of the view, and offers what they say. */
function populate(rig: Rig, history: History, view: ModelView, key: Uint8Array): void {
  const row = history.newest(1, key, 0, view.frontier - 1);
  const isRow = row !== undefined && row.value !== null;
  const from = isRow ? row.time : view.frontier - 1;
  offerRow(rig, rig.clients[0], view.version, 1, key, row?.value ?? null, from);
}

/** Updates 1, a delete of 2, an update of 3 in two versions, new keys 8 and 9; then begins to apply it. */
function enter(rig: Rig, history: History, page: number, view: ModelView): ModelView {
  const lower = history.upper;
  history.write(1, KEYS[1], text('second'));
  history.write(1, KEYS[2], null);
  history.write(1, KEYS[3], text('third'));
  history.write(1, KEYS[3], text('and again'));
  history.write(1, KEYS[8], text('new'));
  history.write(1, KEYS[9], null);
  const rows = new ModelGeneration(rig, page, history, lower, history.upper);
  rig.cache.beginApply(rows, (view.version + 1) >>> 0);
  return { version: (view.version + 1) >>> 0, frontier: history.upper };
}

/** Every key at every time, in the given view: right, or a miss. Returns the hits. */
function readAll(rig: Rig, history: History, view: ModelView): number {
  let hits = 0;
  for (const key of KEYS) {
    for (let T = 0; T < history.upper; T++) {
      if (history.newest(1, key, view.frontier, T) !== undefined) continue;
      const found = look(rig, rig.clients[1], 1, key, T);
      if (found === undefined) continue;
      hits++;
      const truth = history.newest(1, key, 0, T)?.value ?? null;
      assert.ok(sameValue(found, truth), `${Buffer.from(key).toString()} at ${T}`);
    }
  }
  return hits;
}

test('an apply stopped at every step in turn: all keys at all times are right with the old view, then with the new', () => {
  const { rig, history, page, view } = makeStore();
  for (const key of KEYS) populate(rig, history, view, key);
  drainOffers(rig, rig.clients[0]);
  assert.equal(rig.cache.rows, KEYS.length);
  const next = enter(rig, history, page, view);
  let steps = 0;
  for (let done = false; !done; steps++) {
    assert.ok(readAll(rig, history, view) > 0);
    auditClaims(rig, history, [view]);
    rig.cache.check();
    done = rig.cache.apply(1);
  }
  assert.ok(steps > 5);
  // A reader may still have the old view; the next one has the new.
  readAll(rig, history, view);
  auditClaims(rig, history, [view, next]);
  const { updated, updatesSkipped, updatesDropped, applied } = rig.cache.counts;
  assert.deepEqual([updated, updatesSkipped, updatesDropped, applied], [5, 0, 0, 1]);
  const newest = (key: Uint8Array): Uint8Array | null | undefined =>
    look(rig, rig.clients[1], 1, key, history.upper);
  assert.deepEqual(newest(KEYS[1]), text('second'));
  assert.equal(newest(KEYS[2]), null);
  assert.deepEqual(newest(KEYS[3]), text('and again'));
  assert.deepEqual(newest(KEYS[8]), text('new'));
  assert.equal(newest(KEYS[9]), null);
  assert.deepEqual(newest(KEYS[0]), text('first 0'));
  assert.equal(rig.clients[1].reader.counts.rows > 0, true);
});

test('a population from before is taken before the apply, dropped during it and after; one from after is taken', () => {
  for (const version of [1, 0x7fff_ffff, 0xffff_ffff]) {
    const { rig, history, page, view } = makeStore();
    const old = { version: (version - 1) >>> 0, frontier: view.frontier };
    const now = { version, frontier: view.frontier };
    // Whatever the version is at start, it is taken; wrapping round changes nothing.
    const nothing = new ModelGeneration(rig, page, history, 0, 0);
    if (version > 1) {
      for (let at = 0; at !== version;) {
        at = Math.min(version, at + 0x7fff_ffff);
        rig.cache.beginApply(nothing, at);
        assert.ok(rig.cache.apply(1));
      }
    } else {
      populate(rig, history, old, KEYS[0]);
      drainOffers(rig, rig.clients[0]);
      assert.equal(rig.cache.rows, 1);
      rig.cache.evictOldest(1);
    }
    populate(rig, history, now, KEYS[1]);
    drainOffers(rig, rig.clients[0]);
    assert.equal(rig.cache.rows, 1);
    const inFlight = [KEYS[2], KEYS[3]];
    for (const key of inFlight) populate(rig, history, now, key);
    const next = enter(rig, history, page, now);
    rig.cache.apply(1);
    drainOffers(rig, rig.clients[0], 1);
    assert.equal(rig.cache.counts.offersStale, 1, 'during');
    while (!rig.cache.apply(1));
    drainOffers(rig, rig.clients[0], 1);
    populate(rig, history, now, KEYS[8]);
    drainOffers(rig, rig.clients[0]);
    assert.equal(rig.cache.counts.offersStale, 3, 'after');
    assert.equal(rig.cache.rows, 1);
    for (const key of KEYS) populate(rig, history, next, key);
    drainOffers(rig, rig.clients[0]);
    assert.equal(rig.cache.rows, KEYS.length);
    auditClaims(rig, history, [now, next]);
  }
});

test('an empty cache answers at once, however large the generation', () => {
  const { rig, history, page, view } = makeStore();
  enter(rig, history, page, view);
  assert.equal(rig.cache.apply(1), true);
  assert.equal(rig.cache.counts.updatesSkipped, 0);
});

test('updates too large for the cache drop the claim, and so do rows it cannot hold', () => {
  const { rig, history, page, view } = makeStore();
  for (const key of KEYS) populate(rig, history, view, key);
  drainOffers(rig, rig.clients[0]);
  const lower = history.upper;
  history.write(1, KEYS[0], new Uint8Array(rowBytesMax(16)));
  history.write(
    1,
    KEYS[1],
    new Uint8Array(rowBytesMax(16) - ROW_KEY_OFFSET - KEYS[1].length).fill(5),
  );
  const rows = new ModelGeneration(rig, page, history, lower, history.upper);
  rig.cache.beginApply(rows, 2);
  while (!rig.cache.apply(1));
  assert.equal(rig.cache.counts.updatesDropped, 1);
  assert.equal(rig.cache.rows, KEYS.length - 1);
  assert.equal(look(rig, rig.clients[0], 1, KEYS[0], history.upper), undefined);
  const found = look(rig, rig.clients[0], 1, KEYS[1], history.upper);
  assert.equal(found?.length, rowBytesMax(16) - ROW_KEY_OFFSET - KEYS[1].length);
  auditClaims(rig, history, [{ version: 2, frontier: history.upper }]);
  rig.cache.check();
});

test('every allocation fails in turn, in populate and in apply: claims stay true and the answer comes', () => {
  let failures = 0;
  for (let failAt = 1; failAt <= 12; failAt++) {
    const { rig, history, page, view } = makeStore();
    rig.pool.failAt = failAt;
    // Rows of many sizes need pages of many kinds.
    for (let i = 0; i < 8; i++) history.write(1, KEYS[i], new Uint8Array(40 + i * 900).fill(i));
    const source = { version: view.version, frontier: history.upper };
    for (const key of KEYS) {
      populate(rig, history, source, key);
      drainOffers(rig, rig.clients[0]);
      rig.cache.check();
      auditClaims(rig, history, [source]);
    }
    const next = enter(rig, history, page, source);
    let steps = 0;
    while (!rig.cache.apply(1)) {
      auditClaims(rig, history, [source]);
      assert.ok(steps++ < 100, 'it ends');
    }
    auditClaims(rig, history, [source, next]);
    rig.cache.check();
    if (rig.pool.failAt === 0) failures++;
    rig.pool.failAt = 0;
    rig.cache.dropAll();
    assert.ok(rig.clients[0].reader.close());
    drainOffers(rig, rig.clients[0]);
    assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
  }
  assert.ok(failures >= 8, `${failures} allocations failed`);
});

test('without a page to spare an apply drops what it cannot replace', () => {
  const { rig, history, page, view } = makeStore(6);
  // Fills the pages with rows of one size; then every key gets a value of another.
  const filler = Array.from({ length: 900 }, (_, i) => text(`filler ${i}`));
  for (const key of filler) history.write(1, key, new Uint8Array(900));
  const source = { version: view.version, frontier: history.upper };
  for (const key of filler) {
    populate(rig, history, source, key);
    drainOffers(rig, rig.clients[0]);
  }
  const rows = rig.cache.rows;
  assert.ok(rows > 600);
  const lower = history.upper;
  for (const key of filler) history.write(1, key, new Uint8Array(1_900));
  rig.cache.beginApply(new ModelGeneration(rig, page, history, lower, history.upper), 2);
  while (!rig.cache.apply(64));
  assert.ok(rig.cache.counts.updatesDropped > 100);
  assert.ok(rig.pool.usedPages(KIND_CACHE) <= 6);
  auditClaims(rig, history, [source, { version: 2, frontier: history.upper }]);
  rig.cache.check();
  while (rig.cache.reclaim());
  assert.ok(rig.pool.usedPages(KIND_CACHE) <= rig.cache.targetPages);
  assert.ok(pageBytes * 6 > rig.cache.bytes);
});

test('two claims of a key that cannot both be true: both go, and it is counted', () => {
  const { rig, view } = makeStore();
  const client = rig.clients[0];
  offerRow(rig, client, view.version, 1, KEYS[0], text('one'), 3);
  offerRow(rig, client, view.version, 1, KEYS[0], text('one'), 3);
  drainOffers(rig, client);
  assert.equal(rig.cache.counts.conflicts, 0);
  assert.equal(rig.cache.counts.offersKnown, 1);
  offerRow(rig, client, view.version, 1, KEYS[0], text('other'), 4);
  assert.throws(() => drainOffers(rig, client), /two claims/);
  assert.equal(rig.cache.rows, 0);
  setVerify(false);
  try {
    client.offers.pop();
    offerRow(rig, client, view.version, 1, KEYS[0], text('one'), 3);
    offerRow(rig, client, view.version, 1, KEYS[0], null, 5);
    drainOffers(rig, client);
  } finally {
    setVerify(true);
  }
  assert.equal(rig.cache.counts.conflicts, 2);
  assert.deepEqual(claimsOf(rig), []);
  rig.cache.check();
});

test('a range delete takes rows out of the cache, at every step with the truth for both views (U9)', () => {
  const { rig, history, page, view } = makeStore();
  for (const key of KEYS) populate(rig, history, view, key);
  drainOffers(rig, rig.clients[0]);
  const lower = history.upper;
  history.write(1, KEYS[2], text('before it'));
  history.deleteRange(1, KEYS[2], KEYS[6]);
  history.write(1, KEYS[3], text('behind it'));
  history.deleteRange(1, KEYS[9], KEYS[11]);
  history.deleteRange(2, text(''), text(''));
  const rows = new ModelGeneration(rig, page, history, lower, history.upper);
  rig.cache.beginApply(rows, 2);
  let steps = 0;
  for (let done = false; !done; steps++) {
    readAll(rig, history, view);
    auditClaims(rig, history, [view]);
    rig.cache.check();
    done = rig.cache.apply(1);
  }
  assert.ok(steps > 5, 'in steps');
  const next = { version: 2, frontier: history.upper };
  assert.ok(readAll(rig, history, next) > 0, 'what is left answers');
  auditClaims(rig, history, [view, next]);
  assert.equal(rig.cache.counts.hidden, 4, 'keys 2 to 5 had content; what was absent stays so');
  const newest = (key: Uint8Array): Uint8Array | null | undefined =>
    look(rig, rig.clients[1], 1, key, history.upper);
  assert.deepEqual(newest(KEYS[1]), text('first 1'));
  assert.deepEqual(newest(KEYS[6]), text('first 6'), 'the upper bound is not in the range');
  assert.equal(newest(KEYS[4]), undefined, 'no claim: the parts say it is absent');
  assert.equal(newest(KEYS[10]), null);
  rig.cache.check();
});
