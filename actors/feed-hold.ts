/**
 * What a feed holds: the log above its place, and, for old rows and states, history from it on. It moves
 * up with the feed and is let go once. Lives on its client's thread.
 */
import type { Client } from './client.ts';

export class FeedHold {
  readonly #client: Client;
  /** False: only the log is read. */
  readonly #history: boolean;
  #T: number;
  #held = true;

  /** Holds from `place` on. What lies before all offsets is held as offset 0. */
  constructor(client: Client, place: number, history: boolean) {
    this.#client = client;
    this.#history = history;
    this.#T = Math.max(0, place);
    client.holdLog(this.#T);
    if (history) client.hold(this.#T);
  }

  /** Everything up to `place` is needed no more. */
  move(place: number): void {
    const T = Math.max(0, place);
    if (!this.#held || T === this.#T) return;
    const former = this.#T;
    this.#T = T;
    // The new one first: in between, what lies above both is held.
    this.#client.holdLog(T);
    this.#client.releaseLog(former);
    if (!this.#history) return;
    this.#client.hold(T);
    this.#client.release(former);
  }

  get held(): boolean {
    return this.#held;
  }

  release(): void {
    if (!this.#held) return;
    this.#held = false;
    this.#client.releaseLog(this.#T);
    if (this.#history) this.#client.release(this.#T);
  }
}

/** Feeds that nobody ended let go of what they have when they are collected. */
export const forgottenFeeds: FinalizationRegistry<{ release(): void }> = new FinalizationRegistry(
  (held) => {
    held.release();
  },
);
