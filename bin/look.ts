/**
 * The commands that take no lock, and are safe beside a live engine and on copies: they look into a store,
 * and change nothing but `compress`, which changes no byte of what the log says. Called by bin/tidemark.ts.
 */
import { resolve } from 'node:path';
import { compressStore } from '../core/store/compress.ts';
import { dumpLog, isStill, recentOffset } from '../core/store/dump.ts';
import type { DumpOptions, DumpPlace, Dumped } from '../core/store/dump.ts';
import { inspectStore } from '../core/store/inspect.ts';
import { verdictOf } from '../core/store/report.ts';
import { verifyStore } from '../core/store/verify.ts';
import { printCompress, printInspect, printVerify } from './print.ts';
import {
  EXIT_INTERRUPTED,
  EXIT_OK,
  countOf,
  cursorOf,
  interrupt,
  isLive,
  lockOf,
  nameOf,
  newProgress,
  run,
  storageOf,
  write,
  writeJson,
} from './work.ts';
import type { Flags } from './work.ts';

const FOLLOW_EVERY_MS = 250;
const TAIL_LINES = 10;

export async function inspect([directory]: readonly string[], flags: Flags): Promise<number> {
  const storage = storageOf(directory);
  const progress = newProgress();
  const report = await run(inspectStore(storage, { nameOf, cursorOf }, progress), progress);
  if (report === undefined) return EXIT_INTERRUPTED;
  const lock = lockOf(storage, directory);
  if (flags['json'] === true) writeJson({ directory: resolve(directory), lock, ...report });
  else write(printInspect(directory, lock, report));
  return EXIT_OK;
}

export async function verify([directory]: readonly string[], flags: Flags): Promise<number> {
  const storage = storageOf(directory);
  const live = isLive(lockOf(storage, directory));
  const progress = newProgress();
  const options = { full: flags['full'] === true, live };
  const report = await run(verifyStore(storage, options, progress), progress);
  if (report === undefined) return EXIT_INTERRUPTED;
  if (flags['json'] === true) writeJson({ directory: resolve(directory), live, ...report });
  else write(printVerify(directory, live, report));
  return verdictOf(report.findings);
}

export async function dump([directory]: readonly string[], flags: Flags): Promise<number> {
  const storage = storageOf(directory);
  const progress = newProgress();
  const options = {
    from: countOf(flags, 'from'),
    to: countOf(flags, 'to') ?? Number.MAX_SAFE_INTEGER,
    tolerate: flags['tolerate'] === true,
    transactions: flags['tx'] === true,
  };
  let verdict: number = EXIT_OK;
  const emit = (item: Dumped): void => {
    if (item.type === 'damage') verdict = Math.max(verdict, verdictOf([item]));
    writeJson(item);
  };
  const place = await run(dumpLog(storage, options, emit, progress), progress);
  return place === undefined ? EXIT_INTERRUPTED : verdict;
}

export async function tail([directory]: readonly string[], flags: Flags): Promise<number> {
  const storage = storageOf(directory);
  const progress = newProgress();
  const lines = countOf(flags, 'lines') ?? TAIL_LINES;
  const rest = {
    to: Number.MAX_SAFE_INTEGER,
    tolerate: false,
    transactions: flags['records'] !== true,
  };
  const recent: Dumped[] = [];
  const keep = (item: Dumped): void => {
    recent.push(item);
    if (recent.length > lines + 1_000) recent.splice(0, recent.length - lines);
  };
  const from = await run(recentOffset(storage), progress);
  if (from === undefined) return EXIT_OK;
  let place = await run(dumpLog(storage, { ...rest, from }, keep, progress), progress);
  if (place === undefined) return EXIT_OK;
  for (const item of lines === 0 ? [] : recent.slice(-lines)) writeJson(item);
  while (flags['follow'] === true && !interrupt.signal.aborted) {
    await pause(FOLLOW_EVERY_MS);
    if (interrupt.signal.aborted || isStill(storage, place)) continue;
    const more: DumpOptions = { ...rest, from: place.next };
    const after: DumpPlace | undefined = await run(
      dumpLog(storage, more, writeJson, progress, place),
      progress,
    );
    if (after === undefined) break;
    place = after;
  }
  return EXIT_OK;
}

export async function compress([directory]: readonly string[], flags: Flags): Promise<number> {
  const storage = storageOf(directory);
  const progress = newProgress();
  const report = await run(compressStore(storage, `${process.pid}`, progress), progress);
  if (report === undefined) return EXIT_INTERRUPTED;
  if (flags['json'] === true) writeJson({ directory: resolve(directory), ...report });
  else write(printCompress(directory, report));
  return verdictOf(report.findings);
}

function pause(ms: number): Promise<void> {
  return new Promise((done) => {
    const end = (): void => {
      clearTimeout(timer);
      interrupt.signal.removeEventListener('abort', end);
      done();
    };
    const timer = setTimeout(end, ms);
    interrupt.signal.addEventListener('abort', end);
  });
}
