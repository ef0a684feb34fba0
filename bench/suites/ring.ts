/**
 * One-way messages of 16 bytes from this thread to another: pushed into a ring of the arena, or sent
 * by `postMessage(Uint8Array)`, one message each. A sample ends when the other thread has received
 * and summed all of its messages. The producer rings the bell after every push, as an actor does
 * that has only one message to send; when the ring is full it waits by looking again. Does not
 * measure latency. Called by run-one.ts.
 */
import { once } from 'node:events';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { MessageChannel, Worker } from 'node:worker_threads';
import { Bench } from 'tinybench';
import { cpuSecondsNow } from '../measure.ts';
import type { Outcome, Task } from '../task.ts';

type ArenaModule = typeof import('../../core/shared/arena.ts');
type BellModule = typeof import('../../core/shared/bell.ts');
type RingModule = typeof import('../../core/shared/ring.ts');

export const RING_SLOTS = 1024;
export const MESSAGE_BYTES = 16;
/** The arena needs room for one ring, two lines, and nothing else. */
const ARENA_BYTES = 1 << 20;

/** The compiled shared rooms, as both threads load them. */
export async function sharedRooms(root: string): Promise<ArenaModule & BellModule & RingModule> {
  const room = (file: string): string =>
    pathToFileURL(join(root, 'dist', 'core', 'shared', file)).href;
  const arena: ArenaModule = await import(room('arena.js'));
  const bell: BellModule = await import(room('bell.js'));
  const rings: RingModule = await import(room('ring.js'));
  return { ...arena, ...bell, ...rings };
}

/** Where everything lies: both threads compute the same plan. */
export function ringPlan(rooms: ArenaModule & BellModule & RingModule): {
  ringAddress: number;
  bellAddress: number;
  /** Words: messages summed so far, and their sum (consumer writes, producer reads). */
  doneWord: number;
} {
  const plan = new rooms.ArenaPlan();
  return {
    ringAddress: plan.take(rooms.ringBytes(RING_SLOTS)),
    bellAddress: plan.take(rooms.BELL_BYTES),
    doneWord: plan.take(rooms.LINE_BYTES) >>> 2,
  };
}

export interface ConsumerData {
  root: string;
  kind: 'ring' | 'message-port';
  arena: SharedArrayBuffer | undefined;
}

/** Sends `count` messages, numbered from `from`, and returns when all have been received. */
type Send = (from: number, count: number) => Promise<void> | void;

interface Channel {
  send: Send;
  /** The sum of the numbers received, modulo 2 ** 32. */
  sum(): number;
  close(): Promise<unknown>;
}

async function openRing(task: Task): Promise<Channel> {
  const rooms = await sharedRooms(task.root);
  const arena = rooms.Arena.create(ARENA_BYTES);
  const { ringAddress, bellAddress, doneWord } = ringPlan(rooms);
  rooms.resetRing(arena, ringAddress);
  const producer = new rooms.RingProducer(arena, ringAddress, RING_SLOTS);
  const bell = new rooms.Bell(arena, bellAddress);
  const worker = startConsumer({ root: task.root, kind: 'ring', arena: arena.buffer });
  await once(worker, 'message');
  const { i32, u32 } = arena;
  let sentCount = 0;
  return {
    send(from, count) {
      for (let i = 0; i < count; i++) {
        let word = producer.claim();
        while (word < 0) word = producer.claim();
        u32[word] = from + i;
        u32[word + 1] = i;
        u32[word + 2] = count;
        u32[word + 3] = 0;
        producer.push();
        bell.ring();
      }
      sentCount = (sentCount + count) | 0;
      for (let seen = Atomics.load(i32, doneWord); seen !== sentCount;) {
        Atomics.wait(i32, doneWord, seen, 1);
        seen = Atomics.load(i32, doneWord);
      }
    },
    sum: () => Atomics.load(i32, doneWord + 1) >>> 0,
    close: () => worker.terminate(),
  };
}

async function openPort(task: Task): Promise<Channel> {
  const worker = startConsumer({ root: task.root, kind: 'message-port', arena: undefined });
  const { port1, port2 } = new MessageChannel();
  worker.postMessage(port2, [port2]);
  await once(port1, 'message');
  const words = new Uint32Array(MESSAGE_BYTES / 4);
  const message = new Uint8Array(words.buffer);
  let sum = 0;
  return {
    async send(from, count) {
      for (let i = 0; i < count; i++) {
        words[0] = from + i;
        words[1] = i;
        words[2] = count;
        port1.postMessage(message);
      }
      // The consumer answers once, when the last of the group is in.
      const [received]: number[] = await once(port1, 'message');
      sum = received ?? 0;
    },
    sum: () => sum,
    async close() {
      port1.close();
      return worker.terminate();
    },
  };
}

function startConsumer(workerData: ConsumerData): Worker {
  // Only ever run compiled, beside this file.
  return new Worker(new URL('./ring-consumer.js', import.meta.url), { workerData });
}

export async function ring(task: Task): Promise<Outcome> {
  const channel = await (task.contender === 'ring' ? openRing(task) : openPort(task));
  let sent = 0;
  let expectedSum = 0;
  let cpuSeconds = 0;
  let cpuAtStart = 0;
  let groups = 0;
  const group = task.batchRows;
  const bench = new Bench({
    time: task.seconds * 1000,
    iterations: 4,
    warmupTime: task.warmSeconds * 1000,
    warmupIterations: 1,
    throws: true,
  });
  const sendGroup = (): Promise<void> | void => {
    const from = sent;
    sent = (sent + group) >>> 0;
    // from + (from + 1) + ... for the whole group, modulo 2 ** 32
    expectedSum = (expectedSum + Math.imul(from, group) + (group * (group - 1)) / 2) >>> 0;
    return channel.send(from, group);
  };
  bench.add('messages', sendGroup, {
    async: task.contender === 'message-port',
    beforeAll() {
      cpuSeconds = 0;
      groups = 0;
    },
    beforeEach() {
      cpuAtStart = cpuSecondsNow();
    },
    afterEach() {
      cpuSeconds += cpuSecondsNow() - cpuAtStart;
      groups++;
    },
  });
  await bench.run();
  const result = bench.tasks[0].result;
  if (result.state !== 'completed') throw new Error(`tinybench ended ${result.state}`);
  const digest = channel.sum().toString(16);
  await channel.close();
  return {
    operations: groups * group,
    seconds: (result.latency.mean * groups) / 1000,
    cpuSeconds,
    figures: { groupCount: groups },
    digest,
    digestExpected: expectedSum.toString(16),
  };
}
