/**
 * Rounds of kill -9 against a real disk. A process over the stores that the last one left (child.ts) checks
 * them and goes on writing, until it is killed at a moment drawn here; what it had said by then is held
 * here, outside of it. A round is one store's part in that: a process has several, so that its start is
 * paid for once, and several processes go side by side. Used by main.ts and the test; runs on the main
 * thread, the children are processes of their own. Where asked to, the power of the disk that the stores are
 * on is cut first (power-disk.ts): what was acknowledged without a sync is then not promised.
 *
 *   store   rounds of one plan, killed or now and then closed in order, until it has had enough; when the
 *           next process has found it sound, a new one in an empty directory takes its place
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { Prng } from '../../core/base/prng.ts';
import {
  BUSY_EDIT,
  BUSY_FLUSH,
  BUSY_MERGE,
  BUSY_ROTATION,
  MESSAGE_BYTES,
  MESSAGE_FD,
  SAYS_ACKNOWLEDGED,
  SAYS_BUSY,
  SAYS_CHECKED,
  SAYS_CLOSED,
  SAYS_CLOSING,
  SAYS_DURABLE,
  SAYS_OPEN,
  SAYS_STARTED,
  planStore,
} from './plan.ts';
import type { StorePlan, Task } from './plan.ts';
import { PowerDisk } from './power-disk.ts';
import { makeProgram } from './program.ts';

/** A process that says nothing for so long hangs, unless the machine is a busy one. */
const SILENCE_MS_MAX = 60_000;
/** A store larger than this has had enough. */
const OFFSETS_MAX = 40_000;
const WITHOUT_END = 1_000_000_000;

export type KillOptions = {
  readonly seed: number;
  readonly rounds: number;
  /** Processes side by side. */
  readonly lanes: number;
  /** Stores of each: the first on threads, the others inline. */
  readonly stores: number;
  /** Made here, and removed when nothing was found. */
  readonly directory: string;
  /** Instead of a minute. */
  readonly silenceMsMax?: number | undefined;
  /** Cut the power of the disk, then kill. Needs root (power-disk.ts). */
  readonly power?: boolean;
  readonly onRound?: (done: number) => void;
  /** For the tests of this file: forgets what the store had promised, or claims more. */
  readonly claim?: (promised: number) => number;
};

export type KillReport = {
  rounds: number;
  processes: number;
  kills: number;
  closes: number;
  stores: number;
  acknowledged: number;
  durable: number;
  rotations: number;
  /** Promised transactions that were not there. */
  lost: number;
  readonly killsByPhase: Record<string, number>;
  readonly killsByKind: Record<string, number>;
  failure: KillFailure | undefined;
};

export type KillFailure = {
  readonly text: string;
  /** The store as the failing process left it, and as it was before. */
  readonly directory: string;
  readonly before: string;
  readonly task: Task;
};

class Wrong extends Error {
  readonly store: Store;

  constructor(store: Store, text: string) {
    super(text);
    this.store = store;
  }
}

/** When the process is killed: so long after it said that (0: after it was started). */
type Moment = { readonly after: number; readonly ms: number };

function drawMoment(prng: Prng): Moment {
  const at = prng.unit();
  if (at < 0.04) return { after: 0, ms: prng.below(120) };
  if (at < 0.18) return { after: SAYS_STARTED, ms: prng.below(prng.pick([3, 20, 60])) };
  if (at < 0.25) return { after: SAYS_OPEN, ms: prng.below(20) };
  if (at < 0.35) return { after: SAYS_CLOSING, ms: prng.below(prng.pick([1, 8])) };
  return { after: SAYS_CHECKED, ms: prng.below(prng.pick([10, 100, 400])) };
}

/** One store through its processes. */
class Store {
  readonly plan: StorePlan;
  readonly directory: string;
  readonly before: string;
  promised = 0;
  roundsLeft: number;
  // Of the process in progress.
  task!: Task;
  phase = 'starting';
  isChecked = false;
  rotations = 0;

  constructor(plan: StorePlan, directory: string, before: string, rounds: number) {
    this.plan = plan;
    this.directory = directory;
    this.before = before;
    this.roundsLeft = rounds;
  }

  begin(task: Task): void {
    this.task = task;
    this.phase = 'starting';
    this.isChecked = false;
    this.rotations = 0;
    // What a process finds wrong is looked at as it found it, not as it has mended it.
    rmSync(this.before, { recursive: true, force: true });
    if (existsSync(this.directory)) cpSync(this.directory, this.before, { recursive: true });
    else mkdirSync(this.directory, { recursive: true });
  }

  promise(upper: number): void {
    this.promised = Math.max(this.promised, upper);
  }

  remove(): void {
    for (const path of [this.directory, this.before]) {
      rmSync(path, { recursive: true, force: true });
    }
  }
}

/** One process after the other. */
class Lane {
  readonly #run: KillRun;
  readonly #prng: Prng;
  readonly #number: number;
  readonly #stores: Store[] = [];
  readonly #disk: PowerDisk | undefined;
  #made = 0;

  constructor(run: KillRun, number: number, prng: Prng) {
    this.#run = run;
    this.#prng = prng;
    this.#number = number;
    const { directory, power } = run.options;
    if (power === true) this.#disk = new PowerDisk(join(directory, `disk-${number}`), prng.child());
  }

  async go(): Promise<void> {
    const run = this.#run;
    for (let i = 0; i < run.options.stores; i++) this.#stores.push(this.#makeStore(i));
    while (run.goesOn) {
      await this.#process(drawMoment(this.#prng));
      this.#stores.forEach((store, i) => {
        if (!store.isChecked || (store.roundsLeft > 0 && store.promised < OFFSETS_MAX)) return;
        store.remove();
        this.#stores[i] = this.#makeStore(i);
      });
    }
    // What the last kill left is looked at too.
    if (run.report.failure === undefined) await this.#process(undefined);
    for (const store of this.#stores) store.remove();
    this.#disk?.remove();
  }

  #makeStore(place: number): Store {
    const prng = this.#prng;
    const { report, options } = this.#run;
    report.stores++;
    const plan = planStore(prng.u32(), place === 0 ? 'threads' : 'inline');
    const name = `store-${this.#number}-${this.#made++}`;
    const directory = join(this.#disk?.mountPoint ?? options.directory, name);
    const before = join(options.directory, `${name}-before`);
    return new Store(plan, directory, before, prng.between(2, 20));
  }

  /** Starts a process over all stores, and kills it; without a moment it checks, closes and ends. */
  async #process(moment: Moment | undefined): Promise<void> {
    const prng = this.#prng;
    const { report, options } = this.#run;
    if (moment !== undefined) this.#run.begin(this.#stores.length);
    // The one whose progress decides about the moment.
    const watched = prng.below(this.#stores.length);
    this.#stores.forEach((store, i) => {
      const isShort = prng.chance(0.1) || (moment?.after === SAYS_CLOSING && i === watched);
      store.begin({
        plan: store.plan,
        directory: store.directory,
        seed: prng.u32(),
        promised: options.claim === undefined ? store.promised : options.claim(store.promised),
        closeAfter: moment === undefined ? 0 : isShort ? prng.between(1, 400) : WITHOUT_END,
      });
    });
    const isKilled = await this.#watch(moment, watched);
    if (isKilled && this.#disk !== undefined) {
      this.#disk.unmount();
      this.#disk.mount();
    }
    report.processes++;
    for (const { plan, phase, rotations } of this.#stores) {
      report.rotations += rotations;
      if (phase === 'closed') report.closes++;
      if (!isKilled || phase === 'closed') continue;
      report.kills++;
      add(report.killsByPhase, phase);
      add(report.killsByKind, `${plan.host} ${plan.synced ? 'synced' : 'buffered'}`);
    }
    if (moment === undefined) return;
    for (const store of this.#stores) store.roundsLeft--;
    this.#run.end(this.#stores.length);
  }

  /** True: it was killed; false: it ended, all stores closed. */
  #watch(moment: Moment | undefined, watched: number): Promise<boolean> {
    const stores = this.#stores;
    const tasks = stores.map(({ task }) => task);
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [this.#run.program, JSON.stringify(tasks)], {
        stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      });
      let words = '';
      child.stderr!.setEncoding('utf8').on('data', (text: string) => {
        words = (words + text).slice(0, 20_000);
      });
      let killer: NodeJS.Timeout | undefined;
      let isKilled = false;
      let isHung = false;
      const silenceMsMax = this.#run.options.silenceMsMax ?? SILENCE_MS_MAX;
      const silence = setTimeout(() => {
        isHung = true;
        child.kill('SIGKILL');
      }, silenceMsMax);
      const arm = (said: number, store: number): void => {
        if (moment?.after !== said || killer !== undefined) return;
        if (store !== watched && said > SAYS_STARTED) return;
        killer = setTimeout(() => {
          isKilled = true;
          if (this.#disk !== undefined) this.#cutPower(this.#disk, child);
          child.kill('SIGKILL');
        }, moment.ms);
      };
      const disk = this.#disk === undefined ? '' : ` (mounted with ${this.#disk.options})`;
      const fail = (store: Store, text: string): void => reject(new Wrong(store, text + disk));
      let rest: Buffer = Buffer.alloc(0);
      (child.stdio[MESSAGE_FD] as Readable).on('data', (chunk: Buffer) => {
        const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
        silence.refresh();
        let at = 0;
        for (; at + MESSAGE_BYTES <= bytes.length; at += MESSAGE_BYTES) {
          const kind = bytes.readUInt16LE(at);
          const store = bytes.readUInt16LE(at + 2);
          this.#hear(kind, store, bytes.readUInt32LE(at + 4), bytes.readDoubleLE(at + 8));
          arm(kind, store);
        }
        rest = bytes.subarray(at);
      });
      arm(0, watched);
      child.once('error', (error) => fail(stores[0], String(error)));
      // The pipe has been read to its end by then.
      child.once('close', (code, signal) => {
        clearTimeout(silence);
        clearTimeout(killer);
        const open = stores.find(({ phase }) => phase !== 'closed');
        if (isHung) fail(open ?? stores[0], `silent for ${silenceMsMax} ms while ${open?.phase}`);
        else if (signal === 'SIGKILL') resolve(isKilled);
        else if (code === 0 && open === undefined) resolve(false);
        else {
          const store = stores[Number(/^store (\d+):/.exec(words)?.[1] ?? 0)] ?? stores[0];
          fail(store, `ended with ${code ?? signal} while ${store.phase}: ${words}`);
        }
      });
    });
  }

  /**
   * The process stands still first: what it said, it said while there was power. A shutdown takes a moment
   * during which the kernel may answer a sync that it then does not keep; no machine without power hears that.
   */
  #cutPower(disk: PowerDisk, child: ChildProcess): void {
    child.kill('SIGSTOP');
    while (!standsStill(child.pid!)) continue;
    disk.cut();
  }

  #hear(kind: number, number: number, flags: number, value: number): void {
    const { report } = this.#run;
    const store = this.#stores[number];
    switch (kind) {
      case SAYS_STARTED:
        for (const each of this.#stores) each.phase = 'opening';
        return;
      case SAYS_OPEN:
        store.phase = 'checking';
        report.lost += Math.max(0, store.task.promised - value);
        return;
      case SAYS_CHECKED:
        store.phase = 'writing';
        store.isChecked = true;
        // What was found there is there to stay: what nothing proved durable was written again and synced.
        store.promise(value);
        return;
      case SAYS_ACKNOWLEDGED:
        report.acknowledged++;
        if (this.#disk === undefined || store.plan.synced) store.promise(value + 1);
        return;
      case SAYS_DURABLE:
        report.durable++;
        store.promise(value + 1);
        return;
      case SAYS_BUSY:
        store.rotations = value;
        store.phase = busyPhase(flags);
        return;
      case SAYS_CLOSING:
        store.phase = 'closing';
        return;
      case SAYS_CLOSED:
        store.phase = 'closed';
        store.promise(value);
        return;
      default:
        throw new Wrong(store, `a message of kind ${kind}`);
    }
  }
}

/** No thread of the process comes back to its own code; those in a call of the kernel stop as they leave it. */
function standsStill(pid: number): boolean {
  const tasks = `/proc/${pid}/task`;
  try {
    return readdirSync(tasks).every((task) => {
      const text = readFileSync(`${tasks}/${task}/stat`, 'latin1');
      return 'TDZX'.includes(text.charAt(text.lastIndexOf(')') + 2));
    });
  } catch {
    // It, or one of its threads, has ended just now.
    return !existsSync(tasks);
  }
}

function busyPhase(flags: number): string {
  const parts: string[] = [];
  if ((flags & BUSY_ROTATION) !== 0) parts.push('rotation');
  if ((flags & BUSY_FLUSH) !== 0) parts.push('flush');
  if ((flags & BUSY_MERGE) !== 0) parts.push('merge');
  if ((flags & BUSY_EDIT) !== 0) parts.push('edit');
  return parts.length === 0 ? 'writing' : `writing, ${parts.join(' + ')}`;
}

function add(counts: Record<string, number>, name: string): void {
  counts[name] = (counts[name] ?? 0) + 1;
}

class KillRun {
  readonly options: KillOptions;
  readonly program: string;
  readonly report: KillReport = {
    rounds: 0,
    processes: 0,
    kills: 0,
    closes: 0,
    stores: 0,
    acknowledged: 0,
    durable: 0,
    rotations: 0,
    lost: 0,
    killsByPhase: {},
    killsByKind: {},
    failure: undefined,
  };
  #begun = 0;

  constructor(options: KillOptions) {
    this.options = options;
    this.program = makeProgram(join(options.directory, 'program'));
  }

  get goesOn(): boolean {
    return this.report.failure === undefined && this.#begun < this.options.rounds;
  }

  begin(rounds: number): void {
    this.#begun += rounds;
  }

  end(rounds: number): void {
    this.report.rounds += rounds;
    this.options.onRound?.(this.report.rounds);
  }
}

/** Runs the rounds, or up to the first that finds something; the directory is then left as it is. */
export async function killRounds(options: KillOptions): Promise<KillReport> {
  mkdirSync(options.directory, { recursive: true });
  const run = new KillRun(options);
  const prng = new Prng(options.seed);
  const lanes = Array.from({ length: options.lanes }, (_, i) => new Lane(run, i, prng.child()));
  await Promise.all(
    lanes.map(async (lane) => {
      try {
        await lane.go();
      } catch (error) {
        if (!(error instanceof Wrong)) throw error;
        const { directory, before, task } = error.store;
        run.report.failure ??= { text: error.message, directory, before, task };
      }
    }),
  );
  if (run.report.failure === undefined) {
    rmSync(options.directory, { recursive: true, force: true });
  }
  return run.report;
}
