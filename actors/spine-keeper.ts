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
 *   durability  DECLINED         a segment that was offered to it is deleted, or what a failed job has left
 *   durability  SYNC             queued for the disk; SYNCED back
 *   durability  CLOSE            the line has ended: everything here ends too
 *   compactor   CREDIT, RESULT   how many jobs may run; what became of one
 *   evictor     APPLIED          the row cache has taken a flushed generation in
 *   client      ARCHIVED         the hook has a segment, or has failed (old-segments.ts)
 *   client      FLUSH, COMPACT,  DONE back when it is so
 *               CHECKPOINT,
 *               BACKUP, BACKUP_END
 *
 * A sealed generation's way: flush job -> parts loaded -> (durable) edit proposed -> edit answered ->
 * APPLY to the evictor -> APPLIED -> view without the generation -> retired by epoch -> FREE.
 */
import { invariant } from '../core/base/assert.ts';
import {
  codeNumber,
  corrupt,
  isFullDisk,
  TidemarkError,
  toPlainError,
} from '../core/base/errors.ts';
import { MiB, clientsMax } from '../core/base/limits.ts';
import { logHoldsRecords } from '../core/log/create.ts';
import { KIND_VIEW } from '../core/shared/buffer-pool.ts';
import {
  ACTOR_KEEPER,
  STALL_CALL,
  STATE_CLOSED,
  STATE_CLOSING,
  STATE_OPEN,
  STATE_STARTING,
} from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import { RetireList, readersInside } from '../core/shared/epoch.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Slab } from '../core/shared/slab.ts';
import { NO_LOG_END, newManifest } from '../core/spine/manifest.ts';
import { ManifestStore, loadManifest } from '../core/spine/manifest-store.ts';
import type { LoadedManifest } from '../core/spine/manifest-store.ts';
import type { PartInfo } from '../core/spine/part-format.ts';
import { acquireLock, releaseLock } from '../core/storage/lock.ts';
import { PARTS_DIR, STORE_DIRS, TMP_DIR, numberOf } from '../core/storage/names.ts';
import type { StorageAnswer, StorageCall } from '../core/storage/storage.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { Actor, ActorContext } from './actor.ts';
import { BackupHolds } from './backup-holds.ts';
import { Backpressure } from './backpressure.ts';
import { KEEPER_COUNTERS, KEEPER_HISTOGRAMS, indexIn, makeCounters } from './counters.ts';
import type { RecoverRequest } from './durability.ts';
import { Edits } from './edits.ts';
import { Flushes } from './flushes.ts';
import { ringAll } from './host.ts';
import {
  APPLY,
  BOUND_REACHED,
  DONE,
  GENERATION,
  KIND_WORD,
  MSG_APPLIED,
  MSG_APPLY,
  MSG_ARCHIVED,
  MSG_BACKUP,
  MSG_BACKUP_END,
  MSG_BOUND_REACHED,
  MSG_CHECKPOINT,
  MSG_CLOSE,
  MSG_DECLINED,
  MSG_COMPACT,
  MSG_COMPACT_END,
  MSG_DONE,
  MSG_EMPTY,
  MSG_FLUSH,
  MSG_FREE,
  MSG_OFFER,
  MSG_OPENED,
  MSG_RECOVER,
  MSG_RECOVERED,
  MSG_SEAL,
  MSG_SEALED,
  MSG_SEGMENT,
  MSG_SPARE,
  MSG_SPARE_PUBLISHED,
  MSG_SYNC,
  MSG_SYNCED,
  OFFER,
  RECOVER,
  REQUEST,
  SEGMENT,
  SYNC,
  getWide,
} from './messages.ts';
import { JobDesk } from './job-desk.ts';
import { LogKeeper } from './log-keeper.ts';
import { OldSegments } from './old-segments.ts';
import { Merges } from './merges.ts';
import { PartStore } from './part-store.ts';
import { isGone, markReleased } from './process-identity.ts';
import { SINCE_VIEWS, SpineTable } from './spine-table.ts';
import type { Collection } from './spine-table.ts';
import { CAUSE_DISK, CAUSE_MEMORY, Waits } from './stalls.ts';
import { errnoOf } from './system-error.ts';
import { freeText, reserveText, writeText } from './text-blocks.ts';
import { THREAD_BACKGROUND, THREAD_WRITE } from './topology.ts';
import { CALL_QUEUED } from './watched-storage.ts';
import { ViewRoom, noRoom } from './view-room.ts';
import { Views } from './views.ts';

/** The client slot that the keeper itself reads the catalog with. */
export const KEEPER_CLIENT: number = clientsMax - 1;

/** How long closing waits for readers before descriptors are left to the process. */
const CLOSE_WAIT_MS = 5_000;
/** And for so long that files go which nobody wants: the next open deletes the others. */
const DELETE_AT_CLOSE_MS = 200;
/** What a client's ring had no room for is told again after so long: nobody rings when there is room. */
const ANSWER_RETRY_MS = 1;
/** Retired things are looked at again after this long when nothing else happens. */
const SWEEP_MS = 5;
/** Edits are written while the disk has so much to spare: a full one must not fail them half-way. */
const EDITS_SPACE_MIN: number = 1 * MiB;
/** Before the engine is open what holds a flush is looked at again after so long. */
const HELD_MS = 1_000;
/** So long nothing is replayed, because nothing can be flushed: then nothing will be. */
const REPLAY_STUCK_MS = 10_000;
/** So many deaths of workers in a row: nothing can be flushed any more. */
const FAILURES_MAX = 3;

const VIEWS: number = indexIn(KEEPER_COUNTERS, 'views');
const JOBS_FAILED: number = indexIn(KEEPER_COUNTERS, 'jobsFailed');
const FILES_DELETED: number = indexIn(KEEPER_COUNTERS, 'filesDeleted');
const JOBS_RUNNING: number = indexIn(KEEPER_COUNTERS, 'jobsRunning');
const SEALED: number = indexIn(KEEPER_COUNTERS, 'sealed');
const FLUSHED_UPPER: number = indexIn(KEEPER_COUNTERS, 'flushedUpper');
const SEGMENTS: number = indexIn(KEEPER_COUNTERS, 'segments');
const WORK_WAITING: number = indexIn(KEEPER_COUNTERS, 'workWaiting');
const PART_FILES: number = indexIn(KEEPER_COUNTERS, 'partFiles');
const PART_BYTES: number = indexIn(KEEPER_COUNTERS, 'partBytes');
const FILES_PENDING: number = indexIn(KEEPER_COUNTERS, 'filesPending');
const RETIRED: number = indexIn(KEEPER_COUNTERS, 'retired');
const ORPHANS: number = indexIn(KEEPER_COUNTERS, 'orphans');

/** What a client is told as soon as its ring has room. */
type Done = { readonly client: number; readonly number: number; readonly refusal: number };
/** A program at the disk: who has its answer, and since when. */
type Queued = {
  readonly done: (answer: StorageAnswer) => void;
  readonly ticks: number;
  readonly atMs: number;
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
  /** Why nothing is flushed; who waits for a flush looks here for its cause. */
  readonly #waits: Waits;
  readonly #slab: Slab;
  readonly #retired: RetireList;
  readonly #room: ViewRoom;
  readonly #parts: PartStore;
  readonly #views: Views;
  readonly #desk: JobDesk;
  readonly #edits: Edits;
  readonly #spines: SpineTable;
  readonly #flushes: Flushes;
  readonly #merges: Merges;
  readonly #pressure: Backpressure;
  readonly #old: OldSegments;
  readonly #log: LogKeeper;
  readonly #backups: BackupHolds;

  /** File ids below it were given out before this run. */
  #filesBefore = 0;
  #started = false;
  #creating = false;
  #locked = false;
  #recovered = false;
  #restored = false;
  #endingTruncation = false;
  #opened = false;
  #closing = false;
  /** For the sequencer, whose ring had no room, oldest first. */
  readonly #untold: { kind: number; address: number; token: number }[] = [];
  #closingSince = -1;
  /** Of a replay that does not go on: how far it is, and since when. */
  #stuckApplied = -1;
  #stuckSince = 0;

  /** A client's ring had no room for an answer. */
  #answersWait = false;

  // Work.
  #failuresInRow = 0;
  #nextToken = 1;
  /** Newest token sent to the sequencer, and newest answered. */
  #sealAsked = 0;
  #sealAnswered = 0;
  readonly #done: Done[] = [];
  readonly #flushWishes: FlushWish[] = [];
  readonly #compactWishes: CompactWish[] = [];
  #recoverText = 0;

  // Queued storage calls.
  #nextTicket = 1;
  readonly #waiting: Map<number, Queued> = new Map();
  /** Those among them that end with a descriptor of their own open. */
  readonly #opening: Set<number> = new Set();

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
    this.#counters = makeCounters(
      arena,
      topology.counters[ACTOR_KEEPER],
      KEEPER_COUNTERS,
      KEEPER_HISTOGRAMS,
    );
    this.#waits = new Waits(context, ACTOR_KEEPER, this.#counters, KEEPER_COUNTERS);
    this.#slab = new Slab(pool, KIND_VIEW, true);
    this.#retired = new RetireList(arena, control.epochAddress, topology.slots, clientsMax);
    this.#room = new ViewRoom(pool, this.#slab, this.#retired);
    this.#parts = new PartStore(context, this.#room, this.#retired, (fd, calls, done) =>
      this.#submit(fd, calls, done),
    );
    this.#views = new Views(context, this.#room, this.#parts);
    this.#desk = new JobDesk(context, this.#room);
    this.#edits = new Edits(
      context.clock,
      this.#counters,
      (fd, calls, done) => this.#submit(fd, calls, done),
      () => this.#hasSpace(),
    );
    this.#views.times = () => this.#edits.proposed.times;
    this.#spines = new SpineTable(context, this.#slab, this.#edits, this.#views, KEEPER_CLIENT);
    this.#pressure = new Backpressure(context, this.#counters, this.#waits);
    const own = {
      edits: this.#edits,
      spines: this.#spines,
      parts: this.#parts,
      views: this.#views,
      desk: this.#desk,
      retired: this.#retired,
      room: this.#room,
    };
    const onSuccess = (): void => {
      this.#failuresInRow = 0;
      if (this.#waits.cause === CAUSE_DISK) this.#waits.end();
    };
    this.#flushes = new Flushes(context, this.#counters, own, {
      tellEvictor: (generation, version) => this.#tellEvictor(generation, version),
      free: (generation) => this.#tellSequencer(MSG_FREE, generation, 0),
      onFailure: (failure) => this.#onFailure(failure, true),
      onDiskFull: (untilMs) => this.#pressure.onDiskFull(untilMs),
      onSuccess: (ms, bytes) => {
        onSuccess();
        this.#pressure.onFlushed(ms, bytes);
      },
    });
    this.#merges = new Merges(context, this.#counters, own, {
      onFailure: (failure) => this.#onFailure(failure, false),
      onSuccess,
    });
    this.#backups = new BackupHolds(this.#parts, (fd, calls, done) =>
      this.#submit(fd, calls, done),
    );
    this.#old = new OldSegments(context, this.#views, this.#counters, {
      desk: this.#desk,
      room: this.#room,
      answers: this.#answers,
      propose: (archived, show) =>
        this.#edits.propose({ archivedAdded: [archived] }, () => {
          show();
          return true;
        }),
      discard: (path) => void this.#submit(-1, [{ call: 'unlink', path }], () => {}),
    });
    this.#log = new LogKeeper(context, this.#views, this.#counters, this.#old, {
      askSeal: () => this.#askSeal(),
      propose: (edit, show) => this.#edits.propose(edit, show),
      submit: (fd, calls, done) => this.#submit(fd, calls, done),
      offerSegment: (seq) => this.#offerSegment(seq),
      tellClient: (client, number) => this.#tellClient(client, number),
      beginBackup: (client, number) => this.#beginBackup(client, number),
      backupFloor: () => this.#backups.floor,
      histories: () => this.#spines.histories(),
    });
  }

  tick(): boolean {
    if (!this.#started) {
      this.#start();
      return true;
    }
    let worked = this.#takeAnswers();
    if (this.#untold.length > 0) worked = this.#tellUntold() || worked;
    worked = this.#takeFromDurability() || worked;
    worked = this.#takeFromSequencer() || worked;
    worked = this.#desk.take() || worked;
    worked = this.#takeFromEvictor() || worked;
    worked = this.#room.shedForOthers() || worked;
    worked = this.#retired.sweep() > 0 || worked;
    if (this.#closing) return this.#close() || worked;
    if (!this.#opened) worked = this.#openIfReady() || worked;
    worked = this.#takeRequests() || worked;
    this.#sendSeal();
    // A log that is refused is refused before anything is written.
    const isLogSound = this.#recovered || this.#flushes.waiting > 0;
    const { store } = this.#edits;
    if (this.#restored && store !== undefined && isLogSound) {
      worked = this.#edits.reserveIds() || worked;
      worked = this.#flushes.link() || worked;
      worked = this.#writeManifest() || worked;
      worked = this.#edits.show() || worked;
      worked = this.#dispatch() || worked;
      worked = this.#sweepDropped() || worked;
      worked = this.#log.step(this.#flushes.shownUpper, store) || worked;
      if (!this.#opened) this.#refuseWithoutRoom();
    }
    if (this.#views.stale) {
      this.#views.publish();
      worked = true;
    }
    this.#answerWishes();
    return worked;
  }

  idle(): number {
    if (this.#answersWait || this.#untold.length > 0) return ANSWER_RETRY_MS;
    if (this.#retired.length > 0) return SWEEP_MS;
    if (this.#closing) return SWEEP_MS;
    // Idle collections, failed jobs and checkpoints come due without a message, and delayed flushes.
    if (this.#context.config.readOnly) return Infinity;
    const ticksMs = this.#context.clock.ticksMs();
    // Before that messages come, but for a flush that is delayed, or held.
    if (!this.#opened) return this.#waits.cause === 0 ? this.#pressure.waitMs(ticksMs) : HELD_MS;
    // Beside another flush it waits for an answer and not for the time.
    if (!this.#desk.hasCreditForFlush) return 1_000;
    return Math.min(1_000, this.#pressure.waitMs(ticksMs));
  }

  publish(): void {
    const { values } = this.#counters;
    values[VIEWS] = this.#views.published;
    values[JOBS_RUNNING] = this.#desk.running;
    values[SEALED] = this.#flushes.waiting;
    values[FLUSHED_UPPER] = this.#flushes.shownUpper;
    values[SEGMENTS] = this.#views.segments.length;
    values[FILES_DELETED] = this.#parts.filesDeleted;
    values[WORK_WAITING] = this.#workWaiting();
    values[PART_FILES] = this.#parts.fileCount;
    values[PART_BYTES] = this.#parts.bytesOnDisk;
    values[FILES_PENDING] = this.#parts.filesPending;
    values[RETIRED] = this.#retired.length;
    this.#counters.publish();
    this.#merges.publish();
  }

  onClose(): void {
    // After poison files are left as they are; the LOCK too, for other threads may still be at the disk.
    const { storage, arena, topology } = this.#context;
    if (!readersInside(arena, topology.slots, clientsMax)) this.#parts.closeAll();
    // What programs have opened that nobody hears of any more is known nowhere else.
    for (let answer = storage.poll(); answer !== undefined; answer = storage.poll()) {
      this.#edits.onLateAnswer(answer.ticket);
      const leavesOpen = this.#opening.has(answer.ticket) && answer.failure === undefined;
      if (leavesOpen) storage.close(answer.fd);
    }
    // A queued program has the descriptor: closed under it, the number may be somebody else's file.
    if (!this.#edits.isWriting) this.#edits.store?.close(storage);
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
            logEnd: null,
          }
        : {
            create: false,
            logId: Buffer.from(loaded.state.identity.logId).toString('base64'),
            firstSeq: loaded.state.logStart.seq,
            firstOffset: loaded.state.logStart.offset,
            start: loaded.state.flushed,
            witness: loaded.state.flushed.upper,
            logEnd: loaded.state.logEnd ?? null,
          };
    const text = JSON.stringify(request);
    this.#recoverText = reserveText(arena, this.#room, text.length);
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
    const { storage, config } = this.#context;
    const { state } = loaded;
    if (!config.readOnly) {
      const store = ManifestStore.resume(storage, loaded);
      for (const path of store.strays(storage)) storage.unlink(path);
      this.#edits.store = store;
      this.#log.begin(state.logStart.seq, store);
    }
    // Opened read-only there are no edits, and the times stay as they were.
    if (this.#edits.store === undefined) this.#views.times = () => state.times;
    this.#flushes.shownUpper = state.flushed.upper;
    this.#edits.restore(state.counters);
    const infos: PartInfo[] = [];
    for (const [id, spineState] of state.spines) {
      this.#spines.restore(id, spineState);
      for (const { hollow } of spineState.hollows) {
        for (const run of hollow.runs) infos.push(...run.parts);
      }
    }
    // Parts that share a file stand together, so that it is opened once.
    infos.sort((a, b) => a.file - b.file || a.offset - b.offset);
    this.#parts.restore(infos, (_, failure) => {
      if (failure !== undefined) throw asCorrupt(failure);
      for (const collection of this.#spines.values()) {
        this.#views.show(
          collection.id,
          collection.kind,
          collection.spine.state(),
          collection.history,
        );
      }
      this.#restored = true;
    });
  }

  #openIfReady(): boolean {
    if (!this.#recovered || !this.#restored || this.#views.open === 0) return false;
    const { storage, config, control } = this.#context;
    if (this.#creating && this.#edits.store === undefined) {
      // The log exists and is empty; the manifest comes last, and with it the store.
      const first = this.#views.segments[0];
      const logId = new Uint8Array(Buffer.from(config.newLogId, 'base64'));
      const epoch = 0;
      const start = { upper: 0, seq: first.seq, position: 4_096, chain: 0, epoch, atMs: 0 };
      // The directories have had their entries synced since they were made.
      const store = ManifestStore.create(storage, newManifest(logId, start));
      this.#edits.store = store;
      this.#log.begin(first.seq, store);
    }
    if (this.#edits.store?.state.logEnd !== undefined) return this.#endTruncation();
    this.#views.publish();
    this.#spines.readCatalog();
    this.#opened = true;
    this.#edits.mayWait = true;
    this.#log.start(this.#edits.store);
    if (!config.readOnly) this.#sweepOrphans();
    control.moveState(STATE_STARTING, STATE_OPEN);
    ringAll(this.#context);
    return true;
  }

  /** The log ends where it was to: the manifest must say no more before the first commit behind it. */
  #endTruncation(): boolean {
    if (this.#endingTruncation) return false;
    this.#endingTruncation = true;
    this.#edits.propose({ logEnd: NO_LOG_END }, () => true);
    return true;
  }

  /** Deletes part files that no manifest names: a crash cut off their jobs, or a close their deletion. */
  #sweepOrphans(): void {
    const { storage } = this.#context;
    for (const name of storage.list(PARTS_DIR)) {
      const file = numberOf(name, '.part');
      // Later ids belong to jobs of this run.
      if (file === undefined || file >= this.#filesBefore) continue;
      // Merged away while the log was replayed: the manifest may name it until the edit is answered.
      if (this.#parts.has(file)) continue;
      this.#parts.delete(file);
      this.#counters.add(ORPHANS, 1);
    }
  }

  // ---------------------------------------------------------------- storage

  #submit(
    fd: number,
    calls: readonly StorageCall[],
    done: (answer: StorageAnswer) => void,
  ): number {
    const ticket = this.#nextTicket++;
    const { clock } = this.#context;
    this.#waiting.set(ticket, { done, ticks: clock.ticksMs(), atMs: clock.nowMs() });
    if (this.#waiting.size === 1) this.#tellOldest();
    const last = (call: string): number => calls.findLastIndex((step) => step.call === call);
    if (last('open') > last('close')) this.#opening.add(ticket);
    this.#context.storage.submit(ticket, fd, calls);
    return ticket;
  }

  /** Writes down since when the oldest program has been at the disk. */
  #tellOldest(): void {
    for (const { atMs } of this.#waiting.values()) {
      this.#context.control.beginStall(ACTOR_KEEPER, STALL_CALL, CALL_QUEUED, atMs);
      return;
    }
  }

  #takeAnswers(): boolean {
    let worked = false;
    const { storage } = this.#context;
    for (let answer = storage.poll(); answer !== undefined; answer = storage.poll()) {
      const queued = this.#waiting.get(answer.ticket);
      invariant(queued !== undefined, 'an answer to a call of ours', answer.ticket);
      const [oldest] = this.#waiting.keys();
      this.#waiting.delete(answer.ticket);
      this.#opening.delete(answer.ticket);
      if (oldest === answer.ticket) {
        const { clock, control } = this.#context;
        control.endStall(ACTOR_KEEPER, STALL_CALL, clock.ticksMs() - queued.ticks);
        this.#tellOldest();
      }
      queued.done(answer);
      worked = true;
    }
    return worked;
  }

  #writeManifest(): boolean {
    return this.#edits.write((store) => {
      this.#log.onRolledUp(store);
      // Before the engine is open the catalog may be an old one; when it closes, nothing follows the rollup.
      if (this.#opened && !this.#closing) this.#log.dropSegments(store);
    });
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
          this.#flushes.onSealed(address, upper);
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

  /** What has no room now waits here: of generations that a reader was in, any number is freed at once. */
  #tellSequencer(kind: number, address: number, token: number): void {
    this.#untold.push({ kind, address, token });
    this.#tellUntold();
  }

  #tellUntold(): boolean {
    let told = 0;
    for (const { kind, address, token } of this.#untold) {
      const slot = this.#sequencer.claim();
      if (slot < 0) break;
      const { u32 } = this.#sequencer.ring;
      u32[slot + KIND_WORD] = kind;
      u32[slot + GENERATION.ADDRESS] = address;
      u32[slot + GENERATION.TOKEN] = token;
      this.#sequencer.send();
      told++;
    }
    this.#untold.splice(0, told);
    return told > 0;
  }

  #tellSynced(failure: unknown): void {
    const slot = this.#durability.claim();
    invariant(slot >= 0, 'a slot is kept for the one sync that is out');
    const { u32 } = this.#durability.ring;
    u32[slot + KIND_WORD] = MSG_SYNCED;
    u32[slot + SYNC.ERRNO] = failure === undefined ? 0 : errnoOf(failure);
    this.#durability.send();
  }

  #offerSegment(seq: number): boolean {
    // One is kept for the answer to a sync.
    if (this.#durability.ring.room(2) < 2) return false;
    const slot = this.#durability.claim();
    const { u32 } = this.#durability.ring;
    u32[slot + KIND_WORD] = MSG_OFFER;
    u32[slot + OFFER.SEQ] = seq;
    this.#durability.send();
    return true;
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
            u32[slot + SEGMENT.PACKED] === 1,
            this.#recovered,
          );
          break;
        case MSG_RECOVERED:
          this.#recovered = true;
          freeText(this.#context.arena, this.#room, this.#recoverText);
          break;
        case MSG_BOUND_REACHED: {
          const upper = getWide(u32, slot + BOUND_REACHED.UPPER);
          const isHeardOf = this.#flushes.onBound({
            upper,
            seq: u32[slot + BOUND_REACHED.SEQ],
            position: getWide(u32, slot + BOUND_REACHED.POSITION),
            chain: u32[slot + BOUND_REACHED.CHAIN],
            epoch: u32[slot + BOUND_REACHED.EPOCH],
            atMs: getWide(u32, slot + BOUND_REACHED.AT_MS),
          });
          // Bounds overtake the notice of the seal: they come over another ring.
          if (!isHeardOf) return worked;
          break;
        }
        case MSG_DECLINED:
          this.#log.onDeclined(u32[slot + OFFER.SEQ], u32[slot + OFFER.SPARE]);
          break;
        case MSG_SYNC:
          this.#submit(u32[slot + SYNC.FD], [{ call: 'sync' }], ({ failure }) =>
            this.#tellSynced(failure),
          );
          break;
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

  #tellEvictor(generation: number, version: number): boolean {
    const slot = this.#evictor.claim();
    if (slot < 0) return false;
    const { u32 } = this.#evictor.ring;
    u32[slot + KIND_WORD] = MSG_APPLY;
    u32[slot + APPLY.ADDRESS] = generation;
    u32[slot + APPLY.VERSION] = version;
    this.#evictor.send();
    return true;
  }

  #takeFromEvictor(): boolean {
    const slot = this.#fromEvictor.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromEvictor;
    invariant(u32[slot + KIND_WORD] === MSG_APPLIED, 'a message of the evictor');
    this.#flushes.onApplied(u32[slot + APPLY.VERSION]);
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
        this.#log.onWish(client, number, false);
      } else if (u32[slot + KIND_WORD] === MSG_BACKUP) {
        this.#log.onWish(client, number, true);
      } else if (u32[slot + KIND_WORD] === MSG_BACKUP_END) {
        this.#backups.end(client, u32[slot + REQUEST.COLLECTION]);
        this.#done.push({ client, number, refusal: 0 });
      } else if (u32[slot + KIND_WORD] === MSG_ARCHIVED) {
        const seq = u32[slot + REQUEST.COLLECTION];
        this.#old.onArchived(seq, u32[slot + REQUEST.WHOLE] === 1, () => {
          if (!this.#closing && this.#edits.store !== undefined) {
            this.#log.dropSegments(this.#edits.store);
          }
        });
      } else if (u32[slot + KIND_WORD] === MSG_COMPACT_END) {
        this.#endCompact(client, u32[slot + REQUEST.COLLECTION]);
        this.#done.push({ client, number, refusal: 0 });
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

  /** What nobody else waits for stops; the wish itself is answered like one that came true. */
  #endCompact(client: number, number: number): void {
    const at = this.#compactWishes.findIndex(
      (wish) => wish.client === client && wish.number === number,
    );
    if (at < 0) return;
    const [{ collections }] = this.#compactWishes.splice(at, 1);
    this.#done.push({ client, number, refusal: 0 });
    for (const collection of collections) {
      if (this.#compactWishes.some((wish) => wish.collections.includes(collection))) continue;
      collection.compactWanted = false;
      collection.rewriteWanted = false;
      this.#merges.cancel(collection, true);
    }
  }

  #onCompact(client: number, number: number, only: number): void {
    const collections = [...this.#spines.values()].filter(
      (collection) => only < 0 || collection.id === only,
    );
    for (const collection of collections) {
      collection.compactWanted = true;
      collection.rewriteWanted = true;
      collection.staleViews = SINCE_VIEWS;
    }
    this.#compactWishes.push({ client, number, collections });
  }

  #answerWishes(): void {
    this.#answersWait = false;
    this.#log.answerWishes();
    while (this.#done.length > 0) {
      const { client, number, refusal } = this.#done[0];
      if (!this.#tellClient(client, number, refusal)) return;
      this.#done.shift();
    }
    for (let i = 0; i < this.#flushWishes.length; i++) {
      const wish = this.#flushWishes[i];
      if (wish.upper < 0 || wish.upper > this.#flushes.shownUpper) continue;
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

  #tellClient(client: number, number: number, refusal: number = 0): boolean {
    const outbox = this.#answers[client];
    const slot = outbox.claim();
    if (slot < 0) this.#answersWait = true;
    if (slot < 0) return false;
    // Who hears that it is done finds it in the figures.
    this.publish();
    const { u32 } = outbox.ring;
    u32[slot + KIND_WORD] = MSG_DONE;
    u32[slot + DONE.NUMBER] = number;
    u32[slot + DONE.REFUSAL] = refusal;
    outbox.send();
    return true;
  }

  /** A checkpoint that a backup is to be made of is on disk. */
  #beginBackup(client: number, number: number): void {
    this.#backups.begin(client, number, this.#edits.store!.state, (failure) => {
      const plain = failure === undefined ? undefined : toPlainError(failure);
      const code = plain !== undefined && isFullDisk(plain) ? 'TIDEMARK_NO_SPACE' : plain?.code;
      this.#done.push({ client, number, refusal: code === undefined ? 0 : codeNumber(code) });
    });
  }

  // ---------------------------------------------------------------- jobs

  /** Hands out as many jobs as there are workers: a flush to its own, to the others the best merges. */
  #dispatch(): boolean {
    const { config, clock } = this.#context;
    if (config.readOnly) return false;
    const now = clock.ticksMs();
    this.#merges.warm(now);
    let worked = this.#desk.hasCreditForFlush && this.#dispatchFlush(now);
    while (this.#desk.hasCredit && this.#merges.dispatch(now)) worked = true;
    // What old files become can wait for all else.
    if (this.#opened) worked = this.#old.step() || worked;
    return this.#merges.linkMoves() || worked;
  }

  #sweepDropped(): boolean {
    return this.#spines.sweepDropped((collection) => {
      // What it makes is nobody's; the files are let go of when it has answered.
      this.#merges.cancel(collection, false);
      return this.#merges.isMerging(collection);
    });
  }

  #dispatchFlush(now: number): boolean {
    const item = this.#flushes.next();
    if (item === undefined) {
      this.#pressure.onNothingToFlush();
      return false;
    }
    const loads = this.#merges.loads(now, (collection) => this.#flushes.comingBytes(collection));
    const room = { isSpent: !this.#flushes.hasRoom(item), isCrowded: this.#room.isCrowded };
    const may = this.#pressure.mayFlush(now, loads, room);
    return may && item.retryAt <= now && this.#flushes.dispatch(item);
  }

  /** What the log holds finds room neither in memory nor, as there is none to describe them, in parts. */
  #refuseWithoutRoom(): void {
    const { control, clock } = this.#context;
    const applied = control.applied();
    const now = clock.ticksMs();
    const isQuiet = this.#desk.running + this.#edits.waiting + this.#waiting.size === 0;
    if (this.#waits.cause !== CAUSE_MEMORY || !isQuiet || applied !== this.#stuckApplied) {
      this.#stuckApplied = applied;
      this.#stuckSince = now;
    }
    if (now - this.#stuckSince > REPLAY_STUCK_MS) throw noRoom('what the log holds');
  }

  /** The disk takes a batch of edits. Before the engine is open a full one is a reason not to open. */
  #hasSpace(): boolean {
    if (!this.#opened) return true;
    const has = this.#context.storage.freeBytes() >= EDITS_SPACE_MIN;
    if (!has) this.#waits.begin(CAUSE_DISK);
    else if (this.#waits.cause === CAUSE_DISK) this.#waits.end();
    return has;
  }

  /** A job failed: who sent it tries again after a while. */
  #onFailure(failure: TidemarkError, isFlush: boolean): void {
    if (this.#closing) return;
    this.#counters.add(JOBS_FAILED, 1);
    // A full disk heals; until then nothing is flushed. A job that stood still was asked to stop: a disk
    // that hangs is no reason to end, only workers that die are.
    const isHanging = failure.code === 'TIDEMARK_CLOSED';
    if (isFullDisk(failure)) {
      if (isFlush && !this.#opened) throw failure;
      if (isFlush) this.#waits.begin(CAUSE_DISK);
    } else if (!isHanging) this.#failuresInRow++;
    // A flush that cannot happen ends the engine sooner or later: better with its cause.
    if (this.#failuresInRow >= FAILURES_MAX && isFlush) throw failure;
  }

  /** Jobs, generations, edits and rollups that are not done, and what the disk is at: 0 is quiet. */
  #workWaiting(): number {
    const toDo = this.#desk.running + this.#flushes.waiting + this.#edits.waiting;
    const rollups = this.#edits.store?.idle === false ? 1 : 0;
    const ofLog = this.#log.waiting + this.#old.waiting;
    return toDo + rollups + this.#waiting.size + this.#merges.waiting + ofLog;
  }

  // ---------------------------------------------------------------- closing

  #close(): boolean {
    const { control, clock, storage, arena, topology } = this.#context;
    const nowMs = clock.ticksMs();
    if (this.#closingSince < 0) {
      this.#closingSince = nowMs;
      this.#desk.cancelAll();
      // The next open then finds a rollup and nothing to write again.
      if (this.#edits.any) this.#edits.store?.requestRollup();
      return true;
    }
    if (this.#edits.store !== undefined && this.#writeManifest()) return true;
    if (nowMs >= this.#closingSince + DELETE_AT_CLOSE_MS) this.#parts.leaveForNextOpen();
    // Results and answers under way are waited for: their files and descriptors are known only here.
    if (this.#desk.running > 0 || this.#waiting.size > 0) return false;
    const late = nowMs >= this.#closingSince + CLOSE_WAIT_MS;
    if (readersInside(arena, topology.slots, clientsMax) && !late) return false;
    if (!late) this.#parts.closeAll();
    this.#edits.store?.close(storage);
    this.#edits.store = undefined;
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

function notFound(directory: string): TidemarkError {
  return new TidemarkError('TIDEMARK_NOT_FOUND', `${directory} holds no store`, { directory });
}

/** A part that the manifest names and the disk has not got is damage, not an I/O error. */
function asCorrupt(failure: unknown): unknown {
  const { code, path } = (failure ?? {}) as { code?: unknown; path?: unknown };
  if (code !== 'ENOENT') return failure;
  return corrupt('MISSING_PART', `a part that the manifest names is missing: ${String(path)}`, {
    path,
  });
}
