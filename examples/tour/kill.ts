/**
 * A child process writes tenants and reports every acknowledged transaction through a pipe until it
 * is killed without warning; then everything it was told durable must be there, at the offset it
 * was told, and whatever else is there must be whole and without gaps. Called by main.ts.
 */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Readable } from 'node:stream';
import type { Repository } from './git.ts';
import { inFlightMax } from './replay.ts';
import { revisionKey } from './rows.ts';
import type { Collections } from './rows.ts';
import type { HeldRevision } from './tenants.ts';
import { EXIT_FOUND_WRONG, TourError } from './tour-error.ts';

/** What the child writes through its pipe per acknowledged transaction: its offset. */
export const REPORT_BYTES = 8;
/** The descriptor it writes to. */
export const REPORT_FD = 3;

const silenceMsMax = 60_000;
const writerFile = fileURLToPath(new URL('./kill-writer.ts', import.meta.url));

export interface Killed {
  /** Offsets of the acknowledged transactions, in the order of the commits. */
  readonly offsets: Float64Array;
  readonly ms: number;
}

/** Runs the child, and kills it `afterMs` after its first report. */
export async function writeUntilKilled(
  { path, head }: Repository,
  directory: string,
  afterMs: number,
  onProgress: (acknowledged: number, elapsedMs: number) => void,
): Promise<Killed> {
  // The history is the one that was read before, whatever has been committed since.
  const args = [...process.execArgv, writerFile, path, head, directory];
  const child = spawn(process.execPath, args, {
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
  });
  let words = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    words = (words + text).slice(-10_000);
  });
  const ended = new Promise<string>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => resolve(signal ?? `exit code ${code}`));
  });
  ended.catch(() => {});

  const chunks: Buffer[] = [];
  let bytes = 0;
  let firstAtMs = 0;
  let timer: NodeJS.Timeout | undefined;
  // What it wrote before it died is in the pipe and is read to the end.
  const silence = setTimeout(() => child.kill('SIGKILL'), silenceMsMax);
  for await (const chunk of reportsOf(child.stdio[REPORT_FD])) {
    if (timer === undefined) {
      clearTimeout(silence);
      firstAtMs = performance.now();
      timer = setTimeout(() => child.kill('SIGKILL'), afterMs);
    }
    chunks.push(chunk);
    bytes += chunk.length;
    onProgress(Math.floor(bytes / REPORT_BYTES), performance.now() - firstAtMs);
  }
  clearTimeout(silence);
  clearTimeout(timer);
  const how = await ended;
  if (timer === undefined && how === 'SIGKILL') {
    throw new TourError('the writing child acknowledged nothing', EXIT_FOUND_WRONG);
  }
  if (how !== 'SIGKILL') {
    const line = words.trim().split('\n', 1)[0];
    throw new TourError(`the writing child ended by itself (${how}): ${line}`, EXIT_FOUND_WRONG);
  }
  const all = Buffer.concat(chunks);
  const offsets = new Float64Array(Math.floor(all.length / REPORT_BYTES));
  for (let i = 0; i < offsets.length; i++) offsets[i] = all.readDoubleLE(i * REPORT_BYTES);
  return { offsets, ms: performance.now() - firstAtMs };
}

function reportsOf(stream: unknown): AsyncIterable<Buffer> {
  if (stream instanceof Readable) return stream;
  throw new TypeError('the child has no pipe');
}

export interface Survived {
  readonly acknowledged: number;
  /** Committed when the child was killed, but not yet acknowledged: there or not, both are right. */
  readonly unacknowledged: number;
  /** Rows compared. */
  readonly rows: number;
}

/** Requires: `files` and `revisions` keep all history. */
export function checkSurvivors(
  { files, revisions }: Collections,
  history: readonly HeldRevision[],
  offsets: Float64Array,
): Survived {
  let rows = 0;
  let sequence = 0;
  for (; ; sequence++) {
    const n = sequence % history.length;
    const tenant = (sequence - n) / history.length;
    const told = sequence < offsets.length ? offsets[sequence] : undefined;
    const entry = revisions.getEntrySync(revisionKey(tenant, n));
    if (entry === undefined) {
      if (told !== undefined) {
        throw lost(`transaction ${sequence} was acknowledged at offset ${told} and is not there`);
      }
      break;
    }
    const { offset, value } = entry;
    const expected = offsets.length > 0 ? offsets[0] + sequence : offset;
    if (offset !== (told ?? expected)) {
      throw lost(`transaction ${sequence} is at offset ${offset}, not at ${told ?? expected}`);
    }
    const { row, keys, values } = history[n];
    if (value.sha !== row.sha || value.tree !== row.tree || value.time !== row.time) {
      throw lost(`the revision of transaction ${sequence} at offset ${offset} is another`);
    }
    for (let i = 0; i < keys.length; i++) {
      keys[i].writeUInt32BE(tenant, 0);
      const stored = files.getSync(keys[i], { asOf: offset });
      const wanted = values[i];
      const same = wanted === undefined ? stored === undefined : stored?.equals(wanted) === true;
      if (!same) throw lost(`transaction ${sequence} at offset ${offset} is not whole`);
      rows++;
    }
    rows++;
  }
  const unacknowledged = sequence - offsets.length;
  if (unacknowledged > inFlightMax) {
    throw lost(`${unacknowledged} transactions are there that had not been acknowledged`);
  }
  return { acknowledged: offsets.length, unacknowledged, rows };
}

function lost(text: string): TourError {
  return new TourError(`check failed after the kill: ${text}`, EXIT_FOUND_WRONG);
}
