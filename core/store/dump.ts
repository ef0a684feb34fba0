/**
 * The log as records or transactions, in order, between two offsets; and the same for a log that grows,
 * from where the last look ended. Reads whole records that pass their checksums, across segments. What
 * it meets beyond the last sound record ends it: an error where a later segment or record proves damage
 * (`tolerate`: it is marked, and reading goes on at the next sound record), else the end of the log.
 * Called by the command line.
 */
import { TidemarkError, corrupt } from '../base/errors.ts';
import { OP_ATTACH, OP_DELETE, OP_DELETE_RANGE, OP_PUT, OP_UPDATE } from '../base/update.ts';
import { PayloadWalker } from '../log/payload.ts';
import {
  RECORD_ALIGN,
  RECORD_CLEAN,
  RECORD_COMMIT,
  RECORD_HEADER_BYTES,
  RECORD_KIND_OFFSET,
  RECORD_PAD,
  RECORD_SEAL,
  RECORD_WATERMARK,
  isRecordHeader,
} from '../log/record.ts';
import { SEGMENT_BLOCK_BYTES, saltOf } from '../log/segment.ts';
import { isZero } from '../log/reader.ts';
import type { SegmentReader } from '../log/reader.ts';
import { cursorAtBase } from '../log/verify.ts';
import type { Cursor } from '../log/verify.ts';
import { LOG_DIR, segmentPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { damagedAt, nextSound, walkSegment } from './log-walk.ts';
import type { SegmentWalk } from './log-walk.ts';
import { chainOf, isPruned, lookAt, readManifest } from './look.ts';
import type { SegmentFile, StoreLook } from './look.ts';
import { findingOf } from './report.ts';
import type { Machine, Progress, StoreFinding } from './report.ts';

export type DumpOptions = {
  /** First offset wanted; undefined: the first there is. */
  readonly from: number | undefined;
  /** First offset not wanted. */
  readonly to: number;
  readonly tolerate: boolean;
  /** Transactions with their operations instead of records. */
  readonly transactions: boolean;
};

/** Bytes as text where they are text, else in base64. */
export type DumpedBytes = { readonly text: string } | { readonly base64: string };

export type DumpedRecord = {
  readonly type: 'record';
  readonly kind: string;
  readonly offset: number;
  readonly transactions: number;
  readonly atMs: number;
  readonly epoch: number;
  readonly bytes: number;
  readonly durable: number | undefined;
  readonly seq: number;
  readonly position: number;
};

export type DumpedOperation = {
  readonly collection: number;
  readonly kind: string;
  readonly key?: DumpedBytes;
  readonly value?: DumpedBytes;
  readonly diff?: number;
  /** Of a deleteRange: the first key it leaves alone; none: to the end. */
  readonly to?: DumpedBytes;
};

export type DumpedTransaction = {
  readonly type: 'transaction';
  readonly offset: number;
  readonly atMs: number;
  readonly operations: readonly DumpedOperation[];
};

export type DumpedDamage = { readonly type: 'damage' } & StoreFinding;

export type Dumped = DumpedRecord | DumpedTransaction | DumpedDamage;

/** Where a dump ended: a later one goes on there. */
export type DumpPlace = {
  /** First offset not given out. */
  readonly next: number;
  readonly cursor: Cursor | undefined;
  readonly seq: number;
  readonly position: number;
  /** Of the segment: tells its records from whatever else lies in its file. */
  readonly salt: number;
};

const RECORD_KINDS: { readonly [kind: number]: string } = {
  [RECORD_COMMIT]: 'commit',
  [RECORD_WATERMARK]: 'watermark',
  [RECORD_PAD]: 'pad',
  [RECORD_SEAL]: 'seal',
  [RECORD_CLEAN]: 'clean',
};

const OPERATION_KINDS: { readonly [kind: number]: string } = {
  [OP_PUT]: 'put',
  [OP_DELETE]: 'delete',
  [OP_UPDATE]: 'update',
  [OP_DELETE_RANGE]: 'deleteRange',
  [OP_ATTACH]: 'attach',
};

/** Where the last two segments begin: soon enough for the last lines, and no more is read. */
export function* recentOffset(storage: Storage): Machine<number> {
  const chain = chainOf(yield* lookAt(storage));
  return chain.at(-2)?.header?.baseOffset ?? chain.at(-1)?.header?.baseOffset ?? 0;
}

/** Throws TIDEMARK_CORRUPT where the log is damaged, unless told to go on. Returns where it ended. */
export function* dumpLog(
  storage: Storage,
  options: DumpOptions,
  emit: (item: Dumped) => void,
  progress: Progress,
  after?: DumpPlace,
): Machine<DumpPlace> {
  const look = yield* lookAt(storage);
  return yield* new Dump(storage, options, emit, progress, look).run(after);
}

class Dump {
  readonly #storage: Storage;
  readonly #options: DumpOptions & { readonly from: number };
  readonly #emit: (item: Dumped) => void;
  readonly #progress: Progress;
  readonly #look: StoreLook;
  readonly #walker: PayloadWalker = new PayloadWalker();

  constructor(
    storage: Storage,
    options: DumpOptions,
    emit: (item: Dumped) => void,
    progress: Progress,
    look: StoreLook,
  ) {
    this.#storage = storage;
    const lowest = chainOf(look)[0]?.header?.baseOffset ?? 0;
    this.#options = { ...options, from: options.from ?? lowest };
    this.#emit = emit;
    this.#progress = progress;
    this.#look = look;
  }

  *run(after: DumpPlace | undefined): Machine<DumpPlace> {
    const chain = chainOf(this.#look);
    const { logId } = this.#look;
    const top = chain.at(-1);
    if (logId === undefined || top === undefined) {
      throw this.#look.manifestError instanceof TidemarkError
        ? this.#look.manifestError
        : corrupt('MISSING_SEGMENT', 'the store has no readable segment', {});
    }
    const { from, to } = this.#options;
    // Below this there is nothing to be had, and an answer without it would look whole.
    const lowest = chain[0].header?.baseOffset ?? 0;
    if (after === undefined && from < lowest) {
      const first = this.#look.manifest?.state.logStart.offset ?? 0;
      const error =
        from >= first
          ? corrupt('MISSING_SEGMENT', `segments with offsets below ${lowest} are missing`, {
              offset: from,
            })
          : historyLost(lowest);
      if (!this.#options.tolerate) throw error;
      this.#damage(error, undefined);
    }
    let place = after;
    let index = chain.findIndex(({ seq }) => seq === after?.seq);
    if (index < 0) {
      // The segment it ended in, if any, has been replaced or pruned.
      index = startIndex(chain, after?.next ?? from);
      place = undefined;
    }
    for (const file of chain.slice(index)) {
      try {
        place = yield* this.#segment(logId, file, place);
      } catch (error) {
        const lost = error instanceof TidemarkError ? this.#lost(file) : undefined;
        if (lost === undefined) throw error;
        if (!this.#options.tolerate) throw lost;
        this.#damage(lost, file);
        continue;
      }
      if (place.next >= to) break;
    }
    if (place !== undefined) return place;
    const { seq } = top;
    const salt = saltOf(logId, seq);
    return { next: from, cursor: undefined, seq, position: SEGMENT_BLOCK_BYTES, salt };
  }

  *#segment(
    logId: Uint8Array,
    file: SegmentFile,
    place: DumpPlace | undefined,
  ): Machine<DumpPlace> {
    const { header, successor } = file;
    if (header === undefined) throw corrupt('CHECKSUM', 'no readable header', { file: file.path });
    const goesOn = place !== undefined && place.seq === file.seq;
    let cursor: Cursor =
      goesOn && place.cursor !== undefined ? { ...place.cursor } : cursorAtBase(header);
    let position = goesOn ? place.position : SEGMENT_BLOCK_BYTES;
    let next = Math.max(place?.next ?? 0, this.#options.from);
    for (;;) {
      let cleanAt = -1;
      let atClean: Cursor | undefined;
      const walk: SegmentWalk = yield* walkSegment(
        this.#storage,
        logId,
        file,
        cursor,
        position,
        (reader) => {
          const { kind } = reader.header;
          if (kind === RECORD_CLEAN && successor === undefined) {
            // The next writer writes over it.
            cleanAt = reader.header.position;
            atClean = { ...cursor };
          }
          if (reader.header.minTxOffset >= this.#options.to) return false;
          this.#record(reader, next);
          if (kind === RECORD_COMMIT) next = Math.max(next, cursor.next);
          return cursor.next < this.#options.to;
        },
        this.#progress,
      );
      const at = cleanAt >= 0 ? cleanAt : walk.position;
      const here: DumpPlace = {
        next: Math.min(next, Math.max(this.#options.to, this.#options.from)),
        cursor: atClean ?? { ...cursor },
        seq: file.seq,
        position: at,
        salt: saltOf(logId, file.seq),
      };
      if (next >= this.#options.to) return here;
      if (walk.error === undefined) {
        if (successor === undefined && walk.tail.claim <= cursor.next) return here;
        if (successor !== undefined && walk.position === file.end) return here;
      }
      const lost = this.#lost(file);
      const witness = Math.max(walk.tail.claim, successor?.baseOffset ?? 0);
      const error = lost ?? walk.error ?? damagedAt(file, walk, cursor.next, witness);
      if (!this.#options.tolerate) throw error;
      this.#damage(error, file);
      if (lost !== undefined) return here;
      const resume = yield* this.#resume(logId, file, walk);
      if (resume === undefined) return here;
      cursor = resume.cursor;
      position = resume.position;
    }
  }

  /** The next sound record behind what stopped the walk, and a cursor that takes it as it comes. */
  *#resume(
    logId: Uint8Array,
    file: SegmentFile,
    walk: SegmentWalk,
  ): Machine<{ cursor: Cursor; position: number } | undefined> {
    return yield* nextSound(this.#storage, logId, file, walk.position + RECORD_ALIGN);
  }

  /** The error for a segment that a live engine has let go of while it was read. */
  #lost(file: SegmentFile): TidemarkError | undefined {
    if (!isPruned(this.#storage, file.seq)) return undefined;
    return historyLost(readManifest(this.#storage)?.state.logStart.offset ?? 0);
  }

  #damage(error: unknown, file: SegmentFile | undefined): void {
    this.#emit({ type: 'damage', ...findingOf(error, file?.path) });
  }

  /** Gives out what the reader stands on; transactions below `next` have been. */
  #record(reader: SegmentReader, next: number): void {
    const { header } = reader;
    const { from, to } = this.#options;
    if (!this.#options.transactions) {
      const isControl = header.kind !== RECORD_COMMIT;
      const last = isControl ? header.minTxOffset : header.endOffset - 1;
      if (last < from || header.minTxOffset >= to) return;
      const noClaim = header.claim === 0 && header.minTxOffset > 0;
      this.#emit({
        type: 'record',
        kind: RECORD_KINDS[header.kind] ?? `${header.kind}`,
        offset: header.minTxOffset,
        transactions: header.txCount,
        atMs: header.committedAtMs,
        epoch: header.epoch,
        bytes: header.bytes,
        durable: noClaim ? undefined : header.claim,
        seq: header.seq,
        position: header.position,
      });
      return;
    }
    if (header.kind !== RECORD_COMMIT) return;
    const walker = this.#walker;
    walker.start(reader.bytes, reader.payloadOffset, header.txCount);
    while (walker.nextTransaction()) {
      const offset = header.minTxOffset + walker.txIndex;
      if (offset < next || offset >= to) continue;
      const operations: DumpedOperation[] = [];
      while (walker.nextOperation()) operations.push(operationOf(walker));
      this.#emit({ type: 'transaction', offset, atMs: header.committedAtMs, operations });
    }
  }
}

function historyLost(offset: number): TidemarkError {
  return new TidemarkError('TIDEMARK_HISTORY_LOST', `the log begins at offset ${offset}`, {
    offset,
  });
}

/** The last segment that begins at or below the offset. */
function startIndex(chain: readonly SegmentFile[], from: number): number {
  const index = chain.findLastIndex(
    ({ header }) => header !== undefined && header.baseOffset <= from,
  );
  return Math.max(0, index);
}

function operationOf(walker: PayloadWalker): DumpedOperation {
  const { bytes, kind, collection } = walker;
  const operation = { collection, kind: OPERATION_KINDS[kind] ?? `${kind}` };
  const key = bytesOf(bytes, walker.keyOffset, walker.keyBytes);
  const value = bytesOf(bytes, walker.valueOffset, walker.valueBytes);
  switch (kind) {
    case OP_PUT:
      return { ...operation, key, value };
    case OP_DELETE:
      return { ...operation, key };
    case OP_UPDATE:
      return { ...operation, key, value, diff: walker.diff };
    case OP_DELETE_RANGE:
      return { ...operation, key, ...(walker.valueBytes > 0 ? { to: value } : {}) };
    default:
      return { ...operation, value };
  }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function bytesOf(bytes: Uint8Array, offset: number, length: number): DumpedBytes {
  const slice = bytes.slice(offset, offset + length);
  try {
    return { text: UTF8.decode(slice) };
  } catch {
    return { base64: Buffer.from(slice).toString('base64') };
  }
}

/** True when nothing can have been added behind the place: a cheap look, so that following costs little. */
export function isStill(storage: Storage, place: DumpPlace): boolean {
  const path = segmentPath(place.seq);
  const header = new Uint8Array(RECORD_HEADER_BYTES);
  if (readAt(storage, path, header, place.position) < 0) return false;
  // What is there may be zeros, bytes of an earlier use of the file, or the CLEAN that the next record is to replace.
  const isRecord = isRecordHeader(header, 0, place.salt, place.position);
  if (isRecord && header[RECORD_KIND_OFFSET] !== RECORD_CLEAN) return false;
  for (const name of storage.list(LOG_DIR)) {
    if (!name.endsWith('.seg') || `${LOG_DIR}/${name}` <= path) continue;
    // A spare that has been taken has a header.
    const begin = new Uint8Array(RECORD_ALIGN);
    const got = readAt(storage, `${LOG_DIR}/${name}`, begin, 0);
    if (got < 0 || !isZero(begin, 0, got)) return false;
  }
  return true;
}

/** How many bytes there were; -1 when the file is not there. */
function readAt(storage: Storage, path: string, bytes: Uint8Array, position: number): number {
  if (storage.stat(path) === undefined) return -1;
  const fd = storage.open(path, 'read');
  try {
    return storage.read(fd, bytes, 0, bytes.length, position);
  } finally {
    storage.close(fd);
  }
}
