/**
 * Goal: a job that writes zeros ahead has its range to itself until it has answered, however slow it is,
 * whether it fails or its worker is killed; what is committed meanwhile and afterwards is there; and a small
 * store stays small (row 40 of the log's tests). Method: all actors on one thread over the simulated disk,
 * the pool's turns rationed, its workers killed at every step; every write to a segment is looked at.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../core/base/limits.ts';
import { LogWriter } from '../../core/log/writer.ts';
import { FATE_LOST } from '../sim/disk.ts';
import type { SimCall } from '../sim/disk.ts';
import { Hand, valueOf } from '../crash/workloads.ts';
import { Incarnation } from '../crash/engine.ts';
import type { How, JobPace } from '../crash/engine.ts';
import type { Job } from '../../actors/jobs.ts';
import { LOG_ID, appendTo, close, storeDisk } from '../log/kit.ts';

const HOW: How = { segmentBytes: 32 * MiB, memtableBytes: 1 * MiB, synced: true };
const VALUE_BYTES: number = 100 * KiB;

/** Looks at every write to the log, and at every job that writes zeros there. */
class Watch {
  /** Ranges of jobs that have begun and not ended, by file. */
  readonly #taken: Map<string, { from: number; to: number }> = new Map();
  /** Jobs that ended, and writes that ended below a range or went into what had been one. */
  ended = 0;
  beside = 0;
  inside = 0;
  readonly #free: { path: string; from: number; to: number }[] = [];

  get isBusy(): boolean {
    return this.#taken.size > 0;
  }

  begin(job: Job): void {
    if (job.kind === 'zero') this.#taken.set(job.path, job);
  }

  end(job: Job): void {
    if (job.kind !== 'zero') return;
    this.ended++;
    this.#taken.delete(job.path);
    this.#free.push(job);
  }

  onCall({ call, path, position, length }: SimCall): void {
    if (!call.startsWith('write') || !path.endsWith('.seg')) return;
    if ((new Error('who').stack ?? '').includes('ZeroFill')) return;
    const end = position + length;
    const taken = this.#taken.get(path);
    assert.ok(
      taken === undefined || end <= taken.from,
      `bytes ${position} to ${end} of ${path} are of the job from ${taken?.from} on`,
    );
    if (taken !== undefined) this.beside++;
    if (this.#free.some((job) => job.path === path && end > job.from && position < job.to)) {
      this.inside++;
    }
  }
}

/** Commits `count` values under a pace of jobs; then the process dies, or the power fails: all is there. */
function live(count: number, watch: Watch, pace: JobPace, lossOfPower: boolean): void {
  const hand = new Hand(HOW, 40, { keepsMoments: false });
  hand.open();
  hand.engine.pace = pace;
  hand.onCall = (call) => watch.onCall(call);
  const a = hand.create('a', false);
  for (let n = 0; n < count; n++) {
    hand.put(a, `${n}`, VALUE_BYTES);
    if (n % 2 === 1) hand.sync();
    // What has failed is tried again after a while.
    if (n % 16 === 15) hand.engine.rest(1_100);
  }
  hand.sync();
  const { disk } = hand;
  disk.fault = undefined;
  const left = lossOfPower ? disk.powerLoss(() => FATE_LOST) : disk.processCrash();
  hand.end();
  const again = new Incarnation(left, HOW).open();
  const rows = new Map(again.rowsOf(a));
  // Collection a is made by the first transaction, so the values are numbered from 1.
  for (let n = 0; n < count; n++) {
    assert.ok(rows.get(`${n}`) === valueOf(`${n}`, n + 1, VALUE_BYTES), `${n} of ${count}`);
  }
  again.close();
}

test('beside a slow zeroing job the log keeps out of its range, and goes on in it afterwards', () => {
  for (const every of [1, 20, 60]) {
    const watch = new Watch();
    let turn = 0;
    const pace: JobPace = {
      mayStep: () => !watch.isBusy || turn++ % every === 0,
      dies: (job) => {
        watch.begin(job);
        return false;
      },
      onStep: (job, isOver) => {
        if (isOver) watch.end(job);
      },
    };
    live(90, watch, pace, every === 20);
    assert.ok(watch.ended >= 2, `${watch.ended} jobs`);
    assert.ok(watch.inside > 20, `${watch.inside} writes into zeros`);
    if (every > 1) assert.ok(watch.beside > 0, 'written while a job ran');
  }
});

test('a zeroing job that is killed at any of its steps takes nothing along', () => {
  for (let at = 0; at < 5; at++) {
    const watch = new Watch();
    let steps = 0;
    let killed = 0;
    const pace: JobPace = {
      mayStep: () => true,
      dies: (job) => {
        if (job.kind !== 'zero') return false;
        watch.begin(job);
        if (steps++ !== at || killed > 3) return false;
        steps = 0;
        killed++;
        // Nobody gives back what it has written, nor its descriptor.
        watch.end(job);
        return true;
      },
      onStep: (job, isOver) => {
        if (!isOver || job.kind !== 'zero') return;
        steps = 0;
        watch.end(job);
      },
    };
    live(70, watch, pace, at % 2 === 1);
    assert.ok(killed >= 2, `${killed} killed at step ${at}`);
    assert.ok(watch.inside > 5, `${watch.inside} writes into their ranges`);
  }
});

test('stores of one commit take about a MiB each', () => {
  const commit = Buffer.from(valueOf('commit', 1, 1_000));
  const value = Buffer.alloc(8 + 16 + 8 + 1_000);
  value.writeUInt32LE(value.length, 0);
  value.writeUInt32LE(1, 4);
  value.writeUInt32LE(1, 8);
  value.writeUInt8(1, 12);
  value.writeUInt32LE(1_008, 16);
  commit.copy(value, 24);
  for (let store = 0; store < 100; store++) {
    const disk = storeDisk();
    disk.capacityBytes = 64 * MiB;
    const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 256 * MiB });
    appendTo(writer, value, 1);
    while (writer.durable < writer.next) {
      writer.step(true);
      assert.equal(writer.zeroWanted(), undefined, 'nothing more is prepared for one commit');
      assert.equal(writer.spareWanted(), undefined);
    }
    close(writer);
    const used = 64 * MiB - disk.freeBytes();
    assert.ok(used < 1.1 * MiB, `${used} bytes`);
  }
});
