/**
 * npm run crash: kills processes that write to a real disk, and looks whether anything acknowledged is
 * missing, or anything is there that should not be (rounds.ts).
 *
 *   --rounds=N     stores looked at after a kill; default 100
 *   --seed=N       draws stores, loads and moments; when exactly a kill falls the system decides
 *   --lanes=N      processes side by side; default 2
 *   --stores=N     stores of each process, the first on threads, the others inline; default 4
 *   --patience=N   seconds that a process may say nothing; default 60: more on a busy machine
 *   --power        cut the power of the disk, too: a file system of the run's own; needs root (power-disk.ts)
 *   --directory=D  on the disk to be tried; default .tidemark-kill/ in the checkout
 */
import { existsSync, rmdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { parseArgs } from 'node:util';
import { killRounds } from './rounds.ts';

const ROOT = join(import.meta.dirname, '..', '..');

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '100' },
    seed: { type: 'string', default: '1' },
    lanes: { type: 'string', default: '2' },
    stores: { type: 'string', default: '4' },
    power: { type: 'boolean', default: false },
    patience: { type: 'string', default: '60' },
    directory: { type: 'string', default: join(ROOT, '.tidemark-kill') },
  },
});

function count(name: string, text: string): number {
  const n = Number(text);
  if (Number.isSafeInteger(n) && n >= 0) return n;
  console.error(`--${name} is a count, not ${text}`);
  process.exit(2);
}

if (!existsSync(join(ROOT, 'dist', 'actors', 'index.js'))) {
  console.error('there is no build: npm run build');
  process.exit(2);
}

// Disks of the run's own are given back on the way out.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));

const rounds = count('rounds', values.rounds);
const seed = count('seed', values.seed);
const lanes = Math.max(1, count('lanes', values.lanes));
const startedAt = performance.now();
const seconds = (): number => (performance.now() - startedAt) / 1000;
let told = 0;
const report = await killRounds({
  seed,
  rounds,
  lanes,
  stores: Math.max(1, count('stores', values.stores)),
  power: values.power,
  silenceMsMax: 1_000 * Math.max(1, count('patience', values.patience)),
  directory: join(values.directory, `run-${process.pid}`),
  onRound: (done) => {
    if (done < told + 100) return;
    told = done;
    console.log(`${done} rounds, ${(done / seconds()).toFixed(1)} per second`);
  },
});

const { failure } = report;
const perSecond = (report.rounds / seconds()).toFixed(1);
console.log(`${report.rounds} rounds in ${seconds().toFixed(0)} s, ${perSecond} per second`);
console.log(
  `${report.processes} processes, ${report.kills} stores killed, ${report.closes} closed in order, ${report.stores} stores, ` +
    `${report.acknowledged} transactions acknowledged, ${report.rotations} rotations`,
);
for (const counts of [report.killsByPhase, report.killsByKind]) {
  console.log('killed while');
  for (const [name, n] of Object.entries(counts).toSorted(([, a], [, b]) => b - a)) {
    console.log(`  ${String(n).padStart(6)} ${name}`);
  }
}
console.log(`lost = ${report.lost}`);
if (failure === undefined) {
  try {
    rmdirSync(values.directory);
  } catch {
    // Somebody else's run is there too.
  }
} else {
  const show = (path: string): string => relative(process.cwd(), path) || '.';
  const { task } = failure;
  console.error(`\nfound: ${failure.text}`);
  console.error(`the store before the process that found it: ${show(failure.before)}`);
  console.error(`as that process left it:                    ${show(failure.directory)}`);
  console.error(`to look: npx tidemark inspect ${show(failure.before)}`);
  const again = JSON.stringify([{ ...task, closeAfter: 0 }]);
  console.error(`to find it again, on a copy: node child.js '${again}' 3>/dev/null`);
  console.error(`  (child.js is in ${show(join(failure.directory, '..', 'program/test/kill'))})`);
  console.error(`the same stores and loads: npm run crash -- --seed=${seed} --rounds=${rounds}`);
  process.exitCode = 1;
}
