/**
 * The values a spine is made of: hollow batches (pointers to runs of parts), the spine batches that
 * group neighbours, and the flat state that the manifest stores. All are immutable: a change makes new
 * values, so views and snapshots of the state may share them. Called by the keeper, policy and manifest.
 */
import { compareBytes } from '../base/bytes.ts';
import { advance, isFrontier, join, le, lt, meet } from '../base/frontier.ts';
import { KIND_KEYED, addDiffSum } from '../base/update.ts';

/** What the spine asks of a part; `PartInfo` of the part format is one. */
export type SpinePart = {
  readonly file: number;
  readonly offset: number;
  readonly bytes: number;
  /** Updates, range deletes included; never 0. */
  readonly len: number;
  readonly keyLo: Uint8Array;
  readonly keyHi: Uint8Array;
  readonly minT: number;
  readonly maxT: number;
  /** Tombstones, or updates with a negative diff. */
  readonly negatives: number;
  readonly rangeDeletes: number;
  /** Keys, or keys with a value where rows are updates; left out: no two rows are of one. */
  readonly distinct?: number;
  /** By which its blocks were to be compressed; left out: none. */
  readonly codec?: number;
  readonly diffSum: number;
  readonly hash: readonly [number, number];
  /** Rows of an attached part carry no time: all have this one. */
  readonly at?: number;
  readonly blockCount?: number;
};

/** All updates with times in [lower, upper); below `since` times may be blurred. */
export type Description = {
  readonly lower: number;
  readonly upper: number;
  readonly since: number;
};

/** Positions [a, b) in the order of pushes. They name a place, not contents. */
export type SpineId = readonly [number, number];

/** Parts ascending by key without overlap. */
export type Run<P extends SpinePart = SpinePart> = {
  readonly runId: number;
  readonly parts: readonly P[];
  readonly len: number;
};

/** Runs oldest to newest. Empty <=> len 0 <=> no runs. `bid` names exactly these contents, for ever. */
export type Hollow<P extends SpinePart = SpinePart> = {
  readonly bid: number;
  readonly desc: Description;
  readonly runs: readonly Run<P>[];
  readonly len: number;
};

/** A hollow batch at its place. */
export type Placed<P extends SpinePart = SpinePart> = {
  readonly id: SpineId;
  readonly hollow: Hollow<P>;
};

/** What a level holds: neighbours whose pointers were concatenated. `len` bounds the true size. */
export type SpineBatch<P extends SpinePart = SpinePart> = {
  readonly id: SpineId;
  readonly desc: Description;
  readonly parts: readonly Placed<P>[];
  readonly len: number;
};

/** A spine batch without its parts, which are the placed hollow batches inside `id`. */
export type BatchEntry = {
  readonly id: SpineId;
  readonly level: number;
  readonly desc: Description;
};

export type MergeEntry = {
  readonly id: SpineId;
  readonly since: number;
  readonly remaining: number;
};

/** The whole spine, flat. Entries ascend by id; `restore` gives back the same structure. */
export type SpineState<P extends SpinePart = SpinePart> = {
  readonly since: number;
  readonly hollows: readonly Placed<P>[];
  readonly batches: readonly BatchEntry[];
  readonly merges: readonly MergeEntry[];
};

/** The effect of some operations on one spine. `merges` is the whole new list, which is short. */
export type SpineDelta<P extends SpinePart = SpinePart> = {
  readonly since: number;
  readonly hollowsRemoved: readonly number[];
  readonly hollowsAdded: readonly Placed<P>[];
  readonly batchesRemoved: readonly SpineId[];
  readonly batchesAdded: readonly BatchEntry[];
  readonly merges: readonly MergeEntry[];
};

export const EMPTY_STATE: SpineState<never> = { since: 0, hollows: [], batches: [], merges: [] };

/** More than any spine may hold, and the level above which none is believed: 8 * 2^48 is a safe integer. */
export const lenMax: number = 2 ** 48;
export const levelMax = 48;

/** 2^k as a number: 1 << k is wrong from 31 on. */
export const POWERS: readonly number[] = Array.from({ length: 53 }, (_, k) => 2 ** k);

/** The smallest k with len <= 2^k. */
export function levelOf(len: number): number {
  if (len <= 1) return 0;
  if (len <= 0x4000_0000) return 32 - Math.clz32(len - 1);
  let k = 30;
  while (POWERS[k] < len) k++;
  return k;
}

export function isEmpty(hollow: Hollow): boolean {
  return hollow.runs.length === 0;
}

export function runCount(batch: SpineBatch): number {
  let count = 0;
  for (const part of batch.parts) count += part.hollow.runs.length;
  return count;
}

/** At most one hollow batch with at most one run: nothing to merge. */
export function isCompact(batch: SpineBatch): boolean {
  return batch.parts.length <= 1 && runCount(batch) <= 1;
}

export function runBytes(run: Run): number {
  let bytes = 0;
  for (const part of run.parts) bytes += part.bytes;
  return bytes;
}

/** Rows of the part that stand for what another of its rows says too: versions, or diffs to be summed. */
export function repeatedRows(part: SpinePart): number {
  const rows = part.len - part.rangeDeletes;
  return rows - (part.distinct ?? rows);
}

export function partsLen(parts: readonly SpinePart[]): number {
  let len = 0;
  for (const part of parts) len += part.len;
  return len;
}

/** A join over descriptions' sinces. */
export function joinSince<P extends SpinePart>(parts: readonly Placed<P>[], since: number): number {
  let joined = since;
  for (const part of parts) joined = join(joined, part.hollow.desc.since);
  return joined;
}

/** Figures that a merge must conserve: rows, diffs and two uint32 hash lanes, all summed. */
export type Sums = {
  readonly len: number;
  readonly diffSum: number;
  readonly hash: readonly [number, number];
};

export const NO_SUMS: Sums = { len: 0, diffSum: 0, hash: [0, 0] };

export function sumsOf(runs: Iterable<{ readonly parts: readonly SpinePart[] }>): Sums {
  let len = 0;
  let diffSum = 0;
  let h0 = 0;
  let h1 = 0;
  for (const run of runs) {
    for (const part of run.parts) {
      len += part.len;
      diffSum = addDiffSum(diffSum, part.diffSum);
      h0 = (h0 + part.hash[0]) | 0;
      h1 = (h1 + part.hash[1]) | 0;
    }
  }
  return { len, diffSum, hash: [h0 >>> 0, h1 >>> 0] };
}

export function addSums(a: Sums, b: Sums): Sums {
  return {
    len: a.len + b.len,
    diffSum: addDiffSum(a.diffSum, b.diffSum),
    hash: [(a.hash[0] + b.hash[0]) >>> 0, (a.hash[1] + b.hash[1]) >>> 0],
  };
}

/** What is wrong with a state or batch: a stable word in capitals and a sentence. */
export type Finding = { readonly finding: string; readonly message: string };

function found(finding: string, message: string): Finding {
  return { finding, message };
}

/**
 * What is wrong with these runs under that description, if anything. Times of a keyed collection lie
 * inside the bounds; others may have been raised to `since`, which may lie above the upper.
 */
export function runsFinding(
  runs: readonly { readonly parts: readonly SpinePart[] }[],
  desc: Description,
  kind: number,
): Finding | undefined {
  const timeMax = kind === KIND_KEYED ? desc.upper - 1 : join(desc.upper - 1, desc.since);
  for (const { parts } of runs) {
    if (parts.length === 0) return found('EMPTY_RUN', 'a run has no parts');
    for (let i = 0; i < parts.length; i++) {
      const part = parts[i];
      if (part.len < 1) return found('EMPTY_PART', 'a part has no updates');
      if (!le(part.minT, part.maxT)) return found('PART_TIMES', 'a part ends before it begins');
      if (lt(part.minT, desc.lower) || lt(timeMax, part.maxT)) {
        return found(
          'TIME_OUT_OF_BOUNDS',
          `times ${part.minT}..${part.maxT} outside [${desc.lower}, ${desc.upper})`,
        );
      }
      if (part.len === part.rangeDeletes) continue;
      if (compareBytes(part.keyLo, part.keyHi) > 0) {
        return found('PART_KEYS', 'a part has its key bounds reversed');
      }
      const before = i === 0 ? undefined : parts[i - 1];
      // Multiset parts may share an edge key: its values go on in the next part.
      if (before !== undefined && before.len !== before.rangeDeletes) {
        const order = compareBytes(before.keyHi, part.keyLo);
        if (order > 0) return found('RUN_ORDER', 'the parts of a run overlap');
      }
    }
  }
  return undefined;
}

/**
 * Runs of keyed and upsert collections ascend in time without overlap, for there the newest run
 * answers. Only range deletes share the time of their attached run; upsert times below `since` are blurred.
 */
export function timeOrderFinding(
  runs: Iterable<{ readonly parts: readonly SpinePart[] }>,
  kind: number,
  since: number,
): Finding | undefined {
  let last = -1;
  let lastIsRangeDeletes = false;
  for (const { parts } of runs) {
    let minT = Number.MAX_SAFE_INTEGER;
    let maxT = 0;
    let onlyRangeDeletes = true;
    for (const part of parts) {
      minT = meet(minT, part.minT);
      maxT = join(maxT, part.maxT);
      if (part.len !== part.rangeDeletes) onlyRangeDeletes = false;
    }
    const ascends =
      kind === KIND_KEYED
        ? lt(last, minT) || (last === minT && lastIsRangeDeletes)
        : le(advance(last, since), advance(minT, since));
    if (!ascends)
      return found('RUN_TIMES', `a run begins at ${minT}, the one before ends at ${last}`);
    last = maxT;
    lastIsRangeDeletes = onlyRangeDeletes;
  }
  return undefined;
}

/** What is wrong with one hollow batch by itself (I8), if anything. */
export function hollowFinding(hollow: Hollow, kind: number): Finding | undefined {
  const { desc, runs } = hollow;
  if (!isFrontier(desc.lower) || !isFrontier(desc.upper) || !isFrontier(desc.since)) {
    return found('BAD_FRONTIER', `batch ${hollow.bid} has a frontier out of range`);
  }
  if (!le(desc.lower, desc.upper)) {
    return found('BOUNDS_REVERSED', `batch ${hollow.bid} has lower above upper`);
  }
  let len = 0;
  for (const run of runs) {
    if (run.len !== partsLen(run.parts)) {
      return found('LEN_MISMATCH', `run ${run.runId} counts ${run.len} updates, its parts differ`);
    }
    len += run.len;
  }
  if (len !== hollow.len) {
    return found(
      'LEN_MISMATCH',
      `batch ${hollow.bid} counts ${hollow.len} updates, its runs ${len}`,
    );
  }
  return runsFinding(runs, desc, kind);
}

/** Some part with rows: range deletes are alike for every kind of collection. */
export function rowPart<P extends SpinePart>(state: SpineState<P>): P | undefined {
  for (const { hollow } of state.hollows) {
    for (const run of hollow.runs) {
      const part = run.parts.at(-1);
      // Those with range deletes come first.
      if (part !== undefined && part.len !== part.rangeDeletes) return part;
    }
  }
  return undefined;
}
