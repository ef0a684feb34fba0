/**
 * Crash states of the whole engine: a life is led once, with a picture of the disk before every call
 * that changes something; whatever a crash may leave of each picture is opened, compared with the model
 * and with what had been acknowledged, and goes on. A state is a function of (workload, seed, moment,
 * state): that line replays it. Used by the tests and by main.ts.
 *
 *   I1, I2   at least everything durable at that moment (a mere process crash: written), at most what was
 *            submitted, ending where a record ends
 *   I3, I6   it opens: what is left is never taken for damage
 *   and      every row of every collection, now and as of earlier offsets, is the model's; what has been
 *            recovered is durable; a recovery that dies is done again; three commits more, a crash or a
 *            close, and everything is there
 */
import assert from 'node:assert/strict';
import { Prng } from '../../core/base/prng.ts';
import { crashes } from '../sim/disk.ts';
import { decodeHead } from '../../core/spine/manifest.ts';
import {
  HEAD_PATH,
  LOG_DIR,
  QUARANTINE_DIR,
  quarantinePath,
  rollupPath,
  segmentPath,
} from '../../core/storage/names.ts';
import type { CrashChoice, CrashMode, SimDisk } from '../sim/disk.ts';
import { Incarnation, isDeath } from './engine.ts';
import type { How } from './engine.ts';
import type { Model, State } from './model.ts';
import { CATALOG, live, valueOf } from './workloads.ts';
import type { Fault, Moment, Workload } from './workloads.ts';

/** What must be found. */
export type Owed = {
  readonly how: How;
  readonly model: Model;
  readonly submitted: number;
  /** As this disk is: all that was durable, and if the page cache was kept all that was written. */
  readonly floor: number;
  /** If the power goes before it has been opened; left out: as much. */
  readonly durable?: number;
};

const MODES: readonly CrashMode[] = ['process', 'power', 'torn'];
/** Earlier offsets that are looked at beside the newest. */
const LOOKS_BACK = 3;

/**
 * As `openAndCheck`, of a copy in which one of the manifest's rollups is damaged: while there are two,
 * either is as good as both.
 */
function checkWithoutRollup(left: SimDisk, owed: Owed, prng: Prng): void {
  const copy = left.processCrash();
  const head = copy.bytesOf(HEAD_PATH);
  if (head === undefined) return;
  const { rollup, previous } = decodeHead(head, HEAD_PATH);
  if (previous === 0) return;
  const path = rollupPath(prng.chance(0.7) ? rollup : previous);
  const bytes = copy.bytesOf(path);
  assert.ok(bytes !== undefined, `${path} is there, for HEAD names it`);
  const at = prng.below(bytes.length);
  bytes[at] = (bytes[at] ?? 0) ^ 0x10;
  copy.plant(path, bytes);
  try {
    openAndCheck(copy, owed, prng, 1).dispose();
  } catch (error) {
    throw new Error(`with byte ${at} of ${path} damaged: ${String(error)}`, { cause: error });
  }
}

/**
 * A file of the log whose bytes the system could not write back, after the process that wrote them died,
 * is heard of when the store is opened: nothing is built on it.
 */
function checkSickness(left: SimDisk, owed: Owed, prng: Prng, fault: Fault | undefined): void {
  const whole = left.processCrash();
  const calls: string[] = [];
  whole.record = calls;
  new Incarnation(whole, owed.how).open().dispose();
  const written = new Set<string>();
  const synced = new Set<string>();
  for (const line of calls) {
    const [call, path = ''] = line.split(' ');
    if (call === 'write') written.add(path);
    // What this very opening has written is another matter.
    if (call === 'fdatasync' && path.startsWith(LOG_DIR) && !written.has(path)) synced.add(path);
  }
  if (synced.size === 0) return;
  const path = prng.pick([...synced]);
  const sick = left.processCrash();
  sick.sicken(path);
  sick.fault = fault;
  const engine = new Incarnation(sick, owed.how);
  try {
    engine.open();
  } catch (error) {
    if (String(error).includes('EIO')) return;
    throw error;
  } finally {
    engine.dispose();
  }
  assert.fail(`${path} could not be written back, and the store was opened`);
}

/** What torn tails were set aside: the bytes that stood there, by file. */
function setAside(disk: SimDisk): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  for (const name of namesIn(disk, QUARANTINE_DIR)) {
    const path = quarantinePath(name);
    files.set(path, disk.bytesOf(path) ?? new Uint8Array(0));
  }
  return files;
}

/** Names in a directory; none where it is not there. For looking only: not a call of the engine's. */
function namesIn(disk: SimDisk, path: string): string[] {
  const copy = disk.clone();
  copy.fault = undefined;
  return copy.list(path);
}

/** The tail that an opening has set aside is what stood in the segment; `before`: as it was found. */
function checkSetAside(before: SimDisk, after: ReadonlyMap<string, Uint8Array>): void {
  for (const [path, bytes] of after) {
    const [, seq, position] = /(\d+)-(\d+)\.torn$/.exec(path) ?? [];
    // From an earlier opening, that died: the tail may have become another one since.
    const known = before.bytesOf(path);
    if (known !== undefined && Buffer.compare(known, bytes) === 0) continue;
    const segment = before.bytesOf(segmentPath(Number(seq)));
    if (segment === undefined || segment.length < Number(position) + bytes.length) continue;
    const stood = segment.subarray(Number(position), Number(position) + Math.max(1, bytes.length));
    if (stood.every((byte) => byte === 0)) continue;
    assert.ok(Buffer.compare(stood, bytes) === 0, `${path} holds what stood there`);
  }
}

export type ReviveOptions = {
  /** Crashes within crashes. */
  readonly depth: number;
  /** In force in every incarnation: for calls that are switched off. */
  readonly fault?: Fault | undefined;
  /** Looks at the same with a damaged rollup too. */
  readonly damages?: boolean;
  /** And with a file of the log whose bytes could not be written back. */
  readonly sickens?: boolean;
};

/** Ids and histories of the collections that a state's catalog has. */
function collectionsOf(state: State): { id: number; keepsHistory: boolean }[] {
  const found = [];
  for (const [key, value] of state.get(CATALOG) ?? []) {
    if (!key.startsWith('\u0001')) continue;
    const row = JSON.parse(value) as { id: number; history: { offsets: number | null } };
    found.push({ id: row.id, keepsHistory: row.history.offsets === null });
  }
  return found;
}

function compare(engine: Incarnation, state: State, id: number, asOf?: number): void {
  const found = engine.rowsOf(id, asOf);
  const expected = [...(state.get(id) ?? [])].toSorted(([a], [b]) => (a < b ? -1 : 1));
  const same =
    found.length === expected.length &&
    found.every(([key, value], i) => key === expected[i]?.[0] && value === expected[i]?.[1]);
  if (same) return;
  const when = asOf === undefined ? 'now' : `as of ${asOf}`;
  assert.deepEqual(found.map(brief), expected.map(brief), `collection ${id} ${when}`);
  assert.fail(`collection ${id} ${when} differs in its values`);
}

function brief([key, value]: readonly [string, string]): string {
  return `${key} ${value.slice(0, 20)} ${value.length}`;
}

/** Opens what a crash left and compares; the engine that runs on it. */
export function openAndCheck(
  disk: SimDisk,
  owed: Owed,
  prng: Prng | undefined,
  looksBack: number = LOOKS_BACK,
): Incarnation {
  const engine = new Incarnation(disk, owed.how);
  try {
    engine.open();
    checkContents(engine, owed, prng, looksBack);
  } catch (error) {
    engine.dispose();
    throw error;
  }
  return engine;
}

/**
 * All that an open engine shows is what is owed: everything now, at some earlier offsets, or without a
 * `prng` at all of them what the transaction there has changed.
 */
function checkContents(
  engine: Incarnation,
  owed: Owed,
  prng: Prng | undefined,
  looksBack: number,
): void {
  const { model, submitted, floor } = owed;
  const upper = engine.visible;
  assert.ok(upper >= floor, `the store ends at ${upper}, ${floor} was acknowledged`);
  assert.ok(upper <= submitted, `the store ends at ${upper}, only ${submitted} was submitted`);
  assert.ok(model.isRecordEnd(upper), `the store ends inside a record, at ${upper}`);
  assert.equal(engine.applied, upper, 'all that is there is visible');
  assert.equal(engine.durable, upper, 'all that is there is durable');
  const now = model.stateAt(upper);
  compare(engine, now, CATALOG);
  const collections = collectionsOf(now);
  for (const { id } of collections) compare(engine, now, id);
  if (prng === undefined) checkTransactions(engine, owed);
  const times = Array.from({ length: upper > 0 ? looksBack : 0 }, (_, i) =>
    prng === undefined ? Math.floor(((i + 1) * upper) / (looksBack + 1)) : prng.below(upper),
  );
  for (const T of times) {
    const then = model.stateAt(T + 1);
    for (const { id, keepsHistory } of collections) {
      const since = engine.sinceOf(id);
      if (keepsHistory) assert.equal(since, 0, `collection ${id} keeps its history`);
      if (T >= since) compare(engine, then, id, T);
    }
  }
}

/** Each transaction, as far back as its collection has its history, has done what it did. */
function checkTransactions(engine: Incarnation, { model }: Owed): void {
  const upper = engine.visible;
  for (const { id } of collectionsOf(model.stateAt(upper))) {
    const since = engine.sinceOf(id);
    for (let T = since; T < upper; T++) {
      for (const { collection, key, value } of model.opsAt(T)) {
        if (collection !== id) continue;
        assert.equal(engine.rowOf(id, key, T), value, `${key} of collection ${id} as of ${T}`);
      }
    }
  }
}

/**
 * Lets the store that a crash left live on, in every way that is asked for. Throws what is wrong.
 * `left` is used up.
 */
export function revive(left: SimDisk, owed: Owed, prng: Prng, options: ReviveOptions): void {
  const { depth, fault } = options;
  const before = depth > 0 ? left.clone() : undefined;
  if (options.damages === true) checkWithoutRollup(left, owed, prng);
  if (options.sickens === true) checkSickness(left, owed, prng, fault);
  const found = left.clone();
  left.fault = fault;
  const first = openAndCheck(left, owed, prng);
  const aside = setAside(left);
  checkSetAside(found, aside);
  const { model, how } = owed;
  const upper = first.visible;

  if (before !== undefined) {
    // Dies in the opening, or in what it begins at once, before one of the calls that change something.
    first.rounds(prng.below(30));
    first.dispose();
    const at = before.mutations + prng.below(Math.max(1, left.mutations - before.mutations));
    const dying = before.clone();
    dying.fault = (call) => (call.mutation === at ? { kind: 'crash' } : fault?.(call));
    const victim = new Incarnation(dying, how);
    const mode = prng.pick(MODES);
    let floor = mode === 'process' ? owed.floor : (owed.durable ?? owed.floor);
    let durable = owed.durable ?? owed.floor;
    try {
      victim.open();
      // It has been seen: nothing of it may go.
      durable = victim.visible;
      floor = Math.max(floor, durable);
      victim.rounds(30);
    } catch (error) {
      if (!isDeath(error)) throw error;
    } finally {
      victim.dispose();
    }
    const next = { ...owed, floor, durable };
    revive(dying.crash(prng, mode), next, prng, { ...options, depth: depth - 1 });
    return;
  }

  // What was recovered has been seen, and so is acknowledged; opening it again changes nothing.
  let settled: Owed = { how, model: model.fork(upper), submitted: upper, floor: upper };
  let engine = first;
  if (prng.chance(0.3)) {
    const mode = prng.pick(MODES);
    first.dispose();
    const again = left.crash(prng, mode);
    again.fault = fault;
    left = again;
    engine = openAndCheck(left, settled, prng, 1);
    assert.equal(engine.visible, upper, 'recovered twice, the same');
  }
  try {
    const branch = settled.model;
    const collections = collectionsOf(branch.stateAt(upper));
    const id = collections.length > 0 ? prng.pick(collections).id : undefined;
    for (let i = 0; i < 3; i++) {
      const key = `after${i}`;
      const ops =
        id === undefined
          ? [{ collection: CATALOG, key: '\u0000', value: '{"next":1}' }]
          : [{ collection: id, key, value: valueOf(key, i, prng.pick([5, 900, 5_000])) }];
      branch.add(ops);
      branch.endRecord();
      engine.commit(ops);
      engine.endTurn();
      if (prng.chance(0.6)) engine.pump(() => engine.durable >= branch.upper, 'durable');
      else engine.rounds(prng.below(4));
    }
    settled = { ...settled, submitted: branch.upper, floor: engine.durable };
    const closes = prng.chance(0.25);
    if (closes) {
      engine.close();
      settled = { ...settled, floor: branch.upper };
    }
  } finally {
    engine.dispose();
  }
  const last = left.crash(prng, prng.pick(MODES));
  for (const [path, bytes] of aside) {
    const kept = last.bytesOf(path);
    assert.ok(kept !== undefined && Buffer.compare(kept, bytes) === 0, `${path} is kept`);
  }
  last.fault = fault;
  openAndCheck(last, settled, prng, 1).dispose();
}

// ---------------------------------------------------------------- enumeration

export type StateName = {
  readonly workload: string;
  readonly seed: number;
  readonly moment: number;
  readonly state: number;
};

export class CrashFailure extends Error {
  override readonly name: string = 'CrashFailure';
  readonly at: StateName;

  constructor(at: StateName, call: string, cause: unknown) {
    super(`${replayLine(at)} (before: ${call}): ${String(cause)}`, { cause });
    this.at = at;
  }
}

/** What to type to see it again. */
export function replayLine({ workload, seed, moment, state }: StateName): string {
  return `npm run crash-states -- --workload=${workload} --seed=${seed} --moment=${moment} --state=${state}`;
}

export type EnumerateOptions = {
  readonly choice: CrashChoice;
  /** Every how-manyeth moment, from which on. */
  readonly step?: number;
  readonly from?: number;
  /** Only these. */
  readonly moment?: number | undefined;
  readonly state?: number | undefined;
  /** States already seen, with what was owed: they are not opened again. */
  readonly seen?: Set<string>;
  readonly onState?: (isNew: boolean) => void;
  /** Asked before each moment. */
  readonly isEnough?: () => boolean;
};

function seedOf(seed: number, moment: number, state: number): number {
  return (Math.imul(seed, 0x9e3779b1) ^ Math.imul(moment + 1, 0x85ebca77) ^ state) >>> 0;
}

/** Every state that a crash at this moment may leave, as far as `choice` asks for it. */
export function* statesOf(
  moment: Moment,
  how: How,
  prng: Prng,
  choice: CrashChoice,
): Generator<{ left: SimDisk; owed: Owed }> {
  const { model, submitted, durable, written } = moment;
  let floor = written;
  for (const left of crashes(moment.disk, prng, choice)) {
    yield { left, owed: { how, model, submitted, floor, durable } };
    // The first is the one whose page cache is kept.
    floor = durable;
  }
}

/** Leads one life and checks its crash states. Returns how many different ones. */
export async function enumerate(
  workload: Workload,
  seed: number,
  options: EnumerateOptions,
): Promise<number> {
  const { hand, failure } = await live(workload, seed);
  if (failure !== undefined) {
    const at = { workload: workload.name, seed, moment: -1, state: 0 };
    throw new CrashFailure(at, 'the life itself', failure);
  }
  const { step = 1, from = 0, seen = new Set<string>(), isEnough = () => false } = options;
  let states = 0;
  for (let m = from; m < hand.moments.length; m += step) {
    if (isEnough()) break;
    const moment = hand.moments[m];
    if (moment === undefined || (options.moment ?? m) !== m) continue;
    let n = -1;
    const prng = new Prng(seedOf(seed, m, -1));
    for (const { left, owed } of statesOf(moment, workload.how, prng, options.choice)) {
      n++;
      if ((options.state ?? n) !== n) continue;
      const mark = `${left.fingerprint()} ${owed.floor} ${owed.submitted}`;
      const isNew = !seen.has(mark);
      options.onState?.(isNew);
      if (options.state === undefined && !isNew) continue;
      seen.add(mark);
      states++;
      try {
        const looks = { damages: n % 8 === 5, sickens: n % 16 === 10 };
        revive(left, owed, new Prng(seedOf(seed, m, n)), { depth: depthOf(n), ...looks });
      } catch (error) {
        throw new CrashFailure(
          { workload: workload.name, seed, moment: m, state: n },
          moment.call,
          error,
        );
      }
    }
    // Lets promises settle that nobody waits for.
    await Promise.resolve();
  }
  return states;
}

/** One state in four dies again while it is opened, some of those once more. */
function depthOf(state: number): number {
  return state % 4 !== 3 ? 0 : state % 12 === 11 ? 2 : 1;
}
