/**
 * What `engine.stats()` shows: counters of every actor and the picture of the spine, as one plain object
 * with stable keys. Read from shared memory by whoever asks; nothing here changes behaviour. Every key
 * is explained in docs/metrics.md, and a test keeps the two alike.
 */
import { HISTOGRAM_WORDS } from '../core/base/histogram.ts';
import type { Histogram } from '../core/base/histogram.ts';
import { pageBytes } from '../core/base/limits.ts';
import { KIND_CACHE, KIND_MEMTABLE, KIND_RECORD, KIND_VIEW } from '../core/shared/buffer-pool.ts';
import { ACTOR_DURABILITY, ACTOR_KEEPER } from '../core/shared/control.ts';
import { readCounter } from '../core/shared/counters.ts';
import { holdOf } from '../core/shared/epoch.ts';
import { ringDepth } from '../core/shared/ring.ts';
import type { Client } from './client.ts';
import { readFigures } from './collection-figures.ts';
import {
  ACTOR_COUNTERS,
  CLIENT_COUNTERS,
  DURABILITY_COUNTERS,
  KEEPER_COUNTERS,
  RECOVERY_VERDICTS,
  readCounters,
  readHistogram,
} from './counters.ts';
import type { FeedCounts } from './feed-hub.ts';
import {
  HELD_BY_ARCHIVE,
  HELD_BY_BACKUP,
  HELD_BY_CHECKPOINT,
  HELD_BY_CURSOR,
  HELD_BY_FEED,
  HELD_BY_KEEP_MS,
} from './log-keeper.ts';
import type { CheckedOptions } from './options.ts';
import type { Stall } from './stall-watch.ts';

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
  readonly parts: number;
  readonly rows: number;
  readonly bytes: number;
  /** Hollow batches, and the spine batches that group them. */
  readonly batches: number;
  readonly spineBatches: number;
  /** Spine batches of one run at most; that a job is merging; the others. */
  readonly compact: number;
  readonly compacting: number;
  readonly nonCompact: number;
  readonly levels: number;
  /** Levels with two batches: structural merges under way. */
  readonly doubles: number;
  /** In spine batches of more than one run. */
  readonly debtBytes: number;
  /** By this engine since it was opened. */
  readonly flushes: number;
  readonly flushedRows: number;
  readonly flushedBytes: number;
  readonly merges: number;
  readonly mergesRefused: number;
  readonly mergesFailed: number;
  readonly mergedRowsIn: number;
  readonly mergedRowsOut: number;
  readonly mergedBytesIn: number;
  readonly mergedBytesOut: number;
  /** Of parts that merges took over without a rewrite. */
  readonly bytesMoved: number;
  readonly moves: number;
  /** Reads that go down to its parts, of all threads; the last ten seconds or so count most. */
  readonly readsPerSecond: number;
  /** (flushedBytes + mergedBytesOut) / flushedBytes; 0 before the first flush. */
  readonly writeAmplification: number;
  /** Newest first. */
  readonly runs: readonly RunStats[];
};

/** How many, and how long together. */
export type StallFigures = { readonly count: number; readonly ms: number };

/** Somebody who keeps history from an offset on. */
export type HoldStats = {
  /** 'snapshot', 'iterator', or 'thread N' for the lowest hold of another thread. */
  readonly owner: string;
  readonly offset: number;
  /** -1 of another thread's. */
  readonly ageMs: number;
  /** Bytes of parts with rows newer than the offset: what merges may not forget because of it, at the most. */
  readonly bytesPinned: number;
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
      readonly heldBy:
        'checkpoint' | 'history' | 'keepMs' | 'backup' | 'feed' | 'archive' | 'cursor';
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
    readonly segmentsCompressed: number;
    /** What `wal.archive` has, and what it has not. */
    readonly archive: {
      /** Segments that it has confirmed since the engine was opened. */
      readonly done: number;
      /** Segments below the older checkpoint that it has yet to confirm; they stay until then. */
      readonly waiting: number;
      readonly failures: number;
      /** Why its last call failed; null when it did not. */
      readonly error: { readonly message: string; readonly seq: number } | null;
    };
    /** Records by why they closed, of all threads. */
    readonly records: {
      /** The turn of the event loop ended. */
      readonly turn: number;
      /** 65,535 transactions. */
      readonly count: number;
      /** The next transaction did not fit the page. */
      readonly page: number;
      /** With conditions. */
      readonly alone: number;
      /** A transaction larger than a page. */
      readonly large: number;
    };
    /** Bytes of a write, with headers. */
    readonly batchBytes: Histogram;
    readonly writeUs: Histogram;
    readonly syncUs: Histogram;
    readonly queue: {
      /** Records sent by clients and not taken by the sequencer. */
      readonly sent: number;
      /** Messages of the sequencer, records most of them, that the log has not taken. */
      readonly ordered: number;
      /** Receipts that clients have not read. */
      readonly receipts: number;
    };
    /** Records sent whose receipt has not been read, of all threads. */
    readonly receiptsOutstanding: number;
    readonly unsynced: {
      /** applied - durable. */
      readonly transactions: number;
      /** Written since the last sync. */
      readonly bytes: number;
    };
    /** Commits refused, by code. Those refused at the call count transactions, the others records. */
    readonly refusals: {
      readonly TIDEMARK_CONFLICT: number;
      readonly TIDEMARK_NO_SPACE: number;
      readonly TIDEMARK_BUSY: number;
      readonly TIDEMARK_TOO_LARGE: number;
    };
    /** How far the clock is behind the last commit's time; commits keep that until it has caught up. */
    readonly clockHeldBackMs: number;
    /** Prepared: may be written without asking the file system for more. */
    readonly roomBytes: number;
    readonly spares: {
      readonly ready: number;
      readonly missing: number;
      readonly made: number;
      readonly recycled: number;
    };
    /** What opening found. */
    readonly recovery: {
      readonly verdict: (typeof RECOVERY_VERDICTS)[number];
      readonly ms: number;
      readonly records: number;
      readonly transactions: number;
      readonly bytes: number;
      readonly bytesPerSecond: number;
      /** Set aside in quarantine/. */
      readonly tornBytes: number;
      /** Intact commits at the end that nothing proved durable, written again. */
      readonly suspects: number;
    };
  };
  readonly stalls: {
    /** Waits for room that are over: of the sequencer, of the log, and of commits of all threads for pages. */
    readonly memory: StallFigures;
    readonly flush: StallFigures;
    readonly debt: StallFigures;
    readonly disk: StallFigures;
    readonly log: StallFigures;
    /** Calls of the log to the disk that took a second and more. */
    readonly calls: StallFigures;
    /** Told by `stalled` and not over. */
    readonly current: readonly Stall[];
  };
  /** All collections together. */
  readonly spine: {
    readonly batches: number;
    readonly spineBatches: number;
    readonly runs: number;
    readonly parts: number;
    readonly rows: number;
    readonly bytes: number;
    readonly compact: number;
    readonly compacting: number;
    readonly nonCompact: number;
    readonly debtBytes: number;
    readonly jobs: {
      /** Handed to the pool; the same number each became applied, refused, failed, or is under way. */
      readonly flushesStarted: number;
      readonly flushesApplied: number;
      readonly mergesStarted: number;
      readonly mergesApplied: number;
      readonly mergesRefused: number;
      /** Flushes and merges. */
      readonly failed: number;
      readonly running: number;
      /** Pointers swapped without a rewrite. */
      readonly moves: number;
    };
    readonly flushedBytes: number;
    readonly mergedBytesIn: number;
    readonly mergedBytesOut: number;
    /** Parts that merges took over without a rewrite, and their bytes. */
    readonly partsMoved: number;
    readonly bytesMoved: number;
    /** Bytes written by flushes and merges for each byte flushed; 0 before the first flush. */
    readonly writeAmplification: number;
    /** Runs looked at per point read that reached the parts, on this thread. */
    readonly readAmplification: number;
    /** Bytes of part files on disk for each byte that readers see. */
    readonly space: number;
    readonly hardBlockMs: number;
    readonly files: {
      readonly count: number;
      readonly bytes: number;
      /** Merged away, deleted as soon as no reader can have them open. */
      readonly pending: number;
      /** Found at open that nothing names. */
      readonly orphans: number;
    };
    readonly manifest: {
      readonly edits: number;
      readonly batches: number;
      readonly bytes: number;
      readonly rollups: number;
      /** From handing a batch of edits to the disk to its answer. */
      readonly us: Histogram;
    };
  };
  readonly collections: readonly CollectionStats[];
  /** Sealed generations on their way into parts. */
  readonly sealed: number;
  /** Jobs, generations and edits under way or due; 0 is quiet. */
  readonly workWaiting: number;
  readonly holds: {
    /** Of this thread, reads under way among them; and the lowest of them, -1 = none. */
    readonly count: number;
    readonly oldest: number;
    /** Those that may last: oldest offset first. */
    readonly list: readonly HoldStats[];
  };
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
  stalls: readonly Stall[],
  archiveError: EngineStats['log']['archive']['error'],
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
  const own = readCounters(arena, place.counters, CLIENT_COUNTERS);
  const all = sumClients(client);
  const queue = queueStats(client);
  const picture = readPicture(client, names);
  const at = topology.counters[ACTOR_DURABILITY];
  const histogram = (i: number): Histogram =>
    readHistogram(arena, at, DURABILITY_COUNTERS.length + i * HISTOGRAM_WORDS);
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
      segmentsCompressed: keeper['segmentsCompressed'],
      archive: {
        done: keeper['segmentsArchived'],
        waiting: keeper['archiveWaiting'],
        failures: keeper['archiveFailures'],
        error: archiveError,
      },
      records: {
        turn: all['recordsByTurn'],
        count: all['recordsByCount'],
        page: all['recordsByPage'],
        alone: all['recordsAlone'],
        large: all['recordsLarge'],
      },
      batchBytes: histogram(0),
      writeUs: histogram(1),
      syncUs: histogram(2),
      queue,
      receiptsOutstanding: queue.sent + queue.receipts,
      unsynced: {
        transactions: Math.max(0, control.applied() - control.durable()),
        bytes: durability['unsyncedBytes'],
      },
      refusals: {
        TIDEMARK_CONFLICT: sequencer['refusedForConflict'],
        TIDEMARK_NO_SPACE: sequencer['refusedForSpace'] + all['refusedForSpace'],
        TIDEMARK_BUSY: all['refusedBusy'],
        TIDEMARK_TOO_LARGE: all['refusedTooLarge'],
      },
      clockHeldBackMs: sequencer['clockHeldBackMs'],
      roomBytes: durability['roomBytes'],
      spares: {
        ready: durability['sparesReady'],
        missing: durability['sparesMissing'],
        made: durability['sparesMade'],
        recycled: durability['sparesRecycled'],
      },
      recovery: recoveryStats(durability),
    },
    spine: spineStats(client, picture.collections, keeper, own),
    collections: picture.collections,
    stalls: stallStats(sequencer, durability, all, stalls),
    sealed: keeper['sealed'],
    workWaiting: keeper['workWaiting'],
    holds: {
      count: client.holdCount,
      oldest: client.oldestHold,
      list: holdStats(client, picture.parts),
    },
    feeds: { ...client.feeds.counts, running: client.feeds.running },
    waitingTransactions: line.waitingTransactions,
    sequencer,
    durability,
    keeper,
    compactor,
    evictor,
    client: own,
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
  if (holder === HELD_BY_ARCHIVE) return { offset, heldBy: 'archive', collection: '' };
  if (holder === HELD_BY_FEED) return { offset, heldBy: 'feed', collection: '' };
  if (holder === HELD_BY_CURSOR) return { offset, heldBy: 'cursor', collection: '' };
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

/** Counters of all threads that use the engine, each as it last published them. */
function sumClients(client: Client): Record<string, number> {
  const { arena, control, topology } = client.context;
  const sums: Record<string, number> = {};
  for (const [i, name] of CLIENT_COUNTERS.entries()) {
    sums[name] = 0;
    for (let c = 0; c < control.clients(); c++) {
      sums[name] += readCounter(arena, topology.clients[c].counters, i);
    }
  }
  return sums;
}

function stallStats(
  sequencer: Readonly<Record<string, number>>,
  durability: Readonly<Record<string, number>>,
  clients: Readonly<Record<string, number>>,
  current: readonly Stall[],
): EngineStats['stalls'] {
  const sum = (name: string): number => sequencer[name] + durability[name] + clients[name];
  const of = (cause: string): StallFigures => ({
    count: sum(`stallsFor${cause}`),
    ms: sum(`stallMsFor${cause}`),
  });
  return {
    memory: of('Memory'),
    flush: of('Flush'),
    debt: of('Debt'),
    disk: of('Disk'),
    log: of('Log'),
    calls: { count: durability['slowCalls'], ms: durability['slowCallMs'] },
    current,
  };
}

function queueStats(client: Client): EngineStats['log']['queue'] {
  const { arena, control, topology } = client.context;
  let sent = 0;
  let receipts = 0;
  for (let c = 0; c < control.clients(); c++) {
    sent += ringDepth(arena, topology.clients[c].records.address);
    receipts += ringDepth(arena, topology.clients[c].receipts.address);
  }
  return { sent, ordered: ringDepth(arena, topology.line.address), receipts };
}

function recoveryStats(
  durability: Readonly<Record<string, number>>,
): EngineStats['log']['recovery'] {
  const { recoveryMs: ms, recoveredBytes: bytes } = durability;
  return {
    verdict: RECOVERY_VERDICTS[durability['recoveryVerdict']],
    ms,
    records: durability['recoveredRecords'],
    transactions: durability['recoveredTransactions'],
    bytes,
    bytesPerSecond: ms === 0 ? 0 : Math.round((bytes * 1_000) / ms),
    tornBytes: durability['tornBytes'],
    suspects: durability['suspects'],
  };
}

function spineStats(
  client: Client,
  collections: readonly CollectionStats[],
  keeper: Readonly<Record<string, number>>,
  own: Readonly<Record<string, number>>,
): EngineStats['spine'] {
  const { arena, topology } = client.context;
  const sum = (of: (collection: CollectionStats) => number): number =>
    collections.reduce((total, collection) => total + of(collection), 0);
  const bytes = sum((collection) => collection.bytes);
  const { flushedBytes, mergedBytesOut } = keeper;
  return {
    batches: sum((collection) => collection.batches),
    spineBatches: sum((collection) => collection.spineBatches),
    runs: sum((collection) => collection.runs.length),
    parts: sum((collection) => collection.parts),
    rows: sum((collection) => collection.rows),
    bytes,
    compact: sum((collection) => collection.compact),
    compacting: sum((collection) => collection.compacting),
    nonCompact: sum((collection) => collection.nonCompact),
    debtBytes: sum((collection) => collection.debtBytes),
    jobs: {
      flushesStarted: keeper['flushJobs'],
      flushesApplied: keeper['flushes'],
      mergesStarted: keeper['mergeJobs'],
      mergesApplied: keeper['merges'],
      mergesRefused: keeper['mergesRefused'],
      failed: keeper['jobsFailed'],
      running: keeper['jobsRunning'],
      moves: keeper['moves'],
    },
    flushedBytes,
    mergedBytesIn: keeper['mergedBytesIn'],
    mergedBytesOut,
    partsMoved: keeper['partsMoved'],
    bytesMoved: keeper['bytesMoved'],
    writeAmplification: amplification(flushedBytes, mergedBytesOut),
    readAmplification: own['partReads'] === 0 ? 0 : own['runsVisited'] / own['partReads'],
    space: bytes === 0 ? 0 : keeper['partBytes'] / bytes,
    hardBlockMs: keeper['stallMsForDebt'] + keeper['stallMsForDisk'],
    files: {
      count: keeper['partFiles'],
      bytes: keeper['partBytes'],
      pending: keeper['filesPending'],
      orphans: keeper['orphans'],
    },
    manifest: {
      edits: keeper['edits'],
      batches: keeper['editBatches'],
      bytes: keeper['editBytes'],
      rollups: keeper['rollups'],
      us: readHistogram(arena, topology.counters[ACTOR_KEEPER], KEEPER_COUNTERS.length),
    },
  };
}

function amplification(flushedBytes: number, mergedBytesOut: number): number {
  return flushedBytes === 0 ? 0 : (flushedBytes + mergedBytesOut) / flushedBytes;
}

/** Bytes of a part and its newest row: what a hold below that row pins. */
type PinnedPart = { readonly newest: number; readonly bytes: number };

function holdStats(client: Client, parts: readonly PinnedPart[]): HoldStats[] {
  const { arena, clock, control, topology } = client.context;
  const pinned = (offset: number): number =>
    parts.reduce((sum, part) => (part.newest > offset ? sum + part.bytes : sum), 0);
  const nowMs = clock.nowMs();
  const list: HoldStats[] = [];
  for (const { owner, T, sinceMs } of client.held) {
    const ageMs = Math.max(0, nowMs - sinceMs);
    list.push({ owner, offset: T, ageMs, bytesPinned: pinned(T) });
  }
  for (let c = 0; c < control.clients(); c++) {
    if (c === client.number) continue;
    const offset = holdOf(arena, topology.clients[c].slot);
    if (offset < 0) continue;
    list.push({ owner: `thread ${c}`, offset, ageMs: -1, bytesPinned: pinned(offset) });
  }
  return list.toSorted((a, b) => a.offset - b.offset);
}

type Picture = {
  readonly collections: readonly CollectionStats[];
  readonly parts: readonly PinnedPart[];
};

/** The newest view, walked once. */
function readPicture(client: Client, names: ReadonlyMap<number, string>): Picture {
  const { reader } = client;
  const { arena } = client.context;
  reader.slot.enter();
  try {
    const view = reader.reloadView();
    const collections: CollectionStats[] = [];
    const pinned: PinnedPart[] = [];
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
          pinned.push({ newest: view.maxTime(part), bytes: view.bytes(part) });
        }
        runs.push({ ...stats, rows, bytes, oldest, newest });
      }
      const id = view.idOf(block);
      const figures = readFigures(arena, view.figures(block));
      collections.push({
        id,
        name: names.get(id) ?? '',
        since: view.since(block),
        upper: view.upper(block),
        parts: runs.reduce((sum, run) => sum + run.parts, 0),
        rows: runs.reduce((sum, run) => sum + run.rows, 0),
        bytes: runs.reduce((sum, run) => sum + run.bytes, 0),
        ...figures,
        writeAmplification: amplification(figures.flushedBytes, figures.mergedBytesOut),
        runs,
      });
    }
    return { collections, parts: pinned };
  } finally {
    reader.leave();
  }
}
