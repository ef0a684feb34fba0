/** The bell in one thread: when it counts, when it wakes. Lost wake-ups: `test/explorer`. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pageBytes } from '../../core/base/limits.ts';
import { Arena } from '../../core/shared/arena.ts';
import { Bell } from '../../core/shared/bell.ts';

const AT = 128;
const FOR_EVER_MS = 1e9;

function makeBell(): { arena: Arena; bell: Bell; ringer: Bell } {
  const arena = Arena.create(pageBytes);
  return { arena, bell: new Bell(arena, AT), ringer: new Bell(arena, AT) };
}

test('ringing costs nothing while nobody sleeps', () => {
  const { arena, bell, ringer } = makeBell();
  ringer.ring();
  assert.equal(arena.i32[AT >>> 2], 0);
  bell.park();
  bell.unpark();
  ringer.ring();
  assert.equal(arena.i32[AT >>> 2], 0);
});

test('a bell rung between parking and waiting is not slept through', () => {
  const { bell, ringer } = makeBell();
  const seen = bell.park();
  ringer.ring();
  bell.wait(seen, FOR_EVER_MS);
  assert.equal(bell.waitAsync(seen, FOR_EVER_MS), undefined);
  bell.unpark();
});

test('the count may wrap', () => {
  const { arena, bell, ringer } = makeBell();
  arena.i32[AT >>> 2] = 0x7fff_ffff;
  const seen = bell.park();
  ringer.ring();
  assert.equal(arena.i32[AT >>> 2], -0x8000_0000);
  bell.wait(seen, FOR_EVER_MS);
});

test('a wait ends by its timeout when nobody rings', () => {
  const { bell } = makeBell();
  const seen = bell.park();
  bell.wait(seen, 1);
  bell.unpark();
});

test('a sleeper that does not block is woken', async (t) => {
  const { bell, ringer } = makeBell();
  // The promise itself does not keep the process alive.
  const alive = setInterval(() => {}, 1_000);
  t.after(() => clearInterval(alive));
  const seen = bell.park();
  const rung = bell.waitAsync(seen, 10_000);
  assert.ok(rung instanceof Promise);
  ringer.ring();
  assert.equal(await rung, 'ok');
  bell.unpark();
  const next = bell.waitAsync(bell.park(), 1);
  assert.equal(await next, 'timed-out');
});
