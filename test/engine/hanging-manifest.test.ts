/**
 * Goal (F2): nothing stands behind the manifest's disk. While its sync hangs commits are acknowledged,
 * generations flushed and merged; the edits of all that go into the next batch, and no job takes what an
 * unanswered edit speaks of. A crash then finds every acknowledged commit. Method: the engine inline over
 * a disk in memory that keeps back whatever the keeper wants written.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Engine, OpenOptions } from '../../actors/index.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import type { StorageCall } from '../../core/storage/storage.ts';
import { FATE_LOST, SimDisk } from '../sim/disk.ts';
import { coded, quiet, turn, until } from './world.ts';

class HangingDisk extends SimDisk {
  hangs = false;
  isHeld = (calls: readonly StorageCall[]): boolean => calls.some(({ call }) => call === 'write');
  readonly held: [ticket: number, fd: number, calls: readonly StorageCall[]][] = [];

  override submit(ticket: number, fd: number, calls: readonly StorageCall[]): void {
    if (this.hangs && this.isHeld(calls)) this.held.push([ticket, fd, calls]);
    else super.submit(ticket, fd, calls);
  }

  release(): void {
    this.hangs = false;
    for (const [ticket, fd, calls] of this.held.splice(0)) super.submit(ticket, fd, calls);
  }
}

type Scene = {
  readonly disk: HangingDisk;
  readonly engine: Engine;
  /** What has been acknowledged. */
  readonly rows: Map<number, string>;
  readonly write: (from: number, to: number, what: string) => Promise<void>;
  readonly clock: { ms: number };
};

async function begun(): Promise<Scene> {
  const disk = new HangingDisk({ answerAtOnce: true });
  const clock = { ms: 1_000 };
  const engine = await opened(disk, clock);
  const words = await engine.collection('words', { key: 'u64', value: 'utf8' });
  const rows = new Map<number, string>();
  const write = async (from: number, to: number, what: string): Promise<void> => {
    const tx = engine.transaction();
    for (let i = from; i < to; i++) tx.put(words, i, `${what} ${i}`);
    await tx.commit();
    for (let i = from; i < to; i++) rows.set(i, `${what} ${i}`);
  };
  return { disk, engine, rows, write, clock };
}

function opened(disk: SimDisk, clock: { ms: number }, options: OpenOptions = {}): Promise<Engine> {
  const storage = { storage: disk, clock: { nowMs: () => clock.ms, ticksMs: () => clock.ms } };
  const memory = { memoryBytes: 64 * MiB, memtableBytes: 256 * KiB };
  return open('/sim', { threads: 0, ...memory, ...options, storage });
}

/** The batches that each merge reads, from now on. */
function watchMerges(context: TestContext): number[][] {
  const read: number[][] = [];
  const result = Reflect.get(MergeJob.prototype, 'result');
  context.mock.method(MergeJob.prototype, 'result', function (this: MergeJob) {
    const made = result.call(this);
    read.push(made.inputs.map(({ bid }) => bid));
    return made;
  });
  return read;
}

/** The sync hangs for ten seconds, in which there is all sorts to do. */
async function hang({ disk, engine, write, clock }: Scene): Promise<Promise<void>[]> {
  for (let i = 0; i < 4; i++) {
    await write(1_000 * i, 1_000 * i + 1_000, 'before');
    await engine.flush();
  }
  await quiet(engine);
  disk.hangs = true;
  const waiting: Promise<void>[] = [];
  await write(0, 100, 'hanging');
  waiting.push(engine.flush());
  waiting.push(engine.compact());
  await until('an edit hangs', () => disk.held.length > 0);
  for (let second = 1; second <= 10; second++) {
    clock.ms += 1_000;
    await write(100 * second, 100 * second + 50, 'hanging');
    if (second === 5) waiting.push(engine.flush());
    for (let i = 0; i < 20; i++) await turn();
  }
  return waiting;
}

test('commits are acknowledged while the manifest hangs, and its edits become one batch', async (context) => {
  const read = watchMerges(context);
  const scene = await begun();
  const { disk, engine, rows } = scene;
  const waiting = await hang(scene);
  assert.equal(disk.held.length, 1, 'one batch is in flight');
  const before = engine.stats();
  assert.equal(before.durableUpper, before.upper, 'all is acknowledged');
  assert.ok(before.sealed > 0 && before.flushedUpper < before.upper, 'no view shows what hangs');
  disk.release();
  await Promise.all(waiting);
  await quiet(engine);
  const after = engine.stats();
  const { edits, batches } = after.spine.manifest;
  const behind = edits - before.spine.manifest.edits;
  assert.ok(
    before.spine.manifest.edits > before.spine.manifest.batches,
    'edits joined while it hung',
  );
  assert.ok(batches - before.spine.manifest.batches <= behind + 1, `${batches} batches`);
  const bids = read.flat();
  assert.equal(new Set(bids).size, bids.length, 'no batch was read by two jobs');
  const words = await engine.collection('words', { key: 'u64', value: 'utf8' });
  assert.deepEqual(
    [...words.entries()],
    [...rows].toSorted(([a], [b]) => a - b),
  );
  await engine.close();
});

test('power lost while the manifest hangs takes nothing that was acknowledged', async () => {
  const scene = await begun();
  const { disk, rows, clock } = scene;
  const waiting = await hang(scene);
  const left = disk.powerLoss(() => FATE_LOST);
  left.answerAtOnce = true;
  const engine = await opened(left, clock);
  const words = await engine.collection('words', { key: 'u64', value: 'utf8' });
  assert.deepEqual(
    [...words.entries()],
    [...rows].toSorted(([a], [b]) => a - b),
  );
  await engine.flush();
  await engine.compact();
  await quiet(engine);
  assert.equal((await engine.verify({ full: true })).ok, true);
  await engine.close();
  disk.release();
  await Promise.all(waiting);
  await scene.engine.close();
});

test('a feed after a place whose log is about to go is refused at once, not when it reads', async () => {
  const disk = new HangingDisk({ answerAtOnce: true });
  disk.isHeld = (calls) =>
    calls.some(
      (call) =>
        call.call === 'write' &&
        call.position > 0 &&
        Buffer.from(call.bytes).includes('"logStart"'),
    );
  const clock = { ms: 1_000 };
  const engine = await opened(disk, clock, { segmentBytes: 16 * KiB });
  const words = await engine.collection('words', { key: 'u64', value: 'utf8' });
  for (let i = 0; i < 60; i++) await words.put(i % 10, 'x'.repeat(KiB));
  await quiet(engine);
  const start = engine.stats().log.segments[0].firstOffset;
  disk.hangs = true;
  // The log that follows is held: it begins in another segment.
  for (let i = 0; i < 30; i++) await words.put(i % 10, 'x'.repeat(KiB));
  const early = words.changes({ after: 80, old: false });
  const checkpoints = (async () => {
    for (let i = 0; i < 3; i++) {
      await words.put(i, 'more');
      await engine.checkpoint();
    }
  })();
  await until('the edit hangs that moves the start of the log', () => disk.held.length > 0);
  const tooEarly = (): unknown => words.changes({ after: start, old: false });
  assert.throws(tooEarly, coded('TIDEMARK_HISTORY_LOST'));
  disk.release();
  await checkpoints;
  await quiet(engine);
  assert.throws(tooEarly, coded('TIDEMARK_HISTORY_LOST'));
  // Who was there before has kept what follows its place.
  for await (const { offset } of early) {
    if (offset >= 90) break;
  }
  await engine.close();
});
