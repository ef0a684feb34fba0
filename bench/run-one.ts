/**
 * The child: runs one task (argument: its JSON) in a process of its own, prints the outcome as one
 * line of JSON, exits. A failure is an exit code and a message on stderr. Started by main.ts, as
 * plain JavaScript: no loader, so that threads and memory of an engine are what they are in service.
 */
import { DRIVERS } from './engines/all.ts';
import type { Driver } from './engines/engine.ts';
import { asOf } from './suites/as-of.ts';
import { durable } from './suites/durable.ts';
import { limit } from './suites/limit.ts';
import { load, prepare } from './suites/load.ts';
import { openings, points, scan } from './suites/reads.ts';
import { ring } from './suites/ring.ts';
import { sustained } from './suites/sustained.ts';
import type { Outcome, SuiteName, Task } from './task.ts';

/** Of the machine, of a primitive, or of ours in several ways: no engine is chosen. */
const PRIMITIVE_SUITES: Partial<Record<SuiteName, (task: Task) => Outcome | Promise<Outcome>>> = {
  'as-of-recent': asOf,
  'as-of-old': asOf,
  limit,
  ring,
};

const ENGINE_SUITES: Partial<Record<SuiteName, (task: Task, driver: Driver) => Promise<Outcome>>> =
  {
    durable,
    load,
    sustained,
    prepare,
    'point-all': points,
    'point-hot': points,
    scan,
    open: openings,
  };

async function run(task: Task): Promise<Outcome> {
  const primitive = PRIMITIVE_SUITES[task.suite];
  if (primitive !== undefined) return primitive(task);
  const suite = ENGINE_SUITES[task.suite];
  const driver = DRIVERS.find(({ name }) => name === task.contender);
  if (suite === undefined || driver === undefined) {
    throw new Error(`nothing is called ${task.suite} of ${task.contender}`);
  }
  return suite(task, driver);
}

const given: Task = JSON.parse(process.argv[2] ?? '');
const outcome = await run(given);
// An engine may keep idle threads for the next open; the next task is another process.
process.stdout.write(`${JSON.stringify(outcome)}\n`, () => process.exit(0));
