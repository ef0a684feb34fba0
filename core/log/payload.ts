/**
 * The payload of a commit as contiguous bytes: a check that nothing in it lies about its size, and a
 * walk over its transactions and operations without allocation. The table of the format stands in
 * core/base/update.ts; the value of an attach, which only the log carries, here. Bytes that passed
 * `validatePayload` may be walked, laid into pages and applied without another look. Called by
 * recovery on the durability thread, by feeds and tools.
 *
 *   attach value  off size field
 *                   0    4 plan number
 *                   4    4 count of parts
 *                   8      parts of 40 bytes: file u64, offset u64, bytes u64, rows u64,
 *                          footer CRC u32, zero u32
 *
 * What is wrong is TIDEMARK_CORRUPT with finding FORMAT; an unknown kind or flag, which a newer
 * version may have written, TIDEMARK_UNSUPPORTED_FORMAT. `detail.at` is the place in the payload.
 */
import { getF64, getU16, getU32, viewOf } from '../base/bytes.ts';
import { TidemarkError, corrupt } from '../base/errors.ts';
import { keyBytesMax, valueBytesMax } from '../base/limits.ts';
import {
  OP_ATTACH,
  OP_COLLECTION_OFFSET,
  OP_DELETE,
  OP_DELETE_RANGE,
  OP_DIFF_OFFSET,
  OP_FLAGS_OFFSET,
  OP_HEADER_BYTES,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_PUT,
  OP_UPDATE,
  OP_VALUE_BYTES_OFFSET,
  OP_ZERO_OFFSET,
  TX_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
} from '../base/update.ts';

export const ATTACH_PLAN_OFFSET = 0;
export const ATTACH_COUNT_OFFSET: number = ATTACH_PLAN_OFFSET + 4;
export const ATTACH_HEADER_BYTES: number = ATTACH_COUNT_OFFSET + 4;
const ATTACH_PART_ZERO_OFFSET = 36;
export const ATTACH_PART_BYTES: number = ATTACH_PART_ZERO_OFFSET + 4;

const ALIGN = 8;

/**
 * Throws unless bytes[offset, offset + length) are exactly `txCount` well-formed transactions. Who does
 * this for every record of a log brings the view of `bytes` along: one load instead of four.
 */
export function validatePayload(
  bytes: Uint8Array,
  offset: number,
  length: number,
  txCount: number,
  view: DataView = viewOf(bytes),
): void {
  const end = offset + length;
  let at = offset;
  for (let t = 0; t < txCount; t++) {
    if (end - at < TX_HEADER_BYTES) throw malformed('a transaction is cut off', at - offset);
    const txBytes = view.getUint32(at + TX_BYTES_OFFSET, true);
    const count = view.getUint32(at + TX_COUNT_OFFSET, true);
    if (txBytes < TX_HEADER_BYTES || txBytes % ALIGN !== 0 || txBytes > end - at) {
      throw malformed('a transaction does not fit its record', at - offset);
    }
    const txEnd = at + txBytes;
    let op = at + TX_HEADER_BYTES;
    for (let o = 0; o < count; o++) op = validateOperation(bytes, view, op, txEnd, offset);
    if (op !== txEnd) throw malformed('operations do not fill their transaction', op - offset);
    at = txEnd;
  }
  if (at !== end) throw malformed('transactions do not fill their record', at - offset);
}

/** Checks the operation at bytes[at] and returns where it ends. */
function validateOperation(
  bytes: Uint8Array,
  view: DataView,
  at: number,
  txEnd: number,
  base: number,
): number {
  if (txEnd - at < OP_HEADER_BYTES) throw malformed('an operation is cut off', at - base);
  const kind = bytes[at + OP_KIND_OFFSET];
  const flags = bytes[at + OP_FLAGS_OFFSET];
  if (kind === 0) throw malformed('an operation has kind 0', at - base);
  if (kind > OP_ATTACH) throw unsupported('kind', kind, at - base);
  if (flags !== 0) throw unsupported('flags', flags, at - base);
  if (view.getUint32(at + OP_ZERO_OFFSET, true) !== 0) {
    throw malformed('reserved bytes of an operation are not zero', at - base);
  }
  const keyAt = at + keyOffsetOf(kind);
  const keyBytes = view.getUint16(at + OP_KEY_BYTES_OFFSET, true);
  const valueBytes = view.getUint32(at + OP_VALUE_BYTES_OFFSET, true);
  if (valueBytes > valueBytesMax) throw malformed('a value is over its limit', at - base);
  const valueEnd = keyAt + keyBytes + valueBytes;
  // Sizes are multiples of 8 from the transaction's start, whatever that is aligned to in memory.
  const end = at + ((valueEnd - at + ALIGN - 1) & ~(ALIGN - 1));
  if (end > txEnd) throw malformed('an operation does not fit its transaction', at - base);
  for (let i = valueEnd; i < end; i++) {
    if (bytes[i] !== 0) throw malformed('padding is not zero', i - base);
  }
  switch (kind) {
    case OP_PUT:
      break;
    case OP_DELETE:
      if (valueBytes !== 0) throw malformed('a delete has a value', at - base);
      break;
    case OP_UPDATE: {
      const diff = getF64(bytes, at + OP_DIFF_OFFSET);
      if (!Number.isSafeInteger(diff) || diff === 0) {
        throw malformed('a diff is not a safe integer other than 0', at - base);
      }
      break;
    }
    case OP_DELETE_RANGE:
      if (valueBytes > keyBytesMax) throw malformed('a bound is over its limit', at - base);
      break;
    case OP_ATTACH:
      if (keyBytes !== 0) throw malformed('an attach has a key', at - base);
      validateAttach(bytes, keyAt, valueBytes, base);
      break;
  }
  return end;
}

function validateAttach(bytes: Uint8Array, at: number, valueBytes: number, base: number): void {
  const whole = (valueBytes - ATTACH_HEADER_BYTES) / ATTACH_PART_BYTES;
  if (whole < 0 || getU32(bytes, at + ATTACH_COUNT_OFFSET) !== whole) {
    throw malformed('the parts of an attach do not add up', at - base);
  }
  for (let i = 0; i < whole; i++) {
    const part = at + ATTACH_HEADER_BYTES + i * ATTACH_PART_BYTES;
    if (getU32(bytes, part + ATTACH_PART_ZERO_OFFSET) !== 0) {
      throw malformed('reserved bytes of an attach are not zero', part - base);
    }
  }
}

function malformed(what: string, at: number): TidemarkError {
  return corrupt('FORMAT', `${what} (byte ${at} of its payload)`, { at });
}

function unsupported(field: string, got: number, at: number): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_UNSUPPORTED_FORMAT',
    `an operation has ${field} ${got}, which this version does not know`,
    { field, got, at },
  );
}

/**
 * Walks a payload: `start`, then `nextTransaction` until false, and within each `nextOperation` until
 * false. Operations not walked are skipped. Fields are valid until the next move. Requires: validated.
 */
export class PayloadWalker {
  bytes: Uint8Array = new Uint8Array(0);
  /** Index of the transaction in its record, from 0. */
  txIndex = -1;
  operationCount = 0;
  /** The operation. */
  opOffset = 0;
  collection = 0;
  kind = 0;
  keyOffset = 0;
  keyBytes = 0;
  valueOffset = 0;
  valueBytes = 0;
  /** 1 for a put, -1 for a delete, the diff of an update, 0 for the others. */
  diff = 0;

  #txLeft = 0;
  #opLeft = 0;
  #opEnd = 0;
  #txEnd = 0;

  start(bytes: Uint8Array, offset: number, txCount: number): void {
    this.bytes = bytes;
    this.txIndex = -1;
    this.#txLeft = txCount;
    this.#txEnd = offset;
    this.#opLeft = 0;
  }

  nextTransaction(): boolean {
    if (this.#txLeft === 0) return false;
    this.#txLeft--;
    this.txIndex++;
    const at = this.#txEnd;
    this.operationCount = getU32(this.bytes, at + TX_COUNT_OFFSET);
    this.#txEnd = at + getU32(this.bytes, at + TX_BYTES_OFFSET);
    this.#opLeft = this.operationCount;
    this.#opEnd = at + TX_HEADER_BYTES;
    return true;
  }

  nextOperation(): boolean {
    if (this.#opLeft === 0) return false;
    this.#opLeft--;
    const { bytes } = this;
    const at = this.#opEnd;
    const kind = bytes[at + OP_KIND_OFFSET];
    this.opOffset = at;
    this.collection = getU32(bytes, at + OP_COLLECTION_OFFSET);
    this.kind = kind;
    this.keyBytes = getU16(bytes, at + OP_KEY_BYTES_OFFSET);
    this.valueBytes = getU32(bytes, at + OP_VALUE_BYTES_OFFSET);
    this.keyOffset = at + keyOffsetOf(kind);
    this.valueOffset = this.keyOffset + this.keyBytes;
    if (kind === OP_UPDATE) this.diff = getF64(bytes, at + OP_DIFF_OFFSET);
    else this.diff = kind === OP_PUT ? 1 : kind === OP_DELETE ? -1 : 0;
    const size = this.valueOffset + this.valueBytes - at;
    this.#opEnd = at + ((size + ALIGN - 1) & ~(ALIGN - 1));
    return true;
  }
}
