/**
 * What callers send, checked: numbers and times in queries, paths as bytes, rows in bodies, offsets in
 * headers. Used by the routes; everything wrong is a Refusal with status 400.
 */
import type { IncomingMessage } from 'node:http';
import { encodeFile, idOf, modeOf } from '../tour/rows.ts';
import { Refusal } from './answer.ts';

export const pageRowsMax = 1_000;
const pageRowsDefault = 100;
const bodyBytesMax = 64 * 2 ** 10;

export function bad(message: string): Refusal {
  return new Refusal(400, 'BAD_REQUEST', message);
}

/** A count or an offset; undefined when it is not given. */
export function integerOf(query: URLSearchParams, name: string): number | undefined {
  const text = query.get(name);
  if (text === null) return undefined;
  const n = Number(text);
  if (text.trim() === '' || !Number.isSafeInteger(n) || n < 0) {
    throw bad(`${name} is an integer from 0, not '${text}'`);
  }
  return n;
}

export function limitOf(query: URLSearchParams): number {
  const limit = integerOf(query, 'limit') ?? pageRowsDefault;
  if (limit < 1 || limit > pageRowsMax) throw bad(`limit is from 1 to ${pageRowsMax}`);
  return limit;
}

/** Percent-encoding of any bytes: a path in git need not be text. */
export function bytesOfPath(encoded: string): Buffer {
  const bytes: number[] = [];
  const text = Buffer.from(encoded);
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== 0x25) {
      bytes.push(text[i]);
      continue;
    }
    const hex = text.toString('latin1', i + 1, i + 3);
    if (!/^[0-9a-fA-F]{2}$/.test(hex)) throw bad(`'${encoded}' is not percent-encoded`);
    bytes.push(Number.parseInt(hex, 16));
    i += 2;
  }
  return Buffer.from(bytes);
}

export function pathOfBytes(bytes: Buffer): string {
  let path = '';
  for (const byte of bytes) {
    const c = String.fromCharCode(byte);
    path += /[A-Za-z0-9._~/-]/.test(c) ? c : `%${byte.toString(16).padStart(2, '0').toUpperCase()}`;
  }
  return path;
}

export interface FileRow {
  /** Octal, as git writes it. */
  readonly mode: string;
  /** Object id, hex. */
  readonly object: string;
}

export function fileOf(value: Buffer): FileRow {
  return {
    mode: modeOf(value).toString(8).padStart(6, '0'),
    object: idOf(value).toString('hex'),
  };
}

export async function readFileRow(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bodyBytesMax) throw new Refusal(413, 'TOO_LARGE', 'the body is too large');
    chunks.push(chunk);
  }
  let row: unknown;
  try {
    row = JSON.parse(Buffer.concat(chunks).toString());
  } catch {
    throw bad('the body is not JSON');
  }
  const { mode, object } = (row ?? {}) as Record<string, unknown>;
  if (typeof mode !== 'string' || !/^[0-7]{1,6}$/.test(mode)) throw bad('mode is octal');
  if (typeof object !== 'string' || !/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(object)) {
    throw bad('object is an object id in hex');
  }
  return encodeFile(Number.parseInt(mode, 8), Buffer.from(object, 'hex'));
}

export function etagOf(offset: number): string {
  return `"${offset}"`;
}

/**
 * The state that the caller wants the row to be in: the offset of its last change, null for absent,
 * undefined when it does not care.
 */
export function conditionOf({ headers }: IncomingMessage): number | null | undefined {
  const match = headers['if-match'];
  const none = headers['if-none-match'];
  if (match !== undefined && none !== undefined) throw bad('give If-Match or If-None-Match');
  if (none !== undefined) {
    if (none === '*') return null;
    throw bad('If-None-Match is * here');
  }
  if (match === undefined) return undefined;
  const offset = /^"(\d{1,16})"$/.exec(match)?.[1];
  if (offset === undefined) throw bad('If-Match is one ETag that this service gave');
  return Number(offset);
}
