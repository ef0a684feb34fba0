/**
 * Which operations of a record are overtaken: a range delete further on in their own transaction takes
 * away what they did, so they never enter the memtable. There all of a transaction has one time, and a
 * range delete hides older times only. Two walks: `scan` once, then `isNext` for every operation in
 * order. Called by the sequencer, on its thread.
 */
import { compareAt } from '../base/bytes.ts';
import {
  RangeSetReader,
  SET_HEADER_WORDS,
  ENTRY_WORDS,
  finishRangeSet,
  rangeSetWords,
  writeEntry,
} from '../base/range-set.ts';
import { OP_DELETE_RANGE } from '../base/update.ts';
import type { Arena } from '../shared/arena.ts';
import type { OperationWalker } from '../shared/record-pages.ts';

/** A range delete, its place among the operations of the record, and its transaction. */
type Found = {
  readonly txIndex: number;
  readonly place: number;
  readonly collection: number;
  readonly lo: number;
  readonly loBytes: number;
  readonly hiBytes: number;
};

export class Overtaken {
  readonly #arena: Arena;
  /** By place. */
  #found: Found[] = [];
  /** The same as a set whose times are places. */
  #set: RangeSetReader;
  #place = 0;
  /** The last one of the transaction that the walk is in, or of one further on: an index. */
  #last = 0;

  constructor(arena: Arena) {
    this.#arena = arena;
    this.#set = new RangeSetReader(new Uint32Array(rangeSetWords(0)), arena.u8);
  }

  /** Looks for range deletes; false when there are none, or none with an operation before it. */
  scan(walker: OperationWalker, address: number, txCount: number): boolean {
    const found: Found[] = [];
    let place = 0;
    let inTransaction = 0;
    let txIndex = -1;
    let mayOvertake = false;
    walker.start(address, txCount);
    for (; walker.next(); place++, inTransaction++) {
      if (walker.txIndex !== txIndex) inTransaction = 0;
      txIndex = walker.txIndex;
      if (walker.kind !== OP_DELETE_RANGE) continue;
      if (inTransaction > 0) mayOvertake = true;
      const { collection, keyAddress: lo, keyBytes: loBytes, valueBytes: hiBytes } = walker;
      found.push({ txIndex, place, collection, lo, loBytes, hiBytes });
    }
    if (!mayOvertake) return false;
    this.#found = found;
    this.#place = 0;
    this.#last = 0;
    this.#makeSet();
    return true;
  }

  #makeSet(): void {
    const { u8 } = this.#arena;
    const sorted = this.#found.toSorted((a, b) => {
      if (a.collection !== b.collection) return a.collection - b.collection;
      const order = compareAt(u8, a.lo, a.loBytes, u8, b.lo, b.loBytes);
      return order === 0 ? a.place - b.place : order;
    });
    const u32 = new Uint32Array(rangeSetWords(sorted.length));
    sorted.forEach(({ collection, lo, loBytes, hiBytes, place }, i) => {
      const at = SET_HEADER_WORDS + i * ENTRY_WORDS;
      writeEntry(u32, at, collection, lo, loBytes, lo + loBytes, hiBytes, place);
    });
    finishRangeSet(u32, u8, 0, 0, sorted.length);
    this.#set = new RangeSetReader(u32, u8);
    this.#set.attach(0, 0);
  }

  /** The next operation of the walk is overtaken. Requires: `scan` has said that there may be some. */
  isNext(walker: OperationWalker): boolean {
    const found = this.#found;
    const place = this.#place++;
    const { txIndex, collection, keyAddress, keyBytes } = walker;
    while (this.#last < found.length && found[this.#last].txIndex < txIndex) this.#last++;
    while (this.#last + 1 < found.length && found[this.#last + 1].txIndex === txIndex) this.#last++;
    const last = found[this.#last];
    if (last === undefined || last.txIndex !== txIndex || last.place <= place) return false;
    if (walker.kind === OP_DELETE_RANGE) return false;
    const { u8 } = this.#arena;
    return this.#set.newest(collection, u8, keyAddress, keyBytes, place, last.place) !== place;
  }
}
