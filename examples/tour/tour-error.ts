/**
 * What the tour says in one line before it exits: no stack, no second guess. Exit code 2 means that
 * the tour could not begin (no git, no repository, a wrong option); 1 that it found something wrong.
 * Thrown anywhere in the tour, printed once by main.ts.
 */

export const EXIT_FOUND_WRONG = 1;
export const EXIT_CANNOT_BEGIN = 2;
export const EXIT_INTERRUPTED = 130;

export class TourError extends Error {
  override readonly name: string = 'TourError';
  readonly exitCode: number;

  constructor(message: string, exitCode: number = EXIT_CANNOT_BEGIN) {
    super(message);
    this.exitCode = exitCode;
  }
}
