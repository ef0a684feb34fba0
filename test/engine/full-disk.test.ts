/**
 * Goal: a disk that fills up refuses commits before they have an offset, whatever it is that meets the
 * full disk first, and takes them again when there is room; nothing is poisoned (rows 21 and 40 of the
 * log's tests). Method: a simulated disk of a size that is set so that a chunk of zeros, a spare, a flush,
 * a manifest or a rotation is what does not fit; the pool's jobs slow, failed, and answered late.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Collection, Engine, OpenOptions, TidemarkError } from '../../actors/index.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { segmentPath } from '../../core/storage/names.ts';
import { FATE_LOST, SimDisk } from '../sim/disk.ts';
import type { SimCall, SimFault } from '../sim/disk.ts';
import { coded, until } from './world.ts';

/** Fast, so that what is tried again each second is soon tried again. */
const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() * 1_000 };

function optionsOn(storage: SimDisk, options: OpenOptions): OpenOptions {
  const all = { threads: 0, memoryBytes: 64 * MiB, memtableBytes: 4 * MiB };
  return { ...all, storage: { storage, clock }, ...options };
}

async function openRows(engine: Engine): Promise<Collection<number, Buffer>> {
  return engine.collection('rows', { key: 'u64', value: 'buffer' });
}

const VALUE: Buffer = Buffer.alloc(24_000, 'v');
const isFull = coded('TIDEMARK_NO_SPACE');

function crashOf(disk: SimDisk): SimDisk {
  const crashed = disk.processCrash();
  crashed.answerAtOnce = true;
  return crashed;
}

/** Bytes of its files. */
function usedBytes(disk: SimDisk): number {
  disk.capacityBytes = 1e12;
  return 1e12 - disk.freeBytes();
}

/**
 * Puts in turns of `inTurn` until some are refused; notes which were acknowledged, answers the next key.
 * Of records that do not fit, a later and smaller one may.
 */
async function fill(
  rows: Collection<number, Buffer>,
  from: number,
  inTurn: number,
  acknowledged: Set<number> = new Set(),
): Promise<number> {
  for (let n = from; n < from + 20_000; n += inTurn) {
    const puts = Array.from({ length: inTurn }, (_, i) => rows.put(n + i, VALUE));
    let refused = 0;
    for (const [i, outcome] of (await Promise.allSettled(puts)).entries()) {
      if (outcome.status === 'fulfilled') acknowledged.add(n + i);
      else if (isFull(outcome.reason)) refused++;
    }
    if (refused > 0) return n + inTurn;
  }
  assert.fail('the disk is never full');
}

/** Fills, makes room, fills on; at the end all that was acknowledged is there, also after a crash. */
async function fillInRounds(disk: SimDisk, options: OpenOptions, inTurn: number): Promise<Engine> {
  const engine = await open('/sim', optionsOn(disk, options));
  const rows = await openRows(engine);
  const acknowledged = new Set<number>();
  let next = 0;
  for (let round = 0; round < 2; round++) {
    next = await fill(rows, next, inTurn, acknowledged);
    let upper = -1;
    for (;;) {
      // What is smaller than that record may fit yet, and what merged files leave, which go one by one.
      next = await fill(rows, next, 1, acknowledged);
      assert.equal(engine.state, 'open', String(engine.failure?.stack));
      ({ upper } = engine);
      const last = next;
      const isRefused = await rows.put(last, VALUE).then(() => false, isFull);
      if (isRefused) break;
      acknowledged.add(last);
      next++;
    }
    assert.equal(engine.upper, upper, 'a refused commit has no offset');
    assert.equal(rows.hasSync(next), false);
    disk.capacityBytes += 12 * MiB;
    await until('room', () => {
      void rows.put(0, VALUE).catch(isFull);
      return engine.upper > upper;
    });
  }
  await until('published', () => engine.stats().log.refusals.TIDEMARK_NO_SPACE > 0);
  const stalls = engine.stats().stalls.disk;
  assert.ok(stalls.count > 0, 'the stall was of the disk');
  disk.capacityBytes = Infinity;
  await engine.flush();
  const crashed = disk.processCrash();
  crashed.answerAtOnce = true;
  const again = await open('/sim', optionsOn(crashed, options));
  const found = await openRows(again);
  for (const n of acknowledged) assert.ok(found.hasSync(n), `${n} of ${next}`);
  await again.close();
  return engine;
}

test('a chunk of zeros finds no room: commits are refused, and taken again', async () => {
  const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 14 * MiB });
  const engine = await fillInRounds(disk, { segmentBytes: 64 * MiB }, 1);
  await engine.close();
  assert.deepEqual(disk.openFiles, []);
});

test('many commits on their way when the disk is full: those beyond its room are refused', async () => {
  const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 17 * MiB });
  const engine = await fillInRounds(disk, { segmentBytes: 64 * MiB }, 100);
  await engine.close();
});

test('rotations and spares find no room: commits are refused, and taken again', async () => {
  const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 20 * MiB });
  const engine = await fillInRounds(disk, { segmentBytes: 1 * MiB }, 7);
  await until('published', () => engine.stats().durability['rotations'] > 3);
  await engine.close();
});

for (const durability of ['synced', 'buffered'] as const) {
  test(`a store that has filled its disk can be flushed and emptied: ${durability}`, async () => {
    const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 48 * MiB });
    const small = { memtableBytes: 2 * MiB, segmentBytes: 1 * MiB, durability };
    const engine = await open('/sim', optionsOn(disk, small));
    const rows = await openRows(engine);
    await fill(rows, 0, 50);
    // The log has not taken the room that its own end needs.
    await engine.flush();
    await engine.checkpoint();
    await engine.checkpoint();
    assert.equal(engine.state, 'open', String(engine.failure?.stack));
    assert.ok(disk.freeBytes() > 8 * MiB, `${disk.freeBytes()} bytes are free`);
    let isDeleted = false;
    let isAsked = false;
    await until('room to delete', () => {
      if (!isAsked) {
        const asked = rows.deleteRange({}).then(() => (isDeleted = true), isFull);
        void asked.finally(() => (isAsked = false));
      }
      isAsked = true;
      return isDeleted;
    });
    await engine.compact();
    await until('what was deleted is gone', () => disk.freeBytes() > 40 * MiB);
    await engine.close();
  });
}

test('while the disk is low no segment that nobody needs is kept to be written over: it goes', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const options = { memtableBytes: 1 * MiB, segmentBytes: 1 * MiB };
  const engine = await open('/sim', optionsOn(disk, options));
  const rows = await openRows(engine);
  let next = 0;
  // Just behind a rotation no spare is ready: a segment that is offered now would be one.
  const first = engine.stats().log.segment;
  while (engine.stats().log.segment === first) await rows.put(next++, VALUE);
  disk.capacityBytes = usedBytes(disk) + 3 * MiB;
  await rows.put(next++, VALUE).catch(isFull);
  await engine.checkpoint();
  await engine.checkpoint();
  const { segment } = engine.stats().log;
  await until(
    'the live segment is alone',
    () => disk.list('wal').join() === segmentPath(segment).slice('wal/'.length),
    () => `${disk.list('wal').join()}, the log is at ${segment}`,
  );
  assert.equal(engine.state, 'open', String(engine.failure?.stack));
  await engine.close();
});

test('without preparing the disk is asked before an offset is given', async () => {
  // Batches above 1 MiB: nothing is prepared.
  const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 24 * MiB });
  const engine = await open('/sim', optionsOn(disk, { segmentBytes: 256 * MiB }));
  const rows = await openRows(engine);
  const large = Buffer.alloc(3 * MiB);
  let taken = 0;
  for (; taken < 100; taken++) {
    try {
      await rows.put(taken, large);
    } catch (error) {
      isFull(error);
      break;
    }
  }
  assert.ok(taken > 0 && taken < 8, `${taken} of 3 MiB on a disk of 24`);
  assert.equal(engine.state, 'open');
  disk.capacityBytes = 256 * MiB;
  let isTaken = false;
  let isAsked = false;
  await until('room', () => {
    if (!isAsked) {
      const asked = rows.put(taken, large).then(() => (isTaken = true), isFull);
      void asked.finally(() => (isAsked = false));
    }
    isAsked = true;
    return isTaken;
  });
  await engine.close();
});

for (const idle of [false, true]) {
  const when = idle ? 'while nobody commits' : 'between commits';
  test(`a buffered log was promised room, and another program takes it ${when}: refused, not poisoned`, async () => {
    const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 512 * MiB });
    const engine = await open('/sim', optionsOn(disk, { durability: 'buffered' }));
    const rows = await openRows(engine);
    await rows.put(0, VALUE);
    const isWatermarked = (): boolean => engine.stats().durability['watermarks'] > 0;
    if (idle) await until('nobody commits', isWatermarked);
    const used = 512 * MiB - disk.freeBytes();
    // Room for a record of those that are on their way, and for none after a pause.
    disk.capacityBytes = used + (idle ? 8 : 64) * KiB;
    let refused = 0;
    for (let n = 1; n < 20; n++) {
      const [put] = await Promise.allSettled([rows.put(n, VALUE)]);
      if (put.status === 'rejected' && isFull(put.reason)) refused++;
    }
    assert.ok(refused >= 17, `${refused} of 19 refused`);
    assert.equal(engine.state, 'open', String(engine.failure?.stack));
    disk.capacityBytes = 512 * MiB;
    await until('room', () => {
      void rows.put(0, VALUE).catch(isFull);
      return engine.upper > 22;
    });
    await engine.close();
  });
}

test('flush and manifest find no room: nothing is poisoned, and both are made up for', async () => {
  const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 64 * MiB });
  const engine = await open('/sim', optionsOn(disk, { segmentBytes: 64 * MiB }));
  const rows = await openRows(engine);
  let next = 0;
  for (; next < 50; next++) await rows.put(next, VALUE);
  const used = 64 * MiB - disk.freeBytes();
  disk.capacityBytes = used + 64 * KiB;
  let isFlushed = false;
  const flushed = engine.flush().then(() => (isFlushed = true));
  const checked = engine.checkpoint();
  await until('the keeper waits for space', () => engine.stats().keeper['jobsFailed'] > 0);
  assert.equal(engine.state, 'open', String(engine.failure?.stack));
  assert.equal(isFlushed, false);
  disk.capacityBytes = 128 * MiB;
  await flushed;
  await checked;
  for (let n = 0; n < next; n++) assert.ok(rows.hasSync(n), `${n}`);
  await engine.close();
});

/** Zeroing of the second chunk fails once, for another reason than space. */
function failZeros(disk: SimDisk, fault: SimFault): () => number {
  let failed = 0;
  disk.fault = (call: SimCall) => {
    const isZeros = call.call === 'write' && call.path.endsWith('.seg') && call.position >= 1 * MiB;
    if (!isZeros || call.length < 1 * MiB || failed > 2) return undefined;
    failed++;
    return fault;
  };
  return () => failed;
}

test('zeroing that fails for another reason is not a full disk: the log appends', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const engine = await open('/sim', optionsOn(disk, { segmentBytes: 64 * MiB }));
  const rows = await openRows(engine);
  const failed = failZeros(disk, { kind: 'throw', code: 'EIO' });
  for (let n = 0; n < 200; n++) await rows.put(n, VALUE);
  assert.ok(failed() > 0, 'a job failed');
  assert.equal(engine.state, 'open');
  assert.equal(engine.stats().log.refusals.TIDEMARK_NO_SPACE, 0);
  await engine.close();
  const again = await open('/sim', optionsOn(disk, { segmentBytes: 64 * MiB }));
  const found = await openRows(again);
  for (let n = 0; n < 200; n++) assert.ok(found.hasSync(n), `${n}`);
  await again.close();
});

/** Makes the first two jobs that fill a spare fail at giving it its name, or at syncing that; says the numbers. */
function failSpares(disk: SimDisk, step: string): number[] {
  const failed: number[] = [];
  let named = 0;
  disk.fault = ({ call, path }: SimCall) => {
    const renamed = call === 'rename' ? /^wal\/spare-(\d+)\.tmp/.exec(path) : null;
    if (renamed !== null) named = Number(renamed[1]);
    if (failed.length === 2 || named === 0 || call !== step) return undefined;
    if (call === 'fsync' && path !== 'wal') return undefined;
    failed.push(named);
    named = 0;
    return { kind: 'throw', code: 'EIO' };
  };
  return failed;
}

for (const step of ['rename', 'fsync']) {
  test(`a spare whose ${step} fails leaves no file behind, and another is made`, async () => {
    const disk = new SimDisk({ answerAtOnce: true });
    const engine = await open('/sim', optionsOn(disk, { segmentBytes: 1 * MiB }));
    const rows = await openRows(engine);
    const failed = failSpares(disk, step);
    let next = 0;
    const put = (): Promise<unknown> => rows.put(next++, VALUE);
    while (failed.length < 2) await put();
    const { made } = engine.stats().log.spares;
    while (engine.stats().log.spares.made === made) await put();
    const names = failed.flatMap((seq) => [segmentPath(seq), `wal/spare-${seq}.tmp`]);
    const left = names.filter((path) => disk.stat(path) !== undefined);
    assert.deepEqual(left, []);
    assert.equal(engine.state, 'open', String(engine.failure?.stack));
    await engine.close();
  });
}

test('a quota that says no while the disk says yes refuses as well', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const engine = await open('/sim', optionsOn(disk, { segmentBytes: 64 * MiB }));
  const rows = await openRows(engine);
  let isOver = true;
  disk.fault = (call: SimCall) => {
    const isBeyond = call.position + call.length > 1 * MiB + 4_096;
    const isWrite = call.call.startsWith('write') && call.path.endsWith('.seg');
    return isOver && isWrite && isBeyond ? { kind: 'throw', code: 'EDQUOT' } : undefined;
  };
  const taken = await fill(rows, 0, 10);
  assert.ok(taken > 20, `${taken} fit the first chunk`);
  assert.equal(engine.state, 'open', String(engine.failure?.stack));
  isOver = false;
  const { upper } = engine;
  await until('room', () => {
    void rows.put(taken, VALUE).catch(isFull);
    return engine.upper > upper;
  });
  await engine.close();
});

test('a store of one commit takes about a MiB', async () => {
  for (let store = 0; store < 5; store++) {
    const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 64 * MiB });
    const engine = await open('/sim', optionsOn(disk, {}));
    const rows = await openRows(engine);
    await rows.put(1, VALUE);
    await engine.close();
    const used = 64 * MiB - disk.freeBytes();
    assert.ok(used < 1.2 * MiB, `${used} bytes`);
  }
});

test('a torn tail that finds no room in quarantine refuses the open and changes nothing; with room it opens', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const options: OpenOptions = { segmentBytes: 1 * MiB };
  const engine = await open('/sim', optionsOn(disk, options));
  const rows = await openRows(engine);
  for (let n = 0; n < 8; n++) await rows.put(n, Buffer.from(`${n}`));
  const { position } = engine.stats().log;
  const torn = disk.processCrash();
  await engine.close();
  const path = 'wal/0000000001.seg';
  const bytes = Buffer.from(torn.bytesOf(path)!);
  // What a write leaves of which no header reached the disk.
  bytes.fill(0x5a, position + 512, position + 9_000);
  torn.remove(path);
  torn.plant(path, bytes);
  torn.answerAtOnce = true;
  const before = torn.bytesOf(path);
  const full = (): SimFault => ({ kind: 'throw', code: 'ENOSPC' });
  const faults: readonly ((call: SimCall) => SimFault)[] = [
    full,
    ({ call }) => (call === 'write' ? { kind: 'short', bytes: 100 } : full()),
  ];
  for (const fault of faults) {
    for (const which of ['open', 'write', 'fdatasync', 'fsync']) {
      let failed = 0;
      torn.fault = (call) => {
        if (!call.path.startsWith('quarantine') || call.call !== which) return undefined;
        failed++;
        return fault(call);
      };
      await assert.rejects(
        open('/sim', optionsOn(torn, options)),
        (error: { code?: unknown }) =>
          error.code === 'TIDEMARK_NO_SPACE' || error.code === 'TIDEMARK_IO',
        which,
      );
      assert.equal(failed, 1, `${which} failed`);
      assert.deepEqual(torn.bytesOf(path), before, 'the log is as it was');
      assert.deepEqual(torn.openFiles, [], which);
    }
  }
  torn.fault = undefined;
  const again = await open('/sim', optionsOn(torn, options));
  const found = await openRows(again);
  for (let n = 0; n < 8; n++) assert.equal(found.getSync(n)?.toString(), `${n}`);
  await until('published', () => again.stats().log.recovery.verdict === 'torn');
  assert.equal(torn.list('quarantine').length, 1, 'what the failed attempts left is not beside it');
  await again.close();
});

test('a checkpoint that finds no room waits for it: commits go on, and nothing is poisoned', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const engine = await open('/sim', optionsOn(disk, { segmentBytes: 1 * MiB }));
  const rows = await openRows(engine);
  let isFullNow = true;
  const failed = new Set<string>();
  disk.fault = ({ call, path }) => {
    const isItsOwn = path.endsWith('.rollup') || path.includes('HEAD');
    if (!isFullNow || !isItsOwn || (call !== 'write' && call !== 'open')) return undefined;
    failed.add(call);
    return { kind: 'throw', code: 'ENOSPC' };
  };
  let next = 0;
  for (; next < 20; next++) await rows.put(next, VALUE);
  let isDone = false;
  const checked = engine.checkpoint().then(() => (isDone = true));
  await until('the rollup finds no room', () => failed.size > 0);
  for (; next < 200; next++) await rows.put(next, VALUE);
  assert.equal(engine.state, 'open', String(engine.failure?.stack));
  assert.equal(isDone, false, 'it is not there');
  assert.equal(engine.stats().log.checkpoints.newer, 0);
  isFullNow = false;
  await checked;
  await until('it is now', () => engine.stats().log.checkpoints.newer > 0);
  const crashed = disk.powerLoss(() => FATE_LOST);
  disk.fault = undefined;
  await engine.close();
  crashed.fault = undefined;
  crashed.answerAtOnce = true;
  const again = await open('/sim', optionsOn(crashed, { segmentBytes: 1 * MiB }));
  const found = await openRows(again);
  for (let n = 0; n < next; n++) assert.ok(found.hasSync(n), `${n}`);
  await again.close();
});

/** Stores as they may lie on a disk that others fill: what they hold, how they were left, what opening writes. */
const LEFT: Record<string, { make: (disk: SimDisk) => Promise<SimDisk>; writes: string[] }> = {
  'no store yet': { make: (disk) => Promise.resolve(disk), writes: ['wal/N.seg'] },
  closed: {
    make: async (disk) => {
      await putInto(disk, 60, { segmentBytes: 1 * MiB }).then((engine) => engine.close());
      return disk;
    },
    writes: [],
  },
  'after a crash': {
    make: async (disk) => {
      await putInto(disk, 60, { segmentBytes: 1 * MiB });
      return disk.powerLoss(() => FATE_LOST);
    },
    writes: ['tmp/manifest.rollup', 'wal/N.seg'],
  },
  'after a crash, with more than a memtable takes': {
    make: async (disk) => {
      await putInto(disk, 400, { memtableBytes: 64 * MiB, memoryBytes: 512 * MiB });
      return disk.processCrash();
    },
    writes: ['parts/N.part', 'tmp/manifest.HEAD', 'tmp/manifest.rollup'],
  },
};

async function putInto(disk: SimDisk, count: number, options: OpenOptions): Promise<Engine> {
  const engine = await open('/sim', optionsOn(disk, options));
  const rows = await openRows(engine);
  await Promise.all(Array.from({ length: count }, (_, n) => rows.put(n, VALUE)));
  return engine;
}

for (const [left, { make, writes }] of Object.entries(LEFT)) {
  test(`a disk that others have filled: opening says so, and opens when there is room; ${left}`, async () => {
    const disk = await make(new SimDisk({ answerAtOnce: true }));
    const rowsOf = async (on: SimDisk): Promise<number> => {
      const engine = await open('/sim', optionsOn(on, {}));
      const count = Array.from((await openRows(engine)).keys()).length;
      await engine.close();
      return count;
    };
    const expected = await rowsOf(crashOf(disk));
    const paths = new Set<unknown>();
    /** Opens a copy that `limit` has filled, then again when there is room; false: it opened at once. */
    const isRefused = async (limit: (copy: SimDisk) => void): Promise<boolean> => {
      const copy = crashOf(disk);
      limit(copy);
      let refusal: TidemarkError | undefined;
      let engine: Engine | undefined;
      try {
        engine = await open('/sim', optionsOn(copy, {}));
      } catch (error) {
        refusal = error as TidemarkError;
        assert.ok(isFull(error), refusal.stack);
        assert.match(
          refusal.message,
          /opening \/sim wants (\d+ bytes|room) for (its entry|[\w/. ]+);/,
        );
        paths.add(String(refusal.detail['path']).replace(/\d+/g, 'N'));
      }
      copy.capacityBytes = Infinity;
      copy.fault = undefined;
      await engine?.close();
      assert.equal(await rowsOf(copy), expected);
      return refusal !== undefined;
    };
    // By bytes: calls that are cut short among them.
    let room = 0;
    while (await isRefused((copy) => void (copy.capacityBytes = usedBytes(copy) + room))) {
      room = room === 0 ? 512 : room * 2;
    }
    // By calls: each that changes something.
    for (let n = 0, isMet = true; isMet; n++) {
      isMet = false;
      await isRefused((copy) => {
        copy.fault = ({ mutation }) => {
          if (mutation !== n) return undefined;
          isMet = true;
          return { kind: 'throw', code: n % 2 === 0 ? 'ENOSPC' : 'EDQUOT' };
        };
      });
    }
    for (const path of writes) assert.ok(paths.has(path), `${path} of ${[...paths].join()}`);
  });
}
