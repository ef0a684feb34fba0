/**
 * What lies in a store's directory, read without lock and without a change, beside a live engine or in
 * a copy: the manifest as it stands, every segment file and its place in the chain. Damage is told, not
 * thrown, where something can still be said about the rest. Called by inspect, verify and dump.
 *
 *   place of a segment file
 *     chain     from the highest sound header backwards by prevSeq; valid up to `end`. A .segz with a sound
 *               header stands for the .seg beside it, if there is one
 *     unused    above the chain, without a sound header: a spare, or a creation cut short
 *     orphan    below or beside the chain: voided or pruned, goes at the next open
 *     foreign   another log's, or not the one its name says
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { LOG_DIR, HEAD_PATH, compressedPath, numberOf, segmentPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { isZero } from '../log/reader.ts';
import {
  SEGMENT_BLOCK_BYTES,
  SEGMENT_COPY_OFFSET,
  decodeSegmentBlock,
  decodeSegmentHeader,
} from '../log/segment.ts';
import type { SegmentHeader } from '../log/segment.ts';
import { openIfThere, readPackedHeader, runNow } from '../log/segment-source.ts';
import { loadManifest } from '../spine/manifest-store.ts';
import type { LoadedManifest } from '../spine/manifest-store.ts';
import { isDamage } from './report.ts';
import type { Machine } from './report.ts';

export type SegmentPlace = 'chain' | 'unused' | 'orphan' | 'foreign';

export type SegmentFile = {
  readonly seq: number;
  readonly path: string;
  /** Size of the file. */
  readonly bytes: number;
  readonly header: SegmentHeader | undefined;
  /** A copy of the header is damaged, or both are and the block is not blank. */
  readonly damaged: boolean;
  readonly blank: boolean;
  /** Of a .segz the codec of its frames; 0: a .seg. */
  readonly codec: number;
  /** Why the header cannot be read by this version. */
  readonly error: TidemarkError | undefined;
  place: SegmentPlace;
  /** The next in the chain; undefined for the last one, and outside the chain. */
  successor: SegmentHeader | undefined;
  /** Where valid bytes end at most. */
  end: number;
};

export type StoreLook = {
  readonly manifest: LoadedManifest | undefined;
  /** Why there is none. */
  readonly manifestError: unknown;
  /** Of the manifest, else of the highest segment. */
  readonly logId: Uint8Array | undefined;
  /** Ascending by seq. */
  readonly segments: readonly SegmentFile[];
};

const ATTEMPTS_MAX = 8;

/** A store or what is left of one: without any of this the directory is something else. */
export function isStore(storage: Storage): boolean {
  if (storage.stat(HEAD_PATH) !== undefined) return true;
  return storage.list(LOG_DIR).some((name) => /^[0-9]{10}\.segz?$/.test(name));
}

/** The manifest, read again when a live engine has replaced it meanwhile. */
export function readManifest(storage: Storage): LoadedManifest | undefined {
  for (let attempt = 1; ; attempt++) {
    const before = readWhole(storage, HEAD_PATH);
    try {
      return loadManifest(storage);
    } catch (error) {
      const after = readWhole(storage, HEAD_PATH);
      const moved =
        before !== undefined && after !== undefined && Buffer.compare(before, after) !== 0;
      if (!moved || attempt >= ATTEMPTS_MAX) throw error;
    }
  }
}

/** A small file, or undefined when it is not there. */
export function readWhole(storage: Storage, path: string): Uint8Array | undefined {
  const fd = openIfThere(storage, path);
  if (fd === undefined) return undefined;
  try {
    const bytes = new Uint8Array(storage.size(fd));
    return bytes.subarray(0, storage.read(fd, bytes, 0, bytes.length, 0));
  } finally {
    storage.close(fd);
  }
}

/** Looks again while a live engine lets go of segments meanwhile: what became of their files is no part of the log. */
export function* lookAt(storage: Storage): Machine<StoreLook> {
  for (let attempt = 1; ; attempt++) {
    const look = yield* lookOnce(storage);
    const firstSeq = look.manifest?.state.logStart.seq;
    if (attempt >= ATTEMPTS_MAX || firstSeq === undefined) return look;
    if (!isPruned(storage, firstSeq)) return look;
    yield;
  }
}

/** A live engine has let go of segment `seq`: what its file holds, if there is one, is another's. */
export function isPruned(storage: Storage, seq: number): boolean {
  try {
    return seq < (readManifest(storage)?.state.logStart.seq ?? 0);
  } catch {
    return false;
  }
}

function* lookOnce(storage: Storage): Machine<StoreLook> {
  let manifest: LoadedManifest | undefined;
  let manifestError: unknown;
  try {
    manifest = readManifest(storage);
    if (manifest === undefined) {
      manifestError = corrupt('NO_MANIFEST', 'the store has no manifest', { file: HEAD_PATH });
    }
  } catch (error) {
    manifestError = error;
  }
  yield;
  const segments: SegmentFile[] = [];
  const seqs = storage
    .list(LOG_DIR)
    .map((name) => seqOf(name, '.seg') ?? seqOf(name, '.segz'))
    .filter((seq) => seq !== undefined);
  for (const seq of new Set(seqs.toSorted((a, b) => a - b))) {
    const file = readSegment(storage, seq);
    // Pruned since the listing.
    if (file !== undefined) segments.push(file);
    yield;
  }
  const highest = segments.findLast(({ header }) => header !== undefined)?.header;
  const logId = manifest?.state.identity.logId ?? highest?.logId;
  link(segments, logId, manifest?.state.logStart.seq ?? 1);
  return { manifest, manifestError, logId, segments };
}

/** A name of ours with number 0 is not worth stopping for. */
function seqOf(name: string, ending: string): number | undefined {
  try {
    return numberOf(name, ending);
  } catch (error) {
    if (isDamage(error)) return undefined;
    throw error;
  }
}

/** A segment as it stands, compressed or not; undefined when it is gone. */
export function readSegment(storage: Storage, seq: number): SegmentFile | undefined {
  const packed = readPacked(storage, seq);
  if (packed?.header !== undefined) return packed;
  // Of two the one that can be read; one that has been compressed meanwhile is there as the other.
  return readPlain(storage, seq) ?? packed ?? readPacked(storage, seq);
}

function readPacked(storage: Storage, seq: number): SegmentFile | undefined {
  return readPackedAt(storage, compressedPath(seq), seq);
}

/** A .segz likewise. */
export function readPackedAt(
  storage: Storage,
  path: string,
  seq?: number,
): SegmentFile | undefined {
  const fd = openIfThere(storage, path);
  if (fd === undefined) return undefined;
  const file: SegmentFile = {
    seq: seq ?? 0,
    path,
    bytes: 0,
    header: undefined,
    damaged: true,
    blank: false,
    codec: 0,
    error: undefined,
    place: 'unused',
    successor: undefined,
    end: 0,
  };
  try {
    const { header, isDamaged, fileBytes } = runNow(readPackedHeader(storage, fd, path));
    const { segment, codec, rawEnd: end } = header;
    return {
      ...file,
      seq: seq ?? segment.seq,
      bytes: fileBytes,
      header: segment,
      damaged: isDamaged,
      codec,
      end,
    };
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    return { ...file, bytes: storage.size(fd), error };
  } finally {
    storage.close(fd);
  }
}

function readPlain(storage: Storage, seq: number): SegmentFile | undefined {
  return readPlainAt(storage, segmentPath(seq), seq);
}

/** A .seg under any name; without `seq` its own header says which it is. */
export function readPlainAt(storage: Storage, path: string, seq?: number): SegmentFile | undefined {
  const block = new Uint8Array(SEGMENT_BLOCK_BYTES);
  const fd = openIfThere(storage, path);
  if (fd === undefined) return undefined;
  let bytes = 0;
  let got = 0;
  try {
    bytes = storage.size(fd);
    got = storage.read(fd, block, 0, block.length, 0);
  } finally {
    storage.close(fd);
  }
  let header: SegmentHeader | undefined;
  let damaged = false;
  let error: TidemarkError | undefined;
  try {
    const decoded = decodeSegmentBlock(block, path);
    header = got < block.length ? undefined : decoded.header;
    // Either copy: the second is what an open falls back to.
    damaged =
      decoded.damaged || decodeSegmentHeader(block, SEGMENT_COPY_OFFSET, path) === undefined;
  } catch (thrown) {
    if (!(thrown instanceof TidemarkError)) throw thrown;
    error = thrown;
  }
  const blank = isZero(block, 0, got);
  return {
    seq: seq ?? header?.seq ?? 0,
    path,
    bytes,
    header,
    damaged: damaged && !blank,
    blank,
    codec: 0,
    error,
    place: 'unused',
    successor: undefined,
    end: bytes,
  };
}

/** Walks the chain as far as it is there. */
function link(segments: SegmentFile[], logId: Uint8Array | undefined, firstSeq: number): void {
  const bySeq = new Map(segments.map((file) => [file.seq, file]));
  let top: SegmentFile | undefined;
  for (const file of segments) {
    const { header } = file;
    if (header === undefined) continue;
    const own = logId !== undefined && Buffer.compare(header.logId, logId) === 0;
    if (!own || header.seq !== file.seq) file.place = 'foreign';
    else if (file.seq >= firstSeq) top = file;
  }
  for (const file of segments) {
    if (file.place === 'unused' && file.seq < (top?.seq ?? 0)) file.place = 'orphan';
  }
  let at = top;
  let successor: SegmentHeader | undefined;
  while (at !== undefined) {
    at.place = 'chain';
    at.successor = successor;
    if (successor !== undefined) at.end = successor.prevEndPos;
    successor = at.header;
    if (successor === undefined || successor.prevSeq < firstSeq) break;
    const before = bySeq.get(successor.prevSeq);
    if (before?.header === undefined || before.seq >= at.seq || before.place === 'foreign') break;
    at = before;
  }
}

/** The chain, oldest first. */
export function chainOf(look: StoreLook): SegmentFile[] {
  return look.segments.filter(({ place }) => place === 'chain');
}
