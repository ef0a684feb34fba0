/**
 * Walks any number of cursors as one, in order of rows (core/base/cursor.ts), then the cursors' own. A loser tree: every inner node remembers the cursor that lost there, so that a step plays only
 * the matches on one path.
 *
 *            tree[1]                  leaf of source s: count + s; its parent: >> 1
 *         2           3               tree[n]: the source that lost at node n
 *       4   5       6   7             winner: the source that lost nowhere
 *     s0 s1 s2 s3 s4 s5 s6 s7
 *
 * Sources that stand on no row lose against all others. Used by merge jobs, on a worker's thread, and
 * by range reads, on a client's.
 */
import { compareAt, NO_BYTES } from '../base/bytes.ts';
import type { RowCursor } from '../base/cursor.ts';
import { invariant } from '../base/assert.ts';
import { OP_UPDATE } from '../base/update.ts';

const FORWARD = 1;
const BACKWARD = -1;

/** True when the row of `a`, source i, comes before the row of `b`, source j. Both stand on a row. */
function isBefore(a: RowCursor, i: number, b: RowCursor, j: number): boolean {
  const order = compareAt(
    a.keyBytes,
    a.keyOffset,
    a.keyLength,
    b.keyBytes,
    b.keyOffset,
    b.keyLength,
  );
  if (order !== 0) return order < 0;
  if (a.kind === OP_UPDATE) return isUpdateBefore(a, i, b, j);
  if (a.time !== b.time) return a.time > b.time;
  return i < j;
}

/** The same among updates of one key. */
function isUpdateBefore(a: RowCursor, i: number, b: RowCursor, j: number): boolean {
  a.loadValue();
  b.loadValue();
  const order = compareAt(
    a.valueBytes,
    a.valueOffset,
    a.valueLength,
    b.valueBytes,
    b.valueOffset,
    b.valueLength,
  );
  if (order !== 0) return order < 0;
  if (a.time !== b.time) return a.time < b.time;
  return i < j;
}

export class MergeCursor implements RowCursor {
  valid: boolean;
  keyBytes: Uint8Array;
  keyOffset: number;
  keyLength: number;
  time: number;
  kind: number;
  diff: number;
  valueLength: number;
  valueBytes: Uint8Array;
  valueOffset: number;
  /** The source that the current row comes from. Requires `valid`. */
  source: number;

  #sources: readonly RowCursor[];
  /** Losers of inner nodes 1 to count - 1. */
  #tree: Int32Array;
  #direction: number;
  /** The current key while sources are moved, on a change of direction. */
  #scratch: Uint8Array;

  constructor(sources: readonly RowCursor[]) {
    this.valid = false;
    this.keyBytes = NO_BYTES;
    this.keyOffset = 0;
    this.keyLength = 0;
    this.time = -1;
    this.kind = 0;
    this.diff = 0;
    this.valueLength = 0;
    this.valueBytes = NO_BYTES;
    this.valueOffset = 0;
    this.source = 0;
    this.#sources = sources;
    this.#tree = new Int32Array(sources.length);
    this.#direction = FORWARD;
    this.#scratch = NO_BYTES;
  }

  /** Takes other sources; stands on no row. */
  reset(sources: readonly RowCursor[]): void {
    this.valid = false;
    this.#sources = sources;
    if (sources.length > this.#tree.length) this.#tree = new Int32Array(sources.length);
  }

  first(): void {
    for (const source of this.#sources) source.first();
    this.#build(FORWARD);
  }

  last(): void {
    for (const source of this.#sources) source.last();
    this.#build(BACKWARD);
  }

  seek(key: Uint8Array, offset: number, length: number): void {
    for (const source of this.#sources) source.seek(key, offset, length);
    this.#build(FORWARD);
  }

  seekBelow(key: Uint8Array, offset: number, length: number): void {
    for (const source of this.#sources) source.seekBelow(key, offset, length);
    this.#build(BACKWARD);
  }

  next(): void {
    if (this.#direction !== FORWARD) this.#turn(FORWARD);
    const winner = this.source;
    this.#sources[winner].next();
    this.#replay(winner);
  }

  previous(): void {
    if (this.#direction !== BACKWARD) this.#turn(BACKWARD);
    const winner = this.source;
    this.#sources[winner].previous();
    this.#replay(winner);
  }

  loadValue(): void {
    const source = this.#sources[this.source];
    source.loadValue();
    this.valueBytes = source.valueBytes;
    this.valueOffset = source.valueOffset;
  }

  /** True when source i goes before source j in the direction of the walk. */
  #beats(i: number, j: number): boolean {
    const a = this.#sources[i];
    const b = this.#sources[j];
    if (!a.valid) return false;
    if (!b.valid) return true;
    return this.#direction === FORWARD ? isBefore(a, i, b, j) : isBefore(b, j, a, i);
  }

  /** Plays all matches, from the last node up. */
  #build(direction: number): void {
    this.#direction = direction;
    const count = this.#sources.length;
    if (count === 0) {
      this.valid = false;
      return;
    }
    const winners = new Int32Array(2 * count);
    for (let s = 0; s < count; s++) winners[count + s] = s;
    for (let node = count - 1; node >= 1; node--) {
      const left = winners[2 * node];
      const right = winners[2 * node + 1];
      const isLeft = this.#beats(left, right);
      winners[node] = isLeft ? left : right;
      this.#tree[node] = isLeft ? right : left;
    }
    this.#show(winners[1]);
  }

  /** Source `moved`, which stood at the top, has moved: plays the matches on its path. */
  #replay(moved: number): void {
    const tree = this.#tree;
    let winner = moved;
    for (let node = (moved + this.#sources.length) >> 1; node >= 1; node >>= 1) {
      const other = tree[node];
      if (this.#beats(other, winner)) {
        tree[node] = winner;
        winner = other;
      }
    }
    this.#show(winner);
  }

  #show(winner: number): void {
    const source = this.#sources[winner];
    this.source = winner;
    this.valid = source.valid;
    this.keyBytes = source.keyBytes;
    this.keyOffset = source.keyOffset;
    this.keyLength = source.keyLength;
    this.time = source.time;
    this.kind = source.kind;
    this.diff = source.diff;
    this.valueLength = source.valueLength;
  }

  /** Stands all other sources beside the current row, on the side where the walk now goes. */
  #turn(direction: number): void {
    invariant(this.valid, 'only a cursor on a row can turn');
    const length = this.keyLength;
    if (length > this.#scratch.length) this.#scratch = new Uint8Array(length);
    const key = this.#scratch;
    for (let i = 0; i < length; i++) key[i] = this.keyBytes[this.keyOffset + i];
    const winner = this.source;
    const current = this.#sources[winner];
    for (let s = 0; s < this.#sources.length; s++) {
      if (s === winner) continue;
      const source = this.#sources[s];
      source.seek(key, 0, length);
      while (source.valid && isBefore(source, s, current, winner)) source.next();
      if (direction === FORWARD) continue;
      if (source.valid) source.previous();
      else source.last();
    }
    this.#build(direction);
    invariant(this.source === winner, 'the current row stays on top of a turned merge');
  }
}
