/** The arena's views, its plan, and times in two words. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arenaBytesMax, pageBytes } from '../../core/base/limits.ts';
import {
  Arena,
  ArenaPlan,
  LINE_BYTES,
  fromWords,
  highWord,
  lowWord,
} from '../../core/shared/arena.ts';

test('all views of all maps are the same bytes', () => {
  const arena = Arena.create(2 * pageBytes);
  const map = new Arena(arena.buffer);
  arena.f64[4] = 1.5;
  assert.equal(map.f64[4], 1.5);
  arena.i32[10] = -2;
  assert.equal(map.u32[10], 0xffff_fffe);
  assert.deepEqual([...map.u8.subarray(40, 44)], [0xfe, 0xff, 0xff, 0xff]);
  assert.equal(arena.bytes, 2 * pageBytes);
  assert.ok(arena.buffer instanceof SharedArrayBuffer);
  assert.equal(arena.buffer.growable, false);
});

test('the largest arena can be addressed to its last byte', () => {
  const arena = Arena.create(arenaBytesMax);
  arena.u8[arenaBytesMax - 1] = 7;
  assert.equal(arena.u32[(arenaBytesMax - 4) >>> 2], 0x0700_0000);
});

function refuse(): never {
  throw new RangeError('could not allocate memory');
}

test('where there is no WebAssembly memory to be had, a shared buffer does', () => {
  const real: unknown = Reflect.get(globalThis, 'WebAssembly');
  Reflect.set(globalThis, 'WebAssembly', { Memory: refuse });
  try {
    const arena = Arena.create(pageBytes);
    assert.equal(arena.bytes, pageBytes);
    assert.ok(arena.buffer instanceof SharedArrayBuffer);
  } finally {
    Reflect.set(globalThis, 'WebAssembly', real);
  }
});

test('a size that is not of whole pages is our mistake', () => {
  for (const bytes of [0, 1, pageBytes - 1, pageBytes + 8, arenaBytesMax + pageBytes]) {
    assert.throws(() => Arena.create(bytes), /arena size/);
  }
});

test('a plan gives each its own lines, never address 0', () => {
  const plan = new ArenaPlan();
  const sizes = [4, 1, 128, 129, 1_000, 4];
  let end = 1;
  for (const bytes of sizes) {
    const at = plan.take(bytes);
    assert.equal(at % LINE_BYTES, 0);
    assert.ok(at >= end);
    end = at + bytes;
  }
  assert.ok(plan.bytes >= end);
  assert.equal(plan.bytes % LINE_BYTES, 0);
});

test('times survive being two words', () => {
  const i32 = new Int32Array(2);
  for (const time of [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, 2 ** 53 - 1]) {
    i32[0] = lowWord(time);
    i32[1] = highWord(time);
    assert.equal(fromWords(i32[0], i32[1]), time);
    const u32 = new Uint32Array(i32.buffer);
    assert.equal(fromWords(u32[0], u32[1]), time);
  }
});
