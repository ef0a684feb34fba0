/**
 * What must be true of an engine that has nothing to do, and of one that is closed: no page, descriptor
 * or file is anybody's that nobody needs; the structures are sound; the manifest on the disk says what
 * readers are shown. Used by run.ts between two steps.
 */
import { KIND_CACHE, KIND_MEMTABLE, KIND_RECORD } from '../../core/shared/buffer-pool.ts';
import { KIND_KEYED, KIND_MULTISET } from '../../core/base/update.ts';
import { SEGMENT_BLOCK_BYTES } from '../../core/log/segment.ts';
import { loadManifest } from '../../core/spine/manifest-store.ts';
import { Spine } from '../../core/spine/spine.ts';
import { ViewReader } from '../../core/spine/view.ts';
import { LOG_DIR, PARTS_DIR, TMP_DIR, numberOf, segmentPath } from '../../core/storage/names.ts';
import { SimFailure } from './world.ts';
import type { World } from './world.ts';

/** What one quiet engine is compared with the next in. */
export type Baseline = {
  memtablePages: number | undefined;
  /** Pages more or less that may be right. */
  pagesAhead: number;
};

/** Requires: everything is settled, nobody holds or reads anything; `flushed`: all is in parts. */
export function auditQuiet(world: World, flushed: boolean, baseline: Baseline): void {
  world.evictor.cache.check();
  const shown = shownFiles(world);
  auditManifest(world, shown.files);
  const { disk } = world.storage;
  const names = disk.list(LOG_DIR);
  // A worker that died may have left both; the job is done again.
  const files = names.map((name) => numberOf(name, '.seg') ?? numberOf(name, '.segz'));
  const segments = [...new Set(files.filter((seq) => seq !== undefined))];
  const spares = segments.filter((seq) => !shown.segments.includes(seq));
  expectSame('segments', [...shown.segments, ...spares], segments);
  // One may lie ready, or have come too late for its number. Behind its header old records may lie.
  const isSpare = spares.every((seq) =>
    disk
      .bytesOf(segmentPath(seq))
      ?.subarray(0, SEGMENT_BLOCK_BYTES)
      .every((b) => b === 0),
  );
  if (spares.length > 1 || !isSpare || names.some((name) => name.endsWith('.tmp'))) {
    throw new SimFailure(`segments ${segments.join()}, the view has ${shown.segments.join()}`);
  }
  const tmp = disk.list(TMP_DIR);
  if (tmp.length > 0) throw new SimFailure(`left in tmp: ${tmp.join()}`);
  if (!flushed) return;
  const { pool } = world.context;
  // The open generation is empty: only the page that each client goes on filling is held.
  const records = pool.usedPages(KIND_RECORD);
  if (records > world.clients.length) {
    throw new SimFailure(`${records} record pages are held by ${world.clients.length} clients`);
  }
  // Two empty generations are the same size, however many were filled before.
  const memtable = pool.usedPages(KIND_MEMTABLE);
  baseline.memtablePages ??= memtable;
  // A record that found no room on its ring may have made room for itself in an empty generation.
  if (Math.abs(memtable - baseline.memtablePages) > baseline.pagesAhead) {
    throw new SimFailure(
      `empty memtables take ${memtable} pages, ${baseline.memtablePages} before`,
    );
  }
}

/** The manifest that the next open would find, from a copy of the disk. */
function auditManifest(world: World, shown: readonly number[]): void {
  const disk = world.storage.disk.clone();
  disk.fault = undefined;
  const loaded = loadManifest(disk);
  if (loaded === undefined) throw new SimFailure('there is no manifest');
  const named = new Set<number>();
  // Views name the sets of range deletes, which lie in memory, not their files.
  const ranged = new Set<number>();
  for (const [id, state] of loaded.state.spines) {
    const spine = Spine.restore(state, {
      kind: world.model.collections.get(id)?.slot.values === undefined ? KIND_KEYED : KIND_MULTISET,
      ids: { bid: () => never(id), run: () => never(id) },
    });
    spine.validate();
    for (const { hollow } of state.hollows) {
      for (const part of hollow.runs.flatMap((run) => run.parts)) {
        named.add(part.file);
        if (part.rangeDeletes > 0) ranged.add(part.file);
      }
    }
  }
  const there = disk.list(PARTS_DIR).flatMap((name) => numberOf(name, '.part') ?? []);
  expectSame('parts on disk and in the manifest', there, [...named]);
  expectSame('parts on disk and in the view', there, [...new Set([...shown, ...ranged])]);
}

function never(id: number): never {
  throw new SimFailure(`restoring collection ${id} took an id`);
}

function shownFiles(world: World): { files: number[]; segments: number[] } {
  const view = new ViewReader(world.context.arena);
  view.attach(world.context.control.view());
  const files = new Set<number>();
  for (let i = 0; i < view.collectionCount; i++) {
    const block = view.collectionAt(i);
    for (let r = 0; r < view.runCount(block); r++) {
      const run = view.run(block, r);
      for (let p = 0; p < view.partCount(run); p++) files.add(view.file(view.part(run, p)));
    }
  }
  const segments = view.segments().map(({ seq }) => seq);
  return { files: [...files], segments };
}

function expectSame(what: string, a: readonly number[], b: readonly number[]): void {
  const sorted = (list: readonly number[]): string => list.toSorted((x, y) => x - y).join();
  if (sorted(a) !== sorted(b)) throw new SimFailure(`${what}: ${sorted(a)}; ${sorted(b)}`);
}

/** Requires: closed in order, the handles are disposed of. */
export function auditClosed(world: World): void {
  const { pool } = world.context;
  if (world.pool.deaths === 0) {
    const open = world.storage.disk.openFiles;
    if (open.length > 0) throw new SimFailure(`descriptors were left open: ${open.join()}`);
  }
  const pages = pool.audit();
  if (pages[KIND_CACHE] !== 0) throw new SimFailure(`${pages[KIND_CACHE]} pages of cache are left`);
}
