/**
 * The options of `open`: what they mean, how they are checked, what they become. Unknown options and
 * wrong types are a TypeError before anything happens.
 */
import { availableParallelism, totalmem } from 'node:os';
import { resolve } from 'node:path';
import {
  GiB,
  MiB,
  arenaBytesDefaultMax,
  arenaBytesDefaultMin,
  arenaBytesMax,
  arenaBytesMin,
  generationsPlanned,
  pageBytes,
  segmentBytesDefault,
  segmentBytesMax,
  segmentBytesMin,
  writeBudgetBytesMin,
} from '../core/base/limits.ts';
import { alignUp } from '../core/base/bytes.ts';
import { NODE_BYTES } from '../core/memtable/layout.ts';
import type { Clock, Storage } from '../core/storage/storage.ts';
import type { EngineConfig } from './actor.ts';
import type { ArchiveHook } from './archive.ts';
import type { StoredHistory } from './catalog.ts';

/** When a commit's promise settles: after the sync, or when the bytes are handed to the system. */
export type Durability = 'synced' | 'buffered';

/**
 * How much of the past stays readable: engine offsets behind the newest, milliseconds, or both (whichever
 * keeps more). Milliseconds are counted in steps of a flush: somewhat more stays.
 */
export type History = number | { readonly offsets?: number; readonly ms?: number };

export interface OpenOptions {
  /** 'synced' (default): commits settle after fsync. 'buffered': when handed to the OS, synced within `syncIntervalMs`. */
  readonly durability?: Durability;
  /** Milliseconds, 1 to 60,000; default 50. The longest that a buffered commit stays unsynced. */
  readonly syncIntervalMs?: number;
  /** Bytes of one memtable generation; default 64 MiB, or a sixteenth of the memory where that is less. Four of them take at most half the memory. */
  readonly memtableBytes?: number;
  /** Bytes of one log segment, 16 KiB to 32 GiB; default 256 MiB. */
  readonly segmentBytes?: number;
  /** Bytes of the shared memory, 32 MiB to 4 GiB; default a quarter of what the process may use, 64 MiB to 1 GiB. */
  readonly memoryBytes?: number;
  /** Worker threads for flushes and merges; default min(4, cores - 1), at least 1. */
  readonly mergeThreads?: number;
  /** 0: no threads of our own, everything runs on the calling thread in slices. Default: worker threads. */
  readonly threads?: number;
  /** Default history of new collections; default 0: only now and held snapshots. */
  readonly history?: History;
  /** What becomes of segments of the log that no state needs any more. */
  readonly wal?: WalOptions;
  /** Show the state at open and refuse writes. Default false. */
  readonly readOnly?: boolean;
  /** Create the store when the directory holds none. Default true. */
  readonly createIfMissing?: boolean;
  /** Refuse a directory that holds a store. Default false. */
  readonly errorIfExists?: boolean;
  /** Treat every torn tail of the log as an error instead of setting it aside. Default false. */
  readonly strictTail?: boolean;
  /**
   * Take the directory from a holder that cannot be shown to be gone: of another host name or pid
   * namespace, as a container that was started anew, or a thread that was terminated. Default false.
   */
  readonly breakLock?: boolean;
  /** Where the compiled worker entry lies, for bundlers that moved it. */
  readonly workerUrl?: URL | string;
  /** Aborts the opening. */
  readonly signal?: AbortSignal;
  /** Test seam: another disk and clock. Only with `threads: 0`. */
  readonly storage?: { readonly storage: Storage; readonly clock: Clock };
}

export interface WalOptions {
  /** Segments that stay, for a history or a cursor, are compressed once they lie below the older checkpoint; default true. */
  readonly compress?: boolean;
  /** Segments whose successor began less than so many milliseconds ago stay; default 0. */
  readonly keepMs?: number;
  /**
   * Takes each segment into safe keeping before it goes, oldest first, one at a time, on the thread that
   * opened. The segment is deleted only after the promise has resolved and the manifest says so. Rejected,
   * it is called again after 1 s, doubling to 5 min, and meanwhile segments stay: `stats().log.archive`,
   * and the diagnostics channel `tidemark:archive`, say so. After a crash it may be called for a file that
   * it has had. `close()` aborts the signal and does not wait.
   */
  readonly archive?: ArchiveHook;
}

export type CheckedOptions = {
  readonly config: EngineConfig;
  readonly memoryBytes: number;
  readonly inline: boolean;
  readonly workerUrl: URL | undefined;
  readonly signal: AbortSignal | undefined;
  readonly archive: ArchiveHook | undefined;
  readonly seam: { readonly storage: Storage; readonly clock: Clock } | undefined;
};

const KNOWN: ReadonlySet<string> = new Set([
  'durability',
  'syncIntervalMs',
  'memtableBytes',
  'segmentBytes',
  'memoryBytes',
  'mergeThreads',
  'threads',
  'history',
  'wal',
  'readOnly',
  'createIfMissing',
  'errorIfExists',
  'strictTail',
  'breakLock',
  'workerUrl',
  'signal',
  'storage',
]);

const MEMTABLE_BYTES_DEFAULT: number = 64 * MiB;
const MEMTABLE_BYTES_MIN: number = 16 * 1024;

/** Requires nothing of its arguments: they are the caller's. */
export function checkOptions(directory: unknown, given: unknown): CheckedOptions {
  if (typeof directory !== 'string' || directory === '') {
    throw new TypeError('open takes the path of a directory');
  }
  checkFields(given, KNOWN, 'option');
  const options = given as Record<string, unknown>;
  // Not ??: null is no way to leave an option out.
  const { durability = 'synced', history = 0 } = options;
  if (durability !== 'synced' && durability !== 'buffered') {
    throw new TypeError(`durability is 'synced' or 'buffered', not ${show(durability)}`);
  }
  const memoryBytes = alignUp(
    integer(options, 'memoryBytes', defaultMemory(), arenaBytesMin, 4 * GiB),
    pageBytes,
  );
  const arena = Math.min(memoryBytes, arenaBytesMax);
  const memtableBytes = integer(
    options,
    'memtableBytes',
    Math.min(MEMTABLE_BYTES_DEFAULT, Math.floor(arena / 16)),
    MEMTABLE_BYTES_MIN,
    arenaBytesMax,
  );
  if (writeBudgetBytes(memtableBytes) * 2 > arena) {
    const most = Math.floor(arena / 2 / generationsPlanned);
    throw new TypeError(`memtableBytes is at most an eighth of the memory: ${most}`);
  }
  const readOnly = flag(options, 'readOnly', false);
  const wal = checkWal(options['wal']);
  const threads = integer(options, 'threads', 1, 0, 64);
  const seam = checkSeam(options['storage']);
  if (seam !== undefined && threads !== 0) {
    throw new TypeError('another storage needs threads: 0');
  }
  return {
    config: {
      directory: resolve(directory),
      synced: durability === 'synced',
      syncIntervalMs: integer(options, 'syncIntervalMs', 50, 1, 60_000),
      memtableBytes,
      segmentBytes: integer(
        options,
        'segmentBytes',
        segmentBytesDefault,
        segmentBytesMin,
        segmentBytesMax,
      ),
      mergeThreads: integer(options, 'mergeThreads', defaultMergeThreads(), 1, 64),
      history: checkHistory(history),
      walKeepMs: wal.keepMs,
      walCompress: wal.compress,
      walArchive: wal.archive !== undefined && !readOnly,
      readOnly,
      createIfMissing: flag(options, 'createIfMissing', true) && !readOnly,
      errorIfExists: flag(options, 'errorIfExists', false),
      strictTail: flag(options, 'strictTail', false),
      breakLock: flag(options, 'breakLock', false),
      newLogId: '',
      holder: undefined,
    },
    memoryBytes: arena,
    inline: threads === 0,
    workerUrl: checkUrl(options['workerUrl']),
    signal: checkSignal(options['signal']),
    archive: readOnly ? undefined : wal.archive,
    seam,
  };
}

/**
 * Throws TypeError for what is no object or has a field that nobody knows. Allocates nothing: reads that
 * are given options come through here.
 */
export function checkFields(given: unknown, known: ReadonlySet<string>, what: string): void {
  if (typeof given !== 'object' || given === null) throw new TypeError(`${what}s are an object`);
  for (const name in given) {
    if (!known.has(name)) throw new TypeError(`unknown ${what} ${name}`);
  }
}

const WAL_FIELDS: ReadonlySet<string> = new Set(['archive', 'compress', 'keepMs']);

type CheckedWal = {
  readonly keepMs: number;
  readonly compress: boolean;
  readonly archive: ArchiveHook | undefined;
};

function checkWal(given: unknown): CheckedWal {
  if (given === undefined) return { keepMs: 0, compress: true, archive: undefined };
  checkFields(given, WAL_FIELDS, 'wal option');
  const wal = given as Record<string, unknown>;
  const { archive } = wal;
  if (archive !== undefined && typeof archive !== 'function') {
    throw new TypeError(`wal.archive is a function, not ${show(archive)}`);
  }
  const keepMs = integer(wal, 'keepMs', 0, 0, Number.MAX_SAFE_INTEGER);
  const compress = flag(wal, 'compress', true);
  return { keepMs, compress, archive: archive as ArchiveHook | undefined };
}

const HISTORY_FIELDS: ReadonlySet<string> = new Set(['offsets', 'ms']);

/** The history option as it is stored. */
export function checkHistory(given: unknown): StoredHistory {
  let offsets = given;
  let ms: unknown = undefined;
  if (typeof given === 'object' && given !== null) {
    checkFields(given, HISTORY_FIELDS, 'history option');
    const history = given as { offsets?: unknown; ms?: unknown };
    ms = history.ms;
    offsets = history.offsets ?? (ms === undefined ? undefined : 0);
  }
  if (offsets === Infinity || ms === Infinity) return { offsets: null };
  if (!isCount(offsets)) throw new TypeError('history is a count of offsets from 0, or Infinity');
  if (ms === undefined) return { offsets };
  if (!isCount(ms))
    throw new TypeError('history.ms is a count of milliseconds from 0, or Infinity');
  return { offsets, ms };
}

function isCount(given: unknown): given is number {
  return typeof given === 'number' && Number.isSafeInteger(given) && given >= 0;
}

/** Bytes that generations may take together: open, spare and two sealed ones. */
export function writeBudgetBytes(memtableBytes: number): number {
  return Math.max(generationsPlanned * memtableBytes, writeBudgetBytesMin);
}

/** Rows are rarely smaller than this, operation header and node included; an index is made for so many. */
const ROW_BYTES_LIKELY = 128;
const ROWS_MIN = 1_024;

/** Rows that a generation's index is made for. */
export function generationRows(memtableBytes: number): number {
  return Math.max(ROWS_MIN, Math.floor(memtableBytes / ROW_BYTES_LIKELY));
}

/**
 * Pages of payloads, and as many of the nodes over them: they share the write budget in any proportion, so
 * either may take most of it. `pages`: of the arena, but for those of views, which no writer takes.
 */
export function writerPagesMax(memtableBytes: number, pages: number): number {
  const budget = Math.ceil(writeBudgetBytes(memtableBytes) / pageBytes);
  return Math.min(Math.ceil((budget * 3) / 4), Math.floor(pages / 2));
}

/**
 * Operations that one commit may have: an empty generation, beside which there is but a spare, has
 * room for each to be a new key, and for each to be a new version of one. `memtablePages`: of all nodes.
 */
export function commitOperationsMax(memtableBytes: number, memtablePages: number): number {
  const bucketPages = Math.ceil((2 * generationRows(memtableBytes) * 4) / pageBytes);
  // Header, buckets, a page begun of nodes of either sort and of runs; twice.
  const fixedPages = 2 * (4 + bucketPages);
  const pages = Math.floor((memtablePages - fixedPages) / 2);
  return pages * Math.floor(pageBytes / NODE_BYTES);
}

function defaultMemory(): number {
  const constrained = process.constrainedMemory();
  const total = totalmem();
  // 0 or an absurd figure means that no limit is set.
  const usable = constrained > 0 && constrained < total ? constrained : total;
  const quarter = Math.floor(usable / 4);
  return Math.max(arenaBytesDefaultMin, Math.min(arenaBytesDefaultMax, quarter));
}

function defaultMergeThreads(): number {
  return Math.max(1, Math.min(4, availableParallelism() - 1));
}

function integer(
  options: Record<string, unknown>,
  name: string,
  fallback: number,
  min: number,
  max: number,
): number {
  const { [name]: value = fallback } = options;
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
    throw new TypeError(`${name} is an integer from ${min} to ${max}, not ${show(value)}`);
  }
  return value;
}

function flag(options: Record<string, unknown>, name: string, fallback: boolean): boolean {
  const { [name]: value = fallback } = options;
  if (typeof value !== 'boolean') throw new TypeError(`${name} is true or false`);
  return value;
}

function checkUrl(value: unknown): URL | undefined {
  if (value === undefined) return undefined;
  if (value instanceof URL) return value;
  if (typeof value === 'string' && URL.canParse(value)) return new URL(value);
  throw new TypeError('workerUrl is a URL');
}

export function checkSignal(value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined;
  // Not instanceof: a signal of another realm is as good.
  if (typeof value === 'object' && value !== null && 'aborted' in value) {
    const signal = value as AbortSignal;
    const isWhole =
      typeof signal.throwIfAborted === 'function' && typeof signal.addEventListener === 'function';
    if (isWhole) return signal;
  }
  throw new TypeError('signal is an AbortSignal');
}

function checkSeam(value: unknown): CheckedOptions['seam'] {
  if (value === undefined) return undefined;
  const seam = value as NonNullable<CheckedOptions['seam']> | null;
  if (typeof seam?.storage === 'object' && typeof seam.clock === 'object') return seam;
  throw new TypeError('storage is a test seam: { storage, clock }');
}

/** A caller's value in a message. */
export function show(value: unknown): string {
  return typeof value === 'string' || typeof value === 'number' ? String(value) : typeof value;
}
