/**
 * What is in a store, as plain data: manifest, segments with what their records say, spines, files.
 * Reads every segment once, changes nothing, and shows damage as a note beside what it concerns: whether
 * the store is sound is what verify says. Called by the command line, on its one thread.
 */
import { OP_DELETE, OP_PUT, CATALOG_ID } from '../base/update.ts';
import { PayloadWalker } from '../log/payload.ts';
import { READ_END, READ_ZERO } from '../log/reader.ts';
import { RECORD_COMMIT } from '../log/record.ts';
import { SEGMENT_BLOCK_BYTES } from '../log/segment.ts';
import { cursorAtBase } from '../log/verify.ts';
import type { Hollow, SpineState } from '../spine/batch.ts';
import { decodeRollup } from '../spine/manifest.ts';
import type { LoadedManifest } from '../spine/manifest-store.ts';
import type { PartInfo } from '../spine/part-format.ts';
import { debtBytes, liveRuns, spaceOf } from '../spine/policy.ts';
import { batchesOf } from '../spine/spine.ts';
import { RunCursor, OwnRunParts } from '../spine/run-cursor.ts';
import { PARTS_DIR, QUARANTINE_DIR, TMP_DIR } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { walkSegment } from './log-walk.ts';
import { chainOf, lookAt, readWhole } from './look.ts';
import type { SegmentFile, SegmentPlace, StoreLook } from './look.ts';
import { findingOf } from './report.ts';
import type { Machine, Progress } from './report.ts';

export type SegmentReport = {
  readonly seq: number;
  readonly file: string;
  readonly bytes: number;
  readonly place: SegmentPlace;
  /** How its records are packed; undefined: not at all. */
  readonly codec: 'deflate' | 'zstd' | undefined;
  readonly reason: string | undefined;
  readonly base: number | undefined;
  /** First offset not in it. */
  readonly end: number | undefined;
  readonly baseAtMs: number | undefined;
  /** Of its last commit. */
  readonly endAtMs: number | undefined;
  readonly records: number | undefined;
  readonly commits: number | undefined;
  /** At its end. */
  readonly epoch: number | undefined;
  readonly prevSeq: number | undefined;
  readonly prevEndPosition: number | undefined;
  /** Where its sound records end. */
  readonly endPosition: number | undefined;
  /** Offsets below were durable, by what its records say. */
  readonly claim: number | undefined;
  readonly ending: 'sealed' | 'clean' | 'open' | 'continued' | 'stopped' | undefined;
  readonly note: string | undefined;
};

export type LevelReport = {
  readonly level: number;
  /** Of the spine: neighbours whose parts lie side by side until a merge makes one of them. */
  readonly batches: number;
  readonly runs: number;
  readonly rows: number;
  readonly bytes: number;
};

export type SpineReport = {
  readonly collection: number;
  readonly name: string | undefined;
  readonly kind: string | undefined;
  readonly since: number;
  readonly upper: number;
  readonly rows: number;
  readonly bytes: number;
  readonly merging: number;
  /** Pairs of batches that are becoming one, as the manifest says: what a job has done since is not in it. */
  readonly merges: readonly {
    readonly level: number;
    readonly rows: number;
    readonly bytes: number;
    readonly since: number;
    /** Fuel until they count as one. */
    readonly remaining: number;
  }[];
  /** In batches of several runs, which wait for a merge. */
  readonly debtBytes: number;
  readonly amplification: {
    /** Runs that a read may have to look into; filters spare it most. */
    readonly read: number;
    /** Bytes in parts by those that a merge of all is thought to leave; 1: nothing to be had. */
    readonly space: number;
  };
  /** Newest first. */
  readonly levels: readonly LevelReport[];
  readonly runs: readonly {
    readonly run: number;
    readonly lower: number;
    readonly upper: number;
    readonly rows: number;
    readonly bytes: number;
    readonly parts: readonly {
      readonly file: number;
      readonly offset: number;
      readonly bytes: number;
      readonly rows: number;
    }[];
  }[];
};

export type ManifestReport = {
  readonly logId: string;
  readonly features: {
    readonly incompat: number;
    readonly roCompat: number;
    readonly compat: number;
  };
  readonly rollup: number;
  readonly previous: number;
  readonly edits: number;
  readonly lastEdit: number;
  readonly logStart: { readonly seq: number; readonly offset: number; readonly atMs: number };
  readonly counters: { readonly bid: number; readonly run: number; readonly file: number };
  readonly flushed: LogPositionReport;
  readonly checkpoints: { readonly newer: LogPositionReport; readonly older: LogPositionReport };
  readonly times: number;
  readonly dropped: readonly { readonly collection: number; readonly offset: number }[];
  /** Segments that the archive hook has confirmed. */
  readonly archived: readonly {
    readonly seq: number;
    readonly base: number;
    readonly end: number;
    readonly bytes: number;
    readonly name: string;
    /** SHA-256 of the file. */
    readonly hash: string;
  }[];
  /** Where the log is to end, while it is being truncated. */
  readonly logEnd: number | undefined;
  readonly readOnly: boolean;
  readonly notes: readonly string[];
};

export type LogPositionReport = {
  readonly upper: number;
  readonly seq: number;
  readonly position: number;
  readonly epoch: number;
  readonly atMs: number;
};

/** What keeps history and log, as far as files say it: snapshots, feeds and iterators live in memory only. */
export type HoldReport =
  | {
      readonly kind: 'cursor';
      readonly name: string;
      /** First offset that it has not confirmed. */
      readonly offset: number;
      readonly collections: readonly number[];
      /** Until it lags more than that. */
      readonly maxLag: Readonly<Record<string, number>>;
    }
  /** Under way, or left by a crash. */
  | { readonly kind: 'backup'; readonly file: string; readonly offset: number | undefined };

export type StoreReport = {
  readonly manifest: ManifestReport | undefined;
  readonly manifestError: string | undefined;
  readonly segments: readonly SegmentReport[];
  readonly log: { readonly next: number | undefined; readonly clean: boolean };
  readonly spines: readonly SpineReport[];
  readonly holds: readonly HoldReport[];
  readonly files: {
    readonly parts: number;
    readonly partBytes: number;
    /** In parts/, and in no run: an output in the making, or left by a crash. */
    readonly unnamedParts: readonly string[];
    readonly tmp: readonly string[];
    readonly quarantine: readonly string[];
  };
};

/** Rows of the catalog, newest first applied, as they are stored. */
export type CatalogRows = Map<string, Uint8Array>;

/** Says what a catalog row says; the encodings of rows are not this room's business. */
export type NameOf = (
  key: Uint8Array,
  value: Uint8Array,
) => { id: number; name: string } | undefined;

/** Likewise of a cursor. */
export type CursorOf = (
  key: Uint8Array,
  value: Uint8Array,
) => Extract<HoldReport, { kind: 'cursor' }> | undefined;

const REASONS: readonly string[] = ['create', 'rotate', 'recovery', 'truncate', 'import'];
/** By number; 0: not packed. */
const CODECS: readonly SegmentReport['codec'][] = [undefined, 'deflate', 'zstd'];
const KINDS: readonly string[] = ['', 'keyed', 'multiset', 'upsert'];

export function* inspectStore(
  storage: Storage,
  { nameOf, cursorOf }: { readonly nameOf: NameOf; readonly cursorOf: CursorOf },
  progress: Progress,
): Machine<StoreReport> {
  progress.what = 'manifest';
  const look = yield* lookAt(storage);
  const { manifest } = look;
  for (const { bytes } of chainOf(look)) progress.totalBytes += bytes;
  const catalog: CatalogRows =
    manifest === undefined ? new Map() : catalogInParts(storage, manifest);
  yield;
  progress.what = 'log';
  const segments: SegmentReport[] = [];
  let next: number | undefined;
  let clean = false;
  const from = manifest?.state.flushed.upper ?? 0;
  for (const file of look.segments) {
    const before = progress.doneBytes;
    const report = yield* inspectSegment(storage, look, file, catalog, from, progress);
    progress.doneBytes = before + (file.place === 'chain' ? file.bytes : 0);
    if (report === undefined) continue;
    segments.push(report);
    if (file.place !== 'chain') continue;
    next = report.end;
    clean = report.ending === 'clean';
  }
  segments.sort((a, b) => a.seq - b.seq);
  const names = new Map<number, string>([[CATALOG_ID, '(catalog)']]);
  const holds: HoldReport[] = backupsIn(storage);
  for (const [text, value] of catalog) {
    const key = Buffer.from(text, 'latin1');
    const named = nameOf(key, value);
    if (named !== undefined) names.set(named.id, named.name);
    const cursor = cursorOf(key, value);
    if (cursor !== undefined) holds.push(cursor);
  }
  progress.what = 'done';
  return {
    manifest: manifest === undefined ? undefined : manifestReport(manifest),
    manifestError:
      look.manifestError === undefined ? undefined : findingOf(look.manifestError).message,
    segments,
    log: { next, clean },
    spines: manifest === undefined ? [] : spineReports(manifest, names),
    holds,
    files: filesReport(storage, manifest),
  };
}

// ---------------------------------------------------------------- log

function* inspectSegment(
  storage: Storage,
  look: StoreLook,
  file: SegmentFile,
  catalog: CatalogRows,
  from: number,
  progress: Progress,
): Machine<SegmentReport | undefined> {
  const { header, seq, path, bytes, place, successor, codec } = file;
  const report = {
    seq,
    file: path,
    bytes,
    place,
    codec: CODECS[codec],
    reason: header === undefined ? undefined : (REASONS[header.reason] ?? `${header.reason}`),
    base: header?.baseOffset,
    end: undefined,
    baseAtMs: header?.baseAtMs,
    endAtMs: undefined,
    records: undefined,
    commits: undefined,
    epoch: header?.epoch,
    prevSeq: header?.prevSeq,
    prevEndPosition: header?.prevEndPos,
    endPosition: undefined,
    claim: undefined,
    ending: undefined,
    note: file.error?.message ?? (file.damaged ? 'a copy of its header is damaged' : undefined),
  };
  if (place !== 'chain' || header === undefined || look.logId === undefined) return report;
  const cursor = cursorAtBase(header);
  const walker = new PayloadWalker();
  let walk;
  try {
    walk = yield* walkSegment(
      storage,
      look.logId,
      file,
      cursor,
      SEGMENT_BLOCK_BYTES,
      (reader) => {
        if (reader.header.kind === RECORD_COMMIT && reader.header.endOffset > from) {
          walker.start(reader.bytes, reader.payloadOffset, reader.header.txCount);
          noteCatalog(walker, reader.header.minTxOffset, from, catalog);
        }
        return true;
      },
      progress,
    );
  } catch (error) {
    return { ...report, note: findingOf(error, path).message };
  }
  const isWhole = successor === undefined || walk.position === file.end;
  const stopped =
    walk.error?.message ??
    (isWhole && (walk.stopped === READ_END || walk.stopped === READ_ZERO) && walk.tail.bytes === 0
      ? undefined
      : `sound up to ${walk.position} only, ${walk.tail.bytes} bytes behind it`);
  const ending =
    stopped !== undefined
      ? ('stopped' as const)
      : walk.clean
        ? ('clean' as const)
        : walk.sealed
          ? ('sealed' as const)
          : successor === undefined
            ? ('open' as const)
            : ('continued' as const);
  return {
    ...report,
    end: cursor.next,
    endAtMs: cursor.atMs,
    records: walk.records,
    commits: walk.commits,
    epoch: cursor.epoch,
    endPosition: walk.position,
    claim: walk.claim,
    ending,
    note: [report.note, stopped].filter((text) => text !== undefined).join('; ') || undefined,
  };
}

// ---------------------------------------------------------------- catalog

/** The flushed state of the catalog; nothing when its parts cannot be read. */
function catalogInParts(storage: Storage, manifest: LoadedManifest): CatalogRows {
  const rows: CatalogRows = new Map();
  const spine = manifest.state.spines.get(CATALOG_ID);
  if (spine === undefined) return rows;
  for (const { hollow } of spine.hollows) {
    for (const run of hollow.runs) {
      const seen = new Set<string>();
      const cursor = new RunCursor(storage, new OwnRunParts(storage, run.parts));
      try {
        for (cursor.first(); cursor.valid; cursor.next()) {
          const { keyBytes, keyOffset, keyLength } = cursor;
          const key = textOf(keyBytes, keyOffset, keyLength);
          // The newest version of a key comes first.
          if (seen.has(key)) continue;
          seen.add(key);
          cursor.loadValue();
          const { valueBytes, valueOffset, valueLength } = cursor;
          if (cursor.kind === OP_DELETE) rows.delete(key);
          else rows.set(key, valueBytes.slice(valueOffset, valueOffset + valueLength));
        }
      } catch {
        // Names are a courtesy: what is wrong with the part is verify's to say.
      } finally {
        cursor.leave();
      }
    }
  }
  return rows;
}

function noteCatalog(walker: PayloadWalker, first: number, from: number, rows: CatalogRows): void {
  while (walker.nextTransaction()) {
    if (first + walker.txIndex < from) continue;
    while (walker.nextOperation()) {
      if (walker.collection !== CATALOG_ID) continue;
      const { bytes, kind, keyOffset, keyBytes, valueOffset, valueBytes } = walker;
      const key = textOf(bytes, keyOffset, keyBytes);
      if (kind === OP_PUT) rows.set(key, bytes.slice(valueOffset, valueOffset + valueBytes));
      else if (kind === OP_DELETE) rows.delete(key);
    }
  }
}

/** One character a byte. */
function textOf(bytes: Uint8Array, offset: number, length: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + offset, length).toString('latin1');
}

// ---------------------------------------------------------------- manifest and spines

function manifestReport(manifest: LoadedManifest): ManifestReport {
  const { state, head } = manifest;
  return {
    logId: Buffer.from(state.identity.logId).toString('hex'),
    features: { ...state.identity.features },
    rollup: head.rollup,
    previous: head.previous,
    edits: manifest.editCount,
    lastEdit: manifest.edit,
    logStart: { ...state.logStart },
    counters: { ...state.counters },
    flushed: positionReport(state.flushed),
    checkpoints: {
      newer: positionReport(head.flushed),
      older: positionReport(head.previousFlushed),
    },
    times: state.times.length,
    dropped: state.dropped.map((drop) => ({ ...drop })),
    archived: state.archived.map(({ seq, base, end, bytes, name, hash }) => ({
      seq,
      base,
      end,
      bytes,
      name,
      hash: Buffer.from(hash).toString('hex'),
    })),
    logEnd: state.logEnd,
    readOnly: manifest.readOnly,
    notes: manifest.findings.map(({ message }) => message),
  };
}

function positionReport(position: LoadedManifest['head']['flushed']): LogPositionReport {
  const { upper, seq, position: at, epoch, atMs } = position;
  return { upper, seq, position: at, epoch, atMs };
}

function spineReports(manifest: LoadedManifest, names: Map<number, string>): SpineReport[] {
  const reports: SpineReport[] = [];
  for (const [collection, spine] of manifest.state.spines) {
    reports.push(spineReport(collection, names.get(collection), spine));
  }
  return reports.toSorted((a, b) => a.collection - b.collection);
}

function spineReport(
  collection: number,
  name: string | undefined,
  spine: SpineState<PartInfo>,
): SpineReport {
  const batches = batchesOf(spine);
  const levels = new Map<number, Omit<LevelReport, 'level'>>();
  const merges: SpineReport['merges'][number][] = [];
  for (const [i, { level }] of spine.batches.entries()) {
    const { parts, len } = batches[i];
    const before = levels.get(level) ?? { batches: 0, runs: 0, rows: 0, bytes: 0 };
    const bytes = parts.reduce((sum, { hollow }) => sum + bytesOf(hollow), 0);
    levels.set(level, {
      batches: before.batches + 1,
      runs: before.runs + parts.reduce((sum, { hollow }) => sum + hollow.runs.length, 0),
      rows: before.rows + len,
      bytes: before.bytes + bytes,
    });
  }
  for (const { id, since, remaining } of spine.merges) {
    const { level } = spine.batches.find((batch) => batch.id[0] === id[0])!;
    const { rows, bytes } = levels.get(level)!;
    merges.push({ level, rows, bytes, since, remaining });
  }
  const space = spaceOf(batches, spine.since, 0);
  const left = space.bytes - space.reclaimable;
  const hollows = spine.hollows.map(({ hollow }) => hollow);
  const kind = hollows.find(({ runs }) => runs.length > 0)?.runs[0].parts[0].kind;
  return {
    collection,
    name,
    kind: kind === undefined ? undefined : KINDS[kind],
    since: spine.since,
    upper: hollows.at(-1)?.desc.upper ?? 0,
    rows: hollows.reduce((sum, { len }) => sum + len, 0),
    bytes: hollows.reduce((sum, hollow) => sum + bytesOf(hollow), 0),
    merging: spine.merges.length,
    merges,
    debtBytes: debtBytes(batches),
    amplification: { read: liveRuns(batches), space: left > 0 ? space.bytes / left : 1 },
    levels: [...levels]
      .map(([level, sum]) => ({ level, ...sum }))
      .toSorted((a, b) => a.level - b.level),
    runs: hollows.flatMap(({ desc, runs }) =>
      runs.map((run) => ({
        run: run.runId,
        lower: desc.lower,
        upper: desc.upper,
        rows: run.len,
        bytes: run.parts.reduce((sum, { bytes }) => sum + bytes, 0),
        parts: run.parts.map(({ file, offset, bytes, len }) => ({
          file,
          offset,
          bytes,
          rows: len,
        })),
      })),
    ),
  };
}

function backupsIn(storage: Storage): HoldReport[] {
  return storage
    .list(TMP_DIR)
    .filter((name) => /^backup-[0-9]+-[0-9]+\.rollup$/.test(name))
    .map((name) => {
      const file = `${TMP_DIR}/${name}`;
      let offset: number | undefined;
      try {
        const bytes = readWhole(storage, file);
        if (bytes !== undefined) offset = decodeRollup(bytes, file).state.flushed.upper;
      } catch {
        // It is being written, or was when the power went.
      }
      return { kind: 'backup', file, offset };
    });
}

function bytesOf(hollow: Hollow<PartInfo>): number {
  let bytes = 0;
  for (const run of hollow.runs) for (const part of run.parts) bytes += part.bytes;
  return bytes;
}

function filesReport(storage: Storage, manifest: LoadedManifest | undefined): StoreReport['files'] {
  const named = new Set<number>();
  for (const spine of manifest?.state.spines.values() ?? []) {
    for (const { hollow } of spine.hollows) {
      for (const run of hollow.runs) for (const part of run.parts) named.add(part.file);
    }
  }
  const present = storage.list(PARTS_DIR);
  let partBytes = 0;
  for (const name of present) partBytes += storage.stat(`${PARTS_DIR}/${name}`)?.bytes ?? 0;
  const unnamedParts = present.filter((name) => !named.has(Number.parseInt(name, 10)));
  return {
    parts: present.length,
    partBytes,
    unnamedParts: manifest === undefined ? [] : unnamedParts,
    tmp: storage.list(TMP_DIR),
    quarantine: storage.list(QUARANTINE_DIR),
  };
}
