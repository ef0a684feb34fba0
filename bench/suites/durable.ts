/**
 * Durable one-operation transactions, N in flight: random keys, 100-byte values, each acknowledged
 * as the class demands. A whole-run suite: one engine in a fresh process on a fresh directory. Does
 * not measure what happens once the data outgrows the memtable; the load suites do. Called by
 * run-one.ts.
 */
import type { Driver } from '../engines/engine.ts';
import { expectedDigest, Rows } from '../rows.ts';
import type { Outcome, Task } from '../task.ts';
import { digestOf, TimedLoop } from './loop.ts';

export async function durable(task: Task, driver: Driver): Promise<Outcome> {
  const rows = new Rows(task.seed);
  const engine = await driver.open(task);
  const loop = new TimedLoop(task.inFlight, task.warmSeconds, task.seconds);
  await engine.runLoop(loop, rows);
  await engine.settle();
  const digest = await digestOf(engine);
  const figures = engine.figures();
  await engine.close();
  return {
    ...loop.counted(),
    figures,
    digest,
    digestExpected: expectedDigest(rows, loop.taken),
  };
}
