/**
 * Records in pages. Goal: whatever the transactions and wherever the pages lie, the pieces in chain
 * order are the payload byte for byte, and walking and gathering give back what was written. Method:
 * random payloads and the awkward ones, laid over pages that lie in any order between pages whose
 * tables hold other chains, compared with the list of operations they were made of.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { alignUp, setF64, setU16, setU32 } from '../../core/base/bytes.ts';
import { crc32 } from '../../core/base/crc32.ts';
import {
  KiB,
  MiB,
  inPlaceBytesMin,
  keyBytesMax,
  pageBytes,
  pageShift,
  transactionsPerRecordMax,
} from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import {
  OP_COLLECTION_OFFSET,
  OP_DELETE,
  OP_DIFF_OFFSET,
  OP_HEADER_BYTES,
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_PUT,
  OP_UPDATE,
  OP_VALUE_BYTES_OFFSET,
  TX_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
  operationBytes,
} from '../../core/base/update.ts';
import { Arena } from '../../core/shared/arena.ts';
import { BufferPool, KIND_RECORD } from '../../core/shared/buffer-pool.ts';
import {
  OperationWalker,
  eachPiece,
  endOfValue,
  gatherValue,
  isContiguous,
  layChained,
  pageOf,
  pagesFor,
  releaseChain,
} from '../../core/shared/record-pages.ts';

type Operation = { collection: number; kind: number; key: Uint8Array; value: Uint8Array };
type Transaction = readonly Operation[];

const ALL = 1_000_000;

// ---------------------------------------------------------------------------------------------

function bytesOf(transaction: Transaction): number {
  return transaction.reduce(
    (sum, { kind, key, value }) => sum + operationBytes(kind, key.length, value.length),
    TX_HEADER_BYTES,
  );
}

function encode(transactions: readonly Transaction[]): Uint8Array {
  const payload = new Uint8Array(transactions.reduce((sum, tx) => sum + bytesOf(tx), 0));
  let at = 0;
  for (const transaction of transactions) {
    setU32(payload, at + TX_BYTES_OFFSET, bytesOf(transaction));
    setU32(payload, at + TX_COUNT_OFFSET, transaction.length);
    at += TX_HEADER_BYTES;
    for (const { collection, kind, key, value } of transaction) {
      setU32(payload, at + OP_COLLECTION_OFFSET, collection);
      payload[at + OP_KIND_OFFSET] = kind;
      setU16(payload, at + OP_KEY_BYTES_OFFSET, key.length);
      setU32(payload, at + OP_VALUE_BYTES_OFFSET, value.length);
      if (kind === OP_UPDATE) setF64(payload, at + OP_DIFF_OFFSET, collection + 1);
      payload.set(key, at + keyOffsetOf(kind));
      payload.set(value, at + keyOffsetOf(kind) + key.length);
      at += operationBytes(kind, key.length, value.length);
    }
  }
  return payload;
}

const prng = new Prng(77);

function random(bytes: number): Uint8Array {
  const target = new Uint8Array(bytes);
  for (let i = 0; i < bytes; i++) target[i] = prng.u32();
  return target;
}

function put(keyBytes: number, valueBytes: number): Operation {
  return { collection: 1, kind: OP_PUT, key: random(keyBytes), value: random(valueBytes) };
}

/** A put whose bytes, padding and all, are so many. */
function putOf(bytes: number): Operation {
  assert.equal(bytes % 8, 0);
  return put(3, bytes - OP_HEADER_BYTES - 3 - prng.below(5));
}

type Place = { arena: Arena; pool: BufferPool };

function makePlace(pages: number, limit: number = ALL): Place {
  const arena = Arena.create((pages + 1) * pageBytes);
  const pool = new BufferPool(arena, 128, 1);
  pool.reset([0, limit]);
  return { arena, pool };
}

/** Every other page belongs to somebody else: full, and with a chain that leads elsewhere. */
function occupy({ pool }: Place, pages: number): void {
  const all: number[] = [];
  for (let page = pool.lease(KIND_RECORD); page !== 0; page = pool.lease(KIND_RECORD))
    all.push(page);
  assert.equal(all.length, pages);
  all.forEach((page, i) => {
    if (i % 2 === 1) {
      pool.free(page, KIND_RECORD);
      return;
    }
    pool.setUsed(page, pageBytes);
    pool.setNext(page, all[(i + 2) % all.length]);
  });
}

function pagesOfChain(pool: BufferPool, first: number): number[] {
  const pages: number[] = [];
  for (let page = first; page !== 0; page = pool.next(page)) pages.push(page);
  return pages;
}

/** Checks all that can be said of a payload that was laid. */
function checkLaid(place: Place, first: number, transactions: readonly Transaction[]): void {
  const { arena, pool } = place;
  const payload = encode(transactions);
  const pages = pagesOfChain(pool, first);
  assert.equal(pageOf(first), first);
  assert.ok(pages.length <= pagesFor(payload.length), `${pages.length} pages`);

  // The pieces are the payload, each page's from its start.
  let at = 0;
  let crc = 0;
  const seen: number[] = [];
  eachPiece(pool, first, payload.length, (address, bytes) => {
    assert.equal(address, pageOf(address));
    assert.ok(bytes > 0 && bytes <= pageBytes);
    const piece = arena.u8.subarray(address, address + bytes);
    assert.equal(Buffer.compare(piece, payload.subarray(at, at + bytes)), 0, `piece at ${at}`);
    crc = crc32(arena.u8, address, bytes, crc);
    at += bytes;
    seen.push(address);
  });
  assert.equal(at, payload.length);
  assert.deepEqual(seen, payload.length === 0 ? [] : pages);
  assert.equal(crc, crc32(payload, 0, payload.length));

  // The walk gives the operations, none of whose headers and keys crosses a page's end.
  const walker = new OperationWalker(arena, pool);
  walker.start(first, transactions.length);
  const scratch = new Uint8Array(
    transactions.flat().reduce((n, op) => Math.max(n, op.value.length), 0),
  );
  transactions.forEach((transaction, t) => {
    for (const { collection, kind, key, value } of transaction) {
      assert.ok(walker.next());
      assert.equal(walker.txIndex, t);
      assert.equal(walker.collection, collection);
      assert.equal(walker.kind, kind);
      assert.equal(walker.keyBytes, key.length);
      assert.equal(walker.valueBytes, value.length);
      const keyEnd = walker.keyAddress + walker.keyBytes;
      assert.equal(walker.address & 7, 0);
      assert.equal(walker.address >>> pageShift, (keyEnd - 1) >>> pageShift);
      assert.equal(Buffer.compare(arena.u8.subarray(walker.keyAddress, keyEnd), key), 0);
      if (kind === OP_UPDATE) {
        assert.equal(arena.f64[(walker.address + OP_DIFF_OFFSET) >>> 3], collection + 1);
      }
      gatherValue(arena, pool, keyEnd, value.length, scratch, 0);
      assert.equal(Buffer.compare(scratch.subarray(0, value.length), value), 0);
      const end = endOfValue(pool, keyEnd, value.length);
      const inOnePage = pageOf(keyEnd - 1) === pageOf(keyEnd + value.length - 1);
      assert.equal(isContiguous(keyEnd, value.length), value.length === 0 || inOnePage);
      if (inOnePage) assert.equal(end, alignUp(keyEnd + value.length, 8));
      if (value.length <= inPlaceBytesMin)
        assert.ok(inOnePage || value.length === 0, 'small: in one piece');
    }
  });
  assert.equal(walker.next(), false);
  assert.equal(walker.next(), false);
}

function lay(place: Place, transactions: readonly Transaction[]): number {
  const first = layChained(place.arena, place.pool, encode(transactions), 0, transactions.length);
  assert.notEqual(first, 0);
  return first;
}

/** Lays, checks, replays what the pieces hold into other pages, checks again, and gives all back. */
function roundTrip(transactions: readonly Transaction[], pages = 12): void {
  const place = makePlace(2 * pages);
  occupy(place, 2 * pages);
  const { arena, pool } = place;
  const before = pool.usedPages(KIND_RECORD);
  const first = lay(place, transactions);
  checkLaid(place, first, transactions);

  // As recovery does: the bytes as they are on disk, at an odd offset of a larger buffer.
  const disk = new Uint8Array(encode(transactions).length + 13);
  let at = 13;
  eachPiece(pool, first, disk.length - 13, (address, bytes) => {
    disk.set(arena.u8.subarray(address, address + bytes), at);
    at += bytes;
  });
  const other = makePlace(pages);
  const again = layChained(other.arena, other.pool, disk, 13, transactions.length);
  checkLaid(other, again, transactions);

  releaseChain(other.pool, again);
  assert.equal(other.pool.usedPages(KIND_RECORD), 0);
  releaseChain(pool, first);
  assert.equal(pool.usedPages(KIND_RECORD), before);
}

// ---------------------------------------------------------------------------------------------

test('a record of one small transaction', () => {
  roundTrip([[put(1, 0)]]);
  roundTrip([[put(0, 0)]]);
  roundTrip([[{ collection: 2, kind: OP_DELETE, key: random(5), value: random(0) }]]);
});

test('transactions without operations, first, last, alone and by the thousand', () => {
  roundTrip([[]]);
  roundTrip([[], [put(3, 10)], [], [], [put(4, 0)], []]);
  roundTrip(Array.from({ length: transactionsPerRecordMax }, () => []));
});

test('a page is filled to its last byte, or to 8 bytes less, or 8 more', () => {
  for (const over of [-16, -8, 0, 8, 16]) {
    const rest = pageBytes - TX_HEADER_BYTES + over;
    const sizes = [64 * KiB, 64 * KiB, 64 * KiB, rest - 192 * KiB];
    roundTrip([sizes.map(() => put(3, 20 * KiB))]);
    // One transaction of large values, one of small ones, and many transactions.
    roundTrip([sizes.map(putOf), [put(5, 5)]]);
    const small = Math.floor((pageBytes + over) / 8 / 8);
    roundTrip([...Array.from({ length: 8 }, () => [putOf(small * 8 - 8)]), [put(5, 5)], []]);
    roundTrip([[putOf(1_024), putOf(rest - 1_024)], [], [put(1, 1)]]);
  }
});

test('a transaction header falls on the end of a page', () => {
  for (const left of [0, 8, 16, 24]) {
    const first = [putOf(128 * KiB), putOf(128 * KiB - TX_HEADER_BYTES - left)];
    roundTrip([first, [put(2, 2)], []]);
    roundTrip([first, [], [], [put(2, 2)]]);
  }
});

test('a key ends where its page ends, and its value is on the next', () => {
  for (const valueBytes of [0, inPlaceBytesMin + 1, 100_000, pageBytes, 3 * pageBytes]) {
    for (const keyBytes of [8, 65_528]) {
      const filler = pageBytes - TX_HEADER_BYTES - OP_HEADER_BYTES - keyBytes;
      const transactions = [[putOf(filler), put(keyBytes, valueBytes), put(9, 9)], [put(1, 1)]];
      const place = makePlace(8);
      const first = lay(place, transactions);
      const walker = new OperationWalker(place.arena, place.pool);
      walker.start(first, 2);
      walker.next();
      walker.next();
      assert.equal(walker.keyAddress + walker.keyBytes, first + pageBytes);
      roundTrip(transactions);
    }
  }
});

test('a value ends where a page ends, once and several pages on', () => {
  for (const over of [-9, -8, -1, 0, 1, 8]) {
    for (const pages of [1, 2, 3]) {
      const valueBytes = pages * pageBytes - TX_HEADER_BYTES - OP_HEADER_BYTES - 6 + over;
      roundTrip([[put(6, valueBytes)]]);
      roundTrip([[put(6, valueBytes), put(6, 1)], [], [put(6, valueBytes)]]);
    }
  }
});

test('small values move on with their operation, larger ones run on', () => {
  for (const over of [-1, 0, 1]) {
    const { arena, pool } = makePlace(4);
    const operations = [putOf(240 * KiB), put(4, inPlaceBytesMin + over)];
    const first = lay({ arena, pool }, [operations]);
    const walker = new OperationWalker(arena, pool);
    walker.start(first, 1);
    walker.next();
    walker.next();
    assert.equal(pageOf(walker.address) !== first, over <= 0);
    assert.equal(isContiguous(walker.keyAddress + 4, walker.valueBytes), over <= 0);
  }
});

test('the largest keys, with the largest values that stay with them', () => {
  roundTrip([Array.from({ length: 20 }, () => put(keyBytesMax, inPlaceBytesMin))], 24);
  roundTrip(
    [Array.from({ length: 12 }, (_, i) => (i % 2 === 0 ? put(keyBytesMax, 0) : putOf(160 * KiB)))],
    24,
  );
});

test('a value of 32 MiB', () => {
  const value = new Uint8Array(32 * MiB);
  for (let at = 0; at < value.length; at += 4_096) setU32(value, at, at + 1);
  roundTrip(
    [[put(10, 10), { collection: 7, kind: OP_PUT, key: random(20), value }, put(1, 1)]],
    140,
  );
});

test('random transactions over random pages', () => {
  const kinds = [OP_PUT, OP_PUT, OP_PUT, OP_DELETE, OP_UPDATE];
  for (let round = 0; round < 60; round++) {
    const sizes = prng.pick([
      [0, 40],
      [0, 4_000],
      [0, 40_000],
      [30_000, 34_000],
      [0, 400_000],
    ]);
    const keys = prng.pick([20, 300, keyBytesMax]);
    let room = 2 * MiB;
    const transactions: Transaction[] = [];
    const count = prng.between(1, 200);
    while (transactions.length < count && room > 0) {
      const transaction = Array.from({ length: prng.between(0, 6) }, (): Operation => {
        const kind = prng.pick(kinds);
        return {
          collection: prng.below(5),
          kind,
          key: random(prng.between(0, keys)),
          value: random(kind === OP_DELETE ? 0 : prng.between(sizes[0], sizes[1])),
        };
      });
      room -= bytesOf(transaction);
      transactions.push(transaction);
    }
    roundTrip(transactions, 40);
  }
});

test('a record at the start of a page does not look at the page before', () => {
  const place = makePlace(4);
  const { arena, pool } = place;
  const [before, page, elsewhere] = [1, 2, 3].map(() => pool.lease(KIND_RECORD));
  assert.equal(page, before + pageBytes);
  pool.free(page, KIND_RECORD);
  // The page before is a full one of another chain, which goes on elsewhere.
  pool.setUsed(before, pageBytes);
  pool.setNext(before, elsewhere);
  const transactions = [[put(4, 8)], [put(5, 9)]];
  const first = lay(place, transactions);
  assert.equal(first, page);
  checkLaid({ arena, pool }, first, transactions);
});

test('records one behind the other in one page', () => {
  const { arena, pool } = makePlace(2);
  const page = pool.lease(KIND_RECORD);
  let at = page;
  const records: { at: number; transactions: Transaction[] }[] = [];
  for (const last of [false, false, true]) {
    // The last ends where the page ends.
    const left = page + pageBytes - at;
    const transactions: Transaction[] = last
      ? [[putOf(64), putOf(left - 64 - TX_HEADER_BYTES)]]
      : [[put(7, 100), put(3, 70_000)], [], [put(8, 0)]];
    const payload = encode(transactions);
    arena.u8.set(payload, at);
    records.push({ at, transactions });
    at += payload.length;
  }
  assert.equal(at, page + pageBytes);
  const walker = new OperationWalker(arena, pool);
  for (const { at: start, transactions } of records) {
    walker.start(start, transactions.length);
    for (const { key, value } of transactions.flat()) {
      assert.ok(walker.next());
      const keyEnd = walker.keyAddress + walker.keyBytes;
      assert.equal(Buffer.compare(arena.u8.subarray(walker.keyAddress, keyEnd), key), 0);
      assert.equal(Buffer.compare(arena.u8.subarray(keyEnd, keyEnd + value.length), value), 0);
      assert.ok(isContiguous(keyEnd, value.length));
    }
    assert.equal(walker.next(), false);
    const pieces: number[] = [];
    const payload = encode(transactions);
    eachPiece(pool, start, payload.length, (address, bytes) => pieces.push(address, bytes));
    assert.deepEqual(pieces, [start, payload.length]);
  }
});

test('addresses above 2 GiB are laid and walked alike', () => {
  const pages = (2.5 * 1024 * MiB) / pageBytes;
  const arena = Arena.create(pages * pageBytes);
  const pool = new BufferPool(arena, 128, pages - 6);
  pool.reset([0, ALL]);
  const transactions = [[put(6, 300_000), put(3, 3)], [put(keyBytesMax, 600_000)]];
  const first = lay({ arena, pool }, transactions);
  assert.ok(first > 0x8000_0000);
  checkLaid({ arena, pool }, first, transactions);
});

test('without enough pages nothing is laid and nothing is kept', () => {
  const transactions = [
    [put(10, 600_000)],
    Array.from({ length: 30 }, () => put(500, 30_000)),
    [put(9, pageBytes)],
  ];
  const payload = encode(transactions);
  const needed = (() => {
    const place = makePlace(20);
    return pagesOfChain(place.pool, lay(place, transactions)).length;
  })();
  for (let limit = 0; limit < needed; limit++) {
    const { arena, pool } = makePlace(20, limit);
    assert.equal(layChained(arena, pool, payload, 0, transactions.length), 0);
    assert.equal(pool.usedPages(KIND_RECORD), 0);
    assert.equal(pool.audit()[KIND_RECORD], 0);
  }
  const { arena, pool } = makePlace(20, needed);
  assert.notEqual(layChained(arena, pool, payload, 0, transactions.length), 0);
});

test('pages stay while somebody holds them', () => {
  const place = makePlace(8);
  const { pool } = place;
  const first = lay(place, [[put(5, 2 * pageBytes)]]);
  const pages = pagesOfChain(pool, first);
  for (const page of pages.slice(1)) pool.retain(page);
  releaseChain(pool, first);
  assert.equal(pool.usedPages(KIND_RECORD), pages.length - 1);
  for (const page of pages.slice(1)) pool.release(page);
  assert.equal(pool.usedPages(KIND_RECORD), 0);
});
