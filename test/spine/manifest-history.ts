/**
 * Edits as a keeper would make them, from a seed: batches pushed to some collections, results applied,
 * counters, times, drops, archived segments. Beside them what the state should be after each, and a printer of manifest
 * files, frame by frame.
 */
import { getU32 } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import { KIND_KEYED } from '../../core/base/update.ts';
import type { SpineState } from '../../core/spine/batch.ts';
import {
  applyEdit,
  copyManifest,
  FRAME_HEADER_BYTES,
  frameKind,
  newManifest,
  notedTime,
} from '../../core/spine/manifest.ts';
import type {
  ArchivedSegment,
  Edit,
  LogPosition,
  ManifestState,
} from '../../core/spine/manifest.ts';
import type { PartInfo } from '../../core/spine/part-format.ts';
import { diffSpine, Spine } from '../../core/spine/spine.ts';
import { balanced } from './golden.ts';

export const LOG_ID: Uint8Array = Uint8Array.from({ length: 16 }, (_, i) => 0xa0 + i);

export const START: LogPosition = {
  upper: 0,
  seq: 1,
  position: 4_096,
  chain: 0,
  epoch: 1,
  atMs: 1_700_000_000_000,
};

export function infoOf(file: number, lower: number, upper: number, len: number): PartInfo {
  return {
    file,
    offset: 64 * (file % 3),
    bytes: 1_000 + len,
    kind: KIND_KEYED,
    len,
    rowBytes: 20 * len,
    keyLo: new Uint8Array([file & 255, 0]),
    keyHi: new Uint8Array([file & 255, 255, 254]),
    minT: lower,
    maxT: upper - 1,
    negatives: 0,
    rangeDeletes: 0,
    distinct: len,
    codec: 0,
    diffSum: len,
    hash: [Math.imul(len, 0x9e3779b1) >>> 0, len],
    blockCount: 1,
    rangeDeletesOffset: 700,
    rangeDeletesBytes: 0,
    filterOffset: 700,
    filterBytes: 100,
    indexOffset: 800,
    indexBytes: 50,
    footerOffset: 850,
  };
}

export function archivedOf(
  seq: number,
  base: number,
  end: number,
  baseAtMs: number,
): ArchivedSegment {
  const name = `${String(seq).padStart(10, '0')}.segz`;
  const hash = Uint8Array.from({ length: 32 }, (_, i) => (seq * 7 + i) & 255);
  return { seq, base, end, baseAtMs, bytes: 4_096 + 64 * seq, codec: 1 + (seq % 2), name, hash };
}

export class History {
  readonly prng: Prng;
  readonly edits: Edit[] = [];
  /** states[n]: after the first n edits. */
  readonly states: ManifestState[] = [newManifest(LOG_ID, START)];
  readonly #spines: Map<number, Spine<PartInfo>> = new Map();
  #bid = 1;
  #run = 1;
  #file = 1;

  constructor(seed: number) {
    this.prng = new Prng(seed);
  }

  get state(): ManifestState {
    return this.states[this.states.length - 1];
  }

  /** One more edit. */
  next(): Edit {
    const edit = this.#make();
    const state = copyManifest(this.state);
    applyEdit(state, edit);
    this.edits.push(edit);
    this.states.push(state);
    return edit;
  }

  #make(): Edit {
    const { prng } = this;
    const roll = prng.below(10);
    if (this.edits.length === 0 || roll === 0) {
      const { bid, run, file } = this.state.counters;
      return { counters: { bid: bid + 500, run: run + 500, file: file + 500 } };
    }
    if (roll < 6) return this.#flush();
    if (roll === 6) return this.#archive() ?? this.#flush();
    if (roll < 9) return this.#merge() ?? this.#flush();
    return this.#drop() ?? this.#flush();
  }

  #flush(): Edit {
    const { prng, state } = this;
    const lower = state.flushed.upper;
    const upper = lower + prng.between(1, 100);
    const flushed = {
      upper,
      seq: state.flushed.seq + (prng.chance(0.1) ? 1 : 0),
      position: 4_096 + 8 * prng.below(1_000),
      chain: prng.u32(),
      epoch: 1,
      atMs: state.flushed.atMs + prng.below(1_000),
    };
    const spines = [];
    for (const collection of new Set([0, prng.below(4), prng.below(4)])) {
      const before = state.spines.get(collection);
      const spine = this.#spine(collection);
      if (prng.chance(0.2)) spine.advanceSince(lower);
      const part = infoOf(this.#file++, spine.upper, upper, prng.between(1, 50));
      spine.push({ lower: spine.upper, upper, since: 0, runs: [[part]] });
      spines.push({ collection, delta: diffSpine(before, spine.state()) });
    }
    return { flushed, spines, ...notedTime(state.times, upper, flushed.atMs) };
  }

  #archive(): Edit | undefined {
    const { archived, flushed } = this.state;
    if (archived.length === 3) return { archivedRemoved: [archived[0].seq] };
    const last = archived.at(-1);
    const base = last?.end ?? 0;
    if (flushed.upper === base) return undefined;
    const end = this.prng.between(base + 1, flushed.upper);
    const seq = (last?.seq ?? 0) + 1;
    return { archivedAdded: [archivedOf(seq, base, end, last?.baseAtMs ?? 0)] };
  }

  #merge(): Edit | undefined {
    for (const [collection, spine] of this.#spines) {
      const batch = spine.batches().find(({ parts }) => parts.length > 1);
      if (batch === undefined) continue;
      const before = this.state.spines.get(collection);
      const { lower, upper } = batch.desc;
      const part = infoOf(this.#file++, lower, upper, batch.len);
      const inputs = batch.parts.map(({ hollow }) => hollow.bid);
      const { since } = batch.desc;
      const outcome = spine.apply(balanced(spine, { inputs, since, runs: [[part]] }));
      if (outcome.outcome !== 'applied') throw new Error(outcome.message);
      return { spines: [{ collection, delta: diffSpine(before, spine.state()) }] };
    }
    return undefined;
  }

  #drop(): Edit | undefined {
    const { state } = this;
    const [gone] = state.dropped;
    if (gone !== undefined) {
      this.#spines.delete(gone.collection);
      return { spinesRemoved: [gone.collection], droppedRemoved: [gone.collection] };
    }
    if (!this.#spines.has(3)) return undefined;
    return { droppedAdded: [{ collection: 3, offset: state.flushed.upper }] };
  }

  #spine(collection: number): Spine<PartInfo> {
    let spine = this.#spines.get(collection);
    if (spine === undefined) {
      const ids = { bid: () => this.#bid++, run: () => this.#run++ };
      const state: SpineState<PartInfo> | undefined = this.state.spines.get(collection);
      const options = { kind: KIND_KEYED, effort: 1, ids };
      spine = state === undefined ? new Spine(options) : Spine.restore(state, options);
      this.#spines.set(collection, spine);
    }
    return spine;
  }
}

/** A manifest file in words: position, kind, version and payload of every frame. */
export function printFrames(bytes: Uint8Array): string {
  const lines: string[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = getU32(bytes, at);
    const payload = bytes.subarray(at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + length);
    const json = JSON.stringify(JSON.parse(new TextDecoder().decode(payload)), undefined, 1);
    lines.push(`${at}: kind ${frameKind(bytes, at)} version ${bytes[at + 9]} payload ${length}`);
    lines.push(json);
    at += FRAME_HEADER_BYTES + length;
  }
  return `${lines.join('\n')}\n`;
}
