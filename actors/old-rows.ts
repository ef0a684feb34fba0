/**
 * Rows as they were: many points of a collection, each at a time of its own. What generations, row cache
 * and filters know of them is answered in one visit; what only the disk knows is gathered, and read block
 * by block: each block once, in the order of the files, neighbours with one read, several reads at once.
 * Nothing is awaited row by row. Belongs to the feeds of a client, on its thread; a visit holds the view
 * without a turn, the reads hold descriptors alone.
 */
import { NO_BYTES } from '../core/base/bytes.ts';
import { KiB, MiB } from '../core/base/limits.ts';
import { OP_DELETE } from '../core/base/update.ts';
import { CACHE_ABSENT, CACHE_ROW } from '../core/cache/reader.ts';
import { keyHash } from '../core/memtable/layout.ts';
import { GenerationReader } from '../core/memtable/reader.ts';
import { gatherValue, isContiguous } from '../core/shared/record-pages.ts';
import { BlockSearch, CONTINUES, FOUND, blockFault } from '../core/spine/block.ts';
import { isPacked, unpackBlock } from '../core/spine/block-codec.ts';
import { filterMayHold } from '../core/spine/filter.ts';
import { blockCount, blockOffset, findBlock } from '../core/spine/part-index.ts';
import { badBlock } from '../core/spine/part-reader.ts';
import { keyHash as partKeyHash } from '../core/spine/row-hash.ts';
import { partPath } from '../core/storage/names.ts';
import type { Client } from './client.ts';
import { ROW_ABSENT, ROW_FOUND, ROW_ON_DISK } from './reader.ts';

/** Read at once when the blocks that are wanted stand so close; one that is larger is read alone. */
const STRETCH_BYTES_MAX: number = 256 * KiB;
/** Bytes between two blocks that cost less than a read of their own. */
const GAP_BYTES_MAX: number = 32 * KiB;
/** Bytes that are read at once, and reads: each waits for a turn of the event loop. */
const BYTES_AT_ONCE: number = 4 * MiB;
const READS_AT_ONCE = 32;
/** Rows are located for so long without a turn. */
const VISIT_MS_MAX = 4;

/** The block is the last of its part. */
const NONE = -1;
/** There may be a block behind it; only the index knows. */
const UNKNOWN = 0;

/** Where the last key was looked for in a run. */
type RunPlace = { part: number; number: number; block: number };

/** Who asked for rows: what their keys are, and who is told. */
export interface AskedRows {
  readonly bytes: Uint8Array;
  keyAt(i: number): number;
  keyEndAt(i: number): number;
  /** `bytes` undefined: there was none. Valid until: the return. */
  answer(i: number, bytes: Uint8Array | undefined, start: number, end: number): void;
  /** It was not answered, or was: who wants it asks again. */
  giveUp(i: number): void;
}

/** A block that may hold some of the rows. */
type WantedBlock = {
  readonly fd: number;
  readonly file: number;
  readonly number: number;
  readonly position: number;
  readonly bytes: number;
  /** Rows to be looked for in it, linked. */
  first: number;
};

/** Neighbours: blocks [from, to) of those that are wanted. */
type Stretch = { readonly from: number; to: number; readonly position: number; end: number };

export class OldRows {
  readonly client: Client;
  /** Of the visit: the generations that have something of the collection, newest first. */
  readonly #generations: GenerationReader[] = [];
  #generationCount = 0;
  /** Some generation has a range delete. */
  #hasRanges = false;
  #scratch: Buffer = Buffer.allocUnsafe(4 * KiB);
  /** Of the visit. */
  #collection = 0;
  #block = 0;
  /** Up to here the parts hold everything: no generation need be asked. */
  #partsUpper = 0;
  /** Of the visit, by run. */
  readonly #places: RunPlace[] = [];

  /** Of the row found last. Valid until: the next look, or `leave`. */
  valueBytes: Uint8Array = NO_BYTES;
  valueStart = 0;
  valueEnd = 0;
  /** Of the row that is on disk, if it is there: a range delete hides what is older. */
  hidden = -1;
  /** Some blocks that may hold it were not noted: another is nearly certain to. */
  isPartial = false;

  constructor(client: Client) {
    this.client = client;
  }

  /**
   * Begins a visit: times from `T` on, all of them visible, may be asked for until `leave`. Requires: `T` is
   * held.
   */
  enter(collection: number, T: number): void {
    const { reader } = this.client;
    const block = reader.enter(collection, T);
    this.#collection = collection;
    this.#block = block;
    this.#partsUpper = block === 0 ? -1 : reader.view.upper(block);
    this.#generationCount = 0;
    this.#hasRanges = false;
    const { view } = reader;
    const runs = block === 0 ? 0 : view.runCount(block);
    for (let r = 0; r < runs; r++) this.#places[r] = { part: 0, number: -1, block: -1 };
    // What comes into them from here on is above all times that are asked for.
    for (let i = -2; i < view.sealedCount; i++) {
      const header = i === -2 ? view.spare : i === -1 ? view.open : view.sealed(i);
      if (header !== 0) this.#addGeneration(header);
    }
  }

  #addGeneration(header: number): void {
    const count = this.#generationCount;
    const generation = (this.#generations[count] ??= new GenerationReader(
      this.client.context.arena,
    ));
    generation.attach(header);
    this.#hasRanges ||= generation.hasRanges;
    if (generation.newestTimeOf(this.#collection) >= 0) this.#generationCount++;
  }

  leave(): void {
    this.client.reader.leave();
  }

  /** What memory says of a row at T: ROW_FOUND, ROW_ABSENT, or ROW_ON_DISK, if it is there. */
  find(bytes: Uint8Array, at: number, length: number, T: number): number {
    this.client.reader.countRead();
    // What lies below is in parts, and newer generations say nothing of it.
    return T < this.#partsUpper ? ROW_ON_DISK : this.#findInMemory(bytes, at, length, T);
  }

  #findInMemory(bytes: Uint8Array, at: number, length: number, T: number): number {
    const collection = this.#collection;
    const { reader, context } = this.client;
    const hash = keyHash(bytes, at, length);
    let generation = this.#generations[0];
    let node = 0;
    for (let i = 0; i < this.#generationCount && node === 0; i++) {
      generation = this.#generations[i];
      node = generation.find(collection, bytes, at, length, hash, T);
    }
    if (this.#hasRanges) {
      const time = node === 0 ? -1 : generation.timeOf(node);
      const newest = reader.hiding.inGenerations(collection, bytes, at, length, time, T);
      if (newest !== time) return ROW_ABSENT;
    }
    if (node !== 0) {
      if (generation.kindOf(node) === OP_DELETE) return ROW_ABSENT;
      this.#placeValue(generation.valueAddressOf(node), generation.valueBytesOf(node));
      return ROW_FOUND;
    }
    if (this.#block === 0) return ROW_ABSENT;
    switch (reader.lookUpCached(collection, bytes, at, length, hash, T)) {
      case CACHE_ROW:
        this.valueBytes = context.arena.u8;
        this.valueStart = reader.valueStart;
        this.valueEnd = reader.valueEnd;
        return ROW_FOUND;
      case CACHE_ABSENT:
        return ROW_ABSENT;
      default:
        return ROW_ON_DISK;
    }
  }

  #placeValue(address: number, length: number): void {
    const { arena, pool } = this.client.context;
    this.valueBytes = arena.u8;
    this.valueStart = address;
    if (!isContiguous(address, length)) {
      if (this.#scratch.length < length) this.#scratch = Buffer.allocUnsafe(length);
      gatherValue(arena, pool, address, length, this.#scratch, 0);
      this.valueBytes = this.#scratch;
      this.valueStart = 0;
    }
    this.valueEnd = this.valueStart + length;
  }

  /**
   * Notes the blocks that may hold a row at T which memory knows nothing of, newest first; false when there
   * are none. Those behind one that holds it with near certainty only if `isWhole` asks for them. Cheapest
   * in the order of the keys.
   */
  locate(
    bytes: Uint8Array,
    at: number,
    length: number,
    T: number,
    reads: OldReads,
    isWhole: boolean,
  ): boolean {
    this.isPartial = false;
    reads.beginRow();
    const block = this.#block;
    if (block === 0) return false;
    const { reader, context } = this.client;
    const { view, hiding } = reader;
    const { u8 } = context.arena;
    const hidden = hiding.inParts(block, bytes, at, length, -1, T);
    this.hidden = hidden;
    const hash = partKeyHash(bytes, at, length);
    const runs = view.runCount(block);
    let isThere = false;
    for (let r = 0; r < runs; r++) {
      const run = view.run(block, r);
      const parts = view.partCount(run);
      const place = this.#places[r];
      const first = view.partAtOrAfter(run, bytes, at, length, place.number);
      // The versions of a key may run on into the next part.
      for (let p = first; p < parts; p++) {
        const part = view.part(run, p);
        if (view.beginsAfter(part, bytes, at, length)) break;
        if (view.minTime(part) > T || view.maxTime(part) < hidden) continue;
        const index = view.index(part);
        const filter = index === 0 ? 0 : view.filter(part);
        if (filter !== 0 && !filterMayHold(u8, filter, hash)) {
          reader.countSkip();
          continue;
        }
        const fd = reads.descriptorOf(view.file(part), view.fd(part));
        const memory = index === 0 ? reads.indexOf(part, fd) : u8;
        const near = place.part === part ? place.block : -1;
        const number = findBlock(memory, index, bytes, at, length, near);
        place.part = part;
        place.number = p;
        place.block = number;
        const start = blockOffset(memory, index, number);
        const end = blockOffset(memory, index, number + 1);
        const next =
          number + 1 < blockCount(memory, index)
            ? blockOffset(memory, index, number + 2) - end
            : NONE;
        const position = view.offset(part) + start;
        reads.candidate(fd, view.file(part), number, position, end - start, next);
        isThere = true;
        // Whatever the part has of the key is what was there at T, or nothing; mostly the filter is right.
        if (!isWhole && filter !== 0 && view.maxTime(part) <= T) {
          this.isPartial = true;
          return true;
        }
      }
    }
    return isThere;
  }
}

/** Rows of one collection that are to be looked for on the disk, and where: filled in visits, then run once. */
export class OldReads {
  readonly #client: Client;
  readonly #collection: number;
  /** Per row: who asked, for which, at what time, from when on it is not hidden. */
  readonly #asked: AskedRows[] = [];
  readonly #numbers: number[] = [];
  readonly #times: number[] = [];
  readonly #hidden: number[] = [];
  /** Per row: its candidates, and whether there may be others. */
  readonly #firsts: number[] = [];
  readonly #ends: number[] = [];
  readonly #partial: boolean[] = [];
  /** The candidate that is looked into; the next row of the same block, -1: none. */
  #at: Int32Array = new Int32Array(0);
  #nextRow: Int32Array = new Int32Array(0);
  /** Candidates, those of a row one after the other. */
  readonly #fds: number[] = [];
  readonly #files: number[] = [];
  readonly #blocks: number[] = [];
  readonly #positions: number[] = [];
  readonly #bytes: number[] = [];
  /** Of the block after it in its part: NONE, or UNKNOWN. */
  readonly #nextBytes: number[] = [];
  /** Where the candidates of the row begin that is being located. */
  #first = 0;
  /** Opened for these reads, by file. */
  readonly #own: Map<number, number> = new Map();
  /** Indexes that are not in shared memory, by part. Good for one visit: parts are told apart by address. */
  readonly #indexes: Map<number, Uint8Array> = new Map();
  readonly #io: number[] = [];
  readonly #search: BlockSearch = new BlockSearch();
  /** Rows for the next round: what they were looked for in has them not. */
  #left: number[] = [];
  /** Rows that no candidate has, but there may be others. */
  #unfound: number[] = [];
  /** What was read into before, for those who read next. */
  readonly #buffers: Buffer[] = [];

  constructor(client: Client, collection: number) {
    this.#client = client;
    this.#collection = collection;
  }

  get count(): number {
    return this.#asked.length;
  }

  // ---------------------------------------------------------------- in a visit

  /** @internal */
  descriptorOf(file: number, fd: number): number {
    if (fd >= 0) return fd;
    let own = this.#own.get(file);
    if (own === undefined) {
      own = this.#client.context.storage.open(partPath(file), 'read');
      this.#own.set(file, own);
    }
    return own;
  }

  /** @internal */
  indexOf(part: number, fd: number): Uint8Array {
    let index = this.#indexes.get(part);
    if (index === undefined) {
      index = this.#client.reader.readIndex(part, fd);
      this.#indexes.set(part, index);
    }
    return index;
  }

  /** @internal The candidates that follow are another row's. */
  beginRow(): void {
    this.#first = this.#fds.length;
  }

  /** @internal */
  candidate(
    fd: number,
    file: number,
    block: number,
    position: number,
    bytes: number,
    nextBytes: number,
  ): void {
    this.#fds.push(fd);
    this.#files.push(file);
    this.#blocks.push(block);
    this.#positions.push(position);
    this.#bytes.push(bytes);
    this.#nextBytes.push(nextBytes);
  }

  /** Takes the row that was located last. */
  add(asked: AskedRows, i: number, T: number, { hidden, isPartial }: OldRows): void {
    this.#asked.push(asked);
    this.#numbers.push(i);
    this.#times.push(T);
    this.#hidden.push(hidden);
    this.#firsts.push(this.#first);
    this.#ends.push(this.#fds.length);
    this.#partial.push(isPartial);
  }

  /** At the end of a visit that added rows, before `leave`: what was seen open stays so until `run` has ended. */
  pin(): void {
    this.#indexes.clear();
    this.#io.push(this.#client.reader.slot.beginIo());
  }

  // ---------------------------------------------------------------- reading

  /** Answers all rows, or rejects when some could not be read. Requires: the lowest time is held. */
  async run(): Promise<void> {
    const rows = this.count;
    this.#at = Int32Array.from(this.#firsts);
    this.#nextRow = new Int32Array(rows);
    this.#left = Array.from({ length: rows }, (_, row) => row);
    try {
      for (;;) {
        while (this.#left.length > 0) {
          const blocks = this.#wanted(this.#left);
          this.#left = [];
          await this.#readAll(blocks);
        }
        if (this.#unfound.length === 0) return;
        await this.#locateWhole(this.#unfound);
        this.#unfound = [];
      }
    } finally {
      this.#close();
    }
  }

  /** Notes all candidates of rows that were not where they should have been, in turns. */
  async #locateWhole(rows: readonly number[]): Promise<void> {
    const client = this.#client;
    const { clock } = client.context;
    const T = rows.reduce((lowest, row) => Math.min(lowest, this.#times[row]), Infinity);
    for (let next = 0; next < rows.length;) {
      await client.turn();
      client.assertUsable();
      client.hold(T);
      try {
        client.feeds.old.enter(this.#collection, T);
        try {
          const startedAtMs = clock.ticksMs();
          do this.#locateRow(rows[next++]);
          while (next < rows.length && clock.ticksMs() - startedAtMs < VISIT_MS_MAX);
        } finally {
          this.pin();
          client.feeds.old.leave();
        }
      } finally {
        client.release(T);
      }
    }
  }

  #locateRow(row: number): void {
    const { old } = this.#client.feeds;
    const asked = this.#asked[row];
    const i = this.#numbers[row];
    const key = asked.keyAt(i);
    const length = asked.keyEndAt(i) - key;
    if (!old.locate(asked.bytes, key, length, this.#times[row], this, true)) {
      asked.answer(i, undefined, 0, 0);
      return;
    }
    this.#hidden[row] = old.hidden;
    this.#at[row] = this.#first;
    this.#ends[row] = this.#fds.length;
    this.#partial[row] = false;
    this.#left.push(row);
  }

  /** At the end, whatever it was: lets go of everything, and tells who asked what was not answered. */
  giveUp(): void {
    this.#close();
    for (const [row, asked] of this.#asked.entries()) asked.giveUp(this.#numbers[row]);
  }

  #close(): void {
    for (const io of this.#io.splice(0)) this.#client.reader.slot.endIo(io);
    for (const fd of this.#own.values()) this.#client.context.storage.close(fd);
    this.#own.clear();
    this.#buffers.length = 0;
  }

  /** The blocks in which these rows are looked for next, in the order of the files, each once. */
  #wanted(rows: readonly number[]): WantedBlock[] {
    const byFile = new Map<number, Map<number, WantedBlock>>();
    const blocks: WantedBlock[] = [];
    for (const row of rows) {
      const at = this.#at[row];
      const file = this.#files[at];
      const position = this.#positions[at];
      let byPosition = byFile.get(file);
      if (byPosition === undefined) {
        byPosition = new Map();
        byFile.set(file, byPosition);
      }
      let block = byPosition.get(position);
      if (block === undefined) {
        const fd = this.#fds[at];
        const number = this.#blocks[at];
        block = { fd, file, number, position, bytes: this.#bytes[at], first: -1 };
        byPosition.set(position, block);
        blocks.push(block);
      }
      this.#nextRow[row] = block.first;
      block.first = row;
    }
    return blocks.toSorted((a, b) => a.file - b.file || a.position - b.position);
  }

  async #readAll(blocks: readonly WantedBlock[]): Promise<void> {
    const stretches = stretchesOf(blocks);
    const client = this.#client;
    const { storage } = client.context;
    let next = 0;
    let isFailed = false;
    const lane = async (): Promise<void> => {
      let buffer = this.#buffers.pop();
      while (next < stretches.length && !isFailed) {
        const stretch = stretches[next++];
        const bytes = stretch.end - stretch.position;
        if (buffer === undefined || buffer.length < bytes) buffer = Buffer.allocUnsafe(bytes);
        try {
          const { fd } = blocks[stretch.from];
          const n = await storage.readLater(fd, buffer, 0, bytes, stretch.position);
          // The arena may be another engine's by now.
          client.assertUsable();
          this.#searchAll(blocks, stretch, buffer, n);
        } catch (error) {
          isFailed = true;
          throw error;
        }
      }
      if (buffer !== undefined) this.#buffers.push(buffer);
    };
    const longest = stretches.reduce(
      (most, { position, end }) => Math.max(most, end - position),
      1,
    );
    const room = Math.max(1, Math.floor(BYTES_AT_ONCE / longest));
    const lanes = Math.min(READS_AT_ONCE, room, stretches.length);
    // All have ended before descriptors are given back.
    const ended = await Promise.allSettled(Array.from({ length: lanes }, lane));
    for (const end of ended) if (end.status === 'rejected') throw end.reason;
  }

  #searchAll(blocks: readonly WantedBlock[], stretch: Stretch, bytes: Buffer, n: number): void {
    const { reader } = this.#client;
    reader.countFile(n);
    for (let b = stretch.from; b < stretch.to; b++) {
      const block = blocks[b];
      const { file, number, position } = block;
      const at = position - stretch.position;
      const isWhole = at + block.bytes <= n;
      const fault = isWhole ? blockFault(bytes, at, block.bytes) : 'the file ends inside it';
      if (fault !== undefined) throw badBlock(file, number, position, fault);
      if (!isPacked(bytes, at)) {
        this.#searchBlock(block, bytes, at);
        continue;
      }
      const plain = unpackBlock(bytes, at, block.bytes);
      if (typeof plain === 'string') throw badBlock(file, number, position, plain);
      this.#searchBlock(block, plain, 0);
    }
  }

  #searchBlock(block: WantedBlock, plain: Uint8Array, at: number): void {
    const search = this.#search;
    for (let row = block.first; row >= 0; row = this.#nextRow[row]) {
      const asked = this.#asked[row];
      const i = this.#numbers[row];
      const key = asked.keyAt(i);
      const length = asked.keyEndAt(i) - key;
      const found = search.search(plain, at, asked.bytes, key, length, this.#times[row]);
      if (found === FOUND) {
        const isThere = search.kind !== OP_DELETE && search.time >= this.#hidden[row];
        const { valueBytes, valueOffset, valueLength } = search;
        asked.answer(i, isThere ? valueBytes : undefined, valueOffset, valueOffset + valueLength);
      } else if (found === CONTINUES && this.#nextBytes[this.#at[row]] !== NONE) {
        if (this.#advance(this.#at[row])) this.#left.push(row);
        else this.#findHeld(row);
      } else if (++this.#at[row] < this.#ends[row]) {
        this.#left.push(row);
      } else if (this.#partial[row]) {
        this.#unfound.push(row);
      } else {
        asked.answer(i, undefined, 0, 0);
      }
    }
  }

  /** The versions of the key go on in the next block: that is looked into next. False: where it is, is not known. */
  #advance(at: number): boolean {
    if (this.#nextBytes[at] === UNKNOWN) return false;
    this.#blocks[at]++;
    this.#positions[at] += this.#bytes[at];
    this.#bytes[at] = this.#nextBytes[at];
    this.#nextBytes[at] = UNKNOWN;
    return true;
  }

  /** More versions than a block holds lie above: follows them the plain way. */
  #findHeld(row: number): void {
    const client = this.#client;
    const { reader } = client;
    const asked = this.#asked[row];
    const i = this.#numbers[row];
    const T = this.#times[row];
    const start = asked.keyAt(i);
    const key = asked.bytes.subarray(start, asked.keyEndAt(i));
    client.hold(T);
    try {
      const block = reader.enter(this.#collection, T);
      try {
        const outcome = reader.find(this.#collection, block, key, key.length, false);
        const bytes = outcome === ROW_FOUND ? reader.valueBytes : undefined;
        asked.answer(i, bytes, reader.valueStart, reader.valueEnd);
      } finally {
        reader.leave();
      }
    } finally {
      client.release(T);
    }
  }
}

/** Neighbours are read at once. */
function stretchesOf(blocks: readonly WantedBlock[]): Stretch[] {
  const stretches: Stretch[] = [];
  let last: Stretch | undefined;
  for (let b = 0; b < blocks.length; b++) {
    const { file, position, bytes } = blocks[b];
    const end = position + bytes;
    if (
      last !== undefined &&
      blocks[last.from].file === file &&
      position - last.end <= GAP_BYTES_MAX &&
      end - last.position <= STRETCH_BYTES_MAX
    ) {
      last.to = b + 1;
      last.end = end;
      continue;
    }
    last = { from: b, to: b + 1, position, end };
    stretches.push(last);
  }
  return stretches;
}
