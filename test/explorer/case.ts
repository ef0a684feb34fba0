/**
 * A script and what the explorer must say of it: that every interleaving keeps its promise, or, where
 * a bug was planted, that it is found, and as what. Used by the scripts, the test and `run.ts`.
 */
import { explore, findFailure, replay } from './explorer.ts';
import type { ExplorerFailure, FailureKind, Report, Script } from './explorer.ts';

export type Case = {
  readonly name: string;
  readonly promise: string;
  /** Undefined: the promise is kept. */
  readonly finds: FailureKind | undefined;
  /** Runs only when asked for: `run.ts --deep`. */
  readonly deep: boolean;
  /** Throws the failure, if there is one. */
  readonly explore: () => Report;
  /** Throws when there is none. */
  readonly findFailure: () => ExplorerFailure;
  readonly replay: (schedule: readonly number[]) => string[];
};

export function holds<S>(script: Script<S>, depth?: 'deep'): Case {
  return makeCase(script, undefined, depth === 'deep');
}

/** A bug that the explorer must find, and as what. */
export function planted<S>(script: Script<S>, finds: FailureKind): Case {
  return makeCase(script, finds, false);
}

function makeCase<S>(script: Script<S>, finds: FailureKind | undefined, deep: boolean): Case {
  return {
    name: script.name,
    promise: script.promise,
    finds,
    deep,
    explore: () => explore(script),
    findFailure: () => findFailure(script),
    replay: (schedule) => replay(script, schedule),
  };
}
