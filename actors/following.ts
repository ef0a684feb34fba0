/**
 * How feeds and differences of one collection are made, whatever its kind: options are checked, and the
 * place is held, before anything else happens. Called by the faces of collections, on the caller's thread.
 */
import type { BaseCollection } from './base-collection.ts';
import type { Client } from './client.ts';
import { diffOf } from './diff.ts';
import type { DiffOptions } from './diff.ts';
import { Feed } from './feed.ts';
import type { Update } from './feed-changes.ts';
import { BOUND_OPTIONS, FOLLOW_OPTIONS, startFeed } from './feed-options.ts';
import type { ChangesOptions } from './feed-options.ts';
import { byteRange } from './key-range.ts';
import { checkFields, checkSignal, show } from './options.ts';

const CHANGES_OPTIONS: ReadonlySet<string> = new Set([...FOLLOW_OPTIONS, ...BOUND_OPTIONS]);
const DIFF_OPTIONS: ReadonlySet<string> = new Set([...BOUND_OPTIONS, 'signal']);

export function follow<K, V>(
  client: Client,
  collection: BaseCollection<K, V>,
  options: ChangesOptions<K>,
): Feed<Update<K, V>> {
  checkFields(options, CHANGES_OPTIONS, 'feed option');
  collection.assertThere();
  const hasBounds = BOUND_OPTIONS.some(
    (name) => options[name as keyof typeof options] !== undefined,
  );
  const range = hasBounds ? byteRange(options, collection.keyCodec) : undefined;
  const start = startFeed(client, [collection.id], options);
  return new Feed(client, [{ collection, range, isNamed: false }], start);
}

export function difference<K, V>(
  client: Client,
  collection: BaseCollection<K, V>,
  a: number,
  b: number,
  options: DiffOptions<K>,
): AsyncIterableIterator<Update<K, V>, undefined> {
  checkFields(options, DIFF_OPTIONS, 'diff option');
  for (const offset of [a, b]) {
    if (Number.isSafeInteger(offset) && offset >= -1) continue;
    throw new TypeError(`an offset is an integer from 0, or -1, not ${show(offset)}`);
  }
  collection.assertThere();
  const place = {
    id: collection.id,
    kind: collection.kind,
    keys: collection.keyCodec,
    values: collection.valueCodec,
    range: byteRange(options, collection.keyCodec),
    signal: checkSignal(options.signal),
  };
  return diffOf(client, place, a, b) as AsyncIterableIterator<Update<K, V>, undefined>;
}
