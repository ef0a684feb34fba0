/**
 * The keeper of where everything lies: spines, catalog of files, manifest, views, `since`. Chooses
 * flush and merge jobs and swaps pointers when their results come. It stands between no commit and its
 * acknowledgement, and never waits for its own disk: edits are queued, one batch in flight, and what
 * an edit says is shown to readers only once it is answered.
 *
 *   from        kind             what happens
 *   sequencer   OPENED           the first generation; a first view
 *   sequencer   SPARE            named in a new view, SPARE_PUBLISHED back
 *   sequencer   SEALED           queued for its flush; EMPTY: there was nothing to seal
 *   durability  SEGMENT          a segment began: to the log's keeper (log-keeper.ts)
 *   durability  RECOVERED        the log is replayed
 *   durability  BOUND_REACHED    a sealed generation is durable, its flush may be linked
 *   durability  CLOSE            the line has ended: everything here ends too
 *   compactor   CREDIT, RESULT   how many jobs may run; what became of one
 *   evictor     APPLIED          the row cache has taken a flushed generation in
 *   client      FLUSH, COMPACT,  DONE back when it is so
 *               CHECKPOINT
 *
 * A sealed generation's way: flush job -> parts loaded -> (durable) edit proposed -> edit answered ->
 * APPLY to the evictor -> APPLIED -> view without the generation -> retired by epoch -> FREE.
 */
import { invariant } from '../core/base/assert.ts';
import {
  corrupt,
  fromPlainError,
  isFullDisk,
  TidemarkError,
  toPlainError,
} from '../core/base/errors.ts';
import { join, le } from '../core/base/frontier.ts';
import { MiB, clientsMax, partBytesTarget, runsHard } from '../core/base/limits.ts';
import { CATALOG_ID, KIND_KEYED } from '../core/base/update.ts';
import { logHoldsRecords } from '../core/log/create.ts';
import { KIND_VIEW } from '../core/shared/buffer-pool.ts';
import {
  ACTOR_KEEPER,
  STATE_CLOSED,
  STATE_CLOSING,
  STATE_OPEN,
  STATE_STARTING,
} from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import { RetireList, UNTIL_NOW, lowestHold, readersInside } from '../core/shared/epoch.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Slab } from '../core/shared/slab.ts';
import { sumsOf } from '../core/spine/batch.ts';
import type { SpineState } from '../core/spine/batch.ts';
import type { FlushResult } from '../core/spine/flush-job.ts';
import { IdReserve, newManifest, notedTime } from '../core/spine/manifest.ts';
import type { Edit, LogPosition, SpineEdit } from '../core/spine/manifest.ts';
import { ManifestStore, loadManifest } from '../core/spine/manifest-store.ts';
import type { LoadedManifest } from '../core/spine/manifest-store.ts';
import type { MergeResult as JobMergeResult } from '../core/spine/merge-job.ts';
import type { PartInfo, PartRef } from '../core/spine/part-format.ts';
import { partRef } from '../core/spine/part-format.ts';
import {
  chooseMerge,
  chooseMove,
  collapseLevel,
  liveRuns,
  runsMinFor,
} from '../core/spine/policy.ts';
import type { MergeChoice } from '../core/spine/policy.ts';
import { Spine, diffSpine } from '../core/spine/spine.ts';
import type { MergeResult } from '../core/spine/spine.ts';
import { acquireLock, releaseLock } from '../core/storage/lock.ts';
import { PARTS_DIR, STORE_DIRS, TMP_DIR, numberOf, partPath } from '../core/storage/names.ts';
import type { StorageAnswer, StorageCall } from '../core/storage/storage.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { Actor, ActorContext } from './actor.ts';
import { CatalogReader } from './catalog-reader.ts';
import { KEEPER_COUNTERS, indexIn, makeCounters } from './counters.ts';
import type { RecoverRequest } from './durability.ts';
import { ringAll } from './host.ts';
import { collectionsIn } from './jobs.ts';
import type { Job } from './jobs.ts';
import {
  APPLY,
  BOUND_REACHED,
  DONE,
  GENERATION,
  KIND_WORD,
  MSG_APPLIED,
  MSG_APPLY,
  MSG_BOUND_REACHED,
  MSG_CHECKPOINT,
  MSG_CLOSE,
  MSG_COMPACT,
  MSG_DONE,
  MSG_EMPTY,
  MSG_FLUSH,
  MSG_FREE,
  MSG_OPENED,
  MSG_RECOVER,
  MSG_RECOVERED,
  MSG_SEAL,
  MSG_SEALED,
  MSG_SEGMENT,
  MSG_SPARE,
  MSG_SPARE_PUBLISHED,
  RECOVER,
  REQUEST,
  SEGMENT,
  getWide,
} from './messages.ts';
import { JobDesk } from './job-desk.ts';
import { LogKeeper } from './log-keeper.ts';
import { PartStore } from './part-store.ts';
import { isGone, markReleased } from './process-identity.ts';
import { freeText, reserveText, writeText } from './text-blocks.ts';
import { THREAD_BACKGROUND, THREAD_WRITE } from './topology.ts';
import { KEEP_ALL, Views, levelAt } from './views.ts';

/** The client slot that the keeper itself reads the catalog with. */
export const KEEPER_CLIENT: number = clientsMax - 1;

/** Jobs above this are large: one worker is kept from them. */
const LARGE_JOB_BYTES: number = 64 * MiB;
/** A collection untouched for so long is merged into as few runs as can be. */
const IDLE_MERGE_MS = 30_000;
/** How long closing waits for readers before descriptors are left to the process. */
const CLOSE_WAIT_MS = 5_000;
/** What a client's ring had no room for is told again after so long: nobody rings when there is room. */
const ANSWER_RETRY_MS = 1;
/** Retired things are looked at again after this long when nothing else happens. */
const SWEEP_MS = 5;
/** A job that failed is tried again after 1 s, doubling to 5 min. */
const RETRY_MS_MIN = 1_000;
const RETRY_MS_MAX = 300_000;
/** So many deaths of workers in a row: nothing can be flushed any more. */
const FAILURES_MAX = 3;
/** Room for a job's answer: per collection and part that it may name, and for the rest. */
const REPLY_BYTES_FIXED = 8_192;
const REPLY_BYTES_PER_COLLECTION = 512;
const REPLY_BYTES_PER_PART = 128;

const VIEWS: number = indexIn(KEEPER_COUNTERS, 'views');
const FLUSHES: number = indexIn(KEEPER_COUNTERS, 'flushes');
const FLUSHED_ROWS: number = indexIn(KEEPER_COUNTERS, 'flushedRows');
const FLUSHED_BYTES: number = indexIn(KEEPER_COUNTERS, 'flushedBytes');
const MERGES: number = indexIn(KEEPER_COUNTERS, 'merges');
const MERGED_ROWS_IN: number = indexIn(KEEPER_COUNTERS, 'mergedRowsIn');
const MERGED_ROWS_OUT: number = indexIn(KEEPER_COUNTERS, 'mergedRowsOut');
const MERGED_BYTES_IN: number = indexIn(KEEPER_COUNTERS, 'mergedBytesIn');
const MERGED_BYTES_OUT: number = indexIn(KEEPER_COUNTERS, 'mergedBytesOut');
const MERGES_REFUSED: number = indexIn(KEEPER_COUNTERS, 'mergesRefused');
const MOVES: number = indexIn(KEEPER_COUNTERS, 'moves');
const JOBS_FAILED: number = indexIn(KEEPER_COUNTERS, 'jobsFailed');
const EDITS: number = indexIn(KEEPER_COUNTERS, 'edits');
const EDIT_BATCHES: number = indexIn(KEEPER_COUNTERS, 'editBatches');
const FILES_DELETED: number = indexIn(KEEPER_COUNTERS, 'filesDeleted');
const STALL_MS_FOR_RUNS: number = indexIn(KEEPER_COUNTERS, 'stallMsForRuns');
const JOBS_RUNNING: number = indexIn(KEEPER_COUNTERS, 'jobsRunning');
const SEALED: number = indexIn(KEEPER_COUNTERS, 'sealed');
const FLUSHED_UPPER: number = indexIn(KEEPER_COUNTERS, 'flushedUpper');
const SEGMENTS: number = indexIn(KEEPER_COUNTERS, 'segments');
const WORK_WAITING: number = indexIn(KEEPER_COUNTERS, 'workWaiting');

/** A collection that has, or is about to have, parts. */
type Collection = {
  readonly id: number;
  /** With every proposed edit. */
  readonly spine: Spine<PartInfo>;
  /** Offsets of history, or KEEP_ALL: also while the catalog has not been read. */
  history: number;
  /** Edits proposed and not yet shown. */
  unshown: number;
  touchedAt: number;
  retryAt: number;
  failures: number;
  compactWanted: boolean;
};

/** A sealed generation on its way into parts. */
type Flushing = {
  readonly generation: number;
  readonly upper: number;
  readonly collections: number[];
  /** Where the log stands at its upper; there once that is durable. */
  position: LogPosition | undefined;
  /** A job is making its parts. */
  running: boolean;
  result: FlushResult | undefined;
  infos: PartInfo[] | undefined;
  proposed: boolean;
  retryAt: number;
  failures: number;
};

/** An edit's effect on readers, in the order of the edits. `show` answers false to be asked again. */
type Effect = { readonly edit: number; readonly show: () => boolean };

/** A merge under way. */
type Merging = {
  readonly collection: Collection;
  readonly choice: MergeChoice<PartInfo>;
  /** Pinned while the job reads them. */
  readonly files: ReadonlySet<number>;
};

type FlushWish = { client: number; number: number; token: number; upper: number };
type CompactWish = { client: number; number: number; collections: Collection[] };

export class SpineKeeper implements Actor {
  readonly number: number = ACTOR_KEEPER;
  readonly #context: ActorContext;
  readonly #fromSequencer: RingConsumer;
  readonly #sequencer: Outbox;
  readonly #fromDurability: RingConsumer;
  readonly #durability: Outbox;
  readonly #fromEvictor: RingConsumer;
  readonly #evictor: Outbox;
  readonly #requests: RingConsumer[];
  readonly #answers: Outbox[];
  readonly #counters: Counters;
  readonly #slab: Slab;
  readonly #retired: RetireList;
  readonly #parts: PartStore;
  readonly #views: Views;
  readonly #desk: JobDesk;
  readonly #catalog: CatalogReader;
  readonly #log: LogKeeper;

  #store: ManifestStore | undefined;
  /** File ids below it were given out before this run. */
  #filesBefore = 0;
  #started = false;
  #creating = false;
  #locked = false;
  #recovered = false;
  #restored = false;
  #opened = false;
  #closing = false;
  #closeDeadline = -1;

  /** Sealed generations on their way into parts, oldest first. */
  #sealed: Flushing[] = [];
  readonly #collections: Map<number, Collection> = new Map();
  /** A client's ring had no room for an answer. */
  #answersWait = false;
  /** By dropped collection: the time at which the catalog was first seen without it. */
  readonly #droppedAt: Map<number, number> = new Map();
  #shownUpper = 0;

  // Work.
  #bids = new IdReserve(1);
  #runIds = new IdReserve(1);
  #files = new IdReserve(1);
  #reserving = false;
  /** Merges under way: what each reads. */
  readonly #merging: Set<Merging> = new Set();
  readonly #effects: Effect[] = [];
  #applying: 'no' | 'asked' | 'answered' = 'no';
  #failuresInRow = 0;
  #catalogStale = true;
  #nextToken = 1;
  /** Newest token sent to the sequencer, and newest answered. */
  #sealAsked = 0;
  #sealAnswered = 0;
  readonly #flushWishes: FlushWish[] = [];
  readonly #compactWishes: CompactWish[] = [];
  #recoverText = 0;

  // Queued storage calls.
  #nextTicket = 1;
  readonly #waiting: Map<number, (answer: StorageAnswer) => void> = new Map();
  /** Those among them that end with a descriptor of their own open. */
  readonly #opening: Set<number> = new Set();
  #manifestTicket = 0;
  #stalledSince = -1;

  constructor(context: ActorContext) {
    const { topology, arena, pool, control } = context;
    const write = context.threadBells[THREAD_WRITE];
    const background = context.threadBells[THREAD_BACKGROUND];
    this.#context = context;
    this.#fromSequencer = inboxOf(context, topology.sequencerToKeeper);
    this.#sequencer = new Outbox(context, topology.keeperToSequencer, write);
    this.#fromDurability = inboxOf(context, topology.durabilityToKeeper);
    this.#durability = new Outbox(context, topology.keeperToDurability, write);
    this.#fromEvictor = inboxOf(context, topology.evictorToKeeper);
    this.#evictor = new Outbox(context, topology.keeperToEvictor, background);
    this.#requests = topology.clients.map((client) => inboxOf(context, client.requests));
    this.#answers = topology.clients.map(
      (client, i) => new Outbox(context, client.answers, context.clientBells[i]),
    );
    this.#counters = makeCounters(arena, topology.counters[ACTOR_KEEPER], KEEPER_COUNTERS);
    this.#slab = new Slab(pool, KIND_VIEW);
    this.#retired = new RetireList(arena, control.epochAddress, topology.slots, clientsMax);
    this.#parts = new PartStore(context, this.#slab, this.#retired, (fd, calls, done) =>
      this.#submit(fd, calls, done),
    );
    this.#views = new Views(context, this.#slab, this.#retired, this.#parts);
    this.#desk = new JobDesk(context, this.#slab);
    this.#catalog = new CatalogReader(context, KEEPER_CLIENT);
    this.#log = new LogKeeper(context, this.#views, this.#counters, {
      askSeal: () => this.#askSeal(),
      propose: (edit, show) => this.#propose(edit, show),
      submit: (fd, calls, done) => this.#submit(fd, calls, done),
      tellClient: (client, number) => this.#tellClient(client, number),
      histories: () => this.#catalog.histories(),
    });
  }

  tick(): boolean {
    if (!this.#started) {
      this.#start();
      return true;
    }
    let worked = this.#takeAnswers();
    worked = this.#takeFromDurability() || worked;
    worked = this.#takeFromSequencer() || worked;
    worked = this.#desk.take() || worked;
    worked = this.#takeFromEvictor() || worked;
    worked = this.#retired.sweep() > 0 || worked;
    if (this.#closing) return this.#close() || worked;
    if (!this.#opened) worked = this.#openIfReady() || worked;
    worked = this.#takeRequests() || worked;
    this.#sendSeal();
    // A log that is refused is refused before anything is written.
    const isLogSound = this.#recovered || this.#sealed.length > 0;
    if (this.#restored && this.#store !== undefined && isLogSound) {
      worked = this.#reserveIds() || worked;
      worked = this.#link() || worked;
      worked = this.#writeManifest() || worked;
      worked = this.#showEffects() || worked;
      worked = this.#dispatch() || worked;
      worked = this.#sweepDropped() || worked;
      worked = this.#log.step(this.#shownUpper, this.#store) || worked;
    }
    if (this.#views.stale) {
      this.#views.publish();
      worked = true;
    }
    this.#answerWishes();
    return worked;
  }

  idle(): number {
    if (this.#answersWait) return ANSWER_RETRY_MS;
    if (this.#retired.length > 0) return SWEEP_MS;
    if (this.#closing) return SWEEP_MS;
    // Idle collections, failed jobs and checkpoints come due without a message.
    return this.#opened && !this.#context.config.readOnly ? 1_000 : Infinity;
  }

  publish(): void {
    const { values } = this.#counters;
    values[VIEWS] = this.#views.published;
    values[JOBS_RUNNING] = this.#desk.running;
    values[SEALED] = this.#sealed.length;
    values[FLUSHED_UPPER] = this.#shownUpper;
    values[SEGMENTS] = this.#views.segments.length;
    values[FILES_DELETED] = this.#parts.filesDeleted;
    values[WORK_WAITING] = this.#workWaiting();
    this.#counters.publish();
  }

  onClose(): void {
    // After poison files are left as they are; the LOCK too, for other threads may still be at the disk.
    const { storage, arena, topology } = this.#context;
    if (!readersInside(arena, topology.slots, clientsMax)) this.#parts.closeAll();
    // What programs have opened that nobody hears of any more is known nowhere else.
    for (let answer = storage.poll(); answer !== undefined; answer = storage.poll()) {
      if (answer.ticket === this.#manifestTicket) this.#manifestTicket = 0;
      const leavesOpen = this.#opening.has(answer.ticket) && answer.failure === undefined;
      if (leavesOpen) storage.close(answer.fd);
    }
    // A queued program has the descriptor: closed under it, the number may be somebody else's file.
    if (this.#store !== undefined && this.#manifestTicket === 0) this.#store.close(storage);
  }

  // ---------------------------------------------------------------- opening

  #start(): void {
    const { storage, config } = this.#context;
    this.#started = true;
    const isThere = storage.stat('') !== undefined;
    if (!isThere && !config.createIfMissing) throw notFound(config.directory);
    if (!config.readOnly) storage.makeDir('');
    if (config.holder !== undefined) {
      this.#locked = acquireLock(storage, config.holder, isGone, config.breakLock, config.readOnly);
    }
    const loaded = loadManifest(storage);
    if (loaded === undefined) {
      if (logHoldsRecords(storage)) {
        throw corrupt('NO_MANIFEST', `${config.directory} has a log but no manifest`, {
          directory: config.directory,
        });
      }
      if (!config.createIfMissing) throw notFound(config.directory);
      this.#creating = true;
    } else if (config.errorIfExists) {
      throw new TidemarkError('TIDEMARK_EXISTS', `${config.directory} holds a store`, {
        directory: config.directory,
      });
    }
    if (!config.readOnly) this.#prepareDirectories();
    // Noted now: the store goes on with this state, and jobs run before the engine is open.
    this.#filesBefore = loaded?.state.counters.file ?? 0;
    if (loaded !== undefined) this.#restore(loaded);
    else this.#restored = true;
    this.#askForLog(loaded);
  }

  #prepareDirectories(): void {
    const { storage } = this.#context;
    for (const dir of STORE_DIRS) storage.makeDir(dir);
    for (const name of storage.list(TMP_DIR)) storage.unlink(`${TMP_DIR}/${name}`);
    storage.syncDir('');
  }

  #askForLog(loaded: LoadedManifest | undefined): void {
    const { arena, config } = this.#context;
    const request: RecoverRequest =
      loaded === undefined
        ? {
            create: true,
            logId: config.newLogId,
            firstSeq: 1,
            firstOffset: 0,
            start: null,
            witness: 0,
          }
        : {
            create: false,
            logId: Buffer.from(loaded.state.identity.logId).toString('base64'),
            firstSeq: loaded.state.logStart.seq,
            firstOffset: loaded.state.logStart.offset,
            start: loaded.state.flushed,
            witness: loaded.state.flushed.upper,
          };
    const text = JSON.stringify(request);
    this.#recoverText = reserveText(arena, this.#slab, text.length);
    invariant(this.#recoverText !== 0, 'a fresh arena has room');
    const slot = this.#durability.claim();
    const { u32 } = this.#durability.ring;
    u32[slot + KIND_WORD] = MSG_RECOVER;
    u32[slot + RECOVER.ADDRESS] = this.#recoverText;
    u32[slot + RECOVER.BYTES] = writeText(arena, this.#recoverText, text);
    this.#durability.send();
  }

  /** Takes over the manifest's spines and loads the parts that they name. */
  #restore(loaded: LoadedManifest): void {
    const { storage, config, clock } = this.#context;
    const { state } = loaded;
    if (!config.readOnly) {
      this.#store = ManifestStore.resume(storage, loaded);
      for (const path of this.#store.strays(storage)) storage.unlink(path);
    }
    if (this.#store !== undefined) this.#log.begin(state.logStart.seq, this.#store);
    this.#shownUpper = state.flushed.upper;
    this.#bids = new IdReserve(state.counters.bid);
    this.#runIds = new IdReserve(state.counters.run);
    this.#files = new IdReserve(state.counters.file);
    const infos: PartInfo[] = [];
    for (const [id, spineState] of state.spines) {
      const collection = this.#makeCollection(id, Spine.restore(spineState, this.#spineOptions()));
      collection.touchedAt = clock.ticksMs();
      for (const { hollow } of spineState.hollows) {
        for (const run of hollow.runs) infos.push(...run.parts);
      }
    }
    // Parts that share a file stand together, so that it is opened once.
    infos.sort((a, b) => a.file - b.file || a.offset - b.offset);
    this.#parts.restore(infos, (_, failure) => {
      if (failure !== undefined) throw asCorrupt(failure);
      for (const collection of this.#collections.values()) {
        this.#views.show(collection.id, collection.spine.state(), collection.history);
      }
      this.#restored = true;
    });
  }

  #spineOptions(): ConstructorParameters<typeof Spine<PartInfo>>[0] {
    return {
      kind: KIND_KEYED,
      ids: { bid: () => this.#bids.take(), run: () => this.#runIds.take() },
    };
  }

  #makeCollection(id: number, spine: Spine<PartInfo>): Collection {
    const collection: Collection = {
      id,
      spine,
      history: KEEP_ALL,
      unshown: 0,
      touchedAt: 0,
      retryAt: 0,
      failures: 0,
      compactWanted: false,
    };
    this.#collections.set(id, collection);
    return collection;
  }

  #openIfReady(): boolean {
    if (!this.#recovered || !this.#restored || this.#views.open === 0) return false;
    const { storage, config, control } = this.#context;
    if (this.#creating && this.#store === undefined) {
      // The log exists and is empty; the manifest comes last, and with it the store.
      const first = this.#views.segments[0];
      const logId = new Uint8Array(Buffer.from(config.newLogId, 'base64'));
      const epoch = 0;
      const start = { upper: 0, seq: first.seq, position: 4_096, chain: 0, epoch, atMs: 0 };
      this.#store = ManifestStore.create(storage, newManifest(logId, start));
      storage.syncDir('');
      this.#log.begin(first.seq, this.#store);
    }
    this.#views.publish();
    this.#readCatalog();
    this.#opened = true;
    this.#log.start();
    if (!config.readOnly) this.#sweepOrphans();
    control.moveState(STATE_STARTING, STATE_OPEN);
    ringAll(this.#context);
    return true;
  }

  /** Deletes part files that no manifest names: outputs of jobs that a crash cut off. */
  #sweepOrphans(): void {
    const { storage } = this.#context;
    for (const name of storage.list(PARTS_DIR)) {
      const file = numberOf(name, '.part');
      // Later ids belong to jobs of this run.
      if (file === undefined || file >= this.#filesBefore) continue;
      // Merged away while the log was replayed: the manifest may name it until the edit is answered.
      if (!this.#parts.has(file)) storage.unlink(partPath(file));
    }
  }

  // ---------------------------------------------------------------- storage

  #submit(fd: number, calls: readonly StorageCall[], done: (answer: StorageAnswer) => void): void {
    const ticket = this.#nextTicket++;
    this.#waiting.set(ticket, done);
    const last = (call: string): number => calls.findLastIndex((step) => step.call === call);
    if (last('open') > last('close')) this.#opening.add(ticket);
    this.#context.storage.submit(ticket, fd, calls);
  }

  #takeAnswers(): boolean {
    let worked = false;
    const { storage } = this.#context;
    for (let answer = storage.poll(); answer !== undefined; answer = storage.poll()) {
      const done = this.#waiting.get(answer.ticket);
      invariant(done !== undefined, 'an answer to a call of ours', answer.ticket);
      this.#waiting.delete(answer.ticket);
      this.#opening.delete(answer.ticket);
      done(answer);
      worked = true;
    }
    return worked;
  }

  #writeManifest(): boolean {
    const store = this.#store!;
    if (this.#manifestTicket !== 0) return false;
    const program = store.program();
    if (program === undefined) return false;
    this.#manifestTicket = this.#nextTicket;
    this.#counters.add(EDIT_BATCHES, 1);
    this.#submit(program.fd, program.calls, (answer) => {
      this.#manifestTicket = 0;
      const progress = store.onAnswer(answer);
      if (progress.failure !== undefined) throw progress.failure;
      if (progress.rolledUp) {
        this.#log.onRolledUp(store);
        // Before the engine is open the catalog may be an old one; when it closes, nothing follows the rollup.
        if (this.#opened && !this.#closing) this.#log.dropSegments(store);
      }
    });
    return true;
  }

  /** Ids are reserved by an edit before they are used, so that a crash skips ids and repeats none. */
  #reserveIds(): boolean {
    if (this.#reserving) return false;
    const bid = this.#bids.wanted();
    const run = this.#runIds.wanted();
    const file = this.#files.wanted();
    if (bid === undefined && run === undefined && file === undefined) return false;
    const { counters } = this.#store!.proposed;
    const next = {
      bid: bid ?? counters.bid,
      run: run ?? counters.run,
      file: file ?? counters.file,
    };
    this.#reserving = true;
    this.#propose({ counters: next }, () => {
      this.#bids.granted(next.bid);
      this.#runIds.granted(next.run);
      this.#files.granted(next.file);
      this.#reserving = false;
      return true;
    });
    return true;
  }

  #propose(edit: Edit, show: () => boolean): void {
    const number = this.#store!.propose(edit);
    this.#counters.add(EDITS, 1);
    this.#effects.push({ edit: number, show });
  }

  /** Shows what answered edits say, in their order. */
  #showEffects(): boolean {
    const { answered } = this.#store!;
    let shown = false;
    while (this.#effects.length > 0 && this.#effects[0].edit <= answered) {
      if (!this.#effects[0].show()) return shown;
      this.#effects.shift();
      shown = true;
    }
    return shown;
  }

  // ---------------------------------------------------------------- messages

  #takeFromSequencer(): boolean {
    let worked = false;
    const inbox = this.#fromSequencer;
    const { u32 } = inbox;
    for (let slot = inbox.peek(); slot >= 0; slot = inbox.peek()) {
      const address = u32[slot + GENERATION.ADDRESS];
      const upper = getWide(u32, slot + GENERATION.UPPER);
      const token = u32[slot + GENERATION.TOKEN];
      switch (u32[slot + KIND_WORD]) {
        case MSG_OPENED:
          this.#views.open = address;
          this.#views.stale = true;
          break;
        case MSG_SPARE:
          this.#views.spare = address;
          // Answered only when a view names it.
          this.#views.publish();
          this.#tellSequencer(MSG_SPARE_PUBLISHED, address, 0);
          break;
        case MSG_SEALED:
          this.#onSealed(address, upper);
          this.#onSealToken(token, upper);
          break;
        case MSG_EMPTY:
          this.#onSealToken(token, upper);
          break;
        default:
          invariant(false, 'a message of the sequencer', u32[slot + KIND_WORD]);
      }
      inbox.pop();
      worked = true;
    }
    return worked;
  }

  #onSealed(generation: number, upper: number): void {
    const collections = collectionsIn(this.#context.arena, generation);
    this.#sealed.push({
      generation,
      upper,
      collections,
      position: undefined,
      running: false,
      result: undefined,
      infos: undefined,
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

  #tellSequencer(kind: number, address: number, token: number): void {
    const slot = this.#sequencer.claim();
    invariant(slot >= 0, 'the ring to the sequencer has room');
    const { u32 } = this.#sequencer.ring;
    u32[slot + KIND_WORD] = kind;
    u32[slot + GENERATION.ADDRESS] = address;
    u32[slot + GENERATION.TOKEN] = token;
    this.#sequencer.send();
  }

  #takeFromDurability(): boolean {
    let worked = false;
    const inbox = this.#fromDurability;
    const { u32 } = inbox;
    for (let slot = inbox.peek(); slot >= 0; slot = inbox.peek()) {
      switch (u32[slot + KIND_WORD]) {
        case MSG_SEGMENT:
          this.#log.onSegment(
            u32[slot + SEGMENT.SEQ],
            getWide(u32, slot + SEGMENT.BASE),
            getWide(u32, slot + SEGMENT.AT_MS),
            this.#recovered,
          );
          break;
        case MSG_RECOVERED:
          this.#recovered = true;
          freeText(this.#context.arena, this.#slab, this.#recoverText);
          break;
        case MSG_BOUND_REACHED: {
          const upper = getWide(u32, slot + BOUND_REACHED.UPPER);
          const item = this.#sealed.find((sealed) => sealed.upper === upper);
          // Bounds overtake the notice of the seal: they come over another ring.
          if (item === undefined) return worked;
          item.position = {
            upper,
            seq: u32[slot + BOUND_REACHED.SEQ],
            position: getWide(u32, slot + BOUND_REACHED.POSITION),
            chain: u32[slot + BOUND_REACHED.CHAIN],
            epoch: u32[slot + BOUND_REACHED.EPOCH],
            atMs: getWide(u32, slot + BOUND_REACHED.AT_MS),
          };
          break;
        }
        case MSG_CLOSE:
          this.#closing = true;
          break;
        default:
          invariant(false, 'a message of durability', u32[slot + KIND_WORD]);
      }
      inbox.pop();
      worked = true;
    }
    return worked;
  }

  #takeFromEvictor(): boolean {
    const slot = this.#fromEvictor.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromEvictor;
    invariant(u32[slot + KIND_WORD] === MSG_APPLIED, 'a message of the evictor');
    invariant(
      u32[slot + APPLY.VERSION] === this.#views.version + 1,
      'versions are applied in order',
    );
    invariant(this.#applying === 'asked', 'an answer to an apply');
    this.#applying = 'answered';
    this.#fromEvictor.pop();
    return true;
  }

  #takeRequests(): boolean {
    let worked = false;
    const count = Math.min(this.#context.control.clients(), this.#requests.length);
    for (let client = 0; client < count; client++) {
      const inbox = this.#requests[client];
      const slot = inbox.peek();
      if (slot < 0) continue;
      const { u32 } = inbox;
      const number = u32[slot + REQUEST.NUMBER];
      if (u32[slot + KIND_WORD] === MSG_FLUSH) {
        const token = this.#askSeal();
        this.#flushWishes.push({ client, number, token, upper: -1 });
      } else if (u32[slot + KIND_WORD] === MSG_CHECKPOINT) {
        this.#log.onWish(client, number);
      } else {
        invariant(u32[slot + KIND_WORD] === MSG_COMPACT, 'a request of a client');
        const whole = u32[slot + REQUEST.WHOLE] === 1;
        this.#onCompact(client, number, whole ? -1 : u32[slot + REQUEST.COLLECTION]);
      }
      inbox.pop();
      worked = true;
    }
    return worked;
  }

  /** Returns the token of an answer that will be no older than this wish. */
  #askSeal(): number {
    return this.#nextToken++;
  }

  /** One question at a time, for all who wished meanwhile: the sequencer may be long at its disk. */
  #sendSeal(): void {
    const newest = this.#nextToken - 1;
    if (this.#sealAsked !== this.#sealAnswered || newest === this.#sealAsked) return;
    this.#sealAsked = newest;
    this.#tellSequencer(MSG_SEAL, 0, newest);
  }

  #onSealToken(token: number, upper: number): void {
    if (token === 0) return;
    this.#sealAnswered = token;
    // One answer serves all who asked before it.
    for (const wish of this.#flushWishes) {
      if (wish.upper < 0 && wish.token <= token) wish.upper = upper;
    }
    this.#log.onSealed(token, upper);
  }

  #onCompact(client: number, number: number, only: number): void {
    const collections = [...this.#collections.values()].filter(
      (collection) => only < 0 || collection.id === only,
    );
    for (const collection of collections) collection.compactWanted = true;
    this.#compactWishes.push({ client, number, collections });
  }

  #answerWishes(): void {
    this.#answersWait = false;
    this.#log.answerWishes();
    for (let i = 0; i < this.#flushWishes.length; i++) {
      const wish = this.#flushWishes[i];
      if (wish.upper < 0 || wish.upper > this.#shownUpper) continue;
      if (!this.#tellClient(wish.client, wish.number)) return;
      this.#flushWishes.splice(i--, 1);
    }
    for (let i = 0; i < this.#compactWishes.length; i++) {
      const wish = this.#compactWishes[i];
      if (wish.collections.some((collection) => collection.compactWanted)) continue;
      if (!this.#tellClient(wish.client, wish.number)) return;
      this.#compactWishes.splice(i--, 1);
    }
  }

  #tellClient(client: number, number: number): boolean {
    const outbox = this.#answers[client];
    const slot = outbox.claim();
    if (slot < 0) this.#answersWait = true;
    if (slot < 0) return false;
    const { u32 } = outbox.ring;
    u32[slot + KIND_WORD] = MSG_DONE;
    u32[slot + DONE.NUMBER] = number;
    u32[slot + DONE.REFUSAL] = 0;
    outbox.send();
    return true;
  }

  // ---------------------------------------------------------------- jobs

  /** Hands out as many jobs as there are workers: flushes first, then the best merges. */
  #dispatch(): boolean {
    const { config } = this.#context;
    if (config.readOnly) return false;
    let worked = false;
    while (this.#desk.hasCredit) {
      if (!this.#dispatchFlush() && !this.#dispatchMerge()) break;
      worked = true;
    }
    return this.#linkMoves() || worked;
  }

  #dispatchFlush(): boolean {
    const now = this.#context.clock.ticksMs();
    const item = this.#sealed.find((sealed) => !sealed.running && sealed.result === undefined);
    if (item === undefined || item.retryAt > now) return false;
    if (this.#isOverloaded(now)) return false;
    const count = Math.ceil(this.#context.config.memtableBytes / partBytesTarget) + 2;
    const outFiles = this.#takeFiles(count);
    if (outFiles === undefined) return false;
    // An earlier flush may still be on its way: then the run below this one is not the oldest.
    const inFlight = new Set<number>();
    for (const other of this.#sealed) {
      if (other === item) break;
      for (const id of other.collections) inFlight.add(id);
    }
    const collections = item.collections.map((id) => {
      const collection = this.#collections.get(id);
      const hasRuns = collection !== undefined && collection.spine.len > 0;
      return {
        collection: id,
        kind: KIND_KEYED,
        since: this.#views.shown(id)?.since ?? 0,
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
    };
    const reply =
      REPLY_BYTES_FIXED +
      collections.length * REPLY_BYTES_PER_COLLECTION +
      count * REPLY_BYTES_PER_PART;
    item.running = this.#desk.send(request, reply, false, (outcome) => {
      item.running = false;
      if (outcome.failure !== undefined)
        this.#onFailure(item, fromPlainError(outcome.failure), true);
      else this.#onFlushed(item, outcome.value as FlushResult);
    });
    if (!item.running) this.#files.giveBack(count);
    return item.running;
  }

  /** More runs than a read should have to visit: nothing is flushed until a merge has caught up. */
  #isOverloaded(now: number): boolean {
    let isOver = false;
    for (const collection of this.#collections.values()) {
      if (liveRuns(collection.spine.batches()) > runsHard && this.#hasMerge(collection))
        isOver = true;
    }
    if (isOver && this.#stalledSince < 0) this.#stalledSince = now;
    if (!isOver && this.#stalledSince >= 0) {
      this.#counters.add(STALL_MS_FOR_RUNS, Math.ceil(now - this.#stalledSince));
      this.#stalledSince = -1;
    }
    return isOver;
  }

  #hasMerge(collection: Collection): boolean {
    for (const merging of this.#merging) if (merging.collection === collection) return true;
    return false;
  }

  #dispatchMerge(): boolean {
    const now = this.#context.clock.ticksMs();
    let best: MergeChoice<PartInfo> | undefined;
    let chosen: Collection | undefined;
    for (const collection of this.#collections.values()) {
      const choice = this.#chooseFor(collection, now);
      if (choice === undefined) continue;
      if (choice.bytes > LARGE_JOB_BYTES && !this.#desk.hasCreditForLarge) continue;
      if (best === undefined || choice.score > best.score) {
        best = choice;
        chosen = collection;
      }
    }
    if (best === undefined || chosen === undefined) return false;
    return this.#sendMerge(chosen, best);
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

  #sendMerge(collection: Collection, choice: MergeChoice<PartInfo>): boolean {
    const count = Math.ceil(choice.bytes / (partBytesTarget / 2)) + 2;
    const outFiles = this.#takeFiles(count);
    if (outFiles === undefined) return false;
    const since = join(choice.sinceMin, this.#views.shown(collection.id)?.since ?? 0);
    const inputs = mergeInputs(collection.spine, choice);
    const request: Job = {
      kind: 'merge',
      request: {
        jobId: this.#desk.nextId,
        collection: collection.id,
        kind: KIND_KEYED,
        inputs,
        since,
        oldest: choice.oldest,
        outFiles,
      },
    };
    const files = new Set(choice.runs.flatMap((run) => run.parts.map((part) => part.file)));
    const reply = REPLY_BYTES_FIXED + (count + choice.runs.length) * REPLY_BYTES_PER_PART;
    const large = choice.bytes > LARGE_JOB_BYTES;
    const merging: Merging = { collection, choice, files };
    const isSent = this.#desk.send(request, reply, large, (outcome) => {
      if (outcome.failure === undefined) {
        this.#onMerged(merging, outcome.value as JobMergeResult);
        return;
      }
      this.#endMerge(merging);
      this.#onFailure(collection, fromPlainError(outcome.failure), false);
      // Damage does not heal: the wish to compact is answered by what could be done.
      collection.compactWanted = false;
    });
    if (!isSent) {
      // Memory is short for a while: ids burnt at each attempt would cost an edit every few.
      this.#files.giveBack(count);
      return false;
    }
    this.#merging.add(merging);
    this.#parts.pin(files);
    return true;
  }

  #endMerge(merging: Merging): void {
    this.#merging.delete(merging);
    this.#parts.unpin(merging.files);
  }

  #takeFiles(count: number): { first: number; count: number } | undefined {
    if (this.#files.available < count) return undefined;
    const first = this.#files.take();
    for (let i = 1; i < count; i++) this.#files.take();
    return { first, count };
  }

  /** A job failed: it is chosen again after a while, longer each time. */
  #onFailure(target: Collection | Flushing, failure: TidemarkError, isFlush: boolean): void {
    if (this.#closing) return;
    this.#counters.add(JOBS_FAILED, 1);
    // A full disk heals; until then commits are refused.
    if (!isFullDisk(failure)) this.#failuresInRow++;
    // A flush that cannot happen ends the engine sooner or later: better with its cause.
    if (this.#failuresInRow >= FAILURES_MAX && isFlush) throw failure;
    target.failures++;
    const backOff = Math.min(RETRY_MS_MAX, RETRY_MS_MIN * 2 ** (target.failures - 1));
    target.retryAt = this.#context.clock.ticksMs() + backOff;
  }

  // ---------------------------------------------------------------- flush results

  #onFlushed(item: Flushing, result: FlushResult): void {
    item.result = result;
    const refs = result.collections.flatMap((flushed) => flushed.parts);
    this.#parts.load(refs, (infos, failure) => {
      if (failure === undefined) {
        this.#failuresInRow = 0;
        item.infos = infos;
        return;
      }
      this.#parts.discardOutputs(refs);
      item.result = undefined;
      this.#onFailure(item, asFailure(failure), true);
    });
  }

  /** Proposes the edit of the oldest sealed generation once its parts are loaded and it is durable. */
  #link(): boolean {
    const item = this.#sealed[0];
    if (item === undefined || item.proposed) return false;
    if (item.infos === undefined || item.position === undefined) return false;
    if (this.#bids.available < item.collections.length + 1) return false;
    if (this.#runIds.available < item.collections.length + 1) return false;
    if (item.collections.includes(CATALOG_ID)) this.#catalogStale = true;
    this.#readCatalog();
    const { clock } = this.#context;
    const spines: SpineEdit[] = [];
    const changed: { collection: Collection; state: SpineState<PartInfo> }[] = [];
    let at = 0;
    for (const flushed of item.result!.collections) {
      const parts = item.infos.slice(at, at + flushed.parts.length);
      at += flushed.parts.length;
      if (parts.length === 0) continue;
      const id = flushed.collection;
      if (this.#isGone(id)) {
        for (const part of parts) this.#parts.discard(part);
        continue;
      }
      const collection =
        this.#collections.get(id) ?? this.#makeCollection(id, new Spine(this.#spineOptions()));
      const { spine } = collection;
      collection.history = this.#catalog.historyOf(id);
      const before = this.#store!.proposed.spines.get(id);
      const since = join(flushed.since, spine.since);
      if (since > spine.since) spine.advanceSince(since);
      spine.push({ lower: spine.upper, upper: item.upper, since: flushed.since, runs: [parts] });
      const state = spine.state();
      spines.push({ collection: id, delta: diffSpine(before, state) });
      changed.push({ collection, state });
      collection.unshown++;
      collection.touchedAt = clock.ticksMs();
      this.#counters.add(FLUSHED_ROWS, flushed.len);
    }
    this.#counters.add(FLUSHED_BYTES, item.result!.stats.bytesWritten);
    this.#counters.add(FLUSHES, 1);
    item.proposed = true;
    const times = notedTime(this.#store!.proposed.times, item.upper, item.position.atMs);
    this.#propose({ flushed: item.position, spines, ...times }, () =>
      this.#showFlush(item, changed),
    );
    return true;
  }

  #showFlush(
    item: Flushing,
    changed: readonly { collection: Collection; state: SpineState<PartInfo> }[],
  ): boolean {
    if (this.#applying === 'no') {
      // The row cache first: a view without the generation must find its rows there or in parts.
      const slot = this.#evictor.claim();
      if (slot < 0) return false;
      const { u32 } = this.#evictor.ring;
      u32[slot + KIND_WORD] = MSG_APPLY;
      u32[slot + APPLY.ADDRESS] = item.generation;
      u32[slot + APPLY.VERSION] = this.#views.version + 1;
      this.#evictor.send();
      this.#applying = 'asked';
    }
    if (this.#applying === 'asked') return false;
    this.#applying = 'no';
    this.#views.version++;
    for (const { collection, state } of changed) {
      collection.unshown--;
      this.#views.show(collection.id, state, collection.history);
    }
    invariant(this.#sealed[0] === item, 'generations enter the source in order');
    this.#sealed.shift();
    this.#views.sealed.shift();
    this.#shownUpper = item.upper;
    this.#views.afterPublish(() =>
      this.#retired.retire(item.generation, UNTIL_NOW, (address) =>
        this.#tellSequencer(MSG_FREE, address, 0),
      ),
    );
    this.#views.publish();
    return true;
  }

  /** The catalog, which knows all that is in parts or about to be, has no such collection. */
  #isDropped(id: number): boolean {
    return id !== CATALOG_ID && !this.#catalogStale && !this.#catalog.has(id);
  }

  /** Dropped, and nobody holds a time at which it was there. */
  #isGone(id: number): boolean {
    if (!this.#isDropped(id)) return false;
    let seenAt = this.#droppedAt.get(id);
    if (seenAt === undefined) {
      seenAt = this.#catalog.T;
      this.#droppedAt.set(id, seenAt);
    }
    const { arena, topology } = this.#context;
    return le(seenAt, lowestHold(arena, topology.slots, clientsMax));
  }

  /** Lets go of collections that were dropped, once nobody holds a time at which they were there. */
  #sweepDropped(): boolean {
    for (const [id, collection] of this.#collections) {
      if (!this.#isGone(id) || collection.unshown > 0 || this.#hasMerge(collection)) continue;
      this.#collections.delete(id);
      // Who wished it compact is answered: there is nothing left to merge.
      collection.compactWanted = false;
      this.#propose({ spinesRemoved: [id] }, () => {
        this.#views.remove(id);
        return true;
      });
      return true;
    }
    return false;
  }

  /** Looks up how much history each collection keeps, when the catalog may have changed. */
  #readCatalog(): void {
    if (!this.#catalogStale) return;
    this.#catalogStale = false;
    this.#catalog.refresh();
    for (const collection of this.#collections.values()) {
      collection.history = this.#catalog.historyOf(collection.id);
    }
  }

  // ---------------------------------------------------------------- merge results

  #onMerged(merging: Merging, result: JobMergeResult): void {
    const refs = result.runs.flatMap((run) => run.parts);
    this.#parts.load(refs, (infos, failure) => {
      this.#endMerge(merging);
      if (failure === undefined) {
        this.#failuresInRow = 0;
        this.#applyMerge(merging, result, infos!);
        return;
      }
      // What was made cannot be read back: as if the job had failed.
      this.#parts.discardOutputs(refs);
      this.#onFailure(merging.collection, asFailure(failure), false);
      merging.collection.compactWanted = false;
    });
  }

  #applyMerge(merging: Merging, result: JobMergeResult, infos: readonly PartInfo[]): void {
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
  }

  /** Swaps pointers and proposes the edit that says so; false when the spine refuses the result. */
  #apply(collection: Collection, result: MergeResult<PartInfo>): boolean {
    const { spine, id } = collection;
    const before = this.#store!.proposed.spines.get(id);
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
    this.#proposeSpine(collection, before);
    return true;
  }

  #proposeSpine(collection: Collection, before: SpineState<PartInfo> | undefined): void {
    const state = collection.spine.state();
    const delta = diffSpine(before, state);
    collection.unshown++;
    this.#propose({ spines: [{ collection: collection.id, delta }] }, () => {
      collection.unshown--;
      this.#views.show(collection.id, state, collection.history);
      return true;
    });
  }

  /** Swaps that rewrite nothing, and structure that lets a later job take more at once. */
  #linkMoves(): boolean {
    if (this.#bids.available < 4 || this.#runIds.available < 4) return false;
    for (const collection of this.#collections.values()) {
      // One at a time: what is not shown is nobody's to move.
      if (collection.unshown > 0) continue;
      const move = chooseMove(collection.spine.batches(), this.#busy(collection));
      if (move !== undefined && this.#apply(collection, move)) {
        this.#counters.add(MOVES, 1);
        return true;
      }
      if (this.#hasMerge(collection)) continue;
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
    const before = this.#store!.proposed.spines.get(collection.id);
    if (!spine.collapse(level)) return false;
    this.#proposeSpine(collection, before);
    return true;
  }

  /** Jobs, generations and edits that are not done: 0 is quiet. */
  #workWaiting(): number {
    let waiting = this.#desk.running + this.#sealed.length + this.#effects.length;
    waiting += this.#log.waiting;
    const now = this.#context.clock.ticksMs();
    for (const collection of this.#collections.values()) {
      if (this.#chooseFor(collection, now) !== undefined) waiting++;
    }
    return waiting;
  }

  // ---------------------------------------------------------------- closing

  #close(): boolean {
    const { control, clock, storage, arena, topology } = this.#context;
    if (this.#closeDeadline < 0) {
      this.#closeDeadline = clock.ticksMs() + CLOSE_WAIT_MS;
      this.#desk.cancelAll();
      // The next open then finds a rollup and nothing to write again.
      if (this.#counters.values[EDITS] > 0) this.#store?.requestRollup();
      return true;
    }
    if (this.#store !== undefined && this.#writeManifest()) return true;
    // Results and answers under way are waited for: their files and descriptors are known only here.
    if (this.#desk.running > 0 || this.#waiting.size > 0) return false;
    const late = clock.ticksMs() >= this.#closeDeadline;
    if (readersInside(arena, topology.slots, clientsMax) && !late) return false;
    if (!late) this.#parts.closeAll();
    this.#store?.close(storage);
    this.#store = undefined;
    this.#unlock();
    this.publish();
    control.moveState(STATE_OPEN, STATE_CLOSING);
    control.moveState(STATE_CLOSING, STATE_CLOSED);
    ringAll(this.#context);
    return true;
  }

  #unlock(): void {
    const { storage, config } = this.#context;
    if (!this.#locked || config.holder === undefined) return;
    this.#locked = false;
    // First: should the LOCK stay behind, this process at least knows better.
    markReleased(config.holder);
    releaseLock(storage, config.holder);
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

function notFound(directory: string): TidemarkError {
  return new TidemarkError('TIDEMARK_NOT_FOUND', `${directory} holds no store`, { directory });
}

function asFailure(failure: unknown): TidemarkError {
  return failure instanceof TidemarkError ? failure : fromPlainError(toPlainError(failure));
}

/** A part that the manifest names and the disk has not got is damage, not an I/O error. */
function asCorrupt(failure: unknown): unknown {
  const { code, path } = (failure ?? {}) as { code?: unknown; path?: unknown };
  if (code !== 'ENOENT') return failure;
  return corrupt('MISSING_PART', `a part that the manifest names is missing: ${String(path)}`, {
    path,
  });
}
