/**
 * Which descriptors the threads of a kit have open, a bit each, so that what a killed thread leaves open
 * can be closed after it. Set once a file is open and cleared before it is closed: at worst one is
 * forgotten, never is another's closed. Written by storage on any thread of the kit; emptied by the
 * thread that ends the kit, when no other is left.
 */

/** Descriptors from here on are not noted. The system gives the lowest that is free. */
const DESCRIPTORS_MAX = 65_536;

export class DescriptorTable {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(DESCRIPTORS_MAX >>> 3)) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer);
  }

  add(fd: number): void {
    if (fd < DESCRIPTORS_MAX) Atomics.or(this.#words, fd >>> 5, 1 << (fd & 31));
  }

  remove(fd: number): void {
    if (fd < DESCRIPTORS_MAX) Atomics.and(this.#words, fd >>> 5, ~(1 << (fd & 31)));
  }

  /** Takes out all there are. */
  take(): number[] {
    const found: number[] = [];
    for (let word = 0; word < this.#words.length; word++) {
      const bits = Atomics.exchange(this.#words, word, 0);
      for (let bit = 0; bit < 32; bit++) if ((bits >>> bit) & 1) found.push(word * 32 + bit);
    }
    return found;
  }
}
