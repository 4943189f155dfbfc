/**
 * Getting a connection and keeping one: tokens, back-off, close codes, drain, wake-up.
 *
 *      stopped ─connect─► connecting ──live()──► online (──drain──► online, going)
 *         ▲                  ▲   │                 │                   │
 *         │ 4004, no token   │   └───── lost ──────┴───────────────────┘
 *         └──────────────────┴── offline (retryAt) ◄┘
 *
 * The owner says hello when `onOpen` comes and calls `live` after the last welcome. `onDown` comes before every end, so
 * that the owner forgets what was on its way; no frame of an ended connection arrives after it.
 */

import type { Frame } from './frames.js';
import { type Clock, Link, type SocketClass, Timers } from './link.js';
import { afterClose, Backoff, LIMITED_MS, RECONNECT_MS_MAX, SETTLED_MS } from './wire.js';

/** From the first step of a connection to the last page of its welcome; counted anew with each page. */
export const CONNECT_MS_MAX = 15000;

/** State of the line. */
export interface Line {
  state: 'connecting' | 'online' | 'offline' | 'stopped';
  /**
   * Why it is not online: `lost`, `silent`, `token` (none could be had), `unauthorized`, `token_expired`, `replaced`,
   * `too_many_devices`, `protocol`, `bad_url` or another name of section 10. Online: `restart` while the server drains.
   */
  reason: string;
  /** When it tries again, in ms of `client.now()`; 0 if it does not. */
  retryAt: number;
  /** What the server said when it refused the token, what the token provider threw, or what was wrong with a welcome. */
  msg?: string;
}

/**
 * Gives the token. `renew` says why the last one is of no use (`unauthorized`, `token_expired`, `refresh`); null: any
 * will do. Null or '': there is none without the user, and the line stops. Where it throws it is asked again.
 */
export type TokenProvider = (renew: string | null) => Promise<string | null>;

export interface DialParts {
  url: string;
  WebSocket: SocketClass;
  clock: Clock;
  random: () => number;
  token: TokenProvider;
  onOpen(token: string): void;
  onFrame(frame: Frame): void;
  onDown(): void;
  onLine(line: Line): void;
  onTime(ts: number): void;
}

export class Dialer {
  /** The owner's too: those named `settled`, `deadline` and `retry` are not. All end with the connection. */
  readonly timers: Timers;
  readonly #parts: DialParts;
  readonly #backoff: Backoff;
  /** `retryAt` by the clock of this module. */
  line: Line = { state: 'stopped', reason: '', retryAt: 0 };
  link: Link | null = null;
  /** Counts tries, so that what began in an earlier one can see that it is too late. */
  attempt = 0;
  #isDraining = false;
  /** Why the next token must be a new one. */
  #renew: string | null = null;
  #refusals = 0;
  #token = '';
  #refusedToken = '';

  constructor(parts: DialParts) {
    this.#parts = parts;
    this.timers = new Timers(parts.clock);
    this.#backoff = new Backoff(parts.random);
  }

  /** Online, and new requests are welcome. */
  get isLive(): boolean {
    return this.line.state === 'online' && !this.#isDraining;
  }

  /** Connects now, whatever it was waiting for. Idempotent while connected. */
  connect(): void {
    if (this.line.state === 'connecting' || this.line.state === 'online') return;
    this.#refusals = 0;
    void this.#connect();
  }

  /** Ends it; `connect` starts again. */
  close(reason = ''): void {
    this.#renew = null;
    this.stop(reason);
  }

  /** The device woke up or the network changed: find out now whether the line is alive. */
  wake(): void {
    const { state, reason } = this.line;
    // A wake-up does not cut short what the server named.
    if (state === 'offline' && reason !== 'rate_limited' && reason !== 'restart') void this.#connect();
    else if (state === 'online') this.link?.probe();
  }

  /** The welcome is complete. That alone does not reset the back-off: a server may close right after it, each time. */
  live(): void {
    this.timers.set('settled', SETTLED_MS, () => {
      this.#backoff.tries = 0;
    });
    this.#refusals = 0;
    this.#renew = null;
    this.timers.clear('deadline');
    this.link?.watchSilence();
    this.#enter('online');
  }

  /** Another page of the welcome came: not stuck. */
  progress(): void {
    this.timers.set('deadline', CONNECT_MS_MAX, () => this.lost(this.link ? 'silent' : 'token', true));
  }

  /** Ends this connection and gets another. `named`: ms that the server named. */
  lost(reason: string, atOnce: boolean, named = 0, msg?: string): void {
    this.#wait(reason, this.#backoff.next(atOnce, Math.min(named, RECONNECT_MS_MAX)), msg);
  }

  /** Another token is tried at once, then with back-off. The same one refused again: the application must act. */
  tokenRefused(reason: string, msg?: string): void {
    const isSame = this.#token === this.#refusedToken;
    this.#refusedToken = this.#token;
    this.#renew = reason;
    this.#refusals += 1;
    if (this.#refusals > 1 && isSame) this.stop(reason, msg);
    else this.#wait(reason, this.#backoff.next(this.#refusals < 2), msg);
  }

  /** The server goes away: still answered here, soon elsewhere. */
  drain(ms: number): void {
    const delay = this.#backoff.next(true, Math.min(ms, RECONNECT_MS_MAX));
    this.#isDraining = true;
    this.#enter('online', 'restart', delay);
    this.timers.set('retry', delay, () => this.#connect());
  }

  /** Not again by itself. */
  stop(reason: string, msg?: string): void {
    this.#drop();
    this.#enter('stopped', reason, -1, msg);
  }

  #wait(reason: string, delay: number, msg?: string): void {
    this.#drop();
    this.#enter('offline', reason, delay, msg);
    this.timers.set('retry', delay, () => this.#connect());
  }

  async #connect(): Promise<void> {
    this.#drop();
    this.#enter('connecting');
    const attempt = this.attempt;
    this.progress();
    let token: string | null = null;
    try {
      token = await this.#parts.token(this.#renew);
    } catch (error) {
      const msg = String((error as Error | null)?.message ?? error);
      if (attempt === this.attempt) this.#wait('token', this.#backoff.next(false), msg);
      return;
    }
    if (attempt !== this.attempt) return;
    if (typeof token === 'string' && token !== '') this.#open(token);
    else this.stop(this.#renew ?? 'unauthorized');
  }

  #open(token: string): void {
    this.#token = token;
    try {
      this.link = new Link({
        ...this.#parts,
        onOpen: () => this.#parts.onOpen(token),
        onClose: (code) => this.#closed(code),
        onSilent: () => this.lost('silent', true),
      });
    } catch {
      this.stop('bad_url');
    }
  }

  #closed(code: number): void {
    const [then, reason] = afterClose(code);
    if (then === 'end') this.stop(reason);
    else if (then === 'token') this.tokenRefused(reason);
    else if (then === 'wait') this.#wait(reason, LIMITED_MS);
    else if (this.#isDraining) this.#wait('restart', Math.max(0, this.line.retryAt - this.#parts.clock.now()));
    else this.lost(reason, then === 'again');
  }

  #drop(): void {
    this.attempt += 1;
    this.#isDraining = false;
    this.timers.clearAll();
    this.#parts.onDown();
    this.link?.leave();
    this.link = null;
  }

  #enter(state: Line['state'], reason = '', delay = -1, msg?: string): void {
    const retryAt = delay < 0 ? 0 : this.#parts.clock.now() + delay;
    this.line = { state, reason, retryAt, ...(msg === undefined ? {} : { msg }) };
    this.#parts.onLine(this.line);
  }
}
