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
import { idleWatermarkMs, stallMs, unsyncedBytesMax } from '../core/base/limits.ts';
import { recordBytes } from '../core/log/record.ts';
import type { RecordHeader } from '../core/log/record.ts';
import { LogRecovery } from '../core/log/recovery.ts';
import type { LogFacts, LogSegment } from '../core/log/recovery.ts';
import { ACCEPTED, LogWriter } from '../core/log/writer.ts';
import type { LogOptions, LogPiece, LogPosition } from '../core/log/writer.ts';
import { ACTOR_DURABILITY, STALL_CALL } from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import { eachPiece } from '../core/shared/record-pages.ts';
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
import { LogCredit } from './log-credit.ts';
import {
  BOUND,
  BOUND_REACHED,
  KIND_WORD,
  MSG_BOUND,
  MSG_BOUND_REACHED,
  MSG_CLOSE,
  MSG_DECLINED,
  MSG_OFFER,
  MSG_RECORD,
  MSG_RECOVER,
  MSG_RECOVERED,
  MSG_SEGMENT,
  MSG_SYNC,
  MSG_SYNCED,
  OFFER,
  RECORD,
  RECORD_CHAINED,
  RECORD_SYNC,
  RECOVER,
  RECOVERED,
  SEGMENT,
  SYNC,
  getWide,
  setWide,
} from './messages.ts';
import { ReplayFeed } from './replay-feed.ts';
import { CAUSE_LOG, Waits } from './stalls.ts';
import { asSystemError } from './system-error.ts';
import { readText } from './text-blocks.ts';
import { THREAD_BACKGROUND } from './topology.ts';
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

export class Durability implements Actor {
  readonly number: number = ACTOR_DURABILITY;
  readonly #context: ActorContext;
  /** The disk, each call announced. */
  readonly #disk: WatchedStorage;
  #callAt = 0;
  readonly #line: RingConsumer;
  readonly #fromKeeper: RingConsumer;
  readonly #keeper: Outbox;
  readonly #counters: Counters;
  readonly #waits: Waits;
  readonly #replay: ReplayFeed;
  readonly #credit: LogCredit;

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
  /** Some record or bound asks a buffered engine for a sync. */
  #syncWanted = false;
  #unsyncedSince = -1;
  /** A sync is to be asked for as soon as the keeper's ring has room; and since when one is out, -1: none is. */
  #syncUnsent = false;
  #syncAt = -1;
  #lastInput = 0;
  #closeSeen = false;

  constructor(context: ActorContext) {
    const { topology } = context;
    const background = context.threadBells[THREAD_BACKGROUND];
    this.#context = context;
    this.#line = inboxOf(context, topology.line);
    this.#fromKeeper = inboxOf(context, topology.keeperToDurability);
    this.#keeper = new Outbox(context, topology.durabilityToKeeper, background);
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
    this.#replay = new ReplayFeed(context);
    this.#credit = new LogCredit(context, this.#disk, this.#counters, this.#waits, (seq, spare) =>
      this.#drop(seq, spare),
    );
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
    let worked = this.#credit.takePrepared(this.#writer);
    this.#replay.release();
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
    // Where what is due cannot be done, while the disk is low for one, it is not waited for in a loop.
    return Math.max(TELL_AGAIN_MS, this.#credit.idleMs(writer));
  }

  /** Something for the keeper that its ring may have had no room for: who takes from a ring rings no bell. */
  get #hasToTell(): boolean {
    if (this.#phase === PHASE_REPORTING || this.#phase === PHASE_ENDING) return true;
    if (this.#rotations.length > 0 || this.#syncUnsent) return true;
    if (this.#credit.hasToDrop || (this.#writer?.keptFile ?? 0) !== 0) return true;
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
      this.#replay.begin(0, this.#writer.epoch, this.#writer.atMs);
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
    this.#replay.begin(start?.upper ?? facts.firstOffset, start?.epoch ?? 0, start?.atMs ?? 0);
    this.#phase = PHASE_RECOVERING;
    return true;
  }

  /** Zeros ahead halve the price of a sync: of one a commit, not of twenty a second. */
  get #logOptions(): LogOptions {
    const { segmentBytes, synced } = this.#context.config;
    // Commits of a buffered engine wait for no sync: nor for the thread that would be in one.
    return { segmentBytes, zeros: synced, syncApart: !synced };
  }

  #feed(record: RecordHeader, source: Uint8Array, offset: number, length: number): boolean {
    if (!this.#replay.feed(record, source, offset, length)) return false;
    this.#replayMarks.push(this.#recovery!.mark());
    this.#counters.add(RECOVERED_TRANSACTIONS, record.txCount);
    this.#counters.add(RECOVERED_RECORDS, 1);
    this.#counters.add(RECOVERED_BYTES, recordBytes(length));
    return true;
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

  /** Tells the keeper of the segments and of the end, the sequencer that replay is over. */
  #report(): boolean {
    const recovery = this.#recovery;
    const writer = this.#writer;
    if (this.#keeper.ring.room(2) < 2 || !this.#replay.canEnd) return false;
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
    this.#replay.end(next, epoch, recovery?.atMs ?? 0);
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
    this.#credit.accept(recordBytes(length));
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
      this.#credit.cancel();
    }
    if (this.#phase === PHASE_LIVE) {
      const isQuietLong = this.#context.clock.ticksMs() - this.#lastInput >= idleWatermarkMs;
      this.#credit.tick(writer, isQuietLong);
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
    if (this.#writer?.offerSegment(seq) !== true) this.#decline(seq, 0);
    return true;
  }

  /** Tells the keeper to delete a file that no spare is made of, or what is left of a spare; false: no room now. */
  #drop(seq: number, spare: number): boolean {
    if (this.#keeper.ring.room(4) < 4) return false;
    this.#decline(seq, spare);
    return true;
  }

  #decline(seq: number, spare: number): void {
    const slot = this.#keeper.claim();
    invariant(slot >= 0, 'room in the ring to the keeper was looked for');
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = MSG_DECLINED;
    u32[slot + OFFER.SEQ] = seq;
    u32[slot + OFFER.SPARE] = spare;
    this.#keeper.send();
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
    if (this.#credit.isPreparing || this.#rotations.length > 0) return false;
    if (this.#keeper.ring.room(2) < 2) return false;
    const kept = this.#writer?.giveBackFile() ?? 0;
    if (kept !== 0) this.#decline(kept, 0);
    const slot = this.#keeper.claim();
    this.#keeper.ring.u32[slot + KIND_WORD] = MSG_CLOSE;
    this.#keeper.send();
    this.#phase = PHASE_CLOSED;
    return true;
  }
}
