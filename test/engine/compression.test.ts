/**
 * Goal: a collection's compression is stored with it, merges apply it, every way of reading sees through
 * it, and verify finds the store sound.
 */
import assert from 'node:assert/strict';
import { inBothHosts, misuse, quiet } from './world.ts';

inBothHosts(
  'merges compress what flushes wrote plain, and every read sees the rows',
  async (home) => {
    let engine = await home.open();
    const bytesOf = (name: string): number => {
      const stats = engine.stats().collections.find((collection) => collection.name === name);
      return stats!.runs.reduce((sum, run) => sum + run.bytes, 0);
    };
    const plain = await engine.collection('plain', { key: 'u64' });
    const names = ['deflate', 'brotli'] as const;
    const packed = await Promise.all(
      names.map((compression) => engine.collection(compression, { key: 'u64', compression })),
    );
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < 400; i++) {
        const tx = engine.transaction();
        const value = `round ${round}, row ${i}, ${'the same again, '.repeat(10)}`;
        for (const collection of [plain, ...packed]) tx.put(collection, i, value);
        void tx.commit();
      }
      await engine.flush();
    }
    await quiet(engine);
    assert.ok(bytesOf('deflate') > 0.9 * bytesOf('plain'), 'flushes compress nothing');
    await engine.compact();
    await quiet(engine);
    for (const name of names) {
      assert.ok(bytesOf(name) < bytesOf('plain') / 4, `${name}: ${bytesOf(name)}`);
    }
    await engine.close();

    engine = await home.open();
    for (const name of names) {
      const rows = await engine.collection(name, { key: 'u64' });
      const all = await engine.collection('plain', { key: 'u64' });
      for (const i of [0, 1, 199, 399]) {
        assert.equal(rows.getSync(i), all.getSync(i));
        assert.equal(await rows.get(i), all.getSync(i));
        assert.match(rows.getSync(i) ?? '', /^round 1/);
      }
      assert.equal(rows.getSync(400), undefined);
      assert.deepEqual([...rows.entries()], [...all.entries()]);
      const last = [...rows.entries({ reverse: true, limit: 3 })];
      assert.deepEqual(last, [...all.entries({ reverse: true, limit: 3 })]);
    }
    const report = await engine.verify({ full: true });
    assert.deepEqual(report.findings, []);
  },
);

inBothHosts(
  'a compression that is none, or that this Node has not got, is refused',
  async (home) => {
    const engine = await home.open();
    for (const compression of ['lz4', '', 1, null, {}]) {
      await assert.rejects(engine.collection('x', { compression } as never), misuse(/compression/));
    }
    const hasZstd = 'zstdCompressSync' in (await import('node:zlib'));
    const zstd = engine.collection('z', { compression: 'zstd' });
    if (hasZstd) await zstd;
    else await assert.rejects(zstd, misuse(/zstd/));
    const none = await engine.collection('n', { compression: 'none' });
    await none.put('a', 'b');
    assert.equal(none.getSync('a'), 'b');
  },
);
