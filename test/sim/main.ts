/**
 * npm run sim: runs seeds, one after the other, until one fails or there are no more.
 *
 *   --seed=N      the first seed; default: the kept ones (test/golden/seeds.txt), then 1
 *   --ticks=N     decisions of the schedule in each; default 20,000
 *   --seeds=N     how many seeds; default 1
 *   --minutes=N   instead: as many as fit
 *   --keep-going  a failure is told and the next seed is run
 *   --trace=N     keeps every step in words and shows the last N before a failure
 *   --soak        seed after seed from --from=SEED (default 1), each as long as the seed says, until one
 *                 fails or --minutes=N are over; a line a minute with what was checked and the rate
 */
import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import { Prng } from '../../core/base/prng.ts';
import { describeFailure, simulate } from './run.ts';
import type { SimReport } from './run.ts';
import { readSeeds } from './seeds.ts';

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    ticks: { type: 'string', default: '20000' },
    seeds: { type: 'string', default: '1' },
    minutes: { type: 'string' },
    'keep-going': { type: 'boolean', default: false },
    trace: { type: 'string', default: '0' },
    soak: { type: 'boolean', default: false },
    from: { type: 'string', default: '1' },
  },
});

const ticks = count('ticks', values.ticks);
const linesShown = count('trace', values.trace);
const until = values.minutes === undefined ? undefined : Date.now() + Number(values.minutes) * 60e3;

function count(name: string, text: string): number {
  const n = Number(text);
  if (Number.isSafeInteger(n) && n >= 0) return n;
  console.error(`--${name} is a count, not ${text}`);
  process.exit(2);
}

function commit(): string {
  try {
    const output = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' });
    return output.trim();
  } catch {
    return 'unknown';
  }
}

/** Of a soak's seed: mostly short, for what goes wrong at open and at the end; some long. */
const SOAK_TICKS: readonly number[] = [2_000, 4_000, 4_000, 10_000, 30_000];

function* soaked(): Generator<{ seed: number; ticks: number }> {
  for (let seed = count('from', values.from); ; seed++) {
    yield { seed, ticks: new Prng(seed).pick(SOAK_TICKS) };
  }
}

function* wanted(): Generator<{ seed: number; ticks: number }> {
  if (values.soak) return yield* soaked();
  if (values.seed === undefined) yield* readSeeds();
  const first = values.seed === undefined ? 1 : count('seed', values.seed);
  const seeds = until === undefined ? count('seeds', values.seeds) : Infinity;
  for (let i = 0; i < seeds; i++) yield { seed: first + i, ticks };
}

/** What was put in order, and every answer, row and item that was compared with the model. */
function checkedIn({ counts }: SimReport): number {
  const { operations = 0, compared = 0, followed = 0, conditions = 0 } = counts;
  return operations + compared + followed + conditions;
}

let failures = 0;
let done = 0;
let ticksDone = 0;
let checked = 0;
const totals: Record<string, number> = {};
const startedAt = Date.now();
let saidAt = startedAt;

function summary(): string {
  const seconds = (Date.now() - startedAt) / 1000;
  const { user, system } = process.cpuUsage();
  const perCpuSecond = Math.round(checked / ((user + system) / 1e6));
  const rate = Math.round(ticksDone / seconds);
  return (
    `${done} seeds, ${failures} failed, ${seconds.toFixed(0)} s, ${rate} ticks/s, ` +
    `${checked} operations checked, ${perCpuSecond} per CPU second`
  );
}

for (const run of wanted()) {
  if (until !== undefined && Date.now() > until) break;
  const lines: string[] | undefined = linesShown > 0 ? [] : undefined;
  const began = Date.now();
  const report = await simulate({ ...run, ...(lines === undefined ? {} : { lines }) });
  const seconds = (Date.now() - began) / 1000;
  done++;
  ticksDone += run.ticks;
  checked += checkedIn(report);
  for (const [name, n] of Object.entries(report.counts)) totals[name] = (totals[name] ?? 0) + n;
  if (values.soak && Date.now() - saidAt >= 60e3) {
    saidAt = Date.now();
    console.log(`${summary()}; next --from=${run.seed + 1}`);
  }
  if (report.failure === undefined) {
    if (until === undefined && !values.soak) {
      const counts = Object.entries(report.counts).map(([name, n]) => `${name} ${n}`);
      console.log(`seed ${run.seed}: ${report.hash} ${seconds.toFixed(1)} s, ${counts.join(', ')}`);
    }
    continue;
  }
  failures++;
  if (lines !== undefined) console.error(lines.slice(-linesShown).join('\n'));
  console.error(describeFailure(report.failure));
  console.error(`npm run sim -- --seed=${run.seed} --ticks=${run.ticks}   (commit ${commit()})`);
  if (!values['keep-going']) break;
}
console.log(summary());
if (done > 1) console.log(JSON.stringify(totals));
process.exitCode = failures > 0 ? 1 : 0;
