/** The LRU against a naive list. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Prng } from '../../core/base/prng.ts';
import { LIST_ABSENT, LIST_ROWS, Lru } from '../../core/cache/policy.ts';

test('two lists are one LRU: the oldest of all is the one least recently renewed', () => {
  const random = new Prng(11);
  const lru = new Lru();
  const order: { node: number; list: number; address: number }[] = [];
  let address = 64;
  for (let step = 0; step < 30_000; step++) {
    const growing = step % 6_000 < 4_000;
    const what = random.unit();
    if (order.length === 0 || what < (growing ? 0.45 : 0.2)) {
      const list = random.chance(0.3) ? LIST_ABSENT : LIST_ROWS;
      order.push({ node: lru.add(address, list), list, address });
      address += 64;
    } else if (what < 0.7) {
      const [entry] = order.splice(random.below(order.length), 1);
      const list = random.chance(0.1) ? 1 - entry.list : entry.list;
      lru.renew(entry.node, list);
      order.push({ ...entry, list });
    } else {
      const at = random.chance(0.5) ? 0 : random.below(order.length);
      const [entry] = order.splice(at, 1);
      lru.remove(entry.node);
      assert.equal(lru.addressOf(entry.node), 0);
    }
    assert.equal(lru.oldest(), order[0]?.node ?? 0);
    for (const list of [LIST_ROWS, LIST_ABSENT]) {
      assert.equal(lru.oldestOf(list), order.find((entry) => entry.list === list)?.node ?? 0);
    }
    if (step % 1_000 === 0) {
      for (const entry of order) assert.equal(lru.addressOf(entry.node), entry.address);
    }
  }
});

test('any number may be asked for its row', () => {
  const lru = new Lru();
  const node = lru.add(4_096, LIST_ROWS);
  assert.equal(lru.addressOf(node), 4_096);
  for (const other of [0, 1, node + 1, 0xffff_ffff, 0xcccc_cccc]) {
    assert.equal(lru.addressOf(other), 0);
  }
  const high = lru.add(0xffff_0000, LIST_ROWS);
  assert.equal(lru.addressOf(high), 0xffff_0000);
});

test('a cleared policy starts anew and keeps little memory', () => {
  const lru = new Lru();
  const least = lru.bytes;
  for (let i = 1; i <= 10_000; i++) lru.add(i * 64, i % 2);
  assert.ok(lru.bytes > least);
  lru.clear();
  assert.equal(lru.bytes, least);
  assert.equal(lru.oldest(), 0);
  const node = lru.add(64, LIST_ROWS);
  assert.equal(lru.oldest(), node);
});
