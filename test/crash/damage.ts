/**
 * Damage to a small closed store of three segments, parts, manifest and checkpoint: single bits, files
 * cut, removed, exchanged. Each damaged copy is opened and read as a whole, at every offset: the
 * damage is detected, or it is harmless and everything is there; never silently less. Used by the
 * tests and by main.ts.
 */
import { AssertionError } from 'node:assert';
import { TidemarkError } from '../../core/base/errors.ts';
import type { SimDisk } from '../sim/disk.ts';
import { openAndCheck } from './enumerate.ts';
import type { Owed } from './enumerate.ts';
import { live } from './workloads.ts';
import type { Workload } from './workloads.ts';

export type Store = {
  readonly disk: SimDisk;
  readonly owed: Owed;
  readonly files: readonly string[];
  /** What is in parts for certain. */
  readonly flushed: number;
};

export type Damage = {
  readonly what: string;
  readonly disk: SimDisk;
  readonly mayTear?: boolean;
  /** The one file that is another. */
  readonly path?: string;
};

/** Two collections made, twelve rows, flushed. */
const FLUSHED = 14;

const damaged: Workload = {
  name: 'damaged',
  how: { segmentBytes: 16_384, memtableBytes: 65_536, synced: true },
  run: async (hand) => {
    hand.open();
    const a = hand.create('a', true);
    const b = hand.create('b', false);
    for (let i = 0; i < 6; i++) hand.put(i % 2 === 0 ? a : b, `k${i % 4}`, 300);
    await hand.flush();
    for (let i = 0; i < 6; i++) hand.put(i % 2 === 0 ? a : b, `k${i % 5}`, 200);
    await hand.flush();
    await hand.compact();
    for (let i = 0; i < 10; i++) {
      // At once: nothing of it is in parts when the store closes.
      hand.put(a, `m${i % 6}`, 2_600);
    }
    hand.close();
  },
};

export async function makeStore(): Promise<Store> {
  const { hand, failure } = await live(damaged, 3, { keepsMoments: false });
  if (failure !== undefined) throw failure;
  const { disk, model, how } = hand;
  const left = disk.processCrash();
  left.settle();
  const files: string[] = [];
  for (const dir of ['manifest', 'parts', 'wal']) {
    for (const name of left.list(dir)) files.push(`${dir}/${name}`);
  }
  const owed = { how, model, submitted: model.upper, floor: model.upper };
  return { disk: left, owed, files, flushed: FLUSHED };
}

/**
 * torn: the end of the newest segment was cut off, which no log of one copy can tell from a write that
 * a crash tore (spec: commitlog 3.3, honest limit); what is left is a prefix, no shorter than the parts.
 */
export type Verdict = 'harmless' | 'detected' | 'torn' | 'crude' | 'silent';

/** What became of a damage; `error` says more unless it is harmless. */
export function judge(
  store: Store,
  { disk, mayTear }: Damage,
): {
  verdict: Verdict;
  error: unknown;
} {
  const { owed } = store;
  const spare = mayTear === true ? disk.clone() : disk;
  try {
    openAndCheck(disk, owed, undefined).dispose();
    return { verdict: 'harmless', error: undefined };
  } catch (error) {
    // Less than was there, or something else.
    if (error instanceof AssertionError) {
      if (mayTear !== true) return { verdict: 'silent', error };
      const torn = judge(
        { ...store, owed: { ...owed, floor: store.flushed } },
        { what: '', disk: spare },
      );
      return { verdict: torn.verdict === 'harmless' ? 'torn' : 'silent', error };
    }
    // Noticed, but not in the words that callers are promised.
    return { verdict: error instanceof TidemarkError ? 'detected' : 'crude', error };
  }
}

/** A copy whose file is changed; undefined bytes: it is not there. */
export function withFile(store: Store, path: string, bytes: Uint8Array | undefined): SimDisk {
  const disk = store.disk.processCrash();
  if (bytes === undefined) disk.remove(path);
  else disk.plant(path, bytes);
  return disk;
}

/** Every `step`th bit of all files whose path has `file` in it, from the `from`th on. */
export function* bitFlips(
  store: Store,
  from: number,
  step: number,
  file: string = '',
): Generator<Damage> {
  let at = from;
  let before = 0;
  for (const path of store.files) {
    if (!path.includes(file)) continue;
    const bytes = store.disk.bytesOf(path) ?? new Uint8Array(0);
    for (; at < before + bytes.length * 8; at += step) {
      const bit = at - before;
      const changed = bytes.slice();
      changed[bit >>> 3] = (changed[bit >>> 3] ?? 0) ^ (1 << (bit & 7));
      yield {
        what: `bit ${bit & 7} of byte ${bit >>> 3} of ${path}`,
        disk: withFile(store, path, changed),
        path,
      };
    }
    before += bytes.length * 8;
  }
}

/** Every file cut at every `step`th byte. */
export function* cuts(store: Store, from: number, step: number): Generator<Damage> {
  for (const path of store.files) {
    const bytes = store.disk.bytesOf(path) ?? new Uint8Array(0);
    for (let at = from; at < bytes.length; at += step) {
      yield {
        what: `${path} cut at ${at} of ${bytes.length}`,
        disk: withFile(store, path, bytes.slice(0, at)),
        mayTear: isNewest(store, path),
      };
    }
  }
}

/** Every file away, every file in place of every other of its kind, or under the next number as well. */
export function* exchanges(store: Store): Generator<Damage> {
  for (const path of store.files) {
    yield {
      what: `without ${path}`,
      disk: withFile(store, path, undefined),
      mayTear: isNewest(store, path),
    };
    const bytes = store.disk.bytesOf(path) ?? new Uint8Array(0);
    for (const other of store.files) {
      if (other === path || ending(other) !== ending(path)) continue;
      yield { what: `${path} in place of ${other}`, disk: withFile(store, other, bytes) };
    }
    const digits = /[0-9]{10}/.exec(path)?.[0];
    if (digits === undefined) continue;
    const copy = path.replace(digits, String(Number(digits) + 50).padStart(10, '0'));
    yield { what: `${path} also as ${copy}`, disk: withFile(store, copy, bytes) };
  }
}

/** Every sector of every file zeroed, or changed for the one after it. */
export function* sectors(store: Store, step: number): Generator<Damage> {
  const size = 512;
  for (const path of store.files) {
    const bytes = store.disk.bytesOf(path) ?? new Uint8Array(0);
    for (let at = 0; at < bytes.length; at += size * step) {
      const zeroed = bytes.slice();
      zeroed.fill(0, at, at + size);
      yield {
        what: `sector at ${at} of ${path} zeroed`,
        disk: withFile(store, path, zeroed),
        mayTear: isNewest(store, path),
      };
      const twice = bytes.slice();
      twice.copyWithin(at + size, at, Math.min(at + size, bytes.length - size));
      yield {
        what: `sector at ${at} of ${path} twice`,
        disk: withFile(store, path, twice),
        mayTear: isNewest(store, path),
      };
    }
  }
}

function isNewest(store: Store, path: string): boolean {
  return path === store.files.filter((file) => file.endsWith('.seg')).at(-1);
}

function ending(path: string): string {
  return path.slice(path.lastIndexOf('.'));
}
