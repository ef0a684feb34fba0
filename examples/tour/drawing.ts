/**
 * Text drawings of what lies on disk, and the numbers' spelling. Plain data in, lines out: nothing
 * here knows the engine, a terminal or colour. Called by main.ts for its last screen.
 */

const barCells = 24;
const linesMax = 12;

export interface SegmentPicture {
  readonly name: string;
  readonly firstOffset: number;
  /** The first offset no longer in it. */
  readonly upper: number;
  /** What is written, of `capacityBytes`. */
  readonly bytes: number;
  readonly capacityBytes: number;
  /** In a word: 'open', 'sealed', ... */
  readonly state: string;
}

export interface LevelPicture {
  readonly level: number;
  readonly batches: number;
  readonly rows: number;
  readonly bytes: number;
}

export interface MergingPicture {
  readonly merges: number;
  readonly rowsIn: number;
  readonly rowsOut: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
}

/** One line a segment, its fill as a bar; of many the oldest and the newest. */
export function drawLog(segments: readonly SegmentPicture[]): string[] {
  const rows = segments.map((segment) => [
    segment.name,
    bar(segment.bytes, segment.capacityBytes),
    formatBytes(segment.bytes),
    segment.upper === segment.firstOffset
      ? 'empty'
      : `${formatCount(segment.firstOffset)} to ${formatCount(segment.upper - 1)}`,
    segment.state,
  ]);
  return elide(columns(rows, 'llrrl'), 'segments');
}

/** One line a level, its bytes as a bar on the scale of the largest level. */
export function drawSpine(levels: readonly LevelPicture[]): string[] {
  const largest = Math.max(1, ...levels.map((level) => level.bytes));
  const rows = levels.map((level) => [
    `level ${level.level}`,
    bar(level.bytes, largest),
    formatBytes(level.bytes),
    formatOf(level.batches, 'batch', 'batches'),
    formatOf(level.rows, 'row', 'rows'),
  ]);
  return elide(columns(rows, 'llrrr'), 'levels');
}

/** What merging read and what it left of it, on one scale. */
export function drawMerging(merging: MergingPicture): string[] {
  if (merging.merges === 0) return ['nothing was merged'];
  const largest = Math.max(1, merging.bytesIn, merging.bytesOut);
  return columns(
    [
      [
        formatOf(merging.merges, 'merge', 'merges'),
        'read',
        bar(merging.bytesIn, largest),
        formatBytes(merging.bytesIn),
        formatOf(merging.rowsIn, 'row', 'rows'),
      ],
      [
        '',
        'wrote',
        bar(merging.bytesOut, largest),
        formatBytes(merging.bytesOut),
        formatOf(merging.rowsOut, 'row', 'rows'),
      ],
    ],
    'lllrr',
  );
}

/** Cells in columns two spaces apart; one letter a column says left or right. */
export function columns(rows: readonly (readonly string[])[], sides: string): string[] {
  const widths = Array.from(sides, (_, column) =>
    Math.max(0, ...rows.map((row) => (row[column] ?? '').length)),
  );
  return rows.map((row) =>
    widths
      .map((width, column) => {
        const cell = row[column] ?? '';
        return sides[column] === 'r' ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd(),
  );
}

/** Full cells for the share of `part` in `whole`; a part that is there is never invisible. */
export function bar(part: number, whole: number, cells: number = barCells): string {
  const share = whole > 0 ? Math.min(1, Math.max(0, part / whole)) : 0;
  const full = part > 0 ? Math.max(1, Math.round(share * cells)) : 0;
  return '█'.repeat(full) + '░'.repeat(cells - full);
}

function elide(lines: string[], what: string): string[] {
  if (lines.length <= linesMax) return lines;
  const head = linesMax >> 1;
  const tail = linesMax - head - 1;
  const left = formatCount(lines.length - head - tail);
  return [...lines.slice(0, head), `... ${left} more ${what}`, ...lines.slice(-tail)];
}

// --- Numbers ---------------------------------------------------------------------------------

/** 1234567 -> '1,234,567'. */
export function formatCount(count: number): string {
  return Math.round(count)
    .toString()
    .replace(/\B(?=(?:\d{3})+$)/g, ',');
}

export function formatOf(count: number, one: string, many: string): string {
  return `${formatCount(count)} ${count === 1 ? one : many}`;
}

export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  let value = bytes;
  let unit = '';
  for (const next of ['KiB', 'MiB', 'GiB', 'TiB']) {
    value /= 1024;
    unit = next;
    if (value < 1023.95) break;
  }
  return `${value.toFixed(1)} ${unit}`;
}

export function formatMs(ms: number): string {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms >= 1_000) return `${(ms / 1000).toFixed(2)} s`;
  return ms >= 100 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(1)} ms`;
}

/** '38,112/s'; what took no time has no rate. */
export function formatRate(count: number, ms: number): string {
  return ms > 0 ? `${formatCount((count / ms) * 1000)}/s` : '-';
}
