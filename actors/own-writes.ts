/**
 * What a transaction has written so far, by key, so that its own reads see it. Made from the operations
 * of its write set when somebody reads, never before: a transaction that reads first pays nothing.
 * Lives on its client's thread.
 */
import { Buffer } from 'node:buffer';
import { compareBytes, getF64, getU16, getU32 } from '../core/base/bytes.ts';
import {
  OP_DELETE_RANGE,
  OP_DIFF_OFFSET,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_PUT,
  OP_UPDATE,
  OP_VALUE_BYTES_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
  operationBytes,
} from '../core/base/update.ts';
import type { ByteRange } from './key-range.ts';
import type { Pair } from './pair-reader.ts';
import type { WriteSet } from './write-set.ts';

export type OwnRow = {
  readonly key: Buffer;
  /** Undefined: the row was deleted. */
  readonly value: Buffer | undefined;
};

/** What was written to a key of a multiset: `isRemoved`, what was there before is gone. */
export type OwnPairs = { readonly isRemoved: boolean; readonly updates: readonly Pair[] };

type OwnCollection = {
  readonly rows: Map<string, OwnRow>;
  /** Of a multiset, by key. */
  readonly updates: Map<string, { readonly key: Buffer; readonly pairs: Pair[] }>;
  readonly ranges: ByteRange[];
};

export class OwnWrites {
  readonly #set: WriteSet;
  readonly #collections: Map<number, OwnCollection> = new Map();
  #at: number = TX_HEADER_BYTES;

  constructor(set: WriteSet) {
    this.#set = set;
  }

  /** The row as the transaction left it; undefined when it has not touched it. */
  find(collection: number, key: Uint8Array, length: number): OwnRow | undefined {
    this.#catchUp();
    const own = this.#collections.get(collection);
    if (own === undefined) return undefined;
    const bytes = Buffer.from(key.buffer, key.byteOffset, length);
    const row = own.rows.get(bytes.toString('latin1'));
    if (row !== undefined || !own.ranges.some((range) => isIn(range, bytes))) return row;
    return { key: bytes, value: undefined };
  }

  /** What the transaction did to a key of a multiset. */
  pairsOf(collection: number, key: Uint8Array): OwnPairs {
    this.#catchUp();
    const own = this.#collections.get(collection);
    if (own === undefined) return { isRemoved: false, updates: [] };
    const name = Buffer.from(key.buffer, key.byteOffset, key.length).toString('latin1');
    const isRemoved = own.ranges.some((range) => isIn(range, key));
    return { isRemoved, updates: own.updates.get(name)?.pairs ?? [] };
  }

  /** Rows that were put or deleted in a range, in key order; none when `upper` is not above. */
  within(collection: number, { lower, upper, upperOpen }: ByteRange): OwnRow[] {
    this.#catchUp();
    const rows: OwnRow[] = [];
    for (const row of this.#collections.get(collection)?.rows.values() ?? []) {
      if (compareBytes(row.key, lower) < 0) continue;
      if (upperOpen || compareBytes(row.key, upper) < 0) rows.push(row);
    }
    return rows.toSorted((a, b) => compareBytes(a.key, b.key));
  }

  /** Tells of rows not touched as such whether a range deleted by now holds them. */
  hider(collection: number): (key: Uint8Array) => boolean {
    const ranges = this.#collections.get(collection)?.ranges.slice() ?? [];
    return (key) => ranges.some((range) => isIn(range, key));
  }

  #catchUp(): void {
    const { bytes, end } = this.#set;
    while (this.#at < end) {
      const at = this.#at;
      const kind = bytes[at + OP_KIND_OFFSET];
      const keyBytes = getU16(bytes, at + OP_KEY_BYTES_OFFSET);
      const valueBytes = getU32(bytes, at + OP_VALUE_BYTES_OFFSET);
      const keyAt = at + keyOffsetOf(kind);
      const valueAt = keyAt + keyBytes;
      const own = this.#of(getU32(bytes, at));
      // Copies: the set grows by moving.
      const key = Buffer.from(bytes.subarray(keyAt, valueAt));
      const value = Buffer.from(bytes.subarray(valueAt, valueAt + valueBytes));
      if (kind === OP_DELETE_RANGE) {
        const range = { lower: key, upper: value, upperOpen: value.length === 0 };
        for (const [name, row] of own.rows) if (isIn(range, row.key)) own.rows.delete(name);
        for (const [name, row] of own.updates) if (isIn(range, row.key)) own.updates.delete(name);
        own.ranges.push(range);
      } else if (kind === OP_UPDATE) {
        const name = key.toString('latin1');
        const row = own.updates.get(name) ?? { key, pairs: [] };
        row.pairs.push({ value, diff: getF64(bytes, at + OP_DIFF_OFFSET) });
        own.updates.set(name, row);
      } else {
        const row = { key, value: kind === OP_PUT ? value : undefined };
        own.rows.set(key.toString('latin1'), row);
      }
      this.#at += operationBytes(kind, keyBytes, valueBytes);
    }
  }

  #of(collection: number): OwnCollection {
    let own = this.#collections.get(collection);
    if (own === undefined) {
      own = { rows: new Map(), updates: new Map(), ranges: [] };
      this.#collections.set(collection, own);
    }
    return own;
  }
}

function isIn({ lower, upper, upperOpen }: ByteRange, key: Uint8Array): boolean {
  return compareBytes(key, lower) >= 0 && (upperOpen || compareBytes(key, upper) < 0);
}
