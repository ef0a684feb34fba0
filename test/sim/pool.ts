/**
 * The compute pool of the simulation: several workers on one thread, each a step machine, advanced in
 * any order and by any fuel. Jobs that commits wait for have workers of their own, as on threads; without
 * any they go first, as inline. As with real workers, a cancelled job still answers, perhaps with its
 * result; a worker may die and leave its files behind, or stand still and hear nothing until it is
 * replaced.
 */
import { TidemarkError, toPlainError } from '../../core/base/errors.ts';
import type { Prng } from '../../core/base/prng.ts';
import { isPressing } from '../../actors/job-pool.ts';
import type { JobAnswer, JobPool } from '../../actors/job-pool.ts';
import type { Job, JobMachine } from '../../actors/jobs.ts';

type Entry = {
  id: number;
  job: Job;
  machine: JobMachine | undefined;
  cancelled: boolean;
  steps: number;
  hangs: boolean;
};

/** How a job is made to end before its time. */
export type JobFate = 'lives' | 'fails' | 'dies' | 'hangs';

export class SimPool implements JobPool {
  readonly workers: number;
  /** For flushes, zeros and spares alone; 0: these are the first to get one of the others. */
  readonly #pressing: number;
  readonly #make: (job: Job) => JobMachine;
  readonly #wake: () => void;
  /** Asked before each step. */
  readonly #fate: (job: Job) => JobFate;
  readonly #queue: Entry[] = [];
  readonly #answers: JobAnswer[] = [];
  /** What a job threw that nobody had planned. */
  failure: unknown = undefined;
  /** Workers that died: their files are nobody's until the next open. */
  deaths = 0;
  /** Jobs that ended before their time: what they made may lie about until the next open. */
  failures = 0;
  started = 0;
  hung = 0;

  constructor(
    workers: number,
    pressing: number,
    make: (job: Job) => JobMachine,
    wake: () => void,
    fate: (job: Job) => JobFate,
  ) {
    this.workers = workers;
    this.#pressing = pressing;
    this.#make = make;
    this.#wake = wake;
    this.#fate = fate;
  }

  start(id: number, job: Job): void {
    this.started++;
    this.#queue.push({
      id,
      job,
      machine: undefined,
      cancelled: false,
      steps: 0,
      hangs: false,
    });
  }

  cancel(id: number): void {
    const entry = this.#queue.find((queued) => queued.id === id);
    if (entry !== undefined) entry.cancelled = true;
  }

  steps(id: number): number {
    return this.#queue.find((queued) => queued.id === id)?.steps ?? 0;
  }

  replace(id: number): void {
    const entry = this.#queue.find((queued) => queued.id === id);
    if (entry === undefined) return;
    this.failures++;
    this.deaths++;
    this.#answer(entry, {
      id,
      failure: toPlainError(new TidemarkError('TIDEMARK_CLOSED', 'worker replaced')),
    });
  }

  poll(): JobAnswer | undefined {
    return this.#answers.shift();
  }

  /** Jobs that stand still. */
  get hanging(): number {
    return this.#queue.filter(({ hangs }) => hangs).length;
  }

  step(): boolean {
    return this.stepOne(undefined, 512);
  }

  /** One step of one of the jobs that have a worker; the oldest when there is no chance. */
  stepOne(prng: Prng | undefined, fuel: number): boolean {
    if (this.#queue.length === 0) return false;
    const running = this.#running().filter(({ hangs }) => !hangs);
    if (running.length === 0) return false;
    const entry = running[prng === undefined ? 0 : prng.below(running.length)];
    const fate = this.#fate(entry.job);
    entry.steps++;
    if (fate === 'hangs') {
      entry.hangs = true;
      this.hung++;
      return true;
    }
    try {
      if (fate !== 'lives') this.failures++;
      if (fate === 'dies') {
        this.deaths++;
        this.#answer(entry, { id: entry.id, failure: toPlainError(new Error('worker died')) });
        return true;
      }
      if (fate === 'fails' || entry.cancelled) {
        entry.machine?.cancel();
        const error =
          fate === 'fails'
            ? new Error('job failed')
            : new TidemarkError('TIDEMARK_CLOSED', 'asked');
        this.#answer(entry, { id: entry.id, failure: toPlainError(error) });
        return true;
      }
      entry.machine ??= this.#make(entry.job);
      if (entry.machine.step(fuel)) return true;
      this.#answer(entry, { id: entry.id, value: entry.machine.result() });
    } catch (error) {
      this.failure ??= error;
      this.#answer(entry, { id: entry.id, failure: toPlainError(error) });
    }
    return true;
  }

  /** Jobs that have a worker, those that came first before others. */
  #running(): Entry[] {
    const pressing = this.#queue.filter(({ job }) => isPressing(job));
    const others = this.#queue.filter(({ job }) => !isPressing(job));
    if (this.#pressing === 0) return [...pressing, ...others].slice(0, this.workers);
    return [...pressing.slice(0, this.#pressing), ...others.slice(0, this.workers)];
  }

  #answer(entry: Entry, answer: JobAnswer): void {
    this.#queue.splice(this.#queue.indexOf(entry), 1);
    this.#answers.push(answer);
    this.#wake();
  }
}
