/**
 * Parts as lists of updates in memory, merges done the naive way, and the naive model: an array of all
 * updates ever pushed. A merge here is right because it is short; the spine is compared with it.
 */
import { hashAt } from '../../core/base/bytes.ts';
import { partBytesTarget } from '../../core/base/limits.ts';
import type { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED } from '../../core/base/update.ts';
import { addSums, NO_SUMS, sumsOf } from '../../core/spine/batch.ts';
import type { Run, SpineBatch, SpinePart, Sums } from '../../core/spine/batch.ts';
import { mergePieces } from '../../core/spine/moved-parts.ts';
import type { MergeChoice } from '../../core/spine/policy.ts';
import type { MergeResult, Spine } from '../../core/spine/spine.ts';

/** Keyed: diff 1 is a put, -1 a tombstone. */
export type Update = {
  readonly key: number;
  readonly value: number;
  readonly time: number;
  readonly diff: number;
};

/** What a job is asked to do; computed when dispatched, answered later. */
export type Job = {
  readonly inputs: readonly number[];
  readonly runIds?: readonly number[];
  readonly runs: readonly Run[];
  readonly oldest: boolean;
  readonly since: number;
};

export class Files {
  readonly kind: number;
  readonly #files: Map<number, readonly Update[]> = new Map();
  /** What every part says it takes. */
  readonly partBytes: number = partBytesTarget / 2;
  #next = 1;

  constructor(kind: number) {
    this.kind = kind;
  }

  /** Parts of one run, in key order; about `partLen` updates each. */
  parts(updates: readonly Update[], partLen = 4): SpinePart[] {
    const sorted = updates.toSorted((a, b) => this.order(a, b));
    const parts: SpinePart[] = [];
    for (let i = 0; i < sorted.length; i += partLen) {
      parts.push(this.#part(sorted.slice(i, i + partLen)));
    }
    return parts;
  }

  order(a: Update, b: Update): number {
    if (a.key !== b.key) return a.key - b.key;
    return this.kind === KIND_KEYED ? b.time - a.time : a.value - b.value || a.time - b.time;
  }

  read(parts: readonly SpinePart[]): Update[] {
    return parts.flatMap((part) => this.#files.get(part.file) ?? []);
  }

  sums(updates: readonly Update[]): Sums {
    let sums: Sums = NO_SUMS;
    for (const update of updates) sums = addSums(sums, this.#sumsOf(update));
    return sums;
  }

  #sumsOf({ key, value, time, diff }: Update): Sums {
    const words = new Uint8Array(new Uint32Array([key, value, diff < 0 ? 1 : 0]).buffer);
    const h0 = hashAt(words, 0, words.length, 1);
    const h1 = hashAt(words, 0, words.length, 2);
    const keyed = this.kind === KIND_KEYED;
    const lanes: [number, number] = keyed
      ? [h0, Math.imul(h1, time)]
      : [Math.imul(hashAt(words, 0, 8, 1), diff), Math.imul(hashAt(words, 0, 8, 2), diff)];
    return { len: 1, diffSum: diff, hash: [lanes[0] >>> 0, lanes[1] >>> 0] };
  }

  #part(updates: readonly Update[]): SpinePart {
    const file = this.#next++;
    this.#files.set(file, updates);
    const { len, diffSum, hash } = this.sums(updates);
    const times = updates.map(({ time }) => time);
    const places = updates.map(({ key, value }) =>
      this.kind === KIND_KEYED ? key : key * 64 + value,
    );
    return {
      file,
      offset: 0,
      bytes: this.partBytes,
      len,
      keyLo: keyBytes(updates[0].key),
      keyHi: keyBytes(updates[updates.length - 1].key),
      minT: Math.min(...times),
      maxT: Math.max(...times),
      negatives: updates.filter(({ diff }) => diff < 0).length,
      rangeDeletes: 0,
      distinct: new Set(places).size,
      diffSum,
      hash,
    };
  }

  /** What a worker does: consolidate the inputs at `since`, and count what it left out; some parts it moves. */
  merge(job: Job, partLen = 4): MergeResult {
    const { since, oldest, runs } = job;
    const terms = { since, partBytes: this.partBytes, codec: 0, hiding: [] };
    const parts: SpinePart[] = [];
    let dropped: Sums = NO_SUMS;
    let folded = 0;
    const pieces = mergePieces(
      runs.map((run) => run.parts),
      terms,
    );
    for (const piece of pieces) {
      const inputs = piece.runs.flatMap((some) => this.read(some));
      const merged =
        this.kind === KIND_KEYED ? mergeKeyed(inputs, since, oldest) : mergeMultiset(inputs, since);
      parts.push(...this.parts(merged.output, partLen), ...piece.moved);
      dropped = addSums(dropped, this.sums(merged.dropped));
      folded += merged.folded;
    }
    return this.#result(job, parts, dropped, folded);
  }

  /** With other rows than those that were merged. */
  result(job: Job, output: readonly Update[], dropped: Sums, folded: number): MergeResult {
    return this.#result(job, this.parts(output), dropped, folded);
  }

  #result(job: Job, parts: readonly SpinePart[], dropped: Sums, folded: number): MergeResult {
    const runs = parts.length === 0 ? [] : [parts];
    const result = {
      inputs: job.inputs,
      since: job.since,
      runs,
      output: sumsOf(runs.map((run) => ({ parts: run }))),
      dropped,
      folded,
    };
    return job.runIds === undefined ? result : { ...result, runIds: job.runIds };
  }

  /** All updates that the spine points at. */
  updatesOf(spine: Spine): Update[] {
    const updates: Update[] = [];
    for (const batch of spine.batches()) {
      for (const { hollow } of batch.parts) {
        for (const run of hollow.runs) {
          for (const { file } of run.parts) {
            for (const update of this.#files.get(file) ?? []) updates.push(update);
          }
        }
      }
    }
    return updates;
  }

  /** What the collection holds at `asOf`, as sorted text, read through the spine. */
  contents(spine: Spine, asOf: number): string {
    return contentsAt(this.kind, this.updatesOf(spine), asOf);
  }
}

export function keyBytes(key: number): Uint8Array {
  return new Uint8Array([key >>> 8, key & 255]);
}

/** What updates say at `asOf`. */
export function contentsAt(kind: number, updates: readonly Update[], asOf: number): string {
  const rows: string[] = [];
  if (kind === KIND_KEYED) {
    const newest = new Map<number, Update>();
    for (const update of updates) {
      if (update.time > asOf) continue;
      if (update.time >= (newest.get(update.key)?.time ?? -1)) newest.set(update.key, update);
    }
    // The offset at which a row was written belongs to its contents.
    for (const { key, value, time, diff } of newest.values()) {
      if (diff > 0) rows.push(`${key}=${value}@${time}`);
    }
  } else {
    // Values are small: key and value are one number.
    const sums = new Map<number, number>();
    for (const { key, value, time, diff } of updates) {
      if (time > asOf) continue;
      const row = key * 64 + value;
      sums.set(row, (sums.get(row) ?? 0) + diff);
    }
    for (const [row, diff] of sums) {
      if (diff !== 0) rows.push(`${Math.floor(row / 64)}=${row % 64}*${diff}`);
    }
  }
  return rows.sort().join(' ');
}

type Merged = { output: Update[]; dropped: Update[]; folded: number };

function mergeKeyed(inputs: readonly Update[], since: number, oldest: boolean): Merged {
  const output: Update[] = [];
  const dropped: Update[] = [];
  const newestFirst = inputs.toSorted((a, b) => a.key - b.key || b.time - a.time);
  let key = -1;
  let isSettled = false;
  for (const update of newestFirst) {
    if (update.key !== key) isSettled = false;
    key = update.key;
    const isPast = update.time <= since;
    if (isSettled || (isPast && oldest && update.diff < 0)) dropped.push(update);
    else output.push(update);
    if (isPast) isSettled = true;
  }
  return { output, dropped, folded: 0 };
}

function mergeMultiset(inputs: readonly Update[], since: number): Merged {
  const groups = new Map<string, Update>();
  for (const { key, value, time, diff } of inputs) {
    const raised = Math.max(time, since);
    const name = `${key} ${value} ${raised}`;
    const sum = (groups.get(name)?.diff ?? 0) + diff;
    groups.set(name, { key, value, time: raised, diff: sum });
  }
  const output = [...groups.values()].filter(({ diff }) => diff !== 0);
  return { output, dropped: [], folded: inputs.length - output.length };
}

/** The job of a choice. */
export function jobOf(choice: MergeChoice, since: number): Job {
  const job = { inputs: choice.inputs, runs: choice.runs, oldest: choice.oldest, since };
  return choice.runIds === undefined ? job : { ...job, runIds: choice.runIds };
}

/** A job that no policy would choose: any neighbours, or some runs of one batch. */
export function randomJob(
  batches: readonly SpineBatch[],
  since: number,
  prng: Prng,
): Job | undefined {
  if (batches.length === 0) return undefined;
  const index = prng.below(batches.length);
  const { parts } = batches[index];
  const from = prng.below(parts.length);
  const to = from + 1 + prng.below(parts.length - from);
  const inputs = parts.slice(from, to);
  const before = [...batches.slice(0, index).flatMap((b) => b.parts), ...parts.slice(0, from)];
  const oldest = before.every(({ hollow }) => hollow.runs.length === 0);
  const runs = inputs.flatMap(({ hollow }) => hollow.runs);
  const bids = inputs.map(({ hollow }) => hollow.bid);
  if (inputs.length > 1 || runs.length < 2 || prng.chance(0.5)) {
    return { inputs: bids, runs, oldest, since };
  }
  const first = prng.below(runs.length);
  const some = runs.slice(first, first + 1 + prng.below(runs.length - first));
  const runIds = some.map(({ runId }) => runId);
  return { inputs: bids, runIds, runs: some, oldest: oldest && first === 0, since };
}
