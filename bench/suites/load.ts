/**
 * A random load: distinct random keys in batches of 1,000, several batches in flight, one batch per
 * turn of the event loop. Timed to the last acknowledgement and to quiet (everything acknowledged is
 * synced where the class promises it, and the process neither computes nor writes). The same run
 * gives the delay of the event loop beyond its idle figure, and memory. `prepare` is the same load
 * without instruments, kept for the read suites. Called by run-one.ts.
 *
 * Does not measure overwrites, nor a data set larger than the page cache.
 */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import type { Driver, Engine } from '../engines/engine.ts';
import { arenaTouchedBytes, LoopDelay, Mark, MemoryWatch, quietAtMs } from '../measure.ts';
import { expectedDigest, Rows } from '../rows.ts';
import type { Outcome, Task } from '../task.ts';
import { digestOf } from './loop.ts';

/** Writes the task's rows; `onAcknowledged` is called for each batch that is, in order or not. */
export async function writeAll(
  engine: Engine,
  rows: Rows,
  task: Task,
  onAcknowledged: (count: number) => void = () => {},
): Promise<void> {
  const own = task.configuration.options['inFlight'];
  const inFlight = typeof own === 'number' ? own : task.inFlight;
  let outstanding = 0;
  let wake: (() => void) | undefined;
  let failure: unknown;
  const settled = (count: number): void => {
    if (count > 0) onAcknowledged(count);
    outstanding--;
    wake?.();
    wake = undefined;
  };
  const room = async (limit: number): Promise<void> => {
    const full = (): boolean => outstanding > limit;
    while (full()) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    if (failure !== undefined) throw failure;
  };
  for (let from = 0; from < task.rowCount; from += task.batchRows) {
    await room(inFlight - 1);
    outstanding++;
    const count = Math.min(task.batchRows, task.rowCount - from);
    engine.writeBatch(rows, from, count).then(
      () => settled(count),
      (error: unknown) => {
        failure ??= error;
        settled(0);
      },
    );
    await turn();
  }
  await room(0);
}

/** What the files below take of the disk. */
export function bytesIn(directory: string): number {
  let bytes = 0;
  for (const entry of readdirSync(directory, { withFileTypes: true, recursive: true })) {
    if (entry.isFile()) bytes += statSync(join(entry.parentPath, entry.name)).blocks * 512;
  }
  return bytes;
}

export async function load(task: Task, driver: Driver): Promise<Outcome> {
  const rows = new Rows(task.seed);
  const rssBeforeBytes = process.memoryUsage.rss();
  const engine = await driver.open(task);

  const delay = new LoopDelay();
  delay.start();
  await sleep(task.warmSeconds * 1000);
  const idle = delay.stop();

  const memory = new MemoryWatch();
  memory.start();
  delay.start();
  const start = new Mark();
  await writeAll(engine, rows, task);
  const acknowledged = new Mark();
  const loading = delay.stop();
  const { heapGrowthBytes } = memory.stop();
  const arenaBytes = arenaTouchedBytes();

  await engine.settle();
  const quietMs = await quietAtMs(task.seconds * 1000);
  const cpuQuiet = new Mark().cpuSeconds;

  const digest = await digestOf(engine);
  const figures = engine.figures();
  await engine.close();
  return {
    operations: task.rowCount,
    seconds: (Math.max(quietMs, acknowledged.atMs) - start.atMs) / 1000,
    cpuSeconds: cpuQuiet - start.cpuSeconds,
    figures: {
      ...figures,
      acknowledgedSeconds: (acknowledged.atMs - start.atMs) / 1000,
      acknowledgedCpuSeconds: acknowledged.cpuSeconds - start.cpuSeconds,
      loopDelayIdleP99Ms: idle.p99Ms,
      loopDelayP99Ms: loading.p99Ms,
      loopDelayMaxMs: loading.maxMs,
      loopDelayOverIdleP99Ms: Math.max(0, loading.p99Ms - idle.p99Ms),
      rssBeforeBytes,
      rssMaxBytes: memory.rssBytesMax,
      anonymousMaxBytes: memory.anonymousBytesMax,
      arenaTouchedBytes: arenaBytes,
      beyondArenaBytes: memory.anonymousBytesMax - arenaBytes,
      heapGrowthBytes,
      diskBytes: bytesIn(task.directory),
    },
    digest,
    digestExpected: expectedDigest(rows, task.rowCount),
  };
}

export async function prepare(task: Task, driver: Driver): Promise<Outcome> {
  const rows = new Rows(task.seed);
  const engine = await driver.open(task);
  const start = new Mark();
  await writeAll(engine, rows, task);
  await engine.settle();
  await quietAtMs(task.seconds * 1000);
  const end = new Mark();
  const digest = await digestOf(engine);
  await engine.close();
  return {
    operations: task.rowCount,
    seconds: (end.atMs - start.atMs) / 1000,
    cpuSeconds: end.cpuSeconds - start.cpuSeconds,
    figures: {},
    digest,
    digestExpected: expectedDigest(rows, task.rowCount),
  };
}
