/**
 * The manifest's files under crashes, damage and a failing disk. The promise: what was answered is
 * there, whatever is found is a prefix of what was proposed, and anything else is an error.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { TidemarkError } from '../../core/base/errors.ts';
import { editBytesPerRollup, editsPerRollup } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import {
  editsPath,
  HEAD_PATH,
  MANIFEST_DIR,
  rollupPath,
  TMP_DIR,
} from '../../core/storage/names.ts';
import { decodeHead, encodeHead, newManifest, NO_LOG_END } from '../../core/spine/manifest.ts';
import type { LogPosition, TimePoint } from '../../core/spine/manifest.ts';
import { loadManifest, ManifestStore } from '../../core/spine/manifest-store.ts';
import type { LoadedManifest } from '../../core/spine/manifest-store.ts';
import { crashes, FATE_LOST, SimCrash, SimDisk } from '../sim/disk.ts';
import type { SimFault } from '../sim/disk.ts';
import { History, LOG_ID, START } from './manifest-history.ts';

function newDisk(): SimDisk {
  const disk = new SimDisk({ answerAtOnce: true });
  disk.makeDir(MANIFEST_DIR);
  disk.makeDir(TMP_DIR);
  disk.syncDir('');
  return disk;
}

function newStore(disk: SimDisk): ManifestStore {
  return ManifestStore.create(disk, newManifest(LOG_ID, START));
}

/** Runs programs until the store is idle; the failure, if one ends it. */
function drive(disk: SimDisk, store: ManifestStore): unknown {
  for (let ticket = 1; ; ticket++) {
    const program = store.program();
    if (program === undefined) return undefined;
    disk.submit(ticket, program.fd, program.calls);
    const answer = disk.poll();
    assert.equal(answer?.ticket, ticket);
    const { failure } = store.onAnswer(answer);
    if (failure !== undefined) return failure;
  }
}

function load(disk: SimDisk): LoadedManifest {
  const loaded = loadManifest(disk);
  assert.ok(loaded !== undefined);
  return loaded;
}

function codeOf(act: () => void): string | undefined {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof TidemarkError, String(error));
    assert.equal(typeof (error.detail['finding'] ?? error.detail['file']), 'string');
    return error.code;
  }
  return undefined;
}

/** A store with batches of two edits, the last rollup in the middle of them. */
function written(edits: number, rollupAfter = -1): { disk: SimDisk; history: History } {
  const disk = newDisk();
  const history = new History(9);
  const store = newStore(disk);
  for (let i = 0; i < edits; i += 2) {
    store.propose(history.next());
    store.propose(history.next());
    if (i === rollupAfter) store.requestRollup();
    assert.equal(drive(disk, store), undefined);
  }
  store.close(disk);
  assert.deepEqual(disk.openFiles, []);
  return { disk, history };
}

test('an empty directory has no manifest, and a created one is found again', () => {
  const disk = newDisk();
  assert.equal(loadManifest(disk), undefined);
  const store = newStore(disk);
  assert.ok(store.idle);
  store.close(disk);
  const loaded = load(disk);
  assert.deepEqual(loaded.state, newManifest(LOG_ID, START));
  assert.deepEqual(loaded.findings, []);
  assert.equal(loaded.edit, 0);
  assert.deepEqual(disk.list(MANIFEST_DIR), ['0000000001.edits', '0000000001.rollup', 'HEAD']);
  assert.deepEqual(disk.list(TMP_DIR), []);
});

test('a creation that crashed anywhere is no store, or a whole one; and can be done again', () => {
  for (let mutation = 0; ; mutation++) {
    const disk = newDisk();
    const first = disk.mutations;
    disk.fault = (call): SimFault | undefined =>
      call.mutation === first + mutation ? { kind: 'crash' } : undefined;
    try {
      newStore(disk);
      assert.ok(mutation > 10);
      break;
    } catch (error) {
      assert.ok(error instanceof SimCrash);
    }
    const choice = { subsetsMax: 6, samples: 10, regularMax: 10 };
    for (const left of crashes(disk, new Prng(mutation), choice)) {
      const loaded = loadManifest(left);
      if (loaded === undefined) newStore(left).close(left);
      assert.deepEqual(load(left).state, newManifest(LOG_ID, START));
    }
  }
});

test('one batch is in flight, later edits join the next; only answered ones are in the state', () => {
  const disk = newDisk();
  const store = newStore(disk);
  const history = new History(1);
  assert.equal(store.propose(history.next()), 1);
  const program = store.program();
  assert.ok(program !== undefined);
  assert.equal(store.program(), undefined);
  assert.equal(store.propose(history.next()), 2);
  assert.equal(store.propose(history.next()), 3);
  assert.equal(store.program(), undefined);
  assert.equal(store.answered, 0);
  assert.deepEqual(store.state, history.states[0]);
  assert.deepEqual(store.proposed, history.states[3]);
  disk.submit(1, program.fd, program.calls);
  assert.deepEqual(store.onAnswer(disk.poll()!), {
    failure: undefined,
    answered: 1,
    rolledUp: false,
  });
  assert.deepEqual(store.state, history.states[1]);
  const before = disk.calls;
  assert.equal(drive(disk, store), undefined);
  assert.equal(disk.calls - before, 2, 'one write and one sync for both');
  assert.equal(store.answered, 3);
  assert.ok(store.idle);
  assert.deepEqual(load(disk).state, history.states[3]);
});

test('an edit that does not fit is refused and leaves no trace', () => {
  const disk = newDisk();
  const store = newStore(disk);
  assert.throws(() => store.propose({ spinesRemoved: [4] }), TidemarkError);
  assert.ok(store.idle);
  assert.equal(store.program(), undefined);
});

describe('rollups', () => {
  test('are written after so many edits, and two are kept with the edits since the older', () => {
    const disk = newDisk();
    const store = newStore(disk);
    const history = new History(3);
    for (let i = 0; i < editsPerRollup * 2 + 10; i++) {
      store.propose(history.next());
      if (i % 8 === 0) assert.equal(drive(disk, store), undefined);
    }
    assert.equal(drive(disk, store), undefined);
    const names = disk.list(MANIFEST_DIR);
    assert.equal(names.length, 5, names.join(' '));
    assert.deepEqual(store.strays(disk), []);
    const loaded = load(disk);
    assert.deepEqual(loaded.state, history.state);
    assert.ok(loaded.editCount < editsPerRollup);
    assert.ok(loaded.head.rollup >= 3);
    assert.equal(loaded.head.previous, loaded.head.rollup - 1);
  });

  test('are no more bytes than the edits that they save, however large those are', () => {
    const disk = newDisk();
    const store = newStore(disk);
    const points = (from: number, count: number): TimePoint[] =>
      Array.from({ length: count }, (_, i) => [from + i, 1e12 + from + i]);
    const count = 100_000;
    store.propose({ timesAdded: points(1, count) });
    store.requestRollup();
    assert.equal(drive(disk, store), undefined);
    const first = load(disk).head.rollup;
    const bytes = disk.stat(rollupPath(first))!.bytes;
    assert.ok(bytes > 2 * editBytesPerRollup, `${bytes} bytes`);
    let edited = 0;
    for (let i = 0; i < 8; i++) {
      const from = 1 + count + (i * count) / 2;
      const edit = { timesAdded: points(from, count / 2) };
      store.propose(edit);
      assert.equal(drive(disk, store), undefined);
      edited += JSON.stringify(edit).length;
    }
    const rollups = load(disk).head.rollup - first;
    assert.ok(rollups >= 1, 'the edits are many times what the first rollup held');
    assert.ok(rollups <= 3, `${rollups} rollups for ${edited} bytes of edits`);
  });

  test('hold what was proposed before they were asked for, and move the checkpoints', () => {
    const disk = newDisk();
    const store = newStore(disk);
    const history = new History(3);
    for (let i = 0; i < 6; i++) store.propose(history.next());
    store.requestRollup();
    assert.equal(store.idle, false);
    assert.equal(drive(disk, store), undefined);
    assert.equal(load(disk).editCount, 0);
    assert.deepEqual(load(disk).state, history.state);
    assert.deepEqual(store.checkpoints, { newer: history.state.flushed, older: START });
    const older = history.state.flushed;
    for (let i = 0; i < 6; i++) store.propose(history.next());
    store.requestRollup();
    assert.equal(drive(disk, store), undefined);
    assert.deepEqual(store.checkpoints, { newer: history.state.flushed, older });
    store.close(disk);
    const { head } = load(disk);
    assert.deepEqual([head.flushed, head.previousFlushed], [history.state.flushed, older]);
  });

  test('of a truncation: the upper goes back, and what both cover with it', () => {
    const disk = newDisk();
    const store = newStore(disk);
    const flushed = (upper: number): LogPosition => ({ ...START, upper });
    for (const upper of [10, 20]) {
      store.propose({ flushed: flushed(upper) });
      store.requestRollup();
      assert.equal(drive(disk, store), undefined);
    }
    assert.equal(store.checkpoints.older.upper, 10);
    store.propose({ logEnd: 5, flushed: flushed(5) });
    store.requestRollup();
    assert.equal(drive(disk, store), undefined);
    assert.deepEqual(store.checkpoints, { newer: flushed(5), older: flushed(5) });
    store.close(disk);
    assert.equal(load(disk).state.logEnd, 5);
    // Its rollup is damaged: the predecessor, which knows the higher upper, and the edits say the same.
    disk.plant(rollupPath(4), new Uint8Array(100));
    const loaded = load(disk);
    assert.equal(loaded.state.logEnd, 5);
    assert.equal(loaded.state.flushed.upper, 5);
    const resumed = ManifestStore.resume(disk, loaded);
    resumed.propose({ logEnd: NO_LOG_END });
    assert.equal(drive(disk, resumed), undefined);
    resumed.close(disk);
    assert.equal(load(disk).state.logEnd, undefined);
  });

  test('one that reads back otherwise than written is a failure, and does not take over', () => {
    const disk = newDisk();
    const store = newStore(disk);
    const history = new History(3);
    store.propose(history.next());
    store.requestRollup();
    disk.fault = (call): SimFault | undefined =>
      call.call === 'write' && call.path.includes('rollup') ? { kind: 'skip' } : undefined;
    assert.ok(drive(disk, store) !== undefined);
    assert.equal(store.program(), undefined);
    assert.deepEqual(load(disk.processCrash()).state, history.state);
  });
});

describe('a torn tail', () => {
  const { disk, history } = written(14, 4);
  const { head } = load(disk);
  const path = editsPath(head.rollup);
  const bytes = disk.bytesOf(path)!;
  const count = history.edits.length;
  /** Where the last batch, of two edits, begins. */
  const lastBatch = ((): number => {
    const twin = disk.processCrash();
    for (let length = bytes.length - 1; ; length--) {
      twin.plant(path, bytes.subarray(0, length));
      if (load(twin).edit === count - 2) return load(twin).editsBytes;
    }
  })();

  test('cut at any length: the answered edits are there, the torn one is not, and opening mends it', () => {
    for (let length = lastBatch; length < bytes.length; length++) {
      const twin = disk.processCrash();
      twin.plant(path, bytes.subarray(0, length));
      const loaded = load(twin);
      assert.ok(loaded.edit >= count - 2 && loaded.edit < count);
      assert.deepEqual(loaded.state, history.states[loaded.edit]);
      assert.equal(loaded.tornBytes > 0, loaded.findings.length > 0);
      if (length % 50 !== 0) continue;
      const store = ManifestStore.resume(twin, loaded);
      store.close(twin);
      const again = load(twin);
      assert.deepEqual(again.state, history.states[loaded.edit]);
      assert.deepEqual(again.findings, []);
    }
  });

  test('overwritten by anything: never a state that was not, never a lost answer', () => {
    const prng = new Prng(4);
    for (let i = 0; i < 400; i++) {
      const twin = disk.processCrash();
      const torn = bytes.slice();
      const from = prng.between(lastBatch, bytes.length - 1);
      const to = prng.between(from + 1, bytes.length);
      if (prng.chance(0.5)) torn.fill(0, from, to);
      else prng.fill(torn.subarray(from, to));
      twin.plant(path, torn);
      const loaded = load(twin);
      assert.ok(loaded.edit >= count - 2);
      assert.deepEqual(loaded.state, history.states[loaded.edit]);
    }
  });

  test('damage before it is an error, for a later edit knew what stood there', () => {
    let found = 0;
    for (let i = 0; i < lastBatch; i += i < 500 ? 1 : 4) {
      const twin = disk.processCrash();
      const damaged = bytes.slice();
      damaged[i] ^= 1 << (i & 7);
      twin.plant(path, damaged);
      assert.equal(
        codeOf(() => loadManifest(twin)),
        'TIDEMARK_CORRUPT',
        `byte ${i}`,
      );
      found += 1;
    }
    assert.ok(found > 500);
  });
});

describe('damage to a file', () => {
  const { disk, history } = written(14, 4);
  const { head } = load(disk);

  function withChange(path: string, change: (bytes: Uint8Array) => Uint8Array): SimDisk {
    const twin = disk.processCrash();
    twin.plant(path, change(disk.bytesOf(path)!));
    return twin;
  }

  test('any byte of the newest rollup: its predecessor and the edits say the same, and it is mended', () => {
    const path = rollupPath(head.rollup);
    const whole = disk.bytesOf(path)!;
    for (let i = 0; i < whole.length; i += i < 500 ? 1 : 11) {
      const twin = withChange(path, (bytes) => bytes.with(i, bytes[i] ^ 0x10));
      const loaded = load(twin);
      assert.deepEqual(loaded.state, history.state);
      assert.equal(loaded.findings[0].finding, 'ROLLUP_DAMAGED');
      assert.deepEqual(loaded.repair, whole);
      if (i % 99 !== 0) continue;
      const store = ManifestStore.resume(twin, loaded);
      store.close(twin);
      const again = load(twin);
      assert.deepEqual(again.findings, []);
      assert.deepEqual(again.state, history.state);
      assert.deepEqual(twin.bytesOf(path), whole);
    }
  });

  test('the newest rollup is gone', () => {
    const twin = disk.processCrash();
    twin.remove(rollupPath(head.rollup));
    assert.deepEqual(load(twin).state, history.state);
  });

  test('both rollups are damaged, or the edits between them', () => {
    const twin = withChange(rollupPath(head.rollup), (bytes) => bytes.with(20, 0));
    const half = disk.bytesOf(rollupPath(head.previous))!;
    twin.plant(rollupPath(head.previous), half.subarray(0, 100));
    assert.equal(
      codeOf(() => loadManifest(twin)),
      'TIDEMARK_CORRUPT',
    );

    const other = withChange(rollupPath(head.rollup), (bytes) => bytes.with(20, 0));
    const edits = other.bytesOf(editsPath(head.previous))!;
    for (const bytes of [edits.with(edits.length - 5, 1), edits.subarray(0, edits.length - 1)]) {
      other.plant(editsPath(head.previous), bytes);
      assert.equal(
        codeOf(() => loadManifest(other)),
        'TIDEMARK_CORRUPT',
      );
    }
    other.remove(editsPath(head.previous));
    assert.equal(
      codeOf(() => loadManifest(other)),
      'TIDEMARK_CORRUPT',
    );
  });

  test('the older rollup is damaged: nothing is lost', () => {
    const twin = withChange(rollupPath(head.previous), () => new Uint8Array(5));
    assert.deepEqual(load(twin).state, history.state);
  });

  test('any byte of HEAD, or no edits file', () => {
    const { length } = disk.bytesOf(HEAD_PATH)!;
    for (let i = 0; i < length; i++) {
      const twin = withChange(HEAD_PATH, (bytes) => bytes.with(i, bytes[i] ^ 0x04));
      assert.equal(
        codeOf(() => loadManifest(twin)),
        'TIDEMARK_CORRUPT',
        `byte ${i}`,
      );
    }
    const twin = disk.processCrash();
    twin.remove(editsPath(head.rollup));
    assert.equal(
      codeOf(() => loadManifest(twin)),
      'TIDEMARK_CORRUPT',
    );
  });

  test('the files of another store, or of another rollup, are not taken for ours', () => {
    const other = newDisk();
    ManifestStore.create(other, newManifest(LOG_ID.toReversed(), START)).close(other);
    const swapped = withChange(editsPath(head.rollup), () => other.bytesOf(editsPath(1))!);
    assert.equal(
      codeOf(() => loadManifest(swapped)),
      'TIDEMARK_CORRUPT',
    );
    const older = disk.bytesOf(editsPath(head.previous))!;
    const stale = withChange(editsPath(head.rollup), () => older);
    assert.equal(
      codeOf(() => loadManifest(stale)),
      'TIDEMARK_CORRUPT',
    );
    const wrong = withChange(rollupPath(head.rollup), () => other.bytesOf(rollupPath(1))!);
    assert.deepEqual(load(wrong).state, history.state);
  });

  test('a feature that allows reading only', () => {
    const twin = withChange(HEAD_PATH, (bytes) => {
      const decoded = decodeHead(bytes, HEAD_PATH);
      return encodeHead({
        ...decoded,
        identity: { ...decoded.identity, features: { incompat: 0, roCompat: 1, compat: 0 } },
      });
    });
    const loaded = load(twin);
    assert.equal(loaded.readOnly, true);
    const before = twin.mutations;
    const act = (): unknown => ManifestStore.resume(twin, loaded);
    assert.equal(codeOf(act), 'TIDEMARK_UNSUPPORTED_FORMAT');
    assert.equal(twin.mutations, before);
  });

  test('loading changes nothing and leaks no descriptor, whatever it finds', () => {
    const twin = withChange(rollupPath(head.rollup), (bytes) => bytes.with(20, 0));
    const before = twin.mutations;
    load(twin);
    twin.plant(HEAD_PATH, new Uint8Array(3));
    assert.throws(() => loadManifest(twin));
    assert.equal(twin.mutations, before);
    assert.deepEqual(twin.openFiles, []);
  });
});

describe('a failing disk', () => {
  const faults: [string, SimFault][] = [
    ['a failed write', { kind: 'throw', code: 'EIO' }],
    ['a short write', { kind: 'short', bytes: 10 }],
    ['a failed sync', { kind: 'failedSync', manner: 'ext4' }],
  ];
  for (const [name, fault] of faults) {
    test(`${name} ends the store; reopened, what was answered is there`, () => {
      const disk = newDisk();
      const store = newStore(disk);
      const history = new History(2);
      for (let i = 0; i < 3; i++) store.propose(history.next());
      assert.equal(drive(disk, store), undefined);
      store.propose(history.next());
      const call = fault.kind === 'failedSync' ? 'fdatasync' : 'write';
      disk.fault = (made) => (made.call === call ? fault : undefined);
      assert.ok(drive(disk, store) !== undefined);
      disk.fault = undefined;
      assert.equal(store.answered, 3);
      assert.equal(store.program(), undefined);
      assert.throws(() => store.propose({}));
      store.close(disk);

      // The cache may still show the edit whose sync failed. Opened for writing it is written again.
      const loaded = load(disk);
      assert.ok(loaded.edit >= 3);
      ManifestStore.resume(disk, loaded).close(disk);
      disk.dropCache();
      const left = disk.powerLoss(() => FATE_LOST);
      assert.deepEqual(load(left).state, history.states[loaded.edit]);
    });
  }
});

test('a crash at any call leaves every answered edit, and a prefix of all; and goes on from there', () => {
  const choice = { subsetsMax: 4, samples: 4, regularMax: 2 };
  let states = 0;
  for (let mutation = 0; ; mutation++) {
    const disk = newDisk();
    const store = newStore(disk);
    const history = new History(7);
    const first = disk.mutations;
    disk.fault = (call): SimFault | undefined =>
      call.mutation === first + mutation ? { kind: 'crash' } : undefined;
    let answered = 0;
    let isDone = false;
    for (let i = 0; i < 8 && !isDone; i++) {
      store.propose(history.next());
      if (i % 3 === 2) store.propose(history.next());
      if (i === 2 || i === 3 || i === 6) store.requestRollup();
      isDone = drive(disk, store) instanceof SimCrash;
      ({ answered } = store);
    }
    if (!isDone) break;
    for (const left of crashes(disk, new Prng(mutation), choice)) {
      states += 1;
      const loaded = load(left);
      assert.ok(loaded.edit >= answered, `${loaded.edit} of ${answered} answered`);
      assert.deepEqual(loaded.state, history.states[loaded.edit]);
      const resumed = ManifestStore.resume(left, loaded);
      for (const path of resumed.strays(left)) left.unlink(path);
      resumed.propose({ counters: { bid: 9_000, run: 9_000, file: 9_000 } });
      assert.equal(drive(left, resumed), undefined);
      resumed.close(left);
      assert.deepEqual(left.openFiles, []);
      const again = load(left);
      assert.equal(again.edit, loaded.edit + 1);
      assert.equal(again.state.counters.bid, 9_000);
      assert.deepEqual(again.findings, []);
      assert.ok(left.list(MANIFEST_DIR).length <= 5);
      // Nothing that was answered rested on what an earlier incarnation had left in the cache.
      const later = left.powerLoss(() => FATE_LOST);
      assert.deepEqual(load(later).state, again.state);
      if (again.head.previous === 0) continue;
      later.remove(rollupPath(again.head.rollup));
      assert.deepEqual(load(later).state, again.state);
    }
  }
  assert.ok(states > 500, `${states} states`);
});

test('a crash at any call of opening leaves what was there', () => {
  const { disk, history } = written(14, 4);
  const torn = disk.processCrash();
  const { head } = load(disk);
  const path = editsPath(head.rollup);
  torn.plant(path, Buffer.concat([disk.bytesOf(path)!, new Uint8Array([1, 2, 3])]));
  torn.plant(rollupPath(head.rollup), new Uint8Array(10));
  const choice = { subsetsMax: 5, samples: 6, regularMax: 3 };
  for (let mutation = 0; ; mutation++) {
    const twin = torn.processCrash();
    const first = twin.mutations;
    const loaded = load(twin);
    twin.fault = (call): SimFault | undefined =>
      call.mutation === first + mutation ? { kind: 'crash' } : undefined;
    try {
      ManifestStore.resume(twin, loaded);
      assert.ok(mutation > 15);
      break;
    } catch (error) {
      assert.ok(error instanceof SimCrash);
    }
    for (const left of crashes(twin, new Prng(mutation), choice)) {
      const found = load(left);
      assert.deepEqual(found.state, history.state);
      ManifestStore.resume(left, found).close(left);
      assert.deepEqual(load(left).state, history.state);
      assert.deepEqual(load(left).findings, []);
    }
  }
});
