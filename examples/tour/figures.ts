/**
 * What an engine says of itself, as pictures: the only place of the tour that knows the shape of
 * `engine.stats()`. Called by main.ts.
 */
import type { CollectionStats, Engine, EngineStats } from '../../actors/index.ts';
import type { LevelPicture, MergingPicture, SegmentPicture } from './drawing.ts';

export interface Pictures {
  readonly log: readonly SegmentPicture[];
  readonly spines: readonly { readonly name: string; readonly levels: readonly LevelPicture[] }[];
  readonly merging: MergingPicture;
}

export function takePictures(engine: Engine): Pictures {
  const stats = engine.stats();
  const { keeper } = stats;
  return {
    log: segmentPictures(stats),
    spines: stats.collections.map((collection) => ({
      name: collection.name,
      levels: levelPictures(collection),
    })),
    merging: {
      merges: keeper['merges'] ?? 0,
      rowsIn: keeper['mergedRowsIn'] ?? 0,
      rowsOut: keeper['mergedRowsOut'] ?? 0,
      bytesIn: keeper['mergedBytesIn'] ?? 0,
      bytesOut: keeper['mergedBytesOut'] ?? 0,
    },
  };
}

function segmentPictures({ log, durableUpper }: EngineStats): SegmentPicture[] {
  return log.segments.map(({ seq, firstOffset }, i) => {
    const next = log.segments[i + 1];
    return {
      name: String(seq),
      firstOffset,
      upper: next?.firstOffset ?? durableUpper,
      bytes: next === undefined ? log.position : log.segmentBytes,
      capacityBytes: log.segmentBytes,
      state: next === undefined ? 'open' : 'sealed',
    };
  });
}

/** Runs by level of the spine, largest first. */
function levelPictures({ runs }: CollectionStats): LevelPicture[] {
  const levels = new Map<number, LevelPicture>();
  for (const { level, rows, bytes } of runs) {
    const known = levels.get(level) ?? { level, batches: 0, rows: 0, bytes: 0 };
    levels.set(level, {
      level,
      batches: known.batches + 1,
      rows: known.rows + rows,
      bytes: known.bytes + bytes,
    });
  }
  return [...levels.values()].toSorted((a, b) => b.level - a.level);
}
