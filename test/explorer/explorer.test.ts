/**
 * The explorer itself: that it runs every interleaving of what it is given, and finds the textbook
 * mistakes. What it says of our own code rests on this.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { explore, findFailure, replay } from './explorer.ts';
import type { Script, ThreadScript, World } from './explorer.ts';

const A = 128;
const B = 256;
const C = 384;

function thread(
  name: string,
  body: (i32: Int32Array, world: World) => unknown,
): ThreadScript<void> {
  return { name, start: (world) => () => body(world.arena.i32, world) };
}

function script(
  promise: string,
  threads: readonly ThreadScript<void>[],
  check: Script<void>['check'] = () => {},
): Script<void> {
  return { name: promise, promise, setup: () => {}, threads, check };
}

function steps(count: number): (i32: Int32Array) => void {
  return (i32) => {
    for (let i = 0; i < count; i++) Atomics.load(i32, A >>> 2);
  };
}

test('all interleavings are covered and counted', () => {
  const two = script('two threads of 5 calls', [thread('a', steps(5)), thread('b', steps(5))]);
  assert.equal(explore(two).schedules, 252);
  const three = script('three threads of 3 calls', [
    thread('a', steps(3)),
    thread('b', steps(3)),
    thread('c', steps(3)),
  ]);
  assert.equal(explore(three).schedules, 1680);
  assert.equal(explore(three).states, 64, 'each state is visited once');
});

test('every outcome that sequential consistency allows is seen, and no other', () => {
  const seen: Set<string> = new Set();
  const storeBuffer = script(
    'one of two threads that store and then load sees the other',
    [
      thread('a', (i32) => {
        Atomics.store(i32, A >>> 2, 1);
        return Atomics.load(i32, B >>> 2);
      }),
      thread('b', (i32) => {
        Atomics.store(i32, B >>> 2, 1);
        return Atomics.load(i32, A >>> 2);
      }),
    ],
    (_, __, results) => seen.add(results.join('')),
  );
  explore(storeBuffer);
  assert.deepEqual([...seen].toSorted(), ['01', '10', '11']);
});

const calls = (i32: Int32Array): number[] => [
  Atomics.store(i32, A >>> 2, 0x7fff_ffff),
  Atomics.add(i32, A >>> 2, 2),
  Atomics.sub(i32, A >>> 2, 5),
  Atomics.or(i32, A >>> 2, 0x10),
  Atomics.and(i32, A >>> 2, ~1),
  Atomics.xor(i32, A >>> 2, -1),
  Atomics.exchange(i32, A >>> 2, 7),
  Atomics.compareExchange(i32, A >>> 2, 6, 8),
  Atomics.compareExchange(i32, A >>> 2, 7, 9),
  Atomics.load(i32, A >>> 2),
];

test('each Atomics call does what it does in the language', () => {
  const expected = calls(new Int32Array(128));
  const alone = script('one thread', [thread('a', calls)], (_, __, results) =>
    assert.deepEqual(results[0], expected),
  );
  assert.equal(explore(alone).schedules, 1);
});

const twice = (body: (i32: Int32Array) => void): Script<void> =>
  script('both count', [thread('a', body), thread('b', body)], (world) =>
    assert.equal(world.word(A), 2),
  );

test('an update lost between load and store is found, and none is lost with add', () => {
  const failure = findFailure(
    twice((i32) => Atomics.store(i32, A >>> 2, Atomics.load(i32, A >>> 2) + 1)),
  );
  assert.equal(failure.kind, 'check');
  explore(twice((i32) => Atomics.add(i32, A >>> 2, 1)));
});

test('an assertion inside a thread fails the schedule that breaks it', () => {
  const failure = findFailure(
    script('never both', [
      thread('a', (i32) => Atomics.store(i32, A >>> 2, 1)),
      thread('b', (i32) => assert.equal(Atomics.load(i32, A >>> 2), 0, 'saw the store')),
    ]),
  );
  assert.equal(failure.kind, 'threw');
  assert.match(failure.message, /b: saw the store/);
  assert.deepEqual(failure.schedule, [0, 1]);
});

const publish = (i32: Int32Array): void => {
  i32[B >>> 2] = 42;
  Atomics.store(i32, A >>> 2, 1);
};

const receive = (i32: Int32Array): number | undefined =>
  Atomics.load(i32, A >>> 2) === 1 ? i32[B >>> 2] : undefined;

test('a plain word published through an atomic one is no race', () => {
  const message = script(
    'a message is seen whole or not at all',
    [thread('writer', publish), thread('reader', receive)],
    (_, __, results) => assert.ok(results[1] === undefined || results[1] === 42),
  );
  assert.equal(explore(message).schedules, 2);
});

test('a plain read where an atomic one is needed is a race', () => {
  const writer = thread('writer', publish);
  const reader = thread('reader', receive);
  const weakReader = { ...reader, plainLoads: (at: number) => at === A };
  const weakWriter = { ...writer, plainStores: (at: number) => at === A };
  for (const threads of [
    [writer, weakReader],
    [weakWriter, reader],
    [weakReader, weakWriter],
  ]) {
    assert.equal(findFailure(script('published', threads)).kind, 'race');
  }
});

const noise = (i32: Int32Array): number => Atomics.add(i32, C >>> 2, 1);
const write = (i32: Int32Array): number => (i32[B >>> 2] = 1);
const read = (i32: Int32Array): number => i32[B >>> 2];

test('a race is found wherever the two accesses stand', () => {
  const bodies: ((i32: Int32Array) => unknown)[] = [
    (i32) => write(i32),
    (i32) => [noise(i32), write(i32)],
    (i32) => [write(i32), noise(i32)],
    (i32) => [noise(i32), write(i32), noise(i32)],
  ];
  for (const a of bodies) {
    for (const b of bodies) {
      const both = script('unordered', [thread('a', a), thread('b', (i32) => [b(i32), read(i32)])]);
      assert.equal(findFailure(both).kind, 'race');
    }
  }
});

test('bytes of one word have different owners without a race', () => {
  const neighbours = script('each its byte', [
    thread('a', (_, { arena }) => (arena.u8[B] = 1)),
    thread('b', (_, { arena }) => (arena.u8[B + 1] = 2)),
  ]);
  explore(neighbours);
  const overlapping = script('byte and word', [
    thread('a', (_, { arena }) => (arena.u8[B + 3] = 1)),
    thread('b', (_, { arena }) => arena.u32[B >>> 2]),
  ]);
  assert.equal(findFailure(overlapping).kind, 'race');
  const wide = script('double and word', [
    thread('a', (_, { arena }) => (arena.f64[B >>> 3] = 1.5)),
    thread('b', (_, { arena }) => arena.i32[(B >>> 2) + 1]),
  ]);
  assert.equal(findFailure(wide).kind, 'race');
});

const sleep = (i32: Int32Array): unknown => Atomics.wait(i32, A >>> 2, 0, 10);

test('a sleeper that nobody wakes is a deadlock', () => {
  const forgets = script('woken', [
    thread('sleeper', sleep),
    thread('waker', (i32) => Atomics.store(i32, A >>> 2, 1)),
  ]);
  const failure = findFailure(forgets);
  assert.equal(failure.kind, 'deadlock');
  assert.match(failure.message, /sleeper waits on word at 128/);
  const seen: Set<string> = new Set();
  explore(
    script(
      'woken',
      [
        thread('sleeper', sleep),
        thread('waker', (i32) => {
          Atomics.store(i32, A >>> 2, 1);
          Atomics.notify(i32, A >>> 2);
        }),
      ],
      (_, __, results) => seen.add(String(results[0])),
    ),
  );
  assert.deepEqual([...seen].toSorted(), ['not-equal', 'ok']);
});

const wake = (count: number): Script<void> =>
  script('all woken', [
    thread('a', (i32) => Atomics.wait(i32, A >>> 2, 0)),
    thread('b', (i32) => Atomics.wait(i32, A >>> 2, 0)),
    thread('c', (i32) => {
      Atomics.store(i32, A >>> 2, 1);
      Atomics.notify(i32, A >>> 2, count);
    }),
  ]);

test('notify wakes as many as it says, the longest sleeper first', () => {
  assert.equal(findFailure(wake(1)).kind, 'deadlock');
  explore(wake(2));
});

test('a loop that waits by looking is refused, not cut short', () => {
  const spin = script('spins', [
    thread('a', (i32) => {
      while (Atomics.load(i32, A >>> 2) === 0);
    }),
  ]);
  assert.equal(findFailure(spin).kind, 'unbounded');
});

test('a shared word is seen through Int32 only', () => {
  const mixed = script('mixed', [thread('a', (_, { arena }) => Atomics.load(arena.u32, A >>> 2))]);
  assert.match(findFailure(mixed).message, /shared words are Int32/);
});

test('a failing schedule replays, line by line', () => {
  const broken: Script<void> = {
    ...script('published', [thread('writer', publish), thread('reader', receive)]),
    setup: (world) => {
      world.label(A, 'flag');
      world.label(B, 'message');
    },
    check: (_, __, results) => assert.notEqual(results[1], 42, 'message seen'),
  };
  const failure = findFailure(broken);
  const lines = replay(broken, failure.schedule);
  assert.deepEqual(lines, [
    '  0 writer: store flag 1; ends',
    '  1 reader: load flag -> 1; read message 42; ends',
    '    message seen',
  ]);
  assert.ok(failure.message.includes(lines.join('\n')));
});

test('the real Atomics are back afterwards', () => {
  const was = Atomics;
  findFailure(script('spins', [thread('a', () => assert.fail('at once'))]));
  assert.equal(Atomics, was);
});
