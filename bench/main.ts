/**
 * The bench: Tidemark beside its peers. Runs every case in rounds, each engine and configuration in
 * a process of its own, in an order that rotates from round to round, and writes a table of ratios,
 * the raw outcomes (JSON) and a picture. Started by `npm run bench [-- options]`:
 *
 *   --quick            tiny sizes, one configuration each: shows that everything runs, measures nothing
 *   --only=a,b         cases whose name begins so (durable, load-lazy, sustained, point, scan, open,
 *                      as-of, ring)
 *   --engines=a,b      these engines only
 *   --rounds=n         instead of the plan's number
 *   --sweep=all|first  all configurations of each engine, or its first
 *   --data=path        where the stores go; default .tidemark-bench in the checkout
 *   --out=path         where the results go; default bench/results (quick: nowhere)
 *   --seed=n
 *   --rows=n           rows of the loads, of sustained and as-of; results go nowhere without --out
 *
 * The first round tries every configuration; later rounds repeat those that came within 30% of the
 * engine's best. Configurations that do not count are tried once.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { compileBench } from './compile.ts';
import { DRIVERS } from './engines/all.ts';
import type { Driver } from './engines/engine.ts';
import { environmentOf, type Environment } from './environment.ts';
import { pictureOf } from './picture.ts';
import { casesOf, FULL, perSecond, QUICK, type Case, type LimitName } from './plan.ts';
import { detailsOf, lineOf, short, tableOf, type Line, type Sweep } from './report.ts';
import { Runner } from './runner.ts';
import type { Configuration, Contender, EngineName, Outcome, SuiteName, Task } from './task.ts';

const PROMISING_SHARE = 0.7;
const PREPARE_IN_FLIGHT = 64;
const REPORT_FORMAT = 1;
/** Suites that write their own rows, so that --rows may say how many. */
const SIZED_SUITES: ReadonlySet<SuiteName> = new Set([
  'load',
  'sustained',
  'as-of-recent',
  'as-of-old',
]);

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string', default: '' },
    engines: { type: 'string', default: '' },
    rounds: { type: 'string' },
    sweep: { type: 'string' },
    data: { type: 'string' },
    out: { type: 'string' },
    seed: { type: 'string', default: '1' },
    rows: { type: 'string' },
  },
});

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const quick = options.quick;
const sizes = quick ? QUICK : FULL;
const sweepAll = (options.sweep ?? (quick ? 'first' : 'all')) === 'all';
const only = options.only.split(',').filter((name) => name !== '');
const chosenEngines = options.engines.split(',').filter((name) => name !== '');
const seed = Number(options.seed);
const dataRoot = resolve(root, options.data ?? '.tidemark-bench');
const outDirectory =
  options.out !== undefined
    ? resolve(options.out)
    : quick || options.rows !== undefined
      ? undefined
      : join(root, 'bench', 'results');

interface Probed {
  readonly name: EngineName;
  readonly version?: string;
  readonly absent?: string;
}

type LimitRun = Readonly<Record<LimitName, Outcome>>;

interface CaseResult {
  readonly name: string;
  readonly title: string;
  readonly durability: string;
  readonly inFlight: number;
  readonly rowCount: number;
  readonly rounds: number;
  readonly skipped?: string;
  /** The bare loops before the first round and after each: one more than rounds. */
  readonly limits: readonly LimitRun[];
  readonly sweeps: readonly Sweep[];
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Directories of benches that no longer run; theirs is the process id. */
function removeLeftovers(): void {
  for (const name of readdirSync(dataRoot)) {
    if (!/^\d+$/.test(name)) continue;
    try {
      process.kill(Number(name), 0);
    } catch {
      rmSync(join(dataRoot, name), { recursive: true, force: true });
    }
  }
}

function taskOf(
  subject: Case,
  contender: Contender,
  configuration: Configuration,
): Omit<Task, 'directory'> {
  return {
    suite: subject.suite,
    contender,
    durability: subject.durability,
    configuration,
    root,
    seed,
    inFlight: subject.inFlight,
    rowCount: subject.rowCount,
    batchRows: subject.batchRows,
    warmSeconds: subject.warmSeconds,
    seconds: subject.seconds,
    openCount: sizes.openCount,
    restSeconds: subject.restSeconds,
  };
}

const PLAIN: Configuration = { name: 'plain', counts: true, options: {} };

async function runLimits(runner: Runner, subject: Case): Promise<LimitRun> {
  const measure = async (name: LimitName): Promise<Outcome> => {
    const outcome = await runner.run({
      ...taskOf(subject, 'bare-loop', { ...PLAIN, name }),
      suite: 'limit',
      warmSeconds: sizes.limitSeconds / 4,
      seconds: sizes.limitSeconds,
    });
    say(`     bare ${name} + fdatasync: ${short(perSecond(outcome))}/s`);
    return outcome;
  };
  return { overwrite: await measure('overwrite'), append: await measure('append') };
}

function sweepsOf(subject: Case, drivers: readonly Driver[]): Sweep[] {
  const pairs: [Contender, Configuration][] =
    subject.primitives.length > 0
      ? subject.primitives.map((name) => [name, PLAIN])
      : drivers.flatMap((driver) => {
          const all = driver.configurations(subject.suite, subject.durability);
          return (sweepAll ? all : all.slice(0, 1)).map(
            (configuration): [Contender, Configuration] => [driver.name, configuration],
          );
        });
  return pairs.map(([contender, configuration]) => ({
    contender,
    configuration,
    outcomes: [],
    failures: [],
  }));
}

/** Whether a configuration is worth another round, judged by the case's first figure. */
function promising(subject: Case, sweep: Sweep, all: readonly Sweep[]): boolean {
  if (!sweep.configuration.counts || sweep.failures.length > 0) return false;
  const figure = subject.figures[0];
  const first = (other: Sweep): number => {
    const outcome = other.outcomes[0];
    if (outcome === undefined) return Number.NEGATIVE_INFINITY;
    const value = figure.of(outcome);
    return figure.better === 'higher' ? value : 1 / value;
  };
  const rivals = all.filter(
    (other) => other.contender === sweep.contender && other.configuration.counts,
  );
  return first(sweep) >= PROMISING_SHARE * Math.max(...rivals.map(first));
}

/** The contenders in the order of a round: each round begins with the next one. */
function rotated<T>(list: readonly T[], round: number): readonly T[] {
  const turn = list.length === 0 ? 0 : round % list.length;
  return [...list.slice(turn), ...list.slice(0, turn)];
}

async function runCase(
  runner: Runner,
  subject: Case,
  drivers: readonly Driver[],
  prepared: ReadonlyMap<Contender, string>,
): Promise<CaseResult> {
  const sweeps = sweepsOf(subject, drivers).filter(
    ({ contender }) => !subject.prepared || prepared.has(contender),
  );
  const contenders = [...new Set(sweeps.map(({ contender }) => contender))];
  say(`\n${subject.name}: ${subject.title}`);
  const limits: LimitRun[] = [];
  if (subject.withLimits) limits.push(await runLimits(runner, subject));
  for (let round = 0; round < subject.rounds; round++) {
    const worth = sweeps.filter((sweep) => round === 0 || promising(subject, sweep, sweeps));
    for (const contender of rotated(contenders, round)) {
      for (const sweep of worth.filter((other) => other.contender === contender)) {
        const directory = subject.prepared ? prepared.get(contender) : undefined;
        const task = taskOf(subject, contender, sweep.configuration);
        const label = `${contender} (${sweep.configuration.name})`;
        try {
          const outcome = await runner.run(directory === undefined ? task : { ...task, directory });
          sweep.outcomes[round] = outcome;
          const told = subject.figures.map(
            (figure) => `${short(figure.of(outcome))} ${figure.unit} ${figure.name}`,
          );
          const digest = outcome.digest === '' ? '' : `  [${outcome.digest}]`;
          say(`  ${round + 1}  ${label}: ${told.join('; ')}${digest}`);
        } catch (error) {
          const message = error instanceof Error ? error.message : String(error);
          sweep.failures.push(message);
          say(`  ${round + 1}  ${label}: FAILED\n${message}`);
        }
      }
    }
    if (subject.withLimits) limits.push(await runLimits(runner, subject));
  }
  return {
    name: subject.name,
    title: subject.title,
    durability: subject.classed ? subject.durability : 'none',
    inFlight: subject.inFlight,
    rowCount: subject.rowCount,
    rounds: subject.rounds,
    limits,
    sweeps,
  };
}

/** Loads the store that the read suites open, once per engine. */
async function prepareStores(
  runner: Runner,
  subject: Case,
  drivers: readonly Driver[],
): Promise<Map<Contender, string>> {
  say(`\nprepared stores: ${subject.rowCount.toLocaleString('en')} rows, loaded in random order`);
  const prepared = new Map<Contender, string>();
  for (const driver of drivers) {
    const configuration = driver.configurations('prepare', 'lazy')[0];
    if (configuration === undefined) continue;
    const directory = runner.directory(`prepared-${driver.name}`);
    try {
      const outcome = await runner.run({
        ...taskOf(subject, driver.name, configuration),
        suite: 'prepare',
        inFlight: PREPARE_IN_FLIGHT,
        seconds: sizes.quietSeconds,
        directory,
      });
      prepared.set(driver.name, directory);
      say(`  ${driver.name}: ${outcome.seconds.toFixed(1)} s, digest ${outcome.digest}`);
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      say(`  ${driver.name}: FAILED\n${message}`);
      process.exitCode = 1;
    }
  }
  return prepared;
}

function reasonToSkip(subject: Case, environment: Environment): string | undefined {
  if (subject.classed && subject.durability === 'synced' && environment.volatile) {
    return `no durable figure on ${environment.fileSystem}`;
  }
  if (subject.suite === 'ring' && !existsSync(join(root, 'dist', 'core', 'shared', 'ring.js'))) {
    return 'dist/core/shared/ring.js is missing; build it: npm run build';
  }
  return undefined;
}

interface Report {
  readonly format: number;
  readonly startedAt: string;
  readonly quick: boolean;
  readonly seed: number;
  readonly environment: Environment;
  readonly engines: readonly Probed[];
  readonly lines: readonly Line[];
  readonly cases: readonly CaseResult[];
}

/**
 * With --only, the other cases of an earlier report are kept, if it is of the same commit, machine
 * and options: a full run takes an hour, and one case may have to be run again.
 */
function withEarlier(report: Report): Report {
  if (only.length === 0 || outDirectory === undefined) return report;
  const file = join(outDirectory, 'bench.json');
  if (!existsSync(file)) return report;
  const earlier: Report = JSON.parse(readFileSync(file, 'utf8'));
  const kind = ({ format, quick: tiny, seed: from, environment, engines }: Report): string =>
    JSON.stringify([format, tiny, from, environment, engines]);
  if (kind(earlier) !== kind(report)) return report;
  const order = casesOf(sizes, quick).map(({ name }) => name);
  const fresh = new Set(report.cases.map(({ name }) => name));
  const merged = <T>(old: readonly T[], now: readonly T[], nameOf: (item: T) => string): T[] =>
    [...old.filter((item) => !fresh.has(nameOf(item))), ...now].toSorted(
      (a, b) => order.indexOf(nameOf(a)) - order.indexOf(nameOf(b)),
    );
  return {
    ...report,
    lines: merged(earlier.lines, report.lines, (line) => line.case),
    cases: merged(earlier.cases, report.cases, ({ name }) => name),
  };
}

function captionOf({ environment, startedAt }: Report): string {
  const { node, cpuCount, cpu, fileSystem, commit } = environment;
  return `Node ${node}, ${cpuCount} x ${cpu}, ${fileSystem}, ${startedAt.slice(0, 10)}, commit ${commit}`;
}

/** The tables: engines in one, primitives in another, then the configurations behind them. */
function textOf({ engines, lines }: Report): string {
  const present = engines.filter(({ version }) => version !== undefined).map(({ name }) => name);
  const tables: [Contender[], Line[]][] = [
    [present, lines.filter((line) => line.case !== 'ring' && !line.case.startsWith('as-of'))],
    [['as-of', 'now'], lines.filter((line) => line.case.startsWith('as-of'))],
    [['ring', 'message-port'], lines.filter((line) => line.case === 'ring')],
  ];
  const printed = tables
    .filter(([, part]) => part.length > 0)
    .map(([columns, part]) => `${tableOf(part, columns)}\n\n`);
  return `${printed.join('')}${detailsOf(lines)}\n`;
}

/** The overwrite loop beside each round: the mean of before and after. */
function bareLoops(limits: readonly LimitRun[]): readonly number[] {
  const rates = limits.map(({ overwrite }) => perSecond(overwrite));
  return rates.slice(1).map((after, round) => (rates[round] + after) / 2);
}

mkdirSync(dataRoot, { recursive: true });
removeLeftovers();
const base = join(dataRoot, String(process.pid));
mkdirSync(base);
try {
  compileBench(join(root, 'bench'), join(base, 'js'));
  const runner = new Runner(base, sizes.childSecondsMax);
  const environment = environmentOf(root, base);
  const startedAt = new Date().toISOString();
  say(
    `Node ${environment.node}, ${environment.cpuCount} x ${environment.cpu}, ` +
      `${environment.memoryMiB} MiB, ${environment.platform}, ${environment.fileSystem}, ` +
      `commit ${environment.commit}, seed ${seed}${quick ? ', quick: no figure means anything' : ''}`,
  );

  const drivers: Driver[] = [];
  const engines: Probed[] = [];
  for (const driver of DRIVERS) {
    if (chosenEngines.length > 0 && !chosenEngines.includes(driver.name)) continue;
    const found = await driver.probe(root);
    engines.push({ name: driver.name, ...found });
    if ('version' in found) {
      drivers.push(driver);
      say(`  ${driver.name} ${found.version}`);
    } else {
      say(`  ${driver.name} is absent: ${found.absent}`);
    }
  }

  const rounds = options.rounds === undefined ? undefined : Number(options.rounds);
  const cases = casesOf(sizes, quick)
    .filter(({ name }) => only.length === 0 || only.some((start) => name.startsWith(start)))
    .map((subject) => (rounds === undefined ? subject : { ...subject, rounds }))
    .map((subject) =>
      options.rows === undefined || !SIZED_SUITES.has(subject.suite)
        ? subject
        : { ...subject, rowCount: Number(options.rows) },
    );

  const results: CaseResult[] = [];
  const lines: Line[] = [];
  let prepared: Map<Contender, string> | undefined;
  for (const subject of cases) {
    const skipped = reasonToSkip(subject, environment);
    if (skipped !== undefined) {
      say(`\n${subject.name}: ${skipped}`);
      results.push({
        name: subject.name,
        title: subject.title,
        durability: subject.durability,
        inFlight: subject.inFlight,
        rowCount: subject.rowCount,
        rounds: 0,
        skipped,
        limits: [],
        sweeps: [],
      });
      continue;
    }
    if (subject.prepared) prepared ??= await prepareStores(runner, subject, drivers);
    const result = await runCase(runner, subject, drivers, prepared ?? new Map());
    results.push(result);
    if (result.sweeps.some(({ failures }) => failures.length > 0)) process.exitCode = 1;
    const ours = subject.primitives[0] ?? 'tidemark';
    for (const figure of subject.figures) {
      lines.push(lineOf(subject, figure, result.sweeps, ours, bareLoops(result.limits)));
    }
  }

  const report = withEarlier({
    format: REPORT_FORMAT,
    startedAt,
    quick,
    seed,
    environment,
    engines,
    lines,
    cases: results,
  });
  const text = textOf(report);
  say(`\n${text}`);
  if (outDirectory !== undefined) {
    mkdirSync(outDirectory, { recursive: true });
    const write = (name: string, content: string): void => {
      writeFileSync(join(outDirectory, name), content);
    };
    write('bench.json', `${JSON.stringify(report, null, 1)}\n`);
    write('bench.txt', `${captionOf(report)}\n\n${text}`);
    write('bench.svg', pictureOf(report.lines, captionOf(report)));
    say('written: bench.json, bench.txt, bench.svg');
  }
} finally {
  rmSync(base, { recursive: true, force: true });
}
