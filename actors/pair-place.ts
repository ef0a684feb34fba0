/**
 * How far a walk over a multiset has come, and how large its next batch is. Batches inside one key seek by
 * going over what was read before: each is twice as large as the last, so that a key of many values costs
 * its size and not the square of it. Belongs to its walk, on the client's thread.
 */
import { compareBytes } from '../core/base/bytes.ts';
import type { Resume } from './pair-reader.ts';
import type { RowBatch } from './reader.ts';

const FACTOR_MAX = 256;

export class PairPlace {
  /** The last row that was read. */
  resume: Resume | undefined;
  /** By which the next batch is larger than an ordinary one. */
  factor = 1;

  /** Goes on behind the last row of a batch; `key` is that row's, the walk's own. Requires: the batch has rows. */
  moveOn({ slab, places, count }: RowBatch, key: Uint8Array): void {
    const last = (count - 1) * 3;
    const isInside =
      this.resume !== undefined &&
      compareBytes(this.resume.key, key) === 0 &&
      compareBytes(slab.subarray(places[0], places[1]), key) === 0;
    this.factor = isInside ? Math.min(FACTOR_MAX, 2 * this.factor) : 1;
    // A copy: the batch's bytes become the caller's.
    const value = new Uint8Array(slab.subarray(places[last + 1], places[last + 2]));
    this.resume = { key, value };
  }
}
