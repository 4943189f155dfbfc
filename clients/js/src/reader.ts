/** What a client asks for: pages of history and of the list of conversations, checked as they come. */

import type { CoreClient } from './core.js';
import type { Engine } from './engine.js';
import { ChatError } from './errors.js';
import { type Entry, entryOf, type Frame, type HistoryPage, type Item, isCount, itemOf, listOf } from './frames.js';
import { type Paged, paged } from './paged.js';
import type { Gap } from './stream.js';

/** Which part of a log. */
export type Range = { before?: number; after?: number; limit?: number };

/** One page of the list of conversations; without `cursor` it was the last. */
export interface ConversationsPage {
  conversations: Item[];
  cursor?: string;
}

const NOTHING: HistoryPage = { entries: [], more: false, head: 0, floor: 1 };

export class Reader {
  readonly #client: CoreClient;

  constructor(client: CoreClient) {
    this.#client = client;
  }

  get #engine(): Engine {
    return this.#client._engine;
  }

  history(peer: string, range: Range = {}): Paged<Entry, HistoryPage> {
    const ask = (part: Range) => async (): Promise<HistoryPage> =>
      this.#page(peer, await this.#client._run('read', { t: 'history', ...this.#engine.where(peer), ...part }));
    const isNewer = range.after !== undefined;
    const { limit } = range;
    const rest = limit === undefined ? {} : { limit };
    return paged(
      ask(range),
      ({ entries }) => (isNewer ? entries : entries.toReversed()),
      ({ entries, more }) => {
        const [first] = entries;
        const last = entries.at(-1);
        if (!more || !first || !last) return null;
        return ask(isNewer ? { ...rest, after: last.seq } : { ...rest, before: first.seq });
      },
    );
  }

  #page(peer: string, reply: Frame): HistoryPage {
    const c = typeof reply.c === 'string' ? reply.c : (this.#engine.places.names.get(peer) ?? peer);
    const { list: entries, isWhole } = listOf(reply.entries, (one) => entryOf(one, c));
    const { more, head, floor } = reply;
    if (!isWhole) this.#engine.emit({ t: 'malformed', frame: reply });
    if (!isCount(head) || !isCount(floor))
      throw new ChatError({ code: 'protocol', msg: 'a page without head or floor' });
    return { entries, more: more === true, head, floor };
  }

  conversations({ limit, cursor }: { limit?: number; cursor?: string } = {}): Paged<Item, ConversationsPage> {
    const ask = (at: string | undefined) => async (): Promise<ConversationsPage> => {
      const frame = {
        t: 'conversations',
        ...(limit === undefined ? {} : { limit }),
        ...(at === undefined ? {} : { cursor: at }),
      };
      const reply = await this.#client._run('read', frame);
      const { list: conversations } = listOf(reply.conversations, itemOf);
      return typeof reply.cursor === 'string' ? { conversations, cursor: reply.cursor } : { conversations };
    };
    return paged(
      ask(cursor),
      (page) => page.conversations,
      (page) => (page.cursor === undefined ? null : ask(page.cursor)),
    );
  }

  /** A page of a gap, however long it takes; null once the client has stopped. */
  async fill({ peer, after }: Gap, isStarted: () => boolean): Promise<HistoryPage | null> {
    for (let wait = 500; ; wait = Math.min(2 * wait, 30000)) {
      try {
        return await this.history(peer, { after, limit: 100 });
      } catch (error) {
        const { code, retryMs } = error as ChatError;
        if (!isStarted()) return null;
        if (code !== 'disconnected' && retryMs === null) return NOTHING;
        await new Promise<void>((resolve) => this.#engine.clock.set(resolve, wait));
      }
    }
  }
}
