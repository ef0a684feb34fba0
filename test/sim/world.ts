/**
 * One incarnation of the engine on one thread: arena, the five actors, pool, clients, over a simulated
 * disk and clock. It does what it is told one step at a time and decides nothing. It listens at the
 * rings: the order that the sequencer gives is told to the model, every message goes into the trace.
 * Used by run.ts; lives until it is closed, poisoned, or its process dies.
 */
import { invariant } from '../../core/base/assert.ts';
import { Bell } from '../../core/shared/bell.ts';
import { LINE_BYTES } from '../../core/shared/arena.ts';
import type { Arena } from '../../core/shared/arena.ts';
import {
  KIND_CACHE,
  KIND_MEMTABLE,
  KIND_RECORD,
  KIND_VIEW,
} from '../../core/shared/buffer-pool.ts';
import {
  ACTOR_COMPACTOR,
  ACTOR_KEEPER,
  STALL_WAIT,
  Control,
  STATE_CLOSED,
  STATE_CLOSING,
  STATE_OPEN,
  STATE_POISONED,
} from '../../core/shared/control.ts';
import { SLOT_WORDS } from '../../core/shared/ring.ts';
import type { Actor, ActorContext, EngineConfig } from '../../actors/actor.ts';
import { Client } from '../../actors/client.ts';
import { KEEPER_COUNTERS, readCounters } from '../../actors/counters.ts';
import type { Evictor } from '../../actors/evictor.ts';
import { makeContext, poison, resetArena } from '../../actors/host.ts';
import { backgroundActors, writeActors } from '../../actors/house.ts';
import { makeMachine } from '../../actors/jobs.ts';
import type { Job } from '../../actors/jobs.ts';
import {
  KIND_WORD,
  MSG_RECEIPT,
  MSG_RECORD,
  RECEIPT,
  RECORD,
  REFUSAL_AGAIN,
  getWide,
} from '../../actors/messages.ts';
import { CAUSE_MEMORY } from '../../actors/stalls.ts';
import type { RingPlace, Topology } from '../../actors/topology.ts';
import { KEEPER_CLIENT } from '../../actors/spine-keeper.ts';
import type { SimClock } from './clock.ts';
import type { SimDisk } from './disk.ts';
import type { Model } from './model.ts';
import { SimPool } from './pool.ts';
import type { JobFate } from './pool.ts';
import type { Settings } from './settings.ts';
import { SimStorage } from './storage.ts';
import type { Trace } from './trace.ts';

export const ACTOR_NAMES: readonly string[] = [
  'sequencer',
  'durability',
  'keeper',
  'compactor',
  'evictor',
];

/** A look at a frontier so often in one step is a loop that will not end. */
const LOOKS_MAX = 3_000_000;

/** The fewest slots with which the actors' messages to each other find room at all. */
const CONTROL_SLOTS_MIN = 8;

/** Says what broke. */
export class SimFailure extends Error {
  override readonly name: string = 'SimFailure';
}

/** Notices code that waits for a frontier to move while nobody can move it. */
class WatchedControl extends Control {
  looks = 0;

  #look(): void {
    if (++this.looks > LOOKS_MAX) throw new SimFailure('a loop waits for what cannot happen');
  }

  override applied(): number {
    this.#look();
    return super.applied();
  }

  override durable(): number {
    this.#look();
    return super.durable();
  }
}

/** Follows a ring without being an end of it. */
class RingTap {
  readonly #arena: Arena;
  readonly #word: number;
  readonly #slots: number;
  #seen: number;

  constructor(arena: Arena, place: RingPlace) {
    this.#arena = arena;
    this.#word = place.address >>> 2;
    this.#slots = place.slots;
    this.#seen = this.#tail();
  }

  #tail(): number {
    return Atomics.load(this.#arena.i32, this.#word + LINE_BYTES / 4);
  }

  /** Calls `visit` with the first word of every slot published since. */
  take(visit: (slot: number) => void): void {
    const tail = this.#tail();
    for (; this.#seen !== tail; this.#seen = (this.#seen + 1) | 0) {
      const slot = this.#seen & (this.#slots - 1);
      visit(this.#word + (2 * LINE_BYTES) / 4 + slot * SLOT_WORDS);
    }
  }
}

/** The same rings in the same places with fewer slots: somebody always waits for room. */
function shrink(topology: Topology, { tinyRings }: Settings): Topology {
  const ring = ({ address, slots }: RingPlace, least: number): RingPlace => ({
    address,
    slots: Math.min(slots, Math.max(tinyRings, least)),
  });
  const control = (place: RingPlace): RingPlace => ring(place, CONTROL_SLOTS_MIN);
  return {
    ...topology,
    line: ring(topology.line, 4),
    replay: ring(topology.replay, 4),
    sequencerToKeeper: control(topology.sequencerToKeeper),
    keeperToSequencer: control(topology.keeperToSequencer),
    durabilityToKeeper: control(topology.durabilityToKeeper),
    keeperToDurability: control(topology.keeperToDurability),
    keeperToCompactor: control(topology.keeperToCompactor),
    compactorToKeeper: control(topology.compactorToKeeper),
    durabilityToCompactor: control(topology.durabilityToCompactor),
    compactorToDurability: control(topology.compactorToDurability),
    keeperToEvictor: control(topology.keeperToEvictor),
    evictorToKeeper: control(topology.evictorToKeeper),
    clients: topology.clients.map((client) => ({
      ...client,
      records: ring(client.records, 2),
      receipts: ring(client.receipts, 2),
      requests: control(client.requests),
      answers: control(client.answers),
    })),
  };
}

/** A thread of the host, as host.ts runs it. */
type HostThread = {
  readonly actors: readonly number[];
  readonly bell: Bell;
  readonly word: number;
  parked: boolean;
  seen: number;
  deadline: number;
  next: number;
  worked: boolean;
  /** Parked, and looking once more. */
  checking: boolean;
};

/** What became of a client's next record. */
export type Receipt = {
  /** Its transactions have got offsets from here on; -1: it was refused. */
  readonly first: number;
  readonly count: number;
  /** 0, or the number of an error code. */
  readonly refusal: number;
  /** It was decided no earlier than when the model stood here, and no later than now. */
  readonly from: number;
};

/** A receipt as it was read; -1: no offset, for it is a refusal. */
type Answered = Omit<Receipt, 'from'> & { readonly client: number };

/** Waits for a promise in simulated time, then checks what came of it. */
export type Await = <R>(
  promise: Promise<R>,
  what: string,
  check: (result: R) => void,
  refused: (error: unknown) => void,
) => void;

export type WorldParts = {
  readonly arena: Arena;
  readonly disk: SimDisk;
  readonly clock: SimClock;
  readonly trace: Trace;
  readonly model: Model;
  readonly settings: Settings;
  readonly config: EngineConfig;
  readonly jobFate: (job: Job) => JobFate;
  readonly onReceipt: (client: number, receipt: Receipt) => void;
};

export class World {
  readonly context: ActorContext;
  readonly storage: SimStorage;
  readonly pool: SimPool;
  readonly actors: readonly Actor[];
  readonly clients: readonly Client[];
  readonly #parts: WorldParts;
  readonly #control: WatchedControl;
  readonly #threads: readonly HostThread[];
  readonly #clientSeen: number[];
  readonly #endOfTurn: (() => void)[][];
  readonly #taps: RingTap[];
  readonly #lineTap: RingTap;
  readonly #recordTaps: RingTap[];
  readonly #receiptTaps: RingTap[];
  /** Transactions in each record pushed and not yet answered, by client, oldest first. */
  readonly #pushed: { number: number; count: number }[][];
  /** First offset -> transactions, of records on the line whose receipt has not been seen. */
  readonly #onLine: Map<number, number> = new Map();
  // Made once: what is called after every step makes no closures.
  readonly #mix: (slot: number) => void;
  readonly #onRecord: readonly ((slot: number) => void)[];
  readonly #onLineSlot: (slot: number) => void;
  readonly #onReceiptSlot: readonly ((slot: number) => void)[];
  #nextOnLine = 0;
  /** Receipts seen in this look, by client. */
  readonly #answered: Answered[][];
  #isAnswered = false;
  /** Of the first actor that threw. */
  failure: { readonly actor: string; readonly error: unknown } | undefined;
  /** Ticks of actors that did something. */
  worked = 0;
  #closed = false;
  /** The thread whose end nobody has heard of yet, or that has poisoned the engine; -1: none. */
  #deadThread = -1;
  #frontiers: number[] = [0, 0, 0];

  constructor(parts: WorldParts) {
    const { arena, settings, config, clock } = parts;
    this.#parts = parts;
    this.storage = new SimStorage(parts.disk);
    const made = makeContext(arena.buffer, config, this.storage, clock);
    this.#control = new WatchedControl(made.arena, made.topology.control);
    const topology = settings.tinyRings === 0 ? made.topology : shrink(made.topology, settings);
    this.context = { ...made, control: this.#control, topology };
    resetArena(this.context);
    for (let i = 1; i < settings.clients; i++) this.#control.claimClient();
    if (settings.cachePages !== undefined) {
      this.#giveCache(settings.cachePages);
    }
    if (settings.viewPages !== undefined) {
      this.context.pool.setLimitPages(KIND_VIEW, settings.viewPages);
    }
    const background = this.context.threadBells[1];
    this.pool = new SimPool(
      settings.workers,
      settings.pressing,
      (job) => makeMachine(job, this.storage, this.context.arena),
      () => background.ring(),
      parts.jobFate,
    );
    this.actors = [...writeActors(this.context), ...backgroundActors(this.context, this.pool)];
    this.#endOfTurn = Array.from({ length: settings.clients }, () => []);
    this.clients = this.#endOfTurn.map(
      (queue, i) =>
        new Client(this.context, i, {
          kick: () => {},
          endOfTurn: (run) => queue.push(run),
          nextTurn: (run) => queue.push(run),
        }),
    );
    this.#clientSeen = this.clients.map(() => -1);
    this.#threads = [
      this.#makeThread([0, 1], this.context.topology.threadBells[0]),
      this.#makeThread([2, 3, 4], this.context.topology.threadBells[1]),
    ];
    const tap = (place: RingPlace): RingTap => new RingTap(this.context.arena, place);
    const places = topology.clients.slice(0, settings.clients);
    this.#lineTap = tap(topology.line);
    this.#recordTaps = places.map((client) => tap(client.records));
    this.#receiptTaps = places.map((client) => tap(client.receipts));
    this.#pushed = places.map(() => []);
    this.#answered = places.map(() => []);
    const { trace } = parts;
    const { u32 } = this.context.arena;
    this.#mix = (slot) => {
      for (let word = 0; word < SLOT_WORDS; word++) trace.mix(u32[slot + word]);
    };
    this.#onRecord = places.map((_, i) => (slot) => this.#takeRecord(i, slot));
    this.#onLineSlot = (slot) => this.#takeFromLine(slot);
    this.#onReceiptSlot = places.map((_, i) => (slot) => this.#takeReceipt(i, slot));
    const keeper = topology.clients[KEEPER_CLIENT];
    this.#taps = [
      topology.replay,
      topology.sequencerToKeeper,
      topology.keeperToSequencer,
      topology.durabilityToKeeper,
      topology.keeperToDurability,
      topology.keeperToCompactor,
      topology.compactorToKeeper,
      topology.durabilityToCompactor,
      topology.compactorToDurability,
      topology.keeperToEvictor,
      topology.evictorToKeeper,
      ...places.flatMap((client) => [
        client.requests,
        client.answers,
        client.touches,
        client.offers,
      ]),
      keeper.touches,
      keeper.offers,
    ].map(tap);
  }

  /** The arena is the smallest there is and has none for the cache: writers do without them. */
  #giveCache(pages: number): void {
    const { pool } = this.context;
    for (const kind of [KIND_RECORD, KIND_MEMTABLE]) {
      pool.setLimitPages(kind, pool.limitPages(kind) - Math.ceil(pages / 2));
    }
    pool.setLimitPages(KIND_CACHE, pages);
  }

  #makeThread(actors: number[], bellAddress: number): HostThread {
    return {
      actors,
      bell: new Bell(this.context.arena, bellAddress),
      word: bellAddress >>> 2,
      parked: false,
      seen: 0,
      deadline: 0,
      next: 0,
      worked: false,
      checking: false,
    };
  }

  // ---------------------------------------------------------------- state

  get state(): number {
    return this.#control.state();
  }

  get isOpen(): boolean {
    return this.state === STATE_OPEN;
  }

  get model(): Model {
    return this.#parts.model;
  }

  get isPoisoned(): boolean {
    return this.state === STATE_POISONED;
  }

  /** Closed or poisoned, and the actors have given back what they had. */
  get isOver(): boolean {
    return this.#closed;
  }

  get visible(): number {
    return this.clients[0].reader.visible();
  }

  /** Work that the keeper knows of: 0 is quiet. */
  get keeperWork(): number {
    return this.#keeperCounts()['workWaiting'];
  }

  /**
   * Flushes wait for memory to describe parts in, and most of it is taken: only more of it would help
   * (decision 0024). It is not when there is room that nobody gets.
   */
  get isSpent(): boolean {
    const { control, pool } = this.context;
    if (control.stall(ACTOR_KEEPER, STALL_WAIT).what !== CAUSE_MEMORY) return false;
    return 4 * pool.usedPages(KIND_VIEW) >= 3 * pool.limitPages(KIND_VIEW);
  }

  /** Parts that merges took over as they were. */
  get partsMoved(): number {
    return this.#keeperCounts()['partsMoved'];
  }

  #keeperCounts(): Record<string, number> {
    this.actors[2].publish();
    const { arena, topology } = this.context;
    return readCounters(arena, topology.counters[2], KEEPER_COUNTERS);
  }

  get evictor(): Evictor {
    return this.actors[4] as Evictor;
  }

  // ---------------------------------------------------------------- steps

  /** One tick of one actor; true when it did something. */
  tickActor(number: number): boolean {
    if (this.#closed || this.#isDead(number)) return false;
    this.#control.looks = 0;
    let worked = false;
    try {
      worked = this.actors[number].tick();
    } catch (error) {
      this.#fail(ACTOR_NAMES[number], error);
    }
    if (worked) this.worked++;
    this.#parts.trace.mix(number * 2 + (worked ? 1 : 0));
    this.#afterStep();
    return worked;
  }

  /** One actor's turn on a thread of the host; false: it sleeps. */
  stepThread(number: number): boolean {
    if (number === this.#deadThread) return false;
    const thread = this.#threads[number];
    const { clock } = this.#parts;
    if (thread.parked) {
      const rung = Atomics.load(this.context.arena.i32, thread.word) !== thread.seen;
      if (!rung && clock.ticksMs() < thread.deadline) return false;
      thread.bell.unpark();
      thread.parked = false;
      thread.next = 0;
      thread.worked = false;
    }
    thread.worked = this.tickActor(thread.actors[thread.next]) || thread.worked;
    if (++thread.next < thread.actors.length || this.#closed) return true;
    thread.next = 0;
    if (thread.worked) {
      if (thread.checking) thread.bell.unpark();
      thread.checking = false;
    } else if (thread.checking) {
      thread.checking = false;
      thread.parked = true;
      // Without the host's longest sleep: who is never rung must be noticed here.
      let ms = Infinity;
      for (const actor of thread.actors) {
        this.actors[actor].publish();
        ms = Math.min(ms, this.actors[actor].idle());
      }
      thread.deadline = clock.ticksMs() + Math.max(0, ms);
    } else {
      thread.seen = thread.bell.park();
      thread.checking = true;
    }
    thread.worked = false;
    return true;
  }

  /** When the first sleeping thread wakes by itself. */
  get nextDeadline(): number {
    let deadline = Infinity;
    for (const [number, thread] of this.#threads.entries()) {
      if (thread.parked && number !== this.#deadThread)
        deadline = Math.min(deadline, thread.deadline);
    }
    return deadline;
  }

  #isDead(actor: number): boolean {
    return this.#threads[this.#deadThread]?.actors.includes(actor) ?? false;
  }

  /** A thread ends between two ticks of its actors; the others go on. The pool's are the background's own. */
  endThread(number: number): void {
    this.#deadThread = number;
    this.#parts.trace.say(`thread ${number} ends`);
  }

  /** Whoever opened the engine hears that a thread has ended. */
  hearOfEnd(): void {
    poison(this.context, new Error(`thread ${this.#deadThread} exited`));
    this.#afterStep();
  }

  stepPool(prng: Parameters<SimPool['stepOne']>[0], fuel: number): boolean {
    if (this.#closed || this.#isDead(ACTOR_COMPACTOR)) return false;
    const worked = this.pool.stepOne(prng, fuel);
    this.#parts.trace.mix(worked ? 11 : 10);
    return worked;
  }

  /** A step of a queued program of the keeper. */
  stepQueue(prng: Parameters<SimDisk['runQueued']>[0]): boolean {
    // Between two calls of a program its thread has the say.
    if (this.#isDead(ACTOR_KEEPER)) return false;
    const before = this.storage.disk.queued;
    const worked = this.storage.disk.runQueued(prng);
    if (this.storage.disk.queued < before) this.context.threadBells[1].ring();
    this.#parts.trace.mix(worked ? 13 : 12);
    return worked;
  }

  /** The client's turn of its event loop ends: what it committed becomes a record. */
  endTurn(client: number): boolean {
    const queue = this.#endOfTurn[client];
    if (queue.length === 0) return false;
    for (const run of queue.splice(0)) run();
    this.#afterStep();
    return true;
  }

  /** The client looks at what has come, as its `#wait` does. */
  poll(client: number): void {
    this.#control.looks = 0;
    this.#clientSeen[client] = this.context.clientBells[client].park();
    this.clients[client].poll();
    this.#afterStep();
  }

  /** True when somebody rang for the client since its last poll. */
  isRung(client: number): boolean {
    const word = this.context.topology.clients[client].bell >>> 2;
    return Atomics.load(this.context.arena.i32, word) !== this.#clientSeen[client];
  }

  /** What a client did may have sent messages. */
  afterAct(): void {
    this.#control.looks = 0;
    this.#afterStep();
  }

  #fail(actor: string, error: unknown): void {
    this.failure ??= { actor, error };
    poison(this.context, error);
  }

  #afterStep(): void {
    this.#listen();
    const control = this.#control;
    const state = control.state();
    if (state >= STATE_CLOSED && !this.#closed) {
      this.#closed = true;
      this.#parts.trace.say(state === STATE_CLOSED ? 'closed' : 'poisoned');
      for (const actor of this.actors) {
        if (this.#isDead(actor.number)) continue;
        try {
          actor.onClose();
        } catch (error) {
          this.failure ??= { actor: `${ACTOR_NAMES[actor.number]} at its end`, error };
        }
      }
    }
    const frontiers = [control.applied(), control.written(), control.durable()];
    for (let i = 0; i < 3; i++) {
      if (frontiers[i] < this.#frontiers[i]) throw new SimFailure('a frontier went back');
      this.#parts.trace.mix(frontiers[i]);
    }
    this.#frontiers = frontiers;
    this.#parts.trace.mix(control.view());
    if (state !== STATE_OPEN && state !== STATE_CLOSING) return;
    const [applied, written, durable] = frontiers as [number, number, number];
    if (written > applied) throw new SimFailure(`written ${written} is above applied ${applied}`);
    if (durable > written) throw new SimFailure(`durable ${durable} is above written ${written}`);
  }

  // ---------------------------------------------------------------- listening

  #listen(): void {
    for (const tap of this.#taps) tap.take(this.#mix);
    for (let i = 0; i < this.#recordTaps.length; i++) this.#recordTaps[i].take(this.#onRecord[i]);
    this.#nextOnLine = this.#parts.model.upper;
    this.#lineTap.take(this.#onLineSlot);
    for (let i = 0; i < this.#receiptTaps.length; i++)
      this.#receiptTaps[i].take(this.#onReceiptSlot[i]);
    if (this.#isAnswered) this.#tell();
  }

  #takeRecord(client: number, slot: number): void {
    this.#mix(slot);
    const { u32 } = this.context.arena;
    if (u32[slot + KIND_WORD] !== MSG_RECORD) return;
    const number = u32[slot + RECORD.NUMBER];
    this.#pushed[client].push({ number, count: u32[slot + RECORD.TX_COUNT] });
  }

  #takeFromLine(slot: number): void {
    this.#mix(slot);
    const { u32 } = this.context.arena;
    if (u32[slot + KIND_WORD] !== MSG_RECORD) return;
    const { model } = this.#parts;
    const next = this.#nextOnLine;
    const first = getWide(u32, slot + RECORD.OFFSET);
    const count = u32[slot + RECORD.TX_COUNT];
    if (first !== next) throw new SimFailure(`offset ${first} was given where ${next} is next`);
    this.#onLine.set(first, count);
    const atMs = getWide(u32, slot + RECORD.AT_MS);
    for (let i = 0; i < count; i++) model.atMs[first + i] = atMs;
    this.#nextOnLine = next + count;
  }

  #takeReceipt(client: number, slot: number): void {
    this.#mix(slot);
    const { u32 } = this.context.arena;
    invariant(u32[slot + KIND_WORD] === MSG_RECEIPT, 'a receipt');
    const record = this.#pushed[client].shift();
    if (record?.number !== u32[slot + RECEIPT.NUMBER]) {
      throw new SimFailure('a receipt of a record that was not sent');
    }
    const refusal = u32[slot + RECEIPT.REFUSAL];
    // It will be sent again, and what follows it too: nothing is decided.
    if (refusal === REFUSAL_AGAIN) return;
    const first = refusal === 0 ? getWide(u32, slot + RECEIPT.OFFSET) : -1;
    const { count } = record;
    this.#answered[client].push({ client, first, count, refusal });
    this.#isAnswered = true;
    if (refusal !== 0) return;
    if (this.#onLine.get(first) !== count) {
      throw new SimFailure(`a receipt for ${first} of a record that is not on the line`);
    }
    this.#onLine.delete(first);
  }

  /** Receipts in the order of the offsets; a refusal comes between those of its client. */
  #tell(): void {
    const { model, onReceipt } = this.#parts;
    const answered = this.#answered.map((receipts) => receipts.splice(0));
    this.#isAnswered = false;
    const from = answered.map(() => model.upper);
    const at = answered.map(() => 0);
    const tellRefusals = (client: number): void => {
      for (;;) {
        const receipt = answered[client][at[client]];
        if (receipt === undefined || receipt.refusal === 0) return;
        at[client]++;
        onReceipt(client, { ...receipt, from: from[client] });
      }
    };
    const accepted = answered.flat().filter(({ refusal }) => refusal === 0);
    for (const receipt of accepted.toSorted((x, y) => x.first - y.first)) {
      const { client } = receipt;
      tellRefusals(client);
      at[client]++;
      onReceipt(client, { ...receipt, from: receipt.first });
      model.endRecord();
      from[client] = model.upper;
    }
    for (let client = 0; client < answered.length; client++) tellRefusals(client);
  }

  // ---------------------------------------------------------------- closing

  /** As the public face closes: what was committed goes first. */
  beginClose(): void {
    const [owner] = this.clients;
    invariant(owner !== undefined, 'somebody opened the engine');
    this.endTurn(0);
    owner.line.flush();
    this.#control.moveState(STATE_OPEN, STATE_CLOSING);
    owner.line.close();
    this.#afterStep();
  }

  /** Workers do not stop because the engine did: jobs that were asked to stop do so now. */
  endJobs(): void {
    while (this.pool.stepOne(undefined, 512));
  }

  /** The handles let go; the arena may be used again. */
  dispose(): void {
    for (const client of this.clients) client.dispose();
  }
}
