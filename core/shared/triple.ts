/**
 * 64-bit words shared by threads: Int32 triples (high, low, high), written in this order, read in
 * reverse and retried when the two highs differ. One writer a word, any number of readers.
 */

/** Stores a frontier; its word has one writer. */
export function storeTriple(i32: Int32Array, word: number, value: number): void {
  const high = Math.floor(value / 0x1_0000_0000);
  Atomics.store(i32, word, high);
  Atomics.store(i32, word + 1, value | 0);
  Atomics.store(i32, word + 2, high);
}

export function loadTriple(i32: Int32Array, word: number): number {
  for (;;) {
    const high = Atomics.load(i32, word + 2);
    const low = Atomics.load(i32, word + 1);
    // Equal highs on both sides of the low word: no carry happened between.
    if (Atomics.load(i32, word) === high) return high * 0x1_0000_0000 + (low >>> 0);
  }
}
