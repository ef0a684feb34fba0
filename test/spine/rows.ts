/**
 * Rows as plain objects, a cursor over an array of them, and the naive answers that spine tests compare
 * with. Nothing here is fast.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { NodeStorage } from '../../actors/node-storage.ts';
import { compareAt, compareBytes } from '../../core/base/bytes.ts';
import type { RowCursor } from '../../core/base/cursor.ts';
import type { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED, OP_DELETE, OP_PUT, OP_UPDATE } from '../../core/base/update.ts';
import { PartFiles } from '../../core/spine/part-files.ts';
import type { PartInfo } from '../../core/spine/part-format.ts';
import { PART_SHAPE, PartWriter } from '../../core/spine/part-writer.ts';
import type { PartShape } from '../../core/spine/part-writer.ts';
import { PARTS_DIR } from '../../core/storage/names.ts';
import type { Storage } from '../../core/storage/storage.ts';
import { SimDisk } from '../sim/disk.ts';

export type Row = { key: Uint8Array; time: number; kind: number; diff: number; value: Uint8Array };

const NONE = new Uint8Array(0);

export function put(key: string | Uint8Array, time: number, value: string | Uint8Array): Row {
  return { key: bytes(key), time, kind: OP_PUT, diff: 1, value: bytes(value) };
}

export function del(key: string | Uint8Array, time: number): Row {
  return { key: bytes(key), time, kind: OP_DELETE, diff: -1, value: NONE };
}

export function update(
  key: string | Uint8Array,
  time: number,
  value: string | Uint8Array,
  diff: number,
): Row {
  return { key: bytes(key), time, kind: OP_UPDATE, diff, value: bytes(value) };
}

export function bytes(text: string | Uint8Array): Uint8Array {
  return typeof text === 'string' ? new TextEncoder().encode(text) : text;
}

export function compareRows(a: Row, b: Row): number {
  return compareBytes(a.key, b.key) || b.time - a.time;
}

/** In order, one row for each key and time. */
export function sorted(rows: readonly Row[]): Row[] {
  const all = rows.toSorted(compareRows);
  return all.filter((row, i) => i === 0 || compareRows(all[i - 1], row) !== 0);
}

/** A row as a short line, for comparison and for reading. */
export function line(row: Row): string {
  const value =
    row.value.length > 40 ? `#${row.value.length}:${digest(row.value)}` : hex(row.value);
  const key = row.key.length > 40 ? `#${row.key.length}:${digest(row.key)}` : hex(row.key);
  return `${key}@${row.time} ${row.kind} ${row.diff} ${value}`;
}

export function lines(rows: readonly Row[]): string[] {
  return rows.map(line);
}

function hex(some: Uint8Array): string {
  return Buffer.from(some).toString('hex');
}

function digest(some: Uint8Array): number {
  let h = 7;
  for (const byte of some) h = (Math.imul(h, 31) + byte) | 0;
  return h;
}

export function rowOf(cursor: RowCursor): Row {
  cursor.loadValue();
  const { keyBytes, keyOffset, keyLength, valueBytes, valueOffset, valueLength } = cursor;
  return {
    key: keyBytes.slice(keyOffset, keyOffset + keyLength),
    time: cursor.time,
    kind: cursor.kind,
    diff: cursor.diff,
    value: valueBytes.slice(valueOffset, valueOffset + valueLength),
  };
}

export function forwards(cursor: RowCursor): Row[] {
  const rows: Row[] = [];
  for (cursor.first(); cursor.valid; cursor.next()) rows.push(rowOf(cursor));
  return rows;
}

export function backwards(cursor: RowCursor): Row[] {
  const rows: Row[] = [];
  for (cursor.last(); cursor.valid; cursor.previous()) rows.push(rowOf(cursor));
  return rows.toReversed();
}

/** Requires sorted rows. Keys and values lie at odd offsets, as in real memory. */
export class ArrayCursor implements RowCursor {
  valid = false;
  keyBytes: Uint8Array = NONE;
  keyOffset = 3;
  keyLength = 0;
  time = 0;
  kind = 0;
  diff = 0;
  valueLength = 0;
  valueBytes: Uint8Array = NONE;
  valueOffset = 0;
  readonly #rows: readonly Row[];
  #at = 0;

  constructor(rows: readonly Row[]) {
    this.#rows = rows;
  }

  loadValue(): void {
    const { value } = this.#rows[this.#at];
    this.valueBytes = new Uint8Array(value.length + 5);
    this.valueBytes.set(value, 5);
    this.valueOffset = 5;
  }

  first(): void {
    this.#stand(0);
  }

  last(): void {
    this.#stand(this.#rows.length - 1);
  }

  next(): void {
    this.#stand(this.#at + 1);
  }

  previous(): void {
    this.#stand(this.#at - 1);
  }

  seek(key: Uint8Array, offset: number, length: number): void {
    const at = this.#rows.findIndex(
      (row) => compareAt(row.key, 0, row.key.length, key, offset, length) >= 0,
    );
    this.#stand(at < 0 ? this.#rows.length : at);
  }

  seekBelow(key: Uint8Array, offset: number, length: number): void {
    const at = this.#rows.findLastIndex(
      (row) => compareAt(row.key, 0, row.key.length, key, offset, length) < 0,
    );
    this.#stand(at);
  }

  #stand(at: number): void {
    this.#at = at;
    const row = this.#rows[at];
    this.valid = row !== undefined;
    // What a cursor lends must not be used once it has moved.
    this.keyBytes.fill(0xcc);
    if (row === undefined) return;
    this.keyBytes = new Uint8Array(row.key.length + 3);
    this.keyBytes.set(row.key, 3);
    this.keyLength = row.key.length;
    this.time = row.time;
    this.kind = row.kind;
    this.diff = row.diff;
    this.valueLength = row.value.length;
  }
}

/** What a merge of keyed rows must leave; and what the newest version at or below a time is. */
export function naiveKeyed(
  rows: readonly Row[],
  since: number,
  oldest: boolean,
  cut: number = Number.MAX_SAFE_INTEGER,
): Row[] {
  const all = sorted(rows.filter((row) => row.time < cut));
  return all.filter((row, i) => {
    if (row.time > since) return true;
    const before = all[i - 1];
    const isNewest =
      before === undefined || compareBytes(before.key, row.key) !== 0 || before.time > since;
    return isNewest && !(oldest && row.kind === OP_DELETE);
  });
}

export function naiveGet(rows: readonly Row[], key: Uint8Array, asOf: number): Row | undefined {
  let found: Row | undefined;
  for (const row of rows) {
    if (compareBytes(row.key, key) !== 0 || row.time > asOf) continue;
    if (found === undefined || row.time > found.time) found = row;
  }
  return found;
}

export function randomBytes(prng: Prng, length: number): Uint8Array {
  const some = new Uint8Array(length);
  for (let i = 0; i < length; i++) some[i] = prng.u32();
  return some;
}

/** Keys of many sorts: empty, short, sharing prefixes, prefixes of each other, a few long ones. */
export function randomKey(prng: Prng, longest: number): Uint8Array {
  const sort = prng.below(20);
  if (sort === 0) return NONE;
  if (sort < 6) return bytes(`k${prng.below(30)}`);
  if (sort < 10) return bytes('a'.repeat(prng.below(12)));
  if (sort < 14) return bytes(`tenant/${prng.below(3)}/user/${prng.below(1000)}`);
  if (sort < 15) {
    const key = new Uint8Array(prng.between(1, longest)).fill(0x61);
    key[key.length - 1] = prng.below(256);
    return key;
  }
  return randomBytes(prng, prng.between(1, 24));
}

/** Rows with several versions of some keys; every time is different, below `timeMax`. */
export function randomRows(prng: Prng, count: number, timeMax: number, longest = 300): Row[] {
  const keys = Array.from({ length: Math.ceil(count / 2) }, () => randomKey(prng, longest));
  const rows: Row[] = [];
  for (let i = 0; i < count; i++) {
    const key = prng.pick(keys);
    const time = Math.floor(prng.unit() * timeMax);
    if (prng.chance(0.2)) rows.push(del(key, time));
    else rows.push(put(key, time, randomBytes(prng, prng.below(60))));
  }
  return sorted(rows);
}

/** A disk in memory with a directory for parts. */
export function simDisk(): SimDisk {
  const disk = new SimDisk();
  disk.makeDir(PARTS_DIR);
  disk.settle();
  return disk;
}

/** The files of parts from `first` on, as they now read. */
export function partFiles(disk: SimDisk, first: number): Map<string, Uint8Array | undefined> {
  const files = new Map<string, Uint8Array | undefined>();
  for (const name of disk.list(PARTS_DIR)) {
    if (Number(name.slice(0, 10)) >= first) files.set(name, disk.bytesOf(`${PARTS_DIR}/${name}`));
  }
  return files;
}

/** Descriptors that are open, counted from now on. */
export function openFiles(storage: Storage): () => number {
  const open = storage.open.bind(storage);
  const close = storage.close.bind(storage);
  let count = 0;
  storage.open = (path, how) => {
    const fd = open(path, how);
    count++;
    return fd;
  };
  storage.close = (fd) => {
    count--;
    close(fd);
  };
  return () => count;
}

/** A storage over a real directory of its own, which goes with `end`. */
export function tempStorage(): { storage: Storage; directory: string; end: () => void } {
  const directory = mkdtempSync(join(tmpdir(), 'tidemark-spine-'));
  const storage = new NodeStorage(directory);
  storage.makeDir(PARTS_DIR);
  return { storage, directory, end: () => rmSync(directory, { recursive: true }) };
}

/** Writes sorted rows as the parts of one run, from file `first` on. */
export function writeRun(
  storage: Storage,
  first: number,
  rows: readonly Row[],
  shape: Partial<PartShape> = {},
  kind: number = KIND_KEYED,
): PartInfo[] {
  const files = new PartFiles(storage, { first, count: 1000 });
  const writer = new PartWriter(files, { ...PART_SHAPE, ...shape });
  writer.begin(kind);
  const cursor = new ArrayCursor(rows);
  for (cursor.first(); cursor.valid; cursor.next()) {
    cursor.loadValue();
    writer.add(cursor);
  }
  const parts = writer.end();
  files.finish();
  return parts;
}
