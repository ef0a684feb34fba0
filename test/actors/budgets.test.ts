/**
 * Goal: whoever has a budget of pages finds the pages for it, whatever the others have taken. A flush that
 * waits for a page of the writers', which only a flush gives back, would wait for ever. Method: arenas and
 * memtables at their limits and between; in the smallest, writers take all that they may, and then views.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arenaBytesMin, MiB, pageBytes } from '../../core/base/limits.ts';
import { Arena } from '../../core/shared/arena.ts';
import {
  BufferPool,
  KIND_CACHE,
  KIND_MEMTABLE,
  KIND_RECORD,
  KIND_VIEW,
} from '../../core/shared/buffer-pool.ts';
import { makeContext, resetArena } from '../../actors/host.ts';
import { SimClock } from '../sim/clock.ts';
import { SimDisk } from '../sim/disk.ts';
import { configWith } from './config.ts';

const KINDS = [KIND_RECORD, KIND_MEMTABLE, KIND_VIEW, KIND_CACHE];

/** The pool of a fresh engine, and how many pages it has to give. */
function poolOf(memoryBytes: number, memtableBytes: number): { pool: BufferPool; pages: number } {
  const config = configWith(memtableBytes);
  const arena = Arena.create(memoryBytes);
  const context = makeContext(arena.buffer, config, new SimDisk(), new SimClock());
  resetArena(context);
  const pages = Math.floor(arena.bytes / pageBytes) - context.topology.firstPage;
  return { pool: context.pool, pages };
}

test('budgets add up to the arena', () => {
  for (const memory of [32, 33, 40, 47, 64, 100, 256]) {
    for (const memtable of [memory / 8, memory / 16, 0.25]) {
      const { pool, pages } = poolOf(memory * MiB, Math.floor(memtable * MiB));
      const sum = KINDS.reduce((total, kind) => total + pool.limitPages(kind), 0);
      assert.equal(sum, pages, `${memory} MiB, memtables of ${memtable} MiB`);
    }
  }
});

test('writers with all that they may have leave views theirs', () => {
  const { pool } = poolOf(arenaBytesMin, arenaBytesMin / 8);
  for (const kind of [KIND_RECORD, KIND_MEMTABLE]) while (pool.lease(kind) !== 0);
  for (let left = pool.limitPages(KIND_VIEW); left > 0; left--) {
    assert.ok(pool.lease(KIND_VIEW) !== 0, `${left} pages are wanting`);
  }
});
