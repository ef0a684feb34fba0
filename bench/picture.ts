/**
 * The picture: for every figure a group of bars, one per contender, ours first. Bars of one group
 * share a linear scale from zero, groups do not. Called by main.ts.
 */
import { HEAP_FIGURE } from './plan.ts';
import { short, type Line } from './report.ts';
import type { Contender } from './task.ts';

const WIDTH = 1040;
const LEFT = 400;
const RIGHT = 200;
const BAR_HEIGHT = 14;
const GROUP_GAP = 18;
const TOP = 56;

const COLORS: ReadonlyMap<Contender, string> = new Map([
  ['tidemark', '#0b7285'],
  ['ring', '#0b7285'],
  ['as-of', '#0b7285'],
  ['now', '#868e96'],
  ['classic-level', '#868e96'],
  ['message-port', '#868e96'],
  ['lmdb', '#adb5bd'],
  ['better-sqlite3', '#ced4da'],
  ['bare-loop', '#dee2e6'],
]);

export function pictureOf(all: readonly Line[], caption: string): string {
  // The growth of a heap is about zero for everybody: a bar of it shows nothing.
  const lines = all.filter(({ figure }) => figure !== HEAP_FIGURE);
  const parts: string[] = [];
  let y = TOP;
  for (const line of lines) {
    const standings = line.standings.filter(({ value }) => Number.isFinite(value.median));
    const scale = Math.max(...standings.map(({ value }) => value.median), Number.MIN_VALUE);
    const middle = y + (standings.length * BAR_HEIGHT) / 2;
    parts.push(
      text(LEFT - 12, middle - 2, 'end', 'title', line.title),
      text(LEFT - 12, middle + 11, 'end', 'note', figureNote(line)),
    );
    for (const { contender, value } of standings) {
      const width = Math.max(1, (Math.max(0, value.median) / scale) * (WIDTH - LEFT - RIGHT));
      parts.push(
        `<rect x="${LEFT}" y="${y + 1}" width="${width.toFixed(1)}" height="${BAR_HEIGHT - 2}" fill="${COLORS.get(contender) ?? '#ccc'}"/>`,
        text(
          LEFT + width + 6,
          y + BAR_HEIGHT - 4,
          'start',
          'note',
          `${contender}  ${short(value.median)}${unitText(line)}`,
        ),
      );
      y += BAR_HEIGHT;
    }
    y += GROUP_GAP;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y}" viewBox="0 0 ${WIDTH} ${y}" role="img">`,
    '<style>text{font:11px system-ui,sans-serif;fill:#212529}.title{font-weight:600}.note{fill:#495057}.head{font-size:15px;font-weight:600}</style>',
    `<rect width="${WIDTH}" height="${y}" fill="#fff"/>`,
    text(12, 24, 'start', 'head', 'Tidemark beside its peers'),
    text(12, 42, 'start', 'note', caption),
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}

function unitText(line: Line): string {
  return line.unit === '/s' ? '/s' : ` ${line.unit}`;
}

function figureNote(line: Line): string {
  const ratio = line.ratio === undefined ? '' : `, ${line.ratio.median.toFixed(2)}x the best peer`;
  return `${line.figure}${line.better === 'lower' ? ' (less is better)' : ''}${ratio}`;
}

function text(x: number, y: number, anchor: string, style: string, content: string): string {
  const safe = content.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  return `<text x="${x.toFixed(1)}" y="${y}" text-anchor="${anchor}" class="${style}">${safe}</text>`;
}
