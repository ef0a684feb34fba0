/**
 * The tools over a log that is compressed: they say what they said before, find the same damage, and the
 * command that compresses changes nothing that a reader could see, however often it is run.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { open } from '../../actors/index.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import { compressStore } from '../../core/store/compress.ts';
import type { CompressReport } from '../../core/store/compress.ts';
import { dumpLog } from '../../core/store/dump.ts';
import type { Dumped } from '../../core/store/dump.ts';
import { inspectStore } from '../../core/store/inspect.ts';
import type { StoreReport } from '../../core/store/inspect.ts';
import { OPTIONS, contentsOf, copyOf, fill, makeStore, runToEnd, verify } from './kit.ts';

let plain = '';
let packed = '';
let report: CompressReport;

const newProgress = () => ({ what: '', doneBytes: 0, totalBytes: 0 });

function compress(directory: string): CompressReport {
  return runToEnd(compressStore(new NodeStorage(directory), 'test', newProgress()));
}

function inspect(directory: string): StoreReport {
  const storage = new NodeStorage(directory);
  return runToEnd(
    inspectStore(storage, { nameOf: () => undefined, cursorOf: () => undefined }, newProgress()),
  );
}

function dump(directory: string, more: { tolerate?: boolean; from?: number } = {}): Dumped[] {
  const items: Dumped[] = [];
  const options = {
    from: more.from,
    to: Number.MAX_SAFE_INTEGER,
    tolerate: more.tolerate ?? false,
    transactions: true,
  };
  const emit = (item: Dumped): void => void items.push(item);
  runToEnd(dumpLog(new NodeStorage(directory), options, emit, newProgress()));
  return items;
}

before(async () => {
  plain = await makeStore(true);
  packed = copyOf(plain);
  report = compress(packed);
});

test('what is sealed and below the older checkpoint is compressed, the rest stays; once', () => {
  assert.ok(report.compressed.length >= 2, `${report.compressed.length} compressed`);
  assert.deepEqual(report.findings, []);
  assert.equal(report.already, 0);
  const older = inspect(packed).manifest!.checkpoints.older.upper;
  for (const segment of inspect(packed).segments) {
    if (segment.place !== 'chain') continue;
    const isOld = segment.ending !== 'clean' && (segment.end ?? Infinity) <= older;
    assert.equal(segment.codec !== undefined, isOld, `segment ${segment.seq}`);
    assert.equal(segment.file.endsWith('.segz'), isOld);
  }
  const bytes = contentsOf(packed);
  const again = compress(packed);
  assert.deepEqual(again.compressed, []);
  assert.equal(again.already, report.compressed.length);
  assert.deepEqual(contentsOf(packed), bytes);
});

test('inspect, verify and dump say of it what they said before', () => {
  assert.deepEqual(verify(packed).findings, []);
  assert.equal(verify(packed).next, verify(plain).next);
  assert.equal(verify(packed).records, verify(plain).records);
  assert.deepEqual(dump(packed), dump(plain));
  assert.deepEqual(dump(packed, { from: 30 }), dump(plain, { from: 30 }));
  const told = (directory: string): unknown =>
    inspect(directory).segments.map((segment) => ({
      ...segment,
      file: '',
      bytes: 0,
      codec: undefined,
    }));
  assert.deepEqual(told(packed), told(plain));
});

test('damage in it is found, and dump --tolerate goes on behind it', () => {
  const { file } = report.compressed[0];
  const size = readFileSync(join(packed, file)).length;
  const total = dump(packed).length;
  for (const at of [0, 1_000, size >> 1, size - 200, size - 1]) {
    const copy = copyOf(packed);
    const bytes = readFileSync(join(copy, file));
    bytes[at] ^= 16;
    writeFileSync(join(copy, file), bytes);
    const { findings } = verify(copy);
    assert.equal(findings.length > 0, true, `byte ${at}`);
    for (const finding of findings) assert.equal(finding.severity, 'damage');
    const isHeader = at < 192 || at >= size - 192;
    assert.ok(
      findings.some(({ finding }) => finding === (isHeader ? 'HEADER_COPY' : 'CHECKSUM')),
      JSON.stringify(findings),
    );
    const items = dump(copy, { tolerate: true });
    const damage = items.filter(({ type }) => type === 'damage');
    assert.equal(damage.length, isHeader ? 0 : 1);
    assert.ok(items.length - damage.length > (isHeader ? total - 1 : 0), 'what follows is there');
  }
});

test('an engine goes on over it, reads all of it again, and writes on', async () => {
  const copy = copyOf(packed);
  const engine = await open(copy, OPTIONS);
  const { offset } = await (await engine.collection('words', { value: 'utf8' })).put('new', 'row');
  assert.equal(offset, verify(plain).next);
  await fill(engine, 5, 3);
  await engine.close();
  assert.deepEqual(verify(copy).findings, []);
  const names = readdirSync(join(copy, 'wal'));
  assert.ok(
    names.some((name) => name.endsWith('.segz')),
    'they are kept',
  );
});

test('beside a running engine it takes what is sealed and leaves the engine be', async () => {
  const copy = copyOf(plain);
  const engine = await open(copy, OPTIONS);
  try {
    await fill(engine, 20, 4);
    const found = compress(copy);
    assert.deepEqual(found.findings, []);
    assert.ok(found.compressed.length >= 2, 'sealed ones');
    await fill(engine, 20, 5);
    await engine.checkpoint();
    const { findings } = await engine.verify({ full: true });
    assert.deepEqual(
      findings.filter(({ severity }) => severity !== 'note'),
      [],
    );
  } finally {
    await engine.close();
  }
  assert.deepEqual(verify(copy).findings, []);
  const all = dump(copy);
  assert.deepEqual(all.slice(0, dump(plain).length), dump(plain));
});

test('a segment that is damaged stays as it is, and is listed', () => {
  const copy = copyOf(plain);
  const file = report.compressed[1].file.replace('.segz', '.seg');
  const bytes = readFileSync(join(copy, file));
  bytes[5_000] ^= 1;
  writeFileSync(join(copy, file), bytes);
  const found = compress(copy);
  assert.equal(found.compressed.length, report.compressed.length - 1);
  assert.deepEqual(
    found.findings.map(({ finding, severity }) => ({ finding, severity })),
    [{ finding: 'CHECKSUM', severity: 'damage' }],
  );
  assert.ok(readFileSync(join(copy, file)).equals(bytes), 'not touched');
});
