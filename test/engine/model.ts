/**
 * The naive map that is always right: every change of a keyed collection of strings, and what was there
 * at any offset. Used by the engine's tests to compare with.
 */
import { Prng } from '../../core/base/prng.ts';

export type Bounds = {
  gte?: string;
  gt?: string;
  lte?: string;
  lt?: string;
  prefix?: string;
  reverse?: boolean;
  limit?: number;
};

type Change = { readonly offset: number; readonly key: string; readonly value: string | undefined };

export class Model {
  readonly #changes: Change[] = [];

  /** Offsets ascend; of one offset the later change wins. */
  set(offset: number, key: string, value: string | undefined): void {
    this.#changes.push({ offset, key, value });
  }

  /** The newest change of a key at or below `T`. */
  at(T: number, key: string): Change | undefined {
    return this.#changes.findLast((change) => change.offset <= T && change.key === key);
  }

  valueAt(T: number, key: string): string | undefined {
    return this.at(T, key)?.value;
  }

  /** Rows in the order of their encoded keys. */
  rows(T: number, bounds: Bounds = {}): [string, string][] {
    const state = new Map<string, string>();
    for (const { offset, key, value } of this.#changes) {
      if (offset > T) break;
      if (value === undefined) state.delete(key);
      else state.set(key, value);
    }
    const { gte, gt, lte, lt, prefix, reverse, limit } = bounds;
    const rows = [...state]
      .filter(
        ([key]) =>
          (gte === undefined || compareKeys(key, gte) >= 0) &&
          (gt === undefined || compareKeys(key, gt) > 0) &&
          (lte === undefined || compareKeys(key, lte) <= 0) &&
          (lt === undefined || compareKeys(key, lt) < 0) &&
          (prefix === undefined || key.startsWith(prefix)),
      )
      .toSorted(([a], [b]) => compareKeys(a, b));
    return (reverse === true ? rows.toReversed() : rows).slice(0, limit);
  }
}

export function compareKeys(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

/** Bounds of every kind, some of them empty ranges. */
export function randomBounds(random: Prng, key: () => string): Bounds {
  const bounds: Bounds = {};
  if (random.chance(0.6)) bounds[random.chance(0.5) ? 'gte' : 'gt'] = key();
  if (random.chance(0.6)) bounds[random.chance(0.5) ? 'lte' : 'lt'] = key();
  if (random.chance(0.25)) bounds.prefix = key();
  if (random.chance(0.5)) bounds.reverse = random.chance(0.8);
  if (random.chance(0.4)) bounds.limit = random.below(40);
  return bounds;
}
