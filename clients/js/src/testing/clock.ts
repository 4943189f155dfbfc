/**
 * Time for tests. A `TestClock` is moved by hand, so a test of minutes takes milliseconds and is the same each time.
 * The fake server and the client take any object with these three methods.
 */

/** What tells the time and calls back; `ms` are milliseconds. */
export interface TestingClock {
  /** Milliseconds since 1970 UTC. */
  now(): number;
  /** Calls `fn` once after `ms`; gives what `clear` takes. */
  set(fn: () => void, ms: number): unknown;
  /** Takes a call back. */
  clear(handle: unknown): void;
}

/** The machine's own time. */
export const realClock: TestingClock = {
  now: () => Date.now(),
  set: (fn, ms) => setTimeout(fn, ms),
  clear: (handle) => clearTimeout(handle as ReturnType<typeof setTimeout>),
};

/** Promises between two timers have this many turns to settle. */
const SETTLE_TURNS = 12;

interface Timer {
  fn: () => void;
  at: number;
}

/** A clock that stands still until `pass` moves it. */
export class TestClock implements TestingClock {
  #now: number;
  #last = 0;
  readonly #timers = new Map<number, Timer>();

  /** Starts at `now`. */
  constructor(now = 1_790_000_000_000) {
    this.#now = now;
  }

  now(): number {
    return this.#now;
  }

  set(fn: () => void, ms: number): number {
    this.#last += 1;
    this.#timers.set(this.#last, { fn, at: this.#now + Math.max(0, ms) });
    return this.#last;
  }

  clear(handle: unknown): void {
    this.#timers.delete(handle as number);
  }

  /** How many calls are due some day. */
  get waiting(): number {
    return this.#timers.size;
  }

  /** Lets `ms` pass. What is due runs at its own time, in order, and promises settle in between. */
  async pass(ms: number): Promise<void> {
    const end = this.#now + ms;
    await settle();
    for (let due = this.#due(end); due !== undefined; due = this.#due(end)) {
      this.#now = Math.max(this.#now, due.at);
      due.fn();
      await settle();
    }
    this.#now = end;
  }

  /** Lets time pass until `condition` holds; throws where it does not within `msMax`. */
  async until(condition: () => boolean, what: string, msMax = 600_000): Promise<void> {
    const end = this.#now + msMax;
    await settle();
    while (!condition()) {
      const due = this.#due(end);
      if (due === undefined) throw new Error(`${what}: not within ${msMax} ms`);
      this.#now = Math.max(this.#now, due.at);
      due.fn();
      await settle();
    }
  }

  /** Takes out the next timer that is due by `end`. */
  #due(end: number): Timer | undefined {
    let first: [number, Timer] | undefined;
    for (const entry of this.#timers) {
      if (entry[1].at <= end && (first === undefined || entry[1].at < first[1].at)) first = entry;
    }
    if (first === undefined) return undefined;
    this.#timers.delete(first[0]);
    return first[1];
  }
}

/** Lets promises that are ready run. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < SETTLE_TURNS; turn += 1) await Promise.resolve();
}
