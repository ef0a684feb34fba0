/**
 * Every kind of job that the pool runs, as plain data, and the machine that does it. A machine works
 * in steps, in private memory; flush jobs name a generation in the arena, all others name files.
 */
import { unreachable } from '../core/base/assert.ts';
import { CompressJob } from '../core/log/compress.ts';
import type { CompressRequest } from '../core/log/compress.ts';
import { SpareMaker, ZeroFill } from '../core/log/prepare.ts';
import { GenerationCursor, VERSIONS_ALL, VERSIONS_NEWEST } from '../core/memtable/cursor.ts';
import { GenerationReader } from '../core/memtable/reader.ts';
import { KIND_KEYED, KIND_MULTISET, OP_UPDATE } from '../core/base/update.ts';
import { Arena } from '../core/shared/arena.ts';
import { BufferPool } from '../core/shared/buffer-pool.ts';
import { FlushJob } from '../core/spine/flush-job.ts';
import type { FlushInput } from '../core/spine/flush-job.ts';
import { MergeJob } from '../core/spine/merge-job.ts';
import type { MergeRequest } from '../core/spine/merge-job.ts';
import type { FileIds } from '../core/spine/part-files.ts';
import type { PartShape } from '../core/spine/part-writer.ts';
import type { Storage } from '../core/storage/storage.ts';
import { topologyOf } from './topology.ts';

/** What a flush must know of a collection. Kind 0: it has no rows below the generation. */
export type FlushCollection = {
  readonly collection: number;
  /** Of its runs; 0 when it has none, then the rows say it. */
  readonly kind: number;
  readonly since: number;
  readonly oldest: boolean;
};

export type Job =
  | { readonly kind: 'zero'; path: string; seq: number; from: number; to: number }
  | { readonly kind: 'spare'; seq: number; bytes: number; reuseSeq: number; recycle: boolean }
  | {
      readonly kind: 'flush';
      jobId: number;
      generation: number;
      upper: number;
      collections: FlushCollection[];
      outFiles: FileIds;
      shape?: PartShape;
    }
  | { readonly kind: 'merge'; request: MergeRequest }
  | { readonly kind: 'compress'; request: CompressRequest };

export interface JobMachine {
  /** Works for about `fuel` rows; true while there is more. Throws when the job failed. */
  step(fuel: number): boolean;
  /** Stops and deletes what it made. */
  cancel(): void;
  /** Plain data. Requires: `step` returned false. */
  result(): unknown;
}

export function makeMachine(job: Job, storage: Storage, arena: Arena): JobMachine {
  switch (job.kind) {
    case 'zero':
      return new Preparation(new ZeroFill(storage, job));
    case 'spare':
      return new Preparation(new SpareMaker(storage, job));
    case 'flush': {
      return new FlushJob(storage, job, flushInputs(job, arena));
    }
    case 'merge':
      return new MergeJob(storage, job.request);
    case 'compress':
      return new CompressJob(storage, job.request);
    default:
      return unreachable(job);
  }
}

/** Collections in ascending order, each with all its versions and range deletes. */
function* flushInputs(job: Job & { kind: 'flush' }, arena: Arena): Generator<FlushInput> {
  const topology = topologyOf(arena.bytes);
  const pool = new BufferPool(arena, topology.poolTables, topology.firstPage);
  const reader = new GenerationReader(arena);
  reader.attach(job.generation);
  const ranges = reader.ranges();
  for (const { collection, kind, since, oldest } of job.collections) {
    const rows = new GenerationCursor(arena, pool);
    rows.open(job.generation, collection, job.upper - 1, VERSIONS_ALL);
    // Without a row here or below: range deletes alone, which are alike for every kind.
    const known = kind === 0 ? kindOfRows(rows) : kind;
    yield {
      collection,
      kind: known === 0 ? KIND_KEYED : known,
      since,
      oldest,
      rows,
      ranges: ranges.get(collection) ?? [],
    };
  }
}

/** Updates are a multiset's; a keyed collection has none. 0 = there is no row. */
function kindOfRows(rows: GenerationCursor): number {
  rows.first();
  if (!rows.valid) return 0;
  return rows.kind === OP_UPDATE ? KIND_MULTISET : KIND_KEYED;
}

/** Kind of the collection by its rows in a sealed generation; 0 = it has none there. */
export function kindIn(
  arena: Arena,
  pool: BufferPool,
  generation: number,
  upper: number,
  collection: number,
): number {
  const rows = new GenerationCursor(arena, pool);
  rows.open(generation, collection, upper - 1, VERSIONS_NEWEST);
  return kindOfRows(rows);
}

/** What sets of the range deletes of a sealed generation take. */
export function rangeSetBytesIn(arena: Arena, generation: number): number {
  const reader = new GenerationReader(arena);
  reader.attach(generation);
  return reader.rangeSetBytes();
}

/** Ids of the collections with rows in a sealed generation. */
export function collectionsIn(arena: Arena, generation: number): number[] {
  const reader = new GenerationReader(arena);
  reader.attach(generation);
  return reader.collections();
}

export type PreparationResult = {
  /** A spare that holds what was in its file before. */
  readonly recycled: boolean;
};

/** Zeroing jobs know nothing of fuel: a step is one call to the disk. */
class Preparation implements JobMachine {
  readonly #machine: ZeroFill | SpareMaker;

  constructor(machine: ZeroFill | SpareMaker) {
    this.#machine = machine;
  }

  step(): boolean {
    try {
      return this.#machine.step();
    } catch (error) {
      this.cancel();
      throw error;
    }
  }

  cancel(): void {
    try {
      this.#machine.abandon();
    } catch {
      // What could not be given back goes at the next open, or is filled after all.
    }
  }

  result(): PreparationResult {
    return { recycled: this.#machine instanceof SpareMaker && this.#machine.recycled };
  }
}
