/**
 * Goal: checkpoints come when they are due, on request and per rotation and per so many transactions;
 * the log goes as soon as nobody needs it and no sooner, and the disk stays small. Method: small
 * segments, in both hosts; on the simulated disk, what a loss of power at each deletion would leave.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Engine, open } from '../../actors/engine.ts';
import { checkOptions } from '../../actors/options.ts';
import type { OpenOptions } from '../../actors/options.ts';
import { identify } from '../../actors/process-identity.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { loadManifest } from '../../core/spine/manifest-store.ts';
import { LOG_DIR, PARTS_DIR, numberOf } from '../../core/storage/names.ts';
import { FATE_LOST, SimDisk } from '../sim/disk.ts';
import type { SimCall } from '../sim/disk.ts';
import { coded, inBothHosts, misuse, quiet, until } from './world.ts';
import type { Home } from './world.ts';

const SMALL: OpenOptions = { segmentBytes: 64 * KiB, memtableBytes: 256 * KiB };

/** The engine with its checkpoints nearer together than any option makes them. */
async function openEvery(home: Home, checkpointEvery: number): Promise<Engine> {
  const checked = checkOptions(home.directory, home.options);
  const config = {
    ...checked.config,
    newLogId: randomBytes(16).toString('base64'),
    holder: identify(checked.config.directory),
    checkpointEvery,
  };
  const engine = new Engine({ ...checked, config });
  await engine.opened(undefined);
  return engine;
}

/** Bytes of the store's files: of the log, and of everything. */
function diskBytes(directory: string): { log: number; all: number } {
  let all = 0;
  let log = 0;
  for (const dir of readdirSync(directory)) {
    if (!statSync(join(directory, dir)).isDirectory()) continue;
    for (const name of readdirSync(join(directory, dir))) {
      // A file may go between being listed and being looked at.
      const bytes = statSync(join(directory, dir, name), { throwIfNoEntry: false })?.size ?? 0;
      all += bytes;
      if (dir === LOG_DIR) log += bytes;
    }
  }
  return { log, all };
}

function segmentsOnDisk(directory: string): number[] {
  return readdirSync(join(directory, LOG_DIR)).flatMap((name) => numberOf(name, '.seg') ?? []);
}

async function fill(engine: Engine, name: string, count: number): Promise<number> {
  const rows = await engine.collection(name, { key: 'u64' });
  let last = 0;
  for (let i = 0; i < count; i += 50) {
    const puts = Array.from({ length: 50 }, (_, k) => rows.put((i + k) % 100, 'x'.repeat(1_000)));
    for (const { offset } of await Promise.all(puts)) last = offset;
  }
  return last;
}

inBothHosts('a checkpoint covers what was committed before it, awaited or not', async (home) => {
  const engine = await home.open(SMALL);
  await engine.checkpoint();
  const last = await fill(engine, 'rows', 300);
  const rows = await engine.collection('rows', { key: 'u64' });
  const more = rows.put(1, 'more');
  await engine.checkpoint();
  const { offset } = await more;
  assert.equal(offset, last + 1);
  await until('published', () => engine.stats().log.checkpoints.newer > offset);
  const { checkpoints } = engine.stats().log;
  assert.ok(checkpoints.older <= checkpoints.newer, `${checkpoints.older}`);
  assert.ok(checkpoints.ageMs < 600_000, `${checkpoints.ageMs} ms`);
  // Many at once are answered by few.
  const before = engine.stats().keeper['checkpoints'];
  await Promise.all(Array.from({ length: 20 }, () => engine.checkpoint()));
  await quiet(engine);
  const took = engine.stats().keeper['checkpoints'] - before;
  assert.ok(took >= 1 && took <= 20, `${took} checkpoints`);
  await engine.close();
  await assert.rejects(engine.checkpoint(), coded('TIDEMARK_CLOSED'));
  const reader = await home.open({ ...SMALL, readOnly: true });
  await assert.rejects(reader.checkpoint(), coded('TIDEMARK_READ_ONLY'));
});

inBothHosts('without history the log goes up to the older checkpoint', async (home) => {
  const engine = await home.open(SMALL);
  await fill(engine, 'rows', 1_000);
  await engine.checkpoint();
  await engine.checkpoint();
  await quiet(engine);
  const { log } = engine.stats();
  assert.equal(log.floor.heldBy, 'checkpoint');
  assert.equal(log.segments.length, 1, 'all but the live segment');
  // Files go once no view names them any more.
  await until('deleted', () => engine.stats().log.segmentsDeleted >= 10);
  await until('files', () => segmentsOnDisk(home.directory).length <= 3);
  await engine.close();
  const again = await home.open(SMALL);
  const rows = await again.collection('rows', { key: 'u64' });
  assert.equal([...rows.keys()].length, 100);
  assert.equal(await fill(again, 'rows', 100), log.segments[0].firstOffset >= 0 ? 1_100 : -1);
});

inBothHosts('history keeps the segments that it reaches into, and no others', async (home) => {
  const engine = await home.open(SMALL);
  await engine.collection('kept', { history: 400 });
  const last = await fill(engine, 'rows', 1_500);
  await engine.checkpoint();
  await engine.checkpoint();
  await quiet(engine);
  const { log } = engine.stats();
  assert.deepEqual(log.floor, { offset: last + 1 - 400, heldBy: 'history', collection: 'kept' });
  assert.ok(log.segments[0].firstOffset <= log.floor.offset, 'reached into');
  assert.ok(log.segments[1].firstOffset > log.floor.offset, 'not below');
  // Without the collection, and without its history.
  await engine.drop('kept');
  const rows = await engine.collection('rows', { key: 'u64' });
  await rows.setHistory(10);
  await engine.checkpoint();
  await engine.checkpoint();
  await quiet(engine);
  const { floor, segments } = engine.stats().log;
  assert.equal(floor.heldBy === 'history' ? floor.collection : 'rows', 'rows');
  assert.ok(segments.length <= 2, `${segments.length} segments`);
});

inBothHosts('endless history keeps the whole log, until it is set otherwise', async (home) => {
  const engine = await home.open(SMALL);
  const all = await engine.collection('all', { history: Infinity });
  await fill(engine, 'rows', 600);
  await engine.checkpoint();
  await engine.checkpoint();
  await quiet(engine);
  const { log } = engine.stats();
  assert.deepEqual(log.floor, { offset: 0, heldBy: 'history', collection: 'all' });
  assert.equal(log.segments[0].seq, 1);
  assert.equal(log.segmentsDeleted, 0);
  await all.setHistory(0);
  await engine.checkpoint();
  await engine.checkpoint();
  await until('the rest goes', () => engine.stats().log.segments.length === 1);
});

inBothHosts('young segments stay for keepMs', async (home) => {
  const engine = await home.open({ ...SMALL, wal: { keepMs: 3_600_000 } });
  await fill(engine, 'rows', 600);
  await engine.checkpoint();
  await engine.checkpoint();
  await quiet(engine);
  const { log } = engine.stats();
  assert.deepEqual(log.floor, { offset: 0, heldBy: 'keepMs', collection: '' });
  assert.equal(log.segmentsDeleted, 0);
  await engine.close();
  const again = await home.open(SMALL);
  await again.checkpoint();
  await again.checkpoint();
  await until('they go', () => again.stats().log.segments.length === 1);
  const wal = (given: unknown): Promise<Engine> => home.open({ wal: given as never });
  await assert.rejects(wal({ keepMs: -1 }), misuse(/keepMs/));
  await assert.rejects(wal({ keepMs: '1' }), misuse(/keepMs/));
  await assert.rejects(wal({ keepDays: 1 }), misuse(/keepDays/));
  await assert.rejects(wal({ archive: 'dir' }), misuse(/archive/));
  await assert.rejects(wal(3), misuse(/wal/));
});

inBothHosts('many small transactions: a checkpoint at every so many', async (home) => {
  const engine = await openEvery(home, 1_000);
  try {
    const rows = await engine.collection('rows', { key: 'u64' });
    for (let thousand = 1; thousand <= 5; thousand++) {
      while (engine.upper < thousand * 1_000) {
        await Promise.all(Array.from({ length: 100 }, (_, i) => rows.put(i, 'v')));
      }
      await until('a checkpoint', () => engine.stats().keeper['checkpoints'] >= thousand);
      await quiet(engine);
      const { keeper, log } = engine.stats();
      assert.equal(keeper['checkpoints'], thousand, 'and no more');
      assert.ok(log.checkpoints.newer >= thousand * 1_000, `${log.checkpoints.newer}`);
    }
  } finally {
    await engine.close();
  }
});

inBothHosts('few large transactions: a checkpoint per rotation, a small disk', async (home) => {
  const segmentBytes = 16 * MiB;
  // With less, what memory holds back would be more than in proportion.
  const memtableBytes = 4 * MiB;
  const engine = await home.open({ segmentBytes, memtableBytes });
  const rows = await engine.collection('rows', { key: 'u64', value: 'buffer' });
  // As 2,000 of 5 MiB are to segments of 256 MiB.
  const value = randomBytes(320 * KiB);
  const bound = 4 * segmentBytes + 2 * 20 * value.length;
  const first = engine.stats().log.segment;
  let rotations = 0;
  let most = 0;
  let mostOfAll = 0;
  for (let i = 0, segment = first; i < 400; i++) {
    await rows.put(i % 20, value);
    const { log } = engine.stats();
    if (log.segment !== segment) rotations++;
    segment = log.segment;
    // Rotations faster than checkpoints share one; here each is waited for.
    await until('a checkpoint for the rotation', () => {
      return engine.stats().keeper['checkpoints'] >= rotations;
    });
    const disk = diskBytes(home.directory);
    most = Math.max(most, disk.log);
    mostOfAll = Math.max(mostOfAll, disk.all);
  }
  await quiet(engine);
  const { keeper, log } = engine.stats();
  assert.ok(rotations >= 6, `${rotations} rotations`);
  assert.equal(keeper['checkpoints'], rotations, 'one each');
  assert.ok(log.segments.length <= 3, `${log.segments.length} segments`);
  assert.ok(most <= 3.5 * segmentBytes, `${most} bytes of log at the most`);
  assert.ok(mostOfAll <= bound, `${mostOfAll} bytes on the way, at most ${bound}`);
  await engine.compact();
  await quiet(engine);
  const { all, log: ofLog } = diskBytes(home.directory);
  assert.ok(all <= bound, `${all} bytes at the end, ${ofLog} of the log, at most ${bound}`);
});

inBothHosts('few large transactions, several at a time: the disk stays as small', async (home) => {
  const segmentBytes = 16 * MiB;
  const engine = await home.open({ segmentBytes, memtableBytes: 4 * MiB });
  const rows = await engine.collection('rows', { key: 'u64', value: 'buffer' });
  const value = randomBytes(320 * KiB);
  const bound = 4 * segmentBytes + 2 * 20 * value.length;
  let most = 0;
  for (let i = 0; i < 160; i += 8) {
    await Promise.all(Array.from({ length: 8 }, (_, k) => rows.put((i + k) % 20, value)));
    most = Math.max(most, diskBytes(home.directory).all);
  }
  assert.ok(most <= bound, `${most} bytes on the way, at most ${bound}`);
});

inBothHosts('values of megabytes go into parts, whatever comes before and after', async (home) => {
  const engine = await home.open({ memtableBytes: 8 * MiB });
  const rows = await engine.collection('rows', { key: 'u64', value: 'buffer' });
  const values = [3, 3, 2, 0.1, 2, 1, 3].map((n) => randomBytes(n * MiB));
  for (let round = 0; round < 2; round++) {
    for (const [key, value] of values.entries()) await rows.put(key, value);
    await engine.flush();
  }
  await engine.compact();
  for (const [key, value] of values.entries())
    assert.ok(rows.getSync(key)?.equals(value), `${key}`);
});

/** Time goes fast, so that a job that failed is soon tried again. */
const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() * 1_000 };

function optionsOn(storage: SimDisk): OpenOptions {
  return {
    threads: 0,
    memoryBytes: 64 * MiB,
    memtableBytes: 64 * KiB,
    segmentBytes: 16 * KiB,
    storage: { storage, clock },
  };
}

test('no segment goes before the manifest has said so, whatever power takes back', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const deleted: number[] = [];
  let recycled = 0;
  /** The segment that a call takes away: deleted, or written over, which begins with its header. */
  const goneBy = ({ call, path, position }: SimCall): number | undefined => {
    if (!path.startsWith(LOG_DIR)) return undefined;
    const seq = numberOf(path.slice(LOG_DIR.length + 1), '.seg');
    if (seq === undefined || call === 'unlink') return seq;
    if (call !== 'write' || position !== 0 || disk.bytesOf(path)?.[0] !== 0x8f) return undefined;
    return seq;
  };
  disk.fault = (call) => {
    const seq = goneBy(call);
    if (seq === undefined) return undefined;
    if (call.call === 'write') recycled++;
    const left = disk.powerLoss(() => FATE_LOST);
    const { state } = loadManifest(left)!;
    assert.ok(state.logStart.seq > seq, `segment ${seq}, the log starts at ${state.logStart.seq}`);
    assert.ok(state.flushed.upper >= state.logStart.offset, 'the parts reach the log');
    if (call.call === 'unlink') deleted.push(seq);
    return undefined;
  };
  const engine = await open('/sim', optionsOn(disk));
  const rows = await engine.collection('rows', { key: 'u64' });
  // Whether a segment is wanted for a spare when it goes is a matter of moments.
  for (let turn = 0; turn < 40 || (turn < 2_000 && (deleted.length < 3 || recycled < 1)); turn++) {
    await Promise.all(Array.from({ length: 16 }, (_, i) => rows.put(i, 'x'.repeat(100))));
    if (turn % 7 === 6) await engine.checkpoint();
  }
  await quiet(engine);
  assert.ok(deleted.length >= 3, `${deleted.length} deleted`);
  assert.ok(recycled >= 1, `${recycled} written over`);
  assert.deepEqual(
    deleted,
    deleted.toSorted((a, b) => a - b),
    'the oldest first',
  );
  await engine.close();
});

test('what a job made and cannot be read back is deleted, and the job is done again', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const seen = new Set<string>();
  let failed = 0;
  // The first to read a part is the keeper, after its footer.
  disk.fault = ({ call, path }) => {
    if (call !== 'read' || !path.startsWith(PARTS_DIR) || seen.has(path)) return undefined;
    seen.add(path);
    if (seen.size % 3 !== 0) return undefined;
    failed++;
    return { kind: 'throw', code: 'EIO' };
  };
  const engine = await open('/sim', optionsOn(disk));
  const rows = await engine.collection('rows', { key: 'u64' });
  // A job is tried again after a while, which a sleeping host would wait for in real time.
  const awake = async (work: Promise<void>): Promise<void> => {
    let isDone = false;
    const done = (): void => void (isDone = true);
    work.then(done, done);
    while (!isDone) await rows.put(16, 'awake');
    await work;
  };
  for (let turn = 0; turn < 20; turn++) {
    await Promise.all(Array.from({ length: 16 }, (_, i) => rows.put(i, `${turn}`)));
    await awake(engine.flush());
  }
  const runs = (): number =>
    engine.stats().collections.find(({ name }) => name === 'rows')!.runs.length;
  for (let i = 0; i < 3; i++) await awake(engine.compact());
  disk.fault = undefined;
  await engine.compact();
  await quiet(engine);
  assert.equal(engine.state, 'open');
  assert.ok(failed >= 5, `${failed} failed`);
  assert.equal(runs(), 1);
  for (let i = 0; i < 16; i++) assert.equal(rows.getSync(i), '19');
  const named = new Set<number>();
  for (const spine of loadManifest(disk)!.state.spines.values()) {
    for (const { hollow } of spine.hollows) {
      for (const run of hollow.runs) for (const part of run.parts) named.add(part.file);
    }
  }
  const files = (): number[] => disk.list(PARTS_DIR).map((name) => numberOf(name, '.part') ?? -1);
  await until('deleted', () => files().length === named.size);
  assert.deepEqual(
    files(),
    [...named].toSorted((a, b) => a - b),
  );
  await engine.close();
  assert.deepEqual(disk.openFiles, []);
});
