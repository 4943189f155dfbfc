/** A clock that is moved by hand and a WebSocket that is answered by hand. */
import type { Item } from '../src/frames.js';
import type { Clock, Socket } from '../src/link.js';
import type { Draft } from '../src/outbox.js';

export type Json = Record<string, unknown>;

export class FakeClock implements Clock {
  at: number;
  readonly timers = new Map<number, { fn: () => void; at: number }>();
  #last = 0;

  constructor(at = 1000) {
    this.at = at;
  }

  now(): number {
    return this.at;
  }

  set(fn: () => void, ms: number): number {
    this.#last += 1;
    this.timers.set(this.#last, { fn, at: this.at + ms });
    return this.#last;
  }

  clear(handle: unknown): void {
    this.timers.delete(handle as number);
  }

  next() {
    return [...this.timers].sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0];
  }

  /** Lets `ms` pass; what is due runs at its own time, and promises settle in between. */
  async pass(ms: number): Promise<void> {
    const end = this.at + ms;
    await settle();
    for (let due = this.next(); due !== undefined && due[1].at <= end; due = this.next()) {
      this.timers.delete(due[0]);
      this.at = Math.max(this.at, due[1].at);
      due[1].fn();
      await settle();
    }
    this.at = end;
  }
}

/** Promises that are ready run. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 20; i += 1) await Promise.resolve();
}

export class FakeSocket implements Socket {
  static made: FakeSocket[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  onerror: ((event: unknown) => void) | null = null;
  readonly url: string;
  readonly protocol: string;
  readonly sent: Json[] = [];
  closedBy: number | undefined;

  constructor(url: string, protocol: string) {
    this.url = url;
    this.protocol = protocol;
    FakeSocket.made.push(this);
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(code?: number): void {
    this.closedBy = code;
  }

  // What the other side does:
  open(): void {
    this.onopen?.();
  }

  say(frame: Json | string): void {
    this.onmessage?.({ data: typeof frame === 'string' ? frame : JSON.stringify(frame) });
  }

  end(code = 1006): void {
    this.onclose?.({ code });
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
