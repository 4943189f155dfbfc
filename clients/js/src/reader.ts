/** What a client asks for: pages of history and of the list of conversations, checked as they come. */

import type { CoreClient } from './core.js';
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

/** A page of the log, or all entries in that direction. */
export function history(client: CoreClient, peer: string, range: Range = {}): Paged<Entry, HistoryPage> {
  const ask = (part: Range) => async () =>
    pageOf(client, peer, await client._run('read', { t: 'history', ...client._engine.where(peer), ...part }), part);
  const isNewer = range.after !== undefined;
  const { before: _, after: __, ...rest } = range;
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

/** Entries in order and of the part that was asked for alone: so each page gets further, and paging ends. */
function pageOf({ _engine: engine }: CoreClient, peer: string, reply: Frame, part: Range): HistoryPage {
  const c = typeof reply.c === 'string' ? reply.c : (engine.places.names.get(peer) ?? peer);
  const { after = 0, before = Infinity } = part;
  let last = after;
  const { list: entries, isWhole } = listOf(reply.entries, (one) => {
    const entry = entryOf(one, c);
    if (entry === null || entry.seq <= last || entry.seq >= before) return null;
    last = entry.seq;
    return entry;
  });
  const { more, head, floor } = reply;
  if (!isWhole) engine.emit({ t: 'malformed', frame: reply });
  if (!isCount(head) || !isCount(floor)) throw new ChatError({ code: 'protocol' });
  return { entries, more: more === true, head, floor };
}

/** A page of the list of conversations, or all of them. */
export function conversations(
  client: CoreClient,
  range: { limit?: number; cursor?: string },
): Paged<Item, ConversationsPage> {
  const ask = (part: { cursor?: string }) => async (): Promise<ConversationsPage> => {
    const reply = await client._run('read', { t: 'conversations', ...range, ...part });
    const { list } = listOf(reply.conversations, itemOf);
    return { conversations: list, ...(typeof reply.cursor === 'string' ? { cursor: reply.cursor } : {}) };
  };
  return paged(
    ask({}),
    (page) => page.conversations,
    ({ cursor }) => (cursor === undefined ? null : ask({ cursor })),
  );
}

/** A page of a gap, however long it takes; null once the client has stopped. */
export async function fill(
  client: CoreClient,
  { peer, after }: Gap,
  isStarted: () => boolean,
): Promise<HistoryPage | null> {
  for (let wait = 500; ; wait = Math.min(2 * wait, 30000)) {
    try {
      return await history(client, peer, { after, limit: 100 });
    } catch (error) {
      const { code, retryMs } = error as ChatError;
      if (!isStarted()) return null;
      if (code !== 'disconnected' && retryMs === null) return NOTHING;
      await new Promise<void>((resolve) => client._clock.set(resolve, wait));
    }
  }
}
