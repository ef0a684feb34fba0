/**
 * Goal: no damage to a closed store makes it silently shorter or different. Method: a small store of
 * several segments, parts, manifest and checkpoint; one bit, one cut, one exchange at a time; a sample
 * of what `npm run crash-states -- --flips` does.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bitFlips, cuts, exchanges, judge, makeStore, sectors } from './damage.ts';
import type { Damage, Store } from './damage.ts';
import { FlipJudge } from './flips.ts';

function check(
  store: Store,
  damages: Iterable<Damage>,
  judgeOf: (damage: Damage) => ReturnType<typeof judge> = (damage) => judge(store, damage),
): number {
  const bad: string[] = [];
  let detected = 0;
  for (const damage of damages) {
    const { verdict, error } = judgeOf(damage);
    if (verdict === 'detected') detected++;
    else if (verdict === 'silent' || verdict === 'crude') {
      bad.push(`${verdict}: ${damage.what}: ${String(error)}`);
    }
  }
  assert.deepEqual(bad, []);
  return detected;
}

test('a flipped bit is detected or harmless', async () => {
  const store = await makeStore();
  const segments = store.files.filter((path) => path.endsWith('.seg'));
  assert.ok(segments.length >= 3, `${segments.length} segments`);
  // One in five of what a piece of the engine judges is opened as a whole, and judged the same.
  const flips = new FlipJudge(store, 5);
  const detected = check(store, bitFlips(store, 5, 197), (damage) => flips.judge(damage));
  assert.ok(detected > 100, `${detected} are detected`);
  assert.ok(flips.wholes > 200, `${flips.wholes} were opened`);
});

test('a file that was cut is detected or harmless', async () => {
  const store = await makeStore();
  assert.ok(check(store, cuts(store, 1, 499)) > 20, 'many are detected');
});

test('a file that is missing, in the wrong place or there twice is detected or harmless', async () => {
  const store = await makeStore();
  assert.ok(check(store, exchanges(store)) > 10, 'many are detected');
});

test('a sector that was lost or misdirected is detected or harmless', async () => {
  const store = await makeStore();
  assert.ok(check(store, sectors(store, 3)) > 10, 'many are detected');
});
