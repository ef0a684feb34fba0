/**
 * Counts of measured values by powers of two: what a histogram in shared memory holds, and what an
 * operator reads off it. Bucket 0 counts zeros, bucket k values in [2^(k-1), 2^k), the last one all
 * above as well. Nothing is allocated when a value is counted; the summary is made for whoever asks.
 * Pure; the counting is that of core/shared/counters.ts, on every thread.
 */

/** The last bucket begins at 2^30: 18 minutes in microseconds, 1 GiB in bytes. */
export const HISTOGRAM_BUCKETS = 32;
/** Behind the buckets: the sum of all values, and the largest. */
export const HISTOGRAM_SUM: number = HISTOGRAM_BUCKETS;
export const HISTOGRAM_MAX: number = HISTOGRAM_BUCKETS + 1;
export const HISTOGRAM_WORDS: number = HISTOGRAM_BUCKETS + 2;

/** A histogram as `engine.stats()` shows it. */
export type Histogram = {
  readonly count: number;
  readonly sum: number;
  readonly max: number;
  /** Interpolated inside their bucket: right to a factor of two, and never above `max`. */
  readonly p50: number;
  readonly p99: number;
  /** Counts; bucket 0 holds zeros, bucket k values in [2^(k-1), 2^k). */
  readonly buckets: readonly number[];
};

/** The bucket of a value at or above 0; fractions count as the integer below. */
export function bucketOf(value: number): number {
  return value >= 0x4000_0000 ? HISTOGRAM_BUCKETS - 1 : 32 - Math.clz32(value);
}

/** What HISTOGRAM_WORDS numbers say: the buckets, the sum, the maximum. */
export function summarize(words: readonly number[]): Histogram {
  const buckets = words.slice(0, HISTOGRAM_BUCKETS);
  const count = buckets.reduce((sum, n) => sum + n, 0);
  const max = words[HISTOGRAM_MAX];
  return {
    count,
    sum: words[HISTOGRAM_SUM],
    max,
    p50: quantile(buckets, count, max, 0.5),
    p99: quantile(buckets, count, max, 0.99),
    buckets,
  };
}

function quantile(buckets: readonly number[], count: number, max: number, q: number): number {
  if (count === 0) return 0;
  const rank = Math.ceil(q * count);
  let below = 0;
  for (let k = 0; k < buckets.length; k++) {
    if (below + buckets[k] < rank) {
      below += buckets[k];
      continue;
    }
    if (k === 0) return 0;
    const low = 2 ** (k - 1);
    // The last bucket has no upper end but the largest value.
    const high = k === HISTOGRAM_BUCKETS - 1 ? Math.max(low, max) : 2 ** k;
    return Math.min(max, low + ((high - low) * (rank - below)) / buckets[k]);
  }
  return max;
}
