/**
 * Merge jobs: what is left is what a naive consolidation leaves, whatever fuel, host and cut; what is
 * not left was counted; whatever goes wrong, no file stays behind.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { TidemarkError } from '../../core/base/errors.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED, KIND_UPSERT } from '../../core/base/update.ts';
import { CODEC_DEFLATE } from '../../core/spine/block-codec.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import type { MergeInput, MergeRequest, MergeResult } from '../../core/spine/merge-job.ts';
import { partRef } from '../../core/spine/part-format.ts';
import type { PartInfo, PartRef } from '../../core/spine/part-format.ts';
import { readFooters } from '../../core/spine/part-reader.ts';
import type { PartShape } from '../../core/spine/part-writer.ts';
import { RowSums } from '../../core/spine/row-hash.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import { partPath } from '../../core/storage/names.ts';
import type { Storage } from '../../core/storage/storage.ts';
import { FATE_LOST } from '../sim/disk.ts';
import type { SimDisk } from '../sim/disk.ts';
import {
  del,
  forwards,
  lines,
  naiveKeyed,
  openFiles,
  partFiles,
  put,
  randomRows,
  simDisk,
  tempStorage,
  writeRun,
} from './rows.ts';
import type { Row } from './rows.ts';

const SMALL: PartShape = { blockBytes: 400, partBytes: 2_500, partRows: 60 };
const OUT = 5_000;

function requestOf(runs: readonly PartInfo[][], more: Partial<MergeRequest> = {}): MergeRequest {
  return {
    jobId: 1,
    collection: 7,
    kind: KIND_KEYED,
    inputs: runs.map((parts, i) => ({
      bid: 10 + i,
      desc: { lower: i, upper: i + 1, since: 0 },
      runs: [{ runId: 100 + i, parts: parts.map(partRef) }],
    })),
    since: 0,
    oldest: false,
    outFiles: { first: OUT, count: 400 },
    shape: SMALL,
    ...more,
  };
}

function run(disk: Storage, request: MergeRequest, fuel = Infinity): MergeResult {
  const job = new MergeJob(disk, request);
  while (job.step(fuel));
  return job.result();
}

function rowsOf(disk: Storage, refs: readonly PartRef[]): Row[] {
  if (refs.length === 0) return [];
  const cursor = new RunCursor(disk, new OwnRunParts(disk, readFooters(disk, refs)));
  const rows = forwards(cursor);
  cursor.leave();
  return rows;
}

/** Runs that ascend in time, as flushes leave them; one row for each key and time. */
function runsInTime(prng: Prng, count: number, rowsEach: number): Row[][] {
  return Array.from({ length: count }, (_, i) =>
    randomRows(prng, prng.between(1, rowsEach), 100).map((row) => ({
      ...row,
      time: row.time + 100 * i,
    })),
  );
}

/** Keys that only grow, as of a load in order; then a run over some of them. */
function stripes(time: number): Row[][] {
  const key = (i: number): string => `stripe/${String(i).padStart(4, '0')}`;
  const value = 'of some length, so that few rows make a part';
  return [
    Array.from({ length: 600 }, (_, i) => put(key(i), time, `${i} ${value}`)),
    Array.from({ length: 30 }, (_, i) => put(key(300 + 3 * i), time + 1, `${i} again ${value}`)),
  ];
}

function outputs(disk: SimDisk): Map<string, Uint8Array | undefined> {
  return partFiles(disk, OUT);
}

/** Of a result's parts those that are its inputs'. */
function movedOf(disk: Storage, result: MergeResult): { parts: number; rows: number } {
  const refs = result.runs.flatMap(({ parts }) => parts).filter(({ file }) => file < OUT);
  const rows = readFooters(disk, refs).reduce((sum, { len }) => sum + len, 0);
  return { parts: refs.length, rows };
}

function checkSums(disk: Storage, request: MergeRequest, result: MergeResult): void {
  const promised = new RowSums();
  for (const input of request.inputs) {
    for (const { parts } of input.runs) {
      for (const part of readFooters(disk, parts)) {
        promised.addSums(part.len, part.diffSum, part.hash);
      }
    }
  }
  const met = new RowSums();
  met.addSums(result.len, result.diffSum, result.hash);
  met.addSums(result.dropped.len, result.dropped.diffSum, result.dropped.hash);
  assert.deepEqual(met.hash(), promised.hash());
  assert.equal(met.len, promised.len);
  assert.equal(met.diffSum, promised.diffSum);
}

test('a merge leaves what a naive consolidation leaves, and accounts for the rest', () => {
  const prng = new Prng(31);
  let movedParts = 0;
  for (let round = 0; round < 40; round++) {
    const disk = simDisk();
    const all =
      round % 4 === 0 ? stripes(prng.below(250)) : runsInTime(prng, prng.between(1, 8), 120);
    const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL));
    const since = prng.below(100 * all.length + 50);
    const oldest = prng.chance(0.5);
    const cut = prng.chance(0.2) ? prng.below(100 * all.length) : undefined;
    const request = requestOf(runs, cut === undefined ? { since, oldest } : { since, oldest, cut });
    const result = run(disk, request, prng.between(1, 400));
    const parts = result.runs[0]?.parts ?? [];
    const expected = naiveKeyed(all.flat(), since, oldest, cut);
    assert.deepEqual(lines(rowsOf(disk, parts)), lines(expected));
    assert.equal(result.len, expected.length);
    assert.equal(result.runs.length, expected.length === 0 ? 0 : 1);
    const moved = movedOf(disk, result);
    assert.equal(result.stats.rowsIn + moved.rows, result.len + result.dropped.len);
    assert.equal(result.stats.partsMoved, moved.parts);
    movedParts += moved.parts;
    checkSums(disk, request, result);
    assert.deepEqual(
      result.inputs,
      request.inputs.map(({ bid, runs: [first] }) => ({ bid, runIds: [first.runId] })),
    );
    assert.deepEqual(
      result.createdFiles.map(({ file, bytes }) => [partPath(file).slice(6), bytes]),
      [...outputs(disk)].map(([name, file]) => [name, file?.length]),
    );
  }
  assert.ok(movedParts > 0, 'some parts were only moved');
});

test('versions around since: every one above it, the newest below, with its own time', () => {
  const disk = simDisk();
  const runs = [
    [put('k', 1, 'a'), put('k', 3, 'b'), put('old', 2, 'x')],
    [put('k', 5, 'c'), put('k', 7, 'd'), put('new', 6, 'y')],
  ].map((rows, i) =>
    writeRun(
      disk,
      1 + i,
      rows.toSorted((a, b) => compare(a, b)),
    ),
  );
  const left = (since: number): string[] => {
    const result = run(
      disk,
      requestOf(runs, { since, outFiles: { first: OUT + since * 10, count: 5 } }),
    );
    return rowsOf(disk, result.runs[0].parts).map(
      (row) => `${String.fromCharCode(...row.key)}@${row.time}`,
    );
  };
  assert.deepEqual(left(0), ['k@7', 'k@5', 'k@3', 'k@1', 'new@6', 'old@2']);
  assert.deepEqual(left(4), ['k@7', 'k@5', 'k@3', 'new@6', 'old@2']);
  assert.deepEqual(left(5), ['k@7', 'k@5', 'new@6', 'old@2']);
  assert.deepEqual(left(6), ['k@7', 'k@5', 'new@6', 'old@2']);
  assert.deepEqual(left(7), ['k@7', 'new@6', 'old@2']);
  assert.deepEqual(left(900), ['k@7', 'new@6', 'old@2']);
});

function compare(a: Row, b: Row): number {
  return Buffer.compare(a.key, b.key) || b.time - a.time;
}

test('a tombstone goes only at or below since, and only with the oldest run among the inputs', () => {
  const disk = simDisk();
  const oldest = writeRun(disk, 1, [put('k', 1, 'a')]);
  const middle = writeRun(disk, 2, [del('k', 5)]);
  const newest = writeRun(disk, 3, [del('gone', 8)]);
  let first = OUT;
  const left = (runs: PartInfo[][], isOldest: boolean, since: number): string[] => {
    first += 10;
    const request = requestOf(runs, { since, oldest: isOldest, outFiles: { first, count: 5 } });
    const result = run(disk, request);
    checkSums(disk, request, result);
    return rowsOf(disk, result.runs[0]?.parts ?? []).map(
      (row) => `${String.fromCharCode(...row.key)}@${row.time}`,
    );
  };
  // In a middle run it still hides what is older.
  assert.deepEqual(left([middle, newest], false, 100), ['gone@8', 'k@5']);
  assert.deepEqual(left([middle], true, 4), ['k@5']);
  assert.deepEqual(left([middle], true, 5), []);
  assert.deepEqual(left([oldest, middle], true, 4), ['k@5', 'k@1']);
  assert.deepEqual(left([oldest, middle], true, 5), []);
  assert.deepEqual(left([oldest, middle, newest], true, 7), ['gone@8']);
});

test('an offset survives any number of merges', () => {
  const disk = simDisk();
  let parts = writeRun(disk, 1, [put('kept', 42, 'v'), put('other', 1, 'w')]);
  for (let i = 0; i < 20; i++) {
    const newer = writeRun(disk, 10 + i, [put('other', 100 + i, 'w')]);
    const result = run(
      disk,
      requestOf([parts, newer], {
        since: 100 + i,
        oldest: true,
        outFiles: { first: OUT + i, count: 1 },
      }),
    );
    parts = readFooters(disk, result.runs[0].parts);
  }
  const rows = rowsOf(disk, parts);
  assert.deepEqual(
    rows.map((row) => row.time),
    [42, 119],
  );
});

test('insert and retract below since leave nothing, no run and no file; above it both stay', () => {
  const disk = simDisk();
  const runs = [[put('k', 0, 'v')], [del('k', 1)]].map((rows, i) => writeRun(disk, 1 + i, rows));
  const nothing = run(disk, requestOf(runs, { since: 1, oldest: true }));
  assert.deepEqual(nothing.runs, []);
  assert.deepEqual(nothing.createdFiles, []);
  assert.equal(nothing.len, 0);
  assert.equal(nothing.dropped.len, 2);
  assert.equal(nothing.dropped.diffSum, 0);
  assert.equal(outputs(disk).size, 0);
  const both = run(disk, requestOf(runs, { since: 0, oldest: true }));
  assert.equal(both.len, 2);
});

test('versions of one key over many blocks and parts are consolidated as one', () => {
  const disk = simDisk();
  // Times 0 and 257: little-endian bytes would sort them the other way.
  const versions = Array.from({ length: 300 }, (_, i) => put('k', 257 * (299 - i), `value ${i}`));
  const other = [put('j', 0, 'x'), put('l', 257, 'y')];
  const shape = { blockBytes: 200, partBytes: 1, partRows: 10 };
  const runs = [versions, other].map((rows, i) => writeRun(disk, 1 + 500 * i, rows, shape));
  assert.ok(runs[0].length > 20);
  for (const [i, since] of [0, 2, 257, 257 * 150, 1e6].entries()) {
    const result = run(
      disk,
      requestOf(runs, {
        since,
        oldest: true,
        shape,
        outFiles: { first: OUT + 400 * i, count: 400 },
      }),
    );
    assert.deepEqual(
      lines(rowsOf(disk, result.runs[0].parts)),
      lines(naiveKeyed([...versions, ...other], since, true)),
    );
  }
});

test('the same job writes the same bytes whatever the fuel of a step', () => {
  const prng = new Prng(33);
  const all = runsInTime(prng, 5, 300);
  let expected: { files: Map<string, Uint8Array | undefined>; result: MergeResult } | undefined;
  for (const fuel of [Infinity, 1, 7, 4096]) {
    const disk = simDisk();
    const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL));
    const result = run(disk, requestOf(runs, { since: 250, oldest: true }), fuel);
    const files = outputs(disk);
    assert.ok(files.size > 2);
    expected ??= { files, result };
    assert.deepEqual(result, expected.result);
    assert.deepEqual(files, expected.files);
  }
});

test('a process that shares only the folder runs the job from its JSON to the same bytes', () => {
  const { storage: disk, directory, end } = tempStorage();
  try {
    const runs = stripes(100).map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL));
    const here = requestOf(runs, { since: 250 });
    const there: MergeRequest = { ...here, outFiles: { first: OUT + 1000, count: 400 } };
    const expected = run(disk, here);
    const script = fileURLToPath(new URL('./run-merge-job.ts', import.meta.url));
    const output = execFileSync(process.execPath, ['--import', 'tsx', script, directory], {
      input: JSON.stringify(there),
      encoding: 'utf8',
    });
    // The same, but for the numbers of the files.
    const found: unknown = JSON.parse(output, (name, inner) =>
      name === 'file' && typeof inner === 'number' && inner > OUT ? inner - 1000 : inner,
    );
    assert.deepEqual(found, expected);
    assert.ok(expected.stats.partsMoved > 0, 'parts of the inputs among them');
    for (const { file } of expected.createdFiles) {
      const ours = readFileSync(`${directory}/${partPath(file)}`);
      const theirs = readFileSync(`${directory}/${partPath(file + 1000)}`);
      assert.equal(Buffer.compare(ours, theirs), 0);
    }
  } finally {
    end();
  }
});

test('parts that share no key with another input are neither read nor written, but named where they lie', () => {
  const disk = simDisk();
  const all = stripes(10);
  const runs = all.map((rows, i) => writeRun(disk, 1 + 500 * i, rows, SMALL));
  const before = partFiles(disk, 1);
  const request = requestOf(runs, { since: 100, oldest: true });
  const result = run(disk, request, 7);
  const { parts } = result.runs[0];
  assert.deepEqual(lines(rowsOf(disk, parts)), lines(naiveKeyed(all.flat(), 100, true)));
  checkSums(disk, request, result);
  const [first, second] = [runs[1][0].keyLo, runs[1].at(-1)!.keyHi];
  const isApart = ({ keyLo, keyHi }: PartInfo): boolean =>
    Buffer.compare(keyHi, first) < 0 || Buffer.compare(keyLo, second) > 0;
  const apart = runs[0].filter(isApart);
  assert.ok(apart.length > 5 && apart.length < runs[0].length, `${apart.length} parts apart`);
  const moved = parts.filter(({ file }) => file < OUT);
  assert.deepEqual(moved, apart.map(partRef));
  const { stats } = result;
  assert.equal(stats.partsMoved, apart.length);
  assert.equal(
    stats.bytesMoved,
    apart.reduce((sum, { bytes }) => sum + bytes, 0),
  );
  const read = runs.flat().filter((part) => !apart.includes(part));
  assert.ok(stats.bytesRead <= read.reduce((sum, { bytes }) => sum + bytes, 0), 'nothing else');
  assert.equal(
    stats.bytesWritten,
    result.createdFiles.reduce((sum, { bytes }) => sum + bytes, 0),
  );
  // Those that were moved are as they were, and no created file is one of them.
  const after = partFiles(disk, 1);
  for (const [name, bytes] of before) assert.deepEqual(after.get(name), bytes, name);
  assert.ok(
    result.createdFiles.every(({ file }) => file >= OUT),
    'new files have new numbers',
  );
});

test('what since, tombstones, range deletes, a cut or another codec would change is rewritten', () => {
  const disk = simDisk();
  const [rows, stripe] = stripes(10);
  const versions = rows.flatMap((row) => [{ ...row, time: 12 }, row]);
  const holed = rows.map((row, i) => (i % 20 === 0 ? del(row.key, 10) : row));
  const runs = [rows, versions, holed, stripe.map((row) => ({ ...row, time: 20 }))].map((all, i) =>
    writeRun(disk, 1 + 500 * i, all, SMALL),
  );
  const [plain, twice, deleted, newer] = runs;
  let first = OUT;
  const movedIn = (below: PartInfo[], more: Partial<MergeRequest>): number => {
    first += 500;
    const outFiles = { first, count: 400 };
    return run(disk, requestOf([below, newer], { ...more, outFiles })).stats.partsMoved;
  };
  assert.ok(movedIn(plain, { since: 100 }) > 0, 'nothing is to be reclaimed');
  assert.equal(movedIn(twice, { since: 100 }), 0, 'older versions go');
  assert.ok(movedIn(twice, { since: 9 }) > 0, 'older versions stay');
  assert.equal(movedIn(deleted, { since: 100, oldest: true }), 0, 'tombstones go');
  assert.ok(movedIn(deleted, { since: 9, oldest: true }) > 0, 'tombstones stay');
  assert.equal(movedIn(plain, { since: 9, cut: 11 }), 0, 'a store is cut');
  const deflate = { ...SMALL, codec: CODEC_DEFLATE };
  assert.equal(movedIn(plain, { since: 100, shape: deflate }), 0, 'blocks are to be compressed');
});

test('a cancelled job leaves no file, at whatever step it is stopped', () => {
  const all = [...runsInTime(new Prng(35), 2, 200), ...stripes(1_000)];
  for (let steps = 0; steps < 12; steps++) {
    const disk = simDisk();
    const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL));
    const open = openFiles(disk);
    const job = new MergeJob(disk, requestOf(runs));
    for (let i = 0; i < steps; i++) assert.equal(job.step(30), true);
    job.cancel();
    assert.equal(outputs(disk).size, 0);
    assert.equal(partFiles(disk, 1).size, runs.flat().length, 'what it was to move is there');
    assert.equal(open(), 0);
  }
});

test('whichever call of the disk fails, the job fails with it and leaves no file open or behind', () => {
  const all = [...runsInTime(new Prng(36), 3, 60), ...stripes(1_000)];
  for (let failing = 0; ; failing++) {
    const disk = simDisk();
    const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL));
    const open = openFiles(disk);
    let calls = 0;
    disk.fault = ({ call }) => {
      if (call === 'close' || call === 'unlink') return undefined;
      return calls++ === failing ? { kind: 'throw', code: 'EIO' } : undefined;
    };
    const job = new MergeJob(disk, requestOf(runs));
    let failure: unknown;
    try {
      while (job.step(50));
    } catch (error) {
      failure = error;
    }
    assert.equal(open(), 0);
    if (failure === undefined) {
      assert.ok(failing > 30, `${failing}`);
      break;
    }
    assert.equal(Object(failure).code, 'EIO');
    assert.equal(outputs(disk).size, 0);
    assert.equal(partFiles(disk, 1).size, runs.flat().length, 'its inputs are there');
  }
});

test('no power loss after the result takes anything from it', () => {
  const disk = simDisk();
  const all = runsInTime(new Prng(38), 4, 150);
  const runs = all.map((rows, i) => writeRun(disk, 1 + 100 * i, rows, SMALL));
  const result = run(disk, requestOf(runs, { since: 150 }));
  const left = disk.powerLoss(() => FATE_LOST);
  const rows = rowsOf(left, result.runs[0].parts);
  assert.deepEqual(lines(rows), lines(naiveKeyed(all.flat(), 150, false)));
});

test('a short write fails the job', () => {
  const disk = simDisk();
  const runs = [writeRun(disk, 1, randomRows(new Prng(37), 50, 100), SMALL)];
  const write = disk.write.bind(disk);
  disk.write = (fd, source, from, length, position) =>
    write(fd, source, from, length - 1, position);
  assert.throws(() => run(disk, requestOf(runs)), { code: 'TIDEMARK_IO' });
  assert.equal(outputs(disk).size, 0);
});

test('a damaged block in an input fails the job, naming file and block', () => {
  const disk = simDisk();
  const rows = Array.from({ length: 100 }, (_, i) => put(`key${100 + i}`, i, 'some value'));
  const [part] = writeRun(disk, 1, rows, { blockBytes: 300 });
  const file = disk.bytesOf(partPath(1))!;
  file[part.rangeDeletesOffset - 5] ^= 1;
  disk.plant(partPath(1), file);
  assert.throws(
    () => run(disk, requestOf([[part]])),
    (error: unknown) => {
      assert.ok(error instanceof TidemarkError);
      assert.equal(error.code, 'TIDEMARK_CORRUPT');
      assert.equal(error.detail['finding'], 'BAD_BLOCK');
      assert.equal(error.detail['file'], 1);
      assert.equal(error.detail['block'], part.blockCount - 1);
      return true;
    },
  );
  assert.equal(outputs(disk).size, 0);
});

/** Is the error damage of that sort? */
function finding(name: string): (error: unknown) => boolean {
  return (error) => error instanceof TidemarkError && error.detail['finding'] === name;
}

test('rows that are not those of the footer fail the job, and so do two versions at one offset', () => {
  const disk = simDisk();
  const rows = [put('a', 1, 'x'), put('b', 2, 'y')];
  const swapped = [put('a', 1, 'y'), put('b', 2, 'x')];
  const shifted = [put('a', 2, 'x'), put('b', 1, 'y')];
  const [info] = writeRun(disk, 1, rows);
  const good = disk.bytesOf(partPath(1))!;
  let file = 2;
  for (const other of [swapped, shifted]) {
    const [planted] = writeRun(disk, file, other);
    assert.equal(planted.bytes, info.bytes);
    // The other's blocks under this footer: every checksum holds.
    const bad = disk.bytesOf(partPath(file))!;
    bad.set(good.subarray(info.footerOffset), info.footerOffset);
    disk.plant(partPath(file), bad);
    assert.throws(() => run(disk, requestOf([[planted]])), finding('HASH_MISMATCH'));
    file++;
  }
  const again = writeRun(disk, file, [put('b', 2, 'z')]);
  assert.throws(() => run(disk, requestOf([[info], again])), finding('DUPLICATE_VERSION'));
  assert.throws(() => run(disk, requestOf([[info]], { kind: KIND_UPSERT })), {
    code: 'TIDEMARK_UNSUPPORTED_FORMAT',
  });
  assert.equal(outputs(disk).size, 0);
});

test('a job whose inputs are no neighbours, or have forgotten more than it may, is refused', () => {
  const disk = simDisk();
  const open = openFiles(disk);
  const runs = [[put('a', 1, 'x')], [put('b', 6, 'y')], [put('c', 11, 'z')]].map((rows, i) =>
    writeRun(disk, 1 + 100 * i, rows, SMALL),
  );
  const [first, second, third] = requestOf(runs).inputs;
  const at = (lower: number, upper: number, since = 0): MergeInput['desc'] => ({
    lower,
    upper,
    since,
  });
  const three = (a: MergeInput['desc'], b: MergeInput['desc'], c: MergeInput['desc']) => ({
    since: 3,
    inputs: [
      { ...first, desc: a },
      { ...second, desc: b },
      { ...third, desc: c },
    ],
  });
  for (const [name, more] of [
    ['BATCH_GAP', three(at(0, 5), at(6, 10), at(10, 15))],
    ['BATCH_GAP', three(at(0, 6), at(5, 10), at(10, 15))],
    ['BATCH_GAP', three(at(0, 5), at(10, 15), at(5, 10))],
    ['BATCH_BOUNDS', three(at(0, 5), at(5, 4), at(4, 15))],
    ['BATCH_BOUNDS', three(at(0, 5), at(5, -1), at(4, 15))],
    ['BATCH_SINCE', three(at(0, 5), at(5, 10, 4), at(10, 15))],
  ] as const) {
    assert.throws(() => run(disk, requestOf(runs, more)), finding(name), name);
    assert.equal(outputs(disk).size, 0);
    assert.equal(open(), 0);
  }
  // As much as an input has forgotten is right, and stands on the result; more too.
  for (const since of [3, 9]) {
    const right = three(at(0, 5, 3), at(5, 10), at(10, 15));
    const outFiles = { first: since === 3 ? OUT : OUT + 1_000, count: 400 };
    assert.equal(run(disk, requestOf(runs, { ...right, since, outFiles })).since, since);
  }
});
