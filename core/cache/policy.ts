/**
 * Which row goes next: one LRU over all collections. Each cached row has a node; two lists (rows, and
 * rows that only say "absent", which have a cap of their own) are ordered by when a node was last
 * moved to the front, and the stamps at their ends say which of the two is older: together they are
 * one exact LRU. Private to the evictor, on its thread.
 *
 *   node, 4 words: previous, next, address of its row (0 = free; `next` is then the next free one), stamp
 *   node 0 heads the list of rows, node 1 that of absent ones; `next` of a head is the newest
 */
import { invariant } from '../base/assert.ts';

export const LIST_ROWS = 0;
export const LIST_ABSENT = 1;
const HEADS = 2;

const NODE_SHIFT = 2;
const PREVIOUS = 0;
const NEXT = 1;
const ADDRESS = 2;
const STAMP = 3;

const NODES_MIN = 1_024;
/** They are part of the cache's budget: doubling would take a tenth of it for nothing. */
const GROWTH = 1.25;

export class Lru {
  #words: Int32Array = new Int32Array(NODES_MIN << NODE_SHIFT);
  /** First node never used. */
  #fresh: number = HEADS;
  #free = 0;
  #stamp = 0;

  constructor() {
    this.#emptyLists();
  }

  #emptyLists(): void {
    for (let head = 0; head < HEADS; head++) {
      this.#words[(head << NODE_SHIFT) + PREVIOUS] = head;
      this.#words[(head << NODE_SHIFT) + NEXT] = head;
    }
  }

  /** A node for the row, newest of its list. */
  add(address: number, list: number): number {
    let node = this.#free;
    if (node !== 0) {
      this.#free = this.#words[(node << NODE_SHIFT) + NEXT];
    } else {
      node = this.#fresh++;
      if (node << NODE_SHIFT === this.#words.length) this.#grow();
    }
    this.#words[(node << NODE_SHIFT) + ADDRESS] = address;
    this.#link(node, list);
    return node;
  }

  remove(node: number): void {
    invariant(this.addressOf(node) !== 0, 'a node is removed once', node);
    this.#unlink(node);
    const at = node << NODE_SHIFT;
    this.#words[at + ADDRESS] = 0;
    this.#words[at + NEXT] = this.#free;
    this.#free = node;
  }

  /** The node's row has been replaced; its place in the order stays. */
  setAddress(node: number, address: number): void {
    this.#words[(node << NODE_SHIFT) + ADDRESS] = address;
  }

  /** Makes the node the newest of a list, its own or the other. */
  renew(node: number, list: number): void {
    this.#unlink(node);
    this.#link(node, list);
  }

  /** Address of the node's row, 0 = none. Any number may be asked: ids from rings are only hints. */
  addressOf(node: number): number {
    if (node < HEADS || node >= this.#fresh) return 0;
    return this.#words[(node << NODE_SHIFT) + ADDRESS] >>> 0;
  }

  /** Above the number of every node there is. */
  get nodesEnd(): number {
    return this.#fresh;
  }

  /** The node least recently renewed, 0 = none. */
  oldest(): number {
    const row = this.oldestOf(LIST_ROWS);
    const absent = this.oldestOf(LIST_ABSENT);
    if (row === 0 || absent === 0) return row + absent;
    const rowStamp = this.#words[(row << NODE_SHIFT) + STAMP];
    const absentStamp = this.#words[(absent << NODE_SHIFT) + STAMP];
    return ((rowStamp - absentStamp) | 0) < 0 ? row : absent;
  }

  oldestOf(list: number): number {
    const node = this.#words[(list << NODE_SHIFT) + PREVIOUS];
    return node < HEADS ? 0 : node;
  }

  /** The node renewed just after this one in the same list, 0 = none. For walks in tests and audits. */
  newerThan(node: number): number {
    const next = this.#words[(node << NODE_SHIFT) + PREVIOUS];
    return next < HEADS ? 0 : next;
  }

  /** Memory of the nodes. */
  get bytes(): number {
    return this.#words.byteLength;
  }

  /** Forgets all nodes, and the memory beyond the least. */
  clear(): void {
    this.#words = new Int32Array(NODES_MIN << NODE_SHIFT);
    this.#fresh = HEADS;
    this.#free = 0;
    this.#emptyLists();
  }

  #link(node: number, list: number): void {
    const words = this.#words;
    const at = node << NODE_SHIFT;
    const head = list << NODE_SHIFT;
    const newest = words[head + NEXT];
    words[at + PREVIOUS] = list;
    words[at + NEXT] = newest;
    words[at + STAMP] = this.#stamp;
    this.#stamp = (this.#stamp + 1) | 0;
    words[(newest << NODE_SHIFT) + PREVIOUS] = node;
    words[head + NEXT] = node;
  }

  #unlink(node: number): void {
    const words = this.#words;
    const at = node << NODE_SHIFT;
    const previous = words[at + PREVIOUS];
    const next = words[at + NEXT];
    words[(previous << NODE_SHIFT) + NEXT] = next;
    words[(next << NODE_SHIFT) + PREVIOUS] = previous;
  }

  #grow(): void {
    const nodes = Math.ceil((this.#words.length >>> NODE_SHIFT) * GROWTH);
    const words = new Int32Array(nodes << NODE_SHIFT);
    words.set(this.#words);
    this.#words = words;
  }
}
