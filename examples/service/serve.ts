/**
 * `npm start -- --serve`: the repository's history in a store that stays, served over HTTP until SIGINT or
 * SIGTERM. What the store has already is not written again; what came to the repository since is added.
 * Called by the tour's main.ts.
 */
import * as fs from 'node:fs';
import { createHash } from 'node:crypto';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { open } from '../../actors/index.ts';
import type { Engine } from '../../actors/index.ts';
import { CommitWindow } from '../tour/commit-window.ts';
import { readHistory } from '../tour/git.ts';
import type { Repository } from '../tour/git.ts';
import { commitRevision, inFlightMax } from '../tour/replay.ts';
import { openCollections } from '../tour/rows.ts';
import type { Collections } from '../tour/rows.ts';
import type { Screen } from '../tour/screen.ts';
import { TourError } from '../tour/tour-error.ts';
import { Service } from './server.ts';

const ROOT = fileURLToPath(new URL('../../.tidemark-tour', import.meta.url));

export async function serve(
  repository: Repository,
  root: string,
  port: number,
  screen: Screen,
): Promise<void> {
  const directory = path.join(ROOT, `service-${nameOf(root)}`);
  fs.mkdirSync(directory, { recursive: true });
  const engine = await open(directory);
  const collections = await openCollections(engine, Infinity);
  screen.step('The history is in the store');
  const { added, total } = await catchUp(engine, collections, repository);
  screen.pass(`${total} revisions, ${added} of them new, ${engine.upper} transactions`);
  const service = new Service(engine, collections);
  const at = await service.listen(port);
  screen.step('Serving');
  screen.line(`http://127.0.0.1:${at}/ until Ctrl-C; data: ${directory}`);
  await stopAsked();
  screen.line('closing: requests under way end');
  await service.close();
  await engine.close();
}

/** A store of each repository, known by where it is. */
function nameOf(root: string): string {
  return createHash('sha256').update(fs.realpathSync(root)).digest('hex').slice(0, 12);
}

/** Adds what the store does not have. Throws when the repository's history is another than the store's. */
async function catchUp(
  engine: Engine,
  collections: Collections,
  repository: Repository,
): Promise<{ added: number; total: number }> {
  const [last] = collections.revisions.entries({ reverse: true, limit: 1 });
  const window = new CommitWindow(inFlightMax, () => {});
  let added = 0;
  let total = 0;
  for await (const revision of readHistory(repository)) {
    total++;
    if (last !== undefined && revision.n <= last[0]) {
      if (revision.n === last[0] && revision.sha !== last[1].sha) throw rewritten();
      continue;
    }
    if (window.full) await window.take();
    window.push(commitRevision(engine, collections, revision));
    added++;
  }
  if (last !== undefined && last[0] >= total) throw rewritten();
  await window.drain();
  return { added, total };
}

function rewritten(): TourError {
  return new TourError(
    'the history of the repository was rewritten since the store was made; remove .tidemark-tour/',
  );
}

function stopAsked(): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
}
