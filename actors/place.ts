/**
 * A directory of the file system in which a store is to be made: what core/store/new-store.ts asks beside
 * storage.ts. Called where a backup or a restore runs, on any thread.
 */
import type { Place } from '../core/store/new-store.ts';
import { NodeStorage } from './node-storage.ts';

export function placeAt(directory: string): Place {
  const storage = new NodeStorage(directory);
  return {
    storage,
    name: directory,
    link: (source, from, to) => {
      // Stores that are not files of this system are copied.
      if (source instanceof NodeStorage) storage.linkFrom(source, from, to);
      else throw Object.assign(new Error('no link between storages'), { code: 'EXDEV' });
    },
    removeDir: (path) => storage.removeDir(path),
    syncParent: () => storage.syncDir('..'),
  };
}
