/**
 * The process that is killed: opens its stores, checks what each holds against what was promised and
 * against its plan, then commits to all of them on and on. It says what it has reached in the very turn in which it learns it.
 * Started by rounds.ts, as plain JavaScript over dist/.
 *
 * Exit code 3: what is there is not what must be there; the reason is on standard error.
 */
import { writeSync } from 'node:fs';
import { open } from '../../actors/index.ts';
import type { Condition } from '../../actors/collection.ts';
import type { Collection, Engine } from '../../actors/index.ts';
import { MiB } from '../../core/base/limits.ts';
import { Prng } from '../../core/base/prng.ts';
import {
  BUSY_EDIT,
  BUSY_FLUSH,
  BUSY_MERGE,
  BUSY_ROTATION,
  COLLECTIONS,
  Contents,
  FIRST_OFFSET,
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
  keyOf,
  operationsOf,
  valueOf,
} from './plan.ts';
import type { Task, Written } from './plan.ts';

type Rows = Collection<Buffer, Buffer>;

const NOBODYS_KEY = Buffer.from('nobody');
const BUSY_EVERY_MS = 3;
const EXIT_WRONG = 3;

const tasks = JSON.parse(process.argv[2] ?? '') as Task[];
const message = Buffer.alloc(MESSAGE_BYTES);

function say(store: number, kind: number, number: number, flags: number = 0): void {
  message.writeUInt16LE(kind, 0);
  message.writeUInt16LE(store, 2);
  message.writeUInt32LE(flags, 4);
  message.writeDoubleLE(number, 8);
  for (;;) {
    try {
      writeSync(MESSAGE_FD, message);
      return;
    } catch (error) {
      // The pipe is full: whoever reads it is slow.
      if ((error as { code?: string }).code !== 'EAGAIN') throw error;
    }
  }
}

class Wrong extends Error {}

function check(isSo: boolean, text: () => string): void {
  if (!isSo) throw new Wrong(text());
}

/** The rows of one collection, all of them and no others; each from the transaction that wrote it. */
function checkRows(
  name: string,
  rows: Rows,
  expected: ReadonlyMap<number, Written>,
  asOf?: number,
): void {
  const keys = [...expected.keys()].toSorted((a, b) => a - b);
  let at = 0;
  const when = asOf === undefined ? '' : ` as of ${asOf}`;
  for (const [key, value] of rows.entries(asOf === undefined ? {} : { asOf })) {
    const wanted = keys[at++];
    check(wanted !== undefined, () => `${name}${when}: ${key.toString()} is a row too many`);
    check(key.equals(keyOf(wanted)), () => `${name}${when}: ${key.toString()}, not ${wanted}`);
    const { n, index, bytes } = expected.get(wanted)!;
    check(value.equals(valueOf(n, index, bytes)), () => {
      const from = value.length >= 8 ? value.readDoubleLE(0) : 'nobody';
      return `${name}${when}: ${key.toString()} is from ${from}, ${value.length} bytes, not from ${n}, ${bytes} bytes`;
    });
  }
  check(at === keys.length, () => `${name}${when}: ${at} rows, not ${keys.length}`);
}

/** What is there is what the first transactions made, and at least all that was promised. */
async function checkStore(engine: Engine, { plan, promised }: Task, prng: Prng): Promise<void> {
  const { upper } = engine;
  check(upper >= promised, () => `the store ends at ${upper}, ${promised} was promised`);
  const names = engine.collections().map(({ name }) => name);
  const made = COLLECTIONS.slice(0, upper).map(({ name }) => name);
  check(names.toSorted().join() === made.toSorted().join(), () => `collections: ${names.join()}`);
  if (upper < FIRST_OFFSET) return;
  const count = upper - FIRST_OFFSET;
  const contents = new Contents(plan);
  const last = COLLECTIONS.length - 1;
  const handles: Rows[] = [];
  for (const { name } of COLLECTIONS) {
    handles.push(await engine.collection(name, { key: 'buffer', value: 'buffer' }));
  }
  if (count > 0) {
    contents.advance(1 + prng.below(count));
    const asOf = FIRST_OFFSET + contents.count - 1;
    checkRows(COLLECTIONS[last].name, handles[last], contents.rows[last], asOf);
  }
  contents.advance(count);
  COLLECTIONS.forEach(({ name }, i) => {
    const rows = handles[i];
    checkRows(name, rows, contents.rows[i]);
    for (const [key, { n }] of contents.rows[i]) {
      if (!prng.chance(0.2)) continue;
      const entry = rows.getEntrySync(keyOf(key));
      const offset = entry?.offset;
      check(
        offset === FIRST_OFFSET + n,
        () => `${name}: key ${key} is of ${offset}, transaction ${n}`,
      );
    }
  });
  check(engine.upper === upper, () => `the upper moved from ${upper} to ${engine.upper}`);
}

/** Says now and then what goes on. */
function watch(engine: Engine, store: number): NodeJS.Timeout {
  let rotations = 0;
  let edits = 0;
  let said = 0;
  return setInterval(() => {
    if (engine.state !== 'open') return;
    const { sealed, keeper, durability } = engine.stats();
    let flags = 0;
    if (sealed > 0) flags |= BUSY_FLUSH;
    if (keeper['jobsRunning'] > (sealed > 0 ? 1 : 0)) flags |= BUSY_MERGE;
    if (durability['rotations'] > rotations) flags |= BUSY_ROTATION;
    if (keeper['editBatches'] > edits) flags |= BUSY_EDIT;
    rotations = durability['rotations'];
    edits = keeper['editBatches'];
    if (flags !== said) say(store, SAYS_BUSY, rotations, flags);
    said = flags;
  }, BUSY_EVERY_MS);
}

/** Commits until there are `closeAfter` more transactions than at the start. */
async function write(engine: Engine, task: Task, store: number, prng: Prng): Promise<void> {
  const { plan, closeAfter } = task;
  const handles: Rows[] = [];
  for (const [i, { name, history }] of COLLECTIONS.entries()) {
    const isNew = engine.upper <= i;
    handles.push(await engine.collection(name, { key: 'buffer', value: 'buffer', history }));
    if (isNew) say(store, SAYS_ACKNOWLEDGED, i);
  }
  let next = engine.upper - FIRST_OFFSET;
  const end = next + closeAfter;
  const lane = async (): Promise<void> => {
    while (next < end) {
      const n = next++;
      const tx = engine.transaction();
      operationsOf(plan, n).forEach(({ collection, key, bytes }, index) => {
        if (bytes < 0) tx.delete(handles[collection], keyOf(key));
        else tx.put(handles[collection], keyOf(key), valueOf(n, index, bytes));
      });
      const asked = !plan.synced && prng.chance(0.05);
      const options = {
        ...(asked ? ({ durability: 'synced' } as const) : {}),
        // Such a transaction is a record of its own.
        ...(n % 16 === 5 ? { expect: [expectationOf(handles, n)] } : {}),
      };
      const tried = n % 3 === 0 ? engine.tryCommit(tx, options) : undefined;
      const { offset } = await (tried ?? tx.commit(options));
      check(offset === FIRST_OFFSET + n, () => `transaction ${n} was given offset ${offset}`);
      say(store, SAYS_ACKNOWLEDGED, offset);
      if (asked) say(store, SAYS_DURABLE, offset);
      if (prng.chance(0.003) && (await besides(engine, handles, prng, offset))) {
        say(store, SAYS_DURABLE, offset);
      }
    }
  };
  await Promise.all(Array.from({ length: plan.window }, lane));
}

/** Something that holds wherever transaction n comes: of a row that nobody writes. */
function expectationOf(handles: readonly Rows[], n: number): Condition {
  return { collection: handles[n % handles.length], key: NOBODYS_KEY, offset: null };
}

/** What a service does now and then. True: it has heard that the offset is durable. */
async function besides(
  engine: Engine,
  handles: readonly Rows[],
  prng: Prng,
  offset: number,
): Promise<boolean> {
  switch (prng.below(6)) {
    case 0:
      await engine.flush();
      return false;
    case 4:
      await engine.checkpoint();
      return false;
    case 5: {
      // Refused, it takes no offset, and leaves nothing.
      const [collection] = handles;
      const tx = engine.transaction().put(collection, NOBODYS_KEY, NOBODYS_KEY);
      const expect = [{ collection, key: NOBODYS_KEY, offset }];
      const refused = await tx.commit({ expect }).then(
        () => 'nothing',
        (error: Error & { code?: string }) => error.code,
      );
      check(refused === 'TIDEMARK_CONFLICT', () => `a condition that fails is told by ${refused}`);
      return false;
    }
    case 1:
      await engine.compact(prng.pick(handles)).catch((error: Error & { code?: string }) => {
        if (error.code !== 'TIDEMARK_BUSY') throw error;
      });
      return false;
    case 2: {
      using snap = engine.snapshot();
      await engine.reached(snap.offset);
      return false;
    }
    default:
      await engine.durable(offset);
      return true;
  }
}

async function live(task: Task, store: number): Promise<void> {
  const { plan, directory, closeAfter } = task;
  const prng = new Prng(task.seed);
  const engine = await open(directory, {
    memoryBytes: 32 * MiB,
    mergeThreads: 1,
    memtableBytes: plan.memtableBytes,
    segmentBytes: plan.segmentBytes,
    durability: plan.synced ? 'synced' : 'buffered',
    syncIntervalMs: plan.syncIntervalMs,
    ...(plan.host === 'inline' ? { threads: 0 } : {}),
  });
  say(store, SAYS_OPEN, engine.upper);
  await checkStore(engine, task, prng);
  say(store, SAYS_CHECKED, engine.upper);
  if (closeAfter > 0) {
    const watching = watch(engine, store);
    await write(engine, task, store, prng);
    clearInterval(watching);
  }
  say(store, SAYS_CLOSING, engine.upper);
  await engine.close();
  say(store, SAYS_CLOSED, engine.upper);
}

say(0, SAYS_STARTED, process.pid);
await Promise.all(
  tasks.map(async (task, store) => {
    try {
      await live(task, store);
    } catch (error) {
      const text = error instanceof Error ? error.stack : String(error);
      const detail = JSON.stringify((error as { detail?: unknown }).detail ?? {});
      writeSync(2, `store ${store}: ${text}\n${detail}\n`);
      process.exit(EXIT_WRONG);
    }
  }),
);
