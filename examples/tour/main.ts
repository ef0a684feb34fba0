/**
 * The tour: `npm start [-- path]`. Replays a git repository's history, one transaction a revision,
 * checks it against git as of many offsets, loads the same history for many tenants, kills a
 * writing child, and draws what lies on disk. Exit code 0: all checks hold; 1: one does not;
 * 2: the tour could not begin.
 */
import * as path from 'node:path';
import { open } from '../../actors/index.ts';
import { serve } from '../service/serve.ts';
import {
  drawLog,
  drawMerging,
  drawSpine,
  columns,
  formatBytes,
  formatCount,
  formatMs,
  formatOf,
  formatRate,
} from './drawing.ts';
import { takePictures } from './figures.ts';
import type { Pictures } from './figures.ts';
import { checkChanges, checkDiffs, checkVersions } from './follow.ts';
import { openRepository } from './git.ts';
import type { Repository } from './git.ts';
import { checkSurvivors, writeUntilKilled } from './kill.ts';
import type { Survived } from './kill.ts';
import { checkTenants, load } from './load.ts';
import type { Loaded } from './load.ts';
import { USAGE, parseTourOptions } from './options.ts';
import { checkRevision, chooseRevisions, inFlightMax, replay } from './replay.ts';
import type { Replayed } from './replay.ts';
import { openCollections } from './rows.ts';
import { openScratch } from './scratch.ts';
import { createScreen } from './screen.ts';
import type { Screen } from './screen.ts';
import { smallStore } from './store-sizes.ts';
import { holdHistory } from './tenants.ts';
import type { HeldRevision } from './tenants.ts';
import { EXIT_FOUND_WRONG, EXIT_INTERRUPTED, TourError } from './tour-error.ts';

const MiB = 2 ** 20;
/** The load's store is of a service's size; the tenants' old rows may go. */
const loadStore = { memoryBytes: 256 * MiB, memtableBytes: 16 * MiB, segmentBytes: 64 * MiB };
const killAfterMsMax = 2_000;

interface Places {
  readonly screen: Screen;
  readonly repository: Repository;
  readonly directory: string;
}

async function main(args: readonly string[]): Promise<void> {
  const options = parseTourOptions(args);
  if (options.help) {
    process.stdout.write(`${USAGE}\n`);
    return;
  }
  const out = options.json ? process.stderr : process.stdout;
  const screen = createScreen(out, () => performance.now());
  const repository = await openRepository(options.path);
  if (options.port !== undefined) {
    await serve(repository, path.resolve(options.path), options.port, screen);
    return;
  }
  const scratch = openScratch();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      if (!options.keep) scratch.remove();
      process.exit(EXIT_INTERRUPTED);
    });
  }
  const place = (name: string): Places => ({
    screen,
    repository,
    directory: path.join(scratch.directory, name),
  });
  try {
    const { revisionCount } = repository;
    const count = formatOf(revisionCount, 'revision', 'revisions');
    screen.title(`Tidemark's tour of ${path.resolve(options.path)}, ${count}`);

    const past = await tourHistory(place('history'));
    const history = await holdHistory(repository);
    const tenants = await tourLoad(place('tenants'), history, options.seconds);
    const killAfterMs = Math.min(killAfterMsMax, options.seconds * 250);
    const killed = await tourKill(place('killed'), history, killAfterMs);

    screen.step('What it was');
    for (const line of figures(past.replayed, tenants.loaded)) screen.line(line);
    show(screen, 'the history', past.pictures);
    show(screen, 'the tenants', tenants.pictures);
    screen.line();
    if (options.keep) screen.line(`data: ${scratch.directory}, until the next tour`);
    screen.line('every check holds');
    if (options.json) {
      const { replayed, checked } = past;
      const { loaded } = tenants;
      const all = { repository, replayed, checked, loaded, killed };
      process.stdout.write(`${JSON.stringify(all, null, 2)}\n`);
    }
  } finally {
    if (!options.keep) scratch.remove();
  }
}

// --- Step by step ----------------------------------------------------------------------------

interface Checked {
  readonly revisions: number;
  readonly rows: number;
}

/** Replays the history and compares what is there with git, before and after a reopen. */
async function tourHistory({ screen, repository, directory }: Places): Promise<{
  replayed: Replayed;
  checked: Checked;
  pictures: Pictures;
}> {
  const sizes = await smallStore(repository);
  const total = repository.revisionCount;
  screen.step('Every revision becomes a transaction');
  screen.line(
    `${formatCount(inFlightMax)} commits in flight, each durable before it is acknowledged; ` +
      `memtables of ${formatBytes(sizes.memtableBytes)}, segments of ${formatBytes(sizes.segmentBytes)}`,
  );
  const engine = await open(directory, sizes);
  try {
    const collections = await openCollections(engine, Infinity);
    const writing = screen.bar(
      total,
      (done, ms) =>
        `${formatCount(done)} of ${formatCount(total)} revisions  ${formatRate(done, ms)}`,
    );
    const replayed = await replay(engine, collections, repository, (done) => writing.update(done));
    writing.end();
    const { revisions, changes, ms, firstOffset } = replayed;
    if (revisions !== total) {
      throw new TourError(`check failed: ${revisions} of ${total} revisions`, EXIT_FOUND_WRONG);
    }
    screen.pass(
      `${formatCount(revisions)} transactions with ${formatOf(changes, 'change', 'changes')} in ${formatMs(ms)}: ${formatRate(revisions, ms)}`,
    );

    screen.step('The past is what git says');
    const chosen = chooseRevisions(revisions);
    const checking = screen.bar(
      chosen.length,
      (done) => `${done} of ${formatOf(chosen.length, 'revision', 'revisions')} compared`,
    );
    let rows = 0;
    for (const [done, n] of chosen.entries()) {
      rows += await checkRevision(repository, collections, n, firstOffset + n);
      checking.update(done + 1);
    }
    checking.end();
    screen.pass(
      `files as of ${formatOf(chosen.length, 'revision', 'revisions')} equal git ls-tree, ${formatOf(rows, 'row', 'rows')} byte for byte`,
    );
    const followed = await checkChanges(repository, collections, firstOffset);
    screen.pass(
      `changes() of the whole history equals git diff-tree, ${formatOf(followed, 'change', 'changes')}`,
    );
    const pairs = await checkDiffs(repository, collections, chosen, firstOffset);
    screen.pass(`diff(a, b) equals git diff-tree a b, ${formatOf(pairs, 'pair', 'pairs')}`);
    const of = await checkVersions(repository, collections, firstOffset);
    screen.pass(
      `versions(path) equals what git log and git cat-file find, ${formatOf(of.versions, 'version', 'versions')} of ${formatOf(of.paths, 'path', 'paths')}`,
    );
    await engine.flush();
    const pictures = takePictures(engine);
    await engine.close();

    const reopenAtMs = performance.now();
    const again = await open(directory, sizes);
    const reopenMs = performance.now() - reopenAtMs;
    try {
      const reopened = await openCollections(again, Infinity);
      for (const n of new Set([0, revisions >> 1, revisions - 1])) {
        rows += await checkRevision(repository, reopened, n, firstOffset + n);
      }
    } finally {
      await again.close();
    }
    screen.pass(`reopened in ${formatMs(reopenMs)}, and still so`);
    return { replayed, checked: { revisions: chosen.length, rows }, pictures };
  } finally {
    await engine.close();
  }
}

/** Writes the same history for one tenant after another as long as there is time. */
async function tourLoad(
  { screen, repository, directory }: Places,
  history: readonly HeldRevision[],
  seconds: number,
): Promise<{ loaded: Loaded; pictures: Pictures }> {
  screen.step('The same history for many tenants');
  const part =
    history.length === repository.revisionCount
      ? 'all of the history'
      : `the first ${formatCount(history.length)} revisions`;
  screen.line(`${part}, in one store, for as many tenants as ${seconds} s hold`);
  const engine = await open(directory, loadStore);
  try {
    const collections = await openCollections(engine, 0);
    let transactions = 0;
    const loading = screen.bar(seconds * 1000, (_, ms) => {
      const tenants = formatOf(Math.floor(transactions / history.length), 'tenant', 'tenants');
      return `${formatCount(transactions)} transactions, ${tenants}  ${formatRate(transactions, ms)}`;
    });
    const loaded = await load(engine, collections, history, seconds, (elapsedMs, done) => {
      transactions = done;
      loading.update(elapsedMs);
    });
    loading.end();
    screen.pass(
      `${formatOf(loaded.tenants, 'tenant', 'tenants')}, ${formatCount(loaded.transactions)} transactions in ${formatMs(loaded.ms)}: ${formatRate(loaded.transactions, loaded.ms)}`,
    );
    const rows = await checkTenants(repository, collections, history, loaded.transactions);
    screen.pass(
      `the first, the last and the unfinished tenant equal git, ${formatOf(rows, 'row', 'rows')}`,
    );
    return { loaded, pictures: takePictures(engine) };
  } finally {
    await engine.close();
  }
}

/** Kills a writing process; what it was told durable must be there. */
async function tourKill(
  { screen, repository, directory }: Places,
  history: readonly HeldRevision[],
  afterMs: number,
): Promise<Survived> {
  screen.step('A writing process is killed');
  let acknowledged = 0;
  const writing = screen.bar(
    afterMs,
    () => `${formatCount(acknowledged)} transactions acknowledged`,
  );
  const { offsets, ms } = await writeUntilKilled(
    repository,
    directory,
    afterMs,
    (count, elapsedMs) => {
      acknowledged = count;
      writing.update(elapsedMs);
    },
  );
  writing.end();
  screen.line(
    `SIGKILL after ${formatMs(ms)}, with ${formatOf(offsets.length, 'transaction', 'transactions')} acknowledged`,
  );
  const openAtMs = performance.now();
  const engine = await open(directory, await smallStore(repository));
  const openMs = performance.now() - openAtMs;
  try {
    const collections = await openCollections(engine, Infinity);
    const survived = checkSurvivors(collections, history, offsets);
    screen.pass(
      `opened in ${formatMs(openMs)}: all ${formatCount(survived.acknowledged)} are there, whole and at their offsets, ${formatOf(survived.rows, 'row', 'rows')}`,
    );
    screen.pass(
      `${formatCount(survived.unacknowledged)} more that were on their way, whole and without a gap`,
    );
    return survived;
  } finally {
    await engine.close();
  }
}

// --- Figures ---------------------------------------------------------------------------------

function figures(replayed: Replayed, loaded: Loaded): string[] {
  const { idle, busy } = loaded;
  return columns(
    [
      [
        'history',
        formatRate(replayed.revisions, replayed.ms),
        'transactions, git reading included',
      ],
      ['tenants', formatRate(loaded.transactions, loaded.ms), 'transactions, durable'],
      ['', formatRate(loaded.operations, loaded.ms), 'operations'],
      ['event loop', formatMs(busy.p99Ms), `delay p99 under load (idle ${formatMs(idle.p99Ms)})`],
      [
        '',
        formatMs(busy.p50Ms),
        `p50 (idle ${formatMs(idle.p50Ms)}); longest ${formatMs(busy.maxMs)}`,
      ],
      [
        'memory',
        formatBytes(loaded.rssBytesMax),
        'resident at most, the held history and the arena included',
      ],
      ['', formatBytes(loaded.heapBytesMax), 'JavaScript heap at most'],
    ],
    'lrl',
  );
}

function show(screen: Screen, of: string, { log, spines, merging }: Pictures): void {
  screen.line();
  screen.picture(`log of ${of}`, drawLog(log));
  for (const { name, levels } of spines) screen.picture(`${name} of ${of}`, drawSpine(levels));
  screen.picture(`merging of ${of}`, drawMerging(merging));
}

// A reader that goes away (npm start | head) is no failure of the tour.
process.stdout.on('error', () => process.exit(0));

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof TourError)) throw error;
  process.stderr.write(`tour: ${error.message}\n`);
  process.exitCode = error.exitCode;
}
