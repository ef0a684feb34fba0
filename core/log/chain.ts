/**
 * Finds the segments of a log: from the highest one with a sound header backwards by prevSeq. A sound
 * header proves the segment before it durable up to prevEndPos, so nothing of the chain may be missing.
 * A segment may be there as written (.seg), compressed (.segz), or both, when a crash came between the
 * two: then a .segz that is sound from end to end wins, for what replaced it was synced, and the other
 * is an orphan. The highest one is never compressed: only what has a successor is.
 * Part of recovery, on its thread; one storage call between two yields.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { LOG_DIR, compressedPath, numberOf, segmentPath } from '../storage/names.ts';
import type { OpenHow, Storage } from '../storage/storage.ts';
import { FileBytes, READ_MORE, READ_RECORD, SegmentReader, isZero } from './reader.ts';
import { RECORD_COMMIT, RECORD_HEADER_BYTES } from './record.ts';
import { REASON_TRUNCATE, SEGMENT_BLOCK_BYTES, decodeSegmentBlock, saltOf } from './segment.ts';
import type { SegmentHeader } from './segment.ts';
import { expectOwn, openPacked, readPackedHeader } from './segment-source.ts';

export type ChainFacts = {
  readonly logId: Uint8Array;
  /** A truncation was cut off: the log ends before this offset, whatever its segments say. */
  readonly logEnd?: number | undefined;
  /** Log start: what lies below was pruned, not lost. */
  readonly firstSeq: number;
  readonly firstOffset: number;
};

/** A file above the chain without a sound header; `zero`: its header block is blank. */
export type UnusedSegment = {
  readonly seq: number;
  readonly zero: boolean;
  /** Something stands where its first record would: it was another segment. */
  readonly used: boolean;
  readonly bytes: number;
};

export type LogChain = {
  /** Oldest first. */
  headers: SegmentHeader[];
  /** Numbers of those that are compressed. */
  readonly packed: Set<number>;
  /** Highest first. */
  unused: UnusedSegment[];
  /** Files beside and below the chain. */
  orphans: string[];
  warnings: string[];
  highestSeq: number;
  /** The log is to be cut at its end: nothing has begun there yet. */
  isCut: boolean;
  /** The highest epoch of what lies beyond. */
  epochBeyond: number;
};

/** Descriptors that must not outlive a failure. */
export class OpenFiles {
  readonly #storage: Storage;
  readonly #fds: Set<number> = new Set();

  constructor(storage: Storage) {
    this.#storage = storage;
  }

  open(path: string, how: OpenHow): number {
    const fd = this.#storage.open(path, how);
    this.#fds.add(fd);
    return fd;
  }

  close(fd: number): void {
    this.#fds.delete(fd);
    this.#storage.close(fd);
  }

  /** From here on somebody else closes it. */
  handOver(fd: number): void {
    this.#fds.delete(fd);
  }

  closeAll(): void {
    for (const fd of this.#fds) this.#storage.close(fd);
    this.#fds.clear();
  }
}

/** The files of one number. */
type Files = { plain: boolean; packed: boolean };

/** Reads headers from the highest number down until the chain is whole. */
export function* findChain(
  storage: Storage,
  files: OpenFiles,
  facts: ChainFacts,
  readOnly: boolean,
): Generator<void, LogChain, void> {
  const { firstSeq, firstOffset } = facts;
  const found: LogChain = {
    headers: [],
    packed: new Set(),
    unused: [],
    orphans: [],
    warnings: [],
    highestSeq: 0,
    isCut: facts.logEnd !== undefined,
    epochBeyond: 0,
  };
  const present = new Map<number, Files>();
  for (const name of storage.list(LOG_DIR)) {
    const plain = numberOf(name, '.seg');
    const seq = plain ?? numberOf(name, '.segz');
    if (seq !== undefined) {
      const both = present.get(seq) ?? { plain: false, packed: false };
      if (plain === undefined) both.packed = true;
      else both.plain = true;
      present.set(seq, both);
      found.highestSeq = Math.max(found.highestSeq, seq);
      continue;
    }
    const spare = /^spare-([0-9]+)\.tmp$/.exec(name);
    if (spare === null) continue;
    // Not finished, and its number is burned: whoever deletes it must not meet a new one of that name.
    found.orphans.push(`${LOG_DIR}/${name}`);
    found.highestSeq = Math.max(found.highestSeq, Number(spare[1]));
  }
  yield;

  const descending = [...present.keys()].toSorted((a, b) => b - a);
  let top: SegmentHeader | undefined;
  for (const seq of descending) {
    if (seq < firstSeq) break;
    const there = present.get(seq);
    if (facts.logEnd !== undefined && there !== undefined && seq > firstSeq) {
      if (yield* liesBeyond(storage, files, facts, seq, there.plain, found)) {
        if (there.plain) found.orphans.push(segmentPath(seq));
        if (there.packed) found.orphans.push(compressedPath(seq));
        continue;
      }
    }
    if (there?.plain === false) {
      throw corrupt('MISSING_SEGMENT', `what followed ${compressedPath(seq)} is missing`, { seq });
    }
    top = yield* readHeader(storage, files, facts, readOnly, seq, found);
    if (top !== undefined) break;
  }
  if (top === undefined) {
    if (!present.has(firstSeq)) throw missing(firstSeq, firstOffset);
    throw corrupt('CHECKSUM', `${segmentPath(firstSeq)} has no readable header`, {
      offset: firstOffset,
      seq: firstSeq,
      position: 0,
      kind: 'header',
    });
  }
  const chain = [top];
  let bottom = top;
  while (bottom.seq > firstSeq && bottom.prevSeq >= firstSeq) {
    const { prevSeq, baseOffset } = bottom;
    const there = present.get(prevSeq);
    if (there === undefined) throw missing(prevSeq, baseOffset);
    const header =
      (yield* readPacked(storage, files, facts, bottom, there, found)) ??
      (yield* readHeader(storage, files, facts, readOnly, prevSeq, found)) ??
      // What was a .seg a moment ago: somebody compresses beside us.
      (yield* readPacked(storage, files, facts, bottom, { plain: false, packed: true }, found));
    if (header === undefined) {
      throw corrupt('CHECKSUM', `${segmentPath(prevSeq)} has no readable header`, {
        seq: prevSeq,
        position: 0,
        kind: 'header',
      });
    }
    if (prevSeq >= bottom.seq || header.baseOffset > baseOffset) {
      throw corrupt('REGRESSION', `${segmentPath(bottom.seq)} does not follow ${prevSeq}`, {
        offset: baseOffset,
        seq: bottom.seq,
        position: 0,
        got: header.baseOffset,
      });
    }
    bottom = header;
    chain.push(header);
  }
  // The lowest segment is the one the manifest names, or took the place of an empty one.
  if (bottom.baseOffset !== firstOffset) {
    if (bottom.seq !== firstSeq) throw missing(firstSeq, firstOffset);
    throw corrupt('GAP', `the log begins at ${bottom.baseOffset}, not at ${firstOffset}`, {
      offset: firstOffset,
      seq: bottom.seq,
      position: 0,
      got: bottom.baseOffset,
    });
  }
  found.headers = chain.toReversed();
  const linked = new Set(chain.map(({ seq }) => seq));
  for (const [seq, { plain, packed }] of present) {
    if (linked.has(seq) || seq > top.seq) continue;
    if (plain) found.orphans.push(segmentPath(seq));
    if (packed) found.orphans.push(compressedPath(seq));
  }
  return found;
}

/**
 * The header of the segment before `successor` from its .segz; undefined when that is not there, or is
 * damaged and what it was made from is there still.
 */
function* readPacked(
  storage: Storage,
  files: OpenFiles,
  facts: ChainFacts,
  successor: SegmentHeader,
  { plain, packed }: Files,
  found: LogChain,
): Generator<void, SegmentHeader | undefined, void> {
  if (!packed) return undefined;
  const { prevSeq: seq, prevEndPos } = successor;
  const path = compressedPath(seq);
  if (storage.stat(path) === undefined) return undefined;
  yield;
  const fd = files.open(path, 'read');
  yield;
  try {
    const { header, isDamaged } = yield* readPackedHeader(storage, fd, path);
    expectOwn(header.segment, facts.logId, seq, path);
    if (header.rawEnd < prevEndPos) {
      throw corrupt('CHECKSUM', `${path} ends before its successor begins`, {
        offset: header.endOffset,
        seq,
        position: header.rawEnd,
        kind: 'length',
      });
    }
    if (plain) {
      yield* readThrough(storage, files, fd, path);
      found.orphans.push(segmentPath(seq));
    }
    files.close(fd);
    yield;
    if (isDamaged) found.warnings.push(`${path}: one copy of its header is damaged`);
    found.packed.add(seq);
    return header.segment;
  } catch (error) {
    files.close(fd);
    if (!plain || !(error instanceof TidemarkError) || error.code !== 'TIDEMARK_CORRUPT')
      throw error;
    found.warnings.push(`${path} is damaged; ${segmentPath(seq)} is still there`);
    found.orphans.push(path);
    yield;
    return undefined;
  }
}

/** Reads a compressed segment from end to end; throws for damage. */
function* readThrough(
  storage: Storage,
  files: OpenFiles,
  fd: number,
  path: string,
): Generator<void, void, void> {
  const { packed } = yield* openPacked(storage, files, fd, path);
  for (const { rawPosition, rawBytes } of packed?.frames ?? []) {
    packed?.read(new Uint8Array(rawBytes), 0, rawBytes, rawPosition);
    yield;
  }
}

/**
 * True for a segment that begins at or above the end of a log that is being cut. One that the cut made there
 * and that holds no commit is not: then the log is as it is to be. (The truncation has seen to it that the
 * segment with the end in it is a .seg, so a .segz above it is beyond.)
 */
function* liesBeyond(
  storage: Storage,
  files: OpenFiles,
  facts: ChainFacts,
  seq: number,
  isPlain: boolean,
  found: LogChain,
): Generator<void, boolean, void> {
  if (!isPlain) return true;
  const path = segmentPath(seq);
  const fd = files.open(path, 'read');
  yield;
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
  const got = storage.read(fd, block, 0, block.length, 0);
  yield;
  const { header } = decodeSegmentBlock(block, path);
  let isBeyond = false;
  if (header !== undefined && got === block.length && header.seq === seq) {
    isBeyond = header.baseOffset >= facts.logEnd!;
    if (header.baseOffset === facts.logEnd && header.reason === REASON_TRUNCATE) {
      const bytes = new FileBytes(storage, fd);
      const salt = saltOf(facts.logId, seq);
      const reader = new SegmentReader(bytes, seq, salt, block.length, storage.size(fd));
      let read = reader.next();
      while (read === READ_MORE || (read === READ_RECORD && reader.header.kind !== RECORD_COMMIT)) {
        yield;
        read = reader.next();
      }
      isBeyond = read === READ_RECORD;
      found.isCut = isBeyond;
    }
    if (isBeyond) found.epochBeyond = Math.max(found.epochBeyond, header.epoch);
  }
  files.close(fd);
  yield;
  return isBeyond;
}

/** Undefined when the file has no sound header, or is gone; above the chain it is then noted as unused. */
function* readHeader(
  storage: Storage,
  files: OpenFiles,
  facts: ChainFacts,
  readOnly: boolean,
  seq: number,
  found: LogChain,
): Generator<void, SegmentHeader | undefined, void> {
  const path = segmentPath(seq);
  if (storage.stat(path) === undefined) return undefined;
  yield;
  const fd = files.open(path, 'read');
  yield;
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES + RECORD_HEADER_BYTES);
  const got = storage.read(fd, block, 0, block.length, 0);
  yield;
  const { header: decoded, damaged } = decodeSegmentBlock(block, path);
  // Cut inside its block: the write that made it was the last one, and failed.
  const header = got < SEGMENT_BLOCK_BYTES ? undefined : decoded;
  if (header === undefined) {
    const zero = isZero(block, 0, Math.min(got, SEGMENT_BLOCK_BYTES));
    const used = !isZero(block, SEGMENT_BLOCK_BYTES, Math.max(0, got - SEGMENT_BLOCK_BYTES));
    found.unused.push({ seq, zero, used, bytes: storage.size(fd) });
    yield;
  }
  files.close(fd);
  yield;
  if (header === undefined) return undefined;
  if (damaged) found.warnings.push(`${path}: the first copy of its header is damaged`);
  if (!readOnly && header.roCompat !== 0) {
    throw new TidemarkError(
      'TIDEMARK_UNSUPPORTED_FORMAT',
      `${path} has features that this version may only read (roCompat ${header.roCompat})`,
      { file: path, field: 'roCompat', got: header.roCompat, known: 0 },
    );
  }
  expectOwn(header, facts.logId, seq, path);
  return header;
}

function missing(seq: number, below: number): TidemarkError {
  return corrupt('MISSING_SEGMENT', `${segmentPath(seq)} is missing (offsets below ${below})`, {
    seq,
    below,
  });
}
