/**
 * Goal: threads that die or hang end their engine, and nothing else: what they had open is closed, what
 * was acknowledged is there, close() and an aborted open() come to an end; so it is with the thread that
 * opened it. Method: the worker entry is one that does so when told to by a file.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { open } from '../../actors/index.ts';
import type { Engine, OpenOptions, Stall, TidemarkError } from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';
import { SimDisk } from '../sim/disk.ts';
import { Home, coded, inBothHosts, inHost, isQuicker, openFiles, turn, until } from './world.ts';

/** A store, and a worker entry that runs `code` first. Files in `told` tell its threads what to do. */
class Rig {
  readonly home: Home = new Home('threads');
  readonly store: string = join(this.home.directory, 'store');
  readonly #options: OpenOptions;

  constructor(code: string) {
    const file = join(this.home.directory, 'worker.mjs');
    const entry = new URL('../../dist/actors/worker.js', import.meta.url).href;
    const lines = [
      "import fs from 'node:fs';",
      "import { syncBuiltinESMExports } from 'node:module';",
      `const told = (what) => fs.existsSync(${JSON.stringify(this.home.directory)} + '/' + what);`,
      `const path = (what) => ${JSON.stringify(this.home.directory)} + '/' + what;`,
      code,
      'syncBuiltinESMExports();',
      `await import(${JSON.stringify(entry)});`,
    ];
    writeFileSync(file, lines.join('\n'));
    this.#options = { workerUrl: pathToFileURL(file) };
  }

  open(options: OpenOptions = {}): Promise<Engine> {
    return this.home.open({ ...this.#options, ...options }, this.store);
  }

  path(name: string): string {
    return join(this.home.directory, name);
  }

  tell(what: string): void {
    writeFileSync(this.path(what), '');
  }

  /** Whoever hangs in the pipe goes on, and whoever only now comes to it does not hang. */
  async openPipe(meanwhile: () => Promise<unknown>): Promise<void> {
    const fd = openSync(this.path('pipe'), 'r+');
    try {
      await meanwhile();
    } finally {
      closeSync(fd);
    }
  }

  /** What this process has open of the store. */
  get openFiles(): string[] {
    return openFiles().filter((path) => path.startsWith(this.store));
  }
}

async function withRig(code: string, use: (rig: Rig) => Promise<void>): Promise<void> {
  const rig = new Rig(code);
  try {
    await use(rig);
  } finally {
    await rig.home.end();
  }
}

/** Threads that turn their event loop exit when told to. */
const DIES = "setInterval(() => { if (told('die')) process.exit(1); }, 5);";

async function fill(engine: Engine): Promise<void> {
  const words = await engine.collection('words', {});
  for (let i = 0; i < 20; i++) await words.put(`${i}`, 'v');
  await engine.flush();
  await words.put('last', 'v');
}

async function checkFilled(engine: Engine): Promise<void> {
  assert.equal([...(await engine.collection('words')).keys()].length, 21);
}

test('what a thread that died had open is closed', async () => {
  await withRig(DIES, async (rig) => {
    const engine = await rig.open();
    let isTold = false;
    engine.once('poisoned', () => (isTold = true));
    await fill(engine);
    assert.ok(rig.openFiles.length >= 2, 'a part and a segment');
    rig.tell('die');
    await until('poisoned', () => isTold);
    assert.deepEqual(rig.openFiles, []);
    assert.match(engine.failure?.message ?? '', /exited/);
    rmSync(rig.path('die'));
    await checkFilled(await rig.open());
  });
});

const HANGS = `
  const { fdatasyncSync } = fs;
  fs.fdatasyncSync = (fd) => {
    if (told('hang')) {
      fs.writeFileSync(path('hangs'), '');
      fs.openSync(path('pipe'), 'r');
    }
    fdatasyncSync(fd);
  };`;

test('a sync that hangs is told while it does, and when it is over; then all is acknowledged', async () => {
  await withRig(HANGS, async (rig) => {
    execFileSync('mkfifo', [rig.path('pipe')]);
    const engine = await rig.open();
    await fill(engine);
    const told: Stall[] = [];
    engine.on('stalled', (stall) => told.push(stall));
    const words = await engine.collection('words');
    rig.tell('hang');
    const late = words.put('late', 'v');
    await until('it hangs', () => existsSync(rig.path('hangs')));
    rmSync(rig.path('hang'));
    await until('told', () => told.length > 0);
    const [{ since, ms, ...first }] = told;
    assert.deepEqual(first, { actor: 'durability', call: 'fdatasync', cause: 'disk', over: false });
    assert.ok(ms >= 1_000 && ms < 20_000, `told after ${ms} ms`);
    assert.ok(Math.abs(Date.now() - since) < 20_000, `since ${since}`);
    const [current] = engine.stats().stalls.current;
    assert.deepEqual([current.actor, current.since, current.over], ['durability', since, false]);
    assert.equal(words.hasSync('late'), false);
    assert.equal(engine.state, 'open');
    await rig.openPipe(() => late);
    await until('told that it is over', () => told.length > 1);
    assert.equal(told[1].over, true);
    assert.ok(told[1].ms >= ms, `over after ${told[1].ms} ms`);
    assert.deepEqual(engine.stats().stalls.current, []);
  });
});

test('close leaves a thread behind that hangs in a call to the disk', async () => {
  await withRig(DIES + HANGS, async (rig) => {
    execFileSync('mkfifo', [rig.path('pipe')]);
    const engine = await rig.open();
    await fill(engine);
    rig.tell('hang');
    const words = await engine.collection('words');
    const lost = assert.rejects(words.put('lost', 'v'), coded('TIDEMARK_OUTCOME_UNKNOWN'));
    await until('it hangs', () => existsSync(rig.path('hangs')));
    rig.tell('die');
    await until('poisoned', () => engine.state === 'poisoned');
    let isClosed = false;
    void engine.close().then(() => (isClosed = true));
    await until('close comes to an end', () => isClosed);
    await lost;
    for (const what of ['die', 'hang']) rmSync(rig.path(what));
    // It may still write: nobody else has the directory.
    await assert.rejects(rig.open(), coded('TIDEMARK_LOCKED', { own: true }));
    let next: Engine | undefined;
    await rig.openPipe(async () => {
      await until('it is gone', () => rig.openFiles.length === 0);
      while (next === undefined) {
        next = await rig.open().catch((error: TidemarkError) => {
          assert.equal(error.code, 'TIDEMARK_LOCKED');
          return undefined;
        });
        await turn();
      }
    });
    assert.ok(next !== undefined, 'it is open');
    const found = await next.collection('words');
    assert.equal(found.getSync('last'), 'v');
  });
});

test('an opening that is aborted ends at once, though its disk does not answer', async () => {
  const never = "const { open } = fs; fs.open = (...a) => { if (!told('mute')) open(...a); };";
  await withRig(never, async (rig) => {
    const begunAt = performance.now();
    const first = await rig.open();
    await fill(first);
    await first.close();
    const usualMs = performance.now() - begunAt;
    const threads = (): number => readdirSync('/proc/self/task').length;
    const before = threads();
    rig.tell('mute');
    const controller = new AbortController();
    const reason = new Error('enough');
    const opening = assert.rejects(rig.open({ signal: controller.signal }), reason);
    await until('it opens', () => existsSync(join(rig.store, 'LOCK')));
    controller.abort(reason);
    const startedAt = performance.now();
    await opening;
    // Whoever waited for that disk would give up after 5 s.
    assert.ok(performance.now() - startedAt < 2_000 + 10 * usualMs, 'at once');
    assert.ok(!existsSync(join(rig.store, 'LOCK')), 'no lock');
    assert.ok(threads() < before, 'no thread');
    assert.deepEqual(rig.openFiles, []);
    rmSync(rig.path('mute'));
    await checkFilled(await rig.open());
  });
});

function optionsOn(storage: SimDisk): OpenOptions {
  const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  return { threads: 0, memoryBytes: 64 * MiB, storage: { storage, clock } };
}

test('an aborted opening ends inline too', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const first = await open('/sim', optionsOn(disk));
  await fill(first);
  await first.close();
  const submit = disk.submit.bind(disk);
  disk.submit = () => {};
  const controller = new AbortController();
  const reason = new Error('enough');
  const { signal } = controller;
  const opening = assert.rejects(open('/sim', { ...optionsOn(disk), signal }), reason);
  for (let i = 0; i < 5; i++) await turn();
  controller.abort(reason);
  await opening;
  assert.deepEqual(disk.openFiles, []);
  disk.submit = submit;
  const next = await open('/sim', optionsOn(disk));
  await checkFilled(next);
  await next.close();
});

inBothHosts('a signal that aborts once the engine is open changes nothing', async (home) => {
  const controller = new AbortController();
  const engine = await home.open({ signal: controller.signal });
  controller.abort();
  await fill(engine);
  await checkFilled(engine);
});

test('more requests than a ring has room for are answered without delay', async () => {
  assert.ok(await isQuicker(900, answerMany), 'nobody waits for the next look');
});

async function answerMany(): Promise<number> {
  const disk = new SimDisk({ answerAtOnce: true });
  const engine = await open('/sim', optionsOn(disk));
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  const held: Parameters<SimDisk['submit']>[] = [];
  const submit = disk.submit.bind(disk);
  disk.submit = (...call) => void held.push(call);
  const flushes: Promise<void>[] = [];
  for (let round = 0; round < 5; round++) {
    for (let i = 0; i < 50; i++) flushes.push(engine.flush());
    for (let i = 0; i < 5; i++) await turn();
  }
  assert.ok(held.length > 0, 'the flush waits for its disk');
  disk.submit = submit;
  for (const call of held) submit(...call);
  const startedAt = performance.now();
  flushes.push(engine.flush());
  await Promise.all(flushes);
  const ms = performance.now() - startedAt;
  await engine.close();
  return ms;
}

// ---------------------------------------------------------------- the thread that opened it

/** What a thread is told, and tells: that it stands where it was to, and how many of its rows are acknowledged. */
const STANDS = 0;
const ACKNOWLEDGED = 1;

/** Opens the store, puts a row and runs `code` on a thread of its own; `stand()` never returns. */
function opener(home: Home, code: string): { worker: Worker; words: Int32Array } {
  const words = new Int32Array(new SharedArrayBuffer(8));
  const index = new URL('../../dist/actors/index.js', import.meta.url).href;
  const lines = [
    "import { workerData } from 'node:worker_threads';",
    `import { open } from ${JSON.stringify(index)};`,
    'const { words, directory, options } = workerData;',
    'const stand = () => { Atomics.store(words, 0, 1); Atomics.wait(words, 0, 1); };',
    'const engine = await open(directory, options);',
    "const rows = await engine.collection('rows', { key: 'u64' });",
    "await rows.put(0, 'row 0');",
    'Atomics.store(words, 1, 1);',
    code,
  ];
  const file = join(home.directory, 'opener.mjs');
  writeFileSync(file, lines.join('\n'));
  const workerData = { words, directory: join(home.directory, 'store'), options: home.options };
  return { worker: new Worker(pathToFileURL(file), { workerData }), words };
}

/** How many rows there are, from 0 on without a gap; of what the thread that is gone has left. */
async function rowsLeft(home: Home): Promise<number> {
  // Of a thread nobody can say for sure that it is gone.
  const engine = await home.open({ breakLock: true }, join(home.directory, 'store'));
  const rows = await engine.collection('rows', { key: 'u64' });
  const found = [...rows.entries()];
  for (const [n, row] of found.entries()) assert.deepEqual(row, [n, `row ${n}`]);
  assert.equal(engine.upper, found.length + 1, 'a transaction each, and the collection');
  await engine.close();
  return found.length;
}

inBothHosts(
  'of a thread that ends before its turn does, no commit of that turn was',
  async (home) => {
    const { worker, words } = opener(home, "void rows.put(1, 'row 1'); stand();");
    await until('it stands', () => Atomics.load(words, STANDS) === 1);
    await worker.terminate();
    assert.equal(await rowsLeft(home), 1);
  },
);

inHost(
  'threads',
  'what a thread has pushed stands, though it ends without having heard of it',
  async (home) => {
    const code = "void rows.put(1, 'row 1'); setImmediate(() => setImmediate(stand));";
    const { worker, words } = opener(home, code);
    await until('it stands', () => Atomics.load(words, STANDS) === 1);
    // The engine's threads go on without it.
    const segment = join(home.directory, 'store', 'wal', '0000000001.seg');
    await until('it is in the log', () => readFileSync(segment).includes('row 1'));
    await worker.terminate();
    assert.equal(await rowsLeft(home), 2);
  },
);

inBothHosts(
  'of a thread that ends at any moment all is there that was acknowledged',
  async (home) => {
    const code = `
    let next = 1;
    let done = 1;
    const go = () => rows.put(next, 'row ' + next++).then(() => { Atomics.store(words, 1, ++done); go(); });
    for (let i = 0; i < 50; i++) void go();`;
    for (const least of [1, 40, 700, 3_000]) {
      const { worker, words } = opener(home, code);
      await until('enough', () => Atomics.load(words, ACKNOWLEDGED) >= least);
      await worker.terminate();
      const acknowledged = Atomics.load(words, ACKNOWLEDGED);
      const left = await rowsLeft(home);
      assert.ok(left >= acknowledged, `${left} of ${acknowledged}`);
      assert.ok(left <= acknowledged + 50, `${left}, of which ${acknowledged} were acknowledged`);
      rmSync(join(home.directory, 'store'), { recursive: true });
    }
  },
);
