/**
 * The one error class and the table of its codes. Codes are split by what the caller does next and
 * never change; messages may. Across a ring or through the arena travels the code's number.
 * Misuse is a plain TypeError without a code.
 */
import { invariant } from './assert.ts';

/** Code -> what it means for the caller. The order is the number on the wire: append only, 0 is never used. */
const TABLE = {
  TIDEMARK_CLOSED: 'The engine, snapshot or iterator is closed; open it again.',
  TIDEMARK_LOCKED: 'Another engine holds the directory; detail says who.',
  TIDEMARK_POISONED: 'A write or sync failed; exit and reopen.',
  TIDEMARK_OUTCOME_UNKNOWN: 'The transaction may or may not be there; reopen and look.',
  TIDEMARK_CORRUPT: 'Stored bytes are damaged; detail names finding, file and position.',
  TIDEMARK_CONFLICT: 'A precondition did not hold; read again and retry.',
  TIDEMARK_HISTORY_LOST: 'The offset asked for is below what is retained.',
  TIDEMARK_NOT_YET: 'The offset asked for has not been reached.',
  TIDEMARK_NOT_CACHED: 'The answer is not in memory and cachedOnly was given.',
  TIDEMARK_BUSY: 'Too much is waiting; nothing was claimed; wait for room() and retry.',
  TIDEMARK_NO_SPACE:
    'The disk is full, but for what flushes need; nothing was claimed; free space and retry.',
  TIDEMARK_TOO_LARGE: 'Larger than a documented limit; detail.limit says which.',
  TIDEMARK_KIND_MISMATCH: 'The collection exists with another kind or encoding.',
  TIDEMARK_UNSUPPORTED_FORMAT: 'Written by another version or with an unknown feature.',
  TIDEMARK_READ_ONLY: 'The engine was opened read-only.',
  TIDEMARK_EMPTY_SOURCE: 'The source holds nothing and ifEmpty does not allow it.',
  TIDEMARK_STORED_ERROR: 'The row holds an error that its producer stored.',
  TIDEMARK_HELD: 'A hold forbids it; detail names the holder.',
  TIDEMARK_INDEX_MISSING: 'A writing thread has not declared the index.',
  TIDEMARK_NOT_FOUND: 'No store or collection of that name, and creating it was not allowed.',
  TIDEMARK_EXISTS: 'A store is there already and errorIfExists was given.',
  TIDEMARK_IO: 'The operating system refused a call; cause is its error.',
  TIDEMARK_INTERNAL: 'A defect in Tidemark; please report it.',
} as const;

export type ErrorCode = keyof typeof TABLE;

export const ERROR_CODES: readonly ErrorCode[] = Object.keys(TABLE) as ErrorCode[];

/** What the code means, one sentence; the README repeats it. */
export function describeCode(code: ErrorCode): string {
  return TABLE[code];
}

/** 1-based, so that 0 never reads as a code. */
export function codeNumber(code: ErrorCode): number {
  return ERROR_CODES.indexOf(code) + 1;
}

export function codeOfNumber(number: number): ErrorCode {
  const code = ERROR_CODES[number - 1];
  invariant(code !== undefined, 'unknown error number', number);
  return code;
}

/** Plain data: survives structured clone and JSON. */
export type ErrorDetail = Readonly<Record<string, unknown>>;

export class TidemarkError extends Error {
  override readonly name: string = 'TidemarkError';
  readonly code: ErrorCode;
  readonly detail: ErrorDetail;

  constructor(code: ErrorCode, message: string, detail: ErrorDetail = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.detail = detail;
  }
}

/** Damage found in stored bytes. `finding` is a word in capitals, stable like a code. */
export function corrupt(finding: string, message: string, detail: ErrorDetail = {}): TidemarkError {
  return new TidemarkError('TIDEMARK_CORRUPT', message, { finding, ...detail });
}

/** An error as plain data, for a ring, the arena or a job's answer. */
export type PlainError = { code: ErrorCode; message: string; detail: ErrorDetail; stack?: string };

export function toPlainError(error: unknown): PlainError {
  if (error instanceof TidemarkError) {
    const cause = error.cause instanceof Error ? { cause: error.cause.message } : {};
    return { code: error.code, message: error.message, detail: { ...error.detail, ...cause } };
  }
  const { code, syscall } = (error ?? {}) as { code?: unknown; syscall?: unknown };
  if (error instanceof Error && typeof code === 'string' && typeof syscall === 'string') {
    const { path, got, wanted } = error as { path?: unknown; got?: unknown; wanted?: unknown };
    const detail: Record<string, unknown> = { errno: code, call: syscall };
    if (typeof path === 'string') detail['path'] = path;
    if (typeof wanted === 'number') detail['bytes'] = wanted;
    if (typeof got === 'number') detail['got'] = got;
    return { code: 'TIDEMARK_IO', message: error.message, detail };
  }
  const message = error instanceof Error ? error.message : String(error);
  const stack = error instanceof Error ? error.stack : undefined;
  const plain: PlainError = { code: 'TIDEMARK_INTERNAL', message, detail: {} };
  if (stack !== undefined) plain.stack = stack;
  return plain;
}

export function fromPlainError(plain: PlainError): TidemarkError {
  const error = new TidemarkError(plain.code, plain.message, plain.detail);
  if (plain.stack !== undefined) error.stack = plain.stack;
  return error;
}

/** The disk, or this user's share of it, is full: that heals. */
export function isFullDisk(failure: Pick<PlainError, 'detail'>): boolean {
  const errno = failure.detail['errno'];
  return errno === 'ENOSPC' || errno === 'EDQUOT';
}
