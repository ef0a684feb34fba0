/**
 * What a request is answered with when it cannot be served: a status and one JSON object. The engine's
 * error codes are told apart here and nowhere else. Used by every route.
 */
import type { ServerResponse } from 'node:http';
import { TidemarkError } from '../../actors/index.ts';
import type { ErrorCode } from '../../actors/index.ts';

export class Refusal extends Error {
  override readonly name: string = 'Refusal';
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const STATUS: Partial<Record<ErrorCode, number>> = {
  // The caller's copy of the row is out of date.
  TIDEMARK_CONFLICT: 412,
  // It was there, and is not kept any more.
  TIDEMARK_HISTORY_LOST: 410,
  TIDEMARK_NOT_YET: 404,
  TIDEMARK_TOO_LARGE: 413,
  // Nothing was claimed: try again.
  TIDEMARK_BUSY: 503,
  TIDEMARK_NO_SPACE: 507,
  TIDEMARK_CLOSED: 503,
  TIDEMARK_POISONED: 503,
  TIDEMARK_OUTCOME_UNKNOWN: 503,
};

export function sendJson(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): void {
  const text = `${JSON.stringify(body, undefined, 2)}\n`;
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8', ...headers });
  response.end(text);
}

export function sendError(response: ServerResponse, error: unknown): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const { status, code, message } = describe(error);
  const headers: Record<string, string> = status === 503 ? { 'retry-after': '1' } : {};
  const detail = error instanceof TidemarkError ? { detail: plain(error.detail) } : {};
  sendJson(response, status, { error: { code, message, ...detail } }, headers);
}

function describe(error: unknown): { status: number; code: string; message: string } {
  if (error instanceof Refusal) return error;
  if (error instanceof TidemarkError) {
    return { status: STATUS[error.code] ?? 500, code: error.code, message: error.message };
  }
  // Anything else is a fault of this service, and none of the caller's business.
  process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`);
  return { status: 500, code: 'INTERNAL', message: 'internal error' };
}

/** Keys are bytes here. */
function plain(detail: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(detail).map(([name, value]) => [
      name,
      value instanceof Uint8Array ? Buffer.from(value).toString() : value,
    ]),
  );
}
