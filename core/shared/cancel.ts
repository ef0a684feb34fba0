/**
 * Two shared words between a running job and those who watch it: by one it is asked to stop, by the
 * other it shows that it goes on. The asker sets the first; the job looks between steps, and counts each
 * in the second. They belong to one job and die with it.
 */

const CANCEL_WORD = 0;
const STEPS_WORD = 1;
const BYTES = 8;

export class CancelFlag {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(BYTES)) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer);
  }

  cancel(): void {
    Atomics.store(this.#words, CANCEL_WORD, 1);
  }

  get cancelled(): boolean {
    return Atomics.load(this.#words, CANCEL_WORD) !== 0;
  }

  /** By the job: it has begun, or done another step. */
  step(): void {
    Atomics.add(this.#words, STEPS_WORD, 1);
  }

  /** Steps so far, modulo 2^32; 0 before it has begun. */
  get steps(): number {
    return Atomics.load(this.#words, STEPS_WORD) >>> 0;
  }
}
