/**
 * Backups under way, as the keeper sees them: each holds the parts that its checkpoint names, and the log
 * from there on, until its client lets go. What the checkpoint is stands in a file of its own in tmp/, for
 * the manifest moves on. A part of the keeper, on its thread.
 */
import { invariant } from '../core/base/assert.ts';
import { le } from '../core/base/frontier.ts';
import { encodeRollup, filesOf } from '../core/spine/manifest.ts';
import type { ManifestState } from '../core/spine/manifest.ts';
import { tmpPath } from '../core/storage/names.ts';
import type { StorageAnswer, StorageCall } from '../core/storage/storage.ts';
import type { PartStore } from './part-store.ts';

type Hold = {
  readonly client: number;
  /** Of the request that began it. */
  readonly number: number;
  readonly floor: number;
  readonly files: ReadonlySet<number>;
};

/** Where the checkpoint of a client's backup is written down. */
export function backupStatePath(client: number, number: number): string {
  return tmpPath(`backup-${client}-${number}.rollup`);
}

export class BackupHolds {
  readonly #parts: PartStore;
  readonly #submit: (
    fd: number,
    calls: readonly StorageCall[],
    done: (answer: StorageAnswer) => void,
  ) => void;
  readonly #holds: Hold[] = [];

  constructor(
    parts: PartStore,
    submit: (
      fd: number,
      calls: readonly StorageCall[],
      done: (answer: StorageAnswer) => void,
    ) => void,
  ) {
    this.#parts = parts;
    this.#submit = submit;
  }

  /** The log is needed from here on; undefined: no backup is under way. */
  get floor(): number | undefined {
    let floor: number | undefined;
    for (const hold of this.#holds)
      if (floor === undefined || !le(floor, hold.floor)) floor = hold.floor;
    return floor;
  }

  /** `state` is the checkpoint. `done` says whether it could be written down; else nothing is held. */
  begin(
    client: number,
    number: number,
    state: ManifestState,
    done: (failure: unknown) => void,
  ): void {
    const files = new Set<number>();
    for (const spine of state.spines.values()) for (const file of filesOf(spine)) files.add(file);
    this.#parts.pin(files);
    this.#holds.push({ client, number, floor: state.flushed.upper, files });
    const path = backupStatePath(client, number);
    const calls: StorageCall[] = [
      { call: 'open', path, how: 'create' },
      { call: 'write', bytes: encodeRollup(state, 1, 0), position: 0 },
      { call: 'close' },
    ];
    this.#submit(-1, calls, ({ failure }) => {
      if (failure !== undefined) this.end(client, number);
      done(failure);
    });
  }

  /** The copy is made or given up. */
  end(client: number, number: number): void {
    const at = this.#holds.findIndex((hold) => hold.client === client && hold.number === number);
    invariant(at >= 0, 'a backup ends once', client, number);
    const [hold] = this.#holds.splice(at, 1);
    this.#parts.unpin(hold.files);
    // What could not be deleted goes at the next open.
    const calls: StorageCall[] = [{ call: 'unlink', path: backupStatePath(client, number) }];
    this.#submit(-1, calls, () => {});
  }
}
