/**
 * Enter, leave, retire: how memory that readers may hold is given back (row-cache.md 3.4). A reader
 * stores the current epoch into its slot before it loads any link; a retirer unlinks, advances the
 * epoch, and frees only what every slot has passed. Epochs start odd and move by 2, so that 0 always
 * means "not reading"; they compare by signed difference.
 *
 * Client slot, 128 bytes, one writer: its client.
 *   word 0  zero
 *   word 1  now: epoch of the read in progress, 0 = none
 *   word 2  io: oldest epoch among unfinished asynchronous file reads, 0 = none
 *   word 4  version of the hold on history, odd while it changes
 *   word 5  lowest hold, T + 1: high word, 0 with low = none
 *   word 6  low word
 *   word 8  the hold on the log, likewise: what lies above T is still to be read
 */
import { invariant } from '../base/assert.ts';
import { NO_FRONTIER } from '../base/frontier.ts';
import { LINE_BYTES, fromWords, highWord, lowWord } from './arena.ts';
import type { Arena } from './arena.ts';

export const SLOT_NOW_WORD = 1;
export const SLOT_IO_WORD = 2;
export const SLOT_HOLD_WORD = 4;
export const SLOT_LOG_HOLD_WORD = 8;
export const CLIENT_SLOT_BYTES: number = LINE_BYTES;

export const EPOCH_FIRST = 1;

/** One reader's side. `enter` and `leave` bracket every look at shared structures, without a turn between. */
export class ReaderSlot {
  readonly #i32: Int32Array;
  readonly #epochWord: number;
  readonly #slotWord: number;
  #depth = 0;
  /** Epochs of the asynchronous reads still out, oldest first. */
  readonly #io: number[] = [];

  constructor(arena: Arena, epochAddress: number, slotAddress: number) {
    this.#i32 = arena.i32;
    this.#epochWord = epochAddress >>> 2;
    this.#slotWord = slotAddress >>> 2;
  }

  /** Links loaded after this are safe until `leave`. May nest; only the outermost stores. */
  enter(): void {
    if (this.#depth++ > 0) return;
    const epoch = Atomics.load(this.#i32, this.#epochWord);
    Atomics.store(this.#i32, this.#slotWord + SLOT_NOW_WORD, epoch);
  }

  leave(): void {
    invariant(this.#depth > 0, 'left as often as entered');
    if (--this.#depth > 0) return;
    Atomics.store(this.#i32, this.#slotWord + SLOT_NOW_WORD, 0);
  }

  get inside(): boolean {
    return this.#depth > 0;
  }

  /** Requires: inside. Keeps descriptors seen now open until `endIo(the result)`. */
  beginIo(): number {
    invariant(this.#depth > 0, 'a file read begins inside');
    const epoch = Atomics.load(this.#i32, this.#slotWord + SLOT_NOW_WORD);
    this.#io.push(epoch);
    if (this.#io.length === 1) Atomics.store(this.#i32, this.#slotWord + SLOT_IO_WORD, epoch);
    return epoch;
  }

  endIo(epoch: number): void {
    const index = this.#io.indexOf(epoch);
    invariant(index !== -1, 'a file read ends once', epoch);
    this.#io.splice(index, 1);
    let oldest = 0;
    for (const e of this.#io) if (oldest === 0 || ((e - oldest) | 0) < 0) oldest = e;
    Atomics.store(this.#i32, this.#slotWord + SLOT_IO_WORD, oldest);
  }
}

/** What a thing on the retire list waits for. */
export const UNTIL_NOW = 0;
export const UNTIL_NOW_AND_IO = 1;

/** One owner's list of unlinked things, each freed once no reader can still see it. */
export class RetireList {
  readonly #i32: Int32Array;
  readonly #epochWord: number;
  readonly #slotsWord: number;
  readonly #slotCount: number;
  readonly #free: ((thing: number) => void)[] = [];
  readonly #things: number[] = [];
  readonly #epochs: number[] = [];
  readonly #until: number[] = [];
  /** Of the last look; 0 = nobody reads. */
  #oldestNow = 0;
  #oldestIo = 0;

  constructor(arena: Arena, epochAddress: number, slotsAddress: number, slotCount: number) {
    this.#i32 = arena.i32;
    this.#epochWord = epochAddress >>> 2;
    this.#slotsWord = slotsAddress >>> 2;
    this.#slotCount = slotCount;
  }

  /** Requires: the link to `thing` has been overwritten. `free(thing)` runs in a later `sweep`. */
  retire(thing: number, until: number, free: (thing: number) => void): void {
    // The add comes after the unlink: whoever enters with a later epoch finds the new link.
    const epoch = Atomics.add(this.#i32, this.#epochWord, 2);
    this.#things.push(thing);
    this.#epochs.push(epoch);
    this.#until.push(until);
    this.#free.push(free);
  }

  /** Frees what all readers have passed; returns how many things it freed. `free` may retire more. */
  sweep(): number {
    const count = this.#things.length;
    if (count === 0) return 0;
    this.#look();
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const thing = this.#things[i];
      const free = this.#free[i];
      if (this.#passed(this.#epochs[i], this.#until[i])) free(thing);
      else this.#move(i, kept++);
    }
    const freed = count - kept;
    // What was retired meanwhile came after the look; it waits for the next one.
    for (let i = count; i < this.#things.length; i++) this.#move(i, kept++);
    this.#things.length = kept;
    this.#epochs.length = kept;
    this.#until.length = kept;
    this.#free.length = kept;
    return freed;
  }

  #move(from: number, to: number): void {
    this.#things[to] = this.#things[from]!;
    this.#epochs[to] = this.#epochs[from]!;
    this.#until[to] = this.#until[from]!;
    this.#free[to] = this.#free[from]!;
  }

  get length(): number {
    return this.#things.length;
  }

  /** One look at all slots, after everything on the list was retired: good for all of it. */
  #look(): void {
    this.#oldestNow = 0;
    this.#oldestIo = 0;
    for (let slot = 0; slot < this.#slotCount; slot++) {
      const word = this.#slotsWord + slot * (CLIENT_SLOT_BYTES / 4);
      this.#oldestNow = older(this.#oldestNow, Atomics.load(this.#i32, word + SLOT_NOW_WORD));
      // After `now`: a reader stores io before it clears now, so one of the two is seen.
      this.#oldestIo = older(this.#oldestIo, Atomics.load(this.#i32, word + SLOT_IO_WORD));
    }
  }

  #passed(epoch: number, until: number): boolean {
    if (holds(this.#oldestNow, epoch)) return false;
    return until === UNTIL_NOW || !holds(this.#oldestIo, epoch);
  }
}

/**
 * The lowest time that any client holds; no frontier when none does, 0 while one is changing: what is
 * not known holds everything. No triple (triple.ts) and no second try: a hold goes down as well as up,
 * and from the words of three holds a triple may read one that is above them all.
 */
export function lowestHold(
  arena: Arena,
  slotsAddress: number,
  slotCount: number,
  holdWord: number = SLOT_HOLD_WORD,
): number {
  const { i32 } = arena;
  let lowest = NO_FRONTIER;
  for (let slot = 0; slot < slotCount; slot++) {
    const word = ((slotsAddress + slot * CLIENT_SLOT_BYTES) >>> 2) + holdWord;
    const version = Atomics.load(i32, word);
    const high = Atomics.load(i32, word + 1);
    const held = fromWords(Atomics.load(i32, word + 2), high);
    if ((version & 1) !== 0 || Atomics.load(i32, word) !== version) return 0;
    if (held !== 0 && held - 1 < lowest) lowest = held - 1;
  }
  return lowest;
}

/** The lowest time that one client holds; -1 when it holds none, or is changing it just now. */
export function holdOf(arena: Arena, slotAddress: number): number {
  const { i32 } = arena;
  const word = (slotAddress >>> 2) + SLOT_HOLD_WORD;
  const version = Atomics.load(i32, word);
  const high = Atomics.load(i32, word + 1);
  const held = fromWords(Atomics.load(i32, word + 2), high);
  return (version & 1) !== 0 || Atomics.load(i32, word) !== version ? -1 : held - 1;
}

/** Publishes a client's lowest hold; -1 = none. Its slot has one writer, the client. */
export function storeHold(
  arena: Arena,
  slotAddress: number,
  T: number,
  holdWord: number = SLOT_HOLD_WORD,
): void {
  const { i32 } = arena;
  const word = (slotAddress >>> 2) + holdWord;
  // Odd already when a former client died in here: the first whole store puts that right.
  const changing = Atomics.load(i32, word) | 1;
  Atomics.store(i32, word, changing);
  Atomics.store(i32, word + 1, highWord(T + 1));
  Atomics.store(i32, word + 2, lowWord(T + 1));
  Atomics.store(i32, word, changing + 1);
}

/** True while some reader is inside, or has a file read out. */
export function readersInside(arena: Arena, slotsAddress: number, slotCount: number): boolean {
  for (let slot = 0; slot < slotCount; slot++) {
    const word = (slotsAddress + slot * CLIENT_SLOT_BYTES) >>> 2;
    if (Atomics.load(arena.i32, word + SLOT_NOW_WORD) !== 0) return true;
    if (Atomics.load(arena.i32, word + SLOT_IO_WORD) !== 0) return true;
  }
  return false;
}

/** The older of two epochs, 0 being none. */
function older(a: number, b: number): number {
  if (a === 0) return b;
  return b !== 0 && ((b - a) | 0) < 0 ? b : a;
}

/** True when a reader at `seen` may hold what was retired under `epoch`. */
function holds(seen: number, epoch: number): boolean {
  return seen !== 0 && ((seen - epoch) | 0) <= 0;
}
