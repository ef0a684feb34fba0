/**
 * Goal: a store as it was at any offset or time that is still to be had, out of itself, of backups, and of
 * what is left of its log; where it is not, an error that names the nearest that is. Compared with a model of
 * every offset. A new store is whole or not there, whatever call fails and wherever the power does.
 */
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Engine, OpenOptions } from '../../actors/index.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import { placeAt } from '../../actors/place.ts';
import { nameOf } from '../../bin/work.ts';
import type { TidemarkError } from '../../core/base/errors.ts';
import { KiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { dumpLog } from '../../core/store/dump.ts';
import type { Dumped } from '../../core/store/dump.ts';
import { CompressJob } from '../../core/log/compress.ts';
import { codecDefault } from '../../core/log/segz.ts';
import { archiveAt } from '../../core/store/log-source.ts';
import type { LogSource } from '../../core/store/log-source.ts';
import { readManifest } from '../../core/store/look.ts';
import type { Place } from '../../core/store/new-store.ts';
import { planRestore, restore } from '../../core/store/restore.ts';
import type { RestoreGoal, RestorePlan, RestoreResult } from '../../core/store/restore.ts';
import { verifyStore } from '../../core/store/verify.ts';
import { SimCrash, SimDisk, crashes } from '../sim/disk.ts';
import { OPTIONS, contentsOf, copyOf, freshDirectory, runToEnd, verify } from './kit.ts';

const SMALL: OpenOptions = { ...OPTIONS, memtableBytes: 512 * KiB, segmentBytes: 64 * KiB };

type Rows = Map<string, string>;

/** The rows of 'words' as of each offset. */
class Model {
  readonly states: Rows[] = [];

  /** Transactions in which 'words' does not change. */
  same(upper: number): void {
    while (this.states.length < upper) this.states.push(new Map(this.states.at(-1)));
  }

  change(change: (rows: Rows) => void): void {
    const rows = new Map(this.states.at(-1));
    change(rows);
    this.states.push(rows);
  }
}

async function write(engine: Engine, model: Model, prng: Prng, count: number): Promise<void> {
  const words = await engine.collection('words', { value: 'utf8', history: Infinity });
  model.same(engine.upper);
  for (let i = 0; i < count; i++) {
    const key = `key ${prng.below(60)}`;
    if (prng.below(5) === 0) {
      model.change((rows) => rows.delete(key));
      await words.delete(key);
    } else {
      const value = `${i} `.padEnd(prng.below(900), '.');
      model.change((rows) => rows.set(key, value));
      await words.put(key, value);
    }
  }
}

function plan(
  goal: RestoreGoal,
  directories: readonly string[],
  archives: readonly LogSource[] = [],
): RestorePlan {
  const from = directories.map((name) => ({ storage: new NodeStorage(name), name }));
  const progress = { what: '', doneBytes: 0, totalBytes: 0 };
  const idOf = (key: Uint8Array, value: Uint8Array): number | undefined => nameOf(key, value)?.id;
  return runToEnd(planRestore(from, archives, goal, idOf, progress));
}

function make(made: RestorePlan, place: Place): RestoreResult {
  return runToEnd(restore(made, place, { what: '', doneBytes: 0, totalBytes: 0 }));
}

function restoreTo(goal: RestoreGoal, directories: readonly string[]): string {
  const target = freshDirectory();
  make(plan(goal, directories), placeAt(target));
  return target;
}

async function expectState(directory: string, model: Model, offset: number): Promise<void> {
  assert.deepEqual(verify(directory).findings, [], `offset ${offset}`);
  const engine = await open(directory, SMALL);
  try {
    assert.equal(engine.upper, offset + 1);
    const words = await engine.collection('words', { value: 'utf8' });
    for (const at of [offset, Math.max(1, offset - 7), Math.max(1, offset >>> 1)]) {
      if (at > offset) continue;
      const rows = [...model.states[at]].toSorted(([a], [b]) => (a < b ? -1 : 1));
      assert.deepEqual([...words.entries({ asOf: at })], rows, `at ${at} of ${offset}`);
    }
    // It goes on, as another history.
    const { offset: next } = await words.put('new', 'row');
    assert.equal(next, offset + 1);
  } finally {
    await engine.close();
  }
}

function lost(nearest: number): (error: TidemarkError) => boolean {
  return (error) => {
    assert.equal(error.code, 'TIDEMARK_HISTORY_LOST', error.message);
    assert.equal(error.detail['nearest'], nearest, error.message);
    return true;
  };
}

const model = new Model();
let store = '';
let flushedUpper = 0;

before(async () => {
  store = freshDirectory();
  const prng = new Prng(7);
  const engine = await open(store, SMALL);
  for (let round = 0; round < 4; round++) {
    await write(engine, model, prng, 90);
    await engine.flush();
  }
  await engine.compact();
  await write(engine, model, prng, 60);
  await engine.checkpoint();
  await write(engine, model, prng, 80);
  await engine.close();
  // Without the flush that closing may do there is a log above the parts.
  ({ upper: flushedUpper } = readManifest(new NodeStorage(store))!.state.flushed);
});

test('a store with its history is restored to any offset, in parts and in the log', async () => {
  const last = model.states.length - 1;
  const kept = contentsOf(store);
  for (const offset of [1, 45, 91, 200, 359, 360, 361, flushedUpper - 1, flushedUpper, last]) {
    if (offset > last) continue;
    await expectState(restoreTo({ offset }, [store]), model, offset);
  }
  assert.deepEqual(contentsOf(store), kept, 'the store keeps its bytes');
});

test('what is compressed of the log is as good', async () => {
  const directory = copyOf(store);
  const storage = new NodeStorage(directory);
  const { identity } = readManifest(storage)!.state;
  const seqs = readdirSync(join(directory, 'wal')).map((name) => Number.parseInt(name, 10));
  for (let i = 0; i + 2 < seqs.length; i += 1) {
    const job = new CompressJob(storage, {
      seq: seqs[i],
      successor: seqs[i + 1],
      logId: Buffer.from(identity.logId).toString('hex'),
      codec: codecDefault,
      tmp: 'tmp/compress',
    });
    while (job.step());
  }
  assert.ok(readdirSync(join(directory, 'wal')).some((name) => name.endsWith('.segz')));
  for (const offset of [91, model.states.length - 1]) {
    const made = plan({ offset }, [directory]);
    assert.equal(made.start.upper, 0, 'the log is read from its beginning');
    const target = freshDirectory();
    make(made, placeAt(target));
    await expectState(target, model, offset);
  }
});

test('where nothing is, the nearest that is there is named', () => {
  const last = model.states.length - 1;
  assert.throws(() => plan({ offset: last + 9 }, [store]), lost(last));
  assert.throws(
    () => plan({ atMs: 1 }, [store]),
    (error: TidemarkError) =>
      error.code === 'TIDEMARK_HISTORY_LOST' && /nothing is known/.test(error.message),
  );
});

test('without history a backup below, and the log from there, give what the parts have forgotten', async () => {
  const directory = freshDirectory();
  const own = new Model();
  const prng = new Prng(11);
  const options: OpenOptions = { ...SMALL, wal: { keepMs: 1_000_000_000 } };
  const engine = await open(directory, options);
  const backups = [freshDirectory(), freshDirectory()];
  const uppers: number[] = [];
  const words = await engine.collection('words', { value: 'utf8', history: 0 });
  for (let round = 0; round < 3; round++) {
    await write(engine, own, prng, 70);
    await words.setHistory({ offsets: 0 });
    own.same(engine.upper);
    await engine.checkpoint();
    if (round < 2) uppers.push((await engine.backup(backups[round])).offset + 1);
  }
  await engine.compact();
  await engine.close();
  const { since } = readManifest(new NodeStorage(directory))!.state.spines.get(1)!;
  assert.ok(since > uppers[1] + 5, `${since} is above the backups`);

  const within = uppers[0] + 11;
  assert.throws(() => plan({ offset: within }, [directory]), lost(since));
  const { spines } = readManifest(new NodeStorage(backups[1]))!.state;
  const lowest = Math.max(...[...spines.values()].map((spine) => spine.since));
  assert.throws(() => plan({ offset: uppers[0] - 20 }, [directory, backups[1]]), lost(lowest));
  for (const sources of [
    [directory, ...backups],
    [directory, backups[0]],
    [backups[0], directory],
  ]) {
    const made = plan({ offset: within }, sources);
    // The newest that can.
    assert.equal(made.from.name, sources.includes(backups[1]) ? backups[1] : backups[0]);
    const target = freshDirectory();
    make(made, placeAt(target));
    const copy = await open(target, SMALL);
    const rows = await copy.collection('words', { value: 'utf8' });
    assert.equal(copy.upper, within + 1);
    assert.deepEqual(new Map(rows.entries()), own.states[within]);
    await copy.close();
  }

  // The store is gone but for some of its log, which was put away.
  const archive = freshDirectory();
  mkdirSync(archive);
  for (const name of readdirSync(join(directory, 'wal'))) {
    if (/\.segz?$/.test(name)) copyFileSync(join(directory, 'wal', name), join(archive, name));
  }
  const archives = runToEnd(archiveAt(new NodeStorage(archive), archive));
  assert.throws(() => plan({ offset: within }, [backups[0]]), lost(uppers[0] - 1));
  const made = plan({ offset: within }, [backups[0]], archives);
  assert.equal(make(made, placeAt(freshDirectory())).offset, within);
  // And so when its manifest is lost.
  const broken = copyOf(directory);
  rmSync(join(broken, 'manifest'), { recursive: true });
  assert.equal(plan({ offset: within }, [broken, backups[0]]).from.name, backups[0]);
  assert.throws(
    () => plan({ offset: within }, [store, backups[0]]),
    (error: TidemarkError) => error.detail['finding'] === 'FOREIGN_STORE',
  );
});

test('a collection that was dropped is not restored without its rows', async () => {
  const directory = freshDirectory();
  const engine = await open(directory, SMALL);
  const gone = await engine.collection('gone', { value: 'utf8', history: Infinity });
  for (let i = 0; i < 20; i++) await gone.put(`${i}`, 'x');
  await engine.flush();
  const { offset: droppedAt } = await engine.drop('gone');
  const words = await engine.collection('words', { value: 'utf8', history: Infinity });
  for (let i = 0; i < 20; i++) await words.put(`${i}`, 'y');
  await engine.checkpoint();
  await engine.compact();
  await engine.close();
  const { spines } = readManifest(new NodeStorage(directory))!.state;
  assert.equal(spines.has(1), false, 'its rows are gone');
  for (const offset of [3, droppedAt - 1]) {
    assert.throws(
      () => plan({ offset }, [directory]),
      (error: TidemarkError) => error.code === 'TIDEMARK_HISTORY_LOST',
    );
  }
});

test('range deletes are cut as rows are', async () => {
  const directory = freshDirectory();
  const engine = await open(directory, SMALL);
  const words = await engine.collection('words', { value: 'utf8', history: Infinity });
  const own = new Model();
  own.same(engine.upper);
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 30; i++) {
      own.change((rows) => rows.set(`key ${i}`, `${round}`));
      await words.put(`key ${i}`, `${round}`);
    }
    own.change((rows) => {
      for (const key of rows.keys()) if (key >= 'key 1' && key < 'key 2') rows.delete(key);
    });
    await words.deleteRange({ gte: 'key 1', lt: 'key 2' });
  }
  await engine.flush();
  await engine.compact();
  await engine.close();
  // Before, at and behind each of them.
  for (const offset of [30, 31, 32, 61, 62, 92, 93]) {
    await expectState(restoreTo({ offset }, [directory]), own, offset);
  }
});

test('a time of day is the last transaction committed by then', () => {
  // Of every commit in the log: its last offset, and when.
  const storage = new NodeStorage(store);
  const progress = { what: '', doneBytes: 0, totalBytes: 0 };
  const commits: { last: number; atMs: number }[] = [];
  const emit = (item: Dumped): void => {
    if (item.type !== 'record' || item.kind !== 'commit') return;
    commits.push({ last: item.offset + item.transactions - 1, atMs: item.atMs });
  };
  const options = { from: 0, to: Infinity, tolerate: false, transactions: false };
  runToEnd(dumpLog(storage, options, emit, progress));
  assert.ok(commits.length > 100, `${commits.length} commits`);
  const asked = new Set<number>();
  for (let i = 0; i < commits.length; i += 23) asked.add(commits[i].atMs).add(commits[i].atMs + 1);
  for (const atMs of asked) {
    const expected = commits.findLast((commit) => commit.atMs <= atMs)!.last;
    assert.equal(plan({ atMs }, [store]).offset, expected, `${atMs}`);
  }
});

// ---------------------------------------------------------------- all or nothing

function simulated(disk: SimDisk): Place {
  const link = (): void => {
    throw Object.assign(new Error('EXDEV'), { code: 'EXDEV' });
  };
  return { storage: disk, name: 'simulated', link, removeDir: () => {}, syncParent: () => {} };
}

test('a call that fails, whichever it is, leaves no store', () => {
  const made = plan({ offset: 200 }, [store]);
  let failing = 0;
  for (let isOver = false; !isOver; failing++) {
    const disk = new SimDisk();
    disk.fault = ({ mutation }) =>
      mutation === failing ? { kind: 'throw', code: 'EIO' } : undefined;
    try {
      make(made, simulated(disk));
      isOver = true;
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'EIO', String(error));
      assert.equal(disk.stat('manifest/HEAD'), undefined, `call ${failing}`);
      assert.deepEqual(disk.openFiles, [], `call ${failing}`);
    }
  }
  assert.ok(failing > 20, `${failing} calls`);
});

test('wherever the power fails there is the whole store or none', () => {
  const made = plan({ offset: 200 }, [store]);
  const prng = new Prng(3);
  let whole = 0;
  let none = 0;
  for (let dying = 0; ; dying++) {
    const disk = new SimDisk();
    disk.fault = ({ mutation }) => (mutation === dying ? { kind: 'crash' } : undefined);
    let isOver = false;
    try {
      make(made, simulated(disk));
      isOver = true;
    } catch (error) {
      assert.ok(error instanceof SimCrash, String(error));
    }
    for (const left of crashes(disk, prng, { subsetsMax: 4, samples: 2, regularMax: 4 })) {
      if (left.stat('manifest/HEAD') === undefined) {
        none++;
        continue;
      }
      whole++;
      const report = runToEnd(
        verifyStore(left, { full: true, live: false }, { what: '', doneBytes: 0, totalBytes: 0 }),
      );
      assert.deepEqual(report.findings, [], `call ${dying}`);
      assert.equal(report.next, 201);
    }
    if (isOver) break;
  }
  assert.ok(whole > 0 && none > 20, `${whole} whole, ${none} none`);
});
