/**
 * Spines as they were before offset E: what restore and truncate make of parts that hold updates at or
 * above it. Runs that lie wholly below stay, runs wholly above go, the others are written anew by the merge
 * job with `cut`. Requires: every `since` is below E, so nothing that was there at E - 1 has been forgotten.
 * Called by restore over the new store's files, by truncate over the store's own.
 */
import { le, lt } from '../base/frontier.ts';
import { partBytesTarget } from '../base/limits.ts';
import { CATALOG_ID, KIND_KEYED, OP_DELETE } from '../base/update.ts';
import { rowPart } from '../spine/batch.ts';
import type { Hollow, Run, SpineState } from '../spine/batch.ts';
import type { Counters } from '../spine/manifest.ts';
import { MergeJob } from '../spine/merge-job.ts';
import { partRef } from '../spine/part-format.ts';
import type { PartInfo } from '../spine/part-format.ts';
import { readFooters } from '../spine/part-reader.ts';
import { OwnRunParts, RunCursor } from '../spine/run-cursor.ts';
import { Spine } from '../spine/spine.ts';
import type { Storage } from '../storage/storage.ts';
import type { Machine, Progress } from './report.ts';

type Spines = ReadonlyMap<number, SpineState<PartInfo>>;

/** Rows done between two looks at the clock. */
const FUEL = 4_096;

/** The id that a row of the catalog gives to a collection; undefined for other rows. */
export type CollectionIdOf = (key: Uint8Array, value: Uint8Array) => number | undefined;

/** Runs of the spines that hold something below `end`: what of the files is needed. */
export function neededBelow(spines: Spines, end: number): Set<number> {
  const files = new Set<number>();
  for (const spine of spines.values()) {
    for (const { hollow } of spine.hollows) {
      for (const run of hollow.runs) {
        if (lt(minTOf(run), end)) for (const part of run.parts) files.add(part.file);
      }
    }
  }
  return files;
}

function minTOf(run: Run<PartInfo>): number {
  return Math.min(...run.parts.map(({ minT }) => minT));
}

function maxTOf(run: Run<PartInfo>): number {
  return Math.max(...run.parts.map(({ maxT }) => maxT));
}

export type CutSpines = {
  readonly spines: Map<number, SpineState<PartInfo>>;
  readonly counters: Counters;
};

/** Writes what must be written anew into files with new ids; changes none that is there. */
export function* cutSpines(
  storage: Storage,
  spines: Spines,
  counters: Counters,
  end: number,
  progress: Progress,
): Machine<CutSpines> {
  const next = { ...counters };
  const cut = new Map<number, SpineState<PartInfo>>();
  const ids = { bid: () => next.bid++, run: () => next.run++ };
  for (const [collection, state] of spines) {
    const last = state.hollows.at(-1);
    if (last === undefined) continue;
    const spine = new Spine<PartInfo>({ kind: rowPart(state)?.kind ?? KIND_KEYED, ids });
    spine.advanceSince(state.since);
    const kept: { readonly hollow: Hollow<PartInfo>; readonly runs: (readonly PartInfo[])[] }[] =
      [];
    for (const { hollow } of state.hollows) {
      if (le(end, hollow.desc.lower)) break;
      const runs: (readonly PartInfo[])[] = [];
      for (const run of hollow.runs) {
        const parts = yield* cutRun(storage, collection, hollow, run, next, end, progress);
        if (parts.length > 0) runs.push(parts);
      }
      if (runs.length > 0) kept.push({ hollow, runs });
    }
    // The last one reaches as far as the spine did: others may have forgotten what lies above its own upper.
    const reach = Math.min(last.hollow.desc.upper, end);
    for (const [i, { hollow, runs }] of kept.entries()) {
      const upper = i + 1 < kept.length ? hollow.desc.upper : reach;
      spine.push({ lower: spine.upper, upper, since: hollow.desc.since, runs });
    }
    if (spine.len > 0) cut.set(collection, spine.state());
  }
  return { spines: cut, counters: next };
}

function* cutRun(
  storage: Storage,
  collection: number,
  hollow: Hollow<PartInfo>,
  run: Run<PartInfo>,
  next: { file: number },
  end: number,
  progress: Progress,
): Machine<readonly PartInfo[]> {
  if (lt(maxTOf(run), end)) return run.parts;
  if (le(end, minTOf(run))) return [];
  let bytes = 0;
  for (const part of run.parts) bytes += part.bytes;
  const count = Math.ceil(bytes / (partBytesTarget / 2)) + 2;
  const outFiles = { first: next.file, count };
  next.file += count;
  const job = new MergeJob(storage, {
    jobId: 1,
    collection,
    kind: run.parts[0].kind,
    inputs: [
      {
        bid: hollow.bid,
        desc: hollow.desc,
        runs: [{ runId: run.runId, parts: run.parts.map(partRef) }],
      },
    ],
    since: hollow.desc.since,
    // What lies below is not looked at, so no tombstone may go.
    oldest: false,
    cut: end,
    outFiles,
  });
  let isDone = false;
  try {
    while (job.step(FUEL)) yield;
    isDone = true;
  } finally {
    if (!isDone) job.cancel();
  }
  progress.doneBytes += bytes;
  const refs = job.result().runs.flatMap(({ parts }) => parts);
  yield;
  return refs.length === 0 ? [] : readFooters(storage, refs);
}

/**
 * First offset from which on every collection that the catalog names still has its rows: one that was
 * dropped since has lost them with its spine.
 */
export function* keptFrom(storage: Storage, spines: Spines, idOf: CollectionIdOf): Machine<number> {
  const droppedAt = new Map<string, number[]>();
  const lost: { key: string; time: number }[] = [];
  for (const { hollow } of spines.get(CATALOG_ID)?.hollows ?? []) {
    for (const run of hollow.runs) {
      const cursor = new RunCursor(storage, new OwnRunParts(storage, run.parts));
      try {
        for (cursor.first(); cursor.valid; cursor.next()) {
          const { keyBytes, keyOffset, keyLength, time } = cursor;
          const bytes = keyBytes.slice(keyOffset, keyOffset + keyLength);
          const key = Buffer.from(bytes).toString('latin1');
          if (cursor.kind === OP_DELETE) {
            droppedAt.set(key, [...(droppedAt.get(key) ?? []), time]);
            continue;
          }
          cursor.loadValue();
          const { valueBytes, valueOffset, valueLength } = cursor;
          const id = idOf(bytes, valueBytes.slice(valueOffset, valueOffset + valueLength));
          if (id !== undefined && !spines.has(id)) lost.push({ key, time });
        }
      } finally {
        cursor.leave();
      }
      yield;
    }
  }
  let from = 0;
  for (const { key, time } of lost) {
    // Never dropped, it never had a row.
    const drops = (droppedAt.get(key) ?? []).filter((at) => at > time);
    if (drops.length > 0) from = Math.max(from, Math.min(...drops));
  }
  return from;
}
