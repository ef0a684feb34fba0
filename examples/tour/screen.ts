/**
 * What the tour shows while it runs: steps, a progress bar, and lines that say what holds. On a
 * terminal the bar is redrawn in place; elsewhere it is an occasional plain line, so that a log of
 * the tour stays readable. Everything goes through one stream; at most one bar is live.
 * Called by main.ts; tests give it a stream and a clock of their own.
 */
import { styleText } from 'node:util';
import { bar as drawBar } from './drawing.ts';

const redrawMs = 80;
const plainLineMs = 5_000;
const columnsDefault = 80;
const barCellsMin = 4;
const barCellsMax = 30;

/** What we ask of standard output. */
export interface ScreenStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
  hasColors?(): boolean;
}

export interface Bar {
  /** Cheap: most calls draw nothing. */
  update(done: number): void;
  /** Takes the bar away; what holds then is said with `pass` or `line`. */
  end(): void;
}

export type BarText = (done: number, elapsedMs: number) => string;

export interface Screen {
  title(text: string): void;
  /** Opens a numbered step. */
  step(text: string): void;
  line(text?: string): void;
  /** Something was checked and holds. */
  pass(text: string): void;
  /** Something was checked and does not hold. */
  fail(text: string): void;
  /** A drawing, indented under its caption. */
  picture(caption: string, lines: readonly string[]): void;
  /** `text` says how far it is; it is asked only when something is drawn. */
  bar(total: number, text: BarText): Bar;
}

type Style = Parameters<typeof styleText>[0];

export function createScreen(out: ScreenStream, now: () => number): Screen {
  const inPlace = out.isTTY === true;
  const coloured = inPlace && out.hasColors?.() === true;
  const paint = (style: Style, text: string): string =>
    coloured ? styleText(style, text, { validateStream: false }) : text;
  let steps = 0;
  let live: LiveBar | undefined;

  /** A live bar steps aside and comes back below. */
  function say(text: string): void {
    live?.erase();
    out.write(`${text}\n`);
    live?.draw();
  }

  return {
    title: (text) => say(paint('bold', text)),
    step: (text) => say(`\n${paint('bold', `${++steps}. ${text}`)}`),
    line: (text = '') => say(text === '' ? '' : `   ${text}`),
    pass: (text) => say(` ${paint('green', '✓')} ${text}`),
    fail: (text) => say(` ${paint('red', '✗')} ${text}`),
    picture(caption, lines) {
      say(`   ${paint('bold', caption)}`);
      for (const text of lines) say(`     ${paint('cyan', text)}`);
    },
    bar(total, text) {
      live?.end();
      live = new LiveBar(out, now, inPlace, total, text, () => {
        live = undefined;
      });
      return live;
    },
  };
}

class LiveBar implements Bar {
  private readonly out: ScreenStream;
  private readonly now: () => number;
  private readonly inPlace: boolean;
  private readonly total: number;
  private readonly text: BarText;
  private readonly onEnd: () => void;
  private readonly startAtMs: number;
  private shownAtMs: number;
  private done = 0;
  private drawn = false;
  private ended = false;

  constructor(
    out: ScreenStream,
    now: () => number,
    inPlace: boolean,
    total: number,
    text: BarText,
    onEnd: () => void,
  ) {
    this.out = out;
    this.now = now;
    this.inPlace = inPlace;
    this.total = total;
    this.text = text;
    this.onEnd = onEnd;
    this.startAtMs = now();
    // A plain line is only worth it for what takes long; a drawn bar may come at once.
    this.shownAtMs = inPlace ? -Infinity : this.startAtMs;
  }

  update(done: number): void {
    if (this.ended) return;
    this.done = done;
    const nowMs = this.now();
    if (nowMs - this.shownAtMs < (this.inPlace ? redrawMs : plainLineMs)) return;
    this.shownAtMs = nowMs;
    if (this.inPlace) this.draw();
    else this.out.write(`   ${this.line(0)}\n`);
  }

  end(): void {
    if (this.ended) return;
    this.erase();
    this.ended = true;
    this.onEnd();
  }

  draw(): void {
    if (!this.inPlace || this.ended) return;
    const width = (this.out.columns ?? columnsDefault) - 1;
    // The text says more than the bar: on a narrow terminal the bar gives way.
    const cells = Math.min(barCellsMax, width - this.line(0).length - 4);
    this.out.write(`\r\x1b[2K   ${this.line(cells)}`.slice(0, width + '\r\x1b[2K'.length));
    this.drawn = true;
  }

  erase(): void {
    if (this.drawn) this.out.write('\r\x1b[2K');
    this.drawn = false;
  }

  private line(cells: number): string {
    const { done, total } = this;
    const picture = cells >= barCellsMin ? `${drawBar(done, total, cells)} ` : '';
    const percent = total > 0 ? Math.min(100, Math.floor((done / total) * 100)) : 100;
    const text = this.text(done, this.now() - this.startAtMs);
    return `${picture}${String(percent).padStart(3)}%  ${text}`;
  }
}
