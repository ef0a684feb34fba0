/**
 * The explorer by hand:
 *
 *   node --import tsx test/explorer/run.ts [--deep] [--only=part of a name] [--replay=00101]
 *
 * Runs the scripts, the large ones too with --deep, and prints how many interleavings each has. With
 * --replay, runs one schedule of one script (thread numbers, one a step) and prints its steps.
 */
import { CASES } from './scripts/index.ts';

function option(name: string): string | undefined {
  const prefix = `--${name}=`;
  return process.argv.find((arg) => arg.startsWith(prefix))?.slice(prefix.length);
}

const only = option('only') ?? '';
const schedule = option('replay');
const deep = process.argv.includes('--deep');
const chosen = CASES.filter((one) => one.name.includes(only) && (deep || !one.deep || only !== ''));

if (schedule !== undefined) {
  for (const one of chosen)
    console.log(`${one.name}\n${one.replay(schedule.split('').map(Number)).join('\n')}`);
} else {
  let failed = 0;
  const from = performance.now();
  for (const one of chosen) {
    const start = performance.now();
    let said = '';
    try {
      if (one.finds === undefined) {
        const { schedules, states, depth } = one.explore();
        said = `${String(states).padStart(8)} states  ${schedules.toPrecision(3).padStart(9)} schedules  ${String(depth).padStart(3)} deep`;
      } else {
        const failure = one.findFailure();
        said = `     found: ${failure.kind} in ${failure.schedule.length} steps`;
        if (failure.kind !== one.finds) throw failure;
      }
    } catch (error) {
      failed++;
      said = `FAILED\n${error instanceof Error ? error.message : String(error)}`;
    }
    const ms = performance.now() - start;
    console.log(`${ms.toFixed(0).padStart(6)} ms  ${one.name.padEnd(60)} ${said}`);
  }
  console.log(
    `${((performance.now() - from) / 1000).toFixed(1)} s, ${chosen.length} scripts, ${failed} failed`,
  );
  process.exitCode = failed === 0 ? 0 : 1;
}
