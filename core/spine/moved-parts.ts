/**
 * Which parts of a merge's inputs go into its result as they are (spine.md 4.6c): those that share no key
 * with any other input and in which nothing is to be reclaimed. Few and large, or runs would fall to
 * pieces: together with its neighbours such a part is worth a part of full size. Asked by the policy for
 * what a job will cost, on the keeper's thread, and by the job for what it need not read.
 */
import { compareBytes } from '../base/bytes.ts';
import { le, lt } from '../base/frontier.ts';
import type { RangeDelete } from '../base/range-set.ts';
import { repeatedRows } from './batch.ts';
import type { Hollow, SpinePart } from './batch.ts';

/** What a merge does to rows that it meets alone. */
export type MoveTerms = {
  readonly since: number;
  /** How its outputs are made: bytes of a part, and the codec of its blocks. */
  readonly partBytes: number;
  readonly codec: number;
  /** Range deletes that hide rows for good. */
  readonly hiding: readonly RangeDelete[];
};

/** A smaller part is merged with its neighbours. */
const SMALLEST_SHARE = 1 / 4;

/** Once `since` has passed its oldest row a part with tombstones, retractions or versions may shrink. */
export function mayShrink(part: SpinePart, since: number): boolean {
  return le(part.minT, since) && (part.negatives > 0 || repeatedRows(part) > 0);
}

function stays(part: SpinePart, terms: MoveTerms): boolean {
  const { since, partBytes, codec, hiding } = terms;
  if (part.bytes < partBytes * SMALLEST_SHARE) return false;
  if ((part.codec ?? 0) !== codec || mayShrink(part, since)) return false;
  return !hiding.some(
    ({ lo, hi, time }) =>
      lt(part.minT, time) &&
      compareBytes(lo, part.keyHi) <= 0 &&
      (hi.length === 0 || compareBytes(part.keyLo, hi) < 0),
  );
}

/**
 * Parts in key order that share no key with any other, in stretches with no other part between. Nor do they
 * share a file: what is merged away beside one that stays would take its room as long. Requires: parts with rows.
 */
export function loneStretches<P extends SpinePart>(runs: readonly (readonly P[])[]): P[][] {
  const parts = runs.flat().toSorted((a, b) => compareBytes(a.keyLo, b.keyLo));
  const seen = new Set<number>();
  const shared = new Set<number>();
  for (const { file } of parts) (seen.has(file) ? shared : seen).add(file);
  const stretches: P[][] = [];
  let stretch: P[] = [];
  for (let i = 0; i < parts.length;) {
    let { keyHi } = parts[i];
    let next = i + 1;
    for (; next < parts.length && compareBytes(parts[next].keyLo, keyHi) <= 0; next++) {
      if (compareBytes(parts[next].keyHi, keyHi) > 0) ({ keyHi } = parts[next]);
    }
    if (next === i + 1 && !shared.has(parts[i].file)) {
      stretch.push(parts[i]);
    } else if (stretch.length > 0) {
      stretches.push(stretch);
      stretch = [];
    }
    i = next;
  }
  if (stretch.length > 0) stretches.push(stretch);
  return stretches;
}

/** Of lone parts those that go into the result as they are, in stretches with nothing between. */
export function movedStretches<P extends SpinePart>(
  lone: readonly (readonly P[])[],
  terms: MoveTerms,
): P[][] {
  const moved: P[][] = [];
  for (const stretch of lone) {
    let taken: P[] = [];
    let bytes = 0;
    const close = (): void => {
      if (bytes >= terms.partBytes) moved.push(taken);
      taken = [];
      bytes = 0;
    };
    for (const part of stretch) {
      if (stays(part, terms)) {
        taken.push(part);
        bytes += part.bytes;
      } else {
        close();
      }
    }
    close();
  }
  return moved;
}

/** Parts of each run that are to be merged, and then parts that follow them all as they are. */
export type MergePiece<P extends SpinePart> = {
  readonly runs: readonly (readonly P[])[];
  readonly moved: readonly P[];
};

/** A merge as pieces in key order; the last moves nothing. Requires: parts with rows, ascending in each run. */
export function mergePieces<P extends SpinePart>(
  runs: readonly (readonly P[])[],
  terms: MoveTerms,
): MergePiece<P>[] {
  const stretches = movedStretches(loneStretches(runs), terms);
  const isMoved = new Set(stretches.flat());
  const next = runs.map(() => 0);
  return [...stretches, []].map((moved): MergePiece<P> => {
    const end = moved[0]?.keyLo;
    const pieces = runs.map((parts, i) => {
      const from = next[i];
      while (next[i] < parts.length) {
        if (end !== undefined && compareBytes(parts[next[i]].keyLo, end) >= 0) break;
        next[i]++;
      }
      return parts.slice(from, next[i]).filter((part) => !isMoved.has(part));
    });
    return { runs: pieces, moved };
  });
}

type Node = { lone: SpinePart[][] | undefined; readonly next: WeakMap<Hollow, Node> };

/** The lone parts of neighbours, remembered while the batches are there: what policy asks for at every turn. */
export class LoneParts {
  readonly #root: Node = { lone: undefined, next: new WeakMap() };

  of(hollows: readonly Hollow[]): readonly (readonly SpinePart[])[] {
    let node = this.#root;
    for (const hollow of hollows) {
      let next = node.next.get(hollow);
      if (next === undefined)
        node.next.set(hollow, (next = { lone: undefined, next: new WeakMap() }));
      node = next;
    }
    node.lone ??= loneStretches(
      hollows.flatMap(({ runs }) =>
        runs.map(({ parts }) => parts.filter(({ rangeDeletes }) => rangeDeletes === 0)),
      ),
    );
    return node.lone;
  }
}
