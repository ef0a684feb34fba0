/**
 * Goal: a store whose parts are too many for the memory that describes them stops taking writes, and says
 * why; it does not fail. What was acknowledged can be read meanwhile, and after it was opened again, with
 * as much memory or with more; with more it goes on. Method: parts of a row each, with long keys, inline,
 * in the least memory that an engine takes, until a flush finds no room.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Collection, Engine, OpenOptions, Stall } from '../../actors/index.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { SimDisk } from '../sim/disk.ts';
import { Home } from './world.ts';

const ROWS_PER_COMMIT = 250;
/** More than fit. */
const COMMITS_MAX = 40;
/** More than can be shown in the least memory. */
const ROWS_TOO_MANY = 8_000;
/** A stall that nobody tells of waits without end. */
const DEADLINE = { timeout: 240_000 };

type Words = Collection<string, string>;

function keyOf(i: number): string {
  return String((i * 7_919) % 1_000_003)
    .repeat(100)
    .slice(0, 560);
}

function valueOf(i: number): string {
  return `${i} `.padEnd(600, '.');
}

async function commit(engine: Engine, words: Words, from: number): Promise<void> {
  const tx = engine.transaction();
  for (let i = from; i < from + ROWS_PER_COMMIT; i++) tx.put(words, keyOf(i), valueOf(i));
  await tx.commit();
}

function expectRows(words: Words, rows: number): void {
  for (let i = 0; i < rows; i += 97) assert.equal(words.getSync(keyOf(i)), valueOf(i));
  assert.equal(words.getSync(keyOf(rows - 1)), valueOf(rows - 1));
}

test(
  'a store with more parts than there is memory for waits, and goes on in more',
  DEADLINE,
  async () => {
    const disk = new SimDisk({ answerAtOnce: true });
    const clock = { nowMs: (): number => Date.now(), ticksMs: (): number => performance.now() };
    const home = new Home('inline');
    const seam = { partBytes: 1 * KiB, holder: undefined };
    const openIn = (memoryBytes: number): Promise<Engine> => {
      const storage = { storage: disk, clock };
      const options: OpenOptions = { durability: 'buffered', memtableBytes: 1 * MiB, storage };
      return home.openWith(seam, { ...options, memoryBytes });
    };
    try {
      let engine = await openIn(32 * MiB);
      let words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
      let stall: Stall | undefined;
      const stalled = new Promise<void>((resolve) => {
        engine.on('stalled', (raised) => {
          if (raised.actor !== 'keeper' || raised.cause !== 'memory' || raised.over) return;
          stall = raised;
          resolve();
        });
      });
      let rows = 0;
      for (let i = 0; i < COMMITS_MAX && stall === undefined; i++) {
        await commit(engine, words, rows);
        rows += ROWS_PER_COMMIT;
        const flushed = engine.flush();
        // Who waits for a flush when the engine closes hears that.
        flushed.catch(() => {});
        await Promise.race([flushed, stalled]);
      }
      assert.ok(stall !== undefined, `${rows} rows found room`);
      assert.equal(engine.state, 'open');
      expectRows(words, rows);
      await commit(engine, words, rows);
      rows += ROWS_PER_COMMIT;
      expectRows(words, rows);
      await engine.close();

      engine = await openIn(32 * MiB);
      words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
      expectRows(words, rows);
      await engine.close();

      engine = await openIn(64 * MiB);
      words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
      expectRows(words, rows);
      await engine.flush();
      await commit(engine, words, rows);
      rows += ROWS_PER_COMMIT;
      await engine.flush();
      expectRows(words, rows);
      while (rows < ROWS_TOO_MANY) {
        await commit(engine, words, rows);
        rows += ROWS_PER_COMMIT;
        await engine.flush();
      }
      await engine.close();

      const limit = { code: 'TIDEMARK_TOO_LARGE', detail: { limit: 'memoryBytes' } };
      await assert.rejects(openIn(32 * MiB), limit, 'what is there cannot be shown');
      engine = await openIn(64 * MiB);
      words = await engine.collection('words', { key: 'utf8', value: 'utf8' });
      expectRows(words, rows);
    } finally {
      await home.end();
    }
  },
);
