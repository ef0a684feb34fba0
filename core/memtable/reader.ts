/**
 * The reading side of a generation: points. Finds, for a time T, what was newest at T; a generation
 * that goes on growing changes no answer at T. Any thread, between enter and leave; the sequencer
 * itself for preconditions.
 */
import type { Arena } from '../shared/arena.ts';
import type { BufferPool } from '../shared/buffer-pool.ts';

export class GenerationReader {
  constructor(_arena: Arena, _pool: BufferPool) {}

  /** Looks at the generation from here on. Costs a few loads. */
  attach(_header: number): void {
    throw new Error('not yet');
  }

  /** Address of the key's newest node with time <= T, or 0. `hash` = keyHash(key, offset, length). */
  find(
    _collection: number,
    _key: Uint8Array,
    _offset: number,
    _length: number,
    _hash: number,
    _T: number,
  ): number {
    throw new Error('not yet');
  }

  timeOf(_node: number): number {
    throw new Error('not yet');
  }
  /** OP_PUT, OP_DELETE or OP_UPDATE. */
  kindOf(_node: number): number {
    throw new Error('not yet');
  }
  /** 1 for a put, -1 for a delete, the diff of an update. */
  diffOf(_node: number): number {
    throw new Error('not yet');
  }
  keyAddressOf(_node: number): number {
    throw new Error('not yet');
  }
  keyBytesOf(_node: number): number {
    throw new Error('not yet');
  }
  /** Where the value starts; it may run on (isContiguous, gatherValue in core/shared/record-pages.ts). */
  valueAddressOf(_node: number): number {
    throw new Error('not yet');
  }
  valueBytesOf(_node: number): number {
    throw new Error('not yet');
  }
  /** The version before this one in the same generation, or 0. */
  olderOf(_node: number): number {
    throw new Error('not yet');
  }

  /** Time of the collection's newest node, whatever its key; -1 when it has none here. */
  newestTimeOf(_collection: number): number {
    throw new Error('not yet');
  }

  /** Ids of the collections with nodes here, ascending. */
  collections(): number[] {
    throw new Error('not yet');
  }

  // Of a sealed generation only.
  get lower(): number {
    throw new Error('not yet');
  }
  get upper(): number {
    throw new Error('not yet');
  }
  get rows(): number {
    throw new Error('not yet');
  }
  get bytes(): number {
    throw new Error('not yet');
  }
}
