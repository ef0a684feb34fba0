/**
 * One client and the code that uses it: commits, reads, snapshots, iterators, all drawn from a seed, each
 * answer compared with the model at once. It also keeps the book of what was promised: what is settled
 * must survive. Used by run.ts; one for each client of a world.
 */
import { loadManifest } from '../../core/spine/manifest-store.ts';
import { TidemarkError, codeOfNumber } from '../../core/base/errors.ts';
import { Prng } from '../../core/base/prng.ts';
import { CATALOG_ID, KIND_KEYED, KIND_MULTISET } from '../../core/base/update.ts';
import {
  CATALOG_KEYS,
  CATALOG_VALUES,
  NEXT_ID_KEY,
  ROWS_LOWER,
  ROWS_UPPER,
  catalogKey,
  nameOfCatalogKey,
} from '../../actors/catalog.ts';
import type { CatalogRow } from '../../actors/catalog.ts';
import type { Client } from '../../actors/client.ts';
import { Collection } from '../../actors/collection.ts';
import type { ReadOptions } from '../../actors/collection.ts';
import type { Receipt as Answer } from '../../actors/commit-line.ts';
import { KEEPER_COUNTERS, readCounters } from '../../actors/counters.ts';
import { buffer } from '../../actors/encodings.ts';
import type { Multiset } from '../../actors/multiset.ts';
import type { RangeIterable, RangeOptions } from '../../actors/range.ts';
import { NEWEST } from '../../actors/reader.ts';
import { Snapshot } from '../../actors/snapshot.ts';
import { BESIDE_CONFLICT } from '../../actors/grouped-conditions.ts';
import { transact } from '../../actors/transact.ts';
import { TransactShared } from '../../actors/transact.ts';
import type { WriteSet } from '../../actors/write-set.ts';
import { Transaction } from '../../actors/transaction.ts';
import { Backups } from './backups.ts';
import type { Copy } from './backups.ts';
import { Following } from './following.ts';
import { Multisets } from './multisets.ts';
import type {
  CatalogChange,
  Model,
  ModelCollection,
  ModelOp,
  ModelRow,
  ModelTx,
  Slot,
} from './model.ts';
import type { ActWeights, Settings } from './settings.ts';
import type { Trace } from './trace.ts';
import { Attempts } from './transacting.ts';
import type { Judge } from './transacting.ts';
import { SimFailure } from './world.ts';
import type { Receipt, World } from './world.ts';

type Rows = Collection<Buffer, Buffer>;

/** The row's last change is at `offset`, null: it is absent; without a key: nothing changed after it. */
type ModelCondition = {
  readonly id: number;
  readonly key: number | undefined;
  readonly offset: number | null;
};

type Commit = {
  readonly tx: ModelTx;
  readonly sync: boolean;
  readonly conditions: readonly ModelCondition[];
  /** Of `transact`: what it had read. */
  readonly judge: Judge | undefined;
  /** What readers saw when it was made. */
  readonly visible: number;
  offset: number;
  /** The sequencer has said that a condition does not hold. */
  isInConflict: boolean;
};

type How = Parameters<Transaction['commit']>[0];

type HeldSnapshot = {
  readonly snapshot: Snapshot;
  readonly T: number;
  /** What readers saw when it was made: what was dropped before is not asked for. */
  readonly visible: number;
  readonly given: boolean;
  /** Collections that were read in it: they may not be lost any more. */
  readonly read: Set<number>;
  /** Collections that might have lost the time already when it was made. */
  readonly mayBeLost: ReadonlySet<number>;
};

type OpenIterator = {
  readonly rows: RangeIterable<Buffer, Buffer, [Buffer, Buffer]>;
  readonly expected: readonly ModelRow[];
  readonly what: string;
  at: number;
};

/** Where in time a read looks: what it asks, and the time that it stands for. */
type When = {
  readonly options: ReadOptions;
  readonly T: number;
  readonly held: HeldSnapshot | undefined;
};

export type CallerParts = {
  readonly world: World;
  readonly number: number;
  readonly prng: Prng;
  readonly trace: Trace;
  readonly model: Model;
  readonly settings: Settings;
  readonly readOnly: boolean;
  /** A disk that said it is full explains a refusal. */
  readonly mayBeFull: () => boolean;
  /** A call that failed explains a read without an answer. */
  readonly mayFailToRead: () => boolean;
  readonly onRefusal: () => void;
  readonly onConflict: () => void;
};

const HELD_MAX = 6;

export class Caller {
  readonly client: Client;
  readonly #parts: CallerParts;
  readonly #catalog: Collection<Buffer, unknown>;
  readonly #handles: Map<number, Rows> = new Map();
  /** Submitted and without an offset, oldest first. */
  readonly #line: Commit[] = [];
  readonly #snapshots: HeldSnapshot[] = [];
  readonly #iterators: OpenIterator[] = [];
  #catalogBusy = false;
  /** Promises that have not settled, by number. */
  readonly #waiting: Map<number, string> = new Map();
  #nextPromise = 0;
  /** First offset above everything that was promised to be durable, and to be written. */
  durablePromised = 0;
  writtenPromised = 0;
  readonly #following: Following;
  readonly #multisets: Multisets;
  readonly #backups: Backups;
  readonly #transactShared: TransactShared = new TransactShared(new Prng(1));
  /** Who knows what a write set of `transact` has read. */
  readonly #judges: WeakMap<WriteSet, Judge> = new WeakMap();
  #nextTransact = 0;
  transacted = 0;
  acts = 0;
  conditionsHeld = 0;
  /** Answers and rows of ranges that were as the model says. */
  compared = 0;
  /** Those of multisets. */
  pairsCompared = 0;

  constructor(parts: CallerParts) {
    this.#parts = parts;
    this.client = parts.world.clients[parts.number]!;
    this.#catalog = new Collection<Buffer, unknown>(
      this.client,
      '',
      CATALOG_ID,
      CATALOG_KEYS,
      CATALOG_VALUES,
      () => Promise.reject(new TypeError('not here')),
    );
    this.#watchCommits();
    const { world } = parts;
    this.#following = new Following({
      client: this.client,
      prng: parts.prng,
      model: parts.model,
      handleOf: (collection) => this.#handleOf(collection),
      mayRemoveRanges: parts.settings.acts.removeRange > 0,
      mayEnd: (error) => {
        const isOver = isCode(error, 'TIDEMARK_POISONED') || isCode(error, 'TIDEMARK_CLOSED');
        return (isOver && !world.isOpen) || this.#isFailedRead(error);
      },
      isLost: (error) => isCode(error, 'TIDEMARK_HISTORY_LOST'),
      onBroken: (error) => this.#broke(error),
      note: (what, n) => this.#note(what, n),
    });
    this.#backups = new Backups({
      world,
      client: this.client,
      number: parts.number,
      prng: parts.prng,
      await: (promise, what, check, refused) => this.#await(promise, what, check, refused),
      isBusy: (error) => isCode(error, 'TIDEMARK_BUSY'),
      isFailedRead: (error) => this.#isFailedRead(error),
      note: (what, n) => this.#note(what, n),
    });
    this.#multisets = new Multisets({
      client: this.client,
      prng: parts.prng,
      model: parts.model,
      mayRemoveRanges: parts.settings.acts.removeRange > 0,
      sync: () => this.#sync(),
      submit: (tx, sync, promise) => this.#submit(tx, sync, promise),
      when: () => this.#when(),
      readable: (when) => this.#readableOf(when as When, (T) => parts.model.multisetsAt(T)),
      keyed: () => this.#live(),
      keyedHandle: (id) => this.#handle(id),
      value: () => this.#value(),
      await: (promise, what, check, refused) => this.#await(promise, what, check, refused),
      onRead: (id, when) => (when as When).held?.read.add(id),
      checkLost: (error, id, when, visible) => this.#checkLost(error, id, when as When, visible),
      isFailedRead: (error) => this.#isFailedRead(error),
      onCompared: () => {
        this.compared++;
        this.pairsCompared++;
      },
      note: (what, n) => this.#note(what, n),
    });
  }

  /** Items of feeds that were as they should be. */
  get itemsFollowed(): number {
    return this.#following.items;
  }

  /** Somebody waits for a turn of the event loop. */
  get wantsTurn(): boolean {
    return this.#following.wantsTurn;
  }

  get unsettled(): number {
    return this.#waiting.size;
  }

  /** What is waited for, for people. */
  get waitsFor(): string {
    return [...this.#waiting.values()].slice(0, 5).join('; ');
  }

  get #visible(): number {
    return this.client.reader.visible();
  }

  #handle(id: number): Rows {
    let handle = this.#handles.get(id);
    if (handle === undefined) {
      const none = (): Promise<Answer> => Promise.reject(new TypeError('not here'));
      handle = new Collection(this.client, this.#parts.model.nameOf(id), id, buffer, buffer, none);
      this.#handles.set(id, handle);
    }
    return handle;
  }

  #handleOf({ id, slot }: ModelCollection): Rows | Multiset<Buffer, Buffer> {
    return slot.values === undefined ? this.#handle(id) : this.#multisets.handle(id);
  }

  /** Collections that readers see now. */
  #live(): ModelCollection[] {
    return this.#parts.model.liveAt(this.#visible - 1);
  }

  /** One thing that a client may do. The caller lets promises settle afterwards. */
  act(): void {
    const { prng, settings, trace, readOnly } = this.#parts;
    const { acts } = settings;
    const names = Object.keys(acts) as (keyof ActWeights)[];
    let total = 0;
    for (const name of names) total += acts[name];
    let at = prng.unit() * total;
    let chosen: keyof ActWeights = 'look';
    for (const name of names) {
      at -= acts[name];
      if (at >= 0) continue;
      chosen = name;
      break;
    }
    if (this.#live().length === 0 && prng.chance(0.5)) chosen = 'catalog';
    this.acts++;
    trace.say(`${this.#parts.number}:${chosen}`);
    if (readOnly && WRITES.has(chosen)) {
      this.#expectReadOnly();
      return;
    }
    try {
      this.#backups.goOn();
      this[chosen]();
    } catch (error) {
      if (!this.#isFailedRead(error)) throw error;
    }
  }

  #expectReadOnly(): void {
    const live = this.#live();
    if (live.length === 0) return;
    this.#await(
      this.#handle(live[0].id).put(Buffer.alloc(1), Buffer.alloc(1)),
      'a commit to a read-only engine',
      () => {
        throw new SimFailure('a read-only engine took a commit');
      },
      (error) => {
        if (!isCode(error, 'TIDEMARK_READ_ONLY')) throw error;
      },
    );
  }

  // ---------------------------------------------------------------- writing

  #key(collection: ModelCollection): number {
    const { prng, settings } = this.#parts;
    const { length } = collection.slot.keys;
    if (prng.chance(0.2)) return prng.below(length);
    return prng.below(Math.max(1, Math.ceil(length * settings.hotKeys)));
  }

  #value(): Buffer {
    const { prng, settings } = this.#parts;
    const length = settings.valueBytes(prng);
    const seed = prng.fill(Buffer.alloc(8)) as Buffer;
    return Buffer.alloc(length, seed);
  }

  /** Of a buffered engine, sometimes more is asked. */
  #sync(): { sync: boolean; options: { durability: 'synced' } | undefined } {
    const { prng, settings } = this.#parts;
    if (settings.synced) return { sync: true, options: undefined };
    const sync = prng.chance(0.1);
    return { sync, options: sync ? { durability: 'synced' } : undefined };
  }

  put(): void {
    const { prng } = this.#parts;
    const live = this.#live();
    if (live.length === 0) return;
    const collection = prng.pick(live);
    const key = this.#key(collection);
    const value = this.#value();
    const { sync, options } = this.#sync();
    const promise = this.#handle(collection.id).put(collection.slot.keys[key], value, options);
    this.#submit({ ops: [{ id: collection.id, key, value }] }, sync, promise);
  }

  remove(): void {
    const { prng } = this.#parts;
    const live = this.#live();
    if (live.length === 0) return;
    const collection = prng.pick(live);
    const key = this.#key(collection);
    const { sync, options } = this.#sync();
    const promise = this.#handle(collection.id).delete(collection.slot.keys[key], options);
    this.#submit({ ops: [{ id: collection.id, key, value: undefined }] }, sync, promise);
  }

  /** Some neighbours, now and then all that is above or below a key. */
  #rangeOf(collection: ModelCollection): { op: ModelOp; bounds: { gte?: Buffer; lt?: Buffer } } {
    const { prng } = this.#parts;
    const { keys } = collection.slot;
    const from = this.#key(collection);
    const lower = prng.chance(0.1) ? undefined : keys[from];
    const upper = prng.chance(0.1) ? undefined : keys[from + prng.between(1, 8)];
    const range = { lower, upper };
    return {
      op: { id: collection.id, key: -1, value: undefined, range },
      bounds: {
        ...(lower === undefined ? {} : { gte: lower }),
        ...(upper === undefined ? {} : { lt: upper }),
      },
    };
  }

  removeRange(): void {
    const { prng } = this.#parts;
    const live = this.#live();
    if (live.length === 0) return;
    const collection = prng.pick(live);
    const { op, bounds } = this.#rangeOf(collection);
    const { sync, options } = this.#sync();
    const promise = this.#handle(collection.id).deleteRange(bounds, options);
    this.#submit({ ops: [op] }, sync, promise);
  }

  transaction(): void {
    const { prng, settings } = this.#parts;
    const live = this.#live();
    if (live.length === 0) return;
    const tx = new Transaction(this.client);
    const ops: ModelOp[] = [];
    const count = prng.chance(settings.largeTransactions)
      ? prng.between(20, 300)
      : prng.between(0, 6);
    for (let i = 0; i < count; i++) {
      const collection = prng.pick(live);
      const key = this.#key(collection);
      const bytes = collection.slot.keys[key];
      if (settings.acts.removeRange > 0 && prng.chance(0.05)) {
        const { op, bounds } = this.#rangeOf(collection);
        tx.deleteRange(this.#handle(collection.id), bounds);
        ops.push(op);
      } else if (prng.chance(0.3)) {
        tx.delete(this.#handle(collection.id), bytes);
        ops.push({ id: collection.id, key, value: undefined });
      } else {
        const value = this.#value();
        tx.put(this.#handle(collection.id), bytes, value);
        ops.push({ id: collection.id, key, value });
      }
    }
    const { sync, options } = this.#sync();
    if (ops.length === 0) {
      this.#commitNothing(tx);
      return;
    }
    this.#send(tx, { ops }, sync, options, []);
  }

  /** Commits, or tries to: then nothing happens where there is no room. */
  #send(
    tx: Transaction,
    model: ModelTx,
    sync: boolean,
    options: How,
    conditions: readonly ModelCondition[],
  ): void {
    if (!this.#parts.prng.chance(0.25)) {
      this.#submit(model, sync, tx.commit(options), conditions);
      return;
    }
    const { hasRoom } = this.client.line;
    const tried = tx.tryCommit(this.client, options);
    if ((tried === undefined) === hasRoom) throw new SimFailure('tryCommit is wrong about room');
    this.#note('tried', hasRoom ? 1 : 0);
    if (tried !== undefined) this.#submit(model, sync, tried, conditions);
  }

  /** A transaction that is made only if rows and collections are as they were seen, or thought to be. */
  conditional(): void {
    const { prng, model } = this.#parts;
    const visible = this.#visible;
    const live = model.allAt(visible - 1);
    if (live.length === 0 || visible === 0) return;
    const conditions: ModelCondition[] = [];
    const expect: object[] = [];
    for (let i = prng.pick([1, 1, 2, 5]); i > 0; i--) {
      const collection = prng.pick(live);
      const condition = this.#condition(collection, visible);
      conditions.push(condition);
      const { key, offset } = condition;
      expect.push({
        collection: this.#handleOf(collection),
        ...(key === undefined
          ? { unchangedSince: offset }
          : { key: collection.slot.keys[key], offset }),
      });
    }
    const { sync, options } = this.#sync();
    const how = { ...options, expect } as How;
    const tx = new Transaction(this.client);
    if (prng.chance(0.1)) {
      this.#lookOnly(tx, how, conditions, visible);
      return;
    }
    const ops: ModelOp[] = [];
    for (let i = prng.between(1, 4); i > 0; i--) {
      const collection = prng.pick(live);
      const { id } = collection;
      if (collection.slot.values !== undefined) {
        ops.push(this.#multisets.updateInto(tx, collection));
        continue;
      }
      // Most often what was looked at is what is changed.
      const [first] = conditions;
      const same = first.id === id && first.key !== undefined && prng.chance(0.7);
      const key = same ? first.key : this.#key(collection);
      const bytes = collection.slot.keys[key];
      const value = prng.chance(0.2) ? undefined : this.#value();
      if (value === undefined) tx.delete(this.#handle(id), bytes);
      else tx.put(this.#handle(id), bytes, value);
      ops.push({ id, key, value });
    }
    this.#send(tx, { ops }, sync, how, conditions);
  }

  #condition(collection: ModelCollection, visible: number): ModelCondition {
    const { prng, model } = this.#parts;
    const { id, slot } = collection;
    if (slot.values !== undefined || prng.chance(0.2)) {
      const since = prng.pick([visible - 1, visible - 1, model.touched(id, visible) - 1]);
      return { id, key: undefined, offset: Math.max(0, since - (prng.chance(0.1) ? 1 : 0)) };
    }
    const key = this.#key(collection);
    const version = model.versionAt(id, key, visible - 1);
    const seen = version?.value === undefined ? null : version.offset;
    if (prng.chance(0.85)) return { id, key, offset: seen };
    const other = prng.pick([null, version?.offset ?? 0, prng.below(visible), visible - 1]);
    return { id, key, offset: other };
  }

  /** Reads and writes as one, run again until nothing that was read has changed meanwhile. */
  transact(): void {
    const { prng, trace } = this.#parts;
    if (this.unsettled > 100) return;
    const options = {
      // More would pause in real time.
      retries: prng.below(3),
      ...(this.#parts.settings.synced || prng.chance(0.9) ? {} : { durability: 'synced' as const }),
    };
    const number = this.#nextTransact++;
    const attempt = new Attempts({
      client: this.client,
      prng: prng.child(),
      model: this.#parts.model,
      live: () => this.#live(),
      handleOf: (id) => this.#handle(id),
      keyOf: (collection) => this.#key(collection),
      valueOf: () => this.#value(),
      note: (what, n) => this.#note(`transact ${number}: ${what}`, n),
      onWriteSet: (set, judge) => this.#judges.set(set, judge),
    });
    trace.mix(number);
    this.#await(
      transact(this.client, this.#transactShared, (scope) => attempt.run(scope), options),
      `transact ${number}`,
      () => {
        this.transacted++;
      },
      (error) => this.#onTransactFailed(error),
    );
  }

  #onTransactFailed(error: unknown): void {
    const { world, mayBeFull } = this.#parts;
    if (this.#isFailedRead(error)) return;
    const isExpected =
      isCode(error, 'TIDEMARK_CONFLICT') ||
      isCode(error, 'TIDEMARK_HISTORY_LOST') ||
      isCode(error, 'TIDEMARK_TOO_LARGE') ||
      (isCode(error, 'TIDEMARK_NO_SPACE') && mayBeFull()) ||
      (isCode(error, 'TIDEMARK_OUTCOME_UNKNOWN') && world.isPoisoned);
    if (!isExpected) throw error;
  }

  /** What is committed from within: in the book as everything else is. */
  #watchCommits(): void {
    const { line } = this.client;
    const commitTold = line.commitTold.bind(line);
    line.commitTold = (set, sync, conditions, told) => {
      const judge = this.#judges.get(set);
      if (judge === undefined) {
        commitTold(set, sync, conditions, told);
        return;
      }
      let settle!: (answer: Answer) => void;
      let refuse!: (error: Error) => void;
      const promise = new Promise<Answer>((resolve, reject) => {
        settle = resolve;
        refuse = reject;
      });
      commitTold(set, sync, conditions, {
        onCommitted: (offset) => {
          settle({ offset });
          told.onCommitted(offset);
        },
        onRefused: (error) => {
          refuse(error);
          told.onRefused(error);
        },
      });
      this.#submit({ ops: judge.ops }, sync, promise, [], judge);
    };
  }

  /** Conditions without a write: answered at once, of what is visible. */
  #lookOnly(
    tx: Transaction,
    how: How,
    conditions: readonly ModelCondition[],
    visible: number,
  ): void {
    const hold = conditions.every((condition) => this.#holds(condition, visible));
    this.#await(
      tx.commit(how),
      'conditions alone',
      ({ offset }) => {
        if (!hold) throw new SimFailure('conditions hold that do not');
        if (offset !== visible - 1) throw new SimFailure(`an empty commit was given ${offset}`);
      },
      (error) => {
        if (!isCode(error, 'TIDEMARK_CONFLICT')) throw error;
        // What is ordered and not seen yet counts too.
        this.#checkConflict(conditions, visible, this.#parts.model.upper, error);
      },
    );
  }

  #holds({ id, key, offset }: ModelCondition, upper: number): boolean {
    const { model } = this.#parts;
    if (key === undefined) return model.touched(id, upper) <= offset! + 1;
    const version = model.versionAt(id, key, upper - 1);
    return (version?.value === undefined ? null : version.offset) === offset;
  }

  /** Somewhere between the two a condition did not hold. */
  #checkConflict(
    conditions: readonly ModelCondition[],
    from: number,
    to: number,
    error: unknown,
  ): void {
    const { model } = this.#parts;
    for (let upper = from; upper <= to; upper++) {
      for (const condition of conditions) {
        if (!this.#holds(condition, upper)) return;
        // Where history is lost, a change may be told of that was a little earlier.
        const { id, key, offset } = condition;
        if (key === undefined && offset! < model.mayLoseBelow(id, upper)) return;
        // Of what was dropped no trace may be left.
        if (key === undefined && model.isDropped(id, upper)) return;
      }
    }
    const what = JSON.stringify(conditions);
    throw new SimFailure(`a conflict over what holds from ${from} to ${to}: ${what}`, {
      cause: error,
    });
  }

  #commitNothing(tx: Transaction): void {
    const visible = this.#visible;
    this.#await(tx.commit(), 'an empty commit', ({ offset }) => {
      if (offset !== visible - 1) throw new SimFailure(`an empty commit was given ${offset}`);
    });
  }

  burst(): void {
    const { prng } = this.#parts;
    for (let i = prng.between(2, 60); i > 0; i--) {
      if (prng.chance(0.8)) this.put();
      else this.remove();
    }
  }

  #submit(
    tx: ModelTx,
    sync: boolean,
    promise: Promise<Answer>,
    conditions: readonly ModelCondition[] = [],
    judge?: Judge,
  ): void {
    const { world, settings } = this.#parts;
    const visible = this.#visible;
    const commit: Commit = {
      tx,
      sync,
      conditions,
      judge,
      visible,
      offset: -1,
      isInConflict: false,
    };
    this.#line.push(commit);
    const number = this.#nextPromise++;
    this.#waiting.set(number, 'a commit');
    if (tx.catalog !== undefined) this.#catalogBusy = true;
    const done = (): void => {
      this.#waiting.delete(number);
      if (tx.catalog !== undefined) this.#catalogBusy = false;
    };
    promise
      .then(
        ({ offset }) => {
          done();
          this.#note('settled', offset);
          if (offset !== commit.offset) {
            throw new SimFailure(`a commit with offset ${commit.offset} was told ${offset}`);
          }
          const { control } = world.context;
          if (sync) this.durablePromised = Math.max(this.durablePromised, offset + 1);
          this.writtenPromised = Math.max(this.writtenPromised, offset + 1);
          const frontier = sync ? control.durable() : control.written();
          if (frontier <= offset) throw new SimFailure(`${offset} was settled at ${frontier}`);
          if (this.#visible <= offset && (settings.synced || !world.isPoisoned)) {
            throw new SimFailure(`${offset} was settled and is not visible`);
          }
        },
        (error: unknown) => {
          done();
          this.#note(codeOf(error), commit.offset);
          this.#onRefused(commit, error);
        },
      )
      .catch((error: unknown) => this.#broke(error));
  }

  #onRefused(commit: Commit, error: unknown): void {
    const { world } = this.#parts;
    const at = this.#line.indexOf(commit);
    if (isCode(error, 'TIDEMARK_BUSY') || isCode(error, 'TIDEMARK_TOO_LARGE')) {
      // Refused at the door: it never was on the line.
      if (at < 0) throw error;
      this.#line.splice(at, 1);
      return;
    }
    if (error === BESIDE_CONFLICT && commit.judge !== undefined) {
      // Another of its record had the conflict; `transact` tries again.
      if (!commit.isInConflict && at >= 0) this.#line.splice(at, 1);
      return;
    }
    const isConditional = commit.conditions.length > 0 || commit.judge !== undefined;
    if (isCode(error, 'TIDEMARK_CONFLICT') && isConditional) {
      this.#parts.onConflict();
      // Found by the sequencer, or before it came on the line.
      if (commit.isInConflict) return;
      if (at < 0) throw error;
      this.#line.splice(at, 1);
      if (commit.judge !== undefined) commit.judge.onConflict();
      else this.#checkConflict(commit.conditions, commit.visible, this.#parts.model.upper, error);
      return;
    }
    if (isConditional && commit.offset < 0 && this.#isFailedRead(error)) {
      // Its conditions could not be looked at again after it had to wait: it never was on the line.
      if (at >= 0) this.#line.splice(at, 1);
      return;
    }
    if (isCode(error, 'TIDEMARK_NO_SPACE') && commit.offset < 0) {
      // By its own thread, which had no memory for it: it never was on the line.
      if (at >= 0) this.#line.splice(at, 1);
      return;
    }
    const isUnknown =
      isCode(error, 'TIDEMARK_OUTCOME_UNKNOWN') || isCode(error, 'TIDEMARK_POISONED');
    if (!isUnknown || !world.isPoisoned) throw error;
    if (commit.offset >= 0 && commit.offset < world.context.control.durable() && commit.sync) {
      throw new SimFailure(`commit ${commit.offset} is durable and was called unknown`);
    }
  }

  /** The sequencer has given offsets to the next `count` transactions, or has refused them. */
  onReceipt({ first, count, refusal, from }: Receipt): void {
    const { model, mayBeFull } = this.#parts;
    if (refusal !== 0) {
      const code = codeOfNumber(refusal);
      if (code === 'TIDEMARK_CONFLICT') {
        const refused = this.#line.splice(0, count);
        const [commit] = refused;
        if (commit === undefined) throw new SimFailure('a conflict over nothing');
        for (const one of refused) one.isInConflict = true;
        if (count === 1 && commit.judge === undefined) {
          this.#checkConflict(commit.conditions, from, model.upper, undefined);
          return;
        }
        // Those that share a record are refused together, for one of them.
        let reason: unknown;
        for (const { judge } of refused) {
          if (judge === undefined) throw new SimFailure('who has no conditions shares a conflict');
          try {
            judge.onConflict();
            return;
          } catch (error) {
            reason = error;
          }
        }
        throw reason;
      }
      if (code !== 'TIDEMARK_NO_SPACE' || !mayBeFull()) {
        throw new SimFailure(`a record was refused: ${code}`);
      }
      this.#line.splice(0, count);
      this.#parts.onRefusal();
      return;
    }
    for (let i = 0; i < count; i++) {
      const commit = this.#line.shift();
      if (commit === undefined) throw new SimFailure('a record holds more than was committed');
      commit.offset = first + i;
      if (model.upper !== commit.offset) throw new SimFailure('offsets are given in order');
      for (const condition of commit.conditions) {
        if (count !== 1) throw new SimFailure('a condition is for a record of its own');
        // Of rows of what was dropped meanwhile nothing is left that could tell.
        if (condition.key !== undefined && model.isDropped(condition.id, commit.offset)) continue;
        if (!this.#holds(condition, commit.offset)) {
          const what = JSON.stringify(condition);
          throw new SimFailure(`${commit.offset} was accepted, and did not hold: ${what}`);
        }
        this.conditionsHeld++;
      }
      if (commit.judge !== undefined) {
        commit.judge.onAccepted(commit.offset);
      }
      model.apply(commit.tx);
    }
  }

  // ---------------------------------------------------------------- when

  #when(): When {
    const { prng } = this.#parts;
    const visible = this.#visible;
    const newest: When = { options: {}, T: visible - 1, held: undefined };
    if (prng.chance(0.45)) return newest;
    if (this.#snapshots.length > 0 && prng.chance(0.6)) {
      const held = prng.pick(this.#snapshots);
      return { options: { snapshot: held.snapshot }, T: held.T, held };
    }
    if (visible === 0) return newest;
    const T = this.#time(visible);
    const upper = this.#timedUpper;
    if (T >= upper || !prng.chance(0.1)) return { options: { asOf: T }, T, held: undefined };
    // Of those that were committed in the same millisecond the last.
    const atMs = this.#parts.model.atMs[T];
    return { options: { asOf: new Date(atMs) }, T: this.#newestAt(atMs, upper), held: undefined };
  }

  /** What the log can say times of. */
  get #timedUpper(): number {
    return Math.min(this.#visible, this.#parts.world.context.control.written());
  }

  /** The last offset below `upper` committed at or before that time; -1: none was. */
  #newestAt(ms: number, upper: number): number {
    const { atMs } = this.#parts.model;
    let low = 0;
    let high = upper;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (atMs[middle] <= ms) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** Times of day and offsets, either way, as far back as some collection has its history. */
  #checkTimes(): void {
    const { prng, model } = this.#parts;
    const upper = this.#timedUpper;
    if (upper === 0) return;
    const visible = this.#visible;
    const offset = this.#time(upper);
    const ms = model.atMs[offset] + prng.pick([0, 0, -1, 1]);
    const expected = this.#newestAt(ms, upper);
    const kept = model
      .allAt(visible - 1)
      .map(({ id, createdAt }) => Math.max(createdAt, model.mayLoseBelow(id, visible)));
    const floor = Math.min(visible, ...kept);
    try {
      const found = this.client.times.timeOf(offset);
      this.#note('time', offset);
      if (found !== model.atMs[offset]) {
        throw new SimFailure(`${offset} was at ${found}, not ${model.atMs[offset]}`);
      }
      this.compared++;
      const newest = this.client.times.offsetAt(ms);
      if (newest !== expected) throw new SimFailure(`at ${ms} was ${newest}, not ${expected}`);
      this.compared++;
    } catch (error) {
      const isBefore = Math.min(offset, expected) <= floor;
      if (!isCode(error, 'TIDEMARK_HISTORY_LOST') || !isBefore) throw error;
    }
  }

  /** A time that is there: mostly a late one. */
  #time(visible: number): number {
    const { prng } = this.#parts;
    const back = prng.pick([1, 3, 10, 100, visible]);
    return Math.max(0, visible - prng.between(1, back));
  }

  /** Collections that can be asked for at that time. */
  #readable(when: When): ModelCollection[] {
    return this.#readableOf(when, (T) => this.#parts.model.liveAt(T));
  }

  #readableOf({ held, T }: When, thereAt: (T: number) => ModelCollection[]): ModelCollection[] {
    if (held === undefined) return thereAt(this.#visible - 1);
    const then = thereAt(held.visible - 1);
    return thereAt(T).filter((collection) => then.includes(collection));
  }

  /** The disk failed a read, as it had been told to: whoever asked is told so. */
  #isFailedRead(error: unknown): boolean {
    if (!this.#parts.mayFailToRead()) return false;
    const { code, detail } = error as { code?: unknown; detail?: { offset?: unknown } };
    // A sync that failed may have taken back what was written, before the engine hears of it and is poisoned.
    const isTakenBack =
      code === 'TIDEMARK_CORRUPT' &&
      Number(detail?.offset) >= this.#parts.world.context.control.durable();
    return code === 'TIDEMARK_IO' || isTakenBack;
  }

  /** Throws unless history may be lost there, or the disk failed. */
  #checkLost(error: unknown, id: number, when: When, visible: number): void {
    if (this.#isFailedRead(error)) return;
    if (!isCode(error, 'TIDEMARK_HISTORY_LOST')) throw error;
    const { model } = this.#parts;
    const { held, T } = when;
    if (held !== undefined) {
      if (held.given && held.mayBeLost.has(id) && !held.read.has(id)) return;
      throw new SimFailure(`a snapshot at ${T} has lost collection ${id}: ${describe(error)}`);
    }
    const { asOf } = when.options;
    // A time of day is looked for in the log, which has what collections have since they were made.
    const made = asOf instanceof Date ? (model.collections.get(id)?.createdAt ?? 0) + 1 : 0;
    const bound = Math.max(made, model.mayLoseBelow(id, visible));
    if (asOf !== undefined && T < bound) return;
    throw new SimFailure(
      `collection ${id} is lost at ${T}, promised from ${bound} on: ${describe(error)}`,
    );
  }

  // ---------------------------------------------------------------- points

  point(): void {
    const { prng, model } = this.#parts;
    const when = this.#when();
    const readable = this.#readable(when);
    if (readable.length === 0) return;
    const collection = prng.pick(readable);
    const { id } = collection;
    const key = this.#key(collection);
    const bytes = collection.slot.keys[key];
    const handle = this.#handle(id);
    const expected = model.versionAt(id, key, when.T);
    const what = `point ${id}/${key} at ${when.T}`;
    try {
      const kind = prng.below(4);
      if (kind === 3) {
        this.#pointCached(handle, bytes, when, expected?.value, what);
      } else if (kind === 0) {
        const found = handle.getEntrySync(bytes, when.options);
        this.#compare(what, found?.value, expected?.value);
        if (found !== undefined && found.offset !== expected!.offset) {
          throw new SimFailure(`${what}: changed at ${found.offset}, not ${expected!.offset}`);
        }
      } else if (kind === 1) {
        this.#compare(what, handle.getSync(bytes, when.options), expected?.value);
      } else if (handle.hasSync(bytes, when.options) !== (expected?.value !== undefined)) {
        throw new SimFailure(`${what}: has() is wrong`);
      }
      when.held?.read.add(id);
    } catch (error) {
      this.#checkLost(error, id, when, this.#visible);
    }
    this.#notYet(handle, bytes);
  }

  /** From memory, or not at all. */
  #pointCached(
    handle: Rows,
    key: Buffer,
    when: When,
    expected: Buffer | undefined,
    what: string,
  ): void {
    try {
      const found = handle.getSync(key, { ...when.options, cachedOnly: true });
      this.#compare(`cached ${what}`, found, expected);
    } catch (error) {
      if (!isCode(error, 'TIDEMARK_NOT_CACHED')) throw error;
      this.#note(`not cached: ${what}`, 0);
    }
  }

  /** What is not there yet says so. */
  #notYet(handle: Rows, key: Buffer): void {
    const { prng } = this.#parts;
    if (!prng.chance(0.05)) return;
    try {
      handle.getSync(key, { asOf: this.#visible + prng.below(3) });
    } catch (error) {
      if (isCode(error, 'TIDEMARK_NOT_YET')) return;
      throw error;
    }
    throw new SimFailure('a time that is not there was read');
  }

  /** A point read that does not wait for the disk: the answer comes later, of the time of the call. */
  pointLater(): void {
    const { prng, model } = this.#parts;
    if (this.unsettled > 200) return;
    const when = this.#when();
    const readable = this.#readable(when);
    if (readable.length === 0) return;
    const collection = prng.pick(readable);
    const { id } = collection;
    const key = this.#key(collection);
    const expected = model.versionAt(id, key, when.T)?.value;
    const what = `later point ${id}/${key} at ${when.T}`;
    const visible = this.#visible;
    this.#await(
      this.#handle(id).get(collection.slot.keys[key], when.options),
      what,
      (found) => {
        this.#compare(what, found, expected);
        when.held?.read.add(id);
      },
      (error) => this.#checkLost(error, id, when, visible),
    );
  }

  many(): void {
    const { prng, model } = this.#parts;
    const when = this.#when();
    const readable = this.#readable(when);
    if (readable.length === 0) return;
    const collection = prng.pick(readable);
    const { id } = collection;
    const keys = Array.from({ length: prng.below(8) }, () => this.#key(collection));
    const bytes = keys.map((key) => collection.slot.keys[key]);
    const expected = keys.map((key) => model.versionAt(id, key, when.T)?.value);
    const what = `many of ${id} at ${when.T}`;
    const visible = this.#visible;
    const check = (found: (Buffer | undefined)[]): void => {
      found.forEach((value, i) => this.#compare(what, value, expected[i]));
    };
    if (prng.chance(0.5)) {
      this.#await(this.#handle(id).getMany(bytes, when.options), what, check, (error) =>
        this.#checkLost(error, id, when, visible),
      );
      return;
    }
    try {
      check(this.#handle(id).getManySync(bytes, when.options));
    } catch (error) {
      this.#checkLost(error, id, when, visible);
    }
  }

  #compare(what: string, found: Buffer | undefined, expected: Buffer | undefined): void {
    this.#note(what, found === undefined ? -1 : found.length);
    this.compared++;
    if (found === undefined && expected === undefined) return;
    if (found !== undefined && expected !== undefined && found.equals(expected)) return;
    throw new SimFailure(`${what}: found ${show(found)}, not ${show(expected)}`);
  }

  // ---------------------------------------------------------------- ranges

  #range(collection: ModelCollection, when: When): OpenIterator | undefined {
    const { prng, model } = this.#parts;
    const { id, slot } = collection;
    const bound = (): Buffer =>
      prng.chance(0.7) ? prng.pick(slot.keys) : (prng.fill(Buffer.alloc(prng.below(4))) as Buffer);
    const range: {
      -readonly [K in keyof RangeOptions<Buffer>]: RangeOptions<Buffer>[K];
    } = { ...when.options };
    let lower: Buffer | undefined;
    let upper: Buffer | undefined;
    const after = (key: Buffer): Buffer => Buffer.concat([key, Buffer.alloc(1)]);
    if (prng.chance(0.4)) {
      const key = bound();
      if (prng.chance(0.5)) {
        range.gte = key;
        lower = key;
      } else {
        range.gt = key;
        lower = after(key);
      }
    }
    if (prng.chance(0.4)) {
      const key = bound();
      if (prng.chance(0.5)) {
        range.lt = key;
        upper = key;
      } else {
        range.lte = key;
        upper = after(key);
      }
    }
    const isReverse = prng.chance(0.4);
    if (isReverse) range.reverse = true;
    let expected = model.rowsAt(id, when.T, lower, upper);
    if (isReverse) expected.reverse();
    if (prng.chance(0.3)) {
      range.limit = prng.below(expected.length + 3);
      expected = expected.slice(0, range.limit);
    }
    const what = `range of ${id} at ${when.T}${isReverse ? ' reversed' : ''}`;
    try {
      const rows = this.#handle(id).entries(range);
      when.held?.read.add(id);
      return { rows, expected, what, at: 0 };
    } catch (error) {
      this.#checkLost(error, id, when, this.#visible);
      return undefined;
    }
  }

  /** Takes up to `count` rows; true while there are more. */
  #pull(open: OpenIterator, count: number): boolean {
    for (let i = 0; i < count; i++) {
      let next: IteratorResult<[Buffer, Buffer]>;
      try {
        next = open.rows.next();
      } catch (error) {
        if (!this.#isFailedRead(error)) throw error;
        open.rows.return();
        return false;
      }
      const expected = open.expected[open.at];
      if (next.done === true) {
        if (expected === undefined) {
          this.#note(open.what, open.at);
          return false;
        }
        throw new SimFailure(
          `${open.what}: ends after ${open.at} of ${open.expected.length} rows, before ${show(expected.key)}`,
        );
      }
      const [key, value] = next.value;
      if (expected === undefined) {
        throw new SimFailure(`${open.what}: a row too many, ${show(key)}`);
      }
      if (!key.equals(expected.key)) {
        throw new SimFailure(
          `${open.what}: row ${open.at} is ${show(key)}, not ${show(expected.key)}`,
        );
      }
      if (!value.equals(expected.value)) {
        throw new SimFailure(
          `${open.what}: value of ${show(key)} is ${show(value)}, not ${show(expected.value)}`,
        );
      }
      open.at++;
      this.compared++;
    }
    return true;
  }

  range(): void {
    const { prng } = this.#parts;
    const when = this.#when();
    const readable = this.#readable(when);
    if (readable.length === 0) return;
    const open = this.#range(prng.pick(readable), when);
    if (open !== undefined) this.#pull(open, Infinity);
  }

  /** Opens an iterator, goes on with one, or drops one. */
  iterate(): void {
    const { prng } = this.#parts;
    if (this.#iterators.length > 0 && prng.chance(0.75)) {
      const at = prng.below(this.#iterators.length);
      const open = this.#iterators[at];
      const isDropped = prng.chance(0.1);
      if (isDropped) open.rows.return();
      else if (this.#pull(open, prng.between(1, 40))) return;
      this.#iterators.splice(at, 1);
      return;
    }
    if (this.#iterators.length >= HELD_MAX) return;
    const when = this.#when();
    const readable = this.#readable(when);
    if (readable.length === 0) return;
    const open = this.#range(prng.pick(readable), when);
    if (open !== undefined) this.#iterators.push(open);
  }

  // ---------------------------------------------------------------- holds

  snapshot(): void {
    const { prng, model } = this.#parts;
    if (this.#snapshots.length > 0 && prng.chance(0.4)) {
      const at = prng.below(this.#snapshots.length);
      this.#snapshots[at].snapshot.close();
      this.#snapshots.splice(at, 1);
      return;
    }
    if (this.#snapshots.length >= HELD_MAX) return;
    const visible = this.#visible;
    const given = visible > 0 && prng.chance(0.4);
    const T = given ? this.#time(visible) : visible - 1;
    const snapshot = new Snapshot(this.client, given ? T : NEWEST);
    if (snapshot.offset !== T) throw new SimFailure(`a snapshot at ${T} is at ${snapshot.offset}`);
    const mayBeLost = new Set<number>();
    for (const { id } of model.allAt(visible - 1)) {
      if (given && T < model.mayLoseBelow(id, visible)) mayBeLost.add(id);
    }
    this.#snapshots.push({ snapshot, T, visible, given, read: new Set(), mayBeLost });
  }

  // ---------------------------------------------------------------- requests

  flush(): void {
    const below = Math.max(this.durablePromised, this.writtenPromised);
    this.#await(
      this.client.flush(),
      'flush',
      () => {
        const { context, actors } = this.#parts.world;
        actors[2].publish();
        const { arena, topology } = context;
        const { flushedUpper } = readCounters(arena, topology.counters[2], KEEPER_COUNTERS);
        if (flushedUpper < below) {
          throw new SimFailure(`flush has ended at ${flushedUpper}, below ${below}`);
        }
      },
      ignoreBusy,
    );
  }

  compact(): void {
    const { prng } = this.#parts;
    const live = this.#live();
    const one = live.length > 0 && prng.chance(0.7) ? prng.pick(live).id : undefined;
    this.#await(this.client.compact(one), 'compact', () => {}, ignoreBusy);
  }

  backup(): void {
    if (!this.#parts.readOnly) this.#backups.act();
  }

  /** A backup that was made since the last call. */
  takeBackup(): Copy | undefined {
    const { made } = this.#backups;
    this.#backups.made = undefined;
    return made;
  }

  multiset(): void {
    const { model, readOnly, settings, prng } = this.#parts;
    const live = model.multisetsAt(this.#visible - 1);
    if (live.length === 0 && !readOnly) {
      this.#alterCatalog(prng.pick(settings.slots.filter(({ values }) => values !== undefined)));
      return;
    }
    this.#multisets.act(live, !readOnly, this.unsettled < 200);
  }

  /** Follows what changes. */
  follow(): void {
    const visible = this.#visible;
    this.#following.act(this.#parts.model.allAt(visible - 1), visible);
  }

  /** Everything is settled: no feed sleeps over what is there. */
  checkAsleep(): void {
    this.#following.checkAsleep(this.client.logged());
  }

  checkpoint(): void {
    const below = Math.max(this.durablePromised, this.writtenPromised);
    this.#await(
      this.client.checkpoint(),
      'checkpoint',
      () => {
        const { disk } = this.#parts.world.storage;
        if (disk.queued > 0) return;
        const copy = disk.clone();
        copy.fault = undefined;
        const upper = loadManifest(copy)?.head.flushed.upper ?? -1;
        if (upper < below) throw new SimFailure(`a checkpoint at ${upper}, below ${below}`);
      },
      ignoreBusy,
    );
  }

  /** Waits until some offset is durable, or seen, or until there is room. */
  wait(): void {
    const { prng, world } = this.#parts;
    if (prng.chance(0.2)) {
      this.#await(this.client.line.room(), 'room', () => {});
      return;
    }
    const { control } = world.context;
    const applied = control.applied();
    if (applied === 0 || this.unsettled > 200) return;
    const upper = Math.max(1, applied - prng.below(5));
    const durable = prng.chance(0.5);
    this.#await(this.client.frontierReached(upper, durable, undefined), 'wait', () => {
      const frontier = durable ? control.durable() : this.#visible;
      if (frontier < upper) throw new SimFailure(`waited for ${upper}, woken at ${frontier}`);
    });
  }

  // ---------------------------------------------------------------- collections

  catalog(): void {
    const { prng, settings } = this.#parts;
    this.#alterCatalog(prng.pick(settings.slots));
  }

  #alterCatalog(slot: Slot): void {
    const { prng, model, settings } = this.#parts;
    // One at a time, by one client: as the public face does.
    if (this.#parts.number !== 0 || this.#catalogBusy) return;
    const live = model.allAt(this.#visible - 1);
    const existing = live.find((collection) => collection.slot.name === slot.name);
    const key = catalogKey(slot.name);
    const history = prng.chance(0.6) ? settings.history : prng.pick([0, 1, 20, Infinity]);
    const stored = { offsets: history === Infinity ? null : history };
    const row = (id: number): CatalogRow => ({
      id,
      kind: slot.values === undefined ? KIND_KEYED : KIND_MULTISET,
      key: 'buffer',
      value: 'buffer',
      history: stored,
    });
    const tx = new Transaction(this.client);
    let catalog: CatalogChange;
    if (existing === undefined) {
      const id = this.#nextId();
      tx.put(this.#catalog, key, row(id)).put(this.#catalog, NEXT_ID_KEY, { next: id + 1 });
      catalog = { what: 'create', slot, id, history };
    } else if (prng.chance(0.3)) {
      tx.delete(this.#catalog, key);
      catalog = { what: 'drop', id: existing.id };
    } else if (prng.chance(0.3)) {
      tx.put(this.#catalog, key, row(existing.id));
      catalog = { what: 'history', id: existing.id, history };
    } else {
      return;
    }
    const { sync, options } = this.#sync();
    this.#submit({ ops: [], catalog }, sync, tx.commit(options));
    this.#note(`${catalog.what} ${catalog.what === 'create' ? history : ''}`, catalog.id);
  }

  #nextId(): number {
    const { model } = this.#parts;
    const { next } = (this.#catalog.getSync(NEXT_ID_KEY) ?? { next: 1 }) as { next: number };
    let expected = 1;
    for (const id of model.collections.keys()) expected = Math.max(expected, id + 1);
    if (next !== expected) throw new SimFailure(`the next collection is ${next}, not ${expected}`);
    return next;
  }

  /** What the engine says of itself. */
  look(): void {
    const { model, prng } = this.#parts;
    const visible = this.#visible;
    this.#checkCatalog(visible);
    if (prng.chance(0.5)) this.#checkTimes();
    const live = model.allAt(visible - 1);
    if (live.length === 0) return;
    const { id } = prng.pick(live);
    // Frontiers are of any kind.
    const handle = this.#handle(id);
    const bound = model.mayLoseBelow(id, visible);
    if (handle.since > bound) throw new SimFailure(`since of ${id} is ${handle.since} > ${bound}`);
    const expected = model.changed(id, visible);
    const { touched } = handle;
    this.#note(`touched ${id}`, touched);
    if (touched < expected || touched > visible) {
      throw new SimFailure(`touched of ${id} is ${touched}, not ${expected}, of ${visible}`);
    }
  }

  #checkCatalog(visible: number): void {
    const expected = this.#parts.model
      .allAt(visible - 1)
      .map(({ slot, id, histories }) => {
        const { history } = histories.findLast((entry) => entry.offset < visible)!;
        return `${slot.name} ${id} ${history}`;
      })
      .toSorted()
      .join();
    const found = Array.from(
      this.#catalog.entries({ gte: Buffer.from(ROWS_LOWER), lt: Buffer.from(ROWS_UPPER) }),
      ([key, value]) => {
        const { id, history } = value as CatalogRow;
        return `${nameOfCatalogKey(key)} ${id} ${history.offsets ?? Infinity}`;
      },
    )
      .toSorted()
      .join();
    if (found !== expected) throw new SimFailure(`collections are ${found}, not ${expected}`);
  }

  /** Everything that readers see now, and some of what they saw. */
  checkAll(hasPast: boolean = true): void {
    try {
      this.#checkAll(hasPast);
    } catch (error) {
      if (!this.#isFailedRead(error)) throw error;
    }
  }

  #checkAll(hasPast: boolean): void {
    const { model } = this.#parts;
    const visible = this.#visible;
    this.#checkCatalog(visible);
    const when: When = { options: {}, T: visible - 1, held: undefined };
    for (const { id } of model.multisetsAt(visible - 1)) {
      this.#multisets.checkAll(id, {}, visible - 1);
      if (!hasPast) continue;
      const T = Math.max(model.mayLoseBelow(id, visible), this.#time(visible));
      try {
        this.#multisets.checkAll(id, { asOf: T }, T);
      } catch (error) {
        this.#checkLost(error, id, { options: { asOf: T }, T, held: undefined }, visible);
      }
    }
    for (const collection of model.liveAt(visible - 1)) {
      const { id, slot } = collection;
      const rows = this.#handle(id);
      const expected = model.rowsAt(id, when.T);
      const what = `all of ${id} at ${when.T}`;
      this.#pull({ rows: rows.entries(), expected, what, at: 0 }, Infinity);
      const reversed = expected.toReversed();
      const back = rows.entries({ reverse: true });
      this.#pull({ rows: back, expected: reversed, what: `${what} reversed`, at: 0 }, Infinity);
      const bound = model.mayLoseBelow(id, visible);
      for (let n = 0; n < 3 && visible > 0 && hasPast; n++) {
        const T = Math.max(bound, this.#time(visible));
        const then = `all of ${id} at ${T}`;
        const past = model.rowsAt(id, T);
        try {
          const open = rows.entries({ asOf: T });
          this.#pull({ rows: open, expected: past, what: then, at: 0 }, Infinity);
        } catch (error) {
          this.#checkLost(error, id, { options: { asOf: T }, T, held: undefined }, visible);
        }
      }
      for (let key = 0; key < slot.keys.length; key += Math.max(1, slot.keys.length >> 5)) {
        const version = model.versionAt(id, key, when.T);
        const found = rows.getEntrySync(slot.keys[key]);
        this.#compare(`${what} key ${key}`, found?.value, version?.value);
        if (found !== undefined && found.offset !== version!.offset) {
          throw new SimFailure(
            `${what}: ${key} changed at ${found.offset}, not ${version!.offset}`,
          );
        }
      }
    }
  }

  /** A poisoned or closed engine refuses, and says why. */
  expectRefusal(code: string): void {
    const { model } = this.#parts;
    const [collection] = model.collections.values();
    if (collection === undefined) return;
    try {
      this.#handle(collection.id).getSync(collection.slot.keys[0]);
    } catch (error) {
      if (isCode(error, code)) return;
      throw error;
    }
    throw new SimFailure(`a read was answered that should have been refused with ${code}`);
  }

  /** Lets go of every snapshot and iterator. */
  letGo(): void {
    for (const { snapshot } of this.#snapshots.splice(0)) snapshot.close();
    for (const { rows } of this.#iterators.splice(0)) rows.return();
    this.#following.letGo();
    this.#multisets.letGo();
    this.#backups.letGo();
  }

  // ---------------------------------------------------------------- promises

  #await<R>(
    promise: Promise<R>,
    what: string,
    check: (result: R) => void,
    refused?: (error: unknown) => void,
  ): void {
    const { world } = this.#parts;
    const number = this.#nextPromise++;
    this.#waiting.set(number, what);
    promise
      .then(
        (result) => {
          this.#waiting.delete(number);
          this.#note(what, 1);
          check(result);
        },
        (error: unknown) => {
          this.#waiting.delete(number);
          this.#note(`${what}: ${codeOf(error)}`, 0);
          const isOver = isCode(error, 'TIDEMARK_POISONED') || isCode(error, 'TIDEMARK_CLOSED');
          if (isOver && !world.isOpen) return;
          if (refused === undefined) throw error;
          refused(error);
        },
      )
      .catch((error: unknown) => this.#broke(error));
  }

  /** The first thing that a promise's answer got wrong. */
  broken: unknown = undefined;

  #broke(error: unknown): void {
    this.broken ??= error;
  }

  #note(what: string, n: number): void {
    this.#parts.trace.mix(n + 1);
    this.#parts.trace.note(() => `  ${this.#parts.number} ${what} ${n}`);
  }
}

const WRITES: ReadonlySet<keyof ActWeights> = new Set([
  'put',
  'remove',
  'removeRange',
  'transaction',
  'conditional',
  'transact',
  'burst',
  'flush',
  'compact',
  'checkpoint',
  'catalog',
]);

function isCode(error: unknown, code: string): boolean {
  return error instanceof TidemarkError && error.code === code;
}

function codeOf(error: unknown): string {
  return error instanceof TidemarkError ? error.code : String(error);
}

function ignoreBusy(error: unknown): void {
  if (!isCode(error, 'TIDEMARK_BUSY')) throw error;
}

function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function show(bytes: Buffer | undefined): string {
  if (bytes === undefined) return 'nothing';
  return `${bytes.subarray(0, 12).toString('hex')} (${bytes.length} bytes)`;
}
