/**
 * Lets a thread stand back: where there are fewer cores than busy threads, the event loop and the write
 * line run before merges; flushes, which they wait for, are not told apart from them. Linux gives each thread a nice value of its own, and
 * os.setPriority takes a thread's id there; elsewhere it would change the whole process, so nothing is
 * done. Called once by each thread of the compute pool that merges.
 */
import { setPriority } from 'node:os';
import { linkTarget } from './node-storage.ts';

/** A third of the weight of a thread that does not stand back; at 10 it is a tenth, and merges starve beside writers. */
const NICE = 5;

/** Lowers the priority of the calling thread, for good. */
export function standBack(): void {
  if (process.platform !== 'linux') return;
  // "<pid>/task/<tid>"
  const tid = Number(linkTarget('/proc/thread-self')?.split('/').at(-1));
  if (!Number.isSafeInteger(tid) || tid === process.pid) return;
  try {
    setPriority(tid, NICE);
  } catch {
    // A sandbox may forbid it: jobs then compete as equals.
  }
}
