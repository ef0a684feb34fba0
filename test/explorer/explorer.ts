/**
 * Runs a small script of two or three simulated threads through every interleaving of their Atomics
 * calls, on the real code. A thread's code sees an arena whose views record each access and a patched
 * `Atomics`; each Atomics call is a scheduling point. Called by tests and `run.ts`, on one thread.
 *
 * How. A thread is deterministic, so what it does next follows from the results of its accesses so
 * far. Those histories form a tree per thread (`Point`), grown on demand: the thread is run from its
 * start with the recorded results handed back, then live up to its next Atomics call, where it is
 * suspended by an exception. A state is the memory plus one point per thread; each state is visited
 * once, depth first, however many schedules lead to it, and the schedules are counted on the way
 * back. States are compared in full, never by hash, and histories only grow, so there is no cycle.
 *
 * Why that is enough. Atomics are sequentially consistent, and so is all of a program without data
 * races (ECMA-262, memory model). Hence plain accesses need no scheduling points, but races must be
 * found. They are found without clocks: a race shows in some interleaving as two conflicting accesses
 * with no Atomics call of the first thread between them (drop from a racy execution all that happens
 * before neither access; what is left still reads the same values and ends in the two). So each step
 * is compared with what every other thread did plainly since its own last Atomics call.
 *
 * `Atomics.wait` blocks until notified, whatever its timeout: a lost wake-up is a deadlock.
 */
import type { Arena } from '../../core/shared/arena.ts';
import {
  Memory,
  NO_FOOTPRINT,
  Point,
  READ_MASK,
  START,
  WRITE_MASK,
  addToFootprint,
  atomicValue,
  atomicWrites,
  bytesOf,
  conflictWord,
  isPlain,
  looksOf,
  masksConflict,
  sameAccess,
  wordsOf,
} from './history.ts';
import type { Access, Call, Footprint, Result, ViewKind } from './history.ts';

export type World = {
  readonly arena: Arena;
  /** Names the words at an address, for traces. */
  label(address: number, name: string, words?: number): void;
  /** The word at an address, read from outside the threads. */
  word(address: number): number;
};

export type ThreadScript<S> = {
  readonly name: string;
  /**
   * Builds the thread's own objects and returns its body. Runs before all bodies, after the starts of
   * the threads named before it; may read and write.
   */
  readonly start: (world: World, shared: S) => () => unknown;
  /** Planted: Atomics.load (or .store) by this thread of the words at such addresses is done plainly. */
  readonly plainLoads?: (address: number) => boolean;
  readonly plainStores?: (address: number) => boolean;
};

export type Script<S> = {
  readonly name: string;
  /** The invariant, in words. */
  readonly promise: string;
  readonly arenaBytes?: number;
  /**
   * For code that looks again until something changes: after so many identical looks a thread runs on
   * only when one of the words it looks at has changed. Must be above any bound the code itself puts
   * on looking. Not given, such code is refused as unbounded.
   */
  readonly spins?: number;
  /** Words that are racy on purpose: nothing but policy may depend on them. */
  readonly racy?: (address: number) => boolean;
  /** Lays out the memory; what it returns is shared by all threads and must be constant. */
  readonly setup: (world: World) => S;
  readonly threads: readonly ThreadScript<S>[];
  /** Looks at each state in which all threads have ended; throws when it is not allowed. */
  readonly check?: (world: World, shared: S, results: readonly unknown[]) => void;
};

export type Report = {
  /** Interleavings of Atomics calls covered. */
  readonly schedules: number;
  /** Distinct states visited. */
  readonly states: number;
  /** Longest schedule, in steps. */
  readonly depth: number;
};

export type FailureKind = 'race' | 'deadlock' | 'threw' | 'check' | 'unbounded';

export class ExplorerFailure extends Error {
  override readonly name: string = 'ExplorerFailure';
  readonly kind: FailureKind;
  readonly what: string;
  /** Thread indices, one a step. */
  readonly schedule: readonly number[];

  constructor(kind: FailureKind, what: string, schedule: readonly number[], text: string) {
    super(text);
    this.kind = kind;
    this.what = what;
    this.schedule = schedule;
  }
}

export type ExploreOptions = {
  /** More states than this are refused, never silently left out. */
  readonly statesMax?: number;
};

const ARENA_BYTES_DEFAULT = 65_536;
const STATES_MAX_DEFAULT = 4_000_000;
const STEPS_MAX = 1_000;
/** Lines of a failing schedule that are shown. */
const LINES_MAX = 80;

/** Explores all interleavings; throws `ExplorerFailure` at the first that breaks a promise. */
export function explore<S>(script: Script<S>, options: ExploreOptions = {}): Report {
  const machine = new Machine(script);
  try {
    return machine.explore(options.statesMax ?? STATES_MAX_DEFAULT);
  } catch (error) {
    if (error instanceof Finding) throw failureOf(script, error);
    throw error;
  }
}

/** The failure that the script must have; throws when all interleavings keep the promise. */
export function findFailure<S>(script: Script<S>, options: ExploreOptions = {}): ExplorerFailure {
  try {
    explore(script, options);
  } catch (error) {
    if (error instanceof ExplorerFailure) return error;
    throw error;
  }
  throw new Error(`${script.name}: every interleaving keeps "${script.promise}"`);
}

/** Runs one schedule, then each thread to its next step that can be run; returns a line per step. */
export function replay<S>(script: Script<S>, schedule: readonly number[]): string[] {
  return new Machine(script).replay(schedule);
}

/** `2x reader, writer, 3x reader` of 0,0,1,0,0,0. */
function formatSchedule(names: readonly string[], schedule: readonly number[]): string {
  const parts: string[] = [];
  for (let i = 0; i < schedule.length;) {
    let n = i;
    while (n < schedule.length && schedule[n] === schedule[i]) n++;
    parts.push(`${n - i > 1 ? `${n - i}x ` : ''}${names[schedule[i]]}`);
    i = n;
  }
  return parts.join(', ');
}

function failureOf<S>(script: Script<S>, finding: Finding): ExplorerFailure {
  const names = script.threads.map((thread) => thread.name);
  const text = [
    `${script.name}: ${finding.kind}: ${finding.message}`,
    `promise:  ${script.promise}`,
    `schedule: ${formatSchedule(names, finding.schedule)}`,
    `replay:   --only='${script.name}' --replay=${finding.schedule.join('')}`,
    ...replay(script, finding.schedule).slice(-LINES_MAX),
  ].join('\n');
  return new ExplorerFailure(finding.kind, finding.message, finding.schedule, text);
}

class Finding extends Error {
  readonly kind: FailureKind;
  schedule: readonly number[] = [];

  constructor(kind: FailureKind, message: string, cause?: unknown) {
    super(message, { cause });
    this.kind = kind;
  }
}

/** Thrown through a thread's code at its next Atomics call; what it does while unwinding counts for nothing. */
class Suspension extends Error {}
const SUSPENSION = new Suspension('suspended by the explorer');

function nowhere(): boolean {
  return false;
}

// ---------------------------------------------------------------------------------------------
// Threads

class Thread {
  readonly name: string;
  readonly start: () => () => unknown;
  /** The memory before `start`, and whether it writes there. */
  readonly image: Memory;
  readonly startWrites: boolean;
  readonly root: Point;
  readonly plainLoads: (address: number) => boolean;
  readonly plainStores: (address: number) => boolean;
  point: Point;
  pointCount = 0;

  constructor(
    name: string,
    start: () => () => unknown,
    image: Memory,
    startWrites: boolean,
    plainLoads: (address: number) => boolean,
    plainStores: (address: number) => boolean,
  ) {
    this.name = name;
    this.start = start;
    this.image = image;
    this.startWrites = startWrites;
    this.plainLoads = plainLoads;
    this.plainStores = plainStores;
    this.root = new Point(undefined, undefined, START, NO_FOOTPRINT, this.pointCount++, undefined);
    this.point = this.root;
  }

  get ended(): boolean {
    return this.point.call === 'done' || this.point.call === 'threw';
  }
}

/** Where accesses go: straight to a memory, to the memory with undo (checks), or through a thread's history. */
const RAW = 0;
const CHECK = 1;
const THREAD = 2;

class Machine<S> {
  readonly #spins: number;
  readonly #racy: (address: number) => boolean;
  readonly #check: (results: readonly unknown[]) => void;
  readonly #threads: readonly Thread[];
  readonly #memory: Memory;
  /** As it was when the bodies began. */
  readonly #initial: Memory;
  /** For what a thread builds when it is run again. */
  readonly #scratch: Memory;
  /** Target of raw accesses. */
  #raw: Memory;
  #rawWritten = false;
  readonly #world: World;
  readonly #labels: Map<number, string> = new Map();
  readonly #wasAtomics: typeof Atomics = Atomics;
  readonly #atomics: typeof Atomics;
  readonly #viewOf: WeakMap<object, { kind: ViewKind; from: number }> = new WeakMap();

  // Undo log of the depth-first walk: word, value before. Words ever written since the start, in order.
  readonly #undo: number[] = [];
  readonly #touched: number[] = [];
  readonly #isTouched: Set<number> = new Set();
  /** Threads in Atomics.wait, longest first. Never changed in place. */
  #waiters: readonly number[] = [];
  /** Bit per thread: notified, and not run since. */
  #woken = 0;
  #mode: number = RAW;
  #steps: number[] = [];

  // The thread being run, the history it is handed, and where in it it stands.
  #running: Thread | undefined;
  #history: Point[] = [];
  #results: Result[] = [];
  #cursor = 0;
  #last: Point | undefined;
  #lastResult: Result;
  #footprint: Footprint = new Map();
  #suspended = false;

  constructor(script: Script<S>) {
    const bytes = script.arenaBytes ?? ARENA_BYTES_DEFAULT;
    this.#memory = new Memory(bytes);
    this.#initial = new Memory(bytes);
    this.#scratch = new Memory(bytes);
    this.#raw = this.#memory;
    this.#atomics = this.#makeAtomics();
    const view = (kind: ViewKind): unknown => this.#makeView(kind, 0, bytes / bytesOf(kind));
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what the code sees for an arena
    const arena = {
      bytes,
      u8: view('u8'),
      i32: view('i32'),
      u32: view('u32'),
      f64: view('f64'),
      get buffer(): never {
        throw new Error('a script reaches memory through the views of its arena only');
      },
    } as unknown as Arena;
    this.#world = {
      arena,
      label: (address, name, words = 1) => {
        for (let i = 0; i < words; i++) {
          this.#labels.set((address >>> 2) + i, words > 1 ? `${name}[${i}]` : name);
        }
      },
      word: (address) => (this.#mode === RAW ? this.#raw : this.#memory).i32[address >>> 2],
    };
    const shared = this.#patched(() => script.setup(this.#world));
    this.#threads = script.threads.map((thread) => {
      const image = new Memory(bytes);
      image.u8.set(this.#memory.u8);
      const start = (): (() => unknown) => thread.start(this.#world, shared);
      this.#rawWritten = false;
      this.#patched(start);
      return new Thread(
        thread.name,
        start,
        image,
        this.#rawWritten,
        thread.plainLoads ?? nowhere,
        thread.plainStores ?? nowhere,
      );
    });
    this.#initial.u8.set(this.#memory.u8);
    this.#spins = script.spins ?? Infinity;
    this.#racy = script.racy ?? nowhere;
    this.#check = (results) => script.check?.(this.#world, shared, results);
  }

  explore(statesMax: number): Report {
    return this.#patched(() => {
      this.#mode = CHECK;
      const schedulesFrom: Map<string, number> = new Map();
      let depth = 0;
      const visit = (last: number): number => {
        const key = this.#key();
        const known = schedulesFrom.get(key);
        if (known !== undefined) return known;
        if (schedulesFrom.size >= statesMax)
          throw new Finding('unbounded', `over ${statesMax} states`);
        if (this.#steps.length > STEPS_MAX)
          throw new Finding('unbounded', `over ${STEPS_MAX} steps`);
        if (this.#steps.length > depth) depth = this.#steps.length;
        let schedules = 0;
        // The thread that ran last goes first, so that a failing schedule switches seldom.
        for (let n = 0; n < this.#threads.length; n++) {
          const index = (last + n) % this.#threads.length;
          if (!this.#canStep(index)) continue;
          const thread = this.#threads[index];
          const point = thread.point;
          const waiters = this.#waiters;
          const woken = this.#woken;
          const mark = this.#undo.length;
          this.#steps.push(index);
          this.#step(index);
          schedules += visit(index);
          this.#steps.pop();
          this.#rollBack(mark);
          this.#waiters = waiters;
          this.#woken = woken;
          thread.point = point;
        }
        if (schedules === 0) {
          this.#atEnd();
          schedules = 1;
        }
        schedulesFrom.set(key, schedules);
        return schedules;
      };
      try {
        this.#begin();
        const schedules = visit(0);
        return { schedules, states: schedulesFrom.size, depth };
      } catch (error) {
        if (error instanceof Finding) error.schedule = [...this.#steps];
        throw error;
      }
    });
  }

  replay(schedule: readonly number[]): string[] {
    return this.#patched(() => {
      this.#mode = CHECK;
      const lines: string[] = [];
      const at = (index: number): string =>
        `${String(lines.length).padStart(3)} ${this.#threads[index].name}: `;
      try {
        this.#begin();
        for (const index of schedule) {
          if (!this.#canStep(index)) return [...lines, `${at(index)}cannot run here`];
          const thread = this.#threads[index];
          const point = thread.point;
          const line = at(index) + this.#describe(index);
          try {
            this.#step(index);
          } catch (error) {
            return [
              ...lines,
              `${line} -> ${error instanceof Error ? error.message : String(error)}`,
            ];
          }
          lines.push(line + this.#outcomeText(thread, point));
        }
        this.#threads.forEach(({ ended }, index) => {
          if (!ended) lines.push(`${at(index)}next: ${this.#describe(index)}`);
        });
        if (!this.#threads.some((_, index) => this.#canStep(index))) this.#atEnd();
      } catch (error) {
        lines.push(`    ${error instanceof Error ? error.message : String(error)}`);
      }
      return lines;
    });
  }

  #begin(): void {
    this.#threads.forEach((thread, index) => {
      thread.point = this.#advance(thread, thread.root, undefined);
      this.#raceCheck(index, thread.point.footprint!);
      this.#throwIfThrew(thread);
    });
  }

  #canStep(index: number): boolean {
    const thread = this.#threads[index];
    return !thread.ended && !this.#waiters.includes(index) && !this.#spinning(thread);
  }

  /** True when the next look of a thread that only looks would find what the last ones found. */
  #spinning(thread: Thread): boolean {
    const { point } = thread;
    if (this.#spins === Infinity) return false;
    point.looks ??= looksOf(point, this.#spins);
    for (const look of point.looks) {
      if (this.#readPlain(this.#memory, look.view, look.at) !== look.value) return false;
    }
    return point.looks.length > 0;
  }

  #atEnd(): void {
    const stuck = this.#threads.filter((thread) => !thread.ended);
    if (stuck.some((thread) => this.#spinning(thread))) {
      throw new Finding('unbounded', `${stuck.map(({ name }) => name).join(', ')} look for ever`);
    }
    if (stuck.length > 0) {
      const names = stuck.map(
        (thread) => `${thread.name} waits on ${this.#nameOf(thread.point.at)}`,
      );
      throw new Finding('deadlock', names.join(', '));
    }
    try {
      this.#check(this.#threads.map((thread) => thread.point.outcome));
    } catch (error) {
      throw new Finding('check', error instanceof Error ? error.message : String(error), error);
    }
  }

  /** One Atomics call of the thread, and what it does plainly up to the next. */
  #step(index: number): void {
    const thread = this.#threads[index];
    const point = thread.point;
    const word = point.at >>> 2;
    const was = this.#memory.i32[word];
    let result: Result;
    if (point.call === 'notify') {
      result = this.#wake(point.at, point.a);
    } else if (point.call === 'wait') {
      this.#raceCheckWord(index, word, READ_MASK);
      if (this.#woken & (1 << index)) {
        this.#woken &= ~(1 << index);
        result = 'ok';
      } else if (was === point.a) {
        this.#waiters = [...this.#waiters, index];
        return;
      } else {
        result = 'not-equal';
      }
    } else {
      const writes = atomicWrites(point.call, was, point.a);
      this.#raceCheckWord(index, word, writes ? WRITE_MASK : READ_MASK);
      if (writes) this.#write(word, atomicValue(point.call, was, point.a, point.b));
      result = point.call === 'store' ? point.a : was;
    }
    thread.point = this.#advance(thread, point, result);
    this.#raceCheck(index, thread.point.footprint!);
    this.#throwIfThrew(thread);
  }

  #wake(at: number, count: number): number {
    let woken = 0;
    this.#waiters = this.#waiters.filter((index) => {
      if (woken >= count || this.#threads[index].point.at !== at) return true;
      this.#woken |= 1 << index;
      woken++;
      return false;
    });
    return woken;
  }

  #throwIfThrew(thread: Thread): void {
    if (thread.point.call !== 'threw') return;
    const error = thread.point.outcome;
    throw new Finding(
      'threw',
      `${thread.name}: ${error instanceof Error ? error.message : String(error)}`,
      error,
    );
  }

  #raceCheck(index: number, footprint: Footprint): void {
    if (footprint.size === 0) return;
    for (let other = 0; other < this.#threads.length; other++) {
      if (other === index) continue;
      const word = conflictWord(footprint, this.#threads[other].point.footprint!);
      if (word >= 0) this.#race(index, other, word);
    }
  }

  #raceCheckWord(index: number, word: number, mask: number): void {
    for (let other = 0; other < this.#threads.length; other++) {
      if (other === index) continue;
      const theirs = this.#threads[other].point.footprint!.get(word);
      if (theirs !== undefined && masksConflict(mask, theirs)) this.#race(index, other, word);
    }
  }

  #race(index: number, other: number, word: number): never {
    const names = `${this.#threads[index].name} and ${this.#threads[other].name}`;
    throw new Finding('race', `${names} touch ${this.#nameOf(word * 4)} without synchronisation`);
  }

  // -- memory ---------------------------------------------------------------------------------

  #write(word: number, value: number): void {
    const i32 = this.#memory.i32;
    this.#undo.push(word, i32[word]);
    i32[word] = value;
    if (this.#isTouched.has(word)) return;
    this.#isTouched.add(word);
    this.#touched.push(word);
  }

  #rollBack(mark: number): void {
    const i32 = this.#memory.i32;
    while (this.#undo.length > mark) {
      const value = this.#undo.pop()!;
      i32[this.#undo.pop()!] = value;
    }
  }

  /** Everything the future depends on, as text: where each thread stands, who waits, words that changed. */
  #key(): string {
    const codes: number[] = [];
    for (const { point } of this.#threads) codes.push(point.id & 0xffff, point.id >>> 16);
    codes.push(this.#woken, this.#waiters.length, ...this.#waiters);
    const now = this.#memory.i32;
    const before = this.#initial.i32;
    for (let i = 0; i < this.#touched.length; i++) {
      const word = this.#touched[i];
      const value = now[word];
      if (value !== before[word]) codes.push(i, value & 0xffff, value >>> 16);
    }
    return String.fromCharCode(...codes);
  }

  #readPlain(memory: Memory, view: ViewKind, at: number): number {
    if (view === 'u8') return memory.u8[at];
    if (view === 'i32') return memory.i32[at >>> 2];
    if (view === 'u32') return memory.u32[at >>> 2];
    return memory.f64[at >>> 3];
  }

  #writePlain(view: ViewKind, at: number, value: number): void {
    const word = at >>> 2;
    if (view === 'u8') {
      const shift = (at & 3) * 8;
      this.#write(word, (this.#memory.i32[word] & ~(255 << shift)) | ((value & 255) << shift));
    } else if (view === 'f64') {
      const [low, high] = wordsOf(value);
      this.#write(word, low);
      this.#write(word + 1, high);
    } else {
      this.#write(word, value | 0);
    }
  }

  // -- running a thread's code ------------------------------------------------------------------

  /** From `point` with its result, over plain accesses, to the thread's next scheduling point. */
  #advance(thread: Thread, from: Point, fromResult: Result): Point {
    let point = from;
    let result = fromResult;
    for (;;) {
      const next = point.children.get(result);
      if (next === undefined) return this.#run(thread, point, result);
      if (!isPlain(next.call)) return next;
      result = this.#perform(next);
      point = next;
    }
  }

  #perform(point: Point): Result {
    if (point.call === 'read') return this.#readPlain(this.#memory, point.view, point.at);
    this.#writePlain(point.view, point.at, point.a);
    return undefined;
  }

  /** Runs the thread from its start: handed its history up to `result` of `point`, then live to its next scheduling point. */
  #run(thread: Thread, point: Point, result: Result): Point {
    const history: Point[] = [];
    const results: Result[] = [];
    for (let p = point, r = result; ;) {
      history.push(p);
      results.push(r);
      if (p.parent === undefined) break;
      r = p.result;
      p = p.parent;
    }
    this.#history = history.toReversed();
    this.#results = results.toReversed();
    this.#running = thread;
    this.#cursor = 1; // the start has no access
    this.#last = this.#history[0];
    this.#lastResult = undefined;
    this.#footprint = new Map();
    this.#suspended = false;
    this.#mode = RAW;
    this.#raw = thread.image;
    if (thread.startWrites) {
      this.#raw = this.#scratch;
      this.#raw.u8.set(thread.image.u8);
    }
    let outcome: unknown;
    let call: Call = 'done';
    try {
      const body = thread.start();
      this.#mode = THREAD;
      outcome = body();
    } catch (error) {
      call = 'threw';
      outcome = error;
    } finally {
      this.#mode = CHECK;
      this.#running = undefined;
    }
    if (outcome === SUSPENSION) return this.#last;
    if (this.#suspended) throw new Error(`${thread.name} swallows the explorer's exception`);
    return this.#grow(thread, { call, view: 'i32', at: 0, a: 0, b: 0 }, outcome);
  }

  /** Adds what the running thread does next to its histories, behind the last result. */
  #grow(thread: Thread, access: Access, outcome: unknown): Point {
    const plain = isPlain(access.call);
    if (this.#cursor < this.#history.length)
      throw new Error(`${thread.name} ended before its history`);
    const next = new Point(
      this.#last,
      this.#lastResult,
      access,
      plain ? undefined : this.#footprint,
      plain ? -1 : thread.pointCount++,
      outcome,
    );
    this.#last!.children.set(this.#lastResult, next);
    return next;
  }

  /** An access by the running thread: handed back from its history, or live. */
  #access(access: Access): Result {
    const thread = this.#running!;
    if (this.#suspended) throw SUSPENSION;
    const plain = isPlain(access.call);
    if (this.#cursor < this.#history.length) {
      const point = this.#history[this.#cursor];
      if (!sameAccess(point, access)) {
        throw new Error(`${thread.name} is not deterministic: ${access.call} after ${point.call}`);
      }
      this.#last = point;
      this.#lastResult = this.#results[this.#cursor++];
      if (plain) this.#note(access);
      else this.#footprint = new Map();
      return this.#lastResult;
    }
    this.#last = this.#grow(thread, access, undefined);
    if (!plain) {
      this.#suspended = true;
      throw SUSPENSION;
    }
    this.#note(access);
    this.#lastResult = this.#perform(this.#last);
    return this.#lastResult;
  }

  #note({ call, view, at }: Access): void {
    if (!this.#racy(at)) addToFootprint(this.#footprint, view, at, call === 'write');
  }

  #read(view: ViewKind, at: number): number {
    if (this.#mode === RAW) return this.#readPlain(this.#raw, view, at);
    if (this.#mode === CHECK) return this.#readPlain(this.#memory, view, at);
    return Number(this.#access({ call: 'read', view, at, a: 0, b: 0 }));
  }

  #store(view: ViewKind, at: number, value: number): void {
    if (this.#mode === RAW) this.#fillRaw(view, at, 1, value);
    else if (this.#mode === CHECK) this.#writePlain(view, at, value);
    else this.#access({ call: 'write', view, at, a: value, b: 0 });
  }

  #fillRaw(view: ViewKind, at: number, count: number, value: number): void {
    const index = at / bytesOf(view);
    this.#raw[view].fill(value, index, index + count);
    this.#rawWritten = true;
  }

  // -- what the code sees -----------------------------------------------------------------------

  /** Runs something that stands outside the threads' bodies. */
  #patched<R>(run: () => R): R {
    globalThis.Atomics = this.#atomics;
    try {
      return run();
    } finally {
      globalThis.Atomics = this.#wasAtomics;
    }
  }

  /** Something that looks like a typed array over `length` elements from byte `from` on. */
  #makeView(kind: ViewKind, from: number, length: number): object {
    const size = bytesOf(kind);
    const element = (index: number): number => {
      if (index < 0 || index >= length)
        throw new RangeError(`${kind}[${index}] is outside its view`);
      return from + index * size;
    };
    const methods: Record<string, unknown> = {
      length,
      byteLength: length * size,
      BYTES_PER_ELEMENT: size,
      fill: (value: number, start = 0, end = length) => {
        if (this.#mode === RAW && end > start) {
          element(end - 1);
          this.#fillRaw(kind, element(start), end - start, value);
          return;
        }
        for (let i = start; i < end; i++) this.#store(kind, element(i), value);
      },
      set: (source: ArrayLike<number>, at = 0) => {
        for (let i = 0; i < source.length; i++) this.#store(kind, element(at + i), source[i]);
      },
      subarray: (start = 0, end = length) => {
        const stop = Math.min(end, length);
        return this.#makeView(kind, from + start * size, Math.max(0, stop - start));
      },
      slice: (start = 0, end = length) => {
        const values: number[] = [];
        for (let i = start; i < Math.min(end, length); i++)
          values.push(this.#read(kind, element(i)));
        return makeArray(kind, values);
      },
      copyWithin: (target: number, start: number, end = length) => {
        const values: number[] = [];
        for (let i = start; i < end; i++) values.push(this.#read(kind, element(i)));
        values.forEach((value, i) => this.#store(kind, element(target + i), value));
      },
    };
    const view: object = new Proxy(
      {},
      {
        get: (_, key) => {
          if (typeof key === 'symbol') return undefined;
          const index = Number(key);
          if (Number.isInteger(index)) return this.#read(kind, element(index));
          if (key in methods) return methods[key];
          throw new Error(`the explorer's views have no ${key}`);
        },
        set: (_, key, value: number) => {
          this.#store(kind, element(Number(key)), value);
          return true;
        },
        has: (_, key) => typeof key === 'string' && (key in methods || Number(key) < length),
      },
    );
    this.#viewOf.set(view, { kind, from });
    return view;
  }

  #makeAtomics(): typeof Atomics {
    const addressOf = (array: object, index: number): number => {
      const view = this.#viewOf.get(array);
      if (view === undefined) throw new Error('Atomics on something that is not in the arena');
      // Synchronisation needs equal byte ranges, so a shared word has one view (row-cache.md 3.3).
      if (view.kind !== 'i32') throw new Error(`Atomics on ${view.kind}: shared words are Int32`);
      return view.from + index * 4;
    };
    const direct = (call: Call, at: number, a: number, b: number): Result => {
      const was = this.#read('i32', at);
      if (call === 'load') return was;
      if (call === 'wait') throw new Error('wait outside a thread');
      if (call === 'notify') return 0;
      if (atomicWrites(call, was, a)) this.#store('i32', at, atomicValue(call, was, a, b));
      return call === 'store' ? a : was;
    };
    const on =
      (call: Call) =>
      (array: object, index: number, a = 0, b = 0): Result => {
        const at = addressOf(array, index);
        if (this.#mode !== THREAD) return direct(call, at, a, b);
        const thread = this.#running!;
        if (call === 'load' && thread.plainLoads(at)) return this.#read('i32', at);
        if (call === 'store' && thread.plainStores(at)) {
          this.#store('i32', at, a);
          return a;
        }
        // Only integers are compared and stored; a timeout is not looked at.
        return this.#access({
          call,
          view: 'i32',
          at,
          a: call === 'notify' ? a : a | 0,
          b: call === 'wait' ? 0 : b | 0,
        });
      };
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what the code sees for Atomics
    return {
      load: on('load'),
      store: on('store'),
      add: on('add'),
      sub: on('sub'),
      and: on('and'),
      or: on('or'),
      xor: on('xor'),
      exchange: on('exchange'),
      compareExchange: on('compareExchange'),
      wait: on('wait'),
      notify: (array: object, index: number, count = Infinity) => on('notify')(array, index, count),
      isLockFree: (bytes: number) => bytes === 4,
      waitAsync: () => {
        throw new Error('the explorer does not model Atomics.waitAsync');
      },
    } as unknown as typeof Atomics;
  }

  // -- words for people ---------------------------------------------------------------------------

  #nameOf(at: number): string {
    return this.#labels.get(at >>> 2) ?? `word at ${at}`;
  }

  #describe(index: number): string {
    const point = this.#threads[index].point;
    const name = this.#nameOf(point.at);
    if (point.call === 'load' || point.call === 'notify') return `${point.call} ${name}`;
    if (point.call === 'compareExchange') return `compareExchange ${name} ${point.a} -> ${point.b}`;
    if (point.call !== 'wait') return `${point.call} ${name} ${point.a}`;
    return this.#woken & (1 << index) ? `woken on ${name}` : `wait on ${name} while ${point.a}`;
  }

  #outcomeText(thread: Thread, from: Point): string {
    if (thread.point === from) return ' -> sleeps';
    const chain: Point[] = [];
    for (let p: Point | undefined = thread.point; p !== undefined && p !== from; p = p.parent)
      chain.push(p);
    const first = chain.at(-1)!;
    let text = from.call === 'store' ? '' : ` -> ${String(first.result)}`;
    const plain: string[] = [];
    for (let i = chain.length - 1; i > 0; i--) {
      const p = chain[i];
      const value = p.call === 'read' ? chain[i - 1].result : p.a;
      plain.push(`${p.call} ${this.#nameOf(p.at)} ${String(value)}`);
    }
    if (plain.length > 6) plain.splice(3, plain.length - 6, `... ${plain.length - 6} more`);
    if (plain.length > 0) text += `; ${plain.join(', ')}`;
    return thread.point.call === 'done' ? `${text}; ends` : text;
  }
}

function makeArray(kind: ViewKind, values: readonly number[]): object {
  if (kind === 'u8') return Uint8Array.from(values);
  if (kind === 'i32') return Int32Array.from(values);
  if (kind === 'u32') return Uint32Array.from(values);
  return Float64Array.from(values);
}
