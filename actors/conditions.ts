/**
 * The conditions of one commit: looked at in what is visible now, then laid beside the record for the
 * sequencer, which sees what has come since. The bytes are the commit's own until then, so that they
 * can be looked at again when the record had to wait. Lives on its client's thread.
 */
import { NO_BYTES, setU16, setU32, setU64 } from '../core/base/bytes.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { pageBytes } from '../core/base/limits.ts';
import {
  CONDITIONS_BYTES_OFFSET,
  CONDITIONS_COUNT_OFFSET,
  CONDITIONS_HEADER_BYTES,
  CONDITION_ABSENT,
  CONDITION_COLLECTION,
  CONDITION_COLLECTION_OFFSET,
  CONDITION_FROM_OFFSET,
  CONDITION_KEY_BYTES_OFFSET,
  CONDITION_KEY_OFFSET,
  CONDITION_KIND_OFFSET,
  CONDITION_RANGE,
  CONDITION_ROW,
  CONDITION_UPPER_BYTES_OFFSET,
  CONDITION_UPPER_OPEN,
  conditionBytes,
} from '../core/memtable/conditions.ts';
import { tooLarge } from './encodings.ts';
import { NEWEST, ROW_FOUND } from './reader.ts';
import type { Reader } from './reader.ts';

export type Expected = {
  readonly kind: number;
  readonly id: number;
  readonly name: string;
  /** As the caller gave it, and encoded; of a range the lower bound. */
  readonly key: unknown;
  readonly keyBytes: Uint8Array;
  /** Of a range; undefined: there is none. */
  readonly upper: Uint8Array | undefined;
  /** Of the last change; null: the row is absent. */
  readonly offset: number | null;
};

export class Conditions {
  readonly #reader: Reader;
  readonly #expected: Expected[] = [];
  readonly #readAt: number;
  #size = CONDITIONS_HEADER_BYTES;
  #bytes: Uint8Array = NO_BYTES;
  #isTooOld = false;

  /** `readAt`: the one time at which all was read, so that nothing need be looked at again; -1: no such time. */
  constructor(reader: Reader, readAt = -1) {
    this.#reader = reader;
    this.#readAt = readAt;
  }

  /** A row's last change is at `offset`, or the row is absent. Takes the encoded key for its own. */
  addRow(
    id: number,
    name: string,
    key: unknown,
    keyBytes: Uint8Array,
    offset: number | null,
  ): void {
    const kind = offset === null ? CONDITION_ABSENT : CONDITION_ROW;
    // Bytes are the caller's to change; the error tells of what was asked.
    const told = key instanceof Uint8Array ? Buffer.from(key) : key;
    this.#add({ kind, id, name, key: told, keyBytes, upper: undefined, offset });
  }

  /** Nothing in [lower, upper) changed after `readAt`, which is given. Takes the bounds for its own. */
  addRange(id: number, name: string, lower: Uint8Array, upper: Uint8Array | undefined): void {
    const kind = CONDITION_RANGE;
    const offset = this.#readAt;
    this.#add({ kind, id, name, key: undefined, keyBytes: lower, upper, offset });
  }

  /** Nothing in the collection changed after `offset`. */
  addCollection(id: number, name: string, offset: number): void {
    const kind = CONDITION_COLLECTION;
    this.#add({ kind, id, name, key: undefined, keyBytes: NO_BYTES, upper: undefined, offset });
  }

  #add(expected: Expected): void {
    this.#size += bytesOf(expected);
    if (this.#size > pageBytes) throw tooLarge('conditions', this.#size, pageBytes);
    this.#expected.push(expected);
  }

  /** All were read at one time, so that others like it may share its record. */
  get isGroupable(): boolean {
    return this.#readAt >= 0;
  }

  get size(): number {
    return this.#size;
  }

  get expected(): readonly Expected[] {
    return this.#expected;
  }

  /** As they are laid beside the record. Requires: `check` found nothing. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }

  /** The sequencer's memory does not reach back to the time of the last look: the next check must look. */
  onTooOld(): void {
    this.#isTooOld = true;
  }

  /** What is visible now breaks a condition: the error that says which. All are looked at at one time. */
  check(): TidemarkError | undefined {
    const reader = this.#reader;
    if (this.#readAt >= 0 && !this.#isTooOld) {
      this.#layFrom(this.#readAt + 1);
      return undefined;
    }
    for (;;) {
      reader.enter(this.#expected[0].id, NEWEST);
      try {
        // History may have moved on between the choice of the time and the view.
        if (this.#isReadable()) return this.#look();
      } finally {
        reader.leave();
      }
    }
  }

  #isReadable(): boolean {
    const { view, T } = this.#reader;
    if (T < 0) return true;
    for (const { id } of this.#expected) {
      const block = view.collection(id);
      if (block !== 0 && T < view.since(block)) return false;
    }
    return true;
  }

  #look(): TidemarkError | undefined {
    const reader = this.#reader;
    const bytes = this.#allocate();
    let at = CONDITIONS_HEADER_BYTES;
    for (let i = 0; i < this.#expected.length; i++) {
      const expected = this.#expected[i];
      const { kind, id, keyBytes, offset } = expected;
      let from = reader.T + 1;
      if (kind === CONDITION_COLLECTION || kind === CONDITION_RANGE) {
        const newest = reader.newestChange(id);
        // What is not visible yet has its place before us all the same.
        if (newest > offset!) return this.conflict(i, newest);
        from = Math.max(from, offset! + 1);
      } else {
        const block = reader.view.collection(id);
        const outcome = reader.find(id, block, keyBytes, keyBytes.length, false);
        const found = outcome === ROW_FOUND ? reader.time : null;
        if (found !== offset) return this.conflict(i, found);
      }
      setU64(bytes, at + CONDITION_FROM_OFFSET, from);
      at += bytesOf(expected);
    }
    return undefined;
  }

  #layFrom(from: number): void {
    const bytes = this.#allocate();
    let at = CONDITIONS_HEADER_BYTES;
    for (const expected of this.#expected) {
      setU64(bytes, at + CONDITION_FROM_OFFSET, from);
      at += bytesOf(expected);
    }
  }

  /** Everything but the times, once. */
  #allocate(): Uint8Array {
    if (this.#bytes.length > 0) return this.#bytes;
    const bytes = new Uint8Array(this.#size);
    setU32(bytes, CONDITIONS_COUNT_OFFSET, this.#expected.length);
    setU32(bytes, CONDITIONS_BYTES_OFFSET, this.#size);
    let at = CONDITIONS_HEADER_BYTES;
    for (const expected of this.#expected) {
      const { kind, id, keyBytes, upper } = expected;
      setU32(bytes, at + CONDITION_COLLECTION_OFFSET, id);
      setU16(bytes, at + CONDITION_KIND_OFFSET, kind);
      setU16(bytes, at + CONDITION_KEY_BYTES_OFFSET, keyBytes.length);
      const isOpen = kind === CONDITION_RANGE && upper === undefined;
      const upperBytes = isOpen ? CONDITION_UPPER_OPEN : (upper?.length ?? 0);
      setU32(bytes, at + CONDITION_UPPER_BYTES_OFFSET, upperBytes);
      bytes.set(keyBytes, at + CONDITION_KEY_OFFSET);
      if (upper !== undefined) bytes.set(upper, at + CONDITION_KEY_OFFSET + keyBytes.length);
      at += bytesOf(expected);
    }
    this.#bytes = bytes;
    return bytes;
  }

  /** The error for a broken condition; `offset` is that of the change, null when the row is absent. */
  conflict(index: number, offset: number | null): TidemarkError {
    const { kind, name, key } = this.#expected[index];
    const found = offset === null ? 'the row is absent' : `the last change is at ${offset}`;
    const expected = this.#expected[index].offset;
    const isRow = kind === CONDITION_ROW || kind === CONDITION_ABSENT;
    const wish = !isRow ? `nothing after ${expected}` : `${expected}`;
    const was = kind === CONDITION_ABSENT ? 'no row' : wish;
    return new TidemarkError(
      'TIDEMARK_CONFLICT',
      `a condition on ${name} does not hold: ${was} was expected, and ${found}`,
      isRow ? { collection: name, key, offset } : { collection: name, offset },
    );
  }
}

function bytesOf({ keyBytes, upper }: Expected): number {
  return conditionBytes(keyBytes.length, upper?.length ?? 0);
}
