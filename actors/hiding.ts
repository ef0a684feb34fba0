/**
 * The range deletes that a view shows, for whoever reads rows of it: what they hide is not there. Where
 * there are none, a reader pays a load a generation and one for all of the parts. Part of a Reader, on
 * its thread, between enter and leave.
 */
import { RangeSetReader } from '../core/base/range-set.ts';
import { GenerationReader } from '../core/memtable/reader.ts';
import type { Arena } from '../core/shared/arena.ts';
import type { ViewReader } from '../core/spine/view.ts';

export class Hiding {
  readonly #view: ViewReader;
  readonly #generation: GenerationReader;
  readonly #set: RangeSetReader;

  constructor(arena: Arena, view: ViewReader) {
    this.#view = view;
    this.#generation = new GenerationReader(arena);
    this.#set = new RangeSetReader(arena.u32, arena.u8);
  }

  /** True when the view's generations or the collection's parts (block 0: none) hide anything at all. */
  isThere(block: number): boolean {
    return (block !== 0 && this.#view.rangeSetCount(block) > 0) || this.#isInMemory();
  }

  /** As `isThere`; false too when all of it is from `above` or before. */
  isThereAfter(block: number, above: number): boolean {
    return (block !== 0 && this.newestInParts(block) > above) || this.#isInMemory();
  }

  #isInMemory(): boolean {
    const view = this.#view;
    if (view.spare !== 0 && this.#has(view.spare)) return true;
    if (this.#has(view.open)) return true;
    for (let i = 0; i < view.sealedCount; i++) if (this.#has(view.sealed(i))) return true;
    return false;
  }

  #has(header: number): boolean {
    this.#generation.attach(header);
    return this.#generation.hasRanges;
  }

  /** The largest time in (above, T] of a range delete over the key, wherever it is; else `above`. */
  newest(
    collection: number,
    block: number,
    key: Uint8Array,
    offset: number,
    length: number,
    above: number,
    T: number,
  ): number {
    const best = this.inGenerations(collection, key, offset, length, above, T);
    return block === 0 ? best : this.inParts(block, key, offset, length, best, T);
  }

  inGenerations(
    collection: number,
    key: Uint8Array,
    offset: number,
    length: number,
    above: number,
    T: number,
  ): number {
    const view = this.#view;
    const generation = this.#generation;
    let best = above;
    for (let i = -2; i < view.sealedCount; i++) {
      const header = i === -2 ? view.spare : i === -1 ? view.open : view.sealed(i);
      if (header === 0) continue;
      generation.attach(header);
      if (!generation.hasRanges) continue;
      best = generation.newestRange(collection, key, offset, length, best, T);
    }
    return best;
  }

  inParts(
    block: number,
    key: Uint8Array,
    offset: number,
    length: number,
    above: number,
    T: number,
  ): number {
    const view = this.#view;
    if (view.rangeSetCount(block) === 0) return above;
    let best = above;
    const runs = view.runCount(block);
    for (let r = 0; r < runs; r++) {
      const run = view.run(block, r);
      const sets = view.runRangeSets(run);
      for (let i = 0; i < sets; i++) {
        const set = view.rangeSet(run, i);
        this.#set.attach(set, set);
        best = this.#set.newest(0, key, offset, length, best, T);
      }
    }
    return best;
  }

  /** Time of the newest range delete in parts; -1 when there is none. */
  newestInParts(block: number): number {
    const view = this.#view;
    let newest = -1;
    const runs = view.rangeSetCount(block) === 0 ? 0 : view.runCount(block);
    for (let r = 0; r < runs; r++) {
      const run = view.run(block, r);
      const sets = view.runRangeSets(run);
      for (let i = 0; i < sets; i++) {
        const set = view.rangeSet(run, i);
        this.#set.attach(set, set);
        newest = Math.max(newest, this.#set.newestTime);
      }
    }
    return newest;
  }
}
