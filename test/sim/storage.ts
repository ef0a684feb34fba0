/**
 * The disk as one incarnation of the engine has it: every call goes to the simulated disk; reads that a
 * client does not wait for are answered when the scheduler says so. Used by world.ts.
 */
import type { Prng } from '../../core/base/prng.ts';
import type { OpenHow, Storage, StorageAnswer, StorageCall } from '../../core/storage/storage.ts';
import type { SimDisk } from './disk.ts';

export class SimStorage implements Storage {
  readonly disk: SimDisk;
  readonly #later: (() => void)[] = [];

  constructor(disk: SimDisk) {
    this.disk = disk;
  }

  open(path: string, how: OpenHow): number {
    return this.disk.open(path, how);
  }

  close(fd: number): void {
    // A handle is let go after its process has died: its descriptors went with it.
    if (!this.disk.isDead) this.disk.close(fd);
  }

  size(fd: number): number {
    return this.disk.size(fd);
  }

  read(fd: number, target: Uint8Array, at: number, length: number, position: number): number {
    return this.disk.read(fd, target, at, length, position);
  }

  write(fd: number, source: Uint8Array, from: number, length: number, position: number): number {
    return this.disk.write(fd, source, from, length, position);
  }

  writev(fd: number, sources: readonly Uint8Array[], position: number): number {
    return this.disk.writev(fd, sources, position);
  }

  sync(fd: number): void {
    this.disk.sync(fd);
  }

  truncate(fd: number, bytes: number): void {
    this.disk.truncate(fd, bytes);
  }

  rename(from: string, to: string): void {
    this.disk.rename(from, to);
  }

  link(from: string, to: string): void {
    this.disk.link(from, to);
  }

  unlink(path: string): void {
    this.disk.unlink(path);
  }

  list(path: string): string[] {
    return this.disk.list(path);
  }

  makeDir(path: string): void {
    this.disk.makeDir(path);
  }

  syncDir(path: string): void {
    this.disk.syncDir(path);
  }

  stat(path: string): { bytes: number; links: number } | undefined {
    return this.disk.stat(path);
  }

  freeBytes(): number {
    return this.disk.freeBytes();
  }

  /** Waits for `answerLater`. The descriptor is looked at then: closed too early, it is an error. */
  readLater(
    fd: number,
    target: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#later.push(() => {
        try {
          resolve(this.read(fd, target, at, length, position));
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  /** Reads that wait to be answered. */
  get waiting(): number {
    return this.#later.length;
  }

  /** Answers one of them, any. */
  answerLater(prng: Prng): boolean {
    if (this.#later.length === 0) return false;
    const [answer] = this.#later.splice(prng.below(this.#later.length), 1);
    answer();
    return true;
  }

  submit(ticket: number, fd: number, calls: readonly StorageCall[]): void {
    this.disk.submit(ticket, fd, calls);
  }

  poll(): StorageAnswer | undefined {
    return this.disk.poll();
  }
}
