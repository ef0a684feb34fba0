/**
 * Scripts of enter, leave, retire: blocks that are overwritten when freed, and used again; descriptors
 * that are closed, and whose number is somebody else's then. A reader that sees a freed block shows as
 * a race, and as a value that was never published. Epochs start just below wrap.
 */
import { invariant } from '../../../core/base/assert.ts';
import type { Arena } from '../../../core/shared/arena.ts';
import { ArenaPlan } from '../../../core/shared/arena.ts';
import {
  CLIENT_SLOT_BYTES,
  EPOCH_FIRST,
  ReaderSlot,
  RetireList,
  SLOT_IO_WORD,
  SLOT_NOW_WORD,
  UNTIL_NOW,
  UNTIL_NOW_AND_IO,
} from '../../../core/shared/epoch.ts';
import { loadLink, storeLink } from '../../../core/shared/link.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script, ThreadScript, World } from '../explorer.ts';
import { PlantedRetireList } from './planted.ts';
import type { Fault, Retiring } from './planted.ts';

/** Its next epoch is negative; the one after the second is positive again. */
const BELOW_SIGN = 0x7fff_ffff;
const BELOW_ZERO = -1;

const READERS_MAX = 2;
const plan = new ArenaPlan();
const EPOCH: number = plan.take(4);
const SLOTS: number = plan.take(READERS_MAX * CLIENT_SLOT_BYTES);
const LINK: number = plan.take(4);
const BLOCKS: readonly number[] = [0, 1, 2].map(() => plan.take(8));

/** What a freed block holds. */
const POISON = -1;
const FIRST_VALUE = 10;

function setup(world: World, epoch: number): void {
  const { i32 } = world.arena;
  i32[EPOCH >>> 2] = epoch;
  writeBlock(i32, BLOCKS[0], FIRST_VALUE);
  storeLink(i32, LINK >>> 2, BLOCKS[0]);
  world.label(EPOCH, 'epoch');
  world.label(LINK, 'link');
  BLOCKS.forEach((block, i) => world.label(block, `block${i}`, 2));
  for (let slot = 0; slot < READERS_MAX; slot++) {
    const at = SLOTS + slot * CLIENT_SLOT_BYTES;
    world.label(at + SLOT_NOW_WORD * 4, `now${slot}`);
    world.label(at + SLOT_IO_WORD * 4, `io${slot}`);
  }
}

function writeBlock(i32: Int32Array, block: number, value: number): void {
  i32[block >>> 2] = value;
  i32[(block >>> 2) + 1] = value;
}

/** The value of a block that was published, whole. */
function readBlock(i32: Int32Array, block: number): number {
  const value = i32[block >>> 2];
  invariant(i32[(block >>> 2) + 1] === value, 'a block is seen whole', value);
  invariant(value >= FIRST_VALUE, 'a freed block is never seen', value);
  return value;
}

/** The real list, or a stand-in. */
function retireList(arena: Arena, slots: number, fault: Fault | undefined): Retiring {
  return fault === undefined
    ? new RetireList(arena, EPOCH, SLOTS, slots)
    : new PlantedRetireList(arena, EPOCH, SLOTS, slots, fault);
}

/** One look at the link by a reader. */
type Look = (slot: ReaderSlot, i32: Int32Array) => number;

const look: Look = (slot, i32) => {
  slot.enter();
  const value = readBlock(i32, loadLink(i32, LINK >>> 2));
  slot.leave();
  return value;
};

/** An inner pair of enter and leave must not end the outer one. */
const lookNested: Look = (slot, i32) => {
  slot.enter();
  const block = loadLink(i32, LINK >>> 2);
  slot.enter();
  slot.leave();
  const value = readBlock(i32, block);
  slot.leave();
  return value;
};

const lookBeforeEnter: Look = (slot, i32) => {
  const block = loadLink(i32, LINK >>> 2);
  slot.enter();
  const value = readBlock(i32, block);
  slot.leave();
  return value;
};

const lookAfterLeave: Look = (slot, i32) => {
  slot.enter();
  const block = loadLink(i32, LINK >>> 2);
  slot.leave();
  return readBlock(i32, block);
};

type EpochOptions = {
  name: string;
  epoch?: number;
  readers?: number;
  looks?: number;
  look?: Look;
  writes?: number;
  /** Blocks that the writer takes turns with. */
  blocks?: number;
  fault?: Fault;
  /** The epoch moves on before the link does. */
  addBeforeUnlink?: boolean;
  plainLink?: boolean;
};

/** A writer that replaces the block behind a link, again and again, with the blocks that come back. */
function epochScript(options: EpochOptions): Script<void> {
  const { epoch = BELOW_SIGN, readers = 1, looks = 2, writes = 2, blocks = 2 } = options;
  return {
    name: `epoch: ${options.name}`,
    promise: 'what a reader found while inside is not overwritten before it leaves',
    setup: (world) => setup(world, epoch),
    threads: [
      ...Array.from({ length: readers }, (_, index): ThreadScript<void> => ({
        name: `reader${index}`,
        start: ({ arena }) => {
          const slot = new ReaderSlot(arena, EPOCH, SLOTS + index * CLIENT_SLOT_BYTES);
          return () => {
            let last = 0;
            for (let i = 0; i < looks; i++) {
              const value = (options.look ?? look)(slot, arena.i32);
              invariant(value >= last, 'values come in order', last, value);
              last = value;
            }
          };
        },
        plainLoads: (at) => options.plainLink === true && at === LINK,
      })),
      {
        name: 'writer',
        start: ({ arena }) => {
          const { i32 } = arena;
          const retired = retireList(arena, readers, options.fault);
          return () => {
            const free = BLOCKS.slice(1, blocks);
            let current = BLOCKS[0];
            const giveBack = (block: number): void => {
              writeBlock(i32, block, POISON);
              free.push(block);
            };
            for (let n = 1; n <= writes; n++) {
              const next = free.pop();
              if (next !== undefined) {
                writeBlock(i32, next, FIRST_VALUE + n);
                if (options.addBeforeUnlink === true) retired.retire(current, UNTIL_NOW, giveBack);
                storeLink(i32, LINK >>> 2, next);
                if (options.addBeforeUnlink !== true) retired.retire(current, UNTIL_NOW, giveBack);
                current = next;
              }
              retired.sweep();
            }
            retired.sweep();
          };
        },
      },
    ],
  };
}

const OPEN_FILE = 100;

type IoOptions = {
  name: string;
  epoch?: number;
  fault?: Fault;
  until?: number;
  /** Two reads at once, begun in two entries; the first ends first, or last. */
  reads?: 'one' | 'two, in order' | 'two, the later one first';
  ioStoredAfterLeave?: boolean;
  closedBeforeRetired?: boolean;
};

function readFile(i32: Int32Array, file: number): void {
  invariant(i32[file >>> 2] >= FIRST_VALUE, 'a descriptor in use stays open', i32[file >>> 2]);
}

/** A reader that hands a descriptor over to an asynchronous read; a writer that replaces and closes it. */
function ioScript(options: IoOptions): Script<void> {
  const { epoch = BELOW_SIGN, fault, until = UNTIL_NOW_AND_IO, reads = 'one' } = options;
  return {
    name: `io: ${options.name}`,
    promise: 'a descriptor is closed when nobody reads through it any more',
    setup: (world) => setup(world, epoch),
    threads: [
      {
        name: 'reader',
        start: ({ arena }) => {
          const { i32 } = arena;
          const slot = new ReaderSlot(arena, EPOCH, SLOTS);
          const begin = (): { file: number; io: number } => {
            slot.enter();
            const file = loadLink(i32, LINK >>> 2);
            if (options.ioStoredAfterLeave === true) {
              const io = Atomics.load(i32, (SLOTS >>> 2) + SLOT_NOW_WORD);
              slot.leave();
              Atomics.store(i32, (SLOTS >>> 2) + SLOT_IO_WORD, io);
              return { file, io };
            }
            const io = slot.beginIo();
            slot.leave();
            return { file, io };
          };
          const end = ({ file, io }: { file: number; io: number }): void => {
            readFile(i32, file);
            if (options.ioStoredAfterLeave === true) {
              Atomics.store(i32, (SLOTS >>> 2) + SLOT_IO_WORD, 0);
            } else {
              slot.endIo(io);
            }
          };
          return () => {
            const first = begin();
            if (reads === 'one') return end(first);
            const second = begin();
            if (reads === 'two, in order') {
              end(first);
              end(second);
            } else {
              end(second);
              end(first);
            }
          };
        },
      },
      {
        name: 'writer',
        start: ({ arena }) => {
          const { i32 } = arena;
          const retired = retireList(arena, 1, fault);
          const close = (file: number): void => writeBlock(i32, file, POISON);
          return () => {
            for (let n = 1; n < (reads === 'one' ? 2 : 3); n++) {
              writeBlock(i32, BLOCKS[n], OPEN_FILE + n);
              storeLink(i32, LINK >>> 2, BLOCKS[n]);
              if (options.closedBeforeRetired === true) close(BLOCKS[n - 1]);
              else retired.retire(BLOCKS[n - 1], until, close);
              retired.sweep();
            }
            retired.sweep();
          };
        },
      },
    ],
  };
}

export const epochCases: readonly Case[] = [
  holds(epochScript({ name: 'one reader, past the largest epoch' })),
  holds(epochScript({ name: 'one reader, past zero', epoch: BELOW_ZERO })),
  holds(epochScript({ name: 'one reader, from the first epoch', epoch: EPOCH_FIRST })),
  holds(epochScript({ name: 'nested entries', look: lookNested })),
  holds(epochScript({ name: 'two readers', readers: 2, looks: 1, blocks: 3 })),
  holds(epochScript({ name: 'stand-in without a bug', fault: 'none' })),
  holds(
    epochScript({
      name: 'epochs compared with <, where they do not wrap',
      epoch: EPOCH_FIRST,
      fault: 'epochs compared with <',
      writes: 3,
      blocks: 3,
    }),
  ),
  holds(epochScript({ name: 'two readers, two looks', readers: 2, looks: 2, blocks: 3 }), 'deep'),
  holds(
    epochScript({ name: 'four blocks one after the other', looks: 3, writes: 4, blocks: 3 }),
    'deep',
  ),
  planted(
    epochScript({
      name: 'planted: freed while a slot is entered',
      fault: 'freed while a slot is entered',
    }),
    'race',
  ),
  planted(
    epochScript({
      name: 'planted: epochs compared with <, past the largest',
      fault: 'epochs compared with <',
      looks: 2,
      writes: 3,
      blocks: 3,
    }),
    'race',
  ),
  planted(
    epochScript({ name: 'planted: freed at its own epoch', fault: 'freed at its own epoch' }),
    'race',
  ),
  planted(
    epochScript({ name: 'planted: epoch added before the unlink', addBeforeUnlink: true }),
    'race',
  ),
  planted(
    epochScript({ name: 'planted: link loaded before entering', look: lookBeforeEnter }),
    'race',
  ),
  planted(epochScript({ name: 'planted: block used after leaving', look: lookAfterLeave }), 'race'),
  planted(epochScript({ name: 'planted: plain probe read of the link', plainLink: true }), 'race'),

  holds(ioScript({ name: 'one read' })),
  holds(ioScript({ name: 'one read, past zero', epoch: BELOW_ZERO })),
  holds(ioScript({ name: 'stand-in without a bug', fault: 'none' })),
  holds(ioScript({ name: 'two reads, ended in order', reads: 'two, in order' })),
  holds(
    ioScript({ name: 'two reads, the later one ends first', reads: 'two, the later one first' }),
  ),
  planted(
    ioScript({ name: 'planted: io stored after now is cleared', ioStoredAfterLeave: true }),
    'race',
  ),
  planted(
    ioScript({ name: 'planted: io loaded before now', fault: 'io loaded before now' }),
    'race',
  ),
  planted(ioScript({ name: 'planted: io not looked at', fault: 'io not looked at' }), 'race'),
  planted(ioScript({ name: 'planted: descriptor waits for now alone', until: UNTIL_NOW }), 'race'),
  planted(
    ioScript({ name: 'planted: closed before it is retired', closedBeforeRetired: true }),
    'race',
  ),
];
