/**
 * Reads of the past against reads of now, in one store: rows are written, then a tenth of them (recent)
 * or all (old) once more, and the history keeps both. One contender reads all rows as of the offset
 * between the two passes, the other as they are now. Ours alone: no peer has a past. The row cache
 * keeps what was read, of whatever time, and holds a part of the rows: both contenders read from memory
 * and from files. Not measured: a past that nobody has read before, which is files alone. Called by
 * run-one.ts.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { quietAtMs } from '../measure.ts';
import { Digest, KEY_BYTES, random, Rows } from '../rows.ts';
import { MEMORY_BYTES, WRITE_BUFFER_BYTES } from '../task.ts';
import type { Outcome, Task } from '../task.ts';
import { GROUP_READS, timedReads } from './reads.ts';

type Tidemark = typeof import('../../actors/index.ts');

export async function asOf(task: Task): Promise<Outcome> {
  const name: string = 'tidemark';
  const module: Tidemark = await import(name);
  const handle = await module.open(task.directory, {
    durability: 'buffered',
    memoryBytes: MEMORY_BYTES,
    memtableBytes: WRITE_BUFFER_BYTES,
  });
  const collection = await handle.collection('rows', {
    key: 'buffer',
    value: 'buffer',
    history: Infinity,
  });
  const rows = new Rows(task.seed);
  // The second pass gives each row the value of another.
  const newer = new Rows(task.seed + 1);
  const changed = task.suite === 'as-of-old' ? task.rowCount : Math.ceil(task.rowCount / 10);
  let between = 0;
  for (const [values, count] of [
    [rows, task.rowCount],
    [newer, changed],
  ] as const) {
    between = handle.upper - 1;
    for (let from = 0; from < count; from += task.batchRows) {
      const transaction = handle.transaction();
      const to = Math.min(from + task.batchRows, count);
      for (let row = from; row < to; row++) {
        transaction.put(collection, rows.key(row), values.value(row));
      }
      void transaction.commit();
      await handle.room();
      await turn();
    }
    await handle.flush();
  }
  await quietAtMs(task.warmSeconds * 1000);

  const isPast = task.contender === 'as-of';
  const options = isPast ? { asOf: between } : {};
  const value = (row: number): Buffer => (isPast || row >= changed ? rows : newer).value(row);
  const digest = new Digest();
  const expected = new Digest();
  const key = Buffer.alloc(KEY_BYTES);
  for (let row = 0; row < task.rowCount; row++) {
    rows.keyInto(row, key);
    expected.add(key, value(row));
    const found = collection.getSync(key, options);
    if (found !== undefined) digest.add(key, found);
  }

  const next = random(task.seed);
  const keys = Array.from({ length: GROUP_READS }, () => Buffer.alloc(KEY_BYTES));
  const timed = await timedReads(
    task,
    () => {
      for (const each of keys) rows.keyInto(next() % task.rowCount, each);
    },
    () => {
      let sum = 0;
      for (const each of keys) sum += collection.getSync(each, options)![0];
      return sum;
    },
  );
  await handle.close();
  return { ...timed, digest: digest.toString(), digestExpected: expected.toString() };
}
