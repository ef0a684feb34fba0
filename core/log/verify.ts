/**
 * The rules for one record after another: offsets without gap, epoch and time that never fall, one
 * chain, contents that hold together. A sound record that breaks one is an error wherever it stands.
 * Called by recovery on the durability thread.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { segmentPath } from '../storage/names.ts';
import { validatePayload } from './payload.ts';
import type { SegmentReader } from './reader.ts';
import { RECORD_CLEAN, RECORD_COMMIT, RECORD_SEAL, decodeSegmentEnd } from './record.ts';
import type { RecordHeader } from './record.ts';
import { SEGMENT_BLOCK_BYTES } from './segment.ts';
import type { SegmentHeader } from './segment.ts';
import type { LogPosition } from './writer.ts';

/** Where a pass over the log stands. */
export type Cursor = {
  next: number;
  chain: number;
  epoch: number;
  atMs: number;
  /** End of the last commit, and its segment. */
  seq: number;
  commitEnd: number;
};

export function cursorAtBase(header: SegmentHeader): Cursor {
  return {
    next: header.baseOffset,
    chain: header.prevChain,
    epoch: header.epoch,
    atMs: header.baseAtMs,
    seq: header.seq,
    commitEnd: SEGMENT_BLOCK_BYTES,
  };
}

export function cursorAt(start: LogPosition): Cursor {
  return {
    next: start.upper,
    chain: start.chain,
    epoch: start.epoch,
    atMs: start.atMs,
    seq: start.seq,
    commitEnd: start.position,
  };
}

export function copyCursor(source: Cursor, target: Cursor): void {
  target.next = source.next;
  target.chain = source.chain;
  target.epoch = source.epoch;
  target.atMs = source.atMs;
  target.seq = source.seq;
  target.commitEnd = source.commitEnd;
}

/** Checks that a sound record is the one that comes next, and moves the cursor past it. */
export function admit(header: RecordHeader, cursor: Cursor): void {
  const { minTxOffset, epoch, committedAtMs } = header;
  if (minTxOffset > cursor.next) throw misplaced('GAP', header, cursor.next, minTxOffset);
  if (minTxOffset < cursor.next) throw misplaced('REGRESSION', header, cursor.next, minTxOffset);
  if (epoch < cursor.epoch) throw misplaced('EPOCH_REGRESSION', header, cursor.epoch, epoch);
  if (committedAtMs < cursor.atMs) {
    throw misplaced('TIME_REGRESSION', header, cursor.atMs, committedAtMs);
  }
  if (header.prevChain !== cursor.chain) {
    throw misplaced('FORK', header, cursor.chain, header.prevChain);
  }
  cursor.epoch = epoch;
  if (header.kind !== RECORD_COMMIT) return;
  cursor.next = header.endOffset;
  cursor.chain = header.chain;
  cursor.atMs = committedAtMs;
  cursor.commitEnd = header.position + header.bytes;
}

/** Checks the contents of an admitted record. */
export function check(reader: SegmentReader, cursor: Cursor): void {
  const { header } = reader;
  const { kind, seq, position } = header;
  if (kind === RECORD_COMMIT) {
    try {
      const { bytes, payloadOffset, view } = reader;
      validatePayload(bytes, payloadOffset, header.payloadLen, header.txCount, view);
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      const where = { offset: header.minTxOffset, seq, position };
      const text = `${segmentPath(seq)} at ${position}: ${error.message}`;
      throw new TidemarkError(error.code, text, { ...error.detail, ...where });
    }
    return;
  }
  if (kind !== RECORD_SEAL && kind !== RECORD_CLEAN) return;
  const end = decodeSegmentEnd(reader.bytes, reader.payloadOffset);
  if (end.next === cursor.next && end.chain === cursor.chain) return;
  throw corrupt('FORMAT', `the end of segment ${seq} at ${position} contradicts the log`, {
    offset: cursor.next,
    seq,
    position,
    got: end.next,
  });
}

function misplaced(
  finding: string,
  header: RecordHeader,
  expected: number,
  got: number,
): TidemarkError {
  const { seq, position, minTxOffset } = header;
  return corrupt(
    finding,
    `the record of ${segmentPath(seq)} at ${position} does not follow the one before it: ` +
      `expected ${expected}, got ${got}`,
    { offset: minTxOffset, seq, position, expected, got },
  );
}
