/**
 * Reads of a multiset: what each (key, value) comes to at a time, which takes every generation and every
 * run that may have the key. Works through the thread's Reader, whose enter and leave are its own; the row
 * cache knows keyed rows only, and what of a file was read is in the system's cache. One instance a client.
 */
import { NO_BYTES, compareAt, compareBytes, equalAt } from '../core/base/bytes.ts';
import type { RowCursor } from '../core/base/cursor.ts';
import { DiffSum } from '../core/base/diff-sum.ts';
import { VERSIONS_ALL } from '../core/memtable/cursor.ts';
import { keyHash } from '../core/memtable/layout.ts';
import { GenerationReader } from '../core/memtable/reader.ts';
import { gatherValue } from '../core/shared/record-pages.ts';
import { BlockCursor, blockFault } from '../core/spine/block.ts';
import { isPacked, unpackBlock } from '../core/spine/block-codec.ts';
import { filterMayHold } from '../core/spine/filter.ts';
import { blockBytes, blockOffset, findBlock } from '../core/spine/part-index.ts';
import { badBlock } from '../core/spine/part-reader.ts';
import { keyHash as partKeyHash } from '../core/spine/row-hash.ts';
import { partPath } from '../core/storage/names.ts';
import type { ActorContext } from './actor.ts';
import { RowBatch, isAtOrAbove, isBelow } from './reader.ts';
import type { RangeBounds, Reader } from './reader.ts';

/** A value of a key, and how often it is there. The bytes are the reader's own. */
export type Pair = { readonly value: Uint8Array; readonly diff: number };

/** Blocks that may hold a key, side by side in a file. */
type Stretch = {
  readonly fd: number;
  /** Opened for this read. */
  readonly own: boolean;
  readonly file: number;
  /** Number of the first block in its part. */
  readonly block: number;
  /** Where each begins in the file, and where the last ends. */
  readonly positions: readonly number[];
};

/** Where a walk goes on inside a key: behind this value of the bound that it begins with. */
export type Resume = { readonly key: Uint8Array; readonly value: Uint8Array };

export class PairReader {
  readonly #context: ActorContext;
  readonly #reader: Reader;
  readonly #generation: GenerationReader;
  readonly #cursor: BlockCursor = new BlockCursor();
  readonly #sum: DiffSum = new DiffSum();

  constructor(context: ActorContext, reader: Reader) {
    this.#context = context;
    this.#reader = reader;
    this.#generation = new GenerationReader(context.arena);
  }

  // ---------------------------------------------------------------- points

  /** The pairs of a key by value; undefined when a file would have to be read and must not. */
  find(collection: number, key: Uint8Array, asOf: number, cachedOnly: boolean): Pair[] | undefined {
    const reader = this.#reader;
    const block = reader.enter(collection, asOf);
    try {
      reader.countRead();
      const { T } = reader;
      const from = this.#hiddenTo(collection, block, key);
      const pairs = this.#inMemory(collection, key, from);
      const stretches = this.#stretches(block, key, cachedOnly);
      if (stretches === undefined) return undefined;
      try {
        for (const stretch of stretches) {
          for (let i = 0; i + 1 < stretch.positions.length; i++) {
            const bytes = stretch.positions[i + 1] - stretch.positions[i];
            const target = Buffer.allocUnsafe(bytes);
            const n = this.#context.storage.read(
              stretch.fd,
              target,
              0,
              bytes,
              stretch.positions[i],
            );
            this.#take(stretch, i, target, n, key, from, T, pairs);
          }
        }
      } finally {
        this.#close(stretches);
      }
      return this.summed(pairs);
    } finally {
      reader.leave();
    }
  }

  /** The same without waiting for the disk on this thread. The time is held meanwhile. */
  async findLater(
    collection: number,
    key: Uint8Array,
    asOf: number,
    hold: (T: number) => void,
    release: (T: number) => void,
  ): Promise<Pair[]> {
    const reader = this.#reader;
    const block = reader.enter(collection, asOf);
    const { T } = reader;
    let from: number;
    let pairs: Pair[];
    let stretches: Stretch[];
    let io: number;
    try {
      reader.countRead();
      from = this.#hiddenTo(collection, block, key);
      pairs = this.#inMemory(collection, key, from);
      stretches = this.#stretches(block, key, false)!;
      if (stretches.length === 0) return this.summed(pairs);
      hold(T);
      io = reader.slot.beginIo();
    } finally {
      reader.leave();
    }
    try {
      for (const stretch of stretches) {
        for (let i = 0; i + 1 < stretch.positions.length; i++) {
          const bytes = stretch.positions[i + 1] - stretch.positions[i];
          const target = Buffer.allocUnsafe(bytes);
          const { storage } = this.#context;
          const n = await storage.readLater(stretch.fd, target, 0, bytes, stretch.positions[i]);
          this.#take(stretch, i, target, n, key, from, T, pairs);
        }
      }
      return this.summed(pairs);
    } finally {
      reader.slot.endIo(io);
      this.#close(stretches);
      release(T);
    }
  }

  /** Below this time a range delete hides the key's updates. Requires: entered. */
  #hiddenTo(collection: number, block: number, key: Uint8Array): number {
    const { hiding, T } = this.#reader;
    return hiding.newest(collection, block, key, 0, key.length, -1, T);
  }

  /** Updates of the key from a time on in generations. Requires: entered. */
  #inMemory(collection: number, key: Uint8Array, from: number): Pair[] {
    const pairs: Pair[] = [];
    const { view, T } = this.#reader;
    if (T < 0) return pairs;
    const { arena, pool } = this.#context;
    const generation = this.#generation;
    const hash = keyHash(key, 0, key.length);
    const look = (header: number): void => {
      generation.attach(header);
      let node = generation.find(collection, key, 0, key.length, hash, T);
      for (; node !== 0; node = generation.olderOf(node)) {
        if (generation.timeOf(node) < from) break;
        const value = Buffer.allocUnsafe(generation.valueBytesOf(node));
        gatherValue(arena, pool, generation.valueAddressOf(node), value.length, value, 0);
        pairs.push({ value, diff: generation.diffOf(node) });
      }
    };
    if (view.spare !== 0) look(view.spare);
    look(view.open);
    for (let i = 0; i < view.sealedCount; i++) look(view.sealed(i));
    return pairs;
  }

  /** Requires: entered. Undefined: there are some, and none may be. */
  #stretches(block: number, key: Uint8Array, cachedOnly: boolean): Stretch[] | undefined {
    const stretches: Stretch[] = [];
    if (block === 0 || this.#reader.T < 0) return stretches;
    const { view } = this.#reader;
    const runs = view.runCount(block);
    this.#reader.warm(block);
    try {
      for (let r = 0; r < runs; r++) {
        const run = view.run(block, r);
        const parts = view.partCount(run);
        // The values of a key may run on into the next part.
        for (let p = view.partAtOrAfter(run, key, 0, key.length); p < parts; p++) {
          const part = view.part(run, p);
          if (view.beginsAfter(part, key, 0, key.length)) break;
          if (view.minTime(part) > this.#reader.T) continue;
          const stretch = this.#stretchOf(part, key, cachedOnly);
          if (stretch === undefined) continue;
          if (cachedOnly) return undefined;
          stretches.push(stretch);
        }
      }
    } catch (error) {
      this.#close(stretches);
      throw error;
    }
    return stretches;
  }

  #stretchOf(part: number, key: Uint8Array, cachedOnly: boolean): Stretch | undefined {
    const reader = this.#reader;
    const { view } = reader;
    const { arena, storage } = this.#context;
    const filter = view.filter(part);
    const index = view.index(part);
    if (index !== 0 && filter !== 0) {
      const hash = partKeyHash(key, 0, key.length);
      if (!filterMayHold(arena.u8, filter, hash)) {
        reader.countSkip();
        return undefined;
      }
    }
    const file = view.file(part);
    let fd = view.fd(part);
    const own = fd < 0;
    if (cachedOnly) return { fd: -1, own: false, file, block: 0, positions: [] };
    if (own) fd = storage.open(partPath(file), 'read');
    try {
      const memory = index === 0 ? reader.readIndex(part, fd) : arena.u8;
      const block = findBlock(memory, index, key, 0, key.length);
      // The least key above: what may hold it is the last that can hold this one.
      const above = new Uint8Array(key.length + 1);
      above.set(key);
      const last = findBlock(memory, index, above, 0, above.length);
      const positions: number[] = [];
      const start = view.offset(part);
      for (let i = block; i <= last; i++) positions.push(start + blockOffset(memory, index, i));
      positions.push(positions[positions.length - 1] + blockBytes(memory, index, last));
      return { fd, own, file, block, positions };
    } catch (error) {
      if (own) storage.close(fd);
      throw error;
    }
  }

  #close(stretches: readonly Stretch[]): void {
    for (const { own, fd } of stretches) if (own) this.#context.storage.close(fd);
  }

  /** Adds the updates of the key with times in [from, T] that stand in the i-th block of a stretch. */
  #take(
    stretch: Stretch,
    i: number,
    bytes: Uint8Array,
    n: number,
    key: Uint8Array,
    from: number,
    T: number,
    pairs: Pair[],
  ): void {
    this.#reader.countFile(n);
    const fault = n === bytes.length ? blockFault(bytes, 0, n) : 'the file ends inside it';
    if (fault !== undefined) {
      throw badBlock(stretch.file, stretch.block + i, stretch.positions[i], fault);
    }
    const plain = isPacked(bytes, 0) ? unpackBlock(bytes, 0, n) : bytes;
    if (typeof plain === 'string') {
      throw badBlock(stretch.file, stretch.block + i, stretch.positions[i], plain);
    }
    const cursor = this.#cursor;
    cursor.open(plain, 0);
    cursor.seek(key, 0, key.length);
    for (; cursor.valid; cursor.next()) {
      const { keyBytes, keyOffset, keyLength } = cursor;
      if (!equalAt(keyBytes, keyOffset, keyLength, key, 0, key.length)) break;
      if (cursor.time > T || cursor.time < from) continue;
      cursor.loadValue();
      const { valueBytes, valueOffset, valueLength, diff } = cursor;
      pairs.push({ value: Buffer.from(copyOf(valueBytes, valueOffset, valueLength)), diff });
    }
  }

  /** One pair a value, in order, none that comes to 0. Sorts what it is given. */
  summed(updates: Pair[]): Pair[] {
    updates.sort((a, b) => compareBytes(a.value, b.value));
    const pairs: Pair[] = [];
    const sum = this.#sum;
    for (let i = 0; i < updates.length;) {
      const { value } = updates[i];
      sum.clear();
      for (; i < updates.length && compareBytes(updates[i].value, value) === 0; i++) {
        sum.add(updates[i].diff);
      }
      const diff = sum.value();
      if (diff !== 0) pairs.push({ value, diff });
    }
    return pairs;
  }

  // ---------------------------------------------------------------- ranges

  /**
   * Copies the next pairs of a range into a batch, at most `rowsMax` and about `bytesMax`, up or down; inside
   * the key of `resume` behind its value. The time must be held or NEWEST.
   */
  readRange(
    collection: number,
    asOf: number,
    range: RangeBounds,
    resume: Resume | undefined,
    rowsMax: number,
    bytesMax: number,
  ): RowBatch {
    const reader = this.#reader;
    const batch = new RowBatch(rowsMax, bytesMax);
    batch.diffs = new Float64Array(batch.times.length);
    const block = reader.enter(collection, asOf);
    try {
      const cursor = reader.openCursor(collection, block, VERSIONS_ALL);
      if (!range.reverse) cursor.seek(range.lower, 0, range.lower.length);
      else if (range.upperOpen) cursor.last();
      else cursor.seekBelow(range.upper, 0, range.upper.length);
      this.#hidden = reader.hiding.isThere(block) ? { collection, block } : undefined;
      this.#fill(cursor, range, resume, rowsMax, batch);
    } finally {
      reader.leaveCursors();
      reader.leave();
    }
    return batch;
  }

  /** Of the walk under way: where some of its rows may be hidden. */
  #hidden: { readonly collection: number; readonly block: number } | undefined;

  #isThere(cursor: RowCursor, T: number): boolean {
    const { time } = cursor;
    if (time > T) return false;
    const hidden = this.#hidden;
    if (hidden === undefined) return true;
    const { keyBytes, keyOffset, keyLength } = cursor;
    const { collection, block } = hidden;
    const { hiding } = this.#reader;
    return hiding.newest(collection, block, keyBytes, keyOffset, keyLength, time, T) === time;
  }

  #fill(
    cursor: RowCursor,
    range: RangeBounds,
    resume: Resume | undefined,
    rowsMax: number,
    batch: RowBatch,
  ): void {
    const { reverse } = range;
    const { T } = this.#reader;
    const sum = this.#sum;
    while (cursor.valid) {
      if (reverse) {
        if (isBelow(cursor, range.lower)) break;
      } else if (!range.upperOpen && isAtOrAbove(cursor, range.upper)) {
        break;
      }
      const isPassed = resume !== undefined && isBehind(cursor, resume, reverse);
      if (isPassed || !this.#isThere(cursor, T)) {
        step(cursor, reverse);
        continue;
      }
      const isFull = batch.count >= rowsMax || !batch.fits(cursor);
      if (isFull && batch.count > 0) return;
      const start = batch.used;
      const { keyLength, valueLength } = cursor;
      batch.append(cursor);
      const { slab } = batch;
      const valueStart = start + keyLength;
      sum.clear();
      do {
        if (this.#isThere(cursor, T)) sum.add(cursor.diff);
        step(cursor, reverse);
      } while (cursor.valid && isPair(cursor, slab, start, keyLength, valueStart, valueLength));
      const diff = sum.value();
      if (diff === 0) {
        batch.takeBack(start);
      } else {
        if (batch.count > batch.diffs.length) batch.diffs = doubled(batch.diffs);
        batch.diffs[batch.count - 1] = diff;
      }
    }
    batch.ended = true;
  }
}

function step(cursor: RowCursor, reverse: boolean): void {
  if (reverse) cursor.previous();
  else cursor.next();
}

function isPair(
  cursor: RowCursor,
  slab: Uint8Array,
  keyStart: number,
  keyLength: number,
  valueStart: number,
  valueLength: number,
): boolean {
  if (cursor.valueLength !== valueLength) return false;
  const { keyBytes, keyOffset } = cursor;
  if (!equalAt(keyBytes, keyOffset, cursor.keyLength, slab, keyStart, keyLength)) return false;
  cursor.loadValue();
  const { valueBytes, valueOffset } = cursor;
  return equalAt(valueBytes, valueOffset, valueLength, slab, valueStart, valueLength);
}

/** The row is one that the walk has been at. */
function isBehind(cursor: RowCursor, { key, value }: Resume, reverse: boolean): boolean {
  const { keyBytes, keyOffset, keyLength } = cursor;
  if (!equalAt(keyBytes, keyOffset, keyLength, key, 0, key.length)) return false;
  cursor.loadValue();
  const { valueBytes, valueOffset, valueLength } = cursor;
  const order = compareAt(valueBytes, valueOffset, valueLength, value, 0, value.length);
  return reverse ? order >= 0 : order <= 0;
}

function copyOf(bytes: Uint8Array, offset: number, length: number): Uint8Array {
  return length === 0 ? NO_BYTES : bytes.subarray(offset, offset + length);
}

function doubled(numbers: Float64Array): Float64Array<ArrayBuffer> {
  const grown = new Float64Array(numbers.length * 2);
  grown.set(numbers);
  return grown;
}
