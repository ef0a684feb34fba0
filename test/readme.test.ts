/**
 * The README's example runs as it stands there, against the built package under its own name.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

const root = join(import.meta.dirname, '..');

test('the fifteen lines of the README run and say what they should', () => {
  const readme = readFileSync(join(root, 'README.md'), 'utf8');
  const example = /```ts\n([\s\S]*?)```/.exec(readme)?.[1];
  assert.ok(example !== undefined, 'the README has an example');
  // Inside the package its own name resolves to what is published.
  const folder = mkdtempSync(join(root, '.tidemark-readme-'));
  try {
    writeFileSync(join(folder, 'example.ts'), example);
    const run = spawnSync(process.execPath, ['--import', 'tsx', 'example.ts'], {
      cwd: folder,
      encoding: 'utf8',
    });
    assert.equal(run.status, 0, run.stderr);
    const lines = run.stdout.trim().split('\n');
    assert.deepEqual(lines, [
      "{ name: 'Countess of Lovelace' }",
      "{ name: 'Ada' }",
      "bob { name: 'Bob' }",
    ]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
