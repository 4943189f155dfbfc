/**
 * One WebSocket connection: numbered requests and their replies, and the question whether anybody is still there.
 *
 * A Link lives once: it ends by `leave`, by a close, or by silence, and after that its owner hears nothing more of it.
 * Every request is answered exactly once; with `{t:"err", code:"disconnected"}` if the connection ends first.
 * A browser shows no WebSocket pings, so silence is broken by the JSON `ping` (section 8 of docs/protocol.md), and leaving
 * does not wait for a close handshake that a dead line would never finish.
 */

import { SUBPROTOCOL, parseFrame } from './wire.js';

/** A `ping` without any frame after it for so long means that the line is dead. */
export const PROBE_MS_MAX = 5000;
/** After this much silence a ping goes out; with the probe it stays below the server's `heartbeat_ms` (20,000). */
export const SILENCE_MS = 12000;
export const ANSWER_MS_MAX = 30000;
const TIMER_MS_MAX = 2 ** 31 - 1;
const REPLIES = new Set(['ok', 'err', 'pong']);

/** @typedef {{now(): number, set(fn: () => void, ms: number): any, clear(handle: any): void}} Clock */

/** Named timers, at most one of each name. */
export class Timers {
  /** @param {Clock} clock */
  constructor(clock) {
    this.clock = clock;
    /** @type {Map<string, any>} */
    this.running = new Map();
  }

  /** Replaces the one of that name. @param {string} name  @param {number} ms  @param {() => void} fn */
  set(name, ms, fn) {
    this.clear(name);
    const handle = this.clock.set(() => {
      this.running.delete(name);
      fn();
    }, Math.min(ms, TIMER_MS_MAX));
    this.running.set(name, handle);
  }

  /** @param {string} name */
  has(name) {
    return this.running.has(name);
  }

  /** @param {string} name */
  clear(name) {
    if (this.running.has(name)) this.clock.clear(this.running.get(name));
    this.running.delete(name);
  }

  clearAll() {
    for (const name of [...this.running.keys()]) this.clear(name);
  }
}

export class Link {
  /**
   * @param {{url: string, WebSocket: any, clock: Clock, onOpen(): void, onFrame(frame: any): void,
   *          onClose(code: number): void, onSilent(): void}} parts
   * `onFrame` gets what is no reply. After `onClose` or `onSilent` the owner calls `leave`.
   */
  constructor({ url, WebSocket, clock, onOpen, onFrame, onClose, onSilent }) {
    this.clock = clock;
    this.timers = new Timers(clock);
    this.onFrame = onFrame;
    this.onSilent = onSilent;
    this.lastId = 0;
    this.heardAt = clock.now();
    /** @type {Map<number, {answer: (frame: any) => void, at: number}>} in the order asked */
    this.pending = new Map();
    this.open = true;
    this.ws = new WebSocket(url, SUBPROTOCOL);
    this.ws.onopen = () => this.open && onOpen();
    this.ws.onmessage = (event) => this.open && this.#heard(event.data);
    this.ws.onclose = (event) => this.open && onClose(event.code);
  }

  /** @param {object} frame without `id`  @param {(frame: any) => void} answer called once  @returns {number} its id */
  request(frame, answer) {
    if (!this.open) {
      answer({ t: 'err', code: 'disconnected' });
      return 0;
    }
    this.lastId += 1;
    this.pending.set(this.lastId, { answer, at: this.clock.now() });
    this.ws.send(JSON.stringify({ ...frame, id: this.lastId }));
    return this.lastId;
  }

  /** The reply came in another form (`welcome`). @param {number} id */
  answered(id) {
    this.pending.delete(id);
  }

  /** Idempotent. What waits for an answer gets `disconnected`. */
  leave() {
    if (!this.open) return;
    this.open = false;
    this.timers.clearAll();
    this.ws.close(1000);
    const pending = [...this.pending.values()];
    this.pending.clear();
    for (const { answer } of pending) answer({ t: 'err', code: 'disconnected' });
  }

  /** Asks for a sign of life; any frame within the deadline will do, so a pong behind a long resync is no alarm. */
  probe() {
    if (this.timers.has('probe')) return;
    this.timers.set('probe', PROBE_MS_MAX, this.onSilent);
    this.request({ t: 'ping' }, () => {});
  }

  /** Probes whenever the line falls silent, from now on. */
  watchSilence() {
    const left = this.heardAt + SILENCE_MS - this.clock.now();
    this.timers.set('silence', left > 0 ? left : SILENCE_MS, () => {
      const now = this.clock.now();
      const oldest = this.pending.values().next().value;
      if (oldest && now - oldest.at > ANSWER_MS_MAX) {
        this.onSilent();
        return;
      }
      if (now - this.heardAt >= SILENCE_MS) this.probe();
      this.watchSilence();
    });
  }

  #heard(data) {
    this.heardAt = this.clock.now();
    this.timers.clear('probe');
    const frame = parseFrame(data);
    if (frame === null) return;
    if (!REPLIES.has(frame.t)) {
      this.onFrame(frame);
      return;
    }
    const waiting = this.pending.get(frame.id);
    this.pending.delete(frame.id);
    waiting?.answer(frame);
  }
}
