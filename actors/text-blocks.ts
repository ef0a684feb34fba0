/**
 * Texts in the keeper's pages, in as many blocks as they need: jobs on their way to the compactor, and
 * room reserved for their answers. The keeper writes and frees; the other side reads or fills while
 * it has the address from a ring.
 *
 *   word 0  bytes the blocks hold together  1  blocks  2..  address of each
 */
import type { Arena } from '../core/shared/arena.ts';
import type { ViewRoom } from './view-room.ts';

/** Such blocks share pages with other small ones: larger ones would each want a page with room for them. */
const BLOCK_BYTES = 4_032;
const BLOCKS_WORD = 2;

/** Address of a table of blocks for `bytes` bytes, or 0 when memory is short (nothing is kept). */
export function reserveText(arena: Arena, room: ViewRoom, bytes: number): number {
  const count = Math.max(1, Math.ceil(bytes / BLOCK_BYTES));
  const table = room.allocateBeside((BLOCKS_WORD + count) * 4);
  if (table === 0) return 0;
  const { u32 } = arena;
  u32[table >>> 2] = bytes;
  u32[(table >>> 2) + 1] = 0;
  for (let i = 0; i < count; i++) {
    const block = room.allocateBeside(Math.min(BLOCK_BYTES, bytes - i * BLOCK_BYTES));
    if (block === 0) {
      freeText(arena, room, table);
      return 0;
    }
    u32[(table >>> 2) + BLOCKS_WORD + i] = block;
    u32[(table >>> 2) + 1] = i + 1;
  }
  return table;
}

/** Writes a text into reserved blocks; returns its bytes, or -1 when they are too few. */
export function writeText(arena: Arena, table: number, text: string): number {
  const { u32, u8 } = arena;
  const bytes = Buffer.from(text, 'utf8');
  if (bytes.length > u32[table >>> 2]) return -1;
  for (let at = 0, i = 0; at < bytes.length; at += BLOCK_BYTES, i++) {
    u8.set(bytes.subarray(at, at + BLOCK_BYTES), u32[(table >>> 2) + BLOCKS_WORD + i]);
  }
  return bytes.length;
}

export function readText(arena: Arena, table: number, bytes: number): string {
  const { u32, u8 } = arena;
  const copy = Buffer.alloc(bytes);
  for (let at = 0, i = 0; at < bytes; at += BLOCK_BYTES, i++) {
    const block = u32[(table >>> 2) + BLOCKS_WORD + i];
    copy.set(u8.subarray(block, block + Math.min(BLOCK_BYTES, bytes - at)), at);
  }
  return copy.toString('utf8');
}

export function freeText(arena: Arena, room: ViewRoom, table: number): void {
  const { u32 } = arena;
  const count = u32[(table >>> 2) + 1];
  for (let i = 0; i < count; i++) room.free(u32[(table >>> 2) + BLOCKS_WORD + i]);
  room.free(table);
}
