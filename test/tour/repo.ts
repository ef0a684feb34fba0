/**
 * Makes the repositories the tour is tested on: every object id is the same on every machine, for
 * dates and names are fixed and nobody's git configuration is read. History is written by one
 * `git fast-import`, so no worktree, file system or umask takes part.
 * Called by tests only.
 */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';

const FIRST_TIME = 1_700_000_000;
/** Repeated to an id's length: a submodule's commits need not be there. */
const SUBMODULE_A = '1a';
const SUBMODULE_B = '2b';

/** Names that text handling would break: bytes that are no UTF-8, line ends, quotes, what looks like output. */
export const ODD_PATHS: readonly Buffer[] = [
  Buffer.from('odd/new\nline'),
  Buffer.from('odd/"quoted"\\back'),
  Buffer.from('odd/tab\tand space '),
  Buffer.from([...Buffer.from('odd/'), 0xff, 0xfe, 0x80, 0x01]),
  Buffer.from('odd/ümlaut-日本'),
  Buffer.from(':100644 100644'),
  Buffer.from('-r'),
  // In a tree, 'a.b' comes before the directory 'a', as in memcmp of whole paths.
  Buffer.from('a.b'),
  Buffer.from('a/x'),
  Buffer.from('a0'),
];

/** What the repository of `makeOddRepository` contains, as far as tests name it. */
export interface MadeRepository {
  readonly path: string;
  /** Subjects of the commits in the order of the history. */
  readonly subjects: readonly string[];
}

/** From now on nothing but the repository itself configures git, in this process and its children. */
export function isolateGit(): void {
  for (const name of Object.keys(process.env)) {
    if (name.startsWith('GIT_')) delete process.env[name];
  }
  Object.assign(process.env, {
    GIT_CONFIG_NOSYSTEM: '1',
    GIT_CONFIG_GLOBAL: os.devNull,
    GIT_AUTHOR_NAME: 'Tide',
    GIT_AUTHOR_EMAIL: 'tide@example.org',
    GIT_AUTHOR_DATE: `${FIRST_TIME} +0000`,
    GIT_COMMITTER_NAME: 'Tide',
    GIT_COMMITTER_EMAIL: 'tide@example.org',
    GIT_COMMITTER_DATE: `${FIRST_TIME} +0000`,
  });
}

/** Requires: isolateGit. */
export function git(cwd: string, args: readonly string[], input: string | Buffer = ''): string {
  return execFileSync('git', args, {
    cwd,
    input,
    encoding: 'latin1',
    stdio: ['pipe', 'pipe', 'pipe'],
    maxBuffer: 64 * 1024 * 1024,
  });
}

export function initRepository(directory: string, format: 'sha1' | 'sha256' = 'sha1'): void {
  fs.mkdirSync(directory, { recursive: true });
  git(directory, ['init', '-q', '-b', 'main', `--object-format=${format}`, '.']);
}

/**
 * Merges (one of three parents), two roots, renames, mode changes, a file that becomes a directory
 * and back, a symlink, a submodule added, moved on and removed, odd bytes, an empty commit, a
 * commit that empties the tree, and one that goes back to an older tree. A .gitmodules file asks
 * every diff to pass over the submodule.
 */
export function makeOddRepository(
  directory: string,
  format: 'sha1' | 'sha256' = 'sha1',
): MadeRepository {
  initRepository(directory, format);
  const idChars = format === 'sha1' ? 40 : 64;
  const submoduleA = SUBMODULE_A.repeat(idChars / 2);
  const submoduleB = SUBMODULE_B.repeat(idChars / 2);
  const story = new Story();
  const main = 'main';

  story.commit(main, 'first files', [
    file('README', 'hello\n'),
    file('src/a.ts', 'export {}\n'),
    file('src/deep/er/b.ts', 'b\n'),
    file('tool', '#!/bin/sh\n'),
  ]);
  story.commit(
    main,
    'odd paths',
    ODD_PATHS.map((bytes, i) => file(bytes, `odd ${i}\n`)),
  );
  const fork = story.commit(main, 'symlink and submodule', [
    file('link', 'src/a.ts', '120000'),
    `M 160000 ${submoduleA} modules/sub\n`,
    file('.gitmodules', '[submodule "s"]\n\tpath = modules/sub\n\turl = ./s\n\tignore = all\n'),
  ]);
  const side = story.commit('side', 'side: rename', [rename('src/a.ts', 'src/renamed.ts')], [fork]);
  const edits = [file('README', 'hello from other\n'), file('other/only', 'o\n')];
  const other = story.commit('other', 'other: edits', edits, [fork]);
  story.commit(main, 'mode change', [file('tool', '#!/bin/sh\n', '100755')]);
  const tip = story.commit(main, 'odd path again', [file(ODD_PATHS[3], 'changed\n')]);
  story.commit(main, 'merge of two', [rename('src/a.ts', 'src/renamed.ts')], [tip, side]);
  const empty = story.commit(main, 'nothing changed', []);
  story.commit(main, 'merge of three', edits, [empty, other, side]);
  story.commit(main, 'submodule moves on', [`M 160000 ${submoduleB} modules/sub\n`]);
  const nested = story.commit(main, 'file becomes directory', [
    'D README\n',
    file('README/inside', 'in\n'),
  ]);
  const rootFile = file('from/another/root', 'r\n');
  const root = story.commit('second-root', 'second root', [rootFile]);
  story.commit(main, 'merge of the second root', [rootFile], [nested, root]);
  story.commit(main, 'type change', [file('link', 'no link now\n'), 'D modules/sub\n']);
  story.commit(main, 'directory becomes file', ['D README\n', file('README', 'back\n')]);
  story.commit(main, 'everything is gone', ['deleteall\n']);
  story.commit(main, 'one file', [file('README', 'alone\n')]);
  git(directory, ['fast-import', '--quiet', '--date-format=raw'], story.bytes());

  const tree = `${rev(directory, 'main~2')}^{tree}`;
  const back = ['commit-tree', '-p', 'main', '-m', 'everything is back', rev(directory, tree)];
  git(directory, ['update-ref', 'refs/heads/main', git(directory, back).trim()]);
  // Git looks for submodules' settings here; one of them would hide the submodule.
  fs.writeFileSync(path.join(directory, '.gitmodules'), blob(directory, 'main:.gitmodules'));
  const log = ['log', '--reverse', '--topo-order', '--format=%s', 'main'];
  return { path: directory, subjects: git(directory, log).trim().split('\n') };
}

/** `count` commits on one branch, each touching one of a few files; a merge every tenth. */
export function makeLongRepository(directory: string, count: number): MadeRepository {
  initRepository(directory);
  const story = new Story();
  let tip = story.commit('main', 'commit 0', [file('f0', '0\n')]);
  const subjects = ['commit 0'];
  for (let n = 1; n < count; n++) {
    const parents = n % 10 === 9 ? [tip, tip - 1] : [tip];
    tip = story.commit('main', `commit ${n}`, [file(`dir${n % 7}/f${n % 31}`, `${n}\n`)], parents);
    subjects.push(`commit ${n}`);
  }
  git(directory, ['fast-import', '--quiet', '--date-format=raw'], story.bytes());
  return { path: directory, subjects };
}

export function rev(directory: string, name: string): string {
  return git(directory, ['rev-parse', '--verify', name]).trim();
}

export function blob(directory: string, name: string): string {
  return git(directory, ['cat-file', 'blob', name]);
}

/** A stream for `git fast-import`: commits in order, named by their marks. */
class Story {
  private readonly parts: (string | Buffer)[] = [];
  private mark = 0;

  /** On top of `branch`, or of `parents` (then a merge if there are several). */
  commit(
    branch: string,
    subject: string,
    edits: readonly (string | Buffer)[],
    parents: readonly number[] = [],
  ): number {
    const mark = ++this.mark;
    this.parts.push(
      `commit refs/heads/${branch}\nmark :${mark}\n`,
      `committer Tide <tide@example.org> ${FIRST_TIME + mark * 60} +0000\n`,
      data(subject),
      ...parents.map((parent, i) => `${i === 0 ? 'from' : 'merge'} :${parent}\n`),
      ...edits,
      '\n',
    );
    return mark;
  }

  bytes(): Buffer {
    return Buffer.concat(this.parts.map((part) => Buffer.from(part)));
  }
}

function file(name: string | Buffer, text: string, mode: string = '100644'): string {
  return `M ${mode} inline ${quote(name)}\n${data(text)}`;
}

function rename(from: string, to: string): string {
  return `R ${quote(from)} ${quote(to)}\n`;
}

function data(text: string): string {
  return `data ${Buffer.byteLength(text)}\n${text}\n`;
}

/** As git quotes: every byte that is not a plain letter in octal. */
function quote(name: string | Buffer): string {
  const letters = Array.from(Buffer.from(name), (byte) => {
    const plain = byte > 0x20 && byte < 0x7f && byte !== 0x22 && byte !== 0x5c;
    return plain ? String.fromCharCode(byte) : `\\${byte.toString(8).padStart(3, '0')}`;
  });
  return `"${letters.join('')}"`;
}
