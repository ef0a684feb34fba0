/**
 * The manifest's edits on their way: ids reserved ahead of their use, one batch of edits in flight, and
 * what each edit shows to readers once it is on disk, in the order of the edits. A part of the keeper,
 * on its thread; it knows nothing of what the edits say.
 */
import type { Counters } from '../core/shared/counters.ts';
import { IdReserve, idBlock } from '../core/spine/manifest.ts';
import type { Edit, Counters as IdCounters, ManifestState } from '../core/spine/manifest.ts';
import type { ManifestStore } from '../core/spine/manifest-store.ts';
import type { FileIds } from '../core/spine/part-files.ts';
import type { Clock, StorageAnswer, StorageCall } from '../core/storage/storage.ts';
import { KEEPER_COUNTERS, KEEPER_HISTOGRAMS, histogramIn, indexIn } from './counters.ts';

const EDITS: number = indexIn(KEEPER_COUNTERS, 'edits');
const EDIT_BATCHES: number = indexIn(KEEPER_COUNTERS, 'editBatches');
const EDIT_BYTES: number = indexIn(KEEPER_COUNTERS, 'editBytes');
const MANIFEST_US: number = histogramIn(KEEPER_COUNTERS, KEEPER_HISTOGRAMS, 'manifestUs');

/** Queues calls to the disk; `done` has their answer. Returns the ticket. */
export type Submit = (
  fd: number,
  calls: readonly StorageCall[],
  done: (answer: StorageAnswer) => void,
) => number;

/** An edit's effect on readers. `show` answers false to be asked again. */
type Effect = { readonly edit: number; readonly show: () => boolean };

const NO_TICKET = 0;

/**
 * Ids of batches that only merges take: their results ask for none. So many jobs have their files at the
 * most before an edit reserves more, for each has three ids of files or more.
 */
const MERGE_IDS: number = idBlock >>> 1;
/** With fewer more are reserved: before a flush of a few collections waits for them. */
const BATCH_IDS_MIN: number = MERGE_IDS + (idBlock >>> 2);

/** A disk that says it has room, and has none: a quota, most often. */
const NO_SPACE_RETRY_MS = 1_000;

export class Edits {
  /** Undefined until the store may be written to, and in a read-only one. */
  store: ManifestStore | undefined;
  bids: IdReserve = new IdReserve(1);
  runIds: IdReserve = new IdReserve(1);
  /** The engine is open: what finds no room waits. Before that it is a reason not to open. */
  mayWait = false;
  readonly #clock: Clock;
  readonly #counters: Counters;
  readonly #submit: Submit;
  readonly #hasSpace: () => boolean;
  #files: IdReserve = new IdReserve(1);
  #reserving = false;
  /** A job that waits needs so many. */
  #filesWanted = 0;
  /** So many ids of batches there have to be for what a flush has made. */
  #batchIdsWanted = 0;
  #ticket: number = NO_TICKET;
  /** A rollup found no room although the disk says it has some: not before this again. */
  #retryAt = 0;
  readonly #effects: Effect[] = [];

  /** `hasSpace`: the disk takes a batch of edits; asked before each. */
  constructor(clock: Clock, counters: Counters, submit: Submit, hasSpace: () => boolean) {
    this.#hasSpace = hasSpace;
    this.#clock = clock;
    this.#counters = counters;
    this.#submit = submit;
  }

  /** Goes on from the counters of a store. */
  restore(counters: IdCounters): void {
    this.bids = new IdReserve(counters.bid);
    this.runIds = new IdReserve(counters.run);
    this.#files = new IdReserve(counters.file);
  }

  /** With every edit proposed. Requires a store. */
  get proposed(): ManifestState {
    return this.store!.proposed;
  }

  /** Edits were proposed in this run. */
  get any(): boolean {
    return this.#counters.values[EDITS] > 0;
  }

  /** Edits that are not shown. */
  get waiting(): number {
    return this.#effects.length;
  }

  propose(edit: Edit, show: () => boolean): void {
    const number = this.store!.propose(edit);
    this.#counters.add(EDITS, 1);
    this.#effects.push({ edit: number, show });
  }

  /** Shows what answered edits say, in their order. */
  show(): boolean {
    const { answered } = this.store!;
    let shown = false;
    while (this.#effects.length > 0 && this.#effects[0].edit <= answered) {
      if (!this.#effects[0].show()) return shown;
      this.#effects.shift();
      shown = true;
    }
    return shown;
  }

  /** Hands the disk what is to be written next; `onRolledUp` hears of each rollup. */
  write(onRolledUp: (store: ManifestStore) => void): boolean {
    const store = this.store!;
    if (this.#ticket !== NO_TICKET) return false;
    // A full disk is no failure: edits wait for it. One that fills up while an edit is written is.
    if (store.idle || !this.#hasSpace()) return false;
    if (this.#clock.ticksMs() < this.#retryAt) return false;
    const program = store.program();
    if (program === undefined) return false;
    this.#counters.add(EDIT_BATCHES, 1);
    for (const step of program.calls) {
      if (step.call === 'write') this.#counters.add(EDIT_BYTES, step.bytes.length);
    }
    const startedAt = this.#clock.ticksMs();
    this.#ticket = this.#submit(program.fd, program.calls, (answer) => {
      this.#ticket = NO_TICKET;
      this.#counters.observe(MANIFEST_US, (this.#clock.ticksMs() - startedAt) * 1_000);
      const progress = store.onAnswer(answer);
      if (progress.failure !== undefined) throw progress.failure;
      if (progress.noSpace !== undefined) {
        if (!this.mayWait) throw progress.noSpace;
        this.#retryAt = this.#clock.ticksMs() + NO_SPACE_RETRY_MS;
      }
      if (progress.rolledUp) onRolledUp(store);
    });
    return true;
  }

  /** The answer of this ticket came when nobody listens any more. */
  onLateAnswer(ticket: number): void {
    if (ticket === this.#ticket) this.#ticket = NO_TICKET;
  }

  /** The disk has a program, and with it the manifest's descriptor. */
  get isWriting(): boolean {
    return this.#ticket !== NO_TICKET;
  }

  /** Ids are reserved by an edit before they are used, so that a crash skips ids and repeats none. */
  reserveIds(): boolean {
    if (this.#reserving) return false;
    const batchIds = Math.max(this.#batchIdsWanted, BATCH_IDS_MIN);
    const bid = this.bids.wanted(batchIds);
    const run = this.runIds.wanted(batchIds);
    const file = this.#files.wanted(Math.max(this.#filesWanted, idBlock >>> 1));
    if (bid === undefined && run === undefined && file === undefined) return false;
    const { counters } = this.proposed;
    const next = {
      bid: bid ?? counters.bid,
      run: run ?? counters.run,
      file: file ?? counters.file,
    };
    this.#reserving = true;
    this.propose({ counters: next }, () => {
      this.bids.granted(next.bid);
      this.runIds.granted(next.run);
      this.#files.granted(next.file);
      this.#reserving = false;
      return true;
    });
    return true;
  }

  /** So many batches may be made now beside what merges make, each with a run; false: not yet, but soon. */
  hasIds(count: number): boolean {
    const needed = count + MERGE_IDS;
    const has = this.bids.available >= needed && this.runIds.available >= needed;
    if (!has) this.#batchIdsWanted = Math.max(this.#batchIdsWanted, needed);
    else if (needed >= this.#batchIdsWanted) this.#batchIdsWanted = 0;
    return has;
  }

  /** Ids for a job's files; undefined: not so many are reserved yet, but they will be. */
  takeFiles(count: number): FileIds | undefined {
    if (this.#files.available < count) {
      this.#filesWanted = Math.max(this.#filesWanted, count);
      return undefined;
    }
    this.#filesWanted = 0;
    const first = this.#files.take();
    for (let i = 1; i < count; i++) this.#files.take();
    return { first, count };
  }

  /** The job was not sent: ids burnt at each attempt would cost an edit every few. */
  giveBackFiles(ids: FileIds): void {
    this.#files.giveBack(ids.count);
  }
}
