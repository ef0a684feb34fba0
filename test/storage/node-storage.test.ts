/** What the real disk is asked, where the simulated one has nothing that could be lost: the way to the store, programs. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { NodeStorage } from '../../actors/node-storage.ts';
import { SHORT_READ } from '../../core/storage/storage.ts';
import type { StorageAnswer, StorageCall } from '../../core/storage/storage.ts';

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

const BLOCK_BYTES = 64;
/** More than are under way at a time. */
const BLOCKS = 100;

function blocksIn(root: string): void {
  const bytes = Buffer.alloc(BLOCKS * BLOCK_BYTES);
  for (let i = 0; i < BLOCKS; i++) bytes.fill(i, i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES);
  fs.writeFileSync(join(root, 'blocks'), bytes);
}

/** Runs one program and answers what it was answered. */
async function run(root: string, calls: readonly StorageCall[]): Promise<StorageAnswer> {
  const answer = await new Promise<StorageAnswer>((resolve) => {
    const storage: NodeStorage = new NodeStorage(root, () => resolve(storage.poll()!));
    storage.submit(7, -1, calls);
  });
  assert.equal(answer.ticket, 7);
  return answer;
}

function readsOf(blocks: readonly number[]): Extract<StorageCall, { call: 'read' }>[] {
  return blocks.map((block) => ({
    call: 'read',
    bytes: new Uint8Array(BLOCK_BYTES),
    position: block * BLOCK_BYTES,
  }));
}

test('each read of a program finds its own bytes, and what follows them is done after all of them', async (t) => {
  const root = fs.mkdtempSync(join(tmpdir(), 'tidemark-storage-'));
  t.after(() => fs.rmSync(root, { recursive: true }));
  blocksIn(root);
  const blocks = Array.from({ length: BLOCKS }, (_, i) => (i * 37) % BLOCKS);
  const reads = readsOf(blocks);
  const answer = await run(root, [
    { call: 'open', path: 'blocks', how: 'read' },
    ...reads,
    { call: 'close' },
    { call: 'unlink', path: 'blocks' },
  ]);
  assert.equal(answer.failure, undefined);
  for (const [i, { bytes }] of reads.entries()) {
    assert.deepEqual(bytes, new Uint8Array(BLOCK_BYTES).fill(blocks[i]));
  }
  assert.equal(fs.existsSync(join(root, 'blocks')), false);
});

test('a read that fails ends its program, whose descriptor is closed, and nothing behind it is done', async (t) => {
  const root = fs.mkdtempSync(join(tmpdir(), 'tidemark-storage-'));
  t.after(() => fs.rmSync(root, { recursive: true }));
  blocksIn(root);
  const reads = readsOf([0, 1, BLOCKS, 2, 3]);
  const answer = await run(root, [
    { call: 'open', path: 'blocks', how: 'read' },
    ...reads,
    { call: 'unlink', path: 'blocks' },
  ]);
  assert.equal((answer.failure as { code?: string }).code, SHORT_READ);
  assert.equal(answer.fd, -1);
  assert.ok(fs.existsSync(join(root, 'blocks')), 'the call behind the reads was not made');
});
