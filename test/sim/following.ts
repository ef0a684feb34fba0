/**
 * The feeds of one client: opened at any place that readers may name, pulled one item at a time, each item
 * compared with what the model says comes next: every transaction that changed what is followed, once,
 * in order, with the rows that went and came. Used by caller.ts.
 */
import type { Prng } from '../../core/base/prng.ts';
import type { Client } from '../../actors/client.ts';
import type { Collection } from '../../actors/collection.ts';
import type { Multiset } from '../../actors/multiset.ts';
import { Feed } from '../../actors/feed.ts';
import type { FeedItem } from '../../actors/feed.ts';
import { startFeed } from '../../actors/feed-options.ts';
import type { Model, ModelCollection, ModelOp } from './model.ts';
import { SimFailure } from './world.ts';

type Any = Collection<Buffer, Buffer> | Multiset<Buffer, Buffer>;

type AnyUpdate = {
  readonly key: Buffer;
  readonly value: Buffer | undefined;
  readonly diff: number;
  readonly collection?: unknown;
};

type Open = {
  readonly feed: Feed<AnyUpdate>;
  readonly ids: readonly number[];
  readonly old: boolean;
  readonly lower: Buffer | undefined;
  readonly upper: Buffer | undefined;
  readonly what: string;
  /** Everything up to here has been delivered. */
  place: number;
  /** The state at the beginning: rows that are still to come; undefined once all are there. */
  state: string[] | undefined;
  /** Of a transaction that comes in several items. */
  readonly pieces: string[];
  isPulled: boolean;
  isOver: boolean;
};

const FEEDS_MAX = 4;
/** Items taken in one go. */
const PULLS_MAX = 12;

export type FollowingParts = {
  readonly client: Client;
  readonly prng: Prng;
  readonly model: Model;
  readonly handleOf: (collection: ModelCollection) => Any;
  /** Without old rows a multiset's removed range is told by its bounds alone, which says nothing of counts. */
  readonly mayRemoveRanges: boolean;
  /** An error that may end a feed at any time. */
  readonly mayEnd: (error: unknown) => boolean;
  readonly isLost: (error: unknown) => boolean;
  readonly onBroken: (error: unknown) => void;
  readonly note: (what: string, n: number) => void;
};

export class Following {
  readonly #parts: FollowingParts;
  #feeds: Open[] = [];
  /** Items that were as they should be. */
  items = 0;

  constructor(parts: FollowingParts) {
    this.#parts = parts;
  }

  /** True while a feed may wait for a turn of the event loop. */
  get wantsTurn(): boolean {
    // Also one that catches up gives a turn now and then.
    return this.#feeds.some(({ isPulled }) => isPulled);
  }

  /** Opens a feed, goes on with one, or leaves one. */
  act(live: readonly ModelCollection[], visible: number): void {
    const { prng } = this.#parts;
    this.#feeds = this.#feeds.filter(({ isOver }) => !isOver);
    if (this.#feeds.length > 0 && (this.#feeds.length >= FEEDS_MAX || prng.chance(0.8))) {
      const open = prng.pick(this.#feeds);
      if (prng.chance(0.04)) this.#leave(open);
      else if (!open.isPulled) this.#pull(open, prng.between(1, PULLS_MAX));
      return;
    }
    if (live.length > 0) this.#open(live, visible);
  }

  #open(live: readonly ModelCollection[], visible: number): void {
    const { client, prng, model, handleOf, note } = this.#parts;
    const followed = live.filter(() => prng.chance(0.4));
    if (followed.length === 0) followed.push(prng.pick(live));
    const ids = followed.map(({ id }) => id);
    const isOfPairs = followed.some(({ slot }) => slot.values !== undefined);
    const old = prng.chance(0.8) || (isOfPairs && this.#parts.mayRemoveRanges);
    const back = Math.min(visible, prng.pick([0, 1, 5, 50, visible]));
    const isSnapshot = prng.chance(0.15);
    const after = visible - 1 - (back === 0 ? 0 : prng.below(back + 1));
    const isNow = !isSnapshot && prng.chance(0.2);
    const options = isSnapshot ? { from: 'snapshot' as const } : isNow ? {} : { after };
    const place = isSnapshot || isNow ? visible - 1 : after;
    const what = `feed of ${ids.join()} after ${place}${isSnapshot ? ' with the state' : ''}`;
    let lower: Buffer | undefined;
    let upper: Buffer | undefined;
    let feed: Feed<AnyUpdate>;
    try {
      const [only] = followed;
      if (ids.length === 1 && prng.chance(0.7)) {
        if (prng.chance(0.3)) lower = prng.pick(only.slot.keys);
        if (prng.chance(0.3)) upper = prng.pick(only.slot.keys);
        feed = handleOf(only).changes({
          ...options,
          old,
          ...(lower === undefined ? {} : { gte: lower }),
          ...(upper === undefined ? {} : { lt: upper }),
        });
      } else {
        const start = startFeed(client, ids, { ...options, old });
        feed = new Feed(
          client,
          followed.map((one) => ({
            collection: handleOf(one),
            range: undefined,
            isNamed: true,
          })),
          start,
        );
      }
    } catch (error) {
      if (this.#parts.mayEnd(error)) return;
      // What was before a collection nobody has promised to keep for it.
      const bound = Math.max(
        ...followed.map(({ id, createdAt }) =>
          Math.max(createdAt, model.mayLoseBelow(id, visible)),
        ),
      );
      if (this.#parts.isLost(error) && Math.max(0, place) < bound) return;
      throw new SimFailure(`${what} is refused, promised from ${bound} on`, { cause: error });
    }
    note(`open ${what}`, 0);
    const open: Open = {
      feed,
      ids,
      old,
      lower,
      upper,
      what,
      place,
      state: undefined,
      pieces: [],
      isPulled: false,
      isOver: false,
    };
    if (isSnapshot) {
      open.state = followed.flatMap(({ id, slot }) =>
        slot.values === undefined
          ? model
              .rowsAt(id, place, lower, upper)
              .map(({ key, value }) => this.#say(id, key, value, 1))
          : model
              .pairsAt(id, place, undefined, lower, upper)
              .map(({ key, value, count }) => this.#say(id, key, value, count)),
      );
    }
    this.#feeds.push(open);
  }

  #leave(open: Open): void {
    open.isOver = true;
    void open.feed.return();
  }

  /** Asks for the next item, and when it is there for more. */
  #pull(open: Open, count: number): void {
    const { onBroken, mayEnd, note } = this.#parts;
    open.isPulled = true;
    open.feed
      .next()
      .then(
        (next) => {
          open.isPulled = false;
          if (next.done === true) {
            if (!open.isOver) throw new SimFailure(`${open.what} is done`);
            return;
          }
          if (open.isOver) return;
          this.#check(open, next.value);
          this.items++;
          note(open.what, next.value.offset);
          if (count > 1) this.#pull(open, count - 1);
        },
        (error: unknown) => {
          open.isPulled = false;
          const wasOver = open.isOver;
          open.isOver = true;
          if (wasOver || mayEnd(error)) return;
          throw new SimFailure(`${open.what} has failed at ${open.place}`, { cause: error });
        },
      )
      .catch(onBroken);
  }

  #check(open: Open, item: FeedItem<AnyUpdate>): void {
    if (item.kind === 'snapshot') {
      this.#checkState(open, item);
      return;
    }
    if (item.kind !== 'transaction' || open.state !== undefined) {
      throw new SimFailure(`${open.what}: ${item.kind} where it should not be`);
    }
    if (item.more === true) {
      if (item.offset >= (this.#next(open)?.offset ?? 0)) {
        throw new SimFailure(`${open.what}: a piece says ${item.offset}, where it is not complete`);
      }
      open.pieces.push(...this.#told(open, item.updates));
      return;
    }
    let expected = this.#next(open);
    // A range without rows may be told of, or not.
    while (expected?.isOptional === true && expected.offset < item.offset) {
      open.place = expected.offset;
      expected = this.#next(open);
    }
    if (expected === undefined) {
      throw new SimFailure(`${open.what}: ${item.offset} after ${open.place}, where nothing is`);
    }
    if (item.offset !== expected.offset) {
      throw new SimFailure(
        `${open.what}: ${item.offset} after ${open.place}, not ${expected.offset}`,
      );
    }
    const told = [...open.pieces.splice(0), ...this.#told(open, item.updates)];
    this.#compare(open, `${item.offset}`, told, expected.updates);
    open.place = item.offset;
  }

  #checkState(open: Open, item: FeedItem<AnyUpdate> & { kind: 'snapshot' }): void {
    const { state } = open;
    if (state === undefined) throw new SimFailure(`${open.what}: the state a second time`);
    const told = this.#told(open, item.updates);
    this.#compare(open, 'the state', told, state.splice(0, told.length));
    if (item.asOf !== open.place) {
      throw new SimFailure(`${open.what}: the state of ${item.asOf}`);
    }
    if (item.last !== (state.length === 0) && item.last) {
      throw new SimFailure(`${open.what}: ${state.length} rows of the state are missing`);
    }
    if (item.last) open.state = undefined;
  }

  #compare(open: Open, where: string, found: readonly string[], expected: readonly string[]): void {
    if (found.toSorted().join('\n') === expected.toSorted().join('\n')) return;
    const brief = (list: readonly string[]): string => list.slice(0, 6).join('; ');
    throw new SimFailure(
      `${open.what}, at ${where}: ${found.length} updates, ${brief(found)}; ` +
        `not ${expected.length}, ${brief(expected)}`,
    );
  }

  #told(open: Open, updates: readonly AnyUpdate[]): string[] {
    return updates.map(({ key, value, diff, collection }) => {
      const id = (collection as Any | undefined)?.id ?? open.ids[0];
      return this.#say(id, key, value, diff);
    });
  }

  #say(id: number, key: Buffer, value: Buffer | undefined, diff: number): string {
    const text =
      value === undefined ? 'nothing' : `${value.toString('hex', 0, 16)} ${value.length}`;
    return `${id}/${key.toString('hex', 0, 40)} ${key.length} ${text} ${diff}`;
  }

  /** The next transaction that the feed must tell; undefined: there is none yet. */
  #next(open: Open): { offset: number; updates: string[]; isOptional: boolean } | undefined {
    const { model } = this.#parts;
    for (let offset = open.place + 1; offset < model.upper; offset++) {
      const updates = this.#updatesOf(open, offset);
      const hasRange = model.transactions[offset].ops.some(
        ({ id, range }) => range !== undefined && open.ids.includes(id),
      );
      if (updates.length > 0) return { offset, updates, isOptional: false };
      if (hasRange && !open.old) return { offset, updates, isOptional: true };
    }
    return undefined;
  }

  #updatesOf(open: Open, offset: number): string[] {
    const { model } = this.#parts;
    const { ids, old, lower, upper } = open;
    const last = new Map<string, ModelOp>();
    const pairs = new Map<number, Set<number>>();
    for (const op of model.transactions[offset].ops) {
      if (!ids.includes(op.id)) continue;
      if (model.collections.get(op.id)!.slot.values !== undefined) this.#touchPairs(op, pairs);
      else if (op.range === undefined) last.set(`${op.id}/${op.key}`, op);
      else this.#removeRange(open, offset, op, last);
    }
    const updates: string[] = [];
    for (const { id, key: index, value } of last.values()) {
      const key = model.collections.get(id)!.slot.keys[index];
      if (lower !== undefined && Buffer.compare(key, lower) < 0) continue;
      if (upper !== undefined && Buffer.compare(key, upper) >= 0) continue;
      if (!old) {
        updates.push(this.#say(id, key, value, value === undefined ? -1 : 1));
        continue;
      }
      const before = model.versionAt(id, index, offset - 1)?.value;
      if (before === undefined ? value === undefined : value?.equals(before)) continue;
      if (before !== undefined) updates.push(this.#say(id, key, before, -1));
      if (value !== undefined) updates.push(this.#say(id, key, value, 1));
    }
    for (const [id, touched] of pairs) {
      const { keys, values = [] } = model.collections.get(id)!.slot;
      for (const pair of touched) {
        const key = keys[Math.floor(pair / values.length)];
        if (lower !== undefined && Buffer.compare(key, lower) < 0) continue;
        if (upper !== undefined && Buffer.compare(key, upper) >= 0) continue;
        const diff = model.sumAt(id, pair, offset) - model.sumAt(id, pair, offset - 1);
        if (diff !== 0) updates.push(this.#say(id, key, values[pair % values.length], diff));
      }
    }
    return updates;
  }

  /** The pairs that an operation on a multiset may change. */
  #touchPairs({ id, key, range }: ModelOp, pairs: Map<number, Set<number>>): void {
    const { keys, values = [] } = this.#parts.model.collections.get(id)!.slot;
    let touched = pairs.get(id);
    if (touched === undefined) pairs.set(id, (touched = new Set()));
    if (range === undefined) {
      touched.add(key);
      return;
    }
    for (let k = 0; k < keys.length; k++) {
      if (range.lower !== undefined && Buffer.compare(keys[k], range.lower) < 0) continue;
      if (range.upper !== undefined && Buffer.compare(keys[k], range.upper) >= 0) break;
      for (let v = 0; v < values.length; v++) touched.add(k * values.length + v);
    }
  }

  /** What the transaction has written in the range before is removed, and told with the rows that were there. */
  #removeRange(open: Open, offset: number, op: ModelOp, last: Map<string, ModelOp>): void {
    const { model } = this.#parts;
    const { id } = op;
    const { keys } = model.collections.get(id)!.slot;
    for (let key = 0; key < keys.length; key++) {
      const { lower, upper } = op.range!;
      if (lower !== undefined && Buffer.compare(keys[key], lower) < 0) continue;
      if (upper !== undefined && Buffer.compare(keys[key], upper) >= 0) break;
      const name = `${id}/${key}`;
      const wasThere = model.versionAt(id, key, offset - 1)?.value !== undefined;
      if (last.has(name) || (open.old && wasThere)) last.set(name, { id, key, value: undefined });
    }
  }

  /** Nothing is left to do for anybody: who waits has nothing to come. */
  checkAsleep(visible: number): void {
    for (const open of this.#feeds) {
      if (!open.isPulled || open.isOver) continue;
      const next =
        open.state === undefined ? this.#next(open) : { offset: open.place, isOptional: false };
      if (next === undefined || next.isOptional || next.offset >= visible) continue;
      throw new SimFailure(`${open.what} sleeps at ${open.place}, and ${next.offset} is there`);
    }
  }

  /** Leaves all. */
  letGo(): void {
    for (const open of this.#feeds) if (!open.isOver) this.#leave(open);
  }
}
