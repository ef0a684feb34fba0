/**
 * The tour's command line. Whatever it does not know is refused in one line, with exit code 2.
 * Called once by main.ts.
 */
import { parseArgs } from 'node:util';
import { TourError } from './tour-error.ts';

const secondsMax = 3_600;

export interface TourOptions {
  /** The repository, or any directory inside it. */
  readonly path: string;
  /** Leave the data where it is, for a look at the files. */
  readonly keep: boolean;
  /** How long the load phase writes tenants. */
  readonly seconds: number;
  /** The figures as one JSON object on standard output; everything else goes to standard error. */
  readonly json: boolean;
  /** The port to serve the history on, 0 for any; undefined: the tour. */
  readonly port: number | undefined;
  readonly help: boolean;
}

export const USAGE = `usage: npm start -- [path] [--keep] [--seconds=20] [--json]
       npm start -- [path] --serve [--port=8080]

Replays the history of the git repository at path (default: here) into Tidemark, one transaction
a revision, and checks what it reads back against git; then loads it and kills it.
With --serve: keeps it in a store of its own and serves it over HTTP.

  --keep         leave the data in .tidemark-tour/ for a look at the files
  --seconds=N    how long the load phase writes tenants (default 20)
  --json         figures as JSON on standard output, the screen on standard error
  --serve        serve the history until Ctrl-C; the store stays in .tidemark-tour/
  --port=N       where to, on 127.0.0.1 (default 8080; 0: any)
  --help         this text`;

export function parseTourOptions(args: readonly string[]): TourOptions {
  const { values, positionals } = parse(args);
  if (positionals.length > 1) {
    throw new TourError(`one repository at a time, not ${positionals.length} (--help)`);
  }
  const path = positionals[0] ?? '.';
  if (path === '') throw new TourError('the path of the repository is empty (--help)');
  return {
    path,
    keep: values.keep,
    seconds: parseSeconds(values.seconds),
    json: values.json,
    port: values.serve ? parsePort(values.port) : undefined,
    help: values.help,
  };
}

function parse(args: readonly string[]): {
  values: {
    keep: boolean;
    seconds: string;
    json: boolean;
    serve: boolean;
    port: string;
    help: boolean;
  };
  positionals: string[];
} {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        keep: { type: 'boolean', default: false },
        seconds: { type: 'string', default: '20' },
        json: { type: 'boolean', default: false },
        serve: { type: 'boolean', default: false },
        port: { type: 'string', default: '8080' },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new TourError(`${text.split(/\n|\. /, 1)[0]} (--help)`);
  }
}

function parseSeconds(text: string): number {
  const seconds = Number(text);
  if (text.trim() === '' || !(seconds > 0 && seconds <= secondsMax)) {
    throw new TourError(`--seconds wants a number above 0 and up to ${secondsMax}, not '${text}'`);
  }
  return seconds;
}

function parsePort(text: string): number {
  const port = Number(text);
  if (/^\d{1,5}$/.test(text) && port <= 65_535) return port;
  throw new TourError(`--port wants a number up to 65535, not '${text}'`);
}
