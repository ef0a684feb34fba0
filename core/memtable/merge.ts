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
  readonly #positions: Int32Array;
  readonly #ends: Int32Array;
  /** Head of each input and its code, relative to what it lost to, or to the last output. */
  readonly #nodes: Uint32Array;
  readonly #codes: Int32Array;
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
    this.#positions = new Int32Array(width);
    this.#ends = new Int32Array(width);
    this.#nodes = new Uint32Array(width);
    this.#codes = new Int32Array(width).fill(CODE_END);
    this.#losers = new Int32Array(width);
    let count = 0;
    for (const [i, run] of inputs.entries()) {
      invariant(run.count > 0, 'a run has entries');
      this.#positions[i] = run.start;
      this.#ends[i] = run.start + run.count;
      this.#nodes[i] = space.get(run.start);
      // Relative to nothing: settled by a full look.
      this.#codes[i] = CODE_OTHER;
      count += run.count;
    }
    invariant(count === output.count, 'the output holds the inputs', count, output.count);
    this.#winner = this.#build(1);
  }

  get done(): boolean {
    return this.#written === this.output.count;
  }

  /** Merges for about `fuel` steps; returns the fuel left, 0 or less when there is more to merge. */
  work(fuel: number): number {
    const { start, count } = this.output;
    const space = this.#space;
    const codes = this.#codes;
    this.#fuel = fuel;
    while (this.#written < count && this.#fuel > 0) {
      const winner = this.#winner;
      space.set(start + this.#written, this.#nodes[winner], codes[winner]);
      this.#written++;
      const next = this.#positions[winner] + 1;
      if (next < this.#ends[winner]) {
        this.#positions[winner] = next;
        this.#nodes[winner] = space.get(next);
        codes[winner] = space.codeOf(next);
      } else {
        codes[winner] = CODE_END;
      }
      this.#replay(winner);
      this.#fuel--;
    }
    return this.#fuel;
  }

  /** Plays the leaf of `input` up to the root. All it meets lost to the last output, as its own code is relative to it. */
  #replay(input: number): void {
    const codes = this.#codes;
    const losers = this.#losers;
    let winner = input;
    for (let n = (this.#width + input) >>> 1; n > 0; n >>>= 1) {
      const other = losers[n];
      const a = codes[winner];
      const b = codes[other];
      if (b < a || (a === b && a !== CODE_END && !this.#settle(winner, other))) {
        losers[n] = winner;
        winner = other;
      }
    }
    this.#winner = winner;
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
    const aOperation = u32[(this.#nodes[a] >>> 2) + NODE_OPERATION_WORD];
    const bOperation = u32[(this.#nodes[b] >>> 2) + NODE_OPERATION_WORD];
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
