/**
 * How much more of the log may be ordered: room that jobs prepare in it, or what the disk has to spare. The
 * credit of spec 2.5: whatever is ordered finds its room in the log, and flushes, which make the log
 * shorter, find theirs. Part of durability, on its thread.
 */
import { invariant } from '../core/base/assert.ts';
import { MiB } from '../core/base/limits.ts';
import type { SpareJob, ZeroJob } from '../core/log/prepare.ts';
import type { LogWriter } from '../core/log/writer.ts';
import type { Counters } from '../core/shared/counters.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import type { Storage } from '../core/storage/storage.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { ActorContext } from './actor.ts';
import { DURABILITY_COUNTERS, indexIn } from './counters.ts';
import {
  KIND_WORD,
  MSG_CANCEL,
  MSG_PREPARE,
  MSG_PREPARED,
  PREPARE,
  PREPARE_RECYCLE,
  PREPARE_SPARE,
  PREPARE_ZERO,
  getWide,
  setWide,
} from './messages.ts';
import { CAUSE_DISK } from './stalls.ts';
import type { Waits } from './stalls.ts';
import { THREAD_BACKGROUND, THREAD_WRITE } from './topology.ts';

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
/** Before it is asked for nothing is promised unless the disk has so much more to spare. */
const SPACE_BYTES_AHEAD: number = 256 * MiB;
/** So often the disk is asked what it has: merges and other programs take from it too. */
const LOOK_MS = 20;

const ZEROED_BYTES: number = indexIn(DURABILITY_COUNTERS, 'zeroedBytes');

export class LogCredit {
  readonly #context: ActorContext;
  readonly #disk: Storage;
  readonly #compactor: Outbox;
  readonly #fromCompactor: RingConsumer;
  readonly #counters: Counters;
  readonly #waits: Waits;
  /** Has a segment deleted that no spare is made of, and what is left of a spare; false: no room to say so now. */
  readonly #drop: (seq: number, spare: number) => boolean;

  /** Jobs that have not answered. */
  #preparing = 0;
  /** When room may be asked for again, where a job has failed. */
  #retryAt = 0;
  /** Bytes of records taken, headers included, since the engine is open. */
  #accepted = 0;
  /** What `room` was set to; and up to where it was promised without being prepared. */
  #credit = 0;
  #promised = 0;
  /** The last job failed because the disk is full, whatever it says it has. */
  #isFull = false;
  /** What the disk had when it was asked, and how much was accepted then; and when it may be asked again. */
  #free = 0;
  #acceptedThen = 0;
  #lookAt = 0;
  /** What is left is for flushes. */
  #isLow = false;

  constructor(
    context: ActorContext,
    disk: Storage,
    counters: Counters,
    waits: Waits,
    drop: (seq: number, spare: number) => boolean,
  ) {
    const { topology } = context;
    this.#context = context;
    this.#disk = disk;
    this.#compactor = new Outbox(
      context,
      topology.durabilityToCompactor,
      context.threadBells[THREAD_BACKGROUND],
    );
    this.#fromCompactor = inboxOf(context, topology.compactorToDurability);
    this.#counters = counters;
    this.#waits = waits;
    this.#drop = drop;
  }

  /** A job has a range of the log, or makes a file in it. */
  get isPreparing(): boolean {
    return this.#preparing > 0;
  }

  /** An answer waits until it can be said what is to be deleted. */
  get hasToDrop(): boolean {
    return this.#fromCompactor.peek() >= 0;
  }

  /** A record of `bytes` was taken. */
  accept(bytes: number): void {
    this.#accepted += bytes;
  }

  /** Asks for room to be prepared, and says how much there is. `isQuiet`: for a while nobody has committed. */
  tick(writer: LogWriter, isQuiet: boolean): void {
    const spare = this.#spareBytes(writer);
    this.#isLow = spare < 0;
    this.#askForRoom(writer);
    // A rotation takes what was promised along.
    if (writer.isSettled) this.#publish(writer, spare, isQuiet);
  }

  /** How long there is nothing to do, if nobody rings; milliseconds. */
  idleMs(writer: LogWriter): number {
    const { clock, control } = this.#context;
    const now = clock.ticksMs();
    const retryMs = writer.prepareFailed ? this.#retryAt - now : Infinity;
    // A job that makes room rings when it is done; who has none looks at the disk now and then.
    const isWanted = control.roomWanted() > this.#credit;
    const isLooking = isWanted && writer.isSettled && writer.bytesBeforeJob === Infinity;
    return isLooking ? Math.min(retryMs, this.#lookAt - now) : retryMs;
  }

  /**
   * What the disk has to spare for the log; below zero the disk is low. A log that took the last of it could
   * never let go of it: it is flushes that make its segments needless, and a flush that finds the disk
   * full fails alone, a log that does ends the engine.
   */
  #spareBytes(writer: LogWriter): number {
    const { clock, config, control } = this.#context;
    const now = clock.ticksMs();
    if (now >= this.#lookAt) {
      this.#lookAt = now + LOOK_MS;
      this.#acceptedThen = this.#accepted;
      this.#free = this.#disk.freeBytes();
    }
    const memtables = MEMTABLES_KEPT + control.sealed();
    const kept = SPACE_BYTES_MIN + memtables * config.memtableBytes + writer.spareBytesOut;
    return this.#free - (this.#accepted - this.#acceptedThen) - kept;
  }

  #askForRoom(writer: LogWriter): void {
    if (this.#compactor.ring.room(2) < 2) return;
    const { clock, control } = this.#context;
    const isRetry = writer.prepareFailed;
    if (isRetry) {
      if (clock.ticksMs() < this.#retryAt) return;
      this.#retryAt = clock.ticksMs() + PREPARE_RETRY_MS;
    }
    if (this.#isLow) {
      this.#giveBack(writer);
      return;
    }
    if (isRetry) writer.retryPreparing();
    const promised = Math.max(0, this.#promised - this.#accepted);
    const wanted = Math.max(0, control.roomWanted() - this.#accepted);
    const zero: ZeroJob | undefined = writer.zeroWanted(promised, wanted);
    if (zero !== undefined) this.#prepare(PREPARE_ZERO, zero.seq, zero.from, zero.to);
    const spare: SpareJob | undefined = writer.spareWanted();
    if (spare !== undefined) {
      const what = spare.recycle ? PREPARE_RECYCLE : PREPARE_SPARE;
      this.#prepare(what, spare.seq, spare.reuseSeq, spare.bytes);
    } else if (writer.isSettled) {
      this.#giveBack(writer);
    }
    // Nothing is there to be prepared that could fail again: the disk's own word counts.
    if (isRetry && this.#preparing === 0) this.#isFull = false;
  }

  /** No spare is made now, for want of room most often: nor is a whole segment kept to make one of. */
  #giveBack(writer: LogWriter): void {
    const seq = writer.keptFile;
    if (seq !== 0 && this.#drop(seq, 0)) writer.giveBackFile();
  }

  /**
   * Says how much more may be ordered, so that nothing is ordered that the log has no room for: what is
   * prepared; else, where nothing is being prepared, a little of what the disk says it has.
   */
  #publish(writer: LogWriter, spare: number, isQuiet: boolean): void {
    if (writer.isAppending) this.#promiseAhead(spare, isQuiet);
    else if (this.#isLow) this.#promised = Math.min(this.#promised, this.#accepted);
    const { control } = this.#context;
    const wanted = control.roomWanted();
    // Nor is the room that is prepared given away while there is little.
    const prepared = this.#isLow ? 0 : writer.preparedBytes;
    let credit = Math.max(this.#accepted + prepared, this.#promised);
    if (wanted > credit) {
      const bytes = this.#bytesToPromise(writer, spare, wanted - this.#accepted);
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
   * Where nothing is ever prepared nobody should wait for a promise: it is made before it is asked for. And
   * taken back, as far as it is not used, when the disk fills up, or when nobody commits: it would not be seen.
   */
  #promiseAhead(spare: number, isQuiet: boolean): void {
    if (spare >= SPACE_BYTES_AHEAD && !this.#isFull && !isQuiet) {
      const left = this.#promised - this.#accepted;
      if (left < PROMISE_BYTES_AHEAD / 2) this.#promised = this.#accepted + PROMISE_BYTES_AHEAD;
      return;
    }
    const most = this.#isFull || isQuiet ? 0 : Math.max(0, spare);
    this.#promised = Math.min(this.#promised, this.#accepted + most);
  }

  /** What the disk has to spare for `wanted` bytes and some more; 0: not so much. Without, and with no job that makes room, it is full. */
  #bytesToPromise(writer: LogWriter, spare: number, wanted: number): number {
    const most = Math.min(Math.max(wanted, PROMISE_BYTES), writer.bytesBeforeJob);
    if (most < wanted) return 0;
    const has = !this.#isFull && spare >= wanted;
    if (has || this.#preparing === 0) this.#setHasSpace(has);
    return has ? Math.min(most, spare) : 0;
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

  /** The log ends: jobs still answer; without room in the ring they are waited for. */
  cancel(): void {
    if (this.#preparing === 0) return;
    const slot = this.#compactor.claim();
    if (slot < 0) return;
    this.#compactor.ring.u32[slot + KIND_WORD] = MSG_CANCEL;
    this.#compactor.send();
  }

  /** Takes one answer of a job. */
  takePrepared(writer: LogWriter | undefined): boolean {
    const slot = this.#fromCompactor.peek();
    if (slot < 0) return false;
    const { u32 } = this.#fromCompactor;
    invariant(u32[slot + KIND_WORD] === MSG_PREPARED, 'an answer of the compactor');
    const isSpare = u32[slot + PREPARE.WHAT] !== PREPARE_ZERO;
    const ok = u32[slot + PREPARE.OK] === 1;
    const seq = u32[slot + PREPARE.SEQ];
    const from = getWide(u32, slot + PREPARE.FROM);
    const to = getWide(u32, slot + PREPARE.TO);
    // A worker that died has left what it was at, and the file that it was to use.
    if (isSpare && !ok && !this.#drop(from, seq)) return false;
    this.#preparing--;
    if (!ok) this.#retryAt = this.#context.clock.ticksMs() + PREPARE_RETRY_MS;
    // A full disk shows itself here, ahead of the log: what exceeds the room is refused, with no offset.
    if (ok || u32[slot + PREPARE.NO_SPACE] === 1) this.#isFull = !ok;
    this.#lookAt = 0;
    if (!isSpare) {
      writer?.zeroed(seq, to, ok);
      if (ok) this.#counters.add(ZEROED_BYTES, to - from);
    } else {
      const recycled = u32[slot + PREPARE.RECYCLED] === 1;
      writer?.spareReady(seq, ok, recycled);
      if (ok && !recycled) this.#counters.add(ZEROED_BYTES, to);
    }
    this.#fromCompactor.pop();
    return true;
  }
}
