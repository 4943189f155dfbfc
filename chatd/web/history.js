/**
 * Gets pages of history into the model: the newest page of what is shown, older and newer ones on scroll, and the place where somebody
 * stopped reading. One request a conversation at a time, `LOADS_MAX` in all, because the server answers few reads of one connection at
 * once; the conversation on the screen goes first.
 *
 * A page that fails is asked for again when the server says so, or by whoever still wants it after the next welcome.
 * No DOM; `client.history` and the clock are injected.
 */

import { Timers } from './link.js';

export const PAGE_MESSAGES = 50;
/** Enough for the preview, and for the unread ones of most conversations. */
const PREVIEW_MESSAGES = 12;
const PAGE_MAX = 100;
const LOADS_MAX = 3;
const REPEAT_MS = 1000;

/** @typedef {import('./model.js').Model} Model */
/**
 * `mark`: the page after that seq, in place of what is held; `latest`: the newest page, in place of what is held.
 * @typedef {{way: 'older'|'newer'|'latest'|'preview'}|{way: 'mark', after: number}} Wish
 */

export class History {
  /**
   * @param {{client: {history(peer: string, range: {before?: number, after?: number, limit: number}): Promise<any>, ack(peer: string, seq: number): void},
   *   model: Model, clock: import('./link.js').Clock}} parts
   */
  constructor({ client, model, clock }) {
    this.client = client;
    this.model = model;
    this.timers = new Timers(clock);
    /** @type {Map<string, Wish>} what waits, in the order wished for */
    this.wishes = new Map();
    /** @type {Set<string>} */
    this.loading = new Set();
    /** Counts `forget`s: an answer to somebody else's question is dropped. */
    this.age = 0;
    /** @type {Set<string>} for good, by an error that no retry can heal */
    this.refused = new Set();
  }

  /** @param {string} peer */
  isLoading(peer) {
    return this.loading.has(peer);
  }

  /** The page before what is held, or the newest if nothing is. Idempotent while it is on its way. @param {string} peer */
  older(peer) {
    this.#first(peer, { way: 'older' });
  }

  /** The page after what is held. Idempotent as well. @param {string} peer */
  newer(peer) {
    this.#first(peer, { way: 'newer' });
  }

  /** The page after `seq` alone: what lies between it and what is held is too much. @param {string} peer  @param {number} seq */
  from(peer, seq) {
    this.#first(peer, { way: 'mark', after: seq });
  }

  /** The newest page alone. Not kept over a lost connection: who wanted to go to the end then reads on elsewhere by now. @param {string} peer */
  latest(peer) {
    this.#first(peer, { way: 'latest' });
  }

  /** @param {string} peer  @param {Wish} wish */
  #first(peer, wish) {
    if (!this.#isWorthIt(peer, wish)) return;
    const had = this.wishes.get(peer)?.way;
    if ((had === 'mark' || had === 'latest') && wish.way !== 'mark' && wish.way !== 'latest') return;
    this.wishes.delete(peer);
    this.wishes = new Map([[peer, wish], ...this.wishes]);
    this.#next();
  }

  /** The newest page of each of which nothing is held. @param {string[]} peers those in sight */
  previews(peers) {
    const preview = /** @type {Wish} */ ({ way: 'preview' });
    for (const [peer, { way }] of this.wishes) if (way === 'preview') this.wishes.delete(peer);
    for (const peer of peers) if (!this.wishes.has(peer) && this.#isWorthIt(peer, preview)) this.wishes.set(peer, preview);
    this.#next();
  }

  forget() {
    this.age += 1;
    this.wishes.clear();
    this.loading.clear();
    this.refused.clear();
    this.timers.clearAll();
  }

  /** @param {string} peer  @param {Wish} wish */
  #isWorthIt(peer, wish) {
    const it = this.model.conversations.get(peer);
    if (!it || it.c === null || this.loading.has(peer) || this.refused.has(peer)) return false;
    const { log } = it;
    if (wish.way === 'mark') return log.lo !== null && log.lo > wish.after + 1;
    return { older: log.more, newer: log.isBehind, latest: log.apart, preview: log.blank || log.isEndUnknown }[wish.way];
  }

  #next() {
    if (this.model.line.state !== 'live') {
      for (const [peer, { way }] of this.wishes) if (way === 'latest') this.wishes.delete(peer);
      return;
    }
    if (this.timers.has('pause')) return;
    for (const [peer, wish] of this.wishes) {
      if (this.loading.size >= LOADS_MAX) return;
      this.wishes.delete(peer);
      if (this.#isWorthIt(peer, wish)) this.#load(peer, wish);
    }
  }

  /** @param {string} peer  @param {Wish} wish */
  async #load(peer, wish) {
    const age = this.age;
    this.loading.add(peer);
    try {
      const page = await this.client.history(peer, this.#range(this.model.with(peer), wish));
      if (age !== this.age) return;
      this.loading.delete(peer);
      this.#take(peer, page, wish.way);
      const { log: { hi, head, apart }, delivered } = this.model.with(peer);
      // What comes live is acked by the client; this is what waited from before.
      const had = apart ? head : hi;
      if (had !== null && had > delivered) this.client.ack(peer, had);
    } catch (error) {
      if (age !== this.age) return;
      this.loading.delete(peer);
      this.#failed(peer, wish, /** @type {any} */ (error));
    }
    this.#next();
  }

  /** @param {string} peer  @param {any} page  @param {Wish['way']} way */
  #take(peer, page, way) {
    const isNewer = way === 'newer' || way === 'mark';
    if (way === 'mark' || way === 'latest') this.model.restart(peer, page, isNewer);
    else if (way === 'preview' && this.model.with(peer).log.apart) this.model.end(peer, page);
    else this.model.page(peer, page, isNewer);
  }

  /** @param {import('./model.js').Conversation} it  @param {Wish} wish */
  #range({ log, unread }, wish) {
    if (wish.way === 'mark') return { limit: PAGE_MAX, after: wish.after };
    if (wish.way === 'newer') return { limit: PAGE_MAX, after: log.after };
    if (wish.way === 'latest') return { limit: PAGE_MESSAGES };
    if (wish.way === 'preview' && log.apart) return { limit: 1 };
    const wanted = Math.max(wish.way === 'older' ? PAGE_MESSAGES : PREVIEW_MESSAGES, log.lo === null ? unread + 5 : 0);
    return { limit: Math.min(PAGE_MAX, wanted), ...(log.lo === null ? {} : { before: log.lo }) };
  }

  /** @param {string} peer  @param {Wish} wish  @param {{code?: string, retry_ms?: number}} error */
  #failed(peer, wish, { code, retry_ms }) {
    if (code === 'disconnected') return;
    if (typeof retry_ms !== 'number') {
      this.refused.add(peer);
      return;
    }
    if (!this.wishes.has(peer)) this.wishes.set(peer, wish);
    this.timers.set('pause', Math.max(retry_ms, REPEAT_MS), () => this.#next());
  }
}
