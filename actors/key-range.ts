/**
 * Bounds that callers give in keys, made into one half-open range of encoded keys: the only place where
 * `gt`, `gte`, `lt`, `lte` and `prefix` become bytes. Used by range reads, range deletes and feeds, on
 * the caller's thread.
 */
import { NO_BYTES, compareBytes } from '../core/base/bytes.ts';
import { keyBytesMax } from '../core/base/limits.ts';
import { encodedBy, encodedPrefix, tooLarge } from './encodings.ts';
import type { Codec } from './encodings.ts';
import { checkFields } from './options.ts';

/** The leading elements of a tuple. */
type Leading<T extends readonly unknown[]> = T extends readonly []
  ? readonly []
  : T extends readonly [infer First, ...infer Rest]
    ? readonly [] | readonly [First, ...Leading<Rest>]
    : readonly T[number][];

/** What can be the beginning of a key: of a string a string, of bytes bytes, of a tuple leading elements. */
export type PrefixOf<K> = K extends string
  ? string
  : K extends Uint8Array
    ? Uint8Array
    : K extends readonly unknown[]
      ? Leading<K>
      : unknown;

/** Bounds of a range of keys; all that are given hold. */
export interface KeyBounds<K> {
  /** Lower bound, included; or `gt`, left out. */
  readonly gte?: K;
  readonly gt?: K;
  /** Upper bound, included; or `lt`, left out. */
  readonly lte?: K;
  readonly lt?: K;
  /**
   * Keys that begin with it: a string for 'utf8', bytes for 'buffer' and 'view', leading elements for
   * tuples, whatever `encodePrefix` of a codec of your own takes; for others a TypeError.
   */
  readonly prefix?: PrefixOf<K>;
}

/** Encoded keys from `lower`, included, to below `upper`, or to the end when `upperOpen`. */
export type ByteRange = { lower: Uint8Array; upper: Uint8Array; upperOpen: boolean };

/** The bounds as bytes of the range's own. Throws TypeError for what makes no sense; empty ranges are none of that. */
export function byteRange<K>(bounds: KeyBounds<K>, keys: Codec<K>): ByteRange {
  const { gte, gt, lte, lt, prefix } = bounds;
  if (gte !== undefined && gt !== undefined) throw new TypeError('give gte or gt');
  if (lte !== undefined && lt !== undefined) throw new TypeError('give lte or lt');
  const range: ByteRange = { lower: NO_BYTES, upper: NO_BYTES, upperOpen: true };
  if (gte !== undefined) range.lower = own(encodedBy(keys, gte));
  if (gt !== undefined) range.lower = successor(own(encodedBy(keys, gt)));
  if (lt !== undefined) cut(range, own(encodedBy(keys, lt)));
  if (lte !== undefined) cut(range, successor(own(encodedBy(keys, lte))));
  if (prefix !== undefined) within(range, own(encodedPrefix(keys, prefix)));
  return range;
}

/** The least key above: byte strings need no more than a zero at the end. */
export function successor(key: Uint8Array): Uint8Array {
  const next = new Uint8Array(key.length + 1);
  next.set(key);
  return next;
}

/** Narrows the range to keys that begin with `prefix`. */
function within(range: ByteRange, prefix: Uint8Array): void {
  if (compareBytes(range.lower, prefix) < 0) range.lower = prefix;
  const upper = aboveAll(prefix);
  if (upper !== undefined) cut(range, upper);
}

/** The least key above all that begin with `prefix`; undefined when there is none. */
function aboveAll(prefix: Uint8Array): Uint8Array | undefined {
  let length = prefix.length;
  while (length > 0 && prefix[length - 1] === 0xff) length--;
  // Nothing but FF: no key above begins otherwise.
  if (length === 0) return undefined;
  const upper = prefix.slice(0, length);
  upper[length - 1]++;
  return upper;
}

const BOUNDS: ReadonlySet<string> = new Set(['gte', 'gt', 'lte', 'lt', 'prefix']);

/**
 * The range of a range delete, with bounds that fit an operation; undefined when no key is in it. A bound
 * that is there but undefined is a TypeError: left out, it would delete more than was meant.
 */
export function rangeToDelete<K>(bounds: KeyBounds<K>, keys: Codec<K>): ByteRange | undefined {
  if (typeof bounds !== 'object' || bounds === null) {
    throw new TypeError('deleteRange takes an object with bounds, {} for all keys');
  }
  checkFields(bounds, BOUNDS, 'bound');
  for (const [name, bound] of Object.entries(bounds)) {
    if (bound === undefined)
      throw new TypeError(`${name} is undefined: leave it out, or give a key`);
  }
  const range = byteRange(bounds, keys);
  // Above the longest key there is only what does not begin with it.
  if (range.lower.length > keyBytesMax) {
    const lower = aboveAll(range.lower.subarray(0, keyBytesMax));
    if (lower === undefined) return undefined;
    range.lower = lower;
  }
  if (range.upper.length > keyBytesMax) {
    const upper = aboveAll(range.upper.subarray(0, keyBytesMax));
    if (upper === undefined) range.upperOpen = true;
    else range.upper = upper;
  }
  const isEmpty = !range.upperOpen && compareBytes(range.lower, range.upper) >= 0;
  return isEmpty ? undefined : range;
}

function cut(range: ByteRange, upper: Uint8Array): void {
  if (!range.upperOpen && compareBytes(range.upper, upper) <= 0) return;
  range.upper = upper;
  range.upperOpen = false;
}

/** Bounds outlive the call, the caller's bytes may not. */
function own(bytes: Uint8Array): Uint8Array {
  if (bytes.length > keyBytesMax) throw tooLarge('key', bytes.length, keyBytesMax);
  return new Uint8Array(bytes);
}
