/**
 * `engine.backup`: the machine of core/store/backup.ts beside the running engine, on a thread of its own
 * where the engine has threads, else in slices between the turns of the event loop. The keeper holds what
 * is copied meanwhile. Called by the engine on its caller's thread.
 */
import { relative, resolve as resolvePath } from 'node:path';
import { Worker } from 'node:worker_threads';
import { TidemarkError, fromPlainError } from '../core/base/errors.ts';
import type { PlainError } from '../core/base/errors.ts';
import type { Storage } from '../core/storage/storage.ts';
import { StoreBackup, readRollup } from '../core/store/backup.ts';
import type { BackupResult } from '../core/store/backup.ts';
import { removeMade } from '../core/store/new-store.ts';
import type { Machine, Progress } from '../core/store/report.ts';
import { placeAt } from './place.ts';

export type { BackupResult } from '../core/store/backup.ts';
export type BackupProgress = Readonly<Progress>;

export interface BackupOptions {
  /** Gives up and removes what was made; the promise is rejected with its reason. */
  readonly signal?: AbortSignal;
  /** Called now and then, at most some times a second. */
  readonly onProgress?: (progress: BackupProgress) => void;
}

/** What the thread is given. */
export type BackupTask = {
  readonly source: string;
  readonly target: string;
  readonly statePath: string;
};

/** What it says. */
export type BackupMessage =
  | { readonly kind: 'progress'; readonly progress: BackupProgress }
  /** The directory was empty and is its; `whole`: it was not there. */
  | { readonly kind: 'begun'; readonly whole: boolean }
  /** The parts are there: up to where is the log wanted? */
  | { readonly kind: 'upper?' }
  | { readonly kind: 'report'; readonly result: BackupResult }
  | { readonly kind: 'failed'; readonly error: PlainError };

/** What it is told. */
export type BackupWord =
  { readonly kind: 'upper'; readonly upper: number } | { readonly kind: 'stop' };

/** The event loop is free again after so long. */
const SLICE_MS = 4;
const PROGRESS_EVERY_MS = 200;

// As in kit.ts: under a TypeScript loader workers are the compiled ones.
const here = new URL(import.meta.url);
const WORKER_URL: URL = here.pathname.endsWith('.ts')
  ? new URL('../dist/actors/backup-worker.js', here)
  : new URL('./backup-worker.js', here);

/** The directory as an absolute path, and the options; TypeError for what neither can be. */
export function checkBackup(
  directory: unknown,
  store: string,
  options: unknown,
): { target: string; options: BackupOptions } {
  if (typeof directory !== 'string' || directory === '') {
    throw new TypeError('backup takes the path of a directory');
  }
  const target = resolvePath(directory);
  const way = relative(resolvePath(store), target);
  if (!way.startsWith('..') && resolvePath(store, way) === target) {
    throw new TypeError(`a backup cannot lie in the store's own directory: ${directory}`);
  }
  if (options === undefined) return { target, options: {} };
  if (typeof options !== 'object' || options === null) {
    throw new TypeError('backup options are an object');
  }
  for (const name of Object.keys(options)) {
    if (name !== 'signal' && name !== 'onProgress') {
      throw new TypeError(`unknown backup option ${name}`);
    }
  }
  const { signal, onProgress } = options as { [name: string]: unknown };
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError('signal is an AbortSignal');
  }
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new TypeError('onProgress is a function');
  }
  return { target, options };
}

/** What a backup asks and says on its way. */
export type BackupPorts = {
  readonly onBegun: (whole: boolean) => void;
  /** Asked for when the parts are there: the log below is copied. */
  readonly upper: () => number | Promise<number>;
  readonly onProgress: (progress: BackupProgress) => void;
};

/** Makes it, a slice a turn; what was made goes when it fails. */
export async function runBackup(
  backup: StoreBackup,
  signal: AbortSignal,
  { onBegun, upper, onProgress }: BackupPorts,
): Promise<BackupResult> {
  let told = performance.now();
  const run = async <T>(machine: Machine<T>): Promise<T> => {
    try {
      for (;;) {
        await new Promise((resolve) => setImmediate(resolve));
        signal.throwIfAborted();
        const sliceEnd = performance.now() + SLICE_MS;
        while (performance.now() < sliceEnd) {
          const { done, value } = machine.next();
          if (done === true) return value;
        }
        if (performance.now() - told < PROGRESS_EVERY_MS) continue;
        told = performance.now();
        onProgress({ ...backup.progress });
      }
    } finally {
      // Closes what it has open.
      machine.return(undefined as never);
    }
  };
  try {
    onBegun(await run(backup.begin()));
    await run(backup.parts());
    await run(backup.log(await upper()));
    return await run(backup.finish());
  } catch (error) {
    backup.abandon();
    throw error;
  }
}

/** On the calling thread. */
export async function backupInSlices(
  storage: Storage,
  task: Omit<BackupTask, 'source'>,
  upper: () => number,
  signal: AbortSignal,
  onProgress: (progress: BackupProgress) => void,
): Promise<BackupResult> {
  const state = readRollup(storage, task.statePath);
  const backup = new StoreBackup(storage, state, placeAt(task.target));
  return runBackup(backup, signal, { onBegun: () => {}, upper, onProgress });
}

/** On a thread of its own, which ends with it. */
export async function backupOnThread(
  task: BackupTask,
  upper: () => number,
  signal: AbortSignal,
  onProgress: (progress: BackupProgress) => void,
): Promise<BackupResult> {
  const worker = new Worker(WORKER_URL, {
    name: 'tidemark-backup',
    execArgv: [],
    workerData: task,
  });
  const tell = (word: BackupWord): void => worker.postMessage(word, []);
  const stop = (): void => tell({ kind: 'stop' });
  let failure: unknown;
  let begun: { readonly whole: boolean } | undefined;
  signal.addEventListener('abort', stop);
  if (signal.aborted) stop();
  try {
    return await new Promise<BackupResult>((resolve, reject) => {
      worker.on('message', (message: BackupMessage) => {
        switch (message.kind) {
          case 'progress':
            try {
              onProgress(message.progress);
            } catch (error) {
              // It removes what it has made, and then says that it has failed.
              failure ??= error;
              stop();
            }
            break;
          case 'begun':
            begun = message;
            break;
          case 'upper?':
            tell({ kind: 'upper', upper: upper() });
            break;
          case 'report':
            resolve(message.result);
            break;
          case 'failed':
            reject(failure ?? (signal.aborted ? signal.reason : fromPlainError(message.error)));
            break;
        }
      });
      // Whatever has become of the thread, what it made is no store and must not look like one.
      const gone = (error: Error): void => {
        if (begun !== undefined) removeMade(placeAt(task.target), begun.whole);
        reject(new TidemarkError('TIDEMARK_IO', `the copying thread ended: ${error.message}`));
      };
      let isSettled = false;
      const settle = (message: BackupMessage): void => {
        isSettled ||= message.kind === 'report' || message.kind === 'failed';
      };
      worker.on('message', settle);
      worker.on('error', (error) => {
        if (!isSettled) gone(error);
      });
      worker.on('exit', (code) => {
        if (!isSettled) gone(new Error(`it exited (${code})`));
      });
    });
  } finally {
    signal.removeEventListener('abort', stop);
    await worker.terminate();
  }
}
