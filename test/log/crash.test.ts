/**
 * Goal: whatever the moment of a crash and whatever it leaves, the log comes back as a prefix of what
 * was submitted that holds everything acknowledged (I1, I2), recovery says so twice, and goes on.
 * Method: a short life of a log is run again and again, and dies before each of its changing calls in
 * turn. Every disk that may be left is recovered; some recoveries die as well, at any of their calls;
 * then three commits are appended and the power fails once more. Turning any one sync off must be
 * noticed, else the harness or the sync is useless.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { Prng } from '../../core/base/prng.ts';
import { logHoldsRecords } from '../../core/log/create.ts';
import { SpareMaker, ZeroFill } from '../../core/log/prepare.ts';
import type { LogFacts } from '../../core/log/recovery.ts';
import { LogWriter } from '../../core/log/writer.ts';
import type { LogOptions } from '../../core/log/writer.ts';
import { segmentPath } from '../../core/storage/names.ts';
import { SimCrash, crashes } from '../sim/disk.ts';
import type { SimCall, SimDisk, SimFault } from '../sim/disk.ts';
import { LOG_ID, appendTo, close, factsOf, payloadOf, recover, resumed, storeDisk } from './kit.ts';
import type { Recovered } from './kit.ts';

const OPTIONS: LogOptions = {
  segmentBytes: 10_240,
  preparedBytes: 2048,
  batchBytesMax: 65_536,
};

/** The other mode: nothing prepared. A store may change it at every open, after a crash as well. */
const GROWING: LogOptions = { ...OPTIONS, zeros: false };

/** What the world outside knows of a life, at the moment it ended. */
type Witnessed = {
  created: boolean;
  /** CRCs of the payloads submitted, by offset; every commit is one transaction. */
  submitted: number[];
  durable: number;
  facts: LogFacts;
};

type Life = (disk: SimDisk, seen: Witnessed, prng: Prng) => void;

class Hand {
  readonly writer: LogWriter;
  readonly #disk: SimDisk;
  readonly #seen: Witnessed;
  readonly #prng: Prng;
  readonly #bases: Map<number, number> = new Map();
  /** Spares made of old segments. */
  recycled = 0;

  constructor(disk: SimDisk, writer: LogWriter, seen: Witnessed, prng: Prng) {
    this.#disk = disk;
    this.writer = writer;
    this.#seen = seen;
    this.#prng = prng;
  }

  commit(bytes: number): void {
    while (this.writer.full) this.step(false);
    const payload = payloadOf(this.#prng, 1, bytes);
    this.#seen.submitted[this.writer.next] = crc32(payload);
    appendTo(this.writer, payload, 1);
  }

  step(wantSync: boolean): string {
    const step = this.writer.step(wantSync);
    if (step === 'rotated') this.#bases.set(this.writer.seq, this.writer.baseOffset);
    assert.ok(this.writer.durable >= this.#seen.durable, 'durable never goes back');
    this.#seen.durable = this.writer.durable;
    return step;
  }

  write(): void {
    while (this.writer.staged || this.writer.full) this.step(false);
  }

  sync(): void {
    this.write();
    while (this.writer.durable < this.writer.next) this.step(true);
  }

  /** A flush edit: the manifest names where the log stands, once that is durable. */
  flushed(): void {
    this.sync();
    const start = this.writer.mark();
    this.#seen.facts = { ...this.#seen.facts, start, witness: start.upper };
  }

  watermark(): void {
    this.writer.watermark();
    this.write();
    while (this.writer.unsyncedBytes > 0) this.step(true);
  }

  prepare(): void {
    const zero = this.writer.zeroWanted();
    if (zero !== undefined) {
      const fill = new ZeroFill(this.#disk, zero);
      while (fill.step());
      this.writer.zeroed(zero.seq, zero.to, true);
    }
    const spare = this.writer.spareWanted();
    if (spare === undefined) return;
    const maker = new SpareMaker(this.#disk, spare);
    while (maker.step());
    this.writer.spareReady(spare.seq, true, maker.recycled);
    if (maker.recycled) this.recycled++;
  }

  /** As the keeper does it: the log's start moves on first, then what lies below goes, or becomes a spare. */
  drop(): void {
    const { facts } = this.#seen;
    const { seq } = facts.start!;
    const base = this.#bases.get(seq);
    if (base === undefined || seq <= facts.firstSeq) return;
    this.#seen.facts = { ...facts, firstSeq: seq, firstOffset: base };
    for (let gone = facts.firstSeq; gone < seq; gone++) {
      const path = segmentPath(gone);
      if (this.#disk.stat(path) === undefined || this.writer.offerSegment(gone)) continue;
      this.#disk.unlink(path);
    }
  }
}

function born(disk: SimDisk, seen: Witnessed, prng: Prng, options: LogOptions = OPTIONS): Hand {
  const writer = LogWriter.create(disk, LOG_ID, options);
  seen.created = true;
  return new Hand(disk, writer, seen, prng);
}

function reborn(disk: SimDisk, seen: Witnessed, prng: Prng, options: LogOptions = OPTIONS): Hand {
  const writer = resumed(disk, recover(disk, seen.facts, options), options);
  return new Hand(disk, writer, seen, prng);
}

/** 20 commits in batches, one batch written in two parts, idle watermark, close. */
const quiet: Life = (disk, seen, prng) => {
  const hand = born(disk, seen, prng);
  for (let i = 0; i < 20; i++) {
    hand.commit(prng.pick([64, 100, 700]));
    if (i % 3 === 0) hand.write();
    if (i % 5 === 4) hand.sync();
  }
  hand.watermark();
  close(hand.writer);
  seen.durable = hand.writer.durable;
};

/** Rotations, with and without a spare, with zeros ahead and without; a flush; no orderly end. */
const busy: Life = (disk, seen, prng) => {
  const hand = born(disk, seen, prng);
  for (let i = 0; i < 14; i++) {
    hand.commit(prng.pick([300, 1500, 2500]));
    if (i % 4 === 0) hand.prepare();
    if (i % 3 === 1) hand.sync();
    if (i === 7) hand.flushed();
  }
};

/** Without zeros: appended to, spares that are names alone; then opened with zeros, and without again. */
const growing: Life = (disk, seen, prng) => {
  let hand = born(disk, seen, prng, GROWING);
  for (const next of [OPTIONS, GROWING, undefined]) {
    for (let i = 0; i < 12; i++) {
      hand.commit(prng.pick([300, 1500, 2500]));
      if (i % 4 === 0) hand.prepare();
      if (i % 3 === 1) hand.sync();
    }
    hand.flushed();
    hand.drop();
    hand.prepare();
    if (next === undefined) return;
    close(hand.writer);
    seen.durable = hand.writer.durable;
    hand = reborn(disk, seen, prng, next);
  }
};

/** As busy, with spares made of segments that a flush has made superfluous; and an end with such a spare. */
const recycling: Life = (disk, seen, prng) => {
  let hand = born(disk, seen, prng);
  for (let i = 0; i < 34; i++) {
    hand.commit(prng.pick([300, 1500, 2500]));
    if (i % 3 === 0) hand.prepare();
    if (i % 3 === 1) hand.sync();
    if (i % 5 === 4) {
      hand.flushed();
      hand.drop();
    }
  }
  assert.ok(hand.recycled >= 2, `${hand.recycled} segments recycled`);
  hand.prepare();
  close(hand.writer);
  seen.durable = hand.writer.durable;
  hand = reborn(disk, seen, prng);
  for (let i = 0; i < 6; i++) hand.commit(prng.pick([32, 300, 2500]));
  hand.sync();
  hand.commit(700);
  hand.write();
};

/** Closed and opened again, over CLEAN, with a spare left over; then a crash, a recovery, and more. */
const several: Life = (disk, seen, prng) => {
  let hand = born(disk, seen, prng);
  for (let i = 0; i < 5; i++) hand.commit(2000);
  hand.sync();
  // A spare that has its name but not for certain: its maker never came to sync the directory.
  const job = hand.writer.spareWanted();
  assert.ok(job !== undefined);
  const maker = new SpareMaker(disk, job);
  while (disk.stat(segmentPath(job.seq)) === undefined) maker.step();
  close(hand.writer);
  seen.durable = hand.writer.durable;
  hand = reborn(disk, seen, prng);
  // Commits as long as CLEAN, so that they could be taken for what follows it.
  for (let i = 0; i < 8; i++) hand.commit(32);
  hand.sync();
  for (let i = 0; i < 3; i++) hand.commit(1500);
  hand.write();
  hand.writer.release();
  hand = reborn(disk, seen, prng);
  // Everything recovered counts as acknowledged.
  seen.durable = hand.writer.next;
  hand.commit(500);
  hand.flushed();
  hand.commit(500);
  hand.write();
  hand.writer.release();
  hand = reborn(disk, seen, prng);
  seen.durable = hand.writer.next;
  close(hand.writer);
};

/** The writer wraps what the disk throws. */
function died(error: unknown): boolean {
  return error instanceof SimCrash || (error instanceof Error && error.cause instanceof SimCrash);
}

function live(
  life: Life,
  seed: number,
  fault: (call: SimCall) => SimFault | undefined,
): { disk: SimDisk; seen: Witnessed } {
  const disk = storeDisk();
  disk.fault = fault;
  const seen: Witnessed = { created: false, submitted: [], durable: 0, facts: factsOf() };
  try {
    life(disk, seen, new Prng(seed));
  } catch (error) {
    if (!died(error)) throw error;
  }
  return { disk, seen };
}

/** I1, I2: a prefix of what was submitted, with everything acknowledged in it. */
function check(found: Recovered, seen: Witnessed): void {
  const { recovery, fed } = found;
  assert.ok(recovery.next >= seen.durable, `${recovery.next} holds ${seen.durable}`);
  assert.ok(recovery.next <= seen.submitted.length);
  let next = seen.facts.start?.upper ?? 0;
  for (const { offset, crc } of fed) {
    assert.equal(offset, next++);
    assert.equal(crc, seen.submitted[offset], `offset ${offset} is what was submitted`);
  }
  assert.equal(next, recovery.next);
}

function fingerprint(disk: SimDisk): string {
  const names = disk.list('wal').map((name) => {
    const bytes = disk.bytesOf(`wal/${name}`);
    return bytes === undefined ? name : `${name} ${crc32(bytes)} ${bytes.length}`;
  });
  return names.join();
}

/** Recovers a disk that a crash left, in every way asked for. */
function revive(left: SimDisk, seen: Witnessed, prng: Prng, depth: number): void {
  if (!seen.created) {
    // No manifest was written: the store is made anew over what is there.
    assert.equal(logHoldsRecords(left), false);
    close(LogWriter.create(left, LOG_ID, OPTIONS));
    return;
  }
  const before = left.clone();
  const options = prng.pick([OPTIONS, GROWING]);
  const found = recover(left, seen.facts, options);
  check(found, seen);

  if (depth > 0) {
    // Die in the recovery, before one of its changing calls.
    const { mutations } = before;
    const at = mutations + prng.below(Math.max(1, left.mutations - mutations));
    const dying = before.clone();
    dying.fault = (call) => (call.mutation === at ? { kind: 'crash' } : undefined);
    assert.throws(() => recover(dying, seen.facts, options), SimCrash);
    revive(dying.crash(prng, prng.pick(['process', 'power', 'torn'])), seen, prng, depth - 1);
  }

  // Recovered is durable: nothing of it may be lost now.
  const settled: Witnessed = { ...seen, submitted: seen.submitted.slice(0, found.recovery.next) };
  settled.durable = found.recovery.next;
  const again = recover(left.crash(prng, 'power'), seen.facts, prng.pick([OPTIONS, GROWING]));
  check(again, settled);
  assert.deepEqual(again.fed, found.fed);

  // And the log goes on.
  const hand = new Hand(left, resumed(left, found, options), settled, prng);
  for (let i = 0; i < 3; i++) {
    hand.commit(prng.pick([40, 900, 3000]));
    if (prng.chance(0.5)) hand.sync();
    else hand.write();
    if (prng.chance(0.3)) hand.prepare();
  }
  check(recover(left.crash(prng, prng.pick(['power', 'torn'])), seen.facts, OPTIONS), settled);
}

function enumerate(life: Life, seed: number, from: number, step: number): number {
  const whole = live(life, seed, () => undefined);
  check(recover(whole.disk.processCrash(), whole.seen.facts, OPTIONS), whole.seen);
  const first = storeDisk().mutations;
  const prng = new Prng(seed * 1000 + from);
  const done = new Set<string>();
  let states = 0;
  for (let n = first + from; n <= whole.disk.mutations; n += step) {
    const { disk, seen } = live(life, seed, (call) =>
      call.mutation === n ? { kind: 'crash' } : undefined,
    );
    for (const left of crashes(disk, prng, { subsetsMax: 5, samples: 3, regularMax: 4 })) {
      const mark = `${seen.durable} ${seen.facts.witness} ${left.units().length} ${fingerprint(left)}`;
      if (done.has(mark)) continue;
      done.add(mark);
      states++;
      try {
        revive(left, seen, prng, states % 4 === 0 ? 2 : 0);
      } catch (error) {
        throw new Error(`life ${life.name}, seed ${seed}, died before change ${n}`, {
          cause: error,
        });
      }
    }
  }
  return states;
}

for (const life of [quiet, busy, recycling, growing, several]) {
  test(`nothing acknowledged is lost, whenever it dies: ${life.name}`, () => {
    let states = 0;
    for (const seed of [1, 2]) states += enumerate(life, seed, 0, 1);
    assert.ok(states > 100, `${states} states`);
  });
}

test('a recovery that dies at any of its calls is done again, to the same log', () => {
  const prng = new Prng(77);
  const { disk, seen } = live(several, 5, (call) =>
    // In the second life, with written and unsynced commits behind the CLEAN.
    call.call === 'ftruncate' ? { kind: 'crash' } : undefined,
  );
  const start = disk.processCrash();
  const whole = start.clone();
  const found = recover(whole, seen.facts, OPTIONS);
  for (let n = start.mutations; n < whole.mutations; n++) {
    const dying = start.clone();
    dying.fault = (call) => (call.mutation === n ? { kind: 'crash' } : undefined);
    assert.throws(() => recover(dying, seen.facts, OPTIONS), SimCrash);
    for (const left of crashes(dying, prng, { subsetsMax: 6, samples: 4, regularMax: 6 })) {
      const again = recover(left, seen.facts, OPTIONS);
      check(again, seen);
      assert.equal(again.recovery.clean, false);
    }
    // With the page cache kept, nothing at all may change.
    assert.deepEqual(recover(dying.processCrash(), seen.facts, OPTIONS).fed, found.fed);
  }
});

test('any call that fails in a recovery fails the open and harms nothing', () => {
  const { disk, seen } = live(busy, 3, () => undefined);
  const start = disk.processCrash();
  const whole = start.clone();
  const found = recover(whole, seen.facts, OPTIONS);
  for (let n = start.calls; n < whole.calls; n++) {
    for (const fault of [
      { kind: 'throw', code: 'EIO' },
      { kind: 'short', bytes: 10 },
    ] as const) {
      const sick = start.clone();
      let failed = false;
      sick.fault = (call) => {
        if (call.index !== n) return undefined;
        failed = fault.kind === 'throw' || call.call.startsWith('write');
        return fault;
      };
      try {
        recover(sick, seen.facts, OPTIONS);
        assert.ok(!failed, `call ${n} failed unnoticed`);
      } catch (error) {
        assert.ok(failed, String(error));
        assert.deepEqual(sick.openFiles, []);
      }
      sick.fault = undefined;
      if (!failed) continue;
      const again = recover(sick.processCrash(), seen.facts, OPTIONS);
      assert.equal(again.recovery.next, found.recovery.next);
    }
  }
});

/** The place in the sources that made the call: the innermost frame of core/log. */
function siteOf(): string {
  const frames = (new Error('site').stack ?? '').split('\n');
  const at = frames.findIndex((frame) => frame.includes('/core/log/'));
  return frames
    .slice(at, at + 2)
    .map((frame) => frame.trim().replace(/\(.*\/(core\/log\/.*)\)/, '$1'))
    .join(' < ');
}

function isSync({ call }: SimCall): boolean {
  return call === 'fdatasync' || call === 'fsync';
}

/**
 * Syncs whose loss no crash can show. Zeros that are not there yet read as zeros: filling is for speed.
 * What recovery syncs before it reads is either proven or written again: it only makes a sick disk
 * fail before anything is built on it.
 */
const HARMLESS = /ZeroFill\.step|SpareMaker\.#fill|LogRecovery\.#syncFiles/;

test('turning any one sync off is noticed, but those that are only for speed', () => {
  Error.stackTraceLimit = 20;
  const sites = new Set<string>();
  for (const life of [quiet, busy, recycling, growing, several]) {
    live(life, 1, (call) => {
      if (isSync(call)) sites.add(siteOf());
      return undefined;
    });
  }
  const unnoticed: string[] = [];
  for (const site of sites) {
    if (HARMLESS.test(site)) continue;
    let noticed = false;
    for (let round = 0; round < 120 && !noticed; round++) {
      const life = [busy, several, quiet, recycling][round % 4] ?? busy;
      const prng = new Prng(round);
      const dieAt = 5 + prng.below(life === recycling ? 240 : 80);
      const elide = (call: SimCall): SimFault | undefined =>
        isSync(call) && siteOf() === site ? { kind: 'skip' } : undefined;
      try {
        const { disk, seen } = live(life, round, (call) =>
          call.mutation === dieAt ? { kind: 'crash' } : elide(call),
        );
        for (const left of crashes(disk, prng, { subsetsMax: 4, samples: 6, regularMax: 6 })) {
          if (!seen.created) {
            revive(left, seen, prng, 0);
            continue;
          }
          // Die in the recovery, on its way to the end; then let one finish.
          const at = left.mutations + 4 + prng.below(14);
          const first = left.clone();
          first.fault = (call) => (call.mutation === at ? { kind: 'crash' } : elide(call));
          let second = left;
          try {
            recover(first, seen.facts, OPTIONS);
          } catch (error) {
            if (!died(error)) throw error;
            second = first.crash(prng, 'power');
          }
          second.fault = elide;
          const found = recover(second, seen.facts, OPTIONS);
          check(found, seen);
          const settled = { ...seen, durable: found.recovery.next };
          check(recover(second.crash(prng, 'power'), seen.facts, OPTIONS), settled);
        }
      } catch {
        noticed = true;
      }
    }
    if (!noticed) unnoticed.push(site);
  }
  assert.ok(sites.size >= 8, `${sites.size} sites`);
  assert.deepEqual(unnoticed, []);
});
