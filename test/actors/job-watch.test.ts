/** Goal: a job that goes on is let be, one that waits too; one that stands still is ended, gently first. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { JobWatch } from '../../actors/job-watch.ts';

/** A pool of which only the figures are real; what is asked of it, in words. */
function made(): { watch: JobWatch; steps: Map<number, number>; asked: string[] } {
  const steps = new Map<number, number>();
  const asked: string[] = [];
  const watch = new JobWatch({
    steps: (id) => steps.get(id) ?? 0,
    cancel: (id) => void asked.push(`cancel ${id}`),
    replace: (id) => void asked.push(`replace ${id}`),
  });
  return { watch, steps, asked };
}

test('a job that stands still for a minute is asked to stop, and after another its worker goes', () => {
  const { watch, steps, asked } = made();
  assert.equal(watch.idle, Infinity);
  for (const id of [2, 4, 6]) watch.begin(id);
  assert.ok(watch.idle <= 5_000, 'there is something to look at');
  let found = 0;
  for (let now = 0; now <= 400_000; now += 1_000) {
    // 2 goes on, slowly; 4 stood still from the second minute on; 6 still waits for a worker.
    steps.set(2, 1 + Math.floor(now / 50_000));
    steps.set(4, Math.min(60, 1 + now / 1_000));
    found += watch.look(now);
    if (now < 115_000) assert.deepEqual(asked, [], `at ${now}`);
    if (now === 130_000) assert.deepEqual(asked, ['cancel 4']);
    if (now === 190_000) {
      assert.deepEqual(asked, ['cancel 4', 'replace 4']);
      watch.end(4);
    }
  }
  assert.equal(found, 1);
  assert.deepEqual(asked, ['cancel 4', 'replace 4']);
});

test('a job that heard and goes on to its end is not taken for one that did not', () => {
  const { watch, steps, asked } = made();
  watch.begin(2);
  steps.set(2, 5);
  for (let now = 0; now <= 65_000; now += 5_000) watch.look(now);
  assert.deepEqual(asked, ['cancel 2']);
  for (let now = 70_000; now <= 300_000; now += 5_000) {
    steps.set(2, now);
    watch.look(now);
  }
  assert.deepEqual(asked, ['cancel 2']);
  watch.end(2);
  assert.equal(watch.idle, Infinity);
});
