/**
 * Gets pages of history into the model: the newest page of what is shown, and older ones on scroll. One request a conversation at a
 * time, `LOADS_MAX` in all, because the server answers few reads of one connection at once; the conversation on the screen goes first.
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
/** @typedef {'older'|'preview'} Wish */

export class History {
  /**
   * @param {{client: {history(peer: string, range: {before?: number, limit: number}): Promise<any>, ack(peer: string, seq: number): void},
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
    if (!this.#isWorthIt(peer, 'older')) return;
    this.wishes.delete(peer);
    this.wishes = new Map([[peer, 'older'], ...this.wishes]);
    this.#next();
  }

  /** The newest page of each of which nothing is held. @param {string[]} peers those in sight */
  previews(peers) {
    for (const [peer, wish] of this.wishes) if (wish === 'preview') this.wishes.delete(peer);
    for (const peer of peers) if (!this.wishes.has(peer) && this.#isWorthIt(peer, 'preview')) this.wishes.set(peer, 'preview');
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
    return wish === 'older' ? it.log.more : it.log.blank;
  }

  #next() {
    if (this.model.line.state !== 'live' || this.timers.has('pause')) return;
    for (const [peer, wish] of this.wishes) {
      if (this.loading.size >= LOADS_MAX) return;
      this.wishes.delete(peer);
      if (this.#isWorthIt(peer, wish)) this.#load(peer, wish);
    }
  }

  /** @param {string} peer  @param {Wish} wish */
  async #load(peer, wish) {
    const { log, unread } = this.model.with(peer);
    const age = this.age;
    this.loading.add(peer);
    const wanted = Math.max(wish === 'older' ? PAGE_MESSAGES : PREVIEW_MESSAGES, log.lo === null ? unread + 5 : 0);
    const range = { limit: Math.min(PAGE_MAX, wanted), ...(log.lo === null ? {} : { before: log.lo }) };
    try {
      const page = await this.client.history(peer, range);
      if (age !== this.age) return;
      this.loading.delete(peer);
      this.model.page(peer, page);
      const { log: { hi }, delivered } = this.model.with(peer);
      // What comes live is acked by the client; this is what waited from before.
      if (hi !== null && hi > delivered) this.client.ack(peer, hi);
    } catch (error) {
      if (age !== this.age) return;
      this.loading.delete(peer);
      this.#failed(peer, wish, /** @type {any} */ (error));
    }
    this.#next();
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
