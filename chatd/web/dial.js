/**
 * Getting a connection and keeping one: tokens, back-off, close codes, drain, wake-up.
 *
 *      idle ─connect─► connecting ──live()──► live ──drain──► draining
 *                        ▲   │                 │                 │
 *                        │   └───── lost ──────┴─────────────────┘
 *                        └── waiting (retryAt) ◄┘     stopped (replaced, ...)    token (needs another one)
 *
 * The owner says hello when `onOpen` comes and calls `live` after the last welcome. `onDown` comes before every end, so
 * that the owner forgets what was on its way; no frame of an ended connection arrives after it.
 */

import { Link, Timers } from './link.js';
import { Backoff, SETTLED_MS, afterClose } from './wire.js';

/** From the first step of a connection to the last page of its welcome; counted anew with each page. */
export const CONNECT_MS_MAX = 15000;
/** Waits that a wake-up must not cut short: the server named them. */
const NAMED_WAITS = new Set(['rate_limited', 'restart']);

/** @typedef {{state: 'idle'|'connecting'|'live'|'waiting'|'draining'|'stopped'|'token', reason: string, retryAt: number}} Status */

export class Dialer {
  /**
   * @param {{url: string, WebSocket: any, clock: import('./link.js').Clock, random: () => number,
   *   token: (renew: string|null) => Promise<string|null>, onOpen(token: string): void, onFrame(frame: any): void,
   *   onDown(): void, onStatus(status: Status): void}} parts
   */
  constructor(parts) {
    this.parts = parts;
    this.clock = parts.clock;
    this.timers = new Timers(parts.clock);
    this.backoff = new Backoff(parts.random);
    /** @type {Status} */
    this.status = { state: 'idle', reason: '', retryAt: 0 };
    /** @type {Link|null} */
    this.link = null;
    /** Counts tries, so that what began in an earlier one can see that it is too late. */
    this.attempt = 0;
    /** @type {string|null} why the next token must be a new one */
    this.renew = null;
    this.refusals = 0;
  }

  get isLive() {
    return this.status.state === 'live';
  }

  /** Connects now, whatever it was waiting for. Idempotent while connected. */
  connect() {
    if (['connecting', 'live', 'draining'].includes(this.status.state)) return;
    this.refusals = 0;
    this.#connect();
  }

  /** Ends it; `connect` starts again. */
  close() {
    this.renew = null;
    this.#stop('idle', '');
  }

  /** The device woke up or the network changed: find out now whether the line is alive. */
  wake() {
    const { state, reason } = this.status;
    if (state === 'waiting' && !NAMED_WAITS.has(reason)) this.#connect();
    else if (state === 'live' || state === 'draining') this.link?.probe();
  }

  /** The welcome is complete. That alone does not set the back-off back: a server may close right after it, each time. */
  live() {
    this.timers.set('settled', SETTLED_MS, () => this.backoff.reset());
    this.refusals = 0;
    this.renew = null;
    this.timers.clear('deadline');
    this.link?.watchSilence();
    this.#enter('live');
  }

  /** Another page of the welcome came: not stuck. */
  progress() {
    this.timers.set('deadline', CONNECT_MS_MAX, () => this.lost('silent', true));
  }

  /** Ends this connection and gets another. @param {string} reason  @param {boolean} atOnce  @param {number} [named] ms that the server named */
  lost(reason, atOnce, named = 0) {
    this.#wait(reason, this.backoff.next(atOnce, named));
  }

  #wait(reason, delay) {
    this.#drop();
    this.#enter('waiting', reason, this.clock.now() + delay);
    this.timers.set('retry', delay, () => this.#connect());
  }

  /** This page and that server do not understand each other. */
  giveUp() {
    this.#stop('stopped', 'protocol');
  }

  /** Once a new token is tried silently; refused again, the user must act. @param {string} reason */
  tokenRefused(reason) {
    this.renew = reason;
    this.refusals += 1;
    if (this.refusals < 2) this.lost(reason, true);
    else this.#stop('token', reason);
  }

  /** The server goes away: still answered here, soon elsewhere. @param {number} retry_ms */
  drain(retry_ms) {
    const delay = this.backoff.next(true, retry_ms);
    this.#enter('draining', 'restart', this.clock.now() + delay);
    this.timers.set('retry', delay, () => this.#connect());
  }

  async #connect() {
    this.#drop();
    this.#enter('connecting');
    const attempt = this.attempt;
    this.progress();
    /** @type {string|null} */
    let token = null;
    try {
      token = await this.parts.token(this.renew);
    } catch {
      if (attempt === this.attempt) this.lost('lost', true);
      return;
    }
    if (attempt !== this.attempt) return;
    if (token === null) this.#stop('token', this.renew ?? 'unauthorized');
    else this.#open(token);
  }

  #open(token) {
    const { url, WebSocket, clock, onOpen, onFrame } = this.parts;
    this.link = new Link({
      url, WebSocket, clock, onFrame,
      onOpen: () => onOpen(token),
      onClose: (code) => this.#closed(code),
      onSilent: () => this.lost('silent', true),
    });
  }

  #closed(code) {
    const { then, reason, ms } = afterClose(code);
    const { state, retryAt } = this.status;
    if (then === 'stop') this.#stop('stopped', reason);
    else if (then === 'token') this.tokenRefused(reason);
    else if (then === 'wait') this.#wait(reason, ms);
    else if (state === 'draining') this.#wait('restart', Math.max(0, retryAt - this.clock.now()));
    else this.lost(reason, then === 'again');
  }

  #drop() {
    this.attempt += 1;
    this.timers.clearAll();
    this.parts.onDown();
    this.link?.leave();
    this.link = null;
  }

  #stop(state, reason) {
    this.#drop();
    this.#enter(state, reason);
  }

  #enter(state, reason = '', retryAt = 0) {
    this.status = { state, reason, retryAt };
    this.parts.onStatus(this.status);
  }
}
