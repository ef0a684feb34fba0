/**
 * The public face. Everything a service needs, and nothing else: deep imports are not supported.
 */
export { open } from './engine.ts';
export type { Compression } from '../core/spine/block-codec.ts';
export type {
  AnyCollection,
  CollectionOptions,
  CompactOptions,
  CompactProgress,
  Engine,
  EngineEvents,
  EngineState,
  MultisetOptions,
  UpdateOf,
} from './engine.ts';
export type { Stall } from './stall-watch.ts';
export type { StallCause } from './stalls.ts';
export type { Durability, History, OpenOptions, WalOptions } from './options.ts';
export type { ArchiveFile, ArchiveHook } from './archive.ts';
export type {
  Collection,
  CollectionInfo,
  CommitOptions,
  Condition,
  ReadOptions,
} from './collection.ts';
export type { Version, VersionIterable, VersionOptions } from './versions.ts';
export type { Multiset } from './multiset.ts';
export type { RangeIterable, RangeOptions } from './range.ts';
export type { KeyBounds, PrefixOf } from './key-range.ts';
export type { Transaction } from './transaction.ts';
export type {
  BatchOptions,
  Feed,
  FeedItem,
  ProgressItem,
  RemovedRange,
  SnapshotItem,
  TransactionItem,
} from './feed.ts';
export type { CursorInfo } from './cursor.ts';
export type { MaxLag } from './cursor-row.ts';
export type { DiffOptions } from './diff.ts';
export type { Update } from './feed-changes.ts';
export type { ChangesOptions, FollowOptions } from './feed-options.ts';
export type { TransactOptions } from './transact.ts';
export type { ScopeIterable, ScopeRangeOptions, TransactionScope } from './transaction-scope.ts';
export type { Snapshot } from './snapshot.ts';
export type { Receipt } from './commit-line.ts';
export type { CollectionStats, EngineStats, HoldStats, RunStats } from './stats.ts';
export type { Histogram } from '../core/base/histogram.ts';
export type { BackupOptions, BackupProgress, BackupResult } from './backup.ts';
export type { VerifyOptions, VerifyProgress } from './verify.ts';
export type { VerifyReport } from '../core/store/verify.ts';
export type { Severity, StoreFinding } from '../core/store/report.ts';
export { buffer, json, u64, utf8, view } from './encodings.ts';
export { tuple } from './tuple.ts';
export type { TupleElement } from './tuple.ts';
export type { Codec, Encoding, EncodingName, TypeOf } from './encodings.ts';
export { TidemarkError } from '../core/base/errors.ts';
export type { ErrorCode, ErrorDetail } from '../core/base/errors.ts';
