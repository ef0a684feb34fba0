/**
 * Goal: engine.verify finds nothing wrong beside a busy engine, lists damage instead of throwing it, tells
 * how far it is, and can be given up. In both hosts.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { inBothHosts, misuse, openFiles, quiet } from '../engine/world.ts';
import { KiB } from '../../core/base/limits.ts';
import { fill, flip } from './kit.ts';

const SMALL = { segmentBytes: 256 * KiB, memtableBytes: 512 * KiB };

inBothHosts('verify is sound beside writing, flushing and merging', async (home) => {
  const engine = await home.open(SMALL);
  await fill(engine, 20);
  await engine.flush();
  for (let round = 0; round < 4; round++) {
    const writing = fill(engine, 30, round).then(() => engine.compact());
    // Both end before anything is judged, so that a finding is what this test fails with.
    const [report] = await Promise.all([engine.verify({ full: true }), writing]);
    assert.equal(report.ok, true, JSON.stringify(report.findings));
    assert.ok(report.segments > 0 && report.parts > 0, JSON.stringify(report));
  }
  assert.ok(((await engine.verify()).next ?? -1) === engine.upper, 'the whole log');
});

inBothHosts('verify lists damage, and throws none of it', async (home) => {
  const engine = await home.open(SMALL);
  await fill(engine, 20);
  await engine.flush();
  await engine.compact();
  await quiet(engine);
  const before = openFiles();
  const parts = readdirSync(join(home.directory, 'parts'));
  for (const name of parts) flip(home.directory, `parts/${name}`, 60);
  const { ok, findings } = await engine.verify({ full: true });
  assert.equal(ok, false);
  const [found] = findings;
  assert.equal(found.finding, 'BAD_BLOCK', JSON.stringify(findings));
  assert.ok(
    parts.some((name) => found.file === `parts/${name}`),
    found.file,
  );
  assert.deepEqual(openFiles(), before);
  for (const name of parts) flip(home.directory, `parts/${name}`, 60);
  assert.equal((await engine.verify({ full: true })).ok, true);
});

inBothHosts('verify can be given up, and refuses what it does not know', async (home) => {
  const engine = await home.open(SMALL);
  await fill(engine, 5);
  const reason = new Error('enough');
  await assert.rejects(engine.verify({ signal: AbortSignal.abort(reason) }), reason);
  const controller = new AbortController();
  const verifying = engine.verify({ full: true, signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(verifying, reason);
  await assert.rejects(
    engine.verify({ fast: true } as never),
    misuse(/unknown verify option fast/),
  );
  await assert.rejects(engine.verify({ full: 1 } as never), misuse(/full/));
  assert.equal((await engine.verify()).ok, true);
});
