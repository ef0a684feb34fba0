/**
 * A cursor as the catalog keeps it: the place up to which a named feed has confirmed what it was given.
 * Until it lags more than it may, history and log are kept from there on. Written by feeds on their
 * client's thread, read by the keeper on its own.
 *
 * Row of collection 0: key 08, name in UTF-8; value JSON { "after", "pending", "old", "collections",
 * "maxLag": { "offsets"?, "ms"?, "bytes"? } }.
 */
import { corrupt } from '../core/base/errors.ts';
import { collectionNameBytesMax } from '../core/base/limits.ts';
import type { ViewSegment } from '../core/spine/view.ts';

/** How far a cursor may stay behind and still hold history; what is given bounds it, each for itself. */
export interface MaxLag {
  readonly offsets?: number;
  /** Age of what it has not confirmed, and bytes of log behind it: both as exact as a segment is large. */
  readonly ms?: number;
  readonly bytes?: number;
}

export type CursorRow = {
  /** Everything up to here is confirmed; -1: nothing. */
  readonly after: number;
  /** The state at `after` is not confirmed as a whole: the feed begins anew with a newer one. */
  readonly pending: boolean;
  /** False: only the log is needed. */
  readonly old: boolean;
  readonly collections: readonly number[];
  readonly maxLag: MaxLag;
};

const CURSOR_TAG = 8;
export const CURSORS_LOWER: Buffer = Buffer.from([CURSOR_TAG]);
export const CURSORS_UPPER: Buffer = Buffer.from([CURSOR_TAG + 1]);

/** The catalog key of a cursor; TypeError when it cannot be a name. */
export function cursorKey(name: unknown): Buffer {
  if (typeof name !== 'string') throw new TypeError('a cursor name is a string');
  const bytes = Buffer.byteLength(name);
  if (bytes < 1 || bytes > collectionNameBytesMax) {
    throw new TypeError(`a cursor name has 1 to ${collectionNameBytesMax} bytes, not ${bytes}`);
  }
  return Buffer.concat([CURSORS_LOWER, Buffer.from(name, 'utf8')]);
}

export function nameOfCursorKey(key: Uint8Array): string {
  return Buffer.from(key.subarray(1)).toString('utf8');
}

/** Checks a stored row: bytes from disk are not trusted. */
export function checkCursorRow(value: unknown, name: string): CursorRow {
  const row = value as CursorRow | null;
  const isWhole =
    typeof row === 'object' &&
    row !== null &&
    Number.isSafeInteger(row.after) &&
    row.after >= -1 &&
    typeof row.pending === 'boolean' &&
    typeof row.old === 'boolean' &&
    Array.isArray(row.collections) &&
    row.collections.every((id) => Number.isSafeInteger(id)) &&
    typeof row.maxLag === 'object' &&
    row.maxLag !== null;
  if (isWhole) return row;
  throw corrupt('CATALOG', `the catalog row of cursor ${name} is damaged`, { name });
}

/** What there is of the log, to measure a lag by. */
export type LogPicture = {
  readonly upper: number;
  readonly nowMs: number;
  readonly segmentBytes: number;
  /** Oldest first. */
  readonly segments: readonly ViewSegment[];
};

/** True when the cursor holds nothing any more. Where its lag is not known exactly it is taken as smaller. */
export function isLagging({ after, maxLag }: CursorRow, picture: LogPicture): boolean {
  const { offsets = Infinity, ms = Infinity, bytes = Infinity } = maxLag;
  const { upper, nowMs, segmentBytes, segments } = picture;
  if (upper - 1 - after > offsets) return true;
  if (ms === Infinity && bytes === Infinity) return false;
  // The segment after the one with what comes next: all before it is older than it, and at least as long.
  const following = segments.findIndex(({ base }) => base > after + 1);
  if (following < 0) return false;
  if (nowMs - segments[following].atMs > ms) return true;
  return (segments.length - 1 - following) * segmentBytes > bytes;
}
