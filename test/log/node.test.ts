/** The same log over node:fs: pages in shared memory, vectored writes, rotation, recovery. */
import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { NodeStorage } from '../../actors/node-storage.ts';
import { Prng } from '../../core/base/prng.ts';
import { SpareMaker, ZeroFill } from '../../core/log/prepare.ts';
import { ACCEPTED, LogWriter } from '../../core/log/writer.ts';
import { LOG_ID, close, drain, factsOf, payloadOf, recover, resumed } from './kit.ts';

test('a log on a real disk is written, cut, recovered and goes on', () => {
  const root = mkdtempSync(join(tmpdir(), 'tidemark-log-'));
  try {
    const storage = new NodeStorage(root);
    storage.makeDir('wal');
    storage.makeDir('quarantine');
    const options = { segmentBytes: 300_000, preparedBytes: 65_536, batchBytesMax: 262_144 };
    const page = new Uint8Array(new SharedArrayBuffer(262_144));
    const prng = new Prng(1);
    let writer = LogWriter.create(storage, LOG_ID, options);
    const crcs: number[] = [];
    const commit = (bytes: number): void => {
      if (writer.full) drain(writer);
      const payload = payloadOf(prng, 1, bytes);
      page.set(payload, 4096);
      const crc = crc32(payload);
      crcs[writer.next] = crc;
      const { next, epoch } = writer;
      const half = Math.floor(payload.length / 16) * 8;
      const refused = prng.chance(0.5)
        ? writer.append(page, 4096, payload.length, crc, 1, next, epoch, next)
        : writer.appendPieces(
            [
              { bytes: page, offset: 4096, length: half },
              { bytes: page, offset: 4096 + half, length: payload.length - half },
            ],
            crc,
            1,
            next,
            epoch,
            next,
          );
      assert.equal(refused, ACCEPTED);
      // The page is used again, so what was referenced in place is written first.
      if (payload.length >= 32_768) drain(writer);
    };
    for (let i = 0; i < 60; i++) {
      commit(prng.pick([64, 1000, 40_000, 100_000]));
      const zero = writer.zeroWanted();
      if (zero !== undefined) {
        const fill = new ZeroFill(storage, zero);
        while (fill.step());
        writer.zeroed(zero.seq, zero.to, true);
      }
      const spare = writer.spareWanted();
      if (spare !== undefined) {
        const maker = new SpareMaker(storage, spare);
        while (maker.step());
        writer.spareReady(spare.seq, true);
      }
    }
    close(writer);
    assert.ok(writer.seq > 5);
    const found = recover(storage, factsOf(), options);
    assert.ok(found.recovery.clean);
    assert.deepEqual(
      found.fed.map(({ crc }) => crc),
      crcs,
    );
    writer = resumed(storage, found, options);
    commit(64);
    drain(writer);
    const { seq, position } = writer;
    commit(1000);
    writer.step(false);
    writer.release();
    const path = join(root, `wal/${String(seq).padStart(10, '0')}.seg`);
    truncateSync(path, position + 100);
    appendFileSync(path, 'torn');
    const torn = recover(storage, factsOf(), options);
    assert.equal(torn.recovery.next, crcs.length - 1);
    assert.equal(torn.recovery.torn?.position, position);
    writer = resumed(storage, torn, options);
    commit(64);
    close(writer);
    assert.equal(recover(storage, factsOf(), options).recovery.next, crcs.length);
  } finally {
    rmSync(root, { recursive: true });
  }
});

test('a commit in thousands of pieces is one record on a real disk, whatever a system takes at once', () => {
  const root = mkdtempSync(join(tmpdir(), 'tidemark-log-'));
  try {
    const storage = new NodeStorage(root);
    storage.makeDir('wal');
    storage.makeDir('quarantine');
    const options = { segmentBytes: 4_194_304, preparedBytes: 0, batchBytesMax: 262_144 };
    const writer = LogWriter.create(storage, LOG_ID, options);
    const payload = payloadOf(new Prng(2), 1, 1_000_000);
    const piece = Math.ceil(payload.length / 2_500 / 8) * 8;
    const pieces = [];
    for (let offset = 0; offset < payload.length; offset += piece) {
      pieces.push({ bytes: payload, offset, length: Math.min(piece, payload.length - offset) });
    }
    assert.ok(pieces.length > 2_048, `${pieces.length} pieces`);
    const crcs = [crc32(payload)];
    assert.equal(writer.appendPieces(pieces, crcs[0], 1, 0, writer.epoch, 1), ACCEPTED);
    drain(writer);
    // Again between two that lie in one piece.
    const whole = [{ bytes: payload, offset: 0, length: payload.length }];
    for (const next of [1, 2, 3]) {
      crcs.push(crcs[0]);
      assert.equal(
        writer.appendPieces(next === 2 ? pieces : whole, crcs[0], 1, next, writer.epoch, 1),
        ACCEPTED,
      );
      drain(writer);
    }
    close(writer);
    const found = recover(storage, factsOf(), options);
    assert.ok(found.recovery.clean, 'closed in order');
    assert.deepEqual(
      found.fed.map(({ crc }) => crc),
      crcs,
    );
  } finally {
    rmSync(root, { recursive: true });
  }
});
