/**
 * The word a thread sleeps on. The sleeper says it is parked and looks once more before it sleeps; a
 * ringer publishes first, then wakes only a parked sleeper: so a wake-up is never lost and costs one
 * load when nobody sleeps.
 *
 *   word 0  count of rings, the word waited on (writers: ringers)
 *   word 1  1 while the sleeper is parked     (writer: the sleeper)
 */
import { LINE_BYTES } from './arena.ts';
import type { Arena } from './arena.ts';

export const BELL_BYTES: number = LINE_BYTES;

export class Bell {
  readonly #i32: Int32Array;
  readonly #countWord: number;
  readonly #parkedWord: number;

  constructor(arena: Arena, address: number) {
    this.#i32 = arena.i32;
    this.#countWord = address >>> 2;
    this.#parkedWord = this.#countWord + 1;
  }

  /** Requires: what the sleeper should find has been published. */
  ring(): void {
    if (Atomics.load(this.#i32, this.#parkedWord) === 0) return;
    Atomics.add(this.#i32, this.#countWord, 1);
    Atomics.notify(this.#i32, this.#countWord);
  }

  /** Announces sleep; returns the count to wait on. The caller looks for work once more before it waits. */
  park(): number {
    const seen = Atomics.load(this.#i32, this.#countWord);
    Atomics.store(this.#i32, this.#parkedWord, 1);
    return seen;
  }

  /** Awake: ringers need not wake us. */
  unpark(): void {
    Atomics.store(this.#i32, this.#parkedWord, 0);
  }

  /** Blocks the thread until rung or `timeoutMs` has passed. Worker threads only. */
  wait(seen: number, timeoutMs: number): void {
    Atomics.wait(this.#i32, this.#countWord, seen, timeoutMs);
  }

  /** The same without blocking: undefined when it has rung already. The promise does not keep a process alive. */
  waitAsync(seen: number, timeoutMs: number): Promise<unknown> | undefined {
    const outcome = Atomics.waitAsync(this.#i32, this.#countWord, seen, timeoutMs);
    return outcome.async ? outcome.value : undefined;
  }
}
