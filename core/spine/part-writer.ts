/**
 * Writes the rows of one run, in order, as parts: blocks as they fill, then filter, index and footer;
 * before them its range deletes, in parts of their own.
 * The same rows and sizes give the same bytes. A part is cut before the row that would take it beyond
 * its size, its rows, or its index beyond a page; between two keys or between two versions of one.
 * Called by flush and merge jobs, in private memory.
 */
import { invariant } from '../base/assert.ts';
import { NO_BYTES, commonPrefix, compareAt, compareBytes, equalAt } from '../base/bytes.ts';
import type { Row } from '../base/cursor.ts';
import { blockBytesTarget, keyBytesMax, partBytesTarget, partRowsMax } from '../base/limits.ts';
import type { RangeDelete } from '../base/range-set.ts';
import { KIND_KEYED, OP_DELETE, OP_PUT, OP_UPDATE } from '../base/update.ts';
import { BlockBuilder } from './block.ts';
import { packBlock } from './block-codec.ts';
import { copyAt } from '../base/copy.ts';
import { filterBytes, writeFilter } from './filter.ts';
import { sharedBytesMax } from './part-files.ts';
import type { PartFiles } from './part-files.ts';
import { footerBytesFor, writeFooter } from './part-format.ts';
import type { PartInfo } from './part-format.ts';
import { IndexBuilder } from './part-index.ts';
import { addRange, rangeBlockBytes, rangePieces, writeRangeBlock } from './range-block.ts';
import { keyHash, RowSums } from './row-hash.ts';

/** How large blocks and parts get. Plain JSON; part of what makes a job's bytes. */
export type PartShape = {
  blockBytes: number;
  partBytes: number;
  partRows: number;
  /** By which blocks are compressed (block-codec.ts); left out: by none. */
  codec?: number;
};

export const PART_SHAPE: PartShape = {
  blockBytes: blockBytesTarget,
  partBytes: partBytesTarget,
  partRows: partRowsMax,
};

/** Parts of so many bytes, of four blocks at the least. */
export function shapeOf(partBytes: number = partBytesTarget, codec = 0): PartShape {
  const blockBytes = Math.min(blockBytesTarget, Math.ceil(partBytes / 4));
  const shape = { ...PART_SHAPE, blockBytes, partBytes };
  return codec === 0 ? shape : { ...shape, codec };
}

const NO_KEY = -1;

export class PartWriter {
  readonly #files: PartFiles;
  readonly #shape: PartShape;
  readonly #block: BlockBuilder;
  readonly #index: IndexBuilder;
  readonly #sums: RowSums;
  /** Hashes of the part's distinct keys. */
  #hashes: Uint32Array;
  #hashCount: number;
  #kind: number;
  #parts: PartInfo[];
  /** How many of them hold range deletes: the first ones. */
  #rangeParts: number;

  /** The last row of the run; its length is NO_KEY before the first. */
  readonly #last: Uint8Array;
  #lastLength: number;
  #lastTime: number;
  #lastHash: number;
  /** Of updates, which order by it too. */
  #lastValue: Uint8Array;
  #lastValueLength: number;

  /** The part that is being written. */
  #partAt: number;
  /** Where it is cut. */
  #partBytesMax: number;
  #keyLo: Uint8Array;
  #minT: number;
  #maxT: number;
  #negatives: number;
  #distinct: number;
  #rowBytes: number;

  constructor(files: PartFiles, shape: PartShape) {
    invariant(shape.partRows <= partRowsMax, 'the filter of a part fits a page', shape.partRows);
    this.#files = files;
    this.#shape = shape;
    this.#block = new BlockBuilder();
    this.#index = new IndexBuilder();
    this.#sums = new RowSums();
    this.#hashes = new Uint32Array(1024);
    this.#hashCount = 0;
    this.#kind = KIND_KEYED;
    this.#parts = [];
    this.#rangeParts = 0;
    this.#last = new Uint8Array(keyBytesMax);
    this.#lastLength = NO_KEY;
    this.#lastTime = -1;
    this.#lastHash = 0;
    this.#lastValue = NO_BYTES;
    this.#lastValueLength = 0;
    this.#partAt = 0;
    this.#partBytesMax = shape.partBytes;
    this.#keyLo = this.#last;
    this.#minT = -1;
    this.#maxT = -1;
    this.#negatives = 0;
    this.#distinct = 0;
    this.#rowBytes = 0;
  }

  /** Begins a run of a collection of that kind. */
  begin(kind: number): void {
    invariant(this.#sums.len === 0, 'the run before was ended');
    this.#kind = kind;
    this.#parts = [];
    this.#rangeParts = 0;
    this.#lastLength = NO_KEY;
  }

  /** Writes the run's range deletes. Requires: in order, no two alike, and no row has been added. */
  addRanges(ranges: readonly RangeDelete[]): void {
    invariant(this.#parts.length === 0 && this.#sums.len === 0, 'range deletes come first');
    for (const piece of rangePieces(ranges)) this.#writeRanges(piece);
  }

  #writeRanges(ranges: readonly RangeDelete[]): void {
    const files = this.#files;
    const sums = this.#sums;
    files.beginPart(this.#parts.length === 0);
    const offset = files.position;
    const at = files.reserve(rangeBlockBytes(ranges));
    const bytes = writeRangeBlock(files.staging, at, ranges);
    files.advance(bytes);
    let minT = ranges[0].time;
    let maxT = minT;
    let rowBytes = 0;
    for (const range of ranges) {
      addRange(sums, range);
      minT = Math.min(minT, range.time);
      maxT = Math.max(maxT, range.time);
      rowBytes += range.lo.length + range.hi.length;
    }
    const info: PartInfo = {
      file: files.file,
      offset,
      bytes: 0,
      kind: this.#kind,
      len: ranges.length,
      rowBytes,
      keyLo: NO_BYTES,
      keyHi: NO_BYTES,
      minT,
      maxT,
      negatives: 0,
      rangeDeletes: ranges.length,
      distinct: 0,
      codec: 0,
      diffSum: 0,
      hash: sums.hash(),
      blockCount: 0,
      rangeDeletesOffset: 0,
      rangeDeletesBytes: bytes,
      filterOffset: bytes,
      filterBytes: 0,
      indexOffset: bytes,
      indexBytes: 0,
      footerOffset: bytes,
    };
    this.#writeFooter(info);
    this.#rangeParts++;
    sums.clear();
  }

  /** Adds the row that the cursor stands on, with its value loaded. Requires rows in order. */
  add(row: Row): void {
    const { keyBytes, keyOffset, keyLength, time, kind, diff } = row;
    const { valueBytes, valueOffset, valueLength } = row;
    invariant(keyLength <= keyBytesMax, 'a key has a legal length', keyLength);
    if (this.#kind === KIND_KEYED) {
      invariant(kind === OP_PUT || kind === OP_DELETE, 'a keyed run holds puts and deletes', kind);
    } else {
      invariant(kind === OP_UPDATE, 'a run of other kinds holds updates', kind);
    }
    const last = this.#last;
    const lastLength = this.#lastLength;
    let shared = 0;
    let isSameKey = false;
    if (lastLength !== NO_KEY) {
      shared = commonPrefix(last, 0, lastLength, keyBytes, keyOffset, keyLength);
      if (shared === keyLength) {
        isSameKey = shared === lastLength;
        invariant(isSameKey && this.#ascends(row), 'rows ascend', time, this.#lastTime);
      } else {
        const ascends = shared === lastLength || last[shared] < keyBytes[keyOffset + shared];
        invariant(ascends, 'rows ascend', time);
      }
    }

    const block = this.#block;
    if (this.#sums.len === this.#shape.partRows) {
      this.#endPart();
    } else if (block.rows > 0 && block.bytesWith(keyLength, valueLength) > this.#shape.blockBytes) {
      const bytes = this.#files.position - this.#partAt + block.bytes;
      if (bytes >= this.#partBytesMax || !this.#index.hasRoom) this.#endPart();
      else this.#endBlock(keyBytes, keyOffset, keyLength, shared);
    }
    if (this.#sums.len === 0) this.#beginPart(keyBytes, keyOffset, keyLength);

    if (!isSameKey) {
      copyAt(keyBytes, keyOffset + shared, keyLength - shared, last, shared);
      this.#lastLength = keyLength;
      this.#lastHash = keyHash(keyBytes, keyOffset, keyLength);
    }
    if (!isSameKey || this.#hashCount === 0) {
      if (this.#hashCount === this.#hashes.length) this.#growHashes();
      this.#hashes[this.#hashCount++] = this.#lastHash;
    }
    this.#lastTime = time;
    const isRepeated =
      isSameKey && this.#sums.len > 0 && (kind !== OP_UPDATE || this.#isSameValue(row));
    if (!isRepeated) this.#distinct += 1;
    if (kind === OP_UPDATE) this.#keepValue(valueBytes, valueOffset, valueLength);
    const v = block.add(
      keyBytes,
      keyOffset,
      keyLength,
      shared,
      time,
      kind,
      diff,
      valueBytes,
      valueOffset,
      valueLength,
    );
    this.#sums.add(this.#lastHash, kind, v, time, diff);
    if (time < this.#minT) this.#minT = time;
    if (time > this.#maxT) this.#maxT = time;
    if (diff < 0) this.#negatives += 1;
    this.#rowBytes += keyLength + valueLength;
  }

  /**
   * Takes a part that is there already into the run, at the place that its keys say: the part in hand
   * ends before it. Requires: no row of the run is of a key that lies in it.
   */
  move(part: PartInfo): void {
    if (this.#sums.len > 0) this.#endPart();
    const { keyLo, keyHi } = part;
    const isAbove =
      this.#lastLength === NO_KEY ||
      compareAt(keyLo, 0, keyLo.length, this.#last, 0, this.#lastLength) > 0;
    invariant(isAbove, 'a moved part begins above the last row', part.file, part.offset);
    invariant(compareBytes(keyLo, keyHi) <= 0, 'a part has its keys in order', part.file);
    this.#parts.push(part);
    // No row that may follow is of this key, so its time and value are nobody's.
    copyAt(keyHi, 0, keyHi.length, this.#last, 0);
    this.#lastLength = keyHi.length;
    this.#lastTime = -1;
  }

  /** Of two rows of one key: the row may follow the last one. */
  #ascends(row: Row): boolean {
    if (row.kind !== OP_UPDATE) return row.time < this.#lastTime;
    const { valueBytes, valueOffset, valueLength } = row;
    const order = compareAt(
      valueBytes,
      valueOffset,
      valueLength,
      this.#lastValue,
      0,
      this.#lastValueLength,
    );
    // Two of one time are two whose sum is no safe integer.
    return order > 0 || (order === 0 && row.time >= this.#lastTime);
  }

  #isSameValue({ valueBytes, valueOffset, valueLength }: Row): boolean {
    return equalAt(valueBytes, valueOffset, valueLength, this.#lastValue, 0, this.#lastValueLength);
  }

  #keepValue(value: Uint8Array, offset: number, length: number): void {
    const fits = length <= this.#lastValue.length;
    if (!fits) this.#lastValue = new Uint8Array(Math.max(length, 2 * this.#lastValue.length));
    copyAt(value, offset, length, this.#lastValue, 0);
    this.#lastValueLength = length;
  }

  /** Ends the run. Its parts are complete, but not durable before `PartFiles.finish`. */
  end(): PartInfo[] {
    if (this.#sums.len > 0) this.#endPart();
    return this.#parts;
  }

  #beginPart(key: Uint8Array, offset: number, length: number): void {
    // Rows may follow their run's range deletes in the file.
    this.#files.beginPart(this.#parts.length === this.#rangeParts);
    this.#partAt = this.#files.position;
    const isSharing = this.#partAt > 0 && this.#partAt < sharedBytesMax;
    const most = isSharing ? sharedBytesMax - this.#partAt : Number.POSITIVE_INFINITY;
    this.#partBytesMax = Math.min(this.#shape.partBytes, most);
    this.#keyLo = key.slice(offset, offset + length);
    this.#hashCount = 0;
    this.#minT = Number.MAX_SAFE_INTEGER;
    this.#maxT = 0;
    this.#negatives = 0;
    this.#distinct = 0;
    this.#rowBytes = 0;
  }

  #endBlock(next: Uint8Array, offset: number, length: number, shared: number): void {
    this.#writeBlock();
    const end = this.#files.position - this.#partAt;
    this.#index.endBlock(end, this.#lastLength, next, offset, length, shared);
  }

  #writeBlock(): void {
    const files = this.#files;
    const at = files.reserve(this.#block.bytes);
    const bytes = this.#block.write(files.staging, at);
    const { codec } = this.#shape;
    const packed = codec === undefined ? undefined : packBlock(codec, files.staging, at, bytes);
    if (packed !== undefined) files.staging.set(packed, at);
    files.advance(packed === undefined ? bytes : packed.length);
    this.#block.clear();
  }

  #endPart(): void {
    const files = this.#files;
    this.#writeBlock();
    const rangeDeletesOffset = files.position - this.#partAt;
    this.#index.endLast(rangeDeletesOffset);

    const filterOffset = rangeDeletesOffset;
    const filterAt = files.reserve(filterBytes(this.#hashCount));
    const filterLength = writeFilter(this.#hashes, this.#hashCount, files.staging, filterAt);
    files.advance(filterLength);

    const indexOffset = filterOffset + filterLength;
    const indexAt = files.reserve(this.#index.bytes);
    const indexLength = this.#index.write(files.staging, indexAt);
    files.advance(indexLength);

    const footerOffset = indexOffset + indexLength;
    const info: PartInfo = {
      file: files.file,
      offset: this.#partAt,
      bytes: 0,
      kind: this.#kind,
      len: this.#sums.len,
      rowBytes: this.#rowBytes,
      keyLo: this.#keyLo,
      keyHi: this.#last.slice(0, this.#lastLength),
      minT: this.#minT,
      maxT: this.#maxT,
      negatives: this.#negatives,
      rangeDeletes: 0,
      distinct: this.#distinct,
      codec: this.#shape.codec ?? 0,
      diffSum: this.#sums.diffSum,
      hash: this.#sums.hash(),
      blockCount: this.#index.blockCount,
      rangeDeletesOffset,
      rangeDeletesBytes: 0,
      filterOffset,
      filterBytes: filterLength,
      indexOffset,
      indexBytes: indexLength,
      footerOffset,
    };
    this.#writeFooter(info);

    this.#index.clear();
    this.#sums.clear();
    this.#hashCount = 0;
  }

  #writeFooter(info: PartInfo): void {
    const files = this.#files;
    const footerLength = footerBytesFor(info);
    info.bytes = info.footerOffset + footerLength;
    const footerAt = files.reserve(footerLength);
    files.advance(writeFooter(files.staging, footerAt, info));
    this.#parts.push(info);
  }

  #growHashes(): void {
    const hashes = new Uint32Array(this.#hashes.length * 2);
    hashes.set(this.#hashes);
    this.#hashes = hashes;
  }
}
