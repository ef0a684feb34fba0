/**
 * What the function of one `transact` does, drawn from a seed: reads of rows and ranges, each compared with
 * the model at the time of the attempt and the attempt's own writes, then writes. It remembers what it saw:
 * where its commit takes its place in the order, all of that must still be so. Used by caller.ts.
 */
import type { Prng } from '../../core/base/prng.ts';
import type { Client } from '../../actors/client.ts';
import type { Collection } from '../../actors/collection.ts';
import type { TransactionScope } from '../../actors/transaction-scope.ts';
import type { WriteSet } from '../../actors/write-set.ts';
import type { Model, ModelCollection, ModelOp } from './model.ts';
import { SimFailure } from './world.ts';

type Rows = Collection<Buffer, Buffer>;

/** Knows what one attempt has read and written. */
export type Judge = {
  readonly ops: ModelOp[];
  /** It has read nothing: nothing can have changed. */
  readonly isBlind: boolean;
  /** Its writes have this offset: what it read was the same there. */
  readonly onAccepted: (offset: number) => void;
  /** It was refused: something has changed. */
  readonly onConflict: () => void;
};

export type AttemptParts = {
  readonly client: Client;
  readonly prng: Prng;
  readonly model: Model;
  readonly live: () => readonly ModelCollection[];
  readonly handleOf: (id: number) => Rows;
  readonly keyOf: (collection: ModelCollection) => number;
  readonly valueOf: () => Buffer;
  readonly note: (what: string, n: number) => void;
  readonly onWriteSet: (set: WriteSet, judge: Judge) => void;
};

type Point = { readonly id: number; readonly key: number };
/** Rows [lower, upper) in bytes, as far as they were seen. */
type Span = {
  readonly id: number;
  readonly lower: Buffer | undefined;
  readonly upper: Buffer | undefined;
};

export class Attempts {
  readonly #parts: AttemptParts;

  constructor(parts: AttemptParts) {
    this.#parts = parts;
  }

  /** One attempt; it may be the first or a later one. */
  async run(scope: TransactionScope): Promise<number> {
    const { prng, note, model, client } = this.#parts;
    const T = scope.offset;
    if (T !== client.reader.visible() - 1) {
      throw new SimFailure(`an attempt reads at ${T}, not at what is visible`);
    }
    const live = model.liveAt(T);
    const ops: ModelOp[] = [];
    const points: Point[] = [];
    const spans: Span[] = [];
    /** Collections that were asked, whatever was learnt. */
    const asked: Set<number> = new Set();
    note(`attempt at ${T}`, T);
    if (live.length > 0) {
      for (let i = prng.pick([0, 1, 2, 4]); i > 0; i--) {
        if (prng.chance(0.35)) this.#write(scope, live, ops);
        else if (prng.chance(0.3)) spans.push(this.#range(scope, live, ops, asked));
        else points.push(await this.#point(scope, live, ops, asked));
      }
      for (let i = prng.pick([0, 1, 1, 3]); i > 0; i--) this.#write(scope, live, ops);
    }
    this.#parts.onWriteSet(scope.set, {
      ops,
      isBlind: [...points, ...spans].every(({ id }) => id < 0),
      onAccepted: (offset) => this.#checkSame(T, offset, points, spans),
      onConflict: () => this.#checkChanged(T, asked, points, spans),
    });
    return T;
  }

  #write(scope: TransactionScope, live: readonly ModelCollection[], ops: ModelOp[]): void {
    const { prng, handleOf, keyOf, valueOf } = this.#parts;
    const collection = prng.pick(live);
    const { id } = collection;
    const key = keyOf(collection);
    const bytes = collection.slot.keys[key];
    const value = prng.chance(0.25) ? undefined : valueOf();
    if (value === undefined) scope.delete(handleOf(id), bytes);
    else scope.put(handleOf(id), bytes, value);
    ops.push({ id, key, value });
  }

  /** The newest of the attempt's own writes, or what the model has. */
  #expected(
    ops: readonly ModelOp[],
    id: number,
    key: number,
    T: number,
  ): { value: Buffer | undefined; offset: number | undefined; isOwn: boolean } {
    const own = ops.findLast((op) => op.id === id && op.key === key);
    if (own !== undefined) return { value: own.value, offset: undefined, isOwn: true };
    const version = this.#parts.model.versionAt(id, key, T);
    return { value: version?.value, offset: version?.offset, isOwn: false };
  }

  async #point(
    scope: TransactionScope,
    live: readonly ModelCollection[],
    ops: readonly ModelOp[],
    asked: Set<number>,
  ): Promise<Point> {
    const { prng, handleOf, keyOf, note } = this.#parts;
    const collection = prng.pick(live);
    const { id } = collection;
    asked.add(id);
    const key = keyOf(collection);
    const bytes = collection.slot.keys[key];
    const expected = this.#expected(ops, id, key, scope.offset);
    const what = `${id}/${key} at ${scope.offset}`;
    note(`reads ${what}`, key);
    let found: Buffer | undefined;
    if (prng.chance(0.3)) {
      found = await scope.get(handleOf(id), bytes);
    } else if (prng.chance(0.5)) {
      const entry = scope.getEntrySync(handleOf(id), bytes);
      found = entry?.value;
      if (entry !== undefined && entry.offset !== expected.offset) {
        throw new SimFailure(`${what} in an attempt is of ${entry.offset}, not ${expected.offset}`);
      }
    } else {
      found = scope.getSync(handleOf(id), bytes);
    }
    const same =
      found === undefined ? expected.value === undefined : expected.value?.equals(found) === true;
    if (!same) throw new SimFailure(`${what} in an attempt is not what the model has`);
    // Of its own write nothing was learnt.
    return expected.isOwn ? { id: -1, key } : { id, key };
  }

  #range(
    scope: TransactionScope,
    live: readonly ModelCollection[],
    ops: readonly ModelOp[],
    asked: Set<number>,
  ): Span {
    const { prng, handleOf, note } = this.#parts;
    const collection = prng.pick(live);
    const { id, slot } = collection;
    asked.add(id);
    const lower = prng.chance(0.5) ? prng.pick(slot.keys) : undefined;
    const upper = prng.chance(0.5) ? prng.pick(slot.keys) : undefined;
    const isReverse = prng.chance(0.3);
    const limit = prng.chance(0.4) ? prng.below(5) : Infinity;
    const expected: { key: Buffer; value: Buffer }[] = [];
    for (let key = 0; key < slot.keys.length; key++) {
      const bytes = slot.keys[key];
      if (lower !== undefined && Buffer.compare(bytes, lower) < 0) continue;
      if (upper !== undefined && Buffer.compare(bytes, upper) >= 0) break;
      const { value } = this.#expected(ops, id, key, scope.offset);
      if (value !== undefined) expected.push({ key: bytes, value });
    }
    if (isReverse) expected.reverse();
    const rows = scope.entries(handleOf(id), {
      ...(lower === undefined ? {} : { gte: lower }),
      ...(upper === undefined ? {} : { lt: upper }),
      ...(limit === Infinity ? {} : { limit }),
      reverse: isReverse,
    });
    let at = 0;
    const what = `a range of ${id} at ${scope.offset} in an attempt`;
    for (const [key, value] of rows) {
      const row = expected[at++];
      if (row === undefined || !row.key.equals(key) || !row.value.equals(value)) {
        throw new SimFailure(`${what}: row ${at - 1} is not what the model has`);
      }
    }
    if (at !== Math.min(expected.length, limit)) {
      throw new SimFailure(`${what} has ${at} of ${expected.length} rows`);
    }
    note('reads a range', at);
    if (at === expected.length && at < limit) return { id, lower, upper };
    // Seen up to its last row and no further; of none nothing.
    if (at === 0) return { id: -1, lower, upper };
    const last = expected[at - 1].key;
    return isReverse
      ? { id, lower: last, upper }
      : { id, lower, upper: Buffer.concat([last, Buffer.alloc(1)]) };
  }

  /** What was read at T is the same just below `offset`. */
  #checkSame(T: number, offset: number, points: readonly Point[], spans: readonly Span[]): void {
    const { model } = this.#parts;
    for (const { id, key } of points) {
      if (id < 0) continue;
      const then = model.versionAt(id, key, T);
      const now = model.versionAt(id, key, offset - 1);
      const isAbsent = then?.value === undefined && now?.value === undefined;
      if (isAbsent || then?.offset === now?.offset) continue;
      throw new SimFailure(
        `${offset} was accepted: it read ${id}/${key} at ${T}, ${now?.offset} changed it`,
      );
    }
    const say = (id: number, at: number, lower?: Buffer, upper?: Buffer): string =>
      model
        .rowsAt(id, at, lower, upper)
        .map((row) => `${row.key.toString('hex')} ${row.offset}`)
        .join();
    for (const { id, lower, upper } of spans) {
      if (id < 0 || say(id, T, lower, upper) === say(id, offset - 1, lower, upper)) continue;
      throw new SimFailure(
        `${offset} was accepted: a range of ${id} that it read at ${T} is another`,
      );
    }
  }

  /** Some transaction after T has changed something in what was read, or its trace is merged away. */
  #checkChanged(
    T: number,
    asked: ReadonlySet<number>,
    points: readonly Point[],
    spans: readonly Span[],
  ): void {
    const { model } = this.#parts;
    for (const id of asked) if (T < model.mayLoseBelow(id, model.upper)) return;
    const ids = new Set([...points, ...spans].map(({ id }) => id));
    for (let offset = T + 1; offset < model.upper; offset++) {
      for (const { id, key, range } of model.transactions[offset].ops) {
        if (range !== undefined) {
          if (ids.has(id)) return;
          continue;
        }
        if (points.some((point) => point.id === id && point.key === key)) return;
        const bytes = model.collections.get(id)!.slot.keys[key];
        for (const span of spans) {
          if (span.id !== id) continue;
          const isAbove = span.lower === undefined || Buffer.compare(bytes, span.lower) >= 0;
          const isBelow = span.upper === undefined || Buffer.compare(bytes, span.upper) < 0;
          if (isAbove && isBelow) return;
        }
      }
    }
    throw new SimFailure(`an attempt at ${T} was refused, and nothing that it read has changed`);
  }
}
