/**
 * Time of day and offsets, by the log: every record says when it was committed. The directory of segments
 * in the view gives the segment, bisection in it a record nearby, reading on from there the very one. Exact
 * for all that the log still has. Called by clients on their own thread; it reads a few blocks and waits.
 */
import { TidemarkError, corrupt } from '../core/base/errors.ts';
import { READ_BAD_PAYLOAD, READ_MORE, READ_RECORD } from '../core/log/reader.ts';
import type { SegmentReader } from '../core/log/reader.ts';
import {
  openSegmentNow,
  positionOfOffset,
  positionOfTime,
  readIdentity,
  runNow,
} from '../core/log/segment-source.ts';
import type { SegmentHeader } from '../core/log/segment.ts';
import type { SegmentSource } from '../core/log/segment-source.ts';
import type { ViewSegment } from '../core/spine/view.ts';
import type { Storage } from '../core/storage/storage.ts';
import type { ActorContext } from './actor.ts';
import { historyLost, notYet } from './reader.ts';
import type { Reader } from './reader.ts';

/** A segment that went while it was looked for is looked for again so often. */
const TRIES_MAX = 5;

type Found = { readonly offset: number; readonly atMs: number };

export class LogTimes {
  readonly #context: ActorContext;
  readonly #reader: Reader;
  #logId: Uint8Array | undefined;

  constructor(context: ActorContext, reader: Reader) {
    this.#context = context;
    this.#reader = reader;
  }

  /**
   * The last offset committed at or before the time. Throws TIDEMARK_HISTORY_LOST when it lies before the log
   * and before the offset that the log follows, of which its first segment still tells the time.
   */
  offsetAt(atMs: number): number {
    return this.#look((segments, upper) => {
      let i = segments.length - 1;
      while (i >= 0 && (segments[i].base >= upper || segments[i].atMs > atMs)) i--;
      if (i < 0) {
        const [first] = segments;
        // No commit is in the log: what it follows is the newest.
        if (first !== undefined && first.base >= upper && tellsBefore(first, atMs))
          return upper - 1;
        throw historyLost(0, first?.base ?? 0, atMs);
      }
      const { base, seq } = segments[i];
      const end = Math.min(segments[i + 1]?.base ?? upper, upper);
      const found = this.#in(seq, (source) => {
        const from = runNow(positionOfTime(source, atMs));
        return lastRecord(source, from, upper, end, ({ committedAtMs }) => committedAtMs <= atMs);
      });
      if (found === undefined) return undefined;
      if (found.offset >= 0) return found.offset;
      // What is before the segment is before the time.
      if (base > segments[0].base || tellsBefore(segments[0], atMs)) return base - 1;
      throw historyLost(0, base, atMs);
    });
  }

  /** When the transaction at the offset was committed, in Unix milliseconds. */
  timeOf(offset: number): number {
    return this.#look((segments, upper) => {
      if (offset >= upper) throw notYet(offset, upper);
      let i = segments.length - 1;
      while (i >= 0 && segments[i].base > offset) i--;
      if (i < 0) throw historyLost(offset, segments[0]?.base ?? 0);
      const found = this.#in(segments[i].seq, (source) => {
        const from = runNow(positionOfOffset(source, offset));
        const end = offset + 1;
        return lastRecord(source, from, upper, end, ({ minTxOffset }) => minTxOffset <= offset);
      });
      if (found === undefined) return undefined;
      if (found.offset >= offset) return found.atMs;
      throw corrupt('GAP', `offset ${offset} is not in its segment`, { offset });
    });
  }

  /** Until what the directory names was there: a segment may go or be compressed meanwhile. */
  #look(find: (segments: readonly ViewSegment[], upper: number) => number | undefined): number {
    for (let tries = 0; ; tries++) {
      const reader = this.#reader;
      reader.slot.enter();
      let segments: readonly ViewSegment[];
      let upper: number;
      try {
        // What is in the file; in a buffered engine readers may be ahead of it.
        upper = Math.min(reader.visible(), this.#context.control.written());
        segments = reader.reloadView().segments();
      } finally {
        reader.slot.leave();
      }
      let found: number | undefined;
      try {
        found = find([...segments, ...this.#unnamed(segments.at(-1)?.seq ?? 0)], upper);
      } catch (error) {
        // What has gone since may have been another file's bytes, or none.
        if (tries === TRIES_MAX || this.#firstSeq() === segments[0]?.seq) throw error;
        continue;
      }
      if (found !== undefined && this.#firstSeq() === segments[0]?.seq) return found;
      if (tries === TRIES_MAX)
        throw corrupt('MISSING_SEGMENT', 'a segment of the log is missing', {});
    }
  }

  /** Number of the oldest segment there is now. A file is not used again while the view names its segment. */
  #firstSeq(): number | undefined {
    const reader = this.#reader;
    reader.slot.enter();
    try {
      return reader.reloadView().segments()[0]?.seq;
    } finally {
      reader.slot.leave();
    }
  }

  /** Segments that the log is in already, and that no view names yet: they themselves say who came before. */
  #unnamed(last: number): ViewSegment[] {
    const { storage, control } = this.#context;
    const segments: ViewSegment[] = [];
    for (let seq = control.logSeq(); seq > last;) {
      this.#logId ??= readIdentity(storage, last);
      const header = this.#logId === undefined ? undefined : headerOf(storage, this.#logId, seq);
      if (header === undefined) {
        // The log is on its way into it, and has not written to it.
        seq--;
        continue;
      }
      segments.unshift({ seq, base: header.baseOffset, atMs: header.baseAtMs });
      seq = header.prevSeq;
    }
    return segments;
  }

  /** Undefined: the segment is not there. */
  #in(seq: number, find: (source: SegmentSource) => Found): Found | undefined {
    const { storage } = this.#context;
    this.#logId ??= readIdentity(storage, seq);
    if (this.#logId === undefined) return undefined;
    const source = openSegmentNow(storage, this.#logId, seq);
    if (source === undefined) return undefined;
    try {
      return find(source);
    } finally {
      source.close();
    }
  }
}

/** The segment says when the offset before it was committed: at or before the time. */
function tellsBefore(segment: ViewSegment, atMs: number): boolean {
  return segment.base > 0 && segment.atMs > 0 && segment.atMs <= atMs;
}

/** Undefined: the segment is not there, or has no header yet. */
function headerOf(storage: Storage, logId: Uint8Array, seq: number): SegmentHeader | undefined {
  try {
    const source = openSegmentNow(storage, logId, seq);
    source?.close();
    return source?.header;
  } catch (error) {
    const isNotYet =
      error instanceof TidemarkError &&
      // Or the header of what the file was before.
      (error.detail['kind'] === 'header' || error.detail['finding'] === 'MISNAMED_SEGMENT');
    if (isNotYet) return undefined;
    throw error;
  }
}

/** Where `reader` has stopped, the commit of `offset` must be; or of another one, if none was met before. */
function damaged(
  source: SegmentSource,
  reader: SegmentReader,
  answer: number,
  offset: number,
): TidemarkError {
  const { seq, path } = source;
  const { position } = reader;
  const isPayload = answer === READ_BAD_PAYLOAD;
  const met = offset > 0 ? offset : source.header.baseOffset;
  const missing = isPayload ? reader.header.minTxOffset : met;
  return corrupt('CHECKSUM', `${path} is damaged at ${position}: offset ${missing} must be there`, {
    file: path,
    seq,
    position,
    offset: missing,
    kind: isPayload ? 'payload' : 'header',
  });
}

/**
 * The last commit below `upper` that passes, from `from` on; all that pass come first. Offset -1: none does.
 * Throws where what is sound ends below `end`: all up to there is in the segment, and may pass or not.
 */
function lastRecord(
  source: SegmentSource,
  from: number,
  upper: number,
  end: number,
  passes: (header: { readonly committedAtMs: number; readonly minTxOffset: number }) => boolean,
): Found {
  const reader = source.reader(from);
  const { header } = reader;
  let offset = -1;
  let atMs = -1;
  for (;;) {
    const answer = reader.next();
    if (answer === READ_MORE) continue;
    if (answer !== READ_RECORD) {
      if (offset + 1 < end) throw damaged(source, reader, answer, offset + 1);
      break;
    }
    if (!passes(header)) break;
    // Met first, it may be one of the log's own, which says what came last, or lie behind `upper`: all
    // that is before it passes too.
    offset = Math.min(header.minTxOffset + header.txCount, upper) - 1;
    atMs = header.committedAtMs;
    if (header.minTxOffset >= upper) break;
  }
  return { offset, atMs };
}
