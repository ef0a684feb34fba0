/**
 * A row cache with its readers on one thread, and the naive model of what they may say: every version
 * of every key with its time, and views that say where the overlay begins.
 */
import assert from 'node:assert/strict';
import { NO_BYTES, compareBytes } from '../../core/base/bytes.ts';
import {
  clientsMax,
  pageBytes,
  populateRingSlots,
  touchRingSlots,
} from '../../core/base/limits.ts';
import type { Prng } from '../../core/base/prng.ts';
import { rangeHolds } from '../../core/base/range-set.ts';
import type { RangeDelete } from '../../core/base/range-set.ts';
import { OP_DELETE, OP_PUT } from '../../core/base/update.ts';
import {
  KIND_ABSENT,
  OFFER_ABSENT,
  OFFER_PAGE,
  POPULATE,
  ROOTS_BYTES,
  ROW_COLLECTION_OFFSET,
  ROW_FROM_OFFSET,
  ROW_KEY_OFFSET,
  ROW_SHAPE_OFFSET,
  ROW_UNTIL_OFFSET,
  ROW_VALUE_BYTES_OFFSET,
  SHAPE_KEY_MASK,
  SHAPE_KIND_SHIFT,
  TOUCH,
  UNTIL_NEXT,
} from '../../core/cache/layout.ts';
import { CACHE_ABSENT, CACHE_MISS, CACHE_ROW, CacheReader } from '../../core/cache/reader.ts';
import { RowCache } from '../../core/cache/row-cache.ts';
import type { NewestVersions } from '../../core/cache/row-cache.ts';
import { keyHash } from '../../core/memtable/layout.ts';
import { Arena, ArenaPlan, fromWords } from '../../core/shared/arena.ts';
import { BELL_BYTES, Bell } from '../../core/shared/bell.ts';
import { BufferPool, KIND_CACHE, KIND_RECORD } from '../../core/shared/buffer-pool.ts';
import { CLIENT_SLOT_BYTES, EPOCH_FIRST, ReaderSlot, RetireList } from '../../core/shared/epoch.ts';
import { RingConsumer, RingProducer, resetRing, ringBytes } from '../../core/shared/ring.ts';

/** Which hash keys have; `collide` makes nearly all of them fall together, over collections too. */
export type HashOf = (collection: number, key: Uint8Array) => number;
export const plainHash: HashOf = (_, key) => keyHash(key, 0, key.length);
export const collide: HashOf = (collection, key) =>
  Math.imul(collection, 0x9e37_79b1) ^ (key.length > 1 ? 1 : 0);

/** A pool that can be told to have no page at its n-th next lease. */
export class FailingPool extends BufferPool {
  failAt = 0;

  override lease(kind: number): number {
    if (this.failAt > 0 && --this.failAt === 0) return 0;
    return super.lease(kind);
  }
}

export type Rig = {
  readonly arena: Arena;
  readonly pool: FailingPool;
  readonly cache: RowCache;
  readonly retire: RetireList;
  readonly clients: RigClient[];
  readonly rootsAddress: number;
  readonly hashOf: HashOf;
};

export type RigClient = {
  readonly slot: ReaderSlot;
  readonly reader: CacheReader;
  readonly touches: RingConsumer;
  readonly offers: RingConsumer;
};

export type RigOptions = {
  pages: number;
  limitPages: number;
  clients?: number;
  bucketsMin?: number;
  /** Where epoch and ring positions start. */
  epoch?: number;
  position?: number;
  hashOf?: HashOf;
};

export function makeRig(options: RigOptions): Rig {
  const arena = Arena.create((options.pages + 4) * pageBytes);
  const plan = new ArenaPlan();
  const epochAddress = plan.take(4);
  const tables = plan.take(BufferPool.tableBytes(arena.bytes));
  const rootsAddress = plan.take(ROOTS_BYTES);
  const slots = plan.take(clientsMax * CLIENT_SLOT_BYTES);
  const bell = new Bell(arena, plan.take(BELL_BYTES));
  const count = options.clients ?? 1;
  const rings = Array.from({ length: count }, () => ({
    touches: plan.take(ringBytes(touchRingSlots)),
    offers: plan.take(ringBytes(populateRingSlots)),
  }));
  const pool = new FailingPool(arena, tables, Math.ceil(plan.bytes / pageBytes));
  const limits = [0, 0, 0, 0, 0];
  limits[KIND_CACHE] = options.limitPages;
  limits[KIND_RECORD] = 2;
  pool.reset(limits);
  arena.i32[epochAddress >>> 2] = options.epoch ?? EPOCH_FIRST;
  const retire = new RetireList(arena, epochAddress, slots, clientsMax);
  const cache = new RowCache(arena, pool, rootsAddress, retire, options.bucketsMin);
  const clients = rings.map(({ touches, offers }, i) => {
    resetRing(arena, touches, options.position ?? 0);
    resetRing(arena, offers, options.position ?? 0);
    return {
      slot: new ReaderSlot(arena, epochAddress, slots + i * CLIENT_SLOT_BYTES),
      reader: new CacheReader(
        arena,
        pool,
        rootsAddress,
        new RingProducer(arena, touches, touchRingSlots),
        new RingProducer(arena, offers, populateRingSlots),
        bell,
      ),
      touches: new RingConsumer(arena, touches, touchRingSlots),
      offers: new RingConsumer(arena, offers, populateRingSlots),
    };
  });
  const hashOf = options.hashOf ?? plainHash;
  return { arena, pool, cache, retire, clients, rootsAddress, hashOf };
}

/** Takes up to `most` offers of a client, as the evictor does; returns how many. */
export function drainOffers(rig: Rig, client: RigClient, most: number = Infinity): number {
  const { u32 } = rig.arena;
  let n = 0;
  for (let slot = client.offers.peek(); slot >= 0 && n < most; slot = client.offers.peek(), n++) {
    const what = u32[slot + POPULATE.WHAT];
    const address = u32[slot + POPULATE.ADDRESS];
    const keyBytes = u32[slot + POPULATE.KEY_BYTES];
    if (what === OFFER_PAGE) {
      rig.pool.free(address, KIND_CACHE);
    } else {
      rig.cache.offer(
        u32[slot + POPULATE.VERSION],
        u32[slot + POPULATE.COLLECTION],
        u32[slot + POPULATE.HASH],
        address,
        keyBytes,
        address + keyBytes,
        u32[slot + POPULATE.VALUE_BYTES],
        fromWords(u32[slot + POPULATE.FROM], u32[slot + POPULATE.FROM + 1]),
        fromWords(u32[slot + POPULATE.UNTIL], u32[slot + POPULATE.UNTIL + 1]),
        what === OFFER_ABSENT,
      );
    }
    client.offers.pop();
  }
  return n;
}

export function drainTouches(rig: Rig, client: RigClient): number {
  const { u32 } = rig.arena;
  let n = 0;
  for (let slot = client.touches.peek(); slot >= 0; slot = client.touches.peek()) {
    for (let i = 0; i < u32[slot + TOUCH.COUNT]; i++, n++) {
      rig.cache.touch(u32[slot + TOUCH.IDS + i]);
    }
    client.touches.pop();
  }
  return n;
}

/** One lookup between enter and leave: the value's bytes, null for absent, undefined for a miss. */
export function look(
  rig: Rig,
  client: RigClient,
  collection: number,
  key: Uint8Array,
  T: number,
): Uint8Array | null | undefined {
  const { reader, slot } = client;
  slot.enter();
  try {
    const hash = rig.hashOf(collection, key);
    const outcome = reader.lookup(collection, key, 0, key.length, hash, T);
    if (outcome === CACHE_MISS) return undefined;
    if (outcome === CACHE_ABSENT) return null;
    assert.equal(outcome, CACHE_ROW);
    return rig.arena.u8.slice(reader.valueAddress, reader.valueAddress + reader.valueBytes);
  } finally {
    slot.leave();
  }
}

export function offerRow(
  rig: Rig,
  client: RigClient,
  version: number,
  collection: number,
  key: Uint8Array,
  value: Uint8Array | null,
  from: number,
  until: number = UNTIL_NEXT,
): boolean {
  const bytes = value ?? NO_BYTES;
  const hash = rig.hashOf(collection, key);
  return client.reader.offer(
    collection,
    version,
    key,
    0,
    key.length,
    hash,
    bytes,
    0,
    bytes.length,
    from,
    until,
    value === null,
  );
}

export type Claim = {
  readonly collection: number;
  readonly key: Uint8Array;
  readonly from: number;
  /** An offset, or UNTIL_NEXT. */
  readonly until: number;
  /** null: absent. */
  readonly value: Uint8Array | null;
};

/** Everything the cache claims now. */
export function claimsOf(rig: Rig): Claim[] {
  const { u32, u8 } = rig.arena;
  const claims: Claim[] = [];
  rig.cache.eachRow((row) => {
    const word = row >>> 2;
    const shape = u32[word + ROW_SHAPE_OFFSET / 4];
    const keyEnd = row + ROW_KEY_OFFSET + (shape & SHAPE_KEY_MASK);
    const valueEnd = keyEnd + u32[word + ROW_VALUE_BYTES_OFFSET / 4];
    claims.push({
      collection: u32[word + ROW_COLLECTION_OFFSET / 4],
      key: u8.slice(row + ROW_KEY_OFFSET, keyEnd),
      from: fromWords(u32[word + ROW_FROM_OFFSET / 4], u32[word + ROW_FROM_OFFSET / 4 + 1]),
      until: fromWords(u32[word + ROW_UNTIL_OFFSET / 4], u32[word + ROW_UNTIL_OFFSET / 4 + 1]),
      value: shape >>> SHAPE_KIND_SHIFT === KIND_ABSENT ? null : u8.slice(keyEnd, valueEnd),
    });
  });
  return claims;
}

// -- the model ---------------------------------------------------------------------------------

export type Version = {
  readonly time: number;
  readonly value: Uint8Array | null;
  /** A range delete took the key away: in a generation it is not the key's own. */
  readonly byRange?: true;
};

/** Every version of every key, by collection and key. */
export class History {
  readonly #versions: Map<string, Version[]> = new Map();
  /** The next offset. */
  upper = 0;

  static name(collection: number, key: Uint8Array): string {
    return `${collection}/${Buffer.from(key).toString('hex')}`;
  }

  of(collection: number, key: Uint8Array): readonly Version[] {
    return this.#versions.get(History.name(collection, key)) ?? [];
  }

  /** Newest with from <= time <= to. */
  newest(collection: number, key: Uint8Array, from: number, to: number): Version | undefined {
    return this.of(collection, key).findLast(({ time }) => time >= from && time <= to);
  }

  write(collection: number, key: Uint8Array, value: Uint8Array | null): void {
    this.writeAll([{ collection, key, value }]);
  }

  /** One transaction. */
  writeAll(
    rows: readonly { collection: number; key: Uint8Array; value: Uint8Array | null }[],
  ): void {
    const time = this.upper++;
    for (const { collection, key, value } of rows) {
      const name = History.name(collection, key);
      const versions = this.#versions.get(name) ?? [];
      versions.push({ time, value });
      this.#versions.set(name, versions);
    }
  }

  readonly ranges: { readonly collection: number; readonly range: RangeDelete }[] = [];

  /** A range delete: every key of the range that was ever there is taken away. */
  deleteRange(collection: number, lo: Uint8Array, hi: Uint8Array): void {
    const range = { lo, hi, time: this.upper++ };
    this.ranges.push({ collection, range });
    for (const [name, versions] of this.#versions) {
      const [id, hex] = name.split('/') as [string, string];
      const isHeld = Number(id) === collection && rangeHolds(range, Buffer.from(hex, 'hex'));
      if (isHeld) versions.push({ time: range.time, value: null, byRange: true });
    }
  }

  /** Keys with their newest version in [lower, upper), as a generation holds them. */
  between(
    lower: number,
    upper: number,
  ): { collection: number; key: Uint8Array; version: Version }[] {
    const found: { collection: number; key: Uint8Array; version: Version }[] = [];
    for (const name of this.#versions.keys()) {
      const [collection, hex] = name.split('/') as [string, string];
      const key = Uint8Array.from(Buffer.from(hex, 'hex'));
      const version = this.newest(Number(collection), key, lower, upper - 1);
      const isOwn = this.of(Number(collection), key).some(({ time, byRange }) => {
        return time >= lower && time < upper && byRange !== true;
      });
      if (version !== undefined && isOwn) {
        found.push({ collection: Number(collection), key, version });
      }
    }
    return found;
  }
}

/** What a reader was told: the overlay holds every update from `frontier` on, the source those below. */
export type ModelView = { readonly version: number; readonly frontier: number };

/** A sealed generation as the cache wants it, its keys copied to a page of the arena. */
export class ModelGeneration implements NewestVersions {
  readonly #rig: Rig;
  readonly #page: number;
  readonly #rows: { collection: number; key: Uint8Array; version: Version }[];
  readonly #ranges: History['ranges'];
  #next = 0;
  collection = 0;
  keyAddress = 0;
  keyBytes = 0;
  hash = 0;
  time = 0;
  kind = 0;
  valueBytes = 0;

  constructor(rig: Rig, page: number, history: History, lower: number, upper: number) {
    this.#rig = rig;
    this.#page = page;
    this.#rows = history.between(lower, upper);
    this.#ranges = history.ranges.filter(({ range }) => range.time >= lower && range.time < upper);
  }

  get hasRanges(): boolean {
    return this.#ranges.length > 0;
  }

  rangeOver(collection: number, keyAddress: number, keyBytes: number): number {
    const key = this.#rig.arena.u8.slice(keyAddress, keyAddress + keyBytes);
    const over = this.#ranges.filter((entry) => {
      return entry.collection === collection && rangeHolds(entry.range, key);
    });
    return Math.max(-1, ...over.map(({ range }) => range.time));
  }

  next(): boolean {
    if (this.#next === this.#rows.length) return false;
    const { collection, key, version } = this.#rows[this.#next++];
    this.#rig.arena.u8.set(key, this.#page);
    this.collection = collection;
    this.keyAddress = this.#page;
    this.keyBytes = key.length;
    this.hash = this.#rig.hashOf(collection, key);
    this.time = version.time;
    this.kind = version.value === null ? OP_DELETE : OP_PUT;
    this.valueBytes = version.value?.length ?? 0;
    return true;
  }

  copyValueTo(address: number): void {
    const { value } = this.#rows[this.#next - 1].version;
    if (value !== null) this.#rig.arena.u8.set(value, address);
  }
}

/**
 * The claim audit: every claim holds at every time from its `from` on, up to its `until`, for every view
 * that a reader may have: either the view's overlay speaks for the key at T, or what is true then is what
 * is claimed.
 */
export function auditClaims(rig: Rig, history: History, views: readonly ModelView[]): number {
  const claims = claimsOf(rig);
  const seen = new Set<string>();
  for (const { collection, key, from, until, value } of claims) {
    const name = History.name(collection, key);
    if (until === UNTIL_NEXT) {
      assert.ok(!seen.has(name), 'one claim about now a key');
      seen.add(name);
    }
    for (const view of views) {
      const edges = history.of(collection, key).flatMap(({ time }) => [time - 1, time]);
      edges.push(from, until - 1, view.frontier - 1, view.frontier, history.upper - 1);
      for (const T of edges) {
        if (T < from || T >= history.upper) continue;
        if (until !== UNTIL_NEXT && T >= until) continue;
        if (history.newest(collection, key, view.frontier, T) !== undefined) continue;
        const truth = history.newest(collection, key, 0, T)?.value ?? null;
        assert.ok(sameValue(truth, value), `false claim for ${name} at ${T} from ${from}`);
      }
    }
    // The offset of the last change is what the claim says it is.
    const writes = history.of(collection, key).filter(({ time }) => time === from);
    if (value !== null) assert.equal(writes.length, 1, `${name} was written at ${from}`);
  }
  return claims.length;
}

export function sameValue(a: Uint8Array | null, b: Uint8Array | null): boolean {
  return a === null || b === null ? a === b : compareBytes(a, b) === 0;
}

export function randomBytes(random: Prng, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => random.u32());
}

export function text(value: string): Uint8Array {
  return Uint8Array.from(Buffer.from(value));
}
