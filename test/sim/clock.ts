/**
 * The simulated clock: stands still until the scheduler moves it. Wall time may jump either way; ticks
 * never go back.
 */
import type { Clock } from '../../core/storage/storage.ts';

const START_MS = 1_700_000_000_000;

export class SimClock implements Clock {
  #ticks = 0;
  #wall = START_MS;

  nowMs(): number {
    return Math.floor(this.#wall);
  }

  ticksMs(): number {
    return this.#ticks;
  }

  advance(ms: number): void {
    this.#ticks += ms;
    this.#wall += ms;
  }

  /** Somebody sets the wall clock. */
  jump(ms: number): void {
    this.#wall = Math.max(1, this.#wall + ms);
  }
}
