/**
 * Goal: the command line says what is in a store and what is wrong with it, with the exit codes of
 * docs/cli.md, on stores closed, torn, damaged, copied and beside a live engine; and changes nothing.
 * Each command is a process of its own, over the compiled sources.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { open } from '../actors/index.ts';
import { quiet, until } from './engine/world.ts';
import { OPTIONS, contentsOf, copyOf, fill, flip, freshDirectory, makeStore } from './store/kit.ts';

const SCRIPT = fileURLToPath(new URL('../dist/bin/tidemark.js', import.meta.url));

type Result = { code: number | null; out: string; errors: string };

function start(...args: string[]): ChildProcessWithoutNullStreams {
  const child = spawn(process.execPath, [SCRIPT, ...args], { stdio: 'pipe' });
  child.stdin.end();
  return child;
}

function resultOf(child: ChildProcessWithoutNullStreams): Promise<Result> {
  let out = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, out, errors }));
  });
}

function run(...args: string[]): Promise<Result> {
  return resultOf(start(...args));
}

type Row = { [name: string]: unknown };

async function json<T = Row>(...args: string[]): Promise<T> {
  const { code, out, errors } = await run(...args, '--json');
  assert.ok(code !== null && code < 4, `${code}: ${errors}`);
  return JSON.parse(out) as T;
}

function linesOf(out: string): Row[] {
  return out
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Row);
}

type Inspected = {
  lock: { state: string };
  manifest: { logId: string; flushed: { upper: number } };
  segments: { file: string; place: string; base: number; end: number; endPosition: number }[];
  spines: { collection: number; name?: string; rows: number; runs: { rows: number }[] }[];
  log: { next: number; clean: boolean };
  files: { unnamedParts: string[] };
};

type Verified = {
  ok: boolean;
  live: boolean;
  findings: { finding: string; severity: string; file?: string; position?: number }[];
};

let closed = '';
let torn = '';
let next = 0;

before(async () => {
  closed = await makeStore(true);
  torn = await makeStore(false);
  const { log, segments } = await json<Inspected>('inspect', torn);
  const last = segments.findLast(({ place }) => place === 'chain');
  assert.ok(last !== undefined, 'a last segment');
  const path = join(torn, last.file);
  const bytes = readFileSync(path);
  bytes.fill(0xab, last.endPosition, last.endPosition + 100);
  writeFileSync(path, bytes);
  next = log.next;
});

test('inspect tells manifest, segments, collections by name, and who holds the lock', async () => {
  const contents = contentsOf(closed);
  const report = await json<Inspected>('inspect', closed);
  assert.match(report.manifest.logId, /^[0-9a-f]{32}$/);
  assert.equal(report.lock.state, 'free');
  assert.equal(report.log.clean, true);
  assert.equal(report.log.next, next);
  const chain = report.segments.filter(({ place }) => place === 'chain');
  assert.ok(chain.length >= 3, `${chain.length} segments`);
  assert.equal(chain[0].base, 0);
  for (let i = 1; i < chain.length; i++) assert.equal(chain[i].base, chain[i - 1].end);
  assert.equal(chain.at(-1)?.end, next);
  const names = report.spines.map(({ collection, name }) => [collection, name]);
  assert.deepEqual(names, [
    [0, '(catalog)'],
    [1, 'words'],
    [2, 'edges'],
  ]);
  for (const { rows, runs } of report.spines) {
    assert.equal(
      rows,
      runs.reduce((sum, r) => sum + r.rows, 0),
    );
  }
  const { code, out } = await run('inspect', closed);
  assert.equal(code, 0);
  for (const word of ['free', 'words', 'edges', 'closed in order', report.manifest.logId]) {
    assert.ok(out.includes(word), `${word} in:\n${out}`);
  }
  assert.deepEqual(contentsOf(closed), contents, 'nothing is changed');
});

type InspectedSpine = {
  collection: number;
  name: string;
  runs: unknown[];
  levels: { level: number; batches: number; runs: number }[];
  merges: { level: number; remaining: number }[];
  debtBytes: number;
  amplification: { read: number; space: number };
};

test('inspect tells levels, debt and merges in flight as the engine does, and what holds history', async () => {
  const directory = freshDirectory();
  const engine = await open(directory, OPTIONS);
  const words = await engine.collection('words', { value: 'utf8' });
  const feed = words.changes({ cursor: 'index "a"', maxLag: { offsets: 5_000 } });
  const first = feed.next();
  for (let round = 0; round < 7; round++) {
    await fill(engine, 6, round);
    await engine.flush();
  }
  const { offset } = (await first).value!;
  await feed.ack(offset);
  await feed.return();
  await quiet(engine);
  const { spines, holds } = await json<{ spines: InspectedSpine[]; holds: unknown }>(
    'inspect',
    directory,
  );
  const { collections } = engine.stats();
  let pairs = 0;
  for (const spine of spines) {
    const own = collections.find(({ id }) => id === spine.collection);
    assert.ok(own !== undefined, `the engine has ${spine.name}`);
    assert.equal(spine.debtBytes, own.debtBytes);
    assert.equal(spine.runs.length, own.runs.length);
    assert.equal(spine.amplification.read, own.runs.length);
    assert.equal(
      spine.levels.reduce((sum, { batches }) => sum + batches, 0),
      own.spineBatches,
    );
    assert.equal(spine.merges.length, own.doubles);
    assert.ok(spine.amplification.space >= 1, `${spine.amplification.space}`);
    for (const { remaining } of spine.merges) assert.ok(remaining > 0, 'else they were one');
    pairs += spine.merges.length;
  }
  assert.ok(pairs > 0, 'a merge is in flight');
  assert.deepEqual(holds, [
    {
      kind: 'cursor',
      name: 'index "a"',
      offset: offset + 1,
      collections: [collections.find(({ name }) => name === 'words')!.id],
      maxLag: { offsets: 5_000 },
    },
  ]);
  const { out } = await run('inspect', directory);
  for (const word of ['debt', 'space', 'merging', 'cursor', '5000 offsets', 'index \\"a\\"']) {
    assert.ok(out.includes(word), `${word} in:\n${out}`);
  }
  await engine.close();
});

test('inspect tells of a backup that is under way, or that a crash left', async () => {
  const directory = copyOf(closed);
  const rollup = readdirSync(join(directory, 'manifest')).findLast((n) => n.endsWith('.rollup'))!;
  const bytes = readFileSync(join(directory, 'manifest', rollup));
  writeFileSync(join(directory, 'tmp', 'backup-0-7.rollup'), bytes);
  writeFileSync(join(directory, 'tmp', 'backup-1-2.rollup'), bytes.subarray(0, 50));
  const { holds } = await json<{ holds: { file: string; offset?: number }[] }>(
    'inspect',
    directory,
  );
  assert.deepEqual(
    holds.map(({ file, offset }) => [file, offset === undefined]),
    [
      ['tmp/backup-0-7.rollup', false],
      ['tmp/backup-1-2.rollup', true],
    ],
  );
  assert.ok(holds[0].offset! > 0, 'from its checkpoint on');
});

test('a copy of a store that is open elsewhere says so', async () => {
  const report = await json<Inspected>('inspect', torn);
  assert.equal(report.lock.state, 'elsewhere');
});

test('verify: 0 for a sound store, 1 for a torn tail', async () => {
  for (const flags of [[], ['--full']]) {
    const sound = await run('verify', closed, ...flags);
    assert.equal(sound.code, 0, sound.out + sound.errors);
    assert.match(sound.out, /: sound: /);
    const found = await run('verify', torn, ...flags);
    assert.equal(found.code, 1, found.out + found.errors);
    assert.match(found.out, /TORN_TAIL/);
    assert.match(found.out, /NOT SOUND/);
  }
});

test('verify: 2 for damage in segment, part or manifest, and for files that are missing', async () => {
  const { segments, files } = await json<Inspected>('inspect', closed);
  const named = readdirSync(join(closed, 'parts')).find((n) => !files.unnamedParts.includes(n));
  const part = `parts/${named}`;
  const cases: [string, (directory: string) => void, string, string][] = [
    ['segment', (d) => flip(d, segments[0].file, 9_000), segments[0].file, 'CHECKSUM'],
    ['part', (d) => flip(d, part, 100), part, 'BAD_BLOCK'],
    ['manifest', (d) => flip(d, 'manifest/HEAD', 40), 'manifest/HEAD', 'MANIFEST_HEAD'],
    ['no part', (d) => rmSync(join(d, part)), part, 'MISSING_FILE'],
    ['no segment', (d) => rmSync(join(d, segments[1].file)), segments[1].file, 'MISSING_SEGMENT'],
  ];
  for (const [what, damage, file, finding] of cases) {
    const directory = copyOf(closed);
    damage(directory);
    const { code, out, errors } = await run('verify', directory, '--full', '--json');
    assert.equal(code, 2, `${what}: ${out}${errors}`);
    const { ok, findings } = JSON.parse(out) as Verified;
    assert.equal(ok, false, what);
    assert.ok(
      findings.some((f) => f.finding === finding && f.file === file),
      `${what}: ${out}`,
    );
    // Whatever is wrong, there is something to show.
    const shown = await run('inspect', directory);
    assert.equal(shown.code, 0, `${what}: ${shown.errors}`);
  }
});

test('verify: 3 for a segment of another log', async () => {
  const directory = copyOf(closed);
  const { segments } = await json<Inspected>('inspect', closed);
  writeFileSync(join(directory, segments[1].file), readFileSync(join(torn, segments[1].file)));
  const { code, out } = await run('verify', directory);
  assert.equal(code, 3, out);
  assert.match(out, /FOREIGN_SEGMENT/);
});

test('dump gives every transaction once and in order, and ranges of them', async () => {
  const all = await run('dump', closed, '--tx');
  assert.equal(all.code, 0, all.errors);
  const rows = linesOf(all.out);
  assert.deepEqual(
    rows.map(({ offset }) => offset),
    Array.from({ length: next }, (_, i) => i),
  );
  const some = linesOf((await run('dump', closed, '--tx', '--from', '20', '--to', '31')).out);
  assert.deepEqual(some, rows.slice(20, 31));
  const [{ operations }] = rows.slice(-1) as { operations: Row[] }[];
  const [put] = operations as { kind: string; key: { text: string } }[];
  assert.equal(put.kind, 'put');
  assert.match(put.key.text, /^key /);
  assert.deepEqual((operations.at(-1) as { value: Row }).value, { base64: 'Cf8=' });

  const records = linesOf((await run('dump', closed)).out);
  const commits = records.filter(({ kind }) => kind === 'commit');
  let offset = 0;
  for (const record of commits) {
    assert.equal(record['offset'], offset);
    offset += record['transactions'] as number;
  }
  assert.equal(offset, next);
  assert.ok(
    records.some(({ kind }) => kind === 'seal'),
    'control records too',
  );
  assert.deepEqual(linesOf((await run('dump', closed, '--from', `${next + 5}`)).out), []);
});

test('dump stops at damage with 2, and with --tolerate marks it and goes on', async () => {
  const directory = copyOf(closed);
  const { segments } = await json<Inspected>('inspect', directory);
  flip(directory, segments[1].file, 9_000);
  const { base, end } = segments[1];
  const strict = await run('dump', directory, '--tx');
  assert.equal(strict.code, 2);
  assert.match(strict.errors, /^tidemark: CHECKSUM: wal\/[^\n]*\n$/);
  assert.ok(linesOf(strict.out).length >= base, 'what lies before it');
  const tolerant = await run('dump', directory, '--tx', '--tolerate');
  assert.equal(tolerant.code, 2);
  const rows = linesOf(tolerant.out);
  assert.equal(rows.filter(({ type }) => type === 'damage').length, 1);
  const offsets = rows.filter(({ type }) => type === 'transaction').map((row) => row['offset']);
  assert.deepEqual(
    offsets,
    [...new Set(offsets)].toSorted((a, b) => Number(a) - Number(b)),
  );
  assert.ok(offsets.length < next && offsets.length > next - (end - base), `${offsets.length}`);
  assert.equal(offsets.at(-1), next - 1);
});

test('beside a live engine all of them work, and tail follows until it is interrupted', async () => {
  const directory = freshDirectory();
  const engine = await open(directory, OPTIONS);
  let following: ChildProcessWithoutNullStreams | undefined;
  try {
    await fill(engine, 5);
    const first = engine.upper;
    following = start('tail', directory, '--follow', '--lines', '2');
    const child = following;
    const followed = resultOf(child);
    let seen = '';
    child.stdout.on('data', (text: string) => (seen = (seen + text).slice(-100_000)));
    for (let round = 0; round < 3; round++) {
      const writing = fill(engine, 30, round).then(() => engine.flush());
      const { code, out, errors } = await run('verify', directory, '--full', '--json');
      assert.equal(code, 0, out + errors);
      const { live } = JSON.parse(out) as Verified;
      assert.equal(live, true);
      const { lock } = await json<Inspected>('inspect', directory);
      assert.equal(lock.state, 'held');
      const dumped = await run('dump', directory, '--tx', '--to', `${first}`);
      assert.equal(linesOf(dumped.out).length, first, dumped.errors);
      await writing;
    }
    const last = engine.upper - 1;
    await until('the last transaction followed', () => seen.includes(`"offset":${last},`));
    child.kill('SIGINT');
    const { code, out, errors } = await followed;
    assert.equal(code, 0, errors);
    const offsets = linesOf(out).map(({ offset }) => offset as number);
    assert.ok(offsets[0] <= first + 200, `${offsets[0]}`);
    assert.deepEqual(
      offsets,
      offsets.map((_, i) => offsets[0] + i),
    );
    assert.ok((offsets.at(-1) ?? 0) >= last, `${offsets.at(-1)} of ${last}`);
  } finally {
    following?.kill('SIGKILL');
    await engine.close();
  }
});

test('tail ends by itself without --follow', async () => {
  const { code, out } = await run('tail', closed, '--lines', '3');
  assert.equal(code, 0);
  assert.deepEqual(
    linesOf(out).map(({ offset }) => offset),
    [next - 3, next - 2, next - 1],
  );
});

test('compress makes old segments small, says which, and once is enough', async () => {
  type Compressed = { compressed: { file: string; bytes: number }[]; already: number };
  const copy = copyOf(closed);
  const dumped = await run('dump', copy, '--tx');
  const { compressed } = await json<Compressed>('compress', copy);
  assert.ok(compressed.length >= 2, `${compressed.length} compressed`);
  for (const { file, bytes } of compressed) {
    assert.match(file, /\.segz$/);
    assert.equal(readFileSync(join(copy, file)).length, bytes);
  }
  const after = await run('dump', copy, '--tx');
  assert.equal(after.out, dumped.out);
  const again = await json<Compressed>('compress', copy);
  assert.deepEqual(again.compressed, []);
  assert.equal(again.already, compressed.length);
  const { out, code } = await run('compress', copy);
  assert.equal(code, 0);
  assert.match(out, /0 compressed, \d+ were/);
  assert.equal((await json<Verified>('verify', copy)).ok, true);
});

test('wrong arguments are 64, what is no store is 3, each in one line', async () => {
  const empty = freshDirectory();
  mkdirSync(empty);
  const cases: [string[], number, RegExp][] = [
    [[], 64, /command is missing/],
    [['frobnicate', closed], 64, /unknown command 'frobnicate'/],
    [['inspect'], 64, /takes DIR/],
    [['inspect', closed, closed], 64, /takes DIR, not also/],
    [['inspect', closed, '--full'], 64, /--full/],
    [['dump', closed, '--from', 'x'], 64, /--from is an integer/],
    [['verify', join(empty, 'nowhere')], 3, /no such directory/],
    [['verify', empty], 3, /holds no store/],
    [['inspect', fileURLToPath(import.meta.url)], 3, /not a directory/],
  ];
  for (const [args, code, message] of cases) {
    const result = await run(...args);
    assert.equal(result.code, code, `${args.join(' ')}: ${result.errors}`);
    assert.match(result.errors, message);
    assert.match(result.errors, /^tidemark: [^\n]+\n$/);
    assert.equal(result.out, '');
  }
  const help = await run('--help');
  assert.equal(help.code, 0);
  for (const word of ['inspect', 'verify', 'dump', 'tail', '64']) {
    assert.ok(help.out.includes(word), word);
  }
  assert.match((await run('--version')).out, /^[0-9]+\.[0-9]+\.[0-9]+\n$/);
});

test('every exit code and every command is in docs/cli.md', () => {
  const page = readFileSync(new URL('../docs/cli.md', import.meta.url), 'utf8');
  for (const code of [0, 1, 2, 3, 4, 64, 70, 130])
    assert.match(page, new RegExp(`^\\| ${code} +\\|`, 'm'));
  for (const name of [
    'inspect',
    'verify',
    'dump',
    'tail',
    'backup',
    'checkpoint',
    'restore',
    'truncate',
    'repair',
  ])
    assert.ok(page.includes(`tidemark ${name}`), name);
});
