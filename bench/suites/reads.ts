/**
 * Reads of a prepared store, opened in a fresh process: points over all rows, points over 10,000 hot
 * rows, the full scan, and opening itself. Reads make one untimed pass (which also checks every
 * row), then run for at least the asked time. Called by run-one.ts.
 *
 * The store fits the page cache and, for those that have one, nearly fits the engine's memory: none
 * of these figures says anything about a cold disk.
 */
import { Bench } from 'tinybench';
import type { Driver } from '../engines/engine.ts';
import { compareNumbers, cpuSecondsNow, Mark, median, quantile } from '../measure.ts';
import { Digest, expectedDigest, KEY_BYTES, random, Rows } from '../rows.ts';
import type { Outcome, Task } from '../task.ts';
import { digestOf } from './loop.ts';

const HOT_ROWS = 10_000;
/** Reads per sample: enough that taking the time of a sample costs nothing beside it. */
export const GROUP_READS = 1000;

export async function points(task: Task, driver: Driver): Promise<Outcome> {
  const rows = new Rows(task.seed);
  const engine = await driver.open(task);
  const next = random(task.seed);
  const hot = task.suite === 'point-hot';
  const chosenCount = hot ? Math.min(HOT_ROWS, task.rowCount) : task.rowCount;
  // Hot rows lie scattered over the store, not side by side.
  const stride = Math.floor(task.rowCount / chosenCount);

  const digest = new Digest();
  const expected = new Digest();
  const passKey = Buffer.alloc(KEY_BYTES);
  for (let i = 0; i < chosenCount; i++) {
    const row = i * stride;
    rows.keyInto(row, passKey);
    expected.add(passKey, rows.value(row));
    const value = engine.get(passKey);
    if (value !== undefined) digest.add(passKey, value);
  }

  const keys = Array.from({ length: GROUP_READS }, () => Buffer.alloc(KEY_BYTES));
  const timed = await timedReads(
    task,
    () => {
      for (const key of keys) rows.keyInto((next() % chosenCount) * stride, key);
    },
    () => engine.readMany(keys),
  );
  const figures = engine.figures();
  await engine.close();
  return {
    ...timed,
    figures: { ...figures, ...timed.figures },
    digest: digest.toString(),
    digestExpected: expected.toString(),
  };
}

/** Times `read`, which reads a group that `choose` has chosen, for at least the asked time. */
export async function timedReads(
  task: Task,
  choose: () => void,
  read: () => number | Promise<number>,
): Promise<Omit<Outcome, 'digest' | 'digestExpected'>> {
  choose();
  const trial = read();
  await trial;
  let cpuSeconds = 0;
  let cpuAtStart = 0;
  let groups = 0;
  const bench = new Bench({
    time: task.seconds * 1000,
    iterations: 4,
    warmupTime: task.warmSeconds * 1000,
    warmupIterations: 1,
    throws: true,
  });
  bench.add('reads', read, {
    async: trial instanceof Promise,
    beforeAll() {
      cpuSeconds = 0;
      groups = 0;
    },
    // Choosing the keys is not timed: it would be a tenth of the fastest engine's figure.
    beforeEach() {
      choose();
      cpuAtStart = cpuSecondsNow();
    },
    afterEach() {
      cpuSeconds += cpuSecondsNow() - cpuAtStart;
      groups++;
    },
  });
  await bench.run();
  const result = bench.tasks[0].result;
  if (result.state !== 'completed') throw new Error(`tinybench ended ${result.state}`);
  return {
    operations: groups * GROUP_READS,
    seconds: (result.latency.mean * groups) / 1000,
    cpuSeconds,
    figures: {
      // Milliseconds per group of 1,000 reads are microseconds per read.
      readP50Us: result.latency.p50,
      readP99OfGroupsUs: result.latency.p99,
      groupCount: groups,
    },
  };
}

export async function scan(task: Task, driver: Driver): Promise<Outcome> {
  const rows = new Rows(task.seed);
  const engine = await driver.open(task);
  const digest = await digestOf(engine);

  let count = 0;
  let sum = 0;
  const visit = (key: Uint8Array, value: Uint8Array): void => {
    count++;
    sum = (sum + key[0] + value[0]) | 0;
  };
  const start = new Mark();
  let end = start;
  let passes = 0;
  let sumOfPass: number | undefined;
  while (end.atMs - start.atMs < task.seconds * 1000) {
    sum = 0;
    await engine.scan(visit);
    end = new Mark();
    passes++;
    if (sumOfPass !== undefined && sum !== sumOfPass) throw new Error('two scans differ');
    sumOfPass = sum;
  }
  const figures = engine.figures();
  await engine.close();
  return {
    operations: count,
    seconds: (end.atMs - start.atMs) / 1000,
    cpuSeconds: end.cpuSeconds - start.cpuSeconds,
    figures: { ...figures, passCount: passes },
    digest,
    digestExpected: expectedDigest(rows, task.rowCount),
  };
}

export async function openings(task: Task, driver: Driver): Promise<Outcome> {
  const rows = new Rows(task.seed);
  const digest = new Digest();
  const expected = new Digest();
  const next = random(task.seed);
  const openMs: number[] = [];
  const closeMs: number[] = [];
  let cpuSeconds = 0;
  for (let i = 0; i <= task.openCount; i++) {
    const start = new Mark();
    const engine = await driver.open(task);
    const opened = new Mark();
    openMs.push(opened.atMs - start.atMs);
    if (i > 0) cpuSeconds += opened.cpuSeconds - start.cpuSeconds;
    const row = next() % task.rowCount;
    const key = rows.key(row);
    expected.add(key, rows.value(row));
    const value = engine.get(key);
    if (value !== undefined) digest.add(key, value);
    const closing = performance.now();
    await engine.close();
    closeMs.push(performance.now() - closing);
  }
  const firstMs = openMs.shift()!;
  return {
    operations: openMs.length,
    seconds: openMs.reduce((sum, ms) => sum + ms, 0) / 1000,
    cpuSeconds,
    figures: {
      openMedianMs: median(openMs),
      openMaxMs: quantile(openMs.toSorted(compareNumbers), 1),
      openFirstMs: firstMs,
      closeMedianMs: median(closeMs),
    },
    digest: digest.toString(),
    digestExpected: expected.toString(),
  };
}
