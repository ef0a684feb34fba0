/**
 * Goal: what looks at a store beside a running engine (verify, inspect, dump, backup, ...) is not misled when
 * the file that it reads becomes another segment under its hands: no damage is told, no byte of another
 * segment is taken for its own, and nothing is harmed. Method: on the simulated disk, between any two calls
 * of the tool, the store goes on to what a real engine made of it, each file in its place.
 */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { open } from '../../actors/index.ts';
import { TidemarkError } from '../../core/base/errors.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { loadManifest } from '../../core/spine/manifest-store.ts';
import {
  LOG_DIR,
  MANIFEST_DIR,
  PARTS_DIR,
  TMP_DIR,
  numberOf,
  segmentPath,
} from '../../core/storage/names.ts';
import { copyStore } from '../../core/store/backup.ts';
import { compressStore } from '../../core/store/compress.ts';
import { dumpLog, isStill } from '../../core/store/dump.ts';
import type { DumpPlace, Dumped } from '../../core/store/dump.ts';
import { inspectStore } from '../../core/store/inspect.ts';
import type { Place } from '../../core/store/new-store.ts';
import { restoreFrom } from '../../core/store/restore.ts';
import { SimDisk } from '../sim/disk.ts';
import type { SimCall } from '../sim/disk.ts';
import { quiet, until } from '../engine/world.ts';
import { runToEnd, verify } from './kit.ts';

/** Fast, so that what waits for time does not keep the test. */
const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() * 1_000 };
const DIRS: readonly string[] = [LOG_DIR, PARTS_DIR, MANIFEST_DIR];
const OPTIONS = {
  threads: 0,
  memoryBytes: 64 * MiB,
  memtableBytes: 256 * KiB,
  segmentBytes: 64 * KiB,
  wal: { compress: false },
};

/** A store, and what became of it. */
type Scene = {
  readonly earlier: SimDisk;
  readonly later: SimDisk;
  /** Segments that became others between the two, in order. */
  readonly renames: readonly (readonly [from: string, to: string])[];
};

const scenes: Scene[] = [];
let closed: SimDisk;

const picture = (disk: SimDisk): SimDisk => {
  const copy = disk.processCrash();
  copy.settle();
  return copy;
};

const firstSeqOf = (disk: SimDisk): number => loadManifest(disk)!.state.logStart.seq;

before(async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const engine = await open('/sim', { ...OPTIONS, storage: { storage: disk, clock } });
  const rows = await engine.collection('rows', { key: 'u64' });
  const pictures: { disk: SimDisk; renames: number }[] = [];
  const renames: [string, string][] = [];
  disk.fault = ({ call, path }: SimCall): undefined => {
    if (call === 'rename' && path.startsWith(LOG_DIR)) {
      const [from, to] = path.split(' ');
      if (numberOf(from.slice(LOG_DIR.length + 1), '.seg') !== undefined) renames.push([from, to]);
    }
    if (call === 'fdatasync' && path.startsWith(MANIFEST_DIR)) {
      pictures.push({ disk: picture(disk), renames: renames.length });
    }
  };
  const write = async (enough: () => boolean): Promise<void> => {
    for (let i = 0; !enough(); i++) {
      assert.ok(i < 2_000, 'segments are recycled');
      await Promise.all(Array.from({ length: 8 }, (_, k) => rows.put(k, `${i}`.padEnd(900, '.'))));
      await quiet(engine);
    }
  };
  // The first segments may find a spare that was made before they came; then each becomes the next but one.
  await write(() => renames.length >= 2);
  const { length } = renames;
  await write(() => renames.length >= length + 2);
  // As it was when the manifest still named the segment that was recycled next.
  const [gone] = renames[length];
  const seq = numberOf(gone.slice(LOG_DIR.length + 1), '.seg')!;
  const early = pictures.findLast((one) => one.renames === length && firstSeqOf(one.disk) <= seq);
  assert.ok(early !== undefined, 'there was a time before');
  scenes.push({ earlier: early.disk, later: picture(disk), renames: renames.slice() });
  // The live segment of that time is another's file too.
  const live = early.disk.list(LOG_DIR).findLast((name) => {
    const bytes = early.disk.bytesOf(`${LOG_DIR}/${name}`);
    return bytes !== undefined && bytes[0] !== 0;
  });
  await write(() => renames.some(([from]) => from === `${LOG_DIR}/${live}`));
  const { segment } = engine.stats().log;
  await write(() => engine.stats().log.segment > segment);
  scenes.push({ earlier: early.disk, later: picture(disk), renames: renames.slice() });
  disk.fault = undefined;
  await engine.close();
  closed = disk;
});

/** The store goes on: files keep their place on the disk under their new names, and whoever has them open. */
function goOn(disk: SimDisk, { later, renames }: Scene): void {
  for (const [from, to] of renames) if (disk.stat(from) !== undefined) disk.rename(from, to);
  for (const dir of DIRS) {
    const names = new Set(later.list(dir));
    for (const name of disk.list(dir)) if (!names.has(name)) disk.unlink(`${dir}/${name}`);
    for (const name of names) {
      const path = `${dir}/${name}`;
      const bytes = later.bytesOf(path)!;
      if (dir !== LOG_DIR || disk.stat(path) === undefined) {
        disk.unlink(path);
        disk.plant(path, bytes);
        continue;
      }
      const fd = disk.open(path, 'write');
      disk.write(fd, bytes, 0, bytes.length, 0);
      disk.truncate(fd, bytes.length);
      disk.close(fd);
    }
  }
}

/** Runs it again and again, the store going on before its first call, its second, and so on. */
function* atEachCall(run: (disk: SimDisk) => void): Generator<SimDisk> {
  for (const scene of scenes) {
    for (let at = 0, isOver = false; !isOver; at++) {
      const disk = scene.earlier.clone();
      let calls = 0;
      disk.fault = () => {
        if (calls++ !== at) return undefined;
        const { fault } = disk;
        disk.fault = undefined;
        goOn(disk, scene);
        disk.fault = fault;
        return undefined;
      };
      try {
        run(disk);
      } catch (error) {
        throw new Error(`the store went on before call ${at}: ${String((error as Error).stack)}`, {
          cause: error,
        });
      }
      disk.fault = undefined;
      assert.deepEqual(disk.openFiles, [], 'all that was opened is closed');
      isOver = calls <= at;
      if (!isOver) yield disk;
    }
  }
}

const newProgress = (): { what: string; doneBytes: number; totalBytes: number } => ({
  what: '',
  doneBytes: 0,
  totalBytes: 0,
});

test('verify finds no damage', () => {
  let runs = 0;
  for (const disk of atEachCall((one) => {
    const { findings } = verify(one, true, true);
    assert.deepEqual(
      findings.filter(({ severity }) => severity !== 'note'),
      [],
    );
  })) {
    runs++;
    assert.equal(verify(disk, true, true).ok, true, 'nor is there any afterwards');
  }
  assert.ok(runs > 50, `${runs} runs`);
});

test('inspect shows what there was', () => {
  const nobody = { nameOf: () => undefined, cursorOf: () => undefined };
  let runs = 0;
  for (const _ of atEachCall((disk) => {
    const report = runToEnd(inspectStore(disk, nobody, newProgress()));
    assert.ok(report.segments.length > 0, 'segments');
  })) {
    runs++;
  }
  assert.ok(runs > 50, `${runs} runs`);
});

test('dump gives out whole transactions in order, or says that the log begins later', () => {
  let runs = 0;
  let lost = 0;
  const options = { from: undefined, to: Number.MAX_SAFE_INTEGER, tolerate: false };
  for (const _ of atEachCall((disk) => {
    const offsets: number[] = [];
    const emit = (item: Dumped): void => {
      if (item.type === 'transaction') offsets.push(item.offset);
    };
    try {
      runToEnd(dumpLog(disk, { ...options, transactions: true }, emit, newProgress()));
    } catch (error) {
      const isLost = error instanceof TidemarkError && error.code === 'TIDEMARK_HISTORY_LOST';
      if (!isLost) throw error;
      lost++;
    }
    assert.deepEqual(
      offsets,
      offsets.map((_offset, i) => offsets[0] + i),
    );
  })) {
    runs++;
  }
  assert.ok(runs > 50 && lost > 0, `${lost} of ${runs} came too late`);
});

test('tail rests while nothing is added, whatever lies in the file behind the last record', () => {
  const options = { from: undefined, to: Number.MAX_SAFE_INTEGER, tolerate: false };
  const placeIn = (disk: SimDisk): DumpPlace =>
    runToEnd(dumpLog(disk, { ...options, transactions: true }, () => {}, newProgress()));
  let recycled = 0;
  for (const scene of scenes) {
    for (const disk of [scene.earlier.clone(), scene.later.clone()]) {
      const place = placeIn(disk);
      const bytes = disk.bytesOf(segmentPath(place.seq))!;
      if (bytes.subarray(place.position).some((byte) => byte !== 0)) recycled++;
      assert.ok(isStill(disk, place), 'nothing was added');
    }
    const disk = scene.earlier.clone();
    const place = placeIn(disk);
    goOn(disk, scene);
    assert.ok(!isStill(disk, place), 'much was added');
  }
  assert.ok(recycled > 0, 'old bytes lay behind one of them');
  // Closed in order: the next record is to stand where CLEAN does.
  assert.ok(isStill(closed, placeIn(closed)), 'a closed store goes on no further');
});

/** Where a store is made: nothing can be linked from another disk. */
function placeOn(disk: SimDisk): Place {
  return {
    storage: disk,
    name: 'copy',
    link: () => {
      throw Object.assign(new Error('another disk'), { code: 'EXDEV' });
    },
    removeDir: (path) => disk.remove(path),
    syncParent: () => {},
  };
}

/** Newest transaction that the parts have, before and after the store went on. */
const flushedOf = (disk: SimDisk): number => loadManifest(disk)!.state.flushed.upper - 1;

test('backup is a whole store, of before or of afterwards', () => {
  let runs = 0;
  for (const _ of atEachCall((disk) => {
    const target = new SimDisk();
    const { offset } = runToEnd(copyStore(disk, placeOn(target), true, newProgress()));
    const { findings, next } = verify(target, runs % 5 === 0);
    assert.deepEqual(findings, []);
    assert.equal(next, offset + 1);
  })) {
    runs++;
  }
  assert.ok(runs > 50, `${runs} runs`);
});

test('restore makes the store of an offset, or says that it is lost', () => {
  let runs = 0;
  let lost = 0;
  const offset = Math.min(...scenes.map(({ earlier }) => flushedOf(earlier)));
  const idOf = (): undefined => undefined;
  for (const _ of atEachCall((disk) => {
    const target = new SimDisk();
    const from = [{ storage: disk, name: 'store' }];
    const goal = { offset };
    try {
      runToEnd(restoreFrom(from, [], goal, placeOn(target), idOf, newProgress()));
    } catch (error) {
      const isLost = error instanceof TidemarkError && error.code === 'TIDEMARK_HISTORY_LOST';
      if (!isLost) throw error;
      lost++;
      assert.deepEqual(target.list(''), [], 'nothing is left');
      return;
    }
    const { findings, next } = verify(target, runs % 5 === 0);
    assert.deepEqual(findings, []);
    assert.ok(next !== undefined && next > offset, `${next}`);
  })) {
    runs++;
  }
  assert.ok(runs > 50 && lost > 0 && lost < runs, `${lost} of ${runs} came too late`);
});

test('compress harms nothing: the store opens with all that is in it', async () => {
  let runs = 0;
  for (const disk of atEachCall((one) => {
    const { findings } = runToEnd(compressStore(one, '1', newProgress()));
    assert.deepEqual(findings, []);
  })) {
    if (runs++ % 7 !== 0) continue;
    assert.equal(
      verify(disk, true, false).findings.filter(({ severity }) => severity === 'damage').length,
      0,
    );
    disk.answerAtOnce = true;
    for (const name of disk.list(TMP_DIR)) assert.fail(`${name} was left`);
    const engine = await open('/sim', { ...OPTIONS, storage: { storage: disk, clock } });
    const rows = await engine.collection('rows', { key: 'u64' });
    await until('open', () => engine.state === 'open');
    assert.equal([...rows.keys()].length, 8);
    await engine.close();
  }
  assert.ok(runs > 50, `${runs} runs`);
});
