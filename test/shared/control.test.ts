/** Control words and counters in one thread: each its own place, every value it may take. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { Arena } from '../../core/shared/arena.ts';
import { CancelFlag } from '../../core/shared/cancel.ts';
import {
  ACTORS,
  CONTROL_BYTES,
  Control,
  STALL_CALL,
  STALL_WAIT,
  STATE_CLOSED,
  STATE_CLOSING,
  STATE_OPEN,
  STATE_POISONED,
  STATE_STARTING,
} from '../../core/shared/control.ts';
import { Counters, countersBytes, readCounter } from '../../core/shared/counters.ts';
import { EPOCH_FIRST } from '../../core/shared/epoch.ts';
import { loadTriple, storeTriple } from '../../core/shared/triple.ts';

const AT = 256;

function makeControl(): { arena: Arena; control: Control } {
  const arena = Arena.create(pageBytes);
  arena.u8.fill(0xee);
  const control = new Control(arena, AT);
  control.reset();
  return { arena, control };
}

const EDGES = [
  0,
  1,
  0x7fff_ffff,
  0x8000_0000,
  0xffff_ffff,
  0x1_0000_0000,
  0x1_0000_0001,
  0x7fff_ffff_ffff,
  2 ** 53 - 2,
  Number.MAX_SAFE_INTEGER,
];

test('a triple holds every safe integer, on both sides of each carry', () => {
  const i32 = new Int32Array(new SharedArrayBuffer(64));
  const prng = new Prng(5);
  const values = [...EDGES];
  for (let i = 0; i < 1_000; i++) {
    values.push(Math.floor(prng.unit() * 2 ** prng.between(1, 53)));
  }
  for (const value of values) {
    storeTriple(i32, 3, value);
    assert.equal(loadTriple(i32, 3), value);
  }
  assert.equal(i32[2], 0);
  assert.equal(i32[6], 0);
});

test('every control word has a place of its own', () => {
  const { arena, control } = makeControl();
  const words: [string, (n: number) => void, () => number][] = [
    ['view', (n) => control.setView(n), () => control.view()],
    ['applied', (n) => control.setApplied(n), () => control.applied()],
    ['written', (n) => control.setWritten(n), () => control.written()],
    ['durable', (n) => control.setDurable(n), () => control.durable()],
    [
      'position',
      (n) => control.setLogPosition(n % 1_000, n),
      () => control.logPosition() - (control.logPosition() % 1_000) + control.logSeq(),
    ],
  ];
  for (let actor = 0; actor < ACTORS; actor++) {
    words.push(
      [
        `call${actor}`,
        (n) => control.beginStall(actor, STALL_CALL, n % 100, n),
        () => control.stall(actor, STALL_CALL).sinceMs,
      ],
      [`what${actor}`, () => {}, () => control.stall(actor, STALL_CALL).what],
      [
        `wait${actor}`,
        (n) => {
          control.beginStall(actor, STALL_WAIT, 1, n);
          control.endStall(actor, STALL_WAIT, 1);
        },
        () => control.stall(actor, STALL_WAIT).sinceMs,
      ],
      [
        `long${actor}`,
        (n) => control.endStall(actor, STALL_CALL, n),
        () => control.longStall(actor, STALL_CALL).ms,
      ],
    );
  }
  const all = (): number[] => words.map(([, , get]) => get());
  assert.deepEqual(
    all(),
    words.map(() => 0),
  );
  for (const [name, set, get] of words) {
    const before = all();
    set(4_000_000_050);
    if (name.startsWith('what')) {
      assert.equal(get(), 50);
      continue;
    }
    assert.equal(get(), 4_000_000_050, name);
    const changed = all().filter((value, i) => value !== before[i]).length;
    // What a call is, and that it is over, change with it.
    assert.equal(changed, /^(call|long)/.test(name) ? 2 : 1, name);
  }
  control.setPagesWanted(true);
  assert.equal(control.pagesWanted(), true);
  control.setPagesWanted(false);
  assert.equal(control.pagesWanted(), false);
  assert.equal(control.hasSpace(), true);
  control.setHasSpace(false);
  assert.equal(control.hasSpace(), false);
  assert.equal(control.clients(), 0);
  assert.deepEqual([control.claimClient(), control.claimClient(), control.clients()], [0, 1, 2]);
  assert.equal(control.state(), STATE_STARTING);
  assert.equal(arena.i32[control.epochAddress >>> 2], EPOCH_FIRST);
  assert.ok(arena.u8.subarray(0, AT).every((byte) => byte === 0xee));
  assert.ok(arena.u8.subarray(AT + CONTROL_BYTES).every((byte) => byte === 0xee));
});

test('frontiers take every value, and a view any address', () => {
  const { control } = makeControl();
  for (const value of EDGES) {
    control.setApplied(value);
    control.setWritten(value);
    control.setDurable(value);
    control.setLogPosition(1, value);
    assert.deepEqual(
      [control.applied(), control.written(), control.durable(), control.logPosition()],
      [value, value, value, value],
    );
  }
  control.setView(0xffff_ff80);
  assert.equal(control.view(), 0xffff_ff80);
});

test('a state is left only from where it is', () => {
  const { control } = makeControl();
  assert.equal(control.moveState(STATE_OPEN, STATE_CLOSING), false);
  assert.equal(control.moveState(STATE_STARTING, STATE_OPEN), true);
  assert.equal(control.moveState(STATE_OPEN, STATE_CLOSING), true);
  assert.equal(control.moveState(STATE_OPEN, STATE_CLOSING), false);
  assert.equal(control.moveState(STATE_CLOSING, STATE_CLOSED), true);
  assert.equal(control.state(), STATE_CLOSED);
});

test('the first failure is kept, whole, and poisons', () => {
  const { control } = makeControl();
  assert.equal(control.failureJson(), '');
  const first = JSON.stringify({ code: 'TIDEMARK_IO', message: 'räder — 磁盘' });
  assert.equal(control.poison(first), true);
  assert.equal(control.state(), STATE_POISONED);
  assert.equal(control.poison('{}'), false);
  assert.equal(control.failureJson(), first);
});

test('an overlong failure is cut, not written over its neighbours', () => {
  const { arena, control } = makeControl();
  assert.equal(control.poison('x'.repeat(20_000)), true);
  assert.match(control.failureJson(), /^x+$/);
  assert.ok(arena.u8.subarray(AT + CONTROL_BYTES).every((byte) => byte === 0xee));
});

test('counters are seen when published, each alone', () => {
  const arena = Arena.create(pageBytes);
  const counters = new Counters(arena, AT, 3);
  counters.add(0, 5);
  counters.add(2, 0x1_0000_0007);
  assert.equal(readCounter(arena, AT, 0), 0);
  counters.publish();
  assert.deepEqual(
    [0, 1, 2].map((i) => readCounter(arena, AT, i)),
    [5, 0, 0x1_0000_0007],
  );
  counters.add(2, 1);
  counters.publish();
  assert.equal(readCounter(arena, AT, 2), 0x1_0000_0008);
  assert.equal(countersBytes(3), 36);
});

test('a cancelled job sees it through the shared buffer', () => {
  const asker = new CancelFlag();
  const job = new CancelFlag(asker.buffer);
  assert.equal(job.cancelled, false);
  asker.cancel();
  assert.equal(job.cancelled, true);
  assert.equal(asker.steps, 0);
  job.step();
  job.step();
  assert.equal(asker.steps, 2);
  assert.equal(asker.cancelled, true);
});
