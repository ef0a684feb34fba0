/** The merge of any number of cursors is one sorted cursor, in both directions. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { MergeCursor } from '../../core/spine/merge-cursor.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import {
  ArrayCursor,
  backwards,
  compareRows,
  forwards,
  line,
  lines,
  put,
  randomKey,
  randomRows,
  rowOf,
  simDisk,
  writeRun,
} from './rows.ts';
import type { Row } from './rows.ts';

/** Deals rows out to sources, which stay sorted; some get none. */
function deal(prng: Prng, rows: readonly Row[], count: number): Row[][] {
  const sources: Row[][] = Array.from({ length: count }, () => []);
  for (const row of rows) sources[prng.below(count)].push(row);
  return sources;
}

for (const count of [1, 2, 3, 5, 8, 13, 32, 33]) {
  test(`${count} sources merge into one order, both ways, by seeks and turns`, () => {
    const prng = new Prng(count);
    for (let round = 0; round < 25; round++) {
      const rows = randomRows(prng, prng.below(120), 500);
      const merge = new MergeCursor(deal(prng, rows, count).map((some) => new ArrayCursor(some)));
      const model = new ArrayCursor(rows);
      assert.deepEqual(lines(forwards(merge)), lines(rows));
      assert.deepEqual(lines(backwards(merge)), lines(rows));
      for (let i = 0; i < 20; i++) {
        const key =
          rows.length > 0 && prng.chance(0.6) ? prng.pick(rows).key : randomKey(prng, 300);
        const seek = prng.chance(0.5) ? 'seek' : 'seekBelow';
        merge[seek](key, 0, key.length);
        model[seek](key, 0, key.length);
        for (let step = 0; step < 10; step++) {
          assert.equal(merge.valid, model.valid);
          if (!model.valid) break;
          assert.equal(line(rowOf(merge)), line(rowOf(model)));
          const move = prng.chance(0.6) ? 'next' : 'previous';
          merge[move]();
          model[move]();
        }
      }
    }
  });
}

function values(rows: readonly Row[]): string {
  return rows.map((row) => String.fromCharCode(...row.value)).join('');
}

test('equal rows come in the order of their sources, and keep it when the walk turns', () => {
  const sources = ['x', 'y', 'z'].map((value) => [put('a', 5, value), put('b', 5, value)]);
  const merge = new MergeCursor(sources.map((rows) => new ArrayCursor(rows)));
  assert.equal(values(forwards(merge)), 'xyzxyz');
  assert.equal(values(backwards(merge)), 'xyzxyz');
  merge.first();
  merge.next();
  assert.equal(merge.source, 1);
  merge.previous();
  assert.equal(merge.source, 0);
  merge.next();
  merge.next();
  assert.equal(merge.source, 2);
});

test('a merge of nothing stands on nothing', () => {
  const merge = new MergeCursor([]);
  merge.first();
  assert.equal(merge.valid, false);
  merge.last();
  assert.equal(merge.valid, false);
  merge.reset([new ArrayCursor([]), new ArrayCursor([put('a', 1, 'v')])]);
  assert.equal(forwards(merge).length, 1);
  merge.reset([new ArrayCursor([])]);
  assert.equal(forwards(merge).length, 0);
});

test('merges of merges and of runs on disk give the same rows', () => {
  const disk = simDisk();
  const prng = new Prng(99);
  const rows = randomRows(prng, 900, 5000);
  const [a, b, c, d] = deal(prng, rows, 4);
  const runs = [a, b].map((some, i) =>
    writeRun(disk, 1 + 100 * i, some, { blockBytes: 400, partBytes: 3000 }),
  );
  const cursors = runs.map((parts) => new RunCursor(disk, new OwnRunParts(disk, parts)));
  const inner = new MergeCursor([new ArrayCursor(c), new ArrayCursor(d)]);
  const merge = new MergeCursor([cursors[0], inner, cursors[1]]);
  assert.deepEqual(lines(forwards(merge)), lines(rows));
  assert.deepEqual(lines(backwards(merge)), lines(rows));
  for (let i = 0; i < 50; i++) {
    const { key } = prng.pick(rows);
    merge.seek(key, 0, key.length);
    const expected = rows.filter((row) => compareRows(row, { ...row, key, time: 1e9 }) >= 0);
    assert.equal(line(rowOf(merge)), line(expected[0]));
    merge.previous();
    const before = rows[rows.length - expected.length - 1];
    assert.equal(merge.valid, before !== undefined);
    if (merge.valid) assert.equal(line(rowOf(merge)), line(before));
  }
  for (const cursor of cursors) cursor.leave();
});
