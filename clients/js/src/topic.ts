/**
 * One thing that is shown, as an immutable snapshot with subscribers: the shape that `useSyncExternalStore` wants.
 *
 * A snapshot is made when somebody asks and something changed, and is the same object as before where nothing in it did.
 * Subscribers hear of a change once a microtask, and only where the snapshot is another one.
 */

/** What an application reads. The methods are bound. */
export interface Readable<T> {
  getSnapshot: () => T;
  /** Returns its unsubscriber. */
  subscribe: (listener: () => void) => () => void;
}

export class Topic<T> implements Readable<T> {
  readonly #make: (old: T | undefined) => T;
  readonly #listeners = new Set<{ listener: () => void }>();
  readonly #failed: (error: unknown) => void;
  #value: T | undefined;
  #isDirty = true;
  #isTelling = false;

  /** `make` gets the last snapshot, to give it back or parts of it. `failed` gets what a listener throws. */
  constructor(make: (old: T | undefined) => T, failed: (error: unknown) => void) {
    this.#make = make;
    this.#failed = failed;
  }

  get isWatched(): boolean {
    return this.#listeners.size > 0;
  }

  readonly getSnapshot = (): T => {
    if (this.#isDirty) this.#value = this.#make(this.#value);
    this.#isDirty = false;
    return this.#value as T;
  };

  readonly subscribe = (listener: () => void): (() => void) => {
    const one = { listener };
    this.getSnapshot();
    this.#listeners.add(one);
    return () => void this.#listeners.delete(one);
  };

  /** Something in it may have changed. */
  touch(): void {
    this.#isDirty = true;
    if (this.#isTelling || !this.isWatched) return;
    this.#isTelling = true;
    const before = this.#value;
    queueMicrotask(() => {
      this.#isTelling = false;
      if (this.getSnapshot() === before) return;
      for (const { listener } of [...this.#listeners]) {
        try {
          listener();
        } catch (error) {
          this.#failed(error);
        }
      }
    });
  }
}

/** `fresh`, or `old` where each of its keys has the same value. */
export function same<T extends object>(old: T | undefined, fresh: T): T {
  if (!old || old === fresh) return fresh;
  if (Array.isArray(fresh) && Array.isArray(old)) {
    return old.length === fresh.length && fresh.every((one, i) => Object.is(one, (old as unknown[])[i])) ? old : fresh;
  }
  const keys = Object.keys(fresh) as (keyof T)[];
  const isSame = keys.length === Object.keys(old).length && keys.every((key) => Object.is(old[key], fresh[key]));
  return isSame ? old : fresh;
}
