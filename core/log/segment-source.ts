/**
 * A segment to read from, whether it lies there as written (.seg) or compressed (.segz): bytes by raw
 * position, a SegmentReader over them, and the position from which reading meets an offset or a time.
 * Changes nothing; safe beside a live engine, whose compress job may replace the one file by the other
 * between any two calls. Called by recovery, feeds and tools; each move makes at most one storage call.
 */
import { alignUp } from '../base/bytes.ts';
import { TidemarkError, corrupt } from '../base/errors.ts';
import { KiB } from '../base/limits.ts';
import { compressedPath, segmentPath } from '../storage/names.ts';
import type { OpenHow, Storage } from '../storage/storage.ts';
import { FileBytes, SegmentReader, TailScan } from './reader.ts';
import type { SegmentBytes } from './reader.ts';
import { RECORD_ALIGN, RECORD_HEADER_BYTES, RecordHeader } from './record.ts';
import { SEGMENT_BLOCK_BYTES, decodeSegmentBlock, saltOf } from './segment.ts';
import type { SegmentHeader } from './segment.ts';
import {
  SEGZ_FRAME_HEADER_BYTES,
  SEGZ_HEADER_BYTES,
  SEGZ_TRAILER_BYTES,
  SEGZ_ENTRY_BYTES,
  damaged,
  decodeFrame,
  decodeHeaderCopy,
  decodeSegzHeader,
  decodeTable,
  decodeTrailer,
} from './segz.ts';
import type { SegzFrame, SegzHeader } from './segz.ts';

type Machine<T> = Generator<void, T, void>;

/** What opens and closes: the storage itself, or who keeps account of descriptors. */
export type Opener = {
  open(path: string, how: OpenHow): number;
  close(fd: number): void;
};

/** The frames of a .segz as the bytes they were made from. */
export class PackedBytes implements SegmentBytes {
  readonly header: SegzHeader;
  readonly frames: readonly SegzFrame[];
  readonly #storage: Storage;
  readonly #fd: number;
  readonly #file: string;
  readonly #salt: number;
  /** The frame unpacked last: a record is seldom read in one piece. */
  #index = -1;
  #raw: Uint8Array = new Uint8Array(0);

  constructor(
    storage: Storage,
    fd: number,
    file: string,
    header: SegzHeader,
    frames: readonly SegzFrame[],
  ) {
    this.#storage = storage;
    this.#fd = fd;
    this.#file = file;
    this.header = header;
    this.frames = frames;
    this.#salt = saltOf(header.segment.logId, header.segment.seq);
  }

  /**
   * Copies raw bytes [position, position + length) to target[at, ...); fewer only at the segment's end.
   * Requires: `position` is not below the first record. Throws TIDEMARK_CORRUPT for a damaged frame.
   */
  read(target: Uint8Array, at: number, length: number, position: number): number {
    const stretch = this.stretchOf(position, length);
    const packed = new Uint8Array(stretch.bytes);
    if (stretch.bytes > 0) {
      const got = this.#storage.read(this.#fd, packed, 0, packed.length, stretch.position);
      if (got !== packed.length) {
        throw damaged(this.#file, stretch.position + got, 'it ends before its frames');
      }
    }
    return this.unpack(packed, stretch.position, target, at, length, position);
  }

  /**
   * The bytes of the file that are needed for raw [position, position + length): for who reads them in
   * its own way, and then asks `unpack`. No bytes: what is needed is at hand.
   */
  stretchOf(position: number, length: number): { position: number; bytes: number } {
    const end = Math.min(position + length, this.header.rawEnd);
    if (end <= position) return { position: 0, bytes: 0 };
    const index = this.frameAt(position);
    const first = this.frames[index === this.#index ? index + 1 : index];
    const last = this.frames[this.frameAt(end - 1)];
    // Frames stand one behind the other.
    if (first === undefined || first.position > last.position) return { position: 0, bytes: 0 };
    return { position: first.position, bytes: frameEnd(last) - first.position };
  }

  /** As `read`, from packed bytes of the file that begin at `packedAt` and hold the stretch. */
  unpack(
    packed: Uint8Array,
    packedAt: number,
    target: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): number {
    const end = Math.min(position + length, this.header.rawEnd);
    if (end <= position) return 0;
    let from = position;
    const last = this.frameAt(end - 1);
    for (let index = this.frameAt(position); index <= last; index++) {
      if (index !== this.#index) {
        this.#load(index, packed, this.frames[index].position - packedAt);
      }
      from = this.#copy(target, at, position, end, from);
    }
    return from - position;
  }

  /** Index of the frame that holds the raw position. */
  frameAt(position: number): number {
    return lastWhere(this.frames, ({ rawPosition }) => rawPosition <= position);
  }

  /** Raw position of the last frame that passes, where all that pass come first; else of the first. */
  positionOf(passes: (frame: SegzFrame) => boolean): number {
    return this.frames[lastWhere(this.frames, passes)]?.rawPosition ?? SEGMENT_BLOCK_BYTES;
  }

  #load(index: number, packed: Uint8Array, at: number): void {
    const { codec } = this.header;
    this.#index = -1;
    this.#raw = decodeFrame(packed, at, this.frames[index], codec, this.#salt, this.#file);
    this.#index = index;
  }

  /** Copies from the loaded frame what is wanted of it, from raw position `from` on; returns how far. */
  #copy(target: Uint8Array, at: number, position: number, end: number, from: number): number {
    const { rawPosition, rawBytes } = this.frames[this.#index];
    const to = Math.min(end, rawPosition + rawBytes);
    const piece = this.#raw.subarray(from - rawPosition, to - rawPosition);
    target.set(piece, at + from - position);
    return to;
  }
}

export function frameEnd(frame: SegzFrame): number {
  return frame.position + SEGZ_FRAME_HEADER_BYTES + frame.packedBytes;
}

export class SegmentSource {
  readonly seq: number;
  readonly path: string;
  readonly salt: number;
  readonly header: SegmentHeader;
  /** A copy of its header is damaged. */
  readonly isHeaderDamaged: boolean;
  /** Its raw bytes; from the first record's position on. */
  readonly bytes: SegmentBytes;
  /** What a .segz knows of itself; undefined for a .seg. */
  readonly packed: PackedBytes | undefined;
  /**
   * No record lies beyond: of a .segz the end of the segment's last record, of a .seg the size of its
   * file when it was opened, whose valid bytes end where its successor says (prevEndPos).
   */
  readonly end: number;
  readonly #opener: Opener;
  #fd: number;

  constructor(
    opener: Opener,
    fd: number,
    path: string,
    header: SegmentHeader,
    isHeaderDamaged: boolean,
    bytes: SegmentBytes,
    packed: PackedBytes | undefined,
    end: number,
  ) {
    this.#opener = opener;
    this.#fd = fd;
    this.path = path;
    this.header = header;
    this.seq = header.seq;
    this.salt = saltOf(header.logId, header.seq);
    this.isHeaderDamaged = isHeaderDamaged;
    this.bytes = bytes;
    this.packed = packed;
    this.end = end;
  }

  /** Reads records from raw position `from`, which is one's start, up to `end` at most. */
  reader(
    from: number = SEGMENT_BLOCK_BYTES,
    end: number = this.end,
    readBytes?: number,
  ): SegmentReader {
    return new SegmentReader(this.bytes, this.seq, this.salt, from, end, readBytes);
  }

  close(): void {
    if (this.#fd >= 0) this.#opener.close(this.#fd);
    this.#fd = -1;
  }
}

/**
 * Opens segment `seq` of the log with identity `logId`, as it lies there now; undefined when it is not
 * there. Throws FOREIGN_SEGMENT, MISNAMED_SEGMENT, or CHECKSUM when there is no sound header.
 */
export function* openSegment(
  storage: Storage,
  logId: Uint8Array,
  seq: number,
  opener: Opener = storage,
): Machine<SegmentSource | undefined> {
  // A compress job may put the one in place of the other between two looks, once.
  for (const path of [segmentPath(seq), compressedPath(seq), segmentPath(seq)]) {
    const fd = openIfThere(opener, path);
    yield;
    if (fd === undefined) continue;
    try {
      const open = path === segmentPath(seq) ? openPlain : openPacked;
      const source = yield* open(storage, opener, fd, path);
      expectOwn(source.header, logId, seq, path);
      return source;
    } catch (error) {
      opener.close(fd);
      throw error;
    }
  }
  return undefined;
}

/** The same for who may wait for several calls. */
export function openSegmentNow(
  storage: Storage,
  logId: Uint8Array,
  seq: number,
): SegmentSource | undefined {
  return runNow(openSegment(storage, logId, seq));
}

/** The identity of the log that segment `seq` belongs to; undefined when the segment is not there. */
export function readIdentity(storage: Storage, seq: number): Uint8Array | undefined {
  for (const path of [segmentPath(seq), compressedPath(seq), segmentPath(seq)]) {
    const fd = openIfThere(storage, path);
    if (fd === undefined) continue;
    try {
      const open = path === segmentPath(seq) ? openPlain : openPacked;
      return runNow(open(storage, storage, fd, path)).header.logId;
    } finally {
      storage.close(fd);
    }
  }
  return undefined;
}

/** Runs a machine to its end. */
export function runNow<T>(machine: Machine<T>): T {
  for (;;) {
    const step = machine.next();
    if (step.done === true) return step.value;
  }
}

/** The descriptor, or undefined when there is no such file. */
export function openIfThere(opener: Opener, path: string): number | undefined {
  try {
    return opener.open(path, 'read');
  } catch (error) {
    if (isNotThere(error)) return undefined;
    throw error;
  }
}

function isNotThere(error: unknown): boolean {
  if (error instanceof TidemarkError) return error.detail['errno'] === 'ENOENT';
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}

function* openPlain(
  storage: Storage,
  opener: Opener,
  fd: number,
  path: string,
): Machine<SegmentSource> {
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
  const got = storage.read(fd, block, 0, block.length, 0);
  yield;
  const { header, damaged: isDamaged } = decodeSegmentBlock(block, path);
  // Cut inside its block: the write that made it was the last one, and failed.
  if (header === undefined || got < block.length) throw noHeader(path);
  const end = storage.size(fd);
  yield;
  const bytes = new FileBytes(storage, fd);
  return new SegmentSource(opener, fd, path, header, isDamaged, bytes, undefined, end);
}

/** A .segz with its table. */
export function* openPacked(
  storage: Storage,
  opener: Opener,
  fd: number,
  path: string,
): Machine<SegmentSource> {
  const { header, isDamaged, fileBytes, trailer } = yield* readPackedHeader(storage, fd, path);
  const { segment } = header;
  const end = decodeTrailer(trailer, fileBytes, saltOf(segment.logId, segment.seq), path);
  const table = new Uint8Array(end.frameCount * SEGZ_ENTRY_BYTES);
  storage.read(fd, table, 0, table.length, end.tablePosition);
  yield;
  const packed = new PackedBytes(storage, fd, path, header, decodeTable(table, end, header, path));
  return new SegmentSource(opener, fd, path, segment, isDamaged, packed, packed, header.rawEnd);
}

/** Either copy of a .segz's header; the table is not looked at. Throws CHECKSUM when neither is sound. */
export function* readPackedHeader(
  storage: Storage,
  fd: number,
  path: string,
): Machine<{ header: SegzHeader; isDamaged: boolean; fileBytes: number; trailer: Uint8Array }> {
  const fileBytes = storage.size(fd);
  yield;
  const front = new Uint8Array(SEGZ_HEADER_BYTES);
  const got = storage.read(fd, front, 0, front.length, 0);
  yield;
  const trailer = new Uint8Array(SEGZ_TRAILER_BYTES);
  const at = Math.max(0, fileBytes - trailer.length);
  const gotTrailer = storage.read(fd, trailer, 0, trailer.length, at);
  yield;
  const first = got < front.length ? undefined : decodeSegzHeader(front, 0, path);
  const second = gotTrailer < trailer.length ? undefined : decodeHeaderCopy(trailer, path);
  const header = first ?? second;
  if (header === undefined) throw noHeader(path);
  const isDamaged = first === undefined || second === undefined;
  return { header, isDamaged, fileBytes, trailer };
}

function noHeader(path: string): TidemarkError {
  return corrupt('CHECKSUM', `${path} has no readable header`, {
    file: path,
    position: 0,
    kind: 'header',
  });
}

/** Throws unless the header is that of segment `seq` of this log. */
export function expectOwn(
  header: SegmentHeader,
  logId: Uint8Array,
  seq: number,
  path: string,
): void {
  if (Buffer.compare(header.logId, logId) !== 0) {
    throw corrupt('FOREIGN_SEGMENT', `${path} belongs to another log`, { seq, position: 0 });
  }
  if (header.seq === seq) return;
  const detail = { seq, position: 0, got: header.seq };
  throw corrupt('MISNAMED_SEGMENT', `${path} is segment ${header.seq}`, detail);
}

// ---------------------------------------------------------------- from offset or time to position

/** A probe reads so much at once; below this distance records are read one by one. */
const PROBE_BYTES: number = 64 * KiB;

/**
 * Raw position of a record at or before the one that holds `offset`: reading on from there meets it
 * soon. The first record's when the offset lies before the segment; one near the end when it lies
 * behind. Looks only below `end`.
 */
export function positionOfOffset(
  source: SegmentSource,
  offset: number,
  end: number = source.end,
): Machine<number> {
  const { packed } = source;
  return packed === undefined
    ? bisect(source, end, (header) => header.minTxOffset <= offset)
    : inTable(packed, end, (frame) => frame.firstOffset <= offset);
}

/** The same for the last record with committedAtMs at or below `atMs`. */
export function positionOfTime(
  source: SegmentSource,
  atMs: number,
  end: number = source.end,
): Machine<number> {
  const { packed } = source;
  return packed === undefined
    ? bisect(source, end, (header) => header.committedAtMs <= atMs)
    : inTable(packed, end, (frame) => frame.firstAtMs <= atMs);
}

// eslint-disable-next-line require-yield -- the table is there: nothing is left to be read
function* inTable(
  packed: PackedBytes,
  end: number,
  isBelow: (frame: SegzFrame) => boolean,
): Machine<number> {
  return packed.positionOf((frame) => isBelow(frame) && frame.rawPosition < end);
}

/** Index of the last item that passes, where all that pass come first; 0 when none does. */
function lastWhere<T>(items: readonly T[], passes: (item: T) => boolean): number {
  let low = 0;
  let high = items.length;
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if (passes(items[middle])) low = middle;
    else high = middle;
  }
  return low;
}

/** Halves the range by the first record behind its middle, which is found by its sound header. */
function* bisect(
  source: SegmentSource,
  end: number,
  isBelow: (header: RecordHeader) => boolean,
): Machine<number> {
  const probe = new RecordHeader();
  const bytes = new Uint8Array(RECORD_HEADER_BYTES);
  let low = SEGMENT_BLOCK_BYTES;
  let high = end;
  while (high - low > PROBE_BYTES) {
    const middle = alignUp(low + Math.floor((high - low) / 2), RECORD_ALIGN);
    const scan = new TailScan(source.bytes, source.salt, middle, high, false, PROBE_BYTES);
    let seen: number;
    let more: boolean;
    // Room that nothing was written to is as good as the end.
    do {
      seen = scan.contentEnd;
      more = scan.step();
      yield;
    } while (more && scan.firstAt < 0 && scan.contentEnd > seen);
    if (scan.firstAt < 0) {
      high = middle;
      continue;
    }
    source.bytes.read(bytes, 0, bytes.length, scan.firstAt);
    yield;
    probe.decode(bytes, 0, source.seq, scan.firstAt);
    if (isBelow(probe)) low = scan.firstAt;
    else high = middle;
  }
  return low;
}
