/** The filter never denies a key that is there, rarely claims one that is not, and fits its page. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pageBytes, partRowsMax } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { filterBytes, filterFault, filterMayHold, writeFilter } from '../../core/spine/filter.ts';
import { keyHash } from '../../core/spine/row-hash.ts';

function hashOf(prefix: string, i: number): number {
  const key = new TextEncoder().encode(`${prefix}${i}`);
  return keyHash(key, 0, key.length);
}

for (const count of [1, 7, 1_000, 100_000, partRowsMax]) {
  test(`a filter of ${count} keys holds them all and about 1 % of others`, () => {
    const hashes = Uint32Array.from({ length: count }, (_, i) => hashOf('key', i));
    // In shared memory and at an odd place: the bytes mean the same anywhere.
    const at = 13;
    const memory = new Uint8Array(new SharedArrayBuffer(filterBytes(count) + 20));
    const bytes = writeFilter(hashes, count, memory, at);
    assert.equal(bytes, filterBytes(count));
    assert.ok(bytes <= pageBytes);
    assert.equal(filterFault(memory, at, bytes), undefined);
    for (const hash of hashes) assert.ok(filterMayHold(memory, at, hash));
    let claimed = 0;
    const others = 100_000;
    for (let i = 0; i < others; i++) if (filterMayHold(memory, at, hashOf('other', i))) claimed++;
    assert.ok(claimed / others < 0.014, `${claimed} of ${others}`);
  });
}

test('every flipped byte of a filter is seen', () => {
  const prng = new Prng(5);
  const hashes = Uint32Array.from({ length: 50 }, () => prng.u32());
  const memory = new Uint8Array(filterBytes(50));
  const bytes = writeFilter(hashes, 50, memory, 0);
  for (let i = 0; i < bytes; i++) {
    memory[i] = memory[i] ^ 4;
    assert.notEqual(filterFault(memory, 0, bytes), undefined);
    memory[i] = memory[i] ^ 4;
  }
  assert.equal(filterFault(memory, 0, bytes), undefined);
  assert.notEqual(filterFault(memory, 0, bytes - 64), undefined);
});
