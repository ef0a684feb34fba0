/**
 * Every bound in one place, and how bounds relate, asserted at load. A number here is either promised
 * to callers (api.md "Errors"), part of a format, or the reason that something cannot overflow.
 */
import { invariant } from './assert.ts';

export const KiB = 1024;
export const MiB: number = 1024 * KiB;
export const GiB: number = 1024 * MiB;

// Promised to callers.
export const keyBytesMax = 65_535;
export const valueBytesMax: number = 32 * MiB;
export const commitBytesMax: number = 64 * MiB;
export const collectionNameBytesMax = 255;
export const collectionsMax = 16_384;
export const metaBytesMax: number = 64 * KiB;
export const transactionsPerRecordMax = 65_535;
export const waitingTransactionsMax = 65_536;
export const waitingBytesMax: number = 16 * MiB;

// The arena.
export const pageBytes: number = 256 * KiB;
export const pageShift = 18;
export const arenaBytesMin: number = 32 * MiB;
export const arenaBytesDefaultMin: number = 64 * MiB;
export const arenaBytesDefaultMax: number = 1 * GiB;
/** One page short of 4 GiB, so that an address and the end of the last page are both u32. */
export const arenaBytesMax: number = 4 * GiB - pageBytes;
export const clientsMax = 64;
/** Generations alive at once: open, spare, two sealed. More sealed ones wait for the flush. */
export const generationsPlanned = 4;
export const writeBudgetBytesMin: number = 16 * MiB;

// The log.
export const logBatchBytesMax: number = 8 * MiB;
export const inPlaceBytesMin: number = 32 * KiB;
export const unsyncedBytesMax: number = 64 * MiB;
export const segmentBytesDefault: number = 256 * MiB;
export const segmentBytesMin: number = 16 * KiB;
export const segmentBytesMax: number = 32 * GiB;
export const idleWatermarkMs = 50;
/** A checkpoint at every so many, whatever the segments. */
export const checkpointTransactions = 1_000_000;
export const stallMs = 1_000;

// The spine.
/** Batches a level may hold; the fuel proof is for binary merges (spine.md 1.3). */
export const levelBatchesMax = 2;
export const fanInMax = 32;
export const blockBytesTarget: number = 16 * KiB;
export const partBytesTarget: number = 12 * MiB;
/** Keeps a part's filter inside one page: 10 bits a row. */
export const partRowsMax = 200_000;
export const runsPerMerge = 4;
export const runsSoft = 24;
export const runsHard = 64;
export const openPartsMax = 2_048;
export const editsPerRollup = 256;
export const editBytesPerRollup: number = 1 * MiB;

// Rings.
/** Records a client may have outstanding; its receipts have as many slots. */
export const recordRingSlots = 256;
export const logRingSlots = 1_024;
export const controlRingSlots = 64;
/** Slots of 15 node ids each. */
export const touchRingSlots = 64;
export const populateRingSlots = 128;

invariant(pageBytes === 1 << pageShift, 'a page is a power of two');
// An operation's header and key never cross a page, and a page holds at least one of the largest.
invariant(16 + 8 + 8 + 2 * keyBytesMax < pageBytes, 'header and key, or two bounds, fit a page');
invariant(commitBytesMax >= valueBytesMax + keyBytesMax + 64, 'the largest value can be committed');
invariant(writeBudgetBytesMin * 2 <= arenaBytesMin, 'the write budget is at most half the arena');
invariant(unsyncedBytesMax >= logBatchBytesMax, 'one batch may always be unsynced');
invariant(partRowsMax * 10 <= pageBytes * 8, 'a filter fits a page');
