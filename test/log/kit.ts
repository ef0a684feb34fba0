/**
 * What the log's tests share: payloads, a naive encoder that knows the format only from its tables, a
 * disk with the store's directories, and drivers that step a writer or a recovery to its end.
 */
import assert from 'node:assert/strict';
import { crc32 } from 'node:zlib';
import type { Prng } from '../../core/base/prng.ts';
import { LogRecovery } from '../../core/log/recovery.ts';
import type { LogFacts, RecoveryOptions } from '../../core/log/recovery.ts';
import { ACCEPTED, LogWriter } from '../../core/log/writer.ts';
import type { LogOptions } from '../../core/log/writer.ts';
import type { Storage } from '../../core/storage/storage.ts';
import { SimDisk } from '../sim/disk.ts';

export const LOG_ID: Uint8Array = Uint8Array.from({ length: 16 }, (_, i) => 0xa0 + i);

// ---------------------------------------------------------------- payloads

export type Op = {
  collection: number;
  kind: number;
  key: Uint8Array;
  value: Uint8Array;
  diff?: number;
};

export function transactionOf(ops: readonly Op[]): Buffer {
  const parts = ops.map((op) => {
    const head = Buffer.alloc(op.kind === 3 ? 24 : 16);
    head.writeUInt32LE(op.collection, 0);
    head.writeUInt8(op.kind, 4);
    head.writeUInt16LE(op.key.length, 6);
    head.writeUInt32LE(op.value.length, 8);
    if (op.kind === 3) head.writeDoubleLE(op.diff ?? 1, 16);
    const body = Buffer.concat([head, op.key, op.value]);
    return Buffer.concat([body, Buffer.alloc((8 - (body.length % 8)) % 8)]);
  });
  const head = Buffer.alloc(8);
  head.writeUInt32LE(
    parts.reduce((sum, part) => sum + part.length, 8),
    0,
  );
  head.writeUInt32LE(ops.length, 4);
  return Buffer.concat([head, ...parts]);
}

/** Random bytes; long ones repeat, for they only have to be long. */
function noise(prng: Prng, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  const seed = Buffer.alloc(Math.min(length, 1024));
  for (let i = 0; i < seed.length; i++) seed[i] = prng.u32();
  return seed.length > 0 ? bytes.fill(seed) : bytes;
}

/** A payload of `txCount` transactions of one put each, about `bytes` long in all. */
export function payloadOf(prng: Prng, txCount: number, bytes: number): Buffer {
  const value = Math.max(0, Math.floor(bytes / txCount) - 40);
  const transactions = [];
  for (let t = 0; t < txCount; t++) {
    const op = { collection: 1, kind: 1, key: noise(prng, 8), value: noise(prng, value) };
    transactions.push(transactionOf([op]));
  }
  return Buffer.concat(transactions);
}

// ---------------------------------------------------------------- the format, naively

export type NaiveRecord = {
  kind: number;
  flags: number;
  txCount: number;
  minTxOffset: number;
  epoch: number;
  prevChain: number;
  durable: number;
  atMs: number;
  payload: Uint8Array;
};

export function naiveSalt(logId: Uint8Array, seq: number): number {
  const name = Buffer.alloc(8);
  name.writeBigUInt64LE(BigInt(seq));
  return crc32(Buffer.concat([logId, name]));
}

export function naiveRecord(record: NaiveRecord, salt: number, position: number): Buffer {
  const head = Buffer.alloc(48);
  const lag = record.minTxOffset - record.durable;
  head.writeUInt32LE((0xa7c35e91 ^ salt) >>> 0 || 1, 0);
  head.writeUInt32LE(record.payload.length, 8);
  head.writeUInt16LE(record.txCount, 12);
  head.writeUInt8(record.kind, 14);
  head.writeUInt8(record.flags, 15);
  head.writeBigUInt64LE(BigInt(record.minTxOffset), 16);
  head.writeUInt32LE(record.epoch, 24);
  head.writeUInt32LE(crc32(record.payload), 28);
  head.writeUInt32LE(record.prevChain, 32);
  head.writeUInt32LE(Math.min(lag, 0xffff_ffff), 36);
  head.writeBigUInt64LE(BigInt(record.atMs), 40);
  head.writeUInt32LE(crc32(head.subarray(8), (salt + position / 8) % 2 ** 32), 4);
  const padding = Buffer.alloc((8 - (record.payload.length % 8)) % 8);
  return Buffer.concat([head, record.payload, padding]);
}

export type NaiveSegment = {
  seq: number;
  base: number;
  prevSeq: number;
  prevEnd: number;
  prevChain: number;
  epoch: number;
  planned: number;
  baseAtMs: number;
  reason: number;
  compat: number;
};

export function naiveBlock(logId: Uint8Array, segment: NaiveSegment): Buffer {
  const head = Buffer.alloc(128);
  Buffer.from('8f434c470d0a1a0a', 'hex').copy(head);
  head.writeUInt16LE(1, 8);
  head.writeUInt8(1, 10);
  head.writeUInt32LE(segment.compat, 20);
  Buffer.from(logId).copy(head, 24);
  head.writeBigUInt64LE(BigInt(segment.seq), 40);
  head.writeBigUInt64LE(BigInt(segment.base), 48);
  head.writeBigUInt64LE(BigInt(segment.prevSeq), 56);
  head.writeBigUInt64LE(BigInt(segment.prevEnd), 64);
  head.writeUInt32LE(segment.prevChain, 72);
  head.writeUInt32LE(segment.epoch, 76);
  head.writeBigUInt64LE(BigInt(segment.planned), 80);
  head.writeBigUInt64LE(BigInt(segment.baseAtMs), 88);
  head.writeUInt16LE(1, 96);
  head.writeUInt16LE(segment.reason, 98);
  head.writeUInt32LE(naiveSalt(logId, segment.seq), 120);
  head.writeUInt32LE(crc32(head.subarray(0, 124)), 124);
  const block = Buffer.alloc(4096);
  head.copy(block, 0);
  head.copy(block, 2048);
  return block;
}

export function naiveEnd(
  base: number,
  next: number,
  commits: number,
  chain: number,
  epoch: number,
): Buffer {
  const end = Buffer.alloc(32);
  end.writeBigUInt64LE(BigInt(base), 0);
  end.writeBigUInt64LE(BigInt(next), 8);
  end.writeBigUInt64LE(BigInt(commits), 16);
  end.writeUInt32LE(chain, 24);
  end.writeUInt32LE(epoch, 28);
  return end;
}

// ---------------------------------------------------------------- drivers

/** A disk with the directories of a store, durable. */
export function storeDisk(): SimDisk {
  const disk = new SimDisk();
  disk.makeDir('wal');
  disk.makeDir('quarantine');
  disk.syncDir('');
  return disk;
}

/** Small segments and little preparation: many files, few bytes. */
export const SMALL: LogOptions = {
  segmentBytes: 16_384,
  preparedBytes: 4096,
  batchBytesMax: 131_072,
};

export type Commit = { offset: number; txCount: number; epoch: number; atMs: number; crc: number };

/** Appends one commit of `payload` at the writer's next offset. */
export function appendTo(
  writer: LogWriter,
  payload: Uint8Array,
  txCount: number,
  atMs: number = writer.atMs + 1,
): Commit {
  const crc = crc32(payload);
  const { next: offset, epoch } = writer;
  const refused = writer.append(payload, 0, payload.length, crc, txCount, offset, epoch, atMs);
  assert.equal(refused, ACCEPTED);
  return { offset, txCount, epoch, atMs, crc };
}

/** Steps until all that was appended is durable. */
export function drain(writer: LogWriter): void {
  for (let i = 0; i < 10_000; i++) {
    const step = writer.step(!writer.staged);
    if (step === 'idle' || step === 'failed' || step === 'closed') return;
    assert.notEqual(step, 'waiting', 'nothing answers a zeroing job here');
  }
  assert.fail('a writer that never rests');
}

export function close(writer: LogWriter): void {
  writer.close();
  for (let i = 0; i < 10_000; i++) if (writer.step(true) === 'closed') return;
  assert.fail('a writer that never closes');
}

export function factsOf(more: Partial<LogFacts> = {}): LogFacts {
  return { logId: LOG_ID, firstSeq: 1, firstOffset: 0, start: undefined, witness: 0, ...more };
}

export type Recovered = { recovery: LogRecovery; fed: Commit[]; payloads: Buffer[] };

/** Runs a recovery to its end. Every third record is refused once, as a full ring would. */
export function recover(
  storage: Storage,
  facts: LogFacts = factsOf(),
  options: Partial<RecoveryOptions> = {},
): Recovered {
  const fed: Commit[] = [];
  const payloads: Buffer[] = [];
  let offered = 0;
  const recovery = new LogRecovery(
    storage,
    facts,
    { ...SMALL, readOnly: false, strictTail: false, readBytes: 4096, ...options },
    (record, bytes, offset, length) => {
      if (++offered % 3 === 0) return false;
      const { minTxOffset, txCount, epoch, committedAtMs: atMs, payloadCrc: crc } = record;
      const payload = Buffer.from(bytes.subarray(offset, offset + length));
      assert.equal(crc32(payload), crc);
      assert.equal(recovery.mark().upper, minTxOffset + txCount);
      fed.push({ offset: minTxOffset, txCount, epoch, atMs, crc });
      payloads.push(payload);
      return true;
    },
  );
  try {
    for (let i = 0; recovery.step(); i++) assert.ok(i < 100_000, 'a recovery that never ends');
  } catch (error) {
    recovery.release();
    throw error;
  }
  return { recovery, fed, payloads };
}

/** The writer that goes on where a recovery ended. */
export function resumed(
  storage: Storage,
  { recovery }: Recovered,
  options: LogOptions = SMALL,
): LogWriter {
  assert.ok(recovery.resume !== undefined);
  return new LogWriter(storage, options, recovery.resume);
}
