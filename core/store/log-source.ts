/**
 * The commits of a log, from a place on, in order, out of whatever holds them: the segments of a store, of
 * a backup, of both. Nothing is handed on that does not follow what was handed on before it, record for
 * record (offset, epoch, time, content chain), so logs of other histories fall out by themselves. Called by
 * whoever makes a new store or looks for a place in an old one: backup, restore, truncate.
 */
import type { TidemarkError } from '../base/errors.ts';
import { RECORD_COMMIT } from '../log/record.ts';
import type { SegmentReader } from '../log/reader.ts';
import { READ_END, READ_RECORD, READ_ZERO } from '../log/reader.ts';
import { admit, cursorAtBase } from '../log/verify.ts';
import type { Cursor } from '../log/verify.ts';
import type { Storage } from '../storage/storage.ts';
import { damagedAt, walkSegment } from './log-walk.ts';
import { chainOf, readPackedAt, readPlainAt } from './look.ts';
import type { SegmentFile, StoreLook } from './look.ts';
import type { Machine, Progress } from './report.ts';

/** Some segments of a log that lie together. */
export type LogSource = {
  readonly storage: Storage;
  /** As the user named it. */
  readonly name: string;
  readonly logId: Uint8Array;
  /** Oldest first. */
  readonly files: readonly SegmentFile[];
};

export function sourceOf(
  storage: Storage,
  name: string,
  look: StoreLook,
  logId: Uint8Array,
): LogSource {
  return { storage, name, logId, files: chainOf(look) };
}

/** Takes one commit, valid during the call; `cursor` stands behind it. False: enough. */
export type OnCommit = (reader: SegmentReader, cursor: Cursor) => boolean;

/**
 * Hands on the commits from where `cursor` stands, which moves along, and stops at `upper` at the latest.
 * `home` is the source in which the cursor's segment and position are meant, if in any. Returns why it stopped short: undefined when it did not, or when the log simply ends there.
 */
export function* readLog(
  sources: readonly LogSource[],
  cursor: Cursor,
  home: LogSource | undefined,
  upper: number,
  onCommit: OnCommit,
  progress?: Progress,
): Machine<TidemarkError | undefined> {
  let problem: TidemarkError | undefined;
  let here = home;
  const state = { enough: false };
  const take: OnCommit = (reader, at) => {
    state.enough = !onCommit(reader, at) || at.next >= upper;
    return !state.enough;
  };
  while (cursor.next < upper && !state.enough) {
    const before = cursor.next;
    problem = undefined;
    for (const { source, file } of candidates(sources, before)) {
      const found = yield* readFrom(source, file, cursor, source === here, take, progress);
      if (cursor.next > before) here = source;
      problem ??= found;
      if (cursor.next > before || state.enough) break;
    }
    if (cursor.next === before) break;
  }
  return cursor.next >= upper || state.enough ? undefined : problem;
}

/** Segments that may hold the commit at `offset`. */
function candidates(
  sources: readonly LogSource[],
  offset: number,
): { source: LogSource; file: SegmentFile }[] {
  const found = [];
  for (const source of sources) {
    for (const file of source.files) {
      const base = file.header?.baseOffset;
      if (base === undefined || base > offset) continue;
      if (file.successor !== undefined && file.successor.baseOffset <= offset) continue;
      found.push({ source, file });
    }
  }
  return found;
}

/** Reads one segment from where `cursor` stands; it stays there when the segment is of another history. */
function* readFrom(
  source: LogSource,
  file: SegmentFile,
  cursor: Cursor,
  isHome: boolean,
  onCommit: OnCommit,
  progress: Progress | undefined,
): Machine<TidemarkError | undefined> {
  const isHere = isHome && cursor.seq === file.seq && cursor.commitEnd <= file.end;
  const at = isHere ? { ...cursor } : cursorAtBase(file.header!);
  const from = at.commitEnd;
  let isOther = false;
  const walk = yield* walkSegment(
    source.storage,
    source.logId,
    file,
    at,
    from,
    (reader, now) => {
      const { header } = reader;
      if (header.kind !== RECORD_COMMIT || header.endOffset <= cursor.next) return true;
      isOther = header.minTxOffset !== cursor.next || header.prevChain !== cursor.chain;
      if (isOther) return false;
      admit(header, cursor);
      cursor.seq = now.seq;
      cursor.commitEnd = now.commitEnd;
      return onCommit(reader, cursor);
    },
    progress,
  );
  if (isOther || walk.stopped === READ_RECORD) return undefined;
  if (walk.error !== undefined) return walk.error;
  const isEnd =
    file.successor === undefined ? walk.tail.claim <= at.next : walk.position === file.end;
  if (isEnd && (file.successor === undefined || walk.stopped === READ_END)) return undefined;
  if (walk.stopped === READ_ZERO && walk.tail.bytes === 0 && file.successor === undefined) {
    return undefined;
  }
  return damagedAt(file, walk, at.next, Math.max(walk.tail.claim, file.header!.baseOffset));
}

/** Segments that an archive hook has put away, in a directory of their own, under names of its choice. */
export function* archiveAt(storage: Storage, name: string): Machine<LogSource[]> {
  const byLog = new Map<string, SegmentFile[]>();
  for (const entry of storage.list('')) {
    const isPlain = entry.endsWith('.seg');
    if (!isPlain && !entry.endsWith('.segz')) continue;
    const file = isPlain ? readPlainAt(storage, entry) : readPackedAt(storage, entry);
    yield;
    if (file?.header === undefined) continue;
    const key = Buffer.from(file.header.logId).toString('hex');
    byLog.set(key, [...(byLog.get(key) ?? []), file]);
  }
  return [...byLog.values()].map((files) => {
    const sorted = files.toSorted((a, b) => a.seq - b.seq);
    sorted.forEach((file, i) => {
      const after = sorted[i + 1]?.header;
      if (after?.prevSeq !== file.seq) return;
      file.successor = after;
      file.end = after.prevEndPos;
    });
    return { storage, name, logId: sorted[0].header!.logId, files: sorted };
  });
}
