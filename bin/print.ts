/**
 * The reports of the command line as text for people: tables with a heading, numbers to the right, and one
 * line a finding. The same facts as --json, which is what programs read. Called by bin/tidemark.ts.
 */
import type { CompressReport } from '../core/store/compress.ts';
import type { StoreReport } from '../core/store/inspect.ts';
import type { VerifyReport } from '../core/store/verify.ts';
import type { LockHolder } from '../core/storage/lock.ts';

export type LockReport = {
  /** gone: its process is no more; elsewhere: of the directory this one was copied from; unknown: it cannot be read. */
  readonly state: 'free' | 'held' | 'gone' | 'elsewhere' | 'unknown';
  readonly holder: LockHolder | undefined;
};

type Cell = string | number | undefined;

/** Columns whose heading begins with '>' stand to the right. */
function table(headings: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const cells = rows.map((row) => row.map((cell) => `${cell ?? '-'}`));
  const names = headings.map((heading) => heading.replace(/^>/, ''));
  const widths = names.map((name, i) =>
    Math.max(name.length, ...cells.map((row) => row[i]?.length ?? 0)),
  );
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) =>
        headings[i]?.startsWith('>') ? cell.padStart(widths[i]) : cell.padEnd(widths[i]),
      )
      .join('  ')
      .trimEnd();
  return [names, ...cells].map((row) => `  ${line(row)}\n`).join('');
}

function time(atMs: number | undefined): string {
  if (atMs === undefined || atMs === 0) return '-';
  const date = new Date(atMs);
  return Number.isNaN(date.getTime()) ? `${atMs}` : date.toISOString();
}

export function printInspect(directory: string, lock: LockReport, report: StoreReport): string {
  const { manifest, segments, spines, holds, files, log } = report;
  const out: string[] = [`${directory}\n`];
  out.push(`lock         ${lockLine(lock)}\n`);
  if (manifest === undefined) {
    out.push(`manifest     ${report.manifestError ?? 'none'}\n`);
  } else {
    const { flushed, checkpoints, logStart, counters } = manifest;
    out.push(
      `identity     ${manifest.logId}${manifest.readOnly ? ' (read only for this version)' : ''}\n`,
    );
    out.push(
      `manifest     rollup ${manifest.rollup}, before it ${manifest.previous}, ${manifest.edits} edits since, last edit ${manifest.lastEdit}\n`,
    );
    out.push(
      `log start    offset ${logStart.offset}, segment ${logStart.seq}, ${time(logStart.atMs)}\n`,
    );
    out.push(
      `flushed      below offset ${flushed.upper}, segment ${flushed.seq} at ${flushed.position}, ${time(flushed.atMs)}\n`,
    );
    out.push(`checkpoints  ${checkpoints.newer.upper} and ${checkpoints.older.upper}\n`);
    out.push(`next ids     batch ${counters.bid}, run ${counters.run}, file ${counters.file}\n`);
    if (manifest.logEnd !== undefined) {
      out.push(`log end      offset ${manifest.logEnd}: a truncation was not finished\n`);
    }
    const { archived } = manifest;
    if (archived.length > 0) {
      const { base } = archived[0];
      const { end } = archived[archived.length - 1];
      out.push(`archived     ${archived.length} segments, offsets ${base} to ${end - 1}\n`);
    }
    for (const note of manifest.notes) out.push(`note         ${note}\n`);
  }
  const end = log.next === undefined ? 'cannot be read' : `below offset ${log.next}`;
  out.push(`log          ${end}${log.clean ? ', closed in order' : ''}\n`);
  out.push('\nsegments\n');
  out.push(
    table(
      [
        '>seq',
        'place',
        'reason',
        '>base',
        '>end',
        'from',
        'to',
        '>records',
        '>epoch',
        '>claim',
        '>bytes',
        'ending',
      ],
      segments.map((s) => [
        s.seq,
        s.codec === undefined ? s.place : `${s.place}, ${s.codec}`,
        s.reason,
        s.base,
        s.end,
        time(s.baseAtMs),
        time(s.endAtMs),
        s.records,
        s.epoch,
        s.claim,
        s.bytes,
        [s.ending, s.note].filter((text) => text !== undefined).join(': ') || '-',
      ]),
    ),
  );
  if (spines.length > 0) {
    out.push('\ncollections\n');
    out.push(
      table(
        [
          '>id',
          'name',
          'kind',
          '>since',
          '>upper',
          '>rows',
          '>bytes',
          '>runs',
          '>debt',
          '>space',
          'levels (runs: rows)',
          'merging (level: rows)',
        ],
        spines.map((s) => [
          s.collection,
          s.name === undefined ? undefined : JSON.stringify(s.name).slice(1, -1),
          s.kind,
          s.since,
          s.upper,
          s.rows,
          s.bytes,
          s.runs.length,
          s.debtBytes,
          s.amplification.space.toFixed(2),
          s.levels.map(({ level, runs, rows }) => `${level} (${runs}: ${rows})`).join(' ') ||
            undefined,
          s.merges.map(({ level, rows }) => `${level}: ${rows}`).join(' ') || undefined,
        ]),
      ),
    );
  }
  if (holds.length > 0) {
    out.push('\nholds\n');
    out.push(
      table(
        ['kind', 'name', '>from offset', 'collections', 'until it lags'],
        holds.map((hold) =>
          hold.kind === 'backup'
            ? [hold.kind, hold.file, hold.offset]
            : [
                hold.kind,
                JSON.stringify(hold.name).slice(1, -1),
                hold.offset,
                hold.collections.join(' '),
                lagLine(hold.maxLag),
              ],
        ),
      ),
    );
  }
  out.push(`\nparts        ${files.parts} files, ${files.partBytes} bytes\n`);
  const lists = [
    ['unnamed', files.unnamedParts],
    ['tmp', files.tmp],
    ['quarantine', files.quarantine],
  ] as const;
  for (const [name, list] of lists) {
    if (list.length > 0) out.push(`${name.padEnd(12)} ${list.join(' ')}\n`);
  }
  return out.join('');
}

function lagLine(maxLag: Readonly<Record<string, number>>): string | undefined {
  const bounds = Object.entries(maxLag).map(([unit, most]) => `${most} ${unit}`);
  return bounds.join(' or ') || undefined;
}

function lockLine({ state, holder }: LockReport): string {
  if (state === 'free') return 'free';
  if (holder === undefined) return 'taken, and the file does not say by whom';
  const who = `process ${holder.pid} on ${holder.hostName}, thread ${holder.threadId}, since ${time(holder.openedAtMs)}`;
  if (state === 'gone') return `left by ${who}, which is gone`;
  if (state === 'elsewhere') return `of ${holder.directory}, from which this was copied (${who})`;
  return `held by ${who}`;
}

export function printVerify(directory: string, live: boolean, report: VerifyReport): string {
  const out: string[] = [];
  for (const { finding, severity, file, position, offset, message } of report.findings) {
    const where = [
      file,
      position === undefined ? undefined : `at ${position}`,
      offset === undefined ? undefined : `offset ${offset}`,
    ].filter((text) => text !== undefined);
    out.push(`${severity.padEnd(10)} ${finding}  ${where.join(', ')}\n           ${message}\n`);
  }
  const { segments, records, parts, next, ok } = report;
  const end = next === undefined ? '' : `, log below offset ${next}`;
  out.push(
    `${directory}: ${ok ? 'sound' : 'NOT SOUND'}: ${segments} segments, ${records} records, ${parts} parts${end}` +
      `${live ? ' (an engine is at work in it)' : ''}\n`,
  );
  return out.join('');
}

export function printCompress(directory: string, report: CompressReport): string {
  const out: string[] = [`${directory}\n`];
  for (const { file, bytesBefore, bytes } of report.compressed) {
    out.push(`${file}  ${bytesBefore} bytes, now ${bytes}\n`);
  }
  for (const { file, message } of report.findings) out.push(`${file ?? ''}  ${message}\n`);
  const { compressed, already, left } = report;
  out.push(`${compressed.length} compressed, ${already} were, ${left} are too young\n`);
  return out.join('');
}
