/**
 * What the explorer knows of a thread: the tree of its histories, one `Point` per access it may make
 * next; what it touched plainly between two Atomics calls; the meaning of each Atomics call; and the
 * memory itself. Used by `explorer.ts` only.
 */

export type Call =
  | 'start'
  | 'read'
  | 'write'
  | 'load'
  | 'store'
  | 'add'
  | 'sub'
  | 'and'
  | 'or'
  | 'xor'
  | 'exchange'
  | 'compareExchange'
  | 'wait'
  | 'notify'
  | 'done'
  | 'threw';

export type Result = number | string | undefined;

export type ViewKind = 'u8' | 'i32' | 'u32' | 'f64';

/** Bytes touched plainly between two scheduling points: word -> mask, bits 0..3 read, 4..7 written. */
export type Footprint = Map<number, number>;

/** What a thread does next after a certain history. */
export class Point {
  readonly parent: Point | undefined;
  /** Result of the parent's access. */
  readonly result: Result;
  readonly call: Call;
  readonly view: ViewKind;
  readonly at: number;
  readonly a: number;
  readonly b: number;
  readonly children: Map<Result, Point> = new Map();
  /** Of scheduling points: plain accesses since the one before. */
  readonly footprint: Footprint | undefined;
  /** Of scheduling points: number among the thread's. */
  readonly id: number;
  /** Return value or error of an ended thread. */
  readonly outcome: unknown;
  /** What the thread has seen in each of its last, identical looks; none when it does not go round. */
  looks: readonly Look[] | undefined = undefined;

  constructor(
    parent: Point | undefined,
    result: Result,
    access: Access,
    footprint: Footprint | undefined,
    id: number,
    outcome: unknown,
  ) {
    this.parent = parent;
    this.result = result;
    this.call = access.call;
    this.view = access.view;
    this.at = access.at;
    this.a = access.a;
    this.b = access.b;
    this.footprint = footprint;
    this.id = id;
    this.outcome = outcome;
  }
}

export type Look = { readonly view: ViewKind; readonly at: number; readonly value: Result };

/** Accesses in one look, at the most. */
const LOOK_ACCESSES_MAX = 16;

/** The accesses that the history up to `point` ends in `times` times over, all of them loads; or none. */
export function looksOf(point: Point, times: number): readonly Look[] {
  const looks: Look[] = [];
  for (let p = point; p.parent !== undefined; p = p.parent) {
    const { call, view, at } = p.parent;
    if ((call !== 'load' && call !== 'read') || looks.length === LOOK_ACCESSES_MAX * times) break;
    looks.push({ view, at, value: p.result });
  }
  for (let period = 1; period * times <= looks.length; period++) {
    let same = true;
    for (let i = period; i < period * times && same; i++) {
      const a = looks[i];
      const b = looks[i - period];
      same = a.at === b.at && a.view === b.view && Object.is(a.value, b.value);
    }
    if (same) return looks.slice(0, period);
  }
  return [];
}

export type Access = { call: Call; view: ViewKind; at: number; a: number; b: number };

export const READ_MASK: number = 0x0f;
export const WRITE_MASK: number = 0xf0;

export const START: Access = { call: 'start', view: 'i32', at: 0, a: 0, b: 0 };
export const NO_FOOTPRINT: Footprint = new Map();

export function isPlain(call: Call): boolean {
  return call === 'read' || call === 'write';
}

export function atomicWrites(call: Call, was: number, a: number): boolean {
  return call === 'compareExchange' ? was === a : call !== 'load';
}

/** What the word holds after a call that writes. */
export function atomicValue(call: Call, was: number, a: number, b: number): number {
  if (call === 'store' || call === 'exchange') return a;
  if (call === 'add') return (was + a) | 0;
  if (call === 'sub') return (was - a) | 0;
  if (call === 'and') return was & a;
  if (call === 'or') return was | a;
  if (call === 'xor') return was ^ a;
  if (call === 'compareExchange') return b;
  throw new Error(`${call} writes no word`);
}

export function bytesOf(view: ViewKind): number {
  return view === 'u8' ? 1 : view === 'f64' ? 8 : 4;
}

export function addToFootprint(
  footprint: Footprint,
  view: ViewKind,
  at: number,
  written: boolean,
): void {
  const shift = written ? 4 : 0;
  if (view === 'f64') {
    addToFootprint(footprint, 'i32', at, written);
    addToFootprint(footprint, 'i32', at + 4, written);
    return;
  }
  const mask = view === 'u8' ? 1 << (at & 3) : 15;
  footprint.set(at >>> 2, (footprint.get(at >>> 2) ?? 0) | (mask << shift));
}

/** True when one of two masks of a word writes a byte that the other touches. */
export function masksConflict(a: number, b: number): boolean {
  return ((a >>> 4) & (b | (b >>> 4)) & 15) !== 0 || ((b >>> 4) & a & 15) !== 0;
}

export function conflictWord(a: Footprint, b: Footprint): number {
  const [few, many] = a.size < b.size ? [a, b] : [b, a];
  for (const [word, mask] of few) {
    const other = many.get(word);
    if (other !== undefined && masksConflict(mask, other)) return word;
  }
  return -1;
}

const F64: Float64Array = new Float64Array(1);
const F64_WORDS: Int32Array = new Int32Array(F64.buffer);

/** Low and high word of a double. */
export function wordsOf(value: number): Int32Array {
  F64[0] = value;
  return F64_WORDS;
}

/** The same bytes as the arena's four views. */
export class Memory {
  readonly u8: Uint8Array;
  readonly i32: Int32Array;
  readonly u32: Uint32Array;
  readonly f64: Float64Array;

  constructor(bytes: number) {
    this.u8 = new Uint8Array(bytes);
    this.i32 = new Int32Array(this.u8.buffer);
    this.u32 = new Uint32Array(this.u8.buffer);
    this.f64 = new Float64Array(this.u8.buffer);
  }
}

export function sameAccess(point: Point, access: Access): boolean {
  return (
    point.call === access.call &&
    point.view === access.view &&
    point.at === access.at &&
    Object.is(point.a, access.a) &&
    Object.is(point.b, access.b)
  );
}
