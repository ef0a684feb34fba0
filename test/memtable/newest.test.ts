/** Walking a sealed generation by keys: each once, with its newest version, whatever its pages. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB, pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { OP_DELETE, OP_PUT } from '../../core/base/update.ts';
import { NewestRows } from '../../core/memtable/newest.ts';
import { keyHash } from '../../core/memtable/reader.ts';
import { World, bytesOf, randomBytes, textOf } from './world.ts';
import type { Operation } from './world.ts';

test('every key of a sealed generation comes once, with the newest of its versions', () => {
  const random = new Prng(8);
  const world = new World(64 * MiB);
  const writer = world.create({ bytes: 32 * MiB, rows: 60_000 });
  writer.open(100);
  const newest = new Map<string, Operation & { time: number }>();
  for (let time = 100; time < 40_100; time++) {
    const collection = random.below(3) * 70_000;
    const key = bytesOf(`${random.below(8_000)}`);
    const isPut = random.chance(0.8);
    const length = random.chance(0.0003) ? 3 * pageBytes : random.below(30);
    const value = isPut ? randomBytes(random, length) : bytesOf('');
    const kind = isPut ? OP_PUT : OP_DELETE;
    const operation = { collection, key, kind, value, diff: isPut ? 1 : -1 };
    world.write(writer, [operation], time);
    newest.set(`${collection}/${textOf(key)}`, { ...operation, time });
  }
  writer.seal(40_100);
  assert.ok(newest.size > 16_384, 'anchors fill more than two pages');

  const walk = new NewestRows(world.arena, world.pool);
  // Pages are leased from the bottom: nothing lies up there.
  const target = 60 * MiB;
  walk.start(writer.header);
  for (let left = newest.size; left > 0; left--) {
    assert.equal(walk.left, left);
    assert.ok(walk.next());
    const key = world.arena.u8.slice(walk.keyAddress, walk.keyAddress + walk.keyBytes);
    const name = `${walk.collection}/${textOf(key)}`;
    const expected = newest.get(name);
    assert.ok(expected, name);
    newest.delete(name);
    assert.equal(walk.time, expected.time);
    assert.equal(walk.kind, expected.kind);
    assert.equal(walk.hash, keyHash(key, 0, key.length));
    assert.equal(walk.valueBytes, expected.value.length);
    walk.copyValueTo(target);
    const value = world.arena.u8.subarray(target, target + walk.valueBytes);
    assert.equal(Buffer.compare(value, expected.value), 0);
  }
  assert.equal(walk.next(), false);
  assert.equal(walk.left, 0);
});

test('a generation without rows has no keys', () => {
  const world = new World(16 * MiB);
  const writer = world.create();
  writer.open(0);
  writer.seal(0);
  const walk = new NewestRows(world.arena, world.pool);
  walk.start(writer.header);
  assert.equal(walk.next(), false);
});
