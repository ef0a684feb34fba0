/**
 * Files that a job writes parts into: made one after the other from a reserved range of ids, each
 * written from front to back, synced and closed before the next. When the range is used up, all further
 * parts go into the last file. Nothing counts until `finish`; `abandon` deletes everything made.
 * Called by part writers, in a job's private memory.
 */
import { invariant } from '../base/assert.ts';
import { TidemarkError } from '../base/errors.ts';
import { MiB, partBytesTarget } from '../base/limits.ts';
import { PARTS_DIR, partPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';

/** Ids reserved for a job's outputs: [first, first + count). Never reused, whatever becomes of the job. */
export type FileIds = { first: number; count: number };

export type CreatedFile = { file: number; bytes: number };

const STAGING_BYTES: number = 1 * MiB;

/**
 * A file with so much in it takes no further collection, and a part that follows another ends there: a
 * file dies only with its last part, and that may be a small one which is never merged.
 */
export const sharedBytesMax: number = partBytesTarget / 4;

export class PartFiles {
  /** Where the caller puts bytes, from the address that `reserve` gave. Valid until the next reserve. */
  staging: Uint8Array;
  readonly #storage: Storage;
  readonly #ids: FileIds;
  readonly #created: CreatedFile[] = [];
  #fd: number;
  #staged: number;
  /** Bytes of the current file that were handed to the disk. */
  #written: number;

  constructor(storage: Storage, ids: FileIds) {
    invariant(ids.first > 0 && ids.count > 0, 'a job has ids for its files', ids.first, ids.count);
    this.staging = new Uint8Array(STAGING_BYTES);
    this.#storage = storage;
    this.#ids = ids;
    this.#fd = -1;
    this.#staged = 0;
    this.#written = 0;
  }

  /** Chooses the file of the next part. Only the first part of a run may follow another in a file. */
  beginPart(isFirstOfRun: boolean): void {
    if (this.#fd >= 0) {
      if (isFirstOfRun && this.position < sharedBytesMax) return;
      if (this.#created.length === this.#ids.count) return;
      this.#closeFile();
    }
    const file = this.#ids.first + this.#created.length;
    this.#fd = this.#storage.open(partPath(file), 'create');
    this.#created.push({ file, bytes: 0 });
    this.#staged = 0;
    this.#written = 0;
  }

  /** The file that is being written. */
  get file(): number {
    return this.#created[this.#created.length - 1].file;
  }

  /** Where its next byte will lie. */
  get position(): number {
    return this.#written + this.#staged;
  }

  /** Makes room for `bytes` bytes; returns where in `staging`. */
  reserve(bytes: number): number {
    if (this.#staged + bytes > this.staging.length) {
      this.#write();
      // Large for one large block after the other, small again for the first that is not.
      const isLarge = bytes > STAGING_BYTES;
      if (bytes > this.staging.length) this.staging = new Uint8Array(bytes);
      else if (!isLarge && this.staging.length > STAGING_BYTES) {
        this.staging = new Uint8Array(STAGING_BYTES);
      }
    }
    return this.#staged;
  }

  /** The bytes reserved last are there. */
  advance(bytes: number): void {
    this.#staged += bytes;
    invariant(this.#staged <= this.staging.length, 'what was written was reserved');
  }

  /** Syncs what is left and the directory. Returns what was made. */
  finish(): CreatedFile[] {
    if (this.#fd >= 0) this.#closeFile();
    if (this.#created.length > 0) this.#storage.syncDir(PARTS_DIR);
    return this.#created.map(({ file, bytes }) => ({ file, bytes }));
  }

  /** Deletes everything made, as far as the disk lets it; the sweep of the next open takes the rest. */
  abandon(): void {
    const steps: (() => void)[] = [];
    const fd = this.#fd;
    this.#fd = -1;
    if (fd >= 0) steps.push(() => this.#storage.close(fd));
    for (const { file } of this.#created) steps.push(() => this.#storage.unlink(partPath(file)));
    this.#created.length = 0;
    let failure: unknown;
    for (const step of steps) {
      try {
        step();
      } catch (error) {
        failure ??= error;
      }
    }
    if (failure !== undefined) throw failure;
  }

  #write(): void {
    if (this.#staged === 0) return;
    const n = this.#storage.write(this.#fd, this.staging, 0, this.#staged, this.#written);
    if (n !== this.#staged) {
      // The system keeps the reason to itself; most often it is a full disk, which fails the job alone.
      throw new TidemarkError('TIDEMARK_IO', `short write: ${n} of ${this.#staged} bytes`, {
        errno: 'ENOSPC',
        call: 'write',
        file: this.file,
        position: this.#written,
        path: partPath(this.file),
        bytes: this.#staged,
      });
    }
    this.#written += n;
    this.#staged = 0;
  }

  #closeFile(): void {
    this.#write();
    this.#created[this.#created.length - 1].bytes = this.#written;
    this.#storage.sync(this.#fd);
    const fd = this.#fd;
    this.#fd = -1;
    this.#storage.close(fd);
  }
}
