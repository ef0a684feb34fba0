#!/usr/bin/env node
/**
 * The operator's command line: parses arguments, runs a command, and exits with a documented code
 * (docs/cli.md). A process of its own, one thread.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { TidemarkError } from '../core/base/errors.ts';
import { findingOf } from '../core/store/report.ts';
import { repair, truncate } from './cut.ts';
import { backup, checkpoint, restoreTo } from './keep.ts';
import { compress, dump, inspect, tail, verify } from './look.ts';
import {
  EXIT_CORRUPT,
  EXIT_DEFECT,
  EXIT_OK,
  EXIT_REFUSED,
  EXIT_UNREADABLE,
  EXIT_USAGE,
  UsageError,
  interrupt,
  write,
} from './work.ts';
import type { Flags } from './work.ts';

const HELP = `tidemark: looks after a store's directory.

these take no lock and change nothing, beside a live engine or in a copy:
  tidemark inspect DIR [--json]
      manifest, segments of the log, collections, lock holder
  tidemark verify DIR [--full] [--json]
      looks for damage; --full reads every block of every part too
  tidemark dump DIR [--from OFFSET] [--to OFFSET] [--tx] [--tolerate]
      records of the log, one JSON object a line; --to is the first offset left out;
      --tx: transactions with their operations; --tolerate: marks damage and goes on
  tidemark tail DIR [--follow] [--lines N] [--records]
      the last N transactions (10), then, with --follow, each new one until interrupted

this changes files, and nothing of what they say; safe beside a live engine:
  tidemark compress DIR [--json]
      compresses the segments of the log that are sealed and below the older checkpoint

these make a store in NEWDIR, which must be empty or not there:
  tidemark backup DIR NEWDIR [--json]
      all that is in the store; beside a live engine what is in parts and sealed segments
  tidemark restore --to OFFSET|TIME DIR... NEWDIR [--archive DIR]... [--json]
      as it was at an offset or a time (2026-01-31T12:00Z), from the store, or from
      backups and the log in all that is named

these change the store, and need its lock:
  tidemark checkpoint DIR [--json]
      opens it, moves all that is in the log into parts, closes it
  tidemark truncate DIR --to OFFSET [--yes] [--json]
      takes it back to an offset: all later transactions go, copies of them to quarantine/;
      asks for the offset to be typed, or --yes
  tidemark repair DIR --drop-after OFFSET | --accept-log-loss [--yes] [--json]
      for a store that does not open: the same where the log is damaged beyond the offset
      (CHECKSUM), or a new log where the old one ends below the parts (LOG_BEHIND_MANIFEST)

  --help, --version

exit codes
  0    done; verify: nothing is wrong
  1    verify: a torn tail, never acknowledged
  2    corruption
  3    unreadable: no such directory, not a store, another version's, a disk that fails
  4    refused: somebody has the store, the target is not empty, no such history,
       not confirmed
  64   wrong arguments
  70   a defect in tidemark: please report it
  130  interrupted
`;

type Option = { readonly type: 'boolean' | 'string'; readonly multiple?: boolean };

type Command = {
  readonly run: (directories: readonly string[], flags: Flags) => Promise<number>;
  readonly options: { readonly [name: string]: Option };
  /** How many directories it takes: their names, the last one for all that follow. */
  readonly takes: readonly string[];
  readonly takesMore?: boolean;
};

const YES = { type: 'boolean' } as const;
const TEXT = { type: 'string' } as const;
const TEXTS = { type: 'string', multiple: true } as const;

const COMMANDS: { readonly [name: string]: Command } = {
  inspect: { run: inspect, options: { json: YES }, takes: ['DIR'] },
  verify: { run: verify, options: { full: YES, json: YES }, takes: ['DIR'] },
  dump: {
    run: dump,
    options: { from: TEXT, to: TEXT, tx: YES, tolerate: YES },
    takes: ['DIR'],
  },
  tail: { run: tail, options: { follow: YES, lines: TEXT, records: YES }, takes: ['DIR'] },
  compress: { run: compress, options: { json: YES }, takes: ['DIR'] },
  backup: { run: backup, options: { json: YES }, takes: ['DIR', 'NEWDIR'] },
  checkpoint: { run: checkpoint, options: { json: YES }, takes: ['DIR'] },
  truncate: { run: truncate, options: { to: TEXT, yes: YES, json: YES }, takes: ['DIR'] },
  repair: {
    run: repair,
    options: { 'drop-after': TEXT, 'accept-log-loss': YES, yes: YES, json: YES },
    takes: ['DIR'],
  },
  restore: {
    run: restoreTo,
    options: { to: TEXT, archive: TEXTS, json: YES },
    takes: ['DIR', 'NEWDIR'],
    takesMore: true,
  },
};

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === '--help' || name === '-h' || name === 'help' || rest.includes('--help')) {
    write(HELP);
    return EXIT_OK;
  }
  if (name === '--version') {
    write(`${version()}\n`);
    return EXIT_OK;
  }
  if (name === undefined) throw new UsageError('a command is missing');
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (command === undefined) throw new UsageError(`unknown command '${name}'`);
  let parsed;
  try {
    parsed = parseArgs({ args: rest, options: command.options, allowPositionals: true });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
  const { takes, takesMore = false } = command;
  const given = parsed.positionals;
  if (given.length < takes.length) throw new UsageError(`${name} takes ${takes.join(' and ')}`);
  if (given.length > takes.length && !takesMore) {
    throw new UsageError(`${name} takes ${takes.join(' and ')}, not also '${given[takes.length]}'`);
  }
  return command.run(given, parsed.values);
}

function version(): string {
  // In dist/bin/ when compiled, in bin/ under a TypeScript loader.
  const isSource = import.meta.url.endsWith('.ts');
  const path = new URL(isSource ? '../package.json' : '../../package.json', import.meta.url);
  const { version: text } = JSON.parse(readFileSync(path, 'utf8')) as { version: string };
  return text;
}

/** Nothing is wrong with the store; it cannot be done as it was asked. */
const REFUSALS: ReadonlySet<string> = new Set([
  'TIDEMARK_LOCKED',
  'TIDEMARK_EXISTS',
  'TIDEMARK_HISTORY_LOST',
  'TIDEMARK_HELD',
  'TIDEMARK_NOT_YET',
]);

/** One line on standard error, and the code that says the same. */
function fail(error: unknown): number {
  if (error instanceof UsageError) {
    process.stderr.write(`tidemark: ${error.message} (tidemark --help)\n`);
    return EXIT_USAGE;
  }
  try {
    const { finding, message, file, severity } = findingOf(error);
    const place = file === undefined || message.includes(file) ? '' : `${file}: `;
    const word = error instanceof TidemarkError && error.code === 'TIDEMARK_CORRUPT';
    process.stderr.write(`tidemark: ${word ? `${finding}: ` : ''}${place}${message}\n`);
    if (error instanceof TidemarkError && REFUSALS.has(error.code)) return EXIT_REFUSED;
    return severity === 'damage' ? EXIT_CORRUPT : EXIT_UNREADABLE;
  } catch {
    process.stderr.write(`tidemark: ${error instanceof Error ? error.stack : String(error)}\n`);
    return EXIT_DEFECT;
  }
}

process.on('SIGINT', () => interrupt.abort());
process.on('SIGTERM', () => interrupt.abort());
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // Whoever read it has seen enough, as with `head`.
  process.exit(error.code === 'EPIPE' ? EXIT_OK : EXIT_UNREADABLE);
});

process.exitCode = await main(process.argv.slice(2)).catch(fail);
