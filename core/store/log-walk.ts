/**
 * Reads the records of one segment for the tools, from a place on, as far as they are sound, and says
 * what stopped it. Beside a live engine it may stop in the middle of a write: a place that looks bad is
 * read again when later records prove that more must be there, for by then it has been written.
 * Called by inspect, verify, dump and tail.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { compressedPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import {
  FileBytes,
  READ_BAD_HEADER,
  READ_BAD_PAYLOAD,
  READ_CUT,
  READ_END,
  READ_MORE,
  READ_RECORD,
  READ_ZERO,
  SegmentReader,
  TailScan,
} from '../log/reader.ts';
import type { SegmentBytes } from '../log/reader.ts';
import {
  RECORD_CLEAN,
  RECORD_COMMIT,
  RECORD_HEADER_BYTES,
  RECORD_SEAL,
  RecordHeader,
} from '../log/record.ts';
import { COMPAT_RECYCLED, saltOf } from '../log/segment.ts';
import { openIfThere, openPacked } from '../log/segment-source.ts';
import type { PackedBytes } from '../log/segment-source.ts';
import { admit, check } from '../log/verify.ts';
import type { Cursor } from '../log/verify.ts';
import type { SegmentFile } from './look.ts';
import type { Machine, Progress } from './report.ts';

export type SegmentWalk = {
  /** End of what is sound. */
  position: number;
  /** READ_* that stopped it. */
  stopped: number;
  /** A sound record that is not the next one, or contradicts itself; it stands at `position`. */
  error: TidemarkError | undefined;
  records: number;
  commits: number;
  /** Highest claim of its records: offsets below were durable. */
  claim: number;
  clean: boolean;
  sealed: boolean;
  /** What lies behind `position`; only of a segment without successor, and after damage. */
  tail: {
    readonly bytes: number;
    readonly headers: number;
    readonly claim: number;
    readonly firstAt: number;
  };
};

const NO_TAIL: SegmentWalk['tail'] = { bytes: 0, headers: 0, claim: 0, firstAt: -1 };

/** Sees each sound record; the reader's fields are valid during the call. False stops the walk. */
export type OnRecord = (reader: SegmentReader, cursor: Cursor) => boolean;

/**
 * Moves `cursor`, which stands at `from`, over the records of the segment. `progress` counts bytes read.
 */
export function* walkSegment(
  storage: Storage,
  logId: Uint8Array,
  file: SegmentFile,
  cursor: Cursor,
  from: number,
  onRecord: OnRecord,
  progress?: Progress,
): Machine<SegmentWalk> {
  const walk: SegmentWalk = {
    position: from,
    stopped: READ_END,
    error: undefined,
    records: 0,
    commits: 0,
    claim: 0,
    clean: false,
    sealed: false,
    tail: NO_TAIL,
  };
  const { fd, path, isPacked } = openFile(storage, file);
  try {
    yield;
    const salt = saltOf(logId, file.seq);
    const isLast = file.successor === undefined;
    const isRecycled = ((file.header?.compat ?? 0) & COMPAT_RECYCLED) !== 0;
    const end = isLast && !isPacked ? Math.max(file.end, storage.size(fd)) : file.end;
    let source: SegmentBytes = new FileBytes(storage, fd);
    if (isPacked) {
      try {
        source = (yield* openPacked(storage, storage, fd, path)).bytes;
      } catch (error) {
        if (!(error instanceof TidemarkError)) throw error;
        walk.error = error;
        return walk;
      }
    }
    let again = -1;
    for (;;) {
      const reader = new SegmentReader(source, file.seq, salt, walk.position, end);
      yield* read(reader, cursor, walk, isLast, onRecord, progress);
      if (walk.error !== undefined || walk.stopped === READ_RECORD) break;
      if (!isLast && walk.stopped === READ_END && walk.position === end) break;
      const tail = new TailScan(source, salt, walk.position, end, isRecycled);
      let more = true;
      while (more) {
        more = tail.step();
        yield;
      }
      const bytes = tail.contentEnd - walk.position;
      walk.tail = { bytes, headers: tail.headers, claim: tail.claim, firstAt: tail.firstAt };
      // Nothing of this segment: as good as the zeros that stand there otherwise.
      if (isRecycled && bytes === 0 && walk.stopped === READ_BAD_HEADER) walk.stopped = READ_ZERO;
      // What proves it to have been written was written after it: look once more before calling it bad.
      if (tail.claim <= cursor.next || again === walk.position || walk.clean) break;
      again = walk.position;
    }
  } finally {
    storage.close(fd);
  }
  return walk;
}

function* read(
  reader: SegmentReader,
  cursor: Cursor,
  walk: SegmentWalk,
  isLast: boolean,
  onRecord: OnRecord,
  progress: Progress | undefined,
): Machine<void> {
  for (;;) {
    const before = reader.validBytes;
    let found = READ_MORE;
    try {
      found = reader.next();
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      walk.error = error;
      walk.position = reader.position;
      return;
    }
    if (progress !== undefined) progress.doneBytes += Math.max(0, reader.validBytes - before);
    if (found === READ_MORE) {
      yield;
      continue;
    }
    walk.stopped = found;
    if (found !== READ_RECORD) {
      walk.position = reader.position;
      return;
    }
    const { header } = reader;
    try {
      admit(header, cursor);
      check(reader, cursor);
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      walk.error = error;
      walk.position = header.position;
      return;
    }
    walk.position = reader.validBytes;
    walk.records++;
    if (header.kind === RECORD_COMMIT) walk.commits++;
    walk.claim = Math.max(walk.claim, header.claim);
    walk.clean = header.kind === RECORD_CLEAN;
    walk.sealed = header.kind === RECORD_SEAL;
    if (!onRecord(reader, cursor)) return;
    if (walk.clean && isLast) {
      walk.stopped = READ_END;
      return;
    }
  }
}

/** The file as it was seen, or what a compress job has put in its place since. */
function openFile(
  storage: Storage,
  file: SegmentFile,
): { readonly fd: number; readonly path: string; readonly isPacked: boolean } {
  const { path, seq, codec } = file;
  const fd = openIfThere(storage, path);
  if (fd !== undefined) return { fd, path, isPacked: codec !== 0 };
  const other = compressedPath(seq);
  const packed = codec === 0 ? openIfThere(storage, other) : undefined;
  if (packed !== undefined) return { fd: packed, path: other, isPacked: true };
  throw corrupt('MISSING_SEGMENT', `${path} is missing`, { file: path, seq });
}

/** The first sound record header at or behind `from`, whose payload may be damaged, and a cursor that admits it. */
export function* nextSound(
  storage: Storage,
  logId: Uint8Array,
  file: SegmentFile,
  from: number,
): Machine<{ readonly position: number; readonly cursor: Cursor } | undefined> {
  const salt = saltOf(logId, file.seq);
  const { fd, path, isPacked } = openFile(storage, file);
  try {
    yield;
    const bytes = new Uint8Array(RECORD_HEADER_BYTES);
    let position: number;
    if (isPacked) {
      position = yield* nextFrame(storage, fd, path, from, bytes);
    } else {
      const tail = new TailScan(new FileBytes(storage, fd), salt, from, file.end, true);
      while (tail.firstAt < 0 && tail.step()) yield;
      position = tail.firstAt;
      if (position >= 0) storage.read(fd, bytes, 0, bytes.length, position);
      yield;
    }
    if (position < 0) return undefined;
    const header = new RecordHeader();
    header.decode(bytes, 0, file.seq, position);
    return {
      position,
      cursor: {
        next: header.minTxOffset,
        chain: header.prevChain,
        epoch: header.epoch,
        atMs: header.committedAtMs,
        seq: file.seq,
        commitEnd: position,
      },
    };
  } finally {
    storage.close(fd);
  }
}

/** Position of the first sound frame behind `from`, whose first record's header it reads; -1: none. */
function* nextFrame(
  storage: Storage,
  fd: number,
  path: string,
  from: number,
  bytes: Uint8Array,
): Machine<number> {
  let packed: PackedBytes | undefined;
  try {
    ({ packed } = yield* openPacked(storage, storage, fd, path));
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
  }
  for (const { rawPosition } of packed?.frames ?? []) {
    if (rawPosition < from) continue;
    try {
      packed?.read(bytes, 0, bytes.length, rawPosition);
      return rawPosition;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
    }
    yield;
  }
  return -1;
}

/** The error for a segment that holds less than it must. */
export function damagedAt(
  file: SegmentFile,
  walk: SegmentWalk,
  offset: number,
  witness: number,
): TidemarkError {
  const { position, stopped, tail } = walk;
  const kind =
    stopped === READ_BAD_PAYLOAD
      ? 'payload'
      : stopped === READ_CUT
        ? 'length'
        : stopped === READ_ZERO
          ? 'zeros'
          : stopped === READ_END
            ? 'end of file'
            : 'header';
  const beyond = tail.headers > 0 ? `; ${tail.headers} sound records lie beyond` : '';
  return corrupt(
    'CHECKSUM',
    `damaged at ${position} (${kind}): offset ${offset} was durable (witness ${witness})${beyond}`,
    { file: file.path, offset, seq: file.seq, position, kind, witness, records: tail.headers },
  );
}
