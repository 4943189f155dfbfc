/**
 * What a browser tells a client: visibility, online, pageshow, freeze and wake.
 *
 *      seen again, online, shown from the cache of pages, slept ──► wake
 *      hidden for a while, or nobody touched it for long        ──► away
 *      hidden, left, frozen                                     ──► save; a frozen tab gives the connection to another
 *
 * A short look at another tab is no absence, so hidden is `away` after a while only.
 */

import type { Platform } from './options.js';
import { sleepWatch } from './sleep.js';

export interface BrowserOptions {
  /** How long hidden, and how long untouched, until somebody is away. */
  hiddenMs?: number;
  idleMs?: number;
}

const STIRS = ['keydown', 'pointerdown', 'pointermove', 'wheel'];
/** A moved mouse makes hundreds of events. */
const STIR_EVERY_MS = 1000;

/** The platform adapter of browsers. Listens from the client's `start` on. */
export function browser({ hiddenMs = 20000, idleMs = 300000 }: BrowserOptions = {}): Platform {
  return (hooks) => {
    const ended = new AbortController();
    const on = (target: EventTarget, event: string, fn: (event: Event) => void): void =>
      target.addEventListener(event, fn, { signal: ended.signal, passive: true, capture: true });
    let timer: ReturnType<typeof setTimeout>;
    let isAway = false;
    let stirredAt = -Infinity;
    const setAway = (is: boolean): void => {
      if (is !== isAway) hooks.away(is);
      isAway = is;
    };
    const count = (): void => {
      clearTimeout(timer);
      timer = setTimeout(() => setAway(true), document.hidden ? hiddenMs : idleMs);
    };
    const here = (): void => {
      count();
      setAway(false);
    };
    const runs = (): void => {
      hooks.freeze(false);
      hooks.wake();
    };
    const freezes = (): void => {
      hooks.save();
      hooks.freeze(true);
    };
    on(document, 'visibilitychange', () => {
      if (document.hidden) {
        hooks.save();
        count();
      } else {
        here();
        hooks.wake();
      }
    });
    on(window, 'online', hooks.wake);
    on(window, 'pageshow', runs);
    on(window, 'pagehide', freezes);
    on(document, 'freeze', freezes);
    on(document, 'resume', runs);
    for (const stir of STIRS) {
      on(window, stir, () => {
        const now = performance.now();
        if (document.hidden || now - stirredAt < STIR_EVERY_MS) return;
        stirredAt = now;
        here();
      });
    }
    count();
    const awake = sleepWatch()(hooks);
    return () => {
      awake();
      clearTimeout(timer);
      ended.abort();
    };
  };
}
