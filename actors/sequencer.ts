/**
 * The one authority on order: takes clients' records, stamps offsets, inserts into the open
 * generation, publishes `applied`, passes the record down the line. Accepts or refuses a record whole;
 * never edits one, never touches a disk. Owns the generations: the open one, a spare that the view
 * already names, and sealed ones until no reader can see them.
 *
 *   from        kind                 what happens
 *   client      RECORD               conditions checked, stamped, inserted, published, sent down the
 *                                    line; RECEIPT back
 *   client      CLOSE                drained, then sent down the line
 *   durability  REPLAY_BEGIN         generations are made; records come with their offsets
 *   durability  RECORD (replay ring) inserted and published, nothing stamped or answered
 *   durability  REPLAY_END           stamping begins
 *   keeper      SPARE_PUBLISHED      the spare may take over
 *   keeper      SEAL                 seals what is open; EMPTY when it holds nothing
 *   keeper      FREE                 a sealed generation goes
 */
import { invariant } from '../core/base/assert.ts';
import { codeNumber, TidemarkError } from '../core/base/errors.ts';
import { MiB } from '../core/base/limits.ts';
import { recordBytes } from '../core/log/record.ts';
import {
  CONDITIONS_MET,
  CONDITIONS_UNKNOWN,
  ConditionChecker,
} from '../core/memtable/conditions.ts';
import { Overtaken } from '../core/memtable/overtaken.ts';
import { GenerationWriter, maintainFuel } from '../core/memtable/writer.ts';
import type { GenerationOptions } from '../core/memtable/writer.ts';
import { KIND_RECORD } from '../core/shared/buffer-pool.ts';
import { ACTOR_KEEPER, ACTOR_SEQUENCER, STALL_WAIT } from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import { OperationWalker, pageOf } from '../core/shared/record-pages.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { Actor, ActorContext } from './actor.ts';
import { SEQUENCER_COUNTERS, indexIn, makeCounters } from './counters.ts';
import {
  BOUND,
  GENERATION,
  KIND_WORD,
  MSG_BOUND,
  MSG_CLOSE,
  MSG_EMPTY,
  MSG_FREE,
  MSG_OPENED,
  MSG_RECEIPT,
  MSG_RECORD,
  MSG_REPLAY_BEGIN,
  MSG_REPLAY_END,
  MSG_SEAL,
  MSG_SEALED,
  MSG_SPARE,
  MSG_SPARE_PUBLISHED,
  RECEIPT,
  RECORD,
  RECORD_RANGES,
  RECORD_RESENT,
  REFUSAL_AGAIN,
  REPLAY,
  getWide,
  setWide,
} from './messages.ts';
import { generationRows } from './options.ts';
import { Pace } from './pace.ts';
import { CAUSE_DISK, CAUSE_FLUSH, CAUSE_LOG, CAUSE_MEMORY, Waits } from './stalls.ts';
import { THREAD_BACKGROUND, THREAD_WRITE } from './topology.ts';

/** Records taken from one ring before the next has its turn, and in one tick. */
const RECORDS_PER_TICK = 64;
/**
 * Operations after which a tick of a buffered engine ends, a few milliseconds of them: what it took is in the
 * log, and its callers have heard of it, before the next. Large records come one by one then and not by the
 * ring. In a synced engine callers wait for the sync, which had better be one for all that there is.
 */
const OPERATIONS_PER_TICK = 2_048;

const RECORDS: number = indexIn(SEQUENCER_COUNTERS, 'records');
const TRANSACTIONS: number = indexIn(SEQUENCER_COUNTERS, 'transactions');
const OPERATIONS: number = indexIn(SEQUENCER_COUNTERS, 'operations');
const REFUSED: number = indexIn(SEQUENCER_COUNTERS, 'refused');
const SEALS: number = indexIn(SEQUENCER_COUNTERS, 'seals');
const RESENT: number = indexIn(SEQUENCER_COUNTERS, 'resent');
const REFUSED_FOR_CONFLICT: number = indexIn(SEQUENCER_COUNTERS, 'refusedForConflict');
const REFUSED_FOR_SPACE: number = indexIn(SEQUENCER_COUNTERS, 'refusedForSpace');
const PACED: number = indexIn(SEQUENCER_COUNTERS, 'paced');
const PACED_MS: number = indexIn(SEQUENCER_COUNTERS, 'pacedMs');
const CLOCK_HELD_BACK: number = indexIn(SEQUENCER_COUNTERS, 'clockHeldBack');
const CLOCK_HELD_BACK_MS: number = indexIn(SEQUENCER_COUNTERS, 'clockHeldBackMs');

/** Of the first flush, before one has told: half of what a core and a disk do that have nothing else to do. */
const FLUSH_BYTES_PER_SECOND_LIKELY: number = 32 * MiB;

/** What became of one attempt to take a record. */
const TAKEN = 0;
const BLOCKED = 1;

export class Sequencer implements Actor {
  readonly number: number = ACTOR_SEQUENCER;
  readonly #context: ActorContext;
  readonly #clients: RingConsumer[];
  readonly #receipts: Outbox[];
  readonly #replay: RingConsumer;
  readonly #line: Outbox;
  readonly #fromKeeper: RingConsumer;
  readonly #keeper: Outbox;
  readonly #counters: Counters;
  readonly #waits: Waits;
  readonly #walker: OperationWalker;
  readonly #overtaken: Overtaken;
  readonly #checker: ConditionChecker;
  readonly #generationOptions: GenerationOptions;

  /** First offset not given out. */
  #next = 0;
  /** Bytes of records passed on, headers included; and how many may be, as the log last said. */
  #ordered = 0;
  #credit = 0;
  #epoch = 0;
  #atMs = 0;
  /** False until the log is replayed: then records are stamped. */
  #live = false;
  #started = false;
  #closing = false;
  /** Token of the keeper's wish to seal, 0 = none. */
  #sealWanted = 0;
  #maintaining = false;
  #open: GenerationWriter | undefined;
  #spare: GenerationWriter | undefined;
  /** The keeper's view names the spare. */
  #sparePublished = false;
  readonly #sealed: Map<number, GenerationWriter> = new Map();
  /** Record pages of the sealed ones; and how many the last one had for each of its bytes. */
  #sealedPages = 0;
  #pagesPerByte = 0;
  readonly #pace: Pace;
  /** A record waits for the pace since then; -1: none does. */
  #pacedAt = -1;
  /** Every change from here on is in a generation that is held. */
  #heldFrom = 0;
  /** Clients whose records are refused until they send again what was refused first; and how many. */
  readonly #isRewound: boolean[];
  #rewound = 0;
  #turn = 0;

  constructor(context: ActorContext) {
    const { topology } = context;
    this.#context = context;
    this.#clients = topology.clients.map((client) => inboxOf(context, client.records));
    this.#receipts = topology.clients.map(
      (client, i) => new Outbox(context, client.receipts, context.clientBells[i]),
    );
    this.#replay = inboxOf(context, topology.replay);
    this.#line = new Outbox(context, topology.line, context.threadBells[THREAD_WRITE]);
    this.#fromKeeper = inboxOf(context, topology.keeperToSequencer);
    this.#keeper = new Outbox(
      context,
      topology.sequencerToKeeper,
      context.threadBells[THREAD_BACKGROUND],
    );
    this.#counters = makeCounters(
      context.arena,
      topology.counters[ACTOR_SEQUENCER],
      SEQUENCER_COUNTERS,
    );
    this.#waits = new Waits(context, ACTOR_SEQUENCER, this.#counters, SEQUENCER_COUNTERS);
    this.#walker = new OperationWalker(context.arena, context.pool);
    this.#overtaken = new Overtaken(context.arena);
    this.#checker = new ConditionChecker(context.arena, context.pool);
    this.#isRewound = topology.clients.map(() => false);
    const bytes = context.config.memtableBytes;
    this.#generationOptions = { bytes, rows: generationRows(bytes) };
    this.#pace = new Pace((bytes * 1_000) / FLUSH_BYTES_PER_SECOND_LIKELY);
  }

  tick(): boolean {
    let worked = this.#takeKeeperMessages();
    if (!this.#started) return this.#takeReplay() || worked;
    worked = this.#provideSpare() || worked;
    worked = this.#sealIfAsked() || worked;
    worked = (this.#live ? this.#takeRecords() : this.#takeReplay()) || worked;
    if (this.#maintaining) {
      // Sorting for range reads, in slices between records.
      this.#maintaining = this.#open!.maintain(maintainFuel);
      worked = true;
    }
    return worked;
  }

  idle(): number {
    return this.#pacedAt < 0 ? Infinity : this.#pace.waitMs(this.#context.clock.ticksMs());
  }

  publish(): void {
    this.#counters.publish();
  }

  onClose(): void {
    // The arena's pages are given back as a whole when the next engine resets the pool.
  }

  #takeKeeperMessages(): boolean {
    let worked = false;
    const { u32 } = this.#fromKeeper;
    for (let slot = this.#fromKeeper.peek(); slot >= 0; slot = this.#fromKeeper.peek()) {
      const address = u32[slot + GENERATION.ADDRESS];
      switch (u32[slot + KIND_WORD]) {
        case MSG_SPARE_PUBLISHED:
          invariant(this.#spare?.header === address, 'the spare that was offered', address);
          this.#sparePublished = true;
          break;
        case MSG_FREE: {
          const generation = this.#sealed.get(address);
          invariant(generation !== undefined, 'a sealed generation is freed once', address);
          this.#sealed.delete(address);
          this.#context.control.setSealed(this.#sealed.size);
          this.#heldFrom = Math.max(this.#heldFrom, generation.upper);
          this.#sealedPages -= generation.recordPages;
          generation.free();
          this.#pace.onFreed(this.#context.clock.ticksMs(), this.#sealed.size > 0);
          // Whoever waits for pages may go on, or say again that these were too few.
          this.#context.control.setPagesWanted(false);
          this.#ringClients();
          break;
        }
        case MSG_SEAL:
          this.#sealWanted = u32[slot + GENERATION.TOKEN]!;
          break;
        default:
          invariant(false, 'a message of the keeper', u32[slot + KIND_WORD]);
      }
      this.#fromKeeper.pop();
      worked = true;
    }
    return worked;
  }

  #ringClients(): void {
    const { clientBells, control } = this.#context;
    const count = control.clients();
    for (let i = 0; i < count; i++) clientBells[i].ring();
  }

  /** Keeps a spare ready and offered, so that a full generation is never waited for. */
  #provideSpare(): boolean {
    if (this.#spare !== undefined || this.#closing) return false;
    if (this.#keeper.ring.room(1) === 0) return false;
    const { arena, pool } = this.#context;
    const spare = GenerationWriter.create(arena, pool, this.#generationOptions);
    // Out of pages: a flush will give some back and ring.
    if (spare === undefined) return false;
    this.#spare = spare;
    this.#tellKeeper(MSG_SPARE, spare.header, 0, 0);
    return true;
  }

  #sealIfAsked(): boolean {
    // The line has ended: no bound may follow.
    if (this.#closing) return false;
    const { control } = this.#context;
    const open = this.#open!;
    if (this.#sealWanted !== 0) {
      if (open.rows > 0) {
        if (!this.#canSeal()) return false;
        this.#seal(this.#sealWanted);
      } else {
        if (this.#keeper.ring.room(1) === 0) return false;
        this.#tellKeeper(MSG_EMPTY, 0, this.#next, this.#next, this.#sealWanted);
      }
      this.#sealWanted = 0;
      return true;
    }
    // Somebody found no page. What is sealed will give pages back; with nothing sealed, seal. The wish
    // stands until pages come free: that it is said again while nothing can be done is no work.
    if (!control.pagesWanted() || this.#sealed.size > 0 || open.rows === 0) return false;
    if (!this.#canSeal()) return false;
    this.#seal();
    return true;
  }

  #canSeal(): boolean {
    return this.#sparePublished && this.#keeper.ring.room(1) > 0 && this.#line.ring.room(2) >= 2;
  }

  /** Why a full generation cannot give way: the keeper may know better than that it is not flushed. */
  #causeOfNoRoom(): number {
    if (this.#sealed.size === 0) return CAUSE_MEMORY;
    const { what } = this.#context.control.stall(ACTOR_KEEPER, STALL_WAIT);
    return what === 0 ? CAUSE_FLUSH : what;
  }

  /** Requires: `#canSeal`. The spare takes over; readers know it already. */
  #seal(token = 0): void {
    const sealed = this.#open;
    const spare = this.#spare;
    invariant(sealed !== undefined && spare !== undefined, 'something to seal and to open');
    sealed.seal(this.#next);
    this.#sealed.set(sealed.header, sealed);
    this.#context.control.setSealed(this.#sealed.size);
    this.#sealedPages += sealed.recordPages;
    this.#pagesPerByte = sealed.recordPages / Math.max(1, sealed.bytes);
    this.#pace.onSealed(this.#context.clock.ticksMs());
    spare.open(this.#next);
    this.#open = spare;
    this.#spare = undefined;
    this.#sparePublished = false;
    this.#counters.add(SEALS, 1);
    const slot = this.#line.claim();
    const { u32 } = this.#line.ring;
    u32[slot + KIND_WORD] = MSG_BOUND;
    setWide(u32, slot + BOUND.UPPER, this.#next);
    this.#line.send();
    this.#tellKeeper(MSG_SEALED, sealed.header, sealed.lower, sealed.upper, token);
  }

  #tellKeeper(kind: number, address: number, lower: number, upper: number, token = 0): void {
    const slot = this.#keeper.claim();
    invariant(slot >= 0, 'room in the ring to the keeper was looked for');
    const { u32 } = this.#keeper.ring;
    u32[slot + KIND_WORD] = kind;
    u32[slot + GENERATION.ADDRESS] = address;
    setWide(u32, slot + GENERATION.LOWER, lower);
    setWide(u32, slot + GENERATION.UPPER, upper);
    u32[slot + GENERATION.TOKEN] = token;
    this.#keeper.send();
  }

  #takeRecords(): boolean {
    let taken = 0;
    let operations = 0;
    let blocked = false;
    let closeSeen = -1;
    const { config, control } = this.#context;
    const operationsMax = config.synced ? Infinity : OPERATIONS_PER_TICK;
    // The log takes back what it cannot keep.
    this.#credit = control.room();
    const clients = control.clients();
    for (let i = 0; i < clients && !blocked; i++) {
      const client = (this.#turn + i) % clients;
      const inbox = this.#clients[client];
      for (let slot = inbox.peek(); slot >= 0; slot = inbox.peek()) {
        if (taken === RECORDS_PER_TICK || operations >= operationsMax) {
          blocked = true;
          break;
        }
        if (inbox.u32[slot + KIND_WORD] === MSG_CLOSE) {
          closeSeen = client;
          break;
        }
        operations += inbox.u32[slot + RECORD.OPERATIONS];
        if (this.#takeRecord(client, inbox, slot) === BLOCKED) {
          blocked = true;
          break;
        }
        inbox.pop();
        taken++;
      }
    }
    this.#turn++;
    // The engine closes when every ring was drained; records behind a CLOSE do not exist.
    if (closeSeen >= 0 && taken === 0 && !blocked && this.#line.ring.room(1) > 0) {
      this.#clients[closeSeen].pop();
      this.#closing = true;
      const slot = this.#line.claim();
      this.#line.ring.u32[slot + KIND_WORD] = MSG_CLOSE;
      this.#line.send();
      return true;
    }
    return taken > 0;
  }

  #takeRecord(client: number, inbox: RingConsumer, slot: number): number {
    const { control, clock } = this.#context;
    const { u32 } = inbox;
    invariant(u32[slot + KIND_WORD] === MSG_RECORD, 'a client sends records', client);
    if (
      (u32[slot + RECORD.CONDITIONS] | this.#rewound) !== 0 &&
      this.#turnsAway(client, u32, slot)
    ) {
      return TAKEN;
    }
    const isPaced = this.#sealed.size > 0 || this.#pacedAt >= 0;
    if (isPaced && this.#isTooSoon()) return BLOCKED;
    // One slot for the record, one kept for the bound of a seal.
    if (this.#line.ring.room(2) < 2) {
      this.#waits.begin(CAUSE_LOG);
      return BLOCKED;
    }
    const operations = u32[slot + RECORD.OPERATIONS];
    const payloadBytes = u32[slot + RECORD.PAYLOAD_BYTES];
    const ordered = this.#ordered + recordBytes(payloadBytes);
    if (ordered > this.#credit && !this.#hasCredit(ordered)) {
      if (!control.hasSpace()) return this.#refuseForSpace(client, u32, slot);
      this.#waits.begin(CAUSE_LOG);
      return BLOCKED;
    }
    if (!this.#makeRoom(operations, payloadBytes)) {
      const cause = this.#causeOfNoRoom();
      // What is flushed finds no room on the disk: waiting for it might last for ever.
      if (cause === CAUSE_DISK) return this.#refuseForSpace(client, u32, slot);
      this.#waits.begin(cause);
      return BLOCKED;
    }
    this.#waits.end();
    this.#ordered = ordered;
    const first = this.#next;
    const txCount = u32[slot + RECORD.TX_COUNT];
    this.#stamp(clock.nowMs());
    const hasRanges = (u32[slot + RECORD.FLAGS] & RECORD_RANGES) !== 0;
    const before = this.#open!.bytes;
    this.#insert(u32[slot + RECORD.ADDRESS], txCount, first, hasRanges);
    if (this.#sealed.size > 0) this.#keepPace(this.#open!.bytes - before);

    const out = this.#line.claim();
    for (let word = 0; word < RECORD.OFFSET; word++) u32[out + word] = u32[slot + word]!;
    setWide(u32, out + RECORD.OFFSET, first);
    u32[out + RECORD.EPOCH] = this.#epoch;
    setWide(u32, out + RECORD.AT_MS, this.#atMs);
    this.#line.send();
    this.#answer(client, u32[slot + RECORD.NUMBER], first, 0);
    this.#counters.add(RECORDS, 1);
    this.#counters.add(TRANSACTIONS, txCount);
    this.#counters.add(OPERATIONS, operations);
    return TAKEN;
  }

  /** Flushes are behind, and the record before was not long ago. */
  #isTooSoon(): boolean {
    const nowMs = this.#context.clock.ticksMs();
    const isEarly = this.#pace.waitMs(nowMs) > 0;
    if (isEarly && this.#pacedAt < 0) {
      this.#pacedAt = nowMs;
      this.#counters.add(PACED, 1);
    } else if (!isEarly && this.#pacedAt >= 0) {
      this.#counters.add(PACED_MS, nowMs - this.#pacedAt);
      this.#pacedAt = -1;
    }
    return isEarly;
  }

  /** A record took so many bytes while something is sealed. What is left: of the generations, and of pages. */
  #keepPace(bytes: number): void {
    const { clock, pool } = this.#context;
    const open = this.#open!;
    const spareBytes = this.#spare === undefined ? 0 : this.#generationOptions.bytes;
    const left = open.bytesLeft + spareBytes + bytes;
    const pagesLeft = pool.limitPages(KIND_RECORD) - this.#sealedPages - open.recordPages;
    const pages = bytes * this.#pagesPerByte;
    const share = Math.max(bytes / left, pages / Math.max(pages, pagesLeft));
    this.#pace.onTaken(clock.ticksMs(), share);
  }

  /** The log has room for all up to `ordered`, as it last said. */
  #hasCredit(ordered: number): boolean {
    const { control } = this.#context;
    this.#credit = control.room();
    if (ordered <= this.#credit) return true;
    if (control.roomWanted() !== ordered) control.setRoomWanted(ordered);
    return false;
  }

  /** Nothing of it is claimed; it may be tried again when there is room on the disk. */
  #refuseForSpace(client: number, u32: Uint32Array, slot: number): number {
    this.#answer(client, u32[slot + RECORD.NUMBER], 0, codeNumber('TIDEMARK_NO_SPACE'));
    this.#counters.add(REFUSED, 1);
    this.#counters.add(REFUSED_FOR_SPACE, 1);
    this.#waits.end();
    return TAKEN;
  }

  /** The time of the next record: a clock set back waits until it has caught up. */
  #stamp(nowMs: number): void {
    const behindMs = this.#atMs - nowMs;
    if (behindMs > 0) {
      this.#counters.add(CLOCK_HELD_BACK, 1);
      this.#counters.set(CLOCK_HELD_BACK_MS, behindMs);
      return;
    }
    this.#atMs = nowMs;
    this.#counters.set(CLOCK_HELD_BACK_MS, 0);
  }

  /** Answers a record whose conditions do not hold, or that must not overtake one sent again. */
  #turnsAway(client: number, u32: Uint32Array, slot: number): boolean {
    const number = u32[slot + RECORD.NUMBER];
    if (this.#isRewound[client]) {
      if ((u32[slot + RECORD.FLAGS] & RECORD_RESENT) === 0) {
        this.#answer(client, number, 0, REFUSAL_AGAIN);
        this.#counters.add(RESENT, 1);
        return true;
      }
      this.#isRewound[client] = false;
      this.#rewound--;
    }
    const conditions = u32[slot + RECORD.CONDITIONS];
    if (conditions === 0) return false;
    const checker = this.#checker;
    const open = this.#open!.header;
    const outcome = checker.check(conditions, this.#heldFrom, this.#sealed, open);
    if (outcome === CONDITIONS_MET) return false;
    if (outcome === CONDITIONS_UNKNOWN) {
      this.#isRewound[client] = true;
      this.#rewound++;
      this.#answer(client, number, 0, REFUSAL_AGAIN);
      this.#counters.add(RESENT, 1);
      return true;
    }
    // Into the slot that the answer will claim and send.
    const receipts = this.#receipts[client];
    const answer = receipts.claim();
    receipts.ring.u32[answer + RECEIPT.CONDITION] = checker.index;
    receipts.ring.u32[answer + RECEIPT.ABSENT] = checker.isDelete ? 1 : 0;
    this.#answer(client, number, checker.time, codeNumber('TIDEMARK_CONFLICT'));
    this.#counters.add(REFUSED, 1);
    this.#counters.add(REFUSED_FOR_CONFLICT, 1);
    return true;
  }

  /** The open generation can take the record, sealing it if it must; false = wait. */
  #makeRoom(operations: number, payloadBytes: number): boolean {
    let open = this.#open!;
    if (open.roomFor(operations, payloadBytes)) return true;
    if (open.rows === 0 || !this.#canSeal()) return false;
    this.#seal();
    open = this.#open!;
    return open.roomFor(operations, payloadBytes);
  }

  /**
   * Requires: `#makeRoom`. Inserts every operation and publishes `applied`; but for those that a range
   * delete behind them in their transaction takes away, which are as if they had never been.
   */
  #insert(address: number, txCount: number, first: number, mayHaveRanges: boolean): void {
    const open = this.#open!;
    const walker = this.#walker;
    const overtaken = this.#overtaken;
    // Held before the client hears of it and lets go.
    open.retainPage(pageOf(address));
    const hasRanges = mayHaveRanges && overtaken.scan(walker, address, txCount);
    walker.start(address, txCount);
    while (walker.next()) {
      if (hasRanges && overtaken.isNext(walker)) continue;
      open.insert(walker, first + walker.txIndex);
    }
    invariant(walker.txIndex < txCount, 'a record holds the transactions it says', txCount);
    this.#next = first + txCount;
    this.#maintaining = true;
    this.#context.control.setApplied(this.#next);
  }

  #answer(client: number, number: number, first: number, refusal: number): void {
    const receipts = this.#receipts[client];
    const slot = receipts.claim();
    invariant(slot >= 0, 'the slot of a receipt is reserved with its record', client);
    const { u32 } = receipts.ring;
    u32[slot + KIND_WORD] = MSG_RECEIPT;
    u32[slot + RECEIPT.NUMBER] = number;
    setWide(u32, slot + RECEIPT.OFFSET, first);
    u32[slot + RECEIPT.REFUSAL] = refusal;
    // A receipt alone settles nothing: durability rings when the frontier has passed.
    if (refusal === 0) receipts.sendQuietly();
    else receipts.send();
  }

  #takeReplay(): boolean {
    let taken = 0;
    const inbox = this.#replay;
    const { u32 } = inbox;
    for (let slot = inbox.peek(); slot >= 0; slot = inbox.peek()) {
      switch (u32[slot + KIND_WORD]) {
        case MSG_REPLAY_BEGIN:
          if (!this.#begin(getWide(u32, slot + REPLAY.OFFSET))) return taken > 0;
          this.#epoch = u32[slot + REPLAY.EPOCH]!;
          this.#atMs = getWide(u32, slot + REPLAY.AT_MS);
          break;
        case MSG_RECORD: {
          const first = getWide(u32, slot + RECORD.OFFSET);
          invariant(first === this.#next, 'replay is contiguous', first, this.#next);
          if (this.#line.ring.room(1) === 0) return taken > 0;
          const operations = u32[slot + RECORD.OPERATIONS];
          if (!this.#makeRoom(operations, u32[slot + RECORD.PAYLOAD_BYTES])) {
            // A read-only engine flushes nothing: there will never be more room.
            if (this.#context.config.readOnly && this.#spare === undefined) throw replayTooLarge();
            // Nor when nothing is held that could be given back.
            if (this.#open!.rows === 0 && this.#sealed.size === 0) throw recordTooLarge(first);
            return taken > 0;
          }
          this.#insert(u32[slot + RECORD.ADDRESS], u32[slot + RECORD.TX_COUNT], first, true);
          break;
        }
        case MSG_REPLAY_END:
          invariant(getWide(u32, slot + REPLAY.OFFSET) === this.#next, 'replay is complete');
          this.#epoch = u32[slot + REPLAY.EPOCH]!;
          this.#atMs = getWide(u32, slot + REPLAY.AT_MS);
          this.#live = true;
          inbox.pop();
          return true;
        default:
          invariant(false, 'a message of replay', u32[slot + KIND_WORD]);
      }
      inbox.pop();
      if (++taken === RECORDS_PER_TICK) break;
      // A spare must be offered before the open generation is full.
      if (this.#spare === undefined) break;
    }
    return taken > 0;
  }

  /** Makes the first generation; false while pages are missing. */
  #begin(next: number): boolean {
    const { arena, pool, control } = this.#context;
    const open = GenerationWriter.create(arena, pool, this.#generationOptions);
    if (open === undefined) return false;
    open.open(next);
    this.#open = open;
    this.#next = next;
    this.#heldFrom = next;
    this.#started = true;
    control.setApplied(next);
    this.#tellKeeper(MSG_OPENED, open.header, next, next);
    return true;
  }
}

function recordTooLarge(offset: number): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_TOO_LARGE',
    'a commit in the log needs more memory than there is; raise memoryBytes or memtableBytes',
    { limit: 'memtableBytes', offset },
  );
}

function replayTooLarge(): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_TOO_LARGE',
    'the log to replay is larger than memory, and a read-only engine cannot flush it',
    { limit: 'memoryBytes' },
  );
}
