/**
 * What readers are shown: keeps the blocks that views name, moves `since`, publishes each new view
 * through the one word, and retires by epoch what only the former one named. A part of the keeper, on
 * its thread; it decides nothing about what lies where.
 */
import { NO_FRONTIER, join, meet } from '../core/base/frontier.ts';
import { invariant } from '../core/base/assert.ts';
import { clientsMax } from '../core/base/limits.ts';
import { lowestHold } from '../core/shared/epoch.ts';
import type { SpineState } from '../core/spine/batch.ts';
import { isRangePart, partRef } from '../core/spine/part-format.ts';
import type { PartInfo, PartRef } from '../core/spine/part-format.ts';
import {
  collectionBytes,
  runBlockBytes,
  viewBytes,
  writeCollection,
  writeRun,
  writeView,
} from '../core/spine/view.ts';
import type { TimePoint } from '../core/spine/manifest.ts';
import type { ViewSegment } from '../core/spine/view.ts';
import type { ActorContext } from './actor.ts';
import { isLagging } from './cursor-row.ts';
import type { CursorRow } from './cursor-row.ts';
import { KEEP_ALL, historyFloor } from './kept-history.ts';
import type { KeptHistory } from './kept-history.ts';
import type { PartStore } from './part-store.ts';
import { noRoom } from './view-room.ts';
import type { ViewRoom } from './view-room.ts';

type ShownRun = {
  readonly block: number;
  readonly parts: readonly PartRef[];
  readonly rangeSets: number;
  level: number;
};

/** A collection as the newest view shows it. */
export type Shown = {
  readonly id: number;
  readonly kind: number;
  state: SpineState<PartInfo>;
  history: KeptHistory;
  since: number;
  sinceNext: number;
  /** The `sinceNext` that a published view says: only what was proposed in public may be taken up. */
  proposed: number;
  upper: number;
  /** Address of its block. */
  block: number;
  /** By run id, oldest first. */
  runs: Map<number, ShownRun>;
};

export class Views {
  readonly #context: ActorContext;
  readonly #room: ViewRoom;
  readonly #parts: PartStore;
  /** Blocks for runs that are about to be shown. */
  readonly #prepared: Map<readonly PartInfo[], number> = new Map();
  readonly #shown: Map<number, Shown> = new Map();
  #view = 0;
  #afterPublish: (() => void)[] = [];
  /** The source's version: moves with its contents, not with merges. */
  version = 1;
  open = 0;
  /** 0 = none. */
  spare = 0;
  /** Sealed generations, oldest first. */
  sealed: number[] = [];
  /** The log's directory, oldest first. */
  segments: ViewSegment[] = [];
  /** Feeds whose place is in the catalog, running or not. */
  cursors: () => readonly CursorRow[] = () => [];
  /** The stored list of offsets and times. */
  times: () => readonly TimePoint[] = () => [];
  /** Something changed that no view says yet. */
  stale = false;
  published = 0;
  /** By collection: where its figures are counted. */
  readonly figures: Map<number, number> = new Map();

  constructor(context: ActorContext, room: ViewRoom, parts: PartStore) {
    this.#context = context;
    this.#room = room;
    this.#parts = parts;
  }

  shown(id: number): Shown | undefined {
    return this.#shown.get(id);
  }

  /** Makes `state` what readers of the collection see, from the next view on. Its parts are loaded. */
  show(id: number, kind: number, state: SpineState<PartInfo>, history: KeptHistory): void {
    const former = this.#shown.get(id);
    const before = former?.runs ?? new Map<number, ShownRun>();
    const after = new Map<number, ShownRun>();
    for (const { id: place, hollow } of state.hollows) {
      const level = levelAt(state, place[0]);
      for (const run of hollow.runs) {
        const known = before.get(run.runId) ?? this.#makeRun(run.parts);
        known.level = level;
        after.set(run.runId, known);
      }
    }
    const shown: Shown = {
      id,
      kind,
      state,
      history,
      since: former?.since ?? state.since,
      sinceNext: former?.sinceNext ?? state.since,
      proposed: former?.proposed ?? state.since,
      upper: state.hollows.at(-1)?.hollow.desc.upper ?? 0,
      block: former?.block ?? 0,
      runs: after,
    };
    this.#shown.set(id, shown);
    this.rewrite(shown);
    this.#afterPublish.push(() => {
      for (const [runId, run] of before) if (!after.has(runId)) this.#dropRun(run);
    });
  }

  /** Takes the room for a run that is to be shown; false when there is none now. Its parts are loaded. */
  prepareRun(parts: readonly PartInfo[]): boolean {
    if (parts.length === 0) return true;
    const sets = parts.filter(isRangePart).length;
    const block = this.#room.allocateBeside(runBlockBytes(parts.length - sets, sets));
    if (block !== 0) this.#prepared.set(parts, block);
    return block !== 0;
  }

  /** The run is not to be shown after all. */
  forgetRun(parts: readonly PartInfo[]): void {
    const block = this.#prepared.get(parts);
    if (block === undefined) return;
    this.#prepared.delete(parts);
    this.#room.free(block);
  }

  #makeRun(parts: readonly PartInfo[]): ShownRun {
    const loaded = parts.map((part) => this.#parts.part(part));
    for (const part of loaded) this.#parts.ref(part);
    const blocks = loaded.filter(({ info }) => !isRangePart(info)).map((part) => part.block);
    const sets = loaded.filter(({ info }) => isRangePart(info)).map((part) => part.block);
    const block =
      this.#prepared.get(parts) ?? this.#allocate(runBlockBytes(blocks.length, sets.length));
    this.#prepared.delete(parts);
    writeRun(this.#context.arena, block, blocks, sets);
    return { block, parts: parts.map(partRef), rangeSets: sets.length, level: 0 };
  }

  #dropRun(run: ShownRun): void {
    this.#room.retire(run.block);
    for (const part of run.parts) this.#parts.unref(this.#parts.part(part));
  }

  /** The collection was dropped: the next view does not name it. */
  remove(id: number): void {
    const shown = this.#shown.get(id);
    if (shown === undefined) {
      this.#dropFigures(id);
      return;
    }
    this.#shown.delete(id);
    this.stale = true;
    this.#afterPublish.push(() => {
      this.#room.retire(shown.block);
      this.#dropFigures(id);
      for (const run of shown.runs.values()) this.#dropRun(run);
    });
  }

  #dropFigures(id: number): void {
    const figures = this.figures.get(id) ?? 0;
    this.figures.delete(id);
    if (figures !== 0) this.#room.retire(figures);
  }

  /** A new block for the collection, with `since` one step on. */
  rewrite(shown: Shown): void {
    const former = shown.block;
    this.#moveSince(shown);
    const fields = {
      ...shown,
      figures: this.figures.get(shown.id) ?? 0,
      runs: [...shown.runs.values()].toReversed(),
    };
    shown.block = this.#allocate(collectionBytes(fields));
    writeCollection(this.#context.arena, shown.block, fields);
    if (former !== 0) this.#afterPublish.push(() => this.#room.retire(former));
    this.stale = true;
  }

  /**
   * `since` follows `sinceNext` by one view: readers that hold a time look at `sinceNext` after they
   * published it, and the holds are read here after `sinceNext` was out (row-cache.md 3.4, O6).
   */
  #moveSince(shown: Shown): void {
    const { arena, topology, control, clock } = this.#context;
    const held = meet(
      lowestHold(arena, topology.slots, clientsMax),
      shown.history.offsets === KEEP_ALL ? NO_FRONTIER : this.cursorFloor(shown.id),
    );
    shown.since = join(shown.since, meet(shown.proposed, held));
    // Not from what a buffered engine shows and a loss of power takes back: parts say their since for
    // ever. At replay the frontiers run ahead of what is applied.
    const settled = Math.min(control.durable(), control.applied());
    const floor = historyFloor(shown.history, settled - 1, this.times(), clock.nowMs());
    shown.sinceNext = join(shown.sinceNext, floor);
  }

  /** The lowest time that a cursor needs of a collection, or, undefined, of the log. */
  cursorFloor(collection: number | undefined): number {
    const { clock, config, control } = this.#context;
    let floor = NO_FRONTIER;
    for (const row of this.cursors()) {
      const isWanted =
        collection === undefined || (row.old && row.collections.includes(collection));
      if (!isWanted || row.after >= floor) continue;
      const upper = Math.min(control.durable(), control.applied());
      const picture = {
        upper,
        nowMs: clock.nowMs(),
        segmentBytes: config.segmentBytes,
        segments: this.segments,
      };
      if (!isLagging(row, picture)) floor = Math.max(0, row.after);
    }
    return floor;
  }

  /** Runs once the next view is out: nobody new finds what only the former one named. */
  afterPublish(run: () => void): void {
    this.#afterPublish.push(run);
    this.stale = true;
  }

  publish(): void {
    this.stale = false;
    if (this.open === 0) return;
    const { arena, control } = this.#context;
    const fields = {
      version: this.version,
      open: this.open,
      spare: this.spare,
      sealed: this.sealed.toReversed(),
      collections: [...this.#shown.values()].toSorted((a, b) => a.id - b.id),
      segments: this.segments,
    };
    const former = this.#view;
    this.#view = this.#allocate(viewBytes(fields));
    writeView(arena, this.#view, fields);
    control.setView(this.#view);
    for (const shown of this.#shown.values()) shown.proposed = shown.sinceNext;
    this.published++;
    if (former !== 0) this.#room.retire(former);
    for (const run of this.#afterPublish.splice(0)) run();
  }

  #allocate(bytes: number): number {
    const address = this.#room.allocate(bytes);
    if (address !== 0) return address;
    throw noRoom('the view of what lies where');
  }
}

/** Level of the spine batch that holds position `at`. */
export function levelAt(state: SpineState<PartInfo>, at: number): number {
  const batch = state.batches.find((entry) => entry.id[0] <= at && at < entry.id[1]);
  invariant(batch !== undefined, 'every position lies in a spine batch', at);
  return batch.level;
}
