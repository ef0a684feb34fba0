/**
 * The state of a collection at a time, in the order of its keys (of a multiset, then of its values), a
 * batch after the other. Between batches nothing is held but what the caller holds: each enters anew and
 * goes on behind the last row. Used by feeds and differences, on their client's thread.
 */
import type { Client } from './client.ts';
import { successor } from './key-range.ts';
import type { ByteRange } from './key-range.ts';
import { PairPlace } from './pair-place.ts';
import { BATCH_SLAB_BYTES } from './reader.ts';
import type { RangeBounds, RowBatch } from './reader.ts';

/** What is walked: an id, and whether a key may have several values. */
export type Walked = { readonly id: number; readonly kind: 'keyed' | 'multiset' };

export class StateWalk {
  readonly #client: Client;
  readonly #id: number;
  readonly isMultiset: boolean;
  readonly #T: number;
  readonly #bounds: RangeBounds;
  readonly #place: PairPlace = new PairPlace();
  /** Nothing follows the last batch. */
  ended: boolean;

  /** Before all offsets, T below 0, nothing is there. */
  constructor(client: Client, { id, kind }: Walked, T: number, range: ByteRange) {
    this.#client = client;
    this.#id = id;
    this.isMultiset = kind === 'multiset';
    this.#T = T;
    this.#bounds = { ...range, reverse: false };
    this.ended = T < 0;
  }

  /** The next rows, about as many as that; undefined when there are none. Requires: what is there at T is held. */
  next(rowsMax: number): RowBatch | undefined {
    if (this.ended) return undefined;
    const client = this.#client;
    const { reader, pairs } = client;
    client.hold(this.#T);
    let batch: RowBatch;
    try {
      batch = this.isMultiset
        ? pairs.readRange(
            this.#id,
            this.#T,
            this.#bounds,
            this.#place.resume,
            rowsMax * this.#place.factor,
            BATCH_SLAB_BYTES * this.#place.factor,
          )
        : reader.readRange(this.#id, this.#T, this.#bounds, rowsMax);
    } finally {
      client.release(this.#T);
    }
    this.ended = batch.ended || batch.count === 0;
    if (batch.count === 0) return undefined;
    if (!this.ended) this.#moveOn(batch);
    return batch;
  }

  /** How often the row is there. */
  countOf(batch: RowBatch, row: number): number {
    return this.isMultiset ? batch.diffs[row] : 1;
  }

  #moveOn(batch: RowBatch): void {
    const { slab, places, count } = batch;
    const last = (count - 1) * 3;
    const key = new Uint8Array(slab.subarray(places[last], places[last + 1]));
    if (!this.isMultiset) {
      this.#bounds.lower = successor(key);
      return;
    }
    this.#place.moveOn(batch, key);
    this.#bounds.lower = key;
  }
}
