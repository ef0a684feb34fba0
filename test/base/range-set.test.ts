/**
 * Goal: a set of range deletes answers as looking at every one of them does. Method: random ranges over
 * few short keys, in one collection and in several, every key and time asked.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import {
  ENTRY_WORDS,
  RangeSetReader,
  SET_HEADER_WORDS,
  compareRanges,
  finishRangeSet,
  rangeHolds,
  rangeSetOf,
  rangeSetWords,
  writeEntry,
} from '../../core/base/range-set.ts';
import type { RangeDelete } from '../../core/base/range-set.ts';

const ALPHABET = [0, 97, 98, 255];

function randomKey(random: Prng): Uint8Array {
  return Uint8Array.from({ length: random.below(4) }, () => random.pick(ALPHABET));
}

function randomRanges(random: Prng, count: number, times: number): RangeDelete[] {
  return Array.from({ length: count }, () => ({
    lo: randomKey(random),
    hi: randomKey(random),
    time: random.below(times),
  }));
}

function holdsAll(outer: RangeDelete, inner: RangeDelete): boolean {
  if (compareBytes(outer.lo, inner.lo) > 0) return false;
  if (outer.hi.length === 0) return true;
  // Above its lower bound, or it would hold nothing of it.
  if (compareBytes(outer.hi, inner.lo) <= 0) return false;
  return inner.hi.length > 0 && compareBytes(inner.hi, outer.hi) <= 0;
}

test('the newest range over a key, at any time and above any other', () => {
  for (let seed = 0; seed < 300; seed++) {
    const random = new Prng(seed);
    const ranges = randomRanges(random, random.below(40), 1 + random.below(50));
    const set = rangeSetOf(ranges);
    assert.equal(set.count, ranges.length);
    for (let i = 0; i < 60; i++) {
      const key = randomKey(random);
      const T = random.below(60) - 1;
      const above = random.below(20) - 1;
      const times = ranges
        .filter((range) => rangeHolds(range, key) && range.time <= T)
        .map(({ time }) => time);
      const expected = Math.max(above, ...times);
      assert.equal(set.newest(0, key, 0, key.length, above, T), expected, `seed ${seed}`);
    }
    for (let i = 0; i < 20; i++) {
      const inner = randomRanges(random, 1, 50)[0];
      const T = random.below(60) - 1;
      const times = ranges
        .filter((range) => holdsAll(range, inner) && range.time <= T)
        .map(({ time }) => time);
      assert.equal(set.newestCovering(0, inner, -1, T), Math.max(-1, ...times), `seed ${seed}`);
    }
    const told = Array.from({ length: set.count }, (_, i) => {
      const { lo, hi, time } = set.rangeAt(i);
      return { lo, hi, time };
    });
    assert.deepEqual(told, ranges.toSorted(compareRanges), 'the set tells what is in it');
  }
});

test('one set over several collections keeps them apart', () => {
  for (let seed = 0; seed < 100; seed++) {
    const random = new Prng(seed);
    const ranges = randomRanges(random, random.below(40), 50).map((range) => ({
      ...range,
      collection: random.below(3) * 7,
    }));
    const sorted = ranges.toSorted((a, b) => a.collection - b.collection || compareRanges(a, b));
    const u8 = new Uint8Array(1_024);
    const u32 = new Uint32Array(rangeSetWords(sorted.length));
    let at = 0;
    const place = (bytes: Uint8Array): number => {
      u8.set(bytes, at);
      at += bytes.length;
      return at - bytes.length;
    };
    sorted.forEach(({ collection, lo, hi, time }, i) => {
      const entry = SET_HEADER_WORDS + i * ENTRY_WORDS;
      writeEntry(u32, entry, collection, place(lo), lo.length, place(hi), hi.length, time);
    });
    finishRangeSet(u32, u8, 0, 0, sorted.length);
    const set = new RangeSetReader(u32, u8);
    set.attach(0, 0);
    for (let i = 0; i < 60; i++) {
      const key = randomKey(random);
      const collection = random.below(16);
      const T = random.below(60);
      const times = ranges
        .filter((range) => range.collection === collection && rangeHolds(range, key))
        .map(({ time }) => time)
        .filter((time) => time <= T);
      const found = set.newest(collection, key, 0, key.length, -1, T);
      assert.equal(found, Math.max(-1, ...times), `seed ${seed}`);
    }
  }
});

test('of ten thousand equal ranges the newest is found without a look at the others', () => {
  const everything = { lo: new Uint8Array(0), hi: new Uint8Array(0) };
  const set = rangeSetOf(Array.from({ length: 10_000 }, (_, time) => ({ ...everything, time })));
  const key = Uint8Array.of(1, 2, 3);
  const startedAt = process.cpuUsage().user;
  for (let i = 0; i < 10_000; i++) {
    assert.equal(set.newest(0, key, 0, 3, -1, Infinity), 9_999);
  }
  // A look at each would take a hundred million steps.
  const ms = (process.cpuUsage().user - startedAt) / 1_000;
  assert.ok(ms < 2_000, `${ms} ms for 10,000 questions`);
});
