/**
 * A thread's handle on an engine: its commit line, its reader, its holds, its requests to the keeper,
 * and the one bell it waits on without ever blocking. Collections, transactions and snapshots work
 * through it. Lives on the thread that opened or attached.
 */
import { invariant } from '../core/base/assert.ts';
import { TidemarkError, codeOfNumber, describeCode } from '../core/base/errors.ts';
import { keyBytesMax } from '../core/base/limits.ts';
import type { Bell } from '../core/shared/bell.ts';
import { STATE_CLOSED, STATE_CLOSING, STATE_OPEN, STATE_POISONED } from '../core/shared/control.ts';
import { SLOT_HOLD_WORD, SLOT_LOG_HOLD_WORD, storeHold } from '../core/shared/epoch.ts';
import type { RingConsumer } from '../core/shared/ring.ts';
import { Outbox, inboxOf } from './actor.ts';
import type { ActorContext } from './actor.ts';
import type { Archive } from './archive.ts';
import { ClientStorage } from './client-storage.ts';
import { CommitLine, poisonedError } from './commit-line.ts';
import type { Codec } from './encodings.ts';
import { encodeInto, encodedBy, isOurs, tooLarge } from './encodings.ts';
import { FeedHub } from './feed-hub.ts';
import { poison } from './host.ts';
import {
  ARCHIVE,
  DONE,
  KIND_WORD,
  MSG_ARCHIVE,
  MSG_ARCHIVED,
  MSG_BACKUP,
  MSG_BACKUP_END,
  MSG_CHECKPOINT,
  MSG_COMPACT,
  MSG_COMPACT_END,
  MSG_DONE,
  MSG_FLUSH,
  REQUEST,
} from './messages.ts';
import { LogTimes } from './log-times.ts';
import type { ArchiveRequest } from './old-segments.ts';
import { PairReader } from './pair-reader.ts';
import { NEWEST, Reader, historyLost } from './reader.ts';
import { SpareBuffers } from './spare-buffers.ts';
import { readText } from './text-blocks.ts';
import { THREAD_BACKGROUND } from './topology.ts';
import { FRONTIER_DURABLE, FRONTIER_VISIBLE } from './waiter.ts';
import type { Waiter } from './waiter.ts';

/** Look again this often while something is awaited, should a wake-up ever be lost. */
const WAIT_MS = 1_000;

/** A time that is held, by whom and since when. */
export type HeldTime = { readonly T: number; readonly owner: string; readonly sinceMs: number };

type Pending = { readonly resolve: () => void; readonly reject: (error: unknown) => void };

/** How a client is woken: by its bell, or by the inline host that runs on the same thread. */
export type ClientHooks = {
  /** Inline: there is work for the actors. Undefined: they have threads of their own. */
  readonly kick: (() => void) | undefined;
  /** Runs a function at the end of the turn. */
  readonly endOfTurn: (run: () => void) => void;
  /** Runs a function in the next turn, after whatever else is ready. */
  readonly nextTurn: (run: () => void) => void;
};

export class Client {
  readonly context: ActorContext;
  readonly number: number;
  readonly line: CommitLine;
  /** Reads of multisets. */
  readonly pairs: PairReader;
  readonly times: LogTimes;
  /** Of write sets that were committed. */
  readonly spareBuffers: SpareBuffers = new SpareBuffers();
  readonly reader: Reader;
  readonly #bell: Bell;
  readonly #hooks: ClientHooks;
  readonly #requests: Outbox;
  readonly #answers: RingConsumer;
  readonly #asked: Map<number, Pending> = new Map();
  #nextRequest = 1;
  readonly #waiters: Waiter[] = [];
  readonly #stateWaiters: { state: number; resolve: () => void }[] = [];
  #armed = false;
  #keepAlive: NodeJS.Timeout | undefined;
  /** Times at which states are to stay readable, and offsets above which the log is. */
  readonly #holds: HeldTimes;
  readonly #logHolds: HeldTimes;
  /** The archive hook; the thread that opened has it, if there is one. */
  readonly #archive: Archive | undefined;
  /** What the hook said and the keeper's ring had no room for. */
  #archived: { seq: number; ok: boolean } | undefined;
  /** What follows the log on this thread. */
  readonly feeds: FeedHub;
  /** Who holds for long: snapshots, iterators. A read that is under way holds without being here. */
  readonly held: Set<HeldTime> = new Set();
  /** Collections that were dropped through this client, each with the number of its drop. */
  readonly dropped: Map<number, number> = new Map();
  /** Number of the last drop. */
  drops = 0;
  readonly #keyScratch: KeyScratch = new KeyScratch();
  /** The state in which the handle ended; undefined while it is in use. */
  #ended: number | undefined;
  #turnScheduled = false;

  constructor(engineContext: ActorContext, number: number, hooks: ClientHooks, archive?: Archive) {
    const context = { ...engineContext, storage: new ClientStorage(engineContext.storage) };
    const place = context.topology.clients[number];
    const bell = context.clientBells[number];
    invariant(place !== undefined && bell !== undefined, 'a client slot', number);
    this.context = context;
    this.number = number;
    this.#bell = bell;
    this.#hooks = hooks;
    this.#archive = archive;
    const { kick } = hooks;
    this.#holds = new HeldTimes((T) => this.#publishHold(T, SLOT_HOLD_WORD));
    this.#logHolds = new HeldTimes((T) => this.#publishHold(T, SLOT_LOG_HOLD_WORD));
    this.feeds = new FeedHub(this);
    const { times } = this.#holds;
    this.reader =
      kick === undefined
        ? new Reader(context, number, times)
        : new Reader(context, number, times, { ring: kick });
    const { counters } = this.reader;
    this.line = new CommitLine(context, number, counters, hooks.endOfTurn, () => this.wake());
    this.pairs = new PairReader(context, this.reader);
    this.times = new LogTimes(context, this.reader);
    this.#requests = new Outbox(context, place.requests, context.threadBells[THREAD_BACKGROUND]);
    this.#answers = inboxOf(context, place.answers);
  }

  // ---------------------------------------------------------------- waiting

  get #pending(): boolean {
    return (
      this.line.pending ||
      this.#asked.size > 0 ||
      this.#waiters.length > 0 ||
      this.#stateWaiters.length > 0 ||
      (this.#archive !== undefined && this.context.control.state() < STATE_CLOSED)
    );
  }

  /** Whether what is awaited keeps the process alive. */
  get #keepsAlive(): boolean {
    return (
      this.line.pending ||
      this.#asked.size > 0 ||
      this.#stateWaiters.length > 0 ||
      this.#waiters.some(({ ref }) => ref)
    );
  }

  /** Something is awaited: let the actors work, and look when the bell rings. */
  wake(): void {
    if (this.#hooks.kick !== undefined) {
      this.#keepProcess(this.#keepsAlive);
      this.#hooks.kick();
      return;
    }
    if (this.#armed) {
      this.#keepProcess(this.#keepsAlive);
      return;
    }
    this.#armed = true;
    this.#wait();
  }

  #wait(): void {
    for (;;) {
      if (this.#ended !== undefined) return;
      const seen = this.#bell.park();
      // Published before the parked flag was up: nobody would ring for it.
      this.poll();
      if (!this.#pending) break;
      const rung = this.#bell.waitAsync(seen, WAIT_MS);
      if (rung === undefined) continue;
      this.#keepProcess(this.#keepsAlive);
      void rung.then(() => {
        if (this.#ended !== undefined) return;
        this.#bell.unpark();
        this.#wait();
      });
      return;
    }
    this.#bell.unpark();
    this.#armed = false;
    this.#keepProcess(false);
  }

  /** A pending wait does not keep a process alive by itself; a timer does. */
  #keepProcess(alive: boolean): void {
    if (alive) {
      this.#keepAlive ??= setInterval(() => {}, 0x7fff_ffff);
      this.#keepAlive.ref();
      return;
    }
    this.#keepAlive?.unref();
  }

  /** Takes what has come. Called when the bell rings, or after a slice of the inline host. */
  poll(): void {
    try {
      const pushed = this.line.poll();
      this.#takeAnswers();
      if (this.#archived !== undefined) this.#tellArchived(this.#archived.seq, this.#archived.ok);
      this.#settleWaiters();
      if (this.line.hasMoreToSettle && !this.#turnScheduled) {
        this.#turnScheduled = true;
        this.#hooks.nextTurn(this.#nextTurn);
      }
      if (this.#hooks.kick !== undefined) {
        this.#keepProcess(this.#keepsAlive);
        if (pushed) this.#hooks.kick();
      }
    } catch (error) {
      poison(this.context, error);
      this.line.poll();
      this.#hooks.kick?.();
    }
  }

  /** Resolves in a later turn of whoever drives this client. */
  turn(): Promise<void> {
    return new Promise((resolve) => this.#hooks.nextTurn(resolve));
  }

  readonly #nextTurn = (): void => {
    this.#turnScheduled = false;
    if (this.#ended === undefined) this.poll();
  };

  #takeAnswers(): void {
    const { u32 } = this.#answers;
    for (let slot = this.#answers.peek(); slot >= 0; slot = this.#answers.peek()) {
      if (u32[slot + KIND_WORD] === MSG_ARCHIVE) {
        const { arena } = this.context;
        const text = readText(arena, u32[slot + ARCHIVE.ADDRESS], u32[slot + ARCHIVE.BYTES]);
        this.#answers.pop();
        invariant(this.#archive !== undefined, 'the keeper asks who has a hook');
        this.#archive.run(JSON.parse(text) as ArchiveRequest, (seq, ok) =>
          this.#tellArchived(seq, ok),
        );
        continue;
      }
      invariant(u32[slot + KIND_WORD] === MSG_DONE, 'the keeper answers requests');
      const number = u32[slot + DONE.NUMBER];
      const refusal = u32[slot + DONE.REFUSAL];
      const asked = this.#asked.get(number);
      invariant(asked !== undefined, 'a request is answered once', number);
      this.#asked.delete(number);
      this.#answers.pop();
      if (refusal === 0) {
        asked.resolve();
        continue;
      }
      const code = codeOfNumber(refusal);
      asked.reject(new TidemarkError(code, describeCode(code)));
    }
  }

  #settleWaiters(): void {
    const { control } = this.context;
    const state = control.state();
    if (this.#waiters.length > 0) {
      const visible = this.reader.visible();
      const durable = control.durable();
      const logged = Math.min(visible, control.written());
      for (let i = 0; i < this.#waiters.length; i++) {
        const waiter = this.#waiters[i];
        const { frontier } = waiter;
        const reached =
          frontier === FRONTIER_VISIBLE
            ? visible
            : frontier === FRONTIER_DURABLE
              ? durable
              : logged;
        if (waiter.upper <= reached) waiter.resolve();
        else if (state >= STATE_CLOSED) waiter.reject(this.#overError(state));
        else continue;
        this.#waiters.splice(i--, 1);
      }
    }
    for (let i = 0; i < this.#stateWaiters.length; i++) {
      const waiter = this.#stateWaiters[i];
      if (state < waiter.state) continue;
      waiter.resolve();
      this.#stateWaiters.splice(i--, 1);
    }
    if (state >= STATE_CLOSED && this.#asked.size > 0) {
      const error = this.#overError(state);
      for (const asked of this.#asked.values()) asked.reject(error);
      this.#asked.clear();
    }
  }

  #overError(state: number): TidemarkError {
    return state === STATE_POISONED
      ? poisonedError(this.context)
      : new TidemarkError('TIDEMARK_CLOSED', 'the engine is closed');
  }

  /** Resolves when the engine's state is `state` or beyond. */
  stateReached(state: number): Promise<void> {
    if (this.context.control.state() >= state) return Promise.resolve();
    return new Promise((resolve) => {
      this.#stateWaiters.push({ state, resolve });
      this.wake();
    });
  }

  /** Resolves when all offsets below `upper` are durable, or visible to readers. */
  frontierReached(upper: number, durable: boolean, signal: AbortSignal | undefined): Promise<void> {
    this.assertUsable();
    signal?.throwIfAborted();
    const reached = durable ? this.context.control.durable() : this.reader.visible();
    if (reached >= upper) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        reject(signal!.reason as Error);
      };
      // A signal outlives many waits: each takes its listener along.
      const settled = (): void => signal?.removeEventListener('abort', onAbort);
      const waiter: Waiter = {
        upper,
        frontier: durable ? FRONTIER_DURABLE : FRONTIER_VISIBLE,
        ref: true,
        resolve: () => {
          settled();
          resolve();
        },
        reject: (error) => {
          settled();
          reject(error);
        },
      };
      this.#waiters.push(waiter);
      signal?.addEventListener('abort', onAbort, { once: true });
      this.wake();
    });
  }

  /** Calls `resolve` once the frontier has reached `upper`, or `reject` when it never will. */
  await(waiter: Waiter): void {
    this.#waiters.push(waiter);
    this.wake();
  }

  /** Nobody waits for it any more. */
  forget(waiter: Waiter): void {
    const at = this.#waiters.indexOf(waiter);
    if (at < 0) return;
    this.#waiters.splice(at, 1);
    this.#keepProcess(this.#keepsAlive);
  }

  /** First offset that is not both seen by readers and in the log's file. */
  logged(): number {
    // Visible first: in a buffered engine `written` follows it.
    return Math.min(this.reader.visible(), this.context.control.written());
  }

  // ---------------------------------------------------------------- requests

  /** Everything committed so far goes into parts. */
  async flush(): Promise<void> {
    this.assertUsable();
    // Requests go by another ring than records, and would overtake them.
    await this.line.sequenced();
    await this.#request(MSG_FLUSH, 0, false);
  }

  /** The same for an engine that takes no more commits: the next open need not replay them. */
  async flushLast(): Promise<void> {
    await this.line.sequenced();
    await this.#send(MSG_FLUSH, 0, false);
  }

  /** Flushes, and rolls the manifest up: what the log holds of it is needed no more. */
  async checkpoint(): Promise<void> {
    this.assertUsable();
    await this.line.sequenced();
    await this.#request(MSG_CHECKPOINT, 0, false);
  }

  /**
   * A checkpoint whose parts, and the log from it on, stay as they are until `endBackup` with what this
   * resolves with. It is written down in the file backupStatePath(0, that).
   */
  async beginBackup(): Promise<number> {
    this.assertUsable();
    await this.line.sequenced();
    const number = this.#nextRequest;
    await this.#request(MSG_BACKUP, 0, false);
    return number;
  }

  endBackup(number: number): Promise<void> {
    return this.#request(MSG_BACKUP_END, number, false);
  }

  /** Rejects at once when `signal` aborts; jobs that were sent for this alone are then cancelled. */
  async compact(collection: number | undefined, signal?: AbortSignal): Promise<void> {
    const number = this.#nextRequest;
    const done = this.#request(MSG_COMPACT, collection ?? 0, collection === undefined);
    if (signal === undefined) return done;
    await new Promise<void>((resolve, reject) => {
      const onAbort = (): void => {
        // Whether it is heard or not, who waits is told now.
        done.catch(() => {});
        this.#send(MSG_COMPACT_END, number, false).catch(() => {});
        reject(signal.reason as Error);
      };
      signal.addEventListener('abort', onAbort, { once: true });
      const end = (settle: () => void): void => {
        signal.removeEventListener('abort', onAbort);
        settle();
      };
      done.then(
        () => end(resolve),
        (error: Error) => end(() => reject(error)),
      );
    });
  }

  #request(kind: number, collection: number, whole: boolean): Promise<void> {
    this.assertUsable();
    return this.#send(kind, collection, whole);
  }

  #send(kind: number, collection: number, whole: boolean): Promise<void> {
    const slot = this.#requests.claim();
    if (slot < 0) {
      const busy = new TidemarkError('TIDEMARK_BUSY', 'too many requests are under way');
      return Promise.reject(busy);
    }
    const number = this.#nextRequest++;
    const { u32 } = this.#requests.ring;
    u32[slot + KIND_WORD] = kind;
    u32[slot + REQUEST.NUMBER] = number;
    u32[slot + REQUEST.COLLECTION] = collection;
    u32[slot + REQUEST.WHOLE] = whole ? 1 : 0;
    return new Promise((resolve, reject) => {
      this.#asked.set(number, { resolve, reject });
      this.#requests.send();
      this.wake();
    });
  }

  /** What the archive hook said of a segment; told again when the ring has no room now. */
  #tellArchived(seq: number, ok: boolean): void {
    this.#archived = undefined;
    if (this.#ended !== undefined || this.context.control.state() >= STATE_CLOSED) return;
    const slot = this.#requests.claim();
    if (slot < 0) {
      this.#archived = { seq, ok };
      return;
    }
    const { u32 } = this.#requests.ring;
    u32[slot + KIND_WORD] = MSG_ARCHIVED;
    u32[slot + REQUEST.NUMBER] = 0;
    u32[slot + REQUEST.COLLECTION] = seq;
    u32[slot + REQUEST.WHOLE] = ok ? 1 : 0;
    this.#requests.send();
    this.wake();
  }

  // ---------------------------------------------------------------- state

  /** Throws unless reads and writes are answered. */
  assertUsable(): void {
    // The arena may be another engine's by now.
    if (this.#ended !== undefined) throw this.#overError(this.#ended);
    const state = this.context.control.state();
    if (state === STATE_OPEN) return;
    if (state === STATE_POISONED) throw poisonedError(this.context);
    const what = state === STATE_CLOSING ? 'closing' : 'closed';
    throw new TidemarkError('TIDEMARK_CLOSED', `the engine is ${what}`);
  }

  // ---------------------------------------------------------------- holds

  /** Keeps history from `T` on, until `release(T)`. The caller checks that it was still there. */
  hold(T: number): void {
    this.#holds.add(T);
  }

  release(T: number): void {
    this.#holds.remove(T);
  }

  /** Keeps the log above `T`, likewise. */
  holdLog(T: number): void {
    this.#logHolds.add(T);
  }

  releaseLog(T: number): void {
    this.#logHolds.remove(T);
  }

  #publishHold(T: number, word: number): void {
    if (this.#ended !== undefined) return;
    const { arena, topology } = this.context;
    storeHold(arena, topology.clients[this.number].slot, T, word);
  }

  isHeld(T: number): boolean {
    return this.#holds.times.has(T);
  }

  get holdCount(): number {
    let count = 0;
    for (const n of this.#holds.times.values()) count += n;
    return count;
  }

  get oldestHold(): number {
    return this.#holds.lowest;
  }

  /**
   * Holds the time of a read that will come back to it: `asOf`, or the newest. Throws when a collection
   * asked for may lose it: the hold is published first, then the view is looked at (row-cache.md 3.4).
   */
  holdFor(collection: number, asOf: number): number {
    const { reader } = this;
    for (;;) {
      reader.enter(collection, asOf);
      try {
        const { T } = reader;
        // Before everything there is nothing to hold.
        if (T < 0) return T;
        const wasHeld = this.isHeld(T);
        this.hold(T);
        // What has been kept until now stays.
        if (wasHeld) return T;
        const view = reader.reloadView();
        const block = view.collection(collection);
        const since = block === 0 ? 0 : view.sinceNext(block);
        if (T >= since) return T;
        this.release(T);
        if (asOf !== NEWEST) throw historyLost(asOf, since);
        // History moved on between the choice of the newest time and its hold: a newer one, then.
      } finally {
        reader.leave();
      }
    }
  }

  /** Encodes a key into scratch memory; returns its length. Valid until the next call. */
  encodeKey<K>(codec: Codec<K>, key: K): number {
    return this.#keyScratch.encode(codec, key);
  }

  get keyBytes(): Buffer {
    return this.#keyScratch.bytes;
  }

  /** Ends the handle: nothing is awaited any more. */
  dispose(): void {
    this.#ended = this.context.control.state();
    this.#archive?.end(this.#overError(this.#ended));
    this.feeds.end(this.#overError(this.#ended));
    this.line.dispose(this.#overError(this.#ended));
    this.reader.close();
    clearInterval(this.#keepAlive);
    this.#keepAlive = undefined;
  }
}

/** Times that are held, each as often as it was added; tells of the lowest when that changes. */
class HeldTimes {
  readonly times: Map<number, number> = new Map();
  readonly #tell: (lowest: number) => void;
  /** -1: none. */
  lowest = -1;

  constructor(tell: (lowest: number) => void) {
    this.#tell = tell;
  }

  add(T: number): void {
    this.times.set(T, (this.times.get(T) ?? 0) + 1);
    if (this.lowest >= 0 && this.lowest <= T) return;
    this.lowest = T;
    this.#tell(T);
  }

  remove(T: number): void {
    const count = this.times.get(T);
    invariant(count !== undefined, 'released as often as held', T);
    if (count > 1) {
      this.times.set(T, count - 1);
      return;
    }
    this.times.delete(T);
    if (T !== this.lowest) return;
    this.lowest = -1;
    for (const held of this.times.keys()) {
      if (this.lowest < 0 || held < this.lowest) this.lowest = held;
    }
    this.#tell(this.lowest);
  }
}

/** Scratch memory for one encoded key. */
class KeyScratch {
  bytes: Buffer = Buffer.allocUnsafe(1_024);

  encode<K>(codec: Codec<K>, key: K): number {
    const { bytes } = this;
    // A codec may read from the engine, and that read uses the scratch too.
    if (!isOurs(codec)) this.bytes = Buffer.allocUnsafe(bytes.length);
    const n = encodeInto(codec, key, bytes, 0);
    this.bytes = bytes;
    if (n > keyBytesMax) throw tooLarge('key', n, keyBytesMax);
    if (n >= 0) return n;
    const encoded = encodedBy(codec, key);
    if (encoded.length > keyBytesMax) throw tooLarge('key', encoded.length, keyBytesMax);
    if (encoded.length > this.bytes.length) this.bytes = Buffer.allocUnsafe(keyBytesMax);
    this.bytes.set(encoded);
    return encoded.length;
  }
}
