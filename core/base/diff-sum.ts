/**
 * The sum of diffs that a reader is shown: exact whatever comes in between, an error when it is itself no
 * safe integer. Called by reads of multisets, on the caller's thread.
 */
import { TidemarkError } from './errors.ts';

export class DiffSum {
  #sum = 0;
  /** What did not fit; with `#sum` the whole. */
  #rest = 0n;

  clear(): void {
    this.#sum = 0;
    this.#rest = 0n;
  }

  add(diff: number): void {
    const sum = this.#sum + diff;
    if (Number.isSafeInteger(sum)) {
      this.#sum = sum;
      return;
    }
    this.#rest += BigInt(this.#sum);
    this.#sum = diff;
  }

  /** Throws TIDEMARK_TOO_LARGE. */
  value(): number {
    if (this.#rest === 0n) return this.#sum;
    const whole = this.#rest + BigInt(this.#sum);
    const value = Number(whole);
    if (Number.isSafeInteger(value)) return value;
    const limit = Number.MAX_SAFE_INTEGER;
    throw new TidemarkError('TIDEMARK_TOO_LARGE', `a sum of diffs is ${whole}, over ${limit}`, {
      what: 'diff',
      limit,
    });
  }
}
