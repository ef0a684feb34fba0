/**
 * Writes as many tenants as a time holds and measures what that costs the thread that writes them.
 * Delay is that of the event loop beyond the same figure of an idle loop. Called by main.ts.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import type { Engine } from '../../actors/index.ts';
import { CommitWindow } from './commit-window.ts';
import type { Repository } from './git.ts';
import { checkTree, inFlightMax } from './replay.ts';
import { TENANT_BYTES, tenantRange } from './rows.ts';
import type { Collections } from './rows.ts';
import { commitTenantRevision } from './tenants.ts';
import type { HeldRevision } from './tenants.ts';

const idleMs = 500;
const memorySampleMs = 50;
const delayResolutionMs = 1;

export interface Delay {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

export interface Loaded {
  readonly transactions: number;
  readonly operations: number;
  /** Whole ones; the one that time ran out on is not counted. */
  readonly tenants: number;
  readonly ms: number;
  readonly idle: Delay;
  readonly busy: Delay;
  readonly rssBytesMax: number;
  readonly heapBytesMax: number;
}

export async function load(
  engine: Engine,
  collections: Collections,
  history: readonly HeldRevision[],
  seconds: number,
  onProgress: (elapsedMs: number, transactions: number) => void,
): Promise<Loaded> {
  const idle = await measureDelay(() => delay(idleMs));

  let rssBytesMax = 0;
  let heapBytesMax = 0;
  const sample = (): void => {
    const { rss, heapUsed } = process.memoryUsage();
    rssBytesMax = Math.max(rssBytesMax, rss);
    heapBytesMax = Math.max(heapBytesMax, heapUsed);
  };
  sample();
  const sampling = setInterval(sample, memorySampleMs);

  let sequence = 0;
  let transactions = 0;
  let operations = 0;
  let ms = 0;
  try {
    const busy = await measureDelay(async () => {
      const startAtMs = performance.now();
      const endAtMs = startAtMs + seconds * 1000;
      const window = new CommitWindow(inFlightMax, () => {
        transactions++;
      });
      while (performance.now() < endAtMs) {
        if (window.full) {
          await window.take();
          onProgress(performance.now() - startAtMs, transactions);
        }
        operations += history[sequence % history.length].keys.length + 1;
        window.push(commitTenantRevision(engine, collections, history, sequence++));
      }
      await window.drain();
      ms = performance.now() - startAtMs;
    });
    sample();
    const tenants = Math.floor(transactions / history.length);
    return { transactions, operations, tenants, ms, idle, busy, rssBytesMax, heapBytesMax };
  } finally {
    clearInterval(sampling);
  }
}

/** The first, the last whole and the one that time ran out on are what git says; answers the rows compared. */
export async function checkTenants(
  repository: Repository,
  { files }: Collections,
  history: readonly HeldRevision[],
  transactions: number,
): Promise<number> {
  const whole = Math.floor(transactions / history.length);
  const rest = transactions % history.length;
  const lastTree = history[history.length - 1].row.tree;
  const chosen = new Map<number, string>();
  if (whole > 0) chosen.set(0, lastTree).set(whole - 1, lastTree);
  if (rest > 0) chosen.set(whole, history[rest - 1].row.tree);
  let rows = 0;
  for (const [tenant, tree] of chosen) {
    rows += await checkTree(repository, tree, {
      files,
      prefixBytes: TENANT_BYTES,
      range: tenantRange(tenant),
      name: `tenant ${tenant}`,
    });
  }
  return rows;
}

async function measureDelay(work: () => Promise<unknown>): Promise<Delay> {
  const histogram = monitorEventLoopDelay({ resolution: delayResolutionMs });
  histogram.enable();
  try {
    await work();
  } finally {
    histogram.disable();
  }
  return {
    p50Ms: toMs(histogram.percentile(50)),
    p99Ms: toMs(histogram.percentile(99)),
    maxMs: toMs(histogram.max),
  };
}

function toMs(nanoseconds: number): number {
  return nanoseconds / 1e6;
}
