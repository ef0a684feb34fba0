/**
 * A read's way: enter, take T and then the view, ask the generations newest first, the row cache, the
 * parts newest run first, leave. What it finds stays where it lies until `leave`; nobody's code runs
 * in between. One instance a thread that reads: a client's, or the simulator's.
 */
import { invariant } from '../core/base/assert.ts';
import { NO_BYTES, compareAt } from '../core/base/bytes.ts';
import { copyAt } from '../core/base/copy.ts';
import type { RowCursor } from '../core/base/cursor.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { NO_FRONTIER, OFFSET_MAX } from '../core/base/frontier.ts';
import { OP_DELETE } from '../core/base/update.ts';
import { UNTIL_NEXT } from '../core/cache/layout.ts';
import { CACHE_ABSENT, CACHE_ROW, CacheReader } from '../core/cache/reader.ts';
import { GenerationCursor, VERSIONS_ALL, VERSIONS_NEWEST } from '../core/memtable/cursor.ts';
import { keyHash } from '../core/memtable/layout.ts';
import { GenerationReader } from '../core/memtable/reader.ts';
import type { Counters } from '../core/shared/counters.ts';
import { STATE_CLOSED, STATE_POISONED } from '../core/shared/control.ts';
import { ReaderSlot } from '../core/shared/epoch.ts';
import { gatherValue, isContiguous } from '../core/shared/record-pages.ts';
import { ReadCounts } from '../core/shared/read-heat.ts';
import { RingProducer } from '../core/shared/ring.ts';
import { ABSENT as BLOCK_ABSENT, CONTINUES, FOUND } from '../core/spine/block.ts';
import { MergeCursor } from '../core/spine/merge-cursor.ts';
import { PointReader } from '../core/spine/part-reader.ts';
import { keyHash as partKeyHash } from '../core/spine/row-hash.ts';
import { RunCursor } from '../core/spine/run-cursor.ts';
import type { PartPlace, RunParts } from '../core/spine/run-cursor.ts';
import { ViewReader } from '../core/spine/view.ts';
import { partPath } from '../core/storage/names.ts';
import type { ActorContext } from './actor.ts';
import type { VersionBounds } from './versions.ts';
import { poisonedError } from './commit-line.ts';
import { Hiding } from './hiding.ts';
import { CLIENT_COUNTERS, indexIn, makeCounters } from './counters.ts';
import { THREAD_BACKGROUND } from './topology.ts';

/** Reads what is newest for readers at the moment it enters. */
export const NEWEST: number = NO_FRONTIER;

/** A time before every offset: nothing is there. */
export const BEFORE_ALL = -1;

/** What a point read found. */
export const ROW_ABSENT = 0;
export const ROW_FOUND = 1;
/** Only the disk knows, and it was not to be asked. */
export const ROW_ON_DISK = 2;

const READS: number = indexIn(CLIENT_COUNTERS, 'reads');
const MEMTABLE_HITS: number = indexIn(CLIENT_COUNTERS, 'memtableHits');
const CACHE_HITS: number = indexIn(CLIENT_COUNTERS, 'cacheHits');
const CACHE_ABSENTS: number = indexIn(CLIENT_COUNTERS, 'cacheAbsent');
const PART_READS: number = indexIn(CLIENT_COUNTERS, 'partReads');
const RUNS_VISITED: number = indexIn(CLIENT_COUNTERS, 'runsVisited');
const FILE_READS: number = indexIn(CLIENT_COUNTERS, 'fileReads');
const FILE_BYTES: number = indexIn(CLIENT_COUNTERS, 'fileBytes');
const FILTER_SKIPS: number = indexIn(CLIENT_COUNTERS, 'filterSkips');
const FILTER_FALSE: number = indexIn(CLIENT_COUNTERS, 'filterFalse');
const OFFERS: number = indexIn(CLIENT_COUNTERS, 'offers');
const OFFERS_DROPPED: number = indexIn(CLIENT_COUNTERS, 'offersDropped');
const VIEW_RETRIES: number = indexIn(CLIENT_COUNTERS, 'viewRetries');

/** One block that an asynchronous read may have to look into; private once located. */
type Candidate = { fd: number; own: boolean; file: number; position: number; bytes: number };

const NO_DIFFS: Float64Array = new Float64Array(0);

/** Rows of one batch of a range read, copied out: keys and values in one slab. */
export class RowBatch {
  slab: Buffer;
  used = 0;
  count = 0;
  /** Per row: key start, value start, value end. */
  places: Int32Array;
  times: Float64Array;
  /** Of a multiset's rows. */
  diffs: Float64Array = NO_DIFFS;
  /** True when nothing follows the last row of the batch. */
  ended = false;

  /** For so many rows, or more. */
  constructor(rows: number, bytes: number = BATCH_SLAB_BYTES) {
    const least = Math.min(rows, BATCH_ROWS_LEAST);
    this.slab = Buffer.allocUnsafe(Math.min(bytes, least * ROW_BYTES_GUESS));
    this.places = new Int32Array(3 * least);
    this.times = new Float64Array(least);
  }

  /** There is room for the cursor's row. */
  fits(cursor: RowCursor): boolean {
    return fits(this, cursor);
  }

  append(cursor: RowCursor): void {
    append(this, cursor, true);
  }

  /** Forgets the row appended at `start`, the last one. */
  takeBack(start: number): void {
    takeBack(this, start, true);
  }
}

/** Bytes of a batch of rows. */
export const BATCH_SLAB_BYTES: number = 64 * 1024;
const BATCH_ROWS_LEAST = 1_024;
/** A short read of small rows gets a small slab. */
const ROW_BYTES_GUESS = 1_024;

export class Reader {
  readonly #context: ActorContext;
  readonly slot: ReaderSlot;
  readonly view: ViewReader;
  readonly counters: Counters;
  readonly #heat: ReadCounts;
  readonly #cache: CacheReader;
  readonly #generation: GenerationReader;
  readonly #point: PointReader = new PointReader();
  readonly #generationCursors: GenerationCursor[] = [];
  readonly #runCursors: RunCursor[] = [];
  readonly #runParts: ViewRunParts[] = [];
  readonly #merge: MergeCursor = new MergeCursor([]);
  /** What range deletes hide in the view. */
  readonly hiding: Hiding;

  /** The time of the read in progress; itself included. */
  T = -1;
  /** Of the row found: offset of its last change, and its value. Valid until: leave. */
  time = -1;
  valueBytes: Uint8Array = NO_BYTES;
  valueStart = 0;
  valueEnd = 0;
  #scratch: Buffer = Buffer.allocUnsafe(4_096);

  /** Times that the client holds: what was there when the hold began is there. */
  readonly #held: ReadonlyMap<number, unknown>;

  constructor(
    context: ActorContext,
    client: number,
    held: ReadonlyMap<number, unknown> = new Map(),
    evictor: { ring(): void } = context.threadBells[THREAD_BACKGROUND],
  ) {
    this.#held = held;
    const { arena, pool, control, topology } = context;
    const place = topology.clients[client];
    invariant(place !== undefined, 'a client slot', client);
    this.#context = context;
    this.slot = new ReaderSlot(arena, control.epochAddress, place.slot);
    this.view = new ViewReader(arena);
    this.hiding = new Hiding(arena, this.view);
    this.counters = makeCounters(arena, place.counters, CLIENT_COUNTERS);
    this.#heat = new ReadCounts(arena, place.readHeat);
    this.#cache = new CacheReader(
      arena,
      pool,
      topology.cacheRoots,
      new RingProducer(arena, place.touches.address, place.touches.slots),
      new RingProducer(arena, place.offers.address, place.offers.slots),
      evictor,
    );
    this.#generation = new GenerationReader(arena);
  }

  /** First offset that readers do not see: durable in a synced engine, applied in a buffered one. */
  visible(): number {
    const { control, config } = this.#context;
    return config.synced ? control.durable() : control.applied();
  }

  /**
   * Enters for a read of one collection at `asOf`, or NEWEST. Throws TIDEMARK_NOT_YET or, unless the
   * time is held, TIDEMARK_HISTORY_LOST; then it has left again. Answers the collection's block, 0 when
   * nothing of it is in parts.
   */
  enter(collection: number, asOf: number): number {
    this.slot.enter();
    try {
      this.#assertAlive();
      for (;;) {
        // T before the view: a view loaded after T is complete up to T (row-cache.md O5).
        const upper = this.visible();
        if (asOf !== NEWEST && asOf >= upper) throw notYet(asOf, upper);
        this.T = asOf === NEWEST ? upper - 1 : asOf;
        this.view.attach(this.#context.control.view());
        const block = this.view.collection(collection);
        if (block === 0 || this.T < 0 || this.T >= this.#oldest(block, asOf)) return block;
        if (asOf !== NEWEST) throw historyLost(asOf, this.#oldest(block, asOf));
        // History moved on between the two loads: both again.
        this.counters.add(VIEW_RETRIES, 1);
      }
    } catch (error) {
      this.slot.leave();
      throw error;
    }
  }

  /**
   * As `enter`, at a time that the client holds, and so has seen: it is not asked for again. Throws what
   * `enter` does.
   */
  enterHeld(collection: number, T: number): number {
    this.slot.enter();
    try {
      this.#assertAlive();
      this.T = T;
      this.view.attach(this.#context.control.view());
      const block = this.view.collection(collection);
      if (block === 0 || T < 0 || T >= this.view.since(block)) return block;
      throw historyLost(T, this.view.since(block));
    } catch (error) {
      this.slot.leave();
      throw error;
    }
  }

  /**
   * Once inside: either the keeper sees us and leaves its descriptors open, or we see that the engine
   * failed before it closed them.
   */
  #assertAlive(): void {
    const state = this.#context.control.state();
    if (state === STATE_POISONED) throw poisonedError(this.#context);
    if (state === STATE_CLOSED) throw new TidemarkError('TIDEMARK_CLOSED', 'the engine is closed');
  }

  /** The lowest time that may be read: promised to all, or kept for those who hold it. */
  #oldest(block: number, asOf: number): number {
    const isOurs = asOf === NEWEST || this.#held.has(asOf);
    return isOurs ? this.view.since(block) : this.view.sinceNext(block);
  }

  leave(): void {
    this.slot.leave();
  }

  /** Looks at the newest view. Requires: entered. */
  reloadView(): ViewReader {
    this.view.attach(this.#context.control.view());
    return this.view;
  }

  /** First offset after the last transaction that changed the collection, as far as readers see; see `newestChange`. */
  touched(collection: number): number {
    this.slot.enter();
    try {
      const upper = this.visible();
      this.reloadView();
      return Math.min(this.newestChange(collection) + 1, upper);
    } finally {
      this.slot.leave();
    }
  }

  /**
   * Offset of the collection's last change, visible or not; -1 when there is none. Where merges may have left
   * out its trace, an offset up to which all history is merged. Requires: entered.
   */
  newestChange(collection: number): number {
    const { view } = this;
    let newest = -1;
    const look = (header: number): void => {
      this.#generation.attach(header);
      newest = Math.max(newest, this.#generation.newestTimeOf(collection));
    };
    if (view.spare !== 0) look(view.spare);
    look(view.open);
    for (let i = 0; i < view.sealedCount; i++) look(view.sealed(i));
    const block = view.collection(collection);
    if (newest < 0 && block !== 0) {
      for (let r = 0; r < view.runCount(block); r++) {
        const run = view.run(block, r);
        for (let p = 0; p < view.partCount(run); p++) {
          newest = Math.max(newest, view.maxTime(view.part(run, p)));
        }
      }
      newest = Math.max(newest, this.hiding.newestInParts(block));
      // Merges leave out deletions up to here, and no row tells of them any more: rather too high.
      const since = view.since(block);
      if (since > 0) newest = Math.max(newest, since);
    }
    return newest;
  }

  // ---------------------------------------------------------------- points

  /**
   * Offset of a change after `above` of a row in [lower, upper), else `above`; `upper` undefined: there is no bound.
   * What is not visible may be left out. Of more rows than `rowsMax` or bytes than `bytesMax` in what was written
   * or merged since, and where merges may have left out the trace of a change, as if it were the whole
   * collection. Requires: entered, at NEWEST.
   */
  changeWithin(
    collection: number,
    lower: Uint8Array,
    upper: Uint8Array | undefined,
    above: number,
    rowsMax: number,
    bytesMax: number,
  ): number {
    const newest = this.newestChange(collection);
    if (newest <= above) return above;
    const { view, hiding, T } = this;
    const block = view.collection(collection);
    if (block !== 0 && view.since(block) > above) return newest;
    // A range delete may have taken away what is in the oldest run.
    const hides = hiding.isThereAfter(block, above);
    try {
      const cursor = this.openCursor(collection, block, VERSIONS_NEWEST, hides ? -1 : above);
      cursor.seek(lower, 0, lower.length);
      let bytes = 0;
      for (let rows = 0; cursor.valid; rows++) {
        if (upper !== undefined && isAtOrAbove(cursor, upper)) break;
        if (rows === rowsMax || bytes > bytesMax) return newest;
        const { keyBytes, keyOffset, keyLength, time } = cursor;
        if (time > above) return time;
        // Values are not looked at, but in parts they lie among the keys.
        bytes += keyLength + cursor.valueLength;
        if (hides) {
          const at = hiding.newest(collection, block, keyBytes, keyOffset, keyLength, above, T);
          if (at > above) return at;
        }
        cursor.next();
      }
      return above;
    } finally {
      this.leaveCursors();
    }
  }

  /** The newest version at T, from memory or, unless `cachedOnly`, the disk. Requires: entered. */
  find(
    collection: number,
    block: number,
    key: Uint8Array,
    length: number,
    cachedOnly: boolean,
  ): number {
    this.counters.add(READS, 1);
    const inMemory = this.#findInMemory(collection, block, key, length);
    if (inMemory !== ROW_ON_DISK) return inMemory;
    if (cachedOnly) return ROW_ON_DISK;
    return this.#findInParts(collection, block, key, length);
  }

  #hash = 0;

  #findInMemory(collection: number, block: number, key: Uint8Array, length: number): number {
    if (this.T < 0) {
      this.time = -1;
      return ROW_ABSENT;
    }
    const hash = keyHash(key, 0, length);
    this.#hash = hash;
    const { view, T } = this;
    const generation = this.#generation;
    let node = 0;
    let hasRanges = false;
    const spare = view.spare;
    if (spare !== 0) {
      generation.attach(spare);
      if (!generation.isEmpty) {
        node = generation.find(collection, key, 0, length, hash, T);
        hasRanges = generation.hasRanges;
      }
    }
    if (node === 0) {
      generation.attach(view.open);
      node = generation.find(collection, key, 0, length, hash, T);
      hasRanges ||= generation.hasRanges;
    }
    const sealed = view.sealedCount;
    for (let i = 0; i < sealed && node === 0; i++) {
      generation.attach(view.sealed(i));
      node = generation.find(collection, key, 0, length, hash, T);
      hasRanges ||= generation.hasRanges;
    }
    if (hasRanges && this.#isHidden(collection, key, length, node)) {
      this.counters.add(MEMTABLE_HITS, 1);
      return ROW_ABSENT;
    }
    if (node !== 0) {
      this.counters.add(MEMTABLE_HITS, 1);
      this.time = generation.timeOf(node);
      if (generation.kindOf(node) === OP_DELETE) return ROW_ABSENT;
      this.#placeValue(generation.valueAddressOf(node), generation.valueBytesOf(node));
      return ROW_FOUND;
    }
    if (block === 0) {
      this.time = -1;
      return ROW_ABSENT;
    }
    switch (this.#cache.lookup(collection, key, 0, length, hash, T)) {
      case CACHE_ROW:
        this.counters.add(CACHE_HITS, 1);
        this.time = this.#cache.from;
        this.valueBytes = this.#context.arena.u8;
        this.valueStart = this.#cache.valueAddress;
        this.valueEnd = this.valueStart + this.#cache.valueBytes;
        return ROW_FOUND;
      case CACHE_ABSENT:
        this.counters.add(CACHE_ABSENTS, 1);
        this.time = -1;
        return ROW_ABSENT;
      default:
        return ROW_ON_DISK;
    }
  }

  /**
   * What the row cache says of a key: CACHE_*; of a row `time`, and `valueStart` to `valueEnd` in the arena.
   * Requires: entered, and the view's generations do not have the key at T.
   */
  lookUpCached(
    collection: number,
    key: Uint8Array,
    at: number,
    length: number,
    hash: number,
    T: number,
  ): number {
    const found = this.#cache.lookup(collection, key, at, length, hash, T);
    if (found === CACHE_ROW) {
      this.counters.add(CACHE_HITS, 1);
      this.time = this.#cache.from;
      this.valueStart = this.#cache.valueAddress;
      this.valueEnd = this.valueStart + this.#cache.valueBytes;
    } else if (found === CACHE_ABSENT) {
      this.counters.add(CACHE_ABSENTS, 1);
    }
    return found;
  }

  /** A range delete of a generation has come since the node, or, where there is none, since all below. */
  #isHidden(collection: number, key: Uint8Array, length: number, node: number): boolean {
    const time = node === 0 ? -1 : this.#generation.timeOf(node);
    const newest = this.hiding.inGenerations(collection, key, 0, length, time, this.T);
    if (newest === time) return false;
    this.time = newest;
    return true;
  }

  /** A value in pages is used where it lies when it is in one piece, else gathered. */
  #placeValue(address: number, bytes: number): void {
    const { arena, pool } = this.#context;
    if (isContiguous(address, bytes)) {
      this.valueBytes = arena.u8;
      this.valueStart = address;
      this.valueEnd = address + bytes;
      return;
    }
    if (this.#scratch.length < bytes) this.#scratch = Buffer.allocUnsafe(bytes);
    gatherValue(arena, pool, address, bytes, this.#scratch, 0);
    this.valueBytes = this.#scratch;
    this.valueStart = 0;
    this.valueEnd = bytes;
  }

  #findInParts(collection: number, block: number, key: Uint8Array, length: number): number {
    const { view, T } = this;
    const { storage, arena } = this.#context;
    const hash = partKeyHash(key, 0, length);
    const hidden = this.hiding.inParts(block, key, 0, length, -1, T);
    const runs = view.runCount(block);
    let until = this.#endOfHidden(block, key, length);
    this.#point.found.newer = NO_FRONTIER;
    this.counters.add(PART_READS, 1);
    this.#heat.add(collection);
    for (let r = 0; r < runs; r++) {
      this.counters.add(RUNS_VISITED, 1);
      const run = view.run(block, r);
      const parts = view.partCount(run);
      // The versions of a key may run on into the next part.
      for (let p = view.partAtOrAfter(run, key, 0, length); p < parts; p++) {
        const part = view.part(run, p);
        if (view.beginsAfter(part, key, 0, length)) break;
        if (view.minTime(part) > T) {
          // Whatever it has of the key is from there on.
          until = Math.min(until, view.minTime(part));
          continue;
        }
        if (view.maxTime(part) < hidden) continue;
        const index = view.index(part);
        const filter = view.filter(part) || -1;
        const answer =
          index === 0
            ? this.#findWithoutIndex(part, hash, key, length)
            : this.#withFile(part, (fd) =>
                this.#point.get(
                  storage,
                  fd,
                  view.file(part),
                  arena.u8,
                  index,
                  filter,
                  view.offset(part),
                  hash,
                  key,
                  0,
                  length,
                  T,
                ),
              );
        this.#countFileRead(answer);
        if (answer !== FOUND) continue;
        const absent = this.#takeFound(hidden);
        this.#offer(collection, block, key, length, absent, hidden, until);
        return absent ? ROW_ABSENT : ROW_FOUND;
      }
    }
    this.time = -1;
    this.#offer(collection, block, key, length, true, hidden, until);
    return ROW_ABSENT;
  }

  /** If a range delete of the parts hides the key later than T, what is there at T is said of T alone: where that ends. */
  #endOfHidden(block: number, key: Uint8Array, length: number): number {
    const newest = this.hiding.inParts(block, key, 0, length, this.T, OFFSET_MAX);
    return newest > this.T ? this.T + 1 : NO_FRONTIER;
  }

  #countFileRead(answer: number): void {
    if (answer === BLOCK_ABSENT) {
      // Either the filter said so without a read, or it was wrong: `bytes` tells.
      this.counters.add(this.#point.bytes === 0 ? FILTER_SKIPS : FILTER_FALSE, 1);
    }
    if (this.#point.bytes > 0) {
      this.counters.add(FILE_READS, 1);
      this.counters.add(FILE_BYTES, this.#point.bytes);
      this.#point.bytes = 0;
    }
  }

  /** Takes the version found last; true when it is none, `hidden`: what is older is not there. */
  #takeFound(hidden: number): boolean {
    const { found } = this.#point;
    this.time = found.time;
    this.valueBytes = found.valueBytes;
    this.valueStart = found.valueOffset;
    this.valueEnd = found.valueOffset + found.valueLength;
    return found.kind === OP_DELETE || found.time < hidden;
  }

  /** Offers what the parts alone said: the next read at such a time finds it in memory. */
  #offer(
    collection: number,
    block: number,
    key: Uint8Array,
    length: number,
    absent: boolean,
    hidden: number,
    until: number,
  ): void {
    const { version } = this.view;
    const since = this.view.since(block);
    const end = Math.min(until, this.#point.found.newer);
    this.#offerRow(collection, version, since, key, length, this.#hash, absent, hidden, end);
  }

  /**
   * Offers the row found last, or that there is none. `until`: what the parts have of the key besides is
   * from there on, or hides it; NO_FRONTIER: there is nothing.
   */
  #offerRow(
    collection: number,
    version: number,
    since: number,
    key: Uint8Array,
    length: number,
    hash: number,
    absent: boolean,
    hidden: number,
    until: number,
  ): void {
    // Below `since` there may have been what merges have left out.
    const absentFrom = Math.max(hidden, this.time < 0 ? since : this.time);
    const taken = this.#cache.offer(
      collection,
      version,
      key,
      0,
      length,
      hash,
      this.valueBytes,
      absent ? 0 : this.valueStart,
      absent ? 0 : this.valueEnd - this.valueStart,
      absent ? absentFrom : this.time,
      until === NO_FRONTIER ? UNTIL_NEXT : until,
      absent,
    );
    this.counters.add(taken ? OFFERS : OFFERS_DROPPED, 1);
  }

  /** Index not in shared memory: read it privately. Slow, right, and rare (memory is short). */
  #findWithoutIndex(part: number, hash: number, key: Uint8Array, length: number): number {
    const { view } = this;
    const { storage } = this.#context;
    return this.#withFile(part, (fd) => {
      const index = this.readIndex(part, fd);
      return this.#point.get(
        storage,
        fd,
        view.file(part),
        index,
        0,
        -1,
        view.offset(part),
        hash,
        key,
        0,
        length,
        this.T,
      );
    });
  }

  readIndex(part: number, fd: number): Uint8Array {
    const { view } = this;
    const bytes = new Uint8Array(view.indexBytes(part));
    const position = view.offset(part) + view.indexOffset(part);
    const n = this.#context.storage.read(fd, bytes, 0, bytes.length, position);
    if (n !== bytes.length) {
      throw new TidemarkError('TIDEMARK_CORRUPT', 'a part ends inside its index', {
        finding: 'BAD_INDEX',
        file: view.file(part),
        position,
      });
    }
    return bytes;
  }

  /** Calls `use` with the part's descriptor, opening the file for the call where none is held open. */
  #withFile<R>(part: number, use: (fd: number) => R): R {
    const fd = this.view.fd(part);
    if (fd >= 0) return use(fd);
    const { storage } = this.#context;
    const own = storage.open(partPath(this.view.file(part)), 'read');
    try {
      return use(own);
    } finally {
      storage.close(own);
    }
  }

  /**
   * A point read that never waits for the disk on this thread. `key` is the caller's and stays as it is
   * until the promise settles. The time read at is held meanwhile by `hold` and `release`.
   */
  async findLater(
    collection: number,
    key: Uint8Array,
    asOf: number,
    hold: (T: number) => void,
    release: (T: number) => void,
  ): Promise<{ outcome: number; time: number; value: Uint8Array; start: number; end: number }> {
    const block = this.enter(collection, asOf);
    let candidates: Candidate[];
    let io: number;
    let hidden: number;
    const T = this.T;
    const hash = keyHash(key, 0, key.length);
    const { version } = this.view;
    const since = block === 0 ? 0 : this.view.since(block);
    let until: number;
    try {
      this.counters.add(READS, 1);
      const outcome = this.#findInMemory(collection, block, key, key.length);
      if (outcome !== ROW_ON_DISK) return this.#result(outcome);
      hidden = this.hiding.inParts(block, key, 0, key.length, -1, T);
      candidates = this.#candidates(block, key, hidden);
      until = Math.min(this.#skippedFrom, this.#endOfHidden(block, key, key.length));
      hold(T);
      io = this.slot.beginIo();
    } finally {
      this.leave();
    }
    try {
      for (const candidate of candidates) {
        const target = await this.#readLater(candidate);
        // No turn from here on to what is returned: other reads share the one point reader.
        const answer = this.#lookInto(candidate, target, key, T);
        until = Math.min(until, this.#point.found.newer);
        if (answer === FOUND) {
          const absent = this.#takeFound(hidden);
          const { length } = key;
          this.#offerRow(collection, version, since, key, length, hash, absent, hidden, until);
          return {
            outcome: absent ? ROW_ABSENT : ROW_FOUND,
            time: this.time,
            value: this.valueBytes,
            start: this.valueStart,
            end: this.valueEnd,
          };
        }
        // More versions than a block holds lie above T: follow them the plain way.
        if (answer === CONTINUES) return this.#findHeld(collection, key, T);
      }
      this.time = -1;
      this.#offerRow(collection, version, since, key, key.length, hash, true, hidden, until);
      return { outcome: ROW_ABSENT, time: -1, value: NO_BYTES, start: 0, end: 0 };
    } finally {
      this.slot.endIo(io);
      for (const candidate of candidates) {
        if (candidate.own) this.#context.storage.close(candidate.fd);
      }
      release(T);
    }
  }

  async #readLater({ fd, position, bytes }: Candidate): Promise<Uint8Array> {
    const target = Buffer.allocUnsafe(bytes);
    const n = await this.#context.storage.readLater(fd, target, 0, bytes, position);
    this.counters.add(FILE_READS, 1);
    this.counters.add(FILE_BYTES, n);
    return target.subarray(0, n);
  }

  #lookInto(candidate: Candidate, target: Uint8Array, key: Uint8Array, T: number): number {
    this.#point.position = candidate.position;
    this.#point.bytes = target.length;
    this.#point.found.newer = NO_FRONTIER;
    const answer = this.#point.search(target, 0, candidate.file, key, 0, key.length, T);
    this.#point.bytes = 0;
    return answer;
  }

  #findHeld(
    collection: number,
    key: Uint8Array,
    T: number,
  ): { outcome: number; time: number; value: Uint8Array; start: number; end: number } {
    const block = this.enter(collection, T);
    try {
      return this.#result(this.find(collection, block, key, key.length, false));
    } finally {
      this.leave();
    }
  }

  /** What was found, copied out of memory that is only lent. */
  #result(outcome: number): {
    outcome: number;
    time: number;
    value: Uint8Array;
    start: number;
    end: number;
  } {
    if (outcome !== ROW_FOUND) {
      return { outcome, time: this.time, value: NO_BYTES, start: 0, end: 0 };
    }
    const length = this.valueEnd - this.valueStart;
    const value = Buffer.allocUnsafe(length);
    value.set(this.valueBytes.subarray(this.valueStart, this.valueEnd));
    return { outcome, time: this.time, value, start: 0, end: length };
  }

  /** Of the candidates gathered last: the smallest time of what was passed over as newer than T. */
  #skippedFrom = NO_FRONTIER;

  /** The blocks that may hold the key and are not all hidden, newest run first. Requires: entered. */
  #candidates(block: number, key: Uint8Array, hidden: number): Candidate[] {
    const { view, T } = this;
    const { arena, storage } = this.#context;
    const hash = partKeyHash(key, 0, key.length);
    const point = this.#point;
    const candidates: Candidate[] = [];
    this.#skippedFrom = NO_FRONTIER;
    const runs = view.runCount(block);
    this.counters.add(PART_READS, 1);
    this.counters.add(RUNS_VISITED, runs);
    this.warm(block);
    for (let r = 0; r < runs; r++) {
      const run = view.run(block, r);
      const parts = view.partCount(run);
      for (let p = view.partAtOrAfter(run, key, 0, key.length); p < parts; p++) {
        const part = view.part(run, p);
        if (view.beginsAfter(part, key, 0, key.length)) break;
        if (view.minTime(part) > T) {
          this.#skippedFrom = Math.min(this.#skippedFrom, view.minTime(part));
          continue;
        }
        if (view.maxTime(part) < hidden) continue;
        let fd = view.fd(part);
        const own = fd < 0;
        if (own) fd = storage.open(partPath(view.file(part)), 'read');
        const index = view.index(part);
        const memory = index === 0 ? this.readIndex(part, fd) : arena.u8;
        const filter = index === 0 ? -1 : view.filter(part) || -1;
        const offset = view.offset(part);
        if (!point.locate(memory, index, filter, offset, hash, key, 0, key.length)) {
          this.counters.add(FILTER_SKIPS, 1);
          if (own) storage.close(fd);
          continue;
        }
        const { position, bytes } = point;
        point.bytes = 0;
        candidates.push({ fd, own, file: view.file(part), position, bytes });
      }
    }
    return candidates;
  }

  // ---------------------------------------------------------------- ranges

  /**
   * Copies the next rows of a range into `batch`, at most `rowsMax`, going up from `from` (included when
   * `inclusive`) to below `upper`, or, in reverse, down from `upper` to `from`. Empty `upper` with
   * `upperOpen` is the end. The time must be held or NEWEST.
   */
  readRange(collection: number, asOf: number, range: RangeBounds, rowsMax: number): RowBatch {
    const batch = new RowBatch(rowsMax);
    const block = this.enter(collection, asOf);
    try {
      const cursor = this.openCursor(collection, block, VERSIONS_NEWEST);
      this.#rangesOf = this.hiding.isThere(block) ? collection : -1;
      this.#block = block;
      if (range.reverse) this.#fillDown(cursor, range, rowsMax, batch);
      else this.#fillUp(cursor, range, rowsMax, batch);
    } finally {
      this.leaveCursors();
      this.leave();
    }
    return batch;
  }

  /** The collection that is being walked, when rows of it may be hidden; else -1. And its block. */
  #rangesOf = -1;
  #block = 0;

  /** The row at the cursor, the newest of its key at T, is there. */
  #isRow(cursor: RowCursor): boolean {
    if (cursor.kind === OP_DELETE) return false;
    if (this.#rangesOf < 0) return true;
    const { keyBytes, keyOffset, keyLength, time } = cursor;
    const { hiding, T } = this;
    const at = hiding.newest(this.#rangesOf, this.#block, keyBytes, keyOffset, keyLength, time, T);
    return at === time;
  }

  /** Lets go of the files that range cursors are in. */
  leaveCursors(): void {
    for (const run of this.#runCursors) run.leave();
  }

  /**
   * All of a collection's sources as one, up to T; without memory and parts that hold nothing later than `after`.
   * Requires: entered; then `leaveCursors`.
   */
  openCursor(collection: number, block: number, versions: number, after = -1): RowCursor {
    const { view, T } = this;
    const { arena, pool } = this.#context;
    const sources: RowCursor[] = [];
    let generations = 0;
    const addGeneration = (header: number): void => {
      this.#generation.attach(header);
      if (this.#generation.newestTimeOf(collection) <= after) return;
      const cursor = (this.#generationCursors[generations] ??= new GenerationCursor(arena, pool));
      generations++;
      cursor.open(header, collection, T, versions);
      sources.push(cursor);
    };
    if (view.spare !== 0) addGeneration(view.spare);
    addGeneration(view.open);
    for (let i = 0; i < view.sealedCount; i++) addGeneration(view.sealed(i));
    const runs = block === 0 ? 0 : view.runCount(block);
    if (runs > 0) this.warm(block);
    for (let i = 0; i < runs; i++) {
      const parts = (this.#runParts[i] ??= new ViewRunParts(this.#context, view));
      parts.open(view.run(block, i), after);
      const cursor = (this.#runCursors[i] ??= new RunCursor(this.#context.storage, parts));
      cursor.reset(parts);
      sources.push(cursor);
    }
    if (sources.length === 1) return sources[0];
    this.#merge.reset(sources);
    return this.#merge;
  }

  /**
   * Copies the next changes of a key into a batch, oldest or newest first. Requires: `T`, at or above the
   * bounds, is held, and so is the lower bound.
   */
  readVersions(
    collection: number,
    key: Uint8Array,
    bounds: VersionBounds,
    T: number,
    reverse: boolean,
    rowsMax: number,
  ): RowBatch {
    const batch = new RowBatch(rowsMax);
    batch.diffs = new Float64Array(batch.times.length);
    const block = this.enter(collection, T);
    try {
      const cursor = this.openCursor(collection, block, VERSIONS_ALL);
      // Versions come newest first: backwards is up in time.
      if (reverse) {
        cursor.seek(key, 0, key.length);
      } else {
        const above = new Uint8Array(key.length + 1);
        above.set(key);
        cursor.seekBelow(above, 0, above.length);
      }
      this.#fillVersions(cursor, key, bounds, reverse, rowsMax, batch);
    } finally {
      this.leaveCursors();
      this.leave();
    }
    return batch;
  }

  #fillVersions(
    cursor: RowCursor,
    key: Uint8Array,
    { lower, upper, forgottenTo }: VersionBounds,
    reverse: boolean,
    rowsMax: number,
    batch: RowBatch,
  ): void {
    while (cursor.valid) {
      const { keyBytes, keyOffset, keyLength, time } = cursor;
      if (compareAt(keyBytes, keyOffset, keyLength, key, 0, key.length) !== 0) break;
      const isDeletion = cursor.kind === OP_DELETE;
      const isTold = time >= lower && time <= upper && !(isDeletion && time <= forgottenTo);
      if (isTold) {
        const isFull = batch.count >= rowsMax || !batch.fits(cursor);
        if (isFull && batch.count > 0) return;
        batch.append(cursor);
        if (batch.count > batch.diffs.length) {
          const diffs = new Float64Array(2 * batch.diffs.length);
          diffs.set(batch.diffs);
          batch.diffs = diffs;
        }
        batch.diffs[batch.count - 1] = cursor.diff;
      }
      if (reverse) cursor.next();
      else cursor.previous();
    }
    batch.ended = true;
  }

  #fillUp(cursor: RowCursor, range: RangeBounds, rowsMax: number, batch: RowBatch): void {
    const { T } = this;
    const { lower, upper } = range;
    cursor.seek(lower, 0, lower.length);
    let keyStart = -1;
    let keyLength = 0;
    while (cursor.valid) {
      if (!range.upperOpen && isAtOrAbove(cursor, upper)) break;
      // Versions come newest first: the first at or below T decides, the rest of the key is history.
      const sameKey =
        keyStart >= 0 &&
        compareAt(
          batch.slab,
          keyStart,
          keyLength,
          cursor.keyBytes,
          cursor.keyOffset,
          cursor.keyLength,
        ) === 0;
      if (sameKey || cursor.time > T) {
        cursor.next();
        continue;
      }
      const isFull = batch.count >= rowsMax || !fits(batch, cursor);
      if (isFull && batch.count > 0) return;
      // A deleted key is remembered too, so that its older versions are passed over.
      keyStart = batch.used;
      keyLength = cursor.keyLength;
      append(batch, cursor, this.#isRow(cursor));
      cursor.next();
    }
    batch.ended = true;
  }

  #fillDown(cursor: RowCursor, range: RangeBounds, rowsMax: number, batch: RowBatch): void {
    const { T } = this;
    const { lower, upper } = range;
    if (range.upperOpen) cursor.last();
    else cursor.seekBelow(upper, 0, upper.length);
    while (cursor.valid) {
      if (isBelow(cursor, lower)) break;
      const isFull = batch.count >= rowsMax || !fits(batch, cursor);
      if (isFull && batch.count > 0) return;
      // Versions come oldest first: the last one at or below T decides.
      const start = batch.used;
      const length = cursor.keyLength;
      let decided = false;
      let isRow = false;
      do {
        if (cursor.time <= T) {
          if (decided) takeBack(batch, start, isRow);
          isRow = this.#isRow(cursor);
          append(batch, cursor, isRow);
          decided = true;
        }
        if (!decided) keepKey(batch, cursor);
        cursor.previous();
      } while (
        cursor.valid &&
        compareAt(
          batch.slab,
          start,
          length,
          cursor.keyBytes,
          cursor.keyOffset,
          cursor.keyLength,
        ) === 0
      );
      if (!decided) batch.used = start;
    }
    batch.ended = true;
  }

  // Reads of multisets, which go by another way, count here too.

  countRead(): void {
    this.counters.add(READS, 1);
  }

  /** A read has gone down to the runs of the collection with that block. Requires: entered. */
  warm(block: number): void {
    this.#heat.add(this.view.idOf(block));
  }

  countSkip(): void {
    this.counters.add(FILTER_SKIPS, 1);
  }

  countFile(bytes: number): void {
    this.counters.add(FILE_READS, 1);
    this.counters.add(FILE_BYTES, bytes);
  }

  publish(): void {
    this.#cache.flushTouches();
    this.counters.publish();
  }

  /** The client goes: what it lent the evictor is taken back. */
  close(): void {
    this.#cache.close();
  }
}

/** Bounds in encoded keys. Up: from `lower`, included, to below `upper`. `upperOpen`: to the end. */
export type RangeBounds = {
  lower: Uint8Array;
  upper: Uint8Array;
  upperOpen: boolean;
  reverse: boolean;
};

export function isAtOrAbove(cursor: RowCursor, bound: Uint8Array): boolean {
  return (
    compareAt(cursor.keyBytes, cursor.keyOffset, cursor.keyLength, bound, 0, bound.length) >= 0
  );
}

export function isBelow(cursor: RowCursor, bound: Uint8Array): boolean {
  return compareAt(cursor.keyBytes, cursor.keyOffset, cursor.keyLength, bound, 0, bound.length) < 0;
}

function fits(batch: RowBatch, cursor: RowCursor): boolean {
  return batch.used + cursor.keyLength + cursor.valueLength <= batch.slab.length;
}

/** Copies a row, or only the key of what is no row, behind what is there. */
function append(batch: RowBatch, cursor: RowCursor, isRow: boolean): void {
  const start = keepKey(batch, cursor);
  const valueStart = start + cursor.keyLength;
  if (!isRow) return;
  cursor.loadValue();
  copyAt(cursor.valueBytes, cursor.valueOffset, cursor.valueLength, batch.slab, valueStart);
  batch.used = valueStart + cursor.valueLength;
  const row = batch.count++;
  if (row * 3 + 3 > batch.places.length) {
    const places = new Int32Array(batch.places.length * 2);
    places.set(batch.places);
    batch.places = places;
    const times = new Float64Array(batch.times.length * 2);
    times.set(batch.times);
    batch.times = times;
  }
  batch.places[row * 3] = start;
  batch.places[row * 3 + 1] = valueStart;
  batch.places[row * 3 + 2] = batch.used;
  batch.times[row] = cursor.time;
}

/** Copies the cursor's key; a row larger than the slab gets a slab of its size. Returns its start. */
function keepKey(batch: RowBatch, cursor: RowCursor): number {
  const start = batch.used;
  const needed = start + cursor.keyLength + cursor.valueLength;
  if (needed > batch.slab.length) {
    const grown = Buffer.allocUnsafe(needed + BATCH_SLAB_BYTES);
    batch.slab.copy(grown, 0, 0, start);
    batch.slab = grown;
  }
  copyAt(cursor.keyBytes, cursor.keyOffset, cursor.keyLength, batch.slab, start);
  return start;
}

/** Forgets what was appended at `start`: a newer version of the same key decides. */
function takeBack(batch: RowBatch, start: number, isRow: boolean): void {
  if (isRow) batch.count--;
  batch.used = start;
}

/** The parts of one run of the view, or the later ones of them. Requires: entered, from `open` to the cursor's `leave`. */
class ViewRunParts implements RunParts {
  readonly #context: ActorContext;
  readonly #view: ViewReader;
  #run = 0;
  /** Addresses of the parts; undefined: all of the run's. */
  #later: number[] | undefined;
  count = 0;
  #own = -1;

  constructor(context: ActorContext, view: ViewReader) {
    this.#context = context;
    this.#view = view;
  }

  /** Of those with something later than `after`; -1: of all. */
  open(run: number, after: number): void {
    const view = this.#view;
    this.#run = run;
    this.#later = undefined;
    this.count = view.partCount(run);
    if (after < 0) return;
    const all = Array.from({ length: this.count }, (_, part) => view.part(run, part));
    this.#later = all.filter((part) => view.maxTime(part) > after);
    this.count = this.#later.length;
  }

  #part(i: number): number {
    return this.#later === undefined ? this.#view.part(this.#run, i) : this.#later[i];
  }

  keyLo(part: number): Uint8Array {
    return this.#view.keyLo(this.#part(part));
  }

  keyHi(part: number): Uint8Array {
    return this.#view.keyHi(this.#part(part));
  }

  enter(i: number, place: PartPlace): void {
    const view = this.#view;
    const { storage, arena } = this.#context;
    const part = this.#part(i);
    let fd = view.fd(part);
    if (fd < 0) {
      fd = storage.open(partPath(view.file(part)), 'read');
      this.#own = fd;
    }
    place.fd = fd;
    place.file = view.file(part);
    place.offset = view.offset(part);
    place.indexAddress = view.index(part);
    place.memory = arena.u8;
    if (place.indexAddress === 0) {
      const bytes = new Uint8Array(view.indexBytes(part));
      storage.read(fd, bytes, 0, bytes.length, place.offset + view.indexOffset(part));
      place.memory = bytes;
    }
  }

  leave(): void {
    if (this.#own < 0) return;
    this.#context.storage.close(this.#own);
    this.#own = -1;
  }
}

export function notYet(asOf: number, upper: number): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_NOT_YET',
    `offset ${asOf} is not there yet; next is ${upper}`,
    {
      asOf,
      upper,
    },
  );
}

/** `atMs`: a time of day was asked for, not an offset. */
export function historyLost(asOf: number, since: number, atMs?: number): TidemarkError {
  const what = atMs === undefined ? `offset ${asOf}` : `the time ${new Date(atMs).toISOString()}`;
  return new TidemarkError(
    'TIDEMARK_HISTORY_LOST',
    `${what} is no longer retained; the oldest readable offset is ${since}`,
    atMs === undefined ? { asOf, since } : { atMs, since },
  );
}
