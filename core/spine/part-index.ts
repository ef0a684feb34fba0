/**
 * The index of a part: which of its blocks may hold a key, and where that block lies. Between two
 * neighbouring blocks stands a bound, the shortest key above everything before it and not above what
 * follows; where one key's versions run on, the bound is that key and a zero byte. Position-independent:
 * searched in place, in private or shared memory. Built by part writers, searched on any thread.
 *
 *   index    off size field
 *              0    4 CRC-32 of the rest
 *              4    4 bytes of the whole index
 *              8    4 blocks, n
 *             12    4 bytes of the prefix that all bounds share
 *             16      n + 1 u32: where each block begins in the part, and where the last ends
 *                     n - 1 u32: where the rest of each bound ends, from the first one's start
 *                     prefix, then the rests of the bounds
 *
 * Written to fit one page, always: a part is cut before its index could outgrow it.
 */
import { crc32 } from '../base/crc32.ts';
import { commonPrefix, compareAt, getU32, setU32 } from '../base/bytes.ts';
import { invariant } from '../base/assert.ts';
import { keyBytesMax, pageBytes } from '../base/limits.ts';
import { copyAt, grown } from '../base/copy.ts';

const CRC_OFFSET = 0;
const BYTES_OFFSET: number = CRC_OFFSET + 4;
const BLOCKS_OFFSET: number = BYTES_OFFSET + 4;
const PREFIX_OFFSET: number = BLOCKS_OFFSET + 4;
const HEADER_BYTES: number = PREFIX_OFFSET + 4;

/** Position of a block from the start of its part; i = block count gives the end of the last. */
export function blockOffset(bytes: Uint8Array, at: number, i: number): number {
  return getU32(bytes, at + HEADER_BYTES + 4 * i);
}

/** Stored bytes of a block. */
export function blockBytes(bytes: Uint8Array, at: number, i: number): number {
  return blockOffset(bytes, at, i + 1) - blockOffset(bytes, at, i);
}

export function blockCount(bytes: Uint8Array, at: number): number {
  return getU32(bytes, at + BLOCKS_OFFSET);
}

/**
 * The first block that may hold the key: all rows before it are smaller, and all after it larger, but
 * for older versions of the same key. Who asks for keys in their order says with `near`, a block of the
 * part, where the last one was: the next is mostly there or a few further.
 */
export function findBlock(
  bytes: Uint8Array,
  at: number,
  key: Uint8Array,
  offset: number,
  length: number,
  near = -1,
): number {
  const n = getU32(bytes, at + BLOCKS_OFFSET);
  const prefixBytes = getU32(bytes, at + PREFIX_OFFSET);
  const ends = at + HEADER_BYTES + 4 * (n + 1);
  const prefix = ends + 4 * (n - 1);
  if (prefixBytes > 0) {
    const head = length < prefixBytes ? length : prefixBytes;
    const order = compareAt(key, offset, head, bytes, prefix, prefixBytes);
    if (order !== 0) return order < 0 ? 0 : n - 1;
  }
  const rests = prefix + prefixBytes;
  const restOffset = offset + prefixBytes;
  const restLength = length - prefixBytes;
  // Finds the first bound above the key: those below lo are not, that at hi is, if there is one.
  let lo = 0;
  let hi = n - 1;
  if (near > 0 && isBelow(key, restOffset, restLength, bytes, ends, rests, near - 1)) {
    hi = near - 1;
  } else if (near >= 0) {
    lo = near;
    for (let step = 0; lo + step < hi; step = 2 * step + 1) {
      if (isBelow(key, restOffset, restLength, bytes, ends, rests, lo + step)) hi = lo + step;
      else lo += step + 1;
    }
  }
  while (lo < hi) {
    const middle = (lo + hi) >>> 1;
    if (isBelow(key, restOffset, restLength, bytes, ends, rests, middle)) hi = middle;
    else lo = middle + 1;
  }
  return lo;
}

/** The rest of the key is below that of the i-th bound. */
function isBelow(
  key: Uint8Array,
  offset: number,
  length: number,
  bytes: Uint8Array,
  ends: number,
  rests: number,
  i: number,
): boolean {
  const start = i === 0 ? 0 : getU32(bytes, ends + 4 * (i - 1));
  const boundBytes = getU32(bytes, ends + 4 * i) - start;
  return compareAt(key, offset, length, bytes, rests + start, boundBytes) < 0;
}

/** What is wrong with an index read from disk, if anything. Ask before the first search. */
export function indexFault(
  bytes: Uint8Array,
  at: number,
  length: number,
  blocks: number,
  blocksEnd: number,
): string | undefined {
  if (length < HEADER_BYTES + 8) return 'shorter than an index';
  if (crc32(bytes, at + 4, length - 4) !== getU32(bytes, at + CRC_OFFSET)) return 'checksum';
  if (getU32(bytes, at + BYTES_OFFSET) !== length) return 'another size';
  if (blockCount(bytes, at) !== blocks) return 'another block count';
  const keys = HEADER_BYTES + 4 * (blocks + 1) + 4 * (blocks - 1);
  const prefixBytes = getU32(bytes, at + PREFIX_OFFSET);
  if (keys + prefixBytes > length) return 'bounds reach beyond it';
  if (blockOffset(bytes, at, 0) !== 0) return 'the first block does not begin the part';
  if (blockOffset(bytes, at, blocks) !== blocksEnd) return 'the last block ends elsewhere';
  for (let i = 0; i < blocks; i++) {
    if (blockOffset(bytes, at, i) >= blockOffset(bytes, at, i + 1)) return 'blocks out of order';
  }
  let end = 0;
  for (let i = 0; i < blocks - 1; i++) {
    const next = getU32(bytes, at + HEADER_BYTES + 4 * (blocks + 1 + i));
    if (next < end) return 'bounds out of order';
    end = next;
  }
  if (keys + prefixBytes + end !== length) return 'bounds do not fill it';
  return undefined;
}

/** Collects the bounds of one part. */
export class IndexBuilder {
  #blocks: number;
  #offsets: Uint32Array;
  /** Where each bound ends in #bounds. */
  #ends: Uint32Array;
  #bounds: Uint8Array;
  /** Bytes that all bounds so far share; of the first, its whole length. */
  #prefixBytes: number;

  constructor() {
    this.#blocks = 0;
    this.#offsets = new Uint32Array(1024);
    this.#ends = new Uint32Array(1024);
    this.#bounds = new Uint8Array(16 * 1024);
    this.#prefixBytes = 0;
  }

  clear(): void {
    this.#blocks = 0;
    this.#prefixBytes = 0;
  }

  get blockCount(): number {
    return this.#blocks;
  }

  get #boundBytes(): number {
    return this.#blocks === 0 ? 0 : this.#ends[this.#blocks - 1];
  }

  /** True while one more bound, however long, leaves the index inside one page. */
  get hasRoom(): boolean {
    const blocks = this.#blocks + 2;
    return HEADER_BYTES + 8 * blocks + this.#boundBytes + keyBytesMax + 1 <= pageBytes;
  }

  /**
   * Ends a block at `end` with the last key in it; `next` is the first key after it. They share `shared`
   * bytes; when they are equal, so are all three lengths.
   */
  endBlock(
    end: number,
    lastLength: number,
    next: Uint8Array,
    offset: number,
    length: number,
    shared: number,
  ): void {
    this.#room();
    const start = this.#boundBytes;
    const same = shared === length;
    invariant(!same || shared === lastLength, 'keys ascend', shared, length);
    const boundLength = shared + 1;
    const needed = start + boundLength;
    if (needed > this.#bounds.length) this.#bounds = grown(this.#bounds, start, needed);
    copyAt(next, offset, same ? shared : boundLength, this.#bounds, start);
    if (same) this.#bounds[start + shared] = 0;
    this.#prefixBytes =
      this.#blocks === 0
        ? boundLength
        : commonPrefix(this.#bounds, 0, this.#prefixBytes, this.#bounds, start, boundLength);
    this.#ends[this.#blocks] = start + boundLength;
    this.#blocks += 1;
    this.#offsets[this.#blocks] = end;
  }

  /** Ends the last block of the part. */
  endLast(end: number): void {
    this.#room();
    this.#ends[this.#blocks] = this.#boundBytes;
    this.#blocks += 1;
    this.#offsets[this.#blocks] = end;
  }

  /** Bytes of the index once `endLast` was called. */
  get bytes(): number {
    const n = this.#blocks;
    const bounds = n - 1;
    return HEADER_BYTES + 4 * (n + 1 + bounds) + this.#boundBytes - this.#saved(bounds);
  }

  /** What the common prefix saves: it is stored once instead of with each bound. */
  #saved(bounds: number): number {
    return bounds === 0 ? 0 : (bounds - 1) * this.#prefixBytes;
  }

  write(target: Uint8Array, at: number): number {
    const n = this.#blocks;
    const bytes = this.bytes;
    const prefixBytes = n === 1 ? 0 : this.#prefixBytes;
    setU32(target, at + BYTES_OFFSET, bytes);
    setU32(target, at + BLOCKS_OFFSET, n);
    setU32(target, at + PREFIX_OFFSET, prefixBytes);
    let p = at + HEADER_BYTES;
    for (let i = 0; i <= n; i++, p += 4) setU32(target, p, i === 0 ? 0 : this.#offsets[i]);
    for (let i = 0; i < n - 1; i++, p += 4)
      setU32(target, p, this.#ends[i] - (i + 1) * prefixBytes);
    copyAt(this.#bounds, 0, prefixBytes, target, p);
    p += prefixBytes;
    for (let i = 0; i < n - 1; i++) {
      const start = (i === 0 ? 0 : this.#ends[i - 1]) + prefixBytes;
      const restBytes = this.#ends[i] - start;
      copyAt(this.#bounds, start, restBytes, target, p);
      p += restBytes;
    }
    invariant(p === at + bytes, 'an index has the size it said', p - at, bytes);
    setU32(target, at + CRC_OFFSET, crc32(target, at + 4, bytes - 4));
    return bytes;
  }

  #room(): void {
    if (this.#blocks + 2 <= this.#offsets.length) return;
    const offsets = new Uint32Array(this.#offsets.length * 2);
    offsets.set(this.#offsets);
    this.#offsets = offsets;
    const ends = new Uint32Array(offsets.length);
    ends.set(this.#ends);
    this.#ends = ends;
  }
}
