/**
 * A random world for one spine: pushes, jobs (chosen or arbitrary; answered late, twice, tampered with,
 * or never), moves of since, maintenance and restarts, each step checked against the naive model: the
 * invariants hold, and every readable time reads as the model says. One seed makes it. Stepped by
 * spine-property.test.ts, and by soak.ts as often as one likes.
 */
import assert from 'node:assert/strict';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED } from '../../core/base/update.ts';
import { isCompact, levelOf } from '../../core/spine/batch.ts';
import type { SpineState } from '../../core/spine/batch.ts';
import { LoneParts } from '../../core/spine/moved-parts.ts';
import { chooseMerge, chooseMove } from '../../core/spine/policy.ts';
import { applyDelta, diffSpine, Spine } from '../../core/spine/spine.ts';
import type { MergeResult } from '../../core/spine/spine.ts';
import { counterIds } from './golden.ts';
import { contentsAt, Files, jobOf, randomJob } from './model.ts';
import type { Job, Update } from './model.ts';

export class World {
  readonly kind: number;
  readonly prng: Prng;
  readonly files: Files;
  readonly effort: number;
  /** How many pushes are of new keys only. */
  readonly sequential: number;
  ids: ReturnType<typeof counterIds> = counterIds();
  spine: Spine;
  /** What an edit-by-edit reader of the manifest would hold. */
  followed: SpineState | undefined;
  updates: Update[] = [];
  flying: Job[] = [];
  answered: MergeResult[] = [];
  /** Rows and rewrites, and virtual records too. */
  pushed = 0;
  virtual = 0;
  rewritten = 0;
  /** Files that the spine points at, and those that it has pointed at before. */
  live: ReadonlySet<number> = new Set();
  readonly gone: Set<number> = new Set();
  /** How often batches were joined by reference: the rare path must not stay unvisited. */
  joined = 0;
  /** And parts inside a merge. */
  moved = 0;
  readonly #lone: LoneParts = new LoneParts();

  constructor(kind: number, seed: number, effort: number) {
    this.kind = kind;
    this.prng = new Prng(seed);
    this.effort = effort;
    this.sequential = this.prng.pick([0, 0.3, 1]);
    this.files = new Files(kind);
    this.spine = new Spine({ kind, effort, ids: this.ids });
  }

  step(): void {
    const { prng } = this;
    const before = this.figures();
    const roll = prng.below(100);
    if (roll < 35) this.push();
    else if (roll < 50) this.dispatch();
    else if (roll < 70) this.answer();
    else if (roll < 76) this.answerAgain();
    else if (roll < 80) this.flying.splice(prng.below(this.flying.length + 1), 1);
    else if (roll < 86) this.spine.advanceSince(this.spine.since + prng.below(4));
    else if (roll < 89) {
      this.virtual += this.spine.exert(prng.pick([1, 8, 1024])) ? 1024 : 0;
    } else if (roll < 92) this.spine.collapse(prng.chance(0.5) ? undefined : prng.below(6));
    else if (roll < 95) this.move();
    else this.restart();
    this.follow();
    this.check(before);
  }

  push(): void {
    const { prng, spine } = this;
    const lower = spine.upper;
    const upper = lower + prng.between(1, 4);
    const size = prng.pick([1, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33]);
    const byPlace = new Map<string, Update>();
    for (let i = 0; i < size; i++) {
      const update = {
        key: prng.below(20),
        value: prng.below(3),
        time: prng.between(lower, upper - 1),
        diff: prng.chance(0.6) ? 1 : -1,
      };
      const { key, value, time } = update;
      byPlace.set(this.kind === KIND_KEYED ? `${key} ${time}` : `${key} ${value} ${time}`, update);
    }
    let updates = [...byPlace.values()];
    if (prng.chance(this.sequential)) {
      // Keys that only grow, as of a log: runs that can be joined without a rewrite.
      updates = updates.map((update, i) => ({ ...update, key: 100 + lower * 40 + i, diff: 1 }));
    }
    // Some batches come in several runs, each newer than the one before.
    const runCount = prng.chance(0.2) ? upper - lower : 1;
    const runs = [];
    for (let i = 0; i < runCount; i++) {
      const isMine = ({ time }: Update): boolean => runCount === 1 || time === lower + i;
      const parts = this.files.parts(updates.filter(isMine));
      if (parts.length > 0) runs.push(parts);
    }
    spine.push({ lower, upper, since: 0, runs });
    this.updates.push(...updates);
    this.pushed += updates.length;
  }

  dispatch(): void {
    const { prng, spine, flying } = this;
    const busy = new Set(flying.flatMap((job) => job.inputs));
    if (prng.chance(0.7)) {
      const runsMin = prng.pick([2, 4]);
      const needs = {
        busy,
        runsMin,
        runsMax: prng.pick([3, 8, 32]),
        since: spine.since,
        partBytes: this.files.partBytes,
      };
      const choice = chooseMerge(spine.batches(), { ...needs, lone: this.#lone });
      assert.deepEqual(chooseMerge(spine.batches(), needs), choice);
      if (choice === undefined) return;
      assert.ok(choice.inputs.every((bid) => !busy.has(bid)));
      flying.push(jobOf(choice, spine.since));
    } else {
      const job = randomJob(spine.batches(), spine.since, prng);
      if (job !== undefined) flying.push(job);
    }
  }

  answer(): void {
    const { prng, flying, spine } = this;
    if (flying.length === 0) return;
    const [job] = flying.splice(prng.below(flying.length), 1);
    const result = this.files.merge(job, prng.pick([1, 4, 100]));
    if (prng.chance(0.15)) {
      this.refuse({ ...result, ...this.tampered(job, result) }, ['checksumMismatch', 'noMatch']);
      return;
    }
    const before = this.shape();
    const outcome = spine.apply(result);
    if (outcome.outcome === 'applied') {
      const inputs = new Set(job.runs.flatMap((run) => run.parts));
      for (const part of result.runs.flat()) {
        if (inputs.has(part)) this.moved++;
        else this.rewritten += part.len;
      }
    } else {
      assert.equal(outcome.outcome, 'noMatch');
      assert.equal(this.shape(), before);
    }
    this.answered.push(result);
  }

  /** Late, stale or repeated: its inputs are gone, or it was never applied and still fits. */
  answerAgain(): void {
    if (this.answered.length === 0) return;
    const result = this.prng.pick(this.answered);
    this.refuse(result, ['noMatch', 'applied']);
  }

  refuse(result: MergeResult, allowed: readonly string[]): void {
    const before = this.shape();
    const { outcome } = this.spine.apply(result);
    assert.ok(allowed.includes(outcome), outcome);
    if (outcome !== 'applied') assert.equal(this.shape(), before);
    assert.equal(this.spine.apply(result).outcome, outcome === 'applied' ? 'noMatch' : outcome);
  }

  /** The result with one row changed, lost or twice; what it says it dropped is as it was. */
  tampered(job: Job, result: MergeResult): Partial<MergeResult> {
    const rows = result.runs.flatMap((parts) => this.files.read(parts));
    if (rows.length === 0) {
      return { dropped: { ...result.dropped, hash: [result.dropped.hash[0] ^ 1, 0] } };
    }
    const index = this.prng.below(rows.length);
    const row = rows[index];
    const how = this.prng.below(4);
    if (how === 0) rows[index] = { ...row, key: row.key + 1 };
    else if (how === 1) rows[index] = { ...row, value: row.value + 1 };
    else if (how === 2) rows.splice(index, 1);
    else rows[index] = { ...row, diff: -row.diff };
    const { runs, output } = this.files.result(job, rows, result.dropped, result.folded);
    return { runs, output };
  }

  move(): void {
    const busy = new Set(this.flying.flatMap((job) => job.inputs));
    const result = chooseMove(this.spine.batches(), busy, this.spine.since);
    if (result !== undefined) assert.equal(this.spine.apply(result).outcome, 'applied');
    if (result !== undefined && result.inputs.length > 1) {
      this.joined += Number(result.output.len > 0);
    }
  }

  restart(): void {
    const state = structuredClone(this.spine.state());
    const { kind, effort } = this;
    const ids = counterIds(this.ids.bidNext + 100, this.ids.runNext + 100);
    const restored = Spine.restore(state, { kind, effort, ids });
    assert.deepEqual(restored.state(), this.spine.state());
    this.spine = restored;
    this.ids = ids;
  }

  /** The manifest's way: only deltas. */
  follow(): void {
    const state = this.spine.state();
    this.followed = applyDelta(this.followed, diffSpine(this.followed, state));
    if (isSame(this.followed, state)) return;
    assert.deepEqual(this.followed, state);
    // After a restart they are equal and no longer the same; from now on they are both.
    this.followed = state;
  }

  check(before: ReturnType<World['figures']>): void {
    const { spine } = this;
    spine.validate();
    const after = this.figures();
    assert.ok(after.since >= before.since && after.upper >= before.upper);
    assert.ok(after.nextId >= before.nextId);
    this.checkFiles();
    const updates = this.files.updatesOf(spine);
    for (const asOf of new Set([spine.since, spine.since + 1, spine.upper - 1])) {
      if (asOf < spine.since) continue;
      assert.equal(
        contentsAt(this.kind, updates, asOf),
        contentsAt(this.kind, this.updates, asOf),
        `contents at ${asOf}`,
      );
    }
    const most = levelOf(this.pushed + this.virtual + 1);
    assert.ok(spine.levelCount - 1 <= most + 2, `${spine.levelCount} levels`);
  }

  /** A file that the spine has let go of never comes back: whoever deletes files may have deleted it (I10, P10). */
  checkFiles(): void {
    const live = new Set<number>();
    for (const { hollow } of this.spine.state().hollows) {
      for (const { parts } of hollow.runs) for (const { file } of parts) live.add(file);
    }
    for (const file of live) assert.ok(!this.gone.has(file), `file ${file} comes back`);
    for (const file of this.live) if (!live.has(file)) this.gone.add(file);
    this.live = live;
  }

  /** Nothing more is pushed: fair workers bring every spine batch to one run. */
  drain(): void {
    this.flying = [];
    for (let jobs = 0; ; jobs++) {
      assert.ok(jobs < 1_000, 'merging comes to an end');
      const none = new Set<number>();
      const move = chooseMove(this.spine.batches(), none, this.spine.since);
      if (move !== undefined) {
        assert.equal(this.spine.apply(move).outcome, 'applied');
        continue;
      }
      const choice = chooseMerge(this.spine.batches(), { busy: none, runsMin: 2 });
      if (choice === undefined) break;
      const result = this.files.merge(jobOf(choice, this.spine.since), 100);
      assert.equal(this.spine.apply(result).outcome, 'applied');
    }
    assert.ok(this.spine.batches().every(isCompact));
  }

  figures(): { since: number; upper: number; nextId: number } {
    const { since, upper, nextId } = this.spine;
    return { since, upper, nextId };
  }

  shape(): string {
    return JSON.stringify([this.spine.state(), this.ids.bidNext, this.ids.runNext]);
  }
}

/** Quick where it is so: what has not changed is the same object. False says nothing. */
function isSame(a: SpineState, b: SpineState): boolean {
  const { hollows, batches, merges, ...rest } = a;
  const { hollows: otherHollows, batches: otherBatches, merges: otherMerges, ...otherRest } = b;
  return (
    hollows.length === otherHollows.length &&
    hollows.every(
      ({ id, hollow }, i) =>
        hollow === otherHollows[i].hollow &&
        id[0] === otherHollows[i].id[0] &&
        id[1] === otherHollows[i].id[1],
    ) &&
    JSON.stringify([batches, merges, rest]) ===
      JSON.stringify([otherBatches, otherMerges, otherRest])
  );
}
