/**
 * The writing side of a generation. Nodes are complete before they are linked, and everything a
 * time t wrote is linked before the sequencer publishes a frontier above t. Called by the sequencer
 * alone, on its thread.
 */
import type { Arena } from '../shared/arena.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';

export type GenerationOptions = {
  /** Accounted bytes (operations, nodes, indexes) at which the generation is full. */
  bytes: number;
  /** Rows at which it is full; the bucket array is made for so many. */
  rows: number;
  /** Keys of a chunk, which is sorted when full. For tests. */
  chunkKeys?: number;
  /** Runs merged into one of the next level. For tests. */
  fanIn?: number;
};

/** What `insert` reads of an operation; an OperationWalker offers it. */
export type OperationFields = {
  readonly address: number;
  readonly collection: number;
  readonly kind: number;
  readonly keyAddress: number;
  readonly keyBytes: number;
  readonly valueBytes: number;
};

/** Fuel for one `maintain` between other work: about 0.2 ms. */
export const maintainFuel = 8_192;

export class GenerationWriter {
  /** Address of the header page: the generation's handle in views and rings. */
  readonly header: number = 0;
  /** First offset it may hold; -1 while it is a spare. */
  lower = -1;
  /** First offset it does not hold; -1 until sealed. */
  upper = -1;
  /** Nodes: one an operation. */
  rows = 0;
  /** Distinct keys. */
  keys = 0;
  /** Operations, nodes and indexes. */
  bytes = 0;

  private constructor() {}

  /** A spare generation, or undefined when the pool has not got the pages (nothing is kept). */
  static create(
    _arena: Arena,
    _pool: BufferPool,
    _options: GenerationOptions,
  ): GenerationWriter | undefined {
    throw new Error('not yet');
  }

  /** The spare becomes the open generation: times from `lower` on go here. */
  open(_lower: number): void {
    throw new Error('not yet');
  }

  /**
   * True when a record of so many operations and bytes can be inserted without failing; what it needs
   * is leased by then. False on a generation with rows: seal it and take the spare. False on one
   * without: pages are missing (backpressure). An empty generation is never too full for a record.
   */
  roomFor(_operationCount: number, _payloadBytes: number): boolean {
    throw new Error('not yet');
  }

  /** Full by bytes or rows. `roomFor` says so too, for a given record. */
  get full(): boolean {
    throw new Error('not yet');
  }

  /** Requires: `roomFor` for its record; `time` >= every earlier one; the record's pages retained. */
  insert(_operation: OperationFields, _time: number): void {
    throw new Error('not yet');
  }

  /** Holds the page and those chained behind it until `free`; each is held once however often it is named. */
  retainPage(_page: number): void {
    throw new Error('not yet');
  }

  /** Sorts what is not sorted; from here on nothing changes. */
  seal(_upper: number): void {
    throw new Error('not yet');
  }

  /** Sorts full chunks and merges runs for about `fuel` steps of 25 ns. True while there is more to do. */
  maintain(_fuel: number): boolean {
    throw new Error('not yet');
  }

  /** Gives back every page and releases the record pages. Requires: no reader can see it any more. */
  free(): void {
    throw new Error('not yet');
  }
}
