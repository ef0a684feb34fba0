/**
 * lmdb 3.5. By default a commit resolves before its sync, which follows by itself: that is the lazy
 * class. Synced waits for the `flushed` promise of the write (or of the store, after `transaction`),
 * or turns overlapping sync off, whichever is faster. Never is `noSync`. It has no memory setting:
 * it maps its file and lives in the page cache, which all engines share. With a write map it also
 * collects its dirty pages there, and syncs them with msync. Called by the suites.
 *
 * Values go in as Buffers that nobody changes afterwards (lmdb reads them from its own thread), and
 * come out with `getBinary`, a copy that the caller owns; `getBinaryFast` lends one buffer for all
 * reads and is shown beside it.
 */
import type { Configuration, DurabilityClass, SuiteName, Task } from '../task.ts';
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

type Written = Promise<unknown> & { flushed?: Promise<unknown> };

interface Store {
  put(key: Buffer, value: Buffer): Written;
  batch(write: () => void): Written;
  transaction(write: () => void): Promise<unknown>;
  getBinary(key: Buffer): Buffer | undefined;
  getBinaryFast(key: Buffer): Buffer | undefined;
  getRange(options: { snapshot?: boolean }): Iterable<{ key: Buffer; value: Buffer }>;
  readonly flushed: PromiseLike<unknown>;
  close(): Promise<void>;
}

interface Module {
  open(options: Record<string, unknown>): Store;
}

/** Larger than any data set here, so that the map never has to grow during a run. */
const MAP_BYTES = 8 * 2 ** 30;

function configurations(suite: SuiteName, durability: DurabilityClass): readonly Configuration[] {
  const base = { mode: 'put', overlap: true, pageSize: 4096, writeMap: false, read: 'getBinary' };
  const named = (
    name: string,
    change: Record<string, string | number | boolean>,
    counts = true,
  ): Configuration => ({ name, counts, options: { ...base, ...change } });
  const durable: readonly Configuration[] = [
    named('put, sync in commit', { overlap: false }),
    named('put, flushed', {}),
    named('put, write map', { overlap: false, writeMap: true }),
    named('N puts, then flushed', { mode: 'put-waves' }),
    named('transaction each', { mode: 'transaction', overlap: false }),
    named('one transaction of N', { mode: 'transaction-waves', overlap: false }),
  ];
  const load: readonly Configuration[] = [
    named('puts of one turn', {}),
    named('puts of one turn, 4 batches in flight', { inFlight: 4 }),
    named('puts of one turn, write map', { writeMap: true }),
    named('puts of one turn, pages of 8 KiB', { pageSize: 8192 }),
    named('transaction', { mode: 'transaction' }),
    ...(durability === 'synced'
      ? [
          named('puts of one turn, write map, sync in commit', {
            writeMap: true,
            overlap: false,
          }),
        ]
      : []),
  ];
  const plain: readonly Configuration[] = [named('defaults', {})];
  const reads: readonly Configuration[] = [
    named('getBinary', {}),
    named('getBinaryFast (lent bytes)', { read: 'getBinaryFast' }, false),
  ];
  const bySuite: Partial<Record<SuiteName, readonly Configuration[]>> = {
    durable,
    load,
    sustained: [
      named('puts of one turn, write map', { writeMap: true }),
      named('puts of one turn', {}),
    ],
    prepare: plain,
    open: plain,
    scan: plain,
    'point-all': reads,
    'point-hot': reads,
  };
  return bySuite[suite] ?? [];
}

class LmdbEngine implements Engine {
  readonly #store: Store;
  readonly #mode: string;
  readonly #synced: boolean;
  readonly #lends: boolean;

  constructor(store: Store, task: Task) {
    this.#store = store;
    this.#mode = textOption(task, 'mode');
    this.#synced = task.durability === 'synced';
    this.#lends = textOption(task, 'read') === 'getBinaryFast';
  }

  runLoop(loop: ClosedLoop, rows: Rows): Promise<void> {
    const store = this.#store;
    switch (this.#mode) {
      case 'put-waves':
        return waves(loop, async (wave) => {
          let last: Written | undefined;
          for (const row of wave) last = store.put(rows.key(row), rows.value(row));
          await this.#acknowledged(last!);
        });
      case 'transaction':
        return independentCallers(loop, (row) =>
          this.#transact(() => void store.put(rows.key(row), rows.value(row))),
        );
      case 'transaction-waves':
        return waves(loop, (wave) =>
          this.#transact(() => {
            for (const row of wave) void store.put(rows.key(row), rows.value(row));
          }),
        );
      default:
        return independentCallers(loop, (row) =>
          this.#acknowledged(store.put(rows.key(row), rows.value(row))),
        );
    }
  }

  #acknowledged(written: Written): Promise<unknown> {
    if (!this.#synced) return written;
    if (written.flushed === undefined) throw new Error('lmdb gave no flushed promise');
    return written.flushed;
  }

  async #transact(write: () => void): Promise<void> {
    await this.#store.transaction(write);
    if (this.#synced) await this.#store.flushed;
  }

  writeBatch(rows: Rows, from: number, count: number): Promise<unknown> {
    const store = this.#store;
    if (this.#mode === 'transaction') {
      return this.#transact(() => {
        for (let row = from; row < from + count; row++) {
          void store.put(rows.key(row), rows.value(row));
        }
      });
    }
    let last: Written | undefined;
    for (let row = from; row < from + count; row++) {
      last = store.put(rows.key(row), rows.value(row));
    }
    return this.#acknowledged(last!);
  }

  async settle(): Promise<unknown> {
    return this.#store.flushed;
  }

  readMany(keys: readonly Buffer[]): number {
    const store = this.#store;
    let sum = 0;
    if (this.#lends) {
      for (const key of keys) sum += store.getBinaryFast(key)![0];
    } else {
      for (const key of keys) sum += store.getBinary(key)![0];
    }
    return sum;
  }

  get(key: Buffer): Uint8Array | undefined {
    return this.#store.getBinary(key);
  }

  scan(visit: (key: Uint8Array, value: Uint8Array) => void): Promise<void> {
    for (const entry of this.#store.getRange({})) visit(entry.key, entry.value);
    return Promise.resolve();
  }

  close(): Promise<unknown> {
    return this.#store.close();
  }

  figures(): Record<string, number> {
    return {};
  }
}

export const lmdb: Driver = {
  name: 'lmdb',
  probe: (root) => Promise.resolve(probePeer(root, 'lmdb')),
  configurations,
  open(task) {
    const module: Module = requirePeer(task.root, 'lmdb');
    const never = task.durability === 'never';
    const store = module.open({
      path: task.directory,
      encoding: 'binary',
      keyEncoding: 'binary',
      mapSize: MAP_BYTES,
      noMemInit: true,
      compression: false,
      separateFlushed: true,
      pageSize: numberOption(task, 'pageSize'),
      useWritemap: flagOption(task, 'writeMap'),
      ...(never ? { noSync: true } : { overlappingSync: flagOption(task, 'overlap') }),
    });
    return Promise.resolve(new LmdbEngine(store, task));
  },
};
