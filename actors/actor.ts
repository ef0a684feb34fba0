/**
 * What every actor is, and what it is given. An actor is a plain object: `tick` does a bounded amount
 * of work and at most one storage call, `idle` says when it must run again though nobody rings. It
 * mentions no thread and holds no promise: every answer comes through its inbox. The same five run on
 * worker threads, inline on the caller's thread, and in the simulator (design.md 5).
 */
import type { StoredHistory } from './catalog.ts';
import type { Arena } from '../core/shared/arena.ts';
import type { Bell } from '../core/shared/bell.ts';
import type { BufferPool } from '../core/shared/buffer-pool.ts';
import type { Control } from '../core/shared/control.ts';
import { RingConsumer, RingProducer } from '../core/shared/ring.ts';
import type { LockHolder } from '../core/storage/lock.ts';
import type { Clock, Storage } from '../core/storage/storage.ts';
import type { RingPlace, Topology } from './topology.ts';

export interface Actor {
  /** One of the ACTOR_ numbers of control.ts. */
  readonly number: number;
  /** True when it did something: the host then comes back before it sleeps. */
  tick(): boolean;
  /** Milliseconds to the next deadline, Infinity when only a message can bring work. */
  idle(): number;
  /** Publishes its counters; called before the host sleeps, and now and then while it does not. */
  publish(): void;
  /** Gives back what only this actor knows: descriptors, jobs. Runs once, after the last tick, also after poison. */
  onClose(): void;
}

/** Options of the engine as the actors see them: checked, complete, plain data. */
export type EngineConfig = {
  readonly directory: string;
  readonly synced: boolean;
  readonly syncIntervalMs: number;
  readonly memtableBytes: number;
  readonly segmentBytes: number;
  readonly mergeThreads: number;
  readonly history: StoredHistory;
  /** Segments of the log whose successor began less than this ago stay; left out: 0. */
  readonly walKeepMs?: number;
  /** False: what stays of the log is left as it was written; left out: true. */
  readonly walCompress?: boolean;
  /** An archive hook is set: segments wait for it before they go. */
  readonly walArchive?: boolean;
  /** A checkpoint at every multiple of so many transactions; left out: the limit. */
  readonly checkpointEvery?: number;
  /** Bytes of a part, about; left out: the limit. */
  readonly partBytes?: number;
  /** Files of parts that are held open, at the most; left out: the limit. */
  readonly openPartsMax?: number;
  readonly readOnly: boolean;
  readonly createIfMissing: boolean;
  readonly errorIfExists: boolean;
  readonly strictTail: boolean;
  readonly breakLock: boolean;
  /** Identity of the log if one is made: 16 random bytes, base64. */
  readonly newLogId: string;
  /** Who opens, as the LOCK file will say; undefined: nobody else can be there (simulation). */
  readonly holder: LockHolder | undefined;
};

export type ActorContext = {
  readonly arena: Arena;
  readonly pool: BufferPool;
  readonly control: Control;
  readonly topology: Topology;
  readonly config: EngineConfig;
  readonly storage: Storage;
  readonly clock: Clock;
  /** Bells of the kit's threads, by thread number; the same one three times when there is one thread. */
  readonly threadBells: readonly Bell[];
  readonly clientBells: readonly Bell[];
};

/** One end of a ring that rings its consumer's bell. */
export class Outbox {
  readonly ring: RingProducer;
  readonly #bell: Bell;

  constructor(context: ActorContext, place: RingPlace, bell: Bell) {
    this.ring = new RingProducer(context.arena, place.address, place.slots);
    this.#bell = bell;
  }

  /** Word index of the next slot, or -1 when the ring is full. */
  claim(): number {
    return this.ring.claim();
  }

  /** Publishes the claimed slot and wakes the consumer if it sleeps. */
  send(): void {
    this.ring.push();
    this.#bell.ring();
  }

  /** Publishes without waking: something that follows will ring. */
  sendQuietly(): void {
    this.ring.push();
  }
}

export function inboxOf(context: ActorContext, place: RingPlace): RingConsumer {
  return new RingConsumer(context.arena, place.address, place.slots);
}
