/**
 * Whether the user looks: visible or hidden, with or without the focus, busy or idle. Tells `away` for presence, `wake` when the device
 * may have slept, and `isPresent` for what counts as read.
 *
 * A short look at another tab is no absence for others, so hidden is `away` after a while. For reading it is one at once. Pure but for
 * the injected clock; app.js feeds it the page's events.
 */

import { Timers } from './link.js';

export const HIDDEN_AWAY_MS = 20000;
export const IDLE_AWAY_MS = 5 * 60000;
/** Moving the mouse makes hundreds of events; one a second is plenty. */
const STIR_EVERY_MS = 1000;

export class Attention {
  /**
   * @param {{clock: import('./link.js').Clock, visible: boolean, focused: boolean, onAway: (away: boolean) => void, onWake: () => void,
   *   onLook: () => void}} parts  `onLook`: the page came into sight, or the user back to it
   */
  constructor({ clock, visible, focused, onAway, onWake, onLook }) {
    this.clock = clock;
    this.timers = new Timers(clock);
    this.onAway = onAway;
    this.onWake = onWake;
    this.onLook = onLook;
    this.away = false;
    this.stirredAt = -Infinity;
    this.activeAt = clock.now();
    this.visible = visible;
    this.focused = focused;
    this.#count();
  }

  /**
   * Somebody is there to see what comes. The time is asked as well as the timer, because a device that slept wakes up to messages first
   * and to its timers after that.
   */
  get isPresent() {
    return this.visible && this.focused && !this.away && this.clock.now() - this.activeAt < IDLE_AWAY_MS;
  }

  /** visibilitychange @param {boolean} visible */
  see(visible) {
    this.visible = visible;
    if (visible) {
      this.#here();
      this.onWake();
    } else this.#count();
  }

  /** focus and blur of the window @param {boolean} focused */
  focus(focused) {
    this.focused = focused;
    if (focused && this.visible) this.#here();
  }

  /** A key, a click, a touch, a move. @param {boolean} [isTouch] no mere move: only a window with the focus gets that, and not all say when it comes */
  stir(isTouch = false) {
    const now = this.clock.now();
    if (isTouch && !this.focused) {
      this.focus(true);
      return;
    }
    if (!this.visible || Math.abs(now - this.stirredAt) < STIR_EVERY_MS) return; // also where the clock was set back
    this.stirredAt = now;
    if (this.isPresent) this.#count();
    else this.#here();
  }

  #here() {
    this.#count();
    this.#setAway(false);
    this.onLook();
  }

  #count() {
    this.activeAt = this.clock.now();
    this.timers.set('away', this.visible ? IDLE_AWAY_MS : HIDDEN_AWAY_MS, () => this.#setAway(true));
  }

  /** @param {boolean} away */
  #setAway(away) {
    if (away === this.away) return;
    this.away = away;
    this.onAway(away);
  }
}
