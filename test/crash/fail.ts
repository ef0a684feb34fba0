/**
 * Syncs that fail, one at a time, in the manner of ext4 (the new bytes stay in the cache, clean) and of
 * Btrfs (the old ones are back): the engine is over or a job is, the store is opened again in the same
 * boot, lives on, and the power goes later. Nothing acknowledged is lost. Used by the tests and by
 * main.ts.
 */
import { Prng } from '../../core/base/prng.ts';
import type { SimFault } from '../sim/disk.ts';
import { openAndCheck, revive } from './enumerate.ts';
import type { Owed } from './enumerate.ts';
import { live } from './workloads.ts';
import type { Workload } from './workloads.ts';

export const MANNERS: readonly SimFault[] = [
  { kind: 'failedSync', manner: 'ext4' },
  { kind: 'failedSync', manner: 'btrfs' },
];

/** Lets the `n`th sync of a life fail. False: it has no so many. Throws what is lost. */
export async function failSync(
  workload: Workload,
  seed: number,
  n: number,
  fault: SimFault,
): Promise<boolean> {
  let syncs = 0;
  let failed = false;
  const { hand, failure } = await live(workload, seed, {
    keepsMoments: false,
    toleratesJobFailures: true,
    fault: (call) => {
      if (call.call !== 'fdatasync' || syncs++ !== n) return undefined;
      failed = true;
      return fault;
    },
  });
  if (!failed) {
    if (failure !== undefined) throw failure;
    return false;
  }
  const { model, how, durable, disk } = hand;
  const owed: Owed = { how, model, submitted: model.upper, floor: durable };
  const prng = new Prng(seed * 1_000 + n);
  // The same boot: the cache is as it was.
  const sameBoot = disk.processCrash();
  const first = openAndCheck(sameBoot, owed, prng);
  // Whoever opened it has read it.
  const seen: Owed = { ...owed, submitted: model.upper, floor: first.visible };
  first.rounds(prng.below(40));
  first.dispose();
  for (const mode of ['power', 'torn'] as const) {
    revive(sameBoot.crash(prng, mode), seen, prng, { depth: 0 });
  }
  const forgetful = disk.processCrash();
  forgetful.dropCache();
  revive(forgetful, owed, prng, { depth: 1 });
  revive(disk.crash(prng, 'power'), owed, prng, { depth: 1 });
  return true;
}
