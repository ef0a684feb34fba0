/**
 * The disk as callers read from it: what the system refuses fails as TIDEMARK_IO, with the system's error as
 * its cause, for that is what they are promised. Clients only read; actors' disks are wrapped by nobody, for
 * what they meet ends the engine, which names it so. On each client's thread.
 */
import { invariant } from '../core/base/assert.ts';
import { TidemarkError, toPlainError } from '../core/base/errors.ts';
import type { OpenHow, Storage, StorageAnswer } from '../core/storage/storage.ts';

export class ClientStorage implements Storage {
  readonly #disk: Storage;

  constructor(disk: Storage) {
    this.#disk = disk;
  }

  open(path: string, how: OpenHow): number {
    invariant(how === 'read', 'clients only read');
    try {
      return this.#disk.open(path, how);
    } catch (error) {
      throw refused(error);
    }
  }

  close(fd: number): void {
    this.#disk.close(fd);
  }

  size(fd: number): number {
    try {
      return this.#disk.size(fd);
    } catch (error) {
      throw refused(error);
    }
  }

  read(fd: number, target: Uint8Array, at: number, length: number, position: number): number {
    try {
      return this.#disk.read(fd, target, at, length, position);
    } catch (error) {
      throw refused(error);
    }
  }

  async readLater(
    fd: number,
    target: Uint8Array,
    at: number,
    length: number,
    position: number,
  ): Promise<number> {
    try {
      return await this.#disk.readLater(fd, target, at, length, position);
    } catch (error) {
      throw refused(error);
    }
  }

  list(path: string): string[] {
    try {
      return this.#disk.list(path);
    } catch (error) {
      throw refused(error);
    }
  }

  stat(path: string): { bytes: number; links: number } | undefined {
    try {
      return this.#disk.stat(path);
    } catch (error) {
      throw refused(error);
    }
  }

  freeBytes(): number {
    return this.#disk.freeBytes();
  }

  write(): number {
    return writes();
  }

  writev(): number {
    return writes();
  }

  sync(): void {
    writes();
  }

  truncate(): void {
    writes();
  }

  rename(): void {
    writes();
  }

  link(): void {
    writes();
  }

  unlink(): void {
    writes();
  }

  makeDir(): void {
    writes();
  }

  syncDir(): void {
    writes();
  }

  submit(): void {
    writes();
  }

  poll(): StorageAnswer | undefined {
    return undefined;
  }
}

function writes(): never {
  invariant(false, 'clients only read');
}

/** As TIDEMARK_IO what is an error of the system, all else as it is. */
function refused(error: unknown): unknown {
  const { code, message, detail } = toPlainError(error);
  return code === 'TIDEMARK_IO' && !(error instanceof TidemarkError)
    ? new TidemarkError(code, message, detail, error)
    : error;
}
