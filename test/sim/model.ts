/**
 * What the engine is compared with: every transaction in a list, every version of every key in a list
 * per key, nothing forgotten. Naive on purpose; it never loses history, so every read at any time has
 * its answer here. Used by the simulation only.
 */
import { invariant } from '../../core/base/assert.ts';

/** A name under which collections are made, dropped and made again; its keys never change. */
export type Slot = {
  readonly name: string;
  readonly keys: readonly Buffer[];
  /** Of a multiset: what its keys may have, ascending. */
  readonly values?: readonly Buffer[];
};

export type ModelOp = {
  readonly id: number;
  readonly key: number;
  readonly value: Buffer | undefined;
  /** An update of a multiset: `key` numbers its pairs, key by key and value by value. */
  readonly diff?: number;
  /** A range delete: `key` says nothing. An undefined bound is no bound. */
  readonly range?: { readonly lower: Buffer | undefined; readonly upper: Buffer | undefined };
};

export type CatalogChange =
  | { readonly what: 'create'; readonly slot: Slot; readonly id: number; readonly history: number }
  | { readonly what: 'drop'; readonly id: number }
  | { readonly what: 'history'; readonly id: number; readonly history: number };

export type ModelTx = { readonly ops: ModelOp[]; readonly catalog?: CatalogChange };

export type Version = { readonly offset: number; readonly value: Buffer | undefined };

/** What the diffs of a pair add up to from an offset on. */
export type Sum = { readonly offset: number; readonly sum: number };

export type ModelPair = { readonly key: Buffer; readonly value: Buffer; readonly count: number };

export type ModelRow = { readonly key: Buffer; readonly value: Buffer; readonly offset: number };

export class ModelCollection {
  readonly id: number;
  readonly slot: Slot;
  readonly createdAt: number;
  droppedAt: number = Infinity;
  /** Histories it was given, with the offsets at which; Infinity keeps all. */
  readonly histories: { offset: number; history: number }[] = [];
  readonly versions: Version[][];
  /** Of a multiset, by pair. */
  readonly sums: Sum[][];
  /** Offsets with operations on it, ascending. */
  readonly touches: number[] = [];

  constructor(id: number, slot: Slot, createdAt: number, history: number) {
    this.id = id;
    this.slot = slot;
    this.createdAt = createdAt;
    this.histories.push({ offset: createdAt, history });
    const { keys, values } = slot;
    this.versions = values === undefined ? keys.map(() => []) : [];
    this.sums = values === undefined ? [] : keys.flatMap(() => values.map(() => []));
  }
}

export class Model {
  readonly transactions: ModelTx[] = [];
  /** When each was committed, as soon as it has its place in the order. */
  readonly atMs: number[] = [];
  readonly collections: Map<number, ModelCollection> = new Map();
  /** Offsets at which a record of the log ends. */
  readonly #ends: Set<number> = new Set([0]);
  /** Operations of all transactions that were ever ordered, lost ones too. */
  operations = 0;

  get upper(): number {
    return this.transactions.length;
  }

  /** The record whose transactions came last ends here. */
  endRecord(): void {
    this.#ends.add(this.upper);
  }

  isRecordEnd(upper: number): boolean {
    return this.#ends.has(upper);
  }

  apply(tx: ModelTx): void {
    const offset = this.upper;
    this.transactions.push(tx);
    this.operations += tx.ops.length;
    const { catalog } = tx;
    if (catalog?.what === 'create') {
      const { id, slot, history } = catalog;
      this.collections.set(id, new ModelCollection(id, slot, offset, history));
    } else if (catalog?.what === 'drop') {
      this.#get(catalog.id).droppedAt = offset;
    } else if (catalog?.what === 'history') {
      this.#get(catalog.id).histories.push({ offset, history: catalog.history });
    }
    for (const { id, key, value, diff, range } of tx.ops) {
      const collection = this.#get(id);
      if (diff !== undefined) addDiff(collection.sums[key], offset, diff);
      else if (range === undefined) writeVersion(collection.versions[key], offset, value);
      else this.#deleteRange(collection, offset, range);
      if (collection.touches.at(-1) !== offset) collection.touches.push(offset);
    }
  }

  /** Rows that are there go; for all others nothing has changed. */
  #deleteRange(
    collection: ModelCollection,
    offset: number,
    { lower, upper }: NonNullable<ModelOp['range']>,
  ): void {
    const { keys, values } = collection.slot;
    for (let i = 0; i < keys.length; i++) {
      if (lower !== undefined && Buffer.compare(keys[i], lower) < 0) continue;
      if (upper !== undefined && Buffer.compare(keys[i], upper) >= 0) break;
      if (values !== undefined) {
        const pairs = collection.sums.slice(i * values.length, (i + 1) * values.length);
        for (const sums of pairs) addDiff(sums, offset, -(sums.at(-1)?.sum ?? 0));
        continue;
      }
      const versions = collection.versions[i];
      if (versions.at(-1)?.value !== undefined) writeVersion(versions, offset, undefined);
    }
  }

  /** What a crash has lost was never there. */
  truncate(upper: number): void {
    invariant(upper <= this.upper, 'nothing is there that was not', upper, this.upper);
    this.transactions.length = upper;
    this.atMs.length = Math.min(this.atMs.length, upper);
    for (const end of this.#ends) if (end > upper) this.#ends.delete(end);
    for (const [id, collection] of this.collections) {
      if (collection.createdAt >= upper) {
        this.collections.delete(id);
        continue;
      }
      if (collection.droppedAt >= upper) collection.droppedAt = Infinity;
      const { histories, touches } = collection;
      while (histories.at(-1)!.offset >= upper) histories.pop();
      while (touches.length > 0 && touches.at(-1)! >= upper) touches.pop();
      for (const changes of [...collection.versions, ...collection.sums]) {
        while (changes.length > 0 && changes.at(-1)!.offset >= upper) changes.pop();
      }
    }
  }

  #get(id: number): ModelCollection {
    const collection = this.collections.get(id);
    invariant(collection !== undefined, 'the model knows the collection', id);
    return collection;
  }

  /** Collections of every kind that are there as of T, by id. */
  allAt(T: number): ModelCollection[] {
    return [...this.collections.values()].filter(
      (collection) => collection.createdAt <= T && collection.droppedAt > T,
    );
  }

  /** Those of rows. */
  liveAt(T: number): ModelCollection[] {
    return this.allAt(T).filter(({ slot }) => slot.values === undefined);
  }

  multisetsAt(T: number): ModelCollection[] {
    return this.allAt(T).filter(({ slot }) => slot.values !== undefined);
  }

  /** How often a multiset has a pair as of T. */
  sumAt(id: number, pair: number, T: number): number {
    return newestAt(this.#get(id).sums[pair], T)?.sum ?? 0;
  }

  /** Its pairs as of T, ascending; of one key, or with lower <= key < upper. */
  pairsAt(
    id: number,
    T: number,
    only?: number,
    lower?: Uint8Array,
    upper?: Uint8Array,
  ): ModelPair[] {
    const pairs: ModelPair[] = [];
    const { keys, values = [] } = this.#get(id).slot;
    for (let k = only ?? 0; k < (only === undefined ? keys.length : only + 1); k++) {
      const key = keys[k];
      if (lower !== undefined && Buffer.compare(key, lower) < 0) continue;
      if (upper !== undefined && Buffer.compare(key, upper) >= 0) break;
      values.forEach((value, v) => {
        const count = this.sumAt(id, k * values.length + v, T);
        if (count !== 0) pairs.push({ key, value, count });
      });
    }
    return pairs;
  }

  /** The newest version of a key as of T, deletions included. */
  versionAt(id: number, key: number, T: number): Version | undefined {
    return newestAt(this.#get(id).versions[key], T);
  }

  /** Rows as of T with lower <= key < upper, ascending; an undefined bound is no bound. */
  rowsAt(id: number, T: number, lower?: Uint8Array, upper?: Uint8Array): ModelRow[] {
    const rows: ModelRow[] = [];
    const { keys } = this.#get(id).slot;
    for (let i = 0; i < keys.length; i++) {
      const key = keys[i];
      if (lower !== undefined && Buffer.compare(key, lower) < 0) continue;
      if (upper !== undefined && Buffer.compare(key, upper) >= 0) break;
      const version = this.versionAt(id, i, T);
      if (version?.value !== undefined) {
        rows.push({ key, value: version.value, offset: version.offset });
      }
    }
    return rows;
  }

  isDropped(id: number, upper: number): boolean {
    return this.#get(id).droppedAt < upper;
  }

  /** 1 + offset of the last transaction below `upper` that had operations on the collection. */
  touched(id: number, upper: number): number {
    return 1 + (this.#get(id).touches.findLast((offset) => offset < upper) ?? -1);
  }

  /** 1 + offset of the last one whose operations came to something: a flush leaves no trace of others. */
  changed(id: number, upper: number): number {
    const collection = this.#get(id);
    const isOne = (offset: number): boolean => offset < upper && isChangedAt(collection, offset);
    return 1 + (collection.touches.findLast(isOne) ?? -1);
  }

  nameOf(id: number): string {
    return this.#get(id).slot.name;
  }

  /** Offsets below it may be lost, as far as the history option promises; readers see [0, upper). */
  mayLoseBelow(id: number, upper: number): number {
    // A shorter history may be acted upon long after a longer one was asked for again.
    const history = Math.min(...this.#get(id).histories.map((entry) => entry.history));
    return history === Infinity ? 0 : Math.max(0, upper - 1 - history);
  }
}

/** Of one transaction's operations on a key the last counts. */
function writeVersion(versions: Version[], offset: number, value: Buffer | undefined): void {
  if (versions.at(-1)?.offset === offset) versions.pop();
  versions.push({ offset, value });
}

/** Within one transaction diffs add up. */
function addDiff(sums: Sum[], offset: number, diff: number): void {
  const before = sums.at(-1);
  if (before?.offset === offset) sums.pop();
  sums.push({ offset, sum: (before?.sum ?? 0) + diff });
}

/** False: all diffs of the transaction at `offset` cancel out. */
function isChangedAt({ slot, sums }: ModelCollection, offset: number): boolean {
  if (slot.values === undefined) return true;
  return sums.some((ofPair) => {
    const i = ofPair.findLastIndex((sum) => sum.offset === offset);
    return i >= 0 && ofPair[i].sum !== (ofPair[i - 1]?.sum ?? 0);
  });
}

/** The last of a list ascending by offset that is not above T. */
function newestAt<Change extends { readonly offset: number }>(
  changes: readonly Change[],
  T: number,
): Change | undefined {
  let low = 0;
  let high = changes.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (changes[middle].offset <= T) low = middle + 1;
    else high = middle;
  }
  return changes[low - 1];
}
