/**
 * Random sequences of spine operations against the naive model (world.ts), as many as asked for:
 *
 *   node --import tsx test/spine/soak.ts --runs=1000000 --workers=2
 *
 *   --runs=N      sequences; each is one seed, one kind of collection, one effort, one length
 *   --seed=N      the first seed; default 1
 *   --steps=N     operations of the longest; each has between a quarter and all of them. Default 48
 *   --workers=N   processes, each with its share of the runs; default 1
 *
 * A failure ends it with the seed: `--seed=S --runs=1` (and the same --steps) runs that sequence again.
 */
import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { parseArgs } from 'node:util';
import { setVerify } from '../../core/base/assert.ts';
import { KIND_KEYED, KIND_MULTISET } from '../../core/base/update.ts';
import { World } from './world.ts';

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '1000' },
    seed: { type: 'string', default: '1' },
    steps: { type: 'string', default: '48' },
    workers: { type: 'string', default: '1' },
  },
});

function count(name: string, text: string): number {
  const n = Number(text);
  if (Number.isSafeInteger(n) && n > 0) return n;
  process.stderr.write(`--${name} is a count, not ${text}\n`);
  process.exit(2);
}

/** Between two lines about how it goes. */
const TELL_MS = 60_000;

/** The sequence of a seed. Every other one ends with all merges done, and one run left. */
function runSequence(seed: number, stepsMax: number): number {
  const kind = (seed & 1) === 0 ? KIND_KEYED : KIND_MULTISET;
  const effort = (seed & 2) === 0 ? 1 : 1_024;
  const world = new World(kind, seed, effort);
  const steps = Math.ceil(stepsMax / 4) + world.prng.below(Math.ceil((stepsMax * 3) / 4));
  for (let i = 0; i < steps; i++) world.step();
  if ((seed & 4) === 0) return steps;
  world.drain();
  world.spine.collapse();
  world.drain();
  assert.ok(world.spine.batches().length <= 1, 'collapsed and merged, one batch is left');
  world.check(world.figures());
  return steps;
}

function runAll(first: number, runs: number, stepsMax: number): void {
  setVerify(true);
  let steps = 0;
  let toldAt = performance.now();
  const tell = (done: number): void => {
    const { user, system } = process.cpuUsage();
    const perSecond = (done / ((user + system) / 1e6)).toFixed(0);
    process.stdout.write(
      `${done} sequences from seed ${first} on, ${steps} operations, ${perSecond} sequences per cpu-s\n`,
    );
  };
  for (let i = 0; i < runs; i++) {
    const seed = first + i;
    try {
      steps += runSequence(seed, stepsMax);
    } catch (error) {
      process.stdout.write(
        `FAILED: node --import tsx test/spine/soak.ts --seed=${seed} --runs=1 --steps=${stepsMax}\n`,
      );
      throw error;
    }
    if (performance.now() - toldAt < TELL_MS) continue;
    toldAt = performance.now();
    tell(i + 1);
  }
  tell(runs);
}

const runs = count('runs', values.runs);
const first = count('seed', values.seed);
const stepsMax = count('steps', values.steps);
const workers = count('workers', values.workers);
if (workers === 1) {
  runAll(first, runs, stepsMax);
} else {
  const share = Math.ceil(runs / workers);
  const exits = Array.from({ length: workers }, async (_, i) => {
    const from = i * share;
    const own = Math.min(share, runs - from);
    if (own <= 0) return 0;
    const child = fork(import.meta.filename, [
      `--runs=${own}`,
      `--seed=${first + from}`,
      `--steps=${stepsMax}`,
    ]);
    const [code] = (await once(child, 'exit')) as [number | null];
    return code ?? 1;
  });
  for (const code of await Promise.all(exits)) if (code !== 0) process.exitCode = 1;
}
