/**
 * The net difference of a collection between two offsets: rows that went with diff -1, rows that came with
 * diff 1, in key order; of a multiset what their counts differ by, then by value. From the log, when few transactions lie between: the keys that they name, each
 * looked up at both ends. Else from the two states, walked side by side. Holds both ends while it runs,
 * and no more in memory than a batch or the keys of a bounded stretch of log. On the caller's thread.
 */
import { compareAt, compareBytes, equalAt } from '../core/base/bytes.ts';
import { MiB } from '../core/base/limits.ts';
import type { Client } from './client.ts';
import { decodeLent } from './encodings.ts';
import type { Codec } from './encodings.ts';
import type { Update } from './feed-changes.ts';
import { FeedHold } from './feed-hold.ts';
import type { KeyBounds } from './key-range.ts';
import type { ByteRange } from './key-range.ts';
import { ROW_ABSENT, historyLost, notYet } from './reader.ts';
import type { Pair } from './pair-reader.ts';
import type { RowBatch } from './reader.ts';
import { StateWalk } from './state-walk.ts';

/** What part of the difference, and until when. */
export interface DiffOptions<K> extends KeyBounds<K> {
  /** Ends it with its reason. */
  readonly signal?: AbortSignal;
}

/** Of a state this many rows at once; the event loop has its turn in between. */
const ROWS_PER_BATCH = 512;
/** Keys of the log that are remembered; beyond, the states are walked. */
const KEY_BYTES_MAX: number = 8 * MiB;
/** The log is cheaper while it has so many times fewer transactions than the state has rows. */
const LOG_FACTOR = 8;
const LOG_TRANSACTIONS_MIN = 1_024;
const LOOK_UPS_AT_ONCE = 32;

export type DiffPlace = {
  readonly id: number;
  readonly kind: 'keyed' | 'multiset';
  readonly keys: Codec<unknown>;
  readonly values: Codec<unknown>;
  readonly range: ByteRange;
  readonly signal: AbortSignal | undefined;
};

type AnyUpdate = Update<unknown, unknown>;

export async function* diffOf(
  client: Client,
  place: DiffPlace,
  a: number,
  b: number,
): AsyncGenerator<AnyUpdate, undefined, undefined> {
  const { id, signal } = place;
  signal?.throwIfAborted();
  client.assertUsable();
  const low = Math.min(a, b);
  const high = Math.max(a, b);
  const upper = client.reader.visible();
  if (high >= upper) throw notYet(high, upper);
  // Before everything there was nothing: that needs no history.
  const hold = new FeedHold(client, low < 0 ? high : low, true);
  try {
    const { since, rows, log } = sizeOf(client, id);
    const oldest = low < 0 ? high : low;
    if (oldest >= 0 && since > oldest) throw historyLost(oldest, since);
    if (a === b) return undefined;
    const most = Math.max(LOG_TRANSACTIONS_MIN, rows / LOG_FACTOR);
    const isShort = low >= 0 && high - low <= most && log <= low + 1 && high < client.logged();
    const touched = isShort ? await keysBetween(client, place, low, high) : undefined;
    if (touched === undefined) yield* byStates(client, place, a, b);
    else yield* byKeys(client, place, a, b, touched);
  } finally {
    hold.release();
  }
  return undefined;
}

function sizeOf(client: Client, id: number): { since: number; rows: number; log: number } {
  const { reader } = client;
  reader.slot.enter();
  try {
    const view = reader.reloadView();
    const block = view.collection(id);
    let rows = 0;
    const runs = block === 0 ? 0 : view.runCount(block);
    for (let r = 0; r < runs; r++) {
      const run = view.run(block, r);
      for (let p = 0; p < view.partCount(run); p++) rows += view.rows(view.part(run, p));
    }
    const since = block === 0 ? 0 : view.sinceNext(block);
    return { since, rows, log: view.segments()[0]?.base ?? 0 };
  } finally {
    reader.leave();
  }
}

// ---------------------------------------------------------------- by the log

/** Keys that transactions (low, high] name, in order; undefined when they are too many, or not all named. */
async function keysBetween(
  client: Client,
  { id, range, signal }: DiffPlace,
  low: number,
  high: number,
): Promise<Buffer[] | undefined> {
  const hub = client.feeds;
  const keys = new Map<string, Buffer>();
  let bytes = 0;
  let next = low + 1;
  let log = hub.chunkInMemory(next);
  while (next <= high) {
    log ??= await hub.chunk(next, undefined);
    signal?.throwIfAborted();
    client.assertUsable();
    const changes = log.changesOf(id);
    if (changes?.hasRanges === true) return undefined;
    if (changes !== undefined) {
      bytes += changes.addKeys(next, high + 1, range, keys);
      if (bytes > KEY_BYTES_MAX) return undefined;
    }
    next = log.log.to;
    if (next > high) break;
    const { end } = log.log;
    log = hub.chunkInMemory(next) ?? (await hub.chunk(next, end));
  }
  return [...keys.values()].toSorted(compareBytes);
}

async function* byKeys(
  client: Client,
  place: DiffPlace,
  a: number,
  b: number,
  keys: readonly Buffer[],
): AsyncGenerator<AnyUpdate, undefined, undefined> {
  for (let at = 0; at < keys.length; at += LOOK_UPS_AT_ONCE) {
    place.signal?.throwIfAborted();
    client.assertUsable();
    const some = keys.slice(at, at + LOOK_UPS_AT_ONCE);
    const found = await Promise.all(
      some.map(async (key) => ({
        key,
        before: await valuesAt(client, place, key, a),
        after: await valuesAt(client, place, key, b),
      })),
    );
    for (const { key, before, after } of found) {
      for (const { value, diff } of netOf(place, before, after))
        yield update(place, key, value, diff);
    }
  }
  return undefined;
}

/** What `after` has more of, or less: by value, of a keyed row the old one first. */
function* netOf(
  { kind }: DiffPlace,
  before: readonly Pair[],
  after: readonly Pair[],
): Generator<Pair> {
  let b = 0;
  for (const { value, diff } of before) {
    if (kind === 'multiset') {
      while (b < after.length && compareBytes(after[b].value, value) < 0) yield after[b++];
    }
    if (b === after.length || compareBytes(after[b].value, value) !== 0) {
      yield { value, diff: -diff };
      continue;
    }
    const net = after[b].diff - diff;
    if (Number.isSafeInteger(net)) {
      if (net !== 0) yield { value, diff: net };
    } else {
      yield { value, diff: -diff };
      yield after[b];
    }
    b++;
  }
  while (b < after.length) yield after[b++];
}

/** The values of a key with their counts; of a keyed collection one at most. */
async function valuesAt(
  client: Client,
  { id, kind }: DiffPlace,
  key: Buffer,
  T: number,
): Promise<Pair[]> {
  const hold = (time: number): void => client.hold(time);
  const release = (time: number): void => client.release(time);
  // A time that lies between the ends is kept with them, if it is held while it is asked for.
  client.hold(T);
  try {
    if (kind === 'multiset') return await client.pairs.findLater(id, key, T, hold, release);
    const { outcome, value, start, end } = await client.reader.findLater(id, key, T, hold, release);
    if (outcome === ROW_ABSENT) return [];
    return [{ value: Buffer.from(value.subarray(start, end)), diff: 1 }];
  } finally {
    client.release(T);
  }
}

function update(place: DiffPlace, key: Buffer, value: Uint8Array, diff: number): AnyUpdate {
  return {
    key: decodeLent(place.keys, key, 0, key.length),
    value: decodeLent(place.values, value, 0, value.length),
    diff,
  };
}

// ---------------------------------------------------------------- by the states

async function* byStates(
  client: Client,
  place: DiffPlace,
  a: number,
  b: number,
): AsyncGenerator<AnyUpdate, undefined, undefined> {
  const before = new StateRows(client, place, a);
  const after = new StateRows(client, place, b);
  for (let rows = 0; ; rows++) {
    if (rows % ROWS_PER_BATCH === 0) {
      await turn();
      place.signal?.throwIfAborted();
      client.assertUsable();
    }
    const isLeft = before.load();
    const isRight = after.load();
    if (!isLeft && !isRight) return undefined;
    const order = !isRight ? -1 : !isLeft ? 1 : before.compare(after);
    const gone = order <= 0 ? before.count : 0;
    const come = order >= 0 ? after.count : 0;
    const net = come - gone;
    if (order === 0 && place.kind === 'multiset' && Number.isSafeInteger(net)) {
      if (net !== 0) yield after.update(place, net);
    } else if (order !== 0 || place.kind === 'multiset' || !before.isSame(after)) {
      if (gone !== 0) yield before.update(place, -gone);
      if (come !== 0) yield after.update(place, come);
    }
    if (order <= 0) before.next();
    if (order >= 0) after.next();
  }
}

/** The rows of a state, one after the other. */
class StateRows {
  readonly #walk: StateWalk;
  #batch: RowBatch | undefined;
  #at = 0;

  constructor(client: Client, place: DiffPlace, T: number) {
    this.#walk = new StateWalk(client, place, T, place.range);
  }

  /** True when there is a row. */
  load(): boolean {
    if (this.#batch !== undefined && this.#at < this.#batch.count) return true;
    this.#batch = this.#walk.next(ROWS_PER_BATCH);
    this.#at = 0;
    return this.#batch !== undefined;
  }

  next(): void {
    this.#at++;
  }

  /** How often the row is there. */
  get count(): number {
    return this.#walk.countOf(this.#batch!, this.#at);
  }

  /** By key, of a multiset then by value. */
  compare(other: StateRows): number {
    const { slab, start, middle, end } = this.#place();
    const they = other.#place();
    const length = middle - start;
    const order = compareAt(slab, start, length, they.slab, they.start, they.middle - they.start);
    if (order !== 0 || !this.#walk.isMultiset) return order;
    return compareAt(slab, middle, end - middle, they.slab, they.middle, they.end - they.middle);
  }

  isSame(other: StateRows): boolean {
    const { slab, middle, end } = this.#place();
    const they = other.#place();
    return equalAt(slab, middle, end - middle, they.slab, they.middle, they.end - they.middle);
  }

  update({ keys, values }: DiffPlace, diff: number): AnyUpdate {
    const { slab, start, middle, end } = this.#place();
    return {
      key: decodeLent(keys, slab, start, middle),
      value: decodeLent(values, slab, middle, end),
      diff,
    };
  }

  #place(): { slab: Buffer; start: number; middle: number; end: number } {
    const { slab, places } = this.#batch!;
    const at = this.#at * 3;
    return { slab, start: places[at], middle: places[at + 1], end: places[at + 2] };
  }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
