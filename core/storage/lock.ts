/**
 * A store's LOCK: one engine at a time has the directory, and a holder that died is succeeded by exactly
 * one other. Every claim is one exclusive creation of a name, and what a name says never changes.
 * Called at open and close, on the thread that opens.
 *
 *   LOCK                    who holds the store: a LockHolder as JSON
 *   LOCK.<nonce>            the same bytes before they get a name: written and synced first, then
 *                           linked, so that a LOCK is whole whenever there is one
 *   LOCK.takeover.<nonce>   who succeeds the holder with that nonce
 *
 * LOCK, its successor, the successor's successor, ... are a chain, and the store belongs to the last one
 * in it. A last one that is gone is succeeded by claiming its takeover name: of many who try, one wins,
 * and when that one dies on the way it can itself be succeeded: nothing that a crash leaves must be
 * removed before others may go on. (One common LOCK.takeover would have to be, and two who remove it
 * each think that they are next.) The new holder renames its claim to LOCK, which shortens the chain to
 * one, and sweeps up.
 *
 * Why only one wins. A takeover name may become free again, when its chain has been shortened or given
 * up; who claims it then, on what it read before, is not in the chain. So everybody walks the chain
 * once more *after* claiming. If it leads to the own claim, then LOCK still was what it had been, and
 * from here on only the last one in the chain changes it. Nonces are never used twice.
 */
import { invariant } from '../base/assert.ts';
import { crc32 } from '../base/crc32.ts';
import { TidemarkError } from '../base/errors.ts';
import { LOCK_FILE } from './names.ts';
import type { Storage } from './storage.ts';
import { shortWrite } from './storage.ts';

/** Who holds a store. Empty strings and processStartMs 0 are "not known". */
export type LockHolder = {
  readonly hostName: string;
  /** Differs after every boot of the machine. */
  readonly bootId: string;
  /** Process numbers mean something in one of these only. */
  readonly pidNamespace: string;
  readonly pid: number;
  /** Tells a process from a later one with its number; counted from an instant that only this machine knows. */
  readonly processStartMs: number;
  readonly threadId: number;
  /** Hexadecimal digits and '-', never used twice: one for every open. */
  readonly nonce: string;
  /** The store's directory, as its opener named it. */
  readonly directory: string;
  readonly openedAtMs: number;
};

/** A claim as found on disk: `id` names its successor; `holder` is undefined when it cannot be read. */
type Claim = {
  readonly id: string;
  readonly path: string;
  readonly holder: LockHolder | undefined;
};

/** A failed attempt means that somebody else got on; so many in a row are no accident. */
const ATTEMPTS_MAX = 64;

/** Longer chains than one come from crashes within takeovers only. */
const CHAIN_MAX = 1_000;

/** A LOCK is some hundred bytes. */
const LOCK_BYTES_MAX = 65_536;

/** What file systems without hard links say (FAT, some network and user-space ones). */
const NO_LINKS: readonly string[] = ['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS'];

function takeoverPath(id: string): string {
  return `${LOCK_FILE}.takeover.${id}`;
}

/**
 * Takes the store for `me`, or throws TIDEMARK_LOCKED with the holder's fields as detail and `own` true
 * when that is this very process. `isGone` says of a holder that it certainly lives no more. With
 * `breakLock` whoever holds it now is gone past, but nobody who comes at the same moment.
 * False: the store cannot be written to, and `mayGoWithout` allows that.
 * Requires: the directory exists.
 */
export function acquireLock(
  storage: Storage,
  me: LockHolder,
  isGone: (holder: LockHolder) => boolean,
  breakLock: boolean,
  mayGoWithout: boolean = false,
): boolean {
  invariant(isHolder(me), 'a holder that can be read back');
  try {
    take(storage, me, isGone, breakLock);
    return true;
  } catch (error) {
    const code = codeOf(error);
    if (!mayGoWithout) throw error;
    if (code === 'EROFS') return false;
    if (code !== 'EACCES' && code !== 'EPERM') throw error;
    // The directory is closed to us, but its owner may be at work in it.
    const { last } = walk(storage, me.nonce);
    const isFree = last === undefined || (last.holder !== undefined && isGone(last.holder));
    if (!isFree && !breakLock) throw locked(me, last);
    return false;
  }
}

/**
 * Who has the store now, as its files say: nothing is claimed or changed. Undefined: nobody. `holder` is
 * undefined when the file does not say who.
 */
export function readLock(
  storage: Storage,
): { readonly path: string; readonly holder: LockHolder | undefined } | undefined {
  return walk(storage, '').last;
}

/** Gives the store back. Does nothing when somebody was told to break the lock and did. */
export function releaseLock(storage: Storage, me: LockHolder): void {
  const { last } = walk(storage, me.nonce);
  if (last?.id === me.nonce) storage.unlink(last.path);
}

function take(
  storage: Storage,
  me: LockHolder,
  isGone: (holder: LockHolder) => boolean,
  breakLock: boolean,
): void {
  let path = LOCK_FILE;
  const broken = breakLock ? walk(storage, me.nonce).last?.id : undefined;
  let seen: Claim | undefined;
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const claimed = claim(storage, me, path);
    const { last, met } = walk(storage, me.nonce);
    if (last?.id === me.nonce) {
      settle(storage, me, last);
      return;
    }
    // Claimed too late: the chain does not go through here any more, and never will again.
    if (claimed && !met && path !== LOCK_FILE) storage.unlink(path);
    path = LOCK_FILE;
    if (last === undefined) continue;
    seen = last;
    if (last.id !== broken && (last.holder === undefined || !isGone(last.holder))) {
      throw locked(me, last);
    }
    path = takeoverPath(last.id);
  }
  throw locked(me, seen);
}

/** Makes the own claim, the last in the chain, its only one, and removes what crashes have left. */
function settle(storage: Storage, me: LockHolder, mine: Claim): void {
  if (mine.path !== LOCK_FILE) {
    try {
      storage.rename(mine.path, LOCK_FILE);
    } catch (error) {
      storage.unlink(mine.path);
      throw error;
    }
  }
  // Somebody alive may lose a file here; it then finds out that it lost, or begins again.
  for (const name of storage.list('')) {
    const isOurs = name.startsWith(`${LOCK_FILE}.`) && name !== takeoverPath(me.nonce);
    if (isOurs) storage.unlink(name);
  }
}

/** True: the name is ours. False: it was taken, or our file was swept away before it had the name. */
function claim(storage: Storage, me: LockHolder, path: string): boolean {
  const bytes = new TextEncoder().encode(`${JSON.stringify(me)}\n`);
  const own = `${LOCK_FILE}.${me.nonce}`;
  try {
    writeNew(storage, own, bytes);
    storage.link(own, path);
    return true;
  } catch (error) {
    const code = codeOf(error);
    if (callOf(error) !== 'link') throw error;
    if (code === 'EEXIST' || code === 'ENOENT') return false;
    if (!NO_LINKS.includes(code)) throw error;
  } finally {
    storage.unlink(own);
  }
  // No hard links here. Exclusive creation is as good between the living: who reads the file before it
  // is written finds no holder and stays out. It is weaker after a crash: a file left empty says of
  // nobody that he is gone, and only breakLock goes past it.
  try {
    writeNew(storage, path, bytes);
    return true;
  } catch (error) {
    if (codeOf(error) === 'EEXIST') return false;
    throw error;
  }
}

/** Synced, so that no power loss leaves a LOCK that cannot be read; entries need not survive one, for then nobody does. */
function writeNew(storage: Storage, path: string, bytes: Uint8Array): void {
  const fd = storage.open(path, 'create');
  let whole = false;
  try {
    const count = storage.write(fd, bytes, 0, bytes.length, 0);
    if (count !== bytes.length) throw shortWrite(count, bytes.length, path);
    storage.sync(fd);
    whole = true;
  } finally {
    storage.close(fd);
    if (!whole) storage.unlink(path);
  }
}

/** The last claim in the chain, and whether `nonce` is in it. */
function walk(storage: Storage, nonce: string): { last: Claim | undefined; met: boolean } {
  let last: Claim | undefined;
  let met = false;
  let path = LOCK_FILE;
  for (let depth = 0; depth < CHAIN_MAX; depth++) {
    const next = readClaim(storage, path, depth);
    if (next === undefined) break;
    last = next;
    met ||= next.id === nonce;
    path = takeoverPath(next.id);
  }
  return { last, met };
}

function readClaim(storage: Storage, path: string, depth: number): Claim | undefined {
  let bytes: Uint8Array;
  try {
    const fd = storage.open(path, 'read');
    try {
      bytes = new Uint8Array(Math.min(storage.size(fd), LOCK_BYTES_MAX));
      bytes = bytes.subarray(0, storage.read(fd, bytes, 0, bytes.length, 0));
    } finally {
      storage.close(fd);
    }
  } catch (error) {
    const code = codeOf(error);
    if (code === 'ENOENT') return undefined;
    if (code !== 'EACCES' && code !== 'EIO') throw error;
    bytes = new Uint8Array(0);
  }
  const holder = parseHolder(bytes);
  if (holder !== undefined) return { id: holder.nonce, path, holder };
  // Its depth is in the name so that a chain of equally empty files is no circle.
  const crc = crc32(bytes, 0, bytes.length).toString(16);
  return { id: `damaged-${depth}-${crc}`, path, holder: undefined };
}

function parseHolder(bytes: Uint8Array): LockHolder | undefined {
  try {
    const value: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
    return isHolder(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isHolder(value: unknown): value is LockHolder {
  if (typeof value !== 'object' || value === null) return false;
  const { pid, nonce, ...rest }: { [name: string]: unknown } = { ...value };
  if (typeof pid !== 'number' || !Number.isSafeInteger(pid) || pid < 1) return false;
  if (typeof nonce !== 'string' || !/^[0-9a-f-]{8,64}$/.test(nonce)) return false;
  const texts = [rest['hostName'], rest['bootId'], rest['pidNamespace'], rest['directory']];
  const numbers = [rest['processStartMs'], rest['threadId'], rest['openedAtMs']];
  return texts.every((t) => typeof t === 'string') && numbers.every((n) => Number.isFinite(n));
}

function locked(me: LockHolder, last: Claim | undefined): TidemarkError {
  const holder = last?.holder;
  if (holder === undefined) {
    const file = last?.path ?? LOCK_FILE;
    const why = last === undefined ? 'others keep taking it' : `${file} does not say by whom`;
    const message = `${me.directory} is locked, and ${why}; if nobody has it open, open with breakLock`;
    return new TidemarkError('TIDEMARK_LOCKED', message, { own: false, file });
  }
  // A process that had our number before us is gone, so nobody asks whether it is us.
  const own =
    holder.hostName === me.hostName &&
    holder.bootId === me.bootId &&
    holder.pidNamespace === me.pidNamespace &&
    holder.pid === me.pid;
  const who = own ? 'this very process' : `process ${holder.pid} on ${holder.hostName}`;
  const message =
    `${me.directory} is open in ${who}, thread ${holder.threadId}, as ${holder.directory}; breakLock is ` +
    'for a holder that is certainly gone, like a thread that was terminated before it closed the engine';
  return new TidemarkError('TIDEMARK_LOCKED', message, { ...holder, own });
}

/** The errno, or the code of an error of ours. */
function codeOf(error: unknown): string {
  return textField(error, 'code');
}

function callOf(error: unknown): string {
  return textField(error, 'syscall');
}

function textField(error: unknown, name: string): string {
  const value: unknown = error instanceof Error ? Reflect.get(error, name) : undefined;
  return typeof value === 'string' ? value : '';
}
