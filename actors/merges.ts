/**
 * Merges as the keeper sees them: which is the best now, which are under way, what becomes of their
 * results. A job is chosen from the state when a worker is free; until it is over its inputs are nobody
 * else's, and the files it reads stay. A result that is refused leaves no trace, of the spine or on the
 * disk. A part of the keeper, on its thread.
 */
import { corrupt, fromPlainError } from '../core/base/errors.ts';
import type { TidemarkError } from '../core/base/errors.ts';
import { join } from '../core/base/frontier.ts';
import { MiB, partBytesTarget } from '../core/base/limits.ts';
import type { Counters } from '../core/shared/counters.ts';
import { sumsOf } from '../core/spine/batch.ts';
import type { MergeResult as JobMergeResult } from '../core/spine/merge-job.ts';
import { isRangePart, partRef } from '../core/spine/part-format.ts';
import type { PartInfo, PartRef } from '../core/spine/part-format.ts';
import {
  chooseMerge,
  chooseMove,
  collapseLevel,
  liveRuns,
  runsMinFor,
  hidingParts,
} from '../core/spine/policy.ts';
import type { MergeChoice } from '../core/spine/policy.ts';
import type { MergeResult, Spine } from '../core/spine/spine.ts';
import type { ActorContext } from './actor.ts';
import { KEEPER_COUNTERS, indexIn } from './counters.ts';
import type { Edits } from './edits.ts';
import { asFailure, REPLY_BYTES_FIXED, REPLY_BYTES_PER_PART } from './job-desk.ts';
import type { JobDesk } from './job-desk.ts';
import type { Job } from './jobs.ts';
import type { PartStore } from './part-store.ts';
import type { Collection, SpineTable } from './spine-table.ts';
import { levelAt } from './views.ts';
import type { Views } from './views.ts';

/** Jobs above this are large: one worker is kept from them. */
const LARGE_JOB_BYTES: number = 64 * MiB;
/** A collection untouched for so long is merged into as few runs as can be. */
const IDLE_MERGE_MS = 30_000;

const MERGES: number = indexIn(KEEPER_COUNTERS, 'merges');
const MERGE_JOBS: number = indexIn(KEEPER_COUNTERS, 'mergeJobs');
const MERGED_ROWS_IN: number = indexIn(KEEPER_COUNTERS, 'mergedRowsIn');
const MERGED_ROWS_OUT: number = indexIn(KEEPER_COUNTERS, 'mergedRowsOut');
const MERGED_BYTES_IN: number = indexIn(KEEPER_COUNTERS, 'mergedBytesIn');
const MERGED_BYTES_OUT: number = indexIn(KEEPER_COUNTERS, 'mergedBytesOut');
const MERGES_REFUSED: number = indexIn(KEEPER_COUNTERS, 'mergesRefused');
const MOVES: number = indexIn(KEEPER_COUNTERS, 'moves');

/** A merge under way. */
type Merging = {
  readonly collection: Collection;
  readonly choice: MergeChoice<PartInfo>;
  /** Pinned while the job reads them. */
  readonly files: ReadonlySet<number>;
};

/** What it asks of the keeper. */
export type MergePorts = {
  readonly onFailure: (target: Collection, failure: TidemarkError) => void;
  readonly onSuccess: () => void;
};

export class Merges {
  readonly #context: ActorContext;
  readonly #counters: Counters;
  readonly #edits: Edits;
  readonly #spines: SpineTable;
  readonly #parts: PartStore;
  readonly #views: Views;
  readonly #desk: JobDesk;
  readonly #ports: MergePorts;
  /** What each reads. */
  readonly #merging: Set<Merging> = new Set();

  constructor(
    context: ActorContext,
    counters: Counters,
    keeper: {
      readonly edits: Edits;
      readonly spines: SpineTable;
      readonly parts: PartStore;
      readonly views: Views;
      readonly desk: JobDesk;
    },
    ports: MergePorts,
  ) {
    this.#context = context;
    this.#counters = counters;
    this.#edits = keeper.edits;
    this.#spines = keeper.spines;
    this.#parts = keeper.parts;
    this.#views = keeper.views;
    this.#desk = keeper.desk;
    this.#ports = ports;
  }

  /** A job reads parts of the collection. */
  isMerging(collection: Collection): boolean {
    for (const merging of this.#merging) if (merging.collection === collection) return true;
    return false;
  }

  /** Writes down how each spine stands that has changed. */
  publish(): void {
    for (const collection of this.#spines.values()) {
      if (!collection.figures.stale) continue;
      const reading = new Set<number>();
      for (const merging of this.#merging) {
        if (merging.collection !== collection) continue;
        for (const bid of merging.choice.inputs) reading.add(bid);
      }
      collection.figures.publish(collection.spine, reading);
    }
  }

  /** Collections in which something is worth a job now. */
  get waiting(): number {
    const now = this.#context.clock.ticksMs();
    let waiting = 0;
    for (const collection of this.#spines.values()) {
      if (this.#chooseFor(collection, now) !== undefined) waiting++;
    }
    return waiting;
  }

  /** Sends the best job, if any is worth one. */
  dispatch(nowMs: number): boolean {
    let best: MergeChoice<PartInfo> | undefined;
    let chosen: Collection | undefined;
    for (const collection of this.#spines.values()) {
      const choice = this.#chooseFor(collection, nowMs);
      if (choice === undefined) continue;
      if (choice.bytes > LARGE_JOB_BYTES && !this.#desk.hasCreditForLarge) continue;
      if (best === undefined || choice.score > best.score) {
        best = choice;
        chosen = collection;
      }
    }
    if (best === undefined || chosen === undefined) return false;
    return this.#send(chosen, best);
  }

  #chooseFor(collection: Collection, now: number): MergeChoice<PartInfo> | undefined {
    if (collection.retryAt > now) return undefined;
    const batches = collection.spine.batches();
    const idleMs = now - collection.touchedAt;
    const isIdle = idleMs >= IDLE_MERGE_MS || collection.compactWanted;
    return chooseMerge(batches, {
      busy: this.#busy(collection),
      runsMin: isIdle ? 2 : runsMinFor(liveRuns(batches)),
      ageMs: Math.min(idleMs, IDLE_MERGE_MS),
      // One worker is kept from large jobs: small ones must not starve behind them.
      ...(this.#desk.hasCreditForLarge ? {} : { bytesMax: LARGE_JOB_BYTES }),
    });
  }

  /** Batches that a job reads, or that no view shows yet. */
  #busy(collection: Collection): Set<number> {
    const busy = new Set<number>();
    for (const merging of this.#merging) {
      if (merging.collection !== collection) continue;
      for (const bid of merging.choice.inputs) busy.add(bid);
    }
    if (collection.unshown === 0) return busy;
    const shown = this.#views.shown(collection.id)?.state.hollows ?? [];
    const known = new Set(shown.map((placed) => placed.hollow.bid));
    for (const { hollow } of collection.spine.state().hollows) {
      if (!known.has(hollow.bid)) busy.add(hollow.bid);
    }
    return busy;
  }

  #send(collection: Collection, choice: MergeChoice<PartInfo>): boolean {
    const count = Math.ceil(choice.bytes / (partBytesTarget / 2)) + 2;
    const outFiles = this.#edits.takeFiles(count);
    if (outFiles === undefined) return false;
    const since = join(choice.sinceMin, this.#views.shown(collection.id)?.since ?? 0);
    const inputs = mergeInputs(collection.spine, choice);
    const shown = this.#views.shown(collection.id)?.state.hollows ?? [];
    const hiding = hidingParts(shown, choice, since);
    const request: Job = {
      kind: 'merge',
      request: {
        jobId: this.#desk.nextId,
        collection: collection.id,
        kind: collection.kind,
        inputs,
        hiding: hiding.map(partRef),
        since,
        oldest: choice.oldest,
        outFiles,
      },
    };
    const read = choice.runs.flatMap((run) => run.parts);
    const files = new Set([...read, ...hiding].map((part) => part.file));
    // Pieces of range deletes may be cut anew: twice as many at the most.
    const parts = count + choice.runs.length + 2 * read.filter(isRangePart).length;
    const reply = REPLY_BYTES_FIXED + parts * REPLY_BYTES_PER_PART;
    const large = choice.bytes > LARGE_JOB_BYTES;
    const merging: Merging = { collection, choice, files };
    const isSent = this.#desk.send(request, reply, large, (outcome) => {
      if (outcome.failure === undefined) {
        this.#onMerged(merging, outcome.value as JobMergeResult);
        return;
      }
      this.#end(merging);
      collection.figures.add('mergesFailed', 1);
      this.#ports.onFailure(collection, fromPlainError(outcome.failure));
      // Damage does not heal: the wish to compact is answered by what could be done.
      collection.compactWanted = false;
    });
    if (!isSent) {
      this.#edits.giveBackFiles(outFiles);
      return false;
    }
    this.#merging.add(merging);
    this.#counters.add(MERGE_JOBS, 1);
    collection.figures.stale = true;
    this.#parts.pin(files);
    return true;
  }

  #end(merging: Merging): void {
    this.#merging.delete(merging);
    merging.collection.figures.stale = true;
    this.#parts.unpin(merging.files);
  }

  #onMerged(merging: Merging, result: JobMergeResult): void {
    const refs = result.runs.flatMap((run) => run.parts);
    this.#parts.load(refs, (infos, failure) => {
      this.#end(merging);
      if (failure === undefined) {
        this.#ports.onSuccess();
        this.#applyResult(merging, result, infos!);
        return;
      }
      // What was made cannot be read back: as if the job had failed.
      this.#parts.discardOutputs(refs);
      merging.collection.figures.add('mergesFailed', 1);
      this.#ports.onFailure(merging.collection, asFailure(failure));
      merging.collection.compactWanted = false;
    });
  }

  #applyResult(merging: Merging, result: JobMergeResult, infos: readonly PartInfo[]): void {
    const { collection, choice } = merging;
    const runs = infos.length === 0 ? [] : [infos];
    const output = sumsOf(runs.map((parts) => ({ parts })));
    const merged: MergeResult<PartInfo> = {
      inputs: choice.inputs,
      ...(choice.runIds === undefined ? {} : { runIds: choice.runIds }),
      since: result.since,
      runs,
      output,
      dropped: result.dropped,
      folded: result.folded,
    };
    if (!this.#apply(collection, merged)) {
      this.#counters.add(MERGES_REFUSED, 1);
      collection.figures.add('mergesRefused', 1);
      // Only files that this job made, and that nothing refers to.
      for (const part of infos) this.#parts.discard(part);
      return;
    }
    collection.failures = 0;
    const counters = this.#counters;
    counters.add(MERGES, 1);
    counters.add(MERGED_ROWS_IN, choice.len);
    counters.add(MERGED_ROWS_OUT, result.len);
    counters.add(MERGED_BYTES_IN, choice.bytes);
    counters.add(MERGED_BYTES_OUT, result.stats.bytesWritten);
    const { figures } = collection;
    figures.add('merges', 1);
    figures.add('mergedRowsIn', choice.len);
    figures.add('mergedRowsOut', result.len);
    figures.add('mergedBytesIn', choice.bytes);
    figures.add('mergedBytesOut', result.stats.bytesWritten);
  }

  /** Swaps pointers and proposes the edit that says so; false when the spine refuses the result. */
  #apply(collection: Collection, result: MergeResult<PartInfo>): boolean {
    const { spine, id } = collection;
    const before = this.#edits.proposed.spines.get(id);
    if (result.since > spine.since) spine.advanceSince(result.since);
    const outcome = spine.apply(result);
    if (outcome.outcome !== 'applied') {
      // Rows vanished or appeared: nothing of this store may be trusted to a merge any more.
      if (outcome.outcome === 'checksumMismatch' || outcome.outcome === 'tooManyUpdates') {
        throw corrupt('MERGE_CHECK', `a merge of collection ${id}: ${outcome.message}`, {
          collection: id,
        });
      }
      return false;
    }
    this.#spines.propose(collection, before);
    return true;
  }

  /** Swaps that rewrite nothing, and structure that lets a later job take more at once. */
  linkMoves(): boolean {
    if (!this.#edits.hasIds(4)) return false;
    for (const collection of this.#spines.values()) {
      // One at a time: what is not shown is nobody's to move.
      if (collection.unshown > 0) continue;
      const move = chooseMove(collection.spine.batches(), this.#busy(collection));
      if (move !== undefined && this.#apply(collection, move)) {
        this.#counters.add(MOVES, 1);
        collection.figures.add('moves', 1);
        return true;
      }
      if (this.isMerging(collection)) continue;
      if (this.#collapse(collection)) return true;
    }
    return false;
  }

  #collapse(collection: Collection): boolean {
    const { spine } = collection;
    const runs = liveRuns(spine.batches());
    if (collection.compactWanted && runs <= 1) {
      collection.compactWanted = false;
      return true;
    }
    const state = spine.state();
    const level = collection.compactWanted
      ? spine.batches().length > 1
        ? spine.levelCount
        : undefined
      : collapseLevel(
          spine.batches().map((batch) => ({
            level: levelAt(state, batch.id[0]),
            runs: batch.parts.reduce((sum, part) => sum + part.hollow.runs.length, 0),
          })),
        );
    if (level === undefined) return false;
    const before = this.#edits.proposed.spines.get(collection.id);
    if (!spine.collapse(level)) return false;
    this.#spines.propose(collection, before);
    return true;
  }
}

function mergeInputs(
  spine: Spine<PartInfo>,
  choice: MergeChoice<PartInfo>,
): { bid: number; runs: { runId: number; parts: PartRef[] }[] }[] {
  const wanted = new Set(choice.runs.map((run) => run.runId));
  const byBid = new Map(spine.state().hollows.map((placed) => [placed.hollow.bid, placed.hollow]));
  return choice.inputs.map((bid) => ({
    bid,
    runs: byBid
      .get(bid)!
      .runs.filter((run) => wanted.has(run.runId))
      .map((run) => ({ runId: run.runId, parts: run.parts.map(partRef) })),
  }));
}
