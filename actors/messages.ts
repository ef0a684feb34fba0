/**
 * Every message kind, declared once: its number, who sends it to whom, and the words of its slot.
 * A slot has SLOT_WORDS words; word 0 is the kind, 0 is never a kind. Offsets and times take two
 * words, low then high. Bytes travel by address, never in a slot.
 */
import { fromWords, highWord, lowWord } from '../core/shared/arena.ts';

export const KIND_WORD = 0;

// client -> sequencer, sequencer -> durability, durability -> sequencer at recovery
/** A record. The client fills the words up to CONDITIONS, the sequencer the rest. */
export const MSG_RECORD = 1;
export const RECORD = {
  NUMBER: 1,
  ADDRESS: 2,
  PAYLOAD_BYTES: 3,
  TX_COUNT: 4,
  PAYLOAD_CRC: 5,
  OPERATIONS: 6,
  /** RECORD_SYNC | RECORD_CHAINED | RECORD_RESENT | RECORD_RANGES */
  FLAGS: 7,
  /** Address of its conditions (core/memtable/conditions.ts), 0 = none. */
  CONDITIONS: 8,
  OFFSET: 9,
  EPOCH: 11,
  AT_MS: 12,
} as const;
/** The record's promise settles when it is durable; a buffered engine syncs for it. */
export const RECORD_SYNC = 1;
/** The payload runs over pages of its own, chained by next[page]. */
export const RECORD_CHAINED = 2;
/** The first record after those that were refused with REFUSAL_AGAIN. */
export const RECORD_RESENT = 4;
/** Range deletes are among its operations; at replay nobody has looked. */
export const RECORD_RANGES = 8;

// sequencer -> client
/** What became of a record: its first offset, or the number of an error code. */
export const MSG_RECEIPT = 2;
/** After TIDEMARK_CONFLICT: OFFSET is that of the change that broke condition CONDITION, ABSENT 1 if it was a deletion. */
export const RECEIPT = { NUMBER: 1, OFFSET: 2, REFUSAL: 4, CONDITION: 5, ABSENT: 6 } as const;
/**
 * No error code: whether the conditions hold can no longer be told; look and send again. Until a record
 * with RECORD_RESENT comes, all that follow are refused likewise, and so keep their order.
 */
export const REFUSAL_AGAIN = 0xffff_ffff;

// engine -> sequencer -> durability -> keeper: the end of the line
/** Nothing follows: drain, sync, write CLEAN, finish. */
export const MSG_CLOSE = 3;

// sequencer -> durability
/** A generation was sealed at `UPPER`; answer the keeper once `durable` has reached it. */
export const MSG_BOUND = 4;
export const BOUND = { UPPER: 1 } as const;

// durability -> sequencer, at recovery
/** Replay starts: the next offset is OFFSET, epoch and time are floors. */
export const MSG_REPLAY_BEGIN = 5;
/** Replay is over: stamp from here on. Same words. */
export const MSG_REPLAY_END = 6;
export const REPLAY = { OFFSET: 1, EPOCH: 3, AT_MS: 4 } as const;

// durability -> keeper
/** `durable` has reached UPPER; the words say where the log stands there. */
export const MSG_BOUND_REACHED = 7;
export const BOUND_REACHED = {
  UPPER: 1,
  SEQ: 3,
  POSITION: 4,
  CHAIN: 6,
  EPOCH: 7,
  AT_MS: 8,
} as const;
/** A segment of the log, the first offset in it, and whether it is compressed; once for each at recovery, then at each rotation. */
export const MSG_SEGMENT = 8;
export const SEGMENT = { SEQ: 1, BASE: 2, AT_MS: 4, PACKED: 6 } as const;
/** The log is recovered (or created) up to UPPER. */
export const MSG_RECOVERED = 9;
export const RECOVERED = { UPPER: 1, ORPHANS: 3 } as const;

// keeper -> durability
/** Create or recover the log: JSON in a table of text-blocks.ts. */
export const MSG_RECOVER = 10;
export const RECOVER = { ADDRESS: 1, BYTES: 2 } as const;

/** Nobody needs segment SEQ any more: its file may be the next spare, and is durability's from now on. */
export const MSG_OFFER = 56;
/**
 * durability -> keeper: no spare is wanted, or none came of it: segment SEQ is to be deleted. And what a job
 * that failed has left of spare SPARE. Either may be 0: none.
 */
export const MSG_DECLINED = 57;
export const OFFER = { SEQ: 1, SPARE: 2 } as const;

// durability -> keeper, and back
/** Sync the log's descriptor FD, beside the thread that writes to it. One at a time. */
export const MSG_SYNC = 58;
/** It is done; ERRNO 0, or why not. */
export const MSG_SYNCED = 59;
export const SYNC = { FD: 1, ERRNO: 2 } as const;

// sequencer -> keeper
/** Generation ADDRESS is the open one (at start). */
export const MSG_OPENED = 11;
/** Generation ADDRESS can take over; name it in a view and answer. */
export const MSG_SPARE = 12;
/** Generation ADDRESS was sealed; it covers [LOWER, UPPER). The spare is open now. */
export const MSG_SEALED = 13;
/** TOKEN: that of the MSG_SEAL which this answers, 0 = none. */
export const GENERATION = { ADDRESS: 1, LOWER: 2, UPPER: 4, TOKEN: 6 } as const;

// keeper -> sequencer
/** The view names the spare: the sequencer may switch to it. */
export const MSG_SPARE_PUBLISHED = 14;
/** No reader can see generation ADDRESS any more. */
export const MSG_FREE = 15;
/** Seal the open generation now, if it holds anything. Answered by MSG_SEALED or MSG_EMPTY with TOKEN. */
export const MSG_SEAL = 16;
/** sequencer -> keeper: nothing to seal; all below UPPER is sealed. */
export const MSG_EMPTY = 17;

// keeper -> compactor, and back
/** A job as JSON, and room for its answer: tables of text-blocks.ts. */
export const MSG_JOB = 18;
export const JOB = { ID: 1, ADDRESS: 2, BYTES: 3, REPLY: 4, LARGE: 5 } as const;
export const MSG_CANCEL = 19;
/** The job's outcome: OK 1 or 0, and the bytes of JSON at REPLY. */
export const MSG_RESULT = 20;
export const RESULT = { ID: 1, OK: 2, BYTES: 3 } as const;
/** compactor -> keeper: so many more jobs may be sent. */
export const MSG_CREDIT = 21;
export const CREDIT = { JOBS: 1 } as const;

// durability -> compactor, and back
/** Prepare room in the log: PREPARE_ZERO fills [FROM, TO) of segment SEQ, PREPARE_SPARE makes a whole one of TO bytes, of segment FROM's file if that is not 0. */
export const MSG_PREPARE = 22;
/** The same words, and OK. */
export const MSG_PREPARED = 23;
export const PREPARE = {
  WHAT: 1,
  SEQ: 2,
  FROM: 3,
  TO: 5,
  OK: 7,
  NO_SPACE: 8,
  /** The spare holds what was in its file before. */
  RECYCLED: 9,
} as const;
export const PREPARE_ZERO = 1;
export const PREPARE_SPARE = 2;
/** The same, of a file that was a segment. */
export const PREPARE_RECYCLE = 3;

// keeper -> evictor, and back
/** Generation ADDRESS enters the source; from now the source's version is VERSION. */
export const MSG_APPLY = 24;
export const MSG_APPLIED = 25;
export const APPLY = { ADDRESS: 1, VERSION: 2 } as const;

// client -> keeper, and back
/** Seal and flush everything written so far. */
export const MSG_FLUSH = 26;
/** Merge one collection (or all: WHOLE = 1) into one run. */
export const MSG_COMPACT = 27;
/** Flush, and a rollup of the manifest that says so. */
export const MSG_CHECKPOINT = 31;
/** The same; its parts and the log from it on stay, and it is written down (backup-holds.ts), until ... */
export const MSG_BACKUP = 34;
/** ... this: COLLECTION is the NUMBER of the request that began the backup. */
export const MSG_BACKUP_END = 35;
/** Nobody waits any more for what MSG_COMPACT asked for under NUMBER = COLLECTION. */
export const MSG_COMPACT_END = 48;
export const REQUEST = { NUMBER: 1, COLLECTION: 2, WHOLE: 3 } as const;
export const MSG_DONE = 28;
export const DONE = { NUMBER: 1, REFUSAL: 2 } as const;

// client -> evictor (lossy): both ends are the row cache's, so the words are with it
/** 29: node ids of cached rows that were read. */
export { TOUCH_KIND as MSG_TOUCH, TOUCH } from '../core/cache/layout.ts';
/** 30: a row read from the parts of a source, in the client's offer page. */
export { POPULATE_KIND as MSG_POPULATE, POPULATE } from '../core/cache/layout.ts';

// keeper -> the client that opened, and back
/** A segment for the archive hook: JSON in a table of text-blocks.ts. */
export const MSG_ARCHIVE = 32;
/** What became of it, in the words of a request: COLLECTION its number, WHOLE 1 if the hook has it. */
export const MSG_ARCHIVED = 33;
export const ARCHIVE = { SEQ: 1, ADDRESS: 2, BYTES: 3 } as const;

export function setWide(u32: Uint32Array, word: number, value: number): void {
  u32[word] = lowWord(value);
  u32[word + 1] = highWord(value);
}

export function getWide(u32: Uint32Array, word: number): number {
  return fromWords(u32[word], u32[word + 1]);
}
