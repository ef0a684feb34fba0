/**
 * What is measured: the cases, their sizes (full and quick), the figures read from them, and what
 * each figure should reach. The one place that knows; main.ts runs it, report.ts prints it.
 */
import type { Contender, DurabilityClass, Outcome, SuiteName } from './task.ts';

export interface Sizes {
  readonly rounds: number;
  readonly durableSeconds: number;
  readonly warmSeconds: number;
  readonly loadRows: number;
  /** The length of the silence that counts as quiet. */
  readonly quietSeconds: number;
  readonly sustainedRows: number;
  /** What an engine does when left alone is awaited: the idle merge comes after 30 s. */
  readonly restSeconds: number;
  readonly asOfRows: number;
  readonly readRows: number;
  readonly readSeconds: number;
  readonly openCount: number;
  readonly limitSeconds: number;
  readonly ringGroup: number;
  readonly childSecondsMax: number;
}

export const FULL: Sizes = {
  rounds: 5,
  durableSeconds: 3,
  warmSeconds: 1,
  loadRows: 3_000_000, // 348 MB of keys and values: 20 memtables of 16 MiB
  quietSeconds: 1,
  sustainedRows: 10_000_000,
  restSeconds: 60,
  asOfRows: 1_000_000,
  readRows: 1_000_000,
  readSeconds: 5,
  openCount: 20,
  limitSeconds: 2,
  ringGroup: 20_000,
  childSecondsMax: 1800,
};

export const QUICK: Sizes = {
  rounds: 1,
  durableSeconds: 0.1,
  warmSeconds: 0.05,
  loadRows: 4000,
  quietSeconds: 0.1,
  sustainedRows: 4000,
  restSeconds: 0,
  asOfRows: 4000,
  readRows: 4000,
  readSeconds: 0.1,
  openCount: 2,
  limitSeconds: 0.1,
  ringGroup: 1000,
  childSecondsMax: 600,
};

export const BATCH_ROWS = 1000;
/**
 * Batches of a load in flight: half a write buffer. Peers that sync per commit (lmdb) take all that
 * waits into one commit and gain most from many; who is better off with fewer says so in the sweep.
 */
const LOAD_IN_FLIGHT = 64;

export interface Reach {
  /** Ours divided by the best peer's (`higher`: at least; `lower`: at most). */
  readonly ratio?: number;
  /** Ours divided by the bare loop of overwrites. */
  readonly ofBareLoop?: number;
  /** Ours, in the figure's unit. */
  readonly absolute?: number;
  /** A ratio that is stated, not required. */
  readonly expected?: number;
}

export interface Figure {
  readonly name: string;
  readonly unit: '/s' | 'ms' | 'MiB' | 'runs' | 'x';
  readonly better: 'higher' | 'lower';
  readonly of: (outcome: Outcome) => number;
  /** The same per processor second, where that means something. */
  readonly perCpuSecond?: (outcome: Outcome) => number;
  readonly reach?: Reach;
  /** The one peer it is compared with, instead of the best. */
  readonly against?: Contender;
}

export interface Case {
  readonly name: string;
  readonly title: string;
  readonly suite: SuiteName;
  readonly durability: DurabilityClass;
  /** Whether the class means anything: reads have none. */
  readonly classed: boolean;
  readonly inFlight: number;
  readonly batchRows: number;
  readonly rowCount: number;
  readonly warmSeconds: number;
  readonly seconds: number;
  readonly restSeconds: number;
  readonly rounds: number;
  /** Contenders that are no engines, ours first; empty: the engines. */
  readonly primitives: readonly Contender[];
  /** Reads of the store that is prepared once per engine. */
  readonly prepared: boolean;
  /** The bare loops, before and after. */
  readonly withLimits: boolean;
  readonly figures: readonly Figure[];
}

export function perSecond(outcome: Outcome): number {
  return outcome.operations / outcome.seconds;
}

function perCpuSecond(outcome: Outcome): number {
  return outcome.operations / outcome.cpuSeconds;
}

function rate(name: string, reach?: Reach): Figure {
  return {
    name,
    unit: '/s',
    better: 'higher',
    of: perSecond,
    perCpuSecond,
    ...(reach === undefined ? {} : { reach }),
  };
}

/** A figure that the suite has taken itself; less is better. */
function own(
  name: string,
  unit: Figure['unit'],
  key: string,
  rest: Pick<Figure, 'reach' | 'against'>,
): Figure {
  // Over JSON a figure that could not be taken is null.
  return { name, unit, better: 'lower', of: ({ figures }) => figures[key] ?? Number.NaN, ...rest };
}

const MIB = 2 ** 20;
/** The mark from which flushes are delayed (limits.ts runsSoft). */
const RUNS_SOFT = 24;

export const HEAP_FIGURE = 'growth of the heap';

const DURABLE_REACH: ReadonlyMap<number, Reach> = new Map([
  [1, { ratio: 1, ofBareLoop: 0.6 }],
  [16, { ratio: 4 }],
  [256, { ratio: 6 }],
  [4096, { ratio: 8 }],
]);

const LOAD_CLASSES: readonly DurabilityClass[] = ['lazy', 'synced', 'never'];

/** All cases in the order in which they run. Quick leaves out those that only differ in a number. */
export function casesOf(sizes: Sizes, quick: boolean): readonly Case[] {
  const base = {
    durability: 'lazy' as DurabilityClass,
    classed: false,
    inFlight: 1,
    batchRows: BATCH_ROWS,
    rowCount: sizes.readRows,
    warmSeconds: sizes.warmSeconds,
    seconds: sizes.readSeconds,
    restSeconds: 0,
    rounds: sizes.rounds,
    primitives: [],
    prepared: false,
    withLimits: false,
  } satisfies Partial<Case>;

  const durable = [...DURABLE_REACH].map(([inFlight, reach]): Case => ({
    ...base,
    name: `durable-${inFlight}`,
    title: `durable one-operation transactions, ${inFlight.toLocaleString('en')} in flight`,
    suite: 'durable',
    durability: 'synced',
    classed: true,
    inFlight,
    rowCount: 0,
    seconds: sizes.durableSeconds,
    withLimits: true,
    figures: [rate('transactions', reach)],
  }));

  const loads = LOAD_CLASSES.map((durability): Case => ({
    ...base,
    name: `load-${durability}`,
    title: `random load, class ${durability}`,
    suite: 'load',
    durability,
    classed: true,
    inFlight: LOAD_IN_FLIGHT,
    rowCount: sizes.loadRows,
    seconds: sizes.quietSeconds,
    rounds: Math.min(3, sizes.rounds),
    figures: [
      rate('rows, to quiet', durability === 'lazy' ? { ratio: 2.5 } : undefined),
      {
        name: 'rows, to the last acknowledgement',
        unit: '/s',
        better: 'higher',
        of: (outcome) => outcome.operations / outcome.figures['acknowledgedSeconds'],
        perCpuSecond: (outcome) => outcome.operations / outcome.figures['acknowledgedCpuSeconds'],
      },
      {
        name: 'event-loop delay p99 over idle',
        unit: 'ms',
        better: 'lower',
        of: (outcome) => outcome.figures['loopDelayOverIdleP99Ms'],
        ...(durability === 'lazy' ? { reach: { ratio: 0.5 } } : {}),
      },
      {
        name: 'memory beyond the touched arena',
        unit: 'MiB',
        better: 'lower',
        of: (outcome) => outcome.figures['beyondArenaBytes'] / MIB,
        ...(durability === 'lazy' ? { reach: { absolute: 150 } } : {}),
      },
      {
        name: HEAP_FIGURE,
        unit: 'MiB',
        better: 'lower',
        of: (outcome) => outcome.figures['heapGrowthBytes'] / MIB,
        ...(durability === 'lazy' ? { reach: { absolute: 16 } } : {}),
      },
    ],
  }));

  const sustained: Case = {
    ...base,
    name: 'sustained',
    title: 'sustained random upserts, class lazy',
    suite: 'sustained',
    durability: 'lazy',
    classed: true,
    inFlight: LOAD_IN_FLIGHT,
    rowCount: sizes.sustainedRows,
    seconds: sizes.quietSeconds,
    restSeconds: sizes.restSeconds,
    rounds: 1,
    figures: [
      rate('rows, to quiet', { ratio: 2.5 }),
      {
        name: 'rows, to the last acknowledgement',
        unit: '/s',
        better: 'higher',
        of: (outcome) => outcome.operations / outcome.figures['acknowledgedSeconds'],
        perCpuSecond: (outcome) => outcome.operations / outcome.figures['acknowledgedCpuSeconds'],
      },
      own('longest pause between acknowledgements', 'ms', 'longestPauseMs', {
        reach: { ratio: 0.2 },
        against: 'classic-level',
      }),
      own('bytes written per byte given', 'x', 'writtenPerGivenRatio', {
        reach: { ratio: 1 },
        against: 'classic-level',
      }),
      own('parts written, of the model', 'x', 'partsOfModelRatio', { reach: { absolute: 1.2 } }),
      own('live runs p99', 'runs', 'liveRunsP99Count', { reach: { absolute: RUNS_SOFT } }),
      {
        ...own('rate of the last tenth of the rows to the first', 'x', 'lastToFirstRatio', {
          reach: { absolute: 0.7 },
        }),
        better: 'higher',
      },
      own('parts on disk per live byte, at rest', 'x', 'partsPerLiveRatio', {
        reach: { absolute: 1.15 },
      }),
      own('disk per live byte, at rest', 'x', 'diskPerLiveRatio', {}),
    ],
  };

  const pasts = (['recent', 'old'] as const).map((age): Case => ({
    ...base,
    name: `as-of-${age}`,
    title: `reads of a past since which ${age === 'old' ? 'every row' : 'a tenth of the rows'} changed, against reads of now`,
    suite: `as-of-${age}`,
    rowCount: sizes.asOfRows,
    rounds: Math.min(3, sizes.rounds),
    primitives: ['as-of', 'now'],
    figures: [rate('reads', { ratio: 0.5 })],
  }));

  const reads: Case[] = [
    {
      ...base,
      name: 'point-all',
      title: 'point reads over all rows',
      suite: 'point-all',
      prepared: true,
      figures: [rate('reads', { expected: 2 })],
    },
    {
      ...base,
      name: 'point-hot',
      title: 'point reads over 10,000 hot rows',
      suite: 'point-hot',
      prepared: true,
      figures: [rate('reads', { expected: 2.5 })],
    },
    {
      ...base,
      name: 'scan',
      title: 'full scan',
      suite: 'scan',
      prepared: true,
      figures: [rate('rows', { expected: 2 })],
    },
    {
      ...base,
      name: 'open',
      title: `opening again, median of ${sizes.openCount}`,
      suite: 'open',
      prepared: true,
      rounds: Math.min(3, sizes.rounds),
      figures: [
        {
          name: 'time',
          unit: 'ms',
          better: 'lower',
          of: (outcome) => outcome.figures['openMedianMs'],
          reach: { absolute: 20 },
        },
      ],
    },
  ];

  const ring: Case = {
    ...base,
    name: 'ring',
    title: 'ring against MessagePort, messages of 16 bytes',
    suite: 'ring',
    batchRows: sizes.ringGroup,
    rowCount: 0,
    seconds: Math.min(3, sizes.readSeconds),
    primitives: ['ring', 'message-port'],
    figures: [rate('messages', { ratio: 10 })],
  };

  const all = [...durable, ...loads, sustained, ...reads, ...pasts, ring];
  const similar = new Set(['durable-16', 'durable-4096', 'load-synced', 'load-never', 'as-of-old']);
  return quick ? all.filter(({ name }) => !similar.has(name)) : all;
}

/** The bare loops: durable figures are compared with the overwrite, the append is shown beside it. */
export type LimitName = 'overwrite' | 'append';
