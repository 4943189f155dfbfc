/** A WebSocket that is answered by hand, and what is said on it. */
import type { Item } from '../src/frames.js';
import type { Draft } from '../src/outbox.js';
import type { TestClock } from '../src/testing/clock.js';
import { FakeWebSocket, type Network } from '../src/testing/socket.js';

export { settle, TestClock } from '../src/testing/clock.js';

export type Json = Record<string, unknown>;

/** Nothing arrives by itself: the test is the server, and moves its end by hand. */
const BY_HAND: Network = {
  clock: { now: () => 0, set: () => 0, clear: () => {} },
  latency: () => Infinity,
  accept: () => 404,
};

export class FakeSocket extends FakeWebSocket {
  static made: FakeSocket[] = [];
  readonly offered: string;
  readonly sent: Json[] = [];
  closedBy: number | undefined;

  constructor(url: string, protocol: string) {
    super(BY_HAND, url, protocol);
    this.offered = protocol;
    FakeSocket.made.push(this);
  }

  override send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  /** On a dead line no close follows. */
  override close(code?: number): void {
    this.closedBy = code;
  }

  // What the other side does:
  open(): void {
    this._open([this.offered]);
  }

  say(frame: Json | string): void {
    this._message(typeof frame === 'string' ? frame : JSON.stringify(frame));
  }

  end(code = 1006): void {
    this._close(code, '', true);
  }
}

/** The last socket made. */
export function socket(): FakeSocket {
  const last = FakeSocket.made.at(-1);
  if (!last) throw new Error('no socket was made');
  return last;
}

/** The frames of a type that the last socket was given. */
export const sent = (t: string): Json[] => socket().sent.filter((frame) => frame.t === t);

/** Of a client over `FakeSocket`. */
export function optionsOf(clock: TestClock) {
  const facts = { url: 'ws://x/ws', token: async () => 'tok', device: 'd', random: () => 0 };
  return { ...facts, webSocket: FakeSocket, clock };
}

let uuids = 0;
export function uuid(): string {
  uuids += 1;
  return `00000000-0000-4000-8000-${String(uuids).padStart(12, '0')}`;
}

export function draft(facts: Partial<Draft> = {}): Draft {
  const rest = { ref: null, refcid: null, at: 0, tried: false, isGiven: false };
  return { peer: 'bob', cid: 'c', kind: 'message', body: 'x', ...rest, ...facts };
}

/** What a server says in its welcome. */
export const LIMITS = {
  frame_bytes: 16384,
  body_bytes: 2048,
  messages: 10,
  per_ms: 5000,
  watch: 200,
  history: 100,
  edit_ms: 900000,
  resync: 500,
};

export const WELCOME: Json = Object.freeze({
  t: 'welcome',
  id: 1,
  user: 'alice',
  device: 'd',
  v: 1,
  features: [],
  epoch: 'e1',
  ts: 1_790_000_000_000,
  heartbeat_ms: 20000,
  limits: LIMITS,
  conversations: [],
  presence: [],
  more: false,
  since: 's1',
});

export function item(facts: Partial<Item> = {}): Item {
  const none = { delivered: 0, read: 0, peer_delivered: 0, peer_read: 0, unread: 0 };
  return { c: '12', peer: 'bob', head: 0, floor: 1, ts: 1_790_000_000_000, ...none, open: true, ...facts };
}

export function entry(seq: number, facts: Json = {}): Json {
  return {
    t: 'entry',
    c: '12',
    seq,
    ts: 1000 + seq,
    from: 'bob',
    to: 'alice',
    kind: 'message',
    body: `m${seq}`,
    ...facts,
  };
}
