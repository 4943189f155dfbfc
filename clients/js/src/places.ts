/**
 * How far this device has got in every log, and what a reconnect says about it (section 3 of docs/protocol.md).
 *
 * A place is the highest seq of a conversation that is had without holes. Invariants: a place only rises within an
 * epoch, except by `reset`; an entry at or below it is known; one further than the next is a jump, which means:
 * reconnect. The mark `since` is taken from the last page of a welcome only; places are good as soon as their item is
 * seen. It is given back only with all that is still missing of what it listed: with it the server lists no
 * conversation that is neither named nor changed since.
 *
 * Pure. `engine.ts` feeds it and sends what `resume` gives.
 */

import type { Item } from './frames.js';
import { CURSORS_MAX, fitting, HELLO_LIST_BYTES_MAX } from './wire.js';

/** `head`: the highest seq that is known to exist. */
export interface Place {
  peer: string;
  seq: number;
  head: number;
  ts: number;
}

export class Places {
  epoch: string | null = null;
  since: string | null = null;
  /** By conversation. */
  readonly of = new Map<string, Place>();
  /** Peer -> conversation. */
  readonly names = new Map<string, string>();
  /** What the last hello named. */
  named: Record<string, number> = {};

  /** The keys of `hello` that make it a resync: epoch, cursors of the most recent conversations, since. */
  resume(): { epoch?: string; cursors?: Record<string, number>; since?: string } {
    this.named = {};
    if (this.epoch === null) return {};
    const isBehind = ([, { seq, head }]: [string, Place]) => Number(seq < head);
    const order = [...this.of].sort((a, b) => isBehind(b) - isBehind(a) || b[1].ts - a[1].ts).slice(0, CURSORS_MAX);
    this.named = Object.fromEntries(
      fitting(
        order.map(([c, { seq }]) => [c, seq] as const),
        HELLO_LIST_BYTES_MAX / 2,
      ),
    );
    const isWhole = ![...this.of].some((one) => isBehind(one) && !Object.hasOwn(this.named, one[0]));
    return {
      epoch: this.epoch,
      cursors: this.named,
      ...(this.since !== null && isWhole ? { since: this.since } : {}),
    };
  }

  /** Whether this welcome comes from another epoch than the places; if so they are dropped. */
  enter(epoch: string): boolean {
    const isOther = this.epoch !== null && this.epoch !== epoch;
    if (isOther) this.forget();
    this.epoch = epoch;
    return isOther;
  }

  forget(): void {
    this.epoch = this.since = null;
    this.of.clear();
    this.names.clear();
    this.named = {};
  }

  /**
   * Takes one listed conversation. True: what this device holds of it goes on without a hole, from `floor` at least.
   * False: it starts anew at `head + 1`; drop what is held and fetch by `history`.
   */
  list(item: Item): boolean {
    const had = this.of.get(item.c);
    const isKept =
      had !== undefined &&
      !item.reset &&
      !item.page &&
      had.seq <= item.head &&
      (Object.hasOwn(this.named, item.c) || had.seq === item.head);
    this.put(item.c, { ...item, seq: isKept ? Math.max(had.seq, item.floor - 1) : item.head });
    return isKept;
  }

  /** How far the conversation with `peer` is had. */
  at(peer: string): Place | undefined {
    return this.of.get(this.names.get(peer) ?? '');
  }

  put(c: string, { peer, seq, head, ts }: Place): void {
    this.of.set(c, { peer, seq, head, ts });
    this.names.set(peer, c);
  }

  /**
   * An entry came in order. `new`: take it; `known`: ignore it; `jump`: the connection broke its promise, reconnect; the
   * next hello names it.
   */
  step(c: string, peer: string, seq: number, ts: number): 'new' | 'known' | 'jump' {
    const place = this.of.get(c);
    if (place && seq <= place.seq) return 'known';
    if (place && seq > place.seq + 1) {
      place.head = Math.max(place.head, seq);
      return 'jump';
    }
    this.put(c, { peer, seq, head: Math.max(seq, place?.head ?? 0), ts });
    return 'new';
  }
}

interface Cursor {
  delivered: number;
  read: number;
  wantDelivered: number;
  wantRead: number;
}

/**
 * Own cursors: what the server is known to have, and what it is still to be told. Only forward. Coalesced: however many
 * entries came, one `ack` or `read` a conversation goes out (`read` moves `delivered` along, so then no `ack`).
 */
export class Cursors {
  readonly #of = new Map<string, Cursor>();

  #at(c: string): Cursor {
    const at = this.#of.get(c) ?? { delivered: 0, read: 0, wantDelivered: 0, wantRead: 0 };
    this.#of.set(c, at);
    return at;
  }

  /** What the server says stands. */
  known(c: string, { delivered, read }: { delivered: number; read: number }): void {
    const at = this.#at(c);
    at.delivered = Math.max(at.delivered, delivered);
    at.read = Math.max(at.read, read);
  }

  /** A welcome lists it: a crash may have taken back the last second, so this replaces. */
  listed({ c, delivered, read, head }: Item, isKept: boolean): void {
    const at = this.#at(c);
    at.delivered = delivered;
    at.read = read;
    if (isKept) return;
    at.wantDelivered = Math.min(at.wantDelivered, head);
    at.wantRead = Math.min(at.wantRead, head);
  }

  /** Seen up to here, told or not. */
  readOf(c: string): number {
    const at = this.#of.get(c);
    return at ? Math.max(at.read, at.wantRead) : 0;
  }

  want(c: string, what: 'ack' | 'read', seq: number): void {
    const at = this.#at(c);
    const key = what === 'ack' ? 'wantDelivered' : 'wantRead';
    at[key] = Math.max(at[key], seq);
  }

  /** What is to be said now. */
  due(): { t: 'ack' | 'read'; c: string; seq: number }[] {
    const out: { t: 'ack' | 'read'; c: string; seq: number }[] = [];
    for (const [c, { delivered, read, wantDelivered, wantRead }] of this.#of) {
      if (wantRead > read) out.push({ t: 'read', c, seq: wantRead });
      if (wantDelivered > Math.max(delivered, wantRead)) out.push({ t: 'ack', c, seq: wantDelivered });
    }
    return out;
  }

  /** The server will not have it (`bad_seq` and the like): no longer wanted. */
  refused(c: string): void {
    const at = this.#at(c);
    at.wantDelivered = at.delivered;
    at.wantRead = at.read;
  }

  forget(): void {
    this.#of.clear();
  }
}
