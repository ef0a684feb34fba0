/**
 * How fast records are ordered while sealed generations wait for their flush: so fast that what memory has
 * left lasts until the next one is expected to be given back. Commits then slow down together with the
 * flushes, by milliseconds each, where they would else run on and stand still for the whole of one. Delays
 * nothing while nothing waits for a flush. A part of the sequencer, which says what is sealed and freed.
 *
 *   a record takes the share s of what is left; the next may come after   s * horizon
 *   horizon: how long a flush takes at the most of late (mean and DEVIATIONS mean deviations), or since when
 *   this one is out, whichever is longer
 *
 * So a third is left when a flush comes at the end of the horizon, and what is left is never used up by one
 * that is later, only ever more slowly used; until a delay is as long as DELAY_MS_MAX.
 */

/** As retransmission timers do: of what has any mean and spread hardly anything is later than that. */
const DEVIATIONS = 4;
/** The weight of the newest flush in both. */
const WEIGHT = 0.25;
/** Nobody is delayed for longer; then what is left goes at this rate, and after that commits stand. */
const DELAY_MS_MAX = 40;
/** So many times what was expected a flush is taken to have lasted, at the most: one may have stood still. */
const SURPRISE_MAX = 2;
/** Less is added to the next delay: sleeping takes about as long. */
const DELAY_MS_MIN = 1;
/** A thread that woke late makes up for so much. */
const LATE_MS_MAX = 20;

export class Pace {
  #meanMs: number;
  #deviationMs = 0;
  #isKnown = false;
  /** Since when the flush is out that is to give memory back next; -1: nothing is sealed. */
  #sinceMs = -1;
  #nextAt = Number.NEGATIVE_INFINITY;

  /** `firstMs`: how long the first flush is taken to last at the most. */
  constructor(firstMs: number) {
    this.#meanMs = firstMs;
  }

  /** A flush hardly ever takes longer. */
  get #expectedMs(): number {
    return this.#meanMs + DEVIATIONS * this.#deviationMs;
  }

  onSealed(nowMs: number): void {
    if (this.#sinceMs < 0) this.#sinceMs = nowMs;
  }

  /** A sealed generation was given back; `isMore`: another is sealed. */
  onFreed(nowMs: number, isMore: boolean): void {
    const ms = Math.min(
      nowMs - this.#sinceMs,
      Math.max(SURPRISE_MAX * this.#expectedMs, DELAY_MS_MAX),
    );
    if (this.#isKnown) {
      const off = ms - this.#meanMs;
      this.#meanMs += WEIGHT * off;
      this.#deviationMs += WEIGHT * (Math.abs(off) - this.#deviationMs);
    } else {
      this.#isKnown = true;
      this.#meanMs = ms;
      this.#deviationMs = ms / 2;
    }
    this.#sinceMs = isMore ? nowMs : -1;
    this.#nextAt = Number.NEGATIVE_INFINITY;
  }

  /** A record was taken that used up `share` of what was left, 0 to 1. */
  onTaken(nowMs: number, share: number): void {
    if (this.#sinceMs < 0) return;
    const horizonMs = Math.max(this.#expectedMs, nowMs - this.#sinceMs);
    const ms = Math.min(DELAY_MS_MAX, share * horizonMs);
    this.#nextAt = Math.max(this.#nextAt, nowMs - LATE_MS_MAX) + ms;
  }

  /** Until the next record may be taken; 0: now. */
  waitMs(nowMs: number): number {
    const ms = this.#nextAt - nowMs;
    return ms < DELAY_MS_MIN ? 0 : ms;
  }
}
