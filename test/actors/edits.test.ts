/**
 * Goal: what flushes and moves take of the reserved ids leaves enough for the results of merges, which
 * take theirs without asking. Method: the edits alone, their manifest a list.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Edits } from '../../actors/edits.ts';
import { KEEPER_COUNTERS, makeCounters } from '../../actors/counters.ts';
import { Arena } from '../../core/shared/arena.ts';
import { pageBytes } from '../../core/base/limits.ts';
import { idBlock } from '../../core/spine/manifest.ts';
import type { ManifestStore } from '../../core/spine/manifest-store.ts';

/** Files that a merge takes at the least. */
const FILES_OF_A_MERGE = 3;

/** Edits whose manifest answers at once, or not at all. */
function makeEdits(): { edits: Edits; answer: () => void } {
  const counters = makeCounters(Arena.create(2 * pageBytes), 0, KEEPER_COUNTERS);
  const clock = { nowMs: (): number => 0, ticksMs: (): number => 0 };
  const edits = new Edits(
    clock,
    counters,
    () => 1,
    () => true,
  );
  const store = {
    answered: 0,
    proposed: { counters: { bid: 1, run: 1, file: 1 } },
    propose({ counters: next }: { counters: { bid: number; run: number; file: number } }): number {
      store.proposed.counters = next;
      return store.answered + 1;
    },
  };
  edits.store = store as unknown as ManifestStore;
  const answer = (): void => {
    if (!edits.reserveIds()) return;
    store.answered++;
    edits.show();
  };
  return { edits, answer };
}

function takeBatches(edits: Edits, count: number): void {
  for (let i = 0; i < count; i++) {
    edits.bids.take();
    edits.runIds.take();
  }
}

for (const batches of [1, 4, 500, idBlock - 1, idBlock + 1, 5 * idBlock]) {
  test(`flushes of ${batches} batches leave ids for every merge that has its files`, () => {
    const { edits, answer } = makeEdits();
    answer();
    // As many as go, then with what one more edit reserves, until that is not enough either.
    while (edits.hasIds(batches)) takeBatches(edits, batches);
    answer();
    assert.ok(edits.hasIds(batches), 'ids are there when they were waited for');
    while (edits.hasIds(batches)) takeBatches(edits, batches);
    let merges = 0;
    while (edits.takeFiles(FILES_OF_A_MERGE) !== undefined) merges++;
    assert.ok(merges > 0, 'merges have files');
    takeBatches(edits, merges);
  });
}
