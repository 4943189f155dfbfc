/**
 * The entries of all conversations as one stream: each once, those of a conversation in order of seq.
 *
 *      waiting:  entry, entry, gap ──page──► entries of the gap, entry, ...
 *
 * Where the server said that too much was missed, the stream pages through it before what comes after it. A gap shrinks
 * by each entry that was taken, so what is left of it can be stored. Each stream has all; what is not taken waits, up to
 * `WAITING_MAX`.
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
  readonly #page: (gap: Gap) => Promise<HistoryPage | null>;
  readonly #made: (entry: Entry) => T;
  readonly #shrunk: (gap: Gap) => void;
  readonly #ended: () => void;
  #waiting: (T | Gap)[] = [];
  /** Of the gap that is first in `#waiting`. */
  #fetched: Entry[] = [];
  #isLastPage = false;
  #wake: (() => void) | null = null;
  #isEnded = false;
  #error: ChatError | null = null;

  /**
   * `page` gives a page after `gap.after`; it may wait until it can, and gives null once nothing is to be had any more.
   * `shrunk` hears that less is missing. `ended` is called once nobody reads any more.
   */
  constructor(
    page: (gap: Gap) => Promise<HistoryPage | null>,
    made: (entry: Entry) => T,
    shrunk: (gap: Gap) => void,
    ended: () => void,
  ) {
    this.#page = page;
    this.#made = made;
    this.#shrunk = shrunk;
    this.#ended = ended;
  }

  /** What has yet to be fetched. */
  get gaps(): Gap[] {
    return this.#waiting.filter((one) => !('seq' in one)) as Gap[];
  }

  /** A gap becomes the stream's own. */
  push(what: T | Gap): void {
    if (this.#waiting.length >= WAITING_MAX) this.end(new ChatError({ code: 'overrun' }));
    else this.#waiting.push(what);
    this.#wake?.();
  }

  /** Another epoch: holes of the old one cannot be filled. */
  reset(): void {
    this.#waiting = this.#waiting.filter((one) => 'seq' in one);
    this.#fetched = [];
  }

  end(error: ChatError | null = null): void {
    this.#isEnded = true;
    this.#error = error;
    this.#wake?.();
  }

  async next(): Promise<IteratorResult<T>> {
    for (;;) {
      const [first] = this.#waiting;
      if (first && 'seq' in first) {
        this.#waiting.shift();
        return { done: false, value: first };
      }
      const entry = this.#fetched.shift();
      if (first && entry) {
        this.#shrink(first, entry.seq);
        return { done: false, value: this.#made(entry) };
      }
      if (first && !this.#isEnded) await this.#fill(first);
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
    this.#waiting = this.#fetched = [];
    this.#isEnded = true;
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async #fill(gap: Gap): Promise<void> {
    const { after, head } = gap;
    const page = after < head ? await this.#page(gap) : null;
    // It is of no use where another epoch began meanwhile.
    if (this.#waiting[0] !== gap || gap.after !== after) return;
    if (page) {
      const { entries, more } = page;
      this.#fetched = entries.filter(({ seq }) => seq > after && seq <= head);
      this.#isLastPage = !more || (entries.at(-1)?.seq ?? head) >= head;
    }
    if (this.#fetched.length === 0 && !this.#isEnded) this.#shrink(gap, head);
  }

  /** The last page may end before the gap does: retention or changes took the rest. */
  #shrink(gap: Gap, to: number): void {
    const isFilled = this.#fetched.length === 0 && (this.#isLastPage || to >= gap.head);
    gap.after = isFilled ? gap.head : to;
    if (isFilled) this.#waiting.shift();
    this.#shrunk(gap);
  }
}
