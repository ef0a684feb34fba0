/**
 * The reading side of a generation: ranges. Walks one collection as of a time T, merging the sorted
 * runs with the unsorted tail, which it sorts privately. Any thread, between enter and leave.
 */
import { NO_BYTES } from '../base/bytes.ts';
import type { RowCursor } from '../base/cursor.ts';
import type { Arena } from '../shared/arena.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';

/** Which versions with time <= T a cursor shows. */
export const VERSIONS_NEWEST = 0;
export const VERSIONS_ALL = 1;

export class GenerationCursor implements RowCursor {
  valid = false;
  keyBytes: Uint8Array = NO_BYTES;
  keyOffset = 0;
  keyLength = 0;
  time = 0;
  kind = 0;
  diff = 0;
  valueLength = 0;
  valueBytes: Uint8Array = NO_BYTES;
  valueOffset = 0;

  constructor(_arena: Arena, _pool: BufferPool) {}

  /**
   * Looks at one collection of the generation as of T; stands nowhere until moved. To be called anew
   * after each enter; with the same T it remembers what it sorted.
   */
  open(_header: number, _collection: number, _T: number, _versions: number): void {
    throw new Error('not yet');
  }

  loadValue(): void {
    throw new Error('not yet');
  }
  seek(_key: Uint8Array, _offset: number, _length: number): void {
    throw new Error('not yet');
  }
  seekBelow(_key: Uint8Array, _offset: number, _length: number): void {
    throw new Error('not yet');
  }
  first(): void {
    throw new Error('not yet');
  }
  last(): void {
    throw new Error('not yet');
  }
  next(): void {
    throw new Error('not yet');
  }
  previous(): void {
    throw new Error('not yet');
  }
}
