/**
 * The record: one atomic unit of the log, a 48-byte header and its payload. A header proves where it
 * belongs: its sync word is salted by segment and its CRC by position, so that a copied, misdirected
 * or stale header never passes. Encoded by the writer, decoded by readers; any thread.
 *
 *   off size by  field
 *     0    4 log sync word = constant XOR salt, 1 if that is 0
 *     4    4 log headerCrc = CRC-32 of bytes 8..47, started from (salt + position/8) mod 2^32
 *     8    4 cli payloadLen: up to 64 MiB
 *    12    2 cli txCount: 1..65,535 for COMMIT, 0 otherwise
 *    14    1 log kind: 1 COMMIT, 2 WATERMARK, 3 PAD, 4 SEAL, 5 CLEAN; 0 forbidden;
 *                6..127 unknown = refuse, 128.. unknown = skip
 *    15    1 log flags: bit 0 first record of a write batch, bit 1 kept for compressed payloads; rest zero
 *    16    8 seq minTxOffset (control records: the next offset)
 *    24    4 seq epoch, never decreasing
 *    28    4 cli payloadCrc = CRC-32 of the payload, unsalted: valid end to end
 *    32    4 log prevChain: content chain before this record
 *    36    4 log durableLag = minTxOffset - durable at encoding time; 0xFFFFFFFF = no claim
 *    40    8 seq committedAtMs, never decreasing (control records repeat the last commit's)
 *
 * Then the payload, and zeros to a multiple of 8. (cli: the client's number, seq: the sequencer's.)
 * A record lies at a multiple of 8 below 32 GiB and never crosses a segment. Its *claim*, minTxOffset -
 * durableLag, says that all offsets below were durable when it was encoded: the witness by which
 * recovery tells a torn tail from damage. Payload of SEAL and CLEAN:
 *
 *     0    8 first offset of the segment
 *     8    8 next offset
 *    16    8 commits in the segment
 *    24    4 content chain here
 *    28    4 epoch
 */
import { getU16, getU32, getU64, setU32, setU64 } from '../base/bytes.ts';
import { crc32, crc32Table } from '../base/crc32.ts';

export const RECORD_SYNC_OFFSET = 0;
export const RECORD_HEADER_CRC_OFFSET: number = RECORD_SYNC_OFFSET + 4;
export const RECORD_PAYLOAD_LEN_OFFSET: number = RECORD_HEADER_CRC_OFFSET + 4;
export const RECORD_TX_COUNT_OFFSET: number = RECORD_PAYLOAD_LEN_OFFSET + 4;
export const RECORD_KIND_OFFSET: number = RECORD_TX_COUNT_OFFSET + 2;
export const RECORD_FLAGS_OFFSET: number = RECORD_KIND_OFFSET + 1;
export const RECORD_MIN_TX_OFFSET: number = RECORD_FLAGS_OFFSET + 1;
export const RECORD_EPOCH_OFFSET: number = RECORD_MIN_TX_OFFSET + 8;
export const RECORD_PAYLOAD_CRC_OFFSET: number = RECORD_EPOCH_OFFSET + 4;
export const RECORD_CHAIN_OFFSET: number = RECORD_PAYLOAD_CRC_OFFSET + 4;
export const RECORD_LAG_OFFSET: number = RECORD_CHAIN_OFFSET + 4;
export const RECORD_AT_MS_OFFSET: number = RECORD_LAG_OFFSET + 4;
export const RECORD_HEADER_BYTES: number = RECORD_AT_MS_OFFSET + 8;
/** What headerCrc covers. */
const CRC_FROM: number = RECORD_PAYLOAD_LEN_OFFSET;
const CRC_BYTES: number = RECORD_HEADER_BYTES - CRC_FROM;

/** Records lie at multiples of this. */
export const RECORD_ALIGN = 8;

export const RECORD_COMMIT = 1;
export const RECORD_WATERMARK = 2;
export const RECORD_PAD = 3;
export const RECORD_SEAL = 4;
export const RECORD_CLEAN = 5;
/** Unknown kinds from here on are skipped, below refused. */
export const RECORD_SKIPPABLE_MIN = 128;

export const RECORD_FLAG_FIRST = 1;

/** durableLag of a record that claims nothing. */
export const NO_CLAIM = 0xffff_ffff;

/** Payload of SEAL and CLEAN. */
const END_BASE_OFFSET = 0;
const END_NEXT_OFFSET: number = END_BASE_OFFSET + 8;
const END_COMMITS_OFFSET: number = END_NEXT_OFFSET + 8;
const END_CHAIN_OFFSET: number = END_COMMITS_OFFSET + 8;
const END_EPOCH_OFFSET: number = END_CHAIN_OFFSET + 4;
export const END_PAYLOAD_BYTES: number = END_EPOCH_OFFSET + 4;
/** A whole SEAL or CLEAN record. */
export const END_RECORD_BYTES: number = RECORD_HEADER_BYTES + END_PAYLOAD_BYTES;

const SYNC_CONSTANT = 0xa7c3_5e91;

/** The sync word of every record of a segment. Never 0, so that zeros are never a record. */
export function syncWordOf(salt: number): number {
  const word = (SYNC_CONSTANT ^ salt) >>> 0;
  return word === 0 ? 1 : word;
}

/** Bytes a record takes in the file. */
export function recordBytes(payloadLen: number): number {
  return RECORD_HEADER_BYTES + ((payloadLen + 7) & ~7);
}

/**
 * Content chain after a commit: free of salt and position, so equal in every copy of the history.
 * Tells diverged histories apart; errors are the CRCs' business.
 */
export function chainAfter(
  chain: number,
  minTxOffset: number,
  txCount: number,
  epoch: number,
  payloadLen: number,
  payloadCrc: number,
  committedAtMs: number,
): number {
  const offsetLow = minTxOffset >>> 0;
  const atLow = committedAtMs >>> 0;
  let h = mix(chain, offsetLow);
  h = mix(h, (minTxOffset - offsetLow) / 0x1_0000_0000);
  h = mix(h, txCount);
  h = mix(h, epoch);
  h = mix(h, payloadLen);
  h = mix(h, payloadCrc);
  h = mix(h, atLow);
  h = mix(h, (committedAtMs - atLow) / 0x1_0000_0000);
  return h >>> 0;
}

function mix(h: number, word: number): number {
  const x = Math.imul(h ^ word, 0x9e37_79b1);
  return Math.imul(x ^ (x >>> 15), 0x85eb_ca77);
}

/**
 * Writes a header at bytes[at]; `words` views the same buffer from the same start, and `at` is a
 * multiple of 4. `position` is the record's place in the file of the segment with `salt`.
 */
export function encodeRecordHeader(
  words: Uint32Array,
  bytes: Uint8Array,
  at: number,
  salt: number,
  position: number,
  kind: number,
  flags: number,
  payloadLen: number,
  txCount: number,
  minTxOffset: number,
  epoch: number,
  payloadCrc: number,
  prevChain: number,
  durable: number,
  committedAtMs: number,
): void {
  const w = at >>> 2;
  const offsetLow = minTxOffset >>> 0;
  const atLow = committedAtMs >>> 0;
  const lag = minTxOffset - durable;
  words[w] = syncWordOf(salt);
  words[w + 2] = payloadLen;
  words[w + 3] = txCount | (kind << 16) | (flags << 24);
  words[w + 4] = offsetLow;
  words[w + 5] = (minTxOffset - offsetLow) / 0x1_0000_0000;
  words[w + 6] = epoch;
  words[w + 7] = payloadCrc;
  words[w + 8] = prevChain;
  words[w + 9] = lag < NO_CLAIM ? lag : NO_CLAIM;
  words[w + 10] = atLow;
  words[w + 11] = (committedAtMs - atLow) / 0x1_0000_0000;
  words[w + 1] = crc32Table(bytes, at + CRC_FROM, CRC_BYTES, crcSeed(salt, position));
}

function crcSeed(salt: number, position: number): number {
  return (salt + position / RECORD_ALIGN) >>> 0;
}

function hasSyncWord(bytes: Uint8Array, at: number, salt: number): boolean {
  return getU32(bytes, at + RECORD_SYNC_OFFSET) === syncWordOf(salt);
}

function passesCrc(bytes: Uint8Array, at: number, salt: number, position: number): boolean {
  const crc = crc32Table(bytes, at + CRC_FROM, CRC_BYTES, crcSeed(salt, position));
  return getU32(bytes, at + RECORD_HEADER_CRC_OFFSET) === crc;
}

/** True when a header with valid sync word and CRC stands at bytes[at], read from `position` of the file. */
export function isRecordHeader(
  bytes: Uint8Array,
  at: number,
  salt: number,
  position: number,
): boolean {
  return hasSyncWord(bytes, at, salt) && passesCrc(bytes, at, salt, position);
}

/**
 * True when half of a header of this place stands at bytes[at]: its sync word, or numbers that pass its CRC.
 * Bytes that some other use of the file left have neither; a header with one damaged place has one of them.
 */
export function isRecordTrace(
  bytes: Uint8Array,
  at: number,
  salt: number,
  position: number,
): boolean {
  return hasSyncWord(bytes, at, salt) || passesCrc(bytes, at, salt, position);
}

/** The numbers of a record. One object per reader, filled anew for each record. */
export class RecordHeader {
  kind = 0;
  flags = 0;
  payloadLen = 0;
  txCount = 0;
  minTxOffset = 0;
  epoch = 0;
  payloadCrc = 0;
  prevChain = 0;
  durableLag = 0;
  committedAtMs = 0;
  /** Where it lies. */
  seq = 0;
  position = 0;

  /** Requires: isRecordHeader(bytes, at, ...). */
  decode(bytes: Uint8Array, at: number, seq: number, position: number): void {
    this.kind = bytes[at + RECORD_KIND_OFFSET];
    this.flags = bytes[at + RECORD_FLAGS_OFFSET];
    this.payloadLen = getU32(bytes, at + RECORD_PAYLOAD_LEN_OFFSET);
    this.txCount = getU16(bytes, at + RECORD_TX_COUNT_OFFSET);
    this.minTxOffset = getU64(bytes, at + RECORD_MIN_TX_OFFSET);
    this.epoch = getU32(bytes, at + RECORD_EPOCH_OFFSET);
    this.payloadCrc = getU32(bytes, at + RECORD_PAYLOAD_CRC_OFFSET);
    this.prevChain = getU32(bytes, at + RECORD_CHAIN_OFFSET);
    this.durableLag = getU32(bytes, at + RECORD_LAG_OFFSET);
    this.committedAtMs = getU64(bytes, at + RECORD_AT_MS_OFFSET);
    this.seq = seq;
    this.position = position;
  }

  /** All offsets below were durable when this was encoded; 0 when it claims nothing. */
  get claim(): number {
    return this.durableLag === NO_CLAIM ? 0 : this.minTxOffset - this.durableLag;
  }

  /** First offset after this record. */
  get endOffset(): number {
    return this.minTxOffset + this.txCount;
  }

  /** Bytes it takes in the file. */
  get bytes(): number {
    return recordBytes(this.payloadLen);
  }

  /** Content chain after this record. */
  get chain(): number {
    if (this.kind !== RECORD_COMMIT) return this.prevChain;
    return chainAfter(
      this.prevChain,
      this.minTxOffset,
      this.txCount,
      this.epoch,
      this.payloadLen,
      this.payloadCrc,
      this.committedAtMs,
    );
  }
}

/** What SEAL and CLEAN say about their segment. */
export type SegmentEnd = {
  baseOffset: number;
  next: number;
  commits: number;
  chain: number;
  epoch: number;
};

/** Writes the payload of a SEAL or CLEAN and returns its CRC. */
export function encodeSegmentEnd(bytes: Uint8Array, at: number, end: SegmentEnd): number {
  setU64(bytes, at + END_BASE_OFFSET, end.baseOffset);
  setU64(bytes, at + END_NEXT_OFFSET, end.next);
  setU64(bytes, at + END_COMMITS_OFFSET, end.commits);
  setU32(bytes, at + END_CHAIN_OFFSET, end.chain);
  setU32(bytes, at + END_EPOCH_OFFSET, end.epoch);
  return crc32(bytes, at, END_PAYLOAD_BYTES);
}

export function decodeSegmentEnd(bytes: Uint8Array, at: number): SegmentEnd {
  return {
    baseOffset: getU64(bytes, at + END_BASE_OFFSET),
    next: getU64(bytes, at + END_NEXT_OFFSET),
    commits: getU64(bytes, at + END_COMMITS_OFFSET),
    chain: getU32(bytes, at + END_CHAIN_OFFSET),
    epoch: getU32(bytes, at + END_EPOCH_OFFSET),
  };
}
