/**
 * Goal: an engine is a good citizen of its process. It keeps it alive for as long as something is
 * pending and no longer, reuses its threads, and when the process is killed at any moment everything
 * acknowledged is there, without gaps.
 */
import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { Child, HOSTS, Home, inBothHosts } from './world.ts';
import type { Host } from './world.ts';

inBothHosts('an engine with nothing pending does not keep the process alive', async (home) => {
  const child = new Child('idle', home.directory, home.host);
  await child.succeeded();
  assert.match(child.lines.join(), /^idle at \d+$/);
  // It never closed: its lock is a dead process's.
  const engine = await home.open();
  assert.equal((await engine.collection('words')).getSync('a'), '1');
});

inBothHosts('an engine with commits pending does', async (home) => {
  const child = new Child('pending', home.directory, home.host);
  await child.succeeded();
  assert.deepEqual(child.lines, ['committed', 'durable']);
  const engine = await home.open();
  assert.equal([...(await engine.collection('words')).keys()].length, 1_001);
});

inBothHosts('commits that nobody awaits are done or refused, and end no process', async (home) => {
  const child = new Child('flood', home.directory, home.host);
  await child.succeeded();
  assert.deepEqual(child.lines, ['TIDEMARK_BUSY']);
  const engine = await home.open();
  const names = [...(await engine.collection('words')).keys()].map(Number);
  // What was taken is there, and what was refused came later.
  assert.ok(names.length > 10_000 && names.length < 40_000, `${names.length}`);
  assert.equal(Math.max(...names), names.length - 1);
});

inBothHosts('refusals that nobody hears of end no process', async (home) => {
  const child = new Child('unheard', home.directory, home.host);
  await child.succeeded();
  assert.deepEqual(child.lines, ['refused']);
});

test('the next engine takes over the threads of the last one', async () => {
  const home = new Home('threads');
  // Workers that were started, the pool's too, which come and go as they have jobs.
  let started = 0;
  const onWorker = (): void => void started++;
  subscribe('worker_threads', onWorker);
  try {
    await (await home.open()).close();
    started = 0;
    const times: number[] = [];
    for (let i = 0; i < 8; i++) {
      const startedAt = performance.now();
      const engine = await home.open();
      times.push(performance.now() - startedAt);
      await (await engine.collection('words', {})).put('a', `${i}`);
      await engine.close();
    }
    assert.ok(started < 8, `${started} workers for 8 engines`);
    const median = times.toSorted((a, b) => a - b)[4];
    assert.ok(median < 1_000, `${median} ms`);
    const first = await home.open({}, `${home.directory}/1`);
    started = 0;
    const second = await home.open({}, `${home.directory}/2`);
    assert.ok(started > 0, 'two live engines have two sets');
    await Promise.all([first.close(), second.close()]);
  } finally {
    unsubscribe('worker_threads', onWorker);
    await home.end();
  }
});

// ---------------------------------------------------------------- kill -9

const ROUNDS = 3;

async function checkRows(home: Home, acknowledged: number): Promise<number> {
  const engine = await home.open();
  try {
    const names = engine.collections().map(({ name }) => name);
    if (!names.includes('marks')) {
      assert.equal(acknowledged, -1);
      return -1;
    }
    const marks = await engine.collection<'utf8', 'u64'>('marks');
    const rows = await engine.collection<'u64'>('rows');
    const last = marks.getSync('last') ?? -1;
    assert.ok(last >= acknowledged, `${last} of ${acknowledged} acknowledged`);
    let expected = 0;
    for (const [n, value] of rows.entries()) {
      assert.equal(n, expected++, 'no gap');
      assert.equal(Number.parseInt(value, 10), n);
    }
    assert.equal(expected, last + 1);
    return last;
  } finally {
    await engine.close();
  }
}

test(`killed ${ROUNDS} times: everything acknowledged is there, a prefix without gaps`, async () => {
  const random = new Prng(41);
  const homes = new Map<Host, Home>(HOSTS.map((host) => [host, new Home(host)]));
  try {
    for (let round = 0; round < ROUNDS; round++) {
      const host = HOSTS[round % 2];
      const home = homes.get(host);
      assert.ok(home !== undefined);
      const durability = round % 5 === 4 ? 'buffered' : 'synced';
      const child = new Child('write', home.directory, host, durability);
      // When it dies is left to chance, now and then before its first acknowledgement.
      await child.line(1 + (random.chance(0.2) ? 0 : random.below(1_500)));
      child.process.kill('SIGKILL');
      const { signal } = await child.ended;
      assert.equal(signal, 'SIGKILL', child.errors);
      const acknowledged = Math.max(-1, ...child.lines.slice(1).map(Number));
      await checkRows(home, acknowledged);
    }
    for (const home of homes.values()) assert.ok((await checkRows(home, -1)) > 0);
  } finally {
    for (const home of homes.values()) await home.end();
  }
});
