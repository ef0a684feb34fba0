/**
 * Goal: segments of the log that stay are compressed and nobody notices; those that go are archived
 * first, each once, whole and in order, and nothing else waits for that. Method: small segments in both
 * hosts; a hook that copies, fails, hangs; on the simulated disk, losses of power at each deletion.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { copyFileSync, readdirSync, readFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { open } from '../../actors/index.ts';
import type { ArchiveFile, Engine, OpenOptions } from '../../actors/index.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import { loadManifest } from '../../core/spine/manifest-store.ts';
import { LOG_DIR, numberOf } from '../../core/storage/names.ts';
import type { Storage } from '../../core/storage/storage.ts';
import { FATE_LOST, SimDisk } from '../sim/disk.ts';
import { inBothHosts, quiet, until } from './world.ts';

const SMALL: OpenOptions = { segmentBytes: 64 * KiB, memtableBytes: 256 * KiB };

const valueOf = (i: number): string => `${i}`.padEnd(300, 'value ');

async function fill(engine: Engine, from: number, to: number, history = 0): Promise<void> {
  const rows = await engine.collection('rows', { key: 'u64', history });
  for (let i = from; i < to; i += 20) {
    await Promise.all(
      Array.from({ length: 20 }, (_, j) => rows.put((i + j) % 100, valueOf(i + j))),
    );
  }
}

/** Two checkpoints: then the older one is above all that was sealed before. */
async function age(engine: Engine): Promise<void> {
  await engine.checkpoint();
  await fill(engine, 0, 20);
  await engine.checkpoint();
  await quiet(engine);
}

function filesIn(storage: Storage): { plain: number[]; packed: number[] } {
  const names = storage.list(LOG_DIR);
  return {
    plain: names.flatMap((name) => numberOf(name, '.seg') ?? []),
    packed: names.flatMap((name) => numberOf(name, '.segz') ?? []),
  };
}

inBothHosts('segments that history keeps are compressed, and all of it is there', async (home) => {
  const storage = new NodeStorage(home.directory);
  const engine = await home.open(SMALL);
  await fill(engine, 0, 2_000, Infinity);
  await age(engine);
  const { log } = engine.stats();
  assert.ok(log.segmentsCompressed >= 5, `${log.segmentsCompressed} compressed`);
  assert.equal(log.segmentsDeleted, 0);
  // What was compressed goes once no view names it any more.
  await until('the old ones alone', () => {
    const { packed, plain } = filesIn(storage);
    return Math.max(...packed) < Math.min(...plain);
  });
  const files = filesIn(storage);
  assert.equal(files.packed.length, log.segmentsCompressed);
  assert.deepEqual(storage.list('tmp'), []);
  const { findings } = await engine.verify({ full: true });
  assert.deepEqual(
    findings.filter(({ severity }) => severity !== 'note'),
    [],
  );
  // A feed reads them from the first offset on.
  const rows = await engine.collection('rows', { key: 'u64' });
  let seen = 0;
  for await (const item of rows.changes({ from: 0 })) {
    if (item.kind !== 'transaction') continue;
    seen += item.updates.filter(({ diff }) => diff > 0).length;
    if (item.offset >= engine.upper - 1) break;
  }
  assert.equal(seen, 2_020, 'every put once');
  const { upper } = engine;
  await engine.close();
  const again = await home.open(SMALL);
  assert.equal(again.upper, upper);
  assert.equal((await again.collection('rows', { key: 'u64' })).getSync(7), valueOf(7));
  await fill(again, 0, 500);
  await age(again);
  assert.equal(again.stats().keeper['jobsFailed'], 0);
  assert.ok(filesIn(storage).packed.length > files.packed.length, 'and more of them');
});

inBothHosts('each segment is archived once, whole and in order, before it goes', async (home) => {
  const target = join(home.directory, 'archive');
  mkdirSync(target);
  const files: ArchiveFile[] = [];
  const archive = async (file: ArchiveFile): Promise<void> => {
    files.push(file);
    copyFileSync(file.path, join(target, file.name));
    await new Promise((resolve) => setImmediate(resolve));
  };
  const storage = new NodeStorage(home.directory);
  const engine = await home.open({ ...SMALL, wal: { archive } });
  await fill(engine, 0, 1_500);
  await age(engine);
  await until('all are archived', () => engine.stats().log.archive.waiting === 0);
  await quiet(engine);
  const { log } = engine.stats();
  assert.ok(files.length >= 4, `${files.length} archived`);
  assert.deepEqual(log.archive, {
    done: files.length,
    waiting: 0,
    failures: 0,
    error: null,
  });
  await until('they are gone', () => engine.stats().log.segmentsDeleted === files.length);
  for (const [i, file] of files.entries()) {
    const bytes = readFileSync(join(target, file.name));
    assert.equal(file.bytes, bytes.length);
    assert.equal(file.sha256, createHash('sha256').update(bytes).digest('hex'));
    // Numbers may be skipped, offsets are not.
    assert.ok(file.seq > (files[i - 1]?.seq ?? 0), 'the oldest first');
    assert.equal(file.firstOffset, i === 0 ? 0 : files[i - 1].endOffset, 'without a gap');
    assert.match(file.name, /\.segz$/);
  }
  assert.equal(files.at(-1)?.endOffset, engine.stats().log.segments[0].firstOffset);
  const named = loadManifest(storage)!.state.archived;
  assert.deepEqual(
    named.map(({ name, hash }) => [name, Buffer.from(hash).toString('hex')]),
    files.map(({ name, sha256 }) => [name, sha256]),
  );
  await engine.close();
  // What it has it is not asked for again.
  const count = files.length;
  const again = await home.open({ ...SMALL, wal: { archive } });
  await fill(again, 0, 600);
  await age(again);
  await until('archived', () => again.stats().log.archive.waiting === 0);
  assert.ok(files.length > count, 'more of them');
  for (const [i, { firstOffset }] of files.entries()) {
    assert.equal(firstOffset, i === 0 ? 0 : files[i - 1].endOffset, 'each once, over both');
  }
});

inBothHosts(
  'close aborts what the hook is at, waits for none of it, and asks again',
  async (home) => {
    let asked = 0;
    let reason: unknown;
    const archive = (_: ArchiveFile, { signal }: { signal: AbortSignal }): Promise<void> => {
      asked++;
      return new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => {
          reason = signal.reason;
          reject(new Error('given up'));
        });
      });
    };
    const engine = await home.open({ ...SMALL, wal: { archive } });
    await fill(engine, 0, 800);
    await engine.checkpoint();
    await fill(engine, 0, 20);
    await engine.checkpoint();
    await until('asked', () => asked === 1);
    await fill(engine, 0, 400);
    await until('it holds them', () => engine.stats().log.floor.heldBy === 'archive');
    const { log } = engine.stats();
    assert.equal(log.segmentsDeleted, 0);
    assert.ok(log.archive.waiting > 0, 'they wait');
    assert.equal(asked, 1, 'one at a time');
    await engine.close();
    assert.equal((reason as { code?: string }).code, 'TIDEMARK_CLOSED');
    const done: number[] = [];
    const again = await home.open({ ...SMALL, wal: { archive: ({ seq }) => void done.push(seq) } });
    await age(again);
    await until('archived', () => again.stats().log.archive.waiting === 0);
    assert.equal(done[0], 1);
  },
);

/** Time goes fast, so that a hook that failed is soon asked again. */
const clock = { nowMs: () => Date.now(), ticksMs: () => performance.now() * 1_000 };

test('a hook that fails is asked again; segments stay, commits go on, and stats say why', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const told: { file: ArchiveFile; error: Error | undefined }[] = [];
  const errors = new Set<string>();
  const onArchive = (message: unknown): void => {
    told.push(message as (typeof told)[number]);
    errors.add(engine.stats().log.archive.error?.message ?? 'none');
  };
  subscribe('tidemark:archive', onArchive);
  let failures = 0;
  const files: number[] = [];
  const archive = async ({ seq }: ArchiveFile): Promise<void> => {
    if (failures < 4) {
      failures++;
      throw new Error(`no room for segment ${seq}`);
    }
    files.push(seq);
    await Promise.resolve();
  };
  const engine = await open('/sim', {
    threads: 0,
    memoryBytes: 64 * MiB,
    memtableBytes: 64 * KiB,
    segmentBytes: 16 * KiB,
    storage: { storage: disk, clock },
    wal: { archive },
  });
  await fill(engine, 0, 200);
  await engine.checkpoint();
  await fill(engine, 0, 40);
  await engine.checkpoint();
  await until('a failure', () => engine.stats().log.archive.failures > 0);
  // Each commit wakes the keeper, whose clock has gone on. They may fill segments faster than the hook takes them.
  const rows = await engine.collection('rows', { key: 'u64' });
  let commits = 0;
  while (files.length === 0) {
    await rows.put(0, '');
    assert.ok(++commits < 100_000, 'it comes to an end');
  }
  await age(engine);
  assert.equal(engine.stats().log.archive.failures, 4);
  assert.equal(engine.stats().log.archive.error, null);
  assert.deepEqual([...errors], ['no room for segment 1', 'none']);
  assert.equal(told.length, files.length + 4);
  for (const [n, { file, error }] of told.entries()) {
    assert.equal(file.seq, n < 4 ? 1 : files[n - 4]);
    assert.equal(error?.message, n < 4 ? 'no room for segment 1' : undefined);
  }
  assert.equal(engine.state, 'open');
  await engine.close();
  unsubscribe('tidemark:archive', onArchive);
  assert.deepEqual(disk.openFiles, []);
});

/** Even when power takes back all that it can, the archive has the segment, and the log begins behind it. */
function assertLetGo(disk: SimDisk, seq: number): void {
  const { state } = loadManifest(disk.powerLoss(() => FATE_LOST))!;
  assert.ok(
    state.archived.some((entry) => entry.seq === seq),
    `segment ${seq} is named`,
  );
  assert.ok(state.logStart.seq > seq, `the log starts at ${state.logStart.seq}`);
}

test('no file goes before the manifest names it as archived, whatever power takes back', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const confirmed = new Set<number>();
  let gone = 0;
  disk.fault = ({ call, path }) => {
    if (call !== 'unlink' || !path.startsWith(`${LOG_DIR}/`)) return undefined;
    const name = path.slice(LOG_DIR.length + 1);
    const seq = numberOf(name, '.segz');
    if (seq === undefined || disk.stat(path) === undefined) return undefined;
    assert.ok(confirmed.has(seq), `segment ${seq} is confirmed`);
    assertLetGo(disk, seq);
    gone++;
    return undefined;
  };
  const engine = await open('/sim', {
    threads: 0,
    memoryBytes: 64 * MiB,
    memtableBytes: 64 * KiB,
    segmentBytes: 16 * KiB,
    storage: { storage: disk, clock },
    wal: { archive: ({ seq }) => void confirmed.add(seq) },
  });
  for (let turn = 0; turn < 8; turn++) {
    await fill(engine, 0, 100);
    await engine.checkpoint();
    await quiet(engine);
  }
  assert.ok(gone >= 5, `${gone} gone`);
  await engine.close();
  // What is left is what the log has.
  const { plain, packed } = filesIn(disk);
  const start = loadManifest(disk)!.state.logStart.seq;
  assert.ok(
    [...plain, ...packed].every((seq) => seq >= start),
    'nothing older',
  );
});

test('no segment is written over before it is archived, nor one that somebody has linked', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const confirmed = new Set<number>();
  const linked = new Map<string, Uint8Array>();
  let isRefused = true;
  let recycled = 0;
  disk.fault = ({ call, path, position }) => {
    // Whoever writes over a segment begins with its header.
    if (call !== 'write' || position !== 0 || !path.startsWith(`${LOG_DIR}/`)) return undefined;
    const seq = numberOf(path.slice(LOG_DIR.length + 1), '.seg');
    if (seq === undefined || disk.bytesOf(path)?.[0] !== 0x8f) return undefined;
    assert.ok(confirmed.has(seq), `segment ${seq} is confirmed`);
    assertLetGo(disk, seq);
    recycled++;
    return undefined;
  };
  const engine = await open('/sim', {
    threads: 0,
    memoryBytes: 64 * MiB,
    memtableBytes: 64 * KiB,
    segmentBytes: 16 * KiB,
    storage: { storage: disk, clock },
    wal: {
      compress: false,
      archive: ({ seq, name }) => {
        if (isRefused) throw new Error('not now');
        confirmed.add(seq);
        if (seq % 3 !== 0) return;
        const kept = `${LOG_DIR}/kept-${seq}`;
        disk.link(`${LOG_DIR}/${name}`, kept);
        linked.set(kept, disk.bytesOf(kept)!);
      },
    },
  });
  const round = async (): Promise<void> => {
    await fill(engine, 0, 60);
    await engine.checkpoint();
  };
  for (let i = 0; i < 4; i++) await round();
  assert.equal(recycled, 0, 'none while the hook refuses');
  isRefused = false;
  for (let i = 0; i < 500 && (recycled < 3 || linked.size < 3); i++) await round();
  assert.ok(recycled >= 3, `${recycled} written over`);
  await quiet(engine);
  await engine.close();
  assert.ok(linked.size >= 3, `${linked.size} linked`);
  for (const [kept, bytes] of linked) {
    assert.deepEqual(disk.bytesOf(kept), bytes, `${kept} is as it was handed over`);
  }
});

test('what a job that died leaves of a compressed segment goes at once, not when the job is done again', async () => {
  const disk = new SimDisk({ answerAtOnce: true });
  const real = { nowMs: () => Date.now(), ticksMs: () => performance.now() };
  const engine = await open('/sim', {
    ...SMALL,
    threads: 0,
    storage: { storage: disk, clock: real },
  });
  // It fails at the file's name, and cannot delete the file itself.
  let left = '';
  let begun = 0;
  disk.fault = ({ call, path }) => {
    if (call === 'open' && path === left) begun++;
    const isNamed = call === 'rename' && path.startsWith('tmp/') && path.endsWith('.segz');
    const isLeft = call === 'unlink' && path === left && begun === 0;
    if (isLeft) begun++;
    else if (isNamed && left === '') [left] = path.split(' ');
    else return undefined;
    return { kind: 'throw', code: 'EIO' };
  };
  await fill(engine, 0, 1_000, Infinity);
  await engine.checkpoint();
  await engine.checkpoint();
  await until('it is gone', () => begun > 0 && disk.stat(left) === undefined);
  assert.equal(begun, 1, 'nobody has begun again');
  await engine.close();
});

inBothHosts('a read-only engine neither compresses nor archives', async (home) => {
  const engine = await home.open(SMALL);
  await fill(engine, 0, 1_000, Infinity);
  await engine.checkpoint();
  await engine.close();
  const names = readdirSync(join(home.directory, LOG_DIR));
  const reader = await home.open({
    ...SMALL,
    readOnly: true,
    wal: { archive: () => assert.fail('not asked') },
  });
  await quiet(reader);
  await reader.close();
  assert.deepEqual(readdirSync(join(home.directory, LOG_DIR)), names);
});
