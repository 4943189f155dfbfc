/**
 * How many messages a user may send (section 5 of docs/protocol.md): so many in any window, over all devices. Whoever
 * comes again before the time that was named waits twice as long, and in the end loses the connection.
 */

/** The rate's verdict on one send. */
export type Verdict = { kind: 'ok' } | { kind: 'wait'; ms: number } | { kind: 'close' };

/** The sends of one user. */
export class Rate {
  readonly #messages: number;
  readonly #perMs: number;
  readonly #penaltiesMax: number;
  #sent: number[] = [];
  /** Cids that were refused; until one of them comes again or is skipped, what comes was on its way. */
  readonly #refused = new Set<string>();
  #isTold = false;
  #until = 0;
  #wait = 0;
  #penalties = 0;

  /** So many `messages` in any `perMs`. */
  constructor(messages: number, perMs: number, penaltiesMax: number) {
    this.#messages = messages;
    this.#perMs = perMs;
    this.#penaltiesMax = penaltiesMax;
  }

  /** Whether this one may be stored now; it is counted if so. */
  ask(cid: string, now: number): Verdict {
    if (this.#refused.has(cid)) this.#isTold = true;
    if (now < this.#until && this.#isTold) return this.#early(cid, now);
    this.#sent = this.#sent.filter((at) => at > now - this.#perMs);
    const oldest = this.#sent[0];
    if (now < this.#until || (oldest !== undefined && this.#sent.length >= this.#messages)) {
      this.#refused.add(cid);
      if (now >= this.#until) {
        this.#wait = (oldest ?? now) + this.#perMs - now;
        this.#until = now + this.#wait;
        this.#isTold = false;
      }
      return { kind: 'wait', ms: this.#until - now };
    }
    this.#sent.push(now);
    this.#refused.clear();
    this.#isTold = false;
    this.#penalties = 0;
    return { kind: 'ok' };
  }

  /** The client gave this one up: it has heard of the refusal. */
  skip(cid: string): void {
    if (this.#refused.has(cid)) this.#isTold = true;
  }

  #early(cid: string, now: number): Verdict {
    this.#refused.add(cid);
    this.#penalties += 1;
    if (this.#penalties > this.#penaltiesMax) return { kind: 'close' };
    this.#wait *= 2;
    this.#until = now + this.#wait;
    return { kind: 'wait', ms: this.#wait };
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
