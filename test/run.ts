/**
 * Finds every test file and hands them to Node's test runner: Node 20 expands no patterns itself, and
 * shells differ. Arguments narrow by part of the path. Called by `npm test`.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, relative } from 'node:path';

const root = join(import.meta.dirname, '..');
const wanted = process.argv.slice(2);

const files = readdirSync(import.meta.dirname, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.test.ts'))
  .map((name) => relative(root, join(import.meta.dirname, name)))
  .filter((path) => wanted.length === 0 || wanted.some((part) => path.includes(part)))
  .toSorted();

if (files.length === 0) {
  // Without a file the runner would look for tests itself.
  console.error(`no test file has ${wanted.join(' or ')} in its path`);
  process.exit(2);
}

const run = spawnSync(
  process.execPath,
  ['--import', 'tsx', '--test', `--test-concurrency=${availableParallelism()}`, ...files],
  {
    cwd: root,
    stdio: 'inherit',
  },
);
process.exitCode = run.status ?? 1;
