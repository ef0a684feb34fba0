/**
 * A client's way to the sequencer: gathers what is committed in one turn of the event loop into a few
 * records, lays them into pages, pushes them, and settles their promises when the frontier asked for has
 * passed. What finds no room waits here, bounded; then commits are refused with TIDEMARK_BUSY. Runs on
 * the client's thread and never blocks it.
 *
 * A commit with conditions is a record of its own, or shares one with others that read at one time. When
 * the sequencer cannot tell any more whether they hold, it gives the record back, and all that follow: they
 * come again in their order, looked at anew.
 *
 * A record is staged in private memory and copied into pages once, when it closes: encoding into
 * private bytes is faster, and a transaction that fails halfway leaves no trace.
 */
import { invariant } from '../core/base/assert.ts';
import { NO_BYTES } from '../core/base/bytes.ts';
import { crc32 } from '../core/base/crc32.ts';
import { codeOfNumber, describeCode, fromPlainError, TidemarkError } from '../core/base/errors.ts';
import type { PlainError } from '../core/base/errors.ts';
import {
  KiB,
  commitBytesMax,
  pageBytes,
  stallMs,
  waitingBytesMax,
  waitingTransactionsMax,
} from '../core/base/limits.ts';
import { KIND_MEMTABLE, KIND_RECORD } from '../core/shared/buffer-pool.ts';
import type { Counters } from '../core/shared/counters.ts';
import {
  ACTOR_KEEPER,
  STALL_WAIT,
  STATE_CLOSING,
  STATE_OPEN,
  STATE_POISONED,
} from '../core/shared/control.ts';
import { layChained, pagesFor, releaseChain } from '../core/shared/record-pages.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { LongStall, StallWords } from '../core/shared/control.ts';
import type { ActorContext } from './actor.ts';
import type { Conditions } from './conditions.ts';
import { GroupedConditions, WrittenRows } from './grouped-conditions.ts';
import { CLIENT_COUNTERS, indexIn } from './counters.ts';
import {
  KIND_WORD,
  MSG_CLOSE,
  MSG_RECORD,
  RECEIPT,
  RECORD,
  RECORD_CHAINED,
  RECORD_RANGES,
  RECORD_RESENT,
  RECORD_SYNC,
  REFUSAL_AGAIN,
  getWide,
} from './messages.ts';
import { tooLarge } from './encodings.ts';
import { commitOperationsMax, writeBudgetBytes } from './options.ts';
import { CAUSE_DISK, CAUSE_MEMORY } from './stalls.ts';
import { THREAD_WRITE } from './topology.ts';
import { WriteSet } from './write-set.ts';

/** What a commit resolves with. */
export type Receipt = { readonly offset: number };

/** Who is told how a commit has ended, instead of a promise. Neither runs anybody's code, or commits. */
export interface CommitTold {
  /** It is settled, at this offset. */
  onCommitted(offset: number): void;
  onRefused(error: Error): void;
}

type Resolve = (receipt: Receipt) => void;
type Reject = (error: unknown) => void;

/**
 * Payload whose commits settle in one turn of the event loop. What the caller does next is about as
 * much again, and the loop should turn in between.
 */
const SETTLE_BYTES_MAX: number = 128 * KiB;

/**
 * Transactions of one turn after which their record goes over, so that the write thread has work while the
 * turn goes on: 15 to 30 % at 256 in flight, nothing lost at 4,096.
 */
const HANDED_OVER_MAX = 64;

/** Rest of a page below which the next record starts a fresh one. */
const PAGE_REST_MIN: number = 32 * KiB;

/** Why a record closed, as the counter that counts it. */
const BY_TURN: number = indexIn(CLIENT_COUNTERS, 'recordsByTurn');
const BY_COUNT: number = indexIn(CLIENT_COUNTERS, 'recordsByCount');
const BY_PAGE: number = indexIn(CLIENT_COUNTERS, 'recordsByPage');
const ALONE: number = indexIn(CLIENT_COUNTERS, 'recordsAlone');
const LARGE: number = indexIn(CLIENT_COUNTERS, 'recordsLarge');
const REFUSED_BUSY: number = indexIn(CLIENT_COUNTERS, 'refusedBusy');
const REFUSED_TOO_LARGE: number = indexIn(CLIENT_COUNTERS, 'refusedTooLarge');
const REFUSED_FOR_SPACE: number = indexIn(CLIENT_COUNTERS, 'refusedForSpace');
const STALLS_FOR_MEMORY: number = indexIn(CLIENT_COUNTERS, 'stallsForMemory');
const STALL_MS_FOR_MEMORY: number = indexIn(CLIENT_COUNTERS, 'stallMsForMemory');

/** A page with records of ours in it; released when it is full and all of them have receipts. */
type OpenPage = { address: number; chained: boolean; open: boolean; pending: number };

/** Why a record is refused: one error for all of it, or one for each of its transactions. */
type Refusal = Error | readonly Error[];

class PendingRecord {
  number = 0;
  /** Of each transaction: who is told, or how its promise is settled. */
  readonly told: (CommitTold | Resolve)[] = [];
  readonly rejects: (Reject | undefined)[] = [];
  readonly promises: (Promise<Receipt> | undefined)[] = [];
  /** True when some commit in it waits for the sync. */
  sync = false;
  /** First offset, once the receipt is there. */
  first = -1;
  /** Called when the record has its place in the order, or is refused. */
  readonly onReceipt: (() => void)[] = [];
  transactions = 0;
  operations = 0;
  hasRanges = false;
  /** Payload of a record that waits for room; undefined once it lies in pages. */
  payload: Uint8Array | undefined = undefined;
  payloadBytes = 0;
  payloadCrc = 0;
  page: OpenPage | undefined = undefined;
  /** Where the payload lies; 0 until it does. */
  address = 0;
  conditions: Conditions | GroupedConditions | undefined = undefined;
  conditionsPage: OpenPage | undefined = undefined;
  conditionsAddress = 0;
}

export class CommitLine {
  readonly #context: ActorContext;
  readonly #counters: Counters;
  readonly #records: Outbox;
  readonly #receipts: RingConsumer;
  readonly #scheduleFlush: (flush: () => void) => void;
  readonly #onPending: () => void;
  /** Bytes of the largest transaction: it must fit memory beside what is being flushed. */
  readonly #commitBytesMax: number;
  readonly #commitOperationsMax: number;
  readonly #outstandingMax: number;
  readonly #stage: WriteSet = new WriteSet(pageBytes + 4 * KiB);
  #staged: PendingRecord | undefined;
  #page: OpenPage | undefined;
  #pageAt = 0;
  /** Holds conditions of records on their way, and nothing else. */
  #conditionsPage: OpenPage | undefined;
  #conditionsAt = 0;
  #nextNumber = 1;
  /** What the group in the stage writes. */
  readonly #written: WrittenRows = new WrittenRows();
  /** Closed records that found no room, oldest first. */
  #waiting: PendingRecord[] = [];
  #waitingBytes = 0;
  #waitingTransactions = 0;
  /** Pushed, receipt outstanding, oldest first. */
  readonly #outstanding: PendingRecord[] = [];
  /** Of these, records with conditions. */
  #conditionalCount = 0;
  /** Given back by the sequencer, oldest first, until all that follow are back too. */
  #returned: PendingRecord[] = [];
  /** The next record pushed is the first of what was given back. */
  #isResending = false;
  /** Receipt there, waiting for `written` or for `durable`, in offset order. */
  #untilWritten: PendingRecord[] = [];
  #untilDurable: PendingRecord[] = [];
  readonly #roomWaiters: (() => void)[] = [];
  /** No page for a record, since when on the clock; told apart by a number. */
  #waitMs = 0;
  #waitTicks = -1;
  #waitNumber = 0;
  #longWait: LongStall = { count: 0, what: CAUSE_MEMORY, sinceMs: 0, ms: 0 };
  /** Somebody found no room; who listens is told when there is some again. */
  #wasFull = false;
  /** Called when commits go straight through again. */
  onRoom: (() => void) | undefined;
  #closeWanted = false;
  #failure: TidemarkError | undefined;

  /** `scheduleFlush` runs its argument at the end of the turn; `onPending` is called when something waits for an answer. */
  constructor(
    context: ActorContext,
    client: number,
    counters: Counters,
    scheduleFlush: (flush: () => void) => void,
    onPending: () => void,
  ) {
    const place = context.topology.clients[client];
    invariant(place !== undefined, 'a client slot', client);
    this.#context = context;
    this.#counters = counters;
    this.#commitBytesMax = Math.min(
      commitBytesMax,
      writeBudgetBytes(context.config.memtableBytes) / 4,
    );
    const memtablePages = context.pool.limitPages(KIND_MEMTABLE);
    this.#commitOperationsMax = commitOperationsMax(context.config.memtableBytes, memtablePages);
    this.#records = new Outbox(context, place.records, context.threadBells[THREAD_WRITE]);
    this.#receipts = inboxOf(context, place.receipts);
    this.#outstandingMax = place.receipts.slots;
    this.#scheduleFlush = scheduleFlush;
    this.#onPending = onPending;
  }

  /** True while some promise is unsettled or some record is not pushed. */
  get pending(): boolean {
    return (
      this.#staged !== undefined ||
      this.#waiting.length > 0 ||
      this.#outstanding.length > 0 ||
      this.#untilDurable.length > 0 ||
      this.#untilWritten.length > 0 ||
      this.#closeWanted
    );
  }

  /** Commits could settle that were left for the next turn. */
  get hasMoreToSettle(): boolean {
    const { control } = this.#context;
    return (
      isSettled(this.#untilDurable[0], control.durable()) ||
      isSettled(this.#untilWritten[0], control.written())
    );
  }

  /** Commits that wait on this side because there is no room, in transactions. */
  get waitingTransactions(): number {
    return this.#waitingTransactions;
  }

  /**
   * Opens a transaction in the record of this turn, to be filled and then ended with `commit` or
   * abandoned. Throws TIDEMARK_BUSY when too much is waiting.
   */
  begin(): WriteSet {
    this.#checkRoom();
    const record = this.#staged;
    if (record?.conditions !== undefined) this.#close(ALONE);
    this.#stage.begin();
    return this.#stage;
  }

  /** Ends the transaction begun in the stage. */
  commit(sync: boolean): Promise<Receipt> {
    const stage = this.#stage;
    stage.finish();
    if (stage.lastBytes > this.#commitBytesMax) {
      const { lastBytes } = stage;
      stage.dropLast();
      this.#counters.add(REFUSED_TOO_LARGE, 1);
      throw tooLarge('commit', lastBytes, this.#commitBytesMax);
    }
    if (stage.end > this.#stageLimit() && stage.transactions > 1) this.#splitLast();
    return this.#enlist(sync);
  }

  /** Finishes and commits a transaction that was built elsewhere. Throws with the set as it was. */
  commitSet(set: WriteSet, sync: boolean, conditions?: Conditions): Promise<Receipt> {
    const isAlone = this.#stageSet(set, conditions);
    const committed = this.#enlist(sync);
    if (isAlone) this.#close(ALONE);
    return committed;
  }

  /** As `commitSet`; `told` is told. */
  commitTold(
    set: WriteSet,
    sync: boolean,
    conditions: Conditions | undefined,
    told: CommitTold,
  ): void {
    const isAlone = this.#stageSet(set, conditions);
    this.#enter(sync, told, undefined, undefined);
    if (isAlone) this.#close(ALONE);
  }

  /** The set is the last transaction of the stage; true: its record ends with it. */
  #stageSet(set: WriteSet, conditions: Conditions | undefined): boolean {
    this.#checkRoom();
    this.assertNotEncoding();
    set.assertNotEncoding();
    if (set.end > this.#commitBytesMax) {
      this.#counters.add(REFUSED_TOO_LARGE, 1);
      throw tooLarge('commit', set.end, this.#commitBytesMax);
    }
    if (set.operations > this.#commitOperationsMax) {
      this.#counters.add(REFUSED_TOO_LARGE, 1);
      throw tooManyOperations(set.operations, this.#commitOperationsMax);
    }
    // What is visible now breaks one: it throws.
    const conflict = conditions?.check();
    if (conflict !== undefined) throw conflict;
    set.finish();
    if (conditions?.isGroupable === true) {
      this.#stageGrouped(set, conditions);
      return false;
    }
    const staged = this.#staged;
    if (conditions !== undefined) {
      this.#close(BY_TURN);
    } else if (staged !== undefined) {
      if (staged.conditions !== undefined) this.#close(ALONE);
      else if (this.#stage.end + set.end > this.#stageLimit()) this.#close(BY_PAGE);
    }
    this.#stage.append(set);
    if (conditions === undefined) return false;
    this.#open().conditions = conditions;
    return true;
  }

  /** Beside others like it of this turn; refused with BESIDE_CONFLICT for what is wrong with another. */
  #stageGrouped(set: WriteSet, conditions: Conditions): void {
    const group = this.#staged?.conditions;
    let isJoining = group instanceof GroupedConditions && group.takes(conditions);
    if (this.#stage.end + set.end > this.#stageLimit()) isJoining = false;
    if (!isJoining) {
      this.#close(group === undefined ? BY_TURN : ALONE);
      this.#written.clear();
      this.#open().conditions = new GroupedConditions(this.#written);
    }
    this.#stage.append(set);
    (this.#staged!.conditions as GroupedConditions).add(conditions, set);
  }

  /** Bytes a record may grow to: the rest of the open page, or a fresh one. */
  #stageLimit(): number {
    if (this.#page === undefined || this.#waiting.length > 0) return pageBytes;
    const rest = this.#page.address + pageBytes - this.#pageAt;
    return rest >= PAGE_REST_MIN ? rest : pageBytes;
  }

  /** The transaction that does not fit opens the next record. */
  #splitLast(): void {
    const stage = this.#stage;
    const last = stage.takeLast();
    this.#close(BY_PAGE);
    stage.append(last);
  }

  #enlist(sync: boolean): Promise<Receipt> {
    let resolve!: Resolve;
    let reject!: Reject;
    const promise = new Promise<Receipt>((onResolve, onReject) => {
      resolve = onResolve;
      reject = onReject;
    });
    this.#enter(sync, resolve, reject, promise);
    return promise;
  }

  /** The last transaction of the stage is of this record. */
  #enter(
    sync: boolean,
    told: CommitTold | Resolve,
    reject: Reject | undefined,
    promise: Promise<Receipt> | undefined,
  ): void {
    const enlisted = this.#staged ?? this.#open();
    enlisted.transactions++;
    if (sync) enlisted.sync = true;
    enlisted.told.push(told);
    enlisted.rejects.push(reject);
    enlisted.promises.push(promise);
    if (this.#stage.end > pageBytes) this.#close(LARGE);
    else if (enlisted.transactions >= HANDED_OVER_MAX) this.#close(BY_COUNT);
  }

  /** The record of this turn, or the next one of it. */
  #open(): PendingRecord {
    const record = new PendingRecord();
    this.#staged = record;
    // It wakes up while the rest of the turn is encoded: 4 to 8 % at 16 and 256 in flight.
    this.#context.threadBells[THREAD_WRITE].ring();
    this.#scheduleFlush(this.#flush);
    return record;
  }

  readonly #flush = (): void => {
    if (this.#staged !== undefined) this.#close(BY_TURN);
    this.#onPending();
  };

  /** Ends the record of this turn now. */
  flush(): void {
    this.#flush();
  }

  /** `why` is the counter of the reason. */
  #close(why: number): void {
    const record = this.#staged;
    if (record === undefined) return;
    this.#counters.add(why, 1);
    this.#staged = undefined;
    const stage = this.#stage;
    record.payloadBytes = stage.end;
    record.operations = stage.operationsTotal;
    record.hasRanges = stage.hasRanges;
    if (this.#failure !== undefined) {
      stage.clear();
      rejectAll(record, this.#failure);
      return;
    }
    if (this.#waiting.length > 0 || !this.#push(record, stage.bytes)) {
      record.payload = Uint8Array.prototype.slice.call(stage.bytes, 0, stage.end);
      this.#waiting.push(record);
      this.#wasFull = true;
      this.#waitingBytes += record.payloadBytes;
      this.#waitingTransactions += record.transactions;
    }
    stage.reset();
  }

  /** Lays the record into pages and hands it over; false when there is no page or no slot. */
  #push(record: PendingRecord, payload: Uint8Array): boolean {
    // A receipt's slot is reserved with its record: the sequencer never waits for us.
    if (this.#outstanding.length === this.#outstandingMax) return false;
    // Nor does a record overtake what was given back.
    if (this.#returned.length > 0) return false;
    const slot = this.#records.claim();
    if (slot < 0) return false;
    const bytes = record.payloadBytes;
    const conditions = record.conditions === undefined ? 0 : this.#layConditions(record);
    const isHeld = record.conditions === undefined || conditions !== 0;
    // A record given back lies where it lay.
    if (record.address === 0 && isHeld) this.#lay(record, payload);
    if (record.address === 0 || !isHeld) {
      if (conditions !== 0) this.#dropConditions(record);
      this.#beginWait();
      // The sequencer seals to make room; the flush that follows gives pages back.
      this.#context.control.setPagesWanted(true);
      this.#context.threadBells[THREAD_WRITE].ring();
      return false;
    }
    if (this.#waitTicks >= 0) this.#endWait();
    record.number = this.#nextNumber;
    this.#nextNumber = (this.#nextNumber + 1) >>> 0;
    let flags = record.sync ? RECORD_SYNC : 0;
    if (bytes > pageBytes) flags |= RECORD_CHAINED;
    if (record.hasRanges) flags |= RECORD_RANGES;
    if (this.#isResending) {
      flags |= RECORD_RESENT;
      this.#isResending = false;
    }
    if (conditions !== 0) this.#conditionalCount++;
    const { u32 } = this.#records.ring;
    u32[slot + KIND_WORD] = MSG_RECORD;
    u32[slot + RECORD.NUMBER] = record.number;
    u32[slot + RECORD.ADDRESS] = record.address;
    u32[slot + RECORD.PAYLOAD_BYTES] = bytes;
    u32[slot + RECORD.TX_COUNT] = record.transactions;
    u32[slot + RECORD.PAYLOAD_CRC] = record.payloadCrc;
    u32[slot + RECORD.OPERATIONS] = record.operations;
    u32[slot + RECORD.FLAGS] = flags;
    u32[slot + RECORD.CONDITIONS] = conditions;
    this.#outstanding.push(record);
    this.#records.send();
    return true;
  }

  #beginWait(): void {
    if (this.#waitTicks >= 0) return;
    const { clock } = this.#context;
    this.#waitTicks = clock.ticksMs();
    this.#waitMs = clock.nowMs();
    this.#waitNumber++;
  }

  #endWait(): void {
    const ms = this.#context.clock.ticksMs() - this.#waitTicks;
    this.#waitTicks = -1;
    this.#counters.add(STALLS_FOR_MEMORY, 1);
    this.#counters.add(STALL_MS_FOR_MEMORY, ms);
    if (ms < stallMs) return;
    const { count } = this.#longWait;
    this.#longWait = { count: count + 1, what: CAUSE_MEMORY, sinceMs: this.#waitMs, ms };
  }

  /** Whether commits of this thread wait for memory now; what they wait for, the keeper may know better. */
  get wait(): StallWords {
    const { what } = this.#context.control.stall(ACTOR_KEEPER, STALL_WAIT);
    return {
      what: this.#waitTicks < 0 ? 0 : what === 0 ? CAUSE_MEMORY : what,
      number: this.#waitNumber,
      sinceMs: this.#waitMs,
    };
  }

  /** The last long wait that is over. */
  get longWait(): LongStall {
    return this.#longWait;
  }

  /** Lays the payload into pages; its address stays 0 when there is none. */
  #lay(record: PendingRecord, payload: Uint8Array): void {
    const bytes = record.payloadBytes;
    record.address =
      bytes > pageBytes ? this.#layLarge(record, payload) : this.#laySmall(record, payload, bytes);
    if (record.address !== 0) record.payloadCrc = crc32(payload, 0, bytes);
  }

  /**
   * Lays the conditions; 0 when there is no page. The sequencer alone reads them, until the receipt. Those of
   * a record given back keep their place: for want of a page it could never be sent again.
   */
  #layConditions(record: PendingRecord): number {
    const { pool, arena } = this.#context;
    const conditions = record.conditions!;
    const { size } = conditions;
    if (record.conditionsAddress !== 0) {
      conditions.lay(arena.u8, record.conditionsAddress);
      return record.conditionsAddress;
    }
    let page = this.#conditionsPage;
    if (page === undefined || this.#conditionsAt + size > page.address + pageBytes) {
      const fresh = pool.lease(KIND_RECORD);
      if (fresh === 0) return 0;
      pool.retain(fresh);
      // The one before goes with the last of its receipts.
      page = { address: fresh, chained: false, open: true, pending: 0 };
      this.#conditionsPage = page;
      this.#conditionsAt = fresh;
    }
    const at = this.#conditionsAt;
    conditions.lay(arena.u8, at);
    this.#conditionsAt += size;
    page.pending++;
    record.conditionsPage = page;
    record.conditionsAddress = at;
    return at;
  }

  #dropConditions(record: PendingRecord): void {
    const page = record.conditionsPage;
    invariant(page !== undefined, 'conditions that were laid');
    record.conditionsPage = undefined;
    record.conditionsAddress = 0;
    page.pending--;
    if (page.pending > 0) return;
    if (page === this.#conditionsPage) this.#conditionsPage = undefined;
    this.#releasePage(page);
  }

  #laySmall(record: PendingRecord, payload: Uint8Array, bytes: number): number {
    const { pool, arena } = this.#context;
    let page = this.#page;
    if (page === undefined || this.#pageAt + bytes > page.address + pageBytes) {
      const fresh = pool.lease(KIND_RECORD);
      if (fresh === 0) return 0;
      pool.retain(fresh);
      this.#closePage();
      page = { address: fresh, chained: false, open: true, pending: 0 };
      this.#page = page;
      this.#pageAt = fresh;
    }
    const at = this.#pageAt;
    if (bytes === payload.length) arena.u8.set(payload, at);
    else arena.u8.set(payload.subarray(0, bytes), at);
    this.#pageAt += bytes;
    page.pending++;
    record.page = page;
    return at;
  }

  #layLarge(record: PendingRecord, payload: Uint8Array): number {
    const { pool, arena } = this.#context;
    if (pool.freePages(KIND_RECORD) < pagesFor(record.payloadBytes)) return 0;
    const address = layChained(arena, pool, payload, 0, record.transactions);
    if (address !== 0) record.page = { address, chained: true, open: false, pending: 1 };
    return address;
  }

  #closePage(): void {
    const page = this.#page;
    if (page === undefined) return;
    this.#page = undefined;
    page.open = false;
    if (page.pending === 0) this.#releasePage(page);
  }

  #releasePage(page: OpenPage): void {
    if (page.chained) releaseChain(this.#context.pool, page.address);
    else this.#context.pool.release(page.address);
  }

  /**
   * Takes receipts, settles what the frontiers have passed, pushes what waited. Called on every wake-up.
   * True when it pushed something.
   */
  poll(): boolean {
    this.#takeReceipts();
    const { control } = this.#context;
    this.#untilWritten = settle(this.#untilWritten, control.written(), SETTLE_BYTES_MAX);
    this.#untilDurable = settle(this.#untilDurable, control.durable(), SETTLE_BYTES_MAX);
    let pushed = this.#waiting.length > 0 && this.#pushWaiting();
    if (this.#waitTicks >= 0 && this.wait.what === CAUSE_DISK) this.#refuseWaiting();
    // What may yet be given back goes before the end.
    const isDrained = this.#conditionalCount === 0 && this.#returned.length === 0;
    const isEmpty = this.#waiting.length === 0 && this.#staged === undefined;
    if (this.#closeWanted && isEmpty && isDrained) {
      const slot = this.#records.claim();
      if (slot >= 0) {
        this.#records.ring.u32[slot + KIND_WORD] = MSG_CLOSE;
        this.#records.send();
        this.#closeWanted = false;
        pushed = true;
      }
    }
    if (control.state() === STATE_POISONED) this.#fail();
    if (this.#roomWaiters.length > 0 && this.hasRoom) {
      for (const waiter of this.#roomWaiters.splice(0)) waiter();
    }
    if (this.#wasFull && this.hasRoom) {
      this.#wasFull = false;
      this.onRoom?.();
    }
    return pushed;
  }

  #takeReceipts(): void {
    const { u32 } = this.#receipts;
    for (let slot = this.#receipts.peek(); slot >= 0; slot = this.#receipts.peek()) {
      const record = this.#outstanding.shift();
      invariant(
        record !== undefined && record.number === u32[slot + RECEIPT.NUMBER],
        'receipts come in order',
        u32[slot + RECEIPT.NUMBER],
      );
      const refusal = u32[slot + RECEIPT.REFUSAL];
      if (record.conditions !== undefined) {
        this.#conditionalCount--;
        if (refusal === REFUSAL_AGAIN) record.conditions.onTooOld();
        else this.#dropConditions(record);
      }
      if (refusal !== 0) {
        if (refusal === REFUSAL_AGAIN) this.#returned.push(record);
        else this.#forget(record, refusalOf(record, refusal, u32, slot));
        this.#receipts.pop();
        continue;
      }
      for (const run of record.onReceipt) run();
      record.first = getWide(u32, slot + RECEIPT.OFFSET);
      this.#receipts.pop();
      this.#letGoOfPage(record);
      if (record.sync) this.#untilDurable.push(record);
      else this.#untilWritten.push(record);
    }
    if (this.#returned.length > 0 && this.#outstanding.length === 0) this.#takeBack();
  }

  /** Everything from the first record given back on is here again, and goes before what waits. */
  #takeBack(): void {
    for (const record of this.#returned) {
      this.#waitingBytes += record.payloadBytes;
      this.#waitingTransactions += record.transactions;
    }
    this.#waiting = [...this.#returned, ...this.#waiting];
    this.#returned = [];
    this.#isResending = true;
  }

  #letGoOfPage(record: PendingRecord): void {
    const { page } = record;
    invariant(page !== undefined, 'a pushed record lies in a page');
    page.pending--;
    if (!page.open && page.pending === 0) this.#releasePage(page);
  }

  /** The record is not to be: nothing of it is claimed. An array has an error for each transaction. */
  #forget(record: PendingRecord, error: Refusal): void {
    if (record.page !== undefined) this.#letGoOfPage(record);
    if (record.conditionsPage !== undefined) this.#dropConditions(record);
    rejectAll(record, error);
  }

  #pushWaiting(): boolean {
    let pushed = 0;
    for (const record of this.#waiting) {
      const { payload, conditions } = record;
      invariant(payload !== undefined || record.address !== 0, 'a waiting record has its payload');
      if (conditions !== undefined) {
        if (!this.#hasSlot(1)) break;
        const broken = conditions.lookAgain();
        if (broken !== undefined) {
          this.#forget(record, broken);
          this.#waitingBytes -= record.payloadBytes;
          this.#waitingTransactions -= record.transactions;
          pushed++;
          continue;
        }
      }
      if (!this.#push(record, payload ?? NO_BYTES)) break;
      record.payload = undefined;
      this.#waitingBytes -= record.payloadBytes;
      this.#waitingTransactions -= record.transactions;
      pushed++;
    }
    if (pushed > 0) this.#waiting.splice(0, pushed);
    return pushed > 0;
  }

  /** Memory comes free with a flush, and that finds the disk full: nothing of what waits is claimed. */
  #refuseWaiting(): void {
    const code = 'TIDEMARK_NO_SPACE';
    for (const record of this.#waiting) {
      this.#counters.add(REFUSED_FOR_SPACE, 1);
      this.#forget(record, new TidemarkError(code, describeCode(code)));
    }
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#waitingTransactions = 0;
    this.#endWait();
  }

  /** Throws while a codec of the caller's runs in the middle of a put: what ends the record would cut it in two. */
  assertNotEncoding(): void {
    this.#stage.assertNotEncoding();
  }

  /** Resolves when everything committed so far has its place in the order. Throws while a codec runs. */
  sequenced(): Promise<void> {
    this.assertNotEncoding();
    this.#flush();
    const last = this.#waiting.at(-1) ?? this.#outstanding.at(-1) ?? this.#returned.at(-1);
    if (last === undefined) return Promise.resolve();
    return new Promise((resolve) => {
      last.onReceipt.push(resolve);
      this.#onPending();
    });
  }

  /** Resolves when commits go straight through. */
  room(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.hasRoom) return Promise.resolve();
    return new Promise((resolve) => {
      this.#roomWaiters.push(resolve);
      this.#onPending();
    });
  }

  /** As `hasRoom`; who is told no may listen for the event `room`. */
  askRoom(): boolean {
    const { hasRoom } = this;
    if (!hasRoom) this.#wasFull = true;
    return hasRoom;
  }

  /** The record of this turn can be pushed, and one more. */
  get hasRoom(): boolean {
    return this.#waiting.length === 0 && this.#hasSlot(this.#staged === undefined ? 1 : 2);
  }

  #hasSlot(count: number): boolean {
    return (
      this.#returned.length === 0 &&
      this.#outstanding.length + count <= this.#outstandingMax &&
      this.#records.ring.room(count) >= count
    );
  }

  #checkRoom(): void {
    if (this.#failure !== undefined) throw this.#failure;
    const { control } = this.#context;
    const state = control.state();
    if (state !== STATE_OPEN) throw this.stateError(state);
    if (
      this.#waitingTransactions >= waitingTransactionsMax ||
      this.#waitingBytes >= waitingBytesMax
    ) {
      this.#counters.add(REFUSED_BUSY, 1);
      throw new TidemarkError('TIDEMARK_BUSY', 'too many commits wait for room; await room()', {
        transactions: this.#waitingTransactions,
        bytes: this.#waitingBytes,
      });
    }
  }

  /** The error that a closed, closing or poisoned engine answers with. */
  stateError(state: number): TidemarkError {
    if (state === STATE_POISONED) return poisonedError(this.#context);
    const what = state === STATE_CLOSING ? 'closing' : 'closed';
    return new TidemarkError('TIDEMARK_CLOSED', `the engine is ${what}`);
  }

  /** Hands over everything committed so far, then the end of the line. */
  close(): void {
    this.#flush();
    this.#closeWanted = true;
    this.poll();
  }

  /** The engine is poisoned: what is durable stands, of the rest nothing is claimed. */
  #fail(): void {
    if (this.#failure !== undefined) return;
    const failure = poisonedError(this.#context);
    this.#failure = failure;
    const durable = this.#context.control.durable();
    this.#untilDurable = settle(this.#untilDurable, durable, Infinity);
    this.#untilWritten = settle(this.#untilWritten, durable, Infinity);
    const unknown = new TidemarkError(
      'TIDEMARK_OUTCOME_UNKNOWN',
      `the engine failed before this commit was durable: ${failure.message}`,
      { durableUpper: durable, failure: failure.detail },
      failure.cause,
    );
    for (const record of [...this.#untilDurable, ...this.#untilWritten, ...this.#outstanding]) {
      rejectAll(record, unknown);
    }
    // What was given back has no offset, as what was never sent.
    for (const record of [...this.#returned, ...this.#waiting]) rejectAll(record, failure);
    this.#untilDurable = [];
    this.#untilWritten = [];
    this.#outstanding.length = 0;
    this.#conditionalCount = 0;
    this.#returned = [];
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#waitingTransactions = 0;
    this.#closeWanted = false;
    for (const waiter of this.#roomWaiters.splice(0)) waiter();
  }

  /** Gives back the page in use; from now on every commit is refused. Requires: nothing is pending. */
  dispose(over: TidemarkError): void {
    this.#failure ??= over;
    this.#closePage();
  }
}

/**
 * Resolves records wholly below `upper`, until `bytesMax` of payload have been; returns the rest.
 * Records are in offset order.
 */
function settle(records: PendingRecord[], upper: number, bytesMax: number): PendingRecord[] {
  let done = 0;
  let bytes = 0;
  for (const record of records) {
    if (record.first + record.transactions > upper || bytes >= bytesMax) break;
    bytes += record.payloadBytes;
    const { told, first } = record;
    for (let i = 0; i < told.length; i++) {
      const one = told[i];
      if (typeof one === 'function') one({ offset: first + i });
      else one.onCommitted(first + i);
    }
    done++;
  }
  return done === 0 ? records : records.slice(done);
}

function tooManyOperations(count: number, limit: number): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_TOO_LARGE',
    `a commit has ${count} operations, and ${limit} fit the memory`,
    { what: 'operations', count, limit },
  );
}

function isSettled(record: PendingRecord | undefined, upper: number): boolean {
  return record !== undefined && record.first + record.transactions <= upper;
}

function refusalOf(
  record: PendingRecord,
  refusal: number,
  u32: Uint32Array,
  slot: number,
): Refusal {
  const code = codeOfNumber(refusal);
  const { conditions } = record;
  if (code !== 'TIDEMARK_CONFLICT' || conditions === undefined) {
    return new TidemarkError(code, describeCode(code));
  }
  const isAbsent = u32[slot + RECEIPT.ABSENT] === 1;
  const offset = isAbsent ? null : getWide(u32, slot + RECEIPT.OFFSET);
  return conditions.conflict(u32[slot + RECEIPT.CONDITION], offset);
}

function rejectAll(record: PendingRecord, refusal: Refusal): void {
  for (const run of record.onReceipt) run();
  for (const [i, told] of record.told.entries()) {
    const error = refusal instanceof Error ? refusal : refusal[i];
    if (typeof told !== 'function') {
      told.onRefused(error);
      continue;
    }
    // A commit that nobody awaits must not end the process when it fails.
    record.promises[i]!.catch(ignore);
    record.rejects[i]!(error);
  }
}

/** A commit that was refused at once. It may go unheard, unless the fault is in the caller's code. */
export function refusedNow(error: unknown): Promise<never> {
  const refused = Promise.reject(error);
  if (error instanceof TidemarkError) refused.catch(ignore);
  return refused;
}

/** TIDEMARK_POISONED, with the failure that caused it. */
export function poisonedError(context: ActorContext): TidemarkError {
  const plain = JSON.parse(context.control.failureJson()) as PlainError;
  return new TidemarkError(
    'TIDEMARK_POISONED',
    `the engine failed and must be reopened: ${plain.message}`,
    { ...plain.detail, code: plain.code },
    fromPlainError(plain),
  );
}

function ignore(): void {}
