/**
 * Looks for damage in a whole store and lists all of it: manifest and its predecessor, every segment of
 * the log, every part. Judges as an open would (core/log/recovery.ts), but from the log's start instead of
 * the flushed upper, goes on past what it finds, and changes nothing. Beside a live engine a bad end is
 * a note, and a file that went while it was being read is none. Called by the command line and by
 * `engine.verify`, on any thread.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { OpenFiles, findChain } from '../log/chain.ts';
import { SEGMENT_BLOCK_BYTES, saltOf } from '../log/segment.ts';
import { FileBytes, TailScan } from '../log/reader.ts';
import { cursorAtBase } from '../log/verify.ts';
import type { Cursor } from '../log/verify.ts';
import type { LoadedManifest } from '../spine/manifest-store.ts';
import {
  applyEdit,
  copyManifest,
  decodeEdit,
  decodeEditsBegin,
  decodeRollup,
  frameLength,
  saltOf as manifestSaltOf,
} from '../spine/manifest.ts';
import type { PartInfo } from '../spine/part-format.ts';
import { runsFinding } from '../spine/batch.ts';
import { HEAD_PATH, editsPath, partPath, rollupPath, segmentPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { damagedAt, walkSegment } from './log-walk.ts';
import type { SegmentWalk } from './log-walk.ts';
import {
  chainOf,
  isPruned,
  isStore,
  lookAt,
  readManifest,
  readSegment,
  readWhole,
} from './look.ts';
import type { SegmentFile, StoreLook } from './look.ts';
import { checkPart } from './parts.ts';
import { findingOf, isSound } from './report.ts';
import type { Machine, Progress, Severity, StoreFinding } from './report.ts';

export type VerifyOptions = {
  /** Every block of every part too. */
  readonly full: boolean;
  /** An engine may be writing. */
  readonly live: boolean;
};

export type VerifyReport = {
  readonly ok: boolean;
  readonly findings: readonly StoreFinding[];
  /** First offset after the log, as far as it is sound; undefined when it could not be read. */
  readonly next: number | undefined;
  readonly segments: number;
  readonly records: number;
  readonly parts: number;
  readonly bytes: number;
};

export function* verifyStore(
  storage: Storage,
  options: VerifyOptions,
  progress: Progress,
): Machine<VerifyReport> {
  return yield* new Verification(storage, options, progress).run();
}

class Verification {
  readonly #storage: Storage;
  readonly #options: VerifyOptions;
  readonly #progress: Progress;
  readonly #findings: StoreFinding[] = [];
  #next: number | undefined = undefined;
  #segments = 0;
  #records = 0;
  #parts = 0;

  constructor(storage: Storage, options: VerifyOptions, progress: Progress) {
    this.#storage = storage;
    this.#options = options;
    this.#progress = progress;
  }

  *run(): Machine<VerifyReport> {
    this.#progress.what = 'manifest';
    if (!isStore(this.#storage)) {
      this.#add('NOT_A_STORE', 'unreadable', 'the directory holds no store');
      return this.#report();
    }
    const look = yield* lookAt(this.#storage);
    const { manifest } = look;
    for (const { bytes } of chainOf(look)) this.#progress.totalBytes += bytes;
    if (manifest === undefined) {
      this.#note(look.manifestError, HEAD_PATH);
    } else {
      for (const part of partsOf(manifest)) {
        if (this.#options.full) this.#progress.totalBytes += part.bytes;
      }
      yield* this.#manifest(manifest);
    }
    this.#progress.what = 'log';
    yield* this.#log(look);
    this.#progress.what = 'parts';
    if (manifest !== undefined) yield* this.#allParts(manifest);
    this.#progress.what = 'done';
    return this.#report();
  }

  #report(): VerifyReport {
    return {
      ok: isSound(this.#findings),
      findings: this.#findings,
      next: this.#next,
      segments: this.#segments,
      records: this.#records,
      parts: this.#parts,
      bytes: this.#progress.doneBytes,
    };
  }

  #add(
    finding: string,
    severity: Severity,
    message: string,
    where: { file?: string; position?: number; offset?: number } = {},
  ): void {
    this.#findings.push({ finding, severity, ...where, message });
  }

  #note(error: unknown, file?: string): void {
    this.#findings.push(findingOf(error, file));
  }

  // ---------------------------------------------------------------- manifest

  *#manifest(manifest: LoadedManifest): Machine<void> {
    const { head, state } = manifest;
    for (const { finding, message } of manifest.findings) {
      const isTorn = finding === 'TORN_EDITS';
      const severity = !isTorn ? 'damage' : this.#options.live ? 'note' : 'torn';
      const file = isTorn ? editsPath(head.rollup) : rollupPath(head.rollup);
      const position = isTorn ? { position: manifest.editsBytes } : {};
      this.#add(isTorn && this.#options.live ? 'NOT_YET' : finding, severity, message, {
        file,
        ...position,
      });
    }
    for (const [collection, spine] of state.spines) {
      for (const { hollow } of spine.hollows) {
        const kind = hollow.runs[0]?.parts[0]?.kind;
        if (kind === undefined) continue;
        const found = runsFinding(hollow.runs, hollow.desc, kind);
        if (found === undefined) continue;
        this.#add(found.finding, 'damage', `collection ${collection}: ${found.message}`, {
          file: HEAD_PATH,
        });
      }
    }
    if (manifest.repair === undefined && head.previous > 0) this.#predecessor(manifest);
    yield;
  }

  /** The rollup before the newest, and the edits that lead up to it: what an open falls back to. */
  #predecessor({ head }: LoadedManifest): void {
    const n = head.previous;
    let file = rollupPath(n);
    try {
      const rollupBytes = readWhole(this.#storage, file);
      if (rollupBytes === undefined) throw missing(file);
      const { state, edit } = decodeRollup(rollupBytes, file);
      file = editsPath(n);
      const bytes = readWhole(this.#storage, file);
      if (bytes === undefined) throw missing(file);
      const { begin, end } = decodeEditsBegin(bytes, file);
      if (begin.rollup !== n || begin.edit !== edit) {
        throw corrupt('EDIT_GAP', `${file} does not follow ${rollupPath(n)}`, { file });
      }
      const salt = manifestSaltOf(head.identity.logId, n);
      const copy = copyManifest(state);
      let at = end;
      while (at < bytes.length) {
        const length = frameLength(bytes, at, salt);
        if (length === 0) {
          const message = `${file} is damaged at ${at}`;
          throw corrupt('DAMAGED_EDIT', message, { file, position: at });
        }
        applyEdit(copy, decodeEdit(bytes, at, file).edit);
        at += length;
      }
    } catch (error) {
      // A live engine has gone on to the next rollup, and the predecessor with it.
      if (this.#options.live && this.#headMoved(head.rollup)) return;
      this.#note(error, file);
    }
  }

  #headMoved(rollup: number): boolean {
    try {
      return readManifest(this.#storage)?.head.rollup !== rollup;
    } catch {
      return false;
    }
  }

  // ---------------------------------------------------------------- log

  *#log(look: StoreLook): Machine<void> {
    const { manifest, logId } = look;
    for (const file of look.segments) this.#segmentFile(file, look);
    if (logId === undefined) {
      if (manifest === undefined) return;
    } else if (manifest !== undefined) {
      yield* this.#chain(manifest);
    }
    const chain = chainOf(look);
    if (chain.length === 0 || logId === undefined) return;
    let cursor: Cursor | undefined;
    for (const file of chain) {
      const walked = yield* this.#segment(look, logId, file, cursor);
      cursor = walked;
    }
  }

  #segmentFile(file: SegmentFile, { logId }: StoreLook): void {
    const { header, path } = file;
    const isOdd = file.error !== undefined || file.damaged || file.place === 'foreign';
    if (!isOdd || this.#isPruned(file.seq)) return;
    if (file.error !== undefined) this.#note(file.error, path);
    if (file.place === 'foreign' && header !== undefined) {
      const own = logId !== undefined && Buffer.compare(header.logId, logId) === 0;
      if (own) {
        const message = `${path} is segment ${header.seq}`;
        this.#add('MISNAMED_SEGMENT', 'damage', message, { file: path, position: 0 });
      } else {
        this.#add('FOREIGN_SEGMENT', 'unreadable', `${path} belongs to another log`, {
          file: path,
          position: 0,
        });
      }
    }
    if (file.damaged && header !== undefined && file.place === 'chain') {
      const message = 'one of the two copies of its header is damaged';
      this.#add('HEADER_COPY', 'damage', message, { file: path, position: 0 });
    }
  }

  /** The verdict of an open on the chain as such. */
  *#chain(manifest: LoadedManifest): Machine<void> {
    const { state } = manifest;
    const files = new OpenFiles(this.#storage);
    const facts = {
      logId: state.identity.logId,
      firstSeq: state.logStart.seq,
      firstOffset: state.logStart.offset,
    };
    try {
      yield* findChain(this.#storage, files, facts, true);
    } catch (error) {
      // A live engine has let go of segments meanwhile: that chain is none any more.
      if (this.#isPruned(facts.firstSeq)) return;
      const { finding, ...found } = findingOf(error);
      const seq = error instanceof TidemarkError ? error.detail['seq'] : undefined;
      const isTold = this.#findings.some((told) => told.finding === finding);
      const file = typeof seq === 'number' ? { file: segmentPath(seq) } : {};
      if (!isTold || finding === 'MISSING_SEGMENT')
        this.#findings.push({ finding, ...file, ...found });
    } finally {
      files.closeAll();
    }
  }

  /** Beside a live engine: the segment is no part of the log any more. */
  #isPruned(seq: number): boolean {
    return this.#options.live && isPruned(this.#storage, seq);
  }

  /** Reads one segment of the chain; returns where the next begins, as far as is known. */
  *#segment(
    look: StoreLook,
    logId: Uint8Array,
    file: SegmentFile,
    before: Cursor | undefined,
  ): Machine<Cursor | undefined> {
    const { header, successor } = file;
    if (header === undefined) return undefined;
    const base = cursorAtBase(header);
    const follows = before !== undefined && before.next === header.baseOffset;
    if (before !== undefined && !follows) {
      this.#note(
        corrupt(
          'GAP',
          `the segment before it ends at ${before.next}, it begins at ${header.baseOffset}`,
          {
            file: file.path,
            position: 0,
            offset: before.next,
          },
        ),
      );
    } else if (before !== undefined && before.chain !== header.prevChain) {
      this.#note(
        corrupt('FORK', 'it follows another history than the segment before it', {
          file: file.path,
          position: 0,
          offset: before.next,
        }),
      );
    }
    const cursor: Cursor = follows
      ? {
          ...base,
          epoch: Math.max(before.epoch, header.epoch),
          atMs: before.atMs,
          chain: header.prevChain,
        }
      : base;
    const doneBefore = this.#progress.doneBytes;
    const flushed = look.manifest?.state.flushed;
    const start = flushed?.seq === file.seq ? flushed : undefined;
    let forked = false;
    const onRecord = (): boolean => {
      if (start !== undefined && cursor.next === start.upper && cursor.chain !== start.chain) {
        forked = true;
      }
      return true;
    };
    let walk;
    try {
      walk = yield* walkSegment(
        this.#storage,
        logId,
        file,
        cursor,
        SEGMENT_BLOCK_BYTES,
        onRecord,
        this.#progress,
      );
    } catch (error) {
      if (this.#isPruned(file.seq)) return undefined;
      this.#note(error, file.path);
      return undefined;
    }
    this.#progress.doneBytes = doneBefore + file.bytes;
    this.#segments++;
    this.#records += walk.records;
    if (forked && flushed !== undefined) {
      this.#note(
        corrupt('FORK', 'the history in it is not the one that was flushed', {
          file: file.path,
          position: flushed.position,
          offset: flushed.upper,
        }),
      );
    }
    if (walk.error !== undefined) {
      if (this.#isPruned(file.seq)) return undefined;
      const { message, ...found } = findingOf(walk.error, file.path);
      this.#findings.push({ ...found, message });
      return undefined;
    }
    if (successor !== undefined) {
      if (walk.position === file.end) return cursor;
      if (this.#isPruned(file.seq)) return undefined;
      this.#note(damagedAt(file, walk, cursor.next, successor.baseOffset));
      return undefined;
    }
    yield* this.#end(look, logId, file, cursor, walk);
    return cursor;
  }

  /** The end of the log: clean, torn, or damaged, by its witnesses. */
  *#end(
    look: StoreLook,
    logId: Uint8Array,
    file: SegmentFile,
    cursor: Cursor,
    walk: SegmentWalk,
  ): Machine<void> {
    this.#next = cursor.next;
    let witness = Math.max(walk.claim, walk.tail.claim, file.header?.baseOffset ?? 0);
    let content: SegmentFile | undefined;
    const isClean = walk.clean && walk.tail.bytes === 0;
    for (const unused of isClean ? [] : look.segments) {
      if (unused.place !== 'unused') continue;
      const scan = yield* this.#scan(logId, unused);
      if (scan === undefined) continue;
      if (scan.headers > 0 || !unused.blank) content ??= unused;
      witness = Math.max(witness, scan.claim);
    }
    const where = { file: file.path, position: walk.position, offset: cursor.next };
    if (witness > cursor.next) {
      // A rotation is the one honest reason: before the walk ended, or between it and the scan above.
      if (this.#options.live && (walk.sealed || this.#isBegun(content))) return;
      if (this.#isPruned(file.seq)) return;
      const at = walk.tail.bytes > 0 ? file : (content ?? file);
      this.#note(
        damagedAt(at, at === file ? walk : { ...walk, position: 0 }, cursor.next, witness),
      );
      return;
    }
    // What was flushed meanwhile is not in this manifest, so it cannot be ahead by honest means.
    const flushed = look.manifest?.state.flushed.upper ?? 0;
    if (flushed > cursor.next) {
      if (this.#isPruned(file.seq)) return;
      if (walk.tail.bytes > 0) this.#note(damagedAt(file, walk, cursor.next, flushed));
      else {
        const message = `the log ends at offset ${cursor.next}, the manifest names ${flushed}`;
        this.#note(corrupt('LOG_BEHIND_MANIFEST', message, where));
      }
      return;
    }
    if (walk.tail.bytes === 0) return;
    const { bytes, headers } = walk.tail;
    if (this.#options.live) {
      this.#add('NOT_YET', 'note', `${bytes} bytes that are being written`, where);
      return;
    }
    const message =
      `a torn write of ${bytes} bytes at ${walk.position}, never acknowledged as far as anything shows` +
      (headers > 0 ? `; ${headers} sound records among them` : '');
    this.#add('TORN_TAIL', 'torn', message, where);
  }

  /** Whether a file that was unused when the directory was looked at has become a segment since. */
  #isBegun(file: SegmentFile | undefined): boolean {
    if (file === undefined) return false;
    try {
      return readSegment(this.#storage, file.seq)?.header !== undefined;
    } catch {
      return false;
    }
  }

  *#scan(logId: Uint8Array, file: SegmentFile): Machine<TailScan | undefined> {
    let fd: number;
    try {
      fd = this.#storage.open(file.path, 'read');
    } catch (error) {
      if (!this.#options.live) this.#note(error, file.path);
      return undefined;
    }
    try {
      const salt = saltOf(logId, file.seq);
      const scan = new TailScan(
        new FileBytes(this.#storage, fd),
        salt,
        SEGMENT_BLOCK_BYTES,
        file.bytes,
        true,
      );
      let more = true;
      while (more) {
        more = scan.step();
        yield;
      }
      return scan;
    } finally {
      this.#storage.close(fd);
    }
  }

  // ---------------------------------------------------------------- parts

  *#allParts(manifest: LoadedManifest): Machine<void> {
    for (const part of partsOf(manifest)) {
      const before = this.#progress.doneBytes;
      const findings = yield* this.#part(part);
      if (this.#options.full) this.#progress.doneBytes = before + part.bytes;
      this.#parts++;
      if (findings.length === 0) continue;
      // Merged away while we looked: nothing of it matters any more.
      if (this.#options.live && !this.#isNamed(part.file)) continue;
      this.#findings.push(...findings);
    }
  }

  *#part(part: PartInfo): Machine<StoreFinding[]> {
    const path = partPath(part.file);
    let fd: number;
    try {
      fd = this.#storage.open(path, 'read');
    } catch (error) {
      return [findingOf(error, path)];
    }
    try {
      return yield* checkPart(this.#storage, fd, part, this.#options.full, this.#progress);
    } finally {
      this.#storage.close(fd);
    }
  }

  #isNamed(file: number): boolean {
    try {
      const manifest = readManifest(this.#storage);
      if (manifest === undefined) return true;
      for (const part of partsOf(manifest)) if (part.file === file) return true;
      return false;
    } catch {
      return true;
    }
  }
}

/** Every part that the manifest names, by collection, in the order of runs. */
export function* partsOf(manifest: LoadedManifest): Generator<PartInfo, void, void> {
  for (const spine of manifest.state.spines.values()) {
    for (const { hollow } of spine.hollows) {
      for (const run of hollow.runs) yield* run.parts;
    }
  }
}

function missing(file: string): TidemarkError {
  return corrupt('MANIFEST_MISSING', `${file} is not there`, { file });
}
