/**
 * A spine against the naive model, under random pushes, jobs (chosen or arbitrary; answered late,
 * twice, tampered with, or never), moves of since, maintenance and restarts. After every step the
 * invariants hold and every readable time reads as the model says. A failure names its seed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setVerify } from '../../core/base/assert.ts';
import { KIND_KEYED, KIND_MULTISET } from '../../core/base/update.ts';
import { Spine } from '../../core/spine/spine.ts';
import type { MergeResult } from '../../core/spine/spine.ts';
import { counterIds } from './golden.ts';
import { contentsAt, randomJob } from './model.ts';
import { World } from './world.ts';

setVerify(true);

const STEPS = 80;

function inWorlds(seeds: number, first: number, run: (world: World) => void): void {
  for (let seed = first; seed < first + seeds; seed++) {
    for (const kind of [KIND_KEYED, KIND_MULTISET]) {
      for (const effort of [1, 1_024]) {
        const world = new World(kind, seed, effort);
        try {
          run(world);
        } catch (error) {
          throw new Error(`seed ${seed}, kind ${kind}, effort ${effort}`, { cause: error });
        }
      }
    }
  }
}

test('contents, invariants and refusals hold whatever happens in whatever order (P1, P3-P7, P11, P15)', () => {
  let joined = 0;
  let moved = 0;
  inWorlds(20, 1, (world) => {
    for (let i = 0; i < STEPS; i++) world.step();
    joined += world.joined;
    moved += world.moved;
  });
  assert.ok(joined > 10, `joined ${joined} times`);
  assert.ok(moved > 100, `${moved} parts were moved inside a merge`);
});

test('with fair workers every spine batch becomes one run, and collapsed all of it does (P12)', () => {
  inWorlds(10, 1_000, (world) => {
    for (let i = 0; i < STEPS; i++) world.step();
    world.drain();
    world.spine.collapse();
    world.drain();
    assert.equal(world.spine.batches().length, 1);
    world.check(world.figures());
  });
});

test('any order of the same answers gives equal contents (P4)', () => {
  for (let seed = 1; seed <= 40; seed++) {
    const made = new World(KIND_MULTISET, seed, 1_024);
    for (let i = 0; i < 30; i++) made.push();
    made.spine.advanceSince(made.spine.upper >>> 1);
    const results: MergeResult[] = [];
    for (let i = 0; i < 12; i++) {
      const job = randomJob(made.spine.batches(), made.spine.since, made.prng);
      if (job !== undefined) results.push(made.files.merge(job));
    }
    const state = made.spine.state();
    const contents = new Set<string>();
    for (let order = 0; order < 5; order++) {
      const ids = counterIds(1_000, 1_000);
      const spine = Spine.restore(state, { kind: KIND_MULTISET, ids });
      const shuffled = results.toSorted(() => made.prng.unit() - 0.5);
      for (const result of [...shuffled, ...results]) spine.apply(result);
      contents.add(made.files.contents(spine, spine.upper - 1));
      contents.add(contentsAt(KIND_MULTISET, made.updates, spine.upper - 1));
    }
    assert.equal(contents.size, 1, `seed ${seed}`);
  }
});
