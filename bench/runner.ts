/**
 * Runs tasks, each in a child process of its own on a directory of its own, and refuses an outcome
 * whose contents are wrong: a wrong answer has no speed. Called by main.ts.
 */
import { execFile } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Outcome, Task } from './task.ts';

export class Runner {
  readonly #base: string;
  readonly #childMsMax: number;
  readonly #script: string;
  #count = 0;

  constructor(base: string, childSecondsMax: number) {
    this.#base = base;
    this.#childMsMax = childSecondsMax * 1000;
    this.#script = join(base, 'js', 'run-one.js');
  }

  directory(name: string): string {
    const path = join(this.#base, 'data', name);
    mkdirSync(path, { recursive: true });
    return path;
  }

  /** Runs the task in a child, on a fresh directory unless the task names one. */
  async run(task: Omit<Task, 'directory'> & { directory?: string }): Promise<Outcome> {
    const fresh = task.directory === undefined;
    const directory = task.directory ?? this.directory(`run-${++this.#count}`);
    try {
      const outcome = await this.#child({ ...task, directory });
      if (outcome.digest !== outcome.digestExpected) {
        throw new Error(`wrong contents: ${outcome.digest}, expected ${outcome.digestExpected}`);
      }
      return outcome;
    } finally {
      if (fresh) rmSync(directory, { recursive: true, force: true });
    }
  }

  #child(task: Task): Promise<Outcome> {
    const env: NodeJS.ProcessEnv = { ...process.env };
    delete env['NODE_OPTIONS'];
    delete env['UV_THREADPOOL_SIZE'];
    if (task.configuration.uvThreads !== undefined) {
      env['UV_THREADPOOL_SIZE'] = String(task.configuration.uvThreads);
    }
    return new Promise((fulfil, reject) => {
      execFile(
        process.execPath,
        [this.#script, JSON.stringify(task)],
        {
          env,
          cwd: this.#base,
          timeout: this.#childMsMax,
          killSignal: 'SIGKILL',
          maxBuffer: 1 << 24,
        },
        (error, stdout, stderr) => {
          if (error !== null) {
            // 13: everything ended while the task still waited for a promise.
            const how = error.killed === true ? 'took too long' : `exit code ${error.code}`;
            const said = stderr.trim().split('\n').slice(-12).join('\n');
            reject(new Error(`${how}${said === '' ? '' : `\n${said}`}`));
            return;
          }
          try {
            const outcome: Outcome = JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
            fulfil(outcome);
          } catch {
            reject(new Error(`no outcome in: ${stdout.slice(-500)}`));
          }
        },
      );
    });
  }
}
