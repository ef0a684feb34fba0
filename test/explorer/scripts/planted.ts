/**
 * Stand-ins for the retire list with one bug each, for scripts that must catch them. Without a bug it
 * frees exactly when the real one does; the same scripts run on the real one.
 */
import type { Arena } from '../../../core/shared/arena.ts';
import {
  CLIENT_SLOT_BYTES,
  SLOT_IO_WORD,
  SLOT_NOW_WORD,
  UNTIL_NOW_AND_IO,
} from '../../../core/shared/epoch.ts';

export type Fault =
  | 'none'
  | 'freed while a slot is entered'
  | 'epochs compared with <'
  | 'freed at its own epoch'
  | 'io loaded before now'
  | 'io not looked at';

type Retired = {
  thing: number;
  epoch: number;
  until: number;
  free: (thing: number) => void;
};

/** What scripts use of a retire list. */
export type Retiring = {
  retire(thing: number, until: number, free: (thing: number) => void): void;
  sweep(): number;
};

export class PlantedRetireList implements Retiring {
  readonly #i32: Int32Array;
  readonly #epochWord: number;
  readonly #slotsWord: number;
  readonly #slotCount: number;
  readonly #fault: Fault;
  #retired: Retired[] = [];

  constructor(arena: Arena, epochAddress: number, slots: number, slotCount: number, fault: Fault) {
    this.#i32 = arena.i32;
    this.#epochWord = epochAddress >>> 2;
    this.#slotsWord = slots >>> 2;
    this.#slotCount = slotCount;
    this.#fault = fault;
  }

  retire(thing: number, until: number, free: (thing: number) => void): void {
    const epoch = Atomics.add(this.#i32, this.#epochWord, 2);
    this.#retired.push({ thing, epoch, until, free });
  }

  sweep(): number {
    const count = this.#retired.length;
    this.#retired = this.#retired.filter((retired) => {
      const passed = this.#passed(retired);
      if (passed) retired.free(retired.thing);
      return !passed;
    });
    return count - this.#retired.length;
  }

  #passed({ epoch, until }: Retired): boolean {
    const fault = this.#fault;
    if (fault === 'freed while a slot is entered') return true;
    for (let slot = 0; slot < this.#slotCount; slot++) {
      const word = this.#slotsWord + slot * (CLIENT_SLOT_BYTES / 4);
      const words = [SLOT_NOW_WORD];
      if (until === UNTIL_NOW_AND_IO && fault !== 'io not looked at') words.push(SLOT_IO_WORD);
      if (fault === 'io loaded before now') words.reverse();
      if (words.some((at) => this.#holds(Atomics.load(this.#i32, word + at), epoch))) return false;
    }
    return true;
  }

  #holds(seen: number, epoch: number): boolean {
    if (seen === 0) return false;
    if (this.#fault === 'epochs compared with <') return seen <= epoch;
    const distance = (seen - epoch) | 0;
    return this.#fault === 'freed at its own epoch' ? distance < 0 : distance <= 0;
  }
}
