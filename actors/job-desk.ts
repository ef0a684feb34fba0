/**
 * Sends jobs to the compactor and takes their results: JSON in the keeper's pages both ways, the room
 * for an answer reserved with the question. A part of the keeper, on its thread; it chooses no job.
 */
import { invariant } from '../core/base/assert.ts';
import { MiB } from '../core/base/limits.ts';
import { fromPlainError, TidemarkError, toPlainError } from '../core/base/errors.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { ActorContext } from './actor.ts';
import type { JobOutcome } from './compactor.ts';
import type { Job } from './jobs.ts';
import {
  CREDIT,
  JOB,
  KIND_WORD,
  MSG_CANCEL,
  MSG_CREDIT,
  MSG_JOB,
  MSG_RESULT,
  RESULT,
} from './messages.ts';
import { freeText, readText, reserveText, writeText } from './text-blocks.ts';
import { THREAD_BACKGROUND } from './topology.ts';
import type { ViewRoom } from './view-room.ts';

/** Room for a job's answer: per part that it may name, and for the rest. */
export const REPLY_BYTES_FIXED = 8_192;
export const REPLY_BYTES_PER_PART = 80;

/** What went wrong, as an error of ours. */
export function asFailure(failure: unknown): TidemarkError {
  return failure instanceof TidemarkError ? failure : fromPlainError(toPlainError(failure));
}

/** A job that failed is tried again after 1 s, doubling to 5 min. */
export function retryMs(failures: number): number {
  return Math.min(300_000, 1_000 * 2 ** (failures - 1));
}

/** Jobs above this are large: one worker is kept from them. */
export const LARGE_JOB_BYTES: number = 64 * MiB;

/** Flushes at a time: they have a worker of their own. */
const FLUSHES_MAX = 1;

/** Called once with what became of the job. */
export type OnOutcome = (outcome: JobOutcome) => void;

type Running = {
  readonly text: number;
  readonly reply: number;
  readonly large: boolean;
  readonly isFlush: boolean;
  readonly onOutcome: OnOutcome;
};

export class JobDesk {
  readonly #context: ActorContext;
  readonly #room: ViewRoom;
  readonly #inbox: RingConsumer;
  readonly #outbox: Outbox;
  readonly #running: Map<number, Running> = new Map();
  #workers = 0;
  #flushes = 0;
  #nextId = 1;

  constructor(context: ActorContext, room: ViewRoom) {
    const { topology, threadBells } = context;
    this.#context = context;
    this.#room = room;
    this.#inbox = inboxOf(context, topology.compactorToKeeper);
    this.#outbox = new Outbox(context, topology.keeperToCompactor, threadBells[THREAD_BACKGROUND]);
  }

  get running(): number {
    return this.#running.size;
  }

  /** Number of the next job. */
  get nextId(): number {
    return this.#nextId;
  }

  /** A worker is free for another job that is no flush. */
  get hasCredit(): boolean {
    return this.#running.size - this.#flushes < this.#workers;
  }

  /** The worker that is kept for flushes is free. */
  get hasCreditForFlush(): boolean {
    return this.#workers > 0 && this.#flushes < FLUSHES_MAX;
  }

  /** A job over so many bytes: one worker is kept from those. */
  isLarge(bytes: number): boolean {
    return bytes > LARGE_JOB_BYTES;
  }

  /** A large job would leave a worker for small ones. */
  get hasCreditForLarge(): boolean {
    let large = 0;
    for (const job of this.#running.values()) if (job.large) large++;
    return large < Math.max(1, this.#workers - 1);
  }

  /** Sends a job; false when memory or the ring has no room for it now. */
  send(job: Job, replyBytes: number, large: boolean, onOutcome: OnOutcome): boolean {
    const { arena } = this.#context;
    const slot = this.#outbox.claim();
    if (slot < 0) return false;
    const json = JSON.stringify(job);
    const text = reserveText(arena, this.#room, json.length);
    if (text === 0) return false;
    const reply = reserveText(arena, this.#room, replyBytes);
    if (reply === 0) {
      freeText(arena, this.#room, text);
      return false;
    }
    const id = this.#nextId++;
    const isFlush = job.kind === 'flush';
    this.#running.set(id, { text, reply, large, isFlush, onOutcome });
    if (isFlush) this.#flushes++;
    const { u32 } = this.#outbox.ring;
    u32[slot + KIND_WORD] = MSG_JOB;
    u32[slot + JOB.ID] = id;
    u32[slot + JOB.ADDRESS] = text;
    u32[slot + JOB.BYTES] = writeText(arena, text, json);
    u32[slot + JOB.REPLY] = reply;
    u32[slot + JOB.LARGE] = large ? 1 : 0;
    this.#outbox.send();
    return true;
  }

  /** Takes what the compactor says. */
  take(): boolean {
    let worked = false;
    const { u32 } = this.#inbox;
    for (let slot = this.#inbox.peek(); slot >= 0; slot = this.#inbox.peek()) {
      if (u32[slot + KIND_WORD] === MSG_CREDIT) {
        this.#workers += u32[slot + CREDIT.JOBS];
        this.#inbox.pop();
      } else {
        invariant(u32[slot + KIND_WORD] === MSG_RESULT, 'a message of the compactor');
        const id = u32[slot + RESULT.ID];
        const bytes = u32[slot + RESULT.BYTES];
        this.#inbox.pop();
        this.#onResult(id, bytes);
      }
      worked = true;
    }
    return worked;
  }

  #onResult(id: number, bytes: number): void {
    const { arena } = this.#context;
    const job = this.#running.get(id);
    invariant(job !== undefined, 'a result of a job that runs', id);
    this.#running.delete(id);
    if (job.isFlush) this.#flushes--;
    const outcome = JSON.parse(readText(arena, job.reply, bytes)) as JobOutcome;
    freeText(arena, this.#room, job.text);
    freeText(arena, this.#room, job.reply);
    job.onOutcome(outcome);
  }

  /** Asks every job to stop; each still answers. */
  cancelAll(): void {
    for (const id of this.#running.keys()) this.cancel(id);
  }

  /** Asks a job to stop; it still answers. Without room for the message it goes on. */
  cancel(id: number): void {
    const slot = this.#outbox.claim();
    if (slot < 0) return;
    const { u32 } = this.#outbox.ring;
    u32[slot + KIND_WORD] = MSG_CANCEL;
    u32[slot + JOB.ID] = id;
    this.#outbox.send();
  }
}
