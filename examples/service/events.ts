/**
 * Server-sent events from a feed: one event a transaction, its offset the event's id, so that a browser that
 * was cut off goes on where it was with `Last-Event-ID`. A slow client holds history, never memory:
 * the next transaction is read when the socket has taken the last one. Called by the server's route.
 */
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { TidemarkError } from '../../actors/index.ts';
import type { Collections } from '../tour/rows.ts';
import { fileOf, integerOf, pathOfBytes, bad } from './parameters.ts';

/** Proxies cut what is silent for longer. */
const heartbeatMs = 15_000;

export async function sendEvents(
  { files }: Collections,
  request: IncomingMessage,
  query: URLSearchParams,
  response: ServerResponse,
  closing: AbortSignal,
): Promise<void> {
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  const signal = AbortSignal.any([closing, gone.signal]);
  const after = placeOf(request, query);
  const prefix = query.get('prefix');
  const feed = files.changes({
    ...(after === undefined ? {} : { after }),
    ...(prefix === null ? {} : { prefix: Buffer.from(prefix) }),
    progress: heartbeatMs,
    signal,
  });
  // History that is gone has been refused by now, with a status.
  response.writeHead(200, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-store',
    'x-accel-buffering': 'no',
  });
  response.write('retry: 1000\n\n');
  try {
    for await (const { kind, offset, updates } of feed) {
      const changes = updates.map(({ key, value, diff }) => ({
        path: pathOfBytes(key),
        diff,
        ...(value === undefined ? {} : fileOf(value)),
      }));
      const data = JSON.stringify({ offset, changes });
      const taken = response.write(`event: ${kind}\nid: ${offset}\ndata: ${data}\n\n`);
      if (!taken) await once(response, 'drain', { signal });
    }
  } catch (error) {
    if (!signal.aborted) {
      const code = error instanceof TidemarkError ? error.code : 'INTERNAL';
      response.write(`event: error\ndata: ${JSON.stringify({ code })}\n\n`);
    }
  }
  response.end();
}

/** The header of a client that comes again wins over what its address said at first. */
function placeOf({ headers }: IncomingMessage, query: URLSearchParams): number | undefined {
  const last = headers['last-event-id'];
  if (last === undefined || last === '') return integerOf(query, 'after');
  if (typeof last !== 'string' || !/^\d{1,16}$/.test(last)) throw bad('Last-Event-ID is an offset');
  return Number(last);
}
