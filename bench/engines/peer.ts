/**
 * Loads a peer from bench/node_modules, which may be absent: the package and its tests never need
 * it. The types a driver uses of a peer are declared in the driver, for the same reason. Called by
 * the drivers, in the child and (to say what is absent) in the orchestrator.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

/** The module as it is; the driver declares what it uses of it. */
export function requirePeer(root: string, name: string): ReturnType<NodeJS.Require> {
  return createRequire(join(root, 'bench', 'package.json'))(name);
}

export function probePeer(root: string, name: string): { version: string } | { absent: string } {
  try {
    requirePeer(root, name);
    const text = readFileSync(join(root, 'bench', 'node_modules', name, 'package.json'), 'utf8');
    const { version }: { version: string } = JSON.parse(text);
    return { version };
  } catch (error) {
    const message = error instanceof Error ? error.message.split('\n')[0] : String(error);
    return { absent: `${message ?? 'unknown'}; install it with: npm run bench:peers` };
  }
}
