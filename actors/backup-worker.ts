/**
 * Entry of the thread that copies a store beside its engine: one backup, one report, then it ends. It shares
 * nothing with the engine's threads but the files.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { invariant } from '../core/base/assert.ts';
import { toPlainError } from '../core/base/errors.ts';
import { StoreBackup, readRollup } from '../core/store/backup.ts';
import { runBackup } from './backup.ts';
import type { BackupMessage, BackupTask, BackupWord } from './backup.ts';
import { NodeStorage } from './node-storage.ts';
import { placeAt } from './place.ts';

const port = parentPort;
invariant(port !== null, 'a thread of its own');

function tell(message: BackupMessage): void {
  port?.postMessage(message, []);
}

const { source, target, statePath } = workerData as BackupTask;
let give: ((upper: number) => void) | undefined;
const stop = new AbortController();
port.on('message', (word: BackupWord) => {
  if (word.kind === 'stop') stop.abort();
  else give?.(word.upper);
});

try {
  const storage = new NodeStorage(source);
  const backup = new StoreBackup(storage, readRollup(storage, statePath), placeAt(target));
  const upper = (): Promise<number> =>
    new Promise((resolve) => {
      give = resolve;
      tell({ kind: 'upper?' });
    });
  const result = await runBackup(backup, stop.signal, {
    onBegun: (whole) => tell({ kind: 'begun', whole }),
    upper,
    onProgress: (progress) => tell({ kind: 'progress', progress }),
  });
  tell({ kind: 'report', result });
} catch (error) {
  tell({ kind: 'failed', error: toPlainError(error) });
}
port.close();
