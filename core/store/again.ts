/**
 * Makes something out of stores beside which a live engine may run. What the manifest named at first may be
 * merged away, recycled or pruned before it is read: as long as the manifest has moved on meanwhile, what went
 * wrong proves nothing, and all of it is done again from what the manifest says now. Called by backup and
 * restore, on any thread.
 */
import { TidemarkError } from '../base/errors.ts';
import type { Storage } from '../storage/storage.ts';
import { readManifest } from './look.ts';
import type { Machine } from './report.ts';

const ATTEMPTS_MAX = 8;

/** Requires: a `make` that fails has removed what it made. */
export function* whileMoving<T>(storages: readonly Storage[], make: () => Machine<T>): Machine<T> {
  for (let attempt = 1; ; attempt++) {
    const before = storages.map(standOf);
    yield;
    try {
      return yield* make();
    } catch (error) {
      if (!mayBeOfMoving(error) || attempt === ATTEMPTS_MAX) throw error;
      const hasMoved = storages.some((storage, i) => standOf(storage) !== before[i]);
      if (!hasMoved) throw error;
    }
  }
}

/** Where a store's manifest stands; the same as long as nothing is named or let go of. */
function standOf(storage: Storage): string {
  try {
    const manifest = readManifest(storage);
    return manifest === undefined ? 'none' : `${manifest.head.rollup} ${manifest.edit}`;
  } catch (error) {
    if (error instanceof TidemarkError) return 'unreadable';
    throw error;
  }
}

function mayBeOfMoving(error: unknown): boolean {
  const { code } = error as { code?: unknown };
  return code === 'TIDEMARK_CORRUPT' || code === 'TIDEMARK_HISTORY_LOST' || code === 'ENOENT';
}
