/** What an engine's actors are configured with, for tests that make a context and no engine. */
import type { EngineConfig } from '../../actors/actor.ts';
import { MiB } from '../../core/base/limits.ts';

export function configWith(memtableBytes: number): EngineConfig {
  return {
    directory: 'sim',
    synced: true,
    syncIntervalMs: 20,
    memtableBytes,
    segmentBytes: MiB,
    mergeThreads: 1,
    history: { offsets: 0 },
    readOnly: false,
    createIfMissing: true,
    errorIfExists: false,
    strictTail: false,
    breakLock: false,
    newLogId: Buffer.alloc(16).toString('base64'),
    holder: undefined,
  };
}
