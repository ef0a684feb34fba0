/**
 * A disk whose power can be cut: an ext4 file system in a file, behind a loop device. The cut is the kernel's
 * own shutdown of a file system without a last flush of its journal: every page that was not written is
 * lost, nothing is written any more, and every call fails. Mounting it again replays the journal, as after
 * the lights came back. Needs root, a loop device, mkfs.ext4, and perl for the one call that Node cannot make.
 * Used by rounds.ts.
 *
 * What it cannot do: lose what the device itself had taken and not yet stored. The file behind the loop
 * device keeps all that it was given.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Prng } from '../../core/base/prng.ts';
import { MiB } from '../../core/base/limits.ts';

const DISK_BYTES: number = 1024 * MiB;
/** EXT4_IOC_SHUTDOWN, _IOR('X', 125, u32), and its flag for "the journal is not flushed". */
const SHUTDOWN = `open(my $f, '<', $ARGV[0]) or die $!; my $n = pack('L', 2); ioctl($f, 0x8004587D, $n) or die $!`;

const BLOCK_BYTES: readonly string[] = ['1024', '4096'];
/** How the kernel orders pages and journal is its administrator's choice. */
const MOUNTS: readonly string[] = [
  'defaults',
  'data=writeback',
  'data=journal',
  'nodelalloc',
  'commit=1',
  'noauto_da_alloc',
];

function run(command: string, args: readonly string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export class PowerDisk {
  readonly mountPoint: string;
  readonly #image: string;
  /** It was mounted with these. */
  readonly options: string;
  readonly #device: string;
  #isMounted = false;

  /** Makes it and mounts it, everything below `directory`. Throws where that is not allowed or not there. */
  constructor(directory: string, prng: Prng) {
    this.mountPoint = join(directory, 'mounted');
    this.#image = join(directory, 'image');
    this.options = prng.pick(MOUNTS);
    mkdirSync(this.mountPoint, { recursive: true });
    const fd = openSync(this.#image, 'wx');
    ftruncateSync(fd, DISK_BYTES);
    closeSync(fd);
    run('mkfs.ext4', ['-q', '-F', '-b', prng.pick(BLOCK_BYTES), this.#image]);
    this.#device = run('losetup', ['--find', '--show', this.#image]).trim();
    process.once('exit', this.#detach);
    this.mount();
  }

  mount(): void {
    run('mount', ['-o', this.options, this.#device, this.mountPoint]);
    this.#isMounted = true;
  }

  cut(): void {
    run('perl', ['-e', SHUTDOWN, this.mountPoint]);
  }

  /** Requires: nobody has a file of it open. */
  unmount(): void {
    run('umount', [this.mountPoint]);
    this.#isMounted = false;
  }

  remove(): void {
    process.removeListener('exit', this.#detach);
    this.#detach();
    rmSync(this.#image, { force: true });
  }

  readonly #detach = (): void => {
    if (this.#isMounted) run('umount', ['--lazy', this.mountPoint]);
    this.#isMounted = false;
    run('losetup', ['--detach', this.#device]);
  };
}
