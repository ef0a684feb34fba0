/**
 * What a merge leaves of the rows it meets: one policy per kind of collection. A policy is given rows in
 * order, keeps or drops each, and carries what it knows of the current key across blocks and parts.
 * Called once a row by flush and merge jobs, in private memory.
 */
import { equalAt } from '../base/bytes.ts';
import type { RowCursor } from '../base/cursor.ts';
import { corrupt, TidemarkError } from '../base/errors.ts';
import { le, lt } from '../base/frontier.ts';
import { KIND_KEYED, OP_DELETE } from '../base/update.ts';
import { copyAt, grown } from './copy.ts';

/** Where rows go. Both are called while the cursor stands on the row. */
export interface RowSink {
  keep(row: RowCursor): void;
  drop(row: RowCursor): void;
}

export interface Consolidation {
  /** Takes the next row. */
  row(row: RowCursor, sink: RowSink): void;
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
  throw new TidemarkError(
    'TIDEMARK_UNSUPPORTED_FORMAT',
    `no merge of collections of kind ${kind}`,
    {
      kind,
    },
  );
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

  row(row: RowCursor, sink: RowSink): void {
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
