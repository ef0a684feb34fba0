/**
 * How fast records are ordered while sealed generations wait for their flush: so fast that what memory has
 * left lasts until the next one is expected to be given back. Commits then slow down together with the
 * flushes, by milliseconds each, where they would else run on and stand still for the whole of one. Delays
 * nothing while nothing waits for a flush. A part of the sequencer, which says what is sealed and freed.
 *
 *   a record takes the share s of what is left; the next may come after   s * horizon / HASTE
 *   horizon: how long a flush takes of late, or since when this one is out, whichever is longer
 *
 * So what is left is never used up by a flush that is late, only ever more slowly used; until a delay is as
 * long as DELAY_MS_MAX.
 */

/**
 * At 1 a third of what is left would still be there when the next generation comes back: room that the
 * flushes had better use. At 2 a seventh is.
 */
const HASTE = 2;
/** Nobody is delayed for longer; then what is left goes at this rate, and after that commits stand. */
const DELAY_MS_MAX = 100;
/** Less is added to the next delay: sleeping takes about as long. */
const DELAY_MS_MIN = 1;
/** A thread that woke late makes up for so much. */
const LATE_MS_MAX = 20;
/** The weight of the newest flush. */
const PERIOD_WEIGHT = 0.3;

export class Pace {
  #periodMs = 0;
  /** Since when the flush is out that is to give memory back next; -1: nothing is sealed. */
  #sinceMs = -1;
  #nextAt = Number.NEGATIVE_INFINITY;

  onSealed(nowMs: number): void {
    if (this.#sinceMs < 0) this.#sinceMs = nowMs;
  }

  /** A sealed generation was given back; `isMore`: another is sealed. */
  onFreed(nowMs: number, isMore: boolean): void {
    const ms = nowMs - this.#sinceMs;
    this.#periodMs += (this.#periodMs === 0 ? 1 : PERIOD_WEIGHT) * (ms - this.#periodMs);
    this.#sinceMs = isMore ? nowMs : -1;
    this.#nextAt = Number.NEGATIVE_INFINITY;
  }

  /** A record was taken that used up `share` of what was left, 0 to 1. */
  onTaken(nowMs: number, share: number): void {
    if (this.#sinceMs < 0) return;
    const horizon = Math.max(this.#periodMs, nowMs - this.#sinceMs);
    const ms = Math.min(DELAY_MS_MAX, (share * horizon) / HASTE);
    this.#nextAt = Math.max(this.#nextAt, nowMs - LATE_MS_MAX) + ms;
  }

  /** Until the next record may be taken; 0: now. */
  waitMs(nowMs: number): number {
    const ms = this.#nextAt - nowMs;
    return ms < DELAY_MS_MIN ? 0 : ms;
  }
}
