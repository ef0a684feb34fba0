/**
 * Goal: keys, values and prefixes have the types that encodings say. What must not compile stands behind
 * ts-expect-error, so the type check fails when it does; what runs here is only there to be checked.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { json, tuple, utf8 } from '../../actors/index.ts';
import type { Codec, Collection, Engine, Multiset, PrefixOf, TypeOf } from '../../actors/index.ts';

/** `any` is only the same as itself. */
type IsAny<T> = 0 extends 1 & T ? true : false;
type Same<A, B> = [A, B] extends [B, A] ? (IsAny<A> extends IsAny<B> ? true : false) : false;

/** Compiles only when the two types are one. */
function same<A, B>(is: Same<A, B>): void {
  assert.equal(is, true);
}

type User = { name: string };

test('encodings say the types of keys and values', () => {
  same<TypeOf<'utf8'>, string>(true);
  same<TypeOf<'buffer'>, Buffer>(true);
  same<TypeOf<'view'>, Uint8Array>(true);
  same<TypeOf<'u64'>, number>(true);
  same<TypeOf<'json'>, unknown>(true);
  same<TypeOf<Codec<User>>, User>(true);
  same<TypeOf<typeof utf8>, string>(true);
});

test('prefixes have the types of what keys begin with', () => {
  same<PrefixOf<string>, string>(true);
  same<PrefixOf<Buffer>, Uint8Array>(true);
  same<PrefixOf<[string, number]>, readonly [] | readonly [string] | readonly [string, number]>(
    true,
  );
  same<PrefixOf<string[]>, readonly string[]>(true);
});

/** Never called: it is its compilation that is the test. */
export async function typed(engine: Engine): Promise<void> {
  const users = await engine.collection('users', { key: utf8, value: json<User>() });
  same<typeof users, Collection<string, User>>(true);
  same<ReturnType<typeof users.getSync>, User | undefined>(true);
  for (const row of users.entries({ prefix: 'a' })) same<typeof row, [string, User]>(true);
  // @ts-expect-error: a number is no beginning of a string
  users.keys({ prefix: 7 });
  // @ts-expect-error: not a user
  await users.put('ada', { nam: 'Ada' });

  const marks = await engine.collection('marks', { key: tuple<[string, number]>(), value: 'u64' });
  same<typeof marks, Collection<[string, number], number>>(true);
  await marks.put(['a', 1], 2);
  marks.keys({ prefix: ['a'] });
  marks.keys({ prefix: [] });
  // @ts-expect-error: the first element is a string
  marks.keys({ prefix: [1] });
  // @ts-expect-error: a whole key is asked for
  marks.getSync(['a']);
  const edges = await engine.collection('edges', { kind: 'multiset', value: 'u64' });
  same<typeof edges, Multiset<string, number>>(true);
  same<ReturnType<typeof edges.getSync>, [number, number][]>(true);
  for (const row of edges.entries()) same<typeof row, [string, number, number]>(true);
  engine.transaction().update(edges, 'a', 1, -1).put(users, 'ada', { name: 'Ada' });
  // @ts-expect-error: a multiset takes updates
  engine.transaction().put(edges, 'a', 1);
  // @ts-expect-error: a keyed collection takes none
  engine.transaction().update(users, 'ada', { name: 'Ada' }, 1);
  // @ts-expect-error: nor does this one
  await users.update('ada', { name: 'Ada' }, 1);

  // @ts-expect-error: no element of a tuple
  tuple<[Date]>();
}
