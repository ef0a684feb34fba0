/**
 * Looks into a store that was made of another one, by a backup or a restore: it is opened, in an arena and
 * on threads of its own, and holds what the model has up to its newest transaction; no more and no less.
 * Used by run.ts between two steps of the engine that the store is a copy of.
 */
import type { Prng } from '../../core/base/prng.ts';
import { TidemarkError } from '../../core/base/errors.ts';
import type { Arena } from '../../core/shared/arena.ts';
import { idOf } from '../../bin/work.ts';
import { planRestore, restore } from '../../core/store/restore.ts';
import type { Machine } from '../../core/store/report.ts';
import { placeOn } from './backups.ts';
import type { Copy } from './backups.ts';
import { Caller } from './caller.ts';
import { SimClock } from './clock.ts';
import { SimDisk } from './disk.ts';
import type { Model } from './model.ts';
import { configOf } from './settings.ts';
import type { Settings } from './settings.ts';
import { Trace } from './trace.ts';
import { SimFailure, World } from './world.ts';

const OPEN_ROUNDS_MAX = 100_000;

export type CopyParts = {
  readonly model: Model;
  readonly settings: Settings;
  readonly prng: Prng;
  readonly nowMs: number;
};

export class Copies {
  readonly #arena: () => Arena;
  looked = 0;
  restored = 0;

  /** The arena of one copy after the other. */
  constructor(arena: () => Arena) {
    this.#arena = arena;
  }

  /** Opens it: everything that is there now, and, of what kept its history, what was there before. */
  async lookInto({ disk, offset, what }: Copy, parts: CopyParts, hasPast: boolean): Promise<void> {
    try {
      await this.#look(disk, what, parts, hasPast, (upper) => upper === offset + 1);
      this.looked++;
    } catch (error) {
      throw new SimFailure(`${what} is not what it was made of`, { cause: error });
    }
  }

  /**
   * The power went after a sync had lied: all that was durable before is there, and what is there is what was
   * ordered, up to the end of a record; or the damage is told. Returns whether it was there.
   */
  async lookAfterLie(disk: SimDisk, durable: number, parts: CopyParts): Promise<boolean> {
    const what = 'a store whose sync had lied';
    const { model } = parts;
    const isRight = (upper: number): boolean =>
      upper >= durable && upper <= model.upper && model.isRecordEnd(upper);
    try {
      await this.#look(disk, what, parts, true, isRight);
      return true;
    } catch (error) {
      if (error instanceof TidemarkError && error.code === 'TIDEMARK_CORRUPT') return false;
      throw new SimFailure(`${what}, with ${durable} durable before`, { cause: error });
    }
  }

  async #look(
    disk: SimDisk,
    what: string,
    parts: CopyParts,
    hasPast: boolean,
    isRight: (upper: number) => boolean,
  ): Promise<void> {
    const { model, settings, prng } = parts;
    const config = configOf(settings, 'copy', new Uint8Array(16));
    const clock = new SimClock();
    clock.jump(parts.nowMs - clock.nowMs());
    const arena = this.#arena();
    const trace = new Trace();
    const onReceipt = (): void => {
      throw new SimFailure(`${what}: a receipt`);
    };
    const jobFate = (): 'lives' => 'lives';
    const world = new World({
      arena,
      disk,
      clock,
      trace,
      model,
      settings,
      config,
      jobFate,
      onReceipt,
    });
    try {
      await open(world, clock, what);
      const upper = world.context.control.applied();
      if (!isRight(upper)) throw new SimFailure(`${what} ends at ${upper}`);
      const caller = new Caller({
        world,
        number: 0,
        prng: prng.child(),
        trace,
        model,
        settings,
        readOnly: true,
        mayBeFull: () => false,
        mayFailToRead: () => false,
        onRefusal: () => {},
        onConflict: () => {},
      });
      caller.checkAll(hasPast);
      caller.letGo();
    } finally {
      world.dispose();
    }
  }

  /**
   * A store as of some transaction, out of what is on the disk and a backup. What neither has is refused;
   * the backup's own newest transaction is always to be had.
   */
  async restore(backup: Copy, store: SimDisk, upper: number, parts: CopyParts): Promise<void> {
    const { prng } = parts;
    const isEnd = backup.offset >= 0 && prng.chance(0.3);
    const offset = isEnd ? backup.offset : prng.below(Math.max(1, upper));
    if (upper === 0) return;
    const what = `a restore to ${offset}, of ${upper}`;
    const progress = { what: '', doneBytes: 0, totalBytes: 0 };
    const disk = new SimDisk();
    const from = [
      { storage: store, name: 'store' },
      { storage: backup.disk, name: 'backup' },
    ];
    try {
      const plan = run(planRestore(from, [], { offset }, idOf, progress));
      run(restore(plan, placeOn(disk, 'restored'), progress));
      // A record stays whole: what was asked for lies in it.
      if (plan.offset < offset) throw new SimFailure(`${what} ends at ${plan.offset}`);
      await this.lookInto({ disk, offset: plan.offset, what }, parts, false);
      this.restored++;
    } catch (error) {
      const isLost = error instanceof TidemarkError && error.code === 'TIDEMARK_HISTORY_LOST';
      if (!isLost || isEnd) throw error;
    }
  }
}

function run<T>(machine: Machine<T>): T {
  for (;;) {
    const { done, value } = machine.next();
    if (done === true) return value;
  }
}

async function open(world: World, clock: SimClock, what: string): Promise<void> {
  for (let round = 0; !world.isOpen; round++) {
    for (let actor = 0; actor < 5; actor++) world.tickActor(actor);
    world.stepPool(undefined, 4_096);
    while (world.stepQueue(undefined));
    clock.advance(1);
    if (world.failure !== undefined) throw world.failure.error;
    if (round > OPEN_ROUNDS_MAX) throw new SimFailure(`${what} does not open`);
    await undefined;
  }
}
