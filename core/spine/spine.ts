/**
 * One collection's trace: immutable batches by level, oldest and largest first, merged by concatenating
 * pointers; workers rewrite parts later and `apply` swaps pointers inside one spine batch. An apply
 * never changes levels, ids or neighbours, so correctness depends on the swap being an exact
 * substitution and only performance on the levels. Called by the keeper; the state is flat and immutable.
 *
 *   push        a new batch at the newest end: fuel to every merge, roll the levels below it up, tidy
 *   structural merge   two neighbours of a level become one spine batch: pointer lists concatenated
 *   fuel        counts down when a structural merge completes; nothing is rewritten by it
 *
 * Invariants (spine.md 1.4), which `validate` checks: I1 times abut from 0 to `upper`. I2 ids abut from
 * 0 to `nextId`, parts tile their spine batch in both. I3 part since <= spine batch since <= since.
 * I4 a level holds at most two batches, a merge exactly when two. I5 len <= 2^level. I6 below a double
 * at level k the levels' full sizes add up to less than 2^k, so a result always finds room. I7 the top
 * level is not vacant. I8 len caches are sums. I9 no bid, runId or part twice. I11 ordered kinds ascend in time.
 */
import { invariant, verify } from '../base/assert.ts';
import { corrupt, TidemarkError } from '../base/errors.ts';
import { isFrontier, join, le, lt } from '../base/frontier.ts';
import { levelBatchesMax } from '../base/limits.ts';
import { KIND_MULTISET } from '../base/update.ts';
import {
  addSums,
  EMPTY_STATE,
  hollowFinding,
  isEmpty,
  joinSince,
  lenMax,
  levelMax,
  levelOf,
  partsLen,
  POWERS,
  runsFinding,
  sumsOf,
  timeOrderFinding,
} from './batch.ts';
import type {
  BatchEntry,
  Description,
  Finding,
  Hollow,
  MergeEntry,
  Placed,
  Run,
  SpineBatch,
  SpineDelta,
  SpineId,
  SpinePart,
  SpineState,
  Sums,
} from './batch.ts';

/** Eager: a structural merge completes with the next push. 1 is the least that keeps I6. */
export const effortDefault = 1_024;

/** Fuel per record that arrives: 4 for it, 4 for the virtual records that promotion makes. */
const FUEL_PER_RECORD = 8;

/** Never-reused ids; the owner persists its counters ahead of use. One operation takes few. */
export interface SpineIds {
  bid(): number;
  run(): number;
}

/** A structural merge that completed: advice to rewrite `inputs`, always safe to drop. */
export type FueledMergeReq<P extends SpinePart = SpinePart> = {
  readonly id: SpineId;
  readonly desc: Description;
  readonly inputs: readonly Placed<P>[];
};

/** Where completed structural merges of non-empty batches are told, oldest first. */
export interface SpineLog<P extends SpinePart = SpinePart> {
  onMerged(request: FueledMergeReq<P>): void;
}

export type SpineOptions<P extends SpinePart = SpinePart> = {
  readonly ids: SpineIds;
  /** KIND_KEYED, KIND_MULTISET or KIND_UPSERT. */
  readonly kind: number;
  readonly effort?: number;
  /** Fuse an empty push with an empty newest batch. The engine pushes no empty batch. */
  readonly fuseEmpty?: boolean;
  readonly log?: SpineLog<P>;
};

/** What a flush made: runs oldest to newest, each a list of parts. */
export type NewBatch<P extends SpinePart = SpinePart> = {
  readonly lower: number;
  readonly upper: number;
  readonly since: number;
  readonly runs: readonly (readonly P[])[];
};

/** What a merge made of some batches, or of some runs of one. */
export type MergeResult<P extends SpinePart = SpinePart> = {
  /** Bids of the batches it replaces, oldest first. */
  readonly inputs: readonly number[];
  /** A partial result: the runs of the one batch in `inputs` that it replaces, oldest first. */
  readonly runIds?: readonly number[];
  readonly since: number;
  /** Output runs, oldest to newest, each a list of parts. None: nothing is left. */
  readonly runs: readonly (readonly P[])[];
  /** Of the output, counted again from its files. */
  readonly output: Sums;
  /** Of the rows that were left out: history, hidden or retracted rows, rows outside a slice. */
  readonly dropped: Sums;
  /** Rows that fell together with an equal neighbour. */
  readonly folded: number;
};

export type Refusal =
  /** The collection is gone; the keeper says this one. */
  | 'dropped'
  /** The inputs are not, in this order, neighbours in one spine batch: stale, repeated, or never there. */
  | 'noMatch'
  /** The result forgot less than an input had, or more than the spine allows. */
  | 'invalidSince'
  /** The output is not a well-formed list of runs for this place. */
  | 'badShape'
  /** More updates than it replaces: cannot happen honestly. */
  | 'tooManyUpdates'
  /** Rows vanished or appeared unnoticed. */
  | 'checksumMismatch';

/** A refusal left the spine as it was. */
export type ApplyOutcome<P extends SpinePart = SpinePart> =
  | {
      readonly outcome: 'applied';
      /** The result replaced all parts of its spine batch. */
      readonly exact: boolean;
      readonly hollow: Hollow<P>;
    }
  | { readonly outcome: Refusal; readonly message: string };

type FuelingMerge = { since: number; remaining: number };

type Level<P extends SpinePart> = { batches: SpineBatch<P>[]; merge: FuelingMerge | undefined };

export class Spine<P extends SpinePart = SpinePart> {
  readonly kind: number;
  readonly effort: number;
  readonly #ids: SpineIds;
  readonly #fuseEmpty: boolean;
  #log: SpineLog<P> | undefined;
  #since = 0;
  #upper = 0;
  #nextId = 0;
  /** Total of the batches' lens; bounds what is there. */
  #len = 0;
  #levels: Level<P>[] = [];
  #state: SpineState<P> | undefined;
  #batches: readonly SpineBatch<P>[] | undefined;

  constructor(options: SpineOptions<P>) {
    this.kind = options.kind;
    this.effort = options.effort ?? effortDefault;
    this.#ids = options.ids;
    this.#fuseEmpty = options.fuseEmpty ?? false;
    this.#log = options.log;
    invariant(this.effort >= 1, 'effort is at least 1', this.effort);
  }

  /** The spine that wrote `state`, structure included. The state is foreign: TIDEMARK_CORRUPT when it breaks an invariant. */
  static restore<P extends SpinePart>(state: SpineState<P>, options: SpineOptions<P>): Spine<P> {
    const misplaced = stateFinding(state);
    if (misplaced !== undefined) throw corrupt(misplaced.finding, misplaced.message);
    const spine = new Spine<P>(options);
    spine.#since = state.since;
    const batches = batchesOf(state);
    for (let i = 0; i < batches.length; i++) {
      spine.#growTo(state.batches[i].level + 1);
      spine.#levels[state.batches[i].level].batches.push(batches[i]);
      spine.#len += batches[i].len;
    }
    for (const { id, since, remaining } of state.merges) {
      const entry = state.batches.find((batch) => batch.id[0] === id[0])!;
      spine.#levels[entry.level].merge = { since, remaining };
    }
    const newest = batches.at(-1);
    if (newest !== undefined) {
      spine.#upper = newest.desc.upper;
      spine.#nextId = newest.id[1];
    }
    const wrong = spine.finding();
    if (wrong !== undefined) throw corrupt(wrong.finding, wrong.message);
    return spine;
  }

  get since(): number {
    return this.#since;
  }

  get upper(): number {
    return this.#upper;
  }

  get nextId(): number {
    return this.#nextId;
  }

  get len(): number {
    return this.#len;
  }

  /** Index of the highest level plus one. */
  get levelCount(): number {
    return this.#levels.length;
  }

  /** Oldest to newest. */
  batches(): readonly SpineBatch<P>[] {
    if (this.#batches === undefined) {
      const batches: SpineBatch<P>[] = [];
      for (let i = this.#levels.length - 1; i >= 0; i--) batches.push(...this.#levels[i].batches);
      this.#batches = batches;
    }
    return this.#batches;
  }

  /** The whole spine as plain values; the same object until something changes. */
  state(): SpineState<P> {
    this.#state ??= this.#flatten();
    return this.#state;
  }

  advanceSince(since: number): void {
    if (!isFrontier(since) || lt(since, this.#since)) {
      throw misuse('SINCE_REGRESSED', `since cannot go from ${this.#since} to ${since}`);
    }
    this.#since = since;
    this.#changed();
  }

  /** Appends a batch at the newest end. Throws, with nothing changed, when it does not fit there. */
  push(batch: NewBatch<P>): Hollow<P> {
    const { lower, upper, since, runs } = batch;
    if (!isFrontier(lower) || !isFrontier(upper) || !isFrontier(since)) {
      throw misuse('BAD_FRONTIER', 'a pushed batch has a bound that is not an offset');
    }
    if (lower !== this.#upper) {
      throw misuse('PUSH_LOWER', `batch begins at ${lower}, the spine ends at ${this.#upper}`);
    }
    if (!lt(lower, upper))
      throw misuse('PUSH_BOUNDS', `batch covers nothing: [${lower}, ${upper})`);
    if (!le(since, this.#since)) {
      throw misuse('PUSH_SINCE', `batch since ${since} is above the spine's, ${this.#since}`);
    }
    const desc = { lower, upper, since };
    const wrong =
      runsFinding(asRuns(runs), desc, this.kind) ?? this.#orderFinding(asRuns(runs), desc);
    if (wrong !== undefined) throw misuse(wrong.finding, wrong.message);
    let len = 0;
    for (const parts of runs) len += partsLen(parts);
    if (this.#len + len > lenMax)
      throw misuse('SPINE_TOO_LONG', 'too many updates in one collection');

    const hollow = this.#hollow(desc, runs);
    const id: SpineId = [this.#nextId, this.#nextId + 1];
    this.#nextId += 1;
    this.#upper = upper;
    this.#len += len;
    const placed = wrap({ id, hollow });
    if (!this.#fuse(placed)) this.#introduce(placed, levelOf(len));
    this.#changed();
    return hollow;
  }

  /** Swaps what a job made for what it read, if that is still what it was. */
  apply(result: MergeResult<P>): ApplyOutcome<P> {
    const found = this.#find(result);
    if (found === undefined) return refusal('noMatch', 'the inputs are not there');
    const { batch, from, to } = found;
    const inputs = batch.parts.slice(from, to);
    const replaced = replacedRuns(inputs, result.runIds, this.kind !== KIND_MULTISET);
    if (replaced === undefined) return refusal('noMatch', 'the runs are not there');

    const sinceMin = joinSince(inputs, 0);
    if (!isFrontier(result.since) || lt(result.since, sinceMin) || lt(this.#since, result.since)) {
      return refusal(
        'invalidSince',
        `since ${result.since} outside [${sinceMin}, ${this.#since}], inputs and spine`,
      );
    }
    const desc: Description = {
      lower: inputs[0].hollow.desc.lower,
      upper: inputs.at(-1)!.hollow.desc.upper,
      since: result.since,
    };
    const output = sumsOf(asRuns(result.runs));
    const wrong = runsFinding(asRuns(result.runs), desc, this.kind);
    if (wrong !== undefined) return refusal('badShape', wrong.message);
    if (!sumsEqual(output, result.output)) {
      return refusal('badShape', 'the parts of the result do not add up to its totals');
    }
    const input = sumsOf(replaced);
    if (output.len > input.len) {
      return refusal('tooManyUpdates', `${output.len} updates made of ${input.len}`);
    }
    const accounted = addSums(output, result.dropped);
    const whole = { ...accounted, len: accounted.len + result.folded };
    if (result.folded < 0 || result.dropped.len < 0 || !sumsEqual(whole, input)) {
      return refusal('checksumMismatch', 'the result and what it dropped are not its inputs');
    }

    const gone = new Set(replaced);
    const kept = inputs.flatMap((part) => part.hollow.runs).filter((run) => !gone.has(run));
    const place = inputs[0].hollow.runs.findIndex((run) => gone.has(run));
    const older = kept.slice(0, Math.max(place, 0));
    const newer = kept.slice(older.length);
    const disorder = this.#orderFinding([...older, ...asRuns(result.runs), ...newer], desc);
    if (disorder !== undefined) return refusal('badShape', disorder.message);

    // Only now are ids taken: a refusal leaves no trace.
    const made = [...older, ...result.runs.map((parts) => this.#run(parts)), ...newer];
    const hollow: Hollow<P> = { bid: this.#ids.bid(), desc, runs: made, len: runsLen(made) };
    const placed: Placed<P> = { id: [inputs[0].id[0], inputs.at(-1)!.id[1]], hollow };
    const parts = [...batch.parts.slice(0, from), placed, ...batch.parts.slice(to)];
    this.#substitute(batch, {
      id: batch.id,
      desc: { ...batch.desc, since: join(batch.desc.since, desc.since) },
      parts,
      len: partsTotal(parts),
    });
    this.#changed();
    return { outcome: 'applied', exact: parts.length === 1 && kept.length === 0, hollow };
  }

  /**
   * Pushes merges along without writes: spends `fuel`, or brings in an empty batch of that many virtual
   * records. False when there is nothing to do.
   */
  exert(fuel: number): boolean {
    this.#tidy();
    this.#changed();
    if (this.#hollowCount() < 2) return false;
    if (this.#levels.some((level) => level.merge !== undefined)) {
      this.#applyFuel(fuel);
    } else {
      const desc = { lower: this.#upper, upper: this.#upper, since: this.#since };
      const id: SpineId = [this.#nextId, this.#nextId + 1];
      this.#nextId += 1;
      this.#introduce(wrap({ id, hollow: this.#hollow(desc, []) }), levelOf(fuel));
    }
    this.#changed();
    return true;
  }

  /**
   * Makes one spine batch of all, or of all batches at levels below `level`: structural only, a merge
   * job can then take the whole. `level` acts as a push of 2^level virtual records would, without it.
   * False when nothing changed.
   */
  collapse(level: number = this.#levels.length): boolean {
    if (this.#levels.length === 0) return false;
    const before = this.state();
    const whole = level >= this.#levels.length;
    this.#applyFuel(whole ? Number.MAX_SAFE_INTEGER : this.#fuelOf(level));
    // Completed merges may have added a level on top.
    this.#rollUp(whole ? this.#levels.length : level);
    this.#dropVacantTop();
    this.#tidy();
    this.#changed();
    return !isNoChange(before, diffSpine(before, this.state()));
  }

  /** Checks every invariant; our own mistake when one is broken. */
  validate(): void {
    const wrong = this.finding();
    invariant(wrong === undefined, 'the spine is sound', wrong?.finding, wrong?.message);
  }

  /** The first invariant that does not hold. */
  finding(): Finding | undefined {
    const batches = this.batches();
    let upper = 0;
    let nextId = 0;
    let len = 0;
    const bids = new Set<number>();
    const runIds = new Set<number>();
    const parts = new Set<string>();
    for (const batch of batches) {
      if (batch.id[0] !== nextId) return bad('ID_GAP', `id ${batch.id[0]} after ${nextId}`);
      if (batch.desc.lower !== upper)
        return bad('TIME_GAP', `lower ${batch.desc.lower} after ${upper}`);
      if (!le(batch.desc.since, this.#since))
        return bad('SINCE_ABOVE', 'a spine batch is past since');
      if (batch.parts.length === 0) return bad('NO_PARTS', 'a spine batch has no parts');
      let total = 0;
      for (const { id, hollow } of batch.parts) {
        if (id[0] !== nextId || id[1] <= id[0])
          return bad('ID_GAP', `part ${id[0]} after ${nextId}`);
        if (hollow.desc.lower !== upper) return bad('TIME_GAP', `part at ${hollow.desc.lower}`);
        if (!le(hollow.desc.since, batch.desc.since))
          return bad('SINCE_ABOVE', 'a part is past since');
        const wrong = hollowFinding(hollow, this.kind);
        if (wrong !== undefined) return wrong;
        if (bids.has(hollow.bid)) return bad('ID_REUSED', `batch id ${hollow.bid} twice`);
        bids.add(hollow.bid);
        for (const run of hollow.runs) {
          if (runIds.has(run.runId)) return bad('ID_REUSED', `run id ${run.runId} twice`);
          runIds.add(run.runId);
          for (const { file, offset } of run.parts) {
            const part = `${file}:${offset}`;
            if (parts.has(part))
              return bad('PART_TWICE', `part at ${offset} of file ${file} twice`);
            parts.add(part);
          }
        }
        nextId = id[1];
        upper = hollow.desc.upper;
        total += hollow.len;
      }
      if (batch.id[1] !== nextId) return bad('ID_GAP', `spine batch ends at ${batch.id[1]}`);
      if (batch.desc.upper !== upper)
        return bad('TIME_GAP', `spine batch ends at ${batch.desc.upper}`);
      if (batch.len !== total) return bad('LEN_MISMATCH', `${batch.len} is not ${total}`);
      len += total;
    }
    if (upper !== this.#upper) return bad('TIME_GAP', `the spine ends at ${this.#upper}`);
    if (nextId !== this.#nextId) return bad('ID_GAP', `the next id is ${this.#nextId}`);
    if (len !== this.#len) return bad('LEN_MISMATCH', `${this.#len} is not ${len}`);
    if (len > lenMax) return bad('SPINE_TOO_LONG', 'too many updates in one collection');
    return this.#levelsFinding() ?? this.#timesFinding();
  }

  #levelsFinding(): Finding | undefined {
    if (this.#levels.length > 0 && this.#levels.at(-1)!.batches.length === 0) {
      return bad('VACANT_TOP', 'the top level holds nothing');
    }
    let below = 0;
    for (let k = 0; k < this.#levels.length; k++) {
      const { batches, merge } = this.#levels[k];
      const count = batches.length;
      if (count > levelBatchesMax) return bad('LEVEL_FULL', `level ${k} holds ${count} batches`);
      if ((count === levelBatchesMax) !== (merge !== undefined)) {
        return bad('MERGE_MISSING', `level ${k} holds ${count} batches`);
      }
      if (merge !== undefined) {
        if (!Number.isSafeInteger(merge.remaining) || merge.remaining < 0) {
          return bad('BAD_REMAINING', `merge at level ${k} has ${merge.remaining} left`);
        }
        // What is left is at most both batches in full, or the next push could not finish it.
        if (merge.remaining > 2 * POWERS[k]) {
          return bad('BAD_REMAINING', `merge at level ${k} has ${merge.remaining} left`);
        }
        if (!le(merge.since, this.#since)) return bad('SINCE_ABOVE', 'a merge is past since');
        if (below >= POWERS[k]) return bad('NO_ROOM', `below the double at level ${k}: ${below}`);
      }
      for (const batch of batches) {
        if (batch.len > POWERS[k]) return bad('LEVEL_TOO_LOW', `${batch.len} at level ${k}`);
      }
      below += count * POWERS[k];
    }
    return undefined;
  }

  #timesFinding(): Finding | undefined {
    if (this.kind === KIND_MULTISET) return undefined;
    return timeOrderFinding(runsOf(this.batches()), this.kind, this.#since);
  }

  #orderFinding(
    runs: readonly { readonly parts: readonly P[] }[],
    desc: Description,
  ): Finding | undefined {
    return this.kind === KIND_MULTISET ? undefined : timeOrderFinding(runs, this.kind, desc.since);
  }

  // --- levels

  #fuelOf(level: number): number {
    return Math.min(FUEL_PER_RECORD * POWERS[level] * this.effort, Number.MAX_SAFE_INTEGER);
  }

  /** An empty batch beside an empty newest one: they become one in place. */
  #fuse(batch: SpineBatch<P>): boolean {
    if (!this.#fuseEmpty || batch.len > 0) return false;
    const lowest = this.#levels.findIndex((level) => level.batches.length > 0);
    if (lowest < 0) return false;
    const level = this.#levels[lowest];
    if (level.batches.length !== 1 || level.batches[0].len > 0) return false;
    this.#insertAt(batch, lowest);
    level.batches = [this.#completeAt(lowest)!];
    return true;
  }

  #introduce(batch: SpineBatch<P>, level: number): void {
    invariant(level <= levelMax, 'level within bounds', level);
    this.#applyFuel(this.#fuelOf(level));
    this.#rollUp(level);
    this.#insertAt(batch, level);
    this.#tidy();
  }

  #growTo(count: number): void {
    while (this.#levels.length < count) this.#levels.push({ batches: [], merge: undefined });
  }

  #insertAt(batch: SpineBatch<P>, index: number): void {
    this.#growTo(index + 1);
    const level = this.#levels[index];
    invariant(level.merge === undefined, 'no batch enters an unfinished merge', index);
    level.batches.push(batch);
    if (level.batches.length === 1) return;
    const first = level.batches[0];
    const second = batch;
    invariant(first.id[1] === second.id[0], 'ids abut', first.id[1], second.id[0]);
    invariant(first.desc.upper === second.desc.lower, 'times abut', first.desc.upper);
    const since = join(join(first.desc.since, second.desc.since), this.#since);
    level.merge = { since, remaining: first.len + second.len };
  }

  /** Empties the level: nothing, its one batch, or its two as one. */
  #completeAt(index: number): SpineBatch<P> | undefined {
    const level = this.#levels[index];
    const { batches, merge } = level;
    level.batches = [];
    level.merge = undefined;
    if (batches.length < 2) return batches[0];
    invariant(merge !== undefined, 'a double has a merge', index);
    return this.#done(batches[0], batches[1], merge.since);
  }

  #done(first: SpineBatch<P>, second: SpineBatch<P>, mergeSince: number): SpineBatch<P> {
    const id: SpineId = [first.id[0], second.id[1]];
    // A result may have raised an input past the since noted when the merge began.
    const since = join(mergeSince, join(first.desc.since, second.desc.since));
    const desc: Description = { lower: first.desc.lower, upper: second.desc.upper, since };
    const inputs = [...first.parts, ...second.parts];
    if (inputs.every((part) => isEmpty(part.hollow))) {
      return wrap({ id, hollow: this.#hollow(desc, []) });
    }
    this.#log?.onMerged({ id, desc, inputs });
    return { id, desc, parts: inputs, len: first.len + second.len };
  }

  #applyFuel(fuel: number): void {
    const count = this.#levels.length;
    for (let i = 0; i < count; i++) {
      const { merge } = this.#levels[i];
      if (merge === undefined) continue;
      // A countdown set once: lens may shrink meanwhile, so it is never computed again from them.
      merge.remaining -= Math.min(fuel, merge.remaining);
      if (merge.remaining > 0) continue;
      this.#insertAt(this.#completeAt(i)!, i + 1);
    }
  }

  /** Brings everything below `index` up to it as one batch, and leaves room for one there. */
  #rollUp(index: number): void {
    this.#growTo(index + 1);
    if (this.#levels.slice(0, index).every((level) => level.batches.length === 0)) return;
    let carry: SpineBatch<P> | undefined;
    for (let i = 0; i < index; i++) {
      if (carry !== undefined) this.#insertAt(carry, i);
      carry = this.#completeAt(i);
    }
    if (carry !== undefined) this.#insertAt(carry, index);
    if (this.#levels[index].merge !== undefined) {
      this.#insertAt(this.#completeAt(index)!, index + 1);
    }
  }

  /** Draws a lone top batch down to the level of its size while that keeps I6. */
  #tidy(): void {
    const levels = this.#levels;
    if (levels.length === 0 || levels.at(-1)!.batches.length !== 1) return;
    const appropriate = levelOf(levels.at(-1)!.batches[0].len);
    while (appropriate < levels.length - 1) {
      const below = levels[levels.length - 2];
      if (below.batches.length === 0) {
        levels.splice(levels.length - 2, 1);
        continue;
      }
      if (below.batches.length > 1) return;
      let smaller = 0;
      for (let i = 0; i < levels.length - 2; i++) smaller += levels[i].batches.length * POWERS[i];
      if (FUEL_PER_RECORD * smaller > POWERS[levels.length]) return;
      levels.splice(levels.length - 2, 1);
      this.#insertAt(below.batches[0], levels.length - 1);
      return;
    }
  }

  #dropVacantTop(): void {
    while (this.#levels.at(-1)?.batches.length === 0) this.#levels.pop();
  }

  // --- values

  #run(parts: readonly P[]): Run<P> {
    return { runId: this.#ids.run(), parts, len: partsLen(parts) };
  }

  #hollow(desc: Description, runs: readonly (readonly P[])[]): Hollow<P> {
    const made = runs.map((parts) => this.#run(parts));
    return { bid: this.#ids.bid(), desc, runs: made, len: runsLen(made) };
  }

  #hollowCount(): number {
    let count = 0;
    for (const batch of this.batches()) count += batch.parts.length;
    return count;
  }

  /** The spine batch that holds the inputs as neighbours, and their place in it. */
  #find(result: MergeResult<P>): { batch: SpineBatch<P>; from: number; to: number } | undefined {
    const { inputs, runIds } = result;
    if (inputs.length === 0 || (runIds !== undefined && inputs.length !== 1)) return undefined;
    for (const batch of this.batches()) {
      const from = batch.parts.findIndex((part) => part.hollow.bid === inputs[0]);
      if (from < 0) continue;
      const to = from + inputs.length;
      if (to > batch.parts.length) return undefined;
      for (let i = from; i < to; i++) {
        if (batch.parts[i].hollow.bid !== inputs[i - from]) return undefined;
      }
      return { batch, from, to };
    }
    return undefined;
  }

  #substitute(old: SpineBatch<P>, batch: SpineBatch<P>): void {
    for (const level of this.#levels) {
      const index = level.batches.indexOf(old);
      if (index < 0) continue;
      level.batches[index] = batch;
      this.#len += batch.len - old.len;
      return;
    }
    invariant(false, 'the batch is in a level', old.id[0], old.id[1]);
  }

  #flatten(): SpineState<P> {
    const hollows: Placed<P>[] = [];
    const batches: BatchEntry[] = [];
    const merges: MergeEntry[] = [];
    for (let k = this.#levels.length - 1; k >= 0; k--) {
      const level = this.#levels[k];
      for (const batch of level.batches) {
        hollows.push(...batch.parts);
        batches.push({ id: batch.id, level: k, desc: batch.desc });
      }
      if (level.merge === undefined) continue;
      const id: SpineId = [level.batches[0].id[0], level.batches.at(-1)!.id[1]];
      merges.push({ id, since: level.merge.since, remaining: level.merge.remaining });
    }
    return { since: this.#since, hollows, batches, merges };
  }

  #changed(): void {
    this.#state = undefined;
    this.#batches = undefined;
    if (verify()) this.validate();
  }
}

/** The spine batches of a state, oldest to newest. Requires: a state that a spine gave, or that was checked. */
export function batchesOf<P extends SpinePart>(state: SpineState<P>): readonly SpineBatch<P>[] {
  const batches: SpineBatch<P>[] = [];
  let next = 0;
  for (const { id, desc } of state.batches) {
    const from = next;
    while (next < state.hollows.length && state.hollows[next].id[0] < id[1]) next++;
    const parts = state.hollows.slice(from, next);
    batches.push({ id, desc, parts, len: partsTotal(parts) });
  }
  return batches;
}

/** What keeps a foreign state from being laid out in levels; `Spine.finding` checks the rest. */
function stateFinding(state: SpineState): Finding | undefined {
  if (!isFrontier(state.since)) return bad('BAD_FRONTIER', 'since is not an offset');
  let level = levelMax;
  let last = 0;
  for (const entry of state.batches) {
    if (!Number.isSafeInteger(entry.level) || entry.level < 0 || entry.level > levelMax) {
      return bad('BAD_LEVEL', `level ${entry.level}`);
    }
    if (entry.level > level) return bad('LEVEL_ORDER', 'a newer batch is at a higher level');
    if (entry.id[0] !== last || entry.id[1] <= entry.id[0]) {
      return bad('ID_GAP', `spine batch [${entry.id[0]}-${entry.id[1]}] after ${last}`);
    }
    level = entry.level;
    last = entry.id[1];
  }
  last = 0;
  for (const { id } of state.hollows) {
    if (id[0] !== last || id[1] <= id[0]) return bad('ID_GAP', `part ${id[0]} after ${last}`);
    last = id[1];
  }
  if (last !== (state.batches.at(-1)?.id[1] ?? 0))
    return bad('ID_GAP', 'parts outside all batches');
  const seen = new Set<number>();
  for (const { id } of state.merges) {
    const first = state.batches.findIndex((batch) => batch.id[0] === id[0]);
    const a = state.batches[first];
    const b = state.batches[first + 1];
    if (a === undefined || b === undefined || a.level !== b.level || b.id[1] !== id[1]) {
      return bad('MERGE_MISSING', `merge [${id[0]}-${id[1]}] joins no two batches of a level`);
    }
    if (seen.has(id[0])) return bad('MERGE_MISSING', `merge [${id[0]}-${id[1]}] twice`);
    seen.add(id[0]);
  }
  return undefined;
}

/** What changed between two states, as effects. */
export function diffSpine<P extends SpinePart>(
  before: SpineState<P> | undefined,
  after: SpineState<P>,
): SpineDelta<P> {
  const old = before ?? EMPTY_STATE;
  // A bid names exact contents, so equal ids are equal batches, whoever decoded them.
  const hadHollows = new Map(old.hollows.map((placed) => [placed.hollow.bid, placed]));
  const hasHollows = new Map(after.hollows.map((placed) => [placed.hollow.bid, placed]));
  const hadBatches = new Map(old.batches.map((entry) => [entry.id[0], entry]));
  const hasBatches = new Map(after.batches.map((entry) => [entry.id[0], entry]));
  const gone = old.hollows.filter((placed) => !isPlacedIn(placed, hasHollows));
  return {
    since: after.since,
    hollowsRemoved: gone.map((placed) => placed.hollow.bid),
    hollowsAdded: after.hollows.filter((placed) => !isPlacedIn(placed, hadHollows)),
    batchesRemoved: old.batches.filter((entry) => !isEntryIn(entry, hasBatches)).map((b) => b.id),
    batchesAdded: after.batches.filter((entry) => !isEntryIn(entry, hadBatches)),
    merges: after.merges,
  };
}

/** True when the edit that would carry this delta may as well not be written. */
export function isNoChange(before: SpineState | undefined, delta: SpineDelta): boolean {
  const merges = before?.merges ?? [];
  return (
    delta.since === (before?.since ?? 0) &&
    delta.hollowsRemoved.length === 0 &&
    delta.hollowsAdded.length === 0 &&
    delta.batchesRemoved.length === 0 &&
    delta.batchesAdded.length === 0 &&
    delta.merges.length === merges.length &&
    delta.merges.every((merge, i) => {
      const other = merges[i];
      return (
        merge.id[0] === other.id[0] &&
        merge.id[1] === other.id[1] &&
        merge.since === other.since &&
        merge.remaining === other.remaining
      );
    })
  );
}

function isPlacedIn(placed: Placed, others: ReadonlyMap<number, Placed>): boolean {
  const other = others.get(placed.hollow.bid);
  return other !== undefined && other.id[0] === placed.id[0] && other.id[1] === placed.id[1];
}

function isEntryIn(entry: BatchEntry, others: ReadonlyMap<number, BatchEntry>): boolean {
  const other = others.get(entry.id[0]);
  return (
    other !== undefined &&
    other.id[1] === entry.id[1] &&
    other.level === entry.level &&
    other.desc.lower === entry.desc.lower &&
    other.desc.upper === entry.desc.upper &&
    other.desc.since === entry.desc.since
  );
}

/** The state after an edit. The delta is foreign: TIDEMARK_CORRUPT when it does not fit the state. */
export function applyDelta<P extends SpinePart>(
  state: SpineState<P> | undefined,
  delta: SpineDelta<P>,
): SpineState<P> {
  const old = state ?? EMPTY_STATE;
  if (lt(delta.since, old.since)) throw corrupt('SINCE_REGRESSED', `since ${delta.since}`);
  const removed = new Set(delta.hollowsRemoved);
  const hollows = old.hollows.filter((placed) => !removed.delete(placed.hollow.bid));
  if (removed.size > 0) throw corrupt('EDIT_UNKNOWN_BATCH', 'an edit removes a batch not there');
  const gone = new Map(delta.batchesRemoved.map((id) => [id[0], id[1]]));
  const batches = old.batches.filter((entry) => {
    if (gone.get(entry.id[0]) !== entry.id[1]) return true;
    gone.delete(entry.id[0]);
    return false;
  });
  if (gone.size > 0) throw corrupt('EDIT_UNKNOWN_BATCH', 'an edit removes a spine batch not there');
  hollows.push(...delta.hollowsAdded);
  batches.push(...delta.batchesAdded);
  return {
    since: delta.since,
    hollows: hollows.toSorted((a, b) => a.id[0] - b.id[0]),
    batches: batches.toSorted((a, b) => a.id[0] - b.id[0]),
    merges: delta.merges,
  };
}

/**
 * Requests worth keeping, newest first: of two with equal since the one that covers the other. For
 * engines that queue requests; ours chooses jobs from the state.
 */
export function withoutCovered<P extends SpinePart>(
  requests: readonly FueledMergeReq<P>[],
): FueledMergeReq<P>[] {
  const covers = (a: FueledMergeReq<P>, b: FueledMergeReq<P>): boolean =>
    a.id[0] <= b.id[0] && b.id[1] <= a.id[1] && a.desc.since === b.desc.since;
  let kept: FueledMergeReq<P>[] = [];
  for (const request of requests.toReversed()) {
    if (kept.some((other) => covers(other, request))) continue;
    kept = kept.filter((other) => !covers(request, other));
    kept.push(request);
  }
  return kept;
}

/** The runs a result replaces, or undefined when they are not there. */
function replacedRuns<P extends SpinePart>(
  inputs: readonly Placed<P>[],
  runIds: readonly number[] | undefined,
  adjacent: boolean,
): readonly Run<P>[] | undefined {
  if (runIds === undefined) return inputs.flatMap((part) => part.hollow.runs);
  if (runIds.length === 0) return undefined;
  const { runs } = inputs[0].hollow;
  const replaced: Run<P>[] = [];
  let last = -1;
  for (const runId of runIds) {
    const index = runs.findIndex((run) => run.runId === runId);
    if (index <= last || (adjacent && last >= 0 && index !== last + 1)) return undefined;
    replaced.push(runs[index]);
    last = index;
  }
  return replaced;
}

export function* runsOf<P extends SpinePart>(
  batches: readonly SpineBatch<P>[],
): Generator<Run<P>, void, undefined> {
  for (const batch of batches) for (const part of batch.parts) yield* part.hollow.runs;
}

function wrap<P extends SpinePart>(placed: Placed<P>): SpineBatch<P> {
  const { id, hollow } = placed;
  return { id, desc: hollow.desc, parts: [placed], len: hollow.len };
}

function asRuns<P extends SpinePart>(
  runs: readonly (readonly P[])[],
): readonly { readonly parts: readonly P[] }[] {
  return runs.map((parts) => ({ parts }));
}

function runsLen(runs: readonly Run[]): number {
  let len = 0;
  for (const run of runs) len += run.len;
  return len;
}

function partsTotal(parts: readonly Placed[]): number {
  let len = 0;
  for (const part of parts) len += part.hollow.len;
  return len;
}

function sumsEqual(a: Sums, b: Sums): boolean {
  return (
    a.len === b.len && a.diffSum === b.diffSum && a.hash[0] === b.hash[0] && a.hash[1] === b.hash[1]
  );
}

function refusal<P extends SpinePart>(outcome: Refusal, message: string): ApplyOutcome<P> {
  return { outcome, message };
}

function bad(finding: string, message: string): Finding {
  return { finding, message };
}

/** A batch or frontier that does not belong here: the caller's mistake, found before anything changes. */
function misuse(finding: string, message: string): TidemarkError {
  return new TidemarkError('TIDEMARK_INTERNAL', message, { finding });
}
