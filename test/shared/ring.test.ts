/** The ring in one thread: order, fullness, positions through all 32 bits. Interleavings: `test/explorer`. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { Arena } from '../../core/shared/arena.ts';
import {
  RingConsumer,
  RingProducer,
  SLOT_BYTES,
  SLOT_WORDS,
  resetRing,
  ringBytes,
} from '../../core/shared/ring.ts';

const AT = 256;

function makeRing(
  slots: number,
  position: number,
): { arena: Arena; producer: RingProducer; consumer: RingConsumer } {
  const arena = Arena.create(pageBytes);
  resetRing(arena, AT, position);
  return {
    arena,
    producer: new RingProducer(arena, AT, slots),
    consumer: new RingConsumer(arena, AT, slots),
  };
}

function send(producer: RingProducer, message: number): boolean {
  const slot = producer.claim();
  if (slot === -1) return false;
  for (let i = 0; i < SLOT_WORDS; i++) producer.u32[slot + i] = message + i;
  producer.push();
  return true;
}

function receive(consumer: RingConsumer): number | undefined {
  const slot = consumer.peek();
  if (slot === -1) return undefined;
  const message = consumer.u32[slot];
  for (let i = 0; i < SLOT_WORDS; i++) assert.equal(consumer.u32[slot + i], message + i);
  consumer.pop();
  return message;
}

const POSITIONS = [0, 1, -1, -3, 0x7fff_ffff, 0x7fff_fffd, -0x8000_0000];

test('messages come in order, wherever positions start', () => {
  for (const position of POSITIONS) {
    for (const slots of [1, 2, 8]) {
      const { producer, consumer } = makeRing(slots, position);
      let sent = 0;
      let received = 0;
      for (let round = 0; round < 5; round++) {
        while (send(producer, sent * 100)) sent++;
        assert.equal(sent - received, slots, 'a full ring has all its slots in use');
        assert.equal(consumer.pending(), slots);
        for (let message = receive(consumer); message !== undefined; message = receive(consumer)) {
          assert.equal(message, received++ * 100);
        }
        assert.equal(received, sent);
        assert.equal(consumer.pending(), 0);
      }
    }
  }
});

test('sizes: a slot is half a line, head and tail lie on lines of their own', () => {
  assert.equal(SLOT_BYTES, 64);
  assert.equal(ringBytes(4), 256 + 4 * 64);
  const { arena, producer } = makeRing(4, 0);
  assert.equal(producer.claim(), (AT + 256) >>> 2);
  send(producer, 1);
  assert.equal(arena.i32[AT >>> 2], 0);
  assert.equal(arena.i32[(AT + 128) >>> 2], 1);
});

test('nothing outside the ring is touched', () => {
  const { arena, producer, consumer } = makeRing(2, -2);
  arena.u8.fill(0xee, 0, AT);
  arena.u8.fill(0xee, AT + ringBytes(2), AT + ringBytes(2) + 256);
  for (let i = 0; i < 9; i++) {
    send(producer, 0);
    receive(consumer);
  }
  assert.ok(arena.u8.subarray(0, AT).every((byte) => byte === 0xee));
  const end = AT + ringBytes(2);
  assert.ok(arena.u8.subarray(end, end + 256).every((byte) => byte === 0xee));
});

test('a claim is repeated until it is pushed, a peek until it is popped', () => {
  const { producer, consumer } = makeRing(2, -1);
  const slot = producer.claim();
  assert.equal(producer.claim(), slot);
  assert.equal(consumer.peek(), -1, 'claimed is not published');
  producer.u32[slot] = 5;
  producer.push();
  const seen = consumer.peek();
  assert.equal(seen, slot);
  assert.equal(consumer.peek(), slot);
  assert.notEqual(producer.claim(), slot);
  consumer.pop();
  assert.equal(consumer.peek(), -1);
});

test('what room() reserved can be claimed', () => {
  for (const position of POSITIONS) {
    const { producer, consumer } = makeRing(4, position);
    assert.equal(producer.room(), 4);
    for (let i = 0; i < 3; i++) assert.ok(send(producer, i));
    assert.equal(producer.room(1), 1);
    assert.equal(producer.room(2), 1);
    receive(consumer);
    receive(consumer);
    // The head is looked at only when what is known does not suffice.
    assert.equal(producer.room(1), 1);
    assert.equal(producer.room(3), 3);
    for (let i = 0; i < 3; i++) assert.ok(send(producer, i));
    assert.equal(producer.claim(), -1);
    assert.equal(producer.room(), 0);
  }
});

test('ends made anew go on where the former ones stood', () => {
  const { arena, producer, consumer } = makeRing(4, 0x7fff_fffe);
  send(producer, 10);
  send(producer, 20);
  receive(consumer);
  const later = new RingConsumer(arena, AT, 4);
  assert.equal(receive(later), 20);
  const next = new RingProducer(arena, AT, 4);
  assert.equal(next.room(), 4);
  send(next, 30);
  assert.equal(receive(later), 30);
});

test('a ring that is no power of two is our mistake', () => {
  const arena = Arena.create(pageBytes);
  assert.throws(() => new RingProducer(arena, AT, 3), /power of two/);
  assert.throws(() => new RingConsumer(arena, AT, 12), /power of two/);
});

test('random sends and receives agree with a queue', () => {
  const prng = new Prng(3);
  for (const slots of [1, 4, 16]) {
    const { producer, consumer } = makeRing(slots, -100);
    const queue: number[] = [];
    for (let step = 0; step < 5_000; step++) {
      if (prng.chance(0.5)) {
        const message = prng.below(1_000_000);
        assert.equal(send(producer, message), queue.length < slots);
        if (queue.length < slots) queue.push(message);
      } else {
        assert.equal(receive(consumer), queue.shift());
      }
      if (prng.chance(0.1)) assert.equal(consumer.pending(), queue.length);
      if (prng.chance(0.1)) assert.equal(producer.room(), slots - queue.length);
    }
  }
});
