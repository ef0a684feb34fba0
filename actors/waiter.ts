/**
 * What a client waits for: a frontier that is to reach an offset. Made by whoever waits, kept and settled
 * by the client, on its thread.
 */

/** Frontiers that may be awaited: what readers see, what is durable, what is seen and in the log's file. */
export const FRONTIER_VISIBLE = 0;
export const FRONTIER_DURABLE = 1;
export const FRONTIER_LOGGED = 2;

export type Waiter = {
  readonly upper: number;
  /** FRONTIER_* */
  readonly frontier: number;
  /** False: does not keep the process alive. */
  readonly ref: boolean;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
};
