/**
 * From outcomes to figures: medians and spreads over rounds, the best configuration of each
 * contender, the ratio of ours to the best peer, and whether that is what it should be. The ratio is
 * taken round by round, so that a disk that is slow for one round is slow for both. Called by
 * main.ts; knows nothing of processes or files.
 */
import { compareNumbers, median } from './measure.ts';
import type { Case, Figure, Reach } from './plan.ts';
import type { Configuration, Contender, Outcome } from './task.ts';

/** All outcomes of one configuration in one case; a round it did not run in is undefined. */
export interface Sweep {
  readonly contender: Contender;
  readonly configuration: Configuration;
  readonly outcomes: (Outcome | undefined)[];
  readonly failures: string[];
}

export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

export interface Standing {
  readonly contender: Contender;
  readonly configuration: string;
  readonly value: Spread;
  readonly perCpuSecond?: Spread;
}

export interface Line {
  readonly case: string;
  readonly title: string;
  readonly figure: string;
  readonly unit: Figure['unit'];
  readonly better: Figure['better'];
  /** The best counting configuration of each contender. */
  readonly standings: readonly Standing[];
  /** Configurations that do not count, shown beside. */
  readonly beside: readonly Standing[];
  readonly ours?: Contender;
  readonly bestPeer?: Contender;
  readonly ratio?: Spread;
  readonly ratioPerCpuSecond?: Spread;
  readonly ofBareLoop?: Spread;
  readonly reach?: Reach;
  /** Undefined where nothing is required, or there is nothing to compare. */
  readonly reached?: boolean;
}

export function spreadOf(values: readonly number[]): Spread {
  const ascending = values.toSorted(compareNumbers);
  return {
    median: median(values),
    min: ascending[0] ?? Number.NaN,
    max: ascending.at(-1) ?? Number.NaN,
    count: values.length,
  };
}

function presentOutcomes(sweep: Sweep): Outcome[] {
  return sweep.outcomes.filter((outcome) => outcome !== undefined);
}

function standingOf(figure: Figure, sweep: Sweep): Standing {
  const outcomes = presentOutcomes(sweep);
  const perCpuSecond = figure.perCpuSecond;
  return {
    contender: sweep.contender,
    configuration: sweep.configuration.name,
    value: spreadOf(outcomes.map(figure.of)),
    ...(perCpuSecond === undefined ? {} : { perCpuSecond: spreadOf(outcomes.map(perCpuSecond)) }),
  };
}

/** Whether `a` is better than `b`. */
function beats(figure: Figure, a: number, b: number): boolean {
  return figure.better === 'higher' ? a > b : a < b;
}

function bestSweep(figure: Figure, sweeps: readonly Sweep[]): Sweep | undefined {
  let best: Sweep | undefined;
  for (const sweep of sweeps) {
    if (presentOutcomes(sweep).length === 0) continue;
    if (
      best === undefined ||
      beats(figure, standingOf(figure, sweep).value.median, standingOf(figure, best).value.median)
    ) {
      best = sweep;
    }
  }
  return best;
}

/** Round by round, where both ran. */
function ratios(ours: Sweep, peer: Sweep, of: (outcome: Outcome) => number): readonly number[] {
  const values: number[] = [];
  for (const [round, outcome] of ours.outcomes.entries()) {
    const other = peer.outcomes[round];
    if (outcome !== undefined && other !== undefined) values.push(of(outcome) / of(other));
  }
  return values;
}

export function lineOf(
  subject: Case,
  figure: Figure,
  sweeps: readonly Sweep[],
  ours: Contender,
  /** The bare loop beside each round; empty where there is none. */
  bareLoopPerSecond: readonly number[],
): Line {
  const counting = sweeps.filter(({ configuration }) => configuration.counts);
  const contenders = [...new Set(counting.map(({ contender }) => contender))];
  const bests = contenders
    .map((name) =>
      bestSweep(
        figure,
        counting.filter(({ contender }) => contender === name),
      ),
    )
    .filter((best) => best !== undefined);
  const ourBest = bests.find(({ contender }) => contender === ours);
  const peerBest = bestSweep(
    figure,
    bests.filter(
      ({ contender }) =>
        contender !== ours && (figure.against === undefined || contender === figure.against),
    ),
  );
  const reach = figure.reach;

  let comparison: Partial<Line> = {};
  if (ourBest !== undefined) {
    const value = standingOf(figure, ourBest).value.median;
    let reached: boolean | undefined;
    const require = (holds: boolean): void => {
      reached = (reached ?? true) && holds;
    };
    if (peerBest !== undefined) {
      const ratio = spreadOf(ratios(ourBest, peerBest, figure.of));
      comparison = { ...comparison, bestPeer: peerBest.contender, ratio };
      if (figure.perCpuSecond !== undefined) {
        const ratioPerCpuSecond = spreadOf(ratios(ourBest, peerBest, figure.perCpuSecond));
        comparison = { ...comparison, ratioPerCpuSecond };
      }
      if (reach?.ratio !== undefined) {
        const exact = ratio.median;
        require(figure.better === 'higher' ? exact >= reach.ratio : exact <= reach.ratio);
      }
    }
    if (subject.withLimits && bareLoopPerSecond.length > 0) {
      const shares: number[] = [];
      for (const [round, outcome] of ourBest.outcomes.entries()) {
        const bare = bareLoopPerSecond[round];
        if (outcome !== undefined && bare !== undefined) shares.push(figure.of(outcome) / bare);
      }
      const ofBareLoop = spreadOf(shares);
      comparison = { ...comparison, ofBareLoop };
      if (reach?.ofBareLoop !== undefined) require(ofBareLoop.median >= reach.ofBareLoop);
    }
    if (reach?.absolute !== undefined) {
      require(figure.better === 'higher' ? value >= reach.absolute : value <= reach.absolute);
    }
    comparison = { ...comparison, ours, ...(reached === undefined ? {} : { reached }) };
  }

  return {
    case: subject.name,
    title: subject.title,
    figure: figure.name,
    unit: figure.unit,
    better: figure.better,
    standings: bests.map((sweep) => standingOf(figure, sweep)),
    beside: sweeps
      .filter((sweep) => !sweep.configuration.counts && presentOutcomes(sweep).length > 0)
      .map((sweep) => standingOf(figure, sweep)),
    ...(reach === undefined ? {} : { reach }),
    ...comparison,
  };
}

/** Three significant digits, with k and M; what a reader compares. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return '-';
  const magnitude = Math.abs(value);
  if (magnitude >= 999_500) return `${(value / 1e6).toPrecision(3)} M`;
  if (magnitude >= 9995) return `${(value / 1e3).toPrecision(3)} k`;
  if (magnitude >= 100) return value.toFixed(0);
  return magnitude >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function shortSpread(spread: Spread): string {
  if (spread.count < 2 || spread.median === 0) return short(spread.median);
  const share = Math.max(spread.max - spread.median, spread.median - spread.min) / spread.median;
  return `${short(spread.median)} ±${(100 * share).toFixed(0)}%`;
}

function times(ratio: number): string {
  return Number.isFinite(ratio) ? `${ratio.toFixed(2)}x` : '-';
}

function reachText(line: Line): string {
  const reach = line.reach;
  if (reach === undefined) return '';
  const sign = line.better === 'higher' ? '>=' : '<=';
  const parts: string[] = [];
  if (reach.ratio !== undefined) parts.push(`${sign} ${reach.ratio}x`);
  if (reach.ofBareLoop !== undefined) {
    const share = line.ofBareLoop === undefined ? '' : ` (is ${line.ofBareLoop.median.toFixed(2)})`;
    parts.push(`${sign} ${reach.ofBareLoop} of bare${share}`);
  }
  if (reach.absolute !== undefined) parts.push(`${sign} ${reach.absolute} ${line.unit}`);
  if (reach.expected !== undefined) parts.push(`expected ${reach.expected}x`);
  return parts.join(', ');
}

function verdict(line: Line): string {
  return line.reached === undefined ? '' : line.reached ? 'yes' : 'NO';
}

/** The table of ratios: a line per figure, a column per contender. */
export function tableOf(lines: readonly Line[], columns: readonly Contender[]): string {
  const rows: string[][] = [
    ['', 'unit', ...columns, 'ratio', 'spread', 'per cpu-s', 'reach', 'reached'],
  ];
  for (const line of lines) {
    const ratio = line.ratio;
    rows.push([
      `${line.case}: ${line.figure}`,
      line.unit,
      ...columns.map((name) => {
        const standing = line.standings.find(({ contender }) => contender === name);
        return standing === undefined ? '-' : shortSpread(standing.value);
      }),
      ratio === undefined ? '-' : times(ratio.median),
      ratio === undefined || ratio.count < 2 ? '' : `${times(ratio.min)}-${times(ratio.max)}`,
      line.ratioPerCpuSecond === undefined ? '' : times(line.ratioPerCpuSecond.median),
      reachText(line),
      verdict(line),
    ]);
  }
  return aligned(rows);
}

/** What stands behind the table: the configuration that won, and those shown beside. */
export function detailsOf(lines: readonly Line[]): string {
  const rows: string[][] = [];
  for (const line of lines) {
    if (line.unit !== '/s') continue;
    for (const [mark, standings] of [
      ['', line.standings],
      ['beside: ', line.beside],
    ] as const) {
      for (const { contender, configuration, value, perCpuSecond } of standings) {
        rows.push([
          `${line.case}: ${line.figure}`,
          `${mark}${contender}`,
          shortSpread(value),
          perCpuSecond === undefined ? '' : `${short(perCpuSecond.median)} per cpu-s`,
          configuration,
        ]);
      }
    }
  }
  return aligned(rows);
}

function aligned(rows: readonly string[][]): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length);
  }
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i]))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
