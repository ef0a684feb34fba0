/**
 * npm run crash-states: the soak of the crash harness.
 *
 *   --states=N       crash states to check; default 20,000. Lives of all workloads, seed after seed. Of
 *                    those that leave the same bytes and owe the same, one is opened; both are counted
 *   --seed=N         the first seed; default 1
 *   --workload=NAME  only this one
 *   --moment=N --state=N   only these: the line that a failure prints
 *   --keep-going     a failure is told and the next life is led
 *   --elide          instead: every place that writes, syncs or renames switched off in turn
 *   --flips          instead: every bit of a small store, every cut, exchange and zeroed sector
 *   --step=N         with --flips: only every Nth bit and byte, from the --seed'th on
 *   --kind=NAME      with --flips: only exchanges, sectors, cuts or bits
 *   --file=TEXT      with --flips: only bits of files whose path has this in it
 *   --whole          with --flips: every bit opened as a whole, not first by the piece that reads it
 *   --site=TEXT      with --elide: only places whose name has this in it
 *   --fail-syncs     instead: every sync of every life fails, as on ext4 and as on Btrfs
 */
import { parseArgs } from 'node:util';
import { bitFlips, cuts, exchanges, judge, makeStore, sectors } from './damage.ts';
import type { Damage } from './damage.ts';
import { elide, sitesOf } from './elide.ts';
import { FlipJudge } from './flips.ts';
import { CrashFailure, enumerate } from './enumerate.ts';
import { MANNERS, failSync } from './fail.ts';
import { WORKLOADS } from './workloads.ts';

const { values } = parseArgs({
  options: {
    states: { type: 'string', default: '20000' },
    seed: { type: 'string', default: '1' },
    workload: { type: 'string' },
    moment: { type: 'string' },
    state: { type: 'string' },
    step: { type: 'string', default: '1' },
    kind: { type: 'string' },
    site: { type: 'string', default: '' },
    file: { type: 'string', default: '' },
    whole: { type: 'boolean', default: false },
    'keep-going': { type: 'boolean', default: false },
    elide: { type: 'boolean', default: false },
    flips: { type: 'boolean', default: false },
    'fail-syncs': { type: 'boolean', default: false },
  },
});

function count(name: string, text: string): number {
  const n = Number(text);
  if (Number.isSafeInteger(n) && n >= 0) return n;
  console.error(`--${name} is a count, not ${text}`);
  process.exit(2);
}

const seed = count('seed', values.seed);
const statesMax = count('states', values.states);
const step = Math.max(1, count('step', values.step));
const moment = values.moment === undefined ? undefined : count('moment', values.moment);
const state = values.state === undefined ? undefined : count('state', values.state);
const workloads = WORKLOADS.filter(({ name }) => name === (values.workload ?? name));
if (workloads.length === 0) {
  console.error(`--workload is one of ${WORKLOADS.map(({ name }) => name).join(', ')}`);
  process.exit(2);
}
const startedAt = Date.now();
/** Of bits that a piece of the engine judges alone one in so many is opened as a whole too. */
const WHOLE_EVERY = 101;

function rate(n: number): string {
  const seconds = (Date.now() - startedAt) / 1_000;
  return `${n} in ${seconds.toFixed(1)} s, ${(n / seconds).toFixed(0)}/s`;
}

function tell(error: unknown): void {
  for (let at: unknown = error; at instanceof Error; at = at.cause) console.error(at.stack);
}

/** A promise that nobody waits for any more settles in its turn. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

async function crashStates(): Promise<number> {
  const choice = { subsetsMax: 6, samples: 16, regularMax: 6 };
  // States of one life are the same again and again, those of two lives hardly ever.
  let seen = new Set<string>();
  let states = 0;
  let different = 0;
  let failures = 0;
  let toldAt = Date.now();
  const onState = (isNew: boolean): void => {
    states++;
    if (isNew) different++;
    if (Date.now() - toldAt < 30_000) return;
    toldAt = Date.now();
    console.log(`${rate(states)} states, ${different} different`);
  };
  const isOne = moment !== undefined;
  for (let s = seed; states < statesMax && (!isOne || s === seed); s++) {
    for (const workload of workloads) {
      const isEnough = (): boolean => states >= statesMax;
      seen = new Set();
      try {
        await enumerate(workload, s, { choice, moment, state, seen, onState, isEnough });
      } catch (error) {
        if (!(error instanceof CrashFailure)) throw error;
        failures++;
        console.error(error.message);
        if (!values['keep-going']) {
          tell(error);
          return failures;
        }
      }
      await turn();
    }
  }
  console.log(`${rate(states)} crash states, ${different} different, ${failures} failures`);
  return failures;
}

async function elisions(): Promise<number> {
  const seeds = [seed, seed + 1, seed + 2];
  const sites = await sitesOf(workloads, seeds);
  const wanted = [...sites].filter(([site]) => site.includes(values.site));
  console.log(`${wanted.length} places; ${rate(sites.size)}`);
  let noticed = 0;
  for (const [site, lives] of wanted) {
    const result = await elide(site, lives, seeds, Math.max(50, statesMax));
    if (result.noticed !== undefined) noticed++;
    const word = result.noticed === undefined ? 'UNNOTICED' : 'noticed  ';
    console.log(`${word} ${site} (${result.states} states)`);
    if (result.noticed !== undefined) console.log(`            ${result.noticed.split('\n')[0]}`);
    await turn();
  }
  const seconds = ((Date.now() - startedAt) / 1_000).toFixed(0);
  console.log(`${noticed} of ${wanted.length} places noticed, ${seconds} s`);
  return wanted.length - noticed;
}

async function flips(): Promise<number> {
  const store = await makeStore();
  // An error for nearly each, of which hardly one is shown.
  Error.stackTraceLimit = 0;
  console.log(store.files.map((file) => `${file} ${store.disk.bytesOf(file)?.length}`).join('\n'));
  const kinds: [string, Iterable<Damage>][] = [
    ['exchanges', exchanges(store)],
    ['sectors', sectors(store, 1)],
    ['cuts', cuts(store, seed % step, step)],
    ['bits', bitFlips(store, seed % step, step, values.file)],
  ];
  let bad = 0;
  for (const [kind, damages] of kinds) {
    if ((values.kind ?? kind) !== kind) continue;
    const bits = kind === 'bits' ? new FlipJudge(store, values.whole ? 1 : WHOLE_EVERY) : undefined;
    const verdicts = { harmless: 0, detected: 0, torn: 0, crude: 0, silent: 0 };
    let done = 0;
    for (const damage of damages) {
      const { verdict, error } = bits?.judge(damage) ?? judge(store, damage);
      verdicts[verdict]++;
      if (verdict === 'silent' || verdict === 'crude') {
        if (bad++ < 20)
          console.error(`${verdict}: ${damage.what}: ${String(error).split('\n')[0]}`);
      }
      if (++done % 256 === 0) await turn();
      if (done % 10_000 === 0) console.log(`${rate(done)} ${kind}, ${JSON.stringify(verdicts)}`);
    }
    const opened = bits === undefined ? '' : `, ${bits.wholes} opened as a whole`;
    console.log(`${kind}: ${done}, ${JSON.stringify(verdicts)}${opened}`);
  }
  console.log(`${bad} bad`);
  return bad;
}

async function failSyncs(): Promise<number> {
  let done = 0;
  let failures = 0;
  for (const workload of workloads) {
    for (const fault of MANNERS) {
      for (let n = 0; ; n++) {
        try {
          if (!(await failSync(workload, seed, n, fault))) break;
        } catch (error) {
          failures++;
          console.error(`${workload.name}, seed ${seed}, sync ${n}, ${JSON.stringify(fault)}`);
          tell(error);
        }
        done++;
        await turn();
      }
    }
  }
  console.log(`${rate(done)} failed syncs, ${failures} failures`);
  return failures;
}

let failures: number;
if (values.elide) failures = await elisions();
else if (values.flips) failures = await flips();
else if (values['fail-syncs']) failures = await failSyncs();
else failures = await crashStates();
process.exitCode = failures > 0 ? 1 : 0;
