/**
 * What becomes of a store with one bit changed, fast enough for every bit. The piece of the engine that
 * reads the file is asked alone: the manifest's loading, the log's recovery. Where it refuses, so does the
 * opening; where it finds and does to the byte what it does with the sound store, so does all behind it,
 * for nobody else reads these files. Whatever else it finds is opened and read as a whole, as every bit of a
 * part is, and some of the others, which must come to the same verdict. Used by the tests and by main.ts.
 */
import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';
import { TidemarkError } from '../../core/base/errors.ts';
import { crc32 } from '../../core/base/crc32.ts';
import { LogRecovery } from '../../core/log/recovery.ts';
import type { LogFacts } from '../../core/log/recovery.ts';
import { loadManifest } from '../../core/spine/manifest-store.ts';
import type { LoadedManifest } from '../../core/spine/manifest-store.ts';
import { LOG_DIR, MANIFEST_DIR } from '../../core/storage/names.ts';
import type { SimDisk } from '../sim/disk.ts';
import { judge } from './damage.ts';
import type { Damage, Store, Verdict } from './damage.ts';
import { openAndCheck } from './enumerate.ts';

export class FlipJudge {
  readonly #store: Store;
  readonly #wholeEvery: number;
  readonly #manifest: LoadedManifest;
  readonly #log: string;
  #asked = 0;
  /** Stores that were opened as a whole. */
  wholes = 0;

  /** One in `wholeEvery` of those that a piece has judged is opened too. */
  constructor(store: Store, wholeEvery: number) {
    this.#store = store;
    this.#wholeEvery = wholeEvery;
    const [one, other, whole] = [1, 2, 3].map(() => recorded(store.disk)) as [
      SimDisk,
      SimDisk,
      SimDisk,
    ];
    const manifest = loadManifest(one);
    assert.ok(manifest !== undefined, 'the store has a manifest');
    this.#manifest = manifest;
    this.#log = this.#recover(other);
    // Nobody else reads what they read.
    openAndCheck(whole, store.owed, undefined).dispose();
    assert.deepEqual(readsIn(whole), [...readsIn(one), ...readsIn(other)]);
  }

  judge(damage: Damage): { verdict: Verdict; error: unknown } {
    const { disk, path = '' } = damage;
    const isManifest = path.startsWith(MANIFEST_DIR);
    if (!isManifest && !path.startsWith(LOG_DIR)) return this.#whole(damage);
    const spare = disk.clone();
    let alone: { verdict: Verdict; error: unknown } | undefined;
    try {
      const isSame = isManifest
        ? isDeepStrictEqual(loadManifest(disk), this.#manifest)
        : this.#recover(disk) === this.#log;
      if (isSame) alone = { verdict: 'harmless', error: undefined };
    } catch (error) {
      if (error instanceof TidemarkError) alone = { verdict: 'detected', error };
    }
    if (alone === undefined) return this.#whole({ ...damage, disk: spare });
    if (this.#asked++ % this.#wholeEvery === 0) {
      const { verdict } = this.#whole({ ...damage, disk: spare });
      assert.equal(verdict, alone.verdict, `${damage.what}: the whole engine judges otherwise`);
    }
    return alone;
  }

  #whole(damage: Damage): { verdict: Verdict; error: unknown } {
    this.wholes++;
    return judge(this.#store, damage);
  }

  /** All that the log's recovery finds and does, in words; throws what it throws. */
  #recover(disk: SimDisk): string {
    const { state } = this.#manifest;
    const { logStart, flushed } = state;
    const facts: LogFacts = {
      logId: state.identity.logId,
      firstSeq: logStart.seq,
      firstOffset: logStart.offset,
      start: flushed,
      witness: flushed.upper,
      logEnd: state.logEnd,
    };
    const { segmentBytes } = this.#store.owed.how;
    const fed: number[] = [];
    const recovery = new LogRecovery(
      disk,
      facts,
      { segmentBytes, readOnly: false, strictTail: false },
      (record, bytes, offset, length) => {
        const { minTxOffset, txCount, epoch, committedAtMs } = record;
        fed.push(minTxOffset, txCount, epoch, committedAtMs, length, crc32(bytes, offset, length));
        return true;
      },
    );
    while (recovery.step());
    const { next, epoch, atMs, clean, torn, suspectCount, segments, orphans, warnings, resume } =
      recovery;
    const found = { next, epoch, atMs, clean, torn, suspectCount, segments, orphans, warnings };
    const mark = recovery.mark();
    // Its calls, with the bytes that it wrote, are in the disk's hash.
    return JSON.stringify([found, mark, resume, fed, disk.traceHash]);
  }
}

function recorded(disk: SimDisk): SimDisk {
  const copy = disk.processCrash();
  copy.record = [];
  return copy;
}

function readsIn({ record = [] }: SimDisk): string[] {
  return record.filter((line) => /^read (?:manifest|wal)\//.test(line));
}
