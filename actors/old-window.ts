/**
 * What a feed that is behind has read ahead: pieces of the log whose old rows are looked up together. A
 * block of the disk is then read, checked and searched once for all of them; piece by piece it would be
 * once for each. Grows while the disk is what is asked, and bounded over all feeds of a thread. Each
 * belongs to one feed; what is in it others find too. Lives with its hub, on its client's thread.
 */
import type { FeedHub, HubChunk } from './feed-hub.ts';
import type { ByteRange } from './key-range.ts';
import { OldReads } from './old-rows.ts';

/** Changes of one window: each takes some numbers besides. */
const CHANGES_MAX = 131_072;
/** A window grows as long as the disk is asked for one in so many of its changes, or more. */
const FROM_DISK_PARTS = 8;
/** ... and no longer than this: where a thread has much else to do, what is told meanwhile counts more. */
const GROWTH_MS_MAX = 500;

/** Of a feed: a collection, and the part of it that is followed. */
export type WindowTarget = { readonly id: number; readonly range: ByteRange | undefined };

export class OldWindow {
  readonly #hub: FeedHub;
  /** In order, nothing between. */
  #chunks: HubChunk[] = [];
  #bytes = 0;
  /** Below this offset the pieces are taken care of, by loads that have begun; one of them may take more. */
  #upper = 0;
  #isGrowing = false;

  constructor(hub: FeedHub) {
    this.#hub = hub;
  }

  /** Bytes of log in it. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The piece with `offset`, if it is here. */
  chunkAt(offset: number): HubChunk | undefined {
    return this.#chunks.find(({ log }) => offset >= log.from && offset < log.to);
  }

  /** The feed has come so far: what lies below is not its any more. */
  passed(offset: number): void {
    const chunks = this.#chunks;
    let gone = 0;
    while (gone < chunks.length && chunks[gone].log.to <= offset) {
      this.#bytes -= chunks[gone++].log.bytes.length;
    }
    if (gone === 0) return;
    chunks.splice(0, gone);
    if (chunks.length === 0) this.#hub.windows.delete(this);
  }

  /** The feed has ended. */
  clear(): void {
    this.#chunks = [];
    this.#bytes = 0;
    this.#hub.windows.delete(this);
  }

  #add(chunk: HubChunk): void {
    if (this.#chunks.includes(chunk)) return;
    this.#chunks.push(chunk);
    this.#bytes += chunk.log.bytes.length;
    this.#hub.windows.add(this);
  }

  /**
   * Looks up the old rows of the piece after the feed's own and, as long as that pays, of those that follow.
   * What cannot be read is met again by who wants it. Requires: their times are held until the feed has
   * passed them, `isWanted` says whether it still will.
   */
  async load(
    own: HubChunk,
    first: HubChunk,
    targets: readonly WindowTarget[],
    isWanted: () => boolean,
  ): Promise<void> {
    if (this.#isGrowing || first.log.from < this.#upper) return;
    const hub = this.#hub;
    const { client, counts } = hub;
    // With so many that come behind it the hub would let go of it.
    this.#add(own);
    const reads = targets.map(({ id }) => new OldReads(client, id));
    let end!: () => void;
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    const { clock } = client.context;
    const startedAtMs = clock.ticksMs();
    const T = Math.max(0, first.log.from - 1);
    client.hold(T);
    let isGrowing = true;
    this.#isGrowing = true;
    try {
      let changes = 0;
      for (let chunk = first; ;) {
        this.#add(chunk);
        this.#upper = chunk.log.to;
        for (const [i, { id, range }] of targets.entries()) {
          const changed = chunk.changesOf(id);
          if (changed === undefined) continue;
          changes += changed.count;
          await changed.gather(reads[i], range, ended);
        }
        if (!isWanted()) return;
        const { to, end: place } = chunk.log;
        const fromDisk = reads.reduce((sum, { count }) => sum + count, 0);
        if (fromDisk * FROM_DISK_PARTS < changes || changes >= CHANGES_MAX) break;
        if (clock.ticksMs() - startedAtMs > GROWTH_MS_MAX) break;
        if (to >= client.logged() || !hub.hasWindowRoom(chunk.log.bytes.length)) break;
        const next = hub.chunkInMemory(to) ?? (await hub.chunk(to, place));
        if (!isWanted()) return;
        chunk = next;
      }
      isGrowing = false;
      this.#isGrowing = false;
      for (const read of reads) {
        counts.oldRowsFromDisk += read.count;
        if (read.count > 0) await read.run();
      }
    } finally {
      if (isGrowing) this.#isGrowing = false;
      for (const read of reads) read.giveUp();
      client.release(T);
      end();
    }
  }
}
