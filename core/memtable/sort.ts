/**
 * Sorts anchors by collection and key. Six bytes of each key and its place make a 64-bit number, and
 * the engine's native sort orders these; what ties is sorted again behind the tie. Keys are distinct,
 * so the order is total. Called by the writer for full chunks and by cursors for the unsorted tail.
 */
import type { Arena } from '../shared/arena.ts';
import { NODE_OPERATION_WORD } from './layout.ts';
import { collectionAt, compareKeys, firstDifference, keyAddressAt, keyBytesAt } from './keys.ts';

/** Fewer than these are sorted by insertion: the native sort costs a call and a view. */
const NATIVE_COUNT_MIN = 12;
/** Up to here a place takes 16 bits and leaves 48 to the key, above it 32 and 32. */
const SHORT_PLACES = 0x1_0000;

export class AnchorSorter {
  /** In: addresses of anchors. Out: the same, sorted. Grow it by `reserve`. */
  nodes: Uint32Array = new Uint32Array(0);
  readonly #u32: Uint32Array;
  readonly #u8: Uint8Array;
  #operations: Uint32Array = new Uint32Array(0);
  #spareNodes: Uint32Array = new Uint32Array(0);
  #spareOperations: Uint32Array = new Uint32Array(0);
  /** Per anchor: its place (and the lower 16 bits of its prefix) in the low word, the prefix in the high one. */
  #words: BigUint64Array = new BigUint64Array(0);
  #halves: Uint32Array = new Uint32Array(0);
  /** The view last used by `#native`; a chunk is as long as the one before. */
  #view: BigUint64Array = this.#words;
  #viewStart = 0;

  constructor(arena: Arena) {
    this.#u32 = arena.u32;
    this.#u8 = arena.u8;
  }

  /** Makes `nodes` at least so long, keeping what it holds. */
  reserve(count: number): void {
    if (count <= this.nodes.length) return;
    const capacity = Math.max(count, 2 * this.nodes.length);
    const nodes = new Uint32Array(capacity);
    nodes.set(this.nodes);
    this.nodes = nodes;
    this.#operations = new Uint32Array(capacity);
    this.#spareNodes = new Uint32Array(capacity);
    this.#spareOperations = new Uint32Array(capacity);
    this.#words = new BigUint64Array(capacity);
    this.#halves = new Uint32Array(this.#words.buffer);
    this.#view = this.#words;
    this.#viewStart = 0;
  }

  sort(count: number): void {
    if (count < 2) return;
    const u32 = this.#u32;
    const nodes = this.nodes;
    const operations = this.#operations;
    let same = true;
    for (let i = 0; i < count; i++) {
      const operation = u32[(nodes[i] >>> 2) + NODE_OPERATION_WORD];
      operations[i] = operation;
      if (u32[operation >>> 2] !== u32[operations[0] >>> 2]) same = false;
    }
    if (same) this.#sortKeys(0, count, 0);
    else this.#sortCollections(count);
  }

  #sortCollections(count: number): void {
    const operations = this.#operations;
    const halves = this.#halves;
    for (let i = 0; i < count; i++) {
      halves[2 * i] = i;
      halves[2 * i + 1] = collectionAt(this.#u32, operations[i]);
    }
    this.#native(0, count);
    this.#permute(0, count, true);
    for (let lower = 0; lower < count;) {
      const collection = collectionAt(this.#u32, operations[lower]);
      let upper = lower + 1;
      while (upper < count && collectionAt(this.#u32, operations[upper]) === collection) upper++;
      this.#sortKeys(lower, upper, 0);
      lower = upper;
    }
  }

  /** Sorts [lower, upper), whose keys are of one collection and equal in their first `depth` bytes, which all have. */
  #sortKeys(lower: number, upper: number, depth: number): void {
    if (upper - lower < NATIVE_COUNT_MIN) {
      this.#insertionSort(lower, upper, depth);
      return;
    }
    const u32 = this.#u32;
    const u8 = this.#u8;
    const operations = this.#operations;
    const halves = this.#halves;
    const wide = upper - lower > SHORT_PLACES;
    const common = this.#commonBytes(lower, upper, depth);
    for (let i = lower; i < upper; i++) {
      const operation = operations[i];
      const end = keyBytesAt(u32, operation);
      const at = keyAddressAt(u32, operation) + common;
      const left = end - common;
      // A byte that is not there counts as 0; `#resolve` tells it from one that is.
      let high = 0;
      let low = 0;
      if (left >= 6) {
        high = (u8[at] << 24) | (u8[at + 1] << 16) | (u8[at + 2] << 8) | u8[at + 3];
        low = (u8[at + 4] << 8) | u8[at + 5];
      } else {
        if (left > 0) high = u8[at] << 24;
        if (left > 1) high |= u8[at + 1] << 16;
        if (left > 2) high |= u8[at + 2] << 8;
        if (left > 3) high |= u8[at + 3];
        if (left > 4) low = u8[at + 4] << 8;
      }
      halves[2 * i] = wide ? i - lower : (low << 16) | (i - lower);
      halves[2 * i + 1] = high;
    }
    this.#native(lower, upper);
    this.#permute(lower, upper, wide);
    for (let i = lower; i < upper;) {
      const high = halves[2 * i + 1];
      const low = wide ? 0 : halves[2 * i] >>> 16;
      let end = i + 1;
      while (end < upper && halves[2 * end + 1] === high) {
        if (!wide && halves[2 * end] >>> 16 !== low) break;
        end++;
      }
      if (end - i > 1) this.#resolve(i, end, common, common + (wide ? 4 : 6));
      i = end;
    }
  }

  /** Sorts keys that are equal up to `depth`, counting missing bytes as zeros. Those that end before go first, shorter before longer. */
  #resolve(lower: number, upper: number, from: number, depth: number): void {
    const operations = this.#operations;
    const nodes = this.nodes;
    let ended = lower;
    for (let i = lower; i < upper; i++) {
      const operation = operations[i];
      if (keyBytesAt(this.#u32, operation) >= depth) continue;
      const node = nodes[i];
      operations[i] = operations[ended];
      nodes[i] = nodes[ended];
      operations[ended] = operation;
      nodes[ended++] = node;
    }
    this.#insertionSort(lower, ended, from);
    this.#sortKeys(ended, upper, depth);
  }

  /** How many bytes all keys share, given that they share `depth`. */
  #commonBytes(lower: number, upper: number, depth: number): number {
    const u32 = this.#u32;
    const u8 = this.#u8;
    const operations = this.#operations;
    const first = keyAddressAt(u32, operations[lower]);
    let common = keyBytesAt(u32, operations[lower]);
    for (let i = lower + 1; i < upper && common > depth; i++) {
      const operation = operations[i];
      const end = keyBytesAt(u32, operation);
      if (end < common) common = end;
      common = firstDifference(u32, u8, first, keyAddressAt(u32, operation), depth, common);
    }
    return common;
  }

  #insertionSort(lower: number, upper: number, depth: number): void {
    const u32 = this.#u32;
    const u8 = this.#u8;
    const operations = this.#operations;
    const nodes = this.nodes;
    for (let i = lower + 1; i < upper; i++) {
      const operation = operations[i];
      const node = nodes[i];
      let j = i;
      while (j > lower && compareKeys(u32, u8, operations[j - 1], operation, depth) > 0) {
        operations[j] = operations[j - 1];
        nodes[j] = nodes[j - 1];
        j--;
      }
      operations[j] = operation;
      nodes[j] = node;
    }
  }

  #native(lower: number, upper: number): void {
    if (this.#viewStart !== lower || this.#view.length !== upper - lower) {
      this.#view = this.#words.subarray(lower, upper);
      this.#viewStart = lower;
    }
    this.#view.sort();
  }

  /** Puts anchors where the sorted words say. */
  #permute(lower: number, upper: number, wide: boolean): void {
    const mask = wide ? 0xffff_ffff : SHORT_PLACES - 1;
    const halves = this.#halves;
    const spareNodes = this.#spareNodes;
    const spareOperations = this.#spareOperations;
    const nodes = this.nodes;
    const operations = this.#operations;
    for (let i = lower; i < upper; i++) {
      const place = lower + ((halves[2 * i] & mask) >>> 0);
      spareNodes[i] = nodes[place];
      spareOperations[i] = operations[place];
    }
    for (let i = lower; i < upper; i++) {
      nodes[i] = spareNodes[i];
      operations[i] = spareOperations[i];
    }
  }
}
