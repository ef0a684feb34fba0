/**
 * Goal: when commits pause one more record says on the disk how far the log is durable, and it is synced
 * (commitlog 2.2); whoever commits next waits for one sync and not for that of the pause. Method: the engine
 * inline over a disk in memory, with a clock that the test moves.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';
import { LOG_DIR } from '../../core/storage/names.ts';
import { SimClock } from '../sim/clock.ts';
import { SimDisk } from '../sim/disk.ts';
import { until } from './world.ts';

for (const durability of ['synced', 'buffered'] as const) {
  test(`a pause is synced, and the commit after it needs one sync (${durability})`, async () => {
    const storage = new SimDisk({ answerAtOnce: true });
    const clock = new SimClock();
    const options = { threads: 0, memoryBytes: 64 * MiB, storage: { storage, clock } };
    const engine = await open('/sim', { ...options, durability });
    const rows = await engine.collection('rows', {});
    await rows.put('a', '1', { durability: 'synced' });
    const calls: string[] = [];
    storage.fault = ({ call, path }) => {
      if (path.startsWith(`${LOG_DIR}/`)) calls.push(call);
      return undefined;
    };
    await until('a watermark that is synced', () => {
      clock.advance(10);
      return calls.includes('fdatasync');
    });
    assert.equal(engine.stats().durability['watermarks'], 1);
    calls.length = 0;
    await rows.put('b', '1', { durability: 'synced' });
    assert.deepEqual(
      calls.filter((call) => call === 'fdatasync'),
      ['fdatasync'],
    );
    await engine.close();
  });
}
