/**
 * Backups beside everything else: begun by a client, made step by step on a disk of their own between the
 * steps of the actors, let go of at the end. What was made is handed to whoever looks into it (copies.ts).
 * Used by caller.ts.
 */
import type { Prng } from '../../core/base/prng.ts';
import { StoreBackup, readRollup } from '../../core/store/backup.ts';
import type { BackupResult } from '../../core/store/backup.ts';
import type { Place } from '../../core/store/new-store.ts';
import type { Machine } from '../../core/store/report.ts';
import { backupStatePath } from '../../actors/backup-holds.ts';
import type { Client } from '../../actors/client.ts';
import { SimDisk } from './disk.ts';
import type { Await, World } from './world.ts';
import { SimFailure } from './world.ts';

/** A store that was made of another one: its newest transaction, and its disk. */
export type Copy = { readonly disk: SimDisk; readonly offset: number; readonly what: string };

export type BackupParts = {
  readonly world: World;
  readonly client: Client;
  readonly number: number;
  readonly prng: Prng;
  readonly await: Await;
  readonly isBusy: (error: unknown) => boolean;
  readonly isFailedRead: (error: unknown) => boolean;
  readonly note: (what: string, n: number) => void;
};

/** Steps of a machine in one go. */
const STEPS_MAX = 40;

/** A disk of its own, where nothing can be linked to another one. */
export function placeOn(disk: SimDisk, name: string): Place {
  return {
    storage: disk,
    name,
    link: () => {
      throw Object.assign(new Error('another disk'), { code: 'EXDEV' });
    },
    removeDir: () => {},
    syncParent: () => {},
  };
}

export class Backups {
  readonly #parts: BackupParts;
  #isAsked = false;
  #running:
    | { number: number; disk: SimDisk; backup: StoreBackup; machine: Machine<BackupResult> }
    | undefined;
  #isOver = false;
  /** Made, and not looked into yet. */
  made: Copy | undefined;

  constructor(parts: BackupParts) {
    this.#parts = parts;
  }

  /** A few steps of the one that is being made. */
  goOn(): void {
    if (this.#running !== undefined) this.#step(this.#parts.prng.between(1, STEPS_MAX));
  }

  /** Begins one, if none is being made. */
  act(): void {
    if (this.#running !== undefined) return;
    if (!this.#isAsked && this.made === undefined) this.#begin();
  }

  #begin(): void {
    const { client, world, note, isBusy } = this.#parts;
    this.#isAsked = true;
    this.#parts.await(
      client.beginBackup(),
      'the beginning of a backup',
      (number) => {
        this.#isAsked = false;
        if (this.#isOver) {
          this.#end(number);
          return;
        }
        note('backup', number);
        const disk = new SimDisk();
        const { storage } = world;
        try {
          const state = readRollup(storage, backupStatePath(this.#parts.number, number));
          const backup = new StoreBackup(storage, state, placeOn(disk, 'backup'));
          this.#running = { number, disk, backup, machine: this.#make(backup) };
        } catch (error) {
          this.#end(number);
          if (!this.#parts.isFailedRead(error)) throw error;
        }
      },
      (error) => {
        this.#isAsked = false;
        if (!isBusy(error)) throw error;
      },
    );
  }

  *#make(backup: StoreBackup): Machine<BackupResult> {
    yield* backup.begin();
    yield* backup.parts();
    yield* backup.log(this.#parts.world.context.control.durable());
    return yield* backup.finish();
  }

  #step(count: number): void {
    const { number, disk, backup, machine } = this.#running!;
    const { note, isFailedRead, world } = this.#parts;
    try {
      for (let i = 0; i < count; i++) {
        const next = machine.next();
        if (next.done !== true) continue;
        this.#running = undefined;
        const { offset } = next.value;
        note('backup made', offset + 1);
        if (offset >= world.context.control.durable()) {
          throw new SimFailure(`a backup has ${offset}, which is not durable`);
        }
        this.made = { disk, offset, what: `a backup at ${offset}` };
        this.#end(number);
        return;
      }
    } catch (error) {
      if (!isFailedRead(error)) throw error;
      this.#running = undefined;
      backup.abandon();
      this.#end(number);
    }
  }

  /** Its hold is let go of, however long that takes. */
  #end(number: number): void {
    const { client, isBusy } = this.#parts;
    this.#parts.await(
      client.endBackup(number),
      'the end of a backup',
      () => {},
      (error) => {
        if (!isBusy(error)) throw error;
        this.#end(number);
      },
    );
  }

  letGo(): void {
    this.#isOver = true;
    const running = this.#running;
    this.#running = undefined;
    if (running === undefined) return;
    running.machine.return(undefined as never);
    if (this.#parts.world.isOpen) this.#end(running.number);
  }
}
