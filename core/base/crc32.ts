/**
 * CRC-32 (IEEE, as in zlib), chained by seed: crc32(b, crc32(a)) = crc32(ab). Short ranges go
 * through a table in JavaScript, longer ones through Node's native code, whose call costs more than
 * the bytes. The switch-over is a measured constant (bench/micro).
 */
import { crc32 as native } from 'node:zlib';

/** From this length on the native call is cheaper. */
const NATIVE_BYTES_MIN = 256;

/** Bytes that one step takes. */
const STEP_BYTES = 8;

const TABLE: Int32Array = makeTables();

/** The CRC-32 of bytes[offset, offset + length), continued from `seed`. Unsigned. */
export function crc32(bytes: Uint8Array, offset: number, length: number, seed = 0): number {
  if (length >= NATIVE_BYTES_MIN) return native(bytes.subarray(offset, offset + length), seed);
  return crc32Table(bytes, offset, length, seed);
}

/** The table version alone, eight bytes a step: what a step waits for is the step before it. */
export function crc32Table(bytes: Uint8Array, offset: number, length: number, seed = 0): number {
  let c = ~seed;
  let i = offset;
  const end8 = offset + (length & ~7);
  for (; i < end8; i += 8) {
    c ^= bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
    c =
      TABLE[1792 + (c & 255)] ^
      TABLE[1536 + ((c >>> 8) & 255)] ^
      TABLE[1280 + ((c >>> 16) & 255)] ^
      TABLE[1024 + (c >>> 24)] ^
      TABLE[768 + bytes[i + 4]] ^
      TABLE[512 + bytes[i + 5]] ^
      TABLE[256 + bytes[i + 6]] ^
      TABLE[bytes[i + 7]];
  }
  for (; i < offset + length; i++) c = (c >>> 8) ^ TABLE[(c ^ bytes[i]) & 255];
  return ~c >>> 0;
}

function makeTables(): Int32Array {
  const table = new Int32Array(256 * STEP_BYTES);
  for (let n = 0; n < 256; n++) {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
    table[n] = c;
  }
  for (let n = 0; n < 256; n++) {
    for (let k = 1; k < STEP_BYTES; k++) {
      const c = table[(k - 1) * 256 + n];
      table[k * 256 + n] = (c >>> 8) ^ table[c & 255];
    }
  }
  return table;
}
