/**
 * Scripts of the buffer pool: threads that lease and give back pages of one bitmap word and one
 * budget. A page is overwritten by whoever has it, so that a page with two owners shows as a race.
 */
import { invariant } from '../../../core/base/assert.ts';
import { pageBytes } from '../../../core/base/limits.ts';
import type { Arena } from '../../../core/shared/arena.ts';
import { BufferPool, KIND_MEMTABLE, KIND_RECORD } from '../../../core/shared/buffer-pool.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script, ThreadScript, World } from '../explorer.ts';

const TABLES = 128;
/** Count of pages held now, outside the tables. */
const HOLDERS_WORD = 16;

type Leasing = { lease: (kind: number) => number; free: (address: number, kind: number) => void };
type MakePool = (arena: Arena, firstPage: number) => Leasing;

type PoolOptions = {
  name: string;
  threads: number;
  rounds: number;
  /** Pages that may be leased, and how many of them the budget allows. */
  pages: number;
  limit: number;
  firstPage?: number;
  pool?: MakePool;
};

function poolScript(options: PoolOptions): Script<void> {
  const { firstPage = 1, limit } = options;
  const arenaBytes = (firstPage + options.pages) * pageBytes;
  const makePool: MakePool =
    options.pool ?? ((arena, first) => new BufferPool(arena, TABLES, first));
  const thread = (_: unknown, index: number): ThreadScript<void> => ({
    name: `owner${index}`,
    start: ({ arena }) => {
      const pool = makePool(arena, firstPage);
      const { i32 } = arena;
      return () => {
        let leased = 0;
        for (let round = 0; round < options.rounds; round++) {
          const page = pool.lease(KIND_MEMTABLE);
          if (page === 0) continue;
          leased++;
          const holders = Atomics.add(i32, HOLDERS_WORD, 1);
          invariant(holders < limit, 'a budget is never exceeded', holders, limit);
          i32[page >>> 2] = index;
          Atomics.sub(i32, HOLDERS_WORD, 1);
          invariant(i32[page >>> 2] === index, 'a page has one owner', page, index);
          pool.free(page, KIND_MEMTABLE);
        }
        return leased;
      };
    },
  });
  return {
    name: `pool: ${options.name}`,
    promise: 'a page has one owner, a budget is kept, and every page comes back',
    arenaBytes,
    setup: (world) => {
      new BufferPool(world.arena, TABLES, firstPage).reset([0, 0, limit]);
      labelTables(world, arenaBytes);
    },
    threads: Array.from({ length: options.threads }, thread),
    check: ({ arena }, _, results) => {
      const pool = new BufferPool(arena, TABLES, firstPage);
      invariant(pool.usedPages(KIND_MEMTABLE) === 0, 'all pages were counted back');
      invariant(pool.audit()[0] === options.pages, 'all pages are free');
      invariant(
        results.some((leased) => leased !== 0),
        'somebody got a page',
      );
      for (let n = 0; n < limit; n++)
        invariant(pool.lease(KIND_MEMTABLE) !== 0, 'and can be leased', n);
    },
  };
}

function labelTables(world: World, arenaBytes: number): void {
  const words = ((arenaBytes / pageBytes + 31) >>> 5) * 4;
  world.label(HOLDERS_WORD * 4, 'holders');
  for (let at = 0; at < words; at += 4) world.label(TABLES + at, `bitmap${at / 4}`);
  const kind = TABLES + Math.ceil(words / 128) * 128 + KIND_MEMTABLE * 128;
  world.label(kind, 'used');
  world.label(kind + 4, 'limit');
}

/** Several holders of one record page let go at once; the page is freed once, by the last. */
function releaseScript(holders: number): Script<number> {
  return {
    name: `pool: ${holders} holders release one page`,
    promise: 'the last holder frees the page, when all others have read it',
    arenaBytes: 3 * pageBytes,
    setup: ({ arena }) => {
      const pool = new BufferPool(arena, TABLES, 1);
      pool.reset([0, 1]);
      const page = pool.lease(KIND_RECORD);
      for (let i = 0; i < holders; i++) pool.retain(page);
      arena.i32[page >>> 2] = 7;
      return page;
    },
    threads: [
      ...Array.from({ length: holders }, (_, index) => ({
        name: `holder${index}`,
        start: ({ arena }: World, page: number) => {
          const pool = new BufferPool(arena, TABLES, 1);
          return () => {
            invariant(arena.i32[page >>> 2] === 7, 'a retained page keeps its bytes', page);
            pool.release(page);
          };
        },
      })),
      {
        name: 'next owner',
        start: ({ arena }) => {
          const pool = new BufferPool(arena, TABLES, 1);
          return () => {
            const page = pool.lease(KIND_RECORD);
            if (page !== 0) arena.i32[page >>> 2] = 8;
            return page;
          };
        },
      },
    ],
    check: ({ arena }, _, results) => {
      const pool = new BufferPool(arena, TABLES, 1);
      const kept = results.at(-1) === 0 ? 0 : 1;
      invariant(pool.usedPages(KIND_RECORD) === kept, 'freed once', kept);
    },
  };
}

/** Looks at the budget and claims it in two steps. */
const looksThenClaims: MakePool = (arena, firstPage) => {
  const pool = new BufferPool(arena, TABLES, firstPage);
  return {
    lease: (kind) => {
      const limit = pool.limitPages(kind);
      if (pool.usedPages(kind) >= limit) return 0;
      // No budget of the pool's own is in the way.
      pool.setLimitPages(kind, 1_000);
      const page = pool.lease(kind);
      pool.setLimitPages(kind, limit);
      return page;
    },
    free: (address, kind) => pool.free(address, kind),
  };
};

/** Takes a bit by load and store instead of one exchange. */
const claimsInTwoSteps: MakePool = (arena, firstPage) => {
  const pool = new BufferPool(arena, TABLES, firstPage);
  const { i32 } = arena;
  return {
    lease: () => {
      const bits = Atomics.load(i32, TABLES >>> 2);
      const page = 31 - Math.clz32(~bits & -~bits);
      if (bits === -1) return 0;
      Atomics.store(i32, TABLES >>> 2, bits | (1 << page));
      return page * pageBytes;
    },
    free: (address) => {
      Atomics.and(i32, TABLES >>> 2, ~(1 << (address / pageBytes)));
      return pool;
    },
  };
};

/** Gives the page back before its last use. */
const freesEarly: MakePool = (arena, firstPage) => {
  const pool = new BufferPool(arena, TABLES, firstPage);
  return {
    lease: (kind) => {
      const page = pool.lease(kind);
      if (page !== 0) pool.free(page, kind);
      return page;
    },
    free: () => {},
  };
};

export const poolCases: readonly Case[] = [
  holds(poolScript({ name: 'two owners, one page', threads: 2, rounds: 2, pages: 1, limit: 1 })),
  holds(poolScript({ name: 'budget below the pages', threads: 2, rounds: 2, pages: 2, limit: 1 })),
  holds(
    poolScript({
      name: 'pages on both sides of a bitmap word',
      threads: 2,
      rounds: 2,
      pages: 2,
      limit: 2,
      firstPage: 31,
    }),
  ),
  holds(poolScript({ name: 'three owners, one page', threads: 3, rounds: 1, pages: 1, limit: 1 })),
  holds(poolScript({ name: 'three owners, two pages', threads: 3, rounds: 1, pages: 2, limit: 2 })),
  holds(releaseScript(2)),
  holds(
    poolScript({ name: 'two owners, two pages', threads: 2, rounds: 2, pages: 2, limit: 2 }),
    'deep',
  ),
  holds(releaseScript(3), 'deep'),
  holds(
    poolScript({ name: 'three owners, two rounds', threads: 3, rounds: 2, pages: 1, limit: 1 }),
    'deep',
  ),
  planted(
    poolScript({
      name: 'planted: budget looked at, then claimed',
      threads: 2,
      rounds: 1,
      pages: 2,
      limit: 1,
      pool: looksThenClaims,
    }),
    'threw',
  ),
  planted(
    poolScript({
      name: 'planted: bit taken in two steps',
      threads: 2,
      rounds: 1,
      pages: 2,
      limit: 2,
      pool: claimsInTwoSteps,
    }),
    'check',
  ),
  planted(
    poolScript({
      name: 'planted: given back before the last use',
      threads: 2,
      rounds: 1,
      pages: 2,
      limit: 2,
      pool: freesEarly,
    }),
    'race',
  ),
];
