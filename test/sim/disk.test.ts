/** The simulated disk keeps what was synced, may lose the rest in every way, and repeats itself. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import {
  FATE_GARBAGE,
  FATE_KEPT,
  FATE_LOST,
  FATE_TORN,
  FATE_ZERO,
  SECTOR_BYTES,
  SimCrash,
  SimDisk,
  crashes,
} from './disk.ts';

function filled(length: number, byte: number): Uint8Array {
  return new Uint8Array(length).fill(byte);
}

/** A disk with one synced file of `bytes`. */
function withFile(path: string, bytes: Uint8Array): { disk: SimDisk; fd: number } {
  const disk = new SimDisk();
  const fd = disk.open(path, 'create');
  disk.write(fd, bytes, 0, bytes.length, 0);
  disk.sync(fd);
  disk.syncDir('');
  return { disk, fd };
}

const ALL_LOST = (): number => FATE_LOST;
const ALL_KEPT = (): number => FATE_KEPT;

test('what was synced with its entry survives every loss', () => {
  const { disk } = withFile('a', filled(1000, 7));
  assert.equal(disk.units().length, 0);
  assert.deepEqual(disk.powerLoss(ALL_LOST).bytesOf('a'), filled(1000, 7));
});

test('a synced file whose directory was not synced may be gone', () => {
  const disk = new SimDisk();
  const fd = disk.open('a', 'create');
  disk.write(fd, filled(10, 1), 0, 10, 0);
  disk.sync(fd);
  assert.deepEqual(
    disk.units().map((unit) => unit.kind),
    ['entry'],
  );
  assert.equal(disk.powerLoss(ALL_LOST).bytesOf('a'), undefined);
  assert.deepEqual(disk.powerLoss(ALL_KEPT).bytesOf('a'), filled(10, 1));
});

test('unsynced sectors survive each by itself, the process crash keeps them all', () => {
  const { disk, fd } = withFile('a', filled(3 * SECTOR_BYTES, 0));
  disk.write(fd, filled(3 * SECTOR_BYTES, 9), 0, 3 * SECTOR_BYTES, 0);
  const left = disk.powerLoss((_, i) => (i === 1 ? FATE_LOST : FATE_KEPT)).bytesOf('a');
  assert.equal(left?.[0], 9);
  assert.equal(left[SECTOR_BYTES], 0);
  assert.equal(left[2 * SECTOR_BYTES], 9);
  const kept = disk.processCrash();
  assert.deepEqual(kept.bytesOf('a'), filled(3 * SECTOR_BYTES, 9));
  // Still dirty: a power loss after the process crash takes them all the same.
  assert.deepEqual(kept.powerLoss(ALL_LOST).bytesOf('a'), filled(3 * SECTOR_BYTES, 0));
});

test('a file that grew keeps any of its sizes, and reads zero where data was lost', () => {
  const { disk, fd } = withFile('a', filled(100, 1));
  disk.write(fd, filled(400, 2), 0, 400, 100);
  disk.write(fd, filled(1000, 3), 0, 1000, 500);
  const sizeOnly = disk.powerLoss((unit) => (unit.kind === 'size' ? FATE_KEPT : FATE_LOST));
  const bytes = sizeOnly.bytesOf('a');
  assert.equal(bytes?.length, 1500);
  assert.deepEqual([bytes[99], bytes[100], bytes[1499]], [1, 0, 0]);
  const dataOnly = disk.powerLoss((unit) => (unit.kind === 'size' ? FATE_LOST : FATE_KEPT));
  assert.deepEqual(dataOnly.bytesOf('a'), filled(100, 1));
  const between = disk.powerLoss((unit) => (unit.kind === 'size' ? FATE_TORN : FATE_KEPT));
  assert.equal(between.bytesOf('a')?.length, 500);
});

test('a harmed sector harms only the bytes that were being changed', () => {
  const { disk, fd } = withFile('a', filled(SECTOR_BYTES, 5));
  disk.write(fd, filled(100, 6), 0, 100, 300);
  for (const fate of [FATE_TORN, FATE_GARBAGE, FATE_ZERO]) {
    const bytes = disk.powerLoss(() => fate).bytesOf('a');
    assert.deepEqual(bytes?.subarray(0, 300), filled(300, 5));
    assert.deepEqual(bytes.subarray(400), filled(SECTOR_BYTES - 400, 5));
    assert.notDeepEqual(bytes.subarray(300, 400), filled(100, 6));
  }
});

test('directory operations survive as any subset, applied in order', () => {
  const { disk } = withFile('a', filled(1, 1));
  disk.rename('a', 'b');
  disk.close(disk.open('a', 'create'));
  const names = new Set<string>();
  for (let set = 0; set < 4; set++) {
    names.add(
      disk
        .powerLoss((_, i) => (set >> i) & 1)
        .list('')
        .join(),
    );
  }
  assert.deepEqual([...names].toSorted(), ['a', 'a,b', 'b']);
  disk.syncDir('');
  assert.deepEqual(disk.powerLoss(ALL_LOST).list(''), ['a', 'b']);
});

test('what was made under a name is over with when its removal is durable, and its bytes are forgotten', () => {
  const disk = new SimDisk();
  disk.makeDir('tmp');
  disk.makeDir('kept');
  disk.syncDir('');
  const fd = disk.open('tmp/a', 'create');
  disk.write(fd, filled(10, 1), 0, 10, 0);
  disk.sync(fd);
  disk.close(fd);
  disk.rename('tmp/a', 'kept/a');
  assert.equal(disk.units().length, 2, 'made, and renamed');
  disk.syncDir('kept');
  assert.equal(disk.units().length, 0);
  for (const left of [disk.powerLoss(ALL_KEPT), disk.powerLoss(ALL_LOST)]) {
    assert.deepEqual(left.list('tmp'), []);
    assert.deepEqual(left.bytesOf('kept/a'), filled(10, 1));
  }
  // A later one of that name is another.
  disk.close(disk.open('tmp/a', 'create'));
  disk.syncDir('kept');
  assert.deepEqual(disk.powerLoss(ALL_KEPT).list('tmp'), ['a']);
  assert.deepEqual(disk.powerLoss(ALL_LOST).list('tmp'), []);
});

test('links count, and an unlinked file lives while it is open', () => {
  const { disk, fd } = withFile('a', filled(4, 4));
  disk.link('a', 'b');
  assert.deepEqual(disk.stat('a'), { bytes: 4, links: 2 });
  assert.throws(() => disk.link('a', 'b'), { code: 'EEXIST' });
  disk.unlink('a');
  disk.unlink('b');
  disk.unlink('b');
  const target = new Uint8Array(4);
  assert.equal(disk.read(fd, target, 0, 4, 0), 4);
  assert.deepEqual(target, filled(4, 4));
  assert.throws(() => disk.open('a', 'read'), { code: 'ENOENT' });
});

test('a failed sync on ext4 leaves the new bytes readable and never written', () => {
  const { disk, fd } = withFile('a', filled(10, 1));
  disk.write(fd, filled(10, 2), 0, 10, 0);
  disk.fault = (call) =>
    call.call === 'fdatasync' ? { kind: 'failedSync', manner: 'ext4' } : undefined;
  assert.throws(() => disk.sync(fd), { code: 'EIO' });
  disk.fault = undefined;
  disk.sync(fd);
  assert.deepEqual(disk.bytesOf('a'), filled(10, 2));
  assert.deepEqual(disk.powerLoss(ALL_KEPT).bytesOf('a'), filled(10, 1));
  disk.dropCache();
  assert.deepEqual(disk.bytesOf('a'), filled(10, 1));
});

test('a failed sync on Btrfs brings the old bytes back; a late one loses them and tells the next', () => {
  const { disk, fd } = withFile('a', filled(10, 1));
  disk.write(fd, filled(10, 2), 0, 10, 0);
  disk.fault = (call) =>
    call.call === 'fdatasync' ? { kind: 'failedSync', manner: 'btrfs' } : undefined;
  assert.throws(() => disk.sync(fd), { code: 'EIO' });
  assert.deepEqual(disk.bytesOf('a'), filled(10, 1));
  disk.fault = () => ({ kind: 'lateSync' });
  disk.write(fd, filled(10, 3), 0, 10, 0);
  disk.sync(fd);
  disk.fault = undefined;
  assert.throws(() => disk.sync(fd), { code: 'EIO' });
  assert.deepEqual(disk.powerLoss(ALL_KEPT).bytesOf('a'), filled(10, 1));
});

test('short writes, thrown calls, skipped calls and death before a call', () => {
  const { disk, fd } = withFile('a', filled(10, 1));
  disk.fault = () => ({ kind: 'short', bytes: 3 });
  assert.equal(disk.write(fd, filled(10, 2), 0, 10, 0), 3);
  assert.deepEqual(disk.bytesOf('a')?.subarray(2, 4), Uint8Array.of(2, 1));
  disk.fault = () => ({ kind: 'throw', code: 'EROFS' });
  assert.throws(() => disk.write(fd, filled(10, 2), 0, 10, 0), { code: 'EROFS' });
  disk.fault = () => ({ kind: 'skip' });
  assert.equal(disk.write(fd, filled(10, 9), 0, 10, 0), 10);
  assert.deepEqual(disk.bytesOf('a')?.subarray(2, 4), Uint8Array.of(2, 1));
  disk.fault = (call) => (call.call === 'fdatasync' ? { kind: 'crash' } : undefined);
  assert.throws(() => disk.sync(fd), SimCrash);
  assert.throws(() => disk.list(''), SimCrash);
  assert.deepEqual(disk.processCrash().list(''), ['a']);
});

test('a full disk takes what fits, then says ENOSPC; overwriting needs no room', () => {
  const disk = new SimDisk({ capacityBytes: 100 });
  const fd = disk.open('a', 'create');
  assert.equal(disk.write(fd, filled(80, 1), 0, 80, 0), 80);
  assert.equal(disk.freeBytes(), 20);
  assert.equal(disk.write(fd, filled(80, 1), 0, 80, 80), 20);
  assert.throws(() => disk.write(fd, filled(1, 1), 0, 1, 100), { code: 'ENOSPC' });
  assert.equal(disk.write(fd, filled(80, 2), 0, 80, 0), 80);
  disk.close(fd);
  disk.unlink('a');
  disk.syncDir('');
  assert.equal(disk.freeBytes(), 100);
});

test('queued programs run step by step, in any order, and a failed step ends one', () => {
  const disk = new SimDisk();
  const bytes = filled(8, 3);
  disk.submit(1, -1, [
    { call: 'open', path: 'a', how: 'create' },
    { call: 'write', bytes, position: 0 },
    { call: 'sync' },
    { call: 'close' },
  ]);
  disk.submit(2, -1, [{ call: 'open', path: 'none', how: 'read' }, { call: 'close' }]);
  const prng = new Prng(5);
  assert.equal(disk.poll(), undefined);
  while (disk.runQueued(prng));
  const answers = [disk.poll(), disk.poll()].toSorted(
    (a, b) => (a?.ticket ?? 0) - (b?.ticket ?? 0),
  );
  assert.equal(answers[0]?.failure, undefined);
  assert.deepEqual(answers[1]?.failure instanceof Error, true);
  assert.deepEqual(disk.bytesOf('a'), bytes);
  assert.deepEqual(disk.openFiles, []);
  const quick = new SimDisk({ answerAtOnce: true });
  quick.submit(3, -1, [{ call: 'open', path: 'a', how: 'create' }]);
  assert.equal(quick.poll()?.ticket, 3);
});

test('a clone goes its own way, and the same calls give the same trace', () => {
  const { disk, fd } = withFile('a', filled(10, 1));
  const twin = disk.clone();
  assert.equal(twin.traceHash, disk.traceHash);
  twin.write(fd, filled(10, 2), 0, 10, 0);
  assert.notEqual(twin.traceHash, disk.traceHash);
  assert.deepEqual(disk.bytesOf('a'), filled(10, 1));
  disk.write(fd, filled(10, 2), 0, 10, 0);
  assert.equal(twin.traceHash, disk.traceHash);
  const from = (seed: number): string[] =>
    [...crashes(disk, new Prng(seed), { subsetsMax: 8, samples: 6, regularMax: 4 })].map((left) =>
      String(left.bytesOf('a')),
    );
  assert.deepEqual(from(1), from(1));
});
