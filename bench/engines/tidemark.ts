/**
 * Tidemark, from `dist/`, through its public face. Synced and buffered are the classes synced and
 * lazy; it has no class never. Memory: one arena of the common size, memtable of the common write
 * buffer. Called by the suites.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Collection } from '../../actors/index.ts';
import type { Configuration, DurabilityClass, SuiteName } from '../task.ts';
import { MEMORY_BYTES, WRITE_BUFFER_BYTES } from '../task.ts';
import type { Rows } from '../rows.ts';
import {
  independentCallers,
  numberOption,
  textOption,
  waves,
  type ClosedLoop,
  type Driver,
  type Engine,
} from './engine.ts';

/** Types from the sources; what runs is the published build. */
type Tidemark = typeof import('../../actors/index.ts');
type Handle = Awaited<ReturnType<Tidemark['open']>>;
type RowCollection = Collection<Buffer, Buffer>;

function configurations(suite: SuiteName, durability: DurabilityClass): readonly Configuration[] {
  const base = { mode: 'put', threads: -1 };
  if (durability === 'never' || suite === 'limit' || suite === 'ring') return [];
  const best: Configuration = { name: 'defaults', counts: true, options: base };
  const byHand: Configuration = {
    name: 'one transaction of N by hand',
    counts: false,
    options: { ...base, mode: 'transaction-waves' },
  };
  const inline: Configuration = {
    name: 'no threads',
    counts: false,
    options: { ...base, threads: 0 },
  };
  const fewer: Configuration = {
    name: '4 batches in flight',
    counts: true,
    options: { ...base, inFlight: 4 },
  };
  if (suite === 'durable') return [best, byHand, inline];
  return suite === 'load' ? [best, fewer, inline] : [best];
}

class TidemarkEngine implements Engine {
  readonly #handle: Handle;
  readonly #rows: RowCollection;
  readonly #byHand: boolean;

  constructor(handle: Handle, rows: RowCollection, byHand: boolean) {
    this.#handle = handle;
    this.#rows = rows;
    this.#byHand = byHand;
  }

  runLoop(loop: ClosedLoop, rows: Rows): Promise<void> {
    const collection = this.#rows;
    if (this.#byHand) {
      return waves(loop, (wave) => {
        const transaction = this.#handle.transaction();
        for (const row of wave) transaction.put(collection, rows.key(row), rows.value(row));
        return transaction.commit();
      });
    }
    return independentCallers(loop, (row) => collection.put(rows.key(row), rows.value(row)));
  }

  writeBatch(rows: Rows, from: number, count: number): Promise<unknown> {
    const transaction = this.#handle.transaction();
    for (let row = from; row < from + count; row++) {
      transaction.put(this.#rows, rows.key(row), rows.value(row));
    }
    return transaction.commit();
  }

  settle(): Promise<unknown> {
    return this.#handle.durable(this.#handle.upper - 1);
  }

  readMany(keys: readonly Buffer[]): number {
    const collection = this.#rows;
    let sum = 0;
    for (const key of keys) sum += collection.getSync(key)![0];
    return sum;
  }

  get(key: Buffer): Uint8Array | undefined {
    return this.#rows.getSync(key);
  }

  scan(visit: (key: Uint8Array, value: Uint8Array) => void): Promise<void> {
    for (const [key, value] of this.#rows.entries()) visit(key, value);
    return Promise.resolve();
  }

  liveRuns(): number {
    return Math.max(...this.#handle.stats().collections.map(({ runs }) => runs.length));
  }

  close(): Promise<unknown> {
    return this.#handle.close();
  }

  figures(): Record<string, number> {
    const figures: Record<string, number> = {};
    flatten('stats', this.#handle.stats(), figures);
    return figures;
  }
}

/** Every number of the engine's own account, by its path. */
function flatten(path: string, value: unknown, into: Record<string, number>): void {
  if (typeof value === 'number') {
    into[path] = value;
  } else if (typeof value === 'object' && value !== null) {
    for (const [key, part] of Object.entries(value)) flatten(`${path}.${key}`, part, into);
  }
}

export const tidemark: Driver = {
  name: 'tidemark',
  probe(root) {
    if (!existsSync(join(root, 'dist', 'actors', 'index.js'))) {
      return Promise.resolve({
        absent: 'dist/actors/index.js is missing; build it: npm run build',
      });
    }
    const text = readFileSync(join(root, 'package.json'), 'utf8');
    const { version }: { version: string } = JSON.parse(text);
    return Promise.resolve({ version });
  },
  configurations,
  async open(task) {
    // By its own name, so that what is measured is what is published: compiled, without a loader.
    const name: string = 'tidemark';
    const module: Tidemark = await import(name);
    const threads = numberOption(task, 'threads');
    const handle = await module.open(task.directory, {
      durability: task.durability === 'synced' ? 'synced' : 'buffered',
      memoryBytes: MEMORY_BYTES,
      memtableBytes: WRITE_BUFFER_BYTES,
      ...(threads < 0 ? {} : { threads }),
    });
    const rows = await handle.collection('rows', { key: 'buffer', value: 'buffer' });
    return new TidemarkEngine(handle, rows, textOption(task, 'mode') === 'transaction-waves');
  },
};
