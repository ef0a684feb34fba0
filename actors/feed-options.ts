/**
 * Where a feed begins and how: options checked, the place found and held before anything else happens.
 * Called where feeds are made, on the caller's thread.
 */
import type { Client } from './client.ts';
import { Cursor, checkMaxLag } from './cursor.ts';
import type { MaxLag } from './cursor-row.ts';
import { FeedHold } from './feed-hold.ts';
import type { KeyBounds } from './key-range.ts';
import { checkSignal, show } from './options.ts';
import { historyLost, notYet } from './reader.ts';

/** How a feed goes, whatever it follows. */
export interface FollowOptions {
  /** Everything after this offset: what the last feed has delivered. -1: from the beginning. Not with `from`. */
  readonly after?: number;
  /**
   * From this offset on, itself included; 'now' (the default): what is committed after the call;
   * 'snapshot': the state at the call, then everything after it.
   */
  readonly from?: number | 'now' | 'snapshot';
  /** False: new rows only. Old rows are not looked up, and a deletion is its key with diff -1 and no value. Default true. */
  readonly old?: boolean;
  /** Milliseconds without an item after which one of kind 'progress' says how far the feed has come. */
  readonly progress?: number;
  /** Ends the feed with its reason. */
  readonly signal?: AbortSignal;
  /** True: waiting for more does not keep the process alive. */
  readonly unref?: boolean;
  /**
   * Keeps the feed's place in the store under this name, 1 to 255 UTF-8 bytes: `after` and `from` say where
   * it begins the first time, later feeds go on after what was confirmed with `ack`. From there on history
   * and log are kept, whether a feed runs or not.
   */
  readonly cursor?: string;
  /** How far the cursor may lag and still keep them; beyond, TIDEMARK_HISTORY_LOST once they are gone. */
  readonly maxLag?: MaxLag;
}

/** The same, of one collection: bounds narrow it to a range of keys. */
export interface ChangesOptions<K> extends FollowOptions, KeyBounds<K> {}

export const FOLLOW_OPTIONS: readonly string[] = [
  'after',
  'from',
  'old',
  'progress',
  'signal',
  'unref',
  'cursor',
  'maxLag',
];
export const BOUND_OPTIONS: readonly string[] = ['gte', 'gt', 'lte', 'lt', 'prefix'];

/** A feed's beginning: its place is held. */
export type FeedStart = {
  /** Everything up to here is not delivered, or is the state at the beginning. */
  readonly place: number;
  readonly isSnapshot: boolean;
  readonly old: boolean;
  /** 0: never. */
  readonly progressMs: number;
  readonly signal: AbortSignal | undefined;
  readonly ref: boolean;
  readonly hold: FeedHold;
  readonly cursor: Cursor | undefined;
};

/** Checks the options and holds the place they name for all of the collections. */
export function startFeed(
  client: Client,
  collections: readonly number[],
  options: FollowOptions,
): FeedStart {
  const { old = true, progress = 0, unref = false } = options;
  if (typeof old !== 'boolean') throw new TypeError('old is true or false');
  if (typeof unref !== 'boolean') throw new TypeError('unref is true or false');
  if (progress !== 0 && !(Number.isFinite(progress) && progress >= 1 && progress <= 0x7fff_ffff)) {
    throw new TypeError('progress is a count of milliseconds from 1');
  }
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  const after = placeOf(options);
  const maxLag = checkMaxLag(options.maxLag);
  client.assertUsable();
  const given = { progressMs: progress, signal, ref: !unref, old };
  const isSnapshot = options.from === 'snapshot';
  if (options.cursor === undefined) {
    if (options.maxLag !== undefined) throw new TypeError('maxLag is that of a cursor');
    const held = holdPlace(client, collections, after, old || isSnapshot);
    return { ...given, ...held, isSnapshot, cursor: undefined };
  }
  const cursor = new Cursor(client, options.cursor, collections, old, maxLag);
  try {
    const { stored } = cursor;
    if (stored !== undefined && !stored.pending) {
      const held = holdAfter(client, collections, stored.after, old, stored.old);
      return { ...given, ...held, isSnapshot: false, cursor };
    }
    const isAnew = isSnapshot || stored !== undefined;
    const held = holdPlace(client, collections, isAnew ? undefined : after, old || isAnew);
    return { ...given, ...held, isSnapshot: isAnew, cursor };
  } catch (error) {
    cursor.release();
    throw error;
  }
}

function holdPlace(
  client: Client,
  collections: readonly number[],
  after: number | undefined,
  history: boolean,
): Held {
  if (after === undefined) return holdNewest(client, collections, history);
  return holdAfter(client, collections, after, history, false);
}

/** The offset after which a feed begins; undefined: the newest. */
function placeOf({ after, from }: FollowOptions): number | undefined {
  if (after !== undefined) {
    if (from !== undefined) throw new TypeError('give after or from');
    if (Number.isSafeInteger(after) && after >= -1) return after;
    throw new TypeError(`after is an offset, or -1 for the beginning, not ${show(after)}`);
  }
  if (from === undefined || from === 'now' || from === 'snapshot') return undefined;
  if (typeof from === 'number' && Number.isSafeInteger(from) && from >= 0) return from - 1;
  throw new TypeError(`from is an offset, 'now' or 'snapshot', not ${show(from)}`);
}

type Held = { readonly place: number; readonly hold: FeedHold };

function holdNewest(client: Client, collections: readonly number[], history: boolean): Held {
  for (;;) {
    const place = client.reader.visible() - 1;
    const hold = new FeedHold(client, place, history);
    const { since } = oldestOf(client, collections, false);
    // History moved on between the choice of the place and its hold: a newer one, then.
    if (!history || since <= Math.max(0, place)) return { place, hold };
    hold.release();
  }
}

function holdAfter(
  client: Client,
  collections: readonly number[],
  place: number,
  history: boolean,
  isKept: boolean,
): Held {
  const upper = client.reader.visible();
  if (place >= upper) throw notYet(place, upper);
  const hold = new FeedHold(client, place, history);
  const { since, log } = oldestOf(client, collections, isKept);
  if (history && since > Math.max(0, place)) {
    hold.release();
    throw historyLost(place, since);
  }
  if (log > place + 1) {
    hold.release();
    throw historyLost(place, log - 1);
  }
  return { place, hold };
}

/**
 * From where on all of them may be read as of, and from where on the log is there. Looked at after the
 * hold. `isKept`: what is there now was kept for who asks, and stays.
 */
function oldestOf(
  client: Client,
  collections: readonly number[],
  isKept: boolean,
): { since: number; log: number } {
  const { reader } = client;
  reader.slot.enter();
  try {
    const view = reader.reloadView();
    let since = 0;
    for (const collection of collections) {
      const block = view.collection(collection);
      if (block === 0) continue;
      since = Math.max(since, isKept ? view.since(block) : view.sinceNext(block));
    }
    // Those that are about to go are no longer there for who holds only now.
    const start = client.context.control.logStart();
    const segments = view.segments();
    const first = segments.find(({ seq }) => seq >= start);
    const log = segments.length === 0 ? 0 : (first?.base ?? reader.visible());
    return { since, log };
  } finally {
    reader.leave();
  }
}
