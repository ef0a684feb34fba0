/**
 * What the tools say of a store: findings, progress, and how a look at a whole store is run: as a
 * machine that yields after each storage call, so that whoever runs it may stop, show how far it is,
 * or do other work. Machines here change nothing. Any thread.
 *
 *   severity      means                                                      exit code of `verify`
 *   note          nothing is wrong: what a live engine has not finished      0
 *   torn          a write that was cut off and never acknowledged            1
 *   damage        bytes are not what they were, or files are missing         2
 *   unreadable    another store's file, another version's, a disk that fails 3
 */
import { TidemarkError, toPlainError } from '../base/errors.ts';

export type Severity = 'note' | 'torn' | 'damage' | 'unreadable';

/** Plain data. */
export type StoreFinding = {
  /** A word in capitals, stable. */
  readonly finding: string;
  readonly severity: Severity;
  /** Relative to the store's directory. */
  readonly file?: string;
  /** Byte in the file. */
  readonly position?: number;
  /** Transaction offset. */
  readonly offset?: number;
  readonly message: string;
};

/** How far a machine is; one object a machine, changed as it goes. */
export type Progress = { what: string; doneBytes: number; totalBytes: number };

export type Machine<T> = Generator<void, T, void>;

const FOREIGN: ReadonlySet<string> = new Set(['FOREIGN_SEGMENT', 'MANIFEST_FOREIGN']);

/** What an error of reading means for the store; `file` where it does not say. Defects are thrown on. */
export function findingOf(error: unknown, file?: string): StoreFinding {
  const { code, message, detail } = toPlainError(error);
  if (code === 'TIDEMARK_INTERNAL') throw error;
  const word = detail['finding'];
  const errno = detail['errno'];
  const at = typeof detail['file'] === 'string' ? detail['file'] : file;
  const gone = errno === 'ENOENT';
  const finding =
    typeof word === 'string' ? word : gone ? 'MISSING_FILE' : code.replace('TIDEMARK_', '');
  const isLoss = code === 'TIDEMARK_CORRUPT' ? !FOREIGN.has(finding) : gone;
  return {
    finding,
    severity: finding === 'TORN_TAIL' ? 'torn' : isLoss ? 'damage' : 'unreadable',
    ...(at === undefined ? {} : { file: at }),
    ...numberField('position', detail['position']),
    // Of a part it is where the part begins in its file.
    ...numberField('offset', typeof detail['file'] === 'number' ? undefined : detail['offset']),
    message,
  };
}

function numberField(name: string, value: unknown): { [name: string]: number } {
  return typeof value === 'number' ? { [name]: value } : {};
}

export function isDamage(error: unknown): boolean {
  return error instanceof TidemarkError && error.code === 'TIDEMARK_CORRUPT';
}

/** Nothing but notes: what was acknowledged is there and whole. */
export function isSound(findings: readonly StoreFinding[]): boolean {
  return findings.every(({ severity }) => severity === 'note');
}

const ORDER: readonly Severity[] = ['note', 'torn', 'damage', 'unreadable'];

/** 0 to 3: the highest that any finding asks for. */
export function verdictOf(findings: readonly StoreFinding[]): number {
  return Math.max(0, ...findings.map(({ severity }) => ORDER.indexOf(severity)));
}
