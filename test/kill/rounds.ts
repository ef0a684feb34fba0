/**
 * Rounds of kill -9 against a real disk. Each round starts a process over the store that the last one left
 * (child.ts), which checks it and goes on writing, until it is killed at a moment drawn here; what it
 * had said by then is held here, outside of it. Several stores go side by side. Used by main.ts and the
 * test; runs on the main thread, the children are processes of their own.
 *
 *   store   rounds of one plan, killed or closed in order -> a last process that checks and closes -> a
 *           new store in an empty directory
 */
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { Prng } from '../../core/base/prng.ts';
import {
  BUSY_EDIT,
  BUSY_FLUSH,
  BUSY_MERGE,
  BUSY_ROTATION,
  MESSAGE_BYTES,
  MESSAGE_FD,
  SAYS_ACKNOWLEDGED,
  SAYS_BUSY,
  SAYS_CHECKED,
  SAYS_CLOSED,
  SAYS_CLOSING,
  SAYS_DURABLE,
  SAYS_OPEN,
  SAYS_STARTED,
  planStore,
} from './plan.ts';
import type { Host, StorePlan, Task } from './plan.ts';
import { makeProgram } from './program.ts';

/** A process that says nothing for so long hangs. */
const SILENCE_MS_MAX = 60_000;
const TRANSACTIONS_MAX = 40_000;

export type KillOptions = {
  readonly seed: number;
  readonly rounds: number;
  /** Stores side by side. */
  readonly lanes: number;
  /** Made here, and removed when nothing was found. */
  readonly directory: string;
  readonly onRound?: (done: number) => void;
  /** For the tests of this file: forgets what the store had promised, or claims more. */
  readonly claim?: (promised: number) => number;
};

export type KillReport = {
  rounds: number;
  kills: number;
  closes: number;
  stores: number;
  acknowledged: number;
  durable: number;
  rotations: number;
  /** Promised transactions that were not there. */
  lost: number;
  readonly killsByPhase: Record<string, number>;
  readonly killsByKind: Record<string, number>;
  failure: KillFailure | undefined;
};

export type KillFailure = {
  readonly text: string;
  /** The store as the failing process left it, and as it was before. */
  readonly directory: string;
  readonly before: string;
  readonly task: Task;
};

class Round extends Error {
  readonly task: Task;

  constructor(task: Task, text: string) {
    super(text);
    this.task = task;
  }
}

/** When the process is killed: so long after it said that (0: after it was started). */
type Moment = { readonly after: number; readonly ms: number };

function drawMoment(prng: Prng): Moment {
  const at = prng.unit();
  if (at < 0.08) return { after: 0, ms: prng.below(120) };
  if (at < 0.3) return { after: SAYS_STARTED, ms: prng.below(prng.pick([3, 20, 60])) };
  if (at < 0.4) return { after: SAYS_OPEN, ms: prng.below(20) };
  if (at < 0.5) return { after: SAYS_CLOSING, ms: prng.below(prng.pick([1, 8])) };
  return { after: SAYS_CHECKED, ms: prng.below(prng.pick([10, 60, 200])) };
}

type Ended = { killed: boolean; phase: string; promised: number };

class Lane {
  readonly #run: KillRun;
  readonly #prng: Prng;
  readonly #number: number;
  #stores = 0;

  constructor(run: KillRun, number: number, prng: Prng) {
    this.#run = run;
    this.#prng = prng;
    this.#number = number;
  }

  async go(): Promise<void> {
    while (this.#run.goesOn) await this.#store();
  }

  async #store(): Promise<void> {
    const prng = this.#prng;
    const run = this.#run;
    const host: Host = (this.#stores + this.#number) % 2 === 0 ? 'threads' : 'inline';
    const plan = planStore(prng.u32(), host);
    const directory = join(run.options.directory, `store-${this.#number}-${this.#stores++}`);
    const before = `${directory}-before`;
    run.report.stores++;
    let promised = 0;
    const rounds = prng.between(3, 20);
    for (let i = 0; i < rounds && run.goesOn; i++) {
      promised = await this.#round(plan, directory, before, promised, drawMoment(prng));
      if (promised > TRANSACTIONS_MAX) break;
    }
    await this.#round(plan, directory, before, promised, undefined);
    for (const path of [directory, before]) rmSync(path, { recursive: true, force: true });
  }

  /** One process, from start to end. */
  async #round(
    plan: StorePlan,
    directory: string,
    before: string,
    promised: number,
    moment: Moment | undefined,
  ): Promise<number> {
    const prng = this.#prng;
    const { report, options } = this.#run;
    if (moment !== undefined) this.#run.begin();
    const isShort = moment?.after === SAYS_CLOSING;
    const task: Task = {
      plan,
      directory,
      seed: prng.u32(),
      promised: options.claim === undefined ? promised : options.claim(promised),
      closeAfter: moment === undefined ? 0 : isShort ? prng.between(1, 400) : 1_000_000,
    };
    // What a process finds wrong is looked at as it found it, not as it has mended it.
    rmSync(before, { recursive: true, force: true });
    if (existsSync(directory)) cpSync(directory, before, { recursive: true });
    else mkdirSync(directory, { recursive: true });
    const { killed, phase, promised: after } = await this.#watch(task, moment);
    if (moment === undefined) {
      report.closes++;
      return after;
    }
    if (killed) {
      report.kills++;
      add(report.killsByPhase, phase);
      add(report.killsByKind, `${plan.host} ${plan.synced ? 'synced' : 'buffered'}`);
    } else {
      report.closes++;
    }
    this.#run.end();
    return after;
  }

  #watch(task: Task, moment: Moment | undefined): Promise<Ended> {
    const { report, program } = this.#run;
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [program, JSON.stringify(task)], {
        stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      });
      let words = '';
      child.stderr!.setEncoding('utf8').on('data', (text: string) => {
        words = (words + text).slice(0, 20_000);
      });
      let { promised } = task;
      let phase = 'starting';
      let rotations = 0;
      let opened = -1;
      let killer: NodeJS.Timeout | undefined;
      let isHung = false;
      const silence = setTimeout(() => {
        isHung = true;
        child.kill('SIGKILL');
      }, SILENCE_MS_MAX);
      let isKilled = false;
      const arm = (said: number): void => {
        if (moment?.after !== said || killer !== undefined) return;
        killer = setTimeout(() => {
          isKilled = true;
          child.kill('SIGKILL');
        }, moment.ms);
      };
      const fail = (text: string): void => reject(new Round(task, text));
      const hear = (kind: number, flags: number, number: number): void => {
        switch (kind) {
          case SAYS_STARTED:
            phase = 'opening';
            break;
          case SAYS_OPEN:
            phase = 'checking';
            opened = number;
            if (number < task.promised) report.lost += task.promised - number;
            break;
          case SAYS_CHECKED:
            phase = 'writing';
            // What was found there is there to stay: the log is durable before the engine is open.
            promised = Math.max(promised, number);
            break;
          case SAYS_ACKNOWLEDGED:
          case SAYS_DURABLE:
            if (kind === SAYS_ACKNOWLEDGED) report.acknowledged++;
            else report.durable++;
            promised = Math.max(promised, number + 1);
            break;
          case SAYS_BUSY:
            rotations = number;
            phase = busyPhase(flags);
            break;
          case SAYS_CLOSING:
            phase = 'closing';
            break;
          case SAYS_CLOSED:
            phase = 'closed';
            promised = Math.max(promised, number);
            break;
          default:
            fail(`a message of kind ${kind}`);
        }
        arm(kind);
      };
      let rest: Buffer = Buffer.alloc(0);
      (child.stdio[MESSAGE_FD] as Readable).on('data', (chunk: Buffer) => {
        const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
        let at = 0;
        for (; at + MESSAGE_BYTES <= bytes.length; at += MESSAGE_BYTES) {
          hear(bytes.readUInt32LE(at), bytes.readUInt32LE(at + 4), bytes.readDoubleLE(at + 8));
        }
        rest = bytes.subarray(at);
      });
      arm(0);
      child.once('error', (error) => fail(String(error)));
      // The pipe has been read to its end by then.
      child.once('close', (code, signal) => {
        clearTimeout(silence);
        clearTimeout(killer);
        report.rotations += rotations;
        if (isHung) fail(`silent for ${SILENCE_MS_MAX} ms while ${phase}`);
        else if (signal !== 'SIGKILL' && code !== 0) {
          fail(`ended with ${code ?? signal} while ${phase}: ${words}`);
        } else if (opened >= 0 && opened < task.promised) fail(`opened at ${opened}`);
        else if (signal !== 'SIGKILL' && phase !== 'closed') fail(`ended while ${phase}`);
        else resolve({ killed: isKilled && signal === 'SIGKILL', phase, promised });
      });
    });
  }
}

function busyPhase(flags: number): string {
  const parts: string[] = [];
  if ((flags & BUSY_ROTATION) !== 0) parts.push('rotation');
  if ((flags & BUSY_FLUSH) !== 0) parts.push('flush');
  if ((flags & BUSY_MERGE) !== 0) parts.push('merge');
  if ((flags & BUSY_EDIT) !== 0) parts.push('edit');
  return parts.length === 0 ? 'writing' : `writing, ${parts.join(' + ')}`;
}

function add(counts: Record<string, number>, name: string): void {
  counts[name] = (counts[name] ?? 0) + 1;
}

class KillRun {
  readonly options: KillOptions;
  readonly program: string;
  readonly report: KillReport = {
    rounds: 0,
    kills: 0,
    closes: 0,
    stores: 0,
    acknowledged: 0,
    durable: 0,
    rotations: 0,
    lost: 0,
    killsByPhase: {},
    killsByKind: {},
    failure: undefined,
  };
  #begun = 0;

  constructor(options: KillOptions) {
    this.options = options;
    this.program = makeProgram(join(options.directory, 'program'));
  }

  get goesOn(): boolean {
    return this.report.failure === undefined && this.#begun < this.options.rounds;
  }

  begin(): void {
    this.#begun++;
  }

  end(): void {
    this.report.rounds++;
    this.options.onRound?.(this.report.rounds);
  }
}

/** Runs the rounds, or up to the first that finds something; the directory is then left as it is. */
export async function killRounds(options: KillOptions): Promise<KillReport> {
  mkdirSync(options.directory, { recursive: true });
  const run = new KillRun(options);
  const prng = new Prng(options.seed);
  const lanes = Array.from({ length: options.lanes }, (_, i) => new Lane(run, i, prng.child()));
  await Promise.all(
    lanes.map(async (lane) => {
      try {
        await lane.go();
      } catch (error) {
        if (!(error instanceof Round)) throw error;
        const { directory } = error.task;
        run.report.failure ??= {
          text: error.message,
          directory,
          before: `${directory}-before`,
          task: error.task,
        };
      }
    }),
  );
  if (run.report.failure === undefined) {
    rmSync(options.directory, { recursive: true, force: true });
  }
  return run.report;
}
