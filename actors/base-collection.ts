/**
 * What collections of every kind have in common: name, encodings, frontiers, history, and how the options
 * of a read become a time. Public; lives on its client's thread.
 */
import { TidemarkError } from '../core/base/errors.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import { catalogMetaKey } from './catalog.ts';
import type { StoredHistory } from './catalog.ts';
import type { Client } from './client.ts';
import type { Receipt } from './commit-line.ts';
import { isOurs } from './encodings.ts';
import type { Codec } from './encodings.ts';
import { checkFields, checkHistory } from './options.ts';
import type { History } from './options.ts';
import { NEWEST, ROW_ABSENT, ROW_ON_DISK, historyLost } from './reader.ts';
import type { Snapshot } from './snapshot.ts';

/** Where in time a read looks; one of the two at most. */
export interface ReadOptions {
  /**
   * Every transaction with offset <= asOf. Below `since`: TIDEMARK_HISTORY_LOST; at or above `upper`:
   * TIDEMARK_NOT_YET. A Date is the offset that was the newest then (`engine.offsetAt`).
   */
  readonly asOf?: number | Date;
  /** The state that a snapshot holds. */
  readonly snapshot?: Snapshot;
  /** getSync only: TIDEMARK_NOT_CACHED instead of a file read. */
  readonly cachedOnly?: boolean;
}

const READ_OPTIONS: ReadonlySet<string> = new Set(['asOf', 'snapshot', 'cachedOnly']);

export abstract class BaseCollection<K, V> {
  readonly name: string;
  abstract readonly kind: 'keyed' | 'multiset';
  /** @internal */
  readonly id: number;
  /** @internal */
  readonly keyCodec: Codec<K>;
  /** @internal */
  readonly valueCodec: Codec<V>;
  /** @internal */
  protected readonly client: Client;
  /** @internal Decoding values runs no code of the caller's. */
  readonly valuesAreOurs: boolean;
  readonly #setHistory: (history: StoredHistory) => Promise<Receipt>;

  /** @internal */
  constructor(
    client: Client,
    name: string,
    id: number,
    keys: Codec<K>,
    values: Codec<V>,
    setHistory: (history: StoredHistory) => Promise<Receipt>,
  ) {
    this.client = client;
    this.name = name;
    this.id = id;
    this.keyCodec = keys;
    this.valueCodec = values;
    this.valuesAreOurs = isOurs(values);
    this.#setHistory = setHistory;
  }

  /** The lowest asOf that may be read; what lies below only snapshots that were there before still see. */
  get since(): number {
    const { reader } = this.client;
    this.client.assertUsable();
    const block = reader.enter(this.id, NEWEST);
    const since = block === 0 ? 0 : reader.view.sinceNext(block);
    reader.leave();
    return since;
  }

  /**
   * 1 + offset of the last transaction that changed the collection; 0 when none has. Where that lies in
   * history that was merged away it may be higher, never lower.
   */
  get touched(): number {
    this.client.assertUsable();
    return this.client.reader.touched(this.id);
  }

  /** Changes how much of the past the collection keeps: offsets behind the newest, or Infinity, or milliseconds too. */
  async setHistory(history: History): Promise<Receipt> {
    const stored = checkHistory(history);
    const { client } = this;
    if (client.context.config.readOnly) {
      throw new TidemarkError('TIDEMARK_READ_ONLY', 'the engine was opened read-only');
    }
    client.assertUsable();
    return this.#setHistory(stored);
  }

  /**
   * Bytes that belong to the collection itself, as they are now; undefined when none were set. For as of
   * another time see `getMetaSync`.
   */
  get meta(): Buffer | undefined {
    return this.getMetaSync();
  }

  /** The collection's own bytes as of a time that the collection can be read at. */
  getMetaSync(options?: ReadOptions): Buffer | undefined {
    const { client, id } = this;
    const { reader } = client;
    client.assertUsable();
    const asOf = this.timeOf(options);
    const key = catalogMetaKey(id);
    const block = reader.enter(CATALOG_ID, asOf);
    try {
      const cachedOnly = options?.cachedOnly ?? false;
      const outcome = reader.find(CATALOG_ID, block, key, key.length, cachedOnly);
      if (outcome === ROW_ON_DISK) throw this.notCached();
      if (outcome === ROW_ABSENT) return undefined;
      const { valueBytes, valueStart, valueEnd } = reader;
      const own = Buffer.allocUnsafe(valueEnd - valueStart);
      own.set(valueBytes.subarray(valueStart, valueEnd));
      return own;
    } finally {
      reader.leave();
    }
  }

  /** @internal An id means something in its own engine only. */
  assertOf(client: Client): void {
    if (this.client !== client) throw new TypeError(`${this.name} is another engine's collection`);
  }

  /** @internal Throws when the collection was dropped: what is written to it now would not be kept. */
  assertThere(): void {
    if (!this.client.dropped.has(this.id)) return;
    const { name } = this;
    throw new TidemarkError('TIDEMARK_NOT_FOUND', `collection ${name} was dropped`, {
      collection: name,
    });
  }

  /** @internal */
  protected timeOf(options: ReadOptions | undefined): number {
    if (options === undefined) return this.newest();
    checkRead(options);
    return this.timeAt(options.asOf, options.snapshot);
  }

  /** @internal */
  protected timeAt(asOf: number | Date | undefined, snapshot: Snapshot | undefined): number {
    const { client } = this;
    if (snapshot !== undefined) {
      if (asOf !== undefined) throw new TypeError('give asOf or a snapshot, not both');
      snapshot.assertOpen(client);
      if (snapshot.isLost(this.id)) throw historyLost(snapshot.offset, this.since);
      return snapshot.offset;
    }
    if (asOf === undefined) return this.newest();
    return this.offsetOf(asOf, 'asOf');
  }

  /** @internal An offset that the caller gives, or the one that was the newest at a time of day. */
  protected offsetOf(given: number | Date, name: string): number {
    const { client } = this;
    const asOf = checkOffsetOrDate(client, given, name);
    // What was dropped goes in parts, and is kept for those alone who held the time.
    if (client.dropped.has(this.id) && !client.isHeld(asOf)) {
      throw historyLost(asOf, client.reader.visible());
    }
    return asOf;
  }

  /** @internal */
  protected newest(): number {
    this.assertThere();
    return NEWEST;
  }

  /** @internal Several reads of one time: the newest is held meanwhile. */
  protected atOneTime<R>(
    options: ReadOptions | undefined,
    read: (options: ReadOptions | undefined) => R,
  ): R {
    if (options !== undefined) checkRead(options);
    if (options?.asOf !== undefined || options?.snapshot !== undefined) return read(options);
    const { client } = this;
    client.assertUsable();
    const T = client.holdFor(this.id, NEWEST);
    if (T < 0) return read(options);
    try {
      return read({ ...options, asOf: T });
    } finally {
      client.release(T);
    }
  }

  /** @internal */
  protected notCached(): TidemarkError {
    const { name } = this;
    return new TidemarkError('TIDEMARK_NOT_CACHED', `a row of ${name} is not in memory`, {
      collection: name,
    });
  }
}

/** An offset from 0; a Date is the offset that was the newest then. */
export function checkOffsetOrDate(client: Client, given: unknown, name: string): number {
  if (isDate(given)) {
    const atMs = given.getTime();
    if (Number.isNaN(atMs)) throw new TypeError(`${name} is an invalid Date`);
    return client.times.offsetAt(atMs);
  }
  if (typeof given === 'number' && Number.isSafeInteger(given) && given >= 0) return given;
  throw new TypeError(`${name} is an offset from 0 or a Date, not ${String(given)}`);
}

/** Not instanceof: Dates of another realm are as good. */
function isDate(given: unknown): given is Date {
  return Object.prototype.toString.call(given) === '[object Date]';
}

function checkRead(options: ReadOptions): void {
  checkFields(options, READ_OPTIONS, 'read option');
  const { cachedOnly } = options;
  if (cachedOnly === undefined || typeof cachedOnly === 'boolean') return;
  throw new TypeError('cachedOnly is true or false');
}
