/**
 * Golden cases as text: a block of commands, a line of dashes, what they printed. A case with
 * GOLDEN=rewrite in the environment is written anew. Commands of the spine cases:
 *
 *   push 0-1 since=0 len=5      a batch with one part of so many updates; len=0: an empty one
 *   since 4                     the spine's since
 *   apply 0-2 since=0 len=1     a result for the batches that cover these times, as one part
 *   take-reqs                   requests since the last time, covered ones left out, newest first
 *   exert 1024, collapse        maintenance
 *   dump, levels, frontiers     [ids][lower][upper][since] parts/len, oldest first
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { KIND_MULTISET } from '../../core/base/update.ts';
import { NO_SUMS, sumsOf } from '../../core/spine/batch.ts';
import type { SpineBatch, SpinePart, Sums } from '../../core/spine/batch.ts';
import { Spine, withoutCovered } from '../../core/spine/spine.ts';
import type { FueledMergeReq, MergeResult, SpineIds } from '../../core/spine/spine.ts';

/** Runs every case of a golden file and compares, or rewrites it. */
export function checkGolden(
  path: URL,
  run: (commands: readonly string[]) => readonly string[],
): void {
  const before = readFileSync(path, 'utf8');
  const after: string[] = [];
  for (const block of before.split('\n\n')) {
    const [input = ''] = block.split('\n----\n');
    const lines = input.split('\n');
    const commands = lines.filter((line) => line !== '' && !line.startsWith('#'));
    if (commands.length === 0) {
      after.push(block);
      continue;
    }
    after.push(`${input.trimEnd()}\n----\n${run(commands).join('\n')}`);
  }
  const text = `${after.join('\n\n').trimEnd()}\n`;
  if (process.env['GOLDEN'] === 'rewrite') writeFileSync(path, text);
  else assert.equal(text, before);
}

export function counterIds(bid = 1, run = 1): SpineIds & { bidNext: number; runNext: number } {
  return {
    bidNext: bid,
    runNext: run,
    bid(): number {
      return this.bidNext++;
    },
    run(): number {
      return this.runNext++;
    },
  };
}

let filesMade = 1_000_000;

/** A part of `len` updates over [lower, upper) whose hash is its length. */
export function plainPart(
  lower: number,
  upper: number,
  len: number,
  file: number = ++filesMade,
): SpinePart {
  const key = new Uint8Array([1]);
  return {
    file,
    offset: 0,
    bytes: len * 100,
    len,
    keyLo: key,
    keyHi: key,
    minT: lower,
    maxT: upper - 1,
    negatives: 0,
    rangeDeletes: 0,
    diffSum: len,
    hash: [len, len],
  };
}

export function describeBatch(batch: SpineBatch): string {
  const { id, desc, parts, len } = batch;
  return `[${id[0]}-${id[1]}][${desc.lower}][${desc.upper}][${desc.since}] ${parts.length}/${len}`;
}

/** Bids of the batches that cover exactly these times. */
export function bidsWithin(spine: Spine, lower: number, upper: number): number[] | undefined {
  const bids: number[] = [];
  let at = lower;
  for (const { parts } of spine.batches()) {
    for (const { hollow } of parts) {
      if (hollow.desc.lower !== at || hollow.desc.upper > upper) continue;
      if (hollow.desc.lower === hollow.desc.upper && bids.length === 0) continue;
      bids.push(hollow.bid);
      at = hollow.desc.upper;
    }
  }
  return at === upper && bids.length > 0 ? bids : undefined;
}

/** One golden spine and the commands on it. */
export class GoldenSpine {
  readonly #log: FueledMergeReq[] = [];
  readonly spine: Spine;

  constructor(effort: number) {
    this.spine = new Spine({
      kind: KIND_MULTISET,
      effort,
      ids: counterIds(),
      fuseEmpty: true,
      log: { onMerged: (request) => this.#log.push(request) },
    });
  }

  run(line: string): string[] {
    const [command = '', ...words] = line.split(' ');
    const options = new Map(words.map((word) => [word.split('=')[0], Number(word.split('=')[1])]));
    const [lower = 0, upper = 0] = (words[0] ?? '').split('-').map(Number);
    const since = options.get('since') ?? 0;
    const len = options.get('len') ?? 0;
    switch (command) {
      case 'push':
        return this.#attempt(() => {
          const runs = len === 0 ? [] : [[plainPart(lower, upper, len)]];
          this.spine.push({ lower, upper, since, runs });
        });
      case 'since':
        return this.#attempt(() => this.spine.advanceSince(lower));
      case 'apply':
        return [this.#apply(lower, upper, since, len)];
      case 'take-reqs':
        return withoutCovered(this.#log.splice(0)).map(
          ({ id, desc, inputs }) =>
            `[${id[0]}-${id[1]}][${desc.lower}][${desc.upper}][${desc.since}] ${inputs.length}`,
        );
      case 'exert':
        return [String(this.spine.exert(lower))];
      case 'collapse':
        this.spine.collapse();
        return [];
      case 'dump':
        return this.spine.batches().map(describeBatch);
      case 'levels': {
        const { batches, merges } = this.spine.state();
        const lines = batches.map(({ id, level }) => `level ${level}: [${id[0]}-${id[1]}]`);
        for (const { id, remaining } of merges) {
          lines.push(`merge [${id[0]}-${id[1]}] remaining ${remaining}`);
        }
        return lines;
      }
      case 'frontiers':
        return [`since [${this.spine.since}] upper [${this.spine.upper}]`];
      default:
        throw new Error(`unknown command: ${line}`);
    }
  }

  #attempt(act: () => void): string[] {
    try {
      act();
      this.spine.validate();
      return [];
    } catch (error) {
      return [`error: ${error instanceof Error ? error.message : String(error)}`];
    }
  }

  #apply(lower: number, upper: number, since: number, len: number): string {
    const inputs = bidsWithin(this.spine, lower, upper);
    if (inputs === undefined) return 'no match';
    const runs = len === 0 ? [] : [[plainPart(lower, upper, len)]];
    const outcome = this.spine.apply(balanced(this.spine, { inputs, since, runs }));
    this.spine.validate();
    if (outcome.outcome === 'noMatch') return 'no match';
    if (outcome.outcome !== 'applied') return outcome.outcome;
    return outcome.exact ? 'applied exact' : 'applied subset';
  }
}

/** A result whose sums add up: what is not in the output was dropped. */
export function balanced<P extends SpinePart>(
  spine: Spine<P>,
  partial: Pick<MergeResult<P>, 'inputs' | 'since' | 'runs' | 'runIds'>,
): MergeResult<P> {
  const runs = spine
    .batches()
    .flatMap((batch) => batch.parts)
    .filter(({ hollow }) => partial.inputs.includes(hollow.bid))
    .flatMap(({ hollow }) => hollow.runs)
    .filter(({ runId }) => partial.runIds === undefined || partial.runIds.includes(runId));
  const input = sumsOf(runs);
  const output = sumsOf(partial.runs.map((parts) => ({ parts })));
  const dropped: Sums =
    output.len > input.len
      ? NO_SUMS
      : {
          len: input.len - output.len,
          diffSum: input.diffSum - output.diffSum,
          hash: [(input.hash[0] - output.hash[0]) >>> 0, (input.hash[1] - output.hash[1]) >>> 0],
        };
  return { ...partial, output, dropped, folded: 0 };
}
