/**
 * What the commands share: exit codes, arguments, output, how a machine is run in slices with its progress on
 * standard error, and who has a store's lock. Called by bin/tidemark.ts and the files of its commands.
 */
import { once } from 'node:events';
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { TidemarkError } from '../core/base/errors.ts';
import { acquireLock, readLock, releaseLock } from '../core/storage/lock.ts';
import { isStore } from '../core/store/look.ts';
import type { Machine, Progress } from '../core/store/report.ts';
import {
  CATALOG_VALUES,
  ROWS_LOWER,
  checkCatalogRow,
  nameOfCatalogKey,
} from '../actors/catalog.ts';
import { CURSORS_LOWER, checkCursorRow, nameOfCursorKey } from '../actors/cursor-row.ts';
import { NodeStorage } from '../actors/node-storage.ts';
import { identify, isGone, markReleased } from '../actors/process-identity.ts';
import type { CursorOf } from '../core/store/inspect.ts';
import type { LockReport } from './print.ts';

export const EXIT_OK = 0;
export const EXIT_CORRUPT = 2;
export const EXIT_UNREADABLE = 3;
export const EXIT_REFUSED = 4;
export const EXIT_USAGE = 64;
export const EXIT_DEFECT = 70;
export const EXIT_INTERRUPTED = 130;

export class UsageError extends Error {}

/** Work goes on for so long before signals and timers get their turn. */
const SLICE_MS = 30;
const PROGRESS_EVERY_MS = 500;
export const interrupt: AbortController = new AbortController();

/** Runs a machine to its end, in slices; undefined when interrupted. */
export async function run<T>(machine: Machine<T>, progress: Progress): Promise<T | undefined> {
  let told = performance.now();
  let isShown = false;
  for (;;) {
    const sliceEnd = performance.now() + SLICE_MS;
    while (performance.now() < sliceEnd) {
      const { done, value } = machine.next();
      if (done !== true) continue;
      if (isShown) process.stderr.write('\r\u001b[K');
      return value;
    }
    await nextTurn();
    if (process.stdout.writableNeedDrain) await once(process.stdout, 'drain');
    if (interrupt.signal.aborted) {
      machine.return(undefined as T);
      return undefined;
    }
    if (!process.stderr.isTTY || performance.now() - told < PROGRESS_EVERY_MS) continue;
    told = performance.now();
    isShown = true;
    const { what, doneBytes, totalBytes } = progress;
    const percent = totalBytes === 0 ? 0 : Math.min(100, (doneBytes / totalBytes) * 100);
    process.stderr.write(`\r\u001b[K${what} ${percent.toFixed(0)} %`);
  }
}

function nextTurn(): Promise<void> {
  return new Promise((done) => setImmediate(done));
}

export function newProgress(): Progress {
  return { what: '', doneBytes: 0, totalBytes: 0 };
}

// ---------------------------------------------------------------- the store

/** A directory that is there, whatever it holds. */
export function directoryAt(directory: string): NodeStorage {
  const found = statSync(directory, { throwIfNoEntry: false });
  if (found === undefined) throw notAStore(`${directory}: no such directory`);
  if (!found.isDirectory()) throw notAStore(`${directory} is not a directory`);
  return new NodeStorage(resolve(directory));
}

export function storageOf(directory: string): NodeStorage {
  const storage = directoryAt(directory);
  if (!isStore(storage)) throw notAStore(`${directory} holds no store`);
  return storage;
}

function notAStore(message: string): TidemarkError {
  return new TidemarkError('TIDEMARK_NOT_FOUND', message);
}

/** Who has the store, as far as can be said from here. */
export function lockOf(storage: NodeStorage, directory: string): LockReport {
  const lock = readLock(storage);
  if (lock === undefined) return { state: 'free', holder: undefined };
  const { holder } = lock;
  if (holder === undefined) return { state: 'unknown', holder: undefined };
  if (isGone(holder)) return { state: 'gone', holder };
  // A copied directory brings its LOCK along.
  const me = identify('');
  const sameEyes = holder.hostName === me.hostName && holder.pidNamespace === me.pidNamespace;
  const isElsewhere = sameEyes && !isSame(holder.directory, directory);
  return { state: isElsewhere ? 'elsewhere' : 'held', holder };
}

/** One directory under two names, mounted twice even, is one. */
function isSame(a: string, b: string): boolean {
  const [one, other] = [a, b].map((path) => statSync(path, { throwIfNoEntry: false }));
  return one !== undefined && one.dev === other?.dev && one.ino === other.ino;
}

export function isLive({ state }: LockReport): boolean {
  return state === 'held' || state === 'unknown';
}

export function nameOf(
  key: Uint8Array,
  value: Uint8Array,
): { id: number; name: string } | undefined {
  if (key[0] !== ROWS_LOWER[0]) return undefined;
  try {
    const name = nameOfCatalogKey(key);
    return { id: checkCatalogRow(CATALOG_VALUES.decode(value), name).id, name };
  } catch {
    return undefined;
  }
}

export function cursorOf(key: Uint8Array, value: Uint8Array): ReturnType<CursorOf> {
  if (key[0] !== CURSORS_LOWER[0]) return undefined;
  try {
    const name = nameOfCursorKey(key);
    const { after, collections, maxLag } = checkCursorRow(CATALOG_VALUES.decode(value), name);
    return { kind: 'cursor', name, offset: after + 1, collections, maxLag: { ...maxLag } };
  } catch {
    return undefined;
  }
}

export function idOf(key: Uint8Array, value: Uint8Array): number | undefined {
  return nameOf(key, value)?.id;
}

// ---------------------------------------------------------------- arguments and output

export type Flags = {
  readonly [name: string]: string | boolean | (string | boolean)[] | undefined;
};

export function countOf(flags: Flags, name: string): number | undefined {
  const text = flags[name];
  if (typeof text !== 'string') return undefined;
  const value = Number(text);
  if (/^[0-9]+$/.test(text) && Number.isSafeInteger(value)) return value;
  throw new UsageError(`--${name} is an integer from 0, not '${text}'`);
}

export function write(text: string): void {
  process.stdout.write(text);
}

export function writeJson(item: unknown): void {
  write(`${JSON.stringify(item)}\n`);
}

/** A copied directory brings along the LOCK of who has the one it was copied from. */
export function isCopied(storage: NodeStorage, directory: string): boolean {
  return lockOf(storage, directory).state === 'elsewhere';
}

/** Runs with the store's lock; TIDEMARK_LOCKED when somebody has it. */
export async function withLock<T>(
  storage: NodeStorage,
  directory: string,
  readOnly: boolean,
  work: () => Promise<T>,
): Promise<T> {
  const me = identify(resolve(directory));
  const isOurs = acquireLock(storage, me, isGone, isCopied(storage, directory), readOnly);
  try {
    return await work();
  } finally {
    if (isOurs) releaseLock(storage, me);
    markReleased(me);
  }
}
