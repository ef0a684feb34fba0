/**
 * Runs jobs: hands them to the pool, relays what became of them. It chooses none and keeps no state
 * of the store. The keeper's jobs come as JSON in the keeper's pages, and the answer goes into the
 * reply block that was reserved with the job; durability's requests for room fit a slot.
 *
 *   from        kind      what happens
 *   keeper      JOB       parsed and started; RESULT back
 *   keeper      CANCEL    asked to stop; RESULT (not OK) back all the same
 *   durability  PREPARE   zeros or a spare segment are made; PREPARED back
 *   durability  CANCEL    all that were asked for are to stop; PREPARED (not OK) back all the same
 */
import { invariant } from '../core/base/assert.ts';
import { isFullDisk, toPlainError } from '../core/base/errors.ts';
import type { PlainError } from '../core/base/errors.ts';
import { segmentPath } from '../core/storage/names.ts';
import { ACTOR_COMPACTOR } from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { Actor, ActorContext } from './actor.ts';
import { COMPACTOR_COUNTERS, indexIn, makeCounters } from './counters.ts';
import type { JobAnswer, JobPool } from './job-pool.ts';
import { JobWatch } from './job-watch.ts';
import type { Job, PreparationResult } from './jobs.ts';
import {
  CREDIT,
  JOB,
  KIND_WORD,
  MSG_CANCEL,
  MSG_CREDIT,
  MSG_JOB,
  MSG_PREPARE,
  MSG_PREPARED,
  MSG_RESULT,
  PREPARE,
  PREPARE_RECYCLE,
  PREPARE_ZERO,
  RESULT,
  getWide,
  setWide,
} from './messages.ts';
import { readText, writeText } from './text-blocks.ts';
import { THREAD_BACKGROUND, THREAD_WRITE } from './topology.ts';

const JOBS: number = indexIn(COMPACTOR_COUNTERS, 'jobs');
const JOBS_LARGE: number = indexIn(COMPACTOR_COUNTERS, 'jobsLarge');
const JOB_MS: number = indexIn(COMPACTOR_COUNTERS, 'jobMs');
const PREPARES: number = indexIn(COMPACTOR_COUNTERS, 'prepares');
const FAILED: number = indexIn(COMPACTOR_COUNTERS, 'failed');
const STUCK: number = indexIn(COMPACTOR_COUNTERS, 'stuck');

/** What the keeper is told of a job: its result, or why it failed. */
export type JobOutcome = { readonly value?: unknown; readonly failure?: PlainError };

type Running = {
  /** Where the keeper's answer goes; 0 for durability's. */
  readonly reply: number;
  readonly startedAt: number;
  readonly prepare?: { what: number; seq: number; from: number; to: number };
};

export class Compactor implements Actor {
  readonly number: number = ACTOR_COMPACTOR;
  readonly #context: ActorContext;
  readonly #pool: JobPool;
  readonly #watch: JobWatch;
  readonly #fromKeeper: RingConsumer;
  readonly #keeper: Outbox;
  readonly #fromDurability: RingConsumer;
  readonly #durability: Outbox;
  readonly #counters: Counters;
  /** By pool id: the keeper's are its own, even; durability's are odd. */
  readonly #running: Map<number, Running> = new Map();
  readonly #done: JobAnswer[] = [];
  #nextPrepare = 1;
  #creditTold = false;

  constructor(context: ActorContext, pool: JobPool) {
    const { topology } = context;
    this.#context = context;
    this.#pool = pool;
    this.#watch = new JobWatch(pool);
    this.#fromKeeper = inboxOf(context, topology.keeperToCompactor);
    this.#keeper = new Outbox(
      context,
      topology.compactorToKeeper,
      context.threadBells[THREAD_BACKGROUND],
    );
    this.#fromDurability = inboxOf(context, topology.durabilityToCompactor);
    this.#durability = new Outbox(
      context,
      topology.compactorToDurability,
      context.threadBells[THREAD_WRITE],
    );
    this.#counters = makeCounters(
      context.arena,
      topology.counters[ACTOR_COMPACTOR],
      COMPACTOR_COUNTERS,
    );
  }

  tick(): boolean {
    let worked = this.#tellCredit();
    worked = this.#takeJobs() || worked;
    worked = this.#takePrepares() || worked;
    for (let answer = this.#pool.poll(); answer !== undefined; answer = this.#pool.poll()) {
      this.#done.push(answer);
    }
    while (this.#done.length > 0 && this.#answer(this.#done[0])) {
      this.#done.shift();
      worked = true;
    }
    this.#counters.add(STUCK, this.#watch.look(this.#context.clock.ticksMs()));
    return worked;
  }

  idle(): number {
    return this.#watch.idle;
  }

  publish(): void {
    this.#counters.publish();
  }

  onClose(): void {
    for (const id of this.#running.keys()) this.#pool.cancel(id);
  }

  #tellCredit(): boolean {
    if (this.#creditTold) return false;
    this.#creditTold = true;
    const slot = this.#keeper.claim();
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = MSG_CREDIT;
    u32[slot + CREDIT.JOBS] = this.#pool.workers;
    this.#keeper.send();
    return true;
  }

  #takeJobs(): boolean {
    const slot = this.#fromKeeper.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromKeeper;
    const id = u32[slot + JOB.ID] * 2;
    if (u32[slot + KIND_WORD] === MSG_CANCEL) {
      this.#pool.cancel(id);
    } else {
      invariant(u32[slot + KIND_WORD] === MSG_JOB, 'a message of the keeper');
      const { arena } = this.#context;
      const text = readText(arena, u32[slot + JOB.ADDRESS], u32[slot + JOB.BYTES]);
      this.#running.set(id, {
        reply: u32[slot + JOB.REPLY],
        startedAt: this.#context.clock.ticksMs(),
      });
      this.#counters.add(JOBS, 1);
      if (u32[slot + JOB.LARGE] === 1) this.#counters.add(JOBS_LARGE, 1);
      this.#pool.start(id, JSON.parse(text) as Job);
      this.#watch.begin(id);
    }
    this.#fromKeeper.pop();
    return true;
  }

  #takePrepares(): boolean {
    const slot = this.#fromDurability.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromDurability;
    if (u32[slot + KIND_WORD] === MSG_CANCEL) {
      this.#fromDurability.pop();
      for (const [id, { prepare }] of this.#running) {
        if (prepare !== undefined) this.#pool.cancel(id);
      }
      return true;
    }
    invariant(u32[slot + KIND_WORD] === MSG_PREPARE, 'durability asks for room');
    const prepare = {
      what: u32[slot + PREPARE.WHAT],
      seq: u32[slot + PREPARE.SEQ],
      from: getWide(u32, slot + PREPARE.FROM),
      to: getWide(u32, slot + PREPARE.TO),
    };
    this.#fromDurability.pop();
    const { seq, from, to } = prepare;
    const id = this.#nextPrepare;
    this.#nextPrepare += 2;
    const startedAt = this.#context.clock.ticksMs();
    this.#running.set(id, { reply: 0, startedAt, prepare });
    this.#counters.add(PREPARES, 1);
    const job: Job =
      prepare.what === PREPARE_ZERO
        ? { kind: 'zero', path: segmentPath(seq), seq, from, to }
        : {
            kind: 'spare',
            seq,
            bytes: to,
            reuseSeq: from,
            recycle: prepare.what === PREPARE_RECYCLE,
          };
    this.#pool.start(id, job);
    this.#watch.begin(id);
    return true;
  }

  #answer(answer: JobAnswer): boolean {
    const running = this.#running.get(answer.id);
    invariant(running !== undefined, 'a job answers once', answer.id);
    const told =
      running.prepare === undefined
        ? this.#answerKeeper(answer, running)
        : this.#answerDurability(answer, running.prepare);
    if (!told) return false;
    this.#running.delete(answer.id);
    this.#watch.end(answer.id);
    this.#counters.add(JOB_MS, Math.ceil(this.#context.clock.ticksMs() - running.startedAt));
    if (answer.failure !== undefined) this.#counters.add(FAILED, 1);
    return true;
  }

  #answerKeeper(answer: JobAnswer, running: Running): boolean {
    const slot = this.#keeper.claim();
    if (slot < 0) return false;
    const { value, failure } = answer;
    let outcome: JobOutcome = failure === undefined ? { value } : { failure };
    const { arena } = this.#context;
    let bytes = writeText(arena, running.reply, JSON.stringify(outcome));
    if (bytes < 0) {
      const error = new Error(`the result of job ${answer.id} does not fit its reply block`);
      outcome = { failure: toPlainError(error) };
      bytes = writeText(arena, running.reply, JSON.stringify(outcome));
    }
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = MSG_RESULT;
    u32[slot + RESULT.ID] = answer.id / 2;
    u32[slot + RESULT.OK] = outcome.failure === undefined ? 1 : 0;
    u32[slot + RESULT.BYTES] = bytes;
    this.#keeper.send();
    return true;
  }

  #answerDurability(answer: JobAnswer, prepare: NonNullable<Running['prepare']>): boolean {
    const slot = this.#durability.claim();
    if (slot < 0) return false;
    const { u32 } = this.#durability.ring;
    u32[slot + KIND_WORD] = MSG_PREPARED;
    u32[slot + PREPARE.WHAT] = prepare.what;
    u32[slot + PREPARE.SEQ] = prepare.seq;
    setWide(u32, slot + PREPARE.FROM, prepare.from);
    setWide(u32, slot + PREPARE.TO, prepare.to);
    u32[slot + PREPARE.OK] = answer.failure === undefined ? 1 : 0;
    u32[slot + PREPARE.NO_SPACE] =
      answer.failure !== undefined && isFullDisk(answer.failure) ? 1 : 0;
    const done = answer.value as PreparationResult | undefined;
    u32[slot + PREPARE.RECYCLED] = done?.recycled === true ? 1 : 0;
    this.#durability.send();
    return true;
  }
}
