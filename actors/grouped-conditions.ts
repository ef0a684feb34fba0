/**
 * Conditions of several transactions of one turn that share a record: each read at one time of its own,
 * and none of them reads what one before it in the record writes, for the record is looked at as a
 * whole before any of it takes its place. When one breaks, or cannot be looked at, the record is refused,
 * and those beside it come again. Lives on its client's thread.
 */
import { hashAt, getU16, getU32 } from '../core/base/bytes.ts';
import { pageBytes } from '../core/base/limits.ts';
import {
  OP_DELETE_RANGE,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_VALUE_BYTES_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
  operationBytes,
} from '../core/base/update.ts';
import { CONDITIONS_HEADER_BYTES, layConditionsHeader } from '../core/memtable/conditions.ts';
import type { Conditions } from './conditions.ts';
import type { WriteSet } from './write-set.ts';

/** The record was refused for a transaction beside it: nothing was claimed, come again. */
export const BESIDE_CONFLICT: Error = new Error('a transaction in the same record had a conflict');

/** What the conditions of a group take at most: a fraction of the page that many groups share. */
const GROUP_BYTES_MAX: number = pageBytes / 4;

/** Bits for rows, two each: so many that a group of small transactions hardly ever ends for another row's. */
const ROW_BITS_SHIFT = 15;
const ROW_BITS_MASK: number = (1 << ROW_BITS_SHIFT) - 1;

/** Rows and collections that the transactions of a group write; rows by hash: another row's does no harm, the group ends sooner. */
export class WrittenRows {
  readonly #rows: Int32Array = new Int32Array((ROW_BITS_MASK + 1) / 32);
  readonly #collections: Set<number> = new Set();
  /** Of these a range was deleted. */
  readonly #ranged: Set<number> = new Set();
  #last = -1;

  clear(): void {
    this.#rows.fill(0);
    this.#collections.clear();
    this.#ranged.clear();
    this.#last = -1;
  }

  addRow(id: number, hash: number): void {
    this.#addCollection(id);
    const other = hash >>> ROW_BITS_SHIFT;
    this.#rows[(hash & ROW_BITS_MASK) >>> 5] |= 1 << (hash & 31);
    this.#rows[(other & ROW_BITS_MASK) >>> 5] |= 1 << (other & 31);
  }

  addRange(id: number): void {
    this.#addCollection(id);
    this.#ranged.add(id);
  }

  #addCollection(id: number): void {
    // Mostly it is the same one again.
    if (id === this.#last) return;
    this.#last = id;
    this.#collections.add(id);
  }

  /** Something of the collection is written. */
  hasCollection(id: number): boolean {
    return id === this.#last || this.#collections.has(id);
  }

  hasRange(id: number): boolean {
    return this.#ranged.size > 0 && this.#ranged.has(id);
  }

  /** False: no row with this hash is. */
  mayHaveRow(hash: number): boolean {
    if ((this.#rows[(hash & ROW_BITS_MASK) >>> 5] & (1 << (hash & 31))) === 0) return false;
    const other = hash >>> ROW_BITS_SHIFT;
    return (this.#rows[(other & ROW_BITS_MASK) >>> 5] & (1 << (other & 31))) !== 0;
  }
}

export class GroupedConditions {
  readonly #members: Conditions[] = [];
  #size = CONDITIONS_HEADER_BYTES;
  readonly #written: WrittenRows;

  /** `written`, empty, is the group's until no more are added. */
  constructor(written: WrittenRows) {
    this.#written = written;
  }

  /** Whether a transaction may follow: it reads nothing that those before it write. */
  takes(conditions: Conditions): boolean {
    if (this.#size + conditions.size > GROUP_BYTES_MAX) return false;
    return !conditions.isOn(this.#written);
  }

  /** `set` is what the transaction writes. */
  add(conditions: Conditions, set: WriteSet): void {
    this.#members.push(conditions);
    this.#size += conditions.size - CONDITIONS_HEADER_BYTES;
    const { bytes, end } = set;
    let at = TX_HEADER_BYTES;
    while (at < end) {
      const kind = bytes[at + OP_KIND_OFFSET];
      const keyBytes = getU16(bytes, at + OP_KEY_BYTES_OFFSET);
      const id = getU32(bytes, at);
      if (kind === OP_DELETE_RANGE) this.#written.addRange(id);
      else this.#written.addRow(id, hashAt(bytes, at + keyOffsetOf(kind), keyBytes, id));
      at += operationBytes(kind, keyBytes, getU32(bytes, at + OP_VALUE_BYTES_OFFSET));
    }
  }

  /** Bytes that they take beside the record. */
  get size(): number {
    return this.#size;
  }

  /** Lays them with their header. Requires: `lookAgain` found nothing. */
  lay(target: Uint8Array, at: number): void {
    let count = 0;
    let end = at + CONDITIONS_HEADER_BYTES;
    for (const member of this.#members) {
      member.layRows(target, end);
      end += member.size - CONDITIONS_HEADER_BYTES;
      count += member.count;
    }
    layConditionsHeader(target, at, count, this.#size);
  }

  onTooOld(): void {
    for (const member of this.#members) member.onTooOld();
  }

  /** For each transaction of the record why it is refused; undefined when none is. */
  lookAgain(): readonly Error[] | undefined {
    for (const [i, member] of this.#members.entries()) {
      const broken = member.lookAgain();
      if (broken !== undefined) return this.#all(i, broken);
    }
    return undefined;
  }

  /** The same, after the sequencer has named the condition. */
  conflict(index: number, offset: number | null): readonly Error[] {
    let first = 0;
    for (const [i, member] of this.#members.entries()) {
      const { count } = member;
      if (index < first + count) return this.#all(i, member.conflict(index - first, offset));
      first += count;
    }
    return this.#members.map(() => BESIDE_CONFLICT);
  }

  #all(broken: number, error: Error): readonly Error[] {
    return this.#members.map((_, i) => (i === broken ? error : BESIDE_CONFLICT));
  }
}
