/**
 * Goal: one generation may touch more collections than the manifest reserves ids for at a time: it is
 * flushed like any other. Method: inline, on a simulated disk, a row in each of so many collections.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Collection, OpenOptions } from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';
import { idBlock } from '../../core/spine/manifest.ts';
import { SimDisk } from '../sim/disk.ts';

/** With the catalog, and one more. */
const COLLECTIONS: number = idBlock + 2;
const CALLS_AT_ONCE = 64;
/** A flush that never ends fails the test. */
const DEADLINE = { timeout: 120_000 };

test(
  'more collections than ids are reserved at a time are flushed together',
  DEADLINE,
  async () => {
    const disk = new SimDisk({ answerAtOnce: true });
    const clock = { nowMs: (): number => Date.now(), ticksMs: (): number => performance.now() };
    const options: OpenOptions = { threads: 0, memoryBytes: 64 * MiB, durability: 'buffered' };
    const engine = await open('/sim', { ...options, storage: { storage: disk, clock } });
    const collections: Collection<string, string>[] = [];
    while (collections.length < COLLECTIONS) {
      const names = Array.from({ length: CALLS_AT_ONCE }, (_, i) => `c${collections.length + i}`);
      collections.push(...(await Promise.all(names.map((name) => engine.collection(name, {})))));
    }
    await engine.flush();
    const tx = engine.transaction();
    for (const collection of collections) tx.put(collection, 'key', collection.name);
    await tx.commit();
    await engine.flush();
    assert.equal(engine.stats().flushedUpper, engine.upper);
    for (const collection of collections) assert.equal(collection.getSync('key'), collection.name);
    await engine.close();
  },
);
