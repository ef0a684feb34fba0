/**
 * Goal: whatever call to the disk fails, and whenever, nothing that was acknowledged is lost, nothing is
 * claimed that is not so, and what a crash leaves opens again. Method: a short history of commits,
 * flushes, rotations and merges runs inline on the simulated disk, once for every call that changes
 * something, with that call failing; then power fails too.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Collection, Engine, OpenOptions, TidemarkError } from '../../actors/index.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { FATE_LOST, SimDisk } from '../sim/disk.ts';
import type { SimCall, SimFault } from '../sim/disk.ts';
import { coded, misuse, quiet, until } from './world.ts';

/** Time goes fast, so that a job that failed is soon tried again. */
const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() * 1_000 };

function optionsOn(storage: SimDisk): OpenOptions {
  return {
    threads: 0,
    memoryBytes: 64 * MiB,
    memtableBytes: 64 * KiB,
    segmentBytes: 16 * KiB,
    storage: { storage, clock },
  };
}

const PUTS = 400;
const PER_TURN = 16;

/** What became of the commits, in their order. */
type Outcome = { acknowledged: number; engine: Engine | undefined; failed: boolean };

function checkRefusal(error: unknown): void {
  const { code } = error as TidemarkError;
  assert.match(code, /^TIDEMARK_(OUTCOME_UNKNOWN|POISONED|NO_SPACE)$/, String(error));
}

/** A flush that failed is tried again, and may be under way when the engine closes. */
function checkFlush(error: unknown): void {
  if ((error as TidemarkError).code !== 'TIDEMARK_CLOSED') checkRefusal(error);
}

/** Put i writes key i mod 50: what is there tells how many puts there were. */
async function live(disk: SimDisk, turns: number): Promise<Outcome> {
  let engine: Engine;
  try {
    engine = await open('/sim', optionsOn(disk));
  } catch (error) {
    assert.match((error as TidemarkError).code, /^TIDEMARK_(IO|NO_SPACE)$/, String(error));
    return { acknowledged: 0, engine: undefined, failed: true };
  }
  const outcome = { acknowledged: 0, engine, failed: false };
  const give = (error: unknown): void => {
    outcome.failed = true;
    checkRefusal(error);
  };
  try {
    const rows = await engine.collection('rows', { key: 'u64', value: 'utf8', history: Infinity });
    for (let turn = 0; turn < turns && !outcome.failed; turn++) {
      const puts = Array.from({ length: PER_TURN }, (_, i) => {
        const n = turn * PER_TURN + i;
        return rows.put(n % 50, `${n}`.padEnd(100, '.'));
      });
      if (turn % 8 === 7) engine.flush().catch(checkFlush);
      for (const settled of await Promise.allSettled(puts)) {
        if (settled.status === 'rejected') give(settled.reason);
        else {
          assert.equal(outcome.failed, false, 'what is acknowledged is a prefix');
          outcome.acknowledged++;
        }
      }
    }
  } catch (error) {
    give(error);
  }
  return outcome;
}

/** Opens what a crash has left: a prefix that holds all that was acknowledged. */
async function check(disk: SimDisk, acknowledged: number, where: string): Promise<void> {
  const engine = await open('/sim', optionsOn(disk));
  try {
    const names = engine.collections().map(({ name }) => name);
    if (names.length === 0) {
      assert.equal(acknowledged, 0, where);
      return;
    }
    const rows = await engine.collection<'u64'>('rows');
    const found = new Map(rows.entries());
    const numbers = [...found.values()].map((value) => Number.parseInt(value, 10));
    const newest = Math.max(-1, ...numbers);
    assert.ok(newest + 1 >= acknowledged, `${where}: ${newest + 1} of ${acknowledged}`);
    for (let key = 0; key < 50; key++) {
      const last = newest - ((((newest - key) % 50) + 50) % 50);
      const expected = last < 0 || key > newest ? undefined : last;
      const value = found.get(key);
      assert.equal(value === undefined ? undefined : Number.parseInt(value, 10), expected, where);
    }
    // And it goes on.
    await rows.put(1, 'on');
    await engine.flush();
    assert.equal(rows.getSync(1), 'on');
  } finally {
    await engine.close();
    assert.deepEqual(disk.openFiles, [], where);
  }
}

/** Every call that changes something, of a life in which nothing fails. */
async function mutationsOfALife(): Promise<number> {
  const disk = new SimDisk({ answerAtOnce: true });
  const { engine, acknowledged } = await live(disk, PUTS / PER_TURN);
  await engine?.close();
  assert.equal(acknowledged, PUTS);
  return disk.mutations;
}

const FAULTS: readonly [string, (call: SimCall) => SimFault | undefined][] = [
  ['an I/O error', () => ({ kind: 'throw', code: 'EIO' })],
  [
    'a short write',
    ({ call, length }) =>
      call.startsWith('write') && length > 0 ? { kind: 'short', bytes: length >> 1 } : undefined,
  ],
  [
    'a sync that fails and forgets (ext4)',
    ({ call }) => (call === 'fdatasync' ? { kind: 'failedSync', manner: 'ext4' } : undefined),
  ],
  [
    'a sync that fails and takes back (Btrfs)',
    ({ call }) => (call === 'fdatasync' ? { kind: 'failedSync', manner: 'btrfs' } : undefined),
  ],
];

for (const [name, faultOf] of FAULTS) {
  test(`${name} at any call loses nothing that was acknowledged`, async () => {
    const random = new Prng(31);
    const mutations = await mutationsOfALife();
    assert.ok(mutations > 100, `${mutations}`);
    let fired = 0;
    let poisoned = 0;
    const step = name === 'an I/O error' ? 5 : 12;
    for (let n = random.below(step); n < mutations; n += 1 + random.below(step * 2 - 1)) {
      const disk = new SimDisk({ answerAtOnce: true });
      let where = '';
      disk.fault = (call) => {
        if (call.mutation < n || where !== '') return undefined;
        const fault = faultOf(call);
        if (fault !== undefined)
          where = `${name} at mutation ${call.mutation}: ${call.call} ${call.path} ${call.position}`;
        return fault;
      };
      const { acknowledged, engine, failed } = await live(disk, PUTS / PER_TURN);
      if (where !== '') fired++;
      if (engine?.state === 'poisoned') {
        poisoned++;
        assert.ok(engine.failure !== undefined);
        assert.throws(() => engine.transaction(), coded('TIDEMARK_POISONED'));
      } else if (engine !== undefined) {
        assert.equal(failed, false, where);
      }
      const crashed = [
        disk.processCrash(),
        disk.powerLoss(() => FATE_LOST),
        disk.crash(random, 'torn'),
      ];
      await engine?.close();
      // Files of a disk that fails are left as they are, but not open.
      assert.deepEqual(disk.openFiles, [], where);
      for (const left of crashed) {
        left.answerAtOnce = true;
        await check(left, acknowledged, where);
      }
    }
    assert.ok(fired > 10, `${fired} faults`);
    assert.ok(poisoned > 0, `${poisoned} poisoned`);
  });
}

/** Puts until one is refused; answers its number. */
async function fill(rows: Collection<number, Buffer>, value: Buffer): Promise<number> {
  for (let n = 0; n < 20_000; n++) {
    try {
      await rows.put(n, value);
    } catch (error) {
      coded('TIDEMARK_NO_SPACE')(error);
      return n;
    }
  }
  assert.fail('the disk is never full');
}

test('a full disk refuses commits before they have an offset, and takes them again', async () => {
  const disk = new SimDisk({ answerAtOnce: true, capacityBytes: 16 * MiB });
  const engine = await open('/sim', {
    ...optionsOn(disk),
    segmentBytes: 8 * MiB,
    memtableBytes: 4 * MiB,
  });
  try {
    const rows = await engine.collection('rows', { key: 'u64', value: 'buffer' });
    const value = Buffer.alloc(4_000, 'v');
    const isFull = coded('TIDEMARK_NO_SPACE');
    for (let round = 0; round < 3; round++) {
      const refused = await fill(rows, value);
      const { upper } = engine;
      await assert.rejects(rows.put(refused, value), isFull);
      await assert.rejects(engine.transaction().put(rows, refused, value).commit(), isFull);
      assert.equal(engine.upper, upper);
      assert.equal(engine.state, 'open');
      if (round === 0) assert.equal(rows.hasSync(refused), false);
      assert.deepEqual(rows.getSync(refused - 1), value);
      disk.capacityBytes += 16 * MiB;
      await until('room', () => {
        void rows.put(0, value).catch(isFull);
        return engine.upper > upper;
      });
    }
    // The log may have taken all of the new room for itself; parts and edits want some too.
    disk.capacityBytes += 32 * MiB;
    await engine.flush();
    await rows.put(0, value);
  } finally {
    await engine.close();
  }
  assert.deepEqual(disk.openFiles, []);
});

test('another storage is for an inline engine', async () => {
  const storage = { storage: new SimDisk(), clock };
  await assert.rejects(open('/sim', { storage }), misuse(/threads: 0/));
});

test('a read that the system refuses is TIDEMARK_IO, with its error as the cause, and the next may succeed', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const options = { key: 'u64', value: 'buffer', history: Infinity } as const;
  const first = await open('/sim', optionsOn(disk));
  const written = await first.collection('rows', options);
  const { offset } = await written.put(0, Buffer.from('a'));
  for (let key = 1; key < 20; key++) await written.put(key, Buffer.alloc(KiB, key));
  await first.flush();
  await first.close();
  type Read = (rows: Collection<number, Buffer>) => Promise<unknown>;
  const reads: readonly [string, Read][] = [
    ['getSync', async (rows) => rows.getSync(1)],
    ['get', (rows) => rows.get(2)],
    ['getMany', (rows) => rows.getMany([3, 4])],
    ['a range', async (rows) => Array.from(rows.keys())],
    [
      'a range for await',
      async (rows) => {
        for await (const [key] of rows.entries({ gte: 7 })) assert.ok(key >= 7, `${key}`);
      },
    ],
    ['a feed', (rows) => rows.changes({ after: offset })[Symbol.asyncIterator]().next()],
    ['a time of day', async (rows) => rows.getSync(5, { asOf: new Date() })],
  ];
  for (const [what, read] of reads) {
    const engine = await open('/sim', optionsOn(disk));
    const rows = await engine.collection('rows', options);
    await quiet(engine);
    let refusals = 0;
    disk.fault = ({ call }) => {
      if (call !== 'read') return undefined;
      refusals++;
      return { kind: 'throw', code: 'EIO' };
    };
    const attempt = read(rows).then(
      () => undefined,
      (error: unknown) => error,
    );
    const error = (await attempt) as TidemarkError | undefined;
    disk.fault = () => undefined;
    assert.ok(refusals > 0, `${what} read nothing`);
    assert.equal(error?.code, 'TIDEMARK_IO', what);
    assert.equal(error.detail['errno'], 'EIO', what);
    assert.match((error.cause as Error).message, /^EIO: simulated/, what);
    await read(rows);
    assert.equal(engine.state, 'open', what);
    await engine.close();
  }
});
