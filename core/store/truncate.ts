/**
 * Takes a store back to an offset, in place: `truncate`, and `repair`, which does the same where the log is
 * damaged beyond it, or begins the log anew where it ends below what is in parts. First a plan, which changes
 * nothing and says what will vanish; then the work, up to the edit that commits it. The rest, cutting the log by
 * one header, is what every open does when it finds a log end in the manifest (core/log/recovery.ts).
 * Requires the store's lock. Called by the command line.
 *
 *   1  what will be removed gets a second name in quarantine/ (or a copy, where there are no links)
 *   2  a .segz in which the end lies becomes a .seg again: a log is only cut in one
 *   3  ids are reserved; parts with updates at or above E are written anew without them
 *   4  an edit: the new parts, flushed upper min(U, E), log end E. Before it nothing has happened, after it
 *      the store ends at E
 *   5  the next open: a segment header (reason truncate, another epoch), then an edit without log end, then
 *      what nothing names is unlinked
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { le, lt } from '../base/frontier.ts';
import { MiB, partBytesTarget } from '../base/limits.ts';
import { REASON_RECOVERY, SEGMENT_BLOCK_BYTES, encodeSegmentBlock } from '../log/segment.ts';
import { openSegment } from '../log/segment-source.ts';
import { cursorAt, cursorAtBase } from '../log/verify.ts';
import type { LogPosition } from '../log/writer.ts';
import { ManifestStore } from '../spine/manifest-store.ts';
import type { LoadedManifest } from '../spine/manifest-store.ts';
import type { Edit, ManifestState, SpineEdit } from '../spine/manifest.ts';
import { diffSpine } from '../spine/spine.ts';
import {
  LOG_DIR,
  PARTS_DIR,
  QUARANTINE_DIR,
  STORE_DIRS,
  compressedPath,
  partPath,
  quarantinePath,
  segmentPath,
  tmpPath,
} from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { cutSpines, keptFrom } from './cut.ts';
import type { CollectionIdOf } from './cut.ts';
import { readLog, sourceOf } from './log-source.ts';
import { lookAt } from './look.ts';
import type { SegmentFile, StoreLook } from './look.ts';
import type { Machine, Progress } from './report.ts';
import { writeWhole } from './write-whole.ts';

export type CutPlan = {
  readonly manifest: LoadedManifest;
  readonly look: StoreLook;
  /** The newest transaction that stays: X, or the last one of the record that holds it. */
  readonly offset: number;
  /** Where the log stands behind it. */
  readonly at: LogPosition;
  /** First offset that was not there; what vanishes is [offset + 1, upper). */
  readonly upper: number;
  /** Parts lose what is above `offset`. */
  readonly isPartsCut: boolean;
};

export type AnewPlan = {
  readonly manifest: LoadedManifest;
  readonly look: StoreLook;
  /** Where the parts end, and the new log begins. */
  readonly at: LogPosition;
  /** The log held offsets up to this one, not included; the rest of it, up to the parts' end, is lost. */
  readonly logUpper: number;
  /** The highest of the log that was. */
  readonly epoch: number;
};

const FOREVER: number = Number.MAX_SAFE_INTEGER;
const COPY_BYTES: number = 1 * MiB;

// ---------------------------------------------------------------- plans

/** `tolerate`: the log may be damaged beyond X. */
export function* planCut(
  storage: Storage,
  offset: number,
  tolerate: boolean,
  idOf: CollectionIdOf,
  progress: Progress,
): Machine<CutPlan> {
  progress.what = 'plan';
  const look = yield* lookAt(storage);
  const manifest = manifestOf(look);
  const { state } = manifest;
  const log = sourceOf(storage, 'the store', look, state.identity.logId);
  const isPartsCut = lt(offset + 1, state.flushed.upper);
  if (isPartsCut) {
    let since = yield* keptFrom(storage, state.spines, idOf);
    for (const spine of state.spines.values()) since = Math.max(since, spine.since);
    if (lt(offset, since)) throw historyLost(offset, since);
  }
  const bottom = log.files.findLast(
    ({ header }) => header !== undefined && le(header.baseOffset, offset),
  );
  if (bottom?.header === undefined) throw historyLost(offset, state.logStart.offset);
  const cursor = cursorAtBase(bottom.header);
  const sources = [log];
  const until = (_: unknown, { next }: { next: number }): boolean => le(next, offset);
  const problem = yield* readLog(sources, cursor, log, FOREVER, until, progress);
  if (le(cursor.next, offset)) {
    if (problem !== undefined) throw problem;
    throw new TidemarkError('TIDEMARK_NOT_YET', `the log ends at offset ${cursor.next - 1}`, {
      offset,
      nearest: cursor.next - 1,
    });
  }
  const at: LogPosition = {
    upper: cursor.next,
    seq: cursor.seq,
    position: cursor.commitEnd,
    chain: cursor.chain,
    epoch: cursor.epoch,
    atMs: cursor.atMs,
  };
  const beyond = yield* readLog(sources, cursor, log, FOREVER, () => true, progress);
  if (beyond !== undefined && !tolerate) throw beyond;
  const upper = Math.max(cursor.next, state.flushed.upper);
  // The record that holds X may reach up to where the parts end.
  const isStillCut = lt(at.upper, state.flushed.upper);
  return { manifest, look, offset: at.upper - 1, at, upper, isPartsCut: isStillCut };
}

/** For a log that ends below the parts, or cannot be read at all. */
export function* planAnew(storage: Storage, progress: Progress): Machine<AnewPlan> {
  progress.what = 'plan';
  const look = yield* lookAt(storage);
  const manifest = manifestOf(look);
  const { state } = manifest;
  const log = sourceOf(storage, 'the store', look, state.identity.logId);
  let logUpper = state.logStart.offset;
  let { epoch } = state.flushed;
  for (const { header } of log.files) {
    if (header === undefined || lt(logUpper, header.baseOffset)) continue;
    const cursor = cursorAtBase(header);
    yield* readLog([log], cursor, log, FOREVER, () => true, progress);
    logUpper = Math.max(logUpper, cursor.next);
    epoch = Math.max(epoch, header.epoch, cursor.epoch);
  }
  const here = cursorAt(state.flushed);
  const problem = yield* readLog([log], here, log, FOREVER, () => true, progress);
  if (lt(state.flushed.upper, Math.max(here.next, logUpper))) {
    const why = problem === undefined ? '' : `: ${problem.message}`;
    throw new TidemarkError(
      'TIDEMARK_HELD',
      `the log holds offset ${Math.max(here.next, logUpper) - 1}, which is in no part${why}`,
      { offset: Math.max(here.next, logUpper) - 1 },
    );
  }
  return {
    manifest,
    look,
    at: state.flushed,
    logUpper: Math.min(logUpper, state.flushed.upper),
    epoch,
  };
}

function manifestOf(look: StoreLook): LoadedManifest {
  const { manifest, manifestError } = look;
  if (manifest === undefined) throw manifestError;
  const { logEnd } = manifest.state;
  if (logEnd === undefined) return manifest;
  throw new TidemarkError(
    'TIDEMARK_HELD',
    `a truncation to offset ${logEnd - 1} was cut off: open the store once, and it is done`,
    { offset: logEnd - 1 },
  );
}

function historyLost(offset: number, nearest: number): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_HISTORY_LOST',
    `offset ${offset} is not to be had; the nearest that is: ${nearest}`,
    { offset, nearest },
  );
}

// ---------------------------------------------------------------- the cut

/** Returns the names in quarantine/ of what was removed. The store is to be opened next. */
export function* cutStore(storage: Storage, plan: CutPlan, progress: Progress): Machine<string[]> {
  const { manifest, look, at, isPartsCut } = plan;
  const end = at.upper;
  for (const dir of STORE_DIRS) storage.makeDir(dir);
  yield;
  progress.what = 'quarantine';
  const kept = yield* setAside(storage, plan);
  const file = look.segments.find(({ seq, place }) => seq === at.seq && place === 'chain');
  if (file !== undefined && file.codec !== 0) yield* unpack(storage, file, at.seq, look.logId!);

  progress.what = 'parts';
  const store = ManifestStore.resume(storage, manifest);
  try {
    yield;
    const edit: Writable<Edit> = { logEnd: end };
    const state = store.proposed;
    if (isPartsCut) {
      const { counters } = state;
      store.propose({ counters: reserved(state) });
      store.settle(storage);
      yield;
      const cut = yield* cutSpines(storage, state.spines, counters, end, progress);
      storage.syncDir(PARTS_DIR);
      yield;
      const spines: SpineEdit[] = [];
      const removed: number[] = [];
      for (const [collection, before] of state.spines) {
        const after = cut.spines.get(collection);
        if (after === undefined) removed.push(collection);
        else spines.push({ collection, delta: diffSpine(before, after) });
      }
      edit.flushed = at;
      edit.spines = spines;
      edit.spinesRemoved = removed;
    }
    edit.timesRemoved = state.times.filter(([upper]) => lt(end, upper)).map(([upper]) => upper);
    edit.droppedRemoved = state.dropped
      .filter(({ offset }) => le(end, offset))
      .map(({ collection }) => collection);
    edit.archivedRemoved = state.archived
      .filter((segment) => lt(end, segment.end))
      .map(({ seq }) => seq);
    store.propose(edit);
    store.requestRollup();
    store.settle(storage);
  } finally {
    store.close(storage);
  }
  yield;
  return kept;
}

type Writable<T> = { -readonly [K in keyof T]: T[K] };

/** Ids for everything that the cut may make: files that it leaves when it dies are orphans then. */
function reserved({ counters, spines }: ManifestState): ManifestState['counters'] {
  let files = 0;
  let ids = 0;
  for (const { hollows } of spines.values()) {
    for (const { hollow } of hollows) {
      ids += 4 + 2 * hollow.runs.length;
      for (const { parts } of hollow.runs) {
        const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
        files += Math.ceil(bytes / (partBytesTarget / 2)) + 2;
      }
    }
  }
  const { bid, run, file } = counters;
  return { bid: bid + ids, run: run + ids, file: file + files };
}

/** Second names, or copies, of all that will be removed. */
function* setAside(storage: Storage, plan: CutPlan): Machine<string[]> {
  const { look, manifest, at, isPartsCut } = plan;
  const names: string[] = [];
  for (const file of look.segments) {
    if (file.place !== 'chain' || file.header === undefined) continue;
    if (file.seq > at.seq || (file.seq === at.seq && file.codec !== 0)) {
      names.push(yield* keepWhole(storage, file.path));
    } else if (file.seq === at.seq) {
      const name = quarantinePath(`${file.seq}-${at.position}.cut`);
      yield* copyRange(storage, file.path, at.position, name);
      names.push(name);
    }
  }
  if (isPartsCut) {
    const files = new Set<number>();
    for (const spine of manifest.state.spines.values()) {
      for (const { hollow } of spine.hollows) {
        for (const { parts } of hollow.runs) {
          if (parts.every(({ maxT }) => lt(maxT, at.upper))) continue;
          for (const part of parts) files.add(part.file);
        }
      }
    }
    for (const file of files) names.push(yield* keepWhole(storage, partPath(file)));
  }
  storage.syncDir(QUARANTINE_DIR);
  yield;
  return names;
}

function* keepWhole(storage: Storage, path: string): Machine<string> {
  const name = quarantinePath(path.slice(path.lastIndexOf('/') + 1));
  storage.unlink(name);
  yield;
  try {
    storage.link(path, name);
    yield;
  } catch (error) {
    const { code } = error as { code?: unknown };
    if (code === 'EIO' || code === 'ENOENT') throw error;
    yield* copyRange(storage, path, 0, name);
  }
  return name;
}

/** What lies behind `from`, without the zeros that nobody has written over yet. */
function* copyRange(storage: Storage, path: string, from: number, to: string): Machine<void> {
  storage.unlink(to);
  const source = storage.open(path, 'read');
  try {
    const target = storage.open(to, 'create');
    try {
      const chunk = new Uint8Array(COPY_BYTES);
      for (let at = from; ;) {
        const got = storage.read(source, chunk, 0, chunk.length, at);
        yield;
        if (got > 0) writeWhole(storage, target, chunk, got, at - from, to);
        yield;
        at += got;
        if (got < chunk.length) break;
      }
      storage.sync(target);
    } finally {
      storage.close(target);
    }
  } finally {
    storage.close(source);
  }
  yield;
}

/** A compressed segment as it was written. The same records at the same places, whichever is found. */
function* unpack(
  storage: Storage,
  file: SegmentFile,
  seq: number,
  logId: Uint8Array,
): Machine<void> {
  const source = yield* openSegment(storage, logId, seq);
  if (source === undefined) throw corrupt('MISSING_SEGMENT', `${file.path} is missing`, { seq });
  const tmp = tmpPath('unpack');
  storage.unlink(tmp);
  try {
    const fd = storage.open(tmp, 'create');
    try {
      const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
      encodeSegmentBlock(block, 0, source.header);
      writeWhole(storage, fd, block, block.length, 0, tmp);
      const chunk = new Uint8Array(COPY_BYTES);
      for (let at = SEGMENT_BLOCK_BYTES; at < source.end;) {
        const wanted = Math.min(chunk.length, source.end - at);
        const got = source.bytes.read(chunk, 0, wanted, at);
        if (got !== wanted) {
          throw corrupt('CHECKSUM', `${file.path} ends before its records`, { seq, position: at });
        }
        writeWhole(storage, fd, chunk, got, at, tmp);
        yield;
        at += got;
      }
      storage.sync(fd);
    } finally {
      storage.close(fd);
    }
  } finally {
    source.close();
  }
  storage.rename(tmp, segmentPath(seq));
  storage.syncDir(LOG_DIR);
  yield;
  storage.unlink(compressedPath(seq));
  storage.syncDir(LOG_DIR);
  yield;
}

// ---------------------------------------------------------------- a log begun anew

/**
 * Begins the log where the parts end. The segment comes first: before the edit the store is as unreadable as
 * it was, after it the log is that segment, and what was there is in quarantine/.
 */
export function* beginAnew(
  storage: Storage,
  plan: AnewPlan,
  progress: Progress,
): Machine<string[]> {
  const { manifest, look, at } = plan;
  const { logId } = manifest.state.identity;
  for (const dir of STORE_DIRS) storage.makeDir(dir);
  yield;
  progress.what = 'quarantine';
  const names: string[] = [];
  let seq = at.seq;
  let plannedBytes = COPY_BYTES;
  for (const file of look.segments) {
    seq = Math.max(seq, file.seq);
    plannedBytes = file.header?.plannedBytes ?? plannedBytes;
    if (!file.blank) names.push(yield* keepWhole(storage, file.path));
  }
  storage.syncDir(QUARANTINE_DIR);
  yield;
  seq++;
  progress.what = 'log';
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
  encodeSegmentBlock(block, 0, {
    roCompat: 0,
    compat: 0,
    logId,
    seq,
    baseOffset: at.upper,
    prevSeq: 0,
    prevEndPos: 0,
    prevChain: at.chain,
    epoch: plan.epoch + 1,
    plannedBytes,
    baseAtMs: at.atMs,
    reason: REASON_RECOVERY,
  });
  const fd = storage.open(segmentPath(seq), 'create');
  try {
    writeWhole(storage, fd, block, block.length, 0, segmentPath(seq));
    yield;
    storage.sync(fd);
  } finally {
    storage.close(fd);
  }
  storage.syncDir(LOG_DIR);
  yield;
  const store = ManifestStore.resume(storage, manifest);
  try {
    store.propose({
      logStart: { seq, offset: at.upper, atMs: at.atMs },
      flushed: { ...at, seq, position: SEGMENT_BLOCK_BYTES },
    });
    store.requestRollup();
    store.settle(storage);
  } finally {
    store.close(storage);
  }
  yield;
  return names;
}
