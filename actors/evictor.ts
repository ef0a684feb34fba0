/**
 * Keeps the row cache: takes what readers offer, brings it up to what enters the source, evicts inside
 * the budget. Blocks neither a reader nor a writer; whatever is short, it may forget rows. Source
 * changes go first: until one is answered the keeper's next view has to wait for it.
 *
 *   from      kind            what happens
 *   keeper    APPLY           cached keys of the generation get its newest versions, in slices; APPLIED back
 *   client    POPULATE        a row from the parts is taken, unless the source has moved on; lossy
 *   client    TOUCH           rows that were read become the newest; lossy
 *   pool      (its limit)     above it pages are emptied and given back; limit 0: everything is
 *
 * What the budget of views does not use is lent to the cache, but for a reserve that views may take at
 * once; and what the two budgets of writers (records, and nodes over them: either may have most of the
 * write budget) are together above the write budget, as long as writers do not come near that (0016).
 */
import { invariant } from '../core/base/assert.ts';
import { clientsMax, pageBytes } from '../core/base/limits.ts';
import { OFFER_ABSENT, OFFER_PAGE, TOUCH_IDS_MAX } from '../core/cache/layout.ts';
import { RowCache } from '../core/cache/row-cache.ts';
import { NewestRows } from '../core/memtable/newest.ts';
import { KIND_CACHE, KIND_MEMTABLE, KIND_RECORD, KIND_VIEW } from '../core/shared/buffer-pool.ts';
import { ACTOR_EVICTOR } from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import { RetireList } from '../core/shared/epoch.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { Actor, ActorContext } from './actor.ts';
import { EVICTOR_COUNTERS, indexIn, makeCounters } from './counters.ts';
import {
  APPLY,
  KIND_WORD,
  MSG_APPLIED,
  MSG_APPLY,
  MSG_POPULATE,
  MSG_TOUCH,
  POPULATE,
  TOUCH,
  getWide,
} from './messages.ts';
import { writeBudgetBytes } from './options.ts';
import { THREAD_BACKGROUND } from './topology.ts';

/** Fuel of one slice of an apply: half a millisecond at the most. */
const APPLY_FUEL = 2_048;
/** Offers taken in one tick, over all clients, and touch slots of one client. */
const OFFERS_PER_TICK = 128;
const TOUCH_SLOTS_PER_TICK = 64;
/** Shortest period: rows that are read all the time are reported once in it. */
const PERIOD_MS = 10;
/** A quarter of the views' budget, and a quarter of what anybody uses, is never lent: nobody grows by more in a turn. */
const RESERVE_SHIFT = 2;
/** How soon to look again whether readers have left what was retired. */
const WAIT_MS = 5;

const ROWS: number = indexIn(EVICTOR_COUNTERS, 'rows');
const BYTES: number = indexIn(EVICTOR_COUNTERS, 'bytes');
const PAGES: number = indexIn(EVICTOR_COUNTERS, 'pages');
const INSERTED: number = indexIn(EVICTOR_COUNTERS, 'inserted');
const UPDATED: number = indexIn(EVICTOR_COUNTERS, 'updated');
const EVICTED: number = indexIn(EVICTOR_COUNTERS, 'evicted');
const APPLIED: number = indexIn(EVICTOR_COUNTERS, 'applied');
const OFFERS_TAKEN: number = indexIn(EVICTOR_COUNTERS, 'offersTaken');
const OFFERS_STALE: number = indexIn(EVICTOR_COUNTERS, 'offersStale');
const OFFERS_TOO_LARGE: number = indexIn(EVICTOR_COUNTERS, 'offersTooLarge');
const TOUCHES: number = indexIn(EVICTOR_COUNTERS, 'touches');

export class Evictor implements Actor {
  readonly number: number = ACTOR_EVICTOR;
  readonly #context: ActorContext;
  readonly #fromKeeper: RingConsumer;
  readonly #keeper: Outbox;
  readonly #touches: RingConsumer[];
  readonly #offers: RingConsumer[];
  readonly #cache: RowCache;
  readonly #entering: NewestRows;
  readonly #counters: Counters;
  #offersTaken = 0;

  /** Touches came, or rows went, since the period last moved on; and when it did. */
  #touched = false;
  #evictedBefore = 0;
  #periodAtMs: number;
  /** The next client whose offers are taken first. */
  #turn = 0;
  /** Pages that the cache has been lent. */
  #lent = 0;
  /** Of the write budget. */
  readonly #writePages: number;

  constructor(context: ActorContext) {
    const { arena, pool, control, topology } = context;
    this.#context = context;
    this.#fromKeeper = inboxOf(context, topology.keeperToEvictor);
    this.#keeper = new Outbox(
      context,
      topology.evictorToKeeper,
      context.threadBells[THREAD_BACKGROUND],
    );
    this.#touches = topology.clients.map((client) => inboxOf(context, client.touches));
    this.#offers = topology.clients.map((client) => inboxOf(context, client.offers));
    const retire = new RetireList(arena, control.epochAddress, topology.slots, clientsMax);
    this.#writePages = Math.ceil(writeBudgetBytes(context.config.memtableBytes) / pageBytes);
    this.#cache = new RowCache(arena, pool, topology.cacheRoots, retire);
    this.#entering = new NewestRows(arena, pool);
    this.#counters = makeCounters(arena, topology.counters[ACTOR_EVICTOR], EVICTOR_COUNTERS);
    this.#periodAtMs = context.clock.ticksMs();
  }

  /** For audits: the cache itself. */
  get cache(): RowCache {
    return this.#cache;
  }

  tick(): boolean {
    this.#borrow();
    let worked = this.#enter();
    // What was read lately is known before anything is evicted.
    worked = this.#takeTouches() || worked;
    worked = this.#cache.reclaim() || worked;
    worked = this.#takeOffers() || worked;
    this.#endPeriod();
    worked = this.#cache.sweep() || worked;
    return this.#cache.closeIfEmpty() || worked;
  }

  idle(): number {
    if (this.#cache.isWaiting) return WAIT_MS;
    if (!this.#touched) return Infinity;
    return Math.max(0, this.#periodAtMs + PERIOD_MS - this.#context.clock.ticksMs());
  }

  publish(): void {
    const { counts } = this.#cache;
    const { values } = this.#counters;
    values[ROWS] = this.#cache.rows;
    values[BYTES] = this.#cache.bytes;
    values[PAGES] = this.#context.pool.usedPages(KIND_CACHE);
    values[INSERTED] = counts.inserted;
    values[UPDATED] = counts.updated;
    values[EVICTED] = counts.evicted;
    values[APPLIED] = counts.applied;
    values[OFFERS_TAKEN] = this.#offersTaken;
    values[OFFERS_STALE] = counts.offersStale;
    values[OFFERS_TOO_LARGE] = counts.offersTooLarge;
    values[TOUCHES] = counts.touches;
    this.#counters.publish();
  }

  /** Readers are gone by now, or the engine is poisoned and they refuse. */
  onClose(): void {
    for (let i = 0; i < clientsMax && this.#takeOffers(); i++);
    this.#cache.dropAll();
    this.#cache.sweep();
    this.publish();
  }

  /** A slice of what enters the source, and the answer behind the last one. */
  #enter(): boolean {
    const cache = this.#cache;
    const slot = this.#fromKeeper.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromKeeper;
    invariant(u32[slot + KIND_WORD] === MSG_APPLY, 'a source change', u32[slot + KIND_WORD]);
    const address = u32[slot + APPLY.ADDRESS];
    const version = u32[slot + APPLY.VERSION];
    if (!cache.isApplying) {
      // What has been offered so far is of the source as it was: good now, and stale from here on.
      this.#takeOffers();
      this.#entering.start(address);
      cache.beginApply(this.#entering, version);
    }
    if (!cache.apply(APPLY_FUEL)) return true;
    // The keeper keeps room for the answer of what it asks; the message stays until then.
    const answer = this.#keeper.claim();
    invariant(answer >= 0, 'an answer has its slot', version);
    u32[answer + KIND_WORD] = MSG_APPLIED;
    u32[answer + APPLY.ADDRESS] = address;
    u32[answer + APPLY.VERSION] = version;
    this.#fromKeeper.pop();
    this.#keeper.send();
    return true;
  }

  /** As views and writers grow, the cache shrinks: what is over its limit goes in the same turn. */
  #borrow(): void {
    const { pool } = this.#context;
    const views = pool.usedPages(KIND_VIEW) + pool.promisedPages(KIND_VIEW);
    const viewsMax = pool.limitPages(KIND_VIEW);
    const viewsKept = views + (views >>> RESERVE_SHIFT) + (viewsMax >>> RESERVE_SHIFT);
    const writes = pool.usedPages(KIND_RECORD) + pool.usedPages(KIND_MEMTABLE);
    const writesMax = pool.limitPages(KIND_RECORD) + pool.limitPages(KIND_MEMTABLE);
    const writesKept = Math.max(this.#writePages, writes + (writes >>> RESERVE_SHIFT));
    const lent = Math.max(0, viewsMax - viewsKept) + Math.max(0, writesMax - writesKept);
    if (lent === this.#lent) return;
    this.#lent = lent;
    pool.setLentPages(KIND_CACHE, lent);
  }

  #clients(): number {
    return Math.min(this.#context.control.clients(), clientsMax);
  }

  #takeTouches(): boolean {
    let worked = false;
    const clients = this.#clients();
    for (let client = 0; client < clients; client++) {
      const ring = this.#touches[client];
      for (let i = 0; i < TOUCH_SLOTS_PER_TICK; i++) {
        const slot = ring.peek();
        if (slot < 0) break;
        this.#onTouch(ring.u32, slot);
        ring.pop();
        worked = true;
      }
    }
    this.#touched ||= worked;
    return worked;
  }

  #onTouch(u32: Uint32Array, slot: number): void {
    const count = u32[slot + TOUCH.COUNT];
    invariant(u32[slot + KIND_WORD] === MSG_TOUCH, 'a touch', u32[slot + KIND_WORD]);
    invariant(count <= TOUCH_IDS_MAX, 'ids fit the slot', count);
    for (let i = 0; i < count; i++) this.#cache.touch(u32[slot + TOUCH.IDS + i]);
  }

  /** Readers report again what they go on reading, but not more often than once a period. */
  #endPeriod(): void {
    const { evicted } = this.#cache.counts;
    // Marks of the past protect nothing for ever: the period moves on under eviction too.
    if (evicted !== this.#evictedBefore) this.#touched = true;
    this.#evictedBefore = evicted;
    if (!this.#touched) return;
    const nowMs = this.#context.clock.ticksMs();
    if (nowMs - this.#periodAtMs < PERIOD_MS) return;
    this.#periodAtMs = nowMs;
    this.#touched = false;
    this.#cache.advancePeriod();
  }

  #takeOffers(): boolean {
    let left = OFFERS_PER_TICK;
    const clients = this.#clients();
    for (let n = 0; n < clients && left > 0; n++) {
      const ring = this.#offers[(this.#turn + n) % clients];
      for (let slot = ring.peek(); slot >= 0 && left > 0; slot = ring.peek()) {
        this.#onOffer(ring.u32, slot);
        // The bytes in the offer page are the client's again.
        ring.pop();
        left--;
      }
    }
    this.#turn = (this.#turn + 1) % clientsMax;
    return left < OFFERS_PER_TICK;
  }

  #onOffer(u32: Uint32Array, slot: number): void {
    const what = u32[slot + POPULATE.WHAT];
    const address = u32[slot + POPULATE.ADDRESS];
    invariant(u32[slot + KIND_WORD] === MSG_POPULATE, 'an offer', u32[slot + KIND_WORD]);
    if (what === OFFER_PAGE) {
      this.#context.pool.free(address, KIND_CACHE);
      return;
    }
    const keyBytes = u32[slot + POPULATE.KEY_BYTES];
    this.#offersTaken++;
    this.#cache.offer(
      u32[slot + POPULATE.VERSION],
      u32[slot + POPULATE.COLLECTION],
      u32[slot + POPULATE.HASH],
      address,
      keyBytes,
      address + keyBytes,
      u32[slot + POPULATE.VALUE_BYTES],
      getWide(u32, slot + POPULATE.FROM),
      getWide(u32, slot + POPULATE.UNTIL),
      what === OFFER_ABSENT,
    );
  }
}
