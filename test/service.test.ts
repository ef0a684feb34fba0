/**
 * Goal: a service that embeds the engine does over HTTP what the engine promises: rows as of any offset,
 * conditional writes, streams of changes that go on where they were cut off, also over a restart, and a
 * close that loses nothing. Method: the service in this process; then `npm start -- --serve` as a process.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { open } from '../actors/index.ts';
import type { Engine } from '../actors/index.ts';
import { Service } from '../examples/service/server.ts';
import { openCollections } from '../examples/tour/rows.ts';
import { isolateGit, makeOddRepository } from './tour/repo.ts';
import type { MadeRepository } from './tour/repo.ts';

const MAIN = fileURLToPath(new URL('../examples/tour/main.ts', import.meta.url));
const STORES = fileURLToPath(new URL('../.tidemark-tour', import.meta.url));
const OBJECTS = ['a', 'b', 'c'].map((c) => c.repeat(40));
const WAIT_MS = 60_000;

let scratch: string;
let odd: MadeRepository;

before(() => {
  isolateGit();
  scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'tidemark-service-'));
  odd = makeOddRepository(path.join(scratch, 'odd'));
});
after(() => fs.rmSync(scratch, { recursive: true, force: true }));

interface Running {
  readonly engine: Engine;
  readonly service: Service;
  readonly url: string;
}

async function start(directory: string): Promise<Running> {
  const engine = await open(directory, {
    memoryBytes: 2 ** 26,
    memtableBytes: 2 ** 20,
    threads: 0,
  });
  const service = new Service(engine, await openCollections(engine, Infinity));
  return { engine, service, url: `http://127.0.0.1:${await service.listen(0)}` };
}

async function stop({ engine, service }: Running): Promise<void> {
  await service.close();
  await engine.close();
}

type Answer = { status: number; etag: string | null; body: Record<string, unknown> };

async function ask(url: string, init?: RequestInit): Promise<Answer> {
  const response = await fetch(url, { ...init, signal: AbortSignal.timeout(WAIT_MS) });
  const text = await response.text();
  const body = (text === '' ? {} : JSON.parse(text)) as Record<string, unknown>;
  return { status: response.status, etag: response.headers.get('etag'), body };
}

function put(url: string, object: string, headers: Record<string, string> = {}): Promise<Answer> {
  return ask(url, { method: 'PUT', headers, body: JSON.stringify({ mode: '100644', object }) });
}

type Event = { event: string; id: number; data: { offset: number; changes: unknown[] } };

/** Reads a stream of events until so many transactions came. */
async function events(url: string, count: number, lastEventId?: number): Promise<Event[]> {
  const controller = new AbortController();
  const late = setTimeout(() => controller.abort(new Error('no events')), WAIT_MS);
  const headers = lastEventId === undefined ? {} : { 'last-event-id': String(lastEventId) };
  const response = await fetch(url, { headers, signal: controller.signal });
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type') ?? '', /^text\/event-stream/);
  const found: Event[] = [];
  let text = '';
  const decoder = new TextDecoder();
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    text += decoder.decode(chunk, { stream: true });
    const whole = text.split('\n\n');
    text = whole.pop() ?? '';
    for (const block of whole) {
      const fields = new Map(
        block.split('\n').map((line) => line.split(/: (.*)/s) as [string, string]),
      );
      if (fields.get('event') !== 'transaction') continue;
      found.push({
        event: 'transaction',
        id: Number(fields.get('id')),
        data: JSON.parse(fields.get('data') ?? '') as Event['data'],
      });
    }
    if (found.length >= count) break;
  }
  clearTimeout(late);
  controller.abort();
  return found.slice(0, count);
}

test('rows over HTTP: conditions, pages, times, and refusals with a status', async () => {
  const running = await start(path.join(scratch, 'rows'));
  const { url } = running;
  const [a, b, c] = OBJECTS;
  const made = await put(`${url}/files/src/a.ts`, a, { 'if-none-match': '*' });
  assert.equal(made.status, 200);
  assert.equal((await put(`${url}/files/src/a.ts`, b, { 'if-none-match': '*' })).status, 412);
  const changed = await put(`${url}/files/src/a.ts`, b, { 'if-match': made.etag ?? '' });
  assert.equal(changed.status, 200);
  const stale = await put(`${url}/files/src/a.ts`, c, { 'if-match': made.etag ?? '' });
  assert.equal(stale.status, 412);
  assert.deepEqual(stale.body['error'], {
    code: 'TIDEMARK_CONFLICT',
    message: (stale.body['error'] as { message: string }).message,
    detail: { collection: 'files', key: 'src/a.ts', offset: changed.body['offset'] },
  });
  await Promise.all(
    ['b', 'c', 'd e', '%'].map((n) => put(`${url}/files/src/${encodeURIComponent(n)}`, c)),
  );
  await put(`${url}/files/%ff%00`, a);

  const row = await ask(`${url}/files/src/a.ts`);
  assert.equal(row.etag, changed.etag);
  assert.deepEqual(row.body, {
    path: 'src/a.ts',
    mode: '100644',
    object: b,
    offset: changed.body['offset'],
  });
  const same = await ask(`${url}/files/src/a.ts`, { headers: { 'if-none-match': row.etag ?? '' } });
  assert.equal(same.status, 304);
  const then = await ask(`${url}/files/src/a.ts?asOf=${String(made.body['offset'])}`);
  assert.equal(then.body['object'], a);
  assert.equal((await ask(`${url}/files/%FF%00`)).body['object'], a);

  const paths: unknown[] = [];
  let next: string | undefined = '/files?prefix=src/&limit=2';
  while (next !== undefined) {
    const page: Answer = await ask(url + next);
    paths.push(...(page.body['rows'] as { path: string }[]).map((entry) => entry.path));
    next = page.body['next'] as string | undefined;
  }
  assert.deepEqual(paths, ['src/%25', 'src/a.ts', 'src/b', 'src/c', 'src/d%20e']);

  const gone = await ask(`${url}/files/src/b`, { method: 'DELETE' });
  assert.equal(gone.status, 200);
  assert.equal((await ask(`${url}/files/src/b`)).status, 404);
  for (const [way, status] of [
    ['/files/nothing', 404],
    ['/nothing', 404],
    ['/files?limit=0', 400],
    ['/files?asOf=yesterday', 400],
    ['/files?asOf=999999', 404],
    ['/files/%zz', 400],
    ['/revisions/x', 400],
    ['/changes?after=-1', 400],
    ['/', 200],
    ['/stats', 200],
    ['/revisions', 200],
  ] as const) {
    assert.equal((await ask(url + way)).status, status, way);
  }
  assert.equal((await ask(`${url}/files/a`, { method: 'PUT', body: '{' })).status, 400);
  assert.equal((await ask(`${url}/files/a`, { method: 'PUT', body: '{"mode":"9"}' })).status, 400);
  assert.equal((await ask(`${url}/files/a`, { method: 'POST' })).status, 405);
  const match = { 'if-match': 'x' };
  assert.equal((await put(`${url}/files/a`, a, match)).status, 400);
  const large = await ask(`${url}/files/a`, { method: 'PUT', body: 'x'.repeat(100_000) });
  assert.equal(large.status, 413);
  await stop(running);
});

test('changes over HTTP go on where they were cut off, over a restart', async () => {
  const directory = path.join(scratch, 'changes');
  const first = await start(directory);
  const { offset } = (await put(`${first.url}/files/0`, OBJECTS[0])).body as { offset: number };
  const live = events(`${first.url}/changes?after=${offset}`, 3);
  for (const n of [1, 2, 3]) await put(`${first.url}/files/${n}`, OBJECTS[n % 3]);
  const seen = await live;
  assert.deepEqual(
    seen.map(({ id }) => id),
    [offset + 1, offset + 2, offset + 3],
  );
  assert.deepEqual(seen[0]?.data.changes, [
    { path: '1', diff: 1, mode: '100644', object: OBJECTS[1] },
  ]);
  await put(`${first.url}/files/1`, OBJECTS[2]);
  // A stream that is open when the service closes keeps nothing from ending.
  const stream = await fetch(`${first.url}/changes`);
  await stop(first);
  await stream.text();

  const second = await start(directory);
  await ask(`${second.url}/files/2`, { method: 'DELETE' });
  const next = await events(`${second.url}/changes?after=0`, 2, seen[1]?.id);
  assert.deepEqual(
    next.map(({ id }) => id),
    [offset + 3, offset + 4],
  );
  const rest = await events(`${second.url}/changes`, 2, next[0]?.id);
  assert.deepEqual(
    rest.map(({ id, data }) => [id, data.changes]),
    [
      [
        offset + 4,
        [
          { path: '1', diff: -1, mode: '100644', object: OBJECTS[1] },
          { path: '1', diff: 1, mode: '100644', object: OBJECTS[2] },
        ],
      ],
      [offset + 5, [{ path: '2', diff: -1, mode: '100644', object: OBJECTS[2] }]],
    ],
  );
  await stop(second);
});

/** The service as `npm start -- --serve` runs it; resolves when it listens. */
async function spawnService(): Promise<{ child: ChildProcess; url: string; data: string }> {
  const args = ['--import', 'tsx', MAIN, odd.path, '--serve', '--port=0'];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let out = '';
  for await (const chunk of child.stdout) {
    out += String(chunk);
    const found = /(http:\/\/127\.0\.0\.1:\d+)\/ until Ctrl-C; data: (.*)\n/.exec(out);
    if (found !== null) return { child, url: found[1], data: found[2] };
  }
  throw new Error(`the service did not start: ${out}`);
}

test('the tour serves its history, stops when asked, and goes on', async () => {
  const first = await spawnService();
  let { child } = first;
  try {
    const count = odd.subjects.length;
    const revisions = await ask(`${first.url}/revisions?limit=1000`);
    assert.equal((revisions.body['rows'] as unknown[]).length, count);
    const { offset } = (await put(`${first.url}/files/own`, OBJECTS[0])).body as { offset: number };
    child.kill('SIGTERM');
    assert.deepEqual(await once(child, 'exit'), [0, null]);

    const second = await spawnService();
    ({ child } = second);
    assert.equal((await ask(`${second.url}/files/own`)).body['offset'], offset);
    assert.equal((await ask(`${second.url}/revisions/${count - 1}`)).status, 200);
    const [resumed] = await events(`${second.url}/changes`, 1, offset - 1);
    assert.equal(resumed?.id, offset);
    child.kill('SIGINT');
    assert.deepEqual(await once(child, 'exit'), [0, null]);
  } finally {
    child.kill('SIGKILL');
    fs.rmSync(first.data, { recursive: true, force: true });
    try {
      fs.rmdirSync(STORES);
    } catch {
      // Other tours are there too, or the last of them has taken it along.
    }
  }
});
