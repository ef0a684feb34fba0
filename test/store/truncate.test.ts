/**
 * Goal: a store taken back to any offset is the store of that offset, with another epoch and what was taken
 * kept aside; damage in the log beyond it, or a log that ends below the parts, is only got past in this way;
 * and wherever it dies, the store is as it was or as it is to be. Compared with a model of every offset.
 */
import assert from 'node:assert/strict';
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { OpenOptions } from '../../actors/index.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import { idOf } from '../../bin/work.ts';
import type { TidemarkError } from '../../core/base/errors.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { dumpLog } from '../../core/store/dump.ts';
import type { Dumped } from '../../core/store/dump.ts';
import { readManifest } from '../../core/store/look.ts';
import { beginAnew, cutStore, planAnew, planCut } from '../../core/store/truncate.ts';
import { compressStore } from '../../core/store/compress.ts';
import type { Storage } from '../../core/storage/storage.ts';
import { SimCrash, SimDisk, crashes } from '../sim/disk.ts';
import { Incarnation } from '../crash/engine.ts';
import { quiet } from '../engine/world.ts';
import { OPTIONS, copyOf, flip, freshDirectory, runToEnd, verify } from './kit.ts';

const SMALL: OpenOptions = { ...OPTIONS, memtableBytes: 512 * KiB, segmentBytes: 32 * KiB };
const PROGRESS = { what: '', doneBytes: 0, totalBytes: 0 };

type Rows = Map<string, string>;
const states: Rows[] = [];
let store = '';
let flushedUpper = 0;
let upper = 0;

before(async () => {
  store = freshDirectory();
  const prng = new Prng(5);
  const engine = await open(store, SMALL);
  const words = await engine.collection('words', { value: 'utf8', history: Infinity });
  while (states.length < engine.upper) states.push(new Map());
  for (let i = 0; i < 190; i++) {
    const rows = new Map(states.at(-1));
    const key = `key ${prng.below(30)}`;
    const value = `${i} `.padEnd(prng.below(i < 120 ? 700 : 60), '.');
    rows.set(key, value);
    states.push(rows);
    await words.put(key, value);
    if (i === 40 || i === 90) await engine.checkpoint();
    if (i === 119) await engine.compact();
  }
  // As a crash would leave it: nothing is flushed, nothing is CLEAN.
  const copy = copyOf(store);
  await engine.close();
  store = copy;
  rmSync(join(store, 'LOCK'));
  ({ upper: flushedUpper } = readManifest(new NodeStorage(store))!.state.flushed);
  upper = states.length;
  assert.ok(flushedUpper + 10 < upper && flushedUpper > 60, `${flushedUpper} of ${upper}`);
});

function cut(directory: string, offset: number, tolerate = false): string[] {
  const storage = new NodeStorage(directory);
  const plan = runToEnd(planCut(storage, offset, tolerate, idOf, PROGRESS));
  assert.equal(plan.offset, offset, 'one transaction a record');
  return runToEnd(cutStore(storage, plan, PROGRESS));
}

/** Opens it, looks, writes on, and once more. */
async function expectState(directory: string, offset: number): Promise<void> {
  for (let more = 0; more < 2; more++) {
    const engine = await open(directory, SMALL);
    assert.equal(engine.upper, offset + 1 + more);
    const words = await engine.collection('words', { value: 'utf8' });
    for (const at of [offset, offset >>> 1]) {
      const rows = [...states[at]].toSorted(([a], [b]) => (a < b ? -1 : 1));
      assert.deepEqual([...words.entries({ asOf: at })], rows, `at ${at} of ${offset}`);
    }
    assert.equal((await words.put('new', 'row')).offset, offset + 1 + more);
    await engine.close();
  }
  assert.deepEqual(verify(directory).findings, [], `offset ${offset}`);
  const { state } = readManifest(new NodeStorage(directory))!;
  assert.equal(state.logEnd, undefined);
}

/** The highest of any record. */
function epochOf(directory: string): number {
  let epoch = 0;
  const options = { from: 0, to: Infinity, tolerate: false, transactions: false };
  const emit = (item: Dumped): void => {
    if (item.type === 'record') epoch = Math.max(epoch, item.epoch);
  };
  runToEnd(dumpLog(new NodeStorage(directory), options, emit, PROGRESS));
  return epoch;
}

test('a store is taken back to any offset, in parts and in the log', async () => {
  for (const offset of [2, 41, flushedUpper - 1, flushedUpper, upper - 2]) {
    const directory = copyOf(store);
    const kept = cut(directory, offset);
    assert.ok(kept.length > 0, 'what goes is kept');
    for (const name of kept) assert.ok(readFileSync(join(directory, name)).length > 0, name);
    await expectState(directory, offset);
    assert.ok(epochOf(directory) > epochOf(store), 'another history');
    for (const name of kept) assert.ok(readFileSync(join(directory, name)).length > 0, name);
  }
});

test('twice to the same offset, and with a compressed log', async () => {
  const directory = copyOf(store);
  runToEnd(compressStore(new NodeStorage(directory), 'test', PROGRESS));
  assert.ok(readdirSync(join(directory, 'wal')).some((name) => name.endsWith('.segz')));
  let epoch = epochOf(directory);
  for (let i = 0; i < 2; i++) {
    cut(directory, 30);
    await expectState(directory, 30);
    assert.ok(epochOf(directory) > epoch, 'a history of its own each time');
    epoch = epochOf(directory);
  }
});

test('a record that holds the offset stays whole, and the plan says where it ends', async () => {
  const directory = freshDirectory();
  const engine = await open(directory, SMALL);
  const words = await engine.collection('words', { value: 'utf8', history: Infinity });
  await words.put('first', 'x');
  // What is committed in one turn is one record.
  const together = await Promise.all([0, 1, 2, 3, 4].map((i) => words.put(`${i}`, 'x')));
  await words.put('last', 'x');
  await engine.close();
  const [first] = together;
  const end = together[4].offset;
  const storage = new NodeStorage(directory);
  for (const asked of [first.offset, first.offset + 2, end]) {
    assert.equal(runToEnd(planCut(storage, asked, false, idOf, PROGRESS)).offset, end);
  }
  cutAll(storage, first.offset + 2);
  const again = await open(directory, SMALL);
  assert.equal(again.upper, end + 1);
  await again.close();
});

test('what is not to be had is refused, and nothing is changed', () => {
  const storage = new NodeStorage(store);
  assert.throws(
    () => runToEnd(planCut(storage, upper + 5, false, idOf, PROGRESS)),
    (error: TidemarkError) =>
      error.code === 'TIDEMARK_NOT_YET' && error.detail['nearest'] === upper - 1,
  );
  assert.throws(
    () => runToEnd(planAnew(storage, PROGRESS)),
    (error: TidemarkError) => error.code === 'TIDEMARK_HELD',
  );
});

test('damage in the log is got past by dropping what follows it', async () => {
  const directory = copyOf(store);
  const offset = flushedUpper + 4;
  const storage = new NodeStorage(directory);
  const { at } = runToEnd(planCut(storage, offset, false, idOf, PROGRESS));
  flip(directory, `wal/${`${at.seq}`.padStart(10, '0')}.seg`, at.position + 60);
  await assert.rejects(
    open(directory, SMALL),
    (error: TidemarkError) => error.detail['finding'] === 'CHECKSUM',
  );
  assert.throws(
    () => runToEnd(planCut(storage, offset, false, idOf, PROGRESS)),
    (error: TidemarkError) => error.detail['finding'] === 'CHECKSUM',
  );
  cut(directory, offset, true);
  await expectState(directory, offset);
});

test('a log that ends below the parts is begun anew, and no row is lost', async () => {
  const directory = copyOf(store);
  const { flushed } = readManifest(new NodeStorage(directory))!.state;
  const path = join(directory, 'wal', `${`${flushed.seq}`.padStart(10, '0')}.seg`);
  for (const name of readdirSync(join(directory, 'wal'))) {
    if (Number.parseInt(name, 10) > flushed.seq) rmSync(join(directory, 'wal', name));
  }
  writeFileSync(path, readFileSync(path).subarray(0, Math.min(8_192, flushed.position - 200)));
  await assert.rejects(open(directory, SMALL), (error: TidemarkError) =>
    ['LOG_BEHIND_MANIFEST', 'CHECKSUM'].includes(error.detail['finding'] as string),
  );
  const storage = new NodeStorage(directory);
  const plan = runToEnd(planAnew(storage, PROGRESS));
  assert.ok(plan.logUpper < flushedUpper, `${plan.logUpper}`);
  const kept = runToEnd(beginAnew(storage, plan, PROGRESS));
  assert.ok(kept.length > 0, 'what was there is kept');
  await expectState(directory, flushedUpper - 1);
});

// ---------------------------------------------------------------- all or nothing

/** The store on a disk that can crash. */
function simulated(directory: string): SimDisk {
  const disk = new SimDisk();
  for (const dir of ['wal', 'parts', 'manifest', 'tmp', 'quarantine']) {
    disk.makeDir(dir);
    for (const name of readdirSync(join(directory, dir))) {
      const fd = disk.open(`${dir}/${name}`, 'create');
      const bytes = readFileSync(join(directory, dir, name));
      disk.write(fd, bytes, 0, bytes.length, 0);
      disk.sync(fd);
      disk.close(fd);
    }
    disk.syncDir(dir);
  }
  disk.syncDir('');
  return disk;
}

function cutAll(storage: Storage, offset: number): void {
  const plan = runToEnd(planCut(storage, offset, false, idOf, PROGRESS));
  runToEnd(cutStore(storage, plan, PROGRESS));
}

const HOW = { segmentBytes: 32 * KiB, memtableBytes: 512 * KiB, synced: true };

/** Opens what is left, and says where it ends; all of it is the model's. */
function look(disk: SimDisk): number {
  const engine = new Incarnation(disk, HOW);
  try {
    engine.open();
    const end = engine.durable;
    const expected = [...states[end - 1]].toSorted(([a], [b]) => (a < b ? -1 : 1));
    assert.deepEqual(engine.rowsOf(1), expected, `${end}`);
    engine.close();
    return end;
  } finally {
    engine.dispose();
  }
}

/** Dies before each changing call in turn, of the truncation and of the open that ends it. */
function enumerate(offset: number): { before: number; after: number } {
  const source = simulated(store);
  const prng = new Prng(offset);
  const count = { before: 0, after: 0 };
  // Half of the moments, drawn from a seed: the suite is not to wait for all of them.
  for (let dying = prng.below(3); ; dying += 1 + prng.below(3)) {
    const disk = source.clone();
    const first = disk.mutations;
    disk.fault = ({ mutation }) => (mutation === first + dying ? { kind: 'crash' } : undefined);
    let isOver = false;
    try {
      cutAll(disk, offset);
      look(disk);
      isOver = true;
    } catch (error) {
      if (!isCrash(error)) throw error;
    }
    if (isOver) return count;
    for (const left of crashes(disk, prng, { subsetsMax: 2, samples: 1, regularMax: 1 })) {
      const end = look(left);
      assert.ok(end === upper || end === offset + 1, `call ${dying}: it ends at ${end}`);
      if (end === upper) {
        count.before++;
        cutAll(left, offset);
        assert.equal(look(left), offset + 1, `call ${dying}: done again`);
      } else {
        count.after++;
      }
      // Opened once more, it is the same.
      assert.equal(look(left), offset + 1, `call ${dying}`);
    }
  }
}

function isCrash(error: unknown): boolean {
  for (let at = error; at instanceof Error; at = at.cause) {
    if (at instanceof SimCrash || at.message.includes('SimCrash')) return true;
  }
  return false;
}

test('wherever a truncation dies the store is as it was or as it is to be: in the log', () => {
  const { before: early, after } = enumerate(flushedUpper + 5);
  assert.ok(early > 5 && after > 5, `${early} before, ${after} after`);
});

test('the same where parts are written anew', () => {
  const { before: early, after } = enumerate(45);
  assert.ok(early > 5 && after > 5, `${early} before, ${after} after`);
});

test('what is left of a collection can be merged, though older batches have forgotten more than its own', async () => {
  const directory = freshDirectory();
  const memory = { memtableBytes: 4 * MiB, segmentBytes: 8 * MiB, memoryBytes: 128 * MiB };
  const engine = await open(directory, { ...OPTIONS, ...memory });
  const rows = await engine.collection('rows', { value: 'utf8', history: 50 });
  const other = await engine.collection('other', { value: 'utf8', history: 50 });
  const putAll = async (what: string, count: number, value: string): Promise<void> => {
    const tx = engine.transaction();
    for (let i = 0; i < count; i++) tx.put(rows, `${what} ${i}`, value);
    await tx.commit();
    await engine.flush();
  };
  // Merged by itself for its space, once `since` is above what is left behind it.
  for (let n = 0; n < 2; n++) await putAll('large', 1_000, `${n}`.padEnd(1_000, '.'));
  await putAll('small', 64, 'x');
  for (const count of [25, 35]) {
    for (let i = 0; i < count; i++) await other.put(`${count} ${i}`, 'x');
    await putAll(`late ${count}`, 1, 'x');
  }
  await quiet(engine);
  await engine.close();
  const storage = new NodeStorage(directory);
  const plan = runToEnd(planCut(storage, 25, false, idOf, PROGRESS));
  runToEnd(cutStore(storage, plan, PROGRESS));
  const again = await open(directory, { ...OPTIONS, ...memory });
  await again.compact();
  const left = await again.collection('rows', { value: 'utf8' });
  assert.equal(left.getSync('small 1'), 'x');
  assert.equal(left.getSync('late 25 0'), undefined);
  await again.close();
});
