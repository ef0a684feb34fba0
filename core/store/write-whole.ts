/**
 * Writes all of it or says that the disk did not take it: for files that are made beside the log, where a
 * short write is an error and nothing to go on from. Used by what makes and cuts stores.
 */
import { TidemarkError } from '../base/errors.ts';
import type { Storage } from '../storage/storage.ts';

/** Writes bytes[0, length). Throws TIDEMARK_IO when fewer are taken. */
export function writeWhole(
  storage: Storage,
  fd: number,
  bytes: Uint8Array,
  length: number,
  position: number,
  path: string,
): void {
  const count = storage.write(fd, bytes, 0, length, position);
  if (count === length) return;
  throw new TidemarkError('TIDEMARK_IO', `the disk took ${count} of ${length} bytes of ${path}`, {
    file: path,
  });
}
