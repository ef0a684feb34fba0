/**
 * Memtable alone, one thread: inserts with all sorting and merging they cause, point finds, scans and
 * seeks. Not measured: encoding, rings, several threads on one arena. Run it with
 * `node --import tsx bench/micro/memtable.ts [rows]`. Goals: inserts and finds at 1.5 M/s each.
 */
import { MiB, pageBytes } from '../../core/base/limits.ts';
import { setU16, setU32 } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import {
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_PUT,
  OP_VALUE_BYTES_OFFSET,
  TX_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  operationBytes,
  keyOffsetOf,
} from '../../core/base/update.ts';
import { GenerationCursor, VERSIONS_NEWEST } from '../../core/memtable/cursor.ts';
import { GenerationReader, keyHash } from '../../core/memtable/reader.ts';
import { GenerationWriter, maintainFuel } from '../../core/memtable/writer.ts';
import { Arena } from '../../core/shared/arena.ts';
import { BufferPool, KIND_RECORD } from '../../core/shared/buffer-pool.ts';
import { OperationWalker, pageOf } from '../../core/shared/record-pages.ts';

const ROWS = Number(process.argv[2] ?? 500_000);
const ONLY: string | undefined = process.argv[3];
const ROUNDS = 4;
const KEY_BYTES = 16;
const VALUE_BYTES = 100;
const OPERATIONS_PER_RECORD = 100;
const OPERATION_BYTES: number = operationBytes(OP_PUT, KEY_BYTES, VALUE_BYTES);
const RECORD_BYTES: number = TX_HEADER_BYTES + OPERATIONS_PER_RECORD * OPERATION_BYTES;

/** Fills `key` for row n of a workload. */
type Keys = (key: Uint8Array, n: number, random: Prng) => void;

const WORKLOADS: Record<string, Keys> = {
  'random keys': (key, _n, random) => random.fill(key),
  'shared prefix': (key, _n, random) => {
    key.fill(0x2f);
    setU32(key, 12, random.u32());
  },
  'sequential keys': (key, n) => {
    key.fill(0);
    for (let i = 0, rest = n; i < 8; i++, rest = Math.floor(rest / 256)) key[15 - i] = rest % 256;
  },
  'hot keys (100)': (key, _n, random) => {
    key.fill(0);
    key[15] = random.below(100);
  },
};

const arena: Arena = Arena.create(512 * MiB);
const pool: BufferPool = new BufferPool(arena, 128, 1);
pool.reset([0, 2_000, 2_000]);

function measure(count: number, work: () => void): string {
  // Of CPU, so that a busy machine distorts less.
  const start = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(start);
  const ms = (user + system) / 1_000;
  return `${(count / ms / 1_000).toFixed(2).padStart(6)} M/s`;
}

function layRecords(keys: Keys): { addresses: number[]; pages: number[] } {
  const random = new Prng(7);
  const key = new Uint8Array(KEY_BYTES);
  const addresses: number[] = [];
  const pages: number[] = [];
  let at = 0;
  let page = 0;
  for (let n = 0; n < ROWS; n += OPERATIONS_PER_RECORD) {
    if (page === 0 || at + RECORD_BYTES > page + pageBytes) {
      at = page = pool.lease(KIND_RECORD);
      pool.retain(page);
      pages.push(page);
    }
    addresses.push(at);
    setU32(arena.u8, at + TX_BYTES_OFFSET, RECORD_BYTES);
    setU32(arena.u8, at + TX_COUNT_OFFSET, OPERATIONS_PER_RECORD);
    at += TX_HEADER_BYTES;
    for (let i = 0; i < OPERATIONS_PER_RECORD; i++) {
      arena.u8.fill(0, at, at + OPERATION_BYTES);
      arena.u8[at] = 5;
      arena.u8[at + OP_KIND_OFFSET] = OP_PUT;
      setU16(arena.u8, at + OP_KEY_BYTES_OFFSET, KEY_BYTES);
      setU32(arena.u8, at + OP_VALUE_BYTES_OFFSET, VALUE_BYTES);
      keys(key, n + i, random);
      arena.u8.set(key, at + keyOffsetOf(OP_PUT));
      at += OPERATION_BYTES;
    }
  }
  return { addresses, pages };
}

function run(name: string, keys: Keys): void {
  const { addresses, pages } = layRecords(keys);
  const walker = new OperationWalker(arena, pool);
  let slowest = 0;
  const writer = GenerationWriter.create(arena, pool, { bytes: 512 * MiB, rows: 524_288 });
  if (writer === undefined) throw new Error('no pages');
  writer.open(0);
  const inserted = measure(ROWS, () => {
    for (let r = 0; r < addresses.length; r++) {
      const address = addresses[r];
      if (!writer.roomFor(OPERATIONS_PER_RECORD, RECORD_BYTES)) throw new Error('no room');
      writer.retainPage(pageOf(address));
      walker.start(address, 1);
      while (walker.next()) writer.insert(walker, r);
      if ((r & 7) !== 0) continue;
      const start = performance.now();
      writer.maintain(maintainFuel);
      slowest = Math.max(slowest, performance.now() - start);
    }
    while (writer.maintain(maintainFuel));
  });

  const reader = new GenerationReader(arena);
  const probes = Buffer.alloc(ROWS * KEY_BYTES);
  const random = new Prng(7);
  const key = new Uint8Array(KEY_BYTES);
  for (let n = 0; n < ROWS; n++) {
    keys(key, n, random);
    probes.set(key, n * KEY_BYTES);
  }
  // The order of probing has nothing to do with that of inserting.
  const order = new Uint32Array(ROWS).map((_, i) => (i * 7_919) % ROWS);
  let hits = 0;
  const find = (): void => {
    for (let n = 0; n < ROWS; n++) {
      const at = order[n] * KEY_BYTES;
      reader.attach(writer.header);
      const hash = keyHash(probes, at, KEY_BYTES);
      if (reader.find(5, probes, at, KEY_BYTES, hash, addresses.length) !== 0) hits++;
    }
  };
  const found = measure(ROWS, find);

  const cursor = new GenerationCursor(arena, pool);
  let rows = 0;
  const scan = measure(writer.keys, () => {
    cursor.open(writer.header, 5, addresses.length, VERSIONS_NEWEST);
    for (cursor.first(); cursor.valid; cursor.next()) rows++;
  });
  const SEEKS = 20_000;
  const seeks = measure(SEEKS, () => {
    for (let n = 0; n < SEEKS; n++) {
      cursor.open(writer.header, 5, addresses.length, VERSIONS_NEWEST);
      cursor.seek(probes, order[n] * KEY_BYTES, KEY_BYTES);
      if (cursor.valid) hits++;
    }
  });
  console.log(
    `${name.padEnd(18)} insert ${inserted}  find ${found}  scan ${scan}  seek ${seeks}` +
      `  slowest maintain ${slowest.toFixed(2)} ms, ${writer.pages} pages, hash ${hits + rows}`,
  );
  writer.free();
  for (const page of pages) pool.release(page);
}

for (let round = 0; round < ROUNDS; round++) {
  for (const [name, keys] of Object.entries(WORKLOADS)) {
    if (ONLY === undefined || name.startsWith(ONLY)) run(name, keys);
  }
}
