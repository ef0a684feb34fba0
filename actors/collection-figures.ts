/**
 * What the keeper counts of one collection, in a block of its own that views name, so that whoever asks
 * for figures finds them without asking the keeper. Nothing here changes what the keeper does: without
 * room for the block the figures are not shown. A part of the keeper, on its thread.
 */
import { Counters, countersBytes, readCounter } from '../core/shared/counters.ts';
import type { Arena } from '../core/shared/arena.ts';
import type { Slab } from '../core/shared/slab.ts';
import { isCompact } from '../core/spine/batch.ts';
import type { PartInfo } from '../core/spine/part-format.ts';
import { debtBytes } from '../core/spine/policy.ts';
import type { Spine } from '../core/spine/spine.ts';
import { COLLECTION_COUNTERS, indexIn } from './counters.ts';

type Name = (typeof COLLECTION_COUNTERS)[number];

const BLOCK_BYTES: number = countersBytes(COLLECTION_COUNTERS.length);

export class CollectionFigures {
  /** Address of the block; 0: there was no room for it. */
  readonly address: number;
  readonly #counters: Counters;
  /** The structure may have changed since it was last written down. */
  stale = true;

  constructor(arena: Arena, slab: Slab) {
    this.address = slab.allocateAnywhere(BLOCK_BYTES);
    this.#counters = new Counters(arena, this.address, COLLECTION_COUNTERS.length);
    if (this.address !== 0) arena.u8.fill(0, this.address, this.address + BLOCK_BYTES);
  }

  add(name: Name, n: number): void {
    this.#counters.add(indexIn(COLLECTION_COUNTERS, name), n);
    this.stale = true;
  }

  setReadsPerSecond(rate: number): void {
    const reads = Math.round(rate);
    const index = indexIn(COLLECTION_COUNTERS, 'readsPerSecond');
    if (this.#counters.values[index] === reads) return;
    this.#counters.set(index, reads);
    this.stale = true;
  }

  /** Writes down how the spine stands; `merging`: the batches that jobs read. */
  publish(spine: Spine<PartInfo>, merging: ReadonlySet<number>): void {
    this.stale = false;
    if (this.address === 0) return;
    const batches = spine.batches();
    let hollows = 0;
    let compact = 0;
    let compacting = 0;
    for (const batch of batches) {
      hollows += batch.parts.length;
      if (batch.parts.some(({ hollow }) => merging.has(hollow.bid))) compacting++;
      else if (isCompact(batch)) compact++;
    }
    this.#set('batches', hollows);
    this.#set('spineBatches', batches.length);
    this.#set('compact', compact);
    this.#set('compacting', compacting);
    this.#set('nonCompact', batches.length - compact - compacting);
    this.#set('levels', spine.levelCount);
    this.#set('doubles', spine.state().merges.length);
    this.#set('debtBytes', debtBytes(batches));
    this.#counters.publish();
  }

  #set(name: Name, value: number): void {
    this.#counters.set(indexIn(COLLECTION_COUNTERS, name), value);
  }
}

/** Published figures by name; zeros where a view names no block. */
export function readFigures(arena: Arena, address: number): Record<Name, number> {
  const entries = COLLECTION_COUNTERS.map((name, i) => [
    name,
    address === 0 ? 0 : readCounter(arena, address, i),
  ]);
  return Object.fromEntries(entries) as Record<Name, number>;
}
