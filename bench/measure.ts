/**
 * The instruments: wall and processor time, delay of the event loop, memory, and "quiet". Each
 * measures this process from inside, the same way for every engine. Called by the suites, in the
 * child, on its main thread.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { MEMORY_BYTES } from './task.ts';

/** Processor seconds of all threads of this process, user and system. */
export function cpuSecondsNow(): number {
  const usage = process.resourceUsage();
  return (usage.userCPUTime + usage.systemCPUTime) / 1e6;
}

/** A mark in wall and processor time. */
export class Mark {
  readonly atMs: number = performance.now();
  readonly cpuSeconds: number = cpuSecondsNow();
}

/** A place in an ascending list, 0 to 1. */
export function quantile(ascending: readonly number[], share: number): number {
  if (ascending.length === 0) return Number.NaN;
  const place = (ascending.length - 1) * share;
  const below = Math.floor(place);
  const above = Math.min(below + 1, ascending.length - 1);
  return ascending[below] + (ascending[above] - ascending[below]) * (place - below);
}

export function median(values: readonly number[]): number {
  return quantile(values.toSorted(compareNumbers), 0.5);
}

export function compareNumbers(a: number, b: number): number {
  return a - b;
}

const LOOP_PERIOD_MS = 5;
const LOOP_SAMPLES_MAX = 1_000_000;

/**
 * How late the event loop is for somebody who arrives at any time. A timer is due every 5 ms; when
 * one comes D late, the visitors who would have come meanwhile are counted too (D-5, D-10, ...).
 * Without them a loop blocked for a second would leave one sample, and its p99 would look idle.
 */
export class LoopDelay {
  #samples: number[] = [];
  #expectedAtMs = 0;
  #timer: NodeJS.Timeout | undefined;

  start(): void {
    this.#samples = [];
    this.#arm();
  }

  #arm(): void {
    this.#expectedAtMs = performance.now() + LOOP_PERIOD_MS;
    this.#timer = setTimeout(() => {
      this.#record();
      this.#arm();
    }, LOOP_PERIOD_MS);
  }

  #record(): void {
    let delayMs = performance.now() - this.#expectedAtMs;
    do {
      if (this.#samples.length < LOOP_SAMPLES_MAX) this.#samples.push(Math.max(0, delayMs));
      delayMs -= LOOP_PERIOD_MS;
    } while (delayMs > 0);
  }

  /** Stops, and gives p99 and maximum in milliseconds. */
  stop(): { p99Ms: number; maxMs: number } {
    // A loop still blocked when the work ends has a visitor waiting: count the overdue timer. Of work that was
    // over before the first was due somebody would have waited not at all.
    if (performance.now() > this.#expectedAtMs || this.#samples.length === 0) this.#record();
    clearTimeout(this.#timer);
    const ascending = this.#samples.toSorted(compareNumbers);
    return { p99Ms: quantile(ascending, 0.99), maxMs: ascending.at(-1) ?? Number.NaN };
  }
}

function statusBytes(field: string): number {
  try {
    const line = readFileSync('/proc/self/status', 'utf8').match(
      new RegExp(`^${field}:\\s+(\\d+) kB`, 'm'),
    );
    return line === null ? Number.NaN : Number(line[1]) * 1024;
  } catch {
    return Number.NaN; // not Linux: that figure is missing, the others are not
  }
}

/** Resident memory that belongs to no file, so that a mapped database is not counted as memory. */
export function anonymousBytes(): number {
  return statusBytes('RssAnon') + statusBytes('RssShmem');
}

/**
 * Resident bytes of the one mapping as large as the arena: what of it has been touched. The kernel
 * is asked, not the engine.
 */
export function arenaTouchedBytes(): number {
  let text: string;
  try {
    text = readFileSync('/proc/self/smaps', 'latin1');
  } catch {
    return 0;
  }
  let touched = 0;
  let inside = false;
  for (const line of text.split('\n')) {
    const head = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line);
    if (head !== null) {
      inside = Number.parseInt(head[2], 16) - Number.parseInt(head[1], 16) === MEMORY_BYTES;
    } else if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) {
      inside = false;
    } else if (inside && line.startsWith('Rss:')) {
      touched += Number(/(\d+) kB/.exec(line)?.[1] ?? 0) * 1024;
    }
  }
  return touched;
}

const MEMORY_PERIOD_MS = 100;

/** Follows resident memory and the heap while something runs. */
export class MemoryWatch {
  readonly #heapBytes: number[] = [];
  rssBytesMax = 0;
  anonymousBytesMax = 0;
  #timer: NodeJS.Timeout | undefined;

  start(): void {
    this.#sample();
    this.#timer = setInterval(() => this.#sample(), MEMORY_PERIOD_MS);
  }

  #sample(): void {
    const usage = process.memoryUsage();
    this.#heapBytes.push(usage.heapUsed + usage.external);
    this.rssBytesMax = Math.max(this.rssBytesMax, usage.rss);
    this.anonymousBytesMax = Math.max(this.anonymousBytesMax, anonymousBytes());
  }

  /**
   * Stops, and says by how much the floor of the heap rose from the second quarter of the time to
   * the last. The floor is what collections leave behind; the first quarter is warming up.
   */
  stop(): { heapGrowthBytes: number } {
    this.#sample();
    clearInterval(this.#timer);
    const quarter = Math.max(1, Math.floor(this.#heapBytes.length / 4));
    const early = this.#heapBytes.slice(quarter, 2 * quarter);
    const late = this.#heapBytes.slice(-quarter);
    if (early.length === 0) return { heapGrowthBytes: Number.NaN };
    return { heapGrowthBytes: Math.min(...late) - Math.min(...early) };
  }
}

const QUIET_PERIOD_MS = 50;
const QUIET_CPU_SHARE = 0.04;
const QUIET_MS_MAX = 300_000;

/** Bytes this process has dirtied of files, or written past the page cache: what the kernel counted. */
export function writtenBytes(): number {
  try {
    return Number(/^write_bytes: (\d+)/m.exec(readFileSync('/proc/self/io', 'utf8'))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/**
 * Waits until this process has neither computed nor written for `quietMs`, and gives the instant at
 * which that began. Works from outside, so that no engine has to be believed.
 */
export async function quietAtMs(quietMs: number): Promise<number> {
  const startAtMs = performance.now();
  let sinceMs = startAtMs;
  let lastAtMs = startAtMs;
  let lastCpu = cpuSecondsNow();
  let lastWritten = writtenBytes();
  while (performance.now() - sinceMs < quietMs && performance.now() - startAtMs < QUIET_MS_MAX) {
    await sleep(QUIET_PERIOD_MS);
    const nowMs = performance.now();
    const cpu = cpuSecondsNow();
    const written = writtenBytes();
    const share = (cpu - lastCpu) / ((nowMs - lastAtMs) / 1000);
    if (share > QUIET_CPU_SHARE || written !== lastWritten) sinceMs = nowMs;
    lastAtMs = nowMs;
    lastCpu = cpu;
    lastWritten = written;
  }
  return sinceMs;
}
