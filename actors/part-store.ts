/**
 * The files of parts as the keeper holds them: opened once, with each part's index and filter in
 * shared memory and a block that describes it to readers; counted, retired by epoch, deleted when the
 * last part and the last job let go. Part files are opened here and nowhere else for long. Runs on the
 * keeper's thread; loading is queued, never waited for.
 */
import { invariant } from '../core/base/assert.ts';
import { NO_BYTES } from '../core/base/bytes.ts';
import { corrupt } from '../core/base/errors.ts';
import { openPartsMax, pageBytes } from '../core/base/limits.ts';
import { rangeSetBytes, writeRangeSet } from '../core/base/range-set.ts';
import { UNTIL_NOW_AND_IO } from '../core/shared/epoch.ts';
import type { RetireList } from '../core/shared/epoch.ts';
import {
  FOOTER_READ_BYTES,
  footerBytes,
  isRangePart,
  parseFooter,
} from '../core/spine/part-format.ts';
import type { FileIds } from '../core/spine/part-files.ts';
import type { PartInfo, PartRef } from '../core/spine/part-format.ts';
import { checkFilter, checkIndex, checkRanges } from '../core/spine/part-reader.ts';
import { readRangeBlock } from '../core/spine/range-block.ts';
import { partBlockBytes, runBlockBytes, setTables, writePart } from '../core/spine/view.ts';
import { partPath, quarantinePath } from '../core/storage/names.ts';
import type { StorageAnswer, StorageCall } from '../core/storage/storage.ts';
import { SHORT_READ } from '../core/storage/storage.ts';
import type { ActorContext } from './actor.ts';
import { noRoom } from './view-room.ts';
import type { ViewRoom } from './view-room.ts';

/** When a table has to go, the largest of so many does: to look at all of them each time would take long. */
const TABLES_COMPARED = 256;
/** A part's description with keys of usual length, until there are some to tell. */
const PART_BLOCK_BYTES = 256;

/** An open part file. `parts` counts loaded parts, `pins` jobs that read it. */
type OpenFile = {
  file: number;
  fd: number;
  parts: number;
  /** Bytes of every part that was ever in it. */
  bytes: number;
  pins: number;
  doomed: boolean;
  /** Of something that went wrong: it is set aside, not deleted. */
  isEvidence: boolean;
};

export type LoadedPart = {
  readonly info: PartInfo;
  /** Address of the block that views name; of a part with range deletes, their set. */
  readonly block: number;
  index: number;
  filter: number;
  /** Runs of the current view that hold it. */
  refs: number;
};

/** A load under way: one file after the other, first footers, then indexes and filters. */
type Load = {
  readonly refs: readonly PartRef[];
  readonly infos: PartInfo[];
  /** Given from the manifest: no footer need be read. */
  readonly known: boolean;
  next: number;
  /** Opened, and not yet on the list of files; -1 = none. */
  fd: number;
  tails: Uint8Array[];
  indexes: Uint8Array[];
  filters: Uint8Array[];
  readonly done: (infos: PartInfo[] | undefined, failure: unknown) => void;
};

export class PartStore {
  readonly #context: ActorContext;
  readonly #loads: Set<Load> = new Set();
  /** Files to be deleted; the first of them is being. */
  readonly #unlinks: { readonly file: number; readonly bytes: number }[] = [];
  readonly #room: ViewRoom;
  readonly #retired: RetireList;
  readonly #submit: (
    fd: number,
    calls: readonly StorageCall[],
    done: (answer: StorageAnswer) => void,
  ) => void;
  readonly #files: Map<number, OpenFile> = new Map();
  readonly #parts: Map<string, LoadedPart> = new Map();
  /** Those with an index in memory. */
  readonly #withTables: Set<LoadedPart> = new Set();
  #openCount = 0;
  /** Bytes of all descriptions of parts. */
  #blockBytes = 0;
  filesDeleted = 0;
  /** Bytes of part files that are on disk, and files among them that wait for readers to be deleted. */
  bytesOnDisk = 0;
  filesPending = 0;
  /** Bytes of files that nobody wants and that are there yet: of those, and of those being deleted. */
  bytesLeaving = 0;

  constructor(
    context: ActorContext,
    room: ViewRoom,
    retired: RetireList,
    submit: (
      fd: number,
      calls: readonly StorageCall[],
      done: (answer: StorageAnswer) => void,
    ) => void,
  ) {
    this.#context = context;
    this.#room = room;
    room.shedTable = () => this.#shedTable();
    this.#retired = retired;
    this.#submit = submit;
  }

  get openFiles(): number {
    return this.#openCount;
  }

  /** Files with a part in them, or waiting for their deletion. */
  get fileCount(): number {
    return this.#files.size;
  }

  /** The file has a loaded part, or waits for its deletion. */
  has(file: number): boolean {
    return this.#files.has(file);
  }

  part(ref: PartRef): LoadedPart {
    const part = this.#parts.get(keyOf(ref));
    invariant(part !== undefined, 'a part of the view is loaded', ref.file, ref.offset);
    return part;
  }

  // ---------------------------------------------------------------- loading

  /** Opens the files of new parts and brings what readers need into memory; then calls `done`. */
  load(
    refs: readonly PartRef[],
    done: (infos: PartInfo[] | undefined, failure: unknown) => void,
  ): void {
    this.#start(refs, [], false, done);
  }

  /** The same for parts that the manifest describes. */
  restore(
    infos: readonly PartInfo[],
    done: (infos: PartInfo[] | undefined, failure: unknown) => void,
  ): void {
    this.#start(infos, [...infos], true, done);
  }

  #start(refs: readonly PartRef[], infos: PartInfo[], known: boolean, done: Load['done']): void {
    const load: Load = {
      refs,
      infos,
      known,
      next: 0,
      fd: -1,
      tails: [],
      indexes: [],
      filters: [],
      done,
    };
    this.#loads.add(load);
    this.#nextFile(load);
  }

  /** Parts of one file stand together in the list. */
  #group(load: Load): readonly PartRef[] {
    const { refs, next } = load;
    const file = refs[next].file;
    let to = next;
    while (to < refs.length && refs[to].file === file) to++;
    return refs.slice(next, to);
  }

  #nextFile(load: Load): void {
    if (load.next === load.refs.length) {
      this.#loads.delete(load);
      load.done(load.infos, undefined);
      return;
    }
    const group = this.#group(load);
    const file = group[0].file;
    const known = this.#files.get(file);
    const calls: StorageCall[] = [];
    if (known === undefined || known.fd < 0) {
      calls.push({ call: 'open', path: partPath(file), how: 'read' });
    }
    load.tails = [];
    if (load.known) {
      this.#readTables(load, group, calls, known?.fd ?? -1);
      return;
    }
    for (const ref of group) {
      const bytes = new Uint8Array(Math.min(FOOTER_READ_BYTES, ref.bytes));
      load.tails.push(bytes);
      calls.push({ call: 'read', bytes, position: ref.offset + ref.bytes - bytes.length });
    }
    this.#submit(known?.fd ?? -1, calls, (answer) => this.#onFooters(load, group, answer));
  }

  #onFooters(load: Load, group: readonly PartRef[], answer: StorageAnswer): void {
    if (answer.failure !== undefined) {
      this.#giveUp(load, asCorrupt(answer.failure, group));
      return;
    }
    this.#keepOpen(load, group, answer.fd);
    try {
      // A footer with long keys is longer than what was read of it: read those again, whole.
      const again: StorageCall[] = [];
      group.forEach((ref, i) => {
        const tail = load.tails[i];
        const needed = footerBytes(tail, tail.length, ref);
        if (needed <= tail.length) return;
        load.tails[i] = new Uint8Array(needed);
        again.push({
          call: 'read',
          bytes: load.tails[i],
          position: ref.offset + ref.bytes - needed,
        });
      });
      if (again.length > 0) {
        this.#submit(answer.fd, again, (next) => this.#onFooters(load, group, next));
        return;
      }
      group.forEach((ref, i) => {
        const tail = load.tails[i];
        load.infos.push(parseFooter(tail, 0, tail.length, ref));
      });
    } catch (error) {
      this.#giveUp(load, error);
      return;
    }
    this.#readTables(load, group, [], answer.fd);
  }

  #readTables(load: Load, group: readonly PartRef[], calls: StorageCall[], fd: number): void {
    load.indexes = [];
    load.filters = [];
    for (let i = 0; i < group.length; i++) {
      const info = load.infos[load.next + i];
      if (isRangePart(info)) {
        const ranges = new Uint8Array(info.rangeDeletesBytes);
        load.indexes.push(ranges);
        load.filters.push(NO_BYTES);
        const position = info.offset + info.rangeDeletesOffset;
        calls.push({ call: 'read', bytes: ranges, position });
        continue;
      }
      const index = new Uint8Array(info.indexBytes);
      const filter = new Uint8Array(info.filterBytes);
      load.indexes.push(index);
      load.filters.push(filter);
      calls.push({ call: 'read', bytes: index, position: info.offset + info.indexOffset });
      calls.push({ call: 'read', bytes: filter, position: info.offset + info.filterOffset });
    }
    this.#submit(fd, calls, (answer) => this.#onTables(load, group, answer));
  }

  #onTables(load: Load, group: readonly PartRef[], answer: StorageAnswer): void {
    if (answer.failure !== undefined) {
      this.#giveUp(load, asCorrupt(answer.failure, group));
      return;
    }
    try {
      load.fd = -1;
      this.#addFile(group[0].file, answer.fd);
      for (let i = 0; i < group.length; i++) {
        const info = load.infos[load.next + i];
        if (isRangePart(info)) {
          checkRanges(load.indexes[i], 0, info);
          this.#addRangePart(load, info, load.indexes[i]);
          continue;
        }
        checkIndex(load.indexes[i], 0, info);
        checkFilter(load.filters[i], 0, info);
        this.#addPart(load, info, load.indexes[i], load.filters[i]);
      }
    } catch (error) {
      this.#giveUp(load, error);
      return;
    }
    load.next += group.length;
    this.#nextFile(load);
  }

  /** Until the file is on the list its descriptor is known here only. */
  #keepOpen(load: Load, group: readonly PartRef[], fd: number): void {
    const known = this.#files.get(group[0].file);
    if (known === undefined || known.fd < 0) load.fd = fd;
  }

  #giveUp(load: Load, failure: unknown): void {
    if (load.fd >= 0) this.#context.storage.close(load.fd);
    load.fd = -1;
    this.#loads.delete(load);
    load.done(undefined, failure);
  }

  #addFile(file: number, fd: number): void {
    const known = this.#files.get(file);
    if (known !== undefined && known.fd >= 0) return;
    let kept = fd;
    if (this.#openCount < (this.#context.config.openPartsMax ?? openPartsMax)) {
      this.#openCount++;
    } else {
      // Readers open it themselves, for the read.
      this.#context.storage.close(fd);
      kept = -1;
    }
    if (known !== undefined) {
      known.fd = kept;
      return;
    }
    this.#files.set(file, {
      file,
      fd: kept,
      parts: 0,
      bytes: 0,
      pins: 0,
      doomed: false,
      isEvidence: false,
    });
  }

  /** What is in the store already must be shown, and is shown before all else. */
  #allocate(load: Load, bytes: number, what: string): number {
    const room = this.#room;
    const block = load.known ? room.allocate(bytes) : room.allocateBeside(bytes);
    if (block === 0) throw noRoom(what);
    return block;
  }

  #addPart(load: Load, info: PartInfo, index: Uint8Array, filter: Uint8Array): void {
    const { arena } = this.#context;
    const file = this.#files.get(info.file)!;
    const block = this.#allocate(load, partBlockBytes(info), 'the description of a part');
    const indexAddress = this.#place(index);
    // A filter without its index would save nothing.
    const filterAddress = indexAddress === 0 ? 0 : this.#place(filter);
    writePart(arena, block, info, file.fd, indexAddress, filterAddress);
    file.parts++;
    file.bytes += info.bytes;
    this.bytesOnDisk += info.bytes;
    const part: LoadedPart = {
      info,
      block,
      index: indexAddress,
      filter: filterAddress,
      refs: 0,
    };
    this.#parts.set(keyOf(info), part);
    this.#blockBytes += this.#room.sizeOf(block);
    if (indexAddress !== 0) this.#withTables.add(part);
  }

  /** Readers ask the set alone, never the file: it is in memory, or the part cannot be loaded. */
  #addRangePart(load: Load, info: PartInfo, bytes: Uint8Array): void {
    const { u32, u8 } = this.#context.arena;
    const ranges = readRangeBlock(bytes, 0);
    const size = rangeSetBytes(ranges);
    if (size > pageBytes) {
      const { file, offset } = info;
      throw corrupt('BAD_RANGES', `part at ${offset} of file ${file} has too many range deletes`, {
        file,
        offset,
      });
    }
    const block = this.#allocate(load, size, 'the range deletes of a part');
    writeRangeSet(u32, u8, block, ranges);
    this.#files.get(info.file)!.parts++;
    this.#parts.set(keyOf(info), { info, block, index: 0, filter: 0, refs: 0 });
    this.#blockBytes += this.#room.sizeOf(block);
  }

  /** Copies a table into shared memory; 0 when it does not fit, and readers then read it themselves. */
  #place(bytes: Uint8Array): number {
    const address = this.#room.allocateTable(bytes.length);
    if (address !== 0) this.#context.arena.u8.set(bytes, address);
    return address;
  }

  /** One of the largest tables goes, filters before indexes, and readers do without; false: there is none. */
  #shedTable(): boolean {
    let most: LoadedPart | undefined;
    let mostBytes = 0;
    let compared = 0;
    for (const part of this.#withTables) {
      // Readers look at an index without its filter, never at a filter alone.
      const bytes = part.filter !== 0 ? pageBytes + part.info.filterBytes : part.info.indexBytes;
      if (bytes > mostBytes) {
        most = part;
        mostBytes = bytes;
      }
      if (++compared === TABLES_COMPARED) break;
    }
    if (most === undefined) return false;
    const table = most.filter !== 0 ? most.filter : most.index;
    if (most.filter !== 0) most.filter = 0;
    else most.index = 0;
    if (most.index === 0) this.#withTables.delete(most);
    setTables(this.#context.arena, most.block, most.index, most.filter);
    this.#room.retireTable(table);
    return true;
  }

  /** What the description of a part takes. It is loaded. */
  bytesOf(ref: PartRef): number {
    return this.#room.sizeOf(this.part(ref).block);
  }

  /** Room that descriptions of so many parts are likely to take, and a run of them. */
  bytesToShow(parts: number): number {
    const count = this.#parts.size;
    const each = count === 0 ? PART_BLOCK_BYTES : Math.ceil(this.#blockBytes / count);
    return parts * (each + runBlockBytes(1, 0));
  }

  // ---------------------------------------------------------------- life and death

  ref(part: LoadedPart): void {
    part.refs++;
  }

  /** The current view lists the part in one run less. Requires: that view is published. */
  unref(part: LoadedPart): void {
    invariant(part.refs > 0, 'a part is let go as often as it was taken', part.info.file);
    if (--part.refs > 0) return;
    this.discard(part.info);
  }

  /** Lets go of a loaded part that no view lists any more, or that none ever did. */
  discard(ref: PartRef): void {
    const part = this.#parts.get(keyOf(ref));
    if (part === undefined) return;
    this.#parts.delete(keyOf(ref));
    this.#withTables.delete(part);
    this.#blockBytes -= this.#room.sizeOf(part.block);
    this.#room.retire(part.block);
    if (part.index !== 0) this.#room.retireTable(part.index);
    if (part.filter !== 0) this.#room.retireTable(part.filter);
    const file = this.#files.get(ref.file)!;
    file.parts--;
    this.#dropIfUnused(file);
  }

  /** As `discard`, of what proves that something is wrong: its file goes to quarantine/, and stays there. */
  setAside(ref: PartRef): void {
    const file = this.#files.get(ref.file);
    if (file !== undefined) file.isEvidence = true;
    this.discard(ref);
  }

  /** Lets go of what a job made and could not be loaded: parts that were, and files of those that were not. */
  discardOutputs(refs: readonly PartRef[]): void {
    for (const ref of refs) this.discard(ref);
    for (const number of new Set(refs.map(({ file }) => file))) {
      const file = this.#files.get(number);
      if (file !== undefined) this.#dropIfUnused(file);
      else this.delete(number);
    }
  }

  /** Files that a job may have left behind: none of them is known here. */
  discardFiles(ids: FileIds): void {
    const calls = Array.from({ length: ids.count }, (_, i): StorageCall => ({
      call: 'unlink',
      path: partPath(ids.first + i),
    }));
    // What could not be deleted is an orphan; the sweep of the next open takes it.
    this.#submit(-1, calls, () => {});
  }

  /** Of a file that is not known here, or not any more. */
  delete(file: number, bytes = 0): void {
    this.#unlinks.push({ file, bytes });
    if (this.#unlinks.length === 1) this.#unlinkNext();
  }

  /** The engine closes: only the one that is being deleted still is. */
  leaveForNextOpen(): void {
    this.#unlinks.splice(1);
  }

  /**
   * One at a time: a merge lets go of dozens of large files at once, and a file system that gives back all
   * their blocks together holds up every sync, and every other call that waits behind them, for as long.
   */
  #unlinkNext(): void {
    const { file, bytes } = this.#unlinks[0];
    this.#submit(-1, [{ call: 'unlink', path: partPath(file) }], () => {
      // What could not be deleted is an orphan; the sweep of the next open takes it.
      this.filesDeleted++;
      this.bytesLeaving -= bytes;
      this.#unlinks.shift();
      if (this.#unlinks.length > 0) this.#unlinkNext();
    });
  }

  /** A job reads these files: they stay until unpinned. */
  pin(files: Iterable<number>): void {
    for (const file of files) this.#files.get(file)!.pins++;
  }

  unpin(files: Iterable<number>): void {
    for (const number of files) {
      const file = this.#files.get(number)!;
      file.pins--;
      this.#dropIfUnused(file);
    }
  }

  #dropIfUnused(file: OpenFile): void {
    if (file.parts > 0 || file.pins > 0 || file.doomed) return;
    file.doomed = true;
    this.filesPending++;
    if (!file.isEvidence) this.bytesLeaving += file.bytes;
    // A closed number may soon be somebody else's file: also asynchronous reads must be over.
    this.#retired.retire(file.file, UNTIL_NOW_AND_IO, () => {
      this.#files.delete(file.file);
      this.filesPending--;
      this.bytesOnDisk -= file.bytes;
      if (file.fd >= 0) {
        this.#context.storage.close(file.fd);
        this.#openCount--;
      }
      if (file.isEvidence) this.#quarantine(file.file);
      else this.delete(file.file, file.bytes);
    });
  }

  /** What could not be moved is an orphan, and is lost as evidence. */
  #quarantine(file: number): void {
    const path = partPath(file);
    const name = quarantinePath(`${path.slice(path.lastIndexOf('/') + 1)}.refused`);
    this.#submit(-1, [{ call: 'rename', from: path, to: name }], () => {});
  }

  /** Closes every descriptor. Requires: no reader is inside. */
  closeAll(): void {
    for (const file of this.#files.values()) {
      if (file.fd >= 0) this.#context.storage.close(file.fd);
      file.fd = -1;
    }
    for (const load of this.#loads) {
      if (load.fd >= 0) this.#context.storage.close(load.fd);
      load.fd = -1;
    }
  }
}

function keyOf(ref: PartRef): string {
  return `${ref.file}:${ref.offset}`;
}

/** A part that ends before its footer says is damage, not an I/O error. */
function asCorrupt(failure: unknown, group: readonly PartRef[]): unknown {
  if ((failure as { code?: unknown } | undefined)?.code !== SHORT_READ) return failure;
  const file = partPath(group[0].file);
  return corrupt('CUT_PART', `${file} is shorter than the manifest says`, { file });
}
