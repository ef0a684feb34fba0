/**
 * Merging alone, one thread: 8 runs of random keys (16 bytes, values of 100) become one, uncompressed;
 * beside it classic-level's compactRange over the same rows, written in the same 8 portions, if it is
 * installed. Both read from the page cache, write and sync. Run it with
 * `node --import tsx bench/micro/merge.ts [rows] [rounds]`. Goal: 1.7 times compactRange.
 *
 * Not measured: rings, workers, the keeper. LevelDB may have compacted some of it before it is asked to:
 * its write buffer holds a portion, and what it does until the last is written is not timed.
 */
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NodeStorage } from '../../actors/node-storage.ts';
import { MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED, OP_PUT } from '../../core/base/update.ts';
import type { RowCursor } from '../../core/base/cursor.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import { PartFiles } from '../../core/spine/part-files.ts';
import { partRef } from '../../core/spine/part-format.ts';
import type { PartInfo } from '../../core/spine/part-format.ts';
import { PART_SHAPE, PartWriter } from '../../core/spine/part-writer.ts';
import { probePeer, requirePeer } from '../engines/peer.ts';

const ROWS = Number(process.argv[2] ?? 1_000_000);
const ROUNDS = Number(process.argv[3] ?? 3);
const RUNS = 8;
const KEY_BYTES = 16;
const VALUE_BYTES = 100;
const RAW_BYTES: number = ROWS * (KEY_BYTES + VALUE_BYTES);
const root: string = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** Row numbers of each portion in the order of their keys, and the bytes of all rows. */
function makeRows(): { keys: Buffer; values: Buffer; portions: number[][] } {
  const prng = new Prng(1);
  const keys = Buffer.alloc(ROWS * KEY_BYTES);
  const values = Buffer.alloc(ROWS * VALUE_BYTES);
  prng.fill(keys);
  prng.fill(values);
  const each = Math.ceil(ROWS / RUNS);
  const portions = Array.from({ length: RUNS }, (_, run) => {
    const rows = Array.from(
      { length: Math.min(each, ROWS - run * each) },
      (_row, i) => run * each + i,
    );
    return rows.sort((a, b) =>
      keys.compare(keys, b * KEY_BYTES, (b + 1) * KEY_BYTES, a * KEY_BYTES, (a + 1) * KEY_BYTES),
    );
  });
  return { keys, values, portions };
}

const { keys, values, portions } = makeRows();

function writeRun(storage: NodeStorage, first: number, rows: readonly number[]): PartInfo[] {
  const files = new PartFiles(storage, { first, count: 100 });
  const writer = new PartWriter(files, PART_SHAPE);
  writer.begin(KIND_KEYED);
  const row = {
    valid: true,
    keyBytes: keys,
    keyOffset: 0,
    keyLength: KEY_BYTES,
    time: 0,
    kind: OP_PUT,
    diff: 1,
    valueLength: VALUE_BYTES,
    valueBytes: values,
    valueOffset: 0,
  };
  for (const n of rows) {
    row.keyOffset = n * KEY_BYTES;
    row.valueOffset = n * VALUE_BYTES;
    row.time = n;
    writer.add(row as unknown as RowCursor);
  }
  const parts = writer.end();
  files.finish();
  return parts;
}

function mergeOurs(directory: string): number {
  mkdirSync(join(directory, 'parts'));
  const storage = new NodeStorage(directory);
  const runs = portions.map((rows, i) => writeRun(storage, 1 + 100 * i, rows));
  const start = performance.now();
  const job = new MergeJob(storage, {
    jobId: 1,
    collection: 1,
    kind: KIND_KEYED,
    inputs: runs.map((parts, i) => ({
      bid: i + 1,
      desc: { lower: i, upper: i + 1, since: 0 },
      runs: [{ runId: i + 1, parts: parts.map(partRef) }],
    })),
    since: ROWS,
    oldest: true,
    outFiles: { first: 5_000, count: 100 },
  });
  while (job.step(4_096));
  const ms = performance.now() - start;
  if (job.result().len !== ROWS) throw new Error(`${job.result().len} rows are left of ${ROWS}`);
  return ms;
}

interface Level {
  open(): Promise<void>;
  close(): Promise<void>;
  batch(operations: { type: 'put'; key: Buffer; value: Buffer }[]): Promise<void>;
  compactRange(from: Buffer, to: Buffer): Promise<void>;
}

async function mergeLevel(directory: string): Promise<number> {
  const { ClassicLevel } = requirePeer(root, 'classic-level') as {
    ClassicLevel: new (location: string, options: Record<string, unknown>) => Level;
  };
  const level = new ClassicLevel(directory, {
    keyEncoding: 'buffer',
    valueEncoding: 'buffer',
    compression: false,
    writeBufferSize: Math.ceil((RAW_BYTES / RUNS) * 1.2),
    maxFileSize: 12 * MiB,
    blockSize: 16_384,
  });
  await level.open();
  for (const rows of portions) {
    for (let i = 0; i < rows.length; i += 1_000) {
      await level.batch(
        rows.slice(i, i + 1_000).map((n) => ({
          type: 'put',
          key: keys.subarray(n * KEY_BYTES, (n + 1) * KEY_BYTES),
          value: values.subarray(n * VALUE_BYTES, (n + 1) * VALUE_BYTES),
        })),
      );
    }
  }
  const start = performance.now();
  await level.compactRange(Buffer.alloc(0), Buffer.alloc(KEY_BYTES + 1, 0xff));
  const ms = performance.now() - start;
  await level.close();
  return ms;
}

function bytesIn(directory: string): number {
  let bytes = 0;
  for (const entry of readdirSync(directory, { withFileTypes: true, recursive: true })) {
    if (entry.isFile()) bytes += statSync(join(entry.parentPath, entry.name)).size;
  }
  return bytes;
}

function tell(name: string, ms: number, bytes: number): void {
  const rate = (ROWS / ms) * 1_000;
  const mb = (RAW_BYTES / ms / 1e6) * 1_000;
  const size = (bytes / 1e6).toFixed(0);
  process.stdout.write(
    `${name}: ${ms.toFixed(0)} ms, ${(rate / 1e6).toFixed(2)} M rows/s, ${mb.toFixed(0)} MB/s, ${size} MB of files\n`,
  );
}

const best = { ours: Infinity, level: Infinity };
const isThere = !('absent' in probePeer(root, 'classic-level'));
for (let round = 0; round < ROUNDS; round++) {
  for (const who of ['ours', 'level'] as const) {
    if (who === 'level' && !isThere) continue;
    const directory = mkdtempSync(join(process.env['BENCH_DATA'] ?? tmpdir(), 'merge-'));
    try {
      const ms = who === 'ours' ? mergeOurs(directory) : await mergeLevel(directory);
      best[who] = Math.min(best[who], ms);
      tell(who === 'ours' ? 'tidemark' : 'classic-level compactRange', ms, bytesIn(directory));
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  }
}
process.stdout.write(`ratio of the best: ${(best.level / best.ours).toFixed(2)}\n`);
