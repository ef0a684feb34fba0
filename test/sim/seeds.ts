/** The seeds that once failed (test/golden/seeds.txt): run first for ever after. */
import { readFileSync } from 'node:fs';

const FILE = new URL('../golden/seeds.txt', import.meta.url);

/** Lines are `seed ticks  what it found`; # starts a comment. */
export function readSeeds(): { seed: number; ticks: number; found: string }[] {
  return readFileSync(FILE, 'utf8')
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.startsWith('#'))
    .map((line) => {
      const [seed, ticks, ...found] = line.trim().split(/\s+/);
      return { seed: Number(seed), ticks: Number(ticks), found: found.join(' ') };
    });
}
