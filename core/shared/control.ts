/**
 * The engine's control words: frontiers, state, view, stalls. One writer a word; frontiers are triples
 * (triple.ts).
 *
 *   line  0  G: the epoch                      (retirers, by add)
 *   line  1  view: address of the newest one; log start  (keeper)
 *   line  2  state, failure bytes, pages wanted, client slots (state by CAS; failure under its own word)
 *   line  3  applied, room wanted              (sequencer)
 *   line  4  written, durable, log position    (durability)
 *   line  5  log sequence, room, log epoch     (durability)
 *   line  6+ one line an actor: the call or the wait it is in, and the last that was long
 *   then     the failure as JSON, FAILURE_BYTES
 */
import { LINE_BYTES } from './arena.ts';
import type { Arena } from './arena.ts';
import { stallMs } from '../base/limits.ts';
import { EPOCH_FIRST } from './epoch.ts';
import { loadTriple, storeTriple } from './triple.ts';

export const STATE_STARTING = 0;
export const STATE_OPEN = 1;
export const STATE_CLOSING = 2;
export const STATE_CLOSED = 3;
export const STATE_POISONED = 4;

export const ACTOR_SEQUENCER = 0;
export const ACTOR_DURABILITY = 1;
export const ACTOR_KEEPER = 2;
export const ACTOR_COMPACTOR = 3;
export const ACTOR_EVICTOR = 4;
export const ACTORS = 5;

const LINE_WORDS: number = LINE_BYTES / 4;
const EPOCH_WORD = 0;
const VIEW_WORD: number = LINE_WORDS;
const LOG_START_WORD: number = VIEW_WORD + 1;
const STATE_WORD: number = 2 * LINE_WORDS;
const FAILURE_CLAIM_WORD: number = STATE_WORD + 1;
const FAILURE_LENGTH_WORD: number = STATE_WORD + 2;
const PAGES_WANTED_WORD: number = STATE_WORD + 3;
const CLIENTS_WORD: number = STATE_WORD + 4;
const APPLIED_WORD: number = 3 * LINE_WORDS;
const ROOM_WANTED_WORD: number = APPLIED_WORD + 3;
const SEALED_WORD: number = ROOM_WANTED_WORD + 3;
const WRITTEN_WORD: number = 4 * LINE_WORDS;
const DURABLE_WORD: number = WRITTEN_WORD + 3;
const POSITION_WORD: number = DURABLE_WORD + 3;
const LOG_SEQ_WORD: number = 5 * LINE_WORDS;
const NO_SPACE_WORD: number = LOG_SEQ_WORD + 1;
const ROOM_WORD: number = NO_SPACE_WORD + 1;
const CALLS_WORD: number = 6 * LINE_WORDS;
const FAILURE_WORD: number = CALLS_WORD + ACTORS * LINE_WORDS;
const FAILURE_BYTES = 8_192;

/** A line of an actor has room for two: the call it makes, the room it waits for. */
export const STALL_CALL = 0;
export const STALL_WAIT = 1;
const STALL_WORDS: number = LINE_WORDS / 2;
const STALL_NUMBER_WORD = 1;
const STALL_SINCE_WORD = 2;
const LONG_COUNT_WORD: number = STALL_SINCE_WORD + 3;
const LONG_WHAT_WORD: number = LONG_COUNT_WORD + 1;
const LONG_SINCE_WORD: number = LONG_WHAT_WORD + 1;
const LONG_MS_WORD: number = LONG_SINCE_WORD + 3;

/** What an actor is in; `what` 0 = nothing. */
export type StallWords = {
  readonly what: number;
  readonly number: number;
  readonly sinceMs: number;
};

/** The last of `count` that were long. */
export type LongStall = {
  readonly count: number;
  readonly what: number;
  readonly sinceMs: number;
  readonly ms: number;
};

export const CONTROL_BYTES: number = FAILURE_WORD * 4 + FAILURE_BYTES;

export class Control {
  readonly #arena: Arena;
  readonly #i32: Int32Array;
  readonly #word: number;
  readonly address: number;

  constructor(arena: Arena, address: number) {
    this.#arena = arena;
    this.#i32 = arena.i32;
    this.#word = address >>> 2;
    this.address = address;
  }

  /** Requires: no other thread uses the arena yet. */
  reset(): void {
    for (let i = 0; i < CONTROL_BYTES / 4; i++) Atomics.store(this.#i32, this.#word + i, 0);
    Atomics.store(this.#i32, this.#word + EPOCH_WORD, EPOCH_FIRST);
  }

  get epochAddress(): number {
    return this.address + EPOCH_WORD * 4;
  }

  view(): number {
    return Atomics.load(this.#i32, this.#word + VIEW_WORD) >>> 0;
  }

  setView(address: number): void {
    Atomics.store(this.#i32, this.#word + VIEW_WORD, address | 0);
  }

  /**
   * The first segment that stays: those before it are gone, or about to go. Who needs the log from some place on
   * holds it first and looks here then; the keeper says it here first and looks at holds then. So one of them sees the other.
   */
  logStart(): number {
    return Atomics.load(this.#i32, this.#word + LOG_START_WORD);
  }

  setLogStart(seq: number): void {
    Atomics.store(this.#i32, this.#word + LOG_START_WORD, seq);
  }

  state(): number {
    return Atomics.load(this.#i32, this.#word + STATE_WORD);
  }

  /** Moves the state forward; false when it was not `from`. */
  moveState(from: number, to: number): boolean {
    return Atomics.compareExchange(this.#i32, this.#word + STATE_WORD, from, to) === from;
  }

  /** Records the first failure and poisons the engine; later ones change nothing. True for the first. */
  poison(failureJson: string): boolean {
    const claim = this.#word + FAILURE_CLAIM_WORD;
    if (Atomics.compareExchange(this.#i32, claim, 0, 1) !== 0) return false;
    const bytes = new TextEncoder().encode(failureJson).subarray(0, FAILURE_BYTES);
    this.#arena.u8.set(bytes, (this.#word + FAILURE_WORD) * 4);
    Atomics.store(this.#i32, this.#word + FAILURE_LENGTH_WORD, bytes.length);
    Atomics.store(this.#i32, this.#word + STATE_WORD, STATE_POISONED);
    return true;
  }

  /** The failure of a poisoned engine, as `poison` was given it. */
  failureJson(): string {
    const length = Atomics.load(this.#i32, this.#word + FAILURE_LENGTH_WORD);
    const at = (this.#word + FAILURE_WORD) * 4;
    return Buffer.from(this.#arena.u8.slice(at, at + length)).toString('utf8');
  }

  /** Set by whoever found no page: the sequencer seals to make room, and clears it when pages came free. */
  pagesWanted(): boolean {
    return Atomics.load(this.#i32, this.#word + PAGES_WANTED_WORD) !== 0;
  }

  setPagesWanted(wanted: boolean): void {
    Atomics.store(this.#i32, this.#word + PAGES_WANTED_WORD, wanted ? 1 : 0);
  }

  /** Client slots ever claimed: nobody need look beyond. */
  clients(): number {
    return Atomics.load(this.#i32, this.#word + CLIENTS_WORD);
  }

  /** One more slot is in use; returns its number. */
  claimClient(): number {
    return Atomics.add(this.#i32, this.#word + CLIENTS_WORD, 1);
  }

  /** First offset not inserted into the memtable. */
  applied(): number {
    return loadTriple(this.#i32, this.#word + APPLIED_WORD);
  }

  setApplied(upper: number): void {
    storeTriple(this.#i32, this.#word + APPLIED_WORD, upper);
  }

  /** First offset not handed to the operating system. */
  written(): number {
    return loadTriple(this.#i32, this.#word + WRITTEN_WORD);
  }

  setWritten(upper: number): void {
    storeTriple(this.#i32, this.#word + WRITTEN_WORD, upper);
  }

  /** First offset not covered by a successful sync. */
  durable(): number {
    return loadTriple(this.#i32, this.#word + DURABLE_WORD);
  }

  setDurable(upper: number): void {
    storeTriple(this.#i32, this.#word + DURABLE_WORD, upper);
  }

  logSeq(): number {
    return Atomics.load(this.#i32, this.#word + LOG_SEQ_WORD);
  }

  logPosition(): number {
    return loadTriple(this.#i32, this.#word + POSITION_WORD);
  }

  setLogPosition(seq: number, position: number): void {
    Atomics.store(this.#i32, this.#word + LOG_SEQ_WORD, seq);
    storeTriple(this.#i32, this.#word + POSITION_WORD, position);
  }

  /** What exceeds the room waits for more of it; false: there will be none, the disk is full. */
  hasSpace(): boolean {
    return Atomics.load(this.#i32, this.#word + NO_SPACE_WORD) === 0;
  }

  setHasSpace(has: boolean): void {
    Atomics.store(this.#i32, this.#word + NO_SPACE_WORD, has ? 0 : 1);
  }

  /** Generations that are sealed and not freed: what has to be flushed yet, and a little more. */
  sealed(): number {
    return Atomics.load(this.#i32, this.#word + SEALED_WORD);
  }

  setSealed(count: number): void {
    Atomics.store(this.#i32, this.#word + SEALED_WORD, count);
  }

  /** Bytes of records that may be ordered in all: those that were, and the room there is for more. */
  room(): number {
    return loadTriple(this.#i32, this.#word + ROOM_WORD);
  }

  setRoom(bytes: number): void {
    storeTriple(this.#i32, this.#word + ROOM_WORD, bytes);
  }

  /** What `room` would have to be for the record that was last held up. */
  roomWanted(): number {
    return loadTriple(this.#i32, this.#word + ROOM_WANTED_WORD);
  }

  setRoomWanted(bytes: number): void {
    storeTriple(this.#i32, this.#word + ROOM_WANTED_WORD, bytes);
  }

  /**
   * The actor is about to make `call`, or to wait for `cause`, so that a stall can be named while it
   * lasts. `slot` is STALL_CALL or STALL_WAIT: a call to the disk, a wait for room. `what` is not 0.
   */
  beginStall(actor: number, slot: number, what: number, sinceMs: number): void {
    const word = this.#stallWord(actor, slot);
    storeTriple(this.#i32, word + STALL_SINCE_WORD, sinceMs);
    // Told apart from the one before, which may have been the same in the same millisecond.
    const number = Atomics.load(this.#i32, word + STALL_NUMBER_WORD);
    Atomics.store(this.#i32, word + STALL_NUMBER_WORD, (number + 1) | 0);
    Atomics.store(this.#i32, word, what);
  }

  /** It is over, after `ms`; one of `stallMs` and more is kept for whoever asks later. */
  endStall(actor: number, slot: number, ms: number): void {
    const word = this.#stallWord(actor, slot);
    if (ms >= stallMs) {
      Atomics.store(this.#i32, word + LONG_WHAT_WORD, Atomics.load(this.#i32, word));
      const sinceMs = loadTriple(this.#i32, word + STALL_SINCE_WORD);
      storeTriple(this.#i32, word + LONG_SINCE_WORD, sinceMs);
      storeTriple(this.#i32, word + LONG_MS_WORD, Math.ceil(ms));
      // After what moved it, so that who sees it moved finds that; before the end is seen.
      Atomics.add(this.#i32, word + LONG_COUNT_WORD, 1);
    }
    Atomics.store(this.#i32, word, 0);
  }

  /** What the actor is in, 0 = nothing; its number tells it from others; since when. */
  stall(actor: number, slot: number): StallWords {
    const word = this.#stallWord(actor, slot);
    const what = Atomics.load(this.#i32, word);
    return {
      what,
      number: Atomics.load(this.#i32, word + STALL_NUMBER_WORD),
      sinceMs: loadTriple(this.#i32, word + STALL_SINCE_WORD),
    };
  }

  /** How many were long, and the last of them. */
  longStall(actor: number, slot: number): LongStall {
    const word = this.#stallWord(actor, slot);
    const count = Atomics.load(this.#i32, word + LONG_COUNT_WORD);
    return {
      count,
      what: Atomics.load(this.#i32, word + LONG_WHAT_WORD),
      sinceMs: loadTriple(this.#i32, word + LONG_SINCE_WORD),
      ms: loadTriple(this.#i32, word + LONG_MS_WORD),
    };
  }

  #stallWord(actor: number, slot: number): number {
    return this.#word + CALLS_WORD + actor * LINE_WORDS + slot * STALL_WORDS;
  }
}
