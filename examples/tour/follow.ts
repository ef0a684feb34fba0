/**
 * Checks what the engine says has changed against git: the feed of all transactions against diff-tree of
 * each tree and the one before, differences between far offsets against diff-tree of their trees, the
 * versions of some paths against what lies there in every revision. Called by main.ts.
 */
import type { Update } from '../../actors/index.ts';
import {
  MODE_SUBMODULE,
  diffTrees,
  idsAt,
  isLinear,
  listRevisions,
  logOf,
  readHistory,
} from './git.ts';
import type { Change, Repository } from './git.ts';
import { encodeFile, idOf } from './rows.ts';
import type { Collections } from './rows.ts';
import { EXIT_FOUND_WRONG, TourError } from './tour-error.ts';

type Row = Update<Buffer, Buffer>;

/** Follows `files` from the first revision on, beside git; answers how many changes there were. */
export async function checkChanges(
  repository: Repository,
  { files }: Collections,
  firstOffset: number,
): Promise<number> {
  const feed = files.changes({ after: firstOffset - 1 });
  let changes = 0;
  try {
    for await (const revision of readHistory(repository)) {
      const { n } = revision;
      // A revision that changed no file is no item of this feed.
      if (revision.changes.length === 0) continue;
      const item = await feed.next();
      if (item.done === true) throw wrong(`the feed ended before revision ${n}`);
      const { offset, updates } = item.value;
      if (offset !== firstOffset + n) {
        throw wrong(`the feed is at offset ${offset} where revision ${n} is at ${firstOffset + n}`);
      }
      compare(updates, revision.changes, `the feed at offset ${offset}`);
      changes += revision.changes.length;
    }
  } finally {
    await feed.return();
  }
  return changes;
}

/** Compares differences between the chosen revisions, near and far, with git. */
export async function checkDiffs(
  repository: Repository,
  { files, revisions }: Collections,
  chosen: readonly number[],
  firstOffset: number,
): Promise<number> {
  let pairs = 0;
  for (let i = 0; i < chosen.length; i += Math.max(1, chosen.length >> 3)) {
    const [a, b] = [chosen[i], chosen[chosen.length - 1 - i]];
    if (a === undefined || b === undefined) continue;
    const [before, after] = [revisions.getSync(a), revisions.getSync(b)];
    if (before === undefined || after === undefined) throw wrong(`revision ${a} or ${b} is gone`);
    const rows: Row[] = [];
    for await (const row of files.diff(firstOffset + a, firstOffset + b)) rows.push(row);
    const expected = await diffTrees(repository, before.tree, after.tree);
    compare(rows, expected, `the difference of revisions ${a} and ${b}`);
    pairs++;
  }
  return pairs;
}

const PATHS_CHECKED = 10;
/** Paths among which those that changed most are looked for. */
const PATHS_COUNTED_MAX = 10_000;
/** Of a longer history a stretch of so many revisions is looked at, about each path's middle version. */
const REVISIONS_CHECKED_MAX = 2_000;

type CheckedPath = { readonly path: Buffer; readonly lower: number; readonly upper: number };

/**
 * Compares the versions of some paths with git. History is here what `rev-list` orders, one revision after
 * the other whatever their parents: so a version stands wherever what `cat-file` finds at the path is not
 * what it found one revision before. Without merges that is `git log` of the path, which is asked as well.
 */
export async function checkVersions(
  repository: Repository,
  { files }: Collections,
  firstOffset: number,
): Promise<{ paths: number; versions: number }> {
  const { revisionCount } = repository;
  const checked: CheckedPath[] = [];
  for (const path of await busyPaths(repository)) {
    const offsets = Array.from(files.versions(path), ({ offset }) => offset - firstOffset);
    const middle = offsets[offsets.length >> 1];
    if (middle === undefined) throw wrong(`${quote(path)} has no versions`);
    const lower = Math.max(
      0,
      Math.min(middle - REVISIONS_CHECKED_MAX / 2, revisionCount - REVISIONS_CHECKED_MAX),
    );
    const upper = Math.min(revisionCount, lower + REVISIONS_CHECKED_MAX);
    checked.push({ path, lower, upper });
  }
  // In front of each stretch one more revision: what changes in its first is seen by that.
  const names = checked.map((): string[] => []);
  let n = 0;
  for await (const sha of listRevisions(repository)) {
    for (const [i, { lower, upper }] of checked.entries()) {
      if (n >= lower - 1 && n < upper) names[i].push(sha);
    }
    n++;
  }
  const isLog = revisionCount <= REVISIONS_CHECKED_MAX && (await isLinear(repository));
  let versions = 0;
  for (const [i, { path, lower, upper }] of checked.entries()) {
    const bounds = { from: firstOffset + lower, to: firstOffset + upper - 1 };
    const found = [...files.versions(path, bounds)];
    const ids = await idsAt(repository, names[i], path);
    // Before the first revision there was nothing.
    let before = lower === 0 ? undefined : ids.shift();
    let at = 0;
    let value = lower === 0 ? undefined : files.getSync(path, { asOf: firstOffset + lower - 1 });
    for (const [j, id] of ids.entries()) {
      const offset = firstOffset + lower + j;
      const isVersion = found[at]?.offset === offset;
      if (id !== before && !isVersion) throw wrong(`${quote(path)} has no version at ${offset}`);
      before = id;
      if (!isVersion) continue;
      const version = found[at++].value;
      if (version === undefined ? value === undefined : value?.equals(version) === true) {
        throw wrong(`${quote(path)} has a version at ${offset} that changes nothing`);
      }
      value = version;
      const actual = version === undefined ? undefined : idOf(version).toString('hex');
      if (actual !== id) throw wrong(`${quote(path)} is otherwise at ${offset} than in git`);
    }
    if (at !== found.length)
      throw wrong(`${quote(path)} has ${found.length - at} versions too many`);
    versions += found.length;
    const text = path.toString('utf8');
    if (!isLog || !Buffer.from(text).equals(path)) continue;
    const log = await logOf(repository, text);
    const own = found.map(({ offset }) => names[i][offset - firstOffset]);
    if (log.join() !== own.join())
      throw wrong(`versions of ${quote(path)} are not those of git log`);
  }
  return { paths: checked.length, versions };
}

/** Half of them those that changed most, the others as they come; none that git cannot be asked for by a line. */
async function busyPaths(repository: Repository): Promise<Buffer[]> {
  const counts = new Map<string, number>();
  const passed = new Set<string>();
  for await (const { changes } of readHistory(repository)) {
    for (const { path, mode } of changes) {
      const name = path.toString('latin1');
      if (mode === MODE_SUBMODULE || /[\r\n]/.test(name)) passed.add(name);
      const count = counts.get(name);
      if (count !== undefined) counts.set(name, count + 1);
      else if (counts.size < PATHS_COUNTED_MAX) counts.set(name, 1);
    }
  }
  const names = [...counts.keys()].filter((name) => !passed.has(name));
  const busy = names
    .toSorted((a, b) => counts.get(b)! - counts.get(a)!)
    .slice(0, PATHS_CHECKED / 2);
  const others = names.filter((name) => !busy.includes(name));
  const step = Math.max(1, Math.floor(others.length / (PATHS_CHECKED - busy.length)));
  const some = others.filter((_, i) => i % step === 0).slice(0, PATHS_CHECKED - busy.length);
  return [...busy, ...some].map((name) => Buffer.from(name, 'latin1'));
}

function quote(path: Buffer): string {
  return JSON.stringify(path.toString('latin1'));
}

/** Throws unless the rows are git's changes: what goes was there, what comes is what git has. */
function compare(rows: readonly Row[], changes: readonly Change[], name: string): void {
  const after = new Map<string, Buffer | undefined>();
  for (const { key, value, diff } of rows) {
    const path = key.toString('latin1');
    if (diff > 0) after.set(path, value);
    else if (!after.has(path)) after.set(path, undefined);
  }
  if (after.size !== changes.length) {
    throw wrong(`${name} has ${after.size} paths where git has ${changes.length}`);
  }
  for (const { path, mode, id } of changes) {
    const quoted = quote(path);
    if (!after.has(path.toString('latin1'))) throw wrong(`${name} does not have ${quoted}`);
    const actual = after.get(path.toString('latin1'));
    const isEqual = id === undefined ? actual === undefined : actual?.equals(encodeFile(mode, id));
    if (isEqual !== true) throw wrong(`${name} has ${quoted} otherwise than git`);
  }
}

function wrong(text: string): TourError {
  return new TourError(`check failed: ${text}`, EXIT_FOUND_WRONG);
}
