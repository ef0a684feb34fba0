/**
 * Scripts of the ring: one producer, one consumer, positions that wrap. Two slots, so that each is
 * used again at once; a message fills the first and the last word of its slot.
 */
import { invariant } from '../../../core/base/assert.ts';
import type { Arena } from '../../../core/shared/arena.ts';
import { LINE_BYTES } from '../../../core/shared/arena.ts';
import {
  RingConsumer,
  RingProducer,
  SLOT_WORDS,
  resetRing,
  ringBytes,
} from '../../../core/shared/ring.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script, World } from '../explorer.ts';

const RING = 128;
const HEAD: number = RING;
const TAIL: number = RING + LINE_BYTES;
const SLOTS: number = RING + 2 * LINE_BYTES;

type Send = (producer: RingProducer, message: number, arena: Arena) => boolean;
type Receive = (consumer: RingConsumer, expected: number, arena: Arena) => boolean;

function fill(u32: Uint32Array, slot: number, message: number): void {
  u32[slot] = message;
  u32[slot + SLOT_WORDS - 1] = ~message >>> 0;
}

function isMessage(u32: Uint32Array, slot: number, message: number): boolean {
  return u32[slot] === message && u32[slot + SLOT_WORDS - 1] === ~message >>> 0;
}

const send: Send = (producer, message) => {
  const slot = producer.claim();
  if (slot === -1) return false;
  fill(producer.u32, slot, message);
  producer.push();
  return true;
};

const receive: Receive = (consumer, expected) => {
  const slot = consumer.peek();
  if (slot === -1) return false;
  invariant(isMessage(consumer.u32, slot, expected), 'messages come whole and in order', expected);
  consumer.pop();
  return true;
};

type RingOptions = {
  name: string;
  position?: number;
  slots?: number;
  tries?: number;
  send?: Send;
  receive?: Receive;
  plain?: 'tail read plainly' | 'head read plainly' | 'tail stored plainly' | 'head stored plainly';
};

/** The producer sends what it can in so many tries, the consumer takes what it finds in as many. */
function ringScript(options: RingOptions): Script<void> {
  const { position = -2, slots = 2, tries = 6, plain } = options;
  return {
    name: `ring: ${options.name}`,
    promise: 'each message arrives once, whole, in order',
    setup: (world) => {
      resetRing(world.arena, RING, position);
      label(world, slots);
    },
    threads: [
      {
        name: 'producer',
        start: ({ arena }) => {
          const producer = new RingProducer(arena, RING, slots);
          return () => {
            let sent = 0;
            for (let i = 0; i < tries; i++) {
              if ((options.send ?? send)(producer, sent, arena)) sent++;
            }
            return sent;
          };
        },
        plainLoads: (at) => plain === 'head read plainly' && at === HEAD,
        plainStores: (at) => plain === 'tail stored plainly' && at === TAIL,
      },
      {
        name: 'consumer',
        start: ({ arena }) => {
          const consumer = new RingConsumer(arena, RING, slots);
          return () => {
            let received = 0;
            for (let i = 0; i < tries; i++) {
              if ((options.receive ?? receive)(consumer, received, arena)) received++;
            }
            return received;
          };
        },
        plainLoads: (at) => plain === 'tail read plainly' && at === TAIL,
        plainStores: (at) => plain === 'head stored plainly' && at === HEAD,
      },
    ],
    check: ({ arena }, _, results) => {
      const [sent, received] = results.map(Number);
      const consumer = new RingConsumer(arena, RING, slots);
      invariant(
        consumer.pending() === sent - received,
        'what was not received waits',
        sent,
        received,
      );
      for (let n = received; n < sent; n++) {
        invariant(receive(consumer, n, arena), 'and can be received', n);
      }
      const producer = new RingProducer(arena, RING, slots);
      invariant(producer.room() === slots, 'an emptied ring has all its room');
    },
  };
}

function label(world: World, slots: number): void {
  world.label(HEAD, 'head');
  world.label(TAIL, 'tail');
  world.label(SLOTS, 'slot', (ringBytes(slots) - 2 * LINE_BYTES) / 4);
}

/** Reserve, then act: two at once, or nothing. */
const sendPair: Send = (producer, message, arena) => {
  if (message % 2 === 0 && producer.room(2) < 2) return false;
  invariant(send(producer, message, arena), 'room was reserved');
  return true;
};

/** The tail is published before the slot is filled. */
const sendTailFirst: Send = (producer, message) => {
  const slot = producer.claim();
  if (slot === -1) return false;
  producer.push();
  fill(producer.u32, slot, message);
  return true;
};

/** The slot is given back before it is read. */
const receivePopFirst: Receive = (consumer, expected) => {
  const slot = consumer.peek();
  if (slot === -1) return false;
  consumer.pop();
  invariant(isMessage(consumer.u32, slot, expected), 'messages come whole and in order', expected);
  return true;
};

/** Compares positions as if they never wrapped, and so sees room in a full ring. */
const sendPastFull: Send = (producer, message, { i32 }) => {
  const tail = Atomics.load(i32, TAIL >>> 2);
  const free = 2 - (tail - Atomics.load(i32, HEAD >>> 2));
  if (free <= 0) return false;
  fill(producer.u32, (SLOTS >>> 2) + (tail & 1) * SLOT_WORDS, message);
  Atomics.store(i32, TAIL >>> 2, (tail + 1) | 0);
  return true;
};

export const ringCases: readonly Case[] = [
  holds(ringScript({ name: 'two slots, past the last position (-1 to 0)', position: -2 })),
  holds(ringScript({ name: 'two slots, past the largest position', position: 0x7fff_fffe })),
  holds(ringScript({ name: 'one slot', slots: 1, position: -3 })),
  holds(ringScript({ name: 'reserved in pairs', position: -3, send: sendPair })),
  holds(ringScript({ name: 'four slots, 9 tries', slots: 4, position: -5, tries: 9 }), 'deep'),
  planted(
    ringScript({ name: 'planted: tail before the slot is filled', send: sendTailFirst }),
    'race',
  ),
  planted(
    ringScript({ name: 'planted: popped before it is read', receive: receivePopFirst }),
    'race',
  ),
  planted(
    ringScript({
      name: 'planted: positions compared without wrap',
      position: 0x7fff_fffe,
      send: sendPastFull,
    }),
    'threw',
  ),
  ...(
    [
      'tail read plainly',
      'head read plainly',
      'tail stored plainly',
      'head stored plainly',
    ] as const
  ).map((plain) => planted(ringScript({ name: `planted: ${plain}`, plain }), 'race')),
];
