/** The writer puts exactly what the tables say on the disk, once, and nothing after a failure. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { TidemarkError } from '../../core/base/errors.ts';
import { setVerify } from '../../core/base/assert.ts';
import { Prng } from '../../core/base/prng.ts';
import { SpareMaker, ZeroFill } from '../../core/log/prepare.ts';
import { chainAfter } from '../../core/log/record.ts';
import {
  ACCEPTED,
  LogWriter,
  REFUSED_ENDED,
  REFUSED_EPOCH,
  REFUSED_LENGTH,
  REFUSED_OFFSET,
  REFUSED_RANGE,
  REFUSED_TIME,
  REFUSED_TX_COUNT,
} from '../../core/log/writer.ts';
import type { LogOptions, LogPiece, LogStep } from '../../core/log/writer.ts';
import type { SimCall, SimDisk, SimFault } from '../sim/disk.ts';
import {
  LOG_ID,
  SMALL,
  appendTo,
  close,
  drain,
  factsOf,
  naiveBlock,
  naiveEnd,
  naiveRecord,
  naiveSalt,
  payloadOf,
  recover,
  resumed,
  storeDisk,
} from './kit.ts';

setVerify(true);

/** What the log's files should hold, by the tables alone. */
class NaiveLog {
  readonly files: Map<number, Buffer[]> = new Map();
  readonly #options: LogOptions;
  #seq = 1;
  #position = 4096;
  #base = 0;
  #commits = 0;
  #next = 0;
  #chain = 0;
  #epoch = 0;
  #atMs = 0;

  constructor(options: LogOptions) {
    this.#options = options;
    this.#begin(1, 0, 0, 0, 1);
  }

  #begin(seq: number, prevSeq: number, prevEnd: number, reason: number, compat: number): void {
    this.#seq = seq;
    this.#base = this.#next;
    this.#position = 4096;
    this.#commits = 0;
    const block = naiveBlock(LOG_ID, {
      seq,
      base: this.#base,
      prevSeq,
      prevEnd,
      prevChain: this.#chain,
      epoch: this.#epoch,
      planned: this.#options.segmentBytes,
      baseAtMs: this.#atMs,
      reason,
      compat,
    });
    this.files.set(seq, [block]);
  }

  #put(kind: number, first: boolean, txCount: number, durable: number, payload: Uint8Array): void {
    const record = naiveRecord(
      {
        kind,
        flags: first || this.#position === 4096 ? 1 : 0,
        txCount,
        minTxOffset: this.#next,
        epoch: this.#epoch,
        prevChain: this.#chain,
        durable,
        atMs: this.#atMs,
        payload,
      },
      naiveSalt(LOG_ID, this.#seq),
      this.#position,
    );
    this.files.get(this.#seq)?.push(record);
    this.#position += record.length;
  }

  commit(
    first: boolean,
    durable: number,
    payload: Uint8Array,
    txCount: number,
    epoch: number,
    atMs: number,
    nextSeq: number,
    spare: boolean,
  ): void {
    const over = this.#position + 48 + payload.length + 80 > this.#options.segmentBytes;
    if (over && this.#commits > 0) {
      this.end(4, first, durable);
      this.#begin(nextSeq, this.#seq, this.#position, 1, spare ? 1 : 0);
    }
    this.#epoch = epoch;
    this.#atMs = atMs;
    this.#put(1, first, txCount, durable, payload);
    const crc = crc32(payload);
    this.#chain = chainAfter(this.#chain, this.#next, txCount, epoch, payload.length, crc, atMs);
    this.#next += txCount;
    this.#commits++;
  }

  end(kind: number, first: boolean, durable: number): void {
    const end = naiveEnd(this.#base, this.#next, this.#commits, this.#chain, this.#epoch);
    this.#put(kind, first, 0, durable, end);
  }

  watermark(first: boolean, durable: number): void {
    this.#put(2, first, 0, durable, new Uint8Array(0));
  }

  check(disk: SimDisk): void {
    for (const [seq, parts] of this.files) {
      const bytes = disk.bytesOf(`wal/${String(seq).padStart(10, '0')}.seg`);
      assert.ok(bytes !== undefined, `segment ${seq} is there`);
      const expected = Buffer.concat(parts);
      assert.ok(
        expected.equals(bytes.subarray(0, expected.length)),
        `segment ${seq} is byte-exact`,
      );
      assert.ok(
        bytes.subarray(expected.length).every((byte) => byte === 0),
        'zeros behind it',
      );
    }
  }
}

/** Cuts a payload at arbitrary places and scatters the pieces over buffers of their own. */
function scattered(prng: Prng, payload: Uint8Array, pieces: number): LogPiece[] {
  const cuts = [0, payload.length];
  for (let i = 1; i < pieces; i++) cuts.push(prng.below(payload.length + 1));
  cuts.sort((a, b) => a - b);
  const scatter: LogPiece[] = [];
  for (let i = 1; i < cuts.length; i++) {
    const [from, to] = [cuts[i - 1], cuts[i]];
    const bytes = new Uint8Array(to - from + 7);
    bytes.set(payload.subarray(from, to), 5);
    scatter.push({ bytes, offset: 5, length: to - from });
  }
  return scatter;
}

for (const seed of [1, 2, 3, 4]) {
  test(`files are byte-exact: small, large, scattered, rotated, prepared (seed ${seed})`, () => {
    const prng = new Prng(seed);
    const options: LogOptions = {
      segmentBytes: 400_000,
      preparedBytes: 32_768,
      batchBytesMax: 100_000,
      prepare: seed !== 4,
    };
    const disk = storeDisk();
    const writer = LogWriter.create(disk, LOG_ID, options);
    const naive = new NaiveLog(options);
    if (seed === 4) naive.files.get(1)?.splice(0, 1, blockWithCompat0(options));
    let ready = new Set<number>();
    let highest = 1;
    let rotations = 0;
    let jobs: (() => void)[] = [];
    const note = (step: LogStep): void => {
      if (step === 'rotated') rotations++;
      if (step === 'waiting') assert.ok(jobs.length > 0, 'only a job makes it wait');
    };
    for (let i = 0; i < 1500; i++) {
      const zero = writer.zeroWanted();
      if (zero !== undefined) {
        const fill = new ZeroFill(disk, zero, 10_000);
        jobs.push(() => {
          const ok = prng.chance(0.9);
          if (ok) while (fill.step());
          writer.zeroed(zero.seq, zero.to, ok);
          writer.retryPreparing();
        });
      }
      const spare = writer.spareWanted();
      if (spare !== undefined) {
        highest = spare.seq;
        const maker = new SpareMaker(disk, spare, 100_000);
        jobs.push(() => {
          while (maker.step());
          writer.spareReady(spare.seq, true);
          if (spare.seq > writer.seq) ready.add(spare.seq);
        });
      }
      const durable = writer.durable;
      if (jobs.length > 0 && prng.chance(0.05)) jobs.splice(prng.below(jobs.length), 1)[0]?.();
      if (writer.full || prng.chance(0.4)) {
        const step = writer.step(prng.chance(0.3));
        note(step);
        if (step === 'waiting') while (jobs.length > 0) jobs.pop()?.();
        continue;
      }
      const first = !writer.staged;
      if (prng.chance(0.05)) {
        if (writer.watermark()) naive.watermark(first, durable);
        continue;
      }
      const txCount = prng.pick([1, 1, 1, 2, 40]);
      const size = prng.pick([64, 64, 200, 3000, 32_700, 33_000, 80_000]);
      const payload = payloadOf(prng, txCount, size);
      const epoch = writer.epoch + (prng.chance(0.02) ? 1 : 0);
      const atMs = writer.atMs + prng.below(3);
      const spareSeq = [...ready].find((seq) => seq > writer.seq);
      const nextSeq = spareSeq ?? highest + 1;
      const seqBefore = writer.seq;
      const offset = writer.next;
      const crc = crc32(payload);
      const refused = prng.chance(0.5)
        ? writer.append(payload, 0, payload.length, crc, txCount, offset, epoch, atMs)
        : writer.appendPieces(
            scattered(prng, payload, prng.pick([2, 5, 2500])),
            crc,
            txCount,
            offset,
            epoch,
            atMs,
          );
      assert.equal(refused, ACCEPTED);
      naive.commit(first, durable, payload, txCount, epoch, atMs, nextSeq, spareSeq !== undefined);
      if (writer.seq !== seqBefore) {
        assert.equal(writer.seq, nextSeq);
        ready = new Set([...ready].filter((seq) => seq > writer.seq));
        highest = Math.max(highest, writer.seq);
      }
    }
    while (jobs.length > 0) jobs.pop()?.();
    drain(writer);
    assert.ok(rotations >= 10);
    assert.equal(writer.durable, writer.next);
    naive.end(5, true, writer.durable);
    close(writer);
    naive.check(disk);
    assert.deepEqual(disk.openFiles, []);
    const { recovery, fed } = recover(disk, factsOf(), options);
    assert.ok(recovery.clean);
    assert.equal(recovery.next, writer.next);
    assert.equal(fed[0]?.offset, 0);
  });
}

function blockWithCompat0(options: LogOptions): Buffer {
  return naiveBlock(LOG_ID, {
    seq: 1,
    base: 0,
    prevSeq: 0,
    prevEnd: 0,
    prevChain: 0,
    epoch: 0,
    planned: options.segmentBytes,
    baseAtMs: 0,
    reason: 0,
    compat: 0,
  });
}

test('what does not fit is refused whole: nothing changes, and the next good record is taken', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 200 << 20 });
  const payload = payloadOf(new Prng(1), 1, 100);
  appendTo(writer, payload, 1, 50);
  const before = writer.mark();
  const crc = crc32(payload);
  const tries: [number, number, number, number, number, number][] = [
    [REFUSED_OFFSET, payload.length, 1, 2, 0, 50],
    [REFUSED_OFFSET, payload.length, 1, 0, 0, 50],
    [REFUSED_OFFSET, payload.length, 1, 2 ** 53 - 1, 0, 50],
    [REFUSED_OFFSET, payload.length, 1, Number.NaN, 0, 50],
    [REFUSED_TX_COUNT, payload.length, 0, 1, 0, 50],
    [REFUSED_TX_COUNT, payload.length, 65_536, 1, 0, 50],
    [REFUSED_TX_COUNT, payload.length, 1.5, 1, 0, 50],
    [REFUSED_EPOCH, payload.length, 1, 1, -1, 50],
    [REFUSED_EPOCH, payload.length, 1, 1, 2 ** 32, 50],
    [REFUSED_TIME, payload.length, 1, 1, 0, 49],
    [REFUSED_TIME, payload.length, 1, 1, 0, 2 ** 53],
    [REFUSED_LENGTH, 0, 1, 1, 0, 50],
    [REFUSED_LENGTH, 12, 1, 1, 0, 50],
    [REFUSED_LENGTH, (64 << 20) + 8, 1, 1, 0, 50],
  ];
  for (const [reason, length, txCount, offset, epoch, atMs] of tries) {
    assert.equal(
      writer.append(payload, 0, length, crc, txCount, offset, epoch, atMs),
      reason,
      `${reason} ${length} ${txCount} ${offset} ${epoch} ${atMs}`,
    );
    assert.deepEqual(writer.mark(), before);
  }
  assert.equal(writer.append(payload, 0, payload.length, crc, 1, 1, 0, 50), ACCEPTED);
  drain(writer);
  assert.equal(writer.failed, undefined);
  appendTo(writer, payloadOf(new Prng(2), 65_535, 65_535 * 40), 65_535);
  drain(writer);
  const many = writer.next;
  assert.equal(many, 65_537);
  close(writer);
  assert.equal(writer.append(payload, 0, payload.length, crc, 1, many, 0, 99), REFUSED_ENDED);
  assert.equal(recover(disk).recovery.next, many);
});

test('offsets end at 2^53 - 1', () => {
  const disk = storeDisk();
  const created = LogWriter.create(disk, LOG_ID, SMALL);
  const { seq, position, baseOffset } = created;
  const resume = {
    logId: LOG_ID,
    seq,
    fd: 3,
    position,
    commitEnd: position,
    baseOffset,
    baseAtMs: 0,
    commits: 0,
    next: 2 ** 53 - 3,
    durable: 0,
    chain: 0,
    epoch: 0,
    atMs: 0,
    zeroedEnd: 0,
    claimed: 0,
    highestSeq: 1,
    spareSeq: 0,
    spareRecycled: false,
    filled: false,
  };
  const writer = new LogWriter(disk, SMALL, resume);
  const payload = payloadOf(new Prng(1), 3, 200);
  const crc = crc32(payload);
  const append = (txCount: number): number =>
    writer.append(payload, 0, payload.length, crc, txCount, 2 ** 53 - 3, 0, 0);
  assert.equal(append(3), REFUSED_RANGE);
  assert.equal(append(2), ACCEPTED);
});

test('a batch is full at its limit, takes one larger commit, and ends with a rotation', () => {
  const disk = storeDisk();
  const options = { segmentBytes: 1 << 20, batchBytesMax: 10_000 };
  const writer = LogWriter.create(disk, LOG_ID, options);
  const prng = new Prng(3);
  const small = payloadOf(prng, 1, 1000);
  let count = 0;
  for (; !writer.full; count++) appendTo(writer, small, 1);
  assert.equal(count, Math.ceil(10_000 / (small.length + 48)));
  assert.throws(() => appendTo(writer, small, 1));
  assert.equal(writer.step(true), 'wrote');
  assert.ok(!writer.full);
  appendTo(writer, payloadOf(prng, 1, 900_000), 1);
  assert.ok(writer.full);
  drain(writer);
  const seq = writer.seq;
  appendTo(writer, payloadOf(prng, 1, 200_000), 1);
  assert.equal(writer.seq, seq + 1);
  assert.ok(writer.full);
  const steps: LogStep[] = [];
  while (writer.full) steps.push(writer.step(false));
  assert.deepEqual(steps, ['wrote', 'synced', 'moved', 'wrote', 'moved', 'synced', 'rotated']);
  assert.equal(writer.durable, writer.next);
  // One record larger than any segment gets its own, larger one.
  appendTo(writer, payloadOf(prng, 1, 3 << 20), 1);
  drain(writer);
  appendTo(writer, small, 1);
  drain(writer);
  assert.equal(writer.seq, seq + 3);
  close(writer);
  assert.equal(recover(disk, factsOf(), options).recovery.next, writer.next);
});

test('with sync wanted, what is written is synced before more is written; else batches follow', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 1 << 20 });
  const payload = payloadOf(new Prng(1), 1, 100);
  appendTo(writer, payload, 1);
  assert.equal(writer.step(true), 'wrote');
  assert.deepEqual([writer.next, writer.written, writer.durable], [1, 1, 0]);
  appendTo(writer, payload, 1);
  assert.equal(writer.step(false), 'wrote');
  assert.deepEqual([writer.next, writer.written, writer.durable], [2, 2, 0]);
  appendTo(writer, payload, 1);
  assert.equal(writer.step(true), 'synced');
  assert.deepEqual([writer.next, writer.written, writer.durable], [3, 2, 2]);
  assert.equal(writer.step(true), 'wrote');
  assert.equal(writer.step(true), 'synced');
  assert.equal(writer.step(true), 'idle');
  assert.ok(writer.claimed < writer.durable);
  assert.ok(writer.watermark());
  drain(writer);
  assert.equal(writer.claimed, writer.durable);
});

test('bytes without a sync are bounded though nobody asks for one', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 1 << 30, prepare: false });
  const payload = payloadOf(new Prng(1), 1, 8 << 20);
  let synced = 0;
  for (let i = 0; i < 12; i++) {
    appendTo(writer, payload, 1);
    while (writer.staged) if (writer.step(false) === 'synced') synced++;
    assert.ok(writer.unsyncedBytes <= 64 << 20);
  }
  assert.ok(synced >= 1);
});

test('a sync that somebody else does makes durable what was written before it, and more is written meanwhile', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 1 << 20, syncApart: true });
  const payload = payloadOf(new Prng(1), 1, 100);
  appendTo(writer, payload, 1);
  assert.equal(writer.step(true), 'wrote');
  assert.equal(writer.step(true), 'syncs');
  appendTo(writer, payload, 1);
  assert.equal(writer.step(true), 'wrote');
  assert.equal(writer.step(true), 'idle', 'one at a time');
  assert.deepEqual([writer.next, writer.written, writer.durable], [2, 2, 0]);
  disk.sync(writer.fd);
  writer.syncEnded();
  assert.deepEqual([writer.next, writer.written, writer.durable], [2, 2, 1]);
  assert.ok(writer.unsyncedBytes > 0, 'what was written meanwhile is not synced');
  assert.equal(writer.step(true), 'syncs');
  writer.close();
  assert.equal(writer.step(true), 'waiting', 'the end waits for it');
  disk.sync(writer.fd);
  writer.syncEnded();
  assert.equal(writer.durable, 2);
  close(writer);
  assert.equal(recover(disk).fed.length, 2);
});

test('a rotation waits for a sync that somebody else does, and so do more bytes than may be without one', () => {
  const disk = storeDisk();
  const small = LogWriter.create(disk, LOG_ID, { ...SMALL, syncApart: true });
  const payload = payloadOf(new Prng(1), 1, 6_000);
  appendTo(small, payload, 1);
  assert.equal(small.step(true), 'wrote');
  assert.equal(small.step(true), 'syncs');
  while (!small.full) appendTo(small, payload, 1);
  assert.equal(small.step(true), 'wrote');
  assert.equal(small.step(true), 'waiting');
  small.syncEnded();
  assert.equal(small.step(true), 'synced');
  drain(small);
  assert.equal(small.durable, small.next);

  const large = LogWriter.create(storeDisk(), LOG_ID, {
    segmentBytes: 1 << 30,
    zeros: false,
    syncApart: true,
  });
  const much = payloadOf(new Prng(1), 1, 8 << 20);
  let step: LogStep = 'idle';
  for (let i = 0; i < 24 && step !== 'waiting'; i++) {
    if (!large.full) appendTo(large, much, 1);
    step = large.step(true);
    assert.ok(large.unsyncedBytes <= 64 << 20, `${large.unsyncedBytes} bytes without a sync`);
  }
  assert.equal(step, 'waiting');
});

test('a sync that somebody else could not do poisons', () => {
  const writer = LogWriter.create(storeDisk(), LOG_ID, { segmentBytes: 1 << 20, syncApart: true });
  appendTo(writer, payloadOf(new Prng(1), 1, 100), 1);
  assert.equal(writer.step(true), 'wrote');
  assert.equal(writer.step(true), 'syncs');
  const cause = Object.assign(new Error('EIO'), { code: 'EIO' });
  assert.throws(
    () => writer.syncEnded(cause),
    (error) => error instanceof TidemarkError && error.detail['errno'] === 'EIO',
  );
  assert.equal(writer.durable, 0);
  assert.equal(writer.step(true), 'failed');
});

test('a new file made at rotation is durable only with its directory', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  const payload = payloadOf(new Prng(1), 1, 6000);
  for (let i = 0; i < 3; i++) appendTo(writer, payload, 1);
  const before: [LogStep, number][] = [];
  while (writer.full) before.push([writer.step(true), writer.durable]);
  assert.deepEqual(before, [
    ['wrote', 0],
    ['synced', 2],
    ['moved', 2],
    ['wrote', 2],
    ['moved', 2],
    ['synced', 3],
    ['rotated', 3],
  ]);
});

// ---------------------------------------------------------------- failures

/** A workload that meets every kind of call: batches, in-place writes, rotations, CLEAN. */
function workload(disk: SimDisk, prepared: (writer: LogWriter) => void): LogWriter {
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 100_000, preparedBytes: 8192 });
  const prng = new Prng(9);
  prepared(writer);
  for (let i = 0; i < 12; i++) {
    appendTo(writer, payloadOf(prng, 1, prng.pick([100, 5000, 40_000])), 1);
    if (i % 3 === 2 || writer.full) drain(writer);
  }
  close(writer);
  return writer;
}

type Watched = { writer: LogWriter | undefined; error: unknown; durable: number };

function run(disk: SimDisk, fault: (call: SimCall) => SimFault | undefined): Watched {
  const watched: Watched = { writer: undefined, error: undefined, durable: 0 };
  try {
    workload(disk, (writer) => {
      watched.writer = writer;
      disk.fault = fault;
    });
  } catch (error) {
    watched.error = error;
  }
  disk.fault = undefined;
  watched.durable = watched.writer?.durable ?? 0;
  return watched;
}

/** The writer is dead: it says so, changes nothing on the disk, and only gives descriptors back. */
function assertPoisoned({ writer, error }: Watched, disk: SimDisk, what: string): void {
  assert.ok(writer !== undefined);
  assert.ok(error instanceof TidemarkError, what);
  assert.equal(error.code, 'TIDEMARK_POISONED');
  assert.equal(writer.failed, error);
  const { mutations } = disk;
  const durable = writer.durable;
  const payload = payloadOf(new Prng(1), 1, 64);
  const refused = writer.append(payload, 0, 64, 0, 1, writer.next, writer.epoch, writer.atMs);
  assert.equal(refused, REFUSED_ENDED);
  assert.equal(writer.watermark(), false);
  writer.close();
  assert.equal(writer.step(true), 'failed');
  assert.equal(writer.zeroWanted(), undefined);
  assert.equal(writer.spareWanted(), undefined);
  writer.release();
  assert.equal(writer.step(true), 'failed');
  assert.equal(disk.mutations, mutations, `${what}: nothing is changed after a failure`);
  assert.equal(writer.durable, durable);
  assert.deepEqual(disk.openFiles, []);
}

test('any call that fails poisons, at once and for good; what was durable comes back', () => {
  const healthy = storeDisk();
  const from: number[] = [];
  workload(healthy, () => from.push(healthy.calls));
  const [first = 0] = from;
  let poisoned = 0;
  for (let n = first; n < healthy.calls; n++) {
    for (const code of ['EIO', 'ENOSPC', 'EDQUOT', 'EROFS']) {
      const disk = storeDisk();
      const watched = run(disk, (call) => (call.index === n ? { kind: 'throw', code } : undefined));
      assertPoisoned(watched, disk, `call ${n} ${code}`);
      if (watched.error instanceof TidemarkError) {
        assert.equal(watched.error.detail['errno'], code);
        assert.equal(watched.error.detail['offset'], watched.durable);
      }
      poisoned++;
      for (const left of [disk.processCrash(), disk.crash(new Prng(n), 'power')]) {
        const { recovery } = recover(left, factsOf(), { segmentBytes: 100_000 });
        assert.ok(recovery.next >= watched.durable);
      }
    }
  }
  assert.ok(poisoned > 80);
});

test('a short write of any length poisons, and whole commits are dropped or kept', () => {
  const prng = new Prng(5);
  const payloads = [payloadOf(prng, 1, 80), payloadOf(prng, 2, 160), payloadOf(prng, 1, 64)];
  const length = payloads.reduce((sum, payload) => sum + 48 + payload.length, 0);
  for (let bytes = 0; bytes < length; bytes++) {
    const disk = storeDisk();
    const writer = LogWriter.create(disk, LOG_ID, SMALL);
    appendTo(writer, payloadOf(prng, 1, 64), 1);
    drain(writer);
    for (const payload of payloads) appendTo(writer, payload, payload === payloads[1] ? 2 : 1);
    const watched: Watched = { writer, error: undefined, durable: 0 };
    disk.fault = (call) => (call.call === 'write' ? { kind: 'short', bytes } : undefined);
    try {
      writer.step(true);
    } catch (error) {
      watched.error = error;
    }
    disk.fault = undefined;
    assertPoisoned(watched, disk, `${bytes} bytes`);
    const { fed, recovery } = recover(disk.processCrash());
    assert.ok([1, 2, 4].includes(recovery.next), `ends at a commit: ${recovery.next}`);
    assert.deepEqual(
      fed.map(({ offset }) => offset),
      [0, 1, 2, 4].slice(0, fed.length),
    );
  }
});

for (const manner of ['ext4', 'btrfs'] as const) {
  test(`a failed sync (${manner}) poisons; reopening loses nothing acknowledged, then or after power loss`, () => {
    const healthy = storeDisk();
    const syncs: number[] = [];
    healthy.fault = (call) => {
      if (call.call === 'fdatasync') syncs.push(call.index);
      return undefined;
    };
    workload(healthy, () => (syncs.length = 0));
    for (const n of syncs) {
      const disk = storeDisk();
      const watched = run(disk, (call) =>
        call.index === n ? { kind: 'failedSync', manner } : undefined,
      );
      assertPoisoned(watched, disk, `sync ${n}`);
      const left = disk.processCrash();
      const again = recover(left, factsOf(), { segmentBytes: 100_000 });
      assert.ok(again.recovery.next >= watched.durable);
      // What recovery accepted is on the platter, though the failed sync left its pages clean.
      for (const later of [left.powerLoss(() => 0), left.clone()]) {
        later.dropCache();
        const { recovery, fed } = recover(later, factsOf(), { segmentBytes: 100_000 });
        assert.equal(recovery.next, again.recovery.next);
        assert.deepEqual(fed, again.fed);
      }
    }
  });
}

test('a sync that lies is found out by the next one; durable never goes back', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  const payload = payloadOf(new Prng(1), 1, 64);
  appendTo(writer, payload, 1);
  disk.fault = (call) => (call.call === 'fdatasync' ? { kind: 'lateSync' } : undefined);
  drain(writer);
  assert.equal(writer.durable, 1);
  disk.fault = undefined;
  appendTo(writer, payload, 1);
  const watched: Watched = { writer, error: undefined, durable: 1 };
  try {
    drain(writer);
  } catch (error) {
    watched.error = error;
  }
  assertPoisoned(watched, disk, 'late');
  assert.equal(writer.durable, 1);
});

// ---------------------------------------------------------------- room

test('the writer keeps out of a job range until the answer, and appends where there is no job', () => {
  const disk = storeDisk();
  const options = { segmentBytes: 1 << 20, preparedBytes: 16_384 };
  const writer = LogWriter.create(disk, LOG_ID, options);
  assert.equal(writer.zeroWanted(), undefined);
  const payload = payloadOf(new Prng(1), 1, 3000);
  appendTo(writer, payload, 1);
  appendTo(writer, payload, 1);
  appendTo(writer, payload, 1);
  drain(writer);
  const job = writer.zeroWanted();
  assert.deepEqual(job, {
    path: 'wal/0000000001.seg',
    seq: 1,
    from: 20_480,
    to: 20_480 + 32_768,
  });
  assert.equal(writer.zeroWanted(), undefined, 'one at a time');
  let highest = 0;
  disk.fault = (call) => {
    if (call.call === 'write') highest = Math.max(highest, call.position + call.length);
    return undefined;
  };
  while (writer.step(false) !== 'waiting') if (!writer.full) appendTo(writer, payload, 1);
  assert.ok(highest <= 20_480, 'no byte of the range was touched');
  assert.equal(writer.step(true), 'synced', 'what is written may still be synced');
  disk.fault = undefined;
  assert.ok(job !== undefined);
  const fill = new ZeroFill(disk, job, 4096);
  while (fill.step());
  writer.zeroed(job.seq, job.to, true);
  assert.equal(writer.preparedBytes, job.to - writer.position - 512);
  drain(writer);
  while (writer.zeroWanted() === undefined) {
    appendTo(writer, payload, 1);
    drain(writer);
  }
  // The second job fails: the writer goes on by appending, and asks no more until it is told to.
  writer.zeroed(1, 20_480 + 32_768 + 65_536, false);
  assert.ok(writer.prepareFailed);
  for (let i = 0; i < 20; i++) {
    appendTo(writer, payload, 1);
    drain(writer);
  }
  assert.equal(writer.zeroWanted(), undefined);
  writer.retryPreparing();
  const later = writer.zeroWanted();
  assert.ok(
    later !== undefined && later.from >= writer.position + 16_384,
    'room is left meanwhile',
  );
  for (let i = 0; i < 4; i++) {
    appendTo(writer, payload, 1);
    drain(writer);
  }
  writer.zeroed(later.seq, later.to, false);
  close(writer);
  const { recovery } = recover(disk, factsOf(), options);
  assert.equal(recovery.next, writer.next);
});

test('spares are made once a segment has filled, used in order, and late ones are renamed', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  const prng = new Prng(1);
  const rotate = (): void => {
    const { seq } = writer;
    while (writer.seq === seq) appendTo(writer, payloadOf(prng, 1, 5000), 1);
    drain(writer);
  };
  assert.equal(writer.spareWanted(), undefined);
  rotate();
  const job = writer.spareWanted();
  assert.deepEqual(job, { seq: 3, bytes: 16_384, reuseSeq: 0, recycle: false });
  assert.equal(writer.spareWanted(), undefined);
  // Too late: the rotation makes its own file, under a number of its own.
  rotate();
  assert.equal(writer.seq, 4);
  assert.ok(job !== undefined);
  const late = new SpareMaker(disk, job, 5000);
  while (late.step());
  writer.spareReady(3, true);
  const renamed = writer.spareWanted();
  assert.deepEqual(renamed, { seq: 5, bytes: 16_384, reuseSeq: 3, recycle: false });
  assert.ok(renamed !== undefined);
  const rename = new SpareMaker(disk, renamed);
  while (rename.step());
  writer.spareReady(5, true);
  const { mutations } = disk;
  const steps: LogStep[] = [];
  while (writer.seq === 4) appendTo(writer, payloadOf(prng, 1, 5000), 1);
  while (writer.full) steps.push(writer.step(true));
  assert.deepEqual(steps, ['wrote', 'synced', 'moved', 'wrote', 'synced', 'rotated']);
  assert.equal(writer.seq, 5);
  assert.equal(disk.mutations, mutations + 4, 'no third sync on the path');
  // A little is kept for what the log writes of itself.
  assert.equal(writer.preparedBytes, 16_384 - writer.position - 512);
  // A failed job burns its number.
  assert.equal(writer.spareWanted()?.seq, 6);
  writer.spareReady(6, false);
  writer.retryPreparing();
  assert.equal(writer.spareWanted()?.seq, 7);
  writer.spareReady(7, false);
  rotate();
  assert.equal(writer.seq, 8);
  close(writer);
  assert.deepEqual(
    recover(disk).recovery.segments.map(({ seq }) => seq),
    [1, 2, 4, 5, 8],
  );
});

test('without zeros segments grow as they are written, and a spare is a name alone', () => {
  const options = { ...SMALL, zeros: false };
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, options);
  const prng = new Prng(1);
  assert.equal(disk.stat('wal/0000000001.seg')?.bytes, 4096);
  assert.equal(writer.zeroWanted(100_000, 100_000), undefined);
  const rotate = (): LogStep[] => {
    const steps: LogStep[] = [];
    const { seq } = writer;
    while (writer.seq === seq) appendTo(writer, payloadOf(prng, 1, 5000), 1);
    while (writer.full) steps.push(writer.step(true));
    drain(writer);
    return steps;
  };
  rotate();
  assert.equal(writer.preparedBytes, 0);
  assert.equal(writer.offerSegment(1), false, 'a segment of a size of its own is no spare');
  const job = writer.spareWanted();
  assert.deepEqual(job, { seq: 3, bytes: 4096, reuseSeq: 0, recycle: false });
  assert.ok(job !== undefined, 'it was looked at above');
  const maker = new SpareMaker(disk, job);
  while (maker.step());
  writer.spareReady(3, true);
  assert.equal(writer.preparedBytes, 0, 'nothing is promised for its sake');
  assert.deepEqual(rotate(), ['wrote', 'synced', 'moved', 'wrote', 'synced', 'rotated']);
  assert.equal(writer.seq, 3);
  assert.equal(disk.stat('wal/0000000003.seg')?.bytes, writer.position);
  close(writer);
  assert.equal(recover(disk, factsOf(), options).recovery.next, writer.next);
  // With zeros wanted such a spare is none: it is not used, and goes.
  const { recovery } = recover(disk, factsOf(), SMALL);
  assert.equal(recovery.next, writer.next);
});

test('large batches and disks without cheap overwrites get no preparation', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 64 << 20, prepare: false });
  assert.equal(disk.stat('wal/0000000001.seg')?.bytes, 4096);
  assert.equal(writer.zeroWanted(), undefined);
  const large = LogWriter.create(storeDisk(), LOG_ID, { segmentBytes: 1 << 30 });
  const payload = payloadOf(new Prng(1), 1, 6 << 20);
  for (let i = 0; i < 8; i++) {
    appendTo(large, payload, 1);
    while (large.staged) large.step(false);
  }
  assert.equal(large.zeroWanted(), undefined);
});

test('close syncs all, says CLEAN, and the next writer goes on over it', () => {
  const disk = storeDisk();
  let writer = LogWriter.create(disk, LOG_ID, SMALL);
  const prng = new Prng(2);
  let expected = 0;
  for (let round = 0; round < 8; round++) {
    for (let i = 0; i < 3; i++) {
      if (writer.full) drain(writer);
      appendTo(writer, payloadOf(prng, 2, 900), 2);
    }
    expected += 6;
    close(writer);
    assert.equal(writer.durable, expected);
    assert.deepEqual(disk.openFiles, []);
    const found = recover(disk);
    assert.ok(found.recovery.clean);
    assert.equal(found.recovery.next, expected);
    assert.equal(found.fed.length, (round + 1) * 3);
    writer = resumed(disk, found);
  }
  assert.ok(writer.seq > 1, 'it has rotated on the way');
});
