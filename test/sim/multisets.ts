/**
 * What a client does with multisets: updates, alone or beside rows of other kinds, removed ranges, points,
 * walks that go on later, at any time that can be read; each answer compared with the model. Used by
 * caller.ts, which keeps the book of what was promised.
 */
import type { Prng } from '../../core/base/prng.ts';
import type { Client } from '../../actors/client.ts';
import type { Collection, ReadOptions } from '../../actors/collection.ts';
import type { Receipt } from '../../actors/commit-line.ts';
import { buffer } from '../../actors/encodings.ts';
import { Multiset } from '../../actors/multiset.ts';
import type { RangeIterable, RangeOptions } from '../../actors/range.ts';
import { Transaction } from '../../actors/transaction.ts';
import type { Model, ModelCollection, ModelOp, ModelPair, ModelTx } from './model.ts';
import { SimFailure } from './world.ts';
import type { Await } from './world.ts';

type Pairs = Multiset<Buffer, Buffer>;

/** What a read asks, and the time that it stands for. */
type When = { readonly options: ReadOptions; readonly T: number };

type Walk = {
  readonly rows: RangeIterable<Buffer, Buffer, [Buffer, Buffer, number]>;
  readonly expected: readonly ModelPair[];
  readonly what: string;
  at: number;
};

type How = Parameters<Transaction['commit']>[0];

export type MultisetParts = {
  readonly client: Client;
  readonly prng: Prng;
  readonly model: Model;
  readonly mayRemoveRanges: boolean;
  readonly sync: () => { sync: boolean; options: How };
  readonly submit: (tx: ModelTx, sync: boolean, promise: Promise<Receipt>) => void;
  readonly when: () => When;
  /** Multisets that can be asked for at that time. */
  readonly readable: (when: When) => readonly ModelCollection[];
  /** Collections of rows, to be changed in the same transactions. */
  readonly keyed: () => readonly ModelCollection[];
  readonly keyedHandle: (id: number) => Collection<Buffer, Buffer>;
  readonly value: () => Buffer;
  readonly await: Await;
  /** The collection was read at that time: it may not be lost any more. */
  readonly onRead: (id: number, when: When) => void;
  readonly checkLost: (error: unknown, id: number, when: When, visible: number) => void;
  readonly isFailedRead: (error: unknown) => boolean;
  readonly onCompared: () => void;
  readonly note: (what: string, n: number) => void;
};

const WALKS_MAX = 4;

export class Multisets {
  readonly #parts: MultisetParts;
  readonly #handles: Map<number, Pairs> = new Map();
  readonly #walks: Walk[] = [];

  constructor(parts: MultisetParts) {
    this.#parts = parts;
  }

  handle(id: number): Pairs {
    let handle = this.#handles.get(id);
    if (handle === undefined) {
      const none = (): Promise<Receipt> => Promise.reject(new TypeError('not here'));
      handle = new Multiset(
        this.#parts.client,
        this.#parts.model.nameOf(id),
        id,
        buffer,
        buffer,
        none,
      );
      this.#handles.set(id, handle);
    }
    return handle;
  }

  /** One thing; `live` are those that are there now. */
  act(live: readonly ModelCollection[], mayWrite: boolean, mayWait: boolean): void {
    const { prng } = this.#parts;
    if (live.length === 0) return;
    const chosen = prng.below(mayWrite ? 10 : 6);
    if (chosen >= 8) this.#transaction(live);
    else if (chosen >= 6) this.#update(prng.pick(live));
    else if (chosen >= 3) this.#walk();
    else this.#point(mayWait);
  }

  // ---------------------------------------------------------------- writing

  /** A pair, often one of a few; its key and value. */
  #pair({ slot }: ModelCollection): { index: number; key: Buffer; value: Buffer } {
    const { prng } = this.#parts;
    const values = slot.values!;
    const few = prng.chance(0.5) ? 3 : slot.keys.length;
    const key = prng.below(Math.min(few, slot.keys.length));
    const value = prng.below(values.length);
    return { index: key * values.length + value, key: slot.keys[key], value: values[value] };
  }

  /** Often what takes the pair back to where nothing is there. */
  #diff(id: number, index: number): number {
    const { prng, model } = this.#parts;
    const now = model.sumAt(id, index, model.upper);
    if (now !== 0 && prng.chance(0.3)) return -now;
    return prng.pick([1, 1, 1, 2, -1, -2, 1_000, -1_000]);
  }

  #update(collection: ModelCollection): void {
    const { prng, sync: draw, submit, mayRemoveRanges } = this.#parts;
    const { id } = collection;
    const { sync, options } = draw();
    if (mayRemoveRanges && prng.chance(0.1)) {
      const { op, bounds } = this.#range(collection);
      submit({ ops: [op] }, sync, this.handle(id).deleteRange(bounds, options));
      return;
    }
    const { index, key, value } = this.#pair(collection);
    const diff = this.#diff(id, index);
    const promise = this.handle(id).update(key, value, diff, options);
    submit({ ops: [{ id, key: index, value: undefined, diff }] }, sync, promise);
  }

  #range({ id, slot: { keys } }: ModelCollection): {
    op: ModelOp;
    bounds: { gte?: Buffer; lt?: Buffer };
  } {
    const { prng } = this.#parts;
    const from = prng.below(keys.length);
    const lower = prng.chance(0.2) ? undefined : keys[from];
    const upper = prng.chance(0.2) ? undefined : keys[from + prng.between(1, 4)];
    return {
      op: { id, key: -1, value: undefined, range: { lower, upper } },
      bounds: {
        ...(lower === undefined ? {} : { gte: lower }),
        ...(upper === undefined ? {} : { lt: upper }),
      },
    };
  }

  /** Adds an update to a transaction of somebody else's. */
  updateInto(tx: Transaction, collection: ModelCollection): ModelOp {
    const { id } = collection;
    const { index, key, value } = this.#pair(collection);
    const diff = this.#diff(id, index);
    tx.update(this.handle(id), key, value, diff);
    return { id, key: index, value: undefined, diff };
  }

  /** Several updates, perhaps of the same pair, perhaps beside rows of keyed collections. */
  #transaction(live: readonly ModelCollection[]): void {
    const { prng, client, sync: draw, submit, keyed, keyedHandle, value: newValue } = this.#parts;
    const tx = new Transaction(client);
    const ops: ModelOp[] = [];
    const others = keyed();
    for (let i = prng.pick([1, 2, 5, 40]); i > 0; i--) {
      const collection = prng.pick(live);
      const { id } = collection;
      if (others.length > 0 && prng.chance(0.2)) {
        const other = prng.pick(others);
        const key = prng.below(other.slot.keys.length);
        const value = newValue();
        tx.put(keyedHandle(other.id), other.slot.keys[key], value);
        ops.push({ id: other.id, key, value });
      } else if (this.#parts.mayRemoveRanges && prng.chance(0.05)) {
        const { op, bounds } = this.#range(collection);
        tx.deleteRange(this.handle(id), bounds);
        ops.push(op);
      } else {
        const { index, key, value } = this.#pair(collection);
        const diff = prng.pick([1, 1, -1, 3]);
        tx.update(this.handle(id), key, value, diff);
        ops.push({ id, key: index, value: undefined, diff });
      }
    }
    const { sync, options } = draw();
    submit({ ops }, sync, tx.commit(options));
  }

  // ---------------------------------------------------------------- points

  #point(mayWait: boolean): void {
    const { prng, model, when: draw, readable, onRead, checkLost, client } = this.#parts;
    const when = draw();
    const there = readable(when);
    if (there.length === 0) return;
    const { id, slot } = prng.pick(there);
    const index = prng.below(slot.keys.length);
    const key = slot.keys[index];
    const handle = this.handle(id);
    const what = `pairs of ${id}/${index} at ${when.T}`;
    const expected = model.pairsAt(id, when.T, index).map(({ value, count }) => ({ value, count }));
    const total = expected.reduce((sum, { count }) => sum + count, 0);
    const visible = client.reader.visible();
    const checkPairs = (found: readonly [Buffer, number][]): void =>
      this.#comparePairs(what, found, expected);
    const checkCount = (found: number): void => this.#compareNumber(what, found, total);
    const onError = (error: unknown): void => checkLost(error, id, when, visible);
    const done =
      <R>(check: (found: R) => void) =>
      (found: R): void => {
        check(found);
        onRead(id, when);
      };
    if (mayWait && prng.chance(0.4)) {
      const { await: settle } = this.#parts;
      if (prng.chance(0.5)) settle(handle.get(key, when.options), what, done(checkPairs), onError);
      else settle(handle.count(key, when.options), what, done(checkCount), onError);
      return;
    }
    try {
      const kind = prng.below(4);
      if (kind === 0) checkCount(handle.countSync(key, when.options));
      else if (kind === 1) {
        const has = handle.hasSync(key, when.options);
        this.#compareNumber(
          `${what}, whether there is one`,
          has ? 1 : 0,
          Math.sign(expected.length),
        );
      } else if (kind === 2) {
        const [first, second] = handle.getManySync([key, key], when.options);
        checkPairs(first);
        checkPairs(second);
      } else checkPairs(handle.getSync(key, when.options));
      onRead(id, when);
    } catch (error) {
      onError(error);
    }
  }

  #compareNumber(what: string, found: number, expected: number): void {
    this.#parts.note(what, Math.abs(found));
    this.#parts.onCompared();
    if (found !== expected) throw new SimFailure(`${what}: found ${found}, not ${expected}`);
  }

  #comparePairs(
    what: string,
    found: readonly [Buffer, number][],
    expected: readonly { readonly value: Buffer; readonly count: number }[],
  ): void {
    this.#parts.note(what, found.length);
    this.#parts.onCompared();
    const say = (value: Buffer, count: number): string =>
      `${count} of ${value.toString('hex', 0, 8)} (${value.length} bytes)`;
    const isSame =
      found.length === expected.length &&
      found.every(([value, count], i) => {
        const pair = expected[i];
        return count === pair.count && value.equals(pair.value);
      });
    if (isSame) return;
    const there = found.map(([value, count]) => say(value, count)).join('; ');
    const wanted = expected.map(({ value, count }) => say(value, count)).join('; ');
    throw new SimFailure(`${what}: found ${there || 'none'}, not ${wanted || 'none'}`);
  }

  // ---------------------------------------------------------------- ranges

  /** Opens a walk, goes on with one, or drops one. */
  #walk(): void {
    const { prng, when: draw, readable } = this.#parts;
    if (this.#walks.length > 0 && prng.chance(0.6)) {
      const at = prng.below(this.#walks.length);
      const walk = this.#walks[at];
      const isDropped = prng.chance(0.1);
      if (isDropped) walk.rows.return();
      else if (this.#pull(walk, prng.between(1, 30))) return;
      this.#walks.splice(at, 1);
      return;
    }
    const when = draw();
    const there = readable(when);
    if (there.length === 0) return;
    const walk = this.#open(prng.pick(there), when);
    if (walk === undefined) return;
    const isHeld = this.#walks.length < WALKS_MAX && prng.chance(0.5);
    if (isHeld) this.#walks.push(walk);
    else this.#pull(walk, Infinity);
  }

  #open({ id, slot }: ModelCollection, when: When): Walk | undefined {
    const { prng, model, onRead, checkLost, client } = this.#parts;
    const range: { -readonly [K in keyof RangeOptions<Buffer>]: RangeOptions<Buffer>[K] } = {
      ...when.options,
    };
    const lower = prng.chance(0.4) ? prng.pick(slot.keys) : undefined;
    const upper = prng.chance(0.4) ? prng.pick(slot.keys) : undefined;
    if (lower !== undefined) range.gte = lower;
    if (upper !== undefined) range.lt = upper;
    let expected = model.pairsAt(id, when.T, undefined, lower, upper);
    const isReverse = prng.chance(0.4);
    if (isReverse) {
      range.reverse = true;
      expected.reverse();
    }
    if (prng.chance(0.3)) {
      range.limit = prng.below(expected.length + 3);
      expected = expected.slice(0, range.limit);
    }
    const what = `pairs of ${id} at ${when.T}${isReverse ? ' reversed' : ''}`;
    try {
      const rows = this.handle(id).entries(range);
      onRead(id, when);
      return { rows, expected, what, at: 0 };
    } catch (error) {
      checkLost(error, id, when, client.reader.visible());
      return undefined;
    }
  }

  /** Takes up to `count`; true while there are more. */
  #pull(walk: Walk, count: number): boolean {
    const { isFailedRead, note, onCompared } = this.#parts;
    for (let i = 0; i < count; i++) {
      let next: IteratorResult<[Buffer, Buffer, number]>;
      try {
        next = walk.rows.next();
      } catch (error) {
        if (!isFailedRead(error)) throw error;
        walk.rows.return();
        return false;
      }
      const expected = walk.expected[walk.at];
      if (next.done === true) {
        note(walk.what, walk.at);
        if (expected === undefined) return false;
        throw new SimFailure(`${walk.what}: ends after ${walk.at} of ${walk.expected.length}`);
      }
      const [key, value, diff] = next.value;
      const isSame =
        expected !== undefined &&
        key.equals(expected.key) &&
        value.equals(expected.value) &&
        diff === expected.count;
      if (!isSame) {
        const place = `${key.toString('hex', 0, 12)} ${value.toString('hex', 0, 8)}`;
        const wanted =
          expected === undefined
            ? 'nothing'
            : `${expected.key.toString('hex', 0, 12)} ${expected.value.toString('hex', 0, 8)} ${expected.count}`;
        throw new SimFailure(`${walk.what}: row ${walk.at} is ${place} ${diff}, not ${wanted}`);
      }
      walk.at++;
      onCompared();
    }
    return true;
  }

  /** Everything there is at T, there and back. */
  checkAll(id: number, options: ReadOptions, T: number): void {
    const { model } = this.#parts;
    const what = `all pairs of ${id} at ${T}`;
    const expected = model.pairsAt(id, T);
    this.#pull({ rows: this.handle(id).entries(options), expected, what, at: 0 }, Infinity);
    const rows = this.handle(id).entries({ ...options, reverse: true });
    const back = expected.toReversed();
    this.#pull({ rows, expected: back, what: `${what} reversed`, at: 0 }, Infinity);
  }

  letGo(): void {
    for (const { rows } of this.#walks.splice(0)) rows.return();
  }
}
