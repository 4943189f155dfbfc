/**
 * Pages of history into what is shown: one request a conversation at a time. A page that fails is for the caller to ask
 * for again; nothing is refused for good.
 */

import type { ChatClient } from './client.js';
import type { Model } from './model.js';
import type { UserId } from './options.js';
import { history, type Range } from './reader.js';

/**
 * Which page: before what is held (the newest if nothing is), after it, the newest in its place, the one after a seq in
 * its place, or as much as a row of a list wants.
 */
export type Way = 'older' | 'newer' | 'latest' | 'preview' | { after: number };

const PAGE_MESSAGES = 50;
const PREVIEW_MESSAGES = 12;
const PAGE_MAX = 100;

export class Loads {
  readonly #client: ChatClient;
  readonly #loading = new Map<string, Promise<void>>();

  constructor(client: ChatClient) {
    this.#client = client;
  }

  get #model(): Model {
    return this.#client._model;
  }

  isLoading(peer: string): boolean {
    return this.#loading.has(peer);
  }

  /** Resolves when it is there, or nothing is to be had; the same promise while it is on its way. */
  load(peer: string, way: Way): Promise<void> {
    const under = this.#loading.get(peer);
    if (under) return under;
    const range = this.#range(peer, way);
    if (range === null) return Promise.resolve();
    const loading = this.#load(peer, way, range).finally(() => {
      this.#loading.delete(peer);
      this.#model.changed(peer);
    });
    this.#loading.set(peer, loading);
    this.#model.changed(peer);
    return loading;
  }

  async #load(peer: string, way: Way, range: Range): Promise<void> {
    const before = this.#model.chats.get(peer);
    const page = await history(this.#client, peer, range);
    const chat = this.#model.chats.get(peer);
    if (!chat || chat !== before) return; // another epoch, or another user
    const { log } = chat;
    if (way === 'latest') this.#model.page(peer, page, 'anew');
    else if (typeof way === 'object') this.#model.page(peer, page, 'from');
    else if (way === 'preview' && log.apart) this.#model.page(peer, page, 'end');
    else this.#model.page(peer, page, way === 'newer' ? way : 'older');
    // What comes live is acked by itself; this is what waited from before.
    const had = log.apart ? log.head : log.hi;
    if (had !== null && had > chat.delivered) this.#client.ack(peer as UserId, had);
  }

  /** Null: there is nothing to ask for. */
  #range(peer: string, way: Way): Range | null {
    const chat = this.#model.chats.get(peer);
    if (!chat || chat.c === null) return null;
    const { log, unread } = chat;
    if (typeof way === 'object') {
      const isHeld = log.lo !== null && log.lo <= way.after + 1 && (log.hi ?? 0) >= way.after;
      return isHeld ? null : { limit: PAGE_MAX, after: way.after };
    }
    if (way === 'newer') return log.isBehind ? { limit: PAGE_MAX, after: log.after } : null;
    if (way === 'latest') return log.apart ? { limit: PAGE_MESSAGES } : null;
    if (way === 'preview' && log.apart) return log.isEndUnknown ? { limit: 1 } : null;
    if (way === 'preview' ? !log.blank : !log.more) return null;
    const wanted = Math.max(way === 'older' ? PAGE_MESSAGES : PREVIEW_MESSAGES, log.lo === null ? unread + 5 : 0);
    return { limit: Math.min(PAGE_MAX, wanted), ...(log.lo === null ? {} : { before: log.lo }) };
  }
}
