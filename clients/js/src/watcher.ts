/** Tells the server whom this client watches, and whether somebody looks. The latest state alone counts. */

import type { Engine } from './engine.js';
import type { Frame } from './frames.js';
import { fitting, HELLO_LIST_BYTES_MAX, QUIET_RETRY_MS_MIN, RECONNECT_MS_MAX, retryMs } from './wire.js';

export class Watcher {
  readonly #engine: Engine;
  #isAway = false;
  #watched: string[] = [];
  /** What the server was last told on this connection. */
  #told: Record<'watch' | 'presence', string | null> = { watch: '', presence: 'online' };

  constructor(engine: Engine) {
    this.#engine = engine;
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
    this.tell();
  }

  away(isAway: boolean): void {
    this.#isAway = isAway;
    this.tell();
  }

  /** Called once live, because what changes while a hello is on its way is in no frame yet. */
  tell(): void {
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
      const wait = retryMs(reply.retry_ms, RECONNECT_MS_MAX, QUIET_RETRY_MS_MIN);
      if (reply.t === 'ok') {
        if (what === 'watch') this.#engine.presence(reply.presence, true);
      } else if (wait !== null) {
        dial.timers.set(what, wait, () => {
          this.#told[what] = null;
          this.tell();
        });
      }
    });
  }
}
