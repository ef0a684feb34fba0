/**
 * Goal: whatever the moment of a crash and whatever it leaves, the whole engine comes back with what was
 * acknowledged, at every offset what the model has, and goes on. Method: enumerate.ts, a slice of what
 * `npm run crash-states` does.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { enumerate } from './enumerate.ts';
import { WORKLOADS } from './workloads.ts';

const CHOICE = { subsetsMax: 3, samples: 2, regularMax: 1 };
const STEP = 20;

for (const workload of WORKLOADS) {
  test(`nothing acknowledged is lost, whenever it dies: ${workload.name}`, async () => {
    let states = 0;
    for (const seed of [1, 2]) {
      states += await enumerate(workload, seed, { choice: CHOICE, step: STEP, from: seed });
    }
    assert.ok(states >= 20, `${states} states`);
  });
}
