/**
 * Hands the commits that recovery reads to the sequencer, laid into pages as a client lays them. Only what
 * is proven durable is fed, and both frontiers go with it. Part of durability, on its thread.
 */
import { invariant } from '../core/base/assert.ts';
import { getU32 } from '../core/base/bytes.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { pageBytes } from '../core/base/limits.ts';
import { TX_BYTES_OFFSET, TX_COUNT_OFFSET } from '../core/base/update.ts';
import type { RecordHeader } from '../core/log/record.ts';
import { KIND_RECORD } from '../core/shared/buffer-pool.ts';
import { layChained, pagesFor, releaseChain } from '../core/shared/record-pages.ts';
import { Outbox } from './actor.ts';
import type { ActorContext } from './actor.ts';
import {
  KIND_WORD,
  MSG_RECORD,
  MSG_REPLAY_BEGIN,
  MSG_REPLAY_END,
  RECORD,
  RECORD_CHAINED,
  REPLAY,
  setWide,
} from './messages.ts';
import { THREAD_WRITE } from './topology.ts';

/** A page that records were laid into; let go once the sequencer holds it. */
type ReplayPage = { address: number; chained: boolean; upper: number };

export class ReplayFeed {
  readonly #context: ActorContext;
  readonly #sequencer: Outbox;
  readonly #pages: ReplayPage[] = [];
  /** Where the next record goes in the page that is filled; 0: none is. */
  #page = 0;
  #at = 0;

  constructor(context: ActorContext) {
    const bell = context.threadBells[THREAD_WRITE];
    this.#context = context;
    this.#sequencer = new Outbox(context, context.topology.replay, bell);
  }

  /** Replay begins at offset `next`: what is below is in parts. */
  begin(next: number, epoch: number, atMs: number): void {
    this.#advance(next);
    this.#tell(MSG_REPLAY_BEGIN, next, epoch, atMs);
  }

  /** There is room to say that replay is over. */
  get canEnd(): boolean {
    return this.#sequencer.ring.room(1) > 0;
  }

  /** All up to `next` was fed, or there is nothing more. */
  end(next: number, epoch: number, atMs: number): void {
    this.#page = 0;
    this.#tell(MSG_REPLAY_END, next, epoch, atMs);
  }

  /** Feeds one verified record. False: there is no room for it yet. */
  feed(record: RecordHeader, source: Uint8Array, offset: number, length: number): boolean {
    // One slot is kept for the end of replay.
    if (this.#sequencer.ring.room(2) < 2) return false;
    const address = this.#lay(source, offset, length, record.txCount);
    if (address === 0) {
      this.#refuseHopeless(record, length);
      this.#context.control.setPagesWanted(true);
      return false;
    }
    const upper = record.minTxOffset + record.txCount;
    this.#pages.at(-1)!.upper = upper;
    const slot = this.#sequencer.claim();
    const { u32 } = this.#sequencer.ring;
    u32[slot + KIND_WORD] = MSG_RECORD;
    u32[slot + RECORD.ADDRESS] = address;
    u32[slot + RECORD.PAYLOAD_BYTES] = length;
    u32[slot + RECORD.TX_COUNT] = record.txCount;
    u32[slot + RECORD.PAYLOAD_CRC] = record.payloadCrc;
    u32[slot + RECORD.OPERATIONS] = countOperations(source, offset, record.txCount);
    u32[slot + RECORD.FLAGS] = length > pageBytes ? RECORD_CHAINED : 0;
    setWide(u32, slot + RECORD.OFFSET, record.minTxOffset);
    u32[slot + RECORD.EPOCH] = record.epoch;
    setWide(u32, slot + RECORD.AT_MS, record.committedAtMs);
    this.#sequencer.send();
    this.#advance(upper);
    return true;
  }

  /** Throws when there will never be pages for a record. */
  #refuseHopeless(record: RecordHeader, length: number): void {
    const { config, control, pool } = this.#context;
    // One page stays in use, the others come free: more than that there will never be.
    if (length > pageBytes && pagesFor(length) >= pool.limitPages(KIND_RECORD)) {
      throw new TidemarkError(
        'TIDEMARK_TOO_LARGE',
        'a commit in the log needs more memory than there is; raise memoryBytes or memtableBytes',
        { limit: 'memtableBytes', offset: record.minTxOffset, bytes: length },
      );
    }
    // All that was fed is applied and nothing is ever flushed: no page will come free.
    if (config.readOnly && control.applied() >= record.minTxOffset) {
      throw new TidemarkError(
        'TIDEMARK_TOO_LARGE',
        'the log that must be replayed is larger than memory; a read-only engine cannot flush it',
        { limit: 'memoryBytes', offset: record.minTxOffset },
      );
    }
  }

  #lay(source: Uint8Array, offset: number, length: number, txCount: number): number {
    const { pool, arena } = this.#context;
    if (length > pageBytes) {
      if (pool.freePages(KIND_RECORD) < pagesFor(length)) return 0;
      const address = layChained(arena, pool, source, offset, txCount);
      if (address !== 0) this.#pages.push({ address, chained: true, upper: 0 });
      // What follows starts a page of its own, so that pages are let go in order.
      this.#page = 0;
      return address;
    }
    if (this.#page === 0 || this.#at + length > this.#page + pageBytes) {
      const page = pool.lease(KIND_RECORD);
      if (page === 0) return 0;
      pool.retain(page);
      this.#pages.push({ address: page, chained: false, upper: 0 });
      this.#page = page;
      this.#at = page;
    }
    const at = this.#at;
    arena.u8.set(source.subarray(offset, offset + length), at);
    this.#at += length;
    return at;
  }

  /** Lets go of pages whose every record the sequencer has applied, and so holds itself. */
  release(): void {
    if (this.#pages.length === 0) return;
    const { pool, control } = this.#context;
    const applied = control.applied();
    while (this.#pages.length > 0) {
      const page = this.#pages[0];
      if (page.address === this.#page || page.upper > applied) return;
      this.#pages.shift();
      if (page.chained) releaseChain(pool, page.address);
      else pool.release(page.address);
    }
  }

  #advance(upper: number): void {
    const { control } = this.#context;
    control.setWritten(upper);
    control.setDurable(upper);
  }

  #tell(kind: number, next: number, epoch: number, atMs: number): void {
    const slot = this.#sequencer.claim();
    invariant(slot >= 0, 'room in the replay ring was looked for');
    const { u32 } = this.#sequencer.ring;
    u32[slot + KIND_WORD] = kind;
    setWide(u32, slot + REPLAY.OFFSET, next);
    u32[slot + REPLAY.EPOCH] = epoch;
    setWide(u32, slot + REPLAY.AT_MS, atMs);
    this.#sequencer.send();
  }
}

/** Operations in a contiguous payload that was checked before. */
function countOperations(bytes: Uint8Array, offset: number, txCount: number): number {
  let at = offset;
  let operations = 0;
  for (let t = 0; t < txCount; t++) {
    operations += getU32(bytes, at + TX_COUNT_OFFSET);
    at += getU32(bytes, at + TX_BYTES_OFFSET);
  }
  return operations;
}
