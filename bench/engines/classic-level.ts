/**
 * classic-level 3 (LevelDB). Has no lazy class: with `sync: false` nothing ever syncs on purpose. For
 * the sustained suite it gets one: a batch every 50 ms asks for a sync, which takes along all before it.
 * Memory: 16 MiB write buffer, of which LevelDB may hold two, the rest block cache. Writes run on
 * the libuv pool, where LevelDB groups those that wait for the same sync, so the pool's size is part
 * of the sweep. Called by the suites.
 */
import type { Configuration, DurabilityClass, SuiteName, Task } from '../task.ts';
import { MEMORY_BYTES, WRITE_BUFFER_BYTES } from '../task.ts';
import type { Rows } from '../rows.ts';
import {
  flagOption,
  independentCallers,
  numberOption,
  textOption,
  waves,
  type ClosedLoop,
  type Driver,
  type Engine,
} from './engine.ts';
import { probePeer, requirePeer } from './peer.ts';

interface Put {
  type: 'put';
  key: Buffer;
  value: Buffer;
}

interface Iterator {
  nextv(size: number): Promise<[Buffer, Buffer][]>;
  close(): Promise<void>;
}

interface Level {
  open(): Promise<void>;
  close(): Promise<void>;
  put(key: Buffer, value: Buffer, options: { sync: boolean }): Promise<void>;
  batch(operations: Put[], options: { sync: boolean }): Promise<void>;
  get(key: Buffer): Promise<Buffer | undefined>;
  getSync(key: Buffer): Buffer | undefined;
  getMany(keys: readonly Buffer[]): Promise<(Buffer | undefined)[]>;
  iterator(options: { highWaterMarkBytes: number }): Iterator;
}

interface Module {
  ClassicLevel: new (location: string, options: Record<string, unknown>) => Level;
}

const SCAN_ROWS = 4096;
/** As often as ours syncs when it is buffered. */
const SYNC_PERIOD_MS = 50;

function configurations(suite: SuiteName, durability: DurabilityClass): readonly Configuration[] {
  const base = {
    compression: true,
    blockSize: 4096,
    maxFileSize: 2 << 20,
    mode: 'put',
    read: 'getSync',
  };
  if (durability === 'lazy' && (suite === 'durable' || suite === 'load')) return [];
  const durable: readonly Configuration[] = [
    { name: 'put, 64 pool threads', counts: true, uvThreads: 64, options: base },
    { name: 'put, 4 pool threads', counts: true, uvThreads: 4, options: base },
    {
      name: 'one batch of N by hand, 64 pool threads',
      counts: false,
      uvThreads: 64,
      options: { ...base, mode: 'batch' },
    },
  ];
  const load: readonly Configuration[] = [
    { name: 'defaults', counts: true, uvThreads: 4, options: base },
    {
      name: '4 batches in flight',
      counts: true,
      uvThreads: 4,
      options: { ...base, inFlight: 4 },
    },
    {
      name: 'no compression, files of 16 MiB',
      counts: true,
      uvThreads: 4,
      options: { ...base, compression: false, maxFileSize: 16 << 20 },
    },
  ];
  const sustained = [load[0], load[2]].map((configuration) => ({
    ...configuration,
    name: `${configuration.name}, a sync every ${SYNC_PERIOD_MS} ms`,
    // With more threads batches overtake each other, and the older value of a key may win.
    uvThreads: 1,
  }));
  const plain: readonly Configuration[] = [
    { name: 'defaults', counts: true, uvThreads: 4, options: base },
  ];
  const reads: readonly Configuration[] = [
    { name: 'getSync', counts: true, uvThreads: 4, options: base },
    {
      name: 'getMany of 1,000',
      counts: true,
      uvThreads: 4,
      options: { ...base, read: 'getMany' },
    },
    {
      name: 'get, 1,000 at once, 64 pool threads',
      counts: true,
      uvThreads: 64,
      options: { ...base, read: 'get' },
    },
  ];
  const scans: readonly Configuration[] = [
    { name: `nextv(${SCAN_ROWS})`, counts: true, uvThreads: 4, options: base },
  ];
  const bySuite: Partial<Record<SuiteName, readonly Configuration[]>> = {
    durable,
    load,
    sustained,
    prepare: plain,
    open: plain,
    'point-all': reads,
    'point-hot': reads,
    scan: scans,
  };
  return bySuite[suite] ?? [];
}

class LevelEngine implements Engine {
  readonly #level: Level;
  readonly #sync: { sync: boolean };
  readonly #isLazy: boolean;
  #syncedAtMs = 0;
  #lastOperations: Put[] = [];
  readonly #mode: string;
  readonly #read: string;

  constructor(level: Level, task: Task) {
    this.#level = level;
    this.#sync = { sync: task.durability === 'synced' };
    this.#isLazy = task.suite === 'sustained' && task.durability === 'lazy';
    this.#mode = textOption(task, 'mode');
    this.#read = textOption(task, 'read');
  }

  runLoop(loop: ClosedLoop, rows: Rows): Promise<void> {
    if (this.#mode === 'batch') return waves(loop, (wave) => this.#batch(rows, wave));
    return independentCallers(loop, (row) =>
      this.#level.put(rows.key(row), rows.value(row), this.#sync),
    );
  }

  #batch(rows: Rows, wave: readonly number[]): Promise<void> {
    const operations = wave.map<Put>((row) => ({
      type: 'put',
      key: rows.key(row),
      value: rows.value(row),
    }));
    return this.#level.batch(operations, this.#sync);
  }

  writeBatch(rows: Rows, from: number, count: number): Promise<unknown> {
    const operations: Put[] = [];
    for (let row = from; row < from + count; row++) {
      operations.push({ type: 'put', key: rows.key(row), value: rows.value(row) });
    }
    if (!this.#isLazy) return this.#level.batch(operations, this.#sync);
    this.#lastOperations = operations;
    const nowMs = performance.now();
    const sync = nowMs - this.#syncedAtMs >= SYNC_PERIOD_MS;
    if (sync) this.#syncedAtMs = nowMs;
    return this.#level.batch(operations, { sync });
  }

  settle(): Promise<unknown> {
    // The same rows once more: a batch without rows would not reach the log.
    return this.#isLazy
      ? this.#level.batch(this.#lastOperations, { sync: true })
      : Promise.resolve();
  }

  readMany(keys: readonly Buffer[]): number | Promise<number> {
    if (this.#read === 'getMany') return this.#level.getMany(keys).then(sumOfFirstBytes);
    if (this.#read === 'get') {
      return Promise.all(keys.map((key) => this.#level.get(key))).then(sumOfFirstBytes);
    }
    let sum = 0;
    for (const key of keys) sum += this.#level.getSync(key)![0];
    return sum;
  }

  get(key: Buffer): Uint8Array | undefined {
    return this.#level.getSync(key);
  }

  async scan(visit: (key: Uint8Array, value: Uint8Array) => void): Promise<void> {
    const iterator = this.#level.iterator({ highWaterMarkBytes: 1 << 20 });
    try {
      for (;;) {
        const entries = await iterator.nextv(SCAN_ROWS);
        if (entries.length === 0) return;
        for (const entry of entries) visit(entry[0], entry[1]);
      }
    } finally {
      await iterator.close();
    }
  }

  close(): Promise<unknown> {
    return this.#level.close();
  }

  figures(): Record<string, number> {
    return {};
  }
}

function sumOfFirstBytes(values: readonly (Buffer | undefined)[]): number {
  let sum = 0;
  for (const value of values) sum += value![0];
  return sum;
}

export const classicLevel: Driver = {
  name: 'classic-level',
  probe: (root) => Promise.resolve(probePeer(root, 'classic-level')),
  configurations,
  async open(task) {
    const { ClassicLevel }: Module = requirePeer(task.root, 'classic-level');
    const level = new ClassicLevel(task.directory, {
      keyEncoding: 'buffer',
      valueEncoding: 'buffer',
      writeBufferSize: WRITE_BUFFER_BYTES,
      cacheSize: MEMORY_BYTES - 2 * WRITE_BUFFER_BYTES,
      compression: flagOption(task, 'compression'),
      blockSize: numberOption(task, 'blockSize'),
      maxFileSize: numberOption(task, 'maxFileSize'),
    });
    await level.open();
    return new LevelEngine(level, task);
  },
};
