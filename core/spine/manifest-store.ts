/**
 * The manifest's files: rollups, the edits that follow each, and HEAD, which names the newest rollup and
 * its predecessor. What `answered` reported is on disk; at most one program is in flight, and what is
 * proposed meanwhile joins the next. Nothing here waits but loading, creating and resuming, which are
 * for open. Called by the keeper on the background thread, and by the tools.
 *
 *   manifest/HEAD       {rollup: n, previous: m}; replaced by rename: a listing is never the truth
 *   manifest/n.rollup   the state; written to tmp/, synced, read back, renamed
 *   manifest/n.edits    edits since rollup n; appended, a batch a program, each batch synced
 *   also m.rollup, m.edits: m.rollup + m.edits = n.rollup, so a damaged n.rollup loses nothing
 *
 * How an edits file may end (newest file; in an older one all but the first row are damage):
 *   | after the last good edit                       | verdict                                  |
 *   | end of file                                    | all is there                             |
 *   | bytes that are no frame, and behind them none, | torn tail: never answered, left out,     |
 *   |   or none that claims the missing edit         |   cut off when opened for writing        |
 *   | the same, and behind them an edit that knew    | TIDEMARK_CORRUPT, DAMAGED_EDIT           |
 *   |   the missing one to be on disk                |                                          |
 *   | a frame that is no edit, or not the next       | TIDEMARK_CORRUPT                         |
 * As in the log, damage to the very last batch cannot be told from a torn write.
 */
import { invariant } from '../base/assert.ts';
import { equalAt, getU16 } from '../base/bytes.ts';
import { corrupt, isFullDisk, TidemarkError, toPlainError } from '../base/errors.ts';
import { lt } from '../base/frontier.ts';
import { editBytesPerRollup, editsPerRollup } from '../base/limits.ts';
import { editsPath, HEAD_PATH, MANIFEST_DIR, rollupPath, tmpPath } from '../storage/names.ts';
import type { Storage, StorageAnswer, StorageCall } from '../storage/storage.ts';
import { shortWrite } from '../storage/storage.ts';
import type { Finding } from './batch.ts';
import {
  applyEdit,
  checkManifest,
  copyManifest,
  decodeEdit,
  decodeEditsBegin,
  decodeHead,
  decodeRollup,
  encodeEdit,
  encodeEditsBegin,
  encodeHead,
  encodeRollup,
  FRAME_EDIT,
  FRAME_HEADER_BYTES,
  frameKind,
  frameLength,
  isReadOnlyFor,
  saltOf,
} from './manifest.ts';
import type { Edit, Head, LogPosition, ManifestState, Rollup } from './manifest.ts';

/** Steps for `storage.submit`, on descriptor `fd` (-1: the program opens its own). */
export type ManifestProgram = { readonly fd: number; readonly calls: readonly StorageCall[] };

export type ManifestProgress = {
  /** Undefined, or why nothing more can be written: the engine is to be poisoned. */
  readonly failure: unknown;
  /** Undefined, or what a rollup found no room for: nothing has changed, `program` begins it anew. */
  readonly noSpace?: unknown;
  /** Number of the last edit on disk. */
  readonly answered: number;
  /** A rollup was finished by this answer: `checkpoints` moved. */
  readonly rolledUp: boolean;
};

/** The log positions that the two rollups cover; only what is below `older` may leave the log. */
export type Checkpoints = { readonly newer: LogPosition; readonly older: LogPosition };

/** What the files say. */
export type LoadedManifest = {
  readonly state: ManifestState;
  readonly head: Head;
  /** Number of the last edit in `state`. */
  readonly edit: number;
  /** Edits in the newest file, and where its good bytes end. */
  readonly editCount: number;
  readonly editsBytes: number;
  /** Bytes behind them: a write that was never answered. */
  readonly tornBytes: number;
  /** The newest rollup is damaged; these bytes are what it should be. */
  readonly repair: Uint8Array | undefined;
  /** What is wrong but cost nothing. */
  readonly findings: readonly Finding[];
  /** An unknown feature forbids writing. */
  readonly readOnly: boolean;
};

/** Reads the manifest, changes nothing. Undefined: there is none (creation writes HEAD last). */
export function loadManifest(storage: Storage): LoadedManifest | undefined {
  const headBytes = readFile(storage, HEAD_PATH);
  if (headBytes === undefined) return undefined;
  const head = decodeHead(headBytes, HEAD_PATH);
  const findings: Finding[] = [];
  let base: Rollup;
  let repair: Uint8Array | undefined;
  try {
    base = readRollup(storage, head, head.rollup);
  } catch (error) {
    if (!isDamage(error) || head.previous === 0) throw error;
    base = readPredecessor(storage, head, error);
    repair = encodeRollup(base.state, head.rollup, base.edit);
    findings.push({
      finding: 'ROLLUP_DAMAGED',
      message: `${rollupPath(head.rollup)} is damaged; its predecessor and the edits since say the same`,
    });
  }
  const { state } = base;
  const tail = replay(storage, head, head.rollup, state, base.edit);
  if (tail.tornBytes > 0) {
    findings.push({
      finding: 'TORN_EDITS',
      message: `${editsPath(head.rollup)} ends in ${tail.tornBytes} bytes that were never answered`,
    });
  }
  checkManifest(state);
  return {
    state,
    head,
    edit: tail.edit,
    editCount: tail.edit - base.edit,
    editsBytes: tail.end,
    tornBytes: tail.tornBytes,
    repair,
    findings,
    readOnly: isReadOnlyFor(head.identity.features) || isReadOnlyFor(state.identity.features),
  };
}

/** In flight: nothing, a batch of edits, a rollup being written, a rollup taking over. */
const FLIGHT_NONE = 0;
const FLIGHT_EDITS = 1;
const FLIGHT_ROLLUP = 2;
const FLIGHT_SWITCH = 3;

type Pending = { readonly number: number; readonly edit: Edit };

export class ManifestStore {
  /** With every answered edit; rollups are written from it. Not to be changed by others. */
  readonly state: ManifestState;
  /** With every proposed edit too: what the next one must fit. */
  readonly proposed: ManifestState;
  #fd: number;
  #rollup: number;
  #previous: number;
  #flushed: LogPosition;
  #previousFlushed: LogPosition;
  #salt: number;
  #editsBytes: number;
  #answered: number;
  #lastProposed: number;
  #sinceRollup = 0;
  #bytesSinceRollup = 0;
  /** Bytes of the newest rollup, 0 while this run has written none. */
  #rollupSize = 0;
  #pending: Pending[] = [];
  #flying: Pending[] = [];
  #flyingBytes = 0;
  #flight: number = FLIGHT_NONE;
  /** A rollup is wanted once this edit is answered. */
  #rollupAfter: number | undefined;
  #rollupBytes: Uint8Array | undefined;
  #readBack: Uint8Array | undefined;
  #failed = false;

  private constructor(state: ManifestState, head: Head, edit: number, fd: number, bytes: number) {
    this.state = state;
    this.proposed = copyManifest(state);
    this.#fd = fd;
    this.#rollup = head.rollup;
    this.#previous = head.previous;
    this.#flushed = head.flushed;
    this.#previousFlushed = head.previousFlushed;
    this.#salt = saltOf(state.identity.logId, head.rollup);
    this.#editsBytes = bytes;
    this.#answered = edit;
    this.#lastProposed = edit;
  }

  /** Writes the first manifest of a store. HEAD comes last: before it there is no store. */
  static create(storage: Storage, state: ManifestState): ManifestStore {
    checkManifest(state);
    const head: Head = {
      identity: state.identity,
      rollup: 0,
      previous: 0,
      flushed: state.flushed,
      previousFlushed: state.flushed,
    };
    const store = new ManifestStore(state, head, 0, -1, 0);
    store.#rollupNow(storage);
    return store;
  }

  /**
   * Takes over what `loadManifest` found, for writing. Edits that an earlier incarnation wrote are
   * written again as a rollup: what it read from a cache whose sync had failed may not be on disk.
   */
  static resume(storage: Storage, loaded: LoadedManifest): ManifestStore {
    const { state, head } = loaded;
    if (loaded.readOnly) {
      throw new TidemarkError(
        'TIDEMARK_UNSUPPORTED_FORMAT',
        'the manifest uses a feature that this version may read but not write',
        { file: HEAD_PATH, roCompat: head.identity.features.roCompat },
      );
    }
    storage.syncDir(MANIFEST_DIR);
    if (loaded.repair !== undefined) {
      runProgram(storage, -1, writeBack(loaded.repair, new Uint8Array(loaded.repair.length)));
      runProgram(storage, -1, [
        { call: 'rename', from: TMP_ROLLUP, to: rollupPath(head.rollup) },
        { call: 'syncDir', path: MANIFEST_DIR },
      ]);
    }
    const fd = storage.open(editsPath(head.rollup), 'write');
    const store = new ManifestStore(state, head, loaded.edit, fd, loaded.editsBytes);
    if (loaded.tornBytes > 0) storage.truncate(fd, loaded.editsBytes);
    if (loaded.tornBytes > 0 || loaded.editCount > 0) {
      storage.sync(fd);
      store.#rollupNow(storage);
    }
    return store;
  }

  /** Number of the last edit on disk. */
  get answered(): number {
    return this.#answered;
  }

  get checkpoints(): Checkpoints {
    return { newer: this.#flushed, older: this.#previousFlushed };
  }

  /** True when everything proposed is on disk and nothing is in flight or wanted. */
  get idle(): boolean {
    return (
      this.#flight === FLIGHT_NONE &&
      this.#pending.length === 0 &&
      this.#rollupAfter === undefined &&
      this.#rollupBytes === undefined
    );
  }

  /** Takes an edit into the next batch and returns its number. Throws, with nothing changed, if it does not fit. */
  propose(edit: Edit): number {
    invariant(!this.#failed, 'nothing is proposed after a failure');
    applyEdit(this.proposed, edit);
    this.#lastProposed += 1;
    this.#pending.push({ number: this.#lastProposed, edit });
    return this.#lastProposed;
  }

  /** Wants a rollup that holds everything proposed so far: a checkpoint. */
  requestRollup(): void {
    this.#rollupAfter = this.#lastProposed;
  }

  /** The program to submit now, if any. Its answer goes to `onAnswer` before the next is asked for. */
  program(): ManifestProgram | undefined {
    if (this.#failed || this.#flight === FLIGHT_EDITS) return undefined;
    if (this.#flight === FLIGHT_ROLLUP || this.#flight === FLIGHT_SWITCH) return undefined;
    if (this.#rollupBytes !== undefined) return this.#switchProgram();
    if (this.#rollupAfter !== undefined && this.#answered >= this.#rollupAfter) {
      return this.#rollupProgram();
    }
    return this.#pending.length > 0 ? this.#editsProgram() : undefined;
  }

  /** What the storage answered to the last program. */
  onAnswer(answer: StorageAnswer): ManifestProgress {
    const flight = this.#flight;
    invariant(flight !== FLIGHT_NONE, 'an answer to a program');
    this.#flight = FLIGHT_NONE;
    if (answer.failure !== undefined) {
      // What it was written to is in tmp/, and nobody knows of it.
      const isLost = flight !== FLIGHT_ROLLUP || !isFullDisk(toPlainError(answer.failure));
      return isLost ? this.#fail(answer.failure) : this.#rollupLater(answer.failure);
    }
    if (flight === FLIGHT_EDITS) this.#onEdits();
    else if (flight === FLIGHT_ROLLUP) {
      if (!sameBytes(this.#rollupBytes!, this.#readBack!)) {
        const path = rollupPath(this.#rollup + 1);
        return this.#fail(corrupt('READ_BACK', `${path} reads back otherwise`, { file: path }));
      }
    } else this.#onSwitched(answer.fd);
    return {
      failure: undefined,
      answered: this.#answered,
      rolledUp: flight === FLIGHT_SWITCH,
    };
  }

  /** Closes the descriptor. Requires: nothing in flight, or the engine is poisoned. */
  close(storage: Storage): void {
    if (this.#fd >= 0) storage.close(this.#fd);
    this.#fd = -1;
    this.#failed = true;
  }

  /** Files in manifest/ that HEAD does not lead to: left by a crash, to be unlinked after recovery. */
  strays(storage: Storage): string[] {
    const kept = new Set([HEAD_PATH]);
    for (const n of [this.#rollup, this.#previous]) {
      if (n === 0) continue;
      kept.add(rollupPath(n));
      kept.add(editsPath(n));
    }
    const paths = storage.list(MANIFEST_DIR).map((name) => `${MANIFEST_DIR}/${name}`);
    return paths.filter((path) => !kept.has(path));
  }

  #fail(failure: unknown): ManifestProgress {
    this.#failed = true;
    return { failure, answered: this.#answered, rolledUp: false };
  }

  #rollupLater(noSpace: unknown): ManifestProgress {
    this.#rollupBytes = undefined;
    this.#readBack = undefined;
    this.#rollupAfter ??= this.#answered;
    return { failure: undefined, noSpace, answered: this.#answered, rolledUp: false };
  }

  #editsProgram(): ManifestProgram {
    const frames = this.#pending.map(({ number, edit }) =>
      encodeEdit({ number, answered: this.#answered, edit }, this.#salt),
    );
    const bytes = concat(frames);
    this.#flying = this.#pending;
    this.#pending = [];
    this.#flyingBytes = bytes.length;
    this.#flight = FLIGHT_EDITS;
    return {
      fd: this.#fd,
      calls: [{ call: 'write', bytes, position: this.#editsBytes }, { call: 'sync' }],
    };
  }

  #onEdits(): void {
    for (const { number, edit } of this.#flying) {
      applyEdit(this.state, edit);
      this.#answered = number;
    }
    this.#sinceRollup += this.#flying.length;
    this.#bytesSinceRollup += this.#flyingBytes;
    this.#editsBytes += this.#flyingBytes;
    this.#flying = [];
    if (this.#rollupAfter !== undefined) return;
    // Edits of long keys are large: what writes all of them again comes after as many bytes as it has itself.
    const bytesMax = Math.max(editBytesPerRollup, this.#rollupSize);
    if (this.#sinceRollup >= editsPerRollup || this.#bytesSinceRollup >= bytesMax) {
      this.#rollupAfter = this.#answered;
    }
  }

  #rollupProgram(): ManifestProgram {
    const bytes = encodeRollup(this.state, this.#rollup + 1, this.#answered);
    this.#rollupAfter = undefined;
    this.#rollupBytes = bytes;
    this.#readBack = new Uint8Array(bytes.length);
    this.#flight = FLIGHT_ROLLUP;
    return { fd: -1, calls: writeBack(bytes, this.#readBack) };
  }

  /** Written and read back: now it takes over. Every step leaves a store that can be opened. */
  #switchProgram(): ManifestProgram {
    const next = this.#rollup + 1;
    const { identity } = this.state;
    const begin = encodeEditsBegin({ identity, rollup: next, edit: this.#answered });
    const head = encodeHead(this.#headAfter());
    const calls: StorageCall[] = [
      { call: 'rename', from: TMP_ROLLUP, to: rollupPath(next) },
      // A crash may have left one that no HEAD named.
      { call: 'unlink', path: editsPath(next) },
      { call: 'open', path: editsPath(next), how: 'create' },
      { call: 'write', bytes: begin, position: 0 },
      { call: 'sync' },
      { call: 'close' },
      { call: 'syncDir', path: MANIFEST_DIR },
      { call: 'unlink', path: TMP_HEAD },
      { call: 'open', path: TMP_HEAD, how: 'create' },
      { call: 'write', bytes: head, position: 0 },
      { call: 'sync' },
      { call: 'close' },
      { call: 'rename', from: TMP_HEAD, to: HEAD_PATH },
      { call: 'syncDir', path: MANIFEST_DIR },
    ];
    if (this.#previous > 0) {
      calls.push({ call: 'unlink', path: rollupPath(this.#previous) });
      calls.push({ call: 'unlink', path: editsPath(this.#previous) });
    }
    // The next edits are written and synced through this one.
    calls.push({ call: 'open', path: editsPath(next), how: 'write' });
    const fd = this.#fd;
    if (fd >= 0) calls.unshift({ call: 'close' });
    this.#flight = FLIGHT_SWITCH;
    // From here on it is the program's: closed twice it could be another's.
    this.#fd = -1;
    return { fd, calls };
  }

  #headAfter(): Head {
    const { flushed } = this.state;
    // A truncation sets the upper back: then what both rollups cover is what the newer one does.
    const isLower = this.#rollup === 0 || lt(flushed.upper, this.#flushed.upper);
    return {
      identity: this.state.identity,
      rollup: this.#rollup + 1,
      previous: this.#rollup,
      flushed,
      previousFlushed: isLower ? flushed : this.#flushed,
    };
  }

  #onSwitched(fd: number): void {
    const head = this.#headAfter();
    const { identity } = this.state;
    this.#rollup = head.rollup;
    this.#previous = head.previous;
    this.#flushed = head.flushed;
    this.#previousFlushed = head.previousFlushed;
    this.#fd = fd;
    this.#salt = saltOf(identity.logId, head.rollup);
    this.#editsBytes = encodeEditsBegin({
      identity,
      rollup: head.rollup,
      edit: this.#answered,
    }).length;
    this.#sinceRollup = 0;
    this.#bytesSinceRollup = 0;
    this.#rollupSize = this.#rollupBytes!.length;
    this.#rollupBytes = undefined;
    this.#readBack = undefined;
  }

  #rollupNow(storage: Storage): void {
    this.requestRollup();
    this.settle(storage);
  }

  /** Waits until all that is proposed and wanted is on disk. For open, and for tools. */
  settle(storage: Storage): void {
    while (!this.idle) {
      const program = this.program();
      invariant(program !== undefined, 'a rollup is under way');
      const fd = runProgram(storage, program.fd, program.calls);
      const { failure } = this.onAnswer({ ticket: 0, fd, failure: undefined });
      if (failure !== undefined) throw failure;
    }
  }
}

const TMP_ROLLUP: string = tmpPath('manifest.rollup');
const TMP_HEAD: string = tmpPath('manifest.HEAD');

/** A file in tmp/, synced, and read back into `into`, which the caller compares. */
function writeBack(bytes: Uint8Array, into: Uint8Array): StorageCall[] {
  return [
    { call: 'unlink', path: TMP_ROLLUP },
    { call: 'open', path: TMP_ROLLUP, how: 'create' },
    { call: 'write', bytes, position: 0 },
    { call: 'sync' },
    { call: 'read', bytes: into, position: 0 },
    { call: 'close' },
  ];
}

/** A program, waited for. At open only. Returns the descriptor it ends with. */
function runProgram(storage: Storage, fd: number, calls: readonly StorageCall[]): number {
  let current = fd;
  let path = MANIFEST_DIR;
  try {
    for (const call of calls) {
      if (call.call === 'open') path = call.path;
      current = runStep(storage, current, call, path);
    }
  } catch (error) {
    if (current >= 0 && current !== fd) storage.close(current);
    throw error;
  }
  return current;
}

/** Returns the descriptor of the steps that follow. */
function runStep(storage: Storage, fd: number, call: StorageCall, path: string): number {
  switch (call.call) {
    case 'open':
      return storage.open(call.path, call.how);
    case 'close':
      storage.close(fd);
      return -1;
    case 'write': {
      const { length } = call.bytes;
      const count = storage.write(fd, call.bytes, 0, length, call.position);
      if (count !== length) throw shortWrite(count, length, path);
      break;
    }
    case 'read': {
      const { length } = call.bytes;
      expectCount(storage.read(fd, call.bytes, 0, length, call.position), length);
      break;
    }
    case 'sync':
      storage.sync(fd);
      break;
    case 'rename':
      storage.rename(call.from, call.to);
      break;
    case 'unlink':
      storage.unlink(call.path);
      break;
    case 'syncDir':
      storage.syncDir(call.path);
      break;
  }
  return fd;
}

function expectCount(count: number, length: number): void {
  if (count === length) return;
  throw new TidemarkError('TIDEMARK_IO', `the disk gave ${count} of ${length} bytes`, {
    count,
    length,
  });
}

// --- reading

function readRollup(storage: Storage, head: Head, n: number): Rollup {
  const path = rollupPath(n);
  const bytes = readFile(storage, path);
  if (bytes === undefined)
    throw corrupt('MANIFEST_MISSING', `${path} is not there`, { file: path });
  const rollup = decodeRollup(bytes, path);
  if (rollup.rollup !== n || !isSameLog(head, rollup.state.identity.logId)) {
    throw corrupt('MANIFEST_FOREIGN', `${path} belongs elsewhere`, { file: path });
  }
  return rollup;
}

/** The newest rollup is damaged: the older one and the edits since it, which must all be there. */
function readPredecessor(storage: Storage, head: Head, cause: unknown): Rollup {
  const { state, edit } = readRollup(storage, head, head.previous);
  const tail = replay(storage, head, head.previous, state, edit);
  const begin = readEditsBegin(storage, head, head.rollup).begin;
  if (tail.edit !== begin.edit) {
    const path = editsPath(head.previous);
    throw new TidemarkError(
      'TIDEMARK_CORRUPT',
      `${rollupPath(head.rollup)} is damaged, and ${path} does not lead up to it`,
      { finding: 'ROLLUP_DAMAGED', file: path, cause: toPlainError(cause).message },
      cause,
    );
  }
  return { state, rollup: head.rollup, edit: tail.edit };
}

function readEditsBegin(
  storage: Storage,
  head: Head,
  n: number,
): ReturnType<typeof decodeEditsBegin> & { readonly bytes: Uint8Array } {
  const path = editsPath(n);
  const bytes = readFile(storage, path);
  if (bytes === undefined)
    throw corrupt('MANIFEST_MISSING', `${path} is not there`, { file: path });
  const { begin, end } = decodeEditsBegin(bytes, path);
  if (begin.rollup !== n || !isSameLog(head, begin.identity.logId)) {
    throw corrupt('MANIFEST_FOREIGN', `${path} belongs elsewhere`, { file: path });
  }
  return { begin, end, bytes };
}

/** Brings `state`, which holds edits up to `edit`, forward by the edits that follow rollup n. */
function replay(
  storage: Storage,
  head: Head,
  n: number,
  state: ManifestState,
  edit: number,
): { readonly edit: number; readonly end: number; readonly tornBytes: number } {
  const path = editsPath(n);
  const { begin, end, bytes } = readEditsBegin(storage, head, n);
  if (begin.edit !== edit) {
    throw corrupt('EDIT_GAP', `${path} begins after edit ${begin.edit}, not ${edit}`, {
      file: path,
    });
  }
  const salt = saltOf(head.identity.logId, n);
  let at = end;
  let last = edit;
  while (at < bytes.length) {
    const length = frameLength(bytes, at, salt);
    if (length === 0) {
      expectTorn(bytes, at, salt, last + 1, path);
      break;
    }
    const numbered = decodeEdit(bytes, at, path);
    if (numbered.number !== last + 1) {
      throw corrupt('EDIT_GAP', `${path} has edit ${numbered.number} after ${last}`, {
        file: path,
        position: at,
      });
    }
    applyEdit(state, numbered.edit);
    last = numbered.number;
    at += length;
  }
  return { edit: last, end: at, tornBytes: bytes.length - at };
}

/** Edit `number` is unreadable at `at`: an error if anything behind it knew it to be on disk. */
function expectTorn(
  bytes: Uint8Array,
  at: number,
  salt: number,
  number: number,
  path: string,
): void {
  // Texts have no zero bytes, so few places look like a header and the checksum is rarely computed.
  for (let i = at + 1; i + FRAME_HEADER_BYTES <= bytes.length; i++) {
    if (frameKind(bytes, i) !== FRAME_EDIT || getU16(bytes, i + FRAME_HEADER_BYTES - 2) !== 0)
      continue;
    if (frameLength(bytes, i, salt) === 0) continue;
    const witness = decodeEdit(bytes, i, path);
    if (witness.answered < number) continue;
    throw corrupt('DAMAGED_EDIT', `${path} is damaged at ${at}; edit ${witness.number} follows`, {
      file: path,
      position: at,
      edit: number,
    });
  }
}

function readFile(storage: Storage, path: string): Uint8Array | undefined {
  if (storage.stat(path) === undefined) return undefined;
  const fd = storage.open(path, 'read');
  try {
    const bytes = new Uint8Array(storage.size(fd));
    expectCount(storage.read(fd, bytes, 0, bytes.length, 0), bytes.length);
    return bytes;
  } finally {
    storage.close(fd);
  }
}

function isSameLog(head: Head, logId: Uint8Array): boolean {
  return sameBytes(head.identity.logId, logId);
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return equalAt(a, 0, a.length, b, 0, b.length);
}

function isDamage(error: unknown): boolean {
  return error instanceof TidemarkError && error.code === 'TIDEMARK_CORRUPT';
}

function concat(frames: readonly Uint8Array[]): Uint8Array {
  let length = 0;
  for (const bytes of frames) length += bytes.length;
  const all = new Uint8Array(length);
  let at = 0;
  for (const bytes of frames) {
    all.set(bytes, at);
    at += bytes.length;
  }
  return all;
}
