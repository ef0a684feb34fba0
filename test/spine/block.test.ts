/** Blocks alone: every row comes back, both ways and by key, whatever the keys, times and values. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import { commonPrefix } from '../../core/base/bytes.ts';
import {
  ABSENT,
  BlockBuilder,
  BlockCursor,
  blockFault,
  blockShapeFault,
  BlockSearch,
  CONTINUES,
  FOUND,
} from '../../core/spine/block.ts';
import {
  ArrayCursor,
  backwards,
  bytes,
  del,
  forwards,
  line,
  lines,
  naiveGet,
  put,
  randomBytes,
  randomKey,
  randomRows,
  rowOf,
  sorted,
  update,
} from './rows.ts';
import type { Row } from './rows.ts';

/** The stored block, at an odd place among other bytes. */
function encode(rows: readonly Row[]): { at: number; target: Uint8Array; length: number } {
  const builder = new BlockBuilder();
  let last = bytes('');
  for (const { key, time, kind, diff, value } of rows) {
    const shared = commonPrefix(last, 0, last.length, key, 0, key.length);
    builder.add(key, 0, key.length, shared, time, kind, diff, value, 0, value.length);
    last = key;
  }
  const at = 7;
  const target = new Uint8Array(builder.bytes + 16).fill(0xee);
  const length = builder.write(target, at);
  assert.equal(length, builder.bytes);
  assert.equal(target[at - 1], 0xee);
  assert.equal(target[at + length], 0xee);
  return { at, target, length };
}

function opened(rows: readonly Row[]): BlockCursor {
  const { at, target, length } = encode(rows);
  assert.equal(blockFault(target, at, length), undefined);
  const cursor = new BlockCursor();
  cursor.open(target, at);
  return cursor;
}

const SHAPES: [string, Row[]][] = [
  ['one row', [put('', 0, '')]],
  ['one tombstone', [del('k', 5)]],
  ['equal times', [put('a', 9, '1'), put('b', 9, '2'), put('c', 9, '')]],
  ['times 16 bits apart', [put('a', 70_000, '1'), put('b', 70_000 - 65_535, '2')]],
  ['times 32 bits apart', [put('a', 2 ** 33 + 2 ** 32 - 1, '1'), put('b', 2 ** 33, '2')]],
  [
    'times far apart',
    [put('a', Number.MAX_SAFE_INTEGER, '1'), put('b', 0, '2'), del('c', 2 ** 40)],
  ],
  ['64 KiB keys', sorted([0, 1, 2].map((i) => put(longKey(i), i, 'v')))],
  ['long values', [put('a', 1, new Uint8Array(70_000).fill(1)), put('b', 2, 'x'), put('c', 3, '')]],
  ['2 MiB value', [put('a', 1, randomBytes(new Prng(3), 2 << 20))]],
  ['many versions of one key', Array.from({ length: 100 }, (_, i) => put('key', 1000 - i, `${i}`))],
  ['updates', [update('a', 3, 'x', 5), update('b', 2, 'y', -7), update('c', 1, '', 2 ** 52)]],
];

function longKey(last: number): Uint8Array {
  const key = new Uint8Array(65_535).fill(0x6b);
  key[65_534] = last;
  return key;
}

for (const [name, rows] of SHAPES) {
  test(`a block of ${name} gives back its rows both ways`, () => {
    assert.deepEqual(lines(forwards(opened(rows))), lines(rows));
    assert.deepEqual(lines(backwards(opened(rows))), lines(rows));
  });
}

test('random blocks walk and seek as a sorted array does', () => {
  const prng = new Prng(11);
  for (let round = 0; round < 60; round++) {
    const rows = randomRows(prng, prng.between(1, 120), round % 3 === 0 ? 2 ** 45 : 1000);
    const cursor = opened(rows);
    const model = new ArrayCursor(rows);
    assert.deepEqual(lines(forwards(cursor)), lines(rows));
    assert.deepEqual(lines(backwards(cursor)), lines(rows));
    for (let i = 0; i < 60; i++) {
      const key = prng.chance(0.5) ? prng.pick(rows).key : randomKey(prng, 300);
      const padded = new Uint8Array(key.length + 2);
      padded.set(key, 1);
      if (prng.chance(0.5)) {
        cursor.seek(padded, 1, key.length);
        model.seek(padded, 1, key.length);
      } else {
        cursor.seekBelow(padded, 1, key.length);
        model.seekBelow(padded, 1, key.length);
      }
      for (let step = 0; step < 6; step++) {
        assert.equal(cursor.valid, model.valid);
        if (!model.valid) break;
        assert.equal(line(rowOf(cursor)), line(rowOf(model)));
        if (prng.chance(0.5)) {
          cursor.next();
          model.next();
        } else {
          cursor.previous();
          model.previous();
        }
      }
    }
  }
});

test('a search finds the newest version at or below a time, as a scan would', () => {
  const prng = new Prng(12);
  const search = new BlockSearch();
  for (let round = 0; round < 60; round++) {
    const rows = randomRows(prng, prng.between(1, 120), 200);
    const { at, target } = encode(rows);
    const lastKey = rows[rows.length - 1].key;
    for (let i = 0; i < 100; i++) {
      const key = prng.chance(0.7) ? prng.pick(rows).key : randomKey(prng, 300);
      const asOf = prng.below(210);
      const answer = search.search(target, at, key, 0, key.length, asOf);
      const expected = naiveGet(rows, key, asOf);
      if (expected !== undefined) {
        assert.equal(answer, FOUND);
        const { time, kind, diff, valueOffset, valueLength } = search;
        const value = target.slice(valueOffset, valueOffset + valueLength);
        assert.equal(line({ key, time, kind, diff, value }), line(expected));
      } else {
        assert.equal(answer, compareBytes(key, lastKey) === 0 ? CONTINUES : ABSENT);
      }
    }
  }
});

test('a flipped byte is seen by the checksum, and never crashes a reader without it', () => {
  const rows = randomRows(new Prng(13), 40, 1000);
  const { at, target, length } = encode(rows);
  const search = new BlockSearch();
  for (let i = 0; i < length; i++) {
    target[at + i] = target[at + i] ^ (1 << (i % 8));
    assert.notEqual(blockFault(target, at, length), undefined);
    if (blockShapeFault(target, at, length) === undefined) {
      for (const { key } of rows) search.search(target, at, key, 0, key.length, 500);
    }
    target[at + i] = target[at + i] ^ (1 << (i % 8));
  }
  assert.equal(blockFault(target, at, length), undefined);
  assert.notEqual(blockFault(target, at, length - 1), undefined);
  assert.notEqual(blockFault(target, at, 3), undefined);
});
