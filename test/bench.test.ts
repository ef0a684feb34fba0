/**
 * The bench, kept from rotting: a smoke run of every suite with whatever engines are installed, and
 * the arithmetic behind its table. The instruments are tested for what they promise, not for speed.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { DRIVERS } from '../bench/engines/all.ts';
import { waves } from '../bench/engines/engine.ts';
import { LoopDelay } from '../bench/measure.ts';
import { casesOf, FULL, QUICK, type Case } from '../bench/plan.ts';
import { lineOf, short, tableOf, type Sweep } from '../bench/report.ts';
import { Digest, expectedDigest, Rows } from '../bench/rows.ts';
import { TimedLoop } from '../bench/suites/loop.ts';
import type { Contender, Outcome } from '../bench/task.ts';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const scratch = mkdtempSync(join(tmpdir(), 'tidemark-bench-test-'));
after(() => rmSync(scratch, { recursive: true, force: true }));

interface Report {
  format: number;
  environment: { fileSystem: string; volatile: boolean };
  engines: { name: string; version?: string; absent?: string }[];
  cases: { name: string; skipped?: string; sweeps: Sweep[] }[];
  lines: { case: string; figure: string; standings: { contender: string }[] }[];
}

test('a quick run completes every suite with the engines that are there', async () => {
  const out = join(scratch, 'out');
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', 'tsx', join(root, 'bench', 'main.ts'), '--quick', `--out=${out}`],
    { cwd: root, timeout: 1_200_000, killSignal: 'SIGKILL' },
  );
  assert.match(stdout, /written: bench.json, bench.txt, bench.svg/);

  const report: Report = JSON.parse(readFileSync(join(out, 'bench.json'), 'utf8'));
  assert.equal(report.format, 1);
  assert.deepEqual(
    report.engines.map(({ name }) => name),
    DRIVERS.map(({ name }) => name),
  );
  const planned = casesOf(QUICK, true);
  assert.deepEqual(
    report.cases.map(({ name }) => name),
    planned.map(({ name }) => name),
  );
  for (const { name, version, absent } of report.engines) {
    assert.ok((version === undefined) !== (absent === undefined), `${name} is there or is not`);
    if (absent !== undefined) assert.match(stdout, new RegExp(`${name} is absent: `));
  }

  const present = report.engines.filter(({ version }) => version !== undefined);
  for (const [i, result] of report.cases.entries()) {
    if (result.skipped !== undefined) continue;
    for (const sweep of result.sweeps) {
      assert.deepEqual(sweep.failures, [], `${result.name} of ${sweep.contender}`);
      for (const outcome of sweep.outcomes) checkOutcome(outcome);
    }
    const { suite, durability, primitives } = planned[i];
    const expected =
      primitives.length > 0
        ? primitives
        : present
            .map(({ name }) => DRIVERS.find((driver) => driver.name === name)!)
            .filter((driver) => driver.configurations(suite, durability).length > 0)
            .map(({ name }) => name);
    assert.deepEqual(
      result.sweeps.map(({ contender }) => contender),
      expected,
      result.name,
    );
    const lines = report.lines.filter((line) => line.case === result.name);
    assert.equal(lines.length, planned[i].figures.length);
    for (const line of lines) {
      assert.deepEqual(
        line.standings.map(({ contender }) => contender),
        expected,
        `${line.case}: ${line.figure}`,
      );
    }
  }
  assert.match(readFileSync(join(out, 'bench.svg'), 'utf8'), /^<svg [^]*<\/svg>\n$/);
});

function checkOutcome(outcome: Outcome | undefined): void {
  assert.ok(outcome !== undefined, 'an outcome');
  assert.ok(outcome.operations > 0, 'operations');
  assert.ok(outcome.seconds > 0, 'wall time');
  assert.ok(outcome.cpuSeconds > 0, 'processor time');
  assert.equal(outcome.digest, outcome.digestExpected);
  for (const [name, value] of Object.entries(outcome.figures)) {
    // JSON has no NaN: a figure that could not be taken is null.
    assert.equal(typeof value, 'number', name);
  }
}

test('without peers the bench says so and runs with what is left', async () => {
  const probed = await Promise.all(DRIVERS.map((driver) => driver.probe(scratch)));
  for (const found of probed) {
    assert.ok('absent' in found, 'absent');
    assert.match(found.absent, /npm run (bench:peers|build)$/);
    assert.ok(!found.absent.includes('\n'), 'one line');
  }
});

test('the full plan asks for what the bench is for', () => {
  const cases = new Map(casesOf(FULL, false).map((subject) => [subject.name, subject]));
  assert.deepEqual(
    [...cases.keys()].filter((name) => name.startsWith('durable')),
    ['durable-1', 'durable-16', 'durable-256', 'durable-4096'],
  );
  const load = cases.get('load-lazy')!;
  assert.ok(load.rowCount * 116 >= 20 * (16 << 20), 'at least twenty memtables');
  assert.equal(load.batchRows, 1000);
  assert.ok(cases.get('point-all')!.seconds >= 5);
  assert.equal(FULL.openCount, 20);
  assert.deepEqual(
    DRIVERS.map((driver) => [
      driver.name,
      driver.configurations('load', 'lazy').length > 0,
      driver.configurations('load', 'never').length > 0,
    ]),
    [
      ['tidemark', true, false],
      ['classic-level', false, true],
      ['lmdb', true, true],
      ['better-sqlite3', true, true],
    ],
  );
});

test('rows are the same for the same seed, and their keys are unique', () => {
  const rows = new Rows(7);
  const again = new Rows(7);
  const keys = new Set<string>();
  for (let row = 0; row < 20_000; row++) {
    const key = rows.key(row);
    assert.deepEqual(key, again.key(row));
    assert.deepEqual(rows.value(row), again.value(row));
    keys.add(key.toString('hex'));
  }
  assert.equal(keys.size, 20_000);
  assert.notEqual(expectedDigest(rows, 100), expectedDigest(new Rows(8), 100));
});

test('a digest does not depend on order, and notices a missing or changed row', () => {
  const rows = new Rows(1);
  const expected = expectedDigest(rows, 3);
  const digestOf = (list: readonly number[]): string => {
    const digest = new Digest();
    for (const row of list) digest.add(rows.key(row), rows.value(row));
    return digest.toString();
  };
  assert.equal(digestOf([2, 0, 1]), expected);
  assert.notEqual(digestOf([0, 1]), expected);
  assert.notEqual(digestOf([0, 1, 3]), expected);
});

test('a blocked event loop counts for everybody who would have waited', async () => {
  const delay = new LoopDelay();
  delay.start();
  const untilMs = performance.now() + 120;
  while (performance.now() < untilMs);
  // Stopped before the timer could run: the visitors of the blocked time count all the same.
  const { p99Ms, maxMs } = delay.stop();
  assert.ok(maxMs >= 110, `max ${maxMs}`);
  assert.ok(p99Ms >= 100, `p99 ${p99Ms}`);
});

test('the closed loop never has more in flight than it says, and counts only its window', async () => {
  const loop = new TimedLoop(8, 0.01, 0.03);
  let largest = 0;
  await waves(loop, (wave) => {
    largest = Math.max(largest, wave.length);
    return new Promise((resolve) => {
      setImmediate(resolve);
    });
  });
  assert.equal(largest, 8);
  assert.equal(loop.take(), -1);
  const { operations, seconds } = loop.counted();
  assert.ok(operations > 0, 'counted');
  assert.ok(operations < loop.taken, 'the warm-up is not counted');
  assert.ok(seconds >= 0.03, `${seconds} s`);
});

function outcomeOf(operations: number, cpuSeconds: number): Outcome {
  return { operations, seconds: 1, cpuSeconds, figures: {}, digest: '', digestExpected: '' };
}

function sweepOf(contender: Contender, name: string, counts: boolean, rates: number[]): Sweep {
  return {
    contender,
    configuration: { name, counts, options: {} },
    outcomes: rates.map((rate) => outcomeOf(rate, 2)),
    failures: [],
  };
}

test('the ratio is taken round by round against the best counting peer', () => {
  const subject = casesOf(FULL, false).find(({ name }) => name === 'durable-1')!;
  const sweeps = [
    sweepOf('tidemark', 'defaults', true, [100, 200, 300]),
    sweepOf('tidemark', 'by hand', false, [9000]),
    sweepOf('lmdb', 'slow', true, [10]),
    sweepOf('lmdb', 'fast', true, [50, 100, 300]),
    sweepOf('classic-level', 'put', true, [40, 40, 40]),
    sweepOf('classic-level', 'by hand', false, [5000]),
  ];
  const line = lineOf(subject, subject.figures[0], sweeps, 'tidemark', [250, 250, 250]);
  assert.equal(line.bestPeer, 'lmdb');
  assert.deepEqual(line.ratio, { median: 2, min: 1, max: 2, count: 3 });
  assert.deepEqual(line.ofBareLoop, { median: 0.8, min: 0.4, max: 1.2, count: 3 });
  assert.equal(line.reached, true);
  assert.deepEqual(
    line.standings.map(({ contender, configuration }) => [contender, configuration]),
    [
      ['tidemark', 'defaults'],
      ['lmdb', 'fast'],
      ['classic-level', 'put'],
    ],
  );
  assert.equal(line.beside.length, 2);

  const slowDisk = lineOf(subject, subject.figures[0], sweeps, 'tidemark', [1000, 1000, 1000]);
  assert.equal(slowDisk.reached, false, 'below 0.6 of the bare loop');
  const alone = lineOf(subject, subject.figures[0], sweeps.slice(0, 1), 'tidemark', []);
  assert.equal(alone.reached, undefined, 'nothing to compare with');
});

function timed(ms: number): Outcome {
  return { ...outcomeOf(1, 1), figures: { openMedianMs: ms } };
}

test('less is better where it is', () => {
  const subject: Case = casesOf(FULL, false).find(({ name }) => name === 'open')!;
  const sweeps: Sweep[] = [
    { ...sweepOf('tidemark', 'defaults', true, []), outcomes: [timed(10), timed(30), timed(12)] },
    { ...sweepOf('lmdb', 'a', true, []), outcomes: [timed(5), timed(6), timed(4)] },
    { ...sweepOf('lmdb', 'b', true, []), outcomes: [timed(3), timed(2), timed(3)] },
  ];
  const line = lineOf(subject, subject.figures[0], sweeps, 'tidemark', []);
  assert.equal(line.reached, true);
  assert.equal(line.standings[1]?.configuration, 'b');
  const table = tableOf([line], ['tidemark', 'lmdb']);
  assert.match(table, /open: time +ms +12\.0 ±150% +3\.00 ±33% +4\.00x/);
});

test('figures are printed with three digits', () => {
  assert.deepEqual(
    [0.1234, 5.678, 12.34, 123.4, 1234, 12_345, 999_600, 1_234_567, Number.NaN].map(short),
    ['0.12', '5.68', '12.3', '123', '1234', '12.3 k', '1.00 M', '1.23 M', '-'],
  );
});
