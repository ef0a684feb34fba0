/**
 * Kits: an arena and the worker threads bound to it, leased to one engine at a time and reused by the
 * next, so that opening takes milliseconds. Comlink starts and stops them and does nothing else. A kit
 * whose engine failed is ended, never reused. Runs on the thread that opens engines.
 */
import { Worker } from 'node:worker_threads';
import { wrap } from 'comlink';
import type { Remote } from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { Arena } from '../core/shared/arena.ts';
import { DescriptorTable } from '../core/shared/descriptors.ts';
import { THREAD_LIMITS } from './thread-limits.ts';
import type { EngineConfig } from './actor.ts';
import { THREADS } from './topology.ts';
import type { KitThread } from './worker.ts';

/** How long an idle kit is kept for the next engine. */
const IDLE_KIT_MS = 10_000;

// Under a TypeScript loader this file is a .ts file and the workers are the compiled ones.
const here = new URL(import.meta.url);
const WORKER_URL: URL = here.pathname.endsWith('.ts')
  ? new URL('../dist/actors/worker.js', here)
  : new URL('./worker.js', here);

type Thread = { readonly worker: Worker; readonly remote: Remote<KitThread> };

export class Kit {
  readonly arena: Arena;
  /** What the threads and their pool have open. */
  readonly descriptors: DescriptorTable = new DescriptorTable();
  readonly #url: URL;
  readonly #threads: Thread[];
  #dead = false;
  #onDeath: ((error: Error) => void) | undefined;

  constructor(memoryBytes: number, url: URL) {
    this.arena = Arena.create(memoryBytes);
    this.#url = url;
    this.#threads = Array.from({ length: THREADS }, (_, i) => this.#spawn(i));
  }

  get bytes(): number {
    return this.arena.bytes;
  }

  get url(): string {
    return this.#url.href;
  }

  get dead(): boolean {
    return this.#dead;
  }

  #spawn(thread: number): Thread {
    const worker = new Worker(this.#url, {
      name: `tidemark-${thread}`,
      // Descriptors are shared by number among threads; a dying thread must not close a namesake.
      trackUnmanagedFds: false,
      // Nothing of ours needs the caller's flags, and a worker refuses many that are fine for a process.
      execArgv: [],
      resourceLimits: THREAD_LIMITS,
    });
    worker.on('error', (error) => this.#died(error));
    worker.on('exit', (code) => this.#died(new Error(`engine thread ${thread} exited (${code})`)));
    const remote = wrap<KitThread>(nodeEndpoint(worker));
    worker.unref();
    return { worker, remote };
  }

  #died(error: Error): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#onDeath?.(error);
  }

  /** Runs an engine's actors on the kit's threads; resolves when all of them have ended. */
  async run(config: EngineConfig, onDeath: (error: Error) => void): Promise<void> {
    this.#onDeath = onDeath;
    const death = new Promise<void>((resolve) => {
      this.#onDeath = (error) => {
        onDeath(error);
        resolve();
      };
    });
    const runs = this.#threads.map((thread, i) => {
      const run = thread.remote.run(i, this.arena.buffer, config, this.descriptors.buffer);
      // Asking re-refs the port (nodejs/node#53036); what is pending keeps the process alive, not this.
      thread.worker.unref();
      return run;
    });
    await Promise.race([Promise.all(runs), death]);
    this.#onDeath = undefined;
  }

  /** Resolves when the threads are gone: one in a call to the disk goes when that returns. */
  async end(): Promise<void> {
    this.#dead = true;
    await Promise.all(this.#threads.map((thread) => thread.worker.terminate()));
  }
}

let idle: Kit | undefined;
let idleTimer: NodeJS.Timeout | undefined;

/** An idle kit of that size, or a new one. */
export function leaseKit(memoryBytes: number, workerUrl: URL | undefined): Kit {
  const url = workerUrl ?? WORKER_URL;
  const kit = idle;
  if (kit !== undefined && !kit.dead && kit.bytes === memoryBytes && kit.url === url.href) {
    idle = undefined;
    clearTimeout(idleTimer);
    return kit;
  }
  return new Kit(memoryBytes, url);
}

/** Takes a kit back whose engine closed in order; one is kept, for a while. */
export function returnKit(kit: Kit): void {
  if (kit.dead) {
    void kit.end();
    return;
  }
  const former = idle;
  idle = kit;
  clearTimeout(idleTimer);
  idleTimer = setTimeout(() => {
    const kept = idle;
    idle = undefined;
    void kept?.end();
  }, IDLE_KIT_MS).unref();
  void former?.end();
}
