/**
 * The keeper's look at the catalog: which collections there are and how much history each keeps. Read
 * through the ordinary path, with a client slot of its own; called on the keeper's thread between ticks.
 */
import { NO_BYTES } from '../core/base/bytes.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import type { Control } from '../core/shared/control.ts';
import { codecOfCompression } from '../core/spine/block-codec.ts';
import type { ActorContext } from './actor.ts';
import {
  CATALOG_VALUES,
  ROWS_LOWER,
  ROWS_UPPER,
  checkCatalogRow,
  nameOfCatalogKey,
} from './catalog.ts';
import { CURSORS_LOWER, CURSORS_UPPER, checkCursorRow, nameOfCursorKey } from './cursor-row.ts';
import type { CursorRow } from './cursor-row.ts';
import { decodeLent } from './encodings.ts';
import { BEFORE_ALL, Reader } from './reader.ts';
import { KEEPS_ALL, KEEPS_NOW, keptHistory, longerHistory } from './kept-history.ts';
import type { KeptHistory } from './kept-history.ts';

const ROWS_PER_BATCH = 256;

export class CatalogReader {
  readonly #control: Control;
  readonly #reader: Reader;
  /** The time of what it knows, -1 of an empty log. */
  T: number = BEFORE_ALL;
  /** By collection id. */
  readonly #history: Map<number, KeptHistory> = new Map();
  /** As long as the longest: what the catalog says of a collection is kept as long as its rows. */
  #longest: KeptHistory = KEEPS_ALL;
  /** Codec ids by collection id, of those that are compressed. */
  readonly #codecs: Map<number, number> = new Map();
  #cursors: CursorRow[] = [];
  #cursorsT: number = BEFORE_ALL;

  constructor(context: ActorContext, client: number) {
    this.#control = context.control;
    this.#reader = new Reader(context, client);
  }

  /**
   * Reads the newest catalog that no crash takes back: who lets go of what was dropped must not do so
   * for a drop that a loss of power undoes.
   */
  refresh(): void {
    this.#history.clear();
    this.#codecs.clear();
    this.#longest = KEEPS_NOW;
    // At replay `durable` runs ahead of what is applied.
    this.T = Math.min(this.#control.durable(), this.#control.applied()) - 1;
    if (this.T === BEFORE_ALL) return;
    this.#read(this.T, ROWS_LOWER, ROWS_UPPER, (key, value) => {
      const row = checkCatalogRow(value, nameOfCatalogKey(key));
      const history = keptHistory(row.history);
      this.#history.set(row.id, history);
      this.#longest = longerHistory(this.#longest, history);
      const codec = codecOfCompression(row.compression ?? 'none') ?? 0;
      if (codec !== 0) this.#codecs.set(row.id, codec);
    });
  }

  /** Every cursor, as no crash takes it back; read again when the catalog has changed. */
  cursors(): readonly CursorRow[] {
    const T = Math.min(this.#control.durable(), this.#control.applied()) - 1;
    if (T <= this.#cursorsT) return this.#cursors;
    if (this.#cursorsT !== BEFORE_ALL && this.#touched() <= this.#cursorsT) return this.#cursors;
    this.#cursorsT = T;
    this.#cursors = [];
    this.#read(T, CURSORS_LOWER, CURSORS_UPPER, (key, value) => {
      this.#cursors.push(checkCursorRow(value, nameOfCursorKey(key)));
    });
    return this.#cursors;
  }

  #touched(): number {
    this.#reader.slot.enter();
    try {
      this.#reader.reloadView();
      return this.#reader.newestChange(CATALOG_ID);
    } finally {
      this.#reader.leave();
    }
  }

  #read(
    T: number,
    lower: Uint8Array,
    upper: Uint8Array,
    take: (key: Uint8Array, value: unknown) => void,
  ): void {
    const range = { lower, upper, upperOpen: false, reverse: false };
    for (;;) {
      const batch = this.#reader.readRange(CATALOG_ID, T, range, ROWS_PER_BATCH);
      let last: Uint8Array = NO_BYTES;
      for (let i = 0; i < batch.count; i++) {
        const keyStart = batch.places[i * 3];
        const valueStart = batch.places[i * 3 + 1];
        const key = batch.slab.subarray(keyStart, valueStart);
        take(key, decodeLent(CATALOG_VALUES, batch.slab, valueStart, batch.places[i * 3 + 2]));
        last = key;
      }
      if (batch.ended) return;
      range.lower = Buffer.concat([last, Buffer.from([0])]);
    }
  }

  has(id: number): boolean {
    return this.#history.has(id);
  }

  /** What each collection keeps, the catalog left out. */
  histories(): Iterable<readonly [collection: number, history: KeptHistory]> {
    return this.#history;
  }

  /** By which merges compress its blocks, 0 = none; also where this Node has not got what was chosen. */
  codecOf(id: number): number {
    return this.#codecs.get(id) ?? 0;
  }

  historyOf(id: number): KeptHistory {
    if (id === CATALOG_ID) return this.#longest;
    return this.#history.get(id) ?? KEEPS_ALL;
  }
}
