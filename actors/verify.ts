/**
 * `engine.verify`: the machine of core/store/verify.ts beside the running engine, on a thread of its own
 * where the engine has threads, else in slices between the turns of the event loop. It reads the files as
 * anybody could, and asks no actor. Called by the engine on its caller's thread.
 */
import { Worker } from 'node:worker_threads';
import { fromPlainError } from '../core/base/errors.ts';
import type { PlainError } from '../core/base/errors.ts';
import { verifyStore } from '../core/store/verify.ts';
import type { VerifyReport } from '../core/store/verify.ts';
import type { Progress } from '../core/store/report.ts';
import type { Storage } from '../core/storage/storage.ts';

export type VerifyProgress = Readonly<Progress>;

export interface VerifyOptions {
  /** Read every block of every part too. Default false. */
  readonly full?: boolean;
  /** Gives up; the promise is rejected with its reason. */
  readonly signal?: AbortSignal;
  /** Called now and then, at most some times a second. */
  readonly onProgress?: (progress: VerifyProgress) => void;
}

/** What the thread is given. */
export type VerifyTask = { readonly directory: string; readonly full: boolean };

/** What it says: how far it is, and in the end what it found or why it could not. */
export type VerifyMessage =
  | { readonly kind: 'progress'; readonly progress: VerifyProgress }
  | { readonly kind: 'report'; readonly report: VerifyReport }
  | { readonly kind: 'failed'; readonly error: PlainError };

/** The event loop is free again after so long. */
const SLICE_MS = 4;
export const PROGRESS_EVERY_MS = 200;

// As in kit.ts: under a TypeScript loader workers are the compiled ones.
const here = new URL(import.meta.url);
const WORKER_URL: URL = here.pathname.endsWith('.ts')
  ? new URL('../dist/actors/verify-worker.js', here)
  : new URL('./verify-worker.js', here);

export function checkVerifyOptions(options: unknown): VerifyOptions {
  if (options === undefined) return {};
  if (typeof options !== 'object' || options === null) {
    throw new TypeError('verify options are an object');
  }
  for (const name of Object.keys(options)) {
    if (name !== 'full' && name !== 'signal' && name !== 'onProgress') {
      throw new TypeError(`unknown verify option ${name}`);
    }
  }
  const { full, signal, onProgress } = options as { [name: string]: unknown };
  if (full !== undefined && typeof full !== 'boolean') throw new TypeError('full is a boolean');
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError('signal is an AbortSignal');
  }
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new TypeError('onProgress is a function');
  }
  return options;
}

/** On the calling thread, a slice a turn. */
export async function verifyInSlices(
  storage: Storage,
  options: VerifyOptions,
): Promise<VerifyReport> {
  const { full = false, signal, onProgress } = options;
  const progress: Progress = { what: '', doneBytes: 0, totalBytes: 0 };
  const machine = verifyStore(storage, { full, live: true }, progress);
  let told = performance.now();
  try {
    signal?.throwIfAborted();
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      signal?.throwIfAborted();
      const sliceEnd = performance.now() + SLICE_MS;
      while (performance.now() < sliceEnd) {
        const { done, value } = machine.next();
        if (done === true) return value;
      }
      if (performance.now() - told >= PROGRESS_EVERY_MS) {
        told = performance.now();
        onProgress?.({ ...progress });
      }
    }
  } finally {
    // Closes what it has open.
    machine.return(undefined as never);
  }
}

/** On a thread of its own, which ends with it. */
export async function verifyOnThread(
  directory: string,
  options: VerifyOptions,
): Promise<VerifyReport> {
  const { full = false, signal, onProgress } = options;
  signal?.throwIfAborted();
  const task: VerifyTask = { directory, full };
  const worker = new Worker(WORKER_URL, {
    name: 'tidemark-verify',
    execArgv: [],
    workerData: task,
  });
  let give: (() => void) | undefined;
  try {
    return await new Promise<VerifyReport>((resolve, reject) => {
      give = () => reject(signal?.reason);
      signal?.addEventListener('abort', give);
      worker.on('message', (message: VerifyMessage) => {
        try {
          if (message.kind === 'progress') onProgress?.(message.progress);
          else if (message.kind === 'report') resolve(message.report);
          else reject(fromPlainError(message.error));
        } catch (error) {
          reject(error);
        }
      });
      worker.on('error', reject);
      worker.on('exit', (code) => reject(new Error(`the verifying thread exited (${code})`)));
    });
  } finally {
    if (give !== undefined) signal?.removeEventListener('abort', give);
    await worker.terminate();
  }
}
