/**
 * How a repository's history lies in collections: `files` maps a path to its mode and object id,
 * `revisions` a revision's number to what git says of it. A tenant's rows are the same under the
 * tenant's number, so that the same history can be stored many times over.
 * Called by every stage of the tour.
 */
import type { Collection, Engine } from '../../actors/index.ts';
import { json } from '../../actors/index.ts';

/** In front of a path in a store of many tenants: u32, big endian, so that a tenant's paths lie together. */
export const TENANT_BYTES = 4;
const MODE_BYTES = 4;
const TENANT_STEP = 2 ** 32;

export interface RevisionRow {
  readonly sha: string;
  readonly tree: string;
  /** Committer's time, seconds since 1970. */
  readonly time: number;
}

export interface Collections {
  readonly files: Collection<Buffer, Buffer>;
  readonly revisions: Collection<number, RevisionRow>;
}

export async function openCollections(engine: Engine, history: number): Promise<Collections> {
  return {
    files: await engine.collection('files', { key: 'buffer', value: 'buffer', history }),
    revisions: await engine.collection('revisions', {
      key: 'u64',
      value: json<RevisionRow>(),
      history,
    }),
  };
}

/** u32 mode, little endian; then the object id. */
export function encodeFile(mode: number, id: Buffer): Buffer {
  const value = Buffer.allocUnsafe(MODE_BYTES + id.length);
  value.writeUInt32LE(mode, 0);
  id.copy(value, MODE_BYTES);
  return value;
}

export function modeOf(value: Buffer): number {
  return value.readUInt32LE(0);
}

export function idOf(value: Buffer): Buffer {
  return value.subarray(MODE_BYTES);
}

/** The key of a tenant's revision among all tenants' revisions, in order. */
export function revisionKey(tenant: number, n: number): number {
  return tenant * TENANT_STEP + n;
}

/** The bounds of a tenant's paths. */
export function tenantRange(tenant: number): { gte: Buffer; lt: Buffer } {
  const gte = Buffer.alloc(TENANT_BYTES);
  const lt = Buffer.alloc(TENANT_BYTES);
  gte.writeUInt32BE(tenant);
  lt.writeUInt32BE(tenant + 1);
  return { gte, lt };
}
