/**
 * What the log's checks cost at 4,096 transactions in flight: the client's CRC of the payload, the CRC of
 * the record header, the content chain, the claim of what was durable, the idle watermark. The engine as
 * it is built beside a copy of the build in which these are taken out (here alone: production code has no
 * such switch), a child each, turn by turn; synced, 16-byte random keys, 100-byte values. Run it with
 * `npm run build && node --import tsx bench/micro/log-checks.ts [seconds] [rounds]` (4, 5).
 * Goal: under 10 % of throughput.
 *
 * Three figures: the wall ratio of the medians (a busy disk moves it), the ratio of the CPU that a
 * transaction takes in the whole process, and the checks alone, in a loop over records of the size that
 * the run had, as a share of that CPU.
 */
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { crc32 } from '../../core/base/crc32.ts';
import { RECORD_COMMIT, chainAfter, encodeRecordHeader } from '../../core/log/record.ts';

const IN_FLIGHT = 4_096;
const KEY_BYTES = 16;
const VALUE_BYTES = 100;
const WARM_MS = 1_000;

const self: string = fileURLToPath(import.meta.url);
const repository: string = dirname(dirname(dirname(self)));

type Figures = {
  readonly transactions: number;
  readonly ms: number;
  readonly cpuMs: number;
  readonly records: number;
  readonly logBytes: number;
};

// ---------------------------------------------------------------- without the checks

type Removal = { readonly file: string; readonly what: string | RegExp; readonly by: string };

const REMOVALS: readonly Removal[] = [
  {
    file: 'actors/commit-line.js',
    what: 'record.payloadCrc = crc32(payload, 0, bytes)',
    by: 'record.payloadCrc = 0',
  },
  { file: 'core/log/record.js', what: /words\[w \+ 1\] = crc32Table\([^;]*;/, by: '' },
  { file: 'core/log/record.js', what: /words\[w \+ 9\] = [^;]*;/, by: '' },
  {
    file: 'core/log/record.js',
    what: /(export function chainAfter\([^)]*\) \{)/,
    by: '$1 return 0;',
  },
  { file: 'actors/durability.js', what: /(\n {4}#watermark\(writer\) \{)/, by: '$1 return false;' },
];

/** A copy of the build, and of where it finds its packages. */
function copyBuild(target: string, removals: readonly Removal[]): string {
  mkdirSync(target);
  cpSync(join(repository, 'dist'), join(target, 'dist'), { recursive: true });
  cpSync(join(repository, 'package.json'), join(target, 'package.json'));
  symlinkSync(join(repository, 'node_modules'), join(target, 'node_modules'));
  for (const { file, what, by } of removals) {
    const path = join(target, 'dist', file);
    const before = readFileSync(path, 'utf8');
    const after = before.replace(what, by);
    if (after === before) throw new Error(`${file} has no ${what}: the bench is behind the code`);
    writeFileSync(path, after);
  }
  return join(target, 'dist', 'actors', 'index.js');
}

// ---------------------------------------------------------------- a child

async function run(build: string, directory: string, ms: number): Promise<Figures> {
  const { open } = (await import(
    pathToFileURL(build).href
  )) as typeof import('../../actors/index.ts');
  const engine = await open(directory, {});
  const rows = await engine.collection('rows', { key: 'buffer', value: 'buffer' });
  const value = Buffer.alloc(VALUE_BYTES, 0x76);
  const key = Buffer.alloc(KEY_BYTES);
  let done = 0;
  let isOver = false;
  let state = 1;
  const callers = Array.from({ length: IN_FLIGHT }, async () => {
    while (!isOver) {
      for (let i = 0; i < KEY_BYTES; i += 4) {
        state = Math.imul(state ^ (state >>> 15), 0x2c1b_3c6d) + 0x9e37_79b9;
        key.writeInt32LE(state | 0, i);
      }
      await rows.put(key, value);
      done++;
    }
  });
  await new Promise((resolve) => setTimeout(resolve, WARM_MS));
  const before = { done, at: performance.now(), cpu: process.cpuUsage(), log: engine.stats().log };
  await new Promise((resolve) => setTimeout(resolve, ms));
  const { user, system } = process.cpuUsage(before.cpu);
  const { log } = engine.stats();
  const figures = {
    transactions: done - before.done,
    ms: performance.now() - before.at,
    cpuMs: (user + system) / 1_000,
    records: sum(log.records) - sum(before.log.records),
    logBytes: log.batchBytes.sum - before.log.batchBytes.sum,
  };
  isOver = true;
  await Promise.all(callers);
  await engine.close();
  return figures;
}

/** Of records, by why they closed. */
function sum(figures: Readonly<Record<string, number>>): number {
  return Object.values(figures).reduce((total, n) => total + n, 0);
}

// ---------------------------------------------------------------- the checks alone

/** Nanoseconds of CPU that the checks of one transaction take, in records of so many and of such a size. */
function checksAlone(perRecord: number, payloadBytes: number): number {
  const payloads = new Uint8Array(new SharedArrayBuffer(8 << 20)).fill(0x76);
  const staging = new ArrayBuffer(64);
  const words = new Uint32Array(staging);
  const bytes = new Uint8Array(staging);
  const rounds = Math.ceil(2e8 / payloadBytes);
  const places = Math.floor(payloads.length / payloadBytes);
  let best = Infinity;
  let chain = 1;
  for (let attempt = 0; attempt < 5; attempt++) {
    const before = process.cpuUsage();
    for (let i = 0; i < rounds; i++) {
      const at = (i % places) * payloadBytes;
      const crc = crc32(payloads, at, payloadBytes);
      const next = i * perRecord;
      // With it the writing of the header, which would be there without its CRC: rather too much than too little.
      encodeRecordHeader(
        words,
        bytes,
        0,
        7,
        i * 8,
        RECORD_COMMIT,
        0,
        payloadBytes,
        perRecord,
        next,
        1,
        crc,
        chain,
        next,
        1e12,
      );
      chain = chainAfter(chain, next, perRecord, 1, payloadBytes, crc, 1e12);
    }
    const { user, system } = process.cpuUsage(before);
    best = Math.min(best, ((user + system) * 1_000) / (rounds * perRecord));
  }
  return best;
}

// ---------------------------------------------------------------- the parent

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

function main(seconds: number, rounds: number): void {
  const root = mkdtempSync(join(process.env['BENCH_DATA'] ?? tmpdir(), 'log-checks-'));
  try {
    const builds = {
      checked: copyBuild(join(root, 'checked'), []),
      unchecked: copyBuild(join(root, 'unchecked'), REMOVALS),
    };
    const figures: Record<keyof typeof builds, Figures[]> = { checked: [], unchecked: [] };
    for (let round = 0; round < rounds; round++) {
      for (const who of ['checked', 'unchecked'] as const) {
        const store = join(root, 'store');
        const args = ['--import', 'tsx', self, 'child', builds[who], store, String(seconds * 1e3)];
        const child = spawnSync(process.execPath, args, { encoding: 'utf8', cwd: repository });
        if (child.status !== 0) throw new Error(`a child failed: ${child.stderr}`);
        const one = JSON.parse(child.stdout) as Figures;
        figures[who].push(one);
        const rate = one.transactions / one.ms;
        const cpuNs = (one.cpuMs * 1e6) / one.transactions;
        process.stdout.write(
          `${who.padEnd(9)} ${rate.toFixed(0)} k transactions/s, ${cpuNs.toFixed(0)} ns of CPU each, ` +
            `${(one.transactions / one.records).toFixed(0)} a record\n`,
        );
        rmSync(store, { recursive: true });
      }
    }
    const rate = (all: readonly Figures[]): number => median(all.map((f) => f.transactions / f.ms));
    const cpuNs = (all: readonly Figures[]): number =>
      median(all.map((f) => (f.cpuMs * 1e6) / f.transactions));
    const { checked, unchecked } = figures;
    const transactions = checked.reduce((total, f) => total + f.transactions, 0);
    const records = checked.reduce((total, f) => total + f.records, 0);
    const logBytes = checked.reduce((total, f) => total + f.logBytes, 0);
    const perRecord = Math.max(1, Math.round(transactions / records));
    const payloadBytes = Math.round(logBytes / records / 8) * 8;
    const alone = checksAlone(perRecord, payloadBytes);
    const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
    process.stdout.write(
      `throughput lost to the checks: ${percent(1 - rate(checked) / rate(unchecked))} (medians of ${rounds})\n` +
        `CPU a transaction: ${percent(cpuNs(checked) / cpuNs(unchecked) - 1)} more\n` +
        `the checks alone: ${alone.toFixed(0)} ns a transaction, ${percent(alone / cpuNs(checked))} of its CPU ` +
        `(records of ${perRecord} transactions, ${payloadBytes} bytes)\n`,
    );
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

const [first, second, third, fourth] = process.argv.slice(2);
if (first === 'child') {
  process.stdout.write(JSON.stringify(await run(second, third, Number(fourth))));
} else {
  main(Number(first ?? 4), Number(second ?? 5));
}
