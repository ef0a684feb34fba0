/**
 * The recovery matrix, row by row: a torn tail loses nothing acknowledged, damage is named with offset,
 * segment and position, and nothing is ever shortened in silence.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { TidemarkError } from '../../core/base/errors.ts';
import { Prng } from '../../core/base/prng.ts';
import { logHoldsRecords } from '../../core/log/create.ts';
import { SpareMaker } from '../../core/log/prepare.ts';
import { chainAfter } from '../../core/log/record.ts';
import { LogRecovery } from '../../core/log/recovery.ts';
import type { LogFacts, RecoveryOptions } from '../../core/log/recovery.ts';
import { LogWriter } from '../../core/log/writer.ts';
import type { LogOptions, LogPosition } from '../../core/log/writer.ts';
import type { SimDisk } from '../sim/disk.ts';
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
  transactionOf,
} from './kit.ts';

const pathOf = (seq: number): string => `wal/${String(seq).padStart(10, '0')}.seg`;

type Verdict = { finding: string; detail: Record<string, unknown> };

/** The finding (or code) a recovery of a copy throws; 'ok' and the next offset when it does not. */
function verdictOf(
  disk: SimDisk,
  facts: LogFacts = factsOf(),
  options: Partial<RecoveryOptions> = {},
): Verdict {
  const copy = disk.processCrash();
  try {
    const { recovery } = recover(copy, facts, options);
    return { finding: 'ok', detail: { next: recovery.next, clean: recovery.clean } };
  } catch (error) {
    assert.ok(error instanceof TidemarkError, String(error));
    assert.deepEqual(copy.openFiles, []);
    const finding = error.code === 'TIDEMARK_CORRUPT' ? error.detail['finding'] : error.code;
    return { finding: String(finding), detail: { ...error.detail } };
  }
}

function patch(disk: SimDisk, path: string, change: (bytes: Buffer) => void): SimDisk {
  const copy = disk.clone();
  const bytes = Buffer.from(copy.bytesOf(path) ?? []);
  change(bytes);
  copy.remove(path);
  copy.plant(path, bytes);
  return copy;
}

/** `batches` of `perBatch` one-transaction commits; each batch synced; where every commit begins. */
function batched(
  batches: number,
  perBatch: number,
  bytes: number,
): { disk: SimDisk; writer: LogWriter; positions: number[]; marks: LogPosition[] } {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 1 << 20, preparedBytes: 65_536 });
  const prng = new Prng(4);
  const positions: number[] = [];
  const marks: LogPosition[] = [];
  for (let b = 0; b < batches; b++) {
    for (let i = 0; i < perBatch; i++) {
      positions.push(writer.position);
      appendTo(writer, payloadOf(prng, 1, bytes), 1);
      marks.push(writer.mark());
    }
    drain(writer);
  }
  return { disk, writer, positions, marks };
}

/** Three full segments and an idle watermark: everything in it is proven. */
function provenLog(options: LogOptions): { disk: SimDisk; next: number; marks: LogPosition[] } {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, options);
  const prng = new Prng(8);
  const marks: LogPosition[] = [];
  while (writer.seq < 4) {
    if (writer.full) drain(writer);
    appendTo(writer, payloadOf(prng, 1, prng.pick([64, 200, 300])), 1);
    marks.push(writer.mark());
  }
  drain(writer);
  appendTo(writer, payloadOf(prng, 1, 64), 1);
  marks.push(writer.mark());
  drain(writer);
  writer.watermark();
  drain(writer);
  writer.release();
  disk.settle();
  return { disk, next: writer.next, marks };
}

const TINY: LogOptions = { segmentBytes: 5120, preparedBytes: 512, batchBytesMax: 65_536 };

// ---------------------------------------------------------------- the tail

test('a log cut at any byte is a prefix, or an error where a witness says that more was there', () => {
  const { disk, writer, positions } = batched(2, 3, 100);
  const end = writer.position;
  const secondBatch = positions[3] ?? 0;
  let torn = 0;
  for (let cut = 4096; cut <= end + 60; cut++) {
    const left = patch(disk, pathOf(1), (bytes) => bytes.fill(0, cut));
    const short = left.clone();
    const bytes = Buffer.from(left.bytesOf(pathOf(1)) ?? []).subarray(0, cut);
    short.remove(pathOf(1));
    short.plant(pathOf(1), bytes);
    for (const copy of [left, short]) {
      const found = recover(copy, factsOf());
      const whole = positions.filter((_, i) => (positions[i + 1] ?? end) <= cut);
      // Zeros may end a record that a cut file does not: padding and zero bytes are written ones too.
      assert.ok(found.recovery.next === whole.length || copy === left);
      assert.equal(found.fed.length, found.recovery.next);
      if (found.recovery.torn !== undefined) torn++;
      const { quarantine, bytes: lost } = found.recovery.torn ?? { quarantine: '', bytes: 0 };
      if (quarantine) assert.equal(copy.bytesOf(quarantine)?.length, lost);
      const again = recover(copy, factsOf());
      assert.deepEqual(again.fed, found.fed);
      assert.equal(again.recovery.torn, undefined);
      assert.equal(again.recovery.epoch, found.recovery.epoch);
    }
    // The manifest knows that the first batch was durable.
    const known = verdictOf(short, factsOf({ witness: 3 }));
    if (cut >= secondBatch) assert.equal(known.finding, 'ok');
    else assert.match(known.finding, /^(CHECKSUM|LOG_BEHIND_MANIFEST)$/, `cut at ${cut}`);
  }
  assert.ok(torn > 500);
});

test('a batch whose middle sector was lost is a torn tail; the same damage one batch later is not', () => {
  const { disk, positions } = batched(1, 8, 1500);
  // The first sector that lies within the fourth record, behind its header.
  const lost = ((positions[3] ?? 0) + 48 + 511) & ~511;
  const harm = (bytes: Buffer): void => void bytes.fill(0, lost, lost + 512);
  const damaged = patch(disk, pathOf(1), harm);
  const found = recover(damaged.clone());
  assert.equal(found.recovery.next, 3);
  assert.equal(found.recovery.torn?.records, 5);
  assert.equal(found.recovery.epoch, 1, 'what follows is told apart');
  // A watermark, or any record written after the sync, proves that it had been there.
  const later = storeDisk();
  later.remove(pathOf(1));
  later.plant(pathOf(1), disk.bytesOf(pathOf(1)) ?? new Uint8Array());
  const writer = resumed(later, recover(later));
  writer.watermark();
  drain(writer);
  writer.release();
  const bad = patch(later, pathOf(2), harm);
  const { finding, detail } = verdictOf(bad);
  assert.equal(finding, 'CHECKSUM');
  assert.equal(detail['offset'], 3);
  assert.equal(detail['seq'], 2);
  assert.equal(detail['position'], positions[3]);
  assert.equal(detail['witness'], 8);
});

test('a damaged length is not the end of the log: the next record is found behind it', () => {
  const { disk, positions } = batched(3, 2, 200);
  const at = positions[1] ?? 0;
  for (const length of [0xffff_ffff, 0x7fff_fff8, 0, 208, 64 << 20]) {
    const bad = patch(disk, pathOf(1), (bytes) => bytes.writeUInt32LE(length, at + 8));
    const { finding, detail } = verdictOf(bad);
    assert.equal(finding, 'CHECKSUM', String(length));
    assert.deepEqual(
      [detail['offset'], detail['position'], detail['witness'], detail['records']],
      [1, at, 4, 4],
    );
  }
});

test('any bit of a proven log flipped is found or harmless, never a shorter log', () => {
  const { disk, next, marks } = provenLog(TINY);
  const prng = new Prng(3);
  const seen = new Map<string, number>();
  for (const seq of [1, 2, 3, 4]) {
    const bytes = disk.bytesOf(pathOf(seq)) ?? new Uint8Array();
    for (let at = 0; at < bytes.length; at++) {
      const blank = at < 4096 && (at & 2047) >= 128;
      if (blank ? prng.chance(0.99) : prng.chance(0.4)) continue;
      const flipped = patch(
        disk,
        pathOf(seq),
        (b) => void (b[at] = (b[at] ?? 0) ^ (1 << prng.below(8))),
      );
      const start = prng.chance(0.2) ? prng.pick(marks) : undefined;
      const facts = factsOf({ start, witness: start?.upper ?? 0 });
      const { finding, detail } = verdictOf(flipped, facts);
      seen.set(finding, (seen.get(finding) ?? 0) + 1);
      if (finding === 'ok') assert.equal(detail['next'], next, `byte ${at} of segment ${seq}`);
    }
  }
  assert.ok((seen.get('CHECKSUM') ?? 0) > 500, JSON.stringify([...seen]));
});

type Sector = [seq: number, at: number];

function putSector(to: SimDisk, [seq, at]: Sector, sector: Uint8Array): SimDisk {
  return patch(to, pathOf(seq), (bytes) => bytes.set(sector.subarray(0, bytes.length - at), at));
}

test('any sector zeroed, two swapped, one copied over another: found or harmless', () => {
  const { disk, next } = provenLog(TINY);
  const sectors: Sector[] = [];
  for (const seq of [1, 2, 3, 4]) {
    const bytes = disk.bytesOf(pathOf(seq)) ?? new Uint8Array();
    for (let at = 0; at < bytes.length; at += 512) sectors.push([seq, at]);
  }
  const get = ([seq, at]: Sector): Uint8Array =>
    Buffer.from(disk.bytesOf(pathOf(seq)) ?? []).subarray(at, at + 512);
  const zeros = new Uint8Array(512);
  for (const a of sectors) {
    const tries = [putSector(disk, a, zeros)];
    for (const b of sectors) {
      if (a === b) continue;
      tries.push(putSector(disk, b, get(a)));
      if (a[0] <= b[0]) tries.push(putSector(putSector(disk, b, get(a)), a, get(b)));
    }
    for (const bad of tries) {
      // The last commits lie in one sector with all that proves them: there the manifest must know.
      const { finding, detail } = verdictOf(bad);
      if (finding === 'ok' && detail['next'] !== next) {
        const last = Buffer.from(bad.bytesOf(pathOf(4)) ?? []).subarray(4096, 4608);
        assert.ok(!last.equals(get([4, 4096])));
        assert.notEqual(verdictOf(bad, factsOf({ witness: next })).finding, 'ok');
      }
    }
  }
});

test('a log kept as payload inside itself gives no false witness', () => {
  const inner = batched(2, 3, 200);
  const image = Buffer.from(inner.disk.bytesOf(pathOf(1)) ?? []).subarray(0, 8192);
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, { segmentBytes: 1 << 20 });
  const key = new Uint8Array(8);
  const payload = transactionOf([{ collection: 1, kind: 1, key, value: image }]);
  for (let i = 0; i < 3; i++) appendTo(writer, payload, 1);
  writer.step(false);
  writer.release();
  for (let at = 4096; at < 4096 + 2 * payload.length; at += 512) {
    const torn = patch(disk, pathOf(1), (bytes) => void bytes.fill(0, at, at + 512));
    assert.equal(verdictOf(torn).finding, 'ok', `sector at ${at}`);
  }
});

test('strictTail makes a torn tail an error; readOnly makes it a result and changes nothing', () => {
  const { disk, positions } = batched(1, 4, 200);
  const torn = patch(disk, pathOf(1), (bytes) => void bytes.fill(1, (positions[2] ?? 0) + 60));
  const strict = verdictOf(torn, factsOf(), { strictTail: true });
  assert.equal(strict.finding, 'TORN_TAIL');
  assert.deepEqual([strict.detail['offset'], strict.detail['position']], [2, positions[2]]);
  const { mutations } = torn;
  const { recovery, fed } = recover(torn, factsOf(), { readOnly: true });
  assert.equal(torn.mutations, mutations);
  assert.equal(recovery.resume, undefined);
  assert.equal(recovery.next, 2);
  assert.equal(fed.length, 2, 'unproven commits are shown');
  assert.equal(recovery.torn?.position, positions[2]);
  assert.equal(recovery.torn?.quarantine, undefined);
});

// ---------------------------------------------------------------- resuming

test('suspect commits are written again into a new segment, unchanged; the old tail is void', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  const prng = new Prng(6);
  const commits = [];
  const payload = payloadOf(prng, 2, 300);
  for (let i = 0; i < 6; i++) {
    commits.push(appendTo(writer, payload, 2, 100 + i));
    drain(writer);
  }
  const bytes = 48 + payload.length;
  const third = writer.mark();
  writer.release();
  const found = recover(disk);
  // The last record claims what was durable before it: that is proven, it is not.
  assert.equal(found.recovery.suspectCount, 1);
  assert.equal(found.recovery.torn, undefined);
  assert.equal(found.recovery.epoch, 0, 'nothing was dropped');
  assert.deepEqual(found.fed, commits);
  assert.deepEqual(found.recovery.segments, [
    { seq: 1, baseOffset: 0, baseAtMs: 0, packed: false },
    { seq: 2, baseOffset: 10, baseAtMs: 104, packed: false },
  ]);
  assert.deepEqual(found.recovery.mark(), { ...third, seq: 2, position: 4096 + bytes });
  const size = disk.stat(pathOf(1))?.bytes ?? 0;
  assert.equal(
    size,
    third.position - bytes,
    'the old file is trimmed behind the last proven commit',
  );
  const next = resumed(disk, found);
  assert.ok(next.claimed < next.durable, 'an idle watermark is of use');
  appendTo(next, payloadOf(prng, 1, 100), 1);
  drain(next);
  close(next);
  const again = recover(disk);
  assert.ok(again.recovery.clean);
  assert.deepEqual(again.fed.slice(0, 6), commits);
  assert.equal(again.recovery.next, 13);
});

test('large suspect commits, in a segment larger than any planned, are written again too', () => {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  const prng = new Prng(2);
  appendTo(writer, payloadOf(prng, 3, 120_000), 3);
  writer.step(false);
  writer.release();
  const found = recover(disk);
  assert.equal(found.recovery.suspectCount, 1);
  assert.equal(found.recovery.next, 3);
  assert.deepEqual(found.recovery.orphans, [pathOf(1)]);
  const hand = resumed(disk, found);
  appendTo(hand, payloadOf(prng, 1, 100), 1);
  drain(hand);
  assert.equal(hand.seq, 3);
  close(hand);
  disk.unlink(pathOf(1));
  assert.equal(recover(disk).recovery.next, 4);
});

test('a segment without a proven commit is replaced, again and again, and the chain stays short', () => {
  const disk = storeDisk();
  let writer = LogWriter.create(disk, LOG_ID, SMALL);
  let marks: LogPosition[] = [writer.mark()];
  for (let round = 2; round < 6; round++) {
    writer.release();
    const found = recover(disk);
    assert.equal(found.recovery.next, 0);
    assert.deepEqual(found.recovery.segments, [
      { seq: round, baseOffset: 0, baseAtMs: 0, packed: false },
    ]);
    assert.deepEqual(found.recovery.orphans, [pathOf(round - 1)]);
    for (const orphan of found.recovery.orphans) disk.unlink(orphan);
    writer = resumed(disk, found);
    marks.push(writer.mark());
  }
  appendTo(writer, payloadOf(new Prng(1), 1, 100), 1);
  drain(writer);
  writer.watermark();
  drain(writer);
  writer.release();
  // A flush edit may name any of the segments that stood there.
  for (const start of marks) {
    assert.equal(recover(disk.clone(), factsOf({ start, witness: 0 })).fed.length, 1);
  }
});

test('the epoch that a dropped tail raised is kept, though nothing is written after it', () => {
  const { disk, positions } = batched(1, 4, 200);
  const torn = patch(disk, pathOf(1), (bytes) => void bytes.fill(1, (positions[2] ?? 0) + 60));
  const first = recover(torn);
  assert.equal(first.recovery.epoch, 1);
  const second = recover(torn);
  assert.equal(second.recovery.epoch, 1);
  const writer = resumed(torn, second);
  appendTo(writer, payloadOf(new Prng(1), 1, 64), 1);
  close(writer);
  assert.equal(recover(torn).fed.at(-1)?.epoch, 1);
});

test('CLEAN that comes back because its overwrite was lost ends the log; what follows is no GAP', () => {
  const disk = storeDisk();
  let writer = LogWriter.create(disk, LOG_ID, SMALL);
  const prng = new Prng(3);
  // CLEAN is to end exactly at a sector's end, so that the next record is in a sector of its own.
  const filler = 512 - 48 - 80;
  appendTo(writer, payloadOf(prng, 1, filler + 8), 1);
  while (writer.position % 512 !== 512 - 80) appendTo(writer, payloadOf(prng, 1, 40), 1);
  const before = writer.next;
  close(writer);
  const clean = disk.clone();
  writer = resumed(disk, recover(disk));
  const at = writer.position;
  appendTo(writer, payloadOf(prng, 1, 32), 1);
  assert.equal(writer.position, at + 80);
  appendTo(writer, payloadOf(prng, 1, 64), 1);
  writer.step(false);
  writer.release();
  const old = Buffer.from(clean.bytesOf(pathOf(1)) ?? []);
  const mixed = patch(disk, pathOf(1), (bytes) => void old.copy(bytes, at, at, at + 80));
  const found = recover(mixed);
  assert.equal(found.recovery.clean, false);
  assert.equal(found.recovery.next, before);
  assert.equal(found.recovery.epoch, 1);
});

test('after CLEAN a spare is used again; after anything else it is not, whatever it holds', () => {
  const disk = storeDisk();
  let writer = LogWriter.create(disk, LOG_ID, SMALL);
  const prng = new Prng(5);
  while (writer.seq < 2) appendTo(writer, payloadOf(prng, 1, 3000), 1);
  drain(writer);
  let job = writer.spareWanted();
  // It is wanted when the segment is half full.
  for (; job === undefined && writer.seq === 2; job = writer.spareWanted()) {
    appendTo(writer, payloadOf(prng, 1, 1000), 1);
    drain(writer);
  }
  assert.ok(job !== undefined, 'a spare is wanted before the segment is full');
  const maker = new SpareMaker(disk, job);
  while (maker.step());
  writer.spareReady(job.seq, true);
  const crashed = disk.clone();
  close(writer);
  const found = recover(disk);
  assert.equal(found.recovery.resume?.spareSeq, 3);
  assert.deepEqual(found.recovery.orphans, []);
  writer = resumed(disk, found);
  assert.equal(writer.spareWanted(), undefined);
  while (writer.seq === 2) appendTo(writer, payloadOf(prng, 1, 3000), 1);
  assert.equal(writer.seq, 3);
  drain(writer);
  close(writer);
  assert.ok(recover(disk).recovery.clean);

  // Records of a batch whose header did not reach the disk lie in the spare: they stay dead.
  const stale = patch(crashed, pathOf(3), (bytes) => {
    const payload = payloadOf(prng, 1, 64);
    const { next, durable, chain } = writerFacts(crashed);
    const record = {
      kind: 1,
      flags: 1,
      txCount: 1,
      minTxOffset: next,
      epoch: 0,
      prevChain: chain,
      durable,
      atMs: 50,
      payload,
    };
    naiveRecord(record, naiveSalt(LOG_ID, 3), 4096).copy(bytes, 4096);
  });
  const unclean = recover(stale);
  assert.equal(unclean.recovery.resume?.spareSeq, 0);
  assert.ok(unclean.recovery.orphans.includes(pathOf(3)));
  assert.equal(unclean.recovery.segments.at(-1)?.seq, 4, 'no number is used twice');
  assert.equal(unclean.recovery.epoch, 1, 'something written is dropped');
});

function writerFacts(disk: SimDisk): { next: number; durable: number; chain: number } {
  const { recovery } = recover(disk.clone());
  const { upper: next, chain } = recovery.mark();
  return { next, durable: next, chain };
}

test('recovery from any position a writer gave feeds exactly what lies above it', () => {
  const { disk, next, marks } = provenLog(TINY);
  for (const start of marks) {
    const copy = disk.clone();
    const { recovery, fed } = recover(copy, factsOf({ start, witness: start.upper }));
    assert.equal(recovery.next, next);
    assert.equal(fed[0]?.offset ?? next, start.upper);
    assert.equal(fed.length, next - start.upper);
    close(resumed(copy, { recovery, fed, payloads: [] }));
    assert.equal(recover(copy, factsOf({ start, witness: start.upper })).recovery.next, next);
  }
});

test('a feed without room is asked again, and until then nothing counts as fed', () => {
  const { disk, next } = provenLog(TINY);
  let asked = 0;
  let fed = 0;
  const options = { ...TINY, readOnly: false, strictTail: false };
  const recovery = new LogRecovery(disk, factsOf(), options, (record) => {
    assert.equal(record.minTxOffset, fed);
    if (++asked % 4 !== 0) return false;
    fed = record.endOffset;
    return true;
  });
  while (recovery.step()) {
    assert.equal(recovery.mark().upper, fed);
    if (recovery.waiting) assert.notEqual(asked % 4, 0);
  }
  assert.equal(fed, next);
  assert.equal(asked, next * 4);
});

// ---------------------------------------------------------------- files

test('files missing, copied, renamed, foreign, empty or zero each have their verdict', () => {
  const { disk, next } = provenLog(TINY);
  const change = (act: (copy: SimDisk) => void): SimDisk => {
    const copy = disk.clone();
    act(copy);
    return copy;
  };
  const bytesAt = (seq: number): Uint8Array => disk.bytesOf(pathOf(seq)) ?? new Uint8Array();
  const move = (from: number, to: number) => (copy: SimDisk) => {
    copy.plant(pathOf(to), bytesAt(from));
    copy.remove(pathOf(from));
  };
  const missing = (seq: number): Verdict => verdictOf(change((copy) => copy.remove(pathOf(seq))));
  assert.deepEqual([missing(2).finding, missing(2).detail['seq']], ['MISSING_SEGMENT', 2]);
  assert.deepEqual([missing(1).finding, missing(1).detail['seq']], ['MISSING_SEGMENT', 1]);
  const none = change((copy) => [1, 2, 3, 4].forEach((seq) => copy.remove(pathOf(seq))));
  assert.deepEqual(
    [verdictOf(none).finding, verdictOf(none).detail['seq']],
    ['MISSING_SEGMENT', 1],
  );
  // Without its last segment a log may be what a crash at rotation leaves; the manifest knows better.
  assert.equal(missing(4).finding, 'ok');
  const last = change((copy) => copy.remove(pathOf(4)));
  assert.equal(verdictOf(last, factsOf({ witness: next })).finding, 'LOG_BEHIND_MANIFEST');

  assert.equal(
    verdictOf(change((copy) => copy.plant(pathOf(9), bytesAt(2)))).finding,
    'MISNAMED_SEGMENT',
  );
  assert.equal(verdictOf(change(move(4, 7))).finding, 'MISNAMED_SEGMENT');
  assert.equal(verdictOf(change(move(2, 7))).finding, 'MISNAMED_SEGMENT');
  const other = factsOf({ logId: new Uint8Array(16) });
  assert.equal(verdictOf(disk, other).finding, 'FOREIGN_SEGMENT');

  for (const leftover of [new Uint8Array(0), new Uint8Array(100), new Uint8Array(5120)]) {
    const copy = change((c) => {
      c.plant(pathOf(5), leftover);
      c.plant('wal/spare-6.tmp', leftover);
      c.plant('wal/notes.txt', leftover);
    });
    const { recovery } = recover(copy);
    assert.equal(recovery.next, next);
    assert.deepEqual(recovery.orphans.slice(0, 2).toSorted(), [pathOf(5), 'wal/spare-6.tmp']);
    assert.equal(recovery.segments.at(-1)?.seq, 7);
  }
  // Below the log start: pruned, not lost; deleting was interrupted.
  const start = provenStart(disk);
  const pruned = recover(
    change((copy) => copy.remove(pathOf(1))),
    factsOf({ firstSeq: 3, firstOffset: start.upper, start, witness: start.upper }),
  );
  assert.ok(pruned.recovery.orphans.includes(pathOf(2)));
  assert.equal(pruned.recovery.next, next);
});

/** The position at which segment 3 begins. */
function provenStart(disk: SimDisk): LogPosition {
  const bytes = Buffer.from(disk.bytesOf(pathOf(3)) ?? []);
  return {
    upper: Number(bytes.readBigUInt64LE(48)),
    seq: 3,
    position: 4096,
    chain: bytes.readUInt32LE(72),
    epoch: bytes.readUInt32LE(76),
    atMs: Number(bytes.readBigUInt64LE(88)),
  };
}

test('one damaged copy of a header is a warning, both are CHECKSUM, or an unused file', () => {
  const { disk, next } = provenLog(TINY);
  for (const seq of [1, 2, 4]) {
    const one = patch(disk, pathOf(seq), (bytes) => void bytes.fill(0xff, 0, 100));
    const { recovery } = recover(one);
    assert.equal(recovery.next, next);
    assert.equal(recovery.warnings.length, 1);
    const both = patch(disk, pathOf(seq), (bytes) => {
      bytes.fill(0xff, 0, 100);
      bytes.fill(0, 2048, 2148);
    });
    const { finding, detail } = verdictOf(both);
    assert.deepEqual([finding, detail['seq'], detail['position']], ['CHECKSUM', seq, 0]);
  }
  // Nothing in it was proven: a rotation that a crash cut short.
  const disk2 = storeDisk();
  const writer = LogWriter.create(disk2, LOG_ID, TINY);
  while (writer.seq < 2) appendTo(writer, payloadOf(new Prng(1), 1, 300), 1);
  drain(writer);
  const base = writer.baseOffset;
  writer.release();
  const unused = patch(disk2, pathOf(2), (bytes) => {
    bytes.fill(0xff, 0, 100);
    bytes.fill(0, 2048, 2148);
  });
  assert.equal(verdictOf(unused).detail['next'], base);
  assert.equal(verdictOf(unused, factsOf({ witness: base + 1 })).finding, 'CHECKSUM');
});

test('a flush edit above the readable log is CHECKSUM, above a clean end LOG_BEHIND_MANIFEST', () => {
  const { disk, writer, positions, marks } = batched(1, 4, 200);
  const start = marks[3];
  assert.ok(start !== undefined);
  writer.watermark();
  drain(writer);
  writer.release();
  const cut = patch(disk, pathOf(1), (bytes) => void bytes.fill(0, positions[2] ?? 0));
  const facts = factsOf({ witness: 4 });
  assert.equal(verdictOf(cut, facts).finding, 'LOG_BEHIND_MANIFEST');
  const bad = patch(
    disk,
    pathOf(1),
    (bytes) => void bytes.fill(7, (positions[2] ?? 0) + 9, start.position + 48),
  );
  assert.equal(verdictOf(bad, facts).finding, 'CHECKSUM');
  const beyond = factsOf({ start: { ...start, upper: 9, position: 1 << 20 }, witness: 9 });
  assert.equal(verdictOf(disk, beyond).finding, 'LOG_BEHIND_MANIFEST');
  assert.equal(
    verdictOf(disk, factsOf({ start: { ...start, seq: 7 } })).finding,
    'LOG_BEHIND_MANIFEST',
  );
  const clean = resumed(disk, recover(disk));
  close(clean);
  assert.equal(verdictOf(disk, factsOf({ witness: 5 })).finding, 'LOG_BEHIND_MANIFEST');
  assert.equal(verdictOf(disk, factsOf({ witness: 4 })).finding, 'ok');
});

test('another history at the flushed upper is FORK, a log that begins above it NO_BASE', () => {
  const { disk, marks } = batched(2, 3, 200);
  const start = marks[2];
  assert.ok(start !== undefined);
  const forked = { ...start, chain: start.chain ^ 1 };
  assert.equal(verdictOf(disk, factsOf({ start: forked, witness: 3 })).finding, 'FORK');
  const above = factsOf({ firstOffset: 5, start, witness: 3 });
  assert.match(verdictOf(disk, above).finding, /^(NO_BASE|GAP)$/);
  const { disk: long } = provenLog(TINY);
  const from = provenStart(long);
  const pruned = { firstSeq: 3, firstOffset: from.upper };
  assert.equal(verdictOf(long, factsOf(pruned)).finding, 'NO_BASE');
  const elsewhere = { ...from, seq: 2, position: 5000, chain: from.chain ^ 1 };
  assert.equal(verdictOf(long, factsOf({ ...pruned, start: elsewhere })).finding, 'FORK');
});

// ---------------------------------------------------------------- records

type Rough = { kind?: number; flags?: number; min?: number; epoch?: number; atMs?: number };
type Made = { disk: SimDisk; positions: number[] };

/** Segment 1 made by hand, with numbers as they should be but where `rough` says otherwise. */
function handMade(records: readonly (Rough & { chain?: number; payload?: Buffer })[]): Made {
  const block = naiveBlock(LOG_ID, {
    seq: 1,
    base: 0,
    prevSeq: 0,
    prevEnd: 0,
    prevChain: 0,
    epoch: 0,
    planned: 16_384,
    baseAtMs: 0,
    reason: 0,
    compat: 0,
  });
  const parts = [block];
  const positions: number[] = [];
  const salt = naiveSalt(LOG_ID, 1);
  let position = 4096;
  let next = 0;
  let chain = 0;
  for (const rough of records) {
    const { kind = 1, flags = 0, epoch = 0, atMs = 0 } = rough;
    const payload = rough.payload ?? (kind === 1 ? payloadOf(new Prng(1), 1, 64) : Buffer.alloc(0));
    const txCount = kind === 1 ? 1 : 0;
    const minTxOffset = rough.min ?? next;
    const prevChain = rough.chain ?? chain;
    const fields = {
      kind,
      flags,
      txCount,
      minTxOffset,
      epoch,
      prevChain,
      durable: 0,
      atMs,
      payload,
    };
    const record = naiveRecord(fields, salt, position);
    parts.push(record);
    positions.push(position);
    position += record.length;
    next = minTxOffset + txCount;
    if (kind === 1) {
      chain = chainAfter(chain, minTxOffset, 1, epoch, payload.length, crc32(payload), atMs);
    }
  }
  const disk = storeDisk();
  disk.plant(pathOf(1), Buffer.concat(parts));
  return { disk, positions };
}

test('a sound record that does not follow the one before it is named for what it is', () => {
  const cases: [string, Rough & { chain?: number }][] = [
    ['GAP', { min: 2 }],
    ['GAP', { kind: 2, min: 2 }],
    ['REGRESSION', { min: 0 }],
    ['REGRESSION', { kind: 2, min: 0 }],
    ['EPOCH_REGRESSION', { epoch: 4, atMs: 10 }],
    ['TIME_REGRESSION', { epoch: 5, atMs: 9 }],
    ['FORK', { chain: 12_345 }],
    ['ok', {}],
    ['ok', { epoch: 6, atMs: 11 }],
  ];
  for (const [expected, rough] of cases) {
    const { disk, positions } = handMade([
      { epoch: 5, atMs: 10 },
      { epoch: 5, atMs: 10, ...rough },
    ]);
    const { finding, detail } = verdictOf(disk);
    assert.equal(finding, expected, JSON.stringify(rough));
    if (expected !== 'ok') assert.equal(detail['position'], positions[1]);
  }
});

test('unknown kinds from 128 on are skipped; others, unknown flags and operations are refused', () => {
  const skipped = handMade([{}, { kind: 130, payload: Buffer.from('new') }, {}]);
  assert.equal(recover(skipped.disk).recovery.next, 2);
  const cases: [string, Parameters<typeof handMade>[0]][] = [
    ['TIDEMARK_UNSUPPORTED_FORMAT', [{ kind: 6 }]],
    ['TIDEMARK_UNSUPPORTED_FORMAT', [{ kind: 127 }]],
    ['TIDEMARK_UNSUPPORTED_FORMAT', [{ flags: 2 }]],
    ['FORMAT', [{ kind: 0 }]],
    ['FORMAT', [{ kind: 4, payload: Buffer.alloc(8) }]],
    ['FORMAT', [{}, { kind: 5, payload: naiveEnd(0, 2, 1, 0, 0) }]],
    ['FORMAT', [{ payload: Buffer.alloc(16) }]],
  ];
  const unknownOp = transactionOf([
    { collection: 1, kind: 9, key: Buffer.from('k'), value: Buffer.alloc(0) },
  ]);
  cases.push(['TIDEMARK_UNSUPPORTED_FORMAT', [{ payload: unknownOp }]]);
  for (const [expected, records] of cases) {
    const { disk } = handMade(records);
    const { mutations } = disk;
    const { finding, detail } = verdictOf(disk);
    assert.equal(finding, expected, JSON.stringify(records));
    assert.equal(typeof detail['position'], 'number');
    assert.equal(disk.mutations, mutations);
  }
  const features = patch(handMade([{}]).disk, pathOf(1), (bytes) => {
    for (const at of [0, 2048]) {
      bytes.writeUInt32LE(4, at + 16);
      bytes.writeUInt32LE(crc32(bytes.subarray(at, at + 124)), at + 124);
    }
  });
  assert.equal(verdictOf(features).finding, 'TIDEMARK_UNSUPPORTED_FORMAT');
  assert.equal(verdictOf(features, factsOf(), { readOnly: true }).finding, 'ok');
});

// ---------------------------------------------------------------- creation

test('a log is made where none was, over a stillborn one, and never over records', () => {
  const disk = storeDisk();
  assert.equal(logHoldsRecords(disk), false);
  disk.plant(pathOf(1), new Uint8Array(3000));
  disk.plant('wal/spare-2.tmp', new Uint8Array(10));
  assert.equal(logHoldsRecords(disk), false);
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  assert.deepEqual(disk.list('wal'), ['0000000001.seg']);
  appendTo(writer, payloadOf(new Prng(1), 1, 64), 1);
  drain(writer);
  assert.equal(logHoldsRecords(disk), true);
  assert.throws(
    () => LogWriter.create(disk, LOG_ID, SMALL),
    (error) => error instanceof TidemarkError && error.detail['finding'] === 'NO_MANIFEST',
  );
});
