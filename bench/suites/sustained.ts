/**
 * Random upserts for so long that merges, not memory, set the pace: as many operations as keys, in
 * batches, several in flight. Beside the rate: what was written for it (the kernel's count, for every
 * engine alike), the longest time without an acknowledgement, how many runs a read meets meanwhile
 * (where the engine tells), the rate at the end against the rate at the beginning, and the disk taken
 * once the engine has been left alone for a while. Called by run-one.ts.
 *
 * The kernel counts a page of a file when it becomes dirty: one dirtied again before it was written
 * back counts once, which favours engines that write in place. Files deleted before they were written
 * back count in full, which favours nobody here.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Driver } from '../engines/engine.ts';
import { compareNumbers, Mark, quantile, quietAtMs, writtenBytes } from '../measure.ts';
import { ROW_BYTES, Upserts } from '../rows.ts';
import type { Outcome, Task } from '../task.ts';
import { bytesIn, writeAll } from './load.ts';
import { digestOf } from './loop.ts';

const RUNS_PERIOD_MS = 50;
/** The gate of the model: a spine batch is merged once it has so many runs (spine.md 3.4). */
const RUNS_PER_MERGE = 4;

/** When what was acknowledged. */
class Acknowledgements {
  readonly #startMs: number = performance.now();
  readonly #total: number;
  #count = 0;
  #lastMs = this.#startMs;
  #tenthMs = Number.NaN;
  #nineTenthsMs = Number.NaN;
  longestPauseMs = 0;

  constructor(total: number) {
    this.#total = total;
  }

  add(count: number): void {
    const nowMs = performance.now();
    if (this.#count > 0) this.longestPauseMs = Math.max(this.longestPauseMs, nowMs - this.#lastMs);
    this.#lastMs = nowMs;
    this.#count += count;
    if (Number.isNaN(this.#tenthMs) && this.#count >= 0.1 * this.#total) this.#tenthMs = nowMs;
    if (Number.isNaN(this.#nineTenthsMs) && this.#count >= 0.9 * this.#total) {
      this.#nineTenthsMs = nowMs;
    }
  }

  /** Rate of the last tenth of the rows divided by that of the first. */
  get lastToFirst(): number {
    return (this.#tenthMs - this.#startMs) / (this.#lastMs - this.#nineTenthsMs);
  }
}

export async function sustained(task: Task, driver: Driver): Promise<Outcome> {
  const rows = new Upserts(task.seed, task.rowCount);
  const engine = await driver.open(task);
  await sleep(task.warmSeconds * 1000);

  const runs: number[] = [];
  const liveRuns = engine.liveRuns?.bind(engine);
  const watch =
    liveRuns === undefined ? undefined : setInterval(() => runs.push(liveRuns()), RUNS_PERIOD_MS);
  const writtenBefore = writtenBytes();
  const start = new Mark();
  const acknowledgements = new Acknowledgements(task.rowCount);
  await writeAll(engine, rows, task, (count) => acknowledgements.add(count));
  const acknowledged = new Mark();
  await engine.settle();
  clearInterval(watch);
  const quietMs = await quietAtMs(task.seconds * 1000);
  const quiet = new Mark();
  const written = writtenBytes() - writtenBefore;
  const figures = engine.figures();

  await sleep(task.restSeconds * 1000);
  await quietAtMs(task.seconds * 1000);
  const diskBytes = bytesIn(task.directory);
  const rested = engine.figures();
  const writtenResting = writtenBytes() - writtenBefore - written;

  const digest = await digestOf(engine);
  await engine.close();
  const expected = rows.expected(task.rowCount);
  const ascending = runs.toSorted(compareNumbers);
  const given = task.rowCount * ROW_BYTES;
  const live = expected.keys * ROW_BYTES;
  return {
    operations: task.rowCount,
    seconds: (Math.max(quietMs, acknowledged.atMs) - start.atMs) / 1000,
    cpuSeconds: quiet.cpuSeconds - start.cpuSeconds,
    figures: taken({
      ...figures,
      acknowledgedSeconds: (acknowledged.atMs - start.atMs) / 1000,
      acknowledgedCpuSeconds: acknowledged.cpuSeconds - start.cpuSeconds,
      longestPauseMs: acknowledgements.longestPauseMs,
      lastToFirstRatio: acknowledgements.lastToFirst,
      writtenBytes: written,
      writtenPerGivenRatio: written / given,
      writtenRestingPerGivenRatio: writtenResting / given,
      partsOfModelRatio: partsOfModel(figures),
      liveRunsP99Count: quantile(ascending, 0.99),
      liveRunsMaxCount: ascending.at(-1) ?? Number.NaN,
      liveBytes: live,
      diskBytes,
      diskPerLiveRatio: diskBytes / live,
      partsPerLiveRatio: (rested['stats.spine.files.bytes'] ?? Number.NaN) / live,
    }),
    digest,
    digestExpected: expected.digest,
  };
}

/** Without those that this engine does not tell. */
function taken(figures: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(figures).filter(([, value]) => Number.isFinite(value)));
}

/**
 * Ours alone: bytes written into parts for each byte flushed, against the model of merging everything
 * that comes in by fours: one flush, and a rewrite for every fourfold of it.
 */
function partsOfModel(figures: Readonly<Record<string, number>>): number {
  const flushes = figures['stats.spine.jobs.flushesApplied'] ?? Number.NaN;
  const amplification = figures['stats.spine.writeAmplification'] ?? Number.NaN;
  return amplification / (1 + Math.log2(Math.max(1, flushes)) / Math.log2(RUNS_PER_MERGE));
}
