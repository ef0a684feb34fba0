/**
 * Goal: commits slow down with the flushes they will wait for, and no further: what memory has left is not
 * used up while a flush is out, nobody is delayed for long, and nobody at all while nothing is sealed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Pace } from '../../actors/pace.ts';

/** A writer that takes a record whenever it may, each a `rows`-th of a generation; one more generation is there. */
class Writer {
  readonly pace = new Pace(500);
  readonly #record: number;
  nowMs = 0;
  /** Of generations. */
  left: number;
  longestMs = 0;
  taken = 0;
  #takenAt = 0;

  constructor(records: number, left: number) {
    this.#record = 1 / records;
    this.left = left;
  }

  /** Runs for so long, as fast as it may. */
  run(ms: number): void {
    for (const until = this.nowMs + ms; this.nowMs < until; this.nowMs += 1) {
      for (let i = 0; i < 4 && this.pace.waitMs(this.nowMs) === 0; i++) {
        if (this.left < this.#record) break;
        this.pace.onTaken(this.nowMs, this.#record / this.left);
        this.left -= this.#record;
        this.taken++;
        this.longestMs = Math.max(this.longestMs, this.nowMs - this.#takenAt);
        this.#takenAt = this.nowMs;
      }
    }
  }
}

/** Seals at once what was given back; a flush takes `flushMs`. */
function flushes(writer: Writer, flushMs: number, count: number): void {
  for (let i = 0; i < count; i++) {
    writer.run(flushMs);
    writer.left += 1;
    writer.pace.onFreed(writer.nowMs, true);
  }
}

test('nothing is delayed while nothing is sealed', () => {
  const writer = new Writer(100, 1_000_000);
  writer.run(1_000);
  assert.equal(writer.taken, 4_000);
  writer.pace.onSealed(writer.nowMs);
  writer.run(100);
  writer.pace.onFreed(writer.nowMs, false);
  const { taken } = writer;
  writer.run(1_000);
  assert.equal(writer.taken - taken, 4_000);
});

test('flushes that take half a second each make no writer stand, and are all made use of', () => {
  const writer = new Writer(100, 1);
  writer.pace.onSealed(0);
  flushes(writer, 500, 12);
  writer.longestMs = 0;
  const { taken } = writer;
  flushes(writer, 500, 20);
  assert.ok(writer.longestMs < 50, `${writer.longestMs} ms without a record`);
  const share = (writer.taken - taken) / (20 * 100);
  assert.ok(share > 0.97 && share < 1.03, `${share} generations for each that was given back`);
});

test('a flush that takes three times as long as the others makes delays, none beyond the bound', () => {
  const writer = new Writer(100, 1);
  writer.pace.onSealed(0);
  flushes(writer, 500, 8);
  writer.longestMs = 0;
  flushes(writer, 1_500, 1);
  assert.ok(writer.longestMs <= 41, `${writer.longestMs} ms without a record`);
  assert.ok(writer.left > 0, 'something is left');
});

test('flushes of uneven length slow commits down as the longest of them would, and delay none for long', () => {
  const writer = new Writer(100, 1);
  writer.pace.onSealed(0);
  for (let i = 0; i < 8; i++) flushes(writer, i % 3 === 0 ? 600 : 150, 1);
  writer.longestMs = 0;
  for (let i = 0; i < 12; i++) {
    flushes(writer, i % 3 === 0 ? 600 : 150, 1);
    assert.ok(writer.left > 0.3, `${writer.left} generations are left`);
  }
  assert.ok(writer.longestMs < 16, `${writer.longestMs} ms without a record`);
});

test('one flush that stood still for a minute slows down no commits after it', () => {
  const writer = new Writer(100, 1);
  writer.pace.onSealed(0);
  flushes(writer, 500, 20);
  flushes(writer, 60_000, 1);
  writer.run(1);
  const { taken } = writer;
  writer.longestMs = 0;
  flushes(writer, 500, 12);
  const share = (writer.taken - taken) / (12 * 100);
  assert.ok(share > 0.9, `${share} generations for each that was given back`);
  assert.ok(writer.longestMs < 30, `${writer.longestMs} ms without a record`);
});

test('flushes that have become slow are soon known to be', () => {
  const writer = new Writer(100, 1);
  writer.pace.onSealed(0);
  flushes(writer, 100, 20);
  flushes(writer, 2_000, 4);
  for (let i = 0; i < 4; i++) {
    flushes(writer, 2_000, 1);
    assert.ok(writer.left > 0.3, `${writer.left} generations are left`);
  }
});

test('before a flush has told how long it takes commits keep to a guess, and to what it has taken so far', () => {
  const writer = new Writer(100, 1);
  writer.pace.onSealed(0);
  writer.run(500);
  assert.ok(writer.left > 0.3, `${writer.left} generations are left when it was to end`);
  writer.run(500);
  assert.ok(writer.left > 0.1, `${writer.left} generations are left when it takes twice as long`);
  assert.ok(writer.longestMs <= 41, `${writer.longestMs} ms without a record`);
});

test('memory that comes back ends a delay at once', () => {
  const pace = new Pace(500);
  pace.onSealed(0);
  pace.onFreed(1_000, true);
  pace.onTaken(1_000, 1);
  // Who woke late makes up for it, a little.
  assert.equal(pace.waitMs(1_000), 20);
  pace.onFreed(1_010, true);
  assert.equal(pace.waitMs(1_010), 0);
});
