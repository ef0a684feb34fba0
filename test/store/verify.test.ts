/**
 * Goal: whatever bit of a store is flipped, verify finds it or it carries nothing; files that go or come
 * are named; a torn tail is told from damage; a sound store has no findings. Seeded.
 */
import assert from 'node:assert/strict';
import {
  appendFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  readFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import {
  SEGMENT_BLOCK_BYTES,
  SEGMENT_COPY_OFFSET,
  SEGMENT_HEADER_BYTES,
} from '../../core/log/segment.ts';
import { loadManifest } from '../../core/spine/manifest-store.ts';
import { partPath } from '../../core/storage/names.ts';
import { inspectStore } from '../../core/store/inspect.ts';
import type { StoreReport } from '../../core/store/inspect.ts';
import { verdictOf } from '../../core/store/report.ts';
import { partsOf } from '../../core/store/verify.ts';
import { NodeStorage } from '../../actors/node-storage.ts';
import { contentsOf, copyOf, flip, makeStore, runToEnd, verify } from './kit.ts';

let closed = '';
let open = '';

before(async () => {
  closed = await makeStore(true);
  open = await makeStore(false);
});

function inspect(directory: string): StoreReport {
  const progress = { what: '', doneBytes: 0, totalBytes: 0 };
  const readers = { nameOf: () => undefined, cursorOf: () => undefined };
  return runToEnd(inspectStore(new NodeStorage(directory), readers, progress));
}

test('a sound store has no findings, closed in order or not, and is not changed', () => {
  for (const directory of [closed, open]) {
    const bytes = contentsOf(directory);
    for (const full of [false, true]) {
      const report = verify(directory, full);
      assert.deepEqual(report.findings, []);
      assert.equal(report.ok, true);
      assert.equal(report.next, inspect(directory).log.next);
    }
    assert.deepEqual(contentsOf(directory), bytes);
  }
  const { segments, log } = inspect(closed);
  const chain = segments.filter(({ place }) => place === 'chain');
  assert.ok(chain.length >= 3, `${chain.length} segments`);
  assert.equal(log.clean, true);
  assert.equal(inspect(open).log.clean, false);
});

test('a flipped bit is found wherever it carries something', () => {
  const directory = copyOf(closed);
  const { segments } = inspect(directory);
  const random = new Prng(7);
  /** File and ranges in it that carry something. */
  const places: [string, number, number][] = [];
  for (const { file, place, endPosition } of segments) {
    if (place !== 'chain') continue;
    places.push([file, 0, SEGMENT_HEADER_BYTES]);
    places.push([file, SEGMENT_COPY_OFFSET, SEGMENT_COPY_OFFSET + SEGMENT_HEADER_BYTES]);
    places.push([file, SEGMENT_BLOCK_BYTES, endPosition ?? SEGMENT_BLOCK_BYTES]);
  }
  for (const name of readdirSync(join(directory, 'manifest'))) {
    places.push([`manifest/${name}`, 0, statSync(join(directory, 'manifest', name)).size]);
  }
  // A file of parts may hold some that a merge has replaced: nobody reads those.
  for (const { file, offset, bytes } of partsOf(loadManifest(new NodeStorage(directory))!)) {
    places.push([partPath(file), offset, offset + bytes]);
  }
  for (const [file, from, to] of places) {
    for (let i = 0; i < 8; i++) {
      const position = from + random.below(to - from);
      const bit = random.below(8);
      flip(directory, file, position, bit);
      const { ok, findings } = verify(directory);
      assert.equal(ok, false, `bit ${bit} of byte ${position} of ${file}`);
      assert.ok(verdictOf(findings) > 0, `${file} at ${position}`);
      flip(directory, file, position, bit);
    }
  }
  assert.deepEqual(verify(directory).findings, []);
});

test('damage in a record names file, position and offset, and the records beyond it', () => {
  const directory = copyOf(closed);
  const [first] = inspect(directory).segments;
  flip(directory, first.file, 9_000);
  const { findings, next } = verify(directory);
  assert.equal(findings.length, 1, JSON.stringify(findings));
  const [found] = findings;
  assert.equal(found.finding, 'CHECKSUM');
  assert.equal(found.severity, 'damage');
  assert.equal(found.file, first.file);
  assert.ok(found.position !== undefined && found.position <= 9_000, `${found.position}`);
  assert.ok(found.offset !== undefined && found.offset < (first.end ?? 0), `${found.offset}`);
  // The other segments were read all the same.
  assert.equal(next, inspect(closed).log.next);
});

test('damage in two places is told twice', () => {
  const directory = copyOf(closed);
  const [first, second] = inspect(directory).segments;
  flip(directory, first.file, 9_000);
  flip(directory, second.file, 9_000);
  const part = readdirSync(join(directory, 'parts'))[0];
  flip(directory, `parts/${part}`, 100);
  const files = verify(directory).findings.map(({ file }) => file);
  for (const file of [first.file, second.file, `parts/${part}`])
    assert.ok(files.includes(file), file);
  // A block is looked at when all is wanted only.
  assert.ok(
    !verify(directory, false).findings.some(({ file }) => file === `parts/${part}`),
    'not full',
  );
});

test('missing files are named', () => {
  const { segments } = inspect(closed);
  const part = `parts/${readdirSync(join(closed, 'parts'))[0]}`;
  const middle = segments[1].file;
  for (const [file, finding] of [
    [part, 'MISSING_FILE'],
    [middle, 'MISSING_SEGMENT'],
    ['manifest/HEAD', 'NO_MANIFEST'],
  ]) {
    const directory = copyOf(closed);
    rmSync(join(directory, file));
    const { findings } = verify(directory);
    const found = findings.find((f) => f.finding === finding && f.file === file);
    assert.ok(found !== undefined, `${file}: ${JSON.stringify(findings)}`);
    assert.equal(found.severity, 'damage');
  }
});

test('another log’s segment is foreign', async () => {
  const directory = copyOf(closed);
  const { segments } = inspect(closed);
  const other = inspect(open).segments[1];
  writeFileSync(join(directory, segments[1].file), readFileSync(join(open, other.file)));
  const { findings } = verify(directory);
  assert.ok(
    findings.some(
      ({ finding, severity }) => finding === 'FOREIGN_SEGMENT' && severity === 'unreadable',
    ),
    JSON.stringify(findings),
  );
  assert.equal(verdictOf(findings), 3);
});

test('a torn tail is told from damage, and is only a note beside a live engine', () => {
  const directory = copyOf(open);
  const last = inspect(directory).segments.findLast(({ place }) => place === 'chain');
  assert.ok(last?.endPosition !== undefined, 'a last segment');
  const path = join(directory, last.file);
  const bytes = readFileSync(path);
  bytes.fill(0xab, last.endPosition, last.endPosition + 100);
  writeFileSync(path, bytes);
  const { findings } = verify(directory);
  assert.deepEqual(
    findings.map(({ finding, severity, file, position }) => ({
      finding,
      severity,
      file,
      position,
    })),
    [{ finding: 'TORN_TAIL', severity: 'torn', file: last.file, position: last.endPosition }],
  );
  assert.equal(verdictOf(findings), 1);
  const live = verify(directory, true, true);
  assert.equal(live.ok, true);
  assert.deepEqual(
    live.findings.map(({ finding }) => finding),
    ['NOT_YET'],
  );
});

test('a log that was cut below what was flushed is behind its manifest', () => {
  const directory = copyOf(closed);
  const { segments, manifest } = inspect(directory);
  assert.ok(manifest !== undefined, 'a manifest');
  const last = segments.findLast(({ place }) => place === 'chain');
  assert.ok(last !== undefined, 'a last segment');
  for (const { file, base } of segments) {
    if ((base ?? 0) > 0 && file !== segments[0].file) rmSync(join(directory, file));
  }
  truncateSync(join(directory, segments[0].file), SEGMENT_BLOCK_BYTES + 2_000);
  const { findings } = verify(directory);
  assert.equal(verdictOf(findings), 2, JSON.stringify(findings));
});

test('bytes behind the last edit are a torn write of the manifest', () => {
  const directory = copyOf(closed);
  const { manifest } = inspect(directory);
  const edits = `manifest/${`${manifest?.rollup}`.padStart(10, '0')}.edits`;
  appendFileSync(join(directory, edits), Buffer.alloc(40, 0xab));
  const { findings } = verify(directory);
  assert.deepEqual(
    findings.map(({ finding, file }) => [finding, file]),
    [['TORN_EDITS', edits]],
  );
  assert.equal(verdictOf(findings), 1);
});
