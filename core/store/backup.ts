/**
 * Copies a store as it stood at a checkpoint, and the log from there, into an empty directory: a store of
 * its own that opens clean. It reads what nobody changes any more: parts, and the log below `durable`; that
 * both stay while it does is its caller's affair (the keeper's hold, or the store's lock). Called by
 * engine.backup on a thread of its own or in slices, and by the command line.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { le } from '../base/frontier.ts';
import { segmentBytesDefault } from '../base/limits.ts';
import { SEGMENT_BLOCK_BYTES } from '../log/segment.ts';
import { cursorAt } from '../log/verify.ts';
import { decodeRollup, filesOf } from '../spine/manifest.ts';
import type { ManifestState } from '../spine/manifest.ts';
import { partPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { whileMoving } from './again.ts';
import { readLog, sourceOf } from './log-source.ts';
import { chainOf, lookAt, readManifest, readWhole } from './look.ts';
import { NewStore } from './new-store.ts';
import type { Place } from './new-store.ts';
import type { Machine, Progress } from './report.ts';

export type BackupResult = {
  /** The newest transaction in the backup; -1: there is none. */
  readonly offset: number;
  /** What the backup holds, linked or copied. */
  readonly bytes: number;
};

export class StoreBackup {
  readonly progress: Progress;
  readonly #source: Storage;
  readonly #state: ManifestState;
  readonly #made: NewStore;

  constructor(
    source: Storage,
    state: ManifestState,
    place: Place,
    progress: Progress = { what: '', doneBytes: 0, totalBytes: 0 },
  ) {
    this.progress = Object.assign(progress, { what: 'parts', doneBytes: 0, totalBytes: 0 });
    this.#source = source;
    this.#state = state;
    this.#made = new NewStore(place);
  }

  /** Makes the directory, or takes an empty one; returns whether it was made. */
  *begin(): Machine<boolean> {
    const { identity, flushed } = this.#state;
    const look = yield* lookAt(this.#source);
    const file = look.segments.find(({ seq }) => seq === flushed.seq);
    return yield* this.#made.begin({
      logId: identity.logId,
      // Never 1: a log that begins there and is empty might be made anew.
      seq: flushed.seq + 1,
      at: flushed,
      segmentBytes: file?.header?.plannedBytes ?? segmentBytesDefault,
    });
  }

  /** Every part that the checkpoint names. */
  *parts(): Machine<void> {
    const { progress } = this;
    const { spines } = this.#state;
    const files = new Set<number>();
    for (const spine of spines.values()) for (const part of filesOf(spine)) files.add(part);
    for (const part of files) {
      progress.totalBytes += this.#source.stat(partPath(part))?.bytes ?? 0;
      yield;
    }
    for (const part of files) {
      if (yield* this.#made.bring(this.#source, part, progress)) continue;
      const path = partPath(part);
      throw corrupt('MISSING_PART', `a part that the manifest names is missing: ${path}`, {
        file: path,
      });
    }
  }

  /** The log from the checkpoint on, below `upper`; undefined: all that is sound in it. */
  *log(upper: number | undefined): Machine<void> {
    const { progress } = this;
    const { identity, flushed } = this.#state;
    progress.what = 'log';
    const look = yield* lookAt(this.#source);
    const source = sourceOf(this.#source, 'the store', look, identity.logId);
    for (const { seq, end } of source.files) {
      if (seq >= flushed.seq)
        progress.totalBytes += end - (seq > flushed.seq ? 0 : flushed.position);
    }
    const cursor = cursorAt(flushed);
    const problem = yield* readLog(
      [source],
      cursor,
      source,
      upper ?? Number.MAX_SAFE_INTEGER,
      (reader) => {
        this.#made.append(reader);
        return true;
      },
      progress,
    );
    if (problem !== undefined) throw problem;
    if (upper === undefined || cursor.next === upper) return;
    throw corrupt('GAP', `the log ends at ${cursor.next}, and offsets below ${upper} are durable`, {
      offset: cursor.next,
      witness: upper,
    });
  }

  *finish(): Machine<BackupResult> {
    this.progress.what = 'manifest';
    const { flushed } = this.#state;
    const offset = this.#made.next - 1;
    const seq = flushed.seq + 1;
    yield* this.#made.finish({
      ...this.#state,
      // What the source archives from here on is not this store's.
      archived: this.#state.archived.filter(({ end }) => le(end, flushed.upper)),
      logStart: { seq, offset: flushed.upper, atMs: flushed.atMs },
      flushed: { ...flushed, seq, position: SEGMENT_BLOCK_BYTES },
    });
    return { offset, bytes: this.#made.bytes };
  }

  /** Removes what was made. */
  abandon(): void {
    this.#made.abandon();
  }
}

/**
 * The store as its manifest says it is now. `isLive`: an engine may be at it; then no further than the segment
 * that it writes to, and again as long as it moves on meanwhile.
 */
export function* copyStore(
  source: Storage,
  place: Place,
  isLive: boolean,
  progress: Progress,
): Machine<BackupResult> {
  const copy = (): Machine<BackupResult> => copyOnce(source, place, isLive, progress);
  return yield* isLive ? whileMoving([source], copy) : copy();
}

function* copyOnce(
  source: Storage,
  place: Place,
  isLive: boolean,
  progress: Progress,
): Machine<BackupResult> {
  const manifest = readManifest(source);
  if (manifest === undefined) throw corrupt('NO_MANIFEST', 'the store has no manifest');
  const { state } = manifest;
  const job = new StoreBackup(source, state, place, progress);
  let isDone = false;
  try {
    let upper = state.logEnd;
    if (isLive) {
      const last = chainOf(yield* lookAt(source)).at(-1)?.header?.baseOffset ?? 0;
      upper = Math.max(last, state.flushed.upper);
    }
    yield* job.begin();
    yield* job.parts();
    yield* job.log(upper);
    const result = yield* job.finish();
    isDone = true;
    return result;
  } finally {
    if (!isDone) job.abandon();
  }
}

/** The state that the keeper wrote down for a backup. */
export function readRollup(storage: Storage, path: string): ManifestState {
  const bytes = readWhole(storage, path);
  if (bytes !== undefined) return decodeRollup(bytes, path).state;
  throw new TidemarkError('TIDEMARK_IO', `${path} is not there`, { file: path });
}
