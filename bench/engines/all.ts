/**
 * The engines, by name, ours first. Used by the orchestrator (what is there, what to sweep) and by
 * the child (which to open).
 */
import { betterSqlite3 } from './better-sqlite3.ts';
import { classicLevel } from './classic-level.ts';
import type { Driver } from './engine.ts';
import { lmdb } from './lmdb.ts';
import { tidemark } from './tidemark.ts';

export const DRIVERS: readonly Driver[] = [tidemark, classicLevel, lmdb, betterSqlite3];
