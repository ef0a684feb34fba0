/**
 * Recovery of a log of small transactions that nothing was ever flushed of: 16-byte random keys, 100-byte
 * values, one operation each, as a crash leaves it (no CLEAN at the end). Beside it, in the same run and
 * over the same bytes, a bare loop that reads them and checks their CRC-32 as zlib does. Run it with
 * `npm run build && node --import tsx bench/micro/recovery.ts [MiB] [transactions a record] [rounds]`
 * (1,024, 64, 3). Goal: 0.5 of the bare loop.
 *
 *   bare     1 MiB at a time: pread, zlib.crc32 over the whole
 *   records  the bare loop that must at least be: pread, of every record the CRC of header and payload
 *   scan     the log's own recovery: headers, chain, claims, contents, the tail decided, every commit handed
 *            over; nobody takes them
 *   open     the engine's `open` until it resolves, threads: the scan, and all that it has read in memory
 *            (pages, memtable, sorting), what does not fit in it flushed to parts
 *
 * Files are in the page cache. Writing the log and copying it for each `open` is not measured. An `open`
 * merges and flushes beside the replay where there are cores for it; the CPU that it takes is told too.
 */
import {
  closeSync,
  cpSync,
  fdatasyncSync,
  mkdtempSync,
  openSync,
  readSync,
  readdirSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { NodeStorage } from '../../actors/node-storage.ts';
import { setU16, setU32 } from '../../core/base/bytes.ts';
import { MiB, segmentBytesDefault } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import {
  OP_KEY_BYTES_OFFSET,
  OP_KIND_OFFSET,
  OP_PUT,
  OP_VALUE_BYTES_OFFSET,
  TX_BYTES_OFFSET,
  TX_COUNT_OFFSET,
  TX_HEADER_BYTES,
  keyOffsetOf,
  operationBytes,
} from '../../core/base/update.ts';
import { RECORD_HEADER_BYTES } from '../../core/log/record.ts';
import { LogRecovery } from '../../core/log/recovery.ts';
import type { LogFacts, RecordFeed } from '../../core/log/recovery.ts';
import { SEGMENT_BLOCK_BYTES } from '../../core/log/segment.ts';
import { ACCEPTED, LogWriter } from '../../core/log/writer.ts';
import { LOG_DIR } from '../../core/storage/names.ts';
import { readManifest } from '../../core/store/look.ts';

const LOG_BYTES: number = Number(process.argv[2] ?? 1_024) * MiB;
const PER_RECORD = Number(process.argv[3] ?? 64);
const ROUNDS = Number(process.argv[4] ?? 3);
const WHAT: readonly string[] = (process.argv[5] ?? 'bare,records,scan,open').split(',');
const KEY_BYTES = 16;
const VALUE_BYTES = 100;
const COLLECTION = 1;
const OPTIONS = { segmentBytes: segmentBytesDefault };
const READ_BYTES: number = 1 * MiB;

// Threads run the compiled code, so all that is measured is that.
type Tidemark = typeof import('../../actors/index.ts');
const { open } = (await import(
  new URL('../../dist/actors/index.js', import.meta.url).href
)) as Tidemark;

function factsOf(storage: NodeStorage): LogFacts {
  const { state } = readManifest(storage)!;
  const { identity, logStart, flushed } = state;
  return {
    logId: identity.logId,
    firstSeq: logStart.seq,
    firstOffset: logStart.offset,
    start: flushed,
    witness: flushed?.upper ?? 0,
  };
}

function recover(storage: NodeStorage, readOnly: boolean, feed: RecordFeed): LogRecovery {
  const options = { ...OPTIONS, readOnly, strictTail: false };
  const recovery = new LogRecovery(storage, factsOf(storage), options, feed);
  while (recovery.step());
  return recovery;
}

/** One record's payload, and where its keys are. */
function makePayload(): { payload: Uint8Array; keys: number[] } {
  const txBytes = TX_HEADER_BYTES + operationBytes(OP_PUT, KEY_BYTES, VALUE_BYTES);
  const payload = new Uint8Array(PER_RECORD * txBytes);
  const keys: number[] = [];
  for (let at = 0; at < payload.length; at += txBytes) {
    setU32(payload, at + TX_BYTES_OFFSET, txBytes);
    setU32(payload, at + TX_COUNT_OFFSET, 1);
    const op = at + TX_HEADER_BYTES;
    setU32(payload, op, COLLECTION);
    payload[op + OP_KIND_OFFSET] = OP_PUT;
    setU16(payload, op + OP_KEY_BYTES_OFFSET, KEY_BYTES);
    setU32(payload, op + OP_VALUE_BYTES_OFFSET, VALUE_BYTES);
    keys.push(op + keyOffsetOf(OP_PUT));
    payload.fill(0x76, op + keyOffsetOf(OP_PUT) + KEY_BYTES, at + txBytes - 4);
  }
  return { payload, keys };
}

/** A store with one collection, and LOG_BYTES of commits in its log. */
async function makeStore(directory: string): Promise<void> {
  const engine = await open(directory, {});
  await engine.collection('rows', { key: 'buffer', value: 'buffer' });
  await engine.close();
  const storage = new NodeStorage(directory);
  const { resume } = recover(storage, false, () => true);
  const writer = new LogWriter(storage, { ...OPTIONS, prepare: false }, resume!);
  const prng = new Prng(1);
  const { payload, keys } = makePayload();
  while (writer.bytesWritten < LOG_BYTES) {
    while (!writer.full) {
      for (const key of keys) {
        for (let i = 0; i < KEY_BYTES; i += 4) setU32(payload, key + i, prng.u32());
      }
      const { next, epoch, atMs } = writer;
      const crc = crc32(payload);
      const refused = writer.append(payload, 0, payload.length, crc, PER_RECORD, next, epoch, atMs);
      if (refused !== ACCEPTED) throw new Error(`the log refused a record: ${refused}`);
    }
    do writer.step(false);
    while (writer.full || writer.staged);
  }
  while (writer.durable < writer.next) writer.step(true);
  writer.release();
}

function segmentsIn(directory: string): string[] {
  const log = join(directory, LOG_DIR);
  return readdirSync(log)
    .filter((name) => name.endsWith('.seg'))
    .map((name) => join(log, name));
}

/** Reads all bytes of all segments, a window at a time. */
function bare(directory: string): number {
  const window = Buffer.alloc(READ_BYTES);
  let bytes = 0;
  for (const path of segmentsIn(directory)) {
    const fd = openSync(path, 'r');
    let crc = 0;
    for (let got = 1; got > 0;) {
      got = readSync(fd, window, 0, window.length, null);
      if (got > 0) crc = crc32(got === window.length ? window : window.subarray(0, got), crc);
      bytes += got;
    }
    closeSync(fd);
  }
  return bytes;
}

/** The same, but of each record by itself. */
function records(directory: string): number {
  const window = Buffer.alloc(READ_BYTES);
  let bytes = 0;
  for (const path of segmentsIn(directory)) {
    const fd = openSync(path, 'r');
    let fileAt = SEGMENT_BLOCK_BYTES;
    for (;;) {
      const got = readSync(fd, window, 0, window.length, fileAt);
      let at = 0;
      while (at + RECORD_HEADER_BYTES <= got) {
        const end = at + RECORD_HEADER_BYTES + window.readUInt32LE(at + 8);
        if (end > got) break;
        crc32(window.subarray(at + 8, at + RECORD_HEADER_BYTES));
        const crc = crc32(window.subarray(at + RECORD_HEADER_BYTES, end));
        if (crc !== window.readUInt32LE(at + 28)) throw new Error('a payload is not what it says');
        at = end;
      }
      bytes += at;
      fileAt += at;
      if (at === 0) break;
    }
    closeSync(fd);
  }
  return bytes;
}

/** What the copy has left to be written is not to be waited for by the first sync of an open. */
function settle(directory: string): void {
  for (const path of segmentsIn(directory)) {
    const fd = openSync(path, 'r+');
    fdatasyncSync(fd);
    closeSync(fd);
  }
  bare(directory);
}

function scan(directory: string): number {
  let transactions = 0;
  const recovery = recover(new NodeStorage(directory), true, (record) => {
    transactions += record.txCount;
    return true;
  });
  return transactions === recovery.next ? transactions : recovery.next;
}

async function openEngine(directory: string): Promise<number> {
  const engine = await open(directory, {});
  const { upper } = engine;
  openMs = performance.now() - startMs;
  openCpu = process.cpuUsage(startCpu);
  await engine.close();
  return upper;
}

let startMs = 0;
let openMs = 0;
let startCpu: NodeJS.CpuUsage = process.cpuUsage();
let openCpu: NodeJS.CpuUsage = startCpu;

const root: string = mkdtempSync(join(process.env['BENCH_DATA'] ?? tmpdir(), 'recovery-'));
const store: string = join(root, 'store');
const best = { bare: Infinity, records: Infinity, scan: Infinity, open: Infinity };

function tell(who: keyof typeof best, ms: number, cpu: NodeJS.CpuUsage, what: string): void {
  best[who] = Math.min(best[who], ms);
  const cpuMs = (cpu.user + cpu.system) / 1_000;
  const rate = (logBytes / ms / MiB) * 1_000;
  process.stdout.write(
    `${who.padEnd(8)} ${ms.toFixed(0).padStart(6)} ms ${rate.toFixed(0).padStart(5)} MiB/s, CPU ${cpuMs.toFixed(0)} ms${what}\n`,
  );
}

let logBytes = 0;
try {
  await makeStore(store);
  logBytes = bare(store);
  process.stdout.write(
    `${(logBytes / MiB).toFixed(0)} MiB in ${segmentsIn(store).length} segments, records of ${PER_RECORD} transactions\n`,
  );
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, work] of Object.entries({ bare, records, scan })) {
      if (!WHAT.includes(who)) continue;
      startMs = performance.now();
      startCpu = process.cpuUsage();
      work(store);
      tell(who as keyof typeof best, performance.now() - startMs, process.cpuUsage(startCpu), '');
    }
    if (!WHAT.includes('open')) continue;
    const copy = join(root, 'copy');
    cpSync(store, copy, { recursive: true });
    settle(copy);
    startMs = performance.now();
    startCpu = process.cpuUsage();
    const upper = await openEngine(copy);
    tell('open', openMs, openCpu, `, ${((upper / openMs) * 1e-3).toFixed(2)} M transactions/s`);
    rmSync(copy, { recursive: true });
  }
  const share = (ms: number): string => (best.bare / ms).toFixed(2);
  process.stdout.write(
    `of the bare loop: records ${share(best.records)}, scan ${share(best.scan)}, open ${share(best.open)}\n`,
  );
} finally {
  rmSync(root, { recursive: true, force: true });
}
