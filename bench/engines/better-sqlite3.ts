/**
 * better-sqlite3 12 (SQLite 3.53), with a write-ahead log: synchronous FULL is synced, NORMAL lazy
 * (a checkpoint syncs), OFF never. It is synchronous, so N in flight can only mean one transaction
 * of N, which counts as its best. One connection of one process, so the lock is kept (EXCLUSIVE)
 * and the log's index stays out of shared memory. Page cache: all of the memory. Called by the
 * suites; between two batches of a load the event loop gets its turn.
 */
import { join } from 'node:path';
import type { Configuration, SuiteName, Task } from '../task.ts';
import { MEMORY_BYTES } from '../task.ts';
import type { Rows } from '../rows.ts';
import {
  flagOption,
  numberOption,
  waves,
  type ClosedLoop,
  type Driver,
  type Engine,
} from './engine.ts';
import { probePeer, requirePeer } from './peer.ts';

interface Statement {
  run(...values: Buffer[]): unknown;
  get(...values: Buffer[]): Buffer | undefined;
  iterate(): IterableIterator<[Buffer, Buffer]>;
  pluck(): Statement;
  raw(): Statement;
}

interface Connection {
  pragma(text: string): unknown;
  exec(text: string): void;
  prepare(text: string): Statement;
  transaction<A extends unknown[]>(body: (...given: A) => void): (...given: A) => void;
  close(): void;
}

type Module = new (path: string) => Connection;

function configurations(suite: SuiteName): readonly Configuration[] {
  const base = { rowid: false, checkpointPages: 1000, pageSize: 4096, mapped: false };
  const named = (
    name: string,
    change: Record<string, string | number | boolean>,
  ): Configuration => ({ name, counts: true, options: { ...base, ...change } });
  // The rowid table appends its rows and keeps only keys in random order: smaller to write.
  const writes: readonly Configuration[] = [
    named('rowid table, checkpoint at 64 MiB', { rowid: true, checkpointPages: 16_384 }),
    named('rowid table, checkpoint at 16 MiB', { rowid: true, checkpointPages: 4096 }),
    named('checkpoint at 16 MiB', { checkpointPages: 4096 }),
    named('checkpoint at 4 MiB', {}),
  ];
  const plain: readonly Configuration[] = [named('defaults', { checkpointPages: 16_384 })];
  const reads: readonly Configuration[] = [
    named('page cache', {}),
    named('mapped', { mapped: true }),
  ];
  const bySuite: Partial<Record<SuiteName, readonly Configuration[]>> = {
    durable: writes,
    load: writes,
    // One that keeps rows in order, one that appends them: over many rows either may win.
    sustained: [writes[0], named('checkpoint at 64 MiB', { checkpointPages: 16_384 })],
    prepare: plain,
    open: plain,
    'point-all': reads,
    'point-hot': reads,
    scan: reads,
  };
  return bySuite[suite] ?? [];
}

class SqliteEngine implements Engine {
  readonly #connection: Connection;
  readonly #insert: Statement;
  readonly #select: Statement;
  readonly #all: Statement;
  readonly #never: boolean;
  readonly #writeRange: (rows: Rows, from: number, count: number) => void;
  readonly #writeWave: (rows: Rows, wave: readonly number[]) => void;

  constructor(connection: Connection, task: Task) {
    this.#connection = connection;
    this.#never = task.durability === 'never';
    const insert = connection.prepare('INSERT OR REPLACE INTO kv (k, v) VALUES (?, ?)');
    this.#insert = insert;
    this.#select = connection.prepare('SELECT v FROM kv WHERE k = ?').pluck();
    this.#all = connection.prepare('SELECT k, v FROM kv ORDER BY k').raw();
    this.#writeRange = connection.transaction((rows: Rows, from: number, count: number) => {
      for (let row = from; row < from + count; row++) insert.run(rows.key(row), rows.value(row));
    });
    this.#writeWave = connection.transaction((rows: Rows, wave: readonly number[]) => {
      for (const row of wave) insert.run(rows.key(row), rows.value(row));
    });
  }

  runLoop(loop: ClosedLoop, rows: Rows): Promise<void> {
    if (loop.inFlight === 1) {
      for (let row = loop.take(); row >= 0; row = loop.take()) {
        this.#insert.run(rows.key(row), rows.value(row)); // a transaction of its own
        loop.done(1);
      }
      return Promise.resolve();
    }
    return waves(loop, (wave) => this.#writeWave(rows, wave));
  }

  writeBatch(rows: Rows, from: number, count: number): Promise<unknown> {
    this.#writeRange(rows, from, count);
    return Promise.resolve();
  }

  settle(): Promise<unknown> {
    if (!this.#never) this.#connection.pragma('wal_checkpoint(PASSIVE)');
    return Promise.resolve();
  }

  readMany(keys: readonly Buffer[]): number {
    const select = this.#select;
    let sum = 0;
    for (const key of keys) sum += select.get(key)![0];
    return sum;
  }

  get(key: Buffer): Uint8Array | undefined {
    return this.#select.get(key);
  }

  scan(visit: (key: Uint8Array, value: Uint8Array) => void): Promise<void> {
    for (const entry of this.#all.iterate()) visit(entry[0], entry[1]);
    return Promise.resolve();
  }

  close(): Promise<unknown> {
    this.#connection.close();
    return Promise.resolve();
  }

  figures(): Record<string, number> {
    return {};
  }
}

const SYNCHRONOUS = { synced: 'FULL', lazy: 'NORMAL', never: 'OFF' } as const;

export const betterSqlite3: Driver = {
  name: 'better-sqlite3',
  probe: (root) => Promise.resolve(probePeer(root, 'better-sqlite3')),
  configurations,
  open(task) {
    const Database: Module = requirePeer(task.root, 'better-sqlite3');
    const connection = new Database(join(task.directory, 'data.sqlite'));
    connection.pragma(`page_size = ${numberOption(task, 'pageSize')}`); // of a new file only
    connection.pragma('locking_mode = EXCLUSIVE');
    connection.pragma('journal_mode = WAL');
    connection.pragma(`synchronous = ${SYNCHRONOUS[task.durability]}`);
    connection.pragma(`wal_autocheckpoint = ${numberOption(task, 'checkpointPages')}`);
    connection.pragma(`cache_size = -${MEMORY_BYTES / 1024}`);
    if (flagOption(task, 'mapped')) connection.pragma(`mmap_size = ${2 ** 31 - 65_536}`);
    const rowid = flagOption(task, 'rowid') ? '' : 'WITHOUT ROWID';
    connection.exec(`CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB) ${rowid}`);
    return Promise.resolve(new SqliteEngine(connection, task));
  },
};
