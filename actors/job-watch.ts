/**
 * Sees to it that no job stands still for ever: one that has not done a step for a while is asked to
 * stop, and when it does not hear that either, its worker is replaced. Either way the job answers as
 * failed, and whoever sent it tries again later. A job that waits for a worker is not watched. A part of
 * the compactor, on its thread.
 */
import type { JobPool } from './job-pool.ts';

/** A step is some thousand rows, or one call to the disk. */
const STUCK_MS = 60_000;
const LOOK_MS = 5_000;

type Watched = {
  steps: number;
  /** When it was seen to have done a step, or was asked to stop. */
  movedAt: number;
  asked: boolean;
};

export class JobWatch {
  readonly #pool: Pick<JobPool, 'steps' | 'cancel' | 'replace'>;
  readonly #jobs: Map<number, Watched> = new Map();
  #lookedAt = Number.NEGATIVE_INFINITY;

  constructor(pool: Pick<JobPool, 'steps' | 'cancel' | 'replace'>) {
    this.#pool = pool;
  }

  begin(id: number): void {
    this.#jobs.set(id, { steps: 0, movedAt: 0, asked: false });
  }

  end(id: number): void {
    this.#jobs.delete(id);
  }

  /** Milliseconds to the next look. */
  get idle(): number {
    return this.#jobs.size > 0 ? LOOK_MS : Infinity;
  }

  /** Returns how many jobs were found to stand still. */
  look(nowMs: number): number {
    if (this.#jobs.size === 0 || nowMs - this.#lookedAt < LOOK_MS) return 0;
    this.#lookedAt = nowMs;
    let found = 0;
    for (const [id, job] of this.#jobs) {
      const steps = this.#pool.steps(id);
      if (steps === 0) continue;
      if (steps !== job.steps) {
        job.steps = steps;
        job.movedAt = nowMs;
      } else if (nowMs - job.movedAt >= STUCK_MS) {
        job.movedAt = nowMs;
        if (job.asked) this.#pool.replace(id);
        else {
          this.#pool.cancel(id);
          found++;
        }
        job.asked = true;
      }
    }
    return found;
  }
}
