/**
 * Goal: the tour's stream of a repository's history is exactly git's, whatever the repository
 * holds, and what cannot be read is said in one line. Method: fold every revision's changes into a
 * plain map and compare it with `git ls-tree` of that revision, record by record.
 */
import assert from 'node:assert/strict';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import {
  MODE_LINK,
  MODE_SUBMODULE,
  formatTreeRecord,
  listTree,
  openRepository,
  readHistory,
} from '../examples/tour/git.ts';
import type { Repository, Revision } from '../examples/tour/git.ts';
import { TourError } from '../examples/tour/tour-error.ts';
import {
  ODD_PATHS,
  git,
  initRepository,
  isolateGit,
  makeLongRepository,
  makeOddRepository,
  rev,
} from './tour/repo.ts';
import type { MadeRepository } from './tour/repo.ts';

let scratch: string;
let odd: MadeRepository;

before(() => {
  isolateGit();
  scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'tidemark-tour-git-'));
  odd = makeOddRepository(path.join(scratch, 'odd'));
});
after(() => fs.rmSync(scratch, { recursive: true, force: true }));

async function history(repository: Repository): Promise<Revision[]> {
  const revisions: Revision[] = [];
  for await (const revision of readHistory(repository)) revisions.push(revision);
  return revisions;
}

/** Folds the whole history and compares the result with git at every revision. */
async function assertEqualsGit(directory: string): Promise<Revision[]> {
  const repository = await openRepository(directory);
  const revisions = await history(repository);
  assert.equal(revisions.length, repository.revisionCount);
  const files = new Map<string, Buffer>();
  for (const [i, revision] of revisions.entries()) {
    assert.equal(revision.n, i);
    for (const change of revision.changes) {
      const key = change.path.toString('latin1');
      if (change.id === undefined) assert.ok(files.delete(key), 'what is deleted was there');
      else files.set(key, formatTreeRecord(change.path, change.mode, change.id));
    }
    const expected: string[] = [];
    for await (const record of listTree(repository, revision.tree)) {
      expected.push(record.toString('latin1'));
    }
    const keys = [...files.keys()].toSorted((a, b) =>
      Buffer.compare(Buffer.from(a, 'latin1'), Buffer.from(b, 'latin1')),
    );
    const actual = keys.map((key) => files.get(key)!.toString('latin1'));
    assert.deepEqual(actual, expected, `revision ${i}`);
  }
  return revisions;
}

async function refusal(work: Promise<unknown>): Promise<string> {
  let message = '';
  await assert.rejects(work, (error: unknown) => {
    assert.ok(error instanceof TourError);
    assert.equal(error.exitCode, 2);
    assert.doesNotMatch(error.message, /\n/);
    message = error.message;
    return true;
  });
  return message;
}

describe('the history equals git', () => {
  test('merges, renames, modes, odd bytes, links, submodules and empty commits', async () => {
    const revisions = await assertEqualsGit(odd.path);
    const repository = await openRepository(odd.path);
    const named = new Map(odd.subjects.map((subject, n) => [subject, revisions[n]]));
    const changes = (subject: string): [string, number][] =>
      named.get(subject)!.changes.map((change) => [change.path.toString('latin1'), change.mode]);

    assert.equal(revisions.at(-1)!.sha, repository.head);
    assert.equal(revisions.at(-1)!.tree, repository.headTree);
    assert.equal(revisions.at(-1)!.tree, named.get('directory becomes file')!.tree);
    assert.deepEqual(changes('nothing changed'), []);
    assert.deepEqual(changes('submodule moves on'), [['modules/sub', MODE_SUBMODULE]]);
    assert.ok(changes('symlink and submodule').some(([, mode]) => mode === MODE_LINK));
    assert.deepEqual(changes('file becomes directory'), [
      ['README', 0],
      ['README/inside', 0o100644],
    ]);
    const oddNames = new Set(changes('odd paths').map(([name]) => name));
    assert.deepEqual(oddNames, new Set(ODD_PATHS.map((bytes) => bytes.toString('latin1'))));
    assert.ok(changes('everything is gone').every(([, mode]) => mode === 0));
    // The committer's time in seconds, as written.
    assert.equal(named.get('first files')!.time, 1_700_000_060);
  });

  test('SHA-256 repositories', async () => {
    const made = makeOddRepository(path.join(scratch, 'sha256'), 'sha256');
    const revisions = await assertEqualsGit(made.path);
    assert.equal(revisions.length, odd.subjects.length);
    assert.equal(revisions[0].changes[0].id!.length, 32);
    assert.equal((await openRepository(made.path)).idBytes, 32);
  });

  test('shallow clones begin with the whole tree', async () => {
    const clone = path.join(scratch, 'shallow');
    const source = pathToFileURL(odd.path).href;
    git(scratch, ['clone', '-q', '--bare', '--depth=3', source, clone]);
    const revisions = await assertEqualsGit(clone);
    assert.ok(revisions.length < odd.subjects.length);
  });

  test('from a subdirectory, a linked worktree and a detached head', async () => {
    git(odd.path, ['worktree', 'add', '-q', '--detach', '../linked', 'other']);
    const inside = path.join(scratch, 'linked', 'other');
    assert.ok(fs.existsSync(inside));
    const revisions = await assertEqualsGit(inside);
    assert.equal(revisions.at(-1)!.sha, rev(odd.path, 'other'));
  });

  test('replacements do not take part', async () => {
    const copy = makeOddRepository(path.join(scratch, 'replaced'));
    git(copy.path, ['replace', 'main^{tree}', 'main~4^{tree}']);
    git(copy.path, ['replace', '--graft', 'main~1']);
    const revisions = await assertEqualsGit(copy.path);
    assert.deepEqual(
      revisions.map(({ sha }) => sha),
      (await history(await openRepository(odd.path))).map(({ sha }) => sha),
    );
  });

  test('commits made while it is read do not take part', async () => {
    const growing = makeLongRepository(path.join(scratch, 'growing'), 50);
    const repository = await openRepository(growing.path);
    const more = ['commit-tree', '-p', 'main', '-m', 'late', rev(growing.path, 'main^{tree}')];
    git(growing.path, ['update-ref', 'refs/heads/main', git(growing.path, more).trim()]);
    assert.equal((await history(repository)).length, 50);
  });

  test('thousands of revisions keep their order through full pipes', async () => {
    const long = makeLongRepository(path.join(scratch, 'long'), 6_000);
    const repository = await openRepository(long.path);
    const shas = git(long.path, ['rev-list', '--reverse', '--topo-order', 'main']).trim();
    assert.deepEqual(
      (await history(repository)).map(({ sha }) => sha),
      shas.split('\n'),
    );
    // Ending early ends git as well, with much of the history unread.
    let seen = 0;
    for await (const revision of readHistory(repository)) {
      assert.equal(revision.n, seen++);
      if (seen === 3) break;
    }
    assert.equal(seen, 3);
  });
});

describe('what cannot be read is said in one line, with exit code 2', () => {
  test('no such directory, a file, no repository', async () => {
    const file = path.join(scratch, 'file');
    fs.writeFileSync(file, '');
    const plain = path.join(scratch, 'plain');
    fs.mkdirSync(plain);
    assert.match(await refusal(openRepository(path.join(scratch, 'absent'))), /no such directory/);
    assert.match(await refusal(openRepository(file)), /no such directory/);
    assert.match(await refusal(openRepository(plain)), /not in a git repository/);
  });

  test('no commits', async () => {
    const bare = path.join(scratch, 'unborn');
    initRepository(bare);
    assert.match(await refusal(openRepository(bare)), /has no commits/);
  });

  test('no git', async () => {
    const { PATH } = process.env;
    process.env['PATH'] = path.join(scratch, 'nothing-here');
    try {
      assert.match(await refusal(openRepository(odd.path)), /git is not installed/);
    } finally {
      process.env['PATH'] = PATH;
    }
  });

  test('dubious ownership', async () => {
    // Git's own switch for its tests: as if somebody else owned the directory.
    process.env['GIT_TEST_ASSUME_DIFFERENT_OWNER'] = '1';
    try {
      assert.match(await refusal(openRepository(odd.path)), /dubious ownership/);
    } finally {
      delete process.env['GIT_TEST_ASSUME_DIFFERENT_OWNER'];
    }
  });

  test('a missing tree, which git itself passes over', async () => {
    const broken = makeOddRepository(path.join(scratch, 'broken'));
    const repository = await openRepository(broken.path);
    const tree = rev(broken.path, 'main~3^{tree}');
    fs.rmSync(path.join(broken.path, '.git/objects', tree.slice(0, 2), tree.slice(2)));
    assert.match(await refusal(history(repository)), /cannot compare tree/);
  });

  test('a missing commit', async () => {
    const broken = makeOddRepository(path.join(scratch, 'broken-walk'));
    const repository = await openRepository(broken.path);
    const commit = rev(broken.path, 'main~3');
    fs.rmSync(path.join(broken.path, '.git/objects', commit.slice(0, 2), commit.slice(2)));
    assert.match(await refusal(history(repository)), /git rev-list/);
  });
});
