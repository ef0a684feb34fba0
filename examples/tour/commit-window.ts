/**
 * Commits in flight, up to a bound: the loop that a service has anyway, made small. Receipts are
 * taken in the order of the commits; a rejection surfaces where the next receipt is taken.
 * Called by replay, load and the child that is killed.
 */
import type { Receipt } from '../../actors/index.ts';

export class CommitWindow {
  private readonly ring: Promise<Receipt>[] = [];
  private readonly capacity: number;
  private readonly onReceipt: (receipt: Receipt) => void;
  private pushed = 0;
  private taken = 0;

  constructor(capacity: number, onReceipt: (receipt: Receipt) => void) {
    this.capacity = capacity;
    this.onReceipt = onReceipt;
  }

  get full(): boolean {
    return this.pushed - this.taken === this.capacity;
  }

  /** Requires: not full. */
  push(commit: Promise<Receipt>): void {
    // Taken later; if an earlier one is rejected, never.
    commit.catch(() => {});
    this.ring[this.pushed++ % this.capacity] = commit;
  }

  /** Waits for the oldest. */
  async take(): Promise<void> {
    const receipt = await this.ring[this.taken % this.capacity];
    this.taken++;
    this.onReceipt(receipt);
  }

  async drain(): Promise<void> {
    while (this.taken < this.pushed) await this.take();
  }
}
