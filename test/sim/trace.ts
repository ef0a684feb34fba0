/**
 * A running hash over everything that happens in a simulation: two runs of one seed must end with the
 * same one. 64 bits, so that it can be compared across many seeds without luck.
 */

export class Trace {
  #a = 0x9e3779b9;
  #b = 0x7f4a7c15;
  /** Set to [] to keep what was said in words: for looking into one seed. */
  lines: string[] | undefined = undefined;

  /** Any number that is an integer below 2^53. */
  mix(value: number): void {
    const low = value >>> 0;
    const high = ((value - low) / 0x1_0000_0000) | 0;
    this.#a = Math.imul(this.#a ^ low, 0x85ebca6b);
    this.#a ^= this.#a >>> 15;
    this.#b = Math.imul(this.#b ^ high ^ this.#a, 0xc2b2ae35);
    this.#b ^= this.#b >>> 13;
    this.#a = (this.#a + this.#b) | 0;
  }

  /** What happens next, in a word or two: part of the hash, and a line when lines are kept. */
  say(text: string): void {
    for (let i = 0; i < text.length; i++) this.mix(text.charCodeAt(i));
    this.lines?.push(text);
  }

  /** A line only: costs nothing when lines are not kept. */
  note(text: () => string): void {
    this.lines?.push(text());
  }

  get hash(): string {
    const hex = (n: number): string => (n >>> 0).toString(16).padStart(8, '0');
    return hex(this.#a) + hex(this.#b);
  }
}
