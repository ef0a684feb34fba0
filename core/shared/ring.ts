/**
 * A queue of fixed slots between one producer and one consumer. The bytes of a slot belong to the
 * producer until it publishes the tail, then to the consumer until it publishes the head. Positions
 * run through all 32 bits and compare by signed difference. The two ends may be on two threads or one.
 *
 *   byte   0  head: slots the consumer has given back (writer: consumer)
 *   byte 128  tail: slots the producer has published  (writer: producer)
 *   byte 256  slots of SLOT_WORDS words each; a power of two of them
 */
import { invariant } from '../base/assert.ts';
import { LINE_BYTES } from './arena.ts';
import type { Arena } from './arena.ts';

/** One slot is half a line: 16 words. */
export const SLOT_WORDS = 16;
export const SLOT_BYTES: number = SLOT_WORDS * 4;

const HEAD_WORD = 0;
const TAIL_WORD: number = LINE_BYTES / 4;
const SLOTS_WORD: number = (2 * LINE_BYTES) / 4;

export function ringBytes(slots: number): number {
  return 2 * LINE_BYTES + slots * SLOT_BYTES;
}

/** Empties the ring, with positions starting at `position` (tests start just below wrap). Requires: neither end exists yet. */
export function resetRing(arena: Arena, address: number, position = 0): void {
  Atomics.store(arena.i32, (address >>> 2) + HEAD_WORD, position);
  Atomics.store(arena.i32, (address >>> 2) + TAIL_WORD, position);
}

/** Slots published and not yet popped, for whoever is neither end of the ring. */
export function ringDepth(arena: Arena, address: number): number {
  const word = address >>> 2;
  // The head first: a ring looks fuller than it is, never less than empty.
  const head = Atomics.load(arena.i32, word + HEAD_WORD);
  return (Atomics.load(arena.i32, word + TAIL_WORD) - head) | 0;
}

export class RingProducer {
  readonly u32: Uint32Array;
  readonly #i32: Int32Array;
  readonly #word: number;
  readonly #slots: number;
  #tail: number;
  /** The head as last seen; the true one is at or above it. */
  #head: number;

  constructor(arena: Arena, address: number, slots: number) {
    invariant((slots & (slots - 1)) === 0, 'a ring has a power of two of slots', slots);
    this.u32 = arena.u32;
    this.#i32 = arena.i32;
    this.#word = address >>> 2;
    this.#slots = slots;
    this.#tail = Atomics.load(this.#i32, this.#word + TAIL_WORD);
    this.#head = Atomics.load(this.#i32, this.#word + HEAD_WORD);
  }

  /** Slots that can be claimed now. Looks at the consumer's head only when `wanted` are not known to be free. */
  room(wanted: number = this.#slots): number {
    let free = this.#slots - ((this.#tail - this.#head) | 0);
    if (free < wanted) {
      // From here the slots below the head are ours again: the consumer stored it after its last read.
      this.#head = Atomics.load(this.#i32, this.#word + HEAD_WORD);
      free = this.#slots - ((this.#tail - this.#head) | 0);
    }
    return free;
  }

  /** Word index of the next free slot, to be filled and then pushed; -1 when the ring is full. */
  claim(): number {
    if (this.room(1) === 0) return -1;
    return this.#word + SLOTS_WORD + (this.#tail & (this.#slots - 1)) * SLOT_WORDS;
  }

  /** Publishes the claimed slot: its bytes belong to the consumer from this store on. */
  push(): void {
    this.#tail = (this.#tail + 1) | 0;
    Atomics.store(this.#i32, this.#word + TAIL_WORD, this.#tail);
  }
}

export class RingConsumer {
  readonly u32: Uint32Array;
  readonly #i32: Int32Array;
  readonly #word: number;
  readonly #slots: number;
  #head: number;
  /** The tail as last seen; the true one is at or above it. */
  #tail: number;

  constructor(arena: Arena, address: number, slots: number) {
    invariant((slots & (slots - 1)) === 0, 'a ring has a power of two of slots', slots);
    this.u32 = arena.u32;
    this.#i32 = arena.i32;
    this.#word = address >>> 2;
    this.#slots = slots;
    this.#head = Atomics.load(this.#i32, this.#word + HEAD_WORD);
    this.#tail = Atomics.load(this.#i32, this.#word + TAIL_WORD);
  }

  /** Word index of the oldest unread slot, or -1. Valid until: `pop`. */
  peek(): number {
    if (this.#head === this.#tail) {
      // The producer filled these slots before it stored the tail; they are ours now.
      this.#tail = Atomics.load(this.#i32, this.#word + TAIL_WORD);
      if (this.#head === this.#tail) return -1;
    }
    return this.#word + SLOTS_WORD + (this.#head & (this.#slots - 1)) * SLOT_WORDS;
  }

  /** Gives the peeked slot back to the producer. */
  pop(): void {
    this.#head = (this.#head + 1) | 0;
    Atomics.store(this.#i32, this.#word + HEAD_WORD, this.#head);
  }

  /** Slots published and not yet popped. */
  pending(): number {
    this.#tail = Atomics.load(this.#i32, this.#word + TAIL_WORD);
    return (this.#tail - this.#head) | 0;
  }
}
