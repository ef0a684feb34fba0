/**
 * `engine.transact`: a function that reads at one time, writes into a transaction, and is run again until
 * nothing that it read had changed when its writes took their place in the order. Serializable by checking
 * reads: points and ranges become conditions (conditions.ts) that the sequencer looks at. Lives on its
 * client's thread.
 *
 * Who lost waits for the change that beat it to be visible, and in line behind those of this thread
 * that lost over the same: of many that want one row, one a time tries again.
 */
import { TidemarkError } from '../core/base/errors.ts';
import type { Prng } from '../core/base/prng.ts';
import { CATALOG_ID } from '../core/base/update.ts';
import type { Client } from './client.ts';
import type { CommitTold } from './commit-line.ts';
import { checkFields, checkSignal, show } from './options.ts';
import { Hold } from './range.ts';
import { NEWEST } from './reader.ts';
import { TransactionScope } from './transaction-scope.ts';

export interface TransactOptions {
  /** How often the function is run again after a conflict; default 16. Then: TIDEMARK_CONFLICT. */
  readonly retries?: number;
  /** Looked at before each run and before the commit; a commit that is under way cannot be aborted. */
  readonly signal?: AbortSignal;
  /** As of a commit. */
  readonly durability?: 'synced' | 'buffered';
}

type Checked = {
  readonly retries: number;
  readonly signal: AbortSignal | undefined;
  readonly durability: 'synced' | 'buffered' | undefined;
};

const OPTIONS: ReadonlySet<string> = new Set(['retries', 'signal', 'durability']);
const RETRIES_DEFAULT = 16;
const DEFAULTS: Checked = { retries: RETRIES_DEFAULT, signal: undefined, durability: undefined };
/** Runs without a pause: what is in line on this thread needs none, other threads may. */
const RUNS_AT_ONCE = 3;
const PAUSE_TURNS_MAX = 64;

/** What the transacts of one client share. */
export class TransactShared {
  /** The ends of the lines that those wait in who lost over a row, by the row. */
  readonly lines: Map<string, Promise<void>> = new Map();
  /** How long who lost often stands back. */
  readonly chance: Prng;
  #newest: Hold | undefined;

  constructor(chance: Prng) {
    this.chance = chance;
  }

  /** A share of a hold on the newest time: most that run beside each other read at the same. */
  holdNewest(client: Client): Hold {
    const newest = this.#newest;
    if (newest?.held === true && newest.T === client.reader.visible() - 1) return newest.share();
    const hold = new Hold(client, client.holdFor(CATALOG_ID, NEWEST), 'transact');
    this.#newest = hold;
    return hold;
  }
}

export function transact<R>(
  client: Client,
  shared: TransactShared,
  run: (tx: TransactionScope) => R | PromiseLike<R>,
  options: TransactOptions | undefined,
): Promise<R> {
  return new Promise((resolve, reject) => {
    if (typeof run !== 'function') throw new TypeError('transact takes a function');
    new Transact(client, shared, run, checkTransact(options), resolve, reject).attempt();
  });
}

/**
 * One call, from its first run to its end. Most end after one, of a function that only reads memory: until
 * there is something to wait for, nothing is made that waits.
 */
class Transact<R> implements CommitTold {
  readonly #client: Client;
  readonly #shared: TransactShared;
  readonly #run: (tx: TransactionScope) => R | PromiseLike<R>;
  readonly #options: Checked;
  readonly #resolve: (value: R) => void;
  readonly #reject: (error: unknown) => void;
  #attempts = 0;
  #scope: TransactionScope | undefined;
  #value: R | undefined;
  #leaveLine: (() => void) | undefined;

  constructor(
    client: Client,
    shared: TransactShared,
    run: (tx: TransactionScope) => R | PromiseLike<R>,
    options: Checked,
    resolve: (value: R) => void,
    reject: (error: unknown) => void,
  ) {
    this.#client = client;
    this.#shared = shared;
    this.#run = run;
    this.#options = options;
    this.#resolve = resolve;
    this.#reject = reject;
  }

  /** Runs the function, and commits what it wrote. Never throws. */
  attempt(): void {
    let given: R | PromiseLike<R>;
    let isWaiting: boolean;
    try {
      this.#options.signal?.throwIfAborted();
      this.#scope = new TransactionScope(this.#client, this.#shared);
      // Without a wait, unless it is asked for: most functions only read memory.
      given = this.#run(this.#scope);
      isWaiting = isThenable(given);
    } catch (error) {
      this.#lose(error);
      return;
    }
    if (isWaiting) void this.#wait(given as PromiseLike<R>);
    else this.#end(given as R);
  }

  async #wait(given: PromiseLike<R>): Promise<void> {
    let value: R;
    try {
      value = await given;
    } catch (error) {
      this.#lose(error);
      return;
    }
    this.#end(value);
  }

  /** The function has returned. */
  #end(value: R): void {
    this.#value = value;
    try {
      this.#scope!.end();
      this.#options.signal?.throwIfAborted();
    } catch (error) {
      this.#lose(error);
      return;
    }
    this.#commit();
  }

  #commit(): void {
    try {
      if (!this.#scope!.commitReads(this.#options.durability, this)) this.#succeed();
    } catch (error) {
      this.#refuse(error);
    }
  }

  onCommitted(): void {
    this.#scope!.tell();
    this.#succeed();
  }

  #succeed(): void {
    this.#scope!.release();
    this.#leaveLine?.();
    this.#resolve(this.#value!);
  }

  onRefused(error: Error): void {
    // In a turn of its own: what comes now may commit again.
    queueMicrotask(() => this.#refuse(error));
  }

  #refuse(error: unknown): void {
    if (!this.#scope!.mayComeAgain(error)) {
      this.#lose(error);
      return;
    }
    this.#client.line.room().then(
      () => this.#commit(),
      (gone: unknown) => this.#lose(gone),
    );
  }

  /** What this attempt came to; the next one if it may be. */
  #lose(error: unknown): void {
    const scope = this.#scope;
    this.#scope = undefined;
    scope?.end();
    scope?.release();
    // What the function threw may come from what it read, which nobody has checked: only ours is judged.
    const isOld = scope !== undefined && error === scope.lost;
    const isLost = error !== undefined && (isOld || error === scope?.conflict);
    if (!isLost || this.#attempts >= this.#options.retries) this.#fail(error);
    else void this.#again(isOld ? undefined : (error as TidemarkError));
  }

  #fail(error: unknown): void {
    this.#leaveLine?.();
    this.#reject(error);
  }

  /** `conflict` undefined: what was read is too old. */
  async #again(conflict: TidemarkError | undefined): Promise<void> {
    const client = this.#client;
    const { lines, chance } = this.#shared;
    const { signal } = this.#options;
    try {
      this.#leaveLine?.();
      this.#leaveLine = undefined;
      if (conflict !== undefined) {
        this.#leaveLine = await joinLine(lines, lineOf(conflict), signal);
      }
      // What broke it has its place by now, if readers do not see it yet.
      await client.frontierReached(client.context.control.applied(), false, signal);
      if (this.#attempts >= RUNS_AT_ONCE) {
        await pause(client, chance, this.#attempts - RUNS_AT_ONCE, signal);
      }
    } catch (error) {
      this.#fail(error);
      return;
    }
    this.#attempts++;
    this.attempt();
  }
}

function isThenable(given: unknown): boolean {
  return (
    (typeof given === 'object' || typeof given === 'function') &&
    given !== null &&
    typeof (given as { then?: unknown }).then === 'function'
  );
}

/** Lets turns go by: by chance, among twice as many each time, so that two threads do not meet again. */
async function pause(
  client: Client,
  chance: Prng,
  doublings: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const most = Math.min(2 ** doublings, PAUSE_TURNS_MAX);
  const turns = chance.between(1, most);
  for (let i = 0; i < turns; i++) {
    signal?.throwIfAborted();
    await client.turn();
  }
}

/** Waits behind those who lost over the same; answers how to leave the line, which must happen. */
async function joinLine(
  lines: Map<string, Promise<void>>,
  line: string,
  signal: AbortSignal | undefined,
): Promise<() => void> {
  const before = lines.get(line);
  let pass!: () => void;
  const mine = new Promise<void>((resolve) => {
    pass = resolve;
  });
  lines.set(line, mine);
  const leave = (): void => {
    if (lines.get(line) === mine) lines.delete(line);
    pass();
  };
  if (before === undefined) return leave;
  let onAbort: (() => void) | undefined;
  try {
    await Promise.race([
      before,
      new Promise((_, reject) => {
        onAbort = () => reject(signal?.reason as Error);
        signal?.addEventListener('abort', onAbort);
      }),
    ]);
    return leave;
  } catch (error) {
    // Its place stays, for those behind it, until those before it have gone.
    void before.then(leave);
    throw error;
  } finally {
    if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort);
  }
}

/** Rows by their keys where those are plain, else by their collection: a longer line, no worse. */
function lineOf({ detail }: TidemarkError): string {
  const name = detail['collection'] as string;
  const key = detail['key'];
  if (key instanceof Uint8Array) return `${name} ${Buffer.from(key).toString('latin1')}`;
  return typeof key === 'string' || typeof key === 'number' ? `${name} ${key}` : name;
}

function checkTransact(options: unknown): Checked {
  if (options === undefined) return DEFAULTS;
  checkFields(options, OPTIONS, 'transact option');
  const { retries, signal, durability } = options as Record<string, unknown>;
  if (retries !== undefined && (!Number.isSafeInteger(retries) || (retries as number) < 0)) {
    throw new TypeError(`retries is a count from 0, not ${show(retries)}`);
  }
  if (durability !== undefined && durability !== 'synced' && durability !== 'buffered') {
    throw new TypeError("durability is 'synced' or 'buffered'");
  }
  return {
    retries: (retries as number | undefined) ?? RETRIES_DEFAULT,
    signal: checkSignal(signal),
    durability,
  };
}
