/**
 * The last changes of a store that IndexedDB has not confirmed, in localStorage: written before the call returns, so that
 * they outlive a page that ends in the same task. A transaction of IndexedDB that waits for a result does not.
 *
 *      localStorage[`NAME SCOPE`] = JSON of [owner, [[key, value or null], ...]]
 *
 * There for some ms at a time, and of one owner: what an earlier client of the scope left behind is told apart by it.
 * Where there is no localStorage (a worker, Node, a sandboxed frame), or no room, nothing is noted.
 */

import type { Records } from './store.js';

/** More is not noted: it would hold up the page. Some 200 of the longest messages. */
const CHARS_MAX = 2 ** 19;

/** The part of a Storage that is used. */
export type Area = Pick<Storage, 'getItem' | 'setItem' | 'removeItem'>;

/** `area`: null, where there is none. */
export class Journal {
  readonly #area: Area | null;
  readonly #key: string;
  #isBlank = false;

  constructor(area: Area | null, key: string) {
    this.#area = area;
    this.#key = key;
  }

  /** Replaces what is noted. Never fails: what cannot be noted is not. */
  write(owner: string, changes: Records): void {
    if (changes.size === 0 && this.#isBlank) return;
    this.#isBlank = false;
    const text = JSON.stringify([owner, [...changes].map(([key, value]) => [key, value ?? null])]);
    try {
      if (changes.size > 0 && text.length <= CHARS_MAX) this.#area?.setItem(this.#key, text);
      else this.clear();
    } catch {
      this.clear(); // what stands there is of an earlier state
    }
  }

  clear(): void {
    try {
      this.#area?.removeItem(this.#key);
      this.#isBlank = true;
    } catch {
      // not to be reached: nothing is read of it either
    }
  }

  /** What `owner` noted last: values by key, undefined where there is none any more. */
  read(owner: unknown): Records {
    try {
      const [by, changes] = JSON.parse(this.#area?.getItem(this.#key) ?? '[]') as [unknown, [string, unknown][]];
      if (by !== owner || !Array.isArray(changes)) return new Map();
      return new Map(changes.map(([key, value]) => [String(key), value ?? undefined]));
    } catch {
      return new Map(); // denied, or written by somebody else
    }
  }
}

/** The browser's own, where it is allowed. */
export function localArea(): Area | null {
  try {
    return globalThis.localStorage ?? null;
  } catch {
    return null;
  }
}
