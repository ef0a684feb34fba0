/**
 * Reads a second that keeper hears of: of all readers together, the last ones counting most, by no clock
 * but the caller's.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Arena } from '../../core/shared/arena.ts';
import { READ_HEAT_BYTES, ReadCounts, ReadHeat } from '../../core/shared/read-heat.ts';
import { MiB } from '../../core/base/limits.ts';

const ADDRESSES = [4_096, 4_096 + READ_HEAT_BYTES, 4_096 + 2 * READ_HEAT_BYTES];

function made(): { arena: Arena; readers: ReadCounts[]; heat: ReadHeat } {
  const arena = Arena.create(32 * MiB);
  const readers = ADDRESSES.map((address) => new ReadCounts(arena, address));
  return { arena, readers, heat: new ReadHeat(arena, ADDRESSES, 1_000) };
}

function read(reader: ReadCounts, collection: number, times: number): void {
  for (let i = 0; i < times; i++) reader.add(collection);
}

test('the reads of all readers of a collection add up, and nobody else’s', () => {
  const { readers, heat } = made();
  for (let second = 1; second <= 100; second++) {
    for (const reader of readers) read(reader, 7, 40);
    read(readers[0], 8, 1);
    heat.update(1_000 + 1_000 * second);
  }
  assert.ok(Math.abs(heat.of(7) - 120) < 1, `${heat.of(7)}`);
  assert.ok(Math.abs(heat.of(8) - 1) < 0.1, `${heat.of(8)}`);
  assert.equal(heat.of(9), 0);
});

test('what was read ten seconds ago counts half, however often one looks', () => {
  for (const steps of [1, 2, 10]) {
    const { readers, heat } = made();
    for (let second = 1; second <= 100; second++) {
      read(readers[1], 3, 100);
      heat.update(1_000 + 1_000 * second);
    }
    const before = heat.of(3);
    for (let i = 1; i <= steps; i++) heat.update(101_000 + (10_000 / steps) * i);
    assert.ok(Math.abs(heat.of(3) / before - 0.5) < 0.001, `${steps} looks`);
  }
});

test('looks that follow too soon change nothing and lose nothing', () => {
  const { readers, heat } = made();
  read(readers[0], 1, 50);
  assert.equal(heat.update(1_999), false);
  assert.equal(heat.of(1), 0);
  assert.equal(heat.update(2_000), true);
  const once = made();
  read(once.readers[0], 1, 50);
  once.heat.update(2_000);
  assert.equal(heat.of(1), once.heat.of(1));
});

test('a number that goes round, and one that was there before, are no reads', () => {
  const arena = Arena.create(32 * MiB);
  const words = new Uint32Array(arena.buffer, ADDRESSES[0], 2);
  words[1] = 0xffff_fff0;
  const heat = new ReadHeat(arena, ADDRESSES, 0);
  read(new ReadCounts(arena, ADDRESSES[0]), 1, 32);
  heat.update(1_000);
  const plain = new ReadHeat(Arena.create(32 * MiB), ADDRESSES, 0);
  assert.equal(plain.of(1), 0);
  assert.ok(heat.of(1) > 0 && heat.of(1) < 32, `${heat.of(1)}`);
});
