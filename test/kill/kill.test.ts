/**
 * Goal: a process may be killed at any moment, and nothing that it acknowledged is lost. A small slice of
 * `npm run crash`, and a look whether those rounds would notice.
 */
import assert from 'node:assert/strict';
import { existsSync, rmSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { killRounds } from './rounds.ts';

const BASE = join(import.meta.dirname, '..', '..', '.tidemark-kill');

/** However busy the machine is. */
const SILENCE_MS_MAX = 300_000;

after(() => {
  try {
    rmdirSync(BASE);
  } catch {
    // Somebody else's run is there too, or there never was one.
  }
});

test('processes killed at random lose nothing that they acknowledged', async () => {
  const directory = join(BASE, `test-${process.pid}`);
  const report = await killRounds({
    seed: 7,
    rounds: 8,
    lanes: 2,
    stores: 2,
    directory,
    silenceMsMax: SILENCE_MS_MAX,
  });
  assert.equal(report.failure, undefined, JSON.stringify(report.failure));
  assert.equal(report.lost, 0, `${report.lost} lost`);
  assert.ok(report.rounds >= 8, `${report.rounds} rounds`);
  assert.ok(report.kills > 0, 'somebody was killed');
  assert.ok(report.acknowledged > 0, 'something was acknowledged');
  assert.ok(!existsSync(directory), 'the directory is gone');
});

test('a promise that the store does not keep is noticed, and the store is kept', async () => {
  const directory = join(BASE, `test-${process.pid}-claim`);
  const claim = (promised: number): number => promised + 1_000_000;
  const report = await killRounds({
    seed: 8,
    rounds: 40,
    lanes: 1,
    stores: 2,
    directory,
    claim,
    silenceMsMax: SILENCE_MS_MAX,
  });
  try {
    assert.match(report.failure?.text ?? '', /ends at \d+, \d+ was promised/);
    assert.ok(report.lost > 0, `${report.lost} lost`);
    assert.ok(existsSync(report.failure?.directory ?? ''), 'the store is there');
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
