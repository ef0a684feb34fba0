/**
 * Goal: every number comes once, and keys that a few bytes behind what all share tell apart come in their
 * order. Method: random keys of several shapes, against a sort by comparison.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes } from '../../core/base/bytes.ts';
import { keyOrderMax, orderKeys } from '../../core/base/key-order.ts';
import { Prng } from '../../core/base/prng.ts';

function orderOf(keys: readonly Buffer[]): number[] {
  const bytes = Buffer.concat([Buffer.from('before'), ...keys]);
  const starts: number[] = [];
  const ends: number[] = [];
  let at = 6;
  for (const { length } of keys) {
    starts.push(at);
    ends.push((at += length));
  }
  const order = new Uint32Array(keyOrderMax);
  orderKeys(bytes, starts, ends, keys.length, order);
  return [...order.subarray(0, keys.length)];
}

for (const shared of ['', 'tenant/17/user/']) {
  test(`keys beginning with '${shared}' come in the order of the bytes behind it`, () => {
    const random = new Prng(shared.length + 3);
    for (let round = 0; round < 200; round++) {
      const keys = Array.from({ length: random.below(40) }, () =>
        Buffer.concat([
          Buffer.from(shared),
          Buffer.from(Array.from({ length: random.below(5) }, () => random.pick([0, 1, 97, 255]))),
        ]),
      );
      const order = orderOf(keys);
      assert.deepEqual(
        order.toSorted((a, b) => a - b),
        [...keys.keys()],
      );
      const told = order.map((i) =>
        Buffer.concat([keys[i], Buffer.alloc(5)]).subarray(0, shared.length + 5),
      );
      for (let i = 1; i < told.length; i++) {
        assert.ok(compareBytes(told[i - 1], told[i]) <= 0, `${i} of round ${round}`);
      }
    }
  });
}

test('as many as there may be', () => {
  const keys = Array.from({ length: keyOrderMax }, (_, i) =>
    Buffer.from(`k${(i * 7) % keyOrderMax}`.padEnd(6)),
  );
  const sorted = orderOf(keys).map((i) => keys[i].toString());
  assert.deepEqual(sorted, keys.map(String).toSorted());
});
