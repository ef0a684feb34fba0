/**
 * The commands that take something away from a store: truncate and repair. They say what will vanish, and go on
 * only when that is confirmed: by --yes, or by typing the offset that will be the newest. What goes is kept in
 * quarantine/. Called by bin/tidemark.ts.
 */
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { open } from '../actors/engine.ts';
import type { NodeStorage } from '../actors/node-storage.ts';
import { TidemarkError } from '../core/base/errors.ts';
import { beginAnew, cutStore, planAnew, planCut } from '../core/store/truncate.ts';
import {
  EXIT_INTERRUPTED,
  EXIT_OK,
  UsageError,
  countOf,
  idOf,
  interrupt,
  isCopied,
  newProgress,
  run,
  storageOf,
  withLock,
  write,
  writeJson,
} from './work.ts';
import type { Flags } from './work.ts';

type Report = {
  /** The newest transaction that stays. */
  readonly offset: number;
  /** Offsets [from, to) are gone. */
  readonly from: number;
  readonly to: number;
  readonly quarantine: readonly string[];
};

export async function truncate([directory]: readonly string[], flags: Flags): Promise<number> {
  const to = countOf(flags, 'to');
  if (to === undefined) throw new UsageError('truncate needs --to');
  return dropAfter(directory, flags, to, false);
}

export async function repair([directory]: readonly string[], flags: Flags): Promise<number> {
  const to = countOf(flags, 'drop-after');
  const isLossAccepted = flags['accept-log-loss'] === true;
  if ((to === undefined) === !isLossAccepted) {
    throw new UsageError('repair needs --drop-after or --accept-log-loss, one of them');
  }
  return to === undefined ? acceptLogLoss(directory, flags) : dropAfter(directory, flags, to, true);
}

async function dropAfter(
  directory: string,
  flags: Flags,
  to: number,
  tolerate: boolean,
): Promise<number> {
  return change(directory, flags, async (storage) => {
    const progress = newProgress();
    const plan = await run(planCut(storage, to, tolerate, idOf, progress), progress);
    if (plan === undefined) return undefined;
    const { offset, upper } = plan;
    const none = { offset, from: offset + 1, to: offset + 1, quarantine: [] };
    const isSound = !tolerate && upper === offset + 1;
    if (isSound) return none;
    const what =
      upper === offset + 1
        ? `whatever lies behind offset ${offset}`
        : `offsets ${offset + 1} to ${upper - 1}, ${upper - offset - 1} transactions`;
    await confirm(flags, `${directory}: ${what} will be gone`, offset);
    const quarantine = await run(cutStore(storage, plan, progress), progress);
    return quarantine === undefined ? undefined : { ...none, to: upper, quarantine };
  });
}

async function acceptLogLoss(directory: string, flags: Flags): Promise<number> {
  return change(directory, flags, async (storage) => {
    const progress = newProgress();
    const plan = await run(planAnew(storage, progress), progress);
    if (plan === undefined) return undefined;
    const { at, logUpper } = plan;
    const offset = at.upper - 1;
    const what =
      `the log of offsets ${logUpper} to ${offset} is lost and what there is of it will be set aside; ` +
      'the rows are all in parts';
    await confirm(flags, `${directory}: ${what}`, offset);
    const quarantine = await run(beginAnew(storage, plan, progress), progress);
    if (quarantine === undefined) return undefined;
    return { offset, from: logUpper, to: at.upper, quarantine };
  });
}

/** Under the lock; then the store is opened once, which brings it to an end. */
async function change(
  directory: string,
  flags: Flags,
  work: (storage: NodeStorage) => Promise<Report | undefined>,
): Promise<number> {
  const storage = storageOf(directory);
  const breakLock = isCopied(storage, directory);
  const report = await withLock(storage, directory, false, () => work(storage));
  if (report === undefined) return EXIT_INTERRUPTED;
  if (report.quarantine.length > 0) {
    const engine = await open(directory, { createIfMissing: false, threads: 0, breakLock });
    await engine.close();
  }
  if (flags['json'] === true) writeJson({ directory: resolve(directory), ...report });
  else write(printed(directory, report));
  return EXIT_OK;
}

function printed(directory: string, { offset, from, to, quarantine }: Report): string {
  if (quarantine.length === 0) return `${directory}: ends at offset ${offset} already\n`;
  const gone = to > from ? `; offsets ${from} to ${to - 1} are gone` : '';
  return `${directory}: ends at offset ${offset}${gone}; set aside: ${quarantine.join(', ')}\n`;
}

async function confirm(flags: Flags, what: string, offset: number): Promise<void> {
  if (flags['yes'] === true) return;
  process.stderr.write(`${what}.\nThe newest offset will be ${offset}. Type it to go on: `);
  const answer = await lineOf();
  process.stderr.write('\n');
  if (answer?.trim() === `${offset}`) return;
  throw new TidemarkError('TIDEMARK_HELD', 'not confirmed: nothing is changed');
}

function lineOf(): Promise<string | undefined> {
  return new Promise((done) => {
    const lines = createInterface({ input: process.stdin });
    lines.once('line', (line) => {
      done(line);
      lines.close();
    });
    lines.once('close', () => done(undefined));
    interrupt.signal.addEventListener('abort', () => lines.close());
  });
}
