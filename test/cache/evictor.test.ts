/**
 * The evictor as an actor, with real generations, rings and clients: what it answers, what it takes
 * and drops, when it wants to run again. Readers read as clients do: the overlay first, then the cache.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { ActorContext, EngineConfig } from '../../actors/actor.ts';
import { EVICTOR_COUNTERS, readCounters } from '../../actors/counters.ts';
import { Evictor } from '../../actors/evictor.ts';
import { makeContext } from '../../actors/host.ts';
import { APPLY, MSG_APPLIED, MSG_APPLY } from '../../actors/messages.ts';
import { ringsOf } from '../../actors/topology.ts';
import { setVerify } from '../../core/base/assert.ts';
import { MiB, pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { OP_DELETE, OP_PUT } from '../../core/base/update.ts';
import { UNTIL_NEXT } from '../../core/cache/layout.ts';
import { CACHE_MISS, CACHE_ROW, CacheReader } from '../../core/cache/reader.ts';
import { GenerationReader, keyHash } from '../../core/memtable/reader.ts';
import { GenerationWriter } from '../../core/memtable/writer.ts';
import { Arena } from '../../core/shared/arena.ts';
import {
  KIND_CACHE,
  KIND_MEMTABLE,
  KIND_RECORD,
  KIND_VIEW,
} from '../../core/shared/buffer-pool.ts';
import { ACTOR_EVICTOR } from '../../core/shared/control.ts';
import { ReaderSlot } from '../../core/shared/epoch.ts';
import {
  OperationWalker,
  layChained,
  pageOf,
  releaseChain,
} from '../../core/shared/record-pages.ts';
import { RingConsumer, RingProducer, resetRing } from '../../core/shared/ring.ts';
import type { Clock, Storage } from '../../core/storage/storage.ts';
import { encode } from '../memtable/world.ts';
import type { Operation } from '../memtable/world.ts';
import { History, randomBytes, sameValue, text } from './rig.ts';
import type { ModelView, Version } from './rig.ts';

before(() => setVerify(true));
after(() => setVerify(false));

const LIMIT_PAGES = 32;

/** An evictor, its keeper, its clients, and the sequencer's part of the world. */
class House {
  readonly context: ActorContext;
  readonly evictor: Evictor;
  readonly toEvictor: RingProducer;
  readonly fromEvictor: RingConsumer;
  readonly clients: { slot: ReaderSlot; reader: CacheReader }[];
  readonly history: History = new History();
  readonly generations: GenerationWriter[] = [];
  readonly #generation: GenerationReader;
  readonly #walker: OperationWalker;
  open: GenerationWriter;
  view: ModelView = { version: 0, frontier: 0 };
  nowMs = 1_000;
  /** The client's open page of records. */
  #page = 0;
  #filled: number = pageBytes;

  constructor() {
    const arena = Arena.create(64 * MiB);
    const clock: Clock = { nowMs: () => this.nowMs, ticksMs: () => this.nowMs };
    const context = makeContext(
      arena.buffer,
      { memtableBytes: 8 * MiB } as EngineConfig,
      {} as Storage,
      clock,
    );
    this.context = context;
    const { control, pool, topology } = context;
    control.reset();
    for (let i = 0; i < 3; i++) control.claimClient();
    const limits = [0, 0, 0, 0, 0];
    limits[KIND_RECORD] = 64;
    limits[KIND_MEMTABLE] = 64;
    limits[KIND_CACHE] = LIMIT_PAGES;
    pool.reset(limits);
    for (const { address } of ringsOf(topology)) resetRing(context.arena, address);
    this.evictor = new Evictor(context);
    const { keeperToEvictor: to, evictorToKeeper: from } = topology;
    this.toEvictor = new RingProducer(context.arena, to.address, to.slots);
    this.fromEvictor = new RingConsumer(context.arena, from.address, from.slots);
    this.clients = topology.clients.slice(0, 3).map((place) => ({
      slot: new ReaderSlot(context.arena, control.epochAddress, place.slot),
      reader: new CacheReader(
        context.arena,
        pool,
        topology.cacheRoots,
        new RingProducer(context.arena, place.touches.address, place.touches.slots),
        new RingProducer(context.arena, place.offers.address, place.offers.slots),
        context.threadBells[1],
      ),
    }));
    this.#generation = new GenerationReader(context.arena);
    this.#walker = new OperationWalker(context.arena, pool);
    this.open = this.#spare();
  }

  #spare(): GenerationWriter {
    const { arena, pool } = this.context;
    const spare = GenerationWriter.create(arena, pool, { bytes: 8 * MiB, rows: 50_000 });
    assert.ok(spare);
    spare.open(this.history.upper);
    return spare;
  }

  write(collection: number, key: Uint8Array, value: Uint8Array | null): void {
    const { arena, pool } = this.context;
    const kind = value === null ? OP_DELETE : OP_PUT;
    const operation = { collection, key, kind, value: value ?? new Uint8Array(0), diff: 1 };
    const payload = encode([operation]);
    const chained = payload.length > pageBytes;
    if (!chained && this.#filled + payload.length > pageBytes) this.#nextPage();
    const address = chained ? layChained(arena, pool, payload, 0, 1) : this.#page + this.#filled;
    assert.notEqual(address, 0);
    if (!chained) arena.u8.set(payload, address);
    if (!chained) this.#filled += payload.length;
    assert.ok(this.open.roomFor(1, payload.length));
    this.open.retainPage(pageOf(address));
    this.#walker.start(address, 1);
    while (this.#walker.next()) this.open.insert(this.#walker, this.history.upper);
    if (chained) releaseChain(pool, address);
    this.history.write(collection, key, value);
  }

  /** One transaction over chained pages: the values run on from one into the next. */
  writeTogether(operations: readonly Operation[]): void {
    const { arena, pool } = this.context;
    const payload = encode(operations);
    const address = layChained(arena, pool, payload, 0, 1);
    assert.notEqual(address, 0);
    assert.ok(this.open.roomFor(operations.length, payload.length));
    this.open.retainPage(address);
    this.#walker.start(address, 1);
    while (this.#walker.next()) this.open.insert(this.#walker, this.history.upper);
    releaseChain(pool, address);
    this.history.writeAll(operations);
  }

  #nextPage(): void {
    const { pool } = this.context;
    if (this.#page !== 0) pool.release(this.#page);
    this.#page = pool.lease(KIND_RECORD);
    assert.notEqual(this.#page, 0);
    pool.retain(this.#page);
    this.#filled = 0;
  }

  /** Seals the open generation and asks for it to enter the source; returns its address. */
  seal(): number {
    const { open } = this;
    open.seal(this.history.upper);
    this.generations.push(open);
    this.open = this.#spare();
    const slot = this.toEvictor.claim();
    this.toEvictor.u32[slot] = MSG_APPLY;
    this.toEvictor.u32[slot + APPLY.ADDRESS] = open.header;
    this.toEvictor.u32[slot + APPLY.VERSION] = this.view.version + this.generations.length;
    this.toEvictor.push();
    return open.header;
  }

  /** True when the evictor has answered: then the next view is published and the generation goes. */
  takeAnswer(): boolean {
    const slot = this.fromEvictor.peek();
    if (slot < 0) return false;
    const { u32 } = this.fromEvictor;
    const generation = this.generations.shift();
    assert.ok(generation);
    assert.equal(u32[slot], MSG_APPLIED);
    assert.equal(u32[slot + APPLY.ADDRESS], generation.header);
    assert.equal(u32[slot + APPLY.VERSION], this.view.version + 1);
    this.fromEvictor.pop();
    this.view = { version: this.view.version + 1, frontier: generation.upper };
    generation.free();
    return true;
  }

  /** Reads as a client does. The answer is checked; true when it came from the cache. */
  read(client: number, collection: number, key: Uint8Array, T: number): boolean {
    const { slot, reader } = this.clients[client];
    const truth = this.history.newest(collection, key, 0, T)?.value ?? null;
    slot.enter();
    try {
      const hash = keyHash(key, 0, key.length);
      const generations = [this.open, ...this.generations.toReversed()];
      for (const { header } of generations) {
        this.#generation.attach(header);
        if (this.#generation.find(collection, key, 0, key.length, hash, T) !== 0) return false;
      }
      const outcome = reader.lookup(collection, key, 0, key.length, hash, T);
      if (outcome === CACHE_MISS) {
        if (T >= this.view.frontier - 1) this.#offer(client, collection, key, hash);
        return false;
      }
      const at = reader.valueAddress;
      const found =
        outcome === CACHE_ROW ? this.context.arena.u8.slice(at, at + reader.valueBytes) : null;
      assert.ok(sameValue(found, truth), `${History.name(collection, key)} at ${T}`);
      return true;
    } finally {
      slot.leave();
    }
  }

  #offer(client: number, collection: number, key: Uint8Array, hash: number): void {
    const { version, frontier } = this.view;
    const row: Version | undefined = this.history.newest(collection, key, 0, frontier - 1);
    const value = row?.value ?? null;
    const from = row === undefined || value === null ? Math.max(frontier - 1, 0) : row.time;
    const bytes = value ?? new Uint8Array(0);
    const { reader } = this.clients[client];
    const { length } = key;
    const size = bytes.length;
    const until = UNTIL_NEXT;
    const isAbsent = value === null;
    reader.offer(collection, version, key, 0, length, hash, bytes, 0, size, from, until, isAbsent);
  }

  run(): number {
    let ticks = 0;
    while (this.evictor.tick()) ticks++;
    return ticks;
  }

  counters(): Record<string, number> {
    this.evictor.publish();
    const { arena, topology } = this.context;
    return readCounters(arena, topology.counters[ACTOR_EVICTOR], EVICTOR_COUNTERS);
  }
}

const key = (i: number): Uint8Array => text(`key ${i}`);

test('a miss is a hit the next time, and stays true through writes, flushes and deletes', () => {
  const house = new House();
  for (let i = 0; i < 100; i++) house.write(1, key(i), text(`value ${i}`));
  house.seal();
  house.run();
  assert.ok(house.takeAnswer());
  const T = (): number => house.history.upper - 1;
  for (let i = 0; i < 110; i++) assert.equal(house.read(0, 1, key(i), T()), false);
  house.run();
  for (let i = 0; i < 110; i++) assert.equal(house.read(0, 1, key(i), T()), true);
  house.write(1, key(3), text('changed'));
  house.write(1, key(4), null);
  house.write(1, key(105), text('new'));
  assert.equal(house.read(1, 1, key(3), T()), false, 'the overlay speaks first');
  assert.equal(house.read(1, 1, key(3), T() - 3), true, 'but not for times before it');
  house.seal();
  house.run();
  assert.ok(house.takeAnswer());
  for (let i = 0; i < 110; i++) assert.equal(house.read(2, 1, key(i), T()), true);
  assert.equal(house.read(2, 1, key(3), T() - 3), false, 'the former content is not kept');
  const { rows, updated, applied, offersTaken, touches, evicted, pages } = house.counters();
  assert.deepEqual([rows, updated, applied, offersTaken, evicted], [110, 3, 2, 110, 0]);
  assert.ok(touches > 0 && pages >= 3);
});

test('a large generation enters in slices, with offers and touches taken in between', () => {
  const house = new House();
  const count = 20_000;
  for (let i = 0; i < count; i++) house.write(1, key(i), text(`${i}`));
  house.seal();
  house.run();
  house.takeAnswer();
  for (let i = 0; i < 64; i++) house.read(0, 1, key(i * 300), count - 1);
  house.run();
  for (let i = 0; i < count; i++) house.write(1, key(i), text(`again ${i}`));
  house.seal();
  let slices = 0;
  let stale = 0;
  while (!house.takeAnswer()) {
    assert.ok(house.evictor.tick());
    slices++;
    for (let i = 0; i < 64; i++) house.read(i % 3, 1, key(i * 300), count - 1);
    house.read(0, 1, key(7), count - 1);
    stale = house.counters()['offersStale'];
  }
  assert.ok(slices > 5, `${slices} slices`);
  assert.ok(stale > 0, 'what was read before does not come in any more');
  house.run();
  for (let i = 0; i < 64; i++) assert.equal(house.read(1, 1, key(i * 300), 2 * count - 1), true);
});

test('generations that queue up are applied one after the other, each with its own answer', () => {
  const house = new House();
  const values = ['one', 'two', 'three'];
  house.write(1, key(1), text('zero'));
  house.seal();
  house.run();
  house.takeAnswer();
  house.read(0, 1, key(1), 0);
  house.run();
  for (const value of values) {
    house.write(1, key(1), text(value));
    house.seal();
  }
  for (let T = 1; T <= 3; T++) {
    assert.ok(house.evictor.tick());
    assert.ok(house.takeAnswer());
    assert.equal(house.takeAnswer(), false);
    assert.equal(house.read(0, 1, key(1), T), true);
  }
});

test('values that run on over pages are cached in one piece, or not at all when they are too large', () => {
  const house = new House();
  const random = new Prng(1);
  const small = randomBytes(random, 10_000);
  const large = randomBytes(random, pageBytes + 5_000);
  house.write(1, key(1), text('a'));
  house.write(1, key(2), text('b'));
  house.seal();
  house.run();
  house.takeAnswer();
  for (const i of [1, 2]) house.read(0, 1, key(i), 1);
  house.run();
  house.write(1, key(1), small);
  house.write(1, key(2), large);
  house.seal();
  house.run();
  house.takeAnswer();
  assert.equal(house.read(0, 1, key(1), 3), true);
  assert.equal(house.read(0, 1, key(2), 3), false);
  // A budget that takes rows of a page takes a value that begins behind another in its record.
  house.context.pool.setLimitPages(KIND_CACHE, 130);
  house.write(1, key(3), text('c'));
  house.seal();
  house.run();
  house.takeAnswer();
  house.read(0, 1, key(3), 4);
  house.run();
  const payload = [
    { collection: 1, key: key(4), kind: OP_PUT, value: randomBytes(random, 230_000), diff: 1 },
    { collection: 1, key: key(3), kind: OP_PUT, value: randomBytes(random, 60_000), diff: 1 },
  ];
  house.writeTogether(payload);
  house.seal();
  house.run();
  house.takeAnswer();
  assert.equal(house.read(0, 1, key(3), 5), true);
});

test('it sleeps until called unless a period ends or a reader has to leave', () => {
  const house = new House();
  const { evictor } = house;
  assert.equal(evictor.tick(), false);
  assert.equal(evictor.idle(), Infinity);
  house.write(1, key(1), text('v'));
  house.seal();
  house.run();
  house.takeAnswer();
  house.read(0, 1, key(1), 0);
  house.run();
  assert.equal(evictor.idle(), Infinity);
  house.nowMs += 50;
  house.read(0, 1, key(1), 0);
  house.clients[0].reader.flushTouches();
  house.run();
  assert.equal(evictor.idle(), Infinity, 'the period was long over and has ended');
  house.nowMs += 4;
  house.read(0, 1, key(1), 0);
  house.clients[0].reader.flushTouches();
  house.run();
  assert.equal(evictor.idle(), 6);
  house.nowMs += 6;
  assert.equal(evictor.tick(), false);
  assert.equal(evictor.idle(), Infinity);
  const { slot } = house.clients[1];
  slot.enter();
  house.write(1, key(1), text('w'));
  house.seal();
  house.run();
  assert.ok(house.takeAnswer(), 'a reader that stays inside delays no answer');
  assert.ok(Number.isFinite(evictor.idle()));
  slot.leave();
  house.run();
  assert.equal(evictor.idle(), Infinity);
});

test('the period moves on under eviction: marks of the past protect nothing', () => {
  const house = new House();
  for (let i = 0; i < 40; i++) house.write(1, key(i), text('v'));
  house.seal();
  house.run();
  house.takeAnswer();
  for (let i = 0; i < 40; i++) house.read(0, 1, key(i), 39);
  house.run();
  for (let i = 0; i < 40; i++) house.read(0, 1, key(i), 39);
  house.run();
  const { cache } = house.evictor;
  for (let round = 0; round < 3; round++) {
    cache.evictOldest(1);
    house.nowMs += 10;
    house.evictor.tick();
  }
  const { relinked } = cache.counts;
  assert.ok(relinked > 0);
  cache.evictOldest(10);
  assert.equal(cache.counts.relinked, relinked);
});

test('the cache is lent what views and writers leave, and gives it back as they grow', () => {
  const house = new House();
  const { pool } = house.context;
  pool.setLimitPages(KIND_VIEW, 40);
  house.run();
  assert.equal(pool.limitPages(KIND_CACHE), LIMIT_PAGES + 30, 'a quarter stays');
  const count = 13_000;
  for (let i = 0; i < count; i++) {
    if (i === count / 2) {
      house.seal();
      house.run();
      house.takeAnswer();
    }
    house.write(1, key(i), new Uint8Array(1_000));
  }
  house.seal();
  house.run();
  house.takeAnswer();
  for (let i = 0; i < count; i++) {
    house.read(0, 1, key(i), count - 1);
    if (i % 50 === 49) house.run();
  }
  assert.ok(pool.usedPages(KIND_CACHE) > LIMIT_PAGES + 20, `${pool.usedPages(KIND_CACHE)} pages`);
  const views: number[] = [];
  for (let n = 0; n < 40; n++) {
    const page = pool.lease(KIND_VIEW);
    assert.notEqual(page, 0, `page ${n} of the views`);
    views.push(page);
    house.run();
    assert.ok(pool.usedPages(KIND_CACHE) <= pool.limitPages(KIND_CACHE));
  }
  assert.equal(pool.limitPages(KIND_CACHE), LIMIT_PAGES);
  for (const page of views) pool.free(page, KIND_VIEW);
  // Writers may take more than their budget of one sort or the other, never of both.
  pool.setLimitPages(KIND_RECORD, 84);
  house.run();
  assert.equal(pool.limitPages(KIND_CACHE), LIMIT_PAGES + 30 + 20);
  const pages: number[] = [];
  while (pool.freePages(KIND_RECORD) > 0) pages.push(pool.lease(KIND_RECORD));
  const nodes: number[] = [];
  while (pool.freePages(KIND_MEMTABLE) > 0) nodes.push(pool.lease(KIND_MEMTABLE));
  assert.ok(
    [...pages, ...nodes].every((page) => page !== 0),
    'no page was short',
  );
  house.run();
  assert.equal(pool.limitPages(KIND_CACHE), LIMIT_PAGES + 30);
  assert.ok(pool.usedPages(KIND_CACHE) <= LIMIT_PAGES + 30);
});

test('a limit set to 0 empties it, and everything is given back at close', () => {
  const house = new House();
  const { pool } = house.context;
  for (let i = 0; i < 500; i++) house.write(i % 3, key(i), text(`value ${i}`));
  house.seal();
  house.run();
  house.takeAnswer();
  const readAll = (): number => {
    let hits = 0;
    for (let i = 0; i < 500; i++) {
      if (house.read(i % 3, i % 3, key(i), 499)) hits++;
      if (i % 100 === 99) house.run();
    }
    return hits;
  };
  readAll();
  assert.equal(readAll(), 500);
  pool.setLimitPages(KIND_CACHE, 0);
  house.run();
  assert.equal(house.counters()['rows'], 0);
  assert.equal(readAll(), 0);
  // Clients give their pages back when they find the cache off.
  assert.equal(pool.usedPages(KIND_CACHE), 0);
  pool.setLimitPages(KIND_CACHE, LIMIT_PAGES);
  readAll();
  assert.equal(readAll(), 500);
  for (let i = 0; i < 3; i++) house.read(i, 9, key(i), 499);
  for (const { reader } of house.clients) assert.ok(reader.close());
  house.evictor.onClose();
  assert.equal(pool.usedPages(KIND_CACHE), 0);
  assert.equal(house.evictor.cache.bytes, 0);
});

test('a random life of the house: every read is right, whoever reads and whenever flushes end', () => {
  const random = new Prng(20);
  const house = new House();
  let hits = 0;
  for (let step = 0; step < 12_000; step++) {
    const collection = random.below(3) * 9_000;
    const some = key(random.below(60));
    const what = random.below(100);
    if (what < 20) {
      const value = random.chance(0.2) ? null : randomBytes(random, random.below(300));
      house.write(collection, some, value);
    } else if (what < 22 && house.generations.length < 2 && house.open.rows > 20) {
      house.seal();
    } else if (what < 75 && house.history.upper > 0) {
      const newest = house.history.upper - 1;
      const T = random.chance(0.7) ? newest : random.below(house.history.upper);
      if (house.read(random.below(3), collection, some, T)) hits++;
    } else if (what < 90) {
      house.evictor.tick();
      house.nowMs += random.below(5);
    } else if (what < 97) {
      house.takeAnswer();
    } else if (what < 98) {
      house.evictor.cache.evictOldest(random.below(20));
    }
    if (step % 200 === 0) house.evictor.cache.check();
  }
  assert.ok(hits > 1_000, `${hits} hits`);
  const { updated, inserted, offersStale } = house.counters();
  assert.ok(updated > 100 && inserted > 100 && offersStale > 10, 'all of it happened');
});
