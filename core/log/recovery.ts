/**
 * Opens a log: finds its segments, verifies them, tells a torn tail from damage, and says where the
 * writer goes on.
 */
import type { RecordHeader } from './record.ts';
import type { Storage } from '../storage/storage.ts';
import type { LogOptions, LogPosition, LogResume } from './writer.ts';

/** What the manifest knows of the log. */
export type LogFacts = {
  readonly logId: Uint8Array;
  /** Log start: what lies below was pruned, not lost. */
  readonly firstSeq: number;
  readonly firstOffset: number;
  /** Where the log stood at the flushed upper; undefined: nothing was ever flushed. */
  readonly start: LogPosition | undefined;
  /** Highest upper that a synced edit names: all offsets below were durable. */
  readonly witness: number;
};

export type RecoveryOptions = LogOptions & {
  /** Changes nothing: a torn tail is a result, there is no `resume`. */
  readonly readOnly: boolean;
  /** Every torn tail is an error. */
  readonly strictTail: boolean;
  /** Bytes read at once; default 1 MiB. */
  readonly readBytes?: number;
};

/**
 * Takes one commit: its numbers, and its payload at bytes[offset, offset + length), both valid during
 * the call. False: no room now, the same record comes again at a later step.
 */
export type RecordFeed = (
  record: RecordHeader,
  bytes: Uint8Array,
  offset: number,
  length: number,
) => boolean;

/** One segment of the log as it now is. */
export type LogSegment = {
  readonly seq: number;
  readonly baseOffset: number;
  readonly baseAtMs: number;
};

export type TornTail = {
  readonly seq: number;
  readonly position: number;
  /** Bytes that were not zero, kept in `quarantine` (undefined when read-only). */
  readonly bytes: number;
  readonly quarantine: string | undefined;
  /** Intact but unproven records behind the tear, which went with it. */
  readonly records: number;
};

export class LogRecovery {
  /** Where a writer goes on; undefined until the last step, and when read-only. */
  resume: LogResume | undefined = undefined;
  /** First offset not in the log. */
  next = 0;
  epoch = 0;
  atMs = 0;
  /** The log ended with CLEAN. */
  clean = false;
  torn: TornTail | undefined = undefined;
  /** Commits at the end that nothing proved durable, written again. */
  suspectCount = 0;
  readonly segments: LogSegment[] = [];
  /** Files to unlink once the store is open. */
  readonly orphans: string[] = [];
  readonly warnings: string[] = [];
  /** The last step did nothing because `feed` had no room. */
  waiting = false;

  constructor(storage: Storage, facts: LogFacts, options: RecoveryOptions, feed: RecordFeed) {
    void storage;
    void facts;
    void options;
    void feed;
  }

  /** At most one storage call. True while there is more to do. Throws TIDEMARK_CORRUPT and others. */
  step(): boolean {
    throw new Error('not yet');
  }

  /** Where the log stands after the last record fed. */
  mark(): LogPosition {
    throw new Error('not yet');
  }

  /** Gives descriptors back after a failure. */
  release(): void {}
}

/** True when any segment file holds a record: a store without a manifest may be created only if not. */
export function logHoldsRecords(storage: Storage): boolean {
  void storage;
  throw new Error('not yet');
}
