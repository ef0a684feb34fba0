/**
 * Assertions for our own mistakes. They stay on in production; whole-structure checks sit behind
 * `verify`, which tests turn on. Bytes from disk and callers' arguments get errors, never assertions.
 */

export class AssertionFailure extends Error {
  override readonly name: string = 'AssertionFailure';
}

/**
 * Throws when `condition` is false. The message is a literal and details are plain values, so that
 * the passing path allocates nothing.
 */
export function invariant(
  condition: boolean,
  message: string,
  a?: number | string,
  b?: number | string,
): asserts condition {
  if (!condition) fail(message, a, b);
}

export function unreachable(value: never): never {
  throw new AssertionFailure(`unreachable: ${String(value)}`);
}

function fail(message: string, a?: number | string, b?: number | string): never {
  let text = message;
  if (a !== undefined) text += ` (${a}${b === undefined ? '' : `, ${b}`})`;
  throw new AssertionFailure(text);
}

let verifying = false;

/** True while tests ask for whole-structure checks and for poisoned scratch memory. */
export function verify(): boolean {
  return verifying;
}

export function setVerify(on: boolean): void {
  verifying = on;
}
