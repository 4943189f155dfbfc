/**
 * Finds out that the device slept: a timer that runs long after its time. What the line missed meanwhile is asked for at
 * once, rather than after the next silence. For Node it is all of the platform; the browser's adapter uses it too.
 */

import type { Platform } from './options.js';

const LOOK_MS = 15000;
/** A hidden tab's timers run once a minute. */
const LATE_MS = 90000;

/** The platform adapter of Node. By the wall clock, because a monotonic one may stand still while the device sleeps. */
export function sleepWatch(): Platform {
  return ({ wake }) => {
    let last = Date.now();
    const timer = setInterval(() => {
      const late = Date.now() - last;
      last += late;
      if (late > LATE_MS) wake();
    }, LOOK_MS);
    (timer as { unref?: () => void }).unref?.();
    return () => clearInterval(timer);
  };
}
