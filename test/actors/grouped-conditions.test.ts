/**
 * What the transactions of one record write, as those that may join them look it up: nothing that is
 * written is missed, and what is not hardly ever keeps a transaction out.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WrittenRows } from '../../actors/grouped-conditions.ts';
import { hashAt } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';

function hashOf(key: string): number {
  const bytes = Buffer.from(key);
  return hashAt(bytes, 0, bytes.length, 7);
}

test('a row that is written is found, and hardly any other, group after group', () => {
  const prng = new Prng(3);
  const written = new WrittenRows();
  let others = 0;
  for (let group = 0; group < 500; group++) {
    written.clear();
    for (let i = 0; i < 64; i++) {
      const hash = hashOf(`k${prng.below(1e9)}`);
      if (written.mayHaveRow(hash)) others++;
      written.addRow(7, hash);
      assert.ok(written.mayHaveRow(hash), 'it is found');
    }
  }
  assert.ok(others < 5, `${others} of 500 groups would have ended for another row's`);
});

test('a collection is written by its rows and its ranges, a range by itself', () => {
  const written = new WrittenRows();
  written.addRow(1, 0);
  written.addRange(2);
  written.addRow(3, -1);
  assert.deepEqual(
    [1, 2, 3, 4].map((id) => [written.hasCollection(id), written.hasRange(id)]),
    [
      [true, false],
      [true, true],
      [true, false],
      [false, false],
    ],
  );
  assert.ok(written.mayHaveRow(-1), 'hashes are of 32 bits');
  written.clear();
  assert.deepEqual(
    [written.hasCollection(1), written.hasRange(2), written.mayHaveRow(-1)],
    [false, false, false],
  );
});
