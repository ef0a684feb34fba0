/**
 * What the disk gives to anybody: a bare loop of 4 KiB + fdatasync, once over blocks that are already
 * written and once appending. Beside it, a durable figure can be read as a share of the possible;
 * run before and after a round, it also tells whether the disk changed meanwhile. Called by
 * run-one.ts.
 */
import { closeSync, fdatasyncSync, fsyncSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { compareNumbers, Mark, quantile } from '../measure.ts';
import type { Outcome, Task } from '../task.ts';

const BLOCK_BYTES = 4096;
const FILE_BYTES = 16 << 20;

export function limit(task: Task): Outcome {
  const append = task.configuration.name === 'append';
  const block = Buffer.alloc(BLOCK_BYTES, 0x5a);
  const file = openSync(join(task.directory, 'limit'), 'w');
  try {
    if (!append) {
      const zeroes = Buffer.alloc(1 << 20);
      for (let at = 0; at < FILE_BYTES; at += zeroes.length) writeSync(file, zeroes);
      fsyncSync(file);
    }
    let at = 0;
    let start = new Mark();
    let warm = true;
    const syncMs: number[] = [];
    for (;;) {
      const beforeMs = performance.now();
      if (warm && beforeMs - start.atMs >= task.warmSeconds * 1000) {
        warm = false;
        start = new Mark();
        syncMs.length = 0;
      }
      if (!warm && beforeMs - start.atMs >= task.seconds * 1000) break;
      block.writeDoubleLE(beforeMs, 0);
      writeSync(file, block, 0, BLOCK_BYTES, at);
      fdatasyncSync(file);
      syncMs.push(performance.now() - beforeMs);
      at += BLOCK_BYTES;
      if (!append && at === FILE_BYTES) at = 0;
    }
    const end = new Mark();
    const ascending = syncMs.toSorted(compareNumbers);
    return {
      operations: syncMs.length,
      seconds: (end.atMs - start.atMs) / 1000,
      cpuSeconds: end.cpuSeconds - start.cpuSeconds,
      figures: {
        syncP50Us: quantile(ascending, 0.5) * 1000,
        syncP99Us: quantile(ascending, 0.99) * 1000,
      },
      digest: '',
      digestExpected: '',
    };
  } finally {
    closeSync(file);
  }
}
