/**
 * How much of the past a collection keeps, as the keeper counts it: offsets behind the newest, or time of
 * day, whichever reaches further back. Time goes by the stored list of (offset, time), so that it may keep
 * more than was asked for, never less. Used by the keeper for `since` and for the log, on its thread.
 */
import type { TimePoint } from '../core/spine/manifest.ts';
import type { StoredHistory } from './catalog.ts';

export const KEEP_ALL = -1;

/** `ms` 0: time keeps nothing. */
export type KeptHistory = { readonly offsets: number; readonly ms: number };

/** Keeps all; also while the catalog has not been read. */
export const KEEPS_ALL: KeptHistory = { offsets: KEEP_ALL, ms: 0 };
export const KEEPS_NOW: KeptHistory = { offsets: 0, ms: 0 };

export function keptHistory({ offsets, ms }: StoredHistory): KeptHistory {
  return { offsets: offsets ?? KEEP_ALL, ms: ms ?? 0 };
}

/** What keeps as much as both. */
export function longerHistory(a: KeptHistory, b: KeptHistory): KeptHistory {
  const keepsAll = a.offsets === KEEP_ALL || b.offsets === KEEP_ALL;
  const offsets = keepsAll ? KEEP_ALL : Math.max(a.offsets, b.offsets);
  return { offsets, ms: Math.max(a.ms, b.ms) };
}

/**
 * The lowest offset to keep. `newest` is what offsets are counted back from; `times` say of an offset when
 * the one before it was committed, ascending.
 */
export function historyFloor(
  history: KeptHistory,
  newest: number,
  times: readonly TimePoint[],
  nowMs: number,
): number {
  if (history.offsets === KEEP_ALL) return 0;
  const byOffsets = Math.max(0, newest - history.offsets);
  if (history.ms === 0) return byOffsets;
  const from = nowMs - history.ms;
  const point = times.findLast(([, atMs]) => atMs <= from);
  return Math.min(byOffsets, Math.max(0, (point?.[0] ?? 0) - 1));
}
