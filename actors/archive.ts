/**
 * The archive hook on the thread that opened the engine: runs it for one segment at a time, as the keeper
 * asks, and says what became of it. A hook that fails is asked again later, by the keeper; nothing it does
 * holds a commit up. Lives with the client of that thread.
 */
import { channel } from 'node:diagnostics_channel';
import { join } from 'node:path';
import { toPlainError } from '../core/base/errors.ts';
import { LOG_DIR } from '../core/storage/names.ts';
import type { ArchiveRequest } from './old-segments.ts';

/** A segment of the log, complete and never to change: compressed (`.segz`) unless compression is off. */
export interface ArchiveFile {
  /** Absolute path. The file is the engine's: to be copied, not moved or written to. */
  readonly path: string;
  /** Name without directory, under which a restore looks for it. */
  readonly name: string;
  /** Number of the segment. */
  readonly seq: number;
  /** First offset in it. */
  readonly firstOffset: number;
  /** First offset after it. */
  readonly endOffset: number;
  readonly bytes: number;
  /** SHA-256 of the file, in hex. */
  readonly sha256: string;
}

/** Puts a segment into safe keeping. It has done so when its promise resolves; rejected, it is asked again. */
export type ArchiveHook = (
  file: ArchiveFile,
  context: { readonly signal: AbortSignal },
) => void | Promise<void>;

/** `{ file, error }` of each time that the hook was asked; `error` is undefined when it has the file. */
const ARCHIVE_CHANNEL = channel('tidemark:archive');

export class Archive {
  readonly #hook: ArchiveHook;
  readonly #directory: string;
  readonly #stop: AbortController = new AbortController();
  /** Why it failed the last time it was asked. */
  error: { readonly message: string; readonly seq: number } | undefined;

  constructor(hook: ArchiveHook, directory: string) {
    this.#hook = hook;
    this.#directory = directory;
  }

  /** Runs the hook; `done` is not called once the archive has ended. */
  run(request: ArchiveRequest, done: (seq: number, ok: boolean) => void): void {
    const { seq, name, bytes } = request;
    const file: ArchiveFile = {
      path: join(this.#directory, LOG_DIR, name),
      name,
      seq,
      firstOffset: request.base,
      endOffset: request.end,
      bytes,
      sha256: request.hash,
    };
    const { signal } = this.#stop;
    const settle = (error: unknown): void => {
      if (signal.aborted) return;
      this.error = error === undefined ? undefined : { message: toPlainError(error).message, seq };
      if (ARCHIVE_CHANNEL.hasSubscribers) ARCHIVE_CHANNEL.publish({ file, error });
      done(seq, error === undefined);
    };
    const run = async (): Promise<void> => this.#hook(file, { signal });
    run().then(
      () => settle(undefined),
      (error: unknown) => settle(error ?? new Error('the archive hook failed')),
    );
  }

  /** The engine ends: whatever the hook is at is nobody's any more. */
  end(reason: unknown): void {
    this.#stop.abort(reason);
  }
}
