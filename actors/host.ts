/**
 * Runs actors on a thread: ticks them while there is work, sleeps on the thread's one bell when there
 * is none. An exception in an actor poisons the engine; nothing here knows what an actor does. The
 * write thread blocks in its sleep; the background thread keeps its event loop turning, because the
 * pool and queued storage calls answer through it; inline, slices run between the caller's own work.
 */
import { availableParallelism } from 'node:os';
import { toPlainError } from '../core/base/errors.ts';
import { clientsMax, collectionsMax, pageBytes } from '../core/base/limits.ts';
import { Arena } from '../core/shared/arena.ts';
import { Bell } from '../core/shared/bell.ts';
import {
  BufferPool,
  KIND_CACHE,
  KIND_MEMTABLE,
  KIND_RECORD,
  KIND_VIEW,
  POOL_KINDS,
} from '../core/shared/buffer-pool.ts';
import { Control, STATE_CLOSED } from '../core/shared/control.ts';
import { CLIENT_SLOT_BYTES } from '../core/shared/epoch.ts';
import { READ_HEAT_BYTES } from '../core/shared/read-heat.ts';
import { resetRing } from '../core/shared/ring.ts';
import type { Clock, Storage } from '../core/storage/storage.ts';
import type { Actor, ActorContext, EngineConfig } from './actor.ts';
import { writerPagesMax } from './options.ts';
import { COUNTERS_BYTES, ringsOf, topologyOf } from './topology.ts';

/** Characters of a failure's message or stack that are kept: it must fit the control block. */
const FAILURE_TEXT_MAX = 1_000;

/** Sleep at the most, so that a deadline nobody announced is met late rather than never. */
const SLEEP_MS_MAX = 1_000;

/** Slice of the caller's time that an inline engine takes at once. */
const INLINE_SLICE_MS = 2;

export const systemClock: Clock = {
  nowMs: () => Date.now(),
  ticksMs: () => performance.now(),
};

/** What an actor on this thread may use. Every thread builds its own from the arena and the config. */
export function makeContext(
  buffer: SharedArrayBuffer,
  config: EngineConfig,
  storage: Storage,
  clock: Clock,
): ActorContext {
  const arena = new Arena(buffer);
  const topology = topologyOf(arena.bytes);
  return {
    arena,
    pool: new BufferPool(arena, topology.poolTables, topology.firstPage),
    control: new Control(arena, topology.control),
    topology,
    config,
    storage,
    clock,
    threadBells: topology.threadBells.map((at) => new Bell(arena, at)),
    clientBells: topology.clients.map((client) => new Bell(arena, client.bell)),
  };
}

/** Makes a leased arena as new. Requires: no thread uses it. */
export function resetArena(context: ActorContext): void {
  const { arena, config, control, pool, topology } = context;
  control.reset();
  const pages = Math.floor(arena.bytes / pageBytes) - topology.firstPage;
  const limits: number[] = Array.from({ length: POOL_KINDS }, () => 0);
  limits[KIND_VIEW] = Math.ceil(pages / 4);
  // Whoever has a budget finds the pages for it: a flush that waits for writers' pages would wait for ever.
  const writerPages = writerPagesMax(config.memtableBytes, pages - limits[KIND_VIEW]);
  limits[KIND_RECORD] = writerPages;
  limits[KIND_MEMTABLE] = writerPages;
  limits[KIND_CACHE] = pages - 2 * writerPages - limits[KIND_VIEW];
  pool.reset(limits);
  for (const { address } of ringsOf(topology)) resetRing(arena, address);
  const words = (clientsMax * CLIENT_SLOT_BYTES) >>> 2;
  arena.i32.fill(0, topology.slots >>> 2, (topology.slots >>> 2) + words);
  arena.i32.fill(0, topology.cacheRoots >>> 2, (topology.cacheRoots >>> 2) + collectionsMax);
  for (const at of [...topology.threadBells, ...topology.clients.map((client) => client.bell)]) {
    arena.i32.fill(0, at >>> 2, (at >>> 2) + 2);
  }
  // A counter is published when it changes: what a former engine left would stay where ours is 0.
  for (const at of [...topology.counters, ...topology.clients.map((client) => client.counters)]) {
    arena.i32.fill(0, at >>> 2, (at + COUNTERS_BYTES) >>> 2);
  }
  for (const { readHeat } of topology.clients) {
    arena.i32.fill(0, readHeat >>> 2, (readHeat + READ_HEAT_BYTES) >>> 2);
  }
  control.claimClient();
}

/** Makes the first failure known to every thread and wakes them all. */
export function poison(context: ActorContext, error: unknown): void {
  const plain = toPlainError(error);
  plain.message = plain.message.slice(0, FAILURE_TEXT_MAX);
  if (plain.stack !== undefined) plain.stack = plain.stack.slice(0, FAILURE_TEXT_MAX);
  let json = JSON.stringify(plain);
  if (json.length > 3 * FAILURE_TEXT_MAX) json = JSON.stringify({ ...plain, detail: {} });
  context.control.poison(json);
  ringAll(context);
}

export function ringAll(context: ActorContext): void {
  for (const bell of context.threadBells) bell.ring();
  for (const bell of context.clientBells) bell.ring();
}

/** One tick of every actor; true when any of them did something. */
export function runRound(context: ActorContext, actors: readonly Actor[]): boolean {
  try {
    let worked = false;
    for (const actor of actors) worked = actor.tick() || worked;
    return worked;
  } catch (error) {
    poison(context, error);
    return false;
  }
}

function isOver(context: ActorContext): boolean {
  return context.control.state() >= STATE_CLOSED;
}

/** How long the write thread looks again before it sleeps, where there is a core for it: a closed loop answers within this. */
const SPIN_MS: number = availableParallelism() > 1 ? 0.02 : 0;

/** Rounds between two publications of counters while there is always work. */
const PUBLISH_ROUNDS = 1_024;

function publishAll(actors: readonly Actor[]): void {
  for (const actor of actors) actor.publish();
}

function sleepMs(actors: readonly Actor[]): number {
  publishAll(actors);
  let ms = SLEEP_MS_MAX;
  for (const actor of actors) ms = Math.min(ms, actor.idle());
  return Math.max(0, ms);
}

function closeAll(actors: readonly Actor[]): void {
  for (const actor of actors) {
    try {
      actor.onClose();
    } catch {
      // The engine is over; what could not be closed dies with the process.
    }
  }
}

/** Runs until the engine is closed or poisoned. Blocks the thread. */
export function runBlocking(context: ActorContext, actors: readonly Actor[], bell: Bell): void {
  let rounds = 0;
  const { clock } = context;
  /** When spinning ends; 0 = it has not begun. */
  let spinUntil = 0;
  while (!isOver(context)) {
    if (runRound(context, actors)) {
      if (++rounds % PUBLISH_ROUNDS === 0) publishAll(actors);
      spinUntil = 0;
      continue;
    }
    const now = clock.ticksMs();
    if (spinUntil === 0) spinUntil = now + SPIN_MS;
    if (now < spinUntil) continue;
    const seen = bell.park();
    // Published before the parked flag was up: nobody would ring for it.
    if (!runRound(context, actors) && !isOver(context)) bell.wait(seen, sleepMs(actors));
    bell.unpark();
  }
  closeAll(actors);
}

/** The same, leaving turns to the thread's event loop. */
export async function runTurning(
  context: ActorContext,
  actors: readonly Actor[],
  bell: Bell,
): Promise<void> {
  let rounds = 0;
  while (!isOver(context)) {
    if (runRound(context, actors)) {
      if (++rounds % PUBLISH_ROUNDS === 0) publishAll(actors);
      await turn();
      continue;
    }
    const seen = bell.park();
    if (!runRound(context, actors) && !isOver(context)) {
      await bell.waitAsync(seen, sleepMs(actors));
    }
    bell.unpark();
  }
  closeAll(actors);
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Runs the actors on the caller's thread, in slices, kicked by whoever has made work for them. */
export class InlineHost {
  readonly #context: ActorContext;
  readonly #actors: readonly Actor[];
  readonly #step: () => boolean;
  readonly #afterSlice: () => void;
  #scheduled = false;
  #timer: NodeJS.Timeout | undefined;
  #over = false;

  /** `step` runs a slice of pool work; `afterSlice` lets clients look at what has come. */
  constructor(
    context: ActorContext,
    actors: readonly Actor[],
    step: () => boolean,
    afterSlice: () => void,
  ) {
    this.#context = context;
    this.#actors = actors;
    this.#step = step;
    this.#afterSlice = afterSlice;
  }

  /** There is work: run a slice as soon as the code that runs now is done. */
  kick(): void {
    if (this.#scheduled || this.#over) return;
    this.#scheduled = true;
    queueMicrotask(() => this.#slice());
  }

  #round(): boolean {
    const worked = runRound(this.#context, this.#actors);
    // Pool work fills what the actors leave, so that a merge never delays a commit by more than a slice.
    return this.#step() || worked;
  }

  #slice(): void {
    this.#scheduled = false;
    if (this.#over) return;
    if (this.#timer !== undefined) clearTimeout(this.#timer);
    this.#timer = undefined;
    const { clock } = this.#context;
    const until = clock.ticksMs() + INLINE_SLICE_MS;
    let worked = true;
    while (worked && clock.ticksMs() < until && !isOver(this.#context)) {
      // As before any sleep: what an actor behind another one has told it by a ring alone is seen now.
      worked = this.#round() || (!isOver(this.#context) && this.#round());
    }
    if (isOver(this.#context)) {
      this.#over = true;
      closeAll(this.#actors);
    }
    this.#afterSlice();
    if (this.#over) return;
    if (worked) {
      // There may always be work: nobody would hear of it.
      publishAll(this.#actors);
      this.#scheduled = true;
      setImmediate(() => this.#slice());
      return;
    }
    const ms = sleepMs(this.#actors);
    this.#timer = setTimeout(() => this.#slice(), ms).unref();
  }
}
