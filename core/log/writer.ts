/**
 * The log's writing end: checks, frames and batches records, writes and syncs them, rotates segments.
 * durable <= written <= next always; after the first call that it knows to have failed nothing is ever
 * called on the disk again but to give descriptors back. Driven by the durability actor on its thread: `append`
 * until `full`, then `step`, which makes at most one storage call.
 *
 * A rotation, one call a step (a valid new header thus proves the old segment durable to its end):
 *   write the batch and SEAL -> sync -> open the next file -> write header and first record -> sync
 *   [-> sync the directory, when there was no spare and the file is new] -> close the old file
 *
 * Staging holds headers and small payloads as they will lie in the file. A large payload stays where
 * it is and is noted as a cut: the place in staging where its bytes go in between.
 */
import { NO_BYTES } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { invariant, verify } from '../base/assert.ts';
import { TidemarkError } from '../base/errors.ts';
import { OFFSET_MAX, join } from '../base/frontier.ts';
import {
  KiB,
  commitBytesMax,
  inPlaceBytesMin,
  logBatchBytesMax,
  segmentBytesMax,
  transactionsPerRecordMax,
  unsyncedBytesMax,
} from '../base/limits.ts';
import { LOG_DIR, segmentPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { createLog } from './create.ts';
import type { SpareJob, ZeroJob } from './prepare.ts';
import {
  END_PAYLOAD_BYTES,
  END_RECORD_BYTES,
  RECORD_ALIGN,
  RECORD_CLEAN,
  RECORD_COMMIT,
  RECORD_FLAG_FIRST,
  RECORD_HEADER_BYTES,
  RECORD_SEAL,
  RECORD_WATERMARK,
  chainAfter,
  encodeRecordHeader,
  encodeSegmentEnd,
  recordBytes,
} from './record.ts';
import { LogRoom } from './room.ts';
import type { RoomOptions, RoomResume, SpareFigures } from './room.ts';
import {
  COMPAT_RECYCLED,
  COMPAT_ZERO_FILLED,
  REASON_ROTATE,
  SEGMENT_BLOCK_BYTES,
  encodeSegmentBlock,
  saltOf,
} from './segment.ts';
import type { SegmentHeader } from './segment.ts';

/** Where the log stands at an offset: what a flush edit and a checkpoint keep, and recovery starts from. */
export type LogPosition = {
  /** First offset not yet there. */
  readonly upper: number;
  /** The segment, and the end of the last commit below `upper` in it (or its first record's place). */
  readonly seq: number;
  readonly position: number;
  readonly chain: number;
  readonly epoch: number;
  readonly atMs: number;
};

/** Smaller segments than this get no smaller batches. */
const stagingBytesMin: number = 64 * KiB;

/** A payload's piece that lies elsewhere. */
export type LogPiece = {
  readonly bytes: Uint8Array;
  readonly offset: number;
  readonly length: number;
};

export type LogOptions = RoomOptions & {
  /**
   * Somebody else syncs what is written, while more is: a step says 'syncs', and `syncEnded` that it is
   * done. At a rotation and at the end the writer syncs itself, as always: the order of those calls is a proof.
   */
  readonly syncApart?: boolean;
  /** A batch is full at this size; default 8 MiB, of small segments their size. */
  readonly batchBytesMax?: number;
};

/** Everything a writer goes on from: made by `LogWriter.create` and by recovery. */
export type LogResume = RoomResume & {
  readonly logId: Uint8Array;
  readonly seq: number;
  /** The live segment, open for writing; the writer's from now on. */
  readonly fd: number;
  /** Where the next record goes. */
  readonly position: number;
  /** End of the last commit in the segment, 4096 when it holds none. */
  readonly commitEnd: number;
  readonly baseOffset: number;
  readonly baseAtMs: number;
  /** Commits in the segment. */
  readonly commits: number;
  readonly next: number;
  /** All offsets below are durable; equals `next` but while recovery rewrites a tail. */
  readonly durable: number;
  readonly chain: number;
  /** Floors for what follows. */
  readonly epoch: number;
  readonly atMs: number;
  /** The highest claim in the log. */
  readonly claimed: number;
};

/** append: why a record was refused. Nothing has changed; `refusedExpected` and `refusedGot` say more. */
export const ACCEPTED = 0;
export const REFUSED_OFFSET = 1;
export const REFUSED_TX_COUNT = 2;
export const REFUSED_EPOCH = 3;
export const REFUSED_TIME = 4;
export const REFUSED_LENGTH = 5;
export const REFUSED_RANGE = 6;
export const REFUSED_ENDED = 7;

/**
 * What a step did. idle: nothing to do. waiting: the batch reaches into the range of a zeroing job.
 * wrote, synced: frontiers may have moved. syncs: `fd` is to be synced, and `syncEnded` called. moved: a
 * rotation's or close's own call. rotated: the new segment is durable (seq, baseOffset, baseAtMs). closed,
 * failed: for ever.
 */
export type LogStep =
  'idle' | 'waiting' | 'wrote' | 'syncs' | 'synced' | 'moved' | 'rotated' | 'closed' | 'failed';

const PHASE_LIVE = 0;
const PHASE_SEAL_WRITE = 1;
const PHASE_SEAL_SYNC = 2;
const PHASE_OPEN = 3;
const PHASE_FIRST_WRITE = 4;
const PHASE_FIRST_SYNC = 5;
const PHASE_DIR_SYNC = 6;
const PHASE_CLOSE_OLD = 7;
const PHASE_CLEAN_WRITE = 8;
const PHASE_CLEAN_SYNC = 9;
const PHASE_CLOSE_FILE = 10;
const PHASE_CLOSED = 11;

/** Payloads below this are copied word by word: a view costs more than the bytes. */
const VIEW_BYTES_MIN = 2_048;

const NO_PIECE: LogPiece = { bytes: NO_BYTES, offset: 0, length: 0 };

export class LogWriter {
  /** First offset not yet accepted, handed to the system, covered by a successful sync. */
  next: number;
  written: number;
  durable: number;
  /** Floors: the last record's. */
  epoch: number;
  atMs: number;
  /** Content chain after the last record. */
  chain: number;
  /** Bytes written since the last sync. */
  unsyncedBytes = 0;
  /** Bytes handed to the system so far, headers included. */
  bytesWritten = 0;
  /** Payload bytes copied into staging, and referenced where they lay. */
  bytesStaged = 0;
  bytesInPlace = 0;
  /** The batch takes no more: step first. */
  full = false;
  /** Highest claim any record carries; a watermark is of use while it is below `durable`. */
  claimed: number;
  /** The first failure; the log is dead. */
  failed: TidemarkError | undefined = undefined;
  refusedExpected = 0;
  refusedGot = 0;
  /** The segment in which the next record goes. */
  seq: number;
  baseOffset: number;
  baseAtMs: number;

  readonly logId: Uint8Array;
  readonly #storage: Storage;
  readonly #segmentBytes: number;
  readonly #batchBytesMax: number;
  readonly #staging: Uint8Array;
  readonly #words: Uint32Array;

  // The batch. Bytes [0, #staged) of staging with #cuts pieces in between go to the file at #batchAt.
  #staged = 0;
  #cuts = 0;
  readonly #cutAt: number[] = [];
  readonly #cutPieces: LogPiece[] = [];
  #batchBytes = 0;
  #batchAt: number;
  // While sealing: how much of the batch is the old segment's; the rest begins the next one.
  #splitStaged = 0;
  #splitCuts = 0;
  #splitBytes = 0;

  #phase: number = PHASE_LIVE;
  #fd: number;
  #oldFd = -1;
  /** The segment of #fd; `seq` is ahead of it while a rotation is staged. */
  #fileSeq: number;
  #salt: number;
  #position: number;
  #commitEnd: number;
  #commits: number;
  #closing = false;
  readonly #syncApart: boolean;
  /** What a sync that somebody else does will make durable, -1: none is out; and the bytes that were not when it began. */
  #syncUpper = -1;
  #syncBytes = 0;
  /** The next file is created here, so its directory entry wants a sync. */
  #created = false;

  readonly #room: LogRoom;

  // Words over the buffer that payloads come from, most often the arena.
  #sourceBuffer: ArrayBufferLike | undefined = undefined;
  #sourceWords: Uint32Array = new Uint32Array(0);

  // What the old segment says of itself to the next one's header.
  #prevSeq = 0;
  #prevEnd = 0;

  constructor(storage: Storage, options: LogOptions, resume: LogResume) {
    invariant(options.segmentBytes >= SEGMENT_BLOCK_BYTES + END_RECORD_BYTES, 'a segment has room');
    invariant(options.segmentBytes <= segmentBytesMax, 'a position fits its seed');
    invariant(resume.position % RECORD_ALIGN === 0, 'records are aligned', resume.position);
    this.#storage = storage;
    this.#syncApart = options.syncApart ?? false;
    this.#segmentBytes = options.segmentBytes;
    // A batch ends with its segment: more staging than that would be memory for nothing.
    const usual = Math.min(logBatchBytesMax, Math.max(stagingBytesMin, options.segmentBytes));
    this.#batchBytesMax = options.batchBytesMax ?? usual;
    // Room behind a full batch: its last small record, SEAL, the next header block and first record.
    const staging = new ArrayBuffer(
      this.#batchBytesMax + 2 * (inPlaceBytesMin + RECORD_HEADER_BYTES) + 2 * SEGMENT_BLOCK_BYTES,
    );
    this.#staging = new Uint8Array(staging);
    this.#words = new Uint32Array(staging);
    this.logId = resume.logId;
    this.seq = resume.seq;
    this.baseOffset = resume.baseOffset;
    this.baseAtMs = resume.baseAtMs;
    this.next = resume.next;
    this.written = resume.next;
    this.durable = resume.durable;
    this.claimed = resume.claimed;
    this.epoch = resume.epoch;
    this.atMs = resume.atMs;
    this.chain = resume.chain;
    this.#fd = resume.fd;
    this.#fileSeq = resume.seq;
    this.#salt = saltOf(resume.logId, resume.seq);
    this.#position = resume.position;
    this.#batchAt = resume.position;
    this.#commitEnd = resume.commitEnd;
    this.#commits = resume.commits;
    this.#room = new LogRoom(options, resume);
  }

  /** Makes a new log in the (existing) log directory, synced, and returns its writer. */
  static create(storage: Storage, logId: Uint8Array, options: LogOptions): LogWriter {
    return new LogWriter(storage, options, createLog(storage, logId, options));
  }

  /** Bytes in records that prepared room takes, whatever their sizes: the credit of spec 2.5. */
  get preparedBytes(): number {
    return this.#room.preparedFor(this.#position);
  }

  /** Bytes behind the next record's place before the range of a zeroing job; Infinity when there is none. */
  get bytesBeforeJob(): number {
    return this.#room.freeOfJobs(this.#fileSeq, this.#position);
  }

  /** Bytes that a spare under way will take from the disk. */
  get spareBytesOut(): number {
    return this.#room.spareBytesOut;
  }

  /** False while a rotation is under way: what is prepared for which file is not decided then. */
  get isSettled(): boolean {
    return this.#mayPrepare();
  }

  /** Nothing is prepared ahead: segments grow as they are written. */
  get isAppending(): boolean {
    return this.#room.isAppending;
  }

  /** What became of spare segments so far. */
  get spares(): Readonly<SpareFigures> {
    return this.#room.spares;
  }

  /** The segment's descriptor: what is to be synced after the step 'syncs'. */
  get fd(): number {
    return this.#fd;
  }

  /** A sync that the step 'syncs' asked for is not over. */
  get isSyncing(): boolean {
    return this.#syncUpper >= 0;
  }

  /** Where in segment `seq` the next record goes. */
  get position(): number {
    return this.#position;
  }

  /** True while an appended record waits for `step`. */
  get staged(): boolean {
    return this.#batchBytes > 0;
  }

  /** True when preparing failed; the writer appends until `retryPreparing`. */
  get prepareFailed(): boolean {
    return this.#room.failed;
  }

  /**
   * Takes one record into the batch, or refuses it without any change. A payload of 32 KiB or more
   * is referenced until written, a smaller one is copied. Requires: not full.
   */
  append(
    source: Uint8Array,
    offset: number,
    length: number,
    payloadCrc: number,
    txCount: number,
    minTxOffset: number,
    epoch: number,
    committedAtMs: number,
  ): number {
    const refusal = this.#check(length, txCount, minTxOffset, epoch, committedAtMs);
    if (refusal !== ACCEPTED) return refusal;
    if (verify()) {
      invariant(crc32(source, offset, length) === payloadCrc, 'the payload is what was committed');
    }
    const at = this.#frame(length, payloadCrc, txCount, minTxOffset, epoch, committedAtMs);
    if (length < inPlaceBytesMin) {
      this.#copy(source, offset, length, at);
      this.#staged = at + length;
      this.bytesStaged += length;
    } else {
      this.#cut({ bytes: source, offset, length });
      this.bytesInPlace += length;
    }
    return ACCEPTED;
  }

  /** The same for a payload in several pieces, in order. */
  appendPieces(
    pieces: readonly LogPiece[],
    payloadCrc: number,
    txCount: number,
    minTxOffset: number,
    epoch: number,
    committedAtMs: number,
  ): number {
    let length = 0;
    for (const piece of pieces) length += piece.length;
    const refusal = this.#check(length, txCount, minTxOffset, epoch, committedAtMs);
    if (refusal !== ACCEPTED) return refusal;
    let at = this.#frame(length, payloadCrc, txCount, minTxOffset, epoch, committedAtMs);
    if (length >= inPlaceBytesMin) this.bytesInPlace += length;
    else this.bytesStaged += length;
    for (const piece of pieces) {
      if (length >= inPlaceBytesMin) {
        this.#cut(piece);
        continue;
      }
      this.#staging.set(piece.bytes.subarray(piece.offset, piece.offset + piece.length), at);
      at += piece.length;
      this.#staged = at;
    }
    return ACCEPTED;
  }

  /**
   * Puts a WATERMARK into the batch, so that `durable` is proven up to now. It may lie a little beyond
   * segmentBytes, as CLEAN may. False: not now, the batch is full or the log ends.
   */
  watermark(): boolean {
    if (this.#phase !== PHASE_LIVE || this.#closing || this.failed !== undefined) return false;
    if (this.full) return false;
    this.#control(RECORD_WATERMARK, 0, 0);
    return true;
  }

  /** Where the log stands after everything appended so far. */
  mark(): LogPosition {
    return {
      upper: this.next,
      seq: this.seq,
      position: this.#commitEnd,
      chain: this.chain,
      epoch: this.epoch,
      atMs: this.atMs,
    };
  }

  /** Nothing more is appended: the steps that follow write, sync, write CLEAN, sync, close. */
  close(): void {
    this.#closing = true;
  }

  /** Gives the descriptors back without another write: after failure, or when the log is given up. */
  release(): void {
    if (this.#phase === PHASE_CLOSED) return;
    this.failed ??= new TidemarkError('TIDEMARK_CLOSED', 'the log was given up');
    for (const fd of [this.#fd, this.#oldFd]) {
      // Closed under a sync that somebody else does, the number may be somebody else's file.
      if (fd === -1 || (fd === this.#fd && this.isSyncing)) continue;
      try {
        this.#storage.close(fd);
      } catch {
        // What a descriptor of a dead log says at its close changes nothing any more.
      }
    }
    this.#fd = -1;
    this.#oldFd = -1;
  }

  /**
   * Does the next thing, at most one storage call. With `wantSync`, what is written is synced before
   * more is written. Throws once when the disk fails, then answers 'failed'.
   */
  step(wantSync: boolean): LogStep {
    if (this.failed !== undefined) return 'failed';
    switch (this.#phase) {
      case PHASE_LIVE:
        return this.#live(wantSync);
      case PHASE_SEAL_WRITE:
        return this.#sealWrite();
      case PHASE_SEAL_SYNC:
        if (this.isSyncing) return 'waiting';
        this.#sync();
        this.#phase = PHASE_OPEN;
        return 'synced';
      case PHASE_OPEN:
        this.#openNext();
        this.#phase = PHASE_FIRST_WRITE;
        return 'moved';
      case PHASE_FIRST_WRITE:
        this.#firstWrite();
        this.#phase = PHASE_FIRST_SYNC;
        return 'wrote';
      case PHASE_FIRST_SYNC:
        // A new file's commits are durable only with its directory entry.
        if (this.#created) this.#syncFile();
        else this.#sync();
        this.#phase = this.#created ? PHASE_DIR_SYNC : PHASE_CLOSE_OLD;
        return this.#created ? 'moved' : 'synced';
      case PHASE_DIR_SYNC:
        this.#syncDir();
        this.#phase = PHASE_CLOSE_OLD;
        return 'synced';
      case PHASE_CLOSE_OLD:
        this.#closeFile(this.#oldFd);
        this.#oldFd = -1;
        this.#phase = PHASE_LIVE;
        this.#updateFull();
        return 'rotated';
      case PHASE_CLEAN_WRITE:
        if (!this.#writeAll()) return 'waiting';
        this.#phase = PHASE_CLEAN_SYNC;
        return 'moved';
      case PHASE_CLEAN_SYNC:
        this.#sync();
        this.#phase = PHASE_CLOSE_FILE;
        return 'moved';
      case PHASE_CLOSE_FILE:
        this.#closeFile(this.#fd);
        this.#fd = -1;
        this.#phase = PHASE_CLOSED;
        return 'closed';
      default:
        return 'closed';
    }
  }

  // ---------------------------------------------------------------- room

  /**
   * A range to fill with zeros, or undefined. What is returned must be run: the writer keeps out of
   * the range until `zeroed` has answered, whatever became of the job. `promised` bytes are to come
   * that were not prepared: the range begins above them; `wanted` bytes are wanted now.
   */
  zeroWanted(promised = 0, wanted = 0): ZeroJob | undefined {
    if (!this.#mayPrepare()) return undefined;
    return this.#room.zeroWanted(this.#fileSeq, this.#position, promised, wanted);
  }

  /** The job of `zeroWanted` has ended: done, failed, or its worker is gone. */
  zeroed(seq: number, to: number, ok: boolean): void {
    this.#room.zeroed(seq, to, ok, this.#fileSeq);
  }

  /** A spare segment to make, or undefined. What is returned must be run and answered by `spareReady`. */
  spareWanted(): SpareJob | undefined {
    return this.#mayPrepare() ? this.#room.spareWanted(this.#position) : undefined;
  }

  /** `recycled`: the spare was another segment, and holds its bytes. */
  spareReady(seq: number, ok: boolean, recycled = false): void {
    this.#room.spareReady(seq, ok, this.seq, recycled);
  }

  /** Nobody needs segment `seq` any more. True: its file is this log's now; false: it is to be deleted. */
  offerSegment(seq: number): boolean {
    return !this.#closing && this.failed === undefined && this.#room.offer(seq);
  }

  /** The number of the file that waits to be made a spare; 0: none. */
  get keptFile(): number {
    return this.#room.keptFile;
  }

  /** It waits no more, and is to be deleted: its number, once. 0: none. */
  giveBackFile(): number {
    return this.#room.giveBackFile();
  }

  /** After a failed job the writer appends, and asks for none until it is told to. */
  retryPreparing(): void {
    this.#room.failed = false;
  }

  /** While a rotation is under way the file to prepare is not decided. */
  #mayPrepare(): boolean {
    return this.#phase === PHASE_LIVE && !this.#closing && this.failed === undefined;
  }

  // ---------------------------------------------------------------- appending

  #check(
    length: number,
    txCount: number,
    minTxOffset: number,
    epoch: number,
    committedAtMs: number,
  ): number {
    if (this.failed !== undefined || this.#closing) return this.#refuse(REFUSED_ENDED, 0, 0);
    invariant(!this.full, 'a full batch is stepped first');
    if (minTxOffset !== this.next) return this.#refuse(REFUSED_OFFSET, this.next, minTxOffset);
    if (!(txCount >= 1 && txCount <= transactionsPerRecordMax) || (txCount | 0) !== txCount) {
      return this.#refuse(REFUSED_TX_COUNT, transactionsPerRecordMax, txCount);
    }
    if (!(epoch >= this.epoch) || epoch >>> 0 !== epoch) {
      return this.#refuse(REFUSED_EPOCH, this.epoch, epoch);
    }
    if (!(committedAtMs >= this.atMs) || !Number.isSafeInteger(committedAtMs)) {
      return this.#refuse(REFUSED_TIME, this.atMs, committedAtMs);
    }
    // Transactions are multiples of 8, so payloads are.
    if (!(length >= RECORD_ALIGN && length <= commitBytesMax) || length % RECORD_ALIGN !== 0) {
      return this.#refuse(REFUSED_LENGTH, commitBytesMax, length);
    }
    if (minTxOffset + txCount > OFFSET_MAX) {
      return this.#refuse(REFUSED_RANGE, OFFSET_MAX, minTxOffset + txCount);
    }
    return ACCEPTED;
  }

  #refuse(reason: number, expected: number, got: number): number {
    this.refusedExpected = expected;
    this.refusedGot = got;
    return reason;
  }

  /** Writes a commit's header into staging and counts it in; returns where its payload goes. */
  #frame(
    length: number,
    payloadCrc: number,
    txCount: number,
    minTxOffset: number,
    epoch: number,
    committedAtMs: number,
  ): number {
    const bytes = RECORD_HEADER_BYTES + length;
    if (this.#position + bytes + END_RECORD_BYTES > this.#segmentBytes && this.#commits > 0) {
      this.#seal();
    }
    const payloadAt = this.#header(
      RECORD_COMMIT,
      length,
      txCount,
      minTxOffset,
      epoch,
      payloadCrc,
      committedAtMs,
    );
    this.chain = chainAfter(
      this.chain,
      minTxOffset,
      txCount,
      epoch,
      length,
      payloadCrc,
      committedAtMs,
    );
    this.next = minTxOffset + txCount;
    this.epoch = epoch;
    this.atMs = committedAtMs;
    this.#commits++;
    this.#commitEnd = this.#position;
    return payloadAt;
  }

  #header(
    kind: number,
    payloadLen: number,
    txCount: number,
    minTxOffset: number,
    epoch: number,
    payloadCrc: number,
    committedAtMs: number,
  ): number {
    const at = this.#staged;
    // The first record of a segment follows its header block in the same write.
    const first = this.#batchBytes === 0 || this.#position === SEGMENT_BLOCK_BYTES;
    encodeRecordHeader(
      this.#words,
      this.#staging,
      at,
      this.#salt,
      this.#position,
      kind,
      first ? RECORD_FLAG_FIRST : 0,
      payloadLen,
      txCount,
      minTxOffset,
      epoch,
      payloadCrc,
      this.chain,
      this.durable,
      committedAtMs,
    );
    this.claimed = this.durable;
    const bytes = recordBytes(payloadLen);
    this.#position += bytes;
    this.#batchBytes += bytes;
    this.#staged = at + RECORD_HEADER_BYTES;
    this.#updateFull();
    return this.#staged;
  }

  #updateFull(): void {
    this.full = this.#batchBytes >= this.#batchBytesMax || this.#phase !== PHASE_LIVE;
  }

  #control(kind: number, payloadLen: number, payloadCrc: number): void {
    this.#header(kind, payloadLen, 0, this.next, this.epoch, payloadCrc, this.atMs);
  }

  /** SEAL and CLEAN: the segment in figures. */
  #end(kind: number): void {
    const at = this.#staged + RECORD_HEADER_BYTES;
    const crc = encodeSegmentEnd(this.#staging, at, {
      baseOffset: this.baseOffset,
      next: this.next,
      commits: this.#commits,
      chain: this.chain,
      epoch: this.epoch,
    });
    this.#control(kind, END_PAYLOAD_BYTES, crc);
    this.#staged = at + END_PAYLOAD_BYTES;
  }

  #copy(source: Uint8Array, offset: number, length: number, at: number): void {
    const from = source.byteOffset + offset;
    if (length >= VIEW_BYTES_MIN || ((from | length) & 3) !== 0) {
      this.#staging.set(source.subarray(offset, offset + length), at);
      return;
    }
    if (source.buffer !== this.#sourceBuffer) {
      this.#sourceBuffer = source.buffer;
      this.#sourceWords = new Uint32Array(source.buffer, 0, source.buffer.byteLength >>> 2);
    }
    copyWords(this.#sourceWords, from >>> 2, this.#words, at >>> 2, length >>> 2);
  }

  #cut(piece: LogPiece): void {
    this.#cutAt[this.#cuts] = this.#staged;
    this.#cutPieces[this.#cuts] = piece;
    this.#cuts++;
  }

  // ---------------------------------------------------------------- rotation

  /** Ends the live segment behind what is staged; what is staged from here on belongs to the next. */
  #seal(): void {
    this.#end(RECORD_SEAL);
    this.#prevSeq = this.seq;
    this.#prevEnd = this.#position;
    this.#splitStaged = this.#staged;
    this.#splitCuts = this.#cuts;
    this.#splitBytes = this.#batchBytes;
    const next = this.#room.nextSegment();
    this.#created = next < 0;
    this.seq = Math.abs(next);
    this.baseOffset = this.next;
    this.baseAtMs = this.atMs;
    this.#salt = saltOf(this.logId, this.seq);
    this.#commits = 0;
    this.#position = SEGMENT_BLOCK_BYTES;
    this.#commitEnd = SEGMENT_BLOCK_BYTES;
    // The header block goes before the first record, in the same write.
    const header: SegmentHeader = {
      roCompat: 0,
      compat: this.#compatOfNext(),
      logId: this.logId,
      seq: this.seq,
      baseOffset: this.baseOffset,
      prevSeq: this.#prevSeq,
      prevEndPos: this.#prevEnd,
      prevChain: this.chain,
      epoch: this.epoch,
      plannedBytes: this.#segmentBytes,
      baseAtMs: this.baseAtMs,
      reason: REASON_ROTATE,
    };
    encodeSegmentBlock(this.#staging, this.#staged, header);
    this.#staged += SEGMENT_BLOCK_BYTES;
    this.#batchBytes += SEGMENT_BLOCK_BYTES;
    this.#phase = PHASE_SEAL_WRITE;
  }

  #compatOfNext(): number {
    if (this.#room.nextIsRecycled) return COMPAT_RECYCLED;
    return this.#room.nextBytes >= this.#segmentBytes ? COMPAT_ZERO_FILLED : 0;
  }

  #sealWrite(): LogStep {
    const upper = this.baseOffset;
    if (!this.#writeBatch(this.#splitStaged, this.#splitCuts, this.#splitBytes, upper)) {
      return 'waiting';
    }
    this.#batchAt = 0;
    this.#phase = PHASE_SEAL_SYNC;
    return 'wrote';
  }

  #openNext(): void {
    this.#oldFd = this.#fd;
    this.#fd = -1;
    try {
      this.#fd = this.#storage.open(segmentPath(this.seq), this.#created ? 'create' : 'write');
    } catch (error) {
      this.#fail('open', error, 0);
    }
    this.#fileSeq = this.seq;
    this.#room.opened();
  }

  #firstWrite(): void {
    const wrote = this.#writeAll();
    invariant(wrote, 'no job has a range of a segment that has just begun');
  }

  // ---------------------------------------------------------------- the disk

  #live(wantSync: boolean): LogStep {
    const mustSync = this.unsyncedBytes + this.#batchBytes > unsyncedBytesMax;
    if (this.unsyncedBytes > 0 && (wantSync || mustSync)) {
      if (!this.isSyncing && (!this.#syncApart || this.#closing)) {
        this.#sync();
        return 'synced';
      }
      if (!this.isSyncing) {
        this.#syncUpper = this.written;
        this.#syncBytes = this.unsyncedBytes;
        return 'syncs';
      }
      if (mustSync) return 'waiting';
    }
    if (this.#batchBytes > 0) {
      if (!this.#writeAll()) return 'waiting';
      this.#updateFull();
      return 'wrote';
    }
    if (!this.#closing) return 'idle';
    if (this.isSyncing) return 'waiting';
    if (this.unsyncedBytes > 0) {
      this.#sync();
      return 'synced';
    }
    this.#end(RECORD_CLEAN);
    this.#phase = PHASE_CLEAN_WRITE;
    return this.step(wantSync);
  }

  #writeAll(): boolean {
    return this.#writeBatch(this.#staged, this.#cuts, this.#batchBytes, this.next);
  }

  /**
   * Writes the first `staged` bytes and `cuts` pieces of staging, which hold offsets below `upper`, and
   * moves the rest to the front. False, and nothing done, when they reach into a zeroing job's range.
   */
  #writeBatch(staged: number, cuts: number, bytes: number, upper: number): boolean {
    const position = this.#batchAt;
    const end = position + bytes;
    if (this.#room.isTaken(this.#fileSeq, end)) return false;
    let got: number;
    try {
      got =
        cuts === 0
          ? this.#storage.write(this.#fd, this.#staging, 0, staged, position)
          : this.#storage.writev(this.#fd, this.#slices(staged, cuts), position);
    } catch (error) {
      this.#fail(cuts === 0 ? 'write' : 'writev', error, position);
    }
    if (got !== bytes) {
      // The system stopped half-way and kept the reason to itself. Nothing is ever written after it.
      const cause = Object.assign(new Error(`EIO: short write, ${got} of ${bytes} bytes`), {
        code: 'EIO',
        syscall: 'write',
        got,
        wanted: bytes,
      });
      this.#fail(cuts === 0 ? 'write' : 'writev', cause, position);
    }
    this.#batchAt = end;
    this.#room.wrote(bytes, end);
    this.unsyncedBytes += bytes;
    this.bytesWritten += bytes;
    this.written = upper;
    this.#drop(staged, cuts, bytes);
    return true;
  }

  #drop(staged: number, cuts: number, bytes: number): void {
    this.#staging.copyWithin(0, staged, this.#staged);
    this.#staged -= staged;
    for (let i = 0; i < this.#cuts; i++) {
      const from = i + cuts;
      this.#cutAt[i] = from < this.#cuts ? this.#cutAt[from] - staged : 0;
      this.#cutPieces[i] = from < this.#cuts ? this.#cutPieces[from] : NO_PIECE;
    }
    this.#cuts -= cuts;
    this.#batchBytes -= bytes;
  }

  #slices(staged: number, cuts: number): Uint8Array[] {
    const slices: Uint8Array[] = [];
    let at = 0;
    for (let i = 0; i < cuts; i++) {
      const cutAt = this.#cutAt[i];
      if (cutAt > at) slices.push(this.#staging.subarray(at, cutAt));
      const { bytes, offset, length } = this.#cutPieces[i];
      if (length > 0) slices.push(bytes.subarray(offset, offset + length));
      at = cutAt;
    }
    if (staged > at) slices.push(this.#staging.subarray(at, staged));
    return slices;
  }

  /** fdatasync on the descriptor that wrote: an error is reported once per open description. */
  #syncFile(): void {
    try {
      this.#storage.sync(this.#fd);
    } catch (error) {
      this.#fail('fdatasync', error, this.#batchAt);
    }
  }

  #sync(): void {
    this.#syncFile();
    this.#synced();
  }

  /** The sync that a step asked for is over. What was written since is as it was. */
  syncEnded(failure?: unknown): void {
    invariant(this.isSyncing, 'a sync that was asked for');
    const upper = this.#syncUpper;
    this.#syncUpper = -1;
    if (this.failed !== undefined) return;
    if (failure !== undefined) this.#fail('fdatasync', failure, this.#batchAt);
    this.durable = join(this.durable, upper);
    this.unsyncedBytes -= this.#syncBytes;
  }

  #syncDir(): void {
    try {
      this.#storage.syncDir(LOG_DIR);
    } catch (error) {
      this.#fail('fsync', error, 0);
    }
    this.#synced();
  }

  #synced(): void {
    invariant(this.durable <= this.written, 'durable is at most written');
    this.durable = this.written;
    this.unsyncedBytes = 0;
  }

  #closeFile(fd: number): void {
    try {
      this.#storage.close(fd);
    } catch (error) {
      this.#fail('close', error, 0);
    }
  }

  #fail(call: string, cause: unknown, position: number): never {
    const errno = cause instanceof Error && 'code' in cause ? cause.code : undefined;
    this.failed = new TidemarkError(
      'TIDEMARK_POISONED',
      `the log failed: ${call} of segment ${this.#fileSeq} at ${position}`,
      {
        call,
        seq: this.#fileSeq,
        position,
        offset: this.durable,
        ...(typeof errno === 'string' ? { errno } : {}),
      },
      cause,
    );
    throw this.failed;
  }
}

function copyWords(
  source: Uint32Array,
  from: number,
  target: Uint32Array,
  to: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) target[to + i] = source[from + i];
}
