/**
 * The commands that make a store out of others, or bring one up to date: backup, restore, checkpoint. What
 * they make is whole or gone; the store they are given keeps its bytes, but for checkpoint. Called by
 * bin/tidemark.ts.
 */
import { relative, resolve } from 'node:path';
import { open } from '../actors/engine.ts';
import { placeAt } from '../actors/place.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { copyStore } from '../core/store/backup.ts';
import type { BackupResult } from '../core/store/backup.ts';
import { archiveAt } from '../core/store/log-source.ts';
import type { LogSource } from '../core/store/log-source.ts';
import { restoreFrom } from '../core/store/restore.ts';
import type { RestoreGoal } from '../core/store/restore.ts';
import {
  EXIT_INTERRUPTED,
  EXIT_OK,
  UsageError,
  directoryAt,
  isCopied,
  idOf,
  newProgress,
  run,
  storageOf,
  withLock,
  write,
  writeJson,
} from './work.ts';
import type { Flags } from './work.ts';

/** A store in the making is never inside the one it is made of. */
function targetAt(directory: string, sources: readonly string[]): string {
  const target = resolve(directory);
  for (const source of sources) {
    const way = relative(resolve(source), target);
    if (way !== '' && (way.startsWith('..') || resolve(source, way) !== target)) continue;
    throw new UsageError(`${directory} lies in ${source}`);
  }
  return target;
}

export async function backup(
  [source, directory]: readonly string[],
  flags: Flags,
): Promise<number> {
  const storage = storageOf(source);
  const place = placeAt(targetAt(directory, [source]));
  const progress = newProgress();
  const copy = (isLive: boolean): Promise<BackupResult | undefined> =>
    run(copyStore(storage, place, isLive, progress), progress);
  let live = false;
  let result: BackupResult | undefined;
  try {
    result = await withLock(storage, source, true, () => copy(false));
  } catch (error) {
    if (!(error instanceof TidemarkError) || error.code !== 'TIDEMARK_LOCKED') throw error;
    live = true;
    result = await copy(true);
  }
  if (result === undefined) return EXIT_INTERRUPTED;
  const report = { directory: resolve(source), target: place.name, live, ...result };
  if (flags['json'] === true) writeJson(report);
  else write(`${directory}: ${contents(result)}${live ? LIVE_NOTE : ''}\n`);
  return EXIT_OK;
}

const LIVE_NOTE =
  '\nthe engine is running: what lies in the segment it writes to is left out; engine.backup() has it all';

function contents({ offset, bytes }: BackupResult): string {
  const what = offset < 0 ? 'no transaction yet' : `all transactions up to offset ${offset}`;
  return `${what}, ${bytes} bytes`;
}

export async function checkpoint([directory]: readonly string[], flags: Flags): Promise<number> {
  const breakLock = isCopied(storageOf(directory), directory);
  const engine = await open(directory, { createIfMissing: false, threads: 0, breakLock });
  let offset: number;
  try {
    await engine.checkpoint();
    offset = engine.upper - 1;
  } finally {
    await engine.close();
  }
  if (flags['json'] === true) writeJson({ directory: resolve(directory), offset });
  else write(`${directory}: everything up to offset ${offset} is in parts\n`);
  return EXIT_OK;
}

export async function restoreTo(directories: readonly string[], flags: Flags): Promise<number> {
  const goal = goalOf(flags['to']);
  const names = directories.slice(0, -1);
  const directory = directories.at(-1)!;
  const target = targetAt(directory, names);
  const from = names.map((name) => ({ storage: storageOf(name), name }));
  const progress = newProgress();
  const archived = ((flags['archive'] as string[] | undefined) ?? []).map((name) => ({
    storage: directoryAt(name),
    name,
  }));
  const machine = (function* () {
    const archives: LogSource[] = [];
    for (const { storage, name } of archived) archives.push(...(yield* archiveAt(storage, name)));
    return yield* restoreFrom(from, archives, goal, placeAt(target), idOf, progress);
  })();
  const result = await run(machine, progress);
  if (result === undefined) return EXIT_INTERRUPTED;
  if (flags['json'] === true) writeJson({ target, ...result });
  else write(`${directory}: ${contents(result)}, from ${result.from}\n`);
  return EXIT_OK;
}

/** An offset, or a time of day. */
function goalOf(to: Flags[string]): RestoreGoal {
  if (typeof to !== 'string') throw new UsageError('restore needs --to');
  if (/^[0-9]+$/.test(to)) {
    const offset = Number(to);
    if (Number.isSafeInteger(offset)) return { offset };
  }
  const atMs = /^[0-9]{4}-/.test(to) ? Date.parse(to) : Number.NaN;
  if (Number.isNaN(atMs)) throw new UsageError(`--to is an offset or a time, not '${to}'`);
  return { atMs };
}
