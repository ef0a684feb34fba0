/**
 * Which jobs are chosen: by their worth, never two on the same batch, until few runs are left.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runsHard, runsPerMerge, runsSoft } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED, KIND_MULTISET } from '../../core/base/update.ts';
import { isCompact, runCount } from '../../core/spine/batch.ts';
import type { SpineBatch, SpinePart } from '../../core/spine/batch.ts';
import {
  backpressure,
  chooseCovered,
  chooseMerge,
  chooseMove,
  collapseLevel,
  debtBytes,
  liveRuns,
  runsMinFor,
  spaceOf,
  spacePressure,
  wantsSpace,
} from '../../core/spine/policy.ts';
import type { MergeChoice, MergeNeeds } from '../../core/spine/policy.ts';
import { Spine } from '../../core/spine/spine.ts';
import { balanced, counterIds, plainPart } from './golden.ts';

const NONE: ReadonlySet<number> = new Set();
const MIB = 1_048_576;

type Sizes = readonly (readonly number[])[];

/** One spine batch; a list of run sizes in bytes for each of its parts. */
function batchOf(sizes: Sizes, from = 0): SpineBatch {
  const parts = sizes.map((runSizes, i) => {
    const lower = from + i;
    const runs = runSizes.map((bytes, j) => {
      const part = { ...plainPart(lower, lower + 1, 1, lower + 1), bytes };
      return { runId: lower * 100 + j + 1, parts: [part], len: 1 };
    });
    const desc = { lower, upper: lower + 1, since: 0 };
    const hollow = { bid: lower + 1, desc, runs, len: runs.length };
    return { id: [lower, lower + 1] as const, hollow };
  });
  const len = parts.reduce((sum, { hollow }) => sum + hollow.len, 0);
  const upper = from + sizes.length;
  return { id: [from, upper], desc: { lower: from, upper, since: 0 }, parts, len };
}

function keyed(t: number, key: number, change: Partial<SpinePart> = {}): SpinePart {
  return {
    ...plainPart(t, t + 1, 2, t + 1),
    keyLo: new Uint8Array([key]),
    keyHi: new Uint8Array([key + 5]),
    bytes: 10 * MIB,
    ...change,
  };
}

/** The files of the one run that a move makes of these batches, if it makes one. */
function moved(parts: readonly SpinePart[]): readonly (readonly number[])[] | undefined {
  const spine = new Spine({ kind: KIND_KEYED, ids: counterIds() });
  parts.forEach((part, t) => {
    spine.push({ lower: t, upper: t + 1, since: 0, runs: [[part]] });
  });
  spine.collapse();
  const move = chooseMove(spine.batches(), NONE, 0);
  if (move !== undefined) assert.equal(spine.apply(move).outcome, 'applied');
  return move?.runs.map((run) => run.map((part) => part.file));
}

function levelsOf(spine: Spine): { level: number; runs: number }[] {
  const { batches } = spine.state();
  return spine.batches().map((batch, i) => ({ level: batches[i].level, runs: runCount(batch) }));
}

test('fewer runs than the gate are left alone', () => {
  const batches = [batchOf([[100], [100], [100]])];
  assert.equal(chooseMerge(batches, { busy: NONE }), undefined);
  assert.deepEqual(chooseMerge(batches, { busy: NONE, runsMin: 3 })?.inputs, [1, 2, 3]);
});

test('a job never spans two spine batches', () => {
  const batches = [batchOf([[100], [100]]), batchOf([[100], [100]], 2)];
  assert.equal(chooseMerge(batches, { busy: NONE }), undefined);
});

test('most runs removed for the fewest bytes', () => {
  const small = batchOf([[MIB], [MIB], [MIB], [MIB]], 4);
  const large = batchOf([[50 * MIB], [50 * MIB], [50 * MIB], [50 * MIB]]);
  assert.deepEqual(chooseMerge([large, small], { busy: NONE })?.inputs, [5, 6, 7, 8]);
  const mixed = batchOf([[500 * MIB], [MIB], [MIB], [MIB], [MIB]]);
  const choice = chooseMerge([mixed], { busy: NONE });
  assert.deepEqual(choice?.inputs, [2, 3, 4, 5]);
  assert.equal(choice?.oldest, false);
  assert.equal(choice?.bytes, 4 * MIB);
});

test('batches in flight are left out, and their neighbours not joined across them', () => {
  const batch = batchOf([[1], [1], [1], [1], [1], [1], [1]]);
  const choice = chooseMerge([batch], { busy: new Set([3]) });
  assert.deepEqual(choice?.inputs, [4, 5, 6, 7]);
  assert.equal(chooseMerge([batch], { busy: new Set([4]) }), undefined);
});

test('no more runs than a job takes, and no batch split while it fits one', () => {
  const batch = batchOf([
    [1, 1, 1],
    [1, 1, 1],
    [1, 1, 1],
  ]);
  const choice = chooseMerge([batch], { busy: NONE, runsMax: 8 });
  assert.equal(choice?.inputs.length, 2);
  assert.equal(choice?.runIds, undefined);
});

test('a batch with more runs than a job takes: its cheapest neighbours, oldest only at its start', () => {
  const batch = batchOf([[9, 9, 9, 1, 1, 1]]);
  const choice = chooseMerge([batch], { busy: NONE, runsMax: 3 });
  assert.deepEqual(choice?.inputs, [1]);
  assert.deepEqual(choice?.runIds, [4, 5, 6]);
  assert.equal(choice?.oldest, false);
  const first = chooseMerge([batchOf([[1, 1, 1, 9, 9, 9]])], { busy: NONE, runsMax: 3 });
  assert.deepEqual(first?.runIds, [1, 2, 3]);
  assert.equal(first?.oldest, true);
});

test('the oldest run is in the inputs only if nothing but empty batches lies below', () => {
  const oldest = (sizes: Sizes, busy: number[] = []): boolean | undefined =>
    chooseMerge([batchOf(sizes)], { busy: new Set(busy) })?.oldest;
  assert.equal(oldest([[1], [1], [1], [1]]), true);
  assert.equal(oldest([[], [1], [1], [1], [1]], [1]), true);
  assert.equal(oldest([[1], [1], [1], [1], [1]], [1]), false);
  const later = [batchOf([[1]]), batchOf([[1], [1], [1], [1]], 1)];
  assert.equal(chooseMerge(later, { busy: NONE })?.oldest, false);
  const belowIsEmpty = [batchOf([[]]), batchOf([[1], [1], [1], [1]], 1)];
  assert.equal(chooseMerge(belowIsEmpty, { busy: NONE })?.oldest, true);
});

test('a worker kept from large jobs is given small ones only', () => {
  const batches = [
    batchOf([[90 * MIB], [90 * MIB], [90 * MIB], [90 * MIB]]),
    batchOf([[MIB], [MIB]], 4),
  ];
  assert.ok(chooseMerge(batches, { busy: NONE }) !== undefined);
  assert.equal(chooseMerge(batches, { busy: NONE, bytesMax: 64 * MIB }), undefined);
  const small = chooseMerge(batches, { busy: NONE, bytesMax: 64 * MIB, runsMin: 2 });
  assert.deepEqual(small?.inputs, [5, 6]);
});

test('of two collections the one that has waited longer goes first, all else being equal', () => {
  const batches = [batchOf([[1], [1], [1], [1]])];
  const young = chooseMerge(batches, { busy: NONE, ageMs: 1_000 });
  const old = chooseMerge(batches, { busy: NONE, ageMs: 60_000 });
  assert.ok((old?.score ?? 0) > (young?.score ?? 0));
});

test('of two collections the one that is read more goes first, until the other has much to give back', () => {
  const batches = [batchOf([[MIB], [MIB], [MIB], [MIB]])];
  const score = (needs: Partial<MergeNeeds>): number =>
    chooseMerge(batches, { busy: NONE, ...needs })?.score ?? 0;
  const cold = score({});
  assert.ok(score({ readsPerSecond: 500 }) > cold);
  assert.ok(score({ readsPerSecond: 5_000 }) > score({ readsPerSecond: 500 }));
  assert.equal(score({ readsPerSecond: 1e6 }), score({ readsPerSecond: 1e7 }), 'there is a bound');
  assert.ok(score({ readsPerSecond: 1_000, ageMs: 0 }) > score({ ageMs: 30_000 }));
  const dead = { ...ROWS_1K, negatives: 1_000, bytes: 40 * MIB };
  const garbage = runsOfParts(dead, { ...dead, minT: 1, maxT: 1 });
  const [first, second] = garbage;
  const both = { ...first, parts: [...first.parts, ...second.parts] };
  const reclaiming = chooseMerge([both], { busy: NONE, runsMin: 2, since: 5 });
  const large = batchOf([[40 * MIB], [40 * MIB]]);
  const removing = chooseMerge([large], { busy: NONE, runsMin: 2, readsPerSecond: 2_000 });
  assert.ok((reclaiming?.score ?? 0) > (removing?.score ?? 0));
});

test('pressure rises from half the soft mark on, steeply up to it, and stops the flush above the hard one', () => {
  assert.equal(backpressure(runsSoft / 2, 0, 0), 0);
  for (let runs = runsSoft / 2; runs < runsHard; runs++) {
    const more = backpressure(runs + 1, 0, 0) - backpressure(runs, 0, 0);
    assert.ok(more > 0, `a run more than ${runs} delays more`);
    assert.equal(more > 0.05, runs < runsSoft, `${more} more at ${runs}`);
  }
  assert.ok(Math.abs(backpressure(runsSoft, 0, 0) - 0.9) < 1e-9, 'a tenth of the rate is left');
  const some = backpressure(runsSoft + 10, 0, 0);
  assert.ok(some > 0 && some < backpressure(runsSoft + 20, 0, 0));
  assert.ok(backpressure(runsHard, 0, 0) < 1);
  assert.equal(backpressure(runsHard + 1, 0, 0), 1);
  assert.equal(backpressure(0, 400 * MIB, 400 * MIB), 0);
  const byDebt = backpressure(0, 800 * MIB, 400 * MIB);
  assert.ok(byDebt > 0 && byDebt < 1, `${byDebt}`);
  assert.ok(backpressure(0, 1e15, 400 * MIB) < 1, 'debt alone delays');
});

test('debt is what lies in spine batches of as many runs as make a job', () => {
  const batches = [batchOf([[100]]), batchOf([[10], [20]], 1)];
  assert.equal(debtBytes(batches), 30);
  assert.equal(debtBytes(batches, 3), 0);
  assert.equal(liveRuns(batches), 3);
});

/** One compact spine batch a run, oldest first. */
function runsOfParts(...parts: Partial<SpinePart>[]): SpineBatch[] {
  return parts.map((change, t) => {
    const batch = batchOf([[1]], t);
    const [{ id, hollow }] = batch.parts;
    const part = { ...hollow.runs[0].parts[0], ...change };
    const runs = [{ ...hollow.runs[0], parts: [part], len: part.len }];
    return { ...batch, parts: [{ id, hollow: { ...hollow, runs, len: part.len } }], len: part.len };
  });
}

const ROWS_1K = { len: 1_000, bytes: MIB, negatives: 0, minT: 0, maxT: 0 };

test('what newer runs overwrite is told from what merges have dropped', () => {
  const batches = runsOfParts(ROWS_1K, { ...ROWS_1K, minT: 1, maxT: 1 });
  assert.deepEqual(spaceOf(batches, 5, 0), { bytes: 2 * MIB, oldestBytes: MIB, reclaimable: 0 });
  assert.equal(spaceOf(batches, 5, 1).reclaimable, MIB);
  assert.ok(wantsSpace(spaceOf(batches, 5, 1), false), 'as much again as is live');
  assert.ok(!wantsSpace(spaceOf(batches, 5, 0.2), false), 'a tenth of it');
  assert.ok(wantsSpace(spaceOf(batches, 5, 0.3), true), 'enough for an idle collection');
});

test('tombstones give back themselves and what they hide, once since has passed them', () => {
  const dead = { ...ROWS_1K, minT: 1, maxT: 10, negatives: 1_000, bytes: MIB / 4 };
  const at = (since: number): number => spaceOf(runsOfParts(ROWS_1K, dead), since, 0).reclaimable;
  assert.equal(at(0), 0);
  assert.equal(at(5), (MIB + MIB / 4) / 2);
  assert.equal(at(10), MIB + MIB / 4);
  assert.equal(at(100), MIB + MIB / 4);
});

test('older versions give back their bytes, once since has passed what the last merge forgot', () => {
  const versions = { ...ROWS_1K, minT: 0, maxT: 10, distinct: 100 };
  const at = (since: number): number => spaceOf(runsOfParts(versions), since, 0).reclaimable;
  assert.equal(Math.round(at(10)), Math.round(0.9 * MIB));
  assert.ok(at(5) < at(10), 'in between in proportion');
  const [batch] = runsOfParts(versions);
  const [{ id, hollow }] = batch.parts;
  const known = { ...hollow, desc: { ...hollow.desc, since: 10 } };
  const consolidated = { ...batch, parts: [{ id, hollow: known }] };
  assert.equal(spaceOf([consolidated], 10, 0).reclaimable, 0, 'nothing is counted twice');
});

test('what the oldest run has kept when it was merged at since no merge gives back', () => {
  const below = { ...ROWS_1K, minT: 1, maxT: 10, negatives: 1_000 };
  const [batch] = runsOfParts(below);
  const [{ id, hollow }] = batch.parts;
  const forgotten = { ...hollow, desc: { ...hollow.desc, since: 10 } };
  const merged = { ...batch, parts: [{ id, hollow: forgotten }] };
  assert.equal(spaceOf([merged], 10, 0).reclaimable, 0);
  assert.ok(spaceOf([batch], 10, 0).reclaimable > 0, 'not merged yet');
});

test('a job that gives bytes back goes before one that only removes runs', () => {
  const dead = { negatives: 1, minT: 0, maxT: 0, bytes: 40 * MIB };
  const plain = batchOf([[40 * MIB], [40 * MIB], [40 * MIB], [40 * MIB]]);
  const other = batchOf([[40 * MIB], [40 * MIB], [40 * MIB], [40 * MIB]], 4);
  const parts = other.parts.map(({ id, hollow }) => {
    const runs = hollow.runs.map((run) => ({ ...run, parts: [{ ...run.parts[0], ...dead }] }));
    return { id, hollow: { ...hollow, runs } };
  });
  const batches = [plain, { ...other, parts }];
  assert.deepEqual(chooseMerge(batches, { busy: NONE, since: 0 })?.inputs, [5, 6, 7, 8]);
  assert.deepEqual(chooseMerge([plain], { busy: NONE, since: 0 })?.inputs, [1, 2, 3, 4]);
});

test('a job holds no more in memory than it may, but for two runs', () => {
  const wide = { blockCount: 1, bytes: 30 * MIB };
  const base = batchOf([[1], [1], [1], [1], [1]]);
  const parts = base.parts.map(({ id, hollow }) => {
    const runs = hollow.runs.map((run) => ({ ...run, parts: [{ ...run.parts[0], ...wide }] }));
    return { id, hollow: { ...hollow, runs } };
  });
  const runsAt = (memoryMax: number): number | undefined =>
    chooseMerge([{ ...base, parts }], { busy: NONE, runsMin: 2, memoryMax })?.runs.length;
  assert.equal(runsAt(1_000 * MIB), 5);
  assert.equal(runsAt(200 * MIB), 3);
  assert.equal(runsAt(1 * MIB), 2);
});

test('memory for two runs at a time: one run is left after as many passes as halve them (C2)', () => {
  const count = 13;
  const spine = new Spine({ kind: KIND_KEYED, ids: counterIds() });
  for (let t = 0; t < count; t++) {
    const part = { ...plainPart(t, t + 1, 10), blockCount: 1, bytes: 30 * MIB };
    spine.push({ lower: t, upper: t + 1, since: 0, runs: [[part]] });
  }
  spine.collapse();
  let passes = 0;
  for (; spine.batches()[0].parts.length > 1; passes++) {
    // In a pass no job takes what one of the same pass has made.
    const made = new Set<number>();
    for (;;) {
      const needs = { busy: made, runsMin: 2, memoryMax: MIB };
      const choice = chooseMerge(spine.batches(), needs);
      if (choice === undefined) break;
      assert.equal(choice.runs.length, 2);
      const { inputs, lower, upper, len } = choice;
      const part = { ...plainPart(lower, upper, len), blockCount: 1, bytes: choice.bytes };
      const outcome = spine.apply(balanced(spine, { inputs, since: 0, runs: [[part]] }));
      assert.ok(outcome.outcome === 'applied', outcome.outcome);
      made.add(outcome.hollow.bid);
    }
    assert.ok(passes < count, 'there is an end');
  }
  assert.ok(passes <= Math.ceil(Math.log2(count)) + 1, `${passes} passes`);
});

test('space alone delays a flush only when a merge could not keep up', () => {
  const space = (live: number, garbage: number) => ({
    bytes: live + garbage,
    oldestBytes: live,
    reclaimable: garbage,
  });
  const flush = 64 * MIB;
  assert.equal(spacePressure(space(100 * MIB, 0), flush, 0), 0);
  assert.equal(spacePressure(space(0, flush / 4), flush, 0), 0);
  const some = spacePressure(space(100 * MIB, 100 * MIB), flush, 0);
  assert.ok(some > 0 && some < 1, `${some}`);
  assert.ok(spacePressure(space(100 * MIB, 200 * MIB), flush, 0) >= 1, 'too much');
  assert.equal(spacePressure(space(4_000 * MIB, 2_000 * MIB), flush, 0), 0);
});

test('empty batches join their neighbour without a job', () => {
  const spine = new Spine({ kind: KIND_MULTISET, effort: 1, ids: counterIds() });
  for (let t = 0; t < 5; t++) {
    spine.push({ lower: t, upper: t + 1, since: 0, runs: [[plainPart(t, t + 1, 1, t + 1)]] });
  }
  const first = spine.batches()[0].parts.map(({ hollow }) => hollow.bid);
  assert.equal(chooseMove(spine.batches(), NONE, 0), undefined);
  spine.apply(balanced(spine, { inputs: first.slice(1), since: 0, runs: [] }));
  assert.equal(chooseMove(spine.batches(), new Set(first), 0), undefined);
  const move = chooseMove(spine.batches(), NONE, 0);
  assert.ok(move !== undefined);
  const outcome = spine.apply(move);
  assert.equal(outcome.outcome, 'applied');
  assert.ok(isCompact(spine.batches()[0]));
  assert.equal(chooseMove(spine.batches(), NONE, 0), undefined);
});

test('runs of keys that only grow are joined by reference, if their parts are not too small', () => {
  assert.deepEqual(moved([keyed(0, 10), keyed(1, 20), keyed(2, 30)]), [[1, 2, 3]]);
  assert.deepEqual(moved([keyed(0, 20), keyed(1, 30), keyed(2, 10)]), [[3, 1, 2]]);
  assert.equal(moved([keyed(0, 10), keyed(1, 15)]), undefined);
  assert.equal(moved([keyed(0, 10), keyed(1, 20, { negatives: 1 })]), undefined);
  assert.equal(moved([keyed(0, 10), keyed(1, 20, { rangeDeletes: 1 })]), undefined);
  assert.equal(moved([keyed(0, 10, { bytes: 1 }), keyed(1, 20, { bytes: 1 })]), undefined);
});

test('when all is merged and there are still too many runs, the small end is to be collapsed', () => {
  const spine = new Spine({ kind: KIND_MULTISET, ids: counterIds() });
  for (let t = 0; t <= runsSoft; t++) {
    const part = plainPart(t, t + 1, 2 ** (runsSoft - t), t + 1);
    assert.equal(collapseLevel(levelsOf(spine)), undefined);
    spine.push({ lower: t, upper: t + 1, since: 0, runs: [[part]] });
  }
  assert.equal(chooseMerge(spine.batches(), { busy: NONE }), undefined);
  const level = collapseLevel(levelsOf(spine));
  assert.equal(level, runsPerMerge);
  spine.collapse(level);
  assert.ok((chooseMerge(spine.batches(), { busy: NONE })?.runs.length ?? 0) >= runsPerMerge);
});

/** Flushes of 100 KB while two workers merge `speed` times as fast as flushes come; one is kept from large jobs. */
function simulate(flushes: number, speed: number, sizes: readonly number[], seed: number) {
  const prng = new Prng(seed);
  const spine = new Spine({ kind: KIND_MULTISET, ids: counterIds() });
  const flying: { choice: MergeChoice; left: number }[] = [];
  let pushedLen = 0;
  let rewrittenLen = 0;
  let runsMost = 0;
  for (let t = 0; t < flushes; t++) {
    const len = prng.pick(sizes);
    spine.push({ lower: t, upper: t + 1, since: 0, runs: [[plainPart(t, t + 1, len)]] });
    pushedLen += len;
    for (const job of flying) job.left -= speed * len;
    for (const job of flying.filter(({ left }) => left <= 0)) {
      flying.splice(flying.indexOf(job), 1);
      const { inputs, lower, upper } = job.choice;
      const part = plainPart(lower, upper, job.choice.len);
      const outcome = spine.apply(balanced(spine, { inputs, since: 0, runs: [[part]] }));
      assert.equal(outcome.outcome, 'applied');
      rewrittenLen += job.choice.len;
    }
    const live = liveRuns(spine.batches());
    runsMost = Math.max(runsMost, live);
    while (flying.length < 2) {
      const busy = new Set(flying.flatMap(({ choice }) => choice.inputs));
      const isReserved = flying.some(({ choice }) => choice.bytes > 64 * MIB);
      const choice = chooseMerge(spine.batches(), {
        busy,
        runsMin: runsMinFor(live),
        ...(isReserved ? { bytesMax: 64 * MIB } : {}),
      });
      if (choice === undefined) break;
      assert.ok(choice.inputs.every((bid) => !busy.has(bid)));
      flying.push({ choice, left: choice.len });
    }
  }
  const atRest = spine.batches().map(runCount);
  return { amplification: rewrittenLen / pushedLen, runsMost, atRest };
}

test('while workers keep up, runs stay few and work stays near the model (P13)', () => {
  // L = 12 levels above the flush, merged by fours: 6 rewrites, up to 3 runs a level.
  for (const seed of [1, 2, 3]) {
    const even = simulate(4_096, 1e6, [1_000], seed);
    assert.ok(even.amplification <= 6 * 1.2, `${even.amplification}`);
    assert.ok(even.runsMost <= runsSoft + runsPerMerge, `${even.runsMost} runs`);
    assert.ok(even.atRest.every((runs) => runs < runsPerMerge));
    const busy = simulate(4_096, 8, [100, 1_000, 10_000], seed);
    assert.ok(busy.amplification <= 6 * 1.2, `${busy.amplification}`);
    assert.ok(busy.runsMost <= runsHard, `${busy.runsMost} runs`);
  }
});

test('a job costs what it rewrites: parts that it only moves are free', () => {
  const spine = new Spine({ kind: KIND_KEYED, ids: counterIds() });
  const loaded = Array.from({ length: 20 }, (_, i) => keyed(0, 10 * i, { file: 50 + i }));
  spine.push({ lower: 0, upper: 1, since: 0, runs: [loaded] });
  for (let t = 1; t < 4; t++) {
    spine.push({ lower: t, upper: t + 1, since: 0, runs: [[keyed(t, 100, { bytes: MIB })]] });
  }
  spine.collapse();
  const choice = chooseMerge(spine.batches(), { busy: NONE, bytesMax: 64 * MIB });
  assert.equal(choice?.runs.length, 4);
  assert.equal(
    choice?.bytes,
    10 * MIB + 3 * MIB,
    'the one part that the stripe lies in, and the stripe',
  );
  assert.equal(choice?.bytesMoved, 19 * 10 * MIB);
  assert.equal(choice?.stretchesMoved, 2);
  const compressed = chooseMerge(spine.batches(), { busy: NONE, codec: 1 });
  assert.equal(compressed?.bytes, 203 * MIB, 'all is to be compressed');
  assert.equal(compressed?.stretchesMoved, 0);
  spine.advanceSince(3);
  const ranges = { ...keyed(4, 0), keyLo: new Uint8Array(0), keyHi: new Uint8Array(0), len: 1 };
  spine.push({
    lower: 4,
    upper: 5,
    since: 0,
    runs: [[{ ...ranges, rangeDeletes: 1, diffSum: 0, bytes: 100 }]],
  });
  spine.collapse();
  const before = chooseMerge(spine.batches(), { busy: NONE, since: 3, runsMin: 5 });
  assert.equal(before?.stretchesMoved, 2, 'a range delete that is not final hides nothing');
  const after = chooseMerge(spine.batches(), { busy: NONE, since: 4, runsMin: 5 });
  assert.equal(after?.bytes, 203 * MIB + 100, 'what it hides only the job knows');
});

test('parts that a range delete covers leave their run by an edit alone, one run at a time', () => {
  const spine = new Spine({ kind: KIND_KEYED, ids: counterIds() });
  const partAt = (key: number, time: number): SpinePart => ({
    ...plainPart(time, time + 1, 1, 100 * key + time + 1),
    keyLo: Uint8Array.of(key),
    keyHi: Uint8Array.of(key + 1),
  });
  spine.push({
    lower: 0,
    upper: 1,
    since: 0,
    runs: [[partAt(10, 0), partAt(20, 0), partAt(30, 0)]],
  });
  const ranges = { ...partAt(0, 1), keyLo: new Uint8Array(0), keyHi: new Uint8Array(0) };
  const top = [{ ...ranges, rangeDeletes: 1, negatives: 0, diffSum: 0 }, partAt(20, 1)];
  spine.push({ lower: 1, upper: 2, since: 0, runs: [top] });
  const covers = (part: SpinePart): boolean => part.keyLo[0] >= 20 && part.maxT < 1;
  const find = (busy = NONE): ReturnType<typeof chooseCovered> =>
    chooseCovered(spine.batches(), busy, 1, covers);
  const move = find();
  assert.ok(move, 'two parts are covered');
  assert.equal(move.dropped.len, 2);
  assert.deepEqual(
    move.runs.map((parts) => parts.map((part) => part.keyLo[0])),
    [[10]],
  );
  assert.equal(find(new Set(move.inputs)), undefined, 'not under a job');
  assert.equal(spine.apply(move).outcome, 'invalidSince', 'readers below 1 still see them');
  spine.advanceSince(1);
  assert.equal(spine.apply(move).outcome, 'applied');
  assert.deepEqual(spine.finding(), undefined);
  assert.equal(find(), undefined, 'nothing covered is left; what deletes is no row');
  assert.equal(spine.len, 3);
});
