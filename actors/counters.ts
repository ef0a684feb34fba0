/**
 * What each actor and client counts, by name; the index in the list is the counter's place in shared
 * memory. `engine.stats()` shows them under these names, which are stable. Histograms lie behind the
 * counters of their block, HISTOGRAM_WORDS numbers each. What every key means: docs/metrics.md.
 */
import { HISTOGRAM_WORDS, summarize } from '../core/base/histogram.ts';
import type { Histogram } from '../core/base/histogram.ts';
import { Counters, countersBytes, readCounter } from '../core/shared/counters.ts';
import type { Arena } from '../core/shared/arena.ts';
import { invariant } from '../core/base/assert.ts';
import { COUNTERS_BYTES } from './topology.ts';

/** Waits for room by cause, in the order of `STALL_CAUSES` (stalls.ts): how many are over, and for how long. */
export const STALL_COUNTERS = [
  'stallsForMemory',
  'stallMsForMemory',
  'stallsForFlush',
  'stallMsForFlush',
  'stallsForDebt',
  'stallMsForDebt',
  'stallsForDisk',
  'stallMsForDisk',
  'stallsForLog',
  'stallMsForLog',
] as const;

const SEQUENCER_OWN = [
  'records',
  'transactions',
  'operations',
  'refused',
  'seals',
  'resent',
  'refusedForConflict',
  'refusedForSpace',
  'paced',
  'pacedMs',
  'clockHeldBack',
  'clockHeldBackMs',
] as const;

export const SEQUENCER_COUNTERS: readonly [...typeof SEQUENCER_OWN, ...typeof STALL_COUNTERS] = [
  ...SEQUENCER_OWN,
  ...STALL_COUNTERS,
];

const DURABILITY_OWN = [
  'records',
  'transactions',
  'batches',
  'writes',
  'bytesWritten',
  'syncs',
  'syncMs',
  'syncMsMax',
  'rotations',
  'watermarks',
  'zeroedBytes',
  'recoveredTransactions',
  'tornBytes',
  'bytesStaged',
  'bytesInPlace',
  'unsyncedBytes',
  'roomBytes',
  'sparesReady',
  'sparesMissing',
  'sparesMade',
  'sparesRecycled',
  'recoveryVerdict',
  'recoveryMs',
  'recoveredRecords',
  'recoveredBytes',
  'suspects',
  'slowCalls',
  'slowCallMs',
] as const;

export const DURABILITY_COUNTERS: readonly [...typeof DURABILITY_OWN, ...typeof STALL_COUNTERS] = [
  ...DURABILITY_OWN,
  ...STALL_COUNTERS,
];

/** Behind the counters of the keeper. */
export const KEEPER_HISTOGRAMS = ['manifestUs'] as const;

/** Behind the counters of durability. */
export const DURABILITY_HISTOGRAMS = ['batchBytes', 'writeUs', 'syncUs'] as const;

/** What recovery found, as a counter says it. */
export const RECOVERY_VERDICTS = ['created', 'clean', 'unclean', 'torn'] as const;

const KEEPER_OWN = [
  'views',
  'flushes',
  'flushedRows',
  'flushedBytes',
  'merges',
  'mergedRowsIn',
  'mergedRowsOut',
  'mergedBytesIn',
  'mergedBytesOut',
  'mergesRefused',
  'mergeChecksFailed',
  'partsMoved',
  'bytesMoved',
  'moves',
  'jobsFailed',
  'edits',
  'editBatches',
  'rollups',
  'filesDeleted',
  'segmentsDeleted',
  'flushDelayMs',
  'debtBytes',
  'liveRunsMost',
  'batchesDegraded',
  'segmentsCompressed',
  'segmentsArchived',
  'archiveWaiting',
  'archiveFailures',
  'jobsRunning',
  'sealed',
  'flushedUpper',
  'segments',
  'workWaiting',
  'checkpoints',
  'checkpointNewer',
  'checkpointOlder',
  'checkpointAtMs',
  'logFloor',
  'logFloorHolder',
  'flushJobs',
  'mergeJobs',
  'partFiles',
  'partBytes',
  'filesPending',
  'retired',
  'orphans',
  'editBytes',
] as const;

export const KEEPER_COUNTERS: readonly [...typeof KEEPER_OWN, ...typeof STALL_COUNTERS] = [
  ...KEEPER_OWN,
  ...STALL_COUNTERS,
];

/** Of each collection with parts, by the keeper; a view says where (core/spine/view.ts). */
export const COLLECTION_COUNTERS = [
  'batches',
  'spineBatches',
  'compact',
  'compacting',
  'nonCompact',
  'levels',
  'doubles',
  'debtBytes',
  'flushes',
  'flushedRows',
  'flushedBytes',
  'merges',
  'mergesRefused',
  'mergesFailed',
  'mergedRowsIn',
  'mergedRowsOut',
  'mergedBytesIn',
  'mergedBytesOut',
  'bytesMoved',
  'moves',
  'readsPerSecond',
] as const;

export const COMPACTOR_COUNTERS = [
  'jobs',
  'jobsLarge',
  'jobMs',
  'prepares',
  'failed',
  'stuck',
] as const;

export const EVICTOR_COUNTERS = [
  'rows',
  'bytes',
  'pages',
  'inserted',
  'updated',
  'evicted',
  'applied',
  'offersTaken',
  'offersStale',
  'offersTooLarge',
  'touches',
] as const;

const CLIENT_OWN = [
  'reads',
  'memtableHits',
  'cacheHits',
  'cacheAbsent',
  'fileReads',
  'fileBytes',
  'filterSkips',
  'filterFalse',
  'offers',
  'offersDropped',
  'viewRetries',
  'partReads',
  'runsVisited',
  'recordsByTurn',
  'recordsByCount',
  'recordsByPage',
  'recordsAlone',
  'recordsLarge',
  'refusedBusy',
  'refusedTooLarge',
  'refusedForSpace',
] as const;

export const CLIENT_COUNTERS: readonly [...typeof CLIENT_OWN, ...typeof STALL_COUNTERS] = [
  ...CLIENT_OWN,
  ...STALL_COUNTERS,
];

export const ACTOR_COUNTERS: readonly (readonly string[])[] = [
  SEQUENCER_COUNTERS,
  DURABILITY_COUNTERS,
  KEEPER_COUNTERS,
  COMPACTOR_COUNTERS,
  EVICTOR_COUNTERS,
];

for (const names of [...ACTOR_COUNTERS, CLIENT_COUNTERS]) {
  invariant(countersBytes(names.length) <= COUNTERS_BYTES, 'counters fit their block');
}
invariant(
  countersBytes(DURABILITY_COUNTERS.length + DURABILITY_HISTOGRAMS.length * HISTOGRAM_WORDS) <=
    COUNTERS_BYTES,
  'histograms fit their block',
);

/** Index of a counter by its name, checked by the compiler. */
export function indexIn<N extends string>(names: readonly N[], name: NoInfer<N>): number {
  return names.indexOf(name);
}

/** Place of a histogram's first word, behind the counters of its block. */
export function histogramIn<N extends string>(
  counters: readonly string[],
  names: readonly N[],
  name: NoInfer<N>,
): number {
  return counters.length + names.indexOf(name) * HISTOGRAM_WORDS;
}

export function makeCounters(
  arena: Arena,
  address: number,
  names: readonly string[],
  histograms: readonly string[] = [],
): Counters {
  return new Counters(arena, address, names.length + histograms.length * HISTOGRAM_WORDS);
}

/** A published histogram; `first` is from `histogramIn`. */
export function readHistogram(arena: Arena, address: number, first: number): Histogram {
  const words = Array.from({ length: HISTOGRAM_WORDS }, (_, i) =>
    readCounter(arena, address, first + i),
  );
  return summarize(words);
}

/** Published values by name. */
export function readCounters(
  arena: Arena,
  address: number,
  names: readonly string[],
): Record<string, number> {
  return Object.fromEntries(names.map((name, i) => [name, readCounter(arena, address, i)]));
}
