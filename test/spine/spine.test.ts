/**
 * The spine against a naive model: pushes, results of every kind, restarts; and each refusal alone.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import { TidemarkError } from '../../core/base/errors.ts';
import { KIND_KEYED, KIND_MULTISET, KIND_UPSERT } from '../../core/base/update.ts';
import { lenMax, levelOf, NO_SUMS, sumsOf } from '../../core/spine/batch.ts';
import type { SpinePart, SpineState } from '../../core/spine/batch.ts';
import {
  applyDelta,
  diffSpine,
  isNoChange,
  Spine,
  withoutCovered,
} from '../../core/spine/spine.ts';
import type { FueledMergeReq, MergeResult } from '../../core/spine/spine.ts';
import { balanced, counterIds, plainPart } from './golden.ts';

setVerify(true);

function makeSpine(kind = KIND_MULTISET, effort = 1): Spine {
  return new Spine({ kind, effort, ids: counterIds() });
}

/** `count` batches of one update each, [0,1) [1,2) ...; with effort 1 the older half becomes one spine batch. */
function pushed(count: number, kind = KIND_MULTISET): Spine {
  const spine = makeSpine(kind);
  for (let t = 0; t < count; t++) {
    spine.push({ lower: t, upper: t + 1, since: 0, runs: [[plainPart(t, t + 1, 1, t + 1)]] });
  }
  return spine;
}

function bidsOf(spine: Spine, index = 0): number[] {
  return spine.batches()[index].parts.map(({ hollow }) => hollow.bid);
}

function resultFor(spine: Spine, inputs: readonly number[], parts: SpinePart[]): MergeResult {
  return balanced(spine, { inputs, since: 0, runs: parts.length === 0 ? [] : [parts] });
}

function findingOf(act: () => void): unknown {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof TidemarkError, String(error));
    return error.detail['finding'];
  }
  return undefined;
}

function request(a: number, b: number, since = 0): FueledMergeReq {
  return { id: [a, b], desc: { lower: a, upper: b, since }, inputs: [] };
}

function refused(spine: Spine, result: MergeResult, outcome: string): void {
  const before = JSON.stringify(spine.state());
  assert.equal(spine.apply(result).outcome, outcome);
  assert.equal(JSON.stringify(spine.state()), before);
}

test('the level of a length is the exponent of the next power of two, without wrap (U1)', () => {
  assert.deepEqual([0, 1, 2, 3, 4, 5].map(levelOf), [0, 0, 1, 2, 2, 3]);
  assert.deepEqual([100, 500, 1_000].map(levelOf), [7, 9, 10]);
  for (let k = 1; k <= 48; k++) {
    assert.equal(levelOf(2 ** k), k);
    assert.equal(levelOf(2 ** k + 1), k + 1);
    if (k > 1) assert.equal(levelOf(2 ** k - 1), k);
  }
});

describe('requests worth keeping (U2)', () => {
  const cases: [string, [number, number, number?][], string][] = [
    ['none', [], ''],
    ['one', [[0, 1]], '0-1'],
    [
      'the same twice',
      [
        [0, 1],
        [0, 1],
      ],
      '0-1',
    ],
    [
      'disjoint',
      [
        [0, 1],
        [1, 2],
      ],
      '1-2 0-1',
    ],
    [
      'covered on the left',
      [
        [0, 1],
        [0, 3],
      ],
      '0-3',
    ],
    [
      'covered on the right',
      [
        [2, 3],
        [0, 3],
      ],
      '0-3',
    ],
    [
      'covered in the middle',
      [
        [1, 2],
        [0, 3],
      ],
      '0-3',
    ],
    [
      'the larger one first',
      [
        [0, 3],
        [1, 2],
      ],
      '0-3',
    ],
    [
      'overlap to the left',
      [
        [0, 2],
        [1, 3],
      ],
      '1-3 0-2',
    ],
    [
      'overlap to the right',
      [
        [1, 3],
        [0, 2],
      ],
      '0-2 1-3',
    ],
    [
      'another since',
      [
        [0, 2, 0],
        [0, 4, 4],
      ],
      '0-4 0-2',
    ],
  ];
  for (const [name, ids, expected] of cases) {
    test(name, () => {
      const kept = withoutCovered(ids.map(([a, b, since]) => request(a, b, since)));
      assert.equal(kept.map(({ id }) => id.join('-')).join(' '), expected);
    });
  }
});

describe('a result that does not fit is refused and changes nothing (U3)', () => {
  test('a stale retry is not applied again: c1, c2, c1', () => {
    const spine = pushed(4);
    const [first, second] = bidsOf(spine);
    const c1 = resultFor(spine, [first, second], [plainPart(0, 2, 2, 10)]);
    assert.equal(spine.apply(c1).outcome, 'applied');
    const c2 = resultFor(spine, bidsOf(spine), [plainPart(0, 2, 2, 11)]);
    assert.equal(spine.apply(c2).outcome, 'applied');
    refused(spine, c1, 'noMatch');
    refused(spine, c2, 'noMatch');
    assert.deepEqual(
      spine.batches()[0].parts[0].hollow.runs[0].parts.map(({ file }) => file),
      [11],
    );
  });

  test('inputs that are no neighbours, in another order, or of two spine batches', () => {
    const spine = pushed(9);
    const [a, b, c] = bidsOf(spine);
    const other = bidsOf(spine, 1)[0];
    const part = [plainPart(0, 1, 1)];
    refused(spine, resultFor(spine, [a, c], part), 'noMatch');
    refused(spine, resultFor(spine, [b, a], part), 'noMatch');
    refused(spine, resultFor(spine, [a, a], part), 'noMatch');
    refused(spine, resultFor(spine, [...bidsOf(spine), other], part), 'noMatch');
    refused(spine, resultFor(spine, [], []), 'noMatch');
    refused(spine, resultFor(spine, [999], part), 'noMatch');
  });

  test('a slice swallowed by a larger merge still fits; one partly replaced does not', () => {
    const spine = pushed(4);
    const slice = bidsOf(spine);
    const late = resultFor(spine, slice, [plainPart(0, 2, 2, 20)]);
    for (let t = 4; t < 9; t++) {
      spine.push({ lower: t, upper: t + 1, since: 0, runs: [[plainPart(t, t + 1, 1, t + 1)]] });
    }
    assert.ok(spine.batches()[0].parts.length > slice.length);
    const outcome = spine.apply(late);
    assert.equal(outcome.outcome, 'applied');
    assert.equal(outcome.outcome === 'applied' && outcome.exact, false);

    const [, second, third] = bidsOf(spine);
    const overlapping = resultFor(spine, [second, third], [plainPart(2, 4, 2, 21)]);
    const taking = resultFor(spine, [third], [plainPart(3, 4, 1, 22)]);
    assert.equal(spine.apply(taking).outcome, 'applied');
    refused(spine, overlapping, 'noMatch');
  });

  test('a zero-width neighbour is told apart by its id', () => {
    const spine = makeSpine();
    spine.push({ lower: 0, upper: 1, since: 0, runs: [[plainPart(0, 1, 1_000)]] });
    spine.push({ lower: 1, upper: 2, since: 0, runs: [[plainPart(1, 2, 1)]] });
    spine.exert(1_024);
    spine.exert(1_024);
    const bids = bidsOf(spine);
    assert.equal(bids.length, 3);
    const without = resultFor(spine, bids.slice(0, 2), [plainPart(0, 2, 1_001, 5)]);
    const outcome = spine.apply(without);
    assert.equal(outcome.outcome === 'applied' && outcome.exact, false);
    refused(spine, resultFor(spine, bids, [plainPart(0, 2, 1_001, 6)]), 'noMatch');
    assert.equal(spine.batches()[0].parts.length, 2);
  });

  test('since below an input or above the spine', () => {
    const spine = pushed(4);
    spine.advanceSince(3);
    const inputs = bidsOf(spine);
    const result = resultFor(spine, inputs, [plainPart(0, 2, 2, 10)]);
    refused(spine, { ...result, since: 4 }, 'invalidSince');
    assert.equal(spine.apply({ ...result, since: 2 }).outcome, 'applied');
    assert.equal(spine.batches()[0].desc.since, 2);
    const again = resultFor(spine, bidsOf(spine), [plainPart(0, 2, 1, 11)]);
    refused(spine, { ...again, since: 1 }, 'invalidSince');
    refused(spine, { ...again, since: Number.NaN }, 'invalidSince');
  });

  test('more updates than there were, sums that differ, parts that do not add up', () => {
    const spine = pushed(4);
    const inputs = bidsOf(spine);
    const good = resultFor(spine, inputs, [plainPart(0, 2, 2, 10)]);
    refused(spine, resultFor(spine, inputs, [plainPart(0, 2, 3, 10)]), 'tooManyUpdates');
    refused(spine, { ...good, folded: 1 }, 'checksumMismatch');
    refused(spine, { ...good, folded: -1, dropped: { ...NO_SUMS, len: 1 } }, 'checksumMismatch');
    refused(spine, { ...good, dropped: { ...NO_SUMS, hash: [1, 0] } }, 'checksumMismatch');
    refused(spine, { ...good, dropped: { ...NO_SUMS, diffSum: 1 } }, 'checksumMismatch');
    refused(spine, { ...good, output: { ...good.output, len: 1 } }, 'badShape');
    refused(spine, resultFor(spine, inputs, [plainPart(0, 3, 2, 10)]), 'badShape');
    refused(spine, { ...good, runs: [...good.runs, []] }, 'badShape');
    assert.equal(spine.apply(good).outcome, 'applied');
  });

  test('nothing is left: an empty batch, if the diffs were accounted for', () => {
    const spine = pushed(4);
    const inputs = bidsOf(spine);
    const result = resultFor(spine, inputs, []);
    refused(spine, { ...result, dropped: { ...result.dropped, diffSum: 0 } }, 'checksumMismatch');
    const outcome = spine.apply(result);
    assert.equal(outcome.outcome === 'applied' && outcome.hollow.runs.length, 0);
    assert.equal(spine.batches()[0].len, 0);
  });

  test('some runs of a batch: all must be there, and adjacent unless the order is free', () => {
    for (const kind of [KIND_KEYED, KIND_MULTISET, KIND_UPSERT]) {
      const spine = makeSpine(kind);
      const runs = [0, 1, 2, 3].map((t) => [plainPart(t, t + 1, 1, t + 1)]);
      spine.push({ lower: 0, upper: 4, since: 0, runs });
      const inputs = bidsOf(spine);
      const partial = (runIds: number[], part: SpinePart): MergeResult =>
        balanced(spine, { inputs, runIds, since: 0, runs: [[part]] });
      refused(spine, partial([2, 9], plainPart(1, 2, 1)), 'noMatch');
      refused(spine, partial([3, 2], plainPart(1, 3, 2)), 'noMatch');
      refused(spine, partial([], plainPart(1, 3, 0)), 'noMatch');
      const apart = partial([1, 3], plainPart(0, 3, 2, 7));
      if (kind !== KIND_MULTISET) refused(spine, apart, 'noMatch');
      const adjacent = partial([2, 3], plainPart(1, 3, 2, 7));
      assert.equal(spine.apply(adjacent).outcome, 'applied');
      const files = spine.batches()[0].parts[0].hollow.runs.map((run) => run.parts[0].file);
      assert.deepEqual(files, [1, 7, 4]);
      refused(spine, adjacent, 'noMatch');
    }
  });

  test('a part moved by reference is not the job’s to delete (a refused move creates no file)', () => {
    const spine = pushed(4);
    const [first, second] = bidsOf(spine);
    const [run] = spine.batches()[0].parts[0].hollow.runs;
    const move: MergeResult = {
      inputs: [first],
      since: 0,
      runs: [run.parts],
      output: sumsOf([run]),
      dropped: NO_SUMS,
      folded: 0,
    };
    assert.equal(
      spine.apply(resultFor(spine, [first, second], [plainPart(0, 2, 2, 9)])).outcome,
      'applied',
    );
    refused(spine, move, 'noMatch');
  });
});

test('a result that moves parts of its inputs is an exact substitution, or none', () => {
  const keys = (part: SpinePart, lo: number, hi: number): SpinePart => ({
    ...part,
    keyLo: Uint8Array.of(lo),
    keyHi: Uint8Array.of(hi),
  });
  const spine = makeSpine(KIND_KEYED);
  const loaded = [10, 20, 30, 40].map((key, i) => keys(plainPart(0, 1, 3, 50 + i), key, key + 5));
  const stripe = keys(plainPart(1, 2, 2, 60), 22, 33);
  spine.push({ lower: 0, upper: 1, since: 0, runs: [loaded] });
  spine.push({ lower: 1, upper: 2, since: 0, runs: [[stripe]] });
  spine.collapse();
  const inputs = bidsOf(spine);
  assert.equal(inputs.length, 2);
  const merged = keys(plainPart(0, 2, 8, 70), 20, 35);
  const result = resultFor(spine, inputs, [loaded[0], merged, loaded[3]]);
  // One that forgot a part, has one twice, or has an older one beside what it was merged into.
  const claims = (parts: SpinePart[]): MergeResult => {
    const runs = [parts];
    return { ...result, runs, output: sumsOf([{ parts }]) };
  };
  refused(spine, claims([loaded[0], merged]), 'checksumMismatch');
  refused(spine, claims([loaded[0], loaded[0], merged]), 'badShape');
  refused(spine, claims([loaded[0], loaded[1], merged, loaded[3]]), 'badShape');
  refused(spine, claims([merged, loaded[0], loaded[3]]), 'badShape');
  const outcome = spine.apply(result);
  assert.equal(outcome.outcome === 'applied' && outcome.exact, true);
  assert.equal(spine.finding(), undefined);
  const [{ runs }] = spine.state().hollows.map(({ hollow }) => hollow);
  assert.deepEqual(
    runs.map(({ parts }) => parts),
    [[loaded[0], merged, loaded[3]]],
  );
  // Its parts are live twice over: what names them under the ids of before names nothing.
  refused(spine, result, 'noMatch');
  const later = resultFor(spine, bidsOf(spine), [keys(plainPart(0, 2, 14, 71), 10, 45)]);
  assert.equal(spine.apply(later).outcome, 'applied');
  refused(spine, result, 'noMatch');
});

describe('a push that does not fit is a typed error and changes nothing (U7)', () => {
  const part = [plainPart(2, 3, 1)];
  const cases: [string, { lower: number; upper: number; since: number }, SpinePart[], string][] = [
    ['a lower that leaves a gap', { lower: 3, upper: 4, since: 0 }, part, 'PUSH_LOWER'],
    ['a lower already covered', { lower: 1, upper: 3, since: 0 }, part, 'PUSH_LOWER'],
    ['no width', { lower: 2, upper: 2, since: 0 }, part, 'PUSH_BOUNDS'],
    ['a since above the spine’s', { lower: 2, upper: 3, since: 1 }, part, 'PUSH_SINCE'],
    [
      'an update below',
      { lower: 2, upper: 3, since: 0 },
      [plainPart(1, 3, 1)],
      'TIME_OUT_OF_BOUNDS',
    ],
    [
      'an update above',
      { lower: 2, upper: 3, since: 0 },
      [plainPart(2, 4, 1)],
      'TIME_OUT_OF_BOUNDS',
    ],
    ['a part of nothing', { lower: 2, upper: 3, since: 0 }, [plainPart(2, 3, 0)], 'EMPTY_PART'],
    ['a run of nothing', { lower: 2, upper: 3, since: 0 }, [], 'EMPTY_RUN'],
    ['too much', { lower: 2, upper: 3, since: 0 }, [plainPart(2, 3, lenMax)], 'SPINE_TOO_LONG'],
    ['no offset', { lower: 2, upper: Number.NaN, since: 0 }, part, 'BAD_FRONTIER'],
  ];
  for (const [name, desc, parts, finding] of cases) {
    test(name, () => {
      const spine = pushed(2);
      const before = JSON.stringify(spine.state());
      assert.equal(
        findingOf(() => spine.push({ ...desc, runs: [parts] })),
        finding,
      );
      assert.equal(JSON.stringify(spine.state()), before);
      spine.push({ lower: 2, upper: 3, since: 0, runs: [part] });
    });
  }

  test('a since that falls', () => {
    const spine = pushed(1);
    spine.advanceSince(5);
    assert.equal(
      findingOf(() => spine.advanceSince(4)),
      'SINCE_REGRESSED',
    );
    assert.equal(spine.since, 5);
  });

  test('keyed runs that overlap in time, or are listed newest first', () => {
    const spine = makeSpine(KIND_KEYED);
    const older = [plainPart(0, 2, 2, 1)];
    const newer = [plainPart(1, 3, 2, 2)];
    const push = (runs: SpinePart[][]) => () => spine.push({ lower: 0, upper: 3, since: 0, runs });
    assert.equal(findingOf(push([older, newer])), 'RUN_TIMES');
    assert.equal(findingOf(push([[plainPart(2, 3, 1)], [plainPart(0, 1, 1)]])), 'RUN_TIMES');
  });
});

describe('restoring believes nothing (U5)', () => {
  const options = { kind: KIND_MULTISET, effort: 1, ids: counterIds(1_000, 1_000) };
  /** A state with a double: two spine batches of 1000 at level 10, and small ones below. */
  const good = ((): SpineState => {
    const spine = makeSpine();
    const sizes = [500, 500, 1_000, 3];
    sizes.forEach((len, t) => {
      spine.push({ lower: t, upper: t + 1, since: 0, runs: [[plainPart(t, t + 1, len, t + 1)]] });
    });
    return spine.state();
  })();
  const [merge] = good.merges;
  const cases: [string, Partial<SpineState>, string][] = [
    ['a part is missing', { hollows: good.hollows.slice(1) }, 'ID_GAP'],
    ['the newest part is missing', { hollows: good.hollows.slice(0, -1) }, 'ID_GAP'],
    ['a spine batch is missing', { batches: good.batches.slice(1) }, 'ID_GAP'],
    ['a double without a merge', { merges: [] }, 'MERGE_MISSING'],
    ['a merge of no double', { merges: [merge, { ...merge, id: [3, 4] }] }, 'MERGE_MISSING'],
    ['a merge twice', { merges: [merge, merge] }, 'MERGE_MISSING'],
    [
      'more left to do than there is',
      { merges: [{ ...merge, remaining: 5_000 }] },
      'BAD_REMAINING',
    ],
    ['a merge past since', { merges: [{ ...merge, since: 9 }] }, 'SINCE_ABOVE'],
    [
      'a third batch in a level',
      { batches: good.batches.map((entry) => ({ ...entry, level: 10 })) },
      'LEVEL_FULL',
    ],
    [
      'level 49',
      { batches: good.batches.map((entry, i) => (i === 0 ? { ...entry, level: 49 } : entry)) },
      'BAD_LEVEL',
    ],
    [
      'a newer batch above an older one',
      { batches: good.batches.map((entry, i) => ({ ...entry, level: i * 10 })) },
      'LEVEL_ORDER',
    ],
    [
      'a batch too large for its level',
      { batches: good.batches.map((entry) => ({ ...entry, level: entry.level - 1 })) },
      'LEVEL_TOO_LOW',
    ],
    [
      'an id used twice',
      {
        hollows: good.hollows.map(({ id, hollow }) => ({ id, hollow: { ...hollow, bid: 1 } })),
      },
      'ID_REUSED',
    ],
    [
      'a run id used twice',
      {
        hollows: good.hollows.map(({ id, hollow }) => ({
          id,
          hollow: { ...hollow, runs: hollow.runs.map((run) => ({ ...run, runId: 1 })) },
        })),
      },
      'ID_REUSED',
    ],
    [
      'a part in two batches',
      {
        hollows: good.hollows.map(({ id, hollow }) => ({
          id,
          hollow: {
            ...hollow,
            runs: hollow.runs.map((run) => ({
              ...run,
              parts: run.parts.map((part) => ({ ...part, file: 1 })),
            })),
          },
        })),
      },
      'PART_TWICE',
    ],
    [
      'a length that is not the sum',
      {
        hollows: good.hollows.map(({ id, hollow }) => ({
          id,
          hollow: { ...hollow, len: hollow.len + 1 },
        })),
      },
      'LEN_MISMATCH',
    ],
    [
      'times with a gap',
      {
        hollows: good.hollows.map(({ id, hollow }) => ({
          id,
          hollow: { ...hollow, desc: { ...hollow.desc, lower: hollow.desc.lower + 1 } },
        })),
      },
      'TIME_GAP',
    ],
    [
      'more updates than any spine may hold',
      {
        hollows: good.hollows.map(({ id, hollow }) => {
          const [run] = hollow.runs;
          const runs = [{ ...run, len: lenMax, parts: [{ ...run.parts[0], len: lenMax }] }];
          return { id, hollow: { ...hollow, runs, len: lenMax } };
        }),
      },
      'SPINE_TOO_LONG',
    ],
    ['a since that is no offset', { since: -1 }, 'BAD_FRONTIER'],
  ];
  for (const [name, change, finding] of cases) {
    test(name, () => {
      const state = { ...good, ...change };
      assert.equal(
        findingOf(() => Spine.restore(state, options)),
        finding,
      );
    });
  }

  test('a double leaves no room for too much below it', () => {
    const crowded = {
      ...good,
      batches: good.batches.map((entry, i) => (i === 2 ? { ...entry, level: 10 } : entry)),
    };
    assert.notEqual(
      findingOf(() => Spine.restore(crowded, options)),
      undefined,
    );
  });

  test('what is sound comes back as it was, and goes on as it would have', () => {
    const a = Spine.restore(good, { ...options, ids: counterIds(100, 100) });
    const b = Spine.restore(structuredClone(good), { ...options, ids: counterIds(100, 100) });
    assert.deepEqual(a.state(), good);
    for (const spine of [a, b]) {
      spine.push({ lower: 4, upper: 5, since: 0, runs: [[plainPart(4, 5, 2_000, 9)]] });
      spine.exert(8);
    }
    assert.deepEqual(a.state(), b.state());
  });

  test('a spine of nothing', () => {
    const spine = Spine.restore({ since: 3, hollows: [], batches: [], merges: [] }, options);
    assert.equal(spine.upper, 0);
    assert.equal(spine.since, 3);
    assert.deepEqual(spine.batches(), []);
    spine.collapse();
    assert.equal(spine.exert(8), false);
  });
});

describe('the effect of operations', () => {
  test('an edit that does not fit its state is an error', () => {
    const spine = pushed(3);
    const before = spine.state();
    spine.push({ lower: 3, upper: 4, since: 0, runs: [[plainPart(3, 4, 1, 4)]] });
    const delta = diffSpine(before, spine.state());
    assert.equal(isNoChange(before, delta), false);
    assert.deepEqual(applyDelta(before, delta), spine.state());
    assert.equal(
      findingOf(() => applyDelta(before, { ...delta, hollowsRemoved: [77] })),
      'EDIT_UNKNOWN_BATCH',
    );
    assert.equal(
      findingOf(() => applyDelta(before, { ...delta, batchesRemoved: [[0, 99]] })),
      'EDIT_UNKNOWN_BATCH',
    );
    assert.equal(
      findingOf(() => applyDelta({ ...before, since: 5 }, delta)),
      'SINCE_REGRESSED',
    );
  });

  test('no operation, no effect', () => {
    const { ...state } = pushed(3).state();
    assert.equal(isNoChange(state, diffSpine(state, structuredClone(state))), true);
  });

  test('a structural merge rewrites entries, not parts', () => {
    const spine = pushed(4);
    const before = spine.state();
    spine.push({ lower: 4, upper: 5, since: 0, runs: [[plainPart(4, 5, 1, 5)]] });
    const delta = diffSpine(before, spine.state());
    assert.equal(delta.hollowsAdded.length, 1);
    assert.deepEqual(delta.hollowsRemoved, []);
  });
});

test('collapsing says whether it changed anything', () => {
  const spine = pushed(9);
  assert.equal(spine.collapse(), true);
  assert.equal(spine.batches().length, 1);
  assert.equal(spine.collapse(), false);
  assert.equal(spine.collapse(0), false);
});
