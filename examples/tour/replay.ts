/**
 * Writes a repository's history, transaction n being what changed from tree n-1 to tree n, and
 * checks what lies there against git. Transactions have consecutive offsets, so the revision of an
 * offset is known without a lookup. Called by main.ts.
 */
import type { Collection, Engine, Receipt } from '../../actors/index.ts';
import { CommitWindow } from './commit-window.ts';
import { formatTreeRecord, listTree, readHistory } from './git.ts';
import type { Repository, Revision } from './git.ts';
import { encodeFile, idOf, modeOf } from './rows.ts';
import type { Collections } from './rows.ts';
import { EXIT_FOUND_WRONG, TourError } from './tour-error.ts';

export const inFlightMax = 256;

export interface Replayed {
  readonly revisions: number;
  readonly changes: number;
  /** The offset of revision 0; revision n is at `firstOffset + n`. */
  readonly firstOffset: number;
  readonly ms: number;
}

export async function replay(
  engine: Engine,
  collections: Collections,
  repository: Repository,
  onProgress: (revisions: number) => void,
): Promise<Replayed> {
  let settled = 0;
  let firstOffset = -1;
  let changes = 0;
  const onReceipt = ({ offset }: Receipt): void => {
    if (settled === 0) firstOffset = offset;
    if (offset !== firstOffset + settled) {
      const expected = firstOffset + settled;
      throw wrong(`revision ${settled} is at offset ${offset}, not at ${expected}`);
    }
    onProgress(++settled);
  };
  const window = new CommitWindow(inFlightMax, onReceipt);
  const startAtMs = performance.now();
  for await (const revision of readHistory(repository)) {
    if (window.full) await window.take();
    window.push(commitRevision(engine, collections, revision));
    changes += revision.changes.length;
  }
  await window.drain();
  return { revisions: settled, changes, firstOffset, ms: performance.now() - startAtMs };
}

/** Files and revision in one transaction: a revision that changed no file has an offset, too. */
export function commitRevision(
  engine: Engine,
  { files, revisions }: Collections,
  { n, sha, tree, time, changes }: Revision,
): Promise<Receipt> {
  const transaction = engine.transaction();
  for (const { path, mode, id } of changes) {
    if (id === undefined) transaction.delete(files, path);
    else transaction.put(files, path, encodeFile(mode, id));
  }
  return transaction.put(revisions, n, { sha, tree, time }).commit();
}

// --- Checks ----------------------------------------------------------------------------------

const checkedAllMax = 200;
const checkedSpread = 25;

/** Which revisions are compared: all of a short history, else some evenly spread and both ends. */
export function chooseRevisions(count: number): number[] {
  if (count <= checkedAllMax) return Array.from({ length: count }, (_, n) => n);
  const last = count - 1;
  const chosen = new Set([0]);
  for (let i = 1; i <= checkedSpread; i++) {
    chosen.add(Math.round((last * i) / (checkedSpread + 1)));
  }
  chosen.add(last);
  return [...chosen];
}

export interface Rows {
  /** Whose keys begin with `prefixBytes` bytes that are not the path's. */
  readonly files: Collection<Buffer, Buffer>;
  readonly prefixBytes: number;
  readonly range: { readonly gte?: Buffer; readonly lt?: Buffer; readonly asOf?: number };
  /** In words, for the line that says what is wrong. */
  readonly name: string;
}

/** Compares rows with `git ls-tree -r -z` of a tree, byte for byte; answers how many there are. */
export async function checkTree(repository: Repository, tree: string, rows: Rows): Promise<number> {
  const entries = rows.files.entries(rows.range)[Symbol.iterator]();
  let count = 0;
  for await (const expected of listTree(repository, tree)) {
    const entry = entries.next();
    if (entry.done === true) {
      throw wrong(`${rows.name} ends after ${count} rows; git has ${quote(expected)}`);
    }
    const [key, value] = entry.value;
    const actual = formatTreeRecord(key.subarray(rows.prefixBytes), modeOf(value), idOf(value));
    if (!actual.equals(expected)) {
      throw wrong(`${rows.name} has ${quote(actual)} where git has ${quote(expected)}`);
    }
    count++;
  }
  const more = entries.next();
  if (more.done !== true) {
    throw wrong(`${rows.name} has ${quote(more.value[0])} after all that git has`);
  }
  return count;
}

/** Compares `files` as of a revision's offset, and its row in `revisions`, with git. */
export async function checkRevision(
  repository: Repository,
  { files, revisions }: Collections,
  n: number,
  offset: number,
): Promise<number> {
  const row = revisions.getSync(n, { asOf: offset });
  if (row === undefined) throw wrong(`revision ${n} is not there as of its offset ${offset}`);
  if (n > 0 && revisions.getSync(n, { asOf: offset - 1 }) !== undefined) {
    throw wrong(`revision ${n} is there before its offset ${offset}`);
  }
  return checkTree(repository, row.tree, {
    files,
    prefixBytes: 0,
    range: { asOf: offset },
    name: `files as of offset ${offset} (revision ${n}, ${row.sha.slice(0, 12)})`,
  });
}

function wrong(text: string): TourError {
  return new TourError(`check failed: ${text}`, EXIT_FOUND_WRONG);
}

/** Bytes as one readable line, whatever they are. */
function quote(bytes: Buffer): string {
  return JSON.stringify(bytes.toString('latin1'));
}
