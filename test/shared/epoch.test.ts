/**
 * Enter, leave, retire, holds in one thread: who waits for whom, with epochs that wrap. What threads
 * do to each other in between: `test/explorer`.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NO_FRONTIER } from '../../core/base/frontier.ts';
import { pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { Arena } from '../../core/shared/arena.ts';
import {
  CLIENT_SLOT_BYTES,
  EPOCH_FIRST,
  ReaderSlot,
  RetireList,
  SLOT_HOLD_WORD,
  SLOT_IO_WORD,
  SLOT_NOW_WORD,
  UNTIL_NOW,
  UNTIL_NOW_AND_IO,
  lowestHold,
  readersInside,
  storeHold,
} from '../../core/shared/epoch.ts';

const EPOCH = 128;
const SLOTS = 256;

type Rig = {
  arena: Arena;
  readers: ReaderSlot[];
  retired: RetireList;
  freed: number[];
  retire: (thing: number, until?: number) => void;
};

function makeRig(readerCount = 2, epoch: number = EPOCH_FIRST): Rig {
  const arena = Arena.create(pageBytes);
  arena.i32[EPOCH >>> 2] = epoch;
  const readers = Array.from(
    { length: readerCount },
    (_, i) => new ReaderSlot(arena, EPOCH, SLOTS + i * CLIENT_SLOT_BYTES),
  );
  const retired = new RetireList(arena, EPOCH, SLOTS, readerCount);
  const freed: number[] = [];
  return {
    arena,
    readers,
    retired,
    freed,
    retire: (thing, until = UNTIL_NOW) => retired.retire(thing, until, (it) => freed.push(it)),
  };
}

function slotWord(rig: Rig, reader: number, word: number): number {
  return rig.arena.i32[((SLOTS + reader * CLIENT_SLOT_BYTES) >>> 2) + word];
}

/** Epochs at which signs change, and one where none does. */
const STARTS = [EPOCH_FIRST, 0x7fff_fffd, 0x7fff_ffff, -3, -1];

test('a thing waits for those who were inside when it was retired, and for nobody else', () => {
  for (const start of STARTS) {
    const rig = makeRig(2, start);
    const { readers, retired, freed, retire } = rig;
    readers[0].enter();
    retire(1);
    readers[1].enter();
    retire(2);
    assert.equal(retired.sweep(), 0, `from ${start}`);
    readers[0].leave();
    assert.equal(retired.sweep(), 1, `from ${start}`);
    assert.deepEqual(freed, [1]);
    readers[0].enter();
    readers[1].leave();
    assert.equal(retired.sweep(), 1, 'who entered later does not see it');
    assert.deepEqual(freed, [1, 2]);
    assert.equal(retired.length, 0);
    readers[0].leave();
    assert.equal(retired.sweep(), 0);
  }
});

test('an epoch is odd, so never 0, through the wrap', () => {
  const { arena, readers, retire, retired } = makeRig(1, -9);
  for (let i = 0; i < 10; i++) {
    retire(i);
    readers[0].enter();
    assert.equal(arena.i32[(SLOTS >>> 2) + SLOT_NOW_WORD] & 1, 1);
    readers[0].leave();
    assert.equal(retired.sweep(), 1);
  }
});

test('only the outermost of nested entries counts', () => {
  const rig = makeRig(1);
  const [reader] = rig.readers;
  assert.equal(reader.inside, false);
  reader.enter();
  const epoch = slotWord(rig, 0, SLOT_NOW_WORD);
  rig.retire(1);
  reader.enter();
  assert.equal(slotWord(rig, 0, SLOT_NOW_WORD), epoch, 'an inner entry is no newer');
  reader.leave();
  assert.equal(reader.inside, true);
  assert.equal(rig.retired.sweep(), 0);
  reader.leave();
  assert.equal(reader.inside, false);
  assert.equal(slotWord(rig, 0, SLOT_NOW_WORD), 0);
  assert.equal(rig.retired.sweep(), 1);
});

test('unpaired calls are our mistake', () => {
  const { readers } = makeRig(1);
  assert.throws(() => readers[0].leave(), /left as often as entered/);
  assert.throws(() => readers[0].beginIo(), /begins inside/);
  readers[0].enter();
  const io = readers[0].beginIo();
  readers[0].endIo(io);
  assert.throws(() => readers[0].endIo(io), /ends once/);
});

test('memory waits for now, a descriptor for io too', () => {
  for (const start of STARTS) {
    const { readers, retired, freed, retire } = makeRig(1, start);
    readers[0].enter();
    const io = readers[0].beginIo();
    retire(1, UNTIL_NOW);
    retire(2, UNTIL_NOW_AND_IO);
    assert.equal(retired.sweep(), 0);
    readers[0].leave();
    assert.equal(retired.sweep(), 1);
    assert.deepEqual(freed, [1]);
    readers[0].endIo(io);
    assert.equal(retired.sweep(), 1);
    assert.deepEqual(freed, [1, 2], `from ${start}`);
  }
});

test('io is the oldest of the reads that are out, in whatever order they end', () => {
  const prng = new Prng(9);
  for (const start of STARTS) {
    const rig = makeRig(1, start);
    const [reader] = rig.readers;
    const out: number[] = [];
    for (let step = 0; step < 300; step++) {
      if (prng.chance(0.5) && out.length < 6) {
        reader.enter();
        out.push(reader.beginIo());
        reader.leave();
      } else if (out.length > 0) {
        const [io] = out.splice(prng.below(out.length), 1);
        reader.endIo(io);
      }
      // In the order they began, so the first is the oldest; equal epochs do no harm.
      assert.equal(slotWord(rig, 0, SLOT_IO_WORD), out[0] ?? 0);
      if (prng.chance(0.7)) rig.retire(step);
    }
  }
});

test('what a free retires waits for the next look', () => {
  const rig = makeRig(1);
  const { retired, freed, readers } = rig;
  const free = (thing: number): void => {
    freed.push(thing);
    if (thing < 10) retired.retire(thing + 10, UNTIL_NOW, free);
  };
  for (const thing of [1, 2, 3]) retired.retire(thing, UNTIL_NOW, free);
  readers[0].enter();
  retired.retire(4, UNTIL_NOW, free);
  assert.equal(retired.sweep(), 3, 'retired before the reader came');
  assert.deepEqual(freed, [1, 2, 3]);
  assert.equal(retired.length, 4, 'the one that is waited for, and three new ones');
  readers[0].leave();
  assert.equal(retired.sweep(), 4);
  assert.deepEqual(freed, [1, 2, 3, 4, 11, 12, 13]);
  assert.equal(retired.sweep(), 1);
  assert.deepEqual(freed.at(-1), 14);
  assert.equal(retired.length, 0);
});

test('things are freed in the order they were retired', () => {
  const { readers, retired, freed, retire } = makeRig(3);
  const prng = new Prng(21);
  let next = 0;
  for (let step = 0; step < 2_000; step++) {
    const reader = prng.pick(readers);
    if (reader.inside) reader.leave();
    else if (prng.chance(0.5)) reader.enter();
    if (prng.chance(0.6)) retire(next++);
    if (prng.chance(0.3)) retired.sweep();
  }
  for (const reader of readers) if (reader.inside) reader.leave();
  retired.sweep();
  assert.deepEqual(
    freed,
    Array.from({ length: next }, (_, i) => i),
  );
});

test('random entries, reads and retirements free exactly what nobody may see', () => {
  const prng = new Prng(33);
  for (const start of STARTS) {
    const { readers, retired, freed, retire } = makeRig(3, start);
    // Model: for each thing, who was inside, and which reads were out, when it was retired.
    const nowOf = new Map<number, Set<number>>();
    const ioOf = new Map<number, Set<number>>();
    const ios: { reader: number; epoch: number; id: number }[] = [];
    let visit = 0;
    const visits: number[] = [0, 0, 0];
    for (let step = 0; step < 1_500; step++) {
      const r = prng.below(3);
      const reader = readers[r];
      const action = prng.below(4);
      if (action === 0) {
        if (reader.inside) {
          reader.leave();
          for (const set of nowOf.values()) set.delete(visits[r]);
        } else {
          reader.enter();
          visits[r] = ++visit;
        }
      } else if (action === 1 && reader.inside) {
        ios.push({ reader: r, epoch: reader.beginIo(), id: ++visit });
        // It may use what its visit may see.
        for (const [thing, set] of nowOf) {
          if (set.has(visits[r])) ioOf.get(thing)?.add(visit);
        }
      } else if (action === 2 && ios.length > 0) {
        const [io] = ios.splice(prng.below(ios.length), 1);
        readers[io.reader].endIo(io.epoch);
        for (const set of ioOf.values()) set.delete(io.id);
      } else {
        const thing = step;
        const until = prng.chance(0.5) ? UNTIL_NOW : UNTIL_NOW_AND_IO;
        nowOf.set(thing, new Set(visits.filter((_, i) => readers[i].inside)));
        if (until === UNTIL_NOW_AND_IO) ioOf.set(thing, new Set(ios.map(({ id }) => id)));
        retire(thing, until);
      }
      const before = freed.length;
      retired.sweep();
      for (const thing of freed.slice(before)) {
        assert.equal(nowOf.get(thing)?.size, 0, 'nobody is inside who may see it');
        assert.equal(ioOf.get(thing)?.size ?? 0, 0, 'and no read uses it');
        nowOf.delete(thing);
        ioOf.delete(thing);
      }
      for (const [thing, set] of nowOf) {
        // `io` speaks for the oldest read of its thread, and so may hold back more; `now` does not.
        assert.ok(set.size > 0 || ioOf.has(thing), 'what nobody sees does not stay');
      }
    }
    for (const { reader, epoch } of ios) readers[reader].endIo(epoch);
    for (const reader of readers) if (reader.inside) reader.leave();
    retired.sweep();
    assert.equal(retired.length, 0);
  }
});

test('readers inside are counted by now and by io', () => {
  const { arena, readers } = makeRig(2);
  assert.equal(readersInside(arena, SLOTS, 2), false);
  readers[1].enter();
  assert.equal(readersInside(arena, SLOTS, 2), true);
  const io = readers[1].beginIo();
  readers[1].leave();
  assert.equal(readersInside(arena, SLOTS, 2), true);
  assert.equal(readersInside(arena, SLOTS, 1), false);
  readers[1].endIo(io);
  assert.equal(readersInside(arena, SLOTS, 2), false);
});

test('the lowest hold of all clients counts', () => {
  const { arena } = makeRig(3);
  const at = (slot: number): number => SLOTS + slot * CLIENT_SLOT_BYTES;
  assert.equal(lowestHold(arena, SLOTS, 3), NO_FRONTIER);
  for (const T of [0, 1, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, 2 ** 53 - 2]) {
    storeHold(arena, at(1), T);
    assert.equal(lowestHold(arena, SLOTS, 3), T);
  }
  storeHold(arena, at(0), 500);
  storeHold(arena, at(2), 400);
  assert.equal(lowestHold(arena, SLOTS, 3), 400);
  storeHold(arena, at(2), -1);
  assert.equal(lowestHold(arena, SLOTS, 3), 500);
  storeHold(arena, at(0), -1);
  storeHold(arena, at(1), -1);
  assert.equal(lowestHold(arena, SLOTS, 3), NO_FRONTIER);
});

test('a hold that its client left half stored holds everything, until it is stored anew', () => {
  const { arena } = makeRig(1);
  storeHold(arena, SLOTS, 7);
  const version = (SLOTS >>> 2) + SLOT_HOLD_WORD;
  arena.i32[version] = arena.i32[version] + 1;
  assert.equal(lowestHold(arena, SLOTS, 1), 0);
  storeHold(arena, SLOTS, -1);
  assert.equal(lowestHold(arena, SLOTS, 1), NO_FRONTIER);
  // The version may wrap.
  arena.i32[version] = 0x7fff_fffe;
  storeHold(arena, SLOTS, 9);
  assert.equal(arena.i32[version], -0x8000_0000);
  assert.equal(lowestHold(arena, SLOTS, 1), 9);
});
