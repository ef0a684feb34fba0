/**
 * Collection 0, the catalog: a keyed collection like any other, with fixed codecs. One row a
 * collection, and one row that says which id comes next; ids are never reused. Read and written by
 * clients through the ordinary paths, so it is logged, flushed and readable as of any time.
 *
 *   key                    value (JSON, UTF-8)
 *   00                     { "next": id }
 *   01 name in UTF-8       { "id", "kind", "key", "value", "history": { "offsets"?, "ms"? },
 *                            "compression"? }
 *   02 id, u32 big endian  bytes of the collection's own, as its user set them (no JSON)
 *   08 name in UTF-8       a cursor: cursor-row.ts
 */
import { corrupt } from '../core/base/errors.ts';
import { collectionNameBytesMax } from '../core/base/limits.ts';
import { KIND_KEYED, KIND_MULTISET } from '../core/base/update.ts';
import { COMPRESSIONS } from '../core/spine/block-codec.ts';
import type { Compression } from '../core/spine/block-codec.ts';
import { buffer, json } from './encodings.ts';
import type { Codec } from './encodings.ts';

/** How much of the past a collection keeps, in offsets or milliseconds, whichever keeps more. `offsets: null` is all. */
export type StoredHistory = { readonly offsets: number | null; readonly ms?: number };

export type CatalogRow = {
  readonly id: number;
  readonly kind: number;
  readonly key: string;
  readonly value: string;
  readonly history: StoredHistory;
  /** Of its blocks, by merges; left out: none. */
  readonly compression?: Compression;
};

export const CATALOG_KEYS: Codec<Buffer> = buffer;
export const CATALOG_VALUES: Codec<unknown> = json<unknown>();

export const NEXT_ID_KEY: Buffer = Buffer.from([0]);
const ROW_TAG = 1;
/** The first key after every collection row. */
export const ROWS_LOWER: Buffer = Buffer.from([ROW_TAG]);
export const ROWS_UPPER: Buffer = Buffer.from([ROW_TAG + 1]);

const META_TAG = 2;

/** The key of a collection's own bytes. */
export function catalogMetaKey(id: number): Buffer {
  const key = Buffer.alloc(5);
  key[0] = META_TAG;
  key.writeUInt32BE(id, 1);
  return key;
}

export const FIRST_COLLECTION_ID = 1;

/** The catalog key of a collection; TypeError when it cannot be a name. */
export function catalogKey(name: unknown): Buffer {
  if (typeof name !== 'string') throw new TypeError('a collection name is a string');
  const bytes = Buffer.byteLength(name);
  if (bytes < 1 || bytes > collectionNameBytesMax) {
    throw new TypeError(`a collection name has 1 to ${collectionNameBytesMax} bytes, not ${bytes}`);
  }
  return Buffer.concat([ROWS_LOWER, Buffer.from(name, 'utf8')]);
}

export function nameOfCatalogKey(key: Uint8Array): string {
  return Buffer.from(key.subarray(1)).toString('utf8');
}

/** Checks a stored row: bytes from disk are not trusted. */
export function checkCatalogRow(value: unknown, name: string): CatalogRow {
  const row = value as CatalogRow | null;
  if (
    typeof row !== 'object' ||
    row === null ||
    !Number.isSafeInteger(row.id) ||
    row.id < FIRST_COLLECTION_ID ||
    (row.kind !== KIND_KEYED && row.kind !== KIND_MULTISET) ||
    typeof row.key !== 'string' ||
    typeof row.value !== 'string' ||
    typeof row.history !== 'object' ||
    (row.compression !== undefined && !COMPRESSIONS.includes(row.compression))
  ) {
    throw corrupt('CATALOG', `the catalog row of collection ${name} is damaged`, { name });
  }
  return row;
}
