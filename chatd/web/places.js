/**
 * How far this device has got in every log, and what a reconnect says about it (section 3 of docs/protocol.md).
 *
 * A place is the highest seq of a conversation that is had without holes. Invariants: a place only rises within an epoch,
 * except by `reset`; an entry at or below it is known; one further than the next is a jump, which means: reconnect.
 * The mark `since` is taken from the last page of a welcome only; places are good as soon as their item is seen. It is given back only
 * with all that is still missing of what it listed: with it the server lists no conversation that is neither named nor changed since.
 *
 * Pure. `client.js` feeds it and sends what `resume` gives.
 */

import { CURSORS_MAX, HELLO_LIST_BYTES_MAX, fitting } from './wire.js';

/** @typedef {import('./wire.js').Item} Item */

export class Places {
  constructor() {
    /** @type {string|null} */
    this.epoch = null;
    /** @type {string|null} */
    this.since = null;
    /** @type {Map<string, {peer: string, seq: number, head: number, ts: number}>} c -> place; `head`: the highest seq that is known to exist */
    this.of = new Map();
    /** @type {Map<string, string>} peer -> c */
    this.names = new Map();
    /** @type {Record<string, number>} what the last hello named */
    this.named = {};
  }

  /** The keys of `hello` that make it a resync: epoch, cursors of the most recent conversations, since. */
  resume() {
    this.named = {};
    if (this.epoch === null) return {};
    const isBehind = ([, { seq, head }]) => seq < head;
    const order = [...this.of].sort((a, b) => Number(isBehind(b)) - Number(isBehind(a)) || b[1].ts - a[1].ts).slice(0, CURSORS_MAX);
    const pairs = fitting(order.map(([c, place]) => /** @type {[string, number]} */ ([c, place.seq])), HELLO_LIST_BYTES_MAX / 2);
    this.named = Object.fromEntries(pairs);
    const holds = this.since !== null && ![...this.of].some((one) => isBehind(one) && !Object.hasOwn(this.named, one[0]));
    return { epoch: this.epoch, cursors: this.named, ...(holds ? { since: this.since } : {}) };
  }

  /** Tells whether this welcome comes from another epoch than the places; if so they are dropped. @param {string} epoch */
  enter(epoch) {
    const other = this.epoch !== null && this.epoch !== epoch;
    if (other) this.forget();
    this.epoch = epoch;
    return other;
  }

  forget() {
    this.epoch = null;
    this.since = null;
    this.of.clear();
    this.names.clear();
    this.named = {};
  }

  /**
   * Takes one listed conversation. True: what this device holds of it goes on without a hole, from `floor` at least.
   * False: it starts anew at `head + 1`; drop what is held and fetch by `history`.
   * @param {Item} item
   */
  list(item) {
    const had = this.of.get(item.c);
    const named = Object.hasOwn(this.named, item.c);
    const anew = !had || item.reset === true || item.page === true || had.seq > item.head || (!named && had.seq < item.head);
    const seq = anew ? item.head : Math.max(had.seq, item.floor - 1);
    this.of.set(item.c, { peer: item.peer, seq, head: item.head, ts: item.ts });
    this.names.set(item.peer, item.c);
    return !anew;
  }

  /**
   * An entry came in order. `new`: take it; `known`: ignore it; `jump`: the connection broke its promise, reconnect; the next hello names it.
   * @param {string} c  @param {string} peer  @param {number} seq  @param {number} ts  @returns {'new'|'known'|'jump'}
   */
  step(c, peer, seq, ts) {
    const place = this.of.get(c);
    if (place && seq <= place.seq) return 'known';
    if (place && seq > place.seq + 1) {
      place.head = Math.max(place.head, seq);
      return 'jump';
    }
    this.of.set(c, { peer, seq, head: Math.max(seq, place?.head ?? 0), ts });
    this.names.set(peer, c);
    return 'new';
  }
}

/**
 * Own cursors: what the server is known to have, and what it is still to be told. Only forward. Coalesced: however many
 * entries came, one `ack` or `read` a conversation goes out (`read` moves `delivered` along, so then no `ack`).
 */
export class Cursors {
  constructor() {
    /** @type {Map<string, {delivered: number, read: number, wantDelivered: number, wantRead: number}>} */
    this.of = new Map();
  }

  /** @param {string} c */
  #at(c) {
    let at = this.of.get(c);
    if (!at) this.of.set(c, at = { delivered: 0, read: 0, wantDelivered: 0, wantRead: 0 });
    return at;
  }

  /** What the server says stands. @param {string} c  @param {{delivered?: number, read?: number}} known */
  known(c, { delivered = 0, read = 0 }) {
    const at = this.#at(c);
    at.delivered = Math.max(at.delivered, delivered);
    at.read = Math.max(at.read, read);
  }

  /** A welcome lists it: a crash may have taken back the last second, so this replaces. @param {Item} item @param {boolean} kept */
  listed(item, kept) {
    const at = this.#at(item.c);
    at.delivered = item.delivered;
    at.read = item.read;
    if (kept) return;
    at.wantDelivered = Math.min(at.wantDelivered, item.head);
    at.wantRead = Math.min(at.wantRead, item.head);
  }

  /** @param {string} c  @param {number} seq */
  ack(c, seq) {
    const at = this.#at(c);
    at.wantDelivered = Math.max(at.wantDelivered, seq);
  }

  /** @param {string} c  @param {number} seq */
  read(c, seq) {
    const at = this.#at(c);
    at.wantRead = Math.max(at.wantRead, seq);
  }

  /** What is to be said now. @returns {{t: 'ack'|'read', c: string, seq: number}[]} */
  due() {
    const out = [];
    for (const [c, at] of this.of) {
      if (at.wantRead > at.read) out.push({ t: /** @type {const} */ ('read'), c, seq: at.wantRead });
      if (at.wantDelivered > Math.max(at.delivered, at.wantRead)) out.push({ t: /** @type {const} */ ('ack'), c, seq: at.wantDelivered });
    }
    return out;
  }

  /** The server will not have it (`bad_seq` and the like): stop wanting it. @param {string} c */
  refused(c) {
    const at = this.#at(c);
    at.wantDelivered = at.delivered;
    at.wantRead = at.read;
  }

  forget() {
    this.of.clear();
  }
}
