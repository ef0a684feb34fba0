/**
 * Where the tour keeps its data: a directory of its own under .tidemark-tour/ in this checkout.
 * What an earlier tour left is removed when the next begins; what a running one uses is not.
 * Called by main.ts.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../.tidemark-tour', import.meta.url));
const NAME = /^run-(\d+)$/;

export interface Scratch {
  readonly directory: string;
  remove(): void;
}

export function openScratch(): Scratch {
  fs.mkdirSync(ROOT, { recursive: true });
  for (const name of fs.readdirSync(ROOT)) {
    const pid = NAME.exec(name)?.[1];
    if (pid !== undefined && !isRunning(Number(pid))) removeRun(path.join(ROOT, name));
  }
  const directory = path.join(ROOT, `run-${process.pid}`);
  removeRun(directory);
  fs.mkdirSync(directory);
  return {
    directory,
    remove() {
      removeRun(directory);
      try {
        fs.rmdirSync(ROOT);
      } catch {
        // Another tour's data is there.
      }
    },
  };
}

function removeRun(directory: string): void {
  fs.rmSync(directory, { recursive: true, force: true });
}

function isRunning(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it runs as somebody else.
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}
