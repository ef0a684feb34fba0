/**
 * Scripts of the control words: frontiers of 53 bits in 32-bit words across the carry, the failure
 * that is told whole, state changes that race.
 */
import { invariant } from '../../../core/base/assert.ts';
import {
  CONTROL_BYTES,
  Control,
  STATE_CLOSING,
  STATE_OPEN,
  STATE_POISONED,
  STATE_STARTING,
} from '../../../core/shared/control.ts';
import { loadTriple, storeTriple } from '../../../core/shared/triple.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script } from '../explorer.ts';

const WORD = 32;
const CONTROL = 1_024;
const HIGH = 0x1_0000_0000;

type Load = (i32: Int32Array, word: number) => number;
type Store = (i32: Int32Array, word: number, value: number) => void;

type TripleOptions = {
  name: string;
  /** Stored one after the other; the first is there before. */
  values: readonly number[];
  loads?: number;
  load?: Load;
  store?: Store;
};

function tripleScript(options: TripleOptions): Script<void> {
  const { values, loads = 2, load = loadTriple, store = storeTriple } = options;
  return {
    name: `triple: ${options.name}`,
    spins: loads + 2,
    promise: 'what is loaded was stored, and never moves back',
    setup: (world) => {
      storeTriple(world.arena.i32, WORD, values[0]);
      world.label(WORD * 4, 'high');
      world.label(WORD * 4 + 4, 'low');
      world.label(WORD * 4 + 8, 'high again');
    },
    threads: [
      {
        name: 'writer',
        start: ({ arena }) => {
          return () => values.slice(1).forEach((value) => store(arena.i32, WORD, value));
        },
      },
      {
        name: 'reader',
        start: ({ arena }) => {
          return () => {
            let last = 0;
            for (let i = 0; i < loads; i++) {
              const index = values.indexOf(load(arena.i32, WORD));
              invariant(index !== -1, 'a value that was stored');
              invariant(index >= last, 'values come in order', last, index);
              last = index;
            }
          };
        },
      },
    ],
  };
}

/** Reads in the order of writing. */
const loadForward: Load = (i32, word) => {
  for (;;) {
    const high = Atomics.load(i32, word);
    const low = Atomics.load(i32, word + 1);
    if (Atomics.load(i32, word + 2) === high) return high * HIGH + (low >>> 0);
  }
};

/** Reads one high word only. */
const loadOnce: Load = (i32, word) =>
  Atomics.load(i32, word + 2) * HIGH + (Atomics.load(i32, word + 1) >>> 0);

/** Writes the low word last. */
const storeLowLast: Store = (i32, word, value) => {
  const high = Math.floor(value / HIGH);
  Atomics.store(i32, word, high);
  Atomics.store(i32, word + 2, high);
  Atomics.store(i32, word + 1, value | 0);
};

const CARRY: readonly number[] = [HIGH - 2, HIGH - 1, HIGH, HIGH + 1];

const FAILURES: readonly string[] = ['{"a":1}', '{"b":22}'];

/** Two threads fail at once; a third looks. */
const poisonScript: Script<void> = {
  name: 'control: two failures and one who looks',
  promise: 'one failure is the first, and is told whole to whoever sees the state',
  setup: ({ arena }) => new Control(arena, CONTROL).reset(),
  arenaBytes: CONTROL + CONTROL_BYTES,
  threads: [
    ...FAILURES.map((json, index) => ({
      name: `failing${index}`,
      start: ({ arena }: Parameters<Script<void>['setup']>[0]) => {
        const control = new Control(arena, CONTROL);
        return () => (control.poison(json) ? json : '');
      },
    })),
    {
      name: 'looking',
      start: ({ arena }) => {
        const control = new Control(arena, CONTROL);
        return () => (control.state() === STATE_POISONED ? control.failureJson() : '');
      },
    },
  ],
  check: ({ arena }, _, results) => {
    const firsts = results.slice(0, 2).filter((json) => json !== '');
    invariant(firsts.length === 1, 'one is the first', firsts.length);
    invariant(results[2] === '' || results[2] === firsts[0], 'told whole', String(results[2]));
    invariant(new Control(arena, CONTROL).failureJson() === firsts[0], 'and kept');
  },
};

const stateScript: Script<void> = {
  name: 'control: two who move the state',
  promise: 'a state is left once',
  setup: ({ arena }) => new Control(arena, CONTROL).reset(),
  arenaBytes: CONTROL + CONTROL_BYTES,
  threads: [0, 1].map((index) => ({
    name: `mover${index}`,
    start: ({ arena }) => {
      const control = new Control(arena, CONTROL);
      return () => [
        control.moveState(STATE_STARTING, STATE_OPEN),
        control.moveState(STATE_OPEN, STATE_CLOSING),
      ];
    },
  })),
  check: ({ arena }, _, results) => {
    const [a, b] = results.map((moved) => (Array.isArray(moved) ? moved.map(Number) : []));
    invariant(a[0] + b[0] === 1, 'opened once', a[0], b[0]);
    invariant(a[1] + b[1] === 1, 'closed once', a[1], b[1]);
    invariant(new Control(arena, CONTROL).state() === STATE_CLOSING, 'and is so');
  },
};

export const controlCases: readonly Case[] = [
  holds(tripleScript({ name: 'across the carry', values: CARRY })),
  holds(
    tripleScript({
      name: 'two carries in one step each',
      values: [HIGH - 1, 2 * HIGH - 1, 2 * HIGH],
    }),
  ),
  holds(tripleScript({ name: 'from 0 to the largest', values: [0, 1, Number.MAX_SAFE_INTEGER] })),
  holds(
    tripleScript({
      name: 'four steps, three looks',
      values: [...CARRY, 2 * HIGH],
      loads: 3,
    }),
    'deep',
  ),
  holds(poisonScript),
  holds(stateScript),
  planted(
    tripleScript({
      name: 'planted: read in the order of writing',
      values: CARRY,
      load: loadForward,
    }),
    'threw',
  ),
  planted(
    tripleScript({ name: 'planted: one high word read', values: CARRY, load: loadOnce }),
    'threw',
  ),
  planted(
    tripleScript({ name: 'planted: low word written last', values: CARRY, store: storeLowLast }),
    'threw',
  ),
  // Why a hold, which moves both ways, is no triple.
  planted(
    tripleScript({
      name: 'planted: a value that goes back over a carry',
      values: [HIGH + 3, 5, HIGH + 3],
    }),
    'threw',
  ),
];
