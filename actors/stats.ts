/**
 * What `engine.stats()` shows: counters of every actor and the picture of the spine, as one plain object
 * with stable keys. Read from shared memory by whoever asks; nothing here changes behaviour.
 */
import { KIND_CACHE, KIND_MEMTABLE, KIND_RECORD, KIND_VIEW } from '../core/shared/buffer-pool.ts';
import { pageBytes } from '../core/base/limits.ts';
import type { Client } from './client.ts';
import { ACTOR_COUNTERS, CLIENT_COUNTERS, readCounters } from './counters.ts';
import type { FeedCounts } from './feed-hub.ts';
import { HELD_BY_BACKUP, HELD_BY_CHECKPOINT, HELD_BY_FEED, HELD_BY_KEEP_MS } from './log-keeper.ts';
import type { CheckedOptions } from './options.ts';

/** One run of a collection: a read may have to look into it. */
export type RunStats = {
  /** Level of the spine, 0 the smallest. */
  readonly level: number;
  readonly parts: number;
  readonly rows: number;
  readonly bytes: number;
  /** Offsets of the oldest and newest row in it. */
  readonly oldest: number;
  readonly newest: number;
};

export type CollectionStats = {
  readonly id: number;
  /** '' is the catalog. */
  readonly name: string;
  readonly since: number;
  /** All its updates below this offset are in parts. */
  readonly upper: number;
  /** Newest first. */
  readonly runs: readonly RunStats[];
};

export type EngineStats = {
  readonly state: string;
  /** First offset readers do not see; first not durable; first not inserted; first not in parts. */
  readonly upper: number;
  readonly durableUpper: number;
  readonly appliedUpper: number;
  readonly flushedUpper: number;
  readonly memory: {
    readonly arenaBytes: number;
    readonly recordBytes: number;
    readonly memtableBytes: number;
    readonly viewBytes: number;
    readonly cacheBytes: number;
  };
  readonly log: {
    readonly segment: number;
    readonly position: number;
    readonly segmentBytes: number;
    /** Oldest first: number and first offset. */
    readonly segments: readonly { readonly seq: number; readonly firstOffset: number }[];
    /** Segments that end at or below `offset` are needed by nobody; found at each checkpoint. */
    readonly floor: {
      readonly offset: number;
      /** Why not higher. 'history': that of `collection`, '' otherwise. */
      readonly heldBy: 'checkpoint' | 'history' | 'keepMs' | 'backup' | 'feed';
      readonly collection: string;
    };
    readonly checkpoints: {
      /** All below is in parts, as each of the two kept rollups of the manifest says. */
      readonly newer: number;
      readonly older: number;
      /** Since the newer one was made; after an open with nothing to replay, since its last commit. */
      readonly ageMs: number;
    };
    readonly segmentsDeleted: number;
  };
  readonly collections: readonly CollectionStats[];
  /** Sealed generations on their way into parts. */
  readonly sealed: number;
  /** Jobs, generations and edits under way or due; 0 is quiet. */
  readonly workWaiting: number;
  readonly holds: { readonly count: number; readonly oldest: number };
  /** Feeds of this thread, and what they have cost. */
  readonly feeds: FeedCounts & { readonly running: number };
  /** Commits that wait on this thread for room. */
  readonly waitingTransactions: number;
  readonly sequencer: Readonly<Record<string, number>>;
  readonly durability: Readonly<Record<string, number>>;
  readonly keeper: Readonly<Record<string, number>>;
  readonly compactor: Readonly<Record<string, number>>;
  readonly evictor: Readonly<Record<string, number>>;
  readonly client: Readonly<Record<string, number>>;
};

export function gatherStats(
  client: Client,
  state: string,
  options: CheckedOptions,
  names: ReadonlyMap<number, string>,
): EngineStats {
  const { context, reader, line } = client;
  const { arena, control, pool, topology } = context;
  reader.publish();
  const actors = ACTOR_COUNTERS.map((counters, i) =>
    readCounters(arena, topology.counters[i], counters),
  );
  const [sequencer, durability, keeper, compactor, evictor] = actors as [
    Record<string, number>,
    Record<string, number>,
    Record<string, number>,
    Record<string, number>,
    Record<string, number>,
  ];
  const place = topology.clients[client.number];
  return {
    state,
    upper: reader.visible(),
    durableUpper: control.durable(),
    appliedUpper: control.applied(),
    flushedUpper: keeper['flushedUpper'],
    memory: {
      arenaBytes: arena.bytes,
      recordBytes: pool.usedPages(KIND_RECORD) * pageBytes,
      memtableBytes: pool.usedPages(KIND_MEMTABLE) * pageBytes,
      viewBytes: pool.usedPages(KIND_VIEW) * pageBytes,
      cacheBytes: pool.usedPages(KIND_CACHE) * pageBytes,
    },
    log: {
      segment: control.logSeq(),
      position: control.logPosition(),
      segmentBytes: options.config.segmentBytes,
      segments: segmentStats(client),
      floor: floorStats(keeper, names),
      checkpoints: {
        newer: keeper['checkpointNewer'],
        older: keeper['checkpointOlder'],
        ageMs: Math.max(0, context.clock.nowMs() - keeper['checkpointAtMs']),
      },
      segmentsDeleted: keeper['segmentsDeleted'],
    },
    collections: collectionStats(client, names),
    sealed: keeper['sealed'],
    workWaiting: keeper['workWaiting'],
    holds: { count: client.holdCount, oldest: client.oldestHold },
    feeds: { ...client.feeds.counts, running: client.feeds.running },
    waitingTransactions: line.waitingTransactions,
    sequencer,
    durability,
    keeper,
    compactor,
    evictor,
    client: readCounters(arena, place.counters, CLIENT_COUNTERS),
  };
}

function floorStats(
  keeper: Readonly<Record<string, number>>,
  names: ReadonlyMap<number, string>,
): EngineStats['log']['floor'] {
  const { logFloor: offset, logFloorHolder: holder } = keeper;
  if (holder === HELD_BY_CHECKPOINT) return { offset, heldBy: 'checkpoint', collection: '' };
  if (holder === HELD_BY_BACKUP) return { offset, heldBy: 'backup', collection: '' };
  if (holder === HELD_BY_KEEP_MS) return { offset, heldBy: 'keepMs', collection: '' };
  if (holder === HELD_BY_FEED) return { offset, heldBy: 'feed', collection: '' };
  return { offset, heldBy: 'history', collection: names.get(holder) ?? '' };
}

function segmentStats(client: Client): { seq: number; firstOffset: number }[] {
  const { reader } = client;
  reader.slot.enter();
  try {
    return reader
      .reloadView()
      .segments()
      .map(({ seq, base }) => ({ seq, firstOffset: base }));
  } finally {
    reader.leave();
  }
}

function collectionStats(client: Client, names: ReadonlyMap<number, string>): CollectionStats[] {
  const { reader } = client;
  reader.slot.enter();
  try {
    const view = reader.reloadView();
    const collections: CollectionStats[] = [];
    for (let i = 0; i < view.collectionCount; i++) {
      const block = view.collectionAt(i);
      const runs: RunStats[] = [];
      for (let r = 0; r < view.runCount(block); r++) {
        const run = view.run(block, r);
        const stats = { level: view.level(block, r), parts: view.partCount(run) };
        let rows = 0;
        let bytes = 0;
        let oldest = Number.MAX_SAFE_INTEGER;
        let newest = 0;
        for (let p = 0; p < stats.parts; p++) {
          const part = view.part(run, p);
          rows += view.rows(part);
          bytes += view.bytes(part);
          oldest = Math.min(oldest, view.minTime(part));
          newest = Math.max(newest, view.maxTime(part));
        }
        runs.push({ ...stats, rows, bytes, oldest, newest });
      }
      const id = view.idOf(block);
      collections.push({
        id,
        name: names.get(id) ?? '',
        since: view.since(block),
        upper: view.upper(block),
        runs,
      });
    }
    return collections;
  } finally {
    reader.leave();
  }
}
