/**
 * What a merge leaves of the rows it meets: one policy per kind of collection. A policy is given rows in
 * order, keeps or drops each, and carries what it knows of the current key across blocks and parts.
 * Called once a row by flush and merge jobs, in private memory.
 */
import { equalAt, NO_BYTES } from '../base/bytes.ts';
import type { Row } from '../base/cursor.ts';
import { corrupt, TidemarkError } from '../base/errors.ts';
import { advance, le, lt } from '../base/frontier.ts';
import { rangeSetOf } from '../base/range-set.ts';
import type { RangeDelete, RangeSetReader } from '../base/range-set.ts';
import { KIND_KEYED, KIND_MULTISET, OP_DELETE, OP_UPDATE } from '../base/update.ts';
import { copyAt, grown } from '../base/copy.ts';

/** Where rows go. Each row that is given is kept, dropped or folded; a kept one may be several folded into it. */
export interface RowSink {
  keep(row: Row): void;
  drop(row: Row): void;
  /** A row fell together with another. */
  fold(): void;
}

export interface Consolidation {
  /** Takes the next row. */
  row(row: Row, sink: RowSink): void;
  /** There are no more rows of this run. */
  end(sink: RowSink): void;
}

export type ConsolidationTerms = {
  /** Times below it may be blurred: of a key, the newest version at or below it stands for all older. */
  since: number;
  /** The inputs hold the collection's oldest run: nothing older is left that a tombstone hides. */
  oldest: boolean;
  /** Rows at or above it are dropped, to truncate a store. */
  cut?: number;
};

export function consolidation(kind: number, terms: ConsolidationTerms): Consolidation {
  if (kind === KIND_KEYED) return new KeyedConsolidation(terms);
  if (kind === KIND_MULTISET) return new MultisetConsolidation(terms);
  throw new TidemarkError(
    'TIDEMARK_UNSUPPORTED_FORMAT',
    `no merge of collections of kind ${kind}`,
    {
      kind,
    },
  );
}

/** The same policy without the rows that range deletes hide for good: it never sees them. */
export function hidden(policy: Consolidation, hiding: readonly RangeDelete[]): Consolidation {
  return hiding.length === 0 ? policy : new HidingConsolidation(policy, rangeSetOf(hiding));
}

/** For every kind: rows below a range delete that all readers see are dropped, the others are the policy's. */
class HidingConsolidation implements Consolidation {
  readonly #policy: Consolidation;
  readonly #hiding: RangeSetReader;

  constructor(policy: Consolidation, hiding: RangeSetReader) {
    this.#policy = policy;
    this.#hiding = hiding;
  }

  row(row: Row, sink: RowSink): void {
    const { keyBytes, keyOffset, keyLength, time } = row;
    const newest = this.#hiding.newest(0, keyBytes, keyOffset, keyLength, time, Infinity);
    if (newest !== time) sink.drop(row);
    else this.#policy.row(row, sink);
  }

  end(sink: RowSink): void {
    this.#policy.end(sink);
  }
}

/**
 * Keyed: per key every version above `since` stays, and the newest at or below it, unless that is a
 * tombstone with nothing older to hide. Times never change.
 */
class KeyedConsolidation implements Consolidation {
  readonly #since: number;
  readonly #oldest: boolean;
  readonly #cut: number;
  /** The key of the row before; its length is -1 before the first. */
  #key: Uint8Array;
  #keyLength: number;
  #time: number;
  /** A version of the key at or below `since` was met: all older ones go. */
  #settled: boolean;

  constructor(terms: ConsolidationTerms) {
    this.#since = terms.since;
    this.#oldest = terms.oldest;
    this.#cut = terms.cut ?? Number.MAX_SAFE_INTEGER;
    this.#key = new Uint8Array(256);
    this.#keyLength = -1;
    this.#time = -1;
    this.#settled = false;
  }

  row(row: Row, sink: RowSink): void {
    const { keyBytes, keyOffset, keyLength, time } = row;
    if (equalAt(keyBytes, keyOffset, keyLength, this.#key, 0, this.#keyLength)) {
      if (time === this.#time) throw duplicate(time);
    } else {
      if (keyLength > this.#key.length) this.#key = grown(this.#key, 0, keyLength);
      copyAt(keyBytes, keyOffset, keyLength, this.#key, 0);
      this.#keyLength = keyLength;
      this.#settled = false;
    }
    this.#time = time;
    if (le(this.#cut, time)) {
      sink.drop(row);
    } else if (lt(this.#since, time)) {
      sink.keep(row);
    } else if (this.#settled) {
      sink.drop(row);
    } else {
      this.#settled = true;
      if (this.#oldest && row.kind === OP_DELETE) sink.drop(row);
      else sink.keep(row);
    }
  }

  end(): void {
    this.#keyLength = -1;
  }
}

function duplicate(time: number): TidemarkError {
  return corrupt('DUPLICATE_VERSION', `two versions of one key have offset ${time}`, { time });
}

/**
 * Multiset: times below `since` are raised to it, then diffs of one key, value and time add up, and what
 * comes to nothing goes. Two diffs whose sum is no safe integer stay apart: what was written is never
 * lost, nor is a merge for it; who reads the sum is told.
 */
class MultisetConsolidation implements Consolidation {
  readonly #since: number;
  readonly #cut: number;
  /** The sum of rows so far; its diff may be 0. */
  readonly #sum: FoldedRow;

  constructor(terms: ConsolidationTerms) {
    this.#since = terms.since;
    this.#cut = terms.cut ?? Number.MAX_SAFE_INTEGER;
    this.#sum = new FoldedRow();
  }

  row(row: Row, sink: RowSink): void {
    if (le(this.#cut, row.time)) {
      sink.drop(row);
      return;
    }
    row.loadValue();
    const time = advance(row.time, this.#since);
    const sum = this.#sum;
    if (sum.isOf(row, time)) {
      const diff = sum.diff + row.diff;
      if (Number.isSafeInteger(diff)) {
        sum.diff = diff;
        sink.fold();
        return;
      }
    }
    this.#close(sink);
    sum.take(row, time);
  }

  end(sink: RowSink): void {
    this.#close(sink);
  }

  #close(sink: RowSink): void {
    const sum = this.#sum;
    if (!sum.taken) return;
    if (sum.diff === 0) sink.fold();
    else sink.keep(sum);
    sum.taken = false;
  }
}

/** A row of its own, with key and value copied. */
class FoldedRow implements Row {
  taken = false;
  keyBytes: Uint8Array = NO_BYTES;
  keyOffset = 0;
  keyLength = 0;
  time = -1;
  kind: number = OP_UPDATE;
  diff = 0;
  valueLength = 0;
  valueBytes: Uint8Array = NO_BYTES;
  valueOffset = 0;

  loadValue(): void {}

  isOf(row: Row, time: number): boolean {
    return (
      this.taken &&
      this.time === time &&
      equalAt(this.keyBytes, 0, this.keyLength, row.keyBytes, row.keyOffset, row.keyLength) &&
      equalAt(
        this.valueBytes,
        0,
        this.valueLength,
        row.valueBytes,
        row.valueOffset,
        row.valueLength,
      )
    );
  }

  /** Requires: the row's value is loaded. */
  take(row: Row, time: number): void {
    const { keyLength, valueLength } = row;
    if (keyLength > this.keyBytes.length) this.keyBytes = grown(NO_BYTES, 0, keyLength);
    if (valueLength > this.valueBytes.length) this.valueBytes = grown(NO_BYTES, 0, valueLength);
    copyAt(row.keyBytes, row.keyOffset, keyLength, this.keyBytes, 0);
    copyAt(row.valueBytes, row.valueOffset, valueLength, this.valueBytes, 0);
    this.keyLength = keyLength;
    this.valueLength = valueLength;
    this.time = time;
    this.diff = row.diff;
    this.taken = true;
  }
}
