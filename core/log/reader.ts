/**
 * Reads a segment's bytes back: record by record, oldest first, or by looking for headers in what is
 * left of it. Everything below `validBytes` has passed its checksums, and `validBytes` only grows.
 * Called by recovery, feeds and tools, the latter below the frontier that is theirs; each move makes at
 * most one storage call. What lies compressed is read through the same classes (segment-source.ts).
 */
import { alignUp, getU32, viewOf } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { TidemarkError, corrupt } from '../base/errors.ts';
import { KiB, MiB, commitBytesMax } from '../base/limits.ts';
import { OFFSET_MAX } from '../base/frontier.ts';
import { segmentPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import {
  END_PAYLOAD_BYTES,
  RECORD_ALIGN,
  RECORD_CLEAN,
  RECORD_COMMIT,
  RECORD_FLAG_FIRST,
  RECORD_HEADER_BYTES,
  RECORD_SEAL,
  RECORD_SKIPPABLE_MIN,
  RECORD_WATERMARK,
  RecordHeader,
  isRecordHeader,
  isRecordTrace,
  syncWordOf,
} from './record.ts';

/** One call was made and there is nothing to say yet: call again. */
export const READ_MORE = 0;
/** A record: `header`, and its payload at bytes[payloadOffset, + header.payloadLen). */
export const READ_RECORD = 1;
/** The reader stands exactly at the end it was given, or at the end of the file. */
export const READ_END = 2;
/** Zeros stand where a header would. */
export const READ_ZERO = 3;
/** What stands there is no header of this segment and position. */
export const READ_BAD_HEADER = 4;
/** A sound header whose payload runs over the end. */
export const READ_CUT = 5;
/** A sound header whose payload is not what it says. */
export const READ_BAD_PAYLOAD = 6;
/** The bytes have yet to be fetched by whoever gave the SegmentBytes: call again when they are there. */
export const READ_WAIT = 7;

/** What `SegmentBytes.read` answers when the bytes have yet to be fetched. */
export const BYTES_LATER = -1;

/** The bytes of a segment by their position in its .seg. */
export interface SegmentBytes {
  /**
   * Copies [position, position + length) to target[at, ...) and returns how many: fewer only at the end,
   * or BYTES_LATER. At most one storage call.
   */
  read(target: Uint8Array, at: number, length: number, position: number): number;
}

/** A .seg as it lies there. */
export class FileBytes implements SegmentBytes {
  readonly #storage: Storage;
  readonly #fd: number;

  constructor(storage: Storage, fd: number) {
    this.#storage = storage;
    this.#fd = fd;
  }

  read(target: Uint8Array, at: number, length: number, position: number): number {
    return this.#storage.read(this.#fd, target, at, length, position);
  }
}

export const readBytesDefault: number = 1 * MiB;

export class SegmentReader {
  readonly header: RecordHeader = new RecordHeader();
  /** Window onto the file. Valid until the next move, like all fields. */
  bytes: Uint8Array;
  view: DataView;
  payloadOffset = 0;
  /** Where the record read, or what stopped the reader, stands. */
  position: number;

  readonly #source: SegmentBytes;
  readonly #seq: number;
  readonly #salt: number;
  #end: number;
  /** Position of bytes[0] in the segment, and how many bytes are there. */
  #windowAt = 0;
  #windowBytes = 0;
  #found = false;

  constructor(
    source: SegmentBytes,
    seq: number,
    salt: number,
    from: number,
    end: number,
    readBytes: number = readBytesDefault,
  ) {
    this.#source = source;
    this.#seq = seq;
    this.#salt = salt;
    this.position = from;
    this.#end = end;
    // It grows when a record needs more, and never beyond what is there to be read.
    this.bytes = new Uint8Array(Math.max(RECORD_HEADER_BYTES, Math.min(readBytes, end - from)));
    this.view = viewOf(this.bytes);
  }

  /** End of what has passed its checksums. */
  get validBytes(): number {
    return this.#found ? this.position + this.header.bytes : this.position;
  }

  /** Bytes from the current record on to the end. */
  get bytesLeft(): number {
    return Math.max(0, this.#end - this.position);
  }

  /** Moves past the current record to the next. Throws for sound headers this version cannot read. */
  next(): number {
    if (this.#found) {
      this.position += this.header.bytes;
      this.#found = false;
    }
    const left = this.#end - this.position;
    if (left <= 0) return READ_END;
    const headBytes = Math.min(left, RECORD_HEADER_BYTES);
    if (!this.#holds(headBytes)) return this.#load(headBytes);
    const at = this.position - this.#windowAt;
    if (isZero(this.bytes, at, headBytes)) return READ_ZERO;
    if (headBytes < RECORD_HEADER_BYTES) return READ_BAD_HEADER;
    if (!isRecordHeader(this.bytes, at, this.#salt, this.position)) return READ_BAD_HEADER;
    const { header } = this;
    header.decode(this.bytes, at, this.#seq, this.position);
    checkRecord(header);
    if (header.bytes > left) return READ_CUT;
    if (!this.#holds(header.bytes)) return this.#load(header.bytes);
    this.payloadOffset = at + RECORD_HEADER_BYTES;
    const crc = crc32(this.bytes, this.payloadOffset, header.payloadLen);
    if (crc !== header.payloadCrc) return READ_BAD_PAYLOAD;
    this.#found = true;
    return READ_RECORD;
  }

  #holds(bytes: number): boolean {
    return (
      this.position >= this.#windowAt && this.position + bytes <= this.#windowAt + this.#windowBytes
    );
  }

  /** Requires: the window does not hold `bytes` from the position on. */
  #load(bytes: number): number {
    if (bytes > this.bytes.length) {
      this.bytes = new Uint8Array(alignUp(bytes, 64 * KiB));
      this.view = viewOf(this.bytes);
    }
    const wanted = Math.min(this.bytes.length, this.#end - this.position);
    // Should it be overwritten only in part: what it held is not asked for again.
    this.#windowBytes = 0;
    const got = this.#source.read(this.bytes, 0, wanted, this.position);
    if (got === BYTES_LATER) return READ_WAIT;
    this.#windowAt = this.position;
    this.#windowBytes = got;
    // The file ends before the place it was said to.
    if (got < wanted) this.#end = this.position + got;
    return READ_MORE;
  }
}

/** A sound header was written as it stands: what is odd in it is a newer version's, or a defect. */
export function checkRecord(header: RecordHeader): void {
  const { kind, flags, payloadLen, txCount } = header;
  if ((flags & ~RECORD_FLAG_FIRST) !== 0) throw unsupported('flags', flags, header);
  const commit = kind === RECORD_COMMIT;
  if (kind > RECORD_CLEAN && kind < RECORD_SKIPPABLE_MIN) throw unsupported('kind', kind, header);
  const ends = kind === RECORD_SEAL || kind === RECORD_CLEAN;
  const sound =
    kind !== 0 &&
    payloadLen <= commitBytesMax &&
    commit === txCount > 0 &&
    (!ends || payloadLen === END_PAYLOAD_BYTES) &&
    (kind !== RECORD_WATERMARK || payloadLen === 0) &&
    header.minTxOffset + txCount <= OFFSET_MAX &&
    header.committedAtMs <= OFFSET_MAX;
  if (sound) return;
  const { file, seq, position } = placeOf(header);
  throw corrupt('FORMAT', `a record of ${file} at ${position} contradicts itself`, {
    file,
    seq,
    position,
    kind,
    payloadLen,
    txCount,
  });
}

function placeOf({ seq, position }: RecordHeader): { file: string; seq: number; position: number } {
  return { file: segmentPath(seq), seq, position };
}

function unsupported(field: string, got: number, header: RecordHeader): TidemarkError {
  const where = placeOf(header);
  return new TidemarkError(
    'TIDEMARK_UNSUPPORTED_FORMAT',
    `a record of ${where.file} at ${where.position} has ${field} ${got}, which this version does not know`,
    { field, got, ...where },
  );
}

export function isZero(bytes: Uint8Array, at: number, length: number): boolean {
  for (let i = at; i < at + length; i++) if (bytes[i] !== 0) return false;
  return true;
}

/**
 * Looks at every 8-byte stride of what is left of a segment for sound headers, whatever lies between
 * them: the witnesses of damage, or the records that went with a torn tail.
 */
export class TailScan {
  /** Sound headers found. */
  headers = 0;
  /** The highest claim among them. */
  claim = 0;
  /** Where the first of them stands, or -1. */
  firstAt = -1;
  /**
   * End of the last byte that is not zero; of a recycled segment, where old bytes lie everywhere, of the
   * last record whose header is sound, or of one at `from` whose header is half so. `from` when there is none.
   */
  contentEnd: number;

  readonly #source: SegmentBytes;
  readonly #salt: number;
  readonly #from: number;
  readonly #end: number;
  readonly #isRecycled: boolean;
  readonly #bytes: Uint8Array;
  readonly #words: Uint32Array;
  readonly #header: RecordHeader = new RecordHeader();
  #at: number;

  /** Requires: `from` is a multiple of 8. */
  constructor(
    source: SegmentBytes,
    salt: number,
    from: number,
    end: number,
    isRecycled: boolean,
    readBytes: number = readBytesDefault,
  ) {
    this.#source = source;
    this.#salt = salt;
    this.#isRecycled = isRecycled;
    this.#from = from;
    this.#at = from;
    this.#end = end;
    this.contentEnd = from;
    // Room for more than a header, so that windows that overlap by one still move on.
    const window = Math.min(readBytes, end - from);
    const room = Math.max(alignUp(window, RECORD_ALIGN), 4 * RECORD_HEADER_BYTES);
    this.#bytes = new Uint8Array(room);
    this.#words = new Uint32Array(this.#bytes.buffer);
  }

  /** True while there is more to look at. */
  step(): boolean {
    const wanted = Math.min(this.#bytes.length, this.#end - this.#at);
    if (wanted <= 0) return false;
    const got = this.#source.read(this.#bytes, 0, wanted, this.#at);
    const last = this.#isBlank(got) ? 0 : lastContent(this.#bytes, got);
    if (last > 0) {
      if (!this.#isRecycled) this.contentEnd = this.#at + last;
      else if (this.#at === this.#from) this.#lookForTrace(got);
      this.#look(got);
    }
    if (got < wanted || this.#at + got >= this.#end) return false;
    // The next window begins at the first stride whose header this one did not hold whole.
    const whole = Math.floor((got - RECORD_HEADER_BYTES) / RECORD_ALIGN) + 1;
    this.#at += whole * RECORD_ALIGN;
    return true;
  }

  /** Prepared room is most of what is looked at: whole windows of zeros go by at the speed of memory. */
  #isBlank(got: number): boolean {
    if (got !== this.#bytes.length) return false;
    if (zeros.length < got) zeros = Buffer.alloc(got);
    return zeros.compare(this.#bytes, 0, got, 0, got) === 0;
  }

  /** Where a record would begin, one that is damaged in one place must not pass for what was there before. */
  #lookForTrace(got: number): void {
    if (got < RECORD_HEADER_BYTES) return;
    if (!isRecordTrace(this.#bytes, 0, this.#salt, this.#at)) return;
    this.#header.decode(this.#bytes, 0, 0, this.#at);
    const { payloadLen, bytes } = this.#header;
    const length = payloadLen <= commitBytesMax ? bytes : RECORD_HEADER_BYTES;
    this.contentEnd = Math.min(this.#end, this.#at + length);
  }

  #look(got: number): void {
    const sync = syncWordOf(this.#salt);
    const words = this.#words;
    const strides = Math.floor((got - RECORD_HEADER_BYTES) / RECORD_ALIGN);
    for (let i = 0; i <= strides; i++) {
      if (words[i * 2] !== sync) continue;
      const at = i * RECORD_ALIGN;
      if (!isRecordHeader(this.#bytes, at, this.#salt, this.#at + at)) continue;
      this.#header.decode(this.#bytes, at, 0, this.#at + at);
      this.headers++;
      if (this.firstAt < 0) this.firstAt = this.#at + at;
      this.claim = Math.max(this.claim, this.#header.claim);
      if (!this.#isRecycled) continue;
      const recordEnd = Math.min(this.#end, this.#at + at + this.#header.bytes);
      this.contentEnd = Math.max(this.contentEnd, recordEnd);
    }
  }
}

let zeros: Buffer = Buffer.alloc(0);

/** One past the last byte that is not zero among the first `length`. */
function lastContent(bytes: Uint8Array, length: number): number {
  let i = length;
  while (i % 4 !== 0 && i > 0 && bytes[i - 1] === 0) i--;
  if (i % 4 !== 0) return i;
  while (i > 0 && getU32(bytes, i - 4) === 0) i -= 4;
  while (i > 0 && bytes[i - 1] === 0) i--;
  return i;
}
