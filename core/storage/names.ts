/**
 * The names of everything in a store's directory. The one place that knows them; spec: commitlog 1.1.
 */
import { corrupt } from '../base/errors.ts';

export const LOCK_FILE = 'LOCK';
export const LOG_DIR = 'wal';
export const PARTS_DIR = 'parts';
export const MANIFEST_DIR = 'manifest';
export const TMP_DIR = 'tmp';
export const QUARANTINE_DIR = 'quarantine';

/** Every directory of a store, in the order in which they are made. */
export const STORE_DIRS: readonly string[] = [
  LOG_DIR,
  PARTS_DIR,
  MANIFEST_DIR,
  TMP_DIR,
  QUARANTINE_DIR,
];

const DIGITS = 10;

function padded(n: number): string {
  return String(n).padStart(DIGITS, '0');
}

/** wal/0000000001.seg: segments are named by sequence number, from 1. */
export function segmentPath(seq: number): string {
  return `${LOG_DIR}/${padded(seq)}.seg`;
}

/** wal/0000000001.segz: the same segment, compressed. */
export function compressedPath(seq: number): string {
  return `${LOG_DIR}/${padded(seq)}.segz`;
}

export function sparePath(n: number): string {
  return `${LOG_DIR}/spare-${n}.tmp`;
}

export function partPath(file: number): string {
  return `${PARTS_DIR}/${padded(file)}.part`;
}

export function rollupPath(n: number): string {
  return `${MANIFEST_DIR}/${padded(n)}.rollup`;
}

/** The edits that follow rollup n. */
export function editsPath(n: number): string {
  return `${MANIFEST_DIR}/${padded(n)}.edits`;
}

/** Names the newest rollup; replaced by rename, so a listing is never the truth. */
export const HEAD_PATH: string = `${MANIFEST_DIR}/HEAD`;

export function tmpPath(name: string): string {
  return `${TMP_DIR}/${name}`;
}

export function quarantinePath(name: string): string {
  return `${QUARANTINE_DIR}/${name}`;
}

/** The number in a name like 0000000012.seg, or undefined when it is none of ours. */
export function numberOf(name: string, ending: string): number | undefined {
  if (!name.endsWith(ending) || name.length !== DIGITS + ending.length) return undefined;
  const digits = name.slice(0, DIGITS);
  if (!/^[0-9]+$/.test(digits)) return undefined;
  const n = Number(digits);
  if (n === 0) throw corrupt('BAD_NAME', `${name} has the number 0, which is never used`, { name });
  return n;
}
