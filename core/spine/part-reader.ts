/**
 * Reading parts: footers, indexes and filters into private memory for jobs and the keeper, and point
 * reads for everybody. Whatever comes from disk is checked before it is believed; damage is an error
 * that names file, block and position. Point reads allocate nothing: probe the filter, find the block,
 * read that one block, search it. Where index and filter lie (private memory, arena) is the caller's.
 */
import { NO_BYTES } from '../base/bytes.ts';
import { corrupt } from '../base/errors.ts';
import type { TidemarkError } from '../base/errors.ts';
import { KiB, MiB } from '../base/limits.ts';
import type { RangeDelete } from '../base/range-set.ts';
import { partPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { ABSENT, blockFault, BlockSearch, CONTINUES } from './block.ts';
import { filterFault, filterMayHold } from './filter.ts';
import { isPacked, unpackBlock } from './block-codec.ts';
import { FOOTER_READ_BYTES, footerBytes, parseFooter } from './part-format.ts';
import type { PartInfo, PartRef } from './part-format.ts';
import { addRange, rangeBlockFault, readRangeBlock } from './range-block.ts';
import { RowSums } from './row-hash.ts';
import { blockBytes, blockCount, blockOffset, findBlock, indexFault } from './part-index.ts';

const BAD_RANGES = 'BAD_RANGES';

/** Reads the footer of a part out of its open file. */
export function readFooter(storage: Storage, fd: number, ref: PartRef): PartInfo {
  let length = Math.min(FOOTER_READ_BYTES, ref.bytes);
  let bytes = readExactly(storage, fd, ref, ref.bytes - length, length, 'BAD_FOOTER');
  const needed = footerBytes(bytes, length, ref);
  if (needed > length) {
    length = needed;
    bytes = readExactly(storage, fd, ref, ref.bytes - length, length, 'BAD_FOOTER');
  }
  return parseFooter(bytes, 0, length, ref);
}

/** Reads the footers of parts, opening each file once while its parts stand together. */
export function readFooters(storage: Storage, refs: readonly PartRef[]): PartInfo[] {
  const infos: PartInfo[] = [];
  let file = -1;
  let fd = -1;
  try {
    for (const ref of refs) {
      if (ref.file !== file) {
        if (fd >= 0) storage.close(fd);
        fd = -1;
        fd = storage.open(partPath(ref.file), 'read');
        file = ref.file;
      }
      infos.push(readFooter(storage, fd, ref));
    }
  } finally {
    if (fd >= 0) storage.close(fd);
  }
  return infos;
}

/** Reads and checks the index of a part. */
export function readIndex(storage: Storage, fd: number, part: PartInfo): Uint8Array {
  const { indexOffset, indexBytes } = part;
  const bytes = readExactly(storage, fd, part, indexOffset, indexBytes, 'BAD_INDEX');
  checkIndex(bytes, 0, part);
  return bytes;
}

/** Reads and checks the filter of a part. */
export function readFilter(storage: Storage, fd: number, part: PartInfo): Uint8Array {
  const { filterOffset, filterBytes } = part;
  const bytes = readExactly(storage, fd, part, filterOffset, filterBytes, 'BAD_FILTER');
  checkFilter(bytes, 0, part);
  return bytes;
}

/** Reads and checks the range deletes of a part that has some. */
export function readRanges(storage: Storage, fd: number, part: PartInfo): RangeDelete[] {
  const { rangeDeletesOffset, rangeDeletesBytes } = part;
  const bytes = readExactly(storage, fd, part, rangeDeletesOffset, rangeDeletesBytes, BAD_RANGES);
  checkRanges(bytes, 0, part);
  return readRangeBlock(bytes, 0);
}

/** Throws unless bytes[at...] are the range deletes of the part: all that its footer sums up. */
export function checkRanges(bytes: Uint8Array, at: number, part: PartInfo): void {
  const { rangeDeletes, rangeDeletesBytes, rangeDeletesOffset } = part;
  const fault = rangeBlockFault(bytes, at, rangeDeletesBytes, rangeDeletes);
  if (fault !== undefined) throw badPart(BAD_RANGES, part, rangeDeletesOffset, fault);
  const sums = new RowSums();
  let minT = Number.MAX_SAFE_INTEGER;
  let maxT = 0;
  for (const range of readRangeBlock(bytes, at)) {
    addRange(sums, range);
    minT = Math.min(minT, range.time);
    maxT = Math.max(maxT, range.time);
  }
  const [h0, h1] = sums.hash();
  const isSame = h0 === part.hash[0] && h1 === part.hash[1];
  if (isSame && minT === part.minT && maxT === part.maxT) return;
  throw badPart(BAD_RANGES, part, rangeDeletesOffset, 'range deletes that its footer does not sum');
}

/** Range deletes of parts, all of which have some; each file is opened once while its parts stand together. */
export function readAllRanges(storage: Storage, parts: readonly PartInfo[]): RangeDelete[] {
  const ranges: RangeDelete[] = [];
  let file = -1;
  let fd = -1;
  try {
    for (const part of parts) {
      if (part.file !== file) {
        if (fd >= 0) storage.close(fd);
        fd = -1;
        fd = storage.open(partPath(part.file), 'read');
        file = part.file;
      }
      for (const range of readRanges(storage, fd, part)) ranges.push(range);
    }
  } finally {
    if (fd >= 0) storage.close(fd);
  }
  return ranges;
}

/** Throws unless bytes[at...] is the index of the part. Before it is put where readers find it. */
export function checkIndex(bytes: Uint8Array, at: number, part: PartInfo): void {
  const { indexBytes, rangeDeletesOffset } = part;
  const fault = indexFault(bytes, at, indexBytes, part.blockCount, rangeDeletesOffset);
  if (fault !== undefined) throw badPart('BAD_INDEX', part, part.indexOffset, fault);
}

/** Throws unless bytes[at...] is the filter of the part. */
export function checkFilter(bytes: Uint8Array, at: number, part: PartInfo): void {
  const fault = filterFault(bytes, at, part.filterBytes);
  if (fault !== undefined) throw badPart('BAD_FILTER', part, part.filterOffset, fault);
}

/** Damage in a block. `position` counts from the start of the file. */
export function badBlock(
  file: number,
  block: number,
  position: number,
  what: string,
): TidemarkError {
  return corrupt('BAD_BLOCK', `block ${block} at ${position} of part file ${file}: ${what}`, {
    file,
    block,
    position,
  });
}

function badPart(finding: string, ref: PartRef, offset: number, what: string): TidemarkError {
  return corrupt(finding, `part at ${ref.offset} of file ${ref.file}: ${what}`, {
    file: ref.file,
    offset: ref.offset,
    position: ref.offset + offset,
  });
}

function readExactly(
  storage: Storage,
  fd: number,
  ref: PartRef,
  offset: number,
  length: number,
  finding: string,
): Uint8Array {
  const bytes = new Uint8Array(length);
  const n = storage.read(fd, bytes, 0, length, ref.offset + offset);
  if (n !== length)
    throw badPart(finding, ref, offset, `the file ends after ${n} of ${length} bytes`);
  return bytes;
}

/** A position that no block has. */
const NOWHERE = -1;

const BUFFER_BYTES: number = 32 * KiB;
/** A larger buffer than this is let go when the next block is smaller. */
const KEPT_BYTES_MAX: number = 1 * MiB;

/**
 * Point reads of parts, one after the other. In steps, so that the read may be anybody's:
 *
 *   locate(...)      filter and index; false: the part has no such key; else `position` and `bytes` say
 *                    what to read
 *   search(...)      looks in the bytes read: FOUND, ABSENT, or CONTINUES
 *   advance(...)     after CONTINUES: the next block of the part; false: the part ends, older versions
 *                    may be in the run's next part if its smallest key is this one
 *
 * `get` does it all with plain reads. The fields of `found` are valid until the next search, and its
 * value as long as the bytes that were searched. A read that others may overtake wants a PointReader of
 * its own between `locate` and `search`; `advance` looks into the index again, which must still be there.
 */
export class PointReader {
  readonly found: BlockSearch;
  /** The block to read: bytes [position, position + bytes) of the file. */
  position: number;
  bytes: number;
  /** Its number in the part. */
  block: number;
  /** What `get` read last. */
  buffer: Uint8Array;
  /** The block in it, plain. */
  #plain: Uint8Array;
  /** What the buffer holds, so that the same block is not read and checked twice in a row. */
  #heldFile: number;
  #heldPosition: number;

  constructor() {
    this.found = new BlockSearch();
    this.position = 0;
    this.bytes = 0;
    this.block = 0;
    this.buffer = NO_BYTES;
    this.#plain = NO_BYTES;
    this.#heldFile = 0;
    this.#heldPosition = NOWHERE;
  }

  /**
   * `memory` holds the part's index and filter at their addresses (filterAddress < 0: no filter at
   * hand); `offset` is where the part begins in its file; `hash` is keyHash of the key.
   */
  locate(
    memory: Uint8Array,
    indexAddress: number,
    filterAddress: number,
    offset: number,
    hash: number,
    key: Uint8Array,
    keyOffset: number,
    keyLength: number,
  ): boolean {
    if (filterAddress >= 0 && !filterMayHold(memory, filterAddress, hash)) return false;
    this.#place(
      memory,
      indexAddress,
      offset,
      findBlock(memory, indexAddress, key, keyOffset, keyLength),
    );
    return true;
  }

  advance(memory: Uint8Array, indexAddress: number, offset: number): boolean {
    if (this.block + 1 >= blockCount(memory, indexAddress)) return false;
    this.#place(memory, indexAddress, offset, this.block + 1);
    return true;
  }

  /** Checks the block that was read to bytes[at, at + this.bytes), then searches it. */
  search(
    bytes: Uint8Array,
    at: number,
    file: number,
    key: Uint8Array,
    keyOffset: number,
    keyLength: number,
    asOf: number,
  ): number {
    const fault = blockFault(bytes, at, this.bytes);
    if (fault !== undefined) throw badBlock(file, this.block, this.position, fault);
    if (!isPacked(bytes, at)) return this.found.search(bytes, at, key, keyOffset, keyLength, asOf);
    const plain = unpackBlock(bytes, at, this.bytes);
    if (typeof plain === 'string') throw badBlock(file, this.block, this.position, plain);
    return this.found.search(plain, 0, key, keyOffset, keyLength, asOf);
  }

  /**
   * The newest version of the key with time <= asOf in a part, by plain reads. FOUND: see `found`, its
   * value is in `found.valueBytes`. CONTINUES: the part ends in newer versions of the key.
   */
  get(
    storage: Storage,
    fd: number,
    file: number,
    memory: Uint8Array,
    indexAddress: number,
    filterAddress: number,
    offset: number,
    hash: number,
    key: Uint8Array,
    keyOffset: number,
    keyLength: number,
    asOf: number,
  ): number {
    if (
      !this.locate(memory, indexAddress, filterAddress, offset, hash, key, keyOffset, keyLength)
    ) {
      return ABSENT;
    }
    do {
      this.#read(storage, fd, file);
      const answer = this.found.search(this.#plain, 0, key, keyOffset, keyLength, asOf);
      if (answer !== CONTINUES) return answer;
    } while (this.advance(memory, indexAddress, offset));
    return CONTINUES;
  }

  #place(memory: Uint8Array, indexAddress: number, offset: number, block: number): void {
    this.block = block;
    this.position = offset + blockOffset(memory, indexAddress, block);
    this.bytes = blockBytes(memory, indexAddress, block);
  }

  /** File ids are never reused and files never change, so what is held stays true. */
  #read(storage: Storage, fd: number, file: number): void {
    if (this.#heldFile === file && this.#heldPosition === this.position) return;
    this.#heldPosition = NOWHERE;
    const isTooLarge = this.buffer.length > KEPT_BYTES_MAX && this.bytes <= BUFFER_BYTES;
    if (this.bytes > this.buffer.length || isTooLarge) {
      this.buffer = new Uint8Array(Math.max(this.bytes, BUFFER_BYTES));
    }
    const n = storage.read(fd, this.buffer, 0, this.bytes, this.position);
    const fault = n === this.bytes ? blockFault(this.buffer, 0, n) : 'the file ends inside it';
    if (fault !== undefined) throw badBlock(file, this.block, this.position, fault);
    const plain = isPacked(this.buffer, 0) ? unpackBlock(this.buffer, 0, n) : this.buffer;
    if (typeof plain === 'string') throw badBlock(file, this.block, this.position, plain);
    this.#plain = plain;
    this.#heldFile = file;
    this.#heldPosition = this.position;
  }
}
