/**
 * How many messages a user may send (section 5 of docs/protocol.md): so many in any window, over all devices. A
 * connection that has read a refusal, and sends before the time that it named, doubles the wait, and in the end is cut.
 */

/** A client's timer that fires early by this much still counts as in time. */
const SLACK_MS = 50;
const PENALTY_MS_MIN = 1_000;
const PENALTY_MS_MAX = 60_000;
/** Strikes are forgotten so long after the end of the last penalty. */
const FORGET_MS = 60_000;

/** The rate's verdict on one send: the wait in ms, 0 if it was taken, or the end of the connection. */
export type Verdict = number | 'close';

/** The sends of one user. */
export class Rate {
  readonly #messages: number;
  readonly #perMs: number;
  readonly #strikesMax: number;
  #sent: number[] = [];
  #until = 0;
  #wait = 0;
  #strikes = 0;

  /** So many `messages` in any `perMs`. */
  constructor(messages: number, perMs: number, strikesMax: number) {
    this.#messages = messages;
    this.#perMs = perMs;
    this.#strikesMax = strikesMax;
  }

  /** Whether this one may be stored now; it is counted if so. `isEarly`: its connection was told to wait. */
  ask(isEarly: boolean, now: number): Verdict {
    this.#sent = this.#sent.filter((at) => at > now - this.#perMs);
    const free = this.#sent.length < this.#messages ? now : (this.#sent[0] ?? now) + this.#perMs;
    const wait = Math.max(free, this.#until) - now;
    if (wait > 0) return isEarly ? this.#strike(wait, now) : wait;
    this.#sent.push(now);
    return 0;
  }

  #strike(wait: number, now: number): Verdict {
    if (now >= this.#until + FORGET_MS) this.#strikes = this.#wait = 0;
    this.#strikes += 1;
    this.#wait = Math.min(2 * Math.max(this.#wait, wait, PENALTY_MS_MIN), PENALTY_MS_MAX);
    const longer = Math.max(this.#wait, wait);
    this.#until = now + longer;
    return this.#strikes > this.#strikesMax ? 'close' : longer;
  }
}

/** What one connection was told of its user's rate. */
export class Told {
  /** Refused cid -> when it may come again. */
  readonly #until = new Map<string, number>();
  #warnedUntil = 0;

  /** This cid was refused. */
  refused(cid: string, until: number): void {
    this.#until.set(cid, until);
  }

  /** It comes again, or is given up: the refusal was read. True: what comes now is early. */
  isEarly(cid: string, now: number): boolean {
    this.#warnedUntil = Math.max(this.#warnedUntil, (this.#until.get(cid) ?? 0) - SLACK_MS);
    this.#until.delete(cid);
    return now < this.#warnedUntil;
  }
}

/** Frames of one connection: `burst` at once, `perS` a second after that. */
export class FrameRate {
  readonly #perS: number;
  readonly #burst: number;
  #left: number;
  #at: number;

  /** Full, at `now`. */
  constructor(perS: number, burst: number, now: number) {
    this.#perS = perS;
    this.#burst = burst;
    this.#left = burst;
    this.#at = now;
  }

  /** Takes `count` frames; ms to wait where they are too many, else 0. */
  take(count: number, now: number): number {
    this.#left = Math.min(this.#burst, this.#left + ((now - this.#at) * this.#perS) / 1000);
    this.#at = now;
    if (this.#left < count) return Math.ceil(((count - this.#left) * 1000) / this.#perS);
    this.#left -= count;
    return 0;
  }
}
