/**
 * The one drawing of the house: where everything fixed lies in the arena, which ring joins whom, and
 * which actor runs on which thread. Every thread computes the same drawing from the arena's size.
 *
 *   client[i] --records--> sequencer --line--> durability      the write line
 *   client[i] <-receipts-- sequencer <-replay- durability
 *   client[i] <-requests-> keeper    client[i] --touch, populate--> evictor
 *   sequencer <-> keeper   durability <-> keeper   keeper <-> compactor   keeper <-> evictor
 *   durability <-> compactor
 */
import {
  clientsMax,
  collectionsMax,
  controlRingSlots,
  logRingSlots,
  pageBytes,
  populateRingSlots,
  recordRingSlots,
  touchRingSlots,
} from '../core/base/limits.ts';
import { ArenaPlan } from '../core/shared/arena.ts';
import { BELL_BYTES } from '../core/shared/bell.ts';
import { BufferPool } from '../core/shared/buffer-pool.ts';
import { CONTROL_BYTES } from '../core/shared/control.ts';
import { CLIENT_SLOT_BYTES } from '../core/shared/epoch.ts';
import { READ_HEAT_BYTES } from '../core/shared/read-heat.ts';
import { ringBytes } from '../core/shared/ring.ts';

export type RingPlace = { readonly address: number; readonly slots: number };

/** Threads of a kit; an actor's thread is named by its number. */
export const THREAD_WRITE = 0;
export const THREAD_BACKGROUND = 1;
export const THREADS = 2;

/** Counters and histograms, each number a triple, in a block of one writer. */
export const COUNTERS_BYTES = 4_096;

export type ClientPlace = {
  readonly slot: number;
  readonly bell: number;
  readonly counters: number;
  /** Reads that went down to parts, by collection (core/shared/read-heat.ts). */
  readonly readHeat: number;
  readonly records: RingPlace;
  readonly receipts: RingPlace;
  readonly requests: RingPlace;
  readonly answers: RingPlace;
  readonly touches: RingPlace;
  readonly offers: RingPlace;
};

export type Topology = {
  readonly control: number;
  readonly poolTables: number;
  readonly firstPage: number;
  /** One Int32 a collection slot: the row cache's roots. */
  readonly cacheRoots: number;
  readonly slots: number;
  readonly threadBells: readonly number[];
  readonly counters: readonly number[];
  readonly clients: readonly ClientPlace[];
  readonly line: RingPlace;
  readonly replay: RingPlace;
  readonly sequencerToKeeper: RingPlace;
  readonly keeperToSequencer: RingPlace;
  readonly durabilityToKeeper: RingPlace;
  readonly keeperToDurability: RingPlace;
  readonly keeperToCompactor: RingPlace;
  readonly compactorToKeeper: RingPlace;
  readonly durabilityToCompactor: RingPlace;
  readonly compactorToDurability: RingPlace;
  readonly keeperToEvictor: RingPlace;
  readonly evictorToKeeper: RingPlace;
};

export function topologyOf(arenaBytes: number): Topology {
  const plan = new ArenaPlan();
  const ring = (slots: number): RingPlace => ({ address: plan.take(ringBytes(slots)), slots });
  const control = plan.take(CONTROL_BYTES);
  const poolTables = plan.take(BufferPool.tableBytes(arenaBytes));
  const cacheRoots = plan.take(collectionsMax * 4);
  const slots = plan.take(clientsMax * CLIENT_SLOT_BYTES);
  const threadBells = Array.from({ length: THREADS }, () => plan.take(BELL_BYTES));
  const counters = Array.from({ length: 5 }, () => plan.take(COUNTERS_BYTES));
  const clients = Array.from({ length: clientsMax }, (_, i) => ({
    slot: slots + i * CLIENT_SLOT_BYTES,
    bell: plan.take(BELL_BYTES),
    counters: plan.take(COUNTERS_BYTES),
    readHeat: plan.take(READ_HEAT_BYTES),
    records: ring(recordRingSlots),
    receipts: ring(recordRingSlots),
    requests: ring(controlRingSlots),
    answers: ring(controlRingSlots),
    touches: ring(touchRingSlots),
    offers: ring(populateRingSlots),
  }));
  return {
    control,
    poolTables,
    cacheRoots,
    slots,
    threadBells,
    counters,
    clients,
    line: ring(logRingSlots),
    replay: ring(logRingSlots),
    sequencerToKeeper: ring(controlRingSlots),
    keeperToSequencer: ring(controlRingSlots),
    durabilityToKeeper: ring(controlRingSlots),
    keeperToDurability: ring(controlRingSlots),
    keeperToCompactor: ring(controlRingSlots),
    compactorToKeeper: ring(controlRingSlots),
    durabilityToCompactor: ring(controlRingSlots),
    compactorToDurability: ring(controlRingSlots),
    keeperToEvictor: ring(controlRingSlots),
    evictorToKeeper: ring(controlRingSlots),
    firstPage: Math.ceil(plan.bytes / pageBytes),
  };
}

/** Every ring of the drawing, so that a reset misses none. */
export function ringsOf(t: Topology): RingPlace[] {
  return [
    t.line,
    t.replay,
    t.sequencerToKeeper,
    t.keeperToSequencer,
    t.durabilityToKeeper,
    t.keeperToDurability,
    t.keeperToCompactor,
    t.compactorToKeeper,
    t.durabilityToCompactor,
    t.compactorToDurability,
    t.keeperToEvictor,
    t.evictorToKeeper,
    ...t.clients.flatMap((c) => [
      c.records,
      c.receipts,
      c.requests,
      c.answers,
      c.touches,
      c.offers,
    ]),
  ];
}
