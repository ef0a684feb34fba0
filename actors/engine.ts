/**
 * The engine as callers see it: opens a store on leased threads or on the caller's own, supervises
 * them, hands out collections, transactions and snapshots, and closes in order. Public.
 */
import { randomBytes } from 'node:crypto';
import { channel } from 'node:diagnostics_channel';
import { EventEmitter } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { TidemarkError, isFullDisk } from '../core/base/errors.ts';
import { clientsMax, collectionsMax } from '../core/base/limits.ts';
import { Prng } from '../core/base/prng.ts';
import { CATALOG_ID, KIND_KEYED, KIND_MULTISET } from '../core/base/update.ts';
import { Arena } from '../core/shared/arena.ts';
import { STATE_CLOSED, STATE_CLOSING, STATE_OPEN, STATE_POISONED } from '../core/shared/control.ts';
import { KIND_RECORD } from '../core/shared/buffer-pool.ts';
import { DescriptorTable } from '../core/shared/descriptors.ts';
import { readersInside } from '../core/shared/epoch.ts';
import { releaseLock } from '../core/storage/lock.ts';
import { codecOfCompression, COMPRESSIONS } from '../core/spine/block-codec.ts';
import type { Compression } from '../core/spine/block-codec.ts';
import type { ActorContext, EngineConfig } from './actor.ts';
import { Archive } from './archive.ts';
import { backupStatePath } from './backup-holds.ts';
import { backupInSlices, backupOnThread, checkBackup } from './backup.ts';
import type { BackupOptions, BackupResult } from './backup.ts';
import {
  CATALOG_KEYS,
  CATALOG_VALUES,
  FIRST_COLLECTION_ID,
  NEXT_ID_KEY,
  ROWS_LOWER,
  ROWS_UPPER,
  catalogKey,
  catalogMetaKey,
  checkCatalogRow,
  nameOfCatalogKey,
} from './catalog.ts';
import type { CatalogRow, StoredHistory } from './catalog.ts';
import { checkOffsetOrDate } from './base-collection.ts';
import { Client } from './client.ts';
import { BaseCollection } from './base-collection.ts';
import { Collection } from './collection.ts';
import type { CollectionInfo, CommitOptions } from './collection.ts';
import { poisonedError } from './commit-line.ts';
import type { Receipt } from './commit-line.ts';
import { buffer, codecOf, codecOfStoredName } from './encodings.ts';
import type { Codec, Encoding, TypeOf } from './encodings.ts';
import { removeCursor } from './cursor.ts';
import type { CursorInfo } from './cursor.ts';
import { CURSORS_LOWER, CURSORS_UPPER, checkCursorRow, nameOfCursorKey } from './cursor-row.ts';
import { Feed } from './feed.ts';
import type { Update } from './feed-changes.ts';
import { FOLLOW_OPTIONS, startFeed } from './feed-options.ts';
import type { FollowOptions } from './feed-options.ts';
import { InlineHost, makeContext, poison, resetArena, systemClock } from './host.ts';
import { backgroundActors, writeActors } from './house.ts';
import { StepPool } from './job-pool.ts';
import { makeMachine } from './jobs.ts';
import { leaseKit, returnKit } from './kit.ts';
import type { Kit } from './kit.ts';
import { NodeStorage } from './node-storage.ts';
import { checkFields, checkHistory, checkOptions, checkSignal, show } from './options.ts';
import type { CheckedOptions, History, OpenOptions } from './options.ts';
import { identify, markReleased } from './process-identity.ts';
import { Multiset } from './multiset.ts';
import { Snapshot } from './snapshot.ts';
import { KEEPER_CLIENT } from './spine-keeper.ts';
import { NEWEST } from './reader.ts';
import { StallWatch } from './stall-watch.ts';
import type { Stall } from './stall-watch.ts';
import { gatherStats } from './stats.ts';
import type { EngineStats } from './stats.ts';
import { TransactShared, transact } from './transact.ts';
import type { TransactOptions } from './transact.ts';
import type { TransactionScope } from './transaction-scope.ts';
import { Transaction } from './transaction.ts';
import { checkVerifyOptions, verifyInSlices, verifyOnThread } from './verify.ts';
import type { VerifyOptions } from './verify.ts';
import type { VerifyReport } from '../core/store/verify.ts';

/** What the engine's channels tell is of some engine: its directory says of which. */
const STALLED_CHANNEL = channel('tidemark:stalled');
const POISONED_CHANNEL = channel('tidemark:poisoned');

/** Events of an engine, and what each brings. */
export type EngineEvents = {
  /** The engine has failed; once. */
  poisoned: [failure: TidemarkError | undefined];
  /**
   * A call to the disk, or a wait for room, has lasted a second; and again, `over`, when it has ended. It
   * delays acknowledgements and nothing else. Also on the diagnostics channel `tidemark:stalled`.
   */
  stalled: [stall: Stall];
  /** Commits go straight through again, after there was no room for some. */
  room: [];
};

export type EngineState = 'open' | 'closing' | 'closed' | 'poisoned';

/** How a collection is made, or what it must be. Left out: what the catalog says. */
export interface CollectionOptions<KE, VE> {
  /** 'keyed' (default of a new one): at most one value a key, the last written. For 'multiset' see MultisetOptions. */
  readonly kind?: 'keyed';
  /** Encoding of keys; they order by their encoded bytes. Default of a new collection: 'utf8'. */
  readonly key?: KE;
  /** Encoding of values. Default of a new collection: 'utf8'. */
  readonly value?: VE;
  /** Offsets of history behind the newest, or Infinity, or milliseconds too; given on an existing collection it is ignored: use setHistory. */
  readonly history?: History;
  /**
   * How merges compress its blocks: 'none' (default), 'deflate', 'brotli', or 'zstd' where Node has it
   * (22.15). Flushes never compress. Given on an existing collection it is ignored.
   */
  readonly compression?: Compression;
}

export interface CompactOptions {
  /** Aborting it ends the wait, and the merges that were begun for it. */
  readonly signal?: AbortSignal;
  /** Called while it goes on, several times a second, and once at its end. */
  readonly onProgress?: (progress: CompactProgress) => void;
}

export interface CompactProgress {
  /** Rows that merges of the engine have read since. */
  readonly rows: number;
  /** Runs that the collection (or all of them together) has now; 1 is the aim. */
  readonly runs: number;
}

/** An update that says which of several collections it is of. */
export type UpdateOf<C> =
  C extends BaseCollection<infer K, infer V> ? Update<K, V> & { readonly collection: C } : never;

/** The same of a multiset: any number of values a key, each with a count. */
export interface MultisetOptions<KE, VE> extends Omit<CollectionOptions<KE, VE>, 'kind'> {
  readonly kind: 'multiset';
}

const OWNER_CLIENT = 0;

/** So long a thread of an engine that failed may be in a call to the disk before it is left to itself. */
const HANG_MS = 5_000;
/** Pages of commits in memory (2 MiB) that make a flush at close shorter than their replay at the next open. */
const TAIL_PAGES_AT_CLOSE = 8;
/** A close waits no longer than this for its flush. */
const FLUSH_AT_CLOSE_MS = 3_000;
const READ_WAIT_MS = 5;
/** Between two calls of a compaction's `onProgress`. */
const COMPACT_PROGRESS_MS = 200;

const COLLECTION_OPTIONS: ReadonlySet<string> = new Set([
  'kind',
  'key',
  'value',
  'history',
  'compression',
]);
const CHANGES_OPTIONS: ReadonlySet<string> = new Set(FOLLOW_OPTIONS);
const SNAPSHOT_OPTIONS: ReadonlySet<string> = new Set(['asOf']);
const WAIT_OPTIONS: ReadonlySet<string> = new Set(['signal']);
const COMPACT_OPTIONS: ReadonlySet<string> = new Set(['signal', 'onProgress']);

/** Opens a store, making it where there is none. */
export async function open(directory: string, options: OpenOptions = {}): Promise<Engine> {
  const checked = checkOptions(directory, options);
  checked.signal?.throwIfAborted();
  const config: EngineConfig = {
    ...checked.config,
    newLogId: randomBytes(16).toString('base64'),
    holder: checked.seam === undefined ? identify(checked.config.directory) : undefined,
  };
  const engine = new Engine({ ...checked, config });
  await engine.opened(checked.signal);
  return engine;
}

/**
 * A store that is open, on this thread. Emits `poisoned`, `stalled` and `room` (EngineEvents); listening
 * keeps no process alive.
 */
export class Engine extends EventEmitter<EngineEvents> {
  readonly #options: CheckedOptions;
  readonly #context: ActorContext;
  readonly #client: Client;
  readonly #stalls: StallWatch;
  readonly #kit: Kit | undefined;
  readonly #run: Promise<void>;
  readonly #catalog: Collection<Buffer, unknown>;
  readonly #archive: Archive | undefined;
  readonly #transactShared: TransactShared = new TransactShared(
    new Prng(randomBytes(4).readUInt32LE()),
  );
  #changing: Promise<unknown> = Promise.resolve();
  readonly #backups: Map<AbortController, Promise<unknown>> = new Map();
  #closed: Promise<void> | undefined;
  #poisonTold = false;
  #isOver: Promise<void> | undefined;
  /** What the actors have open. */
  readonly #files: DescriptorTable = new DescriptorTable();
  readonly #storage: NodeStorage;
  /** What the engine says of itself once its arena is no longer its own. */
  #ended: { state: number; upper: number; durableUpper: number } | undefined;
  #isOpened = false;

  /** @internal */
  constructor(options: CheckedOptions) {
    super();
    this.#options = options;
    const { config, seam, archive } = options;
    this.#archive = archive === undefined ? undefined : new Archive(archive, config.directory);
    if (options.inline) {
      const arena = Arena.create(options.memoryBytes);
      let host: InlineHost | undefined;
      const kick = (): void => host?.kick();
      const own = new NodeStorage(config.directory, kick, this.#files);
      const storage = seam?.storage ?? own;
      const context = makeContext(arena.buffer, config, storage, seam?.clock ?? systemClock);
      resetArena(context);
      const pool = new StepPool((job) => makeMachine(job, storage, context.arena));
      const actors = [...writeActors(context), ...backgroundActors(context, pool)];
      this.#context = context;
      // What the caller's own reads open they close themselves, also when the actors' files are taken away.
      const ours = { ...context, storage: seam?.storage ?? new NodeStorage(config.directory) };
      this.#client = new Client(ours, OWNER_CLIENT, { kick, endOfTurn, nextTurn }, this.#archive);
      host = new InlineHost(
        context,
        actors,
        () => pool.step(),
        () => {
          this.#client.poll();
          if (context.control.state() !== STATE_POISONED) return;
          ended?.();
          void this.#over().then(() => this.#tellPoisoned());
        },
      );
      this.#kit = undefined;
      this.#storage = own;
      let ended: (() => void) | undefined;
      this.#run = new Promise((resolve) => (ended = resolve));
      host.kick();
    } else {
      const kit = leaseKit(options.memoryBytes, options.workerUrl);
      const storage = new NodeStorage(config.directory);
      const context = makeContext(kit.arena.buffer, config, storage, systemClock);
      resetArena(context);
      this.#kit = kit;
      this.#files = kit.descriptors;
      this.#storage = storage;
      this.#context = context;
      this.#client = new Client(
        context,
        OWNER_CLIENT,
        { kick: undefined, endOfTurn, nextTurn },
        this.#archive,
      );
      this.#run = kit.run(config, (error) => poison(context, error));
    }
    const { line } = this.#client;
    const own = { now: () => line.wait, long: () => line.longWait };
    this.#stalls = new StallWatch(this.#context, own, (stall) => this.#tellStalled(stall));
    // Not from inside the line: what a listener throws is not the engine's failure.
    line.onRoom = () => process.nextTick(() => this.emit('room'));
    this.#catalog = new Collection<Buffer, unknown>(
      this.#client,
      '',
      CATALOG_ID,
      CATALOG_KEYS,
      CATALOG_VALUES,
      () => Promise.reject(new TypeError('the catalog has no history of its own')),
    );
  }

  /** @internal Resolves when the engine is open; rejects with what went wrong. */
  async opened(signal: AbortSignal | undefined): Promise<void> {
    const { control } = this.#context;
    const onAbort = (): void => {
      if (control.state() >= STATE_OPEN) return;
      // Nothing was committed: ending as after a failure is as good as any end, and the soonest.
      poison(this.#context, new TidemarkError('TIDEMARK_CLOSED', 'the opening was aborted'));
      this.#client.wake();
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    await this.#client.stateReached(STATE_OPEN);
    signal?.removeEventListener('abort', onAbort);
    if (control.state() === STATE_POISONED) {
      const { cause } = poisonedError(this.#context);
      await this.#end();
      signal?.throwIfAborted();
      throw this.#orNoSpace(cause as TidemarkError);
    }
    if (signal?.aborted === true) {
      await this.close();
      throw signal.reason;
    }
    this.#isOpened = true;
    this.#stalls.start();
    // The keeper may ask for the hook at any time.
    if (this.#archive !== undefined) this.#client.wake();
    void this.#watch();
  }

  /** What ended the opening. A full disk is no fault of the store: it opens when there is room. */
  #orNoSpace(failure: TidemarkError): TidemarkError {
    if (failure.code !== 'TIDEMARK_IO' || !isFullDisk(failure)) return failure;
    const { directory } = this.#context.config;
    const { path: named, bytes } = failure.detail as { path?: string; bytes?: number };
    const path = named?.startsWith(`${directory}/`) ? named.slice(directory.length + 1) : named;
    const wanted = bytes === undefined ? 'room' : `${bytes} bytes`;
    return new TidemarkError(
      'TIDEMARK_NO_SPACE',
      `the disk is full: opening ${directory} wants ${wanted} for ${path === '' ? 'its entry' : (path ?? 'a file')}; ` +
        'nothing is lost, free space and open again',
      { ...failure.detail, directory, path },
      failure,
    );
  }

  /** Says once that the engine is poisoned, also while nobody asks it anything. */
  async #watch(): Promise<void> {
    await this.#run;
    if (this.#context.control.state() !== STATE_POISONED || this.#kit === undefined) return;
    await Promise.race([this.#over(), after(HANG_MS)]);
    this.#client.poll();
    this.#tellPoisoned();
  }

  /**
   * Resolves when the threads of an engine that failed are gone, their files closed and the directory
   * free. A thread that hangs in a call to the disk may still write: as long as it does, it is locked.
   */
  #over(): Promise<void> {
    const run = async (): Promise<void> => {
      await this.#run;
      await this.#kit?.end();
      await this.#closeFiles();
      this.#releaseDirectory();
    };
    this.#isOver ??= run();
    return this.#isOver;
  }

  /** What was killed has closed nothing. What is at the disk, and reads of ours, come first. */
  async #closeFiles(): Promise<void> {
    const { arena, topology } = this.#context;
    const storage = this.#storage;
    const deadline = performance.now() + HANG_MS;
    while (storage.running > 0 || readersInside(arena, topology.slots, KEEPER_CLIENT)) {
      // Closed under it, the number may be somebody else's file: better left open.
      if (performance.now() > deadline) return;
      await after(READ_WAIT_MS);
    }
    for (const fd of this.#files.take()) {
      try {
        storage.close(fd);
      } catch {
        // Closed in the very moment in which its thread was killed.
      }
    }
  }

  #releaseDirectory(): void {
    const { config, storage } = this.#context;
    if (config.holder === undefined) return;
    markReleased(config.holder);
    try {
      releaseLock(storage, config.holder);
    } catch {
      // A disk that takes no more: this process knows that the LOCK is nobody's.
    }
  }

  #tellPoisoned(): void {
    if (this.#poisonTold) return;
    this.#poisonTold = true;
    this.#stalls.stop();
    if (!this.#isOpened) return;
    const { failure } = this;
    POISONED_CHANNEL.publish({ directory: this.#context.config.directory, failure });
    this.emit('poisoned', failure);
  }

  #tellStalled(stall: Stall): void {
    STALLED_CHANNEL.publish({ directory: this.#context.config.directory, ...stall });
    this.emit('stalled', stall);
  }

  // ---------------------------------------------------------------- state

  get state(): EngineState {
    switch (this.#ended?.state ?? this.#context.control.state()) {
      case STATE_POISONED:
        return 'poisoned';
      case STATE_CLOSED:
        return 'closed';
      case STATE_CLOSING:
        return 'closing';
      default:
        return this.#closed === undefined ? 'open' : 'closing';
    }
  }

  /** What poisoned the engine, or undefined. */
  get failure(): TidemarkError | undefined {
    if ((this.#ended?.state ?? this.#context.control.state()) !== STATE_POISONED) return undefined;
    return poisonedError(this.#context).cause as TidemarkError;
  }

  /** First offset that readers do not see yet. */
  get upper(): number {
    return this.#ended?.upper ?? this.#client.reader.visible();
  }

  /** First offset that is not durable yet. */
  get durableUpper(): number {
    return this.#ended?.durableUpper ?? this.#context.control.durable();
  }

  /** Resolves when the offset is durable. */
  async durable(offset: number, options?: { readonly signal?: AbortSignal }): Promise<void> {
    return this.#client.frontierReached(checkOffset(offset) + 1, true, signalOf(options));
  }

  /** Resolves when readers see the offset. */
  async reached(offset: number, options?: { readonly signal?: AbortSignal }): Promise<void> {
    return this.#client.frontierReached(checkOffset(offset) + 1, false, signalOf(options));
  }

  /** Resolves when commits go straight through, without waiting on this side. */
  async room(): Promise<void> {
    this.#client.assertUsable();
    return this.#client.line.room();
  }

  stats(): EngineStats {
    this.#client.assertUsable();
    const names = new Map(this.#rows().map(({ name, row }) => [row.id, name]));
    const { current } = this.#stalls;
    const error = this.#archive?.error ?? null;
    return gatherStats(this.#client, this.state, this.#options, names, current, error);
  }

  // ---------------------------------------------------------------- collections

  /** Opens a collection, making it where there is none and options say how. */
  collection<
    KE extends Encoding<never> | Encoding<unknown> = 'utf8',
    VE extends Encoding<never> | Encoding<unknown> = 'utf8',
  >(name: string, options: MultisetOptions<KE, VE>): Promise<Multiset<TypeOf<KE>, TypeOf<VE>>>;
  collection<
    KE extends Encoding<never> | Encoding<unknown> = 'utf8',
    VE extends Encoding<never> | Encoding<unknown> = 'utf8',
  >(name: string, options?: CollectionOptions<KE, VE>): Promise<Collection<TypeOf<KE>, TypeOf<VE>>>;
  async collection<
    KE extends Encoding<never> | Encoding<unknown> = 'utf8',
    VE extends Encoding<never> | Encoding<unknown> = 'utf8',
  >(
    name: string,
    options?: CollectionOptions<KE, VE> | MultisetOptions<KE, VE>,
  ): Promise<AnyCollection> {
    const key = catalogKey(name);
    const wanted = checkCollectionOptions(options);
    this.#client.assertUsable();
    return this.#inTurn(() => this.#openCollection(name, key, wanted));
  }

  /** One change of the catalog at a time: each sees what those before have made of it. */
  #inTurn<T>(run: () => Promise<T>): Promise<T> {
    const done = this.#changing.then(run);
    this.#changing = done.catch(() => {});
    return done;
  }

  async #openCollection(
    name: string,
    key: Buffer,
    wanted: WantedCollection,
  ): Promise<AnyCollection> {
    const stored = await this.#catalog.get(key);
    if (stored !== undefined) {
      return this.#existing(name, key, checkCatalogRow(stored, name), wanted);
    }
    if (this.#options.config.readOnly || !wanted.given) {
      throw new TidemarkError('TIDEMARK_NOT_FOUND', `no collection ${name}`, { collection: name });
    }
    const keyCodec = wanted.key ?? codecOf('utf8', 'key');
    const valueCodec = wanted.value ?? codecOf('utf8', 'value');
    const next = ((await this.#catalog.get(NEXT_ID_KEY)) ?? { next: FIRST_COLLECTION_ID }) as {
      next: number;
    };
    if (this.collections().length >= collectionsMax) {
      throw new TidemarkError('TIDEMARK_TOO_LARGE', `more than ${collectionsMax} collections`, {
        what: 'collections',
        limit: collectionsMax,
      });
    }
    const history = wanted.history ?? this.#options.config.history;
    const compression = wanted.compression ?? 'none';
    const row: CatalogRow = {
      id: next.next,
      kind: wanted.kind ?? KIND_KEYED,
      key: keyCodec.name,
      value: valueCodec.name,
      history,
      ...(compression === 'none' ? {} : { compression }),
    };
    await this.transaction()
      .put(this.#catalog, key, row)
      .put(this.#catalog, NEXT_ID_KEY, { next: next.next + 1 })
      .commit();
    return this.#make(name, key, row, keyCodec, valueCodec);
  }

  #existing(name: string, key: Buffer, row: CatalogRow, wanted: WantedCollection): AnyCollection {
    if (wanted.kind !== undefined && wanted.kind !== row.kind) {
      const kind = kindName(row.kind);
      throw new TidemarkError('TIDEMARK_KIND_MISMATCH', `collection ${name} is of kind '${kind}'`, {
        collection: name,
        kind,
      });
    }
    const keyCodec = wanted.key ?? codecOfStoredName(row.key);
    const valueCodec = wanted.value ?? codecOfStoredName(row.value);
    if (keyCodec?.name !== row.key || valueCodec?.name !== row.value) {
      throw new TidemarkError(
        'TIDEMARK_KIND_MISMATCH',
        `collection ${name} has keys '${row.key}' and values '${row.value}'`,
        { collection: name, key: row.key, value: row.value },
      );
    }
    return this.#make(name, key, row, keyCodec, valueCodec);
  }

  #make(
    name: string,
    key: Buffer,
    row: CatalogRow,
    keyCodec: Codec<unknown>,
    valueCodec: Codec<unknown>,
  ): AnyCollection {
    const setHistory = (history: StoredHistory): Promise<Receipt> =>
      this.#inTurn(async () => {
        const found = await this.#catalogRow(name, key, row.id);
        return this.#catalog.put(key, { ...found, history });
      });
    const Kind = row.kind === KIND_MULTISET ? Multiset : Collection;
    return new Kind(this.#client, name, row.id, keyCodec, valueCodec, setHistory);
  }

  /** What the catalog says of a collection: of this very one when an id is given, not of a namesake. */
  async #catalogRow(name: string, key: Buffer, id: number | undefined): Promise<CatalogRow> {
    const stored = await this.#catalog.get(key);
    const row = stored === undefined ? undefined : checkCatalogRow(stored, name);
    if (row === undefined || (id !== undefined && row.id !== id)) {
      throw new TidemarkError('TIDEMARK_NOT_FOUND', `no collection ${name}`, { collection: name });
    }
    return row;
  }

  /** Every collection there is, by name. */
  collections(): CollectionInfo[] {
    return this.#rows().map(({ name, key, row }) => {
      const collection = this.#make(name, key, row, buffer, CATALOG_VALUES);
      return {
        name,
        kind: kindName(row.kind),
        key: row.key,
        value: row.value,
        history: shownHistory(row.history),
        since: collection.since,
        touched: collection.touched,
      };
    });
  }

  #rows(): { name: string; key: Buffer; row: CatalogRow }[] {
    const range = { gte: Buffer.from(ROWS_LOWER), lt: Buffer.from(ROWS_UPPER) };
    return Array.from(this.#catalog.entries(range), ([key, value]) => {
      const name = nameOfCatalogKey(key);
      return { name, key, row: checkCatalogRow(value, name) };
    });
  }

  /** Removes a collection and, in time, its files. Its name may be used again; its id never is. */
  async drop(collection: string | AnyCollection): Promise<Receipt> {
    const isName = typeof collection === 'string';
    const name = isName ? collection : collection.name;
    const key = catalogKey(name);
    if (!isName) collection.assertOf(this.#client);
    this.#assertWritable();
    return this.#inTurn(async () => {
      const { id } = await this.#catalogRow(name, key, isName ? undefined : collection.id);
      // From here on nothing is written to it that could not be kept.
      this.#client.dropped.set(id, ++this.#client.drops);
      try {
        return await this.transaction()
          .delete(this.#catalog, key)
          .delete(this.#catalog, catalogMetaKey(id))
          .commit();
      } catch (error) {
        this.#client.dropped.delete(id);
        throw error;
      }
    });
  }

  // ---------------------------------------------------------------- reading and writing

  /** A write set over any collections, committed as a whole. */
  transaction(): Transaction {
    return new Transaction(this.#client);
  }

  /**
   * Commits, as `transaction.commit(options)` does; undefined when there is no room, and then the
   * transaction is as it was: `await engine.room()` and try again.
   */
  tryCommit(transaction: Transaction, options?: CommitOptions): Promise<Receipt> | undefined {
    if (!(transaction instanceof Transaction)) throw new TypeError('tryCommit takes a transaction');
    return transaction.tryCommit(this.#client, options);
  }

  /**
   * Runs a function that reads and writes as if nothing else went on: its reads see one offset and its
   * own writes, and it commits only if nothing that it read has changed meanwhile; else it is run again,
   * at a newer offset. Resolves with what it returned, once its writes are as durable as a commit's.
   * What it throws ends it, and nothing is written. After `retries` conflicts: TIDEMARK_CONFLICT.
   *
   * Of a range as much counts as was walked over. A function that writes nothing commits nothing.
   */
  transact<R>(
    run: (tx: TransactionScope) => R | PromiseLike<R>,
    options?: TransactOptions,
  ): Promise<R> {
    return transact(this.#client, this.#transactShared, run, options);
  }

  /** One offset of all collections, held until closed: the newest, or `asOf`. */
  snapshot(options?: { readonly asOf?: number | Date }): Snapshot {
    this.#client.assertUsable();
    if (options !== undefined) checkFields(options, SNAPSHOT_OPTIONS, 'snapshot option');
    const asOf = options?.asOf;
    return new Snapshot(
      this.#client,
      asOf === undefined ? NEWEST : checkOffsetOrDate(this.#client, asOf, 'asOf'),
    );
  }

  /**
   * As `collection.changes()`, of several collections of any kind in one order: each transaction that touches any of
   * them is one item, and each of its updates names its collection.
   */
  changes<C extends AnyCollection>(
    collections: readonly C[],
    options: FollowOptions = {},
  ): Feed<UpdateOf<C>> {
    if (!Array.isArray(collections) || collections.length === 0) {
      throw new TypeError('changes takes an array of collections');
    }
    checkFields(options, CHANGES_OPTIONS, 'feed option');
    const given: readonly AnyCollection[] = collections;
    for (const collection of given) {
      if (!(collection instanceof BaseCollection)) throw new TypeError('changes takes collections');
      collection.assertOf(this.#client);
      collection.assertThere();
    }
    const ids = given.map(({ id }) => id);
    if (new Set(ids).size < ids.length) throw new TypeError('a collection is given twice');
    const start = startFeed(this.#client, ids, options);
    const targets = given.map((collection) => ({ collection, range: undefined, isNamed: true }));
    return new Feed(this.#client, targets, start);
  }

  /** Every cursor that feeds have left in the store, by name. */
  cursors(): CursorInfo[] {
    this.#client.assertUsable();
    const names = new Map(this.#rows().map(({ name, row }) => [row.id, name]));
    const range = { gte: CURSORS_LOWER, lt: CURSORS_UPPER };
    return Array.from(this.#catalog.entries(range), ([key, value]) => {
      const name = nameOfCursorKey(key);
      const row = checkCursorRow(value, name);
      return {
        name,
        offset: row.after,
        lag: Math.max(0, this.upper - 1 - row.after),
        collections: row.collections.map((id) => names.get(id) ?? ''),
        maxLag: row.maxLag,
      };
    });
  }

  /** Forgets a cursor, and lets go of what was kept for it. TIDEMARK_HELD while a feed of this thread has it. */
  async dropCursor(name: string): Promise<void> {
    this.#client.assertUsable();
    return removeCursor(this.#client, name);
  }

  // ---------------------------------------------------------------- time of day

  /**
   * The newest offset at a time of day: the last whose transaction was committed at or before it, of those
   * that the log has and the one before them. TIDEMARK_HISTORY_LOST when the time lies before that,
   * TIDEMARK_CORRUPT when the log is damaged where the answer lies.
   */
  offsetAt(date: Date): number {
    this.#client.assertUsable();
    if (typeof date === 'number') throw new TypeError('offsetAt takes a Date');
    return checkOffsetOrDate(this.#client, date, 'the time');
  }

  /**
   * When the transaction at an offset was committed, to the millisecond, by the clock of the machine: a
   * clock that is set back stands until it has caught up. TIDEMARK_HISTORY_LOST when the log no longer has
   * it, TIDEMARK_NOT_YET when it has not got there.
   */
  timeOf(offset: number): Date {
    this.#client.assertUsable();
    return new Date(this.#client.times.timeOf(checkOffset(offset)));
  }

  // ---------------------------------------------------------------- keeping

  /** Moves everything committed so far from memory into parts. */
  async flush(): Promise<void> {
    this.#assertWritable();
    return this.#client.flush();
  }

  /**
   * Flushes, and rolls the manifest up. Segments of the log that end below the checkpoint before this
   * one then go, where no history needs them.
   */
  async checkpoint(): Promise<void> {
    this.#assertWritable();
    return this.#client.checkpoint();
  }

  /**
   * Makes a store of its own in `directory`, which must be empty or not there: all that is committed when
   * it is called, and what follows until its parts are there, beside whatever is going on. Parts are linked
   * where the file system can, so that they take no room of their own until the engine has merged them away.
   * Resolves with the newest offset in it (-1: none) and the bytes it holds, linked ones included. One that
   * fails or is aborted removes what it made. `TIDEMARK_EXISTS`: something is in the directory.
   */
  async backup(directory: string, options?: BackupOptions): Promise<BackupResult> {
    const { config, inline, workerUrl, seam } = this.#options;
    const checked = checkBackup(directory, config.directory, options);
    this.#assertWritable();
    const { signal, onProgress = () => {} } = checked.options;
    signal?.throwIfAborted();
    const stop = new AbortController();
    const onAbort = (): void => stop.abort(signal?.reason);
    signal?.addEventListener('abort', onAbort);
    const run = async (): Promise<BackupResult> => {
      const number = await this.#client.beginBackup();
      try {
        stop.signal.throwIfAborted();
        const { target } = checked;
        const statePath = backupStatePath(OWNER_CLIENT, number);
        const upper = (): number => this.#context.control.durable();
        if (!inline && workerUrl === undefined) {
          const task = { source: config.directory, target, statePath };
          return await backupOnThread(task, upper, stop.signal, onProgress);
        }
        const storage = seam?.storage ?? new NodeStorage(config.directory);
        const task = { target, statePath };
        return await backupInSlices(storage, task, upper, stop.signal, onProgress);
      } finally {
        await this.#endBackup(number);
      }
    };
    const running = run().finally(() => {
      signal?.removeEventListener('abort', onAbort);
      this.#backups.delete(stop);
    });
    this.#backups.set(stop, running);
    return running;
  }

  /** Lets go of what a backup held; an engine that has ended holds nothing. */
  async #endBackup(number: number): Promise<void> {
    for (;;) {
      try {
        await this.#client.endBackup(number);
        return;
      } catch (error) {
        if ((error as TidemarkError).code !== 'TIDEMARK_BUSY') return;
        await new Promise<void>((resolve) => nextTurn(resolve));
      }
    }
  }

  /**
   * Looks for damage in everything the store has on disk, beside whatever is going on, and lists it. Damage
   * is a result, never an error.
   */
  async verify(options?: VerifyOptions): Promise<VerifyReport> {
    const checked = checkVerifyOptions(options);
    this.#client.assertUsable();
    const { inline, workerUrl, config, seam } = this.#options;
    // Whoever brings the engine's threads along in a file of his own has not brought this one.
    if (!inline && workerUrl === undefined) return verifyOnThread(config.directory, checked);
    // Its files are not the engine's, which closes all of its own when it fails.
    return verifyInSlices(seam?.storage ?? new NodeStorage(config.directory), checked);
  }

  /**
   * Merges a collection (or all) into as few runs as can be, its unneeded history left out. Where memory has
   * no room to describe what that would make, it ends after some seconds with what could be merged. When
   * `signal` aborts it rejects with the signal's reason, and merges that nobody else asked for stop.
   */
  async compact(collection?: AnyCollection, options: CompactOptions = {}): Promise<void> {
    const { signal, onProgress } = checkCompactOptions(options);
    collection?.assertOf(this.#client);
    this.#assertWritable();
    signal?.throwIfAborted();
    await this.#client.flush();
    signal?.throwIfAborted();
    const done = this.#client.compact(collection?.id, signal);
    if (onProgress === undefined) return done;
    const before = this.stats().keeper['mergedRowsIn'];
    const tell = (): void => {
      const { keeper, collections } = this.stats();
      let runs = 0;
      for (const stats of collections) {
        if (collection === undefined || stats.id === collection.id) runs += stats.runs.length;
      }
      onProgress({ rows: keeper['mergedRowsIn'] - before, runs });
    };
    const timer = setInterval(tell, COMPACT_PROGRESS_MS).unref();
    try {
      await done;
    } finally {
      clearInterval(timer);
    }
    tell();
  }

  #assertWritable(): void {
    this.#client.assertUsable();
    if (!this.#options.config.readOnly) return;
    throw new TidemarkError('TIDEMARK_READ_ONLY', 'the engine was opened read-only');
  }

  /** Finishes what was committed, writes CLEAN, gives the threads back. Twice is once. */
  close(): Promise<void> {
    if (this.#closed === undefined) {
      try {
        this.#client.line.assertNotEncoding();
      } catch (error) {
        return Promise.reject(error);
      }
      this.#closed = this.#close();
    }
    return this.#closed;
  }

  async #close(): Promise<void> {
    const { control } = this.#context;
    this.#archive?.end(new TidemarkError('TIDEMARK_CLOSED', 'the engine is closed'));
    for (const stop of this.#backups.keys()) {
      stop.abort(new TidemarkError('TIDEMARK_CLOSED', 'the engine is closed'));
    }
    if (this.#backups.size > 0) await Promise.allSettled(this.#backups.values());
    if (control.state() === STATE_OPEN) {
      // What this turn has committed goes first.
      this.#client.line.flush();
      control.moveState(STATE_OPEN, STATE_CLOSING);
      if (this.#isTailLong()) await this.#flushLast();
      this.#client.line.close();
      this.#client.feeds.end(new TidemarkError('TIDEMARK_CLOSED', 'the engine is closing'));
      this.#client.wake();
      await this.#client.stateReached(STATE_CLOSED);
    }
    await this.#end();
  }

  /** Whether the next open would replay for longer than a flush takes. */
  #isTailLong(): boolean {
    const { config } = this.#options;
    return !config.readOnly && this.#context.pool.usedPages(KIND_RECORD) > TAIL_PAGES_AT_CLOSE;
  }

  /** Best effort: what is not in parts when the time is up is in the log. */
  async #flushLast(): Promise<void> {
    const deadline = new AbortController();
    await Promise.race([
      this.#client.flushLast().catch(() => {}),
      this.#client.stateReached(STATE_CLOSED),
      sleep(FLUSH_AT_CLOSE_MS, undefined, { signal: deadline.signal }).catch(() => {}),
    ]);
    deadline.abort();
  }

  async #end(): Promise<void> {
    const { arena, control, topology } = this.#context;
    const isPoisoned = control.state() === STATE_POISONED;
    let isSpent = false;
    this.#client.poll();
    // Commits settle a slice a turn; no turn is to come.
    while (this.#client.line.hasMoreToSettle) this.#client.poll();
    if (this.#kit !== undefined || isPoisoned) {
      // The kit's threads keep no process alive, and this promise must settle.
      const keepAlive = setInterval(() => {}, 0x7fff_ffff);
      if (isPoisoned) {
        isSpent = true;
        await Promise.race([this.#over(), after(HANG_MS)]);
      } else {
        await this.#run;
        // A file read that outlasted the close will still say in the arena that it has ended.
        isSpent = readersInside(arena, topology.slots, clientsMax);
        if (isSpent) await this.#kit?.end();
      }
      clearInterval(keepAlive);
    }
    // What is over has been over by now: nobody waits for it to be told.
    this.#stalls.stop();
    this.#client.dispose();
    this.#ended = { state: control.state(), upper: this.upper, durableUpper: this.durableUpper };
    // From here on the arena may be another engine's.
    if (this.#kit !== undefined && !isSpent) returnKit(this.#kit);
    if (isPoisoned) this.#tellPoisoned();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** A collection of whatever kind. */
export type AnyCollection = Collection<any, any> | Multiset<any, any>;

function shownHistory({ offsets, ms }: StoredHistory): History {
  const shown = offsets ?? Infinity;
  return ms === undefined ? shown : { offsets: shown, ms };
}

function kindName(kind: number): 'keyed' | 'multiset' {
  return kind === KIND_MULTISET ? 'multiset' : 'keyed';
}

type WantedCollection = {
  readonly given: boolean;
  readonly kind: number | undefined;
  readonly key: Codec<unknown> | undefined;
  readonly value: Codec<unknown> | undefined;
  readonly history: StoredHistory | undefined;
  readonly compression: Compression | undefined;
};

function checkCollectionOptions(options: unknown): WantedCollection {
  if (options === undefined) {
    return {
      given: false,
      kind: undefined,
      key: undefined,
      value: undefined,
      history: undefined,
      compression: undefined,
    };
  }
  checkFields(options, COLLECTION_OPTIONS, 'collection option');
  const { kind, key, value, history, compression } = options as Record<string, unknown>;
  if (kind !== undefined && kind !== 'keyed' && kind !== 'multiset') {
    throw new TypeError(`kind is 'keyed' or 'multiset', not ${show(kind)}`);
  }
  return {
    given: true,
    kind: kind === undefined ? undefined : kind === 'keyed' ? KIND_KEYED : KIND_MULTISET,
    key: key === undefined ? undefined : codecOf(key, 'key'),
    value: value === undefined ? undefined : codecOf(value, 'value'),
    history: history === undefined ? undefined : checkHistory(history),
    compression: compression === undefined ? undefined : checkCompression(compression),
  };
}

function checkCompression(given: unknown): Compression {
  const known = COMPRESSIONS.find((name) => name === given);
  if (known === undefined) {
    throw new TypeError(`compression is one of ${COMPRESSIONS.join(', ')}, not ${show(given)}`);
  }
  if (codecOfCompression(known) === undefined) {
    throw new TypeError(`compression '${known}' is not in this version of Node`);
  }
  return known;
}

function signalOf(options: unknown): AbortSignal | undefined {
  if (options === undefined) return undefined;
  checkFields(options, WAIT_OPTIONS, 'wait option');
  return checkSignal((options as { signal?: unknown }).signal);
}

function checkCompactOptions(options: CompactOptions): CompactOptions {
  checkFields(options, COMPACT_OPTIONS, 'compact option');
  checkSignal(options.signal);
  if (options.onProgress !== undefined && typeof options.onProgress !== 'function') {
    throw new TypeError('onProgress is a function');
  }
  return options;
}

function checkOffset(offset: unknown): number {
  if (typeof offset === 'number' && Number.isSafeInteger(offset) && offset >= 0) return offset;
  throw new TypeError(`an offset is an integer from 0, not ${String(offset)}`);
}

/** Keeps no process alive. */
function after(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref());
}

function nextTurn(run: () => void): void {
  setImmediate(run);
}

/** A turn ends when the code and the promise reactions that run now are done. */
function endOfTurn(run: () => void): void {
  queueMicrotask(() => process.nextTick(run));
}
