/**
 * Reads the transactions of a log in order while somebody else writes it: from any offset on that is
 * still there, up to a limit below which everything is written. What it returns has passed its
 * checksums, salted by segment and position, so that a segment that was deleted, used again or replaced
 * under it shows itself as such and never as another file's bytes. It waits for nothing but its own
 * reads, which hold no thread. Driven by the feeds of a client, on its thread; one call at a time.
 *
 * A segment is open here under a descriptor of the follower's own: nobody else closes it, and what was
 * unlinked stays readable until it is closed. One that is compressed gives the same bytes at the same
 * positions (segment-source.ts).
 */
import { invariant } from '../base/assert.ts';
import { alignUp } from '../base/bytes.ts';
import { crc32 } from '../base/crc32.ts';
import { TidemarkError, corrupt } from '../base/errors.ts';
import { KiB } from '../base/limits.ts';
import { compressedPath, segmentPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { validatePayload } from './payload.ts';
import { checkRecord } from './reader.ts';
import {
  RECORD_ALIGN,
  RECORD_COMMIT,
  RECORD_HEADER_BYTES,
  RECORD_SEAL,
  RecordHeader,
  isRecordHeader,
} from './record.ts';
import { SEGMENT_BLOCK_BYTES, decodeSegmentBlock, saltOf } from './segment.ts';
import type { SegmentHeader } from './segment.ts';
import { PackedBytes, openIfThere } from './segment-source.ts';
import {
  SEGZ_ENTRY_BYTES,
  SEGZ_HEADER_BYTES,
  SEGZ_TRAILER_BYTES,
  decodeHeaderCopy,
  decodeSegzHeader,
  decodeTable,
  decodeTrailer,
} from './segz.ts';

/** Read at once at first; a record that is larger is read whole. */
export const followBytesDefault: number = 64 * KiB;
/**
 * Each read that was too small for what is there is followed by one twice as large, up to so many times: a
 * larger piece shares more of what is read for it, a still larger one is checked for too long without a turn.
 */
export const followGrowthMax = 16;

/** A segment as the directory of the log names it. */
export type FollowSegment = { readonly seq: number; readonly base: number };

/** What a follower is told of the log it reads. */
export interface FollowSource {
  readonly storage: Storage;
  /** The segments that are kept, oldest first; those of the last moments may be missing. */
  segments(): readonly FollowSegment[];
  /** The segment that is being written, 0 when nobody writes; loaded after a limit it holds or follows it. */
  currentSeq(): number;
  /** Where what was taken into the segment that is being written ends, written or not. */
  currentEnd(): number;
}

/** Where a record stands; good for as long as its segment is there. */
export type FollowPlace = { readonly seq: number; readonly position: number };

/** Transactions [from, to) as they lie in the log. Its bytes are its own and never change. */
export class LogChunk {
  readonly bytes: Buffer;
  /** First offset of its first record: a record is read whole. */
  from = 0;
  to = 0;
  /** Of each record: offset of its first transaction, how many, where its payload stands, its time. */
  readonly firstOffsets: number[] = [];
  readonly txCounts: number[] = [];
  readonly payloadOffsets: number[] = [];
  readonly atMs: number[] = [];
  /** Where the first record stands, and the one after the last. */
  start: FollowPlace = { seq: 0, position: 0 };
  end: FollowPlace = { seq: 0, position: 0 };

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  get records(): number {
    return this.firstOffsets.length;
  }
}

/** What stopped a look at the bytes of a segment. */
const STOPPED_MORE = 0;
const STOPPED_LIMIT = 1;
const STOPPED_SEALED = 2;
const STOPPED_BAD = 3;
const STOPPED_PAYLOAD = 4;

/** Tries of a place that looks bad, each with the file opened anew. */
const TRIES_MAX = 3;

export class LogFollower {
  readonly #source: FollowSource;
  readonly #chunkBytes: number;
  #readBytes: number;
  readonly #header: RecordHeader = new RecordHeader();
  /** The offset that is read next. */
  #next = 0;
  #fd = -1;
  /** The frames of the open segment when it is compressed. */
  #packed: PackedBytes | undefined;
  #seq = 0;
  #salt = 0;
  /** Where the next record stands; -1: to be looked for. */
  #position = -1;
  /** Bytes that the next read must bring at least. */
  #wanted = 0;
  #logId: Uint8Array | undefined;
  #busy = false;
  #closed = false;

  constructor(source: FollowSource, chunkBytes: number = followBytesDefault) {
    this.#source = source;
    this.#chunkBytes = chunkBytes;
    this.#readBytes = chunkBytes;
  }

  get next(): number {
    return this.#next;
  }

  get busy(): boolean {
    return this.#busy;
  }

  /** The next read begins with the record of `offset`, which stands at `place` if that is given. */
  seek(offset: number, place?: FollowPlace): void {
    invariant(!this.#busy, 'a follower is moved between reads');
    this.#next = offset;
    this.#wanted = 0;
    this.#readBytes = this.#chunkBytes;
    if (place !== undefined && place.seq === this.#seq && this.#fd >= 0) {
      this.#position = place.position;
      return;
    }
    this.#release();
    if (place === undefined) return;
    this.#seq = place.seq;
    this.#position = place.position;
  }

  /**
   * The next transactions, all below `limit`; the first record may begin below `next`. Rejects with
   * TIDEMARK_HISTORY_LOST when the log begins above `next`, with TIDEMARK_CORRUPT when it is damaged.
   * Requires: `next` < `limit`, and all below `limit` is written.
   */
  async read(limit: number): Promise<LogChunk> {
    invariant(!this.#busy && !this.#closed, 'a follower reads once at a time');
    invariant(this.#next < limit, 'there is something to read', this.#next, limit);
    this.#busy = true;
    try {
      return await this.#read(limit);
    } catch (error) {
      this.#release();
      throw error;
    } finally {
      this.#busy = false;
      if (this.#closed) this.#release();
    }
  }

  /** Gives its descriptor back, at once or when the read under way has ended. */
  close(): void {
    this.#closed = true;
    if (!this.#busy) this.#release();
  }

  #release(): void {
    if (this.#fd >= 0) this.#source.storage.close(this.#fd);
    this.#fd = -1;
    this.#packed = undefined;
    this.#seq = 0;
    this.#position = -1;
  }

  async #read(limit: number): Promise<LogChunk> {
    let tries = 0;
    for (;;) {
      await this.#stand();
      const bytes = Buffer.allocUnsafe(this.#bytesToRead());
      const got = await this.#readAt(bytes, this.#position);
      const chunk = new LogChunk(bytes);
      const stopped = this.#take(chunk, got, limit);
      if (chunk.records > 0) {
        const most = this.#chunkBytes * followGrowthMax;
        const isBehind = stopped === STOPPED_MORE && bytes.length >= this.#readBytes;
        this.#readBytes = isBehind ? Math.min(2 * this.#readBytes, most) : this.#chunkBytes;
        chunk.end = { seq: this.#seq, position: this.#position };
        return chunk;
      }
      if (stopped === STOPPED_SEALED) {
        await this.#moveOn();
        continue;
      }
      if (stopped === STOPPED_MORE) {
        if (got === bytes.length) continue;
        // The file ends where more of it must be.
      }
      if (++tries >= TRIES_MAX) throw this.#damaged(stopped);
      // It was written before the limit was; if these are not its bytes, they are no longer its file.
      this.#release();
      this.#wanted = 0;
    }
  }

  /** Fills `bytes` from a position of the open segment, as far as that goes. */
  async #readAt(bytes: Buffer, position: number): Promise<number> {
    const { storage } = this.#source;
    const packed = this.#packed;
    const { length } = bytes;
    if (packed === undefined) return storage.readLater(this.#fd, bytes, 0, length, position);
    const stretch = packed.stretchOf(position, length);
    const frames = Buffer.allocUnsafe(stretch.bytes);
    if (stretch.bytes > 0) {
      await storage.readLater(this.#fd, frames, 0, frames.length, stretch.position);
    }
    return packed.unpack(frames, stretch.position, bytes, 0, length, position);
  }

  /** No more than is there: what follows the live end of a segment is zeros. */
  #bytesToRead(): number {
    const source = this.#source;
    const isLive = source.currentSeq() === this.#seq;
    const left = isLive ? source.currentEnd() - this.#position : 0;
    const most = left > 0 ? Math.min(left, this.#readBytes) : this.#readBytes;
    return Math.max(most, this.#wanted);
  }

  /** Takes what is whole, sound and below the limit from the bytes at the position. */
  #take(chunk: LogChunk, got: number, limit: number): number {
    const { bytes } = chunk;
    const header = this.#header;
    const upper = this.#upperOf();
    let at = 0;
    for (;;) {
      if (this.#next >= upper) return STOPPED_SEALED;
      if (this.#next >= limit) return STOPPED_LIMIT;
      this.#wanted = RECORD_HEADER_BYTES;
      if (got - at < RECORD_HEADER_BYTES) return STOPPED_MORE;
      if (!isRecordHeader(bytes, at, this.#salt, this.#position)) return STOPPED_BAD;
      header.decode(bytes, at, this.#seq, this.#position);
      checkRecord(header);
      this.#wanted = header.bytes;
      if (header.bytes > got - at) return STOPPED_MORE;
      if (header.kind === RECORD_COMMIT && header.endOffset > this.#next) {
        // In between would be what nobody wrote; a place that was looked for may be too low, never too high.
        if (header.minTxOffset > this.#next) return STOPPED_BAD;
        if (header.endOffset > limit) return STOPPED_LIMIT;
        const payload = at + RECORD_HEADER_BYTES;
        const { payloadLen, txCount } = header;
        if (crc32(bytes, payload, payloadLen) !== header.payloadCrc) return STOPPED_PAYLOAD;
        validatePayload(bytes, payload, payloadLen, txCount);
        if (chunk.records === 0) {
          chunk.from = header.minTxOffset;
          chunk.start = { seq: this.#seq, position: this.#position };
        }
        chunk.firstOffsets.push(header.minTxOffset);
        chunk.txCounts.push(txCount);
        chunk.payloadOffsets.push(payload);
        chunk.atMs.push(header.committedAtMs);
        chunk.to = header.endOffset;
        this.#next = header.endOffset;
      }
      at += header.bytes;
      this.#position += header.bytes;
      if (header.kind === RECORD_SEAL) return STOPPED_SEALED;
    }
  }

  // ---------------------------------------------------------------- segments

  /** First offset that is not of the open segment, as far as the directory knows. */
  #upperOf(): number {
    return this.#successorOf(this.#seq)?.base ?? Infinity;
  }

  #successorOf(seq: number): FollowSegment | undefined {
    return this.#source.segments().find((segment) => segment.seq > seq);
  }

  /** Opens the segment of `next` if none is open, and finds the record in it. */
  async #stand(): Promise<void> {
    if (this.#fd < 0 && this.#position >= 0) {
      // A place that was known before: its segment may be gone by now, and then it is looked for.
      const position = this.#position;
      if ((await this.#open(this.#seq)) !== undefined) this.#position = position;
    }
    if (this.#fd < 0) {
      const segments = this.#source.segments();
      const segment = segments.findLast(({ base }) => base <= this.#next);
      if (segment === undefined) throw lost(this.#next, segments[0]?.base);
      const header = await this.#open(segment.seq);
      if (header === undefined) throw this.#gone(segment.seq);
    }
    if (this.#position < 0) await this.#find();
  }

  /** The segment after the one that has ended. */
  async #moveOn(): Promise<void> {
    const ended = this.#seq;
    let next = this.#successorOf(ended)?.seq;
    if (next === undefined) {
      // The directory says it a moment later; the segments themselves name who came before.
      let seq = this.#source.currentSeq();
      while (seq > ended) {
        const header = await this.#headerOf(seq);
        if (header === undefined) {
          if (next !== undefined) throw this.#gone(seq);
          // The log is on its way into this one, and has not written to it: what was asked for lies below.
          seq--;
          continue;
        }
        next = seq;
        seq = header.prevSeq;
      }
      if (next === undefined || seq !== ended) throw this.#damaged(STOPPED_SEALED);
    }
    const header = await this.#open(next);
    if (header === undefined) throw this.#gone(next);
    if (header.baseOffset > this.#next) throw lost(this.#next, header.baseOffset);
    this.#position = SEGMENT_BLOCK_BYTES;
    this.#wanted = 0;
  }

  async #headerOf(seq: number): Promise<SegmentHeader | undefined> {
    const { storage } = this.#source;
    const fd = this.#openFile(segmentPath(seq));
    // Compressed only after it had a successor: by then the directory knew of it.
    if (fd < 0) return undefined;
    try {
      const block = Buffer.allocUnsafe(SEGMENT_BLOCK_BYTES);
      const got = await storage.readLater(fd, block, 0, block.length, 0);
      return got < block.length ? undefined : this.#check(block, seq);
    } finally {
      storage.close(fd);
    }
  }

  /** Opens a segment, its place unknown; undefined when there is none of that number any more. */
  async #open(seq: number): Promise<SegmentHeader | undefined> {
    this.#release();
    // A compress job puts the one in place of the other, once.
    for (const path of [segmentPath(seq), compressedPath(seq), segmentPath(seq)]) {
      const fd = this.#openFile(path);
      if (fd < 0) continue;
      this.#fd = fd;
      this.#seq = seq;
      const isPlain = path === segmentPath(seq);
      const header = isPlain ? await this.#plainHeader(seq) : await this.#openPacked(seq, path);
      if (header === undefined) this.#release();
      else this.#salt = saltOf(header.logId, seq);
      return header;
    }
    return undefined;
  }

  async #plainHeader(seq: number): Promise<SegmentHeader | undefined> {
    const block = Buffer.allocUnsafe(SEGMENT_BLOCK_BYTES);
    const got = await this.#source.storage.readLater(this.#fd, block, 0, block.length, 0);
    return got < block.length ? undefined : this.#check(block, seq);
  }

  /** Header and table of a compressed segment. Its end may be damaged where its front is not, and the reverse. */
  async #openPacked(seq: number, path: string): Promise<SegmentHeader | undefined> {
    const { storage } = this.#source;
    const fd = this.#fd;
    const fileBytes = storage.size(fd);
    const front = Buffer.alloc(SEGZ_HEADER_BYTES);
    await storage.readLater(fd, front, 0, front.length, 0);
    const trailer = Buffer.alloc(SEGZ_TRAILER_BYTES);
    const at = Math.max(0, fileBytes - trailer.length);
    await storage.readLater(fd, trailer, 0, trailer.length, at);
    const header = decodeSegzHeader(front, 0, path) ?? decodeHeaderCopy(trailer, path);
    if (header === undefined) return undefined;
    const { segment } = header;
    this.#expectOwn(segment, seq, path);
    const end = decodeTrailer(trailer, fileBytes, saltOf(segment.logId, seq), path);
    const table = Buffer.alloc(end.frameCount * SEGZ_ENTRY_BYTES);
    await storage.readLater(fd, table, 0, table.length, end.tablePosition);
    const frames = decodeTable(table, end, header, path);
    this.#packed = new PackedBytes(storage, fd, path, header, frames);
    return segment;
  }

  #openFile(path: string): number {
    return openIfThere(this.#source.storage, path) ?? -1;
  }

  /** The header of segment `seq`, or undefined when the block is not it: the file is being used again. */
  #check(block: Uint8Array, seq: number): SegmentHeader | undefined {
    const { header } = decodeSegmentBlock(block, segmentPath(seq));
    if (header === undefined || header.seq !== seq) return undefined;
    this.#expectOwn(header, seq, segmentPath(seq));
    return header;
  }

  #expectOwn(header: SegmentHeader, seq: number, path: string): void {
    this.#logId ??= header.logId;
    if (Buffer.compare(header.logId, this.#logId) === 0 && header.seq === seq) return;
    throw corrupt('FOREIGN_SEGMENT', `${path} belongs to another log`, { seq, position: 0 });
  }

  // ---------------------------------------------------------------- places

  /**
   * Finds a record at or below the one of `next` by halving: at each place the first sound header behind
   * it says which half. Headers are bound to their position, so bytes of values cannot pass for one.
   */
  async #find(): Promise<void> {
    const { storage } = this.#source;
    if (this.#packed !== undefined) {
      this.#position = this.#packed.positionOf(({ firstOffset }) => firstOffset <= this.#next);
      return;
    }
    const upper = this.#upperOf();
    let low = SEGMENT_BLOCK_BYTES;
    // Behind the live end are zeros, and there may be many.
    const isLive = this.#source.currentSeq() === this.#seq;
    const end = isLive ? this.#source.currentEnd() : storage.size(this.#fd);
    let high = alignUp(end, RECORD_ALIGN);
    const bytes = Buffer.allocUnsafe(this.#chunkBytes);
    const header = this.#header;
    while (high - low > this.#chunkBytes) {
      const middle = alignUp(Math.floor((low + high) / 2), RECORD_ALIGN);
      let found = -1;
      for (let from = middle; from < high && found < 0;) {
        const wanted = Math.min(bytes.length, high - from + RECORD_HEADER_BYTES);
        const got = await storage.readLater(this.#fd, bytes, 0, wanted, from);
        const at = firstHeader(bytes, got, this.#salt, from);
        if (at >= 0) {
          header.decode(bytes, at, this.#seq, from + at);
          found = from + at;
        }
        if (got < wanted) break;
        // What may begin in the last bytes is looked at again.
        from += alignUp(got - RECORD_HEADER_BYTES, RECORD_ALIGN);
      }
      // What lies behind the segment's end was made void by the next one.
      const isBelow = found >= 0 && header.minTxOffset <= this.#next && header.minTxOffset < upper;
      if (isBelow && found < high) low = found;
      else high = middle;
    }
    this.#position = low;
  }

  // ---------------------------------------------------------------- errors

  /** The segment's file is not there: let go of, or lost. */
  #gone(seq: number): TidemarkError {
    const segments = this.#source.segments();
    if (!segments.some((segment) => segment.seq === seq))
      return lost(this.#next, segments[0]?.base);
    return corrupt('MISSING_SEGMENT', `${segmentPath(seq)} is missing`, {
      seq,
      offset: this.#next,
    });
  }

  #damaged(stopped: number): TidemarkError {
    const offset = this.#next;
    const seq = this.#seq;
    const segments = this.#source.segments();
    if (segments.length > 0 && segments[0].base > offset) return lost(offset, segments[0].base);
    const kind = stopped === STOPPED_PAYLOAD ? 'payload' : 'header';
    const position = this.#position;
    return corrupt(
      'CHECKSUM',
      `${segmentPath(seq)} is damaged at ${position}: offset ${offset} must be there`,
      { file: segmentPath(seq), seq, position, offset, kind },
    );
  }
}

/** Place of the first sound header at a stride of 8 in bytes[0, length), which stand at `position`; -1: none. */
function firstHeader(bytes: Uint8Array, length: number, salt: number, position: number): number {
  const last = length - RECORD_HEADER_BYTES;
  for (let at = 0; at <= last; at += RECORD_ALIGN) {
    if (isRecordHeader(bytes, at, salt, position + at)) return at;
  }
  return -1;
}

function lost(offset: number, first: number | undefined): TidemarkError {
  return new TidemarkError(
    'TIDEMARK_HISTORY_LOST',
    `offset ${offset} is no longer in the log; the oldest one in it is ${first}`,
    { offset, oldest: first },
  );
}
