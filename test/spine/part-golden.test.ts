/**
 * Format 1 of a part, pinned byte for byte: what is written today is what was written then, and what
 * was written then is read. `UPDATE_GOLDEN=1` writes the files anew, which a change of format needs
 * and nothing else does. The .txt beside a file says what every byte of it is.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { getU32, getU64 } from '../../core/base/bytes.ts';
import { KIND_KEYED, KIND_MULTISET } from '../../core/base/update.ts';
import { FOOTER_TAIL_BYTES } from '../../core/spine/part-format.ts';
import type { PartInfo } from '../../core/spine/part-format.ts';
import { readFooters } from '../../core/spine/part-reader.ts';
import { keyHash, RowSums, valueHash } from '../../core/spine/row-hash.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import { partPath } from '../../core/storage/names.ts';
import { bytes, del, forwards, lines, put, simDisk, sorted, update, writeRun } from './rows.ts';
import type { Row } from './rows.ts';

const DIRECTORY = fileURLToPath(new URL('../golden/part/', import.meta.url));

type Case = { name: string; kind: number; blockBytes: number; rows: Row[] };

const CASES: Case[] = [
  {
    name: 'keyed',
    kind: KIND_KEYED,
    blockBytes: 400,
    rows: sorted([
      put('', 7, 'the empty key'),
      ...Array.from({ length: 40 }, (_, i) => put(`user/${100 + 7 * i}`, 1000 + i, `value ${i}`)),
      ...Array.from({ length: 30 }, (_, i) => put('user/counter', 5000 + i, `${i}`)),
      del('user/107', 2000),
      del('gone', 3),
    ]),
  },
  {
    name: 'wide',
    kind: KIND_KEYED,
    blockBytes: 16_384,
    rows: sorted([
      put('a', 2 ** 53 - 1, new Uint8Array(70_000).fill(0x2e)),
      put('a', 0, ''),
      put(new Uint8Array(300).fill(0xff), 2 ** 40, 'long key'),
    ]),
  },
  {
    name: 'updates',
    kind: KIND_MULTISET,
    blockBytes: 16_384,
    rows: [update('a', 1, 'x', 1), update('b', 2, 'y', -3), update('c', 3, '', 2 ** 40)],
  },
];

for (const { name, kind, blockBytes, rows } of CASES) {
  test(`part format 1, ${name}: written and read as ever`, () => {
    const disk = simDisk();
    const parts = writeRun(disk, 1, rows, { blockBytes }, kind);
    assert.equal(parts.length, 1);
    const written = disk.bytesOf(partPath(1)) ?? new Uint8Array(0);
    const file = `${DIRECTORY}format-1-${name}.part`;
    const text = print(written, parts[0]);
    if (process.env['UPDATE_GOLDEN'] === '1') {
      writeFileSync(file, written);
      writeFileSync(`${file}.txt`, text);
    }
    const golden = Uint8Array.from(readFileSync(file));
    assert.equal(Buffer.compare(written, golden), 0, `${name} is written otherwise`);
    assert.equal(text, readFileSync(`${file}.txt`, 'utf8'));
    const other = simDisk();
    other.plant(partPath(9), golden);
    const infos = readFooters(other, [{ file: 9, offset: 0, bytes: golden.length }]);
    const cursor = new RunCursor(other, new OwnRunParts(other, infos));
    assert.deepEqual(lines(forwards(cursor)), lines(rows));
    cursor.leave();
  });
}

test('the hashes of rows, which footers keep, are what they were', () => {
  const long = new Uint8Array(300).fill(7);
  const key = bytes('key');
  assert.deepEqual(
    [keyHash(key, 0, 3), keyHash(key, 0, 0), valueHash(key, 0, 3), valueHash(long, 0, 300)],
    [HASHES.key, HASHES.empty, HASHES.value, HASHES.long],
  );
  const sums = new RowSums();
  sums.add(1, 1, 2, 2 ** 40 + 3, 1);
  sums.add(3, 2, 4, 5, -1);
  sums.add(5, 3, 6, 7, -8);
  assert.deepEqual(sums.hash(), HASHES.sums);
  assert.equal(sums.diffSum, -8);
});

const HASHES = {
  key: 409480573,
  empty: 1532523542,
  value: 3130822431,
  long: 2057376488,
  sums: [922032119, 1928042998],
};

/** A part field by field, with offsets. */
function print(part: Uint8Array, info: PartInfo): string {
  const out: string[] = [];
  const say = (offset: number, length: number, what: string): void => {
    out.push(`${String(offset).padStart(6)} ${String(length).padStart(6)}  ${what}`);
  };
  const index = info.indexOffset;
  for (let i = 0; i < info.blockCount; i++) {
    const at = getU32(part, index + 16 + 4 * i);
    const end = getU32(part, index + 16 + 4 * (i + 1));
    const rows = getU32(part, at + 12);
    const restarts = (rows + 15) >>> 4;
    const [flags, timeWidth, endWidth] = [part[at + 5], part[at + 6], part[at + 7]];
    say(at, end - at, `block ${i}`);
    say(at, 4, `  CRC-32 ${hex(getU32(part, at))}`);
    say(at + 4, 1, `  codec ${part[at + 4]}`);
    say(at + 5, 1, `  flags ${flags}`);
    say(at + 6, 1, `  bytes of a time ${timeWidth}`);
    say(at + 7, 1, `  bytes of a value end ${endWidth}`);
    say(at + 8, 4, `  bytes when decoded ${getU32(part, at + 8)}`);
    say(at + 12, 4, `  rows ${rows}`);
    say(at + 16, 8, `  base of times ${getU64(part, at + 16)}`);
    say(at + 24, 4, `  bytes of keys ${getU32(part, at + 24)}`);
    let p = at + 28;
    const column = (length: number, what: string): void => {
      if (length > 0) say(p, length, `  ${what}`);
      p += length;
    };
    column(4 * restarts, 'restarts');
    column(rows * timeWidth, 'times');
    column(rows * endWidth, 'value ends');
    column((flags & 1) !== 0 ? (rows + 7) >>> 3 : 0, 'tombstones');
    column((flags & 2) !== 0 ? 8 * rows : 0, 'diffs');
    column(getU32(part, at + 24), 'keys');
    column(end - p, 'values');
  }
  const filter = info.filterOffset;
  say(filter, info.filterBytes, 'filter');
  say(filter, 4, `  CRC-32 ${hex(getU32(part, filter))}`);
  say(filter + 4, 4, `  lines ${getU32(part, filter + 4)}`);
  say(filter + 8, 4, `  keys ${getU32(part, filter + 8)}`);
  say(filter + 12, 4, `  zero ${getU32(part, filter + 12)}`);
  say(filter + 16, info.filterBytes - 16, '  lines of 64 bytes');
  const n = info.blockCount;
  const prefixBytes = getU32(part, index + 12);
  say(index, info.indexBytes, 'index');
  say(index, 4, `  CRC-32 ${hex(getU32(part, index))}`);
  say(index + 4, 4, `  bytes ${getU32(part, index + 4)}`);
  say(index + 8, 4, `  blocks ${n}`);
  say(index + 12, 4, `  bytes of the shared prefix ${prefixBytes}`);
  say(index + 16, 4 * (n + 1), '  where blocks begin, and the last ends');
  if (n > 1) say(index + 16 + 4 * (n + 1), 4 * (n - 1), '  where bounds end');
  let p = index + 16 + 8 * n;
  if (prefixBytes > 0) say(p, prefixBytes, `  prefix ${quoted(part, p, prefixBytes)}`);
  p += prefixBytes;
  for (let i = 0; i + 1 < n; i++) {
    const start = i === 0 ? 0 : getU32(part, index + 16 + 4 * (n + i));
    const length = getU32(part, index + 16 + 4 * (n + 1 + i)) - start;
    say(p + start, length, `  bound ${i}: ${quoted(part, p + start, length)}`);
  }
  const footer = info.footerOffset;
  const tail = part.length - FOOTER_TAIL_BYTES;
  say(footer, part.length - footer, 'footer');
  say(footer, info.keyLo.length, '  smallest key');
  say(footer + info.keyLo.length, info.keyHi.length, '  largest key');
  const fields: [number, string, string | number][] = [
    [8, 'bytes of the part', info.bytes],
    [8, 'rows', info.len],
    [8, 'bytes of keys and values', info.rowBytes],
    [8, 'smallest time', info.minT],
    [8, 'largest time', info.maxT],
    [8, 'negatives', info.negatives],
    [8, 'range deletes', info.rangeDeletes],
    [8, 'sum of diffs', info.diffSum],
    [4, 'hash, lane 0', hex(info.hash[0])],
    [4, 'hash, lane 1', hex(info.hash[1])],
    [4, 'blocks', info.blockCount],
    [4, 'offset of range deletes', info.rangeDeletesOffset],
    [4, 'offset of filter', info.filterOffset],
    [4, 'offset of index', info.indexOffset],
    [4, 'offset of footer', info.footerOffset],
    [4, 'bytes of smallest key', info.keyLo.length],
    [4, 'bytes of largest key', info.keyHi.length],
    [1, 'kind', info.kind],
    [1, 'codec', info.codec],
    [2, 'zero', 0],
    [4, 'distinct rows', info.distinct],
    [4, 'format', getU32(part, tail + 108)],
    [4, 'CRC-32', hex(getU32(part, tail + 112))],
    [8, 'magic', JSON.stringify(String.fromCharCode(...part.subarray(tail + 116)))],
  ];
  let at = tail;
  for (const [length, what, value] of fields) {
    say(at, length, `  ${what} ${value}`);
    at += length;
  }
  assert.equal(at, part.length);
  return `${out.join('\n')}\n`;
}

function hex(n: number): string {
  return `0x${n.toString(16).padStart(8, '0')}`;
}

function quoted(part: Uint8Array, at: number, length: number): string {
  return JSON.stringify(String.fromCharCode(...part.subarray(at, at + length)));
}
