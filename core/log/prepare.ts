/**
 * Room for the log, made off its path: zeros written ahead in the live segment, and whole spare
 * segments. Overwriting written blocks changes no metadata, so a sync costs half. The range of a job
 * is its own until it has answered: the writer keeps out, or late zeros would cover commits. Step
 * machines over Storage, run by a merge worker; a step makes at most one storage call.
 */
import { NO_BYTES } from '../base/bytes.ts';
import { MiB } from '../base/limits.ts';
import { LOG_DIR, segmentPath, sparePath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { shortWrite } from '../storage/storage.ts';
import { SEGMENT_BLOCK_BYTES } from './segment.ts';

/** Zeros a new store begins with; each further chunk is twice the last. */
export const zeroChunkBytesMin: number = 1 * MiB;
export const zeroChunkBytesMax: number = 64 * MiB;

const STEP_BYTES: number = 1 * MiB;

/** Bytes [from, to) of a segment, to be overwritten with zeros and synced. */
export type ZeroJob = {
  readonly path: string;
  readonly seq: number;
  readonly from: number;
  readonly to: number;
};

/**
 * A file to be made under segment `seq`'s name. `reuseSeq` names one that is there already (0: none): a spare
 * made too late for its own number, or with `recycle` a segment that nobody needs any more.
 */
export type SpareJob = {
  readonly seq: number;
  readonly bytes: number;
  readonly reuseSeq: number;
  readonly recycle: boolean;
};

/** Fills a range of a segment. `step` returns true while there is more to do and throws what the disk throws. */
export class ZeroFill {
  readonly #storage: Storage;
  readonly #job: ZeroJob;
  readonly #zeros: Uint8Array;
  #fd = -1;
  #at: number;
  #synced = false;

  constructor(storage: Storage, job: ZeroJob, stepBytes: number = STEP_BYTES) {
    this.#storage = storage;
    this.#job = job;
    this.#zeros = new Uint8Array(Math.min(stepBytes, job.to - job.from));
    this.#at = job.from;
  }

  step(): boolean {
    if (this.#synced) {
      this.release();
      return false;
    }
    if (this.#fd === -1) {
      this.#fd = this.#storage.open(this.#job.path, 'write');
    } else if (this.#at < this.#job.to) {
      const bytes = Math.min(this.#zeros.length, this.#job.to - this.#at);
      writeZeros(this.#storage, this.#fd, this.#zeros, bytes, this.#at, this.#job.path);
      this.#at += bytes;
    } else {
      this.#storage.sync(this.#fd);
      this.#synced = true;
    }
    return true;
  }

  /** Gives back the descriptor. Called by the last step, and by whoever drops a failed job. */
  release(): void {
    if (this.#fd !== -1) this.#storage.close(this.#fd);
    this.#fd = -1;
  }

  /** The job has failed: its range, which is nobody else's yet, must not keep a full disk full. */
  abandon(): void {
    if (this.#fd !== -1) this.#storage.truncate(this.#fd, this.#job.from);
    this.release();
  }
}

/**
 * Makes a spare segment: filled and synced under a name of its own, then renamed and the directory synced.
 * One that is recycled keeps its bytes but for its header block, which is blank on disk before the file has
 * its new name: from then on nothing in it is a record, until a header of the new number stands there. One
 * of another size, or that somebody else has linked, is let go of, and a new one filled.
 */
export class SpareMaker {
  /** What was made of the file that was there: its bytes are still in it. */
  recycled = false;

  readonly #storage: Storage;
  readonly #job: SpareJob;
  readonly #tmp: string;
  /** The file that becomes the spare. */
  #path: string;
  #zeros: Uint8Array;
  readonly #stepBytes: number;
  #fd = -1;
  #at = 0;
  #isNamed = false;
  #phase:
    | 'look'
    | 'drop'
    | 'reopen'
    | 'blank'
    | 'sync'
    | 'clear'
    | 'open'
    | 'fill'
    | 'close'
    | 'rename'
    | 'syncDir'
    | 'done';

  constructor(storage: Storage, job: SpareJob, stepBytes: number = STEP_BYTES) {
    this.#storage = storage;
    this.#job = job;
    this.#tmp = sparePath(job.seq);
    this.#path = job.reuseSeq === 0 ? this.#tmp : segmentPath(job.reuseSeq);
    this.#stepBytes = stepBytes;
    this.#zeros = NO_BYTES;
    this.#phase = job.reuseSeq === 0 ? 'clear' : job.recycle ? 'look' : 'rename';
  }

  step(): boolean {
    const storage = this.#storage;
    switch (this.#phase) {
      case 'look': {
        const found = storage.stat(this.#path);
        const fits = found?.bytes === this.#job.bytes && found.links === 1;
        this.#phase = fits ? 'reopen' : 'drop';
        return true;
      }
      case 'drop':
        storage.unlink(this.#path);
        this.#path = this.#tmp;
        this.#phase = 'clear';
        return true;
      case 'reopen':
        this.#fd = storage.open(this.#path, 'write');
        this.#phase = 'blank';
        return true;
      case 'blank':
        this.#zeros = new Uint8Array(SEGMENT_BLOCK_BYTES);
        writeZeros(storage, this.#fd, this.#zeros, SEGMENT_BLOCK_BYTES, 0, this.#path);
        this.recycled = true;
        this.#phase = 'sync';
        return true;
      case 'sync':
        storage.sync(this.#fd);
        this.#phase = 'close';
        return true;
      case 'clear':
        storage.unlink(this.#tmp);
        this.#phase = 'open';
        return true;
      case 'open':
        this.#fd = storage.open(this.#tmp, 'create');
        this.#zeros = new Uint8Array(Math.min(this.#stepBytes, this.#job.bytes));
        this.#phase = 'fill';
        return true;
      case 'fill':
        this.#fill();
        return true;
      case 'close':
        this.release();
        this.#phase = 'rename';
        return true;
      case 'rename':
        storage.rename(this.#path, segmentPath(this.#job.seq));
        this.#isNamed = true;
        this.#phase = 'syncDir';
        return true;
      case 'syncDir':
        storage.syncDir(LOG_DIR);
        this.#phase = 'done';
        break;
      case 'done':
        break;
    }
    return false;
  }

  #fill(): void {
    if (this.#at === this.#job.bytes) {
      this.#storage.sync(this.#fd);
      this.#phase = 'close';
      return;
    }
    const bytes = Math.min(this.#zeros.length, this.#job.bytes - this.#at);
    writeZeros(this.#storage, this.#fd, this.#zeros, bytes, this.#at, this.#tmp);
    this.#at += bytes;
  }

  release(): void {
    if (this.#fd !== -1) this.#storage.close(this.#fd);
    this.#fd = -1;
  }

  /** The job is given up: what it has filled must not keep a full disk full. */
  abandon(): void {
    // What was to be recycled is nobody's else: it goes too, unless it is a spare by now.
    const isUnderWay = this.#fd !== -1 || (this.#job.recycle && !this.#isNamed);
    this.release();
    if (isUnderWay) this.#storage.unlink(this.#path);
  }
}

function writeZeros(
  storage: Storage,
  fd: number,
  zeros: Uint8Array,
  bytes: number,
  position: number,
  path: string,
): void {
  const n = storage.write(fd, zeros, 0, bytes, position);
  // The job fails, the log does not.
  if (n !== bytes) throw shortWrite(n, bytes, path);
}
