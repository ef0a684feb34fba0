/**
 * What the engine asks of a disk. Two faces over one directory: plain calls, for threads whose work
 * it is to wait (durability, merge workers, readers), and queued calls, whose answers are polled (the
 * keeper, which never waits for its own disk). Everything durable goes through here, so that the
 * simulator can lose, tear and reorder it.
 *
 * Paths are relative to the store's directory and use '/'. Errors are Node system errors (code,
 * syscall); nothing here retries. Counts are returned as the system gave them: the caller compares.
 */

/** read: existing, read only. write: existing, read and write. create: must not exist, read and write. */
export type OpenHow = 'read' | 'write' | 'create';

/** One step of a queued program. Steps run in order; the first failure ends the program. */
export type StorageCall =
  /** Opens `path` and makes it the descriptor of the following steps; the answer carries it. */
  | { readonly call: 'open'; readonly path: string; readonly how: OpenHow }
  /** Closes the descriptor of the program. */
  | { readonly call: 'close' }
  /** A short count fails the program. */
  | { readonly call: 'write'; readonly bytes: Uint8Array; readonly position: number }
  /** Fills `bytes` from the descriptor; fewer bytes fail the program with `shortRead`. */
  | { readonly call: 'read'; readonly bytes: Uint8Array; readonly position: number }
  | { readonly call: 'sync' }
  | { readonly call: 'rename'; readonly from: string; readonly to: string }
  | { readonly call: 'unlink'; readonly path: string }
  | { readonly call: 'syncDir'; readonly path: string };

/**
 * The answer to a program: `failure` is undefined when every step succeeded. One that failed has closed
 * what it had opened itself, and `fd` is then -1.
 */
export type StorageAnswer = {
  readonly ticket: number;
  readonly fd: number;
  readonly failure: unknown;
};

export interface Storage {
  open(path: string, how: OpenHow): number;
  close(fd: number): void;
  /** Bytes in the file. */
  size(fd: number): number;
  /** Reads up to `length` bytes into target[at...]; fewer only at the end of the file. */
  read(fd: number, target: Uint8Array, at: number, length: number, position: number): number;
  /** Writes source[from, from + length); returns the count the system gave. A short count is a failure of the disk, never to be continued. */
  write(fd: number, source: Uint8Array, from: number, length: number, position: number): number;
  writev(fd: number, sources: readonly Uint8Array[], position: number): number;
  /** fdatasync: data, and the size where it changed. */
  sync(fd: number): void;
  truncate(fd: number, bytes: number): void;
  rename(from: string, to: string): void;
  /** Hard link; EEXIST when `to` is there: the one atomic test-and-set a portable disk has. */
  link(from: string, to: string): void;
  /** Gone already is success: deletes are idempotent. */
  unlink(path: string): void;
  /** Names in a directory, sorted; [] when it does not exist. */
  list(path: string): string[];
  makeDir(path: string): void;
  /** Makes entries created, renamed or removed in the directory durable. */
  syncDir(path: string): void;
  /** Size in bytes and link count, or undefined when the path does not exist. */
  stat(path: string): { bytes: number; links: number } | undefined;
  /** Bytes that may still be written, as far as the system says. */
  freeBytes(): number;

  /** A read that does not hold the calling thread; resolves with the count. For clients only. */
  readLater(
    fd: number,
    target: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number>;

  /** Queues a program on descriptor `fd` (-1: it opens its own). Answers come through `poll`, in any order. */
  submit(ticket: number, fd: number, calls: readonly StorageCall[]): void;
  poll(): StorageAnswer | undefined;
}

/** Wall clock, injected: Unix milliseconds, may jump. */
export interface Clock {
  nowMs(): number;
  /** Monotone milliseconds for deadlines and durations. */
  ticksMs(): number;
}

/** The code of `shortRead`: no system's errno. */
export const SHORT_READ = 'SHORT_READ';

/**
 * What a write that was cut short fails with where a full disk is no reason to end: that is how it shows
 * itself first, for the system keeps the reason to itself.
 */
export function shortWrite(got: number, wanted: number, path: string): Error {
  const message = `ENOSPC: ${got} of ${wanted} bytes written to ${path}`;
  return Object.assign(new Error(message), {
    code: 'ENOSPC',
    syscall: 'write',
    path,
    got,
    wanted,
  });
}

/** What a queued read fails with when the file ends before its bytes do. */
export function shortRead(got: number, wanted: number): Error {
  return Object.assign(new Error(`short read: ${got} of ${wanted} bytes`), { code: SHORT_READ });
}
