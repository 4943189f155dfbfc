/**
 * Whether the user looks: visible or hidden, busy or idle. Tells `away` for presence, and `wake` when the device may have slept.
 *
 * A short look at another tab is no absence, so hidden counts after a while. Pure but for the injected clock; app.js feeds it the
 * page's events.
 */

import { Timers } from './link.js';

export const HIDDEN_AWAY_MS = 20000;
export const IDLE_AWAY_MS = 5 * 60000;
/** Moving the mouse makes hundreds of events; one a second is plenty. */
const STIR_EVERY_MS = 1000;

export class Attention {
  /**
   * @param {{clock: import('./link.js').Clock, visible: boolean, onAway: (away: boolean) => void, onWake: () => void,
   *   onLook: () => void}} parts  `onLook`: the page came into sight
   */
  constructor({ clock, visible, onAway, onWake, onLook }) {
    this.clock = clock;
    this.timers = new Timers(clock);
    this.onAway = onAway;
    this.onWake = onWake;
    this.onLook = onLook;
    this.away = false;
    this.stirredAt = -Infinity;
    this.visible = visible;
    this.#count();
  }

  /** visibilitychange @param {boolean} visible */
  see(visible) {
    this.visible = visible;
    if (visible) {
      this.#setAway(false);
      this.onWake();
      this.onLook();
    }
    this.#count();
  }

  /** A key, a click, a touch, a move. */
  stir() {
    const now = this.clock.now();
    if (!this.visible || now - this.stirredAt < STIR_EVERY_MS) return;
    this.stirredAt = now;
    this.#setAway(false);
    this.#count();
  }

  #count() {
    this.timers.set('away', this.visible ? IDLE_AWAY_MS : HIDDEN_AWAY_MS, () => this.#setAway(true));
  }

  /** @param {boolean} away */
  #setAway(away) {
    if (away === this.away) return;
    this.away = away;
    this.onAway(away);
  }
}
