/**
 * The one shape in which rows of one collection are walked in order, whatever holds them: memtable
 * generations, blocks, runs, and merges of all of these. Order: key ascending by bytes; of puts and
 * deletes then time descending, so that the newest version of a key comes first; of updates value
 * ascending by bytes, then time ascending. Fields are valid until the cursor moves.
 */

/** One row. What lends it says how long. */
export interface Row {
  keyBytes: Uint8Array;
  keyOffset: number;
  keyLength: number;
  /** Offset of the transaction that wrote the version. */
  time: number;
  /** OP_PUT, OP_DELETE or OP_UPDATE (core/base/update.ts). */
  kind: number;
  /** 1 for a put, -1 for a delete, the diff for an update. */
  diff: number;
  /** Length of the value; 0 for a delete. Known without `loadValue`. */
  valueLength: number;
  /** Set by `loadValue`: contiguous, valid until the cursor moves or loads again. */
  valueBytes: Uint8Array;
  valueOffset: number;
  loadValue(): void;
}

export interface RowCursor extends Row {
  /** False when the cursor stands on no row. The other fields mean nothing then. */
  valid: boolean;

  /** Stands on the first row with key >= the given one. */
  seek(key: Uint8Array, offset: number, length: number): void;
  /** Stands on the last row (oldest version) with key < the given one. */
  seekBelow(key: Uint8Array, offset: number, length: number): void;
  first(): void;
  last(): void;
  next(): void;
  previous(): void;
}
