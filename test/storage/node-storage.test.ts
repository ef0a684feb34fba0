/** What the real disk is asked, where the simulated one has nothing that could be lost: the way to the store. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { NodeStorage } from '../../actors/node-storage.ts';

test('a directory made for a store is synced in the one above it, and so on up; one that was there is not', (t) => {
  const root = fs.mkdtempSync(join(tmpdir(), 'tidemark-storage-'));
  t.after(() => fs.rmSync(root, { recursive: true }));
  const opened = new Map<number, string>();
  const synced: string[] = [];
  const { openSync, fsyncSync } = fs;
  t.mock.method(fs, 'openSync', (path: string, flags: number, mode?: number) => {
    const fd = openSync(path, flags, mode);
    opened.set(fd, path);
    return fd;
  });
  t.mock.method(fs, 'fsyncSync', (fd: number) => {
    synced.push(opened.get(fd) ?? 'unknown');
    fsyncSync(fd);
  });
  // The storage has its names from the module, not from this object.
  syncBuiltinESMExports();
  t.after(() => {
    t.mock.restoreAll();
    syncBuiltinESMExports();
  });
  const storage = new NodeStorage(join(root, 'a', 'b', 'store'));
  storage.makeDir('');
  if (process.platform === 'win32') return;
  assert.deepEqual(synced, [root, join(root, 'a'), join(root, 'a', 'b')]);
  synced.length = 0;
  storage.makeDir('');
  storage.makeDir('wal');
  assert.deepEqual(synced, []);
  storage.syncDir('');
  assert.deepEqual(synced, [join(root, 'a', 'b', 'store')]);
});
