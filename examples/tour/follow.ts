/**
 * Checks what the engine says has changed against git: the feed of all transactions against diff-tree of
 * each tree and the one before, differences between far offsets against diff-tree of their trees.
 * Called by main.ts.
 */
import type { Update } from '../../actors/index.ts';
import { diffTrees, readHistory } from './git.ts';
import type { Change, Repository } from './git.ts';
import { encodeFile } from './rows.ts';
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
    const quoted = JSON.stringify(path.toString('latin1'));
    if (!after.has(path.toString('latin1'))) throw wrong(`${name} does not have ${quoted}`);
    const actual = after.get(path.toString('latin1'));
    const isEqual = id === undefined ? actual === undefined : actual?.equals(encodeFile(mode, id));
    if (isEqual !== true) throw wrong(`${name} has ${quoted} otherwise than git`);
  }
}

function wrong(text: string): TourError {
  return new TourError(`check failed: ${text}`, EXIT_FOUND_WRONG);
}
