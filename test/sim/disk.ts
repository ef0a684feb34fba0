/**
 * A disk to crash: storage.ts in memory, where what was written and what would survive are two things.
 * Everything that happens is a function of the calls made and the Prng given; nothing is random of
 * itself. Used by the tests of the log and by the whole-engine simulation, on one thread.
 *
 *   file       an image in the page cache and one on the platter; the 512-byte sectors and the sizes
 *              that are in the cache only ("dirty") since the last successful sync
 *   directory  its entries as seen and as durable; creations, renames, links and unlinks between the
 *              two are operations that wait for syncDir of a directory they touch
 *
 * A crash leaves a new disk. After a *process* crash the page cache is still there. After a *power
 * loss* every dirty sector, size and directory operation has survived or not, each by itself
 * (`units`, `powerLoss`); directory operations that survive do so in order. A sector that is torn,
 * garbage or zeroed harms only the bytes that were being changed: what a synced write put there and
 * no later write touched is safe. Descriptors and queued programs never survive.
 *
 * Faults are asked for call by call (`fault`): the call throws, writes less than asked, does nothing,
 * or never returns because the process died before it. A failed sync marks what it could not write as
 * clean: on ext4 the new bytes stay readable until the cache is dropped (`dropCache`), on Btrfs the
 * old ones are back at once. `late` (ext4, data=journal) says yes, loses the data and fails the next sync.
 */
import { crc32 as nativeCrc32 } from 'node:zlib';
import { crc32 } from '../../core/base/crc32.ts';
import { invariant } from '../../core/base/assert.ts';
import type { Prng } from '../../core/base/prng.ts';
import type { OpenHow, Storage, StorageAnswer, StorageCall } from '../../core/storage/storage.ts';
import { shortRead, shortWrite } from '../../core/storage/storage.ts';

export const SECTOR_BYTES = 512;

/** One call as the fault hook and the record see it. */
export type SimCall = {
  /** Counts all calls from 0. */
  readonly index: number;
  /** Counts the calls that change something from 0; -1 for the others. */
  readonly mutation: number;
  readonly call: string;
  readonly path: string;
  readonly position: number;
  readonly length: number;
  /** The last call that changed something before it, of the same queued program or else of no program. */
  readonly after: string;
};

export type SimFault =
  /** The call throws this errno and does nothing. */
  | { readonly kind: 'throw'; readonly code: string }
  /** A write puts down that many bytes and returns the count. */
  | { readonly kind: 'short'; readonly bytes: number }
  /** A sync throws EIO; nothing reached the platter and nothing is dirty any more. */
  | { readonly kind: 'failedSync'; readonly manner: 'ext4' | 'btrfs' }
  /** A sync succeeds, loses everything, and the file's next one throws EIO. */
  | { readonly kind: 'lateSync' }
  /** The call does nothing and says it did. */
  | { readonly kind: 'skip' }
  /** The process died before this call: it and all later ones throw SimCrash. */
  | { readonly kind: 'crash' };

export class SimCrash extends Error {
  override readonly name: string = 'SimCrash';
}

/** What a power loss decides about, one by one. */
export type CrashUnit =
  | { readonly kind: 'sector'; readonly file: number; readonly index: number }
  | { readonly kind: 'size'; readonly file: number }
  | { readonly kind: 'entry'; readonly operation: number };

export const FATE_LOST = 0;
export const FATE_KEPT = 1;
/** Sector: the first half of what changed is new. Size: the first size after the last sync. */
export const FATE_TORN = 2;
/** Sector: what changed is garbage, or zero. */
export const FATE_GARBAGE = 3;
export const FATE_ZERO = 4;

export type CrashMode = 'process' | 'power' | 'torn';

type Image = { bytes: Uint8Array; size: number; shared: boolean };

class SimFile {
  readonly id: number;
  cache: Image = { bytes: new Uint8Array(0), size: 0, shared: false };
  platter: Image = { bytes: new Uint8Array(0), size: 0, shared: false };
  /** In the order in which they became dirty. */
  dirty: Set<number> = new Set();
  /** Sizes taken since the last sync, oldest first. */
  sizes: number[] = [];
  links = 0;
  failNextSync = false;

  constructor(id: number) {
    this.id = id;
  }
}

class SimDir {
  entries: Map<string, SimFile | SimDir> = new Map();
  durable: Map<string, SimFile | SimDir> = new Map();
}

type Effect = {
  readonly dir: SimDir;
  readonly name: string;
  readonly node: SimFile | SimDir | undefined;
};

/** A directory operation that is not durable yet: applied as a whole or not at all. */
type Operation = { readonly id: number; readonly effects: readonly Effect[] };

type Descriptor = { readonly file: SimFile; readonly how: OpenHow; readonly path: string };

type Program = {
  readonly ticket: number;
  fd: number;
  /** It opened `fd` and has not closed it. */
  isOwn: boolean;
  readonly calls: readonly StorageCall[];
  at: number;
  /** Its last call that changed something. */
  last: string;
};

export type SimDiskOptions = {
  /** Bytes all files together may have; writes beyond throw ENOSPC, or are short. */
  readonly capacityBytes?: number;
  /** Queued programs are answered by `submit` itself instead of step by step by `runQueued`. */
  readonly answerAtOnce?: boolean;
};

export class SimDisk implements Storage {
  /** Asked before every call. */
  fault: ((call: SimCall) => SimFault | undefined) | undefined = undefined;
  /** Set to [] to have a line noted for every call. */
  record: string[] | undefined = undefined;
  capacityBytes: number;
  answerAtOnce: boolean;
  /** Calls made so far, those that change something, and a hash of all with their bytes and results. */
  calls = 0;
  mutations = 0;
  traceHash = 0;

  #root: SimDir = new SimDir();
  #files: SimFile[] = [];
  #operations: Operation[] = [];
  #descriptors: Map<number, Descriptor> = new Map();
  #nextFile = 1;
  #nextOperation = 1;
  #nextFd = 3;
  #programs: Program[] = [];
  #answers: StorageAnswer[] = [];
  #dead = false;
  /** The program that is making a call; undefined: somebody who waits for it. */
  #program: Program | undefined = undefined;
  #last = '';

  constructor(options: SimDiskOptions = {}) {
    this.capacityBytes = options.capacityBytes ?? Number.MAX_SAFE_INTEGER;
    this.answerAtOnce = options.answerAtOnce ?? false;
  }

  // ---------------------------------------------------------------- storage.ts

  open(path: string, how: OpenHow): number {
    const { skip } = this.#enter('open', path, how === 'create' ? 1 : 0, 0, how === 'create');
    const [dir, name] = this.#parent(path, 'open');
    let node = dir.entries.get(name);
    if (node instanceof SimDir) throw this.#error('EISDIR', 'open', path);
    if (how === 'create') {
      if (node !== undefined) throw this.#error('EEXIST', 'open', path);
      node = new SimFile(this.#nextFile++);
      if (!skip) {
        this.#files.push(node);
        this.#change([{ dir, name, node }]);
      }
    } else if (node === undefined) {
      throw this.#error('ENOENT', 'open', path);
    }
    const fd = this.#nextFd++;
    this.#descriptors.set(fd, { file: node, how, path });
    return this.#leave(fd);
  }

  close(fd: number): void {
    try {
      this.#enter('close', this.#pathOf(fd), 0, 0, false);
      this.#descriptor(fd, 'close');
    } finally {
      // As Linux does: whatever close says, the descriptor is gone.
      const file = this.#descriptors.get(fd)?.file;
      this.#descriptors.delete(fd);
      if (file?.links === 0) this.#forget();
    }
  }

  size(fd: number): number {
    this.#enter('fstat', this.#pathOf(fd), 0, 0, false);
    return this.#leave(this.#descriptor(fd, 'fstat').file.cache.size);
  }

  read(fd: number, target: Uint8Array, at: number, length: number, position: number): number {
    this.#enter('read', this.#pathOf(fd), position, length, false);
    const { cache } = this.#descriptor(fd, 'read').file;
    const n = Math.max(0, Math.min(length, cache.size - position));
    target.set(cache.bytes.subarray(position, position + n), at);
    return this.#leave(n);
  }

  write(fd: number, source: Uint8Array, from: number, length: number, position: number): number {
    return this.#write('write', fd, [source.subarray(from, from + length)], position);
  }

  writev(fd: number, sources: readonly Uint8Array[], position: number): number {
    return this.#write('writev', fd, sources, position);
  }

  sync(fd: number): void {
    const { skip, fault } = this.#enter('fdatasync', this.#pathOf(fd), 0, 0, true);
    const { file, path } = this.#descriptor(fd, 'fdatasync');
    if (skip) return;
    if (fault?.kind === 'failedSync') {
      if (fault.manner === 'btrfs') revert(file);
      file.dirty.clear();
      file.sizes = [];
      throw this.#error('EIO', 'fdatasync', path);
    }
    if (file.failNextSync) {
      file.failNextSync = false;
      throw this.#error('EIO', 'fdatasync', path);
    }
    if (fault?.kind === 'lateSync') {
      file.failNextSync = true;
      file.dirty.clear();
      file.sizes = [];
      return;
    }
    flush(file);
  }

  truncate(fd: number, bytes: number): void {
    const { skip } = this.#enter('ftruncate', this.#pathOf(fd), bytes, 0, true);
    const { file, how, path } = this.#descriptor(fd, 'ftruncate');
    if (how === 'read') throw this.#error('EINVAL', 'ftruncate', path);
    if (skip) return;
    this.#resize(file, bytes);
  }

  rename(from: string, to: string): void {
    const { skip } = this.#enter('rename', `${from} ${to}`, 0, 0, true);
    const [fromDir, fromName] = this.#parent(from, 'rename');
    const [toDir, toName] = this.#parent(to, 'rename');
    const node = fromDir.entries.get(fromName);
    if (node === undefined) throw this.#error('ENOENT', 'rename', from);
    // Two names of one file: POSIX says that nothing happens.
    if (skip || toDir.entries.get(toName) === node) return;
    this.#change([
      { dir: fromDir, name: fromName, node: undefined },
      { dir: toDir, name: toName, node },
    ]);
  }

  link(from: string, to: string): void {
    const { skip } = this.#enter('link', `${from} ${to}`, 0, 0, true);
    const [fromDir, fromName] = this.#parent(from, 'link');
    const [dir, name] = this.#parent(to, 'link');
    const node = fromDir.entries.get(fromName);
    if (!(node instanceof SimFile)) throw this.#error('ENOENT', 'link', from);
    if (dir.entries.has(name)) throw this.#error('EEXIST', 'link', to);
    if (!skip) this.#change([{ dir, name, node }]);
  }

  unlink(path: string): void {
    const { skip } = this.#enter('unlink', path, 0, 0, true);
    const parent = this.#find(path.slice(0, Math.max(0, path.lastIndexOf('/'))));
    if (!(parent instanceof SimDir)) return;
    const name = path.slice(path.lastIndexOf('/') + 1);
    const node = parent.entries.get(name);
    if (node === undefined || skip) return;
    if (node instanceof SimDir) throw this.#error('EISDIR', 'unlink', path);
    this.#change([{ dir: parent, name, node: undefined }]);
    this.#forget();
  }

  list(path: string): string[] {
    this.#enter('readdir', path, 0, 0, false);
    const node = this.#find(path);
    if (node instanceof SimFile) throw this.#error('ENOTDIR', 'readdir', path);
    return node === undefined ? [] : [...node.entries.keys()].toSorted();
  }

  makeDir(path: string): void {
    const { skip } = this.#enter('mkdir', path, 0, 0, true);
    let dir = this.#root;
    for (const name of path.split('/')) {
      if (name === '') continue;
      let node = dir.entries.get(name);
      if (node instanceof SimFile) throw this.#error('EEXIST', 'mkdir', path);
      if (node === undefined) {
        if (skip) return;
        node = new SimDir();
        this.#change([{ dir, name, node }]);
      }
      dir = node;
    }
  }

  syncDir(path: string): void {
    const { skip } = this.#enter('fsync', path, 0, 0, true);
    const dir = this.#find(path);
    if (!(dir instanceof SimDir)) throw this.#error('ENOENT', 'fsync', path);
    if (skip) return;
    const applied = this.#operations.filter(({ effects }) =>
      effects.some((effect) => effect.dir === dir),
    );
    for (const operation of applied) applyDurably(operation);
    this.#operations = withoutOvertaken(this.#operations, applied);
    this.#forget();
  }

  stat(path: string): { bytes: number; links: number } | undefined {
    this.#enter('stat', path, 0, 0, false);
    const node = this.#find(path);
    if (node instanceof SimDir) return { bytes: 0, links: 1 };
    return node === undefined ? undefined : { bytes: node.cache.size, links: node.links };
  }

  freeBytes(): number {
    this.#enter('statfs', '', 0, 0, false);
    return this.#free();
  }

  readLater(
    fd: number,
    target: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number> {
    return new Promise((resolve) => {
      resolve(this.read(fd, target, at, length, position));
    });
  }

  submit(ticket: number, fd: number, calls: readonly StorageCall[]): void {
    this.#programs.push({ ticket, fd, isOwn: false, calls, at: 0, last: '' });
    if (this.answerAtOnce) while (this.runQueued());
  }

  poll(): StorageAnswer | undefined {
    return this.#answers.shift();
  }

  /** Does one step of one queued program: the oldest, or one that `prng` picks. False: none waits. */
  runQueued(prng?: Prng): boolean {
    if (this.#programs.length === 0) return false;
    const program = prng === undefined ? this.#programs[0] : prng.pick(this.#programs);
    if (program === undefined) return false;
    let failure: unknown;
    this.#program = program;
    try {
      const call = program.calls[program.at];
      if (call !== undefined) this.#runStep(program, call);
      program.at++;
    } catch (error) {
      failure = error;
      this.#abandon(program);
    }
    this.#program = undefined;
    if (failure !== undefined || program.at >= program.calls.length) {
      this.#programs.splice(this.#programs.indexOf(program), 1);
      this.#answers.push({ ticket: program.ticket, fd: program.fd, failure });
    }
    return true;
  }

  /** The process died in one of its calls. */
  get isDead(): boolean {
    return this.#dead;
  }

  /** Programs that are not answered yet. */
  get queued(): number {
    return this.#programs.length;
  }

  /** Descriptors that nobody closed: leaks, once everything has been closed. */
  get openFiles(): string[] {
    return [...this.#descriptors.values()].map((descriptor) => descriptor.path);
  }

  // ---------------------------------------------------------------- tests' side

  /** The file as it now reads; undefined when it is not there. For tests: not a call. */
  bytesOf(path: string): Uint8Array | undefined {
    const node = this.#find(path);
    return node instanceof SimFile ? node.cache.bytes.slice(0, node.cache.size) : undefined;
  }

  /** Bytes of the file, without a copy of them; -1: it is not there. For tests: not a call. */
  sizeOf(path: string): number {
    const node = this.#find(path);
    return node instanceof SimFile ? node.cache.size : -1;
  }

  /**
   * True when a loss of power takes nothing of it back: the name, or that there is none, the size, bytes
   * [from, to). For tests: not a call.
   */
  isDurable(path: string, from: number = 0, to: number = Infinity): boolean {
    const [dir, name] = this.#parent(path, 'isDurable');
    const node = dir.entries.get(name);
    if (dir.durable.get(name) !== node) return false;
    if (!(node instanceof SimFile)) return true;
    if (node.sizes.length > 0) return false;
    for (const index of node.dirty) {
      if (index * SECTOR_BYTES < to && (index + 1) * SECTOR_BYTES > from) return false;
    }
    return true;
  }

  /** What an earlier process wrote could not be written back: whoever syncs the file next is told. For tests. */
  sicken(path: string): void {
    const node = this.#find(path);
    invariant(node instanceof SimFile, 'a file is there to be sick');
    node.failNextSync = true;
  }

  /** A number for all names and bytes as they now read, and for how much of it is not durable yet. */
  fingerprint(): number {
    // Two halves, so that a million states meet no accident.
    let h = this.#operations.length;
    let g = 0x811c9dc5;
    const mix = (n: number): void => {
      h = Math.imul(h ^ n, 0x01000193);
      h ^= h >>> 15;
      g = Math.imul(g ^ n, 0x85ebca6b);
      g ^= g >>> 13;
    };
    const visit = (dir: SimDir, path: string): void => {
      for (const name of [...dir.entries.keys()].toSorted()) {
        const node = dir.entries.get(name);
        const whole = `${path}/${name}`;
        for (let i = 0; i < whole.length; i++) mix(whole.charCodeAt(i));
        if (node instanceof SimDir) {
          visit(node, whole);
        } else if (node !== undefined) {
          mix(crcOf(node.cache));
          mix(node.cache.size);
          mix(node.dirty.size);
        }
      }
    };
    visit(this.#root, '');
    return (g & 0x1f_ffff) * 0x1_0000_0000 + (h >>> 0);
  }

  /** Puts a file there, durable, or replaces its contents. For tests: not a call. */
  plant(path: string, bytes: Uint8Array): void {
    const [dir, name] = this.#parent(path, 'plant');
    const file = new SimFile(this.#nextFile++);
    // Not slice(): of a Buffer that is a view, not a copy.
    file.cache = { bytes: new Uint8Array(bytes), size: bytes.length, shared: true };
    file.platter = { ...file.cache };
    file.links = 1;
    this.#files.push(file);
    dir.entries.set(name, file);
    dir.durable.set(name, file);
  }

  /** Takes a file away, durably. For tests: not a call. */
  remove(path: string): void {
    const [dir, name] = this.#parent(path, 'remove');
    dir.entries.delete(name);
    dir.durable.delete(name);
    this.#forget();
  }

  /** Makes everything durable, as a quiet minute would, and the disk well. */
  settle(): void {
    for (const file of this.#files) {
      file.platter = copyOf(file.cache);
      file.dirty.clear();
      file.sizes = [];
      file.failNextSync = false;
    }
    for (const operation of this.#operations) applyDurably(operation);
    this.#operations = [];
  }

  /** The system forgets what is clean: from now on such sectors read as the platter has them. */
  dropCache(): void {
    for (const file of this.#files) {
      const fresh = copyOf(file.platter);
      own(fresh);
      grow(fresh, Math.max(file.cache.size, fresh.size));
      fresh.size = file.cache.size;
      fresh.bytes.fill(0, Math.min(file.platter.size, fresh.size));
      for (const index of file.dirty) copySector(file.cache, fresh, index);
      file.cache = fresh;
    }
  }

  /** An exact copy, descriptors and queue included. */
  clone(): SimDisk {
    const twin = this.#copy((file) => {
      const copy = new SimFile(file.id);
      copy.cache = copyOf(file.cache);
      copy.platter = copyOf(file.platter);
      copy.dirty = new Set(file.dirty);
      copy.sizes = file.sizes.slice();
      copy.failNextSync = file.failNextSync;
      return copy;
    });
    twin.fault = this.fault;
    twin.record = this.record?.slice();
    return twin;
  }

  /** What a crash leaves, drawn from `prng`. */
  crash(prng: Prng, mode: CrashMode = 'power'): SimDisk {
    if (mode === 'process') return this.processCrash();
    // One disk writes nearly everything back early, another nearly nothing.
    const kept = prng.pick([0, 0.1, 0.5, 0.9, 1]);
    const harm = mode === 'torn' ? prng.pick([0.05, 0.3]) : 0;
    return this.powerLoss(() => {
      if (prng.chance(harm)) return prng.pick([FATE_TORN, FATE_GARBAGE, FATE_ZERO]);
      return prng.chance(kept) ? FATE_KEPT : FATE_LOST;
    });
  }

  /** The process is gone, the page cache is not. */
  processCrash(): SimDisk {
    const left = this.clone();
    left.#revive();
    return left;
  }

  /** What the next power loss decides about: directory operations in order, then files in order. */
  units(): CrashUnit[] {
    const units: CrashUnit[] = [];
    for (const { id } of this.#operations) units.push({ kind: 'entry', operation: id });
    for (const file of this.#files) {
      if (file.sizes.length > 0) units.push({ kind: 'size', file: file.id });
      for (const index of file.dirty) units.push({ kind: 'sector', file: file.id, index });
    }
    return units;
  }

  /** The disk after a power loss in which `fate` decided about each of `units()`, in that order. */
  powerLoss(fate: (unit: CrashUnit, index: number) => number): SimDisk {
    let count = 0;
    const survivors = this.#operations.filter(
      ({ id }) => fate({ kind: 'entry', operation: id }, count++) !== FATE_LOST,
    );
    const images = new Map<SimFile, Image>();
    for (const file of this.#files) {
      let size = file.platter.size;
      if (file.sizes.length > 0) {
        const chosen = fate({ kind: 'size', file: file.id }, count++);
        if (chosen === FATE_TORN) size = file.sizes[0] ?? size;
        else if (chosen !== FATE_LOST) size = file.sizes.at(-1) ?? size;
      }
      const image = copyOf(file.platter);
      for (const index of file.dirty) {
        const chosen = fate({ kind: 'sector', file: file.id, index }, count++);
        if (chosen !== FATE_LOST) surviveSector(file, image, index, chosen);
      }
      setSize(image, size);
      // A sector that survived without the size that would have made it part of the file.
      if (!image.shared) image.bytes.fill(0, size);
      images.set(file, image);
    }
    const left = this.#copy((file) => {
      const copy = new SimFile(file.id);
      copy.platter = images.get(file) ?? copyOf(file.platter);
      copy.platter.shared = true;
      copy.cache = { ...copy.platter };
      return copy;
    }, survivors);
    left.#revive();
    return left;
  }

  // ---------------------------------------------------------------- inside

  #revive(): void {
    this.#descriptors.clear();
    this.#programs = [];
    this.#answers = [];
    this.#dead = false;
    this.fault = undefined;
    this.record = undefined;
    this.#forget();
  }

  /** Copies the tree. With `survivors` given, directories are what was durable plus those operations. */
  #copy(copyFile: (file: SimFile) => SimFile, survivors?: readonly Operation[]): SimDisk {
    const twin = new SimDisk({
      capacityBytes: this.capacityBytes,
      answerAtOnce: this.answerAtOnce,
    });
    const files = new Map<SimFile, SimFile>();
    const dirs = new Map<SimDir, SimDir>();
    const fileOf = (file: SimFile): SimFile => {
      let copy = files.get(file);
      if (copy === undefined) files.set(file, (copy = copyFile(file)));
      return copy;
    };
    const dirOf = (dir: SimDir): SimDir => {
      let copy = dirs.get(dir);
      if (copy !== undefined) return copy;
      dirs.set(dir, (copy = new SimDir()));
      for (const [name, node] of dir.durable) copy.durable.set(name, nodeOf(node));
      const seen = survivors === undefined ? dir.entries : dir.durable;
      for (const [name, node] of seen) copy.entries.set(name, nodeOf(node));
      return copy;
    };
    const nodeOf = (node: SimFile | SimDir): SimFile | SimDir =>
      node instanceof SimDir ? dirOf(node) : fileOf(node);
    const operationOf = (operation: Operation): Operation => ({
      id: operation.id,
      effects: operation.effects.map(({ dir, name, node }) => ({
        dir: dirOf(dir),
        name,
        node: node === undefined ? undefined : nodeOf(node),
      })),
    });
    twin.#root = dirOf(this.#root);
    twin.#files = this.#files.map(fileOf);
    if (survivors === undefined) {
      twin.#operations = this.#operations.map(operationOf);
    } else {
      for (const operation of survivors.map(operationOf)) {
        applyDurably(operation);
        for (const { dir, name, node } of operation.effects) {
          if (node === undefined) dir.entries.delete(name);
          else dir.entries.set(name, node);
        }
      }
    }
    for (const file of twin.#files) file.links = 0;
    for (const dir of dirs.values()) {
      for (const node of dir.entries.values()) if (node instanceof SimFile) node.links++;
    }
    for (const [fd, { file, how, path }] of this.#descriptors) {
      twin.#descriptors.set(fd, { file: fileOf(file), how, path });
    }
    twin.#programs = this.#programs.map((program) => ({ ...program }));
    twin.#answers = this.#answers.slice();
    twin.#nextFile = this.#nextFile;
    twin.#nextOperation = this.#nextOperation;
    twin.#nextFd = this.#nextFd;
    twin.#dead = this.#dead;
    twin.calls = this.calls;
    twin.mutations = this.mutations;
    twin.traceHash = this.traceHash;
    return twin;
  }

  /** Counts and notes the call, and asks for its fault. */
  #enter(
    call: string,
    path: string,
    position: number,
    length: number,
    mutating: boolean,
  ): { skip: boolean; fault: SimFault | undefined } {
    if (this.#dead) throw new SimCrash('the process died before this call');
    const index = this.calls;
    const mutation = mutating ? this.mutations : -1;
    const after = this.#program?.last ?? this.#last;
    const fault = this.fault?.({ index, mutation, call, path, position, length, after });
    this.calls++;
    if (mutating) {
      this.mutations++;
      if (this.#program !== undefined) this.#program.last = `${call} ${path}`;
      else this.#last = `${call} ${path}`;
    }
    this.record?.push(`${call} ${path} ${position} ${length}`);
    this.#trace(call);
    this.#trace(path);
    this.#mix(position);
    this.#mix(length);
    if (fault === undefined) return { skip: false, fault };
    this.#trace(fault.kind);
    if (fault.kind === 'crash') {
      this.#dead = true;
      throw new SimCrash(`the process died before ${call} ${path}`);
    }
    if (fault.kind === 'throw') throw this.#error(fault.code, call, path);
    return { skip: fault.kind === 'skip', fault };
  }

  #leave(result: number): number {
    this.#mix(result);
    return result;
  }

  #trace(text: string): void {
    for (let i = 0; i < text.length; i++) this.#mix(text.charCodeAt(i));
  }

  #mix(value: number): void {
    const low = value >>> 0;
    let h = Math.imul(this.traceHash ^ low, 0x9e3779b1);
    h = Math.imul(h ^ (h >>> 15) ^ ((value - low) / 0x1_0000_0000), 0x85ebca77);
    this.traceHash = (h ^ (h >>> 13)) >>> 0;
  }

  #error(code: string, syscall: string, path: string): Error {
    this.#trace(code);
    return Object.assign(new Error(`${code}: simulated, ${syscall} '${path}'`), {
      code,
      syscall,
      path,
    });
  }

  #descriptor(fd: number, call: string): Descriptor {
    const descriptor = this.#descriptors.get(fd);
    if (descriptor === undefined) throw this.#error('EBADF', call, String(fd));
    return descriptor;
  }

  #pathOf(fd: number): string {
    return this.#descriptors.get(fd)?.path ?? `fd ${fd}`;
  }

  #find(path: string): SimFile | SimDir | undefined {
    let node: SimFile | SimDir | undefined = this.#root;
    for (const name of path.split('/')) {
      if (name === '') continue;
      if (!(node instanceof SimDir)) return undefined;
      node = node.entries.get(name);
    }
    return node;
  }

  #parent(path: string, call: string): [SimDir, string] {
    const slash = path.lastIndexOf('/');
    const dir = this.#find(path.slice(0, Math.max(0, slash)));
    if (!(dir instanceof SimDir)) throw this.#error('ENOENT', call, path);
    return [dir, path.slice(slash + 1)];
  }

  /** Does a directory operation in the cache and lets it wait for a syncDir. */
  #change(effects: Effect[]): void {
    for (const { dir, name, node } of effects) {
      const old = dir.entries.get(name);
      if (old instanceof SimFile) old.links--;
      if (node === undefined) {
        dir.entries.delete(name);
      } else {
        dir.entries.set(name, node);
        if (node instanceof SimFile) node.links++;
      }
    }
    this.#operations.push({ id: this.#nextOperation++, effects });
  }

  /** Drops files that no name, durable name, pending operation or descriptor reaches. */
  #forget(): void {
    const reached = new Set<SimFile>();
    const visit = (dir: SimDir): void => {
      for (const nodes of [dir.entries, dir.durable]) {
        for (const node of nodes.values()) {
          if (node instanceof SimFile) reached.add(node);
          else visit(node);
        }
      }
    };
    visit(this.#root);
    for (const { effects } of this.#operations) {
      for (const { node } of effects) if (node instanceof SimFile) reached.add(node);
    }
    for (const { file } of this.#descriptors.values()) reached.add(file);
    this.#files = this.#files.filter((file) => reached.has(file));
  }

  #free(): number {
    if (this.capacityBytes === Number.MAX_SAFE_INTEGER) return this.capacityBytes;
    let used = 0;
    for (const file of this.#files) if (file.links > 0) used += file.cache.size;
    return Math.max(0, this.capacityBytes - used);
  }

  #write(call: string, fd: number, sources: readonly Uint8Array[], position: number): number {
    let length = 0;
    for (const source of sources) length += source.length;
    const { skip, fault } = this.#enter(call, this.#pathOf(fd), position, length, true);
    const { file, how, path } = this.#descriptor(fd, call);
    if (how === 'read') throw this.#error('EBADF', call, path);
    for (const source of sources) this.#mix(crc32(source, 0, source.length));
    if (skip) return length;
    let allowed = fault?.kind === 'short' ? Math.min(length, fault.bytes) : length;
    const room = Math.max(0, file.cache.size - position) + this.#free();
    if (allowed > room) {
      // The system writes what fits and keeps the errno to itself, unless nothing fits.
      if (room === 0) throw Object.assign(this.#error('ENOSPC', call, path), { wanted: length });
      allowed = room;
    }
    own(file.cache);
    if (position + allowed > file.cache.size) this.#resize(file, position + allowed);
    let at = position;
    let left = allowed;
    for (const source of sources) {
      const n = Math.min(left, source.length);
      file.cache.bytes.set(n === source.length ? source : source.subarray(0, n), at);
      at += n;
      left -= n;
    }
    if (allowed > 0) markDirty(file, position, position + allowed);
    return this.#leave(allowed);
  }

  #resize(file: SimFile, bytes: number): void {
    const old = file.cache.size;
    own(file.cache);
    if (bytes > old && bytes - old > this.#free()) throw this.#error('ENOSPC', 'ftruncate', '');
    setSize(file.cache, bytes);
    if (bytes < old) markDirty(file, bytes, old);
    if (bytes !== old) file.sizes.push(bytes);
  }

  /** What a program that failed had opened itself is closed for it. */
  #abandon(program: Program): void {
    if (!program.isOwn) return;
    const { fd } = program;
    program.fd = -1;
    try {
      this.close(fd);
    } catch {
      // The one failure is enough.
    }
  }

  #runStep(program: Program, call: StorageCall): void {
    switch (call.call) {
      case 'open':
        program.fd = this.open(call.path, call.how);
        program.isOwn = true;
        return;
      case 'close':
        program.isOwn = false;
        return this.close(program.fd);
      case 'write': {
        const n = this.write(program.fd, call.bytes, 0, call.bytes.length, call.position);
        if (n !== call.bytes.length) {
          throw shortWrite(n, call.bytes.length, this.#pathOf(program.fd));
        }
        return;
      }
      case 'read': {
        const n = this.read(program.fd, call.bytes, 0, call.bytes.length, call.position);
        if (n !== call.bytes.length) throw shortRead(n, call.bytes.length);
        return;
      }
      case 'sync':
        return this.sync(program.fd);
      case 'rename':
        return this.rename(call.from, call.to);
      case 'unlink':
        return this.unlink(call.path);
      case 'syncDir':
        return this.syncDir(call.path);
    }
  }
}

// ---------------------------------------------------------------- images

/** Images are shared between copies of a disk until one of them writes. */
function copyOf(image: Image): Image {
  image.shared = true;
  return { bytes: image.bytes, size: image.size, shared: true };
}

/** Shared bytes never change. */
const crcs: WeakMap<Uint8Array, number> = new WeakMap();

function crcOf(image: Image): number {
  const known = image.shared ? crcs.get(image.bytes) : undefined;
  if (known !== undefined) return known;
  const crc = nativeCrc32(image.bytes.subarray(0, image.size));
  if (image.shared) crcs.set(image.bytes, crc);
  return crc;
}

function own(image: Image): void {
  if (!image.shared) return;
  image.bytes = image.bytes.slice();
  image.shared = false;
}

/** Requires: owned. Bytes beyond the size are always zero. */
function grow(image: Image, bytes: number): void {
  if (bytes <= image.bytes.length) return;
  const larger = new Uint8Array(Math.max(bytes, image.bytes.length * 2, 4096));
  larger.set(image.bytes);
  image.bytes = larger;
}

function setSize(image: Image, bytes: number): void {
  if (bytes === image.size) return;
  own(image);
  grow(image, bytes);
  if (bytes < image.size) image.bytes.fill(0, bytes, image.size);
  image.size = bytes;
}

function markDirty(file: SimFile, from: number, to: number): void {
  const last = Math.floor((to - 1) / SECTOR_BYTES);
  for (let i = Math.floor(from / SECTOR_BYTES); i <= last; i++) file.dirty.add(i);
}

function copySector(from: Image, to: Image, index: number): void {
  const start = index * SECTOR_BYTES;
  grow(to, start + SECTOR_BYTES);
  to.bytes.fill(0, start, start + SECTOR_BYTES);
  to.bytes.set(from.bytes.subarray(start, start + SECTOR_BYTES), start);
}

function flush(file: SimFile): void {
  if (file.dirty.size > 0 || file.platter.size !== file.cache.size) {
    own(file.platter);
    for (const index of file.dirty) copySector(file.cache, file.platter, index);
    setSize(file.platter, file.cache.size);
  }
  file.dirty.clear();
  file.sizes = [];
}

/** The cache reads again as the platter does. */
function revert(file: SimFile): void {
  file.cache = copyOf(file.platter);
}

/** Puts what a power loss made of a dirty sector into `image`. Only bytes that were changing come to harm. */
function surviveSector(file: SimFile, image: Image, index: number, fate: number): void {
  own(image);
  if (fate === FATE_KEPT) return copySector(file.cache, image, index);
  const start = index * SECTOR_BYTES;
  grow(image, start + SECTOR_BYTES);
  let seed = (file.id * 31 + index) >>> 0;
  for (let i = start; i < start + SECTOR_BYTES; i++) {
    const now = file.cache.bytes[i] ?? 0;
    if (now === image.bytes[i]) continue;
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    if (fate === FATE_ZERO) image.bytes[i] = 0;
    else if (fate === FATE_GARBAGE) image.bytes[i] = seed >>> 24;
    else if (i < start + SECTOR_BYTES / 2) image.bytes[i] = now;
  }
}

/** What still waits when `applied` do not any more; what came before them under a name of theirs does not either. */
function withoutOvertaken(
  operations: readonly Operation[],
  applied: readonly Operation[],
): Operation[] {
  const waiting: Operation[] = [];
  for (const { id, effects } of operations) {
    if (applied.some((one) => one.id === id)) continue;
    const later = applied.filter((one) => one.id > id).flatMap((one) => one.effects);
    const left = effects.filter(
      ({ dir, name }) => !later.some((one) => one.dir === dir && one.name === name),
    );
    if (left.length > 0) waiting.push({ id, effects: left });
  }
  return waiting;
}

function applyDurably(operation: Operation): void {
  for (const { dir, name, node } of operation.effects) {
    if (node === undefined) dir.durable.delete(name);
    else dir.durable.set(name, node);
  }
}

// ---------------------------------------------------------------- enumeration

export type CrashChoice = {
  /** Up to this many units: every subset of them. */
  readonly subsetsMax: number;
  /** Above: so many drawn from the Prng, beside the regular ones. */
  readonly samples: number;
  /** At most so many prefixes, single losses and single survivors. */
  readonly regularMax: number;
};

/**
 * The disks that a crash at this moment may leave, as many as `choice` allows: page cache kept; every
 * subset of few units; of many: none, all, prefixes, all but a prefix, one lost, one kept, samples
 * (some torn).
 */
export function* crashes(disk: SimDisk, prng: Prng, choice: CrashChoice): Generator<SimDisk> {
  yield disk.processCrash();
  const count = disk.units().length;
  if (count <= choice.subsetsMax) {
    invariant(count < 20, 'subsets can be counted', count);
    for (let set = 0; set < 1 << count; set++) yield disk.powerLoss((_, i) => (set >> i) & 1);
  } else {
    yield disk.powerLoss(() => FATE_LOST);
    yield disk.powerLoss(() => FATE_KEPT);
    const step = Math.max(1, Math.ceil(count / choice.regularMax));
    for (let at = prng.below(step); at < count; at += step) {
      yield disk.powerLoss((_, i) => (i < at ? FATE_KEPT : FATE_LOST));
      yield disk.powerLoss((_, i) => (i >= at ? FATE_KEPT : FATE_LOST));
      yield disk.powerLoss((_, i) => (i === at ? FATE_LOST : FATE_KEPT));
      yield disk.powerLoss((_, i) => (i === at ? FATE_KEPT : FATE_LOST));
    }
  }
  if (count === 0) return;
  for (let i = 0; i < choice.samples; i++) yield disk.crash(prng, i % 2 === 0 ? 'power' : 'torn');
}
