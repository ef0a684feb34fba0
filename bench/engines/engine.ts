/**
 * What the suites ask of an engine. One driver per engine, each written the way that engine is
 * fastest; what a suite measures is whatever the driver does between call and return. A driver may
 * not do less than asked: it acknowledges a write when the task's durability class holds, and a
 * value it returns belongs to the caller (unless the configuration does not count).
 * Implemented in this folder; called by the suites, in the child, on its main thread.
 */
import type { Rows } from '../rows.ts';
import type { Configuration, DurabilityClass, EngineName, SuiteName, Task } from '../task.ts';

/** The closed loop: at most N transactions in flight, a new one for each that is acknowledged. */
export interface ClosedLoop {
  readonly inFlight: number;
  /** The next row to write, or -1 when time is up. */
  take(): number;
  /** So many transactions have been acknowledged. */
  done(count: number): void;
}

export interface Engine {
  /** One-operation transactions until the loop ends. */
  runLoop(loop: ClosedLoop, rows: Rows): Promise<void>;
  /** Rows `from` to `from + count - 1` as one transaction. */
  writeBatch(rows: Rows, from: number, count: number): Promise<unknown>;
  /** Returns when every acknowledged write is synced; at once in class `never`. */
  settle(): Promise<unknown>;
  /** Reads these keys and gives the sum of the first bytes of the values. All of them must be there. */
  readMany(keys: readonly Buffer[]): number | Promise<number>;
  get(key: Buffer): Uint8Array | undefined;
  /** All rows in key order. The bytes are valid until the visitor returns. */
  scan(visit: (key: Uint8Array, value: Uint8Array) => void): Promise<void>;
  /** Sorted runs that a read of one collection may have to visit, where the engine tells. */
  liveRuns?(): number;
  close(): Promise<unknown>;
  /** Figures only this engine can give (what its own counters say); merged into the outcome. */
  figures(): Record<string, number>;
}

export interface Driver {
  readonly name: EngineName;
  /** The version, or why the engine is absent, in words for the screen. */
  probe(root: string): Promise<{ version: string } | { absent: string }>;
  /** Ways to use it in this suite and class, none where it has no such class. */
  configurations(suite: SuiteName, durability: DurabilityClass): readonly Configuration[];
  open(task: Task): Promise<Engine>;
}

/** N independent callers, each waiting for its own acknowledgement before it writes again. */
export async function independentCallers(
  loop: ClosedLoop,
  write: (row: number) => PromiseLike<unknown>,
): Promise<void> {
  async function caller(): Promise<void> {
    for (let row = loop.take(); row >= 0; row = loop.take()) {
      await write(row);
      loop.done(1);
    }
  }
  await Promise.all(Array.from({ length: loop.inFlight }, caller));
}

/** N writes at once, then N again: for engines that are faster when they get them together. */
export async function waves(
  loop: ClosedLoop,
  writeAll: (wave: readonly number[]) => unknown,
): Promise<void> {
  for (;;) {
    const wave: number[] = [];
    for (let i = 0; i < loop.inFlight; i++) {
      const row = loop.take();
      if (row < 0) break;
      wave.push(row);
    }
    if (wave.length === 0) return;
    const written = writeAll(wave);
    // A synchronous engine is not made to wait for a microtask it has no use for.
    if (written instanceof Promise) await written;
    loop.done(wave.length);
  }
}

export function textOption(task: Task, name: string): string {
  const value = task.configuration.options[name];
  if (typeof value !== 'string') throw new TypeError(`configuration lacks the text ${name}`);
  return value;
}

export function numberOption(task: Task, name: string): number {
  const value = task.configuration.options[name];
  if (typeof value !== 'number') throw new TypeError(`configuration lacks the number ${name}`);
  return value;
}

export function flagOption(task: Task, name: string): boolean {
  const value = task.configuration.options[name];
  if (typeof value !== 'boolean') throw new TypeError(`configuration lacks the flag ${name}`);
  return value;
}
