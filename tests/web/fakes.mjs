/** A clock that is moved by hand, a WebSocket that is answered by hand, and dice that can be thrown again. */

export const WEB = new URL('../../chatd/web/', import.meta.url);

export class FakeClock {
  constructor(at = 1_790_000_000_000) {
    this.at = at;
    this.timers = new Map();
    this.last = 0;
  }

  now() {
    return this.at;
  }

  set(fn, ms) {
    this.last += 1;
    this.timers.set(this.last, { fn, at: this.at + ms });
    return this.last;
  }

  clear(handle) {
    this.timers.delete(handle);
  }

  /** The next timer, or undefined. */
  next() {
    return [...this.timers].sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0];
  }

  /** Lets `ms` pass; what is due runs at its own time, and promises settle in between. */
  async pass(ms) {
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
export async function settle() {
  for (let i = 0; i < 8; i += 1) await Promise.resolve();
}

export class FakeSocket {
  static made = [];

  constructor(url, protocol) {
    Object.assign(this, { url, protocol, sent: [], closedBy: null, isOpen: false });
    FakeSocket.made.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closedBy = code;
  }

  // What the other side does:
  open() {
    this.isOpen = true;
    this.onopen();
  }

  say(frame) {
    this.onmessage({ data: typeof frame === 'string' ? frame : JSON.stringify(frame) });
  }

  end(code = 1006) {
    this.onclose({ code });
  }
}

/** The last socket made. */
export const socket = () => FakeSocket.made.at(-1);

/** mulberry32: the same seed gives the same numbers. */
export function dice(seed) {
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return { random, below: (n) => Math.floor(random() * n), chance: (p) => random() < p, pick: (list) => list[Math.floor(random() * list.length)] };
}

/** Seeds to try: `SEED=n` tries that one alone, `TIMES=n` n times as many. A failure names its seed. */
export function seeds(count) {
  if (process.env.SEED) return [Number(process.env.SEED)];
  return Array.from({ length: count * Number(process.env.TIMES ?? 1) }, () => Math.floor(Math.random() * 2 ** 31));
}

export async function withSeed(seed, run) {
  try {
    await run(dice(seed));
  } catch (error) {
    error.message = `SEED=${seed}: ${error.message}`;
    throw error;
  }
}

let uuids = 0;
export function uuid() {
  uuids += 1;
  return `00000000-0000-4000-8000-${String(uuids).padStart(12, '0')}`;
}

/** A Sink that writes down what it is told. */
export function recorder() {
  const calls = [];
  const sink = new Proxy({ calls }, { get: (target, name) => target[name] ?? ((...args) => void calls.push([name, ...structuredClone(args)])) });
  return sink;
}

export const WELCOME = Object.freeze({
  t: 'welcome', id: 1, user: 'alice', device: 'd', v: 1, features: [], epoch: 'e1', ts: 1_790_000_000_000, heartbeat_ms: 20000,
  limits: { frame_bytes: 16384, body_bytes: 2048, messages: 10, per_ms: 5000, watch: 200, history: 100, edit_ms: 900000 },
  conversations: [], presence: [], more: false, since: 's1',
});

export function item(facts = {}) {
  return {
    c: '12', peer: 'bob', head: 0, floor: 1, ts: 1_790_000_000_000, delivered: 0, read: 0, peer_delivered: 0, peer_read: 0, unread: 0,
    open: true, ...facts,
  };
}
