/**
 * Goal: the machine that copies a store keeps its word where the easy way is closed: no hard links, a disk
 * that fails at any call, damage in what is copied. What is left is a whole store or nothing.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { open } from '../../actors/index.ts';
import { placeAt } from '../../actors/place.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import type { TidemarkError } from '../../core/base/errors.ts';
import { StoreBackup } from '../../core/store/backup.ts';
import type { BackupResult } from '../../core/store/backup.ts';
import { readManifest } from '../../core/store/look.ts';
import type { Place } from '../../core/store/new-store.ts';
import { SimDisk } from '../sim/disk.ts';
import { OPTIONS, copyOf, flip, freshDirectory, makeStore, runToEnd, verify } from './kit.ts';

let store = '';

before(async () => {
  store = await makeStore(true);
});

function backup(directory: string, place: Place, upper?: number): BackupResult {
  const source = new NodeStorage(directory);
  const job = new StoreBackup(source, readManifest(source)!.state, place);
  try {
    runToEnd(job.begin());
    runToEnd(job.parts());
    runToEnd(job.log(upper));
    return runToEnd(job.finish());
  } catch (error) {
    job.abandon();
    throw error;
  }
}

function withoutLinks(place: Place, code = 'EXDEV'): Place {
  return {
    ...place,
    link: () => {
      throw Object.assign(new Error(code), { code });
    },
  };
}

test('where nothing can be linked, parts are copied, byte for byte', async () => {
  const target = freshDirectory();
  const { offset, bytes } = backup(store, withoutLinks(placeAt(target)));
  const names = readdirSync(join(target, 'parts'));
  assert.ok(names.length > 0, 'there are parts');
  for (const name of names) assert.equal(statSync(join(target, 'parts', name)).nlink, 1);
  assert.deepEqual(verify(target).findings, []);
  let size = 0;
  for (const dir of ['parts', 'wal', 'manifest']) {
    for (const name of readdirSync(join(target, dir)))
      size += statSync(join(target, dir, name)).size;
  }
  assert.equal(bytes, size);
  const [copy, original] = [await open(target, OPTIONS), await open(copyOf(store), OPTIONS)];
  assert.equal(copy.upper, offset + 1);
  assert.equal(copy.upper, original.upper);
  for (const name of ['words', 'edges']) {
    const [a, b] = [await copy.collection(name), await original.collection(name)];
    assert.deepEqual([...a.entries()], [...b.entries()]);
  }
  await copy.close();
  await original.close();
});

test('an error of the file system that is no missing link is told', () => {
  const target = freshDirectory();
  assert.throws(() => backup(store, withoutLinks(placeAt(target), 'EIO')), { code: 'EIO' });
  assert.equal(existsSync(target), false);
});

test('damage in the log, a log that is too short, a missing part: told, and nothing is left', () => {
  const { flushed } = readManifest(new NodeStorage(store))!.state;
  const upper = verify(store).next!;
  assert.ok(upper > flushed.upper, 'there is a log to copy');

  const damaged = copyOf(store);
  const seq = `${flushed.seq}`.padStart(10, '0');
  flip(damaged, `wal/${seq}.seg`, flushed.position + 60);
  const cut = copyOf(store);
  const parts = readdirSync(join(cut, 'parts'));
  rmSync(join(cut, 'parts', parts[0]));
  for (const [directory, to, finding] of [
    [damaged, undefined, 'CHECKSUM'],
    [damaged, upper, 'CHECKSUM'],
    [store, upper + 1, 'GAP'],
    [cut, undefined, 'MISSING_PART'],
  ] as const) {
    const target = freshDirectory();
    assert.throws(
      () => backup(directory, placeAt(target), to),
      (error: TidemarkError) => error.detail['finding'] === finding,
    );
    assert.equal(existsSync(target), false, finding);
  }
});

test('a disk that fails at any call leaves no store, and every descriptor is given back', () => {
  let calls = 0;
  for (let failing = 1; ; failing++) {
    const disk = new SimDisk();
    const place: Place = withoutLinks({
      storage: disk,
      name: 'simulated',
      link: () => {},
      removeDir: () => {},
      syncParent: () => {},
    });
    let n = 0;
    disk.fault = ({ mutation }) =>
      mutation >= 0 && ++n === failing ? { kind: 'throw', code: 'EIO' } : undefined;
    try {
      backup(store, place);
      calls = n;
      break;
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'EIO', `call ${failing}: ${String(error)}`);
      assert.equal(disk.stat('manifest/HEAD'), undefined, `call ${failing}`);
      assert.deepEqual(disk.openFiles, [], `call ${failing}`);
    }
  }
  assert.ok(calls > 20, `${calls} calls`);
});
