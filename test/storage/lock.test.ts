/**
 * Goal: whatever openers do and wherever they die, at most one that lives has the store, and nothing
 * they leave keeps the next one out. Method: openers on the simulated disk are taken through every
 * interleaving of their calls, deaths included; then the same code on a real directory with real
 * processes and threads.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Worker, threadId } from 'node:worker_threads';
import { identify, isGone, markReleased } from '../../actors/process-identity.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import { TidemarkError } from '../../core/base/errors.ts';
import { acquireLock, releaseLock } from '../../core/storage/lock.ts';
import type { LockHolder } from '../../core/storage/lock.ts';
import type { Storage } from '../../core/storage/storage.ts';
import { FATE_KEPT, FATE_LOST, SimCrash, SimDisk } from '../sim/disk.ts';

const NEVER = (): boolean => false;
const ALWAYS = (): boolean => true;

/** Opener n; its nonce tells it in dumps and in isGone. */
function holder(n: number): LockHolder {
  return {
    hostName: 'here',
    bootId: 'boot',
    pidNamespace: 'pid:[1]',
    pid: 100 + n,
    processStartMs: 1_000 * n + 1,
    threadId: 0,
    nonce: `${n}`.repeat(8),
    directory: '/store',
    openedAtMs: n,
  };
}

function plantHolder(disk: SimDisk, path: string, n: number): void {
  disk.plant(path, new TextEncoder().encode(JSON.stringify(holder(n))));
}

function holderIn(disk: SimDisk, path: string): string {
  return /"nonce":"(.)/.exec(new TextDecoder().decode(disk.bytesOf(path)))?.[1] ?? '?';
}

/** Names and holders of everything at the root, in one line. */
function dump(disk: SimDisk): string {
  return disk
    .clone()
    .list('')
    .map((name) => `${name}=${holderIn(disk, name)}`)
    .join(' ');
}

function lockedBy(pid: number, own: boolean): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof TidemarkError, String(error));
    assert.equal(error.code, 'TIDEMARK_LOCKED');
    assert.equal(error.detail['pid'], pid);
    assert.equal(error.detail['own'], own);
    return true;
  };
}

function lockedUnread(error: unknown): boolean {
  assert.ok(error instanceof TidemarkError, String(error));
  assert.equal(error.code, 'TIDEMARK_LOCKED');
  assert.match(error.message, /does not say by whom/);
  return true;
}

// ------------------------------------------------------------------ every interleaving

class Suspended extends Error {}

/** What one call gave: to be handed back when the opener's code runs again from its start. */
type Given = {
  readonly value: unknown;
  readonly bytes: Uint8Array | undefined;
  readonly error: unknown;
};

type Opener = {
  readonly me: LockHolder;
  readonly breakLock: boolean;
  readonly given: readonly Given[];
  /** All that the code has seen, and so all that decides what it does next; without descriptors. */
  readonly key: string;
  readonly state: 'running' | 'holds' | 'locked out' | 'released' | 'dead';
  /** Acquired, and not given back yet. */
  readonly holds: boolean;
};

type World = { readonly disk: SimDisk; readonly openers: readonly Opener[] };

type Play = {
  /** Whoever holds gives the store back, as calls of its own. */
  readonly release: boolean;
  readonly deathsMax: number;
  /** Link answers this errno. */
  readonly noLinks?: string;
  /** An opener's calls on its own unnamed file are no steps of their own: fewer states, for more openers. */
  readonly ownFilesAside?: boolean;
};

/** Calls whose order between openers matters; what a descriptor leads to does not change, unless there are no links. */
const SHARED_CALLS = ['open', 'link', 'rename', 'unlink', 'list'];

/** Runs an opener from its start: through all that it has seen, one shared call more, then up to the next. */
function step(world: World, n: number, play: Play): World {
  const disk = world.disk.clone();
  const opener = world.openers[n];
  assert.ok(opener !== undefined);
  const given = opener.given.slice();
  let { key } = opener;
  let at = 0;
  let shared = 0;
  let isSuspended = false;
  const storage = new Proxy(disk, {
    get(target, name: keyof Storage) {
      return (...args: unknown[]): unknown => {
        const before = given[at];
        if (before !== undefined) {
          at++;
          if (before.bytes !== undefined) (args[1] as Uint8Array).set(before.bytes);
          if (before.error !== undefined) throw before.error;
          return before.value;
        }
        const isAside = play.ownFilesAside === true && args[0] === `LOCK.${opener.me.nonce}`;
        const isShared =
          play.noLinks !== undefined ||
          (SHARED_CALLS.includes(name) && (name === 'link' || !isAside));
        // Once suspended, also for what its `finally` blocks would do.
        if (isSuspended || (isShared && shared++ > 0)) {
          isSuspended = true;
          throw new Suspended();
        }
        let [value, bytes, error]: [unknown, Uint8Array | undefined, unknown] = [] as never;
        try {
          if (name === 'link' && play.noLinks !== undefined) {
            throw Object.assign(new Error('no links'), { code: play.noLinks, syscall: 'link' });
          }
          value = (target[name] as (...a: unknown[]) => unknown).apply(target, args);
          if (name === 'read') bytes = (args[1] as Uint8Array).slice();
        } catch (thrown) {
          error = thrown;
        }
        given.push({ value, bytes, error });
        at++;
        const seen =
          bytes === undefined ? '' : /"nonce":"(.)/.exec(new TextDecoder().decode(bytes))?.[1];
        const what = name === 'open' ? '' : JSON.stringify(value);
        key += ` ${name}:${(error as { code?: string } | undefined)?.code ?? `${what}${seen}`}`;
        if (error !== undefined) throw error;
        return value;
      };
    },
  });
  const isDead = (found: LockHolder): boolean =>
    !world.openers.some(
      (o) => o.me.nonce === found.nonce && !['dead', 'released'].includes(o.state),
    );
  let { state } = opener;
  let holds = false;
  try {
    // Judgements are part of what the code has seen: given again as they were.
    acquireLock(storage, opener.me, judge, opener.breakLock);
    holds = true;
    state = 'holds';
    if (play.release) {
      releaseLock(storage, opener.me);
      holds = false;
      state = 'released';
    }
  } catch (error) {
    if (error instanceof TidemarkError && error.code === 'TIDEMARK_LOCKED') state = 'locked out';
    else if (!(error instanceof Suspended)) throw error;
  }
  function judge(found: LockHolder): boolean {
    const before = given[at];
    if (before !== undefined) {
      at++;
      return before.value as boolean;
    }
    const value = isDead(found);
    given.push({ value, bytes: undefined, error: undefined });
    at++;
    key += ` judged:${value}`;
    return value;
  }
  const openers = world.openers.with(n, { ...opener, given, key, state, holds });
  return { disk, openers };
}

/** Every state that can be reached, each once. Returns their number and the final states. */
function explore(start: World, play: Play): { count: number; ends: World[] } {
  const seen = new Set<string>();
  const ends: World[] = [];
  const stack = [{ world: start, deaths: 0 }];
  for (;;) {
    const top = stack.pop();
    if (top === undefined) return { count: seen.size, ends };
    const { world, deaths } = top;
    const id = `${deaths} ${dump(world.disk)} ${world.openers.map((o) => `${o.state} ${o.key}`).join('|')}`;
    if (seen.has(id)) continue;
    seen.add(id);
    const holding = world.openers.filter((o) => o.holds);
    assert.ok(holding.length <= 1, `two hold the store: ${id}`);
    let running = 0;
    for (const [n, opener] of world.openers.entries()) {
      if (opener.state === 'running') {
        running++;
        stack.push({ world: step(world, n, play), deaths });
      }
      if (deaths < play.deathsMax && ['running', 'holds'].includes(opener.state)) {
        const openers = world.openers.with(n, { ...opener, state: 'dead', holds: false });
        stack.push({ world: { disk: world.disk, openers }, deaths: deaths + 1 });
      }
    }
    if (running === 0) ends.push(world);
  }
}

function worldOf(disk: SimDisk, count: number, breakLock = false): World {
  const openers: Opener[] = [];
  for (let n = 1; n <= count; n++) {
    openers.push({ me: holder(n), breakLock, given: [], key: '', state: 'running', holds: false });
  }
  return { disk, openers };
}

function staleStore(): SimDisk {
  const disk = new SimDisk();
  plantHolder(disk, 'LOCK', 9);
  return disk;
}

/** A store whose holder died, and two successors in the midst of their takeovers after him. */
function muchCrashedStore(): SimDisk {
  const disk = staleStore();
  plantHolder(disk, `LOCK.takeover.${holder(9).nonce}`, 8);
  plantHolder(disk, `LOCK.takeover.${holder(8).nonce}`, 7);
  plantHolder(disk, `LOCK.${holder(6).nonce}`, 6);
  return disk;
}

/** Somebody holds it or died at it, or else everybody could be kept out by nobody. And the next one gets in. */
function checkEnd(end: World): void {
  const { disk, openers } = end;
  const who = openers.filter((o) => o.state === 'holds');
  const quiet = openers.every((o) => o.state === 'locked out');
  assert.ok(!quiet, `all were locked out by each other: ${dump(disk)}`);
  const later = disk.processCrash();
  const next = holder(5);
  const isHolding = (found: LockHolder): boolean => who.some((o) => o.me.nonce === found.nonce);
  const [winner] = who;
  if (winner !== undefined) {
    const { pid } = winner.me;
    assert.throws(
      () => acquireLock(later, next, (found) => !isHolding(found), false),
      lockedBy(pid, false),
    );
  }
  acquireLock(later, next, ALWAYS, false);
  assert.equal(dump(later), 'LOCK=5');
  assert.deepEqual(later.openFiles, []);
  releaseLock(later, next);
  assert.equal(dump(later), '');
}

for (const [what, makeDisk, deathsMax] of [
  ['an empty store', () => new SimDisk(), 2],
  ['a dead holder', staleStore, 2],
  ['takeovers that crashed', muchCrashedStore, 1],
] as const) {
  test(`two openers that may die at ${what}: one holder in every interleaving`, (t) => {
    const { count, ends } = explore(worldOf(makeDisk(), 2), { release: false, deathsMax });
    ends.forEach(checkEnd);
    t.diagnostic(`${count} states, ${ends.length} ends`);
  });

  test(`two openers that release again at ${what}: one holder in every interleaving`, (t) => {
    const { count, ends } = explore(worldOf(makeDisk(), 2), { release: true, deathsMax: 1 });
    ends.forEach(checkEnd);
    t.diagnostic(`${count} states, ${ends.length} ends`);
  });

  test(`two openers without hard links at ${what}: one holder in every interleaving`, (t) => {
    const play = { release: false, deathsMax: 0, noLinks: 'EPERM' };
    const { count, ends } = explore(worldOf(makeDisk(), 2), play);
    for (const end of ends) assert.equal(end.openers.filter((o) => o.state === 'holds').length, 1);
    t.diagnostic(`${count} states, ${ends.length} ends`);
  });
}

test('three openers at a dead holder: one holder in every interleaving', (t) => {
  const play = { release: false, deathsMax: 0, ownFilesAside: true };
  const { count, ends } = explore(worldOf(staleStore(), 3), play);
  ends.forEach(checkEnd);
  t.diagnostic(`${count} states, ${ends.length} ends`);
});

test('two who break the lock of a living holder at the same moment: one gets it', () => {
  const play = { release: false, deathsMax: 0 };
  let start = worldOf(staleStore(), 2, true);
  // Both have looked (two names each) before either acts.
  for (const n of [0, 1, 0, 1]) start = step(start, n, play);
  const { ends } = explore(start, play);
  for (const end of ends) {
    assert.deepEqual(end.openers.map((o) => o.state).toSorted(), ['holds', 'locked out']);
  }
});

// ------------------------------------------------------------------ one opener, its crashes

/** The different disks that a crash before some call of `run` may leave: the process dies, or the power fails. */
function crashesOf(
  makeDisk: () => SimDisk,
  power: boolean,
  run: (disk: SimDisk) => void,
): SimDisk[] {
  const left = new Map<string, SimDisk>();
  const add = (disk: SimDisk): unknown => left.set(dump(disk), disk);
  const whole = makeDisk();
  const before = whole.calls;
  run(whole);
  for (let at = before; at <= whole.calls; at++) {
    const disk = makeDisk();
    disk.fault = ({ index }) => (index === at ? { kind: 'crash' } : undefined);
    try {
      run(disk);
    } catch (error) {
      assert.ok(error instanceof SimCrash, String(error));
    }
    add(disk.processCrash());
    const unitCount = power ? disk.units().length : 0;
    assert.ok(unitCount <= 8, 'few enough to try every subset');
    for (let kept = 0; kept < 1 << unitCount; kept++) {
      add(disk.powerLoss((_, i) => ((kept >> i) & 1 ? FATE_KEPT : FATE_LOST)));
    }
  }
  return [...left.values()];
}

function openAndClose(n: number): (disk: SimDisk) => void {
  return (disk) => {
    acquireLock(disk, holder(n), ALWAYS, false);
    releaseLock(disk, holder(n));
  };
}

test('a crash at any step of open and close keeps nobody out, nor does one of the successor', (t) => {
  let count = 0;
  for (const makeDisk of [() => new SimDisk(), staleStore]) {
    for (const left of crashesOf(makeDisk, true, openAndClose(1))) {
      for (const twice of crashesOf(() => left.clone(), false, openAndClose(2))) {
        acquireLock(twice, holder(3), ALWAYS, false);
        assert.equal(dump(twice), 'LOCK=3');
        count++;
      }
    }
  }
  t.diagnostic(`${count} disks`);
});

test('a living holder keeps others out, whatever else lies about', () => {
  const disk = muchCrashedStore();
  acquireLock(disk, holder(1), ALWAYS, false);
  plantHolder(disk, `LOCK.takeover.${holder(9).nonce}`, 9);
  plantHolder(disk, `LOCK.${holder(6).nonce}`, 6);
  assert.throws(() => acquireLock(disk, holder(2), NEVER, false), lockedBy(101, false));
  assert.equal(holderIn(disk, 'LOCK'), '1');
});

test('a failed open leaves no lock behind', () => {
  for (const [call, code] of [
    ['open', 'EMFILE'],
    ['write', 'ENOSPC'],
    ['fdatasync', 'EIO'],
    ['link', 'EIO'],
    ['rename', 'EACCES'],
  ]) {
    const disk = staleStore();
    disk.fault = (made) => (made.call === call ? { kind: 'throw', code: code ?? '' } : undefined);
    assert.throws(() => acquireLock(disk, holder(1), ALWAYS, false), { code });
    disk.fault = undefined;
    assert.equal(dump(disk), 'LOCK=9', call);
    assert.deepEqual(disk.openFiles, []);
  }
});

test('a short write is no lock', () => {
  const disk = new SimDisk();
  disk.fault = ({ call }) => (call === 'write' ? { kind: 'short', bytes: 10 } : undefined);
  assert.throws(() => acquireLock(disk, holder(1), NEVER, false), { code: 'ENOSPC' });
  assert.equal(dump(disk), '');
});

test('a LOCK that names nobody is taken by breakLock only', () => {
  const whole = JSON.stringify(holder(9));
  for (const text of [
    '',
    '\0'.repeat(100),
    'garbage',
    'null',
    '{}',
    whole.slice(0, -1),
    whole.replace('109', '-1'),
    whole.replace('109', '"109"'),
    whole.replace('99999999', '../../etc'),
  ]) {
    const disk = new SimDisk();
    disk.plant('LOCK', new TextEncoder().encode(text));
    assert.throws(() => acquireLock(disk, holder(1), ALWAYS, false), lockedUnread);
    acquireLock(disk, holder(1), NEVER, true);
    assert.equal(dump(disk), 'LOCK=1');
  }
});

test('claims that all name nobody are no circle', () => {
  const disk = new SimDisk();
  disk.plant('LOCK', new Uint8Array(0));
  disk.plant('LOCK.takeover.damaged-0-0', new Uint8Array(0));
  assert.throws(() => acquireLock(disk, holder(1), ALWAYS, false), lockedUnread);
  acquireLock(disk, holder(1), NEVER, true);
  assert.equal(dump(disk), 'LOCK=1');
});

test('a LOCK that cannot be read is taken by breakLock only', () => {
  const disk = staleStore();
  disk.fault = ({ call, path }) =>
    call === 'read' && path === 'LOCK' && holderIn(disk, 'LOCK') === '9'
      ? { kind: 'throw', code: 'EIO' }
      : undefined;
  assert.throws(() => acquireLock(disk, holder(1), ALWAYS, false), lockedUnread);
  acquireLock(disk, holder(1), NEVER, true);
  assert.equal(holderIn(disk, 'LOCK'), '1');
});

test('who was broken removes nothing of his successor', () => {
  const disk = new SimDisk();
  acquireLock(disk, holder(1), NEVER, false);
  acquireLock(disk, holder(2), NEVER, true);
  releaseLock(disk, holder(1));
  assert.equal(dump(disk), 'LOCK=2');
  releaseLock(disk, holder(2));
  releaseLock(disk, holder(2));
  assert.equal(dump(disk), '');
});

test('without hard links the same holds, and a crash between name and bytes needs breakLock', () => {
  for (const code of ['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS']) {
    const disk = staleStore();
    disk.fault = ({ call }) => (call === 'link' ? { kind: 'throw', code } : undefined);
    acquireLock(disk, holder(1), ALWAYS, false);
    assert.equal(dump(disk), 'LOCK=1');
    assert.throws(() => acquireLock(disk, holder(2), NEVER, false), lockedBy(101, false));
    releaseLock(disk, holder(1));
    assert.equal(dump(disk), '');
  }
  const disk = new SimDisk();
  disk.plant('LOCK', new Uint8Array(0));
  assert.throws(() => acquireLock(disk, holder(2), ALWAYS, false), lockedUnread);
});

test("a read-only file system is read without a lock, another owner's store only when nobody has it", () => {
  const disk = staleStore();
  const refuse = (code: string): void => {
    disk.fault = ({ mutation }) => (mutation >= 0 ? { kind: 'throw', code } : undefined);
  };
  refuse('EROFS');
  assert.throws(() => acquireLock(disk, holder(1), NEVER, false), { code: 'EROFS' });
  assert.equal(acquireLock(disk, holder(1), NEVER, false, true), false);
  for (const code of ['EACCES', 'EPERM']) {
    refuse(code);
    assert.throws(() => acquireLock(disk, holder(1), ALWAYS, false), { code });
    assert.throws(() => acquireLock(disk, holder(1), NEVER, false, true), lockedBy(109, false));
    assert.equal(acquireLock(disk, holder(1), ALWAYS, false, true), false);
    assert.equal(acquireLock(disk, holder(1), NEVER, true, true), false);
  }
  refuse('EIO');
  assert.throws(() => acquireLock(disk, holder(1), ALWAYS, false, true), { code: 'EIO' });
  // What was never locked is released without harm.
  disk.fault = undefined;
  releaseLock(disk, holder(1));
  assert.equal(dump(disk), 'LOCK=9');
});

// ------------------------------------------------------------------ real files, processes, threads

function inDirectory(run: (storage: NodeStorage, directory: string) => void | Promise<void>) {
  return async (): Promise<void> => {
    const directory = mkdtempSync(join(tmpdir(), 'tidemark-lock-'));
    try {
      await run(new NodeStorage(directory), directory);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  };
}

function lockAs(storage: Storage, me: LockHolder): void {
  acquireLock(storage, me, isGone, false);
}

test(
  'real files: a second open in one process fails and names it, until the first closes',
  inDirectory((storage, directory) => {
    const first = identify(directory);
    lockAs(storage, first);
    assert.deepEqual(readdirSync(directory), ['LOCK']);
    assert.deepEqual(JSON.parse(readFileSync(join(directory, 'LOCK'), 'utf8')), first);
    assert.equal(first.pid, process.pid);
    assert.equal(first.threadId, threadId);
    assert.throws(() => lockAs(storage, identify(directory)), lockedBy(process.pid, true));
    assert.throws(() => lockAs(storage, identify(directory)), /breakLock/);
    releaseLock(storage, first);
    assert.deepEqual(readdirSync(directory), []);
    const second = identify(directory);
    lockAs(storage, second);
    // Its LOCK could not be removed: this thread knows all the same.
    markReleased(second);
    lockAs(storage, identify(directory));
    assert.deepEqual(readdirSync(directory), ['LOCK']);
  }),
);

test(
  'real files: another thread of this process is kept out, also after the first thread ended',
  inDirectory(async (storage, directory) => {
    const worker = new Worker('', { eval: true });
    const { threadId: other } = worker;
    lockAs(storage, { ...identify(directory), threadId: other });
    await worker.terminate();
    assert.throws(
      () => lockAs(storage, identify(directory)),
      (error) => {
        assert.ok(lockedBy(process.pid, true)(error));
        return (error as TidemarkError).detail['threadId'] === other;
      },
    );
    acquireLock(storage, identify(directory), isGone, true);
  }),
);

test(
  'real files: a missing directory is said to be missing',
  inDirectory((_, directory) => {
    const storage = new NodeStorage(join(directory, 'none'));
    assert.throws(() => lockAs(storage, identify(directory)), { code: 'ENOENT' });
  }),
);

test(
  'real processes: a living one keeps the lock, a killed one loses it, reaped or not',
  inDirectory(async (storage, directory) => {
    const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
    const exited = once(child, 'exit');
    await once(child, 'spawn');
    const { pid } = child;
    assert.ok(pid !== undefined);
    const theirs = { ...identify(directory), pid, processStartMs: 0 };
    lockAs(storage, theirs);
    assert.throws(() => lockAs(storage, identify(directory)), lockedBy(pid, false));
    child.kill('SIGKILL');
    // The loop does not turn, so nobody reaps it: a zombie counts as gone where that can be seen.
    if (process.platform === 'linux') {
      const untilMs = performance.now() + 120_000;
      while (!isGone(theirs) && performance.now() < untilMs);
      assert.ok(isGone(theirs));
    }
    await exited;
    lockAs(storage, identify(directory));
  }),
);

test('a process is known by boot, number and start; one that we cannot see is never gone', () => {
  const me = identify('/store');
  assert.equal(isGone(me), false);
  assert.equal(identify('/store').processStartMs, me.processStartMs);
  assert.notEqual(identify('/store').nonce, me.nonce);
  // Somebody had our number before us.
  assert.equal(isGone({ ...me, processStartMs: me.processStartMs - 60_000 }), true);
  assert.equal(isGone({ ...me, processStartMs: 0 }), false);
  assert.equal(isGone({ ...me, threadId: me.threadId + 1 }), false);
  if (me.bootId !== '') assert.equal(isGone({ ...me, bootId: 'before' }), true);
  assert.equal(isGone({ ...me, bootId: '' }), false);
  const dead = { ...me, pid: 2 ** 22 + 1 };
  assert.equal(isGone(dead), true);
  assert.equal(isGone({ ...dead, hostName: 'elsewhere' }), false);
  assert.equal(isGone({ ...dead, pidNamespace: 'pid:[0]' }), false);
  assert.equal(isGone({ ...dead, bootId: 'before', hostName: 'elsewhere' }), false);
});
