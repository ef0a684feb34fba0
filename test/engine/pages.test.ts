/**
 * Goal: a transaction of any size comes back as it was committed, wherever the end of a record page falls.
 * Method: pairs whose sizes together pass a page's end in steps of 8 bytes, in one turn and in several;
 * transactions of several pages between them; all read again, and once more after a replay of the log.
 */
import assert from 'node:assert/strict';
import { pageBytes } from '../../core/base/limits.ts';
import { inBothHosts } from './world.ts';

/** Bytes of a transaction besides its key and value. */
const OVERHEAD_BYTES = 24;

inBothHosts('transactions that end before, at and behind the end of a page', async (home) => {
  const expected = new Map<string, Buffer>();
  let engine = await home.open();
  let rows = await engine.collection('rows', { key: 'utf8', value: 'buffer' });
  let n = 0;
  const put = (transactionBytes: number): Promise<unknown> => {
    const key = `k${String(n).padStart(7, '0')}`;
    const value = Buffer.alloc(transactionBytes - OVERHEAD_BYTES - key.length, key);
    expected.set(key, value);
    n++;
    return rows.put(key, value);
  };
  const most = pageBytes - (pageBytes >> 2);
  for (let more = -64; more <= 64; more += 8) {
    const pair = [put(most), put(pageBytes - most + more)];
    if (more % 16 === 0) await Promise.all(pair);
    if (more % 24 === 0) pair.push(put(64), put(3 * pageBytes + more));
    await Promise.all(pair);
  }
  const check = (when: string): void => {
    for (const [key, value] of expected) {
      assert.ok(rows.getSync(key)?.equals(value), `${key}, ${value.length} bytes, ${when}`);
    }
    assert.equal([...rows.keys()].length, expected.size);
  };
  check('as committed');
  await engine.close();
  engine = await home.open();
  rows = await engine.collection('rows', { key: 'utf8', value: 'buffer' });
  check('replayed');
  await engine.close();
});
