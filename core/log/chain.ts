/**
 * Finds the segments of a log: from the highest one with a sound header backwards by prevSeq. A sound
 * header proves the segment before it durable up to prevEndPos, so nothing of the chain may be missing.
 * Part of recovery, on its thread; one storage call between two yields.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { LOG_DIR, numberOf, segmentPath } from '../storage/names.ts';
import type { OpenHow, Storage } from '../storage/storage.ts';
import { isZero } from './reader.ts';
import { SEGMENT_BLOCK_BYTES, decodeSegmentBlock } from './segment.ts';
import type { SegmentHeader } from './segment.ts';

export type ChainFacts = {
  readonly logId: Uint8Array;
  /** Log start: what lies below was pruned, not lost. */
  readonly firstSeq: number;
  readonly firstOffset: number;
};

/** A file above the chain without a sound header; `zero`: its header block is blank. */
export type UnusedSegment = {
  readonly seq: number;
  readonly zero: boolean;
  readonly bytes: number;
};

export type LogChain = {
  /** Oldest first. */
  headers: SegmentHeader[];
  /** Highest first. */
  unused: UnusedSegment[];
  /** Files beside and below the chain. */
  orphans: string[];
  warnings: string[];
  highestSeq: number;
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

/** Reads headers from the highest number down until the chain is whole. */
export function* findChain(
  storage: Storage,
  files: OpenFiles,
  facts: ChainFacts,
  readOnly: boolean,
): Generator<void, LogChain, void> {
  const { firstSeq, firstOffset } = facts;
  const found: LogChain = { headers: [], unused: [], orphans: [], warnings: [], highestSeq: 0 };
  const present = new Set<number>();
  for (const name of storage.list(LOG_DIR)) {
    const seq = numberOf(name, '.seg');
    if (seq !== undefined) {
      present.add(seq);
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

  const descending = [...present].toSorted((a, b) => b - a);
  let top: SegmentHeader | undefined;
  for (const seq of descending) {
    if (seq < firstSeq) break;
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
    if (!present.has(prevSeq)) throw missing(prevSeq, baseOffset);
    const header = yield* readHeader(storage, files, facts, readOnly, prevSeq, found);
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
  for (const seq of present) {
    if (seq < top.seq && !linked.has(seq)) found.orphans.push(segmentPath(seq));
  }
  return found;
}

/** Undefined when the file has no sound header; above the chain it is then noted as unused. */
function* readHeader(
  storage: Storage,
  files: OpenFiles,
  facts: ChainFacts,
  readOnly: boolean,
  seq: number,
  found: LogChain,
): Generator<void, SegmentHeader | undefined, void> {
  const path = segmentPath(seq);
  const fd = files.open(path, 'read');
  yield;
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
  const got = storage.read(fd, block, 0, block.length, 0);
  yield;
  const { header: decoded, damaged } = decodeSegmentBlock(block, path);
  // Cut inside its block: the write that made it was the last one, and failed.
  const header = got < block.length ? undefined : decoded;
  if (header === undefined) {
    found.unused.push({ seq, zero: isZero(block, 0, got), bytes: storage.size(fd) });
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
  if (Buffer.compare(header.logId, facts.logId) !== 0) {
    throw corrupt('FOREIGN_SEGMENT', `${path} belongs to another log`, { seq, position: 0 });
  }
  if (header.seq !== seq) {
    const detail = { seq, position: 0, got: header.seq };
    throw corrupt('MISNAMED_SEGMENT', `${path} is segment ${header.seq}`, detail);
  }
  return header;
}

function missing(seq: number, below: number): TidemarkError {
  return corrupt('MISSING_SEGMENT', `${segmentPath(seq)} is missing (offsets below ${below})`, {
    seq,
    below,
  });
}
