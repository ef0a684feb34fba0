/**
 * The engine's one shared memory, and the plan by which fixed tables find their place in it. An
 * address is one u32; 0 means nothing. Every thread that maps the arena has the same constant views.
 *
 * The buffer is that of a WebAssembly.Memory of fixed size: reserving it costs nothing until pages
 * are touched, it is page-aligned, and access is as fast as to any SharedArrayBuffer (a growable one
 * is ten times slower). Where the address space refuses it, a plain SharedArrayBuffer does.
 */
import { invariant } from '../base/assert.ts';
import { alignUp } from '../base/bytes.ts';
import { arenaBytesMax, pageBytes } from '../base/limits.ts';

const WASM_PAGE_BYTES = 65_536;

/** The part of WebAssembly that is used here; Node's types leave it to the DOM's. */
type WasmMemory = { readonly buffer: SharedArrayBuffer };
declare const WebAssembly: {
  Memory: new (descriptor: { initial: number; maximum: number; shared: true }) => WasmMemory;
};

export class Arena {
  readonly buffer: SharedArrayBuffer;
  readonly bytes: number;
  readonly u8: Uint8Array;
  readonly i32: Int32Array;
  readonly u32: Uint32Array;
  readonly f64: Float64Array;

  /** Maps an arena that exists; `create` makes one. */
  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.bytes = buffer.byteLength;
    this.u8 = new Uint8Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.f64 = new Float64Array(buffer);
  }

  /** `bytes` is a multiple of the page size, at most one page below 4 GiB. */
  static create(bytes: number): Arena {
    invariant(bytes % pageBytes === 0 && bytes > 0 && bytes <= arenaBytesMax, 'arena size', bytes);
    const count = bytes / WASM_PAGE_BYTES;
    try {
      return new Arena(
        new WebAssembly.Memory({ initial: count, maximum: count, shared: true }).buffer,
      );
    } catch {
      return new Arena(new SharedArrayBuffer(bytes));
    }
  }
}

/** A cache line pair: words with different writers stand this far apart. */
export const LINE_BYTES = 128;

/**
 * Hands out fixed addresses from the start of the arena. Every thread runs the same plan and so
 * agrees on every address without being told.
 */
export class ArenaPlan {
  #next: number = LINE_BYTES;

  /** Address of `bytes` fresh bytes, on a line of their own. */
  take(bytes: number): number {
    const at = this.#next;
    this.#next = alignUp(at + bytes, LINE_BYTES);
    return at;
  }

  get bytes(): number {
    return this.#next;
  }
}

/** Low and high word of an offset or time, as stored in blocks of the arena. */
export function lowWord(value: number): number {
  // ToInt32 is that modulo 2^32, and no division.
  return value | 0;
}

export function highWord(value: number): number {
  return Math.floor(value / 0x1_0000_0000);
}

/** The number that two words hold. */
export function fromWords(low: number, high: number): number {
  return (high >>> 0) * 0x1_0000_0000 + (low >>> 0);
}
