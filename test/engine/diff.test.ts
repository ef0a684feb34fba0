/** The difference between two offsets: taken from the one state it gives the other, whichever way it was found. */
import assert from 'node:assert/strict';
import type { Update } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { coded, inBothHosts, misuse } from './world.ts';

type Row = Update<string, string>;

async function all(rows: AsyncIterable<Row>): Promise<Row[]> {
  const found: Row[] = [];
  for await (const row of rows) found.push(row);
  return found;
}

/** What lies between two states, naively. */
function between(a: Map<string, string>, b: Map<string, string>): Row[] {
  const rows: Row[] = [];
  for (const key of [...new Set([...a.keys(), ...b.keys()])].toSorted((x, y) => (x < y ? -1 : 1))) {
    const before = a.get(key);
    const after = b.get(key);
    if (before === after) continue;
    if (before !== undefined) rows.push({ key, value: before, diff: -1 });
    if (after !== undefined) rows.push({ key, value: after, diff: 1 });
  }
  return rows;
}

inBothHosts('by log or by states, a difference is that of the states', async (home) => {
  const prng = new Prng(3);
  const engine = await home.open({ segmentBytes: 16_384 });
  const users = await engine.collection('users', { history: Infinity });
  const states: Map<string, string>[] = [];
  const state = new Map<string, string>();
  const note = (offset: number): void => {
    while (states.length <= offset) states.push(new Map(state));
  };
  for (let i = 0; i < 120; i++) {
    const tx = engine.transaction();
    note(engine.upper - 1);
    // Now and then more transactions than the log is read for.
    const more = i % 60 === 59 ? 1_100 : 1;
    for (let n = 1; n < more; n++) {
      void users.put(`k${n % 30}`, `${i}`);
      state.set(`k${n % 30}`, `${i}`);
    }
    for (let n = prng.between(1, 5); n > 0; n--) {
      const key = `k${prng.below(40)}`;
      const value = prng.chance(0.3) ? undefined : `v${prng.below(3)}`;
      if (value === undefined) {
        tx.delete(users, key);
        state.delete(key);
      } else {
        tx.put(users, key, value);
        state.set(key, value);
      }
    }
    const { offset } = await tx.commit();
    while (states.length < offset) states.push(new Map());
    note(offset);
    if (prng.chance(0.1)) await engine.flush();
  }
  const known = [...states.keys()].filter((offset) => states[offset].size > 0);
  let compared = 0;
  for (let i = 0; i < 60; i++) {
    const a = prng.pick(known);
    const b = prng.pick(known);
    if (Math.abs(a - b) > 1_024) compared++;
    assert.deepEqual(await all(users.diff(a, b)), between(states[a], states[b]), `${a} to ${b}`);
    const some = between(states[a], states[b]).filter(({ key }) => key.startsWith('k1'));
    assert.deepEqual(await all(users.diff(a, b, { prefix: 'k1' })), some);
  }
  assert.ok(compared > 5 && compared < 55, `${compared} by the states`);
  const last = engine.upper - 1;
  assert.deepEqual(await all(users.diff(-1, last)), between(new Map(), states[last]));
  assert.deepEqual(await all(users.diff(last, last)), []);
  assert.equal(engine.stats().holds.count, 0);
});

inBothHosts('a difference needs both ends', async (home) => {
  const engine = await home.open();
  const users = await engine.collection('users', { history: 0 });
  for (let i = 0; i < 10; i++) await users.put(`k${i}`, 'v');
  await assert.rejects(all(users.diff(0, engine.upper)), coded('TIDEMARK_NOT_YET'));
  await engine.compact();
  await users.put('k', 'v');
  await engine.compact();
  await assert.rejects(all(users.diff(2, engine.upper - 1)), coded('TIDEMARK_HISTORY_LOST'));
  assert.throws(() => users.diff(-2, 0), misuse(/offset/));
  const abort = new AbortController();
  abort.abort(new Error('enough'));
  await assert.rejects(all(users.diff(0, 1, { signal: abort.signal })), /enough/);
  assert.equal(engine.stats().holds.count, 0);
});
