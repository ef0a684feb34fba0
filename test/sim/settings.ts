/**
 * What one seed's simulation is like, drawn swarm-style: each run leaves most knobs alone and turns some
 * of them hard, so that rare combinations meet. Used by run.ts.
 */
import type { EngineConfig } from '../../actors/actor.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import type { Prng } from '../../core/base/prng.ts';
import type { CrashMode } from './disk.ts';
import type { Slot } from './model.ts';

/** What a client does when it is its turn; the numbers are weights. */
export type ActWeights = {
  put: number;
  remove: number;
  removeRange: number;
  transaction: number;
  conditional: number;
  transact: number;
  burst: number;
  point: number;
  pointLater: number;
  many: number;
  range: number;
  iterate: number;
  snapshot: number;
  follow: number;
  flush: number;
  compact: number;
  checkpoint: number;
  wait: number;
  catalog: number;
  look: number;
  multiset: number;
  backup: number;
};

export type Settings = {
  readonly synced: boolean;
  readonly syncIntervalMs: number;
  readonly memtableBytes: number;
  readonly segmentBytes: number;
  readonly history: number;
  readonly clients: number;
  readonly workers: number;
  /** Workers that flushes, zeros and spares have to themselves. */
  readonly pressing: number;
  /** True: actors run as the threads' host runs them, woken by bells; false: in any order at all. */
  readonly hosted: boolean;
  readonly slots: readonly Slot[];
  /** Part of the keys that most operations go to. */
  readonly hotKeys: number;
  readonly valueBytes: (prng: Prng) => number;
  readonly acts: ActWeights;
  /** Chance that a transaction has some hundred operations. */
  readonly largeTransactions: number;
  /** Pages that the cache may have at most; undefined: as the engine says. */
  readonly cachePages: number | undefined;
  /** Pages that views, indexes and filters may have at most; undefined: as the engine says. */
  readonly viewPages: number | undefined;
  /** Ticks that an incarnation of the engine lives, at the most. */
  readonly lifeTicksMax: number;
  readonly crashModes: readonly CrashMode[];
  /** Chance that an incarnation ends by closing instead of a crash. */
  readonly closes: number;
  readonly readOnly: number;
  /** Chance that a call in an incarnation's life fails: a sync, a write, a job. */
  readonly faults: number;
  readonly jobFaults: number;
  /** Chance that a failing call is one that only looks: a read, an open, a stat. */
  readonly lookFaults: number;
  /** Chance that a failing call is one of many: syncs of any files, one after the other, or one that lies. */
  readonly sickDisk: number;
  /** Chance that a life ends with a thread of the engine. */
  readonly threadDeaths: number;
  /** Chance that a life has a disk with hardly any room. */
  readonly fullDisk: number;
  /** Chance that a sync takes its time, and the longest that it takes. */
  readonly slowSyncs: number;
  readonly slowSyncMsMax: number;
  /** Now and then somebody gets no turn at all for a while. */
  readonly stalls: boolean;
  readonly clockJumps: boolean;
  /** Mean milliseconds that the clock moves when it does. */
  readonly clockStepMs: number;
  /** Slots of rings, where it is fewer than usual; 0: as usual. */
  readonly tinyRings: number;
  /** Ticks between two draws of who is slow. */
  readonly moodTicks: number;
  /** Of small parts runs have many, so that merges find some to move; undefined: as the engine says. */
  readonly partBytes: number | undefined;
  /** Parts beyond are opened by whoever reads, for the read; undefined: as the engine says. */
  readonly openPartsMax: number | undefined;
};

function drawKeys(prng: Prng): Buffer[] {
  const count = prng.pick([1, 3, 10, 40, 150, 600]);
  const shape = prng.pick(['short', 'counted', 'prefixed', 'nested', 'mixed', 'long']);
  const keys = new Map<string, Buffer>();
  const add = (key: Buffer): void => {
    keys.set(key.toString('hex'), key);
  };
  if (prng.chance(0.5)) add(Buffer.alloc(0));
  const prefix = Buffer.alloc(prng.between(1, 80), 0x61);
  let longest = 0;
  for (let i = 0; keys.size < count && i < count * 4; i++) {
    switch (shape) {
      case 'short':
        add(prng.fill(Buffer.alloc(prng.between(1, 3))) as Buffer);
        break;
      case 'counted':
        add(Buffer.from(`key-${String(i).padStart(6, '0')}`));
        break;
      case 'prefixed':
        add(Buffer.concat([prefix, prng.fill(Buffer.alloc(prng.between(0, 4)))]));
        break;
      case 'nested':
        add(Buffer.alloc(i % 300, prng.pick([0x00, 0xff, 0x61])));
        break;
      case 'long': {
        // A few of the longest say as much as many, which only take their time.
        const isLongest = prng.chance(0.02) && longest++ < 2;
        add(prng.fill(Buffer.alloc(isLongest ? 65_535 : prng.between(100, 3_000))) as Buffer);
        break;
      }
      default:
        add(prng.fill(Buffer.alloc(prng.between(0, 24))) as Buffer);
    }
  }
  return [...keys.values()].sort((a, b) => Buffer.compare(a, b));
}

function drawValueBytes(prng: Prng): (prng: Prng) => number {
  const usual = prng.pick([0, 8, 30, 100, 300, 2_000]);
  const large = prng.pick([0, 0.002, 0.02, 0.1]);
  const largeMax = prng.pick([8 * KiB, 64 * KiB, 300 * KiB]);
  const huge = prng.chance(0.2) ? 0.002 : 0;
  return (use) => {
    if (huge > 0 && use.chance(huge)) return use.between(MiB, 1.3 * MiB);
    if (large > 0 && use.chance(large)) return use.between(1, largeMax);
    return use.between(0, usual * 2);
  };
}

type DrawnWeights = Omit<ActWeights, 'multiset' | 'backup'>;

const ACTS: DrawnWeights = {
  put: 30,
  remove: 10,
  removeRange: 2,
  transaction: 15,
  conditional: 8,
  transact: 8,
  burst: 6,
  point: 30,
  pointLater: 15,
  many: 4,
  range: 10,
  iterate: 12,
  snapshot: 6,
  follow: 12,
  flush: 0.5,
  compact: 0.3,
  checkpoint: 0.3,
  wait: 2,
  catalog: 1.5,
  look: 4,
};

function drawActs(prng: Prng): DrawnWeights {
  const acts = { ...ACTS };
  for (const name of Object.keys(acts) as (keyof typeof ACTS)[]) {
    acts[name] *= prng.pick([0, 0.3, 1, 1, 1, 3]);
  }
  // The one or the other, in most runs.
  if (prng.chance(0.5)) acts.follow = 0;
  else acts.removeRange = 0;
  // A run without writes tells nothing.
  if (acts.put + acts.transaction + acts.burst === 0) acts.put = 30;
  return acts;
}

/** Beyond it descriptions of parts, which name their first and last key, need pages of their own. */
const KEY_BYTES_FEW_PAGES = 4_000;

function drawMultisets(prng: Prng): Slot[] {
  const slots: Slot[] = [];
  for (let i = prng.pick([0, 0, 1, 2]); i > 0; i--) {
    const keys = drawKeys(prng).slice(0, 40);
    const bytes = prng.pick([0, 4, 40, 400]);
    const values = new Map<string, Buffer>();
    for (let n = prng.pick([1, 2, 6, 20]); n > 0; n--) {
      const value = prng.fill(Buffer.alloc(prng.between(0, bytes * 2))) as Buffer;
      values.set(value.toString('hex'), value);
    }
    const ascending = [...values.values()].toSorted((a, b) => Buffer.compare(a, b));
    slots.push({ name: `m${i}`, keys, values: ascending });
  }
  return slots;
}

function drawViewPages(prng: Prng, slots: readonly Slot[]): number | undefined {
  const pages = prng.pick([undefined, undefined, undefined, undefined, 10, 16]);
  const isLong = slots.some(({ keys }) => keys.some((key) => key.length > KEY_BYTES_FEW_PAGES));
  return isLong ? undefined : pages;
}

function drawPartBytes(prng: Prng): number | undefined {
  return prng.pick([undefined, undefined, 2 * KiB, 8 * KiB, 32 * KiB]);
}

/** Drawn behind all others. */
type Late = 'sickDisk' | 'threadDeaths' | 'pressing' | 'partBytes' | 'openPartsMax';

/** A store that is there is opened so, to be written to. */
export function configOf(settings: Settings, directory: string, logId: Uint8Array): EngineConfig {
  return {
    directory,
    synced: settings.synced,
    syncIntervalMs: settings.syncIntervalMs,
    memtableBytes: settings.memtableBytes,
    segmentBytes: settings.segmentBytes,
    mergeThreads: settings.workers,
    ...(settings.partBytes === undefined ? {} : { partBytes: settings.partBytes }),
    ...(settings.openPartsMax === undefined ? {} : { openPartsMax: settings.openPartsMax }),
    history: { offsets: 0 },
    readOnly: false,
    createIfMissing: false,
    errorIfExists: false,
    strictTail: false,
    breakLock: false,
    newLogId: Buffer.from(logId).toString('base64'),
    holder: undefined,
  };
}

export function drawSettings(prng: Prng): Settings {
  const slots: Slot[] = [];
  const count = prng.between(1, 5);
  for (let i = 0; i < count; i++) slots.push({ name: `c${i}`, keys: drawKeys(prng) });
  const settings: Omit<Settings, 'acts' | Late> & { acts: DrawnWeights } = {
    synced: prng.chance(0.6),
    syncIntervalMs: prng.pick([1, 10, 50, 1_000]),
    memtableBytes: prng.pick([16, 32, 64, 64, 64, 128, 256, 1_024, 4_096]) * KiB,
    segmentBytes: prng.pick([16, 16, 32, 64, 256, 1_024]) * KiB,
    history: prng.pick([0, 0, 1, 5, 100, 2_000, Infinity]),
    clients: prng.pick([1, 1, 2, 3, 5]),
    workers: prng.pick([1, 1, 2, 3]),
    hosted: prng.chance(0.4),
    slots,
    hotKeys: prng.pick([0.05, 0.3, 1]),
    valueBytes: drawValueBytes(prng),
    acts: drawActs(prng),
    cachePages: prng.pick([undefined, undefined, 0, 2, 4, 16]),
    lifeTicksMax: prng.pick([300, 2_000, 2_000, 8_000]),
    crashModes: prng.pick([['process'], ['power'], ['torn'], ['process', 'power', 'torn']]),
    closes: prng.pick([0, 0.2, 0.7]),
    readOnly: prng.pick([0, 0.15]),
    faults: prng.pick([0, 0, 0.3]),
    jobFaults: prng.pick([0, 0, 0, 0.0005, 0.01]),
    lookFaults: prng.pick([0, 0.3, 0.7]),
    fullDisk: prng.pick([0, 0, 0, 0.2]),
    slowSyncs: prng.pick([0, 0, 0.01, 0.3]),
    slowSyncMsMax: prng.pick([5, 200, 60_000]),
    stalls: prng.chance(0.3),
    clockJumps: prng.chance(0.2),
    clockStepMs: prng.pick([0.05, 1, 1, 20, 200]),
    moodTicks: prng.pick([50, 400, 3_000]),
    tinyRings: prng.pick([0, 0, 2, 4, 16]),
    viewPages: drawViewPages(prng, slots),
    largeTransactions: prng.pick([0.05, 0.05, 0.05, 0.5]),
  };
  // Drawn last, so that a seed without them is what it was.
  const multisets = drawMultisets(prng);
  const drawn = {
    ...settings,
    slots: [...slots, ...multisets],
    acts: {
      ...settings.acts,
      multiset: multisets.length > 0 ? prng.pick([8, 25, 60]) : 0,
      backup: prng.pick([0, 0, 0.5, 3]),
      ...(prng.chance(0.25) ? { follow: ACTS.follow, removeRange: ACTS.removeRange } : {}),
    },
    sickDisk: prng.pick([0, 0.5]),
    threadDeaths: prng.pick([0, 0, 0.15]),
    pressing: prng.pick([3, 3, 3, 1, 0]),
    partBytes: drawPartBytes(prng),
    openPartsMax: prng.pick([undefined, undefined, undefined, 2, undefined]),
  };
  // Many parts and few pages to describe them in: seeds of before had the one or the other.
  const mayHaveBoth = prng.pick([true, false, true, false]);
  if (drawn.viewPages === undefined || mayHaveBoth) return drawn;
  return { ...drawn, partBytes: undefined };
}
