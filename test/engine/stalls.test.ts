/**
 * Goal: what delays commits is named while it does, and delays them only. Method: a simulated disk whose
 * calls take long or are not answered, under a clock that is told the time; the real thing on threads is
 * in threads.test.ts.
 */
import assert from 'node:assert/strict';
import { channel } from 'node:diagnostics_channel';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Engine, OpenOptions, Stall } from '../../actors/index.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { SimClock } from '../sim/clock.ts';
import { SimDisk } from '../sim/disk.ts';
import { inBothHosts, until } from './world.ts';

const HOUR_MS = 3_600_000;

function optionsOn(storage: SimDisk, clock: SimClock): OpenOptions {
  return { threads: 0, memoryBytes: 64 * MiB, storage: { storage, clock } };
}

function listen(engine: Engine): Stall[] {
  const told: Stall[] = [];
  engine.on('stalled', (stall) => told.push(stall));
  return told;
}

test('a sync of 60 s while the clock jumps is told, everything is acknowledged, nothing fails', async () => {
  for (const jump of [0, -HOUR_MS, HOUR_MS]) {
    const disk = new SimDisk({ answerAtOnce: true });
    const clock = new SimClock();
    const engine = await open('/sim', optionsOn(disk, clock));
    const rows = await engine.collection('rows', {});
    const told = listen(engine);
    const heard: unknown[] = [];
    const hear = (message: unknown): unknown => heard.push(message);
    channel('tidemark:stalled').subscribe(hear);
    const since = clock.nowMs();
    let slow = 1;
    disk.fault = (call) => {
      if (call.call !== 'fdatasync' || slow-- <= 0) return undefined;
      clock.advance(60_000);
      clock.jump(jump);
      return undefined;
    };
    const receipts = await Promise.all([rows.put('a', '1'), rows.put('b', '2')]);
    await rows.put('c', '3');
    assert.ok(receipts[1].offset > receipts[0].offset, 'in their order');
    assert.equal(engine.state, 'open');
    await until('told, and told that it is over', () => told.length >= 2);
    const expected = { actor: 'durability', call: 'fdatasync', cause: 'disk', since, ms: 60_000 };
    assert.deepEqual(told, [
      { ...expected, over: false },
      { ...expected, over: true },
    ]);
    assert.deepEqual(heard[0], { directory: '/sim', ...told[0] });
    channel('tidemark:stalled').unsubscribe(hear);
    await until('published', () => engine.stats().stalls.calls.count === 1);
    assert.equal(engine.stats().stalls.calls.ms, 60_000);
    assert.ok(engine.stats().log.syncUs.max >= 60e6, 'and it is in the histogram');
    assert.deepEqual(engine.stats().stalls.current, []);
    await engine.close();
    const again = await open('/sim', optionsOn(disk, clock));
    const found = await again.collection('rows');
    assert.deepEqual([...found.keys()], ['a', 'b', 'c']);
    await again.close();
  }
});

test('the manifest hangs: told while it does, commits go on, and the flush ends when it answers', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = new SimClock();
  const engine = await open('/sim', optionsOn(disk, clock));
  const rows = await engine.collection('rows', {});
  await engine.flush();
  const told = listen(engine);
  disk.answerAtOnce = false;
  await rows.put('a', '1');
  const flushed = engine.flush();
  await until('the disk has a program', () => disk.queued > 0);
  await until('told', () => {
    clock.advance(100);
    return told.length > 0;
  });
  const [{ ms, ...first }] = told;
  assert.deepEqual(
    { ...first, since: 0 },
    { actor: 'keeper', call: 'queued', cause: 'disk', since: 0, over: false },
  );
  assert.ok(ms >= 1_000, `told after ${ms} ms`);
  assert.deepEqual(
    engine.stats().stalls.current.map(({ actor, since }) => ({ actor, since })),
    [{ actor: 'keeper', since: first.since }],
  );
  await rows.put('b', '2');
  const random = new Prng(1);
  disk.answerAtOnce = true;
  while (disk.runQueued(random));
  await rows.put('c', '3');
  await flushed;
  await until('told that it is over', () => told.some(({ over }) => over));
  assert.deepEqual(engine.stats().stalls.current, []);
  await engine.close();
});

test('a buffered engine commits while its log is synced; a sync that lasts is told, what hangs on it waits', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = new SimClock();
  const engine = await open('/sim', { ...optionsOn(disk, clock), durability: 'buffered' });
  const rows = await engine.collection('rows', {});
  await rows.put('first', '0', { durability: 'synced' });
  const told = listen(engine);
  disk.answerAtOnce = false;
  const { offset } = await rows.put('a', '1');
  await until('the log is being synced', () => {
    clock.advance(10);
    return disk.queued > 0;
  });
  await rows.put('b', '2');
  const durable = rows.put('c', '3', { durability: 'synced' });
  let isDurable = false;
  void durable.then(() => (isDurable = true));
  await until('told', () => {
    clock.advance(100);
    return told.some(({ actor, call }) => actor === 'durability' && call === 'fdatasync');
  });
  for (let i = 0; i < 20; i++) await rows.put(`${i}`, 'v');
  assert.ok(engine.durableUpper <= offset, 'nothing is durable before the disk says so');
  assert.ok(!isDurable, 'who asked for the sync waits');
  disk.answerAtOnce = true;
  const random = new Prng(1);
  while (disk.runQueued(random));
  await rows.put('d', '4');
  await durable;
  await until('told that it is over', () => told.some(({ over }) => over));
  await engine.close();
});

test('a buffered engine whose log cannot be synced is poisoned with the cause', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = new SimClock();
  const engine = await open('/sim', { ...optionsOn(disk, clock), durability: 'buffered' });
  const rows = await engine.collection('rows', {});
  await rows.put('first', '0', { durability: 'synced' });
  disk.fault = ({ call, path }) =>
    call === 'fdatasync' && path.startsWith('wal/') ? { kind: 'throw', code: 'EDQUOT' } : undefined;
  await rows.put('a', '1');
  await assert.rejects(rows.put('b', '2', { durability: 'synced' }), {
    code: 'TIDEMARK_OUTCOME_UNKNOWN',
  });
  assert.equal(engine.state, 'poisoned');
  const { call, errno } = engine.failure!.detail;
  assert.deepEqual({ call, errno }, { call: 'fdatasync', errno: 'EDQUOT' });
  await engine.close();
});

test('commits that wait for a flush are told with their cause, and of room when there is some', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const clock = new SimClock();
  const engine = await open('/sim', { ...optionsOn(disk, clock), memtableBytes: 64 * KiB });
  const rows = await engine.collection('rows', { value: 'buffer' });
  await engine.flush();
  const told = listen(engine);
  let rooms = 0;
  engine.on('room', () => rooms++);
  disk.answerAtOnce = false;
  const random = new Prng(2);
  const puts: Promise<unknown>[] = [];
  const value = Buffer.alloc(8 * KiB);
  const waits = (): Stall | undefined => told.find(({ call, over }) => call === '' && !over);
  let isFull = false;
  await until('commits wait for long', () => {
    for (let i = 0; i < 20 && !isFull; i++) puts.push(rows.put(`${puts.length % 50}`, value));
    isFull ||= puts.length % 500 === 0 && engine.stats().waitingTransactions > 0;
    clock.advance(50);
    return isFull && waits() !== undefined;
  });
  const stall = waits()!;
  assert.match(stall.cause, /^(flush|memory)$/);
  assert.match(stall.actor, /^(sequencer|client)$/);
  assert.equal(rooms, 0, 'there is no room yet');
  disk.answerAtOnce = true;
  while (disk.runQueued(random));
  puts.push(rows.put('x', value));
  await until('nobody waits', () => engine.stats().waitingTransactions === 0);
  await Promise.all(puts);
  await until('room is told', () => rooms > 0);
  await until('told that it is over', () =>
    told.some(({ actor, over }) => over && actor === stall.actor),
  );
  await until('counted', () => {
    const { memory, flush } = engine.stats().stalls;
    return memory.count + flush.count > 0 && memory.ms + flush.ms >= 1_000;
  });
  await engine.close();
});

inBothHosts('who was refused by tryCommit hears of room', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', {});
  let rooms = 0;
  engine.on('room', () => rooms++);
  const next = (n: number): ReturnType<Engine['transaction']> =>
    engine.transaction().put(rows, `${n}`, 'v');
  const sent: Promise<unknown>[] = [];
  let n = 0;
  for (; ; n++) {
    const one = engine.tryCommit(next(n), {
      expect: [{ collection: rows, key: `${n}`, offset: null }],
    });
    if (one === undefined) break;
    sent.push(one);
  }
  await until('room is told', () => rooms === 1);
  await Promise.all(sent);
  assert.ok(engine.tryCommit(next(n)) !== undefined, 'there is room');
  await engine.room();
});
