/**
 * The compute pool as the compactor sees it, and the two ways to run it: worker threads (Piscina), or
 * the host's own thread a slice at a time (inline, simulated). Jobs are plain data in and out; answers
 * are polled. A job never stands between a commit and its acknowledgement.
 */
import { Piscina } from 'piscina';
import { TidemarkError, toPlainError } from '../core/base/errors.ts';
import type { PlainError } from '../core/base/errors.ts';
import { CancelFlag } from '../core/shared/cancel.ts';
import { THREAD_LIMITS } from './thread-limits.ts';
import type { Job, JobMachine } from './jobs.ts';

export type JobAnswer = {
  readonly id: number;
  /** The result of a job that succeeded. */
  readonly value?: unknown;
  readonly failure?: PlainError;
};

export interface JobPool {
  /** Jobs that can run at the same time, beside those that are not to wait for them (`isPressing`). */
  readonly workers: number;
  start(id: number, job: Job): void;
  /** Asks a job to stop; it still answers. */
  cancel(id: number): void;
  /** Steps that a running job has done; 0 before it has a worker, or where its steps are the host's own. */
  steps(id: number): number;
  /**
   * Ends a job with its worker; it answers as cancelled, and the next job gets another worker. So may one answer
   * that waited for this worker. A job that writes where the log is to go on answers only when its thread is
   * gone: a call that it hangs in may yet be done.
   */
  replace(id: number): void;
  poll(): JobAnswer | undefined;
  /** Runs a slice of pending work where there are no worker threads; true when it did something. */
  step(): boolean;
}

/** What a worker thread is handed: the job, the arena, where the files are. */
export type WorkerTask = {
  readonly job: Job;
  readonly arena: SharedArrayBuffer;
  readonly directory: string;
  readonly cancel: SharedArrayBuffer;
  /** Where it notes what it has open. */
  readonly descriptors: SharedArrayBuffer;
};

/** Commits wait for what such a job gives back: it never stands behind a merge. */
export function isPressing(job: Job): boolean {
  return job.kind === 'flush' || job.kind === 'zero' || job.kind === 'spare';
}

/** Threads of one kit's pool; outlives engines, as the kit does. */
export function makeWorkers(workerUrl: URL, count: number): Piscina<WorkerTask, unknown> {
  const workers = new Piscina<WorkerTask, unknown>({
    filename: workerUrl.href,
    minThreads: 0,
    maxThreads: count,
    idleTimeout: 10_000,
    concurrentTasksPerWorker: 1,
    // A job is long and waits for its disk: it must not be asked to look at a shared counter.
    atomics: 'disabled',
    // Descriptors are shared by number among threads; a dying worker must not close a namesake.
    trackUnmanagedFds: false,
    resourceLimits: THREAD_LIMITS,
  });
  // Said of a worker that died without a job: nobody's failure, the next job gets another.
  workers.on('error', () => {});
  // But jobs that wait while the last worker goes would wait for ever: they fail instead.
  workers.on('workerDestroy', () =>
    queueMicrotask(() => {
      if (workers.threads.length === 0 && workers.queueSize > 0) void workers.destroy();
    }),
  );
  return workers;
}

/** Jobs that commits wait for, at a time: a flush, a range of zeros, a spare; one of each at the most. */
const PRESSING_MAX = 3;

/** Threads for those: none of them waits for another either. */
export function makePressing(workerUrl: URL): Piscina<WorkerTask, unknown> {
  return makeWorkers(workerUrl, PRESSING_MAX);
}

type Running = {
  readonly pool: Piscina<WorkerTask, unknown>;
  readonly flag: CancelFlag;
  readonly abort: AbortController;
  /** It writes where the log will, once it has answered. */
  readonly isOfLog: boolean;
  /** Its worker was ended; or that which it waited for was: neither is a worker's death. */
  isStopped: boolean;
  isBehind: boolean;
  /** Its worker was ended: resolves when the thread is gone. */
  ended: Promise<unknown> | undefined;
};

export class PiscinaPool implements JobPool {
  readonly workers: number;
  readonly #piscina: Piscina<WorkerTask, unknown>;
  readonly #pressing: Piscina<WorkerTask, unknown>;
  readonly #arena: SharedArrayBuffer;
  readonly #directory: string;
  readonly #descriptors: SharedArrayBuffer;
  readonly #wake: () => void;
  readonly #running: Map<number, Running> = new Map();
  readonly #answers: JobAnswer[] = [];

  /** `pressing` runs the jobs that others wait for. */
  constructor(
    piscina: Piscina<WorkerTask, unknown>,
    pressing: Piscina<WorkerTask, unknown>,
    arena: SharedArrayBuffer,
    directory: string,
    descriptors: SharedArrayBuffer,
    wake: () => void,
  ) {
    this.workers = piscina.options.maxThreads;
    this.#piscina = piscina;
    this.#pressing = pressing;
    this.#arena = arena;
    this.#directory = directory;
    this.#descriptors = descriptors;
    this.#wake = wake;
  }

  start(id: number, job: Job): void {
    const flag = new CancelFlag();
    const abort = new AbortController();
    const isOfLog = job.kind === 'zero' || job.kind === 'spare';
    const pool = isPressing(job) ? this.#pressing : this.#piscina;
    const running: Running = {
      pool,
      flag,
      abort,
      isOfLog,
      isStopped: false,
      isBehind: false,
      ended: undefined,
    };
    this.#running.set(id, running);
    const task = {
      job,
      arena: this.#arena,
      directory: this.#directory,
      cancel: flag.buffer,
      descriptors: this.#descriptors,
    };
    pool.run(task, { signal: abort.signal }).then(
      (value) => this.#answer({ id, value }),
      (error: unknown) => {
        const isStopped = running.isStopped || (running.isBehind && flag.steps === 0);
        const failure = isStopped ? asStopped(error) : toPlainError(error);
        const answer = (): void => this.#answer({ id, failure });
        if (running.ended === undefined) answer();
        else void running.ended.finally(answer);
      },
    );
  }

  cancel(id: number): void {
    this.#running.get(id)?.flag.cancel();
  }

  steps(id: number): number {
    return this.#running.get(id)?.flag.steps ?? 0;
  }

  replace(id: number): void {
    const running = this.#running.get(id);
    if (running === undefined || running.ended !== undefined) return;
    const { pool } = running;
    running.isStopped = true;
    for (const other of this.#running.values()) other.isBehind ||= other.pool === pool;
    const before = pool.threads;
    running.abort.abort();
    if (!running.isOfLog) return;
    const left = new Set(pool.threads);
    const gone = before.filter((thread) => !left.has(thread));
    running.ended = Promise.all(gone.map((thread) => thread.terminate()));
  }

  poll(): JobAnswer | undefined {
    return this.#answers.shift();
  }

  step(): boolean {
    return false;
  }

  #answer(answer: JobAnswer): void {
    this.#running.delete(answer.id);
    this.#answers.push(answer);
    this.#wake();
  }
}

/** A disk that hangs is no defect of ours: a job stopped for it counts as cancelled, not as a worker's death. */
function asStopped(error: unknown): PlainError {
  const { message } = toPlainError(error);
  return toPlainError(new TidemarkError('TIDEMARK_CLOSED', `the job was stopped: ${message}`));
}

/** Fuel of one slice: about half a millisecond of merging. */
const SLICE_FUEL = 512;

/** Runs jobs on the host's thread, one at a time: those that others wait for, then the oldest. */
export class StepPool implements JobPool {
  readonly workers = 1;
  readonly #make: (job: Job) => JobMachine;
  readonly #queue: { id: number; job: Job; machine: JobMachine | undefined }[] = [];
  readonly #answers: JobAnswer[] = [];

  constructor(make: (job: Job) => JobMachine) {
    this.#make = make;
  }

  start(id: number, job: Job): void {
    this.#queue.push({ id, job, machine: undefined });
  }

  cancel(id: number): void {
    const at = this.#queue.findIndex((entry) => entry.id === id);
    if (at < 0) return;
    const [entry] = this.#queue.splice(at, 1);
    entry?.machine?.cancel();
    const failure: PlainError = { code: 'TIDEMARK_CLOSED', message: 'cancelled', detail: {} };
    this.#answers.push({ id, failure });
  }

  /** Whoever could look is the one who steps. */
  steps(): number {
    return 0;
  }

  replace(id: number): void {
    this.cancel(id);
  }

  poll(): JobAnswer | undefined {
    return this.#answers.shift();
  }

  step(fuel: number = SLICE_FUEL): boolean {
    const entry = this.#queue.find(({ job }) => isPressing(job)) ?? this.#queue[0];
    if (entry === undefined) return false;
    try {
      entry.machine ??= this.#make(entry.job);
      if (entry.machine.step(fuel)) return true;
      this.#answers.push({ id: entry.id, value: entry.machine.result() });
    } catch (error) {
      this.#answers.push({ id: entry.id, failure: toPlainError(error) });
    }
    this.#queue.splice(this.#queue.indexOf(entry), 1);
    return true;
  }
}
