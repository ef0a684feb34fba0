/** Row hashes: what is copied on the way is what was hashed, whatever the length and place. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { copyValue, valueHash } from '../../core/spine/row-hash.ts';
import { randomBytes } from './rows.ts';

test('a value hashed while it is copied has the same hash, and is copied whole and alone', () => {
  const prng = new Prng(61);
  const lengths = [...Array.from({ length: 40 }, (_, i) => i), 100, 255, 256, 257, 5000];
  for (const length of lengths) {
    const source = randomBytes(prng, length + 10);
    const from = prng.below(10);
    const target = new Uint8Array(length + 20).fill(0xee);
    const at = prng.below(10);
    const expected = valueHash(source, from, length);
    assert.equal(copyValue(source, from, length, target, at), expected, `${length} bytes`);
    assert.deepEqual(target.slice(at, at + length), source.slice(from, from + length));
    const around = [...target.subarray(0, at), ...target.subarray(at + length)];
    assert.ok(
      around.every((byte) => byte === 0xee),
      `${length} bytes: nothing beside them changed`,
    );
  }
});
