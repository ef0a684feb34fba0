/**
 * What a store must hold: the transactions in the order of their offsets, and where records end. The
 * naive map that is always right; nothing in it is removed, a shorter history is a fork. Used by the
 * crash harness.
 */

/** A put, or with no value a delete. Keys and values are text, those of the catalog too. */
export type Op = {
  readonly collection: number;
  readonly key: string;
  readonly value: string | undefined;
};

/** By collection, by key. */
export type State = Map<number, Map<string, string>>;

export class Model {
  readonly #transactions: (readonly Op[])[];
  readonly #ends: Set<number>;
  readonly #states: Map<number, State> = new Map();

  constructor(transactions: (readonly Op[])[] = [], ends: Set<number> = new Set([0])) {
    this.#transactions = transactions;
    this.#ends = ends;
  }

  /** First offset that has not been submitted. */
  get upper(): number {
    return this.#transactions.length;
  }

  /** The transactions below `upper`, to go on from. */
  fork(upper: number): Model {
    return new Model(this.#transactions.slice(0, upper), new Set(this.#ends).add(upper));
  }

  add(ops: readonly Op[]): void {
    this.#transactions.push(ops);
  }

  /** What has been added since the last one is a record. */
  endRecord(): void {
    this.#ends.add(this.upper);
  }

  isRecordEnd(offset: number): boolean {
    return this.#ends.has(offset);
  }

  /** What the transaction at `offset` did. */
  opsAt(offset: number): readonly Op[] {
    return this.#transactions[offset] ?? [];
  }

  /** What there is once all offsets below `upper` are there. */
  stateAt(upper: number): State {
    const known = this.#states.get(upper);
    if (known !== undefined) return known;
    const state: State = new Map();
    this.#states.set(upper, state);
    for (let i = 0; i < upper; i++) {
      for (const { collection, key, value } of this.#transactions[i] ?? []) {
        let rows = state.get(collection);
        if (rows === undefined) state.set(collection, (rows = new Map()));
        if (value === undefined) rows.delete(key);
        else rows.set(key, value);
      }
    }
    return state;
  }
}
