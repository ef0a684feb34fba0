/**
 * The log as the keeper sees it: its segments, when a checkpoint is due and when it is done, from which
 * offset on the log is still needed. A segment goes only when it ends below the older checkpoint and
 * below every history, is archived if a hook asks for that, and the manifest has said so first; the oldest
 * goes first, one of them to durability, which may make a spare of it. What stays is compressed
 * (old-segments.ts). One checkpoint runs, at most one waits behind it. A part of the keeper, on its
 * thread; it owns no file and no ring.
 *
 *   a checkpoint's way: seal -> all below is in parts, and shown -> rollup on disk -> whoever asked is told
 */
import { invariant } from '../core/base/assert.ts';
import { le, lt } from '../core/base/frontier.ts';
import { checkpointTransactions, clientsMax } from '../core/base/limits.ts';
import type { Counters } from '../core/shared/counters.ts';
import { SLOT_LOG_HOLD_WORD, lowestHold } from '../core/shared/epoch.ts';
import type { Edit } from '../core/spine/manifest.ts';
import type { ManifestStore } from '../core/spine/manifest-store.ts';
import { compressedPath, segmentPath, sparePath } from '../core/storage/names.ts';
import type { StorageAnswer, StorageCall } from '../core/storage/storage.ts';
import type { ActorContext } from './actor.ts';
import { KEEPER_COUNTERS, indexIn } from './counters.ts';
import { historyFloor } from './kept-history.ts';
import type { KeptHistory } from './kept-history.ts';
import type { OldSegments } from './old-segments.ts';
import type { Views } from './views.ts';

/** Who keeps the log from a floor on, as a counter says it; a collection's id says: its history. */
export const HELD_BY_CHECKPOINT = -1;
export const HELD_BY_KEEP_MS = -2;
export const HELD_BY_BACKUP = -3;
export const HELD_BY_FEED = -4;
export const HELD_BY_ARCHIVE = -5;
export const HELD_BY_CURSOR = -6;

const ROLLUPS: number = indexIn(KEEPER_COUNTERS, 'rollups');
const CHECKPOINTS: number = indexIn(KEEPER_COUNTERS, 'checkpoints');
const CHECKPOINT_NEWER: number = indexIn(KEEPER_COUNTERS, 'checkpointNewer');
const CHECKPOINT_OLDER: number = indexIn(KEEPER_COUNTERS, 'checkpointOlder');
const CHECKPOINT_AT_MS: number = indexIn(KEEPER_COUNTERS, 'checkpointAtMs');
const LOG_FLOOR: number = indexIn(KEEPER_COUNTERS, 'logFloor');
const LOG_FLOOR_HOLDER: number = indexIn(KEEPER_COUNTERS, 'logFloorHolder');
const SEGMENTS_DELETED: number = indexIn(KEEPER_COUNTERS, 'segmentsDeleted');

/** What it asks of the keeper. */
export type LogKeeperPorts = {
  /** Asks for a seal of what is open; returns the token that its answer, or a later one, carries. */
  readonly askSeal: () => number;
  /** Hands an edit to the manifest; `show` runs once it is on disk. */
  readonly propose: (edit: Edit, show: () => boolean) => void;
  readonly submit: (
    fd: number,
    calls: readonly StorageCall[],
    done: (answer: StorageAnswer) => void,
  ) => void;
  /** Offers durability the file of a segment that nobody needs; false: its ring has no room now. */
  readonly offerSegment: (seq: number) => boolean;
  /** Tells a client that its request is done; false: its ring has no room now. */
  readonly tellClient: (client: number, number: number) => boolean;
  /** A backup's checkpoint is on disk: holds it, and tells the client. */
  readonly beginBackup: (client: number, number: number) => void;
  /** From here on backups need the log; undefined: none is under way. */
  readonly backupFloor: () => number | undefined;
  /** What each collection keeps, the catalog left out. */
  readonly histories: () => Iterable<readonly [collection: number, history: KeptHistory]>;
};

type Wish = { readonly client: number; readonly number: number; readonly isBackup: boolean };

type Checkpoint = {
  /** The seal that it waits for; a later one while it waits itself. */
  token: number;
  /** All below is to be in parts; -1: the seal is not answered. */
  upper: number;
  /** The rollup was asked for. */
  asked: boolean;
  readonly wishes: Wish[];
};

export class LogKeeper {
  readonly #context: ActorContext;
  readonly #views: Views;
  readonly #values: Float64Array;
  readonly #ports: LogKeeperPorts;
  readonly #old: OldSegments;
  readonly #keepMs: number;
  readonly #every: number;
  #running: Checkpoint | undefined;
  #pending: Checkpoint | undefined;
  /** Wishes that came true, and whose clients' rings had no room yet. */
  #done: Wish[] = [];
  /** Durable offset at which the next checkpoint is due, rotations or not. */
  #nextAt = 0;
  /** First segment that the manifest names, once what is proposed is on disk. */
  #startSeq = 0;

  constructor(
    context: ActorContext,
    views: Views,
    counters: Counters,
    old: OldSegments,
    ports: LogKeeperPorts,
  ) {
    this.#context = context;
    this.#old = old;
    this.#views = views;
    this.#values = counters.values;
    this.#ports = ports;
    this.#keepMs = context.config.walKeepMs ?? 0;
    this.#every = context.config.checkpointEvery ?? checkpointTransactions;
    this.#values[LOG_FLOOR_HOLDER] = HELD_BY_CHECKPOINT;
  }

  /** Checkpoints that are not done. */
  get waiting(): number {
    return (this.#running === undefined ? 0 : 1) + (this.#pending === undefined ? 0 : 1);
  }

  /** The manifest is there: `startSeq` is the first segment that it names. */
  begin(startSeq: number, store: ManifestStore): void {
    this.#startSeq = startSeq;
    const { newer } = store.checkpoints;
    this.#values[CHECKPOINT_AT_MS] = newer.atMs === 0 ? this.#context.clock.nowMs() : newer.atMs;
    this.#note(store);
  }

  /** The log is recovered: from here on so many transactions are a reason for a checkpoint. */
  start(store: ManifestStore | undefined): void {
    this.#plan();
    if (store !== undefined) this.#firstKept(store);
  }

  // ---------------------------------------------------------------- checkpoints

  /** A segment of the log. One that began just now is a reason for a checkpoint. */
  onSegment(seq: number, base: number, atMs: number, packed: boolean, isRotation: boolean): void {
    const { segments } = this.#views;
    invariant(segments.length === 0 || segments.at(-1)!.seq < seq, 'segments come in order', seq);
    this.#views.segments = [...segments, { seq, base, atMs }];
    this.#old.add(seq, packed);
    this.#views.stale = true;
    if (isRotation) this.#want();
  }

  /** A client wishes a checkpoint of all that is sequenced by now; `isBackup`: and that it is held. */
  onWish(client: number, number: number, isBackup: boolean): void {
    this.#want().wishes.push({ client, number, isBackup });
  }

  /** The seal of `token` was answered: all below `upper` is sealed. */
  onSealed(token: number, upper: number): void {
    for (const checkpoint of [this.#running, this.#pending]) {
      if (checkpoint === undefined || checkpoint.upper >= 0) continue;
      if (checkpoint.token <= token) checkpoint.upper = upper;
    }
  }

  /** Who asks while one runs may have written what that one does not cover: it gets the one after. */
  #want(): Checkpoint {
    const token = this.#ports.askSeal();
    const isNext = this.#running !== undefined;
    const waiting = isNext ? this.#pending : undefined;
    if (waiting !== undefined) {
      waiting.token = token;
      waiting.upper = -1;
      return waiting;
    }
    const checkpoint: Checkpoint = { token, upper: -1, asked: false, wishes: [] };
    if (isNext) this.#pending = checkpoint;
    else this.#running = checkpoint;
    return checkpoint;
  }

  #plan(): void {
    const durable = this.#context.control.durable();
    this.#nextAt = (Math.floor(durable / this.#every) + 1) * this.#every;
  }

  /** Drives the running checkpoint on. All below `shownUpper` is in parts. */
  step(shownUpper: number, store: ManifestStore): boolean {
    if (this.#nextAt > 0 && le(this.#nextAt, this.#context.control.durable())) {
      this.#plan();
      this.#want();
    }
    const running = this.#running;
    if (running === undefined || running.asked) return false;
    if (running.upper < 0 || lt(shownUpper, running.upper)) return false;
    running.asked = true;
    store.requestRollup();
    return true;
  }

  /** A rollup is on disk, asked for here or not. */
  onRolledUp(store: ManifestStore): void {
    this.#values[ROLLUPS]++;
    this.#values[CHECKPOINT_AT_MS] = this.#context.clock.nowMs();
    this.#note(store);
    const running = this.#running;
    // One begun before may not cover it: then another is on its way.
    if (running?.asked === true && le(running.upper, store.checkpoints.newer.upper)) {
      this.#values[CHECKPOINTS]++;
      for (const wish of running.wishes) {
        // Held in this very moment: the manifest is as the rollup says.
        if (wish.isBackup) this.#ports.beginBackup(wish.client, wish.number);
        else this.#done.push(wish);
      }
      this.#running = this.#pending;
      this.#pending = undefined;
    }
  }

  #note(store: ManifestStore): void {
    this.#values[CHECKPOINT_NEWER] = store.checkpoints.newer.upper;
    this.#values[CHECKPOINT_OLDER] = store.checkpoints.older.upper;
  }

  /** Tells clients whose wish came true, as far as they have room. */
  answerWishes(): void {
    while (this.#done.length > 0) {
      const { client, number } = this.#done[0];
      if (!this.#ports.tellClient(client, number)) return;
      this.#done.shift();
    }
  }

  // ---------------------------------------------------------------- retention

  /** Lets go of segments that nobody needs: the log's start moves first, then the files go. */
  dropSegments(store: ManifestStore): void {
    const { segments } = this.#views;
    const keptFrom = this.#firstKept(store);
    if (this.#isHeldBack(store)) store.requestRollup();
    if (keptFrom === 0) return;
    const first = segments[keptFrom];
    if (first.seq <= this.#startSeq) return;
    const { arena, control, topology } = this.#context;
    control.setLogStart(first.seq);
    // Who holds from now on finds that it is too late; who held just before is heard.
    const held = lowestHold(arena, topology.slots, clientsMax, SLOT_LOG_HOLD_WORD);
    if (lt(held, first.base)) {
      control.setLogStart(this.#startSeq);
      return;
    }
    this.#startSeq = first.seq;
    const logStart = { seq: first.seq, offset: first.base, atMs: first.atMs };
    this.#ports.propose({ logStart }, () => {
      // As it is now: a drop before this one may not have been shown when this one was proposed.
      const now = this.#views.segments;
      const gone = now.filter(({ seq }) => seq < first.seq);
      this.#views.segments = now.filter(({ seq }) => seq >= first.seq);
      this.#views.stale = true;
      // One of them may be the log's next spare, the newest that lies there as it was written.
      const spare = gone.findLast(({ seq }) => this.#old.isPlain(seq))?.seq ?? 0;
      this.#old.dropBelow(first.seq);
      // Who misses a file looks into the view: it must say by then that the file is gone.
      this.#views.afterPublish(() => {
        const isOffered = spare !== 0 && this.#ports.offerSegment(spare);
        this.#deleteFree(gone.map(({ seq }) => seq).filter((seq) => !isOffered || seq !== spare));
      });
      return true;
    });
  }

  /**
   * The older checkpoint alone keeps a segment that the newer one covers: one more rollup makes the newer the
   * older. Without it a whole segment would lie there until the next rotation. One that is under way will do.
   */
  #isHeldBack(store: ManifestStore): boolean {
    if (this.#running !== undefined) return false;
    if (this.#values[LOG_FLOOR_HOLDER] !== HELD_BY_CHECKPOINT) return false;
    const { newer, older } = store.checkpoints;
    return this.#views.segments.some(({ base }) => lt(older.upper, base) && le(base, newer.upper));
  }

  /** Durability has no use for the segment that it was offered; nor for what a failed job has left of a spare. */
  onDeclined(seq: number, spare: number): void {
    if (seq !== 0) this.#delete([seq]);
    if (spare === 0) return;
    // Under its number, or not yet. What cannot be deleted is an orphan here too.
    const paths = [segmentPath(spare), sparePath(spare)];
    const calls = paths.map((path): StorageCall => ({ call: 'unlink', path }));
    this.#ports.submit(-1, calls, () => {});
  }

  /** The one that a job is at goes when that has answered. */
  #deleteFree(seqs: readonly number[]): void {
    const busy = seqs.filter((seq) => this.#old.isAtWork(seq));
    if (busy.length > 0) this.#old.afterJob(() => this.#delete(busy));
    this.#delete(seqs.filter((seq) => !busy.includes(seq)));
  }

  #delete(seqs: readonly number[]): void {
    if (seqs.length === 0) return;
    // Compressed or not: the command line may be at it in this very moment.
    const calls = seqs.flatMap((seq): StorageCall[] => [
      { call: 'unlink', path: segmentPath(seq) },
      { call: 'unlink', path: compressedPath(seq) },
    ]);
    this.#ports.submit(-1, calls, ({ failure }) => {
      // What could not be deleted is an orphan now; the next open takes it.
      if (failure === undefined) this.#values[SEGMENTS_DELETED] += seqs.length;
    });
  }

  /** Index of the first segment that somebody needs; notes from where on, and who. */
  #firstKept(store: ManifestStore): number {
    const { control, clock } = this.#context;
    let floor = store.checkpoints.older.upper;
    let holder = HELD_BY_CHECKPOINT;
    const backup = this.#ports.backupFloor();
    if (backup !== undefined && lt(backup, floor)) {
      floor = backup;
      holder = HELD_BY_BACKUP;
    }
    // What a loss of power may take back moves no history on.
    const settled = Math.min(control.durable(), control.applied());
    for (const [collection, history] of this.#ports.histories()) {
      if (history.offsets === 0 && history.ms === 0) continue;
      const lowest = historyFloor(history, settled, this.#views.times(), clock.nowMs());
      if (le(floor, lowest)) continue;
      floor = lowest;
      holder = collection;
    }
    const { arena, topology } = this.#context;
    const held = lowestHold(arena, topology.slots, clientsMax, SLOT_LOG_HOLD_WORD);
    if (lt(held, floor)) {
      floor = held;
      holder = HELD_BY_FEED;
    }
    const confirmed = this.#views.cursorFloor(undefined);
    if (lt(confirmed, floor)) {
      floor = confirmed;
      holder = HELD_BY_CURSOR;
    }
    const { segments } = this.#views;
    const oldestMs = this.#keepMs === 0 ? Infinity : clock.nowMs() - this.#keepMs;
    let first = 0;
    while (first + 1 < segments.length && le(segments[first + 1].base, floor)) {
      if (segments[first + 1].atMs > oldestMs) {
        floor = segments[first].base;
        holder = HELD_BY_KEEP_MS;
        break;
      }
      first++;
    }
    // What is about to go no job begins with, even if somebody needs it now: that is too late.
    this.#old.keepFrom(Math.max(segments[first]?.seq ?? 0, this.#startSeq), store);
    for (let i = 0; i < first; i++) {
      if (this.#old.mayGo(segments[i].seq, store)) continue;
      floor = segments[i].base;
      holder = HELD_BY_ARCHIVE;
      first = i;
    }
    this.#values[LOG_FLOOR] = floor;
    this.#values[LOG_FLOOR_HOLDER] = holder;
    return first;
  }
}
