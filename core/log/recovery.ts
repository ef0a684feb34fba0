/**
 * Opens a log: finds its segments, verifies what lies above the flushed upper, tells a torn tail from
 * damage, feeds what stands, and says where a writer goes on. Nothing that was acknowledged is left
 * out in silence, nothing unproven is trusted or appended to, and a crash at any call is answered by
 * doing it all again. Called by the durability actor at open; a step makes at most one storage call.
 *
 * The chain: segments from the highest one with a sound header backwards by prevSeq. A sound header
 * proves the segment before it durable up to prevEndPos; what lies there beyond is void.
 *
 *   file                                    verdict
 *   missing in the chain                    MISSING_SEGMENT
 *   first header copy bad                   the second counts, warning
 *   both bad, in the chain                  CHECKSUM
 *   both bad or zero, above the chain       a witness in it above the end: CHECKSUM; else unused: a spare
 *                                           after CLEAN if all its header block is zero, else an orphan
 *   other logId | number not its name's     FOREIGN_SEGMENT | MISNAMED_SEGMENT
 *   beside or below the chain               orphan
 *   .seg and .segz of one number            a .segz that is sound from end to end wins, the other is an orphan
 *   .segz without a successor               MISSING_SEGMENT
 *
 *   record (sound header)                   verdict, anywhere
 *   minTxOffset above | below the expected  GAP | REGRESSION
 *   epoch | committedAtMs below the last    EPOCH_REGRESSION | TIME_REGRESSION
 *   prevChain other than the chain so far   FORK
 *   contents that contradict themselves     FORMAT; unknown to this version: TIDEMARK_UNSUPPORTED_FORMAT
 *
 *   first bad place P, next offset k        verdict
 *   in a segment that has a successor       CHECKSUM
 *   last segment, zeros or end of file      clean end; a manifest witness above k: LOG_BEHIND_MANIFEST
 *   last segment, a witness above k         CHECKSUM (witness: a claim beyond P, or the manifest's)
 *   last segment, bytes but no witness      torn tail: quarantined (strictTail: error TORN_TAIL)
 *   the same, recycled, not half a header   clean end: what lies there is of the file's earlier use
 *   after CLEAN, whatever it is             as above, for CLEAN is the end until it is overwritten
 *
 *   end of the log                          the writer goes on
 *   CLEAN, nothing behind it                in the same segment, over the CLEAN
 *   anything else                           in a new segment behind the last proven commit; commits after
 *                                           that (suspect: intact, unproven) are written again into it and
 *                                           synced *before* its header makes it part of the log: the
 *                                           header alone voids the old tail
 *   no proven commit in the last segment    likewise, and the new segment takes its place in the chain
 *
 *   the manifest has a log end              a truncation was cut off. Segments that begin at or above it are
 *                                           orphans, the log ends at it, a new segment (reason truncate,
 *                                           another epoch) begins there; unless that is there already
 *
 * Feeding runs behind proof: a commit is fed when a witness covers it, a suspect one when it has been
 * written again and synced. So `durable` may go with what is fed.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import type { ErrorDetail } from '../base/errors.ts';
import { invariant } from '../base/assert.ts';
import { KiB, MiB, inPlaceBytesMin, segmentBytesMax } from '../base/limits.ts';
import {
  LOG_DIR,
  QUARANTINE_DIR,
  compressedPath,
  quarantinePath,
  segmentPath,
} from '../storage/names.ts';
import type { OpenHow, Storage } from '../storage/storage.ts';
import { shortWrite } from '../storage/storage.ts';
import { OpenFiles, findChain } from './chain.ts';
import type { ChainFacts, UnusedSegment } from './chain.ts';
import {
  FileBytes,
  READ_BAD_HEADER,
  READ_BAD_PAYLOAD,
  READ_CUT,
  READ_END,
  READ_MORE,
  READ_RECORD,
  SegmentReader,
  TailScan,
  readBytesDefault,
} from './reader.ts';
import type { SegmentBytes } from './reader.ts';
import { RECORD_CLEAN, RECORD_COMMIT, decodeSegmentEnd } from './record.ts';
import type { RecordHeader } from './record.ts';
import { preparedBytesOf } from './room.ts';
import {
  COMPAT_RECYCLED,
  COMPAT_ZERO_FILLED,
  REASON_RECOVERY,
  REASON_ROTATE,
  REASON_TRUNCATE,
  SEGMENT_BLOCK_BYTES,
  encodeSegmentBlock,
  saltOf,
} from './segment.ts';
import type { SegmentHeader } from './segment.ts';
import { openPacked } from './segment-source.ts';
import { admit, check, copyCursor, cursorAt, cursorAtBase } from './verify.ts';
import type { Cursor } from './verify.ts';
import { ACCEPTED, LogWriter } from './writer.ts';
import type { LogOptions, LogPosition, LogResume } from './writer.ts';

export { logHoldsRecords } from './create.ts';

/** What the manifest knows of the log. */
export type LogFacts = ChainFacts & {
  /** Where the log stood at the flushed upper; undefined: nothing was ever flushed. */
  readonly start: LogPosition | undefined;
  /** Highest upper that a synced edit names: all offsets below were durable. */
  readonly witness: number;
};

export type RecoveryOptions = LogOptions & {
  /** Changes nothing: a torn tail is a result, there is no `resume`. */
  readonly readOnly: boolean;
  /** Every torn tail is an error. */
  readonly strictTail: boolean;
  /** Bytes read at once; default 1 MiB, of small segments their size. */
  readonly readBytes?: number;
};

/**
 * Takes one commit: its numbers, and its payload at bytes[offset, offset + length), both valid during
 * the call. False: no room now, the same record comes again at a later step.
 */
export type RecordFeed = (
  record: RecordHeader,
  bytes: Uint8Array,
  offset: number,
  length: number,
) => boolean;

/** One segment of the log as it now is. */
export type LogSegment = {
  readonly seq: number;
  readonly baseOffset: number;
  readonly baseAtMs: number;
  /** It is compressed. */
  readonly packed: boolean;
};

export type TornTail = {
  readonly seq: number;
  readonly position: number;
  /** Bytes up to the last that was not zero, kept in `quarantine` (undefined when read-only). */
  readonly bytes: number;
  readonly quarantine: string | undefined;
  /** Sound headers among them, of records that went with the tail. */
  readonly records: number;
};

/** Suspect commits are written in batches of this. */
const REWRITE_BATCH_BYTES: number = 1 * MiB;

type Machine = Generator<void, void, void>;

export class LogRecovery {
  /** Where a writer goes on; undefined until the last step, and when read-only. */
  resume: LogResume | undefined = undefined;
  /** First offset not in the log. */
  next = 0;
  epoch = 0;
  atMs = 0;
  /** The log ended with CLEAN and nothing behind it. */
  clean = false;
  torn: TornTail | undefined = undefined;
  /** Commits at the end that nothing proved durable, written again. */
  suspectCount = 0;
  /** The chain, oldest first; the last one is live. */
  segments: LogSegment[] = [];
  /** Files to unlink once the store is open. */
  readonly orphans: string[] = [];
  readonly warnings: string[] = [];
  /** The last step did nothing because `feed` had no room. */
  waiting = false;

  readonly #storage: Storage;
  readonly #facts: LogFacts;
  readonly #options: RecoveryOptions;
  readonly #feed: RecordFeed;
  readonly #readBytes: number;
  readonly #machine: Machine;
  readonly #files: OpenFiles;

  /** Sound headers from the chain's bottom to its top. */
  #chain: readonly SegmentHeader[] = [];
  #packed: Set<number> = new Set();
  #unused: readonly UnusedSegment[] = [];
  #highestSeq = 0;
  /** The log is to end before `facts.logEnd`: what lies beyond is void. */
  #isCut = false;
  #epochBeyond = 0;
  /** Offsets below were durable: the highest witness so far. */
  #proven: number;
  #fed: Cursor;
  #offered: Cursor;

  constructor(storage: Storage, facts: LogFacts, options: RecoveryOptions, feed: RecordFeed) {
    this.#storage = storage;
    this.#files = new OpenFiles(storage);
    this.#facts = facts;
    this.#options = options;
    this.#feed = feed;
    this.#readBytes =
      options.readBytes ?? Math.min(readBytesDefault, Math.max(64 * KiB, options.segmentBytes));
    this.#proven = Math.max(facts.witness, facts.start?.upper ?? 0);
    this.#fed = { next: 0, chain: 0, epoch: 0, atMs: 0, seq: 0, commitEnd: SEGMENT_BLOCK_BYTES };
    this.#offered = { ...this.#fed };
    this.#machine = this.#run();
  }

  /** At most one storage call. True while there is more to do. Throws TIDEMARK_CORRUPT and others. */
  step(): boolean {
    this.waiting = false;
    return this.#machine.next().done !== true;
  }

  /** Where the log stands after the last record fed; within `feed`, after the one being offered. */
  mark(): LogPosition {
    const { next, seq, commitEnd, chain, epoch, atMs } = this.#fed;
    return { upper: next, seq, position: commitEnd, chain, epoch, atMs };
  }

  /** Gives descriptors back after a failure. `resume.fd` is not among them. */
  release(): void {
    this.#files.closeAll();
  }

  // ---------------------------------------------------------------- the course of it

  *#run(): Machine {
    const { readOnly } = this.#options;
    const found = yield* findChain(this.#storage, this.#files, this.#facts, readOnly);
    this.#chain = found.headers;
    this.#unused = found.unused;
    this.#highestSeq = found.highestSeq;
    this.orphans.push(...found.orphans);
    this.warnings.push(...found.warnings);
    this.#packed = found.packed;
    this.#isCut = found.isCut;
    this.#epochBeyond = found.epochBeyond;
    this.segments = found.headers.map((header) => segmentOf(header, found.packed.has(header.seq)));
    if (!readOnly) yield* this.#syncFirst();
    const startIndex = this.#locateStart();
    for (let i = startIndex; i < this.#chain.length - 1; i++) {
      yield* this.#readWhole(this.#headerAt(i), this.#headerAt(i + 1));
    }
    yield* this.#readLast();
  }

  #headerAt(index: number): SegmentHeader {
    const header = this.#chain[index];
    invariant(header !== undefined, 'an index into the chain', index, this.#chain.length);
    return header;
  }

  // ---------------------------------------------------------------- files

  /**
   * A spare may have its name in the cache only: the rotation into it syncs no directory any more.
   * Dirty pages of the last two segments and of what lies above them reach the disk, or fail, before
   * anything is built on them.
   */
  *#syncFirst(): Machine {
    this.#storage.syncDir(LOG_DIR);
    yield;
    yield* this.#syncFiles();
  }

  *#syncFiles(): Machine {
    const seqs = this.#chain.slice(-2).map(({ seq }) => seq);
    for (const { seq } of this.#unused) seqs.push(seq);
    for (const seq of seqs) {
      const fd = this.#openFile(seq, 'write');
      yield;
      this.#storage.sync(fd);
      yield;
      this.#files.close(fd);
      yield;
    }
  }

  #pathOf(seq: number): string {
    return this.#packed.has(seq) ? compressedPath(seq) : segmentPath(seq);
  }

  /** The command line may compress beside us: what was a .seg a moment ago is a .segz then. */
  #openFile(seq: number, how: OpenHow): number {
    const isReplaced =
      !this.#packed.has(seq) &&
      this.#storage.stat(segmentPath(seq)) === undefined &&
      this.#storage.stat(compressedPath(seq)) !== undefined;
    if (isReplaced) this.#packed.add(seq);
    return this.#files.open(this.#pathOf(seq), how);
  }

  /** Sets the cursor where reading begins; returns the index of its segment in the chain. */
  #locateStart(): number {
    const { start, firstOffset } = this.#facts;
    const from = start?.upper ?? 0;
    if (from < firstOffset) {
      throw corrupt('NO_BASE', `the log begins at ${firstOffset}, the parts end at ${from}`, {
        offset: from,
        got: firstOffset,
      });
    }
    if (start === undefined) {
      this.#fed = cursorAtBase(this.#headerAt(0));
      return 0;
    }
    const index = this.#chain.findIndex(({ seq }) => seq === start.seq);
    if (index >= 0) {
      const end = this.#chain[index + 1]?.prevEndPos ?? Number.MAX_SAFE_INTEGER;
      const { baseOffset } = this.#headerAt(index);
      if (start.position >= SEGMENT_BLOCK_BYTES && start.position <= end) {
        if (baseOffset <= start.upper) {
          this.#fed = cursorAt(start);
          return index;
        }
      }
    }
    // An empty segment may have been replaced since: its successor begins where it did.
    const same = this.#chain.findIndex(({ baseOffset }) => baseOffset === start.upper);
    if (same < 0) {
      const top = this.#headerAt(this.#chain.length - 1);
      const detail = { offset: top.baseOffset, witness: start.upper, seq: top.seq };
      throw start.upper > top.baseOffset
        ? corrupt('LOG_BEHIND_MANIFEST', 'the log ends before what the manifest names', detail)
        : corrupt('FORK', 'the log is not the one the manifest was written for', detail);
    }
    const header = this.#headerAt(same);
    if (header.prevChain !== start.chain) {
      throw corrupt('FORK', 'the history before the segment is not the one that was flushed', {
        offset: start.upper,
        seq: header.seq,
        position: 0,
      });
    }
    this.#fed = { ...cursorAt(start), seq: header.seq, commitEnd: SEGMENT_BLOCK_BYTES };
    return same;
  }

  // ---------------------------------------------------------------- segments with a successor

  /** Verifies and feeds what is left of a segment up to where its successor says it ends. */
  *#readWhole(header: SegmentHeader, successor: SegmentHeader): Machine {
    const cursor = this.#enter(header);
    const fd = this.#openFile(header.seq, 'read');
    yield;
    const path = this.#pathOf(header.seq);
    const source = this.#packed.has(header.seq)
      ? (yield* openPacked(this.#storage, this.#files, fd, path)).bytes
      : new FileBytes(this.#storage, fd);
    const reader = this.#readerOf(source, header.seq, cursor.commitEnd, successor.prevEndPos);
    for (;;) {
      const found = reader.next();
      if (found === READ_MORE) {
        yield;
        continue;
      }
      if (found === READ_END && reader.position === successor.prevEndPos) break;
      if (found !== READ_RECORD) {
        throw this.#damaged(header.seq, reader.position, found, cursor.next, {
          witness: successor.baseOffset,
        });
      }
      admit(reader.header, cursor);
      check(reader, cursor);
      if (reader.header.kind !== RECORD_COMMIT) continue;
      while (!this.#offer(reader, cursor)) yield;
    }
    if (cursor.next !== successor.baseOffset) {
      throw corrupt(
        'GAP',
        `segment ${header.seq} ends at ${cursor.next}, not where the next begins`,
        {
          offset: cursor.next,
          seq: successor.seq,
          position: 0,
          got: successor.baseOffset,
        },
      );
    }
    if (cursor.chain !== successor.prevChain) {
      throw corrupt('FORK', `segment ${successor.seq} follows another history`, {
        offset: cursor.next,
        seq: successor.seq,
        position: 0,
      });
    }
    this.#files.close(fd);
    yield;
  }

  /** The cursor for a pass over a segment: from the start position if it lies in it, else its base. */
  #enter(header: SegmentHeader): Cursor {
    const fed = this.#fed;
    if (fed.seq === header.seq) return { ...fed };
    fed.seq = header.seq;
    fed.commitEnd = SEGMENT_BLOCK_BYTES;
    fed.epoch = Math.max(fed.epoch, header.epoch);
    return { ...fed };
  }

  #readerOf(bytes: SegmentBytes, seq: number, from: number, end: number): SegmentReader {
    const salt = saltOf(this.#facts.logId, seq);
    return new SegmentReader(bytes, seq, salt, from, end, this.#readBytes);
  }

  #fileOf(fd: number): FileBytes {
    return new FileBytes(this.#storage, fd);
  }

  /** Feeds the commit the reader stands on, which `cursor` counts in already. False: no room, try again. */
  #offer(reader: SegmentReader, cursor: Cursor): boolean {
    const { header } = reader;
    // What is being offered shows in `mark` while it is; the two change places, for this is done per record.
    const before = this.#fed;
    this.#fed = this.#offered;
    copyCursor(cursor, this.#fed);
    if (this.#feed(header, reader.bytes, reader.payloadOffset, header.payloadLen)) {
      this.#offered = before;
      return true;
    }
    this.#offered = this.#fed;
    this.#fed = before;
    this.waiting = true;
    return false;
  }

  // ---------------------------------------------------------------- the last segment

  *#readLast(): Machine {
    const last = this.#headerAt(this.#chain.length - 1);
    const begin = this.#enter(last);
    const fd = this.#files.open(segmentPath(last.seq), this.#options.readOnly ? 'read' : 'write');
    yield;
    const size = this.#storage.size(fd);
    yield;
    if (begin.commitEnd > size) {
      throw this.#behindManifest(last.seq, size, begin.next);
    }
    const end = this.#isCut
      ? yield* this.#verifyUpToEnd(last, fd, size, begin, this.#facts.logEnd!)
      : yield* this.#verifyLast(last, fd, size, begin);
    if (end.tornBytes > 0) yield* this.#setAside(last.seq, fd, end);
    this.next = end.cursor.next;
    this.atMs = end.cursor.atMs;
    // History that somebody may have seen is gone: what follows is told apart by its epoch.
    this.epoch = Math.max(end.cursor.epoch, this.#epochBeyond) + (end.dropped ? 1 : 0);

    if (this.#options.readOnly) {
      yield* this.#feedLast(last.seq, fd, begin, end, this.next);
      this.#files.close(fd);
      yield;
      return;
    }
    const { reader, cursor } = yield* this.#feedLast(last.seq, fd, begin, end, this.#proven);
    if (this.clean) this.#resumeInPlace(last, fd, size, end);
    else yield* this.#beginSegment(last, fd, size, reader, cursor);
  }

  /**
   * First pass: how far the segment is sound, what its records prove, and what lies behind the end.
   * Throws when a witness proves that more was there.
   */
  *#verifyLast(
    last: SegmentHeader,
    fd: number,
    size: number,
    begin: Cursor,
  ): Generator<void, LogEnd, void> {
    this.#proven = Math.max(this.#proven, last.baseOffset);
    const witness = this.#proven;
    const cursor = { ...begin };
    const reader = this.#readerOf(this.#fileOf(fd), last.seq, begin.commitEnd, size);
    let cleanAt = -1;
    let commits = 0;
    let found = READ_MORE;
    while (cleanAt < 0) {
      found = reader.next();
      if (found === READ_MORE) {
        yield;
        continue;
      }
      if (found !== READ_RECORD) break;
      const { header } = reader;
      admit(header, cursor);
      check(reader, cursor);
      this.#prove(header.claim);
      if (header.kind === RECORD_CLEAN) {
        cleanAt = header.position;
        commits = decodeSegmentEnd(reader.bytes, reader.payloadOffset).commits;
      }
    }
    const position = reader.validBytes;
    const next = cursor.next;

    const isRecycled = (last.compat & COMPAT_RECYCLED) !== 0;
    const tail = yield* this.#scan(fd, last.seq, position, size, isRecycled);
    const tornBytes = tail.contentEnd - position;
    if (tail.claim > next) {
      throw this.#damaged(last.seq, position, found, next, {
        witness: tail.claim,
        records: tail.headers,
      });
    }
    this.#prove(tail.claim);
    this.clean = cleanAt >= 0 && tornBytes === 0;
    // After CLEAN no later segment was ever begun: the SEAL that replaces it is synced before that.
    const unused = this.clean ? [] : this.#unused;
    let dropped = tornBytes > 0;
    let content = -1;
    for (const { seq, zero } of unused) {
      const scan = yield* this.#scanUnused(seq);
      if (scan.headers > 0) dropped = true;
      if (scan.headers > 0 || !zero) content = seq;
      if (scan.claim > next) {
        throw this.#damaged(seq, 0, READ_BAD_HEADER, next, {
          witness: scan.claim,
          records: scan.headers,
        });
      }
      this.#prove(scan.claim);
    }
    if (witness > next) {
      if (tornBytes > 0) throw this.#damaged(last.seq, position, found, next, { witness });
      if (content >= 0) throw this.#damaged(content, 0, READ_BAD_HEADER, next, { witness });
      throw this.#behindManifest(last.seq, position, next);
    }
    return { position, cursor, cleanAt, commits, tornBytes, records: tail.headers, dropped };
  }

  /**
   * The same where a truncation was cut off: the log ends before `logEnd`, and what lies behind is void,
   * damaged or not. It is only asked for its epochs, which no other history may have.
   */
  *#verifyUpToEnd(
    last: SegmentHeader,
    fd: number,
    size: number,
    begin: Cursor,
    logEnd: number,
  ): Generator<void, LogEnd, void> {
    this.#prove(last.baseOffset);
    const cursor = { ...begin };
    const reader = this.#readerOf(this.#fileOf(fd), last.seq, begin.commitEnd, size);
    let found = READ_MORE;
    while (cursor.next < logEnd) {
      found = reader.next();
      if (found === READ_MORE) {
        yield;
        continue;
      }
      if (found !== READ_RECORD) {
        throw this.#damaged(last.seq, reader.position, found, cursor.next, { witness: logEnd });
      }
      admit(reader.header, cursor);
      check(reader, cursor);
      this.#prove(reader.header.claim);
    }
    const position = reader.validBytes;
    if (cursor.next !== logEnd) {
      throw corrupt('GAP', `the log is to end at ${logEnd}, within a record`, {
        offset: cursor.next,
        seq: last.seq,
        position,
        got: logEnd,
      });
    }
    do {
      found = reader.next();
      if (found === READ_RECORD) {
        this.#epochBeyond = Math.max(this.#epochBeyond, reader.header.epoch);
      }
      yield;
    } while (found === READ_RECORD || found === READ_MORE);
    this.#proven = Math.min(this.#proven, logEnd);
    return { position, cursor, cleanAt: -1, commits: 0, tornBytes: 0, records: 0, dropped: true };
  }

  #prove(claim: number): void {
    if (claim > this.#proven) this.#proven = claim;
  }

  *#scan(
    fd: number,
    seq: number,
    from: number,
    end: number,
    isRecycled: boolean,
  ): Generator<void, TailScan, void> {
    const salt = saltOf(this.#facts.logId, seq);
    const scan = new TailScan(this.#fileOf(fd), salt, from, end, isRecycled, this.#readBytes);
    let more = true;
    while (more) {
      more = scan.step();
      yield;
    }
    return scan;
  }

  *#scanUnused(seq: number): Generator<void, TailScan, void> {
    const fd = this.#files.open(segmentPath(seq), 'read');
    yield;
    const size = this.#storage.size(fd);
    yield;
    // Only its headers are asked for.
    const scan = yield* this.#scan(fd, seq, SEGMENT_BLOCK_BYTES, size, true);
    this.#files.close(fd);
    yield;
    return scan;
  }

  /** The torn tail, copied away before anything voids it. */
  *#setAside(seq: number, fd: number, end: LogEnd): Machine {
    const { position, tornBytes, records } = end;
    if (this.#options.strictTail) {
      throw corrupt('TORN_TAIL', `${segmentPath(seq)} ends in a torn write at ${position}`, {
        offset: end.cursor.next,
        seq,
        position,
        bytes: tornBytes,
      });
    }
    const quarantine = this.#options.readOnly
      ? undefined
      : quarantinePath(`${seq}-${position}.torn`);
    this.torn = { seq, position, bytes: tornBytes, quarantine, records };
    if (quarantine === undefined) return;
    // An attempt that a crash cut short may have left one: the same bytes, perhaps not all.
    this.#storage.unlink(quarantine);
    yield;
    const target = this.#files.open(quarantine, 'create');
    yield;
    const chunk = new Uint8Array(Math.min(this.#readBytes, tornBytes));
    for (let at = 0; at < tornBytes;) {
      const wanted = Math.min(chunk.length, tornBytes - at);
      const got = this.#storage.read(fd, chunk, 0, wanted, position + at);
      yield;
      if (got !== wanted) throw cutShort(segmentPath(seq), got, wanted);
      const put = this.#storage.write(target, chunk, 0, got, at);
      if (put !== got) throw shortWrite(put, got, quarantine);
      yield;
      at += got;
    }
    this.#storage.sync(target);
    yield;
    this.#files.close(target);
    yield;
    this.#storage.syncDir(QUARANTINE_DIR);
    yield;
  }

  /** Second pass: feeds the commits below `upper`. The reader returned stands behind the last of them. */
  *#feedLast(
    seq: number,
    fd: number,
    begin: Cursor,
    end: LogEnd,
    upper: number,
  ): Generator<void, { reader: SegmentReader; cursor: Cursor }, void> {
    invariant(upper <= end.cursor.next, 'what is proven is there', upper, end.cursor.next);
    const reader = this.#readerOf(this.#fileOf(fd), seq, begin.commitEnd, end.position);
    const cursor = { ...begin };
    while (cursor.next < upper) {
      const found = reader.next();
      if (found === READ_MORE) {
        yield;
        continue;
      }
      if (found !== READ_RECORD) {
        throw this.#damaged(seq, reader.position, found, cursor.next, { witness: upper });
      }
      admit(reader.header, cursor);
      if (reader.header.kind !== RECORD_COMMIT) continue;
      while (!this.#offer(reader, cursor)) yield;
    }
    return { reader, cursor };
  }

  // ---------------------------------------------------------------- going on

  /** After CLEAN: the writer goes on over it. */
  #resumeInPlace(last: SegmentHeader, fd: number, size: number, end: LogEnd): void {
    const { cursor } = end;
    let spareSeq = 0;
    let spareRecycled = false;
    for (const unused of this.#unused.toReversed()) {
      const fits = unused.zero && unused.bytes === this.#options.segmentBytes;
      if (fits && spareSeq === 0) {
        spareSeq = unused.seq;
        spareRecycled = unused.used;
      } else this.orphans.push(segmentPath(unused.seq));
    }
    this.#files.handOver(fd);
    this.resume = {
      logId: this.#facts.logId,
      seq: last.seq,
      fd,
      position: end.cleanAt,
      commitEnd: cursor.commitEnd,
      baseOffset: last.baseOffset,
      baseAtMs: last.baseAtMs,
      commits: end.commits,
      next: cursor.next,
      durable: cursor.next,
      chain: cursor.chain,
      epoch: this.epoch,
      atMs: cursor.atMs,
      zeroedEnd: size,
      claimed: cursor.next,
      highestSeq: this.#highestSeq,
      spareSeq,
      spareRecycled,
      filled: this.#filled(),
    };
  }

  #filled(): boolean {
    return this.#chain.some(({ reason }) => reason === REASON_ROTATE);
  }

  /**
   * Begins a segment behind the last proven commit, where `proven` and `reader` stand, with the
   * suspect commits that follow there; feeds those; trims the old file.
   */
  *#beginSegment(
    last: SegmentHeader,
    oldFd: number,
    oldSize: number,
    reader: SegmentReader,
    proven: Cursor,
  ): Machine {
    for (const { seq } of this.#unused) this.orphans.push(segmentPath(seq));
    // A segment without a proven commit is not worth a link: the new one takes its place.
    const replaces = proven.commitEnd === SEGMENT_BLOCK_BYTES;
    const suspects = proven.next < this.next;
    const seq = this.#highestSeq + 1;
    const fd = this.#files.open(segmentPath(seq), 'create');
    yield;
    const prepared = preparedBytesOf(this.#options);
    const header: SegmentHeader = {
      roCompat: 0,
      compat: prepared > 0 ? COMPAT_ZERO_FILLED : 0,
      logId: this.#facts.logId,
      seq,
      baseOffset: proven.next,
      prevSeq: replaces ? last.prevSeq : last.seq,
      prevEndPos: replaces ? last.prevEndPos : proven.commitEnd,
      prevChain: proven.chain,
      // Suspect commits keep their epochs.
      epoch: suspects ? proven.epoch : this.epoch,
      plannedBytes: this.#options.segmentBytes,
      baseAtMs: proven.atMs,
      reason: this.#isCut ? REASON_TRUNCATE : REASON_RECOVERY,
    };
    const block = new Uint8Array(
      Math.min(SEGMENT_BLOCK_BYTES + prepared, this.#options.segmentBytes),
    );
    if (!suspects) encodeSegmentBlock(block, 0, header);
    this.#put(fd, seq, block, block.length);
    yield;
    let position = SEGMENT_BLOCK_BYTES;
    if (suspects) position = yield* this.#rewrite(header, fd, reader, { ...proven });
    this.#storage.sync(fd);
    yield;
    if (suspects) {
      encodeSegmentBlock(block, 0, header);
      this.#put(fd, seq, block, SEGMENT_BLOCK_BYTES);
      yield;
      this.#storage.sync(fd);
      yield;
    }
    this.#storage.syncDir(LOG_DIR);
    yield;

    const copies = this.#readerOf(this.#fileOf(fd), seq, SEGMENT_BLOCK_BYTES, position);
    const cursor = { ...proven, seq, commitEnd: SEGMENT_BLOCK_BYTES };
    this.#fed = { ...cursor };
    while (cursor.next < this.next) {
      const found = copies.next();
      if (found === READ_MORE) {
        yield;
        continue;
      }
      if (found !== READ_RECORD) {
        throw this.#damaged(seq, copies.position, found, cursor.next, { witness: this.next });
      }
      admit(copies.header, cursor);
      if (copies.header.kind !== RECORD_COMMIT) continue;
      while (!this.#offer(copies, cursor)) yield;
    }
    this.#fed.epoch = this.epoch;

    if (!replaces && oldSize > proven.commitEnd) {
      // Only tidiness: the new header has voided it.
      this.#storage.truncate(oldFd, proven.commitEnd);
      yield;
    }
    this.#files.close(oldFd);
    yield;
    if (replaces) {
      this.orphans.push(segmentPath(last.seq));
      this.segments.pop();
    }
    this.segments.push(segmentOf(header, false));
    this.#files.handOver(fd);
    this.resume = {
      logId: header.logId,
      seq,
      fd,
      position,
      commitEnd: cursor.commitEnd,
      baseOffset: header.baseOffset,
      baseAtMs: header.baseAtMs,
      commits: this.suspectCount,
      next: this.next,
      durable: this.next,
      chain: cursor.chain,
      epoch: this.epoch,
      atMs: cursor.atMs,
      zeroedEnd: Math.max(block.length, position),
      claimed: proven.next,
      highestSeq: seq,
      spareSeq: 0,
      spareRecycled: false,
      filled: this.#filled(),
    };
  }

  /** Writes the commits that `reader` still has into the new segment, as a writer would; returns where they end. */
  *#rewrite(
    header: SegmentHeader,
    fd: number,
    reader: SegmentReader,
    cursor: Cursor,
  ): Generator<void, number, void> {
    const writer = new LogWriter(
      this.#storage,
      {
        segmentBytes: segmentBytesMax,
        prepare: false,
        batchBytesMax: Math.min(REWRITE_BATCH_BYTES, reader.bytesLeft),
      },
      {
        logId: header.logId,
        seq: header.seq,
        fd,
        position: SEGMENT_BLOCK_BYTES,
        commitEnd: SEGMENT_BLOCK_BYTES,
        baseOffset: header.baseOffset,
        baseAtMs: header.baseAtMs,
        commits: 0,
        next: header.baseOffset,
        durable: header.baseOffset,
        chain: header.prevChain,
        epoch: header.epoch,
        atMs: header.baseAtMs,
        zeroedEnd: SEGMENT_BLOCK_BYTES,
        claimed: 0,
        highestSeq: header.seq,
        spareSeq: 0,
        spareRecycled: false,
        filled: false,
      },
    );
    while (cursor.next < this.next) {
      const found = reader.next();
      if (found === READ_MORE) {
        yield;
        continue;
      }
      if (found !== READ_RECORD) {
        throw this.#damaged(reader.header.seq, reader.position, found, cursor.next, {});
      }
      const record = reader.header;
      admit(record, cursor);
      if (record.kind !== RECORD_COMMIT) continue;
      const refused = writer.append(
        reader.bytes,
        reader.payloadOffset,
        record.payloadLen,
        record.payloadCrc,
        record.txCount,
        record.minTxOffset,
        record.epoch,
        record.committedAtMs,
      );
      invariant(refused === ACCEPTED, 'a sound record is accepted again', refused);
      this.suspectCount++;
      if (writer.full || record.payloadLen >= inPlaceBytesMin)
        yield* drain(writer, segmentPath(header.seq));
    }
    if (this.epoch > writer.epoch) {
      writer.epoch = this.epoch;
      writer.watermark();
    }
    yield* drain(writer, segmentPath(header.seq));
    return writer.position;
  }

  #put(fd: number, seq: number, bytes: Uint8Array, length: number): void {
    const got = this.#storage.write(fd, bytes, 0, length, 0);
    if (got !== length) throw shortWrite(got, length, segmentPath(seq));
  }

  // ---------------------------------------------------------------- errors

  #damaged(
    seq: number,
    position: number,
    found: number,
    offset: number,
    more: ErrorDetail,
  ): TidemarkError {
    const kind = found === READ_BAD_PAYLOAD ? 'payload' : found === READ_CUT ? 'length' : 'header';
    const path = segmentPath(seq);
    return corrupt('CHECKSUM', `${path} is damaged at ${position}: offset ${offset} was durable`, {
      offset,
      seq,
      position,
      kind,
      ...more,
    });
  }

  #behindManifest(seq: number, position: number, offset: number): TidemarkError {
    const witness = Math.max(this.#facts.witness, this.#facts.start?.upper ?? 0);
    return corrupt(
      'LOG_BEHIND_MANIFEST',
      `the log ends at offset ${offset}, the manifest names ${witness}`,
      { offset, seq, position, witness },
    );
  }
}

/** What the first pass over the last segment found. */
type LogEnd = {
  /** End of what is sound. */
  readonly position: number;
  readonly cursor: Cursor;
  /** Where CLEAN stands, or -1, and what it says. */
  readonly cleanAt: number;
  readonly commits: number;
  readonly tornBytes: number;
  readonly records: number;
  /** Something written is not part of the log any more. */
  readonly dropped: boolean;
};

/** Requires: nothing in the batch is lent from a buffer that has moved on. */
function* drain(writer: LogWriter, path: string): Machine {
  while (writer.staged) {
    try {
      writer.step(false);
    } catch (error) {
      // The log is not open yet: the disk's own error says more than that it is poisoned.
      const cause = error instanceof TidemarkError ? error.cause : undefined;
      const { got, wanted } = (cause ?? {}) as { got?: number; wanted?: number };
      if (got !== undefined) throw shortWrite(got, wanted!, path);
      throw cause ?? error;
    }
    yield;
  }
}

function segmentOf(header: SegmentHeader, packed: boolean): LogSegment {
  return { seq: header.seq, baseOffset: header.baseOffset, baseAtMs: header.baseAtMs, packed };
}

function cutShort(path: string, got: number, wanted: number): TidemarkError {
  return new TidemarkError('TIDEMARK_IO', `short read of ${path}: ${got} of ${wanted} bytes`, {
    call: 'read',
    path,
    got,
    wanted,
  });
}
