/**
 * A feed as callers see it: every transaction that touched its collections or range, once, in order,
 * without gaps, from a place on; before them, if asked for, the state at that place. A feed holds
 * history and log from its place on, never memory that grows and never a writer; what it hands out was
 * read when it was asked for. Public; lives on its client's thread.
 */
import { KiB, MiB } from '../core/base/limits.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import type { FollowPlace } from '../core/log/follower.ts';
import type { Client } from './client.ts';
import type { BaseCollection } from './base-collection.ts';
import type { Cursor } from './cursor.ts';
import { decodeLent } from './encodings.ts';
import { pairName } from './feed-changes.ts';
import type { AddedRows, ChunkChanges, Update } from './feed-changes.ts';
import type { HubChunk, Waiting } from './feed-hub.ts';
import { FeedHold, forgottenFeeds } from './feed-hold.ts';
import type { FeedStart } from './feed-options.ts';
import type { ByteRange } from './key-range.ts';
import { OldWindow } from './old-window.ts';
import { checkFields } from './options.ts';
import { StateWalk } from './state-walk.ts';
import type { WriteSet } from './write-set.ts';

/** Everything that one transaction changed in what is followed. */
export type TransactionItem<U> = {
  readonly kind: 'transaction';
  /** Everything up to and including it has been delivered: resume with `after: offset`. */
  readonly offset: number;
  /** Old rows with diff -1, new rows with diff 1, of a multiset the sums; an old row comes before the new one of its key. */
  readonly updates: readonly U[];
  /**
   * True: the transaction removed a range of more rows than fit an item, and goes on in the next one.
   * `offset` is then the one before it: what is not complete cannot be gone on from.
   */
  readonly more?: true;
  /** With `old: false`: ranges of encoded keys whose rows were removed before `updates`; their rows are not told. */
  readonly ranges?: readonly RemovedRange[];
};

/** Keys from `lower`, included, to below `upper`; without one, to the end. */
export type RemovedRange = {
  readonly collection: string;
  readonly lower: Uint8Array;
  readonly upper?: Uint8Array;
};

/** A piece of the state that a feed begins with; rows have diff 1 (of a multiset their count). */
export type SnapshotItem<U> = {
  readonly kind: 'snapshot';
  /** As that of a transaction, on the last piece; -1 before: what has come so far cannot be gone on from. */
  readonly offset: number;
  /** The state is that at this offset, itself included; -1 of an empty store. */
  readonly asOf: number;
  readonly updates: readonly U[];
  /** The state is complete; transactions follow. */
  readonly last: boolean;
};

/** Nothing was delivered for a while: how far the feed has come. */
export type ProgressItem<U> = {
  readonly kind: 'progress';
  readonly offset: number;
  /** None. */
  readonly updates: readonly U[];
};

export type FeedItem<U> = TransactionItem<U> | SnapshotItem<U> | ProgressItem<U>;

export interface BatchOptions {
  /** A batch ends with the item that reaches so many bytes of encoded rows; default 1 MiB. */
  readonly maxBytes?: number;
}

const BATCH_OPTIONS: ReadonlySet<string> = new Set(['maxBytes']);
const BATCH_BYTES_DEFAULT: number = 1 * MiB;

/** One of the collections that a feed follows. */
export type FeedTarget = {
  readonly collection: BaseCollection<any, any>;
  readonly range: ByteRange | undefined;
  /** Updates say which collection they are of. */
  readonly isNamed: boolean;
};

/** Work in memory, that of who takes the items included, after which the event loop has a turn. */
const TURN_MS_MAX = 4;
/** Changes that are made into items at once. */
const CHANGES_PER_SLICE = 256;
const SNAPSHOT_ROWS = 1_024;
/** Bytes at which a piece of a snapshot is closed; one batch of rows more fits below the promised 1 MiB. */
const SNAPSHOT_PIECE_BYTES: number = 256 * KiB;

const WHOLE: ByteRange = { lower: new Uint8Array(0), upper: new Uint8Array(0), upperOpen: true };
const DONE: IteratorResult<never, undefined> = { done: true, value: undefined };

type AnyUpdate = Update<unknown, unknown>;

export class Feed<U> implements AsyncIterableIterator<FeedItem<U>, undefined>, Waiting {
  /** @internal */
  readonly ref: boolean;
  readonly #client: Client;
  readonly #targets: readonly FeedTarget[];
  readonly #old: boolean;
  readonly #progressMs: number;
  readonly #hold: FeedHold;
  /** Old rows that are looked up ahead of it. */
  readonly #window: OldWindow;
  readonly #cursor: Cursor | undefined;
  /** The cursor is in the store, and what is not confirmed is kept because of it. */
  #isRegistered = false;
  /** The feed began with a state that is not confirmed. */
  #isPending: boolean;
  readonly #signal: AbortSignal | undefined;
  readonly #onAbort: () => void;
  /** Below it all is made into items, or was none of this feed's. */
  #next: number;
  /** Where the record of `#next` stands, if that is known. */
  #place: FollowPlace | undefined;
  /** While the state at `#hold` is delivered: the collection that is next, and the way through it. */
  #snapshot: Snapshotting | undefined;
  /** While rows of a removed range are delivered. */
  #removal: Removal | undefined;
  #ready: FeedItem<U>[] = [];
  #readyBytes: number[] = [];
  #at = 0;
  #delivered: number;
  /** When the event loop had its last turn on the way of this feed. */
  #turnAtMs = 0;
  /** Collections came or went below `#next`. */
  #isCatalogTouched = false;
  #lastItemAtMs: number;
  #pulls = 0;
  #lastPull: Promise<unknown> = Promise.resolve();
  #woken: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #ended = false;
  #failure: unknown;

  /** @internal */
  constructor(client: Client, targets: readonly FeedTarget[], start: FeedStart) {
    this.#client = client;
    this.#targets = targets;
    this.#old = start.old;
    this.#progressMs = start.progressMs;
    this.#signal = start.signal;
    this.#next = start.place + 1;
    this.#delivered = start.isSnapshot ? -1 : start.place;
    this.#hold = start.hold;
    this.#cursor = start.cursor;
    this.#isPending = start.isSnapshot;
    this.ref = start.ref;
    this.#snapshot = start.isSnapshot ? { target: 0, walk: undefined } : undefined;
    this.#lastItemAtMs = client.context.clock.ticksMs();
    this.#onAbort = () => this.#end(this.#signal!.reason);
    this.#signal?.addEventListener('abort', this.#onAbort, { once: true });
    client.feeds.running++;
    const { hold, cursor } = start;
    const window = new OldWindow(client.feeds);
    this.#window = window;
    const release = (): void => {
      hold.release();
      cursor?.release();
      window.clear();
    };
    forgottenFeeds.register(this, { release }, hold);
  }

  /** Everything up to and including this offset has been handed out; -1: nothing that could be gone on from. */
  get offset(): number {
    return this.#delivered;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** The next item, waiting for it. Rejects once with what ended the feed; then it is done. */
  next(): Promise<IteratorResult<FeedItem<U>, undefined>> {
    const isOver = this.#client.feeds.failure !== undefined;
    if (this.#pulls === 0 && this.#at < this.#ready.length && !isOver) {
      return Promise.resolve({ done: false, value: this.#shift() });
    }
    return this.#inTurn(async () =>
      (await this.#pull()) ? { done: false, value: this.#shift() } : DONE,
    );
  }

  /**
   * Confirms everything up to `offset`, which was handed out: with a cursor the store keeps that place, and
   * resolves when a crash does not take it back (in a buffered engine: when it is written). Confirming less
   * than before, or without a cursor, changes nothing.
   */
  async ack(offset: number): Promise<void> {
    this.#assertHandedOut(offset);
    // A state that is not complete has no place to go on from.
    if (this.#cursor === undefined || offset < 0) return;
    const acked = this.#cursor.ack(offset, this.#isPending);
    this.#isPending = false;
    await acked;
  }

  /** @internal As `ack`, inside a transaction; what it returns is to be called once that is committed. */
  ackInto(client: Client, set: WriteSet, offset: number): (() => void) | undefined {
    if (client !== this.#client) throw new TypeError("this is another engine's feed");
    if (this.#cursor === undefined) throw new TypeError('the feed has no cursor');
    this.#assertHandedOut(offset);
    if (offset < 0) return undefined;
    const acked = this.#cursor.putInto(set, offset, this.#isPending);
    return () => {
      this.#isPending = false;
      acked?.();
    };
  }

  #assertHandedOut(offset: unknown): void {
    if (typeof offset !== 'number' || !Number.isSafeInteger(offset) || offset < -1) {
      throw new TypeError(`an offset is an integer from 0, not ${String(offset)}`);
    }
    if (offset <= this.#delivered) return;
    throw new TypeError(`offset ${offset} was not handed out; the last one was ${this.#delivered}`);
  }

  /** Ends the feed and lets go of what it holds; leaving a loop does so too. */
  return(): Promise<IteratorResult<FeedItem<U>, undefined>> {
    this.#end(undefined);
    return Promise.resolve(DONE);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  /** The same items, as many at once as are there, up to a size. Walk the feed or its batches, not both. */
  batches(options?: BatchOptions): AsyncIterableIterator<FeedItem<U>[], undefined> {
    if (options !== undefined) checkFields(options, BATCH_OPTIONS, 'batch option');
    const { maxBytes = BATCH_BYTES_DEFAULT } = options ?? {};
    if (!Number.isSafeInteger(maxBytes) || maxBytes < 1) {
      throw new TypeError('maxBytes is a count of bytes from 1');
    }
    const batches: AsyncIterableIterator<FeedItem<U>[], undefined> = {
      next: () =>
        this.#inTurn(async () =>
          (await this.#pull()) ? { done: false, value: this.#shiftMany(maxBytes) } : DONE,
        ),
      return: async () => {
        await this.return();
        return DONE;
      },
      [Symbol.asyncIterator]: () => batches,
    };
    return batches;
  }

  // ---------------------------------------------------------------- handing out

  /** One pull at a time, in the order in which they were asked for. */
  #inTurn<T>(run: () => Promise<T>): Promise<T> {
    this.#pulls++;
    const pull = this.#lastPull.then(run).finally(() => this.#pulls--);
    this.#lastPull = pull.catch(() => {});
    return pull;
  }

  #shift(): FeedItem<U> {
    const item = this.#ready[this.#at++];
    this.#client.feeds.counts.items++;
    this.#delivered = item.offset;
    this.#moveHold();
    return item;
  }

  #shiftMany(maxBytes: number): FeedItem<U>[] {
    let bytes = 0;
    let to = this.#at;
    while (to < this.#ready.length && bytes < maxBytes) bytes += this.#readyBytes[to++];
    let items = this.#ready;
    if (this.#at === 0 && to === items.length) this.#ready = [];
    else {
      items = items.slice(this.#at, to);
      this.#at = to;
    }
    this.#client.feeds.counts.items += items.length;
    this.#delivered = items[items.length - 1].offset;
    this.#moveHold();
    return items;
  }

  /** What is handed out is needed no more, and what is ready was read. */
  #moveHold(): void {
    if (this.#at === this.#ready.length && this.#snapshot === undefined) {
      this.#hold.move(this.#next - 1);
    }
  }

  /** Updates are of the targets' types, which the faces of collections and engine made into U. */
  #push(item: FeedItem<AnyUpdate>, bytes: number): void {
    this.#ready.push(item as FeedItem<unknown> as FeedItem<U>);
    this.#readyBytes.push(bytes);
  }

  /** True when an item is ready; false when the feed is done. */
  async #pull(): Promise<boolean> {
    const over = this.#client.feeds.failure;
    if (over !== undefined) this.#end(over);
    while (this.#at >= this.#ready.length) {
      if (this.#ended) {
        const failure = this.#failure;
        this.#failure = undefined;
        if (failure !== undefined) throw failure;
        return false;
      }
      this.#ready = [];
      this.#readyBytes = [];
      this.#at = 0;
      try {
        this.#client.assertUsable();
        await this.#fill();
      } catch (error) {
        this.#end(error);
      }
      if (this.#ready.length > 0) this.#lastItemAtMs = this.#client.context.clock.ticksMs();
    }
    return true;
  }

  #end(failure: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#failure = failure;
    this.#ready = [];
    this.#readyBytes = [];
    this.#at = 0;
    this.#client.feeds.running--;
    this.#signal?.removeEventListener('abort', this.#onAbort);
    forgottenFeeds.unregister(this.#hold);
    this.#hold.release();
    this.#cursor?.release();
    this.#window.clear();
    this.#client.feeds.forget(this);
    this.wake(undefined);
  }

  // ---------------------------------------------------------------- waiting

  /** @internal */
  wake(failure: unknown): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (failure !== undefined) this.#end(failure);
    const woken = this.#woken;
    this.#woken = undefined;
    woken?.();
  }

  /** Resolves when there may be more, when progress is due, or when the feed has ended. */
  #wait(): Promise<void> {
    const hub = this.#client.feeds;
    return new Promise((resolve) => {
      this.#woken = resolve;
      hub.wait(this, this.#next);
      if (this.#progressMs === 0 || this.#woken === undefined) return;
      const onTimer = (): void => {
        hub.forget(this);
        this.wake(undefined);
      };
      this.#timer = setTimeout(onTimer, Math.max(1, this.#progressInMs())).unref();
    });
  }

  #progressInMs(): number {
    return this.#lastItemAtMs + this.#progressMs - this.#client.context.clock.ticksMs();
  }

  // ---------------------------------------------------------------- filling

  /** Does a piece of the work that lies before the next item; may make items. */
  async #fill(): Promise<void> {
    if (this.#cursor !== undefined && !this.#isRegistered) {
      await this.#register(this.#cursor);
      return;
    }
    if (this.#snapshot !== undefined) {
      await this.#fillSnapshot(this.#snapshot);
      return;
    }
    if (this.#removal !== undefined) {
      await turn();
      if (!this.#ended) this.#fillRemoval(this.#removal);
      return;
    }
    const hub = this.#client.feeds;
    if (this.#next >= this.#client.logged()) {
      this.#assertThere();
      if (this.#isProgressDue) {
        this.#push({ kind: 'progress', offset: this.#next - 1, updates: [] }, 0);
        return;
      }
      await this.#wait();
      return;
    }
    const { clock } = this.#client.context;
    let chunk = hub.chunkInMemory(this.#next);
    if (chunk === undefined) {
      chunk = await hub.chunk(this.#next, this.#place);
      this.#turnAtMs = clock.ticksMs();
    } else if (clock.ticksMs() - this.#turnAtMs > TURN_MS_MAX) {
      // Who takes what is in memory, as fast as it goes, leaves no turn to others by himself.
      await turn();
      this.#turnAtMs = clock.ticksMs();
    }
    if (this.#ended) return;
    this.#client.assertUsable();
    this.#window.passed(this.#next);
    // Who asks for it meets what went wrong.
    const own = chunk;
    hub
      .readAhead(own)
      ?.then((next) => this.#lookAhead(own, next))
      .catch(() => {});
    await this.#take(chunk);
    if (this.#ended || this.#ready.length > 0) return;
    this.#hold.move(this.#next - 1);
    if (this.#isProgressDue) {
      this.#push({ kind: 'progress', offset: this.#next - 1, updates: [] }, 0);
    }
  }

  async #lookAhead(own: HubChunk, next: HubChunk): Promise<void> {
    if (!this.#old || this.#ended) return;
    const targets = this.#targets.map(({ collection, range }) => ({ id: collection.id, range }));
    await this.#window.load(own, next, targets, () => !this.#ended);
  }

  /** From here on the store keeps what is not confirmed; a state only this feed, until it is read. */
  async #register(cursor: Cursor): Promise<void> {
    if (cursor.isStale) await cursor.register(this.#next - 1, this.#snapshot !== undefined);
    this.#isRegistered = true;
    if (this.#snapshot === undefined) this.#hold.release();
  }

  get #isProgressDue(): boolean {
    return this.#progressMs > 0 && this.#progressInMs() <= 0;
  }

  /** What was dropped changes no more: its feed ends when it has told everything. */
  #assertThere(): void {
    if (!this.#isCatalogTouched) return;
    this.#isCatalogTouched = false;
    for (const { collection } of this.#targets) collection.assertThere();
  }

  async #take(chunk: HubChunk): Promise<void> {
    const { touched, log } = chunk;
    if (touched.has(CATALOG_ID)) this.#isCatalogTouched = true;
    const sources: Source[] = [];
    for (const target of this.#targets) {
      const changes = chunk.changesOf(target.collection.id);
      if (changes === undefined) continue;
      const at = changes.transactionAt(this.#next);
      if (at < changes.transactions) sources.push({ target, changes, at, to: at });
    }
    const sliceUpper = slice(sources, log.to, this.#next);
    let upper = sliceUpper;
    if (this.#old) {
      // While one is waited for, another feed may let go of what those before it had found.
      for (let isSure = false; !isSure;) {
        isSure = true;
        upper = sliceUpper;
        for (const source of sources) {
          const { target, changes, at, to } = source;
          if (at === to) continue;
          for (;;) {
            const loading = changes.loadOld(at, to, target.range);
            if (loading === undefined) break;
            await loading;
            if (this.#ended) return;
            if (source !== sources[0]) isSure = false;
          }
          // Old rows of some are enough for now.
          if (changes.oldUpper < to) upper = Math.min(upper, changes.offsets[changes.oldUpper]);
        }
      }
      for (const source of sources) source.to = source.changes.transactionAt(upper);
    }
    const removedAt = rangeAt(sources, this.#next);
    if (removedAt < upper) {
      this.#removal = this.#beginRemoval(sources, removedAt);
      this.#place = log.start;
      this.#fillRemoval(this.#removal);
      return;
    }
    if (sources.length === 1) this.#takeOne(sources[0]);
    else this.#takeMany(sources);
    for (const { changes, to } of sources) changes.trim(to);
    this.#next = upper;
    this.#place = upper === log.to ? log.end : log.start;
  }

  #takeOne(source: Source): void {
    const { changes, target, to } = source;
    const { collection, range, isNamed } = target;
    const { keyCodec, valueCodec } = collection;
    for (; source.at < to; source.at++) {
      const own = changes.collectAll(source.at, range, this.#old, keyCodec, valueCodec);
      const updates = isNamed ? own.map((update) => named(collection, update)) : own;
      this.#pushTransaction(changes.offsets[source.at], updates, changes.bytesTold);
    }
  }

  #takeMany(sources: readonly Source[]): void {
    for (;;) {
      let offset = Infinity;
      for (const { changes, at, to } of sources) {
        if (at < to && changes.offsets[at] < offset) offset = changes.offsets[at];
      }
      if (offset === Infinity) return;
      const updates: AnyUpdate[] = [];
      let bytes = 0;
      for (const source of sources) {
        const { changes, at, to } = source;
        if (at >= to || changes.offsets[at] !== offset) continue;
        bytes += this.#collect(source, updates);
        source.at++;
      }
      this.#pushTransaction(offset, updates, bytes);
    }
  }

  #collect({ target, changes, at }: Source, updates: AnyUpdate[], added?: AddedRows): number {
    const { collection, range, isNamed } = target;
    const { keyCodec, valueCodec } = collection;
    const old = this.#old;
    if (!isNamed) return changes.collect(at, range, old, keyCodec, valueCodec, updates, added);
    const own: AnyUpdate[] = [];
    const bytes = changes.collect(at, range, old, keyCodec, valueCodec, own, added);
    for (const update of own) updates.push(named(collection, update));
    return bytes;
  }

  #pushTransaction(offset: number, updates: AnyUpdate[], bytes: number): void {
    if (updates.length === 0) return;
    this.#push({ kind: 'transaction', offset, updates }, bytes);
  }

  // ---------------------------------------------------------------- removed ranges

  /** Requires: the transaction is all that the sources' slices hold, its old rows are there. */
  #beginRemoval(sources: readonly Source[], offset: number): Removal {
    const removal: Removal = { offset, updates: [], bytes: 0, told: false, left: [], ranges: [] };
    for (const source of sources) {
      const { target, changes, at, to } = source;
      if (at === to) continue;
      const { collection } = target;
      const ranges = changes.removedOf(at, target.range);
      const isKeyed = collection.kind === 'keyed';
      if (!this.#old) {
        removal.bytes += this.#collect(source, removal.updates);
        for (const { lower, upper, upperOpen } of ranges) {
          // Copies: what is told outlives the piece of log.
          const own = { collection: collection.name, lower: new Uint8Array(lower) };
          removal.ranges.push(upperOpen ? own : { ...own, upper: new Uint8Array(upper) });
        }
        continue;
      }
      const names = isKeyed ? changes.namesOf(at) : undefined;
      const added = isKeyed ? undefined : { ranges, rows: new Map<string, AnyUpdate>() };
      removal.bytes += this.#collect(source, removal.updates, added);
      for (const range of ranges) {
        const walk = new StateWalk(this.#client, collection, offset - 1, range);
        removal.left.push({ target, walk, names, added: undefined });
      }
      // What it added again is told when all that was there is known.
      if (added !== undefined && ranges.length > 0) {
        for (const left of removal.left) if (left.target === target) left.added = added.rows;
      }
    }
    return removal;
  }

  /** The next piece of what a transaction with removed ranges has done. */
  #fillRemoval(removal: Removal): void {
    const { offset, left, ranges } = removal;
    while (left.length > 0 && removal.bytes < SNAPSHOT_PIECE_BYTES) this.#removeRows(removal);
    const { bytes, updates } = removal;
    removal.updates = [];
    removal.bytes = 0;
    if (left.length > 0) {
      removal.told = true;
      this.#push({ kind: 'transaction', offset: offset - 1, updates, more: true }, bytes);
      return;
    }
    this.#removal = undefined;
    this.#next = offset + 1;
    if (ranges.length > 0) this.#push({ kind: 'transaction', offset, updates, ranges }, bytes);
    else if (removal.told || updates.length > 0) {
      this.#push({ kind: 'transaction', offset, updates }, bytes);
    }
  }

  /** Tells some of the rows that were in the first range that is left. */
  #removeRows(removal: Removal): void {
    const { left, updates } = removal;
    const { target, walk, names, added } = left[0];
    const { collection, isNamed } = target;
    const { keyCodec, valueCodec } = collection;
    const push = (update: AnyUpdate): void => {
      updates.push(isNamed ? named(collection, update) : update);
    };
    const batch = walk.next(SNAPSHOT_ROWS);
    if (batch !== undefined) {
      const { slab, places, count } = batch;
      for (let i = 0; i < count; i++) {
        const [start, middle, end] = [places[i * 3], places[i * 3 + 1], places[i * 3 + 2]];
        // What the transaction changed by name is told with that.
        if (names !== undefined && names.size > 0) {
          if (names.has(slab.toString('latin1', start, middle))) continue;
        }
        let diff = -walk.countOf(batch, i);
        if (added !== undefined && added.size > 0) {
          const name = pairName(slab, start, middle, end);
          const sum = diff + (added.get(name)?.diff ?? 0);
          // What is too large for a sum is told in two.
          if (Number.isSafeInteger(sum)) {
            diff = sum;
            added.delete(name);
          }
          if (diff === 0) continue;
        }
        const key: unknown = decodeLent(keyCodec, slab, start, middle);
        const value: unknown = decodeLent(valueCodec, slab, middle, end);
        push({ key, value, diff });
      }
      removal.bytes += batch.used;
    }
    if (!walk.ended) return;
    left.shift();
    if (added === undefined || left[0]?.added === added) return;
    for (const update of added.values()) push(update);
  }

  // ---------------------------------------------------------------- the state at the beginning

  async #fillSnapshot(place: Snapshotting): Promise<void> {
    // The last piece may have been read from the disk on this thread: others have their turn.
    if (place.target > 0 || place.walk !== undefined) await turn();
    if (this.#ended) return;
    this.#client.assertUsable();
    const asOf = this.#next - 1;
    const updates: AnyUpdate[] = [];
    let bytes = 0;
    // Of an empty store there is nothing to read.
    if (asOf < 0) place.target = this.#targets.length;
    while (place.target < this.#targets.length && bytes < SNAPSHOT_PIECE_BYTES) {
      bytes += this.#readRows(place, asOf, updates);
    }
    const last = place.target === this.#targets.length;
    if (last) {
      this.#snapshot = undefined;
      if (this.#isRegistered) this.#hold.release();
    }
    const offset = last ? asOf : -1;
    this.#push({ kind: 'snapshot', offset, asOf, updates, last }, bytes);
  }

  #readRows(place: Snapshotting, asOf: number, updates: AnyUpdate[]): number {
    const { collection, range = WHOLE, isNamed } = this.#targets[place.target];
    const { keyCodec, valueCodec } = collection;
    const walk = (place.walk ??= new StateWalk(this.#client, collection, asOf, range));
    const batch = walk.next(SNAPSHOT_ROWS);
    if (walk.ended) {
      place.target++;
      place.walk = undefined;
    }
    if (batch === undefined) return 0;
    const { slab, places, count } = batch;
    for (let i = 0; i < count; i++) {
      const key: unknown = decodeLent(keyCodec, slab, places[i * 3], places[i * 3 + 1]);
      const value: unknown = decodeLent(valueCodec, slab, places[i * 3 + 1], places[i * 3 + 2]);
      const update = { key, value, diff: walk.countOf(batch, i) };
      updates.push(isNamed ? named(collection, update) : update);
    }
    return batch.used;
  }
}

/** A state on its way. */
type Snapshotting = { target: number; walk: StateWalk | undefined };

type Source = {
  readonly target: FeedTarget;
  readonly changes: ChunkChanges;
  /** Transactions [at, to) are taken in this slice. */
  at: number;
  to: number;
};

/** A transaction that removed ranges, on its way. */
type Removal = {
  readonly offset: number;
  updates: AnyUpdate[];
  bytes: number;
  /** A piece of it was told. */
  told: boolean;
  /** Ranges whose rows are still to be told, and the keys that are told otherwise. */
  readonly left: {
    readonly target: FeedTarget;
    readonly walk: StateWalk;
    /** Of a keyed collection: keys that the transaction changed otherwise. */
    readonly names: ReadonlySet<string> | undefined;
    /** Of a multiset: rows that it added to in removed ranges, after it removed them; of all its ranges. */
    added: Map<string, AnyUpdate> | undefined;
  }[];
  readonly ranges: RemovedRange[];
};

function rangeAt(sources: readonly Source[], next: number): number {
  let offset = Infinity;
  for (const { changes } of sources) offset = Math.min(offset, changes.rangeAt(next));
  return offset;
}

/**
 * Gives each source its part of the next slice; returns the offset below which all is taken then. A
 * transaction that removed ranges is a slice of its own.
 */
function slice(sources: readonly Source[], end: number, next: number): number {
  let upper = end;
  const removedAt = rangeAt(sources, next);
  if (removedAt < end) {
    const isFirst = sources.every(({ changes, at }) => changes.offsets[at] >= removedAt);
    upper = isFirst ? removedAt + 1 : removedAt;
  }
  for (const { changes, at } of sources) {
    let to = at;
    const first = changes.changesBefore(at);
    while (to < changes.transactions && changes.changesBefore(to) - first < CHANGES_PER_SLICE) to++;
    if (to < changes.transactions) upper = Math.min(upper, changes.offsets[to]);
  }
  for (const source of sources) source.to = source.changes.transactionAt(upper);
  return upper;
}

function named(collection: unknown, { key, value, diff }: AnyUpdate): AnyUpdate {
  return { collection, key, value, diff } as AnyUpdate;
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
