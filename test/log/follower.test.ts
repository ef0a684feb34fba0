/**
 * Following a log while it is written: every transaction below the limit, once, in order, from any
 * offset; and what a follower says of segments that are gone, used again or damaged.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { CompressJob } from '../../core/log/compress.ts';
import { LogFollower } from '../../core/log/follower.ts';
import type { FollowSegment, FollowSource, LogChunk } from '../../core/log/follower.ts';
import { CODEC_DEFLATE } from '../../core/log/segz.ts';
import { LogWriter } from '../../core/log/writer.ts';
import { compressedPath, segmentPath } from '../../core/storage/names.ts';
import { coded } from '../engine/world.ts';
import type { SimDisk } from '../sim/disk.ts';
import { LOG_ID, SMALL, appendTo, drain, payloadOf, recover, resumed, storeDisk } from './kit.ts';

const CHUNK_BYTES = 2_048;

/** A log being written, as a follower is told of it. */
class Log implements FollowSource {
  readonly storage: SimDisk = storeDisk();
  writer: LogWriter = LogWriter.create(this.storage, LOG_ID, SMALL);
  list: FollowSegment[] = [{ seq: 1, base: 0 }];
  /** Payloads of records by their first offset. */
  readonly records: { offset: number; txCount: number; payload: Buffer }[] = [];
  /** False: the directory does not say of segments that began meanwhile. */
  tells = true;
  readonly #prng: Prng;

  constructor(seed: number) {
    this.#prng = new Prng(seed);
  }

  segments(): readonly FollowSegment[] {
    return this.list;
  }

  currentSeq(): number {
    return this.writer.seq;
  }

  currentEnd(): number {
    return this.writer.mark().position;
  }

  append(bytes: number): void {
    const txCount = this.#prng.between(1, 5);
    const payload = payloadOf(this.#prng, txCount, bytes);
    if (this.writer.full) this.settle();
    const { offset } = appendTo(this.writer, payload, txCount);
    this.records.push({ offset, txCount, payload });
    this.settle();
  }

  settle(): void {
    drain(this.writer);
    const { seq, baseOffset: base } = this.writer;
    if (this.tells && this.list.at(-1)!.seq < seq) this.list.push({ seq, base });
  }
}

/** Reads on until `limit`; what it has read, record by record, from the one with `from` on. */
async function readAll(follower: LogFollower, limit: number): Promise<LogChunk[]> {
  const chunks: LogChunk[] = [];
  while (follower.next < limit) chunks.push(await follower.read(limit));
  return chunks;
}

function compare(chunks: readonly LogChunk[], log: Log, from: number, limit: number): void {
  const expected = log.records.filter(
    ({ offset, txCount }) => offset + txCount > from && offset + txCount <= limit,
  );
  const got = chunks.flatMap((chunk) =>
    chunk.firstOffsets.map((offset, i) => ({ offset, txCount: chunk.txCounts[i], chunk, i })),
  );
  assert.deepEqual(
    got.map(({ offset, txCount }) => [offset, txCount]),
    expected.map(({ offset, txCount }) => [offset, txCount]),
  );
  for (const [n, { chunk, i }] of got.entries()) {
    const at = chunk.payloadOffsets[i];
    const { payload } = expected[n];
    assert.ok(chunk.bytes.subarray(at, at + payload.length).equals(payload), 'the very bytes');
  }
}

test('a follower that starts at the beginning sees every record as it is written', async () => {
  const log = new Log(1);
  const prng = new Prng(2);
  const follower = new LogFollower(log, CHUNK_BYTES);
  const chunks: LogChunk[] = [];
  for (let i = 0; i < 150; i++) {
    log.append(prng.pick([50, 400, 3_000, 9_000]));
    if (prng.chance(0.4)) chunks.push(...(await readAll(follower, log.writer.written)));
  }
  chunks.push(...(await readAll(follower, log.writer.written)));
  assert.ok(log.writer.seq > 5, `segments: ${log.writer.seq}`);
  compare(chunks, log, 0, log.writer.written);
  follower.close();
});

test('a follower may start at any offset, with or without knowing its place', async () => {
  const log = new Log(3);
  const prng = new Prng(4);
  for (let i = 0; i < 120; i++) log.append(prng.pick([50, 400, 3_000, 9_000, 20_000]));
  const limit = log.writer.written;
  const follower = new LogFollower(log, CHUNK_BYTES);
  for (let i = 0; i < 200; i++) {
    const from = prng.below(limit);
    follower.seek(from);
    const chunk = await follower.read(limit);
    assert.ok(chunk.from <= from && from < chunk.to, `${from} in ${chunk.from} to ${chunk.to}`);
    compare([chunk], log, from, chunk.to);
    if (chunk.to === limit) continue;
    follower.seek(chunk.to, chunk.end);
    compare([await follower.read(limit)], log, chunk.to, follower.next);
  }
  follower.close();
});

test('a limit is not passed, whatever lies behind it', async () => {
  const log = new Log(5);
  for (let i = 0; i < 40; i++) log.append(900);
  const { records } = log;
  const follower = new LogFollower(log, CHUNK_BYTES);
  for (let i = 1; i < records.length; i++) {
    const limit = records[i].offset;
    const chunks = await readAll(follower, limit);
    assert.equal(chunks.at(-1)!.to, limit);
  }
  follower.close();
});

test('a rotation that the directory does not tell of yet is followed all the same', async () => {
  const log = new Log(6);
  const follower = new LogFollower(log, CHUNK_BYTES);
  log.append(900);
  const chunks = await readAll(follower, log.writer.written);
  log.tells = false;
  while (log.writer.seq < 4) log.append(5_000);
  chunks.push(...(await readAll(follower, log.writer.written)));
  compare(chunks, log, 0, log.writer.written);
  follower.close();
});

test('what a recovery made void is passed over', async () => {
  const log = new Log(7);
  for (let i = 0; i < 30; i++) log.append(700);
  // Written and never synced: the next life writes it again, into a segment of its own.
  const payload = payloadOf(new Prng(1), 1, 300);
  const { offset } = appendTo(log.writer, payload, 1);
  log.records.push({ offset, txCount: 1, payload });
  log.writer.step(false);
  log.writer.release();
  const recovered = recover(log.storage);
  log.writer = resumed(log.storage, recovered);
  log.list = recovered.recovery.segments.map(({ seq, baseOffset: base }) => ({ seq, base }));
  for (let i = 0; i < 30; i++) log.append(700);
  const limit = log.writer.written;
  for (const from of [0, 10, offset - 1, offset, offset + 1, limit - 1]) {
    const follower = new LogFollower(log, CHUNK_BYTES);
    follower.seek(from);
    compare(await readAll(follower, limit), log, from, limit);
    follower.close();
  }
});

test('an open segment that is deleted is read to its end; a closed one is lost history', async () => {
  const log = new Log(8);
  for (let i = 0; i < 60; i++) log.append(1_500);
  const limit = log.writer.written;
  const follower = new LogFollower(log, CHUNK_BYTES);
  const chunks = [await follower.read(limit)];
  const second = log.list[1];
  log.storage.unlink(segmentPath(1));
  log.list.shift();
  chunks.push(...(await readAll(follower, limit)));
  compare(chunks, log, 0, limit);
  follower.seek(0);
  await assert.rejects(
    follower.read(limit),
    coded('TIDEMARK_HISTORY_LOST', { offset: 0, oldest: second.base }),
  );
  follower.close();
});

test('a segment whose file is used again is never read as the old one', async () => {
  const log = new Log(9);
  for (let i = 0; i < 60; i++) log.append(1_500);
  const limit = log.writer.written;
  const follower = new LogFollower(log, CHUNK_BYTES);
  await follower.read(limit);
  // As recycling does it: renamed under the follower's descriptor, and written from the start.
  const path = segmentPath(log.writer.seq + 1);
  log.storage.rename(segmentPath(1), path);
  const fd = log.storage.open(path, 'write');
  const newest = log.storage.open(segmentPath(log.writer.seq), 'read');
  const bytes = Buffer.alloc(SMALL.segmentBytes);
  log.storage.read(newest, bytes, 0, bytes.length, 0);
  log.storage.write(fd, bytes, 0, bytes.length, 0);
  log.storage.close(fd);
  log.storage.close(newest);
  log.list.shift();
  await assert.rejects(readAll(follower, limit), coded('TIDEMARK_HISTORY_LOST'));
  follower.close();
});

test('damage is named, with its place; a missing segment too', async () => {
  const log = new Log(10);
  for (let i = 0; i < 60; i++) log.append(1_500);
  const limit = log.writer.written;
  const fd = log.storage.open(segmentPath(2), 'write');
  const bytes = Buffer.alloc(1);
  log.storage.read(fd, bytes, 0, 1, 4096 + 100);
  bytes[0] ^= 1;
  log.storage.write(fd, bytes, 0, 1, 4096 + 100);
  log.storage.close(fd);
  const { base } = log.list[1];
  const follower = new LogFollower(log, CHUNK_BYTES);
  await assert.rejects(
    readAll(follower, limit),
    coded('TIDEMARK_CORRUPT', { finding: 'CHECKSUM', seq: 2, position: 4096, offset: base }),
  );
  log.storage.unlink(segmentPath(3));
  follower.seek(log.list[2].base);
  await assert.rejects(
    follower.read(limit),
    coded('TIDEMARK_CORRUPT', { finding: 'MISSING_SEGMENT', seq: 3 }),
  );
  follower.close();
});

test('segments that are compressed, before or while they are read, give the same transactions', async () => {
  const log = new Log(11);
  const prng = new Prng(12);
  log.storage.makeDir('tmp');
  for (let i = 0; i < 150; i++) log.append(prng.pick([50, 400, 3_000, 9_000, 20_000]));
  const limit = log.writer.written;
  const sealed = log.list.slice(0, -1).map(({ seq }) => seq);
  assert.ok(sealed.length > 5, `${sealed.length} sealed segments`);
  const compress = (seq: number): void => {
    const job = new CompressJob(log.storage, {
      seq,
      successor: seq + 1,
      logId: Buffer.from(LOG_ID).toString('hex'),
      codec: CODEC_DEFLATE,
      tmp: 'tmp/segment',
    });
    while (job.step());
  };
  for (const seq of sealed) if (seq % 2 === 0) compress(seq);
  const follower = new LogFollower(log, CHUNK_BYTES);
  for (let i = 0; i < 100; i++) {
    const from = prng.below(limit);
    follower.seek(from);
    const chunk = await follower.read(limit);
    const whole = log.records.find(({ offset, txCount }) => offset + txCount > from)!;
    assert.ok(
      chunk.from <= from && from < chunk.to,
      `${from} lies in [${chunk.from}, ${chunk.to})`,
    );
    if (i % 2 === 0) compare([chunk, ...(await readAll(follower, limit))], log, from, limit);
    // Where it stands is good for the file that takes the segment's place, too.
    follower.seek(chunk.to, chunk.end);
    if (chunk.to < limit) assert.ok((await follower.read(limit)).from <= chunk.to, 'goes on');
    assert.ok(whole.offset <= from, 'its record');
    if (i === 50) for (const seq of sealed) if (seq % 2 === 1) compress(seq);
  }
  follower.seek(0);
  const chunks = [await follower.read(limit)];
  chunks.push(...(await readAll(follower, limit)));
  compare(chunks, log, 0, limit);
  // Damaged it is an error with a name.
  const path = compressedPath(3);
  const bytes = log.storage.bytesOf(path)!.slice();
  bytes[300] ^= 1;
  log.storage.plant(path, bytes);
  follower.seek(log.list[2].base);
  await assert.rejects(
    async () => readAll(follower, log.list[3].base),
    coded('TIDEMARK_CORRUPT', { finding: 'CHECKSUM' }),
  );
  follower.close();
  assert.ok(!log.storage.openFiles.some((name) => name.endsWith('.segz')), 'nothing is left open');
});
