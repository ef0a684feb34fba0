/**
 * What to merge next, read from the state whenever a worker is free, so that nothing is queued and
 * nothing can be forgotten. A job replaces neighbours inside one spine batch, shares no batch with a
 * job in flight, and takes at least `runsMin` runs; so a quiet spine keeps fewer runs than that in each
 * spine batch. Called by the keeper, from the answered state; remembers nothing.
 */
import { compareBytes } from '../base/bytes.ts';
import { le } from '../base/frontier.ts';
import {
  fanInMax,
  KiB,
  MiB,
  partBytesTarget,
  runsHard,
  runsPerMerge,
  runsSoft,
} from '../base/limits.ts';
import { isCompact, joinSince, NO_SUMS, runBytes, runCount, sumsOf } from './batch.ts';
import type { Hollow, Placed, Run, SpineBatch, SpinePart } from './batch.ts';
import type { MergeResult } from './spine.ts';

/** The worth of a job that cannot do otherwise: opening files costs about this many bytes. */
const jobBytesFixed: number = 64 * KiB;
/** A second of age weighs as much as removing a run at this many bytes a run. */
const ageWeight: number = 1 / (600 * MiB);
/** Runs joined by reference keep parts of at least this mean size. */
const movedPartBytesMin: number = partBytesTarget / 4;

export type MergeChoice<P extends SpinePart = SpinePart> = {
  /** Bids, oldest first. */
  readonly inputs: readonly number[];
  /** Runs of the one batch in `inputs` that are to be merged, when not all of it fits a job. */
  readonly runIds?: readonly number[];
  /** The runs to read, oldest first. */
  readonly runs: readonly Run<P>[];
  readonly lower: number;
  readonly upper: number;
  /** The most any input has forgotten: a result may not forget less. */
  readonly sinceMin: number;
  /** The inputs hold the oldest run of the collection: below it nothing can come to light. */
  readonly oldest: boolean;
  readonly len: number;
  readonly bytes: number;
  readonly score: number;
};

export type MergeNeeds = {
  /** Bids of jobs in flight and of edits not answered. */
  readonly busy: ReadonlySet<number>;
  /** Runs that make a job worth while: `runsPerMerge`, or 2 for an idle collection. */
  readonly runsMin?: number;
  readonly runsMax?: number;
  /** Inputs together: for the worker that is kept from large jobs, so that small ones never queue up. */
  readonly bytesMax?: number;
  /** How long the collection has had something to merge; breaks ties between collections. */
  readonly ageMs?: number;
};

/** Runs a read may have to visit. */
export function liveRuns(batches: readonly SpineBatch[]): number {
  let count = 0;
  for (const batch of batches) count += runCount(batch);
  return count;
}

/** Bytes that lie in spine batches not yet merged into one run. */
export function debtBytes(batches: readonly SpineBatch[]): number {
  let bytes = 0;
  for (const batch of batches) {
    if (isCompact(batch)) continue;
    for (const part of batch.parts) for (const run of part.hollow.runs) bytes += runBytes(run);
  }
  return bytes;
}

/** The gate for this many live runs: few are left alone, many are merged by pairs if need be. */
export function runsMinFor(runs: number): number {
  return runs > runsSoft ? 2 : runsPerMerge;
}

/** Work the writers must wait for: 0 none, above 0 a share of full delay, 1 nothing more is flushed. */
export function backpressure(runs: number, debt: number, flushBytesPerSecond: number): number {
  if (runs > runsHard) return 1;
  const byRuns = (runs - runsSoft) / (runsHard - runsSoft);
  const soft = 4 * flushBytesPerSecond * 10;
  const byDebt = soft > 0 ? (debt - soft) / (3 * soft) : 0;
  return Math.max(0, Math.min(0.99, Math.max(byRuns, byDebt)));
}

/** Where a job would read: parts [from, to) of a spine batch, or `runsMax` runs of the one part from `firstRun` on. */
type Window = {
  batch: number;
  from: number;
  to: number;
  firstRun: number;
  oldest: boolean;
  bytes: number;
  score: number;
};

const WHOLE = -1;

/** The best job, or undefined when nothing is worth one. */
export function chooseMerge<P extends SpinePart>(
  batches: readonly SpineBatch<P>[],
  needs: MergeNeeds,
): MergeChoice<P> | undefined {
  const runsMin = needs.runsMin ?? runsPerMerge;
  const runsMax = needs.runsMax ?? fanInMax;
  const bytesMax = needs.bytesMax ?? Number.POSITIVE_INFINITY;
  const best: Window = {
    batch: -1,
    from: 0,
    to: 0,
    firstRun: WHOLE,
    oldest: false,
    bytes: 0,
    score: Number.NEGATIVE_INFINITY,
  };
  let isOldest = true;
  for (let i = 0; i < batches.length; i++) {
    const runs = runCount(batches[i]);
    if (runs >= runsMin) {
      improve(best, i, batches[i].parts, isOldest, needs.busy, runsMin, runsMax, bytesMax);
    }
    if (runs > 0) isOldest = false;
  }
  if (best.batch < 0) return undefined;
  const parts = batches[best.batch].parts.slice(best.from, best.to);
  return choiceOf(parts, best, runsMax, needs.ageMs ?? 0);
}

/**
 * Tries every window of neighbours that are not busy: which is best depends on the sizes alone. Few
 * parts are in a spine batch, for each job leaves one of those it read, and a window is short.
 */
function improve(
  best: Window,
  batch: number,
  parts: readonly Placed[],
  isOldest: boolean,
  busy: ReadonlySet<number>,
  runsMin: number,
  runsMax: number,
  bytesMax: number,
): void {
  let oldest = isOldest;
  const take = (from: number, to: number, firstRun: number, runs: number, bytes: number): void => {
    const score = (runs - 1) / (bytes + jobBytesFixed);
    if (bytes > bytesMax || score <= best.score) return;
    best.batch = batch;
    best.from = from;
    best.to = to;
    best.firstRun = firstRun;
    best.oldest = oldest && firstRun <= 0;
    best.bytes = bytes;
    best.score = score;
  };
  for (let from = 0; from < parts.length; from++) {
    const { bid, runs: firstRuns } = parts[from].hollow;
    if (!busy.has(bid) && firstRuns.length > runsMax) {
      const firstRun = cheapestRuns(firstRuns, runsMax);
      take(from, from + 1, firstRun, runsMax, runsBytes(firstRuns, firstRun, runsMax));
    }
    let runs = 0;
    let bytes = 0;
    for (let to = from; to < parts.length; to++) {
      const { hollow } = parts[to];
      runs += hollow.runs.length;
      if (busy.has(hollow.bid) || runs > runsMax) break;
      bytes += runsBytes(hollow.runs, 0, hollow.runs.length);
      if (runs >= runsMin) take(from, to + 1, WHOLE, runs, bytes);
    }
    if (firstRuns.length > 0) oldest = false;
  }
}

/** Of a batch with more runs than a job takes: where the cheapest neighbours begin. */
function cheapestRuns(runs: readonly Run[], count: number): number {
  let from = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i + count <= runs.length; i++) {
    const bytes = runsBytes(runs, i, count);
    if (bytes >= least) continue;
    least = bytes;
    from = i;
  }
  return from;
}

function runsBytes(runs: readonly Run[], from: number, count: number): number {
  let bytes = 0;
  for (let i = from; i < from + count; i++) bytes += runBytes(runs[i]);
  return bytes;
}

function choiceOf<P extends SpinePart>(
  parts: readonly Placed<P>[],
  window: Window,
  runsMax: number,
  ageMs: number,
): MergeChoice<P> {
  const all = parts.flatMap((part) => part.hollow.runs);
  const { firstRun } = window;
  const runs = firstRun === WHOLE ? all : all.slice(firstRun, firstRun + runsMax);
  const choice = {
    inputs: parts.map((part) => part.hollow.bid),
    runs,
    lower: parts[0].hollow.desc.lower,
    upper: parts[parts.length - 1].hollow.desc.upper,
    sinceMin: joinSince(parts, 0),
    oldest: window.oldest,
    len: sumsOf(runs).len,
    bytes: window.bytes,
    score: window.score + ageMs * (ageWeight / 1_000),
  };
  if (firstRun === WHOLE) return choice;
  return { ...choice, runIds: runs.map((run) => run.runId) };
}

/**
 * A result that rewrites nothing: batches of which at most one has a run, or runs with disjoint keys,
 * become one batch with the same parts. To be applied at once; it creates no file, so nothing is to be
 * cleaned up after it. Not where a rewrite could reclaim.
 */
export function chooseMove<P extends SpinePart>(
  batches: readonly SpineBatch<P>[],
  busy: ReadonlySet<number>,
): MergeResult<P> | undefined {
  for (const { parts } of batches) {
    if (parts.some((part) => busy.has(part.hollow.bid))) continue;
    const runs = parts.flatMap((part) => part.hollow.runs);
    if (parts.length < 2 && runs.length < 2) continue;
    const joined = runs.length <= 1 ? runs.map((run) => run.parts) : joinedByKey(runs);
    if (joined === undefined) continue;
    return {
      inputs: parts.map((part) => part.hollow.bid),
      since: joinSince(parts, 0),
      runs: joined,
      output: sumsOf(runs),
      dropped: NO_SUMS,
      folded: 0,
    };
  }
  return undefined;
}

/**
 * Parts of newer runs with range deletes that may hide rows of the chosen ones from all who read at or
 * above `since`. `hollows` ascend, and are what readers are shown: their files stay while a job has them.
 */
export function hidingParts<P extends SpinePart>(
  hollows: readonly { readonly hollow: Hollow<P> }[],
  choice: Pick<MergeChoice<P>, 'runs'>,
  since: number,
): P[] {
  const chosen = new Set(choice.runs.map((run) => run.runId));
  const runs = hollows.flatMap(({ hollow }) => hollow.runs);
  const newest = runs.findLastIndex((run) => chosen.has(run.runId));
  return runs
    .slice(newest + 1)
    .flatMap((run) => run.parts)
    .filter((part) => part.rangeDeletes > 0 && le(part.minT, since));
}

/** All parts as one run, in key order, when no two runs overlap. */
function joinedByKey<P extends SpinePart>(
  runs: readonly Run<P>[],
): readonly (readonly P[])[] | undefined {
  let count = 0;
  let bytes = 0;
  for (const run of runs) {
    for (const part of run.parts) {
      // A retraction wants its insertion, a range delete covers what its keys do not tell.
      if (part.negatives > 0 || part.rangeDeletes > 0) return undefined;
      count += 1;
      bytes += part.bytes;
    }
  }
  if (bytes < count * movedPartBytesMin) return undefined;
  const order = runs.toSorted((a, b) => compareBytes(a.parts[0].keyLo, b.parts[0].keyLo));
  for (let i = 1; i < order.length; i++) {
    const edge = compareBytes(order[i - 1].parts.at(-1)!.keyHi, order[i].parts[0].keyLo);
    if (edge >= 0) return undefined;
  }
  return [order.flatMap((run) => run.parts)];
}

/**
 * The level below which everything should become one spine batch (`Spine.collapse`) when reads visit too
 * many runs and no job can help: every spine batch is merged already, there are just many. Undefined:
 * leave them. Batches oldest first.
 */
export function collapseLevel(
  batches: readonly { readonly level: number; readonly runs: number }[],
): number | undefined {
  let runs = 0;
  for (const batch of batches) runs += batch.runs;
  if (runs <= runsSoft) return undefined;
  let taken = 0;
  // Newest first: the small ones, whose rewrite is cheap.
  for (const batch of batches.toReversed()) {
    taken += batch.runs;
    if (taken >= runsPerMerge) return batch.level + 1;
  }
  return undefined;
}
