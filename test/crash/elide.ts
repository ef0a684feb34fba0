/**
 * Switches off one place that writes, syncs or renames, in a life and in what follows it, and looks
 * whether any crash state tells. A place that nobody misses is of no use, or the harness is blind to
 * it. Used by the tests and by main.ts.
 */
import { Prng } from '../../core/base/prng.ts';
import type { SimCall } from '../sim/disk.ts';
import { revive, statesOf } from './enumerate.ts';
import { live } from './workloads.ts';
import type { Fault, Workload } from './workloads.ts';

const KINDS: ReadonlyMap<string, string> = new Map([
  ['fdatasync', 'sync'],
  ['fsync', 'syncDir'],
  ['write', 'write'],
  ['writev', 'write'],
  ['rename', 'rename'],
]);

function kindOfPath(path: string): string {
  if (path === '') return 'root';
  if (/^wal\/[0-9]+\.seg$/.test(path)) return 'segment';
  if (/^wal\/[0-9]+\.segz$/.test(path)) return 'compressed';
  if (path.startsWith('wal/spare')) return 'spare';
  if (path.startsWith('parts/')) return 'part';
  if (path.startsWith('quarantine/')) return 'quarantined';
  if (path.endsWith('.edits')) return 'edits';
  if (path.endsWith('.rollup')) return 'rollup';
  if (path.includes('HEAD')) return 'HEAD';
  if (path.startsWith('tmp/')) return 'tmp';
  return path;
}

/** What a call does and to what, and where it was made; undefined when it is not of the kind to be switched off. */
export function siteOf(call: SimCall): string | undefined {
  const kind = KINDS.get(call.call);
  if (kind === undefined) return undefined;
  const what = `${kind} ${call.path.split(' ').map(kindOfPath).join(' ')}`;
  const frames = (new Error('site').stack ?? '')
    .split('\n')
    .filter((frame) => /\/core\/(?!shared)|\/actors\/(?!watched-storage)/.test(frame));
  // Line numbers change too often to be names.
  const names = frames.slice(0, 2).map((frame) => /at (?:new )?(\S+) /.exec(frame)?.[1] ?? '?');
  // The steps of a program have all the same name but for what they follow.
  if (names.length === 0) return `${what} (queued, after ${nameOf(call.after)})`;
  if (names.includes('runProgram')) return `${what} (waited for, after ${nameOf(call.after)})`;
  return `${what} in ${names.join(' < ')}`;
}

function nameOf(callAndPaths: string): string {
  const [call = '', ...paths] = callAndPaths.split(' ');
  return [KINDS.get(call) ?? call, ...paths.map(kindOfPath)].join(' ');
}

/**
 * Places that no crash of ours can tell from absent ones, each with its reason.
 *   zeros      bytes that are not there yet read as zeros: filling ahead is for speed
 *   syncFiles  what recovery syncs before it reads is either proven or written again: it only makes a
 *              sick disk fail before anything is built on it
 *   drop       a .seg that comes back beside the .segz that was made of it is an orphan
 */
const HARMLESS: readonly RegExp[] = [
  /ZeroFill\.step/,
  /SpareMaker\.#fill/,
  /LogRecovery\.#syncFiles/,
  /CompressJob\.#drop/,
];

export function isHarmless(site: string): boolean {
  return HARMLESS.some((pattern) => pattern.test(site));
}

/** Every place that these lives come by, and the lives that do. */
export async function sitesOf(
  workloads: readonly Workload[],
  seeds: readonly number[],
): Promise<Map<string, Set<Workload>>> {
  const sites = new Map<string, Set<Workload>>();
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 30;
  for (const workload of workloads) {
    for (const seed of seeds) {
      const note = (call: SimCall): undefined => {
        const site = siteOf(call);
        if (site === undefined) return;
        const lives = sites.get(site) ?? new Set();
        sites.set(site, lives.add(workload));
      };
      const { failure } = await live(workload, seed, { fault: note, keepsMoments: false });
      if (failure !== undefined) throw failure;
    }
  }
  Error.stackTraceLimit = limit;
  return sites;
}

function describe(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : 'no error at all';
}

export type Elision = {
  readonly site: string;
  /** What told; undefined: nothing did. */
  readonly noticed: string | undefined;
  readonly states: number;
};

/** Looks for a crash state that tells that `site` is switched off, in at most so many. */
export async function elide(
  site: string,
  lives: Iterable<Workload>,
  seeds: readonly number[],
  statesMax: number,
): Promise<Elision> {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 30;
  let states = 0;
  const workloads = [...lives];
  /** All of them have their turn. */
  const share = Math.ceil(statesMax / (seeds.length * workloads.length));
  try {
    for (const seed of seeds) {
      for (const workload of workloads) {
        let budget = share;
        const fault: Fault = (call) => (siteOf(call) === site ? { kind: 'skip' } : undefined);
        const { hand, failure } = await live(workload, seed, { fault });
        if (failure !== undefined) {
          return { site, noticed: `${workload.name}: ${describe(failure)}`, states };
        }
        const prng = new Prng(seed);
        const choice = { subsetsMax: 3, samples: 4, regularMax: 2 };
        // From the end: what should be safe by then has had the time to be lost.
        const step = Math.max(1, Math.floor((hand.moments.length * 8) / share));
        for (let m = hand.moments.length - 1 - prng.below(step); m >= 0 && budget > 0; m -= step) {
          const moment = hand.moments[m];
          if (moment === undefined) break;
          for (const { left, owed } of statesOf(moment, workload.how, prng, choice)) {
            if (--budget < 0) break;
            states++;
            try {
              revive(left, owed, prng.child(), {
                depth: states % 2,
                damages: states % 3 === 0,
                fault,
              });
            } catch (error) {
              return { site, noticed: `${workload.name}: ${describe(error)}`, states };
            }
          }
          await Promise.resolve();
        }
      }
    }
  } finally {
    Error.stackTraceLimit = limit;
  }
  return { site, noticed: undefined, states };
}
