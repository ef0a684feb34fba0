/**
 * Goal: bytes that are only thought to be given back slow flushes down, and stop them far later; once a merge has told
 * that they are there, what is too much, or would be with the next flush, waits for the next one.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../../core/base/limits.ts';
import type { Counters } from '../../core/shared/counters.ts';
import type { ActorContext } from '../../actors/actor.ts';
import { Backpressure } from '../../actors/backpressure.ts';
import { CAUSE_DEBT, CAUSE_MEMORY } from '../../actors/stalls.ts';
import type { Waits } from '../../actors/stalls.ts';

function pressureOf(): { pressure: Backpressure; waits: { cause: number } } {
  const context = { config: { memtableBytes: 16 * MiB } } as ActorContext;
  const values = new Float64Array(256);
  const waits = {
    cause: 0,
    begin(cause: number): void {
      waits.cause = cause;
    },
    end(): void {
      waits.cause = 0;
    },
  };
  const counters = { values, add: () => {} } as unknown as Counters;
  const pressure = new Backpressure(context, counters, waits as unknown as Waits);
  // A job takes a tenth of a second.
  pressure.onFlushed(100, 11 * MiB);
  return { pressure, waits };
}

const far = { bytes: 110 * MiB, oldestBytes: 11 * MiB, reclaimable: 88 * MiB };
const load = { runs: 10, debt: 0, space: far, coming: 0, isMerging: true };

test('what is only thought to be overwritten delays flushes, and holds them when it is far too much', () => {
  const { pressure, waits } = pressureOf();
  const some = { ...far, bytes: 62 * MiB, reclaimable: 45 * MiB };
  const loads = [{ ...load, space: some, isSpaceKnown: false }];
  assert.equal(pressure.mayFlush(1_000, loads), true);
  assert.equal(pressure.mayFlush(1_399, loads), false);
  assert.equal(pressure.waitMs(1_399), 1);
  assert.equal(waits.cause, 0, 'nobody stands');
  assert.equal(pressure.mayFlush(1_400, loads), true);
  assert.equal(pressure.mayFlush(100_000, [{ ...load, isSpaceKnown: false }]), false);
  assert.equal(waits.cause, CAUSE_DEBT, 'the merge that tells is waited for');
});

test('what a merge has told holds them until the next one lands', () => {
  const { pressure, waits } = pressureOf();
  assert.equal(pressure.mayFlush(100_000, [{ ...load, isSpaceKnown: true }]), false);
  assert.equal(waits.cause, CAUSE_DEBT);
  const space = { ...far, bytes: 22 * MiB, reclaimable: 0 };
  assert.equal(pressure.mayFlush(100_001, [{ ...load, space, isSpaceKnown: true }]), true);
  assert.equal(waits.cause, 0);
});

test('a flush waits when what it adds would be too much, or what is being deleted is', () => {
  const { pressure } = pressureOf();
  const space = { bytes: 50 * MiB, oldestBytes: 25 * MiB, reclaimable: 15 * MiB };
  const small = { ...load, space, isSpaceKnown: true };
  assert.equal(pressure.mayFlush(100_000, [{ ...small, coming: 0 }]), true);
  assert.equal(pressure.mayFlush(200_000, [{ ...small, coming: 24 * MiB }]), false);
  // Nothing waits for a merge that nobody is about to do.
  assert.equal(
    pressure.mayFlush(300_000, [{ ...small, coming: 24 * MiB, isMerging: false }]),
    true,
  );
  // Nor for one that has nothing to give back.
  const none = { ...space, reclaimable: 0 };
  const coming = 200 * MiB;
  assert.equal(pressure.mayFlush(400_000, [{ ...small, space: none, coming }]), true);
});

test('a flush whose parts cannot be described waits for memory, and one that merges would need first', () => {
  const { pressure, waits } = pressureOf();
  const quiet = { ...load, runs: 1, space: { ...far, reclaimable: 0 }, isSpaceKnown: true };
  const idle = [{ ...quiet, isMerging: false }];
  const ample = { isSpent: false, isCrowded: false };
  assert.equal(pressure.mayFlush(1_000, idle, { ...ample, isSpent: true }), false);
  assert.equal(waits.cause, CAUSE_MEMORY);
  assert.equal(pressure.mayFlush(2_000, idle, { ...ample, isCrowded: true }), true);
  assert.equal(waits.cause, 0, 'there is nothing that merges could make less of');
  assert.equal(pressure.mayFlush(3_000, [quiet], { ...ample, isCrowded: true }), false);
  assert.equal(waits.cause, CAUSE_MEMORY);
  pressure.onNothingToFlush();
  assert.equal(waits.cause, 0);
  assert.equal(pressure.mayFlush(4_000, [quiet], ample), true);
});
