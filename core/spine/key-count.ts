/**
 * How many keys the rows of a collection are of, told from what a merge found twice, as one tells the fish
 * in a pond from those caught twice: each run holds each of its keys once, and its keys are taken to be drawn
 * from all alike. So the rows that merging any runs would leave are known before. Called by the keeper when a
 * merge has landed and when it weighs a collection.
 */

/** Less than one row found twice is told from none: so the estimate stays a number. */
const FOUND_TWICE_MIN = 0.5;
/** Halvings of the range of the estimate, which is one of magnitudes: far closer than it is true. */
const STEPS = 60;

/** Rows that runs of these lengths leave when merged, of `keys` keys. Requires: no run is longer than that. */
export function mergedLen(lens: readonly number[], keys: number): number {
  let log = 0;
  for (const len of lens) log += Math.log1p(Math.max(-1, -len / keys));
  return -keys * Math.expm1(log);
}

/** How many keys there are when runs of these lengths left `merged` rows; 0: nothing is told. */
export function keyCountOf(lens: readonly number[], merged: number): number {
  let sum = 0;
  let longest = 0;
  let count = 0;
  for (const len of lens) {
    sum += len;
    longest = Math.max(longest, len);
    if (len > 0) count++;
  }
  if (count < 2) return 0;
  const left = Math.min(merged, sum - FOUND_TWICE_MIN);
  if (left <= longest) return longest;
  let low = Math.log(longest);
  // Two rows of the sum meet with chance 1 / keys: here not even half a one is found twice.
  let high = Math.log(Math.max(2 * longest, sum * sum));
  for (let step = 0; step < STEPS; step++) {
    const middle = (low + high) / 2;
    if (mergedLen(lens, Math.exp(middle)) < left) low = middle;
    else high = middle;
  }
  return Math.exp(high);
}

/** Of the rows above the oldest run, the share that merging all runs drops. `lens`: oldest first. */
export function overlapOf(lens: readonly number[], keys: number): number {
  let sum = 0;
  let longest = 0;
  for (const len of lens) {
    sum += len;
    longest = Math.max(longest, len);
  }
  const newer = sum - (lens[0] ?? 0);
  if (newer <= 0) return 0;
  return Math.max(0, Math.min(1, (sum - mergedLen(lens, Math.max(keys, longest))) / newer));
}
