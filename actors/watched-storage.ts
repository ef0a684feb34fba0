/**
 * A disk whose every call is announced before it is made and taken back when it has returned, so that
 * a call that hangs can be named while it hangs. It changes nothing about any call. Durability asks its
 * disk through one, on its thread.
 */
import type { OpenHow, Storage, StorageAnswer, StorageCall } from '../core/storage/storage.ts';

/** Names of calls by number; 0 is none. */
export const CALL_NAMES = [
  '',
  'open',
  'close',
  'size',
  'read',
  'write',
  'writev',
  'fdatasync',
  'truncate',
  'rename',
  'link',
  'unlink',
  'list',
  'makeDir',
  'fsync',
  'stat',
  'freeBytes',
  'queued',
] as const;

export type CallName = (typeof CALL_NAMES)[number];

function numberOfCall(name: CallName): number {
  return CALL_NAMES.indexOf(name);
}

const OPEN: number = numberOfCall('open');
const CLOSE: number = numberOfCall('close');
const SIZE: number = numberOfCall('size');
const READ: number = numberOfCall('read');
export const CALL_WRITE: number = numberOfCall('write');
export const CALL_WRITEV: number = numberOfCall('writev');
export const CALL_SYNC: number = numberOfCall('fdatasync');
const TRUNCATE: number = numberOfCall('truncate');
const RENAME: number = numberOfCall('rename');
const LINK: number = numberOfCall('link');
const UNLINK: number = numberOfCall('unlink');
const LIST: number = numberOfCall('list');
const MAKE_DIR: number = numberOfCall('makeDir');
export const CALL_SYNC_DIR: number = numberOfCall('fsync');
const STAT: number = numberOfCall('stat');
const FREE_BYTES: number = numberOfCall('freeBytes');
/** Queued programs, whose answers are polled. */
export const CALL_QUEUED: number = numberOfCall('queued');

export type CallWatch = {
  /** Call `call` is about to be made. */
  begin(call: number): void;
  /** It has returned, or thrown. */
  end(call: number): void;
};

export class WatchedStorage implements Storage {
  readonly #storage: Storage;
  readonly #watch: CallWatch;

  constructor(storage: Storage, watch: CallWatch) {
    this.#storage = storage;
    this.#watch = watch;
  }

  open(path: string, how: OpenHow): number {
    this.#watch.begin(OPEN);
    try {
      return this.#storage.open(path, how);
    } finally {
      this.#watch.end(OPEN);
    }
  }

  close(fd: number): void {
    this.#watch.begin(CLOSE);
    try {
      this.#storage.close(fd);
    } finally {
      this.#watch.end(CLOSE);
    }
  }

  size(fd: number): number {
    this.#watch.begin(SIZE);
    try {
      return this.#storage.size(fd);
    } finally {
      this.#watch.end(SIZE);
    }
  }

  read(fd: number, target: Uint8Array, at: number, length: number, position: number): number {
    this.#watch.begin(READ);
    try {
      return this.#storage.read(fd, target, at, length, position);
    } finally {
      this.#watch.end(READ);
    }
  }

  write(fd: number, source: Uint8Array, from: number, length: number, position: number): number {
    this.#watch.begin(CALL_WRITE);
    try {
      return this.#storage.write(fd, source, from, length, position);
    } finally {
      this.#watch.end(CALL_WRITE);
    }
  }

  writev(fd: number, sources: readonly Uint8Array[], position: number): number {
    this.#watch.begin(CALL_WRITEV);
    try {
      return this.#storage.writev(fd, sources, position);
    } finally {
      this.#watch.end(CALL_WRITEV);
    }
  }

  sync(fd: number): void {
    this.#watch.begin(CALL_SYNC);
    try {
      this.#storage.sync(fd);
    } finally {
      this.#watch.end(CALL_SYNC);
    }
  }

  truncate(fd: number, bytes: number): void {
    this.#watch.begin(TRUNCATE);
    try {
      this.#storage.truncate(fd, bytes);
    } finally {
      this.#watch.end(TRUNCATE);
    }
  }

  rename(from: string, to: string): void {
    this.#watch.begin(RENAME);
    try {
      this.#storage.rename(from, to);
    } finally {
      this.#watch.end(RENAME);
    }
  }

  link(from: string, to: string): void {
    this.#watch.begin(LINK);
    try {
      this.#storage.link(from, to);
    } finally {
      this.#watch.end(LINK);
    }
  }

  unlink(path: string): void {
    this.#watch.begin(UNLINK);
    try {
      this.#storage.unlink(path);
    } finally {
      this.#watch.end(UNLINK);
    }
  }

  list(path: string): string[] {
    this.#watch.begin(LIST);
    try {
      return this.#storage.list(path);
    } finally {
      this.#watch.end(LIST);
    }
  }

  makeDir(path: string): void {
    this.#watch.begin(MAKE_DIR);
    try {
      this.#storage.makeDir(path);
    } finally {
      this.#watch.end(MAKE_DIR);
    }
  }

  syncDir(path: string): void {
    this.#watch.begin(CALL_SYNC_DIR);
    try {
      this.#storage.syncDir(path);
    } finally {
      this.#watch.end(CALL_SYNC_DIR);
    }
  }

  stat(path: string): { bytes: number; links: number } | undefined {
    this.#watch.begin(STAT);
    try {
      return this.#storage.stat(path);
    } finally {
      this.#watch.end(STAT);
    }
  }

  freeBytes(): number {
    this.#watch.begin(FREE_BYTES);
    try {
      return this.#storage.freeBytes();
    } finally {
      this.#watch.end(FREE_BYTES);
    }
  }

  readLater(
    fd: number,
    target: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number> {
    return this.#storage.readLater(fd, target, at, length, position);
  }

  submit(ticket: number, fd: number, calls: readonly StorageCall[]): void {
    this.#storage.submit(ticket, fd, calls);
  }

  poll(): StorageAnswer | undefined {
    return this.#storage.poll();
  }
}
