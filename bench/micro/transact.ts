/**
 * What `transact` costs beside plain commits: closed loops of N that read a row and put it, beside loops
 * that put it, alone (`collection.put`) and as a transaction; every loop has rows of its own, so that
 * nothing conflicts, and they stay in memory. Durable, on the disk that the temporary directory is on.
 * Run it with `npm run build && node --import tsx bench/micro/transact.ts [in flight] [seconds] [rounds]`.
 * Goal: 0.6 of plain commits at 256 in flight.
 *
 * Not measured: rows that must be read from the disk, conflicts, several threads.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type * as Tidemark from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';

const IN_FLIGHT = Number(process.argv[2] ?? 256);
const SECONDS = Number(process.argv[3] ?? 2);
const ROUNDS = Number(process.argv[4] ?? 3);
const ROWS_PER_LOOP = 40;

const built = join(import.meta.dirname, '..', '..', 'dist', 'actors', 'index.js');
const { open } = (await import(pathToFileURL(built).href)) as typeof Tidemark;
const directory = mkdtempSync(join(process.env['BENCH_DATA'] ?? tmpdir(), 'transact-'));
const engine = await open(directory, { memoryBytes: 256 * MiB, memtableBytes: 16 * MiB });
const rows = await engine.collection('rows', { key: 'u64', value: 'buffer' });
const value = Buffer.alloc(100);

const KINDS: Readonly<Record<string, (key: number) => Promise<unknown>>> = {
  put: (key) => rows.put(key, value),
  transaction: (key) => engine.transaction().put(rows, key, value).commit(),
  transact: (key) =>
    engine.transact((tx) => {
      tx.getSync(rows, key);
      tx.put(rows, key, value);
    }),
};

/** Commits per second, and per second of the process's CPU time. */
async function measure(commit: (key: number) => Promise<unknown>): Promise<[number, number]> {
  const before = process.cpuUsage();
  const startedAt = performance.now();
  const end = startedAt + SECONDS * 1_000;
  let count = 0;
  const loop = async (lane: number): Promise<void> => {
    for (let i = 0; performance.now() < end; i++) {
      await commit(lane * ROWS_PER_LOOP + (i % ROWS_PER_LOOP));
      count++;
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, (_, lane) => loop(lane)));
  const seconds = (performance.now() - startedAt) / 1_000;
  const { user, system } = process.cpuUsage(before);
  return [count / seconds, count / ((user + system) / 1e6)];
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

try {
  for (const commit of Object.values(KINDS)) await measure(commit);
  const rates: Record<string, number[]> = {};
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, commit] of Object.entries(KINDS)) {
      const [rate, perCpu] = await measure(commit);
      (rates[name] ??= []).push(rate);
      console.log(
        `${name}: ${(rate / 1e3).toFixed(0)} k/s, ${(perCpu / 1e3).toFixed(0)} k per CPU second`,
      );
    }
  }
  const of = (name: string): number => median(rates[name]);
  console.log(`transact / put: ${(of('transact') / of('put')).toFixed(2)}`);
  console.log(`transact / transaction: ${(of('transact') / of('transaction')).toFixed(2)}`);
} finally {
  await engine.close();
  rmSync(directory, { recursive: true, force: true });
}
