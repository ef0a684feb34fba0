/**
 * Scripts of the row cache's hash index: the real index replaces, links, splits and merges while the
 * real reader looks rows up. A reader may miss; what it finds must be true for its view, and not freed.
 */
import { invariant } from '../../../core/base/assert.ts';
import { populateRingSlots, pageBytes, touchRingSlots } from '../../../core/base/limits.ts';
import {
  FIRST_MARKS_OFFSET,
  KIND_ROW,
  ROOTS_BYTES,
  ROW_COLLECTION_OFFSET,
  ROW_FROM_OFFSET,
  ROW_HASH_OFFSET,
  ROW_KEY_OFFSET,
  ROW_NODE_OFFSET,
  ROW_SHAPE_OFFSET,
  ROW_UNTIL_OFFSET,
  ROW_VALUE_BYTES_OFFSET,
  SEGMENT_BYTES,
  SHAPE_KIND_SHIFT,
  UNTIL_NEXT,
  rowHash,
} from '../../../core/cache/layout.ts';
import { CACHE_MISS, CACHE_ROW, CacheReader } from '../../../core/cache/reader.ts';
import { RowIndex } from '../../../core/cache/row-index.ts';
import { keyHash } from '../../../core/memtable/layout.ts';
import type { Arena } from '../../../core/shared/arena.ts';
import { ArenaPlan, LINE_BYTES } from '../../../core/shared/arena.ts';
import { BELL_BYTES, Bell } from '../../../core/shared/bell.ts';
import { BufferPool } from '../../../core/shared/buffer-pool.ts';
import { CONTROL_BYTES, Control } from '../../../core/shared/control.ts';
import {
  CLIENT_SLOT_BYTES,
  ReaderSlot,
  RetireList,
  UNTIL_NOW,
} from '../../../core/shared/epoch.ts';
import { RingProducer, ringBytes } from '../../../core/shared/ring.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script } from '../explorer.ts';

const COLLECTION = 3;
const ARENA_BYTES: number = 4 * pageBytes;
const ROW_BYTES = 64;
/** The pool's first page; the marks in it are racy on purpose. */
const ROOT: number = pageBytes;

const plan = new ArenaPlan();
const CONTROL: number = plan.take(CONTROL_BYTES);
const SLOT: number = plan.take(CLIENT_SLOT_BYTES);
const BELL: number = plan.take(BELL_BYTES);
const TABLES: number = plan.take(BufferPool.tableBytes(ARENA_BYTES));
const ROOTS: number = plan.take(ROOTS_BYTES);
const TOUCHES: number = plan.take(ringBytes(touchRingSlots));
const OFFERS: number = plan.take(ringBytes(populateRingSlots));
const ROWS: readonly number[] = [0, 1, 2, 3].map(() => plan.take(ROW_BYTES));

/** Stand for views: with the update of the first key in the overlay, and without. */
const VIEW_BEFORE = 1;
const VIEW_AFTER = 2;

/** A row without a value: key `key`, true from `from` on. */
function writeRow(arena: Arena, row: number, key: number, from: number): void {
  const { u8, u32, i32 } = arena;
  const bytes = Uint8Array.of(key);
  i32[(row + ROW_HASH_OFFSET) >>> 2] = rowHash(keyHash(bytes, 0, 1), COLLECTION);
  u32[(row + ROW_COLLECTION_OFFSET) >>> 2] = COLLECTION;
  u32[(row + ROW_NODE_OFFSET) >>> 2] = key;
  u32[(row + ROW_FROM_OFFSET) >>> 2] = from;
  u32[(row + ROW_FROM_OFFSET + 4) >>> 2] = 0;
  u32[(row + ROW_VALUE_BYTES_OFFSET) >>> 2] = 0;
  u32[(row + ROW_SHAPE_OFFSET) >>> 2] = 1 | (KIND_ROW << SHAPE_KIND_SHIFT);
  u32[(row + ROW_UNTIL_OFFSET) >>> 2] = UNTIL_NEXT;
  u32[(row + ROW_UNTIL_OFFSET + 4) >>> 2] = UNTIL_NEXT;
  u8[row + ROW_KEY_OFFSET] = key;
}

type Fault = 'view before the row' | 'freed at once' | 'row linked before it is filled';

type IndexOptions = {
  name: string;
  /** Rows that come, and then go again, beside the one that is replaced. */
  comes?: boolean;
  goes?: boolean;
  finds: readonly number[];
  fault?: Fault;
};

/** Keys 1 and 2 are there; key 1 is replaced; key 3 comes (a split) and goes (a merge). */
function indexScript(options: IndexOptions): Script<void> {
  const { fault } = options;
  return {
    name: `row index: ${options.name}`,
    promise: 'a row that is found is true for the view that was loaded before, and not freed',
    arenaBytes: ARENA_BYTES,
    racy: (at) => at >= ROOT + FIRST_MARKS_OFFSET && at < ROOT + FIRST_MARKS_OFFSET + SEGMENT_BYTES,
    setup: (world) => {
      const { arena } = world;
      const control = new Control(arena, CONTROL);
      control.reset();
      control.setView(VIEW_BEFORE);
      new BufferPool(arena, TABLES, 1).reset([0, 0, 0, 0, 3]);
      world.label(CONTROL, 'epoch');
      world.label(CONTROL + LINE_BYTES, 'view');
      ROWS.forEach((at, i) => world.label(at, `row${i}`, ROW_BYTES / 4));
    },
    threads: [
      {
        name: 'evictor',
        start: ({ arena }) => {
          const pool = new BufferPool(arena, TABLES, 1);
          const control = new Control(arena, CONTROL);
          const retired = new RetireList(arena, control.epochAddress, SLOT, 1);
          const index = new RowIndex(arena, pool, ROOTS, 1, () => {});
          invariant(index.open(), 'there is a page');
          const free = (row: number): void => {
            arena.u8.fill(0xcc, row, row + ROW_KEY_OFFSET + 1);
          };
          for (const key of [1, 2]) {
            writeRow(arena, ROWS[key], key, 0);
            index.link(ROWS[key]);
            index.provideMark(key);
          }
          index.provideMark(3);
          return () => {
            const [replacement, former, , third] = ROWS;
            if (fault === 'view before the row') control.setView(VIEW_AFTER);
            if (fault === 'row linked before it is filled') {
              index.replace(former, replacement);
              writeRow(arena, replacement, 1, 1);
            } else {
              writeRow(arena, replacement, 1, 1);
              index.replace(former, replacement);
            }
            if (fault === 'freed at once') free(former);
            else retired.retire(former, UNTIL_NOW, free);
            control.setView(VIEW_AFTER);
            if (options.comes === true) {
              writeRow(arena, third, 3, 0);
              index.link(third);
            }
            if (options.goes === true) {
              index.unlink(third);
              retired.retire(third, UNTIL_NOW, free);
            }
            retired.sweep();
          };
        },
      },
      {
        name: 'reader',
        start: ({ arena }) => {
          const pool = new BufferPool(arena, TABLES, 1);
          const control = new Control(arena, CONTROL);
          const slot = new ReaderSlot(arena, control.epochAddress, SLOT);
          const reader = new CacheReader(
            arena,
            pool,
            ROOTS,
            new RingProducer(arena, TOUCHES, touchRingSlots),
            new RingProducer(arena, OFFERS, populateRingSlots),
            new Bell(arena, BELL),
          );
          return () => {
            slot.enter();
            const view = control.view();
            let found = 0;
            for (const key of options.finds) {
              const bytes = Uint8Array.of(key);
              const outcome = reader.lookup(COLLECTION, bytes, 0, 1, keyHash(bytes, 0, 1), 1);
              if (outcome === CACHE_MISS) continue;
              invariant(outcome === CACHE_ROW, 'no key is absent', key);
              const isOld = key === 1 && view === VIEW_AFTER;
              invariant(reader.from >= (isOld ? 1 : 0), 'true for the view', reader.from, view);
              invariant(reader.from <= 1, 'a row that was never freed', reader.from);
              found++;
            }
            slot.leave();
            return found;
          };
        },
      },
    ],
    check: (_, __, results) => {
      // Only a split or a merge may hide a row.
      if (options.comes === true) return;
      invariant(results[1] === options.finds.length, 'a row is found while it is replaced');
    },
  };
}

export const cacheCases: readonly Case[] = [
  holds(indexScript({ name: 'a row is replaced', finds: [1, 2] })),
  holds(indexScript({ name: 'a bucket is split under a look', comes: true, finds: [1, 2] })),
  holds(indexScript({ name: 'a row comes and goes', comes: true, goes: true, finds: [2, 3] })),
  planted(
    indexScript({ name: 'planted: view before the row', finds: [1], fault: 'view before the row' }),
    'threw',
  ),
  planted(
    indexScript({ name: 'planted: freed at once', finds: [1], fault: 'freed at once' }),
    'race',
  ),
  planted(
    indexScript({
      name: 'planted: row linked before it is filled',
      finds: [1],
      fault: 'row linked before it is filled',
    }),
    'race',
  ),
];
