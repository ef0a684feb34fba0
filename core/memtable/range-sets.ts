/**
 * Range deletes of the open generation in sets that are quick to ask. New ones stand on the header's
 * list; as soon as a few are there, they go into a set with those of their size, so that there are few
 * sets and each range was moved a few times only. Readers see a list of sets and the node from which
 * on the sets know all: what is in neither is never true, what is in both is said twice. Called by the
 * writer, on the sequencer's thread.
 */
import { compareAt } from '../base/bytes.ts';
import {
  ENTRY_COLLECTION_WORD,
  ENTRY_HI_BYTES_WORD,
  ENTRY_HI_WORD,
  ENTRY_LO_BYTES_WORD,
  ENTRY_LO_WORD,
  ENTRY_TIME_WORD,
  ENTRY_WORDS,
  SET_HEADER_WORDS,
  finishRangeSet,
  rangeSetWords,
  writeEntry,
} from '../base/range-set.ts';
import { fromWords } from '../shared/arena.ts';
import type { Arena } from '../shared/arena.ts';
import { storeLink } from '../shared/link.ts';
import { collectionAt, keyAddressAt, keyBytesAt } from './keys.ts';
import {
  NODE_NEXT_WORD,
  NODE_OPERATION_WORD,
  RANGE_SETS_COUNT_WORD,
  RANGE_SETS_HEADER_WORDS,
  RANGE_SETS_NODE_WORD,
  RANGE_SETS_WORD,
  timeAt,
} from './layout.ts';
import { valueBytesAt } from './reader.ts';
import { PAGE_WORDS } from './run-space.ts';
import type { RunSpace } from './run-space.ts';

/** Range deletes that readers walk one by one, until there are so many. */
export const rangesListedMax = 16;
/** A set lies in one page; beyond that there are several. */
export const rangesPerSetMax: number = Math.floor((PAGE_WORDS - SET_HEADER_WORDS) / ENTRY_WORDS);

type Entry = {
  readonly collection: number;
  readonly lo: number;
  readonly loBytes: number;
  readonly hi: number;
  readonly hiBytes: number;
  readonly time: number;
};

type RangeSet = { readonly address: number; readonly count: number };

export class RangeSets {
  readonly #arena: Arena;
  readonly #space: RunSpace;
  readonly #word: number;
  /** The newest node, and how many are on the list and in no set. */
  #newest = 0;
  #listed = 0;
  /** Larger ones first. */
  #sets: RangeSet[] = [];

  constructor(arena: Arena, space: RunSpace, header: number) {
    this.#arena = arena;
    this.#space = space;
    this.#word = header >>> 2;
  }

  /** The node was put on the list. Returns the bytes that this has taken. */
  add(node: number): number {
    this.#newest = node;
    this.#listed++;
    return this.#listed < rangesListedMax ? 0 : this.#fold();
  }

  /** Puts what is listed into a set. Without a page for it the list grows on, which is as true. */
  #fold(): number {
    const entries = this.#listedEntries();
    let kept = this.#sets.length;
    while (kept > 0) {
      const { count } = this.#sets[kept - 1];
      if (count > entries.length || count + entries.length > rangesPerSetMax) break;
      kept--;
      this.#addEntries(this.#sets[kept], entries);
    }
    // Pieces that are in order already, one behind the other: the sort merges them.
    const { u8, u32 } = this.#arena;
    entries.sort((a, b) => compare(u8, a, b));
    const address = this.#space.takeBlock(rangeSetWords(entries.length));
    if (address === 0) return 0;
    const set = address >>> 2;
    entries.forEach((entry, i) => {
      const { collection, lo, loBytes, hi, hiBytes, time } = entry;
      const at = set + SET_HEADER_WORDS + i * ENTRY_WORDS;
      writeEntry(u32, at, collection, lo, loBytes, hi, hiBytes, time);
    });
    finishRangeSet(u32, u8, set, 0, entries.length);
    this.#publish([...this.#sets.slice(0, kept), { address, count: entries.length }]);
    return rangeSetWords(entries.length) * 4;
  }

  #publish(sets: RangeSet[]): void {
    const { i32, u32 } = this.#arena;
    const list = this.#space.takeBlock(RANGE_SETS_HEADER_WORDS + sets.length);
    if (list === 0) return;
    const word = list >>> 2;
    u32[word + RANGE_SETS_COUNT_WORD] = sets.length;
    u32[word + RANGE_SETS_NODE_WORD] = this.#newest;
    sets.forEach(({ address }, i) => (u32[word + RANGE_SETS_HEADER_WORDS + i] = address));
    storeLink(i32, this.#word + RANGE_SETS_WORD, list);
    this.#sets = sets;
    this.#listed = 0;
  }

  #listedEntries(): Entry[] {
    const { u32 } = this.#arena;
    const entries: Entry[] = [];
    let word = this.#newest >>> 2;
    for (let i = 0; i < this.#listed; i++, word = u32[word + NODE_NEXT_WORD] >>> 2) {
      const operation = u32[word + NODE_OPERATION_WORD];
      const lo = keyAddressAt(u32, operation);
      const loBytes = keyBytesAt(u32, operation);
      entries.push({
        collection: collectionAt(u32, operation),
        lo,
        loBytes,
        hi: lo + loBytes,
        hiBytes: valueBytesAt(u32, operation),
        time: timeAt(u32, word),
      });
    }
    return entries;
  }

  #addEntries(set: RangeSet, entries: Entry[]): void {
    const { u32 } = this.#arena;
    for (let i = 0; i < set.count; i++) {
      const at = (set.address >>> 2) + SET_HEADER_WORDS + i * ENTRY_WORDS;
      entries.push({
        collection: u32[at + ENTRY_COLLECTION_WORD],
        lo: u32[at + ENTRY_LO_WORD],
        loBytes: u32[at + ENTRY_LO_BYTES_WORD],
        hi: u32[at + ENTRY_HI_WORD],
        hiBytes: u32[at + ENTRY_HI_BYTES_WORD],
        time: fromWords(u32[at + ENTRY_TIME_WORD], u32[at + ENTRY_TIME_WORD + 1]),
      });
    }
  }
}

/** The order of entries in a set. */
function compare(u8: Uint8Array, a: Entry, b: Entry): number {
  if (a.collection !== b.collection) return a.collection - b.collection;
  const order = compareAt(u8, a.lo, a.loBytes, u8, b.lo, b.loBytes);
  return order === 0 ? a.time - b.time : order;
}
