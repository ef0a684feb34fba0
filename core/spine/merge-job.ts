/**
 * The merge job (spine.md 3): reads the listed runs, merges and consolidates their rows, writes them as
 * one run. A part that a merge would only copy is not read: the result names it where it lies. Plain JSON
 * in and out; everything else it needs is the folder, so that a worker thread, the host's own thread a
 * slice at a time, or another process can run it: same job, same bytes. Its outputs are synced before the
 * result exists, and deleted when there will be none.
 */
import { invariant } from '../base/assert.ts';
import { corrupt, TidemarkError } from '../base/errors.ts';
import { isFrontier, le } from '../base/frontier.ts';
import { fanInMax } from '../base/limits.ts';
import type { RangeDelete } from '../base/range-set.ts';
import type { Storage } from '../storage/storage.ts';
import type { Description } from './batch.ts';
import { consolidation, hidden } from './consolidate.ts';
import type { Consolidation } from './consolidate.ts';
import { MergeCursor } from './merge-cursor.ts';
import { mergePieces } from './moved-parts.ts';
import type { MergePiece } from './moved-parts.ts';
import type { CreatedFile, FileIds } from './part-files.ts';
import { isRangePart, partRef } from './part-format.ts';
import type { PartInfo, PartRef } from './part-format.ts';
import { readAllRanges, readFooters } from './part-reader.ts';
import { PART_SHAPE } from './part-writer.ts';
import type { PartShape } from './part-writer.ts';
import { divideRanges, hidingFor } from './range-block.ts';
import { RowSums } from './row-hash.ts';
import { OwnRunParts, RunCursor, checkRunOrder } from './run-cursor.ts';
import { figuresOf, rowFuel, RunOutput, sumsOfParts } from './run-output.ts';
import type { RowFigures } from './run-output.ts';

/** Runs of one hollow batch, oldest first: all of them, or some for a partial result. */
export type MergeInput = {
  bid: number;
  desc: Description;
  runs: { runId: number; parts: PartRef[] }[];
};

export type MergeRequest = {
  jobId: number;
  collection: number;
  kind: number;
  /** Oldest first, neighbours in time. */
  inputs: MergeInput[];
  since: number;
  /** The inputs hold the collection's oldest run. */
  oldest: boolean;
  /** Parts of newer runs with range deletes that may hide rows of the inputs; none when left out. */
  hiding?: PartRef[];
  /** Drops rows at or above it, to truncate a store. */
  cut?: number;
  outFiles: FileIds;
  shape?: PartShape;
};

export type MergeResult = {
  jobId: number;
  collection: number;
  inputs: { bid: number; runIds: number[] }[];
  since: number;
  /** One run, or none when nothing is left. Parts that no created file holds are the inputs' own. */
  runs: { parts: PartRef[] }[];
  len: number;
  diffSum: number;
  hash: [number, number];
  dropped: RowFigures;
  /** Rows that became part of another one; always 0 for keyed collections. */
  folded: number;
  createdFiles: CreatedFile[];
  stats: {
    /** Rows read, and range deletes; those of parts that were moved are not. */
    rowsIn: number;
    bytesRead: number;
    bytesWritten: number;
    partsMoved: number;
    bytesMoved: number;
  };
};

export class MergeJob {
  readonly #storage: Storage;
  readonly #request: MergeRequest;
  #policy: Consolidation;
  readonly #output: RunOutput;
  #inputs: RowSums | undefined;
  readonly #cursors: RunCursor[] = [];
  readonly #merge: MergeCursor;
  /** What is left to do, in key order; the first is under way. */
  #pieces: MergePiece<PartInfo>[] = [];
  #partsMoved: number;
  #bytesMoved: number;
  #rows: number;
  #ranges: number;
  #result: MergeResult | undefined;

  constructor(storage: Storage, request: MergeRequest) {
    const { kind, since, oldest, cut } = request;
    this.#storage = storage;
    this.#request = request;
    this.#policy = consolidation(
      kind,
      cut === undefined ? { since, oldest } : { since, oldest, cut },
    );
    this.#output = new RunOutput(storage, request.outFiles, request.shape ?? PART_SHAPE);
    this.#merge = new MergeCursor([]);
    this.#rows = 0;
    this.#ranges = 0;
    this.#partsMoved = 0;
    this.#bytesMoved = 0;
  }

  /** Rows done so far. */
  get progress(): number {
    return this.#rows;
  }

  /** Works for about so many rows; true while there is more to do. Throws when the job has failed. */
  step(fuel: number): boolean {
    invariant(this.#result === undefined, 'a finished job is not stepped');
    try {
      if (this.#inputs === undefined) this.#open();
      if (this.#mergeRows(fuel)) return true;
      this.#result = this.#finish();
      return false;
    } catch (error) {
      this.#clear();
      throw error;
    }
  }

  /** Stops, and deletes what was written. */
  cancel(): void {
    if (this.#result === undefined) this.#clear();
  }

  /** Requires: `step` has returned false. */
  result(): MergeResult {
    invariant(this.#result !== undefined, 'the job has finished');
    return this.#result;
  }

  #open(): void {
    checkRequest(this.#request);
    const runs = this.#request.inputs.flatMap((input) => input.runs);
    invariant(runs.length > 0 && runs.length <= fanInMax, 'a job has runs', runs.length);
    const all: PartInfo[] = [];
    const rangeParts: PartInfo[] = [];
    const rowParts: PartInfo[][] = [];
    for (const run of runs) {
      const parts = readFooters(this.#storage, run.parts);
      for (const part of parts) {
        if (part.kind !== this.#request.kind && !isRangePart(part)) {
          throw corrupt(
            'WRONG_KIND',
            `part at ${part.offset} of file ${part.file} is of kind ${part.kind}`,
            {
              file: part.file,
              offset: part.offset,
            },
          );
        }
      }
      all.push(...parts);
      rangeParts.push(...parts.filter(isRangePart));
      const rows = parts.filter((part) => !isRangePart(part));
      checkRunOrder(rows);
      rowParts.push(rows);
      this.#cursors.push(new RunCursor(this.#storage, new OwnRunParts(this.#storage, [])));
    }
    this.#inputs = sumsOfParts(all);
    this.#output.begin(this.#request.kind);
    const hiding = this.#beginRanges(rangeParts);
    this.#pieces = this.#plan(rowParts, hiding);
    this.#beginPiece();
  }

  #plan(runs: readonly PartInfo[][], hiding: readonly RangeDelete[]): MergePiece<PartInfo>[] {
    const { since, cut, shape = PART_SHAPE } = this.#request;
    // A store that is cut is written anew, whatever it costs.
    if (cut !== undefined) return [{ runs, moved: [] }];
    const { partBytes, codec = 0 } = shape;
    return mergePieces(runs, { since, partBytes, codec, hiding });
  }

  /** Stands before the first row of the first piece. */
  #beginPiece(): void {
    const sources: RunCursor[] = [];
    this.#pieces[0].runs.forEach((parts, i) => {
      if (parts.length === 0) return;
      this.#cursors[i].reset(new OwnRunParts(this.#storage, parts));
      sources.push(this.#cursors[i]);
    });
    this.#merge.reset(sources);
    this.#merge.first();
  }

  /** Every row of the piece is done: what follows it follows as it is. False: that was the last. */
  #endPiece(): boolean {
    this.#policy.end(this.#output);
    const { moved } = this.#pieces.shift()!;
    this.#output.move(moved);
    this.#partsMoved += moved.length;
    for (const part of moved) this.#bytesMoved += part.bytes;
    if (this.#pieces.length === 0) return false;
    this.#beginPiece();
    return true;
  }

  /** Range deletes are few: they are settled before the first row. Returns those that hide rows for good. */
  #beginRanges(rangeParts: readonly PartInfo[]): RangeDelete[] {
    const storage = this.#storage;
    const own = readAllRanges(storage, rangeParts);
    const hiding = readAllRanges(storage, readFooters(storage, this.#request.hiding ?? []));
    const terms = { ...this.#request, own, hiding };
    const { kept, dropped } = divideRanges(terms);
    this.#output.ranges(kept, dropped);
    const final = hidingFor(terms);
    this.#policy = hidden(this.#policy, final);
    this.#ranges = own.length;
    return final;
  }

  #mergeRows(fuel: number): boolean {
    const merge = this.#merge;
    const policy = this.#policy;
    const output = this.#output;
    let left = fuel;
    let rows = 0;
    do {
      while (merge.valid) {
        if (left <= 0) {
          this.#rows += rows;
          return true;
        }
        left -= rowFuel(merge);
        policy.row(merge, output);
        merge.next();
        rows += 1;
      }
    } while (this.#endPiece());
    this.#rows += rows;
    return false;
  }

  #finish(): MergeResult {
    const { jobId, collection, since, inputs } = this.#request;
    const parts = this.#output.end();
    const output = figuresOf(sumsOfParts(parts));
    this.#checkSums(output);
    const createdFiles = this.#output.finish();
    for (const cursor of this.#cursors) cursor.leave();
    return {
      jobId,
      collection,
      inputs: inputs.map(({ bid, runs }) => ({ bid, runIds: runs.map((run) => run.runId) })),
      since,
      runs: parts.length === 0 ? [] : [{ parts: parts.map(partRef) }],
      ...output,
      dropped: figuresOf(this.#output.dropped),
      folded: this.#output.folded,
      createdFiles,
      stats: {
        rowsIn: this.#rows + this.#ranges,
        bytesRead: this.#cursors.reduce((sum, cursor) => sum + cursor.bytesRead, 0),
        bytesWritten: createdFiles.reduce((sum, file) => sum + file.bytes, 0),
        partsMoved: this.#partsMoved,
        bytesMoved: this.#bytesMoved,
      },
    };
  }

  /** What the footers of the inputs promise must have been kept or dropped, row for row. */
  #checkSums(output: RowFigures): void {
    const met = new RowSums();
    const { dropped } = this.#output;
    met.addSums(output.len, output.diffSum, output.hash);
    met.addSums(dropped.len, dropped.diffSum, dropped.hash());
    met.len += this.#output.folded;
    const promised = figuresOf(this.#inputs!);
    const found = figuresOf(met);
    if (JSON.stringify(promised) === JSON.stringify(found)) return;
    throw corrupt('HASH_MISMATCH', 'the rows of the inputs are not those their footers promise', {
      promised,
      found,
    });
  }

  #clear(): void {
    for (const cursor of this.#cursors) {
      try {
        cursor.leave();
      } catch {
        // The failure that ended the job is the one to tell.
      }
    }
    try {
      this.#output.abandon();
    } catch {
      // What could not be deleted is an orphan; the sweep of the next open takes it.
    }
  }
}

/**
 * Whoever sent it may be another process: what lies between two inputs must be nobody's, for in keyed
 * collections the order of runs is meaning, and nothing that an input has forgotten can be promised.
 */
function checkRequest({ inputs, since }: MergeRequest): void {
  let upper: number | undefined;
  for (const { bid, desc } of inputs) {
    if (!isFrontier(desc.lower) || !isFrontier(desc.upper) || !le(desc.lower, desc.upper)) {
      throw badRequest('BATCH_BOUNDS', `batch ${bid} covers [${desc.lower}, ${desc.upper})`);
    }
    if (upper !== undefined && desc.lower !== upper) {
      throw badRequest(
        'BATCH_GAP',
        `batch ${bid} begins at ${desc.lower}, the one before ends at ${upper}`,
      );
    }
    if (!isFrontier(since) || !le(desc.since, since)) {
      throw badRequest('BATCH_SINCE', `batch ${bid} has forgotten ${desc.since}, the job ${since}`);
    }
    upper = desc.upper;
  }
}

function badRequest(finding: string, message: string): TidemarkError {
  return new TidemarkError('TIDEMARK_INTERNAL', `a merge that cannot be: ${message}`, { finding });
}
