/**
 * Goal: engine.verify finds nothing wrong beside a busy engine, lists damage instead of throwing it, tells
 * how far it is, and can be given up. In both hosts.
 */
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import type { OpenHow } from '../../core/storage/storage.ts';
import { inBothHosts, misuse, openFiles, quiet } from '../engine/world.ts';
import { KiB } from '../../core/base/limits.ts';
import { OPTIONS, copyOf, fill, flip, freshDirectory, verify } from './kit.ts';

/** The store as it was, and from its n-th open on as it is then. */
class TurningStorage extends NodeStorage {
  calls = 0;
  readonly #after: NodeStorage;
  readonly #turnAt: number;

  constructor(before: string, after: string, turnAt: number) {
    super(before);
    this.#after = new NodeStorage(after);
    this.#turnAt = turnAt;
  }

  get #isAfter(): boolean {
    return this.calls >= this.#turnAt;
  }

  override open(path: string, how: OpenHow): number {
    this.calls++;
    return this.#isAfter ? this.#after.open(path, how) : super.open(path, how);
  }

  override stat(path: string): { bytes: number; links: number } | undefined {
    return this.#isAfter ? this.#after.stat(path) : super.stat(path);
  }

  override list(path: string): string[] {
    return this.#isAfter ? this.#after.list(path) : super.list(path);
  }
}

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

test('a log that goes on and rotates between any two reads of verify is no damage', async () => {
  const directory = freshDirectory();
  const engine = await open(directory, OPTIONS);
  const spare = (): string | undefined => {
    const last = readdirSync(join(directory, 'wal')).findLast((name) => name.endsWith('.seg'));
    const path = join('wal', last!);
    return readFileSync(join(directory, path))
      .subarray(0, 8)
      .some((byte) => byte !== 0)
      ? undefined
      : path;
  };
  let unused = spare();
  for (let i = 0; i < 400 && unused === undefined; i++) {
    await fill(engine, 1, i);
    unused = spare();
  }
  assert.ok(unused !== undefined, 'a spare is there');
  // No file may come or go while it is copied.
  await quiet(engine);
  const before = copyOf(directory);
  while (spare() === unused) await fill(engine, 1);
  await fill(engine, 4);
  await quiet(engine);
  const after = copyOf(directory);
  await engine.close();

  for (let turnAt = 1, turned = true; turned; turnAt++) {
    const storage = new TurningStorage(before, after, turnAt);
    const { findings } = verify(storage, false, true);
    turned = storage.calls >= turnAt;
    const bad = findings.filter(({ severity }) => severity !== 'note');
    assert.deepEqual(bad, [], `the log went on before open ${turnAt}`);
  }
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
