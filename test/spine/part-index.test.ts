/** The index leads to the first block that may hold a key, from wherever its bytes lie. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { commonPrefix, compareBytes } from '../../core/base/bytes.ts';
import { keyBytesMax, pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import {
  blockBytes,
  blockCount,
  blockOffset,
  findBlock,
  IndexBuilder,
  indexFault,
} from '../../core/spine/part-index.ts';
import { bytes, randomKey } from './rows.ts';

/** A block as the index sees it: its first and last key. */
type Edge = { first: Uint8Array; last: Uint8Array; bytes: number };

function build(edges: readonly Edge[]): { memory: Uint8Array; at: number; length: number } {
  const builder = new IndexBuilder();
  let end = 0;
  edges.forEach((edge, i) => {
    end += edge.bytes;
    const next = edges[i + 1]?.first;
    if (next === undefined) {
      builder.endLast(end);
    } else {
      const shared = commonPrefix(edge.last, 0, edge.last.length, next, 0, next.length);
      builder.endBlock(end, edge.last.length, next, 0, next.length, shared);
    }
  });
  const at = 5;
  const memory = new Uint8Array(new SharedArrayBuffer(builder.bytes + 10)).fill(0xee);
  const length = builder.write(memory, at);
  assert.equal(length, builder.bytes);
  assert.equal(indexFault(memory, at, length, edges.length, end), undefined);
  return { memory, at, length };
}

/** Cuts ascending keys, some of them repeated, into blocks. */
function randomEdges(prng: Prng, prefix: string): { edges: Edge[]; keys: Uint8Array[] } {
  const keys = Array.from({ length: prng.between(1, 80) }, () =>
    Buffer.concat([bytes(prefix), randomKey(prng, 200)]),
  );
  keys.push(...keys.filter(() => prng.chance(0.3)));
  keys.sort(compareBytes);
  const edges: Edge[] = [];
  for (let i = 0; i < keys.length;) {
    const n = Math.min(prng.between(1, 6), keys.length - i);
    edges.push({ first: keys[i], last: keys[i + n - 1], bytes: prng.between(1, 20_000) });
    i += n;
  }
  return { edges, keys };
}

for (const prefix of ['', 'a/long/common/prefix/']) {
  test(`blocks are found as by walking their edges, keys beginning with '${prefix}'`, () => {
    const prng = new Prng(prefix.length + 1);
    for (let round = 0; round < 200; round++) {
      const { edges, keys } = randomEdges(prng, prefix);
      const { memory, at } = build(edges);
      assert.equal(blockCount(memory, at), edges.length);
      let offset = 0;
      for (let i = 0; i < edges.length; i++) {
        assert.equal(blockOffset(memory, at, i), offset);
        assert.equal(blockBytes(memory, at, i), edges[i].bytes);
        offset += edges[i].bytes;
      }
      for (let i = 0; i < 60; i++) {
        const key = prng.chance(0.6)
          ? prng.pick(keys)
          : Buffer.concat([bytes(prng.chance(0.8) ? prefix : ''), randomKey(prng, 200)]);
        const found = findBlock(memory, at, key, 0, key.length);
        // Wherever one begins to look.
        const near = prng.below(edges.length);
        assert.equal(findBlock(memory, at, key, 0, key.length, near), found, `from ${near}`);
        // Everything before the block is smaller; what follows it is larger, or the same key again.
        if (found > 0) assert.ok(compareBytes(edges[found - 1].last, key) < 0);
        const next = edges[found + 1];
        if (next !== undefined) {
          const order = compareBytes(next.first, key);
          assert.ok(order > 0 || (order === 0 && compareBytes(edges[found].last, key) === 0));
        }
      }
    }
  });
}

test('a key goes with the first of the blocks that its versions fill', () => {
  const k = bytes('k');
  const edge = { first: k, last: k, bytes: 10 };
  const edges = [
    { first: bytes('a'), last: bytes('b'), bytes: 10 },
    { first: bytes('c'), last: k, bytes: 10 },
    edge,
    edge,
    { first: k, last: bytes('k\0'), bytes: 10 },
    { first: bytes('k\0'), last: bytes('z'), bytes: 10 },
  ];
  const { memory, at } = build(edges);
  const find = (key: string): number => findBlock(memory, at, bytes(key), 0, key.length);
  assert.deepEqual(['a', 'bb', 'c', 'k', 'k\0', 'l', 'zz'].map(find), [0, 0, 1, 1, 4, 5, 5]);
});

test('one bound is as short as tells two blocks apart', () => {
  const { length } = build([
    { first: bytes('a'), last: bytes('user/alice/0123456789'), bytes: 9 },
    { first: bytes('user/bob/0123456789'), last: bytes('z'), bytes: 9 },
  ]);
  assert.equal(length, 16 + 3 * 4 + 1 * 4 + 'user/b'.length);
});

test('an index that says it has room stays inside a page, with the longest keys too', () => {
  const builder = new IndexBuilder();
  const key = new Uint8Array(keyBytesMax);
  let blocks = 0;
  for (; builder.hasRoom; blocks++) {
    key[keyBytesMax - 1] = blocks;
    const shared = blocks === 0 ? keyBytesMax : keyBytesMax - 1;
    builder.endBlock((blocks + 1) * 100, keyBytesMax, key, 0, keyBytesMax, shared);
  }
  builder.endLast((blocks + 1) * 100);
  assert.ok(blocks >= 2);
  assert.ok(builder.bytes <= pageBytes);
  const memory = new Uint8Array(builder.bytes);
  assert.equal(builder.write(memory, 0), memory.length);
  assert.equal(indexFault(memory, 0, memory.length, blocks + 1, (blocks + 1) * 100), undefined);
});

test('every flipped byte of an index is seen', () => {
  const { edges } = randomEdges(new Prng(77), 'p');
  const { memory, at, length } = build(edges);
  const end = edges.reduce((sum, edge) => sum + edge.bytes, 0);
  for (let i = 0; i < length; i++) {
    memory[at + i] = memory[at + i] ^ 32;
    assert.notEqual(indexFault(memory, at, length, edges.length, end), undefined);
    memory[at + i] = memory[at + i] ^ 32;
  }
  assert.notEqual(indexFault(memory, at, length, edges.length + 1, end), undefined);
  assert.notEqual(indexFault(memory, at, length, edges.length, end + 1), undefined);
});
