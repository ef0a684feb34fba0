/**
 * Byte strings by (bytes, offset, length), so that no view is made per row: comparison, hashing,
 * little-endian integers. Keys order by unsigned bytes, shorter first. Called everywhere.
 */

export const NO_BYTES: Uint8Array = new Uint8Array(0);

/** The same bytes as a DataView. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** -1, 0 or 1 by unsigned bytes; a prefix sorts first. */
export function compareAt(
  a: Uint8Array,
  aOffset: number,
  aLength: number,
  b: Uint8Array,
  bOffset: number,
  bLength: number,
): number {
  const n = aLength < bLength ? aLength : bLength;
  for (let i = 0; i < n; i++) {
    const d = a[aOffset + i] - b[bOffset + i];
    if (d !== 0) return d < 0 ? -1 : 1;
  }
  return aLength === bLength ? 0 : aLength < bLength ? -1 : 1;
}

export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  return compareAt(a, 0, a.length, b, 0, b.length);
}

export function equalAt(
  a: Uint8Array,
  aOffset: number,
  aLength: number,
  b: Uint8Array,
  bOffset: number,
  bLength: number,
): boolean {
  if (aLength !== bLength) return false;
  for (let i = 0; i < aLength; i++) if (a[aOffset + i] !== b[bOffset + i]) return false;
  return true;
}

/** Length of the common prefix of two byte strings. */
export function commonPrefix(
  a: Uint8Array,
  aOffset: number,
  aLength: number,
  b: Uint8Array,
  bOffset: number,
  bLength: number,
): number {
  const n = aLength < bLength ? aLength : bLength;
  let i = 0;
  while (i < n && a[aOffset + i] === b[bOffset + i]) i++;
  return i;
}

/** A 32-bit hash of bytes under a seed (multiply-xor by words, murmur3-like finish). Not for hostile hash tables on disk: filters and memory only. */
export function hashAt(bytes: Uint8Array, offset: number, length: number, seed: number): number {
  let h = seed ^ length;
  let i = offset;
  const end4 = offset + (length & ~3);
  for (; i < end4; i += 4) {
    let k = bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
    k = Math.imul(k, 0xcc9e2d51);
    k = (k << 15) | (k >>> 17);
    h ^= Math.imul(k, 0x1b873593);
    h = (h << 13) | (h >>> 19);
    h = (Math.imul(h, 5) + 0xe6546b64) | 0;
  }
  let k = 0;
  for (let shift = 0; i < offset + length; i++, shift += 8) k |= bytes[i] << shift;
  return finishHash(h, k);
}

/** `k`: the last bytes, fewer than four. */
function finishHash(hash: number, last: number): number {
  let k = Math.imul(last, 0xcc9e2d51);
  k = (k << 15) | (k >>> 17);
  let h = hash ^ Math.imul(k, 0x1b873593);
  h ^= h >>> 16;
  h = Math.imul(h, 0x85ebca6b);
  h ^= h >>> 13;
  h = Math.imul(h, 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/**
 * Copies and hashes in one walk: target[at...] gets the bytes, the answer is their `hashAt`. For short
 * ranges: what the hash waits for is its own last step, so the copy costs next to nothing beside it.
 */
export function copyHashed(
  bytes: Uint8Array,
  offset: number,
  length: number,
  seed: number,
  target: Uint8Array,
  at: number,
): number {
  let h = seed ^ length;
  let i = offset;
  let p = at;
  const end4 = offset + (length & ~3);
  for (; i < end4; i += 4, p += 4) {
    const b0 = bytes[i];
    const b1 = bytes[i + 1];
    const b2 = bytes[i + 2];
    const b3 = bytes[i + 3];
    target[p] = b0;
    target[p + 1] = b1;
    target[p + 2] = b2;
    target[p + 3] = b3;
    let k = b0 | (b1 << 8) | (b2 << 16) | (b3 << 24);
    k = Math.imul(k, 0xcc9e2d51);
    k = (k << 15) | (k >>> 17);
    h ^= Math.imul(k, 0x1b873593);
    h = (h << 13) | (h >>> 19);
    h = (Math.imul(h, 5) + 0xe6546b64) | 0;
  }
  let k = 0;
  for (let shift = 0; i < offset + length; i++, p++, shift += 8) {
    target[p] = bytes[i];
    k |= bytes[i] << shift;
  }
  return finishHash(h, k);
}

export function getU16(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8);
}

export function getU32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}

/** A u64 as a number; bits above 2^53 make it unsafe, which the caller checks where bytes are foreign. */
export function getU64(bytes: Uint8Array, at: number): number {
  return getU32(bytes, at + 4) * 0x1_0000_0000 + getU32(bytes, at);
}

export function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}

export function setU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

export function setU64(bytes: Uint8Array, at: number, value: number): void {
  setU32(bytes, at, value | 0);
  setU32(bytes, at + 4, Math.floor(value / 0x1_0000_0000));
}

const F64: Float64Array = new Float64Array(1);
const F64_BYTES: Uint8Array = new Uint8Array(F64.buffer);

/** Little endian on every platform Node runs on with shared memory; asserted at load. */
export function getF64(bytes: Uint8Array, at: number): number {
  for (let i = 0; i < 8; i++) F64_BYTES[i] = bytes[at + i]!;
  return F64[0];
}

export function setF64(bytes: Uint8Array, at: number, value: number): void {
  F64[0] = value;
  for (let i = 0; i < 8; i++) bytes[at + i] = F64_BYTES[i]!;
}

/** Rounds up to a multiple of `to`, a power of two. Right above 2^31 too. */
export function alignUp(n: number, to: number): number {
  const rest = n % to;
  return rest === 0 ? n : n + to - rest;
}
