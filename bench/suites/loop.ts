/**
 * The timed closed loop, and the check of what a store holds afterwards. Counting starts after a
 * warm-up and ends at the deadline; transactions still in flight then are waited for and checked,
 * but not counted. Called by the suites, in the child, on its main thread.
 */
import type { ClosedLoop, Engine } from '../engines/engine.ts';
import { Mark } from '../measure.ts';
import { Digest } from '../rows.ts';

export class TimedLoop implements ClosedLoop {
  readonly inFlight: number;
  /** Rows handed out: after the loop, rows 0 to `taken` - 1 are in the store. */
  taken = 0;
  #completed = 0;
  #untilLook: number;
  readonly #lookEvery: number;
  readonly #warmEndMs: number;
  readonly #windowMs: number;
  #first: Mark | undefined;
  #firstCompleted = 0;
  #last: Mark | undefined;
  #lastCompleted = 0;

  constructor(inFlight: number, warmSeconds: number, seconds: number) {
    this.inFlight = inFlight;
    // Often enough for a steady edge, seldom enough that the clock is not what is measured.
    this.#lookEvery = Math.max(1, Math.min(16, inFlight >> 4));
    this.#untilLook = this.#lookEvery;
    this.#warmEndMs = performance.now() + warmSeconds * 1000;
    this.#windowMs = seconds * 1000;
  }

  take(): number {
    return this.#last === undefined ? this.taken++ : -1;
  }

  done(count: number): void {
    // Both edges leave out the group of acknowledgements that arrives with them, so that a group
    // too large for the window shifts both alike.
    this.#untilLook -= count;
    if (this.#untilLook <= 0) {
      this.#untilLook = this.#lookEvery;
      if (this.#last === undefined) this.#look();
    }
    this.#completed += count;
  }

  #look(): void {
    const nowMs = performance.now();
    if (this.#first === undefined) {
      if (nowMs < this.#warmEndMs) return;
      this.#first = new Mark();
      this.#firstCompleted = this.#completed;
    } else if (nowMs - this.#first.atMs >= this.#windowMs) {
      // From the mark, not from the plan: a warm-up that ends late must not shorten the window.
      this.#last = new Mark();
      this.#lastCompleted = this.#completed;
    }
  }

  counted(): { operations: number; seconds: number; cpuSeconds: number } {
    const first = this.#first;
    const last = this.#last;
    if (first === undefined || last === undefined) throw new Error('the loop has not ended');
    return {
      operations: this.#lastCompleted - this.#firstCompleted,
      seconds: (last.atMs - first.atMs) / 1000,
      cpuSeconds: last.cpuSeconds - first.cpuSeconds,
    };
  }
}

/** Reads the whole store, checks that the keys ascend, and gives the digest of what is there. */
export async function digestOf(engine: Engine): Promise<string> {
  const digest = new Digest();
  let previous: Buffer | undefined;
  await engine.scan((key, value) => {
    digest.add(key, value);
    if (previous !== undefined && Buffer.compare(previous, key) >= 0) {
      throw new Error(`the scan is not in key order at row ${digest.count}`);
    }
    previous = Buffer.from(key); // the bytes are only lent
  });
  return digest.toString();
}
