/**
 * Goal: whatever the engine is given, a directory, options, keys, files that somebody has changed, the
 * documented error comes before anything happens: nothing is lost, nothing stays open or locked, and
 * once the cause is gone everything is there.
 */
import assert from 'node:assert/strict';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { threadId } from 'node:worker_threads';
import { open } from '../../actors/index.ts';
import type { Engine, OpenOptions, TidemarkError } from '../../actors/index.ts';
import { crc32 } from '../../core/base/crc32.ts';
import { KiB, MiB, keyBytesMax, valueBytesMax } from '../../core/base/limits.ts';
import {
  SEGMENT_COPY_OFFSET,
  SEGMENT_CRC_OFFSET,
  SEGMENT_FORMAT_OFFSET,
  SEGMENT_INCOMPAT_OFFSET,
  SEGMENT_PAYLOAD_FORMAT_OFFSET,
} from '../../core/log/segment.ts';
import { SimDisk } from '../sim/disk.ts';
import { Child, Home, coded, inBothHosts, misuse, openFiles } from './world.ts';

// ---------------------------------------------------------------- stores on disk

/** Every file below the directory with its bytes; the LOCK and what is wiped at open are nobody's loss. */
function filesOf(directory: string): Map<string, string> {
  const files = new Map<string, string>();
  for (const name of readdirSync(directory, { recursive: true }) as string[]) {
    const path = join(directory, name);
    if (!statSync(path).isFile() || name.startsWith('LOCK') || name.startsWith('tmp')) continue;
    files.set(name, readFileSync(path).toString('latin1'));
  }
  return files;
}

/** Names alone tell enough, and contents are long. */
function assertSameFiles(home: Home, before: ReadonlyMap<string, string>): void {
  const after = filesOf(home.directory);
  const names = new Set([...before.keys(), ...after.keys()]);
  const changed = [...names].filter((name) => before.get(name) !== after.get(name));
  assert.deepEqual(changed, []);
}

const ROWS = 300;

/** A store of several segments and parts; its log is in one when that is large. */
async function makeStore(home: Home, segmentBytes: number = 64 * KiB): Promise<void> {
  const engine = await home.open({ segmentBytes });
  const rows = await engine.collection('rows', { key: 'u64', value: 'utf8', history: Infinity });
  for (let n = 0; n < ROWS / 3; n++) await rows.put(n, `${n}`.padEnd(200, '.'));
  await engine.flush();
  for (let n = ROWS / 3; n < (ROWS * 2) / 3; n++) await rows.put(n, `${n}`.padEnd(200, '.'));
  await engine.flush();
  // More than two segments at once: closing does not wait until they have gone into parts.
  const puts = [];
  for (let n = (ROWS * 2) / 3; n < ROWS; n++) {
    puts.push(rows.put(n, `${n}`.padEnd(3_000, '.')));
    if (n % 10 === 0) await puts.at(-1);
  }
  await Promise.all(puts);
  await engine.close();
}

async function checkStore(engine: Engine): Promise<void> {
  const rows = await engine.collection<'u64'>('rows');
  let n = 0;
  for (const [key, value] of rows.entries()) {
    assert.equal(key, n);
    assert.equal(Number.parseInt(value, 10), n++);
  }
  assert.equal(n, ROWS);
  await rows.put(0, '0');
}

/**
 * Opening is refused, twice in the same way, without a change to any file and with nothing left open;
 * after `mend`, which can be called twice, everything is there. The store is then as it was made.
 */
async function refusesToOpen(
  home: Home,
  check: (error: unknown) => boolean,
  mend: () => void,
  options: OpenOptions = {},
): Promise<void> {
  const before = filesOf(home.directory);
  await assert.rejects(home.open(options), check);
  const opened = openFiles();
  await assert.rejects(home.open(options), check);
  assertSameFiles(home, before);
  assert.deepEqual(openFiles(), opened);
  assert.ok(!existsSync(join(home.directory, 'LOCK')), 'it is not locked');
  const saved = `${home.directory}.saved`;
  cpSync(home.directory, saved, { recursive: true });
  mend();
  const engine = await home.open();
  await checkStore(engine);
  await engine.close();
  // What comes next finds the store as it was made.
  rmSync(home.directory, { recursive: true });
  renameSync(saved, home.directory);
  mend();
}

function segmentsOf(home: Home): string[] {
  const log = join(home.directory, 'wal');
  return readdirSync(log)
    .filter((name) => name.endsWith('.seg'))
    .toSorted()
    .map((name) => join(log, name));
}

/** Moves a file away; what is returned brings it back. */
function hide(path: string): () => void {
  renameSync(path, `${path}.hidden`);
  const outside = `${path}.hidden`;
  return () => renameSync(outside, path);
}

/** Changes a file's bytes; what is returned undoes it. */
function patch(path: string, change: (bytes: Buffer) => void): () => void {
  return replace(path, (before) => {
    const bytes = Buffer.from(before);
    change(bytes);
    return bytes;
  });
}

/** Gives a file other bytes; what is returned undoes it. */
function replace(path: string, bytesFrom: (before: Buffer) => Buffer): () => void {
  const before = readFileSync(path);
  writeFileSync(path, bytesFrom(before));
  return () => writeFileSync(path, before);
}

// ---------------------------------------------------------------- directories

inBothHosts('a directory that is a file is refused and left as it is', async (home) => {
  const path = join(home.directory, 'file');
  writeFileSync(path, 'precious');
  const isRefused = (error: unknown): boolean => {
    coded('TIDEMARK_IO')(error);
    assert.match(String((error as TidemarkError).detail['errno']), /^(EEXIST|ENOTDIR)$/);
    return true;
  };
  for (const directory of [path, join(path, 'below')]) {
    await assert.rejects(home.open({}, directory), isRefused);
    await assert.rejects(home.open({ readOnly: true }, directory), (error) =>
      ['TIDEMARK_IO', 'TIDEMARK_NOT_FOUND', 'TIDEMARK_CORRUPT'].includes(
        (error as TidemarkError).code,
      ),
    );
  }
  assert.equal(readFileSync(path, 'utf8'), 'precious');
  assert.deepEqual(readdirSync(home.directory), ['file']);
});

inBothHosts('a directory that cannot be made is refused', async (home) => {
  await assert.rejects(home.open({}, '/proc/self/none/store'), coded('TIDEMARK_IO'));
  await assert.rejects(
    home.open({}, `${home.directory}/${'n'.repeat(300)}`),
    coded('TIDEMARK_IO', { errno: 'ENAMETOOLONG' }),
  );
  assert.deepEqual(readdirSync(home.directory), []);
});

test('a directory that cannot be written to is refused', async () => {
  for (const code of ['EACCES', 'EROFS', 'EPERM']) {
    const disk = new SimDisk({ answerAtOnce: true });
    const options: OpenOptions = {
      threads: 0,
      memoryBytes: 64 * MiB,
      storage: {
        storage: disk,
        clock: { nowMs: () => Date.now(), ticksMs: () => performance.now() },
      },
    };
    const first = await open('/sim', options);
    const words = await first.collection('words', {});
    await words.put('a', '1');
    await first.close();
    const before = disk.clone();
    disk.fault = ({ mutation }) => (mutation < 0 ? undefined : { kind: 'throw', code });
    await assert.rejects(open('/sim', options), coded('TIDEMARK_IO', { errno: code }));
    disk.fault = undefined;
    assert.deepEqual(disk.openFiles, []);
    assert.deepEqual(disk.list('wal'), before.list('wal'));
    const next = await open('/sim', options);
    assert.equal((await next.collection('words')).getSync('a'), '1');
    await next.close();
  }
});

inBothHosts('a store that is not there is made only if that is wanted', async (home) => {
  const directory = join(home.directory, 'none');
  const isNotFound = coded('TIDEMARK_NOT_FOUND', { directory });
  await assert.rejects(home.open({ createIfMissing: false }, directory), isNotFound);
  await assert.rejects(home.open({ readOnly: true }, directory), isNotFound);
  assert.deepEqual(readdirSync(home.directory), []);
  mkdirSync(directory);
  await assert.rejects(home.open({ createIfMissing: false }, directory), isNotFound);
  await assert.rejects(home.open({ readOnly: true }, directory), isNotFound);
  assert.deepEqual(readdirSync(directory), []);
  await (await home.open({}, directory)).close();
  await assert.rejects(
    home.open({ errorIfExists: true }, directory),
    coded('TIDEMARK_EXISTS', { directory }),
  );
  await (await home.open({ createIfMissing: false }, directory)).close();
});

inBothHosts('a store locked by this process says so', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  const by = {
    own: true,
    pid: process.pid,
    threadId,
    hostName: hostname(),
    directory: home.directory,
  };
  await assert.rejects(home.open(), coded('TIDEMARK_LOCKED', by));
  await assert.rejects(home.open({ readOnly: true }), coded('TIDEMARK_LOCKED', by));
  await words.put('a', '1');
  await engine.close();
  const next = await home.open();
  assert.equal((await next.collection('words')).getSync('a'), '1');
});

inBothHosts('a store locked by another process says by which', async (home) => {
  const child = new Child('lock', home.directory, home.host);
  await child.line(1);
  const { pid } = child.process;
  await assert.rejects(
    home.open(),
    coded('TIDEMARK_LOCKED', { own: false, pid, hostName: hostname() }),
  );
  await assert.rejects(home.open({ readOnly: true }), coded('TIDEMARK_LOCKED', { pid }));
  child.process.stdin?.end();
  await child.succeeded();
  const engine = await home.open();
  await (await engine.collection('words', {})).put('a', '1');
});

// ---------------------------------------------------------------- files

inBothHosts('without its LOCK a store opens', async (home) => {
  await makeStore(home);
  rmSync(join(home.directory, 'LOCK'), { force: true });
  const engine = await home.open();
  await checkStore(engine);
});

inBothHosts('without its manifest a store is damaged, not empty', async (home) => {
  await makeStore(home);
  const isDamaged = coded('TIDEMARK_CORRUPT', { finding: 'NO_MANIFEST' });
  await refusesToOpen(home, isDamaged, hide(join(home.directory, 'manifest', 'HEAD')));
  await refusesToOpen(home, isDamaged, hide(join(home.directory, 'manifest')));
});

function newestOf(home: Home, ending: string): string {
  const manifest = join(home.directory, 'manifest');
  const names = readdirSync(manifest).filter((name) => name.endsWith(ending));
  const newest = names.toSorted().at(-1);
  assert.ok(newest !== undefined, `a file ${ending}`);
  return join(manifest, newest);
}

inBothHosts('without the newest edits of its manifest a store is damaged', async (home) => {
  await makeStore(home);
  await refusesToOpen(home, coded('TIDEMARK_CORRUPT'), hide(newestOf(home, '.edits')));
});

inBothHosts('the newest rollup of the manifest is made again from the one before', async (home) => {
  await makeStore(home);
  rmSync(newestOf(home, '.rollup'));
  await (await home.open({ readOnly: true })).close();
  const engine = await home.open();
  await checkStore(engine);
  await engine.close();
  // Both are more than can be mended.
  const mends = [hide(newestOf(home, '.rollup')), hide(newestOf(home, '.rollup'))];
  await refusesToOpen(home, coded('TIDEMARK_CORRUPT'), () => mends.forEach((mend) => mend()));
});

inBothHosts('without a part a store is damaged', async (home) => {
  await makeStore(home);
  const parts = join(home.directory, 'parts');
  const [first] = readdirSync(parts).toSorted();
  assert.ok(first !== undefined);
  const isDamaged = coded('TIDEMARK_CORRUPT', { finding: 'MISSING_PART' });
  await refusesToOpen(home, isDamaged, hide(join(parts, first)));
  await refusesToOpen(home, isDamaged, hide(parts));
  const path = join(parts, first);
  const whole = readFileSync(path);
  for (const bytes of [0, whole.length >>> 1]) {
    writeFileSync(path, whole.subarray(0, bytes));
    // The log may have been recovered by then, and a spare segment made: only the error is compared.
    const isCut = coded('TIDEMARK_CORRUPT', { finding: 'CUT_PART', file: `parts/${first}` });
    await assert.rejects(home.open(), isCut);
  }
  writeFileSync(path, whole);
  const engine = await home.open();
  await checkStore(engine);
});

inBothHosts(
  'without a segment in the middle a store is damaged, as without the first or all',
  async (home) => {
    await makeStore(home);
    const segments = segmentsOf(home);
    assert.ok(segments.length >= 3, `${segments.length} segments`);
    const isMissing = coded('TIDEMARK_CORRUPT', { finding: 'MISSING_SEGMENT' });
    await refusesToOpen(home, isMissing, hide(segments[1]));
    await refusesToOpen(home, isMissing, hide(segmentsOf(home)[0]));
    await refusesToOpen(home, coded('TIDEMARK_CORRUPT'), hide(join(home.directory, 'wal')));
  },
);

inBothHosts('an unknown format version is refused, however sound the bytes', async (home) => {
  await makeStore(home, MiB);
  const isUnsupported = coded('TIDEMARK_UNSUPPORTED_FORMAT');
  const frame = (bytes: Buffer, at: number, value: number): void => {
    // manifest.ts: length, checksum over everything else, kind, version.
    const end = 12 + bytes.readUInt32LE(0);
    bytes[at] = value;
    bytes.writeUInt32LE(crc32(bytes, 8, end - 8, crc32(bytes, 0, 4)), 4);
  };
  const head = join(home.directory, 'manifest', 'HEAD');
  await refusesToOpen(
    home,
    isUnsupported,
    patch(head, (bytes) => frame(bytes, 9, 2)),
  );
  await refusesToOpen(
    home,
    isUnsupported,
    patch(head, (bytes) => frame(bytes, 8, 99)),
  );
  const header =
    (offset: number, value: number) =>
    (bytes: Buffer): void => {
      for (const at of [0, SEGMENT_COPY_OFFSET]) {
        bytes.writeUInt16LE(value, at + offset);
        bytes.writeUInt32LE(crc32(bytes, at, SEGMENT_CRC_OFFSET), at + SEGMENT_CRC_OFFSET);
      }
    };
  for (const offset of [
    SEGMENT_FORMAT_OFFSET,
    SEGMENT_INCOMPAT_OFFSET,
    SEGMENT_PAYLOAD_FORMAT_OFFSET,
  ]) {
    const [segment] = segmentsOf(home);
    assert.ok(segment !== undefined, 'a segment');
    await refusesToOpen(home, isUnsupported, patch(segment, header(offset, 2)));
  }
});

inBothHosts('damage below the durable end of the log is an error', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', {});
  for (let n = 0; n < 20; n++) await rows.put(`${n}`, 'x'.repeat(200));
  const [segment] = segmentsOf(home);
  assert.ok(segment !== undefined, 'a segment');
  await engine.close();
  // Nothing was flushed, so all of it is read, and each record claims what was durable before it.
  const bytes = readFileSync(segment);
  const at = bytes.indexOf('x'.repeat(200));
  bytes[at] ^= 0x40;
  writeFileSync(segment, bytes);
  await assert.rejects(home.open(), coded('TIDEMARK_CORRUPT', { finding: 'CHECKSUM' }));
  bytes[at] ^= 0x40;
  writeFileSync(segment, bytes);
  const again = await home.open();
  assert.equal(Array.from((await again.collection('rows')).keys()).length, 20);
});

inBothHosts('damage to the manifest is an error', async (home) => {
  await makeStore(home);
  const flip =
    (at: number) =>
    (bytes: Buffer): void => {
      const index = at < 0 ? bytes.length + at : at;
      bytes[index] = bytes[index] ^ 0x40;
    };
  const isDamaged = coded('TIDEMARK_CORRUPT');
  await refusesToOpen(home, isDamaged, patch(join(home.directory, 'manifest', 'HEAD'), flip(20)));
  await refusesToOpen(home, isDamaged, patch(newestOf(home, '.edits'), flip(20)));
});

inBothHosts('bit rot in a part is an error where it is read, and nowhere else', async (home) => {
  await makeStore(home);
  {
    await using engine = await home.open();
    await engine.compact();
  }
  const parts = join(home.directory, 'parts');
  const largest = readdirSync(parts)
    .map((name) => ({ path: join(parts, name), bytes: statSync(join(parts, name)).size }))
    .toSorted((a, b) => b.bytes - a.bytes)[0];
  assert.ok(largest !== undefined);
  const mend = patch(largest.path, (bytes) => {
    bytes[100] = bytes[100] ^ 1;
  });
  const engine = await home.open();
  const rows = await engine.collection<'u64'>('rows');
  const isDamaged = (error: unknown): true => {
    coded('TIDEMARK_CORRUPT')(error);
    assert.equal(typeof (error as TidemarkError).detail['file'], 'number');
    return true;
  };
  for (let i = 0; i < 2; i++) {
    assert.throws(() => rows.getSync(0), isDamaged);
    await assert.rejects(rows.get(0), isDamaged);
    await assert.rejects(rows.getMany([ROWS - 1, 0]), isDamaged);
    assert.throws(() => [...rows.entries()], isDamaged);
    assert.equal(Number.parseInt(rows.getSync(ROWS - 1) ?? '', 10), ROWS - 1);
    assert.equal([...rows.keys({ gte: ROWS - 5, lt: ROWS })].length, 5);
    await rows.put(1_000 + i, 'goes on');
    await engine.flush();
    // A merge that meets damage fails and changes nothing.
    await engine.compact();
  }
  assert.equal(engine.state, 'open');
  assert.equal(engine.stats().holds.count, 0);
  await engine.close();
  mend();
  const again = await home.open();
  const found = await again.collection<'u64'>('rows');
  assert.equal([...found.keys()].length, ROWS + 2);
});

inBothHosts('a torn tail is set aside, or refused when asked to be strict', async (home) => {
  await makeStore(home, MiB);
  const torn = replace(segmentsOf(home)[0] ?? '', (before) => {
    // Where a record would follow: the beginning of one that was never finished.
    const end = before.findLastIndex((byte) => byte !== 0) + 1;
    const bytes = Buffer.alloc(Math.max(before.length, end + 64));
    before.copy(bytes);
    return bytes.fill(0x5a, (end + 7) & ~7, end + 48);
  });
  const copy = new Home(home.host);
  cpSync(home.directory, copy.directory, { recursive: true });
  try {
    await refusesToOpen(home, coded('TIDEMARK_CORRUPT'), torn, { strictTail: true });
    const engine = await copy.open();
    await checkStore(engine);
    assert.ok(readdirSync(join(copy.directory, 'quarantine')).length > 0, 'it is kept');
  } finally {
    await copy.end();
  }
});

// ---------------------------------------------------------------- options

test('options that cannot be are misuse before anything happens', async () => {
  const home = new Home('threads');
  try {
    const cases: [Record<string, unknown>, RegExp][] = [
      [{ durabilty: 'synced' }, /unknown option durabilty/],
      [{ durability: 'fast' }, /durability/],
      [{ durability: 1 }, /durability/],
      [{ syncIntervalMs: 0 }, /syncIntervalMs/],
      [{ syncIntervalMs: 60_001 }, /syncIntervalMs/],
      [{ syncIntervalMs: '50' }, /syncIntervalMs/],
      [{ memtableBytes: 1 }, /memtableBytes/],
      [{ memtableBytes: 64 * MiB }, /memtableBytes/],
      [{ memtableBytes: 1e6 + 0.5 }, /memtableBytes/],
      [{ segmentBytes: 1_000 }, /segmentBytes/],
      [{ segmentBytes: 2 ** 40 }, /segmentBytes/],
      [{ memoryBytes: 1 * MiB }, /memoryBytes/],
      [{ memoryBytes: 5 * 1024 * MiB }, /memoryBytes/],
      [{ memoryBytes: NaN }, /memoryBytes/],
      [{ mergeThreads: 0 }, /mergeThreads/],
      [{ threads: -1 }, /threads/],
      [{ threads: 65 }, /threads/],
      [{ threads: null }, /threads/],
      [{ history: -1 }, /history/],
      [{ history: 'all' }, /history/],
      [{ readOnly: 1 }, /readOnly/],
      [{ createIfMissing: 'yes' }, /createIfMissing/],
      [{ errorIfExists: null }, /errorIfExists/],
      [{ strictTail: 0 }, /strictTail/],
      [{ breakLock: 'x' }, /breakLock/],
      [{ workerUrl: 7 }, /workerUrl/],
      [{ signal: {} }, /signal/],
      [{ signal: 'now' }, /signal/],
      [{ storage: {} }, /storage/],
    ];
    const directory = join(home.directory, 'none');
    for (const [options, message] of cases) {
      await assert.rejects(
        open(directory, { memoryBytes: 64 * MiB, ...options }),
        misuse(message),
        JSON.stringify(options),
      );
    }
    for (const options of [null, 7, 'options']) {
      await assert.rejects(open(directory, options as unknown as OpenOptions), misuse(/object/));
    }
    for (const path of ['', 7, undefined, null, {}]) {
      await assert.rejects(open(path as string), misuse(/directory/));
    }
    assert.deepEqual(readdirSync(home.directory), []);
  } finally {
    await home.end();
  }
});

inBothHosts('read, write and other calls refuse what they do not know', async (home) => {
  const engine = await home.open();
  const words = await engine.collection('words', {});
  await words.put('a', '1');
  const { upper } = engine;
  const bad = (options: Record<string, unknown>): never => options as never;
  const isUnknown = misuse(/unknown .*option/);
  assert.throws(() => words.getSync('a', bad({ asof: 1 })), isUnknown);
  assert.throws(() => words.hasSync('a', bad({ at: 1 })), isUnknown);
  assert.throws(() => words.getEntrySync('a', bad({ at: 1 })), isUnknown);
  assert.throws(() => words.getManySync(['a'], bad({ at: 1 })), isUnknown);
  await assert.rejects(words.get('a', bad({ at: 1 })), isUnknown);
  await assert.rejects(words.getMany(['a'], bad({ at: 1 })), isUnknown);
  await assert.rejects(words.put('a', '2', bad({ sync: true })), isUnknown);
  await assert.rejects(words.delete('a', bad({ sync: true })), isUnknown);
  await assert.rejects(
    engine
      .transaction()
      .put(words, 'a', '2')
      .commit(bad({ expected: [] })),
    isUnknown,
  );
  assert.throws(() => engine.snapshot(bad({ asof: 1 })), isUnknown);
  await assert.rejects(engine.durable(0, bad({ timeout: 1 })), isUnknown);
  await assert.rejects(engine.reached(0, bad({ timeout: 1 })), isUnknown);

  await assert.rejects(words.put(7 as never, 'x'), misuse(/string/));
  await assert.rejects(words.put('a', Buffer.alloc(1) as never), misuse(/string/));
  await assert.rejects(words.put('a', undefined as never), misuse(/string/));
  await assert.rejects(words.put('a', '2', { durability: 'maybe' as never }), misuse(/durability/));
  assert.throws(() => words.getSync(undefined as never), misuse(/string/));
  await assert.rejects(words.get(null as never), misuse(/string/));
  assert.throws(() => words.getManySync('abc' as never), TypeError);
  await assert.rejects(words.getMany(undefined as never), TypeError);
  assert.throws(() => words.getSync('a', { snapshot: {} as never }), TypeError);
  assert.throws(() => engine.transaction().put({} as never, 'a', 'b'), TypeError);
  assert.throws(() => engine.transaction().put('words' as never, 'a', 'b'), TypeError);
  assert.equal(engine.upper, upper);
  assert.equal(words.getSync('a'), '1');
});

// ---------------------------------------------------------------- sizes

inBothHosts('oversized keys, values and commits are refused, and nothing else is', async (home) => {
  const engine = await home.open();
  const rows = await engine.collection('rows', { key: 'buffer', value: 'buffer' });
  const { upper } = engine;
  const longKey = Buffer.alloc(keyBytesMax + 1);
  const isKey = coded('TIDEMARK_TOO_LARGE', {
    what: 'key',
    limit: keyBytesMax,
    bytes: keyBytesMax + 1,
  });
  const key = Buffer.from('k');
  const small = Buffer.from('v');
  await assert.rejects(rows.put(longKey, small), isKey);
  await assert.rejects(rows.delete(longKey), isKey);
  const tx = engine.transaction();
  assert.throws(() => tx.put(rows, longKey, small), isKey);
  assert.throws(() => tx.delete(rows, longKey), isKey);
  assert.throws(() => rows.getSync(longKey), isKey);
  await assert.rejects(rows.get(longKey), isKey);
  assert.throws(() => rows.entries({ gte: longKey }), isKey);

  const longValue = Buffer.alloc(valueBytesMax + 1);
  const isValue = coded('TIDEMARK_TOO_LARGE', { what: 'value', limit: valueBytesMax });
  await assert.rejects(rows.put(key, longValue), isValue);
  assert.throws(() => tx.put(rows, key, longValue), isValue);
  assert.equal(tx.size, 0);

  // The write budget of 64 MiB is 16 MiB; a commit may have a quarter of it.
  const limit = 4 * MiB;
  const large = Buffer.alloc(limit);
  const isCommit = coded('TIDEMARK_TOO_LARGE', { what: 'commit', limit });
  const [before, after] = [
    rows.put(Buffer.from('before'), small),
    rows.put(Buffer.from('b'), small),
  ];
  await assert.rejects(rows.put(key, large), isCommit);
  await assert.rejects(engine.transaction().put(rows, key, large).commit(), isCommit);
  const many = engine.transaction();
  for (let i = 0; i < 50; i++) many.put(rows, Buffer.from(`${i}`), large.subarray(0, 100_000));
  await assert.rejects(many.commit(), isCommit);
  await Promise.all([before, after, rows.put(key, small)]);
  assert.equal(engine.upper, upper + 3);
  assert.equal([...rows.keys()].length, 3);
  // The largest that is taken.
  await rows.put(key, large.subarray(0, limit - 64));
  assert.equal(rows.getSync(key)?.length, limit - 64);
});

// ---------------------------------------------------------------- read only

inBothHosts('a read-only engine shows the state at open and takes no change', async (home) => {
  await makeStore(home);
  const before = filesOf(home.directory);
  {
    await using engine = await home.open({ readOnly: true });
    const rows = await engine.collection<'u64'>('rows');
    assert.equal([...rows.keys()].length, ROWS);
    assert.equal(Number.parseInt(rows.getSync(7) ?? '', 10), 7);
    assert.equal(Number.parseInt((await rows.get(7)) ?? '', 10), 7);
    using snap = engine.snapshot();
    assert.equal([...rows.keys({ snapshot: snap, limit: 3 })].length, 3);
    const isReadOnly = coded('TIDEMARK_READ_ONLY');
    await assert.rejects(rows.put(0, 'x'), isReadOnly);
    await assert.rejects(rows.delete(0), isReadOnly);
    await assert.rejects(engine.transaction().put(rows, 0, 'x').commit(), isReadOnly);
    await assert.rejects(rows.setHistory(1), isReadOnly);
    await assert.rejects(engine.drop('rows'), isReadOnly);
    await assert.rejects(engine.flush(), isReadOnly);
    await assert.rejects(engine.compact(), isReadOnly);
    await assert.rejects(engine.collection('more', {}), coded('TIDEMARK_NOT_FOUND'));
    // It holds the lock like any other.
    await assert.rejects(home.open(), coded('TIDEMARK_LOCKED', { own: true }));
  }
  assertSameFiles(home, before);
  await checkStore(await home.open());
});
