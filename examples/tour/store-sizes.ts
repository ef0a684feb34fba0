/**
 * Sizes for the tour's stores: small enough that even a short history fills memtables and segments,
 * so that flushes, rotations and merges happen; large enough for the largest revision, which is one
 * transaction. Called by main.ts and by the child that is killed.
 */
import { listTree } from './git.ts';
import type { Repository } from './git.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

/** A row's bytes beyond its path, about: operation header, mode, id, padding. */
const rowBytes = 64;
/** A revision's bytes in the log, about. */
const revisionBytes = 600;
const segmentsWanted = 16;
const memtablesWanted = 24;

export interface StoreSizes {
  readonly memtableBytes: number;
  readonly segmentBytes: number;
}

export async function smallStore(repository: Repository): Promise<StoreSizes> {
  let treeBytes = 0;
  for await (const record of listTree(repository, repository.headTree)) {
    treeBytes += record.length + rowBytes;
  }
  // The first revision of a shallow clone is a whole tree, and one that moves all is two.
  const largestBytes = 2 * treeBytes;
  const historyBytes = treeBytes + repository.revisionCount * revisionBytes;
  // A transaction of up to 4 MiB fits any store; a larger one wants a memtable of its size.
  const memtableBytes = Math.max(
    largestBytes > 4 * MiB ? largestBytes : 0,
    historyBytes / memtablesWanted,
  );
  return {
    memtableBytes: clamp(powerOfTwoFrom(memtableBytes), 16 * KiB, 64 * MiB),
    segmentBytes: clamp(powerOfTwoFrom(historyBytes / segmentsWanted), 16 * KiB, 8 * MiB),
  };
}

function powerOfTwoFrom(bytes: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, bytes)));
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}
