/**
 * The receiving thread of the ring suite. Sums the first word of every message; tells the sender
 * how far it is: through two words of the arena, or by one message per group. Thread entry, started
 * by ring.ts.
 */
import { once } from 'node:events';
import { parentPort, workerData, type MessagePort } from 'node:worker_threads';
import { RING_SLOTS, ringPlan, sharedRooms, type ConsumerData } from './ring.ts';

const SPIN_COUNT = 2000;

async function consumeRing(data: ConsumerData): Promise<void> {
  const rooms = await sharedRooms(data.root);
  const arena = new rooms.Arena(data.arena!);
  const { ringAddress, bellAddress, doneWord } = ringPlan(rooms);
  const consumer = new rooms.RingConsumer(arena, ringAddress, RING_SLOTS);
  const bell = new rooms.Bell(arena, bellAddress);
  const { i32, u32 } = arena;
  const port = parentPort!;
  port.postMessage('ready');
  let count = 0;
  let sum = 0;
  let spins = 0;
  for (;;) {
    let word = consumer.peek();
    if (word >= 0) {
      for (; word >= 0; word = consumer.peek()) {
        sum = (sum + u32[word]) | 0;
        count = (count + 1) | 0;
        consumer.pop();
      }
      // The sum first: whoever sees the count may read the sum.
      Atomics.store(i32, doneWord + 1, sum);
      Atomics.store(i32, doneWord, count);
      Atomics.notify(i32, doneWord);
      spins = 0;
    } else if (++spins > SPIN_COUNT) {
      const seen = bell.park();
      if (consumer.peek() < 0) bell.wait(seen, 1000);
      bell.unpark();
      spins = 0;
    }
  }
}

async function consumePort(): Promise<void> {
  const [port]: MessagePort[] = await once(parentPort!, 'message');
  if (port === undefined) throw new Error('no port came');
  let sum = 0;
  port.on('message', (message: Uint8Array) => {
    const words = new Uint32Array(message.buffer, message.byteOffset, 4);
    sum = (sum + words[0]) >>> 0;
    if (words[1] === words[2] - 1) port.postMessage(sum);
  });
  port.postMessage('ready');
}

const data: ConsumerData = workerData;
await (data.kind === 'ring' ? consumeRing(data) : consumePort());
