/**
 * Who this process is, as a LOCK says it, and whether the process that a LOCK names is certainly gone.
 * When in doubt a holder lives: the worst is then an error that asks for breakLock. Called at open and
 * close, on the thread that opens.
 */
import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { threadId } from 'node:worker_threads';
import type { LockHolder } from '../core/storage/lock.ts';
import { linkTarget, textOf } from './node-storage.ts';

/** Elsewhere than on Linux the start is computed from two clock readings, between which a thread may wait. */
const START_SLACK_MS = process.platform === 'linux' ? 0 : 1_000;

/** /proc counts in ticks of 1/100 s, on every kind of machine. */
const TICK_MS = 10;

/** What this thread released but could not remove. */
const released = new Set<string>();

/** The identity under which this thread opens `directory` now: a new nonce every time. */
export function identify(directory: string): LockHolder {
  return {
    hostName: hostname(),
    bootId: textOf('/proc/sys/kernel/random/boot_id')?.trim() ?? '',
    pidNamespace: linkTarget('/proc/self/ns/pid') ?? '',
    pid: process.pid,
    processStartMs: startOf(process.pid),
    threadId,
    nonce: randomUUID(),
    directory,
    openedAtMs: Date.now(),
  };
}

/**
 * True when the holder certainly lives no more. Never of another host or pid namespace: we cannot see
 * theirs. Our own process lives, and with it every thread in it that may hold a lock: threads share no
 * registry in which to look, and a second open in one process must fail. So the lock of a thread that
 * was terminated without closing stays until the process ends, or until breakLock.
 */
export function isGone(holder: LockHolder): boolean {
  if (released.has(holder.nonce)) return true;
  const me = identify('');
  if (holder.hostName !== me.hostName || holder.pidNamespace !== me.pidNamespace) return false;
  const bothKnown = holder.bootId !== '' && me.bootId !== '';
  if (bothKnown && holder.bootId !== me.bootId) return true;
  if (!isAlive(holder.pid)) return true;
  const startMs = startOf(holder.pid);
  if (startMs === 0 || holder.processStartMs === 0) return false;
  return Math.abs(startMs - holder.processStartMs) > START_SLACK_MS;
}

/** The engine that took the lock as `me` is over, though its LOCK could not be removed: this thread may take it over. */
export function markReleased(me: LockHolder): void {
  released.add(me.nonce);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    // EPERM: somebody else's, but there.
    if (error instanceof Error && 'code' in error && error.code === 'ESRCH') return false;
  }
  // A zombie has its number until its parent asks for it, but holds nothing, once its last other thread
  // is through with whatever call it was in.
  const stat = statOf(pid);
  return stat === undefined || stat.state !== 'Z' || stat.threadCount > 1;
}

/** When the process started, by a clock that never jumps; 0 when it cannot be known. */
function startOf(pid: number): number {
  const stat = statOf(pid);
  if (stat !== undefined) return stat.startMs;
  if (pid !== process.pid) return 0;
  return Math.round(Number(process.hrtime.bigint() / 1_000_000n) - process.uptime() * 1_000);
}

/** Fields 3, 20 and 22 of /proc/<pid>/stat; the second, a name in brackets, may contain anything. */
function statOf(pid: number): { state: string; threadCount: number; startMs: number } | undefined {
  const text = textOf(`/proc/${pid}/stat`);
  if (text === undefined) return undefined;
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [state, threadCount, startTicks] = [fields[0], Number(fields[17]), Number(fields[19])];
  if (state === undefined || !Number.isFinite(threadCount + startTicks)) return undefined;
  return { state, threadCount, startMs: startTicks * TICK_MS };
}
