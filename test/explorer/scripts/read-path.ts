/**
 * A miniature of a read's way (design.md 8) on the real control words, slots, retire list and ring:
 * one key, rows in generations of linked nodes, a parts block, views. A sequencer inserts, a keeper
 * flushes, a reader asks for the newest row. What is retired is overwritten when freed.
 *
 *   view    open, spare, sealed generation (0 = none), parts block, since
 *   gen     link to its newest node
 *   node    time, value, older node
 *   parts   time, value of the newest row that was flushed (older ones are blurred)
 *   leaf    time, value of the key, and of another key that nobody writes: what the row cache says
 */
import { invariant } from '../../../core/base/assert.ts';
import type { Arena } from '../../../core/shared/arena.ts';
import { ArenaPlan, LINE_BYTES } from '../../../core/shared/arena.ts';
import { CONTROL_BYTES, Control } from '../../../core/shared/control.ts';
import {
  CLIENT_SLOT_BYTES,
  ReaderSlot,
  RetireList,
  SLOT_NOW_WORD,
  UNTIL_NOW,
} from '../../../core/shared/epoch.ts';
import { loadLink, storeLink } from '../../../core/shared/link.ts';
import { RingConsumer, RingProducer, resetRing, ringBytes } from '../../../core/shared/ring.ts';
import { holds, planted } from '../case.ts';
import type { Case } from '../case.ts';
import type { Script, ThreadScript, World } from '../explorer.ts';

const plan = new ArenaPlan();
const CONTROL: number = plan.take(CONTROL_BYTES);
/** Of the reader; behind it that of the sequencer. */
const SLOT: number = plan.take(2 * CLIENT_SLOT_BYTES);
const VIEWS: readonly number[] = [0, 1].map(() => plan.take(20));
const GENERATIONS: readonly number[] = [0, 1, 2].map(() => plan.take(4));
const NODES: readonly number[] = [0, 1, 2, 3].map(() => plan.take(12));
const PARTS: readonly number[] = [0, 1].map(() => plan.take(8));
const ROOT: number = plan.take(4);
const LEAVES: readonly number[] = [0, 1].map(() => plan.take(12));
const RINGS: readonly number[] = [0, 1].map(() => plan.take(ringBytes(1)));
const ARENA_BYTES: number = Math.ceil(plan.bytes / 8) * 8;

const OPEN_WORD = 0;
const SPARE_WORD = 1;
const SEALED_WORD = 2;
const PARTS_WORD = 3;
const SINCE_WORD = 4;
const TIME_WORD = 0;
const VALUE_WORD = 1;
const OLDER_WORD = 2;
const OTHER_WORD = 2;

const NOTHING = -1;
const OTHER_VALUE = 7;
const POISON = 0x0bad_0bad;

/** The value that the transaction at `time` wrote. */
function valueAt(time: number): number {
  return 100 + time;
}

type View = { open: number; spare?: number; sealed?: number; parts?: number; since?: number };

function writeView(i32: Int32Array, address: number, view: View): void {
  const word = address >>> 2;
  i32[word + OPEN_WORD] = view.open;
  i32[word + SPARE_WORD] = view.spare ?? 0;
  i32[word + SEALED_WORD] = view.sealed ?? 0;
  i32[word + PARTS_WORD] = view.parts ?? PARTS[0];
  i32[word + SINCE_WORD] = view.since ?? 0;
}

function writeRow(i32: Int32Array, address: number, time: number): void {
  i32[(address >>> 2) + TIME_WORD] = time;
  i32[(address >>> 2) + VALUE_WORD] = time === NOTHING ? NOTHING : valueAt(time);
}

/** Puts a node for `time` at the head of a generation; not yet visible. */
function insert(i32: Int32Array, generation: number, time: number): void {
  const node = NODES[time];
  writeRow(i32, node, time);
  i32[(node >>> 2) + OLDER_WORD] = loadLink(i32, generation >>> 2);
  storeLink(i32, generation >>> 2, node);
}

/** Value of the newest node with time <= T, or NOTHING. */
function findNode(i32: Int32Array, generation: number, T: number): number {
  if (generation === 0) return NOTHING;
  let word = loadLink(i32, generation >>> 2) >>> 2;
  while (word !== 0 && i32[word + TIME_WORD] > T) word = i32[word + OLDER_WORD] >>> 2;
  return word === 0 ? NOTHING : i32[word + VALUE_WORD];
}

function readRow(i32: Int32Array, block: number, T: number): number {
  return i32[(block >>> 2) + TIME_WORD] <= T ? i32[(block >>> 2) + VALUE_WORD] : NOTHING;
}

function readOverlay(i32: Int32Array, view: number, T: number): number {
  for (const word of [SPARE_WORD, OPEN_WORD, SEALED_WORD]) {
    const value = findNode(i32, i32[(view >>> 2) + word], T);
    if (value !== NOTHING) return value;
  }
  return NOTHING;
}

function readView(i32: Int32Array, view: number, T: number): number {
  const value = readOverlay(i32, view, T);
  return value === NOTHING ? readRow(i32, i32[(view >>> 2) + PARTS_WORD], T) : value;
}

function overwrite(i32: Int32Array, address: number, words: number): void {
  for (let i = 0; i < words; i++) i32[(address >>> 2) + i] = POISON;
}

function begin(world: World, view: View, applied: number): void {
  const { arena } = world;
  const control = new Control(arena, CONTROL);
  control.reset();
  control.setApplied(applied);
  writeRow(arena.i32, PARTS[0], NOTHING);
  writeView(arena.i32, VIEWS[0], view);
  control.setView(VIEWS[0]);
  for (const ring of RINGS) resetRing(arena, ring, -1);
  world.label(CONTROL, 'epoch');
  world.label(CONTROL + LINE_BYTES, 'view');
  world.label(CONTROL + 3 * LINE_BYTES, 'applied', 3);
  world.label(SLOT + SLOT_NOW_WORD * 4, 'now');
  world.label(ROOT, 'root');
  VIEWS.forEach((at, i) => world.label(at, `view${i}`, 5));
  GENERATIONS.forEach((at, i) => world.label(at, `generation${i}`));
  NODES.forEach((at, i) => world.label(at, `node${i}`, 3));
  PARTS.forEach((at, i) => world.label(at, `parts${i}`, 2));
  LEAVES.forEach((at, i) => world.label(at, `leaf${i}`, 3));
  RINGS.forEach((at, i) => {
    world.label(at, `head${i}`);
    world.label(at + LINE_BYTES, `tail${i}`);
    world.label(at + 2 * LINE_BYTES, `slot${i}`);
  });
}

type Entry = { slot: ReaderSlot; control: Control; i32: Int32Array };

/** A thread that enters, asks once what is newest, and leaves. */
function reader(
  read: (entry: Entry) => { T: number; value: number },
  plainLink = 0,
): ThreadScript<void> {
  return {
    name: 'reader',
    start: ({ arena }) => {
      const control = new Control(arena, CONTROL);
      const slot = new ReaderSlot(arena, control.epochAddress, SLOT);
      return () => {
        slot.enter();
        const { T, value } = read({ slot, control, i32: arena.i32 });
        slot.leave();
        invariant(value === valueAt(T), 'the row that was newest at T', T, value);
      };
    },
    plainLoads: (at) => at === plainLink,
  };
}

function makeRetireList(arena: Arena): RetireList {
  return new RetireList(arena, new Control(arena, CONTROL).epochAddress, SLOT, 2);
}

// -- a flush, and a generation that only the next view names ---------------------------------------

type FlushFault = 'view before T' | 'new T with the old view' | 'plain probe' | 'applied first';

/**
 * Generation 0 is sealed with row 0, 1 is open, no spare. The keeper's next view has the row in parts,
 * drops 0 and names the spare 2. The sequencer writes row 1 into 1, and, once it sees the spare, row 2
 * into 2.
 */
function flushScript(name: string, fault?: FlushFault): Script<void> {
  return {
    name: `read path: ${name}`,
    promise: 'a reader finds what was newest at its T, flushed or not, and nothing freed',
    arenaBytes: ARENA_BYTES,
    spins: 4,
    setup: (world) => {
      insert(world.arena.i32, GENERATIONS[0], 0);
      begin(world, { open: GENERATIONS[1], sealed: GENERATIONS[0] }, 1);
    },
    threads: [
      reader(
        ({ control, i32 }) => {
          if (fault === 'view before T') {
            const view = control.view();
            const T = control.applied() - 1;
            return { T, value: readView(i32, view, T) };
          }
          let T = control.applied() - 1;
          const view = control.view();
          if (fault === 'new T with the old view') T = control.applied() - 1;
          return { T, value: readView(i32, view, T) };
        },
        fault === 'plain probe' ? GENERATIONS[1] : 0,
      ),
      {
        name: 'sequencer',
        start: ({ arena }) => {
          const { i32 } = arena;
          const control = new Control(arena, CONTROL);
          const slot = new ReaderSlot(arena, control.epochAddress, SLOT + CLIENT_SLOT_BYTES);
          const write = (generation: number, time: number): void => {
            if (fault === 'applied first') control.setApplied(time + 1);
            insert(i32, generation, time);
            if (fault !== 'applied first') control.setApplied(time + 1);
          };
          return () => {
            write(GENERATIONS[1], 1);
            slot.enter();
            const spare = i32[(control.view() >>> 2) + SPARE_WORD];
            slot.leave();
            if (spare !== 0) write(spare, 2);
          };
        },
      },
      {
        name: 'keeper',
        start: ({ arena }) => {
          const { i32 } = arena;
          const control = new Control(arena, CONTROL);
          const retired = makeRetireList(arena);
          return () => {
            writeRow(i32, PARTS[1], 0);
            const [, open, spare] = GENERATIONS;
            writeView(i32, VIEWS[1], { open, spare, parts: PARTS[1] });
            control.setView(VIEWS[1]);
            retired.retire(VIEWS[0], UNTIL_NOW, (view) => overwrite(i32, view, 5));
            retired.retire(GENERATIONS[0], UNTIL_NOW, (generation) => {
              overwrite(i32, generation, 1);
              overwrite(i32, NODES[0], 3);
            });
            retired.sweep();
            retired.sweep();
          };
        },
      },
    ],
  };
}

// -- since: a flush that blurs -------------------------------------------------------------------

type SinceFault = 'since not looked at';

/**
 * The sequencer writes row 1 beside row 0, hands the sealed generation over, and goes on with row 2
 * in the spare; the keeper's parts hold row 1 alone, so its view has since 1.
 */
function sinceScript(name: string, fault?: SinceFault): Script<void> {
  return {
    name: `read path: ${name}`,
    promise: 'a reader whose T has become history takes T and view again, and is right',
    arenaBytes: ARENA_BYTES,
    spins: 4,
    setup: (world) => {
      insert(world.arena.i32, GENERATIONS[0], 0);
      begin(world, { open: GENERATIONS[0], spare: GENERATIONS[1] }, 1);
    },
    threads: [
      reader(({ control, i32 }) => {
        for (;;) {
          const T = control.applied() - 1;
          const view = control.view();
          const isHistory = T < i32[(view >>> 2) + SINCE_WORD];
          if (!isHistory || fault === 'since not looked at') {
            return { T, value: readView(i32, view, T) };
          }
        }
      }),
      {
        name: 'sequencer',
        start: ({ arena }) => {
          const { i32 } = arena;
          const control = new Control(arena, CONTROL);
          const toKeeper = new RingProducer(arena, RINGS[0], 1);
          return () => {
            insert(i32, GENERATIONS[0], 1);
            control.setApplied(2);
            toKeeper.u32[toKeeper.claim()] = GENERATIONS[0];
            toKeeper.push();
            insert(i32, GENERATIONS[1], 2);
            control.setApplied(3);
          };
        },
      },
      {
        name: 'keeper',
        start: ({ arena }) => {
          const { i32 } = arena;
          const control = new Control(arena, CONTROL);
          const fromSequencer = new RingConsumer(arena, RINGS[0], 1);
          const retired = makeRetireList(arena);
          return () => {
            const slot = fromSequencer.peek();
            if (slot === -1) return;
            const sealed = fromSequencer.u32[slot];
            fromSequencer.pop();
            writeRow(i32, PARTS[1], 1);
            const [, open, spare] = GENERATIONS;
            writeView(i32, VIEWS[1], { open, spare, parts: PARTS[1], since: 1 });
            control.setView(VIEWS[1]);
            retired.retire(VIEWS[0], UNTIL_NOW, (view) => overwrite(i32, view, 5));
            retired.retire(sealed, UNTIL_NOW, (generation) => {
              overwrite(i32, generation, 1);
              overwrite(i32, NODES[0], 3);
              overwrite(i32, NODES[1], 3);
            });
            retired.sweep();
          };
        },
      },
    ],
  };
}

// -- the row cache takes a flush over -------------------------------------------------------------

type ApplyFault =
  | 'root before view'
  | 'view before applied'
  | 'applied before the last leaf'
  | 'leaf retired before the root is swapped';

/**
 * Row 1 is in the sealed generation 0, the cache's leaf says row 0. The evictor swaps the root for a
 * leaf with row 1 and says so; then the keeper publishes the view without the generation. The parts
 * are never asked: the cache is complete.
 */
function applyScript(name: string, fault?: ApplyFault): Script<void> {
  return {
    name: `cache: ${name}`,
    promise: 'what leaves the view is in the cache for whoever sees the new view',
    arenaBytes: ARENA_BYTES,
    spins: 4,
    setup: (world) => {
      insert(world.arena.i32, GENERATIONS[0], 1);
      writeRow(world.arena.i32, LEAVES[0], 0);
      world.arena.i32[(LEAVES[0] >>> 2) + OTHER_WORD] = OTHER_VALUE;
      storeLink(world.arena.i32, ROOT >>> 2, LEAVES[0]);
      begin(world, { open: GENERATIONS[1], sealed: GENERATIONS[0] }, 2);
    },
    threads: [
      reader(({ control, i32 }) => {
        const T = control.applied() - 1;
        const early = fault === 'root before view' ? loadLink(i32, ROOT >>> 2) : 0;
        const view = control.view();
        const overlay = readOverlay(i32, view, T);
        const leaf = early === 0 ? loadLink(i32, ROOT >>> 2) : early;
        const other = i32[(leaf >>> 2) + OTHER_WORD];
        invariant(other === OTHER_VALUE, 'the cache holds the other key', other);
        return { T, value: overlay === NOTHING ? readRow(i32, leaf, T) : overlay };
      }),
      {
        name: 'keeper',
        start: ({ arena }) => {
          const { i32 } = arena;
          const control = new Control(arena, CONTROL);
          const toEvictor = new RingProducer(arena, RINGS[0], 1);
          const fromEvictor = new RingConsumer(arena, RINGS[1], 1);
          const retired = makeRetireList(arena);
          return () => {
            writeView(i32, VIEWS[1], { open: GENERATIONS[1], since: 1 });
            toEvictor.u32[toEvictor.claim()] = GENERATIONS[0];
            toEvictor.push();
            if (fault !== 'view before applied' && fromEvictor.peek() === -1) return;
            control.setView(VIEWS[1]);
            retired.retire(VIEWS[0], UNTIL_NOW, (view) => overwrite(i32, view, 5));
            retired.sweep();
          };
        },
      },
      {
        name: 'evictor',
        start: ({ arena }) => {
          const { i32 } = arena;
          const fromKeeper = new RingConsumer(arena, RINGS[0], 1);
          const toKeeper = new RingProducer(arena, RINGS[1], 1);
          const retired = makeRetireList(arena);
          const answer = (): void => {
            toKeeper.u32[toKeeper.claim()] = 1;
            toKeeper.push();
          };
          const retire = (): void =>
            retired.retire(LEAVES[0], UNTIL_NOW, (leaf) => overwrite(i32, leaf, 3));
          return () => {
            const slot = fromKeeper.peek();
            if (slot === -1) return;
            const generation = fromKeeper.u32[slot];
            const node = loadLink(i32, generation >>> 2) >>> 2;
            if (fault === 'applied before the last leaf') answer();
            i32[LEAVES[1] >>> 2] = i32[node + TIME_WORD];
            i32[(LEAVES[1] >>> 2) + VALUE_WORD] = i32[node + VALUE_WORD];
            i32[(LEAVES[1] >>> 2) + OTHER_WORD] = OTHER_VALUE;
            if (fault === 'leaf retired before the root is swapped') retire();
            storeLink(i32, ROOT >>> 2, LEAVES[1]);
            if (fault !== 'leaf retired before the root is swapped') retire();
            if (fault !== 'applied before the last leaf') answer();
            retired.sweep();
          };
        },
      },
    ],
  };
}

export const readPathCases: readonly Case[] = [
  holds(flushScript('a flush while rows go on')),
  holds(sinceScript('since moves while rows go on')),
  holds(applyScript('a flush is applied')),
  planted(flushScript('planted: view loaded before T', 'view before T'), 'threw'),
  planted(flushScript('planted: a new T with the old view', 'new T with the old view'), 'threw'),
  planted(flushScript('planted: plain probe read of a link word', 'plain probe'), 'race'),
  planted(flushScript('planted: applied published before the insert', 'applied first'), 'threw'),
  planted(sinceScript('planted: since not looked at', 'since not looked at'), 'threw'),
  planted(applyScript('planted: root loaded before the view', 'root before view'), 'threw'),
  planted(applyScript('planted: view published before applied', 'view before applied'), 'threw'),
  planted(
    applyScript('planted: applied before the last leaf', 'applied before the last leaf'),
    'threw',
  ),
  planted(
    applyScript('planted: epoch added before the root', 'leaf retired before the root is swapped'),
    'race',
  ),
];
