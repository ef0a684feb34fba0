/**
 * Goal: inline as on threads, what one actor tells another by a ring alone is seen before anybody sleeps. There
 * a bell wakes a thread; here nobody listens to it. Method: two actors, the one that waits before the other.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../../core/base/limits.ts';
import { Arena } from '../../core/shared/arena.ts';
import type { Actor } from '../../actors/actor.ts';
import { InlineHost, makeContext, poison, resetArena } from '../../actors/host.ts';
import { SimClock } from '../sim/clock.ts';
import { SimDisk } from '../sim/disk.ts';
import { configWith } from './config.ts';

const CONFIG = configWith(MiB);

function actor(number: number, tick: () => boolean): Actor {
  return { number, tick, idle: () => Infinity, publish: () => {}, onClose: () => {} };
}

test('an actor sees what the one behind it published and did not call work', async () => {
  const arena = Arena.create(32 * MiB);
  const context = makeContext(arena.buffer, CONFIG, new SimDisk(), new SimClock());
  resetArena(context);
  let published = false;
  let slices = 0;
  let seenIn = -1;
  const waits = actor(0, () => {
    if (published && seenIn < 0) seenIn = slices;
    return false;
  });
  const publishes = actor(1, () => {
    published = true;
    context.threadBells[0].ring();
    return false;
  });
  const host = new InlineHost(
    context,
    [waits, publishes],
    () => false,
    () => slices++,
  );
  host.kick();
  while (slices === 0) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(seenIn, 0, 'no sleep lies between');
  poison(context, new Error('the end'));
  host.kick();
});
