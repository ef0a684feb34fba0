/**
 * Goal: what the sequencer can do nothing about is no work, so that whoever drives it may sleep, and time may
 * pass until the thing that is waited for comes due. Method: the whole engine on one thread over a disk in
 * memory, whose jobs go on when they are let; commits for which there is no page.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB, pageBytes } from '../../core/base/limits.ts';
import type { Job } from '../../actors/jobs.ts';
import { Incarnation } from '../crash/engine.ts';
import { SimDisk } from '../sim/disk.ts';

const HOW = { segmentBytes: 64 * MiB, memtableBytes: 4 * MiB, synced: true };
const COMMITS = 80;
/** More than an engine has to do that cannot go on. */
const ROUNDS = 2_000;

/** Commits for which there are too few pages: each takes one. */
function commitMuch(engine: Incarnation): void {
  const value = 'v'.repeat((pageBytes * 5) / 8);
  for (let i = 0; i < COMMITS; i++) {
    engine.commit([{ collection: 1, key: `k${i}`, value }]);
    engine.endTurn();
  }
}

function restsAfter(engine: Incarnation): boolean {
  for (let i = 0; i < ROUNDS; i++) if (!engine.round()) return true;
  return false;
}

test('while no page comes free the engine rests, however often one is asked for', () => {
  const engine = new Incarnation(new SimDisk({ answerAtOnce: true }), HOW).open();
  let mayStep = false;
  engine.pace = { mayStep: () => mayStep, dies: () => false, onStep: () => {} };
  commitMuch(engine);
  assert.ok(restsAfter(engine), 'nobody has anything to do');
  assert.ok(engine.applied < COMMITS, 'commits wait for pages');
  assert.ok(!engine.round(), 'nor has anybody after the client has asked again');
  mayStep = true;
  engine.pump(() => engine.durable === COMMITS, 'every commit');
  engine.close();
});

test('a flush that failed is tried again while commits wait for the pages that it will give back', () => {
  const engine = new Incarnation(new SimDisk({ answerAtOnce: true }), HOW).open();
  let deaths = 0;
  const dies = (job: Job): boolean => job.kind === 'flush' && deaths++ < 1;
  engine.pace = { mayStep: () => true, dies, onStep: () => {} };
  commitMuch(engine);
  engine.pump(() => engine.durable === COMMITS, 'every commit');
  assert.ok(deaths > 1, 'a flush has failed, and others have not');
  engine.close();
});
