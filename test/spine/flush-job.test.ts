/** Flush jobs: one run for each collection, small ones in a shared file, large ones in their own. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED } from '../../core/base/update.ts';
import { FlushJob } from '../../core/spine/flush-job.ts';
import type { FlushInput, FlushRequest, FlushResult } from '../../core/spine/flush-job.ts';
import { readFooters } from '../../core/spine/part-reader.ts';
import { PART_SHAPE } from '../../core/spine/part-writer.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import type { Storage } from '../../core/storage/storage.ts';
import { FATE_LOST } from '../sim/disk.ts';
import {
  ArrayCursor,
  del,
  forwards,
  lines,
  naiveKeyed,
  openFiles,
  partFiles,
  put,
  randomBytes,
  randomRows,
  simDisk,
  sorted,
} from './rows.ts';
import type { Row } from './rows.ts';

const REQUEST: FlushRequest = { jobId: 3, outFiles: { first: 1, count: 1000 } };

function inputOf(collection: number, rows: readonly Row[], since = 0, oldest = false): FlushInput {
  return { collection, kind: KIND_KEYED, since, oldest, rows: new ArrayCursor(rows) };
}

function run(
  storage: Storage,
  inputs: Iterable<FlushInput>,
  request = REQUEST,
  fuel = Infinity,
): FlushResult {
  const job = new FlushJob(storage, request, inputs);
  while (job.step(fuel));
  return job.result();
}

function rowsOf(storage: Storage, result: FlushResult, collection: number): Row[] {
  const flushed = result.collections.find((some) => some.collection === collection);
  if (flushed === undefined || flushed.parts.length === 0) return [];
  const parts = readFooters(storage, flushed.parts);
  const cursor = new RunCursor(storage, new OwnRunParts(storage, parts));
  const rows = forwards(cursor);
  cursor.leave();
  return rows;
}

test('each collection gets its rows, consolidated by its own since, in a shared file', () => {
  const prng = new Prng(41);
  const disk = simDisk();
  const collections = Array.from({ length: 50 }, (_, id) => ({
    id,
    rows: randomRows(prng, prng.between(1, 80), 100),
    since: prng.below(120),
    oldest: prng.chance(0.5),
  }));
  const result = run(
    disk,
    collections.map(({ id, rows, since, oldest }) => inputOf(id, rows, since, oldest)),
  );
  assert.equal(partFiles(disk, 1).size, 1);
  assert.equal(result.jobId, 3);
  assert.deepEqual(
    result.collections.map(({ collection }) => collection),
    collections.map(({ id }) => id),
  );
  let rowsIn = 0;
  const after = disk.powerLoss(() => FATE_LOST);
  for (const { id, rows, since, oldest } of collections) {
    const expected = naiveKeyed(rows, since, oldest);
    assert.deepEqual(lines(rowsOf(after, result, id)), lines(expected));
    const flushed = result.collections[id];
    assert.equal(flushed.len, expected.length);
    assert.equal(flushed.len + flushed.dropped.len, rows.length);
    assert.equal(flushed.since, since);
    rowsIn += rows.length;
  }
  assert.equal(result.stats.rowsIn, rowsIn);
  // Parts lie one behind the other and fill the file.
  const parts = result.collections.flatMap((some) => some.parts);
  let position = 0;
  for (const part of parts) {
    assert.equal(part.offset, position);
    position += part.bytes;
  }
  assert.deepEqual(result.createdFiles, [{ file: 1, bytes: position }]);
});

test('a collection of which nothing is left has no part, and no file is made for it', () => {
  const disk = simDisk();
  const result = run(disk, [
    inputOf(1, [del('k', 5)], 5, true),
    inputOf(2, [], 5, true),
    inputOf(3, sorted([del('k', 5), put('k', 2, 'v')]), 9, true),
  ]);
  assert.deepEqual(
    result.collections.map(({ parts, len, dropped }) => [parts.length, len, dropped.len]),
    [
      [0, 0, 1],
      [0, 0, 0],
      [0, 0, 2],
    ],
  );
  assert.deepEqual(result.createdFiles, []);
  assert.equal(partFiles(disk, 1).size, 0);
});

test('parts of a large collection have files of their own; small ones share what is small', () => {
  const prng = new Prng(42);
  const disk = simDisk();
  const value = randomBytes(prng, 60_000);
  const large = Array.from({ length: 490 }, (_, i) => put(`key${1000 + i}`, i, value));
  const small = (id: number): FlushInput => inputOf(id, [put('a', 1, `${id}`)]);
  const result = run(disk, [small(1), small(2), inputOf(3, large), small(4), small(5)]);
  const files = result.collections.map(({ parts }) => parts.map((part) => part.file));
  assert.deepEqual(files, [[1], [1], [1, 2, 3, 4], [4], [4]]);
  // What the small ones keep alive when the large one is merged away is little, at both of its ends.
  for (const at of [0, 3]) {
    const { bytes } = result.collections[2].parts[at];
    assert.ok(bytes < 1.05 * (PART_SHAPE.partBytes / 4), `${bytes} bytes in a shared file`);
  }
  assert.equal(rowsOf(disk, result, 3).length, 490);
  assert.equal(rowsOf(disk, result, 5).length, 1);
});

test('the same rows give the same bytes whatever the fuel of a step', () => {
  const prng = new Prng(43);
  const collections = Array.from({ length: 8 }, () => randomRows(prng, prng.between(1, 150), 100));
  const request = { ...REQUEST, shape: { blockBytes: 300, partBytes: 2000, partRows: 50 } };
  let expected: unknown;
  for (const fuel of [Infinity, 1, 13, 4096]) {
    const disk = simDisk();
    const inputs = collections.map((rows, id) => inputOf(id, rows, 50));
    const result = run(disk, inputs, request, fuel);
    // The result is plain JSON.
    assert.deepEqual(JSON.parse(JSON.stringify(result)), result);
    const found = { result, files: partFiles(disk, 1) };
    assert.ok(found.files.size > 3);
    expected ??= found;
    assert.deepEqual(found, expected);
  }
});

test('cancelled at any step, failed at any call, or given bad rows: no file is left', () => {
  const prng = new Prng(44);
  const collections = Array.from({ length: 5 }, () => randomRows(prng, 80, 100));
  const request = { ...REQUEST, shape: { blockBytes: 300, partBytes: 2000, partRows: 50 } };
  const inputs = (): FlushInput[] => collections.map((rows, id) => inputOf(id, rows));
  for (let steps = 0; steps < 8; steps++) {
    const disk = simDisk();
    const open = openFiles(disk);
    const job = new FlushJob(disk, request, inputs());
    for (let i = 0; i < steps; i++) assert.equal(job.step(25), true);
    job.cancel();
    assert.equal(partFiles(disk, 1).size, 0);
    assert.equal(open(), 0);
  }
  for (let failing = 0; ; failing++) {
    const disk = simDisk();
    const open = openFiles(disk);
    let calls = 0;
    disk.fault = ({ call }) => {
      if (call === 'close' || call === 'unlink') return undefined;
      return calls++ === failing ? { kind: 'throw', code: 'ENOSPC' } : undefined;
    };
    try {
      run(disk, inputs(), request, 30);
      assert.ok(failing > 20, `${failing}`);
      break;
    } catch (error) {
      assert.equal(Object(error).code, 'ENOSPC');
    }
    assert.equal(partFiles(disk, 1).size, 0);
    assert.equal(open(), 0);
  }
  const disk = simDisk();
  const unsorted = [put('b', 1, ''), put('a', 1, '')];
  assert.throws(() => run(disk, [inputOf(1, collections[0]), inputOf(2, unsorted)]), {
    name: 'AssertionFailure',
  });
  assert.equal(partFiles(disk, 1).size, 0);
});
