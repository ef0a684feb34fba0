/**
 * The spines of all collections as every proposed edit leaves them, and what the catalog says of each:
 * how much history it keeps, and whether it is still there. A spine goes once no hold is left below its
 * collection's drop. A part of the keeper, on its thread; which jobs run is not known here.
 */
import { invariant } from '../core/base/assert.ts';
import { le } from '../core/base/frontier.ts';
import { clientsMax } from '../core/base/limits.ts';
import { CATALOG_ID, KIND_KEYED } from '../core/base/update.ts';
import { lowestHold } from '../core/shared/epoch.ts';
import type { Slab } from '../core/shared/slab.ts';
import { rowPart } from '../core/spine/batch.ts';
import type { SpineState } from '../core/spine/batch.ts';
import type { PartInfo } from '../core/spine/part-format.ts';
import { Spine, diffSpine } from '../core/spine/spine.ts';
import type { ActorContext } from './actor.ts';
import { CatalogReader } from './catalog-reader.ts';
import { CollectionFigures } from './collection-figures.ts';
import type { Edits } from './edits.ts';
import { KEEPS_ALL } from './kept-history.ts';
import type { KeptHistory } from './kept-history.ts';
import type { Views } from './views.ts';

/** A collection that has, or is about to have, parts. */
export type Collection = {
  readonly id: number;
  /** Until there is a part, a guess. */
  kind: number;
  /** With every proposed edit. */
  spine: Spine<PartInfo>;
  readonly figures: CollectionFigures;
  /** All while the catalog has not been read. */
  history: KeptHistory;
  /** Edits proposed and not yet shown. */
  unshown: number;
  touchedAt: number;
  /** Somebody waits until it is one run. */
  compactWanted: boolean;
  /** ... and until what `since` has passed by then is left out, which may take one rewrite of that run. */
  rewriteWanted: boolean;
  /** Views to be published until `since` is where it may be: see `views.ts`. */
  staleViews: number;
  /** How many keys its rows are of, as its merges tell; 0: none has. */
  keyCount: number;
  /** Rows that the merge with the oldest run read which told so; 0: another one told, if any. */
  keyCountRows: number;
  /** Bytes of parts that its newest flush made. */
  flushBytes: number;
  /** What its newest merge read, and when that landed: those files are about to be deleted. */
  leavingBytes: number;
  leavingSince: number;
  /** Batches that a failed job read, by bid: left alone for a while. */
  readonly failed: Map<number, { failures: number; retryAt: number }>;
};

/** `since` follows what is proposed by one view, which follows the frontier by one. */
export const SINCE_VIEWS = 2;

export class SpineTable {
  readonly #context: ActorContext;
  readonly #slab: Slab;
  readonly #edits: Edits;
  readonly #views: Views;
  readonly #catalog: CatalogReader;
  readonly #byId: Map<number, Collection> = new Map();
  /** By dropped collection: the time at which the catalog was first seen without it. */
  readonly #droppedAt: Map<number, number> = new Map();
  #isStale = true;

  /** `client`: the slot that the catalog is read with. */
  constructor(context: ActorContext, slab: Slab, edits: Edits, views: Views, client: number) {
    this.#context = context;
    this.#slab = slab;
    this.#edits = edits;
    this.#views = views;
    this.#catalog = new CatalogReader(context, client);
    views.cursors = () => this.#catalog.cursors();
  }

  get(id: number): Collection | undefined {
    return this.#byId.get(id);
  }

  values(): IterableIterator<Collection> {
    return this.#byId.values();
  }

  restore(id: number, state: SpineState<PartInfo>): void {
    // Without a part that has rows the first that come will say it.
    const kind = rowPart(state)?.kind ?? KIND_KEYED;
    const collection = this.#add(id, kind, Spine.restore(state, this.#options(kind)));
    collection.touchedAt = this.#context.clock.ticksMs();
  }

  /** The collection of the kind, with an empty spine if it has none yet. */
  ensure(id: number, kind: number): Collection {
    const known = this.#byId.get(id);
    if (known === undefined) return this.#add(id, kind, new Spine(this.#options(kind)));
    if (known.kind === kind) return known;
    const state = known.spine.state();
    invariant(rowPart(state) === undefined, 'a collection is of one kind', id, kind);
    known.kind = kind;
    known.spine = Spine.restore(state, this.#options(kind));
    return known;
  }

  /** What its rows in parts are of, 0 while there are none. */
  kindOf(id: number): number {
    const known = this.#byId.get(id);
    if (known === undefined || known.spine.len === 0) return 0;
    return rowPart(known.spine.state()) === undefined ? 0 : known.kind;
  }

  #options(kind: number): ConstructorParameters<typeof Spine<PartInfo>>[0] {
    const edits = this.#edits;
    return { kind, ids: { bid: () => edits.bids.take(), run: () => edits.runIds.take() } };
  }

  #add(id: number, kind: number, spine: Spine<PartInfo>): Collection {
    const figures = new CollectionFigures(this.#context.arena, this.#slab);
    this.#views.figures.set(id, figures.address);
    const collection: Collection = {
      id,
      kind,
      spine,
      figures,
      history: KEEPS_ALL,
      unshown: 0,
      touchedAt: 0,
      compactWanted: false,
      rewriteWanted: false,
      staleViews: SINCE_VIEWS,
      keyCount: 0,
      keyCountRows: 0,
      flushBytes: 0,
      leavingBytes: 0,
      leavingSince: 0,
      failed: new Map(),
    };
    this.#byId.set(id, collection);
    return collection;
  }

  /** Proposes what has happened to the collection's spine since `before`. */
  propose(collection: Collection, before: SpineState<PartInfo> | undefined): void {
    const state = collection.spine.state();
    const delta = diffSpine(before, state);
    collection.unshown++;
    collection.figures.stale = true;
    this.#edits.propose({ spines: [{ collection: collection.id, delta }] }, () => {
      collection.unshown--;
      this.#views.show(collection.id, collection.kind, state, collection.history);
      return true;
    });
  }

  // ---------------------------------------------------------------- the catalog

  /** What each collection keeps, the catalog left out. */
  histories(): Iterable<readonly [collection: number, history: KeptHistory]> {
    return this.#catalog.histories();
  }

  /** By which merges compress its blocks, 0 = none. */
  codecOf(id: number): number {
    return this.#catalog.codecOf(id);
  }

  historyOf(id: number): KeptHistory {
    return this.#catalog.historyOf(id);
  }

  /** Rows of the catalog are about to be in parts. */
  onCatalogChanged(): void {
    this.#isStale = true;
  }

  /** Looks up how much history each collection keeps, when the catalog may have changed. */
  readCatalog(): void {
    if (!this.#isStale) return;
    this.#isStale = false;
    this.#catalog.refresh();
    for (const collection of this.#byId.values()) {
      collection.history = this.#catalog.historyOf(collection.id);
    }
  }

  /** The catalog, which knows all that is in parts or about to be, has no such collection. */
  #isDropped(id: number): boolean {
    return id !== CATALOG_ID && !this.#isStale && !this.#catalog.has(id);
  }

  /** Dropped, and nobody holds a time at which it was there. */
  isGone(id: number): boolean {
    if (!this.#isDropped(id)) return false;
    let seenAt = this.#droppedAt.get(id);
    if (seenAt === undefined) {
      seenAt = this.#catalog.T;
      this.#droppedAt.set(id, seenAt);
    }
    const { arena, topology } = this.#context;
    return le(seenAt, lowestHold(arena, topology.slots, clientsMax));
  }

  /** Lets go of one collection that is gone and that no job reads; true when there was one. */
  sweepDropped(isRead: (collection: Collection) => boolean): boolean {
    for (const [id, collection] of this.#byId) {
      if (!this.isGone(id) || collection.unshown > 0 || isRead(collection)) continue;
      this.#byId.delete(id);
      // Who wished it compact is answered: there is nothing left to merge.
      collection.compactWanted = false;
      this.#edits.propose({ spinesRemoved: [id] }, () => {
        this.#views.remove(id);
        return true;
      });
      return true;
    }
    return false;
  }
}
