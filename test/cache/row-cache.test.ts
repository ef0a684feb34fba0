/**
 * The row cache against the naive model. Every claim it holds is checked at every distinct time for
 * every view a reader may have (the claim audit), after every step; so a false claim is found before
 * anyone reads it. A failure names its seed.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import { Prng } from '../../core/base/prng.ts';
import { UNTIL_NEXT, rowBytesMax } from '../../core/cache/layout.ts';
import { CACHE_ROW } from '../../core/cache/reader.ts';
import { KIND_CACHE, KIND_RECORD } from '../../core/shared/buffer-pool.ts';
import {
  History,
  ModelGeneration,
  auditClaims,
  collide,
  drainOffers,
  drainTouches,
  look,
  makeRig,
  offerRow,
  randomBytes,
  plainHash,
  sameValue,
  text,
} from './rig.ts';
import type { ModelView, Rig, RigClient } from './rig.ts';

before(() => setVerify(true));
after(() => setVerify(false));

const COLLECTIONS = [0, 7, 16_384 + 7];
const KEYS = ['', '\0', 'a', 'aa', 'ab', 'a-long-key-that-goes-on-and-on'].map(text);

type Ask = { client: RigClient; view: ModelView; collection: number; key: Uint8Array; T: number };

/** A whole engine's worth of cause and effect around one cache, a step at a time. */
class World {
  readonly random: Prng;
  readonly rig: Rig;
  readonly history: History = new History();
  readonly generationPage: number;
  readonly sealed: { lower: number; upper: number }[] = [];
  openLower = 0;
  view: ModelView = { version: 0, frontier: 0 };
  /** Views that a reader in progress may still have. */
  former: ModelView | undefined;
  next: ModelView | undefined;
  /** Misses that were read from their view, and are yet to be offered. */
  readonly asked: Ask[] = [];
  slow: { address: number; bytes: Uint8Array } | undefined;
  hits = 0;
  pastHits = 0;
  pastOffers = 0;

  constructor(seed: number, bucketsMin: number, epoch: number, position: number) {
    this.random = new Prng(seed);
    this.rig = makeRig({
      pages: 24,
      limitPages: 16,
      clients: 3,
      bucketsMin,
      epoch,
      position,
      hashOf: seed % 4 === 1 ? collide : plainHash,
    });
    this.generationPage = this.rig.pool.lease(KIND_RECORD);
    // A store that was there before: most keys have content in the parts.
    for (const collection of COLLECTIONS) {
      for (const key of KEYS) this.history.write(collection, key, this.value());
    }
    this.openLower = this.history.upper;
    this.view = { version: 5, frontier: this.history.upper };
  }

  views(): ModelView[] {
    return this.former === undefined ? [this.view] : [this.former, this.view];
  }

  step(): void {
    const { random, rig } = this;
    const { cache } = rig;
    const what = random.below(100);
    // A small budget does not last.
    if (random.chance(0.1)) rig.pool.setLimitPages(KIND_CACHE, 16);
    if (what < 8) this.write();
    else if (what < 10) this.seal();
    else if (what < 12) this.beginApply();
    else if (what < 22) this.apply();
    else if (what < 31) this.publish();
    else if (what < 68) this.read();
    else if (what < 74) this.offerLate();
    else if (what < 87) drainOffers(rig, random.pick(rig.clients), random.between(1, 8));
    else if (what < 89) for (const client of rig.clients) this.touch(client);
    else if (what < 90) cache.evictOldest(random.below(3));
    else if (what < 92) this.resize();
    else if (what < 96) cache.reclaim();
    else if (what < 97) cache.advancePeriod();
    else if (what < 99) this.beSlow();
    else if (random.chance(0.8)) rig.pool.failAt = random.below(3);
    else cache.dropAll();
  }

  touch(client: RigClient): void {
    client.reader.flushTouches();
    drainTouches(this.rig, client);
  }

  write(): void {
    const { random } = this;
    const collection = random.pick(COLLECTIONS);
    if (random.chance(0.05)) {
      const hi = random.chance(0.2) ? new Uint8Array(0) : random.pick(KEYS);
      this.history.deleteRange(collection, random.pick(KEYS), hi);
    } else {
      this.history.write(collection, random.pick(KEYS), this.value());
    }
  }

  value(): Uint8Array | null {
    const { random } = this;
    if (random.chance(0.25)) return null;
    const largest = rowBytesMax(16) + 200;
    const length = random.chance(0.1) ? random.below(largest) : random.below(80);
    return randomBytes(random, length);
  }

  seal(): void {
    if (this.openLower === this.history.upper) return;
    this.sealed.push({ lower: this.openLower, upper: this.history.upper });
    this.openLower = this.history.upper;
  }

  beginApply(): void {
    const generation = this.sealed[0];
    if (generation === undefined || this.rig.cache.isApplying || this.next !== undefined) return;
    this.sealed.shift();
    this.next = { version: this.view.version + 1, frontier: generation.upper };
    const { lower, upper } = generation;
    const { cache } = this.rig;
    const rows = new ModelGeneration(this.rig, this.generationPage, this.history, lower, upper);
    cache.beginApply(rows, this.next.version);
  }

  apply(): void {
    if (this.rig.cache.isApplying) this.rig.cache.apply(this.random.between(1, 12));
  }

  publish(): void {
    // Only once the cache has answered; then the old view is one that some reader may still have.
    if (this.next === undefined || this.rig.cache.isApplying) return;
    this.former = this.view;
    this.view = this.next;
    this.next = undefined;
  }

  read(): void {
    const { random, history } = this;
    if (history.upper === 0) return;
    const view = random.chance(0.2) ? this.views()[0] : this.view;
    const client = this.rig.clients[random.below(2)];
    const collection = random.pick(COLLECTIONS);
    const key = random.pick(KEYS);
    const T = random.chance(0.8) ? history.upper - 1 : random.below(history.upper);
    const truth = history.newest(collection, key, 0, T)?.value ?? null;
    const overlay = history.newest(collection, key, view.frontier, T);
    if (overlay !== undefined) return;
    const found = look(this.rig, client, collection, key, T);
    if (found !== undefined) {
      assert.ok(sameValue(found, truth), `read ${History.name(collection, key)} at ${T}`);
      this.hits++;
      if (history.of(collection, key).some(({ time }) => time > T)) this.pastHits++;
      return;
    }
    this.asked.push({ client, view, collection, key, T: Math.min(T, view.frontier - 1) });
    if (random.chance(0.7)) this.offer(this.asked.pop()!);
  }

  offerLate(): void {
    if (this.asked.length === 0) return;
    const [ask] = this.asked.splice(this.random.below(this.asked.length), 1);
    this.offer(ask);
  }

  /** What the parts of the view say of the key at T, and up to when: as far as that, or less. */
  offer({ client, view, collection, key, T }: Ask): void {
    const { history, random } = this;
    const row = history.newest(collection, key, 0, T);
    const isRow = row !== undefined && row.value !== null;
    const from = isRow ? row.time : random.between(row?.time ?? 0, T);
    const next = history.of(collection, key).find(({ time }) => time > T && time < view.frontier);
    const end = next?.time ?? view.frontier;
    const isPast = next !== undefined || (T < view.frontier - 1 && random.chance(0.3));
    const until = isPast ? random.between(T + 1, end) : UNTIL_NEXT;
    const value = row?.value ?? null;
    if (offerRow(this.rig, client, view.version, collection, key, value, from, until) && isPast) {
      this.pastOffers++;
    }
  }

  resize(): void {
    const { pool } = this.rig;
    pool.setLimitPages(KIND_CACHE, this.random.pick([0, 3, 6]));
    for (let i = this.random.below(4); i > 0; i--) this.rig.cache.reclaim();
  }

  /** A reader that stays inside while everything goes on: what it found stays as it was. */
  beSlow(): void {
    const client = this.rig.clients[2];
    const { u8 } = this.rig.arena;
    if (this.slow !== undefined) {
      const { address, bytes } = this.slow;
      assert.deepEqual(u8.slice(address, address + bytes.length), bytes, 'freed under a reader');
      client.slot.leave();
      this.slow = undefined;
      return;
    }
    client.slot.enter();
    for (const collection of COLLECTIONS) {
      for (const key of KEYS) {
        const hash = this.rig.hashOf(collection, key);
        const { reader } = client;
        const T = this.history.upper;
        if (reader.lookup(collection, key, 0, key.length, hash, T) !== CACHE_ROW) continue;
        const address = reader.valueAddress;
        this.slow = { address, bytes: u8.slice(address, address + reader.valueBytes) };
        return;
      }
    }
    client.slot.leave();
  }

  /** The structure is checked now and then, it takes as long as its tables are; claims at every step. */
  audit(step: number): void {
    if (step % 16 === 0) this.rig.cache.check();
    auditClaims(this.rig, this.history, this.views());
    assert.equal(this.rig.cache.counts.conflicts, 0);
  }

  /** Everything goes; nothing is left anywhere. */
  end(): void {
    const { rig } = this;
    rig.pool.failAt = 0;
    if (this.slow !== undefined) this.beSlow();
    while (rig.cache.isApplying) rig.cache.apply(100);
    for (const client of rig.clients) {
      drainOffers(rig, client);
      assert.ok(client.reader.close());
      drainOffers(rig, client);
    }
    rig.cache.evictOldest(Infinity);
    assert.equal(rig.cache.rows, 0);
    rig.cache.check();
    assert.equal(rig.cache.bytes, 0);
    assert.equal(rig.cache.absentRows, 0);
    rig.cache.closeIfEmpty();
    rig.cache.sweep();
    assert.equal(rig.cache.retiredBytes, 0);
    assert.equal(rig.retire.length, 0);
    assert.equal(rig.pool.usedPages(KIND_CACHE), 0);
    const roots = rig.rootsAddress >>> 2;
    assert.ok(rig.arena.i32.subarray(roots, roots + 16_384).every((root) => root === 0));
  }
}

test('every claim is true after every step, whatever happens in whatever order', () => {
  let hits = 0;
  let updated = 0;
  let stale = 0;
  let dropped = 0;
  let pastHits = 0;
  let pastOffers = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const bucketsMin = seed % 20 === 0 ? 32_768 : [1, 8][seed % 2];
    const atWrap = seed % 2 === 0;
    const world = new World(seed, bucketsMin, atWrap ? -41 : 1, atWrap ? -7 : 0);
    try {
      for (let step = 0; step < 600; step++) {
        world.step();
        world.audit(step);
      }
      world.end();
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
    hits += world.hits;
    pastHits += world.pastHits;
    pastOffers += world.pastOffers;
    updated += world.rig.cache.counts.updated;
    stale += world.rig.cache.counts.offersStale;
    dropped += world.rig.cache.counts.updatesDropped;
  }
  const reached = `hits ${hits}, updated ${updated}, stale ${stale}, dropped ${dropped}`;
  assert.ok(hits > 800 && updated > 80 && stale > 100 && dropped > 2, reached);
  const past = `of the past: hits ${pastHits}, offers ${pastOffers}`;
  assert.ok(pastHits > 50 && pastOffers > 300, past);
});
