/**
 * House rules, read off the sources: who may import whom, what core must not know, how files open.
 * Each failure ends with what to do instead.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { test } from 'node:test';
import { ERROR_CODES, describeCode } from '../core/base/errors.ts';

const root = join(import.meta.dirname, '..');

/** Every TypeScript source, by its path from the root. */
const sources = new Map<string, string>(
  execFileSync('git', ['ls-files', '-co', '--exclude-standard', '--', '*.ts'], { cwd: root })
    .toString()
    .split('\n')
    .filter((path) => path !== '' && existsSync(join(root, path)))
    .map((path) => [path, readFileSync(join(root, path), 'utf8')]),
);

/** Source without comments and without the contents of strings, for rules about code. */
function codeOf(text: string): string {
  return text
    .replaceAll(/\/\*[\s\S]*?\*\//g, '')
    .replaceAll(/\/\/.*$/gm, '')
    .replaceAll(/'(?:[^'\\\n]|\\.)*'/g, "''");
}

function importsOf(path: string, text: string): string[] {
  const found: string[] = [];
  for (const match of text.matchAll(/(?:from|import)\s+'([^']+)'/g)) {
    const name = match[1];
    found.push(name.startsWith('.') ? normalize(join(dirname(path), name)) : name);
  }
  return found;
}

/** The room of a file: 'core/log', 'actors', 'bench', ... */
function roomOf(path: string): string {
  const [first, second] = path.split('/');
  return first === 'core' ? `core/${second}` : first;
}

const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  'core/base': [],
  'core/shared': ['core/base'],
  'core/storage': ['core/base'],
  'core/log': ['core/base', 'core/shared', 'core/storage'],
  'core/memtable': ['core/base', 'core/shared', 'core/storage'],
  'core/spine': ['core/base', 'core/shared', 'core/storage'],
  'core/cache': ['core/base', 'core/shared', 'core/storage'],
  'core/store': ['core/base', 'core/shared', 'core/storage', 'core/log', 'core/spine'],
};

/** Pure computation that Node brings: no threads, no clock, no disk. */
const CORE_BUILTINS: ReadonlySet<string> = new Set(['node:buffer', 'node:crypto', 'node:zlib']);

function each(check: (path: string, text: string) => string | undefined): void {
  const wrong = [...sources]
    .map(([path, text]) => check(path, text))
    .filter((w) => w !== undefined);
  assert.deepEqual(wrong, []);
}

test('imports point one way: base, then shared and storage, then the other rooms of core, then actors', () => {
  each((path, text) => {
    const room = roomOf(path);
    const allowed = MAY_IMPORT[room];
    if (allowed === undefined) return undefined;
    const bad = importsOf(path, text).filter((name) => {
      if (name.startsWith('node:')) return !CORE_BUILTINS.has(name);
      return !allowed.includes(roomOf(name)) && roomOf(name) !== room;
    });
    return bad.length === 0 ? undefined : `${path} imports ${bad.join(', ')}: pass it in instead`;
  });
});

test('the five actors do not import each other', () => {
  const actors = ['sequencer', 'durability', 'spine-keeper', 'compactor', 'evictor'];
  const files = new Set(actors.map((name) => `actors/${name}.ts`));
  each((path, text) => {
    if (!files.has(path)) return undefined;
    const values = text.replaceAll(/import type [\s\S]*?;/g, '');
    const bad = importsOf(path, values).filter((name) => files.has(name));
    return bad.length === 0
      ? undefined
      : `${path} imports ${bad.join(', ')}: send a message instead`;
  });
});

test('Atomics appear in core/shared alone', () => {
  each((path, text) => {
    if (!/^(core|actors)\//.test(path) || path.startsWith('core/shared/')) return undefined;
    return /\bAtomics\b/.test(codeOf(text))
      ? `${path} uses Atomics: give core/shared a word for it`
      : undefined;
  });
});

test('core knows no time, chance, timers, process or disk', () => {
  each((path, text) => {
    if (!path.startsWith('core/')) return undefined;
    const bad =
      /\b(randomBytes|randomFill|randomInt|randomUUID|webcrypto|Date|setTimeout|setInterval|setImmediate|queueMicrotask)\b|\bprocess\.|Math\.random/;
    const found = bad.exec(codeOf(text));
    return found === null ? undefined : `${path} knows ${found[0]}: inject it`;
  });
});

test('node:fs is imported by actors/node-storage.ts alone', () => {
  each((path, text) => {
    if (!/^(core|actors)\//.test(path) || path === 'actors/node-storage.ts') return undefined;
    return importsOf(path, text).some((name) => name.startsWith('node:fs'))
      ? `${path} imports node:fs: ask storage.ts`
      : undefined;
  });
});

test('every source opens with a comment that says what it is', () => {
  each((path, text) =>
    text.replace(/^#!.*\n/, '').startsWith('/**') || path.endsWith('.d.ts')
      ? undefined
      : `${path} does not say what it is`,
  );
});

test('nothing is left to be done in a comment, and no test is switched off', () => {
  const words = new RegExp(
    `\\b(${['TO' + 'DO', 'FIX' + 'ME', 'X' + 'XX', 'HA' + 'CK'].join('|')})\\b`,
  );
  each((path, text) => (words.test(text) ? `${path}: do it, or say it in an issue` : undefined));
  each((path, text) =>
    /\b(it|test|describe)\.(only|skip|todo)\b/.test(text)
      ? `${path} switches a test off`
      : undefined,
  );
});

test('every source of core and actors is imported by another, or is an entry', () => {
  const entries = new Set([
    'actors/index.ts',
    'actors/worker.ts',
    'actors/merge-worker.ts',
    'actors/backup-worker.ts',
    'actors/verify-worker.ts',
  ]);
  const imported = new Set([...sources].flatMap(([path, text]) => importsOf(path, text)));
  each((path) =>
    /^(core|actors)\//.test(path) &&
    !path.endsWith('.d.ts') &&
    !entries.has(path) &&
    !imported.has(path)
      ? `${path} is imported by nobody`
      : undefined,
  );
});

test('every error code is in the README', () => {
  const readme = readFileSync(join(root, 'README.md'), 'utf8');
  const missing = ERROR_CODES.filter(
    (code) => !readme.includes(`\`${code}\``) || !readme.includes(describeCode(code)),
  );
  assert.deepEqual(missing, []);
});
