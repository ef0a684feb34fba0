/**
 * Where the log's next bytes may go: which part of the live file is prepared, which belongs to a job,
 * and which file comes next. A range given to a job is entered by nobody else until the job has
 * answered, and no segment number is used twice. Part of the writer, on its thread.
 */
import { alignUp } from '../base/bytes.ts';
import { invariant } from '../base/assert.ts';
import { MiB } from '../base/limits.ts';
import { segmentPath } from '../storage/names.ts';
import { zeroChunkBytesMax, zeroChunkBytesMin } from './prepare.ts';
import type { SpareJob, ZeroJob } from './prepare.ts';
import { SEGMENT_BLOCK_BYTES } from './segment.ts';

/** Of prepared room so much is kept for SEAL, CLEAN and a few watermarks, which nobody asks credit for. */
const RESERVE_BYTES = 512;

/** Batches above this on average leave nothing for zeros to gain. */
const PREPARE_BATCH_BYTES_MAX: number = 1 * MiB;

/** So much of the live file fills before a spare is filled anew: before any was offered, and after. */
const OFFER_SHARE_FIRST = 0.5;
const OFFER_SHARE = 0.875;

export type RoomOptions = {
  readonly segmentBytes: number;
  /** Zeros a new log begins with; default 1 MiB. */
  readonly preparedBytes?: number;
  /** False where overwriting is no cheaper (copy-on-write file systems): no zeros ahead, no spares. */
  readonly prepare?: boolean;
  /**
   * False where syncs are few: zeros ahead would cost as many bytes as the log itself, and save nothing.
   * Segments grow as they are written, and a spare is a name alone.
   */
  readonly zeros?: boolean;
};

export type RoomResume = {
  /** The file holds written zeros from the next record's place to here. */
  readonly zeroedEnd: number;
  /** No number up to this one is used again. */
  readonly highestSeq: number;
  /** A file that waits under its number; 0: none. And whether old bytes are in it. */
  readonly spareSeq: number;
  readonly spareRecycled: boolean;
  /** A segment has filled before: spares are worth making. */
  readonly filled: boolean;
};

/** Counted, so that an operator sees whether spares come in time. */
export type SpareFigures = {
  /** Waiting under their numbers: 0 or 1. */
  ready: number;
  /** Rotations that found none, and made the file on the path. */
  missing: number;
  made: number;
  /** Made of a segment that nobody needed any more, or that came too late for its own number. */
  recycled: number;
};

/** Zeros that a segment begins with under these options. */
export function preparedBytesOf(options: RoomOptions): number {
  const isZeroed = (options.prepare ?? true) && (options.zeros ?? true);
  return isZeroed ? (options.preparedBytes ?? zeroChunkBytesMin) : 0;
}

export class LogRoom {
  /** End of the prepared room in the live file. */
  zeroedEnd: number;
  /** A job failed; none is asked for until this is cleared. */
  failed = false;
  readonly spares: SpareFigures = { ready: 0, missing: 0, made: 0, recycled: 0 };

  /** Of the file that `nextSegment` gave last: old bytes are in it. */
  nextIsRecycled = false;
  /** And how much of it is written: all of a spare that was filled or recycled. */
  nextBytes = 0;

  readonly #segmentBytes: number;
  readonly #prepare: boolean;
  readonly #zeros: boolean;
  readonly #gapBytes: number;
  #chunkBytes: number;
  // The zeroing job that is out; #zeroSeq 0: none.
  #zeroSeq = 0;
  #zeroFrom = 0;
  #zeroTo = 0;
  #meanBatchBytes = 0;
  #filled: boolean;
  #highestSeq: number;
  #spareSeq: number;
  #spareBytes: number;
  #spareOut = 0;
  #spareRecycled: boolean;
  #lateSpareSeq = 0;
  #lateSpareRecycled = false;
  /** A segment that nobody needs any more; 0: none. */
  #offeredSeq = 0;
  /** One was offered since a spare was last filled: the next may be as well. */
  #isOffering = false;
  /** The spare that is out is made of a file that was there. */
  #spareReused = false;

  constructor(options: RoomOptions, resume: RoomResume) {
    this.#segmentBytes = options.segmentBytes;
    this.#prepare = options.prepare ?? true;
    this.#zeros = options.zeros ?? true;
    this.#gapBytes = options.preparedBytes ?? zeroChunkBytesMin;
    this.#chunkBytes = this.#gapBytes;
    this.zeroedEnd = resume.zeroedEnd;
    this.#filled = resume.filled;
    this.#highestSeq = resume.highestSeq;
    this.#spareSeq = resume.spareSeq;
    this.#spareBytes = options.segmentBytes;
    this.#spareRecycled = resume.spareRecycled;
    this.spares.ready = resume.spareSeq === 0 ? 0 : 1;
  }

  /** True when bytes of segment `seq` up to `end` reach into a job's range. */
  isTaken(seq: number, end: number): boolean {
    return this.#zeroSeq === seq && end > this.#zeroFrom;
  }

  /** A batch of `bytes` was written, up to `end` of the live file. */
  wrote(bytes: number, end: number): void {
    if (this.zeroedEnd < end) this.zeroedEnd = end;
    this.#meanBatchBytes += (bytes - this.#meanBatchBytes) / 16;
  }

  /** The number of the next segment; the sign says whether its file is there: negative is to be created. */
  nextSegment(): number {
    this.#filled = true;
    const spare = this.#spareSeq;
    this.nextIsRecycled = spare !== 0 && this.#spareRecycled;
    this.nextBytes = spare === 0 ? 0 : this.#spareBytes;
    this.#spareSeq = 0;
    this.spares.ready = 0;
    if (spare !== 0) return spare;
    this.spares.missing++;
    this.#highestSeq++;
    return -this.#highestSeq;
  }

  /** The live file is the one that `nextSegment` gave. */
  opened(): void {
    this.zeroedEnd = this.nextBytes;
  }

  /** Nothing is prepared: whoever writes appends, and what is promised is what the disk has to spare. */
  get isAppending(): boolean {
    return !this.#zeros;
  }

  /**
   * Bytes of records, behind `position` in the live file, that prepared room takes whatever their sizes:
   * what the live file's rest does not take goes into the spare, so the larger of the two is sure.
   */
  preparedFor(position: number): number {
    const live = this.zeroedEnd - position;
    const spare = this.#spareSeq === 0 ? 0 : this.#spareBytes - SEGMENT_BLOCK_BYTES;
    return Math.max(0, Math.max(live, spare) - RESERVE_BYTES);
  }

  /** Bytes behind `position` of segment `seq` before the range of a job; Infinity when none is out there. */
  freeOfJobs(seq: number, position: number): number {
    if (this.#zeroSeq !== seq) return Infinity;
    return Math.max(0, this.#zeroFrom - position - RESERVE_BYTES);
  }

  /** Bytes that the spare under way will take from the disk. */
  get spareBytesOut(): number {
    return this.#spareOut === 0 ? 0 : this.#newSpareBytes;
  }

  /**
   * A range of the live file, in which the next record goes at `position`, or undefined. `promised`
   * bytes behind it were promised without being prepared: the range begins above them. `wanted` are
   * wanted now.
   */
  zeroWanted(seq: number, position: number, promised = 0, wanted = 0): ZeroJob | undefined {
    if (!this.#zeros || !this.#mayPrepare() || this.#zeroSeq === seq) return undefined;
    const room = this.zeroedEnd - position;
    if (room * 2 >= this.#chunkBytes && room - RESERVE_BYTES >= wanted) return undefined;
    // With no room left a gap is kept, into which the writer may append while the job runs.
    const gapEnd = alignUp(position + Math.max(this.#gapBytes, promised), SEGMENT_BLOCK_BYTES);
    const from = room > 0 && room >= promised ? this.zeroedEnd : gapEnd;
    if (from >= this.#segmentBytes) return undefined;
    this.#chunkBytes = Math.min(this.#chunkBytes * 2, zeroChunkBytesMax);
    this.#zeroSeq = seq;
    this.#zeroFrom = from;
    const bytes = Math.max(this.#chunkBytes, Math.min(wanted, zeroChunkBytesMax));
    this.#zeroTo = Math.min(from + alignUp(bytes, SEGMENT_BLOCK_BYTES), this.#segmentBytes);
    return { path: segmentPath(seq), seq, from, to: this.#zeroTo };
  }

  zeroed(seq: number, to: number, ok: boolean, liveSeq: number): void {
    if (!ok) {
      this.failed = true;
      // Whoever has little room is asked for little.
      this.#chunkBytes = this.#gapBytes;
    }
    // The answer of a job for a segment that is full by now changes nothing.
    if (seq !== this.#zeroSeq) return;
    invariant(to === this.#zeroTo, 'an answer belongs to its job', to, this.#zeroTo);
    this.#zeroSeq = 0;
    if (ok && seq === liveSeq) this.zeroedEnd = to;
  }

  /**
   * A spare to make, while the next record of the live file goes at `position`. A segment that is offered is
   * waited for until the live file is half full, or nearly so where one was offered before: filling a new one
   * meanwhile would be for nothing, and lie beside those that are about to go.
   */
  spareWanted(position: number): SpareJob | undefined {
    if (!this.#mayPrepare() || !this.#filled) return undefined;
    if (this.#spareSeq !== 0 || this.#spareOut !== 0) return undefined;
    if (this.#offeredSeq === 0 && this.#lateSpareSeq === 0) {
      const waitsUpTo = this.#isOffering ? OFFER_SHARE : OFFER_SHARE_FIRST;
      if (position < this.#segmentBytes * waitsUpTo) return undefined;
      this.#isOffering = false;
    }
    this.#highestSeq++;
    this.#spareOut = this.#highestSeq;
    const late = this.#lateSpareSeq;
    const recycle = late === 0 && this.#offeredSeq !== 0;
    const reuseSeq = recycle ? this.#offeredSeq : late;
    if (recycle) this.#offeredSeq = 0;
    this.#lateSpareSeq = 0;
    this.#spareReused = late !== 0;
    return { seq: this.#spareOut, bytes: this.#newSpareBytes, reuseSeq, recycle };
  }

  /**
   * Segment `seq` is needed by nobody any more: its file may be the next spare. True: it is this log's from
   * now on, and nobody else may touch it. False: no spare is wanted, for one is there, or in the making.
   */
  offer(seq: number): boolean {
    // One that grew as it was written has a size of its own.
    if (!this.#zeros) return false;
    this.#isOffering = true;
    const isWanted = this.#mayPrepare() && this.#filled && this.#lateSpareSeq === 0;
    if (!isWanted || this.#spareSeq !== 0 || this.#spareOut !== 0) return false;
    if (this.#offeredSeq !== 0) return false;
    this.#offeredSeq = seq;
    return true;
  }

  /** The file that waits to be made a spare: a segment that was offered, or one made too late; 0: none. */
  get keptFile(): number {
    return this.#offeredSeq === 0 ? this.#lateSpareSeq : this.#offeredSeq;
  }

  /** That file waits no more, and is somebody else's. */
  giveBackFile(): number {
    const seq = this.keptFile;
    if (seq === this.#lateSpareSeq) this.#lateSpareSeq = 0;
    else this.#offeredSeq = 0;
    return seq;
  }

  /** `recycled`: old bytes are in it. */
  spareReady(seq: number, ok: boolean, liveSeq: number, recycled: boolean): void {
    invariant(seq === this.#spareOut, 'an answer belongs to its job', seq, this.#spareOut);
    this.#spareOut = 0;
    // A failed job may have left anything under its number, which is not used again.
    if (!ok) {
      this.failed = true;
      return;
    }
    const hasOld = recycled || (this.#spareReused && this.#lateSpareRecycled);
    if (recycled || this.#spareReused) this.spares.recycled++;
    else this.spares.made++;
    if (seq > liveSeq) {
      this.#spareSeq = seq;
      this.#spareBytes = this.#newSpareBytes;
      this.#spareRecycled = hasOld;
    } else {
      this.#lateSpareSeq = seq;
      this.#lateSpareRecycled = hasOld;
    }
    this.spares.ready = this.#spareSeq === 0 ? 0 : 1;
  }

  get #newSpareBytes(): number {
    return this.#zeros ? this.#segmentBytes : SEGMENT_BLOCK_BYTES;
  }

  #mayPrepare(): boolean {
    if (!this.#prepare || this.failed) return false;
    return !this.#zeros || this.#meanBatchBytes <= PREPARE_BATCH_BYTES_MAX;
  }
}
