/**
 * The same history over and over, one tenant after another: the load. The history is held in
 * memory in the form in which it is written, so that git takes no part in the figures; of a very
 * long one only the beginning is held. Transaction s of a store is revision s % length of tenant
 * floor(s / length). Called by load.ts, by the child that is killed and by its parent.
 */
import type { Engine, Receipt } from '../../actors/index.ts';
import { readHistory } from './git.ts';
import type { Repository } from './git.ts';
import { TENANT_BYTES, encodeFile, revisionKey } from './rows.ts';
import type { Collections, RevisionRow } from './rows.ts';

/** Revisions and changes held at most: some 100 MiB. */
const heldMax = 300_000;

export interface HeldRevision {
  readonly row: RevisionRow;
  /** Tenant's number, to be filled in, and path. */
  readonly keys: readonly Buffer[];
  /** Undefined: deleted. */
  readonly values: readonly (Buffer | undefined)[];
}

export async function holdHistory(repository: Repository): Promise<HeldRevision[]> {
  const held: HeldRevision[] = [];
  let weight = 0;
  for await (const { sha, tree, time, changes } of readHistory(repository)) {
    weight += 1 + changes.length;
    if (held.length > 0 && weight > heldMax) break;
    held.push({
      row: { sha, tree, time },
      keys: changes.map(({ path }) => Buffer.concat([Buffer.alloc(TENANT_BYTES), path])),
      values: changes.map(({ mode, id }) => (id === undefined ? undefined : encodeFile(mode, id))),
    });
  }
  return held;
}

/** Transaction `sequence` of a store of tenants. Keys are encoded by `put`, so they can be lent again. */
export function commitTenantRevision(
  engine: Engine,
  { files, revisions }: Collections,
  history: readonly HeldRevision[],
  sequence: number,
): Promise<Receipt> {
  const n = sequence % history.length;
  const tenant = (sequence - n) / history.length;
  const { row, keys, values } = history[n];
  const transaction = engine.transaction();
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i];
    key.writeUInt32BE(tenant, 0);
    const value = values[i];
    if (value === undefined) transaction.delete(files, key);
    else transaction.put(files, key, value);
  }
  return transaction.put(revisions, revisionKey(tenant, n), row).commit();
}
