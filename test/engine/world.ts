/**
 * What the engine's tests share: a test run in both hosts over a directory of its own, errors told by
 * code, children that write or hold, what the process has open. Everything goes through the public
 * face.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import type { ChildProcess } from 'node:child_process';
import { mkdtempSync, readdirSync, readlinkSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Engine as EngineImplementation } from '../../actors/engine.ts';
import { open } from '../../actors/index.ts';
import type { Engine, ErrorCode, OpenOptions, TidemarkError } from '../../actors/index.ts';
import type { EngineConfig } from '../../actors/actor.ts';
import { checkOptions } from '../../actors/options.ts';
import { identify } from '../../actors/process-identity.ts';
import { MiB } from '../../core/base/limits.ts';

export type Host = 'inline' | 'threads';
export const HOSTS: readonly Host[] = ['inline', 'threads'];

/** Small, so that flushes and rotations happen; the same for all, so that a kit serves many tests. */
const MEMORY_BYTES: number = 64 * MiB;

/** A condition that does not come true within this, however busy the machine, is a failure, not a wait. */
const DEADLINE_MS = 120_000;
/** A turn that takes longer was not ours: the machine slept, or somebody has stopped the process. */
const TURN_MS_MAX = 1_000;

/** A store's directory, and engines over it that are closed when the test ends. */
export class Home {
  readonly host: Host;
  readonly directory: string;
  readonly #engines: Engine[] = [];

  constructor(host: Host) {
    this.host = host;
    this.directory = mkdtempSync(join(tmpdir(), 'tidemark-'));
  }

  get options(): OpenOptions {
    return {
      memoryBytes: MEMORY_BYTES,
      mergeThreads: 1,
      ...(this.host === 'inline' ? { threads: 0 } : {}),
    };
  }

  async open(options: OpenOptions = {}, directory: string = this.directory): Promise<Engine> {
    const engine = await open(directory, { ...this.options, ...options });
    this.#engines.push(engine);
    return engine;
  }

  /** With what no option says. */
  async openWith(config: Partial<EngineConfig>, options: OpenOptions = {}): Promise<Engine> {
    const checked = checkOptions(this.directory, { ...this.options, ...options });
    const engine = new EngineImplementation({
      ...checked,
      config: {
        ...checked.config,
        newLogId: randomBytes(16).toString('base64'),
        holder: identify(checked.config.directory),
        ...config,
      },
    });
    this.#engines.push(engine);
    await engine.opened(undefined);
    return engine;
  }

  async end(): Promise<void> {
    await Promise.all(this.#engines.map((engine) => engine.close()));
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** The same promise, kept inline and on threads. */
export function inBothHosts(name: string, run: (home: Home) => Promise<void>): void {
  for (const host of HOSTS) inHost(host, name, run);
}

export function inHost(host: Host, name: string, run: (home: Home) => Promise<void>): void {
  test(`${name} (${host})`, async () => {
    const home = new Home(host);
    try {
      await run(home);
    } finally {
      await home.end();
    }
  });
}

/** Looks again each turn until it is so. `waitsFor` tells more of what was waited for in vain. */
export async function until(
  what: string,
  isSo: () => boolean,
  waitsFor: () => string = () => '',
): Promise<void> {
  let waitedMs = 0;
  let lookedAt = performance.now();
  while (!isSo()) {
    const now = performance.now();
    waitedMs += Math.min(TURN_MS_MAX, now - lookedAt);
    lookedAt = now;
    if (waitedMs >= DEADLINE_MS) assert.fail(`never: ${what} ${waitsFor()}`);
    await turn();
  }
}

/**
 * Whether `run` takes less than `ms` in one of a few tries: what waits for a timer does so each time, what
 * the machine holds up it holds up now and then.
 */
export async function isQuicker(ms: number, run: () => Promise<number>): Promise<boolean> {
  for (let tries = 0; tries < 5; tries++) if ((await run()) < ms) return true;
  return false;
}

export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/**
 * Nothing to flush, merge, write or delete any more. Counters are published when the actors sleep, and before
 * a request is answered: of what was written since the last answer this knows only by and by.
 */
export async function quiet(engine: Engine): Promise<void> {
  let calm = 0;
  await until(
    'quiet',
    () => {
      const { workWaiting, sealed, keeper } = engine.stats();
      calm = workWaiting === 0 && sealed === 0 && keeper['jobsRunning'] === 0 ? calm + 1 : 0;
      return calm > 20;
    },
    () => JSON.stringify(engine.stats()),
  );
}

// ---------------------------------------------------------------- errors

/** For assert.throws and assert.rejects: a TidemarkError with this code, and these details. */
export function coded(
  code: ErrorCode,
  detail: Readonly<Record<string, unknown>> = {},
): (error: unknown) => true {
  return (error) => {
    const found = error as TidemarkError;
    assert.equal(found.code, code, String((error as Error)?.stack ?? error));
    for (const [name, value] of Object.entries(detail)) {
      assert.deepEqual(found.detail[name], value, `detail.${name} of: ${found.message}`);
    }
    return true;
  };
}

/** Misuse: a TypeError without a code, whose message says what was wrong. */
export function misuse(message: RegExp): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof TypeError, String((error as Error)?.stack ?? error));
    assert.equal((error as { code?: unknown }).code, undefined);
    assert.match(error.message, message);
    return true;
  };
}

// ---------------------------------------------------------------- the process

/** Where stores of the tests lie. */
const HOMES: string = join(realpathSync(tmpdir()), 'tidemark-');

/** What this process has open of stores. A thread that starts just now has its modules open. */
export function openFiles(): string[] {
  const files: string[] = [];
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      if (target.startsWith(HOMES)) files.push(target);
    } catch {
      // The listing's own descriptor.
    }
  }
  return files.toSorted();
}

/** A child that runs test/engine/child.ts; its lines, and how it ended. */
export class Child {
  readonly process: ChildProcess;
  readonly lines: string[] = [];
  errors = '';
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;

  constructor(...args: string[]) {
    const script = fileURLToPath(new URL('./child.ts', import.meta.url));
    this.process = spawn(process.execPath, ['--import', 'tsx', script, ...args], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const { stdout, stderr } = this.process;
    assert.ok(stdout !== null && stderr !== null);
    const reader = createInterface({ input: stdout });
    reader.on('line', (line) => this.lines.push(line));
    stderr.setEncoding('utf8').on('data', (text: string) => (this.errors += text));
    this.ended = new Promise((resolve, reject) => {
      this.process.on('error', reject);
      // 'close', not 'exit': its last lines have been read.
      this.process.on('close', (code, signal) => resolve({ code, signal }));
    });
  }

  /** Ended by itself, without an error. */
  async succeeded(): Promise<void> {
    const { code, signal } = await this.ended;
    assert.equal(`${code} ${signal}`, '0 null', this.errors);
  }

  async line(count: number): Promise<void> {
    await until(`line ${count} of a child: ${this.errors}`, () => this.lines.length >= count);
  }
}
