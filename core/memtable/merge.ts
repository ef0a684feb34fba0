/**
 * Merges sorted runs of anchors into one, a bounded number of steps at a time: a tree of losers over
 * offset-value codes (keys.ts). Every anchor of the inputs comes out once, in order, with its code
 * relative to the one before. Called by the writer, on the sequencer's thread.
 */
import { invariant } from '../base/assert.ts';
import type { Arena } from '../shared/arena.ts';
import {
  CODE_END,
  CODE_OTHER,
  codeOf,
  collectionAt,
  equalBelow,
  firstDifference,
  keyAddressAt,
  keyBytesAt,
} from './keys.ts';
import { NODE_OPERATION_WORD } from './layout.ts';
import { PAGE_WORDS, PAGE_WORD_MASK } from './run-space.ts';
import type { RunSpace } from './run-space.ts';

/** Bytes compared that cost as much as one step. */
const BYTES_PER_STEP_SHIFT = 6;

export type Run = {
  /** Position of its first word in the run space. */
  readonly start: number;
  readonly count: number;
};

export class RunMerger {
  readonly output: Run;
  readonly #u32: Uint32Array;
  readonly #u8: Uint8Array;
  readonly #space: RunSpace;
  /** Leaves of the tree: a power of two. */
  readonly #width: number;

  // Per input: its head's code, relative to the last output or to what the head lost to;
  // position behind the page or run that is being read; word of the head in the arena, and where to stop.
  readonly #codes: Float64Array;
  readonly #positions: Int32Array;
  readonly #ends: Int32Array;
  readonly #words: Int32Array;
  readonly #stops: Int32Array;
  readonly #codePages: Float64Array[] = [];

  /** Inner node n has children 2n and 2n + 1; leaves are width + input. Each holds the input that lost there. */
  readonly #losers: Int32Array;
  #winner = 0;
  #written = 0;
  #fuel = 0;

  constructor(arena: Arena, space: RunSpace, inputs: readonly Run[], output: Run) {
    this.#u32 = arena.u32;
    this.#u8 = arena.u8;
    this.#space = space;
    this.output = output;
    let width = 1;
    while (width < inputs.length) width *= 2;
    this.#width = width;
    this.#codes = new Float64Array(width).fill(CODE_END);
    this.#positions = new Int32Array(width);
    this.#ends = new Int32Array(width);
    this.#words = new Int32Array(width);
    this.#stops = new Int32Array(width);
    this.#losers = new Int32Array(width);
    let count = 0;
    for (const [i, run] of inputs.entries()) {
      invariant(run.count > 0, 'a run has entries');
      count += run.count;
      this.#positions[i] = run.start;
      this.#ends[i] = run.start + run.count;
      this.#turnPage(i);
      // Relative to nothing: settled by a full look.
      this.#codes[i] = CODE_OTHER;
    }
    invariant(count === output.count, 'the output holds the inputs', count, output.count);
    this.#winner = this.#build(1);
  }

  get done(): boolean {
    return this.#written === this.output.count;
  }

  /** Merges for about `fuel` steps; returns the fuel left, 0 or less when there is more to merge. */
  work(fuel: number): number {
    const u32 = this.#u32;
    const codes = this.#codes;
    const words = this.#words;
    const stops = this.#stops;
    const losers = this.#losers;
    const codePages = this.#codePages;
    const width = this.#width;
    const { start, count } = this.output;
    let winner = this.#winner;
    // What building the tree has cost is owed.
    this.#fuel += fuel;
    while (this.#written < count && this.#fuel > 0) {
      // As far as the page of the output reaches.
      const position = start + this.#written;
      const room = Math.min(count - this.#written, PAGE_WORDS - (position & PAGE_WORD_MASK));
      const target = this.#space.wordOf(position);
      const targetCodes = this.#space.codePage(position);
      const stop = target + Math.min(room, this.#fuel);
      let word = target;
      // Looking at long keys costs fuel as well.
      for (; word < stop && this.#fuel > 0; word++) {
        const head = words[winner];
        u32[word] = u32[head];
        targetCodes[word & PAGE_WORD_MASK] = codes[winner];
        let code: number = CODE_END;
        if (head + 1 < stops[winner]) {
          words[winner] = head + 1;
          code = codePages[winner][(head + 1) & PAGE_WORD_MASK];
        } else if (this.#turnPage(winner)) {
          code = codePages[winner][words[winner] & PAGE_WORD_MASK];
        }
        codes[winner] = code;
        // All that is met on the way up lost to the last output, as the new head's code is relative to it.
        for (let n = (width + winner) >>> 1; n > 0; n >>>= 1) {
          const other = losers[n];
          const otherCode = codes[other];
          if (otherCode > code) continue;
          if (otherCode === code && (code === CODE_END || this.#settle(winner, other))) continue;
          losers[n] = winner;
          winner = other;
          code = otherCode;
        }
      }
      this.#written += word - target;
      this.#fuel -= word - target;
    }
    this.#winner = winner;
    const left = this.#fuel;
    this.#fuel = 0;
    return left;
  }

  /** Goes on with the input's next page; false at its end. */
  #turnPage(input: number): boolean {
    const position = this.#positions[input];
    const steps = Math.min(this.#ends[input] - position, PAGE_WORDS - (position & PAGE_WORD_MASK));
    if (steps === 0) return false;
    this.#words[input] = this.#space.wordOf(position);
    this.#stops[input] = this.#words[input] + steps;
    this.#codePages[input] = this.#space.codePage(position);
    this.#positions[input] = position + steps;
    return true;
  }

  #build(n: number): number {
    if (n >= this.#width) return n - this.#width;
    const a = this.#build(2 * n);
    const b = this.#build(2 * n + 1);
    const tied = this.#codes[a] === this.#codes[b] && this.#codes[a] !== CODE_END;
    const first = tied ? this.#settle(a, b) : this.#codes[a] <= this.#codes[b];
    this.#losers[n] = first ? b : a;
    return first ? a : b;
  }

  /** Two heads with equal codes: true when `a` comes first. The loser gets its code relative to the winner. */
  #settle(a: number, b: number): boolean {
    const u32 = this.#u32;
    const u8 = this.#u8;
    const codes = this.#codes;
    const aNode = u32[this.#words[a]];
    const bNode = u32[this.#words[b]];
    const aOperation = u32[(aNode >>> 2) + NODE_OPERATION_WORD];
    const bOperation = u32[(bNode >>> 2) + NODE_OPERATION_WORD];
    const code = codes[a];
    let from = 0;
    if (code === CODE_OTHER) {
      const order = collectionAt(u32, aOperation) - collectionAt(u32, bOperation);
      // The loser is of another collection than the winner too: its code stays.
      if (order !== 0) return order < 0;
    } else {
      from = equalBelow(code);
    }
    const aBytes = keyBytesAt(u32, aOperation);
    const bBytes = keyBytesAt(u32, bOperation);
    const aKey = keyAddressAt(u32, aOperation);
    const bKey = keyAddressAt(u32, bOperation);
    const limit = aBytes < bBytes ? aBytes : bBytes;
    const at = firstDifference(u32, u8, aKey, bKey, from, limit);
    this.#fuel -= 1 + ((at - from) >>> BYTES_PER_STEP_SHIFT);
    const first = at === limit ? aBytes < bBytes : u8[aKey + at] < u8[bKey + at];
    if (first) codes[b] = codeOf(u8, bKey, bBytes, at);
    else codes[a] = codeOf(u8, aKey, aBytes, at);
    return first;
  }
}
