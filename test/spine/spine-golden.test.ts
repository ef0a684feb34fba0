/**
 * The golden cases of the spine (spine.md 5, G1 to G8) as text: state in, state out.
 */
import { test } from 'node:test';
import { checkGolden, GoldenSpine } from './golden.ts';

test('the spine places, merges and substitutes as the golden cases say (G1-G8)', () => {
  checkGolden(new URL('../golden/spine/cases.txt', import.meta.url), (commands) => {
    const effort = Number(commands[0]?.split(' ')[1]);
    const golden = new GoldenSpine(effort);
    return commands.slice(1).flatMap((line) => [`> ${line}`, ...golden.run(line)]);
  });
});
