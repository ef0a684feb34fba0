/**
 * Segments made of segments: whatever an earlier use has left in a file, it is never read as the log, never
 * proof of damage and never taken for a torn write; and what is torn or damaged in the new one is found as
 * in any other.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TidemarkError } from '../../core/base/errors.ts';
import { Prng } from '../../core/base/prng.ts';
import { SpareMaker } from '../../core/log/prepare.ts';
import type { LogFacts } from '../../core/log/recovery.ts';
import { recordBytes, syncWordOf } from '../../core/log/record.ts';
import {
  COMPAT_RECYCLED,
  COMPAT_ZERO_FILLED,
  decodeSegmentBlock,
  saltOf,
} from '../../core/log/segment.ts';
import { LogWriter } from '../../core/log/writer.ts';
import { segmentPath } from '../../core/storage/names.ts';
import type { SimDisk } from '../sim/disk.ts';
import {
  LOG_ID,
  SMALL,
  appendTo,
  close,
  drain,
  factsOf,
  payloadOf,
  recover,
  resumed,
  storeDisk,
} from './kit.ts';

/** A log that has just begun in a file which was segment 2 before, full of records. */
function begunInOld(seed: number): {
  disk: SimDisk;
  writer: LogWriter;
  facts: LogFacts;
  prng: Prng;
} {
  const disk = storeDisk();
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  const prng = new Prng(seed);
  const rotate = (): void => {
    const { seq } = writer;
    while (writer.seq === seq) appendTo(writer, payloadOf(prng, 1, 900), 1);
    drain(writer);
  };
  // Until it is half full a segment to be recycled is waited for.
  const half = (): void => {
    while (writer.position * 2 < SMALL.segmentBytes) appendTo(writer, payloadOf(prng, 1, 900), 1);
    drain(writer);
  };
  rotate();
  assert.equal(writer.spareWanted(), undefined, 'there may be one to be recycled soon');
  half();
  // Onto spares of zeros, which fill up.
  make(disk, writer);
  rotate();
  const third = writer.seq;
  half();
  make(disk, writer);
  rotate();
  const start = writer.mark();
  assert.ok(writer.offerSegment(third), 'a spare is wanted');
  assert.ok(!writer.offerSegment(third + 1), 'one at a time');
  const facts = factsOf({ firstSeq: writer.seq, firstOffset: writer.baseOffset, start });
  assert.equal(make(disk, writer), true);
  rotate();
  return { disk, writer, facts, prng };
}

/** Makes the spare that is wanted; whether it was recycled. */
function make(disk: SimDisk, writer: LogWriter): boolean {
  const job = writer.spareWanted();
  assert.ok(job !== undefined);
  const maker = new SpareMaker(disk, job);
  while (maker.step());
  writer.spareReady(job.seq, true, maker.recycled);
  return maker.recycled;
}

function compatOf(disk: SimDisk, seq: number): number {
  const { header } = decodeSegmentBlock(new Uint8Array(disk.bytesOf(segmentPath(seq))!), 'it');
  return header!.compat;
}

test('where the log ends among old records, it ends: no torn tail, no damage, nothing revived', () => {
  const { disk, writer, facts, prng } = begunInOld(1);
  assert.equal(compatOf(disk, writer.seq), COMPAT_RECYCLED);
  const { seq } = writer;
  for (let i = 0; i < 12; i++) {
    const left = disk.processCrash();
    const { recovery } = recover(left, facts, { strictTail: true });
    assert.equal(recovery.next, writer.next);
    assert.equal(recovery.torn, undefined);
    assert.equal(recovery.clean, false);
    assert.equal(recovery.epoch, 0);
    const bytes = disk.bytesOf(segmentPath(seq))!;
    assert.ok(
      bytes.subarray(writer.position).some((byte) => byte !== 0),
      'old bytes lie behind it',
    );
    appendTo(writer, payloadOf(prng, 1, prng.pick([40, 200, 900, 1000])), 1);
    drain(writer);
    assert.equal(writer.seq, seq);
  }
  writer.watermark();
  drain(writer);
  close(writer);
  const found = recover(disk, facts, { strictTail: true });
  assert.equal(found.recovery.clean, true);
  const again = resumed(disk, found);
  appendTo(again, payloadOf(prng, 1, 100), 1);
  drain(again);
  assert.equal(recover(disk.processCrash(), facts, { strictTail: true }).recovery.next, again.next);
});

test('a torn write among old records is set aside up to its last record, no further', () => {
  const { disk, writer, facts, prng } = begunInOld(2);
  appendTo(writer, payloadOf(prng, 1, 300), 1);
  drain(writer);
  const { next, position } = writer;
  for (let i = 0; i < 4; i++) appendTo(writer, payloadOf(prng, 1, 600), 1);
  const end = writer.position;
  writer.step(false);
  // The sector of its first header was lost: what was there before is there.
  const bytes = Buffer.from(disk.bytesOf(segmentPath(writer.seq))!);
  const torn = disk.processCrash();
  bytes.fill(0x5a, position, position + 48);
  torn.remove(segmentPath(writer.seq));
  torn.plant(segmentPath(writer.seq), bytes);
  const { recovery } = recover(torn.clone(), facts);
  assert.equal(recovery.next, next);
  assert.equal(recovery.torn?.position, position);
  assert.equal(recovery.torn?.bytes, end - position);
  assert.equal(recovery.torn?.records, 3);
  assert.equal(recovery.epoch, 1);
  assert.throws(
    () => recover(torn, facts, { strictTail: true }),
    (error) => error instanceof TidemarkError && error.detail['finding'] === 'TORN_TAIL',
  );
});

test('damage below what was durable is CHECKSUM in a recycled segment as in any other', () => {
  const { disk, writer, facts, prng } = begunInOld(3);
  const positions: number[] = [];
  for (let i = 0; i < 5; i++) {
    positions.push(writer.position);
    appendTo(writer, payloadOf(prng, 1, 300), 1);
    drain(writer);
  }
  writer.watermark();
  drain(writer);
  const path = segmentPath(writer.seq);
  for (const position of positions) {
    for (const at of [0, 5, 9, 20, 60, 200]) {
      const copy = disk.processCrash();
      const bytes = Buffer.from(copy.bytesOf(path)!);
      bytes[position + at] ^= 0x10;
      copy.remove(path);
      copy.plant(path, bytes);
      assert.throws(
        () => recover(copy, facts),
        (error) =>
          error instanceof TidemarkError &&
          error.detail['finding'] === 'CHECKSUM' &&
          error.detail['position'] === position,
        `byte ${at} of the record at ${position}`,
      );
    }
  }
});

test('the last record with one damaged place is a torn tail, never the end of the log', () => {
  const { disk, writer, facts, prng } = begunInOld(7);
  appendTo(writer, payloadOf(prng, 1, 300), 1);
  drain(writer);
  const { next, position } = writer;
  appendTo(writer, payloadOf(prng, 1, 300), 1);
  drain(writer);
  const path = segmentPath(writer.seq);
  const end = writer.position;
  const found = (change: (bytes: Buffer) => void): string => {
    const copy = disk.processCrash();
    const bytes = Buffer.from(copy.bytesOf(path)!);
    change(bytes);
    copy.remove(path);
    copy.plant(path, bytes);
    const { recovery } = recover(copy, facts);
    assert.equal(recovery.next, next);
    return `${recovery.torn?.position} ${recovery.epoch}`;
  };
  const torn = `${position} 1`;
  for (let bit = 0; bit < (end - position) * 8; bit++) {
    const at = position + (bit >> 3);
    const flip = (bytes: Buffer): void => void (bytes[at] ^= 1 << (bit & 7));
    assert.equal(found(flip), torn, `bit ${bit & 7} of byte ${at - position}`);
  }
  // Of a header that is gone as a whole nothing tells, be it by zeros or by what was there before.
  const wipe = (bytes: Buffer): void => void bytes.fill(0, position, position + 48);
  assert.equal(found(wipe), 'undefined 0');
});

/** Every record as large as the one that stood in its place: old and new headers at the same positions. */
test('old records that stand exactly where the next would are not taken for it', () => {
  const { disk, writer, facts, prng } = begunInOld(8);
  const old = Buffer.from(disk.bytesOf(segmentPath(writer.seq))!);
  const places = [];
  const payload = payloadOf(prng, 1, 900);
  while (writer.position + 2 * recordBytes(payload.length) < SMALL.segmentBytes) {
    appendTo(writer, payload, 1);
    drain(writer);
    places.push(writer.position);
    const { recovery } = recover(disk.processCrash(), facts, { strictTail: true });
    assert.equal(recovery.next, writer.next);
    assert.equal(recovery.torn, undefined);
  }
  const olds = [1, 2, 3, 4].map((seq) => syncWordOf(saltOf(LOG_ID, seq)));
  const stood = places.filter((at) => olds.includes(old.readUInt32LE(at)));
  assert.ok(stood.length >= 3, `${stood.length} of ${places.length} positions were headers before`);
});

test('a recycled spare that waits is used after CLEAN, and says of itself what it is', () => {
  const { disk, writer, facts, prng } = begunInOld(4);
  const old = writer.mark();
  const gone = facts.firstSeq;
  const now = factsOf({ firstSeq: writer.seq, firstOffset: writer.baseOffset, start: old });
  assert.ok(writer.offerSegment(gone), 'offered');
  assert.equal(make(disk, writer), true);
  close(writer);
  const found = recover(disk, now);
  const spare = found.recovery.resume!.spareSeq;
  assert.ok(spare > writer.seq, 'it is there still');
  const again = resumed(disk, found);
  while (again.seq !== spare) appendTo(again, payloadOf(prng, 1, 900), 1);
  drain(again);
  assert.equal(compatOf(disk, spare), COMPAT_RECYCLED);
  assert.equal(recover(disk.processCrash(), now, { strictTail: true }).recovery.next, again.next);
});

test('a segment of another size, or that somebody has linked, is left alone: a new one is filled', () => {
  for (const how of ['cut', 'linked'] as const) {
    const { disk, writer, facts, prng } = begunInOld(5);
    const gone = facts.firstSeq;
    const path = segmentPath(gone);
    const before = Buffer.from(disk.bytesOf(path)!);
    if (how === 'linked') disk.link(path, 'wal/kept');
    else {
      const fd = disk.open(path, 'write');
      disk.truncate(fd, before.length - 8);
      disk.close(fd);
    }
    assert.ok(writer.offerSegment(gone), 'offered');
    assert.equal(make(disk, writer), false);
    assert.equal(disk.stat(path), undefined);
    if (how === 'linked') assert.deepEqual(Buffer.from(disk.bytesOf('wal/kept')!), before);
    const { seq } = writer;
    while (writer.seq === seq) appendTo(writer, payloadOf(prng, 1, 900), 1);
    drain(writer);
    assert.equal(compatOf(disk, writer.seq), COMPAT_ZERO_FILLED);
  }
});

test('a segment that was offered and not used is given back once, when the log ends', () => {
  const { disk, writer, facts } = begunInOld(6);
  assert.ok(writer.offerSegment(facts.firstSeq), 'offered');
  close(writer);
  assert.ok(!writer.offerSegment(facts.firstSeq + 1), 'a log that has ended wants none');
  assert.equal(writer.giveBackFile(), facts.firstSeq);
  assert.equal(writer.giveBackFile(), 0);
  assert.deepEqual(disk.openFiles, []);
});
