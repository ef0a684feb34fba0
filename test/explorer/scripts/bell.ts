/**
 * Scripts of the bell, with rings: a sleeper never misses what was published, and nobody waits for
 * ever. The loops are those of `actors/host.ts`: look, park, look once more, sleep, unpark.
 */
import { invariant } from '../../../core/base/assert.ts';
import type { Arena } from '../../../core/shared/arena.ts';
import { ArenaPlan, LINE_BYTES } from '../../../core/shared/arena.ts';
import { BELL_BYTES, Bell } from '../../../core/shared/bell.ts';
import { RingConsumer, RingProducer, resetRing, ringBytes } from '../../../core/shared/ring.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script, ThreadScript, World } from '../explorer.ts';

const SLOTS = 1;
const FOR_EVER_MS = 1e9;

const plan = new ArenaPlan();
const RINGS: readonly number[] = [plan.take(ringBytes(SLOTS)), plan.take(ringBytes(SLOTS))];
const BELLS: readonly number[] = [0, 1, 2].map(() => plan.take(BELL_BYTES));

/** How a thread goes to sleep when it has found nothing. */
type Sleep = (bell: Bell, look: () => boolean, arena: Arena, address: number) => void;
/** How a message is made known. */
type Tell = (push: () => void, bell: Bell, arena: Arena, address: number) => void;

const sleep: Sleep = (bell, look) => {
  const seen = bell.park();
  if (!look()) bell.wait(seen, FOR_EVER_MS);
  bell.unpark();
};

const tell: Tell = (push, bell) => {
  push();
  bell.ring();
};

type Fault = { sleep?: Sleep; tell?: Tell };

function setup(world: World): void {
  RINGS.forEach((ring, i) => {
    resetRing(world.arena, ring, -1);
    world.label(ring, `head${i}`);
    world.label(ring + LINE_BYTES, `tail${i}`);
    world.label(ring + 2 * LINE_BYTES, `slot${i}`);
  });
  BELLS.forEach((bell, i) => {
    world.label(bell, `count${i}`);
    world.label(bell + 4, `parked${i}`);
  });
}

/** Sleeps on `mine` until `step` has done all it is to do. */
function runUntilDone(
  arena: Arena,
  mine: number,
  fault: Fault,
  step: () => boolean,
  done: () => boolean,
): void {
  const bell = new Bell(arena, BELLS[mine]);
  while (!done()) {
    if (step()) continue;
    (fault.sleep ?? sleep)(bell, step, arena, BELLS[mine]);
  }
}

/** Sends so many messages; when the ring is full, sleeps on its own bell until the consumer makes room. */
function sender(
  name: string,
  ring: number,
  count: number,
  mine: number,
  theirs: number,
  fault: Fault,
): ThreadScript<void> {
  return {
    name,
    start: ({ arena }) => {
      const producer = new RingProducer(arena, RINGS[ring], SLOTS);
      const bell = new Bell(arena, BELLS[theirs]);
      return () => {
        let sent = 0;
        const step = (): boolean => {
          const slot = producer.claim();
          if (slot === -1) return false;
          producer.u32[slot] = ++sent;
          (fault.tell ?? tell)(() => producer.push(), bell, arena, BELLS[theirs]);
          return true;
        };
        runUntilDone(arena, mine, fault, step, () => sent === count);
      };
    },
  };
}

/** Receives what each ring is to bring, and rings whoever may wait for the room. */
function receiver(
  rings: readonly number[],
  counts: readonly number[],
  mine: number,
  theirs: readonly number[],
  fault: Fault,
): ThreadScript<void> {
  return {
    name: 'receiver',
    start: ({ arena }) => {
      const consumers = rings.map((ring) => new RingConsumer(arena, RINGS[ring], SLOTS));
      const bells = theirs.map((at) => new Bell(arena, BELLS[at]));
      return () => {
        const received = rings.map(() => 0);
        const step = (): boolean => {
          let worked = false;
          consumers.forEach((consumer, i) => {
            const slot = consumer.peek();
            if (slot === -1) return;
            invariant(consumer.u32[slot] === ++received[i], 'messages come in order', received[i]);
            consumer.pop();
            bells[i].ring();
            worked = true;
          });
          return worked;
        };
        runUntilDone(arena, mine, fault, step, () => received.every((n, i) => n === counts[i]));
      };
    },
  };
}

function onePair(name: string, count: number, fault: Fault = {}): Script<void> {
  return {
    name: `bell: ${name}`,
    promise: 'all that was sent is received, and nobody sleeps for ever',
    setup,
    threads: [sender('sender', 0, count, 1, 0, fault), receiver([0], [count], 0, [1], fault)],
  };
}

function twoSenders(name: string, first: number, second: number): Script<void> {
  return {
    name: `bell: ${name}`,
    promise: 'a sleeper with two inboxes hears of both',
    setup,
    threads: [
      sender('first', 0, first, 1, 0, {}),
      sender('second', 1, second, 2, 0, {}),
      receiver([0, 1], [first, second], 0, [1, 2], {}),
    ],
  };
}

/** Says that it is parked only after it has looked again. */
const parkedAfterLook: Sleep = (bell, look, { i32 }, address) => {
  const seen = Atomics.load(i32, address >>> 2);
  if (look()) return;
  Atomics.store(i32, (address >>> 2) + 1, 1);
  bell.wait(seen, FOR_EVER_MS);
  bell.unpark();
};

/** Does not look again at all. */
const noLook: Sleep = (bell) => {
  bell.wait(bell.park(), FOR_EVER_MS);
  bell.unpark();
};

/** Takes the count to wait on only after it has looked again. */
const countAfterLook: Sleep = (bell, look, { i32 }, address) => {
  Atomics.store(i32, (address >>> 2) + 1, 1);
  if (!look()) bell.wait(Atomics.load(i32, address >>> 2), FOR_EVER_MS);
  bell.unpark();
};

/** Looks whether anybody sleeps before the message is there. */
const ringFirst: Tell = (push, bell) => {
  bell.ring();
  push();
};

/** Wakes without moving the count: who is about to wait does not notice. */
const notifyOnly: Tell = (push, _, { i32 }, address) => {
  push();
  if (Atomics.load(i32, (address >>> 2) + 1) === 1) Atomics.notify(i32, address >>> 2);
};

export const bellCases: readonly Case[] = [
  holds(onePair('one message', 1)),
  holds(onePair('three messages through one slot, both ends sleep', 3)),
  holds(twoSenders('two senders, one sleeper', 1, 1)),
  holds(twoSenders('two senders, one sleeper, two messages from one', 2, 1), 'deep'),
  planted(onePair('planted: parked set after the look', 1, { sleep: parkedAfterLook }), 'deadlock'),
  planted(onePair('planted: no look after parked', 1, { sleep: noLook }), 'deadlock'),
  planted(onePair('planted: count taken after the look', 1, { sleep: countAfterLook }), 'deadlock'),
  planted(onePair('planted: rung before it is published', 1, { tell: ringFirst }), 'deadlock'),
  planted(onePair('planted: woken without a count', 1, { tell: notifyOnly }), 'deadlock'),
];
