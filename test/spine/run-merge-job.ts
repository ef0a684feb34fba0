/**
 * A process of its own that runs one merge job: the job's JSON on stdin, the store's directory as the
 * argument, the result's JSON on stdout. Started by merge-job.test.ts.
 */
import { readFileSync } from 'node:fs';
import { NodeStorage } from '../../actors/node-storage.ts';
import { MergeJob } from '../../core/spine/merge-job.ts';
import type { MergeRequest } from '../../core/spine/merge-job.ts';

const parse: (text: string) => MergeRequest = JSON.parse;
const request = parse(readFileSync(0, 'utf8'));
const job = new MergeJob(new NodeStorage(process.argv[2]), request);
while (job.step(100));
process.stdout.write(JSON.stringify(job.result()));
