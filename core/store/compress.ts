/**
 * Compresses every segment of a store that may be: sealed, below the older checkpoint, still part of the
 * log. Beside a live engine too, whose own jobs and deletions may come first: what has gone meanwhile is
 * no error. Done again it finds nothing to do; killed anywhere it leaves each segment whole, in one file
 * or the other. Called by the command line.
 */
import { TidemarkError } from '../base/errors.ts';
import { CompressJob } from '../log/compress.ts';
import { codecDefault } from '../log/segz.ts';
import { TMP_DIR, compressedPath, tmpPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { chainOf, lookAt, readManifest } from './look.ts';
import type { SegmentFile } from './look.ts';
import { findingOf } from './report.ts';
import type { Machine, Progress, StoreFinding } from './report.ts';

export type CompressedSegment = {
  readonly seq: number;
  readonly file: string;
  readonly bytesBefore: number;
  readonly bytes: number;
};

export type CompressReport = {
  readonly compressed: readonly CompressedSegment[];
  /** Were compressed before. */
  readonly already: number;
  /** Not yet below the older checkpoint, or still being written. */
  readonly left: number;
  /** Segments that could not be compressed, and why: they stay as they were. */
  readonly findings: readonly StoreFinding[];
};

/** `nonce`: of the process, so that two at once do not write one file. */
export function* compressStore(
  storage: Storage,
  nonce: string,
  progress: Progress,
): Machine<CompressReport> {
  progress.what = 'manifest';
  const look = yield* lookAt(storage);
  const { manifest, logId } = look;
  if (manifest === undefined || logId === undefined) throw look.manifestError;
  if (manifest.readOnly) {
    const message = 'the manifest uses a feature that this version may read but not write';
    throw new TidemarkError('TIDEMARK_UNSUPPORTED_FORMAT', message, {});
  }
  const bound = manifest.head.previousFlushed.upper;
  const chain = chainOf(look);
  const ready = chain.filter(
    ({ codec, successor }) => codec === 0 && (successor?.baseOffset ?? Infinity) <= bound,
  );
  const already = chain.filter(({ codec }) => codec !== 0).length;
  for (const { end } of ready) progress.totalBytes += end;
  const compressed: CompressedSegment[] = [];
  const findings: StoreFinding[] = [];
  if (ready.length > 0) storage.makeDir(TMP_DIR);
  for (const file of ready) {
    progress.what = file.path;
    const before = progress.doneBytes;
    try {
      const bytes = yield* compressOne(storage, logId, file, nonce, progress);
      const { seq, bytes: bytesBefore } = file;
      compressed.push({ seq, file: compressedPath(seq), bytesBefore, bytes });
    } catch (error) {
      // Let go of by a live engine while we were at it.
      if (file.seq >= (readManifest(storage)?.state.logStart.seq ?? 0)) {
        findings.push(findingOf(error, file.path));
      }
    }
    progress.doneBytes = before + file.end;
  }
  progress.what = 'done';
  const left = chain.length - already - ready.length;
  return { compressed, already, left, findings };
}

function* compressOne(
  storage: Storage,
  logId: Uint8Array,
  file: SegmentFile,
  nonce: string,
  progress: Progress,
): Machine<number> {
  const job = new CompressJob(storage, {
    seq: file.seq,
    successor: file.successor?.seq ?? 0,
    logId: Buffer.from(logId).toString('hex'),
    codec: codecDefault,
    tmp: tmpPath(`compress-${nonce}`),
  });
  const before = progress.doneBytes;
  let isDone = false;
  try {
    while (job.step()) {
      progress.doneBytes = before + job.position;
      yield;
    }
    isDone = true;
    return job.result().bytes;
  } finally {
    // Interrupted: the machine was told to return.
    if (!isDone) job.cancel();
  }
}
