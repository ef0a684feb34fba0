/**
 * A service around an engine, on plain node:http: rows by REST, with conditions and as of any offset;
 * changes as server-sent events. Nothing here blocks the event loop, and closing lets requests under way
 * end. Made by main.ts and by its test.
 *
 *   GET    /                       what there is
 *   GET    /files?prefix&gt&limit  a page of rows in key order           all GETs but /changes take
 *   GET    /files/<path>           one row; ETag: the offset of its      ?asOf=<offset>
 *                                  last change
 *   PUT    /files/<path>           {mode, object}; If-Match, If-None-Match: *; 412 when it has changed
 *   DELETE /files/<path>           likewise
 *   GET    /revisions?after&limit  a page of revisions
 *   GET    /revisions/<n>          one revision
 *   GET    /changes?prefix&after   server-sent events; Last-Event-ID
 *   GET    /stats                  the engine's figures
 */
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Engine } from '../../actors/index.ts';
import type { Collections } from '../tour/rows.ts';
import { Refusal, sendError, sendJson } from './answer.ts';
import { sendEvents } from './events.ts';
import {
  bad,
  bytesOfPath,
  conditionOf,
  etagOf,
  fileOf,
  integerOf,
  limitOf,
  pathOfBytes,
  readFileRow,
} from './parameters.ts';

/** Requests under way when it closes have so long to end. */
const closeGraceMs = 5_000;

export class Service {
  readonly #engine: Engine;
  readonly #collections: Collections;
  readonly #server: Server;
  readonly #closing: AbortController = new AbortController();
  #closed: Promise<void> | undefined;

  constructor(engine: Engine, collections: Collections) {
    this.#engine = engine;
    this.#collections = collections;
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch((error: unknown) => sendError(response, error));
    });
  }

  /** Resolves with the port. */
  async listen(port: number, host = '127.0.0.1'): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, () => {
        this.#server.off('error', reject);
        resolve();
      });
    });
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('no port');
    return address.port;
  }

  /** Takes no more requests, lets those under way end, ends the streams; the engine is the caller's. Twice is once. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#closing.abort();
    this.#server.closeIdleConnections();
    const late = setTimeout(() => this.#server.closeAllConnections(), closeGraceMs);
    await closed;
    clearTimeout(late);
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.#closing.signal.aborted) response.setHeader('connection', 'close');
    const { pathname, searchParams: query } = new URL(request.url ?? '/', 'http://service');
    const [, first = '', ...others] = pathname.split('/');
    const rest = others.length === 0 ? undefined : others.join('/');
    switch (first) {
      case '':
        return this.#index(request, response);
      case 'files':
        return rest === undefined
          ? this.#listFiles(request, query, response)
          : this.#file(request, bytesOfPath(rest), query, response);
      case 'revisions':
        return rest === undefined
          ? this.#listRevisions(request, query, response)
          : this.#revision(request, rest, query, response);
      case 'changes':
        allow(request, 'GET');
        return sendEvents(this.#collections, request, query, response, this.#closing.signal);
      case 'stats':
        allow(request, 'GET');
        return sendJson(response, 200, this.#engine.stats());
      default:
        throw new Refusal(404, 'NOT_FOUND', `there is no ${pathname}`);
    }
  }

  #index(request: IncomingMessage, response: ServerResponse): void {
    allow(request, 'GET');
    const { upper } = this.#engine;
    const collections = this.#engine
      .collections()
      .map(({ name, since, touched }) => ({ name, since, touched, href: `/${name}` }));
    sendJson(response, 200, { upper, collections, changes: '/changes' });
  }

  async #listFiles(
    request: IncomingMessage,
    query: URLSearchParams,
    response: ServerResponse,
  ): Promise<void> {
    allow(request, 'GET');
    const limit = limitOf(query);
    const prefix = query.get('prefix');
    const gt = query.get('gt');
    const range = {
      ...this.#timeOf(query),
      ...(prefix === null ? {} : { prefix: Buffer.from(prefix) }),
      ...(gt === null ? {} : { gt: bytesOfPath(gt) }),
      limit,
    };
    const rows = [];
    for await (const [key, value] of this.#collections.files.entries(range)) {
      rows.push({ path: pathOfBytes(key), ...fileOf(value) });
    }
    let next: string | undefined;
    if (rows.length === limit) {
      const on = new URLSearchParams(query);
      on.set('gt', rows.at(-1)?.path ?? '');
      next = `/files?${on.toString()}`;
    }
    sendJson(response, 200, { rows, next });
  }

  async #file(
    request: IncomingMessage,
    key: Buffer,
    query: URLSearchParams,
    response: ServerResponse,
  ): Promise<void> {
    allow(request, 'GET', 'PUT', 'DELETE');
    const { files } = this.#collections;
    if (request.method === 'GET') {
      const entry = files.getEntrySync(key, this.#timeOf(query));
      if (entry === undefined) throw new Refusal(404, 'NOT_FOUND', `no file ${pathOfBytes(key)}`);
      const etag = etagOf(entry.offset);
      if (request.headers['if-none-match'] === etag) {
        response.writeHead(304, { etag }).end();
        return;
      }
      const row = { path: pathOfBytes(key), ...fileOf(entry.value), offset: entry.offset };
      sendJson(response, 200, row, { etag });
      return;
    }
    const wanted = conditionOf(request);
    const options =
      wanted === undefined ? {} : { expect: [{ collection: files, key, offset: wanted }] };
    const { offset } =
      request.method === 'PUT'
        ? await files.put(key, await readFileRow(request), options)
        : await files.delete(key, options);
    sendJson(response, 200, { path: pathOfBytes(key), offset }, { etag: etagOf(offset) });
  }

  async #listRevisions(
    request: IncomingMessage,
    query: URLSearchParams,
    response: ServerResponse,
  ): Promise<void> {
    allow(request, 'GET');
    const after = integerOf(query, 'after');
    const limit = limitOf(query);
    const range = { ...this.#timeOf(query), ...(after === undefined ? {} : { gt: after }), limit };
    const rows = [];
    for await (const [n, row] of this.#collections.revisions.entries(range)) {
      rows.push({ n, ...row });
    }
    const next =
      rows.length === limit ? `/revisions?after=${rows.at(-1)?.n}&limit=${limit}` : undefined;
    sendJson(response, 200, { rows, next });
  }

  #revision(
    request: IncomingMessage,
    text: string,
    query: URLSearchParams,
    response: ServerResponse,
  ): void {
    allow(request, 'GET');
    if (!/^\d{1,15}$/.test(text)) throw bad(`a revision is a number, not '${text}'`);
    const n = Number(text);
    const entry = this.#collections.revisions.getEntrySync(n, this.#timeOf(query));
    if (entry === undefined) throw new Refusal(404, 'NOT_FOUND', `no revision ${n}`);
    sendJson(response, 200, { n, ...entry.value, offset: entry.offset });
  }

  #timeOf(query: URLSearchParams): { asOf?: number } {
    const asOf = integerOf(query, 'asOf');
    return asOf === undefined ? {} : { asOf };
  }
}

function allow({ method = '' }: IncomingMessage, ...methods: string[]): void {
  if (methods.includes(method)) return;
  throw new Refusal(405, 'METHOD_NOT_ALLOWED', `${method} is none of ${methods.join(', ')}`);
}
