/**
 * Short scripted lives of a whole store, and the hand that leads them: it keeps the model and what has
 * been acknowledged, and takes a picture of the disk before every call that changes something. A life is
 * a function of its script and a seed. Used by the crash harness.
 *
 *   quiet      made, 20 commits in batches, idle watermark, closed
 *   rotation   segments fill, their successors prepared in time and not; no orderly end
 *   spine      flushes, merges, checkpoints; segments go
 *   recovery   crashes in between: torn tails, suspect commits, prepared segments left behind
 *   catalog    collections made, dropped and made again beside data
 *   resumed    dies between what the manifest writes and its syncs; what follows is built on that
 *   prepared   a segment made ahead has its name in the cache only when the store is closed and opened
 *   recycled   segments that nobody needs any more become the next ones, old records and all
 *   buffered   commits are synced later than they are answered
 */
import { KIND_KEYED } from '../../core/base/update.ts';
import { Prng } from '../../core/base/prng.ts';
import { FATE_KEPT, FATE_TORN, SimDisk } from '../sim/disk.ts';
import type { CrashMode, SimCall, SimFault } from '../sim/disk.ts';
import { LOG_DIR, MANIFEST_DIR } from '../../core/storage/names.ts';
import { Incarnation, isDeath } from './engine.ts';
import type { How } from './engine.ts';
import { Model } from './model.ts';
import type { Op } from './model.ts';

/** The disk before a call, and what is owed at that time. */
export type Moment = {
  readonly disk: SimDisk;
  readonly model: Model;
  /** Transactions submitted so far: there can be no more. */
  readonly submitted: number;
  /** Must survive whatever happens. */
  readonly durable: number;
  /** Must survive as long as the page cache does. */
  readonly written: number;
  /** The call that follows. */
  readonly call: string;
};

export type Fault = (call: SimCall) => SimFault | undefined;

const SMALL: How = { segmentBytes: 16_384, memtableBytes: 65_536, synced: true };

export const CATALOG = 0;
const NEXT_ID_KEY = '\u0000';

export function catalogName(name: string): string {
  return `\u0001${name}`;
}

/** A value that is found again nowhere else. */
export function valueOf(key: string, n: number, bytes: number): string {
  return `${key}=${n};`.padEnd(bytes, String.fromCharCode(97 + (n % 26)));
}

export class Hand {
  disk: SimDisk;
  model: Model = new Model();
  engine!: Incarnation;
  readonly how: How;
  readonly prng: Prng;
  readonly moments: Moment[] = [];
  /** Owed by earlier incarnations, whatever happens and while the page cache is kept. */
  #floor = 0;
  #writtenFloor = 0;
  #isOpen = false;
  #nextCollection = 1;
  #commits = 0;
  /** The process dies before the first call that it is true of. */
  #diesAt: ((call: SimCall) => boolean) | undefined;
  /** Sees every call before it is made. */
  onCall: ((call: SimCall) => void) | undefined;
  /** Fails the first call that it is true of, once. */
  #failsAt: ((call: SimCall) => boolean) | undefined;
  readonly #fault: Fault | undefined;
  readonly #keepsMoments: boolean;
  readonly #toleratesJobFailures: boolean;

  constructor(how: How, seed: number, options: LifeOptions) {
    this.how = how;
    this.prng = new Prng(seed);
    this.#fault = options.fault;
    this.#keepsMoments = options.keepsMoments ?? true;
    this.#toleratesJobFailures = options.toleratesJobFailures ?? false;
    this.disk = new SimDisk();
    this.#watch();
  }

  /** Must survive whatever happens from now on. */
  get durable(): number {
    return this.#isOpen ? Math.max(this.#floor, this.engine.durable) : this.#floor;
  }

  get written(): number {
    const written = this.#isOpen ? this.engine.written : 0;
    return Math.max(this.durable, this.#writtenFloor, written);
  }

  #watch(): void {
    const { disk } = this;
    disk.fault = (call) => {
      if (call.mutation >= 0 && this.#keepsMoments) {
        const twin = disk.clone();
        twin.fault = undefined;
        this.moments.push({
          disk: twin,
          model: this.model,
          submitted: this.model.upper,
          durable: this.durable,
          written: this.written,
          call: `${call.call} ${call.path} ${call.position} ${call.length}`,
        });
      }
      this.onCall?.(call);
      if (this.#diesAt?.(call) === true) return { kind: 'crash' };
      if (this.#failsAt?.(call) === true) {
        this.#failsAt = undefined;
        return { kind: 'throw', code: 'EIO' };
      }
      return this.#fault?.(call);
    };
  }

  open(): void {
    this.engine = new Incarnation(this.disk, this.how, this.prng.child());
    this.engine.toleratesJobFailures = this.#toleratesJobFailures;
    this.engine.open();
    // What there is now is all there is; the model of the pictures taken so far stays.
    if (this.engine.applied !== this.model.upper) this.model = this.model.fork(this.engine.applied);
    this.#isOpen = true;
  }

  /** One transaction. */
  commit(ops: readonly Op[]): void {
    this.model.add(ops);
    this.engine.commit(ops);
  }

  /** What was committed since the last turn is one record. */
  turn(): void {
    this.model.endRecord();
    this.engine.endTurn();
  }

  /** A put of its own record, about `bytes` long. */
  put(collection: number, key: string, bytes: number): void {
    this.commit([{ collection, key, value: valueOf(key, ++this.#commits, bytes) }]);
    this.turn();
  }

  remove(collection: number, key: string): void {
    this.commit([{ collection, key, value: undefined }]);
    this.turn();
  }

  create(name: string, keepsHistory: boolean): number {
    const id = this.#nextCollection++;
    const history = { offsets: keepsHistory ? null : 0 };
    const row = { id, kind: KIND_KEYED, key: 'utf8', value: 'utf8', history };
    this.commit([
      { collection: CATALOG, key: catalogName(name), value: JSON.stringify(row) },
      { collection: CATALOG, key: NEXT_ID_KEY, value: JSON.stringify({ next: id + 1 }) },
    ]);
    this.turn();
    return id;
  }

  drop(name: string): void {
    this.remove(CATALOG, catalogName(name));
  }

  sync(): void {
    const { engine, model } = this;
    engine.pump(() => engine.durable >= model.upper, 'durable');
  }

  /** Somebody is at work meanwhile, for a while. */
  little(): void {
    this.engine.rounds(this.prng.below(8));
  }

  /** Works on until a call that `isAt` knows; the process dies before it. */
  async crashBefore(isAt: (call: SimCall) => boolean, work: () => Promise<void>): Promise<void> {
    this.#diesAt = isAt;
    let died = false;
    try {
      await work();
    } catch (error) {
      died = isDeath(error);
      if (!died) throw error;
    }
    this.#diesAt = undefined;
    if (!died) throw new Error('there was no such call');
    this.crash('process');
  }

  /** The next job to make such a call fails there. True, once it has. */
  failJobAt(isAt: (call: SimCall) => boolean): () => boolean {
    this.engine.toleratesJobFailures = true;
    this.#failsAt = isAt;
    return () => this.#failsAt === undefined;
  }

  checkpoint(): Promise<void> {
    return this.engine.answered(this.engine.client.checkpoint());
  }

  flush(): Promise<void> {
    return this.engine.answered(this.engine.client.flush());
  }

  compact(): Promise<void> {
    return this.engine.answered(this.engine.client.compact(undefined));
  }

  close(): void {
    this.engine.close();
    this.#floor = Math.max(this.#floor, this.model.upper);
    this.#isOpen = false;
  }

  /** Nobody goes on with it. What it owes stays. */
  end(): void {
    this.#floor = this.durable;
    this.#isOpen = false;
    this.engine.dispose();
  }

  /** The power goes while a record is written: half of each sector of it is there. */
  tear(collection: number): void {
    const { engine } = this;
    for (let i = 0; i < 20; i++) {
      this.put(collection, 'torn', 1_500);
      engine.pump(() => engine.written >= this.model.upper, 'written');
      if (engine.durable < this.model.upper) break;
    }
    this.#writtenFloor = 0;
    this.#floor = this.durable;
    this.#isOpen = false;
    this.engine.dispose();
    this.disk = this.disk.powerLoss(({ kind }) => (kind === 'sector' ? FATE_TORN : FATE_KEPT));
    this.#watch();
  }

  crash(mode: CrashMode): void {
    this.#writtenFloor = mode === 'process' ? this.written : 0;
    this.#floor = this.durable;
    this.#isOpen = false;
    this.engine.dispose();
    this.disk = this.disk.crash(this.prng, mode);
    this.#watch();
  }
}

export type LifeOptions = {
  readonly fault?: Fault;
  readonly keepsMoments?: boolean;
  readonly toleratesJobFailures?: boolean;
  /** Gets the hand before its first call. */
  readonly onBegin?: (hand: Hand) => void;
};

export type Workload = {
  readonly name: string;
  readonly how: How;
  readonly run: (hand: Hand) => Promise<void> | void;
};

const quiet: Workload = {
  name: 'quiet',
  how: SMALL,
  run: (hand) => {
    hand.open();
    const a = hand.create('a', true);
    for (let i = 0; i < 20; i++) {
      hand.put(a, `k${hand.prng.below(8)}`, hand.prng.pick([10, 80, 600]));
      if (i % 3 === 0) hand.little();
      if (i % 5 === 4) hand.sync();
    }
    hand.engine.rest(200);
    hand.close();
  },
};

const rotation: Workload = {
  name: 'rotation',
  how: SMALL,
  run: (hand) => {
    hand.open();
    const a = hand.create('a', true);
    for (let i = 0; i < 18; i++) {
      hand.put(a, `k${hand.prng.below(6)}`, hand.prng.pick([300, 2_000, 4_000]));
      hand.little();
      if (i % 4 === 1) hand.sync();
      // Somebody has time to prepare a segment, now and then.
      if (i % 7 === 3) hand.engine.rest(30);
    }
    hand.sync();
    hand.put(a, 'last', 100);
    hand.little();
  },
};

const spine: Workload = {
  name: 'spine',
  how: SMALL,
  run: async (hand) => {
    hand.open();
    const a = hand.create('a', true);
    const b = hand.create('b', false);
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 8; i++) {
        const collection = hand.prng.pick([a, b]);
        if (hand.prng.chance(0.2)) hand.remove(collection, `k${hand.prng.below(10)}`);
        else hand.put(collection, `k${hand.prng.below(10)}`, hand.prng.pick([20, 900, 3_000]));
        hand.little();
      }
      await hand.flush();
      if (round === 1) await hand.compact();
    }
    await hand.compact();
    hand.engine.rest(300);
    hand.put(a, 'last', 100);
    hand.close();
  },
};

const recovery: Workload = {
  name: 'recovery',
  how: SMALL,
  run: async (hand) => {
    hand.open();
    const a = hand.create('a', true);
    for (let i = 0; i < 6; i++) {
      hand.put(a, `k${i}`, hand.prng.pick([60, 1_500]));
      if (i === 2) await hand.flush();
      hand.little();
    }
    hand.crash('torn');
    hand.open();
    for (let i = 0; i < 6; i++) {
      hand.put(a, `k${i}`, 1_800);
      hand.little();
    }
    hand.sync();
    hand.put(a, 'unsynced', 100);
    hand.little();
    hand.crash('process');
    hand.open();
    hand.put(a, 'more', 100);
    await hand.flush();
    hand.put(a, 'most', 100);
    hand.little();
    hand.crash('power');
    hand.open();
    hand.put(a, 'end', 40);
    hand.close();
    hand.open();
    hand.put(a, 'again', 40);
    hand.sync();
    hand.tear(a);
    hand.open();
    hand.put(a, 'after', 40);
    hand.sync();
  },
};

const catalog: Workload = {
  name: 'catalog',
  how: SMALL,
  run: async (hand) => {
    hand.open();
    const a = hand.create('a', true);
    let b = hand.create('b', false);
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 3; i++) {
        hand.put(a, `k${i}`, 50);
        hand.put(b, `k${i}`, 700);
        hand.little();
      }
      if (round === 1) await hand.flush();
      hand.drop('b');
      hand.little();
      if (round === 0) await hand.flush();
      b = hand.create('b', round === 1);
      hand.put(b, 'first', 30);
    }
    hand.sync();
    await hand.flush();
    hand.engine.rest(100);
    hand.close();
  },
};

const resumed: Workload = {
  name: 'resumed',
  how: SMALL,
  run: async (hand) => {
    hand.open();
    const a = hand.create('a', false);
    const putSome = (count: number): void => {
      for (let i = 0; i < count; i++) {
        hand.put(a, `k${hand.prng.below(5)}`, hand.prng.pick([40, 900, 3_000]));
        hand.little();
      }
    };
    putSome(3);
    await hand.flush();
    await hand.checkpoint();
    putSome(3);
    // An edit that was written and may be anywhere.
    const isEditsSync = (call: SimCall): boolean =>
      call.call === 'fdatasync' && call.path.endsWith('.edits') && call.after.startsWith('write');
    await hand.crashBefore(isEditsSync, () => hand.flush());
    hand.open();
    putSome(2);
    await hand.flush();
    // A HEAD that has its name in the cache only.
    const isHeadSync = (call: SimCall): boolean =>
      call.call === 'fsync' && call.path === MANIFEST_DIR && call.after.startsWith('rename');
    await hand.crashBefore(isHeadSync, () => hand.checkpoint());
    hand.open();
    putSome(3);
    await hand.flush();
    // What was merged away must not be missed by the manifest that comes back.
    await hand.compact();
    putSome(2);
    hand.sync();
    await hand.flush();
    hand.engine.rest(100);
  },
};

const prepared: Workload = {
  name: 'prepared',
  how: SMALL,
  run: (hand) => {
    hand.open();
    const a = hand.create('a', true);
    const hasFailed = hand.failJobAt(
      ({ call, path, after }) => call === 'fsync' && path === LOG_DIR && after.startsWith('rename'),
    );
    // Segments are made ahead once one has filled.
    for (let i = 0; i < 40 && !hasFailed(); i++) {
      hand.put(a, `k${hand.prng.below(6)}`, 2_000);
      hand.sync();
      hand.engine.rounds(6);
    }
    if (!hasFailed()) throw new Error('no segment was made ahead');
    hand.put(a, 'before', 100);
    hand.close();
    hand.open();
    for (let i = 0; i < 9; i++) {
      hand.put(a, `k${hand.prng.below(6)}`, hand.prng.pick([2_000, 4_000]));
      hand.little();
      if (i % 3 === 2) hand.sync();
    }
    hand.sync();
    hand.put(a, 'last', 100);
    hand.little();
  },
};

const recycled: Workload = {
  name: 'recycled',
  how: SMALL,
  run: async (hand) => {
    hand.open();
    const a = hand.create('a', false);
    const isOld = (path: string): boolean => hand.disk.bytesOf(path)?.[4_096] !== 0;
    let made = 0;
    hand.onCall = ({ call, path }) => {
      if (call !== 'rename' || path.startsWith(MANIFEST_DIR)) return;
      if (isOld(path.split(' ')[0])) made++;
    };
    // Each round fills more than a segment, and two checkpoints let the one before it go.
    for (let round = 0; round < 5; round++) {
      for (let i = 0; i < 6; i++) {
        hand.put(a, `k${hand.prng.below(6)}`, hand.prng.pick([700, 2_000, 3_000]));
        hand.little();
        if (i % 3 === 2) hand.sync();
      }
      await hand.checkpoint();
      hand.engine.rest(30);
    }
    if (made < 2) throw new Error(`${made} segments were recycled`);
    hand.put(a, 'before', 100);
    hand.close();
    hand.open();
    for (let i = 0; i < 8; i++) {
      hand.put(a, `k${hand.prng.below(6)}`, hand.prng.pick([60, 2_000, 3_000]));
      hand.little();
      if (i % 3 === 1) hand.sync();
    }
    hand.tear(a);
    hand.open();
    hand.put(a, 'last', 100);
    hand.sync();
  },
};

const buffered: Workload = {
  name: 'buffered',
  how: { ...SMALL, synced: false },
  run: async (hand) => {
    hand.open();
    const a = hand.create('a', true);
    for (let i = 0; i < 16; i++) {
      // Two transactions of one record.
      if (i % 4 === 0) {
        hand.commit([{ collection: a, key: 'pair', value: `${i}` }]);
      }
      hand.put(a, `k${hand.prng.below(6)}`, hand.prng.pick([40, 700, 3_000]));
      hand.little();
      if (i % 6 === 5) hand.engine.rest(hand.prng.below(40));
      if (i === 9) await hand.flush();
    }
    hand.engine.rest(30);
    hand.put(a, 'last', 100);
    hand.little();
  },
};

export const WORKLOADS: readonly Workload[] = [
  quiet,
  rotation,
  spine,
  recovery,
  resumed,
  prepared,
  recycled,
  catalog,
  buffered,
];

/** A life from its beginning to its end, with its pictures; `ended` says whether it got there. */
export async function live(
  workload: Workload,
  seed: number,
  options: LifeOptions = {},
): Promise<{ hand: Hand; failure: unknown }> {
  const hand = new Hand(workload.how, seed, options);
  options.onBegin?.(hand);
  let failure: unknown;
  try {
    await workload.run(hand);
  } catch (error) {
    failure = error;
  }
  hand.disk.fault = undefined;
  hand.end();
  return { hand, failure };
}
