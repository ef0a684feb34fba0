/**
 * Multisets in flush and merge jobs: what is left adds up to what went in at every time from `since` on,
 * in order, each (key, value, time) once, nothing that comes to 0; the figures account for the rest, and
 * neither fuel nor the order of merging shows in the bytes.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_MULTISET, addDiffSum } from '../../core/base/update.ts';
import { sumsOf } from '../../core/spine/batch.ts';
import { FlushJob } from '../../core/spine/flush-job.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import type { MergeRequest, MergeResult } from '../../core/spine/merge-job.ts';
import { partRef } from '../../core/spine/part-format.ts';
import type { PartInfo, PartRef } from '../../core/spine/part-format.ts';
import { readFooters } from '../../core/spine/part-reader.ts';
import type { PartShape } from '../../core/spine/part-writer.ts';
import { RowSums } from '../../core/spine/row-hash.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import type { Storage } from '../../core/storage/storage.ts';
import {
  ArrayCursor,
  backwards,
  forwards,
  lines,
  partFiles,
  randomBytes,
  randomKey,
  simDisk,
  update,
  writeRun,
} from './rows.ts';
import type { Row } from './rows.ts';

const SMALL: PartShape = { blockBytes: 400, partBytes: 2_500, partRows: 60 };
const MAX = Number.MAX_SAFE_INTEGER;

function inOrder(rows: readonly Row[]): Row[] {
  return rows.toSorted(
    (a, b) => compareBytes(a.key, b.key) || compareBytes(a.value, b.value) || a.time - b.time,
  );
}

/** What is left at `since`, by looking at all of it. */
function naive(rows: readonly Row[], since: number, cut: number = MAX): Row[] {
  const sums = new Map<string, Row>();
  for (const row of rows) {
    if (row.time >= cut) continue;
    const time = Math.max(row.time, since);
    const name = [Buffer.from(row.key), Buffer.from(row.value)].map((b) => b.toString('hex'));
    const place = `${name.join(' ')} ${time}`;
    sums.set(place, { ...row, time, diff: row.diff + (sums.get(place)?.diff ?? 0) });
  }
  return inOrder([...sums.values()].filter(({ diff }) => diff !== 0));
}

/** Few keys with few values, some with many, so that groups run over blocks and parts. */
function randomUpdates(prng: Prng, count: number, lower: number, upper: number): Row[] {
  const keys = Array.from({ length: prng.between(1, 12) }, () => randomKey(prng, 200));
  const values = Array.from({ length: prng.between(1, 60) }, () =>
    randomBytes(prng, prng.below(50)),
  );
  return Array.from({ length: count }, () => {
    const diff = prng.pick([1, -1, 2, -2, 2 ** 40, -(2 ** 40)]);
    return update(prng.pick(keys), prng.between(lower, upper - 1), prng.pick(values), diff);
  });
}

function rowsOf(disk: Storage, refs: readonly PartRef[]): Row[] {
  if (refs.length === 0) return [];
  const cursor = new RunCursor(disk, new OwnRunParts(disk, readFooters(disk, refs)));
  const rows = forwards(cursor);
  assert.deepEqual(lines(backwards(cursor)), lines(rows));
  cursor.leave();
  return rows;
}

function requestOf(runs: readonly PartInfo[][], more: Partial<MergeRequest> = {}): MergeRequest {
  return {
    jobId: 1,
    collection: 7,
    kind: KIND_MULTISET,
    inputs: runs.map((parts, i) => ({
      bid: 10 + i,
      desc: { lower: i, upper: i + 1, since: 0 },
      runs: [{ runId: 100 + i, parts: parts.map(partRef) }],
    })),
    since: 0,
    oldest: false,
    outFiles: { first: 5_000, count: 400 },
    shape: SMALL,
    ...more,
  };
}

function merge(disk: Storage, request: MergeRequest, fuel = Infinity): MergeResult {
  const job = new MergeJob(disk, request);
  while (job.step(fuel));
  return job.result();
}

function flush(disk: Storage, rows: readonly Row[], since: number, first: number): Row[] {
  const input = { collection: 7, kind: KIND_MULTISET, since, oldest: true };
  const job = new FlushJob(disk, { jobId: 1, outFiles: { first, count: 400 }, shape: SMALL }, [
    { ...input, rows: new ArrayCursor(rows) },
  ]);
  while (job.step(50));
  const [flushed] = job.result().collections;
  assert.equal(flushed?.kind, KIND_MULTISET);
  return rowsOf(disk, flushed.parts);
}

test('a flush leaves what a naive consolidation leaves', () => {
  const prng = new Prng(41);
  for (let round = 0; round < 60; round++) {
    const rows = inOrder(randomUpdates(prng, prng.below(300), 0, 40));
    const since = prng.below(50);
    assert.deepEqual(lines(flush(simDisk(), rows, since, 1)), lines(naive(rows, since)));
  }
});

test('a merge leaves what a naive consolidation leaves, and accounts for the rest', () => {
  const prng = new Prng(42);
  for (let round = 0; round < 60; round++) {
    const disk = simDisk();
    const count = prng.between(1, 8);
    const all = Array.from({ length: count }, (_, i) =>
      naive(randomUpdates(prng, prng.between(1, 150), 100 * i, 100 * i + 100), 100 * i),
    ).filter((rows) => rows.length > 0);
    if (all.length === 0) continue;
    const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL, KIND_MULTISET));
    const since = prng.below(100 * count + 50);
    const cut = prng.chance(0.2) ? prng.below(100 * count) : undefined;
    const request = requestOf(runs, cut === undefined ? { since } : { since, cut });
    const result = merge(disk, request, prng.between(1, 400));
    const expected = naive(all.flat(), since, cut);
    const parts = result.runs[0]?.parts ?? [];
    // Times of parts that were only moved are as they were: below `since` they say nothing.
    const left = parts.flatMap((part) => {
      const isMoved = part.file < 5_000;
      return rowsOf(disk, [part]).map((row) =>
        isMoved ? { ...row, time: Math.max(row.time, since) } : row,
      );
    });
    assert.deepEqual(lines(left), lines(expected));
    const input = sumsOf(runs.map((run) => ({ parts: run })));
    const met = new RowSums();
    met.addSums(result.len, result.diffSum, result.hash);
    met.addSums(result.dropped.len, result.dropped.diffSum, result.dropped.hash);
    assert.deepEqual(met.hash(), input.hash);
    assert.equal(met.diffSum, input.diffSum);
    assert.equal(met.len + result.folded, input.len);
    assert.equal(result.dropped.len, all.flat().filter(({ time }) => time >= (cut ?? MAX)).length);
  }
});

test('bytes are the same whatever the fuel, and however the merging is divided', () => {
  const prng = new Prng(43);
  for (let round = 0; round < 10; round++) {
    const all = Array.from({ length: 4 }, (_, i) =>
      naive(randomUpdates(prng, 120, 100 * i, 100 * i + 100), 0),
    );
    const since = prng.below(400);
    const made = [1, 77, Infinity].map((fuel) => {
      const disk = simDisk();
      const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL, KIND_MULTISET));
      merge(disk, requestOf(runs, { since }), fuel);
      return partFiles(disk, 5_000);
    });
    assert.deepEqual(made[1], made[0]);
    assert.deepEqual(made[2], made[0]);
    // Any two first, the rest later: runs of a multiset need not be neighbours.
    const disk = simDisk();
    const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL, KIND_MULTISET));
    const half = { outFiles: { first: 2_000, count: 400 }, since: prng.below(since + 1) };
    const first = merge(disk, requestOf([runs[0], runs[2]], half));
    const rest = first.runs.map(({ parts }) => readFooters(disk, parts));
    merge(disk, requestOf([...rest, runs[1], runs[3]], { since }));
    assert.deepEqual(partFiles(disk, 5_000), made[0]);
  }
});

test('an insertion and its retraction leave nothing once both are past, and no file', () => {
  const disk = simDisk();
  const runs = [
    writeRun(disk, 1, [update('k', 0, 'v', 1)], SMALL, KIND_MULTISET),
    writeRun(disk, 101, [update('k', 1, 'v', -1)], SMALL, KIND_MULTISET),
  ];
  const kept = merge(disk, requestOf(runs));
  assert.equal(kept.len, 2);
  const gone = merge(disk, requestOf(runs, { since: 1, outFiles: { first: 9_000, count: 4 } }));
  assert.deepEqual([gone.runs, gone.folded, gone.createdFiles], [[], 2, []]);
});

test('diffs whose sum is no safe integer stay apart, and come together when it is one', () => {
  const disk = simDisk();
  const rows = [update('k', 1, 'v', MAX), update('k', 2, 'v', MAX), update('k', 3, 'w', MAX)];
  const runs = rows.map((row, i) => writeRun(disk, 1 + 100 * i, [row], SMALL, KIND_MULTISET));
  const result = merge(disk, requestOf(runs, { since: 9 }));
  const apart = rowsOf(disk, result.runs[0].parts);
  assert.deepEqual(
    apart.map(({ time, diff }) => [time, diff]),
    [
      [9, MAX],
      [9, MAX],
      [9, MAX],
    ],
  );
  const back = writeRun(disk, 401, [update('k', 4, 'v', -MAX)], SMALL, KIND_MULTISET);
  const again = requestOf([readFooters(disk, result.runs[0].parts), back], {
    since: 9,
    outFiles: { first: 9_000, count: 4 },
  });
  const met = rowsOf(disk, merge(disk, again).runs[0].parts);
  assert.deepEqual(lines(met), lines([update('k', 9, 'v', MAX), update('k', 9, 'w', MAX)]));
});

test('a sum of diffs is the same in whatever order', () => {
  const prng = new Prng(44);
  for (let round = 0; round < 2_000; round++) {
    const diffs = Array.from({ length: prng.between(1, 8) }, () => {
      const size = prng.pick([1, 2 ** 52, 2 ** 53 - 1, Math.floor(prng.unit() * 2 ** 53)]);
      return prng.chance(0.5) ? size : -size;
    });
    const exact = diffs.reduce((sum, diff) => sum + BigInt(diff), 0n);
    const sums = [diffs, diffs.toReversed()].map((some) => some.reduce(addDiffSum, 0));
    assert.equal(sums[0], sums[1]);
    assert.equal(BigInt.asIntN(53, exact), BigInt(sums[0]));
  }
});
