/**
 * One shared word by which a running job is asked to stop. The asker sets it; the job looks between
 * steps. It belongs to one job and dies with it.
 */

export class CancelFlag {
  readonly buffer: SharedArrayBuffer;
  readonly #word: Int32Array;

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(4)) {
    this.buffer = buffer;
    this.#word = new Int32Array(buffer);
  }

  cancel(): void {
    Atomics.store(this.#word, 0, 1);
  }

  get cancelled(): boolean {
    return Atomics.load(this.#word, 0) !== 0;
  }
}
