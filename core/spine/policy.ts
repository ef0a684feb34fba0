/**
 * What to merge next, read from the state whenever a worker is free, so that nothing is queued and
 * nothing can be forgotten. A job replaces neighbours inside one spine batch, shares no batch with a
 * job in flight, and takes at least `runsMin` runs; so a quiet spine keeps fewer runs than that in each
 * spine batch. Called by the keeper, from the answered state; remembers nothing.
 */
import { compareBytes } from '../base/bytes.ts';
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
import type { Placed, Run, SpineBatch, SpinePart } from './batch.ts';
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

/** The best job, or undefined when nothing is worth one. */
export function chooseMerge<P extends SpinePart>(
  batches: readonly SpineBatch<P>[],
  needs: MergeNeeds,
): MergeChoice<P> | undefined {
  const runsMin = needs.runsMin ?? runsPerMerge;
  const runsMax = needs.runsMax ?? fanInMax;
  const ageScore = (needs.ageMs ?? 0) * (ageWeight / 1_000);
  let best: MergeChoice<P> | undefined;
  const offer = (choice: MergeChoice<P>): void => {
    if (best === undefined || choice.score > best.score) best = choice;
  };
  let runsBefore = 0;
  for (const batch of batches) {
    if (runCount(batch) >= runsMin) {
      offerWindows(batch, runsBefore === 0, needs.busy, runsMin, runsMax, ageScore, offer);
    }
    runsBefore += runCount(batch);
  }
  return best;
}

/**
 * Every window of neighbours that are not busy: which one is best depends on the sizes alone. A spine
 * batch has few parts, for compaction keeps replacing them by one.
 */
function offerWindows<P extends SpinePart>(
  batch: SpineBatch<P>,
  isOldest: boolean,
  busy: ReadonlySet<number>,
  runsMin: number,
  runsMax: number,
  ageScore: number,
  offer: (choice: MergeChoice<P>) => void,
): void {
  const { parts } = batch;
  let runsBefore = 0;
  for (let from = 0; from < parts.length; from++) {
    const first = parts[from].hollow;
    const oldest = isOldest && runsBefore === 0;
    if (!busy.has(first.bid) && first.runs.length > runsMax) {
      offer(partialChoice(parts[from], oldest, runsMax, ageScore));
    }
    let runs = 0;
    let bytes = 0;
    for (let to = from; to < parts.length; to++) {
      const { hollow } = parts[to];
      runs += hollow.runs.length;
      if (busy.has(hollow.bid) || runs > runsMax) break;
      for (const run of hollow.runs) bytes += runBytes(run);
      if (runs < runsMin) continue;
      const score = scoreOf(runs, bytes, ageScore);
      offer(windowChoice(parts.slice(from, to + 1), oldest, bytes, score));
    }
    runsBefore += first.runs.length;
  }
}

function scoreOf(runs: number, bytes: number, ageScore: number): number {
  return (runs - 1) / (bytes + jobBytesFixed) + ageScore;
}

function windowChoice<P extends SpinePart>(
  parts: readonly Placed<P>[],
  oldest: boolean,
  bytes: number,
  score: number,
): MergeChoice<P> {
  const runs = parts.flatMap((part) => part.hollow.runs);
  return {
    inputs: parts.map((part) => part.hollow.bid),
    runs,
    lower: parts[0].hollow.desc.lower,
    upper: parts.at(-1)!.hollow.desc.upper,
    sinceMin: joinSince(parts, 0),
    oldest,
    len: sumsOf(runs).len,
    bytes,
    score,
  };
}

/** A batch with more runs than a job takes: its cheapest neighbouring runs. */
function partialChoice<P extends SpinePart>(
  placed: Placed<P>,
  oldest: boolean,
  runsMax: number,
  ageScore: number,
): MergeChoice<P> {
  const { runs } = placed.hollow;
  let from = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i + runsMax <= runs.length; i++) {
    let bytes = 0;
    for (let j = i; j < i + runsMax; j++) bytes += runBytes(runs[j]);
    if (bytes >= least) continue;
    least = bytes;
    from = i;
  }
  const chosen = runs.slice(from, from + runsMax);
  const score = scoreOf(runsMax, least, ageScore);
  const whole = windowChoice([placed], oldest && from === 0, least, score);
  return {
    ...whole,
    runIds: chosen.map((run) => run.runId),
    runs: chosen,
    len: sumsOf(chosen).len,
  };
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
 * The level below which everything should become one spine batch when reads visit too many runs and no
 * job can help: every spine batch is merged already, there are just many. Undefined: leave them.
 */
export function collapseLevel(
  batches: readonly { level: number; runs: number }[],
): number | undefined {
  const runs = batches.reduce((sum, batch) => sum + batch.runs, 0);
  if (!(runs > runsSoft)) return undefined;
  let below = 0;
  // Newest first: the small ones, whose rewrite is cheap.
  for (const batch of batches.toReversed()) {
    below += batch.runs;
    if (below >= runsPerMerge) return batch.level + 1;
  }
  return undefined;
}
