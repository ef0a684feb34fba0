/**
 * What a call to the system failed with, as a number that fits a message, and as an error again. Called by
 * who makes calls for another actor (keeper), and by whom it makes them for (durability), each on its thread.
 */
import { constants } from 'node:os';

/** Its errno, as this system numbers it; EIO where it has none: never 0. */
export function errnoOf(failure: unknown): number {
  const code = failure instanceof Error && 'code' in failure ? failure.code : undefined;
  const known: Readonly<Record<string, number>> = constants.errno;
  return (typeof code === 'string' ? known[code] : undefined) ?? constants.errno.EIO;
}

export function asSystemError(errno: number): Error {
  const [code = 'EIO'] = Object.entries(constants.errno).find(([, n]) => n === errno) ?? [];
  return Object.assign(new Error(`${code}: a sync of the log failed`), { code, errno });
}
