/**
 * Checks one part against what the manifest says of it: footer, index and filter, or range deletes; when all of it is
 * wanted, every block's checksum, the order of the rows, and the counts, times and hashes that the
 * footer sums up. One storage call between two yields. Called by verify, on any thread.
 */
import { compareAt, equalAt } from '../base/bytes.ts';
import { OP_UPDATE } from '../base/update.ts';
import { corrupt } from '../base/errors.ts';
import { BlockCursor, blockFault } from '../spine/block.ts';
import { isPacked, unpackBlock } from '../spine/block-codec.ts';
import { filterMayHold } from '../spine/filter.ts';
import { isRangePart } from '../spine/part-format.ts';
import type { PartInfo } from '../spine/part-format.ts';
import { blockBytes, blockOffset } from '../spine/part-index.ts';
import { badBlock, readFilter, readFooter, readIndex, readRanges } from '../spine/part-reader.ts';
import { RowSums, keyHash, valueHash } from '../spine/row-hash.ts';
import { partPath } from '../storage/names.ts';
import type { Storage } from '../storage/storage.ts';
import { findingOf } from './report.ts';
import type { Machine, Progress, StoreFinding } from './report.ts';

/** Blocks are read together up to this. */
const READ_BYTES = 1 << 20;

/** What is wrong with the part in the open file. */
export function* checkPart(
  storage: Storage,
  fd: number,
  part: PartInfo,
  full: boolean,
  progress: Progress,
): Machine<StoreFinding[]> {
  const file = partPath(part.file);
  const findings: StoreFinding[] = [];
  const note = (error: unknown): void => {
    findings.push({ position: part.offset, ...findingOf(error, file) });
  };
  try {
    const footer = readFooter(storage, fd, part);
    const differs = difference(footer, part);
    if (differs !== undefined) {
      const position = part.offset + part.footerOffset;
      note(
        corrupt('PART_DIFFERS', `its footer and the manifest say different things (${differs})`, {
          position,
        }),
      );
    }
  } catch (error) {
    note(error);
  }
  yield;
  if (isRangePart(part)) {
    try {
      readRanges(storage, fd, part);
    } catch (error) {
      note(error);
    }
    progress.doneBytes += part.rangeDeletesBytes;
    yield;
    return findings;
  }
  let index: Uint8Array | undefined;
  let filter: Uint8Array | undefined;
  try {
    index = readIndex(storage, fd, part);
  } catch (error) {
    note(error);
  }
  yield;
  try {
    filter = readFilter(storage, fd, part);
  } catch (error) {
    note(error);
  }
  yield;
  if (full && index !== undefined) {
    yield* checkRows(storage, fd, part, index, filter, progress, note);
  }
  return findings;
}

function* checkRows(
  storage: Storage,
  fd: number,
  part: PartInfo,
  index: Uint8Array,
  filter: Uint8Array | undefined,
  progress: Progress,
  note: (error: unknown) => void,
): Machine<void> {
  const rows = new RowCheck(part, filter);
  let window: Uint8Array = new Uint8Array(READ_BYTES);
  let whole = true;
  for (let block = 0; block < part.blockCount;) {
    const from = blockOffset(index, 0, block);
    let last = block + 1;
    while (last < part.blockCount && blockOffset(index, 0, last + 1) - from <= READ_BYTES) last++;
    const bytes = blockOffset(index, 0, last) - from;
    if (bytes > window.length) window = new Uint8Array(bytes);
    let got = 0;
    try {
      got = storage.read(fd, window, 0, bytes, part.offset + from);
    } catch (error) {
      note(error);
    }
    yield;
    for (; block < last; block++) {
      const at = blockOffset(index, 0, block) - from;
      const length = blockBytes(index, 0, block);
      const position = part.offset + from + at;
      const fault = at + length > got ? 'the file ends inside it' : blockFault(window, at, length);
      const plain = fault === undefined && isPacked(window, at);
      try {
        const found = plain ? unpackBlock(window, at, length) : fault;
        if (typeof found === 'string') throw badBlock(part.file, block, position, found);
        if (found === undefined) rows.block(window, at);
        else rows.block(found, 0);
      } catch (error) {
        whole = false;
        note(error);
      }
    }
    progress.doneBytes += bytes;
  }
  const wrong = rows.fault(whole);
  if (wrong !== undefined) note(corrupt('PART_ROWS', wrong, { position: part.offset }));
}

/** Goes over all rows of a part, block after block. */
class RowCheck {
  readonly #part: PartInfo;
  readonly #filter: Uint8Array | undefined;
  readonly #cursor: BlockCursor = new BlockCursor();
  readonly #sums: RowSums = new RowSums();
  #key: Uint8Array = new Uint8Array(256);
  #keyLength = -1;
  #time = 0;
  /** Of the last update. */
  #value: Uint8Array = new Uint8Array(256);
  #valueLength = 0;
  #rowBytes = 0;
  #negatives = 0;
  #distinct = 0;
  #minT: number = Number.MAX_SAFE_INTEGER;
  #maxT = 0;
  #fault: string | undefined = undefined;

  constructor(part: PartInfo, filter: Uint8Array | undefined) {
    this.#part = part;
    this.#filter = filter;
  }

  /** Requires: blockFault found nothing. */
  block(bytes: Uint8Array, at: number): void {
    const rows = this.#cursor;
    rows.open(bytes, at);
    for (rows.first(); rows.valid; rows.next()) this.#row();
  }

  #row(): void {
    const { keyBytes, keyOffset, keyLength, time, kind, diff, valueLength } = this.#cursor;
    const isFirst = this.#keyLength < 0;
    const order = isFirst
      ? 1
      : compareAt(keyBytes, keyOffset, keyLength, this.#key, 0, this.#keyLength);
    if (order < 0 || (order === 0 && !this.#follows(kind, time))) {
      this.#fault ??= `row ${this.#sums.len} is out of order`;
    }
    if (order !== 0) {
      if (keyLength > this.#key.length) this.#key = new Uint8Array(keyLength * 2);
      this.#key.set(keyBytes.subarray(keyOffset, keyOffset + keyLength));
      this.#keyLength = keyLength;
    }
    this.#time = time;
    if (order !== 0 || (kind === OP_UPDATE && !this.#isSameValue())) this.#distinct++;
    if (kind === OP_UPDATE) this.#keepValue();
    this.#rowBytes += keyLength + valueLength;
    if (diff < 0) this.#negatives++;
    this.#minT = Math.min(this.#minT, time);
    this.#maxT = Math.max(this.#maxT, time);
    const hash = keyHash(keyBytes, keyOffset, keyLength);
    const { valueBytes, valueOffset } = this.#cursor;
    this.#sums.add(hash, kind, valueHash(valueBytes, valueOffset, valueLength), time, diff);
    if (this.#filter !== undefined && !filterMayHold(this.#filter, 0, hash)) {
      this.#fault ??= `row ${this.#sums.len - 1} is not in the filter`;
    }
  }

  /** Of two rows of one key: the cursor's may follow the last one. */
  #follows(kind: number, time: number): boolean {
    if (kind !== OP_UPDATE) return time < this.#time;
    const { valueBytes, valueOffset, valueLength } = this.#cursor;
    const last = this.#value;
    const order = compareAt(valueBytes, valueOffset, valueLength, last, 0, this.#valueLength);
    return order > 0 || (order === 0 && time >= this.#time);
  }

  #isSameValue(): boolean {
    const { valueBytes, valueOffset, valueLength } = this.#cursor;
    return equalAt(valueBytes, valueOffset, valueLength, this.#value, 0, this.#valueLength);
  }

  #keepValue(): void {
    const { valueBytes, valueOffset, valueLength } = this.#cursor;
    if (valueLength > this.#value.length) this.#value = new Uint8Array(valueLength * 2);
    this.#value.set(valueBytes.subarray(valueOffset, valueOffset + valueLength));
    this.#valueLength = valueLength;
  }

  /** `whole`: no block was left out. */
  fault(whole: boolean): string | undefined {
    if (this.#fault !== undefined || !whole) return this.#fault;
    const { len, rowBytes, negatives, distinct, minT, maxT, diffSum, hash, keyHi } = this.#part;
    const sums = this.#sums;
    const found = sums.hash();
    const pairs: [string, number, number][] = [
      ['rows', sums.len, len],
      ['bytes of rows', this.#rowBytes, rowBytes],
      ['negatives', this.#negatives, negatives],
      ['distinct rows', this.#distinct, distinct],
      ['smallest time', this.#minT, minT],
      ['largest time', this.#maxT, maxT],
      ['sum of diffs', sums.diffSum, diffSum],
      ['hash', found[0], hash[0]],
      ['hash of times', found[1], hash[1]],
    ];
    for (const [what, got, wanted] of pairs) {
      if (got !== wanted) return `${what}: ${got} found, the footer says ${wanted}`;
    }
    const order = compareAt(this.#key, 0, this.#keyLength, keyHi, 0, keyHi.length);
    return order === 0 ? undefined : 'its last key is not the one that the footer says';
  }
}

/** The first field in which a footer is not what the manifest says. */
function difference(footer: PartInfo, said: PartInfo): string | undefined {
  const a: { [name: string]: unknown } = { ...footer };
  const b: { [name: string]: unknown } = { ...said };
  for (const name of Object.keys(a)) {
    const [x, y] = [a[name], b[name]];
    const same =
      x instanceof Uint8Array && y instanceof Uint8Array
        ? Buffer.compare(x, y) === 0
        : Array.isArray(x) && Array.isArray(y)
          ? x.every((value, i) => value === y[i])
          : x === y;
    if (!same) return name;
  }
  return undefined;
}
