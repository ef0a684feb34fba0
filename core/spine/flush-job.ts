/**
 * The flush job: turns sealed memtable rows into one run for each touched collection, small ones one
 * behind the other in a file. The caller supplies cursors, for generations lie in memory that this
 * place knows nothing of; the result is plain JSON. Same rows, same bytes. Outputs are synced before
 * the result exists, and deleted when there will be none. Run on a worker's or the host's thread.
 */
import { invariant } from '../base/assert.ts';
import type { RowCursor } from '../base/cursor.ts';
import type { RangeDelete } from '../base/range-set.ts';
import type { Storage } from '../storage/storage.ts';
import { consolidation, hidden } from './consolidate.ts';
import type { Consolidation } from './consolidate.ts';
import type { CreatedFile, FileIds } from './part-files.ts';
import { partRef } from './part-format.ts';
import type { PartRef } from './part-format.ts';
import { divideRanges, hidingFor } from './range-block.ts';
import { PART_SHAPE } from './part-writer.ts';
import type { PartShape } from './part-writer.ts';
import { figuresOf, rowFuel, RunOutput, sumsOfParts } from './run-output.ts';
import type { RowFigures } from './run-output.ts';

/** The rows of one collection; the job places the cursor. */
export type FlushInput = {
  collection: number;
  kind: number;
  since: number;
  /** The collection has no run yet: a tombstone at or below `since` hides nothing. */
  oldest: boolean;
  rows: RowCursor;
  /** Range deletes of the collection, in any order; none when left out. */
  ranges?: readonly RangeDelete[];
};

export type FlushRequest = { jobId: number; outFiles: FileIds; shape?: PartShape };

export type FlushedCollection = RowFigures & {
  collection: number;
  kind: number;
  since: number;
  /** The parts of its run, ascending; none when no row is left. */
  parts: PartRef[];
  dropped: RowFigures;
};

export type FlushResult = {
  jobId: number;
  collections: FlushedCollection[];
  createdFiles: CreatedFile[];
  stats: { rowsIn: number; bytesWritten: number };
};

export class FlushJob {
  readonly #request: FlushRequest;
  readonly #inputs: Iterator<FlushInput>;
  readonly #output: RunOutput;
  readonly #collections: FlushedCollection[] = [];
  #input: FlushInput | undefined;
  #policy: Consolidation | undefined;
  #rows: number;
  #result: FlushResult | undefined;

  constructor(storage: Storage, request: FlushRequest, inputs: Iterable<FlushInput>) {
    this.#request = request;
    this.#inputs = inputs[Symbol.iterator]();
    this.#output = new RunOutput(storage, request.outFiles, request.shape ?? PART_SHAPE);
    this.#rows = 0;
  }

  /** Rows done so far. */
  get progress(): number {
    return this.#rows;
  }

  /** Works for about so many rows; true while there is more to do. Throws when the job has failed. */
  step(fuel: number): boolean {
    invariant(this.#result === undefined, 'a finished job is not stepped');
    try {
      let left = fuel;
      while (left > 0) {
        if (this.#input !== undefined) {
          left = this.#flushRows(left);
        } else if (this.#nextInput()) {
          // A collection costs something even when it is empty.
          left -= 1;
        } else {
          this.#result = this.#finish();
          return false;
        }
      }
      return true;
    } catch (error) {
      this.cancel();
      throw error;
    }
  }

  /** Stops, and deletes what was written. */
  cancel(): void {
    if (this.#result !== undefined) return;
    try {
      this.#output.abandon();
    } catch {
      // What could not be deleted is an orphan; the sweep of the next open takes it.
    }
  }

  /** Requires: `step` has returned false. */
  result(): FlushResult {
    invariant(this.#result !== undefined, 'the job has finished');
    return this.#result;
  }

  #nextInput(): boolean {
    const next = this.#inputs.next();
    if (next.done === true) return false;
    const input = next.value;
    this.#input = input;
    const { kind, since, oldest, ranges = [] } = input;
    const terms = { since, oldest, own: ranges, hiding: [] };
    const { kept, dropped } = divideRanges(terms);
    this.#policy = hidden(consolidation(kind, input), hidingFor(terms));
    this.#output.begin(kind);
    this.#output.ranges(kept, dropped);
    input.rows.first();
    return true;
  }

  /** Returns the fuel left. */
  #flushRows(fuel: number): number {
    const { rows } = this.#input!;
    const policy = this.#policy!;
    const output = this.#output;
    let left = fuel;
    let count = 0;
    while (rows.valid && left > 0) {
      left -= rowFuel(rows);
      policy.row(rows, output);
      rows.next();
      count += 1;
    }
    this.#rows += count;
    if (!rows.valid) this.#endInput();
    return left;
  }

  #endInput(): void {
    const { collection, kind, since } = this.#input!;
    this.#policy!.end(this.#output);
    this.#input = undefined;
    const parts = this.#output.end();
    this.#collections.push({
      collection,
      kind,
      since,
      parts: parts.map(partRef),
      ...figuresOf(sumsOfParts(parts)),
      dropped: figuresOf(this.#output.dropped),
    });
  }

  #finish(): FlushResult {
    const createdFiles = this.#output.finish();
    return {
      jobId: this.#request.jobId,
      collections: this.#collections,
      createdFiles,
      stats: {
        rowsIn: this.#rows,
        bytesWritten: createdFiles.reduce((sum, file) => sum + file.bytes, 0),
      },
    };
  }
}
