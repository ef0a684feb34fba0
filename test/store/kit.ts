/**
 * Stores for the tests of the tools: made once by a real engine, with several segments, parts and rollups,
 * then copied for each test to be looked at or damaged.
 */
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { open } from '../../actors/index.ts';
import type { Engine, OpenOptions } from '../../actors/index.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import type { Storage } from '../../core/storage/storage.ts';
import type { Machine, Progress } from '../../core/store/report.ts';
import { verifyStore } from '../../core/store/verify.ts';
import type { VerifyReport } from '../../core/store/verify.ts';
import { quiet } from '../engine/world.ts';

export const OPTIONS: OpenOptions = {
  threads: 0,
  memoryBytes: 64 * MiB,
  mergeThreads: 1,
  memtableBytes: 512 * KiB,
  segmentBytes: 256 * KiB,
  // The tests damage and compress segments themselves.
  wal: { compress: false },
};

const home = mkdtempSync(join(tmpdir(), 'tidemark-tools-'));
process.on('exit', () => rmSync(home, { recursive: true, force: true }));

let count = 0;

export function freshDirectory(): string {
  count++;
  return join(home, `${count}`);
}

/** A directory of its own with the same bytes. */
export function copyOf(directory: string): string {
  const copy = freshDirectory();
  cpSync(directory, copy, { recursive: true });
  return copy;
}

/** Commits so many transactions of ten rows to 'words', and some to 'edges'. */
export async function fill(engine: Engine, transactions: number, seed = 0): Promise<void> {
  const words = await engine.collection('words', { value: 'utf8' });
  const edges = await engine.collection('edges', {
    key: 'u64',
    value: 'buffer',
    // Keeps the whole log.
    history: Infinity,
  });
  for (let i = 0; i < transactions; i++) {
    const tx = engine.transaction();
    for (let j = 0; j < 10; j++)
      tx.put(words, `key ${seed} ${i % 50} ${j}`, `${i}`.padEnd(900, '.'));
    if (i % 7 === 0) tx.delete(words, `key ${seed} ${(i + 3) % 50} 1`);
    await tx.put(edges, i, Buffer.from([i % 256, 0xff])).commit();
  }
}

/** Several segments, parts of two collections and the catalog, two rollups; closed in order or not. */
export async function makeStore(closed: boolean): Promise<string> {
  const directory = freshDirectory();
  const engine = await open(directory, OPTIONS);
  await fill(engine, 40);
  await engine.flush();
  await engine.close();
  const again = await open(directory, OPTIONS);
  await fill(again, 60, 1);
  await again.flush();
  // No file may come or go while it is copied; what follows stays in the log.
  await quiet(again);
  await fill(again, 10, 2);
  const copy = closed ? undefined : copyOf(directory);
  await again.close();
  return copy ?? directory;
}

export function flip(directory: string, file: string, position: number, bit = 0): void {
  const path = join(directory, file);
  const bytes = readFileSync(path);
  bytes[position] ^= 1 << bit;
  writeFileSync(path, bytes);
}

/** Every file below the directory, with its bytes. */
export function contentsOf(directory: string): Map<string, string> {
  const names = readdirSync(directory, { recursive: true, withFileTypes: true });
  const files = names
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name));
  return new Map(files.toSorted().map((path) => [path, readFileSync(path, 'latin1')]));
}

export function runToEnd<T>(machine: Machine<T>): T {
  for (;;) {
    const { done, value } = machine.next();
    if (done === true) return value;
  }
}

export function verify(store: string | Storage, full = true, live = false): VerifyReport {
  const progress: Progress = { what: '', doneBytes: 0, totalBytes: 0 };
  const storage = typeof store === 'string' ? new NodeStorage(store) : store;
  return runToEnd(verifyStore(storage, { full, live }, progress));
}
