/**
 * Sealed generations on their way into parts, oldest first: a job makes the parts, in any order; they
 * are linked in order, none before it is durable; then the row cache takes the rows in, and only then
 * does a view go without the generation. A part of the keeper, on its thread.
 */
import { invariant } from '../core/base/assert.ts';
import { fromPlainError, isFullDisk } from '../core/base/errors.ts';
import type { TidemarkError } from '../core/base/errors.ts';
import { join, meet } from '../core/base/frontier.ts';
import { pageBytes } from '../core/base/limits.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import type { Counters } from '../core/shared/counters.ts';
import { UNTIL_NOW } from '../core/shared/epoch.ts';
import type { RetireList } from '../core/shared/epoch.ts';
import type { SpineState } from '../core/spine/batch.ts';
import type { FlushResult } from '../core/spine/flush-job.ts';
import { notedTime } from '../core/spine/manifest.ts';
import type { LogPosition, SpineEdit } from '../core/spine/manifest.ts';
import type { PartInfo, PartRef } from '../core/spine/part-format.ts';
import { shapeOf } from '../core/spine/part-writer.ts';
import { diffSpine } from '../core/spine/spine.ts';
import type { ActorContext } from './actor.ts';
import { KEEPER_COUNTERS, indexIn } from './counters.ts';
import type { Edits } from './edits.ts';
import { asFailure, REPLY_BYTES_FIXED, REPLY_BYTES_PER_PART, retryMs } from './job-desk.ts';
import type { JobDesk } from './job-desk.ts';
import { collectionsIn, kindIn, rangeSetBytesIn } from './jobs.ts';
import type { Job } from './jobs.ts';
import type { PartStore } from './part-store.ts';
import { SINCE_VIEWS } from './spine-table.ts';
import type { Collection, SpineTable } from './spine-table.ts';
import { ROOM_RETRY_MS, isNoRoom } from './view-room.ts';
import type { ViewRoom } from './view-room.ts';
import type { Views } from './views.ts';

const REPLY_BYTES_PER_COLLECTION = 512;

/** A collection that nothing was flushed of before: its blocks in the view, and what is counted of it. */
const COLLECTION_BYTES = 1_024;
/** Share of the room that is left to merges: what is flushed they make less of. */
const LEFT_TO_MERGES_SHARE = 8;
/** Blocks are given out by sizes that grow by quarters. */
const RANGE_SET_ROUNDING = 1.25;

const FLUSHES: number = indexIn(KEEPER_COUNTERS, 'flushes');
const FLUSH_JOBS: number = indexIn(KEEPER_COUNTERS, 'flushJobs');
const FLUSHED_ROWS: number = indexIn(KEEPER_COUNTERS, 'flushedRows');
const FLUSHED_BYTES: number = indexIn(KEEPER_COUNTERS, 'flushedBytes');

/** A sealed generation. */
export type Flushing = {
  readonly generation: number;
  readonly upper: number;
  readonly collections: number[];
  /** Where the log stands at its upper; there once that is durable. */
  position: LogPosition | undefined;
  /** A job is making its parts. */
  running: boolean;
  result: FlushResult | undefined;
  /** Of each collection in the result the parts, once they are loaded. */
  runs: readonly (readonly PartInfo[])[] | undefined;
  /** What its range deletes take in views. */
  readonly rangeSetBytes: number;
  /** Grows with each time that it found less room than it took. */
  roomFactor: number;
  proposed: boolean;
  retryAt: number;
  failures: number;
};

type Changed = { readonly collection: Collection; readonly state: SpineState<PartInfo> };

/** What it asks of the keeper. */
export type FlushPorts = {
  /** Hands the row cache a generation; false: there is no room for the message now. */
  readonly tellEvictor: (generation: number, version: number) => boolean;
  /** Nobody can see the generation any more. */
  readonly free: (generation: number) => void;
  readonly onFailure: (failure: TidemarkError) => void;
  /** A job took so long and wrote so much. */
  readonly onSuccess: (ms: number, bytes: number) => void;
  /** No room on the disk; the next attempt is at this time. */
  readonly onDiskFull: (untilMs: number) => void;
};

export class Flushes {
  readonly #context: ActorContext;
  readonly #counters: Counters;
  readonly #edits: Edits;
  readonly #spines: SpineTable;
  readonly #parts: PartStore;
  readonly #views: Views;
  readonly #desk: JobDesk;
  readonly #retired: RetireList;
  readonly #room: ViewRoom;
  readonly #ports: FlushPorts;
  readonly #sealed: Flushing[] = [];
  #applying: 'no' | 'asked' | 'answered' = 'no';
  /** All below is in parts, and shown. */
  shownUpper = 0;

  constructor(
    context: ActorContext,
    counters: Counters,
    keeper: {
      readonly edits: Edits;
      readonly spines: SpineTable;
      readonly parts: PartStore;
      readonly views: Views;
      readonly desk: JobDesk;
      readonly retired: RetireList;
      readonly room: ViewRoom;
    },
    ports: FlushPorts,
  ) {
    this.#context = context;
    this.#counters = counters;
    this.#edits = keeper.edits;
    this.#spines = keeper.spines;
    this.#parts = keeper.parts;
    this.#views = keeper.views;
    this.#desk = keeper.desk;
    this.#retired = keeper.retired;
    this.#room = keeper.room;
    this.#ports = ports;
  }

  /** Generations that are not in a view as parts. */
  get waiting(): number {
    return this.#sealed.length;
  }

  onSealed(generation: number, upper: number): void {
    const collections = collectionsIn(this.#context.arena, generation);
    this.#sealed.push({
      generation,
      upper,
      collections,
      position: undefined,
      running: false,
      result: undefined,
      runs: undefined,
      rangeSetBytes: rangeSetBytesIn(this.#context.arena, generation),
      roomFactor: 1,
      proposed: false,
      retryAt: 0,
      failures: 0,
    });
    this.#views.sealed.push(generation);
    this.#views.open = this.#views.spare;
    this.#views.spare = 0;
    // The flush may forget what lies below `since` as this view shows it.
    for (const id of collections) {
      const shown = this.#views.shown(id);
      if (shown !== undefined) this.#views.rewrite(shown);
    }
    this.#views.stale = true;
  }

  /** The log is durable up to a generation's upper; false: that seal was not heard of yet. */
  onBound(position: LogPosition): boolean {
    const item = this.#sealed.find((sealed) => sealed.upper === position.upper);
    if (item === undefined) return false;
    item.position = position;
    return true;
  }

  /** The row cache has taken a generation in. */
  onApplied(version: number): void {
    invariant(version === this.#views.version + 1, 'versions are applied in order');
    invariant(this.#applying === 'asked', 'an answer to an apply');
    this.#applying = 'answered';
  }

  /** The next generation that wants a job, now or after a failure later. */
  next(): Flushing | undefined {
    return this.#sealed.find((sealed) => !sealed.running && sealed.result === undefined);
  }

  /** Bytes that a collection's spine has not seen yet: of flushes that are made, and, as a guess, of the next one. */
  comingBytes({ id, flushBytes }: Collection): number {
    let bytes = 0;
    for (const { result, proposed } of this.#sealed) {
      if (result === undefined || proposed) continue;
      for (const flushed of result.collections) {
        if (flushed.collection === id) bytes += bytesOf(flushed.parts);
      }
    }
    return this.next()?.collections.includes(id) === true ? bytes + flushBytes : bytes;
  }

  /** What is made of it can be shown, and merges have room beside it. */
  hasRoom(item: Flushing): boolean {
    const left = this.#room.bytesMax / LEFT_TO_MERGES_SHARE;
    return this.#room.makeRoom(this.#bytesToShow(item), left);
  }

  #bytesToShow({ collections, rangeSetBytes, roomFactor }: Flushing): number {
    const { memtableBytes, partBytes } = this.#context.config;
    const unknown = collections.filter((id) => this.#spines.get(id) === undefined).length;
    const full = Math.ceil(memtableBytes / shapeOf(partBytes).partBytes);
    const bytes =
      this.#parts.bytesToShow(full + collections.length) +
      unknown * COLLECTION_BYTES +
      rangeSetBytes * RANGE_SET_ROUNDING;
    return Math.min(bytes * roomFactor, this.#room.bytesMax / 2);
  }

  /** Requires: `hasRoom`. */
  dispatch(item: Flushing): boolean {
    const { memtableBytes } = this.#context.config;
    const shape = shapeOf(this.#context.config.partBytes);
    const count = Math.ceil(memtableBytes / shape.partBytes) + 2;
    const outFiles = this.#edits.takeFiles(count);
    if (outFiles === undefined) return false;
    // An earlier flush may still be on its way: then the run below this one is not the oldest.
    const inFlight = new Set<number>();
    for (const other of this.#sealed) {
      if (other === item) break;
      for (const id of other.collections) inFlight.add(id);
    }
    const collections = item.collections.map((id) => {
      const collection = this.#spines.get(id);
      const hasRuns = collection !== undefined && collection.spine.len > 0;
      return {
        collection: id,
        kind: this.#kindOf(id, item),
        // Times are raised to it: no further than what is flushed, or a range delete behind it would miss them.
        since: meet(this.#views.shown(id)?.since ?? 0, item.upper - 1),
        oldest: !hasRuns && !inFlight.has(id),
      };
    });
    const request: Job = {
      kind: 'flush',
      jobId: this.#desk.nextId,
      generation: item.generation,
      upper: item.upper,
      collections,
      outFiles,
      shape,
    };
    // Of range deletes alone, each at least half a page.
    const rangeParts = Math.ceil((2 * memtableBytes) / pageBytes);
    const reply =
      REPLY_BYTES_FIXED +
      collections.length * REPLY_BYTES_PER_COLLECTION +
      (count + rangeParts) * REPLY_BYTES_PER_PART;
    const { clock } = this.#context;
    const sentAt = clock.ticksMs();
    const bytes = this.#bytesToShow(item);
    item.running = this.#desk.send(request, reply, false, (outcome) => {
      item.running = false;
      if (outcome.failure !== undefined) {
        this.#room.unpromise(bytes);
        this.#parts.discardFiles(outFiles);
        this.#onFailure(item, fromPlainError(outcome.failure));
        return;
      }
      const result = outcome.value as FlushResult;
      this.#onFlushed(item, result, clock.ticksMs() - sentAt, bytes);
    });
    if (item.running) {
      this.#room.promise(bytes);
      this.#counters.add(FLUSH_JOBS, 1);
    } else {
      this.#edits.giveBackFiles(outFiles);
    }
    return item.running;
  }

  /** By its parts, or by rows that are on their way into parts below this generation. */
  #kindOf(id: number, item: Flushing): number {
    const known = this.#spines.kindOf(id);
    if (known !== 0) return known;
    const { arena, pool } = this.#context;
    for (const { generation, upper, collections } of this.#sealed) {
      if (generation === item.generation) break;
      const kind = collections.includes(id) ? kindIn(arena, pool, generation, upper, id) : 0;
      if (kind !== 0) return kind;
    }
    return 0;
  }

  #onFailure(item: Flushing, failure: TidemarkError): void {
    item.failures++;
    // Nobody says when a full disk has room again; commits wait for this flush.
    const failures = isFullDisk(failure) ? 1 : item.failures;
    item.retryAt = this.#context.clock.ticksMs() + retryMs(failures);
    if (isFullDisk(failure)) this.#ports.onDiskFull(item.retryAt);
    this.#ports.onFailure(failure);
  }

  #onFlushed(item: Flushing, result: FlushResult, ms: number, promised: number): void {
    item.result = result;
    const refs = result.collections.flatMap((flushed) => flushed.parts);
    this.#parts.load(refs, (infos, failure) => {
      const runs = infos === undefined ? [] : runsOf(result, infos);
      const isPrepared = infos !== undefined && runs.every((run) => this.#views.prepareRun(run));
      this.#room.unpromise(promised);
      if (isPrepared) {
        this.#ports.onSuccess(ms, result.stats.bytesWritten);
        item.runs = runs;
        return;
      }
      for (const run of runs) this.#views.forgetRun(run);
      this.#parts.discardOutputs(refs);
      item.result = undefined;
      if (infos !== undefined || isNoRoom(failure)) {
        item.roomFactor *= 2;
        item.retryAt = this.#context.clock.ticksMs() + ROOM_RETRY_MS;
        return;
      }
      this.#onFailure(item, asFailure(failure));
    });
  }

  /** Proposes the edit of the oldest sealed generation once its parts are loaded and it is durable. */
  link(): boolean {
    const item = this.#sealed[0];
    if (item === undefined || item.proposed) return false;
    if (item.runs === undefined || item.position === undefined) return false;
    if (!this.#edits.hasIds(item.collections.length + 1)) return false;
    if (item.collections.includes(CATALOG_ID)) this.#spines.onCatalogChanged();
    this.#spines.readCatalog();
    const { clock } = this.#context;
    const edits: SpineEdit[] = [];
    const changed: Changed[] = [];
    for (const [i, flushed] of item.result!.collections.entries()) {
      const parts = item.runs[i];
      if (parts.length === 0) continue;
      const id = flushed.collection;
      if (this.#spines.isGone(id)) {
        this.#views.forgetRun(parts);
        for (const part of parts) this.#parts.discard(part);
        continue;
      }
      const collection = this.#spines.ensure(id, flushed.kind);
      const { spine } = collection;
      collection.history = this.#spines.historyOf(id);
      const before = this.#edits.proposed.spines.get(id);
      const since = join(flushed.since, spine.since);
      if (since > spine.since) spine.advanceSince(since);
      spine.push({ lower: spine.upper, upper: item.upper, since: flushed.since, runs: [parts] });
      const state = spine.state();
      edits.push({ collection: id, delta: diffSpine(before, state) });
      changed.push({ collection, state });
      collection.unshown++;
      collection.touchedAt = clock.ticksMs();
      collection.staleViews = SINCE_VIEWS;
      this.#counters.add(FLUSHED_ROWS, flushed.len);
      collection.flushBytes = bytesOf(parts);
      const { figures } = collection;
      figures.add('flushes', 1);
      figures.add('flushedRows', flushed.len);
      figures.add('flushedBytes', collection.flushBytes);
    }
    this.#counters.add(FLUSHED_BYTES, item.result!.stats.bytesWritten);
    this.#counters.add(FLUSHES, 1);
    item.proposed = true;
    const times = notedTime(this.#edits.proposed.times, item.upper, item.position.atMs);
    this.#edits.propose({ flushed: item.position, spines: edits, ...times }, () =>
      this.#show(item, changed),
    );
    return true;
  }

  #show(item: Flushing, changed: readonly Changed[]): boolean {
    if (this.#applying === 'no') {
      // The row cache first: a view without the generation must find its rows there or in parts.
      if (!this.#ports.tellEvictor(item.generation, this.#views.version + 1)) return false;
      this.#applying = 'asked';
    }
    if (this.#applying === 'asked') return false;
    this.#applying = 'no';
    this.#views.version++;
    for (const { collection, state } of changed) {
      collection.unshown--;
      this.#views.show(collection.id, collection.kind, state, collection.history);
    }
    invariant(this.#sealed[0] === item, 'generations enter the source in order');
    this.#sealed.shift();
    this.#views.sealed.shift();
    this.shownUpper = item.upper;
    this.#views.afterPublish(() =>
      this.#retired.retire(item.generation, UNTIL_NOW, this.#ports.free),
    );
    this.#views.publish();
    return true;
  }
}

/** Its parts by collection, in the order of the result. */
function runsOf(result: FlushResult, infos: readonly PartInfo[]): PartInfo[][] {
  let at = 0;
  return result.collections.map(({ parts }) => infos.slice(at, (at += parts.length)));
}

function bytesOf(parts: readonly PartRef[]): number {
  return parts.reduce((sum, { bytes }) => sum + bytes, 0);
}
