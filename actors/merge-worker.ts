/**
 * What the pool runs: one job at a time, in private memory, on a thread that may wait for the disk.
 * The job says which files and which addresses; between steps it looks whether it is still wanted,
 * and shows that it goes on.
 */
import { TidemarkError } from '../core/base/errors.ts';
import { Arena } from '../core/shared/arena.ts';
import { CancelFlag } from '../core/shared/cancel.ts';
import { DescriptorTable } from '../core/shared/descriptors.ts';
import { makeMachine } from './jobs.ts';
import type { WorkerTask } from './job-pool.ts';
import { NodeStorage } from './node-storage.ts';
import { standBack } from './thread-priority.ts';

/** Once it has run a merge: a thread that may go down may not go up again. */
let isBack = false;

/** Rows between two looks at the cancel flag. */
const STEP_FUEL = 4_096;

export default function run(task: WorkerTask): unknown {
  const { kind } = task.job;
  if (!isBack && (kind === 'merge' || kind === 'compress')) {
    isBack = true;
    standBack();
  }
  const flag = new CancelFlag(task.cancel);
  const storage = new NodeStorage(task.directory, () => {}, new DescriptorTable(task.descriptors));
  const machine = makeMachine(task.job, storage, new Arena(task.arena));
  flag.step();
  while (machine.step(STEP_FUEL)) {
    flag.step();
    if (!flag.cancelled) continue;
    machine.cancel();
    throw new TidemarkError('TIDEMARK_CLOSED', 'the job was cancelled');
  }
  return machine.result();
}
