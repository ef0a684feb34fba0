/**
 * Goal (K3): range deletes hide exactly what is older, at every time that may be read, whatever is merged
 * in whatever order; they go at the bottom only, and nothing they hid comes back. Method: random histories
 * flushed and merged by the real jobs over a disk in memory, compared with an array of all that was
 * written; bounds and times of few values, so that edges meet.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareBytes } from '../../core/base/bytes.ts';
import { pageBytes } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import { rangeHolds, rangeSetBytes } from '../../core/base/range-set.ts';
import type { RangeDelete } from '../../core/base/range-set.ts';
import { KIND_KEYED, KIND_MULTISET, OP_DELETE } from '../../core/base/update.ts';
import { FlushJob } from '../../core/spine/flush-job.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import type { MergeRequest, MergeResult } from '../../core/spine/merge-job.ts';
import { isRangePart, partRef } from '../../core/spine/part-format.ts';
import type { PartInfo } from '../../core/spine/part-format.ts';
import { readAllRanges, readFooters } from '../../core/spine/part-reader.ts';
import { rangeBlockBytes, rangeBlockFault, writeRangeBlock } from '../../core/spine/range-block.ts';
import { OwnRunParts, RunCursor } from '../../core/spine/run-cursor.ts';
import { partPath } from '../../core/storage/names.ts';
import type { SimDisk } from '../sim/disk.ts';
import { ArrayCursor, bytes, del, forwards, put, simDisk, sorted, update } from './rows.ts';
import type { Row } from './rows.ts';

const SHAPE = { blockBytes: 200, partBytes: 500, partRows: 20 };
const KEYS = ['', 'a', 'ab', 'b', 'ba', 'c', 'd', 'e', 'f'].map(bytes);

function range(lo: string, hi: string, time: number): RangeDelete {
  return { lo: bytes(lo), hi: bytes(hi), time };
}

/** Contents at T: of each key the newest row, unless a range delete has come since. */
function contentsAt(rows: readonly Row[], ranges: readonly RangeDelete[], T: number): string[] {
  const found: string[] = [];
  for (const key of KEYS) {
    const versions = rows.filter((row) => row.time <= T && compareBytes(row.key, key) === 0);
    const newest = versions.toSorted((a, b) => b.time - a.time)[0];
    if (newest === undefined || newest.kind === OP_DELETE) continue;
    const isHidden = ranges.some((r) => {
      return r.time <= T && r.time > newest.time && rangeHolds(r, key);
    });
    if (!isHidden) found.push(`${key.join('.')}=${newest.value.join('.')}@${newest.time}`);
  }
  return found;
}

type Run = { parts: PartInfo[]; lower: number; upper: number };

/** A collection as a spine would have it, without one: runs oldest first. */
class Store {
  readonly disk: SimDisk = simDisk();
  runs: Run[] = [];
  since = 0;
  readonly #kind: number;
  #nextFile = 1;
  #nextJob = 1;

  constructor(kind: number = KIND_KEYED) {
    this.#kind = kind;
  }

  #ids(): { first: number; count: number } {
    const first = this.#nextFile;
    this.#nextFile += 200;
    return { first, count: 200 };
  }

  flush(rows: readonly Row[], ranges: readonly RangeDelete[], lower: number, upper: number): void {
    const request = { jobId: this.#nextJob++, outFiles: this.#ids(), shape: SHAPE };
    const input = {
      collection: 1,
      kind: this.#kind,
      since: this.since,
      oldest: this.runs.length === 0,
      rows: new ArrayCursor(this.#kind === KIND_KEYED ? sorted(rows) : sortedUpdates(rows)),
      ranges,
    };
    const job = new FlushJob(this.disk, request, [input]);
    while (job.step(3));
    const [flushed] = job.result().collections;
    const parts = readFooters(this.disk, flushed.parts);
    if (this.#kind === KIND_KEYED) {
      assert.equal(flushed.len + flushed.dropped.len, rows.length + ranges.length);
    }
    if (parts.length > 0) this.runs.push({ parts, lower, upper });
  }

  merge(from: number, to: number, more: Partial<MergeRequest> = {}): MergeResult {
    const inputs = this.runs.slice(from, to);
    const newer = this.runs.slice(to).flatMap(({ parts }) => parts.filter(isRangePart));
    const request: MergeRequest = {
      jobId: this.#nextJob++,
      collection: 1,
      kind: this.#kind,
      inputs: inputs.map(({ parts }, i) => ({
        bid: i + 1,
        desc: { lower: i, upper: i + 1, since: 0 },
        runs: [{ runId: i + 1, parts: parts.map(partRef) }],
      })),
      hiding: newer.map(partRef),
      since: this.since,
      oldest: from === 0,
      outFiles: this.#ids(),
      shape: SHAPE,
      ...more,
    };
    const job = new MergeJob(this.disk, JSON.parse(JSON.stringify(request)) as MergeRequest);
    while (job.step(5));
    const result = job.result();
    const parts = readFooters(this.disk, result.runs[0]?.parts ?? []);
    const merged = { parts, lower: inputs[0].lower, upper: inputs.at(-1)!.upper };
    this.runs.splice(from, to - from, ...(parts.length > 0 ? [merged] : []));
    return result;
  }

  rows(run: Run): Row[] {
    const parts = run.parts.filter((part) => !isRangePart(part));
    const cursor = new RunCursor(this.disk, new OwnRunParts(this.disk, parts));
    const rows = forwards(cursor);
    cursor.leave();
    return rows;
  }

  ranges(run: Run): RangeDelete[] {
    return readAllRanges(this.disk, run.parts.filter(isRangePart));
  }

  get all(): { rows: Row[]; ranges: RangeDelete[] } {
    return {
      rows: this.runs.flatMap((run) => this.rows(run)),
      ranges: this.runs.flatMap((run) => this.ranges(run)),
    };
  }
}

test('merges in any order leave what an array of all that was written says (K3)', () => {
  let vanished = 0;
  for (let seed = 0; seed < 250; seed++) {
    const prng = new Prng(seed);
    const store = new Store();
    const rows: Row[] = [];
    const ranges: RangeDelete[] = [];
    let now = 0;
    for (let step = 0; step < 14; step++) {
      if (store.runs.length < 2 || prng.chance(0.5)) {
        const lower = now;
        const fresh: Row[] = [];
        const freshRanges: RangeDelete[] = [];
        for (let i = prng.between(1, 8); i > 0; i--, now++) {
          if (prng.chance(0.3)) {
            const twice = prng.chance(0.1) ? 2 : 1;
            const made = { lo: prng.pick(KEYS), hi: prng.pick(KEYS), time: now };
            for (let n = 0; n < twice; n++) freshRanges.push(made);
          }
          // A row of the range delete's own transaction stands behind it.
          if (prng.chance(0.2)) fresh.push(del(prng.pick(KEYS), now));
          else if (prng.chance(0.9)) fresh.push(put(prng.pick(KEYS), now, `v${now}`));
        }
        if (fresh.length + freshRanges.length === 0) continue;
        rows.push(...fresh);
        ranges.push(...freshRanges);
        store.flush(fresh, freshRanges, lower, now);
      } else {
        const from = prng.below(store.runs.length);
        store.merge(from, prng.between(from + 1, store.runs.length));
      }
      for (let T = store.since; T <= now; T++) {
        const { rows: left, ranges: rangesLeft } = store.all;
        assert.deepEqual(
          contentsAt(left, rangesLeft, T),
          contentsAt(rows, ranges, T),
          `seed ${seed}, step ${step}, at ${T}`,
        );
      }
      if (prng.chance(0.3)) store.since = prng.between(store.since, now);
    }
    store.since = now;
    if (store.runs.length > 0) store.merge(0, store.runs.length);
    const { rows: left, ranges: rangesLeft } = store.all;
    assert.deepEqual(rangesLeft, [], 'nothing older is left that a range delete hides');
    assert.deepEqual(contentsAt(left, [], now), contentsAt(rows, ranges, now));
    const isClean = left.every((row) => row.kind !== OP_DELETE);
    assert.ok(isClean && left.length <= KEYS.length, 'one row a key that is there');
    if (left.length < rows.length) vanished++;
  }
  assert.ok(vanished > 200, `rows went in ${vanished} histories`);
});

test('rows at x - 1 are hidden, at x and x + 1 not, in older, same and newer runs', () => {
  const store = new Store();
  store.flush([put('b', 3, 'older'), put('a', 4, 'x-1')], [], 0, 5);
  store.flush([put('ab', 5, 'same, x')], [range('a', 'b', 5)], 5, 6);
  store.flush([put('ab', 6, 'x+1'), put('a', 7, 'back')], [], 6, 8);
  const at = (T: number): string[] => {
    const { rows, ranges } = store.all;
    return contentsAt(rows, ranges, T).map((row) => row.slice(row.indexOf('@')));
  };
  for (const since of [0, 5, 7]) {
    store.since = since;
    if (since > 0) store.merge(0, 1, { oldest: true });
    if (since <= 4) assert.deepEqual(at(4), ['@4', '@3'], 'before it');
    if (since <= 5) assert.deepEqual(at(5), ['@5', '@3'], 'at it: below x hidden');
    assert.deepEqual(at(7), ['@7', '@6', '@3']);
  }
});

test('an older run merged alone loses what a newer range delete hides; that stays until the bottom', () => {
  const store = new Store();
  store.flush([put('a', 1, 'v'), put('c', 2, 'v')], [], 0, 3);
  store.flush([put('d', 3, 'v')], [], 3, 4);
  store.flush([], [range('a', 'c', 5)], 4, 6);
  store.since = 4;
  const before = store.merge(0, 1);
  assert.equal(before.dropped.len, 0, 'some may still read at 4');
  store.since = 5;
  const alone = store.merge(0, 1);
  assert.equal(alone.dropped.len, 1, 'the hidden row goes, the one at the upper bound stays');
  const upper = store.merge(1, 3);
  assert.equal(upper.dropped.len, 0, 'above an older run a range delete stays');
  assert.equal(store.all.ranges.length, 1);
  const bottom = store.merge(0, 2);
  assert.equal(bottom.dropped.len, 1, 'at the bottom it goes');
  assert.deepEqual(store.all.ranges, []);
  assert.equal(store.all.rows.length, 2);
});

test('a range delete that a newer one holds goes once both are final, elsewhere too', () => {
  const store = new Store();
  store.flush([put('a', 1, 'v')], [], 0, 2);
  store.flush([], [range('a', 'c', 3), range('b', '', 4)], 2, 5);
  store.flush([], [range('a', '', 6)], 5, 7);
  store.since = 5;
  assert.equal(store.merge(1, 2).dropped.len, 0, 'at 5 the newer one is not there');
  store.since = 6;
  assert.equal(store.merge(1, 2).dropped.len, 2);
  assert.deepEqual(store.all.ranges, [range('a', '', 6)]);
});

test('truncating drops range deletes at and above the cut, which then hide nothing', () => {
  const store = new Store();
  store.flush([put('a', 1, 'v')], [range('b', '', 2)], 0, 3);
  store.flush([put('d', 4, 'v')], [range('a', '', 5)], 3, 6);
  const result = store.merge(0, 2, { cut: 4 });
  assert.equal(result.dropped.len, 2);
  const { rows, ranges } = store.all;
  assert.deepEqual([rows.length, ranges], [1, [range('b', '', 2)]]);
});

test('a run of range deletes alone is a run; many are spread so that each piece fits a page', () => {
  const store = new Store();
  const long = 'k'.repeat(60_000);
  const ranges = Array.from({ length: 9 }, (_, i) => range(`${long}${i}`, `${long}${i + 1}`, i));
  store.flush([put('a', 0, 'v')], [], 0, 1);
  store.flush([], ranges, 1, 10);
  const { parts } = store.runs[1];
  assert.equal(parts.length, 5, 'two a page');
  for (const part of parts) {
    assert.ok(isRangePart(part), 'range deletes alone');
    const piece = readAllRanges(store.disk, [part]);
    assert.ok(rangeSetBytes(piece) <= pageBytes, 'its set fits a page');
    assert.equal(part.len, piece.length);
  }
  assert.deepEqual(store.ranges(store.runs[1]), ranges);
});

test('damage in a block of range deletes has a name, wherever it is', () => {
  const ranges = [range('a', 'b', 1), range('a', '', 2), range('b', 'c', 2 ** 40)];
  const block = new Uint8Array(rangeBlockBytes(ranges));
  assert.equal(writeRangeBlock(block, 0, ranges), block.length);
  assert.equal(rangeBlockFault(block, 0, block.length, 3), undefined);
  for (let at = 0; at < block.length; at++) {
    const damaged = Uint8Array.from(block);
    damaged[at] ^= 1;
    assert.match(rangeBlockFault(damaged, 0, damaged.length, 3) ?? '', /./, `byte ${at}`);
  }
  for (let length = 0; length < block.length; length++) {
    assert.match(rangeBlockFault(block, 0, length, 3) ?? '', /./, `cut at ${length}`);
  }
  assert.match(rangeBlockFault(block, 0, block.length, 2) ?? '', /count/);
  const unordered = new Uint8Array(rangeBlockBytes(ranges));
  writeRangeBlock(unordered, 0, [ranges[1], ranges[0], ranges[2]]);
  assert.match(rangeBlockFault(unordered, 0, unordered.length, 3) ?? '', /out of order/);

  const store = new Store();
  store.flush([put('c', 1, 'v')], ranges, 0, 5);
  const part = store.runs[0].parts[0];
  const path = partPath(part.file);
  const file = store.disk.bytesOf(path);
  assert.ok(file !== undefined, 'the file is there');
  const fd = store.disk.open(path, 'write');
  const at = part.offset + part.rangeDeletesOffset + 20;
  store.disk.write(fd, Uint8Array.of(file[at] ^ 4), 0, 1, at);
  store.disk.close(fd);
  assert.throws(() => store.merge(0, 1), { code: 'TIDEMARK_CORRUPT' });
});

function sortedUpdates(rows: readonly Row[]): Row[] {
  return rows.toSorted(
    (a, b) => compareBytes(a.key, b.key) || compareBytes(a.value, b.value) || a.time - b.time,
  );
}

/** Sums of diffs by key and value, of what no range delete at or below T hides. */
function sumsAt(rows: readonly Row[], ranges: readonly RangeDelete[], T: number): string[] {
  const sums = new Map<string, number>();
  for (const { key, value, time, diff } of rows) {
    const isHidden = ranges.some((r) => r.time <= T && r.time > time && rangeHolds(r, key));
    if (time > T || isHidden) continue;
    const name = `${key.join('.')}=${value.join('.')}`;
    sums.set(name, (sums.get(name) ?? 0) + diff);
  }
  return [...sums]
    .filter(([, sum]) => sum !== 0)
    .map(([name, sum]) => `${name}*${sum}`)
    .toSorted();
}

test('a multiset: no merge carries a hidden update past the range delete that hides it (K3)', () => {
  for (let seed = 0; seed < 120; seed++) {
    const prng = new Prng(seed);
    const store = new Store(KIND_MULTISET);
    const rows: Row[] = [];
    const ranges: RangeDelete[] = [];
    let now = 0;
    for (let step = 0; step < 12; step++) {
      if (store.runs.length < 2 || prng.chance(0.5)) {
        const lower = now;
        const fresh: Row[] = [];
        const freshRanges: RangeDelete[] = [];
        for (let i = prng.between(1, 8); i > 0; i--, now++) {
          if (prng.chance(0.25)) {
            freshRanges.push({ lo: prng.pick(KEYS), hi: prng.pick(KEYS), time: now });
          }
          const diff = prng.pick([1, 1, 2, -1]);
          if (prng.chance(0.9))
            fresh.push(update(prng.pick(KEYS), now, prng.pick(['x', 'y']), diff));
        }
        if (fresh.length + freshRanges.length === 0) continue;
        rows.push(...fresh);
        ranges.push(...freshRanges);
        store.flush(fresh, freshRanges, lower, now);
      } else {
        const from = prng.below(store.runs.length);
        store.merge(from, prng.between(from + 1, store.runs.length));
      }
      const { rows: left, ranges: rangesLeft } = store.all;
      for (let T = store.since; T <= now; T++) {
        const found = sumsAt(left, rangesLeft, T);
        assert.deepEqual(found, sumsAt(rows, ranges, T), `seed ${seed}, step ${step}, at ${T}`);
      }
      // Not above what was written: a range delete to come has a time that no row was raised to.
      if (prng.chance(0.3)) store.since = prng.between(store.since, Math.max(store.since, now - 1));
    }
  }
});
