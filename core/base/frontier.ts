/**
 * Comparison of offsets and frontiers, in one place so that antichains stay thinkable. A frontier is
 * a safe integer >= 0: the first offset not yet there.
 */

export const OFFSET_MAX: number = Number.MAX_SAFE_INTEGER;

/** A frontier that no offset passes: nothing is held, nothing is awaited. */
export const NO_FRONTIER: number = Number.MAX_SAFE_INTEGER;

export function isFrontier(t: number): boolean {
  return Number.isSafeInteger(t) && t >= 0;
}

export function lt(a: number, b: number): boolean {
  return a < b;
}

export function le(a: number, b: number): boolean {
  return a <= b;
}

export function join(a: number, b: number): number {
  return a > b ? a : b;
}

export function meet(a: number, b: number): number {
  return a < b ? a : b;
}

/** The time at which an update written at `t` counts once times below `since` are blurred. */
export function advance(t: number, since: number): number {
  return t > since ? t : since;
}
