/**
 * The child that is killed: writes tenants for ever and reports each acknowledged transaction, in
 * order, through its pipe at once, so that what the parent has read was acknowledged, and what was
 * acknowledged is in the pipe. Run by kill.ts: node kill-writer.ts <repository> <last revision> <directory>.
 */
import * as fs from 'node:fs';
import { open } from '../../actors/index.ts';
import { CommitWindow } from './commit-window.ts';
import { openRepository } from './git.ts';
import { REPORT_BYTES, REPORT_FD } from './kill.ts';
import { inFlightMax } from './replay.ts';
import { openCollections } from './rows.ts';
import { smallStore } from './store-sizes.ts';
import { commitTenantRevision, holdHistory } from './tenants.ts';

const [, , path, head, directory] = process.argv;
const repository = await openRepository(path, head);
const history = await holdHistory(repository);
const engine = await open(directory, await smallStore(repository));
const collections = await openCollections(engine, Infinity);

const report = Buffer.alloc(REPORT_BYTES);
const window = new CommitWindow(inFlightMax, ({ offset }) => {
  report.writeDoubleLE(offset, 0);
  fs.writeSync(REPORT_FD, report);
});
for (let sequence = 0; ; sequence++) {
  if (window.full) await window.take();
  window.push(commitTenantRevision(engine, collections, history, sequence));
}
