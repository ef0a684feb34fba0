/**
 * What to merge next, read from the state whenever a worker is free, so that nothing is queued and
 * nothing can be forgotten. A job replaces neighbours inside one spine batch, shares no batch with a
 * job in flight, and takes at least `runsMin` runs; so a quiet spine keeps fewer runs than that in each
 * spine batch. What it costs are the bytes that it rewrites: parts that it only moves are free. Called by
 * the keeper, from the answered state; remembers nothing.
 */
import { compareBytes } from '../base/bytes.ts';
import { join, le } from '../base/frontier.ts';
import {
  fanInMax,
  KiB,
  MiB,
  partBytesTarget,
  runsHard,
  runsPerMerge,
  runsSoft,
} from '../base/limits.ts';
import { joinSince, NO_SUMS, repeatedRows, runBytes, runCount, sumsOf } from './batch.ts';
import type { Hollow, Placed, Run, SpineBatch, SpinePart } from './batch.ts';
import { LoneParts, mayShrink, movedStretches } from './moved-parts.ts';
import type { MergeResult } from './spine.ts';

/** The worth of a job that cannot do otherwise: opening files costs about this many bytes. */
const jobBytesFixed: number = 64 * KiB;
/** In these bytes given back all worth is counted. */
const worthBytes: number = 64 * KiB;
/** Removing a run that hardly anybody reads is worth as much as giving back 4 MiB. */
const runWorth: number = (4 * MiB) / worthBytes;
/** So many reads a second that go down to the runs double it; it grows no further than sixteenfold. */
const readsPerSecondDouble = 1_000;
const readHeatMax = 16;
/** A second of age weighs as much as removing a run at this many bytes a run. */
const ageWeight: number = runWorth / (600 * MiB);
/** A share of rows in doubt that a collection not merged with its oldest run yet is taken to drop. */
export const overlapUnknown = 0.8;
/** More than this share of the live bytes to be given back: worth a rewrite; of an idle collection less. */
const reclaimShare = 0.5;
const reclaimShareIdle = 0.08;
/** So much of what may be given back at the most is taken to be that which is yet to come. */
const COMING_SHARE_MAX = 0.9;
/** Below this nothing is rewritten for space alone. */
const reclaimBytesMin: number = 256 * KiB;
/** What a cursor reads ahead at the most (run-cursor.ts). */
const readAheadBytes: number = 256 * KiB;
/** Runs joined by reference keep parts of at least this mean share of a part's size. */
const joinedPartShare = 1 / 4;

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
  /** To be rewritten. */
  readonly bytes: number;
  /** Of parts that go into the result as they are, and into how many stretches of it. */
  readonly bytesMoved: number;
  readonly stretchesMoved: number;
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
  /** Memory of a job's cursors together; two runs are always taken. */
  readonly memoryMax?: number;
  /** What jobs sent now may forget, and `overlap` of spaceOf: both for the worth of giving bytes back. */
  readonly since?: number;
  readonly overlap?: number;
  /** How long the collection has had something to merge; breaks ties between collections. */
  readonly ageMs?: number;
  /** Reads a second that go down to the collection's runs. */
  readonly readsPerSecond?: number;
  /** How the job will make its parts: what it need not rewrite follows from it. */
  readonly partBytes?: number;
  readonly codec?: number;
  /** Remembers what is looked at again and again. */
  readonly lone?: LoneParts;
};

/** How many times more a run's removal is worth for being read so often. */
export function readHeat(readsPerSecond: number): number {
  return Math.min(readHeatMax, 1 + readsPerSecond / readsPerSecondDouble);
}

/** Runs a read may have to visit. */
export function liveRuns(batches: readonly SpineBatch[]): number {
  let count = 0;
  for (const batch of batches) count += runCount(batch);
  return count;
}

/** Bytes that wait for a merge: of spine batches with at least so many runs. */
export function debtBytes(batches: readonly SpineBatch[], runsMin = 2): number {
  let bytes = 0;
  for (const batch of batches) {
    if (runCount(batch) < runsMin) continue;
    for (const part of batch.parts) for (const run of part.hollow.runs) bytes += runBytes(run);
  }
  return bytes;
}

/** The gate for this many live runs: few are left alone, many are merged by pairs if need be. */
export function runsMinFor(runs: number): number {
  return runs > runsSoft ? 2 : runsPerMerge;
}

/** What a collection's parts take, and what merging all of them is thought to give back. */
export type Space = {
  readonly bytes: number;
  /** Of the oldest run, which holds what is live but for what came later. */
  readonly oldestBytes: number;
  readonly reclaimable: number;
};

/**
 * An estimate from the parts' own figures: tombstones with what they hide, versions that `since` has
 * passed. Whether a newer run overwrites rows of the oldest no figure says: `overlap` is the share of
 * those newer rows which `since` has passed that a merge of all is thought to drop (key-count.ts).
 */
export function spaceOf(batches: readonly SpineBatch[], since: number, overlap: number): Space {
  let bytes = 0;
  let oldestBytes = 0;
  let rowBytes = 0;
  let known = 0;
  let newer = 0;
  let isOldest = true;
  for (const { parts } of batches) {
    for (const { hollow } of parts) {
      for (const run of hollow.runs) {
        const runBytesHere = runBytes(run);
        bytes += runBytesHere;
        if (isOldest) {
          oldestBytes = runBytesHere;
          rowBytes = runBytesHere / run.len;
        }
        for (const part of run.parts) {
          known += reclaimIn(part, hollow.desc.since, since, rowBytes, isOldest);
          if (!isOldest) newer += part.bytes * pastShare(part, since);
        }
        isOldest = false;
      }
    }
  }
  return { bytes, oldestBytes, reclaimable: Math.min(bytes, Math.max(known, newer * overlap)) };
}

/** Rows of each of these runs, the oldest first; of those after it only what `since` has passed, which is all that hides others. */
export function lensAt(runs: readonly Run[], since: number): number[] {
  return runs.map(({ len, parts }, i) => {
    if (i === 0) return len;
    let past = 0;
    for (const part of parts) past += part.len * pastShare(part, since);
    return past;
  });
}

/** Of a part's times, which are taken to be spread evenly, the share that is past. */
function pastShare(part: SpinePart, since: number): number {
  return shareOf(since, part.minT - 1, part.maxT);
}

/**
 * Bytes that part `part`, consolidated at `forgot`, would give back at `since`. Of the oldest run what could
 * go then has gone: a multiset's counts below nothing stay.
 */
function reclaimIn(
  part: SpinePart,
  forgot: number,
  since: number,
  rowBytesBelow: number,
  isOldest: boolean,
): number {
  const { len, bytes, minT, maxT, negatives } = part;
  const rowBytes = bytes / len;
  const newlyPast = shareOf(since, Math.max(forgot, minT - 1), maxT);
  const past = isOldest ? newlyPast : pastShare(part, since);
  const tombstones = past * negatives * (rowBytes + rowBytesBelow);
  const versions = newlyPast * repeatedRows(part) * rowBytes;
  return Math.min(bytes + tombstones, tombstones + versions);
}

function shareOf(at: number, from: number, to: number): number {
  if (at <= from) return 0;
  return at >= to ? 1 : (at - from) / (to - from);
}

/** What flushes are slowed down by at the soft mark of runs: a tenth of their rate is left. */
const SHARE_AT_SOFT = 0.9;

/**
 * Work the writers must wait for: 0 none, above 0 a share of full delay, 1 nothing more is flushed. Runs
 * delay from half their soft mark on, ever more, so that where merges can keep up with any writing at all
 * there is a rate at which the soft mark is not reached; what is beyond it came all the same.
 */
export function backpressure(runs: number, debt: number, debtSoft: number): number {
  if (runs > runsHard) return 1;
  const half = runsSoft / 2;
  const byRuns =
    runs <= runsSoft
      ? ((runs - half) / half) * SHARE_AT_SOFT
      : SHARE_AT_SOFT + ((runs - runsSoft) / (runsHard - runsSoft)) * (0.99 - SHARE_AT_SOFT);
  const byDebt = debtSoft > 0 ? (debt - debtSoft) / (3 * debtSoft) : 0;
  return Math.max(0, Math.min(0.99, Math.max(byRuns, byDebt)));
}

/**
 * The same for bytes that are only to be given back, `coming` among them: those that the next flush adds,
 * and those of merged files that are not deleted yet. A small collection that is written over and over is
 * held close, for each of its merges is soon done; a large one may take as much again as is live, and
 * half of that, while a merge of all of it goes on. From 1 on it is too much; more says how far.
 */
export function spacePressure(space: Space, flushBytes: number, coming: number): number {
  const live = Math.max(space.oldestBytes, space.bytes - space.reclaimable);
  const share = 0.5 + Math.min(1, live / (16 * flushBytes));
  const hard = flushBytes + live * share;
  const soft = hard / 3;
  // Where nothing is to be given back yet, no merge would make room for what comes.
  const bytes = space.reclaimable + Math.min(coming, COMING_SHARE_MAX * hard);
  return Math.max(0, (bytes - soft) / (hard - soft));
}

/** The collection takes so much more than it should that it is merged for that alone. */
export function wantsSpace(space: Space, isIdle: boolean): boolean {
  const { bytes, reclaimable } = space;
  const share = isIdle ? reclaimShareIdle : reclaimShare;
  return reclaimable > Math.max(reclaimBytesMin, share * (bytes - reclaimable));
}

/** Where a job would read: parts [from, to) of a spine batch, or `runsMax` runs of the one part from `firstRun` on. */
type Window = {
  batch: number;
  from: number;
  to: number;
  firstRun: number;
  oldest: boolean;
  bytes: number;
  moved: Moved;
  score: number;
};

/** Of a window's parts what a job does not rewrite. */
type Moved = { readonly bytes: number; readonly stretches: number };

const NOTHING_MOVED: Moved = { bytes: 0, stretches: 0 };

const WHOLE = -1;

/** The best job, or undefined when nothing is worth one. */
export function chooseMerge<P extends SpinePart>(
  batches: readonly SpineBatch<P>[],
  needs: MergeNeeds,
): MergeChoice<P> | undefined {
  const runsMin = needs.runsMin ?? runsPerMerge;
  const limits: Limits = {
    busy: needs.busy,
    runsMin,
    runsMax: needs.runsMax ?? fanInMax,
    bytesMax: needs.bytesMax ?? Number.POSITIVE_INFINITY,
    memoryMax: needs.memoryMax ?? Number.POSITIVE_INFINITY,
    since: needs.since ?? 0,
    overlap: needs.overlap ?? 0,
    runWorth: runWorth * readHeat(needs.readsPerSecond ?? 0),
    partBytes: needs.partBytes ?? partBytesTarget,
    codec: needs.codec ?? 0,
    lone: needs.lone ?? new LoneParts(),
  };
  const best: Window = {
    batch: -1,
    from: 0,
    to: 0,
    firstRun: WHOLE,
    oldest: false,
    bytes: 0,
    moved: NOTHING_MOVED,
    score: Number.NEGATIVE_INFINITY,
  };
  let isOldest = true;
  for (let i = 0; i < batches.length; i++) {
    const runs = runCount(batches[i]);
    if (runs >= runsMin) {
      improve(best, i, batches[i].parts, isOldest, limits);
    }
    if (runs > 0) isOldest = false;
  }
  if (best.batch < 0) return undefined;
  const parts = batches[best.batch].parts.slice(best.from, best.to);
  return choiceOf(parts, best, limits.runsMax, needs.ageMs ?? 0);
}

type Limits = {
  readonly busy: ReadonlySet<number>;
  readonly runsMin: number;
  readonly runsMax: number;
  readonly bytesMax: number;
  readonly memoryMax: number;
  readonly since: number;
  readonly overlap: number;
  readonly runWorth: number;
  readonly partBytes: number;
  readonly codec: number;
  readonly lone: LoneParts;
};

/**
 * Tries every window of neighbours that are not busy: which is best depends on the sizes alone. Few
 * parts are in a spine batch, for each job leaves one of those it read, and a window is short.
 */
function improve(
  best: Window,
  batch: number,
  parts: readonly Placed[],
  inOldest: boolean,
  limits: Limits,
): void {
  const { busy, runsMin, runsMax, bytesMax, memoryMax, since, overlap } = limits;
  let oldest = inOldest;
  const take = (
    from: number,
    to: number,
    firstRun: number,
    runs: number,
    bytesRead: number,
    reclaim: number,
    moved: Moved,
  ): void => {
    const worth = (runs - 1) * limits.runWorth + reclaim / worthBytes;
    const bytes = bytesRead - moved.bytes;
    const score = worth / (bytes + jobBytesFixed);
    if (bytes > bytesMax || score <= best.score) return;
    best.batch = batch;
    best.from = from;
    best.to = to;
    best.firstRun = firstRun;
    best.oldest = oldest && firstRun <= 0;
    best.bytes = bytes;
    best.moved = moved;
    best.score = score;
  };
  for (let from = 0; from < parts.length; from++) {
    const { bid, runs: firstRuns } = parts[from].hollow;
    if (!busy.has(bid)) {
      const most = runsFitting(firstRuns, runsMax, memoryMax);
      if (firstRuns.length > most) {
        const firstRun = cheapestRuns(firstRuns, most);
        take(
          from,
          from + 1,
          firstRun,
          most,
          runsBytes(firstRuns, firstRun, most),
          0,
          NOTHING_MOVED,
        );
      }
    }
    let runs = 0;
    let bytes = 0;
    let memory = 0;
    let reclaim = 0;
    const below = oldest ? firstRuns[0] : undefined;
    const rowBytesBelow = below === undefined ? 0 : runBytes(below) / below.len;
    let newer = 0;
    for (let to = from; to < parts.length; to++) {
      const { hollow } = parts[to];
      runs += hollow.runs.length;
      for (const run of hollow.runs) memory += runMemory(run);
      const isTooMuch = runs > runsMax || (runs > 2 && memory > memoryMax);
      if (busy.has(hollow.bid) || isTooMuch) break;
      bytes += runsBytes(hollow.runs, 0, hollow.runs.length);
      for (const run of hollow.runs) {
        for (const part of run.parts) {
          const isOldest = run === below;
          reclaim += reclaimIn(part, hollow.desc.since, since, rowBytesBelow, isOldest);
          if (below !== undefined && !isOldest) newer += part.bytes * pastShare(part, since);
        }
      }
      if (runs < runsMin) continue;
      const moved = movedOf(parts, from, to + 1, bytes, limits);
      take(from, to + 1, WHOLE, runs, bytes, Math.max(reclaim, newer * overlap), moved);
    }
    if (firstRuns.length > 0) oldest = false;
  }
}

/** What a job on parts [from, to) would move. Where range deletes are to hide rows only the job knows. */
function movedOf(
  parts: readonly Placed[],
  from: number,
  to: number,
  bytes: number,
  { since, partBytes, codec, lone }: Limits,
): Moved {
  // A stretch that is moved is worth a part.
  if (bytes <= partBytes) return NOTHING_MOVED;
  const hollows: Hollow[] = [];
  for (let i = from; i < to; i++) {
    const { hollow } = parts[i];
    for (const run of hollow.runs) {
      for (const part of run.parts) {
        if (part.rangeDeletes > 0 && le(part.minT, since)) return NOTHING_MOVED;
      }
    }
    hollows.push(hollow);
  }
  const stretches = movedStretches(lone.of(hollows), { since, partBytes, codec, hiding: [] });
  if (stretches.length === 0) return NOTHING_MOVED;
  let moved = 0;
  for (const stretch of stretches) for (const part of stretch) moved += part.bytes;
  return { bytes: moved, stretches: stretches.length };
}

/** How many neighbours among the runs a job may take at once, whichever they are; two at least. */
function runsFitting(runs: readonly Run[], runsMax: number, memoryMax: number): number {
  let largest = 0;
  for (const run of runs) largest = Math.max(largest, runMemory(run));
  return Math.max(2, Math.min(runsMax, largest === 0 ? runsMax : Math.floor(memoryMax / largest)));
}

/** What a job holds of a run while it reads it: a block, and what it reads ahead. */
function runMemory(run: Run): number {
  let block = 0;
  for (const { bytes, blockCount } of run.parts) {
    if (blockCount !== undefined) block = Math.max(block, bytes / blockCount);
  }
  return Math.max(2 * block, readAheadBytes);
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
    bytesMoved: window.moved.bytes,
    stretchesMoved: window.moved.stretches,
    score: window.score + ageMs * (ageWeight / 1_000),
  };
  if (firstRun === WHOLE) return choice;
  return { ...choice, runIds: runs.map((run) => run.runId) };
}

/**
 * A result that rewrites nothing: batches of which at most one has a run, or runs with disjoint keys,
 * become one batch with the same parts. To be applied at once; it creates no file, so nothing is to be
 * cleaned up after it. Not where a rewrite at `since` could reclaim.
 */
export function chooseMove<P extends SpinePart>(
  batches: readonly SpineBatch<P>[],
  busy: ReadonlySet<number>,
  since: number,
  partBytes: number = partBytesTarget,
): MergeResult<P> | undefined {
  for (const { parts } of batches) {
    if (parts.some((part) => busy.has(part.hollow.bid))) continue;
    const runs = parts.flatMap((part) => part.hollow.runs);
    if (parts.length < 2 && runs.length < 2) continue;
    const bytesMin = partBytes * joinedPartShare;
    const joined =
      runs.length <= 1 ? runs.map((run) => run.parts) : joinedByKey(runs, since, bytesMin);
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

/**
 * A run that loses parts by an edit alone, unread: those that `covers` says lie wholly inside a range
 * delete at or below `since` and newer than all they hold (spine.md 4.6d). Files die with their last part.
 */
export function chooseCovered<P extends SpinePart>(
  batches: readonly SpineBatch<P>[],
  busy: ReadonlySet<number>,
  since: number,
  covers: (part: P) => boolean,
): MergeResult<P> | undefined {
  for (const { hollow } of batches.flatMap((batch) => batch.parts)) {
    if (busy.has(hollow.bid)) continue;
    for (const run of hollow.runs) {
      const covered = run.parts.filter((part) => part.rangeDeletes === 0 && covers(part));
      if (covered.length === 0) continue;
      const kept = run.parts.filter((part) => !covered.includes(part));
      return {
        inputs: [hollow.bid],
        ...(hollow.runs.length === 1 ? {} : { runIds: [run.runId] }),
        since: join(hollow.desc.since, since),
        runs: kept.length === 0 ? [] : [kept],
        output: sumsOf([{ parts: kept }]),
        dropped: sumsOf([{ parts: covered }]),
        folded: 0,
      };
    }
  }
  return undefined;
}

/** All parts as one run, in key order, when no two runs overlap. */
function joinedByKey<P extends SpinePart>(
  runs: readonly Run<P>[],
  since: number,
  bytesMin: number,
): readonly (readonly P[])[] | undefined {
  let count = 0;
  let bytes = 0;
  for (const run of runs) {
    for (const part of run.parts) {
      // A retraction wants its insertion, a range delete covers what its keys do not tell.
      if (part.negatives > 0 || part.rangeDeletes > 0 || mayShrink(part, since)) return undefined;
      count += 1;
      bytes += part.bytes;
    }
  }
  if (bytes < count * bytesMin) return undefined;
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
