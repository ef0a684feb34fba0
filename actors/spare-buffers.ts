/**
 * Memory that write sets and conditions need no more, kept for those that come next: a load of large
 * transactions would else leave its garbage behind faster than it is collected, and so would one of many
 * small ones, whose first buffers are all of one size. Bounded. One client's, on its thread.
 */
import { Buffer } from 'node:buffer';
import { KiB, MiB } from '../core/base/limits.ts';

const BYTES_MAX: number = 8 * MiB;
/** Of this size a stack is kept, as deep as transactions are in flight. */
export const SMALL_BYTES = 512;
const SMALL_MAX = 1_024;
/** Others below are made faster than found; larger ones are rare. */
const BUFFER_BYTES_MIN: number = 4 * KiB;
const BUFFER_BYTES_MAX: number = 1 * MiB;

export class SpareBuffers {
  readonly #spares: Buffer[] = [];
  readonly #small: Buffer[] = [];
  #bytes = 0;

  /** One of at least `bytes`, a spare one or new; what is in it is anybody's. */
  take(bytes: number): Buffer {
    if (bytes <= SMALL_BYTES) return this.#small.pop() ?? Buffer.allocUnsafe(SMALL_BYTES);
    const spare = this.#spares.at(-1);
    if (spare === undefined || spare.length < bytes || bytes < BUFFER_BYTES_MIN / 4) {
      return Buffer.allocUnsafe(bytes);
    }
    this.#spares.pop();
    this.#bytes -= spare.length;
    return spare;
  }

  /** Requires: nobody uses it any more. */
  give(spare: Buffer): void {
    const { length } = spare;
    if (length === SMALL_BYTES && this.#small.length < SMALL_MAX) {
      this.#small.push(spare);
      return;
    }
    if (length < BUFFER_BYTES_MIN || length > BUFFER_BYTES_MAX) return;
    if (this.#bytes + length > BYTES_MAX) return;
    this.#spares.push(spare);
    this.#bytes += length;
  }
}
