/**
 * Goal: the commands that make a store or change one do what docs/cli.md says, with its exit codes, write
 * nothing that was not asked for, and refuse beside a live engine what needs its lock. Each command is a
 * process of its own, over the compiled sources.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { open } from '../actors/index.ts';
import { NodeStorage } from '../actors/node-storage.ts';
import { readManifest } from '../core/store/look.ts';
import {
  OPTIONS,
  contentsOf,
  copyOf,
  fill,
  flip,
  freshDirectory,
  makeStore,
  verify,
} from './store/kit.ts';

const SCRIPT = fileURLToPath(new URL('../dist/bin/tidemark.js', import.meta.url));

type Result = { code: number | null; out: string; errors: string };

function run(...args: string[]): Promise<Result> {
  return runTyping('', ...args);
}

function runTyping(typed: string, ...args: string[]): Promise<Result> {
  const child = spawn(process.execPath, [SCRIPT, ...args], { stdio: 'pipe' });
  // It may have ended without reading.
  child.stdin.on('error', () => {});
  child.stdin.end(typed);
  let out = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, out, errors }));
  });
}

/** Its report, after it has succeeded. */
async function json(...args: string[]): Promise<{ [name: string]: unknown }> {
  const { code, out, errors } = await run(...args, '--json');
  assert.equal(code, 0, errors);
  return JSON.parse(out) as { [name: string]: unknown };
}

/** Without printing megabytes where it is not so. */
function sameContents(a: Map<string, string>, b: Map<string, string>): boolean {
  return a.size === b.size && [...a].every(([path, bytes]) => b.get(path) === bytes);
}

async function refused(code: number, message: RegExp, ...args: string[]): Promise<void> {
  const result = await run(...args);
  assert.equal(result.code, code, `${args.join(' ')}: ${result.out}${result.errors}`);
  assert.match(result.errors, message);
  assert.match(result.errors, /^tidemark: [^\n]+\n$/, 'one line');
  assert.equal(result.out, '');
}

let store = '';
let crashed = '';
let upper = 0;

before(async () => {
  store = await makeStore(true);
  crashed = await makeStore(false);
  upper = verify(store).next!;
});

test('backup copies a store that nobody has open, and changes nothing in it', async () => {
  await json('backup', copyOf(crashed), freshDirectory());
  for (const source of [store, copyOf(crashed)]) {
    // The copy of one that is open elsewhere brought a LOCK along, which is nobody's here.
    rmSync(join(source, 'LOCK'), { force: true });
    const contents = contentsOf(source);
    const target = freshDirectory();
    const report = await json('backup', source, target);
    assert.ok(sameContents(contentsOf(source), contents), 'not a byte is changed');
    assert.equal(report['live'], false);
    assert.equal(report['offset'], upper - 1);
    assert.deepEqual(verify(target).findings, []);
    assert.equal(verify(target).next, upper);
  }
  const { code, out } = await run('backup', store, freshDirectory());
  assert.equal(code, 0);
  assert.match(out, new RegExp(`up to offset ${upper - 1}, [0-9]+ bytes\n$`));
});

test('backup refuses a target with something in it, and damage', async () => {
  const target = freshDirectory();
  mkdirSync(target);
  writeFileSync(join(target, 'mine'), '');
  await refused(4, /is not empty/, 'backup', store, target);
  await refused(64, /lies in/, 'backup', store, join(store, 'inside'));
  await refused(64, /takes DIR and NEWDIR/, 'backup', store);
  const damaged = copyOf(store);
  const { flushed } = readManifest(new NodeStorage(damaged))!.state;
  flip(damaged, `wal/${`${flushed.seq}`.padStart(10, '0')}.seg`, flushed.position + 60);
  const never = freshDirectory();
  await refused(2, /CHECKSUM/, 'backup', damaged, never);
  assert.equal(existsSync(never), false);
});

test('beside a live engine backup takes what is sealed, and checkpoint is refused', async () => {
  const directory = freshDirectory();
  const engine = await open(directory, OPTIONS);
  try {
    await fill(engine, 60);
    await engine.flush();
    const writing = fill(engine, 60, 1);
    const target = freshDirectory();
    const report = await json('backup', directory, target);
    await writing;
    assert.equal(report['live'], true);
    const { findings, next } = verify(target);
    assert.deepEqual(findings, []);
    assert.equal(next, (report['offset'] as number) + 1);
    assert.ok(next > 60, `${next}`);
    await refused(4, /LOCK|holds|open/i, 'checkpoint', directory);
    assert.equal(engine.state, 'open');
  } finally {
    await engine.close();
  }
});

test('checkpoint moves what is in the log into parts', async () => {
  const directory = copyOf(crashed);
  assert.deepEqual(await json('checkpoint', directory), { directory, offset: upper - 1 });
  const { flushed } = readManifest(new NodeStorage(directory))!.state;
  assert.equal(flushed.upper, upper);
  assert.equal(existsSync(join(directory, 'LOCK')), false);
});

test('restore makes the store of an offset or a time, and names the nearest where there is none', async () => {
  const contents = contentsOf(store);
  const { flushed } = readManifest(new NodeStorage(store))!.state;
  const offset = flushed.upper + 1;
  const target = freshDirectory();
  const report = await json('restore', '--to', `${offset}`, store, target);
  assert.deepEqual(report, { target, from: store, offset, bytes: report['bytes'] });
  assert.deepEqual(verify(target).findings, []);
  const engine = await open(target, OPTIONS);
  assert.equal(engine.upper, offset + 1);
  await engine.close();
  const byTime = freshDirectory();
  const now = new Date().toISOString();
  assert.equal((await json('restore', '--to', now, store, byTime))['offset'], upper - 1);
  assert.ok(sameContents(contentsOf(store), contents), 'not a byte is changed');

  const never = freshDirectory();
  const late = `${upper + 10}`;
  await refused(
    4,
    new RegExp(`nearest that is: ${upper - 1}`),
    'restore',
    '--to',
    late,
    store,
    never,
  );
  await refused(4, /nothing is known/, 'restore', '--to', '1999-01-01', store, never);
  await refused(64, /--to/, 'restore', store, never);
  await refused(64, /--to/, 'restore', '--to', 'yesterday', store, never);
  await refused(3, /no such directory/, 'restore', '--to', '5', join(never, 'x'), never);
  await refused(4, /is not empty/, 'restore', '--to', `${offset}`, store, target);
  assert.equal(existsSync(never), false);
});

test('truncate asks first, keeps what it removes, and is refused beside a live engine', async () => {
  const { flushed } = readManifest(new NodeStorage(store))!.state;
  const offset = flushed.upper + 1;
  const directory = copyOf(store);
  const contents = contentsOf(directory);
  for (const typed of ['', 'yes\n', `${offset + 1}\n`]) {
    const { code, errors } = await runTyping(typed, 'truncate', directory, '--to', `${offset}`);
    assert.equal(code, 4, errors);
    assert.match(errors, new RegExp(`offsets ${offset + 1} to ${upper - 1}, `));
    assert.match(errors, /not confirmed/);
    assert.ok(sameContents(contentsOf(directory), contents), 'not a byte is changed');
  }
  const { code, out } = await runTyping(
    `${offset}\n`,
    'truncate',
    directory,
    '--to',
    `${offset}`,
    '--json',
  );
  assert.equal(code, 0);
  const report = JSON.parse(out) as { offset: number; to: number; quarantine: string[] };
  assert.deepEqual([report.offset, report.to], [offset, upper]);
  for (const name of report.quarantine) assert.ok(existsSync(join(directory, name)), name);
  assert.deepEqual(verify(directory).findings, []);
  assert.equal(verify(directory).next, offset + 1);
  const again = await json('truncate', directory, '--to', `${offset}`, '--yes');
  assert.deepEqual(again['quarantine'], [], 'nothing is left to be done');
  await refused(4, /ends at offset/, 'truncate', directory, '--to', `${upper}`, '--yes');
  await refused(64, /--to/, 'truncate', directory);

  const engine = await open(directory, OPTIONS);
  await refused(4, /is open/, 'truncate', directory, '--to', '20', '--yes');
  await engine.close();
});

test('repair gets past damage that open refuses, and only where it is told', async () => {
  await refused(64, /one of them/, 'repair', store);
  await refused(64, /one of them/, 'repair', store, '--drop-after', '3', '--accept-log-loss');
  await refused(4, /is in no part/, 'repair', copyOf(store), '--accept-log-loss', '--yes');
  const directory = copyOf(store);
  const { flushed } = readManifest(new NodeStorage(directory))!.state;
  flip(directory, `wal/${`${flushed.seq}`.padStart(10, '0')}.seg`, flushed.position + 60);
  await refused(2, /CHECKSUM/, 'checkpoint', directory);
  const last = `${flushed.upper - 1}`;
  const report = await json('repair', directory, '--drop-after', last, '--yes');
  assert.equal(report['offset'], flushed.upper - 1);
  await json('checkpoint', directory);
  assert.equal(verify(directory).next, flushed.upper);
});
