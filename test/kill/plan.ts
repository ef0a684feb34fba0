/**
 * What a store of the kill rounds is like and what its n-th transaction writes: functions of the seed and
 * n alone, so that a process that knows nothing of the ones before it can tell exactly what must be there.
 * Used by child.ts and rounds.ts.
 *
 * The store's first offsets belong to the collections, made in order; transaction n follows at n plus
 * their number. Nothing else takes an offset.
 */
import { Prng } from '../../core/base/prng.ts';
import { KiB } from '../../core/base/limits.ts';

export type Host = 'threads' | 'inline';

export type StorePlan = {
  readonly seed: number;
  readonly host: Host;
  readonly synced: boolean;
  readonly syncIntervalMs: number;
  readonly segmentBytes: number;
  readonly memtableBytes: number;
  /** Keys of each collection. */
  readonly keys: number;
  readonly valueBytesMax: number;
  /** Chance that a value is a large one. */
  readonly large: number;
  /** Transactions in flight. */
  readonly window: number;
};

/** The last one keeps all history. */
export const COLLECTIONS: readonly { readonly name: string; readonly history: number }[] = [
  { name: 'now', history: 0 },
  { name: 'lately', history: 50 },
  { name: 'bulk', history: 0 },
  { name: 'ever', history: Infinity },
];

/** Offset of transaction 0. */
export const FIRST_OFFSET: number = COLLECTIONS.length;

const OPERATIONS_MAX = 6;
const LARGE_BYTES_MAX: number = 24 * KiB;
const STAMP_BYTES = 12;

export function planStore(seed: number, host: Host): StorePlan {
  const prng = new Prng(seed);
  return {
    seed,
    host,
    synced: prng.chance(0.6),
    syncIntervalMs: prng.pick([1, 10, 50]),
    segmentBytes: prng.pick([16, 32, 64, 256]) * KiB,
    memtableBytes: prng.pick([64, 64, 128, 512]) * KiB,
    keys: prng.pick([5, 60, 400]),
    valueBytesMax: prng.pick([20, 100, 400]),
    large: prng.pick([0, 0.01, 0.1]),
    window: prng.pick([1, 4, 32, 256]),
  };
}

export type Operation = {
  readonly collection: number;
  readonly key: number;
  /** Bytes of the value; -1: the key is deleted. */
  readonly bytes: number;
};

/** The operations of transaction `n`; of two on one key the later one wins. */
export function operationsOf(plan: StorePlan, n: number): Operation[] {
  const prng = new Prng(Math.imul(plan.seed, 0x9e3779b1) ^ n);
  const operations: Operation[] = [];
  for (let i = prng.between(1, OPERATIONS_MAX); i > 0; i--) {
    const collection = prng.below(COLLECTIONS.length);
    const key = prng.below(plan.keys);
    let bytes = -1;
    if (prng.chance(plan.large)) bytes = prng.between(STAMP_BYTES, LARGE_BYTES_MAX);
    else if (!prng.chance(0.2)) bytes = STAMP_BYTES + prng.below(plan.valueBytesMax);
    operations.push({ collection, key, bytes });
  }
  return operations;
}

export function keyOf(key: number): Buffer {
  return Buffer.from(`key-${String(key).padStart(5, '0')}`);
}

/** Says in every twelve bytes which transaction and operation wrote it. */
export function valueOf(n: number, index: number, bytes: number): Buffer {
  const stamp = Buffer.alloc(STAMP_BYTES);
  stamp.writeDoubleLE(n, 0);
  stamp.writeUInt32LE(index, 8);
  return Buffer.alloc(bytes, stamp);
}

/** Which operation wrote a row last. */
export type Written = { readonly n: number; readonly index: number; readonly bytes: number };

/** What the collections hold after the transactions so far. */
export class Contents {
  readonly #plan: StorePlan;
  readonly rows: readonly Map<number, Written>[] = COLLECTIONS.map(() => new Map());
  /** Transactions applied. */
  count = 0;

  constructor(plan: StorePlan) {
    this.#plan = plan;
  }

  /** Requires: `count` is not below what was applied. */
  advance(count: number): void {
    for (; this.count < count; this.count++) {
      operationsOf(this.#plan, this.count).forEach(({ collection, key, bytes }, index) => {
        if (bytes < 0) this.rows[collection]?.delete(key);
        else this.rows[collection]?.set(key, { n: this.count, index, bytes });
      });
    }
  }
}

// ---------------------------------------------------------------- what the child says

/** Bytes of a message: u16 kind, u16 which of its stores, u32 flags, f64 number. */
export const MESSAGE_BYTES = 16;
/** The descriptor it is written to. */
export const MESSAGE_FD = 3;

/** The engine's code is loaded; the number is the process's own idea of what it is. Of all its stores. */
export const SAYS_STARTED = 1;
/** Open; the number is the engine's upper. */
export const SAYS_OPEN = 2;
/** All that was promised is there, and what is there is a prefix; the number is the upper again. */
export const SAYS_CHECKED = 3;
/** The offset in the number was acknowledged. */
export const SAYS_ACKNOWLEDGED = 4;
/** `durable()` of the offset in the number has answered. */
export const SAYS_DURABLE = 5;
/** What goes on in the background: flags as below. */
export const SAYS_BUSY = 6;
/** The engine is asked to close. */
export const SAYS_CLOSING = 7;
/** It has closed. */
export const SAYS_CLOSED = 8;

export const BUSY_FLUSH = 1;
export const BUSY_MERGE = 2;
export const BUSY_ROTATION = 4;
export const BUSY_EDIT = 8;

/** What the child is asked of one store; its first argument is a list of these, as JSON. */
export type Task = {
  readonly plan: StorePlan;
  readonly directory: string;
  /** Draws what it does besides committing. */
  readonly seed: number;
  /** First offset above all that was promised. */
  readonly promised: number;
  /** Transactions after which it closes by itself; 0: as soon as it has checked. */
  readonly closeAfter: number;
};
