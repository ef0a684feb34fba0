/**
 * A directory that is becoming a store: parts brought in from another store, a log written anew, and the
 * manifest last. Before that it is no store, and after it a whole one. The directory is empty at first, so
 * all that is found in it is of this making, and giving up removes all of it. Called by backup and restore,
 * on whatever thread has the time; about one storage call between two yields.
 *
 *   begin     directories; the log's first segment, so that nobody makes an empty store of it meanwhile
 *   bring     one part file: a hard link, a synced copy where the file system has none
 *   append    commits, each behind the one before it
 *   finish    the log ends with CLEAN; rollup, edits, HEAD; the directory entries
 */
import { TidemarkError } from '../base/errors.ts';
import { invariant } from '../base/assert.ts';
import { KiB, MiB, inPlaceBytesMin, segmentBytesMax } from '../base/limits.ts';
import { REASON_IMPORT, SEGMENT_BLOCK_BYTES, encodeSegmentBlock } from '../log/segment.ts';
import type { SegmentReader } from '../log/reader.ts';
import { ACCEPTED, LogWriter } from '../log/writer.ts';
import type { LogPosition } from '../log/writer.ts';
import { ManifestStore } from '../spine/manifest-store.ts';
import type { ManifestState } from '../spine/manifest.ts';
import {
  LOG_DIR,
  MANIFEST_DIR,
  PARTS_DIR,
  STORE_DIRS,
  partPath,
  segmentPath,
} from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import type { Machine, Progress } from './report.ts';
import { writeWhole } from './write-whole.ts';

/** Where a store is being made, and what a storage cannot do by itself. */
export type Place = {
  readonly storage: Storage;
  /** As the user named it. */
  readonly name: string;
  /** Makes `to` a hard link of `from` in another store; throws the system's error. */
  readonly link: (source: Storage, from: string, to: string) => void;
  /** Removes an empty directory below the place, or the place itself (''). */
  readonly removeDir: (path: string) => void;
  /** Makes the place's own entry durable. */
  readonly syncParent: () => void;
};

/** The beginning of a log. */
export type LogBegin = {
  readonly logId: Uint8Array;
  readonly seq: number;
  /** What comes first; `seq` and `position` in it are not looked at. */
  readonly at: LogPosition;
  readonly segmentBytes: number;
};

const COPY_BYTES: number = 1 * MiB;
const BATCH_BYTES: number = 1 * MiB;
const SEGMENT_BYTES_MIN: number = 8 * KiB;

/** Where a hard link cannot be: another device, a file system or a rule without them, too many of them. */
const NO_LINK: ReadonlySet<unknown> = new Set([
  'EXDEV',
  'EPERM',
  'EACCES',
  'EMLINK',
  'ENOTSUP',
  'EOPNOTSUPP',
  'ENOSYS',
  'EINVAL',
]);

export class NewStore {
  readonly storage: Storage;
  readonly #place: Place;
  #isMade = false;
  #isBegun = false;
  #writer: LogWriter | undefined;
  /** What it holds, linked or written. */
  bytes = 0;

  constructor(place: Place) {
    this.storage = place.storage;
    this.#place = place;
  }

  /** Refuses a directory in which anything is; returns whether there was none. */
  *begin(log: LogBegin): Machine<boolean> {
    const { storage, name } = this.#place;
    const isThere = storage.stat('') !== undefined;
    if (isThere && storage.list('').length > 0) {
      throw new TidemarkError('TIDEMARK_EXISTS', `${name} is not empty`, { directory: name });
    }
    yield;
    this.#isMade = !isThere;
    this.#isBegun = true;
    storage.makeDir('');
    for (const dir of STORE_DIRS) {
      storage.makeDir(dir);
      yield;
    }
    storage.syncDir('');
    yield;
    this.#place.syncParent();
    yield;
    yield* this.#beginLog(log);
    return this.#isMade;
  }

  *#beginLog({ logId, seq, at, segmentBytes }: LogBegin): Machine<void> {
    const { storage } = this.#place;
    const plannedBytes = Math.min(segmentBytesMax, Math.max(SEGMENT_BYTES_MIN, segmentBytes));
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
      epoch: at.epoch,
      plannedBytes,
      baseAtMs: at.atMs,
      reason: REASON_IMPORT,
    });
    const path = segmentPath(seq);
    const fd = storage.open(path, 'create');
    try {
      writeWhole(storage, fd, block, block.length, 0, path);
      storage.sync(fd);
      storage.syncDir(LOG_DIR);
    } catch (error) {
      storage.close(fd);
      throw error;
    }
    this.#writer = new LogWriter(
      storage,
      { segmentBytes: plannedBytes, prepare: false, batchBytesMax: BATCH_BYTES },
      {
        logId,
        seq,
        fd,
        position: SEGMENT_BLOCK_BYTES,
        commitEnd: SEGMENT_BLOCK_BYTES,
        baseOffset: at.upper,
        baseAtMs: at.atMs,
        commits: 0,
        next: at.upper,
        durable: at.upper,
        chain: at.chain,
        epoch: at.epoch,
        atMs: at.atMs,
        zeroedEnd: SEGMENT_BLOCK_BYTES,
        claimed: at.upper,
        highestSeq: seq,
        spareSeq: 0,
        spareRecycled: false,
        filled: false,
      },
    );
    yield;
  }

  // ---------------------------------------------------------------- parts

  /** Brings in part file `file` of another store. False: it is not there. */
  *bring(source: Storage, file: number, progress: Progress): Machine<boolean> {
    const path = partPath(file);
    const found = source.stat(path);
    if (found === undefined) return false;
    try {
      this.#place.link(source, path, path);
    } catch (error) {
      const { code } = error as { code?: unknown };
      if (code === 'ENOENT') return false;
      if (!NO_LINK.has(code)) throw error;
      yield;
      yield* this.#copy(source, path, progress);
      this.bytes += found.bytes;
      return true;
    }
    this.bytes += found.bytes;
    progress.doneBytes += found.bytes;
    yield;
    return true;
  }

  *#copy(source: Storage, path: string, progress: Progress): Machine<void> {
    const { storage } = this.#place;
    const from = source.open(path, 'read');
    try {
      const to = storage.open(path, 'create');
      try {
        const chunk = new Uint8Array(COPY_BYTES);
        for (let at = 0; ;) {
          const got = source.read(from, chunk, 0, chunk.length, at);
          yield;
          if (got > 0) writeWhole(storage, to, chunk, got, at, path);
          yield;
          at += got;
          progress.doneBytes += got;
          if (got < chunk.length) break;
        }
        storage.sync(to);
      } finally {
        storage.close(to);
      }
    } finally {
      source.close(from);
    }
    yield;
  }

  // ---------------------------------------------------------------- log

  /** First offset that the log has not. */
  get next(): number {
    return this.#log.next;
  }

  /** Where the log stands behind what was appended. */
  mark(): LogPosition {
    return this.#log.mark();
  }

  /** Takes the commit that the reader stands on, as it is: its epoch and the content chain stay. */
  append(reader: SegmentReader): void {
    const writer = this.#log;
    while (writer.full) step(writer, false);
    const { header, bytes, payloadOffset } = reader;
    const refused = writer.append(
      bytes,
      payloadOffset,
      header.payloadLen,
      header.payloadCrc,
      header.txCount,
      header.minTxOffset,
      header.epoch,
      header.committedAtMs,
    );
    invariant(refused === ACCEPTED, 'a sound record is accepted again', refused);
    // A large payload is not copied, and the reader moves on.
    if (header.payloadLen >= inPlaceBytesMin) while (writer.staged) step(writer, false);
  }

  /** What is written from here on is another history than the one this was taken from. */
  fork(epoch: number): void {
    const writer = this.#log;
    while (writer.full) step(writer, false);
    writer.epoch = epoch;
    writer.watermark();
  }

  get #log(): LogWriter {
    invariant(this.#writer !== undefined, 'the log has begun');
    return this.#writer;
  }

  // ---------------------------------------------------------------- the end

  /** Makes it a store. `state` names what was brought in, and where the log stands. */
  *finish(state: ManifestState): Machine<void> {
    const { storage } = this.#place;
    const writer = this.#log;
    writer.close();
    while (step(writer, true) !== 'closed') yield;
    this.#writer = undefined;
    for (const dir of [LOG_DIR, PARTS_DIR]) {
      storage.syncDir(dir);
      yield;
    }
    const manifest = ManifestStore.create(storage, state);
    manifest.close(storage);
    yield;
    storage.syncDir('');
    yield;
    for (const dir of [LOG_DIR, MANIFEST_DIR]) {
      for (const name of storage.list(dir))
        this.bytes += storage.stat(`${dir}/${name}`)?.bytes ?? 0;
      yield;
    }
  }

  /** Gives descriptors back and removes what was made. */
  abandon(): void {
    this.#writer?.release();
    this.#writer = undefined;
    if (this.#isBegun) removeMade(this.#place, this.#isMade);
  }
}

/** Removes what a store in the making consists of; `whole`: the directory too. */
export function removeMade(place: Place, whole: boolean): void {
  const { storage, removeDir } = place;
  // HEAD first: what is left of it is no store.
  for (const dir of [MANIFEST_DIR, ...STORE_DIRS.toReversed().filter((d) => d !== MANIFEST_DIR)]) {
    for (const name of storage.list(dir)) storage.unlink(`${dir}/${name}`);
    if (storage.stat(dir) !== undefined) removeDir(dir);
  }
  if (whole) removeDir('');
}

function step(writer: LogWriter, wantSync: boolean): string {
  try {
    return writer.step(wantSync);
  } catch (error) {
    // Nobody's log yet: the disk's own error says more than that it is poisoned.
    throw error instanceof TidemarkError && error.cause !== undefined ? error.cause : error;
  }
}
