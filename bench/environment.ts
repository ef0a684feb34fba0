/**
 * Where the figures come from: machine, file system, versions. What is recorded says what kind of
 * machine it was, not which. Called by main.ts.
 */
import { execFileSync } from 'node:child_process';
import { statfsSync } from 'node:fs';
import { arch, cpus, platform, release, totalmem } from 'node:os';

export interface Environment {
  readonly cpu: string;
  readonly cpuCount: number;
  readonly memoryMiB: number;
  readonly platform: string;
  readonly node: string;
  readonly v8: string;
  readonly fileSystem: string;
  /** The files are in memory: a sync there means nothing. */
  readonly volatile: boolean;
  readonly commit: string;
}

const FILE_SYSTEMS: ReadonlyMap<number, string> = new Map([
  [0xef53, 'ext4'],
  [0x58465342, 'xfs'],
  [0x9123683e, 'btrfs'],
  [0x2fc12fc1, 'zfs'],
  [0xf2f52010, 'f2fs'],
  [0x794c7630, 'overlayfs'],
  [0x6969, 'nfs'],
  [0x65735546, 'fuse'],
  [0x01021994, 'tmpfs'],
  [0x858458f6, 'ramfs'],
]);

export function environmentOf(root: string, directory: string): Environment {
  const type = statfsSync(directory).type;
  const fileSystem = FILE_SYSTEMS.get(type) ?? `type 0x${type.toString(16)}`;
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpuCount: cpus().length,
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    platform: `${platform()} ${release()} ${arch()}`,
    node: process.versions.node,
    v8: process.versions.v8,
    fileSystem,
    volatile: fileSystem === 'tmpfs' || fileSystem === 'ramfs',
    commit: commitOf(root),
  };
}

/** The commit measured, marked when what was built differs from it. */
function commitOf(root: string): string {
  const git = (...words: string[]): string =>
    execFileSync('git', words, {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  try {
    const changed = git('status', '--porcelain', '--', 'core', 'actors', 'package-lock.json');
    return `${git('rev-parse', '--short=12', 'HEAD')}${changed === '' ? '' : '-dirty'}`;
  } catch {
    return 'unknown'; // no git, or not a checkout: the figures are as good
  }
}
