/**
 * Goal: every write, sync, rename and directory sync is there for a reason that the harness sees.
 * Method: some of the places are switched off, one at a time, and a crash state must tell. All of them:
 * `npm run crash-states -- --elide`.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { elide, isHarmless, sitesOf } from './elide.ts';
import { WORKLOADS } from './workloads.ts';

test('turning off a call that makes something durable is noticed', async () => {
  const lives = WORKLOADS.filter(({ name }) => name === 'catalog' || name === 'recovery');
  const sites = await sitesOf(lives, [1]);
  assert.ok(sites.size >= 12, `${sites.size} places`);
  const unnoticed: string[] = [];
  let tried = 0;
  for (const [site, comes] of sites) {
    if (isHarmless(site)) continue;
    // Every fourth: which ones, changes with the code.
    if (tried++ % 4 !== 0) continue;
    const { noticed } = await elide(site, comes, [1, 2, 3], 300);
    if (noticed === undefined) unnoticed.push(site);
  }
  assert.deepEqual(unnoticed, []);
});
