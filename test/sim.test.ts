/**
 * The whole engine on one thread, beside a naive model (test/sim/): the seeds that once found something,
 * a handful of others, and the promise that a seed is the same run every time.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { Caller } from './sim/caller.ts';
import { describeFailure, simulate } from './sim/run.ts';
import type { SimReport } from './sim/run.ts';
import { readSeeds } from './sim/seeds.ts';
import { World } from './sim/world.ts';

const FRESH_SEEDS: readonly number[] = [1, 2, 3, 5, 8, 11, 13, 17, 21, 34, 55];
const FRESH_TICKS = 4_000;
/** What so few seeds need not come to. */
const RARE: ReadonlySet<string> = new Set([
  'lookFaults',
  'sickDisks',
  'liesSurvived',
  'liesTold',
  'jobsHung',
  'refusals',
  'backups',
  'restores',
  'partsMoved',
]);

function expectSound(report: SimReport): void {
  if (report.failure === undefined) return;
  const replay = `npm run sim -- --seed=${report.seed} --ticks=${report.ticks}`;
  assert.fail(`${describeFailure(report.failure)}\n${replay}`);
}

test('seeds that once found something find nothing now', async () => {
  for (const { seed, ticks } of readSeeds()) expectSound(await simulate({ seed, ticks }));
});

test('other seeds find nothing', async () => {
  const counts: Record<string, number> = {};
  for (const seed of FRESH_SEEDS) {
    const report = await simulate({ seed, ticks: FRESH_TICKS });
    expectSound(report);
    for (const [name, n] of Object.entries(report.counts)) counts[name] = (counts[name] ?? 0) + n;
  }
  // A schedule under which nothing happens would find nothing either.
  for (const [name, n] of Object.entries(counts)) {
    assert.ok(n > 0 || RARE.has(name), `${name} never happened`);
  }
});

test('merges of the simulation move parts that they would only copy', async () => {
  const report = await simulate({ seed: 107, ticks: 6_000 });
  expectSound(report);
  assert.ok(
    report.counts['partsMoved'] > 0,
    'settings or schedule have changed: another seed is wanted',
  );
});

test('the same seed is the same run, another seed another one', async () => {
  const first = await simulate({ seed: 4, ticks: 3_000 });
  const second = await simulate({ seed: 4, ticks: 3_000 });
  const other = await simulate({ seed: 6, ticks: 3_000 });
  expectSound(first);
  assert.equal(first.hash, second.hash);
  assert.notEqual(first.hash, other.hash);
});

test('a run that fails lets go of its world, whatever is broken', async (context) => {
  context.mock.method(Caller.prototype, 'letGo', () => {
    throw new Error('broken by hand');
  });
  const dispose = context.mock.method(World.prototype, 'dispose');
  const { failure } = await simulate({ seed: 1, ticks: 300 });
  assert.match(String(failure), /broken by hand/);
  assert.equal(dispose.mock.callCount(), 1);
});

test('npm run sim runs one seed in a process of its own, with the same result', async () => {
  const args = ['--import', 'tsx', 'test/sim/main.ts', '--seed=7', '--ticks=2000'];
  const output = execFileSync(process.execPath, args, { encoding: 'utf8' });
  const { hash } = await simulate({ seed: 7, ticks: 2_000 });
  assert.match(output, new RegExp(`^seed 7: ${hash} `, 'm'));
});

test('a soak tells what it has checked, and how fast', () => {
  const args = ['--import', 'tsx', 'test/sim/main.ts', '--soak', '--from=3', '--minutes=0.001'];
  const output = execFileSync(process.execPath, args, { encoding: 'utf8' });
  assert.match(
    output,
    /^1 seeds, 0 failed, .* [1-9][0-9]* operations checked, [1-9][0-9]* per CPU/m,
  );
});
