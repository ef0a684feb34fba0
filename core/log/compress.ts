/**
 * Compresses a sealed segment: `<seq>.seg` becomes `<seq>.segz` (segz.ts), record by record verified on
 * the way, and is dropped only when what took its place has been read back and is on disk under its name.
 * Done again after any crash it comes to the same end. A step machine over Storage, run by a merge worker
 * or by the command line; a step makes at most one storage call.
 *
 *   tmp file written -> fsync -> read back and compared -> rename -> directory fsync -> .seg unlinked
 *   -> directory fsync
 */
import { createHash } from 'node:crypto';
import { TidemarkError, corrupt } from '../base/errors.ts';
import { LOG_DIR, compressedPath, segmentPath } from '../storage/names.ts';
import type { OpenHow, Storage } from '../storage/storage.ts';
import { shortWrite } from '../storage/storage.ts';
import { READ_END, READ_MORE, READ_RECORD } from './reader.ts';
import { RECORD_HEADER_BYTES } from './record.ts';
import { SEGMENT_BLOCK_BYTES } from './segment.ts';
import type { SegmentHeader } from './segment.ts';
import { openPacked, openSegment, frameEnd } from './segment-source.ts';
import type { SegmentSource } from './segment-source.ts';
import {
  SEGZ_FRAME_HEADER_BYTES,
  SEGZ_HEADER_BYTES,
  decodeFrame,
  encodeFrame,
  encodeSegzEnd,
  encodeSegzHeader,
  frameBytesTarget,
} from './segz.ts';
import type { SegzFrame } from './segz.ts';
import { admit, check, cursorAtBase } from './verify.ts';
import type { Cursor } from './verify.ts';

export type CompressRequest = {
  readonly seq: number;
  /** The segment after it, whose header says where it ends. */
  readonly successor: number;
  /** Identity of the log, hex. */
  readonly logId: string;
  /** Of the .segz (CODEC_*); 0: it stays as it is and is only described. */
  readonly codec: number;
  /** Where the new file is made. */
  readonly tmp: string;
};

/** The file that the segment is in now; plain data. */
export type CompressResult = {
  readonly seq: number;
  /** Name without directory. */
  readonly name: string;
  readonly bytes: number;
  /** 0: it is a .seg. */
  readonly codec: number;
  /** SHA-256 of the file, hex. */
  readonly hash: string;
  /** Its commits are [base, end). */
  readonly base: number;
  readonly end: number;
  readonly baseAtMs: number;
};

type Machine<T> = Generator<void, T, void>;

const COPY_BYTES: number = 4 * frameBytesTarget;

export class CompressJob {
  readonly #storage: Storage;
  readonly #request: CompressRequest;
  readonly #logId: Uint8Array;
  readonly #machine: Machine<CompressResult>;
  readonly #fds: Set<number> = new Set();
  /** The tmp file is there, and nobody else's. */
  #isMade = false;
  /** Raw position up to which records have been packed. */
  position = 0;
  #result: CompressResult | undefined;

  constructor(storage: Storage, request: CompressRequest) {
    this.#storage = storage;
    this.#request = request;
    this.#logId = new Uint8Array(Buffer.from(request.logId, 'hex'));
    this.#machine = this.#run();
  }

  /** True while there is more to do. Throws when it cannot be done; what it made is gone then. */
  step(): boolean {
    try {
      const step = this.#machine.next();
      if (step.done !== true) return true;
      this.#result = step.value;
      return false;
    } catch (error) {
      this.cancel();
      throw error;
    }
  }

  /** Gives up: what it has made goes, the segment stays as it was. */
  cancel(): void {
    for (const fd of this.#fds) this.#storage.close(fd);
    this.#fds.clear();
    if (!this.#isMade) return;
    this.#isMade = false;
    try {
      this.#storage.unlink(this.#request.tmp);
    } catch {
      // In tmp/, which the next open wipes.
    }
  }

  /** Requires: `step` returned false. */
  result(): CompressResult {
    return this.#result!;
  }

  // An Opener that keeps account of descriptors.
  open(path: string, how: OpenHow): number {
    const fd = this.#storage.open(path, how);
    this.#fds.add(fd);
    return fd;
  }

  close(fd: number): void {
    this.#fds.delete(fd);
    this.#storage.close(fd);
  }

  *#run(): Machine<CompressResult> {
    const { seq, successor: successorSeq, codec } = this.#request;
    const next = yield* openSegment(this.#storage, this.#logId, successorSeq, this);
    if (next === undefined) throw missing(successorSeq);
    const successor = next.header;
    next.close();
    yield;
    if (successor.prevSeq !== seq) {
      throw corrupt('GAP', `segment ${successorSeq} does not follow segment ${seq}`, { seq });
    }
    const packed = yield* this.#existing(successor);
    if (packed !== undefined) {
      // A crash between its rename and here may have left both.
      yield* this.#drop(segmentPath(seq));
      return packed;
    }
    const plain = yield* openSegment(this.#storage, this.#logId, seq, this);
    if (plain === undefined) throw missing(seq);
    const result = codec === 0 ? this.#describe(plain, successor) : this.#pack(plain, successor);
    return yield* result;
  }

  /** A sound .segz that is there already; one that is not goes, if there is still what it was made from. */
  *#existing(successor: SegmentHeader): Machine<CompressResult | undefined> {
    const path = compressedPath(this.#request.seq);
    if (this.#storage.stat(path) === undefined) return undefined;
    yield;
    try {
      return yield* this.#readBack(path, undefined, successor);
    } catch (error) {
      const isDamage = error instanceof TidemarkError && error.code === 'TIDEMARK_CORRUPT';
      if (!isDamage || this.#storage.stat(segmentPath(this.#request.seq)) === undefined)
        throw error;
      yield* this.#drop(path);
      return undefined;
    }
  }

  *#drop(path: string): Machine<void> {
    if (this.#storage.stat(path) === undefined) return;
    yield;
    this.#storage.unlink(path);
    yield;
    this.#storage.syncDir(LOG_DIR);
    yield;
  }

  *#pack(plain: SegmentSource, successor: SegmentHeader): Machine<CompressResult> {
    const { seq, tmp } = this.#request;
    const path = compressedPath(seq);
    // One that a worker left when it died.
    this.#storage.unlink(tmp);
    yield;
    this.#isMade = true;
    const fd = this.open(tmp, 'create');
    yield;
    yield* this.#write(fd, plain, successor);
    this.#storage.sync(fd);
    yield;
    this.close(fd);
    yield;
    const result = yield* this.#readBack(tmp, plain, successor);
    plain.close();
    yield;
    this.#storage.rename(tmp, path);
    this.#isMade = false;
    yield;
    this.#storage.syncDir(LOG_DIR);
    yield;
    yield* this.#drop(segmentPath(seq));
    return result;
  }

  /** Every record, verified, in frames; then the table; the header last, when the end is known. */
  *#write(fd: number, plain: SegmentSource, successor: SegmentHeader): Machine<void> {
    const { codec, tmp, seq } = this.#request;
    const { salt } = plain;
    const end = successor.prevEndPos;
    const reader = plain.reader(SEGMENT_BLOCK_BYTES, end, COPY_BYTES);
    const cursor = cursorAtBase(plain.header);
    const frames: SegzFrame[] = [];
    let position = SEGZ_HEADER_BYTES;
    let raw = new Uint8Array(frameBytesTarget);
    let rawBytes = 0;
    let rawPosition = SEGMENT_BLOCK_BYTES;
    let firstOffset = 0;
    let firstAtMs = 0;
    for (;;) {
      const found = reader.next();
      if (found === READ_MORE) {
        yield;
        continue;
      }
      const isEnd = found === READ_END && reader.position === end;
      if (!isEnd && found !== READ_RECORD) {
        const detail = { seq, position: reader.position, offset: cursor.next };
        throw corrupt('CHECKSUM', `${plain.path} is damaged at ${reader.position}`, detail);
      }
      const { header } = reader;
      const bytes = isEnd ? 0 : header.bytes;
      if (rawBytes > 0 && (isEnd || rawBytes + bytes > frameBytesTarget)) {
        const frame = encodeFrame(codec, salt, raw, 0, rawBytes, rawPosition);
        const packedBytes = frame.length - SEGZ_FRAME_HEADER_BYTES;
        frames.push({ firstOffset, firstAtMs, rawPosition, position, rawBytes, packedBytes });
        put(this.#storage, fd, frame, position, tmp);
        yield;
        position += frame.length;
        rawPosition += rawBytes;
        rawBytes = 0;
        this.position = rawPosition;
      }
      if (isEnd) break;
      admit(header, cursor);
      check(reader, cursor);
      if (rawBytes === 0) {
        firstOffset = header.minTxOffset;
        firstAtMs = header.committedAtMs;
      }
      if (rawBytes + bytes > raw.length) raw = new Uint8Array(bytes);
      const from = reader.payloadOffset - RECORD_HEADER_BYTES;
      raw.set(reader.bytes.subarray(from, from + bytes), rawBytes);
      rawBytes += bytes;
    }
    expectEnd(cursor, successor);
    const header = encodeSegzHeader({
      codec,
      segment: plain.header,
      rawEnd: end,
      endOffset: cursor.next,
      endAtMs: cursor.atMs,
      endChain: cursor.chain,
      endEpoch: cursor.epoch,
    });
    put(this.#storage, fd, encodeSegzEnd(frames, position, header, salt), position, tmp);
    yield;
    put(this.#storage, fd, header, 0, tmp);
    yield;
  }

  /** Reads a .segz from end to end; where it was made from `plain`, byte by byte against that. */
  *#readBack(
    path: string,
    plain: SegmentSource | undefined,
    successor: SegmentHeader,
  ): Machine<CompressResult> {
    const fd = this.open(path, 'read');
    yield;
    const source = yield* openPacked(this.#storage, this, fd, path);
    const { seq } = this.#request;
    const { header, frames } = source.packed!;
    const isOwn =
      header.segment.seq === seq &&
      Buffer.compare(header.segment.logId, this.#logId) === 0 &&
      header.rawEnd >= successor.prevEndPos &&
      (plain === undefined || Buffer.compare(blockOf(header.segment), blockOf(plain.header)) === 0);
    if (!isOwn || source.isHeaderDamaged) throw notTheSame(path, 0);
    const hash = createHash('sha256');
    const bytes = this.#storage.size(fd);
    yield;
    let at = 0;
    for (const frame of frames) {
      const piece = yield* this.#read(fd, path, at, frameEnd(frame));
      hash.update(piece);
      const raw = decodeFrame(piece, frame.position - at, frame, header.codec, source.salt, path);
      at = frameEnd(frame);
      if (plain === undefined) continue;
      const expected = new Uint8Array(frame.rawBytes);
      const got = plain.bytes.read(expected, 0, expected.length, frame.rawPosition);
      yield;
      if (got !== raw.length || Buffer.compare(raw, expected) !== 0) {
        throw notTheSame(path, frame.position);
      }
    }
    hash.update(yield* this.#read(fd, path, at, bytes));
    this.close(fd);
    yield;
    return this.#resultOf(compressedPath(seq), bytes, header.codec, hash.digest('hex'), {
      header: header.segment,
      end: header.endOffset,
    });
  }

  /** The .seg as it is, for whoever archives it so. */
  *#describe(plain: SegmentSource, successor: SegmentHeader): Machine<CompressResult> {
    const { path, end: bytes, header } = plain;
    plain.close();
    yield;
    const fd = this.open(path, 'read');
    yield;
    const hash = createHash('sha256');
    for (let at = 0; at < bytes; at += COPY_BYTES) {
      hash.update(yield* this.#read(fd, path, at, Math.min(bytes, at + COPY_BYTES)));
    }
    this.close(fd);
    yield;
    const end = successor.baseOffset;
    return this.#resultOf(path, bytes, 0, hash.digest('hex'), { header, end });
  }

  #resultOf(
    path: string,
    bytes: number,
    codec: number,
    hash: string,
    { header, end }: { header: SegmentHeader; end: number },
  ): CompressResult {
    const { seq, baseOffset: base, baseAtMs } = header;
    return { seq, name: path.slice(LOG_DIR.length + 1), bytes, codec, hash, base, end, baseAtMs };
  }

  *#read(fd: number, path: string, from: number, to: number): Machine<Uint8Array> {
    const bytes = new Uint8Array(to - from);
    const got = this.#storage.read(fd, bytes, 0, bytes.length, from);
    yield;
    if (got !== bytes.length) throw notTheSame(path, from + got);
    return bytes;
  }
}

function put(
  storage: Storage,
  fd: number,
  bytes: Uint8Array,
  position: number,
  path: string,
): void {
  const n = storage.write(fd, bytes, 0, bytes.length, position);
  // The job fails, the segment stays.
  if (n !== bytes.length) throw shortWrite(n, bytes.length, path);
}

/** The records must lead up to where the next segment begins. */
function expectEnd(cursor: Cursor, successor: SegmentHeader): void {
  if (cursor.next === successor.baseOffset && cursor.chain === successor.prevChain) return;
  const { seq, prevSeq, baseOffset } = successor;
  const finding = cursor.next === baseOffset ? 'FORK' : 'GAP';
  throw corrupt(finding, `segment ${prevSeq} does not lead up to segment ${seq}`, {
    offset: cursor.next,
    seq,
    position: 0,
    got: baseOffset,
  });
}

function blockOf(header: SegmentHeader): Uint8Array {
  return encodeSegzHeader({
    codec: 0,
    segment: header,
    rawEnd: 0,
    endOffset: 0,
    endAtMs: 0,
    endChain: 0,
    endEpoch: 0,
  });
}

function notTheSame(path: string, position: number): TidemarkError {
  return corrupt('CHECKSUM', `${path} does not hold what it was made from, at ${position}`, {
    file: path,
    position,
    kind: 'compressed',
  });
}

function missing(seq: number): TidemarkError {
  return corrupt('MISSING_SEGMENT', `${segmentPath(seq)} is missing`, { seq });
}
