/**
 * A small world for the memtable: an arena, a pool, records laid into pages as a client lays them, and
 * the naive model that is always right.
 */
import assert from 'node:assert/strict';
import { compareBytes, setF64, setU16, setU32 } from '../../core/base/bytes.ts';
import type { RowCursor } from '../../core/base/cursor.ts';
import { pageBytes } from '../../core/base/limits.ts';
import type { Prng } from '../../core/base/prng.ts';
import { rangeHolds } from '../../core/base/range-set.ts';
import {
  OP_COLLECTION_OFFSET,
  OP_DELETE_RANGE,
  OP_DIFF_OFFSET,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_PUT,
  OP_UPDATE,
  OP_VALUE_BYTES_OFFSET,
  TX_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
  operationBytes,
} from '../../core/base/update.ts';
import { GenerationCursor } from '../../core/memtable/cursor.ts';
import { GenerationReader } from '../../core/memtable/reader.ts';
import { GenerationWriter } from '../../core/memtable/writer.ts';
import type { GenerationOptions } from '../../core/memtable/writer.ts';
import { Arena } from '../../core/shared/arena.ts';
import { BufferPool, KIND_MEMTABLE, KIND_RECORD } from '../../core/shared/buffer-pool.ts';
import {
  OperationWalker,
  gatherValue,
  layChained,
  pageOf,
  releaseChain,
} from '../../core/shared/record-pages.ts';

export type Operation = {
  collection: number;
  key: Uint8Array;
  kind: number;
  value: Uint8Array;
  diff: number;
};

/** A row as read: key and value as latin-1 text, so that rows compare with deepEqual. */
export type Row = { key: string; time: number; kind: number; diff: number; value: string };

export function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('latin1');
}

export function bytesOf(latin1: string): Uint8Array {
  return Buffer.from(latin1, 'latin1');
}

export function randomBytes(random: Prng, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => random.u32());
}

export function put(collection: number, key: string, value: string): Operation {
  return { collection, key: bytesOf(key), kind: OP_PUT, value: bytesOf(value), diff: 1 };
}

/** One transaction in payload format 1. */
export function encode(operations: readonly Operation[]): Uint8Array {
  let size = TX_HEADER_BYTES;
  for (const o of operations) size += operationBytes(o.kind, o.key.length, o.value.length);
  const target = new Uint8Array(size);
  setU32(target, TX_BYTES_OFFSET, size);
  setU32(target, TX_COUNT_OFFSET, operations.length);
  let at = TX_HEADER_BYTES;
  for (const o of operations) {
    setU32(target, at + OP_COLLECTION_OFFSET, o.collection);
    target[at + OP_KIND_OFFSET] = o.kind;
    setU16(target, at + OP_KEY_BYTES_OFFSET, o.key.length);
    setU32(target, at + OP_VALUE_BYTES_OFFSET, o.value.length);
    if (o.kind === OP_UPDATE) setF64(target, at + OP_DIFF_OFFSET, o.diff);
    target.set(o.key, at + keyOffsetOf(o.kind));
    target.set(o.value, at + keyOffsetOf(o.kind) + o.key.length);
    at += operationBytes(o.kind, o.key.length, o.value.length);
  }
  return target;
}

export class World {
  readonly arena: Arena;
  readonly pool: BufferPool;
  readonly walker: OperationWalker;
  readonly reader: GenerationReader;
  readonly cursor: GenerationCursor;
  /** The client's open page and what is filled of it. */
  #page = 0;
  #filled = 0;

  constructor(arenaBytes: number, memtablePages = 1_000, recordPages = 1_000, firstPage = 1) {
    this.arena = Arena.create(arenaBytes);
    this.pool = new BufferPool(this.arena, 128, firstPage);
    this.pool.reset([0, recordPages, memtablePages]);
    this.walker = new OperationWalker(this.arena, this.pool);
    this.reader = new GenerationReader(this.arena);
    this.cursor = new GenerationCursor(this.arena, this.pool);
  }

  create(options: Partial<GenerationOptions> = {}): GenerationWriter {
    const writer = GenerationWriter.create(this.arena, this.pool, {
      bytes: 16 << 20,
      rows: 100_000,
      ...options,
    });
    assert.ok(writer, 'a generation');
    return writer;
  }

  /** Lays one transaction as a client does: into its open page, or over a chain of its own. */
  lay(payload: Uint8Array): { address: number; release: () => void } {
    if (payload.length > pageBytes) {
      const address = layChained(this.arena, this.pool, payload, 0, 1);
      assert.notEqual(address, 0, 'record pages');
      return { address, release: () => releaseChain(this.pool, address) };
    }
    if (this.#page === 0 || this.#filled + payload.length > pageBytes) {
      this.closePage();
      this.#page = this.pool.lease(KIND_RECORD);
      assert.notEqual(this.#page, 0, 'a record page');
      this.pool.retain(this.#page);
      this.#filled = 0;
    }
    const address = this.#page + this.#filled;
    this.arena.u8.set(payload, address);
    this.#filled += payload.length;
    return { address, release: () => {} };
  }

  closePage(): void {
    if (this.#page !== 0) this.pool.release(this.#page);
    this.#page = 0;
  }

  /** A whole write: lay, ask for room, hold, insert. */
  write(writer: GenerationWriter, operations: readonly Operation[], time: number): void {
    const payload = encode(operations);
    const { address, release } = this.lay(payload);
    assert.ok(writer.roomFor(operations.length, payload.length), 'room for a record');
    writer.retainPage(pageOf(address));
    this.walker.start(address, 1);
    while (this.walker.next()) writer.insert(this.walker, time);
    release();
  }

  /** Pages leased of the two kinds that the memtable touches. */
  leased(): { record: number; memtable: number } {
    const counts = this.pool.audit();
    return { record: counts[KIND_RECORD], memtable: counts[KIND_MEMTABLE] };
  }

  rowOf(node: number): Row {
    const { reader } = this;
    const key = reader.keyAddressOf(node);
    const value = new Uint8Array(reader.valueBytesOf(node));
    gatherValue(this.arena, this.pool, reader.valueAddressOf(node), value.length, value, 0);
    return {
      key: textOf(this.arena.u8.subarray(key, key + reader.keyBytesOf(node))),
      time: reader.timeOf(node),
      kind: reader.kindOf(node),
      diff: reader.diffOf(node),
      value: textOf(value),
    };
  }
}

export function rowAt(cursor: RowCursor): Row | undefined {
  if (!cursor.valid) return undefined;
  cursor.loadValue();
  const { keyBytes, keyOffset, keyLength, valueBytes, valueOffset, valueLength } = cursor;
  return {
    key: textOf(keyBytes.subarray(keyOffset, keyOffset + keyLength)),
    time: cursor.time,
    kind: cursor.kind,
    diff: cursor.diff,
    value: textOf(valueBytes.subarray(valueOffset, valueOffset + valueLength)),
  };
}

/** All operations, and answers by looking at all of them. */
export class Model {
  readonly #rows: { collection: number; row: Row }[] = [];

  write(operations: readonly Operation[], time: number): void {
    for (const o of operations) {
      const row = { key: textOf(o.key), time, kind: o.kind, diff: o.diff, value: textOf(o.value) };
      this.#rows.push({ collection: o.collection, row });
    }
  }

  /**
   * Rows of a collection up to T in the order of cursors. Of puts and deletes of one key in one
   * transaction the last counts; updates all do, by value, then time, of one transaction the later first.
   */
  rows(collection: number, T: number, all: boolean): Row[] {
    const rows: Row[] = [];
    for (const entry of this.#rows) {
      if (entry.collection === collection && entry.row.time <= T) rows.unshift(entry.row);
    }
    // Stable, and newest first already.
    const sorted = rows.toSorted((a, b) => {
      const order = compareBytes(bytesOf(a.key), bytesOf(b.key));
      if (order !== 0 || !all || a.kind !== OP_UPDATE) return order;
      return compareBytes(bytesOf(a.value), bytesOf(b.value)) || a.time - b.time;
    });
    if (!all) return sorted.filter((row, i) => i === 0 || sorted[i - 1].key !== row.key);
    const kept: Row[] = [];
    for (const row of sorted) {
      const last = kept.at(-1);
      const beaten = last?.key === row.key && last.time === row.time && row.kind !== OP_UPDATE;
      if (!beaten) kept.push(row);
    }
    return kept;
  }

  /** What was last said of a key: a row, or the range delete that took it away. */
  find(collection: number, key: string, T: number): Row | undefined {
    return this.#rows.findLast((entry) => {
      const { row } = entry;
      if (entry.collection !== collection || row.time > T) return false;
      if (row.kind !== OP_DELETE_RANGE) return row.key === key;
      const range = { lo: bytesOf(row.key), hi: bytesOf(row.value), time: row.time };
      return rangeHolds(range, bytesOf(key));
    })?.row;
  }

  /** Time of the last change in [lower, upper), or to the end when that is null; -1: none. */
  newestWithin(collection: number, lower: string, upper: string | null): number {
    const lo = bytesOf(lower);
    const hi = upper === null ? undefined : bytesOf(upper);
    const found = this.#rows.findLast((entry) => {
      if (entry.collection !== collection) return false;
      const { kind, key, value } = entry.row;
      const from = bytesOf(key);
      if (hi !== undefined && compareBytes(from, hi) >= 0) return false;
      if (kind !== OP_DELETE_RANGE) return compareBytes(from, lo) >= 0;
      return value === '' || compareBytes(bytesOf(value), lo) > 0;
    });
    return found?.row.time ?? -1;
  }

  newestTime(collection: number): number {
    return this.#rows.findLast((entry) => entry.collection === collection)?.row.time ?? -1;
  }

  collections(): number[] {
    return [...new Set(this.#rows.map((entry) => entry.collection))].toSorted((a, b) => a - b);
  }
}
