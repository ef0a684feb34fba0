/**
 * A feed's cursor: its name, and the place that the store keeps for it. Registered before the feed's own
 * hold is let go, moved by confirmations, alone or inside a transaction of the caller's; it never goes
 * back. Belongs to its feed, on its client's thread.
 */
import { TidemarkError } from '../core/base/errors.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import { CATALOG_KEYS, CATALOG_VALUES } from './catalog.ts';
import type { Client } from './client.ts';
import { checkCursorRow, cursorKey } from './cursor-row.ts';
import type { CursorRow, MaxLag } from './cursor-row.ts';
import { decodeLent } from './encodings.ts';
import { checkFields, show } from './options.ts';
import { NEWEST, ROW_FOUND } from './reader.ts';
import type { WriteSet } from './write-set.ts';

const LAG_FIELDS: ReadonlySet<string> = new Set(['offsets', 'ms', 'bytes']);

/** A cursor as `engine.cursors()` lists it. */
export type CursorInfo = {
  readonly name: string;
  /** Everything up to here is confirmed; -1: nothing. */
  readonly offset: number;
  /** Offsets that are not. */
  readonly lag: number;
  /** Names of what it follows; '' where that was dropped. */
  readonly collections: readonly string[];
  readonly maxLag: MaxLag;
};

export function checkMaxLag(given: unknown): MaxLag {
  if (given === undefined) return {};
  checkFields(given, LAG_FIELDS, 'maxLag field');
  for (const [name, value] of Object.entries(given as object)) {
    if (Number.isSafeInteger(value) && (value as number) >= 0) continue;
    throw new TypeError(`maxLag.${name} is a count from 0, not ${show(value)}`);
  }
  return given as MaxLag;
}

/** What the store says of a cursor now; undefined: there is none. */
export function readCursor(client: Client, name: string): CursorRow | undefined {
  const key = cursorKey(name);
  const { reader } = client;
  const block = reader.enter(CATALOG_ID, NEWEST);
  try {
    if (reader.find(CATALOG_ID, block, key, key.length, false) !== ROW_FOUND) return undefined;
    const { valueBytes, valueStart, valueEnd } = reader;
    return checkCursorRow(decodeLent(CATALOG_VALUES, valueBytes, valueStart, valueEnd), name);
  } finally {
    reader.leave();
  }
}

/** Puts a row of the catalog, as a transaction that is synced whatever the engine. */
async function commitRow(client: Client, key: Buffer, row: CursorRow | undefined): Promise<void> {
  const { line } = client;
  const set = line.begin();
  try {
    if (row === undefined) set.delete(CATALOG_ID, CATALOG_KEYS, key);
    else set.put(CATALOG_ID, CATALOG_KEYS, key, CATALOG_VALUES, row);
  } catch (error) {
    set.abandon();
    throw error;
  }
  await line.commit(true);
}

export async function removeCursor(client: Client, name: string): Promise<void> {
  const key = cursorKey(name);
  assertWritable(client);
  if (client.feeds.cursors.has(name)) {
    throw new TidemarkError('TIDEMARK_HELD', `a feed runs with cursor ${name}`, { cursor: name });
  }
  if (readCursor(client, name) === undefined) {
    throw new TidemarkError('TIDEMARK_NOT_FOUND', `no cursor ${name}`, { cursor: name });
  }
  await commitRow(client, key, undefined);
}

function assertWritable(client: Client): void {
  if (!client.context.config.readOnly) return;
  throw new TidemarkError('TIDEMARK_READ_ONLY', 'the engine was opened read-only');
}

export class Cursor {
  readonly name: string;
  /** What the store said when the feed began; undefined: the cursor is new. */
  readonly stored: CursorRow | undefined;
  readonly #client: Client;
  readonly #key: Buffer;
  readonly #collections: readonly number[];
  readonly #old: boolean;
  readonly #maxLag: MaxLag;
  #acked: number;
  /** As far as was asked for, and the last who asked. */
  #asked: number;
  #asking: Promise<void> = Promise.resolve();
  #released = false;

  /** Claims the name for a feed of this thread. Throws TIDEMARK_HELD when another has it. */
  constructor(
    client: Client,
    name: string,
    collections: readonly number[],
    old: boolean,
    maxLag: MaxLag,
  ) {
    this.#key = cursorKey(name);
    this.#client = client;
    this.name = name;
    this.#collections = collections;
    this.#old = old;
    this.#maxLag = maxLag;
    assertWritable(client);
    this.stored = readCursor(client, name);
    this.#acked = this.stored?.after ?? -1;
    this.#asked = this.#acked;
    const { stored } = this;
    if (stored !== undefined && !isSame(stored.collections, collections)) {
      throw new TidemarkError('TIDEMARK_KIND_MISMATCH', `cursor ${name} follows something else`, {
        cursor: name,
        collections: stored.collections,
      });
    }
    if (client.feeds.cursors.has(name)) {
      throw new TidemarkError('TIDEMARK_HELD', `a feed runs with cursor ${name}`, { cursor: name });
    }
    client.feeds.cursors.add(name);
  }

  /** What the store says is not what the feed goes by. */
  get isStale(): boolean {
    const { stored } = this;
    if (stored === undefined || stored.pending || stored.old !== this.#old) return true;
    return JSON.stringify(stored.maxLag) !== JSON.stringify(this.#maxLag);
  }

  /** Says in the store that all after `place` is to be kept; resolves when no crash takes that back. */
  async register(place: number, pending: boolean): Promise<void> {
    this.#acked = place;
    this.#asked = place;
    await commitRow(this.#client, this.#key, this.#row(place, pending));
  }

  /**
   * Confirms up to `offset`, as a transaction of its own; resolves when that is in the store, whoever asked
   * for it. `pending`: what is confirmed last is a state.
   */
  ack(offset: number, pending: boolean): Promise<void> {
    this.#assertOurs();
    if (offset < this.#asked || (offset === this.#asked && !pending)) return this.#asking;
    this.#asked = offset;
    this.#asking = this.#commit(offset);
    return this.#asking;
  }

  async #commit(offset: number): Promise<void> {
    const { line, context } = this.#client;
    try {
      const set = line.begin();
      try {
        this.#put(set, offset);
      } catch (error) {
        set.abandon();
        throw error;
      }
      await line.commit(context.config.synced);
      this.#acked = Math.max(this.#acked, offset);
    } catch (error) {
      // Not in the store: it may be asked for again.
      this.#asked = this.#acked;
      throw error;
    }
  }

  /** As `ack`, in a transaction of the caller's; what it returns is called once that is committed. */
  putInto(set: WriteSet, offset: number, pending: boolean): (() => void) | undefined {
    this.#assertOurs();
    if (offset < this.#asked || (offset === this.#asked && !pending)) return undefined;
    this.#put(set, offset);
    return () => {
      this.#acked = Math.max(this.#acked, offset);
      this.#asked = Math.max(this.#asked, offset);
    };
  }

  #put(set: WriteSet, offset: number): void {
    set.put(CATALOG_ID, CATALOG_KEYS, this.#key, CATALOG_VALUES, this.#row(offset, false));
  }

  /** Once its feed has ended, another may have the name. */
  #assertOurs(): void {
    this.#client.assertUsable();
    const { name } = this;
    if (!this.#released || !this.#client.feeds.cursors.has(name)) return;
    throw new TidemarkError('TIDEMARK_HELD', `another feed runs with cursor ${name}`, {
      cursor: name,
    });
  }

  #row(after: number, pending: boolean): CursorRow {
    return {
      after,
      pending,
      old: this.#old,
      collections: this.#collections,
      maxLag: this.#maxLag,
    };
  }

  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#client.feeds.cursors.delete(this.name);
  }
}

function isSame(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((id) => b.includes(id));
}
