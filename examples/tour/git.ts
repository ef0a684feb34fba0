/**
 * A repository's history as a stream, by git plumbing: one `rev-list` names the revisions, one
 * `diff-tree --stdin` compares every tree with the one before it (the first with the empty tree),
 * so merges, shallow clones and any order of branches are all the same case. Paths are bytes,
 * never text. Memory is bounded: a slow consumer stops diff-tree, which stops the feeding, which
 * stops rev-list; beyond pipes' worth of pairs only the revision at hand is held.
 * Called by the tour on its main thread and by its child process.
 */
import { spawn } from 'node:child_process';
import type { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { TourError } from './tour-error.ts';

/** Git's modes, of which a row keeps the number. */
export const MODE_LINK = 0o120000;
export const MODE_SUBMODULE = 0o160000;

const errorTextCharsMax = 64 * 1024;
const COLON = 0x3a;
const NEWLINE = 0x0a;
const NEWLINES: Buffer = Buffer.from([NEWLINE]);

export interface Repository {
  /** As given: a directory inside the repository. */
  readonly path: string;
  /** The commit that HEAD named when we looked; the history ends there whatever is committed later. */
  readonly head: string;
  readonly headTree: string;
  readonly emptyTree: string;
  /** 20 with SHA-1, 32 with SHA-256. */
  readonly idBytes: number;
  readonly revisionCount: number;
}

export interface Change {
  readonly path: Buffer;
  /** 0: the path is gone. */
  readonly mode: number;
  /** Undefined: the path is gone. */
  readonly id: Buffer | undefined;
}

export interface Revision {
  readonly n: number;
  readonly sha: string;
  readonly tree: string;
  /** Committer's time, seconds since 1970. */
  readonly time: number;
  readonly changes: readonly Change[];
}

// --- Asking once -----------------------------------------------------------------------------

/**
 * Fails with one clear line if there is no git, no repository, no commit or no permission. `end`: the last
 * revision of the history.
 */
export async function openRepository(path: string, end = 'HEAD'): Promise<Repository> {
  await ask(path, ['rev-parse', '--git-dir']);
  let head: string;
  try {
    head = await ask(path, ['rev-parse', '--verify', '--quiet', `${end}^{commit}`]);
  } catch (error) {
    if (!(error instanceof GitFailure) || error.text !== '') throw error;
    throw new TourError(`the repository at ${path} has no commits`);
  }
  return {
    path,
    head,
    headTree: await ask(path, ['rev-parse', '--verify', `${head}^{tree}`]),
    // Only git knows the repository's object format; this writes nothing.
    emptyTree: await ask(path, ['hash-object', '-t', 'tree', '--stdin']),
    idBytes: head.length / 2,
    revisionCount: Number(await ask(path, ['rev-list', '--count', head])),
  };
}

async function ask(path: string, args: readonly string[]): Promise<string> {
  const git = start(path, args);
  const chunks: Buffer[] = [];
  for await (const chunk of git.output) chunks.push(chunk);
  await git.ended;
  return Buffer.concat(chunks).toString('latin1').trim();
}

// --- The history -----------------------------------------------------------------------------

/** A pair of trees sent to diff-tree, whose answer has not begun. */
interface Asked {
  readonly sha: string;
  readonly before: string;
  readonly tree: string;
  readonly time: number;
}

/** Oldest first. Ending the iteration early ends both processes. */
export async function* readHistory(repository: Repository): AsyncGenerator<Revision, void, void> {
  const walk = start(repository.path, [
    'rev-list',
    '--reverse',
    '--topo-order',
    '--no-commit-header',
    '--format=%H %T %ct',
    repository.head,
  ]);
  const diff = start(
    repository.path,
    [
      'diff-tree',
      '--stdin',
      '-r',
      '-z',
      '--raw',
      '--no-renames',
      '--no-abbrev',
      // A .gitmodules file in the worktree could otherwise hide submodules, even added ones.
      '--ignore-submodules=none',
    ],
    'pipe',
  );
  const asked: Asked[] = [];
  const fed = quiet(pipeline(walk.output, pairsOf(repository.emptyTree, asked), diff.input!));
  try {
    const reader = new PairReader(repository.idBytes, asked);
    for await (const chunk of diff.output) {
      reader.add(chunk);
      while (reader.next()) yield reader.revision!;
    }
    // In this order, for a failure of one shows as a broken pipe in the one before it.
    await diff.ended;
    await fed;
    await walk.ended;
    const last = reader.end();
    if (last !== undefined) yield last;
  } finally {
    await Promise.all([walk.stop(), diff.stop()]);
  }
}

/** What `git diff-tree` says changes from one tree to another, whatever lies between. */
export async function diffTrees(
  repository: Repository,
  before: string,
  after: string,
): Promise<readonly Change[]> {
  const options = ['-r', '-z', '--raw', '--no-renames', '--no-abbrev', '--ignore-submodules=none'];
  const git = start(repository.path, ['diff-tree', '--stdin', ...options], 'pipe');
  try {
    git.input!.end(`${before} ${after}\n`);
    const asked = [{ sha: after, before, tree: after, time: 0 }];
    const reader = new PairReader(repository.idBytes, asked);
    for await (const chunk of git.output) {
      reader.add(chunk);
      while (reader.next()) throw new TourError('git diff-tree answered what was not asked');
    }
    await git.ended;
    return reader.end()?.changes ?? [];
  } finally {
    await git.stop();
  }
}

/** Turns rev-list's lines into pairs of trees, and remembers what was asked. */
function pairsOf(
  emptyTree: string,
  asked: Asked[],
): (lines: AsyncIterable<Buffer>) => AsyncGenerator<string, void, void> {
  return async function* (lines) {
    let before = emptyTree;
    let rest = '';
    for await (const chunk of lines) {
      const parts = (rest + chunk.toString('latin1')).split('\n');
      rest = parts.pop()!;
      let pairs = '';
      for (const line of parts) {
        const [sha, tree, time] = line.split(' ');
        if (sha === undefined || tree === undefined || time === undefined) {
          throw new TourError(`git rev-list said '${line.slice(0, 200)}'`);
        }
        asked.push({ sha, before, tree, time: Number(time) });
        pairs += `${before} ${tree}\n`;
        before = tree;
      }
      if (pairs !== '') yield pairs;
    }
    if (rest !== '') throw new TourError('git rev-list ended inside a line');
  };
}

/**
 * Reads diff-tree's output: per pair a line with the two trees, repeated even if nothing differs,
 * then NUL-terminated entries that begin with a colon. So a pair's end is seen where the next
 * begins, or at the end of the stream. Each line must be the one we asked next: diff-tree passes
 * over a pair it cannot read without an exit code.
 */
class PairReader {
  /** Valid until the next call of `next`. */
  revision: Revision | undefined = undefined;
  private readonly asked: Asked[];
  private readonly idChars: number;
  private bytes: Buffer = Buffer.alloc(0);
  private position = 0;
  private count = 0;
  private current: Asked | undefined = undefined;
  private changes: Change[] = [];

  constructor(idBytes: number, asked: Asked[]) {
    this.asked = asked;
    this.idChars = idBytes * 2;
  }

  add(chunk: Buffer): void {
    const rest = this.bytes.subarray(this.position);
    this.bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    this.position = 0;
  }

  /** Advances to the next complete revision: false if more bytes are needed for that. */
  next(): boolean {
    while (this.position < this.bytes.length) {
      if (this.bytes[this.position] === COLON) {
        if (!this.readEntry()) return false;
        continue;
      }
      const end = this.bytes.indexOf(NEWLINE, this.position);
      if (end < 0) return false;
      const line = this.bytes.toString('latin1', this.position, end);
      this.position = end + 1;
      const before = this.finish();
      const next = this.asked.shift();
      if (next === undefined || line !== `${next.before} ${next.tree}`) throw this.skipped(next);
      this.current = next;
      if (before !== undefined) {
        this.revision = before;
        return true;
      }
    }
    return false;
  }

  /** The last revision, if there is one: the stream is over. */
  end(): Revision | undefined {
    if (this.position !== this.bytes.length) {
      throw new TourError('git diff-tree ended inside an entry');
    }
    if (this.asked.length > 0) throw this.skipped(this.asked[0]);
    return this.finish();
  }

  /** `:oldmode newmode oldid newid S NUL path NUL`, all but the path of known length. */
  private readEntry(): boolean {
    const { bytes, position, idChars } = this;
    const newMode = position + 1 + 7;
    const newId = newMode + 7 + idChars + 1;
    const path = newId + idChars + 1 + 1 + 1;
    const end = path < bytes.length ? bytes.indexOf(0, path) : -1;
    if (end < 0) return false;
    if (this.current === undefined || bytes[path - 1] !== 0) {
      throw new TourError('git diff-tree gave an entry of an unknown form');
    }
    const mode = parseInt(bytes.toString('latin1', newMode, newMode + 6), 8);
    this.changes.push({
      // A copy: a view would keep the whole chunk alive.
      path: Buffer.from(bytes.subarray(path, end)),
      mode,
      id:
        mode === 0
          ? undefined
          : Buffer.from(bytes.toString('latin1', newId, newId + idChars), 'hex'),
    });
    this.position = end + 1;
    return true;
  }

  private finish(): Revision | undefined {
    const { current, changes } = this;
    if (current === undefined) return undefined;
    this.current = undefined;
    this.changes = [];
    const { sha, tree, time } = current;
    return { n: this.count++, sha, tree, time, changes };
  }

  private skipped(next: Asked | undefined): TourError {
    if (next === undefined) return new TourError('git diff-tree answered what was not asked');
    return new TourError(
      `git cannot compare tree ${next.before} with ${next.tree} of revision ${next.sha}: is an object missing?`,
    );
  }
}

// --- A tree ----------------------------------------------------------------------------------

/** `git ls-tree -r -z` of a whole tree, record by record as git writes them, without the NUL. */
export async function* listTree(
  repository: Repository,
  tree: string,
): AsyncGenerator<Buffer, void, void> {
  const git = start(repository.path, ['ls-tree', '-r', '-z', '--full-tree', tree]);
  try {
    let bytes: Buffer = Buffer.alloc(0);
    for await (const chunk of git.output) {
      bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk]);
      let position = 0;
      for (;;) {
        const end = bytes.indexOf(0, position);
        if (end < 0) break;
        yield bytes.subarray(position, end);
        position = end + 1;
      }
      bytes = bytes.subarray(position);
    }
    await git.ended;
    if (bytes.length > 0) throw new TourError('git ls-tree ended inside a record');
  } finally {
    await git.stop();
  }
}

/** The record that `git ls-tree -r -z` writes for a path, without the NUL. */
export function formatTreeRecord(path: Uint8Array, mode: number, id: Uint8Array): Buffer {
  const type = mode === MODE_SUBMODULE ? 'commit' : 'blob';
  const hex = Buffer.from(id.buffer, id.byteOffset, id.length).toString('hex');
  const head = `${mode.toString(8).padStart(6, '0')} ${type} ${hex}\t`;
  return Buffer.concat([Buffer.from(head, 'latin1'), path]);
}

// --- A path ----------------------------------------------------------------------------------

/** Names of all revisions, oldest first: the order in which `readHistory` gives them. */
export async function* listRevisions(repository: Repository): AsyncGenerator<string, void, void> {
  const walk = start(repository.path, ['rev-list', '--reverse', '--topo-order', repository.head]);
  try {
    let rest = '';
    for await (const chunk of walk.output) {
      const lines = (rest + chunk.toString('latin1')).split('\n');
      rest = lines.pop()!;
      yield* lines;
    }
    await walk.ended;
  } finally {
    await walk.stop();
  }
}

/** True when no revision has two parents: then `git log` of a path is the history of its changes. */
export async function isLinear({ path, head }: Repository): Promise<boolean> {
  return (await ask(path, ['rev-list', '--min-parents=2', '--max-count=1', head])) === '';
}

/** Revisions that `git log` names for a path, oldest first. */
export async function logOf(repository: Repository, file: string): Promise<string[]> {
  const { path, head } = repository;
  const options = ['--topo-order', '--reverse', '--format=%H', '--no-renames'];
  const said = await ask(path, ['log', ...options, head, '--', `:(top,literal)${file}`]);
  return said === '' ? [] : said.split('\n');
}

/**
 * Ids of what `git cat-file` finds at a path in each of the revisions; undefined where there is no file.
 * Requires: the path has no line end, and was no submodule in any of them.
 */
export async function idsAt(
  repository: Repository,
  revisions: readonly string[],
  file: Buffer,
): Promise<(string | undefined)[]> {
  const git = start(repository.path, ['cat-file', '--batch-check', '--buffer'], 'pipe');
  try {
    const name = (sha: string): Buffer => Buffer.concat([Buffer.from(`${sha}:`), file, NEWLINES]);
    const fed = quiet(pipeline(revisions.map(name), git.input!));
    const ids: (string | undefined)[] = [];
    let rest = '';
    for await (const chunk of git.output) {
      const lines = (rest + chunk.toString('latin1')).split('\n');
      rest = lines.pop()!;
      for (const line of lines) {
        // Otherwise it is a directory, or the name that was asked for with the word that it is missing.
        ids.push(/^([0-9a-f]+) blob \d+$/.exec(line)?.[1]);
      }
    }
    await git.ended;
    await fed;
    if (ids.length !== revisions.length) throw new TourError('git cat-file left out an answer');
    return ids;
  } finally {
    await git.stop();
  }
}

// --- Processes -------------------------------------------------------------------------------

interface Running {
  readonly input: Writable | undefined;
  readonly output: AsyncIterable<Buffer>;
  /** Settles once the process is gone: rejected if it failed, unless we stopped it. */
  readonly ended: Promise<void>;
  stop(): Promise<void>;
}

/** Git's own last words, for callers that know better what they mean. */
class GitFailure extends TourError {
  readonly text: string;

  constructor(message: string, text: string) {
    super(message);
    this.text = text;
  }
}

function start(
  path: string,
  args: readonly string[],
  input: 'ignore' | 'pipe' = 'ignore',
): Running {
  const child = spawn('git', ['-C', path, ...args], {
    env: environment(),
    stdio: [input, 'pipe', 'pipe'],
    windowsHide: true,
  });
  let stopped = false;
  let words = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    if (words.length < errorTextCharsMax) words += text;
  });
  const ended = new Promise<void>((resolve, reject) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      const missing = error.code === 'ENOENT';
      reject(
        new TourError(
          missing
            ? 'git is not installed, or not on the PATH'
            : `git does not start: ${error.message}`,
        ),
      );
    });
    child.once('close', (code, signal) => {
      if (code === 0 || stopped) resolve();
      else reject(new GitFailure(explain(path, args[0], words, code, signal), words));
    });
  });
  return {
    input: child.stdin ?? undefined,
    output: child.stdout!,
    ended: quiet(ended),
    async stop() {
      stopped = true;
      child.kill('SIGKILL');
      await ended.catch(() => {});
    },
  };
}

function explain(
  path: string,
  command: string | undefined,
  words: string,
  code: number | null,
  signal: string | null,
): string {
  if (words.includes('dubious ownership')) {
    return `git does not trust ${path} (dubious ownership); if you do: git config --global --add safe.directory <its full path>`;
  }
  if (/not a git repository/i.test(words)) return `${path} is not in a git repository`;
  const line = words.split('\n', 1)[0].replace(/^(fatal|error): /, '');
  if (line.startsWith('cannot change to')) return `no such directory: ${path}`;
  return `git ${command}: ${line || (signal ?? `exit code ${code}`)}`;
}

/** The caller's environment without what would point git to another repository or another history. */
function environment(): NodeJS.ProcessEnv {
  const {
    GIT_DIR: _dir,
    GIT_WORK_TREE: _workTree,
    GIT_INDEX_FILE: _index,
    GIT_COMMON_DIR: _common,
    GIT_OBJECT_DIRECTORY: _objects,
    GIT_ALTERNATE_OBJECT_DIRECTORIES: _alternates,
    GIT_NAMESPACE: _namespace,
    GIT_PREFIX: _prefix,
    GIT_GRAFT_FILE: _grafts,
    GIT_SHALLOW_FILE: _shallow,
    GIT_LITERAL_PATHSPECS: _literal,
    ...rest
  } = process.env;
  return {
    ...rest,
    GIT_NO_REPLACE_OBJECTS: '1',
    GIT_OPTIONAL_LOCKS: '0',
    GIT_TERMINAL_PROMPT: '0',
    LC_ALL: 'C', // We read its messages.
  };
}

/** Somebody awaits it later, or nobody because something else failed first. */
function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}
