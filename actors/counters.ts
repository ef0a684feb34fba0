/**
 * What each actor and client counts, by name; the index in the list is the counter's place in shared
 * memory. `engine.stats()` shows them under these names, which are stable.
 */
import { Counters, countersBytes, readCounter } from '../core/shared/counters.ts';
import type { Arena } from '../core/shared/arena.ts';
import { invariant } from '../core/base/assert.ts';
import { COUNTERS_BYTES } from './topology.ts';

export const SEQUENCER_COUNTERS = [
  'records',
  'transactions',
  'operations',
  'refused',
  'seals',
  'stallsForSpare',
  'stallsForLog',
  'resent',
] as const;

export const DURABILITY_COUNTERS = [
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
] as const;

export const KEEPER_COUNTERS = [
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
  'moves',
  'jobsFailed',
  'edits',
  'editBatches',
  'rollups',
  'filesDeleted',
  'segmentsDeleted',
  'stallMsForRuns',
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
] as const;

export const COMPACTOR_COUNTERS = ['jobs', 'jobsLarge', 'jobMs', 'prepares', 'failed'] as const;

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

export const CLIENT_COUNTERS = [
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
] as const;

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

/** Index of a counter by its name, checked by the compiler. */
export function indexIn<N extends string>(names: readonly N[], name: NoInfer<N>): number {
  return names.indexOf(name);
}

export function makeCounters(arena: Arena, address: number, names: readonly string[]): Counters {
  return new Counters(arena, address, names.length);
}

/** Published values by name. */
export function readCounters(
  arena: Arena,
  address: number,
  names: readonly string[],
): Record<string, number> {
  return Object.fromEntries(names.map((name, i) => [name, readCounter(arena, address, i)]));
}
