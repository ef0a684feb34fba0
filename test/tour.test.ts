/**
 * Goal: `npm start` does what it says on a repository that holds everything odd, says so, leaves
 * nothing behind, and begins nothing it cannot finish; and its checks do fail when something is
 * wrong. Method: the tour as a process with a short load; the checks on stores spoilt by hand.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { open } from '../actors/index.ts';
import type { Engine } from '../actors/index.ts';
import { checkVersions } from '../examples/tour/follow.ts';
import { openRepository, readHistory } from '../examples/tour/git.ts';
import type { Change, Repository } from '../examples/tour/git.ts';
import { checkSurvivors, writeUntilKilled } from '../examples/tour/kill.ts';
import { checkTenants } from '../examples/tour/load.ts';
import { checkRevision, chooseRevisions, commitRevision, replay } from '../examples/tour/replay.ts';
import { openCollections, revisionKey } from '../examples/tour/rows.ts';
import type { Collections } from '../examples/tour/rows.ts';
import { smallStore } from '../examples/tour/store-sizes.ts';
import { commitTenantRevision, holdHistory } from '../examples/tour/tenants.ts';
import { TourError } from '../examples/tour/tour-error.ts';
import { ODD_PATHS, git, initRepository, isolateGit, makeOddRepository } from './tour/repo.ts';
import type { MadeRepository } from './tour/repo.ts';

const MAIN = fileURLToPath(new URL('../examples/tour/main.ts', import.meta.url));
const DATA = fileURLToPath(new URL('../.tidemark-tour', import.meta.url));

let scratch: string;
let odd: MadeRepository;

before(() => {
  isolateGit();
  scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'tidemark-tour-'));
  odd = makeOddRepository(path.join(scratch, 'odd'));
});
after(() => fs.rmSync(scratch, { recursive: true, force: true }));

interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
  /** Where it kept its data. */
  readonly data: string;
}

function run(args: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<Ran> {
  const child = spawn(process.execPath, ['--import', 'tsx', MAIN, ...args], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text;
  });
  const data = path.join(DATA, `run-${child.pid}`);
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, out, err, data }));
  });
}

describe('the tour', () => {
  test('replays, checks, loads, kills and draws, and leaves nothing behind', async () => {
    const { code, out, err, data } = await run([odd.path, '--seconds=1']);
    assert.equal(err, '');
    assert.equal(code, 0, out);
    const count = odd.subjects.length;
    for (const line of [
      new RegExp(`✓ ${count} transactions with \\d+ changes`),
      new RegExp(`✓ files as of ${count} revisions equal git ls-tree, \\d+ rows byte for byte`),
      /✓ changes\(\) of the whole history equals git diff-tree, [\d,]+ changes/,
      /✓ diff\(a, b\) equals git diff-tree a b, \d+ pairs/,
      /✓ versions\(path\) equals what git log and git cat-file find, [\d,]+ versions of 10 paths/,
      /✓ reopened in .*, and still so/,
      /✓ [\d,]+ tenants, [\d,]+ transactions in .*\/s/,
      /✓ the first, the last and the unfinished tenant equal git/,
      /SIGKILL after .*, with [\d,]+ transactions acknowledged/,
      /✓ opened in .*: all [\d,]+ are there, whole and at their offsets/,
      /event loop .* delay p99 under load/,
      /log of the history/,
      /merging of the tenants/,
      /every check holds/,
    ]) {
      assert.match(out, line);
    }
    assert.doesNotMatch(out, /✗/);
    assert.equal(out.includes('\x1b'), false, 'no control characters without a terminal');
    assert.equal(fs.existsSync(data), false);
  });

  test('of a shallow clone, with figures as JSON, and data kept for a look', async () => {
    const clone = path.join(scratch, 'shallow');
    const source = pathToFileURL(odd.path).href;
    git(scratch, ['clone', '-q', '--bare', '--depth=3', source, clone]);
    const { code, out, err, data } = await run([clone, '--seconds=0.2', '--json', '--keep']);
    try {
      assert.equal(code, 0, err);
      const figures: Record<string, Record<string, unknown>> = JSON.parse(out);
      assert.equal(figures['replayed']['revisions'], figures['repository']['revisionCount']);
      assert.ok(Number(figures['killed']['acknowledged']) > 0);
      assert.match(err, /every check holds/);
      assert.deepEqual(fs.readdirSync(data), ['history', 'killed', 'tenants']);
    } finally {
      fs.rmSync(data, { recursive: true, force: true });
    }
  });

  test('says in one line why it cannot begin, with exit code 2 and no data', async () => {
    const plain = path.join(scratch, 'plain');
    fs.mkdirSync(plain);
    const unborn = path.join(scratch, 'unborn');
    initRepository(unborn);
    const { PATH, ...rest } = process.env;
    assert.ok(PATH !== undefined);
    const ran = await Promise.all([
      run([plain]),
      run([path.join(scratch, 'absent')]),
      run([unborn]),
      run([odd.path], { ...rest, PATH: plain }),
      run([odd.path], { ...process.env, GIT_TEST_ASSUME_DIFFERENT_OWNER: '1' }),
      run(['--nope']),
    ]);
    const lines = [
      /^tour: .*plain is not in a git repository\n$/,
      /^tour: no such directory: .*absent\n$/,
      /^tour: the repository at .*unborn has no commits\n$/,
      /^tour: git is not installed, or not on the PATH\n$/,
      /^tour: git does not trust .*dubious ownership.*\n$/,
      /^tour: Unknown option '--nope'.*\n$/,
    ];
    for (const [i, { code, out, err, data }] of ran.entries()) {
      assert.equal(code, 2);
      assert.equal(out, '');
      assert.match(err, lines[i]);
      assert.equal(fs.existsSync(data), false);
    }
  });

  test('the killed writer knows the history that was read, whatever is committed meanwhile', async () => {
    const growing = makeOddRepository(path.join(scratch, 'growing')).path;
    const repository = await openRepository(growing);
    const history = await holdHistory(repository);
    const tree = git(growing, ['rev-parse', 'HEAD^{tree}']).trim();
    const late = git(growing, ['commit-tree', '-p', 'HEAD', '-m', 'late', tree]).trim();
    git(growing, ['update-ref', 'HEAD', late]);
    let directory = '';
    let offsets: Float64Array = new Float64Array(0);
    // It comes to the second tenant, if it is given the time.
    for (let ms = 500; offsets.length <= history.length; ms *= 3) {
      assert.ok(ms < 500_000, `${offsets.length} of ${history.length}`);
      directory = path.join(scratch, `killed-${ms}`);
      ({ offsets } = await writeUntilKilled(repository, directory, ms, () => {}));
    }
    const engine = await open(directory, await smallStore(repository));
    try {
      checkSurvivors(await openCollections(engine, Infinity), history, offsets);
    } finally {
      await engine.close();
    }
  });

  test('explains itself', async () => {
    const { code, out } = await run(['--help']);
    assert.equal(code, 0);
    assert.match(out, /^usage: npm start -- \[path\]/);
  });
});

async function withStore(
  name: string,
  work: (engine: Engine, collections: Collections) => Promise<void>,
): Promise<void> {
  const engine = await open(path.join(scratch, name), { threads: 0 });
  try {
    await work(engine, await openCollections(engine, Infinity));
  } finally {
    await engine.close();
  }
}

const foundWrong = (error: unknown): boolean =>
  error instanceof TourError && error.exitCode === 1 && error.message.startsWith('check failed');

describe('the checks fail when something is wrong', () => {
  let repository: Repository;
  before(async () => {
    repository = await openRepository(odd.path);
  });

  test('a row too much, too little or different', async () => {
    await withStore('rows', async (engine, collections) => {
      const { files, revisions } = collections;
      const { firstOffset, revisions: count } = await replay(
        engine,
        collections,
        repository,
        () => {},
      );
      const last = count - 1;
      const check = (at: number): Promise<number> =>
        checkRevision(repository, collections, last, at);
      assert.equal(await check(firstOffset + last), await check(firstOffset + last));
      await assert.rejects(check(firstOffset + last - 1), foundWrong, 'not there yet');
      await assert.rejects(check(firstOffset + last + 1), 'not reached');

      const [key, value] = [...files.entries()][0];
      for (const spoil of [
        () => files.delete(key),
        () => files.put(key, Buffer.concat([value, Buffer.from('x')])),
        () => files.put(Buffer.from('zzz'), value),
        () => files.put(Buffer.from('\0'), value),
      ]) {
        const { offset } = await spoil();
        // As if the revision had been committed there.
        const row = revisions.getSync(last)!;
        await revisions.delete(last);
        const again = await revisions.put(last, row);
        assert.ok(again.offset > offset);
        await assert.rejects(check(again.offset), foundWrong);
        const undo = engine.transaction().put(files, key, value);
        await undo.delete(files, Buffer.from('zzz')).delete(files, Buffer.from('\0')).commit();
        await revisions.delete(last);
        await check((await revisions.put(last, row)).offset);
      }
    });
  });

  test('a version too much, too little or different, with merges and without', async () => {
    const straight = path.join(scratch, 'straight');
    initRepository(straight);
    let tip = '';
    for (const [n, text] of ['a', 'b', '', 'b', 'c', 'c'].entries()) {
      const blob = git(straight, ['hash-object', '-w', '--stdin'], text).trim();
      const mode = n === 5 ? '100755' : '100644';
      const tree = text === '' ? '' : `${mode} blob ${blob}\tfile\n`;
      const other = `100644 blob ${blob}\tother ${n}\n`;
      const id = git(straight, ['mktree'], tree + other).trim();
      const parents = tip === '' ? [] : ['-p', tip];
      tip = git(straight, ['commit-tree', id, ...parents, '-m', `${n}`]).trim();
    }
    git(straight, ['update-ref', 'HEAD', tip]);
    const linear = await openRepository(straight);
    // Each is given a change of the file and its number among them.
    const spoils: readonly ((change: Change, k: number) => Change | undefined)[] = [
      (change) => change,
      (change, k) => (k === 1 ? undefined : change),
      (change, k) => (k === 0 ? { ...change, mode: 0, id: undefined } : change),
      ({ id, ...change }) => ({ ...change, id: id && Buffer.alloc(id.length) }),
    ];
    for (const [source, file] of [
      [repository, ODD_PATHS[3]],
      [linear, Buffer.from('file')],
    ] as const) {
      for (const [s, spoil] of spoils.entries()) {
        await withStore(`versions-${file.length}-${s}`, async (engine, collections) => {
          let firstOffset = -1;
          let k = 0;
          for await (const revision of readHistory(source)) {
            const changes = revision.changes.flatMap((change) =>
              change.path.equals(file) ? (spoil(change, k++) ?? []) : [change],
            );
            const { offset } = await commitRevision(engine, collections, { ...revision, changes });
            if (firstOffset < 0) firstOffset = offset;
          }
          assert.ok(k > 1, 'it was tried');
          const checking = checkVersions(source, collections, firstOffset);
          if (s > 0) await assert.rejects(checking, foundWrong, `spoilt by ${s}`);
          else assert.ok((await checking).versions > 10, 'there is something to check');
        });
      }
    }
  });

  test('an acknowledged transaction that is missing, elsewhere or not whole', async () => {
    await withStore('survivors', async (engine, collections) => {
      const history = await holdHistory(repository);
      const offsets: number[] = [];
      const total = history.length * 2 + 3;
      for (let sequence = 0; sequence < total; sequence++) {
        offsets.push((await commitTenantRevision(engine, collections, history, sequence)).offset);
      }
      const told = Float64Array.from(offsets);
      const { rows, ...counts } = checkSurvivors(collections, history, told);
      assert.deepEqual(counts, { acknowledged: total, unacknowledged: 0 });
      assert.ok(rows > total);
      const fewer = checkSurvivors(collections, history, told.subarray(0, total - 5));
      assert.equal(fewer.unacknowledged, 5);
      await checkTenants(repository, collections, history, total);

      const more = Float64Array.from([...offsets, offsets.at(-1)! + 1]);
      assert.throws(() => checkSurvivors(collections, history, more), foundWrong);
      const shifted = told.map((offset, i) => (i === 4 ? offset + 1 : offset));
      assert.throws(() => checkSurvivors(collections, history, shifted), foundWrong);

      const other = history.map((revision, n) =>
        n === 1
          ? { ...revision, values: revision.values.map(() => Buffer.from('other')) }
          : revision,
      );
      assert.throws(() => checkSurvivors(collections, other, told), foundWrong);
      await collections.files.put(Buffer.from([0, 0, 0, 1, 0x21]), Buffer.alloc(24));
      await assert.rejects(checkTenants(repository, collections, history, total), foundWrong);
      await collections.revisions.delete(revisionKey(1, 2));
      assert.throws(() => checkSurvivors(collections, history, told), foundWrong);
    });
  });

  test('of a long history both ends and 25 between are checked, of a short one all', () => {
    assert.deepEqual(chooseRevisions(3), [0, 1, 2]);
    assert.deepEqual(chooseRevisions(1), [0]);
    const chosen = chooseRevisions(1_000_000);
    assert.equal(chosen.length, 27);
    assert.equal(chosen[0], 0);
    assert.equal(chosen.at(-1), 999_999);
    assert.equal(new Set(chosen).size, 27);
  });
});
