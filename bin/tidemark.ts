#!/usr/bin/env node
/**
 * The operator's command line: looks into a store's directory, beside a live engine or in a copy. It
 * parses arguments, runs the machines of core/store/ in slices, prints, and exits with a documented code
 * (docs/cli.md). Nothing here changes a store but `compress`. A process of its own, one thread.
 */
import { once } from 'node:events';
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { TidemarkError } from '../core/base/errors.ts';
import { readLock } from '../core/storage/lock.ts';
import { compressStore } from '../core/store/compress.ts';
import { dumpLog, isStill, recentOffset } from '../core/store/dump.ts';
import type { DumpOptions, DumpPlace, Dumped } from '../core/store/dump.ts';
import { inspectStore } from '../core/store/inspect.ts';
import { isStore } from '../core/store/look.ts';
import { findingOf, verdictOf } from '../core/store/report.ts';
import type { Machine, Progress } from '../core/store/report.ts';
import { verifyStore } from '../core/store/verify.ts';
import {
  CATALOG_VALUES,
  ROWS_LOWER,
  checkCatalogRow,
  nameOfCatalogKey,
} from '../actors/catalog.ts';
import { NodeStorage } from '../actors/node-storage.ts';
import { identify, isGone } from '../actors/process-identity.ts';
import { printCompress, printInspect, printVerify } from './print.ts';
import type { LockReport } from './print.ts';

const EXIT_OK = 0;
const EXIT_CORRUPT = 2;
const EXIT_UNREADABLE = 3;
const EXIT_USAGE = 64;
const EXIT_DEFECT = 70;
const EXIT_INTERRUPTED = 130;

const HELP = `tidemark: looks into a store's directory; takes no lock, and only compress changes anything.

  tidemark inspect DIR [--json]
      manifest, segments of the log, collections, lock holder
  tidemark verify DIR [--full] [--json]
      looks for damage; --full reads every block of every part too
  tidemark dump DIR [--from OFFSET] [--to OFFSET] [--tx] [--tolerate]
      records of the log, one JSON object a line; --to is the first offset left out;
      --tx: transactions with their operations; --tolerate: marks damage and goes on
  tidemark tail DIR [--follow] [--lines N] [--records]
      the last N transactions (10), then, with --follow, each new one until interrupted

  tidemark compress DIR [--json]
      compresses the segments of the log that are sealed and below the older checkpoint;
      safe beside a live engine

  --help, --version

exit codes
  0    done; verify: nothing is wrong
  1    verify: a torn tail, never acknowledged
  2    corruption
  3    unreadable: no such directory, not a store, another version's, a disk that fails
  64   wrong arguments
  70   a defect in tidemark: please report it
  130  interrupted
`;

class UsageError extends Error {}

/** Work goes on for so long before signals and timers get their turn. */
const SLICE_MS = 30;
const PROGRESS_EVERY_MS = 500;
const FOLLOW_EVERY_MS = 250;
const TAIL_LINES = 10;

const interrupt = new AbortController();

/** Runs a machine to its end, in slices; undefined when interrupted. */
async function run<T>(machine: Machine<T>, progress: Progress): Promise<T | undefined> {
  let told = performance.now();
  let isShown = false;
  for (;;) {
    const sliceEnd = performance.now() + SLICE_MS;
    while (performance.now() < sliceEnd) {
      const { done, value } = machine.next();
      if (done !== true) continue;
      if (isShown) process.stderr.write('\r\u001b[K');
      return value;
    }
    await nextTurn();
    if (process.stdout.writableNeedDrain) await once(process.stdout, 'drain');
    if (interrupt.signal.aborted) {
      machine.return(undefined as T);
      return undefined;
    }
    if (!process.stderr.isTTY || performance.now() - told < PROGRESS_EVERY_MS) continue;
    told = performance.now();
    isShown = true;
    const { what, doneBytes, totalBytes } = progress;
    const percent = totalBytes === 0 ? 0 : Math.min(100, (doneBytes / totalBytes) * 100);
    process.stderr.write(`\r\u001b[K${what} ${percent.toFixed(0)} %`);
  }
}

function nextTurn(): Promise<void> {
  return new Promise((done) => setImmediate(done));
}

function newProgress(): Progress {
  return { what: '', doneBytes: 0, totalBytes: 0 };
}

// ---------------------------------------------------------------- the store

function storageOf(directory: string): NodeStorage {
  const found = statSync(directory, { throwIfNoEntry: false });
  if (found === undefined) throw notAStore(`${directory}: no such directory`);
  if (!found.isDirectory()) throw notAStore(`${directory} is not a directory`);
  const storage = new NodeStorage(resolve(directory));
  if (!isStore(storage)) throw notAStore(`${directory} holds no store`);
  return storage;
}

function notAStore(message: string): TidemarkError {
  return new TidemarkError('TIDEMARK_NOT_FOUND', message);
}

/** Who has the store, as far as can be said from here. */
function lockOf(storage: NodeStorage, directory: string): LockReport {
  const lock = readLock(storage);
  if (lock === undefined) return { state: 'free', holder: undefined };
  const { holder } = lock;
  if (holder === undefined) return { state: 'unknown', holder: undefined };
  if (isGone(holder)) return { state: 'gone', holder };
  // A copied directory brings its LOCK along.
  const me = identify('');
  const sameEyes = holder.hostName === me.hostName && holder.pidNamespace === me.pidNamespace;
  const isElsewhere = sameEyes && realPath(holder.directory) !== realPath(directory);
  return { state: isElsewhere ? 'elsewhere' : 'held', holder };
}

function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return resolve(path);
  }
}

function isLive({ state }: LockReport): boolean {
  return state === 'held' || state === 'unknown';
}

function nameOf(key: Uint8Array, value: Uint8Array): { id: number; name: string } | undefined {
  if (key[0] !== ROWS_LOWER[0]) return undefined;
  try {
    const name = nameOfCatalogKey(key);
    return { id: checkCatalogRow(CATALOG_VALUES.decode(value), name).id, name };
  } catch {
    return undefined;
  }
}

// ---------------------------------------------------------------- commands

type Flags = { readonly [name: string]: string | boolean | undefined };

async function inspect(directory: string, flags: Flags): Promise<number> {
  const storage = storageOf(directory);
  const progress = newProgress();
  const report = await run(inspectStore(storage, nameOf, progress), progress);
  if (report === undefined) return EXIT_INTERRUPTED;
  const lock = lockOf(storage, directory);
  if (flags['json'] === true) writeJson({ directory: resolve(directory), lock, ...report });
  else write(printInspect(directory, lock, report));
  return EXIT_OK;
}

async function verify(directory: string, flags: Flags): Promise<number> {
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

async function dump(directory: string, flags: Flags): Promise<number> {
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

async function tail(directory: string, flags: Flags): Promise<number> {
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

async function compress(directory: string, flags: Flags): Promise<number> {
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

// ---------------------------------------------------------------- arguments and output

function countOf(flags: Flags, name: string): number | undefined {
  const text = flags[name];
  if (typeof text !== 'string') return undefined;
  const value = Number(text);
  if (/^[0-9]+$/.test(text) && Number.isSafeInteger(value)) return value;
  throw new UsageError(`--${name} is an integer from 0, not '${text}'`);
}

function write(text: string): void {
  process.stdout.write(text);
}

function writeJson(item: unknown): void {
  write(`${JSON.stringify(item)}\n`);
}

type Command = {
  readonly run: (directory: string, flags: Flags) => Promise<number>;
  readonly options: { readonly [name: string]: { readonly type: 'boolean' | 'string' } };
};

const YES = { type: 'boolean' } as const;
const TEXT = { type: 'string' } as const;

const COMMANDS: { readonly [name: string]: Command } = {
  inspect: { run: inspect, options: { json: YES } },
  verify: { run: verify, options: { full: YES, json: YES } },
  dump: { run: dump, options: { from: TEXT, to: TEXT, tx: YES, tolerate: YES } },
  compress: { run: compress, options: { json: YES } },
  tail: { run: tail, options: { follow: YES, lines: TEXT, records: YES } },
};

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === '--help' || name === '-h' || name === 'help' || rest.includes('--help')) {
    write(HELP);
    return EXIT_OK;
  }
  if (name === '--version') {
    write(`${version()}\n`);
    return EXIT_OK;
  }
  if (name === undefined) throw new UsageError('a command is missing');
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (command === undefined) throw new UsageError(`unknown command '${name}'`);
  let parsed;
  try {
    parsed = parseArgs({ args: rest, options: command.options, allowPositionals: true });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
  const [directory, ...more] = parsed.positionals;
  if (directory === undefined) throw new UsageError(`${name} takes a directory`);
  if (more.length > 0) throw new UsageError(`${name} takes one directory, not also '${more[0]}'`);
  return command.run(directory, parsed.values);
}

function version(): string {
  // In dist/bin/ when compiled, in bin/ under a TypeScript loader.
  const isSource = import.meta.url.endsWith('.ts');
  const path = new URL(isSource ? '../package.json' : '../../package.json', import.meta.url);
  const { version: text } = JSON.parse(readFileSync(path, 'utf8')) as { version: string };
  return text;
}

/** One line on standard error, and the code that says the same. */
function fail(error: unknown): number {
  if (error instanceof UsageError) {
    process.stderr.write(`tidemark: ${error.message} (tidemark --help)\n`);
    return EXIT_USAGE;
  }
  try {
    const { finding, message, file, severity } = findingOf(error);
    const place = file === undefined || message.includes(file) ? '' : `${file}: `;
    const word = error instanceof TidemarkError && error.code === 'TIDEMARK_CORRUPT';
    process.stderr.write(`tidemark: ${word ? `${finding}: ` : ''}${place}${message}\n`);
    return severity === 'damage' ? EXIT_CORRUPT : EXIT_UNREADABLE;
  } catch {
    process.stderr.write(`tidemark: ${error instanceof Error ? error.stack : String(error)}\n`);
    return EXIT_DEFECT;
  }
}

process.on('SIGINT', () => interrupt.abort());
process.on('SIGTERM', () => interrupt.abort());
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // Whoever read it has seen enough, as with `head`.
  process.exit(error.code === 'EPIPE' ? EXIT_OK : EXIT_UNREADABLE);
});

process.exitCode = await main(process.argv.slice(2)).catch(fail);
