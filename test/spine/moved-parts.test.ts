/**
 * Which parts a merge moves instead of copying them (spine.md 4.6c): only such as no other input shares a
 * key with and in which nothing is to be reclaimed; and few, large ones, so that runs do not fall to pieces.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import type { RangeDelete } from '../../core/base/range-set.ts';
import type { Hollow, SpinePart } from '../../core/spine/batch.ts';
import {
  LoneParts,
  loneStretches,
  mergePieces,
  movedStretches,
} from '../../core/spine/moved-parts.ts';
import type { MoveTerms } from '../../core/spine/moved-parts.ts';
import { plainPart } from './golden.ts';

const TERMS: MoveTerms = { since: 100, partBytes: 100, codec: 0, hiding: [] };

function part(lo: number, hi: number, change: Partial<SpinePart> = {}): SpinePart {
  return {
    ...plainPart(10, 20, 5),
    keyLo: Uint8Array.of(lo),
    keyHi: Uint8Array.of(hi),
    bytes: 100,
    ...change,
  };
}

/** The first keys of what is moved, stretch by stretch. */
function moved(
  runs: readonly (readonly SpinePart[])[],
  terms: Partial<MoveTerms> = {},
): number[][] {
  const stretches = movedStretches(loneStretches(runs), { ...TERMS, ...terms });
  return stretches.map((stretch) => stretch.map(({ keyLo }) => keyLo[0]));
}

function range(lo: number, hi: number | undefined, time: number): RangeDelete {
  return {
    lo: Uint8Array.of(lo),
    hi: hi === undefined ? new Uint8Array(0) : Uint8Array.of(hi),
    time,
  };
}

test('parts are moved that no other input shares a key with', () => {
  const loaded = [part(0, 9), part(10, 19), part(20, 29), part(30, 39), part(40, 49)];
  assert.deepEqual(moved([loaded]), [[0, 10, 20, 30, 40]], 'a run alone');
  assert.deepEqual(
    moved([loaded, [part(22, 25)]]),
    [
      [0, 10],
      [30, 40],
    ],
    'a stripe inside one',
  );
  assert.deepEqual(moved([loaded, [part(19, 20)]]), [[0], [30, 40]], 'edges that meet');
  assert.deepEqual(moved([loaded, [part(50, 60), part(61, 70)]]), [[0, 10, 20, 30, 40, 50, 61]]);
  assert.deepEqual(moved([loaded, [part(0, 200)]]), [], 'one over all');
  assert.deepEqual(moved([[part(0, 90)], [part(10, 20)], [part(30, 40)]]), [], 'over two apart');
});

test('parts of one run that share a key, one behind the other, are merged', () => {
  // Versions of key 9 run on.
  assert.deepEqual(moved([[part(0, 9), part(9, 9), part(9, 19), part(20, 29)]]), [[20]]);
});

test('a part that may shrink is merged', () => {
  const beside = [part(0, 9), part(20, 29)];
  const among = (change: Partial<SpinePart>, terms: Partial<MoveTerms> = {}): number[][] =>
    moved([[beside[0], part(10, 19, change), beside[1]]], terms);
  assert.deepEqual(among({}), [[0, 10, 20]]);
  assert.deepEqual(among({ negatives: 1 }), [[0], [20]], 'a tombstone');
  assert.deepEqual(among({ negatives: 1, minT: 101, maxT: 101 }), [[0, 10, 20]], 'not past yet');
  assert.deepEqual(among({ distinct: 4 }), [[0], [20]], 'a version');
  assert.deepEqual(among({ distinct: 5 }), [[0, 10, 20]]);
  assert.deepEqual(among({ distinct: 4 }, { since: 9 }), [[0, 10, 20]], 'since is below all of it');
  assert.deepEqual(
    among({ distinct: 4 }, { since: 10 }),
    [[0], [20]],
    'since is at its oldest row',
  );
  assert.deepEqual(among({ codec: 1 }), [[0], [20]], 'compressed otherwise');
  assert.deepEqual(among({ codec: 1 }, { codec: 1 }), [[10]]);
});

test('a part that a range delete has a hold on is merged, any other is not', () => {
  const run = [part(0, 9), part(10, 19), part(20, 29)];
  const under = (...hiding: RangeDelete[]): number[][] => moved([run], { hiding });
  assert.deepEqual(under(range(12, 14, 50)), [[0], [20]], 'inside');
  assert.deepEqual(under(range(9, 10, 50)), [[10, 20]], 'the upper bound is not in it');
  assert.deepEqual(under(range(19, undefined, 50)), [[0]], 'to the end');
  assert.deepEqual(under(range(12, 14, 11)), [[0], [20]], 'newer than the oldest row');
  assert.deepEqual(under(range(12, 14, 10)), [[0, 10, 20]], 'older than all rows');
});

test('what is moved is as large as a part together, and no small part is', () => {
  const small = { bytes: 24 };
  const fair = { bytes: 40 };
  assert.deepEqual(moved([[part(0, 9, small), part(10, 19), part(20, 29, small)]]), [[10]]);
  assert.deepEqual(moved([[part(0, 9, fair), part(10, 19, fair)]]), [], '80 bytes');
  assert.deepEqual(moved([[part(0, 9, fair), part(10, 19, fair), part(20, 29, fair)]]), [
    [0, 10, 20],
  ]);
  assert.deepEqual(
    moved([[part(0, 9, fair), part(10, 19, fair), part(20, 29, fair)], [part(15, 15)]]),
    [],
    'cut by a part between',
  );
});

test('parts that share a file are merged: one of them would keep the room of the others', () => {
  const two = [part(0, 9, { file: 7 }), part(10, 19, { file: 7, offset: 100 })];
  assert.deepEqual(moved([[...two, part(20, 29)]]), [[20]]);
});

test('pieces hold every part once, in key order, and nothing that is moved lies between what is merged', () => {
  const prng = new Prng(71);
  let stretches = 0;
  for (let round = 0; round < 400; round++) {
    const runs = Array.from({ length: prng.between(1, 4) }, () => {
      const run: SpinePart[] = [];
      for (let at = prng.below(60); at < 250 && run.length < 12;) {
        const hi = Math.min(255, at + prng.below(prng.pick([2, 12])));
        run.push(part(at, hi, { bytes: prng.pick([10, 60, 100]), negatives: prng.below(2) }));
        at = hi + prng.pick([0, 1, 30]);
      }
      return run;
    });
    const pieces = mergePieces(runs, { ...TERMS, since: prng.pick([0, 100]) });
    assert.equal(pieces.at(-1)!.moved.length, 0);
    const all = pieces.flatMap((piece) => [...piece.runs.flat(), ...piece.moved]);
    assert.equal(all.length, runs.flat().length);
    assert.equal(new Set(all).size, all.length);
    runs.forEach((run, i) => {
      const merged = pieces.flatMap((piece) => piece.runs[i]);
      assert.deepEqual(
        merged,
        run.filter((one) => merged.includes(one)),
        'in its own order',
      );
    });
    // Whatever precedes lies wholly below whatever follows.
    let below: Uint8Array | undefined;
    for (const piece of pieces) {
      for (const group of [piece.runs.flat(), ...piece.moved.map((one) => [one])]) {
        for (const { keyLo } of group) {
          assert.ok(below === undefined || compareBytes(below, keyLo) < 0, `round ${round}`);
        }
        for (const { keyHi } of group) {
          if (below === undefined || compareBytes(keyHi, below) > 0) below = keyHi;
        }
      }
      if (piece.moved.length === 0) continue;
      stretches++;
      assert.ok(piece.moved.reduce((sum, { bytes }) => sum + bytes, 0) >= 100, 'worth a part');
    }
  }
  assert.ok(stretches > 100, `${stretches} stretches`);
});

test('what is remembered of neighbours is what they are', () => {
  const hollow = (bid: number, ...parts: SpinePart[]): Hollow => ({
    bid,
    desc: { lower: 0, upper: 1, since: 0 },
    runs: [{ runId: bid, parts, len: 5 * parts.length }],
    len: 5 * parts.length,
  });
  const hollows = [
    hollow(1, part(0, 9), part(10, 19), part(20, 29)),
    hollow(2, part(12, 13), part(40, 41)),
    hollow(3, part(1, 2, { rangeDeletes: 5 }), part(25, 26)),
  ];
  const lone = new LoneParts();
  for (const some of [hollows, hollows.slice(0, 2), hollows.slice(1), hollows.toReversed()]) {
    const runs = some.flatMap(({ runs: [run] }) => [
      run.parts.filter((one) => one.rangeDeletes === 0),
    ]);
    assert.deepEqual(lone.of(some), loneStretches(runs));
    assert.equal(lone.of(some), lone.of([...some]), 'it is not worked out again');
  }
});
