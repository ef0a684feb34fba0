/**
 * A write set over any collections, committed as a whole under one offset. Values are encoded when an
 * operation is added, so the caller may change them afterwards; later operations on a key win. Public;
 * lives on its client's thread.
 */
import type { Client } from './client.ts';
import type { BaseCollection } from './base-collection.ts';
import { checkCommit, checkExpect, putMeta } from './collection.ts';
import type { Collection, CommitOptions } from './collection.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { rangeToDelete } from './key-range.ts';
import type { KeyBounds } from './key-range.ts';
import { refusedNow } from './commit-line.ts';
import type { Receipt } from './commit-line.ts';
import { Feed } from './feed.ts';
import type { Multiset } from './multiset.ts';
import { SMALL_BYTES } from './spare-buffers.ts';
import { WriteSet } from './write-set.ts';

export class Transaction {
  readonly #client: Client;
  readonly #set: WriteSet;
  #committed = false;
  /** What to tell feeds whose place is in it, once it is committed. */
  #acks: (() => void)[] | undefined;

  /** @internal */
  constructor(client: Client) {
    client.assertUsable();
    this.#client = client;
    this.#set = new WriteSet(SMALL_BYTES, client.spareBuffers);
    this.#set.begin();
  }

  /** Operations so far. */
  get size(): number {
    return this.#set.operations;
  }

  put<K, V>(collection: Collection<K, V>, key: NoInfer<K>, value: NoInfer<V>): this {
    this.#assertOpen();
    collection.assertOf(this.#client);
    collection.assertThere();
    if (collection.kind !== 'keyed') throw ofOtherKind(collection);
    this.#set.put(collection.id, collection.keyCodec, key, collection.valueCodec, value);
    return this;
  }

  /** Adds `diff` to how often a multiset has the value at the key; a safe integer other than 0. */
  update<K, V>(collection: Multiset<K, V>, key: NoInfer<K>, value: NoInfer<V>, diff: number): this {
    this.#assertOpen();
    collection.assertOf(this.#client);
    collection.assertThere();
    if (collection.kind !== 'multiset') throw ofOtherKind(collection);
    const { id, keyCodec, valueCodec } = collection;
    this.#set.update(id, keyCodec, key, valueCodec, value, diff);
    return this;
  }

  delete<K, V>(collection: Collection<K, V>, key: NoInfer<K>): this {
    this.#assertOpen();
    collection.assertOf(this.#client);
    collection.assertThere();
    if (collection.kind !== 'keyed') throw ofOtherKind(collection);
    this.#set.delete(collection.id, collection.keyCodec, key);
    return this;
  }

  /** Sets a collection's own bytes, at most 64 KiB. */
  setMeta(collection: BaseCollection<any, any>, bytes: Uint8Array): this {
    this.#assertOpen();
    collection.assertOf(this.#client);
    collection.assertThere();
    putMeta(this.#set, collection.id, bytes);
    return this;
  }

  /**
   * Removes every row whose key is in the bounds, `{}` for all of the collection: what it holds when the
   * transaction takes its place in the order, and what this transaction wrote there before. Later
   * operations on keys of the range win. One operation, however many rows. Without a key in it, nothing.
   */
  deleteRange<K>(collection: BaseCollection<K, any>, bounds: KeyBounds<NoInfer<K>>): this {
    this.#assertOpen();
    collection.assertOf(this.#client);
    collection.assertThere();
    const range = rangeToDelete(bounds, collection.keyCodec);
    if (range !== undefined) this.#set.deleteRange(collection.id, range);
    return this;
  }

  /**
   * Confirms what a feed with a cursor has handed out, up to `offset`, with everything else in here or not
   * at all: effect and place in one commit, so that each item takes effect exactly once.
   */
  ack(feed: Feed<any>, offset: number): this {
    this.#assertOpen();
    if (!(feed instanceof Feed)) throw new TypeError('ack takes a feed');
    const acked = feed.ackInto(this.#client, this.#set, offset);
    if (acked !== undefined) (this.#acks ??= []).push(acked);
    return this;
  }

  /**
   * Commits everything under one offset. An empty transaction resolves with the newest visible offset
   * and uses none. A transaction commits once; a second call is a TypeError, unless the first was refused
   * before it was sent. What TIDEMARK_CONFLICT says of it is final: read again, and build another.
   *
   * Limits: 64 MiB and a quarter of the write budget, and as many operations as fit a part of the memory
   * for writes, however small they are; beyond, TIDEMARK_TOO_LARGE with `detail.limit`.
   */
  commit(options?: CommitOptions): Promise<Receipt> {
    const { reader, line } = this.#client;
    try {
      this.#assertOpen();
      this.#set.assertNotEncoding();
      this.#client.assertUsable();
      const sync = checkCommit(this.#client, options);
      const conditions = checkExpect(this.#client, options);
      if (this.#set.operations === 0) {
        const conflict = conditions?.check();
        if (conflict !== undefined) throw conflict;
        this.#committed = true;
        return Promise.resolve({ offset: reader.visible() - 1 });
      }
      const committed = line.commitSet(this.#set, sync, conditions);
      this.#committed = true;
      this.#set.release();
      return this.#telling(committed);
    } catch (error) {
      // Wherever it was found, a conflict ends the transaction.
      if (error instanceof TidemarkError && error.code === 'TIDEMARK_CONFLICT') {
        this.#committed = true;
      }
      // Else nothing was claimed: the caller may commit it again, after TIDEMARK_BUSY for one.
      return refusedNow(error);
    }
  }

  /** @internal As `commit`; undefined when it would have to wait for room, and then nothing has happened. */
  tryCommit(client: Client, options?: CommitOptions): Promise<Receipt> | undefined {
    if (client !== this.#client) throw new TypeError("this is another engine's transaction");
    try {
      client.assertUsable();
    } catch (error) {
      return refusedNow(error);
    }
    const isWaiting = !this.#committed && this.#set.operations > 0 && !client.line.askRoom();
    return isWaiting ? undefined : this.commit(options);
  }

  /** @internal What was written so far. */
  get set(): WriteSet {
    return this.#set;
  }

  /** @internal Nothing more is written, and nobody else commits it. */
  end(): void {
    this.#committed = true;
  }

  /** @internal It is committed: tells the feeds that are confirmed in it. */
  tell(): void {
    if (this.#acks !== undefined) for (const acked of this.#acks) acked();
  }

  #telling(committed: Promise<Receipt>): Promise<Receipt> {
    if (this.#acks === undefined) return committed;
    const told = committed.then((receipt) => {
      this.tell();
      return receipt;
    });
    // As of any commit: one that nobody awaits must not end the process when it fails.
    told.catch(() => {});
    return told;
  }

  #assertOpen(): void {
    if (this.#committed) throw new TypeError('the transaction has been committed');
  }
}

/** What only code without types comes to. */
function ofOtherKind({ name, kind }: { readonly name: string; readonly kind: string }): TypeError {
  const how = kind === 'multiset' ? 'a multiset: use update' : 'keyed: use put and delete';
  return new TypeError(`${name} is ${how}`);
}
