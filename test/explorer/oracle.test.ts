/**
 * Goal: the explorer's two shortcuts, merging equal states and finding races without clocks, lose
 * nothing. Method: random little programs, each also run through all interleavings of *all* its
 * accesses one by one, with vector clocks; both must see the same outcomes, or both a race.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { ExplorerFailure, explore } from './explorer.ts';

const READ = 0;
const WRITE = 1;
const LOAD = 2;
const STORE = 3;
const ADD = 4;

type Step = { readonly call: number; readonly word: number; readonly value: number };
type Program = readonly (readonly Step[])[];
type Outcome = { race: boolean; results: Set<string> };

const WORDS = 3;

function randomProgram(prng: Prng): Program {
  const threads = prng.between(2, 3);
  const steps = threads === 2 ? prng.between(2, 5) : prng.between(1, 3);
  // Word 0 is mostly plain, the others mostly atomic: else nearly every program has a race.
  return Array.from({ length: threads }, () =>
    Array.from({ length: steps }, () => {
      const plain = prng.chance(0.35);
      const call = plain ? prng.pick([READ, WRITE]) : prng.pick([LOAD, STORE, ADD]);
      const word = plain === prng.chance(0.97) ? 0 : prng.between(1, WORDS - 1);
      return { call, word, value: prng.between(1, 3) };
    }),
  );
}

/** A step is skipped when the thread has read a 0 last: so programs branch on what they see. */
function runsNext(step: Step, lastRead: number): boolean {
  return lastRead !== 0 || step.call === LOAD || step.call === ADD;
}

function byExplorer(program: Program): Outcome {
  const results: Set<string> = new Set();
  try {
    explore<void>({
      name: 'random',
      promise: 'as the oracle says',
      setup: () => {},
      threads: program.map((steps, index) => ({
        name: String(index),
        start: (world) => () => {
          const { i32 } = world.arena;
          const seen: number[] = [];
          for (const { call, word, value } of steps) {
            const at = 32 + word;
            if (!runsNext({ call, word, value }, seen.at(-1) ?? 1)) continue;
            if (call === READ) seen.push(i32[at]);
            else if (call === WRITE) i32[at] = value;
            else if (call === LOAD) seen.push(Atomics.load(i32, at));
            else if (call === STORE) Atomics.store(i32, at, value);
            else seen.push(Atomics.add(i32, at, value));
          }
          return seen.join('');
        },
      })),
      check: (_, __, ends) => results.add(ends.join(',')),
    });
  } catch (error) {
    if (error instanceof ExplorerFailure && error.kind === 'race') return { race: true, results };
    throw error;
  }
  return { race: false, results };
}

function replaced<T>(list: readonly T[], at: number, value: T): T[] {
  return list.map((was, i) => (i === at ? value : was));
}

type Clock = readonly number[];
type Past = { thread: number; at: number; plain: boolean; writes: boolean };

function byClocks(program: Program): Outcome {
  const outcome: Outcome = { race: false, results: new Set() };
  const none: Clock = program.map(() => 0);
  const visit = (
    next: readonly number[],
    memory: readonly number[],
    seen: readonly (readonly number[])[],
    clocks: readonly Clock[],
    releases: readonly Clock[],
    past: readonly (readonly Past[])[],
  ): void => {
    if (outcome.race) return;
    let ended = true;
    for (let t = 0; t < program.length; t++) {
      const step = program[t][next[t]];
      if (step === undefined) continue;
      ended = false;
      const onward = replaced(next, t, next[t] + 1);
      if (!runsNext(step, seen[t].at(-1) ?? 1)) {
        visit(onward, memory, seen, clocks, releases, past);
        continue;
      }
      const { call, word, value } = step;
      const plain = call === READ || call === WRITE;
      const writes = call === WRITE || call === STORE || call === ADD;
      const acquires = call === LOAD || call === ADD;
      let clock: Clock = replaced(clocks[t], t, clocks[t][t] + 1);
      if (acquires) clock = clock.map((c, i) => Math.max(c, releases[word][i]));
      for (const other of past[word]) {
        if (other.thread === t || (!other.plain && !plain) || (!other.writes && !writes)) continue;
        if (other.at > clock[other.thread]) outcome.race = true;
      }
      const after = call === ADD ? memory[word] + value : writes ? value : memory[word];
      const reads = call === READ || acquires;
      visit(
        onward,
        replaced(memory, word, after),
        reads ? replaced(seen, t, [...seen[t], memory[word]]) : seen,
        replaced(clocks, t, clock),
        call === STORE || call === ADD ? replaced(releases, word, clock) : releases,
        replaced(past, word, [...past[word], { thread: t, at: clock[t], plain, writes }]),
      );
    }
    if (ended) outcome.results.add(seen.map((reads) => reads.join('')).join(','));
  };
  visit(
    program.map(() => 0),
    Array.from({ length: WORDS }, () => 0),
    program.map(() => []),
    program.map(() => none),
    Array.from({ length: WORDS }, () => none),
    Array.from({ length: WORDS }, () => []),
  );
  return outcome;
}

test('random programs end as an exhaustive run with vector clocks says', () => {
  const prng = new Prng(1);
  let races = 0;
  const rounds = 600;
  for (let round = 0; round < rounds; round++) {
    const program = randomProgram(prng);
    const expected = byClocks(program);
    const actual = byExplorer(program);
    assert.equal(actual.race, expected.race, JSON.stringify(program));
    if (actual.race) races++;
    else {
      assert.deepEqual(
        [...actual.results].toSorted((a, b) => (a < b ? -1 : 1)),
        [...expected.results].toSorted((a, b) => (a < b ? -1 : 1)),
        JSON.stringify(program),
      );
    }
  }
  assert.ok(races > rounds / 5 && races < (rounds * 4) / 5, `${races} of ${rounds} have a race`);
});
