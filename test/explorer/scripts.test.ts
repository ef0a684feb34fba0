/**
 * Every script through every interleaving: what must hold holds, and each planted bug is found. The
 * large scripts run with EXPLORER=deep only, or by `run.ts --deep`, which also says how many
 * interleavings there are.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CASES } from './scripts/index.ts';

const deep = process.env['EXPLORER'] === 'deep';

for (const one of CASES) {
  if (one.deep && !deep) continue;
  if (one.finds === undefined) {
    test(`${one.name}: ${one.promise}`, () => {
      const { schedules } = one.explore();
      assert.ok(schedules > 1, 'threads were interleaved');
    });
  } else {
    test(`${one.name} is found`, () => {
      const failure = one.findFailure();
      assert.equal(failure.kind, one.finds, failure.message);
      // What is printed is what happens.
      const lines = one.replay(failure.schedule);
      assert.ok(failure.message.endsWith(lines.slice(-10).join('\n')), failure.message);
    });
  }
}

test('no two scripts have one name', () => {
  assert.equal(new Set(CASES.map(({ name }) => name)).size, CASES.length);
});
