/**
 * What becomes of a segment's file once the older checkpoint is above its end: compressed if it stays,
 * handed to the archive hook if there is one, and only then let go of. One file is compressed at a time
 * and one is with the hook, each the oldest; what fails is tried again later, longer each time, and is
 * never a reason to stop writing. A part of the keeper's log, on its thread.
 *
 *   a segment's way: job (compress, describe) -> ARCHIVE to the opener -> ARCHIVED back -> edit on disk
 *   Without a hook it ends with the job, and what nobody keeps skips that too.
 */
import { invariant } from '../core/base/assert.ts';
import { le } from '../core/base/frontier.ts';
import type { CompressResult } from '../core/log/compress.ts';
import { codecDefault } from '../core/log/segz.ts';
import type { Counters } from '../core/shared/counters.ts';
import type { ArchivedSegment } from '../core/spine/manifest.ts';
import type { ManifestStore } from '../core/spine/manifest-store.ts';
import { tmpPath } from '../core/storage/names.ts';
import type { ActorContext, Outbox } from './actor.ts';
import { KEEPER_COUNTERS, indexIn } from './counters.ts';
import { retryMs } from './job-desk.ts';
import type { JobDesk } from './job-desk.ts';
import { ARCHIVE, KIND_WORD, MSG_ARCHIVE } from './messages.ts';
import { freeText, reserveText, writeText } from './text-blocks.ts';
import type { ViewRoom } from './view-room.ts';
import type { Views } from './views.ts';

/** Room for the answer of a job: its result, or why there is none. */
const REPLY_BYTES = 8_192;
/** The client that opened the engine, on whose thread the hook runs. */
const OPENER = 0;

const SEGMENTS_COMPRESSED: number = indexIn(KEEPER_COUNTERS, 'segmentsCompressed');
const SEGMENTS_ARCHIVED: number = indexIn(KEEPER_COUNTERS, 'segmentsArchived');
const ARCHIVE_FAILURES: number = indexIn(KEEPER_COUNTERS, 'archiveFailures');
const ARCHIVE_WAITING: number = indexIn(KEEPER_COUNTERS, 'archiveWaiting');
const JOBS_FAILED: number = indexIn(KEEPER_COUNTERS, 'jobsFailed');

export type OldSegmentsPorts = {
  readonly desk: JobDesk;
  readonly room: ViewRoom;
  /** To each client. */
  readonly answers: readonly Outbox[];
  /** Hands an archived segment to the manifest; `show` runs once it is on disk. */
  readonly propose: (archived: ArchivedSegment, show: () => void) => void;
  /** Deletes a file that a job may have left. */
  readonly discard: (path: string) => void;
};

/** What is known of one that is old enough. */
type Old = {
  /** Its file is a .segz. */
  packed: boolean;
  /** The job's word on its file. */
  described: CompressResult | undefined;
  /** The edit that says it is archived is on its way. */
  proposed: boolean;
  retryAt: number;
  failures: number;
};

/** What the hook is given, as JSON. */
export type ArchiveRequest = CompressResult;

export class OldSegments {
  readonly #context: ActorContext;
  readonly #views: Views;
  readonly #values: Float64Array;
  readonly #ports: OldSegmentsPorts;
  readonly #codec: number;
  readonly #bySeq: Map<number, Old> = new Map();
  /** Segments below are about to go, unless they wait for the hook; none is known before the first look. */
  #keptSeq = Infinity;
  #store: ManifestStore | undefined;
  /** Those that the manifest names as archived: the list, and their numbers. */
  #archived: readonly ArchivedSegment[] = [];
  #archivedSeqs: ReadonlySet<number> = new Set();
  /** The segment that a job is at; 0: none. */
  #packing = 0;
  /** Waits for that job's answer. */
  #afterJob: (() => void) | undefined;
  /** The segment that the hook has, and the text that says which. */
  #asking = 0;
  #askText = 0;

  constructor(context: ActorContext, views: Views, counters: Counters, ports: OldSegmentsPorts) {
    this.#context = context;
    this.#views = views;
    this.#values = counters.values;
    this.#ports = ports;
    this.#codec = (context.config.walCompress ?? true) ? codecDefault : 0;
  }

  get hasHook(): boolean {
    return this.#context.config.walArchive === true;
  }

  /** A segment of the log; `packed`: compressed already. */
  add(seq: number, packed: boolean): void {
    this.#bySeq.set(seq, {
      packed,
      described: undefined,
      proposed: false,
      retryAt: 0,
      failures: 0,
    });
  }

  /** Its file lies there as it was written, and no job is at it. */
  isPlain(seq: number): boolean {
    return this.#bySeq.get(seq)?.packed === false && this.#packing !== seq;
  }

  /** A job is at it: what goes under its hands it misses, or makes again. */
  isAtWork(seq: number): boolean {
    return this.#packing === seq;
  }

  /** Runs `then` when the job that is at a segment has answered. */
  afterJob(then: () => void): void {
    invariant(this.#packing !== 0 && this.#afterJob === undefined, 'one waits for one job');
    this.#afterJob = then;
  }

  /** The log begins at `seq` now. */
  dropBelow(seq: number): void {
    for (const known of this.#bySeq.keys()) if (known < seq) this.#bySeq.delete(known);
  }

  /** Segments from `seq` on are needed by somebody, as far as the hook does not decide. */
  keepFrom(seq: number, store: ManifestStore): void {
    this.#keptSeq = seq;
    this.#store = store;
  }

  /** Nobody asks for it to be kept until the hook has it, or the hook has it. */
  mayGo(seq: number, store: ManifestStore): boolean {
    if (!this.hasHook) return true;
    const { archived } = store.state;
    if (archived !== this.#archived) {
      this.#archived = archived;
      this.#archivedSeqs = new Set(archived.map((entry) => entry.seq));
    }
    return this.#archivedSeqs.has(seq);
  }

  /** Files to be compressed or archived that can be now: 0 is quiet. */
  get waiting(): number {
    return this.#due().length;
  }

  /** Does the next thing there is to do; true when it did something. */
  step(): boolean {
    const due = this.#due();
    this.#values[ARCHIVE_WAITING] = this.hasHook ? this.#unarchived() : 0;
    return this.#dispatch(due) || this.#ask(due);
  }

  /** Old segments that something is to be done with, oldest first. */
  #due(): { seq: number; successor: number; old: Old }[] {
    const store = this.#store;
    if (store === undefined) return [];
    const { segments } = this.#views;
    const bound = store.checkpoints.older.upper;
    const now = this.#context.clock.ticksMs();
    const due = [];
    for (let i = 0; i + 1 < segments.length && le(segments[i + 1].base, bound); i++) {
      const { seq } = segments[i];
      const old = this.#bySeq.get(seq);
      invariant(old !== undefined, 'every segment is known', seq);
      const isWanted = this.hasHook ? !this.mayGo(seq, store) : false;
      const isLoose = this.#codec !== 0 && !old.packed && seq >= this.#keptSeq;
      if (old.proposed || (!isWanted && !isLoose)) continue;
      // The hook gets them in their order: what is behind one that failed waits for it.
      if (old.retryAt > now) break;
      due.push({ seq, successor: segments[i + 1].seq, old });
    }
    return due;
  }

  #unarchived(): number {
    const store = this.#store;
    if (store === undefined) return 0;
    const { segments } = this.#views;
    const bound = store.checkpoints.older.upper;
    let count = 0;
    for (let i = 0; i + 1 < segments.length && le(segments[i + 1].base, bound); i++) {
      if (!this.mayGo(segments[i].seq, store)) count++;
    }
    return count;
  }

  // ---------------------------------------------------------------- the job

  #dispatch(due: readonly { seq: number; successor: number; old: Old }[]): boolean {
    const { desk } = this.#ports;
    const next = due.find(({ old }) => old.described === undefined);
    if (this.#packing !== 0 || next === undefined || !desk.hasCredit) return false;
    const { seq, successor, old } = next;
    const { config } = this.#context;
    const isLarge = desk.isLarge(config.segmentBytes);
    if (isLarge && !desk.hasCreditForLarge) return false;
    const logId = Buffer.from(this.#store!.state.identity.logId).toString('hex');
    const tmp = tmpPath(`${seq}.segz`);
    const request = { seq, successor, logId, codec: this.#codec, tmp };
    const isSent = desk.send({ kind: 'compress', request }, REPLY_BYTES, isLarge, (outcome) => {
      this.#packing = 0;
      const then = this.#afterJob;
      this.#afterJob = undefined;
      then?.();
      if (outcome.failure !== undefined) {
        this.#values[JOBS_FAILED]++;
        this.#backOff(old);
        // A worker that died has left it, and the segment may go before it is tried again.
        this.#ports.discard(tmp);
        return;
      }
      const described = outcome.value as CompressResult;
      old.failures = 0;
      if (described.codec !== 0 && !old.packed) this.#values[SEGMENTS_COMPRESSED]++;
      old.packed = described.codec !== 0;
      old.described = described;
    });
    if (isSent) this.#packing = seq;
    return isSent;
  }

  #backOff(old: Old): void {
    old.failures++;
    old.retryAt = this.#context.clock.ticksMs() + retryMs(old.failures);
  }

  // ---------------------------------------------------------------- the hook

  #ask(due: readonly { seq: number; old: Old }[]): boolean {
    const next = due[0];
    if (!this.hasHook || this.#asking !== 0 || next?.old.described === undefined) return false;
    const outbox = this.#ports.answers[OPENER];
    const slot = outbox.claim();
    if (slot < 0) return false;
    const { arena } = this.#context;
    const json = JSON.stringify(next.old.described satisfies ArchiveRequest);
    const text = reserveText(arena, this.#ports.room, json.length);
    if (text === 0) return false;
    const { u32 } = outbox.ring;
    u32[slot + KIND_WORD] = MSG_ARCHIVE;
    u32[slot + ARCHIVE.SEQ] = next.seq;
    u32[slot + ARCHIVE.ADDRESS] = text;
    u32[slot + ARCHIVE.BYTES] = writeText(arena, text, json);
    outbox.send();
    this.#asking = next.seq;
    this.#askText = text;
    return true;
  }

  /** The hook has the segment, or has failed. */
  onArchived(seq: number, ok: boolean, then: () => void): void {
    invariant(seq === this.#asking, 'an answer to what the hook was asked', seq, this.#asking);
    freeText(this.#context.arena, this.#ports.room, this.#askText);
    this.#asking = 0;
    const old = this.#bySeq.get(seq);
    // Cut off meanwhile, by a truncation for one.
    if (old?.described === undefined) return;
    if (!ok) {
      this.#values[ARCHIVE_FAILURES]++;
      this.#backOff(old);
      return;
    }
    const { base, end, baseAtMs, bytes, codec, name, hash } = old.described;
    old.proposed = true;
    old.failures = 0;
    const archived: ArchivedSegment = {
      seq,
      base,
      end,
      baseAtMs,
      bytes,
      codec,
      name,
      hash: new Uint8Array(Buffer.from(hash, 'hex')),
    };
    this.#ports.propose(archived, () => {
      old.proposed = false;
      this.#values[SEGMENTS_ARCHIVED]++;
      then();
    });
  }
}
