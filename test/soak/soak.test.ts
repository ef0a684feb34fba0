/**
 * Goal: however many small flushes there are, and however the process ends, runs and debt stay within
 * their marks, merges rewrite no more than the model says, and every row is there. A small slice of
 * `test/soak/main.ts`.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { runsHard, runsSoft } from '../../core/base/limits.ts';
import { flushSoak, rewrites, rewritesOfModel, runsP99 } from './rounds.ts';

test('many small flushes, killed and closed between, keep runs and rewrites within bounds', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'tidemark-soak-'));
  try {
    const report = await flushSoak({
      directory,
      // The first process closes, the second is killed, however late the kill comes.
      seed: 46,
      pushes: 120,
      collections: 4,
      flushesPerProcess: 25,
    });
    assert.ok(report.pushes >= 120, `${report.pushes} batches`);
    assert.ok(report.kills > 0 && report.closes > 0, 'killed, and closed in order');
    assert.ok(report.runs.length - 1 <= runsHard, `${report.runs.length - 1} runs at most`);
    assert.ok(runsP99(report) <= runsSoft, `${runsP99(report)} runs, p99`);
    const most = 1.2 * rewritesOfModel(report, 4);
    assert.ok(rewrites(report) <= most, `${rewrites(report)} rewrites, ${most} at most`);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
