/**
 * Entry of the thread that verifies a store beside its engine: one task, one report, then it ends. It shares
 * nothing with the engine's threads but the files.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { toPlainError } from '../core/base/errors.ts';
import type { Progress } from '../core/store/report.ts';
import { verifyStore } from '../core/store/verify.ts';
import { NodeStorage } from './node-storage.ts';
import { PROGRESS_EVERY_MS } from './verify.ts';
import type { VerifyMessage, VerifyTask } from './verify.ts';

function tell(message: VerifyMessage): void {
  parentPort?.postMessage(message, []);
}

try {
  const { directory, full } = workerData as VerifyTask;
  const progress: Progress = { what: '', doneBytes: 0, totalBytes: 0 };
  const machine = verifyStore(new NodeStorage(directory), { full, live: true }, progress);
  let told = performance.now();
  let step = machine.next();
  while (step.done !== true) {
    if (performance.now() - told >= PROGRESS_EVERY_MS) {
      told = performance.now();
      tell({ kind: 'progress', progress: { ...progress } });
    }
    step = machine.next();
  }
  tell({ kind: 'report', report: step.value });
} catch (error) {
  tell({ kind: 'failed', error: toPlainError(error) });
}
