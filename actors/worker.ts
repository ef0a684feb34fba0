/**
 * A kit thread's entry: waits to be given an engine, runs its actors until it ends, waits again.
 * Reached through Comlink for nothing else.
 */
import { parentPort } from 'node:worker_threads';
import { expose } from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import type { Piscina } from 'piscina';
import { invariant } from '../core/base/assert.ts';
import type { Bell } from '../core/shared/bell.ts';
import { DescriptorTable } from '../core/shared/descriptors.ts';
import type { EngineConfig } from './actor.ts';
import { makeContext, poison, runBlocking, runTurning, systemClock } from './host.ts';
import { backgroundActors, writeActors } from './house.ts';
import { PiscinaPool, makePressing, makeWorkers } from './job-pool.ts';
import type { WorkerTask } from './job-pool.ts';
import { NodeStorage } from './node-storage.ts';
import { THREAD_BACKGROUND, THREAD_WRITE } from './topology.ts';

const here = new URL(import.meta.url);
const MERGE_WORKER_URL: URL = new URL('./merge-worker.js', here);

/** So often is looked whether the disk has answered, after a failure. */
const STORAGE_WAITS = 300;
const STORAGE_WAIT_MS = 1;

function after(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The pool's threads stay with this thread from engine to engine. */
let workers: Piscina<WorkerTask, unknown> | undefined;
/** Others for flushes and the log's room. */
let pressing: Piscina<WorkerTask, unknown> | undefined;
let workerCount = 0;

const kitThread = {
  /** Runs one thread's share of an engine; resolves when the engine is closed or poisoned. */
  async run(
    thread: number,
    arena: SharedArrayBuffer,
    config: EngineConfig,
    descriptors: SharedArrayBuffer,
  ): Promise<void> {
    let bell: Bell | undefined;
    const wake = (): void => bell?.ring();
    const table = new DescriptorTable(descriptors);
    const storage = new NodeStorage(config.directory, wake, table);
    const context = makeContext(arena, config, storage, systemClock);
    bell = context.threadBells[thread];
    invariant(bell !== undefined, 'a thread of the drawing', thread);
    try {
      if (thread === THREAD_WRITE) {
        runBlocking(context, writeActors(context), bell);
        return;
      }
      invariant(thread === THREAD_BACKGROUND, 'a thread of the drawing', thread);
      if (workers === undefined || workerCount !== config.mergeThreads) {
        await workers?.destroy();
        // Two at the least: small jobs must not wait behind a large one.
        workerCount = config.mergeThreads;
        workers = makeWorkers(MERGE_WORKER_URL, Math.max(2, workerCount));
      }
      pressing ??= makePressing(MERGE_WORKER_URL);
      const { directory } = config;
      const pool = new PiscinaPool(workers, pressing, arena, directory, descriptors, wake);
      await runTurning(context, backgroundActors(context, pool), bell);
      // What a program opens after a failure is noted when it ends: nobody else would know of it.
      for (let i = 0; i < STORAGE_WAITS && storage.running > 0; i++) await after(STORAGE_WAIT_MS);
    } catch (error) {
      poison(context, error);
    }
  },
};

export type KitThread = typeof kitThread;

invariant(parentPort !== null, 'this file is the entry of a worker thread');
expose(kitThread, nodeEndpoint(parentPort));
