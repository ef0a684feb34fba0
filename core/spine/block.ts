/**
 * The block: some tens or hundreds of rows in order, columns before bytes, keys prefix-compressed with
 * restart points. It holds at least one row and grows with it; usually it stays at its target. Built by
 * part writers; read by cursors (every row) and point reads (one row), on any thread, out of private memory.
 *
 *   block    off size field
 *              0    4 CRC-32 of the rest, as stored
 *              4    1 codec: 0 none; others (block-codec.ts) compress all from offset 12 on
 *              5    1 flags: 1 tombstones, 2 diffs
 *              6    1 bytes of a time: 0, 2, 4 or 8
 *              7    1 bytes of a value end: 2 or 4
 *              8    4 bytes of the whole block when decoded
 *             12    4 rows
 *             16    8 base: the smallest time
 *             24    4 bytes of all keys
 *             28      restarts     u32 a 16 rows: where the 16th, 32nd, ... entry begins among the keys
 *                     times        time - base of each row
 *                     value ends   where each value ends among the values
 *                     tombstones   a bit a row, 1 = delete; only with flag 1
 *                     diffs        f64 a row, every row is an update; only with flag 2
 *                     keys         entries: varint shared, varint rest, rest bytes
 *                     values
 *
 * `shared` counts the bytes taken over from the key before: all that agree, but 0 at a restart. So the
 * same key again is (its length, 0). Varints have 7 bits a byte, low first, at most 3 bytes.
 */
import { crc32 } from '../base/crc32.ts';
import {
  compareAt,
  equalAt,
  getF64,
  getU16,
  getU32,
  getU64,
  NO_BYTES,
  setF64,
  setU16,
  setU32,
  setU64,
} from '../base/bytes.ts';
import { invariant } from '../base/assert.ts';
import type { RowCursor } from '../base/cursor.ts';
import { NO_FRONTIER } from '../base/frontier.ts';
import { KiB, MiB } from '../base/limits.ts';
import { OP_DELETE, OP_PUT, OP_UPDATE } from '../base/update.ts';
import { copyAt, grown } from '../base/copy.ts';
import { copyValue } from './row-hash.ts';

export const CRC_OFFSET = 0;
export const CODEC_OFFSET: number = CRC_OFFSET + 4;
const FLAGS_OFFSET: number = CODEC_OFFSET + 1;
const TIME_WIDTH_OFFSET: number = FLAGS_OFFSET + 1;
const END_WIDTH_OFFSET: number = TIME_WIDTH_OFFSET + 1;
export const RAW_BYTES_OFFSET: number = END_WIDTH_OFFSET + 1;
/** What a codec compresses begins here: the header before it stays as it is. */
export const BODY_OFFSET: number = RAW_BYTES_OFFSET + 4;
const ROWS_OFFSET: number = BODY_OFFSET;
const BASE_OFFSET: number = ROWS_OFFSET + 4;
const KEYS_BYTES_OFFSET: number = BASE_OFFSET + 8;
const HEADER_BYTES: number = KEYS_BYTES_OFFSET + 4;

export const CODEC_NONE = 0;
const FLAG_TOMBSTONES = 1;
const FLAG_DIFFS = 2;

/** Scratch of a builder: so much at first, and at most so much kept from block to block. */
const FIRST_BYTES: number = 32 * KiB;
const KEPT_BYTES_MAX: number = 1 * MiB;

/** Rows from one restart point to the next; a power of two. */
const RESTART_ROWS = 16;
const RESTART_SHIFT = 4;
invariant(RESTART_ROWS === 1 << RESTART_SHIFT, 'a restart is a power of two of rows');

/** Bytes that a row takes in a block besides its key's own and its value, at the usual widths. */
const ROW_BYTES = 2 + 4 + 2;

function restartCount(rows: number): number {
  return (rows + RESTART_ROWS - 1) >>> RESTART_SHIFT;
}

/** Collects rows of one block and lays them out. Requires ascending rows; its writer checks that. */
export class BlockBuilder {
  rows: number;
  #keys: Uint8Array;
  #keysBytes: number;
  #values: Uint8Array;
  #valuesBytes: number;
  #times: Float64Array;
  #ends: Uint32Array;
  #kinds: Uint8Array;
  #diffs: Float64Array;
  #restarts: Uint32Array;
  #timeMin: number;
  #timeMax: number;
  #flags: number;

  constructor() {
    this.rows = 0;
    this.#keys = new Uint8Array(FIRST_BYTES);
    this.#keysBytes = 0;
    this.#values = new Uint8Array(FIRST_BYTES);
    this.#valuesBytes = 0;
    this.#times = new Float64Array(1024);
    this.#ends = new Uint32Array(1024);
    this.#kinds = new Uint8Array(1024);
    this.#diffs = new Float64Array(1024);
    this.#restarts = new Uint32Array(1024 / RESTART_ROWS);
    this.#timeMin = Number.MAX_SAFE_INTEGER;
    this.#timeMax = 0;
    this.#flags = 0;
  }

  clear(): void {
    this.rows = 0;
    this.#keysBytes = 0;
    this.#valuesBytes = 0;
    // One large row is no reason to keep so much.
    if (this.#keys.length > KEPT_BYTES_MAX) this.#keys = new Uint8Array(FIRST_BYTES);
    if (this.#values.length > KEPT_BYTES_MAX) this.#values = new Uint8Array(FIRST_BYTES);
    this.#timeMin = Number.MAX_SAFE_INTEGER;
    this.#timeMax = 0;
    this.#flags = 0;
  }

  /** About the bytes of the block if one more such row were added. */
  bytesWith(keyLength: number, valueLength: number): number {
    const area = this.#keysBytes + this.#valuesBytes + keyLength + valueLength;
    return HEADER_BYTES + area + (this.rows + 1) * ROW_BYTES + 4 * restartCount(this.rows + 1);
  }

  /** Returns the value's hash. `shared`: bytes that the key has in common with the one before. */
  add(
    key: Uint8Array,
    keyOffset: number,
    keyLength: number,
    shared: number,
    time: number,
    kind: number,
    diff: number,
    value: Uint8Array,
    valueOffset: number,
    valueLength: number,
  ): number {
    const row = this.rows;
    if (row === this.#times.length) this.#growRows();
    let at = this.#keysBytes;
    const needed = at + 6 + keyLength;
    if (needed > this.#keys.length) this.#keys = grown(this.#keys, at, needed);
    const keys = this.#keys;
    let from = shared;
    if ((row & (RESTART_ROWS - 1)) === 0) {
      this.#restarts[row >>> RESTART_SHIFT] = at;
      from = 0;
    }
    const rest = keyLength - from;
    at = putVarint(keys, at, from);
    at = putVarint(keys, at, rest);
    copyAt(key, keyOffset + from, rest, keys, at);
    this.#keysBytes = at + rest;

    const start = this.#valuesBytes;
    const end = start + valueLength;
    if (end > this.#values.length) this.#values = grown(this.#values, start, end);
    const hash = copyValue(value, valueOffset, valueLength, this.#values, start);
    this.#valuesBytes = end;

    this.#ends[row] = end;
    this.#times[row] = time;
    this.#kinds[row] = kind;
    if (time < this.#timeMin) this.#timeMin = time;
    if (time > this.#timeMax) this.#timeMax = time;
    if (kind === OP_DELETE) {
      this.#flags |= FLAG_TOMBSTONES;
    } else if (kind === OP_UPDATE) {
      this.#flags |= FLAG_DIFFS;
      this.#diffs[row] = diff;
    }
    this.rows = row + 1;
    return hash;
  }

  /** Bytes that `write` will use. */
  get bytes(): number {
    return this.#columnsBytes() + this.#keysBytes + this.#valuesBytes;
  }

  /** Writes the block as stored at target[at...] and returns its bytes. */
  write(target: Uint8Array, at: number): number {
    const rows = this.rows;
    invariant(rows > 0, 'a block holds at least one row');
    const bytes = this.bytes;
    const base = this.#timeMin;
    const timeWidth = this.#timeWidth();
    const endWidth = this.#endWidth();
    target[at + CODEC_OFFSET] = CODEC_NONE;
    target[at + FLAGS_OFFSET] = this.#flags;
    target[at + TIME_WIDTH_OFFSET] = timeWidth;
    target[at + END_WIDTH_OFFSET] = endWidth;
    setU32(target, at + RAW_BYTES_OFFSET, bytes);
    setU32(target, at + ROWS_OFFSET, rows);
    setU64(target, at + BASE_OFFSET, base);
    setU32(target, at + KEYS_BYTES_OFFSET, this.#keysBytes);
    let p = at + HEADER_BYTES;
    for (let i = 0; i < restartCount(rows); i++, p += 4) setU32(target, p, this.#restarts[i]);
    p = putTimes(target, p, this.#times, rows, base, timeWidth);
    const ends = this.#ends;
    if (endWidth === 2) for (let i = 0; i < rows; i++, p += 2) setU16(target, p, ends[i]);
    else for (let i = 0; i < rows; i++, p += 4) setU32(target, p, ends[i]);
    if ((this.#flags & FLAG_TOMBSTONES) !== 0) {
      target.fill(0, p, p + ((rows + 7) >>> 3));
      for (let i = 0; i < rows; i++) {
        if (this.#kinds[i] === OP_DELETE) target[p + (i >>> 3)] |= 1 << (i & 7);
      }
      p += (rows + 7) >>> 3;
    }
    if ((this.#flags & FLAG_DIFFS) !== 0) {
      invariant(this.#flags === FLAG_DIFFS, 'updates do not mix with puts and deletes');
      for (let i = 0; i < rows; i++, p += 8) {
        invariant(this.#kinds[i] === OP_UPDATE, 'updates do not mix with puts and deletes');
        setF64(target, p, this.#diffs[i]);
      }
    }
    target.set(this.#keys.subarray(0, this.#keysBytes), p);
    p += this.#keysBytes;
    target.set(this.#values.subarray(0, this.#valuesBytes), p);
    p += this.#valuesBytes;
    invariant(p === at + bytes, 'a block has the size it said', p - at, bytes);
    setU32(target, at + CRC_OFFSET, crc32(target, at + CODEC_OFFSET, bytes - CODEC_OFFSET));
    return bytes;
  }

  #columnsBytes(): number {
    const rows = this.rows;
    let bytes = HEADER_BYTES + 4 * restartCount(rows);
    bytes += rows * (this.#timeWidth() + this.#endWidth());
    if ((this.#flags & FLAG_TOMBSTONES) !== 0) bytes += (rows + 7) >>> 3;
    if ((this.#flags & FLAG_DIFFS) !== 0) bytes += 8 * rows;
    return bytes;
  }

  #timeWidth(): number {
    const span = this.#timeMax - this.#timeMin;
    return span === 0 ? 0 : span <= 0xffff ? 2 : span <= 0xffff_ffff ? 4 : 8;
  }

  #endWidth(): number {
    return this.#valuesBytes <= 0xffff ? 2 : 4;
  }

  #growRows(): void {
    const n = this.#times.length * 2;
    const times = new Float64Array(n);
    times.set(this.#times);
    this.#times = times;
    const ends = new Uint32Array(n);
    ends.set(this.#ends);
    this.#ends = ends;
    const kinds = new Uint8Array(n);
    kinds.set(this.#kinds);
    this.#kinds = kinds;
    const diffs = new Float64Array(n);
    diffs.set(this.#diffs);
    this.#diffs = diffs;
    const restarts = new Uint32Array(n / RESTART_ROWS);
    restarts.set(this.#restarts);
    this.#restarts = restarts;
  }
}

function putVarint(target: Uint8Array, at: number, n: number): number {
  if (n > 127) {
    target[at++] = n | 128;
    n >>>= 7;
    if (n > 127) {
      target[at++] = n | 128;
      n >>>= 7;
    }
  }
  target[at++] = n;
  return at;
}

function putTimes(
  target: Uint8Array,
  at: number,
  times: Float64Array,
  rows: number,
  base: number,
  width: number,
): number {
  let p = at;
  if (width === 2) for (let i = 0; i < rows; i++, p += 2) setU16(target, p, times[i] - base);
  else if (width === 4) for (let i = 0; i < rows; i++, p += 4) setU32(target, p, times[i] - base);
  else if (width === 8) for (let i = 0; i < rows; i++, p += 8) setU64(target, p, times[i] - base);
  return p;
}

/**
 * What is wrong with a stored block at bytes[at, at + length), if anything. Ask before reading rows out
 * of bytes that came from disk; out of a packed one only `unpackBlock` does.
 */
export function blockFault(bytes: Uint8Array, at: number, length: number): string | undefined {
  if (length < HEADER_BYTES) return 'shorter than a block';
  const crc = crc32(bytes, at + CODEC_OFFSET, length - CODEC_OFFSET);
  if (crc !== getU32(bytes, at + CRC_OFFSET)) return 'checksum';
  // The shape of a packed one shows when it is unpacked.
  return bytes[at + CODEC_OFFSET] === CODEC_NONE ? blockShapeFault(bytes, at, length) : undefined;
}

/** The same without the checksum: enough that nothing reads beyond the block, not that it is right. */
export function blockShapeFault(bytes: Uint8Array, at: number, length: number): string | undefined {
  if (length < HEADER_BYTES) return 'shorter than a block';
  if (bytes[at + CODEC_OFFSET] !== CODEC_NONE) return 'packed twice';
  if (getU32(bytes, at + RAW_BYTES_OFFSET) !== length) return 'another size';
  const flags = bytes[at + FLAGS_OFFSET];
  if (flags > FLAG_DIFFS) return 'unknown flags';
  const timeWidth = bytes[at + TIME_WIDTH_OFFSET];
  const endWidth = bytes[at + END_WIDTH_OFFSET];
  if (timeWidth !== 0 && timeWidth !== 2 && timeWidth !== 4 && timeWidth !== 8) return 'time width';
  if (endWidth !== 2 && endWidth !== 4) return 'value end width';
  const rows = getU32(bytes, at + ROWS_OFFSET);
  if (rows < 1 || rows > length) return 'row count';
  const keysAt = at + keysOffset(rows, timeWidth, endWidth, flags);
  const valuesAt = keysAt + getU32(bytes, at + KEYS_BYTES_OFFSET);
  const endsAt = at + HEADER_BYTES + 4 * restartCount(rows) + rows * timeWidth;
  if (valuesAt > at + length) return 'keys reach beyond it';
  const lastEnd = endAt(bytes, endsAt, endWidth, rows - 1);
  if (valuesAt + lastEnd !== at + length) return 'values do not fill it';
  return undefined;
}

/** From the start of a block to its keys. */
function keysOffset(rows: number, timeWidth: number, endWidth: number, flags: number): number {
  let offset = HEADER_BYTES + 4 * restartCount(rows) + rows * (timeWidth + endWidth);
  if ((flags & FLAG_TOMBSTONES) !== 0) offset += (rows + 7) >>> 3;
  if ((flags & FLAG_DIFFS) !== 0) offset += 8 * rows;
  return offset;
}

function endAt(bytes: Uint8Array, endsAt: number, endWidth: number, row: number): number {
  return endWidth === 2 ? getU16(bytes, endsAt + 2 * row) : getU32(bytes, endsAt + 4 * row);
}

function timeAt(bytes: Uint8Array, timesAt: number, timeWidth: number, row: number): number {
  if (timeWidth === 4) return getU32(bytes, timesAt + 4 * row);
  if (timeWidth === 2) return getU16(bytes, timesAt + 2 * row);
  return timeWidth === 0 ? 0 : getU64(bytes, timesAt + 8 * row);
}

/**
 * Walks the rows of one block. Requires a block in which `blockFault` found nothing. Fields of the
 * current row are valid until the cursor moves; values lie in the block itself, so `loadValue` is free.
 */
export class BlockCursor implements RowCursor {
  valid: boolean;
  keyBytes: Uint8Array;
  keyOffset: number;
  keyLength: number;
  time: number;
  kind: number;
  diff: number;
  valueLength: number;
  valueBytes: Uint8Array;
  valueOffset: number;

  protected block: Uint8Array;
  protected rows: number;
  protected row: number;
  /** The entry after the current one. */
  protected entry: number;
  protected restartsAt: number;
  protected timesAt: number;
  protected timeWidth: number;
  protected timeBase: number;
  protected endsAt: number;
  protected endWidth: number;
  protected flags: number;
  protected tombstonesAt: number;
  protected diffsAt: number;
  protected keysAt: number;
  protected valuesAt: number;

  constructor() {
    this.valid = false;
    this.keyBytes = new Uint8Array(256);
    this.keyOffset = 0;
    this.keyLength = 0;
    // As large as times get, so that the fields hold doubles from the first row on.
    this.time = -1;
    this.kind = 0;
    this.diff = 0;
    this.valueLength = 0;
    this.valueBytes = NO_BYTES;
    this.valueOffset = 0;
    this.block = NO_BYTES;
    this.rows = 0;
    this.row = 0;
    this.entry = 0;
    this.restartsAt = 0;
    this.timesAt = 0;
    this.timeWidth = 0;
    this.timeBase = 0;
    this.endsAt = 0;
    this.endWidth = 0;
    this.flags = 0;
    this.tombstonesAt = 0;
    this.diffsAt = 0;
    this.keysAt = 0;
    this.valuesAt = 0;
  }

  /** Takes the block at bytes[at...]; stands on no row. Valid until those bytes change. */
  open(bytes: Uint8Array, at: number): void {
    this.valid = false;
    this.block = bytes;
    this.valueBytes = bytes;
    const rows = getU32(bytes, at + ROWS_OFFSET);
    this.rows = rows;
    this.row = 0;
    this.flags = bytes[at + FLAGS_OFFSET];
    this.timeWidth = bytes[at + TIME_WIDTH_OFFSET];
    this.endWidth = bytes[at + END_WIDTH_OFFSET];
    this.timeBase = getU64(bytes, at + BASE_OFFSET);
    this.restartsAt = at + HEADER_BYTES;
    this.timesAt = this.restartsAt + 4 * restartCount(rows);
    this.endsAt = this.timesAt + rows * this.timeWidth;
    this.tombstonesAt = this.endsAt + rows * this.endWidth;
    this.diffsAt = this.tombstonesAt;
    this.keysAt = at + keysOffset(rows, this.timeWidth, this.endWidth, this.flags);
    this.valuesAt = this.keysAt + getU32(bytes, at + KEYS_BYTES_OFFSET);
    this.entry = this.keysAt;
  }

  loadValue(): void {}

  first(): void {
    this.goTo(0);
  }

  last(): void {
    this.goTo(this.rows - 1);
  }

  next(): void {
    const row = this.row + 1;
    if (row < this.rows) {
      this.row = row;
      this.readKey();
      this.readColumns();
    } else {
      this.valid = false;
    }
  }

  previous(): void {
    if (this.row > 0) this.goTo(this.row - 1);
    else this.valid = false;
  }

  seek(key: Uint8Array, offset: number, length: number): void {
    this.seekInBlock(key, offset, length);
  }

  seekBelow(key: Uint8Array, offset: number, length: number): void {
    this.seekInBlock(key, offset, length);
    if (!this.valid) this.goTo(this.rows - 1);
    else if (this.row > 0) this.goTo(this.row - 1);
    else this.valid = false;
  }

  /** Stands on the block's first row with key >= the given one, or on none when all are below. */
  protected seekInBlock(key: Uint8Array, offset: number, length: number): void {
    const { block, restartsAt, keysAt, rows } = this;
    let row = restartBelow(block, restartsAt, keysAt, rows, key, offset, length);
    this.entry = keysAt + getU32(block, restartsAt + 4 * (row >>> RESTART_SHIFT));
    this.valid = false;
    for (; row < rows; row++) {
      this.readKey();
      if (compareAt(this.keyBytes, 0, this.keyLength, key, offset, length) < 0) continue;
      this.row = row;
      this.valid = true;
      this.readColumns();
      return;
    }
  }

  /** Stands on a row by its number: decodes from the restart point at or before it. */
  protected goTo(row: number): void {
    const restart = row >>> RESTART_SHIFT;
    this.entry = this.keysAt + getU32(this.block, this.restartsAt + 4 * restart);
    for (let i = restart << RESTART_SHIFT; i <= row; i++) this.readKey();
    this.row = row;
    this.valid = true;
    this.readColumns();
  }

  /** Decodes the entry at `entry` over the key before it. */
  protected readKey(): void {
    const block = this.block;
    let p = this.entry;
    let shared = block[p++];
    if (shared > 127) {
      shared = (shared & 127) | (block[p++] << 7);
      if (shared > 16383) shared = (shared & 16383) | (block[p++] << 14);
    }
    let rest = block[p++];
    if (rest > 127) {
      rest = (rest & 127) | (block[p++] << 7);
      if (rest > 16383) rest = (rest & 16383) | (block[p++] << 14);
    }
    const length = shared + rest;
    if (length > this.keyBytes.length) this.keyBytes = grown(this.keyBytes, shared, length);
    copyAt(block, p, rest, this.keyBytes, shared);
    this.keyLength = length;
    this.entry = p + rest;
  }

  protected readColumns(): void {
    const block = this.block;
    const row = this.row;
    const { endsAt, endWidth } = this;
    const start = row === 0 ? 0 : endAt(block, endsAt, endWidth, row - 1);
    this.valueOffset = this.valuesAt + start;
    this.valueLength = endAt(block, endsAt, endWidth, row) - start;
    this.time = this.timeBase + timeAt(block, this.timesAt, this.timeWidth, row);
    const flags = this.flags;
    if (flags === 0) {
      this.kind = OP_PUT;
      this.diff = 1;
    } else if (flags === FLAG_TOMBSTONES) {
      const gone = (block[this.tombstonesAt + (row >>> 3)] & (1 << (row & 7))) !== 0;
      this.kind = gone ? OP_DELETE : OP_PUT;
      this.diff = gone ? -1 : 1;
    } else {
      this.kind = OP_UPDATE;
      this.diff = getF64(block, this.diffsAt + 8 * row);
    }
  }
}

/** The first row of the last restart whose key is below the given one; 0 when there is none. */
function restartBelow(
  bytes: Uint8Array,
  restartsAt: number,
  keysAt: number,
  rows: number,
  key: Uint8Array,
  offset: number,
  length: number,
): number {
  let lo = 0;
  let hi = restartCount(rows) - 1;
  while (lo < hi) {
    const middle = (lo + hi + 1) >>> 1;
    // A restart's entry: the byte 0 (nothing shared), the length, the key.
    let p = keysAt + getU32(bytes, restartsAt + 4 * middle) + 1;
    let rest = bytes[p++];
    if (rest > 127) {
      rest = (rest & 127) | (bytes[p++] << 7);
      if (rest > 16383) rest = (rest & 16383) | (bytes[p++] << 14);
    }
    if (compareAt(bytes, p, rest, key, offset, length) < 0) lo = middle;
    else hi = middle - 1;
  }
  return lo << RESTART_SHIFT;
}

/** The block has the answer: the fields of the search say it. */
export const FOUND = 1;
/** The key has no version at or below the time, in this block or any later one. */
export const ABSENT = 2;
/** All versions of the key in this block are newer; the next block may begin with older ones. */
export const CONTINUES = 3;

/** Finds one version in a block without building keys or objects. Fields are valid until the next search. */
export class BlockSearch {
  time: number;
  /** Time of the oldest version of the key above asOf that was passed over, kept until the caller resets it. */
  newer: number;
  kind: number;
  diff: number;
  /** The value is valueBytes[valueOffset, valueOffset + valueLength): of the bytes searched. */
  valueBytes: Uint8Array;
  valueOffset: number;
  valueLength: number;

  constructor() {
    this.time = -1;
    this.newer = NO_FRONTIER;
    this.kind = 0;
    this.diff = 0;
    this.valueBytes = NO_BYTES;
    this.valueOffset = 0;
    this.valueLength = 0;
  }

  /**
   * The newest version of the key with time <= asOf in the block at bytes[at...]. Requires a block in
   * which `blockFault` found nothing. Answers FOUND, ABSENT or CONTINUES.
   */
  search(
    bytes: Uint8Array,
    at: number,
    key: Uint8Array,
    offset: number,
    length: number,
    asOf: number,
  ): number {
    const rows = getU32(bytes, at + ROWS_OFFSET);
    const flags = bytes[at + FLAGS_OFFSET];
    const timeWidth = bytes[at + TIME_WIDTH_OFFSET];
    const endWidth = bytes[at + END_WIDTH_OFFSET];
    const base = getU64(bytes, at + BASE_OFFSET);
    const restartsAt = at + HEADER_BYTES;
    const timesAt = restartsAt + 4 * restartCount(rows);
    const endsAt = timesAt + rows * timeWidth;
    const keysAt = at + keysOffset(rows, timeWidth, endWidth, flags);

    let row = restartBelow(bytes, restartsAt, keysAt, rows, key, offset, length);
    let p = keysAt + getU32(bytes, restartsAt + 4 * (row >>> RESTART_SHIFT));
    // While entries are below the key: bytes that the last one had in common with it.
    let match = 0;
    let found = false;
    for (; row < rows; row++) {
      let shared = bytes[p++];
      if (shared > 127) {
        shared = (shared & 127) | (bytes[p++] << 7);
        if (shared > 16383) shared = (shared & 16383) | (bytes[p++] << 14);
      }
      let rest = bytes[p++];
      if (rest > 127) {
        rest = (rest & 127) | (bytes[p++] << 7);
        if (rest > 16383) rest = (rest & 16383) | (bytes[p++] << 14);
      }
      const restAt = p;
      p += rest;
      if (found) {
        const same =
          (row & (RESTART_ROWS - 1)) === 0
            ? equalAt(bytes, restAt, rest, key, offset, length)
            : rest === 0 && shared === length;
        if (!same) return ABSENT;
      } else {
        if ((row & (RESTART_ROWS - 1)) === 0) match = 0;
        // More shared than matches: still below the key, at the same byte as the one before.
        if (shared > match) continue;
        // Less: it differs from the one before in a byte that the key has too, so it is above.
        if (shared < match) return ABSENT;
        const end = shared + rest;
        let i = shared;
        while (i < end && i < length && bytes[restAt + i - shared] === key[offset + i]) i++;
        if (i === end) {
          if (i === length) found = true;
        } else if (i === length || bytes[restAt + i - shared] > key[offset + i]) {
          return ABSENT;
        }
        match = i;
        if (!found) continue;
      }
      const time = base + timeAt(bytes, timesAt, timeWidth, row);
      if (time > asOf) {
        this.newer = time;
        continue;
      }
      this.time = time;
      this.valueBytes = bytes;
      const start = row === 0 ? 0 : endAt(bytes, endsAt, endWidth, row - 1);
      this.valueOffset = keysAt + getU32(bytes, at + KEYS_BYTES_OFFSET) + start;
      this.valueLength = endAt(bytes, endsAt, endWidth, row) - start;
      if (flags === FLAG_TOMBSTONES) {
        const bits = bytes[endsAt + rows * endWidth + (row >>> 3)];
        const gone = (bits & (1 << (row & 7))) !== 0;
        this.kind = gone ? OP_DELETE : OP_PUT;
        this.diff = gone ? -1 : 1;
      } else if (flags === FLAG_DIFFS) {
        this.kind = OP_UPDATE;
        this.diff = getF64(bytes, endsAt + rows * endWidth + 8 * row);
      } else {
        this.kind = OP_PUT;
        this.diff = 1;
      }
      return FOUND;
    }
    return found ? CONTINUES : ABSENT;
  }
}
