/**
 * Encodes transactions into private memory, in payload format 1 (core/base/update.ts). A write set is
 * one transaction being built, or a record being filled with many. Nothing here is shared: a record's
 * bytes are copied into pages once, when it closes. An operation is in entirely or not at all, also
 * when a codec throws.
 */
import { NO_BYTES, setF64, setU32 } from '../core/base/bytes.ts';
import { copyAt } from '../core/base/copy.ts';
import { commitBytesMax, keyBytesMax, valueBytesMax } from '../core/base/limits.ts';
import {
  OP_DELETE,
  OP_DELETE_RANGE,
  OP_DIFF_OFFSET,
  OP_HEADER_BYTES,
  OP_PUT,
  OP_UPDATE,
  OP_UPDATE_HEADER_BYTES,
  TX_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
} from '../core/base/update.ts';
import { encodeInto, encodedBy, tooLarge } from './encodings.ts';
import type { Codec } from './encodings.ts';
import type { ByteRange } from './key-range.ts';
import type { SpareBuffers } from './spare-buffers.ts';

const NO_BUFFER: Buffer = Buffer.alloc(0);

export class WriteSet {
  bytes: Buffer;
  /** Bytes filled. */
  end = 0;
  /** Operations of the transaction that is open, and of all in the set. */
  operations = 0;
  operationsTotal = 0;
  transactions = 0;
  /** Range deletes may be among the operations. */
  hasRanges = false;
  readonly #capacity: number;
  readonly #spares: SpareBuffers | undefined;
  #start = 0;
  /** A codec runs: what it calls must not write here. */
  #encoding = false;

  /** Grows into `spares`, if there are any. */
  constructor(capacity: number, spares?: SpareBuffers) {
    this.#capacity = capacity;
    this.#spares = spares;
    this.bytes = spares?.take(capacity) ?? Buffer.allocUnsafe(capacity);
  }

  clear(): void {
    this.end = 0;
    this.operations = 0;
    this.operationsTotal = 0;
    this.transactions = 0;
    this.hasRanges = false;
  }

  /** As `clear`; memory grown for a large transaction is given back. */
  reset(): void {
    this.clear();
    if (this.bytes.length > this.#capacity) this.bytes = Buffer.allocUnsafe(this.#capacity);
  }

  /** Gives back what it has grown to; it is not used any more. */
  release(): void {
    this.#spares?.give(this.bytes);
    this.bytes = NO_BUFFER;
    this.end = 0;
  }

  begin(): void {
    this.assertNotEncoding();
    this.#start = this.end;
    this.operations = 0;
    this.#ensure(TX_HEADER_BYTES);
    this.end += TX_HEADER_BYTES;
  }

  /** Closes the open transaction. */
  finish(): void {
    setU32(this.bytes, this.#start + TX_BYTES_OFFSET, this.end - this.#start);
    setU32(this.bytes, this.#start + TX_COUNT_OFFSET, this.operations);
    this.operationsTotal += this.operations;
    this.transactions++;
  }

  /** Opens the transaction that was finished last again, as it is. */
  reopen(): void {
    this.operationsTotal -= this.operations;
    this.transactions--;
  }

  /** Forgets the open transaction. */
  abandon(): void {
    this.end = this.#start;
    this.operations = 0;
  }

  put<K, V>(collection: number, keys: Codec<K>, key: K, values: Codec<V>, value: V): void {
    this.assertNotEncoding();
    const start = this.end;
    this.#encoding = true;
    try {
      const keyBytes = this.#encode(keys, key, start + OP_HEADER_BYTES);
      if (keyBytes > keyBytesMax) throw tooLarge('key', keyBytes, keyBytesMax);
      const valueAt = start + OP_HEADER_BYTES + keyBytes;
      const valueBytes = this.#encode(values, value, valueAt);
      if (valueBytes > valueBytesMax) throw tooLarge('value', valueBytes, valueBytesMax);
      this.#close(start, collection, OP_PUT, keyBytes, valueBytes);
    } catch (error) {
      this.end = start;
      throw error;
    } finally {
      this.#encoding = false;
    }
  }

  update<K, V>(
    collection: number,
    keys: Codec<K>,
    key: K,
    values: Codec<V>,
    value: V,
    diff: number,
  ): void {
    this.assertNotEncoding();
    if (!Number.isSafeInteger(diff) || diff === 0) {
      throw new TypeError(`a diff is a safe integer other than 0, not ${String(diff)}`);
    }
    const start = this.end;
    this.#encoding = true;
    try {
      const keyBytes = this.#encode(keys, key, start + OP_UPDATE_HEADER_BYTES);
      if (keyBytes > keyBytesMax) throw tooLarge('key', keyBytes, keyBytesMax);
      const valueAt = start + OP_UPDATE_HEADER_BYTES + keyBytes;
      const valueBytes = this.#encode(values, value, valueAt);
      if (valueBytes > valueBytesMax) throw tooLarge('value', valueBytes, valueBytesMax);
      this.#close(start, collection, OP_UPDATE, keyBytes, valueBytes);
      setF64(this.bytes, start + OP_DIFF_OFFSET, diff);
    } catch (error) {
      this.end = start;
      throw error;
    } finally {
      this.#encoding = false;
    }
  }

  delete<K>(collection: number, keys: Codec<K>, key: K): void {
    this.assertNotEncoding();
    const start = this.end;
    this.#encoding = true;
    try {
      const keyBytes = this.#encode(keys, key, start + OP_HEADER_BYTES);
      if (keyBytes > keyBytesMax) throw tooLarge('key', keyBytes, keyBytesMax);
      this.#close(start, collection, OP_DELETE, keyBytes, 0);
    } catch (error) {
      this.end = start;
      throw error;
    } finally {
      this.#encoding = false;
    }
  }

  /** Removes every row of the range. Requires: it is not empty, and its bounds fit an operation. */
  deleteRange(collection: number, { lower, upper, upperOpen }: ByteRange): void {
    this.assertNotEncoding();
    const start = this.end;
    const hi = upperOpen ? NO_BYTES : upper;
    this.#ensure(OP_HEADER_BYTES + lower.length + hi.length + 8);
    this.bytes.set(lower, start + OP_HEADER_BYTES);
    this.bytes.set(hi, start + OP_HEADER_BYTES + lower.length);
    this.#close(start, collection, OP_DELETE_RANGE, lower.length, hi.length);
    this.hasRanges = true;
  }

  /** Bytes of the transaction finished last. */
  get lastBytes(): number {
    return this.end - this.#start;
  }

  /** Forgets the transaction finished last. */
  dropLast(): void {
    this.end = this.#start;
    this.operationsTotal -= this.operations;
    this.transactions--;
  }

  /** Moves the transaction finished last into a set of its own. */
  takeLast(): WriteSet {
    const last = new WriteSet(this.end - this.#start);
    this.bytes.copy(last.bytes, 0, this.#start, this.end);
    last.end = this.end - this.#start;
    last.operationsTotal = this.operations;
    last.transactions = 1;
    last.hasRanges = this.hasRanges;
    this.dropLast();
    return last;
  }

  /** Appends a whole transaction that another set holds. */
  append(other: WriteSet): void {
    this.assertNotEncoding();
    this.#ensure(other.end);
    copyAt(other.bytes, 0, other.end, this.bytes, this.end);
    this.end += other.end;
    this.operationsTotal += other.operationsTotal;
    this.transactions += other.transactions;
    if (other.hasRanges) this.hasRanges = true;
  }

  #close(start: number, id: number, kind: number, keyBytes: number, valueBytes: number): void {
    const end = start + keyOffsetOf(kind) + keyBytes + valueBytes;
    const padded = (end + 7) & ~7;
    this.#ensureUpTo(padded);
    if (padded - this.#start > commitBytesMax) {
      throw tooLarge('commit', padded - this.#start, commitBytesMax);
    }
    const { bytes } = this;
    setU32(bytes, start, id);
    bytes[start + 4] = kind;
    bytes[start + 5] = 0;
    bytes[start + 6] = keyBytes;
    bytes[start + 7] = keyBytes >>> 8;
    setU32(bytes, start + 8, valueBytes);
    setU32(bytes, start + 12, 0);
    for (let at = end; at < padded; at++) bytes[at] = 0;
    this.end = padded;
    this.operations++;
  }

  /** Encodes at `at`, growing as needed; returns the count. */
  #encode<T>(codec: Codec<T>, value: T, at: number): number {
    this.#ensureUpTo(at + 64);
    const n = encodeInto(codec, value, this.bytes, at);
    if (n >= 0) return n;
    const encoded = encodedBy(codec, value);
    // Far beyond every limit: refused before it is copied.
    if (encoded.length > valueBytesMax) throw tooLarge('value', encoded.length, valueBytesMax);
    this.#ensureUpTo(at + encoded.length);
    this.bytes.set(encoded, at);
    return encoded.length;
  }

  /** Throws while a codec runs. */
  assertNotEncoding(): void {
    if (this.#encoding) throw new TypeError('a codec must not write to the engine');
  }

  #ensure(more: number): void {
    this.#ensureUpTo(this.end + more);
  }

  #ensureUpTo(bytes: number): void {
    if (bytes <= this.bytes.length) return;
    const wanted = Math.max(bytes + 64, this.bytes.length * 2);
    const grown = this.#spares?.take(wanted) ?? Buffer.allocUnsafe(wanted);
    // Also what lies beyond `end`: a key of the operation being built.
    this.bytes.copy(grown, 0, 0, this.bytes.length);
    this.#spares?.give(this.bytes);
    this.bytes = grown;
  }
}
