/**
 * The filter of a part: says of a key hash "not here" or "perhaps". A blocked Bloom filter: a key sets
 * 6 bits of one 512-bit line, so that a probe touches one cache line. About 10 bits a key, 1 % false
 * positives. Position-independent: the same bytes are searched in a file's image or in shared memory.
 * Built by part writers; probed by readers on any thread.
 *
 *   filter   off size field
 *              0    4 CRC-32 of the rest
 *              4    4 lines
 *              8    4 keys
 *             12    4 zero
 *             16      lines of 64 bytes
 */
import { crc32 } from '../base/crc32.ts';
import { getU32, setU32 } from '../base/bytes.ts';
import { invariant } from '../base/assert.ts';
import { pageBytes, partRowsMax } from '../base/limits.ts';

const CRC_OFFSET = 0;
const LINES_OFFSET: number = CRC_OFFSET + 4;
const KEYS_OFFSET: number = LINES_OFFSET + 4;
const ZERO_OFFSET: number = KEYS_OFFSET + 4;
const HEADER_BYTES: number = ZERO_OFFSET + 4;

const LINE_BYTES = 64;
const BITS_PER_KEY = 10;
const PROBES = 6;
const STEP = 0x9e3779b1;

invariant(filterBytes(partRowsMax) <= pageBytes, 'the largest filter fits a page');

/** Bytes of a filter over so many keys. */
export function filterBytes(keyCount: number): number {
  return HEADER_BYTES + LINE_BYTES * Math.max(1, Math.ceil((keyCount * BITS_PER_KEY) / 512));
}

/** Builds the filter of `keyCount` distinct hashes at target[at...]; returns its bytes. */
export function writeFilter(
  hashes: Uint32Array,
  keyCount: number,
  target: Uint8Array,
  at: number,
): number {
  const bytes = filterBytes(keyCount);
  const lines = (bytes - HEADER_BYTES) / LINE_BYTES;
  target.fill(0, at, at + bytes);
  setU32(target, at + LINES_OFFSET, lines);
  setU32(target, at + KEYS_OFFSET, keyCount);
  for (let i = 0; i < keyCount; i++) {
    const hash = hashes[i];
    const line = at + HEADER_BYTES + lineOf(hash, lines) * LINE_BYTES;
    let bits = hash;
    for (let probe = 0; probe < PROBES; probe++) {
      bits = Math.imul(bits, STEP);
      target[line + (bits >>> 26)] |= 1 << ((bits >>> 23) & 7);
    }
  }
  setU32(target, at + CRC_OFFSET, crc32(target, at + 4, bytes - 4));
  return bytes;
}

/** False: no key with this hash (row-hash.ts `keyHash`) is in the part. */
export function filterMayHold(bytes: Uint8Array, at: number, hash: number): boolean {
  const lines = getU32(bytes, at + LINES_OFFSET);
  const line = at + HEADER_BYTES + lineOf(hash, lines) * LINE_BYTES;
  let bits = hash;
  for (let probe = 0; probe < PROBES; probe++) {
    bits = Math.imul(bits, STEP);
    if ((bytes[line + (bits >>> 26)] & (1 << ((bits >>> 23) & 7))) === 0) return false;
  }
  return true;
}

/** What is wrong with a filter read from disk, if anything. Ask before the first probe. */
export function filterFault(bytes: Uint8Array, at: number, length: number): string | undefined {
  if (length < HEADER_BYTES + LINE_BYTES) return 'shorter than a filter';
  if (crc32(bytes, at + 4, length - 4) !== getU32(bytes, at + CRC_OFFSET)) return 'checksum';
  if (HEADER_BYTES + getU32(bytes, at + LINES_OFFSET) * LINE_BYTES !== length) return 'line count';
  if (getU32(bytes, at + ZERO_OFFSET) !== 0) return 'reserved bytes are not zero';
  return undefined;
}

/** The line by the high bits of the hash; the bits inside it depend on all of them. */
function lineOf(hash: number, lines: number): number {
  return Math.floor((hash * lines) / 0x1_0000_0000);
}
