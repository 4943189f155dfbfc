/**
 * Whether somebody is there to see what comes: visible, with the focus, and not idle. What counts as read depends on it.
 *
 * The time is asked as well as the timer of `away`, because a device that slept wakes up to messages first and to its
 * timers after that. Durations are of the monotonic clock: somebody may set the other one.
 */

import { Cell } from './cell';

export const IDLE_MS = 5 * 60000;

export class Attention {
  /** Somebody is there. */
  readonly isPresent: Cell<boolean>;
  readonly isAway = new Cell(false);
  readonly #now: () => number;
  #isVisible: boolean;
  #hasFocus: boolean;
  #activeAt: number;

  constructor(now: () => number, isVisible: boolean, hasFocus: boolean) {
    this.#now = now;
    this.#isVisible = isVisible;
    this.#hasFocus = hasFocus;
    this.#activeAt = now();
    this.isPresent = new Cell(this.isHere);
  }

  /** The same, asked now. */
  get isHere(): boolean {
    return this.#isVisible && this.#hasFocus && !this.isAway.get() && this.#now() - this.#activeAt < IDLE_MS;
  }

  see(isVisible: boolean): void {
    this.#isVisible = isVisible;
    if (isVisible) this.#activeAt = this.#now();
    this.#tell();
  }

  focus(hasFocus: boolean): void {
    this.#hasFocus = hasFocus;
    if (hasFocus) this.#activeAt = this.#now();
    this.#tell();
  }

  /** A key, a click, a move. `isTouch`: no mere move; only a window with the focus gets that. */
  stir(isTouch: boolean): void {
    if (isTouch) this.#hasFocus = true;
    if (this.#isVisible) this.#activeAt = this.#now();
    this.#tell();
  }

  away(isAway: boolean): void {
    this.isAway.set(isAway);
    this.#tell();
  }

  #tell(): void {
    this.isPresent.set(this.isHere);
  }
}

/** Feeds it the page's events; gives what ends that. */
export function attend(attention: Attention): () => void {
  const ended = new AbortController();
  const how = { signal: ended.signal, passive: true, capture: true };
  document.addEventListener('visibilitychange', () => attention.see(document.visibilityState === 'visible'), how);
  window.addEventListener('focus', () => attention.focus(true), how);
  window.addEventListener('blur', () => attention.focus(document.hasFocus()), how);
  for (const name of ['pointerdown', 'keydown', 'touchstart']) {
    window.addEventListener(name, () => attention.stir(true), how);
  }
  for (const name of ['pointermove', 'wheel']) window.addEventListener(name, () => attention.stir(false), how);
  return () => ended.abort();
}
