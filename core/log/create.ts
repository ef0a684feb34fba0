/**
 * Makes a log where there is none: segment 1 with its first zeros, synced. The manifest comes after
 * it, so a store without a manifest holds at most a segment 1 without a record; anything more is a
 * store that lost its manifest, and is never made anew. Called at open, on the durability thread.
 */
import { corrupt } from '../base/errors.ts';
import { LOG_DIR, numberOf, segmentPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { shortWrite } from '../storage/storage.ts';
import { isZero } from './reader.ts';
import { RECORD_HEADER_BYTES } from './record.ts';
import { preparedBytesOf } from './room.ts';
import {
  COMPAT_ZERO_FILLED,
  REASON_CREATE,
  SEGMENT_BLOCK_BYTES,
  decodeSegmentBlock,
  encodeSegmentBlock,
} from './segment.ts';
import type { LogOptions, LogResume } from './writer.ts';

/** True when any segment may hold a record: a store without a manifest is then not to be created. */
export function logHoldsRecords(storage: Storage): boolean {
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES + RECORD_HEADER_BYTES);
  for (const name of storage.list(LOG_DIR)) {
    // A compressed segment was full of them.
    if (name.endsWith('.segz')) return true;
    const seq = numberOf(name, '.seg');
    if (seq === undefined) continue;
    const fd = storage.open(segmentPath(seq), 'read');
    const got = storage.read(fd, block, 0, block.length, 0);
    storage.close(fd);
    if (!isZero(block, SEGMENT_BLOCK_BYTES, Math.max(0, got - SEGMENT_BLOCK_BYTES))) return true;
    if (got < SEGMENT_BLOCK_BYTES || seq === 1) continue;
    if (decodeSegmentBlock(block, segmentPath(seq)).header !== undefined) return true;
  }
  return false;
}

/**
 * Segment 1 of a new log: header and the first zeros, synced with the directory entry. What an earlier
 * attempt left is replaced; with a record in it, it is a log without its manifest: NO_MANIFEST.
 */
export function createLog(storage: Storage, logId: Uint8Array, options: LogOptions): LogResume {
  const prepared = preparedBytesOf(options);
  const bytes = Math.min(SEGMENT_BLOCK_BYTES + prepared, options.segmentBytes);
  const seq = 1;
  const block = new Uint8Array(bytes);
  encodeSegmentBlock(block, 0, {
    roCompat: 0,
    compat: prepared > 0 ? COMPAT_ZERO_FILLED : 0,
    logId,
    seq,
    baseOffset: 0,
    prevSeq: 0,
    prevEndPos: 0,
    prevChain: 0,
    epoch: 0,
    plannedBytes: options.segmentBytes,
    baseAtMs: 0,
    reason: REASON_CREATE,
  });
  const path = segmentPath(seq);
  if (logHoldsRecords(storage)) {
    throw corrupt('NO_MANIFEST', 'the store has a log with records, but no manifest', {});
  }
  for (const name of storage.list(LOG_DIR)) storage.unlink(`${LOG_DIR}/${name}`);
  const fd = storage.open(path, 'create');
  try {
    const got = storage.write(fd, block, 0, bytes, 0);
    if (got !== bytes) throw shortWrite(got, bytes, path);
    storage.sync(fd);
    storage.syncDir(LOG_DIR);
  } catch (error) {
    storage.close(fd);
    throw error;
  }
  return {
    logId,
    seq,
    fd,
    position: SEGMENT_BLOCK_BYTES,
    commitEnd: SEGMENT_BLOCK_BYTES,
    baseOffset: 0,
    baseAtMs: 0,
    commits: 0,
    next: 0,
    durable: 0,
    chain: 0,
    epoch: 0,
    atMs: 0,
    zeroedEnd: bytes,
    claimed: 0,
    highestSeq: seq,
    spareSeq: 0,
    spareRecycled: false,
    filled: false,
  };
}
