/**
 * The conditions of one commit, in the bytes that lie beside the record for the sequencer: looked at in
 * what is visible now, so that it need only see what has come since. Kept until the receipt, so that
 * they can be looked at again when the record had to wait. Lives on its client's thread.
 */
import { NO_BYTES, getU16, getU32, hashAt, setU16, setU32, setU64 } from '../core/base/bytes.ts';
import { copyAt } from '../core/base/copy.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { MiB, pageBytes } from '../core/base/limits.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import {
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
  layConditionsHeader,
} from '../core/memtable/conditions.ts';
import { CATALOG_VALUES, catalogKey, checkCatalogRow } from './catalog.ts';
import { decodeLent, tooLarge } from './encodings.ts';
import type { WrittenRows } from './grouped-conditions.ts';
import { NEWEST, ROW_FOUND } from './reader.ts';
import type { Reader } from './reader.ts';
import { SMALL_BYTES } from './spare-buffers.ts';
import type { SpareBuffers } from './spare-buffers.ts';

/** What an error tells of a condition. */
type Subject = {
  readonly name: string;
  readonly isRow: boolean;
  /** As the caller gave it, of a row. */
  readonly key: unknown;
  /** Of the last change that is allowed; null: the row is absent. */
  readonly offset: number | null;
};

const NO_BUFFER: Buffer = Buffer.alloc(0);
/** Room for a few rows with short keys. */
const CAPACITY_BYTES = 128;
/** What is looked at again of a range, of what was written or merged since; of more, any change of its collection counts. */
const RANGE_ROWS_MAX = 4_096;
const RANGE_BYTES_MAX: number = MiB;

export class Conditions {
  readonly #reader: Reader;
  readonly #readAt: number;
  readonly #spares: SpareBuffers | undefined;
  #bytes: Buffer;
  #end = CONDITIONS_HEADER_BYTES;
  #subjects: Subject[] = [];
  #isTooOld = false;

  /**
   * `readAt`: the one time at which all was read, so that nothing need be looked at again; -1: no such time.
   * Grows out of `spares`, if there are any: then `release` gives back.
   */
  constructor(reader: Reader, readAt = -1, spares?: SpareBuffers) {
    this.#reader = reader;
    this.#readAt = readAt;
    this.#spares = spares;
    this.#bytes = spares?.take(SMALL_BYTES) ?? Buffer.allocUnsafe(CAPACITY_BYTES);
  }

  /** They are not used any more. */
  release(): void {
    this.#spares?.give(this.#bytes);
    this.#bytes = NO_BUFFER;
    this.#end = CONDITIONS_HEADER_BYTES;
  }

  /** A row's last change is at `offset`, or the row is absent; its key is `keyBytes[0, length)`. */
  addRow(
    id: number,
    name: string,
    key: unknown,
    keyBytes: Uint8Array,
    length: number,
    offset: number | null,
  ): void {
    // Bytes are the caller's to change; the error tells of what was asked.
    const told = key instanceof Uint8Array ? Buffer.from(key) : key;
    const kind = offset === null ? CONDITION_ABSENT : CONDITION_ROW;
    this.#add(kind, id, keyBytes, length, NO_BYTES, 0, this.#readAt + 1);
    this.#tellOf({ name, isRow: true, key: told, offset });
  }

  /** Nothing in [lower, upper) changed after the one time; `upper` undefined: there is no bound. */
  addRange(id: number, name: string, lower: Uint8Array, upper: Uint8Array | undefined): void {
    const hi = upper ?? NO_BYTES;
    const upperWord = upper === undefined ? CONDITION_UPPER_OPEN : upper.length;
    this.#add(CONDITION_RANGE, id, lower, lower.length, hi, upperWord, this.#readAt + 1);
    this.#tellOf({ name, isRow: false, key: undefined, offset: this.#readAt });
  }

  /** Nothing in the collection changed after `offset`. */
  addCollection(id: number, name: string, offset: number): void {
    this.#add(CONDITION_COLLECTION, id, NO_BYTES, 0, NO_BYTES, 0, offset + 1);
    this.#tellOf({ name, isRow: false, key: undefined, offset });
  }

  /** Most have one condition: an array that is made for it is a fraction of one that has grown to it. */
  #tellOf(subject: Subject): void {
    if (this.#subjects.length === 0) this.#subjects = [subject];
    else this.#subjects.push(subject);
  }

  #add(
    kind: number,
    id: number,
    keyBytes: Uint8Array,
    length: number,
    upper: Uint8Array,
    upperWord: number,
    from: number,
  ): void {
    const at = this.#end;
    const end = at + conditionBytes(length, upper.length);
    if (end > pageBytes) throw tooLarge('conditions', end, pageBytes);
    if (end > this.#bytes.length) this.#grow(end);
    const bytes = this.#bytes;
    setU64(bytes, at + CONDITION_FROM_OFFSET, from);
    setU32(bytes, at + CONDITION_COLLECTION_OFFSET, id);
    setU16(bytes, at + CONDITION_KIND_OFFSET, kind);
    setU16(bytes, at + CONDITION_KEY_BYTES_OFFSET, length);
    setU32(bytes, at + CONDITION_UPPER_BYTES_OFFSET, upperWord);
    setU32(bytes, at + CONDITION_KEY_OFFSET - 4, 0);
    const key = at + CONDITION_KEY_OFFSET;
    copyAt(keyBytes, 0, length, bytes, key);
    copyAt(upper, 0, upper.length, bytes, key + length);
    for (let i = key + length + upper.length; i < end; i++) bytes[i] = 0;
    this.#end = end;
  }

  #grow(bytes: number): void {
    const grown = Buffer.allocUnsafe(Math.max(bytes, 2 * this.#bytes.length));
    this.#bytes.copy(grown, 0, 0, this.#end);
    this.#bytes = grown;
  }

  /** All were read at one time, so that others like it may share its record. */
  get isGroupable(): boolean {
    return this.#readAt >= 0;
  }

  /** Bytes that they take beside the record. */
  get size(): number {
    return this.#end;
  }

  get count(): number {
    return this.#subjects.length;
  }

  /** Whether a row's condition is among them. */
  hasRow(id: number, keyBytes: Uint8Array, length: number): boolean {
    const bytes = this.#bytes;
    for (let at = CONDITIONS_HEADER_BYTES; at < this.#end; at = this.#next(at)) {
      if (getU16(bytes, at + CONDITION_KEY_BYTES_OFFSET) !== length) continue;
      if (getU32(bytes, at + CONDITION_COLLECTION_OFFSET) !== id) continue;
      if (bytes[at + CONDITION_KIND_OFFSET] > CONDITION_ABSENT) continue;
      let i = 0;
      while (i < length && bytes[at + CONDITION_KEY_OFFSET + i] === keyBytes[i]) i++;
      if (i === length) return true;
    }
    return false;
  }

  /** Whether one of them is on what is written: perhaps, where it is a row. */
  isOn(written: WrittenRows): boolean {
    const bytes = this.#bytes;
    for (let at = CONDITIONS_HEADER_BYTES; at < this.#end; at = this.#next(at)) {
      const id = getU32(bytes, at + CONDITION_COLLECTION_OFFSET);
      if (!written.hasCollection(id)) continue;
      if (bytes[at + CONDITION_KIND_OFFSET] > CONDITION_ABSENT || written.hasRange(id)) return true;
      const length = getU16(bytes, at + CONDITION_KEY_BYTES_OFFSET);
      if (written.mayHaveRow(hashAt(bytes, at + CONDITION_KEY_OFFSET, length, id))) return true;
    }
    return false;
  }

  /**
   * All that are on one collection, that with the most bytes of them, give way to one on the whole of it:
   * coarser, and never wrong. Answers its id. Requires: one time at which all was read.
   */
  widen(): number {
    const sizes = new Map<number, number>();
    let largest = 0;
    for (let at = CONDITIONS_HEADER_BYTES, next: number; at < this.#end; at = next) {
      next = this.#next(at);
      const id = getU32(this.#bytes, at + CONDITION_COLLECTION_OFFSET);
      sizes.set(id, (sizes.get(id) ?? 0) + next - at);
      if (sizes.get(id)! > (sizes.get(largest) ?? 0)) largest = id;
    }
    this.addCollection(largest, this.#drop(largest), this.#readAt);
    return largest;
  }

  /** Takes out all that are on a collection; its name. */
  #drop(id: number): string {
    const bytes = this.#bytes;
    let name = '';
    let end = CONDITIONS_HEADER_BYTES;
    let kept = 0;
    let i = 0;
    for (let at = CONDITIONS_HEADER_BYTES, next: number; at < this.#end; at = next, i++) {
      next = this.#next(at);
      const subject = this.#subjects[i];
      if (getU32(bytes, at + CONDITION_COLLECTION_OFFSET) === id) {
        ({ name } = subject);
        continue;
      }
      bytes.copyWithin(end, at, next);
      this.#subjects[kept++] = subject;
      end += next - at;
    }
    this.#subjects.length = kept;
    this.#end = end;
    return name;
  }

  #next(at: number): number {
    const keyBytes = getU16(this.#bytes, at + CONDITION_KEY_BYTES_OFFSET);
    const upperWord = getU32(this.#bytes, at + CONDITION_UPPER_BYTES_OFFSET);
    return at + conditionBytes(keyBytes, upperWord === CONDITION_UPPER_OPEN ? 0 : upperWord);
  }

  /** Lays them with their header. Requires: `check` found nothing. */
  lay(target: Uint8Array, at: number): void {
    layConditionsHeader(target, at, this.count, this.#end);
    this.layRows(target, at + CONDITIONS_HEADER_BYTES);
  }

  /** Lays them without a header. Requires: `check` found nothing. */
  layRows(target: Uint8Array, at: number): void {
    copyAt(this.#bytes, CONDITIONS_HEADER_BYTES, this.#end - CONDITIONS_HEADER_BYTES, target, at);
  }

  /** The sequencer's memory does not reach back to the time of the last look: the next check must look. */
  onTooOld(): void {
    this.#isTooOld = true;
  }

  /** What is visible now breaks a condition: the error that says which. All are looked at at one time. */
  check(): TidemarkError | undefined {
    if (this.#readAt >= 0 && !this.#isTooOld) return undefined;
    const reader = this.#reader;
    for (;;) {
      reader.enter(
        getU32(this.#bytes, CONDITIONS_HEADER_BYTES + CONDITION_COLLECTION_OFFSET),
        NEWEST,
      );
      try {
        // History may have moved on between the choice of the time and the view.
        if (this.#isReadable()) return this.#look();
      } finally {
        reader.leave();
      }
    }
  }

  /** After it had to wait: what breaks a condition, or keeps it from being looked at. */
  lookAgain(): Error | undefined {
    try {
      return this.check();
    } catch (error) {
      return error as Error;
    }
  }

  /** The time of the look is one of each collection that it looks at, and of the catalog. */
  #isReadable(): boolean {
    if (!this.#isReadableIn(CATALOG_ID)) return false;
    for (let at = CONDITIONS_HEADER_BYTES; at < this.#end; at = this.#next(at)) {
      if (!this.#isReadableIn(getU32(this.#bytes, at + CONDITION_COLLECTION_OFFSET))) return false;
    }
    return true;
  }

  #isReadableIn(id: number): boolean {
    const { view, T } = this.#reader;
    const block = view.collection(id);
    return T < 0 || block === 0 || T >= view.since(block);
  }

  #look(): TidemarkError | undefined {
    const reader = this.#reader;
    const bytes = this.#bytes;
    let i = 0;
    for (let at = CONDITIONS_HEADER_BYTES; at < this.#end; at = this.#next(at)) {
      const { offset } = this.#subjects[i];
      const id = getU32(bytes, at + CONDITION_COLLECTION_OFFSET);
      let from = reader.T + 1;
      if (bytes[at + CONDITION_KIND_OFFSET] > CONDITION_ABSENT) {
        const newest = this.#newestChange(at, id, offset!);
        // What is not visible yet has its place before us all the same.
        if (newest > offset!) return this.conflict(i, newest);
        if (newest < 0 && !this.#isThere(id, this.#subjects[i].name)) {
          return this.conflict(i, Math.max(reader.time, offset! + 1));
        }
        from = Math.max(from, offset! + 1);
      } else {
        const key = at + CONDITION_KEY_OFFSET;
        const length = getU16(bytes, at + CONDITION_KEY_BYTES_OFFSET);
        const keyBytes = bytes.subarray(key, key + length);
        const outcome = reader.find(id, reader.view.collection(id), keyBytes, length, false);
        const found = outcome === ROW_FOUND ? reader.time : null;
        if (found !== offset) return this.conflict(i, found);
      }
      setU64(bytes, at + CONDITION_FROM_OFFSET, from);
      i++;
    }
    return undefined;
  }

  /**
   * The catalog has the collection. Of one that was dropped no trace may be left, unless its time is held, and
   * what was changed in it is not known any more; `reader.time` is then that of the catalog's row, if it has one.
   */
  #isThere(id: number, name: string): boolean {
    const reader = this.#reader;
    const key = catalogKey(name);
    const block = reader.view.collection(CATALOG_ID);
    if (reader.find(CATALOG_ID, block, key, key.length, false) !== ROW_FOUND) return false;
    const { valueBytes, valueStart, valueEnd } = reader;
    const row = decodeLent(CATALOG_VALUES, valueBytes, valueStart, valueEnd);
    return checkCatalogRow(row, name).id === id;
  }

  /** Of what a condition that is not on a row is about; if it is no later than `above`, `above` will do. */
  #newestChange(at: number, id: number, above: number): number {
    const bytes = this.#bytes;
    if (bytes[at + CONDITION_KIND_OFFSET] === CONDITION_COLLECTION) {
      return this.#reader.newestChange(id);
    }
    const key = at + CONDITION_KEY_OFFSET;
    const end = key + getU16(bytes, at + CONDITION_KEY_BYTES_OFFSET);
    const upperWord = getU32(bytes, at + CONDITION_UPPER_BYTES_OFFSET);
    const isOpen = upperWord === CONDITION_UPPER_OPEN;
    const upper = isOpen ? undefined : bytes.subarray(end, end + upperWord);
    return this.#reader.changeWithin(
      id,
      bytes.subarray(key, end),
      upper,
      above,
      RANGE_ROWS_MAX,
      RANGE_BYTES_MAX,
    );
  }

  /** The error for a broken condition; `offset` is that of the change, null when the row is absent. */
  conflict(index: number, offset: number | null): TidemarkError {
    const { name, isRow, key, offset: expected } = this.#subjects[index];
    const found = offset === null ? 'the row is absent' : `the last change is at ${offset}`;
    const wish = isRow ? `${expected}` : `nothing after ${expected}`;
    const was = expected === null ? 'no row' : wish;
    return new TidemarkError(
      'TIDEMARK_CONFLICT',
      `a condition on ${name} does not hold: ${was} was expected, and ${found}`,
      isRow ? { collection: name, key, offset } : { collection: name, offset },
    );
  }
}
