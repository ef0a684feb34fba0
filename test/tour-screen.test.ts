/**
 * Goal: the tour's screen stays readable on a terminal, in a log and on narrow windows, and its
 * command line refuses what it does not know. Method: a stream that keeps what is written and a
 * clock that is set by hand.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  bar,
  columns,
  drawLog,
  drawMerging,
  drawSpine,
  formatBytes,
  formatCount,
  formatMs,
  formatRate,
} from '../examples/tour/drawing.ts';
import { parseTourOptions } from '../examples/tour/options.ts';
import { createScreen } from '../examples/tour/screen.ts';
import type { BarText, Screen, ScreenStream } from '../examples/tour/screen.ts';
import { TourError } from '../examples/tour/tour-error.ts';

interface Fixture {
  readonly screen: Screen;
  readonly clock: { ms: number };
  readonly written: () => string;
}

const revisionsText: BarText = (done, ms) =>
  `${formatCount(done)} of 1,000 revisions  ${formatRate(done, ms)}`;

function fixture(stream: Partial<ScreenStream>): Fixture {
  let text = '';
  const clock = { ms: 1_000 };
  const out: ScreenStream = {
    ...stream,
    write: (more) => {
      text += more;
    },
  };
  return { screen: createScreen(out, () => clock.ms), clock, written: () => text };
}

describe('the screen', () => {
  test('without a terminal: plain lines, seldom, and no control characters', () => {
    const { screen, clock, written } = fixture({ hasColors: () => true });
    screen.title('Tour');
    screen.step('Replay');
    const progress = screen.bar(1_000, revisionsText);
    for (let done = 0; done <= 1_000; done++) {
      progress.update(done);
      clock.ms += 11;
    }
    progress.end();
    screen.pass('all there');
    screen.fail('something missing');
    assert.deepEqual(written().split('\n'), [
      'Tour',
      '',
      '1. Replay',
      '    45%  455 of 1,000 revisions  91/s',
      '    91%  910 of 1,000 revisions  91/s',
      ' ✓ all there',
      ' ✗ something missing',
      '',
    ]);
  });

  test('on a terminal: one bar redrawn in place, never wider than the window', () => {
    for (const width of [20, 60, 80, 200]) {
      const { screen, clock, written } = fixture({ isTTY: true, columns: width });
      const progress = screen.bar(1_000, revisionsText);
      for (let done = 0; done <= 1_000; done += 100) {
        progress.update(done);
        clock.ms += 50;
      }
      screen.line('in between');
      progress.end();
      progress.update(1_000);
      const drawn = written();
      assert.ok(drawn.split('\r\x1b[2K').length < 12, 'not every update is drawn');
      for (const line of drawn.replaceAll('\r\x1b[2K', '\n').split('\n')) {
        assert.ok(line.length < width, `${line.length} of ${width}`);
      }
      assert.ok(drawn.includes('\r\x1b[2K   in between\n'));
      assert.ok(drawn.endsWith('\r\x1b[2K'), 'nothing is left of the bar');
      assert.equal(drawn.includes('█'), width >= 60);
    }
  });

  test('colours only where the terminal has them', () => {
    const plain = fixture({ isTTY: true, hasColors: () => false });
    plain.screen.pass('x');
    assert.equal(plain.written(), ' ✓ x\n');
    const coloured = fixture({ isTTY: true, hasColors: () => true });
    coloured.screen.pass('x');
    assert.equal(coloured.written(), ' \x1b[32m✓\x1b[39m x\n');
  });
});

describe('drawings', () => {
  test('a segment a line, with its fill and its offsets', () => {
    const lines = drawLog([
      { name: '1', firstOffset: 0, upper: 1_200, bytes: 512, capacityBytes: 1024, state: 'sealed' },
      { name: '2', firstOffset: 1_200, upper: 1_200, bytes: 0, capacityBytes: 1024, state: 'open' },
    ]);
    assert.deepEqual(lines, [
      `1  ${'█'.repeat(12)}${'░'.repeat(12)}  512 B  0 to 1,199  sealed`,
      `2  ${'░'.repeat(24)}    0 B       empty  open`,
    ]);
  });

  test('of many segments the oldest and the newest', () => {
    const segments = Array.from({ length: 40 }, (_, i) => ({
      name: String(i),
      firstOffset: i,
      upper: i + 1,
      bytes: 1,
      capacityBytes: 1,
      state: 'sealed',
    }));
    const lines = drawLog(segments);
    assert.equal(lines.length, 12);
    assert.match(lines[0], /^0 /);
    assert.equal(lines[6], '... 29 more segments');
    assert.match(lines[11], /^39 /);
  });

  test('levels on the scale of the largest, and what merging did', () => {
    assert.deepEqual(
      drawSpine([
        { level: 0, batches: 1, rows: 10, bytes: 100 },
        { level: 2, batches: 3, rows: 40_000, bytes: 1_000_000 },
      ]),
      [
        `level 0  █${'░'.repeat(23)}      100 B    1 batch      10 rows`,
        `level 2  ${'█'.repeat(24)}  976.6 KiB  3 batches  40,000 rows`,
      ],
    );
    assert.deepEqual(drawSpine([]), []);
    const none = { merges: 0, rowsIn: 0, rowsOut: 0, bytesIn: 0, bytesOut: 0 };
    assert.deepEqual(drawMerging(none), ['nothing was merged']);
    const some = { merges: 2, rowsIn: 30, rowsOut: 15, bytesIn: 2_048, bytesOut: 1_024 };
    assert.deepEqual(drawMerging(some), [
      `2 merges  read   ${'█'.repeat(24)}  2.0 KiB  30 rows`,
      `          wrote  ${'█'.repeat(12)}${'░'.repeat(12)}  1.0 KiB  15 rows`,
    ]);
  });

  test('numbers', () => {
    assert.deepEqual([0, 999, 1_000, 12_345_678].map(formatCount), [
      '0',
      '999',
      '1,000',
      '12,345,678',
    ]);
    assert.deepEqual(
      [0, 1023, 1024, 1024 ** 2 - 1, 5 * 1024 ** 3, 3 * 1024 ** 5].map(formatBytes),
      ['0 B', '1023 B', '1.0 KiB', '1.0 MiB', '5.0 GiB', '3072.0 TiB'],
    );
    assert.deepEqual([0.123, 99.99, 123.4, 1_234, 20_000].map(formatMs), [
      '0.1 ms',
      '100.0 ms',
      '123 ms',
      '1.23 s',
      '20.0 s',
    ]);
    assert.equal(formatRate(10, 0), '-');
    assert.equal(formatRate(10_000, 500), '20,000/s');
    assert.equal(bar(1, 1_000_000, 4), '█░░░');
    assert.equal(bar(0, 0, 4), '░░░░');
    assert.equal(bar(9, 3, 4), '████');
    assert.deepEqual(columns([], 'lr'), []);
  });
});

describe('the command line', () => {
  test('has defaults, and takes what --help lists', () => {
    assert.deepEqual(parseTourOptions([]), {
      path: '.',
      keep: false,
      seconds: 20,
      json: false,
      port: undefined,
      help: false,
    });
    assert.deepEqual(parseTourOptions(['/x', '--keep', '--seconds=0.5', '--json', '-h']), {
      path: '/x',
      keep: true,
      seconds: 0.5,
      json: true,
      port: undefined,
      help: true,
    });
    assert.equal(parseTourOptions(['--serve']).port, 8080);
    assert.equal(parseTourOptions(['--serve', '--port=0']).port, 0);
  });

  test('refuses anything else in one line, with exit code 2', () => {
    for (const [args, line] of [
      [['--nope'], /--nope/],
      [['a', 'b'], /one repository/],
      [[''], /empty/],
      [['--seconds='], /--seconds/],
      [['--seconds=-1'], /above 0/],
      [['--seconds=ten'], /'ten'/],
      [['--seconds'], /--seconds/],
      [['--keep=yes'], /--keep/],
    ] as const) {
      assert.throws(
        () => parseTourOptions(args),
        (error: unknown) => {
          assert.ok(error instanceof TourError);
          assert.equal(error.exitCode, 2);
          assert.match(error.message, line);
          assert.doesNotMatch(error.message, /\n/);
          return true;
        },
      );
    }
  });
});
