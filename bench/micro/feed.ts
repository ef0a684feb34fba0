/**
 * Feeds against what they follow, in one process: rows/s of one live follower against commits/s without
 * one, and rows/s of catching up against a full scan over `entries()` of the same rows; each with and
 * without old rows. 4,096 commits of one put are in flight (key 16 bytes, value 100, of `KEYS` keys), and
 * every live figure stands between two of commits alone, of which it takes the mean. Run it with
 * `npm run build && node --import tsx bench/micro/feed.ts [seconds] [rounds] [keys]`; goals: 0.8 live, 0.5
 * catching up. Without a quiet machine look at the CPU of the caller's thread, told where /proc tells it.
 *
 * Not measured: a cold disk (what is caught up with is in the page cache), several followers, which share
 * reads and decoding, followers on other threads.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { open } from '../../actors/index.ts';
import type { Collection, Feed, Update } from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';

const SECONDS = Number(process.argv[2] ?? 2);
const ROUNDS = Number(process.argv[3] ?? 3);
const IN_FLIGHT = 4_096;
/** Prime to the step between keys: all come before one comes again. */
const KEYS = Number(process.argv[4] ?? 1_000_003);
const STEP = 7_919;
const CATCH_UP_ROWS = 400_000;
const VALUE_BYTES = 100;

type Rows = Collection<string, string>;
type Rate = { readonly perSecond: number; readonly cpuUs: number };

/** On the caller's thread since it began; NaN where nobody tells. */
function cpuUs(): number {
  try {
    const line = readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8');
    return Number(line.split(' ', 1)[0]) / 1_000;
  } catch {
    return NaN;
  }
}

function rateOf(count: number, startedAtMs: number, startedCpuUs: number): Rate {
  const perSecond = (count / (performance.now() - startedAtMs)) * 1_000;
  return { perSecond, cpuUs: (cpuUs() - startedCpuUs) / count };
}

let committed = 0;

async function commits(rows: Rows): Promise<Rate> {
  const startedAtMs = performance.now();
  const startedCpuUs = cpuUs();
  const endAtMs = startedAtMs + SECONDS * 1_000;
  const first = committed;
  const lane = async (): Promise<void> => {
    while (performance.now() < endAtMs) {
      const n = committed++;
      // No value comes twice: what changes nothing is not told.
      await rows.put(`key${(n * STEP) % KEYS}`.padEnd(16, '.'), `${n}`.padEnd(VALUE_BYTES, 'v'));
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
  return rateOf(committed - first, startedAtMs, startedCpuUs);
}

function feedOf(
  rows: Rows,
  old: boolean,
  after?: number,
): Feed<Update<string, string | undefined>> {
  const place = after === undefined ? {} : { after };
  return old ? rows.changes(place) : rows.changes({ ...place, old: false });
}

/** Commits with a follower; what it was given in the same time. */
async function live(rows: Rows, old: boolean): Promise<{ commits: Rate; told: number }> {
  const feed = feedOf(rows, old);
  let told = 0;
  const reading = (async () => {
    for await (const batch of feed.batches()) {
      for (const { updates } of batch) for (const { diff } of updates) if (diff > 0) told++;
    }
  })();
  const startedAtMs = performance.now();
  const rate = await commits(rows);
  const perSecond = (told / (performance.now() - startedAtMs)) * 1_000;
  await feed.return();
  await reading;
  return { commits: rate, told: perSecond };
}

async function catchUp(rows: Rows, old: boolean, last: number): Promise<Rate> {
  const feed = feedOf(rows, old, -1);
  const startedAtMs = performance.now();
  const startedCpuUs = cpuUs();
  let told = 0;
  for await (const batch of feed.batches()) {
    for (const { updates } of batch) for (const { diff } of updates) if (diff > 0) told++;
    if (told >= CATCH_UP_ROWS || feed.offset >= last) break;
  }
  return rateOf(told, startedAtMs, startedCpuUs);
}

function scan(rows: Rows): Rate {
  const startedAtMs = performance.now();
  const startedCpuUs = cpuUs();
  let count = 0;
  for (const _ of rows.entries()) count++;
  return rateOf(count, startedAtMs, startedCpuUs);
}

function tell(name: string, { perSecond, cpuUs: cpu }: Rate, more = ''): void {
  const rate = `${Math.round(perSecond / 1_000)} k/s`.padStart(10);
  process.stdout.write(`${name.padEnd(30)}${rate}  ${cpu.toFixed(2)} us of CPU each${more}\n`);
}

const directory = mkdtempSync(join(process.env['BENCH_DATA'] ?? tmpdir(), 'feed-'));
const best = new Map<string, number>();

function note(name: string, ratio: number): string {
  best.set(name, Math.max(best.get(name) ?? 0, ratio));
  return `  ratio ${ratio.toFixed(2)}`;
}

try {
  const engine = await open(directory, { memoryBytes: 256 * MiB });
  const rows = await engine.collection('rows', { key: 'utf8', value: 'utf8', history: Infinity });
  tell('warming up', await commits(rows));
  for (let round = 0; round < ROUNDS; round++) {
    let before = await commits(rows);
    for (const old of [false, true]) {
      const name = `live, old: ${old}`;
      const { commits: rate, told } = await live(rows, old);
      const after = await commits(rows);
      const alone = (before.perSecond + after.perSecond) / 2;
      tell('commits alone', { perSecond: alone, cpuUs: (before.cpuUs + after.cpuUs) / 2 });
      const kept = `, ${Math.round(told / 1_000)} k/s followed`;
      tell(name, rate, kept + note(name, told / alone));
      before = after;
    }
  }
  await engine.flush();
  const last = engine.upper - 1;
  for (let round = 0; round < ROUNDS; round++) {
    const whole = scan(rows);
    tell('scan', whole);
    for (const old of [false, true]) {
      const name = `catching up, old: ${old}`;
      const rate = await catchUp(rows, old, last);
      tell(name, rate, note(name, rate.perSecond / whole.perSecond));
    }
  }
  process.stdout.write(`followers: ${JSON.stringify(engine.stats().feeds)}\n`);
  for (const [name, ratio] of best) process.stdout.write(`best ${name}: ${ratio.toFixed(2)}\n`);
  await engine.close();
} finally {
  rmSync(directory, { recursive: true, force: true });
}
