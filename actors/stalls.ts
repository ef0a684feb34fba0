/**
 * Waits for room, each with one cause, visible while they last: the actor that waits writes the cause
 * and since when into its control words, and counts what is over. Nobody acts on it. Used by whoever
 * waits, on its thread; what is raised of it is the engine's (stall-watch.ts).
 */
import { STALL_WAIT } from '../core/shared/control.ts';
import type { Counters } from '../core/shared/counters.ts';
import type { ActorContext } from './actor.ts';
import { STALL_COUNTERS } from './counters.ts';

/** Causes by number; 0 is none. */
export const STALL_CAUSES = ['', 'memory', 'flush', 'debt', 'disk', 'log'] as const;

export type StallCause = Exclude<(typeof STALL_CAUSES)[number], ''>;

/** No page for a record, and nothing sealed whose flush would give some back; or none to describe new parts in. */
export const CAUSE_MEMORY: number = STALL_CAUSES.indexOf('memory');
/** Sealed generations wait for their flush. */
export const CAUSE_FLUSH: number = STALL_CAUSES.indexOf('flush');
/** A flush waits for merges. */
export const CAUSE_DEBT: number = STALL_CAUSES.indexOf('debt');
/** The disk is full. */
export const CAUSE_DISK: number = STALL_CAUSES.indexOf('disk');
/** The log is not written as fast as commits come, or its room is being prepared. */
export const CAUSE_LOG: number = STALL_CAUSES.indexOf('log');

/** One actor's waits; at most one at a time. */
export class Waits {
  readonly #context: ActorContext;
  readonly #actor: number;
  readonly #counters: Counters;
  /** Where STALL_COUNTERS begin in its counters. */
  readonly #first: number;
  #cause = 0;
  #sinceTicks = 0;

  /** `names` is the list of its counters, STALL_COUNTERS among them. */
  constructor(context: ActorContext, actor: number, counters: Counters, names: readonly string[]) {
    this.#context = context;
    this.#actor = actor;
    this.#counters = counters;
    this.#first = names.indexOf(STALL_COUNTERS[0]);
  }

  /** What it waits for, 0 = nothing. */
  get cause(): number {
    return this.#cause;
  }

  /** It waits for `cause`; the same as before goes on. */
  begin(cause: number): void {
    if (cause === this.#cause) return;
    this.end();
    const { clock, control } = this.#context;
    this.#cause = cause;
    this.#sinceTicks = clock.ticksMs();
    control.beginStall(this.#actor, STALL_WAIT, cause, clock.nowMs());
  }

  /** It goes on. */
  end(): void {
    if (this.#cause === 0) return;
    const { clock, control } = this.#context;
    const ms = clock.ticksMs() - this.#sinceTicks;
    control.endStall(this.#actor, STALL_WAIT, ms);
    const at = this.#first + (this.#cause - 1) * 2;
    this.#counters.add(at, 1);
    this.#counters.add(at + 1, ms);
    this.#cause = 0;
  }
}
