/**
 * Encodings of keys and values: by name as in abstract-level, as typed values, or a codec of the
 * caller's. Keys order by their encoded bytes. Public, and used by the client on its own thread.
 */
import { copyAt } from '../core/base/copy.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { tuple } from './tuple.ts';
import type { TupleElement } from './tuple.ts';

/**
 * Turns values into bytes and back. `name` is stored with the collection: opening it under another
 * name is TIDEMARK_KIND_MISMATCH. `encode` and `decode` are required; the other two avoid copies.
 */
export interface Codec<T> {
  readonly name: string;
  encode(value: T): Uint8Array;
  /** `bytes` are the caller's to keep. */
  decode(bytes: Uint8Array): T;
  /** Writes into target[at...] and returns the count, or -1 when there is no room for it. */
  encodeInto?(value: T, target: Uint8Array, at: number): number;
  /** Decodes bytes[start, end), which are lent for the call only. */
  decodeFrom?(bytes: Uint8Array, start: number, end: number): T;
  /** Bytes with which every key that begins with `prefix` begins, and no other: what ranges need for `prefix`. */
  encodePrefix?(prefix: unknown): Uint8Array;
}

/** Names under which the built-in encodings can be asked for. */
export type EncodingName = 'utf8' | 'buffer' | 'view' | 'json' | 'u64' | 'tuple';

export type Encoding<T> = EncodingName | Codec<T>;

/** The type of value that an encoding stands for. */
export type TypeOf<E> =
  E extends Codec<infer T>
    ? T
    : E extends 'utf8'
      ? string
      : E extends 'buffer'
        ? Buffer
        : E extends 'view'
          ? Uint8Array
          : E extends 'u64'
            ? number
            : E extends 'tuple'
              ? TupleElement[]
              : E extends 'json'
                ? unknown
                : never;

const ASCII_LOOP_MAX = 24;

/** Strings as UTF-8. Keys order by code point, not by UTF-16 unit. */
export const utf8: Codec<string> = {
  name: 'utf8',
  encode(value: string): Uint8Array {
    return Buffer.from(checkString(value), 'utf8');
  },
  decode(bytes: Uint8Array): string {
    return utf8.decodeFrom!(bytes, 0, bytes.length);
  },
  encodeInto(value: string, target: Uint8Array, at: number): number {
    const length = checkString(value).length;
    if (length <= ASCII_LOOP_MAX && at + length <= target.length) {
      let i = 0;
      for (; i < length; i++) {
        const c = value.charCodeAt(i);
        if (c > 127) break;
        target[at + i] = c;
      }
      if (i === length) return length;
    }
    if (at + length * 3 > target.length && at + Buffer.byteLength(value) > target.length) return -1;
    return (target as Buffer).write(value, at, 'utf8');
  },
  decodeFrom(bytes: Uint8Array, start: number, end: number): string {
    return asBuffer(bytes).toString('utf8', start, end);
  },
  encodePrefix(prefix: unknown): Uint8Array {
    return utf8.encode(prefix as string);
  },
};

/** Bytes, given and returned as Buffers of the caller's own. */
export const buffer: Codec<Buffer> = {
  name: 'buffer',
  encode: checkBytes,
  decode(bytes: Uint8Array): Buffer {
    return asBuffer(bytes);
  },
  encodeInto: writeBytes,
  decodeFrom(bytes: Uint8Array, start: number, end: number): Buffer {
    const copy = Buffer.allocUnsafe(end - start);
    copyAt(bytes, start, end - start, copy, 0);
    return copy;
  },
  encodePrefix: (prefix) => checkBytes(prefix as Uint8Array),
};

/** Bytes, returned as Uint8Arrays. The same bytes and name as `buffer`. */
export const view: Codec<Uint8Array> = {
  name: 'buffer',
  encode: checkBytes,
  decode(bytes: Uint8Array): Uint8Array {
    if (!Buffer.isBuffer(bytes)) return bytes;
    return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  },
  encodeInto: writeBytes,
  decodeFrom(bytes: Uint8Array, start: number, end: number): Uint8Array {
    const copy = new Uint8Array(end - start);
    copy.set(bytes.subarray(start, end));
    return copy;
  },
  encodePrefix: (prefix) => checkBytes(prefix as Uint8Array),
};

/** Safe integers from 0, eight bytes big endian, in numeric order. */
export const u64: Codec<number> = {
  name: 'u64',
  encode(value: number): Uint8Array {
    const bytes = new Uint8Array(8);
    u64.encodeInto!(value, bytes, 0);
    return bytes;
  },
  decode(bytes: Uint8Array): number {
    return u64.decodeFrom!(bytes, 0, bytes.length);
  },
  encodeInto(value: number, target: Uint8Array, at: number): number {
    if (!Number.isSafeInteger(value) || value < 0) {
      throw new TypeError(`u64 takes a safe integer from 0, not ${String(value)}`);
    }
    if (at + 8 > target.length) return -1;
    let high = Math.floor(value / 0x1_0000_0000);
    let low = value | 0;
    for (let i = 3; i >= 0; i--) {
      target[at + i] = high;
      target[at + 4 + i] = low;
      high >>>= 8;
      low >>>= 8;
    }
    return 8;
  },
  decodeFrom(bytes: Uint8Array, start: number, end: number): number {
    let value = 0;
    for (let i = start; i < end; i++) value = value * 256 + bytes[i];
    return value;
  },
};

const JSON_CODEC: Codec<unknown> = {
  name: 'json',
  encode(value: unknown): Uint8Array {
    return Buffer.from(stringify(value), 'utf8');
  },
  decode(bytes: Uint8Array): unknown {
    return JSON_CODEC.decodeFrom!(bytes, 0, bytes.length);
  },
  encodeInto(value: unknown, target: Uint8Array, at: number): number {
    return utf8.encodeInto!(stringify(value), target, at);
  },
  decodeFrom(bytes: Uint8Array, start: number, end: number): unknown {
    return JSON.parse(asBuffer(bytes).toString('utf8', start, end));
  },
};

/** Values as JSON text. T is what the caller says is stored; it is not checked on reading. */
export function json<T>(): Codec<T> {
  return JSON_CODEC as Codec<T>;
}

const BY_NAME: Readonly<Record<EncodingName, Codec<never>>> = {
  utf8: utf8 as Codec<never>,
  buffer: buffer as Codec<never>,
  view: view as Codec<never>,
  u64: u64 as Codec<never>,
  json: JSON_CODEC as Codec<never>,
  tuple: tuple() as Codec<never>,
};

const OURS: ReadonlySet<unknown> = new Set(Object.values(BY_NAME));

/** The codec that an option names. Throws TypeError for what is neither a name nor a codec. */
export function codecOf(encoding: unknown, option: string): Codec<unknown> {
  if (typeof encoding === 'string' && Object.hasOwn(BY_NAME, encoding)) {
    return BY_NAME[encoding as EncodingName];
  }
  const codec = encoding as Codec<unknown> | null;
  if (
    typeof codec === 'object' &&
    codec !== null &&
    typeof codec.name === 'string' &&
    typeof codec.encode === 'function' &&
    typeof codec.decode === 'function'
  ) {
    return codec;
  }
  const names = Object.keys(BY_NAME).join(', ');
  throw new TypeError(`${option} is an encoding name (${names}) or a codec, not ${show(encoding)}`);
}

/** The codec of a name stored in the catalog, or undefined when only the caller can supply it. */
export function codecOfStoredName(name: string): Codec<unknown> | undefined {
  return Object.hasOwn(BY_NAME, name) ? BY_NAME[name as EncodingName] : undefined;
}

/** True when encoding and decoding run no code but ours (and what JSON calls): it may run inside a read. */
export function isOurs(codec: unknown): boolean {
  return OURS.has(codec);
}

/** What a codec's encode returned, if it is what it should be. */
export function encodedBy<T>(codec: Codec<T>, value: T): Uint8Array {
  return checkEncoded(codec.name, codec.encode(value), 'encode');
}

/** The bytes with which keys begin that begin with `prefix`. */
export function encodedPrefix<T>(codec: Codec<T>, prefix: unknown): Uint8Array {
  if (codec.encodePrefix !== undefined) {
    return checkEncoded(codec.name, codec.encodePrefix(prefix), 'encodePrefix');
  }
  throw new TypeError(`keys of codec ${codec.name} have no prefixes: it has no encodePrefix`);
}

function checkEncoded(name: string, bytes: unknown, by: string): Uint8Array {
  if (ArrayBuffer.isView(bytes) && (bytes as Uint8Array).BYTES_PER_ELEMENT === 1) {
    return bytes as Uint8Array;
  }
  throw new TypeError(`codec ${name}: ${by} must return a Uint8Array`);
}

/** Encodes into target[at...] where the codec can and there is room; returns the count, or -1. */
export function encodeInto<T>(codec: Codec<T>, value: T, target: Uint8Array, at: number): number {
  if (codec.encodeInto === undefined) return -1;
  const n = codec.encodeInto(value, target, at);
  if (n === -1 || (Number.isInteger(n) && n >= 0 && at + n <= target.length)) return n;
  throw new TypeError(`codec ${codec.name}: encodeInto must return a count of bytes, or -1`);
}

/** Decodes bytes that live in shared or reused memory; the result shares nothing with them. */
export function decodeLent<T>(codec: Codec<T>, bytes: Uint8Array, start: number, end: number): T {
  if (codec.decodeFrom !== undefined) return codec.decodeFrom(bytes, start, end);
  const copy = Buffer.allocUnsafe(end - start);
  asBuffer(bytes).copy(copy, 0, start, end);
  return codec.decode(copy);
}

function checkString(value: unknown): string {
  if (typeof value !== 'string') throw new TypeError(`utf8 takes a string, not ${show(value)}`);
  return value;
}

function checkBytes(value: Uint8Array): Uint8Array {
  // Not instanceof: typed arrays of another realm are as good.
  if (!ArrayBuffer.isView(value) || value.BYTES_PER_ELEMENT !== 1) {
    throw new TypeError(`buffer takes a Buffer or Uint8Array, not ${show(value)}`);
  }
  return value;
}

function writeBytes(value: Uint8Array, target: Uint8Array, at: number): number {
  const length = checkBytes(value).length;
  if (at + length > target.length) return -1;
  if (length <= 32) for (let i = 0; i < length; i++) target[at + i] = value[i]!;
  else target.set(value, at);
  return length;
}

function stringify(value: unknown): string {
  const text = JSON.stringify(value) as string | undefined;
  if (text === undefined) throw new TypeError(`json cannot hold ${show(value)}`);
  return text;
}

const BUFFERS: WeakMap<Uint8Array, Buffer> = new WeakMap();

/** The same bytes as a Buffer, whose methods read strings natively. Remembered for long-lived views. */
function asBuffer(bytes: Uint8Array): Buffer {
  // Asked for each string that is decoded: a look at a method, not `instanceof`.
  if ((bytes as Partial<Buffer>).copy !== undefined) return bytes as Buffer;
  let found = BUFFERS.get(bytes);
  if (found === undefined) {
    found = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    BUFFERS.set(bytes, found);
  }
  return found;
}

function show(value: unknown): string {
  return value === null ? 'null' : typeof value;
}

/** Refuses keys that are too long, naming the limit. */
export function tooLarge(what: string, bytes: number, limit: number): TidemarkError {
  return new TidemarkError('TIDEMARK_TOO_LARGE', `${what} of ${bytes} bytes is over ${limit}`, {
    what,
    bytes,
    limit,
  });
}
