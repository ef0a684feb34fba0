/**
 * Goal: every write, sync, rename and directory sync is there for a reason that the harness sees.
 * Method: some of the places are switched off, one at a time, and a crash state must tell. All of them:
 * `npm run crash-states -- --elide`.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { elide, sitesOf } from './elide.ts';
import { WORKLOADS } from './workloads.ts';

/** Places of the shortest life that are missed within a few states. */
const QUICK: readonly RegExp[] = [
  /^sync segment in log\/writer/,
  /^write segment in log\/writer/,
  /^sync edits \(waited for/,
  /^write edits \(queued, after open/,
  /^rename HEAD HEAD \(waited for/,
  /^sync HEAD \(queued/,
  /^syncDir wal in log\/create/,
];

const LIVES = WORKLOADS.filter(({ name }) => name === 'quiet');

test('with nothing turned off nothing is noticed', async () => {
  const { noticed } = await elide('no such place', LIVES, [1], 50);
  assert.equal(noticed, undefined);
});

test('turning off a call that makes something durable is noticed', async () => {
  const sites = await sitesOf(LIVES, [1]);
  assert.ok(sites.size >= 12, `${sites.size} places`);
  const unnoticed: string[] = [];
  let tried = 0;
  for (const site of sites.keys()) {
    if (!QUICK.some((pattern) => pattern.test(site))) continue;
    tried++;
    const { noticed } = await elide(site, LIVES, [1, 2], 400);
    if (noticed === undefined) unnoticed.push(site);
  }
  assert.ok(tried >= QUICK.length, `${tried} tried`);
  assert.deepEqual(unnoticed, []);
});
