/**
 * Looks at what the actors are in, and says so when it lasts: a call to the disk or a wait for room of a
 * second and more is told while it lasts, and told again when it is over. It reads control words and
 * changes nothing. Run by a timer of the engine on its own thread, which keeps no process alive; while
 * that thread is blocked itself, what was long is told afterwards.
 */
import { stallMs } from '../core/base/limits.ts';
import {
  ACTORS,
  ACTOR_COMPACTOR,
  ACTOR_DURABILITY,
  ACTOR_EVICTOR,
  ACTOR_KEEPER,
  ACTOR_SEQUENCER,
  STALL_CALL,
  STALL_WAIT,
} from '../core/shared/control.ts';
import type { LongStall, StallWords } from '../core/shared/control.ts';
import type { ActorContext } from './actor.ts';
import { STALL_CAUSES } from './stalls.ts';
import type { StallCause } from './stalls.ts';
import { CALL_NAMES } from './watched-storage.ts';

/** Looks a second: a stall is told at most a quarter of a second late. */
const LOOK_MS = 250;

const ACTOR_NAMES: readonly string[] = Array.from({ length: ACTORS }, (_, actor) => {
  switch (actor) {
    case ACTOR_SEQUENCER:
      return 'sequencer';
    case ACTOR_DURABILITY:
      return 'durability';
    case ACTOR_KEEPER:
      return 'keeper';
    case ACTOR_COMPACTOR:
      return 'compactor';
    case ACTOR_EVICTOR:
      return 'evictor';
    default:
      return '';
  }
});

/** What the event `stalled` brings. */
export type Stall = {
  /** Who waits: 'sequencer', 'durability', 'keeper', or 'client' for commits of this thread. */
  readonly actor: string;
  /** The call to the disk that has not returned, '' when it is room that is waited for. */
  readonly call: string;
  /** Why: 'disk' of every call; a wait is for 'memory', 'flush', 'debt', 'disk' or 'log'. */
  readonly cause: StallCause;
  /** When it began, Unix milliseconds. */
  readonly since: number;
  /** How long it has lasted, or lasted. */
  readonly ms: number;
  /** False while it lasts; true in the second event, when it has ended. */
  readonly over: boolean;
};

/** Somebody who may be in something: words that are looked at. */
type Source = {
  readonly actor: string;
  readonly isCall: boolean;
  readonly now: () => StallWords;
  readonly long: () => LongStall;
  number: number;
  seenAt: number;
  longCount: number;
  /** Number of the last that was told while it lasted. */
  told: number;
  raised: Omit<Stall, 'ms' | 'over'> | undefined;
};

export class StallWatch {
  readonly #context: ActorContext;
  readonly #tell: (stall: Stall) => void;
  readonly #sources: Source[] = [];
  #timer: NodeJS.Timeout | undefined;

  /** `client` is the wait of the own thread's commits. */
  constructor(
    context: ActorContext,
    client: { readonly now: () => StallWords; readonly long: () => LongStall },
    tell: (stall: Stall) => void,
  ) {
    this.#context = context;
    this.#tell = tell;
    const { control } = context;
    for (const [number, actor] of ACTOR_NAMES.entries()) {
      for (const slot of [STALL_CALL, STALL_WAIT]) {
        this.#watch(
          actor,
          slot === STALL_CALL,
          () => control.stall(number, slot),
          () => control.longStall(number, slot),
        );
      }
    }
    this.#watch('client', false, client.now, client.long);
  }

  #watch(actor: string, isCall: boolean, now: Source['now'], long: Source['long']): void {
    const longCount = long().count;
    this.#sources.push({
      actor,
      isCall,
      now,
      long,
      number: 0,
      seenAt: -1,
      longCount,
      told: 0,
      raised: undefined,
    });
  }

  start(): void {
    this.#timer ??= setInterval(() => this.look(), LOOK_MS).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** What was told and is not over. */
  get current(): Stall[] {
    const ticks = this.#context.clock.ticksMs();
    return this.#sources
      .filter(({ raised }) => raised !== undefined)
      .map(({ raised, seenAt }) => ({ ...raised!, ms: Math.round(ticks - seenAt), over: false }));
  }

  look(): void {
    const ticks = this.#context.clock.ticksMs();
    for (const source of this.#sources) this.#lookAt(source, ticks);
  }

  #lookAt(source: Source, ticks: number): void {
    const long = source.long();
    const words = source.now();
    // It ended just now: the next look sees all of it.
    if (source.long().count !== long.count) return;
    if (long.count !== source.longCount) {
      source.longCount = long.count;
      // One that began and ended between two looks is told all the same.
      const ended = source.raised ?? this.#describe(source, long);
      if (source.raised === undefined) this.#tell({ ...ended, ms: long.ms, over: false });
      source.raised = undefined;
      this.#tell({ ...ended, ms: long.ms, over: true });
    }
    const isSame = words.what !== 0 && words.number === source.number && source.seenAt >= 0;
    if (!isSame) {
      const { raised, seenAt } = source;
      source.raised = undefined;
      source.number = words.number;
      source.seenAt = words.what === 0 ? -1 : ticks;
      if (raised !== undefined)
        this.#tell({ ...raised, ms: Math.round(ticks - seenAt), over: true });
      return;
    }
    const ms = Math.round(ticks - source.seenAt);
    // Told before, and over but for its last word.
    if (source.told === words.number || ms < stallMs) return;
    source.told = words.number;
    source.raised = this.#describe(source, words);
    this.#tell({ ...source.raised, ms, over: false });
  }

  #describe(
    source: Source,
    words: { readonly what: number; readonly sinceMs: number },
  ): Omit<Stall, 'ms' | 'over'> {
    const { actor, isCall } = source;
    const call = isCall ? CALL_NAMES[words.what] : '';
    const cause = isCall ? 'disk' : (STALL_CAUSES[words.what] as StallCause);
    return { actor, call, cause, since: words.sinceMs };
  }
}
