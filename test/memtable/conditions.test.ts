/**
 * Goal: conditions are met, broken or not to be told, as looking at every operation says. Method: random
 * histories over a few generations, the oldest of them given back; conditions from every time.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setU16, setU32, setU64 } from '../../core/base/bytes.ts';
import { Prng } from '../../core/base/prng.ts';
import { OP_DELETE, OP_DELETE_RANGE, OP_PUT } from '../../core/base/update.ts';
import {
  CONDITIONS_BROKEN,
  CONDITIONS_BYTES_OFFSET,
  CONDITIONS_COUNT_OFFSET,
  CONDITIONS_HEADER_BYTES,
  CONDITIONS_MET,
  CONDITIONS_UNKNOWN,
  CONDITION_ABSENT,
  CONDITION_COLLECTION,
  CONDITION_COLLECTION_OFFSET,
  CONDITION_FROM_OFFSET,
  CONDITION_KEY_BYTES_OFFSET,
  CONDITION_KEY_OFFSET,
  CONDITION_KIND_OFFSET,
  CONDITION_RANGE,
  CONDITION_ROW,
  CONDITION_UPPER_BYTES_OFFSET,
  CONDITION_UPPER_OPEN,
  ConditionChecker,
  conditionBytes,
} from '../../core/memtable/conditions.ts';
import { MiB } from '../../core/base/limits.ts';
import type { GenerationWriter } from '../../core/memtable/writer.ts';
import { Model, World, bytesOf } from './world.ts';
import type { Operation } from './world.ts';

/** `upper`: of a range; null: it has none. */
type Condition = {
  from: number;
  collection: number;
  kind: number;
  key: string;
  upper: string | null;
};

function encode(conditions: readonly Condition[]): Uint8Array {
  const size = conditions.reduce(
    (sum, { key, upper }) => sum + conditionBytes(key.length, upper?.length ?? 0),
    CONDITIONS_HEADER_BYTES,
  );
  const bytes = new Uint8Array(size);
  setU32(bytes, CONDITIONS_COUNT_OFFSET, conditions.length);
  setU32(bytes, CONDITIONS_BYTES_OFFSET, size);
  let at = CONDITIONS_HEADER_BYTES;
  for (const { from, collection, kind, key, upper } of conditions) {
    setU64(bytes, at + CONDITION_FROM_OFFSET, from);
    setU32(bytes, at + CONDITION_COLLECTION_OFFSET, collection);
    setU16(bytes, at + CONDITION_KIND_OFFSET, kind);
    setU16(bytes, at + CONDITION_KEY_BYTES_OFFSET, key.length);
    setU32(bytes, at + CONDITION_UPPER_BYTES_OFFSET, upper?.length ?? CONDITION_UPPER_OPEN);
    bytes.set(bytesOf(key + (upper ?? '')), at + CONDITION_KEY_OFFSET);
    at += conditionBytes(key.length, upper?.length ?? 0);
  }
  return bytes;
}

/** Outcome, and of what is broken its index, its time and whether it was a deletion. */
function expected(model: Model, heldFrom: number, conditions: readonly Condition[]): number[] {
  for (const [i, { from, collection, kind, key, upper }] of conditions.entries()) {
    if (from < heldFrom) return [CONDITIONS_UNKNOWN];
    if (kind === CONDITION_COLLECTION) {
      const time = model.newestTime(collection);
      if (time >= from) return [CONDITIONS_BROKEN, i, time, 0];
      continue;
    }
    if (kind === CONDITION_RANGE) {
      const time = model.newestWithin(collection, key, upper);
      if (time >= from) return [CONDITIONS_BROKEN, i, time, 0];
      continue;
    }
    const row = model.find(collection, key, Infinity);
    if (row === undefined || row.time < from) continue;
    const isDelete = row.kind !== OP_PUT;
    if (kind === CONDITION_ABSENT && isDelete) continue;
    return [CONDITIONS_BROKEN, i, row.time, isDelete ? 1 : 0];
  }
  return [CONDITIONS_MET];
}

test('conditions against generations say what looking at every operation says', () => {
  const outcomes = new Map<number, number>();
  for (let seed = 0; seed < 40; seed++) {
    const prng = new Prng(seed);
    const world = new World(96 * MiB);
    const model = new Model();
    const checker = new ConditionChecker(world.arena, world.pool);
    const sealed = new Map<number, GenerationWriter>();
    // Offsets beyond 32 bits too.
    const lower = prng.pick([0, 2 ** 32 - 40, 2 ** 52]);
    let next = lower;
    let heldFrom = lower;
    let open = world.create();
    open.open(next);
    const key = (): string => prng.pick(['', 'a', 'b', 'ab', 'k'.repeat(300), `${prng.below(30)}`]);
    for (let step = 0; step < 150; step++) {
      const range = { key: bytesOf(key()), value: bytesOf(key()), kind: OP_DELETE_RANGE, diff: 0 };
      // Alone in its transaction: what it overtakes there never comes here.
      const operations: Operation[] = prng.chance(0.1)
        ? [{ collection: prng.below(4), ...range }]
        : Array.from({ length: prng.between(0, 3) }, (): Operation => {
            const kind = prng.chance(0.4) ? OP_DELETE : OP_PUT;
            const value = bytesOf(kind === OP_PUT ? 'v' : '');
            return { collection: prng.below(4), key: bytesOf(key()), kind, value, diff: 1 };
          });
      world.write(open, operations, next);
      model.write(operations, next);
      next++;
      if (prng.chance(0.05)) {
        open.seal(next);
        sealed.set(open.header, open);
        open = world.create();
        open.open(next);
        const [oldest] = sealed.values();
        if (sealed.size > 2 && oldest !== undefined) {
          sealed.delete(oldest.header);
          heldFrom = oldest.upper;
          oldest.free();
        }
      }
      const conditions = Array.from({ length: prng.between(1, 3) }, (): Condition => {
        const kind = prng.pick([
          CONDITION_ROW,
          CONDITION_ABSENT,
          CONDITION_COLLECTION,
          CONDITION_RANGE,
        ]);
        const from = Math.max(0, next - prng.below(prng.pick([3, 30, 150])));
        const of = kind === CONDITION_COLLECTION ? '' : key();
        const isRange = kind === CONDITION_RANGE;
        const upper = isRange ? prng.pick([null, key(), `${of}z`]) : '';
        return { from, collection: prng.below(5), kind, key: of, upper };
      });
      const { address, release } = world.lay(encode(conditions));
      const outcome = checker.check(address, heldFrom, sealed, open.header);
      release();
      const found = [outcome];
      if (outcome === CONDITIONS_BROKEN) {
        found.push(checker.index, checker.time, checker.isDelete ? 1 : 0);
      }
      assert.deepEqual(found, expected(model, heldFrom, conditions), `seed ${seed}, step ${step}`);
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    }
    world.closePage();
  }
  for (const outcome of [CONDITIONS_MET, CONDITIONS_BROKEN, CONDITIONS_UNKNOWN]) {
    assert.ok((outcomes.get(outcome) ?? 0) > 300, `outcome ${outcome}`);
  }
});
