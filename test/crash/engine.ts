/**
 * One incarnation of the engine on one thread over a simulated disk, driven to a goal: all five actors,
 * the pool and one client, ticked in order or in an order drawn from a seed, the clock moved only when
 * nothing else is left to do. Same disk and seed, same calls. Used by the crash harness; one arena
 * serves one incarnation after the other.
 */
import type { Prng } from '../../core/base/prng.ts';
import { MiB } from '../../core/base/limits.ts';
import { Arena } from '../../core/shared/arena.ts';
import {
  STATE_CLOSED,
  STATE_CLOSING,
  STATE_OPEN,
  STATE_POISONED,
} from '../../core/shared/control.ts';
import type { Actor, ActorContext, EngineConfig } from '../../actors/actor.ts';
import { Client } from '../../actors/client.ts';
import { Collection } from '../../actors/collection.ts';
import { utf8 } from '../../actors/encodings.ts';
import { makeContext, poison, resetArena } from '../../actors/host.ts';
import { backgroundActors, writeActors } from '../../actors/house.ts';
import { StepPool } from '../../actors/job-pool.ts';
import { makeMachine } from '../../actors/jobs.ts';
import type { Job, JobMachine } from '../../actors/jobs.ts';
import { Transaction } from '../../actors/transaction.ts';
import { compressedPath, segmentPath } from '../../core/storage/names.ts';
import { SimClock } from '../sim/clock.ts';
import { SimCrash } from '../sim/disk.ts';
import type { SimDisk } from '../sim/disk.ts';
import type { Op } from './model.ts';

const ARENA_BYTES: number = 32 * MiB;
/** Rounds in which any goal is reached. */
const ROUNDS_MAX = 500_000;
/** So long a wait without any work is a wait for ever. */
const IDLE_MS_MAX = 120_000;

export type How = {
  readonly segmentBytes: number;
  readonly memtableBytes: number;
  readonly synced: boolean;
};

/** When jobs go on, and how they end before their time. */
export type JobPace = {
  /** The pool has its turn. */
  readonly mayStep: () => boolean;
  /** Asked before each step: the worker dies, and leaves its job as it is. */
  readonly dies: (job: Job) => boolean;
  /** A step was done; `isOver`: it was the last, or failed. */
  readonly onStep: (job: Job, isOver: boolean) => void;
};

/** What ended an incarnation before its time. */
export class EngineFailure extends Error {
  override readonly name: string = 'EngineFailure';
}

/** Everything of a context that outlives an incarnation: the arena and its drawing. */
let house: ActorContext | undefined;
let identities = 0;

/**
 * What a job that has answered says is on disk and is not: room for the log, which a full disk may not
 * take back nor a sync wait for; the room that a compressed segment gave back.
 */
function lackingOf(disk: SimDisk, job: Job): string | undefined {
  const isThere = (path: string, from: number, to: number): boolean =>
    disk.sizeOf(path) >= to && disk.isDurable(path, from, to);
  if (job.kind === 'zero') {
    return isThere(job.path, job.from, job.to) ? undefined : `${job.path} has no zeros on disk`;
  }
  if (job.kind === 'spare') {
    const path = segmentPath(job.seq);
    return isThere(path, 0, job.bytes) ? undefined : `${path} is no spare on disk`;
  }
  if (job.kind === 'compress' && job.request.codec !== 0) {
    const { seq } = job.request;
    if (disk.sizeOf(segmentPath(seq)) >= 0) return `${segmentPath(seq)} is there as it was`;
    const paths = [segmentPath(seq), compressedPath(seq)];
    return paths.every((path) => disk.isDurable(path))
      ? undefined
      : `${paths.join()} may come back`;
  }
  return undefined;
}

/** Did the process die because it was told to? */
export function isDeath(error: unknown): boolean {
  for (let at = error; at instanceof Error; at = at.cause) if (at instanceof SimCrash) return true;
  return String(error).includes('the process died');
}

export class Incarnation {
  readonly disk: SimDisk;
  readonly client: Client;
  readonly clock: SimClock = new SimClock();
  readonly #context: ActorContext;
  readonly #actors: readonly Actor[];
  readonly #pool: StepPool;
  readonly #schedule: Prng | undefined;
  readonly #endOfTurn: (() => void)[] = [];
  readonly #handles: Map<number, Collection<string, string>> = new Map();
  #failure: unknown;
  #over = false;
  #disposed = false;
  /** Where calls of the disk are made to fail, jobs may fail too. */
  toleratesJobFailures = false;
  /** Undefined: jobs go on whenever there is a turn, to their end. */
  pace: JobPace | undefined;

  constructor(disk: SimDisk, how: How, schedule?: Prng, more: Partial<EngineConfig> = {}) {
    const identity = Buffer.alloc(16, 0x5a);
    identity.writeUInt32LE(++identities);
    const config: EngineConfig = {
      directory: 'crash',
      synced: how.synced,
      syncIntervalMs: 20,
      memtableBytes: how.memtableBytes,
      segmentBytes: how.segmentBytes,
      mergeThreads: 2,
      history: { offsets: 0 },
      readOnly: false,
      createIfMissing: true,
      errorIfExists: false,
      strictTail: false,
      breakLock: false,
      newLogId: identity.toString('base64'),
      holder: undefined,
      ...more,
    };
    this.disk = disk;
    this.#schedule = schedule;
    house ??= makeContext(Arena.create(ARENA_BYTES).buffer, config, disk, this.clock);
    const context = { ...house, config, storage: disk, clock: this.clock };
    resetArena(context);
    this.#context = context;
    this.#pool = new StepPool((job) => this.#watched(job, makeMachine(job, disk, context.arena)));
    this.#actors = [...writeActors(context), ...backgroundActors(context, this.#pool)];
    const later = (run: () => void): void => {
      this.#endOfTurn.push(run);
    };
    this.client = new Client(context, 0, { kick: () => {}, endOfTurn: later, nextTurn: later });
  }

  /** The pool answers for a job that failed; nobody else would hear why. */
  #watched(job: Job, machine: JobMachine): JobMachine {
    return {
      step: (fuel) => {
        if (this.pace?.dies(job) === true) throw new Error('worker died');
        try {
          const more = machine.step(fuel);
          this.pace?.onStep(job, !more);
          return more;
        } catch (error) {
          this.pace?.onStep(job, true);
          if (error instanceof SimCrash || !this.toleratesJobFailures) this.#failure ??= error;
          throw error;
        }
      },
      cancel: () => machine.cancel(),
      result: () => {
        const result = machine.result();
        const missing = lackingOf(this.disk, job);
        if (missing !== undefined) this.#failure ??= new EngineFailure(missing);
        return result;
      },
    };
  }

  // ---------------------------------------------------------------- frontiers

  get durable(): number {
    return this.#context.control.durable();
  }

  get written(): number {
    return this.#context.control.written();
  }

  get applied(): number {
    return this.#context.control.applied();
  }

  get visible(): number {
    return this.client.reader.visible();
  }

  get failure(): unknown {
    return this.#failure;
  }

  // ---------------------------------------------------------------- steps

  #tick(number: number): boolean {
    if (this.#over) return false;
    try {
      return this.#actors[number]?.tick() ?? false;
    } catch (error) {
      this.#failure ??= error;
      poison(this.#context, error);
      return false;
    }
  }

  /** The client's turn ends: what it has committed becomes a record. */
  endTurn(): boolean {
    const runs = this.#endOfTurn.splice(0);
    for (const run of runs) run();
    return runs.length > 0;
  }

  #wholeRound(): boolean {
    let worked = this.endTurn();
    for (let i = 0; i < this.#actors.length; i++) worked = this.#tick(i) || worked;
    worked = this.disk.runQueued() || worked;
    worked = this.#stepPool() || worked;
    this.client.poll();
    return worked;
  }

  #stepPool(): boolean {
    return (this.pace?.mayStep() ?? true) && this.#pool.step();
  }

  /** True when anybody did anything. */
  round(): boolean {
    const prng = this.#schedule;
    let worked = false;
    if (prng !== undefined) {
      for (let i = 0; i < this.#actors.length; i++) {
        if (prng.chance(0.6)) worked = this.#tick(i) || worked;
      }
      if (prng.chance(0.4)) worked = this.disk.runQueued(prng) || worked;
      if (prng.chance(0.4)) worked = this.#stepPool() || worked;
    }
    worked = worked || this.#wholeRound();
    this.#look();
    return worked;
  }

  #look(): void {
    if (this.#over) return;
    const state = this.#context.control.state();
    if (state < STATE_CLOSED) return;
    this.#over = true;
    for (const actor of this.#actors) {
      try {
        actor.onClose();
      } catch {
        // A disk that has died takes nothing back.
      }
    }
    if (state === STATE_POISONED) {
      this.#failure ??= new EngineFailure(this.#context.control.failureJson());
    }
  }

  /** Works until `isReached`; throws what ended the engine. */
  pump(isReached: () => boolean, what: string): void {
    let idleMs = 0;
    for (let i = 0; i < ROUNDS_MAX; i++) {
      if (this.#failure !== undefined) throw this.#failure;
      if (isReached()) return;
      if (this.round()) {
        idleMs = 0;
        continue;
      }
      let ms = 1_000;
      for (const actor of this.#actors) ms = Math.min(ms, actor.idle());
      idleMs += Math.max(1, ms);
      this.clock.advance(Math.max(1, ms));
      if (idleMs > IDLE_MS_MAX) break;
    }
    throw new EngineFailure(`never reached: ${what}`);
  }

  /** Does what there is to do within `ms` of its time. */
  rest(ms: number): void {
    const until = this.clock.ticksMs() + ms;
    this.pump(() => this.clock.ticksMs() >= until, 'the end of a rest');
  }

  /** Work, as little as there may be. */
  rounds(count: number): void {
    for (let i = 0; i < count; i++) {
      this.round();
      if (this.#failure !== undefined) throw this.#failure;
    }
  }

  // ---------------------------------------------------------------- life

  open(): this {
    const { control } = this.#context;
    this.pump(() => control.state() === STATE_OPEN, 'open');
    this.client.poll();
    return this;
  }

  handle(id: number): Collection<string, string> {
    let handle = this.#handles.get(id);
    if (handle === undefined) {
      const refuse = (): Promise<never> => Promise.reject(new TypeError('not here'));
      handle = new Collection(this.client, `#${id}`, id, utf8, utf8, refuse);
      this.#handles.set(id, handle);
    }
    return handle;
  }

  /** Commits a transaction; what becomes of it the frontiers tell. */
  commit(ops: readonly Op[]): void {
    const transaction = new Transaction(this.client);
    for (const { collection, key, value } of ops) {
      if (value === undefined) transaction.delete(this.handle(collection), key);
      else transaction.put(this.handle(collection), key, value);
    }
    transaction.commit().catch(() => {});
  }

  /** All rows of a collection, at a time or now. */
  rowsOf(id: number, asOf?: number): [string, string][] {
    return [...this.handle(id).entries(asOf === undefined ? {} : { asOf })];
  }

  /** One row of a collection at a time. */
  rowOf(id: number, key: string, asOf: number): string | undefined {
    return this.handle(id).getSync(key, { asOf });
  }

  sinceOf(id: number): number {
    return this.handle(id).since;
  }

  /** Waits for an answer of the engine. */
  async answered(promise: Promise<unknown>): Promise<void> {
    let settled = false;
    let failure: unknown;
    promise.then(
      () => (settled = true),
      (error: unknown) => {
        settled = true;
        failure = error;
      },
    );
    for (let i = 0; !settled; i++) {
      for (let turn = 0; turn < 8; turn++) await Promise.resolve();
      if (settled) break;
      if (i > ROUNDS_MAX) throw new EngineFailure('never answered');
      if (this.#failure !== undefined) throw this.#failure;
      if (!this.round()) this.clock.advance(1);
    }
    if (failure !== undefined) throw failure;
  }

  close(): void {
    const { control } = this.#context;
    this.client.line.flush();
    control.moveState(STATE_OPEN, STATE_CLOSING);
    this.client.line.close();
    this.pump(() => control.state() === STATE_CLOSED, 'closed');
    this.dispose();
  }

  /** The process ends here: nothing more is done. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.client.dispose();
  }
}
