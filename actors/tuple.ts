/**
 * The tuple codec: arrays whose encoded bytes order as the arrays do, element by element, a tuple before
 * those it begins. Every element's bytes end where they say, none is the beginning of another's, so that
 * the leading elements of a tuple are a prefix of its bytes and of no other's. Public; a format on disk.
 *
 *   element   bytes
 *   null      10
 *   false     20
 *   true      21
 *   number    30, then 8 bytes: the double, big endian; its sign bit flipped, all bits of a negative one
 *   bigint    40, then n >= 0: 80 + bytes of n (FF and u16 bytes from 127 on), n big endian without leading
 *             zeros; n < 0: the same of -n, all bits flipped
 *   string    50, UTF-8 escaped, 00
 *   bytes     60, escaped, 00                   escaped: 00 is 01 01, 01 is 01 02
 */
import type { Codec } from './encodings.ts';

/** What a tuple may hold, in their order: null < false < true < numbers < bigints < strings < bytes. */
export type TupleElement = null | boolean | number | bigint | string | Uint8Array;

const TAG_NULL = 0x10;
const TAG_FALSE = 0x20;
const TAG_TRUE = 0x21;
const TAG_NUMBER = 0x30;
const TAG_BIGINT = 0x40;
const TAG_STRING = 0x50;
const TAG_BYTES = 0x60;

const END = 0;
const ESCAPE = 1;
const ESCAPED_FIRST = 1;

const BIGINT_ZERO = 0x80;
/** Sizes of a bigint up to here stand in its first byte. */
const BIGINT_SHORT_MAX = 126;
const BIGINT_LONG = 0xff;
const BIGINT_BYTES_MAX = 0xffff;

const scratch: Uint8Array = new Uint8Array(8);
const double: DataView = new DataView(scratch.buffer);

/** Bytes that grow; one for all calls, as encoding runs no code of the caller's. */
let out: Buffer = Buffer.allocUnsafe(256);
let end = 0;

function reserve(more: number): void {
  if (end + more <= out.length) return;
  const grown = Buffer.allocUnsafe(Math.max(out.length * 2, end + more));
  out.copy(grown, 0, 0, end);
  out = grown;
}

/** A larger buffer than this is not kept. */
const KEPT_BYTES_MAX = 65_536;

function encodeAll(elements: readonly unknown[]): void {
  if (!Array.isArray(elements)) throw new TypeError('tuple takes an array');
  if (out.length > KEPT_BYTES_MAX) out = Buffer.allocUnsafe(256);
  end = 0;
  for (let i = 0; i < elements.length; i++) encodeElement(elements[i], i);
}

function encodeElement(element: unknown, index: number): void {
  reserve(16);
  if (typeof element === 'string') {
    out[end++] = TAG_STRING;
    encodeText(element);
  } else if (typeof element === 'number') {
    encodeNumber(element, index);
  } else if (typeof element === 'bigint') {
    encodeBigint(element);
  } else if (typeof element === 'boolean') {
    out[end++] = element ? TAG_TRUE : TAG_FALSE;
  } else if (element === null) {
    out[end++] = TAG_NULL;
  } else if (ArrayBuffer.isView(element) && (element as Uint8Array).BYTES_PER_ELEMENT === 1) {
    out[end++] = TAG_BYTES;
    encodeEscaped(element as Uint8Array);
  } else {
    throw new TypeError(
      `element ${index} of a tuple is null, a boolean, number, bigint, string or bytes, not ${typeof element}`,
    );
  }
}

const ASCII_LOOP_MAX = 32;

function encodeText(text: string): void {
  const { length } = text;
  if (length <= ASCII_LOOP_MAX) {
    reserve(length + 1);
    let i = 0;
    for (; i < length; i++) {
      const c = text.charCodeAt(i);
      if (c > 127 || c <= ESCAPE) break;
      out[end + i] = c;
    }
    if (i === length) {
      end += length;
      out[end++] = END;
      return;
    }
  }
  encodeEscaped(Buffer.from(text, 'utf8'));
}

function encodeEscaped(bytes: Uint8Array): void {
  reserve(2 * bytes.length + 1);
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i];
    if (byte > ESCAPE) {
      out[end++] = byte;
    } else {
      out[end++] = ESCAPE;
      out[end++] = ESCAPED_FIRST + byte;
    }
  }
  out[end++] = END;
}

function encodeNumber(value: number, index: number): void {
  if (Number.isNaN(value)) throw new TypeError(`element ${index} of a tuple is NaN`);
  // Adding 0 makes a zero of -0.
  double.setFloat64(0, value + 0);
  const isNegative = (scratch[0] & 0x80) !== 0;
  out[end++] = TAG_NUMBER;
  if (isNegative) for (let i = 0; i < 8; i++) out[end++] = ~scratch[i];
  else for (let i = 0; i < 8; i++) out[end++] = i === 0 ? scratch[i] ^ 0x80 : scratch[i];
}

function encodeBigint(value: bigint): void {
  out[end++] = TAG_BIGINT;
  if (value === 0n) {
    out[end++] = BIGINT_ZERO;
    return;
  }
  const isNegative = value < 0n;
  const hex = (isNegative ? -value : value).toString(16);
  const bytes = Buffer.from(hex.length % 2 === 0 ? hex : `0${hex}`, 'hex');
  if (bytes.length > BIGINT_BYTES_MAX) throw new TypeError('a bigint is too large for a key');
  const start = end;
  reserve(bytes.length + 3);
  if (bytes.length <= BIGINT_SHORT_MAX) {
    out[end++] = BIGINT_ZERO + bytes.length;
  } else {
    out[end++] = BIGINT_LONG;
    out[end++] = bytes.length >>> 8;
    out[end++] = bytes.length;
  }
  out.set(bytes, end);
  end += bytes.length;
  if (isNegative) for (let i = start; i < end; i++) out[i] = ~out[i];
}

function encode(elements: readonly unknown[]): Uint8Array {
  encodeAll(elements);
  return Buffer.from(out.subarray(0, end));
}

let at = 0;

function decodeAll(bytes: Uint8Array, start: number, stop: number): TupleElement[] {
  const elements: TupleElement[] = [];
  at = start;
  while (at < stop) elements.push(decodeElement(bytes, stop));
  return elements;
}

function decodeElement(bytes: Uint8Array, stop: number): TupleElement {
  const tag = bytes[at++];
  switch (tag) {
    case TAG_NULL:
      return null;
    case TAG_FALSE:
      return false;
    case TAG_TRUE:
      return true;
    case TAG_NUMBER:
      return decodeNumber(bytes, stop);
    case TAG_BIGINT:
      return decodeBigint(bytes, stop);
    case TAG_STRING:
      return decodeEscaped(bytes, stop).toString('utf8');
    case TAG_BYTES:
      return decodeEscaped(bytes, stop);
    default:
      throw new TypeError(`these bytes are no tuple: tag ${tag}`);
  }
}

function decodeNumber(bytes: Uint8Array, stop: number): number {
  if (at + 8 > stop) throw cutOff();
  const isNegative = (bytes[at] & 0x80) === 0;
  for (let i = 0; i < 8; i++) scratch[i] = isNegative ? ~bytes[at + i] : bytes[at + i];
  if (!isNegative) scratch[0] ^= 0x80;
  at += 8;
  return double.getFloat64(0);
}

function decodeBigint(bytes: Uint8Array, stop: number): bigint {
  const isNegative = (bytes[at] & 0x80) === 0;
  const flip = isNegative ? 0xff : 0;
  const head = bytes[at++] ^ flip;
  let length = head - BIGINT_ZERO;
  if (head === BIGINT_LONG) {
    length = ((bytes[at] ^ flip) << 8) | (bytes[at + 1] ^ flip);
    at += 2;
  }
  if (length === 0) return 0n;
  if (at + length > stop) throw cutOff();
  const own = Buffer.allocUnsafe(length);
  for (let i = 0; i < length; i++) own[i] = bytes[at + i] ^ flip;
  at += length;
  const value = BigInt(`0x${own.toString('hex')}`);
  return isNegative ? -value : value;
}

/** A copy, the caller's own. */
function decodeEscaped(bytes: Uint8Array, stop: number): Buffer {
  let last = at;
  let escapes = 0;
  while (last < stop && bytes[last] !== END) {
    if (bytes[last] !== ESCAPE) {
      last++;
    } else {
      escapes++;
      last += 2;
    }
  }
  if (last >= stop) throw cutOff();
  const own = Buffer.allocUnsafe(last - at - escapes);
  for (let i = 0; at < last; i++) {
    const byte = bytes[at++];
    own[i] = byte === ESCAPE ? bytes[at++] - ESCAPED_FIRST : byte;
  }
  at++;
  return own;
}

function cutOff(): TypeError {
  return new TypeError('these bytes are no tuple: cut off');
}

const TUPLE: Codec<readonly unknown[]> = {
  name: 'tuple',
  encode,
  decode: (bytes) => decodeAll(bytes, 0, bytes.length),
  encodeInto(elements, target, to) {
    encodeAll(elements);
    if (to + end > target.length) return -1;
    for (let i = 0; i < end; i++) target[to + i] = out[i];
    return end;
  },
  decodeFrom: decodeAll,
  encodePrefix(leading) {
    if (Array.isArray(leading)) return encode(leading);
    throw new TypeError('a prefix of tuples is an array of leading elements');
  },
};

/**
 * Arrays of null, booleans, numbers, bigints, strings and bytes that order element by element, whatever
 * their types: null < false < true < numbers < bigints < strings (by code point) < bytes; a tuple comes
 * before those it begins. NaN is a TypeError, -0 comes back as 0, bytes as Buffers of the caller's own.
 * `prefix` takes leading elements. T is what the caller says is stored; it is not checked on reading.
 */
export function tuple<T extends readonly TupleElement[] = TupleElement[]>(): Codec<T> {
  return TUPLE as Codec<never>;
}
