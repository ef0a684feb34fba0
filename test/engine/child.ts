/**
 * A process for process.test.ts, bad-input.test.ts and cursors.test.ts to start, watch and kill: opens a store and does
 * one thing. Lines on standard output say how far it is; they are written at once, also when the next
 * instant is the last.
 *
 *   idle     opens, writes one row, then has nothing to do
 *   pending  commits and awaits nothing
 *   flood    more commits in a turn than are ever taken, nobody awaits any
 *   unheard  commits that are refused for every reason, nobody hears of it
 *   lock     holds the store until standard input ends
 *   write    commits on and on, 256 in flight, and says which are acknowledged
 *   follow   commits row after row, follows them by a cursor, says each and confirms it, some later
 */
import { writeSync } from 'node:fs';
import { open } from '../../actors/index.ts';
import type { Durability, Engine } from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';

const [, , task, directory = '', host, durability = 'synced'] = process.argv;

function say(line: string): void {
  for (;;) {
    try {
      writeSync(1, `${line}\n`);
      return;
    } catch (error) {
      // The pipe is full: whoever reads it is slow.
      if ((error as { code?: string }).code !== 'EAGAIN') throw error;
    }
  }
}

const engine = await open(directory, {
  memoryBytes: 64 * MiB,
  mergeThreads: 1,
  memtableBytes: 512 * 1024,
  segmentBytes: 256 * 1024,
  durability: durability as Durability,
  ...(host === 'inline' ? { threads: 0 } : {}),
});

async function idle(): Promise<void> {
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  using snap = engine.snapshot();
  say(`idle at ${snap.offset}`);
}

async function pending(): Promise<void> {
  const words = await engine.collection('words', {});
  for (let i = 0; i < 1_000; i++) void words.put(`${i}`, 'v');
  words.put('last', 'v').then(
    () => say('durable'),
    () => say('lost'),
  );
  say('committed');
}

async function flood(): Promise<void> {
  const words = await engine.collection('words', {});
  const value = 'v'.repeat(1_000);
  for (let i = 0; i < 40_000; i++) void words.put(`${i}`, value);
  const outcome = await words.put('last', value).catch((error: Error & { code?: string }) => error);
  say(outcome instanceof Error ? String(outcome.code) : 'taken');
}

async function unheard(): Promise<void> {
  const words = await engine.collection('words', { value: 'buffer' });
  // Too large, dropped, closed: each a refusal with a code.
  void words.put('a', Buffer.alloc(8 * MiB));
  void engine
    .transaction()
    .put(words, 'a', Buffer.alloc(8 * MiB))
    .commit();
  await engine.drop(words);
  void words.put('a', Buffer.alloc(1));
  const closed = engine.close();
  void words.put('a', Buffer.alloc(1));
  await closed;
  void words.put('a', Buffer.alloc(1));
  say('refused');
}

async function lock(): Promise<void> {
  say('open');
  for await (const _ of process.stdin);
  await engine.close();
  say('closed');
}

/** Transaction n puts row n and says so in another collection: what is there must be 0 to n. */
async function write(of: Engine): Promise<never> {
  const rows = await of.collection('rows', { key: 'u64', value: 'utf8' });
  const marks = await of.collection('marks', { key: 'utf8', value: 'u64' });
  const lane = async (): Promise<never> => {
    for (;;) {
      const n = next++;
      await of.transaction().put(rows, n, `${n}`.padEnd(50, '.')).put(marks, 'last', n).commit();
      say(`${n}`);
    }
  };
  let next = (marks.getSync('last') ?? -1) + 1;
  say('writing');
  return Promise.race(Array.from({ length: 256 }, lane));
}

async function follow(of: Engine): Promise<never> {
  const users = await of.collection('users', { key: 'utf8', value: 'utf8' });
  const marks = await of.collection('marks', { key: 'utf8', value: 'u64' });
  const feed = users.changes({ cursor: 'search', after: -1 });
  const writing = async (): Promise<never> => {
    for (let n = (marks.getSync('last') ?? -1) + 1; ; n++) {
      await of.transaction().put(users, `${n}`, `${n}`).put(marks, 'last', n).commit();
    }
  };
  const reading = async (): Promise<never> => {
    for await (const { offset, updates } of feed) {
      say(`${offset} ${updates[0]?.key}`);
      if (offset % 3 === 0) await feed.ack(offset);
    }
    throw new Error('the feed has ended');
  };
  return Promise.race([writing(), reading()]);
}

switch (task) {
  case 'idle':
    await idle();
    break;
  case 'pending':
    await pending();
    break;
  case 'flood':
    await flood();
    break;
  case 'unheard':
    await unheard();
    break;
  case 'lock':
    await lock();
    break;
  case 'write':
    await write(engine);
    break;
  case 'follow':
    await follow(engine);
    break;
  default:
    throw new TypeError(`no task ${task}`);
}
