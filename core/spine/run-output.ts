/**
 * Where a job's rows end up: kept ones in parts, dropped ones in sums, so that whoever receives the
 * result can see that nothing vanished unnoticed. At the end everything is synced and every footer read
 * again from the disk. Called by flush and merge jobs, in private memory.
 */
import { compareBytes } from '../base/bytes.ts';
import type { Row } from '../base/cursor.ts';
import { corrupt } from '../base/errors.ts';
import type { RangeDelete } from '../base/range-set.ts';
import type { Storage } from '../storage/storage.ts';
import type { RowSink } from './consolidate.ts';
import { PartFiles } from './part-files.ts';
import type { CreatedFile, FileIds } from './part-files.ts';
import type { PartInfo } from './part-format.ts';
import { readFooters } from './part-reader.ts';
import { PartWriter } from './part-writer.ts';
import type { PartShape } from './part-writer.ts';
import { addRange } from './range-block.ts';
import { keyHash, RowSums, valueHash } from './row-hash.ts';

/** Figures of rows, summed: of what was kept or dropped. Plain JSON. */
export type RowFigures = { len: number; diffSum: number; hash: [number, number] };

export function figuresOf(sums: RowSums): RowFigures {
  return { len: sums.len, diffSum: sums.diffSum, hash: sums.hash() };
}

/** Fuel that a row costs: one, and one more for every KiB of it. */
export function rowFuel(row: Row): number {
  return 1 + ((row.keyLength + row.valueLength) >>> 10);
}

export class RunOutput implements RowSink {
  /** Rows dropped since `begin`. */
  readonly dropped: RowSums;
  /** Rows that became part of another one since then. */
  folded: number;
  readonly #storage: Storage;
  readonly #files: PartFiles;
  readonly #writer: PartWriter;
  readonly #written: PartInfo[] = [];
  readonly #moved: Set<PartInfo> = new Set();

  constructor(storage: Storage, ids: FileIds, shape: PartShape) {
    this.dropped = new RowSums();
    this.folded = 0;
    this.#storage = storage;
    this.#files = new PartFiles(storage, ids);
    this.#writer = new PartWriter(this.#files, shape);
  }

  /** Begins the run of one collection. */
  begin(kind: number): void {
    this.dropped.clear();
    this.folded = 0;
    this.#writer.begin(kind);
  }

  /** The run's range deletes, before any row: those that stay, in order, and those that go. */
  ranges(kept: readonly RangeDelete[], dropped: readonly RangeDelete[]): void {
    this.#writer.addRanges(kept);
    for (const range of dropped) addRange(this.dropped, range);
  }

  keep(row: Row): void {
    row.loadValue();
    this.#writer.add(row);
  }

  fold(): void {
    this.folded += 1;
  }

  drop(row: Row): void {
    row.loadValue();
    const k = keyHash(row.keyBytes, row.keyOffset, row.keyLength);
    const v = valueHash(row.valueBytes, row.valueOffset, row.valueLength);
    this.dropped.add(k, row.kind, v, row.time, row.diff);
  }

  /** Takes parts that are there already into the run; see `PartWriter.move`. */
  move(parts: readonly PartInfo[]): void {
    for (const part of parts) {
      this.#writer.move(part);
      this.#moved.add(part);
    }
  }

  /** Ends the run; its parts, with figures. */
  end(): PartInfo[] {
    const parts = this.#writer.end();
    this.#written.push(...parts.filter((part) => !this.#moved.has(part)));
    return parts;
  }

  /** Makes all of it durable and reads the footers back. */
  finish(): CreatedFile[] {
    const created = this.#files.finish();
    const found = readFooters(this.#storage, this.#written);
    for (let i = 0; i < found.length; i++) checkSame(this.#written[i], found[i]);
    return created;
  }

  /** Deletes everything written. */
  abandon(): void {
    this.#files.abandon();
  }
}

export function sumsOfParts(parts: readonly PartInfo[]): RowSums {
  const sums = new RowSums();
  for (const part of parts) sums.addSums(part.len, part.diffSum, part.hash);
  return sums;
}

function checkSame(written: PartInfo, found: PartInfo): void {
  const keysAre =
    compareBytes(written.keyLo, found.keyLo) === 0 &&
    compareBytes(written.keyHi, found.keyHi) === 0;
  if (keysAre && JSON.stringify(written, withoutKeys) === JSON.stringify(found, withoutKeys))
    return;
  throw corrupt('BAD_FOOTER', `part at ${found.offset} of file ${found.file} reads back changed`, {
    file: found.file,
    offset: found.offset,
  });
}

/** Keys of 64 KiB as JSON would take longer than the job. */
function withoutKeys(name: string, value: unknown): unknown {
  return name === 'keyLo' || name === 'keyHi' ? undefined : value;
}
