/** Every script, in the order of the floor plan. */
import type { Case } from '../case.ts';
import { bellCases } from './bell.ts';
import { cacheCases } from './cache.ts';
import { controlCases } from './control.ts';
import { epochCases } from './epoch.ts';
import { holdsCases } from './holds.ts';
import { memtableCases } from './memtable.ts';
import { poolCases } from './pool.ts';
import { readPathCases } from './read-path.ts';
import { ringCases } from './ring.ts';

export const CASES: readonly Case[] = [
  ...poolCases,
  ...ringCases,
  ...bellCases,
  ...controlCases,
  ...epochCases,
  ...readPathCases,
  ...holdsCases,
  ...memtableCases,
  ...cacheCases,
];
