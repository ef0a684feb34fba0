/**
 * storage.ts over node:fs, and its only importer. One instance a thread; descriptors are numbers and
 * process-wide, so what one thread opened another may read. Queued programs run on the process's
 * libuv pool and are answered through `poll`, after `wake` was called.
 */
import * as fs from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import type { DescriptorTable } from '../core/shared/descriptors.ts';
import type { OpenHow, Storage, StorageAnswer, StorageCall } from '../core/storage/storage.ts';
import { shortRead, shortWrite } from '../core/storage/storage.ts';

type ReadCall = Extract<StorageCall, { readonly call: 'read' }>;

/** Reads of a program that are under way at a time: callers read by the same few threads, and wait behind them. */
const READS_MAX = 32;

const FLAGS: Record<OpenHow, number> = {
  read: fs.constants.O_RDONLY,
  write: fs.constants.O_RDWR,
  create: fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_EXCL,
};

const later = {
  open: promisify(fs.open),
  close: promisify(fs.close),
  write: promisify(fs.write) as (
    fd: number,
    bytes: Uint8Array,
    offset: number,
    length: number,
    position: number,
  ) => Promise<{ bytesWritten: number }>,
  read: promisify(fs.read) as (
    fd: number,
    bytes: Uint8Array,
    offset: number,
    length: number,
    position: number,
  ) => Promise<{ bytesRead: number }>,
  sync: promisify(fs.fdatasync),
  rename: promisify(fs.rename),
  unlink: promisify(fs.unlink),
};

export class NodeStorage implements Storage {
  readonly #root: string;
  readonly #wake: () => void;
  readonly #descriptors: DescriptorTable | undefined;
  readonly #answers: StorageAnswer[] = [];
  /** What was opened here, for errors to name. */
  readonly #paths: Map<number, string> = new Map();
  #running = 0;

  /**
   * `root` is the store's directory; `wake` is called when an answer is there to be polled. What is open
   * is noted in `descriptors`, for whoever outlives this thread.
   */
  constructor(root: string, wake: () => void = () => {}, descriptors?: DescriptorTable) {
    this.#root = root;
    this.#wake = wake;
    this.#descriptors = descriptors;
  }

  #at(path: string): string {
    return path === '' ? this.#root : `${this.#root}/${path}`;
  }

  open(path: string, how: OpenHow): number {
    const fd = fs.openSync(this.#at(path), FLAGS[how], 0o644);
    this.#opened(fd, path);
    return fd;
  }

  #opened(fd: number, path: string): void {
    this.#descriptors?.add(fd);
    this.#paths.set(fd, path);
  }

  #closing(fd: number): void {
    this.#descriptors?.remove(fd);
    this.#paths.delete(fd);
  }

  /** The system's error, with what it leaves out where it is asked by number: the file, and how much was to be written. */
  #named(error: unknown, fd: number, wanted?: number): unknown {
    const path = this.#paths.get(fd);
    const isSilent = error instanceof Error && (error as NodeJS.ErrnoException).path === undefined;
    if (!isSilent || path === undefined) return error;
    return Object.assign(error, wanted === undefined ? { path } : { path, wanted });
  }

  close(fd: number): void {
    this.#closing(fd);
    fs.closeSync(fd);
  }

  size(fd: number): number {
    return fs.fstatSync(fd).size;
  }

  read(fd: number, target: Uint8Array, at: number, length: number, position: number): number {
    let done = 0;
    while (done < length) {
      const n = fs.readSync(fd, target, at + done, length - done, position + done);
      if (n === 0) break;
      done += n;
    }
    return done;
  }

  write(fd: number, source: Uint8Array, from: number, length: number, position: number): number {
    try {
      return fs.writeSync(fd, source, from, length, position);
    } catch (error) {
      throw this.#named(error, fd, length);
    }
  }

  writev(fd: number, sources: readonly Uint8Array[], position: number): number {
    try {
      return fs.writevSync(fd, sources, position);
    } catch (error) {
      throw this.#named(
        error,
        fd,
        sources.reduce((sum, { length }) => sum + length, 0),
      );
    }
  }

  sync(fd: number): void {
    try {
      fs.fdatasyncSync(fd);
    } catch (error) {
      throw this.#named(error, fd);
    }
  }

  truncate(fd: number, bytes: number): void {
    fs.ftruncateSync(fd, bytes);
  }

  rename(from: string, to: string): void {
    fs.renameSync(this.#at(from), this.#at(to));
  }

  link(from: string, to: string): void {
    fs.linkSync(this.#at(from), this.#at(to));
  }

  /** A hard link of a file below another root. */
  linkFrom(source: NodeStorage, from: string, to: string): void {
    fs.linkSync(source.#at(from), this.#at(to));
  }

  /** Removes an empty directory, the root too (''); gone already is success. */
  removeDir(path: string): void {
    try {
      fs.rmdirSync(this.#at(path));
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }

  unlink(path: string): void {
    try {
      fs.unlinkSync(this.#at(path));
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }

  list(path: string): string[] {
    try {
      return fs.readdirSync(this.#at(path)).toSorted();
    } catch (error) {
      if (isMissing(error)) return [];
      throw error;
    }
  }

  makeDir(path: string): void {
    const made = makeDirs(this.#at(path));
    if (path !== '') return;
    // The store's own entry is in a directory that `syncDir` cannot name.
    for (const dir of made) {
      try {
        syncEntries(dirname(dir));
      } catch (error) {
        // It may be entered and written to and not be read: then nobody can sync it.
        if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error;
      }
    }
  }

  syncDir(path: string): void {
    syncEntries(this.#at(path));
  }

  stat(path: string): { bytes: number; links: number } | undefined {
    const found = fs.statSync(this.#at(path), { throwIfNoEntry: false });
    return found === undefined ? undefined : { bytes: found.size, links: found.nlink };
  }

  freeBytes(): number {
    const found = fs.statfsSync(this.#root);
    return found.bavail * found.bsize;
  }

  async readLater(
    fd: number,
    target: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number> {
    let done = 0;
    while (done < length) {
      const { bytesRead } = await later.read(fd, target, at + done, length - done, position + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return done;
  }

  /** Queued programs under way. */
  get running(): number {
    return this.#running;
  }

  submit(ticket: number, fd: number, calls: readonly StorageCall[]): void {
    void this.#run(ticket, fd, calls);
  }

  poll(): StorageAnswer | undefined {
    return this.#answers.shift();
  }

  async #run(ticket: number, fd: number, calls: readonly StorageCall[]): Promise<void> {
    this.#running++;
    let current = fd;
    let isOwn = false;
    let failure: unknown;
    let wanted: number | undefined;
    try {
      for (let i = 0; i < calls.length; i++) {
        const call = calls[i];
        if (call.call === 'read') {
          const reads = readsAt(calls, i);
          await this.#readAll(current, reads);
          i += reads.length - 1;
          continue;
        }
        wanted = call.call === 'write' ? call.bytes.length : undefined;
        if (call.call === 'close') isOwn = false;
        if (call.call === 'open') {
          current = await later.open(this.#at(call.path), FLAGS[call.how]);
          isOwn = true;
          this.#opened(current, call.path);
        } else {
          await this.#step(current, call);
        }
      }
    } catch (error) {
      failure = this.#named(error, current, wanted);
      if (isOwn) {
        this.#closing(current);
        await later.close(current).catch(() => {});
        current = -1;
      }
    }
    this.#running--;
    this.#answers.push({ ticket, fd: current, failure });
    this.#wake();
  }

  /** Side by side: the answer to each takes a turn of this thread's event loop, and a round of its actors. */
  async #readAll(fd: number, reads: readonly ReadCall[]): Promise<void> {
    const ends = await Promise.allSettled(reads.map((read) => this.#read(fd, read)));
    // None is under way any more: the descriptor may be closed.
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }

  async #read(fd: number, { bytes, position }: ReadCall): Promise<void> {
    const { length } = bytes;
    const n = await this.readLater(fd, bytes, 0, length, position);
    if (n !== length) throw shortRead(n, length);
  }

  async #step(fd: number, call: StorageCall): Promise<void> {
    switch (call.call) {
      case 'open':
      case 'read':
        break;
      case 'close':
        this.#closing(fd);
        return later.close(fd);
      case 'write': {
        const length = call.bytes.length;
        const { bytesWritten } = await later.write(fd, call.bytes, 0, length, call.position);
        if (bytesWritten !== length) {
          throw shortWrite(bytesWritten, length, this.#paths.get(fd)!);
        }
        break;
      }
      case 'sync':
        return later.sync(fd);
      case 'rename':
        return later.rename(this.#at(call.from), this.#at(call.to));
      case 'unlink':
        return later.unlink(this.#at(call.path)).catch((error: unknown) => {
          if (!isMissing(error)) throw error;
        });
      case 'syncDir': {
        if (process.platform === 'win32') return undefined;
        const dir = await later.open(this.#at(call.path), fs.constants.O_RDONLY);
        try {
          await promisify(fs.fsync)(dir);
        } finally {
          await later.close(dir);
        }
        break;
      }
    }
    return undefined;
  }
}

/** What a file of the system says, or undefined when it does not say it to us. Not for a store's files. */
export function textOf(path: string): string | undefined {
  try {
    return fs.readFileSync(path, 'latin1');
  } catch {
    return undefined;
  }
}

export function linkTarget(path: string): string | undefined {
  try {
    return fs.readlinkSync(path);
  } catch {
    return undefined;
  }
}

function isMissing(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === 'ENOENT';
}

/**
 * With its parents; returns what was not there. Node's own `recursive` asks for ever where a parent is there and takes no entry,
 * as below /proc.
 */
function makeDirs(path: string): string[] {
  const made = tryMakeDir(path);
  if (made !== undefined) return made;
  const parent = dirname(path);
  const above = parent === path ? [] : makeDirs(parent);
  fs.mkdirSync(path);
  return [...above, path];
}

/** What was made: nothing where it was there. Undefined: the parent is not there. */
function tryMakeDir(path: string): string[] | undefined {
  try {
    fs.mkdirSync(path);
    return [path];
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    // Some systems name another reason first where the directory is there.
    if (fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) return [];
    throw error;
  }
}

function syncEntries(path: string): void {
  // Windows cannot open a directory for this, and needs no such call.
  if (process.platform === 'win32') return;
  const fd = fs.openSync(path, fs.constants.O_RDONLY);
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** The reads that follow one another from call `from` on. */
function readsAt(calls: readonly StorageCall[], from: number): ReadCall[] {
  const reads: ReadCall[] = [];
  for (let i = from; i < calls.length && reads.length < READS_MAX; i++) {
    const call = calls[i];
    if (call.call !== 'read') break;
    reads.push(call);
  }
  return reads;
}
