/**
 * What the server is to be told of this device and its user, beside what they say: cursors, whom they watch, and whether
 * somebody looks. The latest state alone counts, so nothing queues up.
 */

import type { Engine } from './engine.js';
import { type Frame, isReceipt } from './frames.js';
import { Cursors } from './places.js';
import { fitting, HELLO_LIST_BYTES_MAX, RECONNECT_MS_MAX, retryMs } from './wire.js';

const CURSOR_DELAY_MS = 80;
/** Cursors told at once; the rest follows when these are answered, so that a long absence meets no limit of frames. */
const CURSOR_FRAMES_MAX = 50;

export class Teller {
  readonly cursors = new Cursors();
  readonly #engine: Engine;
  #isAway = false;
  #watched: string[] = [];
  /** What the server was last told on this connection. */
  #told: Record<'watch' | 'presence', string | null> = { watch: '', presence: 'online' };
  /** Cursor requests under way, and when the next may go. */
  #telling = 0;
  #tellFrom = 0;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** What was on its way has no answer. */
  disconnected(): void {
    this.#telling = 0;
  }

  /** The keys of `hello` that tell it all. */
  hello(): { watch: string[]; state: 'online' | 'away' } {
    const { watch, state } = this.#state();
    this.#told = { watch: watch.join('\n'), presence: state };
    return { watch, state };
  }

  /** Whom the application shows, the most important first. */
  watch(users: readonly string[]): void {
    this.#watched = fitting(users.slice(0, this.#engine.limits.watch), HELLO_LIST_BYTES_MAX / 2);
    this.tellState();
  }

  away(isAway: boolean): void {
    this.#isAway = isAway;
    this.tellState();
  }

  /** Called once live, because what changes while a hello is on its way is in no frame yet. */
  tellState(): void {
    const { watch, state } = this.#state();
    this.#tellIfNew('watch', watch.join('\n'), { t: 'watch', users: watch });
    this.#tellIfNew('presence', state, { t: 'presence', state });
  }

  #state(): { watch: string[]; state: 'online' | 'away' } {
    return { watch: this.#watched, state: this.#isAway ? 'away' : 'online' };
  }

  /** Refused for now: it is said again when the server allows. */
  #tellIfNew(what: 'watch' | 'presence', value: string, frame: Frame): void {
    const { dial } = this.#engine;
    if (!dial.isLive || value === this.#told[what] || dial.timers.has(what)) return;
    this.#told[what] = value;
    this.#engine.request(frame, (reply) => {
      const wait = retryMs(reply.retry_ms, RECONNECT_MS_MAX);
      if (reply.t === 'ok') {
        if (what === 'watch') this.#engine.presence(reply.presence, true);
      } else if (wait !== null) {
        dial.timers.set(what, wait, () => {
          this.#told[what] = null;
          this.tellState();
        });
      }
    });
  }

  /** `ack`: this device has everything up to `seq`; `read`: the user has seen it. Entries in order are acked here. */
  cursor(peer: string, what: 'ack' | 'read', seq: number): void {
    const c = this.#engine.places.names.get(peer);
    if (c === undefined || peer === this.#engine.user) return;
    this.cursors.want(c, what, seq);
    this.#tellSoon(CURSOR_DELAY_MS);
  }

  #tellSoon(ms: number): void {
    if (this.#engine.dial.isLive && !this.#engine.dial.timers.has('cursors'))
      this.#engine.dial.timers.set('cursors', ms, () => this.tell());
  }

  /** Sends the cursors that are due, if they may go now. */
  tell(): void {
    const now = this.#engine.clock.now();
    if (!this.#engine.dial.isLive || this.#telling > 0) return;
    if (now < this.#tellFrom) {
      this.#tellSoon(this.#tellFrom - now);
      return;
    }
    for (const frame of this.cursors.due().slice(0, CURSOR_FRAMES_MAX)) {
      this.#telling += 1;
      this.#engine.request(frame, (reply) => {
        if (reply.code === 'disconnected') return;
        this.#telling -= 1;
        this.#cursorTold(frame, reply);
        if (this.#telling === 0) this.tell();
      });
    }
  }

  #cursorTold({ t, c, seq }: { t: 'ack' | 'read'; c: string; seq: number }, reply: Frame): void {
    const stands = { ...reply, c, from: this.#engine.user };
    const wait = retryMs(reply.retry_ms, RECONNECT_MS_MAX);
    if (reply.t === 'ok' && isReceipt(stands)) {
      this.receipt(stands);
      if (stands[t === 'read' ? 'read' : 'delivered'] < seq) this.cursors.refused(c);
    } else if (reply.t === 'err' && wait !== null) {
      this.#tellFrom = Math.max(this.#tellFrom, this.#engine.clock.now() + wait);
    } else this.cursors.refused(c);
  }

  receipt({ c, from, delivered, read }: { c: string; from: string; delivered: number; read: number }): void {
    if (from === this.#engine.user) this.cursors.known(c, { delivered, read });
    this.#engine.emit({ t: 'receipt', c, from, delivered, read });
  }
}
