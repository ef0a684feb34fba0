/**
 * Scripts of holds against since (row-cache.md 3.4, O6): a reader publishes the time it will come back
 * to, then looks at the view's proposal; the keeper publishes the proposal, then looks at the holds.
 *
 *   view   since, sinceNext, as doubles
 */
import { invariant } from '../../../core/base/assert.ts';
import { ArenaPlan, LINE_BYTES } from '../../../core/shared/arena.ts';
import { CONTROL_BYTES, Control } from '../../../core/shared/control.ts';
import {
  CLIENT_SLOT_BYTES,
  SLOT_HOLD_WORD,
  lowestHold,
  storeHold,
} from '../../../core/shared/epoch.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script } from '../explorer.ts';

const plan = new ArenaPlan();
const CONTROL: number = plan.take(CONTROL_BYTES);
const SLOT: number = plan.take(CLIENT_SLOT_BYTES);
const VIEWS: readonly number[] = [0, 1, 2].map(() => plan.take(16));
const ARENA_BYTES: number = Math.ceil(plan.bytes / 8) * 8;

const NONE = -1;

type HoldsFault =
  | 'hold stored after the check'
  | 'since without sinceNext'
  | 'sinceNext published after the holds are read'
  | 'newest kept unchecked';

type HoldsOptions = {
  name: string;
  /** Held one after the other; each is released before the next is asked for. */
  times: readonly number[];
  /** Held, and in use, all the while; its hold stands before anything else. */
  kept?: number;
  sinceNext: number;
  fault?: HoldsFault;
};

function holdsScript(options: HoldsOptions): Script<void> {
  const { times, kept = NONE, sinceNext, fault } = options;
  return {
    name: `holds: ${options.name}`,
    promise: 'a time that is held stays readable: since never passes it',
    spins: 4,
    arenaBytes: ARENA_BYTES,
    setup: (world) => {
      const control = new Control(world.arena, CONTROL);
      control.reset();
      control.setView(VIEWS[0]);
      storeHold(world.arena, SLOT, kept);
      world.label(CONTROL + LINE_BYTES, 'view');
      world.label(SLOT + SLOT_HOLD_WORD * 4, 'hold', 4);
      VIEWS.forEach((at, i) => world.label(at, `view${i}`, 4));
    },
    threads: [
      {
        name: 'reader',
        start: ({ arena }) => {
          const control = new Control(arena, CONTROL);
          const since = (): number => arena.f64[control.view() >>> 3];
          const proposed = (): number => arena.f64[(control.view() >>> 3) + 1];
          return () => {
            for (const T of times) {
              const lowest = kept === NONE ? T : Math.min(T, kept);
              const late = fault === 'hold stored after the check';
              if (!late) storeHold(arena, SLOT, lowest);
              const keep = fault === 'newest kept unchecked' || T >= proposed();
              if (late) storeHold(arena, SLOT, lowest);
              // Coming back to it later: since is that of whatever view is the newest then.
              if (keep) invariant(since() <= T, 'a held time is not lost', T);
              storeHold(arena, SLOT, kept);
            }
            if (kept !== NONE) invariant(since() <= kept, 'nor is one held all along', kept);
          };
        },
      },
      {
        name: 'keeper',
        start: ({ arena }) => {
          const control = new Control(arena, CONTROL);
          const publish = (view: number, since: number, next: number): void => {
            arena.f64[view >>> 3] = since;
            arena.f64[(view >>> 3) + 1] = next;
            control.setView(view);
          };
          const held = (): number => lowestHold(arena, SLOT, 1);
          return () => {
            if (fault === 'sinceNext published after the holds are read') {
              const lowest = held();
              publish(VIEWS[1], 0, sinceNext);
              publish(VIEWS[2], Math.min(sinceNext, lowest), sinceNext);
              return;
            }
            if (fault !== 'since without sinceNext') publish(VIEWS[1], 0, sinceNext);
            publish(VIEWS[2], Math.min(sinceNext, held()), sinceNext);
          };
        },
      },
    ],
  };
}

const HIGH = 0x1_0000_0000;

export const holdsCases: readonly Case[] = [
  holds(holdsScript({ name: 'one time, below the proposal', times: [3], sinceNext: 5 })),
  holds(holdsScript({ name: 'one time, at the proposal', times: [5], sinceNext: 5 })),
  holds(holdsScript({ name: 'offset 0', times: [0], sinceNext: 1 })),
  holds(holdsScript({ name: 'one after the other', times: [3, 4], sinceNext: 5 })),
  holds(holdsScript({ name: 'a lower one comes and goes', times: [3], kept: 4, sinceNext: 5 })),
  holds(
    holdsScript({
      name: 'a lower one comes and goes, across the carry',
      times: [4],
      kept: HIGH + 2,
      sinceNext: HIGH + 9,
    }),
  ),
  planted(
    holdsScript({
      name: 'planted: hold stored after the since check',
      times: [3],
      sinceNext: 5,
      fault: 'hold stored after the check',
    }),
    'threw',
  ),
  planted(
    holdsScript({
      name: 'planted: since without sinceNext',
      times: [3],
      sinceNext: 5,
      fault: 'since without sinceNext',
    }),
    'threw',
  ),
  planted(
    holdsScript({
      name: 'planted: sinceNext published after the holds are read',
      times: [3],
      sinceNext: 5,
      fault: 'sinceNext published after the holds are read',
    }),
    'threw',
  ),
  planted(
    holdsScript({
      name: 'planted: a newest time is kept unchecked',
      times: [3],
      sinceNext: 5,
      fault: 'newest kept unchecked',
    }),
    'threw',
  ),
];
