/**
 * What the flush soak writes: which rows a collection holds follows from how many were ever put there,
 * so that a process that was killed needs to leave no word about it. Used by child.ts and rounds.ts.
 */

/** What the child is asked; its argument, as JSON. */
export type Task = {
  readonly directory: string;
  readonly seed: number;
  readonly collections: number;
  /** Rows that must be there, by collection. */
  readonly promised: readonly number[];
  /** It closes in order after so many flushes. */
  readonly flushes: number;
  /** All rows are looked at, not some. */
  readonly isWhole: boolean;
};

/** What the child has done since it opened; sent after every flush, and once all was checked. */
export type Progress = {
  readonly flushes: number;
  /** Batches that these flushes appended to spines: one for each collection that had rows. */
  readonly pushes: number;
  /** Rows by collection. */
  readonly rows: readonly number[];
  readonly flushedBytes: number;
  readonly mergedBytes: number;
  /** Of the collection that has most. */
  readonly runs: number;
  readonly debtBytes: number;
  readonly hardBlockMs: number;
};

export const KEY_BYTES = 4;
export const VALUE_BYTES = 20;

/** Row number to key, one to one and all over the place, so that every run overlaps every other. */
export function keyOf(row: number): Buffer {
  const key = Buffer.alloc(KEY_BYTES);
  key.writeUInt32BE(Math.imul(row, 0x9e3779b1) >>> 0);
  return key;
}

export function valueOf(collection: number, row: number): Buffer {
  const value = Buffer.alloc(VALUE_BYTES, row);
  value.writeUInt32LE(collection, 0);
  value.writeUInt32LE(row, 4);
  return value;
}
