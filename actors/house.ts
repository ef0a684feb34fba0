/**
 * Who lives on which thread: makes the five actors over one context. The write thread has the line,
 * the background thread everything beside it; inline and simulated hosts have all five on one.
 */
import type { Actor, ActorContext } from './actor.ts';
import { Compactor } from './compactor.ts';
import { Durability } from './durability.ts';
import { Evictor } from './evictor.ts';
import type { JobPool } from './job-pool.ts';
import { Sequencer } from './sequencer.ts';
import { SpineKeeper } from './spine-keeper.ts';

export function writeActors(context: ActorContext): Actor[] {
  return [new Sequencer(context), new Durability(context)];
}

export function backgroundActors(context: ActorContext, pool: JobPool): Actor[] {
  return [new SpineKeeper(context), new Compactor(context, pool), new Evictor(context)];
}
