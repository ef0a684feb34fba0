/**
 * The flush soak (spine.md, test S1): very many small flushes on real workers, with pauses and restarts
 * at random moments, some in order, most by kill -9. What it looks for is what only many flushes show:
 * whether live runs and debt stay within their marks, and write amplification within the model's. Used
 * by main.ts and the test.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { Prng } from '../../core/base/prng.ts';
import type { Progress, Task } from './plan.ts';

export type SoakOptions = {
  readonly directory: string;
  readonly seed: number;
  /** Ends when so many batches were pushed. */
  readonly pushes: number;
  readonly collections: number;
  /** A process is restarted after so many flushes at the most. */
  readonly flushesPerProcess: number;
  readonly onProgress?: (report: SoakReport) => void;
};

export type SoakReport = {
  pushes: number;
  flushes: number;
  rows: number;
  kills: number;
  closes: number;
  flushedBytes: number;
  mergedBytes: number;
  /** Of one collection, whenever a flush was done: how often there were so many. */
  readonly runs: number[];
  debtBytesMax: number;
  hardBlockMs: number;
};

/** So many or fewer runs in all but one of a hundred observations. */
export function runsP99(report: SoakReport): number {
  const total = report.runs.reduce((sum, count) => sum + (count ?? 0), 0);
  let below = 0;
  return report.runs.findIndex((count) => (below += count ?? 0) >= 0.99 * total);
}

/** Bytes rewritten by merges for each byte flushed. */
export function rewrites(report: SoakReport): number {
  return report.mergedBytes / Math.max(1, report.flushedBytes);
}

/** The model of spine.md 3.4 for new rows only: one rewrite for each fourfold of a flush. */
export function rewritesOfModel(report: SoakReport, collections: number): number {
  return Math.log2(Math.max(2, report.pushes / collections)) / 2;
}

/** Runs it. @throws Error with what a process found wrong. */
export async function flushSoak(options: SoakOptions): Promise<SoakReport> {
  const { collections, directory } = options;
  const prng = new Prng(options.seed);
  const report: SoakReport = {
    pushes: 0,
    flushes: 0,
    rows: 0,
    kills: 0,
    closes: 0,
    flushedBytes: 0,
    mergedBytes: 0,
    runs: [],
    debtBytesMax: 0,
    hardBlockMs: 0,
  };
  let promised: readonly number[] = Array.from({ length: collections }, () => 0);
  while (report.pushes < options.pushes) {
    const flushes = 1 + prng.below(options.flushesPerProcess);
    const isClosed = prng.chance(0.3);
    const task = {
      directory,
      seed: prng.u32(),
      collections,
      promised,
      flushes: isClosed ? flushes : Number.MAX_SAFE_INTEGER,
      isWhole: false,
    };
    promised = await runProcess(task, (last, now) => {
      add(report, last, now);
      options.onProgress?.(report);
      return !isClosed && (report.pushes >= options.pushes || now.flushes >= flushes);
    });
    if (isClosed) report.closes++;
    else report.kills++;
  }
  // What is there in the end is looked at row by row.
  await runProcess(
    { directory, seed: prng.u32(), collections, promised, flushes: 0, isWhole: true },
    () => false,
  );
  return report;
}

function add(report: SoakReport, last: Progress, now: Progress): void {
  report.flushes += now.flushes - last.flushes;
  report.pushes += now.pushes - last.pushes;
  report.flushedBytes += now.flushedBytes - last.flushedBytes;
  report.mergedBytes += now.mergedBytes - last.mergedBytes;
  report.hardBlockMs += now.hardBlockMs - last.hardBlockMs;
  report.debtBytesMax = Math.max(report.debtBytesMax, now.debtBytes);
  report.runs[now.runs] = (report.runs[now.runs] ?? 0) + 1;
  report.rows = now.rows.reduce((sum, count) => sum + count, 0);
}

const NOTHING: Progress = {
  flushes: 0,
  pushes: 0,
  rows: [],
  flushedBytes: 0,
  mergedBytes: 0,
  runs: 0,
  debtBytes: 0,
  hardBlockMs: 0,
};

/** One process, until it ends or `hear` asks for its death. Rows promised by it, by collection. */
async function runProcess(
  task: Task,
  hear: (last: Progress, now: Progress) => boolean,
): Promise<readonly number[]> {
  const child = fork(join(import.meta.dirname, 'child.ts'), [JSON.stringify(task)], {
    execArgv: ['--import', 'tsx'],
    stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
  });
  let words = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    words = (words + text).slice(0, 20_000);
  });
  let last = NOTHING;
  let isKilled = false;
  child.on('message', (message) => {
    const now = message as Progress;
    const isEnough = hear(last, now);
    last = now;
    if (!isEnough || isKilled) return;
    isKilled = true;
    child.kill('SIGKILL');
  });
  const [code] = (await once(child, 'close')) as [number | null];
  if (!isKilled && code !== 0) {
    throw new Error(`the process ended with ${code}: ${words}; ${JSON.stringify(task)}`);
  }
  return last === NOTHING ? task.promised : last.rows;
}
