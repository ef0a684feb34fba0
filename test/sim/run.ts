/**
 * One simulation: a seed makes the settings, the schedule, the workload and every disaster; lives of the
 * engine follow one another over one disk until the ticks are used up. What a life promised is checked
 * at the start of the next. Nothing here knows the time or chance of the real world. Used by main.ts
 * and the tests.
 *
 *   life   opened (now and then read-only) -> ticks of whoever the schedule picks -> one of:
 *          closed in order; killed or without power between two steps; dead inside a call of the disk;
 *          poisoned by a call that failed
 *
 * After a crash the store must hold a prefix of what the sequencer ordered, ending where a record ends,
 * with all that was durable (after a mere process crash: all that was written). See `#onOpen`.
 */
import { AssertionFailure, setVerify } from '../../core/base/assert.ts';
import { TidemarkError } from '../../core/base/errors.ts';
import { Prng } from '../../core/base/prng.ts';
import { Arena } from '../../core/shared/arena.ts';
import { KiB, MiB } from '../../core/base/limits.ts';
import type { EngineConfig } from '../../actors/actor.ts';
import type { Job } from '../../actors/jobs.ts';
import { auditClosed, auditQuiet } from './audit.ts';
import type { Baseline } from './audit.ts';
import { Caller } from './caller.ts';
import { Copies } from './copies.ts';
import { SimClock } from './clock.ts';
import { SimCrash, SimDisk } from './disk.ts';
import type { SimCall, SimFault } from './disk.ts';
import { Model } from './model.ts';
import type { JobFate } from './pool.ts';
import { configOf, drawSettings } from './settings.ts';
import type { Settings } from './settings.ts';
import { Trace } from './trace.ts';
import { SimFailure, World } from './world.ts';

const YEAR_MS = 31_536_000_000;
const ARENA_BYTES: number = 32 * MiB;
/** Rounds of everything that a quiet engine needs at the most to settle what it promised. */
const QUIET_ROUNDS_MAX = 400_000;
const OPEN_TICKS_MAX = 2_000_000;
const UNSETTLED_MAX = 1_500;
/** Microtasks that the longest chain of promises behind an answer takes. */
const MICROTASKS = 24;

export type SimOptions = {
  readonly seed: number;
  readonly ticks: number;
  /** Keeps every step in words, up to the failure. */
  readonly lines?: string[];
};

export type SimReport = {
  readonly seed: number;
  readonly ticks: number;
  readonly hash: string;
  readonly failure: unknown;
  readonly counts: Readonly<Record<string, number>>;
};

/** How a life ends. */
type End = 'close' | 'crash' | 'death' | 'fault' | 'full' | 'thread';

/** Weights of the schedule, drawn anew now and then: everybody is slow sometimes. */
type Mood = {
  readonly actors: readonly number[];
  readonly threads: readonly number[];
  readonly acting: number;
  readonly turning: number;
  /** All weights in the order of `#step`, with the clients and without. */
  readonly all: readonly number[];
  readonly alone: readonly number[];
};

/** The store has outgrown the memory that it is given: writers would wait without end, as they should. */
class StoreSpent extends Error {}

class Simulation {
  readonly #options: SimOptions;
  readonly #trace: Trace = new Trace();
  readonly #settings: Settings;
  readonly #arena: Arena = Arena.create(ARENA_BYTES);
  readonly #clock: SimClock = new SimClock();
  readonly #model: Model = new Model();
  readonly #schedule: Prng;
  readonly #workload: Prng;
  readonly #disaster: Prng;
  readonly counts: Record<string, number> = {
    lives: 0,
    acts: 0,
    transactions: 0,
    /** Operations that got a place in the order, and answers and rows that were compared. */
    operations: 0,
    compared: 0,
    pairs: 0,
    backups: 0,
    restores: 0,
    closes: 0,
    processCrashes: 0,
    powerLosses: 0,
    deaths: 0,
    threadDeaths: 0,
    faults: 0,
    sickDisks: 0,
    /** The power went after a sync that had lied: all that was durable before was there, or the damage was told. */
    liesSurvived: 0,
    liesTold: 0,
    lookFaults: 0,
    fullDisks: 0,
    refusals: 0,
    /** Conditions that did not hold, and commits whose conditions held. */
    conflicts: 0,
    conditions: 0,
    transacted: 0,
    /** Items of feeds. */
    followed: 0,
    slowSyncs: 0,
    /** Turns of a client with commits that wait for room on its ring. */
    fullRings: 0,
    poisons: 0,
    readOnly: 0,
    lost: 0,
    audits: 0,
    jobs: 0,
    jobsHung: 0,
    /** Parts that merges took over as they were. */
    partsMoved: 0,
  };
  #copyArena: Arena | undefined;
  readonly #copies: Copies = new Copies(() => (this.#copyArena ??= Arena.create(ARENA_BYTES)));
  #disk: SimDisk = new SimDisk();
  #tick = 0;
  /** What must be there whatever happens, and what must be there unless the power goes. */
  #durableFloor = 0;
  #writtenFloor = 0;
  #everOpened = false;
  readonly #baseline: Baseline = { memtablePages: undefined, pagesAhead: 0 };
  #mood: Mood;
  #moodUntil = 0;

  // Of the life in progress.
  #life: Settings;
  #world!: World;
  #callers: Caller[] = [];
  #readOnly = false;
  #died = false;
  #faulted = false;
  /** A sync has said yes and done nothing, which its file's next one will tell: until then the cache is all there is. */
  #hasLied = false;
  /** What was durable by then, and so is whatever follows. */
  #durableAtLie = 0;
  /** The call that failed said that the disk is full: commits may be refused. */
  #isFull = false;
  #steps = 0;
  /** Steps of the life after which a thread ends, and after which somebody hears of it. */
  #threadEndsAt = Infinity;
  #heardAt = Infinity;
  #threadEnded = false;
  #failuresInRow = 0;

  constructor(options: SimOptions) {
    this.#options = options;
    if (options.lines !== undefined) this.#trace.lines = options.lines;
    const root = new Prng(options.seed);
    this.#settings = drawSettings(root.child());
    this.#life = this.#settings;
    if (this.#settings.tinyRings > 0) this.#baseline.pagesAhead = 1;
    this.#schedule = root.child();
    this.#workload = root.child();
    this.#disaster = root.child();
    this.#mood = this.#drawMood();
  }

  get hash(): string {
    this.#trace.mix(this.#disk.traceHash);
    return this.#trace.hash;
  }

  /** Lets go of the real world's timers after a failure, whatever else is broken. */
  abandon(): void {
    for (const end of [() => this.#endLife(), () => this.#world.dispose()]) {
      try {
        end();
      } catch {
        // It has been told.
      }
    }
  }

  async run(): Promise<void> {
    try {
      while (this.#tick < this.#options.ticks) await this.#live(false);
      await this.#live(true);
      await this.#live(true);
    } catch (error) {
      if (!(error instanceof StoreSpent)) throw error;
      // It happens to a few seeds only.
      this.counts['spent'] = 1;
      this.abandon();
    }
    this.counts['transactions'] = this.#model.upper;
    this.counts['operations'] = this.#model.operations;
    this.counts['backups'] = this.#copies.looked - this.#copies.restored;
    this.counts['restores'] = this.#copies.restored;
  }

  // ---------------------------------------------------------------- a life

  /** From open to the end, whichever it is. The last lives are for looking at what is left. */
  async #live(last: boolean): Promise<void> {
    const { trace, disaster } = { trace: this.#trace, disaster: this.#disaster };
    const settings = this.#settings;
    this.counts['lives']++;
    // A store may be opened otherwise than before.
    this.#life = disaster.chance(0.1) ? { ...settings, synced: !settings.synced } : settings;
    this.#readOnly = !last && this.#everOpened && disaster.chance(settings.readOnly);
    this.#died = false;
    this.#faulted = false;
    this.#isFull = false;
    this.#hasLied = false;
    this.#steps = 0;
    this.#threadEndsAt = Infinity;
    this.#threadEnded = false;
    this.#failuresInRow = 0;
    let end: End = 'close';
    if (!last && !disaster.chance(settings.closes)) {
      end = disaster.chance(settings.faults) ? 'fault' : disaster.pick(['crash', 'death']);
    }
    if (!last && disaster.chance(settings.fullDisk)) end = 'full';
    if (!last && settings.threadDeaths > 0 && disaster.chance(settings.threadDeaths)) {
      end = 'thread';
    }
    // So a crash soon after another, or inside an open, is as likely as one late in life.
    const ticks = Math.ceil(settings.lifeTicksMax * disaster.unit() ** 2);
    this.#planDisaster(end, ticks);
    const mutationsBefore = this.#disk.mutations;
    this.#disk.record = this.#trace.lines;
    trace.say(`life ${this.counts['lives']} ${end}${this.#readOnly ? ' read-only' : ''}`);
    this.#world = this.#makeWorld();
    this.#callers = [];
    let inOrder = false;
    try {
      inOrder = await this.#untilEnd(end, last ? 0 : ticks, last);
    } catch (error) {
      if (!this.#died || !(error instanceof SimCrash)) throw error;
    }
    if (!inOrder) await this.#crash(end);
    else if (this.#readOnly && this.#disk.mutations !== mutationsBefore) {
      throw new SimFailure('a read-only engine has changed the disk');
    }
  }

  /** True: closed in order. False: it is over, and what is left is on the disk. */
  async #untilEnd(end: End, ticks: number, last: boolean): Promise<boolean> {
    if (!(await this.#open())) return false;
    this.#onOpen();
    const until = this.#tick + ticks;
    while (this.#tick < until) {
      this.#tick++;
      await this.#step(true);
      if (this.#isOver()) return false;
    }
    if (end === 'crash') return false;
    if (this.#threadEnded) {
      this.#world.hearOfEnd();
      return false;
    }
    // What was to happen in some call has not, or the engine has lived on: the life ends in order.
    this.#disk.capacityBytes = Number.MAX_SAFE_INTEGER;
    this.#disk.fault = (call) => this.#slow(call);
    if (this.#readOnly) this.counts['readOnly']++;
    else await this.#quiet(last || this.#disaster.chance(0.5));
    if (this.#isOver()) return false;
    return this.#close();
  }

  #makeWorld(): World {
    const settings = this.#life;
    const config: EngineConfig = {
      ...configOf(settings, 'sim', this.#disaster.fill(new Uint8Array(16))),
      readOnly: this.#readOnly,
      createIfMissing: !this.#readOnly,
    };
    return new World({
      arena: this.#arena,
      disk: this.#disk,
      clock: this.#clock,
      trace: this.#trace,
      model: this.#model,
      settings,
      config,
      jobFate: (job) => this.#fate(job),
      onReceipt: (client, receipt) => this.#callers[client].onReceipt(receipt),
    });
  }

  /** The call in which the process will die, or that will fail; or how much room the disk has. */
  #planDisaster(end: End, ticks: number): void {
    const disaster = this.#disaster;
    this.#disk.fault = (call) => this.#slow(call);
    if (end === 'full') this.#fill();
    if (end === 'thread') {
      this.#threadEndsAt = disaster.below(disaster.pick([100, 100 + ticks]));
      this.#heardAt = this.#threadEndsAt + disaster.below(disaster.pick([1, 30, 500]));
    }
    if (end !== 'death' && end !== 'fault') return;
    const start = this.#disk.calls;
    // Many calls are made at open, then one in a few ticks.
    const at = start + disaster.below(disaster.pick([30, 60, 60 + Math.ceil(ticks / 4)]));
    const kind = disaster.pick(['throw', 'throw', 'short', 'failedSync']);
    const looks = kind === 'throw' && disaster.chance(this.#settings.lookFaults);
    const code = looks ? 'EIO' : disaster.pick(['EIO', 'ENOSPC', 'EDQUOT', 'EROFS']);
    const manner = disaster.pick(['ext4', 'btrfs'] as const);
    const { sickDisk } = this.#settings;
    if (end === 'fault' && sickDisk > 0 && disaster.chance(sickDisk)) {
      this.#sicken(at, manner);
      return;
    }
    this.#disk.fault = (call: SimCall): SimFault | undefined => {
      this.#slow(call);
      if (call.index < at || this.#died) return undefined;
      if (end === 'death') {
        this.#died = true;
        return { kind: 'crash' };
      }
      if (looks !== call.mutation < 0 || this.#faulted) return undefined;
      // Nobody can do anything about a descriptor that does not close, and the space is only asked for.
      if (call.call === 'close' || call.call === 'statfs') return undefined;
      const isWrite = call.call === 'write' || call.call === 'writev';
      if (kind === 'short' && !(isWrite && call.length > 1)) return undefined;
      if (kind === 'failedSync' && call.call !== 'fdatasync') return undefined;
      this.#faulted = true;
      this.counts[looks ? 'lookFaults' : 'faults']++;
      // A short write is how a full disk first shows itself; a quota is one, too.
      const isNoSpace = code === 'ENOSPC' || code === 'EDQUOT';
      if (kind === 'short' || (kind === 'throw' && isNoSpace)) this.#isFull = true;
      this.#trace.note(() => `  fault ${kind} ${code} in ${call.call} ${call.path}`);
      if (kind === 'short') return { kind: 'short', bytes: disaster.below(call.length) };
      return kind === 'failedSync' ? { kind, manner } : { kind: 'throw', code };
    };
  }

  /** From a call on syncs fail, of whatever files, for a while or for good; or one lies. */
  #sicken(at: number, manner: 'ext4' | 'btrfs'): void {
    const disaster = this.#disaster;
    const lies = disaster.chance(0.3);
    let left = disaster.pick([2, 5, 20, Infinity]);
    this.#disk.fault = (call: SimCall): SimFault | undefined => {
      this.#slow(call);
      if (call.index < at || left <= 0) return undefined;
      const isDirectory = call.call === 'fsync';
      if (call.call !== 'fdatasync' && (lies || !isDirectory)) return undefined;
      if (!this.#faulted) this.counts['sickDisks']++;
      this.#faulted = true;
      this.#trace.note(() => `  sick disk in ${call.call} ${call.path}`);
      if (lies) {
        left = 0;
        this.#hasLied = true;
        this.#durableAtLie = this.#world.context.control.durable();
        return { kind: 'lateSync' };
      }
      left--;
      return isDirectory ? { kind: 'throw', code: 'EIO' } : { kind: 'failedSync', manner };
    };
  }

  /** A disk with hardly any room left, for the whole of this life. */
  #fill(): void {
    const disaster = this.#disaster;
    const used = this.#disk.capacityBytes - this.#disk.freeBytes();
    // With less than is kept for flushes nothing is taken at all; with little more it fills up by itself.
    const kept = disaster.chance(0.7) ? 4 * MiB + 2 * this.#settings.memtableBytes : 0;
    const room = kept + disaster.below(disaster.pick([64, 1_024, 8 * 1_024]) * KiB);
    this.#disk.capacityBytes = used + room;
    this.#faulted = true;
    this.#isFull = true;
    this.counts['fullDisks']++;
    this.#trace.note(() => `  room for ${room} bytes`);
  }

  /** A disk that takes its time: the clock has moved when the call returns. */
  #slow(call: SimCall): undefined {
    const { slowSyncs, slowSyncMsMax } = this.#settings;
    if (call.call !== 'fdatasync' || slowSyncs === 0) return;
    if (!this.#disaster.chance(slowSyncs)) return;
    this.counts['slowSyncs']++;
    this.#clock.advance(this.#disaster.unit() * slowSyncMsMax);
  }

  #fate(job: Job): JobFate {
    const disaster = this.#disaster;
    if (!disaster.chance(this.#settings.jobFaults)) {
      return 'lives';
    }
    // Three flushes that fail in a row end the engine, as they should.
    if (job.kind === 'flush' && this.#failuresInRow++ >= 2) return 'lives';
    const fate = disaster.unit();
    return fate < 0.5 ? 'fails' : fate < 0.8 ? 'dies' : 'hangs';
  }

  // ---------------------------------------------------------------- opening

  /** False: the process died, or a call failed, before the engine was open. */
  async #open(): Promise<boolean> {
    for (let i = 0; !this.#world.isOpen; i++) {
      if (i > OPEN_TICKS_MAX) throw new SimFailure('the engine does not open');
      await this.#step(false);
      if (this.#isOver()) return false;
    }
    return true;
  }

  /** The store is what it was promised to be. */
  #onOpen(): void {
    const { control } = this.#world.context;
    const upper = control.applied();
    const model = this.#model;
    this.#trace.say(`open ${upper} of ${model.upper}`);
    if (upper < this.#writtenFloor) {
      throw new SimFailure(`the store ends at ${upper}, ${this.#writtenFloor} was promised`);
    }
    if (upper > model.upper) {
      throw new SimFailure(`the store has ${upper} transactions, ${model.upper} were ordered`);
    }
    if (!model.isRecordEnd(upper)) throw new SimFailure(`the store ends inside a record: ${upper}`);
    this.counts['lost'] += model.upper - upper;
    model.truncate(upper);
    this.#writtenFloor = upper;
    if (!this.#readOnly) this.#durableFloor = upper;
    this.#everOpened = true;
    this.#callers = this.#world.clients.map(
      (_, number) =>
        new Caller({
          world: this.#world,
          number,
          prng: this.#workload.child(),
          trace: this.#trace,
          model,
          settings: this.#life,
          readOnly: this.#readOnly,
          mayBeFull: () => this.#isFull,
          mayFailToRead: () => this.#faulted,
          onRefusal: () => {
            this.counts['refusals']++;
          },
          onConflict: () => {
            this.counts['conflicts']++;
          },
        }),
    );
    this.#callers[0].checkAll();
    this.#world.afterAct();
  }

  // ---------------------------------------------------------------- the end

  /** True when the life has ended by itself: the process is dead, or the engine is poisoned. */
  #isOver(): boolean {
    if (this.#died) return true;
    const world = this.#world;
    const { failure, pool } = world;
    for (const { broken } of this.#callers) if (broken !== undefined) throw broken;
    if (pool.failure !== undefined) {
      if (!this.#faulted) throw new SimFailure('a job failed', { cause: pool.failure });
      pool.failure = undefined;
    }
    if (!world.isPoisoned && failure === undefined) return false;
    if (!this.#faulted && !this.#threadEnded) {
      const { actor, error } = failure ?? {
        actor: 'a client',
        error: new Error(world.context.control.failureJson()),
      };
      throw new SimFailure(`${actor} failed`, { cause: error });
    }
    return world.isPoisoned;
  }

  /** The process ends here, with or without the power. */
  async #crash(end: End): Promise<void> {
    const world = this.#world;
    const disaster = this.#disaster;
    const { control } = world.context;
    // Read-only, nothing is synced: what it shows may be in the page cache alone.
    const durable = this.#readOnly ? 0 : control.durable();
    this.#durableFloor = Math.max(this.#durableFloor, durable);
    this.#writtenFloor = Math.max(this.#writtenFloor, control.written(), this.#durableFloor);
    for (const { durablePromised, writtenPromised } of this.#callers) {
      if (durablePromised > this.#durableFloor)
        throw new SimFailure('settled before it was durable');
      if (writtenPromised > this.#writtenFloor)
        throw new SimFailure('settled before it was written');
    }
    if (world.isPoisoned && !this.#died) await this.#afterPoison();
    this.#endLife();
    const mode = this.#hasLied ? 'process' : disaster.pick(this.#settings.crashModes);
    this.counts[mode === 'process' ? 'processCrashes' : 'powerLosses']++;
    if (end === 'death' && this.#died) this.counts['deaths']++;
    this.#trace.say(`${end} ${mode} ${this.#durableFloor} ${this.#writtenFloor}`);
    // A call that failed has made nothing of what was only written.
    if (mode !== 'process' || this.#faulted) this.#writtenFloor = this.#durableFloor;
    const before = this.#disk;
    before.capacityBytes = Number.MAX_SAFE_INTEGER;
    if (this.#hasLied) await this.#losePowerAfterLie();
    this.#disk = before.crash(disaster, mode);
    // What was in the cache alone reaches the disk after all.
    if (this.#hasLied) this.#disk.settle();
    else if (this.#faulted && disaster.chance(0.3)) this.#disk.dropCache();
  }

  /** Whoever waits is told, and nobody is answered any more. */
  async #afterPoison(): Promise<void> {
    this.counts['poisons']++;
    // An answer may be followed by another question: reads look into one block after the other.
    while (this.#world.storage.answerLater(this.#schedule)) await settle();
    this.#callers.forEach((caller, number) => {
      this.#world.endTurn(number);
      this.#world.poll(number);
      caller.expectRefusal('TIDEMARK_POISONED');
    });
    await settle();
    this.#expectSettled('a poisoned engine');
  }

  #expectSettled(what: string): void {
    for (const { broken, unsettled } of this.#callers) {
      if (broken !== undefined) throw broken;
      if (unsettled > 0) throw new SimFailure(`promises outlive ${what}: ${this.#waits()}`);
    }
  }

  #endLife(): void {
    for (const caller of this.#callers) {
      caller.letGo();
      this.counts['acts'] += caller.acts;
      this.counts['compared'] += caller.compared;
      this.counts['pairs'] += caller.pairsCompared;
      this.counts['followed'] += caller.itemsFollowed;
      this.counts['transacted'] += caller.transacted;
      this.counts['conditions'] += caller.conditionsHeld;
    }
    this.counts['jobs'] += this.#world.pool.started;
    this.counts['jobsHung'] += this.#world.pool.hung;
    this.counts['partsMoved'] += this.#world.partsMoved;
    this.#world.dispose();
  }

  /** False: what failed before has come out only now, and the engine is poisoned. */
  async #close(): Promise<boolean> {
    const world = this.#world;
    // The handles of other threads go first; what they wait for is answered.
    await this.#settleAll();
    if (this.#isOverInOrder()) return false;
    if (!this.#readOnly) for (let i = this.#schedule.below(3); i > 0; i--) this.#callers[0].put();
    const letsGo = this.#schedule.chance(0.7);
    if (letsGo) for (const caller of this.#callers) caller.letGo();
    this.#trace.say('close');
    world.beginClose();
    world.poll(0);
    for (let i = 0; !world.isOver; i++) {
      if (i > QUIET_ROUNDS_MAX) throw new SimFailure('the engine does not close');
      await this.#step(false);
      if (this.#isOverInOrder()) return false;
    }
    for (let number = 0; number < this.#callers.length; number++) world.poll(number);
    await settle();
    this.#expectSettled('a closed engine');
    this.#callers[0].expectRefusal('TIDEMARK_CLOSED');
    if (!this.#readOnly) {
      this.#durableFloor = this.#model.upper;
      this.#writtenFloor = this.#model.upper;
    }
    this.counts['closes']++;
    this.#endLife();
    world.endJobs();
    auditClosed(world);
    if (this.#hasLied) {
      await this.#losePowerAfterLie();
      this.#disk.settle();
    }
    // What a closed store holds is on the disk: the process ends, and perhaps the power goes.
    const isLost = this.#disaster.chance(0.3);
    const mode = isLost ? this.#disaster.pick(this.#settings.crashModes) : 'process';
    if (this.#readOnly && mode !== 'process') this.#writtenFloor = this.#durableFloor;
    this.#disk = this.#disk.crash(this.#disaster, mode);
    return true;
  }

  /** On a disk beside this one: nobody knows how to go on from what a lie has left. */
  async #losePowerAfterLie(): Promise<void> {
    const prng = this.#disaster.child();
    const left = this.#disk.crash(prng, prng.pick(['power', 'torn']));
    const nowMs = this.#clock.nowMs();
    const parts = { model: this.#model, settings: this.#life, prng, nowMs };
    const isThere = await this.#copies.lookAfterLie(left, this.#durableAtLie, parts);
    this.counts[isThere ? 'liesSurvived' : 'liesTold']++;
  }

  #isOverInOrder(): boolean {
    if (!this.#isOver()) return false;
    if (!this.#faulted && !this.#threadEnded) {
      throw new SimFailure('an engine without faults is over');
    }
    return true;
  }

  // ---------------------------------------------------------------- quiet

  /** Lets everything end that is under way, and looks at what there is then. */
  async #quiet(flushed: boolean): Promise<void> {
    await this.#settleAll();
    if (this.#isOver()) return;
    if (!this.#faulted) for (const caller of this.#callers) caller.checkAsleep();
    for (const caller of this.#callers) caller.letGo();
    if (flushed) this.#callers[0].flush();
    await this.#settleAll();
    if (this.#isOver()) return;
    this.#callers[0].checkAll();
    await this.#settleAll();
    if (this.#isOver()) return;
    if (this.#faulted) return;
    this.counts['audits']++;
    auditQuiet(this.#world, flushed, this.#baseline);
  }

  /** Runs everybody in turn, the clock too, until every promise is settled and nothing is left to do. */
  async #settleAll(): Promise<void> {
    const world = this.#world;
    const clock = this.#clock;
    let idle = 0;
    for (let round = 0; round < QUIET_ROUNDS_MAX; round++) {
      let worked = await this.#round();
      if (this.#isOver()) return;
      if (worked) {
        idle = 0;
        continue;
      }
      const unsettled = this.#callers.reduce((sum, caller) => sum + caller.unsettled, 0);
      // A job that stands still is nobody's work until it is seen to, and has its files meanwhile.
      const work = this.#readOnly ? 0 : world.keeperWork + world.pool.hanging;
      if (unsettled === 0 && idle >= 3 && work === 0) return;
      idle++;
      // Somebody may have been rung after it had its turn.
      if (idle < 3) continue;
      if (this.#life.hosted) {
        const { nextDeadline } = world;
        if (nextDeadline === Infinity) {
          if (unsettled === 0) return;
          throw new SimFailure(`everybody sleeps, nobody was rung; ${this.#waits()}`);
        }
        clock.advance(Math.max(0.01, nextDeadline - clock.ticksMs()));
      } else {
        clock.advance(idle < 50 ? 5 : 1_000);
      }
      worked = idle < 2_000;
      if (!worked) {
        if (unsettled === 0 && world.isSpent) throw new StoreSpent();
        throw new SimFailure(`the keeper has ${work} to do; ${this.#waits()}`);
      }
    }
    throw new SimFailure('the engine never comes to rest');
  }

  #waits(): string {
    const waits = this.#callers.map(({ unsettled, waitsFor }) => `${unsettled} wait (${waitsFor})`);
    return waits.join(', ');
  }

  /** A turn of everybody. */
  async #round(): Promise<boolean> {
    const world = this.#world;
    const before = world.worked;
    if (this.#life.hosted) {
      for (const thread of [0, 1]) for (let i = 0; i < 50 && world.stepThread(thread); i++);
    } else {
      for (let actor = 0; actor < 5; actor++) world.tickActor(actor);
    }
    if (this.#isOver()) return true;
    let worked = world.worked > before;
    for (let i = 0; i < 20 && world.stepPool(undefined, 4_096); i++) worked = true;
    while (!this.#isOver() && world.stepQueue(undefined)) worked = true;
    while (!this.#died && world.storage.answerLater(this.#schedule)) worked = true;
    for (let number = 0; number < this.#callers.length; number++) {
      worked = world.endTurn(number) || worked;
      if (this.#life.hosted && !world.isRung(number)) continue;
      world.poll(number);
      worked = worked || this.#life.hosted;
    }
    await settle();
    if (this.#wantsTurn) await turn();
    return worked;
  }

  get #wantsTurn(): boolean {
    return this.#callers.some(({ wantsTurn }) => wantsTurn);
  }

  // ---------------------------------------------------------------- the schedule

  #drawMood(): Mood {
    const prng = this.#schedule;
    const speeds = [0.02, 0.3, 1, 1, 1, 4];
    if (this.#settings.stalls) speeds.push(0);
    const weight = (usual: number): number => usual * prng.pick(speeds);
    const actors = [0, 1, 2, 3, 4].map(() => weight(10));
    const threads = [weight(20), weight(30)];
    const runners = this.#settings.hosted ? threads : actors;
    const [pool, queue, later, clock] = [weight(10), weight(10), weight(3), weight(4)];
    const alone = [...runners, pool, queue, later, clock];
    const clients = Array.from({ length: this.#settings.clients }, () => weight(30));
    return {
      actors,
      threads,
      alone,
      all: [...alone, ...clients],
      acting: prng.pick([0.1, 0.5, 0.7, 0.9]),
      turning: prng.pick([0.3, 1, 1]),
    };
  }

  /** One step of somebody. */
  async #step(acting: boolean): Promise<void> {
    const prng = this.#schedule;
    // Whoever acts looks first whether the engine goes on.
    if (this.#steps++ >= this.#threadEndsAt && this.#endThread()) return;
    // Somebody notices it in its time, which may be far away where the clock is slow.
    if (!acting && this.#world.pool.hanging > 0) this.#clock.advance(50);
    if (--this.#moodUntil <= 0) {
      this.#mood = this.#drawMood();
      this.#moodUntil = prng.between(1, 2 * this.#settings.moodTicks);
    }
    const mood = this.#mood;
    const world = this.#world;
    const runners = this.#life.hosted ? mood.threads : mood.actors;
    let at = pickIndex(prng, this.#callers.length > 0 ? mood.all : mood.alone);
    if (at < runners.length) {
      if (this.#life.hosted) world.stepThread(at);
      else world.tickActor(at);
      return;
    }
    at -= runners.length;
    switch (at) {
      case 0:
        world.stepPool(prng, prng.pick([1, 32, 512, 4_096]));
        return;
      case 1:
        world.stepQueue(prng);
        return;
      case 2:
        if (this.#wantsTurn) await turn();
        if (world.storage.answerLater(prng)) {
          await settle();
          world.afterAct();
        }
        return;
      case 3:
        this.#moveClock();
        return;
      default:
        await this.#stepClient(at - 4, acting);
    }
  }

  /** True: somebody has heard of it. */
  #endThread(): boolean {
    const world = this.#world;
    if (!this.#threadEnded) {
      this.#threadEnded = true;
      this.counts['threadDeaths']++;
      world.endThread(this.#disaster.below(2));
    }
    if (this.#steps <= this.#heardAt || world.isOver) return false;
    world.hearOfEnd();
    return true;
  }

  #moveClock(): void {
    const prng = this.#schedule;
    const { clockStepMs, clockJumps } = this.#settings;
    this.#clock.advance(clockStepMs * prng.unit() * 2);
    if (!clockJumps || !prng.chance(0.05)) return;
    const far = prng.pick([100_000, 100_000, YEAR_MS]);
    if (prng.chance(0.8)) this.#clock.jump(prng.between(-far, far));
    // The machine slept: all clocks have moved on.
    else this.#clock.advance(prng.between(1, 4 * 3_600_000));
  }

  async #stepClient(number: number, acting: boolean): Promise<void> {
    const prng = this.#schedule;
    const world = this.#world;
    const caller = this.#callers[number];
    const mood = this.#mood;
    const { hosted } = this.#life;
    let touched = false;
    if (acting && caller.unsettled < UNSETTLED_MAX && prng.chance(mood.acting)) {
      caller.act();
      touched = true;
      await settle();
      if (prng.chance(mood.turning)) world.endTurn(number);
      await this.#lookIntoBackup(caller);
    } else if (prng.chance(0.5)) {
      touched = world.endTurn(number);
    }
    // A client that sleeps looks only when it is rung; one that did something looks before it sleeps.
    if (hosted ? touched || world.isRung(number) : !touched) world.poll(number);
    else world.afterAct();
    await settle();
    if (world.clients[number].line.waitingTransactions > 0) this.counts['fullRings']++;
  }

  /** What a client has made of the store, and what can be made of both. */
  async #lookIntoBackup(caller: Caller): Promise<void> {
    const backup = caller.takeBackup();
    if (backup === undefined) return;
    const disaster = this.#disaster;
    const nowMs = this.#clock.nowMs();
    const parts = { model: this.#model, settings: this.#life, prng: disaster, nowMs };
    const whole = { ...backup, disk: backup.disk.processCrash() };
    await this.#copies.lookInto(whole, parts, true);
    if (!disaster.chance(0.7)) return;
    const upper = this.#world.context.control.durable();
    const store = this.#disk.processCrash();
    await this.#copies.restore(backup, store, upper, parts);
  }
}

function pickIndex(prng: Prng, weights: readonly number[]): number {
  let total = 0;
  for (const weight of weights) total += weight;
  let at = prng.unit() * total;
  for (let i = 0; i < weights.length; i++) {
    at -= weights[i];
    if (at < 0) return i;
  }
  return weights.length - 1;
}

/** Lets promises that can settle do so: no timer, no turn of the event loop, the same count each time. */
async function settle(): Promise<void> {
  for (let i = 0; i < MICROTASKS; i++) await undefined;
}

/** Some code waits for its turn of the event loop: nothing else is in it. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Runs one seed to its end or to the first thing that is wrong. */
export async function simulate(options: SimOptions): Promise<SimReport> {
  setVerify(true);
  const simulation = new Simulation(options);
  let failure: unknown;
  try {
    await simulation.run();
  } catch (error) {
    failure = error;
    simulation.abandon();
  }
  const { seed, ticks } = options;
  return { seed, ticks, hash: simulation.hash, failure, counts: simulation.counts };
}

/** What went wrong, with its causes, for people. */
export function describeFailure(failure: unknown): string {
  if (!(failure instanceof Error)) return String(failure);
  const isOurs = failure instanceof SimFailure;
  const text = isOurs && failure.cause !== undefined ? failure.message : failure.stack;
  const detail = failure instanceof TidemarkError ? `\n${JSON.stringify(failure.detail)}` : '';
  const cause = failure.cause === undefined ? '' : `\n  because ${describeFailure(failure.cause)}`;
  const isAssertion = failure instanceof AssertionFailure ? 'an invariant is broken: ' : '';
  return `${isAssertion}${text}${detail}${cause}`;
}
