/**
 * Goal: a sync that fails loses nothing acknowledged, not in the same boot and not when the power goes
 * later, whether the system keeps what it could not write in its cache (ext4) or not (Btrfs). Method:
 * fail.ts, a slice of what `npm run crash-states -- --fail-syncs` does.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MANNERS, failSync } from './fail.ts';
import { WORKLOADS } from './workloads.ts';

for (const workload of WORKLOADS) {
  test(`a failed sync loses nothing acknowledged: ${workload.name}`, async () => {
    let failed = 0;
    for (const [i, fault] of MANNERS.entries()) {
      for (let n = i; await failSync(workload, 1, n, fault); n += 5) failed++;
    }
    assert.ok(failed >= 3, `${failed} syncs failed`);
  });
}
