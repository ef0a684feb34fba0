/**
 * The log's owner: recovers it at open and feeds the sequencer with it, then writes and syncs what
 * comes down the line, publishes `written` and `durable`, and rings whoever waits. It decides nothing
 * about order. Any failed or short call throws, and the host poisons the engine with it.
 *
 *   from        kind           what happens
 *   keeper      RECOVER        creates or recovers the log; REPLAY_*, RECORD to the sequencer; SEGMENT, RECOVERED back
 *   sequencer   RECORD         appended to the batch, written, synced
 *   sequencer   BOUND          answered with BOUND_REACHED to the keeper once `durable` is there
 *   sequencer   CLOSE          drained, synced, CLEAN; CLOSE to the keeper
 *   keeper      OFFER          a segment that nobody needs: the next spare is made of it, or DECLINED
 *   keeper      SYNCED         the sync that a buffered engine asked it for (SYNC) is over
 *   compactor   PREPARED       room in the log is ready, or is not
 */
import { invariant } from '../core/base/assert.ts';
import { getU32 } from '../core/base/bytes.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { MiB, idleWatermarkMs, pageBytes, stallMs, unsyncedBytesMax } from '../core/base/limits.ts';
import { TX_BYTES_OFFSET, TX_COUNT_OFFSET } from '../core/base/update.ts';
import type { SpareJob, ZeroJob } from '../core/log/prepare.ts';
import { recordBytes } from '../core/log/record.ts';
import type { RecordHeader } from '../core/log/record.ts';
import { LogRecovery } from '../core/log/recovery.ts';
import type { LogFacts, LogSegment } from '../core/log/recovery.ts';
import { ACCEPTED, LogWriter } from '../core/log/writer.ts';
import type { LogOptions, LogPiece, LogPosition } from '../core/log/writer.ts';
import { KIND_RECORD } from '../core/shared/buffer-pool.ts';
import { ACTOR_DURABILITY, STALL_CALL } from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import { eachPiece, layChained, pagesFor, releaseChain } from '../core/shared/record-pages.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { Actor, ActorContext } from './actor.ts';
import {
  DURABILITY_COUNTERS,
  DURABILITY_HISTOGRAMS,
  RECOVERY_VERDICTS,
  histogramIn,
  indexIn,
  makeCounters,
} from './counters.ts';
import {
  BOUND,
  BOUND_REACHED,
  KIND_WORD,
  MSG_BOUND,
  MSG_BOUND_REACHED,
  MSG_CANCEL,
  MSG_CLOSE,
  MSG_DECLINED,
  MSG_OFFER,
  MSG_PREPARE,
  MSG_PREPARED,
  MSG_RECORD,
  MSG_RECOVER,
  MSG_RECOVERED,
  MSG_REPLAY_BEGIN,
  MSG_REPLAY_END,
  MSG_SEGMENT,
  MSG_SYNC,
  MSG_SYNCED,
  OFFER,
  PREPARE,
  PREPARE_RECYCLE,
  PREPARE_SPARE,
  PREPARE_ZERO,
  RECORD,
  RECORD_CHAINED,
  RECORD_SYNC,
  RECOVER,
  RECOVERED,
  REPLAY,
  SEGMENT,
  SYNC,
  getWide,
  setWide,
} from './messages.ts';
import { CAUSE_DISK, CAUSE_LOG, Waits } from './stalls.ts';
import { asSystemError } from './system-error.ts';
import { readText } from './text-blocks.ts';
import { THREAD_BACKGROUND, THREAD_WRITE } from './topology.ts';
import {
  CALL_SYNC,
  CALL_SYNC_DIR,
  CALL_WRITE,
  CALL_WRITEV,
  WatchedStorage,
} from './watched-storage.ts';

/** What the keeper says of the log, as JSON. */
export type RecoverRequest = {
  /** True: no store was here; the log is made. */
  readonly create: boolean;
  readonly logId: string;
  readonly firstSeq: number;
  readonly firstOffset: number;
  readonly start: LogPosition | null;
  readonly witness: number;
  /** Only while the log is being truncated. */
  readonly logEnd: number | null;
};

/** Preparing that failed is tried again after this. */
const PREPARE_RETRY_MS = 1_000;
/** A disk with so much to spare is not full: twice the least that is prepared at once. */
const SPACE_BYTES_MIN: number = 4 * MiB;
/** And room for flushes: of all that is sealed, and so many memtables more, the one that is filled and the next. */
const MEMTABLES_KEPT = 2;
/** Where nothing is prepared, so much is promised at once as the disk says it has to spare. */
const PROMISE_BYTES: number = 8 * MiB;
/** What all clients have on its way at the most, twice; of that nothing waits. */
const PROMISE_BYTES_AHEAD: number = 32 * MiB;
/** Before it is asked for nothing is promised unless so much is left for flushes: they fail first. */
const SPACE_BYTES_AHEAD: number = 256 * MiB;
/** So often it is looked whether what was promised is still there: merges and other programs take it too. */
const PROMISE_LOOK_MS = 20;

/** How soon to look again for room in the keeper's ring. */
const TELL_AGAIN_MS = 1;

/** Of a log that was made just now. */
const FIRST_SEGMENT: LogSegment = { seq: 1, baseOffset: 0, baseAtMs: 0, packed: false };

const PHASE_WAITING = 0;
const PHASE_RECOVERING = 1;
const PHASE_REPORTING = 2;
const PHASE_LIVE = 3;
const PHASE_CLOSING = 4;
const PHASE_ENDING = 5;
const PHASE_CLOSED = 6;

const RECORDS: number = indexIn(DURABILITY_COUNTERS, 'records');
const TRANSACTIONS: number = indexIn(DURABILITY_COUNTERS, 'transactions');
const BATCHES: number = indexIn(DURABILITY_COUNTERS, 'batches');
const WRITES: number = indexIn(DURABILITY_COUNTERS, 'writes');
const BYTES_WRITTEN: number = indexIn(DURABILITY_COUNTERS, 'bytesWritten');
const SYNCS: number = indexIn(DURABILITY_COUNTERS, 'syncs');
const SYNC_MS: number = indexIn(DURABILITY_COUNTERS, 'syncMs');
const SYNC_MS_MAX: number = indexIn(DURABILITY_COUNTERS, 'syncMsMax');
const ROTATIONS: number = indexIn(DURABILITY_COUNTERS, 'rotations');
const WATERMARKS: number = indexIn(DURABILITY_COUNTERS, 'watermarks');
const ZEROED_BYTES: number = indexIn(DURABILITY_COUNTERS, 'zeroedBytes');
const RECOVERED_TRANSACTIONS: number = indexIn(DURABILITY_COUNTERS, 'recoveredTransactions');
const TORN_BYTES: number = indexIn(DURABILITY_COUNTERS, 'tornBytes');
const BYTES_STAGED: number = indexIn(DURABILITY_COUNTERS, 'bytesStaged');
const BYTES_IN_PLACE: number = indexIn(DURABILITY_COUNTERS, 'bytesInPlace');
const UNSYNCED_BYTES: number = indexIn(DURABILITY_COUNTERS, 'unsyncedBytes');
const ROOM_BYTES: number = indexIn(DURABILITY_COUNTERS, 'roomBytes');
const SPARES_READY: number = indexIn(DURABILITY_COUNTERS, 'sparesReady');
const SPARES_MISSING: number = indexIn(DURABILITY_COUNTERS, 'sparesMissing');
const SPARES_MADE: number = indexIn(DURABILITY_COUNTERS, 'sparesMade');
const SPARES_RECYCLED: number = indexIn(DURABILITY_COUNTERS, 'sparesRecycled');
const RECOVERY_VERDICT: number = indexIn(DURABILITY_COUNTERS, 'recoveryVerdict');
const RECOVERY_MS: number = indexIn(DURABILITY_COUNTERS, 'recoveryMs');
const RECOVERED_RECORDS: number = indexIn(DURABILITY_COUNTERS, 'recoveredRecords');
const RECOVERED_BYTES: number = indexIn(DURABILITY_COUNTERS, 'recoveredBytes');
const SUSPECTS: number = indexIn(DURABILITY_COUNTERS, 'suspects');
const SLOW_CALLS: number = indexIn(DURABILITY_COUNTERS, 'slowCalls');
const SLOW_CALL_MS: number = indexIn(DURABILITY_COUNTERS, 'slowCallMs');

const BATCH_BYTES: number = histogramIn(DURABILITY_COUNTERS, DURABILITY_HISTOGRAMS, 'batchBytes');
const WRITE_US: number = histogramIn(DURABILITY_COUNTERS, DURABILITY_HISTOGRAMS, 'writeUs');
const SYNC_US: number = histogramIn(DURABILITY_COUNTERS, DURABILITY_HISTOGRAMS, 'syncUs');

/** A page that replay laid records into; let go once the sequencer holds it. */
type ReplayPage = { address: number; chained: boolean; upper: number };

export class Durability implements Actor {
  readonly number: number = ACTOR_DURABILITY;
  readonly #context: ActorContext;
  /** The disk, each call announced. */
  readonly #disk: WatchedStorage;
  #callAt = 0;
  readonly #line: RingConsumer;
  readonly #replay: Outbox;
  readonly #fromKeeper: RingConsumer;
  readonly #keeper: Outbox;
  readonly #compactor: Outbox;
  readonly #fromCompactor: RingConsumer;
  readonly #counters: Counters;
  readonly #waits: Waits;

  #phase = PHASE_WAITING;
  #recovery: LogRecovery | undefined;
  #recoveryAt = 0;
  #writer: LogWriter | undefined;
  #segmentsTold = 0;
  /** Bounds that `durable` has not reached, oldest first. */
  readonly #bounds: LogPosition[] = [];
  /** Marks of replayed records whose bound may still come. */
  #replayMarks: LogPosition[] = [];
  /** Rotations that the keeper has not been told of. */
  readonly #rotations: LogSegment[] = [];
  /** Jobs of the log that have not answered. */
  #preparing = 0;
  readonly #replayPages: ReplayPage[] = [];
  #replayPage = 0;
  #replayAt = 0;
  /** Some record or bound asks a buffered engine for a sync. */
  #syncWanted = false;
  #unsyncedSince = -1;
  /** A sync is to be asked for as soon as the keeper's ring has room; and since when one is out, -1: none is. */
  #syncUnsent = false;
  #syncAt = -1;
  #lastInput = 0;
  /** When room in the log may be asked for again. */
  #retryAt = 0;
  /** Bytes of records taken, headers included, since the engine is open. */
  #accepted = 0;
  /** What `room` was set to; and up to where it was promised without being prepared. */
  #credit = 0;
  #promised = 0;
  /** The last job for room failed because the disk is full, whatever it says it has. */
  #isFull = false;
  /** When the disk may be asked again how much it has; and how much for a promise ahead. */
  #askSpaceAt = 0;
  #lookAheadAt = 0;
  /** And whether it still has what was promised. */
  #lookAgainAt = 0;
  /** When it was looked whether the disk is low, and how much was accepted then. */
  #lookAtDiskAt = 0;
  #acceptedThen = -1;
  #isLow = false;
  #closeSeen = false;

  constructor(context: ActorContext) {
    const { topology } = context;
    const background = context.threadBells[THREAD_BACKGROUND];
    this.#context = context;
    this.#line = inboxOf(context, topology.line);
    this.#replay = new Outbox(context, topology.replay, context.threadBells[THREAD_WRITE]);
    this.#fromKeeper = inboxOf(context, topology.keeperToDurability);
    this.#keeper = new Outbox(context, topology.durabilityToKeeper, background);
    this.#compactor = new Outbox(context, topology.durabilityToCompactor, background);
    this.#fromCompactor = inboxOf(context, topology.compactorToDurability);
    this.#counters = makeCounters(
      context.arena,
      topology.counters[ACTOR_DURABILITY],
      DURABILITY_COUNTERS,
      DURABILITY_HISTOGRAMS,
    );
    this.#waits = new Waits(context, ACTOR_DURABILITY, this.#counters, DURABILITY_COUNTERS);
    this.#disk = new WatchedStorage(context.storage, {
      begin: (call) => this.#beginCall(call),
      end: (call) => this.#endCall(call),
    });
  }

  #beginCall(call: number): void {
    const { clock, control } = this.#context;
    this.#callAt = clock.ticksMs();
    // There is one place to show a call in: a sync that is out keeps it, or it would never seem to last.
    if (this.#syncAt < 0) control.beginStall(ACTOR_DURABILITY, STALL_CALL, call, clock.nowMs());
  }

  #endCall(call: number): void {
    const { clock, control } = this.#context;
    const ms = clock.ticksMs() - this.#callAt;
    if (this.#syncAt < 0) control.endStall(ACTOR_DURABILITY, STALL_CALL, ms);
    this.#observeCall(call, ms);
  }

  #observeCall(call: number, ms: number): void {
    if (ms >= stallMs) {
      this.#counters.add(SLOW_CALLS, 1);
      this.#counters.add(SLOW_CALL_MS, ms);
    }
    if (call === CALL_WRITE || call === CALL_WRITEV) this.#counters.observe(WRITE_US, ms * 1_000);
    else if (call === CALL_SYNC || call === CALL_SYNC_DIR) {
      this.#counters.observe(SYNC_US, ms * 1_000);
    }
  }

  tick(): boolean {
    let worked = this.#takePrepared();
    if (this.#replayPages.length > 0) this.#releaseReplayed();
    switch (this.#phase) {
      case PHASE_WAITING:
        return this.#takeRecover() || worked;
      case PHASE_RECOVERING:
        worked = this.#takeLine() || worked;
        return this.#recover() || worked;
      case PHASE_REPORTING:
        worked = this.#takeLine() || worked;
        return this.#report() || worked;
      case PHASE_LIVE:
      case PHASE_CLOSING:
        worked = this.#takeLine() || worked;
        worked = this.#takeFromKeeper() || worked;
        worked = this.#tellRotations() || worked;
        worked = this.#sendSync() || worked;
        worked = this.#answerBounds() || worked;
        return this.#write() || worked;
      case PHASE_ENDING:
        worked = this.#tellRotations() || worked;
        return this.#finish() || worked;
      default:
        return worked;
    }
  }

  idle(): number {
    if (this.#hasToTell) return TELL_AGAIN_MS;
    // An offer waits for room in the ring to the keeper, and what comes behind it too.
    if (this.#fromKeeper.peek() >= 0) return TELL_AGAIN_MS;
    const writer = this.#writer;
    if (writer === undefined) return Infinity;
    const now = this.#context.clock.ticksMs();
    // While a sync is out its answer rings.
    if (!writer.isSyncing) {
      if (writer.written > writer.durable) {
        return this.#unsyncedSince + this.#context.config.syncIntervalMs - now;
      }
      if (writer.claimed < writer.durable) return this.#lastInput + idleWatermarkMs - now;
    }
    const isWanted = this.#context.control.roomWanted() > this.#credit;
    const retryMs = writer.prepareFailed ? this.#retryAt - now : Infinity;
    // A job that makes room rings when it is done; who has none looks at the disk now and then.
    const isLooking = isWanted && writer.isSettled && writer.bytesBeforeJob === Infinity;
    const waitMs = isLooking ? Math.min(retryMs, this.#askSpaceAt - now) : retryMs;
    // Where the look that is due is not taken, while the disk is low for one, it is not waited for in a loop.
    return Math.max(TELL_AGAIN_MS, waitMs);
  }

  /** Something for the keeper that its ring may have had no room for: who takes from a ring rings no bell. */
  get #hasToTell(): boolean {
    if (this.#phase === PHASE_REPORTING || this.#phase === PHASE_ENDING) return true;
    if (this.#rotations.length > 0 || this.#syncUnsent) return true;
    return this.#bounds.length > 0 && this.#bounds[0].upper <= this.#context.control.durable();
  }

  publish(): void {
    const writer = this.#writer;
    if (writer !== undefined) this.#gauge(writer);
    this.#counters.publish();
  }

  /** Figures that the writer keeps itself. */
  #gauge(writer: LogWriter): void {
    const counters = this.#counters;
    counters.set(BYTES_WRITTEN, writer.bytesWritten);
    counters.set(BYTES_STAGED, writer.bytesStaged);
    counters.set(BYTES_IN_PLACE, writer.bytesInPlace);
    counters.set(UNSYNCED_BYTES, writer.unsyncedBytes);
    counters.set(ROOM_BYTES, writer.preparedBytes);
    const { ready, missing, made, recycled } = writer.spares;
    counters.set(SPARES_READY, ready);
    counters.set(SPARES_MISSING, missing);
    counters.set(SPARES_MADE, made);
    counters.set(SPARES_RECYCLED, recycled);
  }

  onClose(): void {
    this.#writer?.release();
    this.#recovery?.release();
  }

  // ---------------------------------------------------------------- recovery

  #takeRecover(): boolean {
    const slot = this.#fromKeeper.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromKeeper;
    invariant(u32[slot + KIND_WORD] === MSG_RECOVER, 'the keeper says where the log stands');
    const { arena } = this.#context;
    const text = readText(arena, u32[slot + RECOVER.ADDRESS], u32[slot + RECOVER.BYTES]);
    const request = JSON.parse(text) as RecoverRequest;
    this.#fromKeeper.pop();
    const { config, clock } = this.#context;
    const storage = this.#disk;
    this.#recoveryAt = clock.ticksMs();
    const logId = new Uint8Array(Buffer.from(request.logId, 'base64'));
    const options = this.#logOptions;
    if (request.create) {
      this.#writer = LogWriter.create(storage, logId, options);
      this.#beginReplay(0, this.#writer.epoch, this.#writer.atMs);
      this.#phase = PHASE_REPORTING;
      return true;
    }
    const facts: LogFacts = {
      logId,
      firstSeq: request.firstSeq,
      firstOffset: request.firstOffset,
      start: request.start ?? undefined,
      witness: request.witness,
      logEnd: request.logEnd ?? undefined,
    };
    this.#recovery = new LogRecovery(
      storage,
      facts,
      { ...options, readOnly: config.readOnly, strictTail: config.strictTail },
      (record, source, offset, length) => this.#feed(record, source, offset, length),
    );
    const { start } = facts;
    this.#beginReplay(start?.upper ?? facts.firstOffset, start?.epoch ?? 0, start?.atMs ?? 0);
    this.#phase = PHASE_RECOVERING;
    return true;
  }

  /** Zeros ahead halve the price of a sync: of one a commit, not of twenty a second. */
  get #logOptions(): LogOptions {
    const { segmentBytes, synced } = this.#context.config;
    // Commits of a buffered engine wait for no sync: nor for the thread that would be in one.
    return { segmentBytes, zeros: synced, syncApart: !synced };
  }

  #beginReplay(next: number, epoch: number, atMs: number): void {
    const { control } = this.#context;
    control.setWritten(next);
    control.setDurable(next);
    this.#tellSequencer(MSG_REPLAY_BEGIN, next, epoch, atMs);
  }

  #tellSequencer(kind: number, next: number, epoch: number, atMs: number): void {
    const slot = this.#replay.claim();
    invariant(slot >= 0, 'room in the replay ring was looked for');
    const { u32 } = this.#replay.ring;
    u32[slot + KIND_WORD] = kind;
    setWide(u32, slot + REPLAY.OFFSET, next);
    u32[slot + REPLAY.EPOCH] = epoch;
    setWide(u32, slot + REPLAY.AT_MS, atMs);
    this.#replay.send();
  }

  #recover(): boolean {
    const recovery = this.#recovery!;
    const { clock } = this.#context;
    if (recovery.step()) return !recovery.waiting;
    const verdict =
      recovery.torn !== undefined ? 'torn' : recovery.clean ? ('clean' as const) : 'unclean';
    this.#counters.set(RECOVERY_VERDICT, RECOVERY_VERDICTS.indexOf(verdict));
    this.#counters.add(TORN_BYTES, recovery.torn?.bytes ?? 0);
    this.#counters.set(SUSPECTS, recovery.suspectCount);
    this.#counters.set(RECOVERY_MS, Math.ceil(clock.ticksMs() - this.#recoveryAt));
    if (recovery.resume !== undefined) {
      this.#writer = new LogWriter(this.#disk, this.#logOptions, recovery.resume);
    }
    this.#phase = PHASE_REPORTING;
    return true;
  }

  /** Lays one verified record into pages, as a client would, and hands it to the sequencer. */
  #feed(record: RecordHeader, source: Uint8Array, offset: number, length: number): boolean {
    // One slot is kept for the end of replay.
    if (this.#replay.ring.room(2) < 2) return false;
    const address = this.#lay(source, offset, length, record.txCount);
    if (address === 0) {
      const { config, control, pool } = this.#context;
      // One page stays in use, the others come free: more than that there will never be.
      if (length > pageBytes && pagesFor(length) >= pool.limitPages(KIND_RECORD)) {
        throw new TidemarkError(
          'TIDEMARK_TOO_LARGE',
          'a commit in the log needs more memory than there is; raise memoryBytes or memtableBytes',
          { limit: 'memtableBytes', offset: record.minTxOffset, bytes: length },
        );
      }
      // All that was fed is applied and nothing is ever flushed: no page will come free.
      if (config.readOnly && control.applied() >= record.minTxOffset) {
        throw new TidemarkError(
          'TIDEMARK_TOO_LARGE',
          'the log that must be replayed is larger than memory; a read-only engine cannot flush it',
          { limit: 'memoryBytes', offset: record.minTxOffset },
        );
      }
      this.#context.control.setPagesWanted(true);
      return false;
    }
    const upper = record.minTxOffset + record.txCount;
    this.#replayPages.at(-1)!.upper = upper;
    const slot = this.#replay.claim();
    const { u32 } = this.#replay.ring;
    u32[slot + KIND_WORD] = MSG_RECORD;
    u32[slot + RECORD.ADDRESS] = address;
    u32[slot + RECORD.PAYLOAD_BYTES] = length;
    u32[slot + RECORD.TX_COUNT] = record.txCount;
    u32[slot + RECORD.PAYLOAD_CRC] = record.payloadCrc;
    u32[slot + RECORD.OPERATIONS] = countOperations(source, offset, record.txCount);
    u32[slot + RECORD.FLAGS] = length > pageBytes ? RECORD_CHAINED : 0;
    setWide(u32, slot + RECORD.OFFSET, record.minTxOffset);
    u32[slot + RECORD.EPOCH] = record.epoch;
    setWide(u32, slot + RECORD.AT_MS, record.committedAtMs);
    // Fed only when proven durable, so both frontiers go with it; before the sequencer can apply it.
    const { control } = this.#context;
    this.#replayMarks.push(this.#recovery!.mark());
    this.#replay.send();
    control.setWritten(upper);
    control.setDurable(upper);
    this.#counters.add(RECOVERED_TRANSACTIONS, record.txCount);
    this.#counters.add(RECOVERED_RECORDS, 1);
    this.#counters.add(RECOVERED_BYTES, recordBytes(length));
    return true;
  }

  #lay(source: Uint8Array, offset: number, length: number, txCount: number): number {
    const { pool, arena } = this.#context;
    if (length > pageBytes) {
      if (pool.freePages(KIND_RECORD) < pagesFor(length)) return 0;
      const address = layChained(arena, pool, source, offset, txCount);
      if (address !== 0) this.#replayPages.push({ address, chained: true, upper: 0 });
      // What follows starts a page of its own, so that pages are let go in order.
      this.#replayPage = 0;
      return address;
    }
    if (this.#replayPage === 0 || this.#replayAt + length > this.#replayPage + pageBytes) {
      const page = pool.lease(KIND_RECORD);
      if (page === 0) return 0;
      pool.retain(page);
      this.#replayPages.push({ address: page, chained: false, upper: 0 });
      this.#replayPage = page;
      this.#replayAt = page;
    }
    const at = this.#replayAt;
    arena.u8.set(source.subarray(offset, offset + length), at);
    this.#replayAt += length;
    return at;
  }

  /** Lets go of pages whose every record the sequencer has applied, and so holds itself. */
  #releaseReplayed(): void {
    const { pool, control } = this.#context;
    const applied = control.applied();
    while (this.#replayPages.length > 0) {
      const page = this.#replayPages[0];
      const open = page.address === this.#replayPage && this.#phase === PHASE_RECOVERING;
      if (open || page.upper > applied) return;
      this.#replayPages.shift();
      if (page.chained) releaseChain(pool, page.address);
      else pool.release(page.address);
    }
  }

  /** Tells the keeper of the segments and of the end, the sequencer that replay is over. */
  #report(): boolean {
    const recovery = this.#recovery;
    const writer = this.#writer;
    if (this.#keeper.ring.room(2) < 2 || this.#replay.ring.room(1) === 0) return false;
    const segments = recovery?.segments ?? [FIRST_SEGMENT];
    const segment = segments[this.#segmentsTold];
    if (segment !== undefined) {
      this.#tellSegment(segment);
      this.#segmentsTold++;
      return true;
    }
    const next = recovery?.next ?? 0;
    const epoch = writer?.epoch ?? recovery?.epoch ?? 0;
    // The engine opens with this: what readers see as durable must be there to be read.
    if (this.#context.control.applied() < next) return false;
    this.#tellSequencer(MSG_REPLAY_END, next, epoch, recovery?.atMs ?? 0);
    const slot = this.#keeper.claim();
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = MSG_RECOVERED;
    setWide(u32, slot + RECOVERED.UPPER, next);
    this.#keeper.send();
    const { control, clock } = this.#context;
    control.setWritten(next);
    control.setDurable(next);
    if (writer !== undefined) control.setLogPosition(writer.seq, writer.mark().position);
    if (!this.#context.config.readOnly)
      for (const path of recovery?.orphans ?? []) this.#disk.unlink(path);
    this.#recovery = undefined;
    this.#lastInput = clock.ticksMs();
    this.#phase = PHASE_LIVE;
    return true;
  }

  /** Notices of new segments, as far as the keeper has room: it may be long at something else. */
  #tellRotations(): boolean {
    let told = false;
    while (this.#rotations.length > 0 && this.#keeper.ring.room(1) > 0) {
      this.#tellSegment(this.#rotations.shift()!);
      told = true;
    }
    return told;
  }

  #tellSegment({ seq, baseOffset, baseAtMs, packed }: LogSegment): void {
    const slot = this.#keeper.claim();
    invariant(slot >= 0, 'room in the ring to the keeper was looked for');
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = MSG_SEGMENT;
    u32[slot + SEGMENT.SEQ] = seq;
    setWide(u32, slot + SEGMENT.BASE, baseOffset);
    setWide(u32, slot + SEGMENT.AT_MS, baseAtMs);
    u32[slot + SEGMENT.PACKED] = packed ? 1 : 0;
    this.#keeper.send();
  }

  // ---------------------------------------------------------------- live

  #takeLine(): boolean {
    let taken = false;
    const { u32 } = this.#line;
    const writer = this.#writer;
    for (let slot = this.#line.peek(); slot >= 0; slot = this.#line.peek()) {
      switch (u32[slot + KIND_WORD]) {
        case MSG_RECORD:
          if (this.#phase !== PHASE_LIVE || writer === undefined || writer.full) return taken;
          this.#append(writer, u32, slot);
          break;
        case MSG_BOUND:
          this.#takeBound(getWide(u32, slot + BOUND.UPPER));
          break;
        case MSG_CLOSE:
          if (this.#phase !== PHASE_LIVE) return taken;
          this.#closeSeen = true;
          break;
        default:
          invariant(false, 'a message of the line', u32[slot + KIND_WORD]);
      }
      this.#line.pop();
      taken = true;
    }
    if (taken) this.#lastInput = this.#context.clock.ticksMs();
    return taken;
  }

  #append(writer: LogWriter, u32: Uint32Array, slot: number): void {
    const { arena, pool } = this.#context;
    const address = u32[slot + RECORD.ADDRESS];
    const length = u32[slot + RECORD.PAYLOAD_BYTES];
    const crc = u32[slot + RECORD.PAYLOAD_CRC];
    const txCount = u32[slot + RECORD.TX_COUNT];
    const first = getWide(u32, slot + RECORD.OFFSET);
    const epoch = u32[slot + RECORD.EPOCH];
    const atMs = getWide(u32, slot + RECORD.AT_MS);
    const flags = u32[slot + RECORD.FLAGS];
    if ((flags & RECORD_SYNC) !== 0) this.#syncWanted = true;
    let refusal: number;
    if ((flags & RECORD_CHAINED) === 0) {
      refusal = writer.append(arena.u8, address, length, crc, txCount, first, epoch, atMs);
    } else {
      const pieces: LogPiece[] = [];
      eachPiece(pool, address, length, (offset, bytes) => {
        pieces.push({ bytes: arena.u8, offset, length: bytes });
      });
      refusal = writer.appendPieces(pieces, crc, txCount, first, epoch, atMs);
    }
    // Memory holds the record already: the order is broken, and with it the engine.
    invariant(refusal === ACCEPTED, 'the log takes what the sequencer ordered', refusal, first);
    this.#accepted += recordBytes(length);
    this.#counters.add(RECORDS, 1);
    this.#counters.add(TRANSACTIONS, txCount);
  }

  #takeBound(upper: number): void {
    if (this.#phase === PHASE_LIVE && this.#writer !== undefined && this.#writer.next === upper) {
      this.#bounds.push(this.#writer.mark());
      this.#replayMarks = [];
      this.#syncWanted = true;
      return;
    }
    // At replay a generation ends with some record fed before; those below are not asked for again.
    const at = this.#replayMarks.findIndex((mark) => mark.upper === upper);
    invariant(at >= 0, 'a bound ends a record', upper);
    this.#bounds.push(this.#replayMarks[at]);
    this.#replayMarks = this.#replayMarks.slice(at + 1);
    this.#answerBounds();
  }

  #answerBounds(): boolean {
    const durable = this.#context.control.durable();
    let answered = false;
    while (this.#bounds.length > 0 && this.#bounds[0].upper <= durable) {
      // Room is kept for a segment's notice and the answer to recovery.
      if (this.#keeper.ring.room(4) < 4) return answered;
      const mark = this.#bounds.shift()!;
      const slot = this.#keeper.claim();
      const { u32 } = this.#keeper.ring;
      u32[slot + KIND_WORD] = MSG_BOUND_REACHED;
      setWide(u32, slot + BOUND_REACHED.UPPER, mark.upper);
      u32[slot + BOUND_REACHED.SEQ] = mark.seq;
      setWide(u32, slot + BOUND_REACHED.POSITION, mark.position);
      u32[slot + BOUND_REACHED.CHAIN] = mark.chain;
      u32[slot + BOUND_REACHED.EPOCH] = mark.epoch;
      setWide(u32, slot + BOUND_REACHED.AT_MS, mark.atMs);
      this.#keeper.send();
      answered = true;
    }
    return answered;
  }

  #write(): boolean {
    const writer = this.#writer;
    if (writer === undefined) return this.#closeReadOnly();
    if (this.#closeSeen && this.#phase === PHASE_LIVE) {
      writer.close();
      this.#phase = PHASE_CLOSING;
      this.#cancelPrepares();
    }
    if (this.#phase === PHASE_LIVE) {
      this.#askForRoom(writer);
      this.#publishRoom(writer);
      // Full without anything staged: a rotation is under way, one call a step.
      const isQuiet =
        !writer.staged &&
        !writer.full &&
        writer.written === writer.durable &&
        writer.unsyncedBytes === 0;
      if (isQuiet) return this.#watermark(writer);
    }
    const { control, clock, config } = this.#context;
    const before = writer.durable;
    const writtenBefore = writer.written;
    const startedAt = clock.ticksMs();
    const bytesBefore = writer.bytesWritten;
    const step = writer.step(this.#wantsSync(writer, startedAt));
    if (step === 'waiting') this.#waits.begin(CAUSE_LOG);
    else if (control.hasSpace()) this.#waits.end();
    if (step === 'idle' || step === 'waiting') return false;
    if (step === 'syncs') {
      this.#forgetSync(writer);
      this.#syncUnsent = true;
      this.#sendSync();
      return true;
    }
    this.#count(step, clock.ticksMs() - startedAt, writer.bytesWritten - bytesBefore);
    if (writer.written !== writtenBefore) {
      if (this.#unsyncedSince < 0) this.#unsyncedSince = startedAt;
      // The place first: whoever sees the frontier finds the segment that it lies in.
      control.setLogPosition(writer.seq, writer.mark().position);
      control.setWritten(writer.written);
      if (!config.synced) this.#ringClients();
    }
    if (writer.durable !== before) this.#publishDurable(writer);
    this.#forgetSynced(writer);
    if (step === 'rotated') {
      const { seq, baseOffset, baseAtMs } = writer;
      this.#rotations.push({ seq, baseOffset, baseAtMs, packed: false });
      this.#tellRotations();
    }
    if (step === 'closed') this.#phase = PHASE_ENDING;
    return true;
  }

  /** `durable` has moved. */
  #publishDurable(writer: LogWriter): void {
    this.#context.control.setDurable(writer.durable);
    this.#ringClients();
  }

  /** Of what is durable no sync is wanted any more; a watermark moves no frontier, and is synced all the same. */
  #forgetSynced(writer: LogWriter): void {
    if (writer.written === writer.durable && writer.unsyncedBytes === 0) this.#forgetSync(writer);
  }

  /** All that is written is synced, or is being. */
  #forgetSync(writer: LogWriter): void {
    this.#unsyncedSince = -1;
    this.#syncWanted = writer.staged && this.#syncWanted;
  }

  /** Asks the keeper for the sync that the writer wants, once its ring has room. */
  #sendSync(): boolean {
    if (!this.#syncUnsent || this.#keeper.ring.room(1) === 0) return false;
    const { clock, control } = this.#context;
    this.#syncUnsent = false;
    this.#syncAt = clock.ticksMs();
    control.beginStall(ACTOR_DURABILITY, STALL_CALL, CALL_SYNC, clock.nowMs());
    const slot = this.#keeper.claim();
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = MSG_SYNC;
    u32[slot + SYNC.FD] = this.#writer!.fd;
    this.#keeper.send();
    return true;
  }

  /** The keeper has synced, or could not, which ends the engine. */
  #onSynced(errno: number): void {
    const { clock, control } = this.#context;
    const writer = this.#writer;
    invariant(writer !== undefined && this.#syncAt >= 0, 'a sync that was asked for');
    const ms = clock.ticksMs() - this.#syncAt;
    this.#syncAt = -1;
    control.endStall(ACTOR_DURABILITY, STALL_CALL, ms);
    this.#observeCall(CALL_SYNC, ms);
    const before = writer.durable;
    writer.syncEnded(errno === 0 ? undefined : asSystemError(errno));
    this.#count('synced', ms, 0);
    if (writer.durable !== before) this.#publishDurable(writer);
    this.#forgetSynced(writer);
  }

  /** Synced engines sync every batch; buffered ones when asked, when due, and before too much is at stake. */
  #wantsSync(writer: LogWriter, now: number): boolean {
    const { config } = this.#context;
    if (config.synced || this.#syncWanted || this.#phase === PHASE_CLOSING) return true;
    if (writer.unsyncedBytes >= unsyncedBytesMax) return true;
    return this.#unsyncedSince >= 0 && now - this.#unsyncedSince >= config.syncIntervalMs;
  }

  #count(step: string, ms: number, bytes: number): void {
    const counters = this.#counters;
    if (step === 'wrote') {
      counters.observe(BATCH_BYTES, bytes);
      counters.add(BATCHES, 1);
      counters.add(WRITES, 1);
    } else if (step === 'synced') {
      counters.add(SYNCS, 1);
      counters.add(SYNC_MS, ms);
      counters.values[SYNC_MS_MAX] = Math.max(counters.values[SYNC_MS_MAX], Math.ceil(ms));
    } else if (step === 'rotated') {
      counters.add(ROTATIONS, 1);
    }
  }

  #ringClients(): void {
    const { clientBells, control } = this.#context;
    const count = control.clients();
    for (let i = 0; i < count; i++) clientBells[i].ring();
  }

  /** Quiet for a while after a sync: one more record proves on disk what was durable (commitlog 2.2). */
  #watermark(writer: LogWriter): boolean {
    if (writer.claimed >= writer.durable) return false;
    if (this.#context.clock.ticksMs() - this.#lastInput < idleWatermarkMs) return false;
    if (!writer.watermark()) return false;
    this.#syncWanted = true;
    this.#counters.add(WATERMARKS, 1);
    return true;
  }

  /** An offer without room for the answer waits: the keeper deletes what is declined. */
  #takeFromKeeper(): boolean {
    const slot = this.#fromKeeper.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromKeeper;
    if (u32[slot + KIND_WORD] === MSG_SYNCED) {
      const errno = u32[slot + SYNC.ERRNO];
      this.#fromKeeper.pop();
      this.#onSynced(errno);
      return true;
    }
    if (this.#keeper.ring.room(4) < 4) return false;
    invariant(
      u32[slot + KIND_WORD] === MSG_OFFER,
      'a message of the keeper',
      u32[slot + KIND_WORD],
    );
    const seq = u32[slot + OFFER.SEQ];
    this.#fromKeeper.pop();
    if (this.#writer?.offerSegment(seq) !== true) this.#decline(seq);
    return true;
  }

  #decline(seq: number): void {
    const slot = this.#keeper.claim();
    invariant(slot >= 0, 'room in the ring to the keeper was looked for');
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = MSG_DECLINED;
    u32[slot + OFFER.SEQ] = seq;
    this.#keeper.send();
  }

  #askForRoom(writer: LogWriter): void {
    if (this.#compactor.ring.room(2) < 2) return;
    const { clock, control } = this.#context;
    let isRetry = false;
    if (writer.prepareFailed) {
      if (clock.ticksMs() < this.#retryAt) return;
      this.#retryAt = clock.ticksMs() + PREPARE_RETRY_MS;
    }
    // What is left is for flushes.
    if (this.#isLow) return;
    if (writer.prepareFailed) {
      if (this.#isFull && this.#disk.freeBytes() < SPACE_BYTES_MIN) return;
      isRetry = true;
      writer.retryPreparing();
    }
    const promised = Math.max(0, this.#promised - this.#accepted);
    const wanted = Math.max(0, control.roomWanted() - this.#accepted);
    const zero: ZeroJob | undefined = writer.zeroWanted(promised, wanted);
    if (zero !== undefined) this.#prepare(PREPARE_ZERO, zero.seq, zero.from, zero.to);
    const spare: SpareJob | undefined = writer.spareWanted();
    if (spare !== undefined) {
      const what = spare.recycle ? PREPARE_RECYCLE : PREPARE_SPARE;
      this.#prepare(what, spare.seq, spare.reuseSeq, spare.bytes);
    }
    // Nothing is there to be prepared that could fail again: the disk's own word counts.
    if (isRetry && this.#preparing === 0) this.#isFull = false;
  }

  /**
   * Says how much more may be ordered, so that nothing is ordered that the log has no room for: what is
   * prepared; else, where nothing is being prepared, a little of what the disk says it has.
   */
  #publishRoom(writer: LogWriter): void {
    // A rotation takes what was promised along.
    if (!writer.isSettled) return;
    this.#lookAtDisk(writer);
    if (writer.isAppending) this.#promiseAhead(writer);
    const { control } = this.#context;
    const wanted = control.roomWanted();
    const prepared = this.#isLow ? 0 : writer.preparedBytes;
    let credit = Math.max(this.#accepted + prepared, this.#promised);
    if (wanted > credit) {
      const bytes = this.#bytesToPromise(writer, wanted - this.#accepted);
      if (bytes > 0) this.#promised = this.#accepted + bytes;
      credit = Math.max(credit, this.#promised);
    } else if (!control.hasSpace()) {
      this.#setHasSpace(true);
    }
    if (credit === this.#credit) return;
    const isMore = credit > this.#credit;
    this.#credit = credit;
    control.setRoom(credit);
    // The sequencer may sleep, with a record that it could not take.
    if (isMore && wanted > 0) this.#context.threadBells[THREAD_WRITE].ring();
  }

  /**
   * A log that took the last of the disk could never let go of it: it is flushes that make its segments
   * needless, and they need room. So the room that is prepared is not given away either while there is little.
   */
  #lookAtDisk(writer: LogWriter): void {
    const now = this.#context.clock.ticksMs();
    if (now < this.#lookAtDiskAt || (this.#accepted === this.#acceptedThen && !this.#isLow)) return;
    this.#lookAtDiskAt = now + PROMISE_LOOK_MS;
    this.#acceptedThen = this.#accepted;
    this.#isLow = this.#disk.freeBytes() < this.#bytesKept(writer);
    if (this.#isLow) this.#promised = Math.min(this.#promised, this.#accepted);
  }

  /**
   * Where nothing is ever prepared nobody should wait for a promise: it is made before it is asked for. And
   * taken back, as far as it is not used, when the disk fills up, or when nobody commits: it would not be seen.
   */
  #promiseAhead(writer: LogWriter): void {
    const now = this.#context.clock.ticksMs();
    if (this.#isFull || now - this.#lastInput >= idleWatermarkMs) {
      this.#promised = Math.min(this.#promised, this.#accepted);
      return;
    }
    const left = this.#promised - this.#accepted;
    const isDue = left < PROMISE_BYTES_AHEAD / 2 && now >= this.#lookAheadAt;
    if (!isDue && (left <= 0 || now < this.#lookAgainAt)) return;
    this.#lookAgainAt = now + PROMISE_LOOK_MS;
    const free = this.#disk.freeBytes();
    if (free - SPACE_BYTES_AHEAD - writer.spareBytesOut >= 0) {
      this.#promised = this.#accepted + PROMISE_BYTES_AHEAD;
      return;
    }
    this.#lookAheadAt = now + PREPARE_RETRY_MS;
    const most = this.#accepted + Math.max(0, free - this.#bytesKept(writer));
    this.#promised = Math.min(this.#promised, most);
  }

  /** Of what the disk has, so much is promised to nobody. */
  #bytesKept(writer: LogWriter): number {
    // A flush that finds the disk full fails alone; a log that does ends the engine.
    const { config, control } = this.#context;
    const memtables = MEMTABLES_KEPT + control.sealed();
    return SPACE_BYTES_MIN + memtables * config.memtableBytes + writer.spareBytesOut;
  }

  /** What the disk has to spare for `wanted` bytes and some more; 0: not so much. Without, and with no job that makes room, it is full. */
  #bytesToPromise(writer: LogWriter, wanted: number): number {
    const { clock } = this.#context;
    const most = Math.min(Math.max(wanted, PROMISE_BYTES), writer.bytesBeforeJob);
    if (most < wanted || clock.ticksMs() < this.#askSpaceAt) return 0;
    const free = this.#isFull ? 0 : this.#disk.freeBytes() - this.#bytesKept(writer);
    const has = free >= wanted;
    if (has || this.#preparing === 0) this.#setHasSpace(has);
    if (has) return Math.min(most, free);
    this.#askSpaceAt = clock.ticksMs() + PROMISE_LOOK_MS;
    return 0;
  }

  #setHasSpace(has: boolean): void {
    this.#context.control.setHasSpace(has);
    if (has) this.#waits.end();
    else this.#waits.begin(CAUSE_DISK);
  }

  #prepare(what: number, seq: number, from: number, to: number): void {
    const slot = this.#compactor.claim();
    const { u32 } = this.#compactor.ring;
    u32[slot + KIND_WORD] = MSG_PREPARE;
    u32[slot + PREPARE.WHAT] = what;
    u32[slot + PREPARE.SEQ] = seq;
    setWide(u32, slot + PREPARE.FROM, from);
    setWide(u32, slot + PREPARE.TO, to);
    this.#compactor.send();
    this.#preparing++;
  }

  /** They still answer; without room in the ring they are waited for. */
  #cancelPrepares(): void {
    if (this.#preparing === 0) return;
    const slot = this.#compactor.claim();
    if (slot < 0) return;
    this.#compactor.ring.u32[slot + KIND_WORD] = MSG_CANCEL;
    this.#compactor.send();
  }

  #takePrepared(): boolean {
    const slot = this.#fromCompactor.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromCompactor;
    invariant(u32[slot + KIND_WORD] === MSG_PREPARED, 'an answer of the compactor');
    this.#preparing--;
    const ok = u32[slot + PREPARE.OK] === 1;
    const seq = u32[slot + PREPARE.SEQ];
    const to = getWide(u32, slot + PREPARE.TO);
    const { clock } = this.#context;
    if (!ok) this.#retryAt = clock.ticksMs() + PREPARE_RETRY_MS;
    // A full disk shows itself here, ahead of the log: what exceeds the room is refused, with no offset.
    if (ok || u32[slot + PREPARE.NO_SPACE] === 1) this.#isFull = !ok;
    this.#askSpaceAt = 0;
    if (u32[slot + PREPARE.WHAT] === PREPARE_ZERO) {
      this.#writer?.zeroed(seq, to, ok);
      if (ok) this.#counters.add(ZEROED_BYTES, to - getWide(u32, slot + PREPARE.FROM));
    } else {
      const recycled = u32[slot + PREPARE.RECYCLED] === 1;
      this.#writer?.spareReady(seq, ok, recycled);
      if (ok && !recycled) this.#counters.add(ZEROED_BYTES, to);
    }
    this.#fromCompactor.pop();
    return true;
  }

  // ---------------------------------------------------------------- closing

  #closeReadOnly(): boolean {
    if (!this.#closeSeen) return false;
    this.#phase = PHASE_ENDING;
    return true;
  }

  /**
   * The line has ended; the keeper closes the rest. Not while a job has a range of the log or makes a
   * file in it: whoever opens the store next must find nobody at work there.
   */
  #finish(): boolean {
    if (this.#preparing > 0 || this.#rotations.length > 0) return false;
    if (this.#keeper.ring.room(2) < 2) return false;
    const offered = this.#writer?.takeBackOffer() ?? 0;
    if (offered !== 0) this.#decline(offered);
    const slot = this.#keeper.claim();
    this.#keeper.ring.u32[slot + KIND_WORD] = MSG_CLOSE;
    this.#keeper.send();
    this.#phase = PHASE_CLOSED;
    return true;
  }
}

/** Operations in a contiguous payload that was checked before. */
function countOperations(bytes: Uint8Array, offset: number, txCount: number): number {
  let at = offset;
  let operations = 0;
  for (let t = 0; t < txCount; t++) {
    operations += getU32(bytes, at + TX_COUNT_OFFSET);
    at += getU32(bytes, at + TX_BYTES_OFFSET);
  }
  return operations;
}
