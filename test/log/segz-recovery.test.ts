/**
 * Goal: a log opens the same whether its older segments are compressed or not, at whatever moment a job
 * that compresses them was cut off. Method: one log, its segments in every combination of files, some
 * damaged; recovered and compared with what the log was recovered to before.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { TidemarkError } from '../../core/base/errors.ts';
import { Prng } from '../../core/base/prng.ts';
import { CompressJob } from '../../core/log/compress.ts';
import type { LogFacts } from '../../core/log/recovery.ts';
import { CODEC_DEFLATE } from '../../core/log/segz.ts';
import { LogWriter } from '../../core/log/writer.ts';
import { compressedPath, segmentPath } from '../../core/storage/names.ts';
import { SimCrash, crashes } from '../sim/disk.ts';
import type { SimDisk, SimFault } from '../sim/disk.ts';
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
import type { Recovered } from './kit.ts';

const SEALED = 3;

/** Three sealed segments and a live one, not closed; and positions to start from. */
function logOf(): { disk: SimDisk; starts: LogFacts[] } {
  const disk = storeDisk();
  disk.makeDir('tmp');
  disk.syncDir('');
  const prng = new Prng(4);
  const writer = LogWriter.create(disk, LOG_ID, SMALL);
  const starts: LogFacts[] = [factsOf()];
  const note = (): void => {
    drain(writer);
    const start = writer.mark();
    starts.push(factsOf({ start, witness: start.upper }));
  };
  while (writer.seq <= SEALED) {
    appendTo(writer, payloadOf(prng, 1, 700), 1);
    if (writer.full || prng.chance(0.2)) note();
  }
  appendTo(writer, payloadOf(prng, 2, 300), 2);
  note();
  writer.release();
  disk.settle();
  return { disk, starts };
}

function compress(disk: SimDisk, seq: number): void {
  const job = new CompressJob(disk, {
    seq,
    successor: seq + 1,
    logId: Buffer.from(LOG_ID).toString('hex'),
    codec: CODEC_DEFLATE,
    tmp: 'tmp/segment',
  });
  while (job.step());
}

/** What a recovery says, without where it wrote. */
function said({ recovery, fed, payloads }: Recovered): unknown {
  const { next, epoch, atMs, clean, torn } = recovery;
  const segments = recovery.segments.map(({ seq, baseOffset }) => ({ seq, baseOffset }));
  return { next, epoch, atMs, clean, torn, fed, payloads, segments };
}

function findingOf(act: () => void): unknown {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof TidemarkError, String(error));
    return error.detail['finding'];
  }
  return undefined;
}

const { disk: LOG, starts: STARTS } = logOf();
const PACKED = LOG.processCrash();
for (let seq = 1; seq <= SEALED; seq++) compress(PACKED, seq);

test('a log with any of its segments compressed is recovered the same, from any start', () => {
  for (const [i, facts] of STARTS.entries()) {
    if (i % 4 !== 0 && i < STARTS.length - 1) continue;
    for (const readOnly of [false, true]) {
      const expected = said(recover(LOG.processCrash(), facts, { readOnly }));
      for (let set = 1; set < 1 << SEALED; set++) {
        const disk = LOG.processCrash();
        for (let seq = 1; seq <= SEALED; seq++) if ((set >> (seq - 1)) & 1) compress(disk, seq);
        const before = disk.list('wal');
        const found = recover(disk, facts, { readOnly });
        assert.deepEqual(said(found), expected);
        const packed = found.recovery.segments.filter((segment) => segment.packed);
        assert.deepEqual(
          packed.map(({ seq }) => seq),
          [1, 2, 3].filter((seq) => (set >> (seq - 1)) & 1),
        );
        if (readOnly) assert.deepEqual(disk.list('wal'), before);
        if (found.recovery.resume !== undefined) close(resumed(disk, found));
        assert.deepEqual(disk.openFiles, []);
      }
    }
  }
});

describe('.seg and .segz of one number', () => {
  const both = (): SimDisk => {
    const disk = LOG.processCrash();
    disk.plant(compressedPath(2), PACKED.bytesOf(compressedPath(2))!.slice());
    return disk;
  };
  const expected = said(recover(LOG.processCrash()));

  test('a sound .segz wins, and the .seg is an orphan', () => {
    const disk = both();
    // Nobody looks at it any more.
    disk.plant(segmentPath(2), new Uint8Array(10));
    const found = recover(disk);
    assert.deepEqual(said(found), expected);
    assert.ok(found.recovery.orphans.includes(segmentPath(2)), 'the .seg goes');
    assert.ok(!found.recovery.orphans.includes(compressedPath(2)), 'the .segz stays');
    assert.deepEqual(found.recovery.warnings, []);
  });

  test('a .segz with any damage loses, and is the orphan', () => {
    const sound = PACKED.bytesOf(compressedPath(2))!;
    // Offsets of its header are covered by the copy: that is no damage to lose for.
    for (let at = 192; at < sound.length - 192; at += 97) {
      const disk = both();
      const bytes = sound.slice();
      bytes[at] ^= 1;
      disk.plant(compressedPath(2), bytes);
      const found = recover(disk);
      assert.deepEqual(said(found), expected);
      assert.ok(found.recovery.orphans.includes(compressedPath(2)), `byte ${at}: the .segz goes`);
      assert.equal(found.recovery.warnings.length, 1);
    }
    const disk = both();
    disk.plant(compressedPath(2), sound.slice(0, sound.length >> 1));
    assert.deepEqual(said(recover(disk)), expected);
  });
});

describe('a compressed segment alone', () => {
  test('with damage is CHECKSUM when it is read; one copy of its header is a warning', () => {
    const sound = PACKED.bytesOf(compressedPath(2))!;
    for (const at of [
      0,
      100,
      sound.length - 100,
      192,
      300,
      sound.length - 200,
      sound.length - 215,
    ]) {
      const disk = PACKED.processCrash();
      const bytes = sound.slice();
      bytes[at] ^= 1;
      disk.plant(compressedPath(2), bytes);
      const isHeader = at < 192 || at >= sound.length - 192;
      if (!isHeader) {
        assert.equal(
          findingOf(() => recover(disk)),
          'CHECKSUM',
          `byte ${at}`,
        );
        // Below the flushed upper nobody reads.
        assert.equal(
          findingOf(() => recover(disk, STARTS.at(-1))),
          undefined,
        );
        continue;
      }
      assert.equal(recover(disk).recovery.warnings.length, 1);
    }
    const disk = PACKED.processCrash();
    disk.plant(compressedPath(2), new Uint8Array(600));
    assert.equal(
      findingOf(() => recover(disk, STARTS.at(-1))),
      'CHECKSUM',
    );
  });

  test('is missed like any other', () => {
    const disk = PACKED.processCrash();
    disk.remove(compressedPath(2));
    assert.equal(
      findingOf(() => recover(disk)),
      'MISSING_SEGMENT',
    );
  });

  test('is never the last: what followed it is missing', () => {
    const disk = PACKED.processCrash();
    disk.remove(segmentPath(4));
    assert.equal(
      findingOf(() => recover(disk)),
      'MISSING_SEGMENT',
    );
    // Nor when something unused lies above.
    disk.plant(segmentPath(4), new Uint8Array(4_096));
    assert.equal(
      findingOf(() => recover(disk)),
      'MISSING_SEGMENT',
    );
  });

  test('of another log, of another number, or too short for its successor is refused', () => {
    const disk = PACKED.processCrash();
    const one = disk.bytesOf(compressedPath(1))!.slice();
    const two = disk.bytesOf(compressedPath(2))!.slice();
    disk.plant(compressedPath(2), one);
    assert.equal(
      findingOf(() => recover(disk)),
      'MISNAMED_SEGMENT',
    );
    disk.plant(compressedPath(2), two);
    const logId = LOG_ID.toReversed();
    assert.equal(
      findingOf(() => recover(disk, factsOf({ logId }))),
      'FOREIGN_SEGMENT',
    );
  });

  test('below the log start is an orphan', () => {
    const disk = PACKED.processCrash();
    const second = recover(PACKED.processCrash()).recovery.segments[1];
    const start = STARTS.find(({ start: at }) => (at?.seq ?? 0) > 2);
    const facts = { ...start!, firstSeq: 2, firstOffset: second.baseOffset };
    const { recovery } = recover(disk, facts);
    assert.ok(recovery.orphans.includes(compressedPath(1)), 'it goes');
    assert.equal(recovery.segments[0].seq, 2);
  });
});

test('a crash at any call of compressing: the log is recovered whole, and can be compressed then', () => {
  const expected = said(recover(LOG.processCrash(), factsOf(), { readOnly: true }));
  let states = 0;
  for (let mutation = 0; ; mutation++) {
    const disk = LOG.processCrash();
    const first = disk.mutations;
    disk.fault = (call): SimFault | undefined =>
      call.mutation === first + mutation ? { kind: 'crash' } : undefined;
    let isDone = false;
    try {
      compress(disk, 2);
      isDone = true;
    } catch (error) {
      assert.ok(error instanceof SimCrash, String(error));
    }
    const choice = { subsetsMax: 6, samples: 8, regularMax: 8 };
    for (const left of crashes(disk, new Prng(mutation), choice)) {
      states++;
      assert.deepEqual(said(recover(left, factsOf(), { readOnly: true })), expected);
      for (const name of left.list('tmp')) left.unlink(`tmp/${name}`);
      const found = recover(left);
      for (const path of found.recovery.orphans) left.unlink(path);
      close(resumed(left, found));
      const again = recover(left, factsOf(), { readOnly: true });
      assert.deepEqual(again.payloads, found.payloads);
      const names = left.list('wal').filter((name) => name.startsWith('0000000002.'));
      assert.equal(names.length, 1, 'one of the two');
    }
    if (isDone) break;
  }
  assert.ok(states > 100, `${states} states`);
});
