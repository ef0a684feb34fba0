/**
 * Walks the rows of a run through the disk, both ways: chooses the part by its key bounds, the block by
 * the part's index, reads whole blocks into private memory, further ahead the longer it walks straight
 * on, and checks each before the first row of it is seen. Used by merge jobs, and by readers whose
 * indexes lie in the arena; on any thread that may wait for the disk.
 */
import { compareBytes, compareAt } from '../base/bytes.ts';
import { invariant } from '../base/assert.ts';
import { corrupt } from '../base/errors.ts';
import { KiB } from '../base/limits.ts';
import { partPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { BlockCursor, blockFault } from './block.ts';
import { isPacked, unpackBlock } from './block-codec.ts';
import { badBlock, readIndex } from './part-reader.ts';
import type { PartInfo } from './part-format.ts';
import { blockBytes, blockCount, blockOffset, findBlock } from './part-index.ts';

/** Where the part lies that a cursor is in. Filled by `RunParts.enter`. */
export type PartPlace = {
  /** Holds the part's index at `indexAddress`. */
  memory: Uint8Array;
  indexAddress: number;
  /** Open file, and the part's start in it. */
  fd: number;
  file: number;
  offset: number;
};

/** The parts of one run, in key order, and how to get at them. A cursor is in at most one at a time. */
export interface RunParts {
  readonly count: number;
  /** Bounds of the part's keys: its smallest and largest, or cut ones (core/spine/view.ts). */
  keyLo(part: number): Uint8Array;
  keyHi(part: number): Uint8Array;
  /** Fills `place`; what it says stays true until `leave`. */
  enter(part: number, place: PartPlace): void;
  leave(part: number): void;
}

/** Blocks read at once by a cursor that walks straight on: doubles from the first to the second. */
const AHEAD_BYTES_MIN: number = 32 * KiB;
export const AHEAD_BYTES_MAX: number = 256 * KiB;

const NO_PART = -1;

export class RunCursor extends BlockCursor {
  readonly #storage: Storage;
  readonly #aheadBytesMax: number;
  #parts: RunParts;
  #part: number;
  readonly #place: PartPlace;
  #blocks: number;
  #block: number;

  /** Whole blocks read: bytes [#windowFrom, #windowTo) of file #windowFile. */
  #window: Uint8Array;
  #windowFile: number;
  #windowFrom: number;
  #windowTo: number;
  /** Position of the block in the window that was checked last. */
  #checkedAt: number;
  /** That block, if it is packed in the window. */
  #plain: Uint8Array | undefined;
  #aheadBytes: number;
  /** Bytes read from the disk so far. */
  bytesRead: number;

  constructor(storage: Storage, parts: RunParts, aheadBytesMax: number = AHEAD_BYTES_MAX) {
    super();
    this.#storage = storage;
    this.#aheadBytesMax = aheadBytesMax;
    this.#parts = parts;
    this.#part = NO_PART;
    this.#place = { memory: this.keyBytes, indexAddress: 0, fd: -1, file: 0, offset: 0 };
    this.#blocks = 0;
    this.#block = 0;
    this.#window = new Uint8Array(AHEAD_BYTES_MIN);
    this.#windowFile = 0;
    this.#windowFrom = 0;
    this.#windowTo = 0;
    this.#checkedAt = -1;
    this.#plain = undefined;
    this.#aheadBytes = AHEAD_BYTES_MIN;
    this.bytesRead = 0;
  }

  /**
   * Leaves the current part and takes other ones; stands on no row. Blocks at hand are kept: files
   * never change and their ids are never used again.
   */
  reset(parts: RunParts): void {
    this.leave();
    this.#parts = parts;
  }

  /** Leaves the current part; stands on no row. The cursor may be used again. */
  leave(): void {
    this.valid = false;
    if (this.#part === NO_PART) return;
    const part = this.#part;
    this.#part = NO_PART;
    this.#parts.leave(part);
  }

  override first(): void {
    this.valid = false;
    if (this.#parts.count === 0) return;
    this.#aheadBytes = AHEAD_BYTES_MIN;
    this.#enter(0);
    this.#load(0, 1);
    super.first();
  }

  override last(): void {
    this.valid = false;
    if (this.#parts.count === 0) return;
    this.#aheadBytes = AHEAD_BYTES_MIN;
    this.#enter(this.#parts.count - 1);
    this.#load(this.#blocks - 1, -1);
    super.last();
  }

  override next(): void {
    const row = this.row + 1;
    if (row < this.rows) {
      this.row = row;
      this.readKey();
      this.readColumns();
    } else {
      this.#nextBlock();
    }
  }

  override previous(): void {
    if (this.row > 0) this.goTo(this.row - 1);
    else this.#previousBlock();
  }

  override seek(key: Uint8Array, offset: number, length: number): void {
    // The first part that does not end below the key.
    let lo = 0;
    let hi = this.#parts.count;
    while (lo < hi) {
      const middle = (lo + hi) >>> 1;
      const keyHi = this.#parts.keyHi(middle);
      if (compareAt(keyHi, 0, keyHi.length, key, offset, length) < 0) lo = middle + 1;
      else hi = middle;
    }
    if (lo === this.#parts.count) {
      this.valid = false;
      return;
    }
    // Where bounds are cut, all of the part may still lie below the key.
    for (let part = lo; part < this.#parts.count; part++) {
      this.#enter(part);
      this.#seekInPart(key, offset, length);
      if (this.valid) return;
      if (this.#block + 1 < this.#blocks) {
        this.#nextBlock();
        return;
      }
    }
  }

  #seekInPart(key: Uint8Array, offset: number, length: number): void {
    const { memory, indexAddress } = this.#place;
    this.#loadAlone(findBlock(memory, indexAddress, key, offset, length));
    this.seekInBlock(key, offset, length);
  }

  override seekBelow(key: Uint8Array, offset: number, length: number): void {
    // The last part that begins below the key.
    let lo = -1;
    let hi = this.#parts.count - 1;
    while (lo < hi) {
      const middle = (lo + hi + 1) >> 1;
      const keyLo = this.#parts.keyLo(middle);
      if (compareAt(keyLo, 0, keyLo.length, key, offset, length) < 0) lo = middle;
      else hi = middle - 1;
    }
    if (lo < 0) {
      this.valid = false;
      return;
    }
    // Where bounds are cut, nothing of the part may lie below the key.
    for (let part = lo; part >= 0; part--) {
      this.#enter(part);
      this.#seekInPart(key, offset, length);
      if (!this.valid) {
        super.last();
        return;
      }
      if (this.row > 0 || this.#block > 0) {
        this.previous();
        return;
      }
    }
    this.valid = false;
  }

  #enter(part: number): void {
    invariant(part >= 0 && part < this.#parts.count, 'a run has parts', part);
    if (part === this.#part) return;
    this.leave();
    this.#parts.enter(part, this.#place);
    this.#part = part;
    this.#blocks = blockCount(this.#place.memory, this.#place.indexAddress);
  }

  #nextBlock(): void {
    this.valid = false;
    if (this.#block + 1 < this.#blocks) {
      this.#load(this.#block + 1, 1);
    } else if (this.#part + 1 < this.#parts.count) {
      this.#enter(this.#part + 1);
      this.#load(0, 1);
    } else {
      return;
    }
    super.first();
  }

  #previousBlock(): void {
    this.valid = false;
    if (this.#block > 0) {
      this.#load(this.#block - 1, -1);
    } else if (this.#part > 0) {
      this.#enter(this.#part - 1);
      this.#load(this.#blocks - 1, -1);
    } else {
      return;
    }
    super.last();
  }

  #loadAlone(block: number): void {
    this.#aheadBytes = AHEAD_BYTES_MIN;
    this.#load(block, 0);
  }

  /** Opens a block. `ahead`: 1 or -1 to read more blocks after or before it on the way, or 0. */
  #load(block: number, ahead: number): void {
    const { memory, indexAddress, file, offset } = this.#place;
    const position = offset + blockOffset(memory, indexAddress, block);
    const bytes = blockBytes(memory, indexAddress, block);
    this.#block = block;
    this.valid = false;
    if (
      this.#windowFile !== file ||
      position < this.#windowFrom ||
      position + bytes > this.#windowTo
    ) {
      this.#fill(block, ahead);
    }
    const at = position - this.#windowFrom;
    if (this.#checkedAt !== position) {
      this.#checkedAt = -1;
      const fault = blockFault(this.#window, at, bytes);
      if (fault !== undefined) throw badBlock(file, block, position, fault);
      this.#plain = undefined;
      if (isPacked(this.#window, at)) {
        const plain = unpackBlock(this.#window, at, bytes);
        if (typeof plain === 'string') throw badBlock(file, block, position, plain);
        this.#plain = plain;
      }
      this.#checkedAt = position;
    }
    if (this.#plain === undefined) this.open(this.#window, at);
    else this.open(this.#plain, 0);
  }

  /** Reads the block, and as many more whole ones as the read-ahead allows. */
  #fill(block: number, ahead: number): void {
    const { memory, indexAddress, fd, file, offset } = this.#place;
    let from = blockOffset(memory, indexAddress, block);
    let to = blockOffset(memory, indexAddress, block + 1);
    if (ahead !== 0) {
      const limit = this.#aheadBytes;
      if (ahead > 0) {
        for (let i = block + 2; i <= this.#blocks; i++) {
          const end = blockOffset(memory, indexAddress, i);
          if (end - from > limit) break;
          to = end;
        }
      } else {
        for (let i = block - 1; i >= 0; i--) {
          const start = blockOffset(memory, indexAddress, i);
          if (to - start > limit) break;
          from = start;
        }
      }
      this.#aheadBytes = Math.min(limit * 2, this.#aheadBytesMax);
    }
    const bytes = to - from;
    this.#windowFile = 0;
    this.#checkedAt = -1;
    // Grows with the read-ahead; what one large block needed is let go after it.
    if (bytes > this.#window.length || this.#window.length > 2 * this.#aheadBytesMax) {
      this.#window = new Uint8Array(Math.max(bytes, this.#aheadBytes));
    }
    const n = this.#storage.read(fd, this.#window, 0, bytes, offset + from);
    if (n !== bytes) {
      throw badBlock(file, block, offset + from, `the file ends after ${n} of ${bytes} bytes`);
    }
    this.bytesRead += bytes;
    this.#windowFile = file;
    this.#windowFrom = offset + from;
    this.#windowTo = offset + to;
  }
}

/** Throws when parts of a run overlap, as far as their footers say. */
export function checkRunOrder(parts: readonly PartInfo[]): void {
  for (let i = 1; i < parts.length; i++) {
    if (compareBytes(parts[i - 1].keyHi, parts[i].keyLo) <= 0) continue;
    const { file, offset } = parts[i];
    throw corrupt('RUN_ORDER', `part at ${offset} of file ${file} overlaps the one before`, {
      file,
      offset,
    });
  }
}

/** The parts of a run for a job: files opened and indexes read as the cursor comes to them. */
export class OwnRunParts implements RunParts {
  readonly count: number;
  readonly #storage: Storage;
  readonly #parts: readonly PartInfo[];
  #fd: number;

  constructor(storage: Storage, parts: readonly PartInfo[]) {
    this.count = parts.length;
    this.#storage = storage;
    this.#parts = parts;
    this.#fd = -1;
    checkRunOrder(parts);
  }

  keyLo(part: number): Uint8Array {
    return this.#parts[part].keyLo;
  }

  keyHi(part: number): Uint8Array {
    return this.#parts[part].keyHi;
  }

  enter(part: number, place: PartPlace): void {
    const info = this.#parts[part];
    invariant(this.#fd < 0, 'a cursor is in one part at a time', part);
    this.#fd = this.#storage.open(partPath(info.file), 'read');
    try {
      place.memory = readIndex(this.#storage, this.#fd, info);
    } catch (error) {
      this.leave();
      throw error;
    }
    place.indexAddress = 0;
    place.fd = this.#fd;
    place.file = info.file;
    place.offset = info.offset;
  }

  leave(): void {
    if (this.#fd < 0) return;
    const fd = this.#fd;
    this.#fd = -1;
    this.#storage.close(fd);
  }
}
