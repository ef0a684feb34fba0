/**
 * Goal: what a merge dropped tells how many keys there are, and so what a merge of all would drop: exactly
 * where runs hold all keys or none twice, closely where keys are drawn by chance, and never a number that is
 * none.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { keyCountOf, mergedLen, overlapOf } from '../../core/spine/key-count.ts';

/** Runs of `len` keys each, drawn from `keys`, and how many keys they hold together. */
function draw(random: Prng, keys: number, lens: readonly number[]): number {
  const all = new Set<number>();
  for (const len of lens) {
    const run = new Set<number>();
    while (run.size < len) run.add(random.below(keys));
    for (const key of run) all.add(key);
  }
  return all.size;
}

function isNear(found: number, expected: number, share: number): void {
  assert.ok(Math.abs(found - expected) <= share * expected, `${found}, not ${expected}`);
}

test('keys that are all in the oldest run are counted exactly', () => {
  assert.equal(keyCountOf([20, 12], 20), 20);
  assert.equal(overlapOf([20, 12, 12], 20), 1);
  isNear(keyCountOf([1_000, 500, 500], 1_000.5), 1_000, 0.01);
});

test('of keys drawn by chance a small merge tells what a large one will drop', () => {
  const random = new Prng(1);
  for (const keys of [2_000, 20_000, 100_000]) {
    const lens = [1_000, 800];
    const told = keyCountOf(lens, draw(random, keys, lens));
    isNear(told, keys, keys === 100_000 ? 0.8 : 0.15);
  }
  const few = [3_000, 1_000, 1_000];
  const told = keyCountOf(few, draw(random, 10_000, few));
  const many = [6_000, 1_000, 1_000, 1_000, 1_000];
  const dropped = 10_000 - draw(random, 10_000, many);
  isNear(4_000 * overlapOf(many, told), dropped, 0.05);
});

test('keys that are all different are thought to overlap as good as nothing', () => {
  for (const len of [1_000, 300_000, 50_000_000]) {
    const told = keyCountOf([len, len], 2 * len);
    assert.ok(overlapOf([2 * len, len, len, len, len], told) < 0.01, `${len}`);
  }
  assert.ok(overlapOf([16, 8, 8], keyCountOf([8, 8], 16)) < 0.2, 'even of few');
});

test('what says nothing is said to, and nothing ends in what is no number', () => {
  assert.equal(keyCountOf([], 0), 0);
  assert.equal(keyCountOf([10], 10), 0);
  assert.equal(keyCountOf([10, 0, 0], 10), 0);
  // Tombstones and range deletes drop more rows than keys met.
  assert.equal(keyCountOf([10, 10], 0), 10);
  assert.equal(overlapOf([], 10), 0);
  assert.equal(overlapOf([10], 10), 0);
  // More rows in a run than there were keys when they were counted.
  assert.equal(overlapOf([50, 10], 20), 1);
  const random = new Prng(7);
  for (let round = 0; round < 2_000; round++) {
    const lens = Array.from({ length: 2 + random.below(6) }, () =>
      Math.floor(2 ** (random.below(480) / 10)),
    );
    const sum = lens.reduce((total, len) => total + len, 0);
    const merged = Math.round(
      Math.max(...lens) + (random.below(1_000) / 999) * (sum - Math.max(...lens)),
    );
    const keys = keyCountOf(lens, merged);
    assert.ok(keys >= Math.max(...lens) && Number.isFinite(keys), `${lens.join()} -> ${keys}`);
    const left = mergedLen(lens, keys);
    assert.ok(Math.abs(left - merged) <= 0.51 + 1e-6 * sum, `${left}, not ${merged} of ${sum}`);
    const overlap = overlapOf(lens, keys);
    assert.ok(overlap >= 0 && overlap <= 1, `${overlap}`);
  }
});
