/**
 * The process of the flush soak: opens the store on threads, checks what it holds, then puts a few rows
 * into some collections and flushes them, over and over, with pauses of random length between; until it
 * is killed, or has had enough and closes. Started by rounds.ts.
 *
 * Exit code 3: what is there is not what must be there; the reason is on standard error.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { open } from '../../actors/index.ts';
import type { Collection } from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { keyOf, valueOf } from './plan.ts';
import type { Progress, Task } from './plan.ts';

type Rows = Collection<Buffer, Buffer>;

const ROWS_PER_FLUSH_MAX = 32;
const ROWS_LOOKED_AT = 100;
const PAUSE_MS_MAX = 10;
const EXIT_WRONG = 3;

function wrong(text: string): never {
  process.stderr.write(`${text}\n`);
  process.exit(EXIT_WRONG);
}

function isThere(rows: Rows, collection: number, row: number): boolean {
  const value = rows.getSync(keyOf(row));
  if (value === undefined) return false;
  if (!value.equals(valueOf(collection, row)))
    wrong(`collection ${collection}: row ${row} differs`);
  return true;
}

/** How many rows there are. Rows are put in order, so a gap is a loss. */
function countOf(rows: Rows, collection: number, task: Task, prng: Prng): number {
  const promised = task.promised[collection];
  let count = promised;
  while (isThere(rows, collection, count)) count++;
  const look = (row: number): void => {
    if (!isThere(rows, collection, row)) wrong(`collection ${collection}: row ${row} is lost`);
  };
  if (!task.isWhole) {
    for (let i = Math.min(promised, ROWS_LOOKED_AT); i > 0; i--) look(prng.below(promised));
    return count;
  }
  let found = 0;
  for (const _ of rows.entries()) found++;
  if (found !== count) wrong(`collection ${collection}: ${found} rows, not ${count}`);
  for (let row = 0; row < count; row++) look(row);
  return count;
}

const task = JSON.parse(process.argv[2] ?? '') as Task;
const prng = new Prng(task.seed);
const engine = await open(task.directory, { durability: 'buffered', memoryBytes: 64 * MiB });
const handles: Rows[] = [];
for (let i = 0; i < task.collections; i++) {
  handles.push(await engine.collection(`c${i}`, { key: 'buffer', value: 'buffer' }));
}
const rows = handles.map((handle, i) => countOf(handle, i, task, prng));

let flushes = 0;
let pushes = 0;
function tell(): Promise<void> {
  const { spine, collections } = engine.stats();
  const progress: Progress = {
    flushes,
    pushes,
    rows,
    flushedBytes: spine.flushedBytes,
    mergedBytes: spine.mergedBytesOut,
    runs: Math.max(0, ...collections.map(({ runs }) => runs.length)),
    debtBytes: spine.debtBytes,
    hardBlockMs: spine.hardBlockMs,
  };
  return new Promise((resolve) => {
    process.send!(progress, () => resolve());
  });
}

await tell();
while (flushes < task.flushes) {
  let written = 0;
  for (const [i, handle] of handles.entries()) {
    // One at the least, and most of them: a collection without rows is not part of a flush.
    if (written > 0 && prng.chance(0.2)) continue;
    const tx = engine.transaction();
    for (let n = 1 + prng.below(ROWS_PER_FLUSH_MAX); n > 0; n--) {
      tx.put(handle, keyOf(rows[i]), valueOf(i, rows[i]));
      rows[i]++;
    }
    void tx.commit();
    written++;
  }
  await engine.flush();
  flushes++;
  pushes += written;
  await tell();
  if (prng.chance(0.1)) await sleep(prng.below(PAUSE_MS_MAX));
}
await engine.close();
process.disconnect();
