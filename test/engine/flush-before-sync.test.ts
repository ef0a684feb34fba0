/**
 * Goal (F1): what a flush writes is named by the manifest only once the log that it came from is on the
 * disk; where nobody else asks for that, the flush does. Method: a buffered engine, inline, over a disk in
 * memory and a clock that stands still, so that nothing is synced because of the time; the power goes at
 * each call of a flush, some files reaching the disk and others not.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { Engine } from '../../actors/index.ts';
import { Prng } from '../../core/base/prng.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { LOG_DIR } from '../../core/storage/names.ts';
import { FATE_KEPT, FATE_LOST, SimDisk } from '../sim/disk.ts';
import { quiet } from './world.ts';

const COMMITS = 40;
const LOSSES_PER_CALL = 3;
/** A flush that nobody syncs for waits without end. */
const DEADLINE = { timeout: 120_000 };

const clock = { nowMs: (): number => 1_000, ticksMs: (): number => 1_000 };

function opened(disk: SimDisk): Promise<Engine> {
  const memory = { memoryBytes: 64 * MiB, memtableBytes: 256 * KiB };
  const storage = { storage: disk, clock };
  return open('/sim', { threads: 0, durability: 'buffered', ...memory, storage });
}

/** A store with rows in parts, and on top of them commits that nothing but memory has for sure. */
async function begun(): Promise<{ disk: SimDisk; engine: Engine }> {
  const disk = new SimDisk({ answerAtOnce: true });
  const engine = await opened(disk);
  const words = await engine.collection('words', { key: 'u64', value: 'u64' });
  await words.put(0, 0);
  await engine.flush();
  await quiet(engine);
  assert.equal(engine.stats().durableUpper, engine.upper, 'all that is flushed is durable');
  for (let i = 1; i < COMMITS; i++) await words.put(i, i);
  return { disk, engine };
}

/** Each file reaches the disk as it is now, or as it was synced last. */
function lossOf(disk: SimDisk, prng: Prng): SimDisk {
  const fates = new Map<number, number>();
  const left = disk.powerLoss((unit) => {
    if (unit.kind === 'entry') return FATE_KEPT;
    if (!fates.has(unit.file)) fates.set(unit.file, prng.chance(0.5) ? FATE_KEPT : FATE_LOST);
    return fates.get(unit.file)!;
  });
  left.answerAtOnce = true;
  return left;
}

test('a flush asks for the sync that it waits for', DEADLINE, async () => {
  const { disk, engine } = await begun();
  const { durableUpper } = engine.stats();
  assert.ok(durableUpper < engine.upper, 'nobody has asked for a sync');
  const calls: string[] = [];
  disk.fault = ({ call, path }) => void calls.push(`${call} ${path}`);
  await engine.flush();
  disk.fault = undefined;
  const synced = calls.findIndex((call) => call.startsWith(`fdatasync ${LOG_DIR}/`));
  const named = calls.findIndex((call) => /^write manifest\/.*\.edits$/.test(call));
  assert.ok(synced >= 0, 'the log was synced');
  assert.ok(named > synced, `the edit came ${named}, the sync ${synced} of ${calls.join('; ')}`);
  assert.equal(engine.stats().durableUpper, engine.upper);
  await engine.close();
});

test(
  'no edit names what the log has not got, wherever in a flush the power goes',
  DEADLINE,
  async () => {
    const { disk, engine } = await begun();
    const prng = new Prng(1);
    const losses: { left: SimDisk; durable: number; at: string }[] = [];
    disk.fault = ({ call, path }) => {
      const durable = engine.stats().durableUpper;
      for (let i = 0; i < LOSSES_PER_CALL; i++)
        losses.push({ left: lossOf(disk, prng), durable, at: `${call} ${path}` });
      return undefined;
    };
    await engine.flush();
    disk.fault = undefined;
    await engine.close();
    assert.ok(losses.length >= 10 * LOSSES_PER_CALL, `${losses.length} losses`);
    let short = 0;
    for (const { left, durable, at } of losses) {
      left.fault = undefined;
      const again = await opened(left);
      assert.ok(
        again.upper >= durable,
        `${at}: ${again.upper} of the ${durable} that were durable`,
      );
      const words = await again.collection('words', { key: 'u64', value: 'u64' });
      const keys = [...words.keys()];
      assert.deepEqual(
        keys,
        keys.map((_, i) => i),
        `${at}: what is there is what came first`,
      );
      if (keys.length < COMMITS) short++;
      const { findings } = await again.verify({ full: true });
      assert.deepEqual(
        findings.filter(({ severity }) => severity !== 'note'),
        [],
        at,
      );
      await again.close();
    }
    assert.ok(short > 0, 'some have lost what was not synced');
  },
);
