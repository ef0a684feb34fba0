/**
 * What the orchestrator asks of a child process, and what the child answers: one task, one line of
 * JSON each way. A child runs exactly one task and exits, so that nothing one engine leaves behind
 * (threads, caches, heap) is there for the next. Used by main.ts and run-one.ts.
 */

/**
 * When a write counts as done. `synced`: it has been synced. `lazy`: the engine promises to sync it
 * soon. `never`: the operating system has it, nobody syncs. Figures of two classes are never
 * compared.
 */
export type DurabilityClass = 'synced' | 'lazy' | 'never';

export type EngineName = 'tidemark' | 'classic-level' | 'lmdb' | 'better-sqlite3';

/** A case with no engine in it measures the machine or a primitive; its contender says which. */
export type Contender = EngineName | 'bare-loop' | 'ring' | 'message-port' | 'as-of' | 'now';

export type SuiteName =
  | 'limit'
  | 'durable'
  | 'load'
  | 'sustained'
  | 'prepare'
  | 'point-all'
  | 'point-hot'
  | 'scan'
  | 'open'
  | 'as-of-recent'
  | 'as-of-old'
  | 'ring';

/** One way of using one engine; the sweep tries several and keeps all their figures. */
export interface Configuration {
  readonly name: string;
  /**
   * Whether it may be the engine's best. Those that do not count are shown beside the others: they
   * answer a different question (the caller groups by hand, or is lent bytes instead of given).
   */
  readonly counts: boolean;
  /** UV_THREADPOOL_SIZE of the child, where the engine runs on that pool. */
  readonly uvThreads?: number;
  readonly options: Readonly<Record<string, string | number | boolean>>;
}

export interface Task {
  readonly suite: SuiteName;
  readonly contender: Contender;
  readonly durability: DurabilityClass;
  readonly configuration: Configuration;
  /** The checkout; the peers are resolved from its bench/package.json. */
  readonly root: string;
  /** Where the engine's files go; for the read suites, where they already are. */
  readonly directory: string;
  readonly seed: number;
  /** Transactions in flight (durable), batches in flight (load). */
  readonly inFlight: number;
  /** Rows to load, or that the prepared store holds. */
  readonly rowCount: number;
  readonly batchRows: number;
  readonly warmSeconds: number;
  readonly seconds: number;
  readonly openCount: number;
  /** After the load is quiet, so long is given to what an engine does when it is left alone. */
  readonly restSeconds: number;
}

export interface Outcome {
  /** Of the timed part alone. */
  readonly operations: number;
  readonly seconds: number;
  readonly cpuSeconds: number;
  /** Further figures, by name; the unit is the last part of the name. */
  readonly figures: Readonly<Record<string, number>>;
  /** What the store held at the end; empty where nothing is stored. */
  readonly digest: string;
  /** What it should have held. */
  readonly digestExpected: string;
}

/** How much memory each engine may use, and how much of it to collect writes in. */
export const MEMORY_BYTES: number = 256 << 20;
export const WRITE_BUFFER_BYTES: number = 16 << 20;
