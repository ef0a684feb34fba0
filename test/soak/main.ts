/**
 * npm run soak: very many small flushes on real workers (rounds.ts), as many as asked for:
 *
 *   npm run soak -- --pushes=1000000
 *
 *   --pushes=N       batches appended to spines; default 10,000
 *   --collections=N  flushed together; default 8
 *   --restart=N      flushes of a process, at the most; default 400
 *   --seed=N         default 1
 *   --directory=D    on the disk to be tried; default .tidemark-soak/ in the checkout, removed at the end
 */
import { mkdirSync, mkdtempSync, rmSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { MiB } from '../../core/base/limits.ts';
import { flushSoak, rewrites, rewritesOfModel, runsP99 } from './rounds.ts';
import type { SoakReport } from './rounds.ts';

const { values } = parseArgs({
  options: {
    pushes: { type: 'string', default: '10000' },
    collections: { type: 'string', default: '8' },
    restart: { type: 'string', default: '400' },
    seed: { type: 'string', default: '1' },
    directory: { type: 'string', default: join(import.meta.dirname, '../../.tidemark-soak') },
  },
});

function count(name: string, text: string): number {
  const n = Number(text);
  if (Number.isSafeInteger(n) && n > 0) return n;
  console.error(`--${name} is a count, not ${text}`);
  process.exit(2);
}

const collections = count('collections', values.collections);
const startedAt = performance.now();

function describe(report: SoakReport): string {
  const seconds = (performance.now() - startedAt) / 1000;
  return (
    `${report.pushes} batches in ${report.flushes} flushes, ${report.rows} rows, ${seconds.toFixed(0)} s; ` +
    `${report.kills} kills, ${report.closes} closes; runs p99 ${runsP99(report)}, most ${report.runs.length - 1}; ` +
    `debt ${(report.debtBytesMax / MiB).toFixed(1)} MiB at most; stood still ${report.hardBlockMs.toFixed(0)} ms; ` +
    `rewrites ${rewrites(report).toFixed(2)}, model ${rewritesOfModel(report, collections).toFixed(2)}`
  );
}

mkdirSync(values.directory, { recursive: true });
const directory = mkdtempSync(join(values.directory, 'run-'));
let told = 0;
try {
  const report = await flushSoak({
    directory,
    seed: count('seed', values.seed),
    pushes: count('pushes', values.pushes),
    collections,
    flushesPerProcess: count('restart', values.restart),
    onProgress: (soFar) => {
      if (soFar.pushes < told + 10_000) return;
      told = soFar.pushes;
      console.log(describe(soFar));
    },
  });
  console.log(`done: ${describe(report)}`);
  rmSync(directory, { recursive: true, force: true });
  try {
    rmdirSync(values.directory);
  } catch {
    // Somebody else's run is there too.
  }
} catch (error) {
  console.error(`${(error as Error).message}\nthe store: ${directory}`);
  process.exitCode = 1;
}
