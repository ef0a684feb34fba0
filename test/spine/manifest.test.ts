/**
 * The manifest through its files: round trips, damage to every byte, torn tails, crashes at every call,
 * fallback from a damaged rollup.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { getU32, setU32 } from '../../core/base/bytes.ts';
import { crc32 } from '../../core/base/crc32.ts';
import { TidemarkError } from '../../core/base/errors.ts';
import {
  applyEdit,
  checkManifest,
  copyManifest,
  decodeEdit,
  decodeEditsBegin,
  decodeHead,
  decodeRollup,
  encodeEdit,
  encodeEditsBegin,
  encodeHead,
  encodeRollup,
  frameLength,
  IdReserve,
  newManifest,
  NO_LOG_END,
  notedTime,
  saltOf,
  timesCountMax,
} from '../../core/spine/manifest.ts';
import type { Edit, Head, ManifestState, TimePoint } from '../../core/spine/manifest.ts';
import { archivedOf, History, infoOf, LOG_ID, printFrames, START } from './manifest-history.ts';

function errorOf(act: () => void): TidemarkError | undefined {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof TidemarkError, String(error));
    return error;
  }
  return undefined;
}

function historyOf(seed: number, edits: number): History {
  const history = new History(seed);
  for (let i = 0; i < edits; i++) history.next();
  return history;
}

function headOf(state: ManifestState): Head {
  const { identity, flushed } = state;
  return { identity, rollup: 7, previous: 6, flushed, previousFlushed: START };
}

/** The edit that begins a truncation to `upper`, which is at most the flushed one. */
function cutAt(state: ManifestState, upper: number): Edit {
  const beyond = state.times.filter(([offset]) => offset > upper);
  const archived = state.archived.filter(({ end }) => end > upper);
  return {
    logEnd: upper,
    flushed: { ...state.flushed, upper },
    timesRemoved: beyond.map(([offset]) => offset),
    droppedRemoved: state.dropped.map(({ collection }) => collection),
    archivedRemoved: archived.map(({ seq }) => seq),
  };
}

function editsFile(history: History, rollup: number): Uint8Array {
  const { identity } = history.state;
  const salt = saltOf(LOG_ID, rollup);
  const frames = history.edits.map((edit, i) =>
    encodeEdit({ number: i + 1, answered: Math.max(0, i - 1), edit }, salt),
  );
  return new Uint8Array(
    Buffer.concat([encodeEditsBegin({ identity, rollup, edit: 0 }), ...frames]),
  );
}

/** A frame made from the table in manifest.ts, by other code. */
function frame(kind: number, version: number, salt: number, json: unknown, zero = 0): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify(json));
  const bytes = new Uint8Array(12 + text.length);
  setU32(bytes, 0, text.length);
  bytes[8] = kind;
  bytes[9] = version;
  bytes[10] = zero;
  bytes.set(text, 12);
  const covered = Buffer.concat([bytes.subarray(0, 4), bytes.subarray(8)]);
  setU32(bytes, 4, crc32(covered, 0, covered.length, salt));
  return bytes;
}

function payloads(bytes: Uint8Array): unknown[] {
  const found: unknown[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = getU32(bytes, at);
    const text = new TextDecoder().decode(bytes.subarray(at + 12, at + 12 + length));
    found.push(JSON.parse(text));
    at += 12 + length;
  }
  return found;
}

function golden(name: string): Uint8Array {
  return readFileSync(new URL(`../golden/manifest/${name}`, import.meta.url));
}

function rollupCode(damaged: Uint8Array): string | undefined {
  return errorOf(() => decodeRollup(damaged, 'rollup'))?.code;
}

function expectRefused(name: string, act: () => void): void {
  const error = errorOf(act);
  assert.equal(error?.code, 'TIDEMARK_CORRUPT', name);
  assert.equal(typeof error.detail['finding'], 'string', name);
}

/** The frames of rollup 7, from their payloads. */
function rollupFrames(jsons: readonly unknown[]): Uint8Array[] {
  const salt = saltOf(LOG_ID, 7);
  return jsons.map((json, i) => {
    const kind = i === 0 ? 2 : i === jsons.length - 1 ? 4 : 3;
    return frame(kind, 1, kind === 2 ? 0 : salt, json);
  });
}

test('format 1 is the golden bytes, and the golden bytes are understood', () => {
  const history = historyOf(5, 24);
  const truncating = copyManifest(history.state);
  applyEdit(truncating, cutAt(truncating, truncating.flushed.upper));
  const files: [string, Uint8Array][] = [
    ['v1.head', encodeHead(headOf(history.state))],
    ['v1.rollup', encodeRollup(history.state, 7, 24)],
    ['v1.edits', editsFile(history, 7)],
    ['v1-truncating.rollup', encodeRollup(truncating, 8, 25)],
  ];
  assert.ok(history.state.archived.length > 0, 'there is an archived segment in it');
  for (const [name, bytes] of files) {
    const path = new URL(`../golden/manifest/${name}`, import.meta.url);
    const textPath = new URL(`../golden/manifest/${name}.txt`, import.meta.url);
    if (process.env['GOLDEN'] === 'rewrite' && !existsSync(path)) writeFileSync(path, bytes);
    if (process.env['GOLDEN'] === 'rewrite') writeFileSync(textPath, printFrames(bytes));
    assert.deepEqual(new Uint8Array(readFileSync(path)), new Uint8Array(bytes), name);
    assert.equal(readFileSync(textPath, 'utf8'), printFrames(bytes));
  }
  assert.deepEqual(decodeHead(golden('v1.head'), 'HEAD'), headOf(history.state));
  assert.deepEqual(decodeRollup(golden('v1.rollup'), 'rollup').state, history.state);
});

test('a state comes back from its rollup, and gives the same bytes again', () => {
  for (let seed = 1; seed <= 20; seed++) {
    const { state } = historyOf(seed, seed * 3);
    const bytes = encodeRollup(state, seed, 99);
    const back = decodeRollup(bytes, 'rollup');
    assert.deepEqual(back, { state, rollup: seed, edit: 99 });
    assert.deepEqual(encodeRollup(back.state, seed, 99), bytes);
  }
});

test('edits come back, and lead to the same state whoever applies them', () => {
  for (let seed = 1; seed <= 20; seed++) {
    const history = historyOf(seed, 40);
    const bytes = editsFile(history, 3);
    const salt = saltOf(LOG_ID, 3);
    const { begin, end } = decodeEditsBegin(bytes, 'edits');
    assert.deepEqual(begin, { identity: history.state.identity, rollup: 3, edit: 0 });
    const state = newManifest(LOG_ID, START);
    let at = end;
    for (const [i, edit] of history.edits.entries()) {
      const length = frameLength(bytes, at, salt);
      const numbered = decodeEdit(bytes, at, 'edits');
      assert.deepEqual(numbered, { number: i + 1, answered: Math.max(0, i - 1), edit });
      applyEdit(state, numbered.edit);
      assert.deepEqual(state, history.states[i + 1]);
      at += length;
    }
    assert.equal(at, bytes.length);
    checkManifest(state);
  }
});

describe('what a newer version wrote is refused as such', () => {
  const { state } = historyOf(5, 24);
  const cases: [string, object][] = [
    ['another major', { formatMajor: 2 }],
    ['another major with fields of its own', { formatMajor: 2, shards: [] }],
    ['an unknown feature', { incompat: 4 }],
  ];
  for (const [name, change] of cases) {
    test(name, () => {
      const [head] = payloads(encodeHead(headOf(state)));
      const [begin] = payloads(encodeRollup(state, 7, 24));
      const [edits] = payloads(encodeEditsBegin({ identity: state.identity, rollup: 7, edit: 0 }));
      const acts = [
        () => decodeHead(frame(1, 1, 0, Object.assign({}, head, change)), 'HEAD'),
        () => decodeRollup(frame(2, 1, 0, Object.assign({}, begin, change)), 'rollup'),
        () => decodeEditsBegin(frame(5, 1, 0, Object.assign({}, edits, change)), 'edits'),
      ];
      for (const act of acts) assert.equal(errorOf(act)?.code, 'TIDEMARK_UNSUPPORTED_FORMAT');
    });
  }

  test('an unknown kind of record, or version of one', () => {
    const [edit] = payloads(encodeEdit({ number: 1, answered: 0, edit: {} }, 0));
    const codeOf = (kind: number, version: number): string | undefined =>
      errorOf(() => decodeEdit(frame(kind, version, 0, edit), 0, 'edits'))?.code;
    assert.equal(codeOf(6, 1), undefined);
    assert.equal(codeOf(6, 2), 'TIDEMARK_UNSUPPORTED_FORMAT');
    assert.equal(codeOf(7, 1), 'TIDEMARK_UNSUPPORTED_FORMAT');
    assert.equal(codeOf(0, 1), 'TIDEMARK_UNSUPPORTED_FORMAT');
    assert.equal(codeOf(4, 1), 'TIDEMARK_CORRUPT');
  });

  test('an unknown feature that allows reading is kept', () => {
    const [head] = payloads(encodeHead(headOf(state)));
    const bytes = frame(1, 1, 0, Object.assign({}, head, { roCompat: 2, compat: 8 }));
    const { identity } = decodeHead(bytes, 'HEAD');
    assert.deepEqual(identity.features, { incompat: 0, roCompat: 2, compat: 8 });
  });
});

describe('damage is found', () => {
  const history = historyOf(5, 10);

  test('every bit of HEAD', () => {
    const bytes = encodeHead(headOf(history.state));
    for (let i = 0; i < bytes.length * 8; i++) {
      const damaged = bytes.slice();
      damaged[i >>> 3] ^= 1 << (i & 7);
      assert.equal(
        errorOf(() => decodeHead(damaged, 'HEAD'))?.code,
        'TIDEMARK_CORRUPT',
        `bit ${i}`,
      );
    }
    for (let length = 0; length < bytes.length; length++) {
      const act = (): unknown => decodeHead(bytes.subarray(0, length), 'HEAD');
      assert.equal(errorOf(act)?.code, 'TIDEMARK_CORRUPT');
    }
    const longer = Buffer.concat([bytes, new Uint8Array(1)]);
    assert.equal(errorOf(() => decodeHead(longer, 'HEAD'))?.code, 'TIDEMARK_CORRUPT');
  });

  test('every byte of a rollup, every length, every frame left out or twice', () => {
    const bytes = encodeRollup(history.state, 7, 10);
    for (let i = 0; i < bytes.length; i++) {
      const damaged = bytes.slice();
      damaged[i] ^= 1 << (i & 7);
      assert.equal(rollupCode(damaged), 'TIDEMARK_CORRUPT', `byte ${i}`);
    }
    for (let length = 0; length < bytes.length; length += 7) {
      assert.equal(rollupCode(bytes.subarray(0, length)), 'TIDEMARK_CORRUPT', `length ${length}`);
    }
    const salt = saltOf(LOG_ID, 7);
    for (let at = 0; at < bytes.length;) {
      const length = frameLength(bytes, at, at === 0 ? 0 : salt);
      const before = bytes.subarray(0, at);
      const after = bytes.subarray(at + length);
      const twice = bytes.subarray(at, at + length);
      assert.equal(rollupCode(Buffer.concat([before, after])), 'TIDEMARK_CORRUPT');
      assert.equal(rollupCode(Buffer.concat([before, twice, twice, after])), 'TIDEMARK_CORRUPT');
      at += length;
    }
  });

  test('frames of another file, or of another store', () => {
    const edit = encodeEdit({ number: 1, answered: 0, edit: {} }, saltOf(LOG_ID, 7));
    assert.equal(frameLength(edit, 0, saltOf(LOG_ID, 7)), edit.length);
    assert.equal(frameLength(edit, 0, saltOf(LOG_ID, 8)), 0);
    assert.equal(frameLength(edit, 0, saltOf(LOG_ID.toReversed(), 7)), 0);
  });
});

describe('a checksum that holds over senseless figures is damage too', () => {
  const history = historyOf(5, 10);
  const salt = saltOf(LOG_ID, 7);
  const senseless: readonly unknown[] = [null, -1, 0.5, 'x', true, {}, [[]], 2 ** 53, undefined];

  /** Every value in `json` replaced by each senseless one; `undefined` takes it away. */
  function* variants(json: unknown): Generator<[string, unknown]> {
    if (typeof json !== 'object' || json === null) return;
    const entries: [string, unknown][] = Object.entries(json);
    for (const [key, value] of entries) {
      const others = Array.isArray(json) ? senseless.slice(0, -1) : senseless;
      for (const other of others) {
        if (JSON.stringify(other) === JSON.stringify(value)) continue;
        const copy: unknown[] | object = Array.isArray(json) ? [...json] : { ...json };
        Reflect.set(copy, key, other);
        yield [`${key} = ${JSON.stringify(other)}`, copy];
      }
      for (const [name, inner] of variants(value)) {
        const copy: unknown[] | object = Array.isArray(json) ? [...json] : { ...json };
        Reflect.set(copy, key, inner);
        yield [`${key}.${name}`, copy];
      }
    }
    if (!Array.isArray(json)) yield ['extra', { ...json, extra: 1 }];
  }

  /** The first so many variants, then a few of the rest: parts look alike. */
  function some(json: unknown): [string, unknown][] {
    const all = [...variants(json)];
    return all.filter((_, i) => i < 1_500 || i % 23 === 0);
  }

  test('in HEAD', () => {
    const [head] = payloads(encodeHead(headOf(history.state)));
    for (const [name, json] of variants(head)) {
      // A diff or format that only another version could have written is refused as such.
      if (name.startsWith('formatMajor') || name.startsWith('incompat')) continue;
      expectRefused(name, () => decodeHead(frame(1, 1, 0, json), 'HEAD'));
    }
    expectRefused('zero', () => decodeHead(frame(1, 1, 0, head, 1), 'HEAD'));
  });

  test('in a rollup', () => {
    const all = payloads(encodeRollup(history.state, 7, 24));
    const frames = rollupFrames(all);
    assert.deepEqual(decodeRollup(Buffer.concat(frames), 'rollup').state, history.state);
    for (const index of [0, 1, all.length - 1]) {
      for (const [name, json] of some(all[index])) {
        if (name.startsWith('formatMajor') || name.startsWith('incompat')) continue;
        // Only the part itself could say otherwise.
        if (name.endsWith('diffSum = -1')) continue;
        const changed = rollupFrames(all.with(index, json))[index];
        const bytes = Buffer.concat(frames.with(index, changed));
        expectRefused(name, () => decodeRollup(bytes, 'rollup'));
      }
    }
  });

  test('in an edit', () => {
    for (const [i, edit] of history.edits.entries()) {
      if (i % 3 !== 0) continue;
      const numbered = { number: i + 1, answered: i, edit };
      const [payload] = payloads(encodeEdit(numbered, salt));
      for (const [name, json] of some(payload).filter((_, j) => j % 5 === 0)) {
        const bytes = frame(6, 1, salt, json);
        const error = errorOf(() => {
          const decoded = decodeEdit(bytes, 0, 'edits');
          // A field that may be left out was; or a number that only the number before can judge.
          if (name.startsWith('number') || /(= undefined|diffSum = -1)$/.test(name)) return;
          applyEdit(copyManifest(history.states[i]), decoded.edit);
          assert.fail(`${name} was accepted`);
        });
        if (error !== undefined) assert.equal(error.code, 'TIDEMARK_CORRUPT', name);
      }
    }
  });
});

describe('an edit that does not fit is refused, and the state stays', () => {
  const history = historyOf(5, 24);
  const { state } = history;
  const { counters, flushed, logStart, times } = state;
  const withPart = (change: Partial<ReturnType<typeof infoOf>>, bid = 400, run = 400): Edit => {
    const part = { ...infoOf(400, flushed.upper - 1, flushed.upper, 1), ...change };
    const hollow = {
      bid,
      desc: { lower: flushed.upper - 1, upper: flushed.upper + 1, since: 0 },
      runs: [{ runId: run, parts: [part], len: 1 }],
      len: 1,
    };
    const delta = {
      since: 0,
      hollowsRemoved: [],
      hollowsAdded: [{ id: [0, 1] as const, hollow }],
      batchesRemoved: [],
      batchesAdded: [],
      merges: [],
    };
    return { spines: [{ collection: 77, delta }] };
  };
  const cases: [string, Edit, string][] = [
    ['a counter set back', { counters: { ...counters, bid: 1 } }, 'COUNTER_REGRESSED'],
    ['a flushed upper set back', { flushed: { ...flushed, upper: 1 } }, 'UPPER_REGRESSED'],
    ['a log start set back', { logStart: { ...logStart, seq: 0 } }, 'LOG_START_REGRESSED'],
    [
      'a log that starts above what is flushed',
      { logStart: { seq: 9, offset: flushed.upper + 1, atMs: 0 } },
      'NO_BASE',
    ],
    ['a batch beyond what is flushed', withPart({}), 'SPINE_AHEAD'],
    ['a batch id not reserved', withPart({}, 50_000), 'ID_UNRESERVED'],
    ['a run id not reserved', withPart({}, 400, 50_000), 'ID_UNRESERVED'],
    ['a file not reserved', withPart({ file: 50_000 }), 'ID_UNRESERVED'],
    ['a spine removed that is not there', { spinesRemoved: [77] }, 'EDIT_UNKNOWN_SPINE'],
    ['a time removed that is not there', { timesRemoved: [1] }, 'EDIT_UNKNOWN_TIME'],
    ['a time out of order', { timesAdded: [[times[0][0], 0]] }, 'TIMES_ORDER'],
    ['a drop removed that is not there', { droppedRemoved: [77] }, 'EDIT_UNKNOWN_DROP'],
    [
      'a drop twice',
      {
        droppedAdded: [
          { collection: 9, offset: 1 },
          { collection: 9, offset: 2 },
        ],
      },
      'DROPPED_TWICE',
    ],
    [
      'an archived segment removed that is not there',
      { archivedRemoved: [77] },
      'EDIT_UNKNOWN_ARCHIVED',
    ],
    ['an archived segment twice', { archivedAdded: [state.archived[0]] }, 'ARCHIVED_ORDER'],
    [
      'an archived segment that overlaps another',
      {
        archivedAdded: [
          archivedOf(90, state.flushed.upper, state.flushed.upper + 2, flushed.atMs),
          archivedOf(91, state.flushed.upper + 1, state.flushed.upper + 3, flushed.atMs),
        ],
      },
      'ARCHIVED_ORDER',
    ],
    ['a truncation ended that never began', { logEnd: NO_LOG_END }, 'EDIT_NO_LOG_END'],
  ];
  for (const [name, edit, finding] of cases) {
    test(name, () => {
      const copy = copyManifest(state);
      const error = errorOf(() => applyEdit(copy, edit));
      assert.equal(error?.code, 'TIDEMARK_CORRUPT');
      assert.equal(error.detail['finding'], finding);
      assert.deepEqual(copy, state);
    });
  }

  test('ids shared by two collections', () => {
    const copy = copyManifest(state);
    copy.spines.set(50, state.spines.get(0)!);
    const error = errorOf(() => checkManifest(copy));
    assert.equal(error?.detail['finding'], 'ID_REUSED');
  });
});

describe('a truncation', () => {
  const { state } = historyOf(5, 24);
  // Its spines reach to the flushed upper: what cuts them back is not tried here.
  const bare = (): ManifestState => ({ ...copyManifest(state), spines: new Map() });
  const upper = state.flushed.upper - 1;

  test('sets the upper back to where the log is to end, and nowhere else', () => {
    const copy = bare();
    applyEdit(copy, cutAt(copy, upper));
    assert.equal(copy.logEnd, upper);
    assert.equal(copy.flushed.upper, upper);
    const back = decodeRollup(encodeRollup(copy, 3, 4), 'rollup').state;
    assert.deepEqual(back, copy);
    const again = { ...cutAt(bare(), upper), flushed: { ...state.flushed, upper: upper - 1 } };
    const error = errorOf(() => applyEdit(bare(), again));
    assert.equal(error?.detail['finding'], 'UPPER_REGRESSED');
  });

  test('is over when an edit says so, once', () => {
    const copy = bare();
    applyEdit(copy, cutAt(copy, upper));
    const edit = encodeEdit({ number: 1, answered: 0, edit: { logEnd: NO_LOG_END } }, 0);
    applyEdit(copy, decodeEdit(edit, 0, 'edits').edit);
    assert.equal(copy.logEnd, undefined);
    assert.ok(!Buffer.from(encodeRollup(copy, 3, 4)).includes('logEnd'), 'the field is gone');
    const error = errorOf(() => applyEdit(copy, { logEnd: NO_LOG_END }));
    assert.equal(error?.detail['finding'], 'EDIT_NO_LOG_END');
  });

  const beyond: [string, (cut: Edit) => Edit][] = [
    ['the flushed upper', (cut) => ({ ...cut, flushed: state.flushed })],
    ['a time', (cut) => ({ ...cut, timesRemoved: [] })],
    [
      'an archived segment',
      (cut) => ({ ...cut, archivedAdded: [archivedOf(90, 0, upper + 1, 0)] }),
    ],
    ['a drop', (cut) => ({ ...cut, droppedAdded: [{ collection: 9, offset: upper }] })],
    ['the log start', (cut) => ({ ...cut, logEnd: 0, flushed: { ...state.flushed, upper: 0 } })],
  ];
  for (const [name, change] of beyond) {
    test(`leaves nothing named beyond it: ${name}`, () => {
      const copy = bare();
      copy.logStart = { seq: 1, offset: 1, atMs: 0 };
      copy.archived = [];
      const before = copyManifest(copy);
      const error = errorOf(() => applyEdit(copy, change(cutAt(copy, upper))));
      const expected = name === 'the log start' ? 'NO_BASE' : 'LOG_END';
      assert.equal(error?.detail['finding'], expected);
      assert.deepEqual(copy, before);
      if (expected === 'NO_BASE') return;
      // Nor does a rollup that was made otherwise pass.
      const loose = { ...copy, ...looseAfter(copy, change(cutAt(copy, upper))), logEnd: upper };
      expectRefused(name, () => decodeRollup(encodeRollup(loose, 3, 4), 'rollup'));
    });
  }

  /** What the edit would lead to, were nothing checked. */
  function looseAfter(from: ManifestState, edit: Edit): Partial<ManifestState> {
    return {
      flushed: edit.flushed ?? from.flushed,
      times: from.times.filter(([offset]) => edit.timesRemoved?.includes(offset) !== true),
      dropped: [...(edit.droppedAdded ?? [])],
      archived: [...(edit.archivedAdded ?? [])],
    };
  }
});

test('the list of times stays bounded, keeps its ends and its order', () => {
  let times: readonly TimePoint[] = [];
  const state = newManifest(LOG_ID, START);
  for (let i = 1; i <= 5_000; i++) {
    const edit = notedTime(times, i * 10, 1_000 + i);
    applyEdit(state, edit);
    ({ times } = state);
    assert.ok(times.length <= timesCountMax);
  }
  assert.deepEqual(times[0], [10, 1_001]);
  assert.deepEqual(times[times.length - 1], [50_000, 6_000]);
  assert.deepEqual(notedTime(times, 50_000, 7_000), {});
  // The newer half is as dense as ever.
  const dense = times.slice(-timesCountMax / 4);
  assert.ok(dense.every(([offset], i) => i === 0 || offset - dense[i - 1][0] === 10));
});

test('ids are given out only below an answered bound, and never twice', () => {
  const reserve = new IdReserve(5);
  assert.equal(reserve.available, 0);
  assert.throws(() => reserve.take());
  const bound = reserve.wanted();
  assert.ok(bound !== undefined);
  reserve.granted(bound);
  assert.equal(reserve.wanted(), undefined);
  assert.equal(reserve.take(), 5);
  assert.equal(reserve.take(), 6);
  // What was not used after all comes again.
  reserve.giveBack(1);
  assert.equal(reserve.take(), 6);
  assert.throws(() => reserve.giveBack(3));
  // After a crash the bound counts, not what was used.
  assert.equal(new IdReserve(bound).wanted(1), bound + 1_024);
});
