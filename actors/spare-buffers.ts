/**
 * Memory that write sets have grown to and need no more, kept for those that grow next: a load of large
 * transactions would else leave its garbage behind faster than it is collected. Bounded. One client's, on
 * its thread.
 */
import { Buffer } from 'node:buffer';
import { KiB, MiB } from '../core/base/limits.ts';

const BYTES_MAX: number = 8 * MiB;
/** Smaller ones are made faster than found; larger ones are rare. */
const BUFFER_BYTES_MIN: number = 4 * KiB;
const BUFFER_BYTES_MAX: number = 1 * MiB;

export class SpareBuffers {
  readonly #spares: Buffer[] = [];
  #bytes = 0;

  /** One of at least `bytes`, a spare one or new; what is in it is anybody's. */
  take(bytes: number): Buffer {
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
    if (length < BUFFER_BYTES_MIN || length > BUFFER_BYTES_MAX) return;
    if (this.#bytes + length > BYTES_MAX) return;
    this.#spares.push(spare);
    this.#bytes += length;
  }
}
