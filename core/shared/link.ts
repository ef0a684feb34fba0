/**
 * Link words: the only words that may change after the block they stand in was published. A writer
 * fills a block with plain stores and publishes it by storing its address into one; whoever loads
 * that address sees the whole block. Every access after publication goes through here, in probes too.
 * Writer: the owner of the structure. Readers: any thread, between enter and leave.
 */

/** The address a link word holds, as an i32: `>>> 0` where it is used as a number. */
export function loadLink(i32: Int32Array, word: number): number {
  return Atomics.load(i32, word);
}

/** Publishes what lies behind `address`: complete by now, and from here on immutable but for its own links. */
export function storeLink(i32: Int32Array, word: number, address: number): void {
  Atomics.store(i32, word, address);
}
