/** Tells the server how far this device and its user have got. The latest cursor alone counts, so nothing queues up. */

import type { Engine } from './engine.js';
import { type Frame, isReceipt } from './frames.js';
import { Cursors } from './places.js';
import { QUIET_RETRY_MS_MIN, RECONNECT_MS_MAX, retryMs } from './wire.js';

const CURSOR_DELAY_MS = 80;
/** Cursors told at once; the rest follows when these are answered, so that a long absence meets no limit of frames. */
const CURSOR_FRAMES_MAX = 50;

export class Teller {
  readonly cursors = new Cursors();
  readonly #engine: Engine;
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
    const wait = retryMs(reply.retry_ms, RECONNECT_MS_MAX, QUIET_RETRY_MS_MIN);
    if (reply.t === 'ok' && isReceipt(stands)) {
      this.receipt(stands);
      if (stands[t === 'read' ? 'read' : 'delivered'] < seq) this.cursors.refused(c);
    } else if (reply.t === 'err' && wait !== null) {
      this.#tellFrom = Math.max(this.#tellFrom, this.#engine.clock.now() + wait);
    } else this.cursors.refused(c);
  }

  receipt({ c, from, delivered, read }: { c: string; from: string; delivered: number; read: number }): void {
    if (from === this.#engine.user) this.cursors.known(c, { delivered, read });
    const peer = this.#engine.places.of.get(c)?.peer;
    if (peer !== undefined) this.#engine.emit({ t: 'receipt', c, peer, from, delivered, read });
  }
}
