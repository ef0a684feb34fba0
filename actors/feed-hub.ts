/**
 * What the feeds of a thread share: the pieces of the log that were read last, with what they changed,
 * and one wait for more. However many follow, a change is read and decoded once as long as it is here;
 * what is here is bounded, whatever is behind. Lives with its client, on its thread; it waits for the
 * frontier and for its own file reads, and holds neither thread nor view across a turn.
 */
import { KiB, MiB } from '../core/base/limits.ts';
import { LogFollower } from '../core/log/follower.ts';
import type { FollowPlace, FollowSegment, FollowSource, LogChunk } from '../core/log/follower.ts';
import { PayloadWalker } from '../core/log/payload.ts';
import type { Storage } from '../core/storage/storage.ts';
import type { Client } from './client.ts';
import { ChunkChanges } from './feed-changes.ts';
import { OldRows } from './old-rows.ts';
import type { OldWindow } from './old-window.ts';
import { FRONTIER_LOGGED } from './waiter.ts';
import type { Waiter } from './waiter.ts';

/** Bytes of log that are kept for those who come after. */
const KEPT_BYTES_MAX: number = 8 * MiB;
/** A piece costs more than its bytes once it is decoded. */
const CHUNK_COST_BYTES: number = 4 * KiB;
/** Bytes of log in the windows of all feeds. */
const WINDOWS_BYTES_MAX: number = 16 * MiB;
/** With so many feeds what is read ahead for one is there when it gets to it. */
const READ_AHEAD_FEEDS_MAX = 4;
/** Followers of the log with a file open. */
const FOLLOWERS_MAX = 8;

/** Counts of one thread; each only grows. */
export type FeedCounts = {
  /** Pieces of the log that were read, and their bytes. */
  logReads: number;
  logBytes: number;
  /** Changes of rows that some feed asked for, each counted once. */
  changes: number;
  /** Changes that were decoded, old rows that were looked up: as many as `changes`, however many follow. */
  changesDecoded: number;
  oldRowsRead: number;
  /** Of these, the ones that went to the disk. */
  oldRowsFromDisk: number;
  /** Items that were delivered, over all feeds. */
  items: number;
};

/** A piece of the log and what it changed, by collection. */
export class HubChunk {
  readonly log: LogChunk;
  /** Collections that it changes, each with the count of operations. */
  readonly touched: ReadonlyMap<number, number>;
  readonly #hub: FeedHub;
  readonly #changes: Map<number, ChunkChanges> = new Map();

  constructor(hub: FeedHub, log: LogChunk) {
    this.#hub = hub;
    this.log = log;
    this.touched = touchedBy(log);
  }

  /** What it costs to keep; grows with the old rows that are looked up. */
  get bytes(): number {
    let bytes = this.log.bytes.length + CHUNK_COST_BYTES;
    for (const changes of this.#changes.values()) bytes += changes.oldBytes;
    return bytes;
  }

  /** What it changed in a collection; undefined: nothing. */
  changesOf(collection: number): ChunkChanges | undefined {
    const operations = this.touched.get(collection);
    if (operations === undefined) return undefined;
    let changes = this.#changes.get(collection);
    if (changes === undefined) {
      const { client, counts } = this.#hub;
      changes = new ChunkChanges(client, counts, this.log, collection, operations);
      this.#changes.set(collection, changes);
    }
    return changes;
  }
}

function touchedBy(log: LogChunk): Map<number, number> {
  const touched = new Map<number, number>();
  const walker = new PayloadWalker();
  // Mostly it is the same one again.
  let collection = -1;
  let count = 0;
  const close = (): void => {
    if (count > 0) touched.set(collection, (touched.get(collection) ?? 0) + count);
  };
  for (let r = 0; r < log.records; r++) {
    walker.start(log.bytes, log.payloadOffsets[r], log.txCounts[r]);
    while (walker.nextTransaction()) {
      while (walker.nextOperation()) {
        if (walker.collection !== collection) {
          close();
          collection = walker.collection;
          count = 0;
        }
        count++;
      }
    }
  }
  close();
  return touched;
}

/** A feed that waits for more. */
export interface Waiting {
  /** Keeps the process alive. */
  readonly ref: boolean;
  /** More is there, or the hub has ended with `failure`. */
  wake(failure: unknown): void;
}

export class FeedHub implements FollowSource {
  readonly client: Client;
  /** Looks up what was there before. */
  readonly old: OldRows;
  readonly counts: FeedCounts = {
    logReads: 0,
    logBytes: 0,
    changes: 0,
    changesDecoded: 0,
    oldRowsRead: 0,
    oldRowsFromDisk: 0,
    items: 0,
  };
  /** Feeds that have not ended, and the cursors that some have. */
  running = 0;
  readonly cursors: Set<string> = new Set();
  /** Last used last. */
  #chunks: HubChunk[] = [];
  /** Those that hold something. */
  readonly windows: Set<OldWindow> = new Set();
  /** By the offset that was asked for. */
  readonly #loads: Map<number, Promise<HubChunk>> = new Map();
  readonly #followers: LogFollower[] = [];
  readonly #waiting: Set<Waiting> = new Set();
  #waiter: Waiter | undefined;
  /** Why nothing will come any more. */
  failure: unknown;

  constructor(client: Client) {
    this.client = client;
    this.old = new OldRows(client);
  }

  // ---------------------------------------------------------------- the log

  get storage(): Storage {
    return this.client.context.storage;
  }

  segments(): readonly FollowSegment[] {
    const { reader } = this.client;
    this.client.assertUsable();
    reader.slot.enter();
    try {
      return reader.reloadView().segments();
    } finally {
      reader.leave();
    }
  }

  currentSeq(): number {
    return this.client.context.control.logSeq();
  }

  currentEnd(): number {
    return this.client.context.control.logPosition();
  }

  /** The piece with `offset` if it is in memory. */
  chunkInMemory(offset: number): HubChunk | undefined {
    const chunks = this.#chunks;
    for (let i = chunks.length - 1; i >= 0; i--) {
      const chunk = chunks[i];
      if (offset < chunk.log.from || offset >= chunk.log.to) continue;
      if (i < chunks.length - 1) {
        chunks.splice(i, 1);
        chunks.push(chunk);
      }
      return chunk;
    }
    for (const window of this.windows) {
      const chunk = window.chunkAt(offset);
      if (chunk !== undefined) return chunk;
    }
    return undefined;
  }

  /** Windows may grow by so many bytes. */
  hasWindowRoom(bytes: number): boolean {
    let sum = bytes;
    for (const window of this.windows) sum += window.bytes;
    return sum <= WINDOWS_BYTES_MAX;
  }

  /** Begins to read the piece after this one, if that will be asked for and is there. */
  readAhead({ log }: HubChunk): Promise<HubChunk> | undefined {
    const { to, end } = log;
    if (this.running > READ_AHEAD_FEEDS_MAX || to >= this.client.logged()) return undefined;
    return this.chunkInMemory(to) === undefined ? this.chunk(to, end) : undefined;
  }

  /** Reads the piece with `offset`, whose record stands at `place` if that is known. Requires: offset < logged(). */
  chunk(offset: number, place: FollowPlace | undefined): Promise<HubChunk> {
    const known = this.#loads.get(offset);
    if (known !== undefined) return known;
    const load = this.#load(offset, place).finally(() => this.#loads.delete(offset));
    this.#loads.set(offset, load);
    return load;
  }

  async #load(offset: number, place: FollowPlace | undefined): Promise<HubChunk> {
    const follower = this.#followerAt(offset, place);
    const log = await follower.read(this.client.logged());
    this.client.assertUsable();
    this.counts.logReads++;
    this.counts.logBytes += log.bytes.length;
    const chunk = new HubChunk(this, log);
    this.#keep(chunk);
    return chunk;
  }

  #followerAt(offset: number, place: FollowPlace | undefined): LogFollower {
    const followers = this.#followers;
    const idle = followers.filter(({ busy }) => !busy);
    let found = idle.find(({ next }) => next === offset);
    if (found === undefined) {
      if (followers.length < FOLLOWERS_MAX || idle.length === 0) found = new LogFollower(this);
      else found = idle[0];
      found.seek(offset, place);
    }
    // Last used last; what is over the count is let go when it rests.
    const at = followers.indexOf(found);
    if (at >= 0) followers.splice(at, 1);
    followers.push(found);
    if (followers.length > FOLLOWERS_MAX) followers.shift()!.close();
    return found;
  }

  #keep(chunk: HubChunk): void {
    const chunks = this.#chunks;
    chunks.push(chunk);
    // One who follows alone is at the last but one, and comes back to none before.
    const most = this.running > 1 ? KEPT_BYTES_MAX : 0;
    let bytes = 0;
    let first = Math.max(0, chunks.length - 2);
    while (first > 0 && (bytes += chunks[first].bytes) < most) first--;
    if (first > 0) chunks.splice(0, first);
  }

  // ---------------------------------------------------------------- waiting

  /** Wakes `feed` once, when there is an offset at or above `next` to be read, or none will ever be. */
  wait(feed: Waiting, next: number): void {
    this.client.assertUsable();
    this.#waiting.add(feed);
    if (this.client.logged() > next) {
      this.#wakeAll();
      return;
    }
    this.#arm(next + 1);
  }

  /** The feed waits no more. */
  forget(feed: Waiting): void {
    if (!this.#waiting.delete(feed)) return;
    if (this.#waiter !== undefined) this.#arm(this.#waiter.upper);
  }

  /** One wait for all, which keeps the process alive if one of them does. */
  #arm(upper: number): void {
    const { client } = this;
    const isWanted = this.#waiting.size > 0;
    const ref = isWanted && [...this.#waiting].some((feed) => feed.ref);
    const former = this.#waiter;
    if (former !== undefined) {
      if (isWanted && former.ref === ref && former.upper <= upper) return;
      client.forget(former);
      this.#waiter = undefined;
    }
    if (!isWanted) return;
    this.#waiter = {
      upper: Math.min(upper, former?.upper ?? upper),
      frontier: FRONTIER_LOGGED,
      ref,
      resolve: () => {
        this.#waiter = undefined;
        this.#wakeAll();
      },
      reject: (error) => {
        this.#waiter = undefined;
        this.end(error);
      },
    };
    client.await(this.#waiter);
  }

  #wakeAll(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const feed of waiting) feed.wake(this.failure);
  }

  /** The engine closes or has failed: who waits is told, what is open and kept is let go. */
  end(failure: unknown): void {
    if (this.failure === undefined) this.failure = failure;
    if (this.#waiter !== undefined) this.client.forget(this.#waiter);
    this.#waiter = undefined;
    this.#wakeAll();
    for (const follower of this.#followers.splice(0)) follower.close();
    for (const window of this.windows) window.clear();
    this.#chunks = [];
  }
}
