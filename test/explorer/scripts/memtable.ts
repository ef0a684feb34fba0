/**
 * Scripts of a generation: the real writer inserts and replaces nodes of one hash chain, and sorts
 * chunks, while the real reader and cursor walk. Keys are chosen to fall into one bucket.
 */
import { invariant } from '../../../core/base/assert.ts';
import { setU16, setU32 } from '../../../core/base/bytes.ts';
import { pageBytes } from '../../../core/base/limits.ts';
import {
  OP_COLLECTION_OFFSET,
  OP_HEADER_BYTES,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_PUT,
  OP_VALUE_BYTES_OFFSET,
  TX_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  operationBytes,
} from '../../../core/base/update.ts';
import { GenerationCursor, VERSIONS_NEWEST } from '../../../core/memtable/cursor.ts';
import {
  DIRECTORY_WORD,
  NODE_NEXT_WORD,
  keyHash,
  mixCollection,
} from '../../../core/memtable/layout.ts';
import { GenerationReader } from '../../../core/memtable/reader.ts';
import { GenerationWriter, maintainFuel } from '../../../core/memtable/writer.ts';
import type { Arena } from '../../../core/shared/arena.ts';
import { ArenaPlan, LINE_BYTES } from '../../../core/shared/arena.ts';
import { BufferPool, KIND_MEMTABLE } from '../../../core/shared/buffer-pool.ts';
import { CONTROL_BYTES, Control } from '../../../core/shared/control.ts';
import { CLIENT_SLOT_BYTES, ReaderSlot } from '../../../core/shared/epoch.ts';
import { loadLink, storeLink } from '../../../core/shared/link.ts';
import { OperationWalker, layChained, pageOf } from '../../../core/shared/record-pages.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script } from '../explorer.ts';

const COLLECTION = 3;
const PAGES = 10;
const ARENA_BYTES: number = PAGES * pageBytes;
const BUCKETS = 1_024;

const plan = new ArenaPlan();
const CONTROL: number = plan.take(CONTROL_BYTES);
const SLOT: number = plan.take(CLIENT_SLOT_BYTES);
const TABLES: number = plan.take(BufferPool.tableBytes(ARENA_BYTES));
/** Where the writer tells the generation's address and the record's, once, before the bodies. */
const TOLD: number = plan.take(8);

/** Keys of one bucket, in ascending order. */
const KEYS: readonly Uint8Array[] = keysOfOneBucket(3);

function keysOfOneBucket(count: number): Uint8Array[] {
  const keys: Uint8Array[] = [];
  for (let n = 0, bucket = -1; keys.length < count; n++) {
    const key = Uint8Array.of(n >>> 16, n >>> 8, n);
    const own = mixCollection(keyHash(key, 0, key.length), COLLECTION) & (BUCKETS - 1);
    if (bucket === -1) bucket = own;
    if (own === bucket) keys.push(key);
  }
  return keys;
}

/** A payload with one transaction a key, each a put without a value. */
function payloadOf(writes: readonly number[]): Uint8Array {
  const bytes = TX_HEADER_BYTES + operationBytes(OP_PUT, KEYS[0].length, 0);
  const payload = new Uint8Array(writes.length * bytes);
  writes.forEach((key, t) => {
    const tx = t * bytes;
    setU32(payload, tx + TX_BYTES_OFFSET, bytes);
    setU32(payload, tx + TX_COUNT_OFFSET, 1);
    const operation = tx + TX_HEADER_BYTES;
    setU32(payload, operation + OP_COLLECTION_OFFSET, COLLECTION);
    payload[operation + OP_KIND_OFFSET] = OP_PUT;
    setU16(payload, operation + OP_KEY_BYTES_OFFSET, KEYS[key].length);
    setU32(payload, operation + OP_VALUE_BYTES_OFFSET, 0);
    payload.set(KEYS[key], operation + OP_HEADER_BYTES);
  });
  return payload;
}

/** Offset of the newest transaction up to T that wrote the key; -1 = none. */
function expected(writes: readonly number[], key: number, T: number): number {
  return writes.slice(0, T + 1).lastIndexOf(key);
}

type Fault = 'plain probe' | 'plain publish' | 'applied first' | 'a replaced node ends its chain';

type MemtableOptions = {
  name: string;
  /** Keys, by index, in the order of their transactions; the first so many are there before. */
  writes: readonly number[];
  before: number;
  /** Keys the reader asks for; or a walk over all. */
  finds?: readonly number[];
  walks?: 'forward' | 'backward';
  chunkKeys?: number;
  fault?: Fault;
};

function isInPages(address: number): boolean {
  return address >= pageBytes;
}

function memtableScript(options: MemtableOptions): Script<void> {
  const { writes, before, finds = [], fault } = options;
  return {
    name: `memtable: ${options.name}`,
    promise: 'a reader at T finds what was newest at T, whatever is inserted meanwhile',
    arenaBytes: ARENA_BYTES,
    spins: 4,
    setup: (world) => {
      const { arena } = world;
      new Control(arena, CONTROL).reset();
      new BufferPool(arena, TABLES, 1).reset([0, 2, PAGES]);
      world.label(CONTROL + 3 * LINE_BYTES, 'applied', 3);
    },
    threads: [
      {
        name: 'writer',
        start: ({ arena }) => {
          const { i32 } = arena;
          const control = new Control(arena, CONTROL);
          const pool = new BufferPool(arena, TABLES, 1);
          const generation = GenerationWriter.create(arena, pool, {
            bytes: pageBytes,
            rows: BUCKETS,
            chunkKeys: options.chunkKeys ?? 512,
            fanIn: 2,
          });
          invariant(generation !== undefined, 'there are pages for a generation');
          generation.open(0);
          const payload = payloadOf(writes);
          const record = layChained(arena, pool, payload, 0, writes.length);
          invariant(generation.roomFor(writes.length, payload.length), 'there is room');
          generation.retainPage(pageOf(record));
          const walker = new OperationWalker(arena, pool);
          walker.start(record, writes.length);
          i32[TOLD >>> 2] = generation.header;
          const write = (t: number): void => {
            invariant(walker.next(), 'an operation a transaction');
            const replaced =
              fault === 'a replaced node ends its chain' ? findNode(arena, writes[t]) : 0;
            generation.insert(walker, t);
            if (replaced !== 0) storeLink(i32, (replaced >>> 2) + NODE_NEXT_WORD, 0);
          };
          for (let t = 0; t < before; t++) write(t);
          control.setApplied(before);
          return () => {
            for (let t = before; t < writes.length; t++) {
              if (fault === 'applied first') control.setApplied(t + 1);
              write(t);
              if (fault !== 'applied first') control.setApplied(t + 1);
              if (options.walks !== undefined) generation.maintain(maintainFuel);
            }
          };
        },
        plainStores: (at) => fault === 'plain publish' && isInPages(at),
      },
      {
        name: 'reader',
        start: ({ arena }) => {
          const control = new Control(arena, CONTROL);
          const slot = new ReaderSlot(arena, control.epochAddress, SLOT);
          const pool = new BufferPool(arena, TABLES, 1);
          const reader = new GenerationReader(arena);
          const cursor = new GenerationCursor(arena, pool);
          const header = arena.i32[TOLD >>> 2];
          return () => {
            slot.enter();
            const T = control.applied() - 1;
            reader.attach(header);
            for (const key of finds) {
              const bytes = KEYS[key];
              const hash = keyHash(bytes, 0, bytes.length);
              const node = reader.find(COLLECTION, bytes, 0, bytes.length, hash, T);
              const time = node === 0 ? -1 : reader.timeOf(node);
              invariant(time === expected(writes, key, T), 'the newest at T', T, time);
            }
            if (options.walks !== undefined) {
              cursor.open(header, COLLECTION, T, VERSIONS_NEWEST);
              walk(cursor, writes, T, options.walks === 'forward');
            }
            slot.leave();
            return T;
          };
        },
        plainLoads: (at) => fault === 'plain probe' && isInPages(at),
      },
    ],
    check: ({ arena }, _, results) => {
      invariant(Number(results[1]) >= before - 1, 'the reader ran');
      const pool = new BufferPool(arena, TABLES, 1);
      invariant(pool.usedPages(KIND_MEMTABLE) > 0, 'the generation is there');
      const directory = loadLink(arena.i32, (arena.i32[TOLD >>> 2] >>> 2) + DIRECTORY_WORD);
      invariant((directory !== 0) === (options.walks !== undefined), 'what is walked was sorted');
      // Alone, at every time.
      const cursor = new GenerationCursor(arena, pool);
      for (let T = 0; T < writes.length; T++) {
        cursor.open(arena.i32[TOLD >>> 2], COLLECTION, T, VERSIONS_NEWEST);
        walk(cursor, writes, T, true);
      }
    },
  };
}

/** Address of the key's newest node, as the writer may look for it. */
function findNode(arena: Arena, key: number): number {
  const reader = new GenerationReader(arena);
  reader.attach(loadLink(arena.i32, TOLD >>> 2));
  const bytes = KEYS[key];
  const hash = keyHash(bytes, 0, bytes.length);
  return reader.find(COLLECTION, bytes, 0, bytes.length, hash, Number.MAX_SAFE_INTEGER);
}

function walk(
  cursor: GenerationCursor,
  writes: readonly number[],
  T: number,
  forward: boolean,
): void {
  const times = KEYS.map((_, key) => expected(writes, key, T)).filter((time) => time !== -1);
  if (!forward) times.reverse();
  if (forward) cursor.first();
  else cursor.last();
  for (const time of times) {
    invariant(cursor.valid, 'no row is missing', T, time);
    invariant(cursor.time === time, 'rows by key, each the newest at T', cursor.time, time);
    if (forward) cursor.next();
    else cursor.previous();
  }
  invariant(!cursor.valid, 'and no row too many', T, cursor.time);
}

export const memtableCases: readonly Case[] = [
  holds(
    memtableScript({
      name: 'nodes of one chain are replaced',
      writes: [0, 1, 2, 1, 2, 0],
      before: 3,
      finds: [0, 2],
    }),
  ),
  holds(
    memtableScript({
      name: 'a key comes into a chain',
      writes: [0, 2, 1, 0],
      before: 2,
      finds: [1, 0],
    }),
  ),
  holds(
    memtableScript({ name: 'the first key of a bucket', writes: [2, 2], before: 0, finds: [2] }),
  ),
  holds(
    memtableScript({
      name: 'a chunk is sorted under a walk',
      writes: [2, 0, 1, 2],
      before: 1,
      chunkKeys: 1,
      walks: 'forward',
    }),
  ),
  holds(
    memtableScript({
      name: 'runs are merged under a walk backward',
      writes: [1, 2, 0, 1],
      before: 1,
      chunkKeys: 1,
      walks: 'backward',
    }),
  ),
  holds(
    memtableScript({
      name: 'replaced twice, all keys asked for',
      writes: [0, 1, 2, 1, 0, 2, 1, 0, 2],
      before: 3,
      finds: [0, 1, 2, 0],
    }),
    'deep',
  ),
  planted(
    memtableScript({
      name: 'planted: plain probe read of link words',
      writes: [0, 1, 2, 1],
      before: 3,
      finds: [0],
      fault: 'plain probe',
    }),
    'race',
  ),
  planted(
    memtableScript({
      name: 'planted: nodes published plainly',
      writes: [0, 1, 2, 1],
      before: 3,
      finds: [0],
      fault: 'plain publish',
    }),
    'race',
  ),
  planted(
    memtableScript({
      name: 'planted: applied published before the insert',
      writes: [0, 1, 2, 1],
      before: 3,
      finds: [1],
      fault: 'applied first',
    }),
    'threw',
  ),
  planted(
    memtableScript({
      name: 'planted: a replaced node ends its chain',
      writes: [0, 1, 2, 1],
      before: 3,
      finds: [0],
      fault: 'a replaced node ends its chain',
    }),
    'threw',
  ),
];
