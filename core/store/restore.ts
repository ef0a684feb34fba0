/**
 * Makes a store as it was at an offset or a time, in a new directory, out of a store, backups of it, and what
 * else there is of its log. First a plan, which changes nothing and reads all of the log that will be
 * needed; then the store, all or nothing. Called by the command line.
 *
 *   a source gives X when                                       by
 *   its flushed upper U <= X + 1 and the log reaches from U     its parts, and the log from U to X
 *     to X, wherever it lies
 *   U > X + 1, and every collection's since <= X                its parts, without what is newer than X
 *
 * The first source, which is the store itself where there still is one, is asked first, then the newest.
 * A record of the log holds several transactions and is never cut: E, the first offset left out, is the
 * record's end where X lies in the log, else X + 1. The new store's log begins where the source's does, if
 * it can be read from there, else at U; what is written to it afterwards has another epoch: another history.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { le, lt } from '../base/frontier.ts';
import { segmentBytesDefault } from '../base/limits.ts';
import { cursorAt, cursorAtBase } from '../log/verify.ts';
import type { Cursor } from '../log/verify.ts';
import type { LogPosition } from '../log/writer.ts';
import { filesOf } from '../spine/manifest.ts';
import type { ManifestState } from '../spine/manifest.ts';
import { partPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { whileMoving } from './again.ts';
import { cutSpines, keptFrom, neededBelow } from './cut.ts';
import type { CollectionIdOf } from './cut.ts';
import { readLog, sourceOf } from './log-source.ts';
import type { LogSource } from './log-source.ts';
import { lookAt } from './look.ts';
import { NewStore } from './new-store.ts';
import type { Place } from './new-store.ts';
import type { Machine, Progress } from './report.ts';

/** A store or a backup, as the user named it. */
export type RestoreFrom = { readonly storage: Storage; readonly name: string };

export type RestoreGoal =
  | { readonly offset: number }
  /** The last transaction committed at or before this time. */
  | { readonly atMs: number };

export type RestorePlan = {
  readonly from: RestoreFrom;
  readonly state: ManifestState;
  /** The newest transaction of the new store. */
  readonly offset: number;
  /** E. */
  readonly end: number;
  /** Parts lose what is at or above E. */
  readonly isCut: boolean;
  /** Where the new log begins. */
  readonly start: LogPosition;
  readonly epoch: number;
  readonly seq: number;
  readonly segmentBytes: number;
  readonly logs: readonly LogSource[];
  /** Whose segment and position `start` names. */
  readonly home: LogSource;
};

export type RestoreResult = {
  readonly offset: number;
  readonly bytes: number;
};

type Source = RestoreFrom & {
  readonly state: ManifestState;
  /** The lowest offset that its parts can show. */
  readonly since: number;
  readonly log: LogSource;
};

const FOREVER: number = Number.MAX_SAFE_INTEGER;

// ---------------------------------------------------------------- the plan

export function* planRestore(
  from: readonly RestoreFrom[],
  archives: readonly LogSource[],
  goal: RestoreGoal,
  idOf: CollectionIdOf,
  progress: Progress,
): Machine<RestorePlan> {
  progress.what = 'plan';
  const sources: Source[] = [];
  const logs: LogSource[] = [];
  let whyNot: unknown;
  for (const one of from) {
    const look = yield* lookAt(one.storage);
    if (look.logId !== undefined) logs.push(sourceOf(one.storage, one.name, look, look.logId));
    // What has lost its manifest may still have its log.
    if (look.manifest === undefined) whyNot ??= look.manifestError;
    else sources.push(yield* sourceFrom(one, look.manifest.state, logs.at(-1)!, idOf));
  }
  if (sources.length === 0) throw whyNot;
  const [first, ...others] = sources;
  const isOwn = ({ logId }: LogSource): boolean =>
    Buffer.compare(logId, first.state.identity.logId) === 0;
  for (const log of logs) {
    if (isOwn(log)) continue;
    const { name } = log;
    throw corrupt('FOREIGN_STORE', `${name} is no copy of ${first.name}`, { file: name });
  }
  // One archive may serve several stores.
  logs.push(...archives.filter(isOwn));
  const byAge = [
    first,
    ...others.toSorted((a, b) => b.state.flushed.upper - a.state.flushed.upper),
  ];
  const offset = 'offset' in goal ? goal.offset : yield* offsetAt(byAge, logs, goal.atMs, progress);
  const problems: TidemarkError[] = [];
  for (const source of byAge) {
    const plan = yield* planFrom(source, logs, offset, problems, progress);
    if (plan !== undefined) return { ...withEpoch(plan, sources, logs), home: source.log };
  }
  throw yield* historyLost(sources, logs, offset, problems, progress);
}

function* sourceFrom(
  { storage, name }: RestoreFrom,
  state: ManifestState,
  log: LogSource,
  idOf: CollectionIdOf,
): Machine<Source> {
  if (state.logEnd !== undefined) {
    throw new TidemarkError(
      'TIDEMARK_HELD',
      `a truncation of ${name} to offset ${state.logEnd - 1} was cut off: open it once, or truncate it again`,
      { directory: name },
    );
  }
  let since = yield* keptFrom(storage, state.spines, idOf);
  for (const spine of state.spines.values()) since = Math.max(since, spine.since);
  return { storage, name, state, since, log };
}

/** How this source gives X, or undefined. */
function* planFrom(
  source: Source,
  logs: readonly LogSource[],
  offset: number,
  problems: TidemarkError[],
  progress: Progress,
): Machine<Omit<RestorePlan, 'epoch' | 'seq' | 'home'> | undefined> {
  const { state, log, since } = source;
  const { flushed } = state;
  const isCut = lt(offset + 1, flushed.upper);
  if (isCut && lt(offset, since)) return undefined;
  const file = log.files.find(({ seq }) => seq === flushed.seq) ?? log.files.at(-1);
  const segmentBytes = file?.header?.plannedBytes ?? segmentBytesDefault;
  const plan = { from: source, state, isCut, segmentBytes, logs };

  // The log as far back as it can be read: whoever follows changes wants it.
  const bottom = log.files[0]?.header;
  if (bottom !== undefined && le(bottom.baseOffset, Math.min(flushed.upper, offset))) {
    const cursor = cursorAtBase(bottom);
    const start = positionOf(cursor);
    let isOther = false;
    const problem = yield* readLog(
      logs,
      cursor,
      log,
      FOREVER,
      (_, { next, chain }) => {
        if (next === flushed.upper) isOther = chain !== flushed.chain;
        return !isOther && le(next, offset);
      },
      progress,
    );
    noteProblem(problem, problems);
    if (!isOther && lt(offset, cursor.next)) {
      return { ...plan, start, offset: cursor.next - 1, end: cursor.next };
    }
  }
  if (isCut) {
    // No record of the log holds X: the new one begins behind it.
    const times = state.times.filter(([upper]) => le(upper, offset + 1));
    const start: LogPosition = {
      upper: offset + 1,
      seq: 0,
      position: 0,
      chain: 0,
      epoch: flushed.epoch,
      atMs: times.at(-1)?.[1] ?? 0,
    };
    return { ...plan, start, offset, end: offset + 1 };
  }
  const cursor = cursorAt(flushed);
  const until = (_: unknown, { next }: Cursor): boolean => le(next, offset);
  if (le(cursor.next, offset)) {
    noteProblem(yield* readLog(logs, cursor, log, FOREVER, until, progress), problems);
  }
  if (le(cursor.next, offset)) return undefined;
  return { ...plan, start: flushed, offset: cursor.next - 1, end: cursor.next };
}

function withEpoch(
  plan: Omit<RestorePlan, 'epoch' | 'seq' | 'home'>,
  sources: readonly Source[],
  logs: readonly LogSource[],
): Omit<RestorePlan, 'home'> {
  let epoch = 0;
  let seq = 1;
  for (const { files } of logs) {
    for (const file of files) {
      epoch = Math.max(epoch, file.header?.epoch ?? 0);
      seq = Math.max(seq, file.seq);
    }
  }
  for (const { state } of sources) {
    epoch = Math.max(epoch, state.flushed.epoch);
    seq = Math.max(seq, state.flushed.seq);
    for (const archived of state.archived) seq = Math.max(seq, archived.seq);
  }
  return { ...plan, epoch: epoch + 1, seq: seq + 1 };
}

function positionOf({ next, seq, commitEnd, chain, epoch, atMs }: Cursor): LogPosition {
  return { upper: next, seq, position: commitEnd, chain, epoch, atMs };
}

function noteProblem(problem: TidemarkError | undefined, problems: TidemarkError[]): void {
  if (problem !== undefined) problems.push(problem);
}

function* offsetAt(
  sources: readonly Source[],
  logs: readonly LogSource[],
  atMs: number,
  progress: Progress,
): Machine<number> {
  const offset = yield* lastBefore(sources, logs, atMs, progress);
  if (offset >= 0) return offset;
  throw new TidemarkError('TIDEMARK_HISTORY_LOST', 'nothing is known of what was there then', {
    atMs,
  });
}

/** The last offset that was committed at or before the time; -1: none that is known. */
function* lastBefore(
  sources: readonly Source[],
  logs: readonly LogSource[],
  atMs: number,
  progress: Progress,
): Machine<number> {
  const search = function* (cursor: Cursor, home: LogSource): Machine<number> {
    let found = cursor.next - 1;
    yield* readLog(
      logs,
      cursor,
      home,
      FOREVER,
      (reader, { next }) => {
        if (reader.header.committedAtMs > atMs) return false;
        found = next - 1;
        return true;
      },
      progress,
    );
    return found;
  };
  // From the newest checkpoint at or before the time, else from as far back as the log goes.
  const before = sources
    .filter(({ state }) => state.flushed.atMs <= atMs)
    .toSorted((a, b) => b.state.flushed.upper - a.state.flushed.upper);
  if (before.length > 0) return yield* search(cursorAt(before[0].state.flushed), before[0].log);
  for (const { log } of sources) {
    const bottom = log.files[0]?.header;
    if (bottom !== undefined && bottom.baseAtMs <= atMs) {
      return yield* search(cursorAtBase(bottom), log);
    }
  }
  let found = -1;
  for (const { state } of sources) {
    for (const [upper, ms] of state.times) if (ms <= atMs) found = Math.max(found, upper - 1);
  }
  return found;
}

/** Says which X there is next to the one that is lost. */
function* historyLost(
  sources: readonly Source[],
  logs: readonly LogSource[],
  offset: number,
  problems: readonly TidemarkError[],
  progress: Progress,
): Machine<TidemarkError> {
  let nearest: number | undefined;
  for (const { state, since, log } of sources) {
    const cursor = cursorAt(state.flushed);
    yield* readLog(logs, cursor, log, FOREVER, () => true, progress);
    const last = cursor.next - 1;
    const lowest = Math.min(since, state.flushed.upper - 1);
    if (last < 0) continue;
    const near = Math.min(Math.max(offset, lowest), last);
    if (nearest === undefined || Math.abs(near - offset) < Math.abs(nearest - offset))
      nearest = near;
  }
  const text =
    nearest === undefined ? 'and nothing else is there either' : `the nearest that is: ${nearest}`;
  const why = problems.length === 0 ? '' : ` (${problems[0].message})`;
  return new TidemarkError(
    'TIDEMARK_HISTORY_LOST',
    `offset ${offset} is not to be had; ${text}${why}`,
    { offset, ...(nearest === undefined ? {} : { nearest }) },
  );
}

/** Plan and store; where engines run beside the sources, again as long as these move on meanwhile. */
export function* restoreFrom(
  from: readonly RestoreFrom[],
  archives: readonly LogSource[],
  goal: RestoreGoal,
  place: Place,
  idOf: CollectionIdOf,
  progress: Progress,
): Machine<RestoreResult & { readonly from: string }> {
  const storages = from.map(({ storage }) => storage);
  return yield* whileMoving(storages, function* () {
    const plan = yield* planRestore(from, archives, goal, idOf, progress);
    const { offset, bytes } = yield* restore(plan, place, progress);
    return { from: plan.from.name, offset, bytes };
  });
}

// ---------------------------------------------------------------- the store

export function* restore(
  plan: RestorePlan,
  place: Place,
  progress: Progress,
): Machine<RestoreResult> {
  const made = new NewStore(place);
  let isDone = false;
  try {
    const result = yield* make(plan, made, progress);
    isDone = true;
    return result;
  } finally {
    if (!isDone) made.abandon();
  }
}

function* make(plan: RestorePlan, made: NewStore, progress: Progress): Machine<RestoreResult> {
  const { from, state, end, start, seq, isCut } = plan;
  const upper = Math.min(state.flushed.upper, end);
  yield* made.begin({
    logId: state.identity.logId,
    seq,
    at: start,
    segmentBytes: plan.segmentBytes,
  });

  progress.what = 'parts';
  progress.doneBytes = 0;
  progress.totalBytes = 0;
  const files = isCut ? neededBelow(state.spines, end) : allFiles(state);
  for (const file of files) {
    progress.totalBytes += from.storage.stat(partPath(file))?.bytes ?? 0;
    yield;
  }
  for (const file of files) {
    if (yield* made.bring(from.storage, file, progress)) continue;
    const path = partPath(file);
    throw corrupt(
      'MISSING_PART',
      `${from.name}: a part that the manifest names is missing: ${path}`,
      {
        file: path,
      },
    );
  }
  let { spines, counters } = state;
  if (isCut) {
    const cut = yield* cutSpines(made.storage, spines, counters, end, progress);
    ({ spines, counters } = cut);
    const named = new Set<number>();
    for (const spine of spines.values()) for (const file of filesOf(spine)) named.add(file);
    for (const file of files) if (!named.has(file)) made.storage.unlink(partPath(file));
    yield;
  }

  progress.what = 'log';
  progress.doneBytes = 0;
  let flushed = made.mark();
  const cursor = cursorAt(start);
  const problem = yield* readLog(
    plan.logs,
    cursor,
    plan.home,
    end,
    (reader) => {
      made.append(reader);
      if (made.next === upper) flushed = made.mark();
      return true;
    },
    progress,
  );
  if (problem !== undefined) throw problem;
  if (made.next !== end || flushed.upper !== upper) {
    throw corrupt('GAP', `the log ends at ${made.next}, and was read up to ${end} before`, {
      offset: made.next,
    });
  }
  made.fork(plan.epoch);
  progress.what = 'manifest';
  yield* made.finish({
    identity: state.identity,
    logStart: { seq, offset: start.upper, atMs: start.atMs },
    counters,
    flushed,
    times: state.times.filter(([at]) => le(at, upper)),
    dropped: state.dropped.filter((drop) => lt(drop.offset, end)),
    archived: state.archived.filter((segment) => le(segment.end, start.upper)),
    logEnd: undefined,
    spines,
  });
  return { offset: end - 1, bytes: made.bytes };
}

function allFiles(state: ManifestState): Set<number> {
  const files = new Set<number>();
  for (const spine of state.spines.values()) for (const file of filesOf(spine)) files.add(file);
  return files;
}
