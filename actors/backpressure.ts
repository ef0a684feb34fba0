/**
 * When the next flush may begin. Below the soft mark a merge delays nothing; above it flushes, and so
 * ordering, slow down in proportion; above the hard one nothing is flushed until a merge has caught up.
 * Never for work that nobody can do: pressure counts only where there is something to merge. A part of
 * the keeper.
 */
import { MiB, runsHard } from '../core/base/limits.ts';
import type { Counters } from '../core/shared/counters.ts';
import { backpressure, spacePressure } from '../core/spine/policy.ts';
import type { ActorContext } from './actor.ts';
import { KEEPER_COUNTERS, indexIn } from './counters.ts';
import { CAUSE_DEBT, CAUSE_DISK, CAUSE_MEMORY } from './stalls.ts';
import type { Waits } from './stalls.ts';

const FLUSH_DELAY_MS: number = indexIn(KEEPER_COUNTERS, 'flushDelayMs');
const DEBT_BYTES: number = indexIn(KEEPER_COUNTERS, 'debtBytes');
const LIVE_RUNS: number = indexIn(KEEPER_COUNTERS, 'liveRunsMost');

/** Debt worth this long of flushing is nothing to wait for. */
const DEBT_SECONDS = 4 * 10;
/** Nor is so little, whatever the rate. */
const DEBT_BYTES_MIN: number = 64 * MiB;
/** A flush is delayed by so much at the most; only the hard mark holds it longer. */
const DELAY_MS_MAX = 10_000;
/** What holds a flush for good ends with a merge, which rings; or when merged files are gone, which does not. */
const HELD_LOOK_MS = 100;
/** Bytes that are only thought to be given back slow flushes down: a quarter of the rate stays. */
const SPACE_SHARE_UNKNOWN_MAX = 0.75;
/** Until there would be twice too many: then the merge that tells is waited for. */
const SPACE_UNKNOWN_HARD = 2.5;
/** The weight of the newest flush in the rate. */
const RATE_WEIGHT = 0.25;

/** What a collection adds to the pressure. */
export type Load = {
  readonly runs: number;
  /** Bytes that wait for a merge. */
  readonly debt: number;
  readonly space: Parameters<typeof spacePressure>[0];
  /** Bytes to be given back that the next flush will add, or that have been and are being deleted. */
  readonly coming: number;
  /** A merge has told what is overwritten; else `space` is a thought. */
  readonly isSpaceKnown: boolean;
  /** A merge of it runs, or is about to; or what one has read is being deleted. */
  readonly isMerging: boolean;
};

/** How much memory there is to describe parts in. */
export type PartRoom = {
  /** Not what the flush makes fits. */
  readonly isSpent: boolean;
  /** So much is taken that merges come first. */
  readonly isCrowded: boolean;
};

const AMPLE: PartRoom = { isSpent: false, isCrowded: false };

export class Backpressure {
  readonly #counters: Counters;
  /** The keeper's, which says what it waits for. */
  readonly #waits: Waits;
  readonly #flushBytes: number;
  /** Of flush jobs: what they write in a second, and how long one takes. Not how often they come. */
  #bytesPerSecond = 0;
  #jobMs = 0;
  #lastAt = Number.NEGATIVE_INFINITY;
  #share = 0;
  /** The flush that waits was first refused at this time for its share; -1: none waits. */
  #delayedAt = -1;
  #noRoomUntil = Number.NEGATIVE_INFINITY;

  constructor(context: ActorContext, counters: Counters, waits: Waits) {
    this.#waits = waits;
    this.#counters = counters;
    this.#flushBytes = context.config.memtableBytes;
  }

  /** A flush job took so long and wrote so much. */
  onFlushed(ms: number, bytes: number): void {
    const rate = (bytes * 1_000) / Math.max(1, ms);
    const weight = this.#bytesPerSecond === 0 ? 1 : RATE_WEIGHT;
    this.#bytesPerSecond += weight * (rate - this.#bytesPerSecond);
    this.#jobMs += weight * (ms - this.#jobMs);
  }

  /** A flush found the disk full: the next one is tried at `untilMs`. */
  onDiskFull(untilMs: number): void {
    this.#noRoomUntil = untilMs;
  }

  /** True when a flush that is there to be done may begin, beside no other; counts what it waits for. */
  mayFlush(nowMs: number, loads: Iterable<Load>, room: PartRoom = AMPLE): boolean {
    const isMerging = this.#weigh(loads);
    const isShort = room.isSpent || (room.isCrowded && isMerging);
    if (isShort) this.#share = 1;
    const isFull = nowMs < this.#noRoomUntil;
    if (isFull) this.#waits.begin(CAUSE_DISK);
    else if (isShort) this.#waits.begin(CAUSE_MEMORY);
    else if (this.#share >= 1) this.#waits.begin(CAUSE_DEBT);
    else this.#end();
    if (isFull || this.#share >= 1) return false;
    if (nowMs >= this.#nextAt()) {
      if (this.#delayedAt >= 0) {
        this.#counters.add(FLUSH_DELAY_MS, Math.ceil(nowMs - this.#delayedAt));
        this.#delayedAt = -1;
      }
      this.#lastAt = nowMs;
      return true;
    }
    if (this.#delayedAt < 0) this.#delayedAt = nowMs;
    return false;
  }

  /** Nothing waits to be flushed, so nothing waits for room. */
  onNothingToFlush(): void {
    this.#end();
    this.#delayedAt = -1;
  }

  /** A full disk is over when a flush has succeeded, which its sender tells. */
  #end(): void {
    const { cause } = this.#waits;
    if (cause === CAUSE_DEBT || cause === CAUSE_MEMORY) this.#waits.end();
  }

  /** How long a delayed flush has to wait yet, 1 at least; Infinity when none waits. */
  waitMs(nowMs: number): number {
    if (this.#delayedAt < 0) return Infinity;
    return this.#share >= 1 ? HELD_LOOK_MS : Math.max(1, this.#nextAt() - nowMs);
  }

  /** At share s flushes come at 1 - s of the rate at which they could. */
  #nextAt(): number {
    if (this.#share === 0) return Number.NEGATIVE_INFINITY;
    return this.#lastAt + Math.min(DELAY_MS_MAX, this.#jobMs / (1 - this.#share));
  }

  /** True when there is something that merges can do. */
  #weigh(loads: Iterable<Load>): boolean {
    const debtSoft = Math.max(DEBT_BYTES_MIN, DEBT_SECONDS * this.#bytesPerSecond);
    let debt = 0;
    let runs = 0;
    let isMerging = false;
    let share = 0;
    for (const load of loads) {
      runs = Math.max(runs, load.runs);
      debt += load.debt;
      if (!load.isMerging) continue;
      isMerging = true;
      if (load.runs > runsHard) share = 1;
      share = Math.max(share, backpressure(load.runs, 0, 0));
      const ofSpace = spacePressure(load.space, this.#flushBytes, load.coming);
      const isTooMuch = load.isSpaceKnown || ofSpace >= SPACE_UNKNOWN_HARD;
      share = Math.max(share, Math.min(isTooMuch ? 1 : SPACE_SHARE_UNKNOWN_MAX, ofSpace));
    }
    if (isMerging) share = Math.max(share, backpressure(0, debt, debtSoft));
    this.#share = share;
    this.#counters.values[DEBT_BYTES] = debt;
    this.#counters.values[LIVE_RUNS] = runs;
    return isMerging;
  }
}
