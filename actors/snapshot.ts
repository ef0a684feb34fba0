/**
 * A snapshot: one offset, held, so that every collection can be read as it was there. It holds a time,
 * never memory; a forgotten one is let go when it is collected. Public; lives on its client's thread.
 */
import { TidemarkError } from '../core/base/errors.ts';
import type { Client } from './client.ts';
import { NEWEST, notYet } from './reader.ts';
import { Hold, forgotten } from './range.ts';

export class Snapshot {
  /** The offset it shows, itself included; -1 of an empty store. */
  readonly offset: number;
  readonly #client: Client;
  readonly #hold: Hold;
  /** Collections whose history at the offset could not be kept any more. */
  readonly #lost: ReadonlySet<number>;
  /** Number of the last drop before it. */
  readonly #drops: number;

  /** @internal */
  constructor(client: Client, asOf: number) {
    this.#client = client;
    this.#drops = client.drops;
    const held = holdSettled(client, asOf);
    this.offset = held.T;
    this.#lost = held.lost;
    this.#hold = new Hold(client, this.offset, 'snapshot');
    forgotten.register(this, this.#hold, this.#hold);
  }

  /** @internal */
  isLost(collection: number): boolean {
    if (this.#lost.has(collection)) return true;
    const drop = this.#client.dropped.get(collection);
    return drop !== undefined && drop <= this.#drops;
  }

  /** @internal */
  assertOpen(client: Client): void {
    if (this.#client !== client) throw new TypeError("the snapshot is another engine's");
    if (this.#hold.held) return;
    throw new TidemarkError('TIDEMARK_CLOSED', 'the snapshot is closed');
  }

  /** Lets go of the history it holds. Twice is once. */
  close(): void {
    forgotten.unregister(this.#hold);
    this.#hold.release();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

type Held = { readonly T: number; readonly lost: ReadonlySet<number> };

/** Holds `asOf`, or a newest time that no collection may lose. */
function holdSettled(client: Client, asOf: number): Held {
  for (;;) {
    const held = holdAll(client, asOf);
    if (asOf !== NEWEST || held.lost.size === 0) return held;
    // History moved on between the choice of the newest time and its hold: a newer one, then.
    client.release(held.T);
  }
}

/** Holds `asOf` or the newest time; says which collections may lose it all the same. */
function holdAll(client: Client, asOf: number): Held {
  const { reader } = client;
  reader.enter(0, NEWEST);
  try {
    const upper = reader.visible();
    if (asOf !== NEWEST && asOf >= upper) throw notYet(asOf, upper);
    const T = asOf === NEWEST ? upper - 1 : asOf;
    const lost = new Set<number>();
    if (T < 0) return { T, lost };
    // Published first, then the view is looked at: the keeper sees the hold, or we its proposal.
    client.hold(T);
    const view = reader.reloadView();
    for (let i = 0; i < view.collectionCount; i++) {
      const block = view.collectionAt(i);
      if (T < view.sinceNext(block)) lost.add(view.idOf(block));
    }
    return { T, lost };
  } finally {
    reader.leave();
  }
}
