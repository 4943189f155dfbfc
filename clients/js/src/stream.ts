/**
 * The entries of all conversations as one stream: each once, those of a conversation in order of seq.
 *
 * Where the server said that too much was missed, the stream pages through it before what comes after it. Each stream
 * has all; what is not taken waits, up to `WAITING_MAX`.
 */

import { ChatError } from './errors.js';
import type { Entry, HistoryPage } from './frames.js';

const WAITING_MAX = 100000;

/** A hole in what came live: `after` < seq <= `head` is to be fetched. */
export interface Gap {
  peer: string;
  c: string;
  after: number;
  head: number;
}

export class EntryStream<T extends Entry> implements AsyncIterableIterator<T> {
  readonly #page: (gap: Gap) => Promise<HistoryPage>;
  readonly #made: (entry: Entry) => T;
  readonly #ended: () => void;
  #waiting: (T | Gap)[] = [];
  #wake: (() => void) | null = null;
  #isEnded = false;
  #error: ChatError | null = null;

  /** `page` gives a page after `gap.after`; it may wait until it can. `ended` is called once nobody reads any more. */
  constructor(page: (gap: Gap) => Promise<HistoryPage>, made: (entry: Entry) => T, ended: () => void) {
    this.#page = page;
    this.#made = made;
    this.#ended = ended;
  }

  push(what: T | Gap): void {
    if (this.#waiting.length >= WAITING_MAX) this.end(new ChatError({ code: 'overrun' }));
    else this.#waiting.push(what);
    this.#wake?.();
  }

  /** Another epoch: holes of the old one cannot be filled. */
  reset(): void {
    this.#waiting = this.#waiting.filter((one) => 'seq' in one);
  }

  end(error: ChatError | null = null): void {
    this.#isEnded = true;
    this.#error = error;
    this.#wake?.();
  }

  async next(): Promise<IteratorResult<T>> {
    for (;;) {
      const one = this.#waiting.shift();
      if (one && 'seq' in one) return { done: false, value: one };
      if (one) await this.#fill(one);
      else if (this.#error) throw this.#error;
      else if (this.#isEnded) return { done: true, value: undefined };
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = null;
      }
    }
  }

  async return(): Promise<IteratorResult<T>> {
    this.#ended();
    this.#waiting = [];
    this.#isEnded = true;
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async #fill(gap: Gap): Promise<void> {
    if (gap.after >= gap.head || this.#isEnded) return;
    const { entries, more } = await this.#page(gap);
    const fresh = entries.filter(({ seq }) => seq > gap.after && seq <= gap.head);
    const last = entries.at(-1)?.seq ?? gap.head;
    const rest = more && last < gap.head ? [{ ...gap, after: last }] : [];
    this.#waiting.unshift(...fresh.map(this.#made), ...rest);
  }
}
