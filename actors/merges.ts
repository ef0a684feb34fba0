/**
 * Merges as the keeper sees them: which is the best now, which are under way, what becomes of their
 * results. A job is chosen from the state when a worker is free; until it is over its inputs are nobody
 * else's, and the files it reads stay. A result that is refused leaves no trace, of the spine or on the
 * disk. A part of the keeper, on its thread.
 */
import { fromPlainError } from '../core/base/errors.ts';
import type { TidemarkError } from '../core/base/errors.ts';
import { invariant } from '../core/base/assert.ts';
import { NO_FRONTIER, join, le, lt, meet } from '../core/base/frontier.ts';
import { RangeSetReader } from '../core/base/range-set.ts';
import type { RangeDelete } from '../core/base/range-set.ts';
import { MiB, fanInMax, logBatchBytesMax } from '../core/base/limits.ts';
import type { Counters } from '../core/shared/counters.ts';
import { ReadHeat } from '../core/shared/read-heat.ts';
import { repeatedRows, runBytes, runCount, sumsOf } from '../core/spine/batch.ts';
import type { SpineState } from '../core/spine/batch.ts';
import { keyCountOf, overlapOf } from '../core/spine/key-count.ts';
import type { MergeInput, MergeResult as JobMergeResult } from '../core/spine/merge-job.ts';
import { isRangePart, partRef } from '../core/spine/part-format.ts';
import type { PartInfo, PartRef } from '../core/spine/part-format.ts';
import { LoneParts } from '../core/spine/moved-parts.ts';
import { shapeOf } from '../core/spine/part-writer.ts';
import type { PartShape } from '../core/spine/part-writer.ts';
import {
  chooseMerge,
  chooseCovered,
  chooseMove,
  collapseLevel,
  debtBytes,
  lensAt,
  overlapUnknown,
  runsMinFor,
  hidingParts,
  spaceOf,
  wantsSpace,
} from '../core/spine/policy.ts';
import type { MergeChoice, Space } from '../core/spine/policy.ts';
import type { MergeResult, Spine } from '../core/spine/spine.ts';
import type { ActorContext } from './actor.ts';
import type { Load } from './backpressure.ts';
import { KEEPER_COUNTERS, indexIn } from './counters.ts';
import type { Edits } from './edits.ts';
import {
  LARGE_JOB_BYTES,
  asFailure,
  REPLY_BYTES_FIXED,
  REPLY_BYTES_PER_PART,
  retryMs,
} from './job-desk.ts';
import type { JobDesk } from './job-desk.ts';
import type { Job } from './jobs.ts';
import { successor } from './key-range.ts';
import type { PartStore } from './part-store.ts';
import type { Collection, SpineTable } from './spine-table.ts';
import { levelAt } from './views.ts';
import { ROOM_RETRY_MS, isNoRoom } from './view-room.ts';
import type { ViewRoom } from './view-room.ts';
import type { Views } from './views.ts';

/** A collection untouched for so long is merged into as few runs as can be. */
const IDLE_MERGE_MS = 30_000;

const MERGES: number = indexIn(KEEPER_COUNTERS, 'merges');
const MERGE_JOBS: number = indexIn(KEEPER_COUNTERS, 'mergeJobs');
const MERGED_ROWS_IN: number = indexIn(KEEPER_COUNTERS, 'mergedRowsIn');
const MERGED_ROWS_OUT: number = indexIn(KEEPER_COUNTERS, 'mergedRowsOut');
const MERGED_BYTES_IN: number = indexIn(KEEPER_COUNTERS, 'mergedBytesIn');
const MERGED_BYTES_OUT: number = indexIn(KEEPER_COUNTERS, 'mergedBytesOut');
const MERGES_REFUSED: number = indexIn(KEEPER_COUNTERS, 'mergesRefused');
const MERGE_CHECKS_FAILED: number = indexIn(KEEPER_COUNTERS, 'mergeChecksFailed');
const BATCHES_DEGRADED: number = indexIn(KEEPER_COUNTERS, 'batchesDegraded');
const MOVES: number = indexIn(KEEPER_COUNTERS, 'moves');
const PARTS_MOVED: number = indexIn(KEEPER_COUNTERS, 'partsMoved');
const BYTES_MOVED: number = indexIn(KEEPER_COUNTERS, 'bytesMoved');

/** Memory that the cursors of one job may take. */
const JOB_MEMORY_MAX: number = 256 * MiB;
/** For less no room on the disk is asked about. */
const ROOM_BYTES_MIN: number = 1 * MiB;
/** So many failures of jobs on one batch are told to the operator. */
const DEGRADED_FAILURES = 5;
/** A merge of less than this share of the rows says little of what all of them overwrite. */
const TOLD_SHARE_MIN = 0.25;
/** Parts beyond those that are full. */
const PARTS_FIXED = 2;
/** What a job's texts take, and of a part in them, as question and in the answer. */
const TEXT_BYTES_FIXED: number = 4_096 + REPLY_BYTES_FIXED;
const TEXT_BYTES_PER_PART: number = 3 * REPLY_BYTES_PER_PART;
/** Who waits for what finds no room waits for so many tries. */
const ROOM_RETRIES_MAX = 5;

/** Merged files are gone by then, or somebody reads them for longer than a flush should wait. */
const LEAVING_MS_MAX = 1_000;

/** A merge under way. */
type Merging = {
  readonly collection: Collection;
  readonly choice: MergeChoice<PartInfo>;
  /** Pinned while the job reads them. */
  readonly files: ReadonlySet<number>;
  readonly jobId: number;
  /** What it was promised of the room of views. */
  readonly bytesPromised: number;
  /** Sent because somebody waits for it. */
  readonly isWished: boolean;
  /** Nobody wants its result any more. */
  cancelled: boolean;
};

/** What the choice looks at, until the spine changes. */
type Figures = {
  readonly state: SpineState<PartInfo>;
  readonly since: number;
  readonly keyCount: number;
  readonly rows: number;
  /** Of newer rows, the share that a merge of all is thought to drop. */
  readonly overlap: number;
  readonly runs: number;
  /** Of the spine batch that has most. */
  readonly runsMost: number;
  readonly debt: number;
  readonly space: Space;
};

/** What it asks of the keeper. */
export type MergePorts = {
  readonly onFailure: (failure: TidemarkError) => void;
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
  readonly #room: ViewRoom;
  readonly #ports: MergePorts;
  /** What was looked at for parts that range deletes cover. */
  readonly #lookedForCovered: WeakMap<
    Collection,
    { state: SpineState<PartInfo>; since: number; busy: number }
  > = new WeakMap();
  /** By part with range deletes: those that none of them covers, now that all of them are final. */
  readonly #uncovered: WeakMap<PartInfo, WeakSet<PartInfo>> = new WeakMap();
  readonly #merging: Set<Merging> = new Set();
  /** Of them a job was stopped for parts that are to leave by an edit: that comes before the next job. */
  readonly #leaving: WeakSet<Collection> = new WeakSet();
  readonly #figures: WeakMap<Collection, Figures> = new WeakMap();
  /** How often it was to be merged, somebody waits for it, and there was no room; and when that is counted next. */
  readonly #roomless: WeakMap<Collection, { count: number; nextAt: number }> = new WeakMap();
  readonly #lone: LoneParts = new LoneParts();
  readonly #heat: ReadHeat;

  constructor(
    context: ActorContext,
    counters: Counters,
    keeper: {
      readonly edits: Edits;
      readonly spines: SpineTable;
      readonly parts: PartStore;
      readonly views: Views;
      readonly desk: JobDesk;
      readonly room: ViewRoom;
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
    this.#room = keeper.room;
    this.#ports = ports;
    const { arena, clock, topology } = context;
    const readers = topology.clients.map(({ readHeat }) => readHeat);
    this.#heat = new ReadHeat(arena, readers, clock.ticksMs());
  }

  /** Hears how often collections are read. */
  warm(nowMs: number): void {
    if (!this.#heat.update(nowMs)) return;
    for (const { id, figures } of this.#spines.values()) {
      figures.setReadsPerSecond(this.#heat.of(id));
    }
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
      if (this.#chooseFor(collection, now, Infinity) !== undefined) waiting++;
    }
    return waiting;
  }

  /** What each collection adds to the pressure on flushes; `comingBytes`: what the next one brings it. */
  *loads(now: number, comingBytes: (collection: Collection) => number): Generator<Load> {
    for (const collection of this.#spines.values()) {
      const { runs, debt, space, overlap, rows } = this.#figuresOf(collection);
      const leaving = this.#leavingBytes(collection, now);
      const isMerging =
        leaving > 0 ||
        this.isMerging(collection) ||
        this.#isAboutToMerge(collection) ||
        this.#chooseFor(collection, now, Infinity) !== undefined;
      const isSpaceKnown = collection.keyCountRows >= TOLD_SHARE_MIN * rows;
      const coming = leaving + overlap * comingBytes(collection);
      yield { runs, debt, space, coming, isSpaceKnown, isMerging };
    }
  }

  /** What may be merged for its space is not chosen yet: no view shows it, or says what may be forgotten. */
  #isAboutToMerge(collection: Collection): boolean {
    if (collection.unshown === 0 && collection.staleViews === 0) return false;
    return wantsSpace(this.#figuresOf(collection).space, false);
  }

  /** Of what the newest merge of the collection has read, so much is still there, and for a moment only. */
  #leavingBytes(collection: Collection, now: number): number {
    const { leavingBytes, leavingSince, unshown } = collection;
    if (leavingBytes === 0 || now - leavingSince > LEAVING_MS_MAX) return 0;
    if (unshown > 0) return leavingBytes;
    return Math.min(leavingBytes, this.#parts.bytesLeaving);
  }

  /** Sends the best job, if any is worth one. */
  dispatch(nowMs: number): boolean {
    let free = Infinity;
    for (;;) {
      let best: MergeChoice<PartInfo> | undefined;
      let chosen: Collection | undefined;
      for (const collection of this.#spines.values()) {
        const choice = this.#chooseFor(collection, nowMs, free);
        if (choice === undefined) continue;
        if (best === undefined || choice.score > best.score) {
          best = choice;
          chosen = collection;
        }
      }
      if (best === undefined || chosen === undefined) {
        if (free === Infinity) this.#endRoomless(nowMs);
        return false;
      }
      if (best.bytes < ROOM_BYTES_MIN || free < Infinity) return this.#send(chosen, best);
      // Outputs may be as large as inputs: on a disk that is nearly full only what fits it, and leaves
      // the log and the next flush their room.
      const reserve = logBatchBytesMax + this.#context.config.memtableBytes;
      free = this.#context.storage.freeBytes() - reserve;
      // Those under way may have written nothing yet.
      for (const { choice } of this.#merging) free -= choice.bytes;
      if (best.bytes <= free) return this.#send(chosen, best);
    }
  }

  /** Who waits for what there is no room for hears that it is over: what could be done is done. */
  #endRoomless(now: number): void {
    if (this.#desk.running > 0) return;
    for (const collection of this.#spines.values()) {
      if (!collection.compactWanted) continue;
      if (this.#chooseFor(collection, now, Infinity, true) !== undefined) {
        this.#onRoomless(collection, now);
      }
    }
  }

  #onRoomless(collection: Collection, now: number): void {
    const known = this.#roomless.get(collection) ?? { count: 0, nextAt: now };
    if (now < known.nextAt) return;
    known.count++;
    known.nextAt = now + ROOM_RETRY_MS;
    this.#roomless.set(collection, known);
    if (known.count < ROOM_RETRIES_MAX) return;
    this.#roomless.delete(collection);
    collection.compactWanted = false;
    collection.rewriteWanted = false;
  }

  /** A job that rewrites so many bytes makes parts that can be shown. */
  #bytesForRoom(partBytes: number): number {
    const each = this.#parts.bytesToShow(1) + TEXT_BYTES_PER_PART;
    const parts = Math.floor((this.#room.bytesFreeAtMost - TEXT_BYTES_FIXED) / each) - PARTS_FIXED;
    return Math.max(0, parts * partBytes);
  }

  #chooseFor(
    collection: Collection,
    now: number,
    bytesMax: number,
    isRoomAmple: boolean = false,
  ): MergeChoice<PartInfo> | undefined {
    const { runs, runsMost, space, overlap } = this.#figuresOf(collection);
    if (runs === 0 || this.#leaving.has(collection)) return undefined;
    // It goes when the job that reads it has been stopped: no other is to follow.
    if (this.#spines.isGone(collection.id)) return undefined;
    const idleMs = now - collection.touchedAt;
    const isIdle = idleMs >= IDLE_MERGE_MS || collection.compactWanted;
    const isSpaceWanted = wantsSpace(space, isIdle);
    // What is merged for good, or for its space, is to forget all that it may.
    if ((isIdle || isSpaceWanted) && collection.staleViews > 0) return undefined;
    // Two at a time are too much for the disk only where writers make more meanwhile.
    if (isSpaceWanted && !isIdle && this.#leavingBytes(collection, now) > 0) return undefined;
    const isRewrite = collection.rewriteWanted && this.#isRewriteWorth(collection);
    const isWhole = collection.compactWanted || (isIdle && isSpaceWanted);
    let runsMin = isIdle || isSpaceWanted ? 2 : runsMinFor(runs);
    if (runs === 1 && (isSpaceWanted || isRewrite)) runsMin = 1;
    if (runsMost < runsMin) return undefined;
    const { partBytes, codec = 0 } = this.#shapeOf(collection);
    const fitting = isRoomAmple ? Infinity : this.#bytesForRoom(partBytes);
    const needs = {
      busy: this.#busy(collection, now),
      runsMin,
      bytesMax: Math.min(bytesMax, fitting),
      memoryMax: JOB_MEMORY_MAX,
      since: this.#sinceOf(collection),
      overlap,
      partBytes,
      codec,
      lone: this.#lone,
      readsPerSecond: this.#heat.of(collection.id),
      ageMs: Math.min(idleMs, IDLE_MERGE_MS),
    };
    // One worker is kept from large jobs: small ones must not starve behind them.
    const largest = this.#desk.hasCreditForLarge ? Infinity : LARGE_JOB_BYTES;
    const batches = collection.spine.batches();
    if (isWhole && runs > 1) {
      // Once for all, where it can be: not first within each spine batch and then across them.
      if (batches.length > 1 || collection.unshown > 0) return undefined;
      if (this.isMerging(collection)) return undefined;
      const whole = chooseMerge(batches, { ...needs, runsMin: Math.min(runs, fanInMax) });
      if (whole !== undefined) return whole.bytes > largest ? undefined : whole;
    }
    return chooseMerge(batches, { ...needs, bytesMax: Math.min(needs.bytesMax, largest) });
  }

  /**
   * What a job sent now may forget. Times are raised to it, so it stays below what is in no part yet: a
   * range delete there must still be above them.
   */
  #sinceOf(collection: Collection): number {
    const shown = this.#views.shown(collection.id);
    return shown === undefined ? 0 : meet(shown.since, Math.max(0, shown.upper - 1));
  }

  #figuresOf(collection: Collection): Figures {
    const { spine, keyCount } = collection;
    const state = spine.state();
    const isSinceStale = collection.staleViews > 0;
    // Before views have said all that may be forgotten it is taken to be everything: a merge asks first.
    const since = isSinceStale ? NO_FRONTIER : this.#sinceOf(collection);
    const known = this.#figures.get(collection);
    if (known?.state === state && known.since === since && known.keyCount === keyCount) {
      return known;
    }
    const batches = spine.batches();
    const all = batches.flatMap(({ parts }) => parts).flatMap(({ hollow }) => hollow.runs);
    const overlap = keyCount === 0 ? overlapUnknown : overlapOf(lensAt(all, since), keyCount);
    let runs = 0;
    let runsMost = 0;
    for (const batch of batches) {
      const count = runCount(batch);
      runs += count;
      runsMost = Math.max(runsMost, count);
    }
    const figures: Figures = {
      state,
      since,
      keyCount,
      rows: spine.len,
      overlap,
      runs,
      runsMost,
      debt: debtBytes(batches, runsMinFor(runs)),
      space: spaceOf(batches, since, overlap),
    };
    this.#figures.set(collection, figures);
    return figures;
  }

  /** The one run holds what `since` has passed meanwhile and a rewrite may leave out. */
  #isRewriteWorth(collection: Collection): boolean {
    const since = this.#sinceOf(collection);
    for (const { hollow } of collection.spine.state().hollows) {
      const { since: forgot } = hollow.desc;
      if (le(since, forgot)) continue;
      for (const { parts } of hollow.runs) {
        for (const part of parts) {
          if (le(part.maxT, forgot) || lt(since, part.minT)) continue;
          if (part.negatives > 0 || part.rangeDeletes > 0) return true;
          if (repeatedRows(part) > 0) return true;
        }
      }
    }
    return false;
  }

  /** Batches that a job reads, that no view shows yet, or that a job has failed on. */
  #busy(collection: Collection, now: number): Set<number> {
    const busy = new Set<number>();
    for (const merging of this.#merging) {
      if (merging.collection !== collection) continue;
      for (const bid of merging.choice.inputs) busy.add(bid);
    }
    for (const [bid, { retryAt }] of collection.failed) if (retryAt > now) busy.add(bid);
    if (collection.unshown === 0) return busy;
    const shown = this.#views.shown(collection.id)?.state.hollows ?? [];
    const known = new Set(shown.map((placed) => placed.hollow.bid));
    for (const { hollow } of collection.spine.state().hollows) {
      if (!known.has(hollow.bid)) busy.add(hollow.bid);
    }
    return busy;
  }

  #shapeOf(collection: Collection): PartShape {
    return shapeOf(this.#context.config.partBytes, this.#spines.codecOf(collection.id));
  }

  #send(collection: Collection, choice: MergeChoice<PartInfo>): boolean {
    const shape = this.#shapeOf(collection);
    const read = choice.runs.flatMap((run) => run.parts);
    // Of rows that are larger than a part should be each part has one.
    const rows = read.reduce((sum, part) => sum + part.len, 0);
    const written = Math.min(Math.ceil(choice.bytes / (shape.partBytes / 2)), rows);
    // A part ends at every stretch that is moved.
    const count = written + choice.stretchesMoved + 2;
    const bytesPromised = this.#bytesToShow(choice, shape.partBytes, written);
    if (!this.#room.makeRoom(bytesPromised)) {
      this.#onNoRoom(collection, choice);
      return false;
    }
    const outFiles = this.#edits.takeFiles(count);
    if (outFiles === undefined) return false;
    const since = join(choice.sinceMin, this.#sinceOf(collection));
    const inputs = mergeInputs(collection.spine, choice);
    const view = this.#views.shown(collection.id);
    invariant(
      view !== undefined && lt(since, view.upper),
      'range deletes in no part are above',
      since,
    );
    const shown = view.state.hollows;
    const hiding = hidingParts(shown, choice, since);
    const jobId = this.#desk.nextId;
    const request: Job = {
      kind: 'merge',
      request: {
        jobId,
        collection: collection.id,
        kind: collection.kind,
        inputs,
        hiding: hiding.map(partRef),
        since,
        oldest: choice.oldest,
        outFiles,
        shape,
      },
    };
    const files = new Set([...read, ...hiding].map((part) => part.file));
    // Those that are moved; and pieces of range deletes may be cut anew: twice as many at the most.
    const parts = count + read.length + 2 * read.filter(isRangePart).length;
    const reply = REPLY_BYTES_FIXED + parts * REPLY_BYTES_PER_PART;
    const large = choice.bytes > LARGE_JOB_BYTES;
    const isWished = collection.compactWanted;
    const merging: Merging = {
      collection,
      choice,
      files,
      jobId,
      bytesPromised,
      isWished,
      cancelled: false,
    };
    const isSent = this.#desk.send(request, reply, large, (outcome) => {
      if (outcome.failure === undefined) {
        this.#onMerged(merging, outcome.value as JobMergeResult);
        return;
      }
      this.#end(merging);
      // A worker that died has deleted nothing.
      this.#parts.discardFiles(outFiles);
      if (!merging.cancelled) this.#onFailure(merging, fromPlainError(outcome.failure));
    });
    if (!isSent) {
      this.#edits.giveBackFiles(outFiles);
      return false;
    }
    if (choice.runs.length === 1) collection.rewriteWanted = false;
    this.#room.promise(bytesPromised);
    this.#merging.add(merging);
    this.#counters.add(MERGE_JOBS, 1);
    collection.figures.stale = true;
    this.#parts.pin(files);
    return true;
  }

  /** Room for what it makes: parts are taken to be full, or there is one of each row. */
  #bytesToShow(choice: MergeChoice<PartInfo>, partBytes: number, written: number): number {
    const full = Math.min(written, Math.ceil(choice.bytes / partBytes)) + PARTS_FIXED;
    let read = 0;
    let sets = 0;
    for (const { parts } of choice.runs) {
      read += parts.length;
      for (const part of parts) if (isRangePart(part)) sets += this.#parts.bytesOf(part);
    }
    const texts = TEXT_BYTES_FIXED + (full + read) * TEXT_BYTES_PER_PART;
    return this.#parts.bytesToShow(full + choice.stretchesMoved) + sets + texts;
  }

  /** Another merge may fit meanwhile. */
  #onNoRoom(collection: Collection, choice: MergeChoice<PartInfo>): void {
    const now = this.#context.clock.ticksMs();
    for (const bid of choice.inputs) {
      const failures = collection.failed.get(bid)?.failures ?? 0;
      collection.failed.set(bid, { failures, retryAt: now + ROOM_RETRY_MS });
    }
    if (collection.compactWanted && this.#desk.running === 0) this.#onRoomless(collection, now);
  }

  #end(merging: Merging): void {
    this.#room.unpromise(merging.bytesPromised);
    this.#merging.delete(merging);
    merging.collection.figures.stale = true;
    this.#parts.unpin(merging.files);
  }

  /** Its inputs are left alone for a while, longer each time; what else there is to merge goes on. */
  #onFailure(merging: Merging, failure: TidemarkError): void {
    merging.collection.figures.add('mergesFailed', 1);
    this.#backOff(merging);
    this.#ports.onFailure(failure);
  }

  #backOff({ collection, choice }: Merging): void {
    for (const bid of choice.inputs) {
      const failures = (collection.failed.get(bid)?.failures ?? 0) + 1;
      const retryAt = this.#context.clock.ticksMs() + retryMs(failures);
      collection.failed.set(bid, { failures, retryAt });
    }
    // Damage does not heal: the wish to compact is answered by what could be done.
    collection.compactWanted = false;
    this.#noteDegraded();
  }

  /** Nothing of these is merged again in this run of the engine. */
  #leaveAlone(collection: Collection, bids: readonly number[]): void {
    for (const bid of bids) {
      collection.failed.set(bid, { failures: DEGRADED_FAILURES, retryAt: Infinity });
    }
    collection.compactWanted = false;
    this.#counters.add(MERGE_CHECKS_FAILED, 1);
    this.#noteDegraded();
  }

  /** Counts batches that jobs keep failing on; forgets those that are gone. */
  #noteDegraded(): void {
    let degraded = 0;
    for (const { failed, spine } of this.#spines.values()) {
      if (failed.size === 0) continue;
      const bids = new Set(spine.state().hollows.map(({ hollow }) => hollow.bid));
      for (const [bid, { failures }] of failed) {
        if (!bids.has(bid)) failed.delete(bid);
        else if (failures >= DEGRADED_FAILURES) degraded++;
      }
    }
    this.#counters.values[BATCHES_DEGRADED] = degraded;
  }

  /** Nobody waits for the collection any more, or it is gone: jobs sent for that reason stop. */
  cancel(collection: Collection, onlyWished: boolean): void {
    for (const merging of this.#merging) {
      if (merging.collection !== collection || merging.cancelled) continue;
      if (onlyWished && !merging.isWished) continue;
      merging.cancelled = true;
      this.#desk.cancel(merging.jobId);
    }
  }

  #onMerged(merging: Merging, result: JobMergeResult): void {
    const refs = result.runs.flatMap((run) => run.parts);
    const moved = movedParts(merging.choice, refs);
    const made = refs.filter((_, i) => moved[i] === undefined);
    this.#parts.load(made, (infos, failure) => {
      let next = 0;
      const parts = infos === undefined ? [] : moved.map((part) => part ?? infos[next++]);
      const isPrepared = infos !== undefined && this.#views.prepareRun(parts);
      this.#end(merging);
      if (isPrepared) {
        this.#ports.onSuccess();
        this.#applyResult(merging, result, parts, infos);
        return;
      }
      // What was made cannot be read back, or shown: as if the job had failed.
      this.#parts.discardOutputs(made);
      if (infos !== undefined || isNoRoom(failure)) this.#backOff(merging);
      else this.#onFailure(merging, asFailure(failure));
    });
  }

  /** `made`: those of its parts that the job wrote; the others were its inputs', and are not its own. */
  #applyResult(
    merging: Merging,
    result: JobMergeResult,
    infos: readonly PartInfo[],
    made: readonly PartInfo[],
  ): void {
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
    const refused = this.#apply(collection, merged);
    if (refused !== undefined) {
      this.#counters.add(MERGES_REFUSED, 1);
      collection.figures.add('mergesRefused', 1);
      this.#views.forgetRun(infos);
      // Only files that this job made, and that nothing refers to.
      for (const part of made) {
        if (refused === 'wrong') this.#parts.setAside(part);
        else this.#parts.discard(part);
      }
      return;
    }
    if (collection.failed.size > 0) this.#noteDegraded();
    let bytesIn = 0;
    for (const run of choice.runs) bytesIn += runBytes(run);
    bytesIn -= result.stats.bytesMoved;
    collection.leavingBytes = bytesIn;
    collection.leavingSince = this.#context.clock.ticksMs();
    this.#learn(collection, choice, result);
    const counters = this.#counters;
    counters.add(MERGES, 1);
    counters.add(MERGED_ROWS_IN, choice.len);
    counters.add(MERGED_ROWS_OUT, result.len);
    counters.add(MERGED_BYTES_IN, bytesIn);
    counters.add(MERGED_BYTES_OUT, result.stats.bytesWritten);
    const { figures } = collection;
    figures.add('merges', 1);
    figures.add('mergedRowsIn', choice.len);
    figures.add('mergedRowsOut', result.len);
    figures.add('mergedBytesIn', bytesIn);
    figures.add('mergedBytesOut', result.stats.bytesWritten);
    counters.add(PARTS_MOVED, result.stats.partsMoved);
    counters.add(BYTES_MOVED, result.stats.bytesMoved);
    figures.add('bytesMoved', result.stats.bytesMoved);
  }

  /** A merge tells how many keys there are: the newest with the oldest run, or one of others before any such. */
  #learn(
    collection: Collection,
    choice: MergeChoice<PartInfo>,
    { since, len }: JobMergeResult,
  ): void {
    if (!choice.oldest && collection.keyCountRows > 0) return;
    const lens = lensAt(choice.runs, since);
    const rows = lens.reduce((sum, n) => sum + n, 0);
    const keyCount = keyCountOf(lens, rows - (choice.len - len));
    // Where `since` stood below all that was new nothing is told.
    if (keyCount === 0) return;
    collection.keyCount = keyCount;
    if (choice.oldest) collection.keyCountRows = choice.len;
  }

  /** Swaps pointers and proposes the edit that says so; else why the spine refuses the result. */
  #apply(collection: Collection, result: MergeResult<PartInfo>): 'stale' | 'wrong' | undefined {
    const { spine, id } = collection;
    const before = this.#edits.proposed.spines.get(id);
    if (result.since > spine.since) spine.advanceSince(result.since);
    const outcome = spine.apply(result);
    if (outcome.outcome !== 'applied') {
      // Rows vanished or appeared, which no stale result explains: what is there stays as it is.
      const isStale = outcome.outcome === 'noMatch' || outcome.outcome === 'invalidSince';
      if (isStale) return 'stale';
      this.#leaveAlone(collection, result.inputs);
      return 'wrong';
    }
    this.#spines.propose(collection, before);
    return undefined;
  }

  /** Swaps that rewrite nothing, and structure that lets a later job take more at once. */
  linkMoves(): boolean {
    if (!this.#edits.hasIds(4)) return false;
    const now = this.#context.clock.ticksMs();
    for (const collection of this.#spines.values()) {
      if (this.#freshen(collection, now)) return true;
      // One at a time: what is not shown is nobody's to move.
      if (collection.unshown > 0) continue;
      const move = this.#moveOf(collection, now);
      if (move !== undefined && this.#apply(collection, move) === undefined) {
        this.#counters.add(MOVES, 1);
        collection.figures.add('moves', 1);
        return true;
      }
      if (this.isMerging(collection)) continue;
      if (this.#collapse(collection, now)) return true;
    }
    return false;
  }

  /** Before an idle collection is merged `since` takes the steps that it has not taken, a view for each. */
  #freshen(collection: Collection, now: number): boolean {
    if (collection.staleViews === 0) return false;
    const isIdle = now - collection.touchedAt >= IDLE_MERGE_MS;
    const isAsked = isIdle || collection.compactWanted;
    if (!isAsked && !wantsSpace(this.#figuresOf(collection).space, false)) return false;
    collection.staleViews--;
    const shown = this.#views.shown(collection.id);
    if (shown === undefined) return false;
    this.#views.rewrite(shown);
    return true;
  }

  #moveOf(collection: Collection, now: number): MergeResult<PartInfo> | undefined {
    const busy = this.#busy(collection, now);
    const batches = collection.spine.batches();
    const { partBytes } = this.#shapeOf(collection);
    const move = chooseMove(batches, busy, this.#sinceOf(collection), partBytes);
    return move ?? this.#coveredOf(collection, busy);
  }

  /** Parts that nobody who may read sees a row of leave without a job. */
  #coveredOf(collection: Collection, busy: ReadonlySet<number>): MergeResult<PartInfo> | undefined {
    if (!this.isMerging(collection)) this.#leaving.delete(collection);
    const shown = this.#views.shown(collection.id);
    if (shown === undefined || !hasRangeSets(shown.runs.values())) return undefined;
    const { state } = shown;
    const since = this.#sinceOf(collection);
    const parts = state.hollows.flatMap(({ hollow }) => hollow.runs).flatMap((run) => run.parts);
    const ranged = parts.filter(isRangePart);
    const looked = this.#lookedForCovered.get(collection);
    this.#lookedForCovered.set(collection, { state, since, busy: busy.size });
    // Only a new part, or a range delete that was not final, can make a difference; or the end of a job.
    const isNews =
      looked === undefined ||
      looked.state !== state ||
      looked.busy !== busy.size ||
      ranged.some((part) => lt(looked.since, part.maxT) && le(part.minT, since));
    if (!isNews) return undefined;
    const { u32, u8 } = this.#context.arena;
    const set = new RangeSetReader(u32, u8);
    const covers = (part: PartInfo): boolean => {
      let range: RangeDelete | undefined;
      return ranged.some((other) => {
        if (le(other.maxT, part.maxT)) return false;
        const uncovered = this.#uncoveredBy(other);
        if (uncovered.has(part)) return false;
        const { block } = this.#parts.part(other);
        set.attach(block, block);
        range ??= { lo: part.keyLo, hi: successor(part.keyHi), time: 0 };
        if (set.newestCovering(0, range, part.maxT, since) !== part.maxT) return true;
        if (le(other.maxT, since)) uncovered.add(part);
        return false;
      });
    };
    const move = chooseCovered(collection.spine.batches(), busy, since, covers);
    if (move === undefined) this.#cancelCovered(collection, covers);
    return move;
  }

  #uncoveredBy(ranged: PartInfo): WeakSet<PartInfo> {
    const known = this.#uncovered.get(ranged);
    if (known !== undefined) return known;
    const uncovered = new WeakSet<PartInfo>();
    this.#uncovered.set(ranged, uncovered);
    return uncovered;
  }

  /** A job stops when most of what it reads may leave by an edit alone; for less it is not worth it. */
  #cancelCovered(collection: Collection, covers: (part: PartInfo) => boolean): void {
    for (const merging of this.#merging) {
      if (merging.collection !== collection || merging.cancelled) continue;
      let covered = 0;
      let bytes = 0;
      for (const run of merging.choice.runs) {
        for (const part of run.parts) {
          bytes += part.bytes;
          if (!isRangePart(part) && covers(part)) covered += part.bytes;
        }
      }
      if (2 * covered < bytes) continue;
      merging.cancelled = true;
      this.#desk.cancel(merging.jobId);
      this.#leaving.add(collection);
    }
  }

  #collapse(collection: Collection, now: number): boolean {
    const { spine } = collection;
    const { runs, space } = this.#figuresOf(collection);
    if (collection.compactWanted && runs <= 1) {
      if (collection.rewriteWanted && this.#isRewriteWorth(collection)) return false;
      collection.compactWanted = false;
      return true;
    }
    const state = spine.state();
    const isIdle = now - collection.touchedAt >= IDLE_MERGE_MS;
    // One run only ever stands for all of it when they stand in one spine batch.
    const isWhole = collection.compactWanted || (runs > 1 && wantsSpace(space, isIdle));
    const level = isWhole
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

function mergeInputs(spine: Spine<PartInfo>, choice: MergeChoice<PartInfo>): MergeInput[] {
  const wanted = new Set(choice.runs.map((run) => run.runId));
  const byBid = new Map(spine.state().hollows.map((placed) => [placed.hollow.bid, placed.hollow]));
  return choice.inputs.map((bid) => {
    const { desc, runs } = byBid.get(bid)!;
    return {
      bid,
      desc,
      runs: runs
        .filter((run) => wanted.has(run.runId))
        .map((run) => ({ runId: run.runId, parts: run.parts.map(partRef) })),
    };
  });
}

/** For each part of a result the input that it is, if it is one: it was moved. */
function movedParts(
  choice: MergeChoice<PartInfo>,
  refs: readonly PartRef[],
): (PartInfo | undefined)[] {
  const inputs = new Map<string, PartInfo>();
  for (const { parts } of choice.runs) {
    for (const part of parts) inputs.set(`${part.file}:${part.offset}`, part);
  }
  return refs.map(({ file, offset }) => inputs.get(`${file}:${offset}`));
}

function hasRangeSets(runs: Iterable<{ readonly rangeSets: number }>): boolean {
  for (const { rangeSets } of runs) if (rangeSets > 0) return true;
  return false;
}
