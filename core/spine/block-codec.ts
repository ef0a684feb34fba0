/**
 * Blocks as they lie in a file: plain, or compressed behind their header (block.ts). A block is packed
 * only where that gains something, and unpacked into private memory after its checksum has held; what it
 * says its size is bounds what is unpacked. Merges pack; whoever reads unpacks, on its own thread.
 */
import * as zlib from 'node:zlib';
import { getU32, setU32 } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { TidemarkError } from '../base/errors.ts';
import { keyBytesMax, KiB, valueBytesMax } from '../base/limits.ts';
import {
  blockFault,
  blockShapeFault,
  BODY_OFFSET,
  CODEC_NONE,
  CODEC_OFFSET,
  CRC_OFFSET,
  RAW_BYTES_OFFSET,
} from './block.ts';

/** Codec ids as blocks carry them. A number is never used for anything else. */
export const CODEC_DEFLATE = 1;
export const CODEC_BROTLI = 2;
export const CODEC_ZSTD = 3;

/** By id: what the option `compression` calls them. */
export const COMPRESSIONS = ['none', 'deflate', 'brotli', 'zstd'] as const;

export type Compression = (typeof COMPRESSIONS)[number];

/** Zstandard came to Node with 22.15; types of an older one do not know it. */
type Zstd = {
  readonly zstdCompressSync?: (bytes: Uint8Array) => Uint8Array;
  readonly zstdDecompressSync?: (bytes: Uint8Array, options: zlib.ZlibOptions) => Uint8Array;
};
const { zstdCompressSync, zstdDecompressSync } = zlib as Zstd;

/** One row of the largest key and value, and what a block has besides. */
const UNPACKED_BYTES_MAX: number = keyBytesMax + valueBytesMax + 64 * KiB;
/** Packed blocks are to be smaller than this share of the plain one, or it stays as it is. */
const GAIN_MIN = 7 / 8;
/** Measured on text of 16 KiB: higher levels cost twice the time for a tenth. */
const DEFLATE_LEVEL = 4;
const BROTLI_QUALITY = 4;

/** The id of a compression that this Node has; undefined: it has not got it. */
export function codecOfCompression(name: Compression): number | undefined {
  if (name === 'zstd' && zstdCompressSync === undefined) return undefined;
  return COMPRESSIONS.indexOf(name);
}

/** The block at bytes[at, at + length), which is plain, as codec `codec` stores it; undefined: as it is. */
export function packBlock(
  codec: number,
  bytes: Uint8Array,
  at: number,
  length: number,
): Uint8Array | undefined {
  const body = bytes.subarray(at + BODY_OFFSET, at + length);
  const packed = compress(codec, body);
  if (packed === undefined || packed.length > body.length * GAIN_MIN) return undefined;
  const stored = new Uint8Array(BODY_OFFSET + packed.length);
  stored.set(bytes.subarray(at, at + BODY_OFFSET));
  stored[CODEC_OFFSET] = codec;
  stored.set(packed, BODY_OFFSET);
  setU32(stored, CRC_OFFSET, crc32(stored, CODEC_OFFSET, stored.length - CODEC_OFFSET));
  return stored;
}

/** The block at bytes[at, at + length) is not plain: `unpackBlock` makes it so. Requires: a whole header. */
export function isPacked(bytes: Uint8Array, at: number): boolean {
  return bytes[at + CODEC_OFFSET] !== CODEC_NONE;
}

/**
 * What is wrong with a stored block, packed or plain, or the plain block in private memory. A packed
 * one has its checksum checked before anything is unpacked; an unknown codec is an error of its own.
 */
export function unpackBlock(bytes: Uint8Array, at: number, length: number): Uint8Array | string {
  const fault = blockFault(bytes, at, length);
  if (fault !== undefined) return fault;
  const codec = bytes[at + CODEC_OFFSET];
  const rawBytes = getU32(bytes, at + RAW_BYTES_OFFSET);
  if (rawBytes <= BODY_OFFSET || rawBytes > UNPACKED_BYTES_MAX) return 'decoded size';
  const plain = new Uint8Array(rawBytes);
  plain.set(bytes.subarray(at, at + BODY_OFFSET));
  plain[CODEC_OFFSET] = CODEC_NONE;
  let body: Uint8Array;
  try {
    const packed = bytes.subarray(at + BODY_OFFSET, at + length);
    body = decompress(codec, packed, rawBytes - BODY_OFFSET);
  } catch (error) {
    if (error instanceof TidemarkError) throw error;
    return 'it does not decompress';
  }
  if (body.length !== rawBytes - BODY_OFFSET) return 'another size when decoded';
  plain.set(body, BODY_OFFSET);
  return blockShapeFault(plain, 0, rawBytes) ?? plain;
}

function compress(codec: number, bytes: Uint8Array): Uint8Array | undefined {
  switch (codec) {
    case CODEC_DEFLATE:
      return zlib.deflateRawSync(bytes, { level: DEFLATE_LEVEL });
    case CODEC_BROTLI: {
      const { BROTLI_PARAM_QUALITY, BROTLI_PARAM_SIZE_HINT } = zlib.constants;
      const params = {
        [BROTLI_PARAM_QUALITY]: BROTLI_QUALITY,
        [BROTLI_PARAM_SIZE_HINT]: bytes.length,
      };
      return zlib.brotliCompressSync(bytes, { params });
    }
    case CODEC_ZSTD:
      return zstdCompressSync?.(bytes);
    default:
      return undefined;
  }
}

function decompress(codec: number, bytes: Uint8Array, length: number): Uint8Array {
  const options = { maxOutputLength: length };
  if (codec === CODEC_DEFLATE) return zlib.inflateRawSync(bytes, options);
  if (codec === CODEC_BROTLI) return zlib.brotliDecompressSync(bytes, options);
  if (codec === CODEC_ZSTD && zstdDecompressSync !== undefined) {
    return zstdDecompressSync(bytes, options);
  }
  throw new TidemarkError(
    'TIDEMARK_UNSUPPORTED_FORMAT',
    `a block is compressed by codec ${codec}, which this version of Node or Tidemark has not got`,
    { codec },
  );
}
