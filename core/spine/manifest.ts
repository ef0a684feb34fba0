/**
 * The one manifest's state and its codec: what lies where, and from which position the log is to be
 * read. It changes only by edits, which record effects; a rollup is the whole state. Decoding believes
 * nothing: a checksum that holds over senseless figures is still TIDEMARK_CORRUPT. Called by the keeper
 * and its manifest store, by recovery and by the tools.
 *
 *   frame    off size field
 *              0    4 bytes of the payload
 *              4    4 CRC-32 of bytes 0..3 and of all from 8 on, continued from the file's salt
 *              8    1 kind
 *              9    1 version of the kind's payload, 1
 *             10    2 zero
 *             12      payload: JSON, UTF-8 (core/decisions/0002-manifest-json.md)
 *
 *   kinds    1 head           the only frame of HEAD: names the newest rollup and its predecessor
 *            2 rollup begin   first of a rollup: identity, log, counters, dropped, times
 *            3 rollup spine   one a collection, ascending
 *            4 rollup end     last of a rollup: how many frames it has
 *            5 edits begin    first of an edits file
 *            6 edit
 *
 * Frames follow each other without padding. Little endian. The salt of kinds 3, 4, 6 is CRC-32(logId,
 * rollup as u64): bytes left over from another file never pass for a frame; it is 0 for the others,
 * which say what the salt is. Keys are base64, the log's identity and hashes of files are hex. An unknown kind, version, major or incompat
 * bit is TIDEMARK_UNSUPPORTED_FORMAT. Kind 0 is never used; numbers are never reused.
 */
import { Buffer } from 'node:buffer';
import { invariant } from '../base/assert.ts';
import { getU16, getU32, setU32, setU64 } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { corrupt, TidemarkError } from '../base/errors.ts';
import { le, lt } from '../base/frontier.ts';
import { keyBytesMax } from '../base/limits.ts';
import { KIND_KEYED, KIND_MULTISET, KIND_UPSERT } from '../base/update.ts';
import type {
  BatchEntry,
  Description,
  Hollow,
  MergeEntry,
  Placed,
  Run,
  SpineDelta,
  SpineId,
  SpineState,
} from './batch.ts';
import { partsLen } from './batch.ts';
import { shapeFault } from './part-format.ts';
import type { PartInfo } from './part-format.ts';
import { applyDelta, Spine } from './spine.ts';

export const MANIFEST_FORMAT = 1;
export const LOG_ID_BYTES = 16;
/** SHA-256. */
export const ARCHIVED_HASH_BYTES = 32;

const LENGTH_OFFSET = 0;
const CRC_OFFSET: number = LENGTH_OFFSET + 4;
const KIND_OFFSET: number = CRC_OFFSET + 4;
const VERSION_OFFSET: number = KIND_OFFSET + 1;
const ZERO_OFFSET: number = VERSION_OFFSET + 1;
export const FRAME_HEADER_BYTES: number = ZERO_OFFSET + 2;

export const FRAME_HEAD = 1;
export const FRAME_ROLLUP_BEGIN = 2;
export const FRAME_ROLLUP_SPINE = 3;
export const FRAME_ROLLUP_END = 4;
export const FRAME_EDITS_BEGIN = 5;
export const FRAME_EDIT = 6;
const FRAME_VERSION = 1;

/** Points of the (offset, ms) list; above it every second one of the older half goes. */
export const timesCountMax = 1_024;

/** Ids are reserved so many at a time: one edit for many uses. */
export const idBlock = 1_024;

export type Features = {
  /** A set bit unknown here: refuse. */
  readonly incompat: number;
  /** A set bit unknown here: read only. */
  readonly roCompat: number;
  readonly compat: number;
};

const INCOMPAT_KNOWN = 0;
const RO_COMPAT_KNOWN = 0;

export type Identity = {
  readonly features: Features;
  /** 16 random bytes that every segment repeats. */
  readonly logId: Uint8Array;
};

/** Where the log begins: what lay below was pruned, not lost. */
export type LogStart = { readonly seq: number; readonly offset: number; readonly atMs: number };

/** The flushed upper and where in the log it stands. All below `upper` is in parts. */
export type LogPosition = {
  readonly upper: number;
  readonly seq: number;
  readonly position: number;
  readonly chain: number;
  readonly epoch: number;
  /** Commit time of the last transaction below `upper`; 0 = none. */
  readonly atMs: number;
};

/**
 * A segment that the archive hook has confirmed: it may go, and a restore asks for it by its name.
 * What was archived stays named when the log's start has moved beyond it.
 */
export type ArchivedSegment = {
  readonly seq: number;
  /** Its commits are [base, end). */
  readonly base: number;
  readonly end: number;
  /** Commit time of the last transaction below `base`; 0 = none. */
  readonly baseAtMs: number;
  /** Of the file as it was handed over. */
  readonly bytes: number;
  /** How its records are packed there: 0 not at all (.seg), else the codec of the .segz. */
  readonly codec: number;
  /** Name of the file, without a directory. */
  readonly name: string;
  /** SHA-256 of the file. */
  readonly hash: Uint8Array;
};

/** First ids that may still be given out; what lies below may be in use or not. */
export type Counters = { readonly bid: number; readonly run: number; readonly file: number };

/** A collection dropped at `offset`: its spine goes when no hold lies below. */
export type Dropped = { readonly collection: number; readonly offset: number };

/** All transactions below `offset` were committed at or before the time. */
export type TimePoint = readonly [offset: number, atMs: number];

export type ManifestState = {
  readonly identity: Identity;
  logStart: LogStart;
  counters: Counters;
  flushed: LogPosition;
  times: readonly TimePoint[];
  dropped: readonly Dropped[];
  /** Ascending, without overlaps; gaps where no hook was set. */
  archived: readonly ArchivedSegment[];
  /** Only while the log is being truncated: it ends before this offset, whatever its segments say. */
  logEnd: number | undefined;
  readonly spines: Map<number, SpineState<PartInfo>>;
};

/** Effects, all or nothing. What is left out stays. */
export type Edit = {
  readonly counters?: Counters;
  readonly flushed?: LogPosition;
  readonly logStart?: LogStart;
  readonly spines?: readonly SpineEdit[];
  readonly spinesRemoved?: readonly number[];
  readonly timesAdded?: readonly TimePoint[];
  readonly timesRemoved?: readonly number[];
  readonly droppedAdded?: readonly Dropped[];
  readonly droppedRemoved?: readonly number[];
  readonly archivedAdded?: readonly ArchivedSegment[];
  /** Their sequence numbers. */
  readonly archivedRemoved?: readonly number[];
  /**
   * An offset begins a truncation: with it, and only with it, the flushed upper may go back, to exactly
   * that offset; nothing may be named beyond. NO_LOG_END ends it.
   */
  readonly logEnd?: number | typeof NO_LOG_END;
};

export const NO_LOG_END = 'none';

export type SpineEdit = { readonly collection: number; readonly delta: SpineDelta<PartInfo> };

export function newManifest(logId: Uint8Array, start: LogPosition): ManifestState {
  invariant(logId.length === LOG_ID_BYTES, 'a log identity has 16 bytes', logId.length);
  return {
    identity: { features: { incompat: 0, roCompat: 0, compat: 0 }, logId },
    logStart: { seq: start.seq, offset: start.upper, atMs: start.atMs },
    counters: { bid: 1, run: 1, file: 1 },
    flushed: start,
    times: [],
    dropped: [],
    archived: [],
    logEnd: undefined,
    spines: new Map(),
  };
}

/** A state of its own; the values in it are immutable and shared. */
export function copyManifest(state: ManifestState): ManifestState {
  return { ...state, spines: new Map(state.spines) };
}

/** A bit this version does not know and that forbids writing. */
export function isReadOnlyFor(features: Features): boolean {
  return (features.roCompat & ~RO_COMPAT_KNOWN) !== 0;
}

/**
 * Makes the edit's changes to `state`. Everything is checked first: TIDEMARK_CORRUPT when the edit does
 * not fit, and the state as it was.
 */
export function applyEdit(state: ManifestState, edit: Edit): void {
  const counters = edit.counters ?? state.counters;
  const { bid, run, file } = state.counters;
  if (counters.bid < bid || counters.run < run || counters.file < file) {
    throw corrupt('COUNTER_REGRESSED', 'an edit sets a counter back');
  }
  const flushed = edit.flushed ?? state.flushed;
  const logEnd = logEndAfter(state.logEnd, edit);
  const isCut = typeof edit.logEnd === 'number' && flushed.upper === edit.logEnd;
  if (!isCut && (lt(flushed.upper, state.flushed.upper) || flushed.seq < state.flushed.seq)) {
    throw corrupt('UPPER_REGRESSED', `flushed upper ${flushed.upper} after ${state.flushed.upper}`);
  }
  const logStart = edit.logStart ?? state.logStart;
  if (lt(logStart.offset, state.logStart.offset) || logStart.seq < state.logStart.seq) {
    throw corrupt('LOG_START_REGRESSED', `log start ${logStart.offset}`);
  }
  if (lt(flushed.upper, logStart.offset)) {
    throw corrupt('NO_BASE', `the log starts at ${logStart.offset}, above ${flushed.upper}`);
  }
  const spines = new Map<number, SpineState<PartInfo>>();
  for (const { collection, delta } of edit.spines ?? []) {
    if (spines.has(collection)) throw corrupt('EDIT_TWICE', `collection ${collection} twice`);
    checkIds(delta.hollowsAdded, counters);
    const spine = applyDelta(state.spines.get(collection), delta);
    if (lt(flushed.upper, spine.hollows.at(-1)?.hollow.desc.upper ?? 0)) {
      throw corrupt('SPINE_AHEAD', `collection ${collection} goes beyond the flushed upper`);
    }
    spines.set(collection, spine);
  }
  for (const collection of edit.spinesRemoved ?? []) {
    if (!state.spines.has(collection) || spines.has(collection)) {
      throw corrupt('EDIT_UNKNOWN_SPINE', `an edit removes collection ${collection}, not there`);
    }
  }
  const times = timesAfter(state.times, edit);
  const dropped = droppedAfter(state.dropped, edit);
  const archived = archivedAfter(state.archived, edit);
  checkLogEnd({ logEnd, logStart, flushed, times, dropped, archived });

  state.counters = counters;
  state.flushed = flushed;
  state.logStart = logStart;
  state.times = times;
  state.dropped = dropped;
  state.archived = archived;
  state.logEnd = logEnd;
  for (const [collection, spine] of spines) state.spines.set(collection, spine);
  for (const collection of edit.spinesRemoved ?? []) state.spines.delete(collection);
}

function checkIds(hollows: readonly Placed<PartInfo>[], counters: Counters): void {
  for (const { hollow } of hollows) {
    if (hollow.bid >= counters.bid) throw corrupt('ID_UNRESERVED', `batch id ${hollow.bid}`);
    for (const { runId, parts } of hollow.runs) {
      if (runId >= counters.run) throw corrupt('ID_UNRESERVED', `run id ${runId}`);
      for (const part of parts) {
        if (part.file >= counters.file) throw corrupt('ID_UNRESERVED', `file ${part.file}`);
      }
    }
  }
}

function timesAfter(times: readonly TimePoint[], edit: Edit): readonly TimePoint[] {
  if (edit.timesAdded === undefined && edit.timesRemoved === undefined) return times;
  const removed = new Set(edit.timesRemoved);
  const after = times.filter(([offset]) => !removed.delete(offset));
  if (removed.size > 0) throw corrupt('EDIT_UNKNOWN_TIME', 'an edit removes a time not there');
  after.push(...(edit.timesAdded ?? []));
  checkTimes(after);
  return after;
}

function checkTimes(times: readonly TimePoint[]): void {
  for (let i = 1; i < times.length; i++) {
    const [offset, atMs] = times[i];
    const [offsetBefore, atMsBefore] = times[i - 1];
    if (le(offset, offsetBefore) || atMs < atMsBefore) {
      throw corrupt('TIMES_ORDER', `time of offset ${offset} is out of order`);
    }
  }
}

function droppedAfter(dropped: readonly Dropped[], edit: Edit): readonly Dropped[] {
  if (edit.droppedAdded === undefined && edit.droppedRemoved === undefined) return dropped;
  const removed = new Set(edit.droppedRemoved);
  const after = dropped.filter(({ collection }) => !removed.delete(collection));
  if (removed.size > 0) throw corrupt('EDIT_UNKNOWN_DROP', 'an edit removes a drop not there');
  after.push(...(edit.droppedAdded ?? []));
  checkDropped(after);
  return after;
}

function checkDropped(dropped: readonly Dropped[]): void {
  const seen = new Set(dropped.map(({ collection }) => collection));
  if (seen.size !== dropped.length) throw corrupt('DROPPED_TWICE', 'a collection dropped twice');
}

function archivedAfter(
  archived: readonly ArchivedSegment[],
  edit: Edit,
): readonly ArchivedSegment[] {
  if (edit.archivedAdded === undefined && edit.archivedRemoved === undefined) return archived;
  const removed = new Set(edit.archivedRemoved);
  const after = archived.filter(({ seq }) => !removed.delete(seq));
  if (removed.size > 0) {
    throw corrupt('EDIT_UNKNOWN_ARCHIVED', 'an edit removes an archived segment not there');
  }
  after.push(...(edit.archivedAdded ?? []));
  after.sort((a, b) => a.seq - b.seq);
  checkArchived(after);
  return after;
}

function checkArchived(archived: readonly ArchivedSegment[]): void {
  for (let i = 1; i < archived.length; i++) {
    const { seq, base, baseAtMs } = archived[i];
    const before = archived[i - 1];
    if (seq <= before.seq || lt(base, before.end) || baseAtMs < before.baseAtMs) {
      throw corrupt('ARCHIVED_ORDER', `archived segment ${seq} does not follow ${before.seq}`);
    }
  }
}

function logEndAfter(logEnd: number | undefined, edit: Edit): number | undefined {
  if (edit.logEnd === undefined) return logEnd;
  if (edit.logEnd !== NO_LOG_END) return edit.logEnd;
  if (logEnd === undefined) {
    throw corrupt('EDIT_NO_LOG_END', 'an edit ends a truncation, and none is under way');
  }
  return undefined;
}

/** While the log is being cut, nothing is named beyond the cut. */
function checkLogEnd(
  state: Pick<ManifestState, 'logEnd' | 'logStart' | 'flushed' | 'times' | 'dropped' | 'archived'>,
): void {
  const { logEnd, logStart, flushed, times, dropped, archived } = state;
  if (logEnd === undefined) return;
  let last = Math.max(logStart.offset, flushed.upper);
  last = Math.max(last, times.at(-1)?.[0] ?? 0, archived.at(-1)?.end ?? 0);
  for (const { offset } of dropped) last = Math.max(last, offset + 1);
  if (lt(logEnd, last)) {
    throw corrupt('LOG_END', `the log is to end at ${logEnd}, and offset ${last - 1} is named`);
  }
}

/** The effects of noting that all below `offset` was there at `atMs`, thinning included. */
export function notedTime(
  times: readonly TimePoint[],
  offset: number,
  atMs: number,
): Pick<Edit, 'timesAdded' | 'timesRemoved'> {
  const last = times.at(-1);
  if (last !== undefined && (le(offset, last[0]) || atMs < last[1])) return {};
  const timesAdded: TimePoint[] = [[offset, atMs]];
  if (times.length < timesCountMax) return { timesAdded };
  const half = times.slice(0, times.length >>> 1);
  return {
    timesAdded,
    timesRemoved: half.filter((_, i) => i % 2 === 1).map(([point]) => point),
  };
}

/** Checks what no single record shows: every spine is sound, nothing is shared that must not be. */
export function checkManifest(state: ManifestState): void {
  const bids = new Set<number>();
  const runIds = new Set<number>();
  for (const [collection, spine] of state.spines) {
    checkIds(spine.hollows, state.counters);
    let kind = KIND_MULTISET;
    for (const { hollow } of spine.hollows) {
      if (bids.has(hollow.bid)) throw corrupt('ID_REUSED', `batch id ${hollow.bid} twice`);
      bids.add(hollow.bid);
      for (const { runId, parts } of hollow.runs) {
        if (runIds.has(runId)) throw corrupt('ID_REUSED', `run id ${runId} twice`);
        runIds.add(runId);
        kind = parts[0].kind;
        if (parts.some((part) => part.kind !== kind)) {
          throw corrupt('KINDS_MIXED', `parts of several kinds in collection ${collection}`);
        }
      }
    }
    // Restoring checks all the invariants of one spine; the result is not kept.
    const restored = Spine.restore(spine, { kind, ids: NO_IDS });
    if (lt(state.flushed.upper, restored.upper)) {
      throw corrupt('SPINE_AHEAD', `collection ${collection} goes beyond the flushed upper`);
    }
  }
}

const NO_IDS: { bid(): number; run(): number } = { bid: noId, run: noId };

function noId(): number {
  invariant(false, 'a spine that is only checked takes no id');
}

/** Every file that the state names. */
export function filesOf(state: SpineState<PartInfo>): Set<number> {
  const files = new Set<number>();
  for (const { hollow } of state.hollows) {
    for (const run of hollow.runs) for (const part of run.parts) files.add(part.file);
  }
  return files;
}

/**
 * Never-reused ids of one kind: only what an answered edit reserved is given out, so that a crash
 * skips ids and never repeats one. Starts at the bound found at open: nothing below is given again.
 */
export class IdReserve {
  #next: number;
  #end: number;
  readonly #first: number;

  /** `bound` is the manifest's counter. */
  constructor(bound: number) {
    this.#next = bound;
    this.#end = bound;
    this.#first = bound;
  }

  get available(): number {
    return this.#end - this.#next;
  }

  take(): number {
    invariant(this.#next < this.#end, 'ids are reserved before use', this.#next);
    this.#next += 1;
    return this.#next - 1;
  }

  /** The last `count` taken were not used: they come again. */
  giveBack(count: number): void {
    invariant(this.#next - count >= this.#first, 'only what was taken is given back', count);
    this.#next -= count;
  }

  /** The counter to persist so that at least `count` more may be taken, or undefined when they may now. */
  wanted(count: number = idBlock >>> 1): number | undefined {
    return this.available >= count ? undefined : this.#next + Math.max(count, idBlock);
  }

  /** An edit with this counter was answered. */
  granted(bound: number): void {
    invariant(bound >= this.#end, 'a reserve never shrinks', bound, this.#end);
    this.#end = bound;
  }
}

// --- frames

export function saltOf(logId: Uint8Array, rollup: number): number {
  const bytes = new Uint8Array(LOG_ID_BYTES + 8);
  bytes.set(logId);
  setU64(bytes, LOG_ID_BYTES, rollup);
  return crc32(bytes, 0, bytes.length);
}

function frame(kind: number, salt: number, payload: Json): Uint8Array {
  const text = Buffer.from(JSON.stringify(payload));
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + text.length);
  setU32(bytes, LENGTH_OFFSET, text.length);
  bytes[KIND_OFFSET] = kind;
  bytes[VERSION_OFFSET] = FRAME_VERSION;
  bytes.set(text, FRAME_HEADER_BYTES);
  setU32(bytes, CRC_OFFSET, frameCrc(bytes, 0, bytes.length, salt));
  return bytes;
}

function frameCrc(bytes: Uint8Array, at: number, length: number, salt: number): number {
  const seed = crc32(bytes, at, CRC_OFFSET, salt);
  return crc32(bytes, at + KIND_OFFSET, length - KIND_OFFSET, seed);
}

/** Length of the whole frame at `at`, or 0 when none is there that passes its checksum. */
export function frameLength(bytes: Uint8Array, at: number, salt: number): number {
  if (at + FRAME_HEADER_BYTES > bytes.length) return 0;
  const length = FRAME_HEADER_BYTES + getU32(bytes, at + LENGTH_OFFSET);
  if (length > bytes.length - at) return 0;
  return frameCrc(bytes, at, length, salt) === getU32(bytes, at + CRC_OFFSET) ? length : 0;
}

export function frameKind(bytes: Uint8Array, at: number): number {
  return bytes[at + KIND_OFFSET];
}

/** The payload of a frame of `kind` that passed its checksum. */
function framePayload(bytes: Uint8Array, at: number, kind: number, where: string): Checked {
  const length = getU32(bytes, at + LENGTH_OFFSET);
  const found = frameKind(bytes, at);
  const version = bytes[at + VERSION_OFFSET];
  if (found < FRAME_HEAD || found > FRAME_EDIT || version !== FRAME_VERSION) {
    throw unsupported(`${where} has a record of kind ${found}, version ${version}`, {
      found,
      version,
    });
  }
  if (getU16(bytes, at + ZERO_OFFSET) !== 0) throw badRecord(where, 'reserved bytes are not zero');
  if (found !== kind) throw badRecord(where, `a record of kind ${found} in place of ${kind}`);
  const start = at + FRAME_HEADER_BYTES;
  try {
    const text = UTF8.decode(bytes.subarray(start, start + length));
    return new Checked(JSON.parse(text), where);
  } catch (cause) {
    throw badRecord(where, 'it is not JSON', cause);
  }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true });

// --- head

export type Head = {
  readonly identity: Identity;
  readonly rollup: number;
  /** 0 when there is none. */
  readonly previous: number;
  /** The checkpoints that the two rollups are; equal when there is but one. */
  readonly flushed: LogPosition;
  readonly previousFlushed: LogPosition;
};

export function encodeHead(head: Head): Uint8Array {
  return frame(FRAME_HEAD, 0, {
    ...identityJson(head.identity),
    rollup: head.rollup,
    previous: head.previous,
    flushed: positionJson(head.flushed),
    previousFlushed: positionJson(head.previousFlushed),
  });
}

export function decodeHead(bytes: Uint8Array, where: string): Head {
  if (bytes.length === 0 || frameLength(bytes, 0, 0) !== bytes.length) {
    throw corrupt('MANIFEST_HEAD', `${where} is damaged`, { file: where });
  }
  const payload = framePayload(bytes, 0, FRAME_HEAD, where);
  const identity = identityOf(payload);
  payload.keys([...IDENTITY_KEYS, 'rollup', 'previous', 'flushed', 'previousFlushed']);
  const head: Head = {
    identity,
    rollup: payload.at('rollup').whole(1),
    previous: payload.at('previous').whole(),
    flushed: positionOf(payload.at('flushed')),
    previousFlushed: positionOf(payload.at('previousFlushed')),
  };
  if (head.previous >= head.rollup) throw badRecord(where, 'the predecessor is not older');
  if (lt(head.flushed.upper, head.previousFlushed.upper)) {
    throw badRecord(where, 'the older checkpoint is above the newer');
  }
  return head;
}

// --- rollup

export type Rollup = {
  readonly state: ManifestState;
  readonly rollup: number;
  /** Number of the last edit that is in it. */
  readonly edit: number;
};

/** The same bytes for the same state. */
export function encodeRollup(state: ManifestState, rollup: number, edit: number): Uint8Array {
  const salt = saltOf(state.identity.logId, rollup);
  const frames = [
    frame(FRAME_ROLLUP_BEGIN, 0, {
      ...identityJson(state.identity),
      rollup,
      edit,
      logStart: logStartJson(state.logStart),
      counters: countersJson(state.counters),
      flushed: positionJson(state.flushed),
      times: state.times.map(([offset, atMs]) => [offset, atMs]),
      dropped: state.dropped.map(droppedJson),
      archived: state.archived.map(archivedJson),
      ...(state.logEnd === undefined ? {} : { logEnd: state.logEnd }),
    }),
  ];
  const collections = [...state.spines.keys()].toSorted((a, b) => a - b);
  for (const collection of collections) {
    const spine = state.spines.get(collection)!;
    frames.push(frame(FRAME_ROLLUP_SPINE, salt, { collection, ...spineJson(spine) }));
  }
  frames.push(frame(FRAME_ROLLUP_END, salt, { frames: frames.length + 1 }));
  // Not a Buffer: its slice would share bytes where a Uint8Array copies.
  return new Uint8Array(Buffer.concat(frames));
}

/** Everything in it is checked, invariants of the spines included. */
export function decodeRollup(bytes: Uint8Array, where: string): Rollup {
  let at = frameLength(bytes, 0, 0);
  if (at === 0) throw damaged(where, 0);
  const begin = framePayload(bytes, 0, FRAME_ROLLUP_BEGIN, where);
  const identity = identityOf(begin);
  begin.keys(
    [
      ...IDENTITY_KEYS,
      'rollup',
      'edit',
      'logStart',
      'counters',
      'flushed',
      'times',
      'dropped',
      'archived',
    ],
    ['logEnd'],
  );
  const rollup = begin.at('rollup').whole(1);
  const salt = saltOf(identity.logId, rollup);
  const state: ManifestState = {
    identity,
    logStart: logStartOf(begin.at('logStart')),
    counters: countersOf(begin.at('counters')),
    flushed: positionOf(begin.at('flushed')),
    times: begin.at('times').list(timeOf),
    dropped: begin.at('dropped').list(droppedOf),
    archived: begin.at('archived').list(archivedOf),
    logEnd: begin.has('logEnd') ? begin.at('logEnd').whole() : undefined,
    spines: new Map(),
  };
  if (lt(state.flushed.upper, state.logStart.offset)) {
    throw badRecord(where, 'the log starts above the flushed upper');
  }
  checkTimes(state.times);
  checkDropped(state.dropped);
  checkArchived(state.archived);
  checkLogEnd(state);
  let count = 1;
  let last = -1;
  for (;;) {
    const length = frameLength(bytes, at, salt);
    if (length === 0) throw damaged(where, at);
    count += 1;
    if (frameKind(bytes, at) === FRAME_ROLLUP_END) {
      const end = framePayload(bytes, at, FRAME_ROLLUP_END, where);
      end.keys(['frames']);
      if (end.at('frames').whole() !== count) throw badRecord(where, 'records are missing');
      if (at + length !== bytes.length) throw damaged(where, at + length);
      break;
    }
    const payload = framePayload(bytes, at, FRAME_ROLLUP_SPINE, where);
    payload.keys(['collection', 'since', 'hollows', 'batches', 'merges']);
    const collection = payload.at('collection').u32();
    if (collection <= last) throw badRecord(where, 'collections are out of order');
    last = collection;
    state.spines.set(collection, spineOf(payload));
    at += length;
  }
  checkManifest(state);
  return { state, rollup, edit: begin.at('edit').whole() };
}

// --- edits

export type EditsBegin = {
  readonly identity: Identity;
  readonly rollup: number;
  /** Number of the last edit before this file. */
  readonly edit: number;
};

export function encodeEditsBegin(begin: EditsBegin): Uint8Array {
  const { identity, rollup, edit } = begin;
  return frame(FRAME_EDITS_BEGIN, 0, { ...identityJson(identity), rollup, edit });
}

/** The first frame of an edits file, and where the edits start. */
export function decodeEditsBegin(
  bytes: Uint8Array,
  where: string,
): { readonly begin: EditsBegin; readonly end: number } {
  const end = frameLength(bytes, 0, 0);
  if (end === 0) throw damaged(where, 0);
  const payload = framePayload(bytes, 0, FRAME_EDITS_BEGIN, where);
  const identity = identityOf(payload);
  payload.keys([...IDENTITY_KEYS, 'rollup', 'edit']);
  const rollup = payload.at('rollup').whole(1);
  return { begin: { identity, rollup, edit: payload.at('edit').whole() }, end };
}

export type NumberedEdit = {
  /** Counts edits over the store's life, from 1, without gaps. */
  readonly number: number;
  /** Number of the last edit known to be on disk when this one was written: damage below is no torn tail. */
  readonly answered: number;
  readonly edit: Edit;
};

export function encodeEdit(numbered: NumberedEdit, salt: number): Uint8Array {
  const { number, answered, edit } = numbered;
  const payload: { [key: string]: Json } = { number, answered };
  if (edit.counters !== undefined) payload['counters'] = countersJson(edit.counters);
  if (edit.flushed !== undefined) payload['flushed'] = positionJson(edit.flushed);
  if (edit.logStart !== undefined) payload['logStart'] = logStartJson(edit.logStart);
  if (edit.spines !== undefined) payload['spines'] = edit.spines.map(spineEditJson);
  if (edit.spinesRemoved !== undefined) payload['spinesRemoved'] = [...edit.spinesRemoved];
  if (edit.timesAdded !== undefined) {
    payload['timesAdded'] = edit.timesAdded.map(([offset, atMs]) => [offset, atMs]);
  }
  if (edit.timesRemoved !== undefined) payload['timesRemoved'] = [...edit.timesRemoved];
  if (edit.droppedAdded !== undefined) payload['droppedAdded'] = edit.droppedAdded.map(droppedJson);
  if (edit.droppedRemoved !== undefined) payload['droppedRemoved'] = [...edit.droppedRemoved];
  if (edit.archivedAdded !== undefined) {
    payload['archivedAdded'] = edit.archivedAdded.map(archivedJson);
  }
  if (edit.archivedRemoved !== undefined) payload['archivedRemoved'] = [...edit.archivedRemoved];
  if (edit.logEnd !== undefined) payload['logEnd'] = edit.logEnd;
  return frame(FRAME_EDIT, salt, payload);
}

const EDIT_KEYS: readonly string[] = [
  'counters',
  'flushed',
  'logStart',
  'spines',
  'spinesRemoved',
  'timesAdded',
  'timesRemoved',
  'droppedAdded',
  'droppedRemoved',
  'archivedAdded',
  'archivedRemoved',
  'logEnd',
];

/** Requires: `frameLength` found a frame at `at`. */
export function decodeEdit(bytes: Uint8Array, at: number, where: string): NumberedEdit {
  const payload = framePayload(bytes, at, FRAME_EDIT, where);
  payload.keys(['number', 'answered'], EDIT_KEYS);
  const number = payload.at('number').whole(1);
  const answered = payload.at('answered').whole();
  if (answered >= number) throw badRecord(where, `edit ${number} claims ${answered}`);
  const edit: { -readonly [K in keyof Edit]: Edit[K] } = {};
  if (payload.has('counters')) edit.counters = countersOf(payload.at('counters'));
  if (payload.has('flushed')) edit.flushed = positionOf(payload.at('flushed'));
  if (payload.has('logStart')) edit.logStart = logStartOf(payload.at('logStart'));
  if (payload.has('spines')) edit.spines = payload.at('spines').list(spineEditOf);
  if (payload.has('spinesRemoved')) edit.spinesRemoved = payload.at('spinesRemoved').list(u32Of);
  if (payload.has('timesAdded')) edit.timesAdded = payload.at('timesAdded').list(timeOf);
  if (payload.has('timesRemoved')) edit.timesRemoved = payload.at('timesRemoved').list(wholeOf);
  if (payload.has('droppedAdded')) edit.droppedAdded = payload.at('droppedAdded').list(droppedOf);
  if (payload.has('droppedRemoved')) edit.droppedRemoved = payload.at('droppedRemoved').list(u32Of);
  if (payload.has('archivedAdded'))
    edit.archivedAdded = payload.at('archivedAdded').list(archivedOf);
  if (payload.has('archivedRemoved')) {
    edit.archivedRemoved = payload.at('archivedRemoved').list(wholeOf);
  }
  if (payload.has('logEnd')) {
    const logEnd = payload.at('logEnd');
    edit.logEnd = logEnd.value === NO_LOG_END ? NO_LOG_END : logEnd.whole();
  }
  return { number, answered, edit };
}

// --- values to JSON

type Json = number | string | readonly Json[] | { readonly [key: string]: Json };

const IDENTITY_KEYS: readonly string[] = ['formatMajor', 'incompat', 'roCompat', 'compat', 'logId'];

function identityJson(identity: Identity): { [key: string]: Json } {
  const { incompat, roCompat, compat } = identity.features;
  const logId = Buffer.from(identity.logId).toString('hex');
  return { formatMajor: MANIFEST_FORMAT, incompat, roCompat, compat, logId };
}

function logStartJson({ seq, offset, atMs }: LogStart): Json {
  return { seq, offset, atMs };
}

function positionJson({ upper, seq, position, chain, epoch, atMs }: LogPosition): Json {
  return { upper, seq, position, chain, epoch, atMs };
}

function countersJson({ bid, run, file }: Counters): Json {
  return { bid, run, file };
}

function droppedJson({ collection, offset }: Dropped): Json {
  return { collection, offset };
}

function archivedJson(segment: ArchivedSegment): Json {
  const { seq, base, end, baseAtMs, bytes, codec, name } = segment;
  const hash = Buffer.from(segment.hash).toString('hex');
  return { seq, base, end, baseAtMs, bytes, codec, name, hash };
}

const ARCHIVED_KEYS: readonly string[] = [
  'seq',
  'base',
  'end',
  'baseAtMs',
  'bytes',
  'codec',
  'name',
  'hash',
];

function spineJson(spine: SpineState<PartInfo>): { [key: string]: Json } {
  return {
    since: spine.since,
    hollows: spine.hollows.map(placedJson),
    batches: spine.batches.map(entryJson),
    merges: spine.merges.map(mergeJson),
  };
}

function spineEditJson({ collection, delta }: SpineEdit): Json {
  return {
    collection,
    since: delta.since,
    hollowsRemoved: [...delta.hollowsRemoved],
    hollowsAdded: delta.hollowsAdded.map(placedJson),
    batchesRemoved: delta.batchesRemoved.map((id) => [id[0], id[1]]),
    batchesAdded: delta.batchesAdded.map(entryJson),
    merges: delta.merges.map(mergeJson),
  };
}

function placedJson({ id, hollow }: Placed<PartInfo>): Json {
  return {
    id: [id[0], id[1]],
    bid: hollow.bid,
    desc: descJson(hollow.desc),
    runs: hollow.runs.map(({ runId, parts }) => ({ runId, parts: parts.map(partJson) })),
  };
}

function descJson({ lower, upper, since }: Description): Json {
  return { lower, upper, since };
}

function entryJson({ id, level, desc }: BatchEntry): Json {
  return { id: [id[0], id[1]], level, desc: descJson(desc) };
}

function mergeJson({ id, since, remaining }: MergeEntry): Json {
  return { id: [id[0], id[1]], since, remaining };
}

function partJson(part: PartInfo): Json {
  return {
    file: part.file,
    offset: part.offset,
    bytes: part.bytes,
    kind: part.kind,
    len: part.len,
    rowBytes: part.rowBytes,
    keyLo: Buffer.from(part.keyLo).toString('base64'),
    keyHi: Buffer.from(part.keyHi).toString('base64'),
    minT: part.minT,
    maxT: part.maxT,
    negatives: part.negatives,
    rangeDeletes: part.rangeDeletes,
    distinct: part.distinct,
    codec: part.codec,
    diffSum: part.diffSum,
    hash: [part.hash[0], part.hash[1]],
    blockCount: part.blockCount,
    rangeDeletesOffset: part.rangeDeletesOffset,
    rangeDeletesBytes: part.rangeDeletesBytes,
    filterOffset: part.filterOffset,
    filterBytes: part.filterBytes,
    indexOffset: part.indexOffset,
    indexBytes: part.indexBytes,
    footerOffset: part.footerOffset,
  };
}

const PART_KEYS: readonly string[] = [
  'file',
  'offset',
  'bytes',
  'kind',
  'len',
  'rowBytes',
  'keyLo',
  'keyHi',
  'minT',
  'maxT',
  'negatives',
  'rangeDeletes',
  'distinct',
  'codec',
  'diffSum',
  'hash',
  'blockCount',
  'rangeDeletesOffset',
  'rangeDeletesBytes',
  'filterOffset',
  'filterBytes',
  'indexOffset',
  'indexBytes',
  'footerOffset',
];

// --- JSON to values

/** A foreign value that is asked for what it should be; TIDEMARK_CORRUPT when it is not. */
class Checked {
  readonly value: unknown;
  readonly #parent: Checked | undefined;
  readonly #name: string | number;

  constructor(value: unknown, name: string | number, parent?: Checked) {
    this.value = value;
    this.#name = name;
    this.#parent = parent;
  }

  /** Put together only when something is wrong. */
  get where(): string {
    return this.#parent === undefined ? String(this.#name) : `${this.#parent.where} ${this.#name}`;
  }

  /** An object with all of `required`, any of `allowed`, and nothing else. */
  keys(required: readonly string[], allowed: readonly string[] = []): void {
    if (!isObject(this.value)) throw badRecord(this.where, 'not an object');
    for (const key of required) {
      if (!Object.hasOwn(this.value, key)) throw badRecord(this.where, `${key} is missing`);
    }
    const keys = Object.keys(this.value);
    if (keys.length === required.length) return;
    for (const key of keys) {
      if (!required.includes(key) && !allowed.includes(key)) {
        throw badRecord(this.where, `unknown field ${key}`);
      }
    }
  }

  has(key: string): boolean {
    return isObject(this.value) && Object.hasOwn(this.value, key);
  }

  at(key: string): Checked {
    if (!isObject(this.value) || !Object.hasOwn(this.value, key)) {
      throw badRecord(this.where, `${key} is missing`);
    }
    return new Checked(this.value[key], key, this);
  }

  list<T>(of: (item: Checked) => T): T[] {
    if (!Array.isArray(this.value)) throw badRecord(this.where, 'not a list');
    return this.value.map((item, i) => of(new Checked(item, i, this)));
  }

  whole(min = 0, max: number = Number.MAX_SAFE_INTEGER): number {
    const { value } = this;
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
      throw badRecord(this.where, 'not a whole number in its range');
    }
    return value;
  }

  u32(): number {
    return this.whole(0, 0xffff_ffff);
  }

  text(): string {
    if (typeof this.value !== 'string') throw badRecord(this.where, 'not a text');
    return this.value;
  }

  /** Bytes written in `encoding`, in its one canonical form. */
  bytes(encoding: 'base64' | 'hex', lengthMax: number): Uint8Array {
    const text = this.text();
    const bytes = Buffer.from(text, encoding);
    if (bytes.toString(encoding) !== text || bytes.length > lengthMax) {
      throw badRecord(this.where, `not ${encoding}, or too long`);
    }
    return new Uint8Array(bytes);
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function u32Of(item: Checked): number {
  return item.u32();
}

function wholeOf(item: Checked): number {
  return item.whole();
}

/** Refuses what a newer version wrote, before anything else is looked at. */
function identityOf(payload: Checked): Identity {
  const major = payload.at('formatMajor').whole();
  if (major !== MANIFEST_FORMAT) {
    throw unsupported(`${payload.where} has format ${major}`, { file: payload.where, major });
  }
  const incompat = payload.at('incompat').u32();
  if ((incompat & ~INCOMPAT_KNOWN) !== 0) {
    const feature = 31 - Math.clz32(incompat & ~INCOMPAT_KNOWN);
    throw unsupported(`${payload.where} uses unknown feature ${feature}`, {
      file: payload.where,
      feature,
    });
  }
  const roCompat = payload.at('roCompat').u32();
  const compat = payload.at('compat').u32();
  const logId = payload.at('logId').bytes('hex', LOG_ID_BYTES);
  if (logId.length !== LOG_ID_BYTES) throw badRecord(payload.where, 'logId has another length');
  return { features: { incompat, roCompat, compat }, logId };
}

function logStartOf(item: Checked): LogStart {
  item.keys(['seq', 'offset', 'atMs']);
  return {
    seq: item.at('seq').whole(),
    offset: item.at('offset').whole(),
    atMs: item.at('atMs').whole(),
  };
}

function positionOf(item: Checked): LogPosition {
  item.keys(['upper', 'seq', 'position', 'chain', 'epoch', 'atMs']);
  return {
    upper: item.at('upper').whole(),
    seq: item.at('seq').whole(),
    position: item.at('position').whole(),
    chain: item.at('chain').u32(),
    epoch: item.at('epoch').u32(),
    atMs: item.at('atMs').whole(),
  };
}

function countersOf(item: Checked): Counters {
  item.keys(['bid', 'run', 'file']);
  return {
    bid: item.at('bid').whole(1),
    run: item.at('run').whole(1),
    file: item.at('file').whole(1),
  };
}

function timeOf(item: Checked): TimePoint {
  const point = item.list(wholeOf);
  if (point.length !== 2) throw badRecord(item.where, 'not a pair');
  return [point[0], point[1]];
}

function droppedOf(item: Checked): Dropped {
  item.keys(['collection', 'offset']);
  return { collection: item.at('collection').u32(), offset: item.at('offset').whole() };
}

function archivedOf(item: Checked): ArchivedSegment {
  item.keys(ARCHIVED_KEYS);
  const segment: ArchivedSegment = {
    seq: item.at('seq').whole(1),
    base: item.at('base').whole(),
    end: item.at('end').whole(),
    baseAtMs: item.at('baseAtMs').whole(),
    bytes: item.at('bytes').whole(1),
    codec: item.at('codec').whole(0, 255),
    name: item.at('name').text(),
    hash: item.at('hash').bytes('hex', ARCHIVED_HASH_BYTES),
  };
  if (lt(segment.end, segment.base)) throw badRecord(item.where, 'it ends before it begins');
  if (segment.hash.length !== ARCHIVED_HASH_BYTES) throw badRecord(item.where, 'hash');
  // A restore looks it up in a directory of its own choice, and only there.
  if (!/^[0-9]{10}\.segz?$/.test(segment.name)) {
    throw badRecord(item.where, 'not a name of a file');
  }
  return segment;
}

function spineOf(item: Checked): SpineState<PartInfo> {
  return {
    since: item.at('since').whole(),
    hollows: item.at('hollows').list(placedOf),
    batches: item.at('batches').list(entryOf),
    merges: item.at('merges').list(mergeOf),
  };
}

function spineEditOf(item: Checked): SpineEdit {
  item.keys([
    'collection',
    'since',
    'hollowsRemoved',
    'hollowsAdded',
    'batchesRemoved',
    'batchesAdded',
    'merges',
  ]);
  return {
    collection: item.at('collection').u32(),
    delta: {
      since: item.at('since').whole(),
      hollowsRemoved: item.at('hollowsRemoved').list(wholeOf),
      hollowsAdded: item.at('hollowsAdded').list(placedOf),
      batchesRemoved: item.at('batchesRemoved').list(idOf),
      batchesAdded: item.at('batchesAdded').list(entryOf),
      merges: item.at('merges').list(mergeOf),
    },
  };
}

function idOf(item: Checked): SpineId {
  const id = item.list(wholeOf);
  if (id.length !== 2 || id[0] >= id[1]) throw badRecord(item.where, 'not an id');
  return [id[0], id[1]];
}

function descOf(item: Checked): Description {
  item.keys(['lower', 'upper', 'since']);
  return {
    lower: item.at('lower').whole(),
    upper: item.at('upper').whole(),
    since: item.at('since').whole(),
  };
}

function placedOf(item: Checked): Placed<PartInfo> {
  item.keys(['id', 'bid', 'desc', 'runs']);
  const runs = item.at('runs').list(runOf);
  let len = 0;
  for (const run of runs) len += run.len;
  const hollow: Hollow<PartInfo> = {
    bid: item.at('bid').whole(1),
    desc: descOf(item.at('desc')),
    runs,
    len,
  };
  return { id: idOf(item.at('id')), hollow };
}

function runOf(item: Checked): Run<PartInfo> {
  item.keys(['runId', 'parts']);
  const parts = item.at('parts').list(partOf);
  if (parts.length === 0) throw badRecord(item.where, 'a run without parts');
  return { runId: item.at('runId').whole(1), parts, len: partsLen(parts) };
}

function entryOf(item: Checked): BatchEntry {
  item.keys(['id', 'level', 'desc']);
  return {
    id: idOf(item.at('id')),
    level: item.at('level').whole(),
    desc: descOf(item.at('desc')),
  };
}

function mergeOf(item: Checked): MergeEntry {
  item.keys(['id', 'since', 'remaining']);
  return {
    id: idOf(item.at('id')),
    since: item.at('since').whole(),
    remaining: item.at('remaining').whole(),
  };
}

function partOf(item: Checked): PartInfo {
  item.keys(PART_KEYS);
  const hash = item.at('hash').list(u32Of);
  if (hash.length !== 2) throw badRecord(item.where, 'not two lanes');
  const part: PartInfo = {
    file: item.at('file').whole(1),
    offset: item.at('offset').whole(),
    bytes: item.at('bytes').whole(1, 0xffff_ffff),
    kind: item.at('kind').whole(KIND_KEYED, KIND_UPSERT),
    len: item.at('len').whole(1),
    rowBytes: item.at('rowBytes').whole(),
    keyLo: item.at('keyLo').bytes('base64', keyBytesMax),
    keyHi: item.at('keyHi').bytes('base64', keyBytesMax),
    minT: item.at('minT').whole(),
    maxT: item.at('maxT').whole(),
    negatives: item.at('negatives').whole(),
    rangeDeletes: item.at('rangeDeletes').whole(),
    distinct: item.at('distinct').whole(),
    codec: item.at('codec').whole(0, 255),
    diffSum: item.at('diffSum').whole(Number.MIN_SAFE_INTEGER),
    hash: [hash[0], hash[1]],
    blockCount: item.at('blockCount').whole(),
    rangeDeletesOffset: item.at('rangeDeletesOffset').whole(),
    rangeDeletesBytes: item.at('rangeDeletesBytes').whole(),
    filterOffset: item.at('filterOffset').whole(),
    filterBytes: item.at('filterBytes').whole(),
    indexOffset: item.at('indexOffset').whole(),
    indexBytes: item.at('indexBytes').whole(),
    footerOffset: item.at('footerOffset').whole(),
  };
  const inOrder =
    part.rangeDeletesOffset + part.rangeDeletesBytes === part.filterOffset &&
    part.filterOffset + part.filterBytes === part.indexOffset &&
    part.indexOffset + part.indexBytes === part.footerOffset &&
    part.footerOffset < part.bytes;
  if (!inOrder) throw badRecord(item.where, 'positions do not add up');
  if (part.negatives + part.rangeDeletes > part.len) throw badRecord(item.where, 'counts');
  const shape = shapeFault(part);
  if (shape !== undefined) throw badRecord(item.where, shape);
  return part;
}

function badRecord(where: string, what: string, cause?: unknown): TidemarkError {
  const detail = { finding: 'MANIFEST_RECORD', file: where };
  return new TidemarkError('TIDEMARK_CORRUPT', `${where}: ${what}`, detail, cause);
}

function damaged(where: string, position: number): TidemarkError {
  return corrupt('MANIFEST_DAMAGED', `${where} is damaged at ${position}`, {
    file: where,
    position,
  });
}

function unsupported(message: string, detail: Record<string, unknown>): TidemarkError {
  return new TidemarkError('TIDEMARK_UNSUPPORTED_FORMAT', message, detail);
}
