/**
 * Switches off one place that writes, syncs or renames, in a life and in what follows it, and looks
 * whether any crash state tells. A place that nobody misses is of no use, or the harness is blind to
 * it. Used by the tests and by main.ts.
 */
import { Prng } from '../../core/base/prng.ts';
import { FATE_KEPT, FATE_LOST } from '../sim/disk.ts';
import type { SimCall, SimDisk } from '../sim/disk.ts';
import { revive, statesOf } from './enumerate.ts';
import type { Owed } from './enumerate.ts';
import { live } from './workloads.ts';
import type { Fault, Hand, Moment, Workload } from './workloads.ts';

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

/** What a call does and to what; undefined when it is not of the kind to be switched off. */
function whatOf(call: SimCall): string | undefined {
  const kind = KINDS.get(call.call);
  if (kind === undefined) return undefined;
  return `${kind} ${call.path.split(' ').map(kindOfPath).join(' ')}`;
}

/** The same, and where it was made. */
export function siteOf(call: SimCall): string | undefined {
  const what = whatOf(call);
  if (what === undefined) return undefined;
  // Line numbers change too often to be names.
  const names = callers()
    .flatMap((frame) => {
      const found =
        /^(?:new )?(?:\S+\.)?(\S+) \(.*\/(?:core\/(?!shared)|actors\/(?!watched-storage))(\S+)\.ts:/.exec(
          frame,
        );
      return found === null ? [] : [`${found[2]} ${found[1]}`];
    })
    .slice(0, 2);
  // The steps of a program have all the same name but for what they follow.
  if (names.length === 0) return `${what} (queued, after ${nameOf(call.after)})`;
  if (names.some((name) => name.endsWith(' runProgram')))
    return `${what} (waited for, after ${nameOf(call.after)})`;
  return `${what} in ${names.join(' < ')}`;
}

/** Who is calling, innermost first. Not from a stack's text: that is looked up in source maps, which takes long. */
function callers(): string[] {
  const { stackTraceLimit } = Error;
  const before = Object.getOwnPropertyDescriptor(Error, 'prepareStackTrace');
  Error.stackTraceLimit = 30;
  Error.prepareStackTrace = (_, sites) => sites.map(String);
  const holder: { stack?: string[] } = {};
  Error.captureStackTrace(holder);
  const { stack = [] } = holder;
  Error.stackTraceLimit = stackTraceLimit;
  if (before === undefined) Reflect.deleteProperty(Error, 'prepareStackTrace');
  else Object.defineProperty(Error, 'prepareStackTrace', before);
  return stack;
}

function nameOf(callAndPaths: string): string {
  const [call = '', ...paths] = callAndPaths.split(' ');
  return [KINDS.get(call) ?? call, ...paths.map(kindOfPath)].join(' ');
}

/** Every place that these lives come by, and the lives that do. */
export async function sitesOf(
  workloads: readonly Workload[],
  seeds: readonly number[],
): Promise<Map<string, Set<Workload>>> {
  const sites = new Map<string, Set<Workload>>();
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

/** The call does nothing and says that it did. */
function without(site: string, onSkip: () => unknown): Fault {
  return (call) => {
    const what = whatOf(call);
    if (what === undefined || !site.startsWith(`${what} `) || siteOf(call) !== site)
      return undefined;
    onSkip();
    return { kind: 'skip' };
  };
}

type Tried = {
  readonly left: SimDisk;
  readonly owed: Owed;
  readonly depth: number;
  readonly damages: boolean;
  readonly sickens: boolean;
};

/** Crash states of one life, and how many of them are still to be looked at. */
type Course = { readonly workload: Workload; readonly states: Generator<Tried>; left: number };

/** A life that was led without the place, from where it was missing first: before, nothing is amiss. */
type Led = {
  readonly moments: readonly Moment[];
  /** Among them those after which it was missing. */
  readonly skips: readonly number[];
};

/** So few moments of a life tell most of what it can tell. */
const FIRST_MOMENTS = 8;

/**
 * Crash states of a life, those first that tell most: few moments, of each what a process leaves and what
 * a loss of power that keeps nothing or all; any subset just after the place was passed; then more.
 */
function* statesIn(
  { how }: Workload,
  seed: number,
  { moments, skips }: Led,
  share: number,
): Generator<Tried> {
  const prng = new Prng(seed);
  const count = moments.length;
  const plain = { depth: 0, damages: false, sickens: false };
  function* bare(step: number): Generator<Tried> {
    // From the end: what should be safe by then has had the time to be lost.
    for (let m = count - 1 - prng.below(step); m >= 0; m -= step) {
      const { disk, model, submitted, durable, written } = moments[m];
      const owed = { how, model, submitted, durable, floor: durable };
      yield { ...plain, left: disk.powerLoss(() => FATE_LOST), owed, damages: true };
      const cached = { ...owed, floor: written };
      yield { ...plain, left: disk.processCrash(), owed: cached, sickens: true };
      yield { ...plain, left: disk.powerLoss(() => FATE_KEPT), owed };
    }
  }
  yield* bare(Math.max(1, Math.ceil(count / FIRST_MOMENTS)));
  // What the call should have put in order is most easily out of order in the calls that follow it.
  const near = { subsetsMax: 6, samples: 4, regularMax: 6 };
  for (const skip of new Set([...skips.slice(0, 2), ...skips.slice(-2)])) {
    for (let m = skip; m < Math.min(count, skip + 8); m++) {
      for (const state of statesOf(moments[m], how, prng, near)) yield { ...plain, ...state };
    }
  }
  yield* bare(Math.max(1, Math.ceil(count / 40)));
  const choice = { subsetsMax: 3, samples: 4, regularMax: 2 };
  const step = Math.max(1, Math.floor((count * 8) / share));
  for (let m = count - 1 - prng.below(step), n = 0; m >= 0; m -= step) {
    for (const state of statesOf(moments[m], how, prng, choice)) {
      n++;
      yield { ...state, depth: n % 2, damages: n % 3 === 0, sickens: n % 3 === 1 };
    }
  }
}

/** Looks for a crash state that tells that `site` is switched off, in at most so many. */
export async function elide(
  site: string,
  lives: Iterable<Workload>,
  seeds: readonly number[],
  statesMax: number,
): Promise<Elision> {
  const all = [...lives];
  const share = Math.ceil(statesMax / (seeds.length * all.length));
  const fault = without(site, () => {});
  const seen = new Set<string>();
  let states = 0;
  let noticed: string | undefined;
  /** True when one of the next `count` of the course tells. */
  const look = (course: Course, count: number): boolean => {
    for (let i = 0; i < count; i++) {
      const next = course.states.next();
      if (next.done === true || --course.left < 0) {
        course.left = -1;
        return false;
      }
      const { left, owed, ...options } = next.value;
      const { name } = course.workload;
      states++;
      const mark = `${name} ${left.fingerprint()} ${owed.floor} ${JSON.stringify(options)}`;
      if (seen.has(mark)) continue;
      seen.add(mark);
      try {
        revive(left, owed, new Prng(states), { ...options, fault });
      } catch (error) {
        noticed = `${name}: ${describe(error)}`;
        return true;
      }
    }
    return false;
  };
  for (const seed of seeds) {
    let courses: Course[] = [];
    for (const workload of all) {
      const { led, failure } = await leadWithout(site, workload, seed);
      if (failure !== undefined) {
        return { site, noticed: `${workload.name}: ${describe(failure)}`, states };
      }
      const course = { workload, states: statesIn(workload, seed, led, share), left: share };
      courses.push(course);
      if (look(course, 3 * FIRST_MOMENTS)) return { site, noticed, states };
    }
    // All of them in turn: whichever notices, notices early.
    while (courses.length > 0) {
      for (const course of courses) if (look(course, 1)) return { site, noticed, states };
      courses = courses.filter(({ left }) => left >= 0);
      await Promise.resolve();
    }
  }
  return { site, noticed: undefined, states };
}

async function leadWithout(
  site: string,
  workload: Workload,
  seed: number,
): Promise<{ led: Led; failure: unknown }> {
  let hand: Hand | undefined;
  const skips: number[] = [];
  const fault = without(site, () => skips.push(hand?.moments.length ?? 0));
  const life = await live(workload, seed, { fault, onBegin: (given) => (hand = given) });
  const [first = 0] = skips;
  const led = {
    moments: life.hand.moments.slice(first),
    skips: skips.map((skip) => skip - first),
  };
  return { led, failure: life.failure };
}
